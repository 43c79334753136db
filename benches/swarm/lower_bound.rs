//! A minimal client: blocking sockets, one thread per socket, no engine. It is the counterpart of the measured clients
//! and the baseline for our figures.

mod leech;
mod seed;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use ecs_torrent::protocol::geometry::BlockRequest;
use ecs_torrent::protocol::hash::InfoHash;
use ecs_torrent::protocol::peer_id::PeerId;
use ecs_torrent::protocol::wire::{HANDSHAKE_LEN, Handshake, Reserved};
use sha1::{Digest, Sha1};

use crate::content::{Files, load};
use crate::options::LowerBound;

pub fn run(command: LowerBound) -> ExitCode {
    // All files of a torrent with 10 000 files stay open.
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: Some(20_000),
            maximum: Some(20_000),
        },
    );
    let result = match command {
        LowerBound::Seed {
            torrent,
            folder,
            listen,
        } => load(&torrent).and_then(|metainfo| seed::run(Files::existing(metainfo, &folder), listen)),
        LowerBound::Leech { torrent, folder, peers } => {
            load(&torrent).and_then(|metainfo| leech::run(metainfo, folder.as_deref(), &peers))
        }
        LowerBound::Check { torrent, folder } => {
            load(&torrent).and_then(|metainfo| check(&Files::existing(metainfo, &folder)))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

pub const UNCHOKE: u8 = 1;
const REQUEST: u8 = 6;
pub const PIECE: u8 = 7;

/// Sends and reads handshakes without any extension.
fn shake_hands(stream: &mut TcpStream, info_hash: InfoHash) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let ours = Handshake {
        reserved: Reserved::default(),
        info_hash,
        // A client may refuse two peers with the same ID.
        peer_id: PeerId::ours(std::array::from_fn(|at| {
            (std::process::id().to_le_bytes()[at % 4]) ^ (stream.as_raw_fd() as u8)
        })),
    };
    let mut bytes = Vec::new();
    ours.write(&mut bytes);
    stream.write_all(&bytes)?;
    let mut theirs = [0; HANDSHAKE_LEN];
    stream.read_exact(&mut theirs)?;
    let theirs = Handshake::read(&theirs).map_err(io::Error::other)?;
    if theirs.info_hash != info_hash {
        return Err(io::Error::other("another torrent"));
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn block_at(bytes: &[u8], at: usize) -> BlockRequest {
    BlockRequest {
        piece: word(bytes, at),
        begin: word(bytes, at + 4),
        len: word(bytes, at + 8),
    }
}

/// Reads and hashes every piece on all processors. Each thread uses a buffer that stays in the cache.
fn check(files: &Files) -> io::Result<()> {
    let info = &files.metainfo().info;
    let next = AtomicU32::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let hash_pieces = || -> io::Result<()> {
        let mut buffer = vec![0; 128 << 10];
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            let Some(expected) = info.pieces.get(piece) else {
                return Ok(());
            };
            let span = info.geometry.piece_span(piece);
            let mut hasher = Sha1::new();
            for offset in (span.offset..span.end()).step_by(buffer.len()) {
                let len = buffer.len().min((span.end() - offset) as usize);
                files.read(offset, &mut buffer[..len])?;
                hasher.update(&buffer[..len]);
            }
            if hasher.finalize()[..] != expected[..] {
                return Err(io::Error::other(format!("piece {piece} is bad")));
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(hash_pieces)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })
}
