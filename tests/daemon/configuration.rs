//! The configuration file.

use std::fs;

use crate::bed::{Daemon, fail, succeed};

#[test]
fn the_default_is_a_configuration() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let default = succeed(folder, &["config", "default"]);
    assert!(
        default.contains("\n        // Range 1 to 1000000.\n        max_connections: 500,\n"),
        "{default}"
    );
    fs::write(folder.join("c.ron"), default).unwrap();
    assert_eq!(succeed(folder, &["config", "check", "c.ron"]), "c.ron: good\n");
}

/// Errors give the file, line and column, from `config check` and from the daemon alike.
#[test]
fn errors_name_their_place() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for (text, error) in [
        ("(\n    net: (\n        lisen: [],\n    ),\n)", "c.ron:3:9: "),
        ("(\n    nett: (),\n)", "c.ron:2:5: "),
        ("(\n    api: (listen: \"nowhere\"),\n)", "c.ron:2:20: "),
        (
            "(\n    tick: (max_interval_ms: 0),\n)",
            "c.ron:2:29: tick.max_interval_ms: 0 is too small, it can be from 1 to 60000",
        ),
    ] {
        fs::write(folder.join("c.ron"), text).unwrap();
        for arguments in [
            &["config", "check", "c.ron"][..],
            &[
                "daemon",
                "--config",
                "c.ron",
                "--listen",
                "127.0.0.1:0",
                "--api",
                "127.0.0.1:0",
            ],
        ] {
            let refusal = fail(folder, arguments);
            assert!(refusal.contains(error), "{refusal}");
        }
        assert!(!folder.join(".ecs_torrent").exists(), "nothing is begun");
    }
    assert!(fail(folder, &["config", "check", "missing.ron"]).contains("cannot read missing.ron"));
}

/// Command-line arguments override the configuration file.
#[test]
fn arguments_go_before_the_file() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let text = "(
        net: (listen: [\"192.0.2.1:1\"]),
        storage: (download_dir: \"/nowhere/at/all\"),
        session: (state_dir: \"/nowhere/either\"),
        api: (listen: \"192.0.2.1:1\", max_body_bytes: 10),
    )";
    fs::write(folder.join("c.ron"), text).unwrap();
    let daemon = Daemon::start_with(folder, &["--config", "c.ron", "--state-dir", ".ecs_torrent"]);
    assert!(folder.join("downloads").is_dir());
    daemon
        .post("/api/v1/torrents", b"12345678901")
        .refused(413, Some("body"));
}
