//! Sockets on tokio: one task per connection, per listening socket and per UDP socket.

mod listen;
mod stream;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bevy_platform::collections::HashMap;
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::settings::NetSettings;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use self::stream::Stream;
use super::buffers::ReadChunks;
use super::sink::Sink;
use super::{SharedRuntime, StartError};
use crate::port::{Backend, JobTag};
use crate::ports::net::{DatagramRings, LocalAddresses, NetEvent, NetRequest};
use crate::wake::Waker;

/// Timeout for looking up a host name.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(20);

/// The Net port's real backend.
pub struct TokioNet {
    shared: Arc<Shared>,
    udp: Vec<Arc<UdpSocket>>,
    runtime: Arc<SharedRuntime>,
}

/// State shared by the tasks.
struct Shared {
    sink: Sink<NetEvent>,
    streams: Mutex<HashMap<StreamId, Arc<Stream>>>,
    chunks: ReadChunks,
    settings: NetSettings,
    /// Source addresses for outgoing connections, if specific addresses were configured.
    sources: Vec<IpAddr>,
    last_accepted: AtomicU64,
    /// Accepted connections that the world has not seen yet.
    unseen: AtomicUsize,
    lookups: Semaphore,
    datagrams: Mutex<DatagramRings>,
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, HashMap<StreamId, Arc<Stream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn datagrams(&self) -> MutexGuard<'_, DatagramRings> {
        self.datagrams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TokioNet {
    /// Binds all listen addresses and starts accepting connections.
    ///
    /// # Errors
    /// The first address that cannot be bound.
    pub(crate) fn start(
        settings: &NetSettings,
        runtime: Arc<SharedRuntime>,
        waker: &Waker,
    ) -> Result<(Self, LocalAddresses), StartError> {
        let handle = runtime.handle();
        let _context = handle.enter();
        let sockets = listen::bind_all(settings)?;
        let local: Vec<SocketAddr> = sockets.iter().map(|sockets| sockets.address).collect();
        let sources = local
            .iter()
            .map(SocketAddr::ip)
            .filter(|ip| !ip.is_unspecified())
            .collect();
        let shared = Arc::new(Shared {
            sink: Sink::new(waker),
            streams: Mutex::default(),
            chunks: ReadChunks::new(settings.read_chunk_bytes),
            settings: settings.clone(),
            sources,
            last_accepted: AtomicU64::new(0),
            unseen: AtomicUsize::new(0),
            lookups: Semaphore::new(settings.max_lookups),
            datagrams: Mutex::new(DatagramRings::new(settings.max_datagrams)),
        });
        handle.spawn(trim_chunks(shared.clone()));
        let mut udp = Vec::new();
        for sockets in sockets {
            let socket = Arc::new(sockets.udp);
            handle.spawn(listen::accept(sockets.tcp, shared.clone()));
            handle.spawn(listen::receive(socket.clone(), shared.clone()));
            udp.push(socket);
        }
        Ok((Self { shared, udp, runtime }, LocalAddresses(local)))
    }

    fn connect(&self, id: StreamId, to: SocketAddr, time: Duration) {
        let stream = Arc::new(Stream::new(&self.shared.settings));
        self.shared.streams().insert(id, stream.clone());
        let shared = self.shared.clone();
        self.runtime.handle().spawn(async move {
            let connecting = open(to, &shared.sources);
            tokio::select! {
                result = timeout(time, connecting) => match result {
                    Ok(Ok(tcp)) => {
                        shared.sink.push(NetEvent::Connected { stream: id });
                        return stream.run(id, tcp, &shared).await;
                    }
                    Ok(Err(error)) => shared.closed(id, &error.to_string()),
                    Err(_) => shared.closed(id, "no answer"),
                },
                () = stream.closed() => {}
            }
            stream.end(&shared);
        });
    }

    /// Sends a datagram, or drops it if it cannot be sent at once: UDP may lose it anyway.
    fn send_datagram(&self, to: SocketAddr, data: &[u8]) {
        let ours = |socket: &&Arc<UdpSocket>| socket.local_addr().is_ok_and(|local| local.is_ipv4() == to.is_ipv4());
        if let Some(socket) = self.udp.iter().find(ours)
            && let Err(error) = socket.try_send_to(data, to)
        {
            tracing::debug!("datagram to {to} was not sent: {error}");
        }
    }

    fn resolve(&self, tag: JobTag, host: String, port: u16) {
        let shared = self.shared.clone();
        self.runtime.handle().spawn(async move {
            let _permit = shared.lookups.acquire().await;
            let host = host.trim_matches(['[', ']']).to_owned();
            let result = match timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((host, port))).await {
                Ok(Ok(addresses)) => Ok(addresses.collect()),
                Ok(Err(error)) => Err(error.to_string().into()),
                Err(_) => Err("name lookup timed out".into()),
            };
            shared.sink.push(NetEvent::Resolved { tag, result });
        });
    }
}

/// Delay after a burst until its memory is returned to the system.
const TRIM_AFTER: Duration = Duration::from_secs(1);

/// Frees unused read memory, for as long as the engine lives. Does nothing while the engine is idle.
async fn trim_chunks(shared: Arc<Shared>) {
    loop {
        shared.chunks.used().await;
        loop {
            sleep(TRIM_AFTER).await;
            if !shared.chunks.trim() {
                break;
            }
        }
    }
}

impl Shared {
    fn closed(&self, stream: StreamId, reason: &str) {
        let reason = reason.into();
        self.sink.push(NetEvent::Closed { stream, reason });
    }

    fn stream(&self, id: StreamId) -> Option<Arc<Stream>> {
        self.streams().get(&id).cloned()
    }
}

impl Backend<NetRequest, NetEvent> for TokioNet {
    fn submit(&mut self, requests: &mut Vec<NetRequest>) {
        for request in requests.drain(..) {
            match request {
                NetRequest::Connect { stream, to, timeout } => self.connect(stream, to, timeout),
                NetRequest::Send { stream, frames } => {
                    if let Some(stream) = self.shared.stream(stream) {
                        stream.send(frames);
                    }
                }
                NetRequest::Grant { stream, bytes } => {
                    if let Some(stream) = self.shared.stream(stream) {
                        stream.grant(bytes);
                    }
                }
                NetRequest::Close {
                    stream,
                    is_orderly,
                    tag,
                } => {
                    let closed = self.shared.streams().remove(&stream);
                    let ended = closed.map_or(tag, |stream| stream.close(is_orderly, tag));
                    if let Some(tag) = ended {
                        self.shared.sink.push(NetEvent::Gone { tag });
                    }
                }
                NetRequest::Datagram { to, data } => self.send_datagram(to, &data),
                NetRequest::Resolve { tag, host, port } => self.resolve(tag, host, port),
            }
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<NetEvent>) -> bool {
        let has_more = self.shared.sink.poll(max, events);
        // Not counted against `max`: a ring holds few datagrams, and a flood of bytes must not delay trackers' answers.
        self.shared.datagrams().take(events);
        let seen = events
            .iter()
            .filter(|event| matches!(event, NetEvent::Accepted { .. }))
            .count();
        self.shared.unseen.fetch_sub(seen, Ordering::Relaxed);
        has_more
    }
}

/// Opens a connection, from our own address of that family if a specific one was configured.
async fn open(to: SocketAddr, sources: &[IpAddr]) -> std::io::Result<TcpStream> {
    let socket = if to.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(source) = sources.iter().find(|source| source.is_ipv4() == to.is_ipv4()) {
        socket.bind(SocketAddr::new(*source, 0))?;
    }
    socket.connect(to).await
}
