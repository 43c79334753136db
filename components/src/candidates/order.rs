//! The order in which the addresses of a torrent are dialed.

use std::cmp::Reverse;
use std::net::SocketAddr;

use super::sources::{CandidateSource, SourceSet};

/// The facts that decide the dial order of an address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) sources: SourceSet,
    /// Number of consecutive failures.
    pub(super) failures: u32,
    /// A peer at this address has completed its handshake.
    pub(super) has_connected: bool,
    /// Nearly all other addresses that the same host has named have failed.
    pub(super) is_doubtful: bool,
    /// Canonical priority (BEP 40).
    pub(super) priority: u32,
}

/// The likelihood that a peer answers at an address, the most likely first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DialPriority {
    /// A peer has answered there.
    Proven,
    /// Several sources name the address, or the peer itself, or the link that the user has chosen.
    Confirmed,
    /// One source names the address.
    Reported,
    /// Only one host names the address, and its other addresses have failed.
    Doubtful,
}

/// Dial order of an address; the smallest is dialed first.
pub(super) type Rank = (Reverse<bool>, u32, DialPriority, Reverse<u32>, SocketAddr);

/// Returns the dial order of an address: addresses that a user named come first, then those with few failures, then
/// those at which a peer probably answers, then those of a high canonical priority.
pub(super) fn rank(address: SocketAddr, facts: &Facts) -> Rank {
    (
        Reverse(facts.sources.contains(CandidateSource::USER)),
        facts.failures,
        dial_priority(facts),
        Reverse(facts.priority),
        address,
    )
}

fn dial_priority(facts: &Facts) -> DialPriority {
    let mut sources = facts.sources;
    // Any peer that connects to us can claim an address with its IP address.
    sources.remove(CandidateSource::INCOMING);
    let is_chosen = sources.contains(CandidateSource::LOCAL_DISCOVERY) || sources.contains(CandidateSource::MAGNET);
    if facts.has_connected {
        DialPriority::Proven
    } else if is_chosen || sources.iter().nth(1).is_some() {
        DialPriority::Confirmed
    } else if facts.is_doubtful {
        DialPriority::Doubtful
    } else {
        DialPriority::Reported
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts(sources: &[CandidateSource]) -> Facts {
        Facts {
            sources: sources.iter().copied().collect(),
            failures: 0,
            has_connected: false,
            is_doubtful: false,
            priority: 5,
        }
    }

    /// Returns whether an address with the first facts is dialed before one with the second.
    fn precedes(first: Facts, second: Facts) -> bool {
        let [a, b]: [SocketAddr; 2] = [([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 1).into()];
        assert_eq!(rank(a, &first) < rank(b, &second), rank(b, &first) < rank(a, &second));
        rank(a, &first) < rank(b, &second)
    }

    #[test]
    fn each_fact_decides_between_addresses_that_are_equal_in_those_before_it() {
        use CandidateSource as Source;
        let reported = facts(&[Source::DHT]);
        let failed = Facts {
            failures: 1,
            ..reported
        };
        let doubtful = Facts {
            is_doubtful: true,
            ..reported
        };
        let better = Facts {
            priority: 6,
            ..reported
        };
        let proven = Facts {
            has_connected: true,
            ..reported
        };
        let confirmed = facts(&[Source::DHT, Source::TRACKER]);
        let order = [
            Facts {
                failures: 9,
                is_doubtful: true,
                ..facts(&[Source::USER])
            },
            Facts {
                priority: 0,
                is_doubtful: true,
                ..proven
            },
            Facts {
                priority: 1,
                is_doubtful: true,
                ..confirmed
            },
            Facts {
                priority: 0,
                ..facts(&[Source::MAGNET])
            },
            better,
            reported,
            doubtful,
            Facts {
                priority: 9,
                has_connected: true,
                ..failed
            },
            failed,
        ];
        for (number, first) in order.iter().enumerate() {
            for second in &order[number + 1..] {
                assert!(precedes(*first, *second), "{first:?} {second:?}");
            }
        }
    }

    #[test]
    fn a_peers_own_claim_confirms_nothing() {
        use CandidateSource as Source;
        let claimed = facts(&[Source::DHT, Source::INCOMING]);
        assert_eq!(dial_priority(&claimed), DialPriority::Reported);
        assert_eq!(
            dial_priority(&facts(&[Source::LOCAL_DISCOVERY])),
            DialPriority::Confirmed
        );
        assert_eq!(
            dial_priority(&facts(&[Source::DHT, Source::PEER_EXCHANGE])),
            DialPriority::Confirmed
        );
    }

    proptest! {
        /// Neither success nor another source may make an address come later.
        #[test]
        fn a_better_address_never_comes_later(failures in 0u32..4, priority: u32, is_doubtful: bool, source in 0usize..4) {
            use CandidateSource as Source;
            let source = [Source::TRACKER, Source::PEER_EXCHANGE, Source::DHT, Source::SESSION][source];
            let known = Facts { failures, priority, is_doubtful, ..facts(&[source]) };
            let address = ([10, 0, 0, 1], 1).into();
            let mut sources = known.sources;
            sources.insert(Source::LOCAL_DISCOVERY);
            let better = [Facts { has_connected: true, ..known }, Facts { sources, ..known }];
            for better in better {
                prop_assert!(rank(address, &better) < rank(address, &known));
            }
        }
    }
}
