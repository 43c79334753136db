//! Tests of pauses, stops and removals.

use ecs_torrent_components::commands::StopAll;
use ecs_torrent_components::settings::Settings;

use super::*;
use crate::stop_participants::StopParticipants;

/// A torrent that was added while its state was loaded is removed like any other one that is listed.
#[test]
fn a_removal_finds_a_torrent_that_was_added_meanwhile() {
    let mut bed = bed(Lifecycle::Downloading, None);
    let (reply, answer) = reply();
    let command = RemoveTorrent {
        torrent: bed.get::<Torrent>(bed.torrent).id(),
        options: RemoveOptions::default(),
        reply,
    };
    let tag = bed
        .world
        .resource_mut::<Jobs<RemoveTorrent>>()
        .add(removing::LOAD, command);
    let loaded = loaded(&bed, Some(session()));
    state_events(&mut bed, tag.purpose, tag.number, loaded);
    bed.run(removing::add_removed);
    assert!(answer.try_recv().is_err());
    assert_eq!(bed.world.resource::<CommandQueue<RemoveTorrent>>().0.len(), 1);
    assert_eq!(bed.world.query::<&Torrent>().iter(&bed.world).count(), 1);
}

#[test]
fn a_pause_begins_when_the_torrent_can_be_paused() {
    let paused = |bed: &mut Bed, readiness| {
        bed.world.entity_mut(bed.torrent).insert((Desired::Pause, readiness));
    };
    let mut running = bed(Lifecycle::Downloading, None);
    assert_eq!(pause(&mut running), (false, true));
    let mut is_paused = bed(Lifecycle::Paused, None);
    paused(&mut is_paused, Readiness::Closed);
    assert_eq!(pause(&mut is_paused), (true, false));
    let mut leaving = bed(Lifecycle::Downloading, None);
    leaving.world.entity_mut(leaving.torrent).insert(Desired::Stop);
    assert_eq!(pause(&mut leaving), (false, false));
    let mut undecided = bed(Lifecycle::Adding, Some(Opening::default()));
    assert_eq!(pause(&mut undecided), (false, false), "it may yet be refused");
    let mut again = bed(Lifecycle::Adding, Some(Opening::again()));
    assert_eq!(pause(&mut again), (false, true));
}

/// A start that is being saved comes first.
#[test]
fn a_pause_waits_for_a_start() {
    let mut bed = bed(Lifecycle::Paused, None);
    bed.world
        .entity_mut(bed.torrent)
        .insert((Desired::Pause, Readiness::Closed));
    let (reply, answer) = reply::<(), StartTorrentError>();
    let torrent = bed.get::<Torrent>(bed.torrent).id();
    let mut queue = bed.world.resource_mut::<CommandQueue<PauseOrStart>>();
    queue.0.push_back(StartTorrent { torrent, reply }.into());
    bed.run(pausing::take_pauses_and_starts);
    assert_eq!(pause(&mut bed), (false, false));
    // An earlier save ends; that of the start follows.
    let torrent = bed.torrent;
    let written = || SessionWritten {
        torrent,
        result: Ok(()),
    };
    bed.run_after(written(), starting::settle_starts);
    assert!(answer.try_recv().is_err());
    save(&mut bed);
    bed.run_after(written(), starting::settle_starts);
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    assert_eq!(*bed.get::<Desired>(torrent), Desired::Run);
}

/// A caller that requests a pause twice is answered when the torrent is paused.
#[test]
fn a_pause_that_is_running_is_not_over() {
    let mut bed = bed(Lifecycle::Downloading, None);
    assert_eq!(pause(&mut bed), (false, true));
    bed.world.entity_mut(bed.torrent).insert(Readiness::Ready);
    assert_eq!(pause(&mut bed), (false, true));
}

fn stop(bed: &mut Bed) {
    let command = StopTorrent {
        torrent: bed.get::<Torrent>(bed.torrent).id(),
        reply: Reply::ignored(),
    };
    bed.world
        .resource_mut::<CommandQueue<StopTorrent>>()
        .0
        .push_back(command);
    bed.run(stopping::begin_stops);
}

fn stop_all(bed: &mut Bed, until_resumed: bool) {
    let reply = Reply::ignored();
    let command = StopAll { until_resumed, reply };
    bed.world.resource_mut::<CommandQueue<StopAll>>().0.push_back(command);
    bed.run(stopping::begin_stops);
}

/// A stop that a user requests again keeps the time that it has, however slow the save is. Only the end of the program
/// leaves no more than the time for a save.
#[test]
fn a_second_stop_shortens_the_first_only_at_the_end_of_the_program() {
    let pause: fn(&mut Bed) = |bed| assert_eq!(pause(bed), (false, true));
    let stops: [(fn(&mut Bed), fn(&mut Bed), u64); 5] = [
        (stop, stop, 90),
        (stop, |bed| stop_all(bed, true), 90),
        (stop, |bed| stop_all(bed, false), 1),
        (pause, pause, 90),
        (pause, |bed| stop_all(bed, false), 1),
    ];
    for phase in [StopPhase::HaltDownloads, StopPhase::WriteSession] {
        for (first, second, seconds) in stops {
            let mut bed = bed(Lifecycle::Downloading, None);
            let limits = &mut bed.world.resource_mut::<Settings>().lifecycle;
            (limits.halt_timeout_ms, limits.save_timeout_ms) = (90_000, 1_000);
            first(&mut bed);
            let torrent = bed.torrent;
            if phase == StopPhase::WriteSession {
                let ending = Ending::Save { until_resumed: true };
                let (turn, limit) = (StopTurn { torrent, ending }, Duration::from_secs(90));
                bed.world
                    .resource_mut::<StopParticipants>()
                    .begin(turn, phase, NOW, limit);
                bed.world.entity_mut(torrent).insert(Stopping { phase });
            }
            second(&mut bed);
            let label = bed.get::<Torrent>(torrent).clone();
            let mut participants = bed.world.resource_mut::<StopParticipants>();
            let next = participants.poll(torrent, label.label(), NOW).unwrap_err();
            assert_eq!(next, NOW + Duration::from_secs(seconds), "{phase:?}");
        }
    }
}

fn remove(bed: &mut Bed) {
    let command = RemoveTorrent {
        torrent: bed.get::<Torrent>(bed.torrent).id(),
        options: RemoveOptions::default(),
        reply: Reply::ignored(),
    };
    let mut queue = bed.world.resource_mut::<CommandQueue<RemoveTorrent>>();
    queue.0.push_back(command);
    bed.run(stopping::begin_stops);
}

/// A removal joins a stop until the session is written; after that the session is removed later.
#[test]
fn a_removal_joins_a_stop_whose_session_is_not_written() {
    for (is_stop, is_written, joins) in [(true, false, true), (true, true, false), (false, true, true)] {
        let mut bed = bed(Lifecycle::Downloading, None);
        match is_stop {
            true => stop(&mut bed),
            false => assert_eq!(pause(&mut bed), (false, true)),
        }
        let torrent = bed.torrent;
        let mut stops = bed.world.resource_mut::<stop_requests::StopsInOrder>();
        stops.turn(torrent, StopPhase::WriteSession);
        if is_written {
            let waiters = stops.waiters.get_mut(&torrent).unwrap();
            waiters.result = Some(Ok(Default::default()));
        }
        remove(&mut bed);
        assert_eq!(bed.world.resource::<CommandQueue<RemoveTorrent>>().0.is_empty(), joins);
    }
}

/// A torrent that is removed while it is paused is not paused.
#[test]
fn a_pause_that_a_removal_joins_finds_no_torrent() {
    for is_removed in [false, true] {
        let mut bed = bed(Lifecycle::Downloading, None);
        let names = bed.get::<Torrent>(bed.torrent).clone();
        let (reply, paused) = reply();
        let torrent = names.id();
        bed.world
            .resource_mut::<CommandQueue<PauseOrStart>>()
            .0
            .push_back(PauseTorrent { torrent, reply }.into());
        bed.run(pausing::take_pauses_and_starts);
        bed.run(stopping::begin_stops);
        if is_removed {
            remove(&mut bed);
        }
        let entity = bed.torrent;
        let mut stops = bed.world.resource_mut::<stop_requests::StopsInOrder>();
        let waiters = stops.waiters.remove(&entity).unwrap();
        waiters.answer(&names, &Ok(Default::default()));
        assert_eq!(paused.try_recv().unwrap().is_err(), is_removed);
    }
}

/// A torrent whose session cannot be written stays listed, and reports the ending that was requested.
#[test]
fn an_end_that_cannot_be_saved_is_a_fault() {
    for (is_stop, begins) in [(true, "stopped, but"), (false, "paused, but")] {
        let mut bed = bed(Lifecycle::Paused, None);
        bed.world
            .entity_mut(bed.torrent)
            .insert((Desired::Pause, Readiness::Closed));
        let (reply, started) = reply::<(), StartTorrentError>();
        let torrent = bed.get::<Torrent>(bed.torrent).id();
        bed.world
            .resource_mut::<CommandQueue<PauseOrStart>>()
            .0
            .push_back(StartTorrent { torrent, reply }.into());
        bed.run(pausing::take_pauses_and_starts);
        bed.world
            .entity_mut(bed.torrent)
            .insert((Desired::Run, Readiness::Ready));
        let entity = bed.torrent;
        let ending = match is_stop {
            true => Ending::Save { until_resumed: true },
            false => Ending::Pause,
        };
        if is_stop {
            stop(&mut bed);
        } else {
            bed.world
                .resource_mut::<stop_requests::StopsInOrder>()
                .torrents
                .push(entity);
            bed.world.entity_mut(entity).insert(Desired::Pause);
        }
        let phase = StopPhase::WriteSession;
        bed.world.entity_mut(entity).insert(Stopping { phase });
        bed.world
            .resource_mut::<stop_requests::StopsInOrder>()
            .turn(entity, phase);
        let turn = StopTurn {
            torrent: entity,
            ending,
        };
        let limit = Duration::from_secs(1);
        let mut participants = bed.world.resource_mut::<StopParticipants>();
        participants.begin(turn, phase, NOW, limit);
        bed.world.resource_mut::<Clock>().advance_to(NOW + limit);
        bed.run(stopping::advance_stops);
        let fault = bed.get::<Fault>(entity).0.as_ref().expect("a fault");
        assert!(fault.reason.starts_with(begins), "{}", fault.reason);
        assert!(matches!(started.try_recv(), Ok(Err(StartTorrentError::Unsaved { .. }))));
    }
}
