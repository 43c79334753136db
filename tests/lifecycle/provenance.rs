//! Ownership of files where names, inode numbers, times and sessions are ambiguous: the user's files stay as they are.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use ecs_torrent::AddOptions;

use crate::bed::{Bed, Torrent, settings, wait_until};
use crate::child::{NO_LIMITS, Process};
use crate::removing::{DELETE, kept, names, paths};
use crate::seed::Seed;

/// A file of the user that is as long as the test's torrents.
fn users() -> Vec<u8> {
    b"precious".repeat(40_000)
}

fn torrent(seed: u64) -> Arc<Torrent> {
    Arc::new(Torrent::single(seed, users().len(), 32 << 10))
}

/// Replaces a file by one of the user that has its inode number, as far as the file system reuses numbers.
fn replace(path: &Path) {
    let inode = fs::metadata(path).unwrap().ino();
    fs::remove_file(path).unwrap();
    let folder = tempfile::tempdir_in(path.parent().unwrap()).unwrap();
    for number in 0..4000 {
        let new = folder.path().join(number.to_string());
        fs::write(&new, b"").unwrap();
        if fs::metadata(&new).unwrap().ino() == inode {
            fs::rename(new, path).unwrap();
            break;
        }
    }
    fs::write(path, users()).unwrap();
}

/// Resumes the only torrent of a state folder, with a seed that it can download from, and returns why it fails.
fn resume_and_fail(torrent: &Arc<Torrent>, state: &Path) -> (Bed, String) {
    let mut bed = Bed::start(state);
    assert_eq!(bed.resume_all(), 1);
    bed.add_peer(torrent.info_hash(), Seed::free(torrent).address);
    let reason = bed.wait_failed(torrent.info_hash());
    (bed, reason)
}

/// A file that the user puts in the place of a torrent's file stays, although it has the same name and inode number:
/// for a running torrent, one that was stopped and added again, and one that was complete.
#[test]
fn a_number_that_is_used_again() {
    for is_complete in [false, true] {
        let torrent = torrent(1400);
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        let seed = Seed::limited(&torrent, if is_complete { u64::MAX } else { 8 });
        let mut bed = Bed::start(&state);
        let id = bed.add(&torrent, &root, &[seed.address]);
        match is_complete {
            true => bed.wait_seeding(id),
            false => wait_until("pieces", || bed.have(id).len() >= 2),
        }
        bed.stop(id).unwrap();
        replace(&root.join("data"));
        if !is_complete {
            bed.add(&torrent, &root, &[Seed::free(&torrent).address]);
            let reason = bed.wait_failed(id);
            assert!(reason.contains("--overwrite"), "{reason}");
        }
        let removed = bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
        assert_eq!((removed.deleted_count, removed.kept_count), (0, 1));
        assert!(
            fs::read(root.join("data")).unwrap() == users(),
            "complete: {is_complete}"
        );
    }
}

/// A torrent that is killed before its first byte claims no file that the user puts in its place meanwhile.
#[test]
fn a_file_that_comes_after_a_kill() {
    let torrent = torrent(1410);
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let silent = Seed::limited(&torrent, 0);
    let settings = settings(Some(&state));
    let mut child = Process::start(&settings, &[(&torrent, &root, silent.address)], NO_LIMITS);
    wait_until("a session that claims the file", || {
        torrent
            .session(&state)
            .is_some_and(|session| !session.created.is_empty())
    });
    child.kill();
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("data"), users()).unwrap();
    let (bed, reason) = resume_and_fail(&torrent, &state);
    assert!(reason.contains("--overwrite"), "{reason}");
    let removed = bed
        .block_on(bed.torrents().remove(torrent.info_hash(), DELETE))
        .unwrap();
    assert_eq!(removed.deleted_count, 0);
    assert!(fs::read(root.join("data")).unwrap() == users());
}

/// A torrent that fails and is opened again in the same run claims no file that came meanwhile.
#[test]
fn a_file_that_comes_before_a_retry() {
    let torrent = Arc::new(Torrent::album(
        1420,
        "album",
        &[("a", 640_000), ("b", 16 << 10)],
        16 << 10,
    ));
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        let seed = Seed::limited(&torrent, 2);
        let mut bed = Bed::start(&state);
        let id = bed.add(&torrent, &root, &[seed.address]);
        wait_until("a piece", || !bed.have(id).is_empty());
        let (a, b) = (root.join("album/a"), root.join("album/b"));
        if b.exists() || !a.exists() {
            continue;
        }
        fs::remove_file(a).unwrap();
        fs::write(&b, &users()[..16 << 10]).unwrap();
        seed.release();
        let reason = bed.wait_failed(id);
        assert!(reason.contains("album/b"), "{reason}");
        bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
        assert!(fs::read(b).unwrap() == users()[..16 << 10]);
        return;
    }
    panic!("the other file came first each time");
}

/// A damaged session claims the files that it knew, and not files that replaced them.
#[test]
fn a_damaged_session_claims_no_other_file() {
    for is_replaced in [false, true] {
        let torrent = torrent(1430);
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        let mut bed = Bed::start(&state);
        let id = bed.add(&torrent, &root, &[Seed::free(&torrent).address]);
        bed.wait_seeding(id);
        bed.stop_all().unwrap();
        drop(bed);
        let text = fs::read_to_string(torrent.session_path(&state)).unwrap();
        fs::write(torrent.session_path(&state), text.replace("uploaded", "uploadex")).unwrap();
        if is_replaced {
            replace(&root.join("data"));
        }
        let mut bed = Bed::start(&state);
        assert_eq!(bed.resume_all(), 1);
        match is_replaced {
            true => drop(bed.wait_failed(id)),
            false => bed.wait_seeding(id),
        }
        let removed = bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
        assert_eq!(removed.deleted_count, usize::from(!is_replaced));
        assert_eq!(root.join("data").exists(), is_replaced);
    }
}

/// A change in place is noticed at the next start, even where the modification time was set back.
#[test]
fn a_change_whose_time_was_set_back() {
    let torrent = torrent(1440);
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let mut bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[Seed::free(&torrent).address]);
    bed.wait_seeding(id);
    bed.stop_all().unwrap();
    drop(bed);
    let file = fs::File::options().write(true).open(root.join("data")).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"somebody else's", 40_000).unwrap();
    file.set_modified(before).unwrap();
    let mut bed = Bed::start(&state);
    bed.resume_all();
    bed.add_peer(id, Seed::free(&torrent).address);
    bed.wait_seeding(id);
    assert!(bed.has_checked(id));
    torrent.assert_whole(&root);
}

/// A file that another program changes while it is served is checked again, and no bad byte is sent.
#[test]
fn a_change_while_it_seeds() {
    let torrent = torrent(1450);
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let mut bed = Bed::start(&state);
    let seed = Seed::free(&torrent);
    let id = bed.add(&torrent, &root, &[seed.address]);
    bed.wait_seeding(id);
    torrent.wait_saved_complete(&state);
    assert!(!bed.has_checked(id));
    let file = fs::File::options().write(true).open(root.join("data")).unwrap();
    file.write_all_at(b"somebody else's", 40_000).unwrap();
    let (other_root, other_state) = (folder.path().join("other"), folder.path().join("other-state"));
    let mut other = Bed::start(&other_state);
    other.add(&torrent, &other_root, &[bed.address()]);
    wait_until("the check", || bed.has_checked(id));
    bed.add_peer(id, seed.address);
    wait_until("the bad piece", || bed.have(id).len() == 10);
    torrent.assert_whole(&root);
    other.add_peer(id, bed.address());
    other.wait_seeding(id);
    assert_eq!(other.stats(id).corrupt, 0);
}

/// A file that gets a second name while the torrent runs is not written any more, and the user gets the choice.
#[test]
fn a_hard_link_while_it_downloads() {
    let torrent = torrent(1460);
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let seed = Seed::limited(&torrent, 8);
    let mut bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[seed.address]);
    wait_until("pieces", || bed.have(id).len() >= 2);
    let linked = folder.path().join("linked");
    fs::hard_link(root.join("data"), &linked).unwrap();
    let before = fs::read(&linked).unwrap();
    seed.release();
    let reason = bed.wait_failed(id);
    assert!(
        reason.contains("hard link") && reason.contains("--overwrite"),
        "{reason}"
    );
    assert!(fs::read(&linked).unwrap() == before, "it was written");
    let removed = bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
    assert_eq!(removed.deleted_count, 0);
}

/// A permission to overwrite ends when the file is complete: a file that the user puts in its place later stays.
#[test]
fn a_permission_that_ends() {
    let torrent = torrent(1470);
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    fs::create_dir(&root).unwrap();
    fs::write(root.join("data"), "old").unwrap();
    let mut bed = Bed::start(&state);
    let options = AddOptions {
        root: Some(root.clone()),
        overwrite: true,
        peers: vec![Seed::free(&torrent).address],
        ..AddOptions::default()
    };
    let id = bed.add_with(&torrent, options);
    bed.wait_seeding(id);
    torrent.assert_whole(&root);
    bed.stop_all().unwrap();
    drop(bed);
    fs::remove_file(root.join("data")).unwrap();
    fs::write(root.join("data"), users()).unwrap();
    let (_bed, _) = resume_and_fail(&torrent, &state);
    assert!(fs::read(root.join("data")).unwrap() == users());
}

/// Only folders that the torrent created are deleted, even where the user's are empty.
#[test]
fn folders_of_the_user_stay() {
    let torrent = Arc::new(Torrent::album(
        1480,
        "album",
        &[("users/a", 100_000), ("own/b", 100_000)],
        32 << 10,
    ));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    fs::create_dir_all(root.join("album/users")).unwrap();
    let mut bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[Seed::free(&torrent).address]);
    bed.wait_seeding(id);
    let removed = bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
    assert_eq!(paths(&removed), ["album/own/b", "album/users/a"]);
    assert_eq!(kept(&removed), []);
    assert_eq!(names(&root.join("album")), ["users"]);
}
