//! Peers that send bad data or withhold data.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use ecs_torrent::bevy_ecs::prelude::World;
use ecs_torrent::components::peer::{CloseReason, Requests};
use ecs_torrent::protocol::wire::Message;

use crate::bed::{Bed, Seen, Torrent, loopback};
use crate::peer::{ScriptedPeer, listen_as_seed};

/// Fault 26: of two peers that contribute to the same pieces, only the peer that sends bad blocks is banned, and the
/// torrent completes.
#[test]
fn only_the_culprit_is_banned() {
    // The pieces are large enough that both peers contribute to each.
    let torrent = Arc::new(Torrent::new(4 << 20, 1 << 20));
    // A peer is still connected if the verdict comes after completion.
    let mut bed = Bed::with(|settings| settings.peers.keep_redundant = true);
    let (lies, truths) = (Pieces::default(), Pieces::default());
    let honest = honest_seed(&torrent, &lies, &truths);
    let sent = lies.clone();
    let bad = listen_as_seed(loopback(3), &torrent, move |request, data| {
        if request.begin % 65536 == 0 {
            data[77] ^= 1;
            sent.add(request.piece);
        }
        true
    });
    expect_ban_of(&mut bed, &torrent, bad, honest);
    let (lies, truths) = (lies.all(), truths.all());
    assert!(
        lies.iter().any(|piece| truths.contains(piece)),
        "{lies:?} {truths:?}: both fill a piece"
    );
    assert!(bed.has_seen().iter().any(|seen| matches!(seen, Seen::Rejected)));
}

/// A seed that waits until the other peer has begun to send bad blocks, and records the pieces that it sends blocks of.
fn honest_seed(torrent: &Arc<Torrent>, lies: &Pieces, truths: &Pieces) -> SocketAddr {
    let (sent, received) = (truths.clone(), lies.clone());
    listen_as_seed(loopback(2), torrent, move |request, _| {
        received.wait();
        sent.add(request.piece);
        true
    })
}

/// Downloads a torrent from a bad and an honest peer, and asserts that only the bad one is closed for it.
#[track_caller]
fn expect_ban_of(bed: &mut Bed, torrent: &Torrent, bad: SocketAddr, honest: SocketAddr) {
    bed.download(torrent, &[honest, bad]);
    bed.wait_complete(torrent);
    let culprit = |seen: &Seen| matches!(seen, Seen::Disconnected(address, CloseReason::Corrupt) if *address == bad);
    bed.wait_for_in_past("the ban of the culprit", culprit);
    for seen in bed.has_seen() {
        assert!(!matches!(seen, Seen::Disconnected(address, CloseReason::Corrupt) if *address == honest));
    }
}

/// Fault 26: a peer that sends one bad block, and good ones when the piece is requested again, is found by the digest
/// of that block. It never fails a piece alone.
#[test]
fn a_peer_that_lies_once_is_found_by_its_block() {
    let torrent = Arc::new(Torrent::new(4 << 20, 4 << 20));
    let mut bed = Bed::with(|settings| settings.peers.keep_redundant = true);
    let (lies, truths) = (Pieces::default(), Pieces::default());
    let honest = honest_seed(&torrent, &lies, &truths);
    let bad = listen_as_seed(loopback(3), &torrent, move |request, data| {
        if lies.all().is_empty() {
            data[77] ^= 1;
            lies.add(request.piece);
            // The honest peer sends a block of the piece too.
            truths.wait();
        }
        true
    });
    expect_ban_of(&mut bed, &torrent, bad, honest);
}

/// Pieces of which a peer has sent blocks.
#[derive(Clone, Default)]
struct Pieces(Arc<(Mutex<BTreeSet<u32>>, Condvar)>);

impl Pieces {
    fn add(&self, piece: u32) {
        self.0.0.lock().unwrap().insert(piece);
        self.0.1.notify_all();
    }

    /// Waits for the first piece.
    fn wait(&self) {
        drop(
            self.0
                .1
                .wait_while(self.0.0.lock().unwrap(), |pieces| pieces.is_empty()),
        );
    }

    fn all(&self) -> BTreeSet<u32> {
        self.0.0.lock().unwrap().clone()
    }
}

/// Fault 27: nine of ten peers send only bad data; the tenth completes the torrent.
#[test]
fn nine_of_ten_poison() {
    let torrent = Arc::new(Torrent::new(3_000_001, 131_072));
    let mut bed = Bed::new();
    let mut peers = Vec::new();
    for last in 0..9 {
        peers.push(listen_as_seed(loopback(20 + last), &torrent, |_, data| {
            data.fill(0x55);
            true
        }));
    }
    peers.push(listen_as_seed(loopback(40), &torrent, |_, _| true));
    let id = bed.download(&torrent, &peers);
    bed.wait_complete(&torrent);
    let honest = peers[9];
    for seen in bed.has_seen() {
        assert!(!matches!(seen, Seen::Disconnected(address, CloseReason::Corrupt) if *address == honest));
    }
    let stats = bed.stats(id);
    assert!(stats.is_complete() && stats.corrupt > 0);
}

/// Fault 28: the answer to a request that was canceled meanwhile is dropped. No peer is closed or banned for it.
#[test]
fn a_late_answer_to_a_canceled_request() {
    let torrent = Torrent::new(16384, 16384);
    let mut bed = Bed::with(|settings| settings.peers.keep_redundant = true);
    let id = bed.download(&torrent, &[]);
    let mut slow = ScriptedPeer::connect(bed.address(), &torrent);
    let mut fast = ScriptedPeer::connect(bed.address(), &torrent);
    for peer in [&mut slow, &mut fast] {
        peer.send(&Message::HaveAll);
        peer.send(&Message::Unchoke);
    }
    // In the endgame the only block is requested from both peers.
    let request = slow.wait_for_request();
    assert_eq!(fast.wait_for_request(), request);
    fast.send_block(request, &torrent.data);
    slow.wait_for_message(&Message::Cancel(request));
    slow.send_block(request, &torrent.data);
    bed.wait_complete(&torrent);
    // The engine still processes the peer's messages.
    slow.send(&Message::Interested);
    slow.wait_for_message(&Message::Unchoke);
    assert_eq!(bed.stats(id).wasted, 16384);
    assert_eq!(bed.stats(id).peers.len(), 2);
}

/// Fault 29: unsolicited blocks are discarded, and their sender is soon closed.
#[test]
fn unsolicited_blocks() {
    let torrent = Torrent::new(1 << 20, 65536);
    let mut bed = Bed::new();
    let id = bed.download(&torrent, &[]);
    let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
    let address = peer.address();
    peer.send(&Message::HaveNone);
    for _ in 0..100 {
        let request = torrent.metainfo.info.geometry.block(3, 1);
        peer.send_block(request, &[0; 16384]);
    }
    peer.wait_closed();
    assert_eq!(bed.reason(address), CloseReason::Unsolicited);
    let stats = bed.stats(id);
    assert_eq!((stats.downloaded, stats.held_pieces()), (0, 0));
    assert!(stats.wasted >= 64 * 16384);
}

/// Fault 33: a peer accepts requests and sends nothing; its blocks are requested from another peer.
#[test]
fn a_peer_that_accepts_requests_and_sends_nothing() {
    let torrent = Arc::new(Torrent::new(3_000_001, 65536));
    let mut bed = Bed::with(|settings| settings.requests.block_timeout_s = 1);
    let requested = Arc::new(AtomicUsize::new(0));
    let counter = requested.clone();
    let silent = listen_as_seed(loopback(50), &torrent, move |_, _| {
        counter.fetch_add(1, Ordering::Relaxed);
        false
    });
    bed.download(&torrent, &[silent]);
    bed.wait_for(
        "the silent peer",
        |seen| matches!(seen, Seen::Connected(address) if *address == silent),
    );
    while requested.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    let honest = listen_as_seed(loopback(51), &torrent, |_, _| true);
    let torrents = bed.torrents();
    bed.block_on(torrents.add_peers(torrent.info_hash(), vec![honest]))
        .unwrap();
    bed.wait_complete(&torrent);
}

/// The last blocks of a torrent do not wait for a peer that has stopped sending: the endgame requests them from other
/// peers.
#[test]
fn a_peer_that_stops_at_ninety_nine_percent() {
    let torrent = Arc::new(Torrent::new(2 << 20, 65536));
    let mut bed = Bed::with(|settings| settings.requests.block_timeout_s = 600);
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let stalling = listen_as_seed(loopback(52), &torrent, move |_, _| {
        counter.fetch_add(1, Ordering::Relaxed) < 120
    });
    bed.download(&torrent, &[stalling]);
    while sent.load(Ordering::Relaxed) < 128 {
        std::thread::yield_now();
    }
    let honest = listen_as_seed(loopback(53), &torrent, |_, _| true);
    let torrents = bed.torrents();
    bed.block_on(torrents.add_peers(torrent.info_hash(), vec![honest]))
        .unwrap();
    bed.wait_complete(&torrent);
}

/// BEP 6: a choking peer may still allow some pieces, and the engine fetches them.
#[test]
fn allowed_fast_pieces_are_fetched_while_choked() {
    let torrent = Torrent::new(4 * 16384, 16384);
    let mut bed = Bed::new();
    let id = bed.download(&torrent, &[]);
    let mut peer = ScriptedPeer::connect(bed.address(), &torrent);
    peer.send(&Message::HaveAll);
    peer.send(&Message::AllowedFast(2));
    let request = peer.wait_for_request();
    assert_eq!(request.piece, 2);
    peer.send_block(request, &torrent.data[2 * 16384..3 * 16384]);
    while bed.stats(id).held_pieces() == 0 {
        std::thread::yield_now();
    }
    let pending = |world: &mut World| {
        let mut peers = world.query::<&Requests>();
        peers
            .iter(world)
            .map(|requests| requests.pending().len())
            .sum::<usize>()
    };
    assert_eq!(
        bed.block_on(bed.torrents().with_world(pending)).unwrap(),
        0,
        "nothing else while choked"
    );
    peer.send(&Message::Unchoke);
    assert_ne!(peer.wait_for_request().piece, 2);
}
