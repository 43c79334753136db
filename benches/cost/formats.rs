//! Inputs that are parsed at once: tracker replies, extension payloads, torrent files.

use std::fmt::Write;
use std::hint::black_box;
use std::net::SocketAddr;

use bytes::Bytes;
use ecs_torrent::protocol::extension::ExtensionHandshake;
use ecs_torrent::protocol::hash::InfoHash;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent::protocol::time::Timestamp;
use ecs_torrent::protocol::tracker::http::{read_announce, read_refusal, read_scrape};
use ecs_torrent::protocol::tracker::udp::{UdpExchange, UdpRequest};

use crate::IsWanted;
use crate::meter::measure as costs;
use crate::report::Row;
use crate::shapes::SHAPES;

/// Bytes of a torrent file.
const TORRENT_BYTES: usize = 4_000_000;

/// Bytes of a reply or payload.
const REPLY_BYTES: usize = 1_000_000;

/// Maximum number of peers kept from a reply.
const MAX_PEERS: usize = 200;

pub fn measure(is_wanted: IsWanted<'_>, rows: &mut Vec<Row>) {
    for (group, name, make, read) in INPUTS {
        if is_wanted(group, name) {
            let bytes = make(REPLY_BYTES);
            let (cost, ()) = costs(|| read(&bytes));
            rows.push(Row::new(group, name, bytes.len(), cost));
        }
    }
    for shape in SHAPES.iter().filter(|shape| is_wanted("api torrent", shape.name)) {
        let bytes = Bytes::from((shape.make)(TORRENT_BYTES));
        let (cost, _) = costs(|| black_box(Metainfo::parse(&bytes, &MetainfoLimits::default())).map(drop));
        rows.push(Row::new("api", shape.name, bytes.len(), cost));
    }
}

/// Group, name, generator and parser of an input.
type Input = (&'static str, &'static str, fn(usize) -> Vec<u8>, fn(&[u8]));

const INPUTS: [Input; 13] = [
    (
        "tracker",
        "peers, compact",
        |len| string_under("5:peers", "p", len),
        announce,
    ),
    (
        "tracker",
        "peers of IPv6, compact",
        |len| string_under("6:peers6", "p", len / 18 * 18),
        announce,
    ),
    (
        "tracker",
        "peers, as dictionaries",
        |len| {
            list_under("5:peers", len, |number| {
                format!("d2:ip7:1.2.3.44:porti{}ee", number % 60_000 + 1)
            })
        },
        announce,
    ),
    ("tracker", "unknown keys", unknown_keys, announce),
    (
        "tracker",
        "very many values",
        |len| list_under("1:x", len, |_| "0:".into()),
        announce,
    ),
    (
        "tracker",
        "a refusal, long",
        |len| string_under("14:failure reason", "\x1b", len),
        |bytes| drop(black_box(read_refusal(bytes))),
    ),
    ("tracker", "scrape of other torrents", scrape, |bytes| {
        drop(black_box(read_scrape(bytes, &[InfoHash([b'h'; 20])])));
    }),
    ("tracker", "datagrams", |len| vec![0; len], datagrams),
    (
        "extension",
        "handshake with very many names",
        |len| format!("d1:m{}e", names(len)).into_bytes(),
        handshake,
    ),
    ("extension", "handshake with unknown keys", unknown_keys, handshake),
    (
        "extension",
        "handshake with a long client name",
        |len| string_under("1:v", "\u{202e}", len),
        handshake,
    ),
    (
        "extension",
        "nested handshake",
        |len| format!("d1:m{}", "d1:a".repeat(len / 4)).into_bytes(),
        handshake,
    ),
    (
        "extension",
        "handshake that is not a dictionary",
        |len| b"i0e".repeat(len / 3),
        handshake,
    ),
];

fn announce(bytes: &[u8]) {
    drop(black_box(read_announce(bytes, MAX_PEERS)));
}

fn handshake(bytes: &[u8]) {
    drop(black_box(ExtensionHandshake::read(bytes)));
}

/// Feeds 20-byte datagrams that match no transaction.
fn datagrams(bytes: &[u8]) {
    let tracker: SocketAddr = "10.0.0.1:1".parse().unwrap();
    let request = UdpRequest::Scrape(vec![InfoHash([b'h'; 20])]);
    let mut exchange = UdpExchange::new(request, tracker, 4, MAX_PEERS);
    exchange.start(Timestamp::ZERO, None, 0);
    for packet in bytes.chunks(20) {
        black_box(exchange.on_packet(Timestamp::ZERO, packet, 0));
    }
}

fn string_under(key: &str, filling: &str, len: usize) -> Vec<u8> {
    let value = filling.repeat(len / 6 * 6 / filling.len());
    format!("d8:intervali1800e{key}{}:{value}e", value.len()).into_bytes()
}

fn list_under(key: &str, len: usize, item: impl Fn(usize) -> String) -> Vec<u8> {
    let mut list = String::new();
    let mut count = 0;
    // The token limit rejects replies with more values.
    while list.len() < len && count < 12_000 {
        list += &item(count);
        count += 1;
    }
    format!("d8:intervali1800e{key}l{list}ee").into_bytes()
}

fn names(len: usize) -> String {
    let mut dict = "d".to_owned();
    (0..len.min(400_000) / 12).for_each(|number| write!(dict, "7:{number:07}i1e").unwrap());
    dict + "e"
}

fn unknown_keys(len: usize) -> Vec<u8> {
    names(len).into_bytes()
}

fn scrape(len: usize) -> Vec<u8> {
    let mut files = String::new();
    for number in 0..len.min(500_000) / 70 {
        write!(files, "20:{number:020}d8:completei1e10:downloadedi2e10:incompletei3ee").unwrap();
    }
    format!("d5:filesd{files}ee").into_bytes()
}
