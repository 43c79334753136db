//! Tests of single steps of a torrent's life, with the answers of the disk and of the state folder.

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
        has_moved: false,
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

#[test]
fn files_of_a_torrent_are_as_new_unless_an_earlier_run_knew_them() {
    assert!(Opening::default().is_new());
    assert!(Opening::renewed().is_new() && Opening::supplied().is_new());
    assert!(!Opening::again().is_new());
    for (is_resumed, is_known) in [(true, false), (false, true)] {
        let opening = Opening {
            is_resumed,
            is_known,
            ..Opening::default()
        };
        assert!(!opening.is_new());
    }
    for again in [Opening::again(), Opening::renewed(), Opening::supplied()] {
        assert!(again.is_again && again.has_root && !again.is_resumed);
    }
}

/// A torrent that was listed before it tried a forbidden folder stays listed, and says why it cannot continue.
#[test]
fn only_a_torrent_that_was_just_added_is_refused_for_its_folder() {
    for (opening, is_refused) in [
        (Opening::default(), true),
        (Opening::supplied(), false),
        (Opening::again(), false),
    ] {
        let mut bed = bed(Lifecycle::Adding, Some(opening));
        let _answer = await_new(&mut bed);
        bed.world.entity_mut(bed.torrent).insert(Readiness::Unopened);
        let error = std::io::Error::other(Refusal::Forbidden);
        let error = DiskError::new(DiskAction::Open, "/state/file".into(), error);
        open(&mut bed, Err(error));
        assert_eq!(!bed.world.resource::<Adds>().refused.is_empty(), is_refused);
        let failed = bed.world.resource_mut::<Messages<FailTorrent>>().drain().count();
        assert_eq!(failed, usize::from(!is_refused));
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
        root: "/downloads".into(),
        volume: ecs_torrent_engine::ports::disk::Volume {
            mount_point: "/".into(),
            id: None,
        },
        folders: Default::default(),
        files: vec![None],
    })
}

/// A torrent that has to be complete creates no file.
#[test]
fn only_a_torrent_that_may_download_claims_the_files_that_are_missing() {
    for requires_complete in [false, true] {
        let mut bed = bed(Lifecycle::Adding, Some(Opening::default()));
        if requires_complete {
            bed.world.entity_mut(bed.torrent).insert(RequiresComplete);
        }
        open(&mut bed, Ok(nothing_there()));
        let claims = bed.get::<SessionState>(bed.torrent).claims(None);
        assert_eq!(claims.created.is_empty(), requires_complete);
        assert!(bed.world.get::<Opening>(bed.torrent).is_none(), "its files are known");
    }
}

#[test]
fn a_torrent_that_has_failed_meanwhile_is_not_opened() {
    let mut bed = bed(failed(None), Some(Opening::default()));
    open(&mut bed, Ok(nothing_there()));
    assert!(bed.world.get::<Opening>(bed.torrent).is_some());
}

/// A damaged session may still say which files the torrent has created.
#[test]
fn a_damaged_session_that_claims_files_is_known() {
    for (created, is_known) in [(None, false), (Some((0, None)), true)] {
        let opening = Opening {
            is_resumed: true,
            ..Opening::default()
        };
        let mut bed = bed(Lifecycle::Adding, Some(opening));
        let loaded = Loaded {
            salvage: Salvage {
                created: created.into_iter().collect(),
                ..Salvage::default()
            },
            has_metainfo: true,
            ..Loaded::default()
        };
        let tag = JobTag::new(opening::LOAD, bed.torrent);
        let outcome = Ok(StateDone::Loaded(Box::new(loaded)));
        bed.open_port::<StateRequest, StateEvent>(vec![StateEvent { tag, outcome }]);
        bed.run(opening::loading::collect_loaded);
        assert_eq!(bed.get::<Opening>(bed.torrent).is_known, is_known);
    }
}

/// The engine resumes what it finds; only a user may renew a torrent that failed for good.
#[test]
fn a_failed_torrent_is_renewed_by_users_only() {
    for (is_resumed, retry_at, is_renewed) in [(false, None, true), (true, None, false), (false, Some(NOW), false)] {
        let mut bed = bed(failed(retry_at), None);
        add(&mut bed, AddOptions::default(), is_resumed);
        let opening = bed.world.get::<Opening>(bed.torrent);
        assert_eq!(opening.is_some_and(|opening| opening.is_renewed), is_renewed);
    }
}

#[test]
fn an_add_that_joins_another_is_answered_when_the_session_is_durable() {
    let mut bed = bed(Lifecycle::Downloading, None);
    let first = add(&mut bed, AddOptions::default(), false);
    assert!(first.try_recv().is_err(), "the session is not durable");
    save(&mut bed);
    let second = add(&mut bed, AddOptions::default(), false);
    assert!(second.try_recv().is_err(), "the callers of before come first");
    let id = bed.get::<Torrent>(bed.torrent).id();
    bed.world.resource_mut::<Adds>().answer(bed.torrent, &Ok(id));
    assert_eq!((first.try_recv(), second.try_recv()), (Ok(Ok(id)), Ok(Ok(id))));
    let third = add(&mut bed, AddOptions::default(), false);
    assert_eq!(third.try_recv(), Ok(Ok(id)));
}

/// The disk tells whether a new torrent may use its files; until then a durable session answers nobody.
#[test]
fn an_add_is_answered_when_the_files_are_decided_on() {
    for (opening, is_answered) in [(Opening::supplied(), false), (Opening::again(), true)] {
        let mut bed = bed(Lifecycle::Adding, Some(opening));
        let answer = add(&mut bed, AddOptions::default(), false);
        save(&mut bed);
        let written = SessionWritten {
            torrent: bed.torrent,
            result: Ok(()),
        };
        bed.run_after(written, adding::settle_adds);
        assert_eq!(answer.try_recv().is_ok(), is_answered);
        if !is_answered {
            open(&mut bed, Ok(nothing_there()));
            assert!(matches!(answer.try_recv(), Ok(Ok(_))));
        }
    }
}

/// Whether the folder is the same decides whether what is known of the files is still of use.
#[test]
fn a_renewed_torrent_has_moved_if_its_folder_is_another_one() {
    for (root, has_moved) in [(None, false), (Some("/downloads"), false), (Some("/other"), true)] {
        let mut bed = bed(failed(None), None);
        let (sender, given) = channel();
        let sender = std::sync::Mutex::new(sender);
        bed.world.add_observer(move |given: On<OptionsGiven>| {
            let _ = sender.lock().unwrap().send(given.has_moved);
        });
        let options = AddOptions {
            root: root.map(Into::into),
            ..AddOptions::default()
        };
        add(&mut bed, options, false);
        assert_eq!(given.try_recv(), Ok(has_moved));
        assert_eq!(
            bed.get::<Storage>(bed.torrent).root.to_str(),
            root.or(Some("/downloads"))
        );
    }
}

/// A torrent that cannot be saved is refused only while a caller waits for its first session.
#[test]
fn a_session_that_cannot_be_written_refuses_a_new_torrent_only() {
    for (is_pending, is_durable, is_refused) in [(true, false, true), (true, true, false), (false, false, false)] {
        let mut bed = bed(Lifecycle::Adding, None);
        let joined = add(&mut bed, AddOptions::default(), false);
        let _answer = is_pending.then(|| await_new(&mut bed));
        if is_durable {
            save(&mut bed);
        }
        let written = SessionWritten {
            torrent: bed.torrent,
            result: Err("no space".into()),
        };
        bed.run_after(written, adding::settle_adds);
        assert_eq!(bed.world.resource::<Adds>().refused.contains(&bed.torrent), is_refused);
        let is_failed = matches!(joined.try_recv(), Ok(Err(AddError::Unsaved { .. })));
        assert_eq!(is_failed, !is_pending, "a torrent that was listed before stays listed");
    }
}

/// Reports a fault. Returns the resulting facts.
fn fail(bed: &mut Bed, remedy: Remedy) -> (bool, Option<String>) {
    let fault = FailTorrent {
        torrent: bed.torrent,
        reason: "a new fault".into(),
        remedy,
    };
    bed.run_after(fault, failing::fail_torrents);
    let blocked = bed.get::<Blocked>(bed.torrent).0.as_deref().map(str::to_owned);
    (bed.get::<Fault>(bed.torrent).0.is_some(), blocked)
}

#[test]
fn a_torrent_that_waits_for_its_volume_takes_no_other_wait() {
    let blocked = |readiness| {
        let lifecycle = Lifecycle::Blocked {
            resource: "a volume".into(),
        };
        let mut bed = bed(lifecycle, None);
        bed.world
            .entity_mut(bed.torrent)
            .insert((Blocked(Some("a volume".into())), readiness));
        bed
    };
    let waits = |reason: &str| (false, Some(reason.to_owned()));
    assert_eq!(fail(&mut blocked(Readiness::Unopened), Remedy::Wait), waits("a volume"));
    assert_eq!(fail(&mut blocked(Readiness::Unopened), Remedy::None), (true, None));
    // Its files are open, and the disk was full.
    let mut full = blocked(Readiness::Ready);
    assert_eq!(fail(&mut full, Remedy::Wait), waits("a new fault"));
    assert_eq!(*full.get::<Readiness>(full.torrent), Readiness::Unopened);
}

#[test]
fn a_retry_without_a_fault_opens_nothing() {
    for (has_fault, request_count) in [(true, 1), (false, 0)] {
        let mut bed = bed(Lifecycle::Downloading, None);
        fail(&mut bed, Remedy::Restart);
        *bed.get_mut::<Lifecycle>(bed.torrent) = failed(Some(NOW));
        if !has_fault {
            *bed.get_mut::<Fault>(bed.torrent) = Fault(None);
        }
        bed.world
            .resource_mut::<Clock>()
            .advance_to(NOW + Duration::from_secs(60));
        bed.run(failing::retry_torrents);
        assert_eq!(bed.world.resource::<StatePort>().outgoing().len(), request_count);
    }
}

#[test]
fn a_block_is_published_once() {
    let mut bed = bed(Lifecycle::Downloading, None);
    let blocked = |resource: &str| Lifecycle::Blocked {
        resource: resource.into(),
    };
    let states = [
        Lifecycle::Downloading,
        blocked("space"),
        blocked("a volume"),
        Lifecycle::Downloading,
    ];
    let mut state = SystemState::<deriving::Publisher>::new(&mut bed.world);
    for pair in states.windows(2) {
        let mut publisher = state.get_mut(&mut bed.world).unwrap();
        publisher.publish(bed.torrent, pair[0].clone(), pair[1].clone());
        state.apply(&mut bed.world);
    }
    let count = bed.world.resource_mut::<Messages<TorrentBlocked>>().drain().count();
    assert_eq!(count, 1);
    assert_eq!(
        bed.world.resource_mut::<Messages<LifecycleChanged>>().drain().count(),
        3
    );
}

/// A torrent that was added while its state was loaded is removed like any other one that is listed.
#[test]
fn a_removal_finds_a_torrent_that_was_added_meanwhile() {
    let mut bed = bed(Lifecycle::Downloading, None);
    let (reply, answer) = reply();
    let command = RemoveTorrent {
        torrent: bed.get::<Torrent>(bed.torrent).id(),
        options: RemoveOptions::default(),
        reply,
    };
    let tag = bed
        .world
        .resource_mut::<Jobs<RemoveTorrent>>()
        .add(removing::LOAD, command);
    let loaded = loaded(&bed, Some(session()));
    state_events(&mut bed, tag.purpose, tag.number, loaded);
    bed.run(removing::add_removed);
    assert!(answer.try_recv().is_err());
    assert_eq!(bed.world.resource::<CommandQueue<RemoveTorrent>>().0.len(), 1);
    assert_eq!(bed.world.query::<&Torrent>().iter(&bed.world).count(), 1);
}

/// Resumes a torrent whose saved state is `loaded`. Returns the answer, if any.
fn resume(bed: &mut Bed, loaded: Loaded) -> Option<Result<(), ResumeTorrentError>> {
    let (reply, answer) = reply();
    let command = ResumeTorrent {
        torrent: bed.get::<Torrent>(bed.torrent).id(),
        reply,
    };
    let tag = bed
        .world
        .resource_mut::<Jobs<resuming::Resumption>>()
        .add(resuming::LOAD, resuming::Resumption::of(command));
    state_events(bed, tag.purpose, tag.number, loaded);
    bed.run(resuming::list_resumed);
    answer.try_recv().ok()
}

fn stopped() -> Session {
    Session {
        stopped: true,
        ..session()
    }
}

#[test]
fn a_torrent_that_was_added_meanwhile_is_not_resumed_again() {
    let mut bed = bed(Lifecycle::Downloading, None);
    for session in [session(), stopped()] {
        let loaded = loaded(&bed, Some(session));
        assert_eq!(resume(&mut bed, loaded), Some(Ok(())));
        assert!(bed.world.resource::<StatePort>().outgoing().is_empty());
        assert_eq!(bed.world.query::<&Torrent>().iter(&bed.world).count(), 1);
    }
}

/// A session is changed only if the torrent can be listed then.
#[test]
fn a_stopped_torrent_without_a_usable_torrent_file_stays_stopped() {
    for (is_usable, request_count) in [(true, 1), (false, 0)] {
        let mut bed = bed(Lifecycle::Downloading, None);
        let hashes = bed.get::<Torrent>(bed.torrent).hashes;
        bed.world.resource_mut::<TorrentIndex>().remove(&hashes);
        let mut loaded = loaded(&bed, Some(stopped()));
        if !is_usable {
            loaded.metainfo = Some(Err("damaged".into()));
        }
        let answer = resume(&mut bed, loaded);
        assert_eq!(answer.is_some_and(|answer| answer.is_err()), !is_usable);
        assert_eq!(bed.world.resource::<StatePort>().outgoing().len(), request_count);
    }
}

/// Only users' adds are compared with the files of stopped torrents; a torrent that the engine resumes has its own.
#[test]
fn a_user_waits_for_the_survey_of_stopped_torrents() {
    for is_resumed in [false, true] {
        let mut bed = bed(Lifecycle::Downloading, None);
        *bed.world.resource_mut::<crate::ownership::Survey>() = Default::default();
        add(&mut bed, AddOptions::default(), is_resumed);
        assert_eq!(bed.world.resource::<Adds>().waiting.len(), usize::from(!is_resumed));
    }
}

/// A command about a torrent whose add is not decided yet waits for the decision.
#[test]
fn commands_about_an_undecided_add_wait() {
    for is_added in [false, true] {
        let mut bed = bed(Lifecycle::Downloading, None);
        let hashes = bed.get::<Torrent>(bed.torrent).hashes;
        bed.world.resource_mut::<TorrentIndex>().remove(&hashes);
        *bed.world.resource_mut::<crate::ownership::Survey>() = Default::default();
        if is_added {
            add(&mut bed, AddOptions::default(), false);
        }
        assert_eq!(pause(&mut bed), (!is_added, false));
    }
}

/// Adds the bed's torrent as a new one. Returns it.
fn add_new(bed: &mut Bed, root: Option<&str>, is_resumed: bool) -> Entity {
    let hashes = bed.get::<Torrent>(bed.torrent).hashes;
    bed.world.resource_mut::<TorrentIndex>().remove(&hashes);
    let options = AddOptions {
        root: root.map(Into::into),
        ..AddOptions::default()
    };
    add(bed, options, is_resumed);
    bed.world.resource::<TorrentIndex>().get(hashes.primary()).unwrap()
}

#[test]
fn a_new_torrent_has_the_folder_of_its_user_and_a_storage_of_its_own() {
    let mut bed = bed(Lifecycle::Downloading, None);
    let mut storages = Vec::new();
    for (root, is_resumed) in [(None, false), (Some("/other"), false), (None, true)] {
        let added = add_new(&mut bed, root, is_resumed);
        let opening: &Opening = bed.get(added);
        assert_eq!((opening.has_root, opening.is_resumed), (root.is_some(), is_resumed));
        storages.push(bed.get::<Storage>(added).id);
    }
    storages.dedup();
    assert_eq!(storages.len(), 3);
}

/// A torrent whose files wait for its session is prepared once that is durable; if that fails, it waits visibly.
#[test]
fn files_are_prepared_when_the_session_is_durable() {
    for (lifecycle, is_good, request_count, fault_count) in [
        (Lifecycle::Adding, true, 1, 0),
        (Lifecycle::Adding, false, 0, 1),
        (Lifecycle::Paused, true, 0, 0),
        (Lifecycle::Paused, false, 0, 0),
    ] {
        let mut bed = bed(lifecycle, None);
        save(&mut bed);
        let key = OwnerKey([4; 16]);
        let known = Session {
            owner_key: Some(key),
            ..session()
        };
        let mut torrents = bed.world.query::<SavedParts>();
        let mut saved = torrents.get_mut(&mut bed.world, bed.torrent).unwrap();
        saved.record_loaded(Some(&known), None, true, None);
        let torrent = bed.torrent;
        let written = |bed: &mut Bed| {
            let result = if is_good { Ok(()) } else { Err("no space".into()) };
            bed.run_after(SessionWritten { torrent, result }, adding::settle_adds);
            let requests = bed.world.resource::<DiskPort>().outgoing().len();
            (
                requests,
                bed.world.resource_mut::<Messages<FailTorrent>>().drain().count(),
            )
        };
        assert_eq!(written(&mut bed), (0, 0), "it does not wait");
        bed.world
            .resource_mut::<opening::preparing::AwaitingClaims>()
            .0
            .insert(torrent);
        assert_eq!(written(&mut bed), (request_count, fault_count));
    }
}

fn users_file(len: u64) -> DiskDone {
    let file = FoundFile {
        stamp: FileStamp {
            len,
            seconds: 7,
            nanos: 0,
            changed_ns: None,
        },
        id: FileId {
            device: 1,
            inode: 5,
            born_ns: None,
        },
        provenance: Provenance::Found,
    };
    match nothing_there() {
        DiskDone::Opened(found) => DiskDone::Opened(FoundFiles {
            files: vec![Some(file)],
            ..found
        }),
        other => other,
    }
}

/// A file that is too short cannot be complete: it would have to change, so a new torrent is refused for it.
#[test]
fn a_short_file_of_the_user_refuses_new_torrents_only() {
    let resumed = || Opening {
        is_resumed: true,
        ..Opening::default()
    };
    for (opening, len, is_refused) in [
        (Opening::default(), 5, true),
        (Opening::default(), 98304, false),
        (resumed(), 5, false),
    ] {
        let mut bed = bed(Lifecycle::Adding, Some(opening));
        let _answer = await_new(&mut bed);
        open(&mut bed, Ok(users_file(len)));
        assert_eq!(bed.world.resource::<Adds>().refused.contains(&bed.torrent), is_refused);
        let id = bed.get::<Torrent>(bed.torrent).id();
        let registry = bed.world.resource::<crate::ownership::FileRegistry>();
        assert_eq!(registry.contains(id), !is_refused, "its files are known to others");
    }
}

/// The permission to change files ends where another torrent uses them.
#[test]
fn a_torrent_that_shares_its_files_opens_them_without_the_right_to_change_them() {
    for (is_shared, overwrites) in [(false, true), (true, false)] {
        let opening = Opening {
            is_resumed: true,
            ..Opening::default()
        };
        let mut bed = bed(Lifecycle::Adding, Some(opening));
        bed.world.trigger(OptionsGiven {
            torrent: bed.torrent,
            name: None,
            overwrite: true,
            has_moved: false,
        });
        if is_shared {
            let keys = crate::ownership::FolderKeys::new(std::path::Path::new("/downloads"));
            let keys = keys.of_table(&bed.get::<Content>(bed.torrent).0.info.files, |_| None);
            let other = InfoHash([8; 20]);
            bed.world
                .resource_mut::<crate::ownership::FileRegistry>()
                .set(other, &"other".into(), keys);
        }
        open(&mut bed, Ok(users_file(5)));
        let requests = bed.world.resource::<DiskPort>().outgoing();
        let is_opened_again = requests
            .iter()
            .any(|request| matches!(request, DiskRequest::Open { .. }));
        assert_eq!(is_opened_again, is_shared);
        let claims = bed.get::<SessionState>(bed.torrent).claims(None);
        assert_eq!(claims.overwrite != Default::default(), overwrites);
    }
}

/// Loads a torrent's saved state.
fn load(opening: Opening, loaded: Loaded) -> Bed {
    let mut bed = bed(Lifecycle::Adding, Some(opening));
    let tag = JobTag::new(opening::LOAD, bed.torrent);
    let outcome = Ok(StateDone::Loaded(Box::new(loaded)));
    bed.open_port::<StateRequest, StateEvent>(vec![StateEvent { tag, outcome }]);
    bed.run(opening::loading::collect_loaded);
    bed
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

/// A session without metadata is about no file.
#[test]
fn a_session_about_the_files_is_known_and_registers_them() {
    for (lacks_metadata, is_known) in [(false, true), (true, false)] {
        let loaded = Loaded {
            session: Some(saved(lacks_metadata)),
            has_metainfo: true,
            ..Loaded::default()
        };
        let bed = load(Opening::default(), loaded);
        assert_eq!(bed.get::<Opening>(bed.torrent).is_known, is_known);
        let id = bed.get::<Torrent>(bed.torrent).id();
        let registry = bed.world.resource::<crate::ownership::FileRegistry>();
        assert_eq!(registry.contains(id), is_known, "a new torrent claims nothing yet");
    }
}

/// A session that arrives while the files are being closed opens none: nothing would close it again.
#[test]
fn a_session_that_arrives_at_the_end_of_a_stop_opens_nothing() {
    for (phase, is_opened) in [(StopPhase::WriteSession, true), (StopPhase::Release, false)] {
        let mut bed = bed(Lifecycle::Stopping { phase }, Some(Opening::default()));
        bed.world.entity_mut(bed.torrent).insert(Stopping { phase });
        let tag = JobTag::new(opening::LOAD, bed.torrent);
        let outcome = Ok(StateDone::Loaded(Box::new(loaded(&bed, Some(saved(false))))));
        bed.open_port::<StateRequest, StateEvent>(vec![StateEvent { tag, outcome }]);
        bed.run(opening::loading::collect_loaded);
        let requests = bed.world.resource::<DiskPort>().outgoing();
        let mut opens = requests
            .iter()
            .filter(|request| matches!(request, DiskRequest::Open { .. }));
        assert_eq!(opens.next().is_some(), is_opened);
    }
}

/// The data that a damaged session recovers is about its own folder.
#[test]
fn salvaged_files_are_claimed_unless_there_is_a_session_or_another_folder() {
    for (has_session, has_root, is_claimed) in [(false, false, true), (false, true, false), (true, false, false)] {
        let opening = Opening {
            has_root,
            ..Opening::default()
        };
        let loaded = Loaded {
            session: has_session.then(|| saved(false)),
            has_metainfo: true,
            salvage: Salvage {
                created: [(0, None)].into(),
                ..Salvage::default()
            },
            ..Loaded::default()
        };
        let bed = load(opening, loaded);
        let claims = bed.get::<SessionState>(bed.torrent).claims(None);
        assert_eq!(!claims.created.is_empty(), is_claimed);
        assert_eq!(bed.get::<Opening>(bed.torrent).is_known, is_claimed || has_session);
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

#[test]
fn a_pause_begins_when_the_torrent_can_be_paused() {
    let paused = |bed: &mut Bed, readiness| {
        bed.world.entity_mut(bed.torrent).insert((Desired::Pause, readiness));
    };
    let mut running = bed(Lifecycle::Downloading, None);
    assert_eq!(pause(&mut running), (false, true));
    let mut is_paused = bed(Lifecycle::Paused, None);
    paused(&mut is_paused, Readiness::Closed);
    assert_eq!(pause(&mut is_paused), (true, false));
    let mut leaving = bed(Lifecycle::Downloading, None);
    leaving.world.entity_mut(leaving.torrent).insert(Desired::Stop);
    assert_eq!(pause(&mut leaving), (false, false));
    let mut undecided = bed(Lifecycle::Adding, Some(Opening::default()));
    assert_eq!(pause(&mut undecided), (false, false), "it may yet be refused");
    let mut again = bed(Lifecycle::Adding, Some(Opening::again()));
    assert_eq!(pause(&mut again), (false, true));
}

/// A start that is being saved comes first.
#[test]
fn a_pause_waits_for_a_start() {
    let mut bed = bed(Lifecycle::Paused, None);
    bed.world
        .entity_mut(bed.torrent)
        .insert((Desired::Pause, Readiness::Closed));
    let (reply, answer) = reply::<(), StartTorrentError>();
    let torrent = bed.get::<Torrent>(bed.torrent).id();
    let mut queue = bed.world.resource_mut::<CommandQueue<PauseOrStart>>();
    queue.0.push_back(StartTorrent { torrent, reply }.into());
    bed.run(pausing::take_pauses_and_starts);
    assert_eq!(pause(&mut bed), (false, false));
    // An earlier save ends; that of the start follows.
    let torrent = bed.torrent;
    let written = || SessionWritten {
        torrent,
        result: Ok(()),
    };
    bed.run_after(written(), starting::settle_starts);
    assert!(answer.try_recv().is_err());
    save(&mut bed);
    bed.run_after(written(), starting::settle_starts);
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    assert_eq!(*bed.get::<Desired>(torrent), Desired::Run);
}

/// A caller that requests a pause twice is answered when the torrent is paused.
#[test]
fn a_pause_that_is_running_is_not_over() {
    let mut bed = bed(Lifecycle::Downloading, None);
    assert_eq!(pause(&mut bed), (false, true));
    bed.world.entity_mut(bed.torrent).insert(Readiness::Ready);
    assert_eq!(pause(&mut bed), (false, true));
}

fn stop(bed: &mut Bed) {
    let command = StopTorrent {
        torrent: bed.get::<Torrent>(bed.torrent).id(),
        reply: Reply::ignored(),
    };
    bed.world
        .resource_mut::<CommandQueue<StopTorrent>>()
        .0
        .push_back(command);
    bed.run(stopping::begin_stops);
}

/// A stop that is requested again, by a user who is in a hurry, takes no longer than a save.
#[test]
fn a_second_stop_hastens_the_first_and_a_pause_does_not() {
    for is_stop in [true, false] {
        let mut bed = bed(Lifecycle::Downloading, None);
        let limits = &mut bed
            .world
            .resource_mut::<ecs_torrent_components::settings::Settings>()
            .lifecycle;
        (limits.halt_timeout_ms, limits.save_timeout_ms) = (90_000, 1_000);
        for _ in 0..2 {
            match is_stop {
                true => stop(&mut bed),
                false => assert_eq!(pause(&mut bed), (false, true)),
            }
        }
        let torrent = bed.torrent;
        let label = bed.get::<Torrent>(torrent).clone();
        let mut participants = bed.world.resource_mut::<crate::stop_participants::StopParticipants>();
        let next = participants.poll(torrent, label.label(), NOW).unwrap_err();
        assert_eq!(next, NOW + Duration::from_secs(if is_stop { 1 } else { 90 }));
    }
}

/// A removal joins a stop until the session is written; after that the session is removed later.
#[test]
fn a_removal_joins_a_stop_whose_session_is_not_written() {
    for (is_stop, is_written, joins) in [(true, false, true), (true, true, false), (false, true, true)] {
        let mut bed = bed(Lifecycle::Downloading, None);
        match is_stop {
            true => stop(&mut bed),
            false => assert_eq!(pause(&mut bed), (false, true)),
        }
        let torrent = bed.torrent;
        let mut stops = bed.world.resource_mut::<stop_requests::StopsInOrder>();
        stops.turn(torrent, StopPhase::WriteSession);
        if is_written {
            let waiters = stops.waiters.get_mut(&torrent).unwrap();
            waiters.result = Some(Ok(Default::default()));
        }
        let command = RemoveTorrent {
            torrent: bed.get::<Torrent>(torrent).id(),
            options: RemoveOptions::default(),
            reply: Reply::ignored(),
        };
        bed.world
            .resource_mut::<CommandQueue<RemoveTorrent>>()
            .0
            .push_back(command);
        bed.run(stopping::begin_stops);
        assert_eq!(bed.world.resource::<CommandQueue<RemoveTorrent>>().0.is_empty(), joins);
    }
}

/// A torrent that is removed while it is paused is not paused.
#[test]
fn a_pause_that_a_removal_joins_finds_no_torrent() {
    for is_removed in [false, true] {
        let mut bed = bed(Lifecycle::Downloading, None);
        let names = bed.get::<Torrent>(bed.torrent).clone();
        let (reply, paused) = reply();
        let torrent = names.id();
        bed.world
            .resource_mut::<CommandQueue<PauseOrStart>>()
            .0
            .push_back(PauseTorrent { torrent, reply }.into());
        bed.run(pausing::take_pauses_and_starts);
        bed.run(stopping::begin_stops);
        if is_removed {
            let command = RemoveTorrent {
                torrent,
                options: RemoveOptions::default(),
                reply: Reply::ignored(),
            };
            bed.world
                .resource_mut::<CommandQueue<RemoveTorrent>>()
                .0
                .push_back(command);
            bed.run(stopping::begin_stops);
        }
        let entity = bed.torrent;
        let mut stops = bed.world.resource_mut::<stop_requests::StopsInOrder>();
        let waiters = stops.waiters.remove(&entity).unwrap();
        waiters.answer(&names, &Ok(Default::default()));
        assert_eq!(paused.try_recv().unwrap().is_err(), is_removed);
    }
}

fn supply(bed: &mut Bed, info: Bytes) -> Answer<(), SupplyError> {
    let (reply, answer) = reply();
    let torrent = bed.get::<Torrent>(bed.torrent).id();
    let command = SupplyMetadata { torrent, info, reply };
    let mut queue = bed.world.resource_mut::<CommandQueue<SupplyMetadata>>();
    queue.0.push_back(command);
    bed.run(metadata::supply_metadata);
    answer
}

/// Metadata is taken when the files of all torrents are known.
#[test]
fn supplied_metadata_waits_for_the_survey() {
    for is_surveyed in [false, true] {
        let mut bed = bed(Lifecycle::Downloading, None);
        save(&mut bed);
        bed.world
            .init_resource::<ecs_torrent_components::candidates::CandidateSources>();
        if !is_surveyed {
            *bed.world.resource_mut::<crate::ownership::Survey>() = Default::default();
        }
        let info = bed.get::<Content>(bed.torrent).0.info_bytes.clone();
        let answer = supply(&mut bed, info);
        assert_eq!(answer.try_recv().is_ok(), is_surveyed);
    }
}

/// The bytes of the info dictionary are the torrent's, and describe no torrent that this engine can use.
#[test]
fn unusable_metadata_fails_its_torrent() {
    for (info, is_its) in [
        (&b"d4:name1:xe"[..], true),
        (b"d4:name1:ye", false),
        (b"d4:name1:xe1:a1:b", false),
    ] {
        let mut bed = bed(Lifecycle::FetchingMetadata, None);
        save(&mut bed);
        bed.world.entity_mut(bed.torrent).remove::<(Content, Layout)>();
        let hashes = InfoHashes::of(b"d4:name1:xe", true, false);
        bed.get_mut::<Torrent>(bed.torrent).hashes = hashes;
        let entity = bed.torrent;
        bed.world.resource_mut::<TorrentIndex>().insert(&hashes, entity);
        let answer = supply(&mut bed, info.to_vec().into());
        match (answer.try_recv().unwrap().unwrap_err(), is_its) {
            (SupplyError::Invalid { .. }, true) | (SupplyError::WrongHash(_), false) => {}
            (error, _) => panic!("{error}"),
        }
        let failed: Vec<_> = bed.world.resource_mut::<Messages<FailTorrent>>().drain().collect();
        assert_eq!(failed.len(), usize::from(is_its));
        let is_plain = |fail: &FailTorrent| fail.reason.starts_with("its metadata cannot be used: ");
        assert!(failed.iter().all(is_plain), "{failed:?}");
    }
}

/// The session of a torrent whose metadata the state folder has is read when that metadata is taken, however long that
/// takes.
#[test]
fn a_session_waits_for_stored_metadata() {
    let mut bed = bed(Lifecycle::FetchingMetadata, Some(Opening::default()));
    *bed.world.resource_mut::<crate::ownership::Survey>() = Default::default();
    let loaded = loaded(&bed, Some(saved(false)));
    bed.world.entity_mut(bed.torrent).remove::<(Content, Layout)>();
    let tag = JobTag::new(opening::LOAD, bed.torrent);
    let outcome = Ok(StateDone::Loaded(Box::new(loaded)));
    bed.open_port::<StateRequest, StateEvent>(vec![StateEvent { tag, outcome }]);
    for _ in 0..3 {
        bed.run(opening::loading::collect_loaded);
        bed.run(metadata::supply_metadata);
        assert!(!bed.get::<SessionState>(bed.torrent).is_loaded());
    }
    bed.world.resource_mut::<crate::ownership::Survey>().end_resuming(true);
    bed.run(metadata::supply_metadata);
    bed.run(opening::loading::collect_loaded);
    assert!(bed.get::<SessionState>(bed.torrent).is_loaded());
    assert!(bed.get::<Opening>(bed.torrent).is_known);
}

/// A torrent whose session cannot be written stays listed, and says what had been asked of it.
#[test]
fn an_end_that_cannot_be_saved_is_a_fault() {
    for (is_stop, begins) in [(true, "stopped, but"), (false, "paused, but")] {
        let mut bed = bed(Lifecycle::Paused, None);
        bed.world
            .entity_mut(bed.torrent)
            .insert((Desired::Pause, Readiness::Closed));
        let (reply, started) = reply::<(), StartTorrentError>();
        let torrent = bed.get::<Torrent>(bed.torrent).id();
        bed.world
            .resource_mut::<CommandQueue<PauseOrStart>>()
            .0
            .push_back(StartTorrent { torrent, reply }.into());
        bed.run(pausing::take_pauses_and_starts);
        bed.world
            .entity_mut(bed.torrent)
            .insert((Desired::Run, Readiness::Ready));
        let entity = bed.torrent;
        let ending = match is_stop {
            true => Ending::Save { until_resumed: true },
            false => Ending::Pause,
        };
        if is_stop {
            stop(&mut bed);
        } else {
            bed.world
                .resource_mut::<stop_requests::StopsInOrder>()
                .torrents
                .push(entity);
            bed.world.entity_mut(entity).insert(Desired::Pause);
        }
        let phase = StopPhase::WriteSession;
        bed.world.entity_mut(entity).insert(Stopping { phase });
        bed.world
            .resource_mut::<stop_requests::StopsInOrder>()
            .turn(entity, phase);
        let turn = StopTurn {
            torrent: entity,
            ending,
        };
        let limit = Duration::from_secs(1);
        let mut participants = bed.world.resource_mut::<crate::stop_participants::StopParticipants>();
        participants.begin(turn, phase, NOW, limit);
        bed.world.resource_mut::<Clock>().advance_to(NOW + limit);
        bed.run(stopping::advance_stops);
        let fault = bed.get::<Fault>(entity).0.as_ref().expect("a fault");
        assert!(fault.reason.starts_with(begins), "{}", fault.reason);
        assert!(matches!(started.try_recv(), Ok(Err(StartTorrentError::Unsaved { .. }))));
    }
}

/// Metadata is taken whether the saved state is known or not, but not while the torrent is being paused.
#[test]
fn supplied_metadata_waits_for_the_end_of_a_pause() {
    let stopping = Lifecycle::Stopping {
        phase: StopPhase::HaltDownloads,
    };
    for (lifecycle, is_taken) in [(stopping, false), (Lifecycle::Paused, true)] {
        let mut bed = bed(lifecycle, None);
        bed.world.entity_mut(bed.torrent).insert(Desired::Pause);
        let info = bed.get::<Content>(bed.torrent).0.info_bytes.clone();
        let answer = supply(&mut bed, info);
        assert_eq!(answer.try_recv().is_ok(), is_taken);
    }
}
