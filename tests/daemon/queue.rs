//! The queue, by the API and by the commands, over kills.

use std::fs;

use serde_json::{Value, json};

use crate::bed::{Answer, Daemon, fail, succeed, torrent, wait_until};

fn patch(daemon: &Daemon, path: &str, body: &Value) -> Answer {
    let bearer = daemon.bearer();
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    daemon.ask("PATCH", path, &headers, body.to_string().as_bytes())
}

fn change(daemon: &Daemon, hash: &str, body: &Value) -> Answer {
    patch(daemon, &format!("/api/v1/torrents/{hash}/queue"), body)
}

/// Returns the names of the torrents in the order of the queue, and those that run.
fn queue(daemon: &Daemon) -> (Vec<String>, Vec<String>) {
    let torrents = daemon.get("/api/v1/torrents?sort=queue.order&fields=name,state").json();
    let name = |torrent: &Value| torrent["name"].as_str().unwrap().to_owned();
    let torrents = torrents.as_array().unwrap();
    let running = torrents.iter().filter(|torrent| torrent["state"] == "downloading");
    (torrents.iter().map(name).collect(), running.map(name).collect())
}

/// Waits until the queue has this order, and its first torrents run.
#[track_caller]
fn wait_for(daemon: &Daemon, order: &str, running: &str) {
    let names = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
    let expected = (names(order), names(running));
    wait_until(&format!("{order}, of which {running} run"), || {
        queue(daemon) == expected
    });
}

/// The limit and the order hold at once, and after a kill.
#[test]
fn the_first_torrents_of_the_queue_run() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    assert_eq!(
        patch(&daemon, "/api/v1/settings", &json!({"queue": {"max_downloads": 1}})).status,
        200
    );
    let mut events = daemon.events();
    let mut hashes = Vec::new();
    for (seed, name) in [(1, "a"), (2, "b"), (3, "c")] {
        let (hash, bytes) = torrent(folder, name, seed, &[]);
        assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
        hashes.push(hash);
    }
    assert_eq!(events.wait_for("queued"), json!({"info_hash": hashes[1]}));
    wait_for(&daemon, "abc", "a");
    assert_eq!(change(&daemon, &hashes[2], &json!({"move": "top"})).status, 204);
    wait_for(&daemon, "cab", "c");
    let daemon = daemon.kill_and_start();
    wait_for(&daemon, "cab", "c");
    assert_eq!(change(&daemon, &hashes[0], &json!({"move": "down"})).status, 204);
    wait_for(&daemon, "cba", "c");
    assert_eq!(change(&daemon, &hashes[1], &json!({"move": "up"})).status, 204);
    wait_for(&daemon, "bca", "b");
    let daemon = daemon.kill_and_start();
    wait_for(&daemon, "bca", "b");
    assert_eq!(change(&daemon, &hashes[0], &json!({"forced": true})).status, 204);
    wait_for(&daemon, "bca", "a");
    let daemon = daemon.kill_and_start();
    wait_for(&daemon, "bca", "a");
    assert_eq!(
        change(&daemon, &hashes[0], &json!({"forced": false, "move": "bottom"})).status,
        204
    );
    wait_for(&daemon, "bca", "b");
    // A paused torrent gives its place to the next one, and gets it back.
    assert_eq!(
        daemon
            .post(&format!("/api/v1/torrents/{}/pause", hashes[1]), b"")
            .status,
        204
    );
    wait_for(&daemon, "bca", "c");
    assert_eq!(
        daemon
            .post(&format!("/api/v1/torrents/{}/start", hashes[1]), b"")
            .status,
        204
    );
    wait_for(&daemon, "bca", "b");
    assert_eq!(daemon.delete(&format!("/api/v1/torrents/{}", hashes[1])).status, 200);
    wait_for(&daemon, "ca", "c");

    for (body, field, why) in [
        (json!({"move": "left"}), "move", "unknown variant `left`"),
        (json!({"forced": 1}), "forced", "true or false is expected, not 1"),
        (
            json!({"place": 0}),
            "place",
            "a whole number from 1 on is expected, not 0",
        ),
        (
            json!({"place": "x"}),
            "place",
            "a whole number from 1 on is expected, not the text \"x\"",
        ),
        (json!(5), "body", "no JSON object"),
    ] {
        let refusal = change(&daemon, &hashes[0], &body);
        refusal.refused(400, Some(field));
        let (error, code) = (refusal.json()["error"].take(), refusal.json()["code"].take());
        assert!(error.as_str().unwrap().contains(why), "{error}");
        assert_eq!(code, "invalid_body");
    }
    change(&daemon, &hashes[0], &json!({"place": 1, "move": "top"})).refused(400, Some("place"));
    change(&daemon, &"0".repeat(40), &json!({"move": "top"})).refused(404, Some("hash"));
    patch(&daemon, "/api/v1/settings", &json!({"queue": {"max_checks": 0}})).refused(400, Some("queue.max_checks"));
    wait_for(&daemon, "ca", "c");
}

#[test]
fn the_commands_change_the_queue() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    succeed(folder, &["config", "set", "queue.max_downloads", "1"]);
    let mut hashes = Vec::new();
    for (seed, name) in [(1, "a"), (2, "b")] {
        let (hash, bytes) = torrent(folder, name, seed, &[]);
        let file = folder.join(format!("{name}.torrent"));
        fs::write(&file, bytes).unwrap();
        succeed(folder, &["add", file.to_str().unwrap()]);
        hashes.push(hash);
    }
    wait_for(&daemon, "ab", "a");
    wait_until("the second one is queued", || {
        let listed = succeed(folder, &["queue"]);
        let states = listed
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().nth(2).unwrap());
        states.eq(["downloading", "queued"])
    });
    succeed(folder, &["queue", &hashes[1], "--top"]);
    wait_for(&daemon, "ba", "b");
    let printed = succeed(folder, &["queue", &hashes[0], "--force", "--json"]);
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed["queue"]["forced"], json!(true), "{printed}");
    wait_for(&daemon, "ba", "a");
    succeed(folder, &["queue", &hashes[0], "--no-force", "--up"]);
    wait_for(&daemon, "ab", "a");
    let error = fail(folder, &["queue", "00000000", "--up"]);
    assert!(error.contains("00000000"), "{error}");
}

/// The commands count places from 1, without gaps, over downloads and seeds; a move by one place is one of these.
#[test]
fn places_are_counted_from_one() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let mut hashes = Vec::new();
    for (seed, name) in [(1, "seed"), (2, "b"), (3, "c"), (4, "d")] {
        let (hash, bytes) = torrent(folder, name, seed, &[]);
        if name == "seed" {
            fs::create_dir_all(folder.join("downloads")).unwrap();
            fs::copy(folder.join(name), folder.join("downloads").join(name)).unwrap();
        }
        assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
        hashes.push(hash);
    }
    wait_until("the seed", || {
        daemon.get("/api/v1/torrents?state=seeding").body.contains("seed")
    });
    let column = |text: &str, number: usize| -> Vec<String> {
        let rows = text.lines().skip(1);
        rows.map(|row| row.split_whitespace().nth(number).unwrap().to_owned())
            .collect()
    };
    let places = |names: [&str; 4]| {
        let listed = succeed(folder, &["queue"]);
        assert_eq!(column(&listed, 1), ["1", "2", "3", "4"], "{listed}");
        assert_eq!(column(&listed, 3), names, "{listed}");
    };
    places(["seed", "b", "c", "d"]);
    let moved = succeed(folder, &["queue", "b", "--up"]);
    assert_eq!(column(&moved, 1), ["1"], "{moved}");
    places(["b", "seed", "c", "d"]);
    for name in ["seed", "c", "d"] {
        let moved = succeed(folder, &["queue", name, "--top", "--json"]);
        let moved: Value = serde_json::from_str(&moved).unwrap();
        assert_eq!(
            (&moved["name"], &moved["queue"]["place"]),
            (&json!(name), &json!(1)),
            "{moved}"
        );
    }
    places(["d", "c", "seed", "b"]);
    let moved = succeed(folder, &["queue", "d", "--place", "3"]);
    assert_eq!(column(&moved, 1), ["3"], "{moved}");
    places(["c", "seed", "d", "b"]);
    succeed(folder, &["queue", "c", "--down"]);
    places(["seed", "c", "d", "b"]);
}
