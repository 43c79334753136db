//! The HTTP API: gives programs on this machine control of an engine's torrents.
//!
//! A client presents the token that the state folder holds ([`Token`]) and addresses the API by one of the API's own
//! names. A web page can do neither. Clients of the daemon's user connect through a Unix socket in the state folder
//! ([`connect`]). Others connect by TCP; there the daemon can prove itself before the client presents the token
//! ([`Token::prove`]). [`ApiSettings`] bounds bodies, heads and connections: clients without the token cannot prevent
//! answers to a client with it. `/api/v1/openapi.json` describes the requests.

mod adding;
mod address;
mod answers;
mod changing;
mod connections;
mod content;
mod dht;
mod event_log;
mod events;
mod fetching;
mod files;
mod guard;
mod labels;
mod limits;
mod listing;
mod logins;
mod metrics;
mod mirror;
mod moving;
mod peers;
mod queue;
mod requests;
mod roots;
mod routes;
mod server;
mod settings;
mod socket;
mod state;
mod token;
mod trackers;
mod turns;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use ecs_torrent_components::settings::seconds;
use serde_json::{Map, Value};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::JoinSet;

pub use self::address::ApiAddress;
use self::server::Server;
pub use self::settings::ApiSettings;
pub use self::socket::connect;
pub use self::token::{NONCE_DIGITS, Token, TokenError};
use crate::torrents::Torrents;

/// Phase of the daemon's life, as reported by its health endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Saved torrents are being added.
    Starting,
    /// All saved torrents have been added.
    Running,
    /// Torrents are being stopped; no new ones are added.
    Stopping,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
        }
    }
}

/// Error that keeps the API from being served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The API cannot listen on its address.
    #[error("cannot serve the API on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        error: io::Error,
    },
    /// A folder or file cannot be used.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The HTTP client cannot be created.
    #[error("cannot fetch torrent files: {0}")]
    Fetch(#[from] reqwest::Error),
    /// The token cannot be read or created.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// A running API server. It ends at once when dropped.
#[derive(Debug)]
pub struct Api {
    address: SocketAddr,
    state_dir: PathBuf,
    shared: Shared,
    /// One task for each listener.
    servers: JoinSet<()>,
    /// The runtime that serves the Unix socket's clients; taken on drop.
    runtime: Option<Runtime>,
}

/// State shared by all request handlers.
type Shared = Arc<ApiState>;

#[derive(Debug)]
struct ApiState {
    torrents: Torrents,
    token: Token,
    names: guard::Names,
    logins: logins::Logins,
    roots: roots::Roots,
    /// The sections of settings that only the configuration file sets, for users.
    file_settings: Map<String, Value>,
    max_body_bytes: usize,
    fetcher: fetching::Fetcher,
    max_state_bytes: u64,
    state_dir: PathBuf,
    /// Held during an import.
    importing: Arc<Mutex<()>>,
    body_timeout: Duration,
    /// Permits to hold KiB of requests' bodies in memory.
    bodies: Semaphore,
    phase: AtomicU8,
    turns: turns::Turns,
    closing: watch::Sender<bool>,
    mirror: mirror::Mirror,
    /// Whether metrics of each torrent are reported.
    metrics_per_torrent: bool,
    events: event_log::EventLog,
    /// Whether a client has asked the daemon to stop.
    shutdown: watch::Sender<bool>,
}

impl ApiState {
    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Running,
            _ => Phase::Stopping,
        }
    }
}

/// Most request bodies in memory at a time if each has `api.max_body_bytes`; more, if they are shorter. Further
/// requests wait.
const MAX_BODIES: usize = 16;

/// Time for the last answers to be sent. A stop takes at most 9 s; with this time added, it ends before a container is
/// killed.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

impl Api {
    /// Serves `torrents` on the address of the settings and on a Unix socket in `state_dir`. Stores the token and the
    /// address for clients in `state_dir` too. Clients can read `file_settings`, sections of settings that only the
    /// configuration file sets.
    ///
    /// # Errors
    /// If the address cannot be listened on, or a folder cannot be used.
    pub async fn start(
        settings: &ApiSettings,
        file_settings: Map<String, Value>,
        (state_dir, download_dir): (&Path, &Path),
        torrents: Torrents,
    ) -> Result<Self, ApiError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| ApiError::Io { path, error }
        };
        let bind_error = |error| ApiError::Listen {
            address: settings.listen,
            error,
        };
        std::fs::create_dir_all(state_dir).map_err(failed(state_dir))?;
        let token = Token::of_folder(state_dir)?;
        let roots = roots::Roots::new(download_dir, &settings.allow_roots).map_err(failed(download_dir))?;
        let limit = seconds(settings.body_timeout_s);
        let fetcher = fetching::Fetcher::new(&settings.fetch_from, settings.max_body_bytes, limit)?;
        let listener = server::listen(settings.listen).map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        let shared = Arc::new(ApiState {
            torrents,
            token,
            names: guard::Names::new(address, &settings.names),
            logins: logins::Logins::new(settings.max_failed_logins, seconds(settings.failed_login_interval_s)),
            roots,
            file_settings,
            max_body_bytes: settings.max_body_bytes,
            fetcher,
            max_state_bytes: settings.max_state_bytes,
            state_dir: state_dir.to_owned(),
            importing: Arc::default(),
            body_timeout: seconds(settings.body_timeout_s),
            bodies: Semaphore::new(MAX_BODIES * requests::kib(settings.max_body_bytes)),
            phase: AtomicU8::new(Phase::Starting as u8),
            turns: turns::Turns::default(),
            closing: watch::Sender::new(false),
            mirror: mirror::Mirror::default(),
            metrics_per_torrent: settings.metrics_per_torrent,
            events: event_log::EventLog::new(),
            shutdown: watch::Sender::new(false),
        });
        let events = shared.torrents.subscribe();
        let recorder = shared.events.clone().record(events, shared.closing.subscribe());
        tokio::spawn(recorder);
        let router = routes::router(shared.clone());
        let server = Server::new(router, settings.clone(), shared.closing.subscribe());
        let mut servers = JoinSet::new();
        let runtime = own_thread().map_err(ApiError::Thread)?;
        let context = runtime.enter();
        match socket::listen(state_dir) {
            Ok(listener) => {
                let serving = runtime.spawn(server.clone().serve(listener));
                servers.spawn(async { drop(serving.await) });
            }
            // Some file systems have no sockets. Clients then connect by TCP.
            Err(error) => tracing::warn!(path = %socket::path(state_dir).display(), %error, "cannot listen"),
        }
        drop(context);
        servers.spawn(server.serve(listener));
        let api = Self {
            address,
            state_dir: state_dir.to_owned(),
            shared,
            servers,
            runtime: Some(runtime),
        };
        let written = ApiAddress::of_this_process(address).write(state_dir);
        written.map_err(failed(&ApiAddress::path(state_dir)))?;
        Ok(api)
    }

    /// Returns the address of the API, with the actual port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the phase that clients see. The first one is [`Phase::Starting`].
    pub fn set_phase(&self, phase: Phase) {
        self.shared.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Waits until a client asks the daemon to stop.
    pub async fn shutdown_requested(&self) {
        let mut shutdown = self.shared.shutdown.subscribe();
        // The sender lives as long as this API.
        let _ = shutdown.wait_for(|shutdown| *shutdown).await;
    }

    /// Ends the API in order: the last events and answers are sent, within half a second.
    pub async fn close(mut self) {
        // A tick publishes its events before the next one begins. If the engine has stopped, no events remain.
        let _ = self.shared.torrents.with_world(|_| ()).await;
        self.shared.closing.send_replace(true);
        let ended = async { while self.servers.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSE_TIMEOUT, ended).await.is_err() {
            tracing::debug!("clients are cut off");
        }
    }
}

/// Creates a thread that serves the Unix socket. The operating system gives it its share, however busy TCP clients keep
/// the other threads.
fn own_thread() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("ecs-torrent-api")
        .enable_all()
        .build()
}

impl Drop for Api {
    fn drop(&mut self) {
        self.servers.abort_all();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        for path in [ApiAddress::path(&self.state_dir), socket::path(&self.state_dir)] {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::debug!(path = %path.display(), %error, "cannot remove");
            }
        }
    }
}
