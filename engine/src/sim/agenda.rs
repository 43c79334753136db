//! The schedule of the nodes' ticks.

use std::collections::BTreeSet;
use std::time::Duration;

use ecs_torrent_protocol::time::Timestamp;

use super::NodeId;

/// The next tick of every node, as a real engine's runner schedules it: at once when an event has arrived, but not
/// before the least interval since the last tick has passed; otherwise at the node's next deadline.
#[derive(Default)]
pub(super) struct Agenda {
    /// The tick quantum: ticks happen at its multiples, if it is not zero.
    pub(super) tick_quantum: Duration,
    due: BTreeSet<(Timestamp, NodeId)>,
    nodes: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    at: Timestamp,
    not_before: Timestamp,
}

impl Agenda {
    pub(super) fn add(&mut self) {
        self.nodes.push(Entry {
            at: Timestamp::NEVER,
            not_before: Timestamp::ZERO,
        });
    }

    /// Schedules a tick because an event has arrived for a node.
    pub(super) fn wake(&mut self, node: NodeId, now: Timestamp) {
        let entry = self.nodes[node.0];
        let at = self.on_quantum(now.max(entry.not_before));
        if at < entry.at {
            self.set(node, at);
        }
    }

    /// Records that a node has ticked, and schedules its next tick.
    pub(super) fn ticked(&mut self, node: NodeId, now: Timestamp, least: Duration, deadline: Timestamp) {
        let entry = &mut self.nodes[node.0];
        entry.not_before = entry.not_before.max(now + least);
        let (at, before) = (deadline.max(entry.not_before), entry.at);
        let at = self.on_quantum(at);
        // An event that arrived during the tick may have scheduled an earlier tick.
        if at < before {
            self.set(node, at);
        }
    }

    fn on_quantum(&self, at: Timestamp) -> Timestamp {
        let (tick_quantum, nanos) = (self.tick_quantum.as_nanos() as u64, at.as_nanos());
        match nanos.checked_next_multiple_of(tick_quantum) {
            Some(next) if tick_quantum > 0 => Timestamp::from_nanos(next),
            _ => at,
        }
    }

    /// Suspends a node's ticks until `until`.
    pub(super) fn suspend(&mut self, node: NodeId, until: Timestamp) {
        let entry = &mut self.nodes[node.0];
        entry.not_before = entry.not_before.max(until);
        let at = entry.at.max(entry.not_before);
        self.set(node, at);
    }

    /// Stops a node's ticks until it is revived.
    pub(super) fn retire(&mut self, node: NodeId) {
        self.nodes[node.0].not_before = Timestamp::NEVER;
        self.set(node, Timestamp::NEVER);
    }

    pub(super) fn revive(&mut self, node: NodeId, now: Timestamp) {
        self.nodes[node.0].not_before = now;
        self.set(node, now);
    }

    /// The time and node of the next tick.
    pub(super) fn next(&self) -> Option<(Timestamp, NodeId)> {
        self.due.first().copied()
    }

    /// Removes and returns the next tick, if it is due.
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<NodeId> {
        let (_, node) = self.next().filter(|(at, _)| *at <= now)?;
        self.set(node, Timestamp::NEVER);
        Some(node)
    }

    fn set(&mut self, node: NodeId, at: Timestamp) {
        let entry = &mut self.nodes[node.0];
        if entry.at < Timestamp::NEVER {
            self.due.remove(&(entry.at, node));
        }
        entry.at = at;
        if at < Timestamp::NEVER {
            self.due.insert((at, node));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(ms)
    }

    const NODE: NodeId = NodeId(0);

    fn agenda() -> Agenda {
        let mut agenda = Agenda::default();
        agenda.add();
        agenda.revive(NODE, at(0));
        assert_eq!(agenda.pop(at(0)), Some(NODE));
        agenda.ticked(NODE, at(0), Duration::from_millis(1), at(1000));
        agenda
    }

    #[test]
    fn a_tick_waits_for_its_deadline_or_for_news() {
        let mut agenda = agenda();
        assert_eq!(agenda.next(), Some((at(1000), NODE)));
        agenda.wake(NODE, at(0));
        assert_eq!(agenda.next(), Some((at(1), NODE)), "not sooner than the least interval");
        agenda.wake(NODE, at(5));
        assert_eq!(agenda.next(), Some((at(1), NODE)));
        assert_eq!(agenda.pop(at(0)), None);
    }

    #[test]
    fn a_node_that_sleeps_does_not_tick() {
        let mut agenda = agenda();
        agenda.suspend(NODE, at(5000));
        agenda.wake(NODE, at(10));
        assert_eq!(agenda.next(), Some((at(5000), NODE)));
        agenda.retire(NODE);
        agenda.wake(NODE, at(9000));
        assert_eq!(agenda.next(), None);
        agenda.revive(NODE, at(9000));
        assert_eq!(agenda.next(), Some((at(9000), NODE)));
    }
}
