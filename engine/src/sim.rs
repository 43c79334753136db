//! Simulated backends: many engines in one process, one virtual clock, no threads, no real I/O.
//!
//! Worlds run the same plugins over the same ports as in a real engine. A [`Simulation`] jumps from one event to the
//! next. The seed decides everything that a world can observe, and events at the same time run in the order in which
//! they were scheduled, so a seed determines a whole run. [`Simulation::trace`] is a digest that proves it.
//!
//! | to | use |
//! |---|---|
//! | add engines | [`NewNode`], [`Simulation::add`], [`Simulation::add_node`] |
//! | give torrents their data | [`NewContent`], [`Content`], [`Simulation::put`] |
//! | play peers and servers | [`Simulation::add_host`], [`Simulation::add_udp_host`], [`Simulation::add_http_host`] |
//! | run a tracker | [`Simulation::add_tracker`], [`SimTracker`], [`TrackerMode`] |
//! | shape and break the network | [`Simulation::net`], [`NetControl`], [`Access`], [`Path`], [`SocketLimits`] |
//! | break disks | [`Simulation::disk`], [`DiskControl`], [`Simulation::state`], [`StateControl`] |
//! | break name resolution | [`Simulation::names`], [`NameControl`] |
//! | stop and restart engines | [`Simulation::crash`], [`Simulation::restart`], [`Simulation::suspend`] |
//! | advance the time | [`Simulation::run_until`], [`Simulation::step`], [`Simulation::on_tick`] |
//!
//! ```
//! use std::time::Duration;
//! use bevy_app::App;
//! use bevy_ecs::prelude::*;
//! use ecs_torrent_components::settings::Settings;
//! use ecs_torrent_engine::schedule::Tick;
//! use ecs_torrent_engine::sim::Simulation;
//!
//! /// The number of ticks, one per minute.
//! #[derive(Resource, Default)]
//! struct Minutes(u32);
//!
//! fn count(mut minutes: ResMut<Minutes>) {
//!     minutes.0 += 1;
//! }
//!
//! let plugin = |app: &mut App| {
//!     app.init_resource::<Minutes>().add_systems(Tick, count);
//! };
//! let mut settings = Settings::default();
//! settings.tick.max_interval_ms = 60_000;
//! let mut sim = Simulation::new(7, Duration::from_millis(20));
//! let node = sim.add_node([10, 0, 0, 1].into(), settings, plugin);
//! // An hour passes in a moment.
//! sim.run_for(Duration::from_secs(3600));
//! let minutes = sim.node(node).world().resource::<Minutes>().0;
//! assert!((60..=62).contains(&minutes), "{minutes}");
//! ```
//!
//! Simulated: access links whose bandwidth is shared by their connections in round-robin order, latency and jitter,
//! sockets with bounded buffers, datagrams, name resolution, disks with limited space, faults and durable state, state
//! folders, HTTP servers and trackers. Not simulated: packets, congestion beyond a fair share of the narrowest access
//! link, TLS, computing time.

mod agenda;
mod content;
mod contents;
mod deferred;
mod disk;
mod fabric;
mod flow;
mod hash;
mod http;
mod hub;
mod keys;
mod names;
mod net;
mod node;
mod place;
mod probe;
mod queue;
mod random;
mod servers;
mod state;
#[cfg(test)]
mod tests;
mod trace;
mod tracker;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bevy_app::Plugins;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_protocol::time::Timestamp;
use rayon::prelude::*;

pub use self::content::{Content, NewContent};
pub use self::disk::{DiskControl, DiskFault, DiskOperation, DiskSpeed, DiskView, Lasting, SimDisk};
pub use self::fabric::Crash;
use self::fabric::{Fabric, lock};
pub use self::http::HttpReply;
pub use self::names::{NameControl, NameService};
use self::net::Power;
pub use self::net::{Access, Carrier, NetControl, Path, SimNet, SocketLimits, Traffic};
pub use self::node::NewNode;
use self::node::{Node, Ticking};
pub use self::probe::Probe;
use self::queue::SimEvent;
pub use self::state::{StateControl, StateOperation};
pub use self::tracker::{AnnounceCounts, Announced, SimTracker, TrackerMode, TrackerOptions};
use crate::core::Core;
use crate::port::Backend as _;
use crate::ports::net::DatagramKind;

/// A host in a simulation, with or without an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) usize);

/// A callback that inspects an engine after each of its ticks.
type TickHook = Box<dyn FnMut(NodeId, &mut Core, Timestamp)>;

/// Engines, the machines they run on, the network between them, and the clock.
pub struct Simulation {
    fabric: Arc<Mutex<Fabric>>,
    nodes: BTreeMap<NodeId, Node>,
    hook: Option<TickHook>,
    /// The threads that tick worlds; `None` ticks all of them on the caller's thread.
    pool: Option<rayon::ThreadPool>,
}

impl Simulation {
    /// Creates a simulation without engines, whose hosts are `latency` apart.
    #[must_use]
    pub fn new(seed: u64, latency: Duration) -> Self {
        Self {
            fabric: Arc::new(Mutex::new(Fabric::new(seed, Path::new(latency)))),
            nodes: BTreeMap::new(),
            hook: None,
            pool: None,
        }
    }

    /// As [`Simulation::new`], without the trace: for measuring the cost of engines.
    #[must_use]
    pub fn untraced(seed: u64, latency: Duration) -> Self {
        let simulation = Self::new(seed, latency);
        simulation.fabric().hub.trace = None;
        simulation
    }

    /// Restricts ticks to multiples of `tick_quantum`, so that many engines tick at the same moment, on `threads`
    /// threads. The number of threads does not change the results. An engine whose plugins keep non-`Send` data in its
    /// world needs one thread.
    ///
    /// # Panics
    /// If the system cannot create the threads.
    pub fn set_tick_quantum(&mut self, tick_quantum: Duration, threads: usize) {
        self.fabric().hub.agenda.tick_quantum = tick_quantum;
        let build = || rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        self.pool = (threads > 1).then(|| build().expect("threads to tick on"));
    }

    /// Adds an engine, whose first tick is at the next step.
    pub fn add(&mut self, new: NewNode) -> NodeId {
        let mut node = Node::new(new);
        let id = {
            let mut fabric = self.fabric();
            let id = fabric.add_node(node.new.addresses(), true);
            fabric.net.set_close_timeout(id, node.close_timeout());
            fabric.machines[id.0].disk.speed = node.new.disk;
            id
        };
        self.net().set_access(id, node.new.access);
        node.start(id, &self.fabric);
        self.nodes.insert(id, node);
        self.nudge(id);
        id
    }

    /// Adds an engine at address `ip`, listening on the port of its first listen address; see [`NewNode::new`].
    pub fn add_node<M>(
        &mut self,
        ip: IpAddr,
        settings: Settings,
        plugins: impl Plugins<M> + Clone + 'static,
    ) -> NodeId {
        self.add(NewNode::new(ip, settings, plugins))
    }

    /// Returns an engine's world, to inspect it or to give it commands.
    ///
    /// # Panics
    /// If this simulation has no such engine, or the engine is down.
    pub fn node(&mut self, id: NodeId) -> &mut Core {
        self.node_mut(id).core.as_deref_mut().expect("an engine that is up")
    }

    /// Whether a node's engine is up.
    #[must_use]
    pub fn is_up(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.core.is_some())
    }

    /// All nodes that have or had an engine.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.keys().copied()
    }

    /// Adds a host without an engine, whose connections the caller handles: it opens them with requests and polls their
    /// events, without a limit on bytes. One host can play any number of peers.
    pub fn add_host(&mut self, address: SocketAddr) -> SimNet {
        let id = self.fabric().add_node(vec![address], false);
        let mut net = SimNet::new(id, self.fabric.clone());
        for kind in DatagramKind::ALL {
            net.open_inbox(kind.purpose());
        }
        net
    }

    /// Controls the network.
    #[must_use]
    pub fn net(&self) -> NetControl<'_> {
        let fabric = &self.fabric;
        NetControl { fabric }
    }

    /// Controls a node's disk.
    #[must_use]
    pub fn disk(&self, node: NodeId) -> DiskControl<'_> {
        let fabric = &self.fabric;
        DiskControl { fabric, node }
    }

    /// A view of a node's disk that stays usable while the simulation runs.
    #[must_use]
    pub fn disk_view(&self, node: NodeId) -> DiskView {
        let fabric = self.fabric.clone();
        DiskView { fabric, node }
    }

    /// Controls a node's state folder.
    #[must_use]
    pub fn state(&self, node: NodeId) -> StateControl<'_> {
        let fabric = &self.fabric;
        StateControl { fabric, node }
    }

    /// Controls name resolution.
    #[must_use]
    pub fn names(&self) -> NameControl<'_> {
        let fabric = &self.fabric;
        NameControl { fabric }
    }

    /// Puts a torrent's whole data into a folder of an engine's disk.
    pub fn put(&mut self, id: NodeId, root: impl AsRef<FilePath>, content: &Content) {
        self.disk(id).put(root, content.files(), content.bytes());
    }

    /// Whether a folder of an engine's disk holds a torrent's whole data, with the right bytes.
    #[must_use]
    pub fn has(&self, id: NodeId, root: impl AsRef<FilePath>, content: &Content) -> bool {
        let (files, bytes) = (content.files(), content.bytes());
        self.disk(id)
            .data(root, files)
            .is_some_and(|data| data.as_ptr() == bytes.as_ptr() || data == bytes)
    }

    /// The simulated time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.fabric().hub.now
    }

    /// The seed of the simulation.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.fabric().hub.seed
    }

    /// A digest of all events so far, in their order; 0 without a trace.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.fabric().hub.trace.as_ref().map_or(0, trace::Trace::digest)
    }

    /// Number of events scheduled so far: the cost of simulating, apart from the engines' ticks.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.fabric().hub.queue.planned()
    }

    /// Number of an engine's ticks so far, including those before a restart.
    #[must_use]
    pub fn tick_count(&self, id: NodeId) -> u64 {
        self.nodes.get(&id).map_or(0, |node| node.ticks)
    }

    /// Makes an engine tick as soon as its tick interval allows, after the caller gave it a command.
    pub fn nudge(&mut self, id: NodeId) {
        let mut fabric = self.fabric();
        let now = fabric.hub.now;
        fabric.hub.agenda.wake(id, now);
    }

    /// Calls `hook` after every tick of an engine, with the engine and the time. Replaces an earlier hook.
    pub fn on_tick(&mut self, hook: impl FnMut(NodeId, &mut Core, Timestamp) + 'static) {
        self.hook = Some(Box::new(hook));
    }

    /// Stops an engine abruptly. Events that its world has not received are lost; see [`Crash`] for its connections and
    /// disk. The engine stays down until [`Simulation::restart`].
    pub fn crash(&mut self, id: NodeId, crash: Crash) {
        self.node_mut(id).core = None;
        self.fabric().crash(id, crash);
    }

    /// Starts an engine again over the same disk and state folder; its first tick is at the next step. The caller
    /// resumes torrents with a command, as a program does. An engine that is up is killed first.
    pub fn restart(&mut self, id: NodeId) {
        if self.is_up(id) {
            self.crash(id, Crash::Process);
        }
        self.fabric().revive(id);
        let fabric = self.fabric.clone();
        self.node_mut(id).start(id, &fabric);
    }

    /// Puts an engine and its machine to sleep for `time`: the engine does not tick, and nothing reaches it. On waking,
    /// everything that was held back is delivered at once. The clock keeps running meanwhile.
    pub fn suspend(&mut self, id: NodeId, time: Duration) {
        let mut fabric = self.fabric();
        let fabric = &mut *fabric;
        let until = fabric.hub.now + time;
        fabric.hub.agenda.suspend(id, until);
        fabric.net.set_power(&mut fabric.hub, id, Power::Off);
        fabric.hub.plan(time, SimEvent::Awake(id));
    }

    /// Moves an engine's clock forward by `by`, without any event in between.
    pub fn jump_clock(&mut self, id: NodeId, by: Duration) {
        self.node_mut(id).ahead += by;
        self.nudge(id);
    }

    /// Steps until `is_done` returns true, checked before every step, or until `limit`; returns whether it did.
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

    /// Runs the simulation for `time`.
    pub fn run_for(&mut self, time: Duration) {
        let limit = self.now() + time;
        while self.step(limit) {}
    }

    /// Jumps to the next moment at which an engine ticks or a host has something to poll, and runs it. Returns false if
    /// there is none until `limit`; the time is `limit` then.
    pub fn step(&mut self, limit: Timestamp) -> bool {
        let mut due = Vec::new();
        let now = {
            let mut fabric = self.fabric();
            let Some(now) = fabric.advance(limit) else {
                if limit < Timestamp::NEVER {
                    fabric.hub.now = fabric.hub.now.max(limit);
                }
                return false;
            };
            while let Some(node) = fabric.hub.agenda.pop(now) {
                due.push(node);
            }
            now
        };
        self.tick(&due, now);
        true
    }

    /// Ticks engines that are due at the same moment; none of them sees the effects of another one's tick.
    fn tick(&mut self, due: &[NodeId], now: Timestamp) {
        let begin = |id: &NodeId| self.nodes.get_mut(id)?.begin_tick(*id, now);
        let mut ticking: Vec<Ticking> = due.iter().filter_map(begin).collect();
        match &self.pool {
            Some(pool) if ticking.len() > 1 => {
                // One by one, because some ticks take many times as long as others.
                pool.install(|| ticking.par_iter_mut().with_max_len(1).for_each(Ticking::tick));
            }
            _ => ticking.iter_mut().for_each(Ticking::tick),
        }
        let fabric = self.fabric.clone();
        for ticking in ticking {
            let id = ticking.id;
            let node = self.node_mut(id);
            let (least, next) = node.end_tick(ticking);
            {
                let hub = &mut lock(&fabric).hub;
                hub.record(id, 0);
                hub.agenda.ticked(id, now, least, next);
            }
            // The engine handles immediate results in its next tick, as with real backends.
            node.carry_out();
            if let (Some(hook), Some(core)) = (
                &mut self.hook,
                self.nodes.get_mut(&id).and_then(|node| node.core.as_mut()),
            ) {
                hook(id, core, now);
            }
        }
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("an engine of this simulation")
    }

    fn fabric(&self) -> MutexGuard<'_, Fabric> {
        lock(&self.fabric)
    }
}
