//! Torrent faults: a fault that belongs to a torrent stops that torrent only, visibly; then the torrent is retried.
//!
//! A torrent waits for an absent resource, such as an unmounted volume. After any other fault it restarts from the
//! saved session, a few times in a short period; then it stays failed until the user acts.

use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::lifecycle::{Blocked, ChangedFacts, Failure, Fault, Readiness};
use ecs_torrent_components::messages::{FailTorrent, Remedy};
use ecs_torrent_components::settings::{LifecycleSettings, Settings, millis, seconds};
use ecs_torrent_components::torrent::{Lifecycle, Torrent};
use ecs_torrent_protocol::time::Timestamp;

use super::opening::{Opener, Opening};
use crate::sessions::SessionState;
use crate::storage::{RetryWrite, WriteBlocked, WritesFreed};

/// A scheduled retry of a torrent.
#[derive(Debug)]
pub(super) struct Retry {
    torrent: Entity,
    /// A user requested the retry: the torrent is tried however often it has failed.
    is_requested: bool,
}

impl Retry {
    pub(super) fn scheduled(torrent: Entity) -> Self {
        let is_requested = false;
        Self { torrent, is_requested }
    }
}

/// Retries torrents at the request of users.
#[derive(SystemParam)]
pub(super) struct Retrier<'w> {
    retries: ResMut<'w, Deadlines<Retry>>,
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
}

impl Retrier<'_> {
    /// Retries a failed or blocked torrent in the next tick.
    pub(super) fn retry_now(&mut self, torrent: Entity) {
        let (now, is_requested) = (self.clock.now(), true);
        self.retries.set(now, Retry { torrent, is_requested });
        self.wakeup.at(now);
    }
}

/// The number of consecutive restarts of a torrent.
#[derive(Component, Debug, Default)]
#[component(storage = "SparseSet")]
pub(super) struct Restarts {
    count: usize,
    last: Option<Timestamp>,
}

impl Restarts {
    /// Records a restart at `at`; returns false after too many consecutive ones. The count starts again only after a
    /// full window without faults, so that a fault that takes long to occur does not recur forever.
    fn allow(&mut self, at: Timestamp, settings: &LifecycleSettings) -> bool {
        let window = seconds(settings.restart_window_s) + millis(settings.restart_delay_ms);
        if self.last.is_some_and(|last| at.since(last) > window) {
            self.count = 0;
        }
        self.last = Some(at);
        self.count += 1;
        self.count <= settings.max_restarts
    }
}

/// The parts of a torrent that a fault changes.
#[derive(QueryData)]
#[query_data(mutable)]
pub(super) struct Failing {
    torrent: &'static Torrent,
    lifecycle: &'static Lifecycle,
    fault: &'static mut Fault,
    blocked: &'static mut Blocked,
    readiness: &'static mut Readiness,
    restarts: Option<&'static mut Restarts>,
}

pub(super) fn fail_torrents(
    mut commands: Commands,
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut failed: MessageReader<FailTorrent>,
    mut changed: ResMut<ChangedFacts>,
    mut retries: ResMut<Deadlines<Retry>>,
    mut torrents: Query<Failing>,
) {
    let now = clock.now();
    let limits = &settings.lifecycle;
    for fault in failed.read() {
        let torrent = fault.torrent;
        let Ok(mut failing) = torrents.get_mut(torrent) else {
            continue;
        };
        let waits_for_volume = failing.blocked.0.is_some() && *failing.readiness == Readiness::Unopened;
        let is_known = failing.fault.0.is_some() || (waits_for_volume && fault.remedy == Remedy::Wait);
        // A late job of a paused torrent changes nothing: the next start examines everything again.
        if is_known || failing.lifecycle.is_stopping() || *failing.readiness == Readiness::Closed {
            continue;
        }
        let (torrent_label, reason) = (failing.torrent.label(), fault.reason.clone());
        let mut remedy = fault.remedy;
        if remedy == Remedy::Restart {
            let at = now + millis(limits.restart_delay_ms);
            let is_allowed = match &mut failing.restarts {
                Some(restarts) => restarts.allow(at, limits),
                None => {
                    let mut restarts = Restarts::default();
                    let is_allowed = restarts.allow(at, limits);
                    commands.entity(torrent).insert(restarts);
                    is_allowed
                }
            };
            remedy = if is_allowed { remedy } else { Remedy::None };
        }
        let wait = match remedy {
            Remedy::Restart => Some(limits.restart_delay_ms),
            Remedy::Wait => Some(limits.blocked_retry_ms),
            Remedy::None => None,
        };
        let retry_at = wait.map(|wait| now + millis(wait));
        if let Some(at) = retry_at {
            retries.set(at, Retry::scheduled(torrent));
        }
        match remedy {
            Remedy::Wait => tracing::warn!(torrent = %torrent_label, "blocked: {reason}"),
            Remedy::Restart => tracing::warn!(torrent = %torrent_label, %reason, "failed, will retry"),
            Remedy::None => tracing::info!(torrent = %torrent_label, %reason, "failed"),
        }
        match remedy {
            Remedy::Wait => failing.blocked.0 = Some(reason),
            Remedy::Restart | Remedy::None => {
                failing.fault.0 = Some(Failure { reason, retry_at });
                failing.blocked.0 = None;
            }
        }
        *failing.readiness = Readiness::Unopened;
        changed.add(torrent);
    }
}

/// Blocks a torrent on a full disk. Fault 71: the torrent keeps its pieces and its peers, and requests nothing more.
/// Ends the block when there is space again.
pub(super) fn block_writers(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    settings: Res<Settings>,
    mut full: MessageReader<WriteBlocked>,
    mut freed: MessageReader<WritesFreed>,
    mut retries: ResMut<Deadlines<Retry>>,
    mut changed: ResMut<ChangedFacts>,
    mut torrents: Query<(&Torrent, &Lifecycle, &mut Blocked)>,
) {
    let retry_at = clock.now() + millis(settings.lifecycle.blocked_retry_ms);
    for WriteBlocked {
        torrent,
        reason,
        is_retry,
    } in full.read()
    {
        let Ok((data, lifecycle, mut blocked)) = torrents.get_mut(*torrent) else {
            continue;
        };
        if !matches!(lifecycle, Lifecycle::Downloading | Lifecycle::Blocked { .. }) {
            continue;
        }
        if blocked.0.is_none() {
            tracing::warn!(torrent = %data.label(), "blocked: {reason}");
            blocked.0 = Some(reason.clone());
            changed.add(*torrent);
        } else if !is_retry {
            continue;
        }
        retries.set(retry_at, Retry::scheduled(*torrent));
    }
    for WritesFreed { torrent } in freed.read() {
        let Ok((data, _, mut blocked)) = torrents.get_mut(*torrent) else {
            continue;
        };
        if blocked.0.take().is_some() {
            tracing::info!(torrent = %data.label(), "no longer blocked");
            changed.add(*torrent);
            wakeup.at(clock.now());
        }
    }
}

/// Retries blocked and failed torrents.
pub(super) fn retry_torrents(
    mut commands: Commands,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    mut retries: ResMut<Deadlines<Retry>>,
    mut writes: MessageWriter<RetryWrite>,
    mut changed: ResMut<ChangedFacts>,
    mut opener: Opener,
    mut torrents: Query<(
        &Torrent,
        &Lifecycle,
        &Readiness,
        &SessionState,
        &mut Fault,
        &mut Blocked,
    )>,
) {
    while let Some(retry) = retries.pop_due(clock.now()) {
        let entity = retry.torrent;
        let Ok((torrent, lifecycle, readiness, state, mut fault, mut blocked)) = torrents.get_mut(entity) else {
            continue;
        };
        match lifecycle {
            // The files are open, and the disk is full.
            Lifecycle::Blocked { .. } if *readiness == Readiness::Ready => {
                writes.write(RetryWrite { torrent: entity });
                wakeup.at(clock.now());
            }
            Lifecycle::Failed { retry_at: None, .. } if !retry.is_requested => {}
            // Another retry of this tick may have begun already.
            Lifecycle::Blocked { .. } | Lifecycle::Failed { .. } if fault.0.is_some() || blocked.0.is_some() => {
                (fault.0, blocked.0) = (None, None);
                if retry.is_requested {
                    commands.entity(entity).remove::<Restarts>();
                }
                changed.add(entity);
                opener.load(entity, torrent);
                // A session that could not be read yet still decides whether the torrent is paused.
                if state.is_loaded() {
                    commands.entity(entity).insert(Opening::again());
                }
            }
            _ => {}
        }
    }
    wakeup.at_next(retries.next());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn restarts_are_counted_in_a_row() {
        let settings = LifecycleSettings::default();
        let at = |seconds| Timestamp::ZERO + Duration::from_secs(seconds);
        let mut restarts = Restarts::default();
        assert!([1, 4, 7].iter().all(|second| restarts.allow(at(*second), &settings)));
        assert!(
            !restarts.allow(at(9), &settings),
            "a fourth, each soon after the one before"
        );
        let window = settings.restart_window_s + settings.restart_delay_ms / 1000;
        assert!(
            !restarts.allow(at(9 + window), &settings),
            "the delay of a restart is not a time without faults"
        );
        assert!(
            restarts.allow(at(10 + 2 * window), &settings),
            "it ran well for a while"
        );
    }
}
