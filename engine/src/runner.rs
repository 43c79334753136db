//! The thread that steps an engine in real time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bevy_app::App;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_protocol::time::Timestamp;

use crate::backends::{self, StartError};
use crate::core::Core;
use crate::mailbox::EngineHandle;
use crate::ports::net::LocalAddresses;
use crate::wake::Waker;

/// A running engine. Dropping it ends its thread at once, with every connection and job; stop the torrents before,
/// if their peers and trackers are to be told.
#[derive(Debug)]
pub struct Runner {
    handle: EngineHandle,
    local: LocalAddresses,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

/// What the engine's thread tells once it runs.
struct Started {
    handle: EngineHandle,
    local: LocalAddresses,
    waker: Waker,
}

impl Runner {
    /// Starts an engine over the real backends, in a thread of its own.
    ///
    /// # Errors
    /// Where a listen address cannot be bound, or a thread or runtime cannot be started.
    pub fn start(settings: Settings, add_plugins: impl FnOnce(&mut App) + Send + 'static) -> Result<Self, StartError> {
        let stop = Arc::new(AtomicBool::new(false));
        let is_stopped = stop.clone();
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("ecs-torrent".into()).spawn(move || {
            let waker = Waker::for_this_thread();
            let mut core = match build(settings, &waker, add_plugins) {
                Ok((core, local)) => {
                    let handle = core.handle();
                    let waker = waker.clone();
                    // Who started the engine may have gone already; then the flag is set too.
                    let _ = sender.send(Ok(Started { handle, local, waker }));
                    core
                }
                Err(error) => return drop(sender.send(Err(error))),
            };
            run(&mut core, &waker, &is_stopped);
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

    /// The outside end of the engine's mailbox.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// The addresses that the engine listens on, ports as they really are.
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

fn build(
    settings: Settings,
    waker: &Waker,
    add_plugins: impl FnOnce(&mut App),
) -> Result<(Core, LocalAddresses), StartError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| StartError::Random(error.to_string()))?;
    let backends = backends::real(&settings, waker)?;
    let local = backends.local.clone();
    Ok((Core::new(settings, backends, seed, waker.clone(), add_plugins), local))
}

/// Ticks until told to stop: at once when woken, but not more often than the least interval; otherwise when the
/// next deadline is due.
fn run(core: &mut Core, waker: &Waker, stop: &AtomicBool) {
    let least = Duration::from_micros(core.world().resource::<Settings>().tick.min_interval_us);
    let epoch = Instant::now();
    while !stop.load(Ordering::Acquire) {
        let head = epoch.elapsed();
        waker.begin_tick();
        let next = core.tick(Timestamp::ZERO + head);
        let spent = epoch.elapsed().saturating_sub(head);
        if spent < least {
            thread::sleep(least - spent);
        }
        let due = next.since(Timestamp::ZERO + epoch.elapsed());
        if !due.is_zero() {
            waker.wait(due);
        }
    }
}
