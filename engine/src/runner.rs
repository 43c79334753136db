//! The thread that steps an engine in real time.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bevy_app::App;
use ecs_torrent_components::commands::{AddTorrent, CommandQueue};
use ecs_torrent_components::settings::{SettingLayers, Settings, seconds};
use ecs_torrent_components::tick_times::TickTimes;
use ecs_torrent_protocol::time::Timestamp;

use crate::backends::net::Carriers;
use crate::backends::{self, StartError, state};
use crate::core::Core;
use crate::layers;
use crate::mailbox::{EngineHandle, Mailbox};
use crate::ports::net::LocalAddresses;
use crate::ports::state::settings_blob;
use crate::wake::Waker;
use crate::wall::WallClock;

/// A running engine. Dropping it ends its thread at once, with every connection and job. To notify peers and trackers,
/// stop the torrents first.
#[derive(Debug)]
pub struct Runner {
    handle: EngineHandle,
    local: LocalAddresses,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

/// Values the engine's thread sends once it runs.
struct Started {
    handle: EngineHandle,
    local: LocalAddresses,
    waker: Waker,
}

impl Runner {
    /// Starts an engine over the real backends, in its own thread. After a panic inside a system, the engine is rebuilt
    /// with the same plugins, and the torrents are added again.
    ///
    /// # Errors
    /// Returns an error if a setting is out of range, a listen address cannot be bound, or a thread or runtime cannot
    /// be started.
    pub fn start(settings: Settings, add_plugins: impl Fn(&mut App) + Send + 'static) -> Result<Self, StartError> {
        Self::start_with(settings, Carriers::default(), add_plugins)
    }

    /// Like [`Runner::start`], with carriers of streams in addition to TCP. They are tried first, in this order.
    ///
    /// # Errors
    /// Like [`Runner::start`].
    pub fn start_with(
        settings: Settings,
        carriers: Carriers,
        add_plugins: impl Fn(&mut App) + Send + 'static,
    ) -> Result<Self, StartError> {
        settings.check()?;
        let stop = Arc::new(AtomicBool::new(false));
        let is_stopped = stop.clone();
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("ecs-torrent".into()).spawn(move || {
            let waker = Waker::for_this_thread();
            let (mailbox, handle) = Mailbox::new(waker.clone());
            let mut engine = Supervised {
                settings,
                listen: None,
                carriers,
                epoch: Instant::now(),
                add_plugins,
                handle,
                waker: waker.clone(),
                is_stopped,
            };
            let (mut core, local) = match engine.build() {
                Ok(built) => built,
                Err(error) => return drop(sender.send(Err(error))),
            };
            core.world_mut().insert_resource(mailbox);
            let handle = core.handle();
            // A rebuilt engine uses the same addresses and ports.
            engine.listen = Some(local.0.clone());
            // The caller may already be gone; then the stop flag is set too.
            let _ = sender.send(Ok(Started { handle, local, waker }));
            engine.run(core);
        });
        let thread = thread.map_err(StartError::Thread)?;
        let Started { handle, local, waker } = receiver.recv().unwrap_or(Err(StartError::Died))?;
        Ok(Self {
            handle,
            local,
            stop,
            waker,
            thread: Some(thread),
        })
    }

    /// Returns the sending end of the engine's mailbox.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Returns the addresses the engine listens on, with their actual ports.
    #[must_use]
    pub fn local_addresses(&self) -> &LocalAddresses {
        &self.local
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread panicked");
        }
    }
}

/// An engine that is rebuilt after a panic.
struct Supervised<F> {
    /// The settings of the configuration.
    settings: Settings,
    /// The addresses that the engine listened on before it was rebuilt.
    listen: Option<Vec<SocketAddr>>,
    carriers: Carriers,
    /// Zero of the clock of every engine that is built.
    epoch: Instant,
    add_plugins: F,
    handle: EngineHandle,
    waker: Waker,
    is_stopped: Arc<AtomicBool>,
}

/// Pause between attempts to reclaim the addresses and the state folder: the previous engine's threads end in their own
/// time.
const REBUILD_PAUSE: Duration = Duration::from_millis(50);

/// Maximum number of those attempts.
const REBUILD_TRIES: usize = 100;

impl<F: Fn(&mut App)> Supervised<F> {
    fn build(&self) -> Result<(Core, LocalAddresses), StartError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| StartError::Random(error.to_string()))?;
        let mut layers = self.layers();
        let mut settings = layers.active.clone();
        layers.max_connections = backends::fit_descriptors(&mut settings);
        if let Some(listen) = &self.listen {
            settings.net.listen.clone_from(listen);
        }
        let backends = backends::real(&settings, &self.carriers, self.epoch, &self.waker);
        let backends = backends.map_err(|error| match (error, &self.settings.session.state_dir) {
            (StartError::Listen { address, error }, Some(folder)) if layers.changes.0.contains_key("net.listen") => {
                let changes = state::blob_path(folder, &settings_blob());
                StartError::ListenChanged {
                    address,
                    error,
                    changes,
                }
            }
            (error, _) => error,
        })?;
        let local = backends.local.clone();
        let handle = self.handle.clone();
        let mut core = Core::with_handle(settings, backends, seed, handle, &self.add_plugins);
        core.world_mut().insert_resource(layers);
        core.world_mut().insert_resource(WallClock::system());
        Ok((core, local))
    }

    /// Returns the settings of the configuration with the changes in the state folder.
    fn layers(&self) -> SettingLayers {
        let saved = self.settings.session.state_dir.as_deref().and_then(|folder| {
            let read = state::read_blob(folder, &settings_blob());
            read.unwrap_or_else(|error| {
                tracing::warn!(%error, "the saved changes of settings cannot be read");
                None
            })
        });
        layers::read(&self.settings, saved.as_deref())
    }

    /// Ticks until stopped. Fault 104: a panic inside a system ends the world, not the engine, unless panics are too
    /// frequent.
    fn run(&mut self, mut core: Core) {
        let settings = &core.world().resource::<Settings>().lifecycle;
        let (most, window) = (settings.max_restarts, seconds(settings.restart_window_s));
        let mut restarts: Vec<Instant> = Vec::new();
        loop {
            // The broken world is discarded below, so unwind safety does not matter.
            let ended = catch_unwind(AssertUnwindSafe(|| {
                run(&mut core, self.epoch, &self.waker, &self.is_stopped);
            }));
            if ended.is_ok() {
                return;
            }
            restarts.retain(|restart| restart.elapsed() < window);
            if restarts.len() >= most {
                tracing::error!("the engine has panicked {} times within {window:?}, and ends", most + 1);
                return;
            }
            restarts.push(Instant::now());
            tracing::error!("a system has panicked; the engine is rebuilt from saved state");
            match self.rebuild(core) {
                Ok(next) => core = next,
                Err(reason) => return tracing::error!("the engine cannot be rebuilt: {reason}"),
            }
        }
    }

    fn rebuild(&self, mut broken: Core) -> Result<Core, String> {
        let salvaged = catch_unwind(AssertUnwindSafe(|| broken.salvage()));
        // Dropping the core ends its threads, which release their sockets and locks.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(broken)));
        let (Some(mailbox), torrents) = salvaged.map_err(|_| "its world is beyond repair")? else {
            return Err("its mailbox is lost".into());
        };
        let mut tries = 0;
        let mut core = loop {
            tries += 1;
            let built = catch_unwind(AssertUnwindSafe(|| self.build())).map_err(|_| "a plugin panics")?;
            match built {
                Ok((core, _)) => break core,
                Err(_) if tries < REBUILD_TRIES && !self.is_stopped.load(Ordering::Acquire) => {
                    thread::sleep(REBUILD_PAUSE);
                }
                Err(error) => return Err(error.to_string()),
            }
        };
        let world = core.world_mut();
        world.insert_resource(mailbox);
        if let Some(mut queue) = world.get_resource_mut::<CommandQueue<AddTorrent>>() {
            queue.0.extend(torrents);
        }
        Ok(core)
    }
}

/// Interval between two looks at the system's date, which may be set while the engine runs.
const DATE_INTERVAL: Duration = Duration::from_secs(10);

/// Ticks until stopped: at once when woken, but no more often than the minimum interval; otherwise when the next
/// deadline is due.
fn run(core: &mut Core, epoch: Instant, waker: &Waker, stop: &AtomicBool) {
    let least = Duration::from_micros(core.world().resource::<Settings>().tick.min_interval_us);
    let mut next_date = Duration::ZERO;
    while !stop.load(Ordering::Acquire) {
        let head = epoch.elapsed();
        if head >= next_date {
            // A clock before 1970 counts as 1970.
            let date = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            core.set_epoch(date.saturating_sub(head));
            next_date = head + DATE_INTERVAL;
        }
        waker.begin_tick();
        let next = core.tick(Timestamp::ZERO + head);
        let spent = epoch.elapsed().saturating_sub(head);
        core.world_mut().resource_mut::<TickTimes>().record(spent);
        if spent < least {
            thread::sleep(least - spent);
        }
        let due = next.since(Timestamp::ZERO + epoch.elapsed());
        if !due.is_zero() {
            waker.wait(due);
        }
    }
}
