//! The HTTP API with many torrents: adds per second, times of list pages and of changes.
//!
//! ```sh
//! cargo bench --workspace --bench api                        # 10 000 torrents
//! API_TORRENTS=100000 cargo bench --workspace --bench api
//! ```

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints its results, and may fail as it likes"
)]

mod client;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use client::Client;

/// Connections over which torrents are added at the same time.
const CONNECTIONS: usize = 64;

/// Repetitions of each request.
const ROUNDS: usize = 20;

/// Number of torrents in a page.
const PAGE: usize = 50;

/// Number of torrents that change between two requests for changes.
const CHANGED: usize = 100;

struct Daemon {
    process: Child,
    address: SocketAddr,
    token: String,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Daemon {
    fn start(folder: &std::path::Path) -> Self {
        // The torrents find no peers, and need none.
        let config = "(dht: (enabled: false), lsd: (enabled: false), net: (listen: [\"127.0.0.1:0\"]), \
                      api: (listen: \"127.0.0.1:0\"))";
        fs::write(folder.join("config.ron"), config).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_ecs-torrent"))
            .args(["daemon", "--config", "config.ron", "--download-dir", "downloads"])
            .current_dir(folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .strip_prefix("API at http://")
            .and_then(|rest| rest.split(',').next());
        Self {
            process,
            address: address.expect("the address of the API").parse().unwrap(),
            token: fs::read_to_string(folder.join(".ecs_torrent/api_token")).unwrap(),
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.address, &self.token)
    }
}

/// Returns a torrent file of one block.
fn torrent(number: usize) -> Vec<u8> {
    let name = format!("torrent {number:06}");
    let hash = format!("{number:020}");
    let info = format!(
        "d6:lengthi16384e4:name{}:{name}12:piece lengthi16384e6:pieces20:{hash}e",
        name.len()
    );
    format!("d4:info{info}e").into_bytes()
}

/// Median and maximum of some times, in milliseconds.
fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    let (median, longest) = (millis(times[times.len() / 2]), millis(*times.last().unwrap()));
    println!("| {what} | {median:.2} | {longest:.2} |");
}

fn main() {
    let count: usize = std::env::var("API_TORRENTS").map_or(10_000, |count| count.parse().unwrap());
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());

    let next = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut client = daemon.client();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let (status, _) = client.post("/api/v1/torrents", &torrent(number));
                    assert_eq!(status, 201);
                }
            });
        }
    });
    let time = began.elapsed();
    println!(
        "{count} torrents added in {:.1} s: {:.0} a second\n",
        time.as_secs_f64(),
        count as f64 / time.as_secs_f64()
    );

    println!("| request | median ms | longest ms |\n|---|---:|---:|");
    let mut client = daemon.client();
    let mut timed = |path: &str| {
        let began = Instant::now();
        let (status, body) = client.get(path);
        assert_eq!(status, 200, "{path}");
        (began.elapsed(), body)
    };
    timed("/api/v1/totals");
    for column in [
        "added_at",
        "name",
        "-size",
        "state",
        "-speed.download",
        "ratio",
        "-progress",
        "eta",
        "info_hash",
    ] {
        let path = format!("/api/v1/torrents?sort={column}&limit={PAGE}");
        report(
            &format!("page by {column}"),
            (0..ROUNDS).map(|_| timed(&path).0).collect(),
        );
    }
    let path = format!("/api/v1/torrents?text=9&limit={PAGE}");
    report("page by text", (0..ROUNDS).map(|_| timed(&path).0).collect());
    report("whole list", (0..3).map(|_| timed("/api/v1/torrents").0).collect());
    report("totals", (0..ROUNDS).map(|_| timed("/api/v1/totals").0).collect());

    let (time, first) = timed("/api/v1/sync");
    report("sync of everything", vec![time]);
    let revision = |body: &[u8]| {
        let answer: Value = serde_json::from_slice(body).unwrap();
        (
            answer["revision"].as_str().unwrap().to_owned(),
            answer["torrents"].as_array().unwrap().len(),
        )
    };
    let (mut since, _) = revision(&first);
    report(
        "sync of nothing",
        (0..ROUNDS)
            .map(|_| timed(&format!("/api/v1/sync?since={since}")).0)
            .collect(),
    );
    let hashes = timed(&format!("/api/v1/torrents?fields=info_hash&limit={CHANGED}")).1;
    let hashes: Value = serde_json::from_slice(&hashes).unwrap();
    let mut times = Vec::new();
    for round in 0..4 {
        let operation = ["pause", "start"][round % 2];
        let mut other = daemon.client();
        for torrent in hashes.as_array().unwrap() {
            let hash = torrent["info_hash"].as_str().unwrap();
            assert_eq!(other.post(&format!("/api/v1/torrents/{hash}/{operation}"), b"").0, 204);
        }
        let (time, body) = timed(&format!("/api/v1/sync?since={since}"));
        let (next, changed) = revision(&body);
        assert_eq!(changed, CHANGED.min(count));
        times.push(time);
        since = next;
        // A start ends after its answer.
        std::thread::sleep(Duration::from_millis(500));
        since = revision(&timed(&format!("/api/v1/sync?since={since}")).1).0;
    }
    report(&format!("sync of {CHANGED}"), times);
}
