//! Queries at a steady rate, from many hosts that are nodes themselves.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use ecs_torrent::protocol::dht::id::NodeId;
use ecs_torrent::protocol::dht::krpc::{Body, Message, Method, Packet, Query, Reply};

const HOSTS: usize = 256;
const QUERIES_PER_S: u32 = 2_000;
const DURATION: Duration = Duration::from_secs(10);

/// The number of torrents that the queries are about.
const TORRENTS: u32 = 2_000;

/// The outcome of the queries.
pub struct Outcome {
    pub sent: u64,
    pub answered: u64,
    pub time: Duration,
}

/// A host with an address, an id, and the token of its last request for peers.
struct Host {
    socket: UdpSocket,
    id: NodeId,
    token: Option<(NodeId, Vec<u8>)>,
}

/// Sends the queries, and answers those of the node.
pub fn send(node: SocketAddr) -> Outcome {
    let mut hosts: Vec<Host> = (0..HOSTS).map(Host::new).collect();
    let begun = Instant::now();
    let (mut sent, mut answered) = (0, 0);
    while begun.elapsed() < DURATION {
        let due = (begun.elapsed().as_secs_f64() * f64::from(QUERIES_PER_S)) as u64;
        while sent < due {
            hosts[sent as usize % HOSTS].ask(sent, node);
            sent += 1;
        }
        answered += hosts.iter_mut().map(|host| host.receive(node)).sum::<u64>();
        std::thread::sleep(Duration::from_millis(2));
    }
    let time = begun.elapsed();
    std::thread::sleep(Duration::from_millis(200));
    answered += hosts.iter_mut().map(|host| host.receive(node)).sum::<u64>();
    Outcome { sent, answered, time }
}

/// Spreads numbers over ids.
pub fn id(number: u32) -> NodeId {
    let mut id = [0; 20];
    for (index, part) in (1u32..).zip(id.chunks_exact_mut(4)) {
        part.copy_from_slice(&(number + 1).wrapping_mul(0x9e37_79b9).wrapping_mul(index).to_be_bytes());
    }
    NodeId(id)
}

impl Host {
    /// Each host is in a /24 of its own.
    fn new(number: usize) -> Self {
        let ip = Ipv4Addr::new(127, 1, number as u8, 1);
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            socket,
            id: id(1_000_000 + number as u32),
            token: None,
        }
    }

    /// Of 20 queries, 10 are for peers, 5 for nodes, 3 are pings and 2 announces.
    fn ask(&mut self, number: u64, node: SocketAddr) {
        let target = id((number / HOSTS as u64) as u32 * 31 % TORRENTS);
        let token = self.token.take();
        let method = match (number / HOSTS as u64 % 20, &token) {
            (0..=4, _) => Method::FindNode { target },
            (5..=7, _) => Method::Ping,
            (9 | 11, Some((info_hash, token))) => Method::AnnouncePeer {
                info_hash: *info_hash,
                port: 6881,
                implied_port: false,
                token,
                seed: false,
            },
            _ => Method::GetPeers {
                info_hash: target,
                no_seed: false,
                scrape: false,
            },
        };
        let query = Query {
            id: self.id,
            is_read_only: false,
            want: None,
            method: Ok(method),
        };
        // The transaction marks the answers to requests for peers.
        let mut transaction = *b"p\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let asks_peers = matches!(method, Method::GetPeers { .. });
        transaction[1..].copy_from_slice(&target.0);
        let transaction = if asks_peers { &transaction[..] } else { b"qq" };
        let _ = self.socket.send_to(&write(transaction, Body::Query(query)), node);
    }

    /// Receives the waiting datagrams, and returns the number of answers.
    fn receive(&mut self, node: SocketAddr) -> u64 {
        let mut buffer = [0; 4096];
        let mut answered = 0;
        while let Ok((len, _)) = self.socket.recv_from(&mut buffer) {
            let Ok(packet) = Packet::parse(&buffer[..len]) else {
                continue;
            };
            let Ok(message) = packet.message() else { continue };
            match &message.body {
                Body::Query(_) => {
                    let reply = write(message.transaction, Body::Reply(Reply::new(self.id)));
                    let _ = self.socket.send_to(&reply, node);
                }
                Body::Reply(reply) => {
                    answered += 1;
                    let target = message.transaction.strip_prefix(b"p");
                    let target = target.and_then(|target| target.try_into().ok());
                    if let (Some(target), Some(token)) = (target, reply.token) {
                        self.token = Some((NodeId(target), token.to_vec()));
                    }
                }
                Body::Error { .. } => answered += 1,
            }
        }
        answered
    }
}

/// Returns the bytes of a message.
pub fn write(transaction: &[u8], body: Body<'_>) -> Vec<u8> {
    let message = Message {
        transaction,
        version: None,
        external: None,
        body,
    };
    message.write()
}
