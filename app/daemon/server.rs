//! The listeners of the API and their connections.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Extension, Router};
use ecs_torrent_components::settings::seconds;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

use super::connections::{Caller, Client, Connections};
use super::settings::ApiSettings;
use super::{routes, socket};

/// Pause after a connection could not be accepted, for example because no more files can be open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections accepted before the ones already accepted may read. In a flood of new connections, a client that
/// presents its token at once is thus recognized before it could be evicted.
const ACCEPT_BATCH: usize = 8;

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Connections that the system queues until they are accepted, up to the system's own limit. The system of a client
/// beyond it retries after a second.
const BACKLOG: u32 = 4096;

/// Listens for clients on an address.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As in a listener of the standard library: closing connections of an earlier daemon do not block the address.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A listener that identifies its clients.
pub(super) trait Listener: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + 'static;

    /// Waits for the next client. Returns its stream, its identity, and the local address that it connected to.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Caller, Option<IpAddr>)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Caller, Option<IpAddr>)> {
        let (stream, remote) = self.accept().await?;
        let local = stream.local_addr().ok().map(|address| address.ip().to_canonical());
        Ok((stream, remote.ip().into(), local))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Caller, Option<IpAddr>)> {
        loop {
            let (stream, _) = self.accept().await?;
            if socket::is_owner(&stream) {
                return Ok((stream, Caller::Owner, None));
            }
            tracing::warn!("a process of another user has connected to the API's socket");
        }
    }
}

/// Serves the API to the clients of any listener.
#[derive(Clone)]
pub(super) struct Server {
    router: Router,
    settings: ApiSettings,
    closing: watch::Receiver<bool>,
}

impl Server {
    /// Serves `router` until `closing` is true.
    pub(super) fn new(router: Router, settings: ApiSettings, closing: watch::Receiver<bool>) -> Self {
        Self {
            router: router.layer(middleware::from_fn(finish)),
            settings,
            closing,
        }
    }

    /// Accepts clients until the API closes, then waits for their last answers.
    pub(super) async fn serve(self, listener: impl Listener) {
        // These tasks end with this one.
        let mut tasks = JoinSet::new();
        let mut closing = self.closing.clone();
        tokio::select! {
            () = self.accept(&listener, &mut tasks) => {}
            () = closed(&mut closing) => {}
        }
        drop(listener);
        while tasks.join_next().await.is_some() {}
    }

    async fn accept(&self, listener: &impl Listener, tasks: &mut JoinSet<()>) {
        let connections = Connections::new(fit_descriptors(self.settings.max_connections));
        loop {
            for _ in 0..ACCEPT_BATCH {
                match listener.next().await {
                    Ok((stream, caller, local)) => {
                        let ticket = Arc::new(connections.admit(caller).await);
                        tasks.spawn(self.connection(stream, Client { caller, local, ticket }));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "cannot accept a client");
                        connections.evict();
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
            while tasks.try_join_next().is_some() {}
            tokio::task::yield_now().await;
        }
    }

    fn connection<S>(&self, stream: S, client: Client) -> impl Future<Output = ()> + use<S>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(seconds(self.settings.header_timeout_s))
            .max_buf_size(MAX_HEAD);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(seconds(self.settings.write_timeout_s)));
        let ticket = client.ticket.clone();
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(client.clone());
            router.call(request)
        });
        let mut closing = self.closing.clone();
        async move {
            let mut connection = pin!(http.serve_connection(TokioIo::new(Box::pin(stream)), service));
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = ticket.evicted() => return tracing::debug!("a client's connection has made room for another"),
                () = closed(&mut closing) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "a client's connection has ended");
            }
        }
    }
}

/// Limits the number of connections to an eighth of the files that this process may open. Clients of both listeners
/// thus leave most files to peers and torrents.
fn fit_descriptors(max_connections: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let share = limit.and_then(|limit| usize::try_from(limit / 8).ok());
    share.map_or(max_connections, |share| max_connections.min(share.max(1)))
}

/// Waits until the API closes.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error means that the API has been dropped.
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Logs a request without its query and headers, which hold secrets; forbids browsers to use the answer; records the
/// use of the connection.
async fn finish(Extension(client): Extension<Client>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    // A client requests the proof before it presents the token.
    let is_stranger = path != routes::PROOF && client.ticket.record_request();
    tracing::debug!(%method, path, status = response.status().as_u16(), "request");
    let headers = response.headers_mut();
    if is_stranger {
        // Each request without the token costs its client a connection. Thousands of such requests thus cannot queue
        // before requests with the token.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let policy = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}
