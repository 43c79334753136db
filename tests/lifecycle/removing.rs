//! Removals of torrents: deleted and kept files.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ecs_torrent::{AddOptions, Error, RemoveOptions, Removed, StopPhase, TorrentState};

use crate::bed::{Bed, Torrent};
use crate::content::noise;
use crate::seed::Seed;

pub const DELETE: RemoveOptions = RemoveOptions { delete_data: true };

/// Returns the paths of the deleted files.
pub fn paths(removed: &Removed) -> Vec<&str> {
    removed.deleted.iter().map(|path| &**path).collect()
}

/// Returns the paths of the kept files, and the reasons.
pub fn kept(removed: &Removed) -> Vec<(&str, &str)> {
    let kept = removed.kept.iter();
    kept.map(|file| (&*file.path, &*file.reason)).collect()
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Removing a torrent with its data deletes only what the torrent created: no siblings, no files of another torrent in
/// the same folder, no files that existed before. This includes files that an earlier run created.
#[test]
fn only_its_own() {
    let one = Arc::new(Torrent::album(
        78,
        "album",
        &[("a", 200_000), ("deep/down/b", 90_000), ("same", 50_000)],
        32 << 10,
    ));
    let other = Arc::new(Torrent::album(
        79,
        "album",
        &[("deep/c", 70_000), ("d", 50_000)],
        32 << 10,
    ));
    let there = Torrent::album(77, "there", &[("x", 100_000)], 32 << 10);
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    there.place(&root);
    fs::write(root.join("sibling"), "mine").unwrap();
    let mut bed = Bed::start(&state);
    let seed = Seed::free(&one);
    let id = bed.add(&one, &root, &[seed.address]);
    bed.wait_seeding(id);
    let there_id = bed.add(&there, &root, &[]);
    bed.wait_seeding(there_id);
    bed.stop_all().unwrap();
    drop(bed);
    fs::write(root.join("album/notes"), "mine too").unwrap();

    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 2);
    bed.wait_seeding(id);
    let other_id = bed.add(&other, &root, &[Seed::free(&other).address]);
    bed.wait_seeding(other_id);
    other.wait_saved_complete(&state);
    let removed = bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
    assert_eq!(paths(&removed), ["album/a", "album/deep/down/b", "album/same"]);
    assert_eq!(removed.kept, []);
    assert_eq!(names(&root.join("album")), ["d", "deep", "notes"]);
    assert_eq!(names(&root.join("album/deep")), ["c"]);
    other.assert_whole(&root);
    let missing = bed.block_on(bed.torrents().remove(id, DELETE));
    assert!(matches!(missing, Err(Error::TorrentNotFound(_))), "{missing:?}");
    bed.block_on(bed.torrents().remove(other_id, DELETE)).unwrap();
    assert_eq!(names(&root.join("album")), ["notes"]);
    // Files that existed before the torrent was added belong to the user.
    let removed = bed.block_on(bed.torrents().remove(there_id, DELETE)).unwrap();
    assert_eq!(kept(&removed), [("there/x", "it was there before the torrent")]);
    there.assert_whole(&root);
    assert_eq!(names(&root), ["album", "sibling", "there"]);
    assert_eq!(names(&state.join("state")), Vec::<String>::new());
    drop(bed);
    assert_eq!(Bed::start(&state).resume_all(), 0);
}

/// Fault 78: folders that become empty are deleted. Without the option, everything stays.
#[test]
fn empty_folders_go() {
    let torrent = Arc::new(Torrent::album(
        70,
        "album",
        &[("a/b/c", 200_000), ("a/d", 90_000)],
        32 << 10,
    ));
    let seed = Seed::free(&torrent);
    for delete_data in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        let mut bed = Bed::start(&state);
        let id = bed.add(&torrent, &root, &[seed.address]);
        bed.wait_seeding(id);
        torrent.wait_saved_complete(&state);
        bed.block_on(bed.torrents().remove(id, RemoveOptions { delete_data }))
            .unwrap();
        match delete_data {
            false => torrent.assert_whole(&root),
            true => assert_eq!(names(&root), Vec::<String>::new()),
        }
        assert_eq!(names(&state.join("state")), Vec::<String>::new());
    }
}

/// Fault 105: a torrent that is removed while pieces are received, hashed and written leaves nothing behind, and
/// nothing of it reappears.
#[test]
fn in_full_flow() {
    let torrent = Arc::new(Torrent::album(
        105,
        "album",
        &[("a", 7_000_000), ("b/c", 5_000_000)],
        32 << 10,
    ));
    let seed = Seed::slow(&torrent, Duration::from_micros(100));
    for round in 0..8 {
        let random = u64::from_le_bytes(noise(10_500 + round, 8).try_into().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        fs::create_dir(&root).unwrap();
        let mut settings = crate::bed::settings(Some(&state));
        settings.session.checkpoint_interval_s = 0;
        let mut bed = Bed::start_with(settings);
        let id = bed.add(&torrent, &root, &[seed.address]);
        bed.wait_downloading(id);
        let wanted = random % 600 * (16 << 10);
        crate::bed::wait_until("some bytes", || bed.stats(id).downloaded >= wanted);
        bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
        assert_eq!(names(&root), Vec::<String>::new(), "round {round}");
        assert_eq!(names(&state.join("state")), Vec::<String>::new());
        // Jobs in progress end with the engine.
        drop(bed);
        drop(Bed::start(&state));
        assert_eq!(names(&root), Vec::<String>::new());
        assert_eq!(names(&state.join("state")), Vec::<String>::new());
    }
}

/// Fault 105: a torrent can be removed while it is being checked.
#[test]
fn while_it_is_checked() {
    let torrent = Torrent::single(106, 30_000_000, 32 << 10);
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    torrent.place(&root);
    let mut bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[]);
    bed.wait(id, "the check", |life| {
        *life == ecs_torrent::components::torrent::Lifecycle::Checking
    });
    bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
    torrent.assert_whole(&root);
    // Jobs left over from the removed torrent do not disturb the new one.
    let id = bed.add(&torrent, &root, &[]);
    bed.wait_seeding(id);
}

/// Fault 105: a torrent that is removed while its session is being written leaves nothing behind, and both callers get
/// an answer.
#[test]
fn while_it_is_saved() {
    let torrent = Torrent::single(107, 300_000, 32 << 10);
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    torrent.place(&root);
    let mut settings = crate::bed::settings(Some(&state));
    settings.lifecycle.save_timeout_ms = 20_000;
    let mut bed = Bed::start_with(settings);
    // Writing the session blocks until the pipe is read.
    let pipe = torrent.session_path(&state).with_extension("tmp");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    // The add returns only after the save; the torrent runs regardless.
    let id = torrent.info_hash();
    let (torrents, metainfo, options) = (
        bed.torrents(),
        torrent.metainfo.clone(),
        AddOptions {
            root: Some(root.clone()),
            ..AddOptions::default()
        },
    );
    let adding = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime
            .block_on(torrents.download_with(metainfo, options))
            .map_err(|error| error.to_string())
    });
    bed.wait_seeding(id);
    let torrents = bed.torrents();
    let removal = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime
            .block_on(torrents.remove(id, DELETE))
            .map_err(|error| error.to_string())
    });
    crate::bed::wait_until("the removal", || {
        bed.stats(id).state == TorrentState::Stopping(StopPhase::WriteSession)
    });
    // The write now ends, with or without an error: a pipe cannot be flushed.
    fs::read(&pipe).unwrap();
    assert!(removal.join().unwrap().is_ok());
    // The session may have been saved just before the removal.
    if let Err(error) = adding.join().unwrap() {
        assert!(
            error.contains("was removed meanwhile") || error.contains("not saved"),
            "{error}"
        );
    }
    assert_eq!(names(&state.join("state")), Vec::<String>::new());
}
