//! Bans of peers that sent corrupt data, and blocked networks.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::tally::Tally;
use ecs_torrent_protocol::time::Timestamp;

use crate::networks::AddressSet;
use crate::prefix::{is_local, site, subnet};
use crate::settings::PeerSettings;

/// Temporary bans of peer addresses, and the addresses that the user blocks.
///
/// A ban applies to the observed address of a peer, never to its claims: a peer id or a port can belong to another
/// peer. It does not apply to the whole IP address either, which many peers may share. A site or a subnet is refused as
/// a whole only after several different peers of it were banned.
#[derive(Resource, Debug, Default)]
pub struct Bans {
    until: BTreeMap<SocketAddr, Timestamp>,
    sites: Tally<IpAddr>,
    subnets: Tally<IpAddr>,
    /// Bans in the order of their expiry; all last equally long.
    order: VecDeque<(Timestamp, SocketAddr)>,
    /// Addresses that the user blocks.
    blocked: AddressSet,
}

/// Number of bans after which a prefix is refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BanLimits {
    /// Limit of one site ([`site`]).
    pub per_site: usize,
    /// Limit of one subnet ([`subnet`]).
    pub per_subnet: usize,
}

impl From<&PeerSettings> for BanLimits {
    fn from(settings: &PeerSettings) -> Self {
        Self {
            per_site: settings.bans_per_ip,
            per_subnet: settings.bans_per_subnet,
        }
    }
}

impl Bans {
    /// Bans the peer at `address` for `duration`; beyond `max` bans, the oldest one ends early.
    pub fn ban(&mut self, now: Timestamp, duration: Duration, max: usize, address: SocketAddr) {
        self.expire(now);
        while self.order.len() >= max.max(1) {
            self.end_oldest();
        }
        self.until.insert(address, now + duration);
        self.sites.add(site(address.ip()));
        self.subnets.add(subnet(address.ip()));
        self.order.push_back((now + duration, address));
    }

    /// Replaces the addresses that the user blocks, for as long as this is not called again.
    pub fn block(&mut self, addresses: AddressSet) {
        self.blocked = addresses;
    }

    /// Whether the user blocks an address.
    #[must_use]
    pub fn is_blocked(&self, ip: IpAddr) -> bool {
        self.blocked.contains(ip)
    }

    /// Whether `address` is refused: blocked or banned itself, or in a site or subnet with too many bans.
    #[must_use]
    pub fn refuses(&self, now: Timestamp, address: SocketAddr, limits: BanLimits) -> bool {
        self.has(now, address)
            || self.sites.of(&site(address.ip())) >= limits.per_site
            || (!is_local(address.ip()) && self.subnets.of(&subnet(address.ip())) >= limits.per_subnet)
    }

    /// Whether the peer at `address` itself is blocked or banned.
    #[must_use]
    pub fn has(&self, now: Timestamp, address: SocketAddr) -> bool {
        self.is_blocked(address.ip()) || self.until.get(&address).is_some_and(|until| *until > now)
    }

    /// Removes expired bans.
    pub fn expire(&mut self, now: Timestamp) {
        while self.order.front().is_some_and(|(until, ..)| *until <= now) {
            self.end_oldest();
        }
    }

    fn end_oldest(&mut self) {
        let Some((until, address)) = self.order.pop_front() else {
            return;
        };
        // A newer ban of the same address stays in force.
        if self.until.get(&address) == Some(&until) {
            self.until.remove(&address);
        }
        self.sites.remove(&site(address.ip()));
        self.subnets.remove(&subnet(address.ip()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const LIMITS: BanLimits = BanLimits {
        per_site: 3,
        per_subnet: 4,
    };

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn ban(bans: &mut Bans, now: Timestamp, port: u16, max: usize) {
        bans.ban(now, HOUR, max, address(port));
    }

    #[test]
    fn a_ban_is_on_the_peer_and_ends() {
        let mut bans = Bans::default();
        ban(&mut bans, at(0), 1, 10);
        assert!(bans.refuses(at(1), address(1), LIMITS));
        assert!(
            !bans.refuses(at(1), address(2), LIMITS),
            "a neighbor behind the same gateway"
        );
        assert!(!bans.refuses(at(3600), address(1), LIMITS));
        ban(&mut bans, at(1800), 1, 10);
        bans.expire(at(3600));
        assert!(bans.refuses(at(3600), address(1), LIMITS), "the newer ban goes on");
    }

    #[test]
    fn many_offenders_ban_their_site() {
        let mut bans = Bans::default();
        (1..=3).for_each(|port| ban(&mut bans, at(0), port, 10));
        let higher = BanLimits { per_site: 4, ..LIMITS };
        assert!(bans.refuses(at(1), address(99), LIMITS) && !bans.refuses(at(1), address(99), higher));
        bans.expire(at(3600));
        let lower = BanLimits { per_site: 1, ..LIMITS };
        assert!(!bans.refuses(at(3600), address(99), lower));
    }

    /// An IPv6 /64 counts as one customer, however many of its addresses are used.
    #[test]
    fn a_slash_64_is_one_site() {
        let of = |last: u16| SocketAddr::new([0x2a01, 1, 2, 3, 0, 0, 0, last].into(), 6881);
        let mut bans = Bans::default();
        (1..=3).for_each(|last| bans.ban(at(0), HOUR, 10, of(last)));
        assert!(bans.refuses(at(1), of(4), LIMITS));
        let elsewhere = SocketAddr::new([0x2a01, 1, 2, 4, 0, 0, 0, 1].into(), 6881);
        assert!(!bans.refuses(at(1), elsewhere, LIMITS));
    }

    #[test]
    fn many_offenders_ban_their_subnet_unless_it_is_local() {
        let mut bans = Bans::default();
        for last in 1..=4 {
            bans.ban(at(0), HOUR, 20, ([9, 9, 9, last], 1).into());
            bans.ban(at(0), HOUR, 20, ([192, 168, 0, last], 1).into());
        }
        assert!(bans.refuses(at(1), ([9, 9, 9, 200], 1).into(), LIMITS));
        assert!(!bans.refuses(at(1), ([9, 9, 8, 200], 1).into(), LIMITS));
        assert!(!bans.refuses(at(1), ([192, 168, 0, 200], 1).into(), LIMITS));
    }

    #[test]
    fn the_list_is_bounded() {
        let mut bans = Bans::default();
        (1..=20).for_each(|port| ban(&mut bans, at(0), port, 5));
        assert!(!bans.has(at(1), address(15)) && bans.has(at(1), address(16)));
    }
}
