//! State folders and limits that an administrator or an attacker changes under the daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::Value;

use crate::bed::{Daemon, PATIENCE, succeed, torrent, wait_until};

/// Returns a torrent's field once it has this property.
fn wait_for(daemon: &Daemon, hash: &str, field: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let begin = Instant::now();
    loop {
        let stats = daemon.get(&format!("/api/v1/torrents/{hash}?fields={field}")).json();
        if is_it(&stats[field]) {
            return stats[field].clone();
        }
        assert!(begin.elapsed() < PATIENCE, "{stats}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A write beyond the limit of file sizes is a visible fault of its torrent; the daemon and its other torrents
/// continue.
#[test]
fn a_limit_of_file_sizes_is_a_fault_of_the_torrent() {
    let (source, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (hash, bytes) = torrent(source.path(), "one.bin", 1, &[]);
    let seeder = Daemon::start_with(source.path(), &["--download-dir", "."]);
    seeder.post("/api/v1/torrents", &bytes);
    wait_for(&seeder, &hash, "state", |lifecycle| lifecycle == "seeding");
    let daemon = Daemon::start(place.path());
    let limit = Rlimit {
        current: Some(50_000),
        maximum: Some(50_000),
    };
    prlimit(Some(Pid::from_child(&daemon.process.0)), Resource::Fsize, limit).unwrap();
    daemon.post(&format!("/api/v1/torrents?peer={}", seeder.peers), &bytes);
    let error = wait_for(&daemon, &hash, "error", Value::is_string);
    let error = error.as_str().unwrap();
    assert!(error.contains("one.bin") && error.contains("File too large"), "{error}");
    assert_eq!(daemon.get("/api/v1/health").json()["status"], "running");
}

/// Adds a torrent, stops its daemon, and returns the paths of its session and of its torrent file.
fn saved(folder: &Path) -> (String, [PathBuf; 2]) {
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
    fs::write(folder.join("one.torrent"), bytes).unwrap();
    let mut daemon = Daemon::start(folder);
    succeed(folder, &["add", "one.torrent"]);
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait().success());
    let state = folder.join(".ecs_torrent/state");
    let paths = ["ron", "torrent"].map(|extension| state.join(format!("{hash}.{extension}")));
    (hash, paths)
}

/// A session that claims the longest running time that can be written does not overflow.
#[test]
fn a_session_of_all_times_is_resumed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (hash, [session, _]) = saved(folder);
    let text = fs::read_to_string(&session).unwrap();
    // A session without its checksum is one that somebody edited.
    let text = text.lines().filter(|line| !line.starts_with("// sha1 "));
    let text = text.map(|line| match line.trim_start().starts_with("seconds_active:") {
        true => format!("    seconds_active: {},\n", u64::MAX),
        false => format!("{line}\n"),
    });
    fs::write(&session, text.collect::<String>()).unwrap();
    let daemon = Daemon::start(folder);
    wait_for(&daemon, &hash, "state", |lifecycle| lifecycle == "downloading");
    let active = wait_for(&daemon, &hash, "seconds_active", Value::is_number);
    assert_eq!(active.as_u64(), Some(u64::MAX));
    assert_eq!(succeed(folder, &["stop", &hash[..6]]).lines().count(), 1);
}

/// A pipe or a folder in the place of a saved file neither holds up the start nor goes unnoticed.
#[test]
fn saved_files_that_are_no_files_are_reported() {
    for number in 0..2 {
        for is_pipe in [true, false] {
            let temporary = tempfile::tempdir().unwrap();
            let folder = temporary.path();
            let (_, paths) = saved(folder);
            let path = &paths[number];
            fs::remove_file(path).unwrap();
            if is_pipe {
                rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RUSR).unwrap();
            } else {
                fs::create_dir(path).unwrap();
            }
            let daemon = Daemon::start(folder);
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_reported = |line: &str| line.contains("cannot be resumed") && line.contains(name);
            wait_until("the report", || daemon.log().lines().any(is_reported));
        }
    }
}
