//! Heap memory of a node with whole routing tables of both families and as many peers as it stores.

use std::net::SocketAddr;
use std::time::Duration;

use ecs_torrent::protocol::compact::Family;
use ecs_torrent::protocol::dht::krpc::{Body, Method, Packet, Query, Reply};
use ecs_torrent::protocol::dht::node::{Node, NodeSettings};
use ecs_torrent::protocol::time::Timestamp;
use peak_alloc::PeakAlloc;

use crate::load::{id, write};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The number of nodes that show up. The table keeps some of each distance.
const NODES: u32 = 50_000;

const PEERS: u32 = 10_000;
const TORRENTS: u32 = 2_000;

/// Time between two datagrams.
const PAUSE: Duration = Duration::from_millis(10);

struct Filling {
    family: Family,
    node: Node,
    now: Timestamp,
}

/// Returns the bytes that a full node takes.
///
/// # Panics
/// If the node does not take the nodes and the peers.
pub fn of_full_node() -> usize {
    let before = ALLOCATOR.current_usage();
    let node = Node::new(NodeSettings::default(), [1; 32], Timestamp::ZERO);
    let mut filling = Filling {
        family: Family::V4,
        node,
        now: Timestamp::ZERO,
    };
    for (family, name) in Family::ALL.into_iter().zip(["IPv4", "IPv6"]) {
        filling.family = family;
        let begin = ALLOCATOR.current_usage();
        (0..NODES).for_each(|number| filling.add_node(number));
        let after_nodes = ALLOCATOR.current_usage();
        (0..PEERS).for_each(|number| filling.add_peer(number));
        let stats = filling.node.stats(filling.now);
        let table = stats.tables[family as usize];
        println!(
            "{name}: {} nodes in {} buckets take {} KiB, {PEERS} peers {} KiB",
            table.nodes,
            table.buckets,
            after_nodes.saturating_sub(begin) >> 10,
            ALLOCATOR.current_usage().saturating_sub(after_nodes) >> 10,
        );
        assert!(table.nodes >= 64, "{stats:?}");
    }
    let stats = filling.node.stats(filling.now);
    assert_eq!(stats.stored_peers, 2 * PEERS as usize, "{stats:?}");
    ALLOCATOR.current_usage().saturating_sub(before)
}

impl Filling {
    /// Sends a question of a host, which answers pings. Returns what it gets.
    fn send(&mut self, number: u32, method: Method<'_>) -> Vec<Vec<u8>> {
        self.now += PAUSE;
        let query = Query {
            id: id(number),
            is_read_only: false,
            want: None,
            method: Ok(method),
        };
        let (datagram, from) = (write(b"tt", Body::Query(query)), self.address(number));
        self.node.receive(&datagram, from, self.now);
        let mut answers = Vec::new();
        while let Some((to, datagram)) = self.node.next_datagram() {
            let packet = Packet::parse(&datagram).unwrap();
            let message = packet.message().unwrap();
            if to != from {
                continue;
            }
            if matches!(message.body, Body::Query(_)) {
                let reply = write(message.transaction, Body::Reply(Reply::new(id(number))));
                self.node.receive(&reply, to, self.now);
            } else {
                answers.push(datagram);
            }
        }
        answers
    }

    fn address(&self, number: u32) -> SocketAddr {
        let [_, a, b, c] = number.to_be_bytes();
        match self.family {
            Family::V4 => SocketAddr::from(([40 + a, b, c, 1], 6881)),
            Family::V6 => {
                let site = [b, c].map(u16::from);
                SocketAddr::from(([0x2a00 + u16::from(a), site[0], site[1], 0, 0, 0, 0, 1], 6881))
            }
        }
    }

    /// Lets a node show up, and answer the ping that follows.
    fn add_node(&mut self, number: u32) {
        self.send(number, Method::FindNode { target: id(number) });
        if self.node.deadline() <= self.now {
            self.node.advance(self.now);
        }
        while self.node.next_datagram().is_some() {}
        while self.node.next_event().is_some() {}
    }

    /// Lets a peer announce itself.
    fn add_peer(&mut self, number: u32) {
        let number = 10_000_000 + number;
        let info_hash = id(20_000_000 + number % TORRENTS);
        let get = Method::GetPeers {
            info_hash,
            no_seed: false,
            scrape: false,
        };
        // The answer to this question needs a proof of the address, and a whole answer has a token.
        self.send(number, Method::FindNode { target: info_hash });
        let answers = self.send(number, get);
        let token = answers.iter().find_map(|datagram| {
            let packet = Packet::parse(datagram).ok()?;
            match packet.message().ok()?.body {
                Body::Reply(reply) => Some(reply.token?.to_vec()),
                _ => None,
            }
        });
        let announce = Method::AnnouncePeer {
            info_hash,
            port: 6881,
            implied_port: false,
            token: &token.unwrap(),
            seed: false,
        };
        self.send(number, announce);
        while self.node.next_event().is_some() {}
    }
}
