//! An engine with many connected peers.

use std::sync::Arc;
use std::time::Duration;

use ecs_torrent::components::peer::PeerState;
use ecs_torrent::components::settings::{PeerSettings, Settings, UploadSettings};
use ecs_torrent::components::torrent::{Lifecycle, PeerOf};
use ecs_torrent::engine::sim::{Content, NewNode, NodeId, Simulation};
use ecs_torrent::protocol::geometry::{BLOCK_SIZE, BlockRequest};
use ecs_torrent::protocol::time::Timestamp;
use ecs_torrent::protocol::wire::Message;
use ecs_torrent::systems::TorrentPlugins;

use crate::peers::Peers;
use crate::watch::Stopwatch;
use crate::{engines, torrents};

/// Number of pieces of the torrent that peers send `Have`s for.
pub const PIECE_COUNT: usize = 100_000;

/// An engine with many scripted peers.
pub struct ManyPeers {
    sim: Simulation,
    node: NodeId,
    watch: Arc<Stopwatch>,
    count: usize,
    peers: Peers,
    block_count: u32,
    /// Bytes that the engine has allocated per peer.
    bytes_per_peer: i64,
}

impl ManyPeers {
    /// Creates an engine that seeds and has unchoked every peer.
    pub fn of_leechers(count: usize, watch: Arc<Stopwatch>) -> Self {
        let data = torrents::noise(16 << 20);
        let mut many_peers = Self::new(count, watch, &data, true);
        many_peers.peers.say(|_| Message::HaveNone);
        many_peers.peers.say(|_| Message::Interested);
        many_peers.await_unchokes();
        many_peers.settle();
        many_peers
    }

    /// Runs until the engine has unchoked every peer: it rejects requests that come earlier.
    fn await_unchokes(&mut self) {
        let (node, count) = (self.node, self.count);
        let limit = self.sim.now() + Duration::from_secs(60);
        let are_unchoked = |sim: &mut Simulation| {
            let world = sim.node(node).world_mut();
            let mut states = world.query::<&PeerState>();
            states.iter(world).filter(|state| !state.am_choking).count() == count
        };
        assert!(self.sim.run_until(limit, are_unchoked), "a peer stays choked");
    }

    /// Creates an engine without pieces whose peers have no pieces yet either.
    pub fn of_seeders(count: usize, watch: Arc<Stopwatch>) -> Self {
        let mut many_peers = Self::new(count, watch, &vec![0; PIECE_COUNT * 16], false);
        many_peers.peers.say(|_| Message::HaveNone);
        many_peers.settle();
        many_peers
    }

    fn new(count: usize, watch: Arc<Stopwatch>, data: &[u8], has_data: bool) -> Self {
        let mut sim = engines::simulation();
        let new = NewNode::new(engines::ip(1), settings(count), TorrentPlugins);
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
        let before = watch.bytes();
        let peers = Peers::connect(&mut sim, count, engines::listening(1), metainfo.hashes.primary());
        Self {
            sim,
            node,
            watch,
            count,
            peers,
            block_count: data.len() as u32 / BLOCK_SIZE,
            bytes_per_peer: before,
        }
    }

    /// Runs until the engine has received and handled all sent messages.
    fn settle(&mut self) {
        engines::pass(&mut self.sim, Duration::from_secs(1));
        self.peers.receive();
        let world = self.sim.node(self.node).world_mut();
        assert_eq!(world.query::<&PeerOf>().iter(world).count(), self.count);
        self.idle_tick();
        self.bytes_per_peer = (self.watch.bytes() - self.bytes_per_peer) / self.count as i64;
    }

    /// Bytes that the engine had allocated per peer once all peers were settled.
    #[allow(dead_code, reason = "not every bench weighs")]
    pub fn bytes_per_peer(&self) -> i64 {
        self.bytes_per_peer
    }

    /// The simulated time.
    pub fn now(&self) -> Timestamp {
        self.sim.now()
    }

    /// Runs a tick of the engine at `now`.
    pub fn tick(&mut self, now: Timestamp) {
        self.sim.node(self.node).tick(now);
    }

    /// Runs a tick in which nothing is due.
    pub fn idle_tick(&mut self) {
        let now = self.sim.now();
        let next = self.sim.node(self.node).tick(now);
        assert!(next > now, "the tick had something to do");
    }

    /// Sends one request from each peer and runs until all are served. Returns the tick times, starting with the tick
    /// that receives the requests.
    pub fn request_round(&mut self) -> Vec<Duration> {
        let (count, wanted) = (self.block_count, self.count);
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
            served >= wanted
        };
        assert!(self.sim.run_until(limit, are_served));
        assert_eq!(served, wanted);
        self.watch.stop()
    }

    /// Runs until just before the peers' latest messages arrive, then starts the stopwatch.
    fn watch_from_arrival(&mut self) {
        engines::pass(&mut self.sim, engines::LATENCY - Duration::from_micros(1));
        self.watch.start();
    }

    /// Sends `Have(piece)` from each peer. Returns the time of the tick that receives the messages.
    pub fn have_round(&mut self, piece: u32) -> Duration {
        self.peers.say(|_| Message::Have(piece));
        self.watch_from_arrival();
        engines::pass(&mut self.sim, engines::LATENCY);
        let ticks = self.watch.stop();
        self.peers.receive();
        ticks[0]
    }
}

/// Settings that admit and serve `count` peers.
pub fn settings(count: usize) -> Settings {
    let many = 2 * count;
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
