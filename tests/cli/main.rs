//! The command line as users and their scripts see it: exit codes, lines, JSON, files.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may fail as it likes, and its modules are seen by nobody else"
)]

#[path = "../support/command.rs"]
mod command;
#[path = "../support/content.rs"]
mod content;
mod costs;
mod creating;
mod fetching;
mod formats;
mod interrupting;
#[path = "../support/shapes.rs"]
mod shapes;
#[path = "../support/skipping.rs"]
mod skipping;
mod terminal;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Output, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use self::command::{Running, command};
use self::content::{compare, write_file};

fn run(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Runs a command that must succeed, and returns what it printed.
fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    stdout(&output)
}

/// Runs a command that must fail with `code`, and returns its one-line error.
fn fail(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output = run(folder, arguments);
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    if code == 1 || code == 2 {
        assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
        assert!(stderr.starts_with("error: "), "{stderr}");
        assert!(!stderr.contains('\u{1b}'), "no color where there is no terminal");
    }
    stderr
}

/// Creates a folder with some files.
fn album(folder: &Path) {
    write_file(folder, "album/one.bin", 1, 100_000);
    write_file(folder, "album/sub/two.bin", 2, 33_333);
    write_file(folder, "album/empty", 3, 0);
}

#[test]
fn a_torrent_is_made_shown_and_verified() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    let tracker = "http://tracker.example/announce";
    let made = succeed(
        folder,
        &[
            "create",
            "album",
            "-o",
            "album.torrent",
            "--tracker",
            tracker,
            "--tracker",
            "udp://b.example:1",
            "--piece-length",
            "32K",
            "--private",
            "--comment",
            "hello",
            "--web-seed",
            "http://seed.example/",
        ],
    );
    let shown: Value = serde_json::from_str(&succeed(folder, &["show", "album.torrent", "--json"])).unwrap();
    let file = fs::File::open(folder.join("album.torrent")).unwrap();
    let piped = command(folder, &["show", "-", "--json"]).stdin(file).output().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&piped.stdout).unwrap(), shown);
    assert!(made.starts_with(shown["info_hash_v1"].as_str().unwrap()));
    assert_eq!(shown["name"], "album");
    assert_eq!(shown["info_hash_v2"], Value::Null);
    assert_eq!(shown["private"], true);
    assert_eq!(
        (shown["piece_length"].as_u64(), shown["pieces"].as_u64()),
        (Some(32768), Some(5))
    );
    assert_eq!(shown["total_size"], 133_333);
    let files: Vec<(&str, u64, bool)> = shown["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| {
            (
                f["path"].as_str().unwrap(),
                f["length"].as_u64().unwrap(),
                f["pad"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        files,
        [
            ("album/empty", 0, false),
            ("album/one.bin", 100_000, false),
            ("album/sub/two.bin", 33_333, false)
        ]
    );
    assert_eq!(shown["trackers"], serde_json::json!([[tracker], ["udp://b.example:1"]]));
    assert_eq!(shown["web_seeds"], serde_json::json!(["http://seed.example/"]));
    assert_eq!(
        (shown["comment"].as_str(), shown["created_by"].is_string()),
        (Some("hello"), true)
    );
    assert!(shown["creation_date"].as_i64().unwrap() > 1_700_000_000);
    assert!(succeed(folder, &["show", "album.torrent"]).contains("album/sub/two.bin"));

    assert_eq!(
        succeed(folder, &["verify", "album.torrent", "--data", "."]),
        "5 valid, 0 invalid\n"
    );
    let path = folder.join("album/one.bin");
    let mut bytes = fs::read(&path).unwrap();
    bytes[40_000] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::remove_file(folder.join("album/sub/two.bin")).unwrap();
    let output = run(folder, &["verify", "album.torrent", "--data", ".", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((report["good"].as_u64(), report["bad"].as_u64()), (Some(2), Some(3)));
    assert_eq!(report["errors"], serde_json::json!(["album/sub/two.bin: missing"]));
    let files = serde_json::json!([
        {"path": "album/one.bin", "bad": 2, "pieces": 4}, {"path": "album/sub/two.bin", "bad": 2, "pieces": 2}
    ]);
    assert_eq!(report["files"], files);
    fs::write(folder.join("album/sub/two.bin"), "short").unwrap();
    let output = run(folder, &["verify", "album.torrent", "--data", "."]);
    assert_eq!(
        stdout(&output),
        "album/one.bin: 2 of 4 pieces invalid\nalbum/sub/two.bin: 2 of 2 pieces invalid\n2 valid, 3 invalid\n"
    );
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(errors, "error: album/sub/two.bin: has 5 of 33333 bytes\n");
    // A --data that names the torrent's own folder is detected.
    let advice = format!("did you mean --data {}?", folder.canonicalize().unwrap().display());
    let output = run(folder, &["verify", "album.torrent", "--data", "album"]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.starts_with("warning: ") && errors.contains(&advice), "{errors}");
    let error = fail(folder, &["seed", "album.torrent", "--data", "album"], 1);
    assert!(error.contains(&advice), "{error}");
}

/// A missing file is named even if it shares its only piece with another missing file.
#[test]
fn verify_names_every_missing_file() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    write_file(folder, "album/one.bin", 1, 100_000);
    write_file(folder, "album/tiny.bin", 2, 5);
    succeed(folder, &["create", "album", "-o", "album.torrent"]);
    fs::remove_dir_all(folder.join("album")).unwrap();
    fs::create_dir(folder.join("album")).unwrap();
    let output = run(folder, &["verify", "album.torrent", "--data", "."]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        errors,
        "error: album/one.bin: missing\nerror: album/tiny.bin: missing\n"
    );
}

#[test]
fn a_single_file_and_the_current_folder_can_be_torrents() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    succeed(folder, &["create", "album/one.bin", "-o", "one.torrent"]);
    let shown: Value = serde_json::from_str(&succeed(folder, &["show", "one.torrent", "--json"])).unwrap();
    assert_eq!(shown["files"][0]["path"], "one.bin");
    succeed(&folder.join("album"), &["create", ".", "-o", "../dot.torrent"]);
    let shown: Value = serde_json::from_str(&succeed(folder, &["show", "dot.torrent", "--json"])).unwrap();
    assert_eq!(shown["name"], "album");
}

/// An error is one line that names the object and the reason. Usage errors exit with 2.
#[test]
fn errors_are_one_line_with_the_right_code() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let missing = fail(folder, &["show", "missing.torrent"], 1);
    assert!(
        missing.contains("missing.torrent") && missing.contains("No such file"),
        "{missing}"
    );
    fs::write(folder.join("bad.torrent"), "d4:infod4:name1:x12:piece lengthi0eee").unwrap();
    let bad = fail(folder, &["show", "bad.torrent"], 1);
    assert!(
        bad.contains("bad.torrent: info.piece length: 0 is out of range"),
        "{bad}"
    );
    assert!(fail(folder, &["create", "nothing", "-o", "x"], 1).contains("nothing"));
    fs::create_dir(folder.join("hollow")).unwrap();
    assert!(fail(folder, &["create", "hollow", "-o", "x.torrent"], 1).contains("contains no data"));
    fs::write(folder.join("file"), "content").unwrap();
    assert!(fail(folder, &["create", "file", "-o", "x", "--piece-length", "1000"], 2).contains("power of two"));
    assert!(fail(folder, &["create", "file", "-o", "x", "--tracker", "nonsense"], 2).contains("nonsense"));
    assert!(fail(folder, &["create", "file", "-o", "no/such/folder/x"], 1).contains("no/such/folder"));
    assert!(!folder.join("x").exists(), "nothing is half-written");
    succeed(folder, &["create", "file", "-o", "file.torrent"]);
    assert!(fail(folder, &["verify", "file.torrent", "--data", "nowhere"], 1).contains("nowhere"));
    assert!(fail(folder, &["download", "file.torrent", "--peer", "nonsense"], 2).contains("--peer nonsense"));
    let two = ["download", "file.torrent", "file.torrent", "--name", "x"];
    assert!(fail(folder, &two, 2).contains("--name"));
    for place in ["file", "file/below", "/proc/x"] {
        let error = fail(folder, &["download", "file.torrent", "-o", place], 1);
        assert!(error.contains(&format!("cannot download into {place}: ")), "{error}");
    }
    // Nobody writes to this pipe.
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.join("pipe"), rustix::fs::Mode::RUSR).unwrap();
    for arguments in [
        &["show", "pipe"][..],
        &["download", "pipe"],
        &["verify", "pipe", "--data", "."],
    ] {
        assert!(fail(folder, arguments, 1).contains("pipe: not a regular file"));
    }
    let digest = "a".repeat(64);
    let v2 = fail(folder, &["download", &format!("magnet:?xt=urn:btmh:1220{digest}")], 1);
    assert!(
        v2.contains("v2 torrents are not supported yet; give the link of a v1"),
        "{v2}"
    );
    let url = fail(folder, &["download", "http://a.example/x.torrent"], 1);
    assert!(url.ends_with("; give a .torrent file or a magnet link\n"), "{url}");
    let outside = fail(
        folder,
        &[
            "download",
            "file.torrent",
            "--into",
            "../no-such-folder",
            "--listen",
            "127.0.0.1:0",
        ],
        1,
    );
    assert!(
        outside.starts_with("error: ../no-such-folder: ") && outside.contains("--into"),
        "{outside}"
    );
    for option in ["--listen", "--api"] {
        let error = fail(folder, &["daemon", option, "6881"], 2);
        assert!(error.contains("an IP address with a port, such as"), "{error}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let listen = fail(folder, &["download", "file.torrent", "--listen", &address], 1);
    assert!(listen.contains(&format!("cannot listen on {address}")), "{listen}");
    let (_running, mut events) = start(
        folder,
        &[
            "download",
            "file.torrent",
            "-o",
            "new",
            "--listen",
            "127.0.0.1:0",
            "--json",
        ],
    );
    events.next().unwrap();
    let in_use = fail(folder, &["download", "file.torrent", "--state-dir", ".ecs_torrent"], 1);
    assert!(
        in_use.contains("is in use by another engine") && in_use.contains("--state-dir"),
        "{in_use}"
    );
    fail(folder, &["frobnicate"], 2);
    fail(folder, &["download"], 2);
    fail(folder, &["show", "a", "b"], 2);
}

/// A refused torrent leaves nothing behind, even with hostile names. The command does not start the valid torrents
/// either.
#[test]
fn nothing_is_written_for_a_refused_torrent() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    fs::write(folder.join("file"), "content").unwrap();
    succeed(folder, &["create", "file", "-o", "good.torrent"]);
    let hostile: [&[u8]; 4] = [
        &b"l".repeat(150_000),
        b"99999999999999999999:x",
        b"d4:infod5:filesld6:lengthi5e4:pathl2:..1:xeee4:name2:..12:piece lengthi16384e6:pieces0:ee",
        b"d4:infod6:lengthi9223372036854775807e4:name1:x12:piece lengthi1e6:pieces0:ee",
    ];
    for bytes in hostile {
        fs::write(folder.join("bad.torrent"), bytes).unwrap();
        fail(
            folder,
            &[
                "download",
                "good.torrent",
                "bad.torrent",
                "-o",
                "out/deep",
                "--listen",
                "127.0.0.1:0",
            ],
            1,
        );
        assert!(!folder.join("out").exists());
    }
}

/// Starts a command that prints one JSON object per line.
fn start(folder: &Path, arguments: &[&str]) -> (Running, impl Iterator<Item = Value> + use<>) {
    let mut process = Running::start(command(folder, arguments).stdout(Stdio::piped()));
    let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    let events = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap());
    (process, events)
}

/// Returns a loopback address with a free port, for the process that is started next.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Two processes exchange a torrent. Both report it in JSON, and stop cleanly on a signal.
#[test]
fn seed_and_download_speak_json() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    succeed(folder, &["create", "album", "-o", "album.torrent"]);
    let address = free_address();
    let (mut seeder, mut seeding) = start(
        folder,
        &["seed", "album.torrent", "--data", ".", "--listen", &address, "--json"],
    );
    let complete = seeding.find(|event| event["event"] == "complete").unwrap();
    assert_eq!(
        (complete["name"].as_str(), complete["progress"].as_f64()),
        (Some("album"), Some(1.0))
    );

    let (mut leecher, events) = start(
        folder,
        &[
            "download",
            "album.torrent",
            "-o",
            "downloads",
            "--peer",
            &address,
            "--listen",
            "127.0.0.1:0",
            "--exit-on-complete",
            "--json",
            "--no-dht",
            "--state-dir",
            "leecher",
        ],
    );
    let events: Vec<Value> = events.collect();
    assert!(leecher.wait().success());
    let kinds: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(
        (kinds.first(), kinds.last()),
        (Some(&"added"), Some(&"complete")),
        "{kinds:?}"
    );
    assert_eq!(events.last().unwrap()["downloaded"], 133_333);
    assert_eq!(compare(&folder.join("album"), &folder.join("downloads/album")), Ok(()));

    seeder.signal(Signal::TERM);
    assert!(seeder.wait().success(), "exits with 0");
}

/// Creates the album and its torrent, and seeds them. Returns the seeder, its address, and its events: it ends when
/// nobody reads them.
fn seed_album(folder: &Path) -> (Running, String, impl Iterator<Item = Value> + use<>) {
    album(folder);
    succeed(folder, &["create", "album", "-o", "album.torrent"]);
    let address = free_address();
    let (seeder, mut seeding) = start(
        folder,
        &["seed", "album.torrent", "--data", ".", "--listen", &address, "--json"],
    );
    seeding.find(|event| event["event"] == "complete").unwrap();
    (seeder, address, seeding)
}

/// One command seeds several torrents of a folder, and checks them all before.
#[test]
fn several_torrents_are_seeded() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    write_file(folder, "song", 7, 50_000);
    for (content, torrent) in [("album", "album.torrent"), ("song", "song.torrent")] {
        succeed(folder, &["create", content, "-o", torrent]);
    }
    let error = fail(folder, &["seed", "album.torrent", "gone.torrent", "--data", "."], 1);
    assert!(error.contains("gone.torrent"), "{error}");
    let arguments = [
        "seed",
        "album.torrent",
        "song.torrent",
        "--data",
        ".",
        "--listen",
        "127.0.0.1:0",
        "--json",
    ];
    let (_seeder, events) = start(folder, &arguments);
    let complete = events.filter(|event| event["event"] == "complete").take(2);
    let mut names: Vec<_> = complete
        .map(|event| event["name"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["album", "song"]);
}

/// Without a terminal, the output is human-readable lines. With `--quiet`, there is no output.
#[test]
fn download_prints_plain_lines_without_a_terminal() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (_seeder, address, _events) = seed_album(folder);
    let arguments = [
        "download",
        "album.torrent",
        "-o",
        "a",
        "--peer",
        &address,
        "--listen",
        "127.0.0.1:0",
        "--state-dir",
        "leecher",
    ];
    let output = succeed(folder, &[&arguments[..], &["--exit-on-complete"]].concat());
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "album: 130.21 KiB in 9 pieces, in a");
    assert!(lines[1].starts_with("listening on 127.0.0.1:"), "{output}");
    assert!(lines[2].starts_with("album: complete, 130.21 KiB in "), "{output}");
    let again = succeed(folder, &[&arguments[..], &["--exit-on-complete", "--quiet"]].concat());
    assert_eq!(again, "");
}

/// Selected files are downloaded, and the command ends with them.
#[test]
fn a_download_of_some_files_ends_with_them() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (_seeder, address, _events) = seed_album(folder);
    let common = [
        "download",
        "album.torrent",
        "-o",
        "a",
        "--peer",
        &address,
        "--listen",
        "127.0.0.1:0",
    ];
    let common = [
        &common[..],
        &["--no-dht", "--exit-on-complete", "--state-dir", "leecher"],
    ]
    .concat();
    let output = succeed(folder, &[&common[..], &["--select", "*two.bin"]].concat());
    assert!(output.contains("album: complete, "), "{output}");
    let [ours, theirs] = ["a/album/sub/two.bin", "album/sub/two.bin"].map(|path| fs::read(folder.join(path)).unwrap());
    assert!(ours == theirs);
    let error = fail(folder, &[&common[..], &["--select", "*.flac"]].concat(), 1);
    assert!(error.contains("none of its files is selected"), "{error}");
}

/// Incomplete data is not seeded, and the error gives the reason.
#[test]
fn seeding_incomplete_data_fails() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    succeed(folder, &["create", "album", "-o", "album.torrent"]);
    fs::write(folder.join("album/sub/two.bin"), [0; 33_333]).unwrap();
    let error = fail(
        folder,
        &[
            "seed",
            "album.torrent",
            "--data",
            ".",
            "--listen",
            "127.0.0.1:0",
            "--quiet",
        ],
        1,
    );
    assert!(error.contains("album: 3 of 9 pieces are missing or bad"), "{error}");
}

#[test]
fn help_shows_examples_and_completions_are_scripts() {
    let temporary = tempfile::tempdir().unwrap();
    for command in [
        "download",
        "seed",
        "show",
        "magnet",
        "fetch",
        "create",
        "verify",
        "demo",
        "completions",
        "man",
    ] {
        let help = succeed(temporary.path(), &[command, "--help"]);
        assert!(help.contains("Example"), "{command}");
    }
    for (shell, sign) in [("bash", "complete -F"), ("zsh", "#compdef"), ("fish", "complete -c")] {
        assert!(
            succeed(temporary.path(), &["completions", shell]).contains(sign),
            "{shell}"
        );
    }
}

/// The program and each command have a page.
#[test]
fn manual_pages_are_written() {
    let temporary = tempfile::tempdir().unwrap();
    let page = succeed(temporary.path(), &["man"]);
    assert!(page.contains(".TH ecs-torrent 1"), "{page}");
    succeed(temporary.path(), &["man", "--dir", "man/man1"]);
    for name in ["ecs-torrent", "ecs-torrent-download", "ecs-torrent-create"] {
        let page = fs::read_to_string(temporary.path().join(format!("man/man1/{name}.1"))).unwrap();
        assert!(page.contains("Examples") || page.contains("EXTRA"), "{name}");
    }
}

/// The demo performs a real download, and its output ends with the verification.
#[test]
fn the_demo_ends_verified() {
    let temporary = tempfile::tempdir().unwrap();
    let output = succeed(temporary.path(), &["demo", "--size", "8"]);
    let (done, next) = output.split_once(" pieces are verified.\n").unwrap();
    assert!(done.lines().last().unwrap().starts_with("All "), "{output}");
    assert_eq!(next.lines().count(), 3, "{next}");
    assert!(next.starts_with("Next, try:\n  ecs-torrent download "), "{next}");
    assert!(output.contains("Downloaded 8.00 MiB in "), "{output}");
}
