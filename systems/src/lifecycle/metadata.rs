//! Metadata that arrives after its torrent: checks it, completes the torrent, saves it, and lets the opening go on.

use std::sync::Arc;

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use bytes::Bytes;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{CommandQueue, SupplyError, SupplyMetadata, TorrentNotFound};
use ecs_torrent_components::lifecycle::{ChangedFacts, Desired};
use ecs_torrent_components::messages::MetadataKnown;
use ecs_torrent_components::torrent::{Content, Layout, Storage, Torrent, TorrentIndex};
use ecs_torrent_components::tracker::{Tracker, TrackerTiers};
use ecs_torrent_protocol::hash::{InfoHash, sha1};
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits, torrent_file};

use super::adds::Adds;
use super::naming::renamed;
use super::opening::{Opener, Opening};
use crate::ownership::Survey;
use crate::sessions::{SaveTorrent, SessionState};

/// Parameters for completing torrents.
#[derive(SystemParam)]
pub(super) struct Completer<'w, 's> {
    commands: Commands<'w, 's>,
    index: ResMut<'w, TorrentIndex>,
    changed: ResMut<'w, ChangedFacts>,
    known: MessageWriter<'w, MetadataKnown>,
    torrents: Query<
        'w,
        's,
        (
            &'static mut Torrent,
            &'static SessionState,
            Option<&'static TrackerTiers>,
            &'static Desired,
            Has<Layout>,
        ),
    >,
    trackers: Query<'w, 's, &'static Tracker>,
}

/// Takes supplied metadata. Whether a torrent may have its files is decided when the files of all torrents are known.
pub(super) fn supply_metadata(
    mut queue: ResMut<CommandQueue<SupplyMetadata>>,
    mut survey: ResMut<Survey>,
    adds: Res<Adds>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    mut completer: Completer,
) {
    if queue.0.is_empty() || !survey.is_done(&wakeup, clock.now()) {
        return;
    }
    for (command, listed) in adds.take_decided(&mut queue, &completer.index, |_| false) {
        if listed.is_some_and(|entity| completer.must_wait(entity)) {
            queue.0.push_back(command);
            continue;
        }
        let SupplyMetadata { torrent, info, reply } = command;
        let entity = listed.ok_or_else(|| TorrentNotFound(torrent).into());
        reply.send(entity.and_then(|entity| completer.complete(entity, torrent, &info)));
    }
}

impl Completer<'_, '_> {
    /// Whether a torrent's saved state is not known yet, the torrent was added in this very tick, or it is paused.
    fn must_wait(&self, entity: Entity) -> bool {
        self.torrents.get(entity).map_or(true, |(_, state, _, desired, _)| {
            !state.is_loaded() || *desired == Desired::Pause
        })
    }

    fn complete(&mut self, entity: Entity, named: InfoHash, info: &Bytes) -> Result<(), SupplyError> {
        let Ok((mut torrent, state, tiers, desired, has_layout)) = self.torrents.get_mut(entity) else {
            return Err(TorrentNotFound(named).into());
        };
        let id = torrent.id();
        if has_layout || desired.is_leaving() {
            return Err(SupplyError::NotNeeded(id));
        }
        if sha1([&info[..]]) != id.0 {
            return Err(SupplyError::WrongHash(id));
        }
        let urls = self
            .trackers
            .iter_many(tiers.into_iter().flat_map(|tiers| tiers.0.iter()))
            .flatten();
        let urls: Vec<Vec<String>> = urls.map(|tracker| vec![tracker.url.to_string()]).collect();
        let file = Bytes::from(torrent_file(info, &urls));
        let parsed = Metainfo::parse(&file, &MetainfoLimits::default());
        let metainfo = Arc::new(parsed.map_err(|error| SupplyError::Invalid { torrent: id, error })?);
        let metainfo = match state.new_name() {
            Some(name) => renamed(&metainfo, name),
            None => metainfo,
        };
        torrent.hashes = metainfo.hashes;
        torrent.name = metainfo.info.name.as_str().into();
        torrent.private = metainfo.info.private;
        self.index.insert(&torrent.hashes, entity);
        let geometry = &metainfo.info.geometry;
        self.commands
            .entity(entity)
            .insert((Layout(geometry.clone()), Content(metainfo), Opening::supplied()));
        tracing::info!(torrent = %torrent.label(), "its metadata is known");
        self.changed.add(entity);
        self.known.write(MetadataKnown { torrent: entity });
        Ok(())
    }
}

/// Saves torrents whose metadata has become known, and opens their files.
pub(super) fn open_supplied(
    mut known: MessageReader<MetadataKnown>,
    mut opener: Opener,
    mut save: MessageWriter<SaveTorrent>,
    mut torrents: Query<(&Content, &mut Storage, &SessionState)>,
) {
    for &MetadataKnown { torrent } in known.read() {
        if let Ok((content, mut storage, state)) = torrents.get_mut(torrent) {
            save.write(SaveTorrent { torrent });
            let files = &content.0.info.files;
            opener.open(torrent, &mut storage, None, files, state);
        }
    }
}
