//! Files and folders of torrents are renamed, by the API and by the command, and through kills.

use std::fs;
use std::path::Path;
use std::time::Duration;

use ecs_torrent::making::MakeOptions;
use serde_json::{Value, json};

use crate::bed::{Answer, Daemon, fail, fail_with, succeed, torrent, wait_until, write_album, write_album_of};
use crate::content::{compare, noise};
use crate::moving::download;

fn rename(daemon: &Daemon, hash: &str, body: &Value) -> Answer {
    daemon.post_json(&format!("/api/v1/torrents/{hash}/rename"), body)
}

fn paths(daemon: &Daemon, hash: &str) -> Vec<String> {
    let files = daemon.get(&format!("/api/v1/torrents/{hash}/files")).json();
    let files = files.as_array().unwrap().iter();
    files.map(|file| file["path"].as_str().unwrap().to_owned()).collect()
}

/// Waits until all of a torrent of the album's size is seeded again. Nothing is hashed again.
fn wait_seeding(daemon: &Daemon, hash: &str, completed: u64) {
    wait_until("a seed", || {
        let stats = daemon.get(&format!("/api/v1/torrents/{hash}?fields=state,completed"));
        stats.json() == json!({"state": "seeding", "completed": completed})
    });
}

#[test]
fn files_and_folders_get_new_names() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().canonicalize().unwrap();
    let source = tempfile::tempdir().unwrap();
    let (hash, bytes) = write_album(&source.path().join("downloads"));
    let mut daemon = Daemon::start(&folder);
    download(&daemon, source.path(), &bytes);
    let whole = source.path().join("downloads/album");
    let root = folder.join("downloads");
    let before = paths(&daemon, &hash);

    let answer = rename(&daemon, &hash, &json!({"name": "My album"}));
    assert_eq!(answer.json(), json!({"root": root, "kept": [], "kept_count": 0}));
    assert_eq!(compare(&whole, &root.join("My album")), Ok(()));
    assert!(!root.join("album").exists(), "nothing is left");
    let stats = daemon.get(&format!("/api/v1/torrents/{hash}?fields=name")).json();
    assert_eq!(stats, json!({"name": "My album"}));
    let expected: Vec<String> = before
        .iter()
        .map(|path| path.replacen("album", "My album", 1))
        .collect();
    assert_eq!(paths(&daemon, &hash), expected);

    let last = before.len() - 1;
    let file = format!("{last}=extras/deep/last.bin");
    let printed = succeed(&folder, &["rename", "My album", "--file", &file]);
    assert_eq!(printed, format!("renamed 1 file of {hash} My album\n"));
    let renamed = root.join("My album/extras/deep/last.bin");
    let original = source.path().join("downloads").join(&before[last]);
    assert_eq!(fs::read(&renamed).unwrap(), fs::read(original).unwrap());
    assert!(!root.join(&expected[last]).exists());
    for _ in 0..2 {
        wait_seeding(&daemon, &hash, 400_000);
        assert_eq!(paths(&daemon, &hash)[last], "My album/extras/deep/last.bin");
        assert_eq!(paths(&daemon, &hash)[..last], expected[..last]);
        daemon = daemon.kill_and_start();
    }

    // Every refusal names the reason, and changes nothing.
    let taken = &expected[0]["My album/".len()..];
    for body in [
        json!({"name": "../up"}),
        json!({"name": ".hidden"}),
        json!({"name": ""}),
        json!({"files": {"0": "../../up"}}),
        json!({"files": {"0": "/etc/passwd"}}),
        json!({"files": {"0": "extras/deep"}}),
        json!({"files": {"99": "x"}}),
        json!({"files": {last.to_string(): taken}}),
    ] {
        rename(&daemon, &hash, &body).refused(400, Some("name"));
    }
    rename(&daemon, &hash, &json!({"files": {"one": "x"}})).refused(400, Some("body"));
    rename(&daemon, &"0".repeat(40), &json!({"name": "x"})).refused(404, Some("hash"));
    fs::create_dir(root.join("other")).unwrap();
    fs::write(root.join("other").join(taken), "the user's").unwrap();
    let answer = rename(&daemon, &hash, &json!({"name": "other"}));
    assert_eq!(answer.json()["code"], "files_conflict", "{answer:?}");
    assert_eq!(fs::read(root.join("other").join(taken)).unwrap(), b"the user's");
    let twice = ["rename", "My album", "--file", "0=x.txt", "--file", "0=y.txt"];
    assert!(fail_with(2, &folder, &twice).contains("file 0 is given twice"));
    let refused = fail(&folder, &["rename", "My album", "other"]);
    assert!(refused.contains(taken) && refused.lines().count() == 1, "{refused}");
    wait_seeding(&daemon, &hash, 400_000);
    assert_eq!(paths(&daemon, &hash)[..last], expected[..last]);

    let removed = daemon.delete(&format!("/api/v1/torrents/{hash}?delete_data=true"));
    assert_eq!(removed.json()["kept_count"], 0, "{removed:?}");
    assert!(
        !root.join("My album").exists(),
        "the files are the torrent's with their new names too"
    );
}

/// A torrent of a single file and a download that goes on get new names too.
#[test]
fn an_unfinished_file_gets_another_name() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().canonicalize().unwrap();
    let (hash, bytes) = torrent(&folder, "one.bin", 1, &[]);
    let daemon = Daemon::start(&folder);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    succeed(&folder, &["rename", "one.bin", "two.bin"]);
    assert_eq!(paths(&daemon, &hash), ["two.bin"]);
    let daemon = daemon.kill_and_start();
    assert_eq!(paths(&daemon, &hash), ["two.bin"]);
    wait_until("the download", || {
        let state = daemon.get(&format!("/api/v1/torrents/{hash}?fields=state")).json();
        state == json!({"state": "downloading"})
    });
    // A file is created with its first block, which never comes here.
    let there = left(&folder.join("downloads"));
    assert!(there.iter().all(|name| name == "two.bin"), "{there:?}");
}

/// A daemon that is killed at any moment of a rename has each file whole, and with the names of its session after a
/// start.
#[test]
fn kills_during_renames_lose_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().canonicalize().unwrap();
    let source = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..40).map(|number| format!("{}/{number}", number % 7)).collect();
    let downloads = source.path().join("downloads");
    let (hash, bytes) = write_album_of(
        &downloads,
        names.iter().map(String::as_str),
        20_001,
        MakeOptions::default(),
    );
    let whole = downloads.join("album");
    let mut daemon = Daemon::start(&folder);
    download(&daemon, source.path(), &bytes);
    let root = folder.join("downloads");
    let mut renamed = 0;
    for round in 0..20 {
        let body = json!({"name": format!("album {}", round % 3)}).to_string();
        let bearer = daemon.bearer();
        let headers = [("Authorization", &*bearer), ("Content-Type", "application/json")];
        let path = format!("/api/v1/torrents/{hash}/rename");
        let request = daemon.head("POST", &path, &headers, body.as_bytes());
        let mut stream = daemon.connect();
        std::io::Write::write_all(&mut stream, &request).unwrap();
        let random = u64::from_le_bytes(noise(8800 + round as u64, 8).try_into().unwrap());
        std::thread::sleep(Duration::from_micros((random >> 8) % 60_000));
        daemon = daemon.kill_and_start();
        wait_seeding(&daemon, &hash, 40 * 20_001);
        let name = daemon.get(&format!("/api/v1/torrents/{hash}?fields=name")).json();
        let name = name["name"].as_str().unwrap().to_owned();
        renamed += usize::from(name == format!("album {}", round % 3));
        assert_eq!(compare(&whole, &root.join(&name)), Ok(()), "round {round}");
        assert_eq!(left(&root), [name], "round {round}: {}", daemon.log());
    }
    eprintln!("20 kills, {renamed} of them after the names were switched");
}

/// Returns what a folder has.
fn left(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}
