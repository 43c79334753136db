//! The fields of a torrent: dates, ratio, availability.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::bed::{Daemon, torrent, wait_until};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A torrent's dates follow what happens to it, and stay over restarts.
#[test]
fn a_torrent_has_dates_that_survive_a_restart() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
    fs::create_dir_all(folder.join("seeder/downloads")).unwrap();
    fs::copy(folder.join("one.bin"), folder.join("seeder/downloads/one.bin")).unwrap();
    let seeder = Daemon::start(&folder.join("seeder"));
    assert_eq!(seeder.post("/api/v1/torrents", &bytes).status, 201);

    let mut daemon = Daemon::start(folder);
    let fields = "added_at,completed_at,active_at,private,ratio,eta,peer_count,availability,left";
    let path = format!("/api/v1/torrents/{hash}?fields={fields}");
    let before = now();
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    let fresh = daemon.get(&path).json();
    let added = fresh["added_at"].as_u64().unwrap();
    assert!((before..=now()).contains(&added), "{fresh}");
    let expected = json!({
        "added_at": added, "completed_at": null, "active_at": null, "private": false, "ratio": null, "eta": null,
        "peer_count": 0, "left": 100_000, "availability": fresh["availability"],
    });
    assert_eq!(fresh, expected);
    wait_until("availability", || daemon.get(&path).json()["availability"] == 0.0);

    let again = format!("/api/v1/torrents?peer={}", seeder.peers);
    assert_eq!(daemon.post(&again, &bytes).status, 200);
    wait_until("the content", || daemon.get(&path).json()["left"] == 0);
    let whole = daemon.get(&path).json();
    let dates = ["completed_at", "active_at"].map(|field| whole[field].as_u64().unwrap());
    assert!(dates.into_iter().all(|date| (added..=now()).contains(&date)), "{whole}");
    assert_eq!((&whole["added_at"], &whole["ratio"]), (&json!(added), &json!(0.0)));
    assert_eq!(whole["availability"], Value::Null, "nothing is missing");
    let shown = crate::bed::succeed(folder, &["stats", &hash, "--fields", "added_at,ratio,private"]);
    assert!(
        shown.contains("added            20") && shown.contains("ratio            0.00"),
        "{shown}"
    );

    // Data that was there when it was added was never completed.
    let seeding = format!("/api/v1/torrents/{hash}?fields=completed_at,state,ratio");
    let expected = json!({"completed_at": null, "state": "seeding", "ratio": 1.0});
    assert_eq!(seeder.get(&seeding).json(), expected);

    daemon.process.signal(rustix::process::Signal::TERM);
    daemon.process.wait();
    let daemon = Daemon::start(folder);
    wait_until("the session", || daemon.get(&path).json()["completed_at"].is_u64());
    let restarted = daemon.get(&path).json();
    for field in ["added_at", "completed_at", "active_at"] {
        assert_eq!(restarted[field], whole[field], "{field}");
    }
}
