//! Listening sockets: TCP for peers and, on the same address, UDP for trackers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::settings::NetSettings;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::Shared;
use super::carrier::Carrier;
use super::stream::Stream;
use super::udp::Udp;
use crate::backends::StartError;
use crate::ports::net::NetEvent;

/// Maximum number of connections waiting in the kernel to be accepted.
const BACKLOG: i32 = 256;

/// Maximum number of accepted streams that the world has not seen yet. Further ones wait with their carrier.
const MAX_UNSEEN: usize = 256;

/// Pause after an accept failed for lack of descriptors or memory. Others may free some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Attempts to find a port that is free for both TCP and UDP.
const PORT_ATTEMPTS: usize = 16;

pub(super) struct Sockets {
    pub(super) address: SocketAddr,
    pub(super) tcp: TcpListener,
    pub(super) udp: Udp,
}

/// Binds every listen address.
///
/// Skips a wildcard address if this machine lacks its family, as long as another address can be bound.
pub(super) fn bind_all(settings: &NetSettings) -> Result<Vec<Sockets>, StartError> {
    let mut bound = Vec::new();
    let mut failed = None;
    for &address in &settings.listen {
        match bind(address, settings.listen_fallback) {
            Ok(sockets) => bound.push(sockets),
            Err(error) if is_family_missing(&error) && address.ip().is_unspecified() => {
                tracing::info!("not listening on {address}: {error}");
                failed = Some(StartError::Listen { address, error });
            }
            Err(error) => return Err(StartError::Listen { address, error }),
        }
    }
    match failed {
        Some(error) if bound.is_empty() => Err(error),
        _ => Ok(bound),
    }
}

/// Checks that this machine has the addresses, and lets this process listen on them. A port in use is no error: the
/// engine may hold it itself.
///
/// # Errors
/// The first address that cannot be bound.
pub fn check_addresses(addresses: &[SocketAddr]) -> Result<(), StartError> {
    for &address in addresses {
        match bind_socket(address, Type::STREAM, Protocol::TCP) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) if is_family_missing(&error) && address.ip().is_unspecified() => {}
            Err(error) => return Err(StartError::Listen { address, error }),
            Ok(_) => {}
        }
    }
    Ok(())
}

fn is_family_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
    ) || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

fn bind(address: SocketAddr, may_fall_back: bool) -> io::Result<Sockets> {
    match bind_pair(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && address.port() != 0 && may_fall_back => {
            let sockets = bind(SocketAddr::new(address.ip(), 0), false)?;
            tracing::warn!("{address} is in use, listening on {} instead", sockets.address);
            Ok(sockets)
        }
        result => result,
    }
}

fn bind_pair(address: SocketAddr) -> io::Result<Sockets> {
    let mut attempts = PORT_ATTEMPTS;
    loop {
        let tcp = bind_socket(address, Type::STREAM, Protocol::TCP)?;
        tcp.listen(BACKLOG)?;
        let tcp = TcpListener::from_std(tcp.into())?;
        let address_bound = tcp.local_addr()?;
        match bind_socket(address_bound, Type::DGRAM, Protocol::UDP) {
            // A free TCP port may be in use for UDP. The next attempt gets another port.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && address.port() == 0 && attempts > 0 => {
                attempts -= 1;
            }
            udp => {
                return Ok(Sockets {
                    address: address_bound,
                    tcp,
                    udp: Udp::new(udp?.into())?,
                });
            }
        }
    }
}

fn bind_socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        // Each family has its own socket.
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        // A restarted engine gets its port even if old connections linger on it.
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

/// Accepts a carrier's streams for as long as the engine lives.
pub(super) async fn accept(carrier: Arc<dyn Carrier>, shared: Arc<Shared>) {
    let transport = carrier.transport();
    loop {
        if shared.unseen.load(Ordering::Relaxed) >= MAX_UNSEEN {
            sleep(ACCEPT_PAUSE / 10).await;
            continue;
        }
        match carrier.accept().await {
            Ok((carried, remote)) => {
                // Accepted streams have odd names, those that the world opens have even ones.
                let id = StreamId(shared.last_accepted.fetch_add(2, Ordering::Relaxed) + 1);
                let stream = Arc::new(Stream::default());
                shared.streams().insert(id, stream.clone());
                shared.unseen.fetch_add(1, Ordering::Relaxed);
                shared.sink.push(NetEvent::Accepted {
                    stream: id,
                    remote,
                    transport,
                });
                let shared = shared.clone();
                tokio::spawn(async move { stream.run(id, carried, &shared).await });
            }
            Err(error) => {
                // Fault 99: without descriptors, accepting pauses. A connection that broke before it was accepted is
                // harmless.
                tracing::debug!("accept over {transport}: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
