//! `download` while a daemon uses the state folder.

use std::fs;

use serde_json::Value;

use crate::bed::{Daemon, command, fail, succeed, torrent, wait_until};

/// The daemon gets the torrent; the command follows it until it is complete, and ends.
#[test]
fn a_download_beside_a_daemon_is_handed_over() {
    let (temporary, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = temporary.path();
    let [(hash, bytes), (second, others)] =
        [("one.bin", 1), ("two.bin", 2)].map(|(name, seed)| torrent(other.path(), name, seed, &[]));
    let seed = Daemon::start_with(other.path(), &["--download-dir", "."]);
    for (name, bytes) in [("one.torrent", &bytes), ("two.torrent", &others)] {
        assert_eq!(seed.post("/api/v1/torrents", bytes).status, 201);
        fs::write(folder.join(name), bytes).unwrap();
    }
    let daemon = Daemon::start(folder);
    let output = command(
        folder,
        &["download", "one.torrent", "-o", "downloads/sub", "--peer", &seed.peers],
    )
    .output()
    .unwrap();
    let (stdout, stderr) = [&output.stdout, &output.stderr]
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .into();
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.ends_with("one.bin: complete\n"), "{stdout}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.contains("the daemon that uses .ecs_torrent has the torrents"),
        "{stderr}"
    );
    assert!(fs::read(folder.join("downloads/sub/one.bin")).unwrap() == fs::read(other.path().join("one.bin")).unwrap());
    wait_until("the seed", || {
        daemon.get(&format!("/api/v1/torrents/{hash}?fields=state")).json()["state"] == "seeding"
    });

    let download = [
        "download",
        "two.torrent",
        "-o",
        "downloads",
        "--json",
        "--peer",
        &seed.peers,
    ];
    let events = succeed(folder, &download);
    let last: Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["event"], &last["info_hash"]),
        (&"complete".into(), &second.into()),
        "{events}"
    );
    let error = fail(folder, &["download", "two.torrent", "-o", "/", "--quiet"]);
    assert!(error.contains("api.allow_roots"), "{error}");
}
