//! Disks that are full, broken, read-only or missing, and files that another program changes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ecs_torrent::components::session::Session;
use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::protocol::wire::{Frame, Message};
use ecs_torrent::{Error, InfoHash, RemoveError, TorrentState};

use crate::bed::{Bed, Torrent, settings, wait_until};
use crate::child::Process;
use crate::command::{Running, command};
use crate::peer::ScriptedPeer;
use crate::removing::DELETE;
use crate::seed::Seed;
use crate::volumes::{Volume, can_mount};

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

/// Fault 71: a disk that fills up during a download blocks it. When space is available again, the download resumes by
/// itself. All verified pieces were on the disk the whole time.
#[test]
fn a_full_disk() {
    if !can_mount("disk_faults::a_full_disk") {
        return;
    }
    let torrent = Arc::new(Torrent::album(
        71,
        "album",
        &[("a", 3_000_000), ("b", 3_000_000)],
        64 << 10,
    ));
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::new(&folder.path().join("data"), 8 << 20);
    let (root, state) = (volume.place(), folder.path().join("state-dir"));
    let ballast = root.join("ballast");
    fs::write(&ballast, vec![1; 5 << 20]).unwrap();
    let seed = Seed::slow(&torrent, Duration::from_micros(100));
    let mut settings = settings(Some(&state));
    settings.session.checkpoint_interval_s = 1;
    let mut bed = Bed::start_with(settings);
    let id = bed.add(&torrent, root, &[seed.address]);
    bed.wait_downloading(id);
    let reason = bed.wait_blocked(id);
    assert!(
        reason.contains("No space left") && reason.contains("album/"),
        "{reason}"
    );
    let had = bed.have(id);
    assert!(!had.is_empty() && had.len() < 92, "{} pieces", had.len());
    assert_eq!(torrent.false_pieces(root, had), Vec::<u32>::new());
    let stats = bed.stats(id);
    assert_eq!(stats.state, TorrentState::Blocked);
    assert!(stats.error.is_some_and(|error| error.contains("No space left")));
    // A session saved at this point lists no data that is missing.
    wait_until("a session with pieces", || {
        let session = torrent.session(&state);
        session.is_some_and(|session| session.have.to_set(session.pieces).unwrap().count() > 0)
    });
    torrent.assert_true(&torrent.session(&state).unwrap(), root);
    fs::remove_file(ballast).unwrap();
    bed.wait_seeding(id);
    torrent.assert_whole(root);
    let past = bed.past(id).to_vec();
    let is_again = |life: &&Lifecycle| matches!(life, Lifecycle::Adding | Lifecycle::Failed { .. });
    assert_eq!(
        past.iter().filter(is_again).count(),
        1,
        "added once, and not restarted: {past:?}"
    );
    assert_eq!(
        bed.stats(id).downloaded,
        torrent.data.len() as u64,
        "nothing came twice"
    );
    bed.stop_all().unwrap();
}

/// A blocked write of the last missing piece completes the torrent once space is available.
#[test]
fn the_last_piece_on_a_full_disk() {
    if !can_mount("disk_faults::the_last_piece_on_a_full_disk") {
        return;
    }
    let torrent = Arc::new(Torrent::single(711, 1 << 20, 64 << 10));
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::new(&folder.path().join("data"), 2 << 20);
    let seed = Seed::limited(&torrent, 63);
    let mut bed = Bed::start(&folder.path().join("state-dir"));
    let id = bed.add(&torrent, volume.place(), &[seed.address]);
    wait_until("all pieces but one", || bed.have(id).len() == 15);
    let ballast = volume.fill();
    seed.release();
    bed.wait_blocked(id);
    fs::remove_file(ballast).unwrap();
    bed.wait_seeding(id);
    torrent.assert_whole(volume.place());
    bed.stop_all().unwrap();
}

/// A blocked write of the last missing piece completes a download command with `--exit-on-complete`.
#[test]
fn a_download_that_exits_after_a_full_disk() {
    if !can_mount("disk_faults::a_download_that_exits_after_a_full_disk") {
        return;
    }
    let torrent = Arc::new(Torrent::single(712, 1 << 20, 64 << 10));
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::new(&folder.path().join("data"), 2 << 20);
    let seed = Seed::limited(&torrent, 63);
    let (file, peer) = (torrent.file(), seed.address.to_string());
    let arguments = [
        "download",
        file.to_str().unwrap(),
        "-o",
        "data",
        "--json",
        "--exit-on-complete",
    ];
    let network = ["--listen", "127.0.0.1:0", "--peer", &peer];
    let mut command = command(folder.path(), &[&arguments[..], &network].concat());
    let mut process = Running::start(command.stdout(Stdio::piped()));
    let mut events = BufReader::new(process.0.stdout.take().unwrap())
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
    events.find(|event| event["pieces"]["held"] == 15).unwrap();
    let ballast = volume.fill();
    seed.release();
    events.find(|event| event["event"] == "blocked").unwrap();
    fs::remove_file(ballast).unwrap();
    assert!(process.wait().success());
    assert_eq!(events.last().unwrap()["event"], "complete");
    torrent.assert_whole(volume.place());
}

/// Checks that a session accounts for every downloaded byte: it is held, in a saved block, dropped or corrupt.
fn assert_accounted(torrent: &Torrent, session: &Session) {
    let geometry = torrent.geometry();
    let partial = session.partial.iter().flat_map(|partial| {
        let blocks = partial.blocks.to_set(geometry.block_count(partial.piece)).unwrap();
        let lens = blocks
            .iter()
            .map(|block| geometry.block(partial.piece, block).len.into());
        lens.collect::<Vec<u64>>()
    });
    let held = geometry.size_of(&session.have.to_set(session.pieces).unwrap());
    let placed = held + partial.sum::<u64>() + session.dropped + session.corrupt;
    assert_eq!(session.downloaded, placed, "{session:?}");
}

/// Fault 71: a torrent that is stopped while blocked is saved at once with its verified pieces, also with those for
/// which there is space again, and counts the other pieces as dropped. It resumes in the next run.
#[test]
fn stopped_on_a_full_disk() {
    if !can_mount("disk_faults::stopped_on_a_full_disk") {
        return;
    }
    for has_space in [false, true] {
        stop_on_a_full_disk(has_space);
    }
}

fn stop_on_a_full_disk(has_space: bool) {
    let torrent = Arc::new(Torrent::single(710, 3_000_000, 64 << 10));
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::new(&folder.path().join("data"), 2 << 20);
    let (root, state) = (volume.place(), folder.path().join("state-dir"));
    let ballast = root.join("ballast");
    fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    let seed = Seed::free(&torrent);
    let mut settings = settings(Some(&state));
    settings.lifecycle.halt_timeout_ms = 60_000;
    // Only the stop tries to write again.
    settings.lifecycle.blocked_retry_ms = 60_000;
    let mut bed = Bed::start_with(settings);
    let id = bed.add(&torrent, root, &[seed.address]);
    bed.wait_blocked(id);
    let held_count = bed.have(id).len();
    if has_space {
        fs::remove_file(&ballast).unwrap();
    }
    let begin = Instant::now();
    bed.stop_all().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    drop(bed);
    let session = torrent.session(&state).unwrap();
    torrent.assert_true(&session, root);
    assert_accounted(&torrent, &session);
    let saved_count = session.have.to_set(session.pieces).unwrap().count() as usize;
    assert!(saved_count > held_count || !has_space, "{saved_count} of {held_count}");
    assert!(session.dropped > 0, "the volume is too small for the torrent");
    if !has_space {
        fs::remove_file(ballast).unwrap();
    }
    let mut bed = Bed::start(&state);
    bed.resume_all();
    // The volume is still too small.
    bed.add_peer(id, seed.address);
    bed.wait_blocked(id);
    assert_eq!(torrent.false_pieces(root, bed.have(id)), Vec::<u32>::new());
}

/// Fault 72: a file that cannot be written to its end fails its torrent after a few restarts, with the reason. No
/// missing piece is reported as verified, and another torrent of the engine completes.
#[test]
fn a_write_that_fails() {
    let torrent = Arc::new(Torrent::single(72, 4 << 20, 64 << 10));
    let other = Arc::new(Torrent::album(
        720,
        "other",
        &[("a", 800_000), ("b", 800_000)],
        64 << 10,
    ));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let (seed, other_seed) = (Seed::free(&torrent), Seed::slow(&other, Duration::from_millis(10)));
    let mut settings = settings(Some(&state));
    settings.session.checkpoint_interval_s = 0;
    // Each try first connects to the peer and downloads.
    settings.lifecycle.restart_window_s = 60;
    // The limit is in blocks of 512 bytes: 1 MiB per file. A process that ignores the signal gets EFBIG.
    let limits = "trap '' XFSZ && ulimit -f 2048";
    let torrents = [(&*torrent, &*root, seed.address), (&*other, &*root, other_seed.address)];
    let mut child = Process::start(&settings, &torrents, limits);
    let id = torrent.info_hash().to_string();
    let mut restart_count = 0;
    let failed = loop {
        let of_it = |line: &serde_json::Value| line["torrent"] == id.as_str();
        let line = child.wait("the failure", |line| of_it(line) && line["reason"].is_string());
        match line["life"].as_str() {
            Some("restarting") => restart_count += 1,
            _ => break line,
        }
    };
    assert_eq!(
        (failed["life"].as_str(), restart_count),
        (Some("failed"), 3),
        "{failed}"
    );
    let reason = failed["reason"].as_str().unwrap();
    assert!(
        reason.contains("cannot write") && reason.contains(root.join("data").to_str().unwrap()),
        "{reason}"
    );
    assert!(reason.contains("File too large"), "{reason}");
    other_seed.wait_served(98);
    wait_until("the other one", || {
        other.false_pieces(&root, 0..other.geometry().piece_count()).is_empty()
    });
    child.stop();
    other.assert_whole(&root);
    torrent.assert_true(&torrent.session(&state).unwrap(), &root);
}

/// Faults 72 and 74: restarts are limited with the default settings too.
#[test]
fn restarts_are_limited_by_default() {
    let torrent = Arc::new(Torrent::single(721, 4 << 20, 64 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let seed = Seed::free(&torrent);
    let mut settings = ecs_torrent::Settings::default();
    settings.session.state_dir = Some(state);
    settings.net.listen = crate::bed::settings(None).net.listen;
    let child = Process::start(
        &settings,
        &[(&torrent, &root, seed.address)],
        "trap '' XFSZ && ulimit -f 2048",
    );
    let mut restart_count = 0;
    while child.wait("the failure", |line| line["reason"].is_string())["life"] == "restarting" {
        restart_count += 1;
        assert!(restart_count <= 3, "it is restarted for ever");
    }
    assert_eq!(restart_count, 3);
}

/// Fault 73: a seed whose files are truncated or removed rejects requests that it cannot read, checks the remaining
/// data, and completes again.
#[test]
fn files_changed_underneath_a_seed() {
    let files = [("a", 300_000), ("b", 300_000), ("c", 300_000)];
    let torrent = Arc::new(Torrent::album(73, "album", &files, 32 << 10));
    let changes: [fn(&Path); 3] = [
        |root| {
            fs::File::options()
                .write(true)
                .open(root.join("album/b"))
                .unwrap()
                .set_len(10)
                .unwrap();
        },
        |root| fs::remove_file(root.join("album/b")).unwrap(),
        |root| fs::remove_dir_all(root).unwrap(),
    ];
    for (number, change) in changes.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        // The files are the torrent's own, and the seed sends each block once.
        let seed = Seed::limited(&torrent, torrent.data.len().div_ceil(16 << 10) as u64);
        let mut bed = Bed::start(&state);
        let id = bed.add(&torrent, &root, &[seed.address]);
        bed.wait_seeding(id);
        bed.stop_all().unwrap();
        drop(bed);
        // This engine has not opened the files yet.
        let mut bed = Bed::start(&state);
        bed.resume_all();
        bed.wait_seeding(id);
        let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
        peer.send(&Message::Interested);
        peer.wait_for_message(&Message::Unchoke);
        if number < 2 {
            peer.send(&Message::Request(torrent.geometry().block(0, 0)));
            peer.wait_for_block();
        }
        change(&root);
        let request = torrent.geometry().block(12, 0);
        peer.send(&Message::Request(request));
        let is_rejected = peer.wait_for("an answer", |frame| match frame {
            Frame::Message(Message::RejectRequest(rejected)) => Some(rejected == request),
            Frame::Block(_) => Some(false),
            Frame::Message(_) => None,
        });
        assert!(is_rejected, "case {number}");
        bed.wait_downloading(id);
        let had = bed.have(id);
        assert_eq!(torrent.false_pieces(&root, had.iter().copied()), Vec::<u32>::new());
        assert_eq!(had.len(), [18, 18, 0][number], "what is left is found");
        seed.release();
        bed.add_peer(id, seed.address);
        bed.wait_seeding(id);
        torrent.assert_whole(&root);
    }
}

/// Fault 73: a file that is removed during a download, while still open, does not count as complete.
#[test]
fn a_file_removed_underneath_a_download() {
    let torrent = Arc::new(Torrent::single(730, 2 << 20, 64 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let seed = Seed::limited(&torrent, 64);
    let mut bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[seed.address]);
    bed.wait_downloading(id);
    wait_until("pieces", || bed.have(id).len() >= 8);
    fs::remove_file(root.join("data")).unwrap();
    seed.release();
    bed.wait_seeding(id);
    torrent.assert_whole(&root);
}

/// Fault 73: a file is truncated during a download and its end is written later. No session lists the hole as verified.
#[test]
fn a_file_cut_underneath_a_download() {
    let torrent = Arc::new(Torrent::single(731, 4 << 20, 64 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let seed = Seed::limited(&torrent, 128);
    let mut bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[seed.address]);
    bed.wait_downloading(id);
    wait_until("pieces", || bed.have(id).len() >= 8);
    wait_until("blocks", || bed.stats(id).downloaded >= 128 * (16 << 10));
    let file = fs::File::options().write(true).open(root.join("data")).unwrap();
    file.set_len(0).unwrap();
    seed.release();
    // The torrent either seeds in the end or has detected the hole before. In both cases, its session is correct.
    seed.wait_served(256);
    bed.stop_all().unwrap();
    torrent.assert_true(&torrent.session(&state).unwrap(), &root);
    drop(bed);
    let mut bed = Bed::start(&state);
    bed.resume_all();
    bed.add_peer(id, Seed::free(&torrent).address);
    bed.wait_seeding(id);
    torrent.assert_whole(&root);
}

/// Fault 74: a read-only folder fails its torrent after a few restarts, with the path. Another torrent keeps running.
#[test]
fn a_read_only_disk() {
    if !can_mount("disk_faults::a_read_only_disk") {
        return;
    }
    let torrent = Arc::new(Torrent::album(74, "album", &[("a", 300_000), ("b", 300_000)], 64 << 10));
    let other = Arc::new(Torrent::single(740, 3_000_000, 64 << 10));
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::new(&folder.path().join("read-only"), 1 << 20);
    volume.make_read_only();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let mut settings = settings(Some(&state));
    settings.lifecycle.restart_window_s = 60;
    let mut bed = Bed::start_with(settings);
    let id = bed.add(&torrent, volume.place(), &[Seed::free(&torrent).address]);
    let other_seed = Seed::limited(&other, 10);
    let other_id = bed.add(&other, &root, &[other_seed.address]);
    let reason = bed.wait_failed(id);
    let path = volume.place().join("album");
    assert!(
        reason.contains(path.to_str().unwrap()) && reason.contains("Read-only"),
        "{reason}"
    );
    assert_eq!((bed.restart_count(id), bed.have(id)), (3, Vec::new()));
    other_seed.release();
    bed.wait_seeding(other_id);
    other.assert_whole(&root);
    assert_eq!(
        (bed.restart_count(other_id), bed.stats(id).state),
        (0, TorrentState::Failed)
    );
    bed.stop_all().unwrap();
}

/// Fault 75: an unmounted volume blocks its torrents, and nothing is written to the empty mount point. When the volume
/// is mounted again, the torrents resume with the data on it.
#[test]
fn an_unmounted_volume() {
    if !can_mount("disk_faults::an_unmounted_volume") {
        return;
    }
    let files = [("a", 500_000), ("b", 500_000), ("c/d", 500_000), ("e", 500_000)];
    let torrent = Arc::new(Torrent::album(75, "album", &files, 32 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("mounted"), folder.path().join("state-dir"));
    // This mount stays, so that the volume keeps its data like a disk that is unplugged.
    let volume = Volume::new(&folder.path().join("behind"), 8 << 20);
    let mounted = volume.again(&root);
    let seed = Seed::limited(&torrent, 40);
    let mut settings = settings(Some(&state));
    // Forces files to be reopened again and again.
    settings.storage.max_open_files = 1;
    let mut bed = Bed::start_with(settings.clone());
    let id = bed.add(&torrent, &root, &[seed.address]);
    bed.wait_downloading(id);
    wait_until("pieces", || bed.have(id).len() >= 5);
    drop(mounted);
    assert!(is_empty(&root));
    seed.release();
    for _ in 0..3 {
        // The engine checks repeatedly whether the volume is mounted.
        let reason = bed.wait_blocked(id);
        assert!(
            reason.contains("nothing is mounted") && reason.contains(root.to_str().unwrap()),
            "{reason}"
        );
        assert!(is_empty(&root), "nothing is written where it was");
    }
    let mounted = volume.again(&root);
    bed.wait_seeding(id);
    torrent.assert_whole(&root);
    bed.stop_all().unwrap();
    drop(bed);

    // A volume that is not mounted at the start is waited for too. Its data is accepted without a check when it
    // appears.
    drop(mounted);
    let mut bed = Bed::start_with(settings);
    assert_eq!(bed.resume_all(), 1);
    bed.wait_blocked(id);
    bed.wait_blocked(id);
    assert!(is_empty(&root));
    let mounted = volume.again(&root);
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id));
    bed.stop_all().unwrap();
    drop(bed);
    drop(mounted);

    // A damaged session still names the volume, even after many retries of the torrent.
    let session = torrent.session_path(&state);
    let text = fs::read_to_string(&session).unwrap();
    fs::write(&session, text.replace("    uploaded:", "    uploadex:")).unwrap();
    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 1);
    for _ in 0..3 {
        bed.wait_blocked(id);
        assert!(is_empty(&root));
    }
    drop(bed);
    fs::write(root.join("album"), "somebody's").unwrap();
    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 1);
    bed.wait_blocked(id);
    refuse_to_delete(&bed, id);
    assert_eq!(fs::read_to_string(root.join("album")).unwrap(), "somebody's");
    torrent.assert_whole(volume.place());
}

/// Removes a torrent with its data while the volume is not mounted, which is refused.
fn refuse_to_delete(bed: &Bed, id: InfoHash) {
    let error = bed.block_on(bed.torrents().remove(id, DELETE)).unwrap_err();
    assert!(matches!(error, Error::Remove(RemoveError::Kept { .. })), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("nothing is mounted") && text.contains("without its data"),
        "{text}"
    );
}

/// A torrent that cannot be removed with its data, because its volume is not mounted, is not forgotten: it stays
/// running, paused or stopped, and can be removed with its data when the volume is back, or at once without.
#[test]
fn a_removal_without_the_volume() {
    if !can_mount("disk_faults::a_removal_without_the_volume") {
        return;
    }
    let torrent = Arc::new(Torrent::album(
        78,
        "album",
        &[("a", 300_000), ("b/c", 300_000)],
        32 << 10,
    ));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("mounted"), folder.path().join("state-dir"));
    let volume = Volume::new(&folder.path().join("behind"), 8 << 20);
    let mounted = volume.again(&root);
    let mut bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[Seed::free(&torrent).address]);
    bed.wait_seeding(id);
    torrent.wait_saved_complete(&state);

    // While it seeds: the engine has not noticed yet that the volume is gone.
    drop(mounted);
    refuse_to_delete(&bed, id);
    bed.wait_blocked(id);
    // While it is blocked.
    refuse_to_delete(&bed, id);
    assert_eq!(bed.list(), [id]);
    let mounted = volume.again(&root);
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id));

    bed.block_on(bed.torrents().pause(id)).unwrap();
    drop(mounted);
    refuse_to_delete(&bed, id);
    assert_eq!(bed.stats(id).state, TorrentState::Paused);
    drop(bed);
    let bed = Bed::start(&state);
    // While it is only in the state folder.
    refuse_to_delete(&bed, id);
    assert_eq!(bed.list(), []);
    assert_eq!(bed.block_on(bed.torrents().restore()).unwrap(), 1);
    refuse_to_delete(&bed, id);
    assert_eq!(bed.stats(id).state, TorrentState::Paused);

    bed.stop(id).unwrap();
    refuse_to_delete(&bed, id);
    assert_eq!(bed.list(), []);
    let stopped = bed.block_on(bed.torrents().list_stopped()).unwrap();
    assert_eq!(
        stopped.iter().map(|torrent| torrent.info_hash).collect::<Vec<_>>(),
        [id]
    );
    assert!(is_empty(&root));
    torrent.assert_whole(volume.place());

    let _mounted = volume.again(&root);
    let removed = bed.block_on(bed.torrents().remove(id, DELETE)).unwrap();
    assert_eq!(removed.deleted_count, 2);
    assert!(is_empty(&root));
}

/// Fault 76: a symbolic link that replaces a folder or a file during a download redirects no write out of the download
/// folder.
#[test]
fn links_swapped_in() {
    let files = [("a/1", 400_000), ("a/2", 400_000), ("a/3", 400_000)];
    let torrent = Arc::new(Torrent::album(76, "album", &files, 32 << 10));
    for name in ["album/a", "album/a/2"] {
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("2");
        fs::write(&victim, "precious").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        let seed = Seed::limited(&torrent, 12);
        let mut settings = settings(Some(&state));
        settings.storage.max_open_files = 1;
        settings.lifecycle.restart_window_s = 60;
        let mut bed = Bed::start_with(settings);
        let id = bed.add(&torrent, &root, &[seed.address]);
        bed.wait_downloading(id);
        wait_until("pieces", || bed.have(id).len() >= 2);
        let place = root.join(name);
        if place.exists() {
            fs::rename(&place, root.join("moved")).unwrap();
        }
        let target = if name.ends_with('2') {
            victim.as_path()
        } else {
            outside.path()
        };
        symlink(target, &place).unwrap();
        seed.release();
        let reason = bed.wait_failed(id);
        assert!(reason.contains(place.to_str().unwrap()), "{reason}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }
}

/// Fault 77: existing files that are too long keep their excess bytes through download, stop and resumption.
#[test]
fn longer_files() {
    let torrent = Arc::new(Torrent::album(
        77,
        "album",
        &[("a", 200_000), ("b", 0), ("c", 100_000)],
        32 << 10,
    ));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    fs::create_dir_all(root.join("album")).unwrap();
    let (a, b) = (root.join("album/a"), root.join("album/b"));
    fs::write(&a, vec![7; 300_000]).unwrap();
    fs::write(&b, "not empty").unwrap();
    let seed = Seed::free(&torrent);
    let mut bed = Bed::start(&state);
    let id = bed.add_over(&torrent, &root, &[seed.address]);
    bed.wait_seeding(id);
    bed.stop_all().unwrap();
    drop(bed);
    let mut bed = Bed::start(&state);
    bed.resume_all();
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id));
    let bytes = fs::read(&a).unwrap();
    assert!(bytes[..200_000] == torrent.data[..200_000] && bytes[200_000..] == vec![7; 100_000]);
    assert_eq!(fs::read_to_string(&b).unwrap(), "not empty");
}

/// Fault 99: a torrent of many files completes under a low limit of open files.
#[test]
fn few_files_allowed() {
    crowded(0);
}

/// Fault 99: the torrent completes under that limit while peers connect, and later peers are served too.
#[test]
fn few_files_and_some_peers() {
    crowded(12);
}

/// Fault 99: the torrent completes under that limit with more peers than files allowed.
#[test]
fn few_files_and_a_crowd() {
    crowded(100);
}

/// Fault 99: the number of open files is bounded by the setting, plus the files in use.
#[test]
fn open_files_are_bounded() {
    let names: Vec<String> = (0..300).map(|number| format!("{number:03}")).collect();
    let files: Vec<(&str, usize)> = names.iter().map(|name| (&**name, 20_000)).collect();
    let torrent = Arc::new(Torrent::album(990, "album", &files, 32 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let seed = Seed::limited(&torrent, 300);
    let mut settings = settings(Some(&state));
    settings.storage.max_open_files = 16;
    let mut bed = Bed::start_with(settings);
    let id = bed.add(&torrent, &root, &[seed.address]);
    bed.wait_downloading(id);
    wait_until("most pieces", || bed.have(id).len() >= 100);
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let targets = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let open_count = targets.filter(|target| target.starts_with(&root)).count();
    // Each of the two disk threads may have open its folder, a file that is being opened, and a file that was evicted
    // from the cache.
    assert!(open_count <= 16 + 2 * 3, "{open_count} files are open");
}

fn crowded(peer_count: usize) {
    let names: Vec<String> = (0..300).map(|number| format!("{number:03}")).collect();
    let files: Vec<(&str, usize)> = names.iter().map(|name| (&**name, 20_000)).collect();
    let torrent = Arc::new(Torrent::album(99, "album", &files, 32 << 10));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let seed = Seed::slow(&torrent, Duration::from_millis(3));
    let mut settings = settings(Some(&state));
    // Peers that send no handshake are disconnected.
    settings.peers.handshake_timeout_s = 1;
    let mut child = Process::start(&settings, &[(&torrent, &root, seed.address)], "ulimit -n 64");
    let address = child.address();
    seed.wait_served(60);
    let strangers: Vec<TcpStream> = (0..peer_count).map(|_| TcpStream::connect(address).unwrap()).collect();
    let line = child.wait("the end", |line| line["life"] == "seeding" || line["life"] == "failed");
    assert_eq!(line["life"], "seeding", "{line} {}", child.log());
    drop(strangers);
    torrent.assert_whole(&root);
    let mut peer = ScriptedPeer::connect(address, &torrent);
    peer.send(&Message::Interested);
    peer.wait_for_message(&Message::Unchoke);
    for piece in 0..torrent.geometry().piece_count() {
        peer.send(&Message::Request(torrent.geometry().block(piece, 0)));
        peer.wait_for_block();
    }
    child.stop();
    torrent.assert_true(&torrent.session(&state).unwrap(), &root);
}
