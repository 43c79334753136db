//! The folder for incomplete torrents and the suffix of incomplete files, as users and hooks see them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ecs_torrent::making::MakeOptions;
use serde_json::{Value, json};

use crate::bed::{Answer, Daemon, fail, succeed, wait_until, write_album_of};
use crate::content::compare;

fn patch(daemon: &Daemon, body: &Value) -> Answer {
    let headers = [
        ("Authorization", &*daemon.bearer()),
        ("Content-Type", "application/json"),
    ];
    daemon.ask("PATCH", "/api/v1/settings", &headers, body.to_string().as_bytes())
}

/// Whether a folder has a file whose name has the suffix.
fn has_suffixed(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().path())
        .any(|path| path.extension().is_some_and(|end| end == "part"))
}

/// Data arrives in one folder and is in the other one when the torrent is complete. A hook finds it there, with the
/// final names; without a folder for incomplete torrents too.
#[test]
fn a_hook_finds_complete_files_at_their_place() {
    for has_folder in [true, false] {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().canonicalize().unwrap();
        let source = tempfile::tempdir().unwrap();
        let seed = Daemon::start_with(source.path(), &["--upload-limit", "200k"]);
        let originals = source.path().join("downloads");
        let (hash, bytes) = write_album_of(&originals, ["a", "b", "c"], 1_500_000, MakeOptions::default());
        assert_eq!(seed.post("/api/v1/torrents", &bytes).status, 201);

        let script = folder.join("record");
        let text = "#!/bin/sh\n(echo $ECS_TORRENT_FOLDER; ls $ECS_TORRENT_FOLDER/album) | xargs >> $1\n";
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let (downloads, incomplete, seen) = (
            folder.join("downloads"),
            folder.join("new/incomplete"),
            folder.join("seen"),
        );
        let setting = if has_folder {
            format!("incomplete_dir: {incomplete:?}, ")
        } else {
            String::new()
        };
        let hook = format!("(on: [Completed], program: {script:?}, arguments: [{seen:?}])");
        let config = format!("(storage: ({setting}part_suffix: true), automation: (hooks: [{hook}]))");
        fs::write(folder.join("c.ron"), config).unwrap();
        let daemon = Daemon::start_with(&folder, &["--config", "c.ron"]);
        let mut events = daemon.events();
        let added = daemon.post(&format!("/api/v1/torrents?peer={}", seed.peers), &bytes);
        assert_eq!(added.status, 201);

        let places = format!("/api/v1/torrents/{hash}?fields=root,complete_root");
        let [root, other] = if has_folder {
            [&incomplete, &downloads]
        } else {
            [&downloads, &incomplete]
        };
        wait_until("data", || has_suffixed(&root.join("album")));
        assert!(!other.exists() || fs::read_dir(other).unwrap().next().is_none());
        let complete_root = has_folder.then_some(&downloads);
        assert_eq!(
            daemon.get(&places).json(),
            json!({"root": root, "complete_root": complete_root})
        );
        if has_folder {
            let shown = succeed(&folder, &["stats", &hash]);
            assert!(shown.contains(&format!("{}\n", downloads.display())), "{shown}");
        }
        assert_eq!(
            patch(&seed, &json!({"limits": {"upload_bytes_per_s": 1_000_000_000}})).status,
            200
        );
        events.wait_for("completed");
        wait_until("the hook", || seen.exists());
        let expected = format!("{} a b c\n", downloads.display());
        wait_until("its output", || fs::read_to_string(&seen).unwrap() == expected);
        assert_eq!(compare(&originals.join("album"), &downloads.join("album")), Ok(()));
        assert!(!incomplete.join("album").exists());
        let expected = json!({"root": downloads, "complete_root": null});
        wait_until("the place", || daemon.get(&places).json() == expected);
    }
}

/// A folder that cannot be used is refused in one line that names the setting, at the start and at run time.
#[test]
fn a_folder_that_cannot_be_used_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().canonicalize().unwrap();
    fs::write(folder.join("file"), "mine").unwrap();
    let start = |path: &str| {
        fs::write(folder.join("c.ron"), format!("(storage: (incomplete_dir: {path:?}))")).unwrap();
        fail(
            &folder,
            &[
                "daemon",
                "--config",
                "c.ron",
                "--download-dir",
                "downloads",
                "--api",
                "127.0.0.1:0",
            ],
        )
    };
    for (path, reason) in [
        ("", "the path is empty"),
        ("file", "not a directory"),
        ("file/x", "Not a directory"),
    ] {
        let error = start(path);
        assert!(
            error.contains("storage.incomplete_dir: ") && error.contains(reason),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert!(start("/proc/x").contains("storage.incomplete_dir: cannot download into /proc/x: "));

    let daemon = Daemon::start(&folder);
    let downloads = folder.join("downloads");
    fs::write(downloads.join("file"), "mine").unwrap();
    for (path, status, reason) in [
        ("", 400, "the path is empty"),
        ("file", 403, "not a directory"),
        ("../x", 403, "not in"),
        ("/proc/x", 403, "not in"),
    ] {
        let refused = patch(&daemon, &json!({"storage": {"incomplete_dir": path}}));
        let error = refused.json()["error"].as_str().unwrap().to_owned();
        assert!(
            error.starts_with("storage.incomplete_dir: ") && error.contains(reason),
            "{error}"
        );
        refused.refused(status, Some("storage.incomplete_dir"));
    }
    let current =
        |daemon: &Daemon| daemon.get("/api/v1/settings").json()["settings"]["storage"]["incomplete_dir"].clone();
    assert_eq!(current(&daemon), Value::Null);
    assert_eq!(
        patch(&daemon, &json!({"storage": {"incomplete_dir": "new"}})).status,
        200
    );
    let daemon = daemon.kill_and_start();
    assert_eq!(current(&daemon), json!(downloads.join("new")));
    let (hash, bytes) = write_album_of(&folder.join("source"), ["a"], 100_000, MakeOptions::default());
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    let places = daemon
        .get(&format!("/api/v1/torrents/{hash}?fields=root,complete_root"))
        .json();
    assert_eq!(
        places,
        json!({"root": downloads.join("new"), "complete_root": downloads})
    );
    assert_eq!(
        patch(&daemon, &json!({"storage": {"incomplete_dir": null}})).status,
        200
    );
    assert_eq!(current(&daemon), Value::Null);
}
