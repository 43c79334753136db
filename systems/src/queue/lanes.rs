//! The decision which torrents run, as plain functions.

use std::collections::BTreeSet;

use bevy_ecs::entity::Entity;
use ecs_torrent_protocol::hash::InfoHash;

/// A torrent's place. Torrents with the same number, as after a crash, are in the order of their hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) order: i64,
    pub(super) id: InfoHash,
    pub(super) torrent: Entity,
}

/// The role of a torrent in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The torrent runs and counts.
    Counted,
    /// The torrent runs and is too slow to count toward the limit of its lane.
    Slow,
    /// The torrent runs whatever the limits are, and counts.
    Forced,
    /// The torrent waits.
    Waiting,
}

impl Class {
    pub(super) fn is_running(self) -> bool {
        self != Self::Waiting
    }
}

/// The torrents that compete for the same slots: downloads, or seeds.
#[derive(Debug, Default)]
pub(super) struct Lane {
    counted: BTreeSet<Place>,
    slow: BTreeSet<Place>,
    forced: BTreeSet<Place>,
    waiting: BTreeSet<Place>,
}

impl Lane {
    fn class_mut(&mut self, class: Class) -> &mut BTreeSet<Place> {
        match class {
            Class::Counted => &mut self.counted,
            Class::Slow => &mut self.slow,
            Class::Forced => &mut self.forced,
            Class::Waiting => &mut self.waiting,
        }
    }

    pub(super) fn insert(&mut self, place: Place, class: Class) {
        self.class_mut(class).insert(place);
    }

    pub(super) fn remove(&mut self, place: &Place, class: Class) {
        self.class_mut(class).remove(place);
    }

    /// Number of torrents that run whatever the limits are.
    pub(super) fn forced_count(&self) -> usize {
        self.forced.len()
    }

    /// Number of torrents that run.
    pub(super) fn running_count(&self) -> usize {
        self.counted.len() + self.slow.len() + self.forced.len()
    }

    /// Whether there are slow torrents.
    pub(super) fn has_slow(&self) -> bool {
        !self.slow.is_empty()
    }

    /// Starts and suspends torrents until the first ones run: at most `most_counted` that count, and at most `most` in
    /// all. Returns each changed torrent with its new class, in the order of the changes.
    pub(super) fn settle(&mut self, most_counted: usize, most: usize) -> Vec<(Place, Class)> {
        let most_counted = most_counted.saturating_sub(self.forced.len());
        let most = most.saturating_sub(self.forced.len());
        let mut moved = Vec::new();
        loop {
            let running = self.counted.len() + self.slow.len();
            if self.counted.len() > most_counted {
                let last = self.counted.last().copied();
                self.suspend(last, &mut moved);
                continue;
            }
            let last = self.counted.last().max(self.slow.last()).copied();
            if running > most {
                self.suspend(last, &mut moved);
                continue;
            }
            let Some(first) = self.waiting.first().copied() else {
                break;
            };
            let rival = match (self.counted.len() < most_counted, running < most) {
                (true, true) => None,
                (true, false) => last,
                (false, _) => self.counted.last().copied(),
            };
            match rival {
                Some(rival) if first < rival => self.suspend(Some(rival), &mut moved),
                None if most_counted > 0 && most > 0 => {}
                _ => break,
            }
            self.waiting.remove(&first);
            self.counted.insert(first);
            moved.push((first, Class::Counted));
        }
        moved
    }

    fn suspend(&mut self, place: Option<Place>, moved: &mut Vec<(Place, Class)>) {
        let Some(place) = place else { return };
        self.counted.remove(&place);
        self.slow.remove(&place);
        self.waiting.insert(place);
        moved.push((place, Class::Waiting));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(order: i64) -> Place {
        Place {
            order,
            id: InfoHash([0; 20]),
            torrent: Entity::PLACEHOLDER,
        }
    }

    fn lane(classes: &[Class]) -> Lane {
        let mut lane = Lane::default();
        for (order, class) in (0..).zip(classes) {
            lane.insert(place(order), *class);
        }
        lane
    }

    fn running(lane: &Lane) -> Vec<i64> {
        let all = lane.counted.iter().chain(&lane.slow).chain(&lane.forced);
        let mut orders: Vec<i64> = all.map(|place| place.order).collect();
        orders.sort_unstable();
        orders
    }

    use Class::{Counted, Forced, Slow, Waiting};

    #[test]
    fn the_first_torrents_run() {
        let mut queue = lane(&[Waiting, Counted, Waiting, Counted]);
        queue.settle(2, 9);
        assert_eq!(running(&queue), [0, 1]);
        queue.settle(3, 9);
        assert_eq!(running(&queue), [0, 1, 2]);
        assert_eq!(queue.settle(3, 9), [], "nothing changes without a reason");
        queue.settle(0, 9);
        assert_eq!(running(&queue), Vec::<i64>::new());
        let mut slow = lane(&[Slow, Waiting, Slow, Waiting, Waiting]);
        slow.settle(1, 9);
        assert_eq!(running(&slow), [0, 1, 2]);
        slow.settle(2, 3);
        assert_eq!(running(&slow), [0, 1, 2]);
        slow.settle(3, 2);
        assert_eq!(running(&slow), [0, 1], "slow ones count among all");
    }

    #[test]
    fn forced_torrents_take_places() {
        let mut queue = lane(&[Counted, Waiting, Forced, Forced]);
        queue.settle(2, 9);
        assert_eq!(running(&queue), [2, 3]);
        queue.settle(3, 9);
        assert_eq!(running(&queue), [0, 2, 3]);
        queue.settle(1, 1);
        assert_eq!(running(&queue), [2, 3], "they run beyond the limit");
    }

    /// The length of the queue does not matter: only torrents that change are looked at.
    #[test]
    fn a_place_goes_to_the_next_of_many() {
        let mut classes = vec![Waiting; 100_000];
        classes[..5].fill(Counted);
        let mut queue = lane(&classes);
        queue.remove(&place(2), Counted);
        assert_eq!(queue.settle(5, 9), [(place(5), Counted)]);
        queue.insert(place(2), Waiting);
        assert_eq!(queue.settle(5, 9), [(place(5), Waiting), (place(2), Counted)]);
    }

    /// Returns the torrents that run according to the definition: in their order, those for which there is room.
    fn defined(classes: &[Class], most_counted: usize, most: usize) -> Vec<i64> {
        let forced = classes.iter().filter(|class| **class == Forced).count();
        let (mut counted_left, mut left) = (most_counted.saturating_sub(forced), most.saturating_sub(forced));
        let mut running = Vec::new();
        for (order, class) in (0..).zip(classes) {
            let runs = match class {
                Forced => true,
                Slow => left > 0,
                Counted | Waiting => left > 0 && counted_left > 0,
            };
            if !runs {
                continue;
            }
            running.push(order);
            if *class != Forced {
                left -= 1;
                counted_left -= usize::from(*class != Slow);
            }
        }
        running
    }

    proptest! {
        #[test]
        fn a_settled_lane_is_as_defined(
            classes in prop::collection::vec(prop::sample::select(vec![Counted, Slow, Forced, Waiting]), 0..12),
            most_counted in 0usize..8,
            most in 0usize..10,
        ) {
            let mut queue = lane(&classes);
            queue.settle(most_counted, most);
            prop_assert_eq!(running(&queue), defined(&classes, most_counted, most));
            prop_assert_eq!(queue.settle(most_counted, most), []);
        }
    }
}
