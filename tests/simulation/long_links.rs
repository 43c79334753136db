//! Peers whose connections take longer than a first attempt lasts.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ecs_torrent::bevy_ecs::prelude::{Entity, With};
use ecs_torrent::components::candidates::{CandidateSource, CandidatesFound};
use ecs_torrent::components::peer::{Peer, Stage};
use ecs_torrent::components::torrent::Torrent;
use ecs_torrent::engine::sim::{Access, NewNode, Path};
use ecs_torrent::sim::invariants::{InvariantsPlugin, Violations};

use super::*;

/// Number of peers behind long links.
const FAR: u8 = 8;

/// The good peer, which is dialed last.
const NEAR: u8 = 200;

/// One way to a far peer: its connection takes twice as long, and more than a first attempt of 3 s.
const LATENCY: Duration = Duration::from_millis(1800);

/// A tracker names a good peer, peers behind long links, and hundreds of addresses where nobody answers. The good peer
/// is found in seconds. The far ones are given up meanwhile, tried again with more time, and reached.
#[test]
fn good_peers_are_found_in_seconds_and_far_ones_are_reached_later() {
    let mut sim = Simulation::new(7, Duration::from_millis(20));
    let content = torrent(4 << 20, 64 << 10);
    let plugins = (TorrentPlugins, InvariantsPlugin);
    // The transfer lasts for the whole test.
    let slow = Access::symmetric(8 << 10);
    let mut seed = |number| {
        let node = sim.add(NewNode::new(ip(number), Settings::default(), plugins).access(slow));
        sim.put(node, "downloads", &content);
        add(&mut sim, node, &content, vec![]);
        node
    };
    let (near, far): (NodeId, Vec<NodeId>) = (seed(NEAR), (10..10 + FAR).map(&mut seed).collect());
    let leecher = sim.add(NewNode::new(ip(1), Settings::default(), plugins));
    for node in &far {
        sim.net().set_path(leecher, *node, Path::new(LATENCY));
    }
    add(&mut sim, leecher, &content, vec![]);
    let begun = sim.now() + Duration::from_secs(2);
    sim.run_until(begun, |_| false);

    let far_addresses: Vec<SocketAddr> = (10..10 + FAR).map(|number| (ip(number), 6881).into()).collect();
    let dead = (0..150u8).map(|number| SocketAddr::from(([10, 200, 0, number], 6881)));
    let near_address = SocketAddr::from((ip(NEAR), 6881));
    let peers: Vec<SocketAddr> = far_addresses
        .iter()
        .copied()
        .chain(dead)
        .chain([near_address])
        .collect();
    let world = sim.node(leecher).world_mut();
    let entity = world.query_filtered::<Entity, With<Torrent>>().single(world).unwrap();
    world.write_message(CandidatesFound {
        torrent: entity,
        peers: peers.into_iter().map(Into::into).collect(),
        source: CandidateSource::TRACKER,
        informant: None,
    });
    sim.nudge(leecher);

    let mut reached: BTreeMap<SocketAddr, Duration> = BTreeMap::new();
    let limit = begun + Duration::from_secs(300);
    let all = sim.run_until(limit, |sim| {
        let now = sim.now();
        let world = sim.node(leecher).world_mut();
        for peer in world.query::<&Peer>().iter(world) {
            if let (Stage::Connected, Some(address)) = (peer.stage, peer.listens_at) {
                reached.entry(address).or_insert(now.since(begun));
            }
        }
        reached.len() == usize::from(FAR) + 1
    });
    eprintln!("reached {reached:?}");
    assert!(all, "{reached:?}");
    assert!(reached[&near_address] < Duration::from_secs(10), "{reached:?}");
    let first_far = far_addresses.iter().map(|address| reached[address]).min().unwrap();
    assert!(
        first_far > Duration::from_secs(3),
        "a first attempt is too short: {reached:?}"
    );
    for node in far.into_iter().chain([near, leecher]) {
        let found = sim.node(node).world_mut().resource_mut::<Violations>().take();
        assert!(found.is_empty(), "{found:?}");
    }
}
