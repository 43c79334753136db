//! The DHT of daemons that know each other: the commands, and the routes of the API.

use std::fs;
use std::io::{BufRead, BufReader};

use serde_json::json;

use crate::bed::{Daemon, Process, command, fail, succeed, torrent, wait_until};

/// Nodes learn of each other by the ports that peers tell (BEP 5), so no other node is needed.
#[test]
fn items_and_peers_are_found_at_another_daemon() {
    let (temporary, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (folder, theirs) = (temporary.path(), other.path());
    let (hash, bytes) = torrent(theirs, "one.bin", 1, &[]);
    let seed = Daemon::start_with(theirs, &["--download-dir", "."]);
    assert_eq!(seed.post("/api/v1/torrents", &bytes).status, 201);
    fs::write(folder.join("one.torrent"), &bytes).unwrap();
    let daemon = Daemon::start(folder);
    succeed(folder, &["add", "one.torrent", "--peer", &seed.peers]);
    for daemon in [&daemon, &seed] {
        wait_until("a node", || daemon.get("/api/v1/dht").json()["ipv4"]["good_nodes"] == 1);
    }
    let stats = succeed(folder, &["dht", "stats"]);
    assert!(
        stats.contains("1 nodes, 1 of them good") && stats.lines().all(|line| line.len() <= 79),
        "{stats}"
    );

    let stored = succeed(folder, &["dht", "put", "Hello World!"]);
    let target = "e5f96f6f38320f0f33959cb4d3d656452117aadb";
    assert_eq!(stored, format!("target {target}\nstored at 1 node\n"));
    for folder in [folder, theirs] {
        assert_eq!(
            succeed(folder, &["dht", "get", target]),
            "Hello World!\n",
            "the only other node stores it"
        );
    }

    for (number, text) in [(1, "first"), (2, "second")] {
        let put = ["dht", "put", text, "--secret", "key", "--salt", "news", "--json"];
        let stored: serde_json::Value = serde_json::from_str(&succeed(folder, &put)).unwrap();
        assert_eq!(
            (&stored["seq"], &stored["nodes"]),
            (&json!(number), &json!(1)),
            "{stored}"
        );
    }
    let shown = succeed(folder, &["dht", "put", "third", "--secret", "key", "--salt", "news"]);
    let key = shown.lines().find_map(|line| line.strip_prefix("key    ")).unwrap();
    assert_eq!(
        succeed(theirs, &["dht", "get", "--key", key, "--salt", "news"]),
        "third\n"
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(folder.join("key")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "the key is the user's");

    wait_until("an announce", || {
        let found = succeed(folder, &["dht", "lookup", &hash, "--json"]);
        let found: serde_json::Value = serde_json::from_str(&found).unwrap();
        found["peers"]
            .as_array()
            .is_some_and(|peers| peers.iter().any(|peer| *peer == json!(daemon.peers)))
    });
}

/// BEP 46: a publisher replaces a torrent under a key, and others find and follow it.
#[test]
fn a_torrent_is_published_under_a_key_and_followed() {
    let (temporary, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (folder, theirs) = (temporary.path(), other.path());
    let node = Daemon::start(theirs);
    let _daemon = Daemon::start_with(folder, &["--dht-node", &node.peers]);
    wait_until("a node", || node.get("/api/v1/dht").json()["ipv4"]["good_nodes"] == 1);
    let torrents = ["11".repeat(20), "22".repeat(20)];
    let publish = |torrent: &str| {
        let arguments = ["dht", "publish", torrent, "--secret", "key", "--salt", "news"];
        succeed(folder, &arguments).trim().to_owned()
    };
    let link = publish(&torrents[0]);
    assert!(
        link.starts_with("magnet:?xs=urn:btpk:") && link.ends_with("&s=6e657773"),
        "{link}"
    );
    let magnet = |torrent: &str| format!("magnet:?xt=urn:btih:{torrent}\n");
    assert_eq!(succeed(theirs, &["dht", "resolve", &link]), magnet(&torrents[0]));
    let refused = fail(theirs, &["add", &link]);
    assert!(refused.contains("dht resolve"), "{refused}");

    let mut follower = command(theirs, &["dht", "follow", &link, "--add"]);
    let mut follower = Process(follower.stdout(std::process::Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(follower.0.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, magnet(&torrents[0]));
    let path = format!("/api/v1/torrents/{}", torrents[0]);
    assert_eq!(node.get(&path).status, 200, "the torrent is added");

    assert_eq!(publish(&torrents[1]), link, "the link stays the same");
    assert_eq!(succeed(theirs, &["dht", "resolve", &link]), magnet(&torrents[1]));
    succeed(
        folder,
        &["dht", "put", "no torrent", "--secret", "key", "--salt", "news"],
    );
    assert!(fail(theirs, &["dht", "resolve", &link]).contains("names no torrent"));
    let nobody = link.replace("&s=6e657773", "&s=00");
    assert!(fail(theirs, &["dht", "resolve", &nobody]).contains("no node knows"));
}

#[test]
fn unusable_requests_name_their_problem() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let put = |query: &str, body: &[u8]| {
        let answer = daemon.post(&format!("/api/v1/dht/items{query}"), body);
        (
            answer.status,
            answer.json()["error"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let long = [b"1000:".as_slice(), &[b'x'; 1000]].concat();
    for (query, body, status, problem) in [
        ("", b"hello".as_slice(), 400, "not bencoded"),
        ("", &long, 400, "1000 are allowed"),
        ("?seq=1", b"i1e", 400, "belong together"),
        ("?key=00&signature=00&seq=1", b"i1e", 400, "64"),
        ("?cas=x", b"i1e", 400, "whole number"),
        (&format!("?salt={}", "00".repeat(65)), b"i1e", 400, "64 are allowed"),
        ("", b"i1e", 503, "no node"),
    ] {
        let (found, error) = put(query, body);
        assert!(found == status && error.contains(problem), "{query}: {found} {error}");
    }
    assert_eq!(daemon.get("/api/v1/dht/items/xyz").status, 400);
    assert!(fail(folder, &["dht", "get", "xyz"]).contains("40 hexadecimal digits"));
    assert!(fail(folder, &["dht", "lookup", "xyz"]).contains("xyz"));
    fs::write(folder.join("key"), "no key").unwrap();
    assert!(fail(folder, &["dht", "put", "x", "--secret", "key"]).contains("64 hexadecimal digits"));
    assert_eq!(fs::read_to_string(folder.join("key")).unwrap(), "no key");
}

#[test]
fn a_daemon_without_a_dht_says_so() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let _daemon = Daemon::start_with(folder, &["--no-dht"]);
    for command in [["dht", "put", "x"], ["dht", "lookup", &"0".repeat(40)]] {
        assert!(fail(folder, &command).contains("the DHT is off"));
    }
    assert!(succeed(folder, &["dht", "stats"]).contains("IPv4       off"));
}
