//! Inputs that are parsed at once: tracker replies, extension payloads, torrent files, magnet links.

use std::fmt::Write;
use std::hint::black_box;
use std::net::SocketAddr;

use bytes::Bytes;
use ecs_torrent::protocol::extension::ExtensionHandshake;
use ecs_torrent::protocol::hash::InfoHash;
use ecs_torrent::protocol::magnet::Magnet;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent::protocol::peer_id::PeerId;
use ecs_torrent::protocol::time::Timestamp;
use ecs_torrent::protocol::tracker::http::{read_announce, read_refusal, read_scrape};
use ecs_torrent::protocol::tracker::udp::{self, MAX_SCRAPE, UdpExchange, UdpRequest};
use ecs_torrent::protocol::tracker::{AnnounceEvent, AnnounceRequest};

use crate::IsWanted;
use crate::meter::measure as costs;
use crate::report::Row;
use crate::shapes::SHAPES;

/// Bytes of a torrent file.
const TORRENT_BYTES: usize = 4_000_000;

/// Bytes of a reply or payload.
const REPLY_BYTES: usize = 1_000_000;

/// Bytes of a magnet link, a little less than the longest one that is accepted.
const LINK_BYTES: usize = 250_000;

/// Maximum number of peers kept from a reply.
const MAX_PEERS: usize = 200;

/// Measures the selected rows.
///
/// # Panics
/// If an input is not read, or not refused, as its row says.
pub fn measure(is_wanted: IsWanted<'_>, rows: &mut Vec<Row>) {
    for &(group, name, make, read, outcome) in INPUTS {
        if is_wanted(group, name) {
            let bytes = make(REPLY_BYTES);
            let (cost, found) = costs(|| read(&bytes));
            assert_eq!(found, outcome, "{group}, {name}");
            rows.push(Row::new(group, name, bytes.len(), cost));
        }
    }
    for shape in SHAPES.iter().filter(|shape| is_wanted("api torrent", shape.name)) {
        let bytes = Bytes::from((shape.make)(TORRENT_BYTES));
        let (cost, _) = costs(|| black_box(Metainfo::parse(&bytes, &MetainfoLimits::default())).map(drop));
        rows.push(Row::new("api", shape.name, bytes.len(), cost));
    }
}

/// The result of a parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Read,
    Refused,
}

use Outcome::{Read, Refused};

/// Group, name, generator, parser and result of an input.
type Input = (
    &'static str,
    &'static str,
    fn(usize) -> Vec<u8>,
    fn(&[u8]) -> Outcome,
    Outcome,
);

const INPUTS: &[Input] = &[
    (
        "tracker",
        "peers, compact",
        |len| string_under("5:peers", "p", len),
        announce,
        Read,
    ),
    (
        "tracker",
        "peers of IPv6, compact",
        |len| string_under("6:peers6", "p", len / 18 * 18),
        announce,
        Read,
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
        Read,
    ),
    ("tracker", "unknown keys", unknown_keys, announce, Refused),
    (
        "tracker",
        "very many values",
        |len| list_under("1:x", len, |_| "0:".into()),
        announce,
        Read,
    ),
    (
        "tracker",
        "a refusal, long",
        |len| string_under("14:failure reason", "\x1b", len),
        |bytes| outcome(read_refusal(bytes).is_ok()),
        Refused,
    ),
    (
        "tracker",
        "scrape of other torrents",
        scrape,
        |bytes| outcome(read_scrape(bytes, &[InfoHash([b'h'; 20])]).is_ok()),
        Read,
    ),
    ("tracker", "datagrams", |len| vec![0; len], datagrams, Refused),
    (
        "tracker",
        "announce answers by UDP",
        |len| answers(len, 1, 12 + 6 * MAX_PEERS),
        |bytes| answered(bytes, UdpRequest::Announce(announce_request()), 12 + 6 * MAX_PEERS),
        Read,
    ),
    (
        "tracker",
        "scrape answers by UDP",
        |len| answers(len, 2, 12 * MAX_SCRAPE),
        |bytes| answered(bytes, scrape_request(), 12 * MAX_SCRAPE),
        Read,
    ),
    (
        "tracker",
        "refusals by UDP",
        |len| answers(len, 3, 1000),
        |bytes| answered(bytes, scrape_request(), 1000),
        Refused,
    ),
    (
        "extension",
        "handshake with very many names",
        |len| format!("d1:m{}e", names(len)).into_bytes(),
        handshake,
        Refused,
    ),
    (
        "extension",
        "handshake with unknown keys",
        unknown_keys,
        handshake,
        Refused,
    ),
    (
        "extension",
        "handshake with a long client name",
        |len| string_under("1:v", "\u{202e}", len),
        handshake,
        Read,
    ),
    (
        "extension",
        "nested handshake",
        |len| format!("d1:m{}", "d1:a".repeat(len / 4)).into_bytes(),
        handshake,
        Refused,
    ),
    (
        "extension",
        "handshake that is not a dictionary",
        |len| b"i0e".repeat(len / 3),
        handshake,
        Refused,
    ),
    (
        "api",
        "magnet link with trackers",
        |_| link(|number| format!("&tr=udp://{number}.example:1/")),
        magnet,
        Read,
    ),
    (
        "api",
        "magnet link with peers",
        |_| link(|number| format!("&x.pe=10.{}.{}.1:6881", number >> 8 & 255, number & 255)),
        magnet,
        Read,
    ),
    (
        "api",
        "magnet link with file ranges",
        |_| link(|number| format!("&so={}-{}", 3 * number, 3 * number + 1)),
        magnet,
        Read,
    ),
    (
        "api",
        "magnet link with an escaped name",
        |_| link(|number| if number == 0 { "&dn=".into() } else { "%e2%80%ae".into() }),
        magnet,
        Read,
    ),
    (
        "api",
        "magnet link with unknown parameters",
        |_| link(|number| format!("&x{number}=")),
        magnet,
        Read,
    ),
    (
        "api",
        "magnet link with other topics",
        |_| link(|_| "&xt=urn:sha1:".into()),
        magnet,
        Read,
    ),
];

fn outcome(is_read: bool) -> Outcome {
    if black_box(is_read) { Read } else { Refused }
}

fn announce(bytes: &[u8]) -> Outcome {
    outcome(read_announce(bytes, MAX_PEERS).is_ok())
}

fn handshake(bytes: &[u8]) -> Outcome {
    outcome(ExtensionHandshake::read(bytes).is_ok())
}

fn magnet(bytes: &[u8]) -> Outcome {
    outcome(String::from_utf8_lossy(bytes).parse::<Magnet>().is_ok())
}

const LINK_HEAD: &str = "magnet:?xt=urn:btih:9a0b3c4d9a0b3c4d9a0b3c4d9a0b3c4d9a0b3c4d";

/// Creates a magnet link of parts, each made from its number.
fn link(part: impl Fn(usize) -> String) -> Vec<u8> {
    let mut link = LINK_HEAD.to_owned();
    (0..)
        .take_while(|&number| {
            link += &part(number);
            link.len() < LINK_BYTES
        })
        .for_each(drop);
    link.into_bytes()
}

fn tracker() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 1))
}

/// Creates an exchange with a UDP tracker that has sent its first packet.
fn exchange(request: UdpRequest) -> UdpExchange {
    let mut exchange = UdpExchange::new(request, tracker(), 4, MAX_PEERS);
    exchange.start(Timestamp::ZERO, None, TRANSACTION);
    exchange
}

/// Feeds 20-byte datagrams that match no transaction.
fn datagrams(bytes: &[u8]) -> Outcome {
    let mut exchange = exchange(scrape_request());
    let mut packets = bytes.chunks(20);
    outcome(!packets.all(|packet| exchange.on_packet(Timestamp::ZERO, packet, 0) == udp::Outcome::Ignored))
}

/// The transaction id of every packet to a tracker.
const TRANSACTION: u32 = 7;

fn scrape_request() -> UdpRequest {
    UdpRequest::Scrape(vec![InfoHash([b'h'; 20]); MAX_SCRAPE])
}

fn announce_request() -> AnnounceRequest {
    AnnounceRequest {
        info_hash: InfoHash([b'h'; 20]),
        peer_id: PeerId([b'p'; 20]),
        port: 1,
        uploaded: 0,
        downloaded: 0,
        left: 1,
        event: AnnounceEvent::None,
        key: 0,
        num_want: 200,
        tracker_id: None,
    }
}

/// Creates about `len` bytes of UDP answers, each with a body of `body` bytes.
fn answers(len: usize, action: u32, body: usize) -> Vec<u8> {
    let head = [action, TRANSACTION].map(u32::to_be_bytes).concat();
    let answer = [head, vec![b'a'; body]].concat();
    answer.repeat(len / answer.len())
}

/// Answers as many exchanges as there are answers with a body of `body` bytes.
fn answered(bytes: &[u8], request: UdpRequest, body: usize) -> Outcome {
    let mut connected = exchange(request);
    let connection = [0, TRANSACTION, 0, 1].map(u32::to_be_bytes).concat();
    let step = connected.on_packet(Timestamp::ZERO, &connection, TRANSACTION);
    assert!(matches!(step, udp::Outcome::Connected(..)), "{step:?}");
    let is_read = |answer| match connected.clone().on_packet(Timestamp::ZERO, answer, 0) {
        udp::Outcome::Done(result) => result.is_ok(),
        other => panic!("{other:?}"),
    };
    let read_count = bytes.chunks(8 + body).filter(|answer| is_read(answer)).count();
    outcome(read_count > 0)
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
