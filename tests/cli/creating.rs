//! The outputs that `create -o` writes to, and those that it refuses.

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::Stdio;

use crate::command::{Running, command};
use crate::{album, fail, run, succeed};

/// Asserts that `create` refuses an output and changes neither it nor the content.
fn assert_refused(folder: &Path, input: &str, output: &[&str], reason: &str) {
    let before = snapshot(folder);
    let error = fail(folder, &[&["create", input, "-o"], output].concat(), 1);
    assert!(error.contains(output[0]) && error.contains(reason), "{error}");
    assert!(!error.contains("tmp"), "{error}");
    assert_eq!(snapshot(folder), before, "{output:?}");
}

/// Returns the path, kind and bytes of everything in a folder.
fn snapshot(folder: &Path) -> Vec<(String, fs::FileType, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let bytes = if kind.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        found.push((path.display().to_string(), kind, bytes));
        if kind.is_dir() {
            found.extend(snapshot(&path));
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

/// Neither the input nor a file of the content is replaced, under any name and with any options.
#[test]
fn create_never_replaces_its_content() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    fs::write(folder.join("film.mkv"), "film").unwrap();
    fs::hard_link(folder.join("film.mkv"), folder.join("other.torrent")).unwrap();
    fs::hard_link(folder.join("album/one.bin"), folder.join("one.torrent")).unwrap();
    symlink("album", folder.join("link")).unwrap();
    for more in [&[][..], &["--overwrite"]] {
        for output in ["film.mkv", "./film.mkv", "other.torrent"] {
            let reason = "it is part of the content";
            assert_refused(folder, "film.mkv", &[&[output], more].concat(), reason);
        }
        for output in ["album/new.torrent", "album/sub/new.torrent", "link/new.torrent"] {
            let reason = "it is part of the content";
            assert_refused(folder, "album", &[&[output], more].concat(), reason);
        }
        assert_refused(folder, "album", &[&["album"], more].concat(), "it is a folder");
    }
    assert_refused(
        folder,
        "album",
        &["one.torrent", "--overwrite"],
        "it is part of the content",
    );
}

/// An existing regular file is replaced with `--overwrite` only, and a link or folder never.
#[test]
fn create_replaces_a_file_only_on_request() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    fs::write(folder.join("a.torrent"), "mine").unwrap();
    symlink("a.torrent", folder.join("link")).unwrap();
    symlink("nowhere", folder.join("dangling")).unwrap();
    assert_refused(folder, "album", &["a.torrent"], "it exists already; --overwrite");
    for link in ["link", "dangling"] {
        assert_refused(folder, "album", &[link], "it is a symbolic link");
        assert_refused(folder, "album", &[link, "--overwrite"], "it is a symbolic link");
    }
    assert_refused(folder, "album", &["a.torrent/x"], "cannot write a.torrent/x");
    assert_refused(folder, "album", &["missing/x"], "No such file");
    succeed(folder, &["create", "album", "-o", "a.torrent", "--overwrite"]);
    succeed(folder, &["verify", "a.torrent", "--data", "."]);
}

/// A torrent goes to the standard output, and through pipes and devices, which are not replaced.
#[test]
fn create_writes_through_pipes() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    let output = run(folder, &["create", "album", "-o", "-"]);
    assert!(output.status.success(), "{output:?}");
    let metainfo = ecs_torrent::Source::from(bytes::Bytes::from(output.stdout))
        .load()
        .unwrap();
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!("{}\n", metainfo.hashes.primary())
    );
    assert!(!folder.join("-").exists());

    let pipe = folder.join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let mut creating = Running::start(command(folder, &["create", "album", "-o", "pipe"]).stdout(Stdio::null()));
    let bytes = fs::read(&pipe).unwrap();
    assert!(creating.wait().success());
    assert_eq!(
        ecs_torrent::Source::from(bytes::Bytes::from(bytes))
            .load()
            .unwrap()
            .info
            .name,
        "album"
    );
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());

    let created = run(folder, &["create", "album", "-o", "/dev/null", "--overwrite"]);
    assert!(created.status.success(), "{created:?}");
    assert!(fs::symlink_metadata("/dev/null").unwrap().file_type().is_char_device());
}

/// A torrent's bytes do not go to a terminal, which would interpret them.
#[test]
fn create_does_not_write_to_a_terminal() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    album(folder);
    let terminal = fs::File::options().read(true).write(true).open("/dev/ptmx").unwrap();
    let output = command(folder, &["create", "album", "-o", "-"])
        .stdout(terminal)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.starts_with("error: ") && error.contains("it is a terminal"),
        "{error}"
    );
}

/// A path without a name makes no torrent.
#[test]
fn the_root_folder_has_no_name() {
    let temporary = tempfile::tempdir().unwrap();
    let error = fail(temporary.path(), &["create", "/", "-o", "-"], 1);
    assert!(error.contains("has no name"), "{error}");
}
