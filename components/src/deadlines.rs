//! Deadline queues, one per feature, so that a tick touches only what is due.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::time::Timestamp;

/// A queue of keys, ordered by their deadlines.
///
/// No entry is ever removed early. A feature that is woken too early, or for something that is gone, checks its own
/// state, and sets a new deadline or does nothing. Use one deadline per key and purpose, or timers multiply.
///
/// ```
/// use std::time::Duration;
/// use bevy_ecs::prelude::*;
/// use ecs_torrent_components::clock::{Clock, Wakeup};
/// use ecs_torrent_components::deadlines::Deadlines;
///
/// struct Refresh(Entity);
///
/// /// Refreshes what is due, each entity every ten seconds.
/// fn refresh(mut due: ResMut<Deadlines<Refresh>>, clock: Res<Clock>, wakeup: Res<Wakeup>) {
///     while let Some(Refresh(entity)) = due.pop_due(clock.now()) {
///         due.set(clock.now() + Duration::from_secs(10), Refresh(entity));
///     }
///     // Without this, the next tick may come later.
///     wakeup.at_next(due.next());
/// }
/// # bevy_ecs::system::assert_is_system(refresh);
/// ```
#[derive(Resource, Debug)]
pub struct Deadlines<K: Send + Sync + 'static> {
    heap: BinaryHeap<Reverse<Due<K>>>,
    sequence: u64,
}

#[derive(Debug)]
struct Due<K> {
    at: Timestamp,
    sequence: u64,
    key: K,
}

impl<K: Send + Sync + 'static> Default for Deadlines<K> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            sequence: 0,
        }
    }
}

impl<K: Send + Sync + 'static> Deadlines<K> {
    /// Sets a deadline of `key` at `at`. Equal times keep the order of the calls.
    pub fn set(&mut self, at: Timestamp, key: K) {
        let sequence = self.sequence;
        self.sequence += 1;
        self.heap.push(Reverse(Due { at, sequence, key }));
    }

    /// Removes and returns the next key that is due at `now`.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<K> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(due)| due.key)
    }

    /// Returns the next deadline.
    #[must_use]
    pub fn next(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse(due)| due.at)
    }

    /// Number of keys waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether no key is waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl<K> PartialEq for Due<K> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<K> Eq for Due<K> {}

impl<K> PartialOrd for Due<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> Ord for Due<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_when_due_and_in_order() {
        let at = Timestamp::from_nanos;
        let mut deadlines = Deadlines::default();
        for (time, key) in [(5, 'c'), (3, 'a'), (3, 'b'), (9, 'd')] {
            deadlines.set(at(time), key);
        }
        assert_eq!(deadlines.next(), Some(at(3)));
        let mut due = Vec::new();
        while let Some(key) = deadlines.pop_due(at(5)) {
            due.push(key);
        }
        assert_eq!(due, ['a', 'b', 'c']);
        assert_eq!((deadlines.len(), deadlines.next()), (1, Some(at(9))));
    }
}
