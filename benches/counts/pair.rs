//! A download from one engine to another.

use std::sync::Arc;
use std::time::Duration;

use ecs_torrent::components::settings::{NetSettings, RequestSettings, Settings, UploadSettings};
use ecs_torrent::components::torrent::{Counters, Lifecycle};
use ecs_torrent::engine::sim::{Content, NewNode, NodeId, Probe, Simulation};
use ecs_torrent::protocol::geometry::BLOCK_SIZE;
use ecs_torrent::systems::TorrentPlugins;

use crate::{engines, torrents};

/// A seeder and a leecher that downloads from it.
pub struct Pair {
    sim: Simulation,
    leecher: NodeId,
    total: u64,
}

impl Pair {
    /// Creates both engines with a torrent of `total` bytes, before any transfer.
    pub fn new(total: usize, seeder: Arc<dyn Probe>, leecher: Arc<dyn Probe>) -> Self {
        let data = torrents::noise(total);
        let metainfo = torrents::of_data("data", &data, 256 << 10, None);
        let settings = settings();
        let mut sim = engines::simulation();
        let node = |last| NewNode::new(engines::ip(last), settings.clone(), TorrentPlugins);
        let seeder = sim.add(node(1).probe(seeder));
        let leecher = sim.add(node(2).probe(leecher));
        sim.put(seeder, "data", &Content::new(metainfo.clone(), data.into()));
        engines::add(&mut sim, seeder, &metainfo, "data", vec![]);
        engines::pass(&mut sim, Duration::from_secs(60));
        assert_eq!(engines::count_in(&mut sim, seeder, &Lifecycle::Seeding), 1);
        engines::add(&mut sim, leecher, &metainfo, "data", vec![engines::listening(1)]);
        let total = total as u64;
        Self { sim, leecher, total }
    }

    /// Runs until `percent` of the torrent is downloaded. Returns the number of downloaded bytes.
    pub fn run_to(&mut self, percent: u64) -> u64 {
        let (leecher, wanted) = (self.leecher, self.total * percent / 100);
        let limit = self.sim.now() + Duration::from_secs(600);
        let mut downloaded = 0;
        let is_there = |sim: &mut Simulation| {
            let world = sim.node(leecher).world_mut();
            downloaded = world
                .query::<&Counters>()
                .iter(world)
                .map(|counters| counters.downloaded)
                .sum();
            downloaded >= wanted
        };
        assert!(self.sim.run_until(limit, is_there), "the download stands still");
        downloaded
    }
}

/// Settings that allow many blocks per tick, so that the cost of blocks outweighs the cost of ticks.
fn settings() -> Settings {
    const DEPTH: u32 = 256;
    Settings {
        net: NetSettings {
            receive_window_bytes: 4 * DEPTH * BLOCK_SIZE,
            ..NetSettings::default()
        },
        uploads: UploadSettings {
            peer_memory_bytes: u64::from(2 * DEPTH * BLOCK_SIZE),
            // One peer gets a quarter of the remaining memory.
            memory_bytes: u64::from(10 * DEPTH * BLOCK_SIZE),
            ..UploadSettings::default()
        },
        requests: RequestSettings {
            max_depth: DEPTH,
            ..RequestSettings::default()
        },
        ..Settings::default()
    }
}
