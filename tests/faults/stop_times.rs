//! The duration of stops: a stop ends even if a tracker or a disk hangs, and with any number of torrents and peers.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ecs_torrent::protocol::create::{NewFile, NewTorrent};
use ecs_torrent::protocol::hash::sha1;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent::protocol::wire::Message;
use ecs_torrent::{InfoHash, TorrentState};

use crate::bed::{Bed, DEADLINE, Torrent, loopback};
use crate::http_tracker::announce;
use crate::peer::ScriptedPeer;
use crate::stopping::{HeldTracker, assert_last_messages, begin_stop};

/// Longer than all phases of a stop together, and shorter than any unbounded phase would take.
pub const BOUND: Duration = Duration::from_secs(30);

/// A tracker that never answers.
fn dead_tracker() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = announce(listener.local_addr().unwrap());
    thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    url
}

/// A torrent of one file that is a hole of `len` bytes, with arbitrary piece hashes.
fn hollow_torrent(bed: &Bed, len: u64) -> Torrent {
    let piece_length = 1 << 20;
    let torrent = NewTorrent {
        name: "data".into(),
        files: vec![NewFile { path: vec![], len }],
        piece_length,
        pieces: vec![sha1([&b"anything"[..]]); len.div_ceil(u64::from(piece_length)) as usize],
        ..NewTorrent::default()
    };
    let bytes = Bytes::from(torrent.encode().unwrap());
    std::fs::File::create(bed.folder().join("data"))
        .unwrap()
        .set_len(len)
        .unwrap();
    Torrent {
        metainfo: Arc::new(Metainfo::parse(&bytes, &MetainfoLimits::default()).unwrap()),
        data: Vec::new(),
    }
}

/// A stop while much existing data is checked ends the check and saves nothing that is not yet known.
#[test]
fn a_stop_during_a_check() {
    let bed = Bed::keeping(|_| {});
    let torrent = hollow_torrent(&bed, 64 << 30);
    let id = bed.add(&torrent, "", &[]);
    bed.wait_until("the check", || bed.stats(id).checked > 0);
    assert_eq!(bed.stats(id).state, TorrentState::Checking);
    let begin = Instant::now();
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
    // Whether there is a session or not, the next run checks the data again.
    let id = bed.add(&torrent, "", &[]);
    bed.wait_until("the next check", || bed.stats(id).checked > 0);
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
}

/// A tracker that never answers delays the stop until its deadline; the session is saved all the same.
#[test]
fn a_dead_tracker_costs_its_deadline() {
    let torrent = Torrent::with_trackers(100_000, 16384, &[dead_tracker()]);
    let mut bed = Bed::keeping(|settings| settings.lifecycle.announce_timeout_ms = 500);
    let id = bed.seed(&torrent);
    bed.wait_until("the tracker to be asked", || {
        bed.stats(id).trackers[0].status == "announcing"
    });
    let begin = Instant::now();
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    let took = begin.elapsed();
    assert!((Duration::from_millis(500)..BOUND).contains(&took), "{took:?}");
    assert!(bed.session(id).is_some());
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
}

/// Fifty torrents stop in parallel: the tracker receives `stopped` for each of them before it answers the first.
#[test]
fn all_torrents_stop_side_by_side() {
    const COUNT: usize = 50;
    let tracker = HeldTracker::start();
    let bed = Bed::keeping(|settings| {
        settings.lifecycle.announce_timeout_ms = 600_000;
        settings.trackers.http_timeout_s = 600;
    });
    let ids: Vec<InfoHash> = (0..COUNT)
        .map(|number| {
            let torrent = Torrent::with_trackers(20_000 + number, 16384, std::slice::from_ref(&tracker.url));
            bed.add(&torrent, &number.to_string(), &[])
        })
        .collect();
    bed.wait_until("`started` of each", || {
        ids.iter().all(|id| bed.stats(*id).trackers[0].status == "working")
    });
    let torrents = bed.torrents();
    let stop = thread::spawn(move || torrents.blocking().stop_all_and_serialize());
    for _ in 0..COUNT {
        tracker.stops.recv_timeout(DEADLINE).unwrap();
    }
    for _ in 0..COUNT {
        tracker.release.send(()).unwrap();
    }
    stop.join().unwrap().unwrap();
    assert!(bed.block_on(bed.torrents().list()).unwrap().is_empty());
    assert!(ids.iter().all(|id| bed.session(*id).is_some()));
}

/// A thousand peers all get an orderly close, within a bounded time.
#[test]
fn a_thousand_peers_are_disconnected_in_order() {
    const COUNT: usize = 1000;
    raise_file_limit();
    let torrent = Torrent::new(100_000, 16384);
    let mut bed = Bed::keeping(|settings| {
        settings.peers.max_connections = 2 * COUNT;
        settings.peers.max_per_torrent = 2 * COUNT;
        settings.peers.max_inbound_per_ip = 2 * COUNT;
        settings.peers.max_unidentified = 2 * COUNT;
    });
    let id = bed.seed(&torrent);
    let peers: Vec<ScriptedPeer> = (0..COUNT)
        .map(|_| {
            let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
            peer.send(&Message::HaveNone);
            peer
        })
        .collect();
    bed.wait_until("all peers", || bed.stats(id).peers.len() == COUNT);
    let begin = Instant::now();
    let stop = begin_stop(&bed, id);
    for mut peer in peers {
        assert_last_messages(&peer.rest(), &BTreeSet::new());
    }
    stop.join().unwrap().unwrap();
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    assert!(bed.session(id).is_some());
}

fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// A stop does not wait for connections that are still being established.
#[test]
fn a_stop_while_connections_are_being_made() {
    let torrent = Torrent::new(100_000, 16384);
    let mut bed = Bed::keeping(|_| {});
    // The system accepts the connection, and no peer ever answers.
    let silent = TcpListener::bind((loopback(113), 0)).unwrap();
    // A network reserved for documentation (RFC 5737): no host answers.
    let nowhere: SocketAddr = ([192, 0, 2, 1], 6881).into();
    let id = bed.download(&torrent, &[silent.local_addr().unwrap(), nowhere]);
    silent.accept().unwrap();
    let begin = Instant::now();
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
}
