//! The Net port: connections that carry bytes, and datagrams. It knows nothing of what the bytes mean.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::prelude::*;
use bytes::Bytes;
use ecs_torrent_components::ids::LinkId;

use crate::port::{JobTag, Port, PortEvent, Purpose};

/// The Net port.
pub type NetPort = Port<NetRequest, NetEvent>;

/// The inbox of everything that happens to connections.
pub const LINKS: Purpose = Purpose("links");

/// What receiving so many bytes at once takes of a connection's window: a few bytes as much as 256, so that single bytes
/// do not become single events without end. Who grants what was received grants this.
#[must_use]
pub fn read_cost(bytes: usize) -> u32 {
    const LEAST: usize = 256;
    bytes.max(LEAST) as u32
}

/// The inbox of datagrams.
pub const DATAGRAMS: Purpose = Purpose("datagrams");

/// What a world asks of the network.
#[derive(Debug)]
pub enum NetRequest {
    /// Opens a connection; answered by `Connected` or `Closed`.
    Connect {
        /// Its name from now on; from [`Links::next_id`].
        link: LinkId,
        /// Where to.
        to: SocketAddr,
        /// Time for it.
        timeout: Duration,
    },
    /// Sends bytes, in order, behind what was sent before.
    Send {
        /// The connection.
        link: LinkId,
        /// The bytes.
        frames: Vec<Bytes>,
    },
    /// Lets the peer send so many more bytes. A connection begins with the receive window of the settings; what
    /// was received counts against it, by its [`read_cost`], until it is granted again.
    Grant {
        /// The connection.
        link: LinkId,
        /// Bytes.
        bytes: u32,
    },
    /// Ends a connection; nothing comes from it after this. Once for every connection, also where the peer ended it.
    Close {
        /// The connection.
        link: LinkId,
        /// Send what is queued and wait for the peer to close, for a bounded time; otherwise drop it at once.
        is_orderly: bool,
        /// Comes back in `Gone` when an orderly close has ended, where wanted.
        tag: Option<JobTag>,
    },
    /// Sends a datagram from our socket of the address's family; lost without notice where that cannot be.
    Datagram {
        /// Where to.
        to: SocketAddr,
        /// What.
        data: Bytes,
    },
    /// Looks a host name up; answered by `Resolved`.
    Resolve {
        /// Comes back with the answer.
        tag: JobTag,
        /// The name, or an address.
        host: String,
        /// Put into the addresses found.
        port: u16,
    },
}

/// What the network tells a world.
#[derive(Debug)]
pub enum NetEvent {
    /// A peer has connected to us.
    Accepted {
        /// The connection's name.
        link: LinkId,
        /// Where from.
        remote: SocketAddr,
    },
    /// A connection that was asked for is open.
    Connected {
        /// The connection.
        link: LinkId,
    },
    /// Bytes have arrived, in order.
    Received {
        /// The connection.
        link: LinkId,
        /// The bytes, in the memory they were read into.
        chunk: Bytes,
    },
    /// Bytes have left for the peer.
    Sent {
        /// The connection.
        link: LinkId,
        /// How many since the last such event.
        bytes: usize,
    },
    /// A connection has ended, or could not be made, without our asking.
    Closed {
        /// The connection.
        link: LinkId,
        /// Why, for people.
        reason: Arc<str>,
    },
    /// An orderly close has ended.
    Gone {
        /// From the request.
        tag: JobTag,
    },
    /// A datagram has arrived.
    Datagram {
        /// Where from.
        from: SocketAddr,
        /// What.
        data: Bytes,
    },
    /// A host name was looked up.
    Resolved {
        /// From the request.
        tag: JobTag,
        /// Its addresses, or why there are none.
        result: Result<Vec<SocketAddr>, Arc<str>>,
    },
}

impl PortEvent for NetEvent {
    fn purpose(&self) -> Purpose {
        match self {
            Self::Datagram { .. } => DATAGRAMS,
            Self::Resolved { tag, .. } | Self::Gone { tag } => tag.purpose,
            _ => LINKS,
        }
    }
}

/// Names for connections, and the entities that hold them.
#[derive(Resource, Debug, Default)]
pub struct Links {
    last: u64,
    entities: bevy_platform::collections::HashMap<LinkId, Entity>,
}

impl Links {
    /// A new name for a connection that the world opens. The backend names those it accepts.
    pub fn next_id(&mut self) -> LinkId {
        self.last += 1;
        LinkId(self.last * 2)
    }

    /// Notes who holds a connection.
    pub fn insert(&mut self, link: LinkId, peer: Entity) {
        self.entities.insert(link, peer);
    }

    /// Who holds a connection.
    #[must_use]
    pub fn get(&self, link: LinkId) -> Option<Entity> {
        self.entities.get(&link).copied()
    }

    /// Forgets a connection.
    pub fn remove(&mut self, link: LinkId) {
        self.entities.remove(&link);
    }

    /// Number of connections, those being made included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entities.len()
    }

    /// Whether there is no connection.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entities.is_empty()
    }
}

/// The addresses that the engine listens on, ports as they really are.
#[derive(Resource, Debug, Clone, Default)]
pub struct LocalAddresses(pub Vec<SocketAddr>);

impl LocalAddresses {
    /// The listening address of the family of `remote`.
    #[must_use]
    pub fn for_family_of(&self, remote: SocketAddr) -> Option<SocketAddr> {
        self.0.iter().copied().find(|local| local.is_ipv4() == remote.is_ipv4())
    }
}
