//! The Disk port's backend: a thread pool that reads and writes torrents' files.

mod cache;
mod deleting;
mod files;
mod moving;
mod part_file;
mod parting;
mod protected;
mod provenance;
mod roots;
mod storage;
mod suffixes;
mod volume;
mod writing;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use bevy_platform::collections::HashMap;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::settings::StorageSettings;
use ecs_torrent_protocol::geometry::Span;

pub use self::files::{Files, SharedFiles};
use self::moving::{Mover, Turn};
use self::storage::{CloseReport, Storage, Write};
use super::StartError;
pub use super::buffers::FileBuffers;
use super::jobs::Jobs;
use super::sink::Sink;
use crate::port::{Backend, JobTag};
use crate::ports::disk::{
    DeletedFiles, DiskAction, DiskDone, DiskError, DiskEvent, DiskRequest, FileMove, FileNeeds, HeldPieces, MoveStep,
    ReadPurpose,
};
use crate::wake::Waker;

/// The Disk port's real backend.
pub(crate) struct DiskPool {
    storages: HashMap<StorageId, Arc<Storage>>,
    /// The latest step of a move, by storage.
    movers: HashMap<StorageId, Arc<Mover>>,
    shared: Arc<SharedFiles>,
    /// Storages closed by this batch of requests. A torrent that is closed and opened again in one batch keeps its
    /// download folder.
    closed: Vec<Arc<Storage>>,
    jobs: Arc<Jobs<Job>>,
    sink: Sink<DiskEvent>,
}

enum Job {
    One {
        tag: JobTag,
        storage: Arc<Storage>,
        work: Work,
    },
    /// The waiting writes of a storage.
    Writes(Arc<Storage>),
    /// A part of a step of a move.
    Move(Arc<Mover>),
}

enum Work {
    Look,
    Prepare {
        is_preallocated: bool,
        needs: Option<Box<FileNeeds>>,
    },
    DropParts,
    Read(Span, ReadPurpose),
    Sync {
        is_for_all: bool,
        held: Option<Box<HeldPieces>>,
    },
    FindVolume,
    Delete {
        keep: Vec<usize>,
    },
}

impl DiskPool {
    /// Starts the threads. `protected` lists the engine's own folders.
    ///
    /// # Errors
    /// If a thread cannot be started, or a protected folder cannot be opened.
    pub(crate) fn start(settings: &StorageSettings, protected: &[&Path], waker: &Waker) -> Result<Self, StartError> {
        let shared = SharedFiles::new(settings.max_open_files).protecting(protected);
        let shared = shared.map_err(|error| StartError::StateDir {
            path: protected.first().map(PathBuf::from).unwrap_or_default(),
            error,
        })?;
        shared.roots.pin(&settings.download_dir);
        let pool = Self {
            storages: HashMap::default(),
            movers: HashMap::default(),
            shared: Arc::new(shared),
            closed: Vec::new(),
            jobs: Arc::new(Jobs::in_batches(1)),
            sink: Sink::new(waker),
        };
        let buffers = FileBuffers::default();
        for number in 0..settings.disk_threads.max(1) {
            let (jobs, sink, buffers) = (pool.jobs.clone(), pool.sink.clone(), buffers.clone());
            let builder = thread::Builder::new().name(format!("ecs-torrent-disk-{number}"));
            builder
                .spawn(move || {
                    jobs.serve(|batch| {
                        batch.drain(..).for_each(|job| match job {
                            Job::One { tag, storage, work } => sink.push(work.run(tag, &storage.files, &buffers)),
                            Job::Writes(storage) => {
                                if storage.write_waiting(|events| sink.push_all(events)) {
                                    // The job is queued behind the other jobs.
                                    jobs.add([Job::Writes(storage)]);
                                }
                            }
                            Job::Move(mover) => match mover.advance() {
                                Turn::Ended(event) => sink.push(event),
                                Turn::More(event) => {
                                    sink.push(event);
                                    jobs.add([Job::Move(mover)]);
                                }
                                Turn::Closed => {}
                            },
                        });
                    });
                })
                .map_err(StartError::Thread)?;
        }
        Ok(pool)
    }

    /// Returns the job for a request, if a thread has to do anything.
    fn job(&mut self, request: DiskRequest) -> Option<Job> {
        let (tag, storage, work) = match request {
            DiskRequest::Open {
                tag,
                storage,
                root,
                volume,
                files,
                claims,
                needs,
            } => {
                let files = Files::new(storage, &root, volume, files, self.shared.clone()).with_claims(claims);
                let files = files.with_needs(needs.as_deref());
                self.storages.insert(storage, Arc::new(Storage::new(files)));
                (tag, storage, Work::Look)
            }
            DiskRequest::Close { tag, storage } => {
                let report = tag.map(|tag| CloseReport::new(tag, self.sink.clone()));
                if let Some(mover) = self.movers.remove(&storage) {
                    // A torrent's files are either open or moved.
                    mover.close(report);
                    return None;
                }
                if let Some(closed) = self.storages.remove(&storage) {
                    closed.close(report);
                    self.closed.push(closed);
                }
                return None;
            }
            DiskRequest::Prepare {
                tag,
                storage,
                is_preallocated,
                needs,
            } => {
                if let (Some(needs), Some(storage)) = (&needs, self.storages.get(&storage)) {
                    storage.files.take_needs(needs);
                }
                (tag, storage, Work::Prepare { is_preallocated, needs })
            }
            DiskRequest::DropParts { tag, storage } => (tag, storage, Work::DropParts),
            DiskRequest::Read {
                tag,
                storage,
                span,
                purpose,
            } => (tag, storage, Work::Read(span, purpose)),
            DiskRequest::Write {
                tag,
                storage,
                span,
                blocks,
            } => return self.add_write(storage, Write { tag, span, blocks }),
            DiskRequest::Sync {
                tag,
                storage,
                is_for_all,
                held,
            } => (tag, storage, Work::Sync { is_for_all, held }),
            DiskRequest::FindVolume { tag, storage } => (tag, storage, Work::FindVolume),
            DiskRequest::Delete { tag, storage, keep } => (tag, storage, Work::Delete { keep }),
            DiskRequest::Move {
                tag,
                storage,
                moving,
                step,
            } => return Some(self.add_move(tag, storage, *moving, step)),
        };
        let Some(storage) = self.storages.get(&storage) else {
            self.refuse(tag);
            return None;
        };
        let storage = storage.clone();
        Some(Job::One { tag, storage, work })
    }

    fn add_write(&self, storage: StorageId, write: Write) -> Option<Job> {
        let Some(storage) = self.storages.get(&storage) else {
            self.refuse(write.tag);
            return None;
        };
        storage.add(write).then(|| Job::Writes(storage.clone()))
    }

    /// Begins a step of a move. It replaces an earlier one of the same torrent.
    fn add_move(&mut self, tag: JobTag, storage: StorageId, moving: FileMove, step: MoveStep) -> Job {
        let before = self.movers.remove(&storage);
        let mover = Mover::new((tag, storage), moving, step, &self.shared, before);
        let mover = Arc::new(mover);
        self.movers.insert(storage, mover.clone());
        Job::Move(mover)
    }

    fn refuse(&self, tag: JobTag) {
        let error = std::io::Error::other("these files are closed");
        self.sink.push(DiskEvent {
            tag,
            outcome: Err(DiskError::new(DiskAction::Use, PathBuf::new(), error)),
            blocks: Vec::new(),
        });
    }
}

impl Backend<DiskRequest, DiskEvent> for DiskPool {
    fn submit(&mut self, requests: &mut Vec<DiskRequest>) {
        let jobs: Vec<Job> = requests.drain(..).filter_map(|request| self.job(request)).collect();
        self.jobs.add(jobs);
        self.closed.clear();
    }

    fn poll(&mut self, max: usize, events: &mut Vec<DiskEvent>) -> bool {
        self.sink.poll(max, events)
    }
}

impl Drop for DiskPool {
    fn drop(&mut self) {
        self.jobs.close();
    }
}

impl Work {
    fn run(self, tag: JobTag, files: &Files, buffers: &FileBuffers) -> DiskEvent {
        let done = catch_unwind(AssertUnwindSafe(|| match self {
            Self::Look => files.look().map(DiskDone::Opened),
            Self::Prepare { is_preallocated, needs } => {
                files.prepare(is_preallocated, needs.as_deref()).map(DiskDone::Prepared)
            }
            Self::DropParts => files.drop_parts().map(|()| DiskDone::Deleted(DeletedFiles::default())),
            Self::Read(span, purpose) => files.read(span, purpose, buffers).map(DiskDone::Read),
            Self::Sync { is_for_all, held } => files.sync_complete(is_for_all, held.as_deref()).map(DiskDone::Synced),
            Self::FindVolume => files.find_volume().map(|_| DiskDone::VolumeFound),
            Self::Delete { keep } => files.delete(&keep).map(DiskDone::Deleted),
        }));
        let outcome = done.unwrap_or_else(|_| {
            let error = std::io::Error::other("the disk job panicked");
            Err(DiskError::new(DiskAction::Use, files.root().to_path_buf(), error))
        });
        DiskEvent {
            tag,
            outcome,
            blocks: Vec::new(),
        }
    }
}
