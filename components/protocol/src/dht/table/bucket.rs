//! A bucket: up to eight nodes, and as many that wait for a place.

use std::net::{IpAddr, SocketAddr};

use super::{Contact, K, PING_INTERVAL, Quality};
use crate::dht::id::NodeId;
use crate::prefix::{is_local, site, subnet};
use crate::time::Timestamp;

/// Maximum number of nodes that wait for a place in a bucket.
const MAX_REPLACEMENTS: usize = K;

#[derive(Debug, Clone)]
pub(super) struct Bucket {
    contacts: Vec<Contact>,
    /// Newest last.
    replacements: Vec<Contact>,
    /// BEP 5: the time at which a node of the bucket answered, or was added.
    changed: Timestamp,
}

impl Bucket {
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            contacts: Vec::new(),
            replacements: Vec::new(),
            changed: now,
        }
    }

    pub(super) fn changed(&self) -> Timestamp {
        self.changed
    }

    pub(super) fn set_changed(&mut self, now: Timestamp) {
        self.changed = now;
    }

    pub(super) fn contacts(&self) -> std::slice::Iter<'_, Contact> {
        self.contacts.iter()
    }

    pub(super) fn replacement_count(&self) -> usize {
        self.replacements.len()
    }

    pub(super) fn into_contacts(self) -> impl Iterator<Item = Contact> {
        self.contacts.into_iter().chain(self.replacements)
    }

    pub(super) fn id_at(&self, address: SocketAddr) -> Option<NodeId> {
        let mut all = self.contacts.iter().chain(&self.replacements);
        all.find(|contact| contact.address == address).map(|contact| contact.id)
    }

    pub(super) fn holds(&self, address: SocketAddr) -> bool {
        self.contacts.iter().any(|contact| contact.address == address)
    }

    /// Whether a node of that host other than the one at `address` is here.
    pub(super) fn has_host(&self, host: Option<IpAddr>, address: SocketAddr) -> bool {
        let mut all = self.contacts.iter().chain(&self.replacements);
        all.any(|contact| match host {
            Some(_) => one_per_host(contact.address) == host,
            None => contact.address == address,
        })
    }

    /// Whether the bucket has no other node of the same /24 or /48. One provider's customer could otherwise fill it.
    pub(super) fn has_room_for(&self, address: SocketAddr) -> bool {
        let network = subnet(address.ip());
        is_local(address.ip())
            || self
                .contacts
                .iter()
                .all(|contact| subnet(contact.address.ip()) != network)
    }

    /// Whether the bucket has a free place, or a node that may lose its place.
    pub(super) fn has_place(&self, now: Timestamp) -> bool {
        self.contacts.len() < K
            || self
                .contacts
                .iter()
                .any(|contact| contact.quality(now) != Quality::Good)
    }

    /// Gives `contact` a place, the place of a worse node, or one in the replacement cache. Returns false, without a
    /// change, if the bucket is full and should be split instead.
    pub(super) fn offer(&mut self, contact: Contact, may_split: bool, now: Timestamp) -> bool {
        if !self.has_room_for(contact.address) {
            return true;
        }
        if self.contacts.len() < K {
            self.contacts.push(contact);
            self.changed = now;
            return true;
        }
        let worst = self.contacts.iter_mut().max_by_key(|contact| contact.quality(now));
        if let Some(worst) = worst.filter(|worst| worst.quality(now) == Quality::Bad) {
            *worst = contact;
            self.changed = now;
            return true;
        }
        if may_split {
            return false;
        }
        // BEP 42: nodes whose id fits their address are preferred.
        if contact.fits()
            && let Some(unfit) = self.contacts.iter_mut().find(|contact| !contact.fits())
        {
            *unfit = contact;
            self.changed = now;
            return true;
        }
        if self.replacements.len() == MAX_REPLACEMENTS {
            self.replacements.remove(0);
        }
        self.replacements.push(contact);
        true
    }

    /// Records an answer. Returns whether the node has a place; a waiting node becomes the newest one.
    pub(super) fn refresh(&mut self, address: SocketAddr, now: Timestamp) -> bool {
        if let Some(contact) = self.contacts.iter_mut().find(|contact| contact.address == address) {
            contact.replied = now;
            contact.failures = 0;
            self.changed = now;
            return true;
        }
        if let Some(at) = self.replacements.iter().position(|contact| contact.address == address) {
            let mut contact = self.replacements.remove(at);
            contact.replied = now;
            contact.failures = 0;
            self.replacements.push(contact);
            self.fill(now);
        }
        self.holds(address)
    }

    pub(super) fn record_query(&mut self, address: SocketAddr, now: Timestamp) {
        let mut all = self.contacts.iter_mut().chain(&mut self.replacements);
        if let Some(contact) = all.find(|contact| contact.address == address) {
            contact.queried = Some(now);
        }
    }

    /// Counts a failure. A bad node loses its place to a waiting node, and a waiting node is forgotten.
    pub(super) fn record_failure(&mut self, address: SocketAddr, now: Timestamp) {
        self.replacements.retain(|contact| contact.address != address);
        if let Some(contact) = self.contacts.iter_mut().find(|contact| contact.address == address) {
            contact.failures = contact.failures.saturating_add(1);
        }
        self.fill(now);
    }

    pub(super) fn remove(&mut self, address: SocketAddr) {
        self.contacts.retain(|contact| contact.address != address);
        self.replacements.retain(|contact| contact.address != address);
    }

    /// Takes the nodes out that `is_wanted` chooses.
    pub(super) fn take_if(&mut self, is_wanted: impl Fn(&Contact) -> bool) -> Vec<Contact> {
        let places = self.contacts.extract_if(.., |contact| is_wanted(contact));
        let mut taken: Vec<Contact> = places.collect();
        taken.extend(self.replacements.extract_if(.., |contact| is_wanted(contact)));
        taken
    }

    /// Fills free places, and those of bad nodes, with the nodes that wait, newest first.
    pub(super) fn fill(&mut self, now: Timestamp) {
        let mut at = self.replacements.len();
        while at > 0 {
            at -= 1;
            let candidate = self.replacements[at];
            let bad = self
                .contacts
                .iter()
                .position(|contact| contact.quality(now) == Quality::Bad);
            if self.contacts.len() == K && bad.is_none() {
                return;
            }
            if !self.has_room_for(candidate.address) {
                continue;
            }
            match bad {
                Some(bad) => self.contacts[bad] = candidate,
                None => self.contacts.push(candidate),
            }
            self.replacements.remove(at);
            self.changed = now;
        }
    }

    /// The questionable or bad node that has been silent longest and has not been pinged recently.
    pub(super) fn oldest_questionable(&mut self, now: Timestamp) -> Option<&mut Contact> {
        let due = self.contacts.iter_mut().filter(|contact| {
            let is_due = contact.pinged.is_none_or(|pinged| now.since(pinged) >= PING_INTERVAL);
            is_due && contact.quality(now) != Quality::Good
        });
        due.min_by_key(|contact| contact.seen())
    }
}

/// The host that an address counts for. Several nodes on this machine's loopback addresses are those of a test or of
/// one user, and count individually.
pub(super) fn one_per_host(address: SocketAddr) -> Option<IpAddr> {
    (!address.ip().is_loopback()).then(|| site(address.ip()))
}
