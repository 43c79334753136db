//! State folders that are damaged, full or in use, or were written for another torrent or by a newer version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ecs_torrent::components::session::VERSION;
use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::{AddOptions, Error, RemoveOptions, TorrentState};

use crate::bed::{Bed, Torrent, settings, wait_until};
use crate::seed::Seed;
use crate::volumes::{Volume, can_mount};

/// Creates complete torrents with saved sessions. No engine is running afterward.
fn saved(count: u64, root: &Path, state: &Path) -> Vec<Torrent> {
    let names = ["t0", "t1", "t2", "t3", "t4"];
    let torrents: Vec<Torrent> = (0..count)
        .map(|number| {
            Torrent::album(
                80 + number,
                names[number as usize],
                &[("a", 300_000), ("b", 100_001)],
                32 << 10,
            )
        })
        .collect();
    let mut bed = Bed::start(state);
    for torrent in &torrents {
        torrent.place(root);
        let id = bed.add(torrent, root, &[]);
        bed.wait_seeding(id);
    }
    bed.stop_all().unwrap();
    torrents
}

/// Returns the path of a session that was set aside.
fn aside(torrent: &Torrent, state: &Path, word: &str) -> PathBuf {
    let path = torrent.session_path(state);
    path.with_file_name(format!("{}.{word}", path.file_name().unwrap().to_str().unwrap()))
}

/// Fault 80: truncated, empty or modified sessions are set aside under a name that says so, and their torrents are
/// checked. The other torrents resume unchanged.
#[test]
fn damaged_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let torrents = saved(5, &root, &state);
    for round in 1..=2 {
        let damages: [fn(&mut Vec<u8>); 4] = [
            |bytes| bytes.truncate(bytes.len() / 2),
            Vec::clear,
            |bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
            },
            |bytes| bytes.fill(0),
        ];
        let damaged: Vec<Vec<u8>> = torrents
            .iter()
            .zip(damages)
            .map(|(torrent, damage)| {
                let mut bytes = fs::read(torrent.session_path(&state)).unwrap();
                damage(&mut bytes);
                fs::write(torrent.session_path(&state), &bytes).unwrap();
                bytes
            })
            .collect();
        let mut settings = settings(Some(&state));
        // An empty session does not record the download folder.
        settings.storage.download_dir.clone_from(&root);
        let mut bed = Bed::start_with(settings);
        assert_eq!(bed.resume_all(), torrents.len());
        for (number, torrent) in torrents.iter().enumerate() {
            let id = torrent.info_hash();
            bed.wait_seeding(id);
            assert_eq!(bed.has_checked(id), number < damaged.len(), "torrent {number}");
        }
        bed.stop_all().unwrap();
        for (torrent, bytes) in torrents.iter().zip(&damaged) {
            let word = if round == 1 {
                "damaged".to_owned()
            } else {
                format!("damaged-{}", round - 1)
            };
            assert_eq!(
                fs::read(aside(torrent, &state, &word)).unwrap(),
                *bytes,
                "kept as it was"
            );
            torrent.assert_true(&torrent.session(&state).unwrap(), &root);
            torrent.assert_whole(&root);
        }
    }
    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), torrents.len());
    for torrent in &torrents {
        bed.wait_seeding(torrent.info_hash());
        assert!(!bed.has_checked(torrent.info_hash()), "saved again");
    }
}

/// Fault 80: a damaged `.torrent` file in the state folder affects only its own torrent.
#[test]
fn damaged_metainfo() {
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let torrents = saved(2, &root, &state);
    fs::write(torrents[0].session_path(&state).with_extension("torrent"), "d4:info").unwrap();
    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 1);
    bed.wait_seeding(torrents[1].info_hash());
    // The torrent returns when the user adds it again.
    let id = bed.add(&torrents[0], &root, &[]);
    bed.wait_seeding(id);
    bed.stop_all().unwrap();
    drop(bed);
    assert_eq!(Bed::start(&state).resume_all(), 2);
}

/// A stopped torrent of which the state folder has no usable `.torrent` file cannot be resumed. It can be removed: then
/// only its files are left, whose names are unknown.
#[test]
fn removing_without_metainfo() {
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let torrents = saved(3, &root, &state);
    let metainfo = |torrent: &Torrent| torrent.session_path(&state).with_extension("torrent");
    // A session with a damaged `.torrent` file, one without that file, and a damaged one.
    fs::write(metainfo(&torrents[0]), "d4:info").unwrap();
    fs::remove_file(metainfo(&torrents[1])).unwrap();
    fs::remove_file(metainfo(&torrents[2])).unwrap();
    fs::write(torrents[2].session_path(&state), "damaged").unwrap();
    let bed = Bed::start(&state);
    for torrent in &torrents[..2] {
        let error = bed.block_on(bed.torrents().resume(torrent.info_hash())).unwrap_err();
        assert!(matches!(error, Error::ResumeTorrent(_)), "{error}");
    }
    for (torrent, delete_data) in torrents.iter().zip([false, true, false]) {
        let id = torrent.info_hash();
        let removed = bed.block_on(bed.torrents().remove(id, RemoveOptions { delete_data }));
        match removed {
            Ok(removed) => assert!(!delete_data && removed.deleted_count == 0),
            Err(error) => {
                assert!(delete_data, "{error}");
                assert!(error.to_string().contains("its files stay"), "{error}");
            }
        }
        torrent.assert_whole(&root);
        let again = bed.block_on(bed.torrents().remove(id, RemoveOptions { delete_data }));
        assert!(matches!(again, Err(Error::TorrentNotFound(_))), "{again:?}");
        assert!(!metainfo(torrent).exists() && !torrent.session_path(&state).exists());
    }
}

/// Fault 81: a session that lists all pieces is not believed if the data is missing. The data is checked, and no empty
/// file is created. A torrent that requires complete data fails; a torrent that may download does so.
#[test]
fn data_that_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let torrents: Vec<Arc<Torrent>> = saved(1, &root, &state).into_iter().map(Arc::new).collect();
    let must = Torrent::album(89, "must", &[("a", 100_000), ("b", 50_000)], 32 << 10);
    must.place(&root);
    let mut bed = Bed::start(&state);
    let options = AddOptions {
        root: Some(root.clone()),
        require_complete: true,
        ..AddOptions::default()
    };
    let must_id = bed.add_with(&must, options);
    bed.wait_seeding(must_id);
    bed.stop_all().unwrap();
    drop(bed);
    fs::rename(&root, folder.path().join("elsewhere")).unwrap();

    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 2);
    let reason = bed.wait_failed(must_id);
    assert!(
        reason.contains("5 of 5 pieces are missing") && reason.contains(root.to_str().unwrap()),
        "{reason}"
    );
    let id = torrents[0].info_hash();
    bed.wait_downloading(id);
    assert_eq!(bed.have(id), Vec::<u32>::new());
    assert!(!root.exists(), "nothing is made for what nobody has sent");
    let seed = Seed::free(&torrents[0]);
    bed.add_peer(id, seed.address);
    bed.wait_seeding(id);
    torrents[0].assert_whole(&root);
    assert!(!root.join("must").exists());
    bed.stop_all().unwrap();
    drop(bed);

    // One file is missing, and one is zeroed.
    fs::remove_file(root.join("t0/a")).unwrap();
    fs::write(root.join("t0/b"), vec![0; 100_001]).unwrap();
    must.place(&root);
    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 2);
    bed.wait_downloading(id);
    assert!(bed.has_checked(id));
    assert_eq!(bed.have(id), Vec::<u32>::new());
    assert!(!root.join("t0/a").exists());
    // Data that reappears is detected.
    bed.wait_seeding(must_id);
}

/// Fault 81: missing blocks of unfinished pieces are not listed as present, even if an earlier session lists them.
#[test]
fn blocks_that_are_gone() {
    let torrent = Arc::new(Torrent::album(81, "album", &[("a", 1 << 20), ("b", 1 << 20)], 1 << 20));
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let id = torrent.info_hash();
    for run in 1..=2 {
        let mut bed = Bed::start(&state);
        let seed = Seed::limited(&torrent, 40);
        bed.add(&torrent, &root, &[seed.address]);
        bed.wait_downloading(id);
        wait_until("40 blocks", || bed.stats(id).downloaded >= run * 40 * (16 << 10));
        bed.stop_all().unwrap();
        drop(bed);
        let session = torrent.session(&state).unwrap();
        assert!(!session.partial.is_empty());
        torrent.assert_true(&session, &root);
        if run == 1 {
            fs::remove_dir_all(&root).unwrap();
        }
    }
}

fn command(torrent: &Torrent, root: &Path, state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecs-torrent"));
    command
        .arg("download")
        .arg(torrent.file())
        .arg("-o")
        .arg(root)
        .arg("--state-dir")
        .arg(state)
        .args(["--listen", "127.0.0.1:0", "--quiet", "--exit-on-complete"])
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Fault 82: a session of another torrent, or of a newer version, is refused with the reason and set aside. The torrent
/// is checked.
#[test]
fn foreign_and_newer_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let torrents = saved(3, &root, &state);
    let text = |torrent: &Torrent| fs::read_to_string(torrent.session_path(&state)).unwrap();
    let newer = text(&torrents[1]).replace(&format!("version: {VERSION},"), "version: 99, invented_later: [],");
    let newer = newer[..newer.rfind("// sha1").unwrap()].to_owned();
    let cases = [
        (&torrents[0], "foreign", "another torrent's", text(&torrents[2])),
        (&torrents[1], "newer", "version 99", newer),
    ];
    for (torrent, word, reason, text) in cases {
        fs::write(torrent.session_path(&state), &text).unwrap();
        let output = command(torrent, &root, &state)
            .env("RUST_LOG", "warn")
            .output()
            .unwrap();
        let log = stderr(&output);
        assert!(output.status.success(), "{log}");
        assert!(log.contains(reason) && log.contains("set aside"), "{log}");
        assert_eq!(fs::read_to_string(aside(torrent, &state, word)).unwrap(), text);
        torrent.assert_true(&torrent.session(&state).unwrap(), &root);
    }
    // A valid session causes no message.
    let output = command(&torrents[2], &root, &state).output().unwrap();
    assert_eq!((output.status.success(), stderr(&output)), (true, String::new()));
}

/// Fault 82: a state folder written by a newer version keeps everything that the newer version needs.
#[test]
fn a_folder_from_the_future() {
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let torrents = saved(2, &root, &state);
    let mut newer = Vec::new();
    for torrent in &torrents {
        let path = torrent.session_path(&state);
        let text = fs::read_to_string(&path)
            .unwrap()
            .replace(&format!("version: {VERSION},"), &format!("version: {},", VERSION + 1));
        let text = text[..text.rfind("// sha1").unwrap()].to_owned();
        fs::write(&path, &text).unwrap();
        newer.push(text);
    }
    fs::write(state.join("state/index.v2"), "unknown").unwrap();
    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 2);
    for (torrent, text) in torrents.iter().zip(&newer) {
        let id = torrent.info_hash();
        bed.wait_seeding(id);
        assert!(bed.has_checked(id));
        assert_eq!(bed.stats(id).root, root, "it is found all the same");
        assert_eq!(fs::read_to_string(aside(torrent, &state, "newer")).unwrap(), *text);
    }
    bed.stop_all().unwrap();
    assert_eq!(fs::read_to_string(state.join("state/index.v2")).unwrap(), "unknown");
}

/// File times in the future are handled like any others.
#[test]
fn times_in_the_future() {
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let torrent = Torrent::single(82, 400_000, 32 << 10);
    torrent.place(&root);
    let later = SystemTime::now() + Duration::from_secs(10 * 365 * 86_400);
    let redate = |path: &Path| {
        fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(later)
            .unwrap();
    };
    redate(&root.join("data"));
    let id = torrent.info_hash();
    for run in 1..=2 {
        let mut bed = Bed::start(&state);
        bed.add(&torrent, &root, &[]);
        bed.wait_seeding(id);
        assert_eq!(bed.has_checked(id), run == 1);
        bed.stop_all().unwrap();
        redate(&torrent.session_path(&state));
    }
}

/// Fault 83: a second engine on the same state folder fails with an error that names the folder and the process.
#[test]
fn a_folder_that_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let torrents = saved(1, &root, &state);
    let mut bed = Bed::start(&state);
    let before = fs::read(torrents[0].session_path(&state)).unwrap();
    let output = command(&torrents[0], &root, &state).output().unwrap();
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    let process = format!("process {}", std::process::id());
    assert!(error.starts_with("error: ") && error.contains("in use"), "{error}");
    assert!(
        error.contains(&process) && error.contains(state.to_str().unwrap()),
        "{error}"
    );
    assert_eq!(fs::read(torrents[0].session_path(&state)).unwrap(), before);
    // The first engine is unaffected.
    assert_eq!(bed.resume_all(), 1);
    bed.wait_seeding(torrents[0].info_hash());
    bed.stop_all().unwrap();
    drop(bed);
    wait_until("the lock", || {
        command(&torrents[0], &root, &state).output().unwrap().status.success()
    });
}

/// Fault 84: a full state folder keeps the existing session. The caller of a stop gets the error. The torrent stays
/// listed as failed, and can be saved once space is available.
#[test]
fn a_full_state_folder() {
    if !can_mount("state_faults::a_full_state_folder") {
        return;
    }
    let torrent = Arc::new(Torrent::single(84, 1 << 20, 64 << 10));
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("data");
    let volume = Volume::new(&folder.path().join("state-dir"), 256 << 10);
    let state = volume.place();
    let seed = Seed::limited(&torrent, 20);
    let mut bed = Bed::start(state);
    let id = bed.add(&torrent, &root, &[seed.address]);
    bed.wait_downloading(id);
    wait_until("the first session", || torrent.session_path(state).exists());
    let before = fs::read(torrent.session_path(state)).unwrap();
    let ballast = volume.fill();
    wait_until("20 blocks", || bed.stats(id).downloaded == 20 * (16 << 10));
    for _ in 0..2 {
        let error = bed.stop(id).unwrap_err();
        assert!(matches!(error, Error::Stop(_)), "{error}");
        assert!(error.to_string().contains("No space left"), "{error}");
        assert_eq!(fs::read(torrent.session_path(state)).unwrap(), before, "as it was");
        assert_eq!(bed.block_on(bed.torrents().list()).unwrap(), [id.into()]);
        let stats = bed.stats(id);
        assert_eq!(stats.state, TorrentState::Failed);
        assert!(
            stats.error.as_ref().is_some_and(|error| error.contains("not saved")),
            "{stats:?}"
        );
    }
    assert!(matches!(bed.stop_all(), Err(Error::Stop(_))));
    fs::remove_file(ballast).unwrap();
    bed.stop(id).unwrap();
    assert_eq!(bed.block_on(bed.torrents().list()).unwrap(), []);
    let session = torrent.session(state).unwrap();
    assert_eq!(session.downloaded, 20 * (16 << 10));
    torrent.assert_true(&session, &root);
    drop(bed);
    let mut bed = Bed::start(state);
    assert_eq!(bed.resume_all(), 1);
    let life = bed.wait(id, "the resumption", |life| *life != Lifecycle::Adding);
    assert_eq!(life, Lifecycle::Downloading, "without a check");
    drop(bed);
}
