//! Events: ids, dates, replay, snapshots, and the meaning of each event.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::bed::{Daemon, torrent};

/// An event as a client receives it.
#[derive(Debug)]
struct Received {
    id: String,
    name: String,
    data: Value,
}

struct Stream(BufReader<TcpStream>);

impl Stream {
    fn open(daemon: &Daemon, path: &str, last: Option<&str>) -> Self {
        let bearer = daemon.bearer();
        let mut headers = vec![("Authorization", &*bearer)];
        headers.extend(last.map(|last| ("Last-Event-ID", last)));
        let mut stream = daemon.connect();
        stream.write_all(&daemon.head("GET", path, &headers, b"")).unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert!(line.contains(" 200 "), "{line}");
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
        Self(reader)
    }

    fn next(&mut self) -> Received {
        let mut received = Received {
            id: String::new(),
            name: String::new(),
            data: Value::Null,
        };
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the stream has ended");
            if let Some(id) = line.strip_prefix("id: ") {
                id.trim().clone_into(&mut received.id);
            } else if let Some(name) = line.strip_prefix("event: ") {
                name.trim().clone_into(&mut received.name);
            } else if let Some(data) = line.strip_prefix("data: ") {
                received.data = serde_json::from_str(data).unwrap();
            } else if line == "\n" && !received.name.is_empty() {
                return received;
            }
        }
    }

    /// Reads until an event with this name.
    fn wait_for(&mut self, name: &str) -> Received {
        loop {
            let event = self.next();
            if event.name == name {
                return event;
            }
        }
    }
}

#[test]
fn a_client_that_reconnects_gets_what_it_missed() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let (first, bytes) = torrent(temporary.path(), "one.bin", 1, &[]);
    let (second, other_bytes) = torrent(temporary.path(), "two.bin", 2, &[]);
    daemon.post("/api/v1/torrents", &bytes);

    let mut stream = Stream::open(&daemon, "/api/v1/events", None);
    let snapshot = stream.next();
    assert_eq!(snapshot.name, "snapshot");
    let torrents = snapshot.data["torrents"].as_array().unwrap();
    assert_eq!((torrents.len(), &torrents[0]["info_hash"]), (1, &json!(first)));
    // Deltas continue where the snapshot ends.
    let revision = snapshot.data["revision"].as_str().unwrap();
    let sync = daemon.get(&format!("/api/v1/sync?since={revision}")).json();
    assert_eq!(sync["reset"], json!(false));

    daemon.post("/api/v1/torrents", &other_bytes);
    let seen = stream.wait_for("added");
    assert!(seen.data["at"].as_f64().unwrap() > 1e9 && seen.data["info_hash"] == json!(second));
    drop(stream);
    daemon.post(&format!("/api/v1/torrents/{first}/pause"), b"");
    daemon.post(&format!("/api/v1/torrents/{second}/stop"), b"");
    daemon.delete(&format!("/api/v1/torrents/{first}"));

    let mut again = Stream::open(&daemon, "/api/v1/events", Some(&seen.id));
    let mut events = vec![again.next()];
    while events.last().unwrap().name != "removed" {
        events.push(again.next());
    }
    let of = |event: &Received| (event.name.clone(), event.data["info_hash"].clone());
    let reported: Vec<_> = events.iter().map(of).collect();
    let expected = [("paused", &first), ("stopped", &second), ("removed", &first)];
    for (name, hash) in expected {
        assert!(
            reported.contains(&(name.to_owned(), json!(hash))),
            "{name}: {reported:?}"
        );
    }
    assert!(
        !reported.contains(&("stopped".to_owned(), json!(first))),
        "{reported:?}"
    );
    assert!(!reported.contains(&("added".to_owned(), json!(second))), "{reported:?}");
    let mut rest = Stream::open(&daemon, "/api/v1/events", Some(&events[0].id));
    assert_eq!(rest.next().id, events[1].id);
}

#[test]
fn a_client_learns_that_events_are_missing() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let mut stream = Stream::open(&daemon, "/api/v1/events", Some("1-5"));
    let missed = stream.next();
    assert_eq!((&*missed.name, &missed.data["count"]), ("missed", &Value::Null));
    assert_eq!(stream.next().name, "snapshot");

    let (hash, bytes) = torrent(temporary.path(), "one.bin", 1, &[]);
    let mut stream = Stream::open(&daemon, "/api/v1/events?snapshot=false", None);
    daemon.post("/api/v1/torrents", &bytes);
    let event = stream.next();
    assert_eq!((&*event.name, &event.data["info_hash"]), ("added", &json!(hash)));
    let bearer = daemon.bearer();
    let headers = [("Authorization", &*bearer), ("Last-Event-ID", "x")];
    daemon
        .ask("GET", "/api/v1/events", &headers, b"")
        .refused(400, Some("Last-Event-ID"));
    daemon.get("/api/v1/events?since=1").refused(400, Some("query"));
}

/// A torrent that is complete from the start is reported as such; one that is downloaded is reported as completed.
#[test]
fn complete_from_the_start_is_not_completed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
    fs::create_dir_all(folder.join("seeder/downloads")).unwrap();
    fs::copy(folder.join("one.bin"), folder.join("seeder/downloads/one.bin")).unwrap();
    let seeder = Daemon::start(&folder.join("seeder"));
    let mut seeding = Stream::open(&seeder, "/api/v1/events", None);
    seeder.post("/api/v1/torrents", &bytes);
    let names: Vec<String> = (0..4).map(|_| seeding.next().name).collect();
    assert_eq!(names, ["snapshot", "added", "started", "already_complete"]);

    let daemon = Daemon::start(folder);
    let mut events = Stream::open(&daemon, "/api/v1/events", None);
    daemon.post(&format!("/api/v1/torrents?peer={}", seeder.peers), &bytes);
    let mut names = vec![events.next().name];
    while names.last().unwrap() != "completed" {
        names.push(events.next().name);
    }
    assert!(!names.contains(&"already_complete".to_owned()), "{names:?}");
    daemon.post(&format!("/api/v1/torrents/{hash}/pause"), b"");
    daemon.post(&format!("/api/v1/torrents/{hash}/start"), b"");
    let again = [events.wait_for("started").name, events.next().name];
    assert_eq!(again, ["started", "already_complete"]);
}
