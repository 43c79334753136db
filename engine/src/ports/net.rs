//! The Net port: streams of bytes over any carrier, and datagrams. It does not interpret the bytes.

mod datagrams;
mod filter;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::prelude::*;
use bytes::Bytes;
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::peer::Transport;
use ecs_torrent_components::scope::Scope;

pub(crate) use self::datagrams::DatagramRings;
pub use self::datagrams::{
    DHT_DATAGRAMS, Datagram, DatagramCounts, DatagramKind, LSD_DATAGRAMS, TRACKER_DATAGRAMS, UTP_DATAGRAMS,
};
pub use self::filter::{Cipher, Filter};
use crate::port::{JobTag, Port, PortEvent, Purpose};
use crate::purpose;

/// The Net port.
pub type NetPort = Port<NetRequest, NetEvent>;

/// The inbox of all events of streams.
pub const STREAMS: Purpose = purpose!("streams");

/// The part of a stream's window that one read uses up. A read of a few bytes costs as much as 2 KiB, so that
/// single bytes do not turn into an endless number of events: 32 of them fill a window of 64 KiB. The world grants this
/// cost again, not the number of bytes received.
#[must_use]
pub fn read_cost(bytes: usize) -> u32 {
    const LEAST: usize = 2048;
    bytes.max(LEAST) as u32
}

/// The transports that may carry a new stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportChoice {
    /// Only this transport. If the port has no carrier for it, the answer is [`StreamError::NoCarrier`].
    Only(Transport),
    /// Any transport that the port has a carrier for: one after the other, in the port's order, until one connects.
    Either,
}

impl TransportChoice {
    /// Whether the choice includes this transport.
    #[must_use]
    pub fn allows(self, transport: Transport) -> bool {
        match self {
            Self::Only(only) => only == transport,
            Self::Either => true,
        }
    }
}

impl fmt::Display for TransportChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only(transport) => transport.fmt(f),
            Self::Either => f.write_str("any transport"),
        }
    }
}

/// The reason why a stream ended or could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The port has no carrier for the requested transport.
    #[error("no carrier for {0}")]
    NoCarrier(TransportChoice),
    /// The attempt to connect timed out.
    #[error("no answer")]
    NoAnswer,
    /// The peer closed the stream.
    #[error("end of stream")]
    EndOfStream,
    /// The stream's task panicked, which is a defect.
    #[error("its task has panicked")]
    Panicked,
    /// The carrier failed: refused, reset, unreachable.
    #[error("{0}")]
    Carrier(Arc<str>),
}

impl From<std::io::Error> for StreamError {
    fn from(error: std::io::Error) -> Self {
        Self::Carrier(error.to_string().into())
    }
}

/// A request from a world to the network.
#[derive(Debug)]
pub enum NetRequest {
    /// Opens a stream. Answered by `Connected` or `Closed`.
    Connect {
        /// The name of the stream from now on, from [`Streams::next_id`].
        stream: StreamId,
        /// The remote address.
        to: SocketAddr,
        /// The transports to try.
        transport: TransportChoice,
        /// Timeout for the attempt.
        timeout: Duration,
    },
    /// Sends bytes, in order, after the bytes sent before.
    Send {
        /// The stream.
        stream: StreamId,
        /// The bytes.
        frames: Vec<Bytes>,
    },
    /// Transforms the stream's bytes from a position on, in the stream's task. Each direction can get one filter; a
    /// second one is ignored.
    ///
    /// Bytes that the world has taken are not delivered again. If the world took some beyond the position of the
    /// incoming filter, it has to transform these itself and to set the position behind them. The outgoing filter
    /// begins at or after the end of all bytes sent before this request.
    Filter {
        /// The stream.
        stream: StreamId,
        /// Transforms received bytes.
        incoming: Option<Filter>,
        /// Transforms sent bytes.
        outgoing: Option<Filter>,
    },
    /// Lets the peer send this many more bytes. A stream begins with none. Received bytes use up the granted credit, by
    /// their [`read_cost`].
    Grant {
        /// The stream.
        stream: StreamId,
        /// The number of bytes.
        bytes: u32,
    },
    /// Ends a stream; it delivers no more events. The world sends this once for every stream, even if the peer ended
    /// it.
    Close {
        /// The stream.
        stream: StreamId,
        /// Whether to send the queued bytes and wait for the peer to close, for a bounded time. Otherwise the stream
        /// is dropped at once.
        is_orderly: bool,
        /// Returned in `Gone` when an orderly close has ended, if set.
        tag: Option<JobTag>,
    },
    /// Sends a datagram from our first socket of the address's family. If that is not possible, the datagram is lost
    /// without notice.
    Datagram {
        /// The address of ours to send from, in place of the one that the system chooses.
        from: Option<SocketAddr>,
        /// The destination.
        to: SocketAddr,
        /// The payload.
        data: Bytes,
    },
    /// Joins a multicast group on the interfaces of local networks that the port listens on. Datagrams that neighbors
    /// send to the group go into the inbox of local discovery. A repeated request adds interfaces that are new and
    /// leaves the group on those that are gone. Without multicast, nothing happens.
    Join {
        /// The group.
        group: SocketAddr,
    },
    /// Sends a datagram to a multicast group that was joined, over each interface that a listen address includes.
    Multicast {
        /// The group.
        group: SocketAddr,
        /// The listen address, which receivers take for the source if it is not unspecified.
        local: SocketAddr,
        /// The payload.
        data: Bytes,
    },
    /// Looks up a host name. Answered by `Resolved`.
    Resolve {
        /// Returned with the answer.
        tag: JobTag,
        /// The name, or an address.
        host: String,
        /// The port of the resulting addresses.
        port: u16,
    },
}

/// An event from the network to a world.
#[derive(Debug)]
pub enum NetEvent {
    /// A peer connected to us.
    Accepted {
        /// The stream's name.
        stream: StreamId,
        /// The peer's address.
        remote: SocketAddr,
        /// The transport of the stream.
        transport: Transport,
    },
    /// A requested stream is open.
    Connected {
        /// The stream.
        stream: StreamId,
        /// The transport of the stream.
        transport: Transport,
    },
    /// Bytes arrived, in order.
    Received {
        /// The stream.
        stream: StreamId,
        /// The bytes, in the buffer they were read into.
        chunk: Bytes,
    },
    /// Bytes were sent to the peer.
    Sent {
        /// The stream.
        stream: StreamId,
        /// The number of bytes since the last such event.
        bytes: usize,
    },
    /// A stream ended, or could not be opened, for a reason other than our `Close`.
    Closed {
        /// The stream.
        stream: StreamId,
        /// The reason.
        reason: StreamError,
    },
    /// An orderly close has ended.
    Gone {
        /// The tag of the request.
        tag: JobTag,
    },
    /// A datagram arrived.
    Datagram {
        /// The datagram's kind, which determines the inbox.
        kind: DatagramKind,
        /// The datagram.
        datagram: Datagram,
    },
    /// The addresses of the local network's interfaces have changed. Noticed by ports that have joined a multicast
    /// group.
    AddressesChanged,
    /// Datagrams were dropped because too many were waiting or nobody takes them.
    DatagramsDropped {
        /// The kind of the datagrams; `None` if they belong to no protocol known here.
        kind: Option<DatagramKind>,
        /// The number of datagrams since the last such event.
        count: u64,
    },
    /// A host name was looked up.
    Resolved {
        /// The tag of the request.
        tag: JobTag,
        /// The addresses, or the reason why there are none.
        result: Result<Vec<SocketAddr>, Arc<str>>,
    },
}

impl PortEvent for NetEvent {
    fn purpose(&self) -> Purpose {
        match self {
            Self::Datagram { kind, .. } => kind.purpose(),
            Self::Resolved { tag, .. } | Self::Gone { tag } => tag.purpose,
            Self::AddressesChanged => LSD_DATAGRAMS,
            _ => STREAMS,
        }
    }
}

/// Stream names, and the entity that holds each stream.
#[derive(Resource, Debug, Default)]
pub struct Streams {
    last: u64,
    entities: bevy_platform::collections::HashMap<StreamId, Entity>,
}

impl Streams {
    /// Returns a new name for a stream that the world opens. The backend names the streams that it accepts.
    pub fn next_id(&mut self) -> StreamId {
        self.last += 1;
        StreamId(self.last * 2)
    }

    /// Records the entity that holds a stream.
    pub fn insert(&mut self, stream: StreamId, peer: Entity) {
        self.entities.insert(stream, peer);
    }

    /// Returns the entity that holds a stream.
    #[must_use]
    pub fn get(&self, stream: StreamId) -> Option<Entity> {
        self.entities.get(&stream).copied()
    }

    /// Forgets a stream.
    pub fn remove(&mut self, stream: StreamId) {
        self.entities.remove(&stream);
    }

    /// Returns the number of streams, including those being opened.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entities.len()
    }

    /// Whether there are no streams.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entities.is_empty()
    }
}

/// The addresses that the engine listens on, with the actual ports.
#[derive(Resource, Debug, Clone, Default)]
pub struct LocalAddresses(pub Vec<SocketAddr>);

impl LocalAddresses {
    /// Returns the listening address of the family of `remote`.
    #[must_use]
    pub fn for_family_of(&self, remote: SocketAddr) -> Option<SocketAddr> {
        self.0.iter().copied().find(|local| local.is_ipv4() == remote.is_ipv4())
    }

    /// Returns the most public network that we listen in. An engine that listens only on loopback addresses can connect
    /// only to such addresses.
    #[must_use]
    pub fn scope(&self) -> Scope {
        let scope = |address: &SocketAddr| match address.ip().is_unspecified() {
            true => Scope::Global,
            false => Scope::of(address.ip()),
        };
        self.0.iter().map(scope).max().unwrap_or(Scope::Global)
    }
}
