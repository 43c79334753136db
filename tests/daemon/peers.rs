//! Peers of a torrent are listed and added, by the API and by the commands.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::bed::{Daemon, command, fail, fail_with, succeed, wait_until};
use crate::choosing::seed_album;

/// Each side lists the other one, with direction, choke state and amounts.
#[test]
fn peers_are_added_and_listed() {
    let (temporary, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = temporary.path();
    let (seed, hash, bytes) = seed_album(other.path());
    // Slow enough to be looked at.
    let daemon = Daemon::start_with(folder, &["--download-dir", "downloads", "--download-limit", "11k"]);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    let path = format!("/api/v1/torrents/{hash}/peers");
    assert_eq!(daemon.get(&path).json(), json!([]));
    assert_eq!(succeed(folder, &["peers", &hash]).trim(), "no peers");

    let refused = fail_with(2, folder, &["peers", &hash, "--add", "192.0.2.7:0"]);
    assert!(refused.contains("192.0.2.7:0: nobody listens on port 0"), "{refused}");
    let added = succeed(folder, &["peers", &hash, "--add", &seed.peers]);
    assert_eq!(added.lines().next(), Some(&*format!("added {}", seed.peers)));
    let peer = |daemon: &Daemon, is_ready: fn(&Value) -> bool| {
        let mut found = Value::Null;
        wait_until("a peer", || {
            found = daemon.get(&path).json().get_mut(0).map(Value::take).unwrap_or_default();
            is_ready(&found)
        });
        found
    };
    let theirs = peer(&daemon, |peer| peer["downloaded"].as_u64() > Some(0));
    assert_eq!(theirs["address"], *seed.peers);
    let expected = json!([false, 1.0, 0, true, false, false]);
    let shown = [
        "is_incoming",
        "progress",
        "uploaded",
        "am_interested",
        "peer_choking",
        "peer_interested",
    ];
    assert_eq!(json!(shown.map(|key| &theirs[key])), expected);
    let ours = peer(&seed, |peer| peer["uploaded"].as_u64() > Some(0));
    let shown = [
        "is_incoming",
        "downloaded",
        "am_interested",
        "am_choking",
        "peer_interested",
    ];
    assert_eq!(json!(shown.map(|key| &ours[key])), json!([true, 0, false, false, true]));
    assert!(ours["progress"].as_f64() < Some(1.0));
    let table = succeed(folder, &["peers", &hash]);
    let row = table.lines().nth(1).unwrap();
    assert!(row.starts_with(&*seed.peers) && row.contains("100.0 %"), "{table}");
    assert!(row.contains(" D ") && row.contains("ecs-torrent"), "{table}");
    let table = succeed(other.path(), &["peers", &hash]);
    assert!(table.lines().nth(1).unwrap().contains(" UI "), "{table}");

    let bearer = daemon.bearer();
    let headers = [("Authorization", &*bearer), ("Content-Type", "application/json")];
    let many = vec!["192.0.2.7:6881"; 1001];
    for (body, field) in [
        (json!({"add": many}), "add"),
        (json!({"add": ["192.0.2.7:0"]}), "add"),
        (json!({"add": ["localhost:1"]}), "add[0]"),
        (json!({}), "body"),
    ] {
        let answer = daemon.ask("PATCH", &path, &headers, body.to_string().as_bytes());
        answer.refused(400, Some(field));
    }
}

/// A blocked peer is cut off, and neither dialed nor accepted, also after a kill, until it is unblocked.
#[test]
fn blocked_peers_stay_away() {
    let (temporary, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = temporary.path();
    let (seed, hash, bytes) = seed_album(other.path());
    let arguments = ["--download-dir", "downloads", "--download-limit", "11k"];
    let daemon = Daemon::start_with(folder, &arguments);
    let path = format!("/api/v1/torrents?peer={}", seed.peers);
    assert_eq!(daemon.post(&path, &bytes).status, 201);
    let peers = format!("/api/v1/torrents/{hash}/peers");
    let count = |daemon: &Daemon| daemon.get(&peers).json().as_array().unwrap().len();
    let has_pieces = |daemon: &Daemon| daemon.get(&peers).json()[0]["downloaded"].as_u64() > Some(0);
    wait_until("a peer", || has_pieces(&daemon));

    assert_eq!(succeed(folder, &["block"]).trim(), "no peers are blocked");
    assert_eq!(succeed(folder, &["block", "127.0.0.0/8"]).trim(), "1 network blocked");
    let shown: Value = serde_json::from_str(&succeed(folder, &["block", "2001:db8::1", "--json"])).unwrap();
    assert_eq!(shown, json!(["127.0.0.0/8", "2001:db8::1"]));
    wait_until("no peer", || count(&daemon) == 0 && count(&seed) == 0);
    daemon.kill();
    let daemon = Daemon::start_with(folder, &arguments);
    assert_eq!(succeed(folder, &["block"]), "127.0.0.0/8\n2001:db8::1\n");
    // Both sides name each other.
    succeed(folder, &["peers", &hash, "--add", &seed.peers]);
    succeed(other.path(), &["peers", &hash, "--add", &daemon.peers]);
    let sources = format!("/api/v1/torrents/{hash}?fields=sources");
    let refused = || {
        let sources = daemon.get(&sources).json()["sources"].take();
        let user = sources
            .as_array()
            .unwrap()
            .iter()
            .find(|source| source["source"] == "user");
        user.is_some_and(|user| user["refused"].as_u64() > Some(0))
    };
    wait_until("a refusal", refused);
    assert_eq!((count(&daemon), count(&seed)), (0, 0));

    let error = fail(folder, &["unblock", "192.0.2.7"]);
    assert!(error.contains("192.0.2.7 is not blocked"), "{error}");
    succeed(folder, &["unblock", "127.0.0.0/8"]);
    succeed(folder, &["peers", &hash, "--add", &seed.peers]);
    wait_until("the peer", || has_pieces(&daemon));
}

/// Changes of the blocked networks by several clients at the same time are all kept.
#[test]
fn no_change_of_the_blocked_networks_is_lost() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let addresses: Vec<String> = (1..=12).map(|number| format!("192.0.2.{number}")).collect();
    let all_at_once = |name: &str| {
        let start = |address: &String| command(folder, &[name, address]).stdout(Stdio::null()).spawn().unwrap();
        let mut children: Vec<_> = addresses.iter().map(start).collect();
        assert!(children.iter_mut().all(|child| child.wait().unwrap().success()));
    };
    let blocked = |daemon: &Daemon| {
        let mut blocked: Vec<String> = serde_json::from_str(&daemon.get("/api/v1/peers/blocked").body).unwrap();
        blocked.sort();
        blocked
    };
    let mut sorted = addresses.clone();
    sorted.sort();
    all_at_once("block");
    assert_eq!(blocked(&daemon), sorted);
    let daemon = daemon.kill_and_start();
    assert_eq!(blocked(&daemon), sorted);
    all_at_once("unblock");
    assert_eq!(blocked(&daemon), [""; 0]);

    let bearer = daemon.bearer();
    let headers = [("Authorization", &*bearer), ("Content-Type", "application/json")];
    let patch = |body: Value| daemon.ask("PATCH", "/api/v1/peers/blocked", &headers, body.to_string().as_bytes());
    let both = patch(json!({"add": ["192.0.2.1", "192.0.2.1", "2001:db8::/32"], "remove": []}));
    assert_eq!((both.status, both.json()), (200, json!(["192.0.2.1", "2001:db8::/32"])));
    assert_eq!(
        succeed(folder, &["block", "192.0.2.1"]).trim(),
        "1 address and 1 network blocked"
    );
    patch(json!({"add": ["192.0.2.9"], "remove": ["192.0.2.2"]})).refused(400, Some("remove"));
    patch(json!({"add": ["192.0.2.300"]})).refused(400, Some("add[0]"));
    patch(json!({"ad": []})).refused(400, Some("ad"));
    assert_eq!(patch(json!({"remove": ["2001:db8::/32"]})).json(), json!(["192.0.2.1"]));
}
