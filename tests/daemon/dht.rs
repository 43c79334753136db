//! The DHT of daemons that know each other: the commands, and the routes of the API.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use ecs_torrent::protocol::dht::krpc::{Body, Packet};
use serde_json::json;

use crate::bed::{Daemon, Process, command, fail, fail_with, succeed, torrent, wait_until};

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
    let mut events = daemon.events();
    succeed(folder, &["add", "one.torrent", "--peer", &seed.peers]);
    assert_eq!(events.wait_for("dht_ready")["network"], "ipv4");
    // The first search may have begun before the node was known.
    while events.wait_for("dht_announced") != json!({"info_hash": hash, "peers": 0, "nodes": 1}) {}
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
    assert_eq!(
        stored,
        format!("target {target}\nstored at 1 node\necs-torrent dht get {target}\n")
    );
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
            (&stored["seq"], &stored["nodes"], &stored["salt"]),
            (&json!(number), &json!(1), &json!("6e657773")),
            "{stored}"
        );
    }
    let shown = succeed(folder, &["dht", "put", "third", "--secret", "key", "--salt", "news"]);
    let key = shown.lines().find_map(|line| line.strip_prefix("key    ")).unwrap();
    let line = shown.lines().last().unwrap().strip_prefix("ecs-torrent ").unwrap();
    assert_eq!(line, format!("dht get --salt news --key {key}"));
    let get: Vec<&str> = line.split(' ').collect();
    assert_eq!(succeed(theirs, &get), "third\n");
    let item: serde_json::Value = serde_json::from_str(&succeed(theirs, &[&get[..], &["--json"]].concat())).unwrap();
    assert_eq!(
        (&item["text"], &item["value"]),
        (&json!("third"), &json!("353a7468697264"))
    );
    assert_eq!(item["signed"]["key"], *key);
    let target = shown.lines().find_map(|line| line.strip_prefix("target ")).unwrap();
    // The other node sends the item, whose signature is that of the value with the salt.
    let without = fail(folder, &["dht", "get", target]);
    assert!(without.contains(target) && without.contains("--salt"), "{without}");
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
    let watched = first_line(theirs, &["dht", "follow", &link]);
    assert_eq!(watched, magnet(&torrents[0]));
    let shown = succeed(folder, &["dht", "links"]);
    assert_eq!(shown, format!("{link}\n    published: {}, number 1\n", torrents[0]));
    let links: serde_json::Value = serde_json::from_str(&succeed(folder, &["dht", "links", "--json"])).unwrap();
    assert_eq!(
        (&links[0]["kind"], &links[0]["info_hash"]),
        (&json!("published"), &json!(torrents[0]))
    );
    let resolved: serde_json::Value =
        serde_json::from_str(&succeed(theirs, &["dht", "resolve", &link, "--json"])).unwrap();
    let expected = json!({"info_hash": torrents[0], "magnet": magnet(&torrents[0]).trim(), "seq": 1});
    assert_eq!(resolved, expected);
    for command in ["resolve", "follow", "unfollow"] {
        let keyless = fail_with(2, theirs, &["dht", command, magnet(&torrents[0]).trim()]);
        assert!(keyless.contains("has no public key"), "{keyless}");
    }
    let third = tempfile::tempdir().unwrap();
    let download = [
        "download",
        &link,
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--dht-node",
        &node.peers,
    ];
    let added = first_line(third.path(), &download);
    assert!(added.contains("\"added\"") && added.contains(&torrents[0]), "{added}");

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

/// The torrent file of a link with a public key is fetched from peers of the torrent that the DHT knows under the key.
#[test]
fn the_torrent_file_of_a_link_with_a_key_is_fetched() {
    let (temporary, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (folder, theirs) = (temporary.path(), other.path());
    let (hash, bytes) = torrent(theirs, "one.bin", 1, &[]);
    let seed = Daemon::start_with(theirs, &["--download-dir", "."]);
    assert_eq!(seed.post("/api/v1/torrents", &bytes).status, 201);
    let publisher = Daemon::start_with(folder, &["--dht-node", &seed.peers]);
    wait_until("a node", || {
        publisher.get("/api/v1/dht").json()["ipv4"]["good_nodes"] == 1
    });
    let link = succeed(folder, &["dht", "publish", &hash, "--secret", "key"]);
    let third = tempfile::tempdir().unwrap();
    let fetch = ["fetch", link.trim(), "-o", "one.torrent", "--listen", "127.0.0.1:0"];
    let known = ["--dht-node", &seed.peers, "--peer", &seed.peers];
    let printed = succeed(third.path(), &[&fetch[..], &known].concat());
    assert_eq!(printed, format!("{hash} one.torrent\n"));
    let fetched = ecs_torrent::Source::from(third.path().join("one.torrent"))
        .load()
        .unwrap();
    assert_eq!(fetched.hashes.primary().to_string(), hash);
    let refused = fail(
        third.path(),
        &[&fetch[..], &["--overwrite", "--no-dht", "--quiet"]].concat(),
    );
    assert!(refused.contains("the DHT is off"), "{refused}");
}

/// Returns the first line that a running command prints.
fn first_line(folder: &Path, arguments: &[&str]) -> String {
    let mut process = command(folder, arguments);
    let mut process = Process(process.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    let mut lines = BufReader::new(process.0.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    line
}

/// BEP 46: the daemon follows a link, also after a restart, and the torrent that is replaced stays.
#[test]
fn a_link_is_added_and_followed_across_restarts() {
    let (temporary, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (folder, theirs) = (temporary.path(), other.path());
    let third = tempfile::tempdir().unwrap();
    let node = Daemon::start(third.path());
    let known = ["--dht-node", &node.peers];
    let publisher = Daemon::start_with(theirs, &known);
    let daemon = Daemon::start_with(folder, &known);
    for daemon in [&publisher, &daemon] {
        wait_until("a node", || daemon.get("/api/v1/dht").json()["ipv4"]["good_nodes"] != 0);
    }
    let torrents = ["11".repeat(20), "22".repeat(20)];
    let publish = |torrent: &str| {
        let arguments = ["dht", "publish", torrent, "--secret", "key"];
        succeed(theirs, &arguments).trim().to_owned()
    };
    let link = publish(&torrents[0]);
    let mut events = daemon.events();
    assert_eq!(succeed(folder, &["add", &link]), format!("{} {link}\n", torrents[0]));
    let updated = events.wait_for("link_updated");
    let expected = json!({"info_hash": torrents[0], "link": link, "previous": null, "seq": 1});
    assert_eq!(updated, expected);
    assert!(succeed(folder, &["add", &link]).contains("was already added"));
    let links = daemon.get("/api/v1/dht/links").json();
    let expected = json!([{
        "link": link, "target": links[0]["target"], "kind": "followed", "is_downloaded": true, "info_hash": torrents[0],
        "previous": null, "seq": 1, "error": null,
    }]);
    assert_eq!(links, expected);
    assert_eq!(publish(&torrents[1]), link);

    drop(daemon);
    let daemon = Daemon::start_with(folder, &known);
    let mut events = daemon.events();
    let state = |torrent: &str| {
        let path = format!("/api/v1/torrents/{torrent}?fields=state");
        daemon.get(&path).json()["state"].clone()
    };
    wait_until("the newer torrent", || state(&torrents[1]) == "fetching_metadata");
    wait_until("the end of the older one", || state(&torrents[0]) == "paused");
    let updated = events.wait_for("link_updated");
    assert_eq!(
        (&updated["info_hash"], &updated["previous"], &updated["seq"]),
        (&json!(torrents[1]), &json!(torrents[0]), &json!(2))
    );
    let shown = succeed(folder, &["dht", "links"]);
    assert_eq!(shown, format!("{link}\n    followed: {}\n", torrents[1]));

    succeed(folder, &["dht", "unfollow", &link]);
    assert_eq!(succeed(folder, &["dht", "links"]), "no links\n");
    assert!(fail(folder, &["dht", "unfollow", &link]).contains("not followed"));
    assert_eq!(daemon.get("/api/v1/torrents").json().as_array().unwrap().len(), 2);
    let unusable = link.replace("btpk:", "btpk:0");
    assert!(fail_with(2, folder, &["add", &unusable]).contains("malformed"));
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
    assert!(fail_with(2, folder, &["dht", "get", "xyz"]).contains("xyz: a target is 40 hexadecimal digits"));
    assert!(fail_with(2, folder, &["dht", "get", "--key", "xyz"]).contains("xyz: a public key is 64"));
    assert!(fail_with(2, folder, &["dht", "lookup", "xyz"]).contains("xyz"));
    fs::write(folder.join("key"), "no key").unwrap();
    assert!(fail(folder, &["dht", "put", "x", "--secret", "key"]).contains("64 hexadecimal digits"));
    assert_eq!(fs::read_to_string(folder.join("key")).unwrap(), "no key");
}

/// Asks a node for its id. Returns it, and the address that answers.
fn ping(socket: &UdpSocket, to: SocketAddr) -> (Vec<u8>, SocketAddr) {
    let query = b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe";
    let mut buffer = [0; 1500];
    // The node may not run yet, and pings us too.
    loop {
        socket.send_to(query, to).unwrap();
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let packet = Packet::parse(&buffer[..len]).unwrap();
            if let Body::Reply(reply) = packet.message().unwrap().body {
                return (reply.id.0.to_vec(), from);
            }
        }
    }
}

/// BEP 45: a node for each listen address, which answers from where it was asked. A socket that listens at all
/// addresses answers from the one that was asked.
#[test]
fn each_address_has_a_node_which_answers_from_there() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start_with(folder, &["--listen", "127.0.0.2:0", "--listen", "0.0.0.0:0"]);
    let addresses = daemon.peers.split(" and ").map(|address| address.parse().unwrap());
    let mut addresses: Vec<SocketAddr> = addresses.collect();
    addresses[2].set_ip([127, 0, 0, 5].into());
    let socket = UdpSocket::bind("127.0.0.3:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let answers = addresses.iter().map(|address| ping(&socket, *address));
    let (ids, from): (Vec<_>, Vec<_>) = answers.unzip();
    assert_eq!(from, addresses);
    assert_ne!(ids[0], ids[1], "two nodes");
    assert_eq!(ids[0], ids[2], "the first node has all other addresses");
    let further = &daemon.get("/api/v1/dht").json()["further"];
    assert_eq!(further[0]["address"], json!(addresses[1]));
    assert_eq!(further[0]["id"], json!(const_hex::encode(&ids[1])));
    assert_eq!(further.as_array().unwrap().len(), 1);
    assert!(succeed(folder, &["dht", "stats"]).contains(&format!("at {}", addresses[1])));
}

#[test]
fn a_daemon_without_a_dht_says_so() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let _daemon = Daemon::start_with(folder, &["--no-dht"]);
    for command in [["dht", "put", "x"], ["dht", "lookup", &"0".repeat(40)]] {
        let error = fail(folder, &command);
        assert!(
            error.contains("the DHT is off") && error.contains("--no-dht"),
            "{error}"
        );
    }
    assert!(succeed(folder, &["dht", "stats"]).contains("IPv4       off"));
}
