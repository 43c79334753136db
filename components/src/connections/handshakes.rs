//! Inbound connections with incomplete handshakes, in the order of their eviction.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bevy_ecs::prelude::*;

/// Incomplete handshakes by subnet. Endpoints without an IP address form a subnet of their own.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    by_subnet: BTreeMap<Option<IpAddr>, BTreeSet<(u64, Entity)>>,
    /// Number of handshakes of each subnet, and the number of its oldest. The last entry is the most crowded subnet;
    /// among equals, the one with the oldest handshake.
    by_crowd: BTreeSet<(usize, Reverse<u64>, Option<IpAddr>)>,
    last: u64,
}

impl Handshakes {
    /// Returns a number that is larger than all before.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(super) fn insert(&mut self, subnet: Option<IpAddr>, number: u64, entity: Entity) {
        self.change(subnet, |members| members.insert((number, entity)));
    }

    pub(super) fn remove(&mut self, subnet: Option<IpAddr>, number: u64, entity: Entity) {
        self.change(subnet, |members| members.remove(&(number, entity)));
    }

    /// Returns the oldest handshake of the most crowded subnet.
    pub(super) fn most_crowded(&self) -> Option<Entity> {
        let (.., subnet) = self.by_crowd.last()?;
        self.by_subnet.get(subnet)?.first().map(|(_, entity)| *entity)
    }

    fn change(&mut self, subnet: Option<IpAddr>, change: impl FnOnce(&mut BTreeSet<(u64, Entity)>) -> bool) {
        let members = self.by_subnet.entry(subnet).or_default();
        if let Some((oldest, _)) = members.first() {
            self.by_crowd.remove(&(members.len(), Reverse(*oldest), subnet));
        }
        change(members);
        match members.first() {
            Some((oldest, _)) => drop(self.by_crowd.insert((members.len(), Reverse(*oldest), subnet))),
            None => drop(self.by_subnet.remove(&subnet)),
        }
    }
}
