//! The routing table of one address family (BEP 5, "Routing Table").
//!
//! A node enters the table by answering a query of ours, never by asking one. A full bucket that covers our own id is
//! split; any other full bucket keeps newcomers in a replacement cache, from which the places of bad nodes are filled.

mod bucket;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;

use self::bucket::{Bucket, one_per_host};
use super::id::NodeId;
use crate::time::Timestamp;

/// Nodes of a bucket, and of a list in a reply (BEP 5: "K nodes, currently eight").
pub const K: usize = 8;

/// Maximum number of buckets. A network of 2^50 nodes would fill as many; beyond that, only forged ids share more bits
/// with ours.
const MAX_BUCKETS: usize = 50;

/// Time without a sign of life after which a node is questionable, and after which a bucket is refreshed (BEP 5).
pub const FRESH: Duration = Duration::from_secs(15 * 60);

/// Queries in a row without an answer after which a node is bad (BEP 5: "try once more").
const MAX_FAILURES: u8 = 2;

/// Time between two pings of the same questionable node.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// A node of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contact {
    /// The node's id.
    pub id: NodeId,
    /// The node's address.
    pub address: SocketAddr,
    /// The time of its last answer.
    pub replied: Timestamp,
    /// The time of its last query, if any.
    pub queried: Option<Timestamp>,
    /// The time of our last ping that was meant to find out whether it is alive.
    pinged: Option<Timestamp>,
    /// Queries in a row without an answer.
    failures: u8,
}

/// The state of a node (BEP 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quality {
    /// The node has shown a sign of life recently.
    Good,
    /// The node has been silent for a while.
    Questionable,
    /// The node has left several queries in a row without an answer.
    Bad,
}

impl Contact {
    /// A node that has answered at `now`.
    #[must_use]
    pub fn answered(id: NodeId, address: SocketAddr, now: Timestamp) -> Self {
        Self {
            id,
            address,
            replied: now,
            queried: None,
            pinged: None,
            failures: 0,
        }
    }

    /// The node's state.
    #[must_use]
    pub fn quality(&self, now: Timestamp) -> Quality {
        match self {
            _ if self.failures >= MAX_FAILURES => Quality::Bad,
            _ if self.failures > 0 || now.since(self.seen()) > FRESH => Quality::Questionable,
            _ => Quality::Good,
        }
    }

    /// The time of the last sign of life. A query counts, because the node has answered before (BEP 5).
    fn seen(&self) -> Timestamp {
        self.queried.map_or(self.replied, |queried| queried.max(self.replied))
    }

    fn fits(&self) -> bool {
        self.id.fits(self.address.ip())
    }
}

/// Numbers of nodes in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableStats {
    /// Nodes with a place.
    pub nodes: usize,
    /// Nodes among them that are good.
    pub good: usize,
    /// Nodes that wait for a place.
    pub replacements: usize,
    /// Buckets.
    pub buckets: usize,
}

/// The routing table of one address family.
#[derive(Debug, Clone)]
pub struct Table {
    id: NodeId,
    /// Bucket `i` covers the ids that share exactly `i` leading bits with ours; the last one covers all that share
    /// more.
    buckets: Vec<Bucket>,
}

impl Table {
    /// Creates an empty table around our own id.
    #[must_use]
    pub fn new(id: NodeId, now: Timestamp) -> Self {
        Self {
            id,
            buckets: vec![Bucket::new(now)],
        }
    }

    /// Our own id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Changes our own id. Keeps the nodes, which move to other buckets.
    pub fn set_id(&mut self, id: NodeId, now: Timestamp) {
        let old = std::mem::replace(self, Self::new(id, now));
        let mut contacts: Vec<Contact> = old.buckets.into_iter().flat_map(Bucket::into_contacts).collect();
        contacts.sort_by_key(|contact| contact.quality(now));
        contacts.into_iter().for_each(|contact| self.place(contact, now));
    }

    /// Records an answer of a node, which brings it into the table if there is a place. Returns whether it has a place.
    ///
    /// A node that answers with another id than before loses its place: it lies, or another program has its address.
    pub fn record_reply(&mut self, id: NodeId, address: SocketAddr, now: Timestamp) -> bool {
        if let Some((bucket, known)) = self.find(address) {
            if known == id {
                return self.buckets[bucket].refresh(address, now);
            }
            self.buckets[bucket].remove(address);
        }
        if id != self.id {
            self.place(Contact::answered(id, address, now), now);
        }
        self.bucket_of(id).holds(address)
    }

    /// Records a query of a node. Returns whether the node is unknown and would be useful: a ping finds out whether it
    /// is alive.
    pub fn record_query(&mut self, id: NodeId, address: SocketAddr, now: Timestamp) -> bool {
        match self.find(address) {
            Some((bucket, known)) if known == id => {
                self.buckets[bucket].record_query(address, now);
                false
            }
            Some(_) => false,
            None => self.wants(id, address, now),
        }
    }

    /// Whether a node that has not answered yet would get a place if it did.
    #[must_use]
    pub fn wants(&self, id: NodeId, address: SocketAddr, now: Timestamp) -> bool {
        if id == self.id || self.is_taken(address) {
            return false;
        }
        let index = self.index(id);
        let bucket = &self.buckets[index];
        bucket.has_room_for(address) && (self.may_split(index) || bucket.has_place(now))
    }

    /// Records that a node has left a query without an answer.
    pub fn record_failure(&mut self, address: SocketAddr, now: Timestamp) {
        if let Some((bucket, _)) = self.find(address) {
            self.buckets[bucket].record_failure(address, now);
        }
    }

    /// Removes the node at `address`.
    pub fn evict(&mut self, address: SocketAddr) {
        if let Some((bucket, _)) = self.find(address) {
            self.buckets[bucket].remove(address);
        }
    }

    /// Returns the nodes closest to `target`, closest first, at most `max`. Bad nodes are left out.
    #[must_use]
    pub fn closest(&self, target: NodeId, max: usize, now: Timestamp) -> Vec<Contact> {
        let mut closest: Vec<Contact> = Vec::with_capacity(max + 1);
        for contact in self.buckets.iter().flat_map(Bucket::contacts) {
            let distance = contact.id.distance(target);
            if closest.len() == max && closest.last().is_none_or(|last| distance >= last.id.distance(target))
                || contact.quality(now) == Quality::Bad
            {
                continue;
            }
            let at = closest.partition_point(|closer| closer.id.distance(target) < distance);
            closest.insert(at, *contact);
            closest.truncate(max);
        }
        closest
    }

    /// Returns a node to ping: the questionable node that has been silent longest in the next bucket that has one, and
    /// records the ping. BEP 5 pings when a newcomer needs a place; pinging earlier keeps the places ready.
    pub fn next_ping(&mut self, now: Timestamp) -> Option<Contact> {
        let mut pings = self
            .buckets
            .iter_mut()
            .filter_map(|bucket| bucket.oldest_questionable(now));
        let contact = pings.next()?;
        contact.pinged = Some(now);
        Some(*contact)
    }

    /// Returns a random id in the bucket that has gone without a change for longest, if that is [`FRESH`]: a search for
    /// it refreshes the bucket (BEP 5). Counts as its refreshment.
    pub fn next_refresh(&mut self, now: Timestamp, rng: &mut impl Rng) -> Option<NodeId> {
        let (index, bucket) = self
            .buckets
            .iter_mut()
            .enumerate()
            .min_by_key(|(_, bucket)| bucket.changed())?;
        if now.since(bucket.changed()) < FRESH {
            return None;
        }
        bucket.set_changed(now);
        Some(self.id.neighbor(index, rng))
    }

    /// All nodes with a place.
    pub fn contacts(&self) -> impl Iterator<Item = &Contact> {
        self.buckets.iter().flat_map(Bucket::contacts)
    }

    /// Whether no node has a place.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.contacts().next().is_none()
    }

    /// Whether the node at `address` has answered before, and is known.
    #[must_use]
    pub fn knows(&self, address: SocketAddr) -> bool {
        self.find(address).is_some()
    }

    /// Counts the nodes.
    #[must_use]
    pub fn stats(&self, now: Timestamp) -> TableStats {
        TableStats {
            nodes: self.contacts().count(),
            good: self
                .contacts()
                .filter(|contact| contact.quality(now) == Quality::Good)
                .count(),
            replacements: self.buckets.iter().map(Bucket::replacement_count).sum(),
            buckets: self.buckets.len(),
        }
    }

    /// Gives a node a place, or a place in the replacement cache, if its network has no other node there.
    fn place(&mut self, contact: Contact, now: Timestamp) {
        if self.is_taken(contact.address) {
            return;
        }
        loop {
            let index = self.index(contact.id);
            let may_split = self.may_split(index);
            if self.buckets[index].offer(contact, may_split, now) {
                return;
            }
            self.split(now);
        }
    }

    /// Splits the last bucket: the nodes that share more bits with our id move to a new one.
    fn split(&mut self, now: Timestamp) {
        let bits = self.buckets.len() - 1;
        let id = self.id;
        let Some(last) = self.buckets.last_mut() else { return };
        let mut closer = Bucket::new(now);
        for contact in last.take_if(|contact| id.shared_bits(contact.id) > bits) {
            closer.offer(contact, false, now);
        }
        last.fill(now);
        closer.fill(now);
        self.buckets.push(closer);
    }

    fn may_split(&self, index: usize) -> bool {
        index + 1 == self.buckets.len() && self.buckets.len() < MAX_BUCKETS
    }

    fn index(&self, id: NodeId) -> usize {
        self.id.shared_bits(id).min(self.buckets.len() - 1)
    }

    fn bucket_of(&self, id: NodeId) -> &Bucket {
        &self.buckets[self.index(id)]
    }

    /// The bucket and the id of the node at `address`.
    fn find(&self, address: SocketAddr) -> Option<(usize, NodeId)> {
        let mut buckets = self.buckets.iter().enumerate();
        buckets.find_map(|(index, bucket)| Some((index, bucket.id_at(address)?)))
    }

    /// Whether another node of the same host has a place. A host with many ports would otherwise fill the table.
    fn is_taken(&self, address: SocketAddr) -> bool {
        let host = one_per_host(address);
        self.buckets.iter().any(|bucket| bucket.has_host(host, address))
    }
}
