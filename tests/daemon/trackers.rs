//! Trackers of a torrent are listed, edited and announced to, by the API and by the commands.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::{Answer, Daemon, fail, succeed, torrent, wait_until};

/// Starts a tracker that names no peers. Returns its announce URL, which contains a passkey, and the event of each
/// announce.
fn tracker() -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/passkey-0123456789/announce", listener.local_addr().unwrap());
    let (sender, events) = channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let body = "d8:completei3e10:incompletei4e8:intervali1800e12:min intervali600e5:peers0:e";
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
            let query = line.split(['?', ' ']).nth(2).unwrap_or_default();
            let event = query.split('&').find_map(|part| part.strip_prefix("event="));
            if sender.send(event.unwrap_or("none").to_owned()).is_err() {
                break;
            }
        }
    });
    (url, events)
}

/// Waits for an announce, and returns its event.
fn next(events: &Receiver<String>) -> String {
    events.recv_timeout(Duration::from_secs(30)).unwrap()
}

/// The URL as it is listed.
fn listed(url: &str) -> &str {
    url.split("/passkey").next().unwrap()
}

fn urls(daemon: &Daemon, hash: &str) -> Vec<String> {
    let trackers = daemon.get(&format!("/api/v1/torrents/{hash}/trackers")).json();
    let urls = trackers
        .as_array()
        .unwrap()
        .iter()
        .map(|tracker| tracker["url"].as_str());
    urls.map(|url| url.unwrap().to_owned()).collect()
}

fn patch(daemon: &Daemon, hash: &str, body: &Value) -> Answer {
    let bearer = daemon.bearer();
    let headers = [("Authorization", &*bearer), ("Content-Type", "application/json")];
    let path = format!("/api/v1/torrents/{hash}/trackers");
    daemon.ask("PATCH", &path, &headers, body.to_string().as_bytes())
}

/// An edit is in force at once, survives a kill, and shows no passkey.
#[test]
fn trackers_are_edited_and_announced_to() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let [(old, old_events), (new, new_events)] = [tracker(), tracker()];
    let (hash, bytes) = torrent(folder, "song", 1, &[&old]);
    let daemon = Daemon::start(folder);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    assert_eq!(next(&old_events), "started");

    let table = succeed(folder, &["trackers", &hash, "--remove", listed(&old), "--add", &new]);
    assert!(table.contains(listed(&new)) && !table.contains(listed(&old)), "{table}");
    assert!(!table.contains("passkey"), "{table}");
    assert_eq!((&*next(&old_events), &*next(&new_events)), ("stopped", "started"));
    let daemon = daemon.kill_and_start();
    assert_eq!(next(&new_events), "started");
    assert_eq!(urls(&daemon, &hash), [listed(&new)]);

    let path = format!("/api/v1/torrents/{hash}/trackers");
    wait_until("an answer", || daemon.get(&path).json()[0]["status"] == "working");
    let mut tracker = daemon.get(&path).json()[0].take();
    // It needs peers, so it does not wait for the end of the interval.
    let next_announce = tracker["next_announce_seconds"].take().as_u64().unwrap();
    assert!((500..=600).contains(&next_announce), "{next_announce}");
    assert_eq!(
        tracker,
        json!({
            "url": listed(&new), "tier": 0, "status": "working", "message": null, "seeders": 3, "leechers": 4,
            "completed": null, "peers": 0, "next_announce_seconds": null, "failures": 0
        })
    );
    // The tracker requires ten minutes between announces.
    let announced = daemon.post(&format!("/api/v1/torrents/{hash}/announce"), b"").json();
    let wait = announced["in_seconds"].as_u64().unwrap();
    assert!((500..=600).contains(&wait), "{wait}");
    let text = succeed(folder, &["trackers", &hash, "--announce"]);
    assert!(text.contains("announcing in ") && text.contains("working"), "{text}");
    assert_eq!(patch(&daemon, &hash, &json!({"remove": [new], "add": []})).status, 204);
    assert_eq!(next(&new_events), "stopped");
    assert_eq!(succeed(folder, &["trackers", &hash]).trim(), "no trackers");
    daemon
        .post(&format!("/api/v1/torrents/{hash}/announce"), b"")
        .refused(409, None);
}

/// Every mistake in an edit is named, and nothing is changed.
#[test]
fn useless_edits_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = torrent(folder, "song", 1, &["http://127.0.0.1:9/key"]);
    let daemon = Daemon::start(folder);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    assert_eq!(daemon.post(&format!("/api/v1/torrents/{hash}/pause"), b"").status, 204);
    let good = "http://127.0.0.1:8/";
    for (body, field) in [
        (json!({"add": ["x"]}), "add"),
        (json!({"add": [good, "udp://127.0.0.1/"]}), "add"),
        (json!({"add": ["file:///etc/passwd"]}), "add"),
        (
            json!({"add": vec![good; 1], "remove": ["http://127.0.0.1:7"]}),
            "remove",
        ),
        (
            json!({"add": (0..257).map(|number| format!("{good}{number}")).collect::<Vec<_>>()}),
            "add",
        ),
        (json!({"add": good}), "add"),
        (json!({"ad": [good]}), "ad"),
        (json!([]), "body"),
    ] {
        patch(&daemon, &hash, &body).refused(400, Some(field));
    }
    patch(&daemon, &"0".repeat(40), &json!({"add": [good]})).refused(404, Some("hash"));
    daemon
        .post(&format!("/api/v1/torrents/{hash}/announce"), b"")
        .refused(409, None);
    assert_eq!(urls(&daemon, &hash), ["http://127.0.0.1:9"]);
    let error = fail(folder, &["trackers", &hash, "--remove", good]);
    assert!(error.contains("has no tracker http://127.0.0.1:8"), "{error}");
}

/// A text that several trackers have removes none of them. The list shows paths that contain no passkey.
#[test]
fn an_ambiguous_tracker_is_not_removed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let host = "http://127.0.0.1:9";
    let trackers =
        ["/announce", "/0123456789/announce", "/announce?key=0123456789"].map(|path| format!("{host}{path}"));
    let (hash, bytes) = torrent(folder, "song", 1, &trackers.each_ref().map(String::as_str));
    let daemon = Daemon::start(folder);
    assert_eq!(daemon.post("/api/v1/torrents?paused=true", &bytes).status, 201);
    let usual = format!("{host}/announce");
    assert_eq!(urls(&daemon, &hash), [&*usual, host, &*usual]);
    let error = fail(folder, &["trackers", &hash, "--remove", host]);
    assert!(
        error.contains("song has 3 trackers") && error.contains("the whole URL"),
        "{error}"
    );
    patch(&daemon, &hash, &json!({"remove": [host]})).refused(400, Some("remove"));
    assert_eq!(urls(&daemon, &hash).len(), 3);
    // A whole URL names one of them, even if another one is listed like that.
    succeed(folder, &["trackers", &hash, "--remove", &usual]);
    assert_eq!(urls(&daemon, &hash), [host, &*usual]);
    succeed(folder, &["trackers", &hash, "--remove", &usual]);
    assert_eq!(urls(&daemon, &hash), [host]);
    succeed(folder, &["trackers", &hash, "--remove", host]);
    assert_eq!(urls(&daemon, &hash), [""; 0]);
    let error = fail(folder, &["trackers", &hash, "--add", "tracker.example"]);
    assert!(error.contains("tracker.example"), "{error}");
}
