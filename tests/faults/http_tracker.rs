//! HTTP trackers that answer badly, and one that records its requests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ecs_torrent::bevy_ecs::prelude::World;
use ecs_torrent::components::clock::Clock;
use ecs_torrent::components::settings::Reach;
use ecs_torrent::components::tracker::{Tracker, TrackerStatus};
use ecs_torrent::protocol::compact::Family;

use crate::bed::{Bed, Seen, Torrent, loopback};
use crate::peer::listen_as_seed;

/// Starts a server that passes each request's target to `answer` and sends back the result, including the response
/// head.
pub fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> SocketAddr {
    serve_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), answer)
}

/// Like [`serve`], on a given listener.
pub fn serve_on(listener: TcpListener, answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            std::thread::spawn(move || {
                if let Some(target) = read_target(&stream) {
                    let _ = (&stream).write_all(&answer(&target));
                }
            });
        }
    });
    address
}

fn read_target(stream: &TcpStream) -> Option<String> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let target = lines.next()?.split(' ').nth(1)?.to_owned();
    lines.find(String::is_empty)?;
    Some(target)
}

pub fn ok(body: &[u8]) -> Vec<u8> {
    with_head("200 OK", "", body)
}

pub fn with_head(status: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let len = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n{fields}\r\n");
    [head.as_bytes(), body].concat()
}

fn torrent_at(urls: &[String]) -> Torrent {
    Torrent::with_trackers(100_000, 16384, urls)
}

pub fn announce(address: SocketAddr) -> String {
    format!("http://{address}/announce")
}

/// Returns the reason for which the engine gives up on a tracker with the given answer.
fn failure(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> String {
    failure_at(announce(serve(answer)))
}

fn failure_at(url: String) -> String {
    let mut bed = Bed::new();
    bed.download(&torrent_at(&[url]), &[]);
    match bed.wait_for("the failure", |seen| matches!(seen, Seen::TrackerFailed(_))) {
        Seen::TrackerFailed(reason) => reason.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Fault 50: a small response that decompresses to a large one is cut off at the limit.
#[test]
fn a_gzip_bomb() {
    let reason = failure(|_| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&vec![0; 64 << 20]).unwrap();
        with_head("200 OK", "Content-Encoding: gzip\r\n", &gzip.finish().unwrap())
    });
    assert_eq!(reason, "answer exceeds 2097152 bytes");
}

/// A valid response may be compressed.
#[test]
fn a_gzipped_answer() {
    let url = announce(serve(|_| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(b"d8:intervali900e5:peers12:\x7f\0\0\x05\0\x09\x7f\0\0\x06\0\x09e")
            .unwrap();
        with_head("200 OK", "Content-Encoding: gzip\r\n", &gzip.finish().unwrap())
    }));
    let mut bed = Bed::new();
    bed.download(&torrent_at(&[url]), &[]);
    bed.wait_for("the answer", |seen| matches!(seen, Seen::TrackerAnswered(2)));
}

/// Fault 50: a chunk length that overflows is an error.
#[test]
fn an_overflowing_chunk() {
    let reason = failure(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nd8:interval\r\n".to_vec()
    });
    assert!(!reason.is_empty() && !reason.contains("announce"), "{reason}");
}

/// Fault 51: a redirect to the link-local addresses of cloud metadata services is not followed.
#[test]
fn a_redirect_to_the_metadata_service() {
    for target in ["http://169.254.169.254/latest/meta-data/", "http://[fe80::1]/"] {
        let fields = format!("Location: {target}\r\n");
        let reason = failure(move |_| with_head("302 Found", &fields, b""));
        assert_eq!(reason, "redirected into a private network");
    }
}

/// A redirect on the same network is followed, but not forever.
#[test]
fn redirects_are_followed_to_an_end() {
    let last = serve(|_| ok(b"d8:intervali900e5:peers0:e"));
    let first = serve(move |_| with_head("301 Moved", &format!("Location: http://{last}/key/announce\r\n"), b""));
    let mut bed = Bed::new();
    bed.download(&torrent_at(&[announce(first)]), &[]);
    bed.wait_for("the answer", |seen| matches!(seen, Seen::TrackerAnswered(0)));
    let reason = failure(|_| with_head("302 Found", "Location: /announce\r\n", b""));
    assert_eq!(reason, "too many redirects");
}

/// A torrent or a magnet link, which strangers write, makes the engine request nothing of this machine's services but
/// announces and scrapes, not by a redirect either.
#[test]
fn a_torrent_requests_only_announces_of_local_servers() {
    const REASON: &str = "local servers may be requested for announces and scrapes only";
    let (sender, requests) = channel();
    let service = serve(move |target| {
        sender.send(target.to_owned()).unwrap();
        ok(b"d8:intervali900e5:peers0:e")
    });
    for target in [
        "/",
        "/api/v1/stop?really=/announce",
        "/announce/",
        "/shutdown#/announce",
    ] {
        assert_eq!(failure_at(format!("http://{service}{target}")), REASON, "{target}");
    }
    let fields = format!("Location: http://{service}/shutdown\r\n");
    assert_eq!(failure(move |_| with_head("302 Found", &fields, b"")), REASON);
    assert!(requests.try_recv().is_err(), "nothing was requested");
    let mut bed = Bed::new();
    bed.download(&torrent_at(&[format!("http://{service}/key/announce?a=b")]), &[]);
    bed.wait_for("the answer", |seen| matches!(seen, Seen::TrackerAnswered(0)));
    assert!(requests.recv().unwrap().starts_with("/key/announce?a=b&info_hash="));
}

/// Fault 52: a self-signed certificate makes the announce fail, visibly.
#[test]
fn an_invalid_certificate() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut tls = rustls::StreamOwned::new(connection, stream);
            let _ = tls.read(&mut [0; 1024]);
            let _ = tls.write_all(&ok(b"d8:intervali900e5:peers0:e"));
        }
    });
    let reason = failure_at(format!("https://{address}/announce"));
    assert!(reason.contains("certificate"), "{reason}");
}

/// A peer that sends nothing. It is needed because a download without any peer announces earlier than its tracker's
/// interval.
fn company(torrent: &Arc<Torrent>) -> SocketAddr {
    listen_as_seed(loopback(53), torrent, |_, _| false)
}

/// Time until the next announce to the tracker.
pub fn wait_until_next(bed: &Bed) -> Duration {
    let look = |world: &mut World| {
        let now = world.resource::<Clock>().now();
        let mut trackers = world.query::<&Tracker>();
        trackers
            .iter(world)
            .map(|tracker| tracker.route(Family::V4).next_announce.since(now))
            .max()
    };
    bed.block_on(bed.torrents().with_world(look)).unwrap().unwrap()
}

/// Fault 53: implausible intervals are clamped to sensible values.
#[test]
fn intervals_out_of_reason() {
    for (interval, expected) in [("0", 60), ("-5", 60), ("9223372036854775807", 7200), ("900", 900)] {
        let body = format!("d8:intervali{interval}e5:peers0:e");
        let url = announce(serve(move |_| ok(body.as_bytes())));
        let mut bed = Bed::new();
        let torrent = Arc::new(torrent_at(&[url]));
        bed.download(&torrent, &[company(&torrent)]);
        bed.wait_for("the answer", |seen| matches!(seen, Seen::TrackerAnswered(_)));
        let wait = wait_until_next(&bed).as_secs();
        assert!((expected - 30..=expected).contains(&wait), "{interval}: {wait}");
    }
}

/// Fault 54: a peer list that ends inside an address is rejected.
#[test]
fn ragged_peers() {
    let reason = failure(|_| ok(b"d8:intervali900e5:peers7:abcdefge"));
    assert_eq!(reason, "malformed reply: peers: 7 bytes is not a multiple of 6");
}

/// Fault 55: a tracker's message reaches users without terminal control sequences.
#[test]
fn a_failure_reason_with_a_script_in_it() {
    let words = "\x1b[2J<script>alert(1)</script>\r\nbye\x07";
    let reason = failure(move |_| ok(format!("d14:failure reason{}:{words}e", words.len()).as_bytes()));
    assert_eq!(
        reason,
        "the tracker refused: \u{fffd}[2J<script>alert(1)</script>\u{fffd}\u{fffd}bye\u{fffd}"
    );
    let reason = failure(|_| with_head("404 Not Found", "", b"<html>"));
    assert_eq!(reason, "HTTP status 404");
}

/// Fault 56: a failing tracker does not delay or throttle another tracker.
#[test]
fn one_tracker_fails() {
    let dead = announce(([127, 0, 0, 1], 1).into());
    let url = announce(serve(|_| ok(b"d8:intervali900e5:peers0:e")));
    for reach in [Reach::FirstWorking, Reach::EachTier, Reach::EachTracker] {
        let mut bed = Bed::with(|settings| settings.trackers.reach = reach);
        let torrent = Arc::new(torrent_at(&[dead.clone(), url.clone()]));
        bed.download(&torrent, &[company(&torrent)]);
        bed.wait_for("the answer", |seen| matches!(seen, Seen::TrackerAnswered(0)));
        bed.wait_for_in_past("the failure", |seen| matches!(seen, Seen::TrackerFailed(_)));
        assert!(
            wait_until_next(&bed).as_secs() > 800,
            "{reach:?}: the failure throttles only itself"
        );
    }
}

/// BEP 31: a tracker that refuses all retries is not retried.
#[test]
fn retry_never() {
    let url = announce(serve(|_| ok(b"d14:failure reason3:bye8:retry in5:nevere")));
    let mut bed = Bed::new();
    bed.download(&torrent_at(&[url]), &[]);
    bed.wait_for("the failure", |seen| matches!(seen, Seen::TrackerFailed(_)));
    let look = |world: &mut World| {
        let mut trackers = world.query::<&Tracker>();
        let status = trackers
            .iter(world)
            .next()
            .map(|tracker| tracker.route(Family::V4).status.clone());
        matches!(status, Some(TrackerStatus::Disabled(_)))
    };
    assert!(bed.block_on(bed.torrents().with_world(look)).unwrap());
}

/// Starts a tracker that records its requests.
fn recording_tracker(reply: Vec<u8>) -> (String, Receiver<String>) {
    let (sender, targets) = channel();
    let sender = Mutex::new(sender);
    let address = serve(move |target| {
        let _ = sender.lock().unwrap().send(target.to_owned());
        ok(&reply)
    });
    (announce(address), targets)
}

pub fn parameter<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    target
        .split(['?', '&'])
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// BEP 3: `started`, `completed` and `stopped` are each sent once, with counters that match the transferred data.
#[test]
fn a_session_as_its_tracker_sees_it() {
    let data = Arc::new(Torrent::new(100_000, 16384));
    let seed = listen_as_seed(loopback(80), &data, |_, _| true);
    let std::net::IpAddr::V4(ip) = seed.ip() else {
        unreachable!()
    };
    let peers = [&ip.octets()[..], &seed.port().to_be_bytes()].concat();
    let reply = [b"d8:completei1e8:intervali900e5:peers6:", &peers[..], b"e"].concat();
    let (url, targets) = recording_tracker(reply);
    let torrent = torrent_at(&[url]);
    assert_eq!(torrent.info_hash(), data.info_hash(), "the same content");
    let mut bed = Bed::new();
    let id = bed.download(&torrent, &[]);
    bed.wait_complete(&torrent);
    bed.wait_for("completed to be announced", |seen| {
        matches!(seen, Seen::TrackerAnswered(_))
    });
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    let announced: Vec<String> = targets.try_iter().collect();
    let events: Vec<_> = announced
        .iter()
        .map(|target| parameter(target, "event").unwrap_or(""))
        .collect();
    assert_eq!(events, ["started", "completed", "stopped"], "{announced:#?}");
    let counts = |name| {
        announced
            .iter()
            .map(|target| parameter(target, name).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(counts("left"), ["100000", "0", "0"]);
    assert_eq!(counts("downloaded"), ["0", "100000", "100000"]);
    assert_eq!(counts("uploaded"), ["0", "0", "0"]);
    for name in ["info_hash", "peer_id", "port", "key"] {
        assert!(
            counts(name).windows(2).all(|pair| pair[0] == pair[1]),
            "{name} stays the same"
        );
    }
    assert_eq!(counts("port")[0], bed.address().port().to_string());
    assert!(counts("peer_id")[0].starts_with("%2DEC0100%2D"));
}

/// BEP 3: announces count from `started`, not over the life of a torrent.
#[test]
fn a_resumed_torrent_announces_what_it_moved_since() {
    let data = Arc::new(Torrent::new(100_000, 16384));
    let seed = listen_as_seed(loopback(80), &data, |_, _| true);
    let (url, targets) = recording_tracker(b"d8:intervali900e5:peers0:e".to_vec());
    let torrent = torrent_at(&[url]);
    let mut bed = Bed::keeping(|_| {});
    let id = bed.download(&torrent, &[seed]);
    bed.wait_complete(&torrent);
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    let counts = |target: &str| {
        let event = parameter(target, "event").unwrap_or("").to_owned();
        (event, parameter(target, "downloaded").unwrap().to_owned())
    };
    // The announce of the completion may reach the tracker beside that of the stop.
    let stopped = targets
        .try_iter()
        .map(|target| counts(&target))
        .find(|(event, _)| event == "stopped");
    assert_eq!(stopped, Some(("stopped".to_owned(), "100000".to_owned())));
    assert_eq!(bed.download(&torrent, &[]), id, "goes on from its session");
    let first = targets.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(counts(&first), ("started".to_owned(), "0".to_owned()));
    assert_eq!(bed.stats(id).downloaded, 100_000, "users see the whole");
}

/// BEP 3: a download without peers announces before the interval is over, but respects the tracker's minimum interval.
#[test]
fn a_download_without_peers() {
    for (least, wait_s) in [("", 60), ("12:min intervali500e", 500)] {
        let reply = format!("d8:intervali900e{least}5:peers0:e");
        let url = announce(serve(move |_| ok(reply.as_bytes())));
        let mut bed = Bed::new();
        bed.download(&torrent_at(&[url]), &[]);
        bed.wait_for("the answer", |seen| matches!(seen, Seen::TrackerAnswered(0)));
        bed.wait_until("an earlier announce", || wait_until_next(&bed).as_secs() <= wait_s);
        assert!(wait_until_next(&bed).as_secs() + 30 > wait_s);
    }
}

/// A torrent that is complete from the start does not send `completed`.
#[test]
fn a_seed_announces_no_completion() {
    let (url, targets) = recording_tracker(b"d8:intervali900e5:peers0:e".to_vec());
    let torrent = torrent_at(&[url]);
    let mut bed = Bed::new();
    let id = bed.seed(&torrent);
    bed.wait_for("the answer", |seen| matches!(seen, Seen::TrackerAnswered(_)));
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    let announced: Vec<String> = targets.try_iter().collect();
    let events: Vec<_> = announced
        .iter()
        .map(|target| parameter(target, "event").unwrap_or(""))
        .collect();
    assert_eq!(events, ["started", "stopped"]);
}

/// A tracker that does not answer cannot delay the stop beyond its deadline.
#[test]
fn a_dead_tracker_does_not_hold_the_stop() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = announce(listener.local_addr().unwrap());
    let mut bed = Bed::with(|settings| settings.lifecycle.announce_timeout_ms = 500);
    let id = bed.download(&torrent_at(&[url]), &[]);
    let _connection = listener.accept().unwrap();
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
}

/// BEP 48: a scrape over HTTP.
#[test]
fn a_scrape_over_http() {
    let torrent = torrent_at(&[]);
    let hash = torrent.info_hash();
    let url = announce(serve(move |target| {
        let counts = "d8:completei3e10:downloadedi9e10:incompletei4ee";
        match target.starts_with("/scrape?info_hash=") {
            true => ok(&[b"d5:filesd20:", &hash.0[..], counts.as_bytes(), b"ee"].concat()),
            false => ok(b"d8:intervali900e5:peers0:e"),
        }
    }));
    let torrent = torrent_at(&[url]);
    let mut bed = Bed::new();
    let id = bed.download(&torrent, &[]);
    let counts = bed.block_on(bed.torrents().scrape(id)).unwrap();
    assert_eq!((counts.seeders, counts.completed, counts.leechers), (3, 9, 4));
}
