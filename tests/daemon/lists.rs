//! Lists in pages, changes since an earlier list, totals, compressed and tagged answers.

use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::bed::{Daemon, succeed, torrent, wait_until};

fn names(list: &Value) -> Vec<&str> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|torrent| torrent["name"].as_str().unwrap())
        .collect()
}

/// Starts a daemon with torrents of these names.
fn start_with(folder: &std::path::Path, torrents: &[&str]) -> (Daemon, Vec<String>) {
    let daemon = Daemon::start(folder);
    let hashes = torrents.iter().zip(1..).map(|(name, seed)| {
        let (hash, bytes) = torrent(folder, name, seed, &[]);
        assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
        hash
    });
    let hashes = hashes.collect();
    (daemon, hashes)
}

#[test]
fn a_list_is_sorted_filtered_and_cut_into_pages() {
    let temporary = tempfile::tempdir().unwrap();
    let (daemon, hashes) = start_with(temporary.path(), &["bravo", "Alpha", "charlie"]);
    let page = daemon.get("/api/v1/torrents?fields=name&sort=-name&limit=2");
    assert_eq!(names(&page.json()), ["charlie", "bravo"]);
    assert!(page.head.contains("x-total-count: 3\r\n"), "{page:?}");
    let rest = daemon
        .get("/api/v1/torrents?fields=name&sort=-name&limit=2&offset=2")
        .json();
    assert_eq!(names(&rest), ["Alpha"]);
    let found = daemon.get("/api/v1/torrents?fields=name,peers&text=LPH").json();
    assert_eq!(found, json!([{"name": "Alpha", "peers": []}]));
    let found = daemon
        .get(&format!("/api/v1/torrents?fields=name&text={}", &hashes[2][..8]))
        .json();
    assert_eq!(names(&found), ["charlie"]);
    daemon.post(&format!("/api/v1/torrents/{}/pause", hashes[0]), b"");
    let paused = daemon.get("/api/v1/torrents?fields=name&state=paused,failed").json();
    assert_eq!(names(&paused), ["bravo"]);
    for (query, field) in [
        ("sort=speed", "sort"),
        ("limit=0", "limit"),
        ("offset=x", "offset"),
        ("state=stopped", "state"),
        ("error=maybe", "error"),
        ("stopped=true&sort=name", "sort"),
    ] {
        let refusal = daemon.get(&format!("/api/v1/torrents?{query}"));
        refusal.refused(400, Some(field));
        assert_eq!(refusal.json()["code"], "invalid_parameter");
    }
    let totals = daemon.get("/api/v1/totals").json();
    assert_eq!((&totals["torrents"], &totals["size"]), (&json!(3), &json!(300_000)));
    assert_eq!(totals["states"]["paused"], 1);
}

#[test]
fn a_client_gets_what_changed_and_what_went() {
    let temporary = tempfile::tempdir().unwrap();
    let (daemon, hashes) = start_with(temporary.path(), &["one", "two", "three"]);
    let settled = "/api/v1/torrents?state=downloading&fields=name";
    wait_until("downloads", || {
        daemon.get(settled).json().as_array().unwrap().len() == 3
    });
    let first = daemon.get("/api/v1/sync?fields=state,name").json();
    assert_eq!((&first["reset"], &first["has_more"]), (&json!(true), &json!(false)));
    assert_eq!(first["torrents"].as_array().unwrap().len(), 3);
    assert_eq!(first["totals"], daemon.get("/api/v1/totals").json());
    let sync = |since: &Value| {
        let since = since["revision"].as_str().unwrap();
        daemon.get(&format!("/api/v1/sync?since={since}&fields=state")).json()
    };
    let nothing = sync(&first);
    let nothing_at_all = json!({
        "revision": first["revision"], "reset": false, "has_more": false, "removed": [], "torrents": [],
        "totals": first["totals"],
    });
    assert_eq!(nothing, nothing_at_all);

    daemon.post(&format!("/api/v1/torrents/{}/pause", hashes[1]), b"");
    daemon.delete(&format!("/api/v1/torrents/{}", hashes[0]));
    let next = sync(&nothing);
    assert_eq!(next["removed"], json!([hashes[0]]));
    assert_eq!(next["torrents"], json!([{"info_hash": hashes[1], "state": "paused"}]));
    assert_eq!(
        (&next["reset"], &next["totals"]["torrents"]),
        (&json!(false), &json!(2))
    );

    let part = daemon.get("/api/v1/sync?limit=1&fields=name").json();
    assert_eq!(
        (&part["has_more"], part["torrents"].as_array().unwrap().len()),
        (&json!(true), 1)
    );
    let rest = sync(&part);
    assert_eq!(
        (&rest["has_more"], rest["torrents"].as_array().unwrap().len()),
        (&json!(false), 1)
    );
    for bad in ["", "x", "1", "1-x"] {
        daemon
            .get(&format!("/api/v1/sync?since={bad}"))
            .refused(400, Some("since"));
    }
    // A revision of another run of the daemon is no error.
    assert_eq!(daemon.get("/api/v1/sync?since=1-2").json()["reset"], json!(true));
}

#[test]
fn an_answer_that_the_client_has_is_not_sent_again() {
    let temporary = tempfile::tempdir().unwrap();
    let (daemon, hashes) = start_with(temporary.path(), &["one"]);
    for path in [
        "/api/v1/openapi.json".to_owned(),
        "/api/v1/torrents?fields=name".to_owned(),
        format!("/api/v1/torrents/{}?fields=name", hashes[0]),
    ] {
        let whole = daemon.get(&path);
        let tag = whole.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
        let tag = tag.replace("w/", "W/");
        let ask = |tag: &str| {
            let headers = [("Authorization", &*daemon.bearer()), ("If-None-Match", tag)];
            daemon.ask("GET", &path, &headers, b"")
        };
        let same = ask(&tag);
        assert_eq!((same.status, &*same.body), (304, ""), "{path}");
        assert_eq!(ask("\"other\", W/\"third\"").status, 200);
        assert_eq!(ask(&format!("\"other\", {tag}")).status, 304);
    }
}

#[test]
fn answers_are_compressed_for_clients_that_accept_it() {
    let temporary = tempfile::tempdir().unwrap();
    let (daemon, _) = start_with(temporary.path(), &["one", "two"]);
    for path in ["/api/v1/openapi.json", "/api/v1/torrents?fields=all", "/api/v1/sync"] {
        let whole = daemon.get(path);
        let headers = [("Authorization", &*daemon.bearer()), ("Accept-Encoding", "br, gzip")];
        let mut stream = daemon.connect();
        stream.write_all(&daemon.head("GET", path, &headers, b"")).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        assert!(head.contains("content-encoding: gzip"), "{head}");
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        let mut packed = Vec::new();
        let mut rest = &bytes[end..];
        loop {
            let line = rest.windows(2).position(|window| window == b"\r\n").unwrap();
            let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
            if length == 0 {
                break;
            }
            packed.extend_from_slice(&rest[line + 2..line + 2 + length]);
            rest = &rest[line + 2 + length + 2..];
        }
        let mut unpacked = String::new();
        flate2::read::GzDecoder::new(&*packed)
            .read_to_string(&mut unpacked)
            .unwrap();
        let json: Value = serde_json::from_str(&unpacked).unwrap();
        if path.contains("openapi") {
            assert_eq!(json, whole.json());
            assert!(packed.len() * 4 < unpacked.len());
        }
    }
}

/// A client can stop the daemon; its torrents come back with the next start.
#[test]
fn a_client_stops_the_daemon() {
    let temporary = tempfile::tempdir().unwrap();
    let (mut daemon, hashes) = start_with(temporary.path(), &["one"]);
    daemon.get("/api/v1/shutdown").refused(405, None);
    let answer = daemon.post("/api/v1/shutdown", b"");
    assert_eq!((answer.status, answer.json()), (202, json!({"status": "stopping"})));
    assert!(daemon.process.wait().success());
    let mut daemon = Daemon::start(temporary.path());
    assert_eq!(daemon.hashes(), hashes);
    assert_eq!(succeed(temporary.path(), &["shutdown"]), "the daemon is stopping\n");
    assert!(daemon.process.wait().success());
}

/// The order of the list outlasts restarts, also for torrents that were added in the same second.
#[test]
fn the_order_of_the_list_outlasts_restarts() {
    let temporary = tempfile::tempdir().unwrap();
    let (daemon, hashes) = start_with(temporary.path(), &["1", "2", "3", "4", "5", "6", "7", "8"]);
    assert_eq!(daemon.hashes(), hashes);
    assert_eq!(daemon.kill_and_start().hashes(), hashes);
}

/// A stopped torrent is no unknown one.
#[test]
fn a_stopped_torrent_is_called_stopped() {
    let temporary = tempfile::tempdir().unwrap();
    let (daemon, hashes) = start_with(temporary.path(), &["one"]);
    let path = format!("/api/v1/torrents/{}", hashes[0]);
    assert_eq!(daemon.post(&format!("{path}/stop"), b"").status, 204);
    for answer in [
        daemon.get(&path),
        daemon.get(&format!("{path}/files")),
        daemon.get(&format!("{path}/peers")),
        daemon.post(&format!("{path}/pause"), b""),
        daemon.post(&format!("{path}/announce"), b""),
    ] {
        answer.refused(404, Some("hash"));
        let answer = answer.json();
        assert_eq!(answer["code"], "torrent_stopped");
        let text = answer["error"].as_str().unwrap();
        assert!(
            text.starts_with("one is stopped; ") && text.contains(&format!("{path}/resume")),
            "{text}"
        );
    }
    let unknown = daemon.get(&format!("/api/v1/torrents/{}", "0".repeat(40)));
    unknown.refused(404, Some("hash"));
    assert_eq!(unknown.json()["code"], "torrent_not_found");
    assert_eq!(daemon.post(&format!("{path}/resume"), b"").status, 204);
    assert_eq!(daemon.get(&path).status, 200);
}
