//! Peer exchange (BEP 11): connected peers name to each other the peers that they are connected to.
//!
//! A torrent has a log of the peers that may be named: those that we connected to, and those that said where they
//! listen. Each partner has a position in the log. A partner is sent new changes at most once a minute, and only if
//! there are any, so the work is proportional to the changes and the messages.

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::candidates::{AllowedSources, CandidateFlags, CandidateSource, CandidatesFound, FoundPeer};
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{
    ExtensionHandshakeReceived, ExtensionReceived, MetadataKnown, PeerConnected, PeerDisconnected,
};
use ecs_torrent_components::peer::{
    Allowance, Direction, ExtensionRegistry, FlushQueue, Outbox, Peer, PeerExtensions, PeerPieces, PeerState, Stage,
    Transport, Wire,
};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::scope::Scope;
use ecs_torrent_components::settings::{Settings, seconds};
use ecs_torrent_components::torrent::{PeerOf, Torrent, TorrentPeers};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::pex::{MAX_PEERS, PEX, PexCursor, PexFlags, PexLog, PexMessage, PexPeer};
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::{Message, WireError};

use crate::conditions::{has_due, has_messages};
use crate::{DecideSet, ReapSet};

/// Name of the hole punching extension (BEP 55), which a flag reports.
const HOLEPUNCH: &str = "ut_holepunch";

/// Time for which a message waits for more peers to name, when few or none have been named to the partner yet. Peers of
/// a new swarm connect within it.
const GATHER: Duration = Duration::from_secs(2);

/// Number of connected peers that are worth a message at once to a new partner.
const WORTH_NAMING: usize = 8;

/// Burst of messages of one partner, and the interval between two after the burst. Clients send one a minute; after a
/// congested link, several arrive together.
const RECEIVED: (u32, Duration) = (6, Duration::from_secs(30));

/// Exchanges peers with peers.
pub struct PexPlugin;

impl Plugin for PexPlugin {
    fn build(&self, app: &mut App) {
        app.world_mut()
            .resource_mut::<ExtensionRegistry>()
            .register_for_source(PEX, CandidateSource::PEER_EXCHANGE);
        app.register_required_components::<Torrent, PexTorrent>();
        app.init_resource::<Deadlines<PexTurn>>().add_systems(
            Tick,
            (
                (
                    list_peers.run_if(has_news),
                    receive_pex.run_if(has_messages::<ExtensionReceived>),
                    send_pex.run_if(has_due::<PexTurn>),
                )
                    .chain()
                    .in_set(DecideSet::Discovery),
                forget_peers.in_set(ReapSet::Release),
            ),
        );
    }
}

/// The peer exchange of a torrent. It takes no memory before the first peer may be named.
#[derive(Component, Debug, Default)]
pub struct PexTorrent(Option<Box<Exchange>>);

#[derive(Debug, Default)]
struct Exchange {
    log: PexLog<Entity>,
    /// Partners that know every change.
    resting: Vec<Entity>,
}

impl PexTorrent {
    fn exchange(&mut self) -> &mut Exchange {
        self.0.get_or_insert_default()
    }
}

/// A peer that exchanges peers with us.
#[derive(Component, Debug)]
pub struct PexPartner {
    /// The changes that the partner knows.
    cursor: PexCursor,
    /// Earliest time of the next message to the partner.
    earliest: Timestamp,
    /// The deadline of the partner, unless it rests.
    due: Option<Timestamp>,
    /// How often the partner may send messages.
    received: Allowance,
}

/// A partner that may be sent a message.
#[derive(Debug)]
struct PexTurn(Entity);

impl PexPartner {
    fn wake_at(&mut self, entity: Entity, at: Timestamp, turns: &mut Deadlines<PexTurn>, wakeup: &Wakeup) {
        let at = at.max(self.earliest);
        self.due = Some(at);
        turns.set(at, PexTurn(entity));
        wakeup.at(at);
    }
}

/// Returns whether peers have connected, or have said where they listen or that they exchange peers, or whether a
/// torrent may or may no longer exchange peers.
fn has_news(
    connected: Res<Messages<PeerConnected>>,
    handshakes: Res<Messages<ExtensionHandshakeReceived>>,
    known: Res<Messages<MetadataKnown>>,
) -> bool {
    !connected.is_empty() || !handshakes.is_empty() || !known.is_empty()
}

#[derive(SystemParam)]
struct Listing<'w, 's> {
    commands: Commands<'w, 's>,
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    turns: ResMut<'w, Deadlines<PexTurn>>,
    torrents: Query<'w, 's, (&'static AllowedSources, &'static mut PexTorrent)>,
    peers: Query<'w, 's, (&'static Peer, &'static PeerOf, &'static PeerExtensions)>,
    partners: Query<'w, 's, &'static mut PexPartner>,
}

/// Lists the peers that may be named, and the partners.
fn list_peers(
    mut connected: MessageReader<PeerConnected>,
    mut handshakes: MessageReader<ExtensionHandshakeReceived>,
    mut known: MessageReader<MetadataKnown>,
    mut listing: Listing,
    connections: Query<&TorrentPeers>,
) {
    for PeerConnected { peer, .. } in connected.read() {
        listing.list(*peer);
    }
    for ExtensionHandshakeReceived { peer, .. } in handshakes.read() {
        listing.list(*peer);
    }
    for MetadataKnown { torrent } in known.read() {
        let connected = connections.get(*torrent).into_iter();
        for peer in connected.flat_map(RelationshipTarget::iter) {
            listing.list(peer);
        }
    }
}

impl Listing<'_, '_> {
    /// Lists a peer, as far as it may be named and is a partner.
    fn list(&mut self, entity: Entity) {
        let Ok((peer, of, extensions)) = self.peers.get(entity) else {
            return;
        };
        let Ok((allowed, mut torrent)) = self.torrents.get_mut(of.0) else {
            return;
        };
        if !allowed.has(CandidateSource::PEER_EXCHANGE) {
            // The torrent turned out to be private.
            torrent.0 = None;
            self.commands.entity(entity).try_remove::<PexPartner>();
            return;
        }
        if peer.stage != Stage::Connected {
            return;
        }
        let now = self.clock.now();
        let exchange = torrent.exchange();
        if let Some(address) = peer.listens_at
            && exchange.log.add(address, entity)
        {
            exchange.wake_resting(now, &mut self.partners, &mut self.turns, &self.wakeup);
        }
        if extensions.id_of(PEX).is_some() && !self.partners.contains(entity) {
            let mut partner = PexPartner {
                cursor: PexCursor::default(),
                earliest: now,
                due: None,
                received: Allowance::new(now, RECEIVED.0, RECEIVED.1),
            };
            let wait = match exchange.log.len() < WORTH_NAMING {
                true => GATHER,
                false => Duration::ZERO,
            };
            partner.wake_at(entity, now + wait, &mut self.turns, &self.wakeup);
            self.commands.entity(entity).try_insert(partner);
        }
    }
}

impl Exchange {
    /// Gives the partners that knew every change a turn, because there is a new one.
    fn wake_resting(
        &mut self,
        now: Timestamp,
        partners: &mut Query<&mut PexPartner>,
        turns: &mut Deadlines<PexTurn>,
        wakeup: &Wakeup,
    ) {
        for entity in self.resting.drain(..) {
            if let Ok(mut partner) = partners.get_mut(entity) {
                partner.wake_at(entity, now + GATHER, turns, wakeup);
            }
        }
    }
}

/// Takes the peers that partners name. Peers that a partner is no longer connected to may still be good for us, so that
/// part of a message is ignored.
fn receive_pex(
    mut received: MessageReader<ExtensionReceived>,
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut reaper: ResMut<Reaper>,
    mut found: MessageWriter<CandidatesFound>,
    torrents: Query<(&Torrent, &AllowedSources)>,
    mut peers: Query<(&Peer, &PeerOf, &mut Wire, Option<&mut PexPartner>)>,
) {
    let now = clock.now();
    for message in received.read().filter(|message| message.extension == PEX) {
        let Ok((peer, of, mut wire, partner)) = peers.get_mut(message.peer) else {
            continue;
        };
        // Messages are ignored from a peer that takes none itself, or that was asked to send none.
        let is_partner = partner.is_some();
        let allowance = partner.map_or(&mut wire.changes, |partner| &mut partner.into_inner().received);
        if !allowance.take(now) {
            reaper.close(message.peer, WireError::TooManyPeerExchanges);
            continue;
        }
        let Ok((torrent, allowed)) = torrents.get(of.0) else {
            continue;
        };
        if !is_partner || !allowed.has(CandidateSource::PEER_EXCHANGE) {
            continue;
        }
        match PexMessage::read(&message.payload, settings.pex.max_received) {
            Ok(exchanged) => drop(found.write(CandidatesFound {
                torrent: of.0,
                peers: exchanged.added.into_iter().map(found_peer).collect(),
                source: CandidateSource::PEER_EXCHANGE,
                informant: peer.endpoint.address().map(|address| address.ip()),
            })),
            Err(error) => tracing::debug!(torrent = %torrent.label(), peer = %peer.endpoint, %error, "ignored"),
        }
    }
}

fn found_peer(peer: PexPeer) -> FoundPeer {
    FoundPeer {
        address: peer.address,
        // The bits are those of BEP 11.
        flags: CandidateFlags::from_bits_truncate(peer.flags.bits()),
    }
}

/// The components of a peer that is named.
type Named = (
    &'static Peer,
    &'static PeerState,
    &'static PeerExtensions,
    Option<&'static PeerPieces>,
);

/// The components of a partner whose turn it is.
type Turn = (
    &'static Peer,
    &'static PeerOf,
    &'static PeerExtensions,
    &'static mut Outbox,
    &'static mut PexPartner,
);

/// Sends partners the changes that they do not know.
fn send_pex(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    settings: Res<Settings>,
    mut turns: ResMut<Deadlines<PexTurn>>,
    mut flush: ResMut<FlushQueue>,
    mut torrents: Query<(&AllowedSources, &mut PexTorrent)>,
    named: Query<Named>,
    mut partners: Query<Turn>,
) {
    let now = clock.now();
    while let Some(PexTurn(entity)) = turns.pop_due(now) {
        let Ok((peer, of, extensions, mut outbox, mut partner)) = partners.get_mut(entity) else {
            continue;
        };
        if partner.due.take_if(|due| *due <= now).is_none() {
            continue;
        }
        let (Ok((allowed, mut torrent)), Some(id)) = (torrents.get_mut(of.0), extensions.id_of(PEX)) else {
            continue;
        };
        if !allowed.has(CandidateSource::PEER_EXCHANGE) {
            continue;
        }
        let exchange = torrent.exchange();
        let reach = peer
            .endpoint
            .address()
            .map_or(Scope::Global, |address| Scope::of(address.ip()));
        let may_name = |key: Entity, address: SocketAddr| {
            key != entity && peer.listens_at != Some(address) && reach.may_reach(address.ip())
        };
        let changes = exchange.log.changes(&mut partner.cursor, may_name);
        let is_all = changes.added.len() < MAX_PEERS && changes.dropped.len() < MAX_PEERS;
        if !changes.is_empty() {
            let added = changes.added.into_iter().map(|(key, address)| PexPeer {
                address,
                flags: named.get(key).map(flags_of).unwrap_or_default(),
            });
            let message = PexMessage {
                added: added.collect(),
                dropped: changes.dropped,
            };
            let payload = message.write();
            flush.send(entity, &mut outbox, &Message::Extended { id, payload });
            partner.earliest = now + seconds(settings.pex.interval_s);
        }
        match is_all {
            true => exchange.resting.push(entity),
            false => partner.wake_at(entity, now, &mut turns, &wakeup),
        }
    }
    wakeup.at_next(turns.next());
}

/// Returns what we know of a peer.
fn flags_of((peer, state, extensions, pieces): (&Peer, &PeerState, &PeerExtensions, Option<&PeerPieces>)) -> PexFlags {
    let mut flags = PexFlags::empty();
    let is_seed = state.upload_only || pieces.is_some_and(PeerPieces::is_complete);
    flags.set(PexFlags::SEED, is_seed);
    flags.set(PexFlags::UTP, peer.transport == Some(Transport::Utp));
    flags.set(PexFlags::HOLEPUNCH, extensions.id_of(HOLEPUNCH).is_some());
    flags.set(PexFlags::REACHABLE, peer.direction == Direction::Outbound);
    flags
}

/// Removes disconnected peers from the log.
fn forget_peers(
    mut gone: MessageReader<PeerDisconnected>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    mut turns: ResMut<Deadlines<PexTurn>>,
    peers: Query<&Peer>,
    mut torrents: Query<&mut PexTorrent>,
    mut partners: Query<&mut PexPartner>,
) {
    for PeerDisconnected { torrent, peer, .. } in gone.read() {
        let Some(mut torrent) = torrent.and_then(|torrent| torrents.get_mut(torrent).ok()) else {
            continue;
        };
        let Some(exchange) = &mut torrent.0 else {
            continue;
        };
        if partners.contains(*peer) {
            exchange.resting.retain(|resting| resting != peer);
        }
        let address = peers.get(*peer).ok().and_then(|peer| peer.listens_at);
        if address.is_some_and(|address| exchange.log.remove(address, *peer)) {
            exchange.wake_resting(clock.now(), &mut partners, &mut turns, &wakeup);
        }
    }
}
