//! Extension handshakes of peers (BEP 10, BEP 21), and the first extension: withdrawn pieces (BEP 54).

mod addresses;

use std::net::SocketAddr;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::candidates::Candidates;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::messages::{
    Availability, AvailabilityReceived, ExtensionHandshakeReceived, ExtensionReceived,
};
use ecs_torrent_components::peer::{Direction, ExtensionRegistry, Peer, PeerExtensions, PeerState, Wire};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Layout, PeerOf, Torrent};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::extension::{DONT_HAVE, ExtensionHandshake};
use ecs_torrent_protocol::wire::WireError;

use crate::DecideSet;
use crate::conditions::{has_messages, has_messages_of_two};

/// Reads extension handshakes, and handles the extension `lt_donthave`.
pub struct ExtensionsPlugin;

impl Plugin for ExtensionsPlugin {
    fn build(&self, app: &mut App) {
        app.world_mut().resource_mut::<ExtensionRegistry>().register(DONT_HAVE);
        app.add_systems(
            Tick,
            (
                read_extension_handshakes,
                addresses::close_second_connections.run_if(has_messages::<ExtensionHandshakeReceived>),
                read_dont_have,
            )
                .chain()
                .run_if(has_messages_of_two::<ExtensionHandshakeReceived, ExtensionReceived>)
                .in_set(DecideSet::Extensions),
        );
    }
}

fn read_extension_handshakes(
    mut received: MessageReader<ExtensionHandshakeReceived>,
    settings: Res<Settings>,
    mut peers: Query<(&mut Peer, &mut PeerState, &mut PeerExtensions, &PeerOf)>,
    mut torrents: Query<(&Torrent, &mut Candidates)>,
) {
    for ExtensionHandshakeReceived { peer: entity, payload } in received.read() {
        let Ok((mut peer, mut state, mut extensions, of)) = peers.get_mut(*entity) else {
            continue;
        };
        let handshake = match ExtensionHandshake::read(payload) {
            Ok(handshake) => handshake,
            Err(error) => {
                tracing::debug!(
                    torrent = torrents.get(of.0).ok().map(|(torrent, _)| display(torrent.label())),
                    peer = %peer.endpoint,
                    %error,
                    "extension handshake ignored"
                );
                continue;
            }
        };
        if let Some(client) = &handshake.client {
            peer.client = client.as_str().into();
        }
        if let Some(upload_only) = handshake.upload_only {
            state.upload_only = upload_only;
        }
        if let (Direction::Inbound, None, Some(address), Some(port)) = (
            peer.direction,
            peer.listens_at,
            peer.endpoint.address(),
            handshake.listen_port,
        ) {
            let listens_at = SocketAddr::new(address.ip(), port);
            let known = torrents.get_mut(of.0);
            if known.is_ok_and(|(_, mut candidates)| candidates.claim(listens_at, settings.peers.max_candidates)) {
                peer.listens_at = Some(listens_at);
            }
        }
        extensions.merge(handshake);
    }
}

pub(crate) fn read_dont_have(
    mut received: MessageReader<ExtensionReceived>,
    clock: Res<Clock>,
    mut availability: MessageWriter<AvailabilityReceived>,
    mut reaper: ResMut<Reaper>,
    mut peers: Query<(&PeerOf, &mut Wire)>,
    torrents: Query<&Layout>,
) {
    for ExtensionReceived {
        peer,
        extension,
        payload,
    } in received.read()
    {
        // BEP 54: four bytes of piece index.
        let (DONT_HAVE, Some(index)) = (*extension, payload.first_chunk::<4>()) else {
            continue;
        };
        let index = u32::from_be_bytes(*index);
        let Ok((of, mut wire)) = peers.get_mut(*peer) else {
            continue;
        };
        if !wire.changes.take(clock.now()) {
            reaper.close(*peer, WireError::TooManyChanges);
            continue;
        }
        if torrents.get(of.0).is_ok_and(|layout| index < layout.0.piece_count()) {
            let (peer, change) = (*peer, Availability::DontHave(index));
            availability.write(AvailabilityReceived { peer, change });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bed;

    /// BEP 54.
    #[test]
    fn only_pieces_that_exist_are_taken_back() {
        let mut bed = Bed::new(ExtensionsPlugin);
        bed.world.init_resource::<Messages<AvailabilityReceived>>();
        let peer = bed.peer();
        for (index, is_known) in [(2u32, true), (3, false)] {
            let message = ExtensionReceived {
                peer,
                extension: DONT_HAVE,
                payload: index.to_be_bytes().to_vec().into(),
            };
            bed.run_after(message, read_dont_have);
            let count = bed
                .world
                .resource_mut::<Messages<AvailabilityReceived>>()
                .drain()
                .count();
            assert_eq!(count, usize::from(is_known));
        }
    }

    fn read(bed: &mut Bed, peer: Entity, payload: &'static [u8]) {
        let payload = payload.into();
        bed.run_after(ExtensionHandshakeReceived { peer, payload }, read_extension_handshakes);
    }

    /// BEP 10 and 21.
    #[test]
    fn an_extension_handshake_describes_the_peer() {
        let mut bed = Bed::new(ExtensionsPlugin);
        let parts = (crate::testing::torrent(), Candidates::default());
        bed.world.entity_mut(bed.torrent).insert(parts);
        let peer = bed.peer();
        read(&mut bed, peer, b"d1:pi77e11:upload_onlyi1e1:v3:abce");
        let address: SocketAddr = "192.0.2.1:77".parse().unwrap();
        let connection: &Peer = bed.get(peer);
        assert_eq!((&*connection.client, connection.listens_at), ("abc", Some(address)));
        assert!(bed.get::<PeerState>(peer).upload_only);
        assert!(bed.get::<PeerExtensions>(peer).is_known);
        read(&mut bed, peer, b"d1:pi78e11:upload_onlyi0ee");
        assert_eq!(bed.get::<Peer>(peer).listens_at, Some(address), "the first one counts");
        assert!(!bed.get::<PeerState>(peer).upload_only);
    }
}
