//! Resuming: a run knows the results of earlier runs.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::protocol::wire::Message;
use ecs_torrent::{AddOptions, RemoveOptions};

use crate::bed::{Bed, Torrent, settings, wait_until};
use crate::peer::ScriptedPeer;
use crate::seed::Seed;

/// A torrent that is stopped half-way resumes without hashing again, and its seeds send no block twice.
#[test]
fn nothing_is_hashed_or_downloaded_again() {
    let files = [("a", 20 << 20), ("b", 37 << 20), ("c", (7 << 20) + (48 << 10))];
    let torrent = Arc::new(Torrent::album(2, "album", &files, 256 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let block_count = torrent.data.len() / (16 << 10);

    let half = Seed::limited(&torrent, block_count as u64 / 2 + 7);
    let bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[half.address]);
    half.wait_served(block_count / 2 + 7);
    let served_bytes = (block_count as u64 / 2 + 7) * (16 << 10);
    wait_until("the last block", || bed.stats(id).downloaded >= served_bytes);
    bed.stop_all().unwrap();
    drop(bed);
    let session = torrent.session(&state).unwrap();
    torrent.assert_true(&session, &root);
    assert!(!session.partial.is_empty(), "pieces that were begun are kept");

    let rest = Seed::free(&torrent);
    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 1);
    bed.wait_downloading(id);
    let stats = bed.stats(id);
    assert_eq!((stats.downloaded, stats.checked), (served_bytes, 0));
    bed.add_peer(id, rest.address);
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id), "{:?}", bed.past(id));
    let stats = bed.stats(id);
    assert_eq!(stats.downloaded, torrent.data.len() as u64);
    assert_eq!((stats.corrupt, stats.wasted, stats.checked), (0, 0, 0));
    torrent.assert_whole(&root);
    let mut served = half.served();
    rest.served()
        .into_iter()
        .for_each(|(block, count)| *served.entry(block).or_default() += count);
    assert_eq!(served.len(), block_count);
    let twice: BTreeMap<_, _> = served.into_iter().filter(|(_, count)| *count > 1).collect();
    assert!(twice.is_empty(), "{} blocks came twice: {twice:?}", twice.len());
    bed.stop_all().unwrap();
    drop(bed);

    // A complete torrent is not hashed either.
    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 1);
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id));
}

/// Dropping an engine frees the lock of its state folder.
#[test]
fn a_dropped_engine_releases_everything() {
    let state = tempfile::tempdir().unwrap();
    for _ in 0..300 {
        drop(Bed::with(settings(Some(state.path()))).unwrap());
    }
}

/// A torrent that is stopped during a download counts the received blocks, and downloads none twice except those in
/// flight.
#[test]
fn a_stop_in_full_flow_loses_nothing() {
    let torrent = Arc::new(Torrent::single(3, 12 << 20, 256 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let seed = Seed::slow(&torrent, Duration::from_micros(500));
    let id = torrent.info_hash();
    for blocks in [100, 250, 400, 550] {
        let mut bed = Bed::start(&state);
        bed.add(&torrent, &root, &[seed.address]);
        bed.wait_downloading(id);
        seed.wait_served(blocks);
        bed.stop_all().unwrap();
        torrent.assert_true(&torrent.session(&state).unwrap(), &root);
    }
    let mut bed = Bed::start(&state);
    bed.add(&torrent, &root, &[seed.address]);
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id));
    torrent.assert_whole(&root);
    let stats = bed.stats(id);
    let size = torrent.data.len() as u64;
    assert_eq!(stats.corrupt, 0);
    // Only blocks that were in flight at a stop may be sent again.
    let again = stats.downloaded - size;
    assert!(again <= 4 * 16 * (16 << 10), "{again} bytes came again");
}

/// The counters of uploaded bytes, downloaded bytes and running time continue over more than one run.
#[test]
fn counters_survive() {
    let torrent = Arc::new(Torrent::single(4, 1 << 20, 64 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let seed = Seed::free(&torrent);
    let mut bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[seed.address]);
    bed.wait_seeding(id);
    let (mut uploaded, mut seconds) = (0, 0);
    for run in 1..=3 {
        let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
        peer.send(&Message::Interested);
        peer.wait_for_message(&Message::Unchoke);
        for block in 0..4 {
            peer.send(&Message::Request(torrent.geometry().block(run, block)));
            assert_eq!(peer.wait_for_block().request.len, 16 << 10);
        }
        uploaded += 4 * (16 << 10);
        wait_until("a second", || bed.stats(id).seconds_active > seconds);
        let stats = bed.stats(id);
        assert_eq!((stats.downloaded, stats.uploaded), (1 << 20, uploaded), "run {run}");
        seconds = stats.seconds_active;
        bed.stop_all().unwrap();
        let session = torrent.session(&state).unwrap();
        assert_eq!((session.downloaded, session.uploaded), (1 << 20, uploaded));
        assert!(session.seconds_active >= seconds);
        drop(bed);
        bed = Bed::start(&state);
        assert_eq!(bed.resume_all(), 1);
        bed.wait_seeding(id);
        let stats = bed.stats(id);
        assert_eq!((stats.downloaded, stats.uploaded), (1 << 20, uploaded));
        assert!(
            stats.seconds_active >= seconds,
            "{} after {seconds}",
            stats.seconds_active
        );
    }
}

/// A torrent that is stopped during a check is not saved with fewer pieces than it has, and the next run checks it.
#[test]
fn stopped_while_it_is_checked() {
    let torrent = Torrent::single(5, 30_000_000, 32 << 10);
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    torrent.place(&root);
    let id = torrent.info_hash();
    let touch = || {
        let file = std::fs::File::options().write(true).open(root.join("data")).unwrap();
        file.set_modified(std::time::SystemTime::now()).unwrap();
    };
    for run in 0..3 {
        let mut bed = Bed::start(&state);
        bed.add(&torrent, &root, &[]);
        bed.wait(id, "the check", |life| *life == Lifecycle::Checking);
        bed.stop_all().unwrap();
        drop(bed);
        torrent.assert_true(&torrent.session(&state).unwrap(), &root);
        let mut bed = Bed::start(&state);
        assert_eq!(bed.resume_all(), 1, "run {run}");
        bed.wait_seeding(id);
        bed.stop_all().unwrap();
        let session = torrent.session(&state).unwrap();
        assert!(session.have.to_set(session.pieces).unwrap().is_full());
        touch();
    }
}

/// A torrent that may change a file of the user is stopped during the check of that file. It may still change the file
/// when it is resumed, also if its session is damaged.
#[test]
fn a_permission_outlasts_a_stop_during_the_check() {
    for is_damaged in [false, true] {
        let torrent = Arc::new(Torrent::single(9, 30_000_000, 32 << 10));
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        torrent.place(&root);
        let file = root.join("data");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[20_000_000] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let seed = Seed::free(&torrent);
        let mut bed = Bed::start(&state);
        let id = bed.add_over(&torrent, &root, &[]);
        bed.wait(id, "the check", |life| *life == Lifecycle::Checking);
        bed.stop(id).unwrap();
        drop(bed);
        if is_damaged {
            let session = torrent.session_path(&state);
            let text = std::fs::read_to_string(&session).unwrap();
            std::fs::write(&session, text.replace("    uploaded:", "    uploadex:")).unwrap();
        }
        let mut bed = Bed::start(&state);
        bed.block_on(bed.torrents().resume(id)).unwrap();
        bed.add_peer(id, seed.address);
        bed.wait_seeding(id);
        torrent.assert_whole(&root);
    }
}

/// A torrent that is stopped before its session has been read keeps its session, without an error. Stopping a new
/// torrent at once is no error either.
#[test]
fn stopped_at_once() {
    let torrent = Torrent::single(7, 300_000, 32 << 10);
    let new = Torrent::single(8, 300_000, 32 << 10);
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    torrent.place(&root);
    let mut bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[]);
    bed.wait_seeding(id);
    bed.stop_all().unwrap();
    let before = std::fs::read(torrent.session_path(&state)).unwrap();
    for _ in 0..50 {
        assert_eq!(bed.resume_all(), 1);
        bed.stop_all().unwrap();
        assert_eq!(std::fs::read(torrent.session_path(&state)).unwrap(), before);
        bed.add(&new, &folder.path().join("new"), &[]);
        bed.stop(new.info_hash()).unwrap();
        // A stopped torrent can still be removed.
        bed.block_on(bed.torrents().remove(new.info_hash(), RemoveOptions::default()))
            .unwrap();
        assert!(!new.session_path(&state).exists());
    }
}

/// A torrent that was added for seeding can be downloaded later, with the same state folder.
#[test]
fn seeded_then_downloaded() {
    let torrent = Arc::new(Torrent::single(6, 300_000, 32 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    torrent.place(&root);
    let options = AddOptions {
        root: Some(root.clone()),
        require_complete: true,
        ..AddOptions::default()
    };
    let mut bed = Bed::start(&state);
    let id = bed.add_with(&torrent, options);
    bed.wait_seeding(id);
    bed.stop_all().unwrap();
    drop(bed);
    std::fs::remove_file(root.join("data")).unwrap();
    let mut bed = Bed::start(&state);
    bed.add(&torrent, &root, &[Seed::free(&torrent).address]);
    bed.wait_seeding(id);
    torrent.assert_whole(&root);
}

/// Fault 97: on SIGTERM during a download, with a tracker that does not answer, the command saves and exits with 7
/// (incomplete) within ten seconds.
#[test]
fn terminated() {
    let tracker = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/announce", tracker.local_addr().unwrap());
    let torrent = Arc::new(Torrent::make(97, "data", &[("", 8 << 20)], 64 << 10, &[url]));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let seed = Seed::slow(&torrent, Duration::from_millis(5));
    let mut child = Command::new(env!("CARGO_BIN_EXE_ecs-torrent"))
        .arg("download")
        .arg(torrent.file())
        .arg("-o")
        .arg(&root)
        .args([
            "--peer",
            &seed.address.to_string(),
            "--listen",
            "127.0.0.1:0",
            "--quiet",
        ])
        .arg("--state-dir")
        .arg(&state)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    seed.wait_served(50);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let began = Instant::now();
    let status = child.wait().unwrap();
    assert!(
        status.code() == Some(7) && began.elapsed() < Duration::from_secs(10),
        "{status} {:?}",
        began.elapsed()
    );
    let session = torrent.session(&state).unwrap();
    torrent.assert_true(&session, &root);
    assert!(session.downloaded >= 49 * (16 << 10), "{}", session.downloaded);
    assert!(session.have.to_set(session.pieces).unwrap().count() >= 6);
    let mut bed = Bed::start(&state);
    bed.resume_all();
    let life = bed.wait(torrent.info_hash(), "the resumption", |life| *life != Lifecycle::Adding);
    assert_eq!(life, Lifecycle::Downloading, "without a check");
}
