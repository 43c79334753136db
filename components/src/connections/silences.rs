//! Memory of sites whose silent connections were evicted.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use ecs_torrent_protocol::tally::Tally;
use ecs_torrent_protocol::time::Timestamp;

use crate::prefix::site;

/// Time for which an eviction is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(30 * 60);

/// Recent evictions of silent connections, counted by site.
#[derive(Debug, Default)]
pub(super) struct Silences {
    counts: Tally<IpAddr>,
    /// Evictions in the order of their time.
    order: VecDeque<(Timestamp, IpAddr)>,
}

impl Silences {
    /// Records the eviction of a silent connection to `ip`; beyond `max` records, the oldest one is forgotten.
    pub(super) fn record(&mut self, now: Timestamp, ip: IpAddr, max: usize) {
        while self
            .order
            .front()
            .is_some_and(|(at, _)| now.since(*at) >= REMEMBERED_FOR)
            || self.order.len() >= max
        {
            if !self.forget_oldest() {
                return;
            }
        }
        self.counts.add(site(ip));
        self.order.push_back((now, site(ip)));
    }

    /// Returns the number of remembered evictions of the site of `ip`.
    pub(super) fn of(&self, ip: IpAddr) -> usize {
        self.counts.of(&site(ip))
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((_, site)) = self.order.pop_front() else {
            return false;
        };
        self.counts.remove(&site)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn evictions_are_counted_by_site_and_forgotten() {
        let mut silences = Silences::default();
        let [one, same, other] = ["2001:db8::1", "2001:db8::2", "192.0.2.1"].map(|ip| ip.parse().unwrap());
        silences.record(at(0), one, 9);
        silences.record(at(10), same, 9);
        silences.record(at(20), other, 9);
        assert_eq!((silences.of(one), silences.of(other)), (2, 1));
        silences.record(at(1801), other, 9);
        assert_eq!((silences.of(one), silences.of(other)), (1, 2));
        silences.record(at(9999), other, 9);
        assert_eq!((silences.counts.len(), silences.order.len()), (1, 1));
    }

    #[test]
    fn memory_is_bounded() {
        let mut silences = Silences::default();
        for number in 0..100 {
            silences.record(at(0), [10, 0, 0, number].into(), 3);
        }
        assert_eq!((silences.counts.len(), silences.order.len()), (3, 3));
        assert_eq!(
            (silences.of([10, 0, 0, 96].into()), silences.of([10, 0, 0, 97].into())),
            (0, 1)
        );
        silences.record(at(0), [10, 0, 0, 1].into(), 0);
        assert_eq!(silences.order.len(), 0, "no memory at all");
    }
}
