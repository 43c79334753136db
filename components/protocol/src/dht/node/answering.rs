//! Answering queries, within limits on the size of answers.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Event, Node, VERSION};
use crate::compact::Family;
use crate::dht::id::NodeId;
use crate::dht::items::{Item, Proof};
use crate::dht::krpc::{
    BLOOM_BYTES, Body, ErrorCode, Filters, Message, Method, Query, Refusal, Reply, Samples, Want, contact_bytes,
    write_contact,
};
use crate::dht::limits::{Budget, max_answer};
use crate::dht::table::K;
use crate::prefix::site;
use crate::time::Timestamp;

/// Maximum size of a ping. It counts as a part of the answer to a host that has not proved its address.
const PING_BYTES: usize = 58;

/// Size of a token in an answer.
const TOKEN_BYTES: usize = 17;

/// Maximum size of a list of nodes without its nodes.
const LIST_BYTES: usize = 12;

/// Maximum number of bytes that are kept for a ping of a host.
const MAX_SPARE: usize = 1024;

/// Time for which they are kept.
const SPARE_TIME: Duration = Duration::from_secs(60);

/// Number of hosts that are remembered as verified.
const MAX_VERIFIED: usize = 512;

/// Time for which a host is verified.
const VERIFIED_TIME: Duration = Duration::from_secs(600);

/// Pings of unknown nodes that wait for an answer at a time.
const MAX_PINGS: usize = 16;

/// Hosts that have proved to receive datagrams at their address: by a token, or by an answer.
#[derive(Debug, Clone, Default)]
pub(super) struct VerifiedHosts(VecDeque<(IpAddr, Timestamp)>);

impl VerifiedHosts {
    pub(super) fn insert(&mut self, ip: IpAddr, now: Timestamp) {
        if self.contains(ip, now) {
            return;
        }
        if self.0.len() == MAX_VERIFIED {
            self.0.pop_front();
        }
        self.0.push_back((site(ip), now + VERIFIED_TIME));
    }

    fn contains(&self, ip: IpAddr, now: Timestamp) -> bool {
        let host = site(ip);
        self.0.iter().any(|(known, until)| *known == host && now < *until)
    }
}

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
    fn open(&mut self, is_ping: bool, is_verified: bool, now: Timestamp) -> Option<&mut Budget> {
        let pings = is_ping.then_some(&mut self.pings);
        let verified = is_verified.then_some(&mut self.verified);
        let mut budgets = pings.into_iter().chain(verified).chain([&mut self.all]);
        budgets.find(|budget| budget.has(1, now))
    }
}

/// Bytes that the questions of hosts without proof allow and that their answers did not need. They allow a ping.
#[derive(Debug, Clone, Default)]
pub(super) struct SpareBytes(VecDeque<(IpAddr, usize, Timestamp)>);

impl SpareBytes {
    /// Takes the bytes of a host, and forgets those that are too old.
    fn take(&mut self, ip: IpAddr, now: Timestamp) -> usize {
        let host = site(ip);
        self.0.retain(|(_, _, until)| now < *until);
        let known = self.0.iter().position(|(known, ..)| *known == host);
        known.and_then(|at| self.0.remove(at)).map_or(0, |(_, bytes, _)| bytes)
    }

    fn keep(&mut self, ip: IpAddr, bytes: usize, now: Timestamp) {
        if self.0.len() == MAX_VERIFIED {
            self.0.pop_front();
        }
        self.0.push_back((site(ip), bytes.min(MAX_SPARE), now + SPARE_TIME));
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
    /// Whether the answer takes from the budget for large answers to unverified addresses.
    is_large: bool,
}

impl Node {
    pub(super) fn receive_query(
        &mut self,
        message: &Message<'_>,
        query: &Query<'_>,
        question: usize,
        from: SocketAddr,
        now: Timestamp,
    ) {
        self.counters.queries_received += 1;
        // BEP 43: a read-only node answers nobody.
        if self.settings.is_read_only {
            return;
        }
        let is_ping = matches!(query.method, Ok(Method::Ping));
        let is_verified = self.is_verified(from, now) || self.has_token(query, from);
        let is_allowed = self.host_limit.allow(from.ip(), now);
        if !is_allowed || self.answers.open(is_ping, is_verified, now).is_none() {
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
        let answer = match query.method {
            Ok(method) => self.answer(query, &method, message.transaction, question, from, now),
            Err(refusal) => Err(refusal),
        };
        let max = self.max_answer(question, from, now);
        // An answer to a ping leaves room for ours.
        let max = match query.method {
            Ok(Method::Ping) if is_useful && max >= PING_BYTES + shortest(message.transaction) => max - PING_BYTES,
            _ => max,
        };
        let sent = self.send_answer(message.transaction, answer, max, from);
        if let Some(budget) = self.answers.open(is_ping, is_verified, now) {
            budget.take_any(sent, now);
        }
        if is_useful && self.take_ping_bytes(question, sent, from, now) {
            self.ping_unknown(query.id, from, now);
        }
    }

    /// Whether a host that has asked may be pinged too: it has proved its address, or its questions allow the bytes.
    fn take_ping_bytes(&mut self, question: usize, sent: usize, from: SocketAddr, now: Timestamp) -> bool {
        if self.is_verified(from, now) {
            return true;
        }
        let allowed = question.saturating_mul(self.settings.max_amplification) + self.spare.take(from.ip(), now);
        let left = allowed.saturating_sub(sent);
        let may_ping = left >= PING_BYTES;
        self.spare
            .keep(from.ip(), if may_ping { left - PING_BYTES } else { left }, now);
        may_ping
    }

    /// Pings a node that has shown up, to find out whether it is alive.
    pub(super) fn ping_unknown(&mut self, id: NodeId, address: SocketAddr, now: Timestamp) {
        if self.pending.ping_count() < MAX_PINGS && !self.pending.is_asking(address) {
            self.send_ping(address, Some(id), now);
        }
    }

    /// Sends an answer of at most `max` bytes, unless it is a large one. Returns the number of bytes sent.
    fn send_answer(
        &mut self,
        transaction: &[u8],
        answer: Result<Parts, Refusal>,
        max: usize,
        from: SocketAddr,
    ) -> usize {
        let id = self.id(Family::of(from.ip()));
        let body = match &answer {
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
        let max = match &answer {
            Ok(parts) if parts.is_large => max_answer(0, None),
            _ => max,
        };
        // The shortest answers do without what others have no need of.
        if datagram.len() > max {
            message.version = None;
            datagram = message.write();
        }
        if datagram.len() > max {
            message.external = None;
            datagram = message.write();
        }
        let len = datagram.len();
        if len > max {
            // Only with a transaction id near its maximum, or for a question that is no more than its method.
            return 0;
        }
        self.send(from, datagram);
        len
    }

    /// Returns the maximum size of the answer to a question of `question` bytes.
    fn max_answer(&self, question: usize, from: SocketAddr, now: Timestamp) -> usize {
        let is_verified = self.is_verified(from, now);
        max_answer(question, (!is_verified).then_some(self.settings.max_amplification))
    }

    fn answer(
        &mut self,
        query: &Query<'_>,
        method: &Method<'_>,
        transaction: &[u8],
        question: usize,
        from: SocketAddr,
        now: Timestamp,
    ) -> Result<Parts, Refusal> {
        let mut parts = Parts::default();
        let space = space(self.max_answer(question, from, now), transaction, from);
        let want = query.want.unwrap_or(Want::only(Family::of(from.ip())));
        match *method {
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
                self.answer_get(target, newer_than, want, space, from, &mut parts, now);
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
            if self.take_large_answer(needed, &mut space, parts, from, now) {
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

    fn answer_get(
        &mut self,
        target: NodeId,
        newer_than: Option<i64>,
        want: Want,
        mut space: usize,
        from: SocketAddr,
        parts: &mut Parts,
        now: Timestamp,
    ) {
        let own_id = self.id(Family::of(from.ip()));
        if self.items.has_place(target, from.ip(), own_id) {
            self.give_token(target, &mut space, from, parts, now);
        }
        if let Some(item) = self.items.get(target).cloned() {
            let is_known = item.proof.is_some() && newer_than.is_some_and(|seq| item.seq() <= seq);
            let needed = item.value.len() + 8 + if item.proof.is_some() { 160 } else { 0 };
            // BEP 44: a value that is not newer than asked for is left out.
            if is_known {
                parts.seq = Some(item.seq());
            } else if self.take_large_answer(needed, &mut space, parts, from, now) {
                parts.item = Some(item);
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

    /// Makes room for `needed` bytes in an answer, and returns whether there is any. An unverified host gets it while a
    /// small budget for all such hosts lasts: forged questions would otherwise be multiplied tenfold.
    fn take_large_answer(
        &mut self,
        needed: usize,
        space: &mut usize,
        parts: &mut Parts,
        from: SocketAddr,
        now: Timestamp,
    ) -> bool {
        if *space >= needed {
            return true;
        }
        if !self.is_verified(from, now) && self.large_answers.take(needed, now) {
            parts.is_large = true;
            *space = (*space + needed).min(max_answer(0, None) - overhead(from));
        }
        *space >= needed
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
        self.verified.insert(from.ip(), now);
        Ok(())
    }

    /// Whether a query has a token that we gave to its host.
    fn has_token(&self, query: &Query<'_>, from: SocketAddr) -> bool {
        match &query.method {
            Ok(Method::AnnouncePeer { info_hash, token, .. }) => self.tokens.check(token, from.ip(), *info_hash),
            Ok(Method::Put { token, item }) => self.tokens.check(token, from.ip(), item.target()),
            _ => false,
        }
    }

    fn is_verified(&self, from: SocketAddr, now: Timestamp) -> bool {
        self.part(Family::of(from.ip())).table.knows(from) || self.verified.contains(from.ip(), now)
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
