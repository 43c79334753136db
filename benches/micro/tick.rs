//! Whole ticks of an engine: what it costs to have torrents and peers, whether they want something or not.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use criterion::Criterion;
use ecs_torrent::components::settings::{PeerSettings, Settings, UploadSettings};
use ecs_torrent::components::torrent::{Lifecycle, PeerOf};
use ecs_torrent::engine::sim::{Content, NewNode, NodeId, Probe, Simulation};
use ecs_torrent::protocol::geometry::{BLOCK_SIZE, BlockRequest};
use ecs_torrent::protocol::wire::Message;
use ecs_torrent::systems::TorrentPlugins;

use crate::engines::{self, Idle};
use crate::peers::Peers;
use crate::torrents;

const PEER_COUNT: usize = 2000;

/// Pieces of the torrent that peers tell about.
const PIECE_COUNT: usize = 100_000;

pub fn bench(criterion: &mut Criterion) {
    for count in [1, 1_000, 100_000] {
        let mut idle = Idle::new(count, Arc::new(Stopwatch::default()));
        idle.tick();
        criterion.bench_function(&format!("tick/{count} idle torrents"), |bencher| {
            bencher.iter(|| idle.tick());
        });
    }
    bench_seed(criterion);
    bench_leech(criterion);
}

/// A seed whose peers ask for nothing, then all at once.
fn bench_seed(criterion: &mut Criterion) {
    let mut crowd = Crowd::of_leechers();
    criterion.bench_function("tick/2000 idle peers", |bencher| bencher.iter(|| crowd.idle_tick()));
    let mut now = crowd.sim.now();
    criterion.bench_function("tick/2000 idle peers, all looked at", |bencher| {
        bencher.iter(|| {
            now += Duration::from_secs(1);
            crowd.sim.node(crowd.node).tick(now);
        });
    });
    // Another one: the clock of the first is years ahead by now.
    let mut crowd = Crowd::of_leechers();
    let mut bench = |name, cost: fn(Vec<Duration>) -> Duration| {
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| cost(crowd.request_round())).sum());
        });
    };
    bench("tick/2000 peers request", |ticks| ticks[0]);
    bench("tick/2000 peers request, until all are served", |ticks| {
        ticks.iter().sum()
    });
}

/// A leecher whose peers all tell of a new piece.
fn bench_leech(criterion: &mut Criterion) {
    let mut crowd = Crowd::of_seeders();
    let mut piece = 0;
    criterion.bench_function("tick/2000 peers tell of a piece", |bencher| {
        bencher.iter_custom(|rounds| {
            let round = |_| {
                piece = (piece + 1) % PIECE_COUNT as u32;
                crowd.have_round(piece)
            };
            (0..rounds).map(round).sum()
        });
    });
}

/// An engine with many peers, which are played from outside.
struct Crowd {
    sim: Simulation,
    node: NodeId,
    watch: Arc<Stopwatch>,
    peers: Peers,
    block_count: u32,
}

impl Crowd {
    /// The engine seeds, and every peer is unchoked.
    fn of_leechers() -> Self {
        let data = torrents::noise(16 << 20);
        let mut crowd = Self::new(&data, true);
        crowd.peers.say(|_| Message::HaveNone);
        crowd.peers.say(|_| Message::Interested);
        crowd.settle();
        crowd
    }

    /// The engine has nothing, and peers have nothing either so far.
    fn of_seeders() -> Self {
        let mut crowd = Self::new(&vec![0; PIECE_COUNT * 16], false);
        crowd.peers.say(|_| Message::HaveNone);
        crowd.settle();
        crowd
    }

    fn new(data: &[u8], has_data: bool) -> Self {
        let (mut sim, watch) = (engines::simulation(), Arc::new(Stopwatch::default()));
        let new = NewNode::new(engines::ip(1), settings(), TorrentPlugins);
        let node = sim.add(new.probe(watch.clone()));
        let metainfo = match has_data {
            true => torrents::of_data("data", data, 256 << 10, None),
            false => torrents::of_data("data", data, 16, None),
        };
        if has_data {
            let bytes = data.to_vec().into();
            sim.put(node, "data", &Content::new(metainfo.clone(), bytes));
        }
        engines::add(&mut sim, node, &metainfo, "data", vec![]);
        engines::pass(&mut sim, Duration::from_secs(60));
        let state = if has_data {
            Lifecycle::Seeding
        } else {
            Lifecycle::Downloading
        };
        assert_eq!(engines::count_in(&mut sim, node, &state), 1);
        let peers = Peers::connect(&mut sim, PEER_COUNT, engines::listening(1), metainfo.hashes.primary());
        Self {
            sim,
            node,
            watch,
            peers,
            block_count: data.len() as u32 / BLOCK_SIZE,
        }
    }

    /// Lets what has been said be heard, and what follows from it be over.
    fn settle(&mut self) {
        engines::pass(&mut self.sim, Duration::from_secs(1));
        self.peers.hear();
        let world = self.sim.node(self.node).world_mut();
        assert_eq!(world.query::<&PeerOf>().iter(world).count(), PEER_COUNT);
        self.idle_tick();
    }

    /// Runs a tick in which nothing is due.
    fn idle_tick(&mut self) {
        let now = self.sim.now();
        let next = self.sim.node(self.node).tick(now);
        assert!(next > now, "the tick had something to do");
    }

    /// Every peer asks for a block, and gets it; tells what the ticks took, from the one that hears the requests on.
    fn request_round(&mut self) -> Vec<Duration> {
        let count = self.block_count;
        self.peers.say(|number| {
            let block = number as u32 % count;
            Message::Request(BlockRequest {
                piece: block / 16,
                begin: block % 16 * BLOCK_SIZE,
                len: BLOCK_SIZE,
            })
        });
        self.watch_from_arrival();
        let (peers, mut served) = (&mut self.peers, 0);
        let limit = self.sim.now() + Duration::from_secs(10);
        let are_served = |_: &mut Simulation| {
            served += peers.count_blocks();
            served >= PEER_COUNT
        };
        assert!(self.sim.run_until(limit, are_served));
        assert_eq!(served, PEER_COUNT);
        self.watch.stop()
    }

    /// Lets time pass until what peers have just said is about to arrive, and watches ticks from then on.
    fn watch_from_arrival(&mut self) {
        engines::pass(&mut self.sim, engines::LATENCY - Duration::from_micros(1));
        self.watch.start();
    }

    /// Every peer tells that it has `piece`; tells what the tick took that hears it.
    fn have_round(&mut self, piece: u32) -> Duration {
        self.peers.say(|_| Message::Have(piece));
        self.watch_from_arrival();
        engines::pass(&mut self.sim, engines::LATENCY);
        let ticks = self.watch.stop();
        self.peers.hear();
        ticks[0]
    }
}

/// Everybody is let in and served.
fn settings() -> Settings {
    let many = 2 * PEER_COUNT;
    Settings {
        peers: PeerSettings {
            max_connections: many,
            max_per_torrent: many,
            max_inbound_per_ip: many,
            max_unidentified: many,
            idle_timeout_s: u64::from(u32::MAX),
            keep_alive_s: u64::from(u32::MAX),
            ..PeerSettings::default()
        },
        uploads: UploadSettings {
            slots: many,
            memory_bytes: 1 << 30,
            choke_interval_s: 1_000_000,
            ..UploadSettings::default()
        },
        ..Settings::default()
    }
}

/// Times ticks, backends left out.
#[derive(Default)]
struct Stopwatch(Mutex<Times>);

#[derive(Default)]
struct Times {
    is_running: bool,
    ticks: Vec<Duration>,
    in_backends: Duration,
}

impl Stopwatch {
    fn start(&self) {
        self.times().is_running = true;
    }

    /// What each tick took since the start.
    fn stop(&self) -> Vec<Duration> {
        let mut times = self.times();
        times.is_running = false;
        mem::take(&mut times.ticks)
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap()
    }
}

impl Probe for Stopwatch {
    fn tick(&self, tick: &mut dyn FnMut()) {
        self.times().in_backends = Duration::ZERO;
        let begun = Instant::now();
        tick();
        let took = begun.elapsed();
        let mut times = self.times();
        if times.is_running {
            let took = took - times.in_backends;
            times.ticks.push(took);
        }
    }

    fn backend(&self, call: &mut dyn FnMut()) {
        let begun = Instant::now();
        call();
        self.times().in_backends += begun.elapsed();
    }
}
