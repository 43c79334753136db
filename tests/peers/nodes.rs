//! A small network of DHT nodes in this process, for clients that wait until they know several.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ecs_torrent::protocol::dht::node::{Node, NodeSettings};
use ecs_torrent::protocol::time::Timestamp;

use crate::lab::Lab;

/// Time that a node waits for a datagram before it looks at its deadlines.
const PATIENCE: Duration = Duration::from_millis(20);

/// Running nodes, each at an address of its own. They end with this value.
pub struct Nodes {
    pub addresses: Vec<SocketAddr>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Nodes {
    /// Starts nodes that know the first of them, and whose answers to strangers are no longer than the questions.
    pub fn start(lab: &Lab, count: u8) -> Self {
        let addresses: Vec<SocketAddr> = (0..count).map(|_| SocketAddr::new(lab.address(), 6881)).collect();
        let is_over = Arc::new(AtomicBool::new(false));
        let threads = (0..).zip(&addresses).map(|(number, address)| {
            let socket = UdpSocket::bind(address).unwrap();
            let (first, is_over) = (addresses[0], is_over.clone());
            std::thread::spawn(move || run(&socket, number, first, &is_over))
        });
        Self {
            threads: threads.collect(),
            addresses,
            is_over,
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn run(socket: &UdpSocket, number: u8, first: SocketAddr, is_over: &AtomicBool) {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let begun = Instant::now();
    let now = || Timestamp::ZERO + begun.elapsed();
    let mut node = Node::new(NodeSettings::default(), [number; 32], now());
    if number > 0 {
        node.add_host(first, now());
    }
    let mut buffer = [0; 4096];
    while !is_over.load(Ordering::Relaxed) {
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
