//! Files, read and written by a pool of threads.

mod cache;
mod files;
mod root;
mod volume;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use bevy_platform::collections::HashMap;
use bytes::Bytes;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::settings::StorageSettings;
use ecs_torrent_protocol::geometry::Span;

pub use self::cache::FileCache;
pub use self::files::Files;
use super::StartError;
pub use super::buffers::FileBuffers;
use super::jobs::Jobs;
use super::sink::Sink;
use crate::port::{Backend, JobTag};
use crate::ports::disk::{DiskAction, DiskDone, DiskError, DiskEvent, DiskRequest};
use crate::wake::Waker;

/// The Disk port's real backend.
pub struct DiskPool {
    storages: HashMap<StorageId, Arc<Files>>,
    cache: Arc<FileCache>,
    jobs: Arc<Jobs<Job>>,
    sink: Sink<DiskEvent>,
}

struct Job {
    tag: JobTag,
    files: Arc<Files>,
    work: Work,
}

enum Work {
    Look,
    Prepare { is_preallocated: bool },
    Read(Span),
    Write(Span, Vec<Bytes>),
    Sync,
    Delete { written: Vec<usize>, keep: Vec<usize> },
}

impl DiskPool {
    /// Starts the threads.
    ///
    /// # Errors
    /// Where a thread cannot be started.
    pub fn start(settings: &StorageSettings, waker: &Waker) -> Result<Self, StartError> {
        let pool = Self {
            storages: HashMap::default(),
            cache: Arc::new(FileCache::new(settings.max_open_files)),
            jobs: Arc::default(),
            sink: Sink::new(waker),
        };
        let buffers = FileBuffers::default();
        for number in 0..settings.disk_threads.max(1) {
            let (jobs, sink, buffers) = (pool.jobs.clone(), pool.sink.clone(), buffers.clone());
            let builder = thread::Builder::new().name(format!("ecs-torrent-disk-{number}"));
            builder
                .spawn(move || {
                    while let Some(job) = jobs.next() {
                        sink.push(job.run(&buffers));
                    }
                })
                .map_err(StartError::Thread)?;
        }
        Ok(pool)
    }

    /// What a thread has to do for a request, if anything.
    fn job(&mut self, request: DiskRequest) -> Option<Job> {
        let (tag, storage, work) = match request {
            DiskRequest::Open {
                tag,
                storage,
                root,
                volume,
                files,
            } => {
                let files = Arc::new(Files::new(storage, root, volume, files, self.cache.clone()));
                self.storages.insert(storage, files);
                (tag, storage, Work::Look)
            }
            DiskRequest::Close { storage } => {
                self.storages.remove(&storage);
                self.cache.forget(storage);
                return None;
            }
            DiskRequest::Prepare {
                tag,
                storage,
                is_preallocated,
            } => (tag, storage, Work::Prepare { is_preallocated }),
            DiskRequest::Read { tag, storage, span } => (tag, storage, Work::Read(span)),
            DiskRequest::Write {
                tag,
                storage,
                span,
                blocks,
            } => (tag, storage, Work::Write(span, blocks)),
            DiskRequest::Sync { tag, storage } => (tag, storage, Work::Sync),
            DiskRequest::Delete {
                tag,
                storage,
                written,
                keep,
            } => (tag, storage, Work::Delete { written, keep }),
        };
        match self.storages.get(&storage) {
            Some(files) => Some(Job {
                tag,
                files: files.clone(),
                work,
            }),
            None => {
                let error = std::io::Error::other("these files are closed");
                let outcome = Err(failure(DiskAction::Use, PathBuf::new(), error));
                let blocks = Vec::new();
                self.sink.push(DiskEvent { tag, outcome, blocks });
                None
            }
        }
    }
}

impl Backend<DiskRequest, DiskEvent> for DiskPool {
    fn submit(&mut self, requests: &mut Vec<DiskRequest>) {
        let jobs: Vec<Job> = requests.drain(..).filter_map(|request| self.job(request)).collect();
        self.jobs.add(jobs);
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

impl Job {
    fn run(self, buffers: &FileBuffers) -> DiskEvent {
        let Self { tag, files, work } = self;
        let mut blocks = Vec::new();
        let done = catch_unwind(AssertUnwindSafe(|| match work {
            Work::Look => files.look().map(DiskDone::Opened),
            Work::Prepare { is_preallocated } => files.prepare(is_preallocated).map(|()| DiskDone::Prepared),
            Work::Read(span) => files.read(span, buffers).map(DiskDone::Read),
            Work::Write(span, bytes) => {
                let written = files.write(span, &bytes).map(|()| DiskDone::Written);
                if written.is_err() {
                    blocks = bytes;
                }
                written
            }
            Work::Sync => files.sync().map(DiskDone::Synced),
            Work::Delete { written, keep } => files.delete(written, &keep).map(|()| DiskDone::Deleted),
        }));
        let outcome = done.unwrap_or_else(|_| {
            let error = std::io::Error::other("the disk job panicked");
            Err(failure(DiskAction::Use, files.root().to_owned(), error))
        });
        DiskEvent { tag, outcome, blocks }
    }
}

fn failure(action: DiskAction, path: PathBuf, error: std::io::Error) -> DiskError {
    DiskError {
        action,
        path,
        error: Arc::new(error),
    }
}
