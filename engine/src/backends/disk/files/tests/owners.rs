//! Tests of the owners of files: claims, marks, permissions.

use super::*;

/// Writes `1` to `8` to an existing file of 8 bytes. Returns the result and the file's content afterward.
fn found_and_written(found: &[u8], may_overwrite: bool) -> (Result<()>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t/d/0");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, found).unwrap();
    let files = files(folder.path(), &[8]).with_claims(claims(&[], may_overwrite));
    assert_eq!(provenances(&files), [Some(Provenance::Found)]);
    files.prepare(true, None).unwrap();
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

/// A look that was submitted before the files were closed is carried out later. It keeps no other storage from the
/// files.
#[test]
fn a_late_look_owns_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let shared = Arc::new(SharedFiles::new(2));
    let first = storage(1, folder.path(), &[4], &shared);
    write(&first, 0, &[1; 4]).unwrap();
    let id = first.sync(false).unwrap()[0].id;
    drop(first);
    let claims = FileClaims {
        created: [(0, id)].into(),
        ..claims(&[], false)
    };
    let late = storage(2, folder.path(), &[4], &shared).with_claims(claims.clone());
    late.close();
    assert_eq!(provenances(&late), [Some(Provenance::Created)]);
    drop(late);
    let next = storage(3, folder.path(), &[4], &shared).with_claims(claims);
    assert_eq!(provenances(&next), [Some(Provenance::Created)]);
}
