//! The sending side of a stream: frames, from the queue to the carrier.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

use super::carrier::ByteStream;
use crate::ports::net::Filter;

/// Maximum number of slices in one vectored write.
const MAX_SLICES: usize = 64;

/// Bytes written before they are reported while more are waiting, so that one event covers many blocks.
const REPORT_BYTES: usize = 128 << 10;

/// Frames that the stream's task is writing.
#[derive(Default)]
pub(super) struct Outbound {
    pub(super) frames: VecDeque<Bytes>,
    /// Position in the stream of the first byte that is not written.
    position: u64,
    /// Whether the carrier may hold written bytes back.
    needs_flush: bool,
    filtered: Option<Box<Filtered>>,
}

struct Filtered {
    filter: Filter,
    /// Number of frames at the front that have passed the filter.
    count: usize,
    /// Position in the stream of the end of these frames.
    position: u64,
}

impl Outbound {
    pub(super) fn is_done(&self) -> bool {
        self.frames.is_empty() && !self.needs_flush
    }

    /// Takes the filter, unless there is one already.
    pub(super) fn set_filter_once(&mut self, filter: &mut Option<Filter>) {
        if self.filtered.is_none()
            && let Some(filter) = filter.take()
        {
            let (count, position) = (0, self.position);
            self.filtered = Some(Box::new(Filtered {
                filter,
                count,
                position,
            }));
        }
    }

    /// Writes until the carrier accepts no more, and reports how much. Returns whether everything is written.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut dyn ByteStream,
        report: impl Fn(usize),
    ) -> Poll<io::Result<()>> {
        let mut unreported = 0;
        let mut result = Poll::Ready(Ok(()));
        while !self.frames.is_empty() {
            match self.poll_write_once(cx, stream) {
                Poll::Ready(Ok(written)) => unreported += written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    result = Poll::Pending;
                    break;
                }
            }
            if unreported >= REPORT_BYTES {
                report(std::mem::take(&mut unreported));
            }
        }
        if unreported > 0 {
            report(unreported);
        }
        if result.is_ready() && self.needs_flush {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.needs_flush = false;
        }
        result
    }

    fn poll_write_once(&mut self, cx: &mut Context<'_>, stream: &mut dyn ByteStream) -> Poll<io::Result<usize>> {
        self.pass_filter();
        let frames = self.frames.iter().take(MAX_SLICES);
        let slices: SmallVec<[IoSlice<'_>; MAX_SLICES]> = frames.map(|frame| IoSlice::new(frame)).collect();
        let written = ready!(Pin::new(stream).poll_write_vectored(cx, &slices))?;
        drop(slices);
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        self.needs_flush = true;
        Poll::Ready(Ok(written))
    }

    /// Transforms the frames of the next write.
    fn pass_filter(&mut self) {
        let Some(filtered) = &mut self.filtered else { return };
        for frame in self.frames.iter_mut().take(MAX_SLICES).skip(filtered.count) {
            let len = frame.len() as u64;
            *frame = filtered.filter.apply_to(filtered.position, std::mem::take(frame));
            filtered.position += len;
            filtered.count += 1;
        }
    }

    /// Removes the written bytes from the front of the queue.
    fn advance(&mut self, mut written: usize) {
        self.position += written as u64;
        while let Some(frame) = self.frames.front_mut().filter(|_| written > 0) {
            let part = written.min(frame.len());
            frame.advance(part);
            written -= part;
            if frame.is_empty() {
                self.frames.pop_front();
                if let Some(filtered) = &mut self.filtered {
                    filtered.count -= 1;
                }
            }
        }
    }
}
