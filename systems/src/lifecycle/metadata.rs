//! Metadata that arrives after its torrent: checks the metadata, gives it to the torrent, saves the torrent, and
//! continues the opening.
//!
//! A paused torrent takes its metadata too: it is saved, and the files are examined when the torrent is started.

use std::sync::Arc;

use bevy_ecs::entity::EntityHashSet;
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use bytes::Bytes;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{CommandQueue, SupplyError, SupplyMetadata, TorrentNotFound};
use ecs_torrent_components::hints::KeptHints;
use ecs_torrent_components::lifecycle::{ChangedFacts, Desired, Fault};
use ecs_torrent_components::messages::{FailTorrent, MetadataKnown, MetadataSaved, PrivacyKnown, Remedy};
use ecs_torrent_components::torrent::{Content, Have, Layout, Lifecycle, Storage, Torrent, TorrentIndex};
use ecs_torrent_components::tracker::{Tracker, TrackerTiers};
use ecs_torrent_components::wanted::FileChoice;
use ecs_torrent_protocol::hash::sha1;
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits, says_private, torrent_file};

use super::adds::Adds;
use super::opening::{Opener, Opening};
use crate::ownership::Survey;
use crate::sessions::{SaveTorrent, SessionState, SessionWritten};

/// The parts of a listed torrent that later metadata, or another add of it, changes.
#[derive(QueryData)]
#[query_data(mutable)]
pub(super) struct Listed {
    pub(super) entity: Entity,
    pub(super) torrent: &'static mut Torrent,
    pub(super) state: &'static mut SessionState,
    pub(super) storage: &'static mut Storage,
    pub(super) fault: &'static mut Fault,
    pub(super) lifecycle: &'static Lifecycle,
    pub(super) tiers: &'static TrackerTiers,
    pub(super) content: Option<&'static mut Content>,
    pub(super) opening: Option<&'static mut Opening>,
    pub(super) hints: Option<&'static KeptHints>,
    desired: &'static Desired,
}

/// Parameters for completing torrents.
#[derive(SystemParam)]
pub(super) struct Completer<'w> {
    index: ResMut<'w, TorrentIndex>,
    pub(super) changed: ResMut<'w, ChangedFacts>,
    known: MessageWriter<'w, MetadataKnown>,
    pub(super) save: MessageWriter<'w, SaveTorrent>,
}

/// Takes supplied metadata. A torrent fails if its metadata describes no torrent that this engine can use. Whether the
/// torrent may use its files is decided when the files of all torrents are known.
pub(super) fn supply_metadata(
    mut commands: Commands,
    mut queue: ResMut<CommandQueue<SupplyMetadata>>,
    mut survey: ResMut<Survey>,
    adds: Res<Adds>,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    mut completer: Completer,
    mut failed: MessageWriter<FailTorrent>,
    mut torrents: Query<Listed>,
    trackers: Query<&Tracker>,
) {
    if queue.0.is_empty() || !survey.request(&wakeup, clock.now()).is_done() {
        return;
    }
    let mut completed = EntityHashSet::default();
    for (command, listed) in adds.take_decided(&mut queue, &completer.index, |_| false) {
        let Some(entity) = listed else {
            command.reply.send(Err(TorrentNotFound(command.torrent).into()));
            continue;
        };
        let Ok(mut listed) = torrents.get_mut(entity) else {
            // The torrent was added in this very tick.
            queue.0.push_back(command);
            continue;
        };
        // A pause ends soon.
        if listed.lifecycle.is_stopping() && *listed.desired == Desired::Pause {
            queue.0.push_back(command);
            continue;
        }
        let metainfo = match completed.contains(&entity) {
            true => Err(SupplyError::NotNeeded(listed.torrent.id())),
            false => listed.check(&command.info, &trackers),
        };
        if let Err(SupplyError::Invalid { error, .. }) = &metainfo {
            if says_private(&command.info, &MetainfoLimits::default()) {
                listed.torrent.private = true;
                commands.trigger(PrivacyKnown { torrent: entity });
                listed.state.record_addition();
                completer.save.write(SaveTorrent { torrent: entity });
            }
            // No other metadata has this hash.
            failed.write(FailTorrent {
                torrent: entity,
                reason: format!("its metadata cannot be used: {error}").into(),
                remedy: Remedy::None,
            });
        }
        command.reply.send(metainfo.map(|metainfo| {
            completed.insert(entity);
            completer.complete(&mut commands, &mut listed, metainfo);
        }));
        // A session that is loaded already may wait for this.
        wakeup.at(clock.now());
    }
}

impl ListedItem<'_, '_> {
    /// Returns the metainfo with an info dictionary, if it is the torrent's.
    fn check(&self, info: &Bytes, trackers: &Query<&Tracker>) -> Result<Arc<Metainfo>, SupplyError> {
        let id = self.torrent.id();
        if self.content.is_some() || self.desired.is_leaving() {
            return Err(SupplyError::NotNeeded(id));
        }
        let urls = trackers.iter_many(self.tiers.0.iter()).flatten();
        let urls: Vec<Vec<String>> = urls.map(|tracker| vec![tracker.url.to_string()]).collect();
        let web_seeds = self.hints.map_or(&[][..], |hints| &hints.0.web_seeds);
        let file = Bytes::from(torrent_file(info, &urls, web_seeds));
        let metainfo = match Metainfo::parse(&file, &MetainfoLimits::default()) {
            Ok(metainfo) if metainfo.hashes.v1 == Some(id) && metainfo.info_bytes == *info => Arc::new(metainfo),
            Err(error) if sha1([&info[..]]) == id.0 => return Err(SupplyError::Invalid { torrent: id, error }),
            _ => return Err(SupplyError::WrongHash(id)),
        };
        Ok(self.state.names().apply(&metainfo))
    }
}

impl Completer<'_> {
    /// Gives a torrent its metadata, under the name that its files are to have. If the session is loaded and the
    /// torrent runs, its files are opened next; otherwise the files are opened once both hold.
    pub(super) fn complete(
        &mut self,
        commands: &mut Commands,
        listed: &mut ListedItem<'_, '_>,
        metainfo: Arc<Metainfo>,
    ) {
        let entity = listed.entity;
        let torrent = &mut *listed.torrent;
        torrent.hashes = metainfo.hashes;
        torrent.name = metainfo.info.name.as_str().into();
        torrent.private = metainfo.info.private;
        self.index.insert(&torrent.hashes, entity);
        tracing::info!(torrent = %torrent.label(), "metadata received");
        if listed.state.is_loaded() && *listed.lifecycle == Lifecycle::FetchingMetadata {
            commands.entity(entity).insert(Opening::supplied());
        }
        let layout = Layout(metainfo.info.geometry.clone());
        commands.entity(entity).insert((layout, Content(metainfo)));
        listed.state.record_addition();
        self.save.write(SaveTorrent { torrent: entity });
        self.changed.add(entity);
        self.known.write(MetadataKnown { torrent: entity });
    }
}

/// Torrents whose metadata is known and being saved.
#[derive(Resource, Debug, Default)]
pub(super) struct UnsavedMetadata(EntityHashSet);

/// Publishes that metadata is saved. After a failed save, the metadata waits for the next one.
pub(super) fn publish_saved(
    mut known: MessageReader<MetadataKnown>,
    mut written: MessageReader<SessionWritten>,
    mut unsaved: ResMut<UnsavedMetadata>,
    states: Query<&SessionState>,
    mut saved: MessageWriter<MetadataSaved>,
) {
    unsaved.0.extend(known.read().map(|known| known.torrent));
    for &SessionWritten { torrent, ref result } in written.read() {
        // The save that has ended may be an earlier one.
        let has_all = states.get(torrent).is_ok_and(SessionState::has_saved_additions);
        if result.is_ok() && has_all && unsaved.0.remove(&torrent) {
            saved.write(MetadataSaved { torrent });
        }
    }
    unsaved.0.retain(|torrent| states.contains(*torrent));
}

/// The parts of a torrent whose files are opened when its metadata has become known.
#[derive(QueryData)]
#[query_data(mutable)]
pub(super) struct Supplied {
    torrent: &'static Torrent,
    content: &'static Content,
    have: &'static Have,
    choice: Option<&'static FileChoice>,
    opening: &'static Opening,
    lifecycle: &'static Lifecycle,
    storage: &'static mut Storage,
    state: &'static mut SessionState,
}

/// Opens the files of torrents whose metadata has become known, unless the session is loaded first or the torrent does
/// not run.
pub(super) fn open_supplied(
    mut known: MessageReader<MetadataKnown>,
    mut opener: Opener,
    mut torrents: Query<Supplied>,
) {
    for &MetadataKnown { torrent } in known.read() {
        let Ok(mut supplied) = torrents.get_mut(torrent) else {
            continue;
        };
        let state = &mut supplied.state;
        if state.is_loaded() && *supplied.lifecycle == Lifecycle::FetchingMetadata && supplied.opening.is_unexamined {
            let metainfo = &supplied.content.0;
            let files = &metainfo.info.files;
            if let Some(choice) = supplied.choice {
                state.part_all(choice, files);
            }
            let needs = state.needs(supplied.torrent.id(), metainfo, supplied.choice, supplied.have);
            opener.open(torrent, &mut supplied.storage, None, files, state, needs);
        }
    }
}
