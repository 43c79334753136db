//! From a command to a listed torrent.

use std::sync::Arc;

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::candidates::{CandidateSource, Candidates};
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::commands::{AddOptions, AddTorrent, CommandQueue, Reply, ResumeAll, ResumeError};
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::messages::TorrentAdded;
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{
    Activity, Content, Counters, Have, Layout, Lifecycle, Partials, Storage, Torrent, TorrentIndex, TorrentRates,
};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::StatePort;
use ecs_torrent_engine::ports::state::{Loaded, StateDone, StateRequest};
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::Metainfo;
use ecs_torrent_protocol::peer_id::PeerId;

use super::opening::{Opener, Opening, RequiresComplete};
use crate::choking::Choker;
use crate::dialing::Dialer;
use crate::handshaking::ConnectedIds;
use crate::sessions::SessionState;
use crate::trackers::{Announcer, spawn_trackers};

const LIST: Purpose = Purpose("list sessions");
const RESUME: Purpose = Purpose("resume torrents");

/// Names for storages.
#[derive(Resource, Debug, Default)]
pub(super) struct StorageIds {
    last: u64,
}

impl StorageIds {
    pub(super) fn next(&mut self) -> StorageId {
        self.last += 1;
        StorageId(self.last)
    }
}

#[derive(SystemParam)]
pub(super) struct Registry<'w, 's> {
    commands: Commands<'w, 's>,
    clock: Res<'w, Clock>,
    settings: Res<'w, Settings>,
    random: ResMut<'w, Random>,
    index: ResMut<'w, TorrentIndex>,
    opener: Opener<'w>,
    added: MessageWriter<'w, TorrentAdded>,
    torrents: Query<'w, 's, &'static Torrent>,
}

pub(super) fn add_torrents(mut queue: ResMut<CommandQueue<AddTorrent>>, mut registry: Registry) {
    for command in queue.0.drain(..) {
        let id = registry.find_or_add(&command.metainfo, &command.options, command.is_resumed, None);
        command.reply.send(id);
    }
}

impl Registry<'_, '_> {
    /// `loaded` is what its session was found to say, where that is known already.
    fn find_or_add(
        &mut self,
        metainfo: &Arc<Metainfo>,
        options: &AddOptions,
        is_resumed: bool,
        loaded: Option<Loaded>,
    ) -> InfoHash {
        let known = metainfo.hashes.wire_hashes().find_map(|hash| self.index.get(hash));
        match known {
            // One that was added in this very tick is not in the world yet, but it has the same hashes.
            Some(entity) => self.torrents.get(entity).map_or(metainfo.hashes.primary(), Torrent::id),
            None => self.add(metainfo, options, is_resumed, loaded),
        }
    }

    fn add(
        &mut self,
        metainfo: &Arc<Metainfo>,
        options: &AddOptions,
        is_resumed: bool,
        loaded: Option<Loaded>,
    ) -> InfoHash {
        let info = &metainfo.info;
        let root = options.root.clone();
        let storage = Storage {
            id: self.opener.next_storage(),
            root: root.unwrap_or_else(|| self.settings.storage.download_dir.clone()),
        };
        let torrent = Torrent {
            hashes: metainfo.hashes,
            name: info.name.as_str().into(),
            peer_id: PeerId::ours(self.random.bytes()),
            tracker_key: self.random.number(),
            private: info.private,
            added: self.clock.now(),
        };
        let id = torrent.id();
        let mut candidates = Candidates::default();
        for peer in &options.peers {
            candidates.add(*peer, CandidateSource::User, 0, self.settings.peers.max_candidates);
        }
        let entity = self.commands.spawn_empty().id();
        let tiers = spawn_trackers(&mut self.commands, entity, &metainfo.trackers, &mut self.random);
        match loaded {
            Some(loaded) => self.opener.hand_over(entity, loaded),
            None => self.opener.load(entity, &torrent),
        }
        let opening = Opening {
            has_root: options.root.is_some(),
            is_resumed,
            ..Opening::default()
        };
        self.commands.entity(entity).insert((
            torrent,
            Layout(info.geometry),
            Content(metainfo.clone()),
            (
                Have(Bitfield::new(info.geometry.piece_count())),
                Partials::default(),
                SessionState::default(),
            ),
            storage,
            (Lifecycle::Adding, opening),
            (Counters::default(), Activity::default(), TorrentRates::default()),
            (candidates, ConnectedIds::default(), Dialer::default()),
            (Choker::default(), tiers, Announcer::default()),
        ));
        if options.require_complete {
            self.commands.entity(entity).insert(RequiresComplete);
        }
        self.index.insert(&metainfo.hashes, entity);
        self.added.write(TorrentAdded { torrent: entity });
        id
    }
}

/// Torrents that are being read from the state folder.
#[derive(Resource, Debug, Default)]
pub(super) struct Resuming {
    /// Who asked for the list.
    asked: Vec<Reply<Result<usize, ResumeError>>>,
    /// Who waits for what the list named, and how many that are.
    waiting: Vec<Reply<Result<usize, ResumeError>>>,
    expected_count: usize,
    added_count: usize,
}

pub(super) fn resume_torrents(
    mut queue: ResMut<CommandQueue<ResumeAll>>,
    mut resuming: ResMut<Resuming>,
    mut state: ResMut<StatePort>,
) {
    let tag = |purpose| JobTag::new(purpose, Entity::PLACEHOLDER);
    for ResumeAll { reply } in queue.0.drain(..) {
        if resuming.asked.is_empty() {
            state.push(StateRequest::List { tag: tag(LIST) });
        }
        resuming.asked.push(reply);
    }
    let listed: Vec<_> = state.take(LIST).collect();
    for event in listed {
        let asked = std::mem::take(&mut resuming.asked);
        match event.outcome {
            Ok(StateDone::Listed(torrents)) => {
                resuming.expected_count += torrents.len();
                resuming.waiting.extend(asked);
                for torrent in torrents {
                    state.push(StateRequest::Load {
                        tag: tag(RESUME),
                        torrent,
                        with_metainfo: true,
                    });
                }
                resuming.answer();
            }
            Ok(_) => {}
            Err(error) => {
                let error = ResumeError(error.0);
                asked.into_iter().for_each(|reply| reply.send(Err(error.clone())));
            }
        }
    }
}

pub(super) fn add_resumed(mut resuming: ResMut<Resuming>, mut registry: Registry) {
    for event in registry.opener.take(RESUME) {
        resuming.expected_count = resuming.expected_count.saturating_sub(1);
        let mut loaded = match event.outcome {
            Ok(StateDone::Loaded(loaded)) => *loaded,
            _ => Loaded::default(),
        };
        match loaded.metainfo.take() {
            Some(Ok(metainfo)) => {
                registry.find_or_add(&metainfo, &AddOptions::default(), true, Some(loaded));
                resuming.added_count += 1;
            }
            Some(Err(reason)) => tracing::error!("a torrent cannot be resumed: {reason}"),
            None => {}
        }
        resuming.answer();
    }
}

impl Resuming {
    /// Answers when all that was listed is here.
    fn answer(&mut self) {
        if self.expected_count == 0 {
            let count = std::mem::take(&mut self.added_count);
            self.waiting.drain(..).for_each(|reply| reply.send(Ok(count)));
        }
    }
}
