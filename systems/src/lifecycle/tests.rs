//! Tests of single steps of a torrent's life, with the answers of the disk and of the state folder.

mod additions;
mod ends;
mod faults;
mod openings;
mod resumptions;
mod supplies;

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bevy_ecs::system::SystemState;
use bytes::Bytes;
use ecs_torrent_components::candidates::CandidatesFound;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::commands::{
    AddError, AddOptions, AddPeers, PauseTorrent, RemoveOptions, Reply, ResumeTorrentError, StartTorrent,
    StartTorrentError, SupplyError, TorrentSource,
};
use ecs_torrent_components::lifecycle::{Blocked, Desired, Fault, Readiness, Stopping};
use ecs_torrent_components::messages::{PiecesKnown, Remedy};
use ecs_torrent_components::session::{FileId, FileStamp, OwnerKey, Salvage, Session};
use ecs_torrent_components::torrent::{Content, Layout, Lifecycle, RequiresComplete, Storage, Torrent};
use ecs_torrent_components::tracker::TrackerTiers;
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::disk::{
    DiskAction, DiskDone, DiskError, DiskEvent, DiskRequest, FoundFile, FoundFiles, Provenance, Refusal,
};
use ecs_torrent_engine::ports::state::{Loaded, StateDone, StateEvent, StateRequest};
use ecs_torrent_engine::ports::{DiskPort, StatePort};
use ecs_torrent_protocol::hash::{InfoHash, InfoHashes};
use ecs_torrent_protocol::time::Timestamp;

use super::adds::Adds;
use super::opening::Opening;
use super::*;
use crate::checking::CheckPieces;
use crate::ownership::OwnershipPlugin;
use crate::picking::PickingPlugin;
use crate::sessions::{OptionsGiven, SavedParts, SessionState, SessionWritten, SessionsPlugin};
use crate::stop_participants::{Ending, StopTurn};
use crate::storage::RetryWrite;
use crate::testing::{Bed, NOW, content, session, torrent};

type Answer<T, E> = Receiver<Result<T, E>>;

/// Returns an engine with one torrent, which is listed.
fn bed(lifecycle: Lifecycle, opening: Option<Opening>) -> Bed {
    let mut bed = Bed::new((LifecyclePlugin, OwnershipPlugin, SessionsPlugin, PickingPlugin));
    bed.open_port::<StateRequest, StateEvent>(Vec::new());
    bed.open_port::<DiskRequest, DiskEvent>(Vec::new());
    bed.world.init_resource::<CommandQueue<AddPeers>>();
    bed.world.init_resource::<Messages<CandidatesFound>>();
    bed.world.init_resource::<Messages<PiecesKnown>>();
    bed.world.init_resource::<Messages<CheckPieces>>();
    bed.world.init_resource::<Messages<RetryWrite>>();
    bed.world.resource_mut::<crate::ownership::Survey>().end_resuming(true);
    let content = content();
    let mut names = torrent();
    names.hashes = content.0.hashes;
    bed.world
        .resource_mut::<TorrentIndex>()
        .insert(&names.hashes, bed.torrent);
    let storage = Storage {
        id: ecs_torrent_components::ids::StorageId(7),
        root: "/downloads".into(),
    };
    let mut entity = bed.world.entity_mut(bed.torrent);
    entity.insert((names, content, storage, lifecycle, TrackerTiers::default()));
    if let Some(opening) = opening {
        entity.insert(opening);
    }
    bed.world.trigger(OptionsGiven {
        torrent: bed.torrent,
        name: None,
        overwrite: false,
        overwrite_ns: None,
        has_moved: false,
        is_paused: false,
    });
    bed.world.flush();
    bed
}

fn reply<T: Send + 'static, E: Send + 'static>() -> (Reply<Result<T, E>>, Answer<T, E>) {
    let (sender, answer) = channel();
    let reply = Reply::new(move |result| drop(sender.send(result)));
    (reply, answer)
}

/// Adds the torrent of the bed again.
fn add(bed: &mut Bed, options: AddOptions, is_resumed: bool) -> Answer<InfoHash, AddError> {
    let (reply, answer) = reply();
    let command = AddTorrent {
        source: TorrentSource::Metainfo(bed.get::<Content>(bed.torrent).0.clone()),
        options,
        is_resumed,
        reply,
    };
    bed.world
        .resource_mut::<CommandQueue<AddTorrent>>()
        .0
        .push_back(command);
    bed.run(adding::add_torrents);
    bed.run(joining::join_listed);
    answer
}

/// Lets a caller wait for the torrent of the bed as a new one.
fn await_new(bed: &mut Bed) -> Answer<InfoHash, AddError> {
    let (reply, answer) = reply();
    bed.world.resource_mut::<Adds>().await_new(bed.torrent, reply);
    answer
}

/// Makes the torrent's session durable.
fn save(bed: &mut Bed) {
    let mut torrents = bed.world.query::<SavedParts>();
    let mut saved = torrents.get_mut(&mut bed.world, bed.torrent).unwrap();
    saved.record_loaded(Some(&session()), None, true, None);
}

fn failed(retry_at: Option<Timestamp>) -> Lifecycle {
    Lifecycle::Failed {
        reason: "a fault".into(),
        retry_at,
    }
}

fn state_events(bed: &mut Bed, purpose: Purpose, number: u64, loaded: Loaded) {
    let tag = JobTag {
        purpose,
        owner: Entity::PLACEHOLDER,
        number,
    };
    let outcome = Ok(StateDone::Loaded(Box::new(loaded)));
    bed.open_port::<StateRequest, StateEvent>(vec![StateEvent { tag, outcome }]);
}

fn loaded(bed: &Bed, session: Option<Session>) -> Loaded {
    Loaded {
        session,
        has_metainfo: true,
        metainfo: Some(Ok(bed.get::<Content>(bed.torrent).0.clone())),
        ..Loaded::default()
    }
}

fn open(bed: &mut Bed, outcome: Result<DiskDone, DiskError>) {
    let tag = JobTag::new(opening::OPEN, bed.torrent);
    let blocks = Vec::new();
    bed.open_port::<DiskRequest, DiskEvent>(vec![DiskEvent { tag, outcome, blocks }]);
    bed.run(opening::finding::collect_opened);
}

fn nothing_there() -> DiskDone {
    DiskDone::Opened(FoundFiles {
        root: std::path::Path::new("/downloads").into(),
        volume: std::sync::Arc::new(ecs_torrent_engine::ports::disk::Volume {
            mount_point: "/".into(),
            id: None,
        }),
        folders: Default::default(),
        files: vec![None],
    })
}

fn saved(lacks_metadata: bool) -> Session {
    Session {
        root: "/downloads".into(),
        total_size: 98304,
        piece_length: 32768,
        pieces: 3,
        lacks_metadata,
        resolved: (!lacks_metadata).then(|| "/downloads".into()),
        ..session()
    }
}

/// Requests a pause. Returns whether the caller was answered, and whether a pause has begun.
fn pause(bed: &mut Bed) -> (bool, bool) {
    let (reply, answer) = reply();
    let command = PauseTorrent {
        torrent: bed.get::<Torrent>(bed.torrent).id(),
        reply,
    };
    bed.world.resource_mut::<CommandQueue<pausing::ForTorrent>>().0.clear();
    let mut queue = bed.world.resource_mut::<CommandQueue<PauseOrStart>>();
    queue.0.push_back(command.into());
    bed.run(pausing::take_pauses_and_starts);
    bed.run(stopping::begin_stops);
    let is_stopping = bed.world.get::<Stopping>(bed.torrent).is_some();
    let is_answered = answer.try_recv().is_ok();
    let is_queued = !bed.world.resource::<CommandQueue<pausing::ForTorrent>>().0.is_empty();
    assert_eq!(is_queued, !is_answered && !is_stopping, "it waits");
    (is_answered, is_stopping)
}
