//! Torrent files with unusual names, URLs and hybrids.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{fail, run, stdout, succeed};

/// Returns the paths that `show` prints.
fn shown_paths(folder: &Path, torrent: &str) -> Vec<String> {
    let shown: Value = serde_json::from_str(&succeed(folder, &["show", torrent, "--json"])).unwrap();
    let files = shown["files"].as_array().unwrap().iter();
    files.map(|file| file["path"].as_str().unwrap().to_owned()).collect()
}

/// Creates a one-byte torrent with this name.
fn single(name: &str) -> String {
    let rest = format!("12:piece lengthi16384e6:pieces20:{}", "h".repeat(20));
    format!("d4:infod6:lengthi1e4:name{}:{name}{rest}ee", name.len())
}

/// A torrent cannot have a hidden top-level name.
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

/// `create` warns about names that change when the torrent is read.
#[test]
fn create_warns_about_renamed_files() {
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
    let output = run(folder, &["create", ".album", "-o", "album.torrent", "--overwrite"]);
    assert!(output.status.success(), "{output:?}");
    let warnings = String::from_utf8(output.stderr.clone()).unwrap();
    let first = "warning: .album/back\\slash: will be read as _album/back_slash";
    assert!(
        warnings.starts_with(first) && warnings.lines().count() == 2,
        "{warnings}"
    );
    let paths = shown_paths(folder, "album.torrent");
    assert_eq!(paths, ["_album/back_slash".to_owned(), format!("_album/{persian}")]);
    assert!(stdout(&output).ends_with(" album.torrent\n"));
}

/// `create` refuses URLs that cannot be used and says why.
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
        ("--node", "node.example", "not a host name or address with a port"),
    ] {
        let error = fail(folder, &["create", "file", "-o", "x.torrent", option, url], 2);
        assert!(error.contains(url) && error.contains(reason), "{error}");
        assert!(!folder.join("x.torrent").exists());
    }
}

/// BEP 5: a torrent without trackers names nodes. A private one is found by its trackers only.
#[test]
fn created_torrents_name_nodes_of_the_dht() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    fs::write(folder.join("file"), "content").unwrap();
    let create = [
        "create",
        "file",
        "-o",
        "x.torrent",
        "--node",
        "node.example:6881",
        "--node",
        "[::1]:6882",
    ];
    succeed(folder, &create);
    let shown: Value = serde_json::from_str(&succeed(folder, &["show", "x.torrent", "--json"])).unwrap();
    assert_eq!(shown["nodes"], serde_json::json!(["node.example:6881", "[::1]:6882"]));
    assert!(succeed(folder, &["show", "x.torrent"]).contains("DHT node      [::1]:6882\n"));
    let error = fail(folder, &[&create[..], &["--overwrite", "--private"]].concat(), 2);
    assert!(error.contains("--private"), "{error}");
}

/// Creates a hybrid with one file of five bytes and the given file tree.
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

/// Faults 13 and 14: hybrids whose halves disagree or whose root is missing are refused by every command.
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
        (node("x", 5, &"\0".repeat(32)), "pieces root is all zeros"),
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

/// A limit that no transfer could keep is refused with the option's name.
#[test]
fn limits_are_rates() {
    let temporary = tempfile::tempdir().unwrap();
    for (limit, reason) in [("fast", "not a number"), ("12", "at least 10 KiB/s")] {
        let output = run(
            temporary.path(),
            &["seed", "x.torrent", "--data", ".", "--upload-limit", limit],
        );
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("--upload-limit") && error.contains(reason), "{error}");
    }
}
