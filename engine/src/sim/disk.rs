//! The simulated disk: writes are visible at once and durable when they are synced; space is limited, and faults can be
//! injected.
//!
//! Jobs run one after the other. Bytes of known contents are stored as places in them, so many nodes can hold the same
//! torrent in one memory.

mod control;
mod extents;
mod faults;
mod file;
mod moving;
#[cfg(test)]
mod padding_tests;
mod port;
mod storage;
mod suffixes;
#[cfg(test)]
mod tests;
mod volume;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_components::random::Random;
use ecs_torrent_protocol::geometry::Span;
use ecs_torrent_protocol::time::Timestamp;

pub use self::control::{DiskControl, DiskView};
pub(super) use self::faults::Faults;
pub use self::faults::{DiskFault, DiskOperation, Lasting};
use self::moving::{Move, Reach};
pub use self::port::SimDisk;
use self::storage::{DiskContext, Storage};
pub(super) use self::volume::Volume;
use super::NodeId;
use super::contents::Contents;
use super::hub::Hub;
use super::random::{happens, stream};
use crate::port::JobTag;
use crate::ports::disk::{
    DeletedFiles, DiskAction, DiskDone, DiskError, DiskEvent, FileNeeds, HeldPieces, ReadPurpose,
};

/// The file that may have the suffix of incomplete files.
#[derive(Clone, Copy)]
enum LookFor {
    /// A file of the session.
    Known,
    /// A file with the torrent's mark.
    Marked,
    /// Any file.
    Any,
}

/// Speed of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpeed {
    /// Time of each job in addition to its transfer time. Default 1 ms.
    pub latency: Duration,
    /// Bytes per second over all jobs; `None`, the default, is unlimited.
    pub bytes_per_s: Option<u64>,
}

impl Default for DiskSpeed {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(1),
            bytes_per_s: None,
        }
    }
}

/// A machine's disk, which survives its engine.
pub(super) struct Disk {
    pub(super) volume: Volume,
    pub(super) speed: DiskSpeed,
    /// Factor by which the disk is slowed down.
    pub(super) slowness: f64,
    pub(super) faults: Faults<DiskOperation>,
    free_at: Timestamp,
    luck: Random,
}

/// A job of a disk.
pub(super) struct DiskJob {
    tag: JobTag,
    storage: Arc<Storage>,
    work: DiskWork,
}

enum DiskWork {
    Look,
    Prepare {
        is_preallocated: bool,
        needs: Option<Box<FileNeeds>>,
    },
    DropParts,
    Read(Span, ReadPurpose),
    Write {
        span: Span,
        blocks: Vec<Bytes>,
    },
    Sync {
        is_for_all: bool,
        held: Option<Box<HeldPieces>>,
    },
    FindVolume,
    Delete {
        keep: Vec<usize>,
    },
    Move(Box<Move>),
    /// Carried out after the jobs before it, and reported.
    Close,
}

impl Disk {
    pub(super) fn new(seed: u64, node: NodeId) -> Self {
        Self {
            volume: Volume::default(),
            speed: DiskSpeed::default(),
            slowness: 1.0,
            faults: Faults::default(),
            free_at: Timestamp::ZERO,
            luck: stream(seed, b"crash   ", node),
        }
    }

    /// Applies a power failure.
    pub(super) fn crash(&mut self, now: Timestamp) {
        self.volume.crash(&mut self.luck);
        self.free_at = now;
    }

    /// Carries out an unfinished job all the same, or a part of it, at random.
    pub(super) fn interrupt(&mut self, hub: &Hub, job: DiskJob) {
        if let DiskWork::Move(step) = &job.work {
            let reach = Reach::Files(self.luck.below(4));
            // The engine is gone, so the result is dropped.
            drop(step.run(&job.storage, &mut self.context(hub), reach));
        } else if happens(&mut self.luck, 0.5) {
            self.carry_out(hub, job);
        }
    }

    fn context<'d>(&'d mut self, hub: &'d Hub) -> DiskContext<'d> {
        DiskContext {
            volume: &mut self.volume,
            contents: &hub.contents,
            now_ns: hub.now.as_nanos(),
        }
    }

    /// Time until a job of `bytes` bytes is done, after the jobs queued before it.
    fn time_for(&mut self, now: Timestamp, bytes: u32) -> Duration {
        let rate = self.speed.bytes_per_s.map_or(f64::INFINITY, |rate| rate.max(1) as f64);
        let transfer = Duration::from_secs_f64(f64::from(bytes) / rate * self.slowness);
        self.free_at = self.free_at.max(now) + transfer;
        self.free_at.since(now) + self.speed.latency.mul_f64(self.slowness)
    }

    pub(super) fn carry_out(&mut self, hub: &Hub, job: DiskJob) -> DiskEvent {
        let DiskJob { tag, storage, work } = job;
        let fault = work
            .operation()
            .and_then(|operation| self.faults.strike(operation, hub.now));
        let (outcome, blocks) = work.run(&storage, &mut self.context(hub), fault);
        DiskEvent { tag, outcome, blocks }
    }
}

impl DiskWork {
    fn operation(&self) -> Option<DiskOperation> {
        Some(match self {
            Self::Look => DiskOperation::Look,
            Self::Prepare { .. } => DiskOperation::Prepare,
            Self::Read(..) => DiskOperation::Read,
            Self::Write { .. } => DiskOperation::Write,
            Self::Sync { .. } => DiskOperation::Sync,
            Self::Delete { .. } | Self::DropParts => DiskOperation::Delete,
            Self::Move(_) => DiskOperation::Move,
            Self::FindVolume | Self::Close => return None,
        })
    }

    /// Number of bytes that the job moves.
    fn bytes(&self) -> u32 {
        match self {
            Self::Read(span, _) | Self::Write { span, .. } => span.len,
            Self::Move(step) => step.bytes(),
            _ => 0,
        }
    }

    fn run(
        self,
        storage: &Storage,
        context: &mut DiskContext<'_>,
        fault: Option<DiskFault>,
    ) -> (Result<DiskDone, DiskError>, Vec<Bytes>) {
        let failed = |action| match fault {
            Some(fault) => Err(DiskError::new(action, storage.root.clone(), fault.error())),
            None => Ok(()),
        };
        let outcome = match self {
            Self::Look => failed(DiskAction::Open).and_then(|()| storage.look(context).map(DiskDone::Opened)),
            Self::Prepare { is_preallocated, needs } => failed(DiskAction::Allocate)
                .and_then(|()| storage.prepare(context, is_preallocated, needs.as_deref()))
                .map(DiskDone::Prepared),
            Self::DropParts => {
                storage.drop_parts(context);
                Ok(DiskDone::Deleted(DeletedFiles::default()))
            }
            Self::Read(span, purpose) => {
                failed(DiskAction::Read).and_then(|()| storage.read(context, span, purpose).map(DiskDone::Read))
            }
            Self::Write { span, blocks } => match storage.write(context, span, &blocks, fault) {
                Ok(()) => Ok(DiskDone::Written),
                // The world gets its blocks back.
                Err(error) => return (Err(error), blocks),
            },
            Self::Sync { is_for_all, held } => {
                let held = held.as_deref();
                storage.sync(context, fault, is_for_all, held).map(DiskDone::Synced)
            }
            Self::FindVolume => storage.find_volume(context).map(|()| DiskDone::VolumeFound),
            Self::Delete { keep } => failed(DiskAction::Delete)
                .and_then(|()| storage.delete(context, &keep))
                .map(DiskDone::Deleted),
            Self::Move(step) => failed(DiskAction::Create).and_then(|()| step.run(storage, context, Reach::All)),
            Self::Close => Ok(DiskDone::Closed),
        };
        (outcome, Vec::new())
    }
}

/// Stored data of a part of a whole torrent.
fn place(contents: &Contents, bytes: &Bytes, offset: u64, len: u64) -> extents::Data {
    extents::Data::of(contents, bytes.slice(offset as usize..(offset + len) as usize))
}
