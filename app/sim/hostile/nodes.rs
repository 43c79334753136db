//! Hostile nodes of the DHT: scripted hosts without an engine, which answer datagrams and do one kind of harm.

use std::net::SocketAddr;

use ecs_torrent_components::random::Random;
use ecs_torrent_protocol::dht::id::NodeId;
use ecs_torrent_protocol::dht::krpc::{Body, Message, Method, Packet, Query, Reply, write_contact};
use ecs_torrent_protocol::hash::InfoHash;

/// The kind of harm that a node of the DHT does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeHostility {
    /// Never answers.
    Dead,
    /// Answers under another id each time, always close to the target, with nodes and peers that do not exist.
    Lies,
    /// Has an id next to the torrent's info-hash, names only nodes of its kind, and pretends to store announces.
    Sybil,
    /// Sends fifty queries for each one that it gets.
    Floods,
    /// Announces a peer of the torrent with the tokens that it has received for another one.
    ReplaysTokens,
}

impl NodeHostility {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Dead, Self::Lies, Self::Sybil, Self::Floods, Self::ReplaysTokens];
}

/// Queries that answer one.
const FLOOD: usize = 50;

/// Entries of a list of nodes, and peers in an answer.
const LISTED: usize = 8;

/// Maximum number of tokens that are kept for a replay.
const MAX_TOKENS: usize = 16;

/// The transaction id of the question whose token is replayed.
const DECOY: &[u8] = b"dcoy";

/// A hostile node.
pub(in super::super) struct HostileNode {
    hostility: NodeHostility,
    id: NodeId,
    /// The torrent.
    target: NodeId,
    /// The torrent for which the node gets tokens.
    decoy: NodeId,
    /// Nodes of the same kind.
    accomplices: Vec<SocketAddr>,
    tokens: Vec<Vec<u8>>,
    random: Random,
}

impl HostileNode {
    /// Creates a node that is hostile to the peers of `torrent`.
    pub(in super::super) fn new(
        hostility: NodeHostility,
        torrent: InfoHash,
        accomplices: Vec<SocketAddr>,
        seed: u64,
    ) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let mut random = Random::from_seed(key);
        let target = NodeId::from(torrent);
        let id = match hostility {
            NodeHostility::Sybil => target.neighbor(140, random.generator()),
            _ => NodeId::random(random.generator()),
        };
        Self {
            hostility,
            id,
            target,
            decoy: NodeId::random(random.generator()),
            accomplices,
            tokens: Vec::new(),
            random,
        }
    }

    /// Returns the datagrams to send back for one that has arrived.
    pub(in super::super) fn answer(&mut self, from: SocketAddr, datagram: &[u8]) -> Vec<Vec<u8>> {
        let Ok(packet) = Packet::parse(datagram) else {
            return Vec::new();
        };
        match packet.message() {
            Ok(Message {
                transaction,
                body: Body::Query(query),
                ..
            }) => self.answer_query(transaction, &query, from),
            Ok(Message {
                transaction,
                body: Body::Reply(reply),
                ..
            }) => self.handle_reply(transaction, &reply),
            _ => Vec::new(),
        }
    }

    fn answer_query(&mut self, transaction: &[u8], query: &Query<'_>, from: SocketAddr) -> Vec<Vec<u8>> {
        let target = match query.method {
            Ok(Method::FindNode { target } | Method::GetPeers { info_hash: target, .. }) => target,
            _ => self.target,
        };
        match self.hostility {
            NodeHostility::Dead => Vec::new(),
            NodeHostility::Lies => vec![self.lie(transaction, target, from)],
            NodeHostility::Sybil => {
                let nodes = self.accomplice_list();
                let search = Method::FindNode { target: self.target };
                vec![self.reply(transaction, &nodes, from), self.query(b"sybl", search)]
            }
            NodeHostility::Floods => {
                let ping = self.query(b"flud", Method::Ping);
                let mut all = vec![self.reply(transaction, &[], from)];
                all.extend(std::iter::repeat_n(ping, FLOOD));
                all
            }
            NodeHostility::ReplaysTokens => {
                let decoy = Method::GetPeers {
                    info_hash: self.decoy,
                    no_seed: false,
                    scrape: false,
                };
                vec![self.reply(transaction, &[], from), self.query(DECOY, decoy)]
            }
        }
    }

    /// Announces a peer with every token that any node gave for the decoy.
    fn handle_reply(&mut self, transaction: &[u8], reply: &Reply<'_>) -> Vec<Vec<u8>> {
        let Some(token) = reply.token.filter(|_| transaction == DECOY) else {
            return Vec::new();
        };
        if self.tokens.len() == MAX_TOKENS {
            self.tokens.remove(0);
        }
        self.tokens.push(token.to_vec());
        let announce = |token| Method::AnnouncePeer {
            info_hash: self.target,
            port: 6666,
            implied_port: false,
            token,
            seed: false,
        };
        let tokens = self.tokens.iter();
        tokens.map(|token| self.query(b"rply", announce(token))).collect()
    }

    fn lie(&mut self, transaction: &[u8], target: NodeId, from: SocketAddr) -> Vec<u8> {
        let mut nodes = Vec::new();
        for number in 0..LISTED {
            let id = target.neighbor(100 + number, self.random.generator());
            let [a, b] = self.random.bytes();
            let address = match number % 2 {
                0 => self.accomplices[usize::from(a) % self.accomplices.len()],
                _ => SocketAddr::from(([10, 77, a, b], 6881)),
            };
            write_contact(id, address, &mut nodes);
        }
        let values = (0..LISTED).map(|_| {
            let [a, b] = self.random.bytes();
            SocketAddr::from(([10, 66, a, b], 6881))
        });
        let reply = Reply {
            nodes: &nodes,
            values: values.collect(),
            token: Some(b"liar"),
            ..Reply::new(target.neighbor(120, self.random.generator()))
        };
        message(transaction, Body::Reply(reply), Some(from))
    }

    fn reply(&self, transaction: &[u8], nodes: &[u8], from: SocketAddr) -> Vec<u8> {
        let reply = Reply {
            nodes,
            token: Some(b"fake"),
            ..Reply::new(self.id)
        };
        message(transaction, Body::Reply(reply), Some(from))
    }

    fn query(&self, transaction: &[u8], method: Method<'_>) -> Vec<u8> {
        let query = Query {
            id: self.id,
            is_read_only: false,
            want: None,
            method: Ok(method),
        };
        message(transaction, Body::Query(query), None)
    }

    fn accomplice_list(&mut self) -> Vec<u8> {
        let mut nodes = Vec::new();
        for accomplice in self.accomplices.iter().take(LISTED) {
            let id = self.target.neighbor(140, self.random.generator());
            write_contact(id, *accomplice, &mut nodes);
        }
        nodes
    }
}

fn message(transaction: &[u8], body: Body<'_>, external: Option<SocketAddr>) -> Vec<u8> {
    let message = Message {
        transaction,
        version: None,
        external,
        body,
    };
    message.write()
}
