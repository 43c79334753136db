//! Writing a message: the keys of each dictionary are written in order, so that the result is canonical.

use super::{Body, Message, Method, Query, Reply, Want};
use crate::compact::write_address;

impl Message<'_> {
    /// Returns the datagram.
    ///
    /// A query whose method is an error or unknown is written as a ping; no code sends one.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(256));
        out.raw(b"d");
        if let Body::Query(query) = &self.body {
            out.raw(b"1:a");
            write_arguments(query, &mut out);
        }
        if let Body::Error { code, text } = &self.body {
            out.raw(b"1:el").int(*code).bytes(text).raw(b"e");
        }
        if let Some(external) = self.external {
            let mut address = Vec::with_capacity(18);
            write_address(external, &mut address);
            out.pair(b"ip", &address);
        }
        let kind: &[u8] = match &self.body {
            Body::Query(query) => {
                out.pair(b"q", method_name(query));
                if query.is_read_only {
                    out.key_int(b"ro", 1);
                }
                b"q"
            }
            Body::Reply(reply) => {
                out.raw(b"1:r");
                write_reply(reply, &mut out);
                b"r"
            }
            Body::Error { .. } => b"e",
        };
        out.pair(b"t", self.transaction);
        if let Some(version) = self.version {
            out.pair(b"v", version);
        }
        out.pair(b"y", kind).raw(b"e");
        out.0
    }
}

fn method_name<'q>(query: &'q Query<'_>) -> &'q [u8] {
    match query.method {
        Ok(Method::Ping | Method::Unknown { .. }) | Err(_) => b"ping",
        Ok(Method::FindNode { .. }) => b"find_node",
        Ok(Method::GetPeers { .. }) => b"get_peers",
        Ok(Method::AnnouncePeer { .. }) => b"announce_peer",
        Ok(Method::Get { .. }) => b"get",
        Ok(Method::Put { .. }) => b"put",
        Ok(Method::SampleInfohashes { .. }) => b"sample_infohashes",
    }
}

fn write_arguments(query: &Query<'_>, out: &mut Writer) {
    out.raw(b"d");
    if let Ok(Method::Put { item, .. }) = query.method
        && let Some(cas) = item.cas
    {
        out.key_int(b"cas", cas);
    }
    out.pair(b"id", &query.id.0);
    match query.method {
        Ok(Method::FindNode { target } | Method::SampleInfohashes { target }) => {
            out.pair(b"target", &target.0);
        }
        Ok(Method::GetPeers {
            info_hash,
            no_seed,
            scrape,
        }) => {
            out.pair(b"info_hash", &info_hash.0);
            out.flag(b"noseed", no_seed).flag(b"scrape", scrape);
        }
        Ok(Method::AnnouncePeer {
            info_hash,
            port,
            implied_port,
            token,
            seed,
        }) => {
            out.flag(b"implied_port", implied_port).pair(b"info_hash", &info_hash.0);
            out.key_int(b"port", port.into())
                .flag(b"seed", seed)
                .pair(b"token", token);
        }
        Ok(Method::Get { target, newer_than }) => {
            if let Some(seq) = newer_than {
                out.key_int(b"seq", seq);
            }
            out.pair(b"target", &target.0);
        }
        Ok(Method::Put { token, item }) => {
            if let Some(signed) = item.signed {
                out.pair(b"k", signed.key);
                if !item.salt.is_empty() {
                    out.pair(b"salt", item.salt);
                }
                out.key_int(b"seq", signed.seq).pair(b"sig", signed.signature);
            }
            out.pair(b"token", token).raw(b"1:v").raw(item.value);
        }
        Ok(Method::Ping | Method::Unknown { .. }) | Err(_) => {}
    }
    if let Some(want) = query.want {
        write_want(want, out);
    }
    out.raw(b"e");
}

fn write_want(want: Want, out: &mut Writer) {
    out.raw(b"4:wantl");
    for (wanted, name) in [(want.v4, b"n4"), (want.v6, b"n6")] {
        if wanted {
            out.bytes(name);
        }
    }
    out.raw(b"e");
}

fn write_reply(reply: &Reply<'_>, out: &mut Writer) {
    out.raw(b"d");
    if let Some(filters) = reply.scrape {
        out.pair(b"BFpe", filters.peers).pair(b"BFsd", filters.seeds);
    }
    out.pair(b"id", &reply.id.0);
    if let Some(samples) = reply.samples {
        out.key_int(b"interval", samples.interval.into());
    }
    if let Some(signed) = reply.signed {
        out.pair(b"k", signed.key);
    }
    for (key, nodes) in [(&b"nodes"[..], reply.nodes), (b"nodes6", reply.nodes6)] {
        if !nodes.is_empty() {
            out.pair(key, nodes);
        }
    }
    if let Some(samples) = reply.samples {
        out.key_int(b"num", samples.total.into())
            .pair(b"samples", samples.hashes);
    }
    if let Some(seq) = reply.signed.map(|signed| signed.seq).or(reply.seq) {
        out.key_int(b"seq", seq);
    }
    if let Some(signed) = reply.signed {
        out.pair(b"sig", signed.signature);
    }
    if let Some(token) = reply.token {
        out.pair(b"token", token);
    }
    if let Some(value) = reply.value {
        out.raw(b"1:v").raw(value);
    }
    if !reply.values.is_empty() {
        out.raw(b"6:valuesl");
        for peer in &reply.values {
            let mut address = Vec::with_capacity(18);
            write_address(*peer, &mut address);
            out.bytes(&address);
        }
        out.raw(b"e");
    }
    out.raw(b"e");
}

struct Writer(Vec<u8>);

impl Writer {
    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64).raw(b":").raw(bytes)
    }

    fn int(&mut self, value: i64) -> &mut Self {
        self.raw(b"i");
        if value < 0 {
            self.raw(b"-");
        }
        self.number(value.unsigned_abs()).raw(b"e")
    }

    fn number(&mut self, value: u64) -> &mut Self {
        if value >= 10 {
            self.number(value / 10);
        }
        self.0.push(b'0' + (value % 10) as u8);
        self
    }

    fn pair(&mut self, key: &[u8], value: &[u8]) -> &mut Self {
        self.bytes(key).bytes(value)
    }

    fn key_int(&mut self, key: &[u8], value: i64) -> &mut Self {
        self.bytes(key).int(value)
    }

    fn flag(&mut self, key: &[u8], value: bool) -> &mut Self {
        if value { self.key_int(key, 1) } else { self }
    }
}
