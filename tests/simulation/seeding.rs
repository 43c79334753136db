//! Seeding limits: ratio, seeding time, time without a transfer; pause, removal, super-seeding.

use ecs_torrent::bevy_ecs::prelude::With;
use ecs_torrent::components::commands::{
    PauseOrStart, RemoveOptions, RemoveTorrent, ResumeAll, SetSeeding, StartTorrent,
};
use ecs_torrent::components::settings::{ChangeSettings, SeedingSettings, SettingsPatch};
use ecs_torrent::components::super_seeding::SuperSeedsOnly;
use ecs_torrent::engine::sim::Crash;
use ecs_torrent::sim::invariants::{InvariantsPlugin, Violations};
use ecs_torrent::{OwnLimit, SeedingAction, SeedingLimit, SeedingPatch, TorrentState};

use super::*;

const LEN: usize = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(600);

/// A seed with these seeding limits, and leechers that know only the seed.
struct Swarm {
    sim: Simulation,
    content: Content,
    seeder: NodeId,
    leechers: Vec<NodeId>,
}

impl Swarm {
    fn new(seeding: SeedingSettings) -> Self {
        let content = torrent(LEN, 64 << 10);
        let mut sim = Simulation::new(5, Duration::from_millis(10));
        let mut settings = Self::settings();
        settings.seeding = seeding;
        let seeder = sim.add_node(ip(1), settings, (TorrentPlugins, InvariantsPlugin));
        sim.put(seeder, "downloads", &content);
        add(&mut sim, seeder, &content, vec![]);
        let leechers = Vec::new();
        let mut swarm = Self {
            sim,
            content,
            seeder,
            leechers,
        };
        swarm.until("the seed", |swarm| swarm.state() == Some(TorrentState::Seeding));
        swarm
    }

    fn settings() -> Settings {
        let mut settings = Settings::default();
        (settings.dht.enabled, settings.lsd.enabled) = (false, false);
        settings
    }

    fn add_leecher(&mut self) -> NodeId {
        let number = 2 + self.leechers.len() as u8;
        let plugins = (TorrentPlugins, InvariantsPlugin);
        let leecher = self.sim.add_node(ip(number), Self::settings(), plugins);
        add(&mut self.sim, leecher, &self.content, vec![(ip(1), 6881).into()]);
        self.leechers.push(leecher);
        leecher
    }

    fn stats(&mut self) -> Option<TorrentStats> {
        stats(&mut self.sim, self.seeder, &self.content)
    }

    fn state(&mut self) -> Option<TorrentState> {
        self.stats().map(|stats| stats.state)
    }

    /// Returns the limit because of which the torrent is paused.
    fn held_by(&mut self) -> Option<SeedingLimit> {
        let stats = self.stats()?;
        stats.limit_reached.filter(|_| stats.state == TorrentState::Paused)
    }

    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let limit = self.sim.now() + PATIENCE;
        while !is_so(self) {
            assert!(self.sim.now() < limit, "{what}: {:?}", self.stats());
            self.sim.run_for(Duration::from_millis(100));
        }
        self.check();
    }

    fn run_for(&mut self, seconds: u64) {
        self.sim.run_for(Duration::from_secs(seconds));
        self.check();
    }

    fn check(&mut self) {
        for node in self.sim.nodes().collect::<Vec<_>>() {
            let found = self.sim.node(node).world_mut().resource_mut::<Violations>().take();
            assert!(found.is_empty(), "{node:?}: {found:?}");
        }
    }

    fn start(&mut self) {
        let torrent = self.content.info_hash();
        let started = send(&mut self.sim, self.seeder, |reply| {
            PauseOrStart::from(StartTorrent { torrent, reply })
        });
        self.until("the start", |_| started.try_recv().is_ok_and(|answer| answer.is_ok()));
        self.until("seeding", |swarm| swarm.state() == Some(TorrentState::Seeding));
    }

    fn set(&mut self, patch: SeedingPatch) {
        let torrent = self.content.info_hash();
        let set = |reply| SetSeeding { torrent, patch, reply };
        let changed = send(&mut self.sim, self.seeder, set);
        self.until("the change", |_| changed.try_recv().is_ok_and(|answer| answer.is_ok()));
    }

    /// Cuts the seed's power, starts it again, and restores its torrents.
    fn restart(&mut self) {
        self.sim.crash(self.seeder, Crash::Power);
        self.sim.restart(self.seeder);
        let include_stopped = false;
        let resumed = send(&mut self.sim, self.seeder, |reply| ResumeAll { include_stopped, reply });
        self.until("the restart", |_| resumed.try_recv().is_ok_and(|count| count == Ok(1)));
    }

    fn is_complete(&mut self, node: NodeId) -> bool {
        self.sim.has(node, "downloads", &self.content)
    }
}

fn ratio(percent: u64) -> SeedingSettings {
    SeedingSettings {
        ratio_percent: percent,
        ..SeedingSettings::default()
    }
}

fn own_ratio(percent: u64) -> SeedingPatch {
    SeedingPatch {
        ratio_percent: Some(OwnLimit::Value(percent)),
        ..SeedingPatch::default()
    }
}

/// A seed pauses when it has sent as much as its limit allows, over power failures too. When it is started again, it
/// runs until another limit is reached, or until the limit changes.
#[test]
fn a_seed_pauses_at_its_ratio_and_runs_again_when_it_is_started() {
    let mut swarm = Swarm::new(ratio(100));
    let first = swarm.add_leecher();
    swarm.until("the pause", |swarm| swarm.held_by() == Some(SeedingLimit::Ratio));
    assert!(swarm.is_complete(first));
    let uploaded = swarm.stats().unwrap().uploaded;
    assert!((LEN as u64..LEN as u64 + (256 << 10)).contains(&uploaded), "{uploaded}");
    swarm.restart();
    swarm.until("the same pause", |swarm| swarm.held_by() == Some(SeedingLimit::Ratio));

    swarm.start();
    assert_eq!(swarm.stats().unwrap().limit_reached, None);
    let second = swarm.add_leecher();
    swarm.until("a second copy", |swarm| swarm.is_complete(second));
    // Until the copy is saved.
    swarm.run_for(40);
    assert_eq!(swarm.state(), Some(TorrentState::Seeding), "the limit had its effect");
    swarm.restart();
    swarm.until("seeding", |swarm| swarm.state() == Some(TorrentState::Seeding));
    swarm.run_for(20);
    assert_eq!(swarm.state(), Some(TorrentState::Seeding), "also after a restart");

    swarm.set(own_ratio(10_000));
    swarm.run_for(5);
    assert_eq!(
        swarm.state(),
        Some(TorrentState::Seeding),
        "it has not reached the new one"
    );
    swarm.set(own_ratio(150));
    swarm.until("another pause", |swarm| swarm.held_by() == Some(SeedingLimit::Ratio));
    swarm.restart();
    swarm.until("the same pause", |swarm| swarm.held_by() == Some(SeedingLimit::Ratio));
    assert_eq!(swarm.stats().unwrap().seeding.ratio_percent, OwnLimit::Value(150));
}

/// The seeding time counts over restarts, and not while the torrent is paused. The time without a transfer begins with
/// each start.
#[test]
fn a_seed_pauses_after_its_time_and_when_nobody_needs_it() {
    let mut swarm = Swarm::new(SeedingSettings {
        time_s: 3000,
        idle_s: 1000,
        ..SeedingSettings::default()
    });
    swarm.run_for(900);
    swarm.add_leecher();
    swarm.run_for(900);
    assert_eq!(swarm.state(), Some(TorrentState::Seeding), "it had a transfer");
    swarm.until("the pause", |swarm| swarm.held_by() == Some(SeedingLimit::Idle));
    let seeded = swarm.stats().unwrap().seconds_seeding;
    assert!((1890..1910).contains(&seeded), "{seeded}");
    swarm.run_for(5000);
    assert_eq!(swarm.stats().unwrap().seconds_seeding, seeded, "it was paused");

    swarm.start();
    swarm.run_for(900);
    assert_eq!(swarm.state(), Some(TorrentState::Seeding));
    swarm.set(SeedingPatch {
        idle_s: Some(OwnLimit::Unlimited),
        ..SeedingPatch::default()
    });
    swarm.until("the end of its time", |swarm| {
        swarm.held_by() == Some(SeedingLimit::Time)
    });
    let seeded = swarm.stats().unwrap().seconds_seeding;
    assert!((2999..3005).contains(&seeded), "{seeded}");
    swarm.restart();
    assert_eq!(swarm.stats().unwrap().seconds_seeding, seeded);
    swarm.start();
    swarm.run_for(5000);
    assert_eq!(swarm.state(), Some(TorrentState::Seeding));
}

/// The limits of a downloader count from its completion, and its data stays when the torrent is removed.
#[test]
fn a_download_is_removed_without_its_data() {
    let mut swarm = Swarm::new(SeedingSettings::default());
    let leecher = swarm.add_leecher();
    let torrent = swarm.content.info_hash();
    let patch = SeedingPatch {
        time_s: Some(OwnLimit::Value(30)),
        action: Some(Some(SeedingAction::Remove)),
        ..SeedingPatch::default()
    };
    let changed = send(&mut swarm.sim, leecher, |reply| SetSeeding { torrent, patch, reply });
    swarm.until("the change", |_| changed.try_recv().is_ok_and(|answer| answer.is_ok()));
    swarm.until("the copy", |swarm| swarm.is_complete(leecher));
    let content = swarm.content.clone();
    swarm.run_for(15);
    assert!(stats(&mut swarm.sim, leecher, &content).is_some());
    swarm.until("the removal", |swarm| {
        stats(&mut swarm.sim, leecher, &content).is_none()
    });
    assert!(swarm.is_complete(leecher), "the data stays");
    swarm.until("no session", |swarm| {
        swarm.sim.state(leecher).session(torrent).is_none()
    });
}

/// A seed that only super-seeds sends a piece to leechers that lack it together, and to no others: four leechers get
/// about one copy from it, and the rest from each other. It serves again when a peer leaves with the only copy of a
/// piece.
#[test]
fn a_seed_that_only_super_seeds_sends_one_copy() {
    let mut swarm = Swarm::new(SeedingSettings {
        action: SeedingAction::SuperSeed,
        ..ratio(0)
    });
    let reached = |swarm: &mut Swarm| {
        swarm
            .stats()
            .is_some_and(|stats| stats.limit_reached == Some(SeedingLimit::Ratio))
    };
    swarm.until("the limit", reached);
    let is_marked = |swarm: &mut Swarm| {
        let world = swarm.sim.node(swarm.seeder).world_mut();
        world.query_filtered::<(), With<SuperSeedsOnly>>().iter(world).count() == 1
    };
    assert!(is_marked(&mut swarm));
    swarm.restart();
    swarm.until("super-seeding after a restart", is_marked);
    let leechers = [(); 4].map(|()| swarm.add_leecher());
    swarm.until("four copies", |swarm| {
        leechers.iter().all(|leecher| swarm.is_complete(*leecher))
    });
    let sent = |swarm: &mut Swarm| swarm.stats().unwrap().uploaded;
    let uploaded = sent(&mut swarm);
    assert!(uploaded < 2 * LEN as u64, "{uploaded}");

    // A late peer gets everything from the others, or else from the seed.
    let late = swarm.add_leecher();
    swarm.until("a late copy", |swarm| swarm.is_complete(late));
    let uploaded = sent(&mut swarm);
    let torrent = swarm.content.info_hash();
    let options = RemoveOptions { delete_data: false };
    for leecher in swarm.leechers.clone() {
        drop(send(&mut swarm.sim, leecher, |reply| RemoveTorrent {
            torrent,
            options,
            reply,
        }));
    }
    swarm.run_for(30);
    let last = swarm.add_leecher();
    swarm.until("the last copy", |swarm| swarm.is_complete(last));
    assert!(sent(&mut swarm) - uploaded >= LEN as u64, "nobody else has it");

    // A start ends the effect of the limit.
    swarm.set(own_ratio(1_000_000));
    swarm.until("an end", |swarm| {
        swarm.stats().is_some_and(|stats| stats.limit_reached.is_none())
    });
    assert!(!is_marked(&mut swarm));
}

/// A change of the settings has its effect on all torrents at once.
#[test]
fn a_limit_of_the_settings_ends_seeding_at_once() {
    let mut swarm = Swarm::new(SeedingSettings::default());
    let patch = SettingsPatch::default().set("seeding.ratio_percent", 0);
    let changed = send(&mut swarm.sim, swarm.seeder, |reply| ChangeSettings { patch, reply });
    swarm.until("the change", |_| changed.try_recv().is_ok_and(|answer| answer.is_ok()));
    swarm.until("the pause", |swarm| swarm.held_by() == Some(SeedingLimit::Ratio));
}
