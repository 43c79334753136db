//! Streams and datagrams on tokio: one task per stream, per carrier and per UDP socket.

mod carrier;
mod listen;
mod multicast;
mod outbound;
mod stream;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bevy_platform::collections::HashMap;
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::settings::NetSettings;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

pub use self::carrier::{ByteStream, Carrier, Carriers, Pending};
pub use self::listen::check_addresses;
use self::multicast::Groups;
use self::stream::Stream;
use self::tcp::Tcp;
use self::udp::Udp;
use super::buffers::ReadChunks;
use super::sink::Sink;
use super::{SharedRuntime, StartError};
use crate::port::{Backend, JobTag, Purpose};
use crate::ports::net::{DatagramRings, LocalAddresses, NetEvent, NetRequest, StreamError, TransportChoice};
use crate::wake::Waker;

/// Timeout for looking up a host name.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(20);

/// The Net port's real backend.
pub struct TokioNet {
    shared: Arc<Shared>,
    udp: Vec<Arc<Udp>>,
    outbox: udp::Outbox,
    groups: Groups,
    runtime: Arc<SharedRuntime>,
}

/// State shared by the tasks.
struct Shared {
    sink: Sink<NetEvent>,
    streams: Mutex<HashMap<StreamId, Arc<Stream>>>,
    chunks: ReadChunks,
    settings: NetSettings,
    carriers: Vec<Arc<dyn Carrier>>,
    last_accepted: AtomicU64,
    /// Accepted streams that the world has not seen yet.
    unseen: AtomicUsize,
    lookups: Semaphore,
    datagrams: Mutex<DatagramRings>,
    /// The addresses that the engine listens on.
    local: Vec<SocketAddr>,
    /// Zero of the engine's clock.
    epoch: Instant,
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
    /// Binds all listen addresses and starts accepting streams. Streams are opened over one of `carriers`, or else over
    /// TCP. `epoch` is the zero of the engine's clock.
    ///
    /// # Errors
    /// The first address that cannot be bound.
    pub fn start(
        settings: &NetSettings,
        carriers: &Carriers,
        epoch: Instant,
        runtime: Arc<SharedRuntime>,
        waker: &Waker,
    ) -> Result<(Self, LocalAddresses), StartError> {
        let handle = runtime.handle();
        let _context = handle.enter();
        let sockets = listen::bind_all(settings)?;
        let local: Vec<SocketAddr> = sockets.iter().map(|sockets| sockets.address).collect();
        let (tcp, udp): (Vec<_>, Vec<_>) = sockets.into_iter().map(|both| (both.tcp, Arc::new(both.udp))).unzip();
        let mut carriers = carriers.to_vec();
        carriers.push(Arc::new(Tcp::new(tcp, &local)));
        let shared = Arc::new(Shared {
            sink: Sink::new(waker),
            streams: Mutex::default(),
            chunks: ReadChunks::new(settings.read_chunk_bytes),
            settings: settings.clone(),
            carriers,
            last_accepted: AtomicU64::new(0),
            unseen: AtomicUsize::new(0),
            lookups: Semaphore::new(settings.max_lookups),
            datagrams: Mutex::new(DatagramRings::new(
                settings.max_datagrams,
                settings.max_datagrams_per_tick,
            )),
            local: local.clone(),
            epoch,
        });
        handle.spawn(trim_chunks(shared.clone()));
        for carrier in shared.carriers.iter().cloned() {
            handle.spawn(listen::accept(carrier, shared.clone()));
        }
        for socket in udp.iter().cloned() {
            handle.spawn(udp::receive(socket, shared.clone()));
        }
        let net = Self {
            shared,
            udp,
            outbox: udp::Outbox::default(),
            groups: Groups::default(),
            runtime,
        };
        Ok((net, LocalAddresses(local)))
    }

    fn connect(&self, id: StreamId, to: SocketAddr, choice: TransportChoice, time: Duration) {
        let stream = Arc::new(Stream::default());
        self.shared.streams().insert(id, stream.clone());
        let shared = self.shared.clone();
        self.runtime.handle().spawn(async move {
            tokio::select! {
                result = carrier::open(&shared.carriers, choice, to, time) => match result {
                    Ok((transport, carried)) => {
                        shared.sink.push(NetEvent::Connected { stream: id, transport });
                        return stream.run(id, carried, &shared).await;
                    }
                    Err(error) => shared.closed(id, error),
                },
                () = stream.closed() => {}
            }
            stream.end(&shared);
        });
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
    fn closed(&self, stream: StreamId, reason: StreamError) {
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
                NetRequest::Connect {
                    stream,
                    to,
                    transport,
                    timeout,
                } => self.connect(stream, to, transport, timeout),
                NetRequest::Send { stream, frames } => {
                    if let Some(stream) = self.shared.stream(stream) {
                        stream.send(frames);
                    }
                }
                NetRequest::Filter {
                    stream: id,
                    incoming,
                    outgoing,
                } => {
                    if let Some(stream) = self.shared.stream(id) {
                        stream.filter(id, incoming, outgoing, &self.shared);
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
                NetRequest::Datagram { from, to, data } => self.outbox.push(&self.udp, (from, to), data),
                NetRequest::Join { group } => self.groups.join(&self.runtime.handle(), &self.shared, group),
                NetRequest::Multicast { group, local, data } => self.groups.send(group, local, data),
                NetRequest::Resolve { tag, host, port } => self.resolve(tag, host, port),
            }
        }
        self.outbox.flush(&self.udp);
    }

    fn poll(&mut self, max: usize, events: &mut Vec<NetEvent>) -> bool {
        let has_more = self.shared.sink.poll(max, events);
        // Not counted against `max`: datagrams have a budget of their own, so that neither floods out the other.
        let has_more = self.shared.datagrams().take(events) | has_more;
        let seen = events
            .iter()
            .filter(|event| matches!(event, NetEvent::Accepted { .. }))
            .count();
        self.shared.unseen.fetch_sub(seen, Ordering::Relaxed);
        has_more
    }

    fn open_inbox(&mut self, purpose: Purpose) {
        self.shared.datagrams().open(purpose);
    }
}
