use proptest::prelude::*;

use super::*;

fn peer(id: u32) -> Entity {
    Entity::from_raw_u32(id).unwrap()
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(seconds)
}

fn contender(id: u32, download_rate: u64) -> Contender {
    Contender {
        peer: peer(id),
        is_interested: true,
        is_snubbing: false,
        is_unchoked: false,
        idle_since: None,
        idle_at: None,
        may_begin: false,
        has_had_turn: false,
        since: at(0),
        download_rate,
        upload_rate: 0,
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
    select_ranked(contenders, goal, at(100), &limits(slots, 0), &mut None, &mut random)
}

#[test]
fn the_fastest_peer_is_unchoked_unless_it_snubs_or_is_not_interested() {
    let mut list: Vec<Contender> = (1..=5).map(|id| contender(id, 10_u64.pow(id))).collect();
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
    let unchoked = |id, since, upload_rate| Contender {
        is_unchoked: true,
        since: at(since),
        upload_rate,
        ..contender(id, 0)
    };
    let waiting = |id, since| Contender {
        since: at(since),
        ..contender(id, 0)
    };
    // 1 has had its turn, 2 and 3 are in theirs, 4 has waited longer than 5.
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
    let just_over = [unchoked(1, 40, 999), waiting(2, 90)];
    assert_eq!(run(&just_over, Goal::Seed { turn }, 1), [peer(2)]);
}

#[test]
fn the_optimistic_peer_stays_until_it_is_served_otherwise() {
    let mut random = Random::from_seed([1; 32]);
    let limits = limits(1, 1);
    let mut list: Vec<Contender> = (1..=9).map(|id| contender(id, u64::from(10 - id))).collect();
    list[0].download_rate = 1000;
    let mut optimistic = None;
    let mut pick = |list: &[Contender], optimistic: &mut Option<Entity>| {
        select_ranked(list, Goal::Download, at(0), &limits, optimistic, &mut random)
    };
    let served = pick(&list, &mut optimistic);
    assert_eq!((served[0], served.len()), (peer(1), 2));
    let first = optimistic.unwrap();
    assert_eq!(served[1], first);
    pick(&list, &mut optimistic);
    assert_eq!(optimistic, Some(first));
    list.iter_mut().find(|c| c.peer == first).unwrap().download_rate = 10_000;
    assert_eq!(pick(&list, &mut optimistic)[0], first);
    assert_ne!(optimistic, Some(first));
}

#[test]
fn peers_near_the_best_rate_are_unchoked_too() {
    let mut list: Vec<Contender> = (1..=40).map(|id| contender(id, 100)).collect();
    list[0].download_rate = 24;
    list[1].download_rate = 25;
    list[2].is_snubbing = true;
    let served = run(&list[..6], Goal::Download, 2);
    assert_eq!(served.len(), 4);
    assert!(!served.contains(&peer(1)) && !served.contains(&peer(3)));
    assert_eq!(run(&list, Goal::Download, 2).len(), limits(2, 0).max_unchoked);
}

#[test]
fn a_peer_without_requests_takes_no_slot() {
    let idle = Contender {
        is_unchoked: true,
        idle_since: Some(at(90)),
        ..contender(1, 900)
    };
    let list = [idle, contender(2, 70), contender(3, 90), contender(4, 1)];
    let served = run(&list, Goal::Download, 2);
    assert_eq!(served.len(), 3);
    assert!([peer(1), peer(2), peer(3)].iter().all(|peer| served.contains(peer)));
}

#[test]
fn a_free_slot_goes_to_the_longest_waiting_peer() {
    let served = |id, idle_since: Option<u64>| Contender {
        is_unchoked: true,
        idle_since: idle_since.map(at),
        ..contender(id, 0)
    };
    let waiting = |id, since| Contender {
        since: at(since),
        ..contender(id, 0)
    };
    let list = [served(1, None), waiting(2, 7), waiting(3, 5)];
    let mut random = Random::from_seed([1; 32]);
    let mut more =
        |list: &[Contender], goal, slots| fill_free_slots(list, SlotBudget::all(goal, &limits(slots, 0)), &mut random);
    assert_eq!(more(&list, Goal::Download, 1), [peer(1)]);
    assert_eq!(more(&list, Goal::Download, 2), [peer(1), peer(3)]);
    assert_eq!(more(&list, Goal::Download, 9), [peer(1), peer(3), peer(2)]);
    // 2 and 3 are idle: the one idle for longer is choked if no more peers may be unchoked.
    let list = [served(1, None), served(2, Some(60)), served(3, Some(50)), waiting(4, 7)];
    let seed = Goal::Seed {
        turn: Duration::from_secs(60),
    };
    assert_eq!(more(&list, Goal::Download, 2), [peer(3), peer(2), peer(1), peer(4)]);
    assert_eq!(more(&list[1..], seed, 1), [peer(2), peer(4)]);
    // A peer that has just been unchoked stays.
    let recent = Contender {
        may_begin: true,
        ..list[2]
    };
    assert_eq!(more(&[list[1], recent, list[3]], seed, 1), [peer(3), peer(4)]);
    assert_eq!(more(&[recent, recent, list[3]], seed, 1), [peer(3), peer(3)]);
    // A turn ends only if other peers wait.
    let done = Contender {
        has_had_turn: true,
        ..list[0]
    };
    assert_eq!(more(&[done], seed, 1), [peer(1)]);
    assert_eq!(more(&[done, list[3]], seed, 1), [peer(4)]);
}

fn decide(contenders: &[Contender], phase: Option<SuperSeedingPhase>, before: Rotation) -> Outcome {
    let round = Round {
        now: at(100),
        goal: Goal::Download,
        phase,
        contenders,
        piece_length: 0,
        limits: &limits(2, 0),
    };
    round.decide(before, &mut Random::from_seed([1; 32]))
}

#[test]
fn a_round_ranks_after_the_interval_and_fills_free_slots_before() {
    let slow = Contender {
        is_unchoked: true,
        ..contender(1, 1)
    };
    let list = [slow, contender(2, 100), contender(3, 90)];
    let ranked_at = |second| Rotation {
        ranked: Some(at(second)),
        ..Rotation::default()
    };
    let first = decide(&list, None, Rotation::default());
    assert_eq!(first.served, [peer(2), peer(3)]);
    assert_eq!((first.rotation.ranked, first.is_full), (Some(at(100)), true));
    let interval = UploadSettings::default().choke_interval_s;
    let due = decide(&list, None, ranked_at(100 - interval));
    assert_eq!(due.served, first.served);
    let between = decide(&list, None, ranked_at(99));
    assert!(
        between.served.contains(&peer(1)),
        "no peer loses its slot between rankings"
    );
    assert_eq!(between.rotation.ranked, Some(at(99)));
}

#[test]
fn the_next_round_is_early_only_if_a_peer_waits_for_a_new_one() {
    let interval = seconds(UploadSettings::default().choke_interval_s);
    assert_eq!(decide(&[], None, Rotation::default()).next, None);
    let one = decide(&[contender(1, 1)], None, Rotation::default());
    assert_eq!(
        (one.next, one.has_waiting, one.is_contended),
        (Some(at(100) + interval), false, false)
    );
    let list: Vec<Contender> = (1..=4)
        .map(|id| contender(id, 1000 * u64::from(id * id * id)))
        .collect();
    let crowded = decide(&list[1..], None, Rotation::default());
    assert!(crowded.is_contended);
    let far = [contender(1, 100_000), contender(2, 100_000), contender(3, 1)];
    let waiting = decide(&far, None, Rotation::default());
    assert_eq!((waiting.next, waiting.has_waiting), (Some(at(100) + IDLE_AFTER), true));
}

#[test]
fn slots_are_full_when_busy_peers_have_them_all() {
    let served = |id, idle_since| Contender {
        is_unchoked: true,
        idle_since,
        ..contender(id, 100)
    };
    let limits = limits(3, 2);
    let is_full = |contenders: &[Contender]| {
        let round = Round {
            now: at(100),
            goal: Goal::Download,
            phase: None,
            contenders,
            piece_length: 0,
            limits: &limits,
        };
        round
            .decide(Rotation::default(), &mut Random::from_seed([1; 32]))
            .is_full
    };
    let busy: Vec<Contender> = (1..=5).map(|id| served(id, None)).collect();
    assert!(is_full(&busy));
    assert!(!is_full(&busy[1..]), "a slot is free");
    let idle = [&busy[1..], &[served(1, Some(at(90)))]].concat();
    assert!(!is_full(&idle), "an idle peer takes no slot");
}

#[test]
fn the_optimistic_unchoke_lasts_for_its_interval() {
    let limits = limits(1, 1);
    let list: Vec<Contender> = (1..=20).map(|id| contender(id, u64::from(id == 1) * 1000)).collect();
    let rotated = |since: Timestamp| {
        let round = Round {
            now: at(100),
            goal: Goal::Download,
            phase: None,
            contenders: &list,
            piece_length: 0,
            limits: &limits,
        };
        let before = Rotation {
            optimistic: Some(peer(7)),
            optimistic_since: since,
            ..Rotation::default()
        };
        let after = round.decide(before, &mut Random::from_seed([1; 32])).rotation;
        (after.optimistic == Some(peer(7)), after.optimistic_since)
    };
    let interval = limits.optimistic_interval_s;
    assert_eq!(rotated(at(101 - interval)), (true, at(101 - interval)));
    assert_eq!(rotated(at(100 - interval)), (false, at(100)));
}

#[test]
fn few_peers_are_served_at_a_time() {
    let all = SlotBudget {
        slots: 20,
        max_unchoked: 30,
    };
    let slots = |slots, max_unchoked| SlotBudget { slots, max_unchoked };
    assert_eq!(all.narrowed(7, &[contender(1, 0)]), slots(7, 7));
    assert_eq!(all.narrowed(usize::MAX, &[contender(1, 0)]), all);
    // Peers whose first request is on its way are unchoked and take no slot.
    let idle = |may_begin| Contender {
        idle_since: Some(at(99)),
        may_begin,
        ..contender(2, 0)
    };
    let busy = Contender {
        may_begin: true,
        ..contender(3, 0)
    };
    let list = [idle(true), idle(true), idle(false), busy];
    assert_eq!(all.narrowed(7, &list), slots(7, 9));
    assert_eq!(all.narrowed(1, &[idle(true); 9]), slots(1, 3));
    assert_eq!(all.narrowed(6, &[idle(true); 9]), slots(6, 15));
}

/// Returns how many peers a round serves when an uplink of `rate` bytes per second has been busy with one peer.
fn served_count(piece_length: u32, rate: u64, goal: Goal, phase: Option<SuperSeedingPhase>, ranked: u64) -> usize {
    let taking = Contender {
        is_unchoked: true,
        upload_rate: rate,
        ..contender(1, 100)
    };
    let list: Vec<Contender> = [taking]
        .into_iter()
        .chain((2..=40).map(|id| contender(id, 100)))
        .collect();
    let round = Round {
        now: at(100),
        goal,
        phase,
        contenders: &list,
        piece_length,
        limits: &UploadSettings::default(),
    };
    let before = Rotation {
        ranked: Some(at(ranked)),
        // No other width is tried.
        probe: WidthProbe::default().advance(at(100), (1, 1), 0, false),
        ..Rotation::default()
    };
    round.decide(before, &mut Random::from_seed([1; 32])).served.len()
}

#[test]
fn longer_pieces_go_to_fewer_peers() {
    const MIB: u64 = 1 << 20;
    let seed = Goal::Seed {
        turn: Duration::from_secs(60),
    };
    let assigning = Some(SuperSeedingPhase::Assigning);
    for (piece_kib, download, filled, seeding, assigned) in [
        (0, 32, 9, 9, 8),
        (16, 32, 9, 9, 8),
        (64, 32, 9, 9, 8),
        (256, 32, 9, 9, 8),
        (512, 8, 8, 9, 4),
        (1024, 2, 2, 9, 2),
    ] {
        let count = |goal, phase, ranked| served_count(piece_kib << 10, MIB, goal, phase, ranked);
        assert_eq!(count(Goal::Download, None, 0), download, "{piece_kib}");
        assert_eq!(count(Goal::Download, None, 100), filled, "{piece_kib}");
        assert_eq!(count(seed, None, 0), seeding, "{piece_kib}");
        assert_eq!(count(seed, assigning, 0), assigned, "{piece_kib}");
    }
    assert_eq!(
        served_count(128 << 10, 0, seed, assigning, 0),
        4,
        "its rate is not known"
    );
}

/// No event reports that a peer has not requested more in time.
#[test]
fn a_round_is_due_when_a_peer_in_the_middle_of_a_piece_becomes_idle() {
    let pausing = Contender {
        is_unchoked: true,
        idle_at: Some(at(101)),
        ..contender(1, 100_000)
    };
    let before = Rotation {
        ranked: Some(at(99)),
        ..Rotation::default()
    };
    let busy = Contender {
        is_unchoked: true,
        ..contender(2, 100_000)
    };
    assert_eq!(
        decide(&[pausing, busy, contender(3, 1)], None, before).next,
        Some(at(101))
    );
    let interval = UploadSettings::default().choke_interval_s;
    assert_eq!(
        decide(&[pausing, busy], None, before).next,
        Some(at(99 + interval)),
        "nobody waits"
    );
}

#[test]
fn a_ranking_that_is_due_comes_after_the_whole_interval() {
    let interval = UploadSettings::default().choke_interval_s;
    let next = |ranked| {
        let before = Rotation {
            ranked: Some(at(ranked)),
            ..Rotation::default()
        };
        let waiting = [contender(1, 1)];
        decide(&waiting, Some(SuperSeedingPhase::Assigning), before).next
    };
    assert_eq!(next(99), Some(at(99 + interval)));
    assert_eq!(
        next(100 - interval),
        Some(at(100 + interval)),
        "super-seeding does not rank, and has no round without end"
    );
    assert_eq!(next(50), Some(at(100 + interval)));
}

#[test]
fn the_last_phase_of_super_seeding_serves_nobody_new_and_ends_in_time() {
    let until = at(102);
    let assigned = Contender {
        is_unchoked: true,
        ..contender(1, 0)
    };
    let done = Contender {
        is_unchoked: true,
        has_had_turn: true,
        ..contender(2, 0)
    };
    let list = [assigned, done, contender(3, 50)];
    let finishing = Some(SuperSeedingPhase::Finishing { until });
    let outcome = decide(&list, finishing, Rotation::default());
    assert_eq!((outcome.served, outcome.next), (vec![peer(1)], Some(until)));
    let assigning = decide(&list, Some(SuperSeedingPhase::Assigning), Rotation::default());
    assert_eq!(assigning.served, [peer(1), peer(3)]);
    assert_eq!(assigning.rotation.ranked, None, "super-seeding does not rank");
}

proptest! {
    /// No more peers are unchoked than may be, no peer is served twice, no uninterested peer is served, and no slot
    /// stays free while an interested peer waits.
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
                idle_since: (*is_unchoked && since % 3 == 0).then(|| at(*since)),
                idle_at: None,
                may_begin: since % 2 == 0,
                has_had_turn: false,
                since: at(*since),
                download_rate: u64::from(*rate),
                upload_rate: u64::from(*rate),
            })
            .collect();
        let goal = if seeding { Goal::Seed { turn: Duration::from_secs(60) } } else { Goal::Download };
        let mut random = Random::from_seed([1; 32]);
        let served = select_ranked(&list, goal, at(200), &limits(slots, optimistic_slots), &mut None, &mut random);
        let interested = list.iter().filter(|c| c.is_interested).count();
        prop_assert!(served.len() >= interested.min(slots + optimistic_slots));
        prop_assert!(served.len() <= max_unchoked(goal, &limits(slots, optimistic_slots)));
        let mut unique = served.clone();
        unique.sort_unstable();
        unique.dedup();
        prop_assert_eq!(unique.len(), served.len());
        prop_assert!(served.iter().all(|p| list.iter().any(|c| c.peer == *p && c.is_interested)));
    }
}

#[test]
fn optimistic_slots_are_slots_too() {
    let limits = limits(5, 2);
    let turn = Duration::from_secs(60);
    assert_eq!(
        SlotBudget::all(Goal::Seed { turn }, &limits),
        SlotBudget {
            slots: 7,
            max_unchoked: 14
        }
    );
}

/// A seed serves those that have waited longest first; a download serves the rest at random.
#[test]
fn the_rest_is_served_in_order_by_a_seed_and_at_random_by_a_download() {
    let idle = |id, since| Contender {
        idle_since: Some(at(1)),
        since: at(since),
        ..contender(id, 100)
    };
    let list: Vec<Contender> = (1..=8).map(|id| idle(id, id.into())).collect();
    let turn = Duration::from_secs(60);
    let sorted: Vec<Entity> = (1..=8).map(peer).collect();
    assert_eq!(run(&list, Goal::Seed { turn }, 4), sorted);
    let served = run(&list, Goal::Download, 8);
    assert!(served.len() == 8 && served != sorted);
}
