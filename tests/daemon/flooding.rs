//! Floods by clients without the token: a client with the token is still answered.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::bed::{Answer, Daemon, PATIENCE, command, succeed, torrent};
use crate::skipping::skip;

/// Limit of every answer time by the Unix socket, which only the daemon's user can open.
const SOON: Duration = Duration::from_secs(2);

/// Limit of every answer time by TCP, where the system queues a client behind the flood's connections, on a machine
/// that runs other tests too. Without protection, an answer takes many times as long.
const AT_MOST: Duration = Duration::from_secs(10);

/// Number of descriptors that a test process needs in addition to its flood.
const OTHER_DESCRIPTORS: u64 = 200;

/// Raises this process's limit of descriptors, so that it can open a flood of `count` connections; a test ends if it
/// cannot.
fn can_flood(test: &str, count: usize) -> bool {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let needed = count as u64 + OTHER_DESCRIPTORS;
    let is_possible = limit.maximum.is_none_or(|maximum| maximum >= needed);
    if !is_possible {
        skip(test, &format!("it takes {needed} file descriptors"));
    }
    is_possible
}

/// The state of a flood.
#[derive(Default)]
struct Flood {
    /// Number of opened connections, including those opened again after the daemon closed them.
    opened_count: AtomicUsize,
    is_over: AtomicBool,
}

impl Flood {
    /// Waits until the flood has opened `count` connections: until then, there is no attack to withstand.
    fn wait_opened(&self, count: usize) {
        let begin = Instant::now();
        let opened = || self.opened_count.load(Ordering::Relaxed);
        while opened() < count {
            assert!(begin.elapsed() < PATIENCE, "only {} of {count} were opened", opened());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Keeps `count` connections open, each of which sends `request`. Reopens connections that the daemon closes.
    fn run(&self, address: SocketAddr, count: usize, request: &[u8], habit: Habit) {
        let open = || {
            let mut stream = TcpStream::connect(address).ok()?;
            stream.set_nonblocking(true).ok()?;
            stream.write_all(request).ok()?;
            self.opened_count.fetch_add(1, Ordering::Relaxed);
            Some(stream)
        };
        let mut answers = vec![0; 1 << 16];
        let mut is_closed = |mut stream: &TcpStream| {
            let result = match habit {
                Habit::Waits => stream.peek(&mut [0]),
                Habit::NeverReads => stream.write(request),
                Habit::Reads => match stream.read(&mut answers) {
                    Ok(0) => Ok(0),
                    _ => stream.write(request),
                },
                Habit::Leaves => Ok(0),
            };
            match result {
                Ok(len) => len == 0,
                Err(error) => error.kind() != ErrorKind::WouldBlock,
            }
        };
        let mut streams: Vec<Option<TcpStream>> = (0..count).map(|_| open()).collect();
        while !self.is_over.load(Ordering::Relaxed) {
            for slot in &mut streams {
                if slot.as_ref().is_none_or(&mut is_closed) {
                    *slot = open();
                }
            }
            if matches!(habit, Habit::Waits | Habit::NeverReads) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// A client's behavior after its first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// Does nothing.
    Waits,
    /// Sends more requests and reads nothing.
    NeverReads,
    /// Sends more requests and reads the answers.
    Reads,
    /// Connects again.
    Leaves,
}

/// Floods the daemon from four threads while a client with the token sends requests, by TCP, by the Unix socket and
/// with the command.
fn request_in_a_flood(test: &str, count: usize, request: &str, habit: Habit) {
    if !can_flood(test, count) {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
    let mut events = daemon.events();
    let request = request.replace("HOST", &daemon.address.to_string());
    let flood = Flood::default();
    let (mut by_tcp, mut by_socket) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| flood.run(daemon.address, count / 4, request.as_bytes(), habit));
        }
        // A failed assertion ends the flood too.
        let _over = Over(&flood.is_over);
        flood.wait_opened(count);
        for _ in 0..10 {
            by_tcp.push(time_list(|| daemon.get("/api/v1/torrents")));
            by_socket.push(time_list(|| get_by_socket(&daemon, "/api/v1/torrents")));
            assert_eq!(succeed(folder, &["list"]), "no torrents\n");
        }
        assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    });
    assert_eq!(
        events.wait_for("added"),
        json!({"info_hash": hash}),
        "a client with the token stays"
    );
    by_tcp.sort();
    by_socket.sort();
    eprintln!(
        "{} opened; by TCP {by_tcp:?}, by the socket {by_socket:?}",
        flood.opened_count.into_inner()
    );
    assert!(by_tcp[9] < AT_MOST, "by TCP: {by_tcp:?}");
    assert!(by_socket[9] < SOON, "by the socket: {by_socket:?}");
}

/// Returns the time of an answer, which must be an empty list of torrents.
fn time_list(ask: impl FnOnce() -> Answer) -> Duration {
    let begin = Instant::now();
    let answer = ask();
    let time = begin.elapsed();
    assert_eq!((answer.status, &*answer.body), (200, "[]"), "after {time:?}");
    time
}

/// Sends a request with the token by the Unix socket.
fn get_by_socket(daemon: &Daemon, path: &str) -> Answer {
    let mut stream = UnixStream::connect(daemon.folder.join(".ecs_torrent/api.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = daemon.head("GET", path, &[("Authorization", &daemon.bearer())], b"");
    stream.write_all(&request).unwrap();
    Answer::read(stream)
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn requests_whose_answers_nobody_reads() {
    let request = "GET /api/v1/health HTTP/1.1\r\nHost: HOST\r\n\r\n".repeat(20);
    request_in_a_flood("requests_whose_answers_nobody_reads", 300, &request, Habit::NeverReads);
}

#[test]
fn a_thousand_heads_that_do_not_end() {
    let request = "GET /api/v1/torrents HTTP/1.1\r\nHost: HO";
    request_in_a_flood("a_thousand_heads_that_do_not_end", 1000, request, Habit::Waits);
}

#[test]
fn requests_without_end() {
    let request = "GET /api/v1/health HTTP/1.1\r\nHost: HOST\r\n\r\n".repeat(20);
    request_in_a_flood("requests_without_end", 300, &request, Habit::Reads);
}

#[test]
fn connections_without_end() {
    let request = "GET /api/v1/health HTTP/1.1\r\nHost: HOST\r\n\r\n";
    request_in_a_flood("connections_without_end", 300, request, Habit::Leaves);
}

/// A client that does not read its answers is disconnected, with or without the token.
#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let temporary = tempfile::tempdir().unwrap();
    std::fs::write(temporary.path().join("c.ron"), "(api: (write_timeout_s: 1))").unwrap();
    let daemon = Daemon::start_with(temporary.path(), &["--config", "c.ron"]);
    let mut stream = daemon.connect();
    let request = format!(
        "GET /api/v1/openapi.json HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\n\r\n",
        daemon.address,
        daemon.bearer()
    );
    let error = loop {
        if let Err(error) = stream.write_all(request.as_bytes()) {
            break error;
        }
    };
    // The error is not the client's own timeout.
    assert!(
        matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{error}"
    );
    assert_eq!(daemon.get("/api/v1/torrents").status, 200);
}

/// Only the daemon's user can open the socket, and requests still need the token.
#[test]
fn the_socket_is_private_and_preferred() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let socket = folder.join(".ecs_torrent/api.sock");
    let metadata = std::fs::symlink_metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let ask = |authorization: &str| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let head = "GET /api/v1/torrents HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
        write!(stream, "{head}{authorization}\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert!(ask("").starts_with("HTTP/1.1 401 "));
    let answer = ask(&format!("Authorization: {}\r\n", daemon.bearer()));
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("[]"),
        "{answer}"
    );

    // The command uses the socket: the address leads nowhere.
    let address = folder.join(".ecs_torrent/api_address");
    std::fs::write(&address, format!("127.0.0.1:1\n{}\n", std::process::id())).unwrap();
    assert_eq!(succeed(folder, &["list"]), "no torrents\n");
    // Without the socket, the command uses the address.
    std::fs::write(&address, format!("{}\n{}\n", daemon.address, std::process::id())).unwrap();
    std::fs::remove_file(&socket).unwrap();
    assert_eq!(succeed(folder, &["list"]), "no torrents\n");
}

/// The socket works in a state folder whose path is longer than a socket address can be.
#[test]
fn a_state_folder_deep_down() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("long".repeat(30)).join("longer".repeat(20));
    std::fs::create_dir_all(&folder).unwrap();
    let state = folder.join(".ecs_torrent");
    let mut daemon = Daemon::start_with(&folder, &["--state-dir", state.to_str().unwrap()]);
    assert!(state.join("api.sock").exists(), "{}", daemon.log());
    std::fs::remove_file(state.join("api_address")).unwrap();
    let list = ["list", "--state-dir", state.to_str().unwrap()];
    assert_eq!(succeed(&folder, &list), "no torrents\n");
    daemon.process.signal(rustix::process::Signal::TERM);
    assert!(daemon.process.wait().success());
    assert!(!state.join("api.sock").exists());
}

/// If another file occupies the socket's path, the daemon logs that, starts, and accepts TCP.
#[test]
fn a_socket_that_cannot_be_made() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::create_dir_all(folder.join(".ecs_torrent/api.sock")).unwrap();
    let daemon = Daemon::start(folder);
    assert!(daemon.log().contains("cannot listen"), "{}", daemon.log());
    let output = command(folder, &["list"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "no torrents\n", "{output:?}");
}

/// A client with the token displaces clients without it, even if the API allows only one connection.
#[test]
fn one_connection_slot_is_enough() {
    let temporary = tempfile::tempdir().unwrap();
    std::fs::write(
        temporary.path().join("c.ron"),
        "(api: (max_connections: 1, header_timeout_s: 3600))",
    )
    .unwrap();
    let daemon = Daemon::start_with(temporary.path(), &["--config", "c.ron"]);
    let mut strangers: Vec<TcpStream> = (0..3).map(|_| daemon.connect()).collect();
    assert_eq!(daemon.get("/api/v1/torrents").status, 200);
    for stranger in &mut strangers {
        assert_eq!(stranger.read(&mut [0]).unwrap_or(0), 0, "it had to make room");
    }
    let mut kept = daemon.connect();
    let request = |close: &str| {
        format!(
            "GET /api/v1/torrents HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\n{close}\r\n",
            daemon.address,
            daemon.bearer()
        )
    };
    kept.write_all(request("").as_bytes()).unwrap();
    let mut begin = [0; 12];
    kept.read_exact(&mut begin).unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
    let _next = daemon.connect();
    kept.write_all(request("Connection: close\r\n").as_bytes()).unwrap();
    let mut rest = String::new();
    kept.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("HTTP/1.1 200 OK"), "it keeps its place: {rest}");
}
