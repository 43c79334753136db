//! Tests of the times at which announces are sent, and of their events.

use std::net::Ipv4Addr;

use ecs_torrent_components::lifecycle::StopPhase;
use ecs_torrent_engine::ports::net::LocalAddresses;
use ecs_torrent_protocol::tracker::tiers::Tiers;

use super::super::TrackersPlugin;
use super::*;
use crate::stop_participants::{Ending, StopParticipants};
use crate::testing::{Bed, NOW};

const SECOND: Duration = Duration::from_secs(1);
const V4: Family = Family::V4;

/// Returns a torrent with the given number of tiers of two trackers each, over IPv4, and the trackers.
fn bed(tier_count: usize) -> (Bed, Vec<Entity>) {
    let mut bed = Bed::new(TrackersPlugin);
    bed.world
        .insert_resource(LocalAddresses(vec![(Ipv4Addr::LOCALHOST, 1).into()]));
    bed.world.init_resource::<ExternalAddresses>();
    bed.world.init_resource::<Messages<CandidatesFound>>();
    bed.world.init_resource::<Messages<PeerConnected>>();
    bed.world.entity_mut(bed.torrent).insert(crate::testing::torrent());
    let torrent = bed.torrent;
    let tiers: Vec<Vec<Entity>> = (0..tier_count)
        .map(|tier| {
            let spawn = |number| (Tracker::new(&format!("http://{tier}.{number}/")), TrackerOf(torrent));
            [0, 1].map(|number| bed.world.spawn(spawn(number)).id()).to_vec()
        })
        .collect();
    let trackers = tiers.concat();
    let mut ordered = Tiers::default();
    tiers.into_iter().for_each(|tier| ordered.push(tier, |_| {}));
    bed.world.entity_mut(torrent).insert(TrackerTiers(ordered));
    (bed, trackers)
}

fn begin(bed: &mut Bed) {
    let changed = LifecycleChanged {
        torrent: bed.torrent,
        from: Lifecycle::Adding,
        to: Lifecycle::Downloading,
    };
    bed.run_after(changed, begin_announcing);
}

/// Announces what is due. Returns the trackers and events.
fn announce(bed: &mut Bed) -> Vec<(Entity, AnnounceEvent)> {
    bed.run(announce_due);
    sent(bed)
}

fn sent(bed: &mut Bed) -> Vec<(Entity, AnnounceEvent)> {
    let requests = std::mem::take(&mut bed.world.resource_mut::<OutgoingRequests>().http);
    let event = |request: TrackerRequest| match request.kind {
        RequestKind::Announce(announce) => (request.tracker, announce.event),
        RequestKind::Scrape(_) => unreachable!("nobody scrapes"),
    };
    requests.into_iter().map(event).collect()
}

fn answer(bed: &mut Bed, tracker: Entity, family: Family, event: AnnounceEvent, result: Result<Reply, Failure>) {
    bed.world.resource_mut::<Answers>().give(Answer {
        tracker,
        family,
        event: Some(event),
        result,
    });
    bed.run(take_answers);
}

fn succeed(bed: &mut Bed, tracker: Entity, event: AnnounceEvent) {
    let reply = AnnounceResponse {
        interval: SECOND * 600,
        ..AnnounceResponse::default()
    };
    answer(bed, tracker, V4, event, Ok(Reply::Announce(reply, None)));
}

fn advance(bed: &mut Bed, by: Duration) {
    let mut clock = bed.world.resource_mut::<Clock>();
    let now = clock.now() + by;
    clock.advance_to(now);
}

fn route(bed: &mut Bed, tracker: Entity) -> Mut<'_, Route> {
    bed.get_mut::<Tracker>(tracker)
        .map_unchanged(|tracker| tracker.route_mut(V4))
}

/// BEP 3: `started` comes first, and no event is sent at the interval, until the download completes.
#[test]
fn each_event_is_announced_once() {
    let (mut bed, trackers) = bed(1);
    begin(&mut bed);
    assert!(!bed.get::<Announcer>(bed.torrent).is_resting());
    assert_eq!(announce(&mut bed), [(trackers[0], AnnounceEvent::Started)]);
    assert_eq!(announce(&mut bed), [], "an announce is outstanding");
    succeed(&mut bed, trackers[0], AnnounceEvent::Started);
    assert_eq!(announce(&mut bed), [], "the interval is not over");
    advance(&mut bed, SECOND * 600);
    assert_eq!(announce(&mut bed), [(trackers[0], AnnounceEvent::None)]);
    succeed(&mut bed, trackers[0], AnnounceEvent::None);
    *bed.get_mut::<Lifecycle>(bed.torrent) = Lifecycle::Seeding;
    let completed = TorrentCompleted { torrent: bed.torrent };
    bed.run_after(completed.clone(), announce_completed);
    assert_eq!(announce(&mut bed), [(trackers[0], AnnounceEvent::Completed)]);
    succeed(&mut bed, trackers[0], AnnounceEvent::Completed);
    bed.run_after(completed.clone(), announce_completed);
    assert_eq!(announce(&mut bed), []);
}

/// BEP 21: a partial seed says so in every announce, and `completed` only when it has everything.
#[test]
fn a_partial_seed_announces_paused() {
    let (mut bed, trackers) = bed(1);
    begin(&mut bed);
    assert_eq!(announce(&mut bed), [(trackers[0], AnnounceEvent::Started)]);
    succeed(&mut bed, trackers[0], AnnounceEvent::Started);
    *bed.get_mut::<Lifecycle>(bed.torrent) = Lifecycle::Finished;
    let completed = TorrentCompleted { torrent: bed.torrent };
    bed.run_after(completed.clone(), announce_completed);
    for _ in 0..2 {
        assert_eq!(announce(&mut bed), [(trackers[0], AnnounceEvent::Paused)]);
        succeed(&mut bed, trackers[0], AnnounceEvent::Paused);
        advance(&mut bed, SECOND * 600);
    }
    *bed.get_mut::<Lifecycle>(bed.torrent) = Lifecycle::Seeding;
    bed.run_after(completed, announce_completed);
    assert_eq!(announce(&mut bed), [(trackers[0], AnnounceEvent::Completed)]);
}

#[test]
fn the_next_tracker_of_a_tier_is_asked_once_the_first_has_failed() {
    let (mut bed, trackers) = bed(1);
    begin(&mut bed);
    for tracker in &trackers {
        assert_eq!(announce(&mut bed), [(*tracker, AnnounceEvent::Started)]);
        answer(
            &mut bed,
            *tracker,
            V4,
            AnnounceEvent::Started,
            Err(Failure::new("busy")),
        );
        // A tracker gets one announce a round, however short its wait is.
        route(&mut bed, *tracker).next_announce = NOW;
    }
    assert_eq!(announce(&mut bed), [], "all have failed");
    for tracker in &trackers {
        route(&mut bed, *tracker).next_announce = NOW + SECOND * 9;
    }
    advance(&mut bed, SECOND * 5);
    assert_eq!(announce(&mut bed), [], "none is due");
}

/// A torrent that begins again announces at once, except to trackers that failed, or that count it as started.
#[test]
fn a_new_beginning_keeps_the_waits_of_trackers() {
    for (was_started, failures, is_at_once) in [(false, 0, true), (false, 1, false), (true, 0, false)] {
        let (mut bed, trackers) = bed(1);
        for tracker in &trackers {
            let mut route = route(&mut bed, *tracker);
            (route.was_started, route.failures) = (was_started, failures);
            route.next_announce = NOW + SECOND;
        }
        begin(&mut bed);
        assert_eq!(announce(&mut bed).len(), usize::from(is_at_once));
    }
}

#[test]
fn announces_wait_while_the_most_are_outstanding() {
    let (mut bed, trackers) = bed(2);
    bed.world.resource_mut::<Settings>().trackers.reach = ecs_torrent_components::settings::Reach::EachTier;
    bed.world.resource_mut::<Settings>().trackers.max_concurrent = 1;
    begin(&mut bed);
    assert_eq!(announce(&mut bed), [(trackers[0], AnnounceEvent::Started)]);
    succeed(&mut bed, trackers[0], AnnounceEvent::Started);
    assert_eq!(announce(&mut bed), [(trackers[2], AnnounceEvent::Started)]);
}

/// A deadline of a chain that was moved to an earlier time fires in vain.
#[test]
fn an_obsolete_deadline_announces_nothing() {
    let (mut bed, trackers) = bed(1);
    begin(&mut bed);
    announce(&mut bed);
    succeed(&mut bed, trackers[0], AnnounceEvent::Started);
    advance(&mut bed, SECOND * 600);
    assert_eq!(announce(&mut bed).len(), 1);
    let torrent = bed.torrent;
    let again = |bed: &mut Bed| {
        let mut due = bed.world.resource_mut::<Deadlines<AnnounceDue>>();
        due.set(NOW, AnnounceDue { torrent, chain: 0 });
        announce(bed)
    };
    route(&mut bed, trackers[1]).next_announce = NOW;
    assert_eq!(again(&mut bed), [], "an announce is outstanding");
    succeed(&mut bed, trackers[0], AnnounceEvent::None);
    assert_eq!(again(&mut bed), [], "the chain is not due");
}

/// A torrent without peers announces early, each time twice as late as before.
#[test]
fn early_announces_move_the_next_one_forward_only() {
    let (mut bed, trackers) = bed(1);
    begin(&mut bed);
    announce(&mut bed);
    let torrent = bed.torrent;
    let early = |bed: &mut Bed| {
        bed.run_after(PeersWanted { torrent }, announce_wanting);
        (
            bed.get::<Announcer>(torrent).early,
            bed.world.resource::<Deadlines<AnnounceDue>>().len(),
        )
    };
    assert_eq!(early(&mut bed), (0, 0), "the answer is outstanding");
    succeed(&mut bed, trackers[0], AnnounceEvent::Started);
    let least = route(&mut bed, trackers[0]).min_interval;
    assert_eq!(early(&mut bed), (1, 2));
    assert_eq!(route(&mut bed, trackers[0]).next_announce, NOW + least);
    assert_eq!(early(&mut bed), (1, 2), "twice as late is not early");
    bed.get_mut::<Announcer>(torrent).early = 0;
    assert_eq!(early(&mut bed), (0, 2), "neither is the same time");
    route(&mut bed, trackers[0]).next_announce = NOW + least * 9;
    assert_eq!(early(&mut bed), (1, 2), "the chain is due by then anyway");
    advance(&mut bed, least);
    route(&mut bed, trackers[0]).next_announce = NOW + least;
    assert_eq!(announce(&mut bed).len(), 1);
    let mut route = route(&mut bed, trackers[0]);
    (route.status, route.next_announce) = (TrackerStatus::Working, NOW + least * 100);
    let before = bed.world.resource::<Deadlines<AnnounceDue>>().len();
    assert_eq!(early(&mut bed), (2, before), "the answer decides when the chain is due");
}

#[test]
fn an_answer_ends_the_announce_of_its_family_alone() {
    let (mut bed, trackers) = bed(1);
    let local = vec![(Ipv4Addr::LOCALHOST, 1).into(), "[::1]:1".parse().unwrap()];
    bed.world.insert_resource(LocalAddresses(local));
    begin(&mut bed);
    assert_eq!(announce(&mut bed).len(), 2);
    answer(
        &mut bed,
        trackers[0],
        Family::V6,
        AnnounceEvent::Started,
        Err(Failure::new("busy")),
    );
    let asking: Vec<_> = bed
        .get::<Announcer>(bed.torrent)
        .chains
        .iter()
        .map(|chain| (chain.family, chain.asking))
        .collect();
    assert_eq!(asking, [(V4, Some(trackers[0])), (Family::V6, None)]);
}

fn stop(bed: &mut Bed) {
    let turn = StopTurn {
        torrent: bed.torrent,
        ending: Ending::Save { until_resumed: false },
    };
    let mut participants = bed.world.resource_mut::<StopParticipants>();
    participants.begin(turn, StopPhase::AnnounceStopped, NOW, SECOND * 99);
    bed.run(announce_stops);
}

fn is_stopped(bed: &mut Bed) -> bool {
    let torrent = bed.torrent;
    let label = crate::testing::torrent();
    let mut participants = bed.world.resource_mut::<StopParticipants>();
    participants.poll(torrent, label.label(), NOW).is_ok()
}

#[test]
fn a_stop_ends_when_every_tracker_that_knows_has_answered() {
    let (mut bed, trackers) = bed(1);
    begin(&mut bed);
    announce(&mut bed);
    succeed(&mut bed, trackers[0], AnnounceEvent::Started);
    stop(&mut bed);
    assert!(bed.get::<Announcer>(bed.torrent).is_resting());
    assert_eq!(sent(&mut bed), [(trackers[0], AnnounceEvent::Stopped)]);
    assert!(!is_stopped(&mut bed));
    succeed(&mut bed, trackers[0], AnnounceEvent::Stopped);
    assert_eq!(route(&mut bed, trackers[0]).status, TrackerStatus::Idle);
    assert!(is_stopped(&mut bed));
    succeed(&mut bed, trackers[0], AnnounceEvent::Stopped);
    assert_eq!(bed.get::<Announcer>(bed.torrent).stopped_count, 0, "an answer too many");
}

/// The answer to `stopped` does not affect the announce of a torrent that has started again meanwhile.
#[test]
fn a_late_answer_to_a_stop_does_not_disturb_a_new_beginning() {
    let (mut bed, trackers) = bed(1);
    begin(&mut bed);
    announce(&mut bed);
    succeed(&mut bed, trackers[0], AnnounceEvent::Started);
    stop(&mut bed);
    sent(&mut bed);
    begin(&mut bed);
    assert_eq!(announce(&mut bed), [(trackers[0], AnnounceEvent::Started)]);
    succeed(&mut bed, trackers[0], AnnounceEvent::Stopped);
    assert_eq!(route(&mut bed, trackers[0]).status, TrackerStatus::Announcing);
}

#[test]
fn intervals_are_clamped() {
    let limits = TrackerSettings::default();
    let intervals = |interval, min: Option<u64>| {
        let reply = AnnounceResponse {
            interval: Duration::from_secs(interval),
            min_interval: min.map(Duration::from_secs),
            ..AnnounceResponse::default()
        };
        let Intervals { regular, least } = Intervals::of(&reply, &limits);
        (regular.as_secs(), least.as_secs())
    };
    assert_eq!(intervals(0, None), (60, 60));
    assert_eq!(intervals(1800, None), (1800, 60));
    assert_eq!(intervals(1800, Some(300)), (1800, 300));
    assert_eq!(intervals(60, Some(900)), (900, 900));
    assert_eq!(intervals(u64::MAX, Some(1)), (7200, 60));
    assert_eq!(intervals(60, Some(u64::MAX)), (7200, 7200));
}

#[test]
fn backoff_doubles_to_its_limit() {
    let limits = TrackerSettings::default();
    let waits: Vec<u64> = [1, 2, 3, 8, 99]
        .map(|failures| backoff(failures, &limits).as_secs())
        .to_vec();
    assert_eq!(waits, [15, 30, 60, 1800, 1800]);
}

/// BEP 31: a tracker says when it accepts the next announce, within our limits.
#[test]
fn a_tracker_that_refuses_says_when_to_return() {
    let mut limits = TrackerSettings::default();
    let after = |minutes: u64, limits: &TrackerSettings| {
        let failure = Failure {
            retry: Retry::After(Duration::from_secs(60 * minutes)),
            ..Failure::new("busy")
        };
        wait_after(&failure, 1, limits).as_secs()
    };
    assert_eq!(after(5, &limits), 300);
    assert_eq!(after(0, &limits), limits.backoff_s);
    assert_eq!(after(u64::from(u32::MAX), &limits), limits.max_interval_s);
    limits.backoff_s = limits.max_interval_s + 1;
    assert_eq!(after(5, &limits), limits.backoff_s);
    let unreachable = Failure {
        is_unreachable: true,
        ..Failure::new("no address")
    };
    assert_eq!(wait_after(&unreachable, 1, &limits), UNREACHABLE_WAIT);
    assert_eq!(wait_after(&Failure::new("busy"), 2, &limits), backoff(2, &limits));
}

/// A tracker that did not answer `started` has not registered us; one that failed later has.
#[test]
fn a_failed_start_is_repeated() {
    for (event, was_started) in [(AnnounceEvent::Started, false), (AnnounceEvent::None, true)] {
        let (mut bed, trackers) = bed(1);
        begin(&mut bed);
        announce(&mut bed);
        answer(&mut bed, trackers[0], V4, event, Err(Failure::new("busy")));
        let route = route(&mut bed, trackers[0]);
        assert_eq!((route.was_started, route.failures), (was_started, 1));
    }
}

/// A stopping torrent wants no peers.
#[test]
fn a_stop_asks_for_no_peers() {
    let (mut bed, trackers) = bed(1);
    begin(&mut bed);
    let wanted = |bed: &mut Bed| {
        let requests = std::mem::take(&mut bed.world.resource_mut::<OutgoingRequests>().http);
        match &requests[..] {
            [
                TrackerRequest {
                    kind: RequestKind::Announce(announce),
                    ..
                },
            ] => announce.num_want,
            other => panic!("{other:?}"),
        }
    };
    bed.run(announce_due);
    assert!(wanted(&mut bed) > 0);
    succeed(&mut bed, trackers[0], AnnounceEvent::Started);
    stop(&mut bed);
    assert_eq!(wanted(&mut bed), 0);
}

/// The state of a tracker in an earlier run is restored by its URL.
#[test]
fn a_session_restores_its_trackers() {
    let (mut bed, trackers) = bed(1);
    let saved = |url: &str, seeders| ecs_torrent_components::session::SessionTracker {
        url: url.into(),
        tier: 0,
        was_completed: true,
        seeders: Some(seeders),
        leechers: None,
    };
    let session = ecs_torrent_components::session::Session {
        trackers: vec![saved("http://elsewhere/", 5), saved("http://0.1/", 7)],
        ..crate::testing::session()
    };
    bed.world.trigger(ecs_torrent_components::messages::SessionLoaded {
        torrent: bed.torrent,
        session: session.into(),
    });
    let seeders = [0, 1].map(|number| bed.get::<Tracker>(trackers[number]).seeders);
    assert_eq!(seeders, [None, Some(7)]);
    assert!(route(&mut bed, trackers[1]).was_completed && !route(&mut bed, trackers[0]).was_completed);
}

#[test]
fn a_chain_that_waits_for_its_turn_is_seen() {
    let (mut bed, _) = bed(1);
    assert!(!bed.holds(may_announce) && bed.world.resource::<OutgoingRequests>().is_empty());
    let torrent = bed.torrent;
    bed.world.resource_mut::<Turns>().waiting.push_back((torrent, 0));
    assert!(bed.holds(may_announce));
    bed.world.resource_mut::<Turns>().waiting.clear();
    begin(&mut bed);
    assert!(bed.holds(may_announce));
    bed.run(announce_due);
    assert!(!bed.world.resource::<OutgoingRequests>().is_empty());
}
