//! Simulated engines in the states that benches measure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent::components::commands::{AddOptions, AddTorrent, CommandQueue, Reply};
use ecs_torrent::components::settings::Settings;
use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::engine::sim::{Content, NewNode, NodeId, Probe, Simulation};
use ecs_torrent::protocol::metainfo::Metainfo;
use ecs_torrent::systems::TorrentPlugins;

use crate::torrents;

/// One-way latency between two hosts.
pub const LATENCY: Duration = Duration::from_millis(10);

/// A simulation for benches.
pub fn simulation() -> Simulation {
    Simulation::untraced(1, LATENCY)
}

/// Address of a host.
pub fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

/// Listen address of the engine at [`ip`].
pub fn listening(last: u8) -> SocketAddr {
    (ip(last), 6881).into()
}

/// Adds a torrent with its data in the folder `root`.
pub fn add(sim: &mut Simulation, node: NodeId, metainfo: &Arc<Metainfo>, root: &str, peers: Vec<SocketAddr>) {
    let command = AddTorrent {
        source: metainfo.clone().into(),
        options: AddOptions {
            root: Some(root.into()),
            peers,
            ..AddOptions::default()
        },
        is_resumed: false,
        reply: Reply::ignored(),
    };
    let world = sim.node(node).world_mut();
    world.resource_mut::<CommandQueue<AddTorrent>>().0.push_back(command);
    sim.nudge(node);
}

/// Number of an engine's torrents in `state`.
pub fn count_in(sim: &mut Simulation, node: NodeId, state: &Lifecycle) -> usize {
    let world = sim.node(node).world_mut();
    let mut torrents = world.query::<&Lifecycle>();
    torrents.iter(world).filter(|lifecycle| *lifecycle == state).count()
}

/// Runs the simulation for `time`.
pub fn pass(sim: &mut Simulation, time: Duration) {
    let limit = sim.now() + time;
    sim.run_until(limit, |_| false);
}

/// An engine with idle torrents, half of them complete. Every torrent is announced to a tracker; the engine's next work
/// for them is minutes away.
pub struct Idle {
    pub sim: Simulation,
    pub node: NodeId,
    count: usize,
    announces: Arc<AtomicUsize>,
}

impl Idle {
    /// Creates an engine with `count` torrents.
    pub fn new(count: usize, probe: Arc<dyn Probe>) -> Self {
        let mut sim = simulation();
        let announces = Arc::new(AtomicUsize::new(0));
        let counted = announces.clone();
        sim.add_udp_host((ip(9), 6969).into(), move |_, _, packet| answer(packet, &counted));
        let node = sim.add(NewNode::new(ip(1), Settings::default(), TorrentPlugins).probe(probe));
        let data = Bytes::from(torrents::noise(32));
        for number in 0..count {
            let name = number.to_string();
            let metainfo = torrents::of_data(&name, &data, 16 << 10, Some("udp://10.0.0.9:6969"));
            if number % 2 == 0 {
                sim.put(node, &name, &Content::new(metainfo.clone(), data.clone()));
            }
            add(&mut sim, node, &metainfo, &name, vec![]);
        }
        // Waits until all torrents are announced and the engine has saved the changes, which it does after 30 s.
        let is_announced = |_: &mut Simulation| announces.load(Ordering::Relaxed) >= count;
        let limit = sim.now() + Duration::from_secs(600);
        assert!(
            sim.run_until(limit, is_announced),
            "{announces:?} of {count} are announced"
        );
        pass(&mut sim, Duration::from_secs(60));
        let states = [Lifecycle::Seeding, Lifecycle::Downloading].map(|state| count_in(&mut sim, node, &state));
        assert_eq!(states, [count.div_ceil(2), count / 2]);
        Self {
            sim,
            node,
            count,
            announces,
        }
    }

    /// Runs until every torrent has been announced once more.
    #[allow(dead_code, reason = "not every bench announces")]
    pub fn announce_again(&mut self) {
        let wanted = self.announces.load(Ordering::Relaxed) + self.count;
        let limit = self.sim.now() + Duration::from_secs(2 * 1800);
        let is_announced = |_: &mut Simulation| self.announces.load(Ordering::Relaxed) >= wanted;
        assert!(self.sim.run_until(limit, is_announced));
    }

    /// Runs a tick in which nothing is due and checks that nothing is due soon.
    pub fn tick(&mut self) {
        let now = self.sim.now();
        let next = self.sim.node(self.node).tick(now);
        assert!(next > now, "the tick had something to do");
    }
}

/// Answers as a UDP tracker (BEP 15). Replies to announces contain no peers and an interval of half an hour.
fn answer(packet: &[u8], announces: &AtomicUsize) -> Vec<Vec<u8>> {
    let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
    let (action, transaction) = (word(8), word(12));
    let reply = match action {
        0 => vec![0, transaction, 7, 7],
        _ => {
            announces.fetch_add(1, Ordering::Relaxed);
            vec![1, transaction, 1800, 0, 0]
        }
    };
    vec![reply.into_iter().flat_map(u32::to_be_bytes).collect()]
}
