//! Data that is taken as complete without a check, by the API and by the commands.

use std::fs;
use std::os::unix::fs::FileExt;

use serde_json::json;

use crate::bed::{Daemon, command, fail, succeed, wait_until, write_album};

/// The fields of a torrent's state that matter here.
fn stats(daemon: &Daemon, hash: &str) -> serde_json::Value {
    let path = format!("/api/v1/torrents/{hash}?fields=state,completed,unverified");
    daemon.get(&path).json()
}

/// An add without a check says what is not verified, over kills, until it is checked; a listed torrent ignores it.
#[test]
fn the_check_is_skipped_on_request() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = write_album(&folder.join("downloads"));
    let daemon = Daemon::start(folder);
    daemon
        .post("/api/v1/torrents?skip_checking=1", &bytes)
        .refused(400, Some("skip_checking"));
    assert_eq!(daemon.post("/api/v1/torrents?skip_checking=true", &bytes).status, 201);
    let unverified = json!({"state": "seeding", "completed": 400_000, "unverified": 400_000});
    wait_until("the torrent", || stats(&daemon, &hash) == unverified);
    let again = daemon.post("/api/v1/torrents?skip_checking=true", &bytes);
    assert_eq!(again.json()["ignored"], json!(["skip_checking"]));
    let daemon = daemon.kill_and_start();
    wait_until("the torrent", || stats(&daemon, &hash) == unverified);

    let path = format!("/api/v1/torrents/{hash}/recheck");
    let both = json!({"unverified": true, "files": "0"});
    daemon.post_json(&path, &both).refused(400, Some("unverified"));
    assert_eq!(daemon.post_json(&path, &json!({"files": "0"})).status, 204);
    wait_until("the check of a file", || {
        let stats = stats(&daemon, &hash);
        stats["state"] == "seeding" && stats["unverified"].as_u64().unwrap() <= 300_000
    });
    succeed(folder, &["recheck", &hash, "--unverified"]);
    let verified = json!({"state": "seeding", "completed": 400_000, "unverified": 0});
    wait_until("the check", || stats(&daemon, &hash) == verified);
    let why = fail(folder, &["recheck", &hash, "--unverified"]);
    assert!(why.contains("all that it holds is verified"), "{why}");
    daemon
        .post_json(&path, &json!({"unverified": true}))
        .refused(409, Some("unverified"));
}

/// A file with a bad piece is not served; the torrent is checked.
#[test]
fn a_bad_file_is_not_served() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = write_album(&folder.join("downloads"));
    fs::write(folder.join("album.torrent"), bytes).unwrap();
    let file = fs::File::options()
        .write(true)
        .open(folder.join("downloads/album/b.txt"))
        .unwrap();
    file.write_all_at(b"damage", 50_000).unwrap();
    let daemon = Daemon::start(folder);
    succeed(folder, &["add", "album.torrent", "--skip-checking", "--overwrite"]);
    wait_until("the torrent", || stats(&daemon, &hash)["state"] == "seeding");
    let shown = command(folder, &["cat", &hash, "0"]).output().unwrap().stdout;
    assert!(shown == fs::read(folder.join("downloads/album/a.txt")).unwrap());
    fail(folder, &["cat", &hash, "1"]);
    let bad = json!({"state": "downloading", "completed": 400_000 - (16 << 10), "unverified": 0});
    wait_until("the check", || stats(&daemon, &hash) == bad);
}
