//! A torrent's files, on a real disk.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};

use ecs_torrent_components::session::FileId;
use ecs_torrent_protocol::files::FileAttributes;

use super::*;
use crate::ports::disk::{DeletedFiles, KeptReason, Overwrite, SyncedFile};

fn table(lengths: &[u64]) -> FileTable {
    let paths = (0..).map(|i| format!("t/d/{i}"));
    table_of(paths.zip(lengths.iter().copied()))
}

fn table_of(files: impl IntoIterator<Item = (String, u64)>) -> FileTable {
    let mut offset = 0;
    let entries = files.into_iter().map(|(path, len)| {
        offset += len;
        FileEntry {
            path: path.into(),
            len,
            offset: offset - len,
            attributes: FileAttributes::default(),
        }
    });
    FileTable::new(entries.collect())
}

fn files(root: &Path, lengths: &[u64]) -> Files {
    storage(1, root, lengths, &Arc::new(SharedFiles::new(2)))
}

fn storage(id: u64, root: &Path, lengths: &[u64], shared: &Arc<SharedFiles>) -> Files {
    Files::new(StorageId(id), root, None, table(lengths), shared.clone()).with_claims(claims(&[], false))
}

fn lengths(files: &Files) -> Vec<Option<u64>> {
    let found = files.look().unwrap().files;
    found.into_iter().map(|file| file.map(|file| file.stamp.len)).collect()
}

fn blocks(data: &[u8], sizes: usize) -> Vec<Bytes> {
    data.chunks(sizes).map(Bytes::copy_from_slice).collect()
}

#[test]
fn spans_go_to_their_files_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("not/there/yet");
    let files = files(&root, &[5, 0, 3, 4000, 1]);
    let data: Vec<u8> = (0..4009u32).map(|i| i as u8).collect();
    assert_eq!(lengths(&files), [None; 5]);
    assert!(!root.exists(), "looking creates nothing");
    files.write(Span { offset: 0, len: 4009 }, &blocks(&data, 7)).unwrap();
    files.prepare(false).unwrap();
    assert_eq!(lengths(&files), [5, 0, 3, 4000, 1].map(Some));
    assert_eq!(fs::read(root.join("t/d/2")).unwrap(), data[5..8]);
    let buffers = FileBuffers::default();
    for (offset, len) in [(0, 4009), (4, 2), (7, 4001), (4008, 1)] {
        let read = files.read(Span { offset, len }, ReadPurpose::Check, &buffers).unwrap();
        assert_eq!(read, data[offset as usize..][..len as usize]);
    }
    let synced: BTreeSet<usize> = files.sync(false).unwrap().into_iter().map(|file| file.index).collect();
    assert_eq!(synced, BTreeSet::from([0, 1, 2, 3, 4]));
    assert_eq!(files.sync(false).unwrap(), [], "once");
}

#[test]
fn files_are_found_beside_folders_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a/0", "a/1", "b/0", "b/1", "a/2", "b/c/0", "d", "b/2", "e/0"];
    for (index, path) in paths.iter().enumerate().filter(|(_, path)| !path.starts_with('b')) {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![0; index]).unwrap();
    }
    fs::remove_file(folder.path().join("a/1")).unwrap();
    let table = table_of(paths.iter().map(|path| ((*path).to_owned(), 9)));
    let shared = Arc::new(SharedFiles::new(2));
    let files = Files::new(StorageId(1), folder.path(), None, table, shared);
    assert_eq!(
        lengths(&files),
        [Some(0), None, None, None, Some(4), None, Some(6), None, Some(8)]
    );
}

/// Fault 73: files that somebody deletes or truncates are detected, whether they are still open or were closed.
#[test]
fn files_are_missed_when_they_are_written_again() {
    for open_count in [1, 3] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let shared = Arc::new(SharedFiles::new(open_count));
        let files = storage(1, root, &[8, 8, 8], &shared);
        let write = |offset| files.write(Span { offset, len: 4 }, &blocks(&[1; 4], 4));
        for offset in [0, 8, 16] {
            write(offset).unwrap();
        }
        fs::remove_file(root.join("t/d/0")).unwrap();
        fs::File::options()
            .write(true)
            .open(root.join("t/d/1"))
            .unwrap()
            .set_len(3)
            .unwrap();
        let found = files.sync(false).unwrap().into_iter();
        let found: Vec<_> = found.map(|file| file.stamp.map(|stamp| stamp.len)).collect();
        assert_eq!(found, [None, None, Some(4)]);
        for (offset, is_whole) in [(4, false), (12, false), (20, true)] {
            assert_eq!(write(offset).is_ok(), is_whole, "{offset} of {open_count}");
        }
    }
}

#[test]
fn absence_differs_from_failure() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &[4, 4]);
    let buffers = FileBuffers::default();
    let error = files
        .read(Span { offset: 0, len: 4 }, ReadPurpose::Check, &buffers)
        .unwrap_err();
    assert!(error.is_absence(), "{error}");
    files.write(Span { offset: 0, len: 2 }, &blocks(&[1; 2], 2)).unwrap();
    let error = files
        .read(Span { offset: 0, len: 4 }, ReadPurpose::Check, &buffers)
        .unwrap_err();
    assert!(error.is_absence(), "{error}");

    symlink("/etc/passwd", folder.path().join("t/d/1")).unwrap();
    let error = files
        .read(Span { offset: 4, len: 4 }, ReadPurpose::Check, &buffers)
        .unwrap_err();
    assert!(!error.is_absence());
    let shown = error.to_string();
    assert!(shown.starts_with("cannot open ") && shown.contains("t/d/1"), "{shown}");
    assert!(files.look().is_err());
}

#[test]
fn preallocation_reserves_space() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &[1 << 20]);
    files.prepare(false).unwrap();
    assert_eq!(lengths(&files), [None], "sparse by default");
    files.prepare(true).unwrap();
    let metadata = fs::metadata(folder.path().join("t/d/0")).unwrap();
    assert_eq!((metadata.len(), metadata.blocks() * 512 >= 1 << 20), (1 << 20, true));
}

#[test]
fn vectored_writes_go_beyond_the_slice_limit() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &[3000]);
    let data: Vec<u8> = (0..3000u32).map(|i| (i % 251) as u8).collect();
    files.write(Span { offset: 0, len: 3000 }, &blocks(&data, 1)).unwrap();
    assert_eq!(fs::read(folder.path().join("t/d/0")).unwrap(), data);
}

/// Fault 78: files written by others stay, links stay as they are, and deleted files do not come back.
#[test]
fn only_what_was_written_is_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir_all(root.join("t/d")).unwrap();
    fs::write(root.join("t/d/1"), [1; 4]).unwrap();
    fs::write(root.join("t/sibling"), "mine").unwrap();
    let files = files(root, &[4, 4, 4]);
    let four = |offset| Span { offset, len: 4 };
    files.write(four(0), &blocks(&[1; 4], 4)).unwrap();
    files.write(four(8), &blocks(&[1; 4], 4)).unwrap();
    files.delete(&[2]).unwrap();
    let left = |name: &str| root.join(name).exists();
    assert!(!left("t/d/0") && left("t/d/1") && left("t/d/2") && left("t/sibling"));
    // Fault 105: a job in flight.
    assert!(files.write(four(0), &blocks(&[1; 4], 4)).is_err());
    assert!(!left("t/d/0"));

    let claims = FileClaims {
        created: [(1, None), (2, None)].into(),
        ..claims(&[], false)
    };
    let other = self::files(root, &[4, 4, 4]).with_claims(claims);
    other.delete(&[]).unwrap();
    // The claim to the first one names no identity, and the file carries no mark.
    assert!(left("t/d/1") && !left("t/d/2") && left("t/sibling"));
}

#[test]
fn deleting_follows_no_link() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("0"), "safe").unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("t")).unwrap();
    symlink(outside.path(), folder.path().join("t/d")).unwrap();
    let claims = FileClaims {
        created: [(0, None)].into(),
        ..claims(&[], false)
    };
    let report = files(folder.path(), &[4]).with_claims(claims).delete(&[]).unwrap();
    assert_eq!(report.kept, [(0, KeptReason::Replaced)]);
    assert!(outside.path().join("0").exists());
}

/// Fault 75.
#[test]
fn nothing_is_written_where_another_volume_was() {
    let folder = tempfile::tempdir().unwrap();
    let shared = Arc::new(SharedFiles::new(2));
    let root = folder.path().join("downloads");
    let volume = Some(Volume {
        mount_point: "/not/mounted".into(),
        id: None,
    });
    let files = Files::new(StorageId(1), &root, volume, table(&[4]), shared);
    let error = files
        .write(Span { offset: 0, len: 4 }, &blocks(&[1; 4], 4))
        .unwrap_err();
    assert!(error.is_volume_gone() && !error.is_absence(), "{error}");
    assert!(
        error.to_string().contains("nothing is mounted at /not/mounted"),
        "{error}"
    );
    assert!(!root.exists());
    assert!(files.look().unwrap_err().is_volume_gone());
}

const KEY: OwnerKey = OwnerKey([7; 16]);

/// A session's claims to files of earlier runs.
fn claims(created: &[(usize, Option<FileId>)], may_overwrite: bool) -> FileClaims {
    FileClaims {
        created: created.iter().copied().collect(),
        key: Some(KEY),
        stamps: Vec::new(),
        overwrite: if may_overwrite {
            Overwrite::AllFound
        } else {
            Overwrite::default()
        },
    }
}

fn span(offset: u64, len: usize) -> Span {
    let len = len as u32;
    Span { offset, len }
}

fn id(path: &Path) -> FileId {
    Status::of(fs::File::open(path).unwrap()).unwrap().id
}

fn provenances(files: &Files) -> Vec<Option<Provenance>> {
    let found = files.look().unwrap().files;
    found.into_iter().map(|file| file.map(|file| file.provenance)).collect()
}

fn write(files: &Files, offset: u64, data: &[u8]) -> Result<()> {
    files.write(span(offset, data.len()), &blocks(data, 3))
}

/// Writes `1` to `8` to an existing file of 8 bytes. Returns the result and the file's content afterward.
fn found_and_written(found: &[u8], may_overwrite: bool) -> (Result<()>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t/d/0");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, found).unwrap();
    let files = files(folder.path(), &[8]).with_claims(claims(&[], may_overwrite));
    assert_eq!(provenances(&files), [Some(Provenance::Found)]);
    files.prepare(true).unwrap();
    assert_eq!(fs::read(&path).unwrap(), found, "nothing is reserved in it");
    let written = write(&files, 0, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let synced = files.sync(true).unwrap();
    assert!(synced.iter().all(|file| file.provenance == Provenance::Found));
    let report = files.delete(&[]).unwrap();
    assert_eq!(report.kept, [(0, KeptReason::Found)]);
    (written, fs::read(path).unwrap())
}

#[test]
fn found_files_are_compared_and_not_written() {
    let whole = [1, 2, 3, 4, 5, 6, 7, 8];
    let longer = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    for equal in [&whole[..], &longer] {
        let (written, left) = found_and_written(equal, false);
        assert!(written.is_ok() && left == equal, "{written:?}");
    }
    let others: [&[u8]; 5] = [&[], &[1, 2, 3], &[9; 3], &[1, 2, 3, 4, 0, 6, 7, 8], &[9; 12]];
    for other in others {
        let (written, left) = found_and_written(other, false);
        let error = written.unwrap_err();
        assert!(error.is_foreign() && !error.is_absence(), "{error}");
        assert!(error.to_string().contains("t/d/0"), "{error}");
        assert_eq!(left, other);
        let (written, left) = found_and_written(other, true);
        assert!(written.is_ok());
        let mut expected = other.to_vec();
        expected.resize(other.len().max(8), 0);
        expected[..8].copy_from_slice(&whole);
        assert_eq!(left, expected, "a longer one keeps its end");
    }
}

/// Part of the run lies in a file that belongs to the user.
#[test]
fn a_piece_shared_with_a_found_file_is_written_to_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir_all(root.join("t/d")).unwrap();
    fs::write(root.join("t/d/1"), [5, 6, 7, 8]).unwrap();
    use Provenance::{Created, Found};
    let files = files(root, &[4, 4, 4]);
    assert_eq!(provenances(&files), [None, Some(Found), None]);
    write(&files, 0, &[1, 2, 3, 4, 5, 6]).unwrap();
    write(&files, 6, &[7, 8, 9, 9, 9, 9]).unwrap();
    let synced = files.sync(false).unwrap();
    let provenances: Vec<_> = synced.iter().map(|file| file.provenance).collect();
    assert_eq!(provenances, [Created, Found, Created]);
    let report = files.delete(&[]).unwrap();
    let expected = DeletedFiles {
        deleted: vec![0, 2],
        kept: vec![(1, KeptReason::Found)],
    };
    assert_eq!(report, expected);
    assert_eq!(fs::read(root.join("t/d/1")).unwrap(), [5, 6, 7, 8]);
}

#[test]
fn claims_hold_for_the_same_file_only() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let first = files(root, &[4, 4, 4, 4]);
    write(&first, 0, &[1; 16]).unwrap();
    let synced = first.sync(false).unwrap();
    let ids: Vec<_> = synced.iter().map(|file| (file.index, file.id)).collect();
    let path = |number: usize| root.join(format!("t/d/{number}"));
    assert!(ids.iter().all(|(index, known)| *known == Some(id(&path(*index)))));
    // Another file of the same length in its place, a file with a second name, and a copy with the same
    // modification time.
    fs::write(root.join("other"), [2; 4]).unwrap();
    fs::rename(root.join("other"), path(1)).unwrap();
    fs::hard_link(path(2), root.join("linked")).unwrap();
    let stamps: Vec<_> = synced.iter().map(|file| file.stamp).collect();
    fs::rename(path(3), root.join("moved")).unwrap();
    fs::copy(root.join("moved"), path(3)).unwrap();
    let time = fs::metadata(root.join("moved")).unwrap().modified().unwrap();
    fs::File::options()
        .write(true)
        .open(path(3))
        .unwrap()
        .set_modified(time)
        .unwrap();
    let claims = FileClaims {
        stamps,
        ..claims(&ids, false)
    };
    let again = files(root, &[4, 4, 4, 4]).with_claims(claims);
    use Provenance::{Created, Found};
    assert_eq!(provenances(&again), [Created, Found, Found, Found].map(Some));
    let report = again.delete(&[]).unwrap();
    assert_eq!(report.deleted, [0]);
    use KeptReason::{HardLinked, Replaced};
    assert_eq!(report.kept, [(1, Replaced), (2, HardLinked), (3, Replaced)]);
    assert_eq!(fs::read(path(1)).unwrap(), [2; 4]);
}

/// Finds a file whose inode number a deleted file had: deletes the file at `path` and creates others until one of them
/// gets its number, then renames that one to `path`.
fn reuse_inode(path: &Path, content: &[u8]) {
    let inode = fs::metadata(path).unwrap().ino();
    fs::remove_file(path).unwrap();
    let folder = tempfile::tempdir_in(path.parent().unwrap()).unwrap();
    for number in 0..4000 {
        let new = folder.path().join(number.to_string());
        fs::write(&new, content).unwrap();
        if fs::metadata(&new).unwrap().ino() == inode {
            fs::rename(new, path).unwrap();
            return;
        }
    }
    // File systems that do not reuse numbers soon: it is another file all the same.
    fs::write(path, content).unwrap();
}

/// A file of the user with the inode number of a deleted file of the torrent is the user's, in this run and the next.
#[test]
fn a_number_that_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t/d/0");
    let first = files(folder.path(), &[8]);
    first.look().unwrap();
    write(&first, 0, &[1; 4]).unwrap();
    let synced = first.sync(false).unwrap();
    reuse_inode(&path, b"precious");
    assert!(write(&first, 4, &[1; 4]).unwrap_err().is_absence());
    let next = files(folder.path(), &[8]).with_claims(FileClaims {
        stamps: vec![synced[0].stamp],
        ..claims(&[(0, synced[0].id)], false)
    });
    assert_eq!(provenances(&next), [Some(Provenance::Found)]);
    assert!(write(&next, 0, &[1; 8]).unwrap_err().is_foreign());
    for files in [first, next] {
        assert_eq!(files.delete(&[]).unwrap().kept, [(0, KeptReason::Replaced)]);
    }
    assert_eq!(fs::read(path).unwrap(), b"precious");
}

/// A claim without a known identity applies to marked files only: not to a file of somebody else, of another torrent or
/// with another index, nor to a copy that carries a copy of the mark.
#[test]
fn a_mark_proves_who_created_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |number: usize| folder.path().join(format!("t/d/{number}"));
    let first = files(folder.path(), &[4, 4, 4, 4]);
    first.look().unwrap();
    write(&first, 0, &[1; 12]).unwrap();
    fs::write(path(3), "mine").unwrap();
    fs::rename(path(1), path(9)).unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([path(2), path(1)])
        .status();
    assert!(copied.unwrap().success());
    let none = [(0, None), (1, None), (2, None), (3, None)];
    use Provenance::{Created, Found};
    let provenances_with = |claims| {
        let files = files(folder.path(), &[4, 4, 4, 4]).with_claims(claims);
        provenances(&files)
    };
    assert_eq!(
        provenances_with(claims(&none, false)),
        [Created, Found, Created, Found].map(Some)
    );
    let other = FileClaims {
        key: Some(OwnerKey([8; 16])),
        ..claims(&none, false)
    };
    assert_eq!(provenances_with(other), [Some(Found); 4]);
    fs::remove_file(path(1)).unwrap();
    fs::rename(path(2), path(1)).unwrap();
    assert_eq!(
        provenances_with(claims(&none, false))[1],
        Some(Found),
        "it has another index"
    );
}

/// A permission to overwrite covers the files that it names, and those that were there, and no file that comes later.
#[test]
fn a_permission_covers_certain_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |number: usize| folder.path().join(format!("t/d/{number}"));
    fs::create_dir_all(folder.path().join("t/d")).unwrap();
    (0..2).for_each(|number| fs::write(path(number), "mine").unwrap());
    let all = files(folder.path(), &[4, 4, 4]).with_claims(claims(&[], true));
    all.look().unwrap();
    fs::write(path(2), "mine").unwrap();
    write(&all, 0, &[1; 8]).unwrap();
    assert!(write(&all, 8, &[1; 4]).unwrap_err().is_foreign());
    let permitted = [(0, id(&path(0))), (1, id(&path(1)))];
    fs::rename(path(1), path(9)).unwrap();
    fs::write(path(1), "mine").unwrap();
    let only = files(folder.path(), &[4, 4, 4]).with_claims(FileClaims {
        overwrite: Overwrite::Only(permitted.into()),
        ..claims(&[], false)
    });
    only.look().unwrap();
    write(&only, 0, &[2; 4]).unwrap();
    for offset in [4, 8] {
        assert!(write(&only, offset, &[2; 4]).unwrap_err().is_foreign());
    }
    assert_eq!(fs::read(path(1)).unwrap(), b"mine");
}

/// Bytes that somebody else changed in place are not served, but can be read to be checked.
#[test]
fn changed_bytes_are_not_served() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &[8, 8]);
    files.look().unwrap();
    write(&files, 0, &[1; 16]).unwrap();
    let buffers = FileBuffers::default();
    let read = |offset, purpose| files.read(span(offset, 4), purpose, &buffers);
    let file = fs::File::options()
        .write(true)
        .open(folder.path().join("t/d/0"))
        .unwrap();
    file.write_all_at(&[9; 4], 0).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    for _ in 0..2 {
        assert!(read(0, ReadPurpose::Serve).unwrap_err().is_changed());
    }
    assert_eq!(read(0, ReadPurpose::Check).unwrap(), [9; 4][..]);
    assert_eq!(read(8, ReadPurpose::Serve).unwrap(), [1; 4][..]);
    // Reading it for the first time since it was found, in another run.
    let again = self::files(folder.path(), &[8, 8]);
    again.look().unwrap();
    assert!(again.read(span(0, 4), ReadPurpose::Serve, &buffers).is_ok());
    fs::remove_file(folder.path().join("t/d/1")).unwrap();
    assert!(again.read(span(8, 4), ReadPurpose::Serve, &buffers).is_err());
}

/// Only folders that the torrent created are deleted with its files.
#[test]
fn folders_of_the_user_stay() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("t")).unwrap();
    let first = files(folder.path(), &[4]);
    first.look().unwrap();
    write(&first, 0, &[1; 4]).unwrap();
    first.delete(&[]).unwrap();
    assert!(folder.path().join("t").exists() && !folder.path().join("t/d").exists());
}

/// A file that appears between the look and the first write belongs to somebody else, whatever the session claims.
#[test]
fn a_file_that_appears_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &[4, 4]).with_claims(claims(&[(0, None), (1, None)], false));
    assert_eq!(provenances(&files), [None, None]);
    fs::create_dir_all(folder.path().join("t/d")).unwrap();
    fs::write(folder.path().join("t/d/0"), "mine").unwrap();
    assert!(write(&files, 0, &[1; 4]).unwrap_err().is_foreign());
    write(&files, 0, b"mine").unwrap();
    write(&files, 4, &[1; 4]).unwrap();
    let report = files.delete(&[]).unwrap();
    assert_eq!((report.deleted, report.kept.len()), (vec![1], 1));
}

/// A file that was replaced by another one while it was open is neither written nor deleted.
#[test]
fn a_replaced_file_is_left() {
    for open_count in [1, 3] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t/d/0");
        let files = storage(1, folder.path(), &[8, 8], &Arc::new(SharedFiles::new(open_count)));
        files.look().unwrap();
        write(&files, 0, &[1; 12]).unwrap();
        fs::write(folder.path().join("new"), [9; 8]).unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert!(write(&files, 4, &[1; 4]).unwrap_err().is_absence());
        let synced = files.sync(false).unwrap();
        assert_eq!(synced[0].stamp, None);
        let report = files.delete(&[]).unwrap();
        assert_eq!(
            (report.deleted, report.kept),
            (vec![1], vec![(0, KeptReason::Replaced)])
        );
        assert_eq!(fs::read(path).unwrap(), [9; 8]);
    }
}

/// A file has one writer, even if reached by a hard link, another root, or another mount of the same folder.
#[test]
fn a_file_has_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path();
    let shared = Arc::new(SharedFiles::new(8));
    let owner = storage(1, base, &[8], &shared);
    owner.look().unwrap();
    write(&owner, 0, &[1; 8]).unwrap();
    let path = base.join("t/d/0");
    // `sub` and `x.bin`, compared with `sub/x.bin`.
    let entries = [("0".to_owned(), 8)];
    let by_root = Files::new(StorageId(2), &base.join("t/d"), None, table_of(entries), shared.clone());
    let by_root = by_root.with_claims(claims(&[(0, None)], true));
    fs::create_dir_all(base.join("l/t/d")).unwrap();
    fs::hard_link(&path, base.join("l/t/d/0")).unwrap();
    let by_link = storage(3, &base.join("l"), &[8], &shared).with_claims(claims(&[], true));
    let mounted = base.join("mounted");
    let by_mount = storage(4, &mounted, &[8], &shared).with_claims(claims(&[(0, None)], true));
    let mut others = vec![&by_root, &by_link];
    if bind(base, &mounted) {
        others.push(&by_mount);
    }
    for other in others {
        assert_eq!(provenances(other), [Some(Provenance::Found)]);
        assert!(write(other, 0, &[2; 8]).unwrap_err().is_foreign());
        write(other, 0, &[1; 8]).unwrap();
        assert_eq!(other.delete(&[]).unwrap().deleted, [0; 0]);
    }
    unbind(&mounted);
    // A file with a second name counts as the user's.
    assert!(write(&owner, 0, &[3; 8]).unwrap_err().is_foreign());
    assert_eq!(fs::read(&path).unwrap(), [1; 8]);
    fs::remove_file(base.join("l/t/d/0")).unwrap();
    write(&owner, 0, &[3; 8]).unwrap();
    owner.close();
    // Now another storage may write the file, if the user allowed it to.
    let heir = storage(5, base, &[8], &shared).with_claims(claims(&[], true));
    heir.look().unwrap();
    write(&heir, 0, &[4; 8]).unwrap();
    assert_eq!(fs::read(path).unwrap(), [4; 8]);
}

/// Mounts a folder at a second place. If this process lacks the rights, prints a line and returns false.
fn bind(folder: &Path, place: &Path) -> bool {
    fs::create_dir(place).unwrap();
    let mut mount = std::process::Command::new("mount");
    let output = mount.arg("--bind").args([folder, place]).output();
    let is_mounted = output.is_ok_and(|output| output.status.success());
    if !is_mounted {
        #[allow(clippy::print_stderr, reason = "a test says what it leaves out")]
        {
            eprintln!("SKIPPED: a file that is reached by a mount: mounting takes root");
        }
    }
    is_mounted
}

fn unbind(place: &Path) {
    let _ = std::process::Command::new("umount").arg("-l").arg(place).status();
}

/// Stamps describe this storage's own writes. A write by somebody else in between puts the file in doubt, once.
#[test]
fn foreign_writes_are_doubtful() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t/d/0");
    let files = files(folder.path(), &[64]);
    files.look().unwrap();
    let stamp = |synced: Vec<SyncedFile>| synced[0].stamp;
    let touch = |seconds| {
        // Times are coarse, so the test sets a later time instead of waiting a second.
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[9; 4], 0).unwrap();
        let time = std::time::SystemTime::now() + std::time::Duration::from_secs(seconds);
        file.set_modified(time).unwrap();
    };
    write(&files, 0, &[1; 8]).unwrap();
    touch(10);
    assert_eq!(stamp(files.sync(false).unwrap()), None, "after the last write");
    write(&files, 8, &[1; 8]).unwrap();
    let known = stamp(files.sync(false).unwrap()).expect("told once");
    touch(20);
    write(&files, 16, &[1; 8]).unwrap();
    assert_eq!(stamp(files.sync(false).unwrap()), None, "between two writes");
    write(&files, 24, &[1; 8]).unwrap();
    let last = stamp(files.sync(false).unwrap()).unwrap();
    assert!(last.len == 32 && known.len == 16);
}

/// No path leads into a folder of the engine's own: from a root above it, at it or below it, or through links and
/// mounts.
#[test]
fn no_path_leads_into_protected_folders() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path();
    let own = base.join("t");
    fs::create_dir_all(own.join("d")).unwrap();
    fs::write(own.join("d/0"), "secret").unwrap();
    symlink(&own, base.join("link")).unwrap();
    fs::create_dir(base.join("mount")).unwrap();
    let is_bound = bind(base, &base.join("mount/again"));
    let alone = |path: &str| table_of([(path.to_owned(), 8)]);
    let mut ways = vec![
        (base.to_owned(), alone("t/new")),
        (base.to_owned(), alone("t/d/0")),
        (base.to_owned(), alone("t/x/new")),
        (own.clone(), alone("new")),
        (own.clone(), alone("d/0")),
        (own.join("d"), alone("0")),
        (own.join("not/there"), alone("0")),
        (base.join("link"), alone("0")),
        (base.join("link/d"), alone("0")),
        (base.join("mount/../t/d"), alone("0")),
    ];
    if is_bound {
        ways.push((base.join("mount"), alone("again/t/new")));
        ways.push((base.join("mount/again/t/d"), alone("0")));
    }
    for protected in [&[own.as_path()][..], &[&own, &own.join("d")]] {
        let shared = SharedFiles::new(4).protecting(protected).unwrap();
        let shared = Arc::new(shared);
        for (root, table) in &ways {
            let files = Files::new(StorageId(1), root, None, table.clone(), shared.clone());
            let files = files.with_claims(claims(&[(0, None)], true));
            let what = format!("{} {}", root.display(), table.files()[0].path);
            // A path to a missing file is refused at the latest when the file would be created.
            let looked = files.look().map(drop);
            let written = write(&files, 0, &[7; 8]);
            for result in [&looked, &written] {
                assert!(
                    result.as_ref().err().is_none_or(DiskError::is_forbidden),
                    "{what}: {result:?}"
                );
            }
            assert!(written.is_err(), "{what}");
            let deleted = files.delete(&[]);
            assert!(deleted.is_err() || deleted.unwrap().deleted.is_empty(), "{what}");
        }
        let files = Files::new(StorageId(2), base, None, alone("beside/it"), shared);
        write(&files, 0, &[7; 8]).unwrap();
        files.delete(&[]).unwrap();
    }
    unbind(&base.join("mount/again"));
    assert_eq!(fs::read_to_string(own.join("d/0")).unwrap(), "secret");
    assert_eq!(fs::read_dir(&own).unwrap().count(), 1);
    assert_eq!(fs::read_dir(own.join("d")).unwrap().count(), 1);
}

/// A link or another folder that replaces a download folder is not followed.
#[test]
fn a_swapped_root_is_not_followed() {
    for is_link in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("dl"), folder.path().join("outside"));
        fs::create_dir_all(outside.join("t/d")).unwrap();
        let shared = Arc::new(SharedFiles::new(4));
        let files = storage(1, &root, &[8, 8], &shared).with_claims(claims(&[], true));
        files.look().unwrap();
        write(&files, 0, &[1; 8]).unwrap();
        fs::rename(&root, folder.path().join("moved")).unwrap();
        match is_link {
            true => symlink(&outside, &root).unwrap(),
            false => fs::rename(&outside, &root).unwrap(),
        }
        let other = storage(2, &root, &[8, 8], &shared).with_claims(claims(&[], true));
        for files in [&files, &other] {
            for error in [
                write(files, 8, &[1; 8]).err(),
                files.look().err(),
                files.delete(&[]).err(),
            ] {
                let error = error.expect("it is swapped").to_string();
                assert!(error.contains("has taken its place"), "{error}");
            }
        }
        let place = if is_link { &outside } else { &root };
        assert_eq!(fs::read_dir(place.join("t/d")).unwrap().count(), 0);
        // Once no storage uses the root, its path may be resolved again.
        files.close();
        drop((files, other));
        let files = storage(3, &root, &[8], &shared);
        files.look().unwrap();
        write(&files, 0, &[1; 8]).unwrap();
    }
}

/// A swapped pinned root is not followed, nor are folders below it, even while no torrent has it open.
#[test]
fn a_pinned_root_is_not_followed_either() {
    let folder = tempfile::tempdir().unwrap();
    let (root, outside) = (folder.path().join("dl"), folder.path().join("outside"));
    fs::create_dir_all(&root).unwrap();
    fs::create_dir_all(&outside).unwrap();
    let shared = Arc::new(SharedFiles::new(4));
    shared.roots.pin(&root);
    let files = storage(1, &root.join("sub"), &[8], &shared);
    files.look().unwrap();
    write(&files, 0, &[1; 8]).unwrap();
    fs::rename(&root, folder.path().join("moved")).unwrap();
    symlink(&outside, &root).unwrap();
    for given in [root.clone(), root.join("new"), root.join("sub")] {
        let files = storage(2, &given, &[8], &shared);
        assert!(
            files.look().is_err() && write(&files, 0, &[1; 8]).is_err(),
            "{}",
            given.display()
        );
    }
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

/// A pinned root is closed when the last torrent below it is, so that its volume can be unmounted.
#[test]
fn an_unused_pinned_root_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let shared = Arc::new(SharedFiles::new(4));
    shared.roots.pin(folder.path());
    let is_open = || matches!(shared.roots.get(folder.path()).look(), Ok(Found::Same(_)));
    let [one, other] = [1, 2].map(|id| storage(id, folder.path(), &[8], &shared));
    write(&one, 0, &[1; 8]).unwrap();
    assert!(is_open());
    drop(one);
    other.look().unwrap();
    other.folder().unwrap();
    assert!(is_open(), "another torrent uses it");
    drop(other);
    assert!(!is_open());
}

/// More download folders than are held open work the same as a few.
#[test]
fn many_roots_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let shared = Arc::new(SharedFiles::new(2));
    let root = |number: u64| folder.path().join(number.to_string());
    let all: Vec<Files> = (0..30)
        .map(|number| storage(number, &root(number), &[8], &shared))
        .collect();
    for round in 0..2 {
        for files in &all {
            write(files, 4 * round, &[1; 4]).unwrap();
        }
    }
    fs::rename(root(0), folder.path().join("moved")).unwrap();
    fs::create_dir(root(0)).unwrap();
    assert!(write(&all[0], 0, &[1; 8]).is_err());
    assert_eq!(fs::read_dir(root(0)).unwrap().count(), 0);
    // A deleted folder is created again, and its files are reported missing.
    fs::remove_dir_all(root(1)).unwrap();
    assert!(write(&all[1], 0, &[1; 8]).unwrap_err().is_absence());
}
