//! Queries that wait for their answers, and how long they may.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;

use crate::dht::id::NodeId;
use crate::time::Timestamp;

/// Time after which a query counts as lost. Later answers are ignored.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds on the time after which a query counts as slow, and another node is asked meanwhile.
const MIN_SLOW: Duration = Duration::from_millis(200);
const MAX_SLOW: Duration = Duration::from_secs(2);

/// The name of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SearchId(pub(super) u64);

/// The reason for a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To find out whether the node is alive.
    Ping,
    /// To have the host prove its address before it is answered.
    Proof,
    /// A step of a search.
    Step(SearchId),
    /// To store what a search is for.
    Store(SearchId),
}

/// A query without an answer yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingQuery {
    pub(super) to: SocketAddr,
    /// The id by which the node is known.
    pub(super) id: Option<NodeId>,
    pub(super) purpose: Purpose,
    pub(super) sent: Timestamp,
    /// The beginning of the round trip that ends with the answer: a host may ask us for proof of our address first.
    pub(super) begun: Timestamp,
    deadline: Timestamp,
    is_slow: bool,
}

/// The fate of a query without an answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Overdue {
    /// The answer takes longer than usual.
    Slow(PendingQuery),
    /// The query or its answer is lost.
    Lost(PendingQuery),
}

/// Round-trip times of a family's nodes, smoothed as TCP does (RFC 6298).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct RoundTrips {
    smoothed: Option<Duration>,
    deviation: Duration,
}

impl RoundTrips {
    pub(super) fn record(&mut self, sample: Duration) {
        let Some(smoothed) = self.smoothed else {
            self.smoothed = Some(sample);
            self.deviation = sample / 2;
            return;
        };
        self.deviation = (self.deviation * 3 + smoothed.abs_diff(sample)) / 4;
        self.smoothed = Some((smoothed * 7 + sample) / 8);
    }

    /// The time after which a query is slow.
    fn slow_after(self) -> Duration {
        let Some(smoothed) = self.smoothed else {
            return MAX_SLOW / 2;
        };
        (smoothed + self.deviation * 4).clamp(MIN_SLOW, MAX_SLOW)
    }
}

/// Queries by transaction id, and their deadlines.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending {
    queries: BTreeMap<u32, PendingQuery>,
    deadlines: BTreeSet<(Timestamp, u32)>,
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.queries.len()
    }

    pub(super) fn deadline(&self) -> Timestamp {
        self.deadlines
            .first()
            .map_or(Timestamp::NEVER, |(deadline, _)| *deadline)
    }

    /// Adds a query and returns its transaction id: 32 random bits, which a host that does not see the query cannot
    /// guess.
    pub(super) fn add(
        &mut self,
        to: SocketAddr,
        id: Option<NodeId>,
        purpose: Purpose,
        round_trips: RoundTrips,
        now: Timestamp,
        rng: &mut impl Rng,
    ) -> u32 {
        let transaction = loop {
            let transaction = rng.next_u32();
            if !self.queries.contains_key(&transaction) {
                break transaction;
            }
        };
        let query = PendingQuery {
            to,
            id,
            purpose,
            sent: now,
            begun: now,
            deadline: now + round_trips.slow_after(),
            is_slow: false,
        };
        self.deadlines.insert((query.deadline, transaction));
        self.queries.insert(transaction, query);
        transaction
    }

    /// Takes the query that a message from `from` answers.
    pub(super) fn take(&mut self, transaction: &[u8], from: SocketAddr) -> Option<PendingQuery> {
        let transaction = u32::from_be_bytes(transaction.try_into().ok()?);
        let query = self
            .queries
            .get(&transaction)
            .filter(|query| query.to == from)
            .copied()?;
        self.queries.remove(&transaction);
        self.deadlines.remove(&(query.deadline, transaction));
        Some(query)
    }

    /// Takes the next query that is slow or lost. A slow one stays until it is lost.
    pub(super) fn next_overdue(&mut self, now: Timestamp) -> Option<Overdue> {
        let (deadline, transaction) = *self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.deadlines.pop_first();
        let query = self.queries.get_mut(&transaction)?;
        if query.is_slow {
            return self.queries.remove(&transaction).map(Overdue::Lost);
        }
        query.is_slow = true;
        query.deadline = (query.sent + TIMEOUT).max(now);
        self.deadlines.insert((query.deadline, transaction));
        Some(Overdue::Slow(*query))
    }

    /// The number of pings without an answer yet.
    pub(super) fn ping_count(&self) -> usize {
        let queries = self.queries.values();
        queries.filter(|query| query.purpose == Purpose::Ping).count()
    }

    /// Gives a query to this address another round trip. Returns its purpose.
    pub(super) fn delay(&mut self, address: SocketAddr, round_trips: RoundTrips, now: Timestamp) -> Option<Purpose> {
        let mut queries = self.queries.iter_mut();
        let (transaction, query) = queries.find(|(_, query)| query.to == address && query.begun == query.sent)?;
        query.begun = now;
        if !query.is_slow {
            self.deadlines.remove(&(query.deadline, *transaction));
            query.deadline = now + round_trips.slow_after();
            self.deadlines.insert((query.deadline, *transaction));
        }
        Some(query.purpose)
    }

    /// Whether a query to this address waits for its answer.
    pub(super) fn is_asking(&self, address: SocketAddr) -> bool {
        self.queries.values().any(|query| query.to == address)
    }
}
