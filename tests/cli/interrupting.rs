//! Signals: the files left behind, the output, and the exit code.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::command::{Running, command};
use crate::{album, free_address, start, succeed};

const SIGNALS: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];

/// Arguments of a download without peers, with its own download folder and state folder.
const LONELY: [&str; 8] = [
    "download",
    "album.torrent",
    "-o",
    "there",
    "--listen",
    "127.0.0.1:0",
    "--state-dir",
    "leecher",
];

fn with<'a>(arguments: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [arguments, more].concat()
}

/// Waits for a process to end, and returns its exit code and its standard error output.
fn end(process: &mut Running) -> (Option<i32>, String) {
    let code = process.wait().code();
    let mut stderr = String::new();
    process.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (code, stderr)
}

/// An interrupted, incomplete download exits with its own code and prints one line. The same command resumes it. So
/// `download && mv` moves no partial file.
#[test]
fn an_interrupted_download_exits_with_seven() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    succeed(folder, &["create", "album", "-o", "album.torrent"]);
    for signal in SIGNALS {
        for more in [&["--exit-on-complete"][..], &[]] {
            let mut command = command(folder, &with(&LONELY, more));
            let mut process = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
            let mut line = String::new();
            let mut stdout = BufReader::new(process.0.stdout.take().unwrap());
            stdout.read_line(&mut line).unwrap();
            process.signal(signal);
            let (code, stderr) = end(&mut process);
            assert_eq!(code, Some(7), "{stderr}");
            assert!(stderr.starts_with("error: interrupted: album: "), "{stderr}");
            let state = folder.join("leecher");
            let end = format!("; the same command continues from the state in {}\n", state.display());
            assert!(stderr.ends_with(&end), "{stderr}");
            assert!(!stderr.contains("0 of 0"), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    }
    let address = free_address();
    let (_seeder, mut seeding) = start(
        folder,
        &["seed", "album.torrent", "--data", ".", "--listen", &address, "--json"],
    );
    seeding.find(|event| event["event"] == "complete").unwrap();
    succeed(folder, &with(&LONELY, &["--peer", &address, "--exit-on-complete"]));
}

/// The JSON output ends with an event that gives the number of missing bytes, as far as it is known.
#[test]
fn an_interrupted_download_speaks_json() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    succeed(folder, &["create", "album", "-o", "album.torrent"]);
    // One of two files exists already.
    fs::create_dir_all(folder.join("there/album")).unwrap();
    fs::copy(folder.join("album/one.bin"), folder.join("there/album/one.bin")).unwrap();
    let (mut process, mut events) = start(folder, &with(&LONELY, &["--json"]));
    events.find(|event| event["state"] == "downloading").unwrap();
    process.signal(Signal::TERM);
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["name"]),
        (&"interrupted".into(), &"album".into())
    );
    let missing = last["left"].as_u64().unwrap();
    assert!((33_333..33_333 + 16_384).contains(&missing), "{last}");
    assert_eq!(process.wait().code(), Some(7));
}

/// A complete download that seeds until it is interrupted has succeeded.
#[test]
fn a_complete_download_exits_with_zero() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    succeed(folder, &["create", "album", "-o", "album.torrent"]);
    fs::create_dir(folder.join("there")).unwrap();
    fs::rename(folder.join("album"), folder.join("there/album")).unwrap();
    for count in [1, 2] {
        let (mut process, mut events) = start(folder, &with(&LONELY, &["--json"]));
        events.find(|event| event["event"] == "complete").unwrap();
        (0..count).for_each(|_| process.signal(Signal::INT));
        assert_eq!(process.wait().code(), Some(0));
    }
}

/// SIGHUP stays ignored if the command was started with it ignored, as by `nohup`.
#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    succeed(folder, &["create", "album", "-o", "album.torrent"]);
    let mut command = Command::new("sh");
    command
        .current_dir(folder)
        .args([
            "-c",
            "trap '' HUP; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_ecs-torrent"),
        ])
        .args(with(&LONELY, &["--json"]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut process = Running::start(&mut command);
    let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    let mut events = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    events.find(|event| event["state"] == "downloading").unwrap();
    process.signal(Signal::HUP);
    // The download continues and reports progress.
    (0..3).for_each(|_| assert_eq!(events.next().unwrap()["event"], "progress"));
    process.signal(Signal::TERM);
    assert_eq!(events.last().unwrap()["event"], "interrupted");
    assert_eq!(process.wait().code(), Some(7));
}

/// URLs are reported as unsupported, not as missing files.
#[test]
fn unsupported_sources() {
    let temporary = tempfile::tempdir().unwrap();
    for (source, what) in [
        ("https://tracker.example/a.torrent", "URLs are not supported yet"),
        ("HTTP://tracker.example/a.torrent", "URLs are not supported yet"),
    ] {
        for command in ["download", "show"] {
            let error = crate::fail(temporary.path(), &[command, source], 1);
            assert!(error.contains(source) && error.contains(what), "{error}");
        }
    }
}

/// The link of a torrent file names its hash, name and trackers.
#[test]
fn a_torrent_file_has_a_magnet_link() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    crate::write_file(folder, "a film.bin", 1, 100_000);
    let tracker = ["--tracker", "http://t.example/announce"];
    let created = succeed(
        folder,
        &[&["create", "a film.bin", "-o", "f.torrent"][..], &tracker].concat(),
    );
    let hash = created.split(' ').next().unwrap();
    let link = succeed(folder, &["magnet", "f.torrent"]);
    let rest = "&dn=a%20film.bin&tr=http%3A%2F%2Ft.example%2Fannounce";
    assert_eq!(link, format!("magnet:?xt=urn:btih:{hash}{rest}\n"));
}

/// Magnet links that cannot be used, each with the reason.
#[test]
fn magnet_links_that_cannot_be_used() {
    let temporary = tempfile::tempdir().unwrap();
    let v2 = format!("magnet:?xt=urn:btmh:1220{}", "a".repeat(64));
    for (source, code, why) in [
        ("magnet:?dn=x", 2, "names no torrent"),
        (
            "magnet:?xt=urn:btih:123",
            2,
            "\"123\" is neither 40 hexadecimal digits nor 32 characters of base32",
        ),
        (&v2, 1, "v2 torrents are not supported yet"),
    ] {
        let error = crate::fail(temporary.path(), &["download", source], code);
        assert!(error.contains(why), "{error}");
    }
    let known = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567";
    let error = crate::fail(temporary.path(), &["show", known], 1);
    assert!(error.contains("known by its magnet link only"), "{error}");
}

/// A download that only incoming peers can help reports that. One with a tracker reports where it searches for peers.
#[test]
fn a_download_says_where_it_searches() {
    let temporary = tempfile::tempdir().unwrap();
    let link = format!("magnet:?xt=urn:btih:{}&dn=song", "a".repeat(40));
    let offline = ["--listen", "127.0.0.1:0", "--no-dht", "--no-lsd", "--no-pex"];
    let mut process = Running::start(
        command(temporary.path(), &[&["download", &link][..], &offline].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let mut stderr = BufReader::new(process.0.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let warning =
        "warning: song: no tracker, no peer in the link, DHT and LSD off: only incoming peers or --peer can help";
    assert_eq!(stderr.next().as_deref(), Some(warning));
    let mut stdout = BufReader::new(process.0.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let progress = stdout.find(|line| line.contains("0.0 %")).unwrap();
    assert_eq!(progress, "song: 0.0 %, fetching metadata, 0 peers, no tracker, DHT off");
    process.signal(Signal::INT);
    assert_eq!(process.wait().code(), Some(7));
}

fn assert_demo_leaves_nothing(stage: &str, signals: &[Signal]) {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = command(temporary.path(), &["demo", "--size", "300"]);
    command.env("TMPDIR", temporary.path()).stdout(Stdio::piped());
    let mut process = Running::start(command.stderr(Stdio::piped()));
    let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    lines
        .find(|line| line.as_ref().unwrap().starts_with(stage))
        .unwrap()
        .unwrap();
    assert!(!is_empty(temporary.path()), "the demo works in the folder");
    signals.iter().for_each(|signal| process.signal(*signal));
    let (code, stderr) = end(&mut process);
    assert_eq!(code, Some(7), "{stderr}");
    assert!(is_empty(temporary.path()), "after {signals:?} at {stage:?}");
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

/// The demo's folder is removed, at every stage and for every signal that ends the demo.
#[test]
fn the_demo_leaves_nothing_behind() {
    for stage in ["Making", "Tracker"] {
        for signal in SIGNALS {
            assert_demo_leaves_nothing(stage, &[signal]);
        }
        assert_demo_leaves_nothing(stage, &[Signal::INT, Signal::TERM]);
    }
}

/// A second download in the same folder has a state folder of its own, from which it continues later.
#[test]
fn a_second_download_works_beside_another_one() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    for (name, source) in [("album.torrent", "album"), ("one.torrent", "album/one.bin")] {
        succeed(folder, &["create", source, "-o", name]);
    }
    let arguments = |torrent| {
        [
            "download",
            torrent,
            "-o",
            "there",
            "--listen",
            "127.0.0.1:0",
            "--no-dht",
            "--no-lsd",
        ]
    };
    let (mut first, mut events) = start(folder, &with(&arguments("album.torrent"), &["--json"]));
    events.find(|event| event["event"] == "added").unwrap();
    for is_first_there in [true, false] {
        if !is_first_there {
            first.signal(Signal::KILL);
            first.wait();
        }
        let mut command = command(folder, &with(&arguments("one.torrent"), &["--json"]));
        let mut second = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let mut line = String::new();
        // The pipe stays open, since the command would end without it.
        let mut stdout = BufReader::new(second.0.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("\"added\""), "{line}");
        second.signal(Signal::TERM);
        let (code, stderr) = end(&mut second);
        assert_eq!(code, Some(7), "{stderr}");
        let is_said = stderr.contains("another engine uses .ecs_torrent; this one keeps its state in .ecs_torrent.2");
        assert_eq!(is_said, is_first_there, "{stderr}");
        assert_eq!(
            fs::read_dir(folder.join(".ecs_torrent.2/state"))
                .unwrap()
                .filter(|file| {
                    file.as_ref()
                        .unwrap()
                        .path()
                        .extension()
                        .is_some_and(|end| end == "ron")
                })
                .count(),
            1
        );
    }
    let sessions = fs::read_dir(folder.join(".ecs_torrent/state")).unwrap();
    let sessions = sessions.filter(|file| {
        file.as_ref()
            .unwrap()
            .path()
            .extension()
            .is_some_and(|end| end == "ron")
    });
    assert_eq!(sessions.count(), 1, "the first one's");
}

/// A download of a torrent file says why there are no peers. With `--quiet`, it prints errors only.
#[test]
fn a_lack_of_peers_is_explained() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    let tracker = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/announce", tracker.local_addr().unwrap());
    succeed(folder, &["create", "album", "-o", "album.torrent", "--tracker", &url]);
    let answer = |body: &str| {
        let (mut stream, _) = tracker.accept().unwrap();
        // A connection that is closed with unread bytes loses the answer.
        let is_head = |line: &std::io::Result<String>| line.as_ref().is_ok_and(|line| !line.is_empty());
        BufReader::new(&stream).lines().take_while(is_head).for_each(drop);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        std::io::Write::write_all(&mut stream, format!("{head}{body}").as_bytes()).unwrap();
    };
    let offline = ["--no-dht", "--no-lsd"];
    let mut process = Running::start(command(folder, &with(&LONELY, &offline)).stdout(Stdio::piped()));
    answer("d8:intervali1800e5:peers0:e");
    let mut stdout = BufReader::new(process.0.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let explained = "0 peers, 0/9 pieces, 1 tracker answered with 0 peers, DHT off";
    let line = stdout.find(|line| line.ends_with(explained));
    assert!(line.is_some());
    process.signal(Signal::INT);
    // The tracker learns of the end.
    answer("d8:intervali1800e5:peers0:e");
    assert_eq!(process.wait().code(), Some(7));

    let mut command = command(folder, &with(&LONELY, &["--no-dht", "--no-lsd", "--quiet"]));
    let mut process = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    answer("rubbish");
    process.signal(Signal::INT);
    let (code, stderr) = end(&mut process);
    assert_eq!(code, Some(7), "{stderr}");
    assert!(
        stderr.starts_with("error: interrupted: album: ") && stderr.lines().count() == 1,
        "{stderr}"
    );
}
