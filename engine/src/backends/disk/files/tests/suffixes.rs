//! Files with the suffix of incomplete files.

use super::*;
use crate::ports::disk::{FileClaims, HeldPieces, Provenance};

const LENGTHS: [u64; 3] = [20, 10, 15];

/// Opens files that have a suffix until they are complete, as the session of an earlier run claims them.
fn open(root: &Path, created: &[(usize, Option<FileId>)]) -> Files {
    let claims = FileClaims {
        part_suffix: true,
        ..claims(created, false)
    };
    let files = Files::new(StorageId(1), root, None, table(&LENGTHS), Arc::new(SharedFiles::new(2)));
    files.with_claims(claims)
}

fn held(pieces: &[u32]) -> HeldPieces {
    let mut held = Bitfield::new(5);
    pieces.iter().for_each(|piece| {
        held.insert(*piece);
    });
    HeldPieces { held, piece_length: 10 }
}

fn write(files: &Files, offset: u64, len: u32) {
    files
        .write(Span { offset, len }, &[Bytes::from(vec![7; len as usize])])
        .unwrap();
}

fn names(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("t/d")).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn created(synced: &[SyncedFile]) -> Vec<(usize, Option<FileId>)> {
    synced.iter().map(|file| (file.index, file.id)).collect()
}

#[test]
fn complete_files_lose_their_suffix_and_are_found_by_either_name() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let files = open(root, &[]);
    files.look().unwrap();
    write(&files, 0, 30);
    assert_eq!(names(root), ["0.part", "1.part"]);
    let synced = files.sync_complete(false, Some(&held(&[0, 2]))).unwrap();
    assert_eq!(names(root), ["0.part", "1"]);
    let changed = |name: &str| fs::metadata(root.join("t/d").join(name)).unwrap();
    let stamp = synced[1].stamp.unwrap();
    let expected = changed("1").ctime() * 1_000_000_000 + changed("1").ctime_nsec();
    assert_eq!(stamp.changed_ns, Some(expected), "the state after the rename");
    // The open files are used further, under either name.
    write(&files, 0, 30);
    let read = files.read(Span { offset: 0, len: 30 }, ReadPurpose::Serve, &FileBuffers::default());
    assert_eq!(read.unwrap(), vec![7; 30]);
    let synced = files.sync_complete(false, Some(&held(&[0, 2]))).unwrap();
    files.close();
    drop(files);

    let again = open(root, &created(&synced));
    let found = again.look().unwrap().files;
    let provenance: Vec<_> = found.iter().map(|file| file.map(|file| file.provenance)).collect();
    assert_eq!(provenance, [Some(Provenance::Created), Some(Provenance::Created), None]);
    write(&again, 10, 20);
    write(&again, 30, 15);
    assert_eq!(names(root), ["0.part", "1", "2.part"]);
    again.sync_complete(false, Some(&held(&[0, 1, 2, 3]))).unwrap();
    assert_eq!(names(root), ["0", "1", "2.part"]);
    // The last piece may count as held after the sync of the last write.
    let synced = again.sync_complete(false, Some(&held(&[0, 1, 2, 3, 4]))).unwrap();
    assert_eq!(names(root), ["0", "1", "2"]);
    assert_eq!(synced.iter().map(|file| file.index).collect::<Vec<_>>(), [2]);
    let deleted = again.delete(&[]).unwrap();
    assert_eq!((deleted.deleted, deleted.kept), (vec![0, 1, 2], Vec::new()));
}

#[test]
fn files_of_others_are_neither_used_nor_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir_all(root.join("t/d")).unwrap();
    fs::write(root.join("t/d/0.part"), "mine").unwrap();
    let files = open(root, &[]);
    files.look().unwrap();
    write(&files, 0, 30);
    assert_eq!(names(root), ["0", "0.part", "1.part"], "the suffix is not used then");
    fs::write(root.join("t/d/1"), "mine too").unwrap();
    let synced = files.sync_complete(false, Some(&held(&[0, 1, 2]))).unwrap();
    assert_eq!(names(root), ["0", "0.part", "1", "1.part"], "nothing is replaced");
    assert!(synced.iter().all(|file| file.stamp.is_some()));
    files.close();
    drop(files);

    // The torrent's file is preferred to the user's at its final name.
    let again = open(root, &created(&synced));
    again.look().unwrap();
    let read = again.read(
        Span { offset: 20, len: 10 },
        ReadPurpose::Check,
        &FileBuffers::default(),
    );
    assert_eq!(read.unwrap(), vec![7; 10]);
    fs::remove_file(root.join("t/d/1")).unwrap();
    // A file that was not written since it was opened is renamed too.
    again.sync_complete(false, Some(&held(&[0, 1, 2]))).unwrap();
    assert_eq!(names(root), ["0", "0.part", "1"]);
    let deleted = again.delete(&[]).unwrap();
    assert_eq!(deleted.deleted, [0, 1]);
    assert_eq!(fs::read(root.join("t/d/0.part")).unwrap(), b"mine");
}

/// Where a rename takes two steps, a kill between them leaves a file with both names.
#[test]
fn a_rename_in_two_steps_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let files = open(root, &[]);
    files.look().unwrap();
    write(&files, 20, 10);
    let synced = files.sync_complete(false, Some(&held(&[]))).unwrap();
    files.close();
    drop(files);
    fs::hard_link(root.join("t/d/1.part"), root.join("t/d/1")).unwrap();
    let again = open(root, &created(&synced));
    let found = again.look().unwrap().files[1].unwrap();
    assert_eq!(
        (found.provenance, names(root)),
        (Provenance::Created, vec!["1".to_owned()])
    );
}
