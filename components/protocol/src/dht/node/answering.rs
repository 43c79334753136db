//! Answering queries, within limits on the size of answers.

use std::net::SocketAddr;

use super::proving::PING_BYTES;
use super::{Event, Node, VERSION};
use crate::compact::Family;
use crate::dht::id::NodeId;
use crate::dht::items::{Item, Proof};
use crate::dht::krpc::{
    BLOOM_BYTES, Body, ErrorCode, Filters, MAX_SENT, MAX_SENT_ITEM, Message, Method, Query, Refusal, Reply, Samples,
    Want, contact_bytes, write_contact,
};
use crate::dht::limits::Budget;
use crate::dht::table::K;
use crate::time::Timestamp;

/// Size of a token in an answer.
const TOKEN_BYTES: usize = 17;

/// Size of the key of an item's value, and maximum size of its public key, signature and sequence number.
const VALUE_BYTES: usize = 3;
const PROOF_BYTES: usize = 137;

/// Maximum size of a list of nodes without its nodes.
const LIST_BYTES: usize = 12;

/// Bytes of answers. Hosts that have not proved their address cannot use up all of them.
#[derive(Debug, Clone)]
pub(super) struct AnswerBudgets {
    /// Answers to pings: nodes that ping us keep us in their tables.
    pings: Budget,
    /// Answers to verified hosts.
    verified: Budget,
    /// Answers to all hosts.
    all: Budget,
}

impl AnswerBudgets {
    pub(super) fn new(bytes_per_s: u32, now: Timestamp) -> Self {
        let (pings, verified) = (bytes_per_s / 16, bytes_per_s / 4);
        Self {
            pings: Budget::of_bytes(pings, now),
            verified: Budget::of_bytes(verified, now),
            all: Budget::of_bytes(bytes_per_s - pings - verified, now),
        }
    }

    /// Returns the first budget that has anything left for an answer.
    pub(super) fn open(&mut self, is_ping: bool, is_verified: bool, now: Timestamp) -> Option<&mut Budget> {
        let pings = is_ping.then_some(&mut self.pings);
        let verified = is_verified.then_some(&mut self.verified);
        let mut budgets = pings.into_iter().chain(verified).chain([&mut self.all]);
        budgets.find(|budget| budget.has(1, now))
    }
}

/// The parts of an answer that a [`Reply`] borrows.
#[derive(Default)]
struct Parts {
    nodes: [Vec<u8>; 2],
    token: Option<[u8; 8]>,
    values: Vec<SocketAddr>,
    item: Option<Item>,
    seq: Option<i64>,
    filters: Option<[[u8; BLOOM_BYTES]; 2]>,
    samples: Option<(u32, u32, Vec<u8>)>,
}

impl Node {
    pub(super) fn receive_query(
        &mut self,
        message: &Message<'_>,
        query: &Query<'_>,
        datagram: &[u8],
        from: SocketAddr,
        now: Timestamp,
    ) {
        self.counters.queries_received += 1;
        // BEP 43: a read-only node answers nobody.
        if self.settings.is_read_only {
            return;
        }
        if !self.host_limit.allow(from.ip(), now) {
            self.counters.queries_refused += 1;
            return;
        }
        self.respond(message, query, datagram, from, now);
        if matches!(query.method, Ok(Method::Ping)) {
            self.on_proof_request(from, now);
        }
    }

    /// Answers a question, or asks its sender for proof of the address first.
    pub(super) fn respond(
        &mut self,
        message: &Message<'_>,
        query: &Query<'_>,
        datagram: &[u8],
        from: SocketAddr,
        now: Timestamp,
    ) {
        let is_ping = matches!(query.method, Ok(Method::Ping));
        let is_verified = self.is_verified(from, now) || self.has_token(query, from);
        if self.answers.open(is_ping, is_verified, now).is_none() {
            self.counters.queries_refused += 1;
            return;
        }
        let family = Family::of(from.ip());
        if query.id == self.id(family) {
            // Our own datagram, or a node that copies our id.
            return;
        }
        let is_useful = !query.is_read_only && self.part_mut(family).table.record_query(query.id, from, now);
        self.tokens.rotate(now, &mut self.rng);
        let question = datagram.len();
        let allowed = match is_verified {
            true => MAX_SENT_ITEM,
            false => question.saturating_mul(self.settings.max_amplification),
        };
        // An answer to a ping leaves room for ours.
        let allowed = match query.method {
            Ok(Method::Ping) if is_useful && allowed >= PING_BYTES + shortest(message.transaction) => {
                allowed - PING_BYTES
            }
            _ => allowed,
        };
        let whole = self.collect(query, message.transaction, MAX_SENT_ITEM, from, now);
        let mut answer = self.write_answer(&whole, message.transaction, allowed, from);
        if answer.len() > allowed {
            let needs_whole = match &whole {
                Ok(parts) => self.is_final(query, parts, family, now),
                Err(_) => false,
            };
            if needs_whole && self.hold(query, datagram, from, now) {
                return;
            }
            let short = self.collect(query, message.transaction, allowed, from, now);
            answer = self.write_answer(&short, message.transaction, allowed, from);
        }
        // Only with a transaction id near its maximum, or for a question that is no more than its method.
        let sent = if answer.len() > allowed { 0 } else { answer.len() };
        if sent > 0 {
            self.send(from, answer);
        }
        if let Some(budget) = self.answers.open(is_ping, is_verified, now) {
            budget.take_any(sent, now);
        }
        if is_useful && self.take_ping_bytes(question, sent, from, now) {
            self.ping_unknown(query.id, from, now);
        }
    }

    /// Whether a search needs the whole answer: it looks for nodes, we have what it looks for, or we are one of the
    /// nodes closest to it. Otherwise a single node that is closer brings it on as well, and at once.
    fn is_final(&self, query: &Query<'_>, parts: &Parts, family: Family, now: Timestamp) -> bool {
        match query.method {
            Ok(Method::GetPeers { info_hash: key, .. } | Method::Get { target: key, .. }) => {
                let has_content = !parts.values.is_empty() || parts.item.is_some() || parts.filters.is_some();
                has_content || self.is_among_closest(key, family, now)
            }
            _ => true,
        }
    }

    /// Returns the datagram of an answer. If it is larger than `max`, it does without what no host has need of.
    fn write_answer(
        &self,
        parts: &Result<Parts, Refusal>,
        transaction: &[u8],
        max: usize,
        from: SocketAddr,
    ) -> Vec<u8> {
        let id = self.id(Family::of(from.ip()));
        let body = match parts {
            Ok(parts) => Body::Reply(parts.reply(id)),
            Err(refusal) => Body::Error {
                code: refusal.code as i64,
                text: refusal.text.as_bytes(),
            },
        };
        let mut message = Message {
            transaction,
            version: Some(VERSION),
            external: Some(from),
            body,
        };
        let mut datagram = message.write();
        if datagram.len() > max {
            message.version = None;
            datagram = message.write();
        }
        if datagram.len() > max {
            message.external = None;
            datagram = message.write();
        }
        datagram
    }

    /// Collects what an answer of at most `max` bytes has room for.
    fn collect(
        &mut self,
        query: &Query<'_>,
        transaction: &[u8],
        max: usize,
        from: SocketAddr,
        now: Timestamp,
    ) -> Result<Parts, Refusal> {
        let method = query.method?;
        let mut parts = Parts::default();
        let space = space(max.min(MAX_SENT), transaction, from);
        let want = query.want.unwrap_or(Want::only(Family::of(from.ip())));
        match method {
            Method::Ping => {}
            Method::FindNode { target } | Method::Unknown { target: Some(target) } => {
                self.list_nodes(target, want, space, &mut parts, now);
            }
            Method::Unknown { target: None } => {
                return Err(Refusal::new(ErrorCode::MethodUnknown, "method unknown"));
            }
            Method::GetPeers {
                info_hash,
                no_seed,
                scrape,
            } => self.answer_get_peers(info_hash, no_seed, scrape, want, space, from, &mut parts, now),
            Method::AnnouncePeer {
                info_hash,
                port,
                implied_port,
                token,
                seed,
            } => {
                self.check_token(token, from, info_hash, now)?;
                let port = if implied_port { from.port() } else { port };
                let own_id = self.id(Family::of(from.ip()));
                let (peers, peer) = (
                    &mut self.part_mut(Family::of(from.ip())).peers,
                    SocketAddr::new(from.ip(), port),
                );
                peers
                    .store(info_hash, peer, seed, own_id, now)
                    .map_err(|_| Refusal::new(ErrorCode::Server, "no space for more peers"))?;
                self.events.push_back(Event::Announced { info_hash, peer });
            }
            Method::Get { target, newer_than } => {
                let item_space = max.saturating_sub(shortest(transaction));
                self.answer_get(target, newer_than, want, [space, item_space], from, &mut parts, now);
            }
            Method::Put { token, item } => {
                self.check_token(token, from, item.target(), now)?;
                let own_id = self.id(Family::of(from.ip()));
                self.items.put(&item, from.ip(), own_id, now)?;
            }
            Method::SampleInfohashes { target } => {
                let part = &mut self.families[Family::of(from.ip()) as usize];
                let total = part.peers.torrent_count() as u32;
                let (hashes, interval) = part.peers.sample(now, &mut self.rng);
                let count = (space.saturating_sub(50) / 2 / 20).min(hashes.len() / 20);
                parts.samples = Some((interval.as_secs() as u32, total, hashes[..count * 20].to_vec()));
                self.list_nodes(target, want, space.saturating_sub(50 + count * 20), &mut parts, now);
            }
        }
        Ok(parts)
    }

    fn answer_get_peers(
        &mut self,
        info_hash: NodeId,
        no_seed: bool,
        scrape: bool,
        want: Want,
        mut space: usize,
        from: SocketAddr,
        parts: &mut Parts,
        now: Timestamp,
    ) {
        let family = Family::of(from.ip());
        let own_id = self.id(family);
        // BEP 33: no token where nothing more is stored, so that announces go to other nodes.
        if self.part(family).peers.has_place(info_hash, from.ip(), own_id) {
            self.give_token(info_hash, &mut space, from, parts, now);
        }
        if scrape && let Some((seeds, peers)) = self.part(family).peers.filters(info_hash) {
            let needed = 2 * (BLOOM_BYTES + 12);
            if space >= needed {
                parts.filters = Some([*seeds.as_bytes(), *peers.as_bytes()]);
                space -= needed;
            }
        }
        let count = self.part(family).peers.count(info_hash);
        // Half of a small answer lists nodes, which the rest of the lookup needs.
        let for_nodes = if count > 0 { space / 2 } else { space };
        let used = self.list_nodes(info_hash, want, for_nodes, parts, now);
        let value_bytes = contact_bytes(family) - 20 + if family == Family::V4 { 2 } else { 3 };
        let max = (space - used).saturating_sub(12) / value_bytes;
        let peers = &self.families[family as usize].peers;
        parts.values = peers.choose(info_hash, max, no_seed, &mut self.rng);
    }

    /// `spaces` are those of an answer, and of one with an item.
    fn answer_get(
        &mut self,
        target: NodeId,
        newer_than: Option<i64>,
        want: Want,
        spaces: [usize; 2],
        from: SocketAddr,
        parts: &mut Parts,
        now: Timestamp,
    ) {
        let own_id = self.id(Family::of(from.ip()));
        let [mut space, item_space] = spaces;
        if self.items.has_place(target, from.ip(), own_id) {
            self.give_token(target, &mut space, from, parts, now);
        }
        if let Some(item) = self.items.get(target) {
            let is_known = item.proof.is_some() && newer_than.is_some_and(|seq| item.seq() <= seq);
            let needed = item.value.len() + VALUE_BYTES + if item.proof.is_some() { PROOF_BYTES } else { 0 };
            // BEP 44: a value that is not newer than asked for is left out.
            if is_known {
                parts.seq = Some(item.seq());
            } else if item_space >= needed + TOKEN_BYTES {
                parts.item = Some(item.clone());
                space = space.saturating_sub(needed);
            }
        }
        self.list_nodes(target, want, space, parts, now);
    }

    /// Gives a token. An answer without room for a node as well has one only if we are one of the nodes closest to the
    /// key: from others, the host needs nodes.
    fn give_token(&self, key: NodeId, space: &mut usize, from: SocketAddr, parts: &mut Parts, now: Timestamp) {
        let family = Family::of(from.ip());
        let has_room = *space >= TOKEN_BYTES + LIST_BYTES + contact_bytes(family);
        if has_room || self.is_among_closest(key, family, now) {
            parts.token = Some(self.tokens.make(from.ip(), key));
            *space = space.saturating_sub(TOKEN_BYTES);
        }
    }

    fn is_among_closest(&self, key: NodeId, family: Family, now: Timestamp) -> bool {
        let own = self.id(family).distance(key);
        let closest = self.part(family).table.closest(key, K, now);
        closest.len() < K || closest.iter().any(|contact| contact.id.distance(key) > own)
    }

    /// Lists the closest nodes of the wanted families in at most `space` bytes. Returns the bytes used.
    fn list_nodes(&self, target: NodeId, want: Want, space: usize, parts: &mut Parts, now: Timestamp) -> usize {
        let families = Family::ALL.into_iter().filter(|family| want.includes(*family));
        let mut left = space;
        for family in families {
            let entry = contact_bytes(family);
            let count = left.saturating_sub(LIST_BYTES) / entry;
            let list = &mut parts.nodes[family as usize];
            for contact in self.part(family).table.closest(target, count.min(K), now) {
                write_contact(contact.id, contact.address, list);
            }
            if !list.is_empty() {
                left -= list.len() + LIST_BYTES;
            }
        }
        space - left
    }

    fn check_token(&mut self, token: &[u8], from: SocketAddr, key: NodeId, now: Timestamp) -> Result<(), Refusal> {
        if !self.tokens.check(token, from.ip(), key) {
            return Err(Refusal::new(ErrorCode::Protocol, "bad token"));
        }
        self.proofs.insert(from.ip(), now);
        Ok(())
    }
}

impl Parts {
    fn reply(&self, id: NodeId) -> Reply<'_> {
        Reply {
            id,
            nodes: &self.nodes[Family::V4 as usize],
            nodes6: &self.nodes[Family::V6 as usize],
            values: self.values.clone(),
            token: self.token.as_ref().map(|token| &token[..]),
            value: self.item.as_ref().map(|item| &item.value[..]),
            signed: self
                .item
                .as_ref()
                .and_then(|item| item.proof.as_ref())
                .map(Proof::as_signed),
            seq: self.seq,
            scrape: self.filters.as_ref().map(|[seeds, peers]| Filters { seeds, peers }),
            samples: self.samples.as_ref().map(|(interval, total, hashes)| Samples {
                interval: *interval,
                total: *total,
                hashes,
            }),
        }
    }
}

/// Space for tokens, lists and values in an answer of at most `max` bytes. Where there is no room for a node otherwise,
/// the answer does without our version and the host's address.
fn space(max: usize, transaction: &[u8], from: SocketAddr) -> usize {
    let usual = max.saturating_sub(overhead(from));
    if usual >= LIST_BYTES + contact_bytes(Family::of(from.ip())) {
        return usual;
    }
    max.saturating_sub(shortest(transaction))
}

/// Size of an answer without content, without our version, and without the host's address.
fn shortest(transaction: &[u8]) -> usize {
    let digits = if transaction.len() < 10 { 1 } else { 2 };
    44 + digits + transaction.len()
}

/// Bytes of the parts that every answer has, with a transaction id of usual length.
fn overhead(from: SocketAddr) -> usize {
    83 + if from.is_ipv4() { 6 } else { 18 }
}
