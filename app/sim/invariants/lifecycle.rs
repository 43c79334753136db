//! A torrent's states, and the phases of its stop, change only along legal edges.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::torrent::{Have, Lifecycle, StopPhase, Stopping, Torrent};

use super::{Invariant, Violations};

/// The last seen state of each torrent.
#[derive(Resource, Default)]
pub(super) struct Seen {
    states: EntityHashMap<State>,
    phases: EntityHashMap<StopPhase>,
}

/// A lifecycle state without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Adding,
    Checking,
    Downloading,
    Seeding,
    Blocked,
    Failed,
    Stopping,
}

impl State {
    fn of(lifecycle: &Lifecycle) -> Self {
        match lifecycle {
            Lifecycle::Adding => Self::Adding,
            Lifecycle::Checking => Self::Checking,
            Lifecycle::Downloading => Self::Downloading,
            Lifecycle::Seeding => Self::Seeding,
            Lifecycle::Blocked { .. } => Self::Blocked,
            Lifecycle::Failed { .. } => Self::Failed,
            Lifecycle::Stopping => Self::Stopping,
        }
    }

    /// Returns whether a torrent may change from this state to `next` between two ticks, in one or more steps.
    fn may_become(self, next: Self) -> bool {
        use State::{Adding, Blocked, Checking, Downloading, Failed, Seeding, Stopping};
        match (self, next) {
            // Apart from its end, a stop has one way out: a session that cannot be written.
            (Stopping, next) => matches!(next, Failed),
            (_, Stopping | Failed) => true,
            (Adding, next) => matches!(next, Checking | Downloading | Seeding | Blocked),
            (Checking, next) => matches!(next, Downloading | Seeding | Blocked),
            (Downloading, next) => matches!(next, Seeding | Blocked),
            (Seeding, next) => matches!(next, Blocked),
            (Blocked, next) => matches!(next, Adding | Checking | Downloading | Seeding),
            // A restart begins at `Adding`, and may be further along by the end of its tick.
            (Failed, next) => matches!(next, Adding | Checking | Downloading | Seeding),
        }
    }
}

/// Checks that a torrent that downloads lacks pieces.
pub(super) fn check_completion(
    clock: Res<Clock>,
    mut violations: ResMut<Violations>,
    torrents: Query<(&Torrent, &Lifecycle, &Have), Or<(Changed<Lifecycle>, Changed<Have>)>>,
) {
    for (torrent, lifecycle, have) in &torrents {
        if *lifecycle == Lifecycle::Downloading && have.0.is_full() {
            violations.note(&clock, Invariant::Lifecycle, || {
                format!("{} has every piece and is still downloading", torrent.name)
            });
        }
    }
}

pub(super) fn check(
    clock: Res<Clock>,
    mut seen: ResMut<Seen>,
    mut violations: ResMut<Violations>,
    states: Query<(Entity, &Torrent, &Lifecycle), Changed<Lifecycle>>,
    phases: Query<(Entity, &Torrent, &Stopping), Changed<Stopping>>,
    mut gone: RemovedComponents<Lifecycle>,
    mut stopped: RemovedComponents<Stopping>,
) {
    for (entity, torrent, lifecycle) in &states {
        let next = State::of(lifecycle);
        let before = seen.states.insert(entity, next);
        if let Some(before) = before.filter(|before| *before != next && !before.may_become(next)) {
            violations.note(&clock, Invariant::Lifecycle, || {
                format!("{} went from {before:?} to {next:?}", torrent.name)
            });
        }
    }
    for (entity, torrent, stopping) in &phases {
        let next = stopping.phase;
        let before = seen.phases.insert(entity, next);
        if before.unwrap_or(StopPhase::HaltDownloads) > next {
            violations.note(&clock, Invariant::Phases, || {
                format!("the stop of {} went from {before:?} back to {next:?}", torrent.name)
            });
        }
    }
    for entity in stopped.read() {
        seen.phases.remove(&entity);
    }
    for entity in gone.read() {
        seen.states.remove(&entity);
    }
}
