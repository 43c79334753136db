//! Decoding of peer messages: each message of a peer becomes one ECS message for the feature that handles it.

use std::net::{IpAddr, SocketAddr};

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use bevy_platform::collections::HashMap;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::messages::{
    AllowedFastReceived, Availability, AvailabilityReceived, ChokeReceived, ExtensionHandshakeReceived,
    ExtensionReceived, InterestReceived, PortReceived, ReceivedBlocks, RejectReceived, SuggestReceived,
    UploadRequested,
};
use ecs_torrent_components::peer::{ExtensionRegistry, Peer, Stage, Wire};
use ecs_torrent_components::prefix::site;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::extension::HANDSHAKE_ID;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::{Frame, Message, WireError};

use crate::IntakeSet;
use crate::streams::{ReadyPeers, has_ready_peers};

/// Decodes the messages of peers.
pub struct FramesPlugin;

impl Plugin for FramesPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<AvailabilityReceived>()
            .add_message::<ChokeReceived>()
            .add_message::<InterestReceived>()
            .add_message::<UploadRequested>()
            .add_message::<RejectReceived>()
            .add_message::<AllowedFastReceived>()
            .add_message::<SuggestReceived>()
            .add_message::<ExtensionReceived>()
            .add_message::<ExtensionHandshakeReceived>()
            .add_message::<PortReceived>()
            .init_resource::<ReceivedBlocks>()
            .init_resource::<ExtensionRegistry>()
            .add_systems(Tick, decode_frames.run_if(has_ready_peers).in_set(IntakeSet::Frames));
    }
}

/// The inboxes of all features that handle peer messages.
#[derive(SystemParam)]
struct Inboxes<'w> {
    blocks: ResMut<'w, ReceivedBlocks>,
    registry: Res<'w, ExtensionRegistry>,
    availability: MessageWriter<'w, AvailabilityReceived>,
    chokes: MessageWriter<'w, ChokeReceived>,
    interests: MessageWriter<'w, InterestReceived>,
    uploads: MessageWriter<'w, UploadRequested>,
    rejects: MessageWriter<'w, RejectReceived>,
    allowed_fast: MessageWriter<'w, AllowedFastReceived>,
    suggests: MessageWriter<'w, SuggestReceived>,
    extensions: MessageWriter<'w, ExtensionReceived>,
    handshakes: MessageWriter<'w, ExtensionHandshakeReceived>,
    ports: MessageWriter<'w, PortReceived>,
}

/// Decodes received messages, for each peer at most its share of the messages of a tick. The rest stays in the peer's
/// buffer for the next tick, and its bytes are not granted again until then.
fn decode_frames(
    ready: Res<ReadyPeers>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    settings: Res<Settings>,
    mut shares: Local<Shares>,
    mut reaper: ResMut<Reaper>,
    mut inboxes: Inboxes,
    mut peers: Query<(&Peer, &mut Wire)>,
) {
    let now = clock.now();
    let addresses = ready
        .0
        .iter()
        .map(|entity| peers.get(entity).ok()?.0.endpoint.address());
    shares.divide(addresses, &settings);
    for entity in ready.0.iter() {
        let Ok((peer, mut wire)) = peers.get_mut(entity) else {
            continue;
        };
        if peer.stage != Stage::Connected || reaper.is_doomed(entity) {
            continue;
        }
        let wire = &mut *wire;
        let mut budget = shares.of(peer.endpoint.address());
        loop {
            match wire.codec.next_frame_within(&wire.session, &mut budget) {
                Ok(Some(frame)) => {
                    wire.last_message = now;
                    wire.frame_since = None;
                    if let Err(error) = inboxes.sort(now, entity, frame, wire) {
                        reaper.close(entity, error);
                        break;
                    }
                }
                Ok(None) if budget == 0 && wire.codec.buffered_len() > 0 => {
                    wire.held_bytes = u32::try_from(wire.codec.buffered_len()).unwrap_or(u32::MAX);
                    wakeup.at(now);
                    break;
                }
                Ok(None) => {
                    // Fault 21: a frame that has begun must end; its timeout runs from its first byte.
                    wire.frame_since = wire.codec.is_mid_frame().then(|| wire.frame_since.unwrap_or(now));
                    wire.codec.rest();
                    break;
                }
                Err(error) => {
                    reaper.close(entity, error);
                    break;
                }
            }
        }
    }
}

/// Number of messages of each peer that are decoded in a tick.
///
/// Every peer gets its maximum if the tick's limit allows it. Otherwise every address (for IPv6 every /64, which
/// belongs to one host) gets an equal share, and its connections divide that equally, however many there are.
#[derive(Debug, Default)]
struct Shares {
    connection_count: HashMap<Network, u32>,
    per_network: u32,
    most: u32,
}

/// One sender: the [`site`] of its address. Connections without an address count as one.
type Network = Option<IpAddr>;

fn network_of(address: Option<SocketAddr>) -> Network {
    address.map(|address| site(address.ip()))
}

impl Shares {
    fn divide(&mut self, peers: impl ExactSizeIterator<Item = Option<SocketAddr>>, settings: &Settings) {
        self.connection_count.clear();
        self.most = settings.peers.max_messages_per_tick;
        let total = settings.tick.max_messages;
        if peers.len() as u64 * u64::from(self.most) <= u64::from(total) {
            return;
        }
        for address in peers {
            *self.connection_count.entry(network_of(address)).or_default() += 1;
        }
        self.per_network = total / (self.connection_count.len() as u32).max(1);
    }

    /// Returns the share of a connection, at least one message: a peer whose messages are never decoded could not even
    /// be closed.
    fn of(&self, address: Option<SocketAddr>) -> u32 {
        if self.connection_count.is_empty() {
            return self.most;
        }
        let count = self.connection_count.get(&network_of(address));
        (self.per_network / count.copied().unwrap_or(1)).clamp(1, self.most)
    }
}

impl Inboxes<'_> {
    fn sort(&mut self, now: Timestamp, peer: Entity, frame: Frame, wire: &mut Wire) -> Result<(), WireError> {
        let message = match frame {
            Frame::Block(block) => {
                self.blocks.0.push((peer, block));
                return Ok(());
            }
            Frame::Message(message) => message,
        };
        let is_allowed = match message {
            Message::HaveAll | Message::HaveNone => wire.whole_sets.take(now),
            Message::Bitfield(_) => wire.bitfields.take(now),
            _ => true,
        };
        if !is_allowed {
            return Err(WireError::TooManyBitfields);
        }
        let is_choke = matches!(message, Message::Choke | Message::Unchoke);
        // Each of them costs far more than its bytes: a port makes the DHT look for a node there.
        let is_announcement = matches!(message, Message::Port(_) | Message::Extended { id: HANDSHAKE_ID, .. });
        if (is_choke && !wire.chokes.take(now)) || (is_announcement && !wire.changes.take(now)) {
            return Err(WireError::TooManyChanges);
        }
        match message {
            Message::KeepAlive => {}
            Message::Port(port) => drop(self.ports.write(PortReceived { peer, port })),
            Message::Choke => drop(self.chokes.write(ChokeReceived { peer, is_choking: true })),
            Message::Unchoke => drop(self.chokes.write(ChokeReceived {
                peer,
                is_choking: false,
            })),
            Message::Interested => self.interest(peer, true),
            Message::NotInterested => self.interest(peer, false),
            Message::Have(piece) => self.change(peer, Availability::Have(piece)),
            Message::HaveAll => self.change(peer, Availability::All),
            Message::HaveNone => self.change(peer, Availability::None),
            Message::Bitfield(bytes) => {
                let change = match &wire.session.geometry {
                    Some(geometry) => Availability::Bitfield(Bitfield::from_wire(&bytes, geometry.piece_count())?),
                    None => Availability::Raw(bytes),
                };
                self.change(peer, change);
            }
            Message::Request(request) => self.upload(peer, request, false),
            Message::Cancel(request) => self.upload(peer, request, true),
            // Nothing is requested, and no piece is known, before the metadata is.
            Message::RejectRequest(_) | Message::SuggestPiece(_) | Message::AllowedFast(_)
                if wire.session.geometry.is_none() => {}
            Message::RejectRequest(request) => drop(self.rejects.write(RejectReceived { peer, request })),
            Message::SuggestPiece(piece) => drop(self.suggests.write(SuggestReceived { peer, piece })),
            Message::AllowedFast(piece) => drop(self.allowed_fast.write(AllowedFastReceived { peer, piece })),
            Message::Extended {
                id: HANDSHAKE_ID,
                payload,
            } => {
                self.handshakes.write(ExtensionHandshakeReceived { peer, payload });
            }
            Message::Extended { id, payload } => {
                if let Some(extension) = self.registry.name_of(id) {
                    self.extensions.write(ExtensionReceived {
                        peer,
                        extension,
                        payload,
                    });
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, peer: Entity, change: Availability) {
        self.availability.write(AvailabilityReceived { peer, change });
    }

    fn interest(&mut self, peer: Entity, is_interested: bool) {
        self.interests.write(InterestReceived { peer, is_interested });
    }

    fn upload(&mut self, peer: Entity, request: ecs_torrent_protocol::geometry::BlockRequest, is_cancel: bool) {
        self.uploads.write(UploadRequested {
            peer,
            request,
            is_cancel,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bevy_ecs::message::Messages;
    use bevy_ecs::system::RunSystemOnce;
    use bytes::Bytes;
    use ecs_torrent_components::ids::StreamId;
    use ecs_torrent_components::peer::{CloseReason, Direction, Endpoint};
    use ecs_torrent_protocol::geometry::Geometry;

    use super::*;

    const NOW: Timestamp = Timestamp::from_nanos(5_000_000_000);
    const LATER: Timestamp = Timestamp::from_nanos(60_000_000_000);
    const INTERESTED: &[u8] = &[0, 0, 0, 1, 2];

    /// A world in which two messages of each peer are decoded in a tick.
    fn world() -> World {
        let mut app = App::new();
        app.add_plugins(FramesPlugin)
            .init_resource::<ReadyPeers>()
            .init_resource::<Clock>()
            .init_resource::<Wakeup>()
            .init_resource::<Reaper>();
        let mut settings = Settings::default();
        settings.peers.max_messages_per_tick = 2;
        app.insert_resource(settings);
        app.world_mut().resource_mut::<Clock>().advance_to(NOW);
        app.world_mut().resource_mut::<Wakeup>().reset(LATER);
        std::mem::take(app.world_mut())
    }

    fn add_peer(world: &mut World, stage: Stage, received: &[u8]) -> Entity {
        let mut wire = Wire::new(Timestamp::ZERO);
        (wire.session.fast, wire.session.extended) = (true, true);
        wire.codec.push(Bytes::copy_from_slice(received));
        let peer = Peer {
            endpoint: Endpoint::Ip(([192, 0, 2, 1], 1).into()),
            stream: StreamId(1),
            direction: Direction::Inbound,
            stage,
            since: Timestamp::ZERO,
            peer_id: None,
            transport: None,
            client: "".into(),
            listens_at: None,
        };
        let entity = world.spawn(peer).id();
        world.resource_mut::<ReadyPeers>().0.add(entity, &mut wire.listed);
        world.entity_mut(entity).insert(wire);
        entity
    }

    /// Decodes once. Returns the number of messages, the state of `peer`, and whether another tick follows at once.
    fn decode(world: &mut World, peer: Entity) -> (usize, usize, u32, Option<Timestamp>, bool) {
        world.run_system_once(decode_frames).unwrap();
        let count = world.resource_mut::<Messages<InterestReceived>>().drain().count();
        let is_awake = world.resource::<Wakeup>().earliest() == NOW;
        let wire = world.get::<Wire>(peer).unwrap();
        (
            count,
            wire.codec.buffered_len(),
            wire.held_bytes,
            wire.frame_since,
            is_awake,
        )
    }

    #[test]
    fn what_is_beyond_a_peers_share_is_decoded_in_the_next_tick() {
        let mut world = world();
        let peer = add_peer(&mut world, Stage::Connected, &INTERESTED.repeat(3));
        assert_eq!(decode(&mut world, peer), (2, 5, 5, None, true));
        world.resource_mut::<Wakeup>().reset(LATER);
        let (count, left, _, frame_since, is_awake) = decode(&mut world, peer);
        assert_eq!((count, left, frame_since, is_awake), (1, 0, None, false));
        assert_eq!(world.get::<Wire>(peer).unwrap().last_message, NOW);
    }

    #[test]
    fn a_share_that_is_just_enough_needs_no_other_tick() {
        let mut world = world();
        let peer = add_peer(&mut world, Stage::Connected, &INTERESTED.repeat(2));
        assert_eq!(decode(&mut world, peer), (2, 0, 0, None, false));
    }

    /// Fault 21: the time of a frame runs from its first byte, and waiting for the rest of it takes no ticks.
    #[test]
    fn a_frame_that_has_begun_is_timed_from_its_first_byte() {
        let mut world = world();
        let peer = add_peer(&mut world, Stage::Connected, &INTERESTED[..3]);
        assert_eq!(decode(&mut world, peer), (0, 3, 0, Some(NOW), false));
        let mut clock = world.resource_mut::<Clock>();
        clock.advance_to(NOW + Duration::from_secs(1));
        assert_eq!(decode(&mut world, peer).3, Some(NOW));
        let mut wire = world.get_mut::<Wire>(peer).unwrap();
        wire.codec.push(Bytes::from_static(&INTERESTED[3..]));
        assert_eq!(decode(&mut world, peer), (1, 0, 0, None, false));
    }

    #[test]
    fn nothing_is_decoded_before_the_handshake_or_after_the_end() {
        let mut world = world();
        let handshaking = add_peer(&mut world, Stage::Handshaking, INTERESTED);
        assert_eq!(decode(&mut world, handshaking).0, 0);
        let doomed = add_peer(&mut world, Stage::Connected, INTERESTED);
        world.resource_mut::<Reaper>().close(doomed, CloseReason::Corrupt);
        assert_eq!(decode(&mut world, doomed).0, 0);
        let connected = add_peer(&mut world, Stage::Connected, INTERESTED);
        assert_eq!(decode(&mut world, connected).0, 1);
    }

    /// Each kind of expensive message has an allowance of its own, and other messages use none of it.
    #[test]
    fn a_flood_of_one_kind_of_message_closes_the_connection() {
        const CHOKE: &[u8] = &[0, 0, 0, 1, 0];
        const HAVE_ALL: &[u8] = &[0, 0, 0, 1, 14];
        const HANDSHAKE: &[u8] = &[0, 0, 0, 4, 20, 0, b'd', b'e'];
        let mut world = world();
        world.resource_mut::<Settings>().peers.max_messages_per_tick = 10_000;
        let mut closes = |received: &[u8]| {
            let peer = add_peer(&mut world, Stage::Connected, received);
            decode(&mut world, peer);
            world.resource::<Reaper>().is_doomed(peer)
        };
        for flood in [CHOKE, HAVE_ALL, HANDSHAKE] {
            assert!(closes(&flood.repeat(2_000)), "{flood:?}");
            assert!(!closes(flood), "{flood:?}");
        }
        assert!(!closes(&INTERESTED.repeat(2_000)));
        assert!(!closes(&[CHOKE, HAVE_ALL, HANDSHAKE].concat()));
    }

    /// Before the metadata is known, nothing is requested and no piece is known.
    #[test]
    fn messages_about_pieces_need_the_metadata() {
        const SUGGEST: &[u8] = &[0, 0, 0, 5, 13, 0, 0, 0, 0];
        for (geometry, count) in [(None, 0), (Geometry::new(9, 16384), 1)] {
            let mut world = world();
            let peer = add_peer(&mut world, Stage::Connected, SUGGEST);
            world.get_mut::<Wire>(peer).unwrap().session.geometry = geometry;
            decode(&mut world, peer);
            assert!(!world.resource::<Reaper>().is_doomed(peer));
            assert_eq!(world.resource_mut::<Messages<SuggestReceived>>().drain().count(), count);
        }
    }

    fn shares(peers: &[&str]) -> Vec<u32> {
        let addresses: Vec<_> = peers.iter().map(|peer| peer.parse().ok()).collect();
        let mut shares = Shares::default();
        shares.divide(addresses.iter().copied(), &Settings::default());
        addresses.into_iter().map(|address| shares.of(address)).collect()
    }

    #[test]
    fn one_address_or_prefix_has_one_share() {
        let Settings { tick, peers, .. } = Settings::default();
        assert_eq!(
            shares(&["192.0.2.1:1", "192.0.2.2:1"]),
            [peers.max_messages_per_tick; 2]
        );
        let mut addresses = vec!["192.0.2.1:1", "[2001:db8:0:1::9]:1"];
        addresses.extend(["[2001:db8::1]:1", "[2001:db8::2]:1"].repeat(50));
        addresses.extend(["192.0.2.9:1", "[::ffff:192.0.2.9]:2"].repeat(50));
        let shares = shares(&addresses);
        assert_eq!(
            shares[..2],
            [peers.max_messages_per_tick; 2],
            "alone at their addresses"
        );
        assert_eq!(shares[2..], [tick.max_messages / 4 / 100; 200]);
    }

    #[test]
    fn every_connection_gets_at_least_one_message() {
        let many = vec!["192.0.2.1:1"; 100_000];
        assert!(shares(&many).into_iter().all(|share| share == 1));
    }
}
