//! Files are read through the API while they are downloaded.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use ecs_torrent::making::MakeOptions;
use serde_json::{Value, json};

use crate::bed::{Answer, Daemon, Process, command, fail, succeed, wait_until};
use crate::choosing::seed_album;
use crate::content::{make_torrent, noise, write_file};

/// Bytes of the movie.
const LENGTH: usize = 3_000_001;

/// An answer whose body is read as far as it is needed.
struct Content {
    status: u16,
    /// The head, in lower case.
    head: String,
    body: BufReader<TcpStream>,
}

impl Content {
    fn ask(daemon: &Daemon, method: &str, path: &str, headers: &[(&str, &str)]) -> Self {
        let bearer = daemon.bearer();
        let headers = [&[("Authorization", bearer.as_str())], headers].concat();
        let mut stream = daemon.connect();
        stream.write_all(&daemon.head(method, path, &headers, b"")).unwrap();
        let mut body = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(body.read_line(&mut head).unwrap(), 0, "{head}");
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let head = head.to_ascii_lowercase();
        Self { status, head, body }
    }

    fn get(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> Self {
        Self::ask(daemon, "GET", path, headers)
    }

    fn range(daemon: &Daemon, path: &str, range: &str) -> Self {
        Self::get(daemon, path, &[("Range", range)])
    }

    #[track_caller]
    fn has(&self, line: &str) {
        assert!(self.head.lines().any(|other| other == line), "{line}: {}", self.head);
    }

    /// Reads until the connection ends.
    fn rest(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A body that breaks off may end with a reset.
        let _ = self.body.read_to_end(&mut bytes);
        bytes
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.body.read_exact(&mut bytes).unwrap();
        bytes
    }
}

/// A daemon that seeds a movie slowly, and its torrent.
struct Movie {
    _folder: tempfile::TempDir,
    seed: Daemon,
    hash: String,
    torrent: Vec<u8>,
    bytes: Vec<u8>,
}

impl Movie {
    /// `limit` bounds the uploads of the seed, in bytes per second.
    fn new(limit: u64) -> Self {
        Self::named("movie.mkv", 7, limit)
    }

    fn named(name: &str, noise_seed: u64, limit: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = write_file(folder.path(), name, noise_seed, LENGTH);
        let options = MakeOptions {
            piece_length: Some(32 << 10),
            ..MakeOptions::default()
        };
        let torrent = make_torrent(&path, options);
        let source = ecs_torrent::Source::from(bytes::Bytes::from(torrent.clone()));
        let hash = source.load().unwrap().hashes.primary().to_string();
        let seed = Daemon::start_with(folder.path(), &["--download-dir", "."]);
        let path = format!("/api/v1/torrents?upload_limit={limit}");
        assert_eq!(seed.post(&path, &torrent).status, 201);
        wait_until("a seed", || state(&seed, &hash) == "seeding");
        let bytes = noise(noise_seed, LENGTH);
        Self {
            _folder: folder,
            seed,
            hash,
            torrent,
            bytes,
        }
    }

    /// Adds the torrent to a daemon, and returns the path of its content.
    fn add(&self, daemon: &Daemon) -> String {
        let path = format!("/api/v1/torrents?peer={}", self.seed.peers);
        assert_eq!(daemon.post(&path, &self.torrent).status, 201);
        wait_until("a download", || state(daemon, &self.hash) == "downloading");
        format!("/api/v1/torrents/{}/files/0/content", self.hash)
    }
}

fn state(daemon: &Daemon, hash: &str) -> String {
    let answer = daemon.get(&format!("/api/v1/torrents/{hash}?fields=state")).json();
    answer["state"].as_str().unwrap_or_default().to_owned()
}

fn completed(daemon: &Daemon, hash: &str) -> u64 {
    let answer = daemon.get(&format!("/api/v1/torrents/{hash}?fields=completed")).json();
    answer["completed"].as_u64().unwrap()
}

fn patch(daemon: &Daemon, path: &str, body: &Value) -> Answer {
    let headers = [
        ("Authorization", daemon.bearer()),
        ("Content-Type", "application/json".to_owned()),
    ];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    daemon.ask("PATCH", path, &headers, body.to_string().as_bytes())
}

/// A daemon with these lines in its configuration.
fn daemon_with(folder: &Path, config: &str) -> Daemon {
    fs::write(folder.join("c.ron"), config).unwrap();
    Daemon::start_with(folder, &["--config", "c.ron"])
}

/// Every form of a range gets the right bytes, while most of the file is missing; then the whole file is read to its
/// end.
#[test]
fn ranges_of_a_file_are_read_while_it_is_downloaded() {
    let movie = Movie::new(600_000);
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let path = movie.add(&daemon);
    let tag = format!("\"{}-0\"", movie.hash);
    for (range, bytes) in [
        ("bytes=2900000-2900099", 2_900_000..2_900_100),
        ("bytes=-10", LENGTH - 10..LENGTH),
        ("bytes=2999990-", 2_999_990..LENGTH),
        ("bytes=1500000-1500000", 1_500_000..1_500_001),
    ] {
        let part = Content::range(&daemon, &path, range);
        assert_eq!(part.status, 206, "{}", part.head);
        part.has(&format!(
            "content-range: bytes {}-{}/{LENGTH}",
            bytes.start,
            bytes.end - 1
        ));
        part.has(&format!("content-length: {}", bytes.len()));
        part.has("content-type: video/x-matroska");
        part.has(&format!("etag: {tag}"));
        assert_eq!(part.rest(), &movie.bytes[bytes], "{range}");
    }
    let held = completed(&daemon, &movie.hash);
    assert!(held < LENGTH as u64, "the rest is missing: {held}");

    let whole = Content::get(&daemon, &path, &[]);
    assert_eq!(whole.status, 200);
    whole.has("accept-ranges: bytes");
    whole.has(&format!("content-length: {LENGTH}"));
    assert_eq!(whole.rest(), movie.bytes);
    let other = Content::get(&daemon, &path, &[("Range", "bytes=5-6"), ("If-Range", "\"other\"")]);
    assert_eq!(
        (other.status, other.rest()),
        (200, movie.bytes.clone()),
        "of another version"
    );
    let same = Content::get(&daemon, &path, &[("Range", "bytes=5-6"), ("If-Range", &tag)]);
    assert_eq!((same.status, same.rest()), (206, movie.bytes[5..7].to_vec()));
    let several = Content::range(&daemon, &path, "bytes=0-1,5-6");
    assert_eq!((several.status, several.rest().len()), (200, LENGTH));
    let none = Content::get(&daemon, &path, &[("If-None-Match", &tag)]);
    assert_eq!((none.status, none.rest()), (304, Vec::new()));
    assert_eq!(Content::get(&daemon, &path, &[("If-Match", "\"other\"")]).status, 412);
    let head = Content::ask(&daemon, "HEAD", &path, &[("Range", "bytes=0-1")]);
    head.has(&format!("content-length: {LENGTH}"));
    assert_eq!((head.status, head.rest()), (200, Vec::new()));
    let beyond = Content::range(&daemon, &path, &format!("bytes={LENGTH}-"));
    beyond.has(&format!("content-range: bytes */{LENGTH}"));
    assert_eq!(beyond.status, 416);
}

/// Requests for content that cannot be read are refused with the reason, and so are requests without the token.
#[test]
fn what_cannot_be_read_is_refused() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (seed, hash, bytes) = seed_album(other.path());
    let daemon = Daemon::start(folder.path());
    let path = |index: &str| format!("/api/v1/torrents/{hash}/files/{index}/content");
    daemon.get(&path("0")).refused(404, Some("hash"));
    let add = format!("/api/v1/torrents?files=0&peer={}", seed.peers);
    assert_eq!(daemon.post(&add, &bytes).status, 201);
    wait_until("the first file", || state(&daemon, &hash) == "finished");
    daemon
        .ask("GET", &path("0"), &[], b"")
        .refused(401, Some("Authorization"));
    daemon.get(&path("4")).refused(404, Some("index"));
    daemon.get(&path("x")).refused(400, Some("index"));
    daemon.get(&format!("{}?at=1", path("0"))).refused(400, Some("query"));
    let skipped = daemon.get(&path("3"));
    skipped.refused(409, None);
    assert!(
        skipped.body.contains("d.txt") && skipped.body.contains("skipped"),
        "{skipped:?}"
    );
    let first = Content::get(&daemon, &path("0"), &[]);
    first.has("content-type: text/plain");
    assert_eq!(first.rest(), noise(1, 100_000));

    let files = format!("/api/v1/torrents/{hash}/files");
    assert_eq!(patch(&daemon, &files, &json!({"normal": "3"})).status, 204);
    assert_eq!(Content::get(&daemon, &path("3"), &[]).rest(), noise(4, 100_000));
    assert_eq!(daemon.post(&format!("/api/v1/torrents/{hash}/pause"), b"").status, 204);
    daemon.get(&path("0")).refused(409, None);
}

/// A pause and a removal break the body off, so that the client does not take a part for the whole.
#[test]
fn a_torrent_that_no_longer_runs_breaks_the_body_off() {
    let movie = Movie::new(200_000);
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let path = movie.add(&daemon);
    let torrent = format!("/api/v1/torrents/{}", movie.hash);
    let mut first = Content::get(&daemon, &path, &[]);
    assert_eq!(first.take(10), &movie.bytes[..10]);
    assert_eq!(daemon.post(&format!("{torrent}/pause"), b"").status, 204);
    let rest = first.rest();
    assert!(rest.len() + 10 < LENGTH, "{}", rest.len());
    assert_eq!(rest, &movie.bytes[10..][..rest.len()], "verified bytes only");

    assert_eq!(daemon.post(&format!("{torrent}/start"), b"").status, 204);
    wait_until("a download", || state(&daemon, &movie.hash) == "downloading");
    let mut second = Content::range(&daemon, &path, "bytes=1000000-");
    assert_eq!(second.take(10), &movie.bytes[1_000_000..][..10]);
    assert_eq!(daemon.delete(&torrent).status, 200);
    assert!(second.rest().len() + 1_000_010 < LENGTH);
}

/// A client that disconnects, or reads nothing, makes room for another one. No other client waits for it meanwhile.
#[test]
fn abandoned_readers_are_let_go() {
    let movie = Movie::new(10_000_000);
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon_with(
        folder.path(),
        "(readers: (max_readers: 1, idle_s: 3600), api: (write_timeout_s: 1))",
    );
    let path = movie.add(&daemon);
    let mut first = Content::get(&daemon, &path, &[]);
    assert_eq!((first.status, first.take(10)), (200, movie.bytes[..10].to_vec()));
    // The rest does not fit into the buffers between the daemon and this client.
    let second = Content::get(&daemon, &path, &[]);
    assert_eq!(second.status, 503);
    wait_until("the whole torrent, although the reader does not read", || {
        completed(&daemon, &movie.hash) == LENGTH as u64
    });
    wait_until("the end of the reader that does not read", || {
        Content::range(&daemon, &path, "bytes=0-0").status == 206
    });
    drop(first);

    // A client that waits for data that no peer has, and disconnects.
    let lonely = Movie::named("other.mkv", 8, 30_000);
    let path = lonely.add(&daemon);
    let waiting = Content::range(&daemon, &path, "bytes=2999990-");
    assert_eq!(Content::get(&daemon, &path, &[]).status, 503);
    drop(waiting);
    wait_until("the end of the reader that went", || {
        Content::range(&daemon, &path, "bytes=0-0").status == 206
    });
}

/// The commands name a file by its number, its path or a pattern; a reader of the output that closes it ends `cat`
/// quietly.
#[test]
fn files_are_printed() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (folder, other) = (folder.path(), other.path());
    let (seed, hash, bytes) = seed_album(other);
    let daemon = Daemon::start(folder);
    let add = format!("/api/v1/torrents?peer={}", seed.peers);
    assert_eq!(daemon.post(&add, &bytes).status, 201);
    let print = |arguments: &[&str]| {
        let output = command(folder, &[&["cat", &hash], arguments].concat())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    assert_eq!(print(&["1"]), noise(2, 100_000));
    assert_eq!(print(&["album/c.txt"]), noise(3, 100_000));
    assert_eq!(print(&["*d.txt", "--range", "99990-"]), noise(4, 100_000)[99_990..]);
    assert_eq!(print(&["0", "--range=-10"]), noise(1, 100_000)[99_990..]);
    assert!(fail(folder, &["cat", &hash]).contains("4 files"));
    assert!(fail(folder, &["cat", &hash, "*.txt"]).contains("4 files match *.txt"));
    assert!(fail(folder, &["cat", &hash, "*.mkv"]).contains("no file matches *.mkv"));
    let mut printing = command(folder, &["cat", &hash, "0"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(printing.stdout.take());
    let output = printing.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");

    // A player gets a URL without the token, and its failure is that of the command.
    let first = succeed(folder, &["play", &hash, "3", "--", "echo"]);
    let name = first.trim().strip_prefix("http://127.0.0.1:").unwrap();
    assert!(name.ends_with("/d.txt") && !first.contains(&daemon.token), "{first}");
    assert!(fail(folder, &["play", &hash, "3", "--", "false"]).contains("false"));
    assert!(fail(folder, &["play", &hash, "3", "--", "/no/player"]).contains("cannot start /no/player"));
    assert_eq!(daemon.post(&format!("/api/v1/torrents/{hash}/pause"), b"").status, 204);
    assert!(fail(folder, &["cat", &hash, "0"]).contains("it is paused"));
}

/// The URL of `play` without a player answers ranges as the daemon does, and nothing else.
#[test]
fn a_file_is_played() {
    let movie = Movie::new(2_000_000);
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    movie.add(&daemon);
    let mut command = command(folder.path(), &["play", &movie.hash]);
    let mut playing = Process(command.stdout(std::process::Stdio::piped()).spawn().unwrap());
    let mut url = String::new();
    BufReader::new(playing.0.stdout.take().unwrap())
        .read_line(&mut url)
        .unwrap();
    let (address, path) = url.trim().strip_prefix("http://").unwrap().split_once('/').unwrap();
    let ask = |path: &str, head: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = format!("GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{head}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
        (head, bytes[end..].to_vec())
    };
    let (head, body) = ask(path, "Range: bytes=2000000-2000099\r\n");
    assert!(
        head.starts_with("http/1.1 206") && head.contains("video/x-matroska"),
        "{head}"
    );
    assert_eq!(body, movie.bytes[2_000_000..2_000_100]);
    let (head, body) = ask(path, "");
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert_eq!(body, movie.bytes);
    for other in [
        "",
        "movie.mkv",
        "00000000000000000000000000000000/movie.mkv",
        "api/v1/torrents",
    ] {
        let (head, _) = ask(other, "");
        assert!(head.starts_with("http/1.1 404"), "{other}: {head}");
    }
    playing.signal(rustix::process::Signal::INT);
    assert!(playing.wait().success());
}
