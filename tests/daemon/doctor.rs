//! `doctor` finds problems and changes nothing.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::bed::{Daemon, command, succeed};

/// Runs the doctor. Returns whether it succeeded, and its findings as area, verdict, text and advice.
fn findings(folder: &Path, arguments: &[&str]) -> (bool, Vec<[String; 4]>) {
    let output = command(folder, &[&["doctor", "--json"], arguments].concat())
        .output()
        .unwrap();
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let found = found
        .iter()
        .map(|finding| ["area", "verdict", "text", "advice"].map(|name| text(finding, name)));
    (output.status.success(), found.collect())
}

fn of<'f>(findings: &'f [[String; 4]], area: &str) -> &'f [String; 4] {
    let mut found = findings.iter().filter(|finding| finding[0] == area);
    found.next().unwrap_or_else(|| panic!("{area}: {findings:?}"))
}

const FREE: [&str; 4] = ["--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"];

#[test]
fn a_good_place_is_found_good_and_left_as_it_is() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (is_content, found) = findings(folder, &FREE);
    assert!(is_content, "{found:?}");
    for area in ["configuration", "state folder", "download folder", "daemon", "clock"] {
        assert_eq!(of(&found, area)[1], "good", "{found:?}");
    }
    assert!(of(&found, "state folder")[2].contains(", will be created, "));
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    let text = succeed(folder, &[&["doctor"][..], &FREE].concat());
    assert!(
        text.starts_with("good     configuration: all settings can be used\n"),
        "{text}"
    );
}

#[test]
fn each_problem_comes_with_advice() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    fs::write(folder.join("file"), "x").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    fs::create_dir(folder.join(".ecs_torrent")).unwrap();
    let future = fs::File::create(folder.join(".ecs_torrent/f")).unwrap();
    future
        .set_modified(SystemTime::now() + Duration::from_secs(3600))
        .unwrap();
    let arguments = ["--listen", &taken, "--api", &taken, "--download-dir", "file"];
    let (is_content, found) = findings(folder, &arguments);
    assert!(!is_content);
    let port = of(&found, "port for peers");
    assert_eq!(
        (&*port[1], &*port[2]),
        ("problem", &*format!("{taken}: another program uses it"))
    );
    assert!(port[3].contains("--listen"), "{port:?}");
    assert_eq!(of(&found, "port of the API")[1], "problem");
    let downloads = of(&found, "download folder");
    assert!(
        downloads[1] == "problem" && downloads[2].contains("is not a folder"),
        "{downloads:?}"
    );
    let clock = of(&found, "clock");
    assert!(
        clock[1] == "warning" && clock[2].contains(" in the future"),
        "{clock:?}"
    );
    for (path, verdict, text) in [
        ("file", "problem", "is not a folder"),
        ("new", "good", ", will be created, "),
    ] {
        fs::write(folder.join("c.ron"), format!("(storage: (incomplete_dir: {path:?}))")).unwrap();
        let (_, found) = findings(folder, &["--config", "c.ron"]);
        let incomplete = of(&found, "folder for incomplete torrents");
        assert!(
            incomplete[1] == verdict && incomplete[2].contains(text),
            "{incomplete:?}"
        );
    }
    fs::write(folder.join("c.ron"), "(tick: (max_interval_ms: 0))").unwrap();
    let (is_content, found) = findings(folder, &["--config", "c.ron"]);
    assert!(!is_content && found.len() == 1);
    assert!(
        found[0][2].starts_with("c.ron:1:26: tick.max_interval_ms: 0 is too small"),
        "{found:?}"
    );
}

/// The ports of a running daemon are its own; a daemon that does not answer is a problem.
#[test]
fn a_running_daemon_is_examined() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let (is_content, found) = findings(
        folder,
        &["--listen", &daemon.peers, "--api", &daemon.address.to_string()],
    );
    assert!(is_content, "{found:?}");
    // The daemon's own folder is checked, not that of the options.
    let downloads = &of(&found, "download folder")[2];
    let folder = folder.join("downloads").display().to_string();
    assert!(downloads.starts_with(&folder), "{downloads}");
    let process = daemon.process.0.id();
    let text = &of(&found, "daemon")[2];
    assert!(
        text.starts_with(&format!("process {process} is running, its API is at ")),
        "{text}"
    );
    assert!(found.iter().all(|finding| !finding[0].starts_with("port")));
}
