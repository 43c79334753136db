//! `state import --from`: the torrents of other clients continue where those left them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::bed::{Daemon, command, fail, succeed, torrent, wait_until, write_album};

const FIELDS: &str = "name,state,completed,uploaded,limits,seeding,labels,category,root,added_at,sequential,trackers";

/// A bencoded value.
enum Bencode {
    Int(i64),
    Bytes(Vec<u8>),
    List(Vec<Bencode>),
    Dict(BTreeMap<&'static str, Bencode>),
}

use Bencode::{Bytes, Dict, Int, List};

fn text(text: &str) -> Bencode {
    Bytes(text.as_bytes().to_vec())
}

fn path(path: &Path) -> Bencode {
    text(path.to_str().unwrap())
}

impl Bencode {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        let string = |out: &mut Vec<u8>, bytes: &[u8]| {
            out.extend(format!("{}:", bytes.len()).bytes());
            out.extend(bytes);
        };
        match self {
            Int(number) => out.extend(format!("i{number}e").bytes()),
            Bytes(bytes) => string(out, bytes),
            List(items) => {
                out.push(b'l');
                items.iter().for_each(|item| item.write(out));
                out.push(b'e');
            }
            Dict(items) => {
                out.push(b'd');
                for (key, value) in items {
                    string(out, key.as_bytes());
                    value.write(out);
                }
                out.push(b'e');
            }
        }
    }
}

fn dict<const N: usize>(items: [(&'static str, Bencode); N]) -> Bencode {
    Dict(items.into())
}

/// Makes a file older than the state that is written after it.
fn age(path: &Path) {
    let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(an_hour_ago)
        .unwrap();
}

/// Replaces the content of a file by zeros, which no torrent of these tests consists of.
fn spoil(path: &Path) {
    let len = fs::metadata(path).unwrap().len() as usize;
    fs::write(path, vec![0; len]).unwrap();
}

/// Starts a daemon in a folder and returns its only torrent when it is in a state.
fn run(folder: &Path, state: &str) -> (Daemon, Value) {
    let daemon = Daemon::start(folder);
    let mut found = Value::Null;
    wait_until(state, || {
        let list = daemon.get(&format!("/api/v1/torrents?fields={FIELDS}")).json();
        found = list[0].clone();
        found["state"] == state
    });
    (daemon, found)
}

fn import(folder: &Path, client: &str, from: &str) -> Value {
    let report = succeed(folder, &["state", "import", "--from", client, from, "--json"]);
    serde_json::from_str(&report).unwrap()
}

/// Imports torrents of qBittorrent of which none can be used, and returns the reasons.
fn import_nothing(folder: &Path) -> String {
    let output = command(folder, &["state", "import", "--from", "qbittorrent", "."])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// The data is wrong: it would be found by a check, which is not made. All that qBittorrent knew is kept.
#[test]
fn a_torrent_of_qbittorrent_is_not_hashed_again() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (hash, bytes) = torrent(&data, "one", 1, &["http://127.0.0.1:1/announce"]);
    spoil(&data.join("one"));
    fs::rename(data.join("one"), data.join("uno")).unwrap();
    age(&data.join("uno"));
    let backup = folder.path().join("BT_backup");
    fs::create_dir(&backup).unwrap();
    fs::write(backup.join(format!("{hash}.torrent")), bytes).unwrap();
    let resume = dict([
        ("save_path", path(&data)),
        ("mapped_files", List(vec![text("uno")])),
        ("pieces", Bytes(vec![1; 7])),
        ("file_priority", List(vec![Int(1)])),
        ("total_uploaded", Int(12_345)),
        ("added_time", Int(1_700_000_000)),
        ("upload_rate_limit", Int(50_000)),
        ("download_rate_limit", Int(-1)),
        ("auto_managed", Int(1)),
        ("paused", Int(0)),
        ("sequential_download", Int(1)),
        ("qBt-ratioLimit", Int(1500)),
        ("qBt-seedingTimeLimit", Int(-1)),
        ("qBt-category", text("iso")),
        ("qBt-tags", List(vec![text("linux"), text("a,b")])),
        ("trackers", List(vec![List(vec![text("http://127.0.0.1:2/announce")])])),
    ]);
    fs::write(backup.join(format!("{hash}.fastresume")), resume.encode()).unwrap();
    // Without its torrent file.
    fs::write(backup.join("rest.fastresume"), resume.encode()).unwrap();

    let report = import(folder.path(), "qbittorrent", "BT_backup");
    assert_eq!(report["torrents"][0]["info_hash"], hash.as_str(), "{report}");
    let reasons = |list: &str| -> Vec<String> {
        let entries = report[list].as_array().unwrap().iter();
        entries
            .map(|entry| entry["reason"].as_str().unwrap().to_owned())
            .collect()
    };
    let (left_out, notes) = (reasons("left_out"), reasons("notes"));
    assert!(left_out.len() == 1 && left_out[0].contains("rest.torrent"), "{report}");
    assert!(notes.len() == 1 && notes[0].contains("comma"), "{report}");
    let (_daemon, found) = run(folder.path(), "seeding");
    let expected = json!({
        "name": "uno", "state": "seeding", "completed": 100_000, "uploaded": 12_345, "category": "iso",
        "labels": ["linux"], "sequential": true, "root": data, "added_at": found["added_at"],
        "limits": found["limits"], "seeding": found["seeding"], "trackers": found["trackers"],
    });
    assert_eq!(found, expected);
    assert_eq!(found["limits"]["upload_bytes_per_s"], 50_000);
    assert_eq!(found["limits"]["download_bytes_per_s"], Value::Null);
    assert_eq!(
        (&found["seeding"]["ratio_percent"], &found["seeding"]["time_s"]),
        (&json!(150), &json!("none"))
    );
    // The API shows no paths that may contain passkeys.
    assert_eq!(found["trackers"][0]["url"], "http://127.0.0.1:2/announce");
    assert!(found["added_at"].to_string().contains("2023-11-14") || found["added_at"] == 1_700_000_000);
}

/// Data that changed after the other client saved its state is checked.
#[test]
fn changed_data_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (hash, bytes) = torrent(&data, "one", 1, &[]);
    fs::write(folder.path().join(format!("{hash}.torrent")), bytes).unwrap();
    let resume = dict([("save_path", path(&data)), ("pieces", Bytes(vec![1; 7]))]);
    let resume_path = folder.path().join(format!("{hash}.fastresume"));
    fs::write(&resume_path, resume.encode()).unwrap();
    age(&resume_path);
    spoil(&data.join("one"));
    let report = import(folder.path(), "qbittorrent", ".");
    assert_eq!(report["torrents"].as_array().unwrap().len(), 1, "{report}");
    let (daemon, found) = run(folder.path(), "downloading");
    assert_eq!(found["completed"], 0);
    // The files stay those of the user.
    assert_eq!(
        daemon
            .delete(&format!("/api/v1/torrents/{hash}?delete_data=true"))
            .status,
        200
    );
    assert!(data.join("one").exists());
}

/// A torrent whose data is not there is not downloaded again: its volume may be elsewhere.
#[test]
fn a_torrent_without_its_data_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let (hash, bytes) = torrent(folder.path(), "one", 1, &[]);
    fs::write(folder.path().join(format!("{hash}.torrent")), bytes).unwrap();
    let gone = folder.path().join("gone");
    let resume = dict([("save_path", path(&gone)), ("pieces", Bytes(vec![1; 7]))]);
    fs::write(folder.path().join(format!("{hash}.fastresume")), resume.encode()).unwrap();
    let refusal = import_nothing(folder.path());
    assert!(refusal.contains("gone/one is not there"), "{refusal}");
    fs::create_dir(&gone).unwrap();
    fs::rename(folder.path().join("one"), gone.join("one")).unwrap();
    age(&gone.join("one"));
    import(folder.path(), "qbittorrent", ".");
    run(folder.path(), "seeding");
}

/// Imports one torrent of a file, with its resume data and its file changed, and returns its state and its report.
fn outcome(state: &str, change: impl FnOnce(&Path, &mut BTreeMap<&'static str, Bencode>)) -> (Value, Value) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (hash, bytes) = torrent(&data, "one", 1, &[]);
    fs::write(folder.path().join(format!("{hash}.torrent")), bytes).unwrap();
    let mut resume = BTreeMap::from([("save_path", path(&data)), ("pieces", Bytes(vec![1; 7]))]);
    change(&data, &mut resume);
    fs::write(folder.path().join(format!("{hash}.fastresume")), Dict(resume).encode()).unwrap();
    let report = import(folder.path(), "qbittorrent", ".");
    let (_daemon, found) = run(folder.path(), state);
    (found, report)
}

/// Data that cannot be what the other client verified is hashed.
#[test]
fn data_of_another_length_or_not_verified_is_checked() {
    let short = |data: &Path| {
        File::options()
            .write(true)
            .open(data.join("one"))
            .unwrap()
            .set_len(50_000)
            .unwrap();
    };
    let long = |data: &Path| {
        File::options()
            .write(true)
            .open(data.join("one"))
            .unwrap()
            .set_len(100_001)
            .unwrap();
    };
    for change in [short, long] {
        let (found, _) = outcome("downloading", |data, _| {
            spoil(&data.join("one"));
            change(data);
            age(&data.join("one"));
        });
        assert_eq!(found["completed"], 0);
    }
    let (found, _) = outcome("downloading", |data, resume| {
        spoil(&data.join("one"));
        age(&data.join("one"));
        resume.insert("seed_mode", Int(1));
    });
    assert_eq!(found["completed"], 0, "seed mode means that nothing is verified yet");
    let (found, _) = outcome("downloading", |data, _| {
        spoil(&data.join("one"));
        let in_three_centuries = SystemTime::now() + Duration::from_secs(300 * 366 * 86_400);
        let file = File::options().write(true).open(data.join("one")).unwrap();
        file.set_modified(in_three_centuries).unwrap();
    });
    assert_eq!(found["completed"], 0);
    // Incomplete files end with their last block.
    let (found, _) = outcome("downloading", |data, resume| {
        short(data);
        age(&data.join("one"));
        resume.insert("pieces", Bytes(vec![1, 1, 1, 0, 0, 0, 0]));
    });
    assert_eq!(found["completed"], 3 * 16_384);
}

#[test]
fn folders_behind_links_are_found_and_odd_limits_are_noted() {
    let (found, report) = outcome("seeding", |data, resume| {
        age(&data.join("one"));
        std::os::unix::fs::symlink(data, data.with_extension("link")).unwrap();
        resume.insert("save_path", path(&data.with_extension("link")));
        resume.insert("upload_rate_limit", Int(5_000));
        resume.insert("download_rate_limit", Int(500_000));
    });
    assert!(found["root"].as_str().unwrap().ends_with("/data"), "{found}");
    assert_eq!(found["limits"]["upload_bytes_per_s"], 10_240);
    assert_eq!(found["limits"]["download_bytes_per_s"], 500_000);
    assert_eq!(report["notes"].as_array().unwrap().len(), 1, "{report}");
}

/// Names that lead elsewhere or collide leave out the torrent, and nothing else.
#[test]
fn torrents_with_bad_names_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (hash, bytes) = write_album(&data);
    fs::write(folder.path().join(format!("{hash}.torrent")), bytes).unwrap();
    let resume = folder.path().join(format!("{hash}.fastresume"));
    let names = |names: [&str; 4]| List(names.into_iter().map(text).collect());
    for bad in [
        names(["album/a.txt", "album/a.txt", "album/c.txt", "album/d.txt"]),
        names(["album/a.txt", "album/../../b.txt", "album/c.txt", "album/d.txt"]),
        names(["album/a.txt", "album/a.txt/b.txt", "album/c.txt", "album/d.txt"]),
        names(["album/a.txt", "/etc/hostname", "album/c.txt", "album/d.txt"]),
        names(["album/a.txt", "album/.b", "album/c.txt", "album/d.txt"]),
        List(vec![Bytes(b"album/\xff".to_vec())]),
    ] {
        let saved = dict([
            ("save_path", path(&data)),
            ("mapped_files", bad),
            ("pieces", Bytes(vec![0; 25])),
        ]);
        fs::write(&resume, saved.encode()).unwrap();
        let refusal = import_nothing(folder.path());
        assert!(refusal.contains("left out"), "{refusal}");
    }
}

/// Complete pieces and single blocks of a torrent of several files, of which one is skipped.
#[test]
fn a_torrent_of_transmission_continues_with_its_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (hash, bytes) = write_album(&data);
    fs::remove_file(data.join("album/d.txt")).unwrap();
    for name in ["a", "b", "c"] {
        age(&data.join(format!("album/{name}.txt")));
    }
    let config = folder.path().join("config");
    for subfolder in ["resume", "torrents"] {
        fs::create_dir_all(config.join(subfolder)).unwrap();
    }
    fs::write(config.join(format!("torrents/{hash}.torrent")), bytes).unwrap();
    // Of 25 blocks of 16 KiB, the first eight, the tenth, and the last, which lies in the missing file.
    let resume = dict([
        ("destination", path(&data)),
        ("progress", dict([("blocks", Bytes(vec![0xff, 0x40, 0, 0x80]))])),
        ("dnd", List(vec![Int(0), Int(0), Int(0), Int(1)])),
        ("priority", List(vec![Int(0), Int(1), Int(-1), Int(0)])),
        ("paused", Int(1)),
        ("uploaded", Int(77)),
        ("labels", List(vec![text("music")])),
        (
            "speed-limit-up",
            dict([("speed-Bps", Int(90_000)), ("use-speed-limit", Int(1))]),
        ),
        (
            "ratio-limit",
            dict([("ratio-limit", text("2.500000")), ("ratio-mode", Int(1))]),
        ),
    ]);
    fs::write(config.join(format!("resume/{hash}.resume")), resume.encode()).unwrap();
    let report = import(folder.path(), "transmission", "config");
    assert_eq!(report["torrents"].as_array().unwrap().len(), 1, "{report}");
    let (daemon, found) = run(folder.path(), "paused");
    assert_eq!(found["completed"], 9 * 16_384, "{found}");
    assert_eq!((&found["uploaded"], &found["labels"]), (&json!(77), &json!(["music"])));
    assert_eq!(found["seeding"]["ratio_percent"], 250);
    assert_eq!(found["limits"]["upload_bytes_per_s"], 90_000);
    let files = daemon.get(&format!("/api/v1/torrents/{hash}/files")).json();
    let priorities: Vec<&str> = (0..4).map(|index| files[index]["priority"].as_str().unwrap()).collect();
    assert_eq!(priorities, ["normal", "high", "low", "skip"]);
}

/// rTorrent names the folder of the torrent itself.
#[test]
fn a_torrent_of_rtorrent_continues_in_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (hash, bytes) = write_album(&data);
    fs::rename(data.join("album"), data.join("renamed")).unwrap();
    for name in ["a", "b", "c", "d"] {
        spoil(&data.join(format!("renamed/{name}.txt")));
        age(&data.join(format!("renamed/{name}.txt")));
    }
    let session = folder.path().join("session");
    fs::create_dir(&session).unwrap();
    let base = session.join(format!("{}.torrent", hash.to_uppercase()));
    fs::write(&base, bytes).unwrap();
    let resume = dict([("bitfield", Int(25)), ("uncertain_pieces", Bytes(vec![0, 0, 0, 24]))]);
    fs::write(base.with_extension("torrent.libtorrent_resume"), resume.encode()).unwrap();
    let own = dict([
        ("directory", path(&data.join("renamed"))),
        ("custom1", text("to%20see")),
        ("state", Int(1)),
        ("total_uploaded", Int(5)),
    ]);
    fs::write(base.with_extension("torrent.rtorrent"), own.encode()).unwrap();
    let report = import(folder.path(), "rtorrent", "session");
    assert_eq!(report["torrents"].as_array().unwrap().len(), 1, "{report}");
    let (_daemon, found) = run(folder.path(), "downloading");
    assert_eq!(found["completed"], 24 * 16_384, "{found}");
    assert_eq!(
        (&found["name"], &found["labels"]),
        (&json!("renamed"), &json!(["to see"]))
    );
}

#[test]
fn other_folders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = fail(folder.path(), &["state", "import", "--from", "transmission", "."]);
    assert!(
        refusal.contains("transmission") && refusal.contains("No such file"),
        "{refusal}"
    );
    let refusal = fail(folder.path(), &["state", "import", "--from", "qbittorrent", "."]);
    assert!(refusal.contains("no torrent of qbittorrent"), "{refusal}");
    fs::write(folder.path().join("bad.fastresume"), "d").unwrap();
    fs::write(folder.path().join("bad.torrent"), "d").unwrap();
    let refusal = import_nothing(folder.path());
    assert!(refusal.contains("bad.torrent"), "{refusal}");
}
