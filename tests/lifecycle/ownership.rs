//! File ownership: a torrent writes and deletes only the files that it created, even if its paths lead elsewhere.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ecs_torrent::{AddOptions, RemoveOptions};

use crate::bed::{Bed, Torrent, settings, wait_until};
use crate::seed::Seed;
use crate::volumes::{Volume, can_mount};

const DELETE: RemoveOptions = RemoveOptions { delete_data: true };

/// Adds a torrent that will be refused, at once or when its files are opened. Returns the reason.
fn refusal(bed: &mut Bed, torrent: &Arc<Torrent>, root: &Path) -> String {
    let options = AddOptions {
        root: Some(root.to_owned()),
        peers: vec![Seed::free(torrent).address],
        ..AddOptions::default()
    };
    let added = bed.block_on(bed.torrents().download_with(torrent.metainfo.clone(), options));
    match added {
        Err(error) => error.to_string(),
        Ok(id) => {
            let id = id.0;
            let reason = bed.wait_failed(id);
            bed.block_on(bed.torrents().remove(id, DELETE)).ok();
            reason
        }
    }
}

/// The state folder of a test, with files that an attacker targets.
struct Own {
    folder: PathBuf,
    bed: Bed,
}

impl Own {
    fn new(folder: &Path) -> Self {
        let mut settings = settings(Some(folder));
        settings.storage.preallocate = true;
        let bed = Bed::start_with(settings);
        fs::write(folder.join("api_token"), "secret").unwrap();
        fs::write(folder.join("state/victim.ron"), "session").unwrap();
        Self {
            folder: folder.to_owned(),
            bed,
        }
    }

    /// Asserts that the torrent is refused and changes nothing in the state folder.
    fn withstands(&mut self, root: &Path, torrent: &Arc<Torrent>) {
        let reason = refusal(&mut self.bed, torrent, root);
        assert!(reason.contains("engine's own"), "{}: {reason}", root.display());
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).unwrap();
        assert_eq!(
            (read("api_token"), read("state/victim.ron")),
            ("secret".into(), "session".into())
        );
        for planted in ["planted.ron", "planted", "state/planted.ron", "deep"] {
            assert!(!self.folder.join(planted).exists(), "{planted} by {}", root.display());
        }
    }
}

/// Creates a torrent that would overwrite the token and a session, and plant further sessions.
fn attack(seed: u64, name: &str) -> Arc<Torrent> {
    let files = [
        ("api_token", 1000),
        ("deep/down", 70_000),
        ("planted.ron", 70_000),
        ("state/planted.ron", 70_000),
        ("state/victim.ron", 7),
    ];
    Arc::new(Torrent::album(seed, name, &files, 32 << 10))
}

/// No torrent reaches the state folder by name, by a root above, at or below it, or by symbolic links.
#[test]
fn no_torrent_reaches_the_state_folder() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path();
    let mut own = Own::new(&base.join("own"));
    let by_name = attack(1300, "own");
    own.withstands(base, &by_name);
    let below = Arc::new(Torrent::album(
        1301,
        "state",
        &[("planted.ron", 90_000), ("victim.ron", 7)],
        32 << 10,
    ));
    own.withstands(&base.join("own"), &below);
    let file = Arc::new(Torrent::make(1302, "planted.ron", &[("", 90_000)], 32 << 10, &[]));
    own.withstands(&base.join("own"), &file);
    own.withstands(&base.join("own/state"), &file);
    own.withstands(&base.join("own/state/not/there"), &file);
    symlink(base.join("own"), base.join("link")).unwrap();
    own.withstands(&base.join("link"), &file);
    own.withstands(&base.join("link/state"), &file);
    own.withstands(&base.join("link/../own/state"), &file);
    // A torrent in a folder beside the state folder completes.
    let beside = Arc::new(Torrent::album(1303, "owned", &[("api_token", 90_000)], 32 << 10));
    let id = own.bed.add(&beside, base, &[Seed::free(&beside).address]);
    own.bed.wait_seeding(id);
    beside.assert_whole(base);
}

/// No torrent reaches the state folder by another mount of the same volume.
#[test]
fn no_torrent_reaches_the_state_folder_by_a_mount() {
    if !can_mount("ownership::no_torrent_reaches_the_state_folder_by_a_mount") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::new(&folder.path().join("volume"), 8 << 20);
    let base = volume.place();
    let mut own = Own::new(&base.join("own"));
    let again = volume.again(&folder.path().join("again"));
    own.withstands(again.place(), &attack(1310, "own"));
    let file = Arc::new(Torrent::make(1311, "planted.ron", &[("", 90_000)], 32 << 10, &[]));
    own.withstands(&again.place().join("own/state"), &file);
}

/// Names of a state folder, each with another spelling that a volume may take for the same name: in another case, and
/// in another normalization.
const SPELLINGS: [(&str, &str); 3] = [
    ("own", "OWN"),
    (".ecs_torrent", ".ECS_TORRENT"),
    ("cafe\u{301}", "caf\u{e9}"),
];

/// No torrent reaches the state folder by another spelling of its name. If the kernel has no volumes that ignore case
/// and normalization, a second mount of the state folder has the other name: that is one folder with two names too.
#[test]
fn no_torrent_reaches_the_state_folder_by_another_spelling() {
    if !can_mount("ownership::no_torrent_reaches_the_state_folder_by_another_spelling") {
        return;
    }
    for (name, other) in SPELLINGS {
        let folder = tempfile::tempdir().unwrap();
        let volume = Volume::folding(&folder.path().join("volume"), 8 << 20);
        let (state, other_state) = (volume.place().join(name), volume.place().join(other));
        let mut own = Own::new(&state);
        let _mount = (!other_state.exists()).then(|| Volume::bind(&state, &other_state));
        // Hidden names of torrents become visible, and so lead elsewhere.
        if !other.starts_with('.') {
            own.withstands(volume.place(), &attack(1330, other));
        }
        let file = Arc::new(Torrent::make(1331, "planted.ron", &[("", 90_000)], 32 << 10, &[]));
        own.withstands(&other_state, &file);
        own.withstands(&other_state.join("state"), &file);
    }
}

/// A torrent named like the default state folder does not reach it, although downloads go to its parent folder by
/// default.
#[test]
fn a_torrent_with_the_name_of_the_default_state_folder() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path();
    let state = base.join(".ecs_torrent");
    let torrent = attack(1320, ".ecs_torrent");
    let mut settings = settings(Some(&state));
    settings.storage.download_dir = base.to_owned();
    let mut bed = Bed::start_with(settings);
    fs::write(state.join("api_token"), "secret").unwrap();
    fs::write(state.join("state/victim.ron"), "session").unwrap();
    // The torrent may be stored under another name.
    let options = AddOptions {
        root: Some(base.to_owned()),
        peers: vec![Seed::free(&torrent).address],
        ..AddOptions::default()
    };
    if let Ok(id) = bed.block_on(bed.torrents().download_with(torrent.metainfo.clone(), options)) {
        bed.wait_seeding(id.0);
        bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
    }
    let read = |name: &str| fs::read_to_string(state.join(name)).unwrap();
    assert_eq!(
        (read("api_token"), read("state/victim.ron")),
        ("secret".into(), "session".into())
    );
    assert!(!state.join("planted.ron").exists() && !state.join("state/planted.ron").exists());
}

/// A download folder that is replaced by a link or by another folder during a download is not followed, neither by that
/// download nor by the next one.
#[test]
fn a_swapped_download_folder() {
    let torrent = Arc::new(Torrent::album(
        1330,
        "album",
        &[("a", 400_000), ("b", 400_000), ("c", 400_000)],
        32 << 10,
    ));
    let next = Arc::new(Torrent::single(1331, 100_000, 32 << 10));
    for is_link in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        let outside = folder.path().join("outside");
        fs::create_dir_all(outside.join("album")).unwrap();
        fs::write(outside.join("album/b"), "precious").unwrap();
        fs::create_dir(&root).unwrap();
        let mut settings = settings(Some(&state));
        settings.storage.max_open_files = 1;
        settings.storage.download_dir.clone_from(&root);
        settings.lifecycle.restart_window_s = 60;
        let mut bed = Bed::start_with(settings);
        let seed = Seed::limited(&torrent, 12);
        let id = bed.add(&torrent, &root, &[seed.address]);
        bed.wait_downloading(id);
        wait_until("pieces", || bed.have(id).len() >= 2);
        fs::rename(&root, folder.path().join("moved")).unwrap();
        let place = if is_link { &outside } else { &root };
        match is_link {
            true => symlink(&outside, &root).unwrap(),
            false => fs::rename(&outside, &root).unwrap(),
        }
        seed.release();
        let reason = bed.wait_failed(id);
        assert!(
            reason.contains(root.to_str().unwrap()) && reason.contains("taken its place"),
            "{reason}"
        );
        let reason = refusal(&mut bed, &next, &root.join("sub"));
        assert!(reason.contains("taken its place"), "{reason}");
        let _ = bed.block_on(bed.torrents().remove(id, DELETE));
        assert_eq!(fs::read_to_string(place.join("album/b")).unwrap(), "precious");
        assert_eq!(fs::read_dir(place).unwrap().count(), 1);
        assert_eq!(fs::read_dir(place.join("album")).unwrap().count(), 1);
    }
}

/// A state folder that is replaced by a link after the start is not followed: sessions are still written to the
/// original folder.
#[test]
fn a_swapped_state_folder() {
    let torrent = Arc::new(Torrent::single(1340, 100_000, 32 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let outside = folder.path().join("outside");
    fs::create_dir_all(outside.join("state")).unwrap();
    let mut bed = Bed::start(&state);
    let moved = folder.path().join("moved");
    fs::rename(&state, &moved).unwrap();
    symlink(&outside, &state).unwrap();
    let id = bed.add(&torrent, &root, &[Seed::free(&torrent).address]);
    bed.wait_seeding(id);
    torrent.wait_saved_complete(&moved);
    bed.stop_all().unwrap();
    assert_eq!(fs::read_dir(outside.join("state")).unwrap().count(), 0);
}

/// Bytes that another program writes into a torrent's file, between the torrent's write and the saving of its session,
/// are detected. No session lists them as verified.
#[test]
fn a_file_that_others_write() {
    let torrent = Arc::new(Torrent::single(1350, 2 << 20, 64 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let seed = Seed::limited(&torrent, 64);
    let mut bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[seed.address]);
    bed.wait_downloading(id);
    // At this point, the seed sends nothing more.
    wait_until("pieces", || bed.have(id).len() >= 16);
    let path = root.join("data");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    wait_until("another time of change", || {
        for &piece in &bed.have(id)[..4] {
            let offset = torrent.geometry().piece_span(piece).offset;
            file.write_all_at(b"somebody else's", offset).unwrap();
        }
        fs::metadata(&path).unwrap().modified().unwrap() != before
    });
    bed.stop_all().unwrap();
    torrent.assert_true(&torrent.session(&state).unwrap(), &root);
    drop(bed);
    seed.release();
    let mut bed = Bed::start(&state);
    bed.resume_all();
    bed.add_peer(id, seed.address);
    bed.wait_seeding(id);
    torrent.assert_whole(&root);
}

/// A complete file of the user that shares its last piece with a missing file is used. It stays when the torrent is
/// removed with its data, in this run or a later one; the files that the torrent created are deleted.
#[test]
fn a_found_file_beside_a_missing_one() {
    let torrent = Arc::new(Torrent::album(
        1360,
        "album",
        &[("a", 100_000), ("b", 100_000), ("empty", 0)],
        32 << 10,
    ));
    for is_later in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        torrent.place(&root);
        fs::remove_file(root.join("album/b")).unwrap();
        let modified = || fs::metadata(root.join("album/a")).unwrap().modified().unwrap();
        let before = modified();
        let mut settings = settings(Some(&state));
        settings.storage.preallocate = true;
        let mut bed = Bed::start_with(settings);
        let id = bed.add(&torrent, &root, &[Seed::free(&torrent).address]);
        bed.wait_seeding(id);
        torrent.assert_whole(&root);
        torrent.wait_saved_complete(&state);
        if is_later {
            bed.stop_all().unwrap();
            drop(bed);
            bed = Bed::start(&state);
            assert_eq!(bed.resume_all(), 1);
            bed.wait_seeding(id);
        }
        bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
        assert!(fs::read(root.join("album/a")).unwrap() == torrent.data[..100_000]);
        assert_eq!(modified(), before, "not even written again");
        assert!(root.join("album/empty").exists() && !root.join("album/b").exists());
    }
}

/// A file that the torrent created becomes the user's once it has a hard link or is replaced by another file.
#[test]
fn files_that_the_user_took() {
    let torrent = Arc::new(Torrent::album(
        1370,
        "album",
        &[("a", 100_000), ("b", 100_000), ("c", 100_000)],
        32 << 10,
    ));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let mut bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[Seed::free(&torrent).address]);
    bed.wait_seeding(id);
    torrent.wait_saved_complete(&state);
    fs::hard_link(root.join("album/a"), root.join("linked")).unwrap();
    fs::copy(root.join("album/b"), root.join("copy")).unwrap();
    fs::rename(root.join("copy"), root.join("album/b")).unwrap();
    bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
    for (name, is_left) in [("a", true), ("b", true), ("c", false)] {
        assert_eq!(root.join("album").join(name).exists(), is_left, "{name}");
    }
}
