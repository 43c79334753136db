//! A host: its addresses, its access link, its sockets.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bevy_platform::collections::HashMap;
use bytes::Bytes;
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::random::Random;
use ecs_torrent_protocol::time::Timestamp;

use super::super::NodeId;
use super::super::flow::Flow;
use super::super::keys::ConnectionKey;
use super::super::random::stream;
use super::carrier::{Carriers, only_tcp};
use super::connection::Segment;

/// A host's access link to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    /// Maximum upload rate, in bytes per second; `None` is unlimited.
    pub up_bytes_per_s: Option<u64>,
    /// Maximum download rate, in bytes per second; `None` is unlimited.
    pub down_bytes_per_s: Option<u64>,
}

impl Access {
    /// An access link with the same rate in both directions.
    #[must_use]
    pub fn symmetric(bytes_per_s: u64) -> Self {
        Self::asymmetric(bytes_per_s, bytes_per_s)
    }

    /// An access link with a rate for each direction.
    #[must_use]
    pub fn asymmetric(up_bytes_per_s: u64, down_bytes_per_s: u64) -> Self {
        Self {
            up_bytes_per_s: Some(up_bytes_per_s),
            down_bytes_per_s: Some(down_bytes_per_s),
        }
    }
}

/// Bytes that a host has moved over its access link since it was added, on connections and in datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
}

/// A host that answers datagrams: a function from the time, the sender's address and the datagram's bytes to the
/// answers, each with a delay.
pub(in super::super) type UdpHost = Box<dyn FnMut(Timestamp, SocketAddr, &[u8]) -> Vec<(Duration, Vec<u8>)> + Send>;

/// The part of a machine that answers network traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Power {
    /// The machine and its engine.
    On,
    /// The machine only: no process listens, and connections are refused.
    Idle,
    /// Nothing: the machine is off or asleep.
    Off,
}

/// One direction of an access link, which serves its lanes in turn, one parcel at a time.
#[derive(Default)]
pub(super) struct Pipe {
    pub(super) bytes_per_s: Option<u64>,
    pub(super) free_at: Timestamp,
    /// Lanes with data to carry, in the order of their turns.
    pub(super) turns: VecDeque<Lane>,
    /// The start of the next turn is scheduled.
    pub(super) is_planned: bool,
    /// The parcel in transmission; downlinks only.
    pub(super) carried: Option<Parcel>,
}

/// A source of data for a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Flow(Flow),
    Datagrams,
}

/// The unit that a downlink carries.
pub(super) enum Parcel {
    Segment(Flow, Segment),
    Datagram(Datagram),
}

/// A datagram in transit.
#[derive(Clone)]
pub(in super::super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) sender: NodeId,
    pub(super) to: SocketAddr,
    pub(super) data: Bytes,
    /// Sent to a multicast group.
    pub(super) is_multicast: bool,
}

impl Pipe {
    /// Transmission time of this many bytes.
    pub(super) fn time_for(&self, bytes: usize) -> Duration {
        match self.bytes_per_s {
            None => Duration::ZERO,
            Some(0) => Duration::from_secs(3600),
            Some(rate) => Duration::from_nanos((bytes as u128 * 1_000_000_000).div_ceil(u128::from(rate)) as u64),
        }
    }
}

/// Queue of datagrams in one direction.
#[derive(Default)]
pub(super) struct Datagrams {
    pub(super) waiting: VecDeque<Datagram>,
    pub(super) bytes: usize,
    pub(super) is_listed: bool,
}

/// Bytes of datagrams that may wait at an access link; further ones are lost, as in any router.
const MAX_DATAGRAM_BYTES: usize = 256 << 10;

impl Datagrams {
    pub(super) fn push(&mut self, datagram: Datagram) {
        if self.bytes + datagram.data.len() <= MAX_DATAGRAM_BYTES {
            self.bytes += datagram.data.len();
            self.waiting.push_back(datagram);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Datagram> {
        let datagram = self.waiting.pop_front()?;
        self.bytes -= datagram.data.len();
        Some(datagram)
    }
}

/// A host and its system's socket state.
pub(super) struct Host {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) power: Power,
    pub(super) up: Pipe,
    pub(super) down: Pipe,
    pub(super) datagrams_out: Datagrams,
    pub(super) datagrams_in: Datagrams,
    pub(super) streams: HashMap<StreamId, (ConnectionKey, u8)>,
    /// Whether the world grants credit to each stream; a host without an engine reads everything.
    pub(super) has_credit: bool,
    pub(super) close_timeout: Duration,
    pub(super) is_refusing: bool,
    pub(super) is_reading: bool,
    pub(super) carriers: Carriers,
    /// Accepted connections that the world has not seen.
    pub(super) unseen: usize,
    pub(super) traffic: Traffic,
    pub(super) jitter: Random,
    pub(super) datagram_luck: Random,
    /// The local network that the host is in, and the multicast groups that it has joined.
    pub(super) local_network: Option<usize>,
    pub(super) groups: BTreeSet<SocketAddr>,
    pub(super) reset_luck: Random,
    last_accepted: u64,
    last_port: u16,
}

/// First source port of connections.
const FIRST_PORT: u16 = 32_768;

impl Host {
    pub(super) fn new(seed: u64, id: NodeId, addresses: Vec<SocketAddr>, has_credit: bool) -> Self {
        Self {
            addresses,
            power: Power::On,
            up: Pipe::default(),
            down: Pipe::default(),
            datagrams_out: Datagrams::default(),
            datagrams_in: Datagrams::default(),
            streams: HashMap::default(),
            has_credit,
            close_timeout: Duration::from_secs(1),
            is_refusing: false,
            is_reading: true,
            carriers: only_tcp(),
            unseen: 0,
            traffic: Traffic::default(),
            jitter: stream(seed, b"jitter  ", id),
            datagram_luck: stream(seed, b"datagram", id),
            local_network: None,
            groups: BTreeSet::new(),
            reset_luck: stream(seed, b"resets  ", id),
            last_accepted: 0,
            last_port: FIRST_PORT,
        }
    }

    /// A new stream id for an accepted connection; these are odd, and the world uses even ones.
    pub(super) fn next_accepted(&mut self) -> StreamId {
        self.last_accepted += 1;
        StreamId(self.last_accepted * 2 - 1)
    }

    /// Credit of a new stream.
    pub(super) fn first_credit(&self) -> i64 {
        match self.has_credit {
            true => 0,
            false => i64::MAX / 2,
        }
    }

    /// Source address of the next connection to `to`, if this host has an address of that family.
    pub(super) fn source_for(&mut self, to: IpAddr) -> Option<SocketAddr> {
        let ip = self.address_for(to)?.ip();
        self.last_port = self.last_port.checked_add(1).unwrap_or(FIRST_PORT);
        Some(SocketAddr::new(ip, self.last_port))
    }

    /// The listening address of `to`'s family.
    pub(super) fn address_for(&self, to: IpAddr) -> Option<SocketAddr> {
        let same = |address: &&SocketAddr| address.is_ipv4() == to.is_ipv4();
        self.addresses.iter().find(same).copied()
    }
}
