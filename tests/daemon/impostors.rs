//! Programs that listen at a former daemon's address: commands do not send them the token.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::bed::{Answer, Daemon, fail, succeed};

/// A server that records the head of every request, and answers with the result of `answer`.
struct Impostor {
    heads: Receiver<String>,
}

impl Impostor {
    fn start(address: SocketAddr, answer: impl Fn(&str) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let (sender, heads) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut head = String::new();
                while reader.read_line(&mut head).is_ok_and(|len| len > 0) {
                    if head.ends_with("\r\n\r\n") {
                        let body = answer(&head);
                        let _ = write!(
                            stream,
                            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                            body.len()
                        );
                        if sender.send(std::mem::take(&mut head)).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Self { heads }
    }

    /// Returns the request heads received since the last call.
    fn requests(&self) -> Vec<String> {
        self.heads.try_iter().collect()
    }
}

fn claim(folder: &Path, address: SocketAddr) {
    // The process named in the file is this one, which is alive.
    let text = format!("{address}\n{}\n", std::process::id());
    fs::write(folder.join(".ecs_torrent/api_address"), text).unwrap();
}

/// Commands do not send the token to a program that takes the port after a `kill -9` of the daemon.
#[test]
fn the_port_of_a_killed_daemon() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let mut daemon = Daemon::start(folder);
    let (address, token) = (daemon.address, daemon.token.clone());
    daemon.process.0.kill().unwrap();
    daemon.process.wait();
    let impostor = Impostor::start(address, |_| format!("{{\"proof\": \"{}\"}}", "0".repeat(64)));

    let error = fail(folder, &["list"]);
    assert!(error.contains("has ended"), "{error}");
    assert_eq!(impostor.requests(), [""; 0], "it is not even asked");

    // The address comes from the user, or from a file whose process is alive.
    claim(folder, address);
    for arguments in [
        &["list", "--api", &address.to_string()][..],
        &["list"],
        &["stop", "--all"],
    ] {
        let error = fail(folder, arguments);
        assert!(
            error.contains(&format!("the program at {address} has not proven to be the daemon"))
                && error.contains("has not been sent the token"),
            "{error}"
        );
        let requests = impostor.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        assert!(requests[0].starts_with("GET /api/v1/proof?nonce="), "{requests:?}");
        let head = requests[0].to_lowercase();
        assert!(!head.contains(&token) && !head.contains("authorization"), "{head}");
    }
}

/// A program at the old port cannot relay the challenge to the daemon, which runs at another port.
#[test]
fn a_proof_cannot_be_passed_on() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let (real, free) = (daemon.address, TcpListener::bind("127.0.0.1:0").unwrap());
    let address = free.local_addr().unwrap();
    drop(free);
    for renames in [true, false] {
        let impostor = Impostor::start(address, move |head| {
            let head = if renames {
                head.replace(&address.to_string(), &real.to_string())
            } else {
                head.to_owned()
            };
            let head = head.trim_end().to_owned() + "\r\nConnection: close\r\n\r\n";
            let mut stream = TcpStream::connect(real).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            Answer::read(stream).body
        });
        let error = fail(folder, &["list", "--api", &address.to_string()]);
        assert!(error.contains("has not proven to be the daemon"), "{error}");
        let requests = impostor.requests().concat();
        assert!(
            requests.contains("/api/v1/proof") && !requests.contains(&daemon.token),
            "{requests}"
        );
        drop(impostor);
        // The impostor's thread ends with the next connection.
        let _ = TcpStream::connect(address).map(|mut stream| write!(stream, "GET / HTTP/1.1\r\n\r\n"));
        while TcpListener::bind(address).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert_eq!(succeed(folder, &["list", "--api", &real.to_string()]), "no torrents\n");
}

/// An endless answer neither delays the command for long nor fills its memory.
#[test]
fn an_answer_without_end() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    drop(Daemon::start(folder));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n");
        while stream.write_all(&[b' '; 1 << 16]).is_ok() {}
    });
    let error = fail(folder, &["list", "--api", &address]);
    assert!(error.contains("has not proven to be the daemon"), "{error}");
    thread.join().unwrap();
}

/// A challenge needs a valid nonce, which the client chooses.
#[test]
fn a_challenge_needs_a_nonce() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let ask = |query: &str| daemon.ask("GET", &format!("/api/v1/proof{query}"), &[], b"");
    for query in ["", "?nonce=", "?nonce=ab", &format!("?nonce={}", "g".repeat(64))] {
        ask(query).refused(400, Some("nonce"));
    }
    let (one, other) = ("a".repeat(64), "b".repeat(64));
    let proof = |nonce: &str| {
        ask(&format!("?nonce={nonce}")).json()["proof"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(proof(&one), proof(&one));
    assert_ne!(proof(&one), proof(&other));
    assert!(!proof(&one).contains(&daemon.token));
}
