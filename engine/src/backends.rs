//! The real backends: sockets on tokio, files on a pool of threads, hashing on rayon, HTTP through reqwest,
//! sessions in a folder.

mod beneath;
mod buffers;
pub mod disk;
pub mod hash;
pub mod http;
mod jobs;
pub mod nearest;
pub mod net;
mod sink;
pub mod staging;
pub mod state;
pub mod whole_file;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use ecs_torrent_components::settings::{SettingError, Settings};
use tokio::runtime::{Builder, Runtime};

use crate::core::Backends;
use crate::port::Backend;
use crate::ports::state::{StateEvent, StateRequest};
use crate::wake::Waker;

/// The reason an engine cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting has a value with which the engine would not work.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A listen address cannot be bound.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },
    /// A listen address that was set at run time cannot be bound.
    #[error(
        "cannot listen on {address}: {error}; the address was set at run time: without {}, the configuration applies",
        changes.display()
    )]
    ListenChanged {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
        /// The file of the changes.
        changes: PathBuf,
    },
    /// The network runtime cannot be started.
    #[error("cannot start the network runtime: {0}")]
    Runtime(io::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The hashing pool cannot be started.
    #[error("cannot start the hashing threads: {0}")]
    HashPool(String),
    /// The state folder cannot be used.
    #[error("cannot use the state folder {}: {error}", path.display())]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// Another engine is using the state folder.
    #[error("the state folder {} is in use by another engine (process {holder})", path.display())]
    StateDirInUse {
        /// The folder.
        path: PathBuf,
        /// The process id of the other engine.
        holder: String,
    },
    /// The system provides no randomness.
    #[error("cannot get random numbers: {0}")]
    Random(String),
    /// The engine's thread ended while it started, which is a defect.
    #[error("the engine's thread died while starting")]
    Died,
}

/// The network runtime, shared by the backends that need one. Dropping it does not wait for running tasks.
pub struct SharedRuntime(Option<Runtime>);

impl SharedRuntime {
    /// Shares a runtime that has I/O and time.
    #[must_use]
    pub fn new(runtime: Runtime) -> Self {
        Self(Some(runtime))
    }

    /// Runs a future to its end on this thread. If the runtime has no threads of its own, the backends' tasks run here
    /// too.
    ///
    /// # Panics
    /// On a thread of a runtime.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime().block_on(future)
    }

    fn start(threads: usize) -> Result<Arc<Self>, StartError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .max_blocking_threads(16)
            .thread_name("ecs-torrent-net")
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        Ok(Arc::new(Self::new(runtime)))
    }

    fn handle(&self) -> tokio::runtime::Handle {
        self.runtime().handle().clone()
    }

    fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("taken only when dropped")
    }
}

impl Drop for SharedRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Descriptors used by neither peers nor files: the runtime, listeners, the state folder, download folders, trackers,
/// and anything else open in this process.
const OTHER_DESCRIPTORS: u64 = 32;

/// Lowers the limits on open files and connections to what the system allows this process (Fault 99). Files take
/// precedence: a peer can connect later, but a piece must be written now. Returns the maximum number of connections, if
/// the system sets one.
pub fn fit_descriptors(settings: &mut Settings) -> Option<usize> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current?;
    let files = (settings.storage.max_open_files as u64).min(limit / 4).max(1);
    let connections = limit.saturating_sub(files + OTHER_DESCRIPTORS).max(1);
    if connections < settings.peers.max_connections as u64 {
        tracing::warn!("connections are limited to {connections}: this process may open no more than {limit} files");
        settings.peers.max_connections = connections as usize;
    }
    settings.storage.max_open_files = files as usize;
    Some(usize::try_from(connections).unwrap_or(usize::MAX))
}

/// Starts all real backends for one engine. `carriers` carry its streams, in this order; TCP comes last.
/// `epoch` is the zero of the engine's clock.
///
/// # Errors
/// Returns the first resource that cannot be bound or started.
pub fn real(
    settings: &Settings,
    carriers: &net::Carriers,
    epoch: Instant,
    waker: &Waker,
) -> Result<Backends, StartError> {
    // The state folder comes first: two engines that share a state folder also share ports, and the error should name
    // the folder.
    let state: Box<dyn Backend<StateRequest, StateEvent>> = match &settings.session.state_dir {
        Some(folder) => Box::new(state::StateFolder::start(folder, waker)?),
        None => Box::new(state::NoState::new(waker)),
    };
    let runtime = SharedRuntime::start(settings.net.threads)?;
    let state_dir = settings.session.state_dir.as_deref();
    let sessions = state_dir.map(|folder| folder.join(staging::SESSIONS));
    let protected: Vec<&Path> = state_dir.into_iter().chain(sessions.as_deref()).collect();
    let (net, local) = net::TokioNet::start(&settings.net, carriers, epoch, runtime.clone(), waker)?;
    Ok(Backends {
        http: Box::new(http::ReqwestHttp::new(&local, runtime, waker)),
        net: Box::new(net),
        disk: Box::new(disk::DiskPool::start(&settings.storage, &protected, waker)?),
        hash: Box::new(hash::RayonHash::start(&settings.storage, waker)?),
        state,
        local,
    })
}
