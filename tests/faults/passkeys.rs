//! Fault 95: a passkey in a tracker's URL is sent to that tracker and appears nowhere else.

use std::fmt::{Debug, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

use ecs_torrent::components::settings::Reach;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::bed::{Bed, Torrent};
use crate::child::is_own_process;
use crate::http_tracker::{ok, serve, with_head};

const PASSKEY: &str = "0pAssKeyThatNobodyMayKn0w";

/// Subscriber that keeps all log output, from every target and at every level.
struct Log(Arc<Mutex<String>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl Log {
    fn add(&self, metadata: &Metadata<'_>, fill: impl FnOnce(&mut Line)) {
        let mut line = Line(format!("{} {}", metadata.level(), metadata.target()));
        fill(&mut line);
        let mut log = self.0.lock().unwrap();
        log.push_str(&line.0);
        log.push('\n');
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.add(span.metadata(), |line| span.record(line));
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        let mut line = Line(String::new());
        values.record(&mut line);
        self.0.lock().unwrap().push_str(&line.0);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.add(event.metadata(), |line| event.record(line));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Collects all output of an engine that announces to these trackers: logs, events, stats and messages.
fn everything_said(urls: &[String]) -> String {
    let log = Arc::new(Mutex::new(String::new()));
    tracing::subscriber::set_global_default(Log(log.clone())).unwrap();
    let mut bed = Bed::with(|settings| {
        settings.trackers.reach = Reach::EachTracker;
        settings.trackers.http_timeout_s = 2;
        settings.trackers.udp_sends = 1;
        settings.lifecycle.announce_timeout_ms = 500;
    });
    let mut events = bed.torrents().subscribe();
    let id = bed.add(&Torrent::with_trackers(100_000, 16384, urls), "", &[]);
    let mut said = String::new();
    bed.wait_until("all trackers", || {
        let trackers = bed.stats(id).trackers;
        trackers.len() == urls.len()
            && trackers
                .iter()
                .all(|tracker| !["idle", "announcing"].contains(&tracker.status))
    });
    let _ = writeln!(said, "seen: {:?}", bed.has_seen());
    let stats = bed.stats(id);
    let _ = writeln!(said, "stats: {stats:?}\n{}", serde_json::to_string(&stats).unwrap());
    let _ = writeln!(said, "scrape: {:?}", bed.block_on(bed.torrents().scrape(id)));
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    drop(bed);
    let rest = async {
        while let Some(event) = events.next().await {
            let _ = writeln!(said, "event: {event:?}");
        }
    };
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(rest);
    said.push_str(&log.lock().unwrap());
    said
}

fn assert_kept(said: &str) {
    let shown: Vec<&str> = said.lines().filter(|line| line.contains(PASSKEY)).collect();
    assert!(shown.is_empty(), "{shown:#?}");
}

/// The passkey stays hidden whether the tracker works or fails in any way.
#[test]
fn a_passkey_is_not_shown() {
    if !is_own_process("passkeys::a_passkey_is_not_shown", Vec::new) {
        return;
    }
    let path = format!("{PASSKEY}/announce?passkey={PASSKEY}");
    let works = serve(|_| ok(b"d8:intervali900e15:warning message4:old!5:peers0:e"));
    let refuses = serve(|_| ok(b"d14:failure reason7:go awaye"));
    let missing = serve(|_| with_head("404 Not Found", "", b""));
    let garbled = serve(|_| ok(b"<html>"));
    let chunks = serve(|_| b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n".to_vec());
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let slow = silent.local_addr().unwrap();
    thread::spawn(move || silent.incoming().collect::<Vec<_>>());
    let hangs_up = serve(|_| Vec::new());
    let elsewhere = format!("Location: http://127.0.0.1:1/{path}\r\n");
    let redirects = serve(move |_| with_head("302 Found", &elsewhere, b""));
    let circle = format!("Location: /{path}\r\n");
    let circles = serve(move |_| with_head("302 Found", &circle, b""));
    let forbidden = format!("Location: http://169.254.169.254/{path}\r\n");
    let strays = serve(move |_| with_head("302 Found", &forbidden, b""));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let udp = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut packet = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut packet) {
            // BEP 15: an error.
            let reply = [&3_u32.to_be_bytes()[..], &packet[12..16], b"go away"].concat();
            let _ = socket.send_to(&reply, from);
        }
    });
    let mut urls: Vec<String> = [
        works, refuses, missing, garbled, chunks, slow, hangs_up, redirects, circles, strays,
    ]
    .iter()
    .map(|address| format!("http://{address}/{path}"))
    .collect();
    urls.push(format!("http://127.0.0.1:1/{path}"));
    urls.push(format!("http://user:{PASSKEY}@127.0.0.1:1/announce"));
    urls.push(format!("http://no-such-host.invalid/{path}"));
    urls.push(format!("https://{works}/{path}"));
    urls.push(format!("udp://no-such-host.invalid:1/{path}"));
    urls.push(format!("udp://{udp}/{path}"));
    let said = everything_said(&urls);
    assert!(said.contains("127.0.0.1:1"), "the trackers are named: {said}");
    assert!(said.contains("TRACE") || said.contains("DEBUG"), "the log is full");
    assert_kept(&said);
}

/// A tracker that repeats the passkey in its messages to users.
#[test]
fn a_passkey_that_the_tracker_repeats() {
    if !is_own_process("passkeys::a_passkey_that_the_tracker_repeats", Vec::new) {
        return;
    }
    let reason = format!("unknown passkey {PASSKEY}");
    let refuses = serve(move |_| ok(format!("d14:failure reason{}:{reason}e", reason.len()).as_bytes()));
    let warning = format!("{PASSKEY} expires");
    let warns = serve(move |_| {
        let reply = format!(
            "d8:intervali900e15:warning message{}:{warning}5:peers0:e",
            warning.len()
        );
        ok(reply.as_bytes())
    });
    let urls = [refuses, warns].map(|address| format!("http://{address}/{PASSKEY}/announce"));
    assert_kept(&everything_said(&urls));
}
