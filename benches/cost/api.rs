//! Requests to the API, answered by a daemon.
//!
//! The costs are those of the daemon's process: the threads' CPU time, time in the kernel included, and the peak of its
//! resident memory.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::IsWanted;
use crate::daemon::Daemon;
use crate::meter::Cost;
use crate::report::Row;

/// Number of requests of a row, one after the other, each on a connection of its own.
const REQUESTS: usize = 200;

/// Bytes that a head is filled with: little less than the longest one that is accepted.
const FILLING: usize = 15_000;

/// Name, the rest of the first line, further headers, and the status of the answer.
type Request = (&'static str, fn() -> String, fn() -> String, &'static str);

/// Requests without the token, for paths that are open to everybody.
const REQUESTS_BY_NAME: [Request; 5] = [
    (
        "request head with a long header",
        || "/api/v1/health".into(),
        || format!("X: {}\r\n", "x".repeat(FILLING)),
        "200",
    ),
    (
        "request head with many headers",
        || "/api/v1/health".into(),
        || {
            (0..90)
                .map(|number| format!("X{number}: {}\r\n", "x".repeat(FILLING / 90)))
                .collect()
        },
        "200",
    ),
    (
        "request head with too many headers",
        || "/api/v1/health".into(),
        || (0..FILLING / 9).map(|number| format!("X{number:04}: \r\n")).collect(),
        "431",
    ),
    (
        "query with an escaped value",
        || format!("/api/v1/proof?nonce={}", "%00".repeat(FILLING / 3)),
        String::new,
        "400",
    ),
    (
        "query with very many parameters",
        || format!("/api/v1/proof?{}", "nonce&".repeat(FILLING / 6)),
        String::new,
        "400",
    ),
];

/// Measures the selected rows.
///
/// # Panics
/// If an answer has another status than its row says, so that the request may not have been read.
pub fn measure(is_wanted: IsWanted<'_>, rows: &mut Vec<Row>) {
    for (name, path, headers, status) in REQUESTS_BY_NAME {
        if is_wanted("api", name) {
            let folder = tempfile::tempdir().unwrap();
            let daemon = Daemon::start(folder.path());
            let host = daemon.api;
            let (path, headers) = (path(), headers());
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
            // The first request includes one-time costs of the daemon.
            ask(&daemon, &request, status);
            let (begun, held) = (daemon.usage().1, daemon.peak());
            (0..REQUESTS).for_each(|_| ask(&daemon, &request, status));
            let cost = Cost {
                time: daemon.usage().1.saturating_sub(begun),
                // The kernel counts pages of each CPU together only now and then.
                memory: (daemon.peak().saturating_sub(held) << 10) as usize,
            };
            rows.push(Row::new("api", name, REQUESTS * request.len(), cost));
        }
    }
}

fn ask(daemon: &Daemon, request: &str, status: &str) {
    let mut stream = TcpStream::connect(daemon.api).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A daemon that does not read the whole request resets the connection after its answer.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
}
