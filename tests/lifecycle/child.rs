//! An engine in a process of its own: this test binary, run again with a task in its environment.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ecs_torrent::{AddOptions, Settings};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bed::{Bed, DEADLINE, Torrent};

const TASK: &str = "ECS_TORRENT_TEST_CHILD";

/// Task of a child: adds torrents, reports their stages, and stops in order when its input ends.
#[derive(Serialize, Deserialize)]
struct Task {
    settings: Settings,
    torrents: Vec<Added>,
}

#[derive(Serialize, Deserialize)]
struct Added {
    file: std::path::PathBuf,
    root: std::path::PathBuf,
    peer: SocketAddr,
}

/// Entry point of a [`Process`], not a test.
#[test]
#[ignore = "run by other tests, in a process of its own"]
fn child_main() {
    let Ok(task) = std::env::var(TASK) else { return };
    let task: Task = serde_json::from_str(&task).unwrap();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    let mut bed = Bed::with(task.settings).unwrap();
    print_line(&json!({"address": bed.address().to_string()}));
    for Added { file, root, peer } in task.torrents {
        let options = AddOptions {
            root: Some(root),
            peers: vec![peer],
            ..AddOptions::default()
        };
        let torrents = bed.torrents();
        bed.block_on(torrents.download_with(file, options)).unwrap();
    }
    let (ended, is_ended) = channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop(ended);
    });
    // If the parent dies, the input ends too.
    while matches!(is_ended.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
        let Some((id, life)) = bed.next_life(Duration::from_millis(20)) else {
            continue;
        };
        let stats = bed.stats(id);
        print_line(&json!({
            "torrent": id.to_string(), "life": crate::bed::word(&life), "reason": crate::bed::reason(&life),
            "completed": stats.held_pieces(), "downloaded": stats.downloaded,
        }));
    }
    let stopped = bed.stop_all().map_err(|error| error.to_string());
    print_line(&json!({"stopped": stopped.is_ok(), "error": stopped.err()}));
}

fn print_line(line: &Value) {
    // The test harness may have printed an unfinished line before.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "\n{line}");
}

/// A child process that is killed on drop.
pub struct Process {
    child: Child,
    lines: Receiver<Value>,
    log: std::fs::File,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Shell command without effect. The shell runs such a command before it becomes the child, for example to set limits.
pub const NO_LIMITS: &str = "true";

impl Process {
    /// Starts a process whose engine downloads `torrents`, each from a peer into a root.
    pub fn start(settings: &Settings, torrents: &[(&Torrent, &Path, SocketAddr)], limits: &str) -> Self {
        let torrents = torrents.iter().map(|(torrent, root, peer)| Added {
            file: torrent.file(),
            root: (*root).to_owned(),
            peer: *peer,
        });
        let task = Task {
            settings: settings.clone(),
            torrents: torrents.collect(),
        };
        let log = tempfile::tempfile().unwrap();
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!("{limits} && exec \"$0\" \"$@\""))
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "child::child_main",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(TASK, serde_json::to_string(&task).unwrap())
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.try_clone().unwrap())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let printed = out.lines().map_while(Result::ok);
            for line in printed.filter_map(|line| serde_json::from_str(&line).ok()) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines, log }
    }

    /// Waits for a line that `wanted` accepts.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        let mut past = Vec::new();
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) if wanted(&line) => return line,
                Ok(line) => past.push(line),
                Err(error) => panic!("waited for {what} ({error}), read {past:#?} {}", self.log()),
            }
        }
    }

    /// Waits for the given time at most, or until the child prints a line that `wanted` accepts. Returns whether it
    /// did.
    pub fn wait_at_most(&self, time: Duration, mut wanted: impl FnMut(&Value) -> bool) -> bool {
        let deadline = Instant::now() + time;
        let left = || deadline.saturating_duration_since(Instant::now());
        std::iter::from_fn(|| self.lines.recv_timeout(left()).ok()).any(|line| wanted(&line))
    }

    /// Waits until a torrent enters a stage of its life.
    pub fn wait_life(&self, torrent: &Torrent, life: &str) -> Value {
        let id = torrent.info_hash().to_string();
        self.wait(life, |line| line["torrent"] == id.as_str() && line["life"] == life)
    }

    pub fn address(&self) -> SocketAddr {
        let line = self.wait("the address", |line| line["address"].is_string());
        line["address"].as_str().unwrap().parse().unwrap()
    }

    /// Returns the child's log.
    pub fn log(&self) -> String {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; self.log.metadata().unwrap().len() as usize];
        self.log.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Kills the child at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops the child in order.
    pub fn stop(&mut self) {
        drop(self.child.stdin.take());
        let line = self.wait("the stop", |line| line["stopped"].is_boolean());
        assert_eq!(line["stopped"], true, "{line}");
        assert!(self.child.wait().unwrap().success());
    }
}
