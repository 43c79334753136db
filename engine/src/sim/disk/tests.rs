//! Tests of the disk, as a world observes it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use bevy_ecs::entity::Entity;
use bytes::Bytes;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_components::session::OwnerKey;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::Span;

use super::super::{Content, Crash, DiskFault, DiskOperation, DiskSpeed, Lasting, NewContent, NodeId, Simulation};
use super::SimDisk;
use crate::port::{Backend, JobTag};
use crate::ports::disk::{
    DiskDone, DiskError, DiskEvent, DiskRequest, FileClaims, FoundFiles, HeldPieces, KeptReason, Overwrite, Provenance,
    ReadPurpose, SyncedFile,
};
use crate::purpose;

const STORAGE: StorageId = StorageId(1);
const ROOT: &str = "downloads";
const KEY: OwnerKey = OwnerKey([7; 16]);
const TAG: JobTag = JobTag {
    purpose: purpose!("test"),
    owner: Entity::PLACEHOLDER,
    number: 0,
};

/// A machine's disk with a torrent's files, none of which exists.
struct Bed {
    sim: Simulation,
    node: NodeId,
    disk: SimDisk,
    content: Content,
}

impl Bed {
    fn new(seed: u64, file_count: usize) -> Self {
        let new = NewContent {
            len: 200_000,
            file_count,
            ..NewContent::default()
        };
        let content = new.make();
        let mut sim = Simulation::new(seed, Duration::ZERO);
        let node = sim.add_host(([10, 0, 0, 1], 6881).into()).id();
        sim.fabric().hub.contents.add(content.bytes());
        let disk = SimDisk::new(node, sim.fabric.clone());
        let mut bed = Self {
            sim,
            node,
            disk,
            content,
        };
        bed.open();
        bed
    }

    fn ask(&mut self, request: DiskRequest) -> DiskEvent {
        self.disk.submit(&mut vec![request]);
        self.answers().pop().expect("an answer")
    }

    fn answers(&mut self) -> Vec<DiskEvent> {
        let mut events = Vec::new();
        let limit = self.sim.now() + Duration::from_secs(100);
        while events.is_empty() && self.sim.step(limit) {
            self.disk.poll(usize::MAX, &mut events);
        }
        events
    }

    /// Opens the files; the session claims all of them.
    fn open(&mut self) -> FoundFiles {
        let created = (0..self.content.files().files().len()).map(|index| (index, None));
        self.open_as(
            STORAGE,
            FileClaims {
                created: created.collect(),
                key: Some(KEY),
                ..FileClaims::default()
            },
        )
    }

    fn open_as(&mut self, storage: StorageId, claims: FileClaims) -> FoundFiles {
        let (root, files) = (PathBuf::from(ROOT), self.content.files().clone());
        let (tag, volume) = (TAG, None);
        self.disk.submit(&mut vec![DiskRequest::Close { tag: None, storage }]);
        match self.ask(DiskRequest::Open {
            tag,
            storage,
            root,
            volume,
            files,
            needs: None,
            claims,
        }) {
            DiskEvent {
                outcome: Ok(DiskDone::Opened(found)),
                ..
            } => found,
            other => panic!("{other:?}"),
        }
    }

    fn write(&mut self, offset: u64, len: u32) -> Result<(), DiskError> {
        self.write_as(STORAGE, self.content.slice(Span { offset, len }), offset)
    }

    fn write_as(&mut self, storage: StorageId, data: Bytes, offset: u64) -> Result<(), DiskError> {
        let len = data.len() as u32;
        let span = Span { offset, len };
        let blocks = (0..data.len())
            .step_by(16384)
            .map(|begin| data.slice(begin..data.len().min(begin + 16384)));
        let (tag, blocks) = (TAG, blocks.collect());
        let event = self.ask(DiskRequest::Write {
            tag,
            storage,
            span,
            blocks,
        });
        assert_eq!(
            event.blocks.is_empty(),
            event.outcome.is_ok(),
            "given back where it failed"
        );
        event.outcome.map(drop)
    }

    fn read(&mut self, offset: u64, len: u32) -> Result<Bytes, DiskError> {
        let (tag, storage, span) = (TAG, STORAGE, Span { offset, len });
        let purpose = ReadPurpose::Check;
        let request = DiskRequest::Read {
            tag,
            storage,
            span,
            purpose,
        };
        match self.ask(request).outcome {
            Ok(DiskDone::Read(bytes)) => Ok(bytes),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        }
    }

    fn sync(&mut self) -> Result<Vec<SyncedFile>, DiskError> {
        self.sync_complete(None)
    }

    fn sync_complete(&mut self, held: Option<HeldPieces>) -> Result<Vec<SyncedFile>, DiskError> {
        let (tag, storage, is_for_all) = (TAG, STORAGE, false);
        let request = DiskRequest::Sync {
            tag,
            storage,
            is_for_all,
            held: held.map(Box::new),
        };
        match self.ask(request).outcome {
            Ok(DiskDone::Synced(files)) => Ok(files),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        }
    }

    fn crash(&mut self, crash: Crash) {
        self.sim.fabric().crash(self.node, crash);
        self.sim.fabric().revive(self.node);
        self.disk = SimDisk::new(self.node, self.sim.fabric.clone());
        self.open();
    }

    fn holds(&self, offset: u64, len: u32) -> bool {
        let span = Span { offset, len };
        self.sim
            .disk(self.node)
            .holds(ROOT, self.content.files(), self.content.bytes(), span)
    }

    fn holds_durably(&self, offset: u64, len: u32) -> bool {
        let span = Span { offset, len };
        self.sim
            .disk(self.node)
            .holds_durably(ROOT, self.content.files(), self.content.bytes(), span)
    }
}

#[test]
fn written_data_is_read_without_a_copy() {
    let mut bed = Bed::new(1, 7);
    assert_eq!(bed.open().files, [None; 7]);
    for (offset, len) in [(131_072, 68_928), (0, 65_536), (65_536, 65_536)] {
        bed.write(offset, len).unwrap();
    }
    assert!(
        !bed.sim.has(bed.node, ROOT, &bed.content),
        "a file without bytes is missing"
    );
    let (tag, storage, is_preallocated) = (TAG, STORAGE, false);
    bed.ask(DiskRequest::Prepare {
        tag,
        storage,
        needs: None,
        is_preallocated,
    });
    assert!(bed.sim.has(bed.node, ROOT, &bed.content));
    let read = bed.read(10, 150_000).unwrap();
    assert_eq!(
        read.as_ptr(),
        bed.content.bytes()[10..].as_ptr(),
        "over the borders of files"
    );
    let synced = bed.sync().unwrap();
    let lengths: Vec<u64> = synced.iter().map(|file| file.stamp.unwrap().len).collect();
    let expected: Vec<u64> = bed.content.files().files().iter().map(|file| file.len).collect();
    assert_eq!(lengths, expected);
    assert_eq!(bed.sync().unwrap(), [], "once");
}

/// A file loses its suffix at the sync at which its last piece counts as held, also if it was written before.
#[test]
fn complete_files_lose_their_suffix() {
    let mut bed = Bed::new(1, 1);
    let claims = || FileClaims {
        created: [(0, None)].into(),
        key: Some(KEY),
        part_suffix: true,
        ..FileClaims::default()
    };
    let held = |pieces: &[u32]| {
        let mut held = Bitfield::new(2);
        for piece in pieces {
            held.insert(*piece);
        }
        let piece_length = 100_000;
        Some(HeldPieces { held, piece_length })
    };
    let names = |bed: &Bed| {
        let has = |name: &str| bed.sim.disk(bed.node).file_len(format!("{ROOT}/{name}")).is_some();
        (has("content.part"), has("content"))
    };
    bed.open_as(STORAGE, claims());
    bed.write(0, 200_000).unwrap();
    bed.sync_complete(held(&[0])).unwrap();
    assert_eq!(names(&bed), (true, false));
    let synced = bed.sync_complete(held(&[0, 1])).unwrap();
    assert_eq!((names(&bed), synced.len()), ((false, true), 1));
    assert!(bed.holds_durably(0, 200_000));
    let found = bed.open_as(STORAGE, claims()).files[0].unwrap();
    assert_eq!(found.provenance, Provenance::Created);

    // A file of somebody else is not replaced.
    let mut bed = Bed::new(2, 1);
    let (files, bytes) = (bed.content.files().clone(), bed.content.bytes().clone());
    bed.open_as(STORAGE, claims());
    bed.write(0, 200_000).unwrap();
    bed.sim.disk(bed.node).put(ROOT, &files, &bytes);
    bed.sync_complete(held(&[0, 1])).unwrap();
    assert_eq!(names(&bed), (true, true));
}

#[test]
fn other_bytes_are_kept_as_they_are() {
    let mut bed = Bed::new(1, 3);
    bed.write(0, 200_000).unwrap();
    let blocks = vec![Bytes::from(vec![7; 100])];
    let (tag, storage, span) = (TAG, STORAGE, Span { offset: 5, len: 100 });
    bed.ask(DiskRequest::Write {
        tag,
        storage,
        span,
        blocks,
    });
    let mut expected = bed.content.bytes().to_vec();
    expected[5..105].fill(7);
    assert_eq!(bed.read(0, 200_000).unwrap(), expected);
    assert!(!bed.holds(0, 10) && bed.holds(105, 1000));
}

#[test]
fn absence_differs_from_failure() {
    let mut bed = Bed::new(1, 1);
    assert!(bed.read(0, 10).unwrap_err().is_absence(), "no file");
    bed.write(0, 1000).unwrap();
    assert!(bed.read(500, 1000).unwrap_err().is_absence(), "a shorter one");
    bed.write(5000, 1000).unwrap();
    assert_eq!(bed.read(4000, 100).unwrap(), vec![0; 100], "a hole");
    bed.sim
        .disk(bed.node)
        .fail(DiskOperation::Read, DiskFault::Io, Lasting::Next(2));
    for is_ok in [false, false, true] {
        let read = bed.read(0, 10);
        assert_eq!(read.is_ok(), is_ok);
        assert!(read.is_ok_and(|_| true) || !is_ok);
    }
    bed.sim.disk(bed.node).set_mounted(false);
    assert!(bed.write(0, 10).unwrap_err().is_volume_gone());
}

#[test]
fn a_full_disk_takes_what_fits() {
    let mut bed = Bed::new(1, 1);
    bed.sim.disk(bed.node).set_capacity(Some(100_000));
    bed.write(0, 90_000).unwrap();
    assert_eq!(bed.sim.disk(bed.node).free_bytes(), 10_000);
    assert!(bed.write(90_000, 20_000).unwrap_err().is_full());
    assert!(bed.holds(0, 100_000) && !bed.holds(90_000, 20_000));
    bed.write(0, 90_000).expect("what is there takes no space again");
    bed.sim.disk(bed.node).set_capacity(None);
    bed.write(90_000, 20_000).unwrap();
}

#[test]
fn a_short_write_leaves_a_part() {
    let mut bed = Bed::new(1, 1);
    bed.sim
        .disk(bed.node)
        .fail(DiskOperation::Write, DiskFault::Short, Lasting::Next(1));
    assert!(bed.write(0, 100_000).is_err());
    assert_eq!(bed.sim.disk(bed.node).file_len("downloads/content"), Some(50_000));
    assert!(bed.holds(0, 50_000));
    bed.write(0, 100_000).unwrap();
}

#[test]
fn jobs_take_time_one_after_the_other() {
    let mut bed = Bed::new(1, 1);
    let speed = DiskSpeed {
        latency: Duration::from_millis(5),
        bytes_per_s: Some(1_000_000),
    };
    bed.sim.disk(bed.node).set_speed(speed);
    let mut time = |slowness| {
        bed.sim.disk(bed.node).set_slowness(slowness);
        let begun = bed.sim.now();
        bed.write(0, 200_000).unwrap();
        bed.sim.now().since(begun).as_millis()
    };
    assert_eq!([time(1.0), time(3.0)], [205, 615]);
}

/// Crashes with synced and unsynced data; returns how many of the unsynced sectors survived.
fn crash(seed: u64) -> usize {
    let mut bed = Bed::new(seed, 1);
    bed.write(0, 50_000).unwrap();
    bed.sync().unwrap();
    assert!(bed.holds_durably(0, 50_000));
    bed.write(50_000, 50_000).unwrap();
    bed.write(150_000, 50_000).unwrap();
    assert!(!bed.holds_durably(50_000, 50_000) && bed.holds(50_000, 50_000));
    bed.crash(Crash::Power);
    assert!(bed.holds(0, 50_000), "what was synced is there");
    // One check per sector.
    let sectors = (50_000..100_000u64)
        .step_by(512)
        .map(|begin| (begin - begin % 512).max(50_000));
    sectors.filter(|begin| bed.holds(*begin, 100)).count()
}

#[test]
fn synced_data_survives_and_other_data_may_be_kept_lost_or_torn() {
    let left: Vec<usize> = (0..60).map(crash).collect();
    let (kept, lost) = (
        left.iter().filter(|count| **count >= 97),
        left.iter().filter(|count| **count == 0),
    );
    let torn = left.iter().filter(|count| (1..97).contains(*count)).count();
    assert!(kept.count() > 3 && lost.count() > 10 && torn > 2, "{left:?}");
    assert_eq!(crash(5), left[5], "the seed decides");
}

#[test]
fn a_killed_process_loses_nothing_that_was_written() {
    for seed in 0..10 {
        let mut bed = Bed::new(seed, 1);
        bed.write(0, 100_000).unwrap();
        bed.crash(Crash::Process);
        assert!(bed.holds(0, 100_000) && !bed.holds_durably(0, 100_000));
        assert_eq!(bed.sync().unwrap(), [], "this one has written nothing");
        assert!(!bed.holds_durably(0, 100_000));
        let (tag, storage, is_for_all) = (TAG, STORAGE, true);
        let request = DiskRequest::Sync {
            tag,
            storage,
            is_for_all,
            held: None,
        };
        assert!(bed.ask(request).outcome.is_ok() && bed.holds_durably(0, 100_000));
    }
}

#[test]
fn files_come_and_go_for_certain_only_when_they_are_synced() {
    let (mut created, mut deleted) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..40 {
        let mut bed = Bed::new(seed, 1);
        bed.write(0, 1000).unwrap();
        bed.crash(Crash::Power);
        created.insert(bed.open().files[0].is_some());

        bed.write(0, 1000).unwrap();
        bed.sync().unwrap();
        let (tag, storage, keep) = (TAG, STORAGE, vec![]);
        let event = bed.ask(DiskRequest::Delete { tag, storage, keep });
        assert!(
            event.outcome.is_ok() && bed.write(0, 1).is_err(),
            "what is deleted stays deleted"
        );
        assert_eq!(bed.open().files, [None]);
        bed.crash(Crash::Power);
        deleted.insert(bed.holds(0, 1000));
    }
    assert_eq!((created.len(), deleted.len()), (2, 2));
}

/// Data lost in a failed sync stays lost, and a later sync does not report it.
#[test]
fn a_failed_sync_is_not_made_good() {
    let mut bed = Bed::new(1, 1);
    bed.write(0, 1000).unwrap();
    bed.sim
        .disk(bed.node)
        .fail(DiskOperation::Sync, DiskFault::Io, Lasting::Next(1));
    assert!(bed.sync().is_err());
    bed.write(5000, 1000).unwrap();
    bed.sync().unwrap();
    assert!(bed.holds(0, 1000) && !bed.holds_durably(0, 1000) && bed.holds_durably(5000, 1000));
}

#[test]
fn files_that_others_change_are_missed() {
    let mut bed = Bed::new(1, 1);
    bed.write(0, 1000).unwrap();
    let before = bed.open().files[0].unwrap().stamp;
    bed.write(0, 1000).unwrap();
    assert_ne!(bed.open().files[0].unwrap().stamp, before, "its time has changed");
    bed.write(0, 1000).unwrap();
    bed.sim.disk(bed.node).truncate("downloads/content", 10);
    assert!(bed.write(2000, 10).unwrap_err().is_absence());
    assert_eq!(bed.sync().unwrap()[0].stamp, None);
    bed.open();
    bed.write(0, 1000).unwrap();
    assert!(bed.sim.disk(bed.node).delete("downloads/content"));
    assert!(bed.write(2000, 10).unwrap_err().is_absence());
}

#[test]
fn a_bad_sector_affects_readers_only() {
    let mut bed = Bed::new(1, 1);
    bed.write(0, 1000).unwrap();
    let before = bed.open();
    let (files, span) = (bed.content.files().clone(), Span { offset: 10, len: 1 });
    bed.sim.disk(bed.node).rot(ROOT, &files, span);
    assert_eq!(bed.open(), before);
    assert!(!bed.holds(0, 1000) && bed.holds(11, 900) && bed.holds(0, 10));
}

/// A user's file that does not match a claim, by identity or stamp, is not claimed.
#[test]
fn found_files_are_compared_and_left() {
    let mut bed = Bed::new(1, 1);
    let (files, bytes) = (bed.content.files().clone(), bed.content.bytes().clone());
    bed.sim.disk(bed.node).put(ROOT, &files, &bytes);
    for may_overwrite in [false, true] {
        let found = bed.open_as(
            STORAGE,
            FileClaims {
                overwrite: if may_overwrite {
                    Overwrite::AllFound(None)
                } else {
                    Overwrite::default()
                },
                ..FileClaims::default()
            },
        );
        assert_eq!(found.files[0].unwrap().provenance, Provenance::Found);
        bed.write(0, 100_000).expect("the same bytes");
        let other = bed.write_as(STORAGE, Bytes::from(vec![7; 100]), 5);
        assert_eq!(
            other.as_ref().is_err_and(DiskError::is_foreign),
            !may_overwrite,
            "{other:?}"
        );
        assert_eq!(bed.holds(0, 200_000), !may_overwrite);
        assert_eq!(bed.sync().unwrap()[0].provenance, Provenance::Found);
        let (tag, storage, keep) = (TAG, STORAGE, vec![]);
        let event = bed.ask(DiskRequest::Delete { tag, storage, keep });
        let Ok(DiskDone::Deleted(report)) = event.outcome else {
            panic!("{event:?}")
        };
        assert_eq!(report.kept, [(0, KeptReason::Found)]);
        assert!(bed.sim.disk(bed.node).file_len("downloads/content").is_some());
    }
}

/// A file of the user that got the inode number of a deleted file of the torrent is the user's; so is one that the
/// session claims without knowing its identity.
#[test]
fn a_number_that_is_used_again() {
    let mut bed = Bed::new(1, 1);
    bed.write(0, 1000).unwrap();
    let id = bed.sync().unwrap()[0].id;
    let (files, bytes) = (bed.content.files().clone(), bed.content.bytes().clone());
    assert!(bed.sim.disk(bed.node).delete("downloads/content"));
    bed.sim.disk(bed.node).put(ROOT, &files, &bytes);
    for known in [id, None] {
        let found = bed.open_as(
            STORAGE,
            FileClaims {
                created: [(0, known)].into(),
                key: Some(KEY),
                ..FileClaims::default()
            },
        );
        let file = found.files[0].unwrap();
        assert_eq!((file.provenance, file.id.inode), (Provenance::Found, id.unwrap().inode));
        assert!(
            bed.write_as(STORAGE, Bytes::from(vec![7; 100]), 0)
                .unwrap_err()
                .is_foreign()
        );
    }
}

/// A file that one torrent writes is never written by another torrent, even with a permission to overwrite.
#[test]
fn a_file_has_one_writer() {
    let mut bed = Bed::new(1, 1);
    bed.write(0, 1000).unwrap();
    let other = StorageId(2);
    let claims = FileClaims {
        created: [(0, None)].into(),
        key: Some(KEY),
        overwrite: Overwrite::AllFound(None),
        ..FileClaims::default()
    };
    let found = bed.open_as(other, claims.clone());
    assert_eq!(found.files[0].unwrap().provenance, Provenance::Found);
    let error = bed.write_as(other, Bytes::from(vec![7; 100]), 0).unwrap_err();
    assert!(error.is_foreign() && bed.holds(0, 1000));
    bed.disk.submit(&mut vec![DiskRequest::Close {
        tag: None,
        storage: STORAGE,
    }]);
    assert_eq!(
        bed.open_as(other, claims).files[0].unwrap().provenance,
        Provenance::Created
    );
}
