//! Torrent faults: a fault that belongs to a torrent stops that torrent only, visibly; then the torrent is retried.
//!
//! A torrent waits for something that is absent now, like an unmounted volume. After any other fault it restarts from
//! the saved session, a few times in a short period; after that it stays failed until the user acts.

use std::sync::Arc;

use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{FailTorrent, Remedy, TorrentBlocked, TorrentFailed, TorrentRestarting};
use ecs_torrent_components::peer::{CloseReason, FlushQueue, Outbox, RefillQueue, Requests};
use ecs_torrent_components::piece::{ActivePiece, PieceMemory, PiecePhase};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::{LifecycleSettings, Settings, millis, seconds};
use ecs_torrent_components::torrent::{ActivePieces, Activity, Lifecycle, Partials, Torrent, TorrentPeers};
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::Message;

use super::opening::{Opener, Opening};
use crate::checking::Check;
use crate::picking::{Picker, Supply, release};
use crate::storage::BlockedWrites;

/// A scheduled retry of a torrent.
#[derive(Debug)]
pub(super) struct Retry(Entity);

/// On a torrent that has been restarted: the number of restarts in a row.
#[derive(Component, Debug, Default)]
pub(super) struct Restarts {
    count: usize,
    last: Option<Timestamp>,
}

impl Restarts {
    /// Records a restart at `at`; returns false after too many in a row. A row ends only after a full window without
    /// faults, so that a fault that takes long to show does not recur forever.
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

/// Messages to users and plugins.
#[derive(SystemParam)]
pub(super) struct Telling<'w> {
    failed: MessageWriter<'w, TorrentFailed>,
    blocked: MessageWriter<'w, TorrentBlocked>,
    restarting: MessageWriter<'w, TorrentRestarting>,
}

pub(super) fn fail_torrents(
    mut commands: Commands,
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut failed: MessageReader<FailTorrent>,
    mut telling: Telling,
    mut retries: ResMut<Deadlines<Retry>>,
    mut blocked: ResMut<BlockedWrites>,
    mut reaper: ResMut<Reaper>,
    mut flight: Flight,
    mut torrents: Query<(
        &Torrent,
        &mut Lifecycle,
        &mut Activity,
        Option<&mut Restarts>,
        Option<&TorrentPeers>,
        Option<&mut ActivePieces>,
        &Partials,
    )>,
) {
    let now = clock.now();
    for fault in failed.read() {
        let torrent = fault.torrent;
        let Ok((data, mut lifecycle, mut activity, restarts, peers, active, partials)) = torrents.get_mut(torrent)
        else {
            continue;
        };
        if matches!(*lifecycle, Lifecycle::Failed { .. } | Lifecycle::Stopping) {
            continue;
        }
        let (name, reason) = (&data.name, fault.reason.clone());
        let mut remedy = fault.remedy;
        if remedy == Remedy::Restart {
            let at = now + millis(settings.lifecycle.restart_delay_ms);
            let is_allowed = match restarts {
                Some(mut restarts) => restarts.allow(at, &settings.lifecycle),
                None => {
                    let mut restarts = Restarts::default();
                    let is_allowed = restarts.allow(at, &settings.lifecycle);
                    commands.entity(torrent).insert(restarts);
                    is_allowed
                }
            };
            remedy = if is_allowed { remedy } else { Remedy::None };
        }
        let wait = match remedy {
            Remedy::Restart => Some(settings.lifecycle.restart_delay_ms),
            Remedy::Wait => Some(settings.lifecycle.blocked_retry_ms),
            Remedy::None => None,
        };
        let retry_at = wait.map(|wait| now + millis(wait));
        if let Some(at) = retry_at {
            retries.set(at, Retry(torrent));
        }
        *lifecycle = match remedy {
            Remedy::Wait => {
                tracing::warn!(torrent = %name, %reason, "waits");
                let resource = reason.clone();
                telling.blocked.write(TorrentBlocked { torrent, resource });
                Lifecycle::Blocked { resource: reason }
            }
            Remedy::Restart => {
                tracing::warn!(torrent = %name, %reason, "failed, and is tried again");
                let told = reason.clone();
                telling.restarting.write(TorrentRestarting { torrent, reason: told });
                Lifecycle::Failed { reason, retry_at }
            }
            Remedy::None => {
                tracing::info!(torrent = %name, %reason, "failed");
                let told = reason.clone();
                telling.failed.write(TorrentFailed { torrent, reason: told });
                Lifecycle::Failed { reason, retry_at }
            }
        };
        activity.stop(now);
        for peer in peers.into_iter().flat_map(RelationshipTarget::iter) {
            reaper.close(peer, CloseReason::Stopping);
        }
        if let Some(mut active) = active {
            flight.count_dropped(torrent, &active, partials);
            flight.ground(&mut active, |_| true);
        }
        blocked.forget(torrent);
        commands.entity(torrent).remove::<(Picker, Check)>();
    }
}

/// Blocks a torrent on a full disk. Fault 71: the torrent keeps its pieces and its peers, and requests nothing more.
pub(super) fn block_writers(
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut random: ResMut<Random>,
    mut blocked: ResMut<BlockedWrites>,
    mut retries: ResMut<Deadlines<Retry>>,
    mut told: MessageWriter<TorrentBlocked>,
    mut flight: Flight,
    mut torrents: Query<(&Torrent, &mut Lifecycle)>,
    mut flights: Query<(&mut ActivePieces, &mut Picker)>,
) {
    let retry_at = clock.now() + millis(settings.lifecycle.blocked_retry_ms);
    for piece in std::mem::take(&mut blocked.surplus) {
        if let Some(torrent) = flight.torrent_of(piece)
            && let Ok((mut active, mut picker)) = flights.get_mut(torrent)
        {
            flight.put_back(piece, &mut active, &mut picker, &mut random);
        }
    }
    for (torrent, reason) in std::mem::take(&mut blocked.full) {
        let Ok((data, mut lifecycle)) = torrents.get_mut(torrent) else {
            blocked.forget(torrent);
            continue;
        };
        match *lifecycle {
            Lifecycle::Downloading => {
                tracing::warn!(torrent = %data.name, %reason, "waits");
                let resource: Arc<str> = reason.clone();
                *lifecycle = Lifecycle::Blocked { resource: reason };
                told.write(TorrentBlocked { torrent, resource });
                retries.set(retry_at, Retry(torrent));
                blocked.recalled.push(torrent);
            }
            // This write was retried: there is still no space.
            Lifecycle::Blocked { .. } if blocked.is_retrying(torrent) => retries.set(retry_at, Retry(torrent)),
            Lifecycle::Blocked { .. } => {}
            _ => drop(blocked.forget(torrent)),
        }
    }
}

/// Cancels the requests of a blocked torrent: its unfinished pieces become idle, and other torrents that need their
/// memory get it.
pub(super) fn recall_requests(
    mut blocked: ResMut<BlockedWrites>,
    mut flush: ResMut<FlushQueue>,
    mut supply: ResMut<Supply>,
    mut torrents: Query<(&TorrentPeers, &mut ActivePieces)>,
    mut peers: Query<(&mut Requests, &mut Outbox)>,
    mut pieces: Query<&mut ActivePiece>,
) {
    for torrent in blocked.recalled.drain(..) {
        let Ok((connected, mut active)) = torrents.get_mut(torrent) else {
            continue;
        };
        for peer in connected.iter() {
            let Ok((mut requests, mut outbox)) = peers.get_mut(peer) else {
                continue;
            };
            let dropped = requests.cancel_all();
            for pending in &dropped {
                flush.send(peer, &mut outbox, &Message::Cancel(pending.request));
            }
            release(peer, &dropped, &mut pieces, &mut active, torrent, &mut supply);
        }
    }
}

/// Retries blocked and failed torrents, and continues those for which the retry succeeded.
pub(super) fn retry_torrents(
    mut commands: Commands,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    mut retries: ResMut<Deadlines<Retry>>,
    mut blocked: ResMut<BlockedWrites>,
    mut refill: ResMut<RefillQueue>,
    mut opener: Opener,
    mut torrents: Query<(&Torrent, &mut Lifecycle, Option<&TorrentPeers>)>,
    mut requests: Query<&mut Requests>,
) {
    while let Some(Retry(entity)) = retries.pop_due(clock.now()) {
        let Ok((torrent, mut lifecycle, _)) = torrents.get_mut(entity) else {
            continue;
        };
        match *lifecycle {
            Lifecycle::Blocked { .. } if blocked.holds(entity) => {
                blocked.retry_one(entity);
                wakeup.at(clock.now());
            }
            Lifecycle::Blocked { .. } | Lifecycle::Failed { retry_at: Some(_), .. } => {
                *lifecycle = Lifecycle::Adding;
                opener.load(entity, torrent);
                commands.entity(entity).insert(Opening::again());
            }
            _ => {}
        }
    }
    for entity in std::mem::take(&mut blocked.freed) {
        let Ok((torrent, mut lifecycle, peers)) = torrents.get_mut(entity) else {
            continue;
        };
        if matches!(*lifecycle, Lifecycle::Blocked { .. }) {
            tracing::info!(torrent = %torrent.name, "goes on");
            *lifecycle = Lifecycle::Downloading;
        }
        blocked.retry_all(entity);
        wakeup.at(clock.now());
        for peer in peers.into_iter().flat_map(RelationshipTarget::iter) {
            if let Ok(mut requests) = requests.get_mut(peer) {
                refill.add(peer, &mut requests);
            }
        }
    }
    wakeup.at_next(retries.next());
}

/// Drops pieces in flight.
#[derive(SystemParam)]
pub(super) struct Flight<'w, 's> {
    commands: Commands<'w, 's>,
    memory: ResMut<'w, PieceMemory>,
    supply: ResMut<'w, Supply>,
    pieces: Query<'w, 's, &'static ActivePiece>,
}

impl Flight<'_, '_> {
    fn torrent_of(&self, piece: Entity) -> Option<Entity> {
        self.pieces.get(piece).ok().map(|piece| piece.torrent)
    }

    /// Drops a piece; the picker may begin it again later.
    fn put_back(&mut self, entity: Entity, active: &mut ActivePieces, picker: &mut Picker, random: &mut Random) {
        let Ok(piece) = self.pieces.get(entity) else { return };
        active.all.remove(&piece.index);
        active.open.remove(&piece.index);
        picker.order.insert(piece.index, random);
        self.memory.release(piece.span.len);
        self.supply.offer_memory();
        self.supply.note_dropped(piece.torrent, piece.received_bytes());
        self.commands.entity(entity).despawn();
    }

    /// Counts the bytes of pieces that are about to be dropped, unless these bytes are on the disk, or may be.
    fn count_dropped(&mut self, torrent: Entity, active: &ActivePieces, partials: &Partials) {
        for piece in self.pieces.iter_many(active.all.values()).flatten() {
            if piece.phase != PiecePhase::Writing && !partials.0.contains_key(&piece.index) {
                self.supply.note_dropped(torrent, piece.received_bytes());
            }
        }
    }

    /// Drops the pieces for which `gives_up` holds; returns true if none is left.
    pub(super) fn ground(&mut self, active: &mut ActivePieces, gives_up: impl Fn(&ActivePiece) -> bool) -> bool {
        active.all.retain(|_, entity| {
            let Ok(piece) = self.pieces.get(*entity) else {
                return false;
            };
            let stays = !gives_up(piece);
            if !stays {
                self.memory.release(piece.span.len);
                self.supply.offer_memory();
                self.commands.entity(*entity).despawn();
            }
            stays
        });
        active.open.clear();
        active.all.is_empty()
    }
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
        assert!(restarts.allow(at(16), &settings), "it ran well for a while");
    }
}
