//! One torrent's files, and the writes to them that wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use ecs_torrent_protocol::geometry::Span;

use super::{Files, failure};
use crate::port::JobTag;
use crate::ports::disk::{DiskAction, DiskDone, DiskError, DiskEvent};

/// A torrent's files with the writes that wait for them.
///
/// The system lets one write into a file at a time and makes others spin for their turn. So one thread at a time carries
/// a torrent's writes out, in the order of their places, and those that lie behind each other as one.
pub(super) struct Storage {
    pub(super) files: Files,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    writes: Vec<Write>,
    /// A thread has them, or is called for.
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
        }
    }

    /// Lets a write wait; true where a thread has to be called for, to [`Storage::write_waiting`].
    pub(super) fn add(&self, write: Write) -> bool {
        let mut waiting = self.lock();
        waiting.writes.push(write);
        !std::mem::replace(&mut waiting.is_claimed, true)
    }

    /// Carries out what waits now; true where more has come meanwhile, and this has to be called again.
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

    /// Writes what lies behind each other at once, and where that fails, one by one: each has its own outcome.
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
            Err(failure(DiskAction::Use, self.files.root().to_path_buf(), error))
        })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing inside can panic half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write {
    /// What the world is told; where it failed, it gets the bytes back.
    fn end(self, outcome: Result<(), DiskError>) -> DiskEvent {
        DiskEvent {
            tag: self.tag,
            blocks: if outcome.is_ok() { Vec::new() } else { self.blocks },
            outcome: outcome.map(|()| DiskDone::Written),
        }
    }
}
