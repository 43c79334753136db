//! The Net port: connections that carry bytes, and datagrams. It knows nothing of what the bytes mean.

use std::collections::VecDeque;
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

/// Credit that receiving so many bytes at once takes of a connection's window: a few bytes take as much as 2 KiB, so that
/// single bytes do not become single events without end (32 of them fill a window of 64 KiB). What is granted again for
/// received bytes is this.
#[must_use]
pub fn read_cost(bytes: usize) -> u32 {
    const LEAST: usize = 2048;
    bytes.max(LEAST) as u32
}

/// The inbox of datagrams.
pub const DATAGRAMS: Purpose = Purpose("datagrams");

/// What a datagram is for, as its first bytes tell. Each kind has a ring of its own on the way into the world, so that a
/// flood of one does not take the room of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DatagramKind {
    /// The answer of a tracker: all that there is so far.
    Tracker,
}

impl DatagramKind {
    /// The number of kinds.
    pub const COUNT: usize = 1;

    /// The kind of a datagram.
    #[must_use]
    pub fn of(_data: &[u8]) -> Self {
        Self::Tracker
    }
}

/// Datagrams on their way into the world: a ring for each kind, of a fixed length. A ring that is full drops what comes,
/// and counts it: UDP may lose what it likes, and memory has a bound.
#[derive(Debug)]
pub struct DatagramRings {
    rings: [Ring; DatagramKind::COUNT],
    most: usize,
}

#[derive(Debug, Default)]
struct Ring {
    waiting: VecDeque<(SocketAddr, Bytes)>,
    dropped_count: u64,
}

impl DatagramRings {
    /// Empty rings of at most `most` datagrams each.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            rings: Default::default(),
            most,
        }
    }

    /// Appends a datagram that `copy` makes, if there is room; whether there was.
    pub fn push(&mut self, kind: DatagramKind, from: SocketAddr, copy: impl FnOnce() -> Bytes) -> bool {
        let ring = &mut self.rings[kind as usize];
        let has_room = ring.waiting.len() < self.most;
        if has_room {
            ring.waiting.push_back((from, copy()));
        } else {
            ring.dropped_count += 1;
        }
        has_room
    }

    /// Moves all datagrams into `events`, and tells of those that were dropped.
    pub fn take(&mut self, events: &mut Vec<NetEvent>) {
        for (ring, kind) in self.rings.iter_mut().zip([DatagramKind::Tracker]) {
            let datagrams = ring.waiting.drain(..);
            events.extend(datagrams.map(|(from, data)| NetEvent::Datagram { from, data }));
            let count = std::mem::take(&mut ring.dropped_count);
            if count > 0 {
                events.push(NetEvent::DatagramsDropped { kind, count });
            }
        }
    }
}

/// Numbers of datagrams, for those who watch an engine.
#[derive(Resource, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatagramCounts {
    /// Dropped, since a ring was full.
    pub dropped: u64,
}

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
    /// Lets the peer send so many more bytes. A connection begins with
    /// [`first_window`](ecs_torrent_components::settings::NetSettings::first_window); what was received counts against
    /// it, by its [`read_cost`], until it is granted again.
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
    /// Datagrams have been dropped, since too many were waiting.
    DatagramsDropped {
        /// Their kind.
        kind: DatagramKind,
        /// How many since the last such event.
        count: u64,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_drops_and_counts() {
        let mut rings = DatagramRings::new(3);
        let from = SocketAddr::from(([192, 0, 2, 1], 1));
        let mut events = Vec::new();
        for round in 0..2 {
            let taken = (0..10)
                .filter(|number| rings.push(DatagramKind::Tracker, from, || Bytes::from(vec![*number])))
                .count();
            assert_eq!(taken, 3, "round {round}");
            rings.take(&mut events);
        }
        let first: Vec<&NetEvent> = events.iter().take(4).collect();
        assert!(
            matches!(first[..], [
                NetEvent::Datagram { data, .. }, NetEvent::Datagram { .. }, NetEvent::Datagram { .. },
                NetEvent::DatagramsDropped { kind: DatagramKind::Tracker, count: 7 },
            ] if data[..] == [0]),
            "{first:?}"
        );
        assert_eq!(events.len(), 8);
    }
}
