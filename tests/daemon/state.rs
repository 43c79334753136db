//! All state is exported to one archive and imported from it, by the command and by the API.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ecs_torrent::InfoHash;
use ecs_torrent::archive::ArchiveWriter;
use ecs_torrent::components::session::Session;
use ecs_torrent::engine::backends::staging::{StateFile, StateFiles};
use ecs_torrent::engine::backends::state::LockedState;
use serde_json::{Value, json};

use crate::bed::{Answer, Daemon, Process, command, fail, succeed, torrent, wait_until};

/// The fields that an import has to keep.
const KEPT: &str = "info_hash,name,state,size,completed,uploaded,downloaded,limits,seeding,labels,category,queue,root,\
                    added_at,completed_at,sequential,ends_first,trackers";

fn send(daemon: &Daemon, method: &str, path: &str, kind: &str, body: &[u8]) -> Answer {
    let headers = [("Authorization", &*daemon.bearer()), ("Content-Type", kind)];
    daemon.ask(method, path, &headers, body)
}

fn import(daemon: &Daemon, archive: &[u8]) -> Answer {
    send(daemon, "POST", "/api/v1/state", "application/x-tar", archive)
}

/// Returns the archive that the API sends.
fn export(daemon: &Daemon) -> Vec<u8> {
    let request = daemon.head("GET", "/api/v1/state", &[("Authorization", &*daemon.bearer())], b"");
    // Without chunks.
    let request = String::from_utf8(request).unwrap().replace("HTTP/1.1", "HTTP/1.0");
    let mut stream = daemon.connect();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    assert!(answer.starts_with(b"HTTP/1.0 200"));
    answer.split_off(end + 4)
}

/// Waits until a daemon with the torrents of [`furnished`] seeds again.
fn wait_for_seeding(daemon: &Daemon) {
    wait_until("the check of the first torrent", || {
        let list = daemon.get("/api/v1/torrents?fields=name&state=seeding").json();
        list == json!([{"name": "one"}])
    });
}

fn kept(daemon: &Daemon) -> Vec<Value> {
    let list = daemon.get(&format!("/api/v1/torrents?fields={KEPT}")).json();
    let mut torrents: Vec<Value> = list.as_array().unwrap().clone();
    for torrent in &mut torrents {
        // The place in the queue is kept; the other counts follow from the running torrents.
        for tracker in torrent["trackers"].as_array_mut().unwrap() {
            *tracker = tracker["url"].clone();
        }
    }
    torrents.sort_by_key(|torrent| torrent["name"].to_string());
    torrents
}

/// A daemon with a complete, a paused and a stopped torrent, each with options that users choose, and one changed
/// setting.
fn furnished(folder: &Path) -> Daemon {
    let downloads = folder.join("downloads");
    let daemon = Daemon::start(folder);
    let query = "overwrite=true&label=linux&category=iso&upload_limit=70000&sequential=true";
    let (_, bytes) = torrent(&downloads, "one", 1, &["http://127.0.0.1:1/announce?passkey=7"]);
    assert_eq!(daemon.post(&format!("/api/v1/torrents?{query}"), &bytes).status, 201);
    let (two, bytes) = torrent(folder, "two", 2, &[]);
    assert_eq!(
        daemon.post("/api/v1/torrents?seeding_ratio_percent=150", &bytes).status,
        201
    );
    let (three, bytes) = torrent(folder, "three", 3, &[]);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    assert_eq!(daemon.post(&format!("/api/v1/torrents/{two}/pause"), b"").status, 204);
    assert_eq!(daemon.post(&format!("/api/v1/torrents/{three}/stop"), b"").status, 204);
    wait_for_seeding(&daemon);
    let settings = json!({"limits": {"upload_bytes_per_s": 123_000}}).to_string();
    let changed = send(
        &daemon,
        "PATCH",
        "/api/v1/settings",
        "application/json",
        settings.as_bytes(),
    );
    assert_eq!(changed.status, 200);
    daemon
}

fn upload_limit(daemon: &Daemon) -> Value {
    daemon.get("/api/v1/settings").json()["settings"]["limits"]["upload_bytes_per_s"].clone()
}

/// A running daemon is exported, by the command and by the API; another one has the same state after the import.
#[test]
fn another_daemon_continues_with_an_archive() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = furnished(first.path());
    let before = kept(&daemon);
    assert_eq!(before.len(), 2);
    assert_eq!(
        succeed(first.path(), &["state", "export", "a.tar"]),
        "3 torrents in a.tar\n"
    );
    let refusal = fail(first.path(), &["state", "export", "a.tar"]);
    assert!(refusal.contains("a.tar") && refusal.contains("exists"), "{refusal}");
    let archive = fs::read(first.path().join("a.tar")).unwrap();
    let has = |secret: &str| archive.windows(secret.len()).any(|bytes| bytes == secret.as_bytes());
    assert!(!has(daemon.token.trim()) && has("passkey=7"));
    let by_api = export(&daemon);
    daemon.kill();
    fs::write(first.path().join("b.tar"), by_api).unwrap();
    let other = ["state", "import", "b.tar", "--state-dir", "other"];
    assert_eq!(succeed(first.path(), &other), "3 torrents imported, and: settings\n");

    // Offline, into a folder without an engine.
    let path = first.path().join("a.tar");
    let imported = ["state", "import", path.to_str().unwrap(), "--json"];
    let report: Value = serde_json::from_str(&succeed(second.path(), &imported)).unwrap();
    assert_eq!(report["torrents"].as_array().unwrap().len(), 3, "{report}");
    assert_eq!(report["left_out"], json!([]));
    let downloads = first.path().join("downloads");
    let daemon = Daemon::start_with(second.path(), &["--download-dir", downloads.to_str().unwrap()]);
    wait_for_seeding(&daemon);
    assert_eq!(kept(&daemon), before);
    assert_eq!(upload_limit(&daemon), 123_000);
    let stopped = succeed(second.path(), &["list", "--stopped", "--json"]);
    assert!(stopped.contains("three"), "{stopped}");
}

/// A running daemon imports an archive: torrents run, the settings apply, and existing state is unchanged.
#[test]
fn a_running_daemon_imports_an_archive() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = furnished(first.path());
    let before = kept(&daemon);
    succeed(first.path(), &["state", "export", "a.tar"]);
    daemon.kill();
    let path = first.path().join("a.tar");
    let downloads = first.path().join("downloads");
    let mut daemon = Daemon::start_with(second.path(), &["--download-dir", downloads.to_str().unwrap()]);
    let line = succeed(second.path(), &["state", "import", path.to_str().unwrap()]);
    assert_eq!(line, "3 torrents imported, and: settings\n");
    wait_for_seeding(&daemon);
    assert_eq!(kept(&daemon), before);
    assert_eq!(upload_limit(&daemon), 123_000);
    daemon = {
        let (folder, dir) = (daemon.folder.clone(), downloads.to_str().unwrap().to_owned());
        daemon.kill();
        Daemon::start_with(&folder, &["--download-dir", &dir])
    };
    wait_for_seeding(&daemon);
    assert_eq!(kept(&daemon), before);
    assert_eq!(upload_limit(&daemon), 123_000);

    let again = import(&daemon, &fs::read(&path).unwrap());
    assert_eq!(again.status, 200);
    let again = again.json();
    assert_eq!(again["torrents"], json!([]));
    let reasons = again["left_out"].as_array().unwrap();
    assert_eq!(reasons.len(), 4, "{again}");
    assert!(
        reasons
            .iter()
            .any(|left| left["reason"] == "it is there already" && left["name"] == "one")
    );

    // A folder that a client could not choose, and other refusals.
    let third = tempfile::tempdir().unwrap();
    let strict = Daemon::start(third.path());
    let refused = import(&strict, &fs::read(&path).unwrap()).json();
    assert_eq!(refused["torrents"], json!([]), "{refused}");
    assert!(refused.to_string().contains("api.allow_roots"), "{refused}");
    import(&strict, b"no archive").refused(400, Some("body"));
    send(&strict, "POST", "/api/v1/state", "text/plain", b"x").refused(415, Some("Content-Type"));
    let cut = fs::read(&path).unwrap();
    import(&strict, &cut[..cut.len() / 2]).refused(400, Some("body"));
    assert_eq!(strict.hashes(), Vec::<String>::new());
    assert_eq!(strict.ask("GET", "/api/v1/state", &[], b"").status, 401);
}

/// The log goes to a file, which is renamed when it is full.
#[test]
fn the_log_file_rotates() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    fs::write(folder.join("config.ron"), "(log: (max_bytes: 2048, max_files: 2))").unwrap();
    let daemon = Daemon::start_with(folder, &["--config", "config.ron", "--log-file", "daemon.log"]);
    wait_until("a full log file", || {
        daemon.get("/api/v1/torrents");
        folder.join("daemon.log.1").exists()
    });
    drop(daemon);
    let lines = fs::read_to_string(folder.join("daemon.log.1")).unwrap();
    assert!(
        lines.len() <= 2048 && lines.ends_with('\n') && lines.starts_with("20"),
        "{lines}"
    );
    assert!(!folder.join("daemon.log.2").exists());
    fs::write(folder.join("config.ron"), "(log: (max_bytes: 1))").unwrap();
    let refusal = fail(folder, &["daemon", "--config", "config.ron"]);
    assert!(refusal.contains("log.max_bytes"), "{refusal}");
}

#[test]
fn a_long_archive_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    fs::write(folder.join("config.ron"), "(api: (max_state_bytes: 10000))").unwrap();
    let daemon = Daemon::start_with(folder, &["--config", "config.ron"]);
    import(&daemon, &[0; 10_001]).refused(413, Some("body"));
}

/// Torrents of [`killed_imports_are_whole_or_nothing`].
const COUNT: u32 = 500;

/// The import is killed at growing delays, until it ends before its kill. After each kill, the folder has all of the
/// archive or nothing.
#[test]
fn killed_imports_are_whole_or_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let mut writer = ArchiveWriter::new(Vec::new());
    for number in 0..COUNT {
        let mut hash = [7; 20];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        let mut session = Session::new(InfoHash(hash));
        (session.lacks_metadata, session.name) = (true, format!("torrent {number}"));
        let file = StateFile::Session(session.info_hash);
        writer.add(&file, session.to_text().as_bytes()).unwrap();
    }
    fs::write(folder.join("a.tar"), writer.finish().unwrap()).unwrap();
    let (mut kills, mut none, mut all) = (0, 0, 0);
    let begin = Instant::now();
    let mut usual = None;
    loop {
        let state = folder.join(format!("state-{kills}-{}", usual.is_some()));
        let arguments = ["state", "import", "a.tar", "--state-dir", state.to_str().unwrap()];
        let started = Instant::now();
        let mut child = Process(command(folder, &arguments).stdout(Stdio::null()).spawn().unwrap());
        // The first import is not killed, and shows how long one takes.
        let Some(usual) = usual else {
            assert!(child.wait().success());
            usual = Some(started.elapsed());
            continue;
        };
        if kills == 60 {
            break;
        }
        std::thread::sleep(usual * kills / 50);
        child.0.kill().unwrap();
        child.wait();
        // The kill may come before the folder was created.
        drop(LockedState::take(&state).unwrap());
        let found = StateFiles::open(&state).unwrap().list().unwrap().len();
        assert!(
            found == 0 || found == COUNT as usize,
            "{found} of {COUNT} after {kills}/50"
        );
        let left: Vec<_> = fs::read_dir(&state)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(
            left.iter().all(|name| !name.to_string_lossy().starts_with("import")),
            "{left:?}"
        );
        (none, all) = (none + u32::from(found == 0), all + u32::from(found > 0));
        kills += 1;
        assert!(begin.elapsed() < Duration::from_secs(300));
    }
    eprintln!("{kills} kills: {none} left nothing, {all} left everything");
    assert!(none > 0);
}
