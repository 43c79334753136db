//! The state folder belongs to the daemon alone: torrents whose paths lead into it change nothing there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use ecs_torrent::making::MakeOptions;

use crate::bed::{Daemon, PATIENCE, torrent};
use crate::content::{make_torrent, write_file};

/// Creates a torrent of a folder `name` that contains its own `api_token`, and empty files, which need no peer to be
/// created.
fn attack(name: &str, seed: u64) -> Vec<u8> {
    let source = tempfile::tempdir().unwrap();
    for (path, len) in [
        ("api_token", 40),
        ("planted", 0),
        ("state/planted", 0),
        ("zeros", 70_000),
    ] {
        write_file(source.path(), &format!("{name}/{path}"), seed, len);
    }
    make_torrent(&source.path().join(name), MakeOptions::default())
}

/// Returns all files in a folder except sessions, which come and go with their torrents.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let files = files.map(|entry| {
        (
            entry.file_name().into_string().unwrap(),
            fs::read(entry.path()).unwrap(),
        )
    });
    files.filter(|(name, _)| name.len() < 44).collect()
}

/// Adds a torrent, waits until it settles, and removes it with its data. Asserts that it wrote nothing into the state
/// folder.
fn add_and_remove(daemon: &Daemon, torrent: &[u8]) {
    let state = daemon.folder.join(".ecs_torrent");
    daemon.post("/api/v1/torrents", torrent);
    let begin = Instant::now();
    // A refused torrent is not listed.
    for hash in daemon.hashes() {
        let is_settled = || {
            let stats = daemon.get(&format!("/api/v1/torrents/{hash}?fields=state")).json();
            ["failed", "downloading", "seeding"].contains(&stats["state"].as_str().unwrap_or_default())
        };
        while !is_settled() {
            assert!(begin.elapsed() < PATIENCE, "it does not settle");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        for place in ["planted", "state/planted", "zeros", "planted/planted", "state/state"] {
            assert!(!state.join(place).exists(), "{place} was planted");
        }
        daemon.delete(&format!("/api/v1/torrents/{hash}?delete_data=true"));
    }
}

/// A torrent cannot change the API's token or the state. The cases are the command's defaults (the download folder
/// contains the state folder), a download folder that is the state folder or lies in it, and a link to it.
#[test]
fn a_torrent_cannot_reach_the_token() {
    for download_dir in [".", ".ecs_torrent", "./.ecs_torrent/state", "link"] {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join(".ecs_torrent");
        fs::create_dir(&state).unwrap();
        symlink(".ecs_torrent", folder.path().join("link")).unwrap();
        let mut daemon = Daemon::start_with(folder.path(), &["--download-dir", download_dir]);
        let before = [contents(&state), contents(&state.join("state"))];
        for (seed, name) in (0..).zip([".ecs_torrent", "state", "planted"]) {
            add_and_remove(&daemon, &attack(name, seed));
        }
        // A single-file torrent with the name of the token file.
        let source = tempfile::tempdir().unwrap();
        write_file(source.path(), "api_token", 9, 64);
        add_and_remove(
            &daemon,
            &make_torrent(&source.path().join("api_token"), MakeOptions::default()),
        );
        assert_eq!(
            [contents(&state), contents(&state.join("state"))],
            before,
            "{download_dir}"
        );
        let names: Vec<_> = fs::read_dir(&state)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(!names.contains(&"planted".into()), "{names:?}");
        let token = daemon.token.clone();
        daemon.process.signal(rustix::process::Signal::TERM);
        daemon.process.wait();
        assert_eq!(fs::read_to_string(state.join("api_token")).unwrap(), token);
    }
}

/// `overwrite` covers the files that exist at the time of the add. The files of a magnet link are examined when its
/// metadata is known, and a file that the user has put there in the meantime is not changed, also after a kill.
#[test]
fn a_permission_covers_no_later_file() {
    let temporary = tempfile::tempdir().unwrap();
    let downloads = temporary.path().join("downloads");
    let daemon = Daemon::start(temporary.path());
    let [old, new] = ["old.bin", "new.bin"].map(|name| torrent(temporary.path(), name, 1, &[]));
    fs::write(downloads.join("old.bin"), "partial").unwrap();
    let bearer = daemon.bearer();
    let text = [("Authorization", bearer.as_str()), ("Content-Type", "text/plain")];
    for (hash, _) in [&old, &new] {
        let link = format!("magnet:?xt=urn:btih:{hash}");
        let added = daemon.ask("POST", "/api/v1/torrents?overwrite=true", &text, link.as_bytes());
        assert_eq!(added.status, 201, "{added:?}");
    }
    fs::write(downloads.join("new.bin"), "mine").unwrap();
    drop(daemon);
    let daemon = Daemon::start(temporary.path());
    let added = daemon.post("/api/v1/torrents", &old.1);
    assert_eq!(added.status, 200, "the permission is saved: {added:?}");
    let refused = daemon.post("/api/v1/torrents", &new.1);
    assert!(
        refused.status == 409 && refused.body.contains("--overwrite"),
        "{refused:?}"
    );
    assert_eq!(fs::read(downloads.join("new.bin")).unwrap(), b"mine");
    let again = daemon.post("/api/v1/torrents?overwrite=true", &new.1);
    assert_eq!(again.status, 200, "a new permission: {again:?}");
}
