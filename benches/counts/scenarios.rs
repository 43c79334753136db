//! The counted scenarios. Every run is identical: one thread, one seed, a virtual clock. Scenarios over sockets differ
//! by the number of times that a task looks for data: by less than one percent.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use ecs_torrent::bevy_ecs::entity::Entity;
use ecs_torrent::components::peer::{FlushQueue, Outbox};
use ecs_torrent::protocol::bencode::{Document, Limits};
use ecs_torrent::protocol::geometry::BLOCK_SIZE;

use crate::engines::Idle;
use crate::meter::Meter;
use crate::pair::Pair;
use crate::sockets::Loopback;
use crate::streams::{self, BLOCK_COUNT, FRAME_COUNT, Stream};
use crate::torrents;

/// Work whose costs are counted.
pub struct Scenario {
    pub name: &'static str,
    /// Name of the unit that counts are divided by.
    pub unit: &'static str,
    /// Does the work. Returns the number of units done while the meter was counting.
    pub run: fn(&Arc<Meter>) -> u64,
}

pub const SCENARIOS: [Scenario; 9] = [
    Scenario {
        name: "leech",
        unit: "block",
        run: |meter| transfer(Arc::default(), meter.clone(), meter),
    },
    Scenario {
        name: "seed",
        unit: "block",
        run: |meter| transfer(meter.clone(), Arc::default(), meter),
    },
    Scenario {
        name: "idle",
        unit: "tick",
        run: idle,
    },
    Scenario {
        name: "tokenise",
        unit: "document",
        run: tokenise,
    },
    Scenario {
        name: "metainfo",
        unit: "document",
        run: metainfo,
    },
    Scenario {
        name: "decode",
        unit: "frame",
        run: decode,
    },
    Scenario {
        name: "encode",
        unit: "frame",
        run: encode,
    },
    Scenario {
        name: "tcp-receive",
        unit: "block",
        run: receive,
    },
    Scenario {
        name: "tcp-send",
        unit: "block",
        run: send,
    },
];

/// Returns the scenario of this name.
pub fn named(name: &str) -> &'static Scenario {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
    scenario.unwrap_or_else(|| panic!("no scenario {name}"))
}

/// Size of the transferred torrent in bytes. Only the middle half is counted, when queues are full and tables have
/// reached their final size.
const TRANSFER_BYTES: usize = 64 << 20;

fn transfer(seeder: Arc<Meter>, leecher: Arc<Meter>, meter: &Meter) -> u64 {
    let mut pair = Pair::new(TRANSFER_BYTES, seeder, leecher);
    let from = pair.run_to(25);
    meter.start();
    let to = pair.run_to(75);
    meter.stop();
    (to - from) / u64::from(BLOCK_SIZE)
}

/// Number of idle torrents.
const IDLE_TORRENTS: usize = 10_000;

fn idle(meter: &Arc<Meter>) -> u64 {
    let mut idle = Idle::new(IDLE_TORRENTS, meter.clone());
    repeat(meter, 100, || idle.tick())
}

fn tokenise(meter: &Arc<Meter>) -> u64 {
    let bytes = document();
    repeat(meter, 10, || {
        let document = Document::parse(black_box(&bytes), &Limits::default()).unwrap();
        assert!(document.root().get(b"info").is_some());
    })
}

fn metainfo(meter: &Arc<Meter>) -> u64 {
    let bytes = document();
    repeat(meter, 2, || {
        let metainfo = torrents::parse(black_box(&bytes));
        assert_eq!(metainfo.info.files.files().len(), FILE_COUNT);
    })
}

/// Number of files in the parsed metainfo.
const FILE_COUNT: usize = 10_000;

/// Metainfo with many files and few pieces, so that hashing has little effect on the counts.
fn document() -> Bytes {
    torrents::described(1_000, FILE_COUNT)
}

fn decode(meter: &Arc<Meter>) -> u64 {
    let (stream, mut codec) = (Stream::new(), Stream::codec());
    let decode = || assert_eq!(stream.decode(&mut codec), [BLOCK_COUNT; 3]);
    repeat(meter, 100, decode) * FRAME_COUNT
}

fn encode(meter: &Arc<Meter>) -> u64 {
    let stream = Stream::new();
    let (peer, mut flush, mut outbox) = (Entity::PLACEHOLDER, FlushQueue::default(), Outbox::default());
    let encode = || {
        let len = streams::encode(&stream, peer, &mut flush, &mut outbox);
        assert_eq!(len, stream.len());
    };
    repeat(meter, 100, encode) * FRAME_COUNT
}

/// A plain TCP stream: neither the carrier below the Net port nor an absent filter may cost anything.
fn receive(meter: &Arc<Meter>) -> u64 {
    let mut loopback = Loopback::new();
    repeat(meter, 1000, || loopback.receive())
}

fn send(meter: &Arc<Meter>) -> u64 {
    let (mut loopback, mut buffer) = (Loopback::new(), vec![0; BLOCK_SIZE as usize]);
    repeat(meter, 1000, || loopback.send(&mut buffer))
}

/// Counts `count` runs of `work` and returns `count`. An uncounted run precedes them, so that buffers have their final
/// size.
fn repeat(meter: &Meter, count: u64, mut work: impl FnMut()) -> u64 {
    work();
    meter.counted(&mut || (0..count).for_each(|_| work()));
    count
}
