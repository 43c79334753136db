//! Carriers, which open and accept streams below the Net port.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ecs_torrent_components::peer::Transport;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::time::timeout;

use crate::ports::net::{StreamError, TransportChoice};

/// A stream of bytes that a carrier has opened or accepted.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Waits until a read is worth an attempt, so that a stream without data takes no read buffer. By default, every
    /// read is.
    fn poll_readable(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl ByteStream for DuplexStream {}

/// A future that a carrier returns.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Opens and accepts the streams of one transport. TCP is one carrier; an embedder can add others.
///
/// ```
/// use std::io;
/// use std::net::SocketAddr;
///
/// use ecs_torrent_components::peer::Transport;
/// use ecs_torrent_engine::backends::net::{ByteStream, Carrier, Pending};
/// use tokio::io::{DuplexStream, duplex};
/// use tokio::sync::Mutex;
/// use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
///
/// /// Streams in memory between two engines of one process.
/// struct Pipes {
///     /// The other engine's ends of the streams that this engine opens.
///     opened: UnboundedSender<DuplexStream>,
///     /// This engine's ends of the streams that the other engine opens.
///     accepted: Mutex<UnboundedReceiver<DuplexStream>>,
///     /// The other engine's address.
///     other: SocketAddr,
/// }
///
/// impl Carrier for Pipes {
///     fn transport(&self) -> Transport {
///         Transport::Other("pipe")
///     }
///
///     fn connect(&self, _to: SocketAddr) -> Pending<'_, Box<dyn ByteStream>> {
///         Box::pin(async {
///             let (ours, theirs) = duplex(64 << 10);
///             self.opened.send(theirs).map_err(io::Error::other)?;
///             Ok(Box::new(ours) as Box<dyn ByteStream>)
///         })
///     }
///
///     fn accept(&self) -> Pending<'_, (Box<dyn ByteStream>, SocketAddr)> {
///         Box::pin(async {
///             let stream = self.accepted.lock().await.recv().await;
///             let stream = stream.ok_or(io::ErrorKind::BrokenPipe)?;
///             Ok((Box::new(stream) as Box<dyn ByteStream>, self.other))
///         })
///     }
/// }
/// ```
pub trait Carrier: Send + Sync + 'static {
    /// Returns the transport that the carrier's streams are reported with.
    fn transport(&self) -> Transport;

    /// Opens a stream to an address. The attempt ends when the future is dropped.
    fn connect(&self, to: SocketAddr) -> Pending<'_, Box<dyn ByteStream>>;

    /// Waits for the next stream from another host, and returns it with the other host's address. After an error, this
    /// is called again after a pause.
    fn accept(&self) -> Pending<'_, (Box<dyn ByteStream>, SocketAddr)>;
}

/// The carriers of an engine, in the order in which they are tried.
pub type Carriers = Arc<[Arc<dyn Carrier>]>;

/// Opens a stream over the first carrier that connects. Each has an equal part of the time.
pub(super) async fn open(
    carriers: &[Arc<dyn Carrier>],
    choice: TransportChoice,
    to: SocketAddr,
    time: Duration,
) -> Result<(Transport, Box<dyn ByteStream>), StreamError> {
    let allowed = || carriers.iter().filter(|carrier| choice.allows(carrier.transport()));
    let count = u32::try_from(allowed().count()).unwrap_or(u32::MAX);
    let mut failed = StreamError::NoCarrier(choice);
    for carrier in allowed() {
        match timeout(time / count, carrier.connect(to)).await {
            Ok(Ok(stream)) => return Ok((carrier.transport(), stream)),
            Ok(Err(error)) => failed = error.into(),
            Err(_) => failed = StreamError::NoAnswer,
        }
    }
    Err(failed)
}
