//! Commands on a terminal.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::command::{Running, command};
use crate::content::write_file;
use crate::skipping::skip;
use crate::succeed;

/// Number of torrents, more than the terminal has rows.
const COUNT: usize = 40;

/// Number of times that the progress is drawn before the command is interrupted.
const ROUNDS: usize = 8;

/// The program as a shell starts it.
fn program(folder: &Path) -> String {
    let command = command(folder, &[]);
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

/// 40 torrents on a terminal of 24 rows: each round draws 22 of them and a total, once.
#[test]
fn the_progress_of_many_torrents_fits_the_terminal() {
    let name = "the_progress_of_many_torrents_fits_the_terminal";
    if Command::new("script").arg("--version").output().is_err() {
        skip(name, "there is no program `script`, which makes terminals");
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let names: Vec<String> = (10..10 + COUNT).map(|number| format!("torrent-{number}")).collect();
    for (name, seed) in names.iter().zip(1..) {
        write_file(folder, name, seed, 20_000);
        succeed(folder, &["create", name, "-o", &format!("{name}.torrent")]);
    }
    let line = format!(
        "stty rows 24 cols 80; exec {} download *.torrent -o there --no-dht --no-lsd --listen 127.0.0.1:0",
        program(folder)
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--flush", "--return", "--command", &line, "/dev/null"]);
    script.current_dir(folder).env("TERM", "xterm").env_remove("NO_COLOR");
    let mut process = Running::start(script.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut stdin = process.0.stdin.take().unwrap();
    let mut stdout = process.0.stdout.take().unwrap();
    let (sender, parts) = channel();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(len @ 1..) = stdout.read(&mut buffer) {
            let _ = sender.send(buffer[..len].to_vec());
        }
    });
    let total = format!("{COUNT} torrents, 0 complete, 0 %, 0 B/s");
    let mut shown = Vec::new();
    let rounds = |shown: &[u8]| String::from_utf8_lossy(shown).matches(&total).count();
    while rounds(&shown) < ROUNDS {
        shown.extend(parts.recv_timeout(Duration::from_secs(60)).expect("more output"));
    }
    std::io::Write::write_all(&mut stdin, b"\x03").unwrap();
    let text = String::from_utf8_lossy(&shown).into_owned();
    // A round is at most 23 lines of 80 characters, some of them of three bytes, with colors and cursor movements.
    let per_round = text.len() / rounds(text.as_bytes());
    assert!(per_round < 23 * 80 * 3, "{per_round} bytes a round");
    for round in text.split(&total).skip(1).take(ROUNDS - 2) {
        let drawn = names.iter().filter(|name| round.contains(name.as_str())).count();
        assert_eq!((drawn, round.matches("torrent-").count()), (22, 22), "{round}");
    }
    process.wait();
}

/// A terminal without cursor movements, as in Emacs, gets lines.
#[test]
fn a_dumb_terminal_gets_plain_lines() {
    let name = "a_dumb_terminal_gets_plain_lines";
    if Command::new("script").arg("--version").output().is_err() {
        skip(name, "there is no program `script`, which makes terminals");
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    write_file(folder, "one", 1, 20_000);
    succeed(folder, &["create", "one", "-o", "one.torrent"]);
    let line = format!(
        "{} download one.torrent --exit-on-complete --no-dht --no-lsd --listen 127.0.0.1:0",
        program(folder)
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let output = script.current_dir(folder).env("TERM", "dumb").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(!text.contains('\u{1b}') && text.contains("one: "), "{text:?}");
}
