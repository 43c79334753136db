//! Downloads piece after piece. Reads payloads directly into their piece, and hashes and writes each piece after its
//! last block.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use ecs_torrent::protocol::geometry::BlockRequest;
use ecs_torrent::protocol::metainfo::Metainfo;
use ecs_torrent::protocol::wire::{BLOCK_HEADER_LEN, Message};
use sha1::{Digest, Sha1};

use super::{PIECE, UNCHOKE, shake_hands, word};
use crate::content::Files;

/// Bytes requested and not yet received, per connection.
const WINDOW_BYTES: u32 = 2 << 20;

pub fn run(metainfo: Metainfo, folder: Option<&Path>, peers: &[SocketAddr]) -> io::Result<()> {
    let files = Files::created(metainfo, folder.unwrap_or(Path::new("")));
    let next = AtomicU32::new(0);
    let (files, next) = (&files, &next);
    thread::scope(|scope| {
        let threads: Vec<_> = peers
            .iter()
            .map(|peer| {
                scope.spawn(move || {
                    let stream = TcpStream::connect(peer)?;
                    Download::new(stream, files, next, folder.is_some()).run()
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })?;
    if next.load(Ordering::Relaxed) < files.metainfo().info.geometry.piece_count() {
        return Err(io::Error::other("incomplete"));
    }
    Ok(())
}

/// A piece in flight.
struct Piece {
    index: u32,
    bytes: Vec<u8>,
    requested: u32,
    missing: u32,
}

struct Download<'a> {
    stream: TcpStream,
    files: &'a Files,
    /// The next piece that no connection has requested.
    next: &'a AtomicU32,
    writes: bool,
    pieces: VecDeque<Piece>,
    spare: Vec<Vec<u8>>,
    outstanding: u32,
    /// Bytes received and not yet parsed.
    pending: Vec<u8>,
    out: Vec<u8>,
}

impl<'a> Download<'a> {
    fn new(stream: TcpStream, files: &'a Files, next: &'a AtomicU32, writes: bool) -> Self {
        Self {
            stream,
            files,
            next,
            writes,
            pieces: VecDeque::new(),
            spare: Vec::new(),
            outstanding: 0,
            pending: Vec::new(),
            out: Vec::new(),
        }
    }

    fn run(mut self) -> io::Result<()> {
        shake_hands(&mut self.stream, self.files.metainfo().hashes.primary())?;
        Message::Interested.write(&mut self.out);
        self.send()?;
        loop {
            self.need(4)?;
            let len = word(&self.pending, 0) as usize;
            if len == 0 {
                self.pending.drain(..4);
                continue;
            }
            self.need(5)?;
            if self.pending[4] == PIECE {
                self.need(BLOCK_HEADER_LEN)?;
                self.take_block(len - (BLOCK_HEADER_LEN - 4))?;
            } else {
                self.need(4 + len)?;
                let is_unchoke = self.pending[4] == UNCHOKE;
                self.pending.drain(..4 + len);
                if !is_unchoke {
                    continue;
                }
            }
            self.request()?;
            if self.pieces.is_empty() {
                return Ok(());
            }
        }
    }

    /// Reads until `len` bytes are pending. Reads no more than that.
    fn need(&mut self, len: usize) -> io::Result<()> {
        let have = self.pending.len();
        if have < len {
            self.pending.resize(len, 0);
            self.stream.read_exact(&mut self.pending[have..])?;
        }
        Ok(())
    }

    /// Reads a payload into its piece, and usually the header of the next message along with it.
    fn take_block(&mut self, len: usize) -> io::Result<()> {
        let (index, begin) = (word(&self.pending, 5), word(&self.pending, 9) as usize);
        let unrequested = || io::Error::other("a block that was not asked for");
        let at = self
            .pieces
            .iter()
            .position(|piece| piece.index == index)
            .ok_or_else(unrequested)?;
        let piece = &mut self.pieces[at];
        let mut place = piece.bytes.get_mut(begin..begin + len).ok_or_else(unrequested)?;
        let known = &self.pending[BLOCK_HEADER_LEN..];
        let (filled, rest) = place.split_at_mut(known.len().min(len));
        filled.copy_from_slice(&known[..filled.len()]);
        let surplus = known[filled.len()..].to_vec();
        place = rest;
        let mut head = [0; BLOCK_HEADER_LEN];
        let mut head_len = 0;
        while !place.is_empty() {
            let wanted = place.len();
            let read = self
                .stream
                .read_vectored(&mut [IoSliceMut::new(place), IoSliceMut::new(&mut head)])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            head_len = read.saturating_sub(wanted);
            place = &mut place[read.min(wanted)..];
        }
        self.pending.clear();
        self.pending.extend(surplus);
        self.pending.extend(&head[..head_len]);
        self.outstanding -= len as u32;
        piece.missing -= len as u32;
        if piece.missing == 0
            && let Some(piece) = self.pieces.remove(at)
        {
            self.finish(piece)?;
        }
        Ok(())
    }

    fn finish(&mut self, piece: Piece) -> io::Result<()> {
        let info = &self.files.metainfo().info;
        if info
            .pieces
            .get(piece.index)
            .is_none_or(|expected| Sha1::digest(&piece.bytes)[..] != expected[..])
        {
            return Err(io::Error::other(format!("piece {} is bad", piece.index)));
        }
        if self.writes {
            self.files
                .write(info.geometry.piece_offset(piece.index), &piece.bytes)?;
        }
        self.spare.push(piece.bytes);
        Ok(())
    }

    /// Requests blocks until the window is full, once at least half of it is free.
    fn request(&mut self) -> io::Result<()> {
        if self.outstanding > WINDOW_BYTES / 2 {
            return Ok(());
        }
        let geometry = &self.files.metainfo().info.geometry;
        while self.outstanding < WINDOW_BYTES {
            if self
                .pieces
                .back()
                .is_none_or(|piece| piece.requested == geometry.block_count(piece.index))
            {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= geometry.piece_count() {
                    break;
                }
                let size = geometry.piece_size(index);
                let mut bytes = self.spare.pop().unwrap_or_default();
                bytes.resize(size as usize, 0);
                self.pieces.push_back(Piece {
                    index,
                    bytes,
                    requested: 0,
                    missing: size,
                });
            }
            if let Some(piece) = self.pieces.back_mut() {
                let block: BlockRequest = geometry.block(piece.index, piece.requested);
                piece.requested += 1;
                self.outstanding += block.len;
                Message::Request(block).write(&mut self.out);
            }
        }
        self.send()
    }

    fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }
}
