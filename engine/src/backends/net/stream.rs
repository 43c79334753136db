//! One TCP connection: a task that reads while it has credit and writes while frames are queued.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes};
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::settings::{NetSettings, millis};
use smallvec::SmallVec;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Shared;
use crate::port::JobTag;
use crate::ports::net::{NetEvent, read_cost};

/// Maximum number of slices in one vectored write.
const MAX_SLICES: usize = 64;

/// Bytes written before a `Sent` event while more are waiting, so that one event covers many blocks.
const REPORT_BYTES: usize = 128 << 10;

/// Minimum number of bytes per read while there is any credit. Fewer are not worth the system call.
const LEAST_READ: usize = 4 << 10;

/// A connection, shared by the world's side and the task.
pub(super) struct Stream {
    outgoing: Mutex<Outgoing>,
    /// Bytes that may still be read. Falls below zero by less than [`LEAST_READ`] or the cost of a small read.
    credit: AtomicI64,
    changed: Notify,
}

#[derive(Default)]
struct Outgoing {
    frames: VecDeque<Bytes>,
    closing: Option<Closing>,
    /// Whether the task has ended, so that nothing processes new entries.
    has_ended: bool,
}

#[derive(Clone, Copy)]
struct Closing {
    is_orderly: bool,
    tag: Option<JobTag>,
}

/// The reason why the task ends.
enum End {
    /// The world closed the connection.
    Asked { is_orderly: bool },
    /// The peer or the network ended the connection.
    Remote(String),
}

impl Stream {
    pub(super) fn new(settings: &NetSettings) -> Self {
        Self {
            outgoing: Mutex::default(),
            credit: AtomicI64::new(i64::from(settings.first_window())),
            changed: Notify::new(),
        }
    }

    pub(super) fn send(&self, frames: Vec<Bytes>) {
        self.lock().frames.extend(frames);
        self.changed.notify_one();
    }

    pub(super) fn grant(&self, bytes: u32) {
        if self.credit.fetch_add(i64::from(bytes), Ordering::AcqRel) <= 0 {
            self.changed.notify_one();
        }
    }

    /// Ends the connection. Returns the tag if the task has already ended.
    pub(super) fn close(&self, is_orderly: bool, tag: Option<JobTag>) -> Option<JobTag> {
        let mut outgoing = self.lock();
        if outgoing.has_ended {
            return tag;
        }
        outgoing.closing = Some(Closing { is_orderly, tag });
        self.changed.notify_one();
        None
    }

    /// Waits until the world closes the stream. For a connection that is still being opened.
    pub(super) async fn closed(&self) {
        while self.lock().closing.is_none() {
            self.changed.notified().await;
        }
    }

    /// Records that the task has ended, and notifies the world if it waits for that.
    pub(super) fn end(&self, shared: &Shared) {
        let mut outgoing = self.lock();
        outgoing.has_ended = true;
        if let Some(tag) = outgoing.closing.and_then(|closing| closing.tag) {
            shared.sink.push(NetEvent::Gone { tag });
        }
    }

    /// Moves bytes in both directions until either side ends the connection.
    pub(super) async fn run(&self, id: StreamId, mut stream: TcpStream, shared: &Shared) {
        let fuse = Fuse {
            stream: self,
            id,
            shared,
        };
        // Requests are small and urgent.
        let _ = stream.set_nodelay(true);
        let mut writing = VecDeque::new();
        match self.pump(id, &stream, &mut writing, shared).await {
            Ok(End::Asked { is_orderly: true }) => {
                let time = millis(shared.settings.close_timeout_ms);
                let _ = timeout(time, self.part(&mut stream, writing)).await;
            }
            Ok(End::Asked { is_orderly: false }) => {}
            Ok(End::Remote(reason)) => shared.closed(id, &reason),
            Err(error) => shared.closed(id, &error.to_string()),
        }
        drop(stream);
        std::mem::forget(fuse);
        self.end(shared);
    }

    async fn pump(
        &self,
        id: StreamId,
        stream: &TcpStream,
        writing: &mut VecDeque<Bytes>,
        shared: &Shared,
    ) -> io::Result<End> {
        loop {
            {
                let mut outgoing = self.lock();
                if let Some(closing) = outgoing.closing {
                    let is_orderly = closing.is_orderly;
                    return Ok(End::Asked { is_orderly });
                }
                if writing.is_empty() {
                    std::mem::swap(writing, &mut outgoing.frames);
                }
            }
            let has_frames = !writing.is_empty();
            let may_read = self.credit.load(Ordering::Acquire) > 0;
            let interest = match (may_read, has_frames) {
                (true, true) => Interest::READABLE | Interest::WRITABLE,
                (true, false) => Interest::READABLE,
                (false, true) => Interest::WRITABLE,
                (false, false) => {
                    self.changed.notified().await;
                    continue;
                }
            };
            tokio::select! {
                ready = stream.ready(interest) => {
                    let ready = ready?;
                    if ready.is_writable() && has_frames {
                        write(id, stream, writing, shared)?;
                    }
                    if ready.is_readable() && may_read && !self.read(id, stream, shared)? {
                        return Ok(End::Remote("end of stream".into()));
                    }
                }
                () = self.changed.notified() => {}
            }
        }
    }

    /// Reads once, as much as is available and allowed. Returns false at the end of the stream.
    fn read(&self, id: StreamId, stream: &TcpStream, shared: &Shared) -> io::Result<bool> {
        let mut chunk = shared.chunks.take();
        let credit = usize::try_from(self.credit.load(Ordering::Acquire)).unwrap_or(0);
        let most = shared.settings.read_chunk_bytes.min(credit.max(LEAST_READ));
        let result = stream.try_read_buf(&mut (&mut chunk).limit(most));
        let read = chunk.split().freeze();
        shared.chunks.give_back(chunk);
        match result {
            Ok(0) => Ok(false),
            Ok(len) => {
                self.credit.fetch_sub(i64::from(read_cost(len)), Ordering::AcqRel);
                shared.sink.push(NetEvent::Received {
                    stream: id,
                    chunk: read,
                });
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Ends a connection without losing data: sends the queued bytes, shuts down our side, and discards the peer's
    /// bytes until it closes too. Closing with unread input would reset the connection and lose our last messages.
    async fn part(&self, stream: &mut TcpStream, writing: VecDeque<Bytes>) -> io::Result<()> {
        let frames = std::mem::take(&mut self.lock().frames);
        for mut frame in writing.into_iter().chain(frames) {
            stream.write_all_buf(&mut frame).await?;
        }
        stream.shutdown().await?;
        let mut rest = [0; 4096];
        loop {
            stream.readable().await?;
            match stream.try_read(&mut rest) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fault 104: reports the connection as closed if its task panics.
struct Fuse<'a> {
    stream: &'a Stream,
    id: StreamId,
    shared: &'a Shared,
}

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        self.shared.closed(self.id, "its task has panicked");
        self.stream.end(self.shared);
    }
}

/// Writes as much as the socket accepts.
fn write(id: StreamId, stream: &TcpStream, writing: &mut VecDeque<Bytes>, shared: &Shared) -> io::Result<()> {
    let mut unreported = 0;
    let report = |bytes| shared.sink.push(NetEvent::Sent { stream: id, bytes });
    while !writing.is_empty() {
        let slices: SmallVec<[IoSlice<'_>; MAX_SLICES]> = writing
            .iter()
            .take(MAX_SLICES)
            .map(|frame| IoSlice::new(frame))
            .collect();
        match stream.try_write_vectored(&slices) {
            Ok(written) => {
                drop(slices);
                advance(writing, written);
                unreported += written;
                if unreported >= REPORT_BYTES {
                    report(std::mem::take(&mut unreported));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    if unreported > 0 {
        report(unreported);
    }
    Ok(())
}

/// Removes the written bytes from the front of the queue.
fn advance(writing: &mut VecDeque<Bytes>, mut written: usize) {
    while let Some(frame) = writing.front_mut().filter(|_| written > 0) {
        let part = written.min(frame.len());
        frame.advance(part);
        written -= part;
        if frame.is_empty() {
            writing.pop_front();
        }
    }
}
