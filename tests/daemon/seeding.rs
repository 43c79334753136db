//! Seeding limits, by the API and by the commands, over kills.

use std::fs;
use std::path::Path;

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::bed::{Answer, Daemon, fail, succeed, torrent, wait_until};

fn patch(daemon: &Daemon, hash: &str, body: &Value) -> Answer {
    let bearer = daemon.bearer();
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let path = format!("/api/v1/torrents/{hash}");
    daemon.ask("PATCH", &path, &headers, body.to_string().as_bytes())
}

fn fields(daemon: &Daemon, hash: &str, fields: &str) -> Value {
    daemon.get(&format!("/api/v1/torrents/{hash}?fields={fields}")).json()
}

/// Returns the state and the limit that was reached.
fn state(daemon: &Daemon, hash: &str) -> Value {
    fields(daemon, hash, "state,limit_reached")
}

/// Puts the content of a torrent into a daemon's download folder.
fn put(folder: &Path, name: &str) {
    fs::create_dir_all(folder.join("downloads")).unwrap();
    fs::copy(folder.join(name), folder.join("downloads").join(name)).unwrap();
}

/// A seed pauses at its ratio, reports the reason, and stays paused over a kill. A start by the user overrides the
/// limit, over a kill too, until the limit changes.
#[test]
fn a_seed_pauses_visibly_at_its_ratio() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = torrent(folder, "a", 1, &[]);
    put(folder, "a");
    let daemon = Daemon::start(folder);
    assert_eq!(
        daemon.post("/api/v1/torrents?seeding_ratio_percent=100", &bytes).status,
        201
    );
    wait_until("the seed", || state(&daemon, &hash)["state"] == "seeding");
    let mut events = daemon.events();
    let other = tempfile::tempdir().unwrap();
    let leecher = Daemon::start(other.path());
    let path = format!("/api/v1/torrents?peer={}", daemon.peers);
    assert_eq!(leecher.post(&path, &bytes).status, 201);
    let expected = json!({"info_hash": hash, "limit": "ratio", "action": "pause"});
    assert_eq!(events.wait_for("seeding_limit_reached"), expected);
    events.wait_for("paused");
    wait_until("the copy", || state(&leecher, &hash)["state"] == "seeding");
    drop(leecher);
    let paused = json!({"state": "paused", "limit_reached": "ratio"});
    assert_eq!(state(&daemon, &hash), paused);
    let listed = succeed(folder, &["list"]);
    assert!(listed.contains("its seeding limit is reached: ratio"), "{listed}");

    let daemon = daemon.kill_and_start();
    wait_until("the session", || state(&daemon, &hash) == paused);
    assert_eq!(daemon.post(&format!("/api/v1/torrents/{hash}/start"), b"").status, 204);
    let seeding = json!({"state": "seeding", "limit_reached": null});
    wait_until("the start", || state(&daemon, &hash) == seeding);
    let daemon = daemon.kill_and_start();
    wait_until("the start again", || state(&daemon, &hash) == seeding);
    // An unrelated change, after which the limits are examined.
    assert_eq!(
        patch(&daemon, &hash, &json!({"seeding": {"idle_s": 1_000_000}})).status,
        204
    );
    assert_eq!(state(&daemon, &hash), seeding);
    assert_eq!(
        patch(&daemon, &hash, &json!({"seeding": {"ratio_percent": 50}})).status,
        204
    );
    wait_until("a pause by the new limit", || state(&daemon, &hash) == paused);
    let own = json!({"ratio_percent": 50, "time_s": null, "idle_s": 1_000_000, "action": null});
    assert_eq!(fields(&daemon, &hash, "seeding")["seeding"], own);
}

/// A refusal names the field and changes nothing.
#[test]
fn bad_seeding_limits_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = torrent(folder, "a", 1, &[]);
    let daemon = Daemon::start(folder);
    for (query, field) in [
        ("seeding_idle_s=5", "seeding_idle_s"),
        ("seeding_time_s=soon", "seeding_time_s"),
        ("seeding_ratio_percent=1000001", "seeding_ratio_percent"),
        ("seeding_action=stop", "seeding_action"),
    ] {
        daemon
            .post(&format!("/api/v1/torrents?{query}"), &bytes)
            .refused(400, Some(field));
    }
    // Numbers and texts in JSON.
    let body = json!({
        "torrent": BASE64.encode(&bytes), "seeding_ratio_percent": 150, "seeding_time_s": "none",
        "upload_limit": 20_000,
    });
    let bearer = daemon.bearer();
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let added = daemon.ask("POST", "/api/v1/torrents", &headers, body.to_string().as_bytes());
    assert_eq!(added.status, 201, "{added:?}");
    let own = json!({"ratio_percent": 150, "time_s": "none", "idle_s": null, "action": null});
    let seeding = || fields(&daemon, &hash, "seeding")["seeding"].clone();
    assert_eq!(seeding(), own);
    let body = json!({"limits": {"upload_bytes_per_s": null}, "seeding": {"idle_s": 59}});
    patch(&daemon, &hash, &body).refused(400, Some("seeding.idle_s"));
    for (body, field) in [
        (json!({"seeding": {"ratio_percent": -1}}), "seeding.ratio_percent"),
        (json!({"seeding": {"ratio_percent": 1.5}}), "seeding.ratio_percent"),
        (json!({"seeding": {"time_s": "forever"}}), "seeding.time_s"),
        (json!({"seeding": {"action": "stop"}}), "seeding.action"),
        (json!({"seeding": {"speed": 1}}), "seeding.speed"),
    ] {
        patch(&daemon, &hash, &body).refused(400, Some(field));
    }
    let unknown = "0".repeat(40);
    patch(&daemon, &unknown, &json!({"seeding": {"time_s": 5}})).refused(404, Some("hash"));
    assert_eq!(seeding(), own);
    let limits = fields(&daemon, &hash, "limits")["limits"].clone();
    assert_eq!(limits["upload_bytes_per_s"], 20_000, "a refusal changes nothing");

    let body = json!({"seeding": {"time_s": null, "action": "super_seed"}});
    assert_eq!(patch(&daemon, &hash, &body).status, 204);
    let daemon = daemon.kill_and_start();
    let own = json!({"ratio_percent": 150, "time_s": null, "idle_s": null, "action": "super_seed"});
    wait_until("the session", || fields(&daemon, &hash, "seeding")["seeding"] == own);
}

#[test]
fn the_commands_limit_seeding() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = torrent(folder, "a", 1, &[]);
    fs::write(folder.join("a.torrent"), bytes).unwrap();
    put(folder, "a");
    let daemon = Daemon::start(folder);
    succeed(folder, &["add", "a.torrent", "--ratio", "2", "--then", "super-seed"]);
    let printed = succeed(folder, &["limit", &hash, "--idle-time", "2d", "--seeding-time", "none"]);
    let expected = "download: no limit\nupload: no limit\nratio: 2.00\nseeding time: no limit\nidle time: 2days\n\
                    then: super-seed\n";
    assert_eq!(printed, expected);
    let json = succeed(
        folder,
        &["limit", &hash, "--then", "inherit", "--ratio", "inherit", "--json"],
    );
    let json: Value = serde_json::from_str(&json).unwrap();
    let own = json!({"ratio_percent": null, "time_s": "none", "idle_s": 2 * 86_400, "action": null});
    assert_eq!(json["seeding"], own);
    let error = fail(folder, &["limit", &hash, "--idle-time", "5s"]);
    assert!(error.contains("seeding.idle_s: 5 is too small"), "{error}");

    // A limit of the settings: the torrent leaves the list, its data stays.
    let mut events = daemon.events();
    succeed(folder, &["config", "set", "seeding.action", "Remove"]);
    succeed(folder, &["config", "set", "seeding.ratio_percent", "0"]);
    events.wait_for("removed");
    assert!(folder.join("downloads/a").exists());
    assert_eq!(succeed(folder, &["list"]), "no torrents\n");
}
