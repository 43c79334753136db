//! A daemon in a temporary folder, and raw HTTP requests.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use ecs_torrent::making::MakeOptions;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub use crate::command::command;
use crate::content::{make_torrent, write_file};

/// Time limit for any wait: longer than any correct operation takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a command that must succeed, and returns what it printed.
pub fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = command(folder, arguments).output().unwrap();
    let Output { status, stdout, stderr } = output;
    assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// Runs a command that must fail quickly with exit code 1, and returns its one-line error.
pub fn fail(folder: &Path, arguments: &[&str]) -> String {
    fail_with(1, folder, arguments)
}

/// Like [`fail`], but with this exit code.
pub fn fail_with(code: i32, folder: &Path, arguments: &[&str]) -> String {
    let mut command = command(folder, arguments);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut process = Process(child);
    let status = process.wait();
    let mut stderr = String::new();
    process.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(
        stderr.starts_with("error: ") && stderr.lines().count() == 1,
        "one line: {stderr}"
    );
    stderr
}

/// Polls until `is_so` returns true.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Creates a torrent of noise, whose content lies in `folder`. Returns its info-hash and the torrent file's bytes.
pub fn torrent(folder: &Path, name: &str, seed: u64, trackers: &[&str]) -> (String, Vec<u8>) {
    torrent_with(folder, name, seed, |options| {
        options.trackers = trackers.iter().map(|tracker| (*tracker).to_owned()).collect();
    })
}

/// Like [`torrent`], with any options.
pub fn torrent_with(folder: &Path, name: &str, seed: u64, set: impl FnOnce(&mut MakeOptions)) -> (String, Vec<u8>) {
    let path = write_file(folder, name, seed, 100_000);
    let mut options = MakeOptions::default();
    set(&mut options);
    with_hash(make_torrent(&path, options))
}

/// Returns the info-hash of a torrent file, and the file's bytes.
fn with_hash(bytes: Vec<u8>) -> (String, Vec<u8>) {
    let source = ecs_torrent::Source::from(bytes::Bytes::from(bytes.clone()));
    (source.load().unwrap().hashes.primary().to_string(), bytes)
}

/// Creates an album of four files of noise in `folder`, whose borders lie within pieces. Returns its info-hash and the
/// torrent file's bytes.
pub fn write_album(folder: &Path) -> (String, Vec<u8>) {
    let options = MakeOptions {
        piece_length: Some(16 << 10),
        ..MakeOptions::default()
    };
    write_album_of(folder, ["a.txt", "b.txt", "c.txt", "d.txt"], 100_000, options)
}

/// Like [`write_album`], with these files of `len` bytes each.
pub fn write_album_of<'a>(
    folder: &Path,
    names: impl IntoIterator<Item = &'a str>,
    len: usize,
    options: MakeOptions,
) -> (String, Vec<u8>) {
    for (seed, name) in (1..).zip(names) {
        write_file(folder, &format!("album/{name}"), seed, len);
    }
    with_hash(make_torrent(&folder.join("album"), options))
}

/// A child process that ends with the test.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

pub struct Daemon {
    pub process: Process,
    pub address: SocketAddr,
    /// The address that accepts peers.
    pub peers: String,
    pub token: String,
    pub folder: PathBuf,
}

impl Daemon {
    pub fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[])
    }

    /// Starts a daemon that keeps all its files in `folder`, and waits until it runs.
    pub fn start_with(folder: &Path, arguments: &[&str]) -> Self {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("log"))
            .unwrap();
        Self::start_logging(folder, arguments, log.into())
    }

    /// Like [`Daemon::start_with`], but the log goes to `log` instead of [`Daemon::log`].
    pub fn start_logging(folder: &Path, arguments: &[&str], log: Stdio) -> Self {
        Self::start_listening("127.0.0.1:0", folder, arguments, log)
    }

    /// Like [`Daemon::start_logging`], but listens at another address.
    pub fn start_listening(listen: &str, folder: &Path, arguments: &[&str], log: Stdio) -> Self {
        let usual = ["daemon", "--listen", listen];
        let has_dir = arguments.contains(&"--download-dir");
        let dir: &[&str] = if has_dir { &[] } else { &["--download-dir", "downloads"] };
        let has_api = arguments.contains(&"--api");
        let api: &[&str] = if has_api { &[] } else { &["--api", "127.0.0.1:0"] };
        let mut child = command(folder, &[&usual, dir, api, arguments].concat())
            .env("RUST_LOG", "debug")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let process = Process(child);
        let (api, peers) = line.trim().split_once(", peers at ").unwrap_or_else(|| {
            let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
            panic!("no daemon: {line}{log}");
        });
        let address: SocketAddr = api.strip_prefix("API at http://").unwrap().parse().unwrap();
        let daemon = Self {
            process,
            address: SocketAddr::from(([127, 0, 0, 1], address.port())),
            peers: peers.to_owned(),
            token: fs::read_to_string(folder.join(".ecs_torrent/api_token")).unwrap(),
            folder: folder.to_owned(),
        };
        let begin = Instant::now();
        while daemon.ask("GET", "/api/v1/health", &[], b"").json()["status"] != "running" {
            assert!(begin.elapsed() < PATIENCE, "it does not come to run");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    /// Kills the daemon, and waits until it is gone.
    pub fn kill(mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait();
    }

    /// Kills the daemon, and starts another one in its folder.
    pub fn kill_and_start(self) -> Self {
        let folder = self.folder.clone();
        self.kill();
        Self::start(&folder)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends raw bytes, and reads until the daemon closes the connection.
    pub fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        Answer::read(stream)
    }

    /// Sends a request with the given headers, and reads the answer. Adds no token.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.raw(&self.head(method, path, headers, body))
    }

    /// Builds a whole request. Adds the correct `Host` unless the headers contain one.
    pub fn head(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            request += &format!("Host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("Content-Length: {}\r\n\r\n", body.len());
        [request.as_bytes(), body].concat()
    }

    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[("Authorization", &self.bearer())], b"")
    }

    pub fn post_json(&self, path: &str, body: &Value) -> Answer {
        let bearer = self.bearer();
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        self.ask("POST", path, &headers, body.to_string().as_bytes())
    }

    pub fn post(&self, path: &str, body: &[u8]) -> Answer {
        let headers = [
            ("Authorization", self.bearer()),
            ("Content-Type", "application/x-bittorrent".to_owned()),
        ];
        self.ask(
            "POST",
            path,
            &headers.each_ref().map(|(name, value)| (*name, value.as_str())),
            body,
        )
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, &[("Authorization", &self.bearer())], b"")
    }

    /// Returns the info-hashes of all torrents.
    pub fn hashes(&self) -> Vec<String> {
        let list = self.get("/api/v1/torrents?fields=info_hash").json();
        let torrents = list.as_array().unwrap().iter();
        torrents
            .map(|torrent| torrent["info_hash"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Subscribes to events that occur after this call.
    pub fn events(&self) -> Events {
        let mut stream = self.connect();
        let request = self.head("GET", "/api/v1/events", &[("Authorization", &self.bearer())], b"");
        stream.write_all(&request).unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
        Events(reader)
    }
}

pub struct Events(BufReader<TcpStream>);

impl Events {
    /// Reads until an event of this name arrives, and returns its data without the date.
    pub fn wait_for(&mut self, name: &str) -> Value {
        let mut is_it = false;
        loop {
            let mut line = String::new();
            assert_ne!(
                self.0.read_line(&mut line).unwrap(),
                0,
                "no more events, and none is {name}"
            );
            if let Some(event) = line.strip_prefix("event: ") {
                is_it = event.trim() == name;
            } else if let Some(data) = line.strip_prefix("data: ")
                && is_it
            {
                let mut data: Value = serde_json::from_str(data.trim()).unwrap();
                let date = data.as_object_mut().and_then(|data| data.remove("at"));
                assert!(date.is_some_and(|date| date.is_number()), "an event has a date");
                return data;
            }
        }
    }
}

#[derive(Debug)]
pub struct Answer {
    /// The HTTP status. 0 if the connection was closed without an answer.
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Reads an answer until the daemon closes the connection.
    pub fn read(mut stream: impl Read) -> Self {
        let mut bytes = Vec::new();
        // A daemon that does not read the whole body resets the connection after its answer.
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or(("", ""));
        Self {
            status: head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap()),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts that the answer is a JSON error with this status, which names `field` (or no field).
    #[track_caller]
    pub fn refused(&self, status: u16, field: Option<&str>) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.head.contains("content-type: application/json"), "{self:?}");
        let answer = self.json();
        assert!(!answer["error"].as_str().unwrap().is_empty(), "{self:?}");
        assert!(!answer["code"].as_str().unwrap().is_empty(), "{self:?}");
        assert_eq!(answer["field"].as_str(), field, "{self:?}");
    }
}
