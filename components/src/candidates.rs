//! Addresses of potential peers of a torrent.

mod informants;
mod order;
mod sources;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bevy_ecs::prelude::*;
use bitflags::bitflags;
use ecs_torrent_protocol::prefix::site;
use ecs_torrent_protocol::time::Timestamp;

use self::informants::Informants;
use self::order::{DialPriority, Facts, Rank};
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
    /// Address of the host that named the peers: the tracker or the peer that sent them. It may not name peers in a
    /// more private network than its own. `None` stands for a host in the Internet.
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
    /// The peer is connected at this other address.
    Elsewhere(SocketAddr),
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    sources: SourceSet,
    /// A peer at this address has completed its handshake.
    has_connected: bool,
    /// The host that named the address, until a peer at the address has completed its handshake.
    informant: Option<IpAddr>,
    /// The time at which the address was last named.
    listed_at: Timestamp,
    /// Nearly all other addresses of the informant had failed when the address was listed.
    is_doubtful: bool,
    flags: CandidateFlags,
    priority: u32,
    failures: u32,
    state: State,
}

/// Maximum number of failures of an address at which no peer has answered and which only other peers or DHT nodes have
/// named. Then it is forgotten, and makes room for another.
const MAX_UNCONFIRMED_FAILURES: u32 = 3;

/// Time for which such an address keeps its place in a full table after it was last named.
const UNCONFIRMED_TIME: Duration = Duration::from_secs(600);

/// Maximum number of this engine's own addresses that a torrent remembers: those of several interfaces and gateways.
const MAX_OWN: usize = 16;

/// A compact table of unique addresses, ordered by dial preference.
#[derive(Component, Debug, Default)]
pub struct Candidates {
    table: BTreeMap<SocketAddr, Candidate>,
    /// Number of user-named addresses in the table that are ready or wait.
    idle_user_count: usize,
    ready: BTreeSet<Rank>,
    waiting: BTreeSet<(Timestamp, SocketAddr)>,
    redundant: BTreeSet<SocketAddr>,
    /// Further addresses of connected peers, and where these are connected.
    elsewhere: BTreeMap<SocketAddr, SocketAddr>,
    counts: CountsBySource,
    informants: Informants,
    /// Addresses that only other peers or DHT nodes have named and at which no peer has answered, by the time at which
    /// they were last named.
    unconfirmed: BTreeSet<(Timestamp, SocketAddr)>,
    /// Addresses at which this engine itself answered.
    own: BTreeSet<SocketAddr>,
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
    /// Adds an address of canonical priority `priority` (BEP 40), keeping at most `max` addresses. In a full table, a
    /// new address displaces a redundant or failed one, or is not added. True if it is new and was added. A known
    /// address gets the flags and the source that are new.
    ///
    /// User-named addresses have precedence: a new one displaces any idle address that no user named, and a known one
    /// is ready to dial at once, however often it has failed.
    pub fn add(&mut self, peer: impl Into<FoundPeer>, source: CandidateSource, priority: u32, max: usize) -> bool {
        self.add_from(peer, source, None, Timestamp::NEVER, priority, max)
    }

    /// Adds an address like [`Candidates::add`], named by the host `informant`. If the host is a peer or a DHT node, at
    /// most 50 of its addresses are kept at which no peer has answered yet, and they are dialed last if its other
    /// addresses have failed. In a full table, a new address also displaces one that only peers and DHT nodes have
    /// named, the last time more than ten minutes before `now`, and at which no peer has answered.
    pub fn add_from(
        &mut self,
        peer: impl Into<FoundPeer>,
        source: CandidateSource,
        informant: Option<IpAddr>,
        now: Timestamp,
        priority: u32,
        max: usize,
    ) -> bool {
        let FoundPeer { address, flags } = peer.into();
        let is_own = source != CandidateSource::USER && self.own.contains(&address);
        if is_own || address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
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
                candidate.listed_at = now;
                if source == CandidateSource::USER {
                    candidate.failures = 0;
                    if candidate.state != State::Busy {
                        candidate.state = State::Ready;
                    }
                }
            });
            return false;
        }
        let informant = informant.filter(|_| source.is_unconfirmed()).map(site);
        let has_room = informant.is_none_or(|informant| self.informants.has_room(informant));
        if !has_room || (self.table.len() >= max && !self.displace(source, now)) {
            self.count_refused(source, 1);
            return false;
        }
        self.counts.of(source).found += 1;
        if let Some(informant) = informant {
            self.informants.add(informant);
        }
        let candidate = Candidate {
            sources: source.into(),
            has_connected: false,
            informant,
            listed_at: now,
            is_doubtful: false,
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

    /// Returns the counts of each source that has reported any address.
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

    /// Returns whether a user named the best address of those known to be ready. [`Candidates::wake`] makes others
    /// ready.
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

    /// Whether an address is ready that has not failed and that no user named.
    #[must_use]
    pub fn has_untried_ready(&self) -> bool {
        let none = SocketAddr::from(([0; 4], 0));
        let first: Rank = (Reverse(false), 0, DialPriority::Proven, Reverse(u32::MAX), none);
        let best = self.ready.range(first..).next();
        best.is_some_and(|(_, failures, ..)| *failures == 0)
    }

    /// Number of consecutive failures of an address.
    #[must_use]
    pub fn failures_of(&self, address: SocketAddr) -> u32 {
        self.table.get(&address).map_or(0, |candidate| candidate.failures)
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
        self.unconfirmed.remove(&(candidate.listed_at, address));
        if let Some(informant) = candidate.informant.take() {
            self.informants.confirm(informant);
        }
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
        let max_failures = match candidate.is_unconfirmed() {
            true => retry.max_failures.min(MAX_UNCONFIRMED_FAILURES),
            false => retry.max_failures,
        };
        if let (Some(informant), true) = (candidate.informant, retry.is_failure) {
            self.informants.blame(informant);
        }
        // User-named addresses are never forgotten.
        if failures >= max_failures && !is_user_named {
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
        self.change_others(address, State::Ready);
    }

    /// Keeps an address from being dialed while its peer is connected at another one. False if that one is not known as
    /// the address of a connection.
    pub fn set_elsewhere(&mut self, address: SocketAddr, connected: SocketAddr) -> bool {
        let is_busy = |address: &SocketAddr| self.table.get(address).is_some_and(|c| c.state == State::Busy);
        let is_possible = address != connected && is_busy(&address) && is_busy(&connected);
        if is_possible {
            self.change(address, |candidate| candidate.state = State::Elsewhere(connected));
        }
        is_possible
    }

    /// Changes the state of the other addresses of a peer whose connection at `address` has ended.
    fn change_others(&mut self, address: SocketAddr, state: State) {
        let others = self.elsewhere.iter().filter(|(_, connected)| **connected == address);
        let others: Vec<SocketAddr> = others.map(|(other, _)| *other).collect();
        for other in others {
            self.change(other, |candidate| candidate.state = state);
        }
    }

    /// Releases an address whose peer and torrent are both complete. It is not dialed until
    /// [`Candidates::recall_redundant`]; nothing about it has failed.
    pub fn set_redundant(&mut self, address: SocketAddr) {
        if self.table.get(&address).is_some_and(|c| c.state == State::Busy) {
            self.change(address, |candidate| candidate.state = State::Redundant);
            self.change_others(address, State::Redundant);
        }
    }

    /// Keeps a ready address from being dialed until [`Candidates::recall_redundant`]: the torrent is complete, and so
    /// is the peer, as its source claims.
    pub fn defer(&mut self, address: SocketAddr) {
        let candidate = self.table.get(&address);
        if candidate.is_some_and(|c| c.state == State::Ready && !c.is_user_named()) {
            self.change(address, |candidate| candidate.state = State::Redundant);
        }
    }

    /// Forgets an address at which this engine itself answered, and refuses it from then on, unless a user names it.
    pub fn set_own(&mut self, address: SocketAddr) {
        self.remove(address);
        if self.own.len() < MAX_OWN {
            self.own.insert(address);
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
            if let Some(informant) = candidate.informant {
                self.informants.forget(informant);
            }
            self.change_others(address, State::Ready);
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

    fn insert(&mut self, address: SocketAddr, mut candidate: Candidate) {
        candidate.is_doubtful = candidate
            .informant
            .is_some_and(|host| self.informants.is_doubtful(host));
        match candidate.state {
            State::Ready => drop(self.ready.insert(candidate.rank(address))),
            State::Waiting(at) => drop(self.waiting.insert((at, address))),
            State::Redundant => drop(self.redundant.insert(address)),
            State::Elsewhere(connected) => drop(self.elsewhere.insert(address, connected)),
            State::Busy => {}
        }
        self.idle_user_count += usize::from(candidate.is_idle_user());
        if candidate.is_unconfirmed() {
            self.unconfirmed.insert((candidate.listed_at, address));
        }
        self.table.insert(address, candidate);
    }

    /// Removes a candidate from all indexes but the table.
    fn unlist(&mut self, address: SocketAddr, candidate: &Candidate) {
        match candidate.state {
            State::Ready => drop(self.ready.remove(&candidate.rank(address))),
            State::Waiting(at) => drop(self.waiting.remove(&(at, address))),
            State::Redundant => drop(self.redundant.remove(&address)),
            State::Elsewhere(_) => drop(self.elsewhere.remove(&address)),
            State::Busy => {}
        }
        self.idle_user_count -= usize::from(candidate.is_idle_user());
        self.unconfirmed.remove(&(candidate.listed_at, address));
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

    /// Returns at most `max` addresses worth saving: connected ones first, then those with the fewest failures, and
    /// last those of complete peers.
    #[must_use]
    pub fn best(&self, max: usize) -> Vec<SocketAddr> {
        let mut all: Vec<_> = self.table.iter().collect();
        all.sort_by_key(|(address, candidate)| {
            let (is_idle, is_redundant) = (candidate.state != State::Busy, candidate.state == State::Redundant);
            (is_redundant, candidate.failures, is_idle, candidate.rank(**address))
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

    /// Forgets the address of a complete peer, or else the failed address with the longest wait, or else the last one
    /// to dial if it is doubtful, or else one that nobody has confirmed or named for long. A user-named address may
    /// displace any other. False if there is none.
    fn displace(&mut self, by: CandidateSource, now: Timestamp) -> bool {
        let candidate = |address: &SocketAddr| self.table.get(address);
        let is_strange = |address: &SocketAddr| candidate(address).is_some_and(|c| !c.is_user_named());
        let has_failed = |address: &SocketAddr| candidate(address).is_some_and(|c| c.failures > 0);
        let mut waiting = self.waiting.iter().rev().map(|(_, address)| address);
        let mut worst = self.redundant.iter().find(|address| is_strange(address));
        worst = worst.or_else(|| waiting.find(|address| is_strange(address) && has_failed(address)));
        // The last of the ready addresses, if it is unlikely to answer.
        let last = self.ready.last().filter(|(Reverse(is_user), ..)| !is_user);
        let last = last.filter(|(_, failures, priority, ..)| *failures > 0 || *priority == DialPriority::Doubtful);
        worst = worst.or_else(|| last.map(|(.., address)| address));
        // Few addresses are being dialed at a time.
        let is_busy = |address: &SocketAddr| candidate(address).is_some_and(|c| c.state == State::Busy);
        let mut old = self
            .unconfirmed
            .iter()
            .take_while(|(listed_at, _)| *listed_at + UNCONFIRMED_TIME <= now);
        worst = worst.or_else(|| old.find(|(_, address)| !is_busy(address)).map(|(_, address)| address));
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
    fn rank(&self, address: SocketAddr) -> Rank {
        let facts = Facts {
            sources: self.sources,
            failures: self.failures,
            has_connected: self.has_connected,
            is_doubtful: self.is_doubtful,
            priority: self.priority,
        };
        order::rank(address, &facts)
    }

    /// Whether only other peers or DHT nodes report the address, and no peer has answered there.
    fn is_unconfirmed(&self) -> bool {
        !self.has_connected && self.sources.iter().all(CandidateSource::is_unconfirmed)
    }

    fn is_user_named(&self) -> bool {
        self.sources.contains(CandidateSource::USER)
    }

    fn is_idle_user(&self) -> bool {
        self.is_user_named() && matches!(self.state, State::Ready | State::Waiting(_))
    }
}
