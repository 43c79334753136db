//! All data of a torrent is checked again, by the API and by the command.

use std::fs;
use std::os::unix::fs::FileExt;

use serde_json::json;

use crate::bed::{Daemon, fail, succeed, wait_until, write_album};

/// Only chosen files are checked, by the API and by the command.
#[test]
fn chosen_files_are_checked() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = write_album(&folder.join("downloads"));
    let daemon = Daemon::start(folder);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    let path = format!("/api/v1/torrents/{hash}");
    let stats = || daemon.get(&format!("{path}?fields=state,completed")).json();
    wait_until("the torrent", || stats()["state"] == "seeding");
    // The daemon does not notice a change of a file that nobody reads.
    let file = fs::File::options()
        .write(true)
        .open(folder.join("downloads/album/b.txt"))
        .unwrap();
    let stamp = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"damage", 50_000).unwrap();
    file.set_modified(stamp).unwrap();
    assert_eq!(daemon.post(&format!("{path}/pause"), b"").status, 204);

    for (body, field) in [
        (json!({"files": "4"}), "files"),
        (json!({"files": "1-0"}), "files"),
        (json!({"select": ["[a"]}), "select"),
        (json!({"select": ["*.mp3"]}), "files"),
        (json!({"pieces": "1"}), "pieces"),
    ] {
        daemon
            .post_json(&format!("{path}/recheck"), &body)
            .refused(400, Some(field));
    }
    let why = fail(folder, &["recheck", &hash, "--files", "4"]);
    assert!(why.contains("none of its files that have data is selected"), "{why}");
    succeed(folder, &["recheck", &hash, "--files", "3", "--select", "*a.txt"]);
    wait_until("the pause after the check", || stats()["state"] == "paused");
    let answer = daemon.post_json(&format!("{path}/recheck"), &json!({"files": "1"}));
    assert_eq!(answer.status, 204);
    wait_until("the pause after the check", || {
        stats() == json!({"state": "paused", "completed": 400_000 - (16 << 10)})
    });
}

/// A daemon finds damage, stays paused where it was paused, and repeats a check that a kill has interrupted.
#[test]
fn damage_is_found_on_request() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let source = tempfile::tempdir().unwrap();
    let (hash, bytes) = write_album(&source.path().join("downloads"));
    let seed = Daemon::start(source.path());
    assert_eq!(seed.post("/api/v1/torrents", &bytes).status, 201);
    let mut daemon = Daemon::start(folder);
    let mut events = daemon.events();
    let added = daemon.post(&format!("/api/v1/torrents?peer={}", seed.peers), &bytes);
    assert_eq!(added.status, 201);
    events.wait_for("completed");
    drop(seed);
    let path = format!("/api/v1/torrents/{hash}");
    let stats = |daemon: &Daemon| daemon.get(&format!("{path}?fields=state,completed")).json();

    let file = fs::File::options()
        .write(true)
        .open(folder.join("downloads/album/b.txt"))
        .unwrap();
    file.write_all_at(b"damage", 50_000).unwrap();
    assert_eq!(
        succeed(folder, &["recheck", &hash[..6]]),
        format!("checking {hash} album\n")
    );
    events.wait_for("started");
    // One piece of 16 KiB is bad.
    let expected = json!({"state": "downloading", "completed": 400_000 - (16 << 10)});
    assert_eq!(stats(&daemon), expected);

    fs::remove_file(folder.join("downloads/album/d.txt")).unwrap();
    assert_eq!(daemon.post(&format!("{path}/pause"), b"").status, 204);
    assert_eq!(daemon.post(&format!("{path}/recheck"), b"").status, 204);
    daemon.process.0.kill().unwrap();
    daemon.process.wait();
    daemon = Daemon::start(folder);
    wait_until("the pause after the check", || {
        let stats = stats(&daemon);
        stats["state"] == "paused" && stats["completed"].as_u64().unwrap() < 300_000
    });
    assert!(!folder.join("downloads/album/d.txt").exists(), "nothing runs");

    daemon
        .post(&format!("/api/v1/torrents/{}/recheck", "0".repeat(40)), b"")
        .refused(404, Some("hash"));
    let magnet = format!("magnet:?xt=urn:btih:{}", "7".repeat(40));
    succeed(folder, &["add", &magnet]);
    let refused = daemon.post(&format!("/api/v1/torrents/{}/recheck", "7".repeat(40)), b"");
    assert_eq!(refused.json()["code"], "metadata_unknown");
    refused.refused(409, None);
    let why = fail(folder, &["recheck", "777777"]);
    assert!(why.contains("metadata is not known yet"), "{why}");
    succeed(folder, &["stop", &hash]);
    assert!(fail(folder, &["recheck", &hash]).contains("is stopped"));
}
