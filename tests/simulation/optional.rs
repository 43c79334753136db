//! Optional features: engines without one of them move a torrent and stop.

use std::time::Duration;

use ecs_torrent::bevy_app::{PluginGroup, PluginGroupBuilder};
use ecs_torrent::components::commands::{CommandQueue, Reply, StopTorrent};
use ecs_torrent::components::settings::Settings;
use ecs_torrent::components::torrent::TorrentIndex;
use ecs_torrent::engine::sim::Simulation;
use ecs_torrent::protocol::time::Timestamp;
use ecs_torrent::systems::{
    TorrentPlugins, changes, dates, dht, extensions, following, hints, incomplete, labels, lsd, metadata, pex, queue,
    readers, seeding, smart_ban, stats, suggesting, trackers,
};

use crate::{add, ip, torrent};

/// The features of an engine, without some.
#[derive(Clone, Copy)]
pub struct Without(pub fn(PluginGroupBuilder) -> PluginGroupBuilder);

impl PluginGroup for Without {
    fn build(self) -> PluginGroupBuilder {
        (self.0)(TorrentPlugins.build())
    }
}

fn moves(name: &str, without: Without) {
    let content = torrent(1_000_001, 65536);
    let mut sim = Simulation::new(1, Duration::from_millis(10));
    let seeder = sim.add_node(ip(1), Settings::default(), without);
    let leecher = sim.add_node(ip(2), Settings::default(), without);
    sim.put(seeder, "downloads", &content);
    add(&mut sim, seeder, &content, vec![]);
    add(&mut sim, leecher, &content, vec![(ip(1), 6881).into()]);
    let limit = Timestamp::ZERO + Duration::from_secs(60);
    let is_complete = sim.run_until(limit, |sim| sim.has(leecher, "downloads", &content));
    assert!(is_complete, "without {name}");
    let (torrent, reply) = (content.info_hash(), Reply::ignored());
    let world = sim.node(leecher).world_mut();
    let mut queue = world.resource_mut::<CommandQueue<StopTorrent>>();
    queue.0.push_back(StopTorrent { torrent, reply });
    sim.nudge(leecher);
    let is_gone = sim.run_until(limit + Duration::from_secs(10), |sim| {
        sim.node(leecher).world().resource::<TorrentIndex>().is_empty()
    });
    assert!(is_gone, "without {name}, a torrent stops");
}

#[test]
fn an_engine_works_without_each_optional_feature() {
    moves(
        "smart ban",
        Without(PluginGroupBuilder::disable::<smart_ban::SmartBanPlugin>),
    );
    moves(
        "suggestions",
        Without(PluginGroupBuilder::disable::<suggesting::SuggestingPlugin>),
    );
    moves("peer exchange", Without(PluginGroupBuilder::disable::<pex::PexPlugin>));
    let without_dht = |all: PluginGroupBuilder| all.disable::<dht::DhtPlugin>().disable::<following::FollowingPlugin>();
    moves("the distributed hash table", Without(without_dht));
    moves(
        "the log of changes",
        Without(PluginGroupBuilder::disable::<changes::ChangesPlugin>),
    );
    moves(
        "seeding limits",
        Without(PluginGroupBuilder::disable::<seeding::SeedingPlugin>),
    );
    moves("the queue", Without(PluginGroupBuilder::disable::<queue::QueuePlugin>));
    moves(
        "the folder for incomplete torrents",
        Without(PluginGroupBuilder::disable::<incomplete::IncompletePlugin>),
    );
    moves("labels", Without(PluginGroupBuilder::disable::<labels::LabelsPlugin>));
    moves("dates", Without(PluginGroupBuilder::disable::<dates::DatesPlugin>));
    moves(
        "followed links",
        Without(PluginGroupBuilder::disable::<following::FollowingPlugin>),
    );
    moves(
        "local discovery",
        Without(PluginGroupBuilder::disable::<lsd::LsdPlugin>),
    );
    moves(
        "scrapes",
        Without(PluginGroupBuilder::disable::<trackers::ScrapePlugin>),
    );
    moves(
        "edits of trackers",
        Without(PluginGroupBuilder::disable::<trackers::TrackerControlPlugin>),
    );
    let without_trackers = |all: PluginGroupBuilder| {
        all.disable::<trackers::TrackersPlugin>()
            .disable::<trackers::ScrapePlugin>()
            .disable::<trackers::TrackerControlPlugin>()
    };
    moves("trackers", Without(without_trackers));
    moves(
        "extensions",
        Without(PluginGroupBuilder::disable::<extensions::ExtensionsPlugin>),
    );
    moves(
        "metadata exchange",
        Without(PluginGroupBuilder::disable::<metadata::MetadataPlugin>),
    );
    moves(
        "hints of magnet links",
        Without(PluginGroupBuilder::disable::<hints::HintsPlugin>),
    );
    moves(
        "readers",
        Without(PluginGroupBuilder::disable::<readers::ReadersPlugin>),
    );
    moves("stats", Without(PluginGroupBuilder::disable::<stats::StatsPlugin>));
}
