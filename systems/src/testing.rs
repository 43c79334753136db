//! Values for the tests of several features.

use std::sync::Arc;

use bevy_app::{App, Plugins};
use bevy_ecs::component::Mutable;
use bevy_ecs::message::Message;
use bevy_ecs::prelude::*;
use bevy_ecs::system::RunSystemOnce;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::peer::{
    Direction, Endpoint, ExtensionRegistry, FlushQueue, Outbox, Peer, PeerPieces, PeerRates, PeerState, Pending,
    RefillQueue, Requests, Stage, UploadQueue, WaitingSources, Wire,
};
use ecs_torrent_components::piece::{ActivePiece, FullPieces};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::rate_limit::RateLimits;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::session::Session;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{ActivePieces, Content, Have, Layout, Lifecycle, Partials, PeerOf, Torrent};
use ecs_torrent_engine::port::{Backend, Port, PortEvent};
use ecs_torrent_protocol::geometry::{BLOCK_SIZE, BlockRequest, Geometry};
use ecs_torrent_protocol::hash::{InfoHash, InfoHashes};
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent_protocol::peer_id::PeerId;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire;

/// Returns the session of a torrent of 45 bytes in pieces of 10, that holds nothing.
pub(crate) fn session() -> Session {
    Session {
        root: "/".into(),
        total_size: 45,
        piece_length: 10,
        pieces: 5,
        ..Session::new(InfoHash([0; 20]))
    }
}

/// Returns the names of a public torrent.
pub(crate) fn torrent() -> Torrent {
    Torrent {
        hashes: InfoHashes::of(b"info", true, false),
        name: "torrent".into(),
        peer_id: PeerId([2; 20]),
        tracker_key: 3,
        private: false,
        added: Timestamp::ZERO,
    }
}

/// Returns the metainfo of one file with the size of a [`Bed`]'s torrent.
pub(crate) fn content() -> Content {
    let mut bytes = b"d4:infod6:lengthi98304e4:name7:torrent12:piece lengthi32768e6:pieces60:".to_vec();
    bytes.extend([9; 60]);
    bytes.extend(b"ee");
    let metainfo = Metainfo::parse(&bytes.into(), &MetainfoLimits::default());
    Content(Arc::new(metainfo.expect("a valid metainfo")))
}

/// The time of a [`Bed`], long after the start.
pub(crate) const NOW: Timestamp = Timestamp::from_nanos(1_000_000_000_000);

/// An engine's world with one torrent of three pieces of two blocks, for tests that run single systems.
pub(crate) struct Bed {
    pub(crate) world: World,
    pub(crate) torrent: Entity,
    pub(crate) geometry: Geometry,
    connection_count: u8,
}

impl Bed {
    /// Creates a world with the resources of `plugins`, and those that many features use.
    pub(crate) fn new<M>(plugins: impl Plugins<M>) -> Self {
        let mut app = App::new();
        // Extensions are registered while plugins are built.
        app.init_resource::<ExtensionRegistry>()
            .add_plugins(plugins)
            .init_resource::<Clock>()
            .init_resource::<Wakeup>()
            .init_resource::<Settings>()
            .init_resource::<Reaper>()
            .init_resource::<FlushQueue>()
            .init_resource::<RateLimits>()
            .init_resource::<FullPieces>()
            .init_resource::<RefillQueue>()
            .init_resource::<WaitingSources>()
            .insert_resource(Random::from_seed([7; 32]));
        let mut world = std::mem::take(app.world_mut());
        world.resource_mut::<Clock>().advance_to(NOW);
        world.resource_mut::<Wakeup>().reset(Timestamp::from_nanos(u64::MAX));
        let geometry = Geometry::new(6 * u64::from(BLOCK_SIZE), 2 * BLOCK_SIZE).expect("a valid size");
        let parts = (ActivePieces::default(), Layout(geometry.clone()), Have::none(3));
        let torrent = world.spawn((parts, Lifecycle::Downloading, Partials::default())).id();
        Self {
            world,
            torrent,
            geometry,
            connection_count: 0,
        }
    }

    /// Returns a connection from or to an address of its own.
    pub(crate) fn connection(&mut self, direction: Direction) -> Peer {
        self.connection_count += 1;
        let address = ([192, 0, 2, self.connection_count], 1).into();
        Peer {
            endpoint: Endpoint::Ip(address),
            stream: StreamId(self.connection_count.into()),
            transport: None,
            direction,
            stage: Stage::Connected,
            since: Timestamp::ZERO,
            peer_id: None,
            client: "".into(),
            listens_at: (direction == Direction::Outbound).then_some(address),
        }
    }

    /// Adds a peer that has unchoked us and is unchoked.
    pub(crate) fn peer(&mut self) -> Entity {
        let state = PeerState {
            am_choking: false,
            am_interested: true,
            peer_choking: false,
            peer_interested: true,
            ..PeerState::new(Timestamp::ZERO)
        };
        let mut wire = Wire::new(Timestamp::ZERO);
        wire.session.fast = true;
        let peer = self.connection(Direction::Inbound);
        let parts = (
            peer,
            PeerOf(self.torrent),
            state,
            PeerRates::default(),
            PeerPieces::all(3),
        );
        let queues = (Outbox::default(), Requests::default(), UploadQueue::default());
        self.world.spawn((parts, queues, wire)).id()
    }

    /// Begins a piece.
    pub(crate) fn piece(&mut self, index: u32) -> Entity {
        let piece = ActivePiece::new(self.torrent, index, &self.geometry);
        let entity = self.world.spawn(piece).id();
        let mut active = self.world.get_mut::<ActivePieces>(self.torrent).expect("a torrent");
        active.all.insert(index, entity);
        active.open.insert(index);
        entity
    }

    /// Records that a block of a piece has been requested from a peer.
    pub(crate) fn request(&mut self, peer: Entity, piece: Entity, block: u32) -> BlockRequest {
        let mut active = self.world.get_mut::<ActivePiece>(piece).expect("a piece");
        active.mark_requested(block, peer, NOW, NOW);
        let request = active.request(block);
        let pending = Pending {
            piece,
            block,
            request,
            requested_at: NOW,
            is_late: false,
        };
        self.world.get_mut::<Requests>(peer).expect("a peer").add(pending);
        request
    }

    /// Runs a system after a message.
    pub(crate) fn run_after<M: Message, S>(&mut self, message: M, system: impl IntoSystem<(), (), S>) {
        self.world.init_resource::<Messages<M>>();
        self.world.write_message(message);
        self.run(system);
        self.world.resource_mut::<Messages<M>>().clear();
    }

    /// Puts a port into the world whose inboxes hold these events; what is pushed stays in it.
    pub(crate) fn open_port<R: Send + Sync + 'static, E: PortEvent>(&mut self, events: Vec<E>) {
        let purposes: Vec<_> = events.iter().map(PortEvent::purpose).collect();
        let mut port = Port::<R, E>::new(Box::new(Delivery(events)));
        purposes.into_iter().for_each(|purpose| port.open_inbox(purpose));
        port.drain(usize::MAX);
        self.world.insert_resource(port);
    }

    /// Whether a run condition holds.
    pub(crate) fn holds<S>(&mut self, condition: impl IntoSystem<(), bool, S>) -> bool {
        self.world.run_system_once(condition).expect("all parameters exist")
    }

    pub(crate) fn run<S>(&mut self, system: impl IntoSystem<(), (), S>) {
        self.world.run_system_once(system).expect("all parameters exist");
    }

    /// Whether exactly these messages were queued for a peer since the last call.
    pub(crate) fn has_sent(&mut self, peer: Entity, messages: &[wire::Message]) -> bool {
        let mut expected = Vec::new();
        messages.iter().for_each(|message| message.write(&mut expected));
        self.world.get_mut::<Outbox>(peer).expect("a peer").take().concat() == expected
    }

    pub(crate) fn get<C: Component>(&self, entity: Entity) -> &C {
        self.world.get(entity).expect("the component")
    }

    pub(crate) fn get_mut<C: Component<Mutability = Mutable>>(&mut self, entity: Entity) -> Mut<'_, C> {
        self.world.get_mut(entity).expect("the component")
    }
}

/// A backend that delivers the events of a test, and does nothing.
pub(crate) struct Delivery<E>(pub(crate) Vec<E>);

impl<R, E: PortEvent> Backend<R, E> for Delivery<E> {
    fn submit(&mut self, _: &mut Vec<R>) {}

    fn poll(&mut self, _: usize, events: &mut Vec<E>) -> bool {
        events.append(&mut self.0);
        false
    }
}
