//! The forms in which torrents are added.

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::bed::{Answer, Daemon, torrent};

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
    let bodies: [Value; 10] = [
        json!({}),
        json!([]),
        json!({"url": "http://127.0.0.1/x.torrent"}),
        json!({"torrent": "%"}),
        json!({"torrent": "ZGU="}),
        json!({"torrent": encoded, "magnet": "magnet:?xt=urn:btih:0000000000000000000000000000000000000001"}),
        json!({"torrent": encoded, "name": 5}),
        json!({"torrent": encoded, "peer": [5]}),
        json!({"torrent": encoded, "select": {}}),
        json!({"magnet": "magnet:?x"}),
    ];
    for body in bodies {
        let refusal = add(&daemon, "application/json", "", body.to_string().as_bytes());
        refusal.refused(400, Some("body"));
        assert_eq!(refusal.json()["code"], "invalid_body", "{body}");
    }
    let twice = json!({"torrent": encoded, "into": "a"}).to_string();
    add(&daemon, "application/json", "?into=b", twice.as_bytes()).refused(400, Some("body"));
    let up = json!({"torrent": encoded, "into": "../a"}).to_string();
    add(&daemon, "application/json", "", up.as_bytes()).refused(400, Some("into"));
    add(&daemon, "application/json", "", b"{").refused(400, Some("body"));

    for body in [
        form(&[]),
        form(&[("torrent", b"x")]),
        form(&[("torrent", &bytes), ("color", b"red")]),
        form(&[("into", b"a"), ("into", b"b"), ("torrent", &bytes)]),
        b"--XX".to_vec(),
        b"".to_vec(),
    ] {
        add(&daemon, FORM, "", &body).refused(400, Some("body"));
    }
    let many: Vec<(&str, &[u8])> = vec![("select", b"*"); 2000];
    add(&daemon, FORM, "", &form(&many)).refused(400, Some("body"));
    add(&daemon, "multipart/form-data", "", &form(&[])).refused(400, Some("Content-Type"));
    add(&daemon, "text/html", "", b"").refused(415, Some("Content-Type"));
    assert_eq!(daemon.hashes(), [""; 0]);
}

/// Of two clients that add the same torrent at the same time, one is answered that it is new.
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
