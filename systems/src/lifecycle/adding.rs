//! From a command to a running torrent.

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::candidates::{CandidateSource, Candidates};
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::commands::{AddTorrent, CommandQueue};
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::messages::{FailTorrent, TorrentAdded, TorrentStarted};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{
    Activity, Content, Counters, Have, Layout, Lifecycle, Storage, Torrent, TorrentIndex, TorrentRates,
};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::{DiskDone, DiskRequest};
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::peer_id::PeerId;

use crate::checking::Check;
use crate::choking::Choker;
use crate::dialing::Dialer;
use crate::handshaking::ConnectedIds;
use crate::trackers::{Announcer, spawn_trackers};

const OPEN: Purpose = Purpose("open files");
const PREPARE: Purpose = Purpose("prepare files");

/// Names for storages.
#[derive(Resource, Debug, Default)]
pub(super) struct StorageIds {
    last: u64,
}

/// What is known of a torrent's data is complete: it can begin to download, or to seed.
#[derive(Message, Debug, Clone)]
pub struct StartTorrent {
    /// The torrent.
    pub torrent: Entity,
}

/// On a torrent that must not download: its user said that all of its data is there.
#[derive(Component, Debug)]
pub(super) struct RequiresComplete;

#[derive(SystemParam)]
pub(super) struct Registry<'w, 's> {
    commands: Commands<'w, 's>,
    clock: Res<'w, Clock>,
    settings: Res<'w, Settings>,
    random: ResMut<'w, Random>,
    index: ResMut<'w, TorrentIndex>,
    storages: ResMut<'w, StorageIds>,
    disk: ResMut<'w, DiskPort>,
    added: MessageWriter<'w, TorrentAdded>,
    torrents: Query<'w, 's, &'static Torrent>,
}

pub(super) fn add_torrents(mut queue: ResMut<CommandQueue<AddTorrent>>, mut registry: Registry) {
    for command in queue.0.drain(..) {
        let known = command
            .metainfo
            .hashes
            .wire_hashes()
            .find_map(|hash| registry.index.get(hash));
        // One that was added in this very tick is not in the world yet, but it has the same hashes.
        let known = known.map(|entity| {
            registry
                .torrents
                .get(entity)
                .map_or(command.metainfo.hashes.primary(), Torrent::id)
        });
        let id = known.unwrap_or_else(|| registry.add(&command));
        command.reply.send(id);
    }
}

impl Registry<'_, '_> {
    fn add(&mut self, command: &AddTorrent) -> InfoHash {
        let AddTorrent { metainfo, options, .. } = command;
        let info = &metainfo.info;
        self.storages.last += 1;
        let storage = Storage {
            id: StorageId(self.storages.last),
            root: options
                .root
                .clone()
                .unwrap_or_else(|| self.settings.storage.download_dir.clone()),
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
        self.disk.push(DiskRequest::Open {
            tag: tag(OPEN, entity),
            storage: storage.id,
            root: storage.root.clone(),
            files: info.files.clone(),
        });
        self.commands.entity(entity).insert((
            torrent,
            Layout(info.geometry),
            Content(metainfo.clone()),
            Have(Bitfield::new(info.geometry.piece_count())),
            storage,
            Lifecycle::Adding,
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

fn tag(purpose: Purpose, owner: Entity) -> JobTag {
    JobTag {
        purpose,
        owner,
        number: 0,
    }
}

/// Where there is data already, it is checked; where there is none, everything is missing.
pub(super) fn collect_opened(
    mut commands: Commands,
    mut disk: ResMut<DiskPort>,
    mut start: MessageWriter<StartTorrent>,
    mut failed: MessageWriter<FailTorrent>,
    mut torrents: Query<(&mut Lifecycle, &Layout)>,
) {
    for event in disk.take(OPEN) {
        let torrent = event.tag.owner;
        let Ok((mut lifecycle, layout)) = torrents.get_mut(torrent) else {
            continue;
        };
        if *lifecycle != Lifecycle::Adding {
            continue;
        }
        match event.outcome {
            Ok(DiskDone::Opened(lengths)) if lengths.iter().flatten().any(|len| *len > 0) => {
                *lifecycle = Lifecycle::Checking;
                commands.entity(torrent).insert(Check::new(layout.0.piece_count()));
            }
            Ok(_) => drop(start.write(StartTorrent { torrent })),
            Err(error) => {
                let reason = error.to_string().into();
                failed.write(FailTorrent { torrent, reason });
            }
        }
    }
}

/// A complete torrent seeds; for another, its files are made ready first.
pub(super) fn start_torrents(
    mut start: MessageReader<StartTorrent>,
    settings: Res<Settings>,
    mut disk: ResMut<DiskPort>,
    mut started: MessageWriter<TorrentStarted>,
    mut failed: MessageWriter<FailTorrent>,
    mut torrents: Query<(&Have, &Storage, &mut Lifecycle, Option<&RequiresComplete>)>,
) {
    for &StartTorrent { torrent } in start.read() {
        let Ok((Have(have), storage, mut lifecycle, requires_complete)) = torrents.get_mut(torrent) else {
            continue;
        };
        if have.is_full() {
            *lifecycle = Lifecycle::Seeding;
            started.write(TorrentStarted { torrent });
        } else if requires_complete.is_some() {
            let missing = have.len() - have.count();
            let root = storage.root.display();
            let reason = format!("{missing} of {} pieces are missing or bad in {root}", have.len()).into();
            failed.write(FailTorrent { torrent, reason });
        } else {
            disk.push(DiskRequest::Prepare {
                tag: tag(PREPARE, torrent),
                storage: storage.id,
                is_preallocated: settings.storage.preallocate,
            });
        }
    }
}

pub(super) fn collect_prepared(
    mut disk: ResMut<DiskPort>,
    mut started: MessageWriter<TorrentStarted>,
    mut failed: MessageWriter<FailTorrent>,
    mut torrents: Query<&mut Lifecycle>,
) {
    for event in disk.take(PREPARE) {
        let torrent = event.tag.owner;
        let Ok(mut lifecycle) = torrents.get_mut(torrent) else {
            continue;
        };
        if !matches!(*lifecycle, Lifecycle::Adding | Lifecycle::Checking) {
            continue;
        }
        match event.outcome {
            Ok(_) => {
                *lifecycle = Lifecycle::Downloading;
                started.write(TorrentStarted { torrent });
            }
            Err(error) => {
                let reason = error.to_string().into();
                failed.write(FailTorrent { torrent, reason });
            }
        }
    }
}
