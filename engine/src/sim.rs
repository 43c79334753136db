//! Simulated backends: many engines in one process, one virtual clock, no threads, no real I/O.
//!
//! The worlds cannot tell: they run the same plugins over the same ports. Everything that happens is put into one
//! queue ordered by time and then by the order of its making, so a seed determines a whole run, and
//! [`Simulation::trace`] proves that it did.

mod disk;
mod fabric;
mod net;
mod probe;
mod state;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bevy_app::Plugins;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_protocol::time::Timestamp;

pub use self::disk::SimDisk;
use self::fabric::{Fabric, SimHash, SimHttp};
pub use self::net::SimNet;
pub use self::probe::Probe;
use self::probe::{Probed, Unprobed};
use self::state::SimState;
use crate::core::{Backends, Core};
use crate::ports::net::LocalAddresses;
use crate::wake::Waker;

/// One engine in a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub(crate) usize);

/// Engines, the network between them, and the clock.
pub struct Simulation {
    fabric: Arc<Mutex<Fabric>>,
    nodes: BTreeMap<NodeId, Node>,
    seed: u64,
}

struct Node {
    core: Core,
    next_tick: Timestamp,
    probe: Arc<dyn Probe>,
}

impl Simulation {
    /// A world without engines, in which bytes and results take `latency` to arrive.
    #[must_use]
    pub fn new(seed: u64, latency: Duration) -> Self {
        Self {
            fabric: Arc::new(Mutex::new(Fabric::new(latency))),
            nodes: BTreeMap::new(),
            seed,
        }
    }

    /// As [`Simulation::new`], without the trace, which costs more than all the rest.
    #[must_use]
    pub fn untraced(seed: u64, latency: Duration) -> Self {
        let simulation = Self::new(seed, latency);
        simulation.fabric().stop_tracing();
        simulation
    }

    /// Adds an engine at address `ip`, listening on the port of its first listen address.
    pub fn add_node<M>(&mut self, ip: IpAddr, settings: Settings, plugins: impl Plugins<M>) -> NodeId {
        self.add_probed_node(ip, settings, plugins, Arc::new(Unprobed))
    }

    /// As [`Simulation::add_node`], with `probe` around the engine's ticks and backends.
    pub fn add_probed_node<M>(
        &mut self,
        ip: IpAddr,
        settings: Settings,
        plugins: impl Plugins<M>,
        probe: Arc<dyn Probe>,
    ) -> NodeId {
        let port = settings.net.listen.first().map_or(6881, SocketAddr::port);
        let local = LocalAddresses(vec![(ip, port).into()]);
        let window = settings.net.receive_window_bytes;
        let id = self.fabric().add_node(local.0[0], window);
        let backends = Backends {
            net: Probed::new(SimNet::new(id, self.fabric.clone()), &probe),
            disk: Probed::new(SimDisk::new(id, self.fabric.clone()), &probe),
            hash: Probed::new(SimHash::new(id, self.fabric.clone()), &probe),
            http: Probed::new(SimHttp::new(id, self.fabric.clone()), &probe),
            state: Probed::new(SimState::new(id, self.fabric.clone()), &probe),
            local,
        };
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&(id.0 as u64).to_le_bytes());
        let core = Core::new(settings, backends, seed, Waker::none(), |app| {
            app.add_plugins(plugins);
        });
        let next_tick = self.now();
        let node = Node { core, next_tick, probe };
        self.nodes.insert(id, node);
        id
    }

    /// The world of an engine, to look into or to give commands to.
    ///
    /// # Panics
    /// Where there is no such engine in this simulation.
    pub fn node(&mut self, id: NodeId) -> &mut Core {
        &mut self.node_mut(id).core
    }

    /// Adds a host without an engine, whose connections are the caller's: it opens them with requests and polls what
    /// they bring, as much as there is. Any number of peers can be played with it.
    pub fn add_host(&mut self, address: SocketAddr) -> SimNet {
        let id = self.fabric().add_node(address, u32::MAX);
        SimNet::new(id, self.fabric.clone())
    }

    /// Adds a host that answers datagrams, like a UDP tracker: it hears the time, who asks and what, and returns the
    /// datagrams to send back.
    pub fn add_udp_host(
        &mut self,
        address: SocketAddr,
        answer: impl FnMut(Timestamp, SocketAddr, &[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) {
        self.fabric().udp_hosts.insert(address, Box::new(answer));
    }

    /// Puts a torrent's whole data into a folder of an engine's disk.
    pub fn put_data(&mut self, id: NodeId, root: impl Into<PathBuf>, bytes: Vec<u8>) {
        self.fabric().disks[id.0].put(root.into(), bytes);
    }

    /// A torrent's data in a folder of an engine's disk, if all of it has been written.
    #[must_use]
    pub fn data(&self, id: NodeId, root: impl AsRef<Path>) -> Option<Vec<u8>> {
        self.fabric().disks[id.0].get(root.as_ref()).map(<[u8]>::to_vec)
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.fabric().now()
    }

    /// A digest of everything that has happened, in its order; 0 without a trace.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.fabric().trace()
    }

    /// Makes an engine tick at the next step, because it was given a command from outside.
    pub fn nudge(&mut self, id: NodeId) {
        self.node_mut(id).next_tick = self.now();
    }

    /// Goes on until `is_done` holds, which is looked at after every step, or `limit` has come; true if it holds.
    pub fn run_until(&mut self, limit: Timestamp, mut is_done: impl FnMut(&mut Self) -> bool) -> bool {
        loop {
            if is_done(self) {
                return true;
            }
            if !self.step(limit) {
                return false;
            }
        }
    }

    /// Jumps to the next moment at which anything happens, and lets it happen; false beyond `limit`.
    fn step(&mut self, limit: Timestamp) -> bool {
        let ticks = self.nodes.values().map(|node| node.next_tick).min();
        let event = self.fabric().next_event();
        let Some(next) = ticks.into_iter().chain(event).min().filter(|next| *next <= limit) else {
            return false;
        };
        let reached = self.fabric().advance_to(next);
        let now = self.now();
        for (id, node) in &mut self.nodes {
            if node.next_tick <= now || reached.contains(id) {
                // As in a real engine, a world that always has more to do still lets time pass.
                let least = Duration::from_micros(node.core.world().resource::<Settings>().tick.min_interval_us);
                let Node { core, next_tick, probe } = node;
                probe.tick(&mut || *next_tick = core.tick(now).max(now + least));
            }
        }
        true
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("an engine of this simulation")
    }

    fn fabric(&self) -> MutexGuard<'_, Fabric> {
        lock(&self.fabric)
    }
}

fn lock(fabric: &Mutex<Fabric>) -> MutexGuard<'_, Fabric> {
    fabric.lock().unwrap_or_else(PoisonError::into_inner)
}
