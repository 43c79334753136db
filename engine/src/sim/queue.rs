//! What will happen, in the order in which it will.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use ecs_torrent_protocol::time::Timestamp;

use super::NodeId;
use super::net::Flow;
use super::slab::Key;

/// Something that will happen. What it needs lies where it is handled; what is gone by then does not happen.
#[derive(Debug, Clone, Copy)]
pub(super) enum Happening {
    /// A machine has slept long enough.
    Awake(NodeId),
    /// A job of a backend is done.
    Job(Key),
    /// A connection's request reaches the other host.
    Syn(Key),
    /// Its answer is back.
    Connected(Key),
    /// The answer's acknowledgement has arrived.
    Accepted(Key),
    /// A connection could not be made in time.
    ConnectTimeout(Key),
    /// What is first on the way arrives at the receiver's access link.
    Arrival(Flow),
    /// Nothing sent arrives; the sender stops trying.
    GiveUp(Flow),
    /// An orderly close has lasted long enough.
    CloseTimeout(Flow),
    /// The uplink has sent something, and takes the next.
    UplinkFree(NodeId),
    /// The downlink has received something, and takes the next.
    DownlinkFree(NodeId),
    /// A datagram arrives at the receiver's access link.
    Datagram(Key),
}

/// All that will happen: by time, and at the same time in the order in which it was planned.
#[derive(Default)]
pub(super) struct EventQueue {
    heap: BinaryHeap<Reverse<Entry>>,
    planned: u64,
}

struct Entry {
    at: Timestamp,
    number: u64,
    what: Happening,
}

impl EventQueue {
    pub(super) fn plan(&mut self, at: Timestamp, what: Happening) {
        self.planned += 1;
        let number = self.planned;
        self.heap.push(Reverse(Entry { at, number, what }));
    }

    pub(super) fn next(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    pub(super) fn pop(&mut self) -> Option<(Timestamp, Happening)> {
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.what))
    }

    /// How much was planned so far.
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
    fn what_is_planned_first_happens_first_at_the_same_time() {
        let mut queue = EventQueue::default();
        for (at, node) in [(5, 0), (3, 1), (5, 2), (3, 3)] {
            queue.plan(Timestamp::from_nanos(at), Happening::UplinkFree(NodeId(node)));
        }
        let order = std::iter::from_fn(|| queue.pop()).map(|(_, what)| match what {
            Happening::UplinkFree(NodeId(node)) => node,
            other => panic!("{other:?}"),
        });
        assert_eq!(order.collect::<Vec<_>>(), [1, 3, 0, 2]);
    }
}
