//! Guesses of the token, and names that contain scripts.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::bed::{Answer, Daemon, PATIENCE, command, torrent};

/// Sends a request with the given token from the given loopback address.
fn guess(daemon: &Daemon, from: [u8; 4], token: &str) -> Answer {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&daemon.address.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = std::net::TcpStream::from(socket);
    let authorization = format!("Bearer {token}");
    let request = daemon.head("GET", "/api/v1/torrents", &[("Authorization", &authorization)], b"");
    stream.write_all(&request).unwrap();
    Answer::read(stream)
}

/// Fault 90: guessing is slowed down per address, and does not lock out clients with the token.
#[test]
fn fault_90_guesses_are_limited() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let config = "(api: (max_failed_logins: 5, failed_login_interval_s: 3600))";
    std::fs::write(folder.join("c.ron"), config).unwrap();
    let daemon = Daemon::start_with(folder, &["--config", "c.ron"]);
    let (one, other) = ([127, 0, 0, 1], [127, 0, 0, 2]);
    for number in 0..5 {
        guess(&daemon, one, &format!("{number:064x}")).refused(401, Some("Authorization"));
    }
    for number in 5..200 {
        let answer = guess(&daemon, one, &format!("{number:064x}"));
        answer.refused(429, Some("Authorization"));
        let wait = answer.head.lines().find_map(|line| line.strip_prefix("retry-after: "));
        assert!(
            (3000..=3601).contains(&wait.unwrap().parse::<u64>().unwrap()),
            "{answer:?}"
        );
    }
    guess(&daemon, other, &"0".repeat(64)).refused(401, Some("Authorization"));
    assert_eq!(
        guess(&daemon, one, &daemon.token).status,
        200,
        "the right one is right at any time"
    );
    let list = command(folder, &["list", "--api", &daemon.address.to_string()])
        .output()
        .unwrap();
    assert!(list.status.success(), "{list:?}");
    // A request without a token does not count as a guess.
    daemon
        .ask("GET", "/api/v1/torrents", &[], b"")
        .refused(401, Some("Authorization"));
    assert!(!daemon.log().contains(&"0".repeat(63)), "guesses are not logged");
}

/// A client that waits as instructed is answered again.
#[test]
fn a_failure_is_forgotten_in_time() {
    let temporary = tempfile::tempdir().unwrap();
    let config = "(api: (max_failed_logins: 1, failed_login_interval_s: 1))";
    std::fs::write(temporary.path().join("c.ron"), config).unwrap();
    let daemon = Daemon::start_with(temporary.path(), &["--config", "c.ron"]);
    let wrong = "0".repeat(64);
    guess(&daemon, [127, 0, 0, 1], &wrong).refused(401, Some("Authorization"));
    while guess(&daemon, [127, 0, 0, 1], &wrong).status != 429 {}
    while guess(&daemon, [127, 0, 0, 1], &wrong).status != 401 {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Fault 87: a torrent name that contains a script stays plain text for every reader of the answer.
#[test]
fn fault_87_scripts_in_names_do_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let name = "<script>alert(1)<!--\"'&.bin";
    let (hash, bytes) = torrent(folder, name, 1, &["http://127.0.0.1:1/<img/src=x/onerror=alert(2)>"]);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    let answers = [
        daemon.get("/api/v1/torrents"),
        daemon.get(&format!("/api/v1/torrents/{hash}?fields=name,trackers,error")),
        daemon.get(&format!("/api/v1/torrents/{hash}/files")),
        daemon.get("/api/v1/torrents?fields=%3Cscript%3Ealert(1)"),
        daemon.get("/api/v1/torrents?%3Cscript%3Ealert(1)=1"),
        daemon.get("/api/v1/torrents/%3Cscript%3Ealert(1)"),
        daemon.get("/%3Cscript%3Ealert(1)"),
    ];
    for answer in &answers {
        for header in [
            "content-type: application/json\r\n",
            "x-content-type-options: nosniff\r\n",
            "content-security-policy: default-src 'none'; frame-ancestors 'none'\r\n",
        ] {
            assert!(format!("{}\r\n", answer.head).contains(header), "{header}: {answer:?}");
        }
        answer.json();
    }
    assert_eq!(answers[0].json()[0]["name"], name);
    assert_eq!(answers[2].json()[0]["path"], name);
}
