//! Searches: lookups in each family, what they find, and storing at the closest nodes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::pending::{Overdue, PendingQuery, SearchId};
use super::{Event, Node, Purpose};
use crate::compact::Family;
use crate::dht::bloom::BloomFilter;
use crate::dht::id::NodeId;
use crate::dht::items::{Item, Proof, check_sequence};
use crate::dht::krpc::{ErrorCode, Message, Method, PutItem, Reply, Want};
use crate::dht::lookup::{Lookup, StorageNode};
use crate::dht::table::K;
use crate::prefix::{is_local, is_unicast, unwrapped};
use crate::time::Timestamp;

/// Maximum number of peers that a search reports. The values of a single answer are bounded by its datagram.
const MAX_PEERS: usize = 2000;

/// Maximum number of peers of each family that are reported from our own store.
const MAX_OWN_PEERS: usize = 50;

/// Bytes that a query may take; a search waits while the budget has less.
const QUERY_BYTES: usize = 160;

/// Time after which a search tries again to send when the table of pending queries is full.
const PENDING_FULL_PAUSE: Duration = Duration::from_millis(100);

/// Number of saved nodes that a search begins with if the table has too few.
const MAX_SAVED_STARTS: usize = 32;

/// The purpose of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// To find the nodes closest to the target.
    Nodes,
    /// To find peers of a torrent.
    Peers {
        /// Announces us at the closest nodes.
        announce: Option<Announce>,
        /// Asks for the sizes of the swarm too (BEP 33).
        scrape: bool,
    },
    /// To find an item (BEP 44).
    Get {
        /// The salt of a mutable item.
        salt: Vec<u8>,
    },
    /// To store an item (BEP 44) at the closest nodes.
    Put {
        /// The item.
        item: Item,
        /// The salt of a mutable item.
        salt: Vec<u8>,
        /// The sequence number that a node which has the item must have.
        cas: Option<i64>,
    },
}

/// How we are announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announce {
    /// The ports on which we accept connections over each family: IPv4, IPv6.
    pub ports: [u16; 2],
    /// Whether the port as other nodes see it counts instead, as behind a NAT that keeps ports alike.
    pub implied_port: bool,
    /// Whether we are a seed (BEP 33).
    pub seed: bool,
}

/// The result of a search.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    /// Nodes that answered.
    pub reply_count: usize,
    /// Queries sent.
    pub query_count: usize,
    /// Nodes that confirmed that they stored what the search was for.
    pub stored_count: usize,
    /// Different peers that were reported.
    pub peer_count: usize,
    /// The item, with the greatest sequence number that a node had.
    pub item: Option<Item>,
    /// Estimated numbers of seeds and of other peers.
    pub swarm: Option<(f64, f64)>,
    /// The error with which nodes refused to store (BEP 44: 301 and 302 mean that others have published).
    pub refusal: Option<i64>,
    /// The longest chain of nodes, each of which listed the next one.
    pub hops: u32,
    /// The nodes closest to the target that answered, closest first.
    pub closest: Vec<(NodeId, SocketAddr)>,
    /// Time since the search began.
    pub duration: Duration,
}

/// A search in progress.
#[derive(Debug, Clone)]
pub(super) struct Search {
    target: NodeId,
    goal: Goal,
    /// Whether the nodes' answers should list nodes of both families.
    wants_both: bool,
    lookups: [Option<Lookup>; 2],
    /// Whether each family's lookup has ended and what it is for has been sent to the closest nodes.
    is_storing: [bool; 2],
    /// Requests to store without an answer yet.
    storing: usize,
    peers: BTreeSet<SocketAddr>,
    /// Nodes that have the item.
    holders: BTreeSet<SocketAddr>,
    filters: [BloomFilter; 2],
    has_filters: bool,
    found: Found,
    started: Timestamp,
    resumes_at: Timestamp,
    /// Whether other searches go first where queries have to wait.
    is_patient: bool,
}

impl Search {
    /// The time at which a search continues that had no budget.
    pub(super) fn resumes_at(&self) -> Timestamp {
        self.resumes_at
    }

    fn lookup(&mut self, family: Family) -> Option<&mut Lookup> {
        self.lookups[family as usize].as_mut()
    }

    /// Whether nothing is left to wait for. An immutable item needs no second opinion.
    fn is_finished(&self) -> bool {
        let is_found =
            matches!(self.goal, Goal::Get { .. }) && self.found.item.as_ref().is_some_and(|item| item.proof.is_none());
        let mut lookups = self.lookups.iter().zip(self.is_storing);
        is_found || self.storing == 0 && lookups.all(|(lookup, is_storing)| lookup.is_none() || is_storing)
    }

    /// Whether the nodes closest to the target get a second query, to store what the search is for.
    fn stores(&self) -> bool {
        matches!(self.goal, Goal::Put { .. } | Goal::Peers { announce: Some(_), .. })
    }

    fn method(&self) -> Method<'static> {
        match self.goal {
            Goal::Nodes => Method::FindNode { target: self.target },
            Goal::Peers { scrape, .. } => Method::GetPeers {
                info_hash: self.target,
                no_seed: false,
                scrape,
            },
            Goal::Get { .. } | Goal::Put { .. } => Method::Get {
                target: self.target,
                newer_than: None,
            },
        }
    }

    /// The request to store at a node, if the search is for storing.
    fn store_method<'s>(&'s self, node: &'s StorageNode) -> Option<Method<'s>> {
        match &self.goal {
            Goal::Nodes | Goal::Get { .. } => None,
            Goal::Peers { announce, .. } => announce.map(|announce| Method::AnnouncePeer {
                info_hash: self.target,
                port: announce.ports[Family::of(node.address.ip()) as usize],
                implied_port: announce.implied_port,
                token: &node.token,
                seed: announce.seed,
            }),
            Goal::Put { item, salt, cas } => Some(Method::Put {
                token: &node.token,
                item: PutItem {
                    value: &item.value,
                    signed: item.proof.as_ref().map(Proof::as_signed),
                    salt,
                    // BEP 44: not for a node that has nothing yet.
                    cas: cas.filter(|_| self.holders.contains(&node.address)),
                },
            }),
        }
    }

    /// The error that nodes would answer a request to store with, as far as the lookup has shown. Nodes that have
    /// nothing would take even an outdated item.
    fn foreseen_refusal(&self) -> Option<ErrorCode> {
        let (Goal::Put { item, cas, .. }, Some(known)) = (&self.goal, &self.found.item) else {
            return None;
        };
        let stored = known.seq();
        check_sequence(stored, item.seq(), *cas, known.value == item.value)
            .err()
            .map(|refusal| refusal.code)
    }

    /// Takes what a search is for from an answer. Returns peers that are new.
    fn take_content(&mut self, reply: &Reply<'_>, from: SocketAddr) -> Vec<SocketAddr> {
        if let (Goal::Get { salt } | Goal::Put { salt, .. }, Some(value)) = (&self.goal, reply.value)
            && let Some(item) = Item::verified(self.target, value, reply.signed, salt)
        {
            self.holders.insert(from);
            if self.found.item.as_ref().is_none_or(|known| known.seq() < item.seq()) {
                self.found.item = Some(item);
            }
        }
        let Goal::Peers { scrape, .. } = self.goal else {
            return Vec::new();
        };
        let family = Family::of(from.ip());
        // BEP 32: the values are of the family of the datagram. Port 1 is what broken clients announce.
        let is_possible = |peer: &&SocketAddr| Family::of(peer.ip()) == family && peer.port() > 1;
        let values = reply.values.iter().filter(is_possible);
        let peers = values.filter(|peer| may_name(from, **peer));
        if let Some(filters) = reply.scrape.filter(|_| scrape) {
            self.has_filters = true;
            self.filters[0].union(&BloomFilter::from_bytes(*filters.seeds));
            self.filters[1].union(&BloomFilter::from_bytes(*filters.peers));
        } else if scrape {
            // BEP 33, "Handling legacy responses".
            let [seeds, others] = &mut self.filters;
            for peer in peers.clone().filter(|peer| !seeds.may_contain(peer.ip())) {
                self.has_filters = true;
                others.insert(peer.ip());
            }
        }
        let room = MAX_PEERS - self.peers.len();
        let mut new: Vec<SocketAddr> = peers.filter(|peer| !self.peers.contains(peer)).copied().collect();
        new.sort_unstable();
        new.dedup();
        new.truncate(room);
        self.peers.extend(&new);
        new
    }

    fn finish(mut self, now: Timestamp) -> Found {
        let swarm = self.filters.each_ref().map(BloomFilter::estimate);
        for lookup in self.lookups.iter().flatten() {
            self.found.reply_count += lookup.reply_count();
            self.found.query_count += lookup.query_count();
            self.found.hops = self.found.hops.max(lookup.hops());
            self.found.closest.extend(lookup.closest_answered());
        }
        Found {
            peer_count: self.peers.len(),
            swarm: self.has_filters.then_some(swarm.into()),
            duration: now.since(self.started),
            ..self.found
        }
    }
}

/// Whether a node may name an address: a node of the internet names no hosts of this machine or of a local network, at
/// which it could otherwise direct our datagrams and connections. No node names groups of hosts.
fn may_name(node: SocketAddr, named: SocketAddr) -> bool {
    let (node, named) = (unwrapped(node.ip()), unwrapped(named.ip()));
    is_unicast(named) && (!named.is_loopback() || node.is_loopback()) && (!is_local(named) || is_local(node))
}

impl Node {
    /// Begins a search in all families, or in one. Returns `None` if too many searches are in progress.
    pub fn search(&mut self, target: NodeId, goal: Goal, only: Option<Family>, now: Timestamp) -> Option<SearchId> {
        let own = self
            .families
            .iter()
            .filter_map(|part| part.maintenance.search())
            .count();
        if self.searches.len() - own >= self.settings.max_searches {
            return None;
        }
        let is_for_peers = matches!(goal, Goal::Peers { .. });
        let search = self.begin_search(target, goal, only, false, now);
        if is_for_peers {
            self.report_stored(search, target);
        }
        Some(search)
    }

    /// Reports the peers that are stored here: a lookup asks other nodes only.
    fn report_stored(&mut self, id: SearchId, target: NodeId) {
        let Some(search) = self.searches.get_mut(&id) else {
            return;
        };
        for part in &self.families {
            for peer in part.peers.choose(target, MAX_OWN_PEERS, false, &mut self.rng) {
                search.peers.insert(peer);
                // The peer named itself.
                self.events.push_back(Event::Peers {
                    search: id,
                    peers: vec![peer],
                    node: peer,
                });
            }
        }
    }

    /// Whether a search could ask anyone: [`Node::search`] would begin it and leave room for others, the budget allows
    /// queries, and some node or bootstrap host is known.
    pub fn has_room(&self, now: Timestamp) -> bool {
        let has_contacts = self.families.iter().any(|part| part.is_enabled && part.has_contacts());
        let max = self.settings.max_searches;
        has_contacts && self.searches.len() < max - max / 4 && self.queries.has(QUERY_BYTES, now)
    }

    /// Lets other searches go first where queries to a host have to wait for each other.
    pub fn set_patient(&mut self, search: SearchId) {
        if let Some(search) = self.searches.get_mut(&search) {
            search.is_patient = true;
        }
    }

    /// Gives a search up. No more events of it follow.
    pub fn cancel(&mut self, search: SearchId) {
        self.searches.remove(&search);
    }

    pub(super) fn begin_search(
        &mut self,
        target: NodeId,
        goal: Goal,
        only: Option<Family>,
        wants_both: bool,
        now: Timestamp,
    ) -> SearchId {
        self.last_search += 1;
        let id = SearchId(self.last_search);
        let lookups = Family::ALL.map(|family| {
            let is_wanted = self.part(family).is_enabled && only.is_none_or(|only| only == family);
            is_wanted.then(|| self.new_lookup(target, family, now))
        });
        // We may be one of the nodes that store the item.
        let own = match goal {
            Goal::Get { ref salt } | Goal::Put { ref salt, .. } => {
                let stored = self.items.get(target);
                stored.filter(|item| item.is_at(target, salt)).cloned()
            }
            Goal::Nodes | Goal::Peers { .. } => None,
        };
        let search = Search {
            target,
            goal,
            wants_both,
            lookups,
            is_storing: [false; 2],
            storing: 0,
            peers: BTreeSet::new(),
            holders: BTreeSet::new(),
            filters: [BloomFilter::default(), BloomFilter::default()],
            has_filters: false,
            found: Found {
                item: own,
                ..Found::default()
            },
            started: now,
            // The first step is that of the next `advance`.
            resumes_at: now,
            is_patient: false,
        };
        self.searches.insert(id, search);
        id
    }

    /// A lookup that begins with the closest known nodes: of the table, and if it has too few, saved ones and bootstrap
    /// hosts.
    fn new_lookup(&self, target: NodeId, family: Family, now: Timestamp) -> Lookup {
        let part = self.part(family);
        let mut lookup = Lookup::new(target, self.settings.parallelism, self.settings.enforces_ids);
        let closest = part.table.closest(target, 2 * K, now);
        closest
            .iter()
            .for_each(|contact| lookup.add(Some(contact.id), contact.address));
        if closest.len() < K {
            for (id, address) in part.maintenance.saved().iter().take(MAX_SAVED_STARTS) {
                lookup.add(Some(*id), *address);
            }
            part.maintenance.hosts().iter().for_each(|host| lookup.add(None, *host));
        }
        lookup
    }

    /// Continues the searches that waited for their turn.
    pub(super) fn continue_searches(&mut self, now: Timestamp) {
        let waiting = self.searches.iter().filter(|(_, search)| search.resumes_at <= now);
        let mut waiting: Vec<(bool, SearchId)> = waiting.map(|(id, search)| (search.is_patient, *id)).collect();
        waiting.sort_unstable();
        waiting.into_iter().for_each(|(_, id)| self.step(id, now));
    }

    /// Sends the queries of a search that may be sent now, and ends it if nothing is left to do.
    pub(super) fn step(&mut self, id: SearchId, now: Timestamp) {
        let Some(mut search) = self.searches.remove(&id) else {
            return;
        };
        search.resumes_at = Timestamp::NEVER;
        for family in Family::ALL {
            self.send_steps(id, &mut search, family, now);
            let is_done = search.lookup(family).is_some_and(|lookup| lookup.is_finished());
            if is_done && !search.is_storing[family as usize] {
                search.is_storing[family as usize] = true;
                self.send_stores(id, &mut search, family, now);
            }
        }
        if search.is_finished() {
            let found = Box::new(search.finish(now));
            self.on_search_end(id, &found, now);
            self.events.push_back(Event::Finished { search: id, found });
        } else {
            self.searches.insert(id, search);
        }
    }

    fn send_steps(&mut self, id: SearchId, search: &mut Search, family: Family, now: Timestamp) {
        let method = search.method();
        let want = search.wants_both.then_some(Want::BOTH);
        // A query to store follows to many nodes that answer.
        let cost = if search.stores() { 2 } else { 1 };
        let kept = if search.is_patient {
            self.settings.host_query_burst() as usize / 2
        } else {
            0
        };
        let Some(lookup) = search.lookups[family as usize].as_mut() else {
            return;
        };
        let mut free_at = Timestamp::NEVER;
        while let Some((address, known)) = lookup.next_query(|to| {
            let ready_at = self.host_ready_at(to, cost + kept, now);
            if ready_at > now {
                free_at = free_at.min(ready_at);
            }
            ready_at <= now
        }) {
            if !self.queries.has(QUERY_BYTES, now) {
                lookup.unsend(address);
                free_at = self.queries.ready_at(QUERY_BYTES, now);
                break;
            }
            if !self.send_query(address, known, method, want, Purpose::Step(id), now) {
                lookup.unsend(address);
                free_at = now + PENDING_FULL_PAUSE;
                break;
            }
            self.count_host_queries(address, cost, now);
        }
        search.resumes_at = search.resumes_at.min(free_at);
    }

    fn send_stores(&mut self, id: SearchId, search: &mut Search, family: Family, now: Timestamp) {
        if let Some(refusal) = search.foreseen_refusal() {
            search.found.refusal = Some(refusal as i64);
            return;
        }
        let nodes = search.lookups[family as usize].as_ref().map(Lookup::storage_nodes);
        let mut sent = 0;
        for node in nodes.unwrap_or_default() {
            if let Some(method) = search.store_method(&node)
                && self.send_query(node.address, Some(node.id), method, None, Purpose::Store(id), now)
            {
                sent += 1;
            }
        }
        search.storing += sent;
    }

    /// Takes the query that a message answers. The answer proves its sender's address.
    fn take_pending(&mut self, message: &Message<'_>, from: SocketAddr, now: Timestamp) -> Option<PendingQuery> {
        let query = self.pending.take(message.transaction, from);
        match query {
            Some(_) => self.proofs.insert(from.ip(), now),
            None => self.counters.invalid += 1,
        }
        query
    }

    pub(super) fn receive_reply(&mut self, message: &Message<'_>, reply: &Reply<'_>, from: SocketAddr, now: Timestamp) {
        let Some(query) = self.take_pending(message, from, now) else {
            return;
        };
        self.counters.replies_received += 1;
        let part = self.part_mut(Family::of(from.ip()));
        part.round_trips.record(now.since(query.begun));
        part.maintenance.record_reply(now);
        let has_changed = query.id.is_some_and(|known| known != reply.id);
        if has_changed && !reply.id.is_bound_to(from.ip()) {
            // Liars choose an id close to what they are asked for.
            part.table.evict(from);
        } else {
            part.table.record_reply(reply.id, from, now);
        }
        if let Some(external) = message.external {
            self.record_vote(from, external, now);
        }
        match query.purpose {
            Purpose::Ping | Purpose::Proof => {}
            Purpose::Step(id) => self.take_step(id, reply, from, now),
            Purpose::Store(id) => {
                if let Some(search) = self.searches.get_mut(&id) {
                    search.found.stored_count += 1;
                    search.storing -= 1;
                    self.step(id, now);
                }
            }
        }
    }

    fn take_step(&mut self, id: SearchId, reply: &Reply<'_>, from: SocketAddr, now: Timestamp) {
        let own_ids = Family::ALL.map(|family| self.id(family));
        let Some(search) = self.searches.get_mut(&id) else {
            return;
        };
        let family = Family::of(from.ip());
        let is_used = match search.lookup(family) {
            Some(lookup) => lookup.on_reply(from, reply.id, reply.token),
            None => false,
        };
        if is_used {
            for listed in Family::ALL {
                let Some(lookup) = search.lookup(listed) else { continue };
                // A query to ourselves would stay without an answer.
                let is_other =
                    |(id, address): &(NodeId, SocketAddr)| *id != own_ids[listed as usize] && may_name(from, *address);
                let contacts = reply.contacts(listed).filter(is_other);
                if listed == family {
                    lookup.add_listed(from, contacts);
                } else {
                    contacts.take(K).for_each(|(id, address)| lookup.add(Some(id), address));
                }
            }
            let peers = search.take_content(reply, from);
            if !peers.is_empty() {
                self.events.push_back(Event::Peers {
                    search: id,
                    peers,
                    node: from,
                });
            }
        }
        self.step(id, now);
    }

    pub(super) fn receive_error(&mut self, message: &Message<'_>, code: i64, from: SocketAddr, now: Timestamp) {
        let Some(query) = self.take_pending(message, from, now) else {
            return;
        };
        match query.purpose {
            Purpose::Ping | Purpose::Proof => {}
            Purpose::Step(id) => self.fail_step(id, from, now),
            Purpose::Store(id) => {
                if let Some(search) = self.searches.get_mut(&id) {
                    search.found.refusal = Some(code);
                    search.storing -= 1;
                    self.step(id, now);
                }
            }
        }
    }

    /// Processes the queries that are slow or lost.
    pub(super) fn expire_queries(&mut self, now: Timestamp) {
        while let Some(overdue) = self.pending.next_overdue(now) {
            match overdue {
                Overdue::Slow(query) => {
                    if let Purpose::Step(id) = query.purpose
                        && let Some(search) = self.searches.get_mut(&id)
                        && let Some(lookup) = search.lookup(Family::of(query.to.ip()))
                    {
                        lookup.on_slow(query.to);
                        self.step(id, now);
                    }
                }
                Overdue::Lost(query) => {
                    self.drop_held(query.to, now);
                    let part = self.part_mut(Family::of(query.to.ip()));
                    // While nobody answers, the fault is that of our network.
                    if part.maintenance.has_reply_since(query.sent) {
                        part.table.record_failure(query.to, now);
                    }
                    match query.purpose {
                        Purpose::Ping | Purpose::Proof => {}
                        Purpose::Step(id) => self.fail_step(id, query.to, now),
                        Purpose::Store(id) => {
                            if let Some(search) = self.searches.get_mut(&id) {
                                search.storing -= 1;
                                self.step(id, now);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Processes a ping of a node. If a search has asked the node, it will answer when we have proved our address.
    pub(super) fn on_proof_request(&mut self, from: SocketAddr, now: Timestamp) {
        let round_trips = self.part(Family::of(from.ip())).round_trips;
        if let Some(Purpose::Step(id)) = self.pending.delay(from, round_trips, now)
            && let Some(search) = self.searches.get_mut(&id)
            && let Some(lookup) = search.lookup(Family::of(from.ip()))
        {
            lookup.on_delay();
            self.step(id, now);
        }
    }

    fn fail_step(&mut self, id: SearchId, address: SocketAddr, now: Timestamp) {
        if let Some(search) = self.searches.get_mut(&id)
            && let Some(lookup) = search.lookup(Family::of(address.ip()))
        {
            lookup.on_failure(address);
            self.step(id, now);
        }
    }
}
