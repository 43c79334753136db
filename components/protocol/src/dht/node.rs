//! A node of the DHT on IPv4 and IPv6 (BEP 5, BEP 32): answers queries, searches, and keeps its routing tables.
//!
//! The caller passes datagrams to [`Node::receive`], calls [`Node::advance`] at [`Node::deadline`], and then takes
//! what [`Node::next_datagram`] and [`Node::next_event`] return.

mod answering;
mod external;
mod maintaining;
mod pending;
mod proving;
mod saving;
mod searching;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::AddAssign;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use self::answering::AnswerBudgets;
use self::external::ExternalVotes;
use self::maintaining::Maintenance;
pub use self::pending::SearchId;
use self::pending::{Pending, Purpose, RoundTrips};
use self::proving::Proofs;
use self::searching::Search;
pub use self::searching::{Announce, Found, Goal};
use super::id::NodeId;
use super::items::ItemStore;
use super::krpc::{Body, Message, Method, Packet, Query, Want};
use super::limits::{AddressLimit, Budget};
use super::lookup::Parallelism;
use super::peers::{PeerLimits, PeerStore};
use super::table::{Table, TableStats};
use super::token::Tokens;
use crate::compact::Family;
use crate::prefix::is_unicast;
use crate::time::Timestamp;

/// `v` of our messages: the client's letters and version (BEP 5, BEP 20).
const VERSION: &[u8] = b"EC\0\x01";

/// Limits and behavior of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSettings {
    /// Whether the node takes part in each family: IPv4, IPv6.
    pub families: Want,
    /// How many nodes a lookup asks at a time.
    pub parallelism: Parallelism,
    /// Maximum number of searches at a time.
    pub max_searches: usize,
    /// Maximum number of queries without an answer yet.
    pub max_pending: usize,
    /// Limits on the stored peers, of each family.
    pub peers: PeerLimits,
    /// Maximum number of stored items.
    pub max_items: usize,
    /// Queries per second that a host may send.
    pub host_queries_per_s: u32,
    /// Queries that a host may send at once.
    pub host_burst: u32,
    /// Queries per second that are sent to a host.
    pub queries_to_host_per_s: u32,
    /// Maximum number of hosts whose queries are counted, in each direction.
    pub max_hosts: usize,
    /// Bytes per second of all answers: a quarter is for hosts that have proved their address, a sixteenth for answers
    /// to pings, and the rest for all.
    pub answer_bytes_per_s: u32,
    /// How many times as many bytes as its questions have a host gets that has not proved to receive datagrams at its
    /// address. If the answer is larger, the host is pinged first.
    pub max_amplification: usize,
    /// Bytes per second of our own queries.
    pub query_bytes_per_s: u32,
    /// Whether the node answers no queries (BEP 43).
    pub is_read_only: bool,
    /// Whether only nodes whose ids fit their addresses count as storage nodes (BEP 42).
    pub enforces_ids: bool,
    /// Number of the id that the node takes, of the eight of an external address, modulo 8; `None` for any (BEP 45).
    pub id_variant: Option<u8>,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            families: Want::BOTH,
            parallelism: Parallelism { alpha: 8, beta: 3 },
            max_searches: 32,
            max_pending: 1024,
            peers: PeerLimits {
                max_torrents: 2000,
                max_peers_per_torrent: 500,
                max_peers: 10_000,
            },
            max_items: 1000,
            host_queries_per_s: 5,
            host_burst: 50,
            queries_to_host_per_s: 4,
            max_hosts: 4096,
            answer_bytes_per_s: 100_000,
            max_amplification: 1,
            query_bytes_per_s: 50_000,
            is_read_only: false,
            enforces_ids: true,
            id_variant: None,
        }
    }
}

impl NodeSettings {
    /// Queries that a host gets at once: in any ten seconds 50 at the default rate. libtorrent ignores a host that
    /// sends more.
    fn host_query_burst(&self) -> u32 {
        (self.queries_to_host_per_s.saturating_mul(5) / 2).max(4)
    }
}

/// News from the node.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A search has found peers that it had not found before.
    Peers {
        /// The search.
        search: SearchId,
        /// The peers.
        peers: Vec<SocketAddr>,
        /// The node that named them.
        node: SocketAddr,
    },
    /// A peer has announced itself to us, and we store it.
    Announced {
        /// The torrent's info-hash.
        info_hash: NodeId,
        /// The peer.
        peer: SocketAddr,
    },
    /// A search has ended.
    Finished {
        /// The search.
        search: SearchId,
        /// The result.
        found: Box<Found>,
    },
    /// Other nodes agree on our address; our node id has changed if it did not fit (BEP 42).
    ExternalAddress(IpAddr),
    /// The table has become good enough to begin searches, for the first time or after a loss of the network.
    Ready(Family),
}

/// The part of a node in one address family. The families are separate networks (BEP 32).
#[derive(Debug, Clone)]
struct FamilyNode {
    is_enabled: bool,
    table: Table,
    peers: PeerStore,
    votes: ExternalVotes,
    round_trips: RoundTrips,
    maintenance: Maintenance,
}

impl FamilyNode {
    /// Whether there is anything to keep up: nodes, or hosts by which to find some. A node without contacts sleeps.
    fn needs_upkeep(&self) -> bool {
        self.has_contacts() || self.peers.peer_count() > 0
    }

    /// Whether there is anyone to ask.
    fn has_contacts(&self) -> bool {
        !self.table.is_empty() || self.maintenance.has_contacts()
    }
}

/// Numbers that describe a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeStats {
    /// Nodes of each family's routing table: IPv4, IPv6.
    pub tables: [TableStats; 2],
    /// Torrents with stored peers.
    pub stored_torrents: usize,
    /// Stored peers.
    pub stored_peers: usize,
    /// Stored items.
    pub stored_items: usize,
    /// Searches in progress, the node's own ones included.
    pub searches: usize,
    /// Queries without an answer yet.
    pub pending_queries: usize,
    /// Counts since the start.
    pub counters: Counters,
}

/// Counts since the start of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// Datagrams received.
    pub datagrams_received: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Queries received.
    pub queries_received: u64,
    /// Queries that were not answered because their host, or all together, exceeded a limit.
    pub queries_refused: u64,
    /// Queries sent.
    pub queries_sent: u64,
    /// Answers to our queries.
    pub replies_received: u64,
    /// Datagrams that were no message, or answers to no query of ours.
    pub invalid: u64,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.datagrams_received += other.datagrams_received;
        self.bytes_received += other.bytes_received;
        self.datagrams_sent += other.datagrams_sent;
        self.bytes_sent += other.bytes_sent;
        self.queries_received += other.queries_received;
        self.queries_refused += other.queries_refused;
        self.queries_sent += other.queries_sent;
        self.replies_received += other.replies_received;
        self.invalid += other.invalid;
    }
}

/// A node of the DHT.
#[derive(Debug, Clone)]
pub struct Node {
    settings: NodeSettings,
    rng: ChaCha8Rng,
    families: [FamilyNode; 2],
    tokens: Tokens,
    items: ItemStore,
    host_limit: AddressLimit,
    answers: AnswerBudgets,
    queries: Budget,
    /// The queries that each host gets.
    queried_hosts: AddressLimit,
    proofs: Proofs,
    pending: Pending,
    searches: BTreeMap<SearchId, Search>,
    last_search: u64,
    outbox: VecDeque<(SocketAddr, Vec<u8>)>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Node {
    /// Creates a node without contacts. `seed` determines all of its random numbers.
    #[must_use]
    pub fn new(settings: NodeSettings, seed: [u8; 32], now: Timestamp) -> Self {
        let mut rng = ChaCha8Rng::from_seed(seed);
        let families = Family::ALL.map(|family| FamilyNode {
            is_enabled: settings.families.includes(family),
            table: Table::new(NodeId::random(&mut rng), now),
            peers: PeerStore::new(settings.peers),
            votes: ExternalVotes::default(),
            round_trips: RoundTrips::default(),
            maintenance: Maintenance::new(now),
        });
        Self {
            tokens: Tokens::new(now, &mut rng),
            items: ItemStore::new(settings.max_items),
            host_limit: AddressLimit::new(settings.host_queries_per_s, settings.host_burst, settings.max_hosts),
            answers: AnswerBudgets::new(settings.answer_bytes_per_s, now),
            queries: Budget::of_bytes(settings.query_bytes_per_s, now),
            queried_hosts: AddressLimit::new(
                settings.queries_to_host_per_s,
                settings.host_query_burst(),
                settings.max_hosts,
            ),
            proofs: Proofs::new(),
            pending: Pending::default(),
            searches: BTreeMap::new(),
            last_search: 0,
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            families,
            rng,
            settings,
        }
    }

    /// Our id in a family.
    #[must_use]
    pub fn id(&self, family: Family) -> NodeId {
        self.part(family).table.id()
    }

    /// Whether the node takes part in a family.
    #[must_use]
    pub fn is_enabled(&self, family: Family) -> bool {
        self.part(family).is_enabled
    }

    /// Whether the node answers no queries (BEP 43).
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.settings.is_read_only
    }

    /// Returns the known nodes closest to a target.
    #[must_use]
    pub fn closest(&self, target: NodeId, family: Family, count: usize, now: Timestamp) -> Vec<SocketAddr> {
        let contacts = self.part(family).table.closest(target, count, now);
        contacts.into_iter().map(|contact| contact.address).collect()
    }

    /// Counts what the node holds and has done.
    #[must_use]
    pub fn stats(&self, now: Timestamp) -> NodeStats {
        let [v4, v6] = &self.families;
        NodeStats {
            tables: [v4.table.stats(now), v6.table.stats(now)],
            stored_torrents: v4.peers.torrent_count() + v6.peers.torrent_count(),
            stored_peers: v4.peers.peer_count() + v6.peers.peer_count(),
            stored_items: self.items.len(),
            searches: self.searches.len(),
            pending_queries: self.pending.len(),
            counters: self.counters,
        }
    }

    /// Processes a datagram. Anything that is not a well-formed query or the answer to a query of ours is dropped
    /// without an answer.
    pub fn receive(&mut self, datagram: &[u8], from: SocketAddr, now: Timestamp) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        self.counters.datagrams_received += 1;
        self.counters.bytes_received += datagram.len() as u64;
        if from.port() == 0 || !is_unicast(from.ip()) || !self.part(Family::of(from.ip())).is_enabled {
            return;
        }
        let Ok(packet) = Packet::parse(datagram) else {
            self.counters.invalid += 1;
            return;
        };
        let Ok(message) = packet.message() else {
            self.counters.invalid += 1;
            return;
        };
        match &message.body {
            Body::Query(query) => self.receive_query(&message, query, datagram, from, now),
            Body::Reply(reply) => self.receive_reply(&message, reply, from, now),
            Body::Error { code, .. } => self.receive_error(&message, *code, from, now),
        }
        if !matches!(message.body, Body::Query(_)) && self.is_verified(from, now) {
            self.answer_held(from, now);
        }
    }

    /// Does what is due: timeouts, searches, and the upkeep of the tables.
    pub fn advance(&mut self, now: Timestamp) {
        self.expire_queries(now);
        self.maintain(now);
        self.continue_searches(now);
    }

    /// The time of the next call of [`Node::advance`].
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        let kept = self
            .families
            .iter()
            .filter(|part| part.is_enabled && part.needs_upkeep());
        let maintenance = kept.map(|part| part.maintenance.deadline()).min();
        let mut deadline = self.pending.deadline().min(maintenance.unwrap_or(Timestamp::NEVER));
        if let Some(stalled) = self.searches.values().map(Search::resumes_at).min() {
            deadline = deadline.min(stalled);
        }
        deadline
    }

    /// Takes the next datagram to send.
    pub fn next_datagram(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.outbox.pop_front()
    }

    /// Takes the next event.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn part(&self, family: Family) -> &FamilyNode {
        &self.families[family as usize]
    }

    fn part_mut(&mut self, family: Family) -> &mut FamilyNode {
        &mut self.families[family as usize]
    }

    /// Sends a query, and expects an answer. Returns false if the table of pending queries is full.
    fn send_query(
        &mut self,
        to: SocketAddr,
        id: Option<NodeId>,
        method: Method<'_>,
        want: Option<Want>,
        purpose: Purpose,
        now: Timestamp,
    ) -> bool {
        let family = Family::of(to.ip());
        if self.pending.len() >= self.settings.max_pending {
            return false;
        }
        let round_trips = self.part(family).round_trips;
        let transaction = self.pending.add(to, id, purpose, round_trips, now, &mut self.rng);
        let message = Message {
            transaction: &transaction.to_be_bytes(),
            // A ping of a host without proof counts against its questions.
            version: (method != Method::Ping).then_some(VERSION),
            external: None,
            body: Body::Query(Query {
                id: self.id(family),
                is_read_only: self.settings.is_read_only,
                want,
                method: Ok(method),
            }),
        };
        let datagram = message.write();
        // A request for proof is a part of an answer.
        if purpose != Purpose::Proof {
            self.queries.take_any(datagram.len(), now);
        }
        self.counters.queries_sent += 1;
        self.send(to, datagram);
        true
    }

    /// Pings a node, unless the limits on our queries forbid it.
    fn send_ping(&mut self, to: SocketAddr, id: Option<NodeId>, now: Timestamp) {
        if self.queries.has(1, now) && self.host_ready_at(to, 1, now) <= now {
            self.count_host_queries(to, 1, now);
            self.send_query(to, id, Method::Ping, None, Purpose::Ping, now);
        }
    }

    /// The time at which `count` more queries may go to a host. Nodes at this machine's loopback addresses are those of
    /// one user, and have no limit.
    fn host_ready_at(&self, to: SocketAddr, count: usize, now: Timestamp) -> Timestamp {
        match to.ip().is_loopback() {
            true => now,
            false => self.queried_hosts.ready_at(to.ip(), count, now),
        }
    }

    fn count_host_queries(&mut self, to: SocketAddr, count: usize, now: Timestamp) {
        if !to.ip().is_loopback() {
            self.queried_hosts.allow_many(to.ip(), count, now);
        }
    }

    fn send(&mut self, to: SocketAddr, datagram: Vec<u8>) {
        self.counters.datagrams_sent += 1;
        self.counters.bytes_sent += datagram.len() as u64;
        self.outbox.push_back((to, datagram));
    }
}
