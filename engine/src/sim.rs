//! Simulated backends: many engines in one process, one virtual clock, no threads, no real I/O.
//!
//! The worlds cannot tell: they run the same plugins over the same ports. A [`Simulation`] jumps from one moment at
//! which something happens to the next. Everything that a world can observe is decided by the seed, and what happens
//! at the same time happens in the order of its making, so a seed determines a whole run; [`Simulation::trace`] proves
//! that it did.
//!
//! | to | use |
//! |---|---|
//! | add engines | [`NewNode`], [`Simulation::add`], [`Simulation::add_node`] |
//! | give torrents their data | [`NewContent`], [`Content`], [`Simulation::put`] |
//! | play peers and servers | [`Simulation::add_host`], [`Simulation::add_udp_host`], [`Simulation::add_http_host`] |
//! | have a tracker | [`Simulation::add_tracker`], [`SimTracker`], [`TrackerMode`] |
//! | shape and break the network | [`Simulation::net`], [`NetControl`], [`Access`], [`Path`], [`SocketLimits`] |
//! | break disks | [`Simulation::disk`], [`DiskControl`], [`Simulation::state`], [`StateControl`] |
//! | break looking names up | [`Simulation::names`], [`NameControl`] |
//! | end engines and begin them again | [`Simulation::crash`], [`Simulation::restart`], [`Simulation::suspend`] |
//! | let time pass | [`Simulation::run_until`], [`Simulation::step`], [`Simulation::on_tick`] |
//!
//! What is simulated: access links with bandwidth that connections share in turns, latency and jitter, sockets with
//! bounded buffers, datagrams, names, disks with space, faults and a platter, state folders, HTTP servers and trackers.
//! What is not: packets, congestion beyond a fair share of the narrowest access link, TLS, the time that computing takes.

mod agenda;
mod content;
mod contents;
mod desk;
mod disk;
mod fabric;
mod hash;
mod http;
mod hub;
mod jobs;
mod names;
mod net;
mod node;
mod probe;
mod queue;
mod random;
mod servers;
mod slab;
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
use self::fabric::{Fabric, lock};
pub use self::http::HttpReply;
pub use self::names::{NameControl, NameService};
use self::net::Power;
pub use self::net::{Access, NetControl, Path, SimNet, SocketLimits, Traffic};
pub use self::node::{Crash, NewNode};
use self::node::{Node, Ticking};
pub use self::probe::Probe;
use self::queue::Happening;
pub use self::state::{StateControl, StateOperation};
pub use self::tracker::{AnnounceCounts, Announced, SimTracker, TrackerMode, TrackerOptions};
use crate::core::Core;

/// A host in a simulation, with an engine or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) usize);

/// What looks at an engine after each of its ticks.
type TickHook = Box<dyn FnMut(NodeId, &mut Core, Timestamp)>;

/// Engines, the machines they run on, the network between them, and the clock.
pub struct Simulation {
    fabric: Arc<Mutex<Fabric>>,
    nodes: BTreeMap<NodeId, Node>,
    hook: Option<TickHook>,
    /// Who ticks worlds, where it is not the caller's thread alone.
    pool: Option<rayon::ThreadPool>,
}

impl Simulation {
    /// A world without engines, in which it takes `latency` from one host to another.
    #[must_use]
    pub fn new(seed: u64, latency: Duration) -> Self {
        Self {
            fabric: Arc::new(Mutex::new(Fabric::new(seed, Path::new(latency)))),
            nodes: BTreeMap::new(),
            hook: None,
            pool: None,
        }
    }

    /// As [`Simulation::new`], without the trace: for who measures what engines cost.
    #[must_use]
    pub fn untraced(seed: u64, latency: Duration) -> Self {
        let simulation = Self::new(seed, latency);
        simulation.fabric().hub.trace = None;
        simulation
    }

    /// Lets engines tick at multiples of `beat` only, so that many do so at the same moment, and those on `threads`
    /// threads. What happens is the same with any number of threads. An engine whose plugins keep things that are not
    /// `Send` in its world needs one thread.
    ///
    /// # Panics
    /// Where the system gives no threads.
    pub fn set_beat(&mut self, beat: Duration, threads: usize) {
        self.fabric().hub.agenda.beat = beat;
        let build = || rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        self.pool = (threads > 1).then(|| build().expect("threads to tick on"));
    }

    /// Adds an engine, which ticks first at the next step.
    pub fn add(&mut self, new: NewNode) -> NodeId {
        let mut node = Node::new(new);
        let id = {
            let mut fabric = self.fabric();
            let id = fabric.add_node(node.new.addresses(), Some(node.new.settings.net.first_window()));
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

    /// The world of an engine, to look into or to give commands to.
    ///
    /// # Panics
    /// Where there is no such engine in this simulation, or it is down.
    pub fn node(&mut self, id: NodeId) -> &mut Core {
        self.node_mut(id).core.as_deref_mut().expect("an engine that is up")
    }

    /// Whether a node's engine is there.
    #[must_use]
    pub fn is_up(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.core.is_some())
    }

    /// The nodes that have an engine, or had one.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.keys().copied()
    }

    /// Adds a host without an engine, whose connections are the caller's: it opens them with requests and polls what
    /// they bring, as much as there is. Any number of peers can be played with it.
    pub fn add_host(&mut self, address: SocketAddr) -> SimNet {
        let id = self.fabric().add_node(vec![address], None);
        SimNet::new(id, self.fabric.clone())
    }

    /// A hand on the network.
    #[must_use]
    pub fn net(&self) -> NetControl<'_> {
        let fabric = &self.fabric;
        NetControl { fabric }
    }

    /// A hand on a node's disk.
    #[must_use]
    pub fn disk(&self, node: NodeId) -> DiskControl<'_> {
        let fabric = &self.fabric;
        DiskControl { fabric, node }
    }

    /// An eye on a node's disk, for who looks while the simulation goes on.
    #[must_use]
    pub fn disk_view(&self, node: NodeId) -> DiskView {
        let fabric = self.fabric.clone();
        DiskView { fabric, node }
    }

    /// A hand on a node's state folder.
    #[must_use]
    pub fn state(&self, node: NodeId) -> StateControl<'_> {
        let fabric = &self.fabric;
        StateControl { fabric, node }
    }

    /// A hand on the names of hosts.
    #[must_use]
    pub fn names(&self) -> NameControl<'_> {
        let fabric = &self.fabric;
        NameControl { fabric }
    }

    /// Puts a torrent's whole data into a folder of an engine's disk.
    pub fn put(&mut self, id: NodeId, root: impl AsRef<FilePath>, content: &Content) {
        self.disk(id).put(root, content.files(), content.bytes());
    }

    /// Whether a torrent's data is in a folder of an engine's disk, all of it, and right.
    #[must_use]
    pub fn has(&self, id: NodeId, root: impl AsRef<FilePath>, content: &Content) -> bool {
        let (files, bytes) = (content.files(), content.bytes());
        self.disk(id)
            .data(root, files)
            .is_some_and(|data| data.as_ptr() == bytes.as_ptr() || data == bytes)
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.fabric().hub.now
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.fabric().hub.seed
    }

    /// A digest of everything that has happened, in its order; 0 without a trace.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.fabric().hub.trace.as_ref().map_or(0, trace::Trace::digest)
    }

    /// How many things were planned to happen so far: what simulating costs, beside the engines' ticks.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.fabric().hub.queue.planned()
    }

    /// Ticks of an engine so far, those before a restart included.
    #[must_use]
    pub fn tick_count(&self, id: NodeId) -> u64 {
        self.nodes.get(&id).map_or(0, |node| node.ticks)
    }

    /// Makes an engine tick as soon as it may, because it was given a command from outside.
    pub fn nudge(&mut self, id: NodeId) {
        let mut fabric = self.fabric();
        let now = fabric.hub.now;
        fabric.hub.agenda.wake(id, now);
    }

    /// Calls `hook` after every tick of an engine, with the engine and the time, in the place of an earlier one.
    pub fn on_tick(&mut self, hook: impl FnMut(NodeId, &mut Core, Timestamp) + 'static) {
        self.hook = Some(Box::new(hook));
    }

    /// Ends an engine in the middle of what it does. What was not told to its world is lost; see [`Crash`] for its
    /// connections and disk. It stays down until [`Simulation::restart`].
    pub fn crash(&mut self, id: NodeId, crash: Crash) {
        self.node_mut(id).core = None;
        self.fabric().crash(id, crash);
    }

    /// Begins an engine again over the same disk and state folder, which ticks first at the next step. Torrents that
    /// are to be resumed are so by a command of the caller's, as in a program. One that is up is killed first.
    pub fn restart(&mut self, id: NodeId) {
        if self.is_up(id) {
            self.crash(id, Crash::Process);
        }
        self.fabric().revive(id);
        let fabric = self.fabric.clone();
        self.node_mut(id).start(id, &fabric);
    }

    /// Lets an engine and its machine sleep: it does not tick, and nothing reaches it; then all of that at once. Its
    /// clock goes on meanwhile.
    pub fn suspend(&mut self, id: NodeId, time: Duration) {
        let mut fabric = self.fabric();
        let fabric = &mut *fabric;
        let until = fabric.hub.now + time;
        fabric.hub.agenda.suspend(id, until);
        fabric.net.set_power(&mut fabric.hub, id, Power::Off);
        fabric.hub.plan(time, Happening::Awake(id));
    }

    /// Moves an engine's clock forward, without anything happening meanwhile.
    pub fn jump_clock(&mut self, id: NodeId, by: Duration) {
        self.node_mut(id).ahead += by;
        self.nudge(id);
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

    /// Lets `time` pass.
    pub fn run_for(&mut self, time: Duration) {
        let limit = self.now() + time;
        while self.step(limit) {}
    }

    /// Jumps to the next moment at which an engine ticks or a host has something to poll, and lets that happen; false,
    /// and the time is `limit`, where there is none until then.
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

    /// Lets engines tick that are due at the same moment: none of them sees what another one does in it.
    fn tick(&mut self, due: &[NodeId], now: Timestamp) {
        let begin = |id: &NodeId| self.nodes.get_mut(id)?.begin_tick(*id, now);
        let mut ticking: Vec<Ticking> = due.iter().filter_map(begin).collect();
        match &self.pool {
            Some(pool) if ticking.len() > 1 => {
                // One by one: some ticks take many times as long as others.
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
                hub.note(id, 0);
                hub.agenda.ticked(id, now, least, next);
            }
            // What comes of it at once is heard in the next tick, as from a real engine's backends.
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
