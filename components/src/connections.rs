//! Connection counts: of the engine, of each torrent, and of each network prefix.

mod handshakes;
mod silences;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_protocol::time::Timestamp;

use self::handshakes::Handshakes;
use self::silences::Silences;
use crate::peer::{Direction, Peer, Stage};
use crate::prefix::{site, subnet};

/// Connection counts by the categories that have limits. Every operation is O(log n).
///
/// An evicted connection is removed at once, so that its slot is free in the same tick; removing it again at the end of
/// the tick changes nothing.
#[derive(Resource, Debug, Default)]
pub struct ConnectionCounts {
    /// Number of all connections.
    pub total: usize,
    /// Number of connections that we opened or are opening.
    pub outbound: usize,
    /// Number of connections that we are opening.
    pub half_open: usize,
    /// Number of inbound connections that have not named their torrent yet.
    pub unidentified: usize,
    entries: EntityHashMap<Entry>,
    sites: BTreeMap<IpAddr, BTreeSet<Entity>>,
    subnets: BTreeMap<IpAddr, BTreeSet<Entity>>,
    handshakes: Handshakes,
    torrents: EntityHashMap<TorrentCounts>,
    by_size: BTreeSet<(usize, Entity)>,
    silences: Silences,
}

/// Connection counts of one torrent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TorrentCounts {
    /// Number of all connections.
    pub total: usize,
    /// Number of connections that we opened or are opening.
    pub outbound: usize,
    failed_eviction: FailedEviction,
}

/// A failed search for a connection to evict. It makes another one useless for a while.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct FailedEviction {
    until: Timestamp,
    /// Silences of the newcomer that found no connection to replace.
    silences: usize,
}

impl TorrentCounts {
    /// Whether a search for a connection to evict has failed recently, for a newcomer from a site with at most as many
    /// [silences](ConnectionCounts::silences).
    #[must_use]
    pub fn eviction_failed_recently(&self, now: Timestamp, silences: usize) -> bool {
        self.failed_eviction.until > now && self.failed_eviction.silences <= silences
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    ip: Option<IpAddr>,
    direction: Direction,
    stage: Stage,
    torrent: Option<Entity>,
    is_user_named: bool,
    /// Sequence number among all connections ever added.
    number: u64,
}

impl ConnectionCounts {
    /// Adds a new connection, with its torrent if we open it, and whether a user named the peer.
    pub fn add(&mut self, entity: Entity, peer: &Peer, torrent: Option<Entity>, is_user_named: bool) {
        let entry = Entry {
            ip: peer.endpoint.address().map(|address| address.ip()),
            direction: peer.direction,
            stage: peer.stage,
            torrent: None,
            is_user_named,
            number: self.handshakes.next_number(),
        };
        self.total += 1;
        self.half_open += usize::from(entry.is_half_open());
        self.outbound += usize::from(entry.direction == Direction::Outbound);
        if entry.direction == Direction::Inbound
            && let Some(ip) = entry.ip
        {
            self.sites.entry(site(ip)).or_default().insert(entity);
            self.subnets.entry(subnet(ip)).or_default().insert(entity);
        }
        if entry.is_unidentified() {
            self.unidentified += 1;
            self.handshakes.insert(entry.ip.map(subnet), entry.number, entity);
        }
        self.entries.insert(entity, entry);
        if let Some(torrent) = torrent {
            self.join(entity, torrent);
        }
    }

    /// Records that a connection has reached a stage.
    pub fn advance(&mut self, entity: Entity, stage: Stage) {
        let Some(entry) = self.entries.get_mut(&entity) else {
            return;
        };
        let before = *entry;
        entry.stage = stage;
        let after = *entry;
        self.half_open -= usize::from(before.is_half_open() && !after.is_half_open());
        if before.is_unidentified() && !after.is_unidentified() {
            self.unidentified -= 1;
            self.handshakes.remove(before.ip.map(subnet), before.number, entity);
        }
    }

    /// Assigns a connection to a torrent.
    pub fn join(&mut self, entity: Entity, torrent: Entity) {
        if let Some(entry) = self.entries.get_mut(&entity).filter(|entry| entry.torrent.is_none()) {
            entry.torrent = Some(torrent);
            let outbound = usize::from(entry.direction == Direction::Outbound);
            self.resize(torrent, |counts| {
                counts.total += 1;
                counts.outbound += outbound;
            });
        }
    }

    /// Removes a connection that ends or is evicted.
    pub fn remove(&mut self, entity: Entity) {
        self.advance(entity, Stage::Connected);
        let Some(entry) = self.entries.remove(&entity) else {
            return;
        };
        self.total -= 1;
        self.outbound -= usize::from(entry.direction == Direction::Outbound);
        if let Some(ip) = entry.ip {
            take_out(&mut self.sites, site(ip), entity);
            take_out(&mut self.subnets, subnet(ip), entity);
        }
        if let Some(torrent) = entry.torrent {
            let outbound = usize::from(entry.direction == Direction::Outbound);
            self.resize(torrent, |counts| {
                counts.total -= 1;
                counts.outbound -= outbound;
            });
        }
    }

    fn resize(&mut self, torrent: Entity, change: impl FnOnce(&mut TorrentCounts)) {
        let counts = self.torrents.entry(torrent).or_default();
        self.by_size.remove(&(counts.total, torrent));
        change(counts);
        if counts.total == 0 {
            self.torrents.remove(&torrent);
        } else {
            self.by_size.insert((counts.total, torrent));
        }
    }

    /// Number of connections that were opened from the site of `ip` ([`site`]).
    #[must_use]
    pub fn inbound_from_site(&self, ip: IpAddr) -> usize {
        self.sites.get(&site(ip)).map_or(0, BTreeSet::len)
    }

    /// Number of connections that were opened from the subnet of `ip` ([`subnet`]).
    #[must_use]
    pub fn inbound_from_subnet(&self, ip: IpAddr) -> usize {
        self.subnets.get(&subnet(ip)).map_or(0, BTreeSet::len)
    }

    /// Returns the connections that were opened from the site of `ip`.
    pub fn of_site(&self, ip: IpAddr) -> impl Iterator<Item = Entity> + '_ {
        self.sites.get(&site(ip)).into_iter().flatten().copied()
    }

    /// Returns the connections that were opened from the subnet of `ip`.
    pub fn of_subnet(&self, ip: IpAddr) -> impl Iterator<Item = Entity> + '_ {
        self.subnets.get(&subnet(ip)).into_iter().flatten().copied()
    }

    /// Returns the connection with the oldest incomplete handshake, of the subnet that has the most of them.
    #[must_use]
    pub fn most_crowded_handshake(&self) -> Option<Entity> {
        self.handshakes.most_crowded()
    }

    /// Returns the connection with the oldest incomplete handshake in `of`.
    #[must_use]
    pub fn oldest_handshake(&self, of: impl Iterator<Item = Entity>) -> Option<Entity> {
        let entries = of.filter_map(|entity| Some((entity, self.entries.get(&entity)?)));
        let unfinished = entries.filter(|(_, entry)| entry.is_unidentified());
        unfinished
            .min_by_key(|(_, entry)| entry.number)
            .map(|(entity, _)| entity)
    }

    /// Returns the connection counts of a torrent, connections being opened included.
    #[must_use]
    pub fn of_torrent(&self, torrent: Entity) -> TorrentCounts {
        self.torrents.get(&torrent).copied().unwrap_or_default()
    }

    /// Returns the torrent with the most connections.
    #[must_use]
    pub fn largest_torrent(&self) -> Option<Entity> {
        self.torrents_by_size().next()
    }

    /// The torrents with connections, those with the most first.
    pub fn torrents_by_size(&self) -> impl Iterator<Item = Entity> + '_ {
        self.by_size.iter().rev().map(|(_, torrent)| *torrent)
    }

    /// Records that until that time no connection of a torrent can be evicted for a newcomer from a site with
    /// `silences` or more.
    pub fn record_failed_eviction(&mut self, torrent: Entity, until: Timestamp, silences: usize) {
        if let Some(counts) = self.torrents.get_mut(&torrent) {
            counts.failed_eviction = FailedEviction { until, silences };
        }
    }

    /// Records that a silent connection to `ip` was evicted; beyond `max` records, the oldest one is forgotten.
    pub fn record_silence(&mut self, now: Timestamp, ip: IpAddr, max: usize) {
        self.silences.record(now, ip, max);
    }

    /// Returns how many silent connections to the site of `ip` were evicted recently, in all torrents.
    #[must_use]
    pub fn silences(&self, ip: IpAddr) -> usize {
        self.silences.of(ip)
    }

    /// Whether a user named the peer of a connection.
    #[must_use]
    pub fn is_user_named(&self, entity: Entity) -> bool {
        self.entries.get(&entity).is_some_and(|entry| entry.is_user_named)
    }

    /// Whether a connection is counted: it has not ended and is not evicted.
    #[must_use]
    pub fn contains(&self, entity: Entity) -> bool {
        self.entries.contains_key(&entity)
    }
}

impl Entry {
    fn is_half_open(&self) -> bool {
        self.stage == Stage::Connecting
    }

    fn is_unidentified(&self) -> bool {
        self.direction == Direction::Inbound && self.stage < Stage::Connected
    }
}

fn take_out(map: &mut BTreeMap<IpAddr, BTreeSet<Entity>>, key: IpAddr, entity: Entity) {
    if let Some(members) = map.get_mut(&key) {
        members.remove(&entity);
        if members.is_empty() {
            map.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::ids::StreamId;
    use crate::peer::Endpoint;

    fn peer(direction: Direction, ip: impl Into<IpAddr>) -> Peer {
        Peer {
            endpoint: Endpoint::Ip(SocketAddr::new(ip.into(), 5)),
            stream: StreamId(1),
            transport: None,
            direction,
            stage: match direction {
                Direction::Inbound => Stage::Handshaking,
                Direction::Outbound => Stage::Connecting,
            },
            since: Timestamp::ZERO,
            peer_id: None,
            client: "".into(),
            listens_at: None,
        }
    }

    fn entity(number: u32) -> Entity {
        Entity::from_raw_u32(number).unwrap()
    }

    #[test]
    fn every_close_releases_all_counts() {
        for direction in [Direction::Inbound, Direction::Outbound] {
            for last in [Stage::Connecting, Stage::Handshaking, Stage::Connected] {
                let mut counts = ConnectionCounts::default();
                let peer = peer(direction, [10, 0, 0, 1]);
                let torrent = (direction == Direction::Outbound).then_some(entity(9));
                counts.add(entity(1), &peer, torrent, false);
                for stage in [Stage::Handshaking, Stage::Connected] {
                    if stage <= last && stage > peer.stage {
                        counts.advance(entity(1), stage);
                    }
                }
                counts.join(entity(1), entity(9));
                // Evicted, and then closed.
                counts.remove(entity(1));
                counts.remove(entity(1));
                let left = (counts.total, counts.outbound, counts.half_open, counts.unidentified);
                assert_eq!(left, (0, 0, 0, 0));
                assert_eq!(counts.inbound_from_site([10, 0, 0, 1].into()), 0);
                assert_eq!(counts.of_torrent(entity(9)), TorrentCounts::default());
                assert!(counts.largest_torrent().is_none() && counts.most_crowded_handshake().is_none());
                assert!(counts.entries.is_empty() && counts.sites.is_empty() && counts.subnets.is_empty());
            }
        }
    }

    /// One host can use every address of an IPv6 prefix of 64 bits.
    #[test]
    fn addresses_of_one_prefix_of_64_bits_are_one_site() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut counts = ConnectionCounts::default();
        let mut add = |number, text| {
            counts.add(entity(number), &peer(Direction::Inbound, address(text)), None, false);
        };
        add(1, "2001:db8:0:1::1");
        add(2, "2001:db8:0:1:ffff:ffff:ffff:ffff");
        add(3, "2001:db8:0:2::1");
        let (site, next) = (address("2001:db8:0:1::9"), address("2001:db8:0:2::9"));
        assert_eq!((counts.inbound_from_site(site), counts.inbound_from_site(next)), (2, 1));
        let of_site: BTreeSet<Entity> = counts.of_site(site).collect();
        assert_eq!(of_site, [entity(1), entity(2)].into());
        counts.remove(entity(1));
        assert_eq!(counts.inbound_from_site(site), 1);
        counts.remove(entity(2));
        counts.remove(entity(3));
        assert!(counts.sites.is_empty() && counts.subnets.is_empty());
    }

    #[test]
    fn the_largest_torrent_is_known() {
        let mut counts = ConnectionCounts::default();
        for number in 1..=5 {
            let torrent = entity(if number <= 3 { 100 } else { 200 });
            counts.add(
                entity(number),
                &peer(Direction::Outbound, [1, 1, 1, 1]),
                Some(torrent),
                false,
            );
        }
        assert_eq!(counts.largest_torrent(), Some(entity(100)));
        counts.remove(entity(1));
        counts.remove(entity(2));
        assert_eq!(counts.largest_torrent(), Some(entity(200)));
        assert_eq!(counts.of_torrent(entity(200)).outbound, 2);
    }

    /// One silent subnet cannot fill the budget: its own oldest handshake is evicted.
    #[test]
    fn the_oldest_handshake_of_the_most_crowded_subnet_gives_way() {
        let mut counts = ConnectionCounts::default();
        counts.add(entity(1), &peer(Direction::Inbound, [8, 8, 8, 8]), None, false);
        for number in 2..=6 {
            let ip = [9, 9, 9, number as u8];
            counts.add(entity(number), &peer(Direction::Inbound, ip), None, false);
        }
        for expected in [2, 3, 4, 5] {
            let victim = counts.most_crowded_handshake().unwrap();
            assert_eq!(victim, entity(expected));
            counts.remove(victim);
        }
        // The oldest one among equals.
        assert_eq!(counts.most_crowded_handshake(), Some(entity(1)));
        counts.advance(entity(1), Stage::Connected);
        assert_eq!(counts.most_crowded_handshake(), Some(entity(6)));
    }
}
