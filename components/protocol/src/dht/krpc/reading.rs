//! Reading a message. Unknown keys are ignored; an optional value of the wrong type or size counts as absent.

use std::net::SocketAddr;

use super::{
    BLOOM_BYTES, Body, ErrorCode, Filters, KrpcError, MAX_LISTED, MAX_RECEIVED, MAX_SALT, MAX_TOKEN, MAX_TRANSACTION,
    MAX_VALUE, Message, Method, PutItem, Query, Refusal, Reply, Samples, Signed, Want,
};
use crate::bencode::{Document, Limits, Value};
use crate::compact::read_address;
use crate::dht::id::NodeId;

/// Depth and number of values as libtorrent limits them: a reply needs 3 levels, and an item's value may have some
/// more.
const LIMITS: Limits = Limits {
    max_depth: 12,
    max_tokens: 1024,
    max_bytes: MAX_RECEIVED,
};

/// A datagram whose bencode is well-formed. [`Packet::message`] borrows from it.
#[derive(Debug)]
pub struct Packet<'a>(Document<'a>);

impl<'a> Packet<'a> {
    /// Checks a datagram's bencode.
    ///
    /// # Errors
    /// Returns an error if the datagram is not exactly one bencoded value within the limits on size, depth and number
    /// of values.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, KrpcError> {
        Ok(Self(Document::parse(datagram, &LIMITS)?))
    }

    /// Reads the message.
    ///
    /// # Errors
    /// Returns an error if the datagram is no message, or a query that cannot be answered because it has no valid id.
    pub fn message(&self) -> Result<Message<'_>, KrpcError> {
        let root = self.0.root();
        let transaction = bytes(root, b"t").filter(|transaction| transaction.len() <= MAX_TRANSACTION);
        let body = match bytes(root, b"y") {
            Some(b"q") => Body::Query(read_query(root)?),
            Some(b"r") => Body::Reply(read_reply(dict(root, b"r").ok_or(KrpcError::Missing("r"))?)?),
            Some(b"e") => read_error(root),
            _ => return Err(KrpcError::Missing("y")),
        };
        Ok(Message {
            transaction: transaction.ok_or(KrpcError::Missing("t"))?,
            version: bytes(root, b"v"),
            external: bytes(root, b"ip").and_then(read_address),
            body,
        })
    }
}

fn read_query(root: Value<'_>) -> Result<Query<'_>, KrpcError> {
    let name = bytes(root, b"q").ok_or(KrpcError::Missing("q"))?;
    let args = dict(root, b"a").ok_or(KrpcError::Missing("a"))?;
    Ok(Query {
        id: id(args, b"id").ok_or(KrpcError::Missing("id"))?,
        is_read_only: flag(root, b"ro"),
        want: args.get(b"want").and_then(read_want),
        method: read_method(name, args),
    })
}

fn read_want(value: Value<'_>) -> Option<Want> {
    let mut want = Want { v4: false, v6: false };
    for name in value.as_list()? {
        match name.as_bytes() {
            Some(b"n4") => want.v4 = true,
            Some(b"n6") => want.v6 = true,
            _ => {}
        }
    }
    Some(want)
}

fn read_method<'d>(name: &[u8], args: Value<'d>) -> Result<Method<'d>, Refusal> {
    let needed = |key: &'static [u8], text| id(args, key).ok_or(invalid(text));
    let target = || needed(b"target", "invalid target");
    let info_hash = || needed(b"info_hash", "invalid info_hash");
    match name {
        b"ping" => Ok(Method::Ping),
        b"find_node" => Ok(Method::FindNode { target: target()? }),
        b"get_peers" => Ok(Method::GetPeers {
            info_hash: info_hash()?,
            no_seed: flag(args, b"noseed"),
            scrape: flag(args, b"scrape"),
        }),
        b"announce_peer" => read_announce(args, info_hash()?),
        b"get" => Ok(Method::Get {
            target: target()?,
            newer_than: int(args, b"seq"),
        }),
        b"put" => read_put(args),
        b"sample_infohashes" => Ok(Method::SampleInfohashes { target: target()? }),
        _ => Ok(Method::Unknown {
            target: id(args, b"target").or_else(|| id(args, b"info_hash")),
        }),
    }
}

fn read_announce(args: Value<'_>, info_hash: NodeId) -> Result<Method<'_>, Refusal> {
    let implied_port = flag(args, b"implied_port");
    let port = int(args, b"port")
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or(0);
    if port == 0 && !implied_port {
        return Err(invalid("invalid port"));
    }
    Ok(Method::AnnouncePeer {
        info_hash,
        port,
        implied_port,
        token: read_token(args)?,
        seed: flag(args, b"seed"),
    })
}

fn read_token(args: Value<'_>) -> Result<&[u8], Refusal> {
    let token = bytes(args, b"token").filter(|token| token.len() <= MAX_TOKEN);
    token.ok_or(invalid("invalid token"))
}

fn read_put(args: Value<'_>) -> Result<Method<'_>, Refusal> {
    let value = args.get(b"v").ok_or(invalid("missing value"))?;
    let salt = bytes(args, b"salt").unwrap_or_default();
    if value.raw().len() > MAX_VALUE {
        return Err(Refusal::new(ErrorCode::ValueTooBig, "message (v field) too big"));
    }
    if salt.len() > MAX_SALT {
        return Err(Refusal::new(ErrorCode::SaltTooBig, "salt (salt field) too big"));
    }
    if !is_canonical(value) {
        return Err(invalid("value is not canonical bencode"));
    }
    let signed = read_signed(args);
    if signed.is_none() && args.get(b"k").is_some() {
        return Err(invalid("incomplete mutable item"));
    }
    Ok(Method::Put {
        token: read_token(args)?,
        item: PutItem {
            value: value.raw(),
            signed,
            salt: if signed.is_some() { salt } else { &[] },
            cas: int(args, b"cas"),
        },
    })
}

/// BEP 44, "Messages": dictionaries with unsorted keys are invalid. The tokenizer has refused all other irregularities.
fn is_canonical(value: Value<'_>) -> bool {
    if let Some(mut items) = value.as_list() {
        return items.all(is_canonical);
    }
    let Some(pairs) = value.as_dict() else { return true };
    let mut last: Option<&[u8]> = None;
    for (key, value) in pairs {
        if last.is_some_and(|last| last >= key) || !is_canonical(value) {
            return false;
        }
        last = Some(key);
    }
    true
}

fn read_signed(dict: Value<'_>) -> Option<Signed<'_>> {
    Some(Signed {
        key: array(dict, b"k")?,
        signature: array(dict, b"sig")?,
        seq: int(dict, b"seq").filter(|seq| *seq >= 0)?,
    })
}

fn read_reply(r: Value<'_>) -> Result<Reply<'_>, KrpcError> {
    let value = r.get(b"v").filter(|value| value.raw().len() <= MAX_VALUE);
    let filters = || {
        Some(Filters {
            seeds: array::<BLOOM_BYTES>(r, b"BFsd")?,
            peers: array::<BLOOM_BYTES>(r, b"BFpe")?,
        })
    };
    Ok(Reply {
        id: id(r, b"id").ok_or(KrpcError::Missing("id"))?,
        nodes: bytes(r, b"nodes").map_or(&[], whole::<26>),
        nodes6: bytes(r, b"nodes6").map_or(&[], whole::<38>),
        values: r.get(b"values").map(read_values).unwrap_or_default(),
        token: bytes(r, b"token").filter(|token| token.len() <= MAX_TOKEN),
        value: value.filter(|value| is_canonical(*value)).map(Value::raw),
        signed: read_signed(r),
        seq: int(r, b"seq").filter(|seq| *seq >= 0),
        scrape: filters(),
        samples: read_samples(r),
    })
}

/// BEP 32, "values": a list may mix IPv4 and IPv6 peers. Addresses with port 0 are left out.
fn read_values(value: Value<'_>) -> Vec<SocketAddr> {
    let items = value.as_list().into_iter().flatten().take(MAX_LISTED);
    let peers = items.filter_map(|item| read_address(item.as_bytes()?));
    peers.filter(|peer| peer.port() != 0).collect()
}

fn read_samples(r: Value<'_>) -> Option<Samples<'_>> {
    let number = |key: &[u8]| int(r, key).and_then(|number| u32::try_from(number).ok());
    Some(Samples {
        hashes: whole::<20>(bytes(r, b"samples")?),
        interval: number(b"interval").unwrap_or(0),
        total: number(b"num").unwrap_or(0),
    })
}

fn read_error(root: Value<'_>) -> Body<'_> {
    let mut list = root.get(b"e").and_then(Value::as_list).into_iter().flatten();
    Body::Error {
        code: list.next().and_then(Value::as_int).unwrap_or(0),
        text: list.next().and_then(Value::as_bytes).unwrap_or_default(),
    }
}

/// Cuts off an incomplete last entry.
fn whole<const UNIT: usize>(list: &[u8]) -> &[u8] {
    &list[..list.len() - list.len() % UNIT]
}

fn invalid(text: &'static str) -> Refusal {
    Refusal::new(ErrorCode::Protocol, text)
}

fn dict<'d>(value: Value<'d>, key: &[u8]) -> Option<Value<'d>> {
    value.get(key).filter(|value| value.is_dict())
}

fn bytes<'d>(dict: Value<'d>, key: &[u8]) -> Option<&'d [u8]> {
    dict.get(key)?.as_bytes()
}

fn int(dict: Value<'_>, key: &[u8]) -> Option<i64> {
    dict.get(key)?.as_int()
}

fn flag(dict: Value<'_>, key: &[u8]) -> bool {
    int(dict, key).is_some_and(|value| value != 0)
}

fn array<'d, const N: usize>(dict: Value<'d>, key: &[u8]) -> Option<&'d [u8; N]> {
    bytes(dict, key)?.try_into().ok()
}

fn id(dict: Value<'_>, key: &[u8]) -> Option<NodeId> {
    array(dict, key).copied().map(NodeId)
}
