//! Torrents that fetch their metadata from peers (BEP 9).

use ecs_torrent::bevy_ecs::prelude::{Entity, With};
use std::net::SocketAddr;

use ecs_torrent::components::bans::Bans;
use ecs_torrent::components::candidates::{CandidateSource, Candidates};
use ecs_torrent::components::commands::{StopTorrent, TorrentSource, UnfetchedTorrent};
use ecs_torrent::components::hints::LinkHints;
use ecs_torrent::components::peer::Peer;
use ecs_torrent::components::torrent::{self as parts, Lifecycle, Torrent};
use ecs_torrent::engine::sim::{Access, NewNode};
use ecs_torrent::protocol::metainfo::Metainfo;
use ecs_torrent::sim::invariants::{InvariantsPlugin, Violations};

use super::*;

/// Seeds, and an engine that knows the torrent's hash and their addresses.
struct Magnet {
    sim: Simulation,
    content: Content,
    seeders: Vec<NodeId>,
    leecher: NodeId,
}

/// A torrent with metadata of five pieces.
fn big_metadata() -> Content {
    metadata_of(80_000)
}

/// A torrent with metadata of about `len` bytes: 20 for each of its pieces of 16 bytes.
fn metadata_of(len: usize) -> Content {
    torrent(len / 20 * 16, 16)
}

impl Magnet {
    fn new(content: Content, seeders: u8, settings: Settings) -> Self {
        Self::over(Access::default(), content, seeders, settings)
    }

    /// Connects every engine by a link of this speed.
    fn over(access: Access, content: Content, seeders: u8, settings: Settings) -> Self {
        let mut sim = Simulation::new(u64::from(seeders), Duration::from_millis(50));
        let plugins = (TorrentPlugins, InvariantsPlugin);
        let mut add_node = |ip, settings| sim.add(NewNode::new(ip, settings, plugins).access(access));
        let seeders: Vec<NodeId> = (0..seeders)
            .map(|n| add_node(ip(10 + n), Settings::default()))
            .collect();
        let leecher = add_node(ip(1), settings);
        for seeder in &seeders {
            sim.put(*seeder, "downloads", &content);
            add(&mut sim, *seeder, &content, vec![]);
        }
        let limit = sim.now() + Duration::from_secs(5);
        sim.run_until(limit, |_| false);
        Self {
            sim,
            content,
            seeders,
            leecher,
        }
    }

    /// Adds the torrent by its hash.
    fn add(&mut self) {
        let source = TorrentSource::InfoHash(UnfetchedTorrent {
            info_hash: self.content.info_hash(),
            name: None,
            trackers: vec![],
            peers: Vec::new(),
            hints: LinkHints::default(),
        });
        let peers = (0..self.seeders.len())
            .map(|n| (ip(10 + n as u8), 6881).into())
            .collect();
        self.add_source(source, peers);
    }

    fn add_source(&mut self, source: TorrentSource, peers: Vec<SocketAddr>) {
        let options = AddOptions {
            root: Some("downloads".into()),
            peers,
            ..AddOptions::default()
        };
        let world = self.sim.node(self.leecher).world_mut();
        world
            .resource_mut::<CommandQueue<AddTorrent>>()
            .0
            .push_back(AddTorrent {
                source,
                options,
                is_resumed: false,
                reply: Reply::ignored(),
            });
        self.sim.nudge(self.leecher);
    }

    /// Makes a seed serve metadata in which each piece of `pieces` begins with a wrong byte.
    fn corrupt(&mut self, seeder: usize, pieces: &[usize]) {
        let world = self.sim.node(self.seeders[seeder]).world_mut();
        let mut contents = world.query::<&mut parts::Content>();
        let mut content = contents.single_mut(world).unwrap();
        let mut info = content.0.info_bytes.to_vec();
        pieces.iter().for_each(|piece| info[piece * 16_384] ^= 1);
        let metainfo = Metainfo {
            info_bytes: info.into(),
            ..Metainfo::clone(&content.0)
        };
        content.0 = Arc::new(metainfo);
    }

    fn state(&mut self) -> Lifecycle {
        let world = self.sim.node(self.leecher).world_mut();
        world.query::<&Lifecycle>().single(world).unwrap().clone()
    }

    /// Runs until the torrent is complete. Returns when its metadata was known, and when it was complete.
    fn complete(&mut self, seconds: u64) -> Duration {
        let begun = self.sim.now();
        let (leecher, content) = (self.leecher, self.content.clone());
        let limit = begun + Duration::from_secs(seconds);
        let done = self.sim.run_until(limit, |sim| sim.has(leecher, "downloads", &content));
        assert!(
            done,
            "{:?}: {:?}",
            self.state(),
            stats(&mut self.sim, leecher, &content)
        );
        let took = self.sim.now().since(begun);
        self.check();
        took
    }

    fn run(&mut self, seconds: u64) {
        let limit = self.sim.now() + Duration::from_secs(seconds);
        self.sim.run_until(limit, |_| false);
        self.check();
    }

    fn check(&mut self) {
        for node in self.seeders.clone().into_iter().chain([self.leecher]) {
            let found = self.sim.node(node).world_mut().resource_mut::<Violations>().take();
            assert!(found.is_empty(), "{found:?}");
        }
    }

    fn banned(&mut self) -> Vec<u8> {
        let now = self.sim.now();
        let world = self.sim.node(self.leecher).world_mut();
        let bans = world.resource::<Bans>();
        (0..self.seeders.len() as u8)
            .filter(|n| bans.has(now, (ip(10 + n), 6881).into()))
            .collect()
    }
}

#[test]
fn one_seed_is_enough() {
    let mut magnet = Magnet::new(torrent(300_001, 32768), 1, Settings::default());
    magnet.add();
    magnet.complete(10);
    magnet.run(5);
    assert_eq!(magnet.state(), Lifecycle::Seeding);
}

/// All pieces of the metadata are requested at once: it costs three round trips of 100 ms, for connecting, handshakes
/// and requests, and the time that 100 Mbit/s need for its bytes.
#[test]
fn metadata_of_many_pieces_costs_one_round_trip() {
    for (len, most) in [(40_000, 450), (80_000, 450), (400_000, 600)] {
        let access = Access::symmetric(12_500_000);
        let mut magnet = Magnet::over(access, metadata_of(len), 1, Settings::default());
        assert_eq!(magnet.content.metainfo().info_bytes.len() / 1000, len / 1000);
        magnet.add();
        let (begun, leecher) = (magnet.sim.now(), magnet.leecher);
        let limit = begun + Duration::from_secs(10);
        let known = magnet.sim.run_until(limit, |sim| {
            let world = sim.node(leecher).world_mut();
            world.query::<&parts::Content>().iter(world).next().is_some()
        });
        assert!(known);
        let took = magnet.sim.now().since(begun);
        eprintln!("{len} bytes of metadata in {took:?}");
        assert!(took < Duration::from_millis(most), "{len} bytes in {took:?}");
    }
}

/// A link whose torrent an earlier run completed needs no peer.
#[test]
fn metadata_of_an_earlier_run_is_used() {
    for is_stopped in [false, true] {
        let mut magnet = Magnet::new(torrent(300_001, 32768), 1, Settings::default());
        magnet.add();
        magnet.complete(10);
        magnet.run(5);
        let (leecher, torrent) = (magnet.leecher, magnet.content.info_hash());
        if is_stopped {
            let world = magnet.sim.node(leecher).world_mut();
            let reply = Reply::ignored();
            world
                .resource_mut::<CommandQueue<StopTorrent>>()
                .0
                .push_back(StopTorrent { torrent, reply });
            magnet.sim.nudge(leecher);
            magnet.run(10);
        }
        magnet.sim.restart(leecher);
        magnet.seeders.clear();
        magnet.add();
        magnet.run(10);
        assert_eq!(magnet.state(), Lifecycle::Seeding);
        let content = magnet.content.clone();
        let stats = stats(&mut magnet.sim, leecher, &content).unwrap();
        assert_eq!(stats.downloaded, 300_001, "of the first run");
        let session = magnet.sim.state(leecher).session(torrent).unwrap();
        assert!(!session.lacks_metadata && !session.stopped);
    }
}

#[test]
fn progress_is_reported() {
    let content = big_metadata();
    let mut magnet = Magnet::new(content.clone(), 1, Settings::default());
    magnet.add();
    let (leecher, limit) = (magnet.leecher, magnet.sim.now() + Duration::from_secs(10));
    let is_known = magnet.sim.run_until(limit, |sim| {
        stats(sim, leecher, &content).is_some_and(|stats| stats.metadata.is_some_and(|metadata| metadata.pieces == 5))
    });
    assert!(is_known);
    magnet.complete(60);
    let stats = stats(&mut magnet.sim, leecher, &content).unwrap();
    assert_eq!(stats.metadata, None);
}

/// Peers that corrupt metadata are banned, and others are not.
#[test]
fn peers_that_send_wrong_metadata_are_banned() {
    for (corrupt, pieces) in [(1, &[0, 1, 2, 3, 4][..]), (2, &[0, 2, 4])] {
        let mut magnet = Magnet::new(big_metadata(), 5, Settings::default());
        (0..corrupt).for_each(|seeder| magnet.corrupt(seeder, pieces));
        magnet.add();
        magnet.complete(120);
        let banned = magnet.banned();
        assert!(
            !banned.is_empty() && banned.iter().all(|n| usize::from(*n) < corrupt),
            "{banned:?} of {corrupt}"
        );
    }
    let mut magnet = Magnet::new(big_metadata(), 1, Settings::default());
    magnet.corrupt(0, &[3]);
    magnet.add();
    magnet.run(20);
    assert_eq!(
        (magnet.state(), magnet.banned()),
        (Lifecycle::FetchingMetadata, vec![0])
    );
}

/// A private torrent's metadata is not for everyone who knows the hash (BEP 27).
#[test]
fn private_metadata_is_not_served() {
    let content = NewContent {
        is_private: true,
        ..NewContent::default()
    }
    .make();
    let mut magnet = Magnet::new(content, 2, Settings::default());
    magnet.add();
    magnet.run(60);
    assert_eq!(magnet.state(), Lifecycle::FetchingMetadata);
    let world = magnet.sim.node(magnet.leecher).world_mut();
    assert!(world.query::<&Peer>().iter(world).count() > 0, "the peers are there");
}

#[test]
fn metadata_beyond_the_limit_is_not_fetched() {
    let mut settings = Settings::default();
    settings.metadata.max_bytes = 16 << 10;
    let mut magnet = Magnet::new(big_metadata(), 1, settings);
    magnet.add();
    magnet.run(60);
    assert_eq!(magnet.state(), Lifecycle::FetchingMetadata);
    let stats = stats(&mut magnet.sim, magnet.leecher, &magnet.content.clone()).unwrap();
    assert_eq!(stats.metadata, None);
}

/// A link names its peers by host names. An address in a more private network than ours is refused, as from any source.
#[test]
fn peers_with_host_names_are_found() {
    let mut magnet = Magnet::new(big_metadata(), 1, Settings::default());
    let names = magnet.sim.names();
    names.set("peer.example", [ip(10)]);
    names.set("evil.example", [[127, 0, 0, 1].into(), [169, 254, 169, 254].into()]);
    let hosts = ["evil.example:22", "peer.example:6881", "missing.example:6881"];
    let source = TorrentSource::InfoHash(UnfetchedTorrent {
        info_hash: magnet.content.info_hash(),
        name: None,
        trackers: vec![],
        peers: Vec::new(),
        hints: LinkHints {
            peer_hosts: hosts.map(|host| host.parse().unwrap()).into(),
            ..LinkHints::default()
        },
    });
    magnet.add_source(source, vec![]);
    magnet.complete(30);
    let world = magnet.sim.node(magnet.leecher).world_mut();
    let candidates = world.query::<&Candidates>().single(world).unwrap();
    let counts = candidates
        .counts()
        .find(|(source, _)| *source == CandidateSource::MAGNET);
    let counts = counts.unwrap().1;
    assert_eq!((counts.found, counts.refused, counts.connected), (1, 2, 1));
}

/// A peer that fetches metadata passes it on before it has any of the data.
#[test]
fn fetched_metadata_is_served() {
    let mut magnet = Magnet::new(big_metadata(), 1, Settings::default());
    let plugins = (TorrentPlugins, InvariantsPlugin);
    let second = magnet.sim.add_node(ip(2), Settings::default(), plugins);
    magnet.add();
    // The seed leaves as soon as the metadata is known.
    let (leecher, limit) = (magnet.leecher, magnet.sim.now() + Duration::from_secs(10));
    let known = magnet.sim.run_until(limit, |sim| {
        let world = sim.node(leecher).world_mut();
        world.query::<&parts::Content>().iter(world).next().is_some()
    });
    assert!(known);
    let source = TorrentSource::InfoHash(UnfetchedTorrent {
        info_hash: magnet.content.info_hash(),
        name: None,
        trackers: vec![],
        peers: Vec::new(),
        hints: LinkHints::default(),
    });
    let world = magnet.sim.node(second).world_mut();
    world
        .resource_mut::<CommandQueue<AddTorrent>>()
        .0
        .push_back(AddTorrent {
            source,
            options: AddOptions {
                root: Some("downloads".into()),
                peers: vec![(ip(1), 6881).into()],
                ..AddOptions::default()
            },
            is_resumed: false,
            reply: Reply::ignored(),
        });
    magnet.sim.nudge(second);
    let limit = magnet.sim.now() + Duration::from_secs(10);
    let known = magnet.sim.run_until(limit, |sim| {
        let world = sim.node(second).world_mut();
        let mut torrents = world.query_filtered::<Entity, (With<Torrent>, With<parts::Content>)>();
        torrents.iter(world).next().is_some()
    });
    assert!(known);
}
