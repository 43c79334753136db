//! A torrent has limits of its own, by the API and by the commands.

use serde_json::{Value, json};

use crate::bed::{Answer, Daemon, fail, succeed, torrent};

fn patch(daemon: &Daemon, hash: &str, body: &Value) -> Answer {
    let bearer = daemon.bearer();
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let path = format!("/api/v1/torrents/{hash}");
    daemon.ask("PATCH", &path, &headers, body.to_string().as_bytes())
}

fn limits(daemon: &Daemon, hash: &str) -> Value {
    daemon.get(&format!("/api/v1/torrents/{hash}?fields=limits")).json()["limits"].clone()
}

/// Limits survive a kill, and a refusal changes nothing.
#[test]
fn a_torrents_limits_are_durable() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = torrent(folder, "a", 1, &[]);
    let daemon = Daemon::start(folder);
    daemon
        .post("/api/v1/torrents?download_limit=5", &bytes)
        .refused(400, Some("download_limit"));
    daemon
        .post("/api/v1/torrents?upload_limit=fast", &bytes)
        .refused(400, Some("upload_limit"));
    assert_eq!(daemon.post("/api/v1/torrents?upload_limit=20000", &bytes).status, 201);
    assert_eq!(
        limits(&daemon, &hash),
        json!({"download_bytes_per_s": null, "upload_bytes_per_s": 20_000})
    );
    let body = json!({"limits": {"download_bytes_per_s": 50_000, "upload_bytes_per_s": 1}});
    patch(&daemon, &hash, &body).refused(400, Some("limits.upload_bytes_per_s"));
    for (body, field) in [
        (json!({"limits": {"speed": 1}}), "limits.speed"),
        (json!({"limit": 5}), "limit"),
        (
            json!({"limits": {"upload_bytes_per_s": -1}}),
            "limits.upload_bytes_per_s",
        ),
        (json!(5), "body"),
    ] {
        patch(&daemon, &hash, &body).refused(400, Some(field));
    }
    patch(
        &daemon,
        &"0".repeat(40),
        &json!({"limits": {"upload_bytes_per_s": 20_000}}),
    )
    .refused(404, Some("hash"));
    assert_eq!(
        patch(&daemon, &hash, &json!({"limits": {"download_bytes_per_s": 50_000}})).status,
        204
    );
    let daemon = daemon.kill_and_start();
    assert_eq!(
        limits(&daemon, &hash),
        json!({"download_bytes_per_s": 50_000, "upload_bytes_per_s": 20_000})
    );
    assert_eq!(
        patch(&daemon, &hash, &json!({"limits": {"upload_bytes_per_s": null}})).status,
        204
    );
    assert_eq!(
        limits(&daemon, &hash),
        json!({"download_bytes_per_s": 50_000, "upload_bytes_per_s": null})
    );
    // A paused torrent keeps its limits, and takes new ones.
    assert_eq!(daemon.post(&format!("/api/v1/torrents/{hash}/pause"), b"").status, 204);
    assert_eq!(
        patch(&daemon, &hash, &json!({"limits": {"upload_bytes_per_s": 30_000}})).status,
        204
    );
    assert_eq!(
        limits(&daemon, &hash),
        json!({"download_bytes_per_s": 50_000, "upload_bytes_per_s": 30_000})
    );
}

#[test]
fn the_commands_limit_a_torrent() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = torrent(folder, "a", 1, &[]);
    std::fs::write(folder.join("a.torrent"), bytes).unwrap();
    let _daemon = Daemon::start(folder);
    succeed(folder, &["add", "a.torrent", "--download-limit", "50k"]);
    let printed = succeed(folder, &["limit", &hash, "--upload", "1MB"]);
    assert!(
        printed.starts_with("download: 50000 bytes/s\nupload: 1000000 bytes/s\n"),
        "{printed}"
    );
    let printed = succeed(folder, &["limit", &hash, "--download", "none"]);
    assert!(
        printed.starts_with("download: no limit\nupload: 1000000 bytes/s\n"),
        "{printed}"
    );
    let error = fail(folder, &["limit", "00000000", "--download", "none"]);
    assert!(error.contains("00000000"), "{error}");
}
