//! Everything that outlives the engines of a simulation: the events, the machines, and the network between them.

mod http;
mod jobs;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bevy_platform::collections::HashMap;
use ecs_torrent_protocol::time::Timestamp;
use slotmap::SlotMap;

use self::http::HttpFlow;
use self::jobs::Job;
pub(super) use self::jobs::Work;
use super::NodeId;
use super::disk::Disk;
use super::http::HttpHost;
use super::hub::Hub;
use super::keys::JobKey;
use super::names::Names;
use super::net::{Network, Path, Power};
use super::queue::SimEvent;
use super::state::StateFolder;
use crate::port::JobTag;
use crate::ports::net::NetEvent;

pub(super) struct Fabric {
    pub(super) hub: Hub,
    pub(super) net: Network,
    pub(super) names: Names,
    pub(super) machines: Vec<Machine>,
    jobs: SlotMap<JobKey, Job>,
    pub(super) http_hosts: BTreeMap<SocketAddr, HttpHost>,
    /// Requests whose answers are not complete, by their tags.
    http_flows: HashMap<(NodeId, JobTag), HttpFlow>,
}

/// An abrupt end of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed. The system closes its connections, refuses new ones, and keeps written data.
    Process,
    /// The machine loses power. Its peers are not notified and get no answers. Data that was written and not synced
    /// survives at random.
    Power,
}

/// The disk and state folder of a node, in addition to its network host.
pub(super) struct Machine {
    /// Number of engines that the node has had.
    pub(super) life: u32,
    pub(super) disk: Disk,
    pub(super) state: StateFolder,
}

impl Fabric {
    pub(super) fn new(seed: u64, path: Path) -> Self {
        Self {
            hub: Hub::new(seed),
            net: Network::new(path),
            names: Names::default(),
            machines: Vec::new(),
            jobs: SlotMap::with_key(),
            http_hosts: BTreeMap::new(),
            http_flows: HashMap::default(),
        }
    }

    pub(super) fn add_node(&mut self, addresses: Vec<SocketAddr>, has_credit: bool) -> NodeId {
        let id = self.net.add_host(&mut self.hub, addresses, has_credit);
        self.machines.push(Machine {
            life: 0,
            disk: Disk::new(self.hub.seed, id),
            state: StateFolder::new(self.hub.seed, id),
        });
        id
    }

    /// Runs all events before the next tick, up to `limit`. Returns the time of that tick, or `None` if none is due
    /// until then.
    pub(super) fn advance(&mut self, limit: Timestamp) -> Option<Timestamp> {
        loop {
            let tick = self.hub.agenda.next().map(|(at, _)| at);
            match self.hub.queue.next() {
                Some(event) if event <= limit && tick.is_none_or(|tick| event <= tick) => {
                    let (at, what) = self.hub.queue.pop()?;
                    self.hub.now = self.hub.now.max(at);
                    self.happen(what);
                }
                _ => {
                    let tick = tick.filter(|tick| *tick <= limit)?;
                    self.hub.now = self.hub.now.max(tick);
                    return Some(self.hub.now);
                }
            }
        }
    }

    /// Looks a name up for a node.
    pub(super) fn resolve(&mut self, node: NodeId, tag: JobTag, host: &str, port: u16) {
        let (time, found) = self.names.look_up(host);
        let result = found.map(|ips| ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect());
        self.begin(node, time, Work::Name(NetEvent::Resolved { tag, result }));
    }

    fn happen(&mut self, what: SimEvent) {
        match what {
            SimEvent::Job(key) => self.finish(key),
            SimEvent::Awake(node) => self.net.set_power(&mut self.hub, node, Power::On),
            what => self.net.happen(&mut self.hub, what),
        }
    }
}

pub(super) fn lock(fabric: &Mutex<Fabric>) -> MutexGuard<'_, Fabric> {
    fabric.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fabric {
    /// Ends the work of a node's engine.
    pub(super) fn crash(&mut self, node: NodeId, crash: Crash) {
        let unfinished = self.take_jobs(node);
        self.machines[node.0].life += 1;
        self.hub.clear_inbox(node);
        self.hub.agenda.retire(node);
        self.hub.record(node, 100);
        self.net.drop_connections(&mut self.hub, node, crash == Crash::Power);
        let power = match crash {
            Crash::Process => Power::Idle,
            Crash::Power => Power::Off,
        };
        self.net.set_power(&mut self.hub, node, power);
        self.lose(node, crash, unfinished);
    }

    fn lose(&mut self, node: NodeId, crash: Crash, unfinished: Vec<Work>) {
        let machine = &mut self.machines[node.0];
        let mut saves = Vec::new();
        for work in unfinished {
            match work {
                // A job in progress may have reached the disk.
                Work::Disk(job) => machine.disk.interrupt(&self.hub, job),
                Work::State(request) => saves.push(request),
                _ => {}
            }
        }
        machine.state.interrupt(saves);
        if crash == Crash::Power {
            machine.state.crash();
            machine.disk.crash(self.hub.now);
        }
    }

    /// Makes a node answer and tick again.
    pub(super) fn revive(&mut self, node: NodeId) {
        let now = self.hub.now;
        self.hub.record(node, 101);
        self.hub.agenda.revive(node, now);
        self.net.set_power(&mut self.hub, node, Power::On);
    }
}
