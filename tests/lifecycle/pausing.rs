//! Pauses: a paused torrent stays listed, does nothing, survives restarts and kills, and continues where it was. Stops
//! of a user survive restarts too.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::{AddOptions, Error, InfoHash, RemoveOptions, TorrentState};

use crate::bed::{Bed, Torrent, settings, wait_until};
use crate::seed::Seed;
use crate::volumes::{Volume, can_mount};

const DELETE: RemoveOptions = RemoveOptions { delete_data: true };

fn pause(bed: &Bed, id: InfoHash) {
    bed.block_on(bed.torrents().pause(id)).unwrap();
    let stats = bed.stats(id);
    assert_eq!(stats.state, TorrentState::Paused);
    assert_eq!((stats.speed.download, stats.speed.upload), (0, 0));
}

fn start(bed: &Bed, id: InfoHash) {
    bed.block_on(bed.torrents().start(id)).unwrap();
}

fn restore(bed: &Bed) -> usize {
    bed.block_on(bed.torrents().restore()).unwrap()
}

fn stopped(bed: &Bed) -> Vec<InfoHash> {
    let listed = bed.block_on(bed.torrents().list_stopped()).unwrap();
    listed.into_iter().map(|torrent| torrent.info_hash).collect()
}

/// Returns the files and folders below `root` that this process has open.
fn open_below(root: &Path) -> Vec<String> {
    let root = fs::canonicalize(root).unwrap();
    let handles = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = handles.filter_map(|handle| fs::read_link(handle.path()).ok());
    let below = targets.filter(|target| target.starts_with(&root));
    below.map(|target| target.display().to_string()).collect()
}

/// A torrent that was half downloaded when it was paused.
struct Half {
    torrent: Arc<Torrent>,
    folder: tempfile::TempDir,
    seed: Seed,
    id: InfoHash,
}

impl Half {
    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    fn state(&self) -> std::path::PathBuf {
        self.folder.path().join("state-dir")
    }

    fn paused(number: u64) -> (Self, Bed) {
        Self::paused_on(number, |_| {})
    }

    /// Pauses a download whose folder `prepare` has made.
    fn paused_on(number: u64, prepare: impl FnOnce(&Path)) -> (Self, Bed) {
        let files = [("a", 3 << 20), ("b", (1 << 20) + (48 << 10))];
        let torrent = Arc::new(Torrent::album(number, "album", &files, 256 << 10));
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        prepare(&root);
        let mut bed = Bed::start(&state);
        let seed = Seed::limited(&torrent, 137);
        let id = bed.add(&torrent, &root, &[seed.address]);
        wait_until("half of it", || bed.stats(id).downloaded >= 137 * (16 << 10));
        pause(&bed, id);
        bed.wait(id, "the pause", |life| *life == Lifecycle::Paused);
        let half = Self {
            torrent,
            folder,
            seed,
            id,
        };
        (half, bed)
    }

    /// Asserts that the torrent completes, and that nothing is hashed or downloaded twice.
    fn assert_completes(&self, bed: &mut Bed) {
        let rest = Seed::free(&self.torrent);
        bed.add_peer(self.id, rest.address);
        bed.wait_seeding(self.id);
        assert!(!bed.has_checked(self.id), "{:?}", bed.past(self.id));
        self.torrent.assert_whole(&self.root());
        let (first, second) = (self.seed.served(), rest.served());
        let twice = first.keys().filter(|block| second.contains_key(block)).count();
        assert_eq!((twice, bed.stats(self.id).wasted), (0, 0));
    }
}

/// A pause that was answered survives a kill. The torrent is listed with its progress and opens no file; a start
/// continues without hashing.
#[test]
fn a_pause_survives_a_kill() {
    let (half, bed) = Half::paused(71);
    assert!(open_below(&half.root()).is_empty(), "{:?}", open_below(&half.root()));
    let session = half.torrent.session(&half.state()).unwrap();
    assert!(session.paused && !session.stopped);
    half.torrent.assert_true(&session, &half.root());
    let before = bed.stats(half.id);
    assert!(before.held_pieces() > 0 && before.peers.is_empty());
    // An engine that is dropped saves nothing, as if it were killed.
    drop(bed);

    for _ in 0..2 {
        let mut bed = Bed::start(&half.state());
        assert_eq!((restore(&bed), bed.list()), (1, vec![half.id]));
        bed.wait(half.id, "the pause", |life| *life == Lifecycle::Paused);
        let stats = bed.stats(half.id);
        assert_eq!(
            (stats.held_pieces(), stats.downloaded),
            (before.held_pieces(), before.downloaded)
        );
        assert!(open_below(&half.root()).is_empty());
        // The stop of all torrents at the end of a program changes nothing.
        bed.stop_all().unwrap();
    }
    let mut bed = Bed::start(&half.state());
    assert_eq!(bed.resume_all(), 1);
    bed.wait(half.id, "the pause", |life| *life == Lifecycle::Paused);
    start(&bed, half.id);
    assert!(!half.torrent.session(&half.state()).unwrap().paused, "it is durable");
    drop(bed);
    let mut bed = Bed::start(&half.state());
    assert_eq!(restore(&bed), 1);
    half.assert_completes(&mut bed);
    assert!(!bed.past(half.id).contains(&Lifecycle::Paused));
}

/// Within one run, a start continues without hashing. A second pause or start changes nothing.
#[test]
fn started_again_in_the_same_run() {
    let (half, mut bed) = Half::paused(72);
    pause(&bed, half.id);
    start(&bed, half.id);
    start(&bed, half.id);
    half.assert_completes(&mut bed);
    start(&bed, half.id);
    assert_eq!(bed.stats(half.id).state, TorrentState::Seeding);
    pause(&bed, half.id);
    start(&bed, half.id);
    bed.wait_seeding(half.id);
    assert!(!bed.has_checked(half.id));
}

/// A file that the user changes while its torrent is paused is hashed at the start.
#[test]
fn a_file_that_changed_meanwhile() {
    for restarts in [false, true] {
        let (half, mut bed) = Half::paused(73);
        if restarts {
            drop(bed);
            bed = Bed::start(&half.state());
            assert_eq!(restore(&bed), 1);
        }
        let path = half.root().join("album/a");
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        fs::write(&path, bytes).unwrap();
        let held = half.torrent.session(&half.state()).unwrap().have;
        let held: Vec<u32> = held.to_set(17).unwrap().iter().collect();
        start(&bed, half.id);
        bed.wait_downloading(half.id);
        assert!(bed.has_checked(half.id));
        let false_pieces = half.torrent.false_pieces(&half.root(), held.clone());
        let left: Vec<u32> = held.into_iter().filter(|piece| !false_pieces.contains(piece)).collect();
        let have = bed.have(half.id);
        assert!(left.iter().all(|piece| have.contains(piece)), "{left:?} of {have:?}");
        assert!(!false_pieces.iter().any(|piece| have.contains(piece)));
        bed.add_peer(half.id, Seed::free(&half.torrent).address);
        bed.wait_seeding(half.id);
        half.torrent.assert_whole(&half.root());
    }
}

/// The data of a paused torrent is deleted with it, in the same run and after a restart.
#[test]
fn removed_while_paused() {
    for restarts in [false, true] {
        let (half, mut bed) = Half::paused(74);
        if restarts {
            drop(bed);
            bed = Bed::start(&half.state());
            assert_eq!(restore(&bed), 1);
        }
        let removed = bed.block_on(bed.torrents().remove(half.id, DELETE)).unwrap();
        // The second file may not have been written yet.
        assert!(removed.deleted_count > 0 && removed.kept_count == 0, "{removed:?}");
        assert!(!half.root().join("album").exists());
        assert!(half.torrent.session(&half.state()).is_none());
        assert!(matches!(
            bed.block_on(bed.torrents().pause(half.id)),
            Err(Error::TorrentNotFound(_))
        ));
    }
    let (half, bed) = Half::paused(75);
    let keep = RemoveOptions { delete_data: false };
    bed.block_on(bed.torrents().remove(half.id, keep)).unwrap();
    assert!(half.root().join("album/a").exists() && bed.list().is_empty());
}

/// A paused torrent that is stopped leaves the list, and comes back paused. An add runs it.
#[test]
fn stopped_while_paused() {
    let (half, mut bed) = Half::paused(76);
    bed.stop(half.id).unwrap();
    let session = half.torrent.session(&half.state()).unwrap();
    assert!(session.paused && session.stopped && !session.have.is_empty() && !session.files.is_empty());
    assert_eq!(restore(&bed), 0);
    assert_eq!(stopped(&bed), [half.id]);
    bed.block_on(bed.torrents().resume(half.id)).unwrap();
    bed.wait(half.id, "the pause", |life| *life == Lifecycle::Paused);
    bed.stop(half.id).unwrap();
    bed.add(&half.torrent, &half.root(), &[]);
    drop(bed);
    let mut bed = Bed::start(&half.state());
    assert_eq!(restore(&bed), 1, "an answered add is durable");
    half.assert_completes(&mut bed);
}

/// A user's stop survives restarts and kills until the torrent is resumed; the stop of a program's end does not.
#[test]
fn a_users_stop_survives() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state-dir");
    let torrents = [77, 78].map(|number| Torrent::album(number, &format!("album {number}"), &[("a", 100_000)], 16384));
    let [stays, runs] = [0, 1].map(|number| torrents[number].info_hash());
    let bed = Bed::start(&state);
    torrents[1].place(folder.path());
    for torrent in &torrents {
        bed.add(torrent, folder.path(), &[]);
    }
    bed.stop(stays).unwrap();
    bed.stop_all().unwrap();
    drop(bed);

    let bed = Bed::start(&state);
    assert_eq!((restore(&bed), bed.list()), (1, vec![runs]));
    assert_eq!(stopped(&bed), [stays]);
    // The file of a stopped torrent is still known as its own.
    let again = AddOptions {
        root: Some(folder.path().to_owned()),
        ..AddOptions::default()
    };
    let other = Torrent::album(79, "album 77", &[("a", 100_000)], 16384);
    let refused = bed.block_on(bed.torrents().download_with(other.metainfo.clone(), again));
    assert!(matches!(refused, Err(Error::Add(_))), "{refused:?}");
    bed.block_on(bed.torrents().resume(stays)).unwrap();
    // As if it were killed right after the answer.
    drop(bed);

    let bed = Bed::start(&state);
    assert_eq!(restore(&bed), 2);
    bed.block_on(bed.torrents().stop_all_until_resumed()).unwrap();
    drop(bed);
    let bed = Bed::start(&state);
    assert_eq!((restore(&bed), bed.resume_all()), (0, 2));
    drop(bed);
    assert_eq!(restore(&Bed::start(&state)), 2);
}

/// A torrent can be paused in every state, and starts again from each.
#[test]
fn paused_in_any_state() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state-dir");
    let torrent = Torrent::album(80, "album", &[("a", 30 << 20)], 64 << 10);
    let root = folder.path().join("data");
    torrent.place(&root);
    let mut settings = settings(Some(&state));
    settings.storage.check_memory_bytes = 64 << 10;
    let mut bed = Bed::start_with(settings);
    let options = AddOptions {
        root: Some(root.clone()),
        ..AddOptions::default()
    };
    // While it is being added: the pause follows the add.
    let torrents = bed.torrents();
    let id = torrent.info_hash();
    let (added, paused) = bed.block_on(async {
        let add = torrents.download_with(torrent.metainfo.clone(), options.clone());
        let pause = async {
            while torrents.list().await.unwrap().is_empty() {}
            torrents.pause(id).await
        };
        tokio::join!(add, pause)
    });
    added.unwrap();
    paused.unwrap();
    assert_eq!(bed.stats(id).state, TorrentState::Paused);
    // While it is checked, again and again: every piece is counted once.
    for _ in 0..5 {
        start(&bed, id);
        bed.wait(id, "the check", |life| *life == Lifecycle::Checking);
        pause(&bed, id);
    }
    start(&bed, id);
    bed.wait_seeding(id);
    assert_eq!(bed.have(id).len(), 480);
    // An add of a paused torrent joins it.
    pause(&bed, id);
    bed.add_with(&torrent, options);
    bed.add_peer(id, "127.0.0.1:9".parse().unwrap());
    assert_eq!(bed.stats(id).state, TorrentState::Paused);
    // A start during the pause, and commands behind each other.
    start(&bed, id);
    bed.block_on(async {
        let (paused, started, again) = tokio::join!(torrents.pause(id), torrents.start(id), torrents.pause(id));
        paused.unwrap();
        started.unwrap();
        again.unwrap();
    });
    pause(&bed, id);
    // A stop that joins a pause wins, and the torrent is still paused when it comes back.
    start(&bed, id);
    bed.block_on(async {
        let (paused, stopped) = tokio::join!(torrents.pause(id), torrents.stop_and_serialize(id));
        paused.unwrap();
        stopped.unwrap();
    });
    assert!(bed.list().is_empty());
    bed.block_on(torrents.resume(id)).unwrap();
    pause(&bed, id);
    // A removal that joins a pause.
    start(&bed, id);
    let removed = bed.block_on(async {
        let (paused, removed) = tokio::join!(torrents.pause(id), torrents.remove(id, DELETE));
        assert!(matches!(paused, Ok(()) | Err(Error::TorrentNotFound(_))), "{paused:?}");
        removed.unwrap()
    });
    assert_eq!(removed.kept_count, 1, "it is the user's");
    assert!(bed.list().is_empty() && torrent.session(&state).is_none());
    for result in [bed.block_on(torrents.pause(id)), bed.block_on(torrents.start(id))] {
        assert!(matches!(result, Err(Error::TorrentNotFound(_))));
    }
}

/// A failed torrent that is paused is tried again at the start, and not before.
#[test]
fn paused_after_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state-dir");
    let torrent = Torrent::album(81, "album", &[("a", 100_000)], 16384);
    let root = folder.path().join("data");
    let mut bed = Bed::start(&state);
    let options = AddOptions {
        root: Some(root.clone()),
        require_complete: true,
        ..AddOptions::default()
    };
    let id = bed.add_with(&torrent, options);
    bed.wait_failed(id);
    pause(&bed, id);
    assert_eq!(bed.stats(id).error, None);
    start(&bed, id);
    bed.wait_failed(id);
    pause(&bed, id);
    torrent.place(&root);
    start(&bed, id);
    bed.wait_seeding(id);
}

/// A thousand torrents are paused at once, are still paused in the next run, and start at once.
#[test]
fn a_thousand_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state-dir");
    let bed = Bed::start(&state);
    let torrents: Vec<Torrent> = (0..1000)
        .map(|number| Torrent::album(1000 + number, &format!("album {number}"), &[("a", 1000)], 16384))
        .collect();
    for torrent in &torrents {
        bed.add(torrent, folder.path(), &[]);
    }
    let all_are = |bed: &Bed, state: TorrentState| {
        let count = torrents
            .iter()
            .filter(|torrent| bed.stats(torrent.info_hash()).state == state);
        count.count() == torrents.len()
    };
    wait_until("the downloads", || all_are(&bed, TorrentState::Downloading));
    bed.block_on(bed.torrents().pause_all()).unwrap();
    assert!(all_are(&bed, TorrentState::Paused));
    assert!(open_below(folder.path()).iter().all(|path| path.contains("state-dir")));
    drop(bed);
    let bed = Bed::start(&state);
    assert_eq!(restore(&bed), 1000);
    wait_until("the pauses", || all_are(&bed, TorrentState::Paused));
    bed.block_on(bed.torrents().start_all()).unwrap();
    wait_until("the downloads", || all_are(&bed, TorrentState::Downloading));
    drop(bed);
    let bed = Bed::start(&state);
    assert_eq!(restore(&bed), 1000);
    wait_until("the downloads", || all_are(&bed, TorrentState::Downloading));
}

/// A paused torrent dials no peer, even if it knows many.
#[test]
fn nobody_is_dialed() {
    let (half, mut bed) = Half::paused(83);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    bed.add_peer(half.id, listener.local_addr().unwrap());
    // A torrent that runs gets its peer later, and dials it.
    let other = Torrent::single(830, 100_000, 16 << 10);
    let others = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    bed.add(&other, folder.path(), &[others.local_addr().unwrap()]);
    others.accept().unwrap();
    assert_eq!(bed.stats(half.id).state, TorrentState::Paused);
    assert!(listener.accept().is_err(), "a paused torrent dials");
    start(&bed, half.id);
    wait_until("the connection", || listener.accept().is_ok());
    half.assert_completes(&mut bed);
}

/// The volume of a paused torrent can be unmounted. The torrent stays paused without it, in the next run too, and
/// starts without hashing when the volume is there again.
#[test]
fn the_volume_is_unmounted_meanwhile() {
    if !can_mount("pausing::the_volume_is_unmounted_meanwhile") {
        return;
    }
    let mut volumes = None;
    let behind = tempfile::tempdir().unwrap();
    let (half, bed) = Half::paused_on(84, |root| {
        let volume = Volume::new(behind.path(), 16 << 20);
        volumes = Some((volume.again(root), volume));
    });
    let (mounted, volume) = volumes.unwrap();
    mounted.unmount();
    assert_eq!(bed.stats(half.id).state, TorrentState::Paused);
    drop(bed);
    let mut bed = Bed::start(&half.state());
    assert_eq!(restore(&bed), 1);
    bed.wait(half.id, "the pause", |life| *life == Lifecycle::Paused);
    start(&bed, half.id);
    bed.wait_blocked(half.id);
    pause(&bed, half.id);
    let again = volume.again(&half.root());
    start(&bed, half.id);
    half.assert_completes(&mut bed);
    pause(&bed, half.id);
    drop(again);
}

/// The volume of a stopped torrent can be unmounted while the engine runs on, whether one torrent was stopped or all
/// were, in a download or while seeding. The torrents resume without hashing when their volumes are there again.
#[test]
fn the_volume_is_unmounted_after_a_stop() {
    if !can_mount("pausing::the_volume_is_unmounted_after_a_stop") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state-dir");
    let roots = ["one", "two"].map(|name| folder.path().join(name));
    let volumes = ["one behind", "two behind"].map(|name| Volume::new(&folder.path().join(name), 16 << 20));
    let mount = |number: usize| volumes[number].again(&roots[number]);
    let files = [("a", 3 << 20), ("b", (1 << 20) + (48 << 10))];
    let torrents = [86, 87].map(|number| Arc::new(Torrent::album(number, "album", &files, 256 << 10)));
    let seeds = torrents.each_ref().map(|torrent| Seed::limited(torrent, 137));
    let mut bed = Bed::start(&state);
    let (first_mount, second_mount) = (mount(0), mount(1));
    let add = |number: usize| bed.add(&torrents[number], &roots[number], &[seeds[number].address]);
    let ids = [add(0), add(1)];
    for id in ids {
        wait_until("half of it", || bed.stats(id).downloaded >= 137 * (16 << 10));
    }

    bed.stop(ids[0]).unwrap();
    first_mount.unmount();
    assert_eq!(bed.stats(ids[1]).state, TorrentState::Downloading);
    let first_mount = mount(0);
    bed.block_on(bed.torrents().resume(ids[0])).unwrap();
    bed.wait_downloading(ids[0]);
    bed.stop_all().unwrap();
    first_mount.unmount();
    second_mount.unmount();

    let mounts = [mount(0), mount(1)];
    assert_eq!(bed.resume_all(), 2);
    for (torrent, id) in torrents.iter().zip(ids) {
        bed.add_peer(id, Seed::free(torrent).address);
        bed.wait_seeding(id);
        assert!(!bed.has_checked(id), "{:?}", bed.past(id));
    }
    torrents
        .iter()
        .zip(&roots)
        .for_each(|(torrent, root)| torrent.assert_whole(root));
    bed.stop_all().unwrap();
    mounts.into_iter().for_each(Volume::unmount);
}
