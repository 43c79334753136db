//! Tests of the steps of opening.

use super::*;

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
            overwrite_ns: None,
            has_moved: false,
            is_paused: false,
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

/// A session without metadata names no file.
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

/// The data that is recovered from a damaged session applies to its own folder only.
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
