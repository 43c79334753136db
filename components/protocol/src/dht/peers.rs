//! The peers that other hosts have announced to us (BEP 5, BEP 33, BEP 51), of one address family.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::Rng;
use rand::seq::IteratorRandom;

use super::bloom::BloomFilter;
use super::id::NodeId;
use crate::prefix::site;
use crate::time::Timestamp;

/// Time after which an announced peer is forgotten. Clients announce every 15 to 30 minutes.
pub const PEER_LIFETIME: Duration = Duration::from_secs(45 * 60);

/// Time between two choices of samples (BEP 51: at most six hours).
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Number of samples. They and eight nodes fit into a datagram of 1024 bytes.
const MAX_SAMPLES: usize = 20;

/// The share of all places that one host, or one /64 of IPv6 addresses, can take.
const HOST_SHARE: usize = 16;

/// Limits of a [`PeerStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// Maximum number of torrents.
    pub max_torrents: usize,
    /// Maximum number of peers of a torrent. BEP 33 recommends at most 6000.
    pub max_peers_per_torrent: usize,
    /// Maximum number of peers of all torrents.
    pub max_peers: usize,
}

/// The reason a peer is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no space for more peers")]
pub struct StoreFull;

#[derive(Debug, Clone, Copy)]
struct StoredPeer {
    address: SocketAddr,
    is_seed: bool,
    stored: Timestamp,
}

/// A stored peer: when it was stored, its torrent, and its address.
type Place = (Timestamp, NodeId, IpAddr);

/// The places that each host has taken, the oldest one first. Nearly all hosts have a single one.
#[derive(Debug, Clone, Default)]
struct Hosts {
    places: BTreeMap<IpAddr, Vec<Place>>,
    /// The hosts by the number of their places.
    by_count: BTreeSet<(usize, IpAddr)>,
}

impl Hosts {
    fn count(&self, ip: IpAddr) -> usize {
        self.places.get(&site(ip)).map_or(0, Vec::len)
    }

    fn add(&mut self, place: Place) {
        self.change(place.2, |places| {
            if let Err(at) = places.binary_search(&place) {
                places.insert(at, place);
            }
        });
    }

    fn remove(&mut self, place: &Place) {
        self.change(place.2, |places| {
            if let Ok(at) = places.binary_search(place) {
                places.remove(at);
            }
        });
    }

    fn change(&mut self, ip: IpAddr, change: impl FnOnce(&mut Vec<Place>)) {
        let host = site(ip);
        let places = self.places.entry(host).or_insert_with(|| Vec::with_capacity(1));
        let before = places.len();
        change(places);
        let after = places.len();
        self.by_count.remove(&(before, host));
        match after {
            0 => drop(self.places.remove(&host)),
            _ => drop(self.by_count.insert((after, host))),
        }
    }

    /// Returns the oldest place of the host with most places, and their number.
    fn greatest(&self) -> Option<(usize, Place)> {
        let (count, host) = self.by_count.last()?;
        let oldest = self.places.get(host)?.first()?;
        Some((*count, *oldest))
    }
}

#[derive(Debug, Clone, Default)]
struct Samples {
    hashes: Vec<u8>,
    chosen: Option<Timestamp>,
}

/// Announced peers: of each torrent, one per IP address (BEP 33, "Changed announce accounting").
#[derive(Debug, Clone)]
pub struct PeerStore {
    limits: PeerLimits,
    torrents: BTreeMap<NodeId, Vec<StoredPeer>>,
    hosts: Hosts,
    peer_count: usize,
    samples: Samples,
}

impl PeerStore {
    /// Creates an empty store.
    #[must_use]
    pub fn new(limits: PeerLimits) -> Self {
        Self {
            limits,
            torrents: BTreeMap::new(),
            hosts: Hosts::default(),
            peer_count: 0,
            samples: Samples::default(),
        }
    }

    /// Whether a peer at `ip` would be stored. If not, the host gets no token and announces to other nodes (BEP 33).
    #[must_use]
    pub fn has_place(&self, info_hash: NodeId, ip: IpAddr, own_id: NodeId) -> bool {
        let peers = self.torrents.get(&info_hash);
        if peers.is_some_and(|peers| peers.iter().any(|peer| peer.address.ip() == ip)) {
            return true;
        }
        self.hosts.count(ip) < (self.limits.max_peers / HOST_SHARE).max(1)
            && (self.peer_count < self.limits.max_peers || self.least_needed(info_hash, ip, own_id).is_some())
            && match peers {
                Some(peers) => peers.len() < self.limits.max_peers_per_torrent,
                None => self.torrents.len() < self.limits.max_torrents || self.farthest(info_hash, own_id).is_some(),
            }
    }

    /// Stores a peer, or renews it. Its torrent may take the place of the torrent that is farthest from our own id. In
    /// a full store, the peer takes the oldest place of the host that has most, or one of a torrent that is farther
    /// from our id.
    ///
    /// # Errors
    /// Returns an error if there is no place.
    pub fn store(
        &mut self,
        info_hash: NodeId,
        address: SocketAddr,
        is_seed: bool,
        own_id: NodeId,
        now: Timestamp,
    ) -> Result<(), StoreFull> {
        if !self.has_place(info_hash, address.ip(), own_id) {
            return Err(StoreFull);
        }
        if !self.torrents.contains_key(&info_hash)
            && self.torrents.len() >= self.limits.max_torrents
            && let Some(farthest) = self.farthest(info_hash, own_id)
        {
            self.remove_torrent(farthest);
        }
        let is_known = |peer: &StoredPeer| peer.address.ip() == address.ip();
        let known = self
            .torrents
            .get(&info_hash)
            .into_iter()
            .flatten()
            .find(|peer| is_known(peer));
        match known.map(|known| (known.stored, info_hash, address.ip())) {
            Some(earlier) => self.remove(earlier),
            None if self.peer_count >= self.limits.max_peers => {
                let evicted = self.least_needed(info_hash, address.ip(), own_id).ok_or(StoreFull)?;
                self.remove(evicted);
            }
            None => {}
        }
        let peer = StoredPeer {
            address,
            is_seed,
            stored: now,
        };
        self.torrents.entry(info_hash).or_default().push(peer);
        self.peer_count += 1;
        self.hosts.add((now, info_hash, address.ip()));
        Ok(())
    }

    /// Returns a random choice of at most `max` peers of a torrent; without seeds, as far as there are other peers.
    pub fn choose(&self, info_hash: NodeId, max: usize, no_seed: bool, rng: &mut impl Rng) -> Vec<SocketAddr> {
        let Some(peers) = self.torrents.get(&info_hash) else {
            return Vec::new();
        };
        let wanted = peers.iter().filter(|peer| !(no_seed && peer.is_seed));
        wanted.map(|peer| peer.address).sample(rng, max)
    }

    /// The number of peers of a torrent.
    #[must_use]
    pub fn count(&self, info_hash: NodeId) -> usize {
        self.torrents.get(&info_hash).map_or(0, Vec::len)
    }

    /// Returns bloom filters of a torrent's seeds and of its other peers, if there are any (BEP 33).
    #[must_use]
    pub fn filters(&self, info_hash: NodeId) -> Option<(BloomFilter, BloomFilter)> {
        let (mut seeds, mut others) = (BloomFilter::default(), BloomFilter::default());
        for peer in self.torrents.get(&info_hash)? {
            let filter = if peer.is_seed { &mut seeds } else { &mut others };
            filter.insert(peer.address.ip());
        }
        Some((seeds, others))
    }

    /// Returns some info-hashes, concatenated, and the time until others are chosen (BEP 51).
    pub fn sample(&mut self, now: Timestamp, rng: &mut impl Rng) -> (&[u8], Duration) {
        let age = self.samples.chosen.map(|chosen| now.since(chosen));
        if age.is_none_or(|age| age >= SAMPLE_INTERVAL) {
            let chosen = self.torrents.keys().sample(rng, MAX_SAMPLES);
            self.samples.hashes = chosen.iter().flat_map(|hash| hash.0).collect();
            self.samples.chosen = Some(now);
        }
        let age = self.samples.chosen.map_or(Duration::ZERO, |chosen| now.since(chosen));
        (&self.samples.hashes, SAMPLE_INTERVAL.saturating_sub(age))
    }

    /// The number of torrents.
    #[must_use]
    pub fn torrent_count(&self) -> usize {
        self.torrents.len()
    }

    /// The number of peers of all torrents.
    #[must_use]
    pub fn peer_count(&self) -> usize {
        self.peer_count
    }

    /// Forgets the peers that have not been announced for [`PEER_LIFETIME`]. Visits all peers; a call per minute is
    /// enough.
    pub fn expire(&mut self, now: Timestamp) {
        let Self {
            torrents,
            hosts,
            peer_count,
            ..
        } = self;
        torrents.retain(|info_hash, peers| {
            peers.retain(|peer| {
                let is_kept = now.since(peer.stored) < PEER_LIFETIME;
                if !is_kept {
                    *peer_count -= 1;
                    hosts.remove(&(peer.stored, *info_hash, peer.address.ip()));
                }
                is_kept
            });
            !peers.is_empty()
        });
    }

    /// The stored torrent farthest from our id, if it is farther than `info_hash`.
    fn farthest(&self, info_hash: NodeId, own_id: NodeId) -> Option<NodeId> {
        let farthest = own_id.farthest_key(&self.torrents)?;
        (farthest.distance(own_id) > info_hash.distance(own_id)).then_some(farthest)
    }

    /// The place that a peer at `ip` may take in a full store: one of a host that has more places than the peer's own,
    /// so that all hosts end with as many, or else one of a torrent farther from our id.
    fn least_needed(&self, info_hash: NodeId, ip: IpAddr, own_id: NodeId) -> Option<Place> {
        let (count, place) = self.hosts.greatest()?;
        if count > self.hosts.count(ip) + 1 {
            return Some(place);
        }
        let farthest = self.farthest(info_hash, own_id)?;
        let oldest = self.torrents.get(&farthest)?.iter().min_by_key(|peer| peer.stored)?;
        Some((oldest.stored, farthest, oldest.address.ip()))
    }

    fn remove(&mut self, place: Place) {
        let (_, info_hash, ip) = place;
        let Some(peers) = self.torrents.get_mut(&info_hash) else {
            return;
        };
        peers.retain(|peer| peer.address.ip() != ip);
        if peers.is_empty() {
            self.torrents.remove(&info_hash);
        }
        self.peer_count -= 1;
        self.hosts.remove(&place);
    }

    fn remove_torrent(&mut self, info_hash: NodeId) {
        for peer in self.torrents.remove(&info_hash).unwrap_or_default() {
            self.peer_count -= 1;
            self.hosts.remove(&(peer.stored, info_hash, peer.address.ip()));
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const OWN: NodeId = NodeId([0; 20]);
    const LIMITS: PeerLimits = PeerLimits {
        max_torrents: 10,
        max_peers_per_torrent: 20,
        max_peers: 160,
    };

    fn address(n: u32) -> SocketAddr {
        SocketAddr::new(IpAddr::from((0x0900_0000 + n).to_be_bytes()), 6881)
    }

    fn hash(first: u8) -> NodeId {
        let mut hash = [0; 20];
        hash[0] = first;
        NodeId(hash)
    }

    fn at(minutes: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(minutes * 60)
    }

    #[test]
    fn one_peer_per_address_is_kept_for_a_while() {
        let mut rng = ChaCha8Rng::from_seed([1; 32]);
        let mut store = PeerStore::new(LIMITS);
        store.store(hash(1), address(1), false, OWN, at(0)).unwrap();
        let moved = SocketAddr::new(address(1).ip(), 7000);
        store.store(hash(1), moved, true, OWN, at(30)).unwrap();
        assert_eq!(store.choose(hash(1), 10, false, &mut rng), [moved]);
        assert_eq!(store.choose(hash(1), 10, true, &mut rng), []);
        store.store(hash(1), address(2), false, OWN, at(40)).unwrap();
        assert_eq!(store.choose(hash(1), 10, true, &mut rng), [address(2)]);
        assert_eq!((store.count(hash(1)), store.count(hash(2))), (2, 0));
        store.expire(at(74));
        assert_eq!(store.peer_count(), 2);
        store.expire(at(75));
        assert_eq!((store.peer_count(), store.torrent_count()), (1, 1));
        store.expire(at(85));
        assert_eq!((store.peer_count(), store.torrent_count()), (0, 0));
        assert!(store.hosts.places.is_empty() && store.hosts.by_count.is_empty());
    }

    /// Peers beyond each bound are refused, and known peers are renewed even then.
    #[test]
    fn the_store_is_bounded() {
        let mut store = PeerStore::new(LIMITS);
        // One host takes a sixteenth.
        let stored = (0..100).filter(|n| store.store(hash(*n), address(1), false, OWN, at(0)).is_ok());
        assert_eq!(stored.count(), 10);
        // A torrent.
        let mut store = PeerStore::new(LIMITS);
        let stored = (0..1000).filter(|n| store.store(hash(1), address(*n), false, OWN, at(0)).is_ok());
        assert_eq!(stored.count(), 20);
        assert!(store.has_place(hash(1), address(3).ip(), OWN));
        assert!(!store.has_place(hash(1), address(30).ip(), OWN));
        // All torrents together.
        for torrent in 1..=20 {
            for n in 0..20 {
                let _ = store.store(hash(torrent), address(u32::from(torrent) * 100 + n), false, OWN, at(0));
            }
        }
        assert_eq!(store.peer_count(), 160);
        assert!(store.torrent_count() <= 10);
    }

    /// Sixteen hosts fill the store. The places of newcomers come from them, until all hosts have as many.
    #[test]
    fn few_hosts_cannot_keep_all_places() {
        let mut store = PeerStore::new(PeerLimits {
            max_torrents: 100,
            ..LIMITS
        });
        for (host, torrent) in (0..16).flat_map(|host| (0..10).map(move |torrent| (host, torrent))) {
            store.store(hash(torrent), address(host), false, OWN, at(0)).unwrap();
        }
        assert_eq!(store.peer_count(), 160);
        let newcomer = address(1000);
        // Even for a torrent that is farther from our id than all others.
        assert!(store.has_place(hash(200), newcomer.ip(), OWN));
        let stored = (150..200).filter(|n| store.store(hash(*n), newcomer, false, OWN, at(1)).is_ok());
        assert_eq!(stored.count(), 9);
        assert_eq!((store.peer_count(), store.hosts.count(newcomer.ip())), (160, 9));
        // Hosts with as many places as others take none from them, but those of farther torrents.
        assert!(!store.has_place(hash(200), newcomer.ip(), OWN) && store.has_place(hash(20), newcomer.ip(), OWN));
        store.store(hash(20), newcomer, false, OWN, at(2)).unwrap();
        assert_eq!(store.peer_count(), 160);
        store.expire(at(60));
        assert!(store.hosts.places.is_empty() && store.hosts.by_count.is_empty());
        assert_eq!(store.peer_count(), 0);
    }

    /// A torrent close to our id takes the place of the farthest one, so a flood of random info-hashes ends.
    #[test]
    fn the_farthest_torrent_makes_room() {
        let mut store = PeerStore::new(LIMITS);
        for n in 100..110 {
            store.store(hash(n), address(n.into()), false, OWN, at(0)).unwrap();
        }
        assert_eq!(store.store(hash(110), address(110), false, OWN, at(0)), Err(StoreFull));
        store.store(hash(3), address(3), false, OWN, at(0)).unwrap();
        assert_eq!(
            (store.count(hash(109)), store.count(hash(108)), store.torrent_count()),
            (0, 1, 10)
        );
        assert_eq!(store.peer_count(), 10);
    }

    #[test]
    fn filters_tell_seeds_from_others() {
        let mut store = PeerStore::new(LIMITS);
        assert!(store.filters(hash(1)).is_none());
        store.store(hash(1), address(1), true, OWN, at(0)).unwrap();
        store.store(hash(1), address(2), false, OWN, at(0)).unwrap();
        let (seeds, others) = store.filters(hash(1)).unwrap();
        assert!(seeds.may_contain(address(1).ip()) && !seeds.may_contain(address(2).ip()));
        assert!(others.may_contain(address(2).ip()) && !others.may_contain(address(1).ip()));
    }

    /// BEP 51: repeated questions learn nothing new until the interval is over.
    #[test]
    fn samples_stay_the_same_for_an_interval() {
        let mut rng = ChaCha8Rng::from_seed([1; 32]);
        let mut store = PeerStore::new(PeerLimits {
            max_torrents: 1000,
            max_peers: 16_000,
            ..LIMITS
        });
        assert_eq!(store.sample(at(0), &mut rng), (&[][..], SAMPLE_INTERVAL));
        for n in 0..100 {
            store.store(hash(n), address(n.into()), false, OWN, at(0)).unwrap();
        }
        let (first, interval) = store.sample(at(10), &mut rng);
        assert_eq!((first.len(), interval), (400, SAMPLE_INTERVAL));
        let first = first.to_vec();
        assert_eq!(store.sample(at(15), &mut rng), (&first[..], SAMPLE_INTERVAL / 2));
        assert_ne!(store.sample(at(20), &mut rng).0, first);
    }
}
