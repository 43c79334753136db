//! Moves of a torrent's files, by the API and by the command, and through kills.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ecs_torrent::InfoHash;
use ecs_torrent::components::session::Session;
use ecs_torrent::making::MakeOptions;
use serde_json::{Value, json};

use crate::bed::{Answer, Daemon, command, fail, succeed, wait_until, write_album, write_album_of};
use crate::content::{compare, noise, write_file};

/// Starts a daemon that may use the folders in `roots`.
fn start(folder: &Path, roots: &[&Path]) -> Daemon {
    let config = format!("(api: (allow_roots: {roots:?}))");
    fs::write(folder.join("c.ron"), config).unwrap();
    Daemon::start_with(folder, &["--config", "c.ron"])
}

fn move_to(daemon: &Daemon, hash: &str, body: &Value) -> Answer {
    daemon.post_json(&format!("/api/v1/torrents/{hash}/move"), body)
}

/// Downloads a torrent of a seed in `source` into the daemon's download folder.
pub fn download(daemon: &Daemon, source: &Path, bytes: &[u8]) {
    let seed = Daemon::start(source);
    assert_eq!(seed.post("/api/v1/torrents", bytes).status, 201);
    let mut events = daemon.events();
    let added = daemon.post(&format!("/api/v1/torrents?peer={}", seed.peers), bytes);
    assert_eq!(added.status, 201);
    events.wait_for("completed");
}

#[test]
fn files_are_moved_on_request() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().canonicalize().unwrap();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let source = tempfile::tempdir().unwrap();
    let (hash, bytes) = write_album(&source.path().join("downloads"));
    let daemon = start(&folder, &[memory.path()]);
    download(&daemon, source.path(), &bytes);
    let whole = source.path().join("downloads/album");
    let far = memory.path().join("new");

    let moved = move_to(&daemon, &hash, &json!({"root": far}));
    assert_eq!(moved.status, 200, "{moved:?}");
    assert_eq!(moved.json(), json!({"root": far, "kept": [], "kept_count": 0}));
    assert_eq!(compare(&whole, &far.join("album")), Ok(()));
    assert!(!folder.join("downloads/album").exists());
    let stats = format!("/api/v1/torrents/{hash}?fields=root,moving,completed");
    let expected = json!({"root": far, "moving": null, "completed": 400_000});
    assert_eq!(daemon.get(&stats).json(), expected);
    let near = folder.join("downloads/near");
    let printed = succeed(&folder, &["move", &hash[..6], near.to_str().unwrap()]);
    assert_eq!(printed, format!("moved {hash} album to {}\n", near.display()));
    assert_eq!(compare(&whole, &near.join("album")), Ok(()));

    // A move is answered before its files are open again, and files that vanish before that count as lost.
    let state = format!("/api/v1/torrents/{hash}?fields=state");
    wait_until("the open files", || daemon.get(&state).json()["state"] == "seeding");
    fs::rename(&near, folder.join("downloads/elsewhere")).unwrap();
    let gone = move_to(&daemon, &hash, &json!({"root": "nowhere", "move": false}));
    assert!(gone.body.contains("nowhere/album/a.txt is not there"), "{gone:?}");
    gone.refused(400, Some("root"));
    let elsewhere = folder.join("downloads/elsewhere");
    let printed = succeed(&folder, &["relocate", &hash[..6], elsewhere.to_str().unwrap()]);
    assert_eq!(printed, format!("{hash} album is in {}\n", elsewhere.display()));
    fs::rename(&elsewhere, &near).unwrap();
    let back = move_to(&daemon, &hash, &json!({"root": "near", "move": false}));
    assert_eq!(back.json(), json!({"root": near, "kept": [], "kept_count": 0}));

    // Every refusal names the field and the reason.
    move_to(&daemon, &hash, &json!({"root": "/etc"})).refused(403, Some("root"));
    move_to(&daemon, &hash, &json!({"root": "../up"})).refused(403, Some("root"));
    move_to(&daemon, &hash, &json!({"root": "near/album/a"})).refused(400, Some("root"));
    move_to(&daemon, &hash, &json!({"root": "near", "force": true})).refused(400, Some("force"));
    move_to(&daemon, &hash, &json!({})).refused(400, Some("body"));
    move_to(&daemon, &"0".repeat(40), &json!({"root": "x"})).refused(404, Some("hash"));
    write_file(&far, "album/c.txt", 9, 5);
    let taken = move_to(&daemon, &hash, &json!({"root": far}));
    assert_eq!(taken.json()["code"], "files_conflict");
    assert!(taken.body.contains("album/c.txt"), "{taken:?}");
    taken.refused(409, Some("root"));
    let why = fail(&folder, &["move", &hash[..6], far.to_str().unwrap()]);
    assert!(
        why.contains("album/c.txt") && why.contains("not this torrent's"),
        "{why}"
    );
    assert_eq!(compare(&whole, &near.join("album")), Ok(()));
    let magnet = format!("magnet:?xt=urn:btih:{}", "7".repeat(40));
    succeed(&folder, &["add", &magnet]);
    // Without metadata, only the folder changes.
    let unknown = move_to(&daemon, &"7".repeat(40), &json!({"root": "x"}));
    assert_eq!(unknown.json()["root"], json!(folder.join("downloads/x")), "{unknown:?}");
    let stats = format!("/api/v1/torrents/{}?fields=root", "7".repeat(40));
    assert_eq!(daemon.get(&stats).json(), json!({"root": folder.join("downloads/x")}));
    assert!(fail(&folder, &["move", "abc", "x"]).contains("no torrent has the name abc"));
}

/// Several torrents are moved at once, each with its own result.
#[test]
fn several_torrents_are_moved() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().canonicalize().unwrap();
    let (hash, bytes) = write_album(&folder.join("downloads"));
    let daemon = Daemon::start(&folder);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    let state = format!("/api/v1/torrents/{hash}?fields=state");
    wait_until("the torrent", || daemon.get(&state).json()["state"] == "seeding");
    let (magnet, absent) = ("7".repeat(40), "8".repeat(40));
    succeed(&folder, &["add", &format!("magnet:?xt=urn:btih:{magnet}")]);
    let post = |body: Value| daemon.post_json("/api/v1/move", &body);
    post(json!({"root": "new", "hashes": []})).refused(400, Some("hashes"));
    post(json!({"root": "new", "hashes": ["xyz"]})).refused(400, Some("hashes"));
    post(json!({"root": "new", "hashes": [hash, hash]})).refused(400, Some("hashes"));
    post(json!({"root": "/etc", "hashes": [hash]})).refused(403, Some("root"));
    post(json!({"hashes": [hash]})).refused(400, Some("body"));

    let new = folder.join("downloads/new");
    let moved = post(json!({"root": "new", "hashes": [absent, hash, magnet]}));
    assert_eq!(moved.status, 200, "{moved:?}");
    let results = moved.json()["results"].clone();
    let hashes = [&absent, &hash, &magnet];
    for (result, hash) in results.as_array().unwrap().iter().zip(hashes) {
        assert_eq!(result["info_hash"], json!(hash));
    }
    assert_eq!(results[0]["code"], "torrent_not_found");
    for result in [&results[1], &results[2]] {
        assert_eq!(result["root"], json!(new), "{results}");
    }
    // The torrent did not create its files: they stay too.
    assert_eq!(results[1]["kept_count"], 4);
    assert_eq!(compare(&folder.join("downloads/album"), &new.join("album")), Ok(()));

    // One of two cannot be moved there.
    let taken = folder.join("downloads/taken");
    write_file(&taken, "album/c.txt", 9, 5);
    wait_until("the torrent", || daemon.get(&state).json()["state"] == "seeding");
    let arguments = ["move", &hash[..6], &magnet[..6], taken.to_str().unwrap()];
    let output = command(&folder, &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, format!("moved {magnet} to {}\n", taken.display()));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("album/c.txt") && error.lines().count() == 1, "{error}");
    assert!(fail(&folder, &["move", &hash[..6], "abc", "x"]).contains("no torrent has the name abc"));
}

/// The download folder that the saved session names.
fn saved_root(folder: &Path, hash: &str) -> PathBuf {
    let hash: InfoHash = hash.parse().unwrap();
    let bytes = fs::read(folder.join(format!(".ecs_torrent/state/{hash}.ron"))).unwrap();
    Session::parse(&bytes, hash).unwrap().root
}

/// A daemon that is killed at any moment of moves between two file systems has the whole data at the place that its
/// session names, and ends the move when it runs again.
#[test]
fn kills_during_moves_lose_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().canonicalize().unwrap();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let source = tempfile::tempdir().unwrap();
    let downloads = source.path().join("downloads");
    let (hash, bytes) = write_album_of(&downloads, ["a", "b/c", "b/d", "e"], 6_000_001, MakeOptions::default());
    let whole = downloads.join("album");
    let places = [
        folder.join("downloads/one"),
        memory.path().join("two"),
        folder.join("downloads/three"),
    ];
    let mut daemon = start(&folder, &[memory.path()]);
    download(&daemon, source.path(), &bytes);

    let (mut interrupted, mut switched) = (0, 0);
    // The duration of a move depends on the machine, so the latest moment of a kill is adapted to the results.
    let mut latest_us = 150_000;
    for round in 0..200 {
        if round >= 40 && interrupted > 3 {
            break;
        }
        let to = &places[round % 3];
        let from = saved_root(&folder, &hash);
        let body = json!({"root": to}).to_string();
        let headers = [
            ("Authorization", &*daemon.bearer()),
            ("Content-Type", "application/json"),
        ];
        let request = daemon.head(
            "POST",
            &format!("/api/v1/torrents/{hash}/move"),
            &headers,
            body.as_bytes(),
        );
        let mut stream = daemon.connect();
        std::io::Write::write_all(&mut stream, &request).unwrap();
        let random = u64::from_le_bytes(noise(7700 + round as u64, 8).try_into().unwrap());
        std::thread::sleep(Duration::from_micros((random >> 8) % latest_us));
        daemon.kill();
        let root = saved_root(&folder, &hash);
        assert!(root == from || root == *to, "{}", root.display());
        assert_eq!(compare(&whole, &root.join("album")), Ok(()), "round {round}");
        switched += usize::from(root == *to && from != *to);
        let other = if root == *to { &from } else { to };
        let is_hit = other != &root && other.join("album").exists();
        interrupted += usize::from(is_hit);
        latest_us = match (is_hit, root == *to) {
            (true, _) => latest_us,
            (false, true) => (latest_us * 4 / 5).max(1000),
            (false, false) => (latest_us * 5 / 4).min(2_000_000),
        };
        daemon = Daemon::start_with(&folder, &["--config", "c.ron"]);
        wait_until("the end of the move", || {
            let stats = daemon
                .get(&format!("/api/v1/torrents/{hash}?fields=state,completed"))
                .json();
            stats == json!({"state": "seeding", "completed": 24_000_004})
        });
        let root = saved_root(&folder, &hash);
        assert_eq!(compare(&whole, &root.join("album")), Ok(()), "round {round}");
        for place in places.iter().filter(|place| **place != root) {
            assert!(
                !place.join("album").exists(),
                "round {round}: {:?} are left in {} beside {}: {}",
                fs::read_dir(place.join("album")).map(|left| left.flatten().collect::<Vec<_>>()),
                place.display(),
                root.display(),
                daemon.log()
            );
        }
    }
    eprintln!("kills: {interrupted} between the two places, {switched} after the switch");
    assert!(interrupted > 3, "{interrupted} kills hit a move");
}
