//! Commands whose output cannot be written.

use std::fs::{File, OpenOptions};
use std::process::Stdio;

use crate::bed::{Daemon, command, torrent};

#[test]
fn a_full_disk_is_an_error() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (_, bytes) = torrent(folder, "one.bin", 1, &[]);
    std::fs::write(folder.join("one.torrent"), bytes).unwrap();
    let _daemon = Daemon::start(folder);
    for arguments in [
        &["completions", "bash"][..],
        &["completions", "zsh"],
        &["config", "default"],
        &["show", "one.torrent"],
        &["show", "one.torrent", "--json"],
        &["verify", "one.torrent", "--data", "."],
        &["list"],
        &["list", "--json"],
        &["add", "one.torrent"],
        &["--help"],
        &["help", "list"],
        &["--version"],
    ] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command(folder, arguments)
            .stdout(full)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(
            error.starts_with("error: cannot write to the standard output: ") && error.lines().count() == 1,
            "{arguments:?}: {error}"
        );
    }
}

/// A command ends quietly if the reader of its output is gone, as with `| head -1`.
#[test]
fn a_pipe_that_nobody_reads_ends_it_quietly() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for arguments in [&["completions", "bash"][..], &["config", "default"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(folder, arguments)
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
    let file = File::create(folder.join("script")).unwrap();
    assert!(
        command(folder, &["completions", "bash"])
            .stdout(file)
            .status()
            .unwrap()
            .success()
    );
    assert!(
        std::fs::read_to_string(folder.join("script"))
            .unwrap()
            .contains("ecs-torrent")
    );
}
