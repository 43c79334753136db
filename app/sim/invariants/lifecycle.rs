//! Every change of a torrent's state is an edge of the table in ARCHITECTURE.md, and states follow from intent and
//! facts.

use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::intent_and_facts::IntentAndFacts;
use ecs_torrent_components::lifecycle::TorrentState;
use ecs_torrent_components::messages::LifecycleChanged;
use ecs_torrent_components::torrent::{Have, Lifecycle, Torrent};
use ecs_torrent_components::wanted::{WantedPieces, unneeded};

use super::{Invariant, Violations};

/// Checks that downloading torrents lack a wanted piece, that finished ones hold all wanted pieces, and that seeding
/// ones hold all pieces.
pub(super) fn check_completion(
    clock: Res<Clock>,
    mut violations: ResMut<Violations>,
    torrents: Query<(&Torrent, &Lifecycle, &Have, Option<&WantedPieces>), Or<(Changed<Lifecycle>, Changed<Have>)>>,
) {
    for (torrent, lifecycle, have, wanted) in &torrents {
        let is_served = unneeded(have, wanted).is_full();
        if *lifecycle == Lifecycle::Downloading && is_served {
            violations.report(&clock, Invariant::Lifecycle, || {
                format!("{} has every wanted piece and is still downloading", torrent.name)
            });
        }
        if lifecycle.is_finished() && !is_served || *lifecycle == Lifecycle::Seeding && !have.is_full() {
            violations.report(&clock, Invariant::Lifecycle, || {
                format!("{} lacks a piece and is called finished", torrent.name)
            });
        }
    }
}

/// Checks that each state is the one that follows from the torrent's intent and facts.
pub(super) fn check_derived(
    clock: Res<Clock>,
    mut violations: ResMut<Violations>,
    torrents: Query<(&Torrent, &Lifecycle, IntentAndFacts)>,
) {
    for (torrent, lifecycle, facts) in &torrents {
        let derived = facts.derive();
        if *lifecycle != derived {
            violations.report(&clock, Invariant::Lifecycle, || {
                let name = &torrent.name;
                format!("{name} is {lifecycle:?}, and {derived:?} follows from its intent and facts")
            });
        }
    }
}

/// Checks that every change is an edge of the table.
pub(super) fn check(
    clock: Res<Clock>,
    mut violations: ResMut<Violations>,
    mut changed: MessageReader<LifecycleChanged>,
    torrents: Query<&Torrent>,
) {
    for LifecycleChanged { torrent, from, to } in changed.read() {
        let (before, next) = (from.state(), to.state());
        if before == next || before.may_become(next) {
            continue;
        }
        let invariant = match (before, next) {
            (TorrentState::Stopping(_), TorrentState::Stopping(_)) => Invariant::Phases,
            _ => Invariant::Lifecycle,
        };
        violations.report(&clock, invariant, || {
            let name = torrents
                .get(*torrent)
                .map_or("a torrent that is gone", |torrent| &torrent.name);
            format!("{name} went from {before} to {next}")
        });
    }
}
