//! The forms in which torrents are added.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::bed::{Answer, Daemon, fail, succeed, torrent, wait_until};

fn add(daemon: &Daemon, kind: &str, query: &str, body: &[u8]) -> Answer {
    let bearer = daemon.bearer();
    let headers = [("Authorization", &*bearer), ("Content-Type", kind)];
    daemon.ask("POST", &format!("/api/v1/torrents{query}"), &headers, body)
}

/// Builds a form of these parts.
fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, content) in parts {
        body.extend(format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n").bytes());
        body.extend_from_slice(content);
        body.extend(b"\r\n");
    }
    body.extend(b"--XX--\r\n");
    body
}

const FORM: &str = "multipart/form-data; boundary=XX";

#[test]
fn torrents_are_added_in_every_form() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let torrents = [1, 2, 3].map(|seed| torrent(folder, &format!("{seed}.bin"), seed, &[]));
    let root = |hash: &str| {
        let stats = daemon.get(&format!("/api/v1/torrents/{hash}?fields=root")).json();
        stats["root"].as_str().unwrap().to_owned()
    };
    let (hash, bytes) = &torrents[0];
    let added = add(&daemon, "application/octet-stream", "?into=a", bytes);
    assert_eq!((added.status, added.json()), (201, json!({"info_hash": hash})));
    assert!(root(hash).ends_with("/downloads/a"));

    let (hash, bytes) = &torrents[1];
    let json = json!({"torrent": BASE64.encode(bytes), "into": "b", "peer": ["127.0.0.1:1"], "overwrite": false});
    let added = add(&daemon, "application/json", "", json.to_string().as_bytes());
    assert_eq!((added.status, added.json()), (201, json!({"info_hash": hash})));
    assert!(root(hash).ends_with("/downloads/b"));
    let again = add(
        &daemon,
        "application/json; charset=utf-8",
        "",
        json.to_string().as_bytes(),
    );
    assert_eq!((again.status, again.json()), (200, json!({"info_hash": hash})));

    // Generated clients send some options twice.
    let json = json!({"torrent": BASE64.encode(bytes), "overwrite": false, "sequential": true});
    let query = "?overwrite=false&sequential=true";
    let again = add(&daemon, "application/json", query, json.to_string().as_bytes());
    assert_eq!((again.status, again.json()), (200, json!({"info_hash": hash})));
    add(
        &daemon,
        "application/json",
        "?overwrite=true",
        json.to_string().as_bytes(),
    )
    .refused(400, Some("overwrite"));

    let (hash, bytes) = &torrents[2];
    let body = form(&[("into", b"c"), ("torrent", bytes), ("select", b"*"), ("select", b"x*")]);
    let added = add(&daemon, FORM, "", &body);
    assert_eq!((added.status, added.json()), (201, json!({"info_hash": hash})));
    assert!(root(hash).ends_with("/downloads/c"));

    let link = |digit: &str| format!("magnet:?xt=urn:btih:{}", digit.repeat(40));
    let json = json!({"magnet": link("a")}).to_string();
    assert_eq!(add(&daemon, "application/json", "", json.as_bytes()).status, 201);
    assert_eq!(
        add(&daemon, FORM, "", &form(&[("magnet", link("b").as_bytes())])).status,
        201
    );
    assert_eq!(daemon.hashes().len(), 5);
}

#[test]
fn bad_bodies_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let (_, bytes) = torrent(temporary.path(), "one.bin", 1, &[]);
    let encoded = BASE64.encode(&bytes);
    let two_sources = json!({
        "torrent": encoded, "magnet": "magnet:?xt=urn:btih:0000000000000000000000000000000000000001",
    });
    let bodies: [(Value, &str); 10] = [
        (json!({}), "body"),
        (json!([]), "body"),
        (json!({"url": 5}), "url"),
        (json!({"torrent": "%"}), "torrent"),
        (json!({"torrent": "ZGU="}), "body"),
        (two_sources, "body"),
        (json!({"torrent": encoded, "name": 5}), "name"),
        (json!({"torrent": encoded, "peer": [5]}), "peer"),
        (json!({"torrent": encoded, "select": {}}), "select"),
        (json!({"magnet": "magnet:?x"}), "body"),
    ];
    for (body, field) in bodies {
        let refusal = add(&daemon, "application/json", "", body.to_string().as_bytes());
        refusal.refused(400, Some(field));
        assert_eq!(refusal.json()["code"], "invalid_body", "{body}");
    }
    let twice = json!({"torrent": encoded, "into": "a"}).to_string();
    add(&daemon, "application/json", "?into=b", twice.as_bytes()).refused(400, Some("into"));
    let up = json!({"torrent": encoded, "into": "../a"}).to_string();
    add(&daemon, "application/json", "", up.as_bytes()).refused(400, Some("into"));
    add(&daemon, "application/json", "", b"{").refused(400, Some("body"));

    for (body, field) in [
        (form(&[]), "body"),
        (form(&[("torrent", b"x")]), "body"),
        (form(&[("torrent", &bytes), ("color", b"red")]), "color"),
        (form(&[("into", b"a"), ("into", b"b"), ("torrent", &bytes)]), "into"),
        (b"--XX".to_vec(), "body"),
        (b"".to_vec(), "body"),
    ] {
        add(&daemon, FORM, "", &body).refused(400, Some(field));
    }
    let many: Vec<(&str, &[u8])> = vec![("select", b"*"); 2000];
    add(&daemon, FORM, "", &form(&many)).refused(400, Some("body"));
    add(&daemon, "multipart/form-data", "", &form(&[])).refused(400, Some("Content-Type"));
    add(&daemon, "text/html", "", b"").refused(415, Some("Content-Type"));
    assert_eq!(daemon.hashes(), [""; 0]);
}

/// If two clients add the same torrent at the same time, exactly one of them gets the answer that it is new.
#[test]
fn a_torrent_is_new_once() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let torrents: Vec<_> = (0..4)
        .map(|seed| torrent(temporary.path(), &format!("{seed}.bin"), seed, &[]).1)
        .collect();
    for bytes in torrents {
        let mut statuses: Vec<u16> = std::thread::scope(|scope| {
            let adds: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| daemon.post("/api/v1/torrents", &bytes).status))
                .collect();
            adds.into_iter().map(|add| add.join().unwrap()).collect()
        });
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 200, 201]);
    }
}

/// A torrent is added as paused and with a place. Another add names the options without an effect, and gives it labels.
#[test]
fn torrents_are_added_as_paused_and_with_a_place() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let (first, bytes) = torrent(folder, "first", 1, &[]);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    for (query, field) in [("queue=0", "queue"), ("queue=up", "queue"), ("paused=maybe", "paused")] {
        let refused = daemon.post(&format!("/api/v1/torrents?{query}"), &bytes);
        refused.refused(400, Some(field));
    }
    let (second, bytes) = torrent(folder, "second one", 2, &[]);
    let file = folder.join("second.torrent");
    fs::write(&file, bytes).unwrap();
    let file = file.to_str().unwrap();
    succeed(folder, &["add", file, "--paused", "--queue", "top"]);
    let state = |daemon: &Daemon| {
        let list = daemon
            .get("/api/v1/torrents?sort=queue.order&fields=info_hash,state")
            .json();
        let torrents = list.as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        torrents
            .map(|torrent| (text(&torrent["info_hash"]), text(&torrent["state"])))
            .collect::<Vec<_>>()
    };
    let expected = [(second.clone(), "paused".to_owned()), (first, "downloading".to_owned())];
    wait_until("the first one runs", || state(&daemon) == expected);
    let daemon = daemon.kill_and_start();
    wait_until("the first one runs again", || state(&daemon) == expected);
    let again = succeed(folder, &["add", file, "--queue", "bottom", "--label", "new"]);
    let kept = "was already added; it keeps its own settings: no effect of queue";
    assert_eq!(again, format!("{second} second one {kept}\n"));
    assert_eq!(state(&daemon), expected);
    let labels = daemon.get(&format!("/api/v1/torrents/{second}?fields=labels")).json();
    assert_eq!(labels, json!({"labels": ["new"]}));
}

/// Commands take names and short prefixes of info-hashes; an ambiguous name is refused with the torrents that it could
/// mean.
#[test]
fn commands_take_the_names_of_torrents() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let add = |name: &str, seed: u64| {
        let (hash, bytes) = torrent(folder, name, seed, &[]);
        assert_eq!(
            daemon
                .post(&format!("/api/v1/torrents?paused=true&into={seed}"), &bytes)
                .status,
            201
        );
        hash
    };
    let (plain, one, other) = (add("a plain name", 1), add("twice", 2), add("twice", 3));
    // A name that is also the beginning of an info-hash.
    let hex = add(&plain[..6], 4);
    for name in ["a plain name", &plain[..4], &plain.to_uppercase()] {
        let stats = succeed(folder, &["stats", name, "--fields", "info_hash", "--json"]);
        assert_eq!(
            serde_json::from_str::<Value>(&stats).unwrap(),
            json!({"info_hash": plain})
        );
    }
    for (name, expected) in [("twice", [&one, &other]), (&plain[..6], [&plain, &hex])] {
        for arguments in [
            &["start"][..],
            &["stop"],
            &["files"],
            &["queue"],
            &["label"],
            &["peers"],
            &["recheck"],
        ] {
            let refused = fail(folder, &[arguments, &[name]].concat());
            assert!(refused.starts_with(&format!("error: {name} is ambiguous")), "{refused}");
            assert!(
                expected.iter().all(|hash| refused.contains(*hash)) && refused.lines().count() == 1,
                "{refused}"
            );
        }
    }
    succeed(folder, &["stop", "a plain name"]);
    let stopped = fail(folder, &["stats", "a plain name"]);
    assert!(stopped.contains("`ecs-torrent resume"), "{stopped}");
    succeed(folder, &["resume", "a plain name"]);
    succeed(folder, &["remove", "a plain name"]);
    assert_eq!(daemon.hashes().len(), 3);
}

/// Serves answers on loopback: each path has its head and body. Returns its address. The server ends with the process.
fn serve(answers: Vec<(&'static str, String, Vec<u8>)>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap() == 0 {
                    break;
                }
                request.push(byte[0]);
            }
            let line = String::from_utf8_lossy(&request).into_owned();
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            let Some((_, head, body)) = answers.iter().find(|(known, ..)| *known == path) else {
                continue;
            };
            let length = body.len();
            let head = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    address
}

/// From an allowed network, and by redirection to a magnet link; nothing else.
#[test]
fn torrents_are_added_by_url() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    fs::write(
        folder.join("c.ron"),
        "(api: (fetch_from: [\"127.0.0.0/8\"], max_body_bytes: 100000))",
    )
    .unwrap();
    let daemon = Daemon::start_with(folder, &["--config", "c.ron"]);
    let (hash, bytes) = torrent(folder, "1.bin", 1, &[]);
    let (second, more) = torrent(folder, "2.bin", 2, &[]);
    let link = "00000000000000000000000000000000000000aa";
    let to = |location: &str| format!("302 Found\r\nLocation: {location}");
    let address = serve(vec![
        ("/1.torrent", "200 OK".into(), bytes),
        ("/2.torrent?passkey=secret", "200 OK".into(), more),
        ("/moved", to("/1.torrent"), Vec::new()),
        ("/link", to(&format!("magnet:?xt=urn:btih:{link}")), Vec::new()),
        ("/inward", to("http://10.255.255.1/1.torrent"), Vec::new()),
        ("/loop", to("/loop"), Vec::new()),
        ("/elsewhere", to("ftp://127.0.0.1/1.torrent"), Vec::new()),
        ("/page", "200 OK".into(), b"<html>".to_vec()),
        ("/huge", "200 OK".into(), vec![b'x'; 100_001]),
        ("/gone?passkey=secret", "404 Not Found".into(), Vec::new()),
    ]);
    let url = |path: &str| format!("http://{address}{path}");
    let by_json = |path: &str| {
        let body = json!({"url": url(path), "paused": true}).to_string();
        add(&daemon, "application/json", "", body.as_bytes())
    };
    let answer = by_json("/moved");
    assert_eq!(
        (answer.status, &answer.json()["info_hash"]),
        (201, &json!(hash)),
        "{}",
        answer.body
    );
    assert_eq!(by_json("/1.torrent").status, 200, "it is listed");
    let answer = add(&daemon, FORM, "", &form(&[("url", url("/link").as_bytes())]));
    assert_eq!(
        (answer.status, &answer.json()["info_hash"]),
        (201, &json!(link)),
        "{}",
        answer.body
    );
    let output = succeed(folder, &["add", &url("/2.torrent?passkey=secret")]);
    assert!(output.contains(&second) && !output.contains("secret"), "{output}");

    for (path, status, field, why) in [
        ("/inward", 403, "url", "10.255.255.1"),
        ("/loop", 502, "url", "redirect"),
        ("/elsewhere", 502, "url", ""),
        ("/page", 400, "body", ""),
        ("/huge", 502, "url", "api.max_body_bytes"),
        ("/gone?passkey=secret", 502, "url", "404"),
        ("/nothing", 502, "url", ""),
    ] {
        let answer = by_json(path);
        answer.refused(status, Some(field));
        assert!(
            answer.body.contains(why) && !answer.body.contains("secret"),
            "{path}: {}",
            answer.body
        );
    }
    let both = json!({"url": url("/1.torrent"), "magnet": format!("magnet:?xt=urn:btih:{link}")}).to_string();
    add(&daemon, "application/json", "", both.as_bytes()).refused(400, Some("body"));
    assert_eq!(daemon.hashes().len(), 3);
}
