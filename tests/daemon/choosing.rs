//! Selecting files of a torrent, by the API and by the commands.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bed::{Daemon, command, succeed, wait_until};
use crate::bed::{fail, write_album};

/// The daemon of another folder that seeds an album of four files of 100 000 bytes.
pub fn seed_album(folder: &Path) -> (Daemon, String, Vec<u8>) {
    let (hash, bytes) = write_album(folder);
    let seed = Daemon::start_with(folder, &["--download-dir", "."]);
    assert_eq!(seed.post("/api/v1/torrents", &bytes).status, 201);
    wait_for_state(&seed, &hash, "seeding");
    (seed, hash, bytes)
}

fn wait_for_state(daemon: &Daemon, hash: &str, state: &str) {
    let path = format!("/api/v1/torrents/{hash}?fields=state");
    wait_until(state, || daemon.get(&path).json()["state"] == state);
}

fn patch(daemon: &Daemon, hash: &str, body: &Value) -> crate::bed::Answer {
    patch_at(daemon, &format!("/api/v1/torrents/{hash}/files"), body)
}

fn patch_at(daemon: &Daemon, path: &str, body: &Value) -> crate::bed::Answer {
    let headers = [
        ("Authorization", daemon.bearer()),
        ("Content-Type", "application/json".into()),
    ];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    daemon.ask("PATCH", path, &headers, body.to_string().as_bytes())
}

fn priorities(daemon: &Daemon, hash: &str) -> Vec<String> {
    let files = daemon.get(&format!("/api/v1/torrents/{hash}/files")).json();
    let files = files.as_array().unwrap().iter();
    files
        .map(|file| file["priority"].as_str().unwrap().to_owned())
        .collect()
}

/// Whether a file of the album exists with the right content.
fn is_whole(folder: &Path, seed: &Path, name: &str) -> bool {
    let [ours, theirs] =
        [folder.join("downloads/album"), seed.join("album")].map(|folder| fs::read(folder.join(name)).ok());
    ours.is_some() && ours == theirs
}

/// A torrent is added with two of four files, is finished with them, and gets the rest later. Answered changes survive
/// a kill.
#[test]
fn files_are_chosen_at_the_add_and_later() {
    let (temporary, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = temporary.path();
    let (seed, hash, bytes) = seed_album(other.path());
    let daemon = Daemon::start(folder);
    daemon
        .post("/api/v1/torrents?files=4-9", &bytes)
        .refused(400, Some("select"));
    daemon
        .post("/api/v1/torrents?select=[a", &bytes)
        .refused(400, Some("select"));
    daemon
        .post("/api/v1/torrents?files=2-1", &bytes)
        .refused(400, Some("files"));
    let path = format!("/api/v1/torrents?files=0&select=*c.txt&peer={}", seed.peers);
    assert_eq!(daemon.post(&path, &bytes).status, 201);
    wait_for_state(&daemon, &hash, "finished");
    assert_eq!(priorities(&daemon, &hash), ["normal", "skip", "normal", "skip"]);
    assert!(is_whole(folder, other.path(), "a.txt") && is_whole(folder, other.path(), "c.txt"));
    let album = folder.join("downloads/album");
    assert!(!album.join("b.txt").exists() && !album.join("d.txt").exists());
    let part = folder.join(format!("downloads/.{hash}.parts"));
    assert!(part.exists());
    let stats = format!("/api/v1/torrents/{hash}?fields=progress,left,size");
    assert_eq!(
        daemon.get(&stats).json(),
        json!({"progress": 1.0, "left": 0, "size": 400_000})
    );

    assert_eq!(
        patch(&daemon, &hash, &json!({"skip": "all", "high": "1, 3-3"})).status,
        204
    );
    let daemon = daemon.kill_and_start();
    assert_eq!(priorities(&daemon, &hash), ["skip", "high", "skip", "high"]);
    wait_for_state(&daemon, &hash, "seeding");
    assert!(
        ["a.txt", "b.txt", "c.txt", "d.txt"]
            .iter()
            .all(|name| is_whole(folder, other.path(), name))
    );
    wait_until("the end of the part file", || !part.exists());
}

/// The commands select by number and by pattern, and name mistakes.
#[test]
fn the_commands_choose_files() {
    let (temporary, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = temporary.path();
    let (seed, hash, bytes) = seed_album(other.path());
    fs::write(folder.join("album.torrent"), bytes).unwrap();
    let daemon = Daemon::start(folder);
    let shown = succeed(folder, &["show", "album.torrent"]);
    assert!(
        shown.lines().any(|line| line.split_whitespace().next() == Some("3")),
        "{shown}"
    );
    succeed(folder, &["add", "album.torrent", "--files", "1", "--peer", &seed.peers]);
    wait_for_state(&daemon, &hash, "finished");
    assert!(succeed(folder, &["list"]).contains("finished"));
    let table = succeed(folder, &["files", &hash, "--skip", "all", "--low", "*/c.*,0"]);
    assert_eq!(
        table.lines().filter(|line| line.contains(" low ")).count(),
        2,
        "{table}"
    );
    assert_eq!(priorities(&daemon, &hash), ["low", "skip", "low", "skip"]);
    let error = fail(folder, &["files", &hash, "--skip", "*.mp3"]);
    assert!(error.contains("no file matches *.mp3"), "{error}");
    let error = fail(folder, &["files", &hash, "--skip", "4"]);
    assert!(error.contains("no file 4"), "{error}");
    assert_eq!(priorities(&daemon, &hash), ["low", "skip", "low", "skip"]);
}

/// The order of pieces is set at the add and later, by the API and by the commands; answered changes survive a kill.
#[test]
fn the_order_of_pieces_is_chosen() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = write_album(folder);
    fs::remove_dir_all(folder.join("album")).unwrap();
    fs::write(folder.join("album.torrent"), &bytes).unwrap();
    let daemon = Daemon::start(folder);
    let order = |daemon: &Daemon| {
        let path = format!("/api/v1/torrents/{hash}?fields=sequential,ends_first");
        daemon.get(&path).json()
    };
    daemon
        .post("/api/v1/torrents?sequential=yes", &bytes)
        .refused(400, Some("sequential"));
    succeed(folder, &["add", "album.torrent", "--sequential"]);
    assert_eq!(order(&daemon), json!({"sequential": true, "ends_first": false}));
    let path = format!("/api/v1/torrents/{hash}");
    for (body, field, reason) in [
        (json!({"sequential": "yes"}), "sequential", "true or false is expected"),
        (json!({"order": 1}), "order", "unknown field `order`"),
        (json!([]), "body", "no JSON object"),
    ] {
        let answer = patch_at(&daemon, &path, &body);
        answer.refused(400, Some(field));
        assert!(answer.body.contains(reason), "{}", answer.body);
    }
    let change = json!({"sequential": false, "ends_first": true});
    assert_eq!(patch_at(&daemon, &path, &change).status, 204);
    let daemon = daemon.kill_and_start();
    assert_eq!(order(&daemon), change);
    succeed(folder, &["files", &hash, "--sequential", "on", "--ends-first", "off"]);
    assert_eq!(order(&daemon), json!({"sequential": true, "ends_first": false}));
    let refused = command(folder, &["files", &hash, "--sequential", "yes"])
        .output()
        .unwrap();
    let refusal = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(2) && refusal.contains("it is on or off"),
        "{refusal}"
    );
}

/// A magnet link selects files (BEP 53), which are known only when the metadata has come.
#[test]
fn a_magnet_link_selects_files() {
    let (temporary, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = temporary.path();
    let (seed, hash, _) = seed_album(other.path());
    let daemon = Daemon::start(folder);
    let link = format!("magnet:?xt=urn:btih:{hash}&dn=album&so=1,3-9");
    succeed(folder, &["add", &link]);
    // The selection is kept while the files are not known.
    let daemon = daemon.kill_and_start();
    patch(&daemon, &hash, &json!({"skip": "0"})).refused(409, None);
    succeed(
        folder,
        &["add", &format!("magnet:?xt=urn:btih:{hash}"), "--peer", &seed.peers],
    );
    wait_for_state(&daemon, &hash, "finished");
    assert_eq!(priorities(&daemon, &hash), ["skip", "normal", "skip", "normal"]);
    assert!(is_whole(folder, other.path(), "b.txt") && is_whole(folder, other.path(), "d.txt"));
}

/// Every mistake in a change is named, and nothing is changed.
#[test]
fn useless_changes_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let (hash, bytes) = write_album(temporary.path());
    let daemon = Daemon::start(temporary.path());
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    for (body, field) in [
        (json!({"skip": "4"}), "body"),
        (json!({"skip": "0-4294967295"}), "body"),
        (json!({"skip": "x"}), "skip"),
        (json!({"skip": ""}), "skip"),
        (json!({"skip": ["0"]}), "skip"),
        (json!({"skipp": "0"}), "skipp"),
        (json!([]), "body"),
        (json!({"low": vec!["0-3"; 20].join(",")}), "body"),
    ] {
        patch(&daemon, &hash, &body).refused(400, Some(field));
    }
    let path = format!("/api/v1/torrents/{hash}/files");
    let bearer = daemon.bearer();
    daemon
        .ask("PATCH", &path, &[("Authorization", &bearer)], b"{}")
        .refused(415, Some("Content-Type"));
    patch(&daemon, &"0".repeat(40), &json!({"skip": "0"})).refused(404, Some("hash"));
    assert_eq!(patch(&daemon, &hash, &json!({})).status, 204);
    assert_eq!(priorities(&daemon, &hash), ["normal"; 4]);
}
