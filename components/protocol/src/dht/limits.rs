//! Limits on what strangers cost: queries per address, bytes per second, and the size of answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::prefix::site;
use crate::time::Timestamp;

/// An allowance that refills with time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    per_second: u32,
    burst: u32,
    left: f64,
    at: Timestamp,
}

impl Budget {
    /// A full budget that refills by `per_second` units up to `burst`.
    #[must_use]
    pub fn new(per_second: u32, burst: u32, now: Timestamp) -> Self {
        Self {
            per_second,
            burst,
            left: f64::from(burst),
            at: now,
        }
    }

    /// A budget of bytes, of which those of three seconds can be spent at once.
    #[must_use]
    pub fn of_bytes(per_second: u32, now: Timestamp) -> Self {
        Self::new(per_second, per_second.saturating_mul(3), now)
    }

    /// Takes `amount` units, if there are as many.
    pub fn take(&mut self, amount: usize, now: Timestamp) -> bool {
        let is_enough = self.has(amount, now);
        if is_enough {
            self.spend(amount, now);
        }
        is_enough
    }

    /// Takes `amount` units, if anything is left; the budget may go below zero and refills from there.
    pub fn take_any(&mut self, amount: usize, now: Timestamp) -> bool {
        let is_positive = self.has(1, now);
        if is_positive {
            self.spend(amount, now);
        }
        is_positive
    }

    /// Whether `amount` units are left.
    #[must_use]
    pub fn has(&self, amount: usize, now: Timestamp) -> bool {
        self.level(now) >= amount as f64
    }

    /// The time at which `amount` units will be left.
    #[must_use]
    pub fn ready_at(&self, amount: usize, now: Timestamp) -> Timestamp {
        let missing = (amount as f64).min(f64::from(self.burst)) - self.level(now);
        if missing <= 0.0 {
            return now;
        }
        if self.per_second == 0 {
            return Timestamp::NEVER;
        }
        now + Duration::from_secs_f64(missing / f64::from(self.per_second)) + Duration::from_millis(1)
    }

    fn level(&self, now: Timestamp) -> f64 {
        let gained = now.since(self.at).as_secs_f64() * f64::from(self.per_second);
        (self.left + gained).min(f64::from(self.burst))
    }

    fn spend(&mut self, amount: usize, now: Timestamp) {
        self.left = self.level(now) - amount as f64;
        self.at = self.at.max(now);
    }
}

/// A limit on the queries of each host, or of each /64 of IPv6 addresses.
#[derive(Debug, Clone)]
pub struct AddressLimit {
    per_second: u32,
    burst: u32,
    max_hosts: usize,
    /// The allowance of each host, and the time at which it is whole again.
    hosts: BTreeMap<IpAddr, (Budget, Timestamp)>,
    /// The hosts by that time: the first one has most left.
    by_whole: BTreeSet<(Timestamp, IpAddr)>,
}

impl AddressLimit {
    /// Allows each host `per_second` queries, and `burst` at once. Remembers at most `max_hosts` hosts.
    #[must_use]
    pub fn new(per_second: u32, burst: u32, max_hosts: usize) -> Self {
        Self {
            per_second,
            burst,
            max_hosts,
            hosts: BTreeMap::new(),
            by_whole: BTreeSet::new(),
        }
    }

    /// Counts a query of `ip`. Returns whether it is within the limit.
    ///
    /// Hosts that have regained their whole allowance are forgotten. In a table full of others, which takes a flood
    /// from as many addresses, a new host takes the place of the one with the greatest rest of its allowance: no host
    /// is refused because of the others, and hosts that have used up their allowance are remembered longest.
    pub fn allow(&mut self, ip: IpAddr, now: Timestamp) -> bool {
        self.allow_many(ip, 1, now)
    }

    /// Counts several queries like [`AddressLimit::allow`]: all of them or none.
    pub fn allow_many(&mut self, ip: IpAddr, count: usize, now: Timestamp) -> bool {
        let host = site(ip);
        let known = self.hosts.get(&host).copied();
        let mut budget = match known {
            Some((budget, _)) => budget,
            None => Budget::new(self.per_second, self.burst, now),
        };
        if !budget.take(count, now) {
            return false;
        }
        match known {
            Some((_, whole_at)) => drop(self.by_whole.remove(&(whole_at, host))),
            None => self.make_room(now),
        }
        let whole_at = budget.ready_at(self.burst as usize, now);
        self.by_whole.insert((whole_at, host));
        self.hosts.insert(host, (budget, whole_at));
        true
    }

    /// The time at which `count` queries of `ip` will be within the limit.
    #[must_use]
    pub fn ready_at(&self, ip: IpAddr, count: usize, now: Timestamp) -> Timestamp {
        let known = self.hosts.get(&site(ip));
        known.map_or(now, |(budget, _)| budget.ready_at(count, now))
    }

    /// Forgets the hosts whose allowance is whole, and one more if the table is full.
    fn make_room(&mut self, now: Timestamp) {
        while let Some(&(whole_at, host)) = self.by_whole.first()
            && (whole_at <= now || self.hosts.len() >= self.max_hosts)
        {
            self.by_whole.pop_first();
            self.hosts.remove(&host);
        }
    }

    /// The number of remembered hosts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether no host is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_budget_refills() {
        let mut budget = Budget::new(10, 20, at(0));
        assert!(budget.take(20, at(0)) && !budget.take(1, at(0)));
        assert_eq!(budget.ready_at(5, at(0)), at(501));
        assert!(!budget.take(5, at(499)) && budget.take(5, at(500)));
        assert!(budget.take(20, at(60_000)) && !budget.take(1, at(60_000)));
        // A unit is enough to take more, which has to be paid back first.
        assert!(budget.take_any(11, at(60_100)) && !budget.take_any(1, at(61_000)));
        assert!(budget.take_any(1, at(61_200)));
        assert_eq!(Budget::new(0, 0, at(0)).ready_at(1, at(0)), at(0));
        let mut empty = Budget::new(0, 1, at(0));
        assert!(empty.take(1, at(0)));
        assert_eq!(empty.ready_at(1, at(0)), Timestamp::NEVER);
    }

    #[test]
    fn one_host_does_not_use_up_the_others_queries() {
        let mut limit = AddressLimit::new(5, 10, 100);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let allowed = (0..100).filter(|_| limit.allow(ip("9.9.9.9"), at(0))).count();
        assert_eq!(allowed, 10);
        assert!(limit.allow(ip("9.9.9.8"), at(0)));
        assert!(limit.allow(ip("9.9.9.9"), at(200)));
        assert!(!limit.allow_many(ip("9.9.9.9"), 3, at(600)) && limit.allow_many(ip("9.9.9.9"), 2, at(600)));
        assert_eq!(limit.ready_at(ip("9.9.9.9"), 3, at(600)), at(1201));
        assert_eq!(limit.ready_at(ip("9.9.9.7"), 3, at(600)), at(600));
        // All addresses of a /64 are one host.
        let flood = (0..100u16).filter(|&n| limit.allow(IpAddr::from([0x2a01, 1, 2, 3, 4, 5, 6, n]), at(0)));
        assert_eq!(flood.count(), 10);
    }

    /// Forged addresses do not make the table grow, do not keep out other hosts, and do not free a host from its limit.
    #[test]
    fn forged_addresses_use_up_no_places() {
        let mut limit = AddressLimit::new(5, 50, 4096);
        let [flooder, honest, newcomer] = [[9, 9, 9, 9], [9, 9, 9, 8], [9, 9, 9, 7]].map(IpAddr::from);
        assert!(limit.allow_many(flooder, 50, at(0)));
        let mut allowed = [0; 3];
        // 20 000 addresses a second, for five seconds.
        for n in 0..100_000u32 {
            let now = at(u64::from(n / 20));
            assert!(limit.allow(IpAddr::from((0x1500_0000 + n).to_be_bytes()), now), "{n}");
            assert!(limit.len() <= 4096 && limit.by_whole.len() == limit.hosts.len());
            allowed[0] += usize::from(limit.allow(flooder, now));
            if n % 10_000 == 0 {
                allowed[1] += (0..20).filter(|_| limit.allow(honest, now)).count();
                let fresh = IpAddr::from([9, 9, 8, (n / 10_000) as u8]);
                allowed[2] += usize::from(limit.ready_at(fresh, 1, now) == now && limit.allow(fresh, now));
            }
        }
        // The flooder gets its rate, the honest host its allowance and its rate, and new hosts are served.
        assert_eq!((allowed[0], allowed[2]), (24, 10), "{allowed:?}");
        assert!((70..=73).contains(&allowed[1]), "{allowed:?}");
        assert!(limit.allow(newcomer, at(60_000)));
        assert_eq!(limit.len(), 1, "all others are forgotten");
        assert!(!limit.is_empty());
    }
}
