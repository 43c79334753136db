//! Wire messages, handled by a whole engine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ecs_torrent::components::peer::Wire;
use ecs_torrent::components::settings::{PeerSettings, Settings};
use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::engine::sim::{Content, NewNode, NodeId, Simulation};
use ecs_torrent::protocol::extension::{DONT_HAVE, ExtensionHandshake};
use ecs_torrent::protocol::geometry::{BLOCK_SIZE, BlockRequest};
use ecs_torrent::protocol::metadata::{METADATA, MetadataMessage};
use ecs_torrent::protocol::metainfo::Metainfo;
use ecs_torrent::protocol::pex::{PEX, PexFlags, PexMessage, PexPeer};
use ecs_torrent::protocol::wire::{Message, write_block_header};
use ecs_torrent::systems::TorrentPlugins;

use crate::meter::{Cost, TickTime, peak, reset_peak};
use crate::report::Row;
use crate::stranger::{Extensions, Fate, Strangers};
use crate::{IsWanted, engines, torrents};

/// Connections that send the same bytes at the same time.
const CONNECTIONS: usize = 32;

/// Bytes that each connection sends per round.
const CHUNK: usize = 16 << 10;

/// Number and duration of rounds.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(500);

/// Number of 16-byte pieces of the downloaded torrent. Work proportional to pieces becomes visible.
const PIECES: u32 = 100_000;

/// Size of the seeded torrent in bytes.
const SEED_BYTES: usize = 16 << 20;
const SEED_PIECE: u32 = 256 << 10;

/// State of the engine under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Downloads,
    Seeds,
}

struct Kind {
    name: &'static str,
    engine: Engine,
    /// Messages after each handshake.
    opening: fn() -> Vec<Message>,
    chunk: Chunk,
    /// The fate of the connections, which shows that the bytes were decoded.
    fate: Fate,
    /// The bound on the cost, if it is not limited per byte.
    exempt: Option<&'static str>,
}

/// Returns the bytes to send in a round, by its number.
#[derive(Clone, Copy)]
enum Chunk {
    Plain(fn(usize) -> Bytes),
    /// Messages of extensions, which depend on the engine's ids.
    Extended(fn(&Extensions, usize) -> Bytes),
}

impl Kind {
    /// Bytes that a peer without pieces sends to a downloading engine.
    const fn new(name: &'static str, chunk: fn(usize) -> Bytes) -> Self {
        Self {
            name,
            engine: Engine::Downloads,
            opening: || vec![Message::HaveNone],
            chunk: Chunk::Plain(chunk),
            fate: Fate::Open,
            exempt: None,
        }
    }

    /// Messages of extensions.
    const fn extended(name: &'static str, chunk: fn(&Extensions, usize) -> Bytes) -> Self {
        Self {
            name,
            engine: Engine::Downloads,
            opening: || vec![Message::HaveNone, handshake_message()],
            chunk: Chunk::Extended(chunk),
            fate: Fate::Open,
            exempt: None,
        }
    }

    const fn closed(self) -> Self {
        let fate = Fate::Closed;
        Self { fate, ..self }
    }

    const fn answered(self) -> Self {
        let fate = Fate::Answered;
        Self { fate, ..self }
    }

    const fn after(self, opening: fn() -> Vec<Message>) -> Self {
        Self { opening, ..self }
    }

    const fn by_a_seed(self, opening: fn() -> Vec<Message>) -> Self {
        let engine = Engine::Seeds;
        Self {
            engine,
            opening,
            ..self
        }
    }

    const fn bounded_by(self, bound: &'static str) -> Self {
        let exempt = Some(bound);
        Self { exempt, ..self }
    }
}

const SERVED: &str = "bounded by upload limits: each answer is 16 KiB";
const ONCE: &str = "bounded by connection limits: sent once per connection";

fn kinds() -> Vec<Kind> {
    let nothing: fn() -> Vec<Message> = Vec::new;
    let choked: fn() -> Vec<Message> = || vec![Message::HaveNone];
    let interested: fn() -> Vec<Message> = || vec![Message::HaveNone, Message::Interested];
    let has_all: fn() -> Vec<Message> = || vec![Message::HaveAll, handshake_message()];
    vec![
        Kind::new("keep-alive", |_| filled(|_| Message::KeepAlive)),
        Kind::new("choke, unchoke", |_| {
            filled(|n| [Message::Choke, Message::Unchoke][n % 2].clone())
        })
        .closed(),
        Kind::new("interested, not interested", |_| {
            filled(|n| [Message::Interested, Message::NotInterested][n % 2].clone())
        }),
        Kind::new("interested, not interested, to a seed", |_| {
            filled(|n| [Message::Interested, Message::NotInterested][n % 2].clone())
        })
        .by_a_seed(choked),
        Kind::new("have, new pieces", |round| {
            filled(move |n| Message::Have((round * CHUNK + n) as u32 % PIECES))
        }),
        Kind::new("have, same piece", |_| filled(|_| Message::Have(7))),
        Kind::extended("have, lt_donthave, after have all", |ids, _| {
            filled(|n| match n % 2 {
                0 => dont_have(ids, n as u32 % PIECES),
                _ => Message::Have((n - 1) as u32 % PIECES),
            })
        })
        .after(has_all)
        .closed(),
        Kind::extended("lt_donthave, new pieces, after have all", |ids, round| {
            filled(|n| dont_have(ids, (round * CHUNK + n) as u32 % PIECES))
        })
        .after(has_all)
        .closed(),
        Kind::new("bitfield", |_| messages(&[Message::Bitfield(bitfield(0x55))]))
            .after(nothing)
            .bounded_by(ONCE),
        Kind::new("bitfield with spare bits", |_| {
            messages(&[Message::Bitfield(vec![0xff; 99].into())])
        })
        .after(nothing)
        .bounded_by(ONCE)
        .closed(),
        Kind::new("have all", |_| messages(&[Message::HaveAll]))
            .after(nothing)
            .bounded_by(ONCE),
        Kind::new("have all, repeated", |_| filled(|_| Message::HaveAll))
            .after(nothing)
            .closed(),
        Kind::new("request, choked", |_| filled(|n| Message::Request(block(n))))
            .by_a_seed(choked)
            .answered(),
        Kind::new("request, same block, choked", |_| {
            filled(|_| Message::Request(block(0)))
        })
        .by_a_seed(choked)
        .answered(),
        Kind::new("request, interested", |_| filled(|n| Message::Request(block(n))))
            .by_a_seed(interested)
            .bounded_by(SERVED)
            .answered(),
        Kind::new("request, cancel", |_| {
            filled(|n| match n % 2 {
                0 => Message::Request(block(n / 2)),
                _ => Message::Cancel(block(n / 2)),
            })
        })
        .by_a_seed(interested)
        .bounded_by(SERVED)
        .answered(),
        Kind::new("request for a missing piece", |_| {
            filled(|n| Message::Request(block_of(n as u32 % PIECES)))
        })
        .answered(),
        Kind::new("request out of range", |_| {
            filled(|_| {
                Message::Request(BlockRequest {
                    piece: u32::MAX,
                    begin: 0,
                    len: 1,
                })
            })
        })
        .closed(),
        Kind::new("cancel without a request", |_| filled(|n| Message::Cancel(block(n)))).by_a_seed(interested),
        Kind::new("reject without a request", |_| {
            filled(|n| Message::RejectRequest(block_of(n as u32 % PIECES)))
        }),
        Kind::new("port", |_| filled(|n| Message::Port(n as u16))).closed(),
        Kind::new("suggest piece", |round| {
            filled(move |n| Message::SuggestPiece((round * CHUNK + n) as u32 % PIECES))
        }),
        Kind::new("allowed fast", |round| {
            filled(move |n| Message::AllowedFast((round * CHUNK + n) as u32 % PIECES))
        }),
        Kind::new("unsolicited piece", |_| blocks()).closed(),
        Kind::new("extension handshake, small", |_| filled(|_| handshake_message())).closed(),
        Kind::new("extension handshake, large", |_| messages(&[large_handshake()])),
        Kind::new("unknown extension", |_| {
            filled(|_| Message::Extended {
                id: 99,
                payload: Bytes::new(),
            })
        }),
        Kind::new("extension, malformed", |_| {
            filled(|_| Message::Extended {
                id: 0,
                payload: Bytes::from_static(b"l"),
            })
        })
        .closed(),
        Kind::extended("ut_metadata request", |ids, _| {
            filled(|n| metadata(ids, &MetadataMessage::Request { piece: n as u32 % 100 }))
        })
        .bounded_by("bounded by metadata.serve_bytes_per_s: each answer is 16 KiB")
        .closed(),
        Kind::extended("ut_metadata request for a missing piece", |ids, _| {
            filled(|n| {
                metadata(
                    ids,
                    &MetadataMessage::Request {
                        piece: u32::MAX - n as u32,
                    },
                )
            })
        })
        .closed(),
        Kind::extended("ut_metadata data without a request", |ids, _| {
            let data = MetadataMessage::Data {
                piece: 0,
                total_size: 1 << 20,
                data: Bytes::new(),
            };
            filled(|_| metadata(ids, &data))
        })
        .closed(),
        Kind::extended("ut_metadata reject without a request", |ids, _| {
            filled(|n| metadata(ids, &MetadataMessage::Reject { piece: n as u32 }))
        })
        .closed(),
        Kind::extended("ut_pex, as often as allowed", |ids, round| match round {
            0 => messages(&[(); PEX_BURST].map(|()| pex(ids, 180))),
            _ => Bytes::new(),
        }),
        Kind::extended("ut_pex, too often", |ids, _| filled(|_| pex(ids, 1))).closed(),
        Kind::new("unknown message", |_| Bytes::from(b"\0\0\0\x01\xc8".repeat(CHUNK / 5))),
        Kind::new("length of 4 GiB", |_| Bytes::from_static(&[0xff; 64]))
            .bounded_by(ONCE)
            .closed(),
        Kind::new("noise", |round| {
            Bytes::from(torrents::noise(CHUNK + round).split_off(round))
        })
        .bounded_by(ONCE)
        .closed(),
    ]
}

/// Measures the selected rows.
///
/// # Panics
/// If the connections of a row have another fate than expected, so that its bytes may not have been decoded.
pub fn measure(is_wanted: IsWanted<'_>, rows: &mut Vec<Row>) {
    let mut wrong = Vec::new();
    for kind in kinds().iter().filter(|kind| is_wanted("wire", kind.name)) {
        let (bytes, cost, fate) = run(kind);
        if fate != kind.fate {
            wrong.push(format!("{}: {fate:?}, not {:?}", kind.name, kind.fate));
        }
        rows.push(Row::new("wire", kind.name, bytes, cost).exempt(kind.exempt));
    }
    assert!(wrong.is_empty(), "fates of connections: {wrong:#?}");
    if is_wanted("wire", DATAGRAMS) {
        let (bytes, cost) = datagrams();
        rows.push(Row::new("wire", DATAGRAMS, bytes, cost));
    }
}

/// Runs one kind. Returns the bytes sent, their cost, and the fate of the connections.
fn run(kind: &Kind) -> (usize, Cost, Fate) {
    let (mut sim, node, ticks, info_hash) = engine(kind.engine);
    let mut strangers = Strangers::new(&mut sim, CONNECTIONS, info_hash);
    let opening = messages(&(kind.opening)());
    strangers.connect(&opening);
    engines::pass(&mut sim, ROUND);
    let extensions = strangers.extensions();
    let chunk = |round| match kind.chunk {
        Chunk::Plain(chunk) => chunk(round),
        Chunk::Extended(chunk) => chunk(&extensions, round),
    };
    let chunks: Vec<Bytes> = (0..ROUNDS).map(chunk).collect();
    let received = strangers.received;
    let (sent, held, begun) = (strangers.sent, reset_peak(), ticks.total());
    for chunk in chunks {
        strangers.connect(&opening);
        strangers.send_to_all(&chunk);
        engines::pass(&mut sim, ROUND);
    }
    drain(&mut sim, node);
    let time = ticks.total().saturating_sub(begun);
    let memory = peak().saturating_sub(held);
    let bytes = strangers.sent - sent;
    let fate = strangers.fate(sent, received);
    if fate != Fate::Closed {
        // The engine closes a connection at this length only once it has decoded all messages before it.
        strangers.send_to_all(&Bytes::from_static(&[0xff; 64]));
        engines::pass(&mut sim, 4 * ROUND);
        assert!(strangers.are_closed(), "{}: not decoded to the end", kind.name);
    }
    (bytes, Cost { time, memory }, fate)
}

/// Runs until the engine has decoded all that it has received.
///
/// # Panics
/// If it has not after many rounds.
fn drain(sim: &mut Simulation, node: NodeId) {
    engines::pass(sim, 4 * ROUND);
    for _ in 0..1000 {
        let world = sim.node(node).world_mut();
        let mut wires = world.query::<&Wire>();
        if wires.iter(world).all(|wire| wire.codec.buffered_len() == 0) {
            return;
        }
        engines::pass(sim, ROUND);
    }
    panic!("the engine does not decode what it has received");
}

const DATAGRAMS: &str = "datagrams that match no transaction";

fn datagrams() -> (usize, Cost) {
    let (mut sim, _, ticks, info_hash) = engine(Engine::Downloads);
    let mut strangers = Strangers::new(&mut sim, 0, info_hash);
    let packet = Bytes::from(torrents::noise(CHUNK));
    let (held, begun) = (reset_peak(), ticks.total());
    for round in 0..ROUNDS {
        for number in 0..2_000 {
            // An announce's answer, by its first bytes.
            let answer = [&[0, 0, 0, 1], &packet[round + number..round + number + 16]].concat();
            strangers.send_datagram(answer.into());
        }
        engines::pass(&mut sim, ROUND);
    }
    let time = ticks.total().saturating_sub(begun);
    let memory = peak().saturating_sub(held);
    (strangers.sent, Cost { time, memory })
}

/// Creates an engine that downloads or seeds one torrent.
fn engine(engine: Engine) -> (Simulation, NodeId, Arc<TickTime>, ecs_torrent::InfoHash) {
    let mut sim = engines::simulation();
    let ticks = Arc::new(TickTime::default());
    let node = sim.add(NewNode::new(engines::ip(1), settings(), TorrentPlugins).probe(ticks.clone()));
    let (metainfo, state) = match engine {
        Engine::Downloads => {
            let data = vec![0; PIECES as usize * 16];
            (torrents::of_data("data", &data, 16, None), Lifecycle::Downloading)
        }
        Engine::Seeds => (seeded(&mut sim, node), Lifecycle::Seeding),
    };
    engines::add(&mut sim, node, &metainfo, "data", vec![]);
    engines::pass(&mut sim, Duration::from_secs(60));
    assert_eq!(engines::count_in(&mut sim, node, &state), 1);
    (sim, node, ticks, metainfo.hashes.primary())
}

fn seeded(sim: &mut Simulation, node: NodeId) -> Arc<Metainfo> {
    let data = torrents::noise(SEED_BYTES);
    let metainfo = torrents::of_data("data", &data, SEED_PIECE, None);
    sim.put(node, "data", &Content::new(metainfo.clone(), data.into()));
    metainfo
}

/// Settings that admit all connections of the bench's host.
fn settings() -> Settings {
    Settings {
        peers: PeerSettings {
            max_inbound_per_ip: 2 * CONNECTIONS,
            max_unidentified: 2 * CONNECTIONS,
            ..PeerSettings::default()
        },
        ..Settings::default()
    }
}

fn messages(messages: &[Message]) -> Bytes {
    let mut bytes = BytesMut::new();
    messages.iter().for_each(|message| message.write(&mut bytes));
    bytes.freeze()
}

/// Fills a chunk with messages, each created from its number.
fn filled(message: impl Fn(usize) -> Message) -> Bytes {
    let mut bytes = BytesMut::new();
    (0..)
        .take_while(|&number| {
            message(number).write(&mut bytes);
            bytes.len() < CHUNK
        })
        .for_each(drop);
    bytes.freeze()
}

/// A block of the seeded torrent.
fn block(number: usize) -> BlockRequest {
    let blocks = SEED_BYTES as u32 / BLOCK_SIZE;
    let number = number as u32 % blocks;
    let each = SEED_PIECE / BLOCK_SIZE;
    BlockRequest {
        piece: number / each,
        begin: number % each * BLOCK_SIZE,
        len: BLOCK_SIZE,
    }
}

/// The only block of a piece of the downloaded torrent.
fn block_of(piece: u32) -> BlockRequest {
    BlockRequest {
        piece,
        begin: 0,
        len: 16,
    }
}

fn blocks() -> Bytes {
    let mut bytes = BytesMut::new();
    let mut piece = 0;
    while bytes.len() < CHUNK {
        write_block_header(&mut bytes, block_of(piece));
        bytes.extend_from_slice(&[1; 16]);
        piece += 1;
    }
    bytes.freeze()
}

fn bitfield(byte: u8) -> Bytes {
    vec![byte; PIECES as usize / 8].into()
}

/// A message of one of the engine's extensions.
fn extension(ids: &Extensions, name: &str, payload: Bytes) -> Message {
    let id = ids[name];
    Message::Extended { id, payload }
}

fn dont_have(ids: &Extensions, piece: u32) -> Message {
    extension(ids, DONT_HAVE, Bytes::copy_from_slice(&piece.to_be_bytes()))
}

fn metadata(ids: &Extensions, message: &MetadataMessage) -> Message {
    extension(ids, METADATA, message.write())
}

/// Number of messages of peer exchange that a peer may send at once.
const PEX_BURST: usize = 6;

/// A message that names `count` different peers of as many networks, and drops as many.
fn pex(ids: &Extensions, count: u8) -> Message {
    let address = |first: u8, number: u8| SocketAddr::from(([first, number, 1, 1], 6881));
    let added = (0..count).map(|number| PexPeer {
        address: address(70, number),
        flags: PexFlags::SEED,
    });
    let message = PexMessage {
        added: added.collect(),
        dropped: (0..count).map(|number| address(71, number)).collect(),
    };
    extension(ids, PEX, message.write())
}

/// An extension handshake that names all extensions of the bench.
fn handshake_message() -> Message {
    let names = [DONT_HAVE, METADATA, PEX];
    let handshake = ExtensionHandshake {
        extensions: names.iter().map(|name| (*name).to_owned()).zip(7..).collect(),
        ..ExtensionHandshake::default()
    };
    Message::Extended {
        id: 0,
        payload: handshake.write().into(),
    }
}

fn large_handshake() -> Message {
    let names = (0..CHUNK / 12)
        .map(|number| format!("7:{number:07}i1e"))
        .collect::<String>();
    Message::Extended {
        id: 0,
        payload: format!("d1:md{names}ee").into(),
    }
}
