//! Tests of the steps of a save, with the answers of the disk and of the state folder.

use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::messages::TorrentFailed;
use ecs_torrent_components::piece::ActivePiece;
use ecs_torrent_components::session::{FileId, FileStamp};
use ecs_torrent_engine::ports::disk::{DiskAction, DiskError, DiskEvent, Provenance, SyncedFile};
use ecs_torrent_engine::ports::state::{StateDone, StateError, StateEvent};
use ecs_torrent_protocol::geometry::BLOCK_SIZE;

use super::super::spilling::Run;
use super::super::{OptionsGiven, SavedParts, SessionsPlugin};
use super::*;
use crate::picking::PickingPlugin;
use crate::testing::{Bed, session};

const STAMP: FileStamp = FileStamp {
    len: 98304,
    seconds: 7,
    nanos: 0,
    changed_ns: None,
};

/// Returns the saved state of a [`Bed`]'s torrent that holds nothing.
fn saved() -> Session {
    Session {
        total_size: 98304,
        piece_length: 32768,
        pieces: 3,
        files: vec![Some(STAMP)],
        owner_key: None,
        added_at: Some(0),
        ..session()
    }
}

/// Returns a torrent whose session is durable and whose files are known, with nothing to save.
fn bed() -> Bed {
    let mut bed = Bed::new((crate::ownership::OwnershipPlugin, PickingPlugin, SessionsPlugin));
    bed.world.init_resource::<Messages<FailTorrent>>();
    let storage = Storage {
        id: StorageId(1),
        root: "/".into(),
    };
    let parts = (crate::testing::torrent(), crate::testing::content(), storage);
    bed.world.entity_mut(bed.torrent).insert((parts, Candidates::default()));
    bed.world.trigger(OptionsGiven {
        torrent: bed.torrent,
        name: None,
        overwrite: false,
        overwrite_ns: None,
        has_moved: false,
        is_paused: false,
    });
    bed.world.flush();
    load(&mut bed, &saved(), true);
    let mut state = bed.get_mut::<SessionState>(bed.torrent);
    state.record_result(&Bitfield::new(3));
    state.stamps = vec![Some(STAMP)];
    state.claims.durable = state.claims.current;
    bed
}

fn load(bed: &mut Bed, session: &Session, has_metainfo: bool) {
    let mut torrents = bed.world.query::<SavedParts>();
    let mut parts = torrents.get_mut(&mut bed.world, bed.torrent).unwrap();
    parts.record_loaded(Some(session), None, has_metainfo, None);
}

/// The requests of a step.
#[derive(Debug, PartialEq, Eq)]
enum Requested {
    Nothing,
    Write,
    Sync,
    Save { with_metainfo: bool },
}

fn requested(bed: &Bed) -> Requested {
    let (disk, state) = (bed.world.resource::<DiskPort>(), bed.world.resource::<StatePort>());
    match (disk.outgoing(), state.outgoing()) {
        ([], []) => Requested::Nothing,
        ([DiskRequest::Write { .. }], []) => Requested::Write,
        ([DiskRequest::Sync { .. }], []) => Requested::Sync,
        ([], [StateRequest::Save { metainfo, .. }]) => Requested::Save {
            with_metainfo: metainfo.is_some(),
        },
        others => panic!("{others:?}"),
    }
}

fn open_ports(bed: &mut Bed, disk: Vec<DiskEvent>, state: Vec<StateEvent>) {
    bed.open_port::<DiskRequest, DiskEvent>(disk);
    bed.open_port::<StateRequest, StateEvent>(state);
}

fn begin(bed: &mut Bed) -> Requested {
    open_ports(bed, Vec::new(), Vec::new());
    let torrent = bed.torrent;
    bed.run_after(SaveTorrent { torrent }, begin_saves);
    requested(bed)
}

/// Reports the end of the sync of the only file.
fn sync(bed: &mut Bed, stamp: Option<FileStamp>, generation: u64) -> Requested {
    let outcome = Ok(DiskDone::Synced(vec![SyncedFile {
        index: 0,
        stamp,
        id: None,
        provenance: Provenance::Found,
    }]));
    end_sync(bed, outcome, generation)
}

fn end_sync(bed: &mut Bed, outcome: Result<DiskDone, DiskError>, generation: u64) -> Requested {
    let tag = JobTag {
        number: generation,
        ..JobTag::new(SYNC, bed.torrent)
    };
    let blocks = Vec::new();
    open_ports(bed, vec![DiskEvent { tag, outcome, blocks }], Vec::new());
    bed.run(collect_synced);
    requested(bed)
}

fn generation(bed: &Bed) -> u64 {
    bed.get::<SessionState>(bed.torrent).generation
}

/// Reports the end of a write to the state folder. Returns whether it was published as a success.
fn end_save(bed: &mut Bed, is_good: bool) -> Option<bool> {
    let tag = JobTag {
        number: generation(bed),
        ..JobTag::new(SAVE, bed.torrent)
    };
    let outcome = match is_good {
        true => Ok(StateDone::Saved),
        false => Err(StateError("no space".into())),
    };
    open_ports(bed, Vec::new(), vec![StateEvent { tag, outcome }]);
    bed.run(collect_saved);
    let mut written = bed.world.resource_mut::<Messages<SessionWritten>>();
    written.drain().last().map(|written| written.result.is_ok())
}

fn scheduled(bed: &Bed) -> usize {
    bed.world.resource::<Deadlines<SaveCheck>>().len()
}

const SAVE_ONLY: Requested = Requested::Save { with_metainfo: false };

#[test]
fn a_changed_torrent_is_synced_and_then_saved() {
    let mut bed = bed();
    assert_eq!(begin(&mut bed), Requested::Nothing, "nothing has changed");
    bed.get_mut::<Counters>(bed.torrent).uploaded = 5;
    assert_eq!(begin(&mut bed), Requested::Sync);
    let generation = generation(&bed);
    assert_eq!(
        sync(&mut bed, Some(STAMP), generation + 1),
        Requested::Nothing,
        "of an earlier run of the torrent"
    );
    assert_eq!(sync(&mut bed, Some(STAMP), generation), SAVE_ONLY);
    assert_eq!(end_save(&mut bed, true), Some(true));
    assert_eq!(begin(&mut bed), Requested::Nothing);
}

/// A choice of files that comes while a sync runs is in the session that is written after it, which makes it durable.
#[test]
fn a_choice_during_a_sync_is_saved_with_it() {
    let mut bed = bed();
    bed.get_mut::<Counters>(bed.torrent).uploaded = 5;
    assert_eq!(begin(&mut bed), Requested::Sync);
    let mut choice = FileChoice::default();
    choice.set(0, ecs_torrent_components::wanted::FilePriority::High);
    bed.world.entity_mut(bed.torrent).insert(choice);
    bed.get_mut::<SessionState>(bed.torrent).record_addition();
    let generation = generation(&bed);
    assert_eq!(sync(&mut bed, Some(STAMP), generation), SAVE_ONLY);
    let [StateRequest::Save { session, .. }] = bed.world.resource::<StatePort>().outgoing() else {
        panic!("a save was requested");
    };
    assert_eq!(session.high, Runs::of([0]));
    assert_eq!(end_save(&mut bed, true), Some(true));
    assert!(bed.get::<SessionState>(bed.torrent).has_saved_additions());
}

#[test]
fn a_save_has_a_reason() {
    let begins = |change: fn(&mut SessionState)| {
        let mut bed = bed();
        change(&mut bed.get_mut::<SessionState>(bed.torrent));
        begin(&mut bed)
    };
    assert_eq!(begins(|_| {}), Requested::Nothing);
    assert_eq!(begins(|state| state.has_metainfo = false), Requested::Sync);
    assert_eq!(
        begins(|state| state.claims.current += 1),
        Requested::Sync,
        "files are to be created"
    );
    assert_eq!(begins(|state| state.is_loaded = false), Requested::Nothing);
    assert_eq!(begins(|state| state.created = [(0, None)].into()), Requested::Nothing);
    let absent = |state: &mut SessionState| {
        state.created.insert(0, None);
        state.is_last = true;
    };
    assert_eq!(
        begins(absent),
        Requested::Sync,
        "a file that was not created is claimed no more"
    );
    assert_eq!(begins(|state| state.is_last = true), Requested::Nothing);
    assert_eq!(
        begins(|state| {
            state.created.insert(
                0,
                Some(FileId {
                    device: 1,
                    inode: 1,
                    born_ns: None,
                }),
            );
            state.is_last = true;
        }),
        Requested::Nothing
    );
}

#[test]
fn a_torrent_without_its_torrent_file_saves_that_too() {
    let mut bed = bed();
    bed.get_mut::<SessionState>(bed.torrent).has_metainfo = false;
    assert_eq!(begin(&mut bed), Requested::Sync);
    let generation = generation(&bed);
    let expected = Requested::Save { with_metainfo: true };
    assert_eq!(sync(&mut bed, Some(STAMP), generation), expected);
    end_save(&mut bed, true);
    assert!(bed.get::<SessionState>(bed.torrent).has_metainfo);
}

/// The blocks of unfinished pieces are written first.
#[test]
fn a_session_is_written_after_the_blocks_that_it_names() {
    let mut bed = bed();
    let peer = bed.peer();
    for index in [0, 1] {
        let piece = bed.piece(index);
        bed.get_mut::<ActivePiece>(piece)
            .receive(1, Some(peer), Default::default());
    }
    open_ports(&mut bed, Vec::new(), Vec::new());
    let torrent = bed.torrent;
    bed.run_after(SaveTorrent { torrent }, begin_saves);
    let writes = bed.world.resource::<DiskPort>().outgoing();
    let tags: Vec<JobTag> = writes
        .iter()
        .map(|write| match write {
            DiskRequest::Write { tag, .. } => *tag,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(tags.len(), 2);
    for (tag, expected) in tags.into_iter().zip([Requested::Nothing, Requested::Sync]) {
        let (outcome, blocks) = (Ok(DiskDone::Written), Vec::new());
        open_ports(&mut bed, vec![DiskEvent { tag, outcome, blocks }], Vec::new());
        bed.run(collect_spilled);
        assert_eq!(requested(&bed), expected);
    }
    let partials = &bed.get::<Partials>(bed.torrent).0;
    assert!(partials.values().all(|blocks| blocks.iter().eq([1])) && partials.len() == 2);
}

/// A stop drops unfinished pieces while their blocks are written. Blocks that cannot be written are lost then; while
/// the torrent runs, they are still in memory.
#[test]
fn blocks_that_a_stop_cannot_write_are_counted() {
    for is_last in [true, false] {
        let mut bed = bed();
        let torrent = bed.torrent;
        let (piece, first, count) = (2, 1, 1);
        let run = Run { piece, first, count };
        let spill = Spill { torrent, run, is_last };
        let tag = bed.world.resource_mut::<Jobs<Spill>>().add(spilling::SPILL, spill);
        let full = std::io::ErrorKind::StorageFull.into();
        let outcome = Err(DiskError::new(DiskAction::Write, "file".into(), full));
        let blocks = Vec::new();
        open_ports(&mut bed, vec![DiskEvent { tag, outcome, blocks }], Vec::new());
        bed.run(collect_spilled);
        let dropped = &bed.world.resource::<Supply>().dropped;
        let lost = [(torrent, u64::from(BLOCK_SIZE))];
        assert_eq!(dropped[..], lost[..usize::from(is_last)]);
    }
}

/// A failed torrent may have been wrong about its pieces: its session stays as it is, except for the user's intent.
#[test]
fn a_torrent_that_is_not_certain_saves_the_intent_only() {
    let fail = |bed: &mut Bed| {
        *bed.get_mut::<Lifecycle>(bed.torrent) = Lifecycle::Failed {
            reason: "a fault".into(),
            retry_at: None,
        };
        bed.get_mut::<Counters>(bed.torrent).uploaded = 5;
    };
    let examine = |bed: &mut Bed| {
        bed.get_mut::<SessionState>(bed.torrent).has_result = false;
        bed.get_mut::<Counters>(bed.torrent).uploaded = 5;
    };
    for doubt in [fail as fn(&mut Bed), examine] {
        let mut bed = bed();
        doubt(&mut bed);
        assert_eq!(begin(&mut bed), Requested::Nothing);
        bed.get_mut::<SessionState>(bed.torrent).set_paused(true);
        assert_eq!(begin(&mut bed), SAVE_ONLY, "without a sync");
    }
}

/// The recovered parts of a damaged session replace it, with the volume of the files, before the files are examined.
#[test]
fn a_damaged_session_is_replaced_once() {
    let mut bed = bed();
    let recovered = Session {
        resolved: Some("/mnt/downloads".into()),
        volume: Some("/mnt".into()),
        paused: true,
        files: Vec::new(),
        ..saved()
    };
    load(&mut bed, &recovered, true);
    let mut state = bed.get_mut::<SessionState>(bed.torrent);
    state.set_paused(true);
    assert!(state.is_durable());
    state.record_damaged();
    assert!(!state.is_durable());
    assert_eq!(begin(&mut bed), SAVE_ONLY);
    let [StateRequest::Save { session, .. }] = bed.world.resource::<StatePort>().outgoing() else {
        panic!("no save");
    };
    assert_eq!(**session, recovered);
    assert_eq!(end_save(&mut bed, false), Some(false));
    assert_eq!(begin(&mut bed), SAVE_ONLY, "it is tried again");
    assert_eq!(end_save(&mut bed, true), Some(true));
    assert!(bed.get::<SessionState>(bed.torrent).is_durable());
    assert_eq!(begin(&mut bed), Requested::Nothing);
}

#[test]
fn a_failed_save_is_tried_again_later() {
    let mut bed = bed();
    bed.get_mut::<Counters>(bed.torrent).uploaded = 5;
    begin(&mut bed);
    let generation = generation(&bed);
    sync(&mut bed, Some(STAMP), generation);
    assert_eq!(end_save(&mut bed, false), Some(false));
    assert_eq!(scheduled(&bed), 1);
    assert_eq!(begin(&mut bed), Requested::Sync);
}

/// After a failed sync, a session that names the lost pieces is written, and the torrent can be saved again.
#[test]
fn a_failed_sync_is_recorded() {
    let mut bed = bed();
    bed.get_mut::<Have>(bed.torrent).record_stored(1);
    assert_eq!(begin(&mut bed), Requested::Sync);
    let generation = generation(&bed);
    let error = DiskError::new(DiskAction::Sync, "file".into(), std::io::ErrorKind::Other.into());
    assert_eq!(end_sync(&mut bed, Err(error), generation), SAVE_ONLY);
    assert_eq!(
        bed.get::<SessionState>(bed.torrent).lost().iter().collect::<Vec<_>>(),
        [1]
    );
    assert_eq!(bed.world.resource_mut::<Messages<FailTorrent>>().drain().count(), 1);
    assert_eq!(end_save(&mut bed, true), Some(false), "the save has failed");
    bed.get_mut::<Counters>(bed.torrent).uploaded = 5;
    assert_eq!(begin(&mut bed), Requested::Sync);
}

/// Fault 73. A torrent that ends does not check the rest of its data: its next run does.
#[test]
fn a_file_that_somebody_changed_restarts_a_torrent_that_goes_on() {
    for is_last in [false, true] {
        let mut bed = bed();
        bed.get_mut::<Counters>(bed.torrent).uploaded = 5;
        begin(&mut bed);
        bed.get_mut::<SessionState>(bed.torrent).is_last = is_last;
        let generation = generation(&bed);
        assert_eq!(sync(&mut bed, None, generation), SAVE_ONLY);
        let failed = bed.world.resource_mut::<Messages<FailTorrent>>().drain().count();
        assert_eq!(failed, usize::from(!is_last));
    }
}

/// A file that is shorter than its held pieces was truncated by another program.
#[test]
fn a_file_has_to_reach_the_end_of_its_last_held_piece() {
    let geometry = Geometry::new(98304, 32768).unwrap();
    let file = FileEntry {
        path: "file".into(),
        len: 98000,
        offset: 100,
        attributes: Default::default(),
    };
    let least = |held: &[u32]| {
        let mut have = Bitfield::new(3);
        for piece in held {
            have.insert(*piece);
        }
        least_len(&file, &geometry, &have, false)
    };
    assert_eq!(
        (least(&[]), least(&[0]), least(&[0, 1]), least(&[2])),
        (0, 32668, 65436, 98000)
    );
}

/// Reports an event of the torrent. Returns the requested saves, and the scheduled ones.
fn record<M: Message>(bed: &mut Bed, message: M) -> (usize, usize) {
    bed.world.init_resource::<Messages<BlockAccepted>>();
    bed.world.init_resource::<Messages<BlockSent>>();
    bed.world.init_resource::<Messages<PieceStored>>();
    bed.world.init_resource::<Messages<TorrentStarted>>();
    bed.world.init_resource::<Messages<TorrentCompleted>>();
    bed.world.init_resource::<Messages<TorrentFailed>>();
    bed.run_after(message, record_changes);
    let requested = bed.world.resource_mut::<Messages<SaveTorrent>>().drain().count();
    (requested, scheduled(bed))
}

#[test]
fn blocks_schedule_a_save_and_many_bytes_request_one() {
    let mut bed = bed();
    let peer = bed.peer();
    let torrent = bed.torrent;
    let accepted = || BlockAccepted { torrent, peer, len: 1 };
    assert_eq!(record(&mut bed, accepted()), (0, 1));
    assert_eq!(record(&mut bed, accepted()), (0, 1), "it is scheduled");
    bed.world.resource_mut::<Settings>().session.checkpoint_bytes = 20;
    let stored = |index| PieceStored {
        torrent,
        index,
        len: 10,
    };
    assert_eq!(record(&mut bed, stored(0)), (0, 1));
    assert_eq!(record(&mut bed, stored(1)), (1, 1));
    assert_eq!(record(&mut bed, stored(2)), (0, 1), "counted from the last save");
    assert_eq!(record(&mut bed, TorrentCompleted { torrent }), (1, 1));
}

/// The states of files that are closed are those of the last sync; a sync reports those of open files.
#[test]
fn a_paused_torrent_is_saved_with_the_files_as_they_were_closed() {
    for is_closed in [false, true] {
        let mut bed = bed();
        bed.get_mut::<SessionState>(bed.torrent).is_closed = is_closed;
        bed.get_mut::<SessionState>(bed.torrent).set_paused(is_closed);
        bed.get_mut::<Counters>(bed.torrent).uploaded = 5;
        let expected = if is_closed { SAVE_ONLY } else { Requested::Sync };
        assert_eq!(begin(&mut bed), expected);
        if let [StateRequest::Save { session, .. }] = bed.world.resource::<StatePort>().outgoing() {
            assert_eq!((session.files.as_slice(), session.paused), (&[Some(STAMP)][..], true));
        }
    }
}

/// Fault 73.
#[test]
fn a_session_forgets_the_pieces_of_a_file_that_was_changed() {
    let geometry = Geometry::new(4 * u64::from(BLOCK_SIZE), BLOCK_SIZE).unwrap();
    let partial = |piece| PartialPiece {
        piece,
        blocks: Runs::of([0]),
    };
    let mut session = Session {
        pieces: 4,
        have: Runs::of([0, 1]),
        partial: vec![partial(2), partial(3)],
        ..session()
    };
    let file = FileEntry {
        path: "file".into(),
        len: u64::from(BLOCK_SIZE) + 2,
        offset: 2 * u64::from(BLOCK_SIZE) - 1,
        attributes: Default::default(),
    };
    forget_pieces(&mut session, geometry.pieces_of(file.offset..file.end()));
    assert_eq!(session.have, Runs::of([0]));
    assert_eq!(session.partial, [], "pieces 1, 2 and 3 lie in it, at least partly");
    let first = FileEntry {
        len: 1,
        offset: 0,
        ..file
    };
    session.partial = vec![partial(2)];
    forget_pieces(&mut session, geometry.pieces_of(first.offset..first.end()));
    assert_eq!((session.have, session.partial), (Runs::default(), vec![partial(2)]));
}
