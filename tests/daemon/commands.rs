//! The commands that talk to a running daemon, as from a second terminal.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::bed::{Daemon, command, fail, fail_with, succeed, torrent, wait_until};

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A magnet link is listed with its name, and then with its metadata. The daemon of another folder supplies that.
#[test]
fn a_magnet_link_is_added_and_completed() {
    let (temporary, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = temporary.path();
    let (hash, bytes) = torrent(other.path(), "one.bin", 1, &[]);
    let mut daemon = Daemon::start(folder);
    let link = format!("magnet:?xt=urn:btih:{hash}&dn=A+link");
    assert_eq!(succeed(folder, &["add", &link]), format!("{hash} A link\n"));
    let list = succeed(folder, &["list"]);
    assert!(list.contains("A link") && list.contains(" metadata "), "{list}");
    assert!(succeed(folder, &["files", &hash]).contains("not known yet"));
    let stats = succeed(folder, &["stats", &hash]);
    let searching = stats.lines().find(|line| line.starts_with("searching"));
    assert!(searching.is_some_and(|line| line.contains("DHT node")), "{stats}");
    // The link has no name, so the torrent's name is its hash, which is not printed twice.
    let nameless = "ab".repeat(20);
    let link_to = format!("magnet:?xt=urn:btih:{nameless}");
    assert_eq!(succeed(folder, &["add", &link_to]), format!("{nameless}\n"));
    assert_eq!(succeed(folder, &["pause", &nameless]), format!("paused {nameless}\n"));
    let added = parse(&succeed(folder, &["add", &link_to, "--json"]));
    assert_eq!(
        (&added[0]["info_hash"], &added[0]["name"], &added[0]["is_new"]),
        (&json!(nameless), &json!(nameless), &json!(false)),
        "{added}"
    );
    succeed(folder, &["remove", &nameless]);
    let path = format!("/api/v1/torrents/{hash}?fields=size,metadata,pieces");
    let unknown = json!({"size": null, "metadata": null, "pieces": null});
    assert_eq!(daemon.get(&path).json(), unknown);
    // A stopped torrent keeps its name, before its metadata is known too, and over a restart.
    succeed(folder, &["stop", &hash]);
    let stopped = format!("HASH          NAME\n{}  A link\n", &hash[..12]);
    assert_eq!(succeed(folder, &["list", "--stopped"]), stopped);
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait().success());
    let daemon = Daemon::start(folder);
    assert_eq!(succeed(folder, &["list", "--stopped"]), stopped);
    assert_eq!(succeed(folder, &["resume", &hash]), format!("resumed {hash} A link\n"));
    let (mut events, mut saved) = (daemon.events(), daemon.events());
    let error = fail_with(2, folder, &["add", "magnet:?dn=x"]);
    assert!(error.contains("names no torrent"), "{error}");

    let seed = Daemon::start_with(other.path(), &["--download-dir", "."]);
    assert_eq!(seed.post("/api/v1/torrents", &bytes).status, 201);
    wait_until("the seed", || {
        let stats = seed.get(&format!("/api/v1/torrents/{hash}?fields=state")).json();
        stats["state"] == "seeding"
    });
    let link = format!("{link}&x.pe={}", seed.peers);
    assert_eq!(
        succeed(folder, &["add", &link]),
        format!("{hash} A link was already added\n")
    );
    // The torrent may start before its metadata is saved.
    assert_eq!(saved.wait_for("metadata_received"), json!({"info_hash": hash}));
    for name in ["started", "completed"] {
        assert_eq!(events.wait_for(name), json!({"info_hash": hash}));
    }
    wait_until("the download", || {
        let stats = daemon.get(&format!("/api/v1/torrents/{hash}?fields=state,name")).json();
        stats == json!({"state": "seeding", "name": "one.bin"})
    });
    let files = [folder.join("downloads"), other.path().to_owned()];
    let [ours, theirs] = files.map(|folder| fs::read(folder.join("one.bin")).unwrap());
    assert!(ours == theirs);
}

#[test]
fn a_daemon_is_controlled_from_a_second_terminal() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
    let (other, other_bytes) = torrent(folder, "two.bin", 2, &[]);
    fs::write(folder.join("one.torrent"), bytes).unwrap();
    fs::write(folder.join("two.torrent"), other_bytes).unwrap();
    let daemon = Daemon::start(folder);
    assert_eq!(succeed(folder, &["list"]), "no torrents\n");
    assert_eq!(succeed(folder, &["list", "--json"]), "[]\n");

    let added = succeed(
        folder,
        &[
            "add",
            "one.torrent",
            "two.torrent",
            "-o",
            "downloads/new",
            "--peer",
            "127.0.0.1:1",
        ],
    );
    assert_eq!(added, format!("{hash} one.bin\n{other} two.bin\n"));
    assert_eq!(
        succeed(folder, &["add", "one.torrent"]),
        format!("{hash} one.bin was already added\n"),
        "again"
    );
    assert_eq!(daemon.hashes(), [hash.clone(), other.clone()]);

    let list = succeed(folder, &["list"]);
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 4, "{list}");
    assert!(lines[0].starts_with("NAME ") && lines[0].ends_with("  HASH"), "{list}");
    assert!(
        lines[1].starts_with("one.bin  ") && lines[1].ends_with(&hash[..12]),
        "{list}"
    );
    assert!(lines[1].contains("97.66 KiB  0.0 %"), "{list}");
    assert_eq!(lines[0].find("HASH"), lines[1].find(&hash[..12]), "{list}");
    assert_eq!(lines[3], "2 torrents, 0 complete, 0 %, 0 B/s down, 0 B/s up", "{list}");
    let names = |options: &[&str]| -> Vec<String> {
        let list = succeed(folder, &[&["list"], options].concat());
        let rows = list.lines().filter(|line| line.contains(".bin"));
        rows.map(|row| row.split(' ').next().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&["--sort", "-name"]), ["two.bin", "one.bin"]);
    assert_eq!(names(&["--sort=name"]), ["one.bin", "two.bin"]);
    assert_eq!(names(&["--text", "TWO"]), ["two.bin"]);
    assert_eq!(names(&["--state", "paused,failed"]), [""; 0]);
    assert!(fail(folder, &["list", "--sort", "speed"]).contains("speed.download"));
    assert!(fail(folder, &["list", "--state", "sleeping"]).contains("sleeping"));
    assert!(!list.contains('\u{1b}'), "no color where there is no terminal");
    let json = parse(&succeed(folder, &["list", "--json"]));
    assert_eq!(json[1]["info_hash"].as_str(), Some(other.as_str()));

    let prefix = hash[..6].to_uppercase();
    let stats = succeed(folder, &["stats", &prefix]);
    for line in [
        "name             one.bin",
        "size             97.66 KiB",
        "progress         0.0 %",
    ] {
        assert!(stats.lines().any(|line_shown| line_shown == line), "{stats}");
    }
    let root = folder.canonicalize().unwrap().join("downloads/new");
    assert!(
        stats.contains(&format!("folder           {}", root.display())),
        "{stats}"
    );
    let json = parse(&succeed(folder, &["stats", &prefix, "--json"]));
    let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    let mut all = ecs_torrent::Field::ALL.map(ecs_torrent::Field::name);
    all.sort_unstable();
    assert_eq!(keys, all);
    let json = parse(&succeed(folder, &["stats", &hash, "--fields", "name,pieces", "--json"]));
    assert_eq!(
        json,
        json!({"name": "one.bin", "pieces": {"total": 7, "held": 0, "size": 16384}})
    );
    assert_eq!(
        succeed(folder, &["stats", &hash, "--fields", "pieces"]),
        "pieces           0 of 7, 16.00 KiB each\n"
    );

    let files = succeed(folder, &["files", &hash]);
    assert_eq!(
        files,
        "#       SIZE   DONE  PRIORITY  PATH\n0  97.66 KiB  0.0 %  normal    one.bin\n"
    );
    let json = parse(&succeed(folder, &["files", &hash, "--json"]));
    assert_eq!(
        json,
        json!([{"index": 0, "path": "one.bin", "length": 100_000, "completed": 0, "priority": "normal"}])
    );

    assert_eq!(
        succeed(folder, &["stop", &hash[..8]]),
        format!("stopped {hash} one.bin\n")
    );
    assert_eq!(daemon.hashes(), std::slice::from_ref(&other));
    let gone = fail(folder, &["stats", &hash]);
    let expected = format!("error: one.bin is stopped; `ecs-torrent resume {hash}` starts it again\n");
    assert_eq!(gone, expected);
    let json = parse(&succeed(folder, &["stop", "--all", "--json"]));
    assert_eq!(json, json!([{"info_hash": other, "name": "two.bin"}]));
    assert_eq!(succeed(folder, &["stop", "--all"]), "stopped 0 torrents\n");
    assert_eq!(daemon.hashes(), [""; 0]);
    let again = succeed(folder, &["stop", &hash]);
    assert_eq!(again, format!("{hash} one.bin was already stopped\n"));

    // Stopped torrents stay visible, and one of them comes back.
    let stopped = succeed(folder, &["list", "--stopped"]);
    let mut rows = [
        format!("{}  one.bin", &hash[..12]),
        format!("{}  two.bin", &other[..12]),
    ];
    rows.sort();
    assert_eq!(stopped, format!("HASH          NAME\n{}\n{}\n", rows[0], rows[1]));
    let json = parse(&succeed(folder, &["list", "--stopped", "--json"]));
    assert_eq!(json, daemon.get("/api/v1/torrents?stopped=true").json());
    assert_eq!(json[0]["state"], "stopped");
    let resumed = succeed(folder, &["resume", &hash[..6]]);
    assert_eq!(resumed, format!("resumed {hash} one.bin\n"));
    assert_eq!(daemon.hashes(), std::slice::from_ref(&hash));
    let again = succeed(folder, &["resume", &hash]);
    assert_eq!(again, format!("{hash} one.bin is not stopped\n"));
    assert_eq!(parse(&succeed(folder, &["resume", &hash, "--json"])), json!([]));
    let list = daemon.get("/api/v1/torrents?stopped=true").json();
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    daemon
        .post(&format!("/api/v1/torrents/{}/resume", "0".repeat(40)), b"")
        .refused(404, Some("hash"));
    daemon
        .get("/api/v1/torrents?stopped=true&fields=name")
        .refused(400, Some("fields"));
    // The whole sequence of the README: a stopped torrent is removed by its first digits.
    succeed(folder, &["stop", &hash[..6]]);
    succeed(folder, &["remove", &hash[..6], "--delete-data"]);
    succeed(folder, &["remove", &other[..6]]);
    assert_eq!(succeed(folder, &["list", "--stopped"]), "no stopped torrents\n");

    // The commands also work from another folder, with the address and the state folder.
    let elsewhere = tempfile::tempdir().unwrap();
    let (address, state) = (daemon.address.to_string(), folder.join(".ecs_torrent"));
    let place = ["--api", &address, "--state-dir", state.to_str().unwrap()];
    assert_eq!(
        succeed(elsewhere.path(), &[&["list"], &place[..]].concat()),
        "no torrents\n"
    );
    assert_eq!(
        succeed(elsewhere.path(), &[&["list"], &place[2..]].concat()),
        "no torrents\n"
    );
}

/// A paused torrent is still paused after a kill, and a stopped one still stopped; a start and a resume last too.
#[test]
fn pauses_and_stops_survive_a_kill() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let [(one, bytes), (two, others)] =
        [("one.bin", 1), ("two.bin", 2)].map(|(name, seed)| torrent(folder, name, seed, &[]));
    fs::write(folder.join("one.torrent"), bytes).unwrap();
    fs::write(folder.join("two.torrent"), others).unwrap();
    let mut daemon = Daemon::start(folder);
    succeed(folder, &["add", "one.torrent", "two.torrent"]);
    assert_eq!(
        succeed(folder, &["pause", &one[..6]]),
        format!("paused {one} one.bin\n")
    );
    succeed(folder, &["stop", &two]);
    let state = |daemon: &Daemon| {
        let list = daemon.get("/api/v1/torrents?fields=info_hash,state").json();
        let list = list.as_array().unwrap().iter();
        list.map(|torrent| (torrent["info_hash"].clone(), torrent["state"].clone()))
            .collect::<Vec<_>>()
    };
    let paused = vec![(json!(one), json!("paused"))];
    assert_eq!(state(&daemon), paused);
    for _ in 0..2 {
        daemon.process.0.kill().unwrap();
        daemon.process.wait();
        daemon = Daemon::start(folder);
        wait_until("the paused torrent", || state(&daemon) == paused);
    }
    let table = succeed(folder, &["list"]);
    assert!(table.contains("paused"), "{table}");
    daemon
        .post(&format!("/api/v1/torrents/{}/pause", "0".repeat(40)), b"")
        .refused(404, Some("hash"));
    daemon
        .post(&format!("/api/v1/torrents/{}/start", "0".repeat(40)), b"")
        .refused(404, Some("hash"));
    assert_eq!(
        fail(folder, &["pause", &two]),
        format!("error: two.bin is stopped; `ecs-torrent resume {two}` starts it again\n")
    );
    assert_eq!(succeed(folder, &["resume", "--all"]), "resumed 1 torrent\n");
    let started = parse(&succeed(folder, &["start", &one, "--json"]));
    assert_eq!(started, json!([{"info_hash": one, "name": "one.bin"}]));
    daemon.process.0.kill().unwrap();
    daemon.process.wait();
    daemon = Daemon::start(folder);
    wait_until("both", || {
        let states = state(&daemon);
        states.len() == 2 && states.iter().all(|(_, state)| state == "downloading")
    });
    assert_eq!(succeed(folder, &["pause", "--all"]), "paused 2 torrents\n");
    assert!(state(&daemon).iter().all(|(_, state)| state == "paused"));
    // Only changes are reported as done.
    let again = succeed(folder, &["pause", &one]);
    assert_eq!(again, format!("{one} one.bin was already paused\n"));
    assert_eq!(succeed(folder, &["pause", "--all"]), "paused 0 torrents\n");
    assert_eq!(succeed(folder, &["start", &one]), format!("started {one} one.bin\n"));
    let again = succeed(folder, &["start", &one]);
    assert_eq!(again, format!("{one} one.bin was already started\n"));
    assert_eq!(parse(&succeed(folder, &["start", &one, "--json"])), json!([]));
    assert_eq!(succeed(folder, &["start", "--all"]), "started 1 torrent\n");
    assert!(!state(&daemon).iter().any(|(_, state)| state == "paused"));
}

#[test]
fn a_torrent_is_removed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
    fs::write(folder.join("one.torrent"), bytes).unwrap();
    let mut daemon = Daemon::start(folder);
    let removed = format!("removed {hash} one.bin");
    let nothing = format!("{removed}: 0 files deleted, 0 files kept");
    for (arguments, expected) in [
        (&["remove", &hash[..6]][..], &removed),
        (&["remove", &hash, "--delete-data"], &nothing),
    ] {
        succeed(folder, &["add", "one.torrent"]);
        assert_eq!(succeed(folder, arguments), format!("{expected}\n"));
        assert_eq!(daemon.hashes(), [""; 0]);
        assert!(fail(folder, arguments).contains("no torrent"));
    }
    // The error names the file that is in the way and the options that help. The file stays, and `remove` reports so.
    fs::write(folder.join("downloads/one.bin"), "mine").unwrap();
    let why = fail(folder, &["add", "one.torrent"]);
    assert!(why.contains("one.bin") && why.contains("--overwrite"), "{why}");
    let added = succeed(folder, &["add", "one.torrent", "--into", "new"]);
    assert!(added.trim_end().ends_with("/downloads/new"), "{added}");
    assert_eq!(succeed(folder, &["remove", &hash]), format!("{removed}\n"));
    succeed(folder, &["add", "one.torrent", "--name", "two.bin"]);
    let json = parse(&succeed(folder, &["remove", &hash, "--json"]));
    assert_eq!((&json["info_hash"], &json["name"]), (&json!(hash), &json!("two.bin")));
    assert_eq!(json["deleted_count"], 0);
    succeed(folder, &["add", "one.torrent", "--overwrite"]);
    assert_eq!(
        succeed(folder, &["remove", &hash, "--delete-data"]),
        format!("{removed}: 0 files deleted, 1 file kept\nkept one.bin: it was there before the torrent\n")
    );
    assert!(folder.join("downloads/one.bin").exists());
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait().success());
    assert_eq!(
        Daemon::start(folder).hashes(),
        [""; 0],
        "what is removed does not come back"
    );
}

#[test]
fn impossible_commands_fail_in_one_line() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (_, bytes) = torrent(folder, "one.bin", 1, &[]);
    fs::write(folder.join("one.torrent"), bytes).unwrap();
    fs::write(folder.join("bad.torrent"), "nonsense").unwrap();
    let none = fail(folder, &["list"]);
    assert!(
        none.starts_with("error: no daemon is running with the state folder .ecs_torrent; "),
        "{none}"
    );

    let mut daemon = Daemon::start(folder);
    assert!(fail(folder, &["add", "missing.torrent"]).contains("missing.torrent"));
    assert!(fail(folder, &["add", "one.torrent", "bad.torrent"]).contains("bad.torrent"));
    assert_eq!(daemon.hashes(), [""; 0], "all or nothing");
    let outside = fail(folder, &["add", "one.torrent", "-o", "/etc"]);
    assert!(outside.starts_with("error: /etc: not in "), "{outside}");
    for name in [
        "stats", "files", "pause", "recheck", "start", "stop", "resume", "remove",
    ] {
        for (text, expected) in [
            (
                "abc",
                "no torrent has the name abc; of an info-hash, give the first 4 digits or more",
            ),
            ("../../x", "no torrent has the name ../../x"),
            (
                "abcdef",
                "no torrent has the name abcdef, or an info-hash that begins with it",
            ),
        ] {
            assert_eq!(fail(folder, &[name, text]), format!("error: {expected}\n"));
        }
    }
    assert!(fail(folder, &["add", "one.torrent", "--peer", "no.such.host.invalid:1"]).contains("--peer no.such"));
    for arguments in [
        &["stop"][..],
        &["stop", "--all", "abcdef"],
        &["stats", "abcdef", "--fields", "nonsense"],
        &["add"],
        &["list", "--api", "nonsense"],
    ] {
        assert_eq!(
            command(folder, arguments).output().unwrap().status.code(),
            Some(2),
            "{arguments:?}"
        );
    }

    for name in [
        "pause", "recheck", "start", "stop", "resume", "remove", "stats", "files", "add",
    ] {
        let output = command(folder, &[name]).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        let last = error.lines().last().unwrap_or_default();
        assert!(last.contains(&format!("; example: ecs-torrent {name} ")), "{error}");
    }

    let other = tempfile::tempdir().unwrap();
    let _other = Daemon::start(other.path());
    let state = other.path().join(".ecs_torrent");
    let address = daemon.address.to_string();
    let stranger = fail(
        folder,
        &["list", "--api", &address, "--state-dir", state.to_str().unwrap()],
    );
    assert!(
        stranger.contains("it does not have this state folder's token"),
        "{stranger}"
    );

    // A killed daemon leaves its address file and its socket behind.
    daemon.process.0.kill().unwrap();
    daemon.process.wait();
    let killed = fail(folder, &["list"]);
    let process = daemon.process.0.id();
    let expected = format!(
        "error: no daemon is running: the last one of the state folder .ecs_torrent (process {process}) has ended; \
         `ecs-torrent daemon` starts one\n"
    );
    assert_eq!(killed, expected);
}

#[test]
fn help_shows_examples() {
    let temporary = tempfile::tempdir().unwrap();
    for command in [
        "daemon", "add", "list", "stats", "files", "pause", "start", "stop", "resume", "remove", "config",
    ] {
        let help = succeed(temporary.path(), &[command, "--help"]);
        assert!(help.contains("Example"), "{command}");
    }
    let help = succeed(temporary.path(), &["stats", "--help"]);
    let (_, fields) = help.split_once("Fields:").unwrap();
    let fields: Vec<&str> = fields
        .split([',', '\n'])
        .map(str::trim)
        .filter(|field| !field.is_empty())
        .collect();
    assert_eq!(fields, ecs_torrent::Field::ALL.map(ecs_torrent::Field::name));
}
