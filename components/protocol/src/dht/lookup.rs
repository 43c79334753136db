//! An iterative lookup: asks nodes closer and closer to a target, until the closest ones have answered (BEP 5,
//! "Overview").

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use super::id::{Distance, NodeId};
use super::table::K;
use crate::prefix::{is_local, site, subnet};

/// Maximum number of nodes that a lookup remembers. The farthest ones beyond it are forgotten.
const MAX_CANDIDATES: usize = 100;

/// Maximum number of queries of a lookup. Honest networks need 20 to 50; a chain of invented nodes ends here.
const MAX_QUERIES: usize = 150;

/// How many nodes a lookup asks at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parallelism {
    /// Queries at the start of a lookup, and in flight at least while there are nodes to ask.
    pub alpha: usize,
    /// New queries per answer, while no more than `alpha * beta` are in flight.
    pub beta: usize,
}

/// A node that a lookup knows.
#[derive(Debug, Clone)]
struct Candidate {
    /// The id by which the node was listed; `None` for a bootstrap host.
    id: Option<NodeId>,
    /// `None` sorts last.
    distance: Option<Distance>,
    address: SocketAddr,
    state: State,
    /// The token of its answer.
    token: Option<Box<[u8]>>,
    /// The number of answers on the way to this node.
    hops: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fresh,
    /// In flight.
    Queried,
    /// In flight for so long that it no longer holds up the lookup.
    Slow,
    Answered,
    Failed,
}

/// A node that has answered a lookup and accepts something to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageNode {
    /// The node's id.
    pub id: NodeId,
    /// The node's address.
    pub address: SocketAddr,
    /// Its token.
    pub token: Box<[u8]>,
}

/// An iterative lookup in one address family.
#[derive(Debug, Clone)]
pub struct Lookup {
    target: NodeId,
    parallelism: Parallelism,
    /// Whether nodes whose id does not fit their address count as storage nodes (BEP 42).
    enforces_ids: bool,
    /// Closest first.
    candidates: Vec<Candidate>,
    /// Queries that may be sent now.
    allowance: usize,
    query_count: usize,
    reply_count: usize,
    hops: u32,
}

impl Lookup {
    /// Creates a lookup without nodes.
    #[must_use]
    pub fn new(target: NodeId, parallelism: Parallelism, enforces_ids: bool) -> Self {
        Self {
            target,
            parallelism,
            enforces_ids,
            candidates: Vec::new(),
            allowance: parallelism.alpha,
            query_count: 0,
            reply_count: 0,
            hops: 0,
        }
    }

    /// The target.
    #[must_use]
    pub fn target(&self) -> NodeId {
        self.target
    }

    /// The number of queries sent.
    #[must_use]
    pub fn query_count(&self) -> usize {
        self.query_count
    }

    /// The number of answers.
    #[must_use]
    pub fn reply_count(&self) -> usize {
        self.reply_count
    }

    /// The longest chain of answers, each of which listed the next node.
    #[must_use]
    pub fn hops(&self) -> u32 {
        self.hops
    }

    /// Adds a node to ask; without an id, it is asked when there is no other.
    pub fn add(&mut self, id: Option<NodeId>, address: SocketAddr) {
        self.insert(id, address, 0);
    }

    /// Returns the address of the next node to ask, and the id that it is known by. Call it until it returns `None`.
    /// `may_query` returns whether a node may be asked now; others are asked meanwhile.
    pub fn next_query(&mut self, may_query: impl FnMut(SocketAddr) -> bool) -> Option<(SocketAddr, Option<NodeId>)> {
        let in_flight = self.count(State::Queried);
        if in_flight == 0 {
            self.allowance = self.allowance.max(self.parallelism.alpha);
        }
        let max_in_flight = self.parallelism.alpha * self.parallelism.beta;
        if self.allowance == 0 || in_flight >= max_in_flight || self.query_count >= MAX_QUERIES {
            return None;
        }
        let next = self.next_fresh(may_query)?;
        self.allowance -= 1;
        self.query_count += 1;
        let candidate = &mut self.candidates[next];
        candidate.state = State::Queried;
        Some((candidate.address, candidate.id))
    }

    /// Takes back a query that could not be sent.
    pub fn unsend(&mut self, address: SocketAddr) {
        if let Some(candidate) = self.outstanding(address) {
            candidate.state = State::Fresh;
            self.allowance += 1;
            self.query_count -= 1;
        }
    }

    /// Processes an answer. Returns false if its content must not be used: nobody asked, or the node has another id
    /// than the one it was listed by, which liars choose close to the target. A node that has restarted or moved has
    /// another id too; it is believed if the id is bound to its address.
    pub fn on_reply(&mut self, address: SocketAddr, id: NodeId, token: Option<&[u8]>) -> bool {
        let target = self.target;
        let Some(candidate) = self.outstanding(address) else {
            return false;
        };
        if candidate.id.is_some_and(|known| known != id) && !id.is_bound_to(address.ip()) {
            candidate.state = State::Failed;
            self.allowance += 1;
            return false;
        }
        candidate.state = State::Answered;
        candidate.token = token.map(Into::into);
        candidate.id = Some(id);
        candidate.distance = Some(id.distance(target));
        let hops = candidate.hops + 1;
        self.hops = self.hops.max(hops);
        self.reply_count += 1;
        self.allowance += self.parallelism.beta;
        self.candidates.sort_by_key(key);
        true
    }

    /// Adds the nodes that the node at `source` has listed.
    pub fn add_listed(&mut self, source: SocketAddr, nodes: impl Iterator<Item = (NodeId, SocketAddr)>) {
        let hops = self.candidates.iter().find(|candidate| candidate.address == source);
        let hops = hops.map_or(0, |candidate| candidate.hops) + 1;
        for (id, address) in nodes {
            self.insert(Some(id), address, hops);
        }
    }

    /// Processes a long silence of a node: another one may be asked meanwhile.
    pub fn on_slow(&mut self, address: SocketAddr) {
        if let Some(candidate) = self.outstanding(address) {
            candidate.state = State::Slow;
            self.allowance += 1;
        }
    }

    /// Allows another query while a node asks for proof of our address before it answers.
    pub fn on_delay(&mut self) {
        self.allowance += 1;
    }

    /// Processes a timeout or an error of a node.
    pub fn on_failure(&mut self, address: SocketAddr) {
        if let Some(candidate) = self.outstanding(address) {
            if candidate.state == State::Queried {
                candidate.state = State::Failed;
                self.allowance += 1;
            } else {
                candidate.state = State::Failed;
            }
        }
    }

    /// Whether the lookup is at its end: the closest nodes have answered, or there is nobody left to wait for.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let mut answered = 0;
        for candidate in &self.candidates {
            match candidate.state {
                State::Queried => return false,
                State::Fresh if self.query_count < MAX_QUERIES => return false,
                State::Answered if self.counts(candidate) => answered += 1,
                _ => {}
            }
            if answered == K {
                return true;
            }
        }
        self.count(State::Slow) == 0
    }

    /// Returns the closest nodes that have given a token: eight of those whose id fits their address (BEP 42,
    /// "Enforcement"), and those of the others that are among the eight closest.
    #[must_use]
    pub fn storage_nodes(&self) -> Vec<StorageNode> {
        let answered = self
            .candidates
            .iter()
            .filter(|candidate| candidate.state == State::Answered);
        let mut fitting = 0;
        let mut chosen = Vec::new();
        for (rank, candidate) in answered.enumerate() {
            let counts = self.counts(candidate);
            if fitting == K || !counts && rank >= K {
                continue;
            }
            if let (Some(id), Some(token)) = (candidate.id, &candidate.token) {
                fitting += usize::from(counts);
                chosen.push(StorageNode {
                    id,
                    address: candidate.address,
                    token: token.clone(),
                });
            }
        }
        chosen
    }

    /// Returns the closest nodes that have answered, closest first.
    pub fn closest_answered(&self) -> impl Iterator<Item = (NodeId, SocketAddr)> + '_ {
        let answered = self
            .candidates
            .iter()
            .filter(|candidate| candidate.state == State::Answered);
        answered
            .filter_map(|candidate| Some((candidate.id?, candidate.address)))
            .take(K)
    }

    /// Whether an answer of the candidate counts for the end of the lookup and as a storage node (BEP 42,
    /// "Enforcement").
    fn counts(&self, candidate: &Candidate) -> bool {
        !self.enforces_ids || candidate.id.is_some_and(|id| id.fits(candidate.address.ip()))
    }

    /// The closest fresh candidate that may be asked, unless the closest nodes have all answered, been asked, or have
    /// to wait.
    fn next_fresh(&self, mut may_query: impl FnMut(SocketAddr) -> bool) -> Option<usize> {
        let mut busy = 0;
        for (index, candidate) in self.candidates.iter().enumerate() {
            match candidate.state {
                State::Fresh if may_query(candidate.address) => return Some(index),
                State::Fresh => busy += 1,
                State::Queried | State::Answered if self.counts(candidate) => busy += 1,
                _ => {}
            }
            if busy == K {
                return None;
            }
        }
        None
    }

    fn insert(&mut self, id: Option<NodeId>, address: SocketAddr, hops: u32) {
        if address.port() == 0
            || self
                .candidates
                .iter()
                .any(|known| is_same_party(known.address, address))
        {
            return;
        }
        let candidate = Candidate {
            id,
            distance: id.map(|id| id.distance(self.target)),
            address,
            state: State::Fresh,
            token: None,
            hops,
        };
        let at = self.candidates.partition_point(|known| key(known) < key(&candidate));
        self.candidates.insert(at, candidate);
        let is_outstanding = |candidate: &Candidate| matches!(candidate.state, State::Queried | State::Slow);
        if self.candidates.len() > MAX_CANDIDATES
            && let Some(farthest) = self.candidates.iter().rposition(|candidate| !is_outstanding(candidate))
        {
            self.candidates.remove(farthest);
        }
    }

    fn outstanding(&mut self, address: SocketAddr) -> Option<&mut Candidate> {
        let mut candidates = self.candidates.iter_mut();
        let candidate = candidates.find(|candidate| candidate.address == address)?;
        matches!(candidate.state, State::Queried | State::Slow).then_some(candidate)
    }

    fn count(&self, state: State) -> usize {
        self.candidates
            .iter()
            .filter(|candidate| candidate.state == state)
            .count()
    }
}

/// The order of candidates: by distance, those without an id last.
fn key(candidate: &Candidate) -> (bool, Option<Distance>) {
    (candidate.distance.is_none(), candidate.distance)
}

/// Whether two addresses may belong to one party, which gets one query of a lookup: the same host, or the same /24 or
/// /48 of the internet. Otherwise a party could surround a target with many nodes.
fn is_same_party(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b): (IpAddr, IpAddr) = (one.ip(), other.ip());
    match (a.is_loopback(), is_local(a)) {
        (true, _) => one == other,
        (_, true) => site(a) == site(b),
        _ => subnet(a) == subnet(b),
    }
}
