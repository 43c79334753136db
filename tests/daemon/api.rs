//! Every route of the API, as client programs use it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::bed::{Daemon, Process, command, succeed, torrent};
use crate::content::compare;

const NOBODY: &str = "00000000000000000000000000000000000000aa";

#[test]
fn health_needs_no_token() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let answer = daemon.ask("GET", "/api/v1/health", &[], b"");
    assert_eq!(answer.status, 200);
    let expected = json!({"status": "running", "version": env!("CARGO_PKG_VERSION")});
    assert_eq!(answer.json(), expected);
}

#[test]
fn torrents_are_added_listed_shown_and_stopped() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let (hash, bytes) = torrent(temporary.path(), "one.bin", 1, &[]);
    let (other, other_bytes) = torrent(temporary.path(), "two.bin", 2, &[]);
    assert_eq!(daemon.get("/api/v1/torrents").json(), json!([]));

    let added = daemon.post("/api/v1/torrents", &bytes);
    assert_eq!((added.status, added.json()), (201, json!({"info_hash": hash})));
    let again = daemon.post("/api/v1/torrents", &bytes);
    assert_eq!((again.status, again.json()), (200, json!({"info_hash": hash})));
    assert_eq!(daemon.post("/api/v1/torrents", &other_bytes).status, 201);
    assert_eq!(daemon.hashes(), [hash.clone(), other.clone()]);

    let list = daemon.get("/api/v1/torrents").json();
    let keys: Vec<&str> = list[0].as_object().unwrap().keys().map(String::as_str).collect();
    let expected = ["downloaded", "info_hash", "name", "progress", "size", "speed", "state"];
    assert_eq!(keys, expected);
    let names = daemon.get("/api/v1/torrents?fields=name").json();
    assert_eq!(names, json!([{"name": "one.bin"}, {"name": "two.bin"}]));
    let selected = daemon.get("/api/v1/torrents?fields=name,name&fields=state").json();
    let state = |index: usize| selected[index]["state"].clone();
    assert_eq!(
        selected,
        json!([{"name": "one.bin", "state": state(0)}, {"name": "two.bin", "state": state(1)}])
    );
    let all = daemon.get("/api/v1/torrents?fields=all").json();
    assert_eq!(all[0].as_object().unwrap().len(), ecs_torrent::Field::ALL.len());

    let path = format!("/api/v1/torrents/{hash}");
    let expected = json!({
        "name": "one.bin",
        "speed": {"download": 0, "upload": 0},
        "downloaded": 0,
        "size": 100_000,
    });
    assert_eq!(daemon.get(&path).json(), expected);
    assert_eq!(
        daemon
            .get(&path.to_uppercase().replace("/API/V1/TORRENTS", "/api/v1/torrents"))
            .status,
        200
    );
    let root = temporary.path().canonicalize().unwrap().join("downloads");
    let selected = daemon.get(&format!("{path}?fields=progress,root")).json();
    assert_eq!(selected, json!({"progress": 0.0, "root": root}));
    let files = daemon.get(&format!("{path}/files")).json();
    assert_eq!(
        files,
        json!([{"index": 0, "path": "one.bin", "length": 100_000, "completed": 0, "priority": "normal"}])
    );

    assert_eq!(daemon.post(&format!("{path}/stop"), b"").status, 204);
    assert_eq!(daemon.hashes(), [other]);
    daemon.get(&path).refused(404, Some("hash"));
    assert_eq!(
        daemon.post(&format!("{path}/stop"), b"").status,
        204,
        "what is stopped can be stopped"
    );
    assert_eq!(daemon.post("/api/v1/stop", b"").status, 204);
    assert_eq!(daemon.hashes(), [""; 0]);
    assert_eq!(
        daemon.ask("GET", "/api/v1/health", &[], b"").status,
        200,
        "the daemon goes on"
    );
}

/// Downloads from another process into a subfolder of the download folder, with events on the way.
#[test]
fn a_torrent_is_downloaded() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
    fs::write(folder.join("one.torrent"), &bytes).unwrap();
    let seed = fs::create_dir(folder.join("seeder"))
        .map(|()| Daemon::start(&folder.join("seeder")))
        .unwrap();
    fs::create_dir_all(folder.join("seeder/downloads")).unwrap();
    fs::copy(folder.join("one.bin"), folder.join("seeder/downloads/one.bin")).unwrap();
    let mut seeding = seed.events();
    assert_eq!(seed.post("/api/v1/torrents", &bytes).status, 201);
    assert_eq!(seeding.wait_for("started"), json!({"info_hash": hash}));

    let daemon = Daemon::start(folder);
    let mut events = daemon.events();
    let path = format!("/api/v1/torrents?root=new/deep&peer=127.0.0.1:1&peer={}", seed.peers);
    assert_eq!(daemon.post(&path, &bytes).status, 201);
    assert_eq!(events.wait_for("added"), json!({"info_hash": hash}));
    assert_eq!(events.wait_for("completed"), json!({"info_hash": hash}));
    let downloaded = folder.join("downloads/new/deep/one.bin");
    assert_eq!(compare(&folder.join("one.bin"), &downloaded), Ok(()));
    let stats = daemon
        .get(&format!("/api/v1/torrents/{hash}?fields=progress,downloaded"))
        .json();
    assert_eq!(stats, json!({"progress": 1.0, "downloaded": 100_000}));
    assert_eq!(daemon.post("/api/v1/stop", b"").status, 204);
    assert_eq!(events.wait_for("stopped"), json!({"info_hash": hash}));
}

/// Existing files are changed only with the client's consent, and never deleted.
#[test]
fn files_that_are_there_are_left_alone() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let mut events = daemon.events();
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
    let (_seeder, address, _lines) = seed(folder, &bytes);
    let file = folder.join("downloads/one.bin");
    fs::write(&file, "mine").unwrap();
    let add = |query: &str| daemon.post(&format!("/api/v1/torrents?peer={address}{query}"), &bytes);
    let refusal = add("");
    refusal.refused(409, None);
    let why = refusal.json()["error"].as_str().unwrap().to_owned();
    assert!(
        why.contains("one.bin already exists") && why.contains("--into"),
        "{why}"
    );
    add("&into=../up").refused(400, Some("into"));
    add("&name=.hidden").refused(400, Some("name"));
    add("&overwrite=perhaps").refused(400, Some("overwrite"));
    assert_eq!(daemon.hashes(), [""; 0]);
    let path = format!("/api/v1/torrents/{hash}?delete_data=true");
    for (query, place) in [("&into=new/deep", "new/deep/one.bin"), ("&name=two.bin", "two.bin")] {
        assert_eq!(add(query).status, 201, "{query}");
        events.wait_for("completed");
        assert!(folder.join("downloads").join(place).exists(), "{query}");
        // Deletion also works for a stopped torrent.
        assert_eq!(daemon.post(&format!("/api/v1/torrents/{hash}/stop"), b"").status, 204);
        assert_eq!(daemon.delete(&path).json()["deleted_count"], 1, "{query}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    }
    assert_eq!(add("&overwrite=true").status, 201);
    events.wait_for("completed");
    let removed = daemon.delete(&path).json();
    let kept = json!([{"path": "one.bin", "reason": "it was there before the torrent"}]);
    assert_eq!((&removed["kept"], &removed["kept_count"]), (&kept, &json!(1)));
    assert_eq!(fs::metadata(&file).unwrap().len(), 100_000);
}

#[test]
fn torrents_are_removed_with_their_data_or_without() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let mut events = daemon.events();
    for (query, stays) in [("", true), ("?delete_data=false", true), ("?delete_data=true", false)] {
        let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
        let (_seeder, address, _lines) = seed(folder, &bytes);
        assert_eq!(
            daemon.post(&format!("/api/v1/torrents?peer={address}"), &bytes).status,
            201
        );
        events.wait_for("completed");
        let path = format!("/api/v1/torrents/{hash}");
        daemon
            .delete(&format!("{path}?delete_data=yes"))
            .refused(400, Some("delete_data"));
        let removed = daemon.delete(&format!("{path}{query}"));
        let deleted: &[&str] = if stays { &[] } else { &["one.bin"] };
        assert_eq!(
            (removed.status, removed.json()),
            (
                200,
                json!({"deleted": deleted, "deleted_count": deleted.len(), "kept": [], "kept_count": 0})
            )
        );
        daemon.delete(&path).refused(404, Some("hash"));
        let file = folder.join("downloads/one.bin");
        assert_eq!(file.exists(), stays, "{query}");
        let _ = fs::remove_file(file);
    }
}

/// Starts a seeder of `folder`. Returns the process, its address, and its further output lines.
fn seed(folder: &Path, bytes: &[u8]) -> (Process, String, impl Iterator<Item = String> + use<>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    fs::write(folder.join("seed.torrent"), bytes).unwrap();
    let mut arguments = vec!["seed", "seed.torrent", "--data", ".", "--json", "--listen", &address];
    arguments.extend(["--state-dir", "seeder-state"]);
    let mut child = command(folder, &arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("\"complete\"")));
    (Process(child), address, lines)
}

#[test]
fn mistakes_are_named() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let (_, bytes) = torrent(temporary.path(), "one.bin", 1, &[]);
    for path in [
        "/",
        "/api",
        "/api/v1",
        "/api/v1/torrents/",
        "/api/v2/torrents",
        "//api/v1/health",
    ] {
        daemon.get(path).refused(404, None);
        daemon.ask("GET", path, &[], b"").refused(404, None);
    }
    for (method, path, allowed) in [
        ("PUT", "/api/v1/torrents", ["GET", "POST"].as_slice()),
        ("POST", "/api/v1/health", &["GET"]),
        ("GET", "/api/v1/stop", &["POST"]),
        (
            "PUT",
            &format!("/api/v1/torrents/{NOBODY}"),
            &["GET", "DELETE", "PATCH"],
        ),
    ] {
        let answer = daemon.ask(method, path, &[("Authorization", &daemon.bearer())], b"");
        answer.refused(405, None);
        let allow = answer
            .head
            .lines()
            .find(|line| line.starts_with("allow: "))
            .unwrap()
            .to_uppercase();
        assert!(allowed.iter().all(|method| allow.contains(method)), "{allow}");
    }
    for hash in ["x", "..", &NOBODY[1..], &"g".repeat(40)] {
        let status = if hash == ".." { 404 } else { 400 };
        let field = (hash != "..").then_some("hash");
        daemon.get(&format!("/api/v1/torrents/{hash}")).refused(status, field);
        daemon
            .delete(&format!("/api/v1/torrents/{hash}"))
            .refused(status, field);
        daemon
            .get(&format!("/api/v1/torrents/{hash}/files"))
            .refused(status, field);
        daemon
            .post(&format!("/api/v1/torrents/{hash}/stop"), b"")
            .refused(status, field);
    }
    daemon
        .get(&format!("/api/v1/torrents/{NOBODY}"))
        .refused(404, Some("hash"));
    daemon
        .get(&format!("/api/v1/torrents/{NOBODY}/files"))
        .refused(404, Some("hash"));
    for (path, field) in [
        ("/api/v1/torrents?fields=nonsense", "fields"),
        ("/api/v1/torrents?fields=", "fields"),
        ("/api/v1/torrents?field=name", "query"),
        ("/api/v1/torrents?fields=name&fields=nonsense", "fields"),
        ("/api/v1/torrents?stopped=true&stopped=true", "stopped"),
    ] {
        daemon.get(path).refused(400, Some(field));
    }
    daemon
        .post("/api/v1/torrents?peer=localhost:1", &bytes)
        .refused(400, Some("peer"));
    daemon.post("/api/v1/torrents", b"").refused(400, Some("body"));
    daemon
        .post("/api/v1/torrents", b"d4:infod4:name1:x12:piece lengthi0eee")
        .refused(400, Some("body"));
    assert_eq!(daemon.hashes(), [""; 0]);
}

#[test]
fn the_token_is_needed_and_kept() {
    let temporary = tempfile::tempdir().unwrap();
    fs::write(temporary.path().join("c.ron"), "(api: (max_failed_logins: 1000))").unwrap();
    let mut daemon = Daemon::start_with(temporary.path(), &["--config", "c.ron"]);
    let file = temporary.path().join(".ecs_torrent/api_token");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let token = daemon.token.clone();
    assert!(
        token.len() == 64 && token.bytes().all(|c| c.is_ascii_hexdigit()),
        "{token}"
    );
    let wrong = token.chars().rev().collect::<String>();
    let (bearer, basic) = (daemon.bearer(), format!("Basic {token}"));
    for (method, path) in [
        ("GET", "/api/v1/torrents".to_owned()),
        ("POST", "/api/v1/torrents".to_owned()),
        ("GET", format!("/api/v1/torrents/{NOBODY}")),
        ("DELETE", format!("/api/v1/torrents/{NOBODY}")),
        ("GET", format!("/api/v1/torrents/{NOBODY}/files")),
        ("POST", format!("/api/v1/torrents/{NOBODY}/stop")),
        ("POST", "/api/v1/stop".to_owned()),
        ("GET", "/api/v1/events".to_owned()),
        ("GET", "/api/v1/openapi.json".to_owned()),
    ] {
        for headers in [
            [].as_slice(),
            &[("Authorization", "Bearer")],
            &[("Authorization", &format!("Bearer {wrong}"))],
            &[("Authorization", &bearer[..70])],
            &[("Authorization", &basic)],
            &[("Authorization", &bearer), ("Authorization", &bearer)],
        ] {
            let answer = daemon.ask(method, &path, headers, b"");
            answer.refused(401, Some("Authorization"));
            assert!(answer.head.contains("www-authenticate: bearer"));
        }
    }
    daemon.process.signal(rustix::process::Signal::TERM);
    daemon.process.wait();
    assert_eq!(Daemon::start(temporary.path()).token, token);
}

#[test]
fn the_api_describes_itself() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let document: Value = daemon.get("/api/v1/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
}

/// An add without a folder leaves a torrent that is known already in its own: one without metadata, a listed one, and a
/// stopped one. Folders and names that have no effect are named.
#[test]
fn a_known_torrent_keeps_its_folder() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let (hash, bytes) = torrent(temporary.path(), "one.bin", 1, &[]);
    let path = format!("/api/v1/torrents/{hash}");
    let bearer = daemon.bearer();
    let add_link = |query: &str| {
        let text = [("Authorization", bearer.as_str()), ("Content-Type", "text/plain")];
        let link = format!("magnet:?xt=urn:btih:{hash}");
        let path = format!("/api/v1/torrents{query}");
        daemon.ask("POST", &path, &text, link.as_bytes())
    };
    let chosen = temporary.path().canonicalize().unwrap().join("downloads/chosen");
    let expect_chosen = |event: &str| {
        let root = daemon.get(&format!("{path}?fields=root")).json();
        assert_eq!(root, json!({"root": chosen}), "after {event}");
    };
    assert_eq!(add_link("?into=chosen").status, 201);
    assert_eq!(add_link("").status, 200);
    expect_chosen("a second add of the link");
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 200);
    expect_chosen("an add of the torrent file");

    let again = daemon.post("/api/v1/torrents?into=other&name=two.bin", &bytes);
    let expected = json!({"info_hash": hash, "ignored": ["into", "name"]});
    assert_eq!((again.status, again.json()), (200, expected));
    let again = daemon.post("/api/v1/torrents?root=chosen&name=one.bin", &bytes);
    assert_eq!((again.status, again.json()), (200, json!({"info_hash": hash})));
    let file = temporary.path().join("one.torrent");
    fs::write(&file, &bytes).unwrap();
    let printed = succeed(temporary.path(), &["add", file.to_str().unwrap(), "--into", "other"]);
    assert!(
        printed.contains("already added in") && printed.contains("chosen"),
        "{printed}"
    );

    assert_eq!(daemon.post(&format!("{path}/stop"), b"").status, 204);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    expect_chosen("an add of the stopped torrent");
}
