//! The simulated disk: torrents' bytes in memory, everything after a while.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::session::FileStamp;
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::geometry::Span;

use super::fabric::{Event, Fabric};
use super::{NodeId, lock};
use crate::port::{Backend, JobTag};
use crate::ports::disk::{DiskAction, DiskDone, DiskError, DiskEvent, DiskRequest, FoundFiles};

/// What lies on one node's disk, by download folder: it stays when the engine goes.
#[derive(Default)]
pub(super) struct Folders(BTreeMap<PathBuf, Contents>);

/// A torrent's bytes, and which of them have been written.
struct Contents {
    bytes: Vec<u8>,
    written: Vec<bool>,
}

impl Folders {
    /// Puts a torrent's whole data into a folder.
    pub(super) fn put(&mut self, root: PathBuf, bytes: Vec<u8>) {
        let written = vec![true; bytes.len()];
        self.0.insert(root, Contents { bytes, written });
    }

    /// A torrent's data, if all of it was written.
    pub(super) fn get(&self, root: &Path) -> Option<&[u8]> {
        let contents = self.0.get(root)?;
        contents
            .written
            .iter()
            .all(|written| *written)
            .then_some(&contents.bytes[..])
    }

    fn open(&mut self, root: &Path, size: usize) -> &mut Contents {
        self.0.entry(root.to_owned()).or_insert_with(|| Contents {
            bytes: vec![0; size],
            written: vec![false; size],
        })
    }
}

/// The Disk port of a simulated engine.
pub struct SimDisk {
    node: NodeId,
    fabric: Arc<Mutex<Fabric>>,
    open: BTreeMap<StorageId, (PathBuf, FileTable)>,
}

impl SimDisk {
    pub(super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        Self {
            node,
            fabric,
            open: BTreeMap::new(),
        }
    }

    fn carry_out(
        &mut self,
        request: DiskRequest,
        folders: &mut Folders,
    ) -> Option<(JobTag, Result<DiskDone, DiskError>)> {
        let (tag, outcome) = match request {
            DiskRequest::Open {
                tag,
                storage,
                root,
                files,
                ..
            } => {
                let contents = folders.0.get(&root);
                let found = files.files().iter().map(|file| {
                    let range = file.offset as usize..file.end() as usize;
                    contents
                        .filter(|c| c.written[range].contains(&true))
                        .map(|_| stamp(file.len))
                });
                let (stamps, volume) = (found.collect(), PathBuf::from("/"));
                self.open.insert(storage, (root, files));
                (tag, Ok(DiskDone::Opened(FoundFiles { stamps, volume })))
            }
            DiskRequest::Prepare { tag, .. } => (tag, Ok(DiskDone::Prepared)),
            DiskRequest::Sync { tag, storage } => {
                let written = self.open.get(&storage).map(|(root, files)| {
                    let contents = folders.open(root, files.total_size() as usize);
                    let touched = files.files().iter().enumerate().filter(|(_, file)| {
                        contents.written[file.offset as usize..file.end() as usize].contains(&true)
                    });
                    touched.map(|(index, file)| (index, Some(stamp(file.len)))).collect()
                });
                (tag, Ok(DiskDone::Synced(written.unwrap_or_default())))
            }
            DiskRequest::Delete { tag, storage, .. } => {
                if let Some((root, _)) = self.open.remove(&storage) {
                    folders.0.remove(&root);
                }
                (tag, Ok(DiskDone::Deleted))
            }
            DiskRequest::Read { tag, storage, span } => {
                let contents = self.contents_of(storage, folders);
                (
                    tag,
                    contents.and_then(|contents| contents.read(span)).map(DiskDone::Read),
                )
            }
            DiskRequest::Write {
                tag,
                storage,
                span,
                blocks,
            } => {
                let contents = self.contents_of(storage, folders);
                (tag, contents.map(|contents| contents.write(span, &blocks.concat())))
            }
            DiskRequest::Close { storage } => {
                self.open.remove(&storage);
                return None;
            }
        };
        Some((tag, outcome))
    }

    fn contents_of<'f>(&self, storage: StorageId, folders: &'f mut Folders) -> Result<&'f mut Contents, DiskError> {
        let (root, files) = self.open.get(&storage).ok_or_else(|| error(io::ErrorKind::Other))?;
        Ok(folders.open(root, files.total_size() as usize))
    }
}

impl Contents {
    fn read(&self, span: Span) -> Result<Bytes, DiskError> {
        let range = span.offset as usize..span.end() as usize;
        if self.written[range.clone()].contains(&false) {
            return Err(error(io::ErrorKind::NotFound));
        }
        Ok(Bytes::copy_from_slice(&self.bytes[range]))
    }

    fn write(&mut self, span: Span, bytes: &[u8]) -> DiskDone {
        let range = span.offset as usize..span.end() as usize;
        self.bytes[range.clone()].copy_from_slice(bytes);
        self.written[range].fill(true);
        DiskDone::Written
    }
}

/// Nobody but the engine writes here, so a length tells all.
fn stamp(len: u64) -> FileStamp {
    FileStamp {
        len,
        seconds: 0,
        nanos: 0,
    }
}

fn error(kind: io::ErrorKind) -> DiskError {
    DiskError {
        action: DiskAction::Use,
        path: PathBuf::from("simulated"),
        error: Arc::new(kind.into()),
    }
}

impl Backend<DiskRequest, DiskEvent> for SimDisk {
    fn submit(&mut self, requests: &mut Vec<DiskRequest>) {
        let shared = self.fabric.clone();
        let mut fabric = lock(&shared);
        for request in requests.drain(..) {
            if let Some((tag, outcome)) = self.carry_out(request, &mut fabric.disks[self.node.0]) {
                let latency = fabric.latency;
                fabric.schedule(
                    self.node,
                    latency,
                    Event::Disk(DiskEvent {
                        tag,
                        outcome,
                        blocks: Vec::new(),
                    }),
                );
            }
        }
    }

    fn poll(&mut self, _max: usize, events: &mut Vec<DiskEvent>) -> bool {
        lock(&self.fabric).take_disk(self.node, events);
        false
    }
}
