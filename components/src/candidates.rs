//! Addresses where a torrent's peers may be.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::time::Timestamp;

/// Who told us of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CandidateSource {
    /// The user.
    User,
    /// A tracker.
    Tracker,
    /// An earlier session.
    Session,
    /// The peer itself: it connected to us and named the port it listens on.
    Itself,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// May be dialed now.
    Ready,
    /// May be dialed at this time.
    Waiting(Timestamp),
    /// Being dialed or connected.
    Busy,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    source: CandidateSource,
    priority: u32,
    failures: u32,
    state: State,
}

/// What decides who is dialed first: few failures, then the canonical priority (BEP 40).
type Rank = (u32, Reverse<u32>, SocketAddr);

/// A compact table of addresses, each once, ready to give the best of them.
#[derive(Component, Debug, Default)]
pub struct Candidates {
    table: BTreeMap<SocketAddr, Candidate>,
    ready: BTreeSet<Rank>,
    waiting: BTreeSet<(Timestamp, SocketAddr)>,
}

/// How an attempt or a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Whether the address is to blame.
    pub is_failure: bool,
    /// First wait; doubles with each failure in a row.
    pub backoff: Duration,
    /// Longest wait.
    pub max_backoff: Duration,
    /// Failures in a row after which the address is forgotten.
    pub max_failures: u32,
}

impl Candidates {
    /// Adds an address of canonical priority `priority` (BEP 40), keeping at most `max` addresses: a new one
    /// displaces one that has failed, or is not taken. True if it is new.
    pub fn add(&mut self, address: SocketAddr, source: CandidateSource, priority: u32, max: usize) -> bool {
        if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
            return false;
        }
        if self.table.contains_key(&address) || (self.table.len() >= max && !self.displace()) {
            return false;
        }
        let candidate = Candidate {
            source,
            priority,
            failures: 0,
            state: State::Ready,
        };
        self.table.insert(address, candidate);
        self.ready.insert(rank(address, &candidate));
        true
    }

    /// Takes the best address that may be dialed at `now`; it is busy until [`Candidates::release`].
    pub fn take_best(&mut self, now: Timestamp) -> Option<SocketAddr> {
        while let Some(&(at, address)) = self.waiting.first().filter(|(at, _)| *at <= now) {
            self.waiting.remove(&(at, address));
            if let Some(candidate) = self.table.get_mut(&address) {
                candidate.state = State::Ready;
                self.ready.insert(rank(address, candidate));
            }
        }
        let (.., address) = self.ready.pop_first()?;
        self.table.get_mut(&address)?.state = State::Busy;
        Some(address)
    }

    /// Notes that `address` is connected by other means than [`Candidates::take_best`].
    pub fn occupy(&mut self, address: SocketAddr) {
        if let Some(candidate) = self.table.get_mut(&address) {
            match candidate.state {
                State::Ready => drop(self.ready.remove(&rank(address, candidate))),
                State::Waiting(at) => drop(self.waiting.remove(&(at, address))),
                State::Busy => {}
            }
            candidate.state = State::Busy;
        }
    }

    /// Notes that a connection to `address` works: earlier failures are forgiven.
    pub fn forgive(&mut self, address: SocketAddr) {
        if let Some(candidate) = self.table.get_mut(&address).filter(|c| c.state == State::Busy) {
            candidate.failures = 0;
        }
    }

    /// Gives an address back after its attempt or connection ended.
    pub fn release(&mut self, address: SocketAddr, now: Timestamp, retry: Retry) {
        let Some(candidate) = self.table.get_mut(&address).filter(|c| c.state == State::Busy) else {
            return;
        };
        candidate.failures += u32::from(retry.is_failure);
        // A user's word stands: such an address is never forgotten, only tried less often.
        if candidate.failures >= retry.max_failures && candidate.source != CandidateSource::User {
            self.table.remove(&address);
            return;
        }
        let doublings = candidate.failures.saturating_sub(1).min(16);
        let at = now + (retry.backoff * 2u32.pow(doublings)).min(retry.max_backoff);
        candidate.state = State::Waiting(at);
        self.waiting.insert((at, address));
    }

    /// Forgets an address.
    pub fn remove(&mut self, address: SocketAddr) {
        self.occupy(address);
        self.table.remove(&address);
    }

    /// When the next address may be dialed, `now` if one may at once.
    #[must_use]
    pub fn next_ready(&self, now: Timestamp) -> Option<Timestamp> {
        match self.ready.is_empty() {
            false => Some(now),
            true => self.waiting.first().map(|(at, _)| *at),
        }
    }

    /// Addresses known.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.table.keys().copied()
    }

    /// At most `max` addresses that are worth to be remembered: connected ones first, then those that failed least.
    #[must_use]
    pub fn best(&self, max: usize) -> Vec<SocketAddr> {
        let mut all: Vec<_> = self.table.iter().collect();
        all.sort_by_key(|(address, candidate)| {
            let is_idle = candidate.state != State::Busy;
            (candidate.failures, is_idle, rank(**address, candidate))
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

    /// Forgets the address that has failed and waits longest; false if there is none.
    fn displace(&mut self) -> bool {
        let failed = |address: &SocketAddr| self.table.get(address).is_some_and(|c| c.failures > 0);
        let worst = self.waiting.iter().rev().find(|(_, address)| failed(address)).copied();
        let Some((at, address)) = worst else {
            return false;
        };
        self.waiting.remove(&(at, address));
        self.table.remove(&address);
        true
    }
}

fn rank(address: SocketAddr, candidate: &Candidate) -> Rank {
    (candidate.failures, Reverse(candidate.priority), address)
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
            max_failures: 4,
        }
    }

    fn candidates(priorities: &[u32]) -> Candidates {
        let mut candidates = Candidates::default();
        for (last, priority) in (1..).zip(priorities) {
            assert!(candidates.add(address(last), CandidateSource::Tracker, *priority, 10));
        }
        candidates
    }

    #[test]
    fn the_highest_priority_is_dialed_first_and_once() {
        let mut candidates = candidates(&[5, 9, 7]);
        assert!(!candidates.add(address(1), CandidateSource::User, 99, 10), "known");
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
        candidates.add(address(1), CandidateSource::User, 0, 10);
        for round in 0..20 {
            candidates.take_best(at(round * 100)).unwrap();
            candidates.release(address(1), at(round * 100), retry(true));
        }
        assert_eq!(candidates.len(), 1);
    }

    #[test]
    fn the_table_is_bounded_and_prefers_the_unfailed() {
        let mut candidates = Candidates::default();
        assert!(candidates.add(address(1), CandidateSource::Tracker, 1, 2));
        assert!(candidates.add(address(2), CandidateSource::Tracker, 1, 2));
        assert!(!candidates.add(address(3), CandidateSource::Tracker, 1, 2));
        let failed = candidates.take_best(at(0)).unwrap();
        candidates.release(failed, at(0), retry(true));
        assert!(candidates.add(address(3), CandidateSource::Tracker, 1, 2));
        assert!(!candidates.iter().any(|address| address == failed));
    }

    #[test]
    fn what_cannot_be_dialed_is_not_taken() {
        let mut candidates = Candidates::default();
        for bad in ["1.2.3.4:0", "0.0.0.0:1", "[::]:1", "224.0.0.1:5"] {
            assert!(
                !candidates.add(bad.parse().unwrap(), CandidateSource::Tracker, 1, 10),
                "{bad}"
            );
        }
    }

    #[test]
    fn an_address_that_connected_to_us_is_not_dialed() {
        let mut candidates = candidates(&[1, 2]);
        candidates.occupy(address(2));
        assert_eq!(candidates.take_best(at(0)), Some(address(1)));
        candidates.release(address(2), at(0), retry(false));
        assert_eq!(candidates.next_ready(at(0)), Some(at(10)));
        candidates.remove(address(2));
        assert_eq!(candidates.next_ready(at(0)), None);
    }
}
