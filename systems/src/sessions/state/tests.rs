//! Tests of [`SessionState`]: a torrent's knowledge of the owners of its files.

use ecs_torrent_components::session::{Runs, VolumeId};
use ecs_torrent_engine::ports::disk::FoundFile;
use ecs_torrent_protocol::files::FileEntry;

use super::*;
use crate::testing::session;

fn id(inode: u64) -> FileId {
    FileId {
        device: 1,
        inode,
        born_ns: None,
    }
}

fn found(inode: u64, provenance: Provenance) -> Option<FoundFile> {
    let stamp = FileStamp {
        len: 10,
        seconds: 7,
        nanos: 0,
        changed_ns: None,
    };
    Some(FoundFile {
        stamp,
        id: id(inode),
        provenance,
    })
}

fn volume(id: &str) -> Volume {
    Volume {
        mount_point: "/mnt".into(),
        id: Some(VolumeId { kind: 1, id: id.into() }),
    }
}

fn state(wants_overwrite: bool) -> SessionState {
    SessionState::new(OwnerKey([1; 16]), None, wants_overwrite)
}

/// Records the files of a torrent, each of 10 bytes except for the last one, which is empty.
fn look(state: &mut SessionState, files: Vec<Option<FoundFile>>, may_create: bool) {
    let last = files.len() - 1;
    let entry = |number: usize| FileEntry {
        path: number.to_string().into(),
        len: if number == last { 0 } else { 10 },
        offset: number as u64 * 10,
        attributes: Default::default(),
    };
    let table = FileTable::new((0..files.len()).map(entry).collect());
    let found = FoundFiles {
        root: Path::new("/downloads").into(),
        volume: volume("a").into(),
        folders: Default::default(),
        files,
    };
    state.record_found(found, &table, None, may_create);
}

fn created(state: &SessionState) -> Vec<(usize, Option<FileId>)> {
    state.claims(None).created.into_iter().collect()
}

fn permitted(state: &SessionState) -> Vec<(usize, FileId)> {
    match state.claims(None).overwrite {
        Overwrite::Only(files) => files.into_iter().collect(),
        Overwrite::AllFound(_) => panic!("all files"),
    }
}

#[test]
fn a_file_is_claimed_durably_before_it_is_created() {
    let mut state = state(false);
    let files = || vec![None, found(2, Provenance::Found), None];
    look(&mut state, files(), false);
    assert_eq!(
        (created(&state), state.may_create()),
        (vec![], true),
        "nothing to create"
    );
    look(&mut state, files(), true);
    assert_eq!(created(&state), [(0, None), (2, None)]);
    assert!(!state.may_create(), "no durable session says so");
    state.claims.durable = state.claims.current;
    assert!(state.may_create());
    look(&mut state, files(), true);
    assert!(state.may_create(), "nothing new is claimed");
    look(
        &mut state,
        vec![found(1, Provenance::Created), found(2, Provenance::Found), None],
        true,
    );
    assert_eq!(created(&state), [(0, Some(id(1))), (2, None)]);
    look(
        &mut state,
        vec![found(9, Provenance::Found), found(2, Provenance::Found), None],
        true,
    );
    assert_eq!(created(&state), [(2, None)], "the user replaced the file");
}

#[test]
fn a_permission_covers_the_files_that_are_there() {
    let files = || {
        let [users, ours, empty] = [Provenance::Found, Provenance::Created, Provenance::Found];
        vec![found(1, users), found(2, ours), None, found(4, empty)]
    };
    let mut state = state(true);
    look(&mut state, files(), false);
    assert_eq!(
        state.claims(None).overwrite,
        Overwrite::AllFound(None),
        "nothing is changed yet"
    );
    look(&mut state, files(), true);
    assert_eq!(permitted(&state), [(0, id(1))], "not ours, and not the empty one");
    assert!(!state.wants_overwrite());
    assert!(!state.may_create(), "the permission is saved first");
    state.claims.durable = state.claims.current;
    assert!(state.may_create());
}

#[test]
fn a_shared_torrent_changes_no_existing_file() {
    let mut without = state(false);
    assert!(!without.stop_overwriting(), "it was not allowed anyway");
    let mut allowed = state(true);
    assert!(allowed.stop_overwriting());
    assert_eq!(permitted(&allowed), []);
    assert!(!allowed.stop_overwriting(), "it has stopped already");
    let mut looked = state(true);
    look(&mut looked, vec![found(1, Provenance::Found), None], true);
    assert!(looked.stop_overwriting());
    assert_eq!(permitted(&looked), []);
}

#[test]
fn files_that_move_are_not_known_any_more() {
    let renamed = |name: &str| Some(name.to_owned());
    let known = || {
        let mut state = SessionState::new(OwnerKey([1; 16]), renamed("a"), false);
        look(&mut state, vec![found(1, Provenance::Created), None], true);
        state
    };
    let is_kept = |name, has_moved| {
        let mut state = known();
        state.renew(name, false, has_moved);
        assert_eq!(state.id(0).is_some(), !created(&state).is_empty());
        state.id(0).is_some()
    };
    assert!(is_kept(None, false) && is_kept(renamed("a"), false));
    assert!(!is_kept(None, true) && !is_kept(renamed("b"), false) && !is_kept(renamed("a"), true));
}

#[test]
fn a_session_belongs_to_the_paths_that_the_user_chose() {
    let named = |path: &str| Session {
        file_names: [(0, path.into())].into(),
        ..session()
    };
    let mut state = state(false);
    assert!(state.has_names_of(&session()) && state.has_names_of(&named("a")));
    state.file_names = named("b").file_names;
    assert!(state.has_names_of(&named("b")));
    assert!(!state.has_names_of(&session()) && !state.has_names_of(&named("a")));
}

#[test]
fn a_session_belongs_to_the_name_that_the_user_chose() {
    let named = |name: Option<&str>| Session {
        renamed: name.map(Into::into),
        ..session()
    };
    let mut state = state(false);
    assert!(state.has_names_of(&named(None)) && state.has_names_of(&named(Some("a"))));
    state.renew(Some("a".into()), false, false);
    assert!(state.has_names_of(&named(Some("a"))));
    assert!(!state.has_names_of(&named(None)) && !state.has_names_of(&named(Some("b"))));
    state.renew(None, false, false);
    assert!(!state.has_names_of(&named(None)), "the name stays");
}

#[test]
fn a_session_records_whose_the_files_are() {
    let saved = |overwrite| Session {
        files: vec![None; 4],
        created: Runs::of([0]),
        permitted: Runs::of([1, 3]),
        ids: vec![Some(id(1)), Some(id(2)), Some(id(3)), None],
        owner_key: Some(OwnerKey([9; 16])),
        overwrite,
        ..session()
    };
    let mut known = state(false);
    known.record_loaded(Some(&saved(false)), None, true);
    assert_eq!(created(&known), [(0, Some(id(1)))]);
    assert_eq!(permitted(&known), [(1, id(2))], "the identity of file 3 is not known");
    assert_eq!(known.claims(None).key, Some(OwnerKey([9; 16])));
    let mut all = state(false);
    all.record_loaded(Some(&saved(true)), None, true);
    assert_eq!(
        permitted(&all),
        [(1, id(2)), (2, id(3))],
        "all but those that it created"
    );
    // The knowledge of this run is newer.
    let mut seen = state(false);
    look(&mut seen, vec![found(7, Provenance::Created), None], true);
    seen.record_loaded(Some(&saved(false)), None, true);
    assert_eq!(created(&seen), [(0, Some(id(7))), (1, None)]);
}

/// A later request adds to the pieces that an earlier one left unchecked, and is saved too.
#[test]
fn requests_of_checks_add_up() {
    let set = |pieces: &[u32]| {
        let mut set = Bitfield::new(4);
        for piece in pieces {
            set.insert(*piece);
        }
        set
    };
    let mut state = state(false);
    state.request_check(Some(&set(&[1])));
    assert!(state.has_saved_additions());
    assert_eq!(state.check_runs(), Runs::of([1]));
    state.request_check(Some(&set(&[1])));
    assert!(state.has_saved_additions(), "nothing new");
    let saved = Session {
        recheck: true,
        pieces: 4,
        recheck_pieces: Runs::of([1, 2]),
        ..session()
    };
    state.record_loaded(Some(&saved), None, true);
    assert_eq!(state.check_runs(), Runs::of([1, 2]));
    assert!(!state.has_saved_additions());
    state.request_check(None);
    assert!(state.needs_check() && state.check_pieces().is_none(), "all");
    state.request_check(Some(&set(&[3])));
    assert!(state.check_pieces().is_none(), "still all");
    state.record_result(&set(&[]));
    assert!(!state.needs_check());
    state.request_check(Some(&set(&[3])));
    assert_eq!(state.check_runs(), Runs::of([3]));
}

/// The key of a file that is not found yet is that of the session.
#[test]
fn files_are_known_by_their_session_before_they_are_found() {
    let saved = Session {
        files: vec![None; 4],
        created: Runs::of([2]),
        ids: vec![Some(id(1)), Some(id(2)), Some(id(3)), None],
        ..session()
    };
    let mut known = state(false);
    known.record_loaded(Some(&saved), None, true);
    assert_eq!(known.known_ids(), [None, None, Some(id(3))]);
}

#[test]
fn a_permission_alone_is_saved_before_it_is_used() {
    let mut state = state(true);
    look(
        &mut state,
        vec![found(1, Provenance::Found), found(2, Provenance::Found)],
        true,
    );
    assert_eq!(permitted(&state), [(0, id(1))]);
    assert!(!state.may_create());
}

#[test]
fn a_lost_piece_counts_again_once_it_is_rewritten() {
    let saved = Session {
        lost: Runs::of([1, 2]),
        ..session()
    };
    let mut state = state(false);
    state.record_loaded(Some(&saved), None, true);
    state.record_rewritten(1);
    assert_eq!(state.lost().iter().collect::<Vec<_>>(), [2]);
}

#[test]
fn what_the_state_folder_had_is_known() {
    let mut state = state(false);
    assert!(!state.is_known());
    state.record_loaded(None, None, false);
    assert!(!state.is_known() && state.is_loaded());
    state.record_loaded(Some(&session()), None, true);
    assert!(state.is_known());
}

/// A torrent that is opened again in the same run keeps its knowledge since the last save.
#[test]
fn what_this_run_knows_outlives_a_load() {
    let mut state = state(true);
    look(
        &mut state,
        vec![found(1, Provenance::Found), found(2, Provenance::Created), None],
        true,
    );
    state.has_deadline = true;
    state.is_last = true;
    state.has_failed_sync = true;
    state.set_paused(true);
    state.durability.record_failed([3].into_iter(), 5);
    let (before, generation) = (state.claims(None), state.generation);
    state.is_loaded = true;
    state.record_reopening();
    assert!(!state.is_loaded() && !state.is_opened);
    state.is_opened = true;
    state.record_loaded(Some(&session()), None, true);
    let after = state.claims(None);
    assert_eq!((after.created, after.stamps), (before.created, before.stamps));
    assert_eq!(permitted(&state), [(0, id(1))]);
    assert_eq!(state.id(1), Some(id(2)));
    assert!(state.has_deadline && state.is_last && state.has_failed_sync);
    assert!(state.intent.is_paused);
    assert_eq!(state.lost().iter().collect::<Vec<_>>(), [3]);
    assert_eq!(
        state.generation,
        generation + 1,
        "answers to requests of before do not count"
    );
    state.record_loaded(Some(&session()), None, true);
    assert_eq!(state.generation, generation + 2);
}

/// The key of the marks is durable before a file is created with it.
#[test]
fn a_session_with_another_key_is_written_before_files_are_created() {
    for (key, may_create) in [
        (None, false),
        (Some(OwnerKey([1; 16])), true),
        (Some(OwnerKey([9; 16])), true),
    ] {
        let saved = Session {
            owner_key: key,
            ..session()
        };
        let mut state = state(false);
        state.record_loaded(Some(&saved), None, true);
        assert_eq!(state.may_create(), may_create, "{key:?}");
    }
}

#[test]
fn claims_to_files_that_were_not_created_end_with_the_run() {
    for has_failed_sync in [false, true] {
        let mut state = state(false);
        look(&mut state, vec![None, found(2, Provenance::Created), None], true);
        assert!(!state.has_absent_claims(), "its pieces are not known");
        state.record_result(&Bitfield::new(5));
        assert!(state.has_absent_claims());
        state.has_failed_sync = has_failed_sync;
        state.drop_absent_claims();
        assert_eq!(created(&state).len(), if has_failed_sync { 3 } else { 1 });
        assert_eq!(state.has_absent_claims(), has_failed_sync, "the marks decide");
    }
}

#[test]
fn a_sync_reports_new_files_once() {
    let mut state = state(false);
    look(&mut state, vec![None, None], true);
    let synced = |inode| SyncedFile {
        index: 0,
        stamp: None,
        id: Some(id(inode)),
        provenance: Provenance::Created,
    };
    assert!(state.record_synced(&synced(1)));
    assert!(!state.record_synced(&synced(1)));
    assert!(state.record_synced(&synced(2)));
    assert_eq!(created(&state)[0], (0, Some(id(2))));
}

#[test]
fn running_writes_of_blocks_are_counted() {
    let mut state = state(false);
    assert!(!state.is_spilling());
    state.add_spills(2);
    state.add_spills(1);
    assert_eq!(state.spill_count, 3);
    assert!(state.is_spilling());
}

#[test]
fn changes_are_saved_and_time_only_in_portions() {
    let summary = Summary::of_session(&session());
    let later = |seconds| Summary {
        seconds_active: summary.seconds_active + seconds,
        ..summary
    };
    assert!(!later(9).differs_from(&summary, 10));
    assert!(later(10).differs_from(&summary, 10));
    let counted = Summary {
        have_count: 1,
        ..summary
    };
    assert!(counted.differs_from(&summary, 10));
    let examined = Session {
        files: vec![None],
        ..session()
    };
    assert!(Summary::of_session(&examined).has_result && !summary.has_result);
}

/// A permission ends with the last piece of its file: a file that replaces it later is the user's.
#[test]
fn complete_files_are_not_changed_again() {
    let mut state = state(true);
    look(
        &mut state,
        vec![found(1, Provenance::Found), found(2, Provenance::Found), None],
        true,
    );
    assert_eq!(permitted(&state), [(0, id(1)), (1, id(2))]);
    let geometry = Geometry::new(20, 5).unwrap();
    let entry = |offset: u64| FileEntry {
        path: offset.to_string().into(),
        len: 10,
        offset,
        attributes: Default::default(),
    };
    let files = FileTable::new(vec![entry(0), entry(10)]);
    let mut have = Bitfield::new(4);
    for piece in [0, 1, 2] {
        have.insert(piece);
    }
    state.drop_permissions(&have, &files, &geometry);
    assert_eq!(permitted(&state), [(1, id(2))]);
}

#[test]
fn the_folder_is_known_once_the_files_were_found() {
    let mut state = SessionState::new(OwnerKey([1; 16]), Some("a name".into()), false);
    assert!(state.folders().is_none() && state.resolved().is_none());
    let table = FileTable::new(Vec::new());
    let found = FoundFiles {
        root: Path::new("/downloads").into(),
        volume: volume("a").into(),
        folders: FolderIds {
            below: [("sub".to_owned(), id(3))].into(),
            ..FolderIds::default()
        },
        files: Vec::new(),
    };
    state.record_found(found, &table, None, false);
    assert_eq!(state.folders().unwrap().below["sub"], id(3));
    assert_eq!(state.resolved(), Some(Path::new("/downloads")));
    assert_eq!(state.names().name.as_deref(), Some("a name"));
}

/// A torrent that has data on a volume expects that volume; any other uses the one that is there.
#[test]
fn data_binds_a_torrent_to_its_volume() {
    let id = |expected: Option<Volume>| expected.and_then(|volume| volume.id);
    let empty = Session {
        volume: Some("/mnt".into()),
        volume_id: volume("a").id,
        ..session()
    };
    let full = Session {
        have: Runs::of([0]),
        ..empty.clone()
    };
    let mut state = state(false);
    assert_eq!(state.expected_volume(None), None);
    assert_eq!(id(state.expected_volume(Some(&empty))), None);
    assert_eq!(id(state.expected_volume(Some(&full))), volume("a").id);
    let older = Session {
        volume_id: None,
        ..full
    };
    assert_eq!(
        id(state.expected_volume(Some(&older))),
        None,
        "written by an earlier version"
    );
    // Pieces that were written after the session was saved count too.
    look(&mut state, vec![None, None], true);
    state.has_written = true;
    state.record_loaded(Some(&empty), None, true);
    assert_eq!(id(state.expected_volume(Some(&empty))), volume("a").id);
    state.renew(None, false, true);
    assert_eq!(id(state.expected_volume(Some(&empty))), None, "moved elsewhere");
}
