//! Our external address, as other nodes see it (BEP 42, "Bootstrapping").

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::prefix::subnet;

/// Votes that count: the latest ones, one per network.
const MAX_VOTES: usize = 32;

/// Votes before an address is believed.
const MIN_VOTES: usize = 10;

/// The latest opinions of other nodes about our address.
#[derive(Debug, Clone, Default)]
pub(super) struct ExternalVotes {
    /// The voter's network and its vote, oldest first.
    votes: VecDeque<(IpAddr, IpAddr)>,
    winner: Option<IpAddr>,
}

impl ExternalVotes {
    /// Counts a vote. Returns the address if it is a new winner: two thirds of at least ten voters from different
    /// networks agree.
    pub(super) fn vote(&mut self, voter: IpAddr, address: IpAddr) -> Option<IpAddr> {
        if address.is_unspecified() || address.is_multicast() || voter.is_ipv4() != address.is_ipv4() {
            return None;
        }
        let network = subnet(voter);
        self.votes.retain(|(known, _)| *known != network);
        self.votes.push_back((network, address));
        if self.votes.len() > MAX_VOTES {
            self.votes.pop_front();
        }
        let agreeing = self.votes.iter().filter(|(_, vote)| *vote == address).count();
        let wins = self.votes.len() >= MIN_VOTES && agreeing * 3 >= self.votes.len() * 2;
        if !wins || self.winner == Some(address) {
            return None;
        }
        self.winner = Some(address);
        self.winner
    }

    /// The address that most nodes see.
    pub(super) fn winner(&self) -> Option<IpAddr> {
        self.winner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn voter(n: u8) -> IpAddr {
        IpAddr::from([9, n, 9, 9])
    }

    #[test]
    fn a_majority_of_networks_decides() {
        let mut votes = ExternalVotes::default();
        for n in 0..9 {
            assert_eq!(votes.vote(voter(n), ip("8.8.8.8")), None);
            // The same network again does not count twice.
            assert_eq!(votes.vote(IpAddr::from([9, n, 9, 10]), ip("8.8.8.8")), None);
        }
        assert_eq!(votes.vote(voter(9), ip("8.8.8.8")), Some(ip("8.8.8.8")));
        assert_eq!(votes.vote(voter(10), ip("8.8.8.8")), None, "known");
        // A third of liars change nothing.
        for n in 100..110 {
            assert_eq!(votes.vote(voter(n), ip("6.6.6.6")), None);
        }
        assert_eq!(votes.winner(), Some(ip("8.8.8.8")));
        // A real change wins when it dominates the latest votes.
        let changed = (0..100).find_map(|n| votes.vote(voter(n), ip("7.7.7.7")));
        assert_eq!(changed, Some(ip("7.7.7.7")));
    }

    #[test]
    fn impossible_votes_do_not_count() {
        let mut votes = ExternalVotes::default();
        for n in 0..20 {
            for address in ["0.0.0.0", "224.0.0.1", "2001:db8::1"] {
                assert_eq!(votes.vote(voter(n), ip(address)), None);
            }
        }
        assert!(votes.votes.is_empty());
    }
}
