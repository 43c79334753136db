//! Addresses of potential peers of a torrent.

mod sources;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bevy_ecs::prelude::*;
use bitflags::bitflags;
use ecs_torrent_protocol::time::Timestamp;

use self::sources::CountsBySource;
pub use self::sources::{AllowedSources, CandidateSource, CandidateSources, SourceCounts, SourceSet};

bitflags! {
    /// A source's claims about a peer, in addition to its address. They may be wrong.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct CandidateFlags: u8 {
        /// The peer prefers encrypted connections.
        const ENCRYPTION = 1;
        /// The peer has every piece, or wants none.
        const SEED = 1 << 1;
        /// The peer accepts uTP (BEP 29).
        const UTP = 1 << 2;
        /// The peer can be reached through a peer that both know (BEP 55).
        const HOLEPUNCH = 1 << 3;
    }
}

/// An address of a possible peer, as a source found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundPeer {
    /// The address.
    pub address: SocketAddr,
    /// The source's claims about the peer.
    pub flags: CandidateFlags,
}

impl From<SocketAddr> for FoundPeer {
    fn from(address: SocketAddr) -> Self {
        let flags = CandidateFlags::empty();
        Self { address, flags }
    }
}

/// Possible peers of a torrent. Any feature may write it; the engine adds the peers to the torrent's [`Candidates`],
/// unless the torrent does not allow their source, or the source may not name their addresses.
#[derive(Message, Debug, Clone)]
pub struct CandidatesFound {
    /// The torrent.
    pub torrent: Entity,
    /// The peers.
    pub peers: Vec<FoundPeer>,
    /// Source of the addresses.
    pub source: CandidateSource,
    /// Address of the host that named the peers: the tracker or the peer that sent them. It may not name peers in a more
    /// private network than its own. `None` stands for a host in the Internet.
    pub informant: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The address may be dialed now.
    Ready,
    /// The address may be dialed at this time.
    Waiting(Timestamp),
    /// The address is being dialed or connected.
    Busy,
    /// The peer and the torrent are both complete: the address is not dialed before the torrent lacks something.
    Redundant,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    sources: SourceSet,
    /// A peer at this address has completed its handshake.
    has_connected: bool,
    flags: CandidateFlags,
    priority: u32,
    failures: u32,
    state: State,
}

/// Dial order of the addresses: named by a user, few failures, then the canonical priority (BEP 40).
type Rank = (Reverse<bool>, u32, Reverse<u32>, SocketAddr);

/// A compact table of unique addresses, ordered by dial preference.
#[derive(Component, Debug, Default)]
pub struct Candidates {
    table: BTreeMap<SocketAddr, Candidate>,
    /// Number of user-named addresses in the table that are ready or wait.
    idle_user_count: usize,
    ready: BTreeSet<Rank>,
    waiting: BTreeSet<(Timestamp, SocketAddr)>,
    redundant: BTreeSet<SocketAddr>,
    counts: CountsBySource,
}

/// The end of an attempt or a connection, with the retry policy for its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Whether the end counts as a failure of the address.
    pub is_failure: bool,
    /// Initial backoff; doubles with each consecutive failure.
    pub backoff: Duration,
    /// Maximum backoff.
    pub max_backoff: Duration,
    /// Maximum backoff for an address that a user named.
    pub max_user_backoff: Duration,
    /// Number of consecutive failures after which the address is forgotten.
    pub max_failures: u32,
}

impl Candidates {
    /// Adds an address of canonical priority `priority` (BEP 40), keeping at most `max` addresses. In a full
    /// table, a new address displaces one of no use or one that has failed, or is not added. True if it is new and was
    /// added. A known address gets the flags and the source that are new.
    ///
    /// User-named addresses have precedence: a new one displaces any idle address that no user named, and a known one
    /// is ready to dial at once, however often it has failed.
    pub fn add(&mut self, peer: impl Into<FoundPeer>, source: CandidateSource, priority: u32, max: usize) -> bool {
        let FoundPeer { address, flags } = peer.into();
        if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
            self.count_refused(source, 1);
            return false;
        }
        if let Some(known) = self.table.get(&address) {
            if !known.sources.contains(source) {
                let counts = self.counts.of(source);
                counts.found += 1;
                counts.connected += u64::from(known.has_connected);
            }
            self.change(address, |candidate| {
                candidate.flags |= flags;
                candidate.sources.insert(source);
                if source == CandidateSource::USER {
                    candidate.failures = 0;
                    if candidate.state != State::Busy {
                        candidate.state = State::Ready;
                    }
                }
            });
            return false;
        }
        if self.table.len() >= max && !self.displace(source) {
            self.count_refused(source, 1);
            return false;
        }
        self.counts.of(source).found += 1;
        let candidate = Candidate {
            sources: source.into(),
            has_connected: false,
            flags,
            priority,
            failures: 0,
            state: State::Ready,
        };
        self.insert(address, candidate);
        true
    }

    /// Counts reports of addresses that are not added.
    pub fn count_refused(&mut self, source: CandidateSource, reports: usize) {
        self.counts.of(source).refused += reports as u64;
    }

    /// Returns what became of the addresses of each source that has reported any.
    pub fn counts(&self) -> impl Iterator<Item = (CandidateSource, SourceCounts)> + '_ {
        self.counts.iter()
    }

    /// Number of known addresses with this IP address, at most `max`.
    #[must_use]
    pub fn count_of_ip(&self, ip: IpAddr, max: usize) -> usize {
        let all = SocketAddr::new(ip, 0)..=SocketAddr::new(ip, u16::MAX);
        self.table.range(all).take(max).count()
    }

    /// Forgets the addresses that only other sources than `allowed` named, and returns them. An address at which a peer
    /// claims to listen is one of them if another source named it too: any peer can connect to us.
    pub fn retain_sources(&mut self, allowed: SourceSet) -> BTreeSet<SocketAddr> {
        let mut forgotten = BTreeSet::new();
        let mut changed = Vec::new();
        for (address, candidate) in &self.table {
            let kept = candidate.sources.intersection(allowed);
            let mut others = kept;
            others.remove(CandidateSource::INCOMING);
            let is_only_incoming = candidate.sources == CandidateSource::INCOMING.into() && !kept.is_empty();
            if others.is_empty() && !is_only_incoming {
                forgotten.insert(*address);
            } else if kept != candidate.sources {
                changed.push((*address, kept));
            }
        }
        for (address, kept) in changed {
            self.change(address, |candidate| candidate.sources = kept);
        }
        forgotten.iter().for_each(|address| self.remove(*address));
        forgotten
    }

    /// Takes the best address that may be dialed at `now`; it stays busy until [`Candidates::release`].
    pub fn take_best(&mut self, now: Timestamp) -> Option<SocketAddr> {
        self.wake(now);
        let (.., address) = *self.ready.first()?;
        self.occupy(address);
        Some(address)
    }

    /// Returns the best address that is known to be ready.
    #[must_use]
    pub fn first_ready(&self) -> Option<SocketAddr> {
        self.ready.first().map(|(.., address)| *address)
    }

    /// Returns whether a user named the best address of those known to be ready. [`Candidates::wake`] makes others ready.
    #[must_use]
    pub fn is_next_user_named(&self) -> bool {
        self.ready.first().is_some_and(|(Reverse(is_user), ..)| *is_user)
    }

    /// Makes addresses ready whose waiting time is over.
    pub fn wake(&mut self, now: Timestamp) {
        while let Some(&(_, address)) = self.waiting.first().filter(|(at, _)| *at <= now) {
            self.change(address, |candidate| candidate.state = State::Ready);
        }
    }

    /// Marks an address as being dialed or connected.
    fn occupy(&mut self, address: SocketAddr) {
        self.change(address, |candidate| candidate.state = State::Busy);
    }

    /// Accepts the listen address claimed by a peer that connected to us; it is not dialed while the peer is connected.
    /// Returns false if nothing changes: the address is being dialed, there is no room for it, or a user named it. A
    /// peer that shares an IP address with another one may claim the other one's port.
    pub fn claim(&mut self, address: SocketAddr, max: usize) -> bool {
        self.add(address, CandidateSource::INCOMING, 0, max);
        let candidate = self.table.get(&address);
        let may_claim = candidate.is_some_and(|c| c.state != State::Busy && !c.is_user_named());
        if may_claim {
            self.occupy(address);
        }
        may_claim
    }

    /// Whether a user named an address.
    #[must_use]
    pub fn is_user_named(&self, address: SocketAddr) -> bool {
        self.table.get(&address).is_some_and(Candidate::is_user_named)
    }

    /// Returns the sources of an address and their claims about its peer, if the address is known.
    #[must_use]
    pub fn get(&self, address: SocketAddr) -> Option<(SourceSet, CandidateFlags)> {
        let candidate = self.table.get(&address)?;
        Some((candidate.sources, candidate.flags))
    }

    /// Records that a connection to `address` works, and clears its failures.
    pub fn forgive(&mut self, address: SocketAddr) {
        let Some(candidate) = self.table.get_mut(&address).filter(|c| c.state == State::Busy) else {
            return;
        };
        candidate.failures = 0;
        if !std::mem::replace(&mut candidate.has_connected, true) {
            for source in candidate.sources.iter() {
                self.counts.of(source).connected += 1;
            }
        }
    }

    /// Releases an address after its attempt or connection ended.
    pub fn release(&mut self, address: SocketAddr, now: Timestamp, retry: Retry) {
        let Some(candidate) = self.table.get(&address).filter(|c| c.state == State::Busy) else {
            return;
        };
        let is_user_named = candidate.is_user_named();
        let failures = candidate.failures + u32::from(retry.is_failure);
        // User-named addresses are never forgotten.
        if failures >= retry.max_failures && !is_user_named {
            self.remove(address);
            return;
        }
        let longest = match is_user_named {
            true => retry.max_user_backoff,
            false => retry.max_backoff,
        };
        let doublings = failures.saturating_sub(1).min(16);
        let at = now + (retry.backoff * 2u32.pow(doublings)).min(longest);
        self.change(address, |candidate| {
            candidate.failures = failures;
            candidate.state = State::Waiting(at);
        });
    }

    /// Releases an address whose peer and torrent are both complete. It is not dialed until
    /// [`Candidates::recall_redundant`]; nothing about it has failed.
    pub fn set_redundant(&mut self, address: SocketAddr) {
        if self.table.get(&address).is_some_and(|c| c.state == State::Busy) {
            self.change(address, |candidate| candidate.state = State::Redundant);
        }
    }

    /// Makes the addresses of complete peers ready to dial: the torrent lacks something.
    pub fn recall_redundant(&mut self) {
        for address in std::mem::take(&mut self.redundant) {
            self.change(address, |candidate| candidate.state = State::Ready);
        }
    }

    /// Forgets an address.
    pub fn remove(&mut self, address: SocketAddr) {
        if let Some(candidate) = self.table.remove(&address) {
            self.unlist(address, &candidate);
        }
    }

    /// Forgets an address known only from the peer itself; true if it is forgotten.
    pub fn remove_claimed(&mut self, address: SocketAddr) -> bool {
        let candidate = self.table.get(&address);
        let is_claimed = candidate.is_some_and(|candidate| candidate.sources == CandidateSource::INCOMING.into());
        if is_claimed {
            self.remove(address);
        }
        is_claimed
    }

    fn insert(&mut self, address: SocketAddr, candidate: Candidate) {
        match candidate.state {
            State::Ready => drop(self.ready.insert(rank(address, &candidate))),
            State::Waiting(at) => drop(self.waiting.insert((at, address))),
            State::Redundant => drop(self.redundant.insert(address)),
            State::Busy => {}
        }
        self.idle_user_count += usize::from(candidate.is_idle_user());
        self.table.insert(address, candidate);
    }

    /// Removes a candidate from all indexes but the table.
    fn unlist(&mut self, address: SocketAddr, candidate: &Candidate) {
        match candidate.state {
            State::Ready => drop(self.ready.remove(&rank(address, candidate))),
            State::Waiting(at) => drop(self.waiting.remove(&(at, address))),
            State::Redundant => drop(self.redundant.remove(&address)),
            State::Busy => {}
        }
        self.idle_user_count -= usize::from(candidate.is_idle_user());
    }

    fn change(&mut self, address: SocketAddr, change: impl FnOnce(&mut Candidate)) {
        if let Some(mut candidate) = self.table.remove(&address) {
            self.unlist(address, &candidate);
            change(&mut candidate);
            self.insert(address, candidate);
        }
    }

    /// Returns when the next address may be dialed; `now` if one may be dialed at once.
    #[must_use]
    pub fn next_ready(&self, now: Timestamp) -> Option<Timestamp> {
        match self.ready.is_empty() {
            false => Some(now),
            true => self.waiting.first().map(|(at, _)| *at),
        }
    }

    /// Returns all known addresses.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.table.keys().copied()
    }

    /// Returns at most `max` addresses worth saving: connected ones first, then those with the fewest failures, and at
    /// last those of no use to a complete torrent.
    #[must_use]
    pub fn best(&self, max: usize) -> Vec<SocketAddr> {
        let mut all: Vec<_> = self.table.iter().collect();
        all.sort_by_key(|(address, candidate)| {
            let (is_idle, is_redundant) = (candidate.state != State::Busy, candidate.state == State::Redundant);
            (is_redundant, candidate.failures, is_idle, rank(**address, candidate))
        });
        all.into_iter().take(max).map(|(address, _)| *address).collect()
    }

    /// Number of addresses known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no address is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Number of addresses that may be dialed now or later.
    #[must_use]
    pub fn idle_count(&self) -> usize {
        self.ready.len() + self.waiting.len()
    }

    /// Number of user-named addresses that are neither being dialed nor connected.
    #[must_use]
    pub fn idle_user_count(&self) -> usize {
        self.idle_user_count
    }

    /// Forgets an address of no use to a complete torrent, or else the failed address with the longest wait; for a user
    /// also an address that has not failed. False if there is none.
    fn displace(&mut self, by: CandidateSource) -> bool {
        let candidate = |address: &SocketAddr| self.table.get(address);
        let is_strange = |address: &SocketAddr| candidate(address).is_some_and(|c| !c.is_user_named());
        let has_failed = |address: &SocketAddr| candidate(address).is_some_and(|c| c.failures > 0);
        let mut waiting = self.waiting.iter().rev().map(|(_, address)| address);
        let mut worst = self.redundant.iter().find(|address| is_strange(address));
        worst = worst.or_else(|| waiting.find(|address| is_strange(address) && has_failed(address)));
        if worst.is_none() && by == CandidateSource::USER {
            let ready = self.ready.iter().rev().map(|(.., address)| address);
            let waiting = self.waiting.iter().rev().map(|(_, address)| address);
            worst = ready.chain(waiting).find(|address| is_strange(address));
        }
        let worst = worst.copied();
        worst.into_iter().for_each(|address| self.remove(address));
        worst.is_some()
    }
}

impl Candidate {
    fn is_user_named(&self) -> bool {
        self.sources.contains(CandidateSource::USER)
    }

    fn is_idle_user(&self) -> bool {
        self.is_user_named() && matches!(self.state, State::Ready | State::Waiting(_))
    }
}

fn rank(address: SocketAddr, candidate: &Candidate) -> Rank {
    (
        Reverse(candidate.is_user_named()),
        candidate.failures,
        Reverse(candidate.priority),
        address,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 6881))
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn retry(is_failure: bool) -> Retry {
        Retry {
            is_failure,
            backoff: Duration::from_secs(10),
            max_backoff: Duration::from_secs(25),
            max_user_backoff: Duration::from_secs(15),
            max_failures: 4,
        }
    }

    fn candidates(priorities: &[u32]) -> Candidates {
        let mut candidates = Candidates::default();
        for (last, priority) in (1..).zip(priorities) {
            assert!(candidates.add(address(last), CandidateSource::TRACKER, *priority, 10));
        }
        candidates
    }

    #[test]
    fn a_redundant_address_waits_without_a_failure_until_it_is_recalled() {
        let mut candidates = candidates(&[5, 9]);
        let taken = candidates.take_best(at(0)).unwrap();
        candidates.set_redundant(taken);
        candidates.set_redundant(address(1));
        assert_eq!(
            candidates.take_best(at(999)),
            Some(address(1)),
            "an idle address stays ready"
        );
        assert!(!candidates.add(taken, CandidateSource::TRACKER, 9, 10), "known");
        assert_eq!(candidates.next_ready(at(999)), None);
        assert_eq!((candidates.len(), candidates.idle_count()), (2, 0));
        assert_eq!(candidates.best(9), [address(1), taken]);
        candidates.recall_redundant();
        assert_eq!(candidates.take_best(at(0)), Some(taken));
        // The first failure waits the shortest time.
        candidates.release(taken, at(0), retry(true));
        assert_eq!(candidates.next_ready(at(0)), Some(at(10)));
    }

    #[test]
    fn a_redundant_address_makes_room_unless_a_user_named_it() {
        let mut candidates = candidates(&[5, 9]);
        let taken = candidates.take_best(at(0)).unwrap();
        candidates.set_redundant(taken);
        assert!(candidates.add(address(3), CandidateSource::TRACKER, 1, 2));
        assert_eq!(candidates.get(taken), None);
        assert!(candidates.add(address(4), CandidateSource::USER, 1, 3));
        assert_eq!(candidates.take_best(at(0)), Some(address(4)));
        candidates.set_redundant(address(4));
        assert_eq!(candidates.idle_user_count(), 0, "it keeps no slot");
        assert!(!candidates.add(address(5), CandidateSource::TRACKER, 1, 3));
    }

    fn set(sources: &[CandidateSource]) -> SourceSet {
        sources.iter().copied().collect()
    }

    /// BEP 27: an address that a tracker reports too stays.
    #[test]
    fn an_address_stays_if_one_of_its_sources_is_allowed() {
        use CandidateSource as Source;
        let mut candidates = Candidates::default();
        for (last, sources) in [
            (1, &[Source::DHT, Source::TRACKER][..]),
            (2, &[Source::USER, Source::PEER_EXCHANGE]),
            (3, &[Source::DHT, Source::INCOMING]),
            (4, &[Source::INCOMING]),
            (5, &[Source::MAGNET]),
        ] {
            for source in sources {
                candidates.add(address(last), *source, 0, 10);
            }
            assert_eq!(candidates.get(address(last)).unwrap().0, set(sources));
        }
        let forgotten = candidates.retain_sources(CandidateSources::default().serving(true));
        assert_eq!(forgotten, [address(3), address(5)].into());
        assert_eq!(candidates.get(address(1)).unwrap().0, set(&[Source::TRACKER]));
        assert!(candidates.is_user_named(address(2)) && candidates.len() == 3);
        assert_eq!(candidates.retain_sources(SourceSet::default()).len(), 3);
    }

    #[test]
    fn sources_are_counted_with_what_became_of_their_addresses() {
        use CandidateSource as Source;
        let mut candidates = candidates(&[1, 2]);
        candidates.add(address(2), Source::DHT, 2, 10);
        candidates.add(address(2), Source::DHT, 2, 10);
        let taken = candidates.take_best(at(0)).unwrap();
        assert_eq!(taken, address(2));
        candidates.forgive(taken);
        candidates.release(taken, at(0), retry(false));
        candidates.add(address(2), Source::PEER_EXCHANGE, 2, 10);
        candidates.add(address(7), Source::PEER_EXCHANGE, 2, 2);
        candidates.take_best(at(100));
        candidates.forgive(taken);
        let counts = |found, refused, connected| SourceCounts {
            found,
            refused,
            connected,
        };
        let expected = [
            (Source::TRACKER, counts(2, 0, 1)),
            (Source::PEER_EXCHANGE, counts(1, 1, 1)),
            (Source::DHT, counts(1, 0, 1)),
        ];
        assert!(candidates.counts().eq(expected));
    }

    #[test]
    fn addresses_with_the_same_ip_are_counted_up_to_a_limit() {
        let mut candidates = candidates(&[1, 2]);
        for port in [1, 2, u16::MAX] {
            candidates.add(SocketAddr::from(([10, 0, 0, 1], port)), CandidateSource::DHT, 0, 10);
        }
        assert_eq!(candidates.count_of_ip([10, 0, 0, 1].into(), 9), 4);
        assert_eq!(candidates.count_of_ip([10, 0, 0, 1].into(), 3), 3);
        assert_eq!(candidates.count_of_ip([10, 0, 0, 3].into(), 9), 0);
    }

    #[test]
    fn the_highest_priority_is_dialed_first_and_once() {
        let mut candidates = candidates(&[5, 9, 7]);
        assert!(!candidates.add(address(1), CandidateSource::TRACKER, 99, 10), "known");
        let order: Vec<_> = std::iter::from_fn(|| candidates.take_best(at(0))).collect();
        assert_eq!(order, [address(2), address(3), address(1)]);
        assert_eq!(candidates.next_ready(at(0)), None);
    }

    #[test]
    fn failures_wait_longer_and_longer_and_are_forgotten() {
        let mut candidates = candidates(&[1]);
        let mut now = at(0);
        let mut waits = Vec::new();
        while let Some(address) = candidates.take_best(now) {
            candidates.release(address, now, retry(true));
            assert_eq!(candidates.take_best(now), None, "not at once");
            let Some(next) = candidates.next_ready(now) else { break };
            waits.push(next.since(now).as_secs());
            now = next;
        }
        assert_eq!(waits, [10, 20, 25]);
        assert!(candidates.is_empty());
    }

    #[test]
    fn success_resets_the_backoff() {
        let mut candidates = candidates(&[1]);
        let first = candidates.take_best(at(0)).unwrap();
        candidates.release(first, at(0), retry(true));
        candidates.take_best(at(10)).unwrap();
        candidates.forgive(first);
        candidates.release(first, at(20), retry(true));
        assert_eq!(candidates.next_ready(at(20)), Some(at(30)));
    }

    #[test]
    fn a_users_address_is_never_forgotten() {
        let mut candidates = Candidates::default();
        candidates.add(address(1), CandidateSource::USER, 0, 10);
        for round in 0..20 {
            candidates.take_best(at(round * 100)).unwrap();
            candidates.release(address(1), at(round * 100), retry(true));
        }
        assert_eq!(candidates.len(), 1);
    }

    #[test]
    fn flags_of_several_sources_add_up() {
        let mut candidates = candidates(&[1]);
        let found = |flags| FoundPeer {
            address: address(1),
            flags,
        };
        candidates.take_best(at(0));
        candidates.add(found(CandidateFlags::SEED), CandidateSource::PEER_EXCHANGE, 1, 10);
        candidates.add(found(CandidateFlags::UTP), CandidateSource::DHT, 1, 10);
        let both = CandidateFlags::SEED | CandidateFlags::UTP;
        let sources = [
            CandidateSource::TRACKER,
            CandidateSource::PEER_EXCHANGE,
            CandidateSource::DHT,
        ];
        assert_eq!(candidates.get(address(1)), Some((set(&sources), both)));
        assert_eq!(candidates.get(address(2)), None);
    }

    #[test]
    fn the_table_is_bounded_and_prefers_the_unfailed() {
        let mut candidates = Candidates::default();
        assert!(candidates.add(address(1), CandidateSource::TRACKER, 1, 2));
        assert!(candidates.add(address(2), CandidateSource::TRACKER, 1, 2));
        assert!(!candidates.add(address(3), CandidateSource::TRACKER, 1, 2));
        let failed = candidates.take_best(at(0)).unwrap();
        candidates.release(failed, at(0), retry(true));
        assert!(candidates.add(address(3), CandidateSource::TRACKER, 1, 2));
        assert!(!candidates.iter().any(|address| address == failed));
    }

    #[test]
    fn undialable_addresses_are_not_taken() {
        let mut candidates = Candidates::default();
        for bad in ["1.2.3.4:0", "0.0.0.0:1", "[::]:1", "224.0.0.1:5"] {
            assert!(
                !candidates.add(bad.parse::<SocketAddr>().unwrap(), CandidateSource::TRACKER, 1, 10),
                "{bad}"
            );
        }
    }

    #[test]
    fn an_address_that_connected_to_us_is_not_dialed() {
        let mut candidates = candidates(&[1, 2]);
        assert!(candidates.claim(address(2), 10));
        assert!(!candidates.claim(address(2), 10), "it is claimed already");
        assert_eq!(candidates.take_best(at(0)), Some(address(1)));
        assert!(!candidates.claim(address(1), 10), "it is being dialed");
        candidates.release(address(2), at(0), retry(false));
        assert_eq!(candidates.next_ready(at(0)), Some(at(10)));
        assert!(!candidates.remove_claimed(address(2)), "a tracker knows of it");
        candidates.remove(address(2));
        assert_eq!(candidates.next_ready(at(0)), None);
        assert!(candidates.claim(address(3), 10) && candidates.remove_claimed(address(3)));
    }

    /// A peer behind the same gateway as another one can name the other one's port.
    #[test]
    fn a_user_named_address_cannot_be_claimed() {
        let mut candidates = candidates(&[9]);
        candidates.add(address(5), CandidateSource::USER, 0, 10);
        assert!(!candidates.claim(address(5), 10));
        assert_eq!(candidates.take_best(at(0)), Some(address(5)));
    }

    #[test]
    fn an_address_that_a_user_names_comes_first_and_is_tried_again_soon() {
        let mut candidates = candidates(&[7, 9]);
        candidates.take_best(at(0)).unwrap();
        candidates.release(address(2), at(0), retry(true));
        assert!(!candidates.is_next_user_named());
        candidates.add(address(2), CandidateSource::USER, 0, 10);
        assert!(candidates.is_next_user_named(), "however often it has failed");
        assert_eq!((candidates.idle_user_count(), candidates.idle_count()), (1, 2));
        assert_eq!(candidates.take_best(at(0)), Some(address(2)));
        assert_eq!(candidates.idle_user_count(), 0);
        for _ in 0..9 {
            candidates.release(address(2), at(0), retry(true));
            candidates.occupy(address(2));
        }
        candidates.release(address(2), at(0), retry(true));
        candidates.wake(at(14));
        assert!(!candidates.is_next_user_named());
        candidates.wake(at(15));
        assert!(candidates.is_next_user_named());
    }

    #[test]
    fn a_full_table_has_room_for_what_a_user_names() {
        let mut candidates = Candidates::default();
        for last in 1..=5 {
            candidates.add(address(last), CandidateSource::TRACKER, 1, 5);
        }
        assert!(candidates.add(address(9), CandidateSource::USER, 0, 5) && candidates.len() == 5);
        assert_eq!(candidates.take_best(at(0)), Some(address(9)));
    }
}
