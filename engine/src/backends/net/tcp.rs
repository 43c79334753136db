//! TCP as a carrier.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use ecs_torrent_components::peer::Transport;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::carrier::{ByteStream, Carrier, Pending};

/// Connects from, and accepts at, the configured addresses.
pub(super) struct Tcp {
    listeners: Vec<TcpListener>,
    /// Source addresses for outgoing connections, if specific addresses were configured.
    sources: Vec<IpAddr>,
    /// Counts accepts, so that the listeners are polled first in turn.
    turn: AtomicUsize,
}

impl ByteStream for TcpStream {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }
}

impl Tcp {
    pub(super) fn new(listeners: Vec<TcpListener>, local: &[SocketAddr]) -> Self {
        let ips = local.iter().map(SocketAddr::ip);
        let sources = ips.filter(|ip| !ip.is_unspecified()).collect();
        Self {
            listeners,
            sources,
            turn: AtomicUsize::new(0),
        }
    }

    /// Opens a connection, from our own address of that family if a specific one was configured.
    async fn open(&self, to: SocketAddr) -> io::Result<Box<dyn ByteStream>> {
        let socket = if to.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        let is_of_family = |source: &&IpAddr| source.is_ipv4() == to.is_ipv4();
        if let Some(source) = self.sources.iter().find(is_of_family) {
            socket.bind(SocketAddr::new(*source, 0))?;
        }
        socket.connect(to).await.map(prepared)
    }
}

impl Carrier for Tcp {
    fn transport(&self) -> Transport {
        Transport::Tcp
    }

    fn connect(&self, to: SocketAddr) -> Pending<'_, Box<dyn ByteStream>> {
        Box::pin(self.open(to))
    }

    fn accept(&self) -> Pending<'_, (Box<dyn ByteStream>, SocketAddr)> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.listeners.len().max(1);
        Box::pin(poll_fn(move |cx| {
            let (last, first) = self.listeners.split_at(turn);
            let mut accepted = first.iter().chain(last).map(|listener| listener.poll_accept(cx));
            match accepted.find(Poll::is_ready) {
                Some(Poll::Ready(result)) => Poll::Ready(result.map(|(stream, remote)| (prepared(stream), remote))),
                _ => Poll::Pending,
            }
        }))
    }
}

fn prepared(stream: TcpStream) -> Box<dyn ByteStream> {
    // Requests are small and urgent.
    let _ = stream.set_nodelay(true);
    Box::new(stream)
}
