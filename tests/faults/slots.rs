//! Slots are earned: an honest peer gets a slot and a peer added by the user is dialed, however many silent peers hold
//! slots.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ecs_torrent::bevy_ecs::prelude::World;
use ecs_torrent::components::connections::ConnectionCounts;
use ecs_torrent::components::peer::CloseReason;
use ecs_torrent::protocol::peer_id::PeerId;
use ecs_torrent::protocol::wire::{HANDSHAKE_LEN, Handshake, Message, Reserved};

use crate::bed::{Bed, Seen, Torrent, loopback};
use crate::http_tracker::{announce, ok, serve_on};
use crate::peer::{ScriptedPeer, connect_raw, handshake, listen_as_seed, read_handshake, unique_id};

/// Performs the handshake from `from` and then sends nothing. Returns the connection if the engine accepts it.
fn silent(bed: &Bed, torrent: &Torrent, from: IpAddr) -> Option<TcpStream> {
    let mut stream = connect_raw(bed.address(), Some(from));
    let hello = handshake(torrent.info_hash(), unique_id(), Reserved::ours());
    stream.write_all(&hello).ok()?;
    read_handshake(&mut stream)?;
    Some(stream)
}

/// Fills all of a torrent's slots with silent connections from four addresses.
fn fill(bed: &Bed, torrent: &Torrent, count: usize) -> Vec<TcpStream> {
    let from = |number: usize| loopback(200 + (number % 4) as u8);
    let held: Vec<TcpStream> = (0..count)
        .filter_map(|number| silent(bed, torrent, from(number)))
        .collect();
    assert_eq!(held.len(), count, "all are let in");
    held
}

/// A hundred silent connections fill a torrent. The seed that the user adds is dialed all the same, and the torrent
/// completes.
#[test]
fn a_named_seed_is_dialed_though_silent_peers_fill_the_torrent() {
    let torrent = Arc::new(Torrent::new(1 << 20, 65536));
    let mut bed = Bed::new();
    let id = bed.download(&torrent, &[]);
    let _held = fill(&bed, &torrent, 100);
    assert_eq!(bed.stats(id).peers.len(), 100);
    let seed = listen_as_seed(loopback(210), &torrent, |_, _| true);
    bed.block_on(bed.torrents().add_peers(id, vec![seed])).unwrap();
    bed.wait_complete(&torrent);
}

/// The seed that the user adds is unreachable at first: it is soon retried, and its slot stays reserved.
#[test]
fn a_named_seed_is_tried_again_while_silent_peers_fill_the_torrent() {
    let torrent = Arc::new(Torrent::new(1 << 20, 65536));
    let mut bed = Bed::with(|settings| {
        settings.peers.reconnect_backoff_s = 1;
        settings.peers.grace_s = 3600;
    });
    let listener = TcpListener::bind((loopback(211), 0)).unwrap();
    let seed = listener.local_addr().unwrap();
    drop(listener);
    let id = bed.download(&torrent, &[seed]);
    bed.wait_for(
        "a first try",
        |seen| matches!(seen, Seen::Disconnected(address, _) if *address == seed),
    );
    let _held = fill(&bed, &torrent, 99);
    // It may take the slot of a silent peer that has used up its time, but not the seed's.
    let _late = silent(&bed, &torrent, loopback(204));
    assert!(bed.stats(id).peers.len() < 100, "one slot is the seed's");
    let listener = TcpListener::bind(seed).unwrap();
    let data = torrent.clone();
    thread::spawn(move || ScriptedPeer::accept(&listener, &data).serve(&data, |_, _| true));
    bed.wait_complete(&torrent);
}

/// A seed from a tracker uses the slots reserved for outgoing connections, which no incoming connection can hold.
#[test]
fn a_seed_of_the_tracker_is_dialed_though_silent_peers_fill_the_torrent() {
    let listener = TcpListener::bind((loopback(212), 0)).unwrap();
    let tracker = announce(listener.local_addr().unwrap());
    let torrent = Arc::new(Torrent::with_trackers(1 << 20, 65536, &[tracker]));
    let is_filled = Arc::new(AtomicBool::new(false));
    let SocketAddr::V4(seed) = listen_as_seed(loopback(213), &torrent, |_, _| true) else {
        panic!("an IPv4 address");
    };
    let gate = is_filled.clone();
    serve_on(listener, move |_| {
        while !gate.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(5));
        }
        let mut reply = b"d8:intervali900e5:peers6:".to_vec();
        reply.extend(seed.ip().octets());
        reply.extend(seed.port().to_be_bytes());
        reply.push(b'e');
        ok(&reply)
    });
    let mut bed = Bed::new();
    bed.download(&torrent, &[]);
    let _held = fill(&bed, &torrent, 100);
    is_filled.store(true, Ordering::Release);
    bed.wait_complete(&torrent);
}

/// An honest peer that connects to a torrent full of silent peers gets a slot after their grace period, which is short
/// if many come from one address.
#[test]
fn an_honest_peer_is_admitted_among_silent_ones() {
    let torrent = Arc::new(Torrent::new(1 << 20, 65536));
    let mut bed = Bed::new();
    bed.download(&torrent, &[]);
    let _held = fill(&bed, &torrent, 100);
    let (address, data) = (bed.address(), torrent.clone());
    thread::spawn(move || {
        loop {
            let mut stream = connect_raw(address, Some(loopback(214)));
            let hello = handshake(data.info_hash(), unique_id(), Reserved::ours());
            if stream.write_all(&hello).is_ok() && read_handshake(&mut stream).is_some() {
                return ScriptedPeer::after_handshake(stream, &data).serve(&data, |_, _| true);
            }
            thread::sleep(Duration::from_millis(100));
        }
    });
    bed.wait_complete(&torrent);
    let evicted = |seen: &Seen| matches!(seen, Seen::Disconnected(_, CloseReason::Evicted));
    assert!(bed.has_seen().iter().any(evicted));
}

/// A peer that sends blocks keeps its slot against any number of new connections.
#[test]
fn a_useful_peer_is_not_evicted() {
    let torrent = Arc::new(Torrent::new(1 << 20, 65536));
    let mut bed = Bed::with(|settings| {
        settings.peers.max_per_torrent = 4;
        settings.peers.grace_s = 0;
        settings.peers.waiting_grace_s = 0;
    });
    bed.download(&torrent, &[]);
    let mut useful = ScriptedPeer::connect(bed.address(), &torrent);
    let address = useful.address();
    useful.send(&Message::HaveAll);
    useful.send(&Message::Unchoke);
    let request = useful.wait_for_request();
    useful.answer(&torrent, request);
    let mut held = Vec::new();
    for number in 0..40 {
        held.extend(silent(&bed, &torrent, loopback(220 + number % 4)));
    }
    // The engine still processes the peer's messages.
    for _ in 0..63 {
        let request = useful.wait_for_request();
        useful.answer(&torrent, request);
    }
    bed.wait_complete(&torrent);
    let seen = bed.has_seen();
    let is_gone = |seen: &&Seen| matches!(seen, Seen::Disconnected(other, CloseReason::Evicted) if *other == address);
    assert!(!seen.iter().any(|seen| is_gone(&seen)));
    let evicted = seen
        .iter()
        .filter(|seen| matches!(seen, Seen::Disconnected(_, CloseReason::Evicted)));
    assert!(evicted.count() >= 30, "newcomers displaced silent ones");
}

/// Six addresses keep opening connections and send half a handshake each; forty honest peers still get in.
#[test]
fn renewed_half_handshakes_do_not_lock_others_out() {
    let torrent = Arc::new(Torrent::new(100_000, 16384));
    let mut bed = Bed::new();
    bed.seed(&torrent);
    let is_over = Arc::new(AtomicBool::new(false));
    let attackers: Vec<_> = (0..6)
        .map(|number| {
            let (to, is_over, hash) = (bed.address(), is_over.clone(), torrent.info_hash());
            thread::spawn(move || {
                let mut held = std::collections::VecDeque::new();
                while !is_over.load(Ordering::Relaxed) {
                    let mut stream = connect_raw(to, Some(loopback(230 + number)));
                    let half = &handshake(hash, unique_id(), Reserved::ours())[..30];
                    let _ = stream.write_all(half);
                    held.push_back(stream);
                    if held.len() > 32 {
                        held.pop_front();
                    }
                    thread::sleep(Duration::from_millis(5));
                }
            })
        })
        .collect();
    // The attackers fill the budget of unidentified connections before the honest peers connect.
    let unidentified = |world: &mut World| world.resource::<ConnectionCounts>().unidentified;
    bed.wait_until("a full budget", || {
        bed.block_on(bed.torrents().with_world(unidentified)).unwrap() >= 128
    });
    let mut honest = Vec::new();
    for number in 0..40 {
        let stream = silent(&bed, &torrent, loopback(100 + number));
        honest.push(stream.unwrap_or_else(|| panic!("honest peer {number} is kept out")));
    }
    is_over.store(true, Ordering::Relaxed);
    attackers.into_iter().for_each(|attacker| attacker.join().unwrap());
}

/// Starts a seed at `ip` with a peer id that other peers copy.
fn listen_with_id(ip: IpAddr, torrent: &Arc<Torrent>, id: PeerId) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let torrent = torrent.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let torrent = torrent.clone();
            thread::spawn(move || {
                let mut theirs = [0; HANDSHAKE_LEN];
                let hello = handshake(torrent.info_hash(), id, Reserved::ours());
                if stream.read_exact(&mut theirs).is_ok()
                    && Handshake::read(&theirs).is_ok()
                    && stream.write_all(&hello).is_ok()
                {
                    ScriptedPeer::after_handshake(stream, &torrent).serve(&torrent, |_, _| true);
                }
            });
        }
    });
    address
}

/// A peer that uses the seed's peer id and sends bad data is banned; the seed is not.
#[test]
fn a_ban_cannot_be_aimed_by_a_stolen_id() {
    let torrent = Arc::new(Torrent::new(1 << 20, 65536));
    let mut bed = Bed::new();
    let id = bed.download(&torrent, &[]);
    let seed_id = unique_id();
    let thief = ScriptedPeer::connect_from(bed.address(), loopback(240), &torrent, seed_id);
    let thief_address = thief.address();
    let data = torrent.clone();
    thread::spawn(move || {
        thief.serve(&data, |_, data| {
            data.fill(0x55);
            true
        });
    });
    assert_eq!(bed.reason(thief_address), CloseReason::Corrupt);
    let seed = listen_with_id(loopback(241), &torrent, seed_id);
    bed.block_on(bed.torrents().add_peers(id, vec![seed])).unwrap();
    bed.wait_complete(&torrent);
    assert!(bed.stats(id).corrupt > 0, "the thief has delivered");
}

/// A silent peer that connects first with a stolen peer id does not lock out the id's owner. One that connects while
/// the owner is connected does not end the owner's connection.
#[test]
fn a_stolen_id_does_not_lock_its_owner_out() {
    for seed_id in [PeerId([0; 20]), PeerId([0xff; 20])] {
        let torrent = Arc::new(Torrent::new(1 << 20, 65536));
        let mut bed = Bed::new();
        let id = bed.download(&torrent, &[]);
        let _first = ScriptedPeer::connect_from(bed.address(), loopback(242), &torrent, seed_id);
        let seed = listen_with_id(loopback(243), &torrent, seed_id);
        bed.block_on(bed.torrents().add_peers(id, vec![seed])).unwrap();
        bed.wait_for(
            "the seed",
            |seen| matches!(seen, Seen::Connected(address) if *address == seed),
        );
        let _second = ScriptedPeer::connect_from(bed.address(), loopback(244), &torrent, seed_id);
        bed.wait_complete(&torrent);
        let refused = |seen: &Seen| matches!(seen, Seen::Disconnected(_, CloseReason::Duplicate));
        assert!(!bed.has_seen().iter().any(refused));
    }
}

/// A peer behind the same gateway as the seed claims the seed's listen port and sends bad data. The seed is dialed all
/// the same.
#[test]
fn a_claimed_port_keeps_nobody_from_being_dialed() {
    let torrent = Arc::new(Torrent::new(1 << 20, 65536));
    let mut bed = Bed::new();
    let id = bed.download(&torrent, &[]);
    let seed = listen_as_seed(loopback(245), &torrent, |_, _| true);
    let mut liar = ScriptedPeer::connect_from(bed.address(), loopback(245), &torrent, unique_id());
    let claim = format!("d1:pi{}ee", seed.port());
    liar.send(&Message::Extended {
        id: 0,
        payload: claim.into_bytes().into(),
    });
    let liar_address = liar.address();
    let data = torrent.clone();
    thread::spawn(move || {
        liar.serve(&data, |_, data| {
            data.fill(0x55);
            true
        });
    });
    assert_eq!(bed.reason(liar_address), CloseReason::Corrupt);
    bed.block_on(bed.torrents().add_peers(id, vec![seed])).unwrap();
    bed.wait_complete(&torrent);
}
