//! Simulated swarms over a second carrier, and through a filter.

use std::time::Duration;

use ecs_torrent::components::peer::{Peer, Transport};
use ecs_torrent::components::settings::Settings;
use ecs_torrent::engine::sim::{Access, Carrier, Simulation};
use ecs_torrent::protocol::time::Timestamp;
use ecs_torrent::systems::TorrentPlugins;

use crate::masking::Masking;
use crate::{add, ip, torrent};

const PIPE: Transport = Transport::Other("pipe");

/// A seed and three leechers, with access links that are too slow for the torrent. Only the pipes can carry it in time.
/// With `is_masked`, a filter masks all streams; the engines decode what arrives.
fn swarm(is_masked: bool) {
    let content = torrent(4_000_000, 65536);
    let mut sim = Simulation::new(3, Duration::from_millis(10));
    let nodes: Vec<_> = (1..=4)
        .map(|last| match is_masked {
            true => sim.add_node(ip(last), Settings::default(), (TorrentPlugins, Masking)),
            false => sim.add_node(ip(last), Settings::default(), TorrentPlugins),
        })
        .collect();
    for node in &nodes {
        sim.net().set_access(*node, Access::symmetric(10_000));
        let carriers = vec![(PIPE, Carrier::Pipe), (Transport::Tcp, Carrier::AccessLink)];
        sim.net().set_carriers(*node, carriers);
    }
    sim.put(nodes[0], "downloads", &content);
    for (number, node) in nodes.iter().enumerate() {
        let peers = (1..=4).filter(|last| usize::from(*last) != number + 1);
        add(
            &mut sim,
            *node,
            &content,
            peers.map(|last| (ip(last), 6881).into()).collect(),
        );
    }
    let limit = Timestamp::ZERO + Duration::from_secs(60);
    let finished = sim.run_until(limit, |sim| {
        nodes.iter().all(|node| sim.has(*node, "downloads", &content))
    });
    assert!(finished);
    for node in nodes {
        let world = sim.node(node).world_mut();
        let mut peers = world.query::<&Peer>();
        assert!(peers.iter(world).all(|peer| peer.transport == Some(PIPE)));
    }
}

#[test]
fn a_swarm_over_pipes() {
    swarm(false);
}

#[test]
fn a_swarm_through_a_filter() {
    swarm(true);
}
