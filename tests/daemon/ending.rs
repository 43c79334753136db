//! Shutdowns that do not wait for hanging disks and peers, and lose nothing that was acknowledged.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;

use crate::bed::{Daemon, PATIENCE, torrent};

/// Returns the system call in which the thread of this name waits, as the kernel reports it.
fn system_call(process: u32, thread: &str) -> Option<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut folders = tasks.filter_map(|task| Some(task.ok()?.path()));
    let is_it = |folder: &Path| {
        let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        // The kernel keeps only 15 characters of a thread name.
        name.trim() == &thread[..15]
    };
    let folder = folders.find(|folder| is_it(folder) && folder.join("syscall").exists())?;
    let text = fs::read_to_string(folder.join("syscall")).ok()?;
    Some(text.split_whitespace().next()?.to_owned())
}

/// Starts a daemon whose state folder hangs: a pipe without a reader lies at the path of a session file.
fn hanging_daemon(folder: &Path) -> Daemon {
    let daemon = Daemon::start(folder);
    let id = daemon.process.0.id();
    let waiting = || system_call(id, "ecs-torrent-state").filter(|call| call != "running");
    let idle = waiting().expect("the thread of the state folder");
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
    let pipe = folder.join(format!(".ecs_torrent/state/{hash}.tmp"));
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    // This test does not check whether the daemon answers before it saves the session.
    let headers = [
        ("Authorization", daemon.bearer()),
        ("Content-Type", "application/x-bittorrent".to_owned()),
    ];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut client = daemon.connect();
    client
        .write_all(&daemon.head("POST", "/api/v1/torrents", &headers, &bytes))
        .unwrap();
    // The thread hangs if it stays in a system call other than the one in which it waits for work.
    let (begin, mut stuck_count) = (Instant::now(), 0);
    while stuck_count < 10 {
        let is_stuck = waiting().is_some_and(|call| call != idle);
        stuck_count = if is_stuck { stuck_count + 1 } else { 0 };
        assert!(begin.elapsed() < PATIENCE, "the state folder does not hang");
        std::thread::sleep(Duration::from_millis(10));
    }
    daemon
}

fn wait_until_stopping(daemon: &Daemon) {
    let begin = Instant::now();
    while !daemon
        .ask("GET", "/api/v1/health", &[], b"")
        .body
        .contains("\"stopping\"")
    {
        assert!(begin.elapsed() < PATIENCE, "the first signal does nothing");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Limit of the time between a second signal and the end of the process: the two seconds that README.md promises, and
/// one for a machine that runs other tests too. The stop that the first signal began takes 10 s to give up.
const FORCED_END: Duration = Duration::from_secs(3);

/// A second signal ends the process even if the state folder hangs.
#[test]
fn a_second_signal_ends_what_hangs() {
    let temporary = tempfile::tempdir().unwrap();
    let mut daemon = hanging_daemon(temporary.path());
    daemon.process.signal(Signal::TERM);
    wait_until_stopping(&daemon);
    let began = Instant::now();
    daemon.process.signal(Signal::TERM);
    assert_eq!(daemon.process.wait().code(), Some(1));
    let time = began.elapsed();
    assert!(time < FORCED_END, "it took {time:?}");
    let log = daemon.log();
    assert!(log.contains("error: ended by a second signal"), "{log}");
}

/// A single signal ends the process too, even if the state folder hangs. The stop has a deadline, and the log names
/// the torrents that could not be saved.
#[test]
fn a_stop_does_not_wait_for_what_hangs() {
    let temporary = tempfile::tempdir().unwrap();
    let mut daemon = hanging_daemon(temporary.path());
    daemon.process.signal(Signal::TERM);
    assert_eq!(daemon.process.wait().code(), Some(1));
    let log = daemon.log();
    assert!(log.contains("error: ") && log.contains("one.bin"), "{log}");
    assert!(log.contains("the state folder hangs"), "{log}");
}

/// Repeated signals lose nothing that was acknowledged: after a restart, added torrents are listed again, and a
/// stopped torrent is stopped.
#[test]
fn five_quick_signals_lose_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let mut hashes: Vec<String> = Vec::new();
    for round in 0..4 {
        let mut daemon = Daemon::start(folder);
        let mut known = daemon.hashes();
        let stopped = daemon.get("/api/v1/torrents?stopped=true").json();
        let stopped: Vec<&str> = stopped
            .as_array()
            .unwrap()
            .iter()
            .map(|torrent| torrent["info_hash"].as_str().unwrap())
            .collect();
        assert_eq!(stopped.len(), usize::from(round > 0), "round {round}");
        assert!(!known.iter().any(|hash| stopped.contains(&hash.as_str())));
        known.extend(stopped.iter().map(ToString::to_string));
        for hash in stopped {
            assert_eq!(daemon.post(&format!("/api/v1/torrents/{hash}/resume"), b"").status, 204);
        }
        known.sort();
        assert_eq!(known, hashes, "round {round}");
        for number in 0..3 {
            let name = format!("{round}-{number}.bin");
            let (hash, bytes) = torrent(folder, &name, 10 * round + number, &[]);
            assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
            hashes.push(hash);
        }
        hashes.sort();
        let stopped = &hashes[0];
        assert_eq!(
            daemon.post(&format!("/api/v1/torrents/{stopped}/stop"), b"").status,
            204
        );
        (0..5).for_each(|_| daemon.process.signal(Signal::TERM));
        daemon.process.wait();
    }
}

#[test]
fn each_line_of_a_log_in_a_file_begins_with_its_time() {
    let temporary = tempfile::tempdir().unwrap();
    // The time in the log has fewer digits.
    let begin = SystemTime::now() - Duration::from_millis(1);
    let mut daemon = Daemon::start(temporary.path());
    let (_, bytes) = torrent(temporary.path(), "one.bin", 1, &[]);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait().success());
    let log = daemon.log();
    assert!(log.lines().count() > 1, "{log}");
    for line in log.lines() {
        let time = line.split(' ').next().map(humantime::parse_rfc3339);
        let Some(Ok(time)) = time else { panic!("{line}") };
        assert!((begin..=SystemTime::now()).contains(&time), "{line}");
    }
}

/// A stalled reader of the log stalls neither the daemon nor the log file. When it reads again, the log gives the
/// number of lost lines.
#[test]
fn a_log_that_nobody_reads() {
    let temporary = tempfile::tempdir().unwrap();
    let (log, writer) = std::io::pipe().unwrap();
    let mut daemon = Daemon::start_logging(temporary.path(), &["--log-file", "daemon.log"], Stdio::from(writer));
    // Produces more lines than the pipe and the queue hold.
    let request = |count: usize| {
        let mut client = BufReader::new(daemon.connect());
        let head =
            String::from_utf8(daemon.head("GET", "/api/v1/torrents", &[("Authorization", &daemon.bearer())], b""));
        let head = head.unwrap().replace("Connection: close\r\n", "");
        for _ in 0..count {
            client.get_mut().write_all(head.as_bytes()).unwrap();
            let mut line = String::new();
            client.read_line(&mut line).unwrap();
            assert!(line.starts_with("HTTP/1.1 200"), "{line}");
            while !line.ends_with("\r\n\r\n") {
                assert_ne!(client.read_line(&mut line).unwrap(), 0, "{line}");
            }
            client.read_exact(&mut [0; 2]).unwrap();
        }
    };
    request(7000);
    let (hash, bytes) = torrent(temporary.path(), "one.bin", 1, &[]);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    assert_eq!(daemon.hashes(), [hash]);
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(log).lines();
        lines
            .map_while(Result::ok)
            .filter(|line| line.contains("were dropped"))
            .collect::<Vec<_>>()
    });
    request(1);
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait().success());
    let logged = reader.join().unwrap();
    assert!(!logged.is_empty(), "the log says how many lines were dropped");
    let file = fs::read_to_string(temporary.path().join("daemon.log")).unwrap();
    let requests = file
        .lines()
        .filter(|line| line.contains("GET path=\"/api/v1/torrents\""));
    assert!(requests.count() > 7000, "the file has the lines that nobody read");
    assert!(!file.contains("were dropped"));
}
