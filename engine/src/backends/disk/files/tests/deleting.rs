//! Tests of deleted files and folders.

use super::*;

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
