//! Nodes at further listen addresses (BEP 45): each has an id and a routing table of its own, as other hosts see it.
//!
//! They answer queries and keep their tables. Only the first node searches, so nobody gets the same query from several
//! of our addresses.

use std::net::SocketAddr;

use ecs_torrent_engine::ports::net::{LocalAddresses, NetRequest};
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::dht::krpc::Want;
use ecs_torrent_protocol::dht::node::{Event, Node, NodeSettings};
use ecs_torrent_protocol::dht::table::K;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::prefix::site;
use ecs_torrent_protocol::time::Timestamp;

use super::{Dht, DhtParams};

/// Maximum number of further nodes: an external address allows eight ids (BEP 42).
const MAX_FURTHER: usize = 7;

/// A node at a further listen address.
#[derive(Debug)]
pub(super) struct FurtherNode {
    pub(super) local: SocketAddr,
    pub(super) node: Box<Node>,
}

/// Returns the listen addresses that get a node of their own: those with another IP address (another /64 of IPv6) than
/// the ones before them. A socket that listens at all addresses has one node.
pub(super) fn addresses(local: &LocalAddresses) -> Vec<SocketAddr> {
    let mut taken: Vec<SocketAddr> = Vec::new();
    let mut further = Vec::new();
    for &address in &local.0 {
        let mut others = taken.iter().filter(|other| other.is_ipv4() == address.is_ipv4());
        let is_first = others.clone().next().is_none();
        let is_covered = |other: &SocketAddr| other.ip().is_unspecified() || site(other.ip()) == site(address.ip());
        if !is_first && !address.ip().is_unspecified() && !others.any(is_covered) {
            further.push(address);
        }
        taken.push(address);
    }
    further.truncate(MAX_FURTHER);
    further
}

/// Returns the settings of one of `count` nodes, which share the limits.
pub(super) fn share(settings: NodeSettings, count: usize) -> NodeSettings {
    let count = count.max(1);
    let of = |whole: usize| (whole / count).max(1);
    let bytes = |whole: u32| (whole / count as u32).max(1);
    let mut peers = settings.peers;
    (peers.max_torrents, peers.max_peers) = (of(peers.max_torrents), of(peers.max_peers));
    NodeSettings {
        peers,
        max_items: of(settings.max_items),
        answer_bytes_per_s: bytes(settings.answer_bytes_per_s),
        ..settings
    }
}

impl DhtParams<'_, '_> {
    /// Starts the further nodes. `id_variant` is that of the first node.
    pub(super) fn start_further(&mut self, settings: &NodeSettings, id_variant: u8) -> Vec<FurtherNode> {
        let now = self.clock.now();
        let start = |(number, local): (u8, SocketAddr)| {
            let settings = NodeSettings {
                families: Want::only(Family::of(local.ip())),
                // Their tables need little; searches go through the first node.
                query_bytes_per_s: settings.query_bytes_per_s / 8,
                id_variant: Some(id_variant.wrapping_add(number)),
                ..settings.clone()
            };
            let node = Box::new(Node::new(settings, self.random.bytes(), now));
            FurtherNode { local, node }
        };
        (1..).zip(addresses(&self.local)).map(start).collect()
    }

    /// Lets the further nodes do what is due, and sends their datagrams.
    pub(super) fn run_further(&mut self, dht: &mut Dht) {
        let now = self.clock.now();
        for FurtherNode { local, node } in &mut dht.further {
            if node.deadline() <= now {
                node.advance(now);
            }
            while let Some(event) = node.next_event() {
                if let Event::Announced { info_hash, peer } = event {
                    self.take_announced(InfoHash(info_hash.0), peer);
                }
            }
            while let Some((to, data)) = node.next_datagram() {
                if !local.ip().is_loopback() || to.ip().is_loopback() {
                    let (from, data) = (Some(*local), data.into());
                    self.net.push(NetRequest::Datagram { from, to, data });
                }
            }
        }
    }

    /// Lets the further nodes of a family enter the network by the nodes that the first one knows.
    pub(super) fn introduce_further(&mut self, dht: &mut Dht, first: &Node, family: Family) {
        let now = self.clock.now();
        for FurtherNode { local, node } in &mut dht.further {
            if Family::of(local.ip()) == family {
                for known in first.closest(node.id(family), family, K, now) {
                    node.add_host(known, now);
                }
            }
        }
    }
}

impl Dht {
    /// The time of the next call of a further node.
    pub(super) fn further_deadline(&self) -> Timestamp {
        let deadlines = self.further.iter().map(|further| further.node.deadline());
        deadlines.min().unwrap_or(Timestamp::NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_other_networks_get_a_node() {
        let further = |local: &[&str]| {
            let local = local
                .iter()
                .map(|address| address.parse().expect("an address"))
                .collect();
            let further = addresses(&LocalAddresses(local));
            further.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(further(&["0.0.0.0:1", "[::]:1", "10.0.0.1:2"]).is_empty());
        let both = ["10.0.0.1:1", "[fd00::1]:1", "10.0.0.2:1", "[fd00:1::1]:1"];
        assert_eq!(further(&both), ["10.0.0.2:1", "[fd00:1::1]:1"]);
        assert!(further(&["10.0.0.1:1", "10.0.0.1:2"]).is_empty(), "one IP address");
        assert!(further(&["[2a00::1]:1", "[2a00::2]:1"]).is_empty(), "one /64");
        let many: Vec<String> = (1..20).map(|number| format!("10.0.0.{number}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(further(&many).len(), MAX_FURTHER);
    }

    #[test]
    fn nodes_share_the_limits() {
        let whole = NodeSettings::default();
        assert_eq!(share(whole.clone(), 1), whole);
        let half = share(whole.clone(), 2);
        assert_eq!(half.peers.max_peers, whole.peers.max_peers / 2);
        assert_eq!(half.answer_bytes_per_s, whole.answer_bytes_per_s / 2);
        assert_eq!(half.query_bytes_per_s, whole.query_bytes_per_s);
    }
}
