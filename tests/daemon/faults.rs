//! Attacks and faulty requests against the API from unknown clients, web pages and broken programs.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;

use crate::bed::{Answer, Daemon, command, fail, torrent};

/// Fault 85: requests from a web page whose host name resolves to this machine are refused, on every path, with or
/// without the token.
#[test]
fn fault_85_other_hosts_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    fs::write(temporary.path().join("c.ron"), "(api: (names: [\"seedbox.example\"]))").unwrap();
    let daemon = Daemon::start_with(temporary.path(), &["--config", "c.ron"]);
    let (bearer, port) = (daemon.bearer(), daemon.address.port());
    let other_port = format!("127.0.0.1:{}", port ^ 1);
    for host in [
        "evil.example",
        &format!("evil.example:{port}"),
        &other_port,
        "127.0.0.1",
        "localhost",
        "",
        &format!("127.0.0.1:{port}.evil.example"),
        &format!("evil.seedbox.example:{port}"),
        &format!("192.0.2.1:{port}"),
    ] {
        for path in ["/api/v1/health", "/api/v1/torrents", "/", "/nothing"] {
            let headers = [("Host", host), ("Authorization", bearer.as_str())];
            daemon.ask("GET", path, &headers, b"").refused(403, Some("Host"));
        }
    }
    for host in [
        format!("127.0.0.1:{port}"),
        format!("LOCALHOST:{port}"),
        format!("[::1]:{port}"),
        format!("seedbox.example:{port}"),
        "seedbox.example".to_owned(),
    ] {
        assert_eq!(
            daemon.ask("GET", "/api/v1/health", &[("Host", &host)], b"").status,
            200,
            "{host}"
        );
    }
    let ours = format!("127.0.0.1:{port}");
    let two = [("Host", ours.as_str()), ("Host", "evil.example")];
    daemon
        .ask("GET", "/api/v1/health", &two, b"")
        .refused(403, Some("Host"));
    let target = format!("GET http://evil.example/api/v1/health HTTP/1.1\r\nHost: {ours}\r\nConnection: close\r\n\r\n");
    daemon.raw(target.as_bytes()).refused(403, Some("Host"));
    daemon
        .raw(b"GET /api/v1/health HTTP/1.0\r\n\r\n")
        .refused(403, Some("Host"));
}

/// Fault 86: requests from a web page of another site are refused, even with the token.
#[test]
fn fault_86_pages_of_other_sites_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let (_, bytes) = torrent(temporary.path(), "one.bin", 1, &[]);
    let (bearer, port) = (daemon.bearer(), daemon.address.port());
    let ask = |origin: &str| {
        let headers = [
            ("Origin", origin),
            ("Authorization", bearer.as_str()),
            ("Content-Type", "application/x-bittorrent"),
        ];
        daemon.ask("POST", "/api/v1/torrents", &headers, &bytes)
    };
    for origin in [
        "http://evil.example",
        "null",
        "file://",
        &format!("http://evil.example:{port}"),
        &format!("http://127.0.0.1:{}", port ^ 1),
        "http://localhost",
    ] {
        ask(origin).refused(403, Some("Origin"));
    }
    assert_eq!(daemon.hashes(), [""; 0]);
    let answer = ask(&format!("http://localhost:{port}"));
    assert_eq!(answer.status, 201);
    assert!(!answer.head.contains("access-control-"), "no other page may read it");
    assert!(
        answer.head.contains("x-content-type-options: nosniff"),
        "nor make something else of it"
    );
}

/// Fault 88: paths with `..`, encoded or not, lead nowhere.
#[test]
fn fault_88_paths_that_climb_lead_nowhere() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    for path in [
        "/api/v1/torrents/..%2f..%2fetc%2fpasswd",
        "/api/v1/torrents/..%5c..%5cetc",
        "/api/v1/torrents/..\\..\\etc",
        "/api/v1/torrents/../health",
        "/api/v1/../v1/health",
        "/api/v1/%68ealth",
        "/api/v1/torrents/%00",
        "/api/v1/torrents/%",
        "/../../etc/passwd",
        "/..%252f",
    ] {
        daemon.get(path).refused(404, None);
    }
}

/// Fault 89: the API does not listen on an address that other machines can reach unless `api.allow_remote` is set.
#[test]
fn fault_89_a_remote_address_has_to_be_meant() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:6880"] {
        let error = fail(folder, &["daemon", "--listen", "127.0.0.1:0", "--api", address]);
        let expected = format!("error: api.listen: {address} can be reached from other machines");
        assert!(
            error.starts_with(&expected) && error.contains("api.allow_remote"),
            "{error}"
        );
        assert!(!folder.join(".ecs_torrent").exists(), "nothing is begun");
    }
    fs::write(folder.join("c.ron"), "(api: (allow_remote: true))").unwrap();
    let daemon = Daemon::start_with(folder, &["--config", "c.ron", "--api", "0.0.0.0:0"]);
    daemon
        .ask("GET", "/api/v1/torrents", &[], b"")
        .refused(401, Some("Authorization"));
    assert_eq!(daemon.get("/api/v1/torrents").status, 200);
}

/// Fault 91: no client can make the daemon fetch a URL of its own machine or network, such as the secrets of a cloud's
/// metadata service.
#[test]
fn fault_91_nothing_is_fetched_from_a_local_url() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    service.set_nonblocking(true).unwrap();
    let url = format!("http://{}/latest/meta-data/x.torrent", service.local_addr().unwrap());
    let json = format!("{{\"url\": \"{url}\"}}");
    let bearer = daemon.bearer();
    let text = [("Authorization", bearer.as_str()), ("Content-Type", "text/plain")];
    for body in [&url, &json] {
        let answer = daemon.ask("POST", "/api/v1/torrents", &text, body.as_bytes());
        answer.refused(400, Some("body"));
        assert!(answer.body.contains("not a magnet link"), "{}", answer.body);
    }
    for (kind, status, field) in [
        ("application/json", 403, "url"),
        ("application/x-www-form-urlencoded", 415, "Content-Type"),
        ("", 415, "Content-Type"),
    ] {
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", kind)];
        let answer = daemon.ask("POST", "/api/v1/torrents", &headers, json.as_bytes());
        answer.refused(status, Some(field));
    }
    let port = service.local_addr().unwrap().port();
    for host in [
        "localhost",
        "0.0.0.0",
        "2130706433",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "169.254.169.254",
        "10.0.0.1",
        "[fe80::1]",
        "[fd00::1]",
        "224.0.0.1",
    ] {
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        let json = format!("{{\"url\": \"http://{host}:{port}/x.torrent\"}}");
        let answer = daemon.ask("POST", "/api/v1/torrents", &headers, json.as_bytes());
        answer.refused(403, Some("url"));
        assert!(answer.body.contains("api.fetch_from"), "{host}: {}", answer.body);
    }
    for url in [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1/x",
        "x",
        "",
    ] {
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        let json = format!("{{\"url\": \"{url}\"}}");
        daemon
            .ask("POST", "/api/v1/torrents", &headers, json.as_bytes())
            .refused(400, Some("url"));
    }
    for body in [
        &url,
        &json,
        "magnet:?xt=urn:btih:00000000000000000000000000000000000000aa",
    ] {
        daemon
            .post("/api/v1/torrents", body.as_bytes())
            .refused(400, Some("body"));
    }
    daemon
        .post(&format!("/api/v1/torrents?url={url}"), b"")
        .refused(400, Some("query"));
    assert_eq!(daemon.hashes(), [""; 0]);
    assert_eq!(
        service.accept().unwrap_err().kind(),
        ErrorKind::WouldBlock,
        "nobody came"
    );
}

/// Fault 93: a body that is too long or too slow, or a head that is too slow, costs only its own connection.
#[test]
fn fault_93_huge_and_slow_requests_are_closed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let limits = "(api: (max_body_bytes: 1000, body_timeout_s: 1, header_timeout_s: 1, max_connections: 4))";
    fs::write(folder.join("c.ron"), limits).unwrap();
    let daemon = Daemon::start_with(folder, &["--config", "c.ron"]);
    let head = format!(
        "POST /api/v1/torrents HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\nContent-Type: application/x-bittorrent\r\n",
        daemon.address,
        daemon.bearer()
    );
    daemon
        .raw(format!("{head}Content-Length: 1000000000000\r\n\r\n").as_bytes())
        .refused(413, Some("body"));
    let chunks = "400\r\n".to_owned() + &"x".repeat(1024) + "\r\n";
    daemon
        .raw(format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}").as_bytes())
        .refused(413, Some("body"));
    daemon
        .post("/api/v1/torrents", &[b'x'; 1001])
        .refused(413, Some("body"));
    daemon
        .post("/api/v1/torrents", &[b'x'; 1000])
        .refused(400, Some("body"));
    daemon
        .raw(format!("{head}Content-Length: 500\r\n\r\nd4:info").as_bytes())
        .refused(408, Some("body"));
    // Without a token, the request is refused before its body matters.
    let stranger = format!(
        "POST /api/v1/torrents HTTP/1.1\r\nHost: {}\r\nContent-Length: 1000000000000\r\nConnection: close\r\n\r\n",
        daemon.address
    );
    daemon.raw(stranger.as_bytes()).refused(401, Some("Authorization"));

    for begin in [
        b"".as_slice(),
        b"GET /api/v1/health HTTP/1.1\r\nHost: 127.0",
        head.as_bytes(),
    ] {
        assert_eq!(daemon.raw(begin).status, 0, "closed without an answer");
    }
    let endless = format!("GET /api/v1/health HTTP/1.1\r\nX: {}", "x".repeat(20 << 10));
    assert_eq!(daemon.raw(endless.as_bytes()).status, 431);

    // When silent clients hold all connections, the next client is served as soon as one of them is closed.
    let mut silent: Vec<_> = (0..4).map(|_| daemon.connect()).collect();
    assert_eq!(daemon.ask("GET", "/api/v1/health", &[], b"").status, 200);
    assert!(silent.iter_mut().any(|stream| stream.read(&mut [0]).unwrap() == 0));
}

/// Several requests with the token can share one connection.
#[test]
fn a_connection_is_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let mut stream = daemon.connect();
    let request = format!(
        "GET /api/v1/torrents HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\n",
        daemon.address,
        daemon.bearer()
    );
    write!(stream, "{request}\r\n{request}Connection: close\r\n\r\n").unwrap();
    let answers = Answer::read(stream);
    assert_eq!(answers.status, 200);
    assert_eq!(
        answers.body.matches("HTTP/1.1 200 OK").count(),
        1,
        "a second one: {answers:?}"
    );

    // Without the token, each request needs its own connection.
    let mut stream = daemon.connect();
    let request = format!("GET /api/v1/health HTTP/1.1\r\nHost: {}\r\n\r\n", daemon.address);
    stream.write_all(request.repeat(2).as_bytes()).unwrap();
    let answer = Answer::read(stream);
    assert_eq!(answer.json()["status"], "running");
    assert!(answer.head.contains("connection: close"), "{answer:?}");
}

/// Fault 94: a client cannot make the daemon write files outside the allowed folders.
#[test]
fn fault_94_folders_outside_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().canonicalize().unwrap();
    fs::create_dir_all(folder.join("downloads")).unwrap();
    fs::create_dir_all(folder.join("shared")).unwrap();
    std::os::unix::fs::symlink(&folder, folder.join("downloads/link")).unwrap();
    std::os::unix::fs::symlink(folder.join("nowhere"), folder.join("downloads/dangling")).unwrap();
    let config = format!("(api: (allow_roots: [{:?}]))", folder.join("shared"));
    fs::write(folder.join("c.ron"), config).unwrap();
    let daemon = Daemon::start_with(&folder, &["--config", "c.ron"]);
    let (hash, bytes) = torrent(&folder, "content/one.bin", 1, &[]);
    let outside = folder.join("outside");
    for root in [
        "..",
        "../outside",
        "a/../../outside",
        "%2e%2e/outside",
        "%2e%2e%2foutside",
        "/",
        "/tmp",
        "/etc",
        "link",
        "link/outside",
        "dangling",
        "dangling/x",
        "a%00b",
        outside.to_str().unwrap(),
        folder.join("downloads/../outside").to_str().unwrap(),
        folder.join("downloads-beside").to_str().unwrap(),
    ] {
        daemon
            .post(&format!("/api/v1/torrents?root={root}"), &bytes)
            .refused(403, Some("root"));
    }
    assert_eq!(daemon.hashes(), [""; 0]);
    for name in ["outside", "nowhere", "downloads-beside", "one.bin"] {
        assert!(!folder.join(name).exists(), "{name}");
    }
    let path = format!("/api/v1/torrents?root={}", folder.join("shared/new").display());
    assert_eq!(daemon.post(&path, &bytes).status, 201, "what is allowed is allowed");
    let stats = daemon.get(&format!("/api/v1/torrents/{hash}?fields=root")).json();
    assert_eq!(stats["root"], folder.join("shared/new").to_str().unwrap());
}

/// Fault 95: no failure reveals passkeys or the token in the log or to a client.
#[test]
fn fault_95_passkeys_stay_secret() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tracker = format!("http://user:p4ss@{closed}/s3cretkey/announce?passkey=s3cretkey");
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[&tracker]);
    let mut events = daemon.events();
    assert_eq!(daemon.post("/api/v1/torrents?root=s3cretkey", &bytes).status, 201);
    let failure = events.wait_for("tracker_failed");
    assert_eq!(failure["tracker"], format!("http://{closed}"));
    let stats = daemon.get(&format!("/api/v1/torrents/{hash}?fields=trackers"));
    assert_eq!(stats.json()["trackers"][0]["url"], format!("http://{closed}"));
    let answer = command(folder, &["stats", &hash, "--fields", "trackers"])
        .output()
        .unwrap();
    let log = daemon.log();
    assert!(log.contains("/api/v1/torrents"), "requests are logged: {log}");
    for text in [
        log,
        failure.to_string(),
        stats.body,
        String::from_utf8(answer.stdout).unwrap(),
    ] {
        assert!(!text.contains("s3cretkey") && !text.contains("p4ss"), "{text}");
        assert!(!text.contains(&daemon.token), "{text}");
    }
}
