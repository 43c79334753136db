//! Optional features: engines without one of them move a torrent and stop.

use std::collections::BTreeSet;
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

/// The optional features: how to leave out each, and how its plugin is named in the list of the features. A feature
/// that another one needs is left out together with it.
const OPTIONAL: &[(&str, fn(PluginGroupBuilder) -> PluginGroupBuilder)] = &[
    ("changes::ChangesPlugin", |all| all.disable::<changes::ChangesPlugin>()),
    ("dates::DatesPlugin", |all| all.disable::<dates::DatesPlugin>()),
    ("dht::DhtPlugin", |all| {
        all.disable::<dht::DhtPlugin>().disable::<following::FollowingPlugin>()
    }),
    ("extensions::ExtensionsPlugin", |all| {
        all.disable::<extensions::ExtensionsPlugin>()
    }),
    ("following::FollowingPlugin", |all| {
        all.disable::<following::FollowingPlugin>()
    }),
    ("hints::HintsPlugin", |all| all.disable::<hints::HintsPlugin>()),
    ("incomplete::IncompletePlugin", |all| {
        all.disable::<incomplete::IncompletePlugin>()
    }),
    ("labels::LabelsPlugin", |all| all.disable::<labels::LabelsPlugin>()),
    ("lsd::LsdPlugin", |all| all.disable::<lsd::LsdPlugin>()),
    ("metadata::MetadataPlugin", |all| {
        all.disable::<metadata::MetadataPlugin>()
    }),
    ("pex::PexPlugin", |all| all.disable::<pex::PexPlugin>()),
    ("queue::QueuePlugin", |all| all.disable::<queue::QueuePlugin>()),
    ("readers::ReadersPlugin", |all| all.disable::<readers::ReadersPlugin>()),
    ("seeding::SeedingPlugin", |all| all.disable::<seeding::SeedingPlugin>()),
    ("smart_ban::SmartBanPlugin", |all| {
        all.disable::<smart_ban::SmartBanPlugin>()
    }),
    ("stats::StatsPlugin", |all| all.disable::<stats::StatsPlugin>()),
    ("suggesting::SuggestingPlugin", |all| {
        all.disable::<suggesting::SuggestingPlugin>()
    }),
    ("trackers::ScrapePlugin", |all| all.disable::<trackers::ScrapePlugin>()),
    ("trackers::TrackerControlPlugin", |all| {
        all.disable::<trackers::TrackerControlPlugin>()
    }),
    ("trackers::TrackersPlugin", |all| {
        all.disable::<trackers::TrackersPlugin>()
            .disable::<trackers::ScrapePlugin>()
            .disable::<trackers::TrackerControlPlugin>()
    }),
];

/// The features that an engine needs.
const REQUIRED: &[&str] = &[
    "OrderPlugin",
    "accepting::AcceptingPlugin",
    "assembly::AssemblyPlugin",
    "availability::AvailabilityPlugin",
    "checking::CheckingPlugin",
    "choking::ChokingPlugin",
    "counters::CountersPlugin",
    "dialing::DialingPlugin",
    "disconnecting::DisconnectingPlugin",
    "files::FilesPlugin",
    "flushing::FlushingPlugin",
    "frames::FramesPlugin",
    "greeting::GreetingPlugin",
    "handshaking::HandshakingPlugin",
    "having::HavingPlugin",
    "lifecycle::LifecyclePlugin",
    "limits::LimitsPlugin",
    "ownership::OwnershipPlugin",
    "picking::PickingPlugin",
    "reaping::ReapingPlugin",
    "sessions::SessionsPlugin",
    "settings::SettingsPlugin",
    "storage::StoragePlugin",
    "streams::StreamsPlugin",
    "timeouts::TimeoutsPlugin",
    "unverified::UnverifiedPlugin",
    "uploading::UploadingPlugin",
    "verification::VerificationPlugin",
];

/// A new feature is either left out by the next test or named as required.
#[test]
fn each_feature_is_optional_or_required() {
    let source = include_str!("../../systems/src/lib.rs");
    let added = source.split(".add(").skip(1).filter_map(|rest| rest.split_once(')'));
    let added: BTreeSet<&str> = added.map(|(name, _)| name).collect();
    let optional = OPTIONAL.iter().map(|(name, _)| *name);
    let named: Vec<&str> = optional.chain(REQUIRED.iter().copied()).collect();
    assert_eq!(added, named.iter().copied().collect());
    assert_eq!(added.len(), named.len(), "a feature is named twice");
    let documented = source.split("/// Some features are optional").nth(1).unwrap();
    let (documented, _) = documented.split_once("pub struct TorrentPlugins").unwrap();
    for (name, _) in OPTIONAL {
        let (module, _) = name.split_once("::").unwrap();
        assert!(
            documented.contains(&format!("[`{module}`]")),
            "{module} is not in the documentation"
        );
    }
}

#[test]
fn an_engine_works_without_each_optional_feature() {
    for &(name, without) in OPTIONAL {
        moves(name, Without(without));
    }
}
