//! Commands to the DHT, their results, and its events.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::dht::id::NodeId;
use ecs_torrent_protocol::dht::items::Item;
use ecs_torrent_protocol::dht::node::Counters;
use ecs_torrent_protocol::hash::InfoHash;
use serde::Serialize;

use crate::commands::Reply;

/// Gets the state of our node.
#[derive(Debug)]
pub struct GetDhtStats {
    /// Answered with the state.
    pub reply: Reply<DhtStats>,
}

/// Searches for peers of a torrent, which need not be listed here (BEP 5), without announcing us.
#[derive(Debug)]
pub struct FindDhtPeers {
    /// The torrent.
    pub torrent: InfoHash,
    /// Answered when the search has ended.
    pub reply: Reply<Result<DhtPeers, DhtError>>,
}

/// Searches for an item (BEP 44).
#[derive(Debug)]
pub struct GetDhtItem {
    /// The item's target: the hash of its value, or of its publisher's key and its salt.
    pub target: NodeId,
    /// The salt of a mutable item; empty if it has none.
    pub salt: Vec<u8>,
    /// Answered when the search has ended, with the item of the greatest sequence number; `None` if no node has one.
    pub reply: Reply<Result<Option<Item>, DhtError>>,
}

/// Stores an item (BEP 44) at the nodes closest to its target, for two hours.
#[derive(Debug)]
pub struct PutDhtItem {
    /// The item, signed if it is mutable.
    pub item: Item,
    /// The salt of a mutable item; empty if it has none.
    pub salt: Vec<u8>,
    /// The sequence number that the stored item must have, if any node has one.
    pub cas: Option<i64>,
    /// Answered when the nodes have answered, with the number of nodes that stored the item.
    pub reply: Reply<Result<usize, DhtError>>,
}

/// Reasons why the DHT could not carry out a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DhtError {
    /// The DHT is switched off, by settings or by a private address only.
    #[error("the DHT is off")]
    Off,
    /// No node is known to which queries could be sent.
    #[error("no node of the DHT answers")]
    NoNodes,
    /// The target is the hash of a torrent that is listed here and may not be named in the DHT.
    #[error("{0} is private here: its peers come from its trackers only")]
    TrackersOnly(InfoHash),
    /// A mutable item names no torrent, so a link to it cannot be followed (BEP 46).
    #[error("the item of this key names no torrent")]
    NoTorrent,
    /// The item is immutable, so nobody can find it by a public key.
    #[error("the item has no public key")]
    NotMutable,
    /// Too many searches are running.
    #[error("too many searches of the DHT are running; try again later")]
    Busy,
    /// The value of an item is not bencoded, for this reason.
    #[error("the value is not bencoded: {0}")]
    NotBencoded(String),
    /// The value of an item is longer than 1000 bytes.
    #[error("the value has {0} bytes when bencoded, and 1000 are allowed")]
    LongValue(usize),
    /// The salt of an item is longer than 64 bytes.
    #[error("the salt has {0} bytes, and 64 are allowed")]
    LongSalt(usize),
    /// The stored item has the greatest sequence number that there is, so no other can follow.
    #[error("the stored item has the last sequence number, so nothing can replace it")]
    LastSequence,
    /// The nodes refused to store an item, with this error code of BEP 44.
    #[error("the nodes refused the item: {}", reason(*.0))]
    Refused(i64),
}

/// Describes an error code of BEP 44.
fn reason(code: i64) -> String {
    match code {
        205 => "the value is too long".into(),
        206 => "the signature is wrong".into(),
        207 => "the salt is too long".into(),
        301 => "it has been changed meanwhile".into(),
        302 => "they have a newer one".into(),
        code => format!("error {code}"),
    }
}

/// Peers that a search found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct DhtPeers {
    /// Addresses of peers, in the order in which they were found.
    pub peers: Vec<SocketAddr>,
    /// Estimated number of seeds (BEP 33), if the nodes answer with filters.
    pub seeds: Option<u64>,
    /// Estimated number of other peers (BEP 33), if the nodes answer with filters.
    pub downloaders: Option<u64>,
    /// Number of nodes that answered.
    pub nodes: usize,
    /// Time that the search took, in milliseconds.
    #[serde(rename = "milliseconds", serialize_with = "as_millis")]
    pub took: Duration,
}

fn as_millis<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// State of our node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct DhtStats {
    /// The IPv4 network; `None` if the node does not take part in it.
    pub ipv4: Option<DhtNetwork>,
    /// The IPv6 network, which is separate (BEP 32).
    pub ipv6: Option<DhtNetwork>,
    /// Nodes at further listen addresses, each with an id and a table of its own (BEP 45).
    pub further: Vec<FurtherDhtNode>,
    /// Whether the node answers no queries (BEP 43).
    pub is_read_only: bool,
    /// Torrents whose peers the node stores for others.
    pub stored_torrents: usize,
    /// Peers that the node stores for others.
    pub stored_peers: usize,
    /// Items that the node stores for others (BEP 44).
    pub stored_items: usize,
    /// Running searches.
    pub searches: usize,
    /// Counts since the start.
    #[serde(flatten)]
    pub counters: Counters,
}

/// State of our node at a further listen address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FurtherDhtNode {
    /// The address.
    pub address: SocketAddr,
    /// The node's state.
    #[serde(flatten)]
    pub network: DhtNetwork,
}

/// State of our node in the network of one address family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DhtNetwork {
    /// The node's id, in hexadecimal digits.
    #[serde(serialize_with = "as_text")]
    pub id: NodeId,
    /// Our address as other nodes agree on it (BEP 42), if they do.
    pub external_address: Option<IpAddr>,
    /// Nodes in the routing table that have answered recently.
    pub good_nodes: usize,
    /// All nodes in the routing table.
    pub nodes: usize,
}

fn as_text<S: serde::Serializer>(id: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// The node knows enough others to search in the network of an address family: for the first time, or again after it
/// had lost them.
#[derive(Message, Debug, Clone)]
pub struct DhtReady {
    /// The address family.
    pub family: Family,
}

/// Other nodes agree on our address (BEP 42), for the first time or on another one than before.
#[derive(Message, Debug, Clone)]
pub struct DhtAddressKnown {
    /// The address.
    pub address: IpAddr,
}

/// A search for a torrent has ended, which also announces us: the first one, or one with another outcome than the last
/// one in such a message. The outcome is whether there are peers, and whether nodes store our address.
#[derive(Message, Debug, Clone)]
pub struct DhtAnnounced {
    /// The torrent.
    pub torrent: Entity,
    /// Number of peers found, the known ones included.
    pub peers: usize,
    /// Number of nodes that store our address.
    pub nodes: usize,
}
