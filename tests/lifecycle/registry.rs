//! Torrents whose files collide with those of other torrents or of the user: nothing is overwritten, and the caller
//! gets an error.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::{AddError, AddOptions, Error, InfoHash, TorrentState};

use crate::bed::{Bed, Torrent, settings, wait_until};
use crate::child::{NO_LIMITS, Process};
use crate::removing::{DELETE, kept, names, paths};
use crate::seed::Seed;
use crate::volumes::{Volume, can_mount};

/// Creates options with a root folder and a seed.
fn from(root: &Path, torrent: &Arc<Torrent>) -> AddOptions {
    AddOptions {
        root: Some(root.to_owned()),
        peers: vec![Seed::free(torrent).address],
        ..AddOptions::default()
    }
}

/// Adds a torrent that is refused, and asserts that it leaves nothing behind.
#[track_caller]
fn refused(bed: &Bed, torrent: &Torrent, options: AddOptions) -> AddError {
    let listed = bed.list();
    let metainfo = torrent.metainfo.clone();
    let result = bed.block_on(bed.torrents().download_with(metainfo, options));
    let Err(Error::Add(error)) = result else {
        panic!("not refused: {result:?}");
    };
    assert_eq!(bed.list(), listed);
    assert_eq!(error.to_string().lines().count(), 1);
    error
}

#[track_caller]
fn assert_taken(error: &AddError, by: &Torrent, expected_path: &str) {
    let AddError::FilesTaken { other, path, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!((&**other, &**path), (by.metainfo.info.name.as_str(), expected_path));
    let text = error.to_string();
    assert!(text.contains("--into") && text.contains("--name"), "{text}");
}

/// Creates two torrents of one file `data`, with the same length and different content.
fn two() -> [Arc<Torrent>; 2] {
    [1, 2].map(|seed| Arc::new(Torrent::single(1000 + seed, 300_000, 32 << 10)))
}

/// A second torrent with a path of the first one is refused if the first one runs, has been stopped, or was stopped by
/// an earlier run. The first torrent's data and session stay correct.
#[test]
fn a_file_has_one_writer() {
    let [first, second] = two();
    let longer = Arc::new(Torrent::single(1003, 400_000, 32 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let half = Seed::limited(&first, 9);
    let mut bed = Bed::start(&state);
    let id = bed.add(&first, &root, &[half.address]);
    bed.wait_downloading(id);
    half.wait_served(9);
    // The first torrent has written data but not synced it yet.
    assert_taken(&refused(&bed, &second, from(&root, &second)), &first, "data");
    assert_taken(&refused(&bed, &longer, from(&root, &longer)), &first, "data");
    half.release();
    bed.wait_seeding(id);
    assert_taken(&refused(&bed, &second, from(&root, &second)), &first, "data");
    let overwrite = AddOptions {
        overwrite: true,
        ..from(&root, &second)
    };
    assert_taken(&refused(&bed, &second, overwrite.clone()), &first, "data");
    first.wait_saved_complete(&state);
    assert_eq!(bed.stats(id).state, TorrentState::Seeding);

    bed.stop(id).unwrap();
    assert_taken(&refused(&bed, &longer, from(&root, &longer)), &first, "data");
    drop(bed);
    let mut bed = Bed::start(&state);
    assert_taken(&refused(&bed, &longer, from(&root, &longer)), &first, "data");
    // By its length, the content may be the same; reading shows that it is not.
    for options in [from(&root, &second), overwrite] {
        let second_id = bed.add_with(&second, options);
        let reason = bed.wait_failed(second_id);
        assert!(reason.contains("a file of the torrent data"), "{reason}");
        first.assert_whole(&root);
    }
    let removed = bed.block_on(bed.torrents().remove(second.info_hash(), DELETE)).unwrap();
    assert_eq!(removed.deleted_count, 0);
    first.assert_true(&first.session(&state).unwrap(), &root);
    assert_eq!(bed.resume_all(), 1);
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id));
    first.assert_whole(&root);
}

/// Downloads half of a torrent's file `data`, and pauses it.
fn half_downloaded(bed: &mut Bed, torrent: &Arc<Torrent>, root: &Path) -> InfoHash {
    let half = Seed::limited(torrent, 9);
    let id = bed.add(torrent, root, &[half.address]);
    half.wait_served(9);
    // One of the nine may be the last block, which is shorter.
    wait_until("half of it", || bed.stats(id).downloaded > 8 * (16 << 10));
    bed.block_on(bed.torrents().pause(id)).unwrap();
    bed.wait(id, "the pause", |life| *life == Lifecycle::Paused);
    id
}

/// Asserts that a torrent of one file `data` keeps it from torrents of the same and of another length, with
/// `overwrite` too, and completes from a seed afterward.
#[track_caller]
fn assert_keeps_its_file(bed: &Bed, first: &Torrent, root: &Path) {
    let before = fs::read(root.join("data")).unwrap();
    for len in [300_000, 400_000] {
        let other = Arc::new(Torrent::single(1004, len, 32 << 10));
        for overwrite in [false, true] {
            let options = AddOptions {
                overwrite,
                ..from(root, &other)
            };
            assert_taken(&refused(bed, &other, options), first, "data");
        }
    }
    assert!(fs::read(root.join("data")).unwrap() == before, "it was changed");
}

/// Starts a torrent, and asserts that it completes.
fn assert_completes(bed: &mut Bed, torrent: &Arc<Torrent>, root: &Path) {
    let id = torrent.info_hash();
    bed.block_on(bed.torrents().start(id)).unwrap();
    bed.add_peer(id, Seed::free(torrent).address);
    bed.wait_seeding(id);
    torrent.assert_whole(root);
}

/// A paused torrent keeps its files, which are closed, in this run and in the next one.
#[test]
fn a_paused_torrent_keeps_its_files() {
    let [first, _] = two();
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let mut bed = Bed::start(&state);
    let id = half_downloaded(&mut bed, &first, &root);
    assert_keeps_its_file(&bed, &first, &root);
    drop(bed);
    let mut bed = Bed::start(&state);
    assert_keeps_its_file(&bed, &first, &root);
    assert_eq!(bed.block_on(bed.torrents().restore()).unwrap(), 1);
    bed.wait(id, "the pause", |life| *life == Lifecycle::Paused);
    assert_keeps_its_file(&bed, &first, &root);
    assert_completes(&mut bed, &first, &root);
}

/// A torrent that has failed keeps its files, in this run and in the next one.
#[test]
fn a_failed_torrent_keeps_its_files() {
    let [first, _] = two();
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let (file, aside) = (root.join("data"), root.join("aside"));
    // A folder in the place of its file fails the torrent.
    let obstruct = || {
        fs::rename(&file, &aside).unwrap();
        fs::create_dir(&file).unwrap();
    };
    let clear = || {
        fs::remove_dir(&file).unwrap();
        fs::rename(&aside, &file).unwrap();
    };
    let mut bed = Bed::start(&state);
    let id = half_downloaded(&mut bed, &first, &root);
    obstruct();
    bed.block_on(bed.torrents().start(id)).unwrap();
    bed.wait_failed(id);
    clear();
    assert_keeps_its_file(&bed, &first, &root);
    drop(bed);
    obstruct();
    let mut bed = Bed::restored(settings(Some(&state)));
    bed.wait_failed(id);
    clear();
    assert_keeps_its_file(&bed, &first, &root);
    bed.block_on(bed.torrents().pause(id)).unwrap();
    assert_completes(&mut bed, &first, &root);
}

/// A collision is resolved by another folder or another name, which are kept across a restart.
#[test]
fn another_folder_and_another_name() {
    let [first, second] = two();
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let mut bed = Bed::start(&state);
    let id = bed.add_with(&first, from(&root, &first));
    bed.wait_seeding(id);
    let other = second.info_hash();
    let into = AddOptions {
        into: Some("second".into()),
        ..from(&root, &second)
    };
    let name = AddOptions {
        name: Some("renamed".into()),
        ..from(&root, &second)
    };
    for (options, path) in [(into, "second/data"), (name, "renamed")] {
        assert_eq!(bed.add_with(&second, options), other);
        bed.wait_seeding(other);
        assert!(fs::read(root.join(path)).unwrap() == second.data);
        bed.stop_all().unwrap();
        drop(bed);
        bed = Bed::start(&state);
        assert_eq!(bed.resume_all(), 2);
        bed.wait_seeding(other);
        assert!(!bed.has_checked(other), "{path}");
        let removed = bed.block_on(bed.torrents().remove(other, DELETE)).unwrap();
        assert_eq!(
            paths(&removed),
            [Path::new(path).file_name().unwrap().to_str().unwrap()]
        );
    }
    first.assert_whole(&root);
    // The user named the folder, so it stays.
    assert_eq!(names(&root), ["data", "second"]);
    assert_eq!(names(&root.join("second")), Vec::<String>::new());
    let bad = |options| refused(&bed, &second, options);
    let error = bad(AddOptions {
        name: Some("../x".into()),
        ..from(&root, &second)
    });
    assert!(matches!(error, AddError::BadName { .. }), "{error}");
    let error = bad(AddOptions {
        into: Some("../x".into()),
        ..from(&root, &second)
    });
    assert!(matches!(error, AddError::BadFolder { .. }), "{error}");
}

/// Torrents with the same content share it, and removing one leaves it to the other.
#[test]
fn the_same_content_is_shared() {
    let first = Arc::new(Torrent::single(1010, 300_000, 32 << 10));
    let second = Arc::new(Torrent::single(1010, 300_000, 64 << 10));
    assert_ne!(first.info_hash(), second.info_hash());
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let mut bed = Bed::start(&state);
    let id = bed.add_with(&first, from(&root, &first));
    bed.wait_seeding(id);
    let before = fs::metadata(root.join("data")).unwrap().modified().unwrap();
    let other = bed.add(&second, &root, &[]);
    bed.wait_seeding(other);
    assert_eq!(fs::metadata(root.join("data")).unwrap().modified().unwrap(), before);
    second.wait_saved_complete(&state);
    // The file also stays while the other torrent is stopped.
    bed.stop(other).unwrap();
    let removed = bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
    assert_eq!(kept(&removed), [("data", "another torrent uses it too")]);
    second.assert_whole(&root);
    let removed = bed.block_on(bed.torrents().remove(other, DELETE)).unwrap();
    assert_eq!((removed.deleted_count, removed.kept_count), (0, 1));
    second.assert_whole(&root);
}

/// A stopped torrent that is added to another folder, and refused there, stays stopped: its session is as it was. A
/// refused torrent that was not there before leaves nothing.
#[test]
fn a_refusal_keeps_what_was_saved() {
    let [first, second] = two();
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let elsewhere = folder.path().join("elsewhere");
    let mut bed = Bed::start(&state);
    let id = bed.add_with(&first, from(&root, &first));
    bed.wait_seeding(id);
    bed.stop(id).unwrap();
    let other = bed.add_with(&second, from(&elsewhere, &second));
    bed.wait_seeding(other);
    assert_taken(&refused(&bed, &first, from(&elsewhere, &first)), &second, "data");
    let new = Arc::new(Torrent::single(1003, 300_000, 32 << 10));
    assert_taken(&refused(&bed, &new, from(&elsewhere, &new)), &second, "data");
    assert!(new.session(&state).is_none() && !new.session_path(&state).with_extension("torrent").exists());
    bed.block_on(bed.torrents().resume(id)).unwrap();
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id));
    first.assert_whole(&root);
}

/// Another root that leads to the same file is detected.
#[test]
fn another_root_leads_to_the_same_file() {
    let album = Arc::new(Torrent::album(1020, "sub", &[("x.bin", 100_000)], 32 << 10));
    let single = Arc::new(Torrent::make(1021, "x.bin", &[("", 100_000)], 32 << 10, &[]));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let mut bed = Bed::start(&state);
    let id = bed.add_with(&album, from(&root, &album));
    bed.wait_seeding(id);
    assert_taken(
        &refused(&bed, &single, from(&root.join("sub"), &single)),
        &album,
        "x.bin",
    );
    // A symbolic link to the folder is detected too.
    std::os::unix::fs::symlink(root.join("sub"), folder.path().join("link")).unwrap();
    let link = folder.path().join("link");
    assert_taken(&refused(&bed, &single, from(&link, &single)), &album, "x.bin");
    album.assert_whole(&root);
    let removed = bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
    assert_eq!(paths(&removed), ["sub/x.bin"]);
    let id = bed.add_with(&single, from(&root.join("sub"), &single));
    bed.wait_seeding(id);
    assert_taken(&refused(&bed, &album, from(&root, &album)), &single, "sub/x.bin");
}

/// Files of the user that are too short are completed only with `overwrite`, and stay the user's.
#[test]
fn a_partial_file_of_the_user() {
    let torrent = Arc::new(Torrent::single(1030, 300_000, 32 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    fs::create_dir(&root).unwrap();
    let file = root.join("data");
    let mut bed = Bed::start(&state);
    let id = torrent.info_hash();
    for len in [0, 100_000] {
        fs::write(&file, &torrent.data[..len]).unwrap();
        let error = refused(&bed, &torrent, from(&root, &torrent));
        assert!(
            matches!(&error, AddError::WouldChange { path, .. } if **path == *"data"),
            "{error:?}"
        );
        let text = error.to_string();
        for way in ["--into", "--name", "--overwrite"] {
            assert!(text.contains(way), "{text}");
        }
        assert!(fs::read(&file).unwrap() == torrent.data[..len], "it was changed");
        assert!(!torrent.session_path(&state).exists());

        let overwrite = AddOptions {
            overwrite: true,
            ..from(&root, &torrent)
        };
        assert_eq!(bed.add_with(&torrent, overwrite), id);
        bed.wait_seeding(id);
        torrent.assert_whole(&root);
        let good = len as u64 / (32 << 10) * (32 << 10);
        assert_eq!(bed.stats(id).downloaded, 300_000 - good, "what is right is used");
        // The next run also knows that the file is the user's.
        bed.stop_all().unwrap();
        drop(bed);
        bed = Bed::start(&state);
        assert_eq!(bed.resume_all(), 1);
        bed.wait_seeding(id);
        let removed = bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
        assert_eq!(kept(&removed), [("data", "it was there before the torrent")]);
        torrent.assert_whole(&root);
    }
}

/// A file of the user with the right length is read, and left unchanged if its content is wrong. Adding the torrent
/// again applies the new options.
#[test]
fn a_wrong_file_of_the_user() {
    let torrent = Arc::new(Torrent::single(1040, 300_000, 32 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    torrent.place(&root);
    let mut bytes = torrent.data.clone();
    bytes[100_000..200_000].fill(0);
    fs::write(root.join("data"), &bytes).unwrap();
    let mut bed = Bed::start(&state);
    let id = bed.add_with(&torrent, from(&root, &torrent));
    let reason = bed.wait_failed(id);
    assert!(
        reason.contains("--overwrite") && reason.starts_with("data already exists"),
        "{reason}"
    );
    assert!(fs::read(root.join("data")).unwrap() == bytes, "it was changed");
    let elsewhere = AddOptions {
        into: Some("new".into()),
        ..from(&root, &torrent)
    };
    bed.add_with(&torrent, elsewhere);
    bed.wait_seeding(id);
    torrent.assert_whole(&root.join("new"));
    assert!(fs::read(root.join("data")).unwrap() == bytes, "it was changed");
    bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
    assert_eq!(names(&root.join("new")), Vec::<String>::new());

    bed.add_with(&torrent, from(&root, &torrent));
    bed.wait_failed(id);
    let overwrite = AddOptions {
        overwrite: true,
        ..from(&root, &torrent)
    };
    bed.add_with(&torrent, overwrite);
    bed.wait_seeding(id);
    torrent.assert_whole(&root);
}

/// A complete file of the user that shares its last piece with a missing neighbor stays the user's, also with
/// preallocation.
#[test]
fn a_neighbor_of_a_missing_file() {
    for preallocate in [false, true] {
        let torrent = Arc::new(Torrent::album(
            1050,
            "album",
            &[("a", 100_000), ("b", 100_000), ("empty", 0), ("none", 0)],
            32 << 10,
        ));
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        torrent.place(&root);
        fs::remove_file(root.join("album/b")).unwrap();
        fs::remove_file(root.join("album/none")).unwrap();
        let old = SystemTime::now() - Duration::from_secs(86_400);
        let file = fs::File::options().write(true).open(root.join("album/a")).unwrap();
        file.set_modified(old).unwrap();
        let mut settings = settings(Some(&state));
        settings.storage.preallocate = preallocate;
        let mut bed = Bed::start_with(settings);
        let id = bed.add_with(&torrent, from(&root, &torrent));
        bed.wait_seeding(id);
        torrent.assert_whole(&root);
        assert_eq!(file.metadata().unwrap().modified().unwrap(), old, "it was written");
        bed.stop(id).unwrap();
        // A stopped torrent knows the ownership too.
        let removed = bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
        assert_eq!(paths(&removed), ["album/b", "album/none"]);
        let why = "it was there before the torrent";
        assert_eq!(kept(&removed), [("album/a", why), ("album/empty", why)]);
        assert_eq!(names(&root.join("album")), ["a", "empty"]);
        assert_eq!(names(&state.join("state")), Vec::<String>::new());
        let missing = bed.block_on(bed.torrents().remove(id, DELETE));
        assert!(matches!(missing, Err(Error::TorrentNotFound(_))), "{missing:?}");
    }
}

/// A file belongs to the torrent that created it from the first byte on. A kill before any other save does not make it
/// the user's, and neither does damage to the session.
#[test]
fn a_killed_torrent_keeps_its_files() {
    let torrent = Arc::new(Torrent::album(
        1060,
        "album",
        &[("a", 500_000), ("b", 500_000)],
        32 << 10,
    ));
    for is_damaged in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        let mut long = settings(Some(&state));
        long.session.checkpoint_interval_s = 3600;
        let seed = Seed::limited(&torrent, 20);
        let mut child = Process::start(&long, &[(&torrent, &root, seed.address)], NO_LIMITS);
        seed.wait_served(20);
        wait_until("a file", || {
            root.join("album/a").exists() || root.join("album/b").exists()
        });
        child.kill();
        if is_damaged {
            let text = fs::read_to_string(torrent.session_path(&state)).unwrap();
            fs::write(torrent.session_path(&state), text.replace("uploaded", "uploadex")).unwrap();
        }
        let mut bed = Bed::start(&state);
        assert_eq!(bed.resume_all(), 1);
        let id = torrent.info_hash();
        bed.add_peer(id, Seed::free(&torrent).address);
        bed.wait_seeding(id);
        torrent.assert_whole(&root);
        let removed = bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
        assert_eq!(paths(&removed), ["album/a", "album/b"], "damaged: {is_damaged}");
        assert_eq!(names(&root), Vec::<String>::new());
    }
}

/// Adding returns only once the next run would find the torrent.
#[test]
fn an_answer_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let bed = Bed::start(&state);
    for number in 0..20 {
        let torrent = Torrent::make(1100 + number, &format!("t{number}"), &[("", 40_000)], 32 << 10, &[]);
        bed.add(&torrent, &root, &[]);
        assert!(torrent.session(&state).is_some(), "{number}");
    }
}

/// A torrent that cannot be saved is not added, and the caller gets the reason.
#[test]
fn an_add_that_cannot_be_saved() {
    if !can_mount("registry::an_add_that_cannot_be_saved") {
        return;
    }
    let torrent = Arc::new(Torrent::single(1070, 300_000, 32 << 10));
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("data");
    let volume = Volume::new(&folder.path().join("state-dir"), 256 << 10);
    let mut bed = Bed::start(volume.place());
    let ballast = volume.fill();
    let error = refused(&bed, &torrent, from(&root, &torrent));
    let text = error.to_string();
    assert!(
        matches!(error, AddError::Unsaved { .. }) && text.contains("No space left"),
        "{text}"
    );
    assert!(!root.exists(), "nothing is created before it is saved that it will be");
    fs::remove_file(ballast).unwrap();
    let id = bed.add_with(&torrent, from(&root, &torrent));
    bed.wait_seeding(id);
}

/// Adding a torrent that is already present gives it the peers of the new options.
#[test]
fn peers_of_a_torrent_that_is_there() {
    let torrent = Arc::new(Torrent::single(1080, 300_000, 32 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let mut bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[]);
    bed.wait_downloading(id);
    assert_eq!(bed.add_with(&torrent, from(&root, &torrent)), id);
    bed.wait_seeding(id);
}

/// A torrent that may not download fails if a piece is bad. When the user adds it again to download it to another
/// folder, it does, and leaves the first folder as it is.
#[test]
fn a_failed_seed_is_downloaded_elsewhere() {
    let torrent = Arc::new(Torrent::single(1085, 300_000, 32 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let elsewhere = folder.path().join("elsewhere");
    torrent.place(&root);
    let mut bad = fs::read(root.join("data")).unwrap();
    bad[0] ^= 1;
    fs::write(root.join("data"), &bad).unwrap();
    let mut bed = Bed::start(&state);
    let id = bed.add_with(
        &torrent,
        AddOptions {
            root: Some(root.clone()),
            require_complete: true,
            ..AddOptions::default()
        },
    );
    let reason = bed.wait_failed(id);
    assert!(reason.starts_with("1 of 10 pieces are missing or bad"), "{reason}");
    assert_eq!(bed.add_with(&torrent, from(&elsewhere, &torrent)), id);
    bed.wait_seeding(id);
    torrent.assert_whole(&elsewhere);
    assert_eq!(fs::read(root.join("data")).unwrap(), bad);
    assert_eq!(names(&root), ["data"]);
    bed.stop_all().unwrap();
    drop(bed);
    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 1);
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id), "its session names the new folder");
}

/// An add that coincides with a stop or a removal of the same torrent waits for its end, then takes effect.
#[test]
fn an_add_that_meets_an_end() {
    let torrent = Arc::new(Torrent::single(1090, 300_000, 32 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let mut bed = Bed::start(&state);
    let id = bed.add_with(&torrent, from(&root, &torrent));
    bed.wait_seeding(id);
    for round in 0..30 {
        let torrents = bed.torrents();
        let again = torrents.download_with(torrent.metainfo.clone(), from(&root, &torrent));
        let (ended, added) = bed.block_on(async {
            match round % 3 {
                0 => {
                    let (ended, added) = tokio::join!(torrents.stop_and_serialize(id), again);
                    (ended, added)
                }
                1 => {
                    let (ended, added) = tokio::join!(torrents.remove(id, DELETE), again);
                    (ended.map(drop), added)
                }
                _ => {
                    let (ended, added) = tokio::join!(torrents.stop_all_and_serialize(), again);
                    (ended, added)
                }
            }
        });
        ended.unwrap();
        // The add was requested after the stop or removal.
        assert_eq!(added.unwrap().0, id);
        assert_eq!(bed.list(), [id], "round {round}");
        assert!(torrent.session(&state).is_some(), "round {round}");
        bed.wait(id, "the torrent", |life| *life == Lifecycle::Seeding);
    }
}

/// If a torrent is stopped and the user creates a file at a path that the torrent has not created yet, the file is the
/// user's: it is neither overwritten nor deleted. Files that the torrent created still belong to it.
#[test]
fn a_file_that_comes_while_it_is_stopped() {
    let files = [("a", 64 << 10), ("b", 64 << 10), ("c", 64 << 10)];
    let torrent = Arc::new(Torrent::album(1100, "album", &files, 64 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let mut bed = Bed::start(&state);
    // Four blocks are one piece and one file. The seed sends no more.
    let seed = Seed::limited(&torrent, 4);
    let id = bed.add(&torrent, &root, &[seed.address]);
    bed.wait_downloading(id);
    seed.wait_served(4);
    bed.stop_all().unwrap();
    drop(bed);
    let made = names(&root.join("album"));
    let absent = ["a", "b", "c"]
        .into_iter()
        .find(|name| !made.contains(&(*name).to_owned()));
    let path = root.join("album").join(absent.expect("a file that was not created"));
    fs::write(&path, "mine").unwrap();

    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 1);
    let reason = bed.wait_failed(id);
    assert!(reason.contains("--overwrite"), "{reason}");
    let removed = bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
    assert_eq!(kept(&removed).len(), 1, "{removed:?}");
    assert_eq!(removed.deleted.len(), made.len(), "{removed:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

/// A second mount point of a download folder leads to the same files. A torrent that would write a file of another one
/// there is refused before either has created the file, whether the other one runs or was stopped by an earlier run.
#[test]
fn a_second_mount_point_is_no_second_folder() {
    if !can_mount("registry::a_second_mount_point_is_no_second_folder") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let volume = Volume::new(&root, 4 << 20);
    let again = volume.again(&folder.path().join("again"));
    let [first, second] = two();
    let mut bed = Bed::start(&state);
    let id = bed.add(&first, &root, &[]);
    bed.wait_downloading(id);
    assert_taken(&refused(&bed, &second, from(again.place(), &second)), &first, "data");
    bed.stop_all().unwrap();
    drop(bed);
    let mut bed = Bed::start(&state);
    assert_taken(&refused(&bed, &second, from(again.place(), &second)), &first, "data");
    assert_eq!(names(&root), Vec::<String>::new());
    let other_folder = AddOptions {
        into: Some("other".into()),
        ..from(again.place(), &second)
    };
    let id = bed.add_with(&second, other_folder);
    bed.wait_seeding(id);
    assert!(fs::read(root.join("other/data")).unwrap() == second.data);
}
