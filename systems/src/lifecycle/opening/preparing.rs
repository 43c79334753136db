//! The last step of opening: the files that an incomplete torrent will write are created.

use bevy_ecs::entity::EntityHashSet;
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::commands::{AddError, Reply};
use ecs_torrent_components::lifecycle::{ChangedFacts, Readiness};
use ecs_torrent_components::messages::{FailTorrent, PiecesKnown, Remedy, WantedChanged};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Content, Have, Layout, Lifecycle, RequiresComplete, Storage, Torrent};
use ecs_torrent_components::wanted::FileChoice;
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::{DiskDone, DiskRequest, FileNeeds};
use ecs_torrent_engine::purpose;
use ecs_torrent_protocol::bitfield::Bitfield;

use crate::lifecycle::stop_requests::StopsInOrder;
use crate::ownership::FileRegistry;
use crate::sessions::{SaveTorrent, SavedParts, SessionState};
use crate::storage::fault;

pub(in crate::lifecycle) const PREPARE: Purpose = purpose!("prepare files");

/// Torrents whose files are created once a session that claims them is durable. Otherwise, a kill right after the
/// creation would make these files the user's.
#[derive(Resource, Debug, Default)]
pub(in crate::lifecycle) struct AwaitingClaims(pub(in crate::lifecycle) EntityHashSet);

/// Prepares the files of torrents whose claims are durable.
#[derive(SystemParam)]
pub(in crate::lifecycle) struct Preparing<'w> {
    disk: ResMut<'w, DiskPort>,
    awaiting: ResMut<'w, AwaitingClaims>,
    save: MessageWriter<'w, SaveTorrent>,
    settings: Res<'w, Settings>,
}

impl Preparing<'_> {
    fn begin(&mut self, torrent: Entity, storage: &Storage, state: &SessionState, needs: Option<Box<FileNeeds>>) {
        self.awaiting.0.insert(torrent);
        if state.may_create() {
            self.go_on(torrent, storage, state, || needs);
        } else {
            self.save.write(SaveTorrent { torrent });
        }
    }

    /// Continues the preparation of a torrent whose session is durable.
    pub(in crate::lifecycle) fn go_on(
        &mut self,
        torrent: Entity,
        storage: &Storage,
        state: &SessionState,
        needs: impl FnOnce() -> Option<Box<FileNeeds>>,
    ) {
        if state.may_create() && self.awaiting.0.remove(&torrent) {
            self.disk.push(DiskRequest::Prepare {
                tag: JobTag::new(PREPARE, torrent),
                storage: storage.id,
                is_preallocated: self.settings.storage.preallocate,
                needs: needs(),
            });
        }
    }

    /// Stops waiting for a session that cannot be written. Returns false if the torrent did not wait for it.
    pub(in crate::lifecycle) fn give_up(&mut self, torrent: Entity) -> bool {
        self.awaiting.0.remove(&torrent)
    }
}

/// The parts of a torrent that decide whether it can start.
#[derive(QueryData)]
#[query_data(mutable)]
pub(in crate::lifecycle) struct Startable {
    torrent: &'static Torrent,
    storage: &'static Storage,
    content: &'static Content,
    layout: &'static Layout,
    choice: Option<&'static FileChoice>,
    readiness: &'static mut Readiness,
    saved: SavedParts,
    requires_complete: Has<RequiresComplete>,
}

/// Starts torrents whose held pieces are known: a complete torrent seeds; for any other, its files are prepared first.
/// A paused torrent was opened only to be checked, and is paused again.
pub(in crate::lifecycle) fn start_torrents(
    mut known: MessageReader<PiecesKnown>,
    mut preparing: Preparing,
    registry: Res<FileRegistry>,
    mut changed: ResMut<ChangedFacts>,
    mut failed: MessageWriter<FailTorrent>,
    mut stops: ResMut<StopsInOrder>,
    mut torrents: Query<Startable>,
) {
    for PiecesKnown { torrent, have, .. } in known.read().filter(|known| known.is_final) {
        let Ok(mut startable) = torrents.get_mut(*torrent) else {
            continue;
        };
        startable.saved.record_result(have);
        preparing.give_up(*torrent);
        if startable.saved.state.is_paused() {
            stops.pause(*torrent, Reply::ignored());
            continue;
        }
        let (id, metainfo) = (startable.torrent.id(), &startable.content.0);
        let needs = startable.saved.state.needs(id, metainfo, startable.choice, have);
        if have.is_full() && !needs.as_ref().is_some_and(|needs| has_moves(needs)) {
            *startable.readiness = Readiness::Ready;
            changed.add(*torrent);
        } else if let Some(reason) = startable.obstacle(have, &registry) {
            failed.write(FailTorrent {
                torrent: *torrent,
                reason: reason.into(),
                remedy: Remedy::None,
            });
        } else {
            preparing.begin(*torrent, startable.storage, &startable.saved.state, needs);
        }
    }
}

impl StartableItem<'_, '_> {
    /// Returns the reason why the missing pieces cannot be downloaded.
    fn obstacle(&self, have: &Bitfield, registry: &FileRegistry) -> Option<String> {
        if self.requires_complete {
            let (missing, all) = (have.len() - have.count(), have.len());
            let root = self.storage.root.display();
            return Some(format!("{missing} of {all} pieces are missing or bad in {root}"));
        }
        let files = &self.content.0.info.files;
        let index = self.saved.state.obstacle(have, files, self.choice, &self.layout.0)?;
        let (torrent, path) = (self.torrent.name.clone(), files.files()[index].path.clone());
        let other = registry.other_user(self.torrent.id(), index);
        let error = match other.map(|other| other.name.clone()) {
            Some(other) => AddError::FilesTaken { torrent, other, path },
            // The torrent was listed before.
            None if self.saved.state.is_known() => {
                return Some(format!(
                    "{path} has bad or missing data, and is not changed because the torrent did not create it; restore \
                     or remove the file and start the torrent again, or add the torrent again with --overwrite"
                ));
            }
            None => AddError::WouldChange { torrent, path },
        };
        Some(error.reason())
    }
}

/// Whether the disk has to copy bytes from the part file, or to delete it.
fn has_moves(needs: &FileNeeds) -> bool {
    needs.skipped.is_empty() || needs.parted.iter_without(&needs.skipped).next().is_some()
}

/// The parts of a torrent whose files are prepared.
#[derive(QueryData)]
#[query_data(mutable)]
pub(in crate::lifecycle) struct Prepared {
    torrent: &'static Torrent,
    storage: &'static Storage,
    content: &'static Content,
    have: &'static Have,
    choice: Option<&'static FileChoice>,
    lifecycle: &'static Lifecycle,
    readiness: &'static mut Readiness,
    state: &'static mut SessionState,
}

impl PreparedItem<'_, '_> {
    fn needs(&self) -> Option<Box<FileNeeds>> {
        self.state
            .needs(self.torrent.id(), &self.content.0, self.choice, self.have)
    }
}

/// Prepares the files of torrents that run, when the user has changed which of them are wanted.
pub(in crate::lifecycle) fn prepare_wanted(
    mut changed: MessageReader<WantedChanged>,
    mut preparing: Preparing,
    mut torrents: Query<Prepared>,
) {
    for WantedChanged { torrent, .. } in changed.read() {
        if let Ok(prepared) = torrents.get_mut(*torrent)
            && *prepared.readiness == Readiness::Ready
            && !prepared.lifecycle.is_stopping()
        {
            preparing.begin(*torrent, prepared.storage, &prepared.state, prepared.needs());
        }
    }
}

/// Lets torrents run whose files are prepared. When bytes were copied from a part file, the session records it first,
/// and then the disk may delete them.
pub(in crate::lifecycle) fn collect_prepared(
    mut preparing: Preparing,
    mut changed: ResMut<ChangedFacts>,
    mut failed: MessageWriter<FailTorrent>,
    mut torrents: Query<Prepared>,
) {
    let events: Vec<_> = preparing.disk.take(PREPARE).collect();
    for event in events {
        let torrent = event.tag.owner;
        let Ok(mut prepared) = torrents.get_mut(torrent) else {
            continue;
        };
        let is_opening = matches!(prepared.lifecycle, Lifecycle::Adding | Lifecycle::Checking);
        if !is_opening && *prepared.readiness != Readiness::Ready {
            continue;
        }
        match event.outcome {
            Ok(DiskDone::Prepared(moved)) => {
                if is_opening {
                    *prepared.readiness = Readiness::Ready;
                    changed.add(torrent);
                }
                let needs = prepared.needs();
                let files = &prepared.content.0.info.files;
                let is_moved = prepared.state.record_moved(&moved, needs.as_deref(), files);
                if is_moved && !prepared.lifecycle.is_stopping() {
                    preparing.begin(torrent, prepared.storage, &prepared.state, None);
                }
            }
            Ok(_) => {}
            Err(error) => drop(failed.write(fault(torrent, &error))),
        }
    }
}
