//! One torrent's files, and the writes waiting for them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use ecs_torrent_protocol::geometry::Span;

use super::Files;
use crate::backends::sink::Sink;
use crate::port::JobTag;
use crate::ports::disk::{DiskAction, DiskDone, DiskError, DiskEvent};

/// A torrent's files, with the writes waiting for them.
///
/// The system allows one write into a file at a time and makes other threads spin for their turn. So one thread at a
/// time carries out a torrent's writes, in the order of their offsets, and merges adjacent writes into one.
pub(super) struct Storage {
    pub(super) files: Files,
    waiting: Mutex<Waiting>,
    /// Dropped last, after every handle to the files.
    report: Mutex<Option<Box<CloseReport>>>,
}

/// Reports that a storage is closed when it is dropped: when the last job on its files is done.
pub(super) struct CloseReport {
    tag: JobTag,
    sink: Sink<DiskEvent>,
}

impl CloseReport {
    pub(super) fn new(tag: JobTag, sink: Sink<DiskEvent>) -> Self {
        Self { tag, sink }
    }
}

impl Drop for CloseReport {
    fn drop(&mut self) {
        self.sink.push(DiskEvent {
            tag: self.tag,
            outcome: Ok(DiskDone::Closed),
            blocks: Vec::new(),
        });
    }
}

#[derive(Default)]
struct Waiting {
    writes: Vec<Write>,
    /// Whether a thread is carrying out the writes or has been requested.
    is_claimed: bool,
}

/// A run of bytes to be written.
pub(super) struct Write {
    pub(super) tag: JobTag,
    pub(super) span: Span,
    pub(super) blocks: Vec<Bytes>,
}

impl Storage {
    pub(super) fn new(files: Files) -> Self {
        Self {
            files,
            waiting: Mutex::default(),
            report: Mutex::default(),
        }
    }

    /// Closes the files. `report` reports when every handle is closed.
    pub(super) fn close(&self, report: Option<CloseReport>) {
        self.files.close();
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report.map(Box::new);
    }

    /// Queues a write. Returns true if a thread must call [`Storage::write_waiting`].
    pub(super) fn add(&self, write: Write) -> bool {
        let mut waiting = self.lock();
        waiting.writes.push(write);
        !std::mem::replace(&mut waiting.is_claimed, true)
    }

    /// Carries out the waiting writes. Returns true if more arrived in the meantime and this must be called again.
    pub(super) fn write_waiting(&self, mut report: impl FnMut(Vec<DiskEvent>)) -> bool {
        let mut writes = std::mem::take(&mut self.lock().writes);
        writes.sort_unstable_by_key(|write| write.span.offset);
        let mut run: Vec<Write> = Vec::new();
        for write in writes {
            if run.last().is_some_and(|last| last.span.end() != write.span.offset) {
                report(self.write_run(std::mem::take(&mut run)));
            }
            run.push(write);
        }
        report(self.write_run(run));
        let mut waiting = self.lock();
        waiting.is_claimed = !waiting.writes.is_empty();
        waiting.is_claimed
    }

    /// Merges adjacent writes into one. If that fails, carries them out one by one, each with its own outcome.
    fn write_run(&self, mut run: Vec<Write>) -> Vec<DiskEvent> {
        if run.len() > 1 {
            let span = Span {
                offset: run[0].span.offset,
                len: run.iter().map(|write| write.span.len).sum(),
            };
            let counts: Vec<usize> = run.iter().map(|write| write.blocks.len()).collect();
            let mut blocks: Vec<Bytes> = run.iter_mut().flat_map(|write| write.blocks.drain(..)).collect();
            if self.write(span, &blocks).is_ok() {
                return run.into_iter().map(|write| write.end(Ok(()))).collect();
            }
            for (write, count) in run.iter_mut().zip(counts) {
                write.blocks.extend(blocks.drain(..count));
            }
        }
        let write_one = |write: Write| {
            let outcome = self.write(write.span, &write.blocks);
            write.end(outcome)
        };
        run.into_iter().map(write_one).collect()
    }

    fn write(&self, span: Span, blocks: &[Bytes]) -> Result<(), DiskError> {
        let written = catch_unwind(AssertUnwindSafe(|| self.files.write(span, blocks)));
        written.unwrap_or_else(|_| {
            let error = std::io::Error::other("the disk job panicked");
            Err(DiskError::new(DiskAction::Use, self.files.root().to_path_buf(), error))
        })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics half-way while the lock is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write {
    /// Makes the event for the world. A failed write gives its bytes back.
    fn end(self, outcome: Result<(), DiskError>) -> DiskEvent {
        DiskEvent {
            tag: self.tag,
            blocks: if outcome.is_ok() { Vec::new() } else { self.blocks },
            outcome: outcome.map(|()| DiskDone::Written),
        }
    }
}
