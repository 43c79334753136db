//! KRPC, the messages of the DHT: one bencoded dictionary per datagram (BEP 5, "KRPC Protocol").
//!
//! Reading borrows from the datagram and allocates only for the positions of values and for a list of peers. Writing
//! produces the canonical form.

mod reading;
#[cfg(test)]
mod tests;
mod writing;

use std::net::SocketAddr;

pub use self::reading::Packet;
use super::id::NodeId;
use crate::bencode::BencodeError;
use crate::compact::Family;

/// Maximum size of a datagram that is read. BEP 32 limits senders to 1024 bytes, but libtorrent sends more.
pub const MAX_RECEIVED: usize = 4096;

/// Maximum size of a datagram that is sent (BEP 32, "Maximum packet size").
pub const MAX_SENT: usize = 1024;

/// Maximum size of an answer with an item, which BEP 44 allows 1000 bytes: that of an IPv6 packet which no network
/// splits (RFC 8200, section 5).
pub const MAX_SENT_ITEM: usize = 1280 - 48;

/// Maximum length of a transaction id. Known clients use 1 to 8 bytes.
pub const MAX_TRANSACTION: usize = 32;

/// Maximum length of a token. Known clients use 4 to 20 bytes.
pub const MAX_TOKEN: usize = 64;

/// Maximum number of peers read from one reply, and nodes per address family.
pub const MAX_LISTED: usize = 256;

/// Maximum bytes of an item's value (BEP 44, "Messages").
pub const MAX_VALUE: usize = 1000;

/// Maximum bytes of a mutable item's salt (BEP 44, "Mutable Items").
pub const MAX_SALT: usize = 64;

/// Bytes of a bloom filter (BEP 33).
pub const BLOOM_BYTES: usize = 256;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    /// `t`: chosen by the querying node, repeated by the reply.
    pub transaction: &'a [u8],
    /// `v`: the sender's client and version.
    pub version: Option<&'a [u8]>,
    /// `ip`: the receiver's address as the sender sees it (BEP 42).
    pub external: Option<SocketAddr>,
    /// The content.
    pub body: Body<'a>,
}

/// The content of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body<'a> {
    /// `q`: a question.
    Query(Query<'a>),
    /// `r`: an answer.
    Reply(Reply<'a>),
    /// `e`: a refusal.
    Error {
        /// The error code (BEP 5, BEP 44), see [`ErrorCode`].
        code: i64,
        /// The explanation.
        text: &'a [u8],
    },
}

/// A question to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query<'a> {
    /// The querying node's id.
    pub id: NodeId,
    /// `ro`: the querying node answers no queries (BEP 43).
    pub is_read_only: bool,
    /// The families of the nodes that the reply should list; `None` is the family of the datagram (BEP 32).
    pub want: Option<Want>,
    /// The question itself, or the error to answer with.
    pub method: Result<Method<'a>, Refusal>,
}

/// The families of nodes that a query asks for (BEP 32, "want").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// `n4`: `nodes`.
    pub v4: bool,
    /// `n6`: `nodes6`.
    pub v6: bool,
}

impl Want {
    /// Both families.
    pub const BOTH: Self = Self { v4: true, v6: true };

    /// One family.
    #[must_use]
    pub fn only(family: Family) -> Self {
        Self {
            v4: family == Family::V4,
            v6: family == Family::V6,
        }
    }

    /// Whether `family` is asked for.
    #[must_use]
    pub fn includes(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// An item to be stored (BEP 44).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutItem<'a> {
    /// The bencoded value, exactly as received.
    pub value: &'a [u8],
    /// Key and signature of a mutable item.
    pub signed: Option<Signed<'a>>,
    /// `salt`: distinguishes the mutable items of one key; empty if absent.
    pub salt: &'a [u8],
    /// The sequence number that the stored item must have.
    pub cas: Option<i64>,
}

/// A query's method and arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method<'a> {
    /// Asks for the node's id (BEP 5).
    Ping,
    /// Asks for the nodes closest to an id (BEP 5).
    FindNode {
        /// The id.
        target: NodeId,
    },
    /// Asks for peers of a torrent (BEP 5).
    GetPeers {
        /// The torrent.
        info_hash: NodeId,
        /// Asks for peers that are not seeds (BEP 33).
        no_seed: bool,
        /// Asks for bloom filters of all peers (BEP 33).
        scrape: bool,
    },
    /// Announces the querying host as a peer of a torrent (BEP 5).
    AnnouncePeer {
        /// The torrent.
        info_hash: NodeId,
        /// The peer's port.
        port: u16,
        /// Whether the source port of the datagram counts instead of `port`, for hosts behind a NAT.
        implied_port: bool,
        /// The token of an earlier reply.
        token: &'a [u8],
        /// Whether the peer is a seed (BEP 33).
        seed: bool,
    },
    /// Asks for an item (BEP 44).
    Get {
        /// SHA-1 of an immutable item, or of a mutable item's key and salt.
        target: NodeId,
        /// Asks for the value only if its sequence number is greater.
        newer_than: Option<i64>,
    },
    /// Stores an item (BEP 44).
    Put {
        /// The token of an earlier reply.
        token: &'a [u8],
        /// The item.
        item: PutItem<'a>,
    },
    /// Asks for some of the info-hashes that the node has peers of (BEP 51).
    SampleInfohashes {
        /// The id whose closest nodes the reply should list.
        target: NodeId,
    },
    /// A method of a later extension; a reply that lists the nodes close to the target keeps lookups working.
    Unknown {
        /// `target` or `info_hash`.
        target: Option<NodeId>,
    },
}

/// Proof of a mutable item's origin (BEP 44).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed<'a> {
    /// `k`: the ed25519 public key.
    pub key: &'a [u8; 32],
    /// `sig`: the signature of salt, sequence number and value.
    pub signature: &'a [u8; 64],
    /// `seq`: the sequence number, not negative.
    pub seq: i64,
}

/// An answer of a node. Every field but the id is optional.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The answering node's id.
    pub id: NodeId,
    /// `nodes`: whole entries of 26 bytes.
    pub nodes: &'a [u8],
    /// `nodes6`: whole entries of 38 bytes (BEP 32).
    pub nodes6: &'a [u8],
    /// `values`: peers of the torrent.
    pub values: Vec<SocketAddr>,
    /// `token`: permission to store something at this node.
    pub token: Option<&'a [u8]>,
    /// `v`: the bencoded value of an item, exactly as received (BEP 44).
    pub value: Option<&'a [u8]>,
    /// `k`, `sig` and `seq` of a mutable item.
    pub signed: Option<Signed<'a>>,
    /// `seq` alone: the node has the item, but its value is not newer than asked for.
    pub seq: Option<i64>,
    /// `BFsd` and `BFpe`: bloom filters of the torrent's seeds and other peers (BEP 33).
    pub scrape: Option<Filters<'a>>,
    /// The answer to `sample_infohashes` (BEP 51).
    pub samples: Option<Samples<'a>>,
}

impl Reply<'_> {
    /// A reply with nothing but the node's id, as to a ping.
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            nodes: &[],
            nodes6: &[],
            values: Vec::new(),
            token: None,
            value: None,
            signed: None,
            seq: None,
            scrape: None,
            samples: None,
        }
    }

    /// The listed nodes of one family, at most [`MAX_LISTED`]. An IPv4 address in IPv6 form belongs to neither family's
    /// list: its node would answer in the other network.
    pub fn contacts(&self, family: Family) -> impl Iterator<Item = (NodeId, SocketAddr)> + '_ {
        let list = match family {
            Family::V4 => self.nodes,
            Family::V6 => self.nodes6,
        };
        read_contacts(list, family).take(MAX_LISTED)
    }
}

/// Bloom filters of a torrent's peers (BEP 33).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filters<'a> {
    /// `BFsd`: seeds.
    pub seeds: &'a [u8; BLOOM_BYTES],
    /// `BFpe`: other peers.
    pub peers: &'a [u8; BLOOM_BYTES],
}

/// Some of the info-hashes that a node has peers of (BEP 51).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Samples<'a> {
    /// `interval`: seconds until the node chooses others.
    pub interval: u32,
    /// `num`: the number of info-hashes at the node.
    pub total: u32,
    /// `samples`: whole info-hashes of 20 bytes.
    pub hashes: &'a [u8],
}

/// The codes of error messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// BEP 5: server error.
    Server = 202,
    /// BEP 5: malformed packet, invalid arguments, or bad token.
    Protocol = 203,
    /// BEP 5: method unknown.
    MethodUnknown = 204,
    /// BEP 44: the value is too big.
    ValueTooBig = 205,
    /// BEP 44: invalid signature.
    BadSignature = 206,
    /// BEP 44: the salt is too big.
    SaltTooBig = 207,
    /// BEP 44: the stored sequence number is not the expected one.
    CasMismatch = 301,
    /// BEP 44: the stored sequence number is greater.
    SeqTooLow = 302,
}

/// An error to answer a query with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The code.
    pub code: ErrorCode,
    /// The explanation.
    pub text: &'static str,
}

impl Refusal {
    /// Creates an error.
    #[must_use]
    pub const fn new(code: ErrorCode, text: &'static str) -> Self {
        Self { code, text }
    }
}

/// The reason a datagram is no message. It is dropped without an answer: the sender's address may be forged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KrpcError {
    /// The datagram is not bencode, or exceeds the limits.
    #[error("malformed message: {0}")]
    Bencode(#[from] BencodeError),
    /// A part that every message of its kind has is missing or has the wrong type.
    #[error("no valid `{0}`")]
    Missing(&'static str),
}

/// Bytes of one entry of `nodes` or `nodes6`.
#[must_use]
pub fn contact_bytes(family: Family) -> usize {
    match family {
        Family::V4 => 26,
        Family::V6 => 38,
    }
}

/// Reads the entries of `nodes` or `nodes6`, without those whose address is of the other family.
pub(super) fn read_contacts(list: &[u8], family: Family) -> impl Iterator<Item = (NodeId, SocketAddr)> + '_ {
    let entries = list.chunks_exact(contact_bytes(family));
    entries.filter_map(move |entry| {
        let (id, address) = entry.split_first_chunk()?;
        let address = crate::compact::read_address(address)?;
        (Family::of(address.ip()) == family).then_some((NodeId(*id), address))
    })
}

/// Appends one entry of `nodes` or `nodes6`.
pub fn write_contact(id: NodeId, address: SocketAddr, list: &mut Vec<u8>) {
    list.extend(id.0);
    crate::compact::write_address(address, list);
}
