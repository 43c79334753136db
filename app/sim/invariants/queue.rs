//! The torrents that run are the first ones of the queue, and no slot is free while one waits that could run.

use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::messages::LifecycleChanged;
use ecs_torrent_components::queue::{QueueFacts, QueueOrder, SlowTransfer};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::Torrent;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_systems::checking::Check;

use super::{Invariant, Violations};

/// The parts of a torrent that decide whether it runs.
#[derive(QueryData)]
pub(super) struct Member {
    torrent: &'static Torrent,
    order: &'static QueueOrder,
    facts: QueueFacts,
    is_slow: Has<SlowTransfer>,
}

/// A torrent that may run.
struct Candidate {
    place: (i64, InfoHash),
    is_finished: bool,
    is_forced: bool,
    is_slow: bool,
    runs: bool,
}

/// Checks which torrents run, by the definition. A tick that changes states is followed by one that settles the queue.
pub(super) fn check(
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut violations: ResMut<Violations>,
    mut changed: MessageReader<LifecycleChanged>,
    torrents: Query<Member>,
    checks: Query<&Check>,
) {
    let limits = &settings.queue;
    let checking = checks.iter().filter(|check| check.is_running()).count();
    if checking > limits.max_checks {
        violations.report(&clock, Invariant::Queue, || {
            format!("{checking} torrents are checked at a time")
        });
    }
    if !limits.is_limiting() || changed.read().count() > 0 {
        return;
    }
    let mut candidates: Vec<Candidate> = torrents
        .iter()
        .filter(|member| member.facts.may_run())
        .map(|member| Candidate {
            place: (member.order.0, member.torrent.id()),
            is_finished: member.facts.is_finished(),
            is_forced: member.facts.is_forced,
            is_slow: member.is_slow,
            runs: !member.facts.is_waiting,
        })
        .collect();
    candidates.sort_by_key(|candidate| candidate.place);
    let forced = candidates.iter().filter(|candidate| candidate.is_forced).count();
    let mut left = limits.max_active.saturating_sub(forced);
    for (is_finished, most) in [(false, limits.max_downloads), (true, limits.max_seeds)] {
        let lane = || {
            candidates
                .iter()
                .filter(|candidate| candidate.is_finished == is_finished)
        };
        let mut counted_left = most.saturating_sub(lane().filter(|candidate| candidate.is_forced).count());
        for candidate in lane() {
            let may_run = candidate.is_forced || left > 0 && (candidate.is_slow || counted_left > 0);
            if may_run && !candidate.is_forced {
                left -= 1;
                counted_left = counted_left.saturating_sub(usize::from(!candidate.is_slow));
            }
            if may_run != candidate.runs {
                let (runs, id) = (candidate.runs, candidate.place.1);
                violations.report(&clock, Invariant::Queue, || {
                    format!("{id} runs: {runs}, although by its place in the queue, it may: {may_run}")
                });
            }
        }
    }
}
