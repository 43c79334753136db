//! Unwanted connections: to ourselves, and duplicates to the same peer.

use std::io::Write;
use std::sync::Arc;

use ecs_torrent::components::peer::CloseReason;
use ecs_torrent::protocol::wire::{Message, Reserved};

use crate::bed::{Bed, Seen, Torrent, loopback};
use crate::peer::{ScriptedPeer, connect_raw, handshake, listen_as_seed, unique_id};

/// Fault 30: the engine connects to itself, detects it, and does not retry.
#[test]
fn ourselves() {
    let mut bed = Bed::new();
    let torrent = Torrent::new(100_000, 16384);
    let own = bed.address();
    let id = bed.download(&torrent, &[own]);
    assert_eq!(bed.reason(own), CloseReason::Myself);
    assert!(bed.stats(id).peers.is_empty());
}

/// Fault 30: a second connection of a connected peer is rejected; the first one continues.
#[test]
fn the_same_peer_twice() {
    let mut bed = Bed::new();
    let torrent = Torrent::new(100_000, 16384);
    bed.seed(&torrent);
    let id = unique_id();
    let mut first = ScriptedPeer::connect_as(bed.address(), &torrent, id);
    let mut second = connect_raw(bed.address(), None);
    let address = second.local_addr().unwrap();
    second
        .write_all(&handshake(torrent.info_hash(), id, Reserved::ours()))
        .unwrap();
    assert_eq!(bed.reason(address), CloseReason::Duplicate);
    first.send(&Message::Interested);
    first.wait_for_message(&Message::Unchoke);
}

/// A peer that disconnects can reconnect under the same peer id.
#[test]
fn a_peer_that_returns() {
    let mut bed = Bed::new();
    let torrent = Torrent::new(100_000, 16384);
    bed.seed(&torrent);
    let id = unique_id();
    let first = ScriptedPeer::connect_as(bed.address(), &torrent, id);
    let address = first.address();
    drop(first);
    bed.reason(address);
    ScriptedPeer::connect_as(bed.address(), &torrent, id);
}

/// Two engines in one process transfer a torrent through both.
#[test]
fn two_engines_in_one_process() {
    let torrent = Arc::new(Torrent::new(2_000_003, 65536));
    let (mut one, mut other) = (Bed::new(), Bed::new());
    let seed = listen_as_seed(loopback(60), &torrent, |_, _| true);
    one.download(&torrent, &[seed]);
    one.wait_complete(&torrent);
    other.download(&torrent, &[one.address()]);
    other.wait_complete(&torrent);
    assert!(!other.has_seen().iter().any(|seen| matches!(seen, Seen::Rejected)));
}
