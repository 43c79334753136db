//! Keeping the tables: bootstrap, pings, refreshment of buckets, expiry, and our own id.

use std::net::SocketAddr;
use std::time::Duration;

use super::SearchId;
use super::searching::{Found, Goal};
use super::{Event, FamilyNode, Node};
use crate::compact::Family;
use crate::dht::id::NodeId;
use crate::dht::table::K;
use crate::time::Timestamp;

/// Time between two rounds of upkeep.
const ROUND: Duration = Duration::from_secs(5);

/// Pings of questionable nodes per round: a table of 400 nodes is checked in 15 minutes.
const PINGS_PER_ROUND: usize = 3;

/// Time between two attempts to fill a table that has too few nodes, doubled up to the second value.
const MIN_BACKOFF: Duration = Duration::from_secs(5);
const MAX_BACKOFF: Duration = Duration::from_secs(300);

/// Time between two sweeps of the stores.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Maximum number of bootstrap hosts of a family, and of saved nodes.
const MAX_HOSTS: usize = 64;
pub(super) const MAX_SAVED: usize = 300;

/// A family's upkeep.
#[derive(Debug, Clone)]
pub(super) struct Maintenance {
    next: Timestamp,
    next_bootstrap: Timestamp,
    next_sweep: Timestamp,
    backoff: Duration,
    /// The search that fills the table, or refreshes a bucket.
    search: Option<SearchId>,
    /// Nodes of an earlier run.
    saved: Vec<(NodeId, SocketAddr)>,
    /// Bootstrap hosts.
    hosts: Vec<SocketAddr>,
    last_reply: Option<Timestamp>,
    is_ready: bool,
}

impl Maintenance {
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            next: now,
            next_bootstrap: now,
            next_sweep: now + SWEEP_INTERVAL,
            backoff: MIN_BACKOFF,
            search: None,
            saved: Vec::new(),
            hosts: Vec::new(),
            last_reply: None,
            is_ready: false,
        }
    }

    pub(super) fn deadline(&self) -> Timestamp {
        self.next
    }

    pub(super) fn search(&self) -> Option<SearchId> {
        self.search
    }

    pub(super) fn saved(&self) -> &[(NodeId, SocketAddr)] {
        &self.saved
    }

    pub(super) fn hosts(&self) -> &[SocketAddr] {
        &self.hosts
    }

    pub(super) fn has_contacts(&self) -> bool {
        !self.saved.is_empty() || !self.hosts.is_empty()
    }

    pub(super) fn record_reply(&mut self, now: Timestamp) {
        self.last_reply = Some(now);
    }

    pub(super) fn has_reply_since(&self, time: Timestamp) -> bool {
        self.last_reply.is_some_and(|last| last >= time)
    }

    pub(super) fn set_saved(&mut self, mut saved: Vec<(NodeId, SocketAddr)>, now: Timestamp) {
        saved.truncate(MAX_SAVED);
        self.saved = saved;
        self.start_soon(now);
    }

    /// New contacts make another attempt worthwhile, whatever the last one has come to.
    fn start_soon(&mut self, now: Timestamp) {
        self.next = now;
        self.next_bootstrap = now;
        self.backoff = MIN_BACKOFF;
    }
}

impl Node {
    /// Adds a bootstrap host: a node whose id is not known. It is asked while the table has too few nodes.
    pub fn add_host(&mut self, address: SocketAddr, now: Timestamp) {
        let maintenance = &mut self.part_mut(Family::of(address.ip())).maintenance;
        if address.port() != 0 && !maintenance.hosts.contains(&address) && maintenance.hosts.len() < MAX_HOSTS {
            maintenance.hosts.push(address);
            maintenance.start_soon(now);
        }
    }

    /// Pings a node that a peer has named (BEP 5, `PORT`); if it answers, it may enter the table.
    pub fn add_node(&mut self, address: SocketAddr, now: Timestamp) {
        let part = self.part(Family::of(address.ip()));
        if !part.is_enabled || address.port() == 0 || part.table.knows(address) {
            return;
        }
        if part.table.contacts().count() < K {
            self.add_host(address, now);
        }
        if !self.pending.is_asking(address) {
            self.send_ping(address, None, now);
        }
    }

    /// Whether no family's table has enough nodes to search well.
    #[must_use]
    pub fn needs_contacts(&self) -> bool {
        let has_enough = |part: &FamilyNode| part.is_enabled && part.table.contacts().take(K).count() == K;
        !self.families.iter().any(has_enough)
    }

    /// Whether the table of a family has had nodes that answered.
    #[must_use]
    pub fn is_ready(&self, family: Family) -> bool {
        self.part(family).maintenance.is_ready
    }

    pub(super) fn maintain(&mut self, now: Timestamp) {
        for family in Family::ALL {
            let part = self.part_mut(family);
            if !part.is_enabled || part.maintenance.next > now {
                continue;
            }
            part.maintenance.next = now + ROUND;
            self.sweep(family, now);
            self.ping_questionable(family, now);
            if self.part(family).maintenance.search.is_none() {
                self.begin_upkeep(family, now);
            }
        }
    }

    /// Searches for our own id if the table has too few nodes, or for an id in a stale bucket.
    fn begin_upkeep(&mut self, family: Family, now: Timestamp) {
        let Self { families, rng, .. } = self;
        let part = &mut families[family as usize];
        let own = part.table.id();
        let upkeep = &mut part.maintenance;
        let is_poor = part.table.stats(now).good < K;
        let has_contacts = !part.table.is_empty() || upkeep.has_contacts();
        let (target, wants_both) = if is_poor {
            if upkeep.next_bootstrap > now || !has_contacts {
                return;
            }
            upkeep.next_bootstrap = now + upkeep.backoff;
            upkeep.backoff = (upkeep.backoff * 2).min(MAX_BACKOFF);
            // BEP 32, "Bootstrapping".
            (own, self.settings.families.v4 && self.settings.families.v6)
        } else {
            let Some(target) = part.table.next_refresh(now, rng) else {
                return;
            };
            (target, false)
        };
        // A bootstrap in both families at once lets each find nodes for the other.
        let only = if wants_both { None } else { Some(family) };
        let search = self.begin_search(target, Goal::Nodes, only, wants_both, now);
        self.part_mut(family).maintenance.search = Some(search);
    }

    /// Ends a search of the upkeep.
    pub(super) fn on_search_end(&mut self, search: SearchId, found: &Found, now: Timestamp) {
        for family in Family::ALL {
            let part = self.part_mut(family);
            if part.maintenance.search == Some(search) {
                part.maintenance.search = None;
                part.maintenance.next = now + ROUND;
            }
            let is_ready = found.reply_count > 0 && !part.table.is_empty();
            if is_ready && !part.maintenance.is_ready && part.is_enabled {
                part.maintenance.is_ready = true;
                self.events.push_back(Event::Ready(family));
            }
        }
    }

    fn ping_questionable(&mut self, family: Family, now: Timestamp) {
        for _ in 0..PINGS_PER_ROUND {
            if !self.queries.has(1, now) {
                return;
            }
            let Some(contact) = self.part_mut(family).table.next_ping(now) else {
                return;
            };
            self.send_ping(contact.address, Some(contact.id), now);
        }
    }

    fn sweep(&mut self, family: Family, now: Timestamp) {
        let part = self.part_mut(family);
        if part.maintenance.next_sweep <= now {
            part.maintenance.next_sweep = now + SWEEP_INTERVAL;
            part.peers.expire(now);
            self.items.expire(now);
        }
    }

    /// Counts another node's opinion of our address, and changes our id if it does not fit the address that most nodes
    /// see (BEP 42).
    pub(super) fn record_vote(&mut self, voter: SocketAddr, external: SocketAddr, now: Timestamp) {
        let variant = self.settings.id_variant;
        let Self { families, rng, .. } = self;
        let part = &mut families[Family::of(voter.ip()) as usize];
        let Some(address) = part.votes.vote(voter.ip(), external.ip()) else {
            return;
        };
        if !part.table.id().fits(address) {
            part.table.set_id(NodeId::variant_for(address, variant, rng), now);
            // The nodes close to the new id are others.
            part.maintenance.start_soon(now);
        }
        self.events.push_back(Event::ExternalAddress(address));
    }

    /// Our address in a family, if other nodes agree on it.
    #[must_use]
    pub fn external_address(&self, family: Family) -> Option<std::net::IpAddr> {
        self.part(family).votes.winner()
    }
}
