//! Sends requested blocks: one file read per block, and one write for all blocks requested at once.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use ecs_torrent::protocol::wire::{BLOCK_HEADER_LEN, Message, write_block_header};

use super::{REQUEST, block_at, shake_hands, word};
use crate::content::Files;

/// Bytes that are gathered before a write.
const SEND_BYTES: usize = 256 << 10;

pub fn run(files: Files, listen: SocketAddr) -> io::Result<()> {
    let files = Arc::new(files);
    for stream in TcpListener::bind(listen)?.incoming() {
        let (stream, files) = (stream?, files.clone());
        thread::spawn(move || {
            if let Err(error) = serve(stream, &files)
                && error.kind() != io::ErrorKind::UnexpectedEof
                && error.kind() != io::ErrorKind::ConnectionReset
            {
                eprintln!("error: {error}");
            }
        });
    }
    Ok(())
}

fn serve(mut stream: TcpStream, files: &Files) -> io::Result<()> {
    let metainfo = files.metainfo();
    shake_hands(&mut stream, metainfo.hashes.primary())?;
    let pieces = metainfo.info.geometry.piece_count() as usize;
    let mut bits = vec![0xff; pieces.div_ceil(8)];
    if let Some(last) = bits.last_mut() {
        *last <<= (8 - pieces % 8) % 8;
    }
    let mut out = Vec::with_capacity(SEND_BYTES + (64 << 10));
    Message::Bitfield(bits.into()).write(&mut out);
    Message::Unchoke.write(&mut out);
    let mut received = vec![0; 64 << 10];
    let mut len = 0;
    loop {
        stream.write_all(&out)?;
        out.clear();
        match stream.read(&mut received[len..])? {
            0 => return Ok(()),
            read => len += read,
        }
        let mut at = 0;
        while len - at >= 4 && len - at >= 4 + word(&received, at) as usize {
            let end = at + 4 + word(&received, at) as usize;
            if end > at + 4 && received[at + 4] == REQUEST {
                let block = block_at(&received, at + 5);
                write_block_header(&mut out, block);
                let begin = out.len();
                out.resize(begin + block.len as usize, 0);
                files.read(metainfo.info.geometry.span(block).offset, &mut out[begin..])?;
                if out.len() > SEND_BYTES - BLOCK_HEADER_LEN {
                    stream.write_all(&out)?;
                    out.clear();
                }
            }
            at = end;
        }
        received.copy_within(at..len, 0);
        len -= at;
        if len == received.len() {
            // The message does not fit; it may be a bitfield.
            received.resize(2 * len, 0);
        }
    }
}
