//! An engine without its thread: a world and its ports, advanced one step at a time.

use std::time::Duration;

use bevy_app::{App, SubApp};
use bevy_ecs::error::{BevyError, ErrorContext, FallbackErrorHandler};
use bevy_ecs::prelude::*;
use ecs_torrent_components::candidates::Candidates;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{AddOptions, AddTorrent, Reply, TorrentSource, UnfetchedTorrent};
use ecs_torrent_components::hints::KeptHints;
use ecs_torrent_components::lifecycle::Desired;
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::{Settings, millis};
use ecs_torrent_components::tick_times::TickTimes;
use ecs_torrent_components::torrent::{Content, Storage, Torrent};
use ecs_torrent_components::tracker::{Tracker, TrackerTiers};
use ecs_torrent_protocol::time::Timestamp;

use crate::mailbox::{EngineHandle, Mailbox};
use crate::port::Port;
use crate::ports::disk::{DiskEvent, DiskRequest};
use crate::ports::hash::{HashEvent, HashRequest};
use crate::ports::http::{HttpEvent, HttpRequest};
use crate::ports::net::{LocalAddresses, NetEvent, NetRequest, Streams};
use crate::ports::state::{StateEvent, StateRequest};
use crate::ports::{DiskPort, HashPort, HttpPort, NetPort, StatePort};
use crate::schedule::{self, Tick, TickSet};
use crate::wake::Waker;

/// The backends behind an engine's ports.
pub struct Backends {
    /// Behind the Net port.
    pub net: Box<dyn crate::port::Backend<NetRequest, NetEvent>>,
    /// Behind the Disk port.
    pub disk: Box<dyn crate::port::Backend<DiskRequest, DiskEvent>>,
    /// Behind the Hash port.
    pub hash: Box<dyn crate::port::Backend<HashRequest, HashEvent>>,
    /// Behind the Http port.
    pub http: Box<dyn crate::port::Backend<HttpRequest, HttpEvent>>,
    /// Behind the State port.
    pub state: Box<dyn crate::port::Backend<StateRequest, StateEvent>>,
    /// The addresses that the Net port listens on.
    pub local: LocalAddresses,
}

/// A world with its schedule and ports, advanced by a runner or a simulator.
pub struct Core {
    app: SubApp,
    handle: EngineHandle,
}

impl Core {
    /// Builds a world from settings, backends, a seed for its randomness, and the plugins that `add_plugins` adds.
    pub fn new(
        settings: Settings,
        backends: Backends,
        seed: [u8; 32],
        waker: Waker,
        add_plugins: impl FnOnce(&mut App),
    ) -> Self {
        let (mailbox, handle) = Mailbox::new(waker);
        let mut core = Self::with_handle(settings, backends, seed, handle, add_plugins);
        core.world_mut().insert_resource(mailbox);
        core
    }

    /// Like [`Core::new`], but the caller inserts the mailbox.
    pub(crate) fn with_handle(
        settings: Settings,
        backends: Backends,
        seed: [u8; 32],
        handle: EngineHandle,
        add_plugins: impl FnOnce(&mut App),
    ) -> Self {
        let mut app = App::empty();
        schedule::add_tick(&mut app);
        app.insert_resource(FallbackErrorHandler(log_error))
            .insert_resource(settings)
            .insert_resource(Random::from_seed(seed))
            .insert_resource(backends.local)
            .insert_resource(Port::new(backends.net))
            .insert_resource(Port::new(backends.disk))
            .insert_resource(Port::new(backends.hash))
            .insert_resource(Port::new(backends.http))
            .insert_resource(Port::new(backends.state))
            .init_resource::<Clock>()
            .init_resource::<Wakeup>()
            .init_resource::<TickTimes>()
            .init_resource::<Streams>();
        app.add_systems(Tick, (drain_ports, deliver_mail).chain().in_set(IntakeFromPorts))
            .configure_sets(Tick, IntakeFromPorts.in_set(TickSet::Intake))
            .add_systems(Tick, flush_ports.in_set(FlushToPorts))
            .configure_sets(Tick, FlushToPorts.in_set(TickSet::Flush));
        add_plugins(&mut app);
        app.finish();
        app.cleanup();
        let app = std::mem::take(app.main_mut());
        Self { app, handle }
    }

    /// Returns the sending end of the mailbox.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Returns the world.
    #[must_use]
    pub fn world(&self) -> &World {
        self.app.world()
    }

    /// Returns the world mutably, for queries and for preparation.
    pub fn world_mut(&mut self) -> &mut World {
        self.app.world_mut()
    }

    /// Extracts the mailbox, and commands that add the listed torrents again, from a world left inconsistent by a
    /// panic. Torrents that are to leave the list are left out. The saved session of each torrent determines its
    /// verified pieces.
    pub(crate) fn salvage(&mut self) -> (Option<Mailbox>, Vec<AddTorrent>) {
        let world = self.app.world_mut();
        let mut trackers = world.query::<&Tracker>();
        let mut query = world.query::<(
            &Torrent,
            Option<&Content>,
            &TrackerTiers,
            &Storage,
            &Candidates,
            Option<&KeptHints>,
            &Desired,
        )>();
        let mut listed: Vec<_> = query
            .iter(world)
            .filter(|(.., desired)| !desired.is_leaving())
            .map(|(torrent, content, tiers, storage, candidates, hints, _)| {
                let known = candidates.best(world.resource::<Settings>().session.max_peers);
                let (named, others) = known
                    .into_iter()
                    .partition(|address| candidates.is_user_named(*address));
                let options = AddOptions {
                    root: Some(storage.root.clone()),
                    peers: named,
                    ..AddOptions::default()
                };
                let urls = trackers.iter_many(world, tiers.0.iter()).flatten();
                let source = content.map_or_else(
                    || {
                        TorrentSource::InfoHash(UnfetchedTorrent {
                            info_hash: torrent.id(),
                            name: Some(torrent.name.to_string()),
                            trackers: urls.map(|tracker| vec![tracker.url.to_string()]).collect(),
                            peers: others,
                            hints: hints.map(|hints| hints.0.clone()).unwrap_or_default(),
                        })
                    },
                    |content| content.0.clone().into(),
                );
                let command = AddTorrent {
                    source,
                    options,
                    is_resumed: true,
                    reply: Reply::ignored(),
                };
                ((torrent.added, torrent.id()), command)
            })
            .collect();
        listed.sort_by_key(|(order, _)| *order);
        let commands = listed.into_iter().map(|(_, command)| command).collect();
        (world.remove_resource(), commands)
    }

    /// Sets the date of [`Timestamp::ZERO`] as a time since 1970 (UTC).
    pub fn set_epoch(&mut self, epoch: Duration) {
        self.world_mut().resource_mut::<Clock>().set_epoch(epoch);
    }

    /// Runs one tick at `now` and returns when the next tick is due if no port delivers an event earlier.
    pub fn tick(&mut self, now: Timestamp) -> Timestamp {
        let world = self.app.world_mut();
        let longest = millis(world.resource::<Settings>().tick.max_interval_ms);
        world.resource_mut::<Clock>().advance_to(now);
        world.resource_mut::<Wakeup>().reset(now + longest);
        world.run_schedule(Tick);
        // `RemovedComponents` sees removals of this tick and of the next one. Without this call, the world keeps every
        // removed component for ever: 16 bytes for each component of each closed peer and finished piece.
        world.clear_trackers();
        world.resource::<Wakeup>().earliest()
    }
}

/// First part of [`TickSet::Intake`]: sorts incoming events and commands into inboxes.
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IntakeFromPorts;

/// Last part of [`TickSet::Flush`]: sends queued requests to the backends.
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlushToPorts;

fn drain_ports(
    mut net: ResMut<NetPort>,
    mut disk: ResMut<DiskPort>,
    mut hash: ResMut<HashPort>,
    mut http: ResMut<HttpPort>,
    mut state: ResMut<StatePort>,
    settings: Res<Settings>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
) {
    let max = settings.tick.max_events;
    let has_more = [
        net.drain(max),
        disk.drain(max),
        hash.drain(max),
        http.drain(max),
        state.drain(max),
    ];
    if has_more.contains(&true) {
        wakeup.at(clock.now());
    }
}

fn deliver_mail(world: &mut World) {
    let max = world.resource::<Settings>().tick.max_commands;
    if Mailbox::deliver(world, max) {
        let now = world.resource::<Clock>().now();
        world.resource::<Wakeup>().at(now);
    }
}

fn flush_ports(
    mut net: ResMut<NetPort>,
    mut disk: ResMut<DiskPort>,
    mut hash: ResMut<HashPort>,
    mut http: ResMut<HttpPort>,
    mut state: ResMut<StatePort>,
) {
    net.flush();
    disk.flush();
    hash.flush();
    http.flush();
    state.flush();
}

/// Logs errors of systems and commands that nothing handled, where bevy would panic by default. Such an error is a
/// defect, but must not take every torrent down. Panics are different: bevy catches them and would continue with an
/// inconsistent world, so this handler resumes the panic for the runner to handle.
fn log_error(mut error: BevyError, context: ErrorContext) {
    if let Some(payload) = error.take_payload() {
        tracing::error!("{context}: it has panicked");
        std::panic::resume_unwind(payload);
    }
    tracing::error!("{context}: {error}");
}
