//! Admission of connections: at a limit, the least useful connection is closed to make room for a new one.
//!
//! Limits apply to the engine, to each torrent, and to each network prefix. When a limit is reached, a newcomer takes
//! the slot of a less useful connection (`policy.rs`) instead of being refused, so that an honest peer gets in however
//! many silent peers hold connections. A connection that has transferred blocks recently, or that is within its grace
//! period, does not lose its slot to a newcomer. Evictions of silent connections are remembered for a while, so that
//! silent peers that reconnect repeatedly do not fill the slots first.
//!
//! An eviction scans the connections of one torrent or of one prefix, never all of them. If no connection can be
//! evicted, the torrent is not searched again for a second.

mod policy;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::candidates::Candidates;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::connections::ConnectionCounts;
use ecs_torrent_components::peer::{CloseReason, Direction, Peer, PeerPieces, PeerRates, PeerState};
use ecs_torrent_components::prefix::{is_local, site, subnet};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Lifecycle, TorrentPeers};
use ecs_torrent_protocol::peer_id::PeerId;

use self::policy::{Claim, Class, Rival, Standing, TorrentRoom, USEFUL_FOR};

/// Time after a search without a victim during which the torrent is not searched again.
pub(crate) const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// Reason for opening a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DialFor {
    /// A user named the peer.
    User,
    /// The address comes from another source.
    Other,
}

/// Identity of a party: the address range or the peer id that its connections share.
#[derive(Debug, Clone, Copy, Default)]
struct Party {
    ip: Option<IpAddr>,
    id: Option<PeerId>,
}

impl Party {
    fn subnet(&self) -> Option<IpAddr> {
        self.ip.map(subnet)
    }
}

/// Number of connections of each party.
#[derive(Debug, Default)]
struct PartyCounts {
    subnets: BTreeMap<IpAddr, usize>,
    ids: BTreeMap<PeerId, usize>,
}

impl PartyCounts {
    fn add(&mut self, party: Party) {
        if let Some(subnet) = party.subnet() {
            *self.subnets.entry(subnet).or_default() += 1;
        }
        if let Some(id) = party.id {
            *self.ids.entry(id).or_default() += 1;
        }
    }

    fn of(&self, party: Party) -> usize {
        let of_subnet = party.subnet().and_then(|subnet| self.subnets.get(&subnet)).copied();
        let of_id = party.id.and_then(|id| self.ids.get(&id)).copied();
        of_subnet.max(of_id).unwrap_or(0)
    }
}

/// Makes room for connections.
#[derive(SystemParam)]
pub(crate) struct Admission<'w, 's> {
    pub(crate) counts: ResMut<'w, ConnectionCounts>,
    pub(crate) reaper: ResMut<'w, Reaper>,
    pub(crate) clock: Res<'w, Clock>,
    pub(crate) settings: Res<'w, Settings>,
    peers: Query<
        'w,
        's,
        (
            &'static Peer,
            Option<&'static PeerState>,
            Option<&'static PeerRates>,
            Option<&'static PeerPieces>,
        ),
    >,
    torrents: Query<'w, 's, (&'static Lifecycle, Option<&'static TorrentPeers>)>,
}

impl Admission<'_, '_> {
    /// Makes room for a connection from `remote` that has sent nothing yet. Returns false if there is no room.
    pub(crate) fn make_room_for_handshake(&mut self, remote: SocketAddr) -> bool {
        let ip = remote.ip();
        let limits = &self.settings.peers;
        let (per_site, per_subnet) = (limits.max_inbound_per_ip, limits.max_inbound_per_subnet);
        if self.counts.inbound_from_site(ip) >= per_site {
            let members = self.counts.of_site(ip).collect();
            if !self.evict_of_prefix(members) {
                return false;
            }
        }
        if !is_local(ip) && self.counts.inbound_from_subnet(ip) >= per_subnet {
            let members = self.counts.of_subnet(ip).collect();
            if !self.evict_of_prefix(members) {
                return false;
            }
        }
        if self.counts.unidentified >= self.settings.peers.max_unidentified && !self.evict_handshake() {
            return false;
        }
        let limit = self.engine_room(Claim::Inbound);
        self.counts.total < limit || self.evict_handshake() || self.evict_of_largest(None, None, Claim::Inbound)
    }

    /// Makes room in a torrent for an inbound peer after its handshake. Returns false if there is no room.
    pub(crate) fn make_room_for_inbound(
        &mut self,
        torrent: Entity,
        candidates: &Candidates,
        address: Option<SocketAddr>,
        id: PeerId,
    ) -> bool {
        let newcomer = Some(Party {
            ip: address.map(|address| address.ip()),
            id: Some(id),
        });
        let counts = self.counts.of_torrent(torrent);
        if counts.total >= self.torrent_room(torrent, candidates).for_inbound {
            let share = policy::outbound_share(self.settings.peers.max_per_torrent, &self.settings.peers);
            let claim = match counts.outbound > share {
                true => Claim::Inbound,
                false => Claim::InboundOfInbound,
            };
            return self.evict_of_torrent(torrent, newcomer, claim);
        }
        let connected = self.counts.total - self.counts.unidentified;
        let reserve = policy::handshake_reserve(&self.settings.peers);
        connected + reserve < self.settings.peers.max_connections
            || self.evict_of_largest(Some(torrent), newcomer, Claim::Inbound)
    }

    /// Makes room in a torrent for an outbound connection. Returns false if there is no room.
    pub(crate) fn make_room_for_dial(&mut self, torrent: Entity, candidates: &Candidates, dial: DialFor) -> bool {
        let newcomer = candidates.first_ready().map(|address| Party {
            ip: Some(address.ip()),
            id: None,
        });
        let counts = self.counts.of_torrent(torrent);
        let room = self.torrent_room(torrent, candidates);
        let limits = &self.settings.peers;
        let is_within = |count: usize, limit: usize| count < policy::outbound_share(limit, limits);
        let claim = |count: usize, limit: usize| match dial {
            DialFor::User => Claim::UserNamed,
            DialFor::Other if is_within(count, limit) => Claim::OutboundShare,
            DialFor::Other => Claim::Outbound,
        };
        let limit = match dial {
            DialFor::User => room.for_user_named,
            DialFor::Other => room.for_outbound,
        };
        let torrent_claim = claim(counts.outbound, limits.max_per_torrent);
        let engine_claim = claim(self.counts.outbound, limits.max_connections);
        if counts.total >= limit {
            return self.evict_of_torrent(torrent, newcomer, torrent_claim);
        }
        if self.counts.total < self.engine_room(engine_claim) {
            return true;
        }
        let has_handshakes = self.counts.unidentified > policy::handshake_reserve(&self.settings.peers);
        (has_handshakes && self.evict_handshake())
            || self.evict_of_largest(Some(torrent), newcomer, engine_claim)
            || (dial == DialFor::User && self.evict_handshake())
    }

    /// Returns whether the limit on half-open connections allows one more.
    pub(crate) fn may_open(&self, dial: DialFor) -> bool {
        let limit = self.settings.peers.max_half_open;
        let reserve = match dial {
            DialFor::User => 0,
            DialFor::Other => policy::user_reserve(limit, &self.settings.peers),
        };
        self.counts.half_open + reserve < limit
    }

    /// Closes the least useful connections beyond the limits, after the limits have been lowered. Connections to
    /// user-named peers stay.
    pub(crate) fn close_excess(&mut self) {
        let limits = self.settings.peers.clone();
        let is_within = self.counts.total <= limits.max_connections;
        let torrents: Vec<Entity> = self.counts.torrents_by_size().collect();
        let mut left = Vec::new();
        for torrent in torrents {
            let excess = self
                .counts
                .of_torrent(torrent)
                .total
                .saturating_sub(limits.max_per_torrent);
            if excess == 0 && is_within {
                break;
            }
            let (standings, _) = self.standings_of(torrent, None);
            let mut ranked = policy::least_useful_first(standings);
            let excess = excess.min(ranked.len());
            ranked.drain(..excess).for_each(|(peer, _)| self.evict_one(peer));
            left.extend(ranked);
        }
        while self.counts.total > limits.max_connections && self.evict_handshake() {}
        let excess = self.counts.total.saturating_sub(limits.max_connections);
        let ranked = policy::least_useful_first(left);
        ranked
            .into_iter()
            .take(excess)
            .for_each(|(peer, _)| self.evict_one(peer));
    }

    fn evict_one(&mut self, peer: Entity) {
        self.close(peer, CloseReason::Evicted);
    }

    /// Closes a connection and frees its slot at once.
    pub(crate) fn close(&mut self, peer: Entity, reason: CloseReason) {
        self.reaper.close(peer, reason);
        self.counts.remove(peer);
    }

    /// Decides which of two connections under one peer id stays: `newcomer`, or `other`, whose entity is `twin`.
    pub(crate) fn resolve(&self, newcomer: &Peer, twin: Entity, other: &Peer, id: PeerId, ours: PeerId) -> Twin {
        let side = |peer: &Peer| TwinSide {
            site: peer.endpoint.address().map(|address| site(address.ip())),
            direction: peer.direction,
        };
        let standing = self.standing(twin, 1, None);
        let is_useful = standing.is_some_and(|standing| standing.class == Class::Useful);
        let one: Vec<_> = standing.into_iter().map(|standing| (twin, standing)).collect();
        let is_abandoned = policy::least_useful(&one, None, Claim::Inbound, &self.settings.peers).is_some();
        let age = self.clock.now().since(other.since);
        resolve_twins(side(newcomer), side(other), age, is_useful, is_abandoned, ours > id)
    }

    /// Returns when to search again for a free slot after a search has failed.
    pub(crate) fn next_search(&self) -> ecs_torrent_protocol::time::Timestamp {
        self.clock.now() + SEARCH_INTERVAL
    }

    fn torrent_room(&self, torrent: Entity, candidates: &Candidates) -> TorrentRoom {
        TorrentRoom::new(
            &self.settings.peers,
            self.counts.of_torrent(torrent),
            candidates.idle_count(),
            candidates.idle_user_count(),
        )
    }

    /// Returns the number of connections in the engine at which a newcomer has to replace one.
    fn engine_room(&self, claim: Claim) -> usize {
        let limit = self.settings.peers.max_connections;
        match claim {
            Claim::UserNamed => limit,
            _ => limit - policy::user_reserve(limit, &self.settings.peers),
        }
    }

    fn evict_handshake(&mut self) -> bool {
        let victim = self.counts.most_crowded_handshake();
        self.evict(victim)
    }

    /// Evicts a connection of one prefix: the oldest one that awaits its handshake, or else the least useful one.
    fn evict_of_prefix(&mut self, members: Vec<Entity>) -> bool {
        let victim = self.counts.oldest_handshake(members.iter().copied()).or_else(|| {
            let standings = members.iter().filter_map(|peer| {
                let standing = self.standing(*peer, members.len(), None)?;
                Some((*peer, standing))
            });
            let standings: Vec<_> = standings.collect();
            policy::least_useful(&standings, None, Claim::Inbound, &self.settings.peers)
        });
        self.evict(victim)
    }

    /// Evicts a connection of the torrent with the most connections, or else of `own`.
    fn evict_of_largest(&mut self, own: Option<Entity>, newcomer: Option<Party>, claim: Claim) -> bool {
        let largest = self.counts.largest_torrent();
        largest.is_some_and(|largest| self.evict_of_torrent(largest, newcomer, claim))
            || own.is_some_and(|own| largest != Some(own) && self.evict_of_torrent(own, newcomer, claim))
    }

    fn evict_of_torrent(&mut self, torrent: Entity, newcomer: Option<Party>, claim: Claim) -> bool {
        let now = self.clock.now();
        let ip = newcomer.and_then(|newcomer| newcomer.ip);
        let silences = ip.map_or(0, |ip| self.counts.silences(ip));
        if claim != Claim::UserNamed && self.counts.of_torrent(torrent).eviction_failed_recently(now, silences) {
            return false;
        }
        let (standings, newcomer_party_size) = self.standings_of(torrent, newcomer);
        let rival = newcomer_party_size.map(|party_size| Rival { party_size, silences });
        let victim = policy::least_useful(&standings, rival, claim, &self.settings.peers);
        if victim.is_none() && claim != Claim::UserNamed {
            self.counts
                .record_failed_eviction(torrent, now + SEARCH_INTERVAL, silences);
        }
        let is_silent =
            |(peer, standing): &(Entity, Standing)| Some(*peer) == victim && standing.class == Class::Silent;
        if standings.iter().any(is_silent) {
            self.record_silence(victim);
        }
        self.evict(victim)
    }

    /// Remembers that a silent connection is evicted.
    fn record_silence(&mut self, victim: Option<Entity>) {
        let address = victim.and_then(|victim| self.peers.get(victim).ok()?.0.endpoint.address());
        if let Some(address) = address {
            let max = self.settings.peers.max_remembered_evictions;
            self.counts.record_silence(self.clock.now(), address.ip(), max);
        }
    }

    fn evict(&mut self, victim: Option<Entity>) -> bool {
        if let Some(victim) = victim {
            self.close(victim, CloseReason::Evicted);
        }
        victim.is_some()
    }

    /// Returns the standings of a torrent's connections, and how many of them belong to the newcomer's party.
    fn standings_of(&self, torrent: Entity, newcomer: Option<Party>) -> (Vec<(Entity, Standing)>, Option<usize>) {
        let Ok((lifecycle, Some(peers))) = self.torrents.get(torrent) else {
            return (Vec::new(), None);
        };
        let members: Vec<Entity> = peers.iter().filter(|peer| self.counts.contains(*peer)).collect();
        let party = |peer: Entity| {
            let (peer, ..) = self.peers.get(peer).ok()?;
            let address = peer.endpoint.address();
            Some(Party {
                ip: address.map(|address| address.ip()),
                id: peer.peer_id,
            })
        };
        let mut counts = PartyCounts::default();
        members
            .iter()
            .filter_map(|peer| party(*peer))
            .for_each(|party| counts.add(party));
        let standings = members.iter().filter_map(|peer| {
            let standing = self.standing(*peer, counts.of(party(*peer)?), Some(lifecycle))?;
            Some((*peer, standing))
        });
        (standings.collect(), newcomer.map(|newcomer| counts.of(newcomer)))
    }

    /// Returns the standing of a connection whose party has `party_size` connections; `None` if it is closing.
    fn standing(&self, entity: Entity, party_size: usize, lifecycle: Option<&Lifecycle>) -> Option<Standing> {
        if self.reaper.is_doomed(entity) {
            return None;
        }
        let (peer, state, rates, pieces) = self.peers.get(entity).ok()?;
        let now = self.clock.now();
        let last_payload = rates.and_then(|rates| rates.last_payload);
        let is_seeding = lifecycle.is_some_and(Lifecycle::is_finished);
        let class = match state {
            None => Class::Opening,
            Some(state) if is_seeding && (state.upload_only || pieces.is_some_and(PeerPieces::is_complete)) => {
                Class::Redundant
            }
            Some(state) if state.snubbed => Class::Silent,
            Some(_) if last_payload.is_some_and(|at| now.since(at) < USEFUL_FOR) => Class::Useful,
            Some(state) if state.am_interested || state.peer_interested => Class::Waiting,
            Some(_) => Class::Silent,
        };
        Some(Standing {
            class,
            direction: peer.direction,
            is_user_named: self.counts.is_user_named(entity),
            idle: now.since(last_payload.unwrap_or(peer.since).max(peer.since)),
            party_size,
            silences: peer
                .endpoint
                .address()
                .map_or(0, |address| self.counts.silences(address.ip())),
        })
    }
}

/// Outcome for two connections under one peer id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Twin {
    /// Both connections stay.
    Both,
    /// The new connection stays, and the other one closes.
    Newcomer,
    /// The other connection stays, and the new one closes.
    Other,
}

/// Age below which a connection counts as opened at the same time as a new one between the same two peers.
pub(crate) const CROSSING: Duration = Duration::from_secs(10);

/// One of two connections under the same peer id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TwinSide {
    pub(crate) site: Option<IpAddr>,
    pub(crate) direction: Direction,
}

/// Decides which of two connections under the same peer id stays.
///
/// A peer id is a claim that anybody can copy. Only a connection from the same address can be the same peer, so only
/// then does one of the two close. Connections from different addresses both stay as long as the limits allow; the
/// blocks that they send decide later.
pub(crate) fn resolve_twins(
    newcomer: TwinSide,
    other: TwinSide,
    other_age: Duration,
    is_other_useful: bool,
    is_other_abandoned: bool,
    is_our_id_higher: bool,
) -> Twin {
    let is_same_site = newcomer.site.is_some() && newcomer.site == other.site;
    match (newcomer.direction, other.direction) {
        _ if !is_same_site => Twin::Both,
        (Direction::Inbound, Direction::Inbound) if is_other_abandoned => Twin::Newcomer,
        (Direction::Inbound, Direction::Inbound) => Twin::Other,
        // Both addresses listen, so they are two peers, or one peer that closes the duplicate itself.
        (Direction::Outbound, Direction::Outbound) => Twin::Both,
        _ if is_other_useful || other_age >= CROSSING => Twin::Both,
        // Both sides have connected at the same time. Both keep the connection that the side with the higher id opened;
        // otherwise each side would close a different one.
        (Direction::Inbound, _) if !is_our_id_higher => Twin::Newcomer,
        (Direction::Outbound, _) if is_our_id_higher => Twin::Newcomer,
        _ => Twin::Other,
    }
}
