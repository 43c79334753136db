//! Limits on transfer rates.

use ecs_torrent::components::commands::{CommandQueue, Reply, SetLimits};
use ecs_torrent::components::peer::PeerRates;
use ecs_torrent::components::rate_limit::LimitsPatch;
use ecs_torrent::components::settings::{AlternativeUse, ChangeSettings, LimitSettings, SettingsPatch};
use ecs_torrent::components::torrent::Counters;
use ecs_torrent::engine::sim::Crash;
use ecs_torrent::sim::invariants::{InvariantsPlugin, Violations};

use super::*;

const WINDOW: Duration = Duration::from_secs(10);

/// Engines with the same torrent: complete ones at first, then empty ones that know the complete ones.
struct Swarm {
    sim: Simulation,
    content: Content,
    seeders: Vec<NodeId>,
    leechers: Vec<NodeId>,
}

impl Swarm {
    fn new(len: usize, seeders: (u8, LimitSettings), leechers: (u8, LimitSettings)) -> Self {
        let content = torrent(len, 64 << 10);
        let mut sim = Simulation::new(1, Duration::from_millis(10));
        let plugins = (TorrentPlugins, InvariantsPlugin);
        let settings = |limits: &LimitSettings| {
            let mut settings = Settings::default();
            settings.dht.enabled = false;
            settings.lsd.enabled = false;
            settings.limits = limits.clone();
            settings
        };
        let seeders: Vec<NodeId> = (0..seeders.0)
            .map(|number| sim.add_node(ip(1 + number), settings(&seeders.1), plugins))
            .collect();
        for seeder in &seeders {
            sim.put(*seeder, "downloads", &content);
            add(&mut sim, *seeder, &content, vec![]);
        }
        sim.run_for(Duration::from_secs(5));
        let known: Vec<_> = (1..=seeders.len() as u8).map(|last| (ip(last), 6881).into()).collect();
        let leechers: Vec<NodeId> = (0..leechers.0)
            .map(|number| sim.add_node(ip(101 + number), settings(&leechers.1), plugins))
            .collect();
        for leecher in &leechers {
            add(&mut sim, *leecher, &content, known.clone());
        }
        Self {
            sim,
            content,
            seeders,
            leechers,
        }
    }

    fn counters(&mut self, node: NodeId) -> Counters {
        let world = self.sim.node(node).world_mut();
        *world.query::<&Counters>().single(world).unwrap()
    }

    /// Returns the bytes that `count` adds up to in each of three windows, after one in which the transfer begins.
    fn windows(&mut self, count: impl Fn(&mut Self) -> u64) -> [u64; 3] {
        self.sim.run_for(WINDOW);
        [(); 3].map(|()| {
            let before = count(self);
            self.sim.run_for(WINDOW);
            count(self) - before
        })
    }

    /// Returns the bytes that `count` adds up to in a window, some seconds after a change.
    fn window(&mut self, count: impl Fn(&mut Self) -> u64) -> u64 {
        self.sim.run_for(Duration::from_secs(4));
        let before = count(self);
        self.sim.run_for(WINDOW);
        count(self) - before
    }

    /// Bytes uploaded to each peer of a node.
    fn uploaded_to_peers(&mut self, node: NodeId) -> Vec<u64> {
        let world = self.sim.node(node).world_mut();
        let mut rates = world.query::<&PeerRates>();
        rates.iter(world).map(|rates| rates.uploaded).collect()
    }

    fn check(&mut self) {
        for node in self.sim.nodes().collect::<Vec<_>>() {
            let found = self.sim.node(node).world_mut().resource_mut::<Violations>().take();
            assert!(found.is_empty(), "{node:?}: {found:?}");
        }
    }
}

fn download(rate: u64) -> LimitSettings {
    LimitSettings {
        download_bytes_per_s: rate,
        ..LimitSettings::default()
    }
}

fn upload(rate: u64) -> LimitSettings {
    LimitSettings {
        upload_bytes_per_s: rate,
        ..LimitSettings::default()
    }
}

fn assert_near(bytes: u64, rate: u64) {
    let ideal = rate * WINDOW.as_secs();
    let (least, most) = (ideal * 97 / 100, ideal * 103 / 100);
    assert!(
        (least..=most).contains(&bytes),
        "{bytes} bytes in ten seconds, {ideal} allowed"
    );
}

#[test]
fn a_download_keeps_to_its_limit() {
    for (seeders, rate) in [(1, 1 << 20), (8, 200_000)] {
        let len = (rate * 60) as usize;
        let mut swarm = Swarm::new(len, (seeders, LimitSettings::default()), (1, download(rate)));
        let leecher = swarm.leechers[0];
        for bytes in swarm.windows(|swarm| swarm.counters(leecher).downloaded) {
            assert_near(bytes, rate);
        }
        let sent: Vec<u64> = swarm
            .seeders
            .clone()
            .iter()
            .map(|seeder| swarm.counters(*seeder).uploaded)
            .collect();
        let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
        assert!(*most <= 2 * least, "unequal shares: {sent:?}");
        assert_eq!(swarm.counters(leecher).wasted, 0);
        swarm.check();
    }
}

#[test]
fn an_upload_keeps_to_its_limit() {
    for (leechers, rate) in [(1, 500_000), (4, 100_000)] {
        let len = (rate * 60) as usize;
        let mut swarm = Swarm::new(len, (1, upload(rate)), (leechers, LimitSettings::default()));
        let seeder = swarm.seeders[0];
        for bytes in swarm.windows(|swarm| swarm.counters(seeder).uploaded) {
            assert_near(bytes, rate);
        }
        let sent = swarm.uploaded_to_peers(seeder);
        assert_eq!(sent.len(), usize::from(leechers));
        swarm.check();
    }
}

fn set_limits(sim: &mut Simulation, node: NodeId, content: &Content, patch: LimitsPatch) {
    let mut queue = sim.node(node).world_mut().resource_mut::<CommandQueue<SetLimits>>();
    let reply = Reply::new(|answer: Result<(), _>| answer.unwrap());
    let torrent = content.info_hash();
    queue.0.push_back(SetLimits { torrent, patch, reply });
}

fn own_download(rate: Option<u64>) -> LimitsPatch {
    LimitsPatch {
        download_bytes_per_s: Some(rate),
        ..LimitsPatch::default()
    }
}

fn own_upload(rate: Option<u64>) -> LimitsPatch {
    LimitsPatch {
        upload_bytes_per_s: Some(rate),
        ..LimitsPatch::default()
    }
}

/// A torrent keeps to its own limit, of which its peers get equal shares, in addition to the engine's. The limit is
/// taken back at run time, and survives a power failure.
#[test]
fn a_torrent_keeps_to_its_own_limits() {
    let rate = 100_000;
    let mut swarm = Swarm::new(24 << 20, (4, LimitSettings::default()), (1, download(500_000)));
    let (leecher, content) = (swarm.leechers[0], swarm.content.clone());
    set_limits(&mut swarm.sim, leecher, &content, own_download(Some(rate)));
    for bytes in swarm.windows(|swarm| swarm.counters(leecher).downloaded) {
        assert_near(bytes, rate);
    }
    let sent: Vec<u64> = swarm
        .seeders
        .clone()
        .iter()
        .map(|seeder| swarm.counters(*seeder).uploaded)
        .collect();
    let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
    assert!(*most <= 2 * least, "unequal shares: {sent:?}");
    set_limits(&mut swarm.sim, leecher, &content, own_download(None));
    let bytes = swarm.window(|swarm| swarm.counters(leecher).downloaded);
    assert_near(bytes, 500_000);
    let seeders = swarm.seeders.clone();
    for seeder in &seeders {
        set_limits(&mut swarm.sim, *seeder, &content, own_upload(Some(100_000)));
    }
    let uploaded = |swarm: &mut Swarm| seeders.iter().map(|seeder| swarm.counters(*seeder).uploaded).sum();
    assert_near(swarm.window(uploaded), 400_000);
    assert_eq!(swarm.counters(leecher).wasted, 0);
    swarm.sim.crash(seeders[0], Crash::Power);
    swarm.sim.restart(seeders[0]);
    add(&mut swarm.sim, seeders[0], &content, vec![]);
    swarm.sim.run_for(Duration::from_secs(1));
    let limits = stats(&mut swarm.sim, seeders[0], &content).unwrap().limits;
    assert_eq!(limits.upload_bytes_per_s, Some(100_000));
    swarm.check();
}

/// The limit of one torrent leaves the rest of the engine's to another.
#[test]
fn the_rest_of_the_engines_limit_is_for_other_torrents() {
    let mut swarm = Swarm::new(16 << 20, (1, LimitSettings::default()), (1, download(500_000)));
    let (seeder, leecher, limited) = (swarm.seeders[0], swarm.leechers[0], swarm.content.clone());
    let new = NewContent {
        name: "other".into(),
        len: 16 << 20,
        piece_length: 64 << 10,
        ..NewContent::default()
    };
    let other = new.make();
    swarm.sim.put(seeder, "downloads", &other);
    add(&mut swarm.sim, seeder, &other, vec![]);
    swarm.sim.run_for(Duration::from_secs(5));
    add(&mut swarm.sim, leecher, &other, vec![(ip(1), 6881).into()]);
    set_limits(&mut swarm.sim, leecher, &limited, own_download(Some(100_000)));
    swarm.sim.run_for(WINDOW);
    let received = |sim: &mut Simulation, content: &Content| stats(sim, leecher, content).unwrap().downloaded;
    let before = [&limited, &other].map(|content| received(&mut swarm.sim, content));
    swarm.sim.run_for(WINDOW);
    let after = [&limited, &other].map(|content| received(&mut swarm.sim, content));
    assert_near(after[0] - before[0], 100_000);
    assert_near(after[1] - before[1], 400_000);
    swarm.check();
}

fn change(sim: &mut Simulation, node: NodeId, patch: SettingsPatch) {
    let mut queue = sim
        .node(node)
        .world_mut()
        .resource_mut::<CommandQueue<ChangeSettings>>();
    let reply = Reply::new(|answer: Result<_, _>| drop(answer.unwrap()));
    queue.0.push_back(ChangeSettings { patch, reply });
}

/// Limits that are set, changed and taken back at run time hold at once, and after a power failure.
#[test]
fn limits_change_at_run_time() {
    let (download_name, upload_name) = ("limits.download_bytes_per_s", "limits.upload_bytes_per_s");
    let mut swarm = Swarm::new(32 << 20, (1, upload(600_000)), (1, LimitSettings::default()));
    let (seeder, leecher) = (swarm.seeders[0], swarm.leechers[0]);
    for (node, name, rate) in [
        (leecher, download_name, 100_000),
        (leecher, download_name, 400_000),
        (seeder, upload_name, 50_000),
    ] {
        change(&mut swarm.sim, node, SettingsPatch::default().set(name, rate));
        for bytes in swarm.windows(|swarm| swarm.counters(leecher).downloaded) {
            assert_near(bytes, rate);
        }
    }
    swarm.sim.crash(seeder, Crash::Power);
    swarm.sim.restart(seeder);
    let limit = |swarm: &mut Swarm| {
        swarm
            .sim
            .node(seeder)
            .world_mut()
            .resource::<Settings>()
            .limits
            .upload_bytes_per_s
    };
    assert_eq!(limit(&mut swarm), 50_000);
    change(&mut swarm.sim, seeder, SettingsPatch::default().reset(upload_name));
    swarm.sim.run_for(Duration::from_secs(1));
    assert_eq!(limit(&mut swarm), 600_000);
    swarm.check();
}

/// The alternative limits are in force at the times of their schedule. A simulation begins on a Monday at 0:00.
#[test]
fn alternative_limits_follow_their_schedule() {
    let limits = LimitSettings {
        download_bytes_per_s: 200_000,
        alternative: AlternativeUse::Scheduled,
        alternative_download_bytes_per_s: 50_000,
        alternative_schedule: vec![
            "mon 00:01-00:02".parse().unwrap(),
            "tue-sun 00:00-24:00".parse().unwrap(),
        ],
        ..LimitSettings::default()
    };
    let mut swarm = Swarm::new(24 << 20, (1, LimitSettings::default()), (1, limits));
    let leecher = swarm.leechers[0];
    for (from, rate) in [(20, 200_000), (63, 50_000), (123, 200_000)] {
        let rest = Duration::from_secs(from) - swarm.sim.now().since(Timestamp::ZERO);
        swarm.sim.run_for(rest);
        let bytes = swarm.window(|swarm| swarm.counters(leecher).downloaded);
        assert_near(bytes, rate);
    }
    change(
        &mut swarm.sim,
        leecher,
        SettingsPatch::default().set("limits.alternative", "Always"),
    );
    assert_near(swarm.window(|swarm| swarm.counters(leecher).downloaded), 50_000);
    swarm.check();
}

/// At a low rate, a peer waits long for its share. It is not taken for a silent one, and no block is requested twice.
#[test]
fn a_slow_download_wastes_nothing() {
    let (seeders, rate) = (20, 20_000);
    let mut swarm = Swarm::new(1 << 20, (seeders, LimitSettings::default()), (1, download(rate)));
    let (leecher, content) = (swarm.leechers[0], swarm.content.clone());
    let limit = swarm.sim.now() + Duration::from_secs(90);
    let is_complete = |sim: &mut Simulation| {
        stats(sim, leecher, &content).is_some_and(|stats| stats.state == ecs_torrent::TorrentState::Seeding)
    };
    assert!(swarm.sim.run_until(limit, is_complete), "{:?}", swarm.counters(leecher));
    let counters = swarm.counters(leecher);
    assert_eq!((counters.downloaded, counters.wasted), (1 << 20, 0));
    swarm.check();
}
