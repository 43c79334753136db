//! The HTTP API: an engine's torrents for programs on this machine.
//!
//! A client shows the token that the state folder holds ([`Token`]), and calls the API by a name of its own address:
//! a web page can do neither. Bodies, heads and connections are bounded by [`ApiSettings`]. What can be asked is
//! described at `/api/v1/openapi.json`.

mod answers;
mod events;
mod guard;
mod roots;
mod routes;
mod settings;
mod token;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Extension, Router};
use ecs_torrent_components::settings::seconds;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

pub use self::settings::ApiSettings;
pub use self::token::{Token, TokenError};
use crate::torrents::Torrents;

/// The file in the state folder that tells where the API is, while it is there.
const ADDRESS_FILE: &str = "api_address";

/// How far the daemon is, as its health tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Saved torrents are being added.
    Starting,
    /// All is there.
    Running,
    /// Torrents are being stopped; no more are added.
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

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Its address cannot be had.
    #[error("cannot serve the API on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// A folder or file cannot be used.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is no token.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// A served API; ends at once when it is dropped.
#[derive(Debug)]
pub struct Api {
    address: SocketAddr,
    address_file: PathBuf,
    shared: Shared,
    server: JoinHandle<()>,
}

/// What requests are answered from.
type Shared = Arc<Desk>;

#[derive(Debug)]
struct Desk {
    torrents: Torrents,
    token: Token,
    names: guard::Names,
    roots: roots::Roots,
    max_body_bytes: usize,
    body_timeout: Duration,
    phase: AtomicU8,
    adding: Mutex<()>,
    closing: watch::Sender<bool>,
}

impl Desk {
    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Running,
            _ => Phase::Stopping,
        }
    }
}

impl Api {
    /// Serves `torrents`. The token, and the address for clients to find, are kept in `state_dir`.
    ///
    /// # Errors
    /// Where the address cannot be listened on, or a folder cannot be used.
    pub async fn start(
        settings: &ApiSettings,
        state_dir: &Path,
        download_dir: &Path,
        torrents: Torrents,
    ) -> Result<Self, ApiError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| ApiError::Io { path, error }
        };
        let unheard = |error| ApiError::Listen {
            address: settings.listen,
            error,
        };
        std::fs::create_dir_all(state_dir).map_err(failed(state_dir))?;
        let token = Token::of_folder(state_dir)?;
        let roots = roots::Roots::new(download_dir, &settings.allow_roots).map_err(failed(download_dir))?;
        let listener = TcpListener::bind(settings.listen).await.map_err(unheard)?;
        let address = listener.local_addr().map_err(unheard)?;
        let shared = Arc::new(Desk {
            torrents,
            token,
            names: guard::Names::new(address, &settings.names),
            roots,
            max_body_bytes: settings.max_body_bytes,
            body_timeout: seconds(settings.body_timeout_s),
            phase: AtomicU8::new(Phase::Starting as u8),
            adding: Mutex::new(()),
            closing: watch::Sender::new(false),
        });
        let router = routes::router(shared.clone()).layer(middleware::from_fn(note));
        let server = Server {
            router,
            settings: settings.clone(),
            closing: shared.closing.subscribe(),
        };
        let server = tokio::spawn(server.serve(listener));
        let address_file = state_dir.join(ADDRESS_FILE);
        let api = Self {
            address,
            address_file,
            shared,
            server,
        };
        write_whole(&api.address_file, &reachable(address).to_string()).map_err(failed(&api.address_file))?;
        Ok(api)
    }

    /// Where it is, the port as it really is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells clients how far the daemon is; it begins with [`Phase::Starting`].
    pub fn set_phase(&self, phase: Phase) {
        self.shared.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Ends it in order: who listens to events hears the last ones, and who has asked is answered, within half a second.
    pub async fn close(mut self) {
        // What a tick has to tell is told before the next one begins. An engine that is gone tells nothing more.
        let _ = self.shared.torrents.with_world(|_| ()).await;
        self.shared.closing.send_replace(true);
        if tokio::time::timeout(CLOSE_TIMEOUT, &mut self.server).await.is_err() {
            tracing::debug!("clients are cut off");
        }
    }

    /// Where the daemon of a state folder is, if one is there.
    ///
    /// # Errors
    /// Where none is, or the file cannot be read.
    pub fn find(state_dir: &Path) -> Result<SocketAddr, ApiError> {
        let path = state_dir.join(ADDRESS_FILE);
        let text = std::fs::read_to_string(&path);
        let address = text.and_then(|text| text.trim().parse().map_err(io::Error::other));
        address.map_err(|error| ApiError::Io { path, error })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.abort();
        if let Err(error) = std::fs::remove_file(&self.address_file) {
            tracing::debug!(path = %self.address_file.display(), %error, "cannot remove");
        }
    }
}

/// An address that a client of this machine can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}

/// Whoever reads the file reads all of it.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(file, "{text}")?;
    file.persist(path)?;
    Ok(())
}

/// Time before the next try after a connection could not be accepted, as when no more files can be open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Time for the last answers to leave. With the 9 s that a stop takes at most, it is over before a container is killed.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// What accepts clients.
struct Server {
    router: Router,
    settings: ApiSettings,
    closing: watch::Receiver<bool>,
}

impl Server {
    async fn serve(self, listener: TcpListener) {
        // They end with this task.
        let mut connections = JoinSet::new();
        let mut closing = self.closing.clone();
        tokio::select! {
            () = self.accept(&listener, &mut connections) => {}
            _ = closing.wait_for(|closing| *closing) => {}
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn accept(&self, listener: &TcpListener, connections: &mut JoinSet<()>) {
        let permits = Arc::new(Semaphore::new(self.settings.max_connections));
        while let Ok(permit) = permits.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = self.connection(stream);
                    connections.spawn(async move {
                        if let Err(error) = connection.await {
                            tracing::debug!(%error, "a client's connection has ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }

    fn connection(&self, stream: TcpStream) -> impl Future<Output = hyper::Result<()>> + use<> {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(seconds(self.settings.header_timeout_s))
            .max_buf_size(MAX_HEAD);
        let met = stream.local_addr().ok().map(|address| guard::Met(address.ip()));
        let service = TowerToHyperService::new(self.router.clone().layer(Extension(met)));
        let mut closing = self.closing.clone();
        async move {
            let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                result = connection.as_mut() => return result,
                _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
            }
            connection.await
        }
    }
}

/// Logs a request, without its query and its headers, which hold secrets; and tells browsers to make nothing of the
/// answer.
async fn note(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    tracing::debug!(%method, path, status = response.status().as_u16(), "request");
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let policy = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}
