//! Nodes of the DHT on sockets of their own, in this process.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use ecs_torrent::protocol::dht::node::{Node, NodeSettings};
use ecs_torrent::protocol::time::Timestamp;

const COUNT: u8 = 60;

/// Time in which the nodes find each other.
const SETTLING: Duration = Duration::from_secs(15);

/// Time that a node waits for a datagram before it looks at its deadlines.
const PATIENCE: Duration = Duration::from_millis(20);

/// Running nodes, each in a /24 of its own. They run until the process ends.
pub struct Nodes(Vec<SocketAddr>);

pub fn addresses() -> Vec<SocketAddr> {
    let address = |number| (Ipv4Addr::new(10, number, 1, 1), 6881).into();
    (1..=COUNT).map(address).collect()
}

impl Nodes {
    /// Starts the nodes, and waits until they know each other.
    pub fn start() -> Self {
        let addresses = addresses();
        for (number, address) in (0..).zip(&addresses) {
            let (socket, first) = (UdpSocket::bind(address).unwrap(), addresses[0]);
            thread::spawn(move || run(&socket, number, first));
        }
        thread::sleep(SETTLING);
        Self(addresses)
    }

    /// Returns a node by which others enter the network.
    pub fn first(&self) -> SocketAddr {
        self.0[0]
    }
}

fn run(socket: &UdpSocket, number: u8, first: SocketAddr) {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let begun = Instant::now();
    let now = || Timestamp::ZERO + begun.elapsed();
    // The client sends queries much more often than one on the Internet.
    let settings = NodeSettings {
        host_queries_per_s: 1000,
        host_burst: 10_000,
        ..NodeSettings::default()
    };
    let mut node = Node::new(settings, [number; 32], now());
    if number > 0 {
        node.add_host(first, now());
    }
    let mut buffer = [0; 4096];
    loop {
        if let Ok((len, from)) = socket.recv_from(&mut buffer) {
            node.receive(&buffer[..len], from, now());
        }
        if node.deadline() <= now() {
            node.advance(now());
        }
        while node.next_event().is_some() {}
        while let Some((to, datagram)) = node.next_datagram() {
            let _ = socket.send_to(&datagram, to);
        }
    }
}
