//! What torrent files may say, and what is made of it.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{fail, run, stdout, succeed};

/// The paths that `show` prints: those that would be written.
fn shown_paths(folder: &Path, torrent: &str) -> Vec<String> {
    let shown: Value = serde_json::from_str(&succeed(folder, &["show", torrent, "--json"])).unwrap();
    let files = shown["files"].as_array().unwrap().iter();
    files.map(|file| file["path"].as_str().unwrap().to_owned()).collect()
}

/// A torrent of one byte, of this name.
fn single(name: &str) -> String {
    let rest = format!("12:piece lengthi16384e6:pieces20:{}", "h".repeat(20));
    format!("d4:infod6:lengthi1e4:name{}:{name}{rest}ee", name.len())
}

/// A torrent cannot be called like the folders that programs keep hidden things in.
#[test]
fn no_torrent_is_hidden() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for (name, path) in [
        (".ssh", "_ssh"),
        (".ecs_torrent", "_ecs_torrent"),
        ("\u{200b}.config", "_.config"),
        ("v1.0", "v1.0"),
    ] {
        fs::write(folder.join("x.torrent"), single(name)).unwrap();
        assert_eq!(shown_paths(folder, "x.torrent"), [path]);
    }
}

/// Names that readers change are told with a warning, and the torrent is made of them all the same.
#[test]
fn names_that_are_read_otherwise_are_warned_of() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let persian = "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}";
    fs::create_dir_all(folder.join("album")).unwrap();
    fs::write(folder.join("album").join(persian), "text").unwrap();
    let output = run(folder, &["create", "album", "-o", "album.torrent"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(shown_paths(folder, "album.torrent"), [format!("album/{persian}")]);

    fs::write(folder.join("album/back\\slash"), "text").unwrap();
    fs::rename(folder.join("album"), folder.join(".album")).unwrap();
    let output = run(folder, &["create", ".album", "-o", "album.torrent"]);
    assert!(output.status.success(), "{output:?}");
    let warnings = String::from_utf8(output.stderr.clone()).unwrap();
    let first = "warning: .album/back\\slash: is read back as _album/back_slash";
    assert!(
        warnings.starts_with(first) && warnings.lines().count() == 2,
        "{warnings}"
    );
    let paths = shown_paths(folder, "album.torrent");
    assert_eq!(paths, ["_album/back_slash".to_owned(), format!("_album/{persian}")]);
    assert!(stdout(&output).ends_with(" album.torrent\n"));
}

/// Announce URLs that nobody can announce to are refused, each for its reason.
#[test]
fn urls_that_cannot_be_used_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    fs::write(folder.join("file"), "content").unwrap();
    for (option, url, reason) in [
        ("--tracker", "udp://t.example/announce", "it names no port"),
        ("--tracker", "http:///announce", "it names no host"),
        (
            "--tracker",
            "ftp://t.example/",
            "its scheme is ftp, not http, https, udp",
        ),
        ("--tracker", "http://t.example/a b", "it has a space"),
        ("--web-seed", "udp://t.example:1", "its scheme is udp, not http, https"),
    ] {
        let error = fail(folder, &["create", "file", "-o", "x.torrent", option, url], 1);
        assert!(error.contains(url) && error.contains(reason), "{error}");
        assert!(!folder.join("x.torrent").exists());
    }
}

/// A hybrid of a file of five bytes; its tree is what is given.
fn hybrid(tree: &str) -> String {
    let rest = format!(
        "12:meta versioni2e4:name1:x12:piece lengthi16384e6:pieces20:{}",
        "h".repeat(20)
    );
    format!("d4:infod9:file treed{tree}e6:lengthi5e{rest}ee")
}

fn node(name: &str, len: u64, root: &str) -> String {
    format!("1:{name}d0:d6:lengthi{len}e11:pieces root32:{root}ee")
}

/// A torrent whose v2 half is another one than its v1 half, or of nothing, is refused wherever it is
/// given.
#[test]
fn hybrids_that_disagree_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let root = "r".repeat(32);
    fs::write(folder.join("good.torrent"), hybrid(&node("x", 5, &root))).unwrap();
    assert_eq!(shown_paths(folder, "good.torrent"), ["x"]);
    for (tree, reason) in [
        (node("y", 5, &root), "v1 has x (5 bytes) where v2 has y (5 bytes)"),
        (node("x", 6, &root), "v1 has x (5 bytes) where v2 has x (6 bytes)"),
        (node("x", 5, &"\0".repeat(32)), "a pieces root of zeros"),
        ("1:xd0:d6:lengthi5eee".to_owned(), "no pieces root"),
        (String::new(), "where v2 has no more files"),
    ] {
        fs::write(folder.join("bad.torrent"), hybrid(&tree)).unwrap();
        let shown = fail(folder, &["show", "bad.torrent"], 1);
        assert!(
            shown.contains("bad.torrent: info.file tree") && shown.contains(reason),
            "{shown}"
        );
        let arguments = [
            "download",
            "good.torrent",
            "bad.torrent",
            "-o",
            "out",
            "--listen",
            "127.0.0.1:0",
        ];
        assert!(fail(folder, &arguments, 1).contains(reason));
        assert!(!folder.join("out").exists());
    }
}
