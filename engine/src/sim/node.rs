//! A simulated machine with an engine on it.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bevy_app::{App, Plugins};
use ecs_torrent_components::settings::{Settings, millis};
use ecs_torrent_protocol::time::Timestamp;

use super::NodeId;
use super::deferred::{CarryOut, Deferred};
use super::disk::{DiskSpeed, SimDisk};
use super::fabric::{Fabric, lock};
use super::hash::SimHash;
use super::http::SimHttp;
use super::net::{Access, SimNet};
use super::probe::{Probe, Unprobed};
use super::state::SimState;
use crate::core::{Backends, Core};
use crate::layers;
use crate::ports::net::LocalAddresses;
use crate::ports::state::settings_blob;
use crate::wake::Waker;

/// Start date of every simulation, as a time since 1970.
const EPOCH: Duration = Duration::from_secs(1_700_000_000);

/// Parameters of a new node.
#[derive(Clone)]
pub struct NewNode {
    pub(super) ip: IpAddr,
    pub(super) settings: Settings,
    pub(super) add_plugins: Rc<dyn Fn(&mut App)>,
    pub(super) access: Access,
    pub(super) disk: DiskSpeed,
    pub(super) probe: Arc<dyn Probe>,
}

impl NewNode {
    /// An engine with these plugins at `ip`, on the port of its first listen address. Its access link is unlimited, its
    /// disk is [`DiskSpeed::default`].
    #[must_use]
    pub fn new<M>(ip: IpAddr, settings: Settings, plugins: impl Plugins<M> + Clone + 'static) -> Self {
        Self {
            ip,
            settings,
            add_plugins: Rc::new(move |app| {
                app.add_plugins(plugins.clone());
            }),
            access: Access::default(),
            disk: DiskSpeed::default(),
            probe: Arc::new(Unprobed),
        }
    }

    /// Adds plugins after the others.
    #[must_use]
    pub fn plugins<M>(mut self, plugins: impl Plugins<M> + Clone + 'static) -> Self {
        let earlier = self.add_plugins;
        self.add_plugins = Rc::new(move |app| {
            earlier(app);
            app.add_plugins(plugins.clone());
        });
        self
    }

    /// Sets the node's access link.
    #[must_use]
    pub fn access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// Sets the speed of the node's disk.
    #[must_use]
    pub fn disk(self, disk: DiskSpeed) -> Self {
        Self { disk, ..self }
    }

    /// Puts `probe` around the engine's ticks and backends.
    #[must_use]
    pub fn probe(self, probe: Arc<dyn Probe>) -> Self {
        Self { probe, ..self }
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let port = self.settings.net.listen.first().map_or(6881, SocketAddr::port);
        vec![SocketAddr::new(self.ip, port)]
    }
}

/// A node, up or down.
pub(super) struct Node {
    pub(super) new: NewNode,
    /// `None` while the node is down.
    pub(super) core: Option<Box<Core>>,
    /// Queues that hold the requests of the engine's ticks.
    backends: Vec<Box<dyn CarryOut>>,
    /// Time by which the engine's clock is ahead of the simulation's.
    pub(super) ahead: Duration,
    pub(super) ticks: u64,
    least_interval: Duration,
}

impl Node {
    pub(super) fn new(new: NewNode) -> Self {
        let least_interval = Duration::from_micros(new.settings.tick.min_interval_us);
        Self {
            new,
            core: None,
            backends: Vec::new(),
            ahead: Duration::ZERO,
            ticks: 0,
            least_interval,
        }
    }

    /// Builds the engine.
    pub(super) fn start(&mut self, id: NodeId, shared: &Arc<Mutex<Fabric>>) {
        let probe = &self.new.probe;
        let mut seed = [0; 32];
        let (local, layers) = {
            let fabric = lock(shared);
            seed[..8].copy_from_slice(&fabric.hub.seed.to_le_bytes());
            seed[8..16].copy_from_slice(&(id.0 as u64).to_le_bytes());
            seed[16..20].copy_from_slice(&fabric.machines[id.0].life.to_le_bytes());
            let saved = fabric.machines[id.0].state.blob(&settings_blob());
            (
                fabric.net.addresses_of(id),
                layers::read(&self.new.settings, saved.as_deref()),
            )
        };
        let net = Deferred::new(SimNet::new(id, shared.clone()), probe);
        let disk = Deferred::new(SimDisk::new(id, shared.clone()), probe);
        let hash = Deferred::new(SimHash::new(id, shared.clone()), probe);
        let http = Deferred::new(SimHttp::new(id, shared.clone()), probe);
        let state = Deferred::new(SimState::new(id, shared.clone()), probe);
        self.backends = vec![
            net.far_side(),
            disk.far_side(),
            hash.far_side(),
            http.far_side(),
            state.far_side(),
        ];
        let backends = Backends {
            net: Box::new(net),
            disk: Box::new(disk),
            hash: Box::new(hash),
            http: Box::new(http),
            state: Box::new(state),
            local: LocalAddresses(local),
        };
        let add_plugins = self.new.add_plugins.clone();
        let mut core = Core::new(layers.active.clone(), backends, seed, Waker::none(), &*add_plugins);
        core.world_mut().insert_resource(layers);
        core.set_epoch(EPOCH);
        self.core = Some(Box::new(core));
    }

    /// Takes the engine out of the node for a tick, if it is up.
    pub(super) fn begin_tick(&mut self, id: NodeId, now: Timestamp) -> Option<Ticking> {
        let core = self.core.take()?;
        Some(Ticking {
            id,
            now: now + self.ahead,
            next: now,
            probe: self.new.probe.clone(),
            core,
        })
    }

    /// Puts the engine back. Returns the least time to the next tick, and the due time of that tick by the simulation's
    /// clock.
    pub(super) fn end_tick(&mut self, ticking: Ticking) -> (Duration, Timestamp) {
        self.core = Some(ticking.core);
        self.ticks += 1;
        let next = Timestamp::ZERO + ticking.next.since(Timestamp::ZERO + self.ahead);
        (self.least_interval, next)
    }

    /// Carries out the engine's requests.
    pub(super) fn carry_out(&self) {
        self.backends.iter().for_each(|backend| backend.carry_out());
    }

    /// Timeout of an orderly close in the real backend.
    pub(super) fn close_timeout(&self) -> Duration {
        millis(self.new.settings.net.close_timeout_ms)
    }
}

/// An engine during its tick, on any thread.
pub(super) struct Ticking {
    pub(super) id: NodeId,
    now: Timestamp,
    /// The next deadline, by the engine's own clock.
    next: Timestamp,
    probe: Arc<dyn Probe>,
    core: Box<Core>,
}

impl Ticking {
    pub(super) fn tick(&mut self) {
        let Self { now, next, core, .. } = self;
        let _span = tracing::info_span!("tick", node = self.id.0, at = ?now.since(Timestamp::ZERO)).entered();
        self.probe.tick(&mut || *next = core.tick(*now));
    }
}
