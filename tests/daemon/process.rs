//! The daemon process: its start and its end.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use rustix::process::Signal;

use crate::bed::{Daemon, fail, succeed, torrent};

#[test]
fn a_signal_ends_it_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        let mut daemon = Daemon::start(folder);
        let (_, bytes) = torrent(folder, "one.bin", 1, &[]);
        assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
        let file = folder.join(".ecs_torrent/api_address");
        let content = fs::read_to_string(&file).unwrap();
        let process = daemon.process.0.id().to_string();
        assert_eq!(content.lines().next(), Some(daemon.address.to_string().as_str()));
        assert_eq!(
            content.lines().nth(1).unwrap().split(' ').next(),
            Some(process.as_str())
        );
        let socket = folder.join(".ecs_torrent/api.sock");
        assert!(socket.exists());
        let mut events = daemon.events();
        daemon.process.signal(signal);
        events.wait_for("stopped");
        let status = daemon.process.wait();
        assert_eq!((status.code(), status.signal()), (Some(0), None));
        assert!(
            !file.exists() && !socket.exists(),
            "clients do not look for it any more"
        );
    }
}

/// Torrents are listed again after a restart, with their folder and name.
#[test]
fn torrents_survive_a_restart() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let mut daemon = Daemon::start(folder);
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
    assert_eq!(daemon.post("/api/v1/torrents?root=there", &bytes).status, 201);
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait().success(), "{}", daemon.log());
    let daemon = Daemon::start(folder);
    assert_eq!(daemon.hashes(), [hash.as_str()]);
    let stats = daemon.get(&format!("/api/v1/torrents/{hash}?fields=root,name")).json();
    assert_eq!(stats["name"], "one.bin");
    assert!(stats["root"].as_str().unwrap().ends_with("/downloads/there"), "{stats}");
}

/// Fault 83: a second daemon neither touches the first daemon's state nor hides the first daemon from its clients.
#[test]
fn fault_83_one_daemon_has_a_state_folder() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let error = fail(folder, &["daemon", "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"]);
    assert!(error.contains(".ecs_torrent"), "{error}");
    let address = fs::read_to_string(folder.join(".ecs_torrent/api_address")).unwrap();
    assert_eq!(address.lines().next(), Some(daemon.address.to_string().as_str()));
    assert_eq!(daemon.hashes(), [""; 0]);
    assert_eq!(succeed(folder, &["list"]), "no torrents\n");
}

#[test]
fn a_start_that_fails_says_why() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let start = |arguments: &[&str]| {
        let usual = ["daemon", "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"];
        fail(
            folder,
            &[&usual[..5 - 2 * usize::from(arguments[0] == "--api")], arguments].concat(),
        )
    };
    let error = start(&["--api", &address]);
    assert!(error.contains(&format!("cannot serve the API on {address}")), "{error}");
    fs::write(folder.join("file"), "").unwrap();
    let error = start(&["--state-dir", "file"]);
    assert!(error.contains("file"), "{error}");
    let error = start(&["--download-dir", "file"]);
    assert!(error.contains("file"), "{error}");
    fs::write(folder.join(".ecs_torrent/api_token"), "x").unwrap();
    let error = start(&["--download-dir", "."]);
    assert!(error.contains("api_token: not a token"), "{error}");
}
