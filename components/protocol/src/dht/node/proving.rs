//! Proof that a host receives datagrams at its address: it answers a ping, or has a token of ours.
//!
//! A host without proof may have forged its address, so it causes at most [`NodeSettings::max_amplification`] times as
//! many bytes as its questions have. If the answer to a question is larger, the host is pinged, and its question is
//! kept until it answers. Hosts that answer nothing, and those for which there is no place, get a shorter answer.
//!
//! [`NodeSettings::max_amplification`]: super::NodeSettings::max_amplification

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Method, Node, Purpose};
use crate::compact::Family;
use crate::dht::id::NodeId;
use crate::dht::krpc::{Body, Packet, Query};
use crate::prefix::site;
use crate::time::Timestamp;

/// Maximum size of a ping. It counts as a part of the answer to a host that has not proved its address.
pub(super) const PING_BYTES: usize = 58;

/// Maximum size of a question that is kept. Questions of known clients have fewer than 150 bytes.
const MAX_HELD_BYTES: usize = 512;

/// Maximum number of questions that are kept for an address.
const MAX_HELD_QUESTIONS: usize = 4;

/// Time for which a host that has proved its address needs no other proof, and number of such hosts.
const VERIFIED_TIME: Duration = Duration::from_secs(600);
const MAX_VERIFIED: usize = 4096;

/// Time for which a host that has not answered a ping is asked for no proof, and number of such hosts.
const SILENT_TIME: Duration = Duration::from_secs(60);
const MAX_SILENT: usize = 512;

/// Time for which bytes are kept for a ping of a host, their maximum, and number of such hosts.
const SPARE_TIME: Duration = Duration::from_secs(60);
const MAX_SPARE: usize = 1024;
const MAX_SPARE_HOSTS: usize = 512;

/// Maximum number of pings of unknown nodes that wait for an answer at a time.
const MAX_PINGS: usize = 16;

/// Hosts that are remembered for a time. If there are too many, the oldest is forgotten.
#[derive(Debug, Clone)]
struct RecentHosts {
    max: usize,
    time: Duration,
    hosts: BTreeMap<IpAddr, Timestamp>,
    by_end: BTreeSet<(Timestamp, IpAddr)>,
}

impl RecentHosts {
    fn new(max: usize, time: Duration) -> Self {
        Self {
            max,
            time,
            hosts: BTreeMap::new(),
            by_end: BTreeSet::new(),
        }
    }

    fn insert(&mut self, ip: IpAddr, now: Timestamp) {
        let (host, until) = (site(ip), now + self.time);
        match self.hosts.insert(host, until) {
            Some(earlier) => drop(self.by_end.remove(&(earlier, host))),
            None if self.hosts.len() > self.max => self.forget_oldest(),
            None => {}
        }
        self.by_end.insert((until, host));
    }

    fn forget_oldest(&mut self) {
        if let Some((_, host)) = self.by_end.pop_first() {
            self.hosts.remove(&host);
        }
    }

    fn contains(&self, ip: IpAddr, now: Timestamp) -> bool {
        self.hosts.get(&site(ip)).is_some_and(|until| now < *until)
    }
}

/// Bytes that the questions of hosts without proof allow and that their answers did not need. They allow a ping.
#[derive(Debug, Clone, Default)]
struct SpareBytes(VecDeque<(IpAddr, usize, Timestamp)>);

impl SpareBytes {
    /// Takes the bytes of a host, and forgets those that are too old.
    fn take(&mut self, ip: IpAddr, now: Timestamp) -> usize {
        let host = site(ip);
        self.0.retain(|(_, _, until)| now < *until);
        let known = self.0.iter().position(|(known, ..)| *known == host);
        known.and_then(|at| self.0.remove(at)).map_or(0, |(_, bytes, _)| bytes)
    }

    fn keep(&mut self, ip: IpAddr, bytes: usize, now: Timestamp) {
        if self.0.len() == MAX_SPARE_HOSTS {
            self.0.pop_front();
        }
        self.0.push_back((site(ip), bytes.min(MAX_SPARE), now + SPARE_TIME));
    }
}

/// The proofs of hosts, and their questions that wait for one.
#[derive(Debug, Clone)]
pub(super) struct Proofs {
    verified: RecentHosts,
    silent: RecentHosts,
    spare: SpareBytes,
    /// Datagrams by their sender, to which a query of ours waits for its answer.
    held: BTreeMap<SocketAddr, Vec<Box<[u8]>>>,
}

impl Proofs {
    pub(super) fn new() -> Self {
        Self {
            verified: RecentHosts::new(MAX_VERIFIED, VERIFIED_TIME),
            silent: RecentHosts::new(MAX_SILENT, SILENT_TIME),
            spare: SpareBytes::default(),
            held: BTreeMap::new(),
        }
    }

    /// Records that a host has proved its address.
    pub(super) fn insert(&mut self, ip: IpAddr, now: Timestamp) {
        self.verified.insert(ip, now);
    }
}

impl Node {
    /// Whether a host has proved its address.
    pub(super) fn is_verified(&self, from: SocketAddr, now: Timestamp) -> bool {
        self.part(Family::of(from.ip())).table.knows(from) || self.proofs.verified.contains(from.ip(), now)
    }

    /// Whether a query has a token that we gave to its host.
    pub(super) fn has_token(&self, query: &Query<'_>, from: SocketAddr) -> bool {
        match &query.method {
            Ok(Method::AnnouncePeer { info_hash, token, .. }) => self.tokens.check(token, from.ip(), *info_hash),
            Ok(Method::Put { token, item }) => self.tokens.check(token, from.ip(), item.target()),
            _ => false,
        }
    }

    /// Keeps a question until its host has proved its address by the answer to a ping. Returns false if the question
    /// has to be answered without proof: the host answers no queries, or there is no place for it.
    pub(super) fn hold(&mut self, query: &Query<'_>, datagram: &[u8], from: SocketAddr, now: Timestamp) -> bool {
        let is_silent = query.is_read_only || self.proofs.silent.contains(from.ip(), now);
        if is_silent || !(PING_BYTES..=MAX_HELD_BYTES).contains(&datagram.len()) {
            return false;
        }
        if let Some(questions) = self.proofs.held.get_mut(&from) {
            let has_place = questions.len() < MAX_HELD_QUESTIONS;
            if has_place {
                questions.push(datagram.into());
            }
            return has_place;
        }
        // The rest of the table of pending queries is for searches.
        if self.proofs.held.len() >= self.settings.max_pending / 4 {
            return false;
        }
        let is_asked = self.pending.is_asking(from) || self.ask_for_proof(query.id, datagram.len(), from, now);
        if is_asked {
            self.proofs.held.insert(from, vec![datagram.into()]);
        }
        is_asked
    }

    /// Pings the sender of a question of `question` bytes. The ping counts as an answer, and not as a query of ours.
    fn ask_for_proof(&mut self, id: NodeId, question: usize, from: SocketAddr, now: Timestamp) -> bool {
        if self.host_ready_at(from, 1, now) > now || !self.take_ping_bytes(question, 0, from, now) {
            return false;
        }
        self.count_host_queries(from, 1, now);
        let is_sent = self.send_query(from, Some(id), Method::Ping, None, Purpose::Proof, now);
        if is_sent && let Some(budget) = self.answers.open(false, false, now) {
            budget.take_any(PING_BYTES, now);
        }
        is_sent
    }

    /// Answers the questions of a host that has proved its address.
    pub(super) fn answer_held(&mut self, from: SocketAddr, now: Timestamp) {
        for datagram in self.proofs.held.remove(&from).unwrap_or_default() {
            let packet = Packet::parse(&datagram);
            let message = packet.as_ref().ok().and_then(|packet| packet.message().ok());
            if let Some(message) = message
                && let Body::Query(query) = &message.body
            {
                self.respond(&message, query, &datagram, from, now);
            }
        }
    }

    /// Forgets the questions of a host that has not answered.
    pub(super) fn drop_held(&mut self, from: SocketAddr, now: Timestamp) {
        if self.proofs.held.remove(&from).is_some() {
            self.proofs.silent.insert(from.ip(), now);
        }
    }

    /// Whether a host that has asked may be pinged too: it has proved its address, or its questions allow the bytes.
    pub(super) fn take_ping_bytes(&mut self, question: usize, sent: usize, from: SocketAddr, now: Timestamp) -> bool {
        if self.is_verified(from, now) {
            return true;
        }
        let spare = self.proofs.spare.take(from.ip(), now);
        let allowed = question.saturating_mul(self.settings.max_amplification) + spare;
        let left = allowed.saturating_sub(sent);
        let may_ping = left >= PING_BYTES;
        let left = if may_ping { left - PING_BYTES } else { left };
        self.proofs.spare.keep(from.ip(), left, now);
        may_ping
    }

    /// Pings a node that has shown up, to find out whether it is alive.
    pub(super) fn ping_unknown(&mut self, id: NodeId, address: SocketAddr, now: Timestamp) {
        if self.pending.ping_count() < MAX_PINGS && !self.pending.is_asking(address) {
            self.send_ping(address, Some(id), now);
        }
    }
}
