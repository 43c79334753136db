//! Moves between real folders and file systems.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ecs_torrent_components::session::OwnerKey;
use ecs_torrent_protocol::files::{FileAttributes, FileEntry, FileTable};
use ecs_torrent_protocol::geometry::Span;

use super::*;
use crate::port::Purpose;
use crate::ports::disk::{FileClaims, MovePlace};
use crate::purpose;

const MOVE: Purpose = purpose!("move in a test");
const KEY: OwnerKey = OwnerKey([7; 16]);
const NAMES: [&str; 3] = ["album/one", "album/more/two", "album/more/three"];
/// Longer than a chunk, so that a copy takes several.
const LENGTHS: [u64; 3] = [700_000, 5, 1_000_000];

fn table(prefix: &str) -> FileTable {
    let mut offset = 0;
    let entries = NAMES.iter().zip(LENGTHS).map(|(name, len)| {
        offset += len;
        FileEntry {
            path: format!("{prefix}{name}").into(),
            len,
            offset: offset - len,
            attributes: FileAttributes::default(),
        }
    });
    FileTable::new(entries.collect())
}

fn bytes(index: usize) -> Vec<u8> {
    (0..LENGTHS[index])
        .map(|at| (at * 31 + index as u64 * 7) as u8)
        .collect()
}

/// A torrent's files at one place, and the other place of a move.
struct Bed {
    _folders: [tempfile::TempDir; 2],
    from: PathBuf,
    to: PathBuf,
    shared: Arc<SharedFiles>,
    claims: FileClaims,
}

impl Bed {
    /// Files of a torrent, of which it has not created those in `users`.
    fn new(is_other_volume: bool, users: &[usize]) -> Self {
        let from = tempfile::tempdir().unwrap();
        let to = match is_other_volume {
            true => tempfile::tempdir_in("/dev/shm").unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        let (root, shared) = (from.path().canonicalize().unwrap(), Arc::new(SharedFiles::new(8)));
        for index in users {
            let path = root.join(NAMES[*index]);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes(*index)).unwrap();
        }
        let claims = FileClaims {
            key: Some(KEY),
            ..FileClaims::default()
        };
        let files = Files::new(StorageId(1), &root, None, table(""), shared.clone()).with_claims(claims.clone());
        files.look().unwrap();
        let mut offset = 0;
        for (index, len) in LENGTHS.into_iter().enumerate() {
            let len = len as u32;
            files.write(Span { offset, len }, &[Bytes::from(bytes(index))]).unwrap();
            offset += u64::from(len);
        }
        let synced = files.sync(true).unwrap();
        let created = synced.iter().filter(|file| file.provenance == Provenance::Created);
        let created = created.map(|file| (file.index, file.id)).collect();
        files.close();
        Self {
            from: root,
            to: to.path().canonicalize().unwrap().join("new/folder"),
            _folders: [from, to],
            shared,
            claims: FileClaims { created, ..claims },
        }
    }

    fn moving(&self) -> FileMove {
        let place = |root: &Path| MovePlace {
            root: root.to_owned(),
            volume: None,
            files: table(""),
        };
        FileMove {
            from: place(&self.from),
            to: place(&self.to),
            claims: self.claims.clone(),
            needs: None,
        }
    }

    fn mover(&self, step: MoveStep) -> Mover {
        let tag = JobTag::new(MOVE, bevy_ecs::entity::Entity::PLACEHOLDER);
        Mover::new((tag, StorageId(1)), self.moving(), step, &self.shared, None)
    }

    fn run(&self, step: MoveStep) -> Result<DiskDone> {
        let mover = self.mover(step);
        loop {
            if let Turn::Ended(event) = mover.advance() {
                return event.outcome;
            }
        }
    }

    fn copy(&self) -> FoundFiles {
        match self.run(MoveStep::Copy) {
            Ok(DiskDone::Moved(found)) => *found,
            other => panic!("{other:?}"),
        }
    }

    fn delete_old(&self) -> DeletedFiles {
        match self.run(MoveStep::DeleteOld) {
            Ok(DiskDone::Deleted(files)) => files,
            other => panic!("{other:?}"),
        }
    }
}

fn is_whole(root: &Path) -> bool {
    (0..NAMES.len()).all(|index| fs::read(root.join(NAMES[index])).is_ok_and(|found| found == bytes(index)))
}

/// Every file is at both places until the old ones are deleted; folders that the torrent created go with them.
#[test]
fn files_are_at_one_place_or_the_other_on_one_volume_and_on_two() {
    for is_other_volume in [false, true] {
        let bed = Bed::new(is_other_volume, &[]);
        let found = bed.copy();
        assert!(is_whole(&bed.from) && is_whole(&bed.to), "{is_other_volume}");
        assert_eq!(*found.root, *bed.to);
        assert!(
            found
                .files
                .iter()
                .all(|file| file.unwrap().provenance == Provenance::Created)
        );
        let time = |root: &Path| fs::metadata(root.join(NAMES[0])).unwrap().mtime_nsec();
        assert_eq!(time(&bed.from), time(&bed.to));
        // Both steps can be repeated.
        bed.copy();
        assert_eq!(bed.delete_old().deleted, [0, 1, 2]);
        assert!(is_whole(&bed.to) && !bed.from.join("album").exists() && bed.from.exists());
        assert_eq!(bed.delete_old(), DeletedFiles::default());
        assert!(is_whole(&bed.to));
        let status = fs::metadata(bed.to.join(NAMES[0])).unwrap();
        assert_eq!(status.nlink(), 1);
    }
}

/// A move that is given up leaves nothing at the new place.
#[test]
fn an_undone_move_leaves_everything_as_it_was() {
    for is_other_volume in [false, true] {
        let bed = Bed::new(is_other_volume, &[]);
        bed.copy();
        bed.run(MoveStep::Undo).unwrap();
        assert!(is_whole(&bed.from) && !bed.to.join("album").exists());
        bed.run(MoveStep::Undo).unwrap();
        assert!(is_whole(&bed.from));
    }
}

/// A file of another owner is named before anything is created.
#[test]
fn nothing_at_the_new_place_is_overwritten() {
    for is_other_volume in [false, true] {
        let bed = Bed::new(is_other_volume, &[]);
        let path = bed.to.join(NAMES[2]);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "mine").unwrap();
        let error = bed.run(MoveStep::Copy).unwrap_err();
        assert!(error.is_taken() && error.path == path, "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert!(is_whole(&bed.from) && !bed.to.join(NAMES[0]).exists());
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(bed.from.join(NAMES[2]), &path).unwrap();
        let error = bed.run(MoveStep::Copy).unwrap_err();
        assert!(error.is_taken(), "{error}");
        bed.run(MoveStep::Undo).unwrap();
        bed.delete_old();
        assert!(is_whole(&bed.from) && path.is_symlink());
    }
}

/// A file of the user, or with a second name of the user, is copied and stays.
#[test]
fn files_of_the_user_stay() {
    for is_other_volume in [false, true] {
        let bed = Bed::new(is_other_volume, &[0]);
        fs::hard_link(bed.from.join(NAMES[1]), bed.from.join("second name")).unwrap();
        bed.copy();
        let report = bed.delete_old();
        assert_eq!(report.deleted, [2]);
        assert_eq!(report.kept, [(0, KeptReason::Found), (1, KeptReason::HardLinked)]);
        assert!(is_whole(&bed.to) && bed.from.join(NAMES[0]).exists() && bed.from.join("second name").exists());
        assert!(!bed.from.join(NAMES[2]).exists());
        for name in NAMES {
            assert_eq!(fs::metadata(bed.to.join(name)).unwrap().nlink(), 1, "{name}");
        }
    }
}

/// A copy that was cut is copied again; the only copy of a file is never deleted.
#[test]
fn an_interrupted_copy_is_repeated() {
    let bed = Bed::new(true, &[]);
    bed.copy();
    let path = bed.to.join(NAMES[2]);
    let cut = fs::File::options().write(true).open(&path).unwrap();
    cut.set_len(10).unwrap();
    assert_eq!(bed.delete_old().kept, [(2, KeptReason::Replaced)]);
    assert!(bed.from.join(NAMES[2]).exists());
    bed.copy();
    assert_eq!(fs::read(path).unwrap(), bytes(2));
    fs::remove_file(bed.from.join(NAMES[2])).unwrap();
    bed.run(MoveStep::Undo).unwrap();
    assert!(bed.to.join(NAMES[2]).exists(), "it is the only one");
}

/// The two paths of a move may lead to one folder.
#[test]
fn a_folder_under_another_name_keeps_its_files() {
    let bed = Bed::new(false, &[]);
    let moving = |bed: &Bed| {
        let mut moving = bed.moving();
        moving.to.root.clone_from(&bed.from);
        moving
    };
    for step in [MoveStep::Copy, MoveStep::DeleteOld, MoveStep::Undo] {
        let tag = JobTag::new(MOVE, bevy_ecs::entity::Entity::PLACEHOLDER);
        let mover = Mover::new((tag, StorageId(1)), moving(&bed), step, &bed.shared, None);
        assert!(
            matches!(mover.advance(), Turn::Ended(event) if event.outcome.is_ok()),
            "{step:?}"
        );
        assert!(is_whole(&bed.from), "{step:?}");
    }
}

/// A hole takes no space at the new place.
#[cfg(target_os = "linux")]
#[test]
fn holes_stay_holes() {
    let bed = Bed::new(true, &[]);
    let path = bed.from.join(NAMES[2]);
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(0).unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", 32 << 20).unwrap();
    file.set_modified(time).unwrap();
    bed.copy();
    let copy = fs::metadata(bed.to.join(NAMES[2])).unwrap();
    assert!(
        copy.len() == 64 << 20 && copy.blocks() * 512 < 1 << 20,
        "{}",
        copy.blocks()
    );
    assert!(fs::read(bed.to.join(NAMES[2])).unwrap() == fs::read(path).unwrap());
}

/// A step that is closed ends at once, and the next one waits for it.
#[test]
fn a_closed_step_does_nothing() {
    let bed = Bed::new(true, &[]);
    let first = bed.mover(MoveStep::Copy);
    first.close(None);
    assert!(matches!(first.advance(), Turn::Closed));
    assert!(!bed.to.join("album").exists());
    let first = Arc::new(bed.mover(MoveStep::Copy));
    let tag = JobTag::new(MOVE, bevy_ecs::entity::Entity::PLACEHOLDER);
    let second = Mover::new(
        (tag, StorageId(1)),
        bed.moving(),
        MoveStep::Undo,
        &bed.shared,
        Some(first.clone()),
    );
    assert!(matches!(second.advance(), Turn::Ended(_)));
    assert!(matches!(first.advance(), Turn::Closed), "it was replaced");
}
