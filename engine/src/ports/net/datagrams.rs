//! Datagrams: their kinds, and the rings in which they wait for the world.

use std::collections::VecDeque;
use std::iter;
use std::net::SocketAddr;

use bevy_ecs::prelude::*;
use bytes::Bytes;
use ecs_torrent_protocol::time::Timestamp;

use super::NetEvent;
use crate::port::Purpose;
use crate::purpose;

/// The inbox of trackers' answers.
pub const TRACKER_DATAGRAMS: Purpose = purpose!("datagrams of trackers");

/// The inbox of messages of DHT nodes.
pub const DHT_DATAGRAMS: Purpose = purpose!("datagrams of the DHT");

/// The inbox of uTP packets that belong to no stream of the port.
pub const UTP_DATAGRAMS: Purpose = purpose!("datagrams of uTP");

/// The inbox of announcements in the local network.
pub const LSD_DATAGRAMS: Purpose = purpose!("datagrams of local discovery");

/// The protocol of a datagram, which its first bytes show. Each kind has its own ring on the way into the world, and
/// its own share of a tick, so that a flood of one kind does not displace another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DatagramKind {
    /// An answer of a tracker (BEP 15).
    Tracker,
    /// A message of a DHT node (BEP 5).
    Dht,
    /// A uTP packet (BEP 29).
    Utp,
    /// A message to a multicast group of the local network (BEP 14). A datagram that was sent to one address is never
    /// of this kind.
    LocalDiscovery,
}

impl DatagramKind {
    /// All kinds, in the order in which they are delivered.
    pub const ALL: [Self; 4] = [Self::Tracker, Self::Dht, Self::Utp, Self::LocalDiscovery];

    /// Returns the kind of a datagram, or `None` if it belongs to no protocol known here.
    #[must_use]
    pub fn of(data: &[u8]) -> Option<Self> {
        match data {
            // BEP 15: an action from 0 to 3 and a transaction id.
            [0, 0, 0, 0..=3, _, _, _, _, ..] => Some(Self::Tracker),
            // BEP 5: a bencoded dictionary.
            [b'd', .., b'e'] => Some(Self::Dht),
            // BEP 29: a type from 0 to 4, version 1, and a header of 20 bytes.
            [first, ..] if data.len() >= 20 && first & 0x0f == 1 && first >> 4 <= 4 => Some(Self::Utp),
            _ => None,
        }
    }

    /// Returns the name of the kind, for monitoring.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tracker => "tracker",
            Self::Dht => "dht",
            Self::Utp => "utp",
            Self::LocalDiscovery => "local_discovery",
        }
    }

    /// Returns the inbox of datagrams of this kind.
    #[must_use]
    pub fn purpose(self) -> Purpose {
        match self {
            Self::Tracker => TRACKER_DATAGRAMS,
            Self::Dht => DHT_DATAGRAMS,
            Self::Utp => UTP_DATAGRAMS,
            Self::LocalDiscovery => LSD_DATAGRAMS,
        }
    }
}

/// A datagram that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The sender.
    pub from: SocketAddr,
    /// The address of ours to which the datagram was sent; that of the group for a multicast.
    pub to: SocketAddr,
    /// When the datagram arrived, by the engine's clock. It may be a little later than the start of the tick that takes
    /// it.
    pub arrived: Timestamp,
    /// The payload.
    pub data: Bytes,
}

/// Whether a message of the DHT is an answer: its last pair, in the order of the keys, is the type `r` or `e` (BEP 5).
/// An answer in another order passes for a query.
fn is_dht_answer(data: &[u8]) -> bool {
    data.ends_with(b"1:y1:re") || data.ends_with(b"1:y1:ee")
}

/// Datagrams on their way into the world, in one ring of fixed length for each kind, and one for answers of the DHT,
/// so that a flood of queries does not displace the answers to ours. A full ring drops and counts new datagrams: UDP
/// may lose them anyway, and memory stays bounded. Datagrams without an open inbox are dropped and counted too,
/// without waking the engine.
#[derive(Debug)]
pub(crate) struct DatagramRings {
    rings: [Ring; DatagramKind::ALL.len()],
    dht_answers: Ring,
    /// Number of datagrams that belong to no protocol known here.
    unknown_count: u64,
    most: usize,
    most_per_tick: usize,
}

#[derive(Debug, Default)]
struct Ring {
    is_open: bool,
    waiting: VecDeque<Datagram>,
    dropped_count: u64,
}

impl Ring {
    /// Appends a datagram if there is room and the ring is open. Returns whether it was appended.
    fn push(
        &mut self,
        most: usize,
        from: SocketAddr,
        to: SocketAddr,
        arrived: Timestamp,
        copy: impl FnOnce() -> Bytes,
    ) -> bool {
        let has_room = self.is_open && self.waiting.len() < most;
        if has_room {
            let data = copy();
            self.waiting.push_back(Datagram {
                from,
                to,
                arrived,
                data,
            });
        } else {
            self.dropped_count += 1;
        }
        has_room
    }
}

impl DatagramRings {
    /// Creates closed rings of at most `most` datagrams each, of which a tick takes at most `most_per_tick`.
    #[must_use]
    pub(crate) fn new(most: usize, most_per_tick: usize) -> Self {
        Self {
            rings: Default::default(),
            dht_answers: Ring::default(),
            unknown_count: 0,
            most,
            most_per_tick,
        }
    }

    /// Opens the ring whose datagrams go into the inbox `purpose`, if there is one.
    pub(crate) fn open(&mut self, purpose: Purpose) {
        for (kind, ring) in self.all() {
            ring.is_open |= kind.purpose() == purpose;
        }
    }

    /// Returns all rings in the order in which they are delivered, with the kind of their datagrams.
    fn all(&mut self) -> impl Iterator<Item = (DatagramKind, &mut Ring)> {
        let answers = (DatagramKind::Dht, &mut self.dht_answers);
        iter::once(answers).chain(DatagramKind::ALL.into_iter().zip(&mut self.rings))
    }

    /// Appends a datagram if there is room and the inbox of its kind is open. Returns whether it was appended.
    pub(crate) fn push(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        arrived: Timestamp,
        data: &[u8],
        copy: impl FnOnce() -> Bytes,
    ) -> bool {
        match DatagramKind::of(data) {
            Some(DatagramKind::Dht) if is_dht_answer(data) => self.dht_answers.push(self.most, from, to, arrived, copy),
            Some(kind) => self.push_as(kind, from, to, arrived, copy),
            None => {
                self.unknown_count += 1;
                false
            }
        }
    }

    /// Appends a datagram of a known kind if there is room and the inbox of its kind is open. Returns whether it was
    /// appended.
    pub(crate) fn push_as(
        &mut self,
        kind: DatagramKind,
        from: SocketAddr,
        to: SocketAddr,
        arrived: Timestamp,
        copy: impl FnOnce() -> Bytes,
    ) -> bool {
        self.rings[kind as usize].push(self.most, from, to, arrived, copy)
    }

    /// Moves the datagrams of one tick into `events`, and reports how many were dropped. Returns whether more are
    /// waiting.
    pub(crate) fn take(&mut self, events: &mut Vec<NetEvent>) -> bool {
        let (mut has_more, most_per_tick) = (false, self.most_per_tick);
        for (kind, ring) in self.all() {
            // Most ticks have no datagrams.
            if ring.waiting.is_empty() && ring.dropped_count == 0 {
                continue;
            }
            let count = ring.waiting.len().min(most_per_tick);
            let datagrams = ring.waiting.drain(..count);
            events.extend(datagrams.map(|datagram| NetEvent::Datagram { kind, datagram }));
            has_more |= !ring.waiting.is_empty();
            report(Some(kind), &mut ring.dropped_count, events);
        }
        report(None, &mut self.unknown_count, events);
        has_more
    }
}

fn report(kind: Option<DatagramKind>, count: &mut u64, events: &mut Vec<NetEvent>) {
    let count = std::mem::take(count);
    if count > 0 {
        events.push(NetEvent::DatagramsDropped { kind, count });
    }
}

/// Counters of dropped datagrams, for monitoring.
#[derive(Resource, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatagramCounts {
    /// Datagrams of each kind that were dropped because too many were waiting or their inbox is not open, in the order
    /// of [`DatagramKind::ALL`].
    pub dropped: [u64; DatagramKind::ALL.len()],
    /// Datagrams that belong to no protocol known here.
    pub unknown: u64,
}

impl DatagramCounts {
    /// Adds dropped datagrams.
    pub fn add(&mut self, kind: Option<DatagramKind>, count: u64) {
        match kind {
            Some(kind) => self.dropped[kind as usize] += count,
            None => self.unknown += count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACKER: &[u8] = &[0, 0, 0, 1, 9, 9, 9, 9, 5];
    const DHT: &[u8] = b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe";
    const UTP: [u8; 20] = [0x41; 20];

    fn push(rings: &mut DatagramRings, data: &[u8]) -> bool {
        let from = SocketAddr::from(([192, 0, 2, 1], 1));
        rings.push(from, from, Timestamp::ZERO, data, || Bytes::copy_from_slice(data))
    }

    #[test]
    fn the_first_bytes_name_the_kind() {
        for (data, kind) in [
            (TRACKER, Some(DatagramKind::Tracker)),
            (DHT, Some(DatagramKind::Dht)),
            (&UTP, Some(DatagramKind::Utp)),
            (&[0x01; 20], Some(DatagramKind::Utp)),
            (&[], None),
            (&[0, 0, 0, 1], None),
            (&[0, 0, 0, 4, 1, 1, 1, 1], None),
            (&[0x51; 20], None),
            (&[0x42; 20], None),
            (&[0x41; 19], None),
            (b"d1:ad2:id", None),
            (b"GET / HTTP/1.1", None),
        ] {
            assert_eq!(DatagramKind::of(data), kind, "{data:?}");
        }
    }

    #[test]
    fn each_kind_has_a_ring_and_a_share_of_the_tick() {
        let mut rings = DatagramRings::new(3, 2);
        rings.open(TRACKER_DATAGRAMS);
        rings.open(UTP_DATAGRAMS);
        rings.open(purpose!("something else"));
        let pushed = |rings: &mut DatagramRings, data: &[u8]| (0..10).filter(|_| push(rings, data)).count();
        // A full ring does not use up the room of another one, and the DHT's inbox is not open.
        assert_eq!(pushed(&mut rings, TRACKER), 3);
        assert_eq!(pushed(&mut rings, &UTP), 3);
        assert_eq!(pushed(&mut rings, DHT), 0);
        assert_eq!(pushed(&mut rings, b"noise"), 0);
        let (mut events, mut counts) = (Vec::new(), DatagramCounts::default());
        let mut taken = Vec::new();
        for has_more in [true, false, false] {
            assert_eq!(rings.take(&mut events), has_more);
            let mut of_tick = [0; 3];
            for event in events.drain(..) {
                match event {
                    NetEvent::Datagram { kind, .. } => of_tick[kind as usize] += 1,
                    NetEvent::DatagramsDropped { kind, count } => counts.add(kind, count),
                    _ => {}
                }
            }
            taken.push(of_tick);
        }
        assert_eq!(taken, [[2, 0, 2], [1, 0, 1], [0, 0, 0]]);
        assert_eq!((counts.dropped, counts.unknown), ([7, 10, 7, 0], 10));
    }
    /// A flood of queries to the DHT node leaves the answers to ours their ring and their share of each tick.
    #[test]
    fn queries_of_the_dht_do_not_displace_answers() {
        const REPLY: &[u8] = b"d1:rd2:id20:abcdefghij0123456789e1:t2:aa1:y1:re";
        const ERROR: &[u8] = b"d1:eli201e5:otherre1:t2:aa1:y1:ee";
        let mut rings = DatagramRings::new(3, 2);
        rings.open(DHT_DATAGRAMS);
        let mut received = Vec::new();
        for _ in 0..4 {
            assert_eq!(
                (0..100).filter(|_| push(&mut rings, DHT)).count(),
                if received.is_empty() { 3 } else { 2 }
            );
            assert!(push(&mut rings, REPLY) && push(&mut rings, ERROR));
            let mut events = Vec::new();
            assert!(rings.take(&mut events), "a query waits");
            received.extend(events.into_iter().filter_map(|event| match event {
                NetEvent::Datagram {
                    kind: DatagramKind::Dht,
                    datagram,
                } => Some(datagram.data),
                _ => None,
            }));
        }
        assert_eq!(received, [REPLY, ERROR, DHT, DHT].repeat(4), "answers come first");
        assert_eq!(
            (0..100).filter(|_| push(&mut rings, REPLY)).count(),
            3,
            "a ring has a bound"
        );
    }
}
