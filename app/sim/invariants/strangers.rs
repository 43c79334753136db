//! A private torrent sends messages only to peers that its trackers or a user named, or that connected by themselves
//! (BEP 27).
//!
//! The check follows the messages of the sources and the outgoing requests, not the engine's table of addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bevy_ecs::entity::EntityHashSet;
use bevy_ecs::prelude::*;
use ecs_torrent_components::candidates::{CandidateSource, CandidateSources, CandidatesFound, SourceSet};
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::messages::PeerConnected;
use ecs_torrent_components::peer::{Direction, Peer};
use ecs_torrent_components::torrent::{Content, PeerOf, Torrent};
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{NetRequest, Streams};

use super::{Invariant, Violations};

/// The sources of the addresses of torrents that are private, or whose metadata is not known.
#[derive(Resource, Default)]
pub(super) struct Named {
    by: BTreeMap<(Entity, SocketAddr), SourceSet>,
    /// Peers that connected before the metadata of their torrent was known.
    early: EntityHashSet,
}

/// Records the peers that sources find, and those that connect early.
pub(super) fn record(
    mut named: ResMut<Named>,
    mut found: MessageReader<CandidatesFound>,
    mut connected: MessageReader<PeerConnected>,
    contents: Query<&Content>,
) {
    for found in found.read() {
        let is_public = contents.get(found.torrent).is_ok_and(|content| !content.0.info.private);
        for peer in found.peers.iter().filter(|_| !is_public) {
            let by = named.by.entry((found.torrent, peer.address)).or_default();
            by.insert(found.source);
        }
    }
    for PeerConnected { torrent, peer } in connected.read() {
        if !contents.contains(*torrent) {
            named.early.insert(*peer);
        }
    }
}

/// Checks the recipients of connection attempts and messages.
pub(super) fn listen(
    named: Res<Named>,
    net: Res<NetPort>,
    streams: Res<Streams>,
    sources: Res<CandidateSources>,
    clock: Res<Clock>,
    mut violations: ResMut<Violations>,
    peers: Query<(&Peer, &PeerOf)>,
    torrents: Query<(&Torrent, Ref<Content>)>,
) {
    if named.by.is_empty() {
        return;
    }
    let serving: SourceSet = [
        CandidateSource::USER,
        CandidateSource::TRACKER,
        CandidateSource::SESSION,
    ]
    .into_iter()
    .collect();
    for request in net.outgoing() {
        let (NetRequest::Connect { stream, .. } | NetRequest::Send { stream, .. }) = request else {
            continue;
        };
        let Some((entity, (peer, of))) = streams.get(*stream).and_then(|it| Some((it, peers.get(it).ok()?))) else {
            continue;
        };
        let private = torrents.get(of.0).ok().filter(|(_, content)| content.0.info.private);
        let (Some((torrent, content)), Some(address)) = (private, peer.listens_at.or(peer.endpoint.address())) else {
            continue;
        };
        // Any peer may connect to a private torrent that is known to be one.
        if peer.direction == Direction::Inbound && !named.early.contains(&entity) {
            continue;
        }
        // Messages that were queued before the metadata was known leave together with the end of the connection.
        if content.is_added() {
            continue;
        }
        let by = named.by.get(&(of.0, address)).copied().unwrap_or(serving);
        if by.intersection(serving).is_empty() {
            let source = by.iter().next().map(|source| sources.name_of(source));
            let name = &torrent.name;
            let report = || format!("{name} is private, and a message goes to {address}, known from {source:?}");
            violations.report(&clock, Invariant::Private, report);
        }
    }
}
