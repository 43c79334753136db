//! A torrent's files, on a real disk.

mod deleting;
mod download_folders;
mod owners;
mod parting;
mod suffixes;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};

use ecs_torrent_components::session::FileId;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::FileAttributes;
use ecs_torrent_protocol::hash::InfoHash;

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
    files.prepare(false, None).unwrap();
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
    files.prepare(false, None).unwrap();
    assert_eq!(lengths(&files), [None], "sparse by default");
    files.prepare(true, None).unwrap();
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

const KEY: OwnerKey = OwnerKey([7; 16]);

/// A session's claims to files of earlier runs.
fn claims(created: &[(usize, Option<FileId>)], may_overwrite: bool) -> FileClaims {
    FileClaims {
        created: created.iter().copied().collect(),
        key: Some(KEY),
        stamps: Vec::new(),
        overwrite: if may_overwrite {
            Overwrite::AllFound(None)
        } else {
            Overwrite::default()
        },
        part_suffix: false,
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
    let known = stamp(files.sync(false).unwrap()).expect("reported once");
    touch(20);
    write(&files, 16, &[1; 8]).unwrap();
    assert_eq!(stamp(files.sync(false).unwrap()), None, "between two writes");
    write(&files, 24, &[1; 8]).unwrap();
    let last = stamp(files.sync(false).unwrap()).unwrap();
    assert!(last.len == 32 && known.len == 16);
}
