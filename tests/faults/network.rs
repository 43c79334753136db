//! A network that breaks and heals: unresolvable host names, and peers and trackers that disappear and return.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use ecs_torrent::TorrentState;
use ecs_torrent::protocol::wire::Message;

use crate::bed::{Bed, Seen, Torrent, loopback};
use crate::http_tracker::{announce, ok, serve_on, wait_until_next};
use crate::peer::{ScriptedPeer, listen_as_seed};

/// Fault 102: a tracker whose host name cannot be resolved fails visibly and is retried with increasing delay. A peer
/// known from another source completes the download.
#[test]
fn a_name_that_nobody_knows() {
    let url = "http://no-such-host.invalid/announce".to_owned();
    let torrent = Arc::new(Torrent::with_trackers(500_000, 16384, &[url]));
    let seed = listen_as_seed(loopback(140), &torrent, |_, _| true);
    let mut bed = Bed::with(|settings| settings.trackers.http_timeout_s = 20);
    let id = bed.download(&torrent, &[seed]);
    bed.wait_complete(&torrent);
    bed.wait_until("the failure", || bed.stats(id).trackers[0].status == "failed");
    let stats = bed.stats(id);
    assert_eq!(stats.state, TorrentState::Seeding);
    assert!(
        stats.trackers[0]
            .message
            .as_ref()
            .is_some_and(|message| !message.is_empty())
    );
    assert!(wait_until_next(&bed).as_secs() > 5, "it is not asked at once");
}

/// Fault 102: the failed lookup is published as a tracker failure and soon retried, like any other failure.
#[test]
fn a_lookup_that_fails_is_a_failure_like_others() {
    let url = "http://no-such-host.invalid/announce".to_owned();
    let mut bed = Bed::with(|settings| settings.trackers.http_timeout_s = 20);
    let id = bed.download(&Torrent::with_trackers(500_000, 16384, &[url]), &[]);
    bed.wait_until("the failure", || bed.stats(id).trackers[0].status == "failed");
    assert!(wait_until_next(&bed).as_secs() <= 60, "{:?}", wait_until_next(&bed));
    bed.wait_for_in_past("the failure to be reported", |seen| {
        matches!(seen, Seen::TrackerFailed(_))
    });
}

/// Fault 103: a peer that vanishes during the transfer and returns at the same address is reconnected.
#[test]
fn a_peer_that_comes_back() {
    let torrent = Arc::new(Torrent::new(2 << 20, 65536));
    let listener = TcpListener::bind((loopback(141), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut bed = Bed::with(|settings| settings.peers.reconnect_backoff_s = 1);
    let id = bed.download(&torrent, &[address]);
    let mut seed = ScriptedPeer::accept(&listener, &torrent);
    seed.send(&Message::HaveAll);
    seed.send(&Message::Unchoke);
    for _ in 0..20 {
        let request = seed.wait_for_request();
        seed.answer(&torrent, request);
    }
    drop((seed, listener));
    bed.reason(address);
    assert!(!bed.stats(id).is_complete());
    // At least one attempt fails.
    bed.wait_for(
        "a try",
        |seen| matches!(seen, Seen::Disconnected(other, _) if *other == address),
    );
    let listener = TcpListener::bind(address).unwrap();
    let data = torrent.clone();
    thread::spawn(move || ScriptedPeer::accept(&listener, &data).serve(&data, |_, _| true));
    bed.wait_complete(&torrent);
}

/// Fault 103: a tracker that vanishes and returns is announced to again.
#[test]
fn a_tracker_that_comes_back() {
    let listener = TcpListener::bind((loopback(142), 0)).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    drop(listener);
    let mut bed = Bed::with(|settings| settings.trackers.backoff_s = 1);
    let id = bed.download(&Torrent::with_trackers(100_000, 16384, &[announce(address)]), &[]);
    bed.wait_for("the failure", |seen| matches!(seen, Seen::TrackerFailed(_)));
    assert_eq!(bed.stats(id).trackers[0].status, "failed");
    let listener = TcpListener::bind(address).unwrap();
    serve_on(listener, |_| ok(b"d8:intervali900e5:peers6:\x7f\0\0\x05\0\x09e"));
    bed.wait_for("the answer", |seen| matches!(seen, Seen::TrackerAnswered(1)));
    assert_eq!(bed.stats(id).trackers[0].status, "working");
}
