//! The Disk port over a simulated disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ecs_torrent_components::ids::StorageId;

use super::super::NodeId;
use super::super::fabric::{Fabric, Work};
use super::super::hub::{Hub, take};
use super::super::place::Place;
use super::moving::Move;
use super::storage::{Owners, Storage};
use super::{DiskJob, DiskWork};
use crate::port::Backend;
use crate::ports::disk::{DiskAction, DiskDone, DiskError, DiskEvent, DiskRequest};

/// The Disk port of a simulated engine.
pub struct SimDisk {
    place: Place,
    storages: Storages,
}

impl SimDisk {
    pub(in super::super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        Self {
            place: Place::new(node, fabric),
            storages: Storages {
                node,
                open: BTreeMap::new(),
                owners: Owners::default(),
            },
        }
    }
}

/// The torrents' files that a node has open.
struct Storages {
    node: NodeId,
    open: BTreeMap<StorageId, Arc<Storage>>,
    owners: Owners,
}

impl Storages {
    /// Turns a request into a job, if there is anything to do.
    fn job(&mut self, hub: &mut Hub, request: DiskRequest) -> Option<DiskJob> {
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
                let owners = self.owners.clone();
                let opened = Storage::new(storage, root, volume, files, claims, owners);
                needs.iter().for_each(|needs| opened.take_needs(needs));
                let opened = Arc::new(opened);
                self.open.insert(storage, opened);
                (tag, storage, DiskWork::Look)
            }
            DiskRequest::Close { tag, storage } => {
                let closed = self.open.remove(&storage);
                if let Some(closed) = &closed {
                    closed.let_go();
                }
                let tag = tag?;
                let Some(storage) = closed else {
                    let outcome = Ok(DiskDone::Closed);
                    let blocks = Vec::new();
                    hub.deliver_disk(self.node, DiskEvent { tag, outcome, blocks });
                    return None;
                };
                let work = DiskWork::Close;
                return Some(DiskJob { tag, storage, work });
            }
            DiskRequest::Prepare {
                tag,
                storage,
                is_preallocated,
                needs,
            } => {
                if let (Some(needs), Some(storage)) = (&needs, self.open.get(&storage)) {
                    storage.take_needs(needs);
                }
                (tag, storage, DiskWork::Prepare { is_preallocated, needs })
            }
            DiskRequest::DropParts { tag, storage } => (tag, storage, DiskWork::DropParts),
            DiskRequest::Read {
                tag,
                storage,
                span,
                purpose,
            } => (tag, storage, DiskWork::Read(span, purpose)),
            DiskRequest::Write {
                tag,
                storage,
                span,
                blocks,
            } => (tag, storage, DiskWork::Write { span, blocks }),
            DiskRequest::Sync {
                tag,
                storage,
                is_for_all,
                held,
            } => (tag, storage, DiskWork::Sync { is_for_all, held }),
            DiskRequest::FindVolume { tag, storage } => (tag, storage, DiskWork::FindVolume),
            DiskRequest::Delete { tag, storage, keep } => (tag, storage, DiskWork::Delete { keep }),
            DiskRequest::Move {
                tag,
                storage,
                moving,
                step,
            } => {
                let (from, step) = Move::new(storage, *moving, step, &self.owners);
                self.open.insert(storage, Arc::new(from));
                (tag, storage, DiskWork::Move(Box::new(step)))
            }
        };
        let Some(storage) = self.open.get(&storage).cloned() else {
            let error = std::io::Error::other("these files are closed");
            let outcome = Err(DiskError::new(DiskAction::Use, PathBuf::new(), error));
            let blocks = Vec::new();
            hub.deliver_disk(self.node, DiskEvent { tag, outcome, blocks });
            return None;
        };
        Some(DiskJob { tag, storage, work })
    }
}

impl Backend<DiskRequest, DiskEvent> for SimDisk {
    fn submit(&mut self, requests: &mut Vec<DiskRequest>) {
        let Self { place, storages } = self;
        let mut fabric = place.fabric();
        let fabric = &mut *fabric;
        for request in requests.drain(..) {
            if let Some(job) = storages.job(&mut fabric.hub, request) {
                let disk = &mut fabric.machines[place.node.0].disk;
                let time = disk.time_for(fabric.hub.now, job.work.bytes());
                fabric.begin(place.node, time, Work::Disk(job));
            }
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<DiskEvent>) -> bool {
        take(&mut self.place.inbox().disk, max, events)
    }
}
