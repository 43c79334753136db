//! Tests of the systems of peer exchange.

use super::*;
use crate::testing::{Bed, NOW, torrent};
use ecs_torrent_components::candidates::CandidateSources;
use ecs_torrent_components::peer::CloseReason;

/// The partners' message id for the extension.
const ID: u8 = 7;

fn bed() -> Bed {
    let mut bed = Bed::new(PexPlugin);
    bed.world.init_resource::<Messages<PeerConnected>>();
    bed.world.init_resource::<Messages<ExtensionHandshakeReceived>>();
    bed.world.init_resource::<Messages<MetadataKnown>>();
    bed.world.init_resource::<Messages<CandidatesFound>>();
    let allowed = AllowedSources(CandidateSources::default().serving(false));
    bed.world.entity_mut(bed.torrent).insert((torrent(), allowed));
    bed
}

/// Connects a peer that listens at the address; with `is_partner`, it exchanges peers.
fn connect(bed: &mut Bed, address: &str, is_partner: bool) -> Entity {
    let entity = bed.peer();
    let address: SocketAddr = address.parse().unwrap();
    let mut peer = bed.get_mut::<Peer>(entity);
    peer.endpoint = ecs_torrent_components::peer::Endpoint::Ip(address);
    peer.listens_at = Some(address);
    if is_partner {
        let mut extensions = bed.get_mut::<PeerExtensions>(entity);
        extensions.handshake.extensions = [(PEX.to_owned(), ID)].into();
    }
    let torrent = bed.torrent;
    bed.run_after(PeerConnected { torrent, peer: entity }, list_peers);
    entity
}

fn disconnect(bed: &mut Bed, peer: Entity) {
    let gone = PeerDisconnected {
        torrent: Some(bed.torrent),
        peer,
        reason: CloseReason::Stopping,
    };
    bed.run_after(gone, forget_peers);
    bed.world.despawn(peer);
}

fn pass(bed: &mut Bed, time: Duration) {
    let later = bed.world.resource::<Clock>().now() + time;
    bed.world.resource_mut::<Clock>().advance_to(later);
    bed.run(send_pex);
}

/// Returns what a partner was sent since the last call, as addresses.
fn sent(bed: &mut Bed, partner: Entity) -> Vec<(Vec<String>, Vec<String>)> {
    let bytes = bed.get_mut::<Outbox>(partner).take().concat();
    let mut rest = &bytes[..];
    let mut messages = Vec::new();
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let (message, after) = after.split_at(u32::from_be_bytes(*len) as usize);
        assert_eq!(message[..2], [20, ID]);
        let message = PexMessage::read(&message[2..], 1000).unwrap();
        let text = |address: &SocketAddr| address.to_string();
        let added = message.added.iter().map(|peer| text(&peer.address)).collect();
        messages.push((added, message.dropped.iter().map(text).collect()));
        rest = after;
    }
    messages
}

fn message(added: &[&str], dropped: &[&str]) -> (Vec<String>, Vec<String>) {
    let all = |addresses: &[&str]| addresses.iter().map(ToString::to_string).collect();
    (all(added), all(dropped))
}

#[test]
fn a_partner_learns_of_others_once_a_minute() {
    let [one, two, three] = ["203.0.113.1:1", "203.0.113.2:1", "[2001:db8::3]:1"];
    let mut bed = bed();
    let partner = connect(&mut bed, one, true);
    let second = connect(&mut bed, two, false);
    pass(&mut bed, Duration::from_millis(1999));
    assert_eq!(sent(&mut bed, partner), [], "more peers may connect");
    pass(&mut bed, Duration::from_millis(1));
    assert_eq!(sent(&mut bed, partner), [message(&[two], &[])]);
    let third = connect(&mut bed, three, false);
    disconnect(&mut bed, second);
    pass(&mut bed, Duration::from_millis(59_999));
    assert_eq!(sent(&mut bed, partner), []);
    pass(&mut bed, Duration::from_millis(1));
    assert_eq!(sent(&mut bed, partner), [message(&[three], &[two])]);
    pass(&mut bed, Duration::from_secs(1000));
    assert_eq!(sent(&mut bed, partner), [], "nothing is new");
    disconnect(&mut bed, third);
    pass(&mut bed, GATHER);
    assert_eq!(sent(&mut bed, partner), [message(&[], &[three])]);
    assert!(bed.world.resource::<Deadlines<PexTurn>>().is_empty());
}

#[test]
fn a_new_partner_learns_of_many_peers_at_once_and_in_parts() {
    let mut bed = bed();
    for last in 1..=120 {
        connect(&mut bed, &format!("203.0.113.{last}:1"), false);
    }
    let partner = connect(&mut bed, "203.0.113.200:1", true);
    let mut counts = Vec::new();
    for wait in [0, 60, 60, 60] {
        pass(&mut bed, Duration::from_secs(wait));
        let sent = sent(&mut bed, partner);
        counts.push(sent.into_iter().map(|(added, _)| added.len()).sum::<usize>());
    }
    assert_eq!(counts, [50, 50, 20, 0]);
}

/// A peer on the Internet cannot use the addresses of a local network, and must not learn them.
#[test]
fn local_addresses_are_named_to_local_peers_only() {
    let [local, neighbor, public, other] = ["10.0.0.1:1", "10.0.0.2:1", "203.0.113.1:1", "203.0.113.2:1"];
    let mut bed = bed();
    let partners = [local, public].map(|address| connect(&mut bed, address, true));
    for address in [neighbor, other] {
        connect(&mut bed, address, false);
    }
    pass(&mut bed, GATHER);
    assert_eq!(sent(&mut bed, partners[0]), [message(&[public, neighbor, other], &[])]);
    assert_eq!(sent(&mut bed, partners[1]), [message(&[other], &[])]);
}

/// An address is named if we know that it can be reached, or the peer says so.
#[test]
fn peers_that_do_not_say_where_they_listen_are_not_named() {
    let mut bed = bed();
    let partner = connect(&mut bed, "203.0.113.1:1", true);
    let silent = bed.peer();
    let torrent = bed.torrent;
    bed.run_after(PeerConnected { torrent, peer: silent }, list_peers);
    pass(&mut bed, GATHER);
    assert_eq!(sent(&mut bed, partner), []);
    let address = "192.0.2.77:5";
    bed.get_mut::<Peer>(silent).listens_at = Some(address.parse().unwrap());
    let payload = bytes::Bytes::new();
    let handshake = ExtensionHandshakeReceived { peer: silent, payload };
    bed.run_after(handshake, list_peers);
    pass(&mut bed, GATHER);
    assert_eq!(sent(&mut bed, partner), [message(&[address], &[])]);
}

/// BEP 27.
#[test]
fn a_torrent_that_may_not_exchange_peers_sends_and_takes_nothing() {
    let mut bed = bed();
    let partner = connect(&mut bed, "203.0.113.1:1", true);
    connect(&mut bed, "203.0.113.2:1", false);
    *bed.get_mut::<AllowedSources>(bed.torrent) = AllowedSources::default();
    pass(&mut bed, GATHER);
    assert_eq!(sent(&mut bed, partner), []);
    assert_eq!(receive(&mut bed, partner, 1), (0, None));
    let torrent = bed.torrent;
    bed.world.spawn_empty();
    bed.run_after(MetadataKnown { torrent }, list_peers);
    assert!(bed.get::<PexTorrent>(torrent).0.is_none() && bed.world.get::<PexPartner>(partner).is_none());
}

/// Receives messages with 60 peers each. Returns how many peers were taken, and why the partner was closed.
fn receive(bed: &mut Bed, partner: Entity, count: usize) -> (usize, Option<CloseReason>) {
    let added = (0..60).map(|last| PexPeer {
        address: ([198, 51, 100, last], 1).into(),
        flags: PexFlags::SEED,
    });
    let payload = PexMessage {
        added: added.collect(),
        dropped: Vec::new(),
    }
    .write();
    bed.world.init_resource::<Messages<ExtensionReceived>>();
    for _ in 0..count {
        bed.world.write_message(ExtensionReceived {
            peer: partner,
            extension: PEX,
            payload: payload.clone(),
        });
    }
    bed.run(receive_pex);
    bed.world.resource_mut::<Messages<ExtensionReceived>>().clear();
    let found: Vec<_> = bed.world.resource_mut::<Messages<CandidatesFound>>().drain().collect();
    let informant = Some([203, 0, 113, 1].into());
    assert!(found.iter().all(|found| found.informant == informant));
    let closed = bed.world.resource_mut::<Reaper>().take().pop();
    let count = found.iter().map(|found| found.peers.len()).sum();
    (count, closed.map(|(_, reason)| reason))
}

#[test]
fn a_partner_may_send_a_few_messages_at_once_and_then_one_in_thirty_seconds() {
    let mut bed = bed();
    let partner = connect(&mut bed, "203.0.113.1:1", true);
    bed.world.resource_mut::<Settings>().pex.max_received = 20;
    let flood = Some(CloseReason::from(WireError::TooManyPeerExchanges));
    assert_eq!(receive(&mut bed, partner, 6), (120, None));
    assert_eq!(receive(&mut bed, partner, 1), (0, flood.clone()));
    bed.world
        .resource_mut::<Clock>()
        .advance_to(NOW + Duration::from_secs(30));
    assert_eq!(receive(&mut bed, partner, 1), (20, None));
    assert_eq!(receive(&mut bed, partner, 1), (0, flood));
}

/// A peer that takes no messages itself cannot name peers to us.
#[test]
fn only_partners_are_listened_to() {
    let mut bed = bed();
    let peer = connect(&mut bed, "203.0.113.1:1", false);
    assert_eq!(receive(&mut bed, peer, 3), (0, None));
}
