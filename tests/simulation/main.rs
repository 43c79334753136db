//! Whole swarms in one process, on a virtual clock.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent::components::commands::{AddOptions, AddTorrent, CommandQueue, GetStats, Reply};
use ecs_torrent::components::settings::Settings;
use ecs_torrent::components::stats::TorrentStats;
use ecs_torrent::engine::sim::{NodeId, Simulation};
use ecs_torrent::protocol::create::{NewFile, NewTorrent};
use ecs_torrent::protocol::hash::sha1;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent::protocol::time::Timestamp;
use ecs_torrent::systems::TorrentPlugins;

fn torrent(size: usize, piece_length: u32) -> (Arc<Metainfo>, Vec<u8>) {
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
