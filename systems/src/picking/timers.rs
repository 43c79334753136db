//! Timeouts of requests, and the time at which a peer is considered again.

use std::time::Duration;

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::peer::{
    PeerRates, PeerState, Pending, RefillQueue, RequestSink, Requests, SourceSink, Wire,
};
use ecs_torrent_components::piece::{ActivePiece, FAILED_PAUSE};
use ecs_torrent_components::settings::{RequestSettings, Settings, seconds};
use ecs_torrent_components::torrent::{ActivePieces, PeerOf};
use ecs_torrent_protocol::geometry::BlockRequest;
use ecs_torrent_protocol::time::Timestamp;

use super::Supply;

/// Deadline at which a peer's oldest request is checked.
#[derive(Debug)]
pub(super) struct LateCheck(Entity);

/// Deadline at which a peer is considered again. A peer has at most one that counts.
#[derive(Debug)]
pub(super) struct Resume(Entity);

/// The timers of peers.
#[derive(SystemParam)]
pub(super) struct PeerTimers<'w> {
    pub(super) clock: Res<'w, Clock>,
    pub(super) settings: Res<'w, Settings>,
    wakeup: Res<'w, Wakeup>,
    checks: ResMut<'w, Deadlines<LateCheck>>,
    resumes: ResMut<'w, Deadlines<Resume>>,
}

impl PeerTimers<'_> {
    /// Schedules that the peer is considered again at `at`, unless it is considered earlier.
    pub(super) fn resume_at(&mut self, at: Timestamp, peer: Entity, requests: &mut Requests) {
        if requests.schedule_resume(at) {
            self.resumes.set(at, Resume(peer));
            self.wakeup.at(at);
        }
    }

    /// Withholds a piece that the peer failed to send.
    fn withhold(&mut self, peer: Entity, requests: &mut Requests) {
        requests.withheld_until = self.clock.now() + FAILED_PAUSE;
        self.resume_at(requests.withheld_until, peer, requests);
    }

    /// Takes a piece away from the peer that sends it exclusively: cancels all requests for it, drops its blocks, and
    /// withholds it from the peer; another peer begins it from the start.
    pub(super) fn take_away(
        &mut self,
        (peer, torrent): (Entity, Entity),
        (entity, piece): (Entity, &mut ActivePiece),
        requests: &mut Requests,
        supply: &mut Supply,
        mut cancel: impl FnMut(BlockRequest),
    ) {
        debug_assert_eq!(piece.exclusive, Some(peer));
        while let Some(pending) = requests.pending().iter().find(|other| other.piece == entity) {
            let request = pending.request;
            requests.cancel(request);
            cancel(request);
        }
        supply.record_dropped(torrent, piece.give_up_exclusive(self.clock.now()));
        self.withhold(peer, requests);
    }

    /// Sets a deadline for the oldest request that is not late, or for the peer's silence, unless a deadline is set.
    pub(super) fn watch(&mut self, peer: Entity, requests: &mut Requests, bytes_per_s: u64) {
        if requests.has_deadline {
            return;
        }
        let settings = &self.settings.requests;
        let oldest = requests.pending().iter().find(|pending| !pending.is_late);
        if let (Some(oldest), Some(since)) = (oldest, requests.silent_since()) {
            let patience = patience(requests, bytes_per_s, settings);
            let at = (oldest.requested_at + patience).min(since + requests.silence_limit(settings));
            self.checks.set(at, LateCheck(peer));
            requests.has_deadline = true;
        }
    }
}

/// Timeout of a request: the minimum of the settings, or three times the duration expected at the peer's rate.
fn patience(requests: &Requests, bytes_per_s: u64, settings: &RequestSettings) -> Duration {
    let least = seconds(settings.block_timeout_s);
    let owed: u64 = requests
        .pending()
        .iter()
        .map(|pending| u64::from(pending.request.len))
        .sum();
    match (owed * 3).checked_div(bytes_per_s) {
        Some(expected) => least.max(seconds(expected.min(settings.block_timeout_s * 10))),
        None => least,
    }
}

/// The components of a peer whose requests time out.
type TimedPeer = (
    &'static mut Requests,
    &'static mut PeerState,
    SourceSink,
    &'static PeerRates,
    &'static Wire,
    &'static PeerOf,
);

/// Marks requests as late that are not answered in time (Fault 33): their blocks are free for other peers, and late
/// answers are still accepted. For a silent peer, this applies to all of its requests.
pub(super) fn expire_requests(
    mut timers: PeerTimers,
    mut supply: ResMut<Supply>,
    mut refill: ResMut<RefillQueue>,
    mut sink: RequestSink,
    mut peers: Query<TimedPeer>,
    mut pieces: Query<&mut ActivePiece>,
    mut torrents: Query<&mut ActivePieces>,
) {
    let now = timers.clock.now();
    while let Some(LateCheck(peer)) = timers.checks.pop_due(now) {
        let Ok((mut requests, mut state, mut source, rates, wire, of)) = peers.get_mut(peer) else {
            continue;
        };
        // A peer is not late while its blocks wait for the limit on downloads.
        let silence = requests.silence_limit(&timers.settings.requests);
        let until = wire.limited_until(now).map(|limited| limited + silence);
        if let Some(at) = until.filter(|at| *at > now) {
            timers.checks.set(at, LateCheck(peer));
            continue;
        }
        requests.has_deadline = false;
        let rate = rates.download.at(now);
        let late = late_requests(&mut requests, now, rate, &timers.settings.requests);
        if requests.is_silent && requests.withheld_until > now {
            timers.resume_at(requests.withheld_until, peer, &mut requests);
        }
        if !late.is_empty() {
            requests.depth.shrink(&timers.settings.requests);
            refill.add(peer, &mut requests);
        }
        let Ok(mut active) = torrents.get_mut(of.0) else {
            continue;
        };
        for pending in late {
            // Canceled together with another request for the same piece.
            if !requests.pending().contains(&pending) {
                continue;
            }
            let Ok(mut piece) = pieces.get_mut(pending.piece) else {
                requests.answer(pending.request);
                continue;
            };
            if piece.exclusive == Some(peer) {
                let lost = (pending.piece, &mut *piece);
                timers.take_away((peer, of.0), lost, &mut requests, &mut supply, |request| {
                    sink.cancel(peer, &mut source, request);
                });
            } else {
                piece.expire(pending.block, peer);
                requests.mark_late(&pending);
            }
            active.open.insert(piece.index);
            supply.mark_idle(pending.piece, &mut piece);
            supply.offer(of.0);
        }
        state.snubbed |=
            owes_since(&requests, &state).is_some_and(|since| since + seconds(timers.settings.requests.snub_s) <= now);
        timers.watch(peer, &mut requests, rate);
    }
    timers.wakeup.at_next(timers.checks.next());
}

/// Returns the requests that have just timed out. If the peer is silent, these are all its requests, and it is
/// distrusted for a while.
fn late_requests(requests: &mut Requests, now: Timestamp, rate: u64, settings: &RequestSettings) -> Vec<Pending> {
    let patience = patience(requests, rate, settings);
    let silence = requests.silence_limit(settings);
    let is_silent = requests.silent_since().is_some_and(|since| since + silence <= now);
    if is_silent {
        requests.is_silent = true;
        requests.distrusted_until = now + FAILED_PAUSE;
        requests.withheld_until = requests.distrusted_until;
    }
    let is_due = |pending: &&Pending| !pending.is_late && (is_silent || pending.requested_at + patience <= now);
    requests.pending().iter().filter(is_due).copied().collect()
}

/// Returns the start of the time in which the peer owed us blocks, could send them, and sent none.
fn owes_since(requests: &Requests, state: &PeerState) -> Option<Timestamp> {
    let oldest = requests.pending().front()?;
    Some(oldest.requested_at.max(requests.last_block).max(state.choke_changed))
}

/// Takes pieces away from exclusive senders that are much slower than other peers.
pub(super) fn withdraw_overtaken(
    mut timers: PeerTimers,
    mut supply: ResMut<Supply>,
    mut sink: RequestSink,
    mut peers: Query<(&mut Requests, SourceSink, &PeerOf)>,
    mut pieces: Query<&mut ActivePiece>,
    mut torrents: Query<&mut ActivePieces>,
) {
    while let Some(entity) = supply.overtaken.pop() {
        let Ok(mut piece) = pieces.get_mut(entity) else {
            continue;
        };
        let Some(owner) = piece.exclusive.filter(|_| !piece.is_full()) else {
            continue;
        };
        let Ok((mut requests, mut source, of)) = peers.get_mut(owner) else {
            continue;
        };
        let lost = (entity, &mut *piece);
        timers.take_away((owner, of.0), lost, &mut requests, &mut supply, |request| {
            sink.cancel(owner, &mut source, request);
        });
        if let Ok(mut active) = torrents.get_mut(of.0) {
            active.open.insert(piece.index);
        }
        supply.mark_idle(entity, &mut piece);
        supply.offer(of.0);
    }
}

/// Lists the peers that are considered again.
pub(super) fn resume_paused(mut timers: PeerTimers, mut refill: ResMut<RefillQueue>, mut peers: Query<&mut Requests>) {
    let now = timers.clock.now();
    while let Some(Resume(peer)) = timers.resumes.pop_due(now) {
        if let Ok(mut requests) = peers.get_mut(peer)
            && requests.resume(now)
        {
            refill.add(peer, &mut requests);
        }
    }
    timers.wakeup.at_next(timers.resumes.next());
}

#[cfg(test)]
mod tests {
    use ecs_torrent_protocol::geometry::BLOCK_SIZE;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn requests(requested_at: &[u64]) -> Requests {
        let mut requests = Requests::default();
        for (block, requested_at) in (0..).zip(requested_at) {
            requests.add(Pending {
                piece: Entity::from_raw_u32(1).unwrap(),
                block,
                request: BlockRequest {
                    piece: 0,
                    begin: block * BLOCK_SIZE,
                    len: BLOCK_SIZE,
                },
                requested_at: at(*requested_at),
                is_late: false,
            });
        }
        requests
    }

    #[test]
    fn a_slow_peer_has_more_time() {
        let settings = RequestSettings::default();
        let least = seconds(settings.block_timeout_s);
        let requests = requests(&[0; 64]);
        assert_eq!(patience(&requests, 0, &settings), least, "the rate is not known");
        assert_eq!(patience(&requests, 100 << 20, &settings), least);
        let rate = 3 * 64 * u64::from(BLOCK_SIZE) / (2 * settings.block_timeout_s);
        assert_eq!(patience(&requests, rate, &settings), least * 2);
        assert_eq!(
            patience(&requests, 1, &settings),
            least * 10,
            "but no more than ten times as much"
        );
    }

    #[test]
    fn the_oldest_requests_are_late_and_all_of_a_silent_peer() {
        let settings = RequestSettings::default();
        let timeout = settings.block_timeout_s;
        let mut slow = requests(&[0, timeout / 2]);
        let now = at(timeout);
        slow.last_block = now;
        let late = late_requests(&mut slow, now, 0, &settings);
        assert_eq!(late.iter().map(|pending| pending.block).collect::<Vec<_>>(), [0]);
        assert!(!slow.is_silent);
        let mut silent = requests(&[0, timeout / 2]);
        assert_eq!(late_requests(&mut silent, now, 0, &settings).len(), 2);
        assert!(silent.is_silent && silent.distrusted_until == now + FAILED_PAUSE);
    }
}
