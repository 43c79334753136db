//! The phases of a stop, each as a user sees it while a plugin holds it open.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ecs_torrent::bevy_app::{App, Plugin};
use ecs_torrent::bevy_ecs::prelude::*;
use ecs_torrent::components::torrent::StopPhase;
use ecs_torrent::systems::stop_participants::{AddStopParticipant, StopDuty};
use ecs_torrent::{Error, Tick, TickSet, TorrentState};

use crate::bed::{Bed, Torrent};
use crate::stopping::begin_stop;

const PHASES: [StopPhase; 5] = [
    StopPhase::HaltDownloads,
    StopPhase::DisconnectPeers,
    StopPhase::AnnounceStopped,
    StopPhase::WriteSession,
    StopPhase::Release,
];

/// Holds each phase until the test has ended it. The number is that of the phases that may end.
#[derive(Clone, Default, Resource)]
struct Gate(Arc<AtomicUsize>);

/// The participant of the phase with this number.
struct Holder<const N: usize>;

impl Plugin for Gate {
    fn build(&self, app: &mut App) {
        app.insert_resource(self.clone())
            .add_stop_participant::<Holder<0>>(PHASES[0], None)
            .add_stop_participant::<Holder<1>>(PHASES[1], None)
            .add_stop_participant::<Holder<2>>(PHASES[2], None)
            .add_stop_participant::<Holder<3>>(PHASES[3], None)
            .add_stop_participant::<Holder<4>>(PHASES[4], None)
            .add_systems(
                Tick,
                (hold::<0>, hold::<1>, hold::<2>, hold::<3>, hold::<4>)
                    .chain()
                    .in_set(TickSet::Respond),
            );
    }
}

fn hold<const N: usize>(mut duty: StopDuty<Holder<N>>, mut held: Local<Vec<Entity>>, gate: Res<Gate>) {
    held.extend(duty.take().iter().map(|turn| turn.torrent));
    if gate.0.load(Ordering::SeqCst) > N {
        held.drain(..).for_each(|torrent| duty.finish(torrent));
    }
}

#[test]
fn each_phase_of_a_stop_is_visible() {
    let gate = Gate::default();
    let mut bed = Bed::with_plugin(
        |settings| {
            let patience = settings.lifecycle.halt_timeout_ms;
            settings.lifecycle.disconnect_timeout_ms = patience;
            settings.lifecycle.announce_timeout_ms = patience;
        },
        gate.clone(),
    );
    let torrent = Torrent::new(200_000, 65536);
    let id = bed.seed(&torrent);
    let stop = begin_stop(&bed, id);
    for (number, phase) in PHASES.into_iter().enumerate() {
        bed.wait_until(&format!("{phase:?}"), || {
            bed.stats(id).state == TorrentState::Stopping(phase)
        });
        assert!(!stop.is_finished(), "the caller is answered after the last phase");
        gate.0.store(number + 1, Ordering::SeqCst);
    }
    bed.wait_until("the torrent to be gone", || {
        matches!(bed.block_on(bed.torrents().stats(id)), Err(Error::TorrentNotFound(_)))
    });
    stop.join().unwrap().unwrap();
}
