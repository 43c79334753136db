//! Whole swarms in one process, on a virtual clock.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may fail as it likes, and its modules are seen by nobody else"
)]

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent::components::commands::{AddOptions, AddTorrent, CommandQueue, GetStats, Reply};
use ecs_torrent::components::settings::{Settings, TrackerSettings};
use ecs_torrent::components::stats::TorrentStats;
use ecs_torrent::components::torrent::Have;
use ecs_torrent::engine::sim::{NodeId, Simulation};
use ecs_torrent::protocol::create::{NewFile, NewTorrent};
use ecs_torrent::protocol::hash::sha1;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent::protocol::time::Timestamp;
use ecs_torrent::systems::TorrentPlugins;

fn torrent(size: usize, piece_length: u32) -> (Arc<Metainfo>, Vec<u8>) {
    torrent_with_trackers(size, piece_length, &[])
}

fn torrent_with_trackers(size: usize, piece_length: u32, trackers: &[&str]) -> (Arc<Metainfo>, Vec<u8>) {
    let data: Vec<u8> = (0..size as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let torrent = NewTorrent {
        name: "data".into(),
        files: vec![NewFile {
            path: vec![],
            len: size as u64,
        }],
        piece_length,
        pieces: data.chunks(piece_length as usize).map(|piece| sha1([piece])).collect(),
        trackers: trackers.iter().map(|url| vec![(*url).to_owned()]).collect(),
        ..NewTorrent::default()
    };
    let bytes = Bytes::from(torrent.encode().unwrap());
    (
        Arc::new(Metainfo::parse(&bytes, &MetainfoLimits::default()).unwrap()),
        data,
    )
}

fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn add(sim: &mut Simulation, node: NodeId, metainfo: &Arc<Metainfo>, peers: Vec<std::net::SocketAddr>) {
    let command = AddTorrent {
        metainfo: metainfo.clone(),
        options: AddOptions {
            root: Some("downloads".into()),
            peers,
            require_complete: false,
        },
        is_resumed: false,
        reply: Reply::ignored(),
    };
    sim.node(node)
        .world_mut()
        .resource_mut::<CommandQueue<AddTorrent>>()
        .0
        .push_back(command);
    sim.nudge(node);
}

fn stats(sim: &mut Simulation, node: NodeId, metainfo: &Metainfo) -> Option<TorrentStats> {
    let slot = Arc::new(Mutex::new(None));
    let out = slot.clone();
    let command = GetStats {
        torrent: metainfo.hashes.primary(),
        reply: Reply::new(move |stats| *out.lock().unwrap() = Some(stats)),
    };
    sim.node(node)
        .world_mut()
        .resource_mut::<CommandQueue<GetStats>>()
        .0
        .push_back(command);
    let now = sim.now();
    sim.node(node).tick(now);
    let answer = slot.lock().unwrap().take();
    answer.and_then(Result::ok)
}

/// Lets a seeder and a leecher finish a torrent; returns the trace's hash and the time it took.
fn run(seed: u64) -> (u64, Duration) {
    let (metainfo, data) = torrent(1_000_001, 65536);
    let mut sim = Simulation::new(seed, Duration::from_millis(10));
    let seeder = sim.add_node(ip(1), Settings::default(), TorrentPlugins);
    let leecher = sim.add_node(ip(2), Settings::default(), TorrentPlugins);
    sim.put_data(seeder, "downloads", data.clone());
    add(&mut sim, seeder, &metainfo, vec![]);
    add(&mut sim, leecher, &metainfo, vec![(ip(1), 6881).into()]);
    let limit = Timestamp::ZERO + Duration::from_secs(60);
    let finished = sim.run_until(limit, |sim| sim.data(leecher, "downloads").is_some());
    assert!(finished, "{:?}", stats(&mut sim, leecher, &metainfo));
    assert_eq!(sim.data(leecher, "downloads").unwrap(), data);
    let took = sim.now().since(Timestamp::ZERO);
    let trace = sim.trace();
    let limit = limit + Duration::from_secs(10);
    assert!(sim.run_until(limit, |sim| {
        stats(sim, leecher, &metainfo).is_some_and(|s| s.is_complete())
    }));
    let stats = stats(&mut sim, leecher, &metainfo).unwrap();
    assert_eq!(
        (stats.lifecycle.as_str(), stats.downloaded, stats.wasted),
        ("seeding", 1_000_001, 0)
    );
    (trace, took)
}

/// The seams hold: the same plugins run over simulated backends, and a seed determines all that happens.
#[test]
fn two_engines_finish_a_torrent_the_same_way_twice() {
    let (trace, took) = run(1);
    assert_eq!(run(1), (trace, took));
    assert_ne!(run(2).0, trace, "another seed, another run");
}

/// Fault 58: the connection to a UDP tracker is used for a minute, and then made anew.
#[test]
fn an_expired_connection_to_a_udp_tracker_is_renewed() {
    let mut sim = Simulation::new(1, Duration::from_millis(10));
    let settings = Settings {
        trackers: TrackerSettings {
            min_interval_s: 1,
            ..TrackerSettings::default()
        },
        ..Settings::default()
    };
    let node = sim.add_node(ip(1), settings, TorrentPlugins);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = asked.clone();
    sim.add_udp_host((ip(9), 6969).into(), move |now, _from, packet| {
        let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
        let (action, transaction) = (word(8), word(12));
        record
            .lock()
            .unwrap()
            .push((now.since(Timestamp::ZERO).as_secs(), action));
        let reply = match action {
            0 => vec![0, transaction, 7, 7],
            _ => vec![1, transaction, 25, 0, 0],
        };
        vec![reply.into_iter().flat_map(u32::to_be_bytes).collect()]
    });
    let (metainfo, _) = torrent_with_trackers(1000, 16384, &["udp://10.0.0.9:6969"]);
    add(&mut sim, node, &metainfo, vec![]);
    sim.run_until(Timestamp::ZERO + Duration::from_secs(110), |_| false);
    let asked = asked.lock().unwrap().clone();
    let announces: Vec<u64> = asked
        .iter()
        .filter(|(_, action)| *action == 1)
        .map(|(time, _)| *time)
        .collect();
    let connects: Vec<u64> = asked
        .iter()
        .filter(|(_, action)| *action == 0)
        .map(|(time, _)| *time)
        .collect();
    assert_eq!(announces, [0, 25, 50, 75, 100]);
    assert_eq!(connects, [0, 75], "after a minute, and not before");
}

/// Fault 100: a clock that jumps hours forward in the middle of a download, as after a long sleep, ends what has timed
/// out meanwhile and nothing else: the torrent goes on by itself. (Jumps of the wall clock do not reach the engine at
/// all: it reads a monotonic one, and time that it is given never goes back.)
#[test]
fn a_clock_that_jumps() {
    for who in ["leecher", "seeder", "both"] {
        let (metainfo, data) = torrent(4_000_003, 65536);
        let mut sim = Simulation::new(3, Duration::from_millis(10));
        let seeder = sim.add_node(ip(1), Settings::default(), TorrentPlugins);
        let leecher = sim.add_node(ip(2), Settings::default(), TorrentPlugins);
        sim.put_data(seeder, "downloads", data.clone());
        add(&mut sim, seeder, &metainfo, vec![]);
        add(&mut sim, leecher, &metainfo, vec![(ip(1), 6881).into()]);
        let limit = Timestamp::ZERO + Duration::from_secs(60);
        let is_begun = |sim: &mut Simulation| {
            let have = sim
                .node(leecher)
                .world_mut()
                .query::<&Have>()
                .single(sim.node(leecher).world());
            have.is_ok_and(|Have(have)| have.count() > 5)
        };
        assert!(sim.run_until(limit, is_begun));
        assert!(sim.data(leecher, "downloads").is_none(), "it is in the middle");
        let jump = Duration::from_secs(2 * 3600);
        let jumped = sim.now() + jump;
        for (node, name) in [(leecher, "leecher"), (seeder, "seeder")] {
            if who == name || who == "both" {
                sim.node(node).tick(jumped);
                // Its time stands still until the others have caught up, since it does not go back.
                sim.nudge(node);
            }
        }
        let finished = sim.run_until(jumped + Duration::from_secs(600), |sim| {
            sim.data(leecher, "downloads").is_some()
        });
        assert!(finished, "{who}: {:?}", stats(&mut sim, leecher, &metainfo));
        assert_eq!(sim.data(leecher, "downloads").unwrap(), data, "{who}");
    }
}
