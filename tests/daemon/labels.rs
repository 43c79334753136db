//! Torrents have labels and a category, by the API and by the commands.

use serde_json::{Value, json};

use crate::bed::{Answer, Daemon, fail, succeed, torrent};

fn patch(daemon: &Daemon, hash: &str, body: &Value) -> Answer {
    let bearer = daemon.bearer();
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let path = format!("/api/v1/torrents/{hash}");
    daemon.ask("PATCH", &path, &headers, body.to_string().as_bytes())
}

fn labels(daemon: &Daemon, hash: &str) -> Value {
    let path = format!("/api/v1/torrents/{hash}?fields=labels,category");
    daemon.get(&path).json()
}

fn found(daemon: &Daemon, query: &str) -> Vec<String> {
    let list = daemon.get(&format!("/api/v1/torrents?fields=name&{query}")).json();
    let torrents = list.as_array().unwrap().iter();
    torrents
        .map(|torrent| torrent["name"].as_str().unwrap().to_owned())
        .collect()
}

/// Labels are given at an add and changed later, survive kills and pauses, and select torrents of the list.
#[test]
fn labels_are_durable_and_select() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (one, bytes) = torrent(folder, "one", 1, &[]);
    let (two, others) = torrent(folder, "two", 2, &[]);
    let mut daemon = Daemon::start(folder);
    let path = "/api/v1/torrents?label=linux&label=iso&category=distributions";
    assert_eq!(daemon.post(path, &bytes).status, 201);
    assert_eq!(daemon.post("/api/v1/torrents?label=music", &others).status, 201);
    let given = json!({"labels": ["iso", "linux"], "category": "distributions"});
    assert_eq!(labels(&daemon, &one), given);
    let revision = daemon.get("/api/v1/sync").json()["revision"].clone();

    let change = json!({"labels": {"add": ["music"], "remove": ["iso", "unknown"]}, "category": null});
    assert_eq!(patch(&daemon, &one, &change).status, 204);
    let changed = json!({"labels": ["linux", "music"], "category": null});
    assert_eq!(labels(&daemon, &one), changed);
    let since = revision.as_str().unwrap();
    let sync = daemon.get(&format!("/api/v1/sync?since={since}&fields=labels")).json();
    let expected = json!({"info_hash": one, "labels": ["linux", "music"]});
    assert!(sync["torrents"].as_array().unwrap().contains(&expected), "{sync}");

    assert_eq!(found(&daemon, "label=music"), ["one", "two"]);
    assert_eq!(found(&daemon, "label=music&label=linux"), ["one"]);
    assert!(found(&daemon, "label=nothing").is_empty());
    assert_eq!(
        patch(&daemon, &two, &json!({"labels": [], "category": "music"})).status,
        204
    );
    assert_eq!(found(&daemon, "category=music"), ["two"]);
    assert_eq!(found(&daemon, "category="), ["one"]);

    assert_eq!(daemon.post(&format!("/api/v1/torrents/{one}/pause"), b"").status, 204);
    for _ in 0..2 {
        daemon = daemon.kill_and_start();
        assert_eq!(labels(&daemon, &one), changed);
        assert_eq!(labels(&daemon, &two), json!({"labels": [], "category": "music"}));
    }
    // A paused torrent takes labels too.
    assert_eq!(patch(&daemon, &one, &json!({"labels": ["linux"]})).status, 204);
    assert_eq!(labels(&daemon, &one)["labels"], json!(["linux"]));
}

/// A bad label is refused by name, and nothing is changed.
#[test]
fn bad_labels_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = torrent(folder, "one", 1, &[]);
    let daemon = Daemon::start(folder);
    let long = "x".repeat(65);
    for (query, field) in [
        (format!("label={long}"), "label"),
        ("label=a%2Cb".to_owned(), "label"),
        ("label=".to_owned(), "label"),
        ("category=%0A".to_owned(), "category"),
    ] {
        daemon
            .post(&format!("/api/v1/torrents?{query}"), &bytes)
            .refused(400, Some(field));
    }
    assert_eq!(daemon.hashes(), [""; 0]);
    assert_eq!(daemon.post("/api/v1/torrents?label=a", &bytes).status, 201);
    let many: Vec<String> = (0..33).map(|number| number.to_string()).collect();
    let before = labels(&daemon, &hash);
    for (body, field) in [
        (json!({"labels": many}), "labels"),
        (json!({"labels": {"add": [" b"]}, "category": "c"}), "labels"),
        (json!({"category": long}), "category"),
        (json!({"labels": 5}), "labels"),
        (json!({"labels": {"set": []}}), "labels"),
        (
            json!({"labels": ["b"], "limits": {"upload_bytes_per_s": 1}}),
            "limits.upload_bytes_per_s",
        ),
    ] {
        patch(&daemon, &hash, &body).refused(400, Some(field));
        assert_eq!(labels(&daemon, &hash), before, "{body}");
    }
    patch(&daemon, &"0".repeat(40), &json!({"labels": []})).refused(404, Some("hash"));
}

/// A category with a folder places new torrents, in folders that clients may use; commands show and change categories
/// and labels.
#[test]
fn a_category_places_new_torrents() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (one, bytes) = torrent(folder, "one", 1, &[]);
    let (two, others) = torrent(folder, "two", 2, &[]);
    std::fs::write(folder.join("one.torrent"), &bytes).unwrap();
    std::fs::write(folder.join("two.torrent"), others).unwrap();
    let daemon = Daemon::start(folder);
    let categories = r#"[{"name": "tv", "folder": "shows/tv"}, {"name": "out", "folder": "/etc"}]"#;
    succeed(folder, &["config", "set", "labels.categories", categories]);
    daemon
        .post("/api/v1/torrents?category=out", &bytes)
        .refused(403, Some("root"));
    succeed(folder, &["add", "one.torrent", "--category", "tv", "--label", "a,b"]);
    let downloads = folder.canonicalize().unwrap().join("downloads");
    let root = |hash: &str| daemon.get(&format!("/api/v1/torrents/{hash}?fields=root")).json()["root"].clone();
    assert_eq!(root(&one), json!(downloads.join("shows/tv")));
    // A folder that the user names comes first, and a later category moves nothing.
    succeed(
        folder,
        &["add", "two.torrent", "--category", "tv", "-o", "downloads/other"],
    );
    assert_eq!(root(&two), json!(downloads.join("other")));
    let printed = succeed(folder, &["label", &two[..6], "--add", "c", "--category", "music"]);
    assert_eq!(printed, "labels: c\ncategory: music\n");
    assert_eq!(root(&two), json!(downloads.join("other")));

    let list = succeed(folder, &["list", "--label", "a"]);
    assert!(list.contains("one") && !list.contains("two"), "{list}");
    let list = succeed(folder, &["list", "--category", "music", "--json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["name"]), (1, &json!("two")));
    let printed = succeed(folder, &["label", &one, "--set", "", "--no-category"]);
    assert_eq!(printed, "labels: none\ncategory: none\n");
    let json: Value = serde_json::from_str(&succeed(folder, &["label", &two, "--json"])).unwrap();
    assert_eq!(json, json!({"labels": ["c"], "category": "music"}));
    let why = fail(folder, &["label", &one, "--add", &"x".repeat(65)]);
    assert!(why.contains("it can have 64"), "{why}");
}
