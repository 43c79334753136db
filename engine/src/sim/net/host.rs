//! A host: its addresses, its access link, its sockets.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bevy_platform::collections::HashMap;
use bytes::Bytes;
use ecs_torrent_components::ids::LinkId;
use ecs_torrent_components::random::Random;
use ecs_torrent_protocol::time::Timestamp;

use super::super::NodeId;
use super::super::random::stream;
use super::super::slab::Key;
use super::connection::{Flow, Segment};

/// A host's line to the rest of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    /// What it sends at most, in bytes per second; nothing is no limit.
    pub up_bytes_per_s: Option<u64>,
    /// What it receives at most, in bytes per second; nothing is no limit.
    pub down_bytes_per_s: Option<u64>,
}

impl Access {
    /// Both directions alike.
    #[must_use]
    pub fn symmetric(bytes_per_s: u64) -> Self {
        Self::asymmetric(bytes_per_s, bytes_per_s)
    }

    /// Each direction its own.
    #[must_use]
    pub fn asymmetric(up_bytes_per_s: u64, down_bytes_per_s: u64) -> Self {
        Self {
            up_bytes_per_s: Some(up_bytes_per_s),
            down_bytes_per_s: Some(down_bytes_per_s),
        }
    }
}

/// What a host has moved over its access link since it was added, in bytes, connections and datagrams alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Sent.
    pub sent_bytes: u64,
    /// Received.
    pub received_bytes: u64,
}

/// What answers behind an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Power {
    /// Everything.
    On,
    /// The machine, for which no process listens: it refuses.
    Idle,
    /// Nothing: the machine is off, or asleep.
    Off,
}

/// One direction of an access link: carries one thing after the other, in turns.
#[derive(Default)]
pub(super) struct Pipe {
    pub(super) bytes_per_s: Option<u64>,
    pub(super) free_at: Timestamp,
    /// Who has something to carry, in the order of their turns.
    pub(super) turns: VecDeque<Lane>,
    /// It is known when the next turn begins.
    pub(super) is_planned: bool,
    /// What is on the way through it; for downlinks.
    pub(super) carried: Option<Parcel>,
}

/// Who takes turns at a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Flow(Flow),
    Datagrams,
}

/// What a downlink carries.
pub(super) enum Parcel {
    Segment(Flow, Segment),
    Datagram(Datagram),
}

/// A datagram on its way.
#[derive(Clone)]
pub(in super::super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) sender: NodeId,
    pub(super) to: SocketAddr,
    pub(super) data: Bytes,
}

impl Pipe {
    /// How long it takes for so many bytes.
    pub(super) fn time_for(&self, bytes: usize) -> Duration {
        match self.bytes_per_s {
            None => Duration::ZERO,
            Some(0) => Duration::from_secs(3600),
            Some(rate) => Duration::from_nanos((bytes as u128 * 1_000_000_000).div_ceil(u128::from(rate)) as u64),
        }
    }
}

/// Datagrams, in one direction.
#[derive(Default)]
pub(super) struct Datagrams {
    pub(super) waiting: VecDeque<Datagram>,
    pub(super) bytes: usize,
    pub(super) is_listed: bool,
}

/// Bytes of datagrams that wait at an access link; more are lost, as in any router.
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

/// A host, and what its system knows of its sockets.
pub(super) struct Host {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) power: Power,
    pub(super) up: Pipe,
    pub(super) down: Pipe,
    pub(super) datagrams_out: Datagrams,
    pub(super) datagrams_in: Datagrams,
    pub(super) links: HashMap<LinkId, (Key, u8)>,
    /// What a connection may bring before it is granted more; a host without an engine grants by itself.
    pub(super) window: Option<u32>,
    pub(super) close_timeout: Duration,
    pub(super) is_refusing: bool,
    pub(super) is_reading: bool,
    /// Connections accepted that the world has not seen.
    pub(super) unseen: usize,
    pub(super) traffic: Traffic,
    pub(super) jitter: Random,
    pub(super) datagram_luck: Random,
    pub(super) reset_luck: Random,
    last_accepted: u64,
    last_port: u16,
}

/// Source ports of connections, from here on.
const FIRST_PORT: u16 = 32_768;

impl Host {
    pub(super) fn new(seed: u64, id: NodeId, addresses: Vec<SocketAddr>, window: Option<u32>) -> Self {
        Self {
            addresses,
            power: Power::On,
            up: Pipe::default(),
            down: Pipe::default(),
            datagrams_out: Datagrams::default(),
            datagrams_in: Datagrams::default(),
            links: HashMap::default(),
            window,
            close_timeout: Duration::from_secs(1),
            is_refusing: false,
            is_reading: true,
            unseen: 0,
            traffic: Traffic::default(),
            jitter: stream(seed, b"jitter  ", id),
            datagram_luck: stream(seed, b"datagram", id),
            reset_luck: stream(seed, b"resets  ", id),
            last_accepted: 0,
            last_port: FIRST_PORT,
        }
    }

    /// An odd name for a connection that is accepted; the world gives even ones.
    pub(super) fn next_accepted(&mut self) -> LinkId {
        self.last_accepted += 1;
        LinkId(self.last_accepted * 2 - 1)
    }

    /// Where the next connection to `to` comes from, if this host has an address of that family.
    pub(super) fn source_for(&mut self, to: IpAddr) -> Option<SocketAddr> {
        let ip = self.address_for(to)?.ip();
        self.last_port = self.last_port.checked_add(1).unwrap_or(FIRST_PORT);
        Some(SocketAddr::new(ip, self.last_port))
    }

    /// The listening address of the family of `to`.
    pub(super) fn address_for(&self, to: IpAddr) -> Option<SocketAddr> {
        let same = |address: &&SocketAddr| address.is_ipv4() == to.is_ipv4();
        self.addresses.iter().find(same).copied()
    }
}
