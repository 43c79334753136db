//! Peers that are connected at an IPv4 and at an IPv6 address: one of the connections is enough.
//!
//! A peer id is a claim that anybody can copy, and so is an address in an extension handshake (BEP 10, `ipv4` and
//! `ipv6`). Two connections belong to one peer if they have the same id and each of them claims the address of the
//! other one.

use bevy_ecs::prelude::*;
use ecs_torrent_components::messages::ExtensionHandshakeReceived;
use ecs_torrent_components::peer::{CloseReason, Direction, Peer, PeerExtensions};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::torrent::{PeerOf, Torrent};

use crate::handshaking::ConnectedIds;

/// Closes the second connection to a peer. Both sides choose the same one: the side that opened both closes the later
/// one; of two that were opened by different sides, the one of the side with the higher id stays.
pub(super) fn close_second_connections(
    mut received: MessageReader<ExtensionHandshakeReceived>,
    mut reaper: ResMut<Reaper>,
    peers: Query<(Entity, &Peer, &PeerExtensions, &PeerOf)>,
    torrents: Query<(&Torrent, &ConnectedIds)>,
) {
    for received in received.read() {
        let Ok(one @ (entity, peer, extensions, of)) = peers.get(received.peer) else {
            continue;
        };
        let (Some(id), Ok((torrent, ids))) = (peer.peer_id, torrents.get(of.0)) else {
            continue;
        };
        for other @ (twin, other_peer, other_extensions, _) in peers.iter_many(ids.of(id)).flatten() {
            let is_one_peer = claims(extensions, other_peer) && claims(other_extensions, peer);
            if twin == entity || !is_one_peer || reaper.is_doomed(twin) || reaper.is_doomed(entity) {
                continue;
            }
            let age = |(entity, peer, ..): (Entity, &Peer, _, _)| (peer.since, entity);
            let (later, earlier) = if age(one) > age(other) {
                (one, other)
            } else {
                (other, one)
            };
            let (inbound, outbound) = match peer.direction {
                Direction::Inbound => (one, other),
                Direction::Outbound => (other, one),
            };
            let (closed, kept) = match (peer.direction, other_peer.direction) {
                (Direction::Outbound, Direction::Outbound) => (later, earlier),
                (Direction::Inbound, Direction::Inbound) => continue,
                _ if torrent.peer_id > id => (inbound, outbound),
                _ => (outbound, inbound),
            };
            if let Some(address) = kept.1.listens_at.or(kept.1.endpoint.address()) {
                reaper.close(closed.0, CloseReason::OtherAddress(address));
            }
        }
    }
}

/// Whether a peer claims to have the address of another one.
fn claims(extensions: &PeerExtensions, other: &Peer) -> bool {
    let handshake = &extensions.handshake;
    other.endpoint.address().is_some_and(|address| {
        let ip = address.ip().to_canonical();
        handshake.ipv4.is_some_and(|claimed| ip == claimed) || handshake.ipv6.is_some_and(|claimed| ip == claimed)
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use ecs_torrent_components::peer::Endpoint;
    use ecs_torrent_protocol::peer_id::PeerId;

    use super::super::ExtensionsPlugin;
    use super::*;
    use crate::testing::{Bed, NOW, torrent};

    const V4: &str = "192.0.2.7:1";
    const V6: &str = "[2001:db8::7]:2";
    const LOW: PeerId = PeerId([1; 20]);
    const HIGH: PeerId = PeerId([9; 20]);

    /// Connects a peer twice, the second time over IPv6, each connection with a claim to another address. Returns which
    /// connections are closed, and the addresses of those that stay instead.
    fn closed(directions: [Direction; 2], id: PeerId, claims: [&[u8]; 2]) -> Vec<(usize, SocketAddr)> {
        let mut bed = Bed::new(ExtensionsPlugin);
        let mut names = torrent();
        names.peer_id = PeerId([5; 20]);
        bed.world.entity_mut(bed.torrent).insert(names);
        let peers = [(V4, 0), (V6, 1)].map(|(address, number)| {
            let entity = bed.peer();
            let address: SocketAddr = address.parse().expect("an address");
            let mut peer = bed.get_mut::<Peer>(entity);
            peer.endpoint = Endpoint::Ip(address);
            peer.direction = directions[number];
            peer.peer_id = Some(id);
            peer.since = NOW + Duration::from_secs(number as u64);
            entity
        });
        let ids = ConnectedIds::with(id, &peers);
        bed.world.entity_mut(bed.torrent).insert(ids);
        for (entity, payload) in peers.into_iter().zip(claims) {
            let handshake = ecs_torrent_protocol::extension::ExtensionHandshake::read(payload).expect("bencode");
            bed.get_mut::<PeerExtensions>(entity).merge(handshake);
        }
        let message = ExtensionHandshakeReceived {
            peer: peers[1],
            payload: claims[1].to_vec().into(),
        };
        bed.run_after(message, close_second_connections);
        let reaper = bed.world.resource::<Reaper>();
        let closed = reaper.iter().map(|(closed, reason)| {
            let CloseReason::OtherAddress(kept) = reason else {
                panic!("{reason}");
            };
            (usize::from(peers[1] == closed), *kept)
        });
        closed.collect()
    }

    #[test]
    fn one_connection_to_a_peer_with_two_addresses_stays() {
        use Direction::{Inbound, Outbound};
        let v4 = b"d4:ipv44:\xc0\x00\x02\x07e".as_slice();
        let v6 = b"d4:ipv616:\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07e".as_slice();
        let [address4, address6]: [SocketAddr; 2] = [V4, V6].map(|text| text.parse().expect("an address"));
        assert_eq!(closed([Outbound; 2], HIGH, [v6, v4]), [(1, address4)], "the later one");
        assert_eq!(closed([Inbound; 2], HIGH, [v6, v4]), [], "the peer closes one");
        for directions in [[Inbound, Outbound], [Outbound, Inbound]] {
            let [inbound, outbound] = if directions[0] == Inbound { [0, 1] } else { [1, 0] };
            let addresses = [address4, address6];
            let of_peer = closed(directions, HIGH, [v6, v4]);
            assert_eq!(of_peer, [(outbound, addresses[inbound])], "its id is higher");
            let ours = closed(directions, LOW, [v6, v4]);
            assert_eq!(ours, [(inbound, addresses[outbound])], "our id is higher");
        }
        // A liar copies the id, or the claim.
        for claims in [[v6, b"de"], [b"de", v4], [v4, v6], [b"de", b"de"]] {
            assert_eq!(closed([Outbound; 2], HIGH, claims), []);
        }
    }
}
