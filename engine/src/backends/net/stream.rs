//! One stream: a task that reads while it has credit and writes while frames are queued, over any carrier.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::settings::millis;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Shared;
use super::carrier::ByteStream;
use super::outbound::Outbound;
use crate::port::JobTag;
use crate::ports::net::{Filter, NetEvent, StreamError, read_cost};

/// Minimum number of bytes per read while there is any credit. Fewer are not worth the system call.
const LEAST_READ: usize = 4 << 10;

/// A stream, shared by the world's side and the task.
#[derive(Default)]
pub(super) struct Stream {
    outgoing: Mutex<Outgoing>,
    incoming: Incoming,
    /// Bytes that may still be read; none at first. Falls below zero by less than [`LEAST_READ`] or the cost of a small
    /// read.
    credit: AtomicI64,
    changed: Notify,
}

#[derive(Default)]
struct Outgoing {
    frames: VecDeque<Bytes>,
    filter: Option<Filter>,
    closing: Option<Closing>,
    /// Whether the task has ended, so that nothing processes new entries.
    has_ended: bool,
}

/// The receiving side. A stream without a filter takes no lock of its own: its bytes and the arrival of a filter meet
/// under the lock of the event queue.
#[derive(Default)]
struct Incoming {
    /// Position in the stream of the next byte.
    position: AtomicU64,
    is_filtered: AtomicBool,
    filter: Mutex<Option<Filter>>,
}

#[derive(Clone, Copy)]
struct Closing {
    is_orderly: bool,
    tag: Option<JobTag>,
}

/// The reason why the task ends.
enum End {
    /// The world closed the stream.
    Requested { is_orderly: bool },
    /// The peer closed the stream.
    Remote,
}

impl Stream {
    pub(super) fn send(&self, frames: Vec<Bytes>) {
        let frames = frames.into_iter().filter(|frame| !frame.is_empty());
        self.lock().frames.extend(frames);
        self.changed.notify_one();
    }

    pub(super) fn grant(&self, bytes: u32) {
        if self.credit.fetch_add(i64::from(bytes), Ordering::AcqRel) <= 0 {
            self.changed.notify_one();
        }
    }

    /// Sets a filter for each direction, unless that direction has one.
    pub(super) fn filter(&self, id: StreamId, incoming: Option<Filter>, outgoing: Option<Filter>, shared: &Shared) {
        if let Some(filter) = outgoing {
            self.lock().filter.get_or_insert(filter);
        }
        if let Some(mut filter) = incoming {
            let mut slot = self.incoming.lock();
            if slot.is_some() {
                return;
            }
            // No bytes arrive and the world takes none while the queue is locked.
            shared.sink.change(|events| {
                let end = self.incoming.position.load(Ordering::Relaxed);
                filter.apply_to_waiting(id, end, events.iter_mut());
                self.incoming.is_filtered.store(true, Ordering::Relaxed);
            });
            *slot = Some(filter);
        }
    }

    /// Ends the stream. Returns the tag if the task has already ended.
    pub(super) fn close(&self, is_orderly: bool, tag: Option<JobTag>) -> Option<JobTag> {
        let mut outgoing = self.lock();
        if outgoing.has_ended {
            return tag;
        }
        outgoing.closing = Some(Closing { is_orderly, tag });
        self.changed.notify_one();
        None
    }

    /// Waits until the world closes the stream. Used for a stream that is still being opened.
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

    /// Moves bytes in both directions until either side ends the stream.
    pub(super) async fn run(&self, id: StreamId, mut carried: Box<dyn ByteStream>, shared: &Shared) {
        let fuse = Fuse {
            stream: self,
            id,
            shared,
        };
        let mut outbound = Outbound::default();
        match self.pump(id, &mut *carried, &mut outbound, shared).await {
            Ok(End::Requested { is_orderly: true }) => {
                let time = millis(shared.settings.close_timeout_ms);
                let _ = timeout(time, self.part(&mut *carried, outbound)).await;
            }
            Ok(End::Requested { is_orderly: false }) => {}
            Ok(End::Remote) => shared.closed(id, StreamError::EndOfStream),
            Err(error) => shared.closed(id, error.into()),
        }
        drop(carried);
        std::mem::forget(fuse);
        self.end(shared);
    }

    async fn pump(
        &self,
        id: StreamId,
        carried: &mut dyn ByteStream,
        outbound: &mut Outbound,
        shared: &Shared,
    ) -> io::Result<End> {
        let mut changed = pin!(self.changed.notified());
        let report = |bytes| shared.sink.push(NetEvent::Sent { stream: id, bytes });
        poll_fn(|cx| {
            loop {
                // A later change wakes the task again.
                while changed.as_mut().poll(cx).is_ready() {
                    changed.set(self.changed.notified());
                }
                if let Some(Closing { is_orderly, .. }) = self.take_frames(outbound) {
                    return Poll::Ready(Ok(End::Requested { is_orderly }));
                }
                let mut has_moved = false;
                if !outbound.is_done()
                    && let Poll::Ready(written) = outbound.poll_write(cx, carried, report)
                {
                    written?;
                    has_moved = true;
                }
                if self.credit.load(Ordering::Acquire) > 0
                    && let Poll::Ready(read) = self.poll_read(cx, id, carried, shared)
                {
                    if !read? {
                        return Poll::Ready(Ok(End::Remote));
                    }
                    has_moved = true;
                }
                if !has_moved {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Takes the queued frames when the earlier ones are written. Returns how to close the stream if the world closes
    /// it.
    fn take_frames(&self, outbound: &mut Outbound) -> Option<Closing> {
        let mut outgoing = self.lock();
        if outgoing.closing.is_some() {
            return outgoing.closing;
        }
        if outbound.frames.is_empty() {
            std::mem::swap(&mut outbound.frames, &mut outgoing.frames);
        }
        if outgoing.filter.is_some() {
            outbound.set_filter_once(&mut outgoing.filter);
        }
        None
    }

    /// Reads once, as much as is available and allowed. Returns false at the end of the stream.
    fn poll_read(
        &self,
        cx: &mut Context<'_>,
        id: StreamId,
        carried: &mut dyn ByteStream,
        shared: &Shared,
    ) -> Poll<io::Result<bool>> {
        ready!(carried.poll_readable(cx))?;
        let mut chunk = shared.chunks.take();
        let credit = usize::try_from(self.credit.load(Ordering::Acquire)).unwrap_or(0);
        let most = shared.settings.read_chunk_bytes.min(credit.max(LEAST_READ));
        let result = pin!(carried.read_buf(&mut (&mut chunk).limit(most))).poll(cx);
        let read = chunk.split();
        shared.chunks.give_back(chunk);
        let len = ready!(result)?;
        if len > 0 {
            self.credit.fetch_sub(i64::from(read_cost(len)), Ordering::AcqRel);
            self.deliver(id, read, shared);
        }
        Poll::Ready(Ok(len > 0))
    }

    /// Hands received bytes to the world, through the filter if there is one.
    fn deliver(&self, id: StreamId, read: BytesMut, shared: &Shared) {
        let Incoming {
            position, is_filtered, ..
        } = &self.incoming;
        let len = read.len() as u64;
        let filtered = shared.sink.change(|events| {
            if is_filtered.load(Ordering::Relaxed) {
                return Some(read);
            }
            // Only this task changes the position.
            position.store(position.load(Ordering::Relaxed) + len, Ordering::Relaxed);
            let (stream, chunk) = (id, read.freeze());
            events.push(NetEvent::Received { stream, chunk });
            None
        });
        let Some(mut read) = filtered else { return };
        let mut filter = self.incoming.lock();
        let start = position.load(Ordering::Relaxed);
        if let Some(filter) = &mut *filter {
            filter.apply(start, &mut read);
        }
        position.store(start + len, Ordering::Relaxed);
        let (stream, chunk) = (id, read.freeze());
        shared.sink.push(NetEvent::Received { stream, chunk });
    }

    /// Ends a stream without losing data: sends the queued bytes, shuts down our side, and discards the peer's bytes
    /// until it closes too. Closing with unread input would reset a TCP connection and lose our last messages.
    async fn part(&self, carried: &mut dyn ByteStream, mut outbound: Outbound) -> io::Result<()> {
        {
            let mut outgoing = self.lock();
            outbound.frames.append(&mut outgoing.frames);
            outbound.set_filter_once(&mut outgoing.filter);
        }
        poll_fn(|cx| outbound.poll_write(cx, carried, |_| {})).await?;
        carried.shutdown().await?;
        let mut rest = [0; 4096];
        while carried.read(&mut rest).await? > 0 {}
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Incoming {
    fn lock(&self) -> MutexGuard<'_, Option<Filter>> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fault 104: reports the stream as closed if its task panics.
struct Fuse<'a> {
    stream: &'a Stream,
    id: StreamId,
    shared: &'a Shared,
}

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        self.shared.closed(self.id, StreamError::Panicked);
        self.stream.end(self.shared);
    }
}
