//! The hosts that report addresses, and how often peers answer there.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Maximum number of addresses of one host at which no peer has answered yet: those of one message of peer exchange
/// (BEP 11).
const MAX_UNPROVEN: u32 = 50;

/// Number of failed addresses per good one at which a host is doubtful.
const DOUBTFUL: u32 = 8;

/// Maximum number of hosts remembered. Beyond it, hosts without unproven addresses are forgotten.
const MAX_INFORMANTS: usize = 1000;

/// The record of a host.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    /// Addresses in the table at which no peer has answered.
    unproven: u32,
    /// Failed attempts at such addresses.
    failed: u32,
    /// Addresses at which a peer has answered.
    confirmed: u32,
}

/// The records of all hosts that have named addresses of a torrent.
#[derive(Debug, Default)]
pub(super) struct Informants {
    records: BTreeMap<IpAddr, Record>,
    /// Number of records at which those without unproven addresses are forgotten.
    sweep_at: usize,
}

impl Informants {
    /// Whether another address of a host may be added.
    pub(super) fn has_room(&self, host: IpAddr) -> bool {
        self.records
            .get(&host)
            .is_none_or(|record| record.unproven < MAX_UNPROVEN)
    }

    /// Whether nearly all addresses of a host have failed.
    pub(super) fn is_doubtful(&self, host: IpAddr) -> bool {
        let record = self.records.get(&host);
        record.is_some_and(|record| record.failed >= DOUBTFUL.max(DOUBTFUL * record.confirmed))
    }

    /// Records that an address is added to the table.
    pub(super) fn add(&mut self, host: IpAddr) {
        if self.records.len() >= self.sweep_at.max(MAX_INFORMANTS) {
            self.records.retain(|_, record| record.unproven > 0);
            // An addition costs O(1) on average, even if all hosts have unproven addresses. The table bounds these.
            self.sweep_at = 2 * self.records.len();
        }
        self.records.entry(host).or_default().unproven += 1;
    }

    /// Records that a peer has answered at an address.
    pub(super) fn confirm(&mut self, host: IpAddr) {
        if let Some(record) = self.records.get_mut(&host) {
            record.unproven = record.unproven.saturating_sub(1);
            record.confirmed = record.confirmed.saturating_add(1);
        }
    }

    /// Records that an attempt at an address has failed.
    pub(super) fn blame(&mut self, host: IpAddr) {
        if let Some(record) = self.records.get_mut(&host) {
            record.failed = record.failed.saturating_add(1);
        }
    }

    /// Records that an address has left the table without an answer.
    pub(super) fn forget(&mut self, host: IpAddr) {
        if let Some(record) = self.records.get_mut(&host) {
            record.unproven = record.unproven.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_without_addresses_are_forgotten_beyond_a_limit() {
        let mut informants = Informants::default();
        let host = |number: u32| IpAddr::from(number.to_be_bytes());
        for number in 0..3000 {
            informants.add(host(number));
            informants.forget(host(number));
            assert!(informants.records.len() <= MAX_INFORMANTS);
        }
    }

    #[test]
    fn one_success_makes_up_for_eight_failures() {
        let (mut informants, host) = (Informants::default(), IpAddr::from([1, 2, 3, 4]));
        informants.add(host);
        informants.add(host);
        (0..7).for_each(|_| informants.blame(host));
        assert!(!informants.is_doubtful(host));
        informants.blame(host);
        assert!(informants.is_doubtful(host));
        informants.confirm(host);
        informants.confirm(host);
        assert!(!informants.is_doubtful(host));
        (0..8).for_each(|_| informants.blame(host));
        assert!(informants.is_doubtful(host));
    }
}
