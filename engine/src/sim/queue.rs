//! The queue of future events.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};

use ecs_torrent_protocol::time::Timestamp;

use super::NodeId;
use super::flow::Flow;
use super::keys::{ConnectionKey, DatagramKey, JobKey};

/// A future event. Its data lives in the module that handles it; an event whose data is gone has no effect.
#[derive(Debug, Clone, Copy)]
pub(super) enum SimEvent {
    /// A machine's sleep ends.
    Awake(NodeId),
    /// A backend's job is done.
    Job(JobKey),
    /// A connection request reaches the other host.
    Syn(ConnectionKey),
    /// The answer to a connection request is back.
    Connected(ConnectionKey),
    /// The acknowledgment of the answer has arrived.
    Accepted(ConnectionKey),
    /// A connection attempt times out.
    ConnectTimeout(ConnectionKey),
    /// The first segment in transit arrives at the receiver's access link.
    Arrival(Flow),
    /// Sent data does not arrive; the sender stops retrying.
    GiveUp(Flow),
    /// An orderly close times out.
    CloseTimeout(Flow),
    /// The uplink has sent a segment and takes the next.
    UplinkFree(NodeId),
    /// The downlink has received a segment and takes the next.
    DownlinkFree(NodeId),
    /// A datagram arrives at the receiver's access link.
    Datagram(DatagramKey),
}

/// All future events, ordered by time, and at the same time by the order of scheduling.
///
/// Events that are due soon are in a heap small enough for the processor's caches, the others in one list per stretch
/// of time.
#[derive(Default)]
pub(super) struct EventQueue {
    /// Empty only if the whole queue is empty.
    soon: BinaryHeap<Reverse<Entry>>,
    /// The current stretch; all events before its end are in `soon`.
    stretch: u64,
    later: BTreeMap<u64, Vec<Reverse<Entry>>>,
    planned: u64,
}

/// Length of a stretch: 2 to the power of this many nanoseconds, about a millisecond.
const STRETCH_BITS: u32 = 20;

struct Entry {
    at: Timestamp,
    number: u64,
    what: SimEvent,
}

impl EventQueue {
    pub(super) fn plan(&mut self, at: Timestamp, what: SimEvent) {
        self.planned += 1;
        let number = self.planned;
        let entry = Reverse(Entry { at, number, what });
        let stretch = at.as_nanos() >> STRETCH_BITS;
        if self.soon.is_empty() {
            self.stretch = stretch;
        }
        match stretch > self.stretch {
            true => self.later.entry(stretch).or_default().push(entry),
            false => self.soon.push(entry),
        }
    }

    pub(super) fn next(&self) -> Option<Timestamp> {
        self.soon.peek().map(|Reverse(entry)| entry.at)
    }

    pub(super) fn pop(&mut self) -> Option<(Timestamp, SimEvent)> {
        let Reverse(Entry { at, what, .. }) = self.soon.pop()?;
        if self.soon.is_empty()
            && let Some((stretch, entries)) = self.later.pop_first()
        {
            (self.stretch, self.soon) = (stretch, entries.into());
        }
        Some((at, what))
    }

    /// Number of events scheduled so far.
    pub(super) fn planned(&self) -> u64 {
        self.planned
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simultaneous_events_keep_their_order() {
        let order = order_of(&[5, 3, 5, 3]);
        assert_eq!(order, [1, 3, 0, 2]);
    }

    #[test]
    fn distant_writes_keep_their_order() {
        const MS: u64 = 1_000_000;
        let order = order_of(&[900 * MS, 2 * MS, 0, 900 * MS, 2 * MS + 1, 40 * MS, 1]);
        assert_eq!(order, [2, 6, 1, 4, 5, 0, 3]);
        // Events after the current stretch and before the next one.
        let mut queue = EventQueue::default();
        let at = |ms| Timestamp::from_nanos(ms * MS);
        queue.plan(at(10), SimEvent::UplinkFree(NodeId(0)));
        queue.plan(at(50), SimEvent::UplinkFree(NodeId(0)));
        assert_eq!(queue.pop().map(|(time, _)| time), Some(at(10)));
        queue.plan(at(30), SimEvent::UplinkFree(NodeId(0)));
        assert_eq!(queue.next(), Some(at(30)));
    }

    fn order_of(times: &[u64]) -> Vec<usize> {
        let mut queue = EventQueue::default();
        for (node, at) in times.iter().enumerate() {
            queue.plan(Timestamp::from_nanos(*at), SimEvent::UplinkFree(NodeId(node)));
        }
        let order = std::iter::from_fn(|| queue.pop()).map(|(_, what)| match what {
            SimEvent::UplinkFree(NodeId(node)) => node,
            other => panic!("{other:?}"),
        });
        order.collect()
    }
}
