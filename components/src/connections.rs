//! How many connections there are, of which kind.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bevy_ecs::prelude::*;

use crate::peer::{Direction, Peer, Stage};

/// Connections counted by what their limits are on.
#[derive(Resource, Debug, Default)]
pub struct ConnectionCounts {
    /// All of them.
    pub total: usize,
    /// Being opened by us.
    pub half_open: usize,
    /// Opened by others, who have not said for which torrent.
    pub unidentified: usize,
    inbound_per_ip: BTreeMap<IpAddr, usize>,
}

impl ConnectionCounts {
    /// Counts a new connection.
    pub fn add(&mut self, peer: &Peer) {
        self.total += 1;
        match (peer.direction, peer.endpoint.address()) {
            (Direction::Outbound, _) => self.half_open += 1,
            (Direction::Inbound, address) => {
                self.unidentified += 1;
                if let Some(address) = address {
                    *self.inbound_per_ip.entry(address.ip()).or_default() += 1;
                }
            }
        }
    }

    /// Counts a connection that goes from its stage to `next`; before the stage is set.
    pub fn advance(&mut self, peer: &Peer, next: Stage) {
        if peer.stage == Stage::Connecting && next > Stage::Connecting {
            self.half_open -= 1;
        }
        if peer.direction == Direction::Inbound && peer.stage < Stage::Connected && next == Stage::Connected {
            self.unidentified -= 1;
        }
    }

    /// Counts a connection that ends.
    pub fn remove(&mut self, peer: &Peer) {
        self.advance(peer, Stage::Connected);
        self.total -= 1;
        if let (Direction::Inbound, Some(address)) = (peer.direction, peer.endpoint.address())
            && let Some(count) = self.inbound_per_ip.get_mut(&address.ip())
        {
            *count -= 1;
            if *count == 0 {
                self.inbound_per_ip.remove(&address.ip());
            }
        }
    }

    /// Connections that were opened from `ip`.
    #[must_use]
    pub fn inbound_from(&self, ip: IpAddr) -> usize {
        self.inbound_per_ip.get(&ip).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_protocol::time::Timestamp;

    use super::*;
    use crate::ids::LinkId;
    use crate::peer::Endpoint;

    fn peer(direction: Direction) -> Peer {
        Peer {
            endpoint: Endpoint::Ip(([10, 0, 0, 1], 5).into()),
            link: LinkId(1),
            direction,
            stage: match direction {
                Direction::Inbound => Stage::Handshaking,
                Direction::Outbound => Stage::Connecting,
            },
            since: Timestamp::ZERO,
            peer_id: None,
            client: "".into(),
            listens_at: None,
        }
    }

    #[test]
    fn every_way_of_ending_leaves_nothing_behind() {
        for direction in [Direction::Inbound, Direction::Outbound] {
            for last in [Stage::Connecting, Stage::Handshaking, Stage::Connected] {
                let mut counts = ConnectionCounts::default();
                let mut peer = peer(direction);
                counts.add(&peer);
                for stage in [Stage::Handshaking, Stage::Connected] {
                    if stage <= last && stage > peer.stage {
                        counts.advance(&peer, stage);
                        peer.stage = stage;
                    }
                }
                counts.remove(&peer);
                let left = (counts.total, counts.half_open, counts.unidentified);
                assert_eq!((left, counts.inbound_from([10, 0, 0, 1].into())), ((0, 0, 0), 0));
            }
        }
    }
}
