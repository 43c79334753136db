//! Moves of a torrent's files to another folder, on one file system and between two.

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ecs_torrent::components::session::MoveStage;
use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::{AddOptions, Error, InfoHash, MoveError, MovedFiles, NewNames, RemoveOptions, TorrentState};

use crate::bed::{Bed, Torrent, settings, wait_until};
use crate::downloaded::Downloaded;
use crate::seed::Seed;
use crate::volumes::{Volume, can_mount};

const PIECE: u32 = 64 << 10;

/// A complete torrent, and a folder on another file system.
struct Whole {
    downloaded: Downloaded,
    memory: tempfile::TempDir,
}

impl Deref for Whole {
    type Target = Downloaded;

    fn deref(&self) -> &Downloaded {
        &self.downloaded
    }
}

impl Whole {
    fn new(number: u64) -> (Self, Bed) {
        let files = [("a", 3 << 20), ("sub/b", 2 << 20), ("sub/c", 100_000)];
        let (downloaded, bed) = Downloaded::album(number, &files, PIECE);
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        (Self { downloaded, memory }, bed)
    }

    /// Two new places for the files: on their file system, and on another one.
    fn places(&self) -> [PathBuf; 2] {
        [self.folder.path().join("near/new"), self.memory.path().join("far/new")]
    }

    /// Lets the session say that a move to `root` was interrupted, as a kill right after its beginning leaves it.
    fn interrupt(&self, root: &Path) {
        let mut session = self.session();
        session.moving = Some(Box::default());
        session.moving.as_mut().unwrap().root = root.to_owned();
        fs::write(self.torrent.session_path(&self.state()), session.to_text()).unwrap();
    }
}

fn move_to(bed: &Bed, id: InfoHash, root: &Path) -> Result<MovedFiles, Error> {
    bed.block_on(bed.torrents().move_files(id, root))
}

fn is_empty(folder: &Path) -> bool {
    !folder.exists() || fs::read_dir(folder).unwrap().next().is_none()
}

/// The files go to the new folder, and nothing is left at the old one, hashed again, or lost over restarts.
#[test]
fn files_go_to_another_folder() {
    let (whole, mut bed) = Whole::new(181);
    let [near, far] = whole.places();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(
        device(whole.folder.path()),
        device(whole.memory.path()),
        "two file systems"
    );
    let mut old = whole.root();
    for new in [near.clone(), far.clone(), near, whole.root()] {
        let moved = move_to(&bed, whole.id, &new).unwrap();
        assert_eq!((moved.root.as_path(), moved.kept_count), (new.as_path(), 0));
        bed.wait(whole.id, "the move", |life| *life == Lifecycle::Moving);
        bed.wait_seeding(whole.id);
        whole.torrent.assert_whole(&new);
        assert!(is_empty(&old), "{}", old.display());
        assert_eq!(bed.stats(whole.id).root, new);
        old = new;
    }
    assert!(!bed.has_checked(whole.id), "nothing is hashed again");
    wait_until("the session", || whole.session().moving.is_none());
    move_to(&bed, whole.id, &far).unwrap();
    drop(bed);
    let mut bed = whole.restore();
    bed.wait_seeding(whole.id);
    assert!(!bed.has_checked(whole.id), "a kill after a move changes nothing");
    assert_eq!(bed.stats(whole.id).root, far);
    let options = RemoveOptions { delete_data: true };
    let removed = bed.block_on(bed.torrents().remove(whole.id, options)).unwrap();
    assert_eq!((removed.deleted_count, removed.kept_count), (3, 0));
    assert!(is_empty(&far), "the files are the torrent's at the new place too");
}

/// A torrent that is not complete continues at the new place with its pieces.
#[test]
fn a_download_goes_on_after_a_move() {
    let files = [("a", 3 << 20), ("b", 2 << 20)];
    let torrent = Arc::new(Torrent::album(182, "album", &files, PIECE));
    let (folder, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let mut bed = Bed::start(&folder.path().join("state-dir"));
    let seed = Seed::limited(&torrent, 100);
    let id = bed.add(&torrent, &folder.path().join("data"), &[seed.address]);
    bed.wait_downloading(id);
    wait_until("pieces", || bed.have(id).len() >= 10);
    move_to(&bed, id, memory.path()).unwrap();
    bed.wait(id, "the move", |life| *life == Lifecycle::Moving);
    bed.wait_downloading(id);
    assert!(bed.have(id).len() >= 10);
    seed.release();
    bed.add_peer(id, seed.address);
    bed.wait_seeding(id);
    torrent.assert_whole(memory.path());
    assert!(is_empty(&folder.path().join("data")));
    let block = 16 << 10;
    assert!(
        bed.stats(id).downloaded <= torrent.data.len() as u64 + 100 * block,
        "pieces are kept"
    );
}

/// A paused torrent is moved without running, and a move that a kill interrupted is ended by the next run.
#[test]
fn a_move_is_ended_after_a_kill() {
    for (number, is_paused) in [(183, false), (184, true)] {
        let (whole, bed) = Whole::new(number);
        if is_paused {
            bed.block_on(bed.torrents().pause(whole.id)).unwrap();
        } else {
            bed.stop_all().unwrap();
        }
        drop(bed);
        for new in whole.places() {
            whole.interrupt(&new);
            let mut bed = whole.restore();
            let end = if is_paused {
                TorrentState::Paused
            } else {
                TorrentState::Seeding
            };
            bed.wait(whole.id, "the move", |life| *life == Lifecycle::Moving);
            bed.wait(whole.id, "the end", |life| life.state() == end);
            assert!(!is_paused || !bed.past(whole.id).iter().any(Lifecycle::is_running));
            whole.torrent.assert_whole(&new);
            wait_until("the session", || whole.session().moving.is_none());
            assert_eq!((whole.session().root, whole.session().paused), (new, is_paused));
            assert!(is_empty(&whole.root()));
            drop(bed);
        }
        let mut bed = whole.restore();
        if is_paused {
            bed.wait(whole.id, "the pause", |life| *life == Lifecycle::Paused);
            let moved = move_to(&bed, whole.id, &whole.root()).unwrap();
            assert_eq!(moved.root, whole.root());
            bed.wait(whole.id, "the pause", |life| *life == Lifecycle::Paused);
            bed.block_on(bed.torrents().start(whole.id)).unwrap();
        }
        bed.wait_seeding(whole.id);
    }
}

/// Refusals name the reason, and nothing has changed after them: the torrent does not even leave its peers.
#[test]
fn moves_are_refused_with_a_reason() {
    let (whole, mut bed) = Whole::new(185);
    let refusal = |bed: &Bed, id, root: &Path| match move_to(bed, id, root) {
        Err(Error::Move(error)) => error,
        other => panic!("{other:?}"),
    };
    for new in whole.places() {
        let taken = new.join("album/sub/c");
        fs::create_dir_all(taken.parent().unwrap()).unwrap();
        fs::write(&taken, "mine").unwrap();
        let error = refusal(&bed, whole.id, &new);
        assert!(matches!(error, MoveError::FileExists { .. }), "{error}");
        assert!(error.to_string().contains(taken.to_str().unwrap()), "{error}");
        assert_eq!(fs::read(&taken).unwrap(), b"mine");
        assert!(!new.join("album/a").exists());
        fs::remove_file(&taken).unwrap();
    }
    let error = refusal(&bed, whole.id, &whole.root().join("album/sub/new"));
    assert!(matches!(error, MoveError::IntoItself { .. }), "{error}");

    // Another torrent with files of the same names.
    let files = [("a", 1 << 20), ("other", 1 << 20)];
    let other = Arc::new(Torrent::album(186, "album", &files, PIECE));
    let seed = Seed::free(&other);
    let [near, far] = whole.places();
    let other_id = bed.add(&other, &far, &[seed.address]);
    bed.wait_seeding(other_id);
    for is_stopped in [false, true] {
        let error = refusal(&bed, whole.id, &far);
        assert!(
            matches!(error, MoveError::FileExists { .. } | MoveError::FilesTaken { .. }),
            "{error}"
        );
        if !is_stopped {
            bed.block_on(bed.torrents().stop_and_serialize(other_id)).unwrap();
            fs::remove_file(far.join("album/a")).unwrap();
        } else {
            assert!(matches!(error, MoveError::FilesTaken { .. }), "{error}");
        }
    }
    assert!(
        !bed.past(whole.id).iter().any(Lifecycle::is_stopping),
        "nothing was interrupted"
    );
    whole.torrent.assert_whole(&whole.root());

    let unknown = move_to(&bed, InfoHash([7; 20]), &near);
    assert!(matches!(unknown, Err(Error::TorrentNotFound(_))), "{unknown:?}");
    let magnet = format!("magnet:?xt=urn:btih:{}", "7".repeat(40));
    let id = bed.block_on(bed.torrents().download(magnet.as_str())).unwrap();
    let names = NewNames {
        name: Some("other".into()),
        ..NewNames::default()
    };
    let refused = bed.block_on(bed.torrents().rename(id, names));
    assert!(
        matches!(refused, Err(Error::Move(MoveError::NoMetadata(_)))),
        "{refused:?}"
    );
    let here = move_to(&bed, whole.id, &whole.root()).unwrap();
    assert_eq!(here.root, whole.root(), "there is nothing to do");
    // The folder may be named by another path.
    let link = whole.folder.path().join("link");
    std::os::unix::fs::symlink(whole.root(), &link).unwrap();
    move_to(&bed, whole.id, &link).unwrap();
    bed.wait_seeding(whole.id);
    whole.torrent.assert_whole(&whole.root());
}

/// Of a torrent without metadata only the download folder changes, durably. Its files are written there.
#[test]
fn a_torrent_without_metadata_gets_another_folder() {
    let torrent = Arc::new(Torrent::album(188, "album", &[("a", 1 << 20), ("b", 1 << 20)], PIECE));
    let folder = tempfile::tempdir().unwrap();
    let [state, first, second] = ["state-dir", "first", "second"].map(|name| folder.path().join(name));
    let bed = Bed::start(&state);
    let magnet = format!("magnet:?xt=urn:btih:{}", torrent.info_hash());
    let options = AddOptions {
        root: Some(first.clone()),
        ..AddOptions::default()
    };
    let added = bed.block_on(bed.torrents().download_with(magnet.as_str(), options));
    let id = added.unwrap().0;
    assert_eq!(move_to(&bed, id, &second).unwrap().root, second);
    // An engine that is dropped saves nothing, as if it were killed.
    drop(bed);
    let mut bed = Bed::restored(settings(Some(&state)));
    wait_until("the folder", || bed.stats(id).root == second);
    let seed = Seed::free(&torrent);
    let options = AddOptions {
        peers: vec![seed.address],
        ..AddOptions::default()
    };
    bed.add_with(&torrent, options);
    bed.wait_seeding(id);
    torrent.assert_whole(&second);
    assert!(!first.exists());
}

/// A user's file is copied, stays, and is named in the answer.
#[test]
fn files_of_the_user_are_copied() {
    let torrent = Torrent::album(187, "album", &[("a", 1 << 20), ("b", 1 << 20)], PIECE);
    let (folder, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let root = folder.path().join("data");
    torrent.place(&root);
    let mut bed = Bed::start(&folder.path().join("state-dir"));
    let id = bed.add(&torrent, &root, &[]);
    bed.wait_seeding(id);
    for new in [folder.path().join("near"), memory.path().to_owned()] {
        let old = bed.stats(id).root;
        let moved = move_to(&bed, id, &new).unwrap();
        bed.wait_seeding(id);
        torrent.assert_whole(&new);
        torrent.assert_whole(&root);
        let kept: Vec<&str> = moved.kept.iter().map(|kept| &*kept.path).collect();
        let expected: &[&str] = if old == root { &["album/a", "album/b"] } else { &[] };
        assert_eq!(kept, expected);
        // From then on, the copies are the torrent's.
        assert!(old == root || is_empty(&old));
    }
}

/// A full disk is named, and the files are where they were, and nowhere else.
#[test]
fn a_full_disk_undoes_a_move() {
    if !can_mount("moving::a_full_disk_undoes_a_move") {
        return;
    }
    let (whole, mut bed) = Whole::new(188);
    let place = whole.folder.path().join("small");
    let volume = Volume::new(&place, 4 << 20);
    let error = move_to(&bed, whole.id, &volume.place().join("new")).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, Error::Move(MoveError::Failed { .. })) && text.contains("o space left"),
        "{text}"
    );
    assert!(text.contains(volume.place().to_str().unwrap()), "{text}");
    bed.wait(whole.id, "the move", |life| *life == Lifecycle::Moving);
    bed.wait_seeding(whole.id);
    whole.torrent.assert_whole(&whole.root());
    assert!(!volume.place().join("new/album").exists());
    wait_until("the session", || whole.session().moving.is_none());
    assert_eq!(bed.stats(whole.id).root, whole.root());
}

/// A pause during a move interrupts it; then a start continues the move, or a move to the old place undoes it. A
/// removal leaves nothing at either place.
#[test]
fn a_move_is_interrupted_by_a_pause_and_by_a_removal() {
    for (number, delete_data) in [(189, false), (190, true)] {
        let (whole, bed) = Whole::new(number);
        bed.stop_all().unwrap();
        drop(bed);
        let [near, far] = whole.places();
        // The files have second names at the new place, and the session is not switched.
        whole.interrupt(&near);
        for entry in whole.torrent.metainfo.info.files.files() {
            let target = near.join(&*entry.path);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::hard_link(whole.root().join(&*entry.path), target).unwrap();
        }
        let mut session = whole.session();
        session.paused = true;
        session.moving.as_mut().unwrap().stage = MoveStage::Undoing;
        fs::write(whole.torrent.session_path(&whole.state()), session.to_text()).unwrap();
        let mut bed = whole.restore();
        bed.wait(whole.id, "the pause", |life| *life == Lifecycle::Paused);
        whole.torrent.assert_whole(&whole.root());
        assert!(!near.join("album/a").exists(), "undone");
        drop(bed);

        whole.interrupt(&far);
        let mut session = whole.session();
        session.paused = false;
        fs::write(whole.torrent.session_path(&whole.state()), session.to_text()).unwrap();
        let bed = whole.restore();
        let options = RemoveOptions { delete_data };
        bed.block_on(bed.torrents().remove(whole.id, options)).unwrap();
        let is_there = |root: &Path| root.join("album/a").exists();
        let (at_old, at_new) = (is_there(&whole.root()), is_there(&far));
        assert_eq!(usize::from(at_old) + usize::from(at_new), usize::from(!delete_data));
        if !delete_data {
            whole.torrent.assert_whole(&if at_new { far } else { whole.root() });
        }
    }
}

/// A torrent whose files are skipped takes its part file along.
#[test]
fn a_part_file_goes_along() {
    let files = [("a", 100_000), ("b", 100_000), ("c", 100_000)];
    let torrent = Arc::new(Torrent::album(191, "album", &files, PIECE));
    let (folder, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let mut bed = Bed::start(&folder.path().join("state-dir"));
    let seed = Seed::free(&torrent);
    let options = AddOptions {
        root: Some(folder.path().join("data")),
        peers: vec![seed.address],
        select: ecs_torrent::components::selection::FileSelection::new([0..=0, 2..=2], []).unwrap(),
        ..AddOptions::default()
    };
    let id = bed.add_with(&torrent, options);
    bed.wait(id, "the end", |life| *life == Lifecycle::Finished);
    let part = format!(".{}.parts", torrent.info_hash());
    assert!(folder.path().join("data").join(&part).exists());
    move_to(&bed, id, memory.path()).unwrap();
    bed.wait(id, "the move", |life| *life == Lifecycle::Moving);
    bed.wait(id, "the end", |life| *life == Lifecycle::Finished);
    assert!(memory.path().join(&part).exists() && is_empty(&folder.path().join("data")));
    assert!(!bed.has_checked(id));
    let wanted = [(1..=1, ecs_torrent::components::wanted::FilePriority::Normal)];
    bed.block_on(bed.torrents().set_files(id, wanted)).unwrap();
    bed.add_peer(id, seed.address);
    bed.wait_seeding(id);
    torrent.assert_whole(memory.path());
    wait_until("the end of the part file", || !memory.path().join(&part).exists());
}

fn relocate(bed: &Bed, id: InfoHash, root: &Path) -> Result<(), Error> {
    bed.block_on(bed.torrents().relocate(id, root))
}

/// Files that the user has moved are taken where they are, without a check, in a running and in a paused torrent; a
/// folder without them is refused by name.
#[test]
fn files_that_the_user_has_moved_are_found() {
    let (whole, mut bed) = Whole::new(192);
    let [near, far] = whole.places();
    let refusal = |bed: &Bed, root: &Path| match relocate(bed, whole.id, root) {
        Err(Error::Move(error @ MoveError::NotThere { .. })) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let reason = refusal(&bed, &near);
    assert!(reason.contains(near.join("album/a").to_str().unwrap()), "{reason}");
    fs::create_dir_all(near.parent().unwrap()).unwrap();
    fs::rename(whole.root(), &near).unwrap();
    relocate(&bed, whole.id, &near).unwrap();
    assert_eq!((whole.session().root, whole.session().moving), (near.clone(), None));
    bed.wait(whole.id, "the opening", |life| *life == Lifecycle::Adding);
    bed.wait_seeding(whole.id);
    assert!(!bed.has_checked(whole.id));
    assert_eq!(bed.stats(whole.id).root, near);

    bed.block_on(bed.torrents().pause(whole.id)).unwrap();
    fs::rename(&near, whole.root()).unwrap();
    relocate(&bed, whole.id, &whole.root()).unwrap();
    bed.wait(whole.id, "the opening", |life| *life == Lifecycle::Adding);
    bed.wait(whole.id, "the pause", |life| *life == Lifecycle::Paused);
    bed.block_on(bed.torrents().start(whole.id)).unwrap();
    bed.wait_seeding(whole.id);
    assert!(!bed.has_checked(whole.id));

    // A copy on another file system is hashed, and a file of another length is named.
    bed.block_on(bed.torrents().pause(whole.id)).unwrap();
    whole.torrent.place(&far);
    let cut = fs::File::options().write(true).open(far.join("album/sub/b")).unwrap();
    cut.set_len(5).unwrap();
    assert!(refusal(&bed, &far).contains("sub/b"));
    whole.torrent.place(&far);
    relocate(&bed, whole.id, &far).unwrap();
    bed.wait(whole.id, "the check", |life| *life == Lifecycle::Checking);
    bed.wait(whole.id, "the pause", |life| *life == Lifecycle::Paused);
    assert_eq!(
        bed.have(whole.id).len(),
        whole.torrent.geometry().piece_count() as usize
    );
}

/// A torrent that waits for its volume continues when the volume is found under another path.
#[test]
fn a_volume_is_found_under_another_path() {
    if !can_mount("moving::a_volume_is_found_under_another_path") {
        return;
    }
    let torrent = Arc::new(Torrent::album(193, "album", &[("a", 500_000), ("b", 500_000)], PIECE));
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let volume = Volume::new(&folder.path().join("volume"), 8 << 20);
    let mounted = volume.again(&first);
    let mut bed = Bed::start(&folder.path().join("state-dir"));
    let seed = Seed::free(&torrent);
    let id = bed.add(&torrent, &first.join("data"), &[seed.address]);
    bed.wait_seeding(id);
    bed.block_on(bed.torrents().pause(id)).unwrap();
    drop(mounted);
    bed.block_on(bed.torrents().start(id)).unwrap();
    bed.wait_blocked(id);
    let _mounted = volume.again(&second);
    relocate(&bed, id, &second.join("data")).unwrap();
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id), "{:?}", bed.past(id));
    torrent.assert_whole(&second.join("data"));
    assert!(is_empty(&first));
}
