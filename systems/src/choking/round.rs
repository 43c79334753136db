//! One round of choking, as a plain function.

use std::cmp::Reverse;
use std::time::Duration;

use bevy_ecs::entity::Entity;
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::UploadSettings;
use ecs_torrent_protocol::time::Timestamp;

/// A peer, as far as the choice goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contender {
    pub(super) peer: Entity,
    /// It wants something.
    pub(super) is_interested: bool,
    /// It owes us blocks and sends none.
    pub(super) is_snubbing: bool,
    /// It is served now.
    pub(super) is_unchoked: bool,
    /// Since when it is served, or waits.
    pub(super) since: Timestamp,
    /// Bytes per second from it.
    pub(super) gives: u64,
    /// Bytes per second to it.
    pub(super) takes: u64,
}

/// What serving others is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// To be served: those who give most are.
    Download,
    /// To spread: everyone gets a turn, and the fastest use theirs best.
    Seed {
        /// Length of a turn that others wait for.
        turn: Duration,
    },
}

/// The peers to serve. `optimistic` is the one chosen at random; where it is none, or has lost its interest, or is
/// served for its merits by now, another is chosen.
pub(super) fn choose(
    contenders: &[Contender],
    goal: Goal,
    now: Timestamp,
    limits: &UploadSettings,
    optimistic: &mut Option<Entity>,
    random: &mut Random,
) -> Vec<Entity> {
    let mut wanting: Vec<Contender> = contenders.iter().filter(|c| c.is_interested).copied().collect();
    // Equals in random order: nobody is served for the number of its entity.
    random.shuffle(&mut wanting);
    match goal {
        // BEP 3, anti-snubbing: who snubs us is served by chance only, or if nobody else wants.
        Goal::Download => wanting.sort_by_key(|c| (c.is_snubbing, Reverse(c.gives))),
        Goal::Seed { turn } => wanting.sort_by_key(|c| seed_rank(c, turn, now)),
    }
    let regular = limits.slots.min(wanting.len());
    let (served, rest) = wanting.split_at(regular);
    let mut served: Vec<Entity> = served.iter().map(|c| c.peer).collect();
    if !optimistic.is_some_and(|peer| rest.iter().any(|c| c.peer == peer)) {
        *optimistic = rest.get(random.below(rest.len())).map(|c| c.peer);
    }
    if limits.optimistic_slots > 0 {
        served.extend(*optimistic);
        let others = rest.iter().map(|c| c.peer).filter(|peer| Some(*peer) != *optimistic);
        served.extend(others.take(limits.optimistic_slots - 1));
    }
    served
}

/// Whose turn is running stays, the fastest first; then who has waited longest; then whose turn is over.
fn seed_rank(contender: &Contender, turn: Duration, now: Timestamp) -> (u8, Reverse<u64>, Timestamp) {
    match contender.is_unchoked {
        true if now.since(contender.since) < turn => (0, Reverse(contender.takes), contender.since),
        false => (1, Reverse(0), contender.since),
        true => (2, Reverse(contender.takes), contender.since),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(id: u32) -> Entity {
        Entity::from_raw_u32(id).unwrap()
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn contender(id: u32, gives: u64) -> Contender {
        Contender {
            peer: peer(id),
            is_interested: true,
            is_snubbing: false,
            is_unchoked: false,
            since: at(0),
            gives,
            takes: 0,
        }
    }

    fn limits(slots: usize, optimistic_slots: usize) -> UploadSettings {
        UploadSettings {
            slots,
            optimistic_slots,
            ..UploadSettings::default()
        }
    }

    fn run(contenders: &[Contender], goal: Goal, slots: usize) -> Vec<Entity> {
        let mut random = Random::from_seed([1; 32]);
        choose(contenders, goal, at(100), &limits(slots, 0), &mut None, &mut random)
    }

    #[test]
    fn who_gives_most_is_served_unless_it_snubs_or_does_not_want() {
        let mut list: Vec<Contender> = (1..=5).map(|id| contender(id, u64::from(id) * 10)).collect();
        list[4].is_interested = false;
        list[3].is_snubbing = true;
        assert_eq!(run(&list, Goal::Download, 2), [peer(3), peer(2)]);
        assert_eq!(
            run(&list, Goal::Download, 9).len(),
            4,
            "a snubbing peer is served where there is room"
        );
    }

    #[test]
    fn seeding_goes_by_turns() {
        let turn = Duration::from_secs(60);
        let unchoked = |id, since, takes| Contender {
            is_unchoked: true,
            since: at(since),
            takes,
            ..contender(id, 0)
        };
        let waiting = |id, since| Contender {
            since: at(since),
            ..contender(id, 0)
        };
        // 1 has had its turn, 2 and 3 are in theirs, 4 waits longer than 5.
        let list = [
            unchoked(1, 10, 999),
            unchoked(2, 50, 5),
            unchoked(3, 60, 50),
            waiting(5, 30),
            waiting(4, 20),
        ];
        assert_eq!(run(&list, Goal::Seed { turn }, 4), [peer(3), peer(2), peer(4), peer(5)]);
        assert_eq!(
            run(&list[..3], Goal::Seed { turn }, 3).last(),
            Some(&peer(1)),
            "nobody waits: it goes on"
        );
    }

    #[test]
    fn the_optimistic_peer_stays_until_it_is_served_otherwise() {
        let mut random = Random::from_seed([1; 32]);
        let limits = limits(1, 1);
        let mut list: Vec<Contender> = (1..=9).map(|id| contender(id, u64::from(10 - id))).collect();
        let mut optimistic = None;
        let mut pick = |list: &[Contender], optimistic: &mut Option<Entity>| {
            choose(list, Goal::Download, at(0), &limits, optimistic, &mut random)
        };
        let served = pick(&list, &mut optimistic);
        assert_eq!((served[0], served.len()), (peer(1), 2));
        let first = optimistic.unwrap();
        assert_eq!(served[1], first);
        pick(&list, &mut optimistic);
        assert_eq!(optimistic, Some(first));
        list.iter_mut().find(|c| c.peer == first).unwrap().gives = 100;
        assert_eq!(pick(&list, &mut optimistic)[0], first);
        assert_ne!(optimistic, Some(first));
    }

    proptest! {
        /// Never more than the slots, never a peer twice, never one that wants nothing; and no slot idle while
        /// somebody wants one.
        #[test]
        fn slots_are_used_and_not_exceeded(
            peers in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 0u64..200, any::<u32>()), 0..30),
            slots in 0usize..6, optimistic_slots in 0usize..3, seeding in any::<bool>(),
        ) {
            let list: Vec<Contender> = peers
                .iter()
                .enumerate()
                .map(|(i, (is_interested, is_snubbing, is_unchoked, since, rate))| Contender {
                    peer: peer(i as u32 + 1),
                    is_interested: *is_interested,
                    is_snubbing: *is_snubbing,
                    is_unchoked: *is_unchoked,
                    since: at(*since),
                    gives: u64::from(*rate),
                    takes: u64::from(*rate),
                })
                .collect();
            let goal = if seeding { Goal::Seed { turn: Duration::from_secs(60) } } else { Goal::Download };
            let mut random = Random::from_seed([1; 32]);
            let served = choose(&list, goal, at(200), &limits(slots, optimistic_slots), &mut None, &mut random);
            let wanting = list.iter().filter(|c| c.is_interested).count();
            prop_assert_eq!(served.len(), wanting.min(slots + optimistic_slots));
            let mut unique = served.clone();
            unique.sort_unstable();
            unique.dedup();
            prop_assert_eq!(unique.len(), served.len());
            prop_assert!(served.iter().all(|p| list.iter().any(|c| c.peer == *p && c.is_interested)));
        }
    }
}
