//! The piece picker: which blocks are requested from which peer.
//!
//! A peer continues with its current piece. After that the order is: rare pieces that it suggests, abandoned pieces,
//! the rarest new piece, pieces that other peers are downloading, and in the endgame blocks that are requested from
//! other peers. Only peers in the refill queue are visited; a peer for which nothing is found waits until blocks become
//! free.

mod flight;
pub mod rarity;
mod refill;

use std::collections::VecDeque;
use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{
    AllowedFastReceived, ChokeReceived, PeerDisconnected, RejectReceived, SuggestReceived,
};
use ecs_torrent_components::peer::{
    FlushQueue, Outbox, PeerPieces, PeerRates, PeerState, Pending, RefillQueue, Requests, Wire,
};
use ecs_torrent_components::piece::{ActivePiece, FAILED_PAUSE, PieceMemory};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::{RequestSettings, Settings, seconds};
use ecs_torrent_components::torrent::{ActivePieces, PeerOf, StopPhase};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::geometry::BlockRequest;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::Message;

pub(crate) use self::flight::Flight;
use self::rarity::RarityOrder;
use crate::stop_participants::AddStopParticipant;
use crate::{DecideSet, ReapSet};

/// Chooses pieces and requests blocks.
pub struct PickingPlugin;

impl Plugin for PickingPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<RefillQueue>()
            .init_resource::<PieceMemory>()
            .init_resource::<Supply>()
            .init_resource::<DroppedRequests>()
            .add_stop_participant::<flight::Halting>(StopPhase::HaltDownloads, None)
            .init_resource::<Deadlines<LateCheck>>()
            .init_resource::<Deadlines<Resume>>()
            .add_systems(
                Tick,
                (
                    (
                        flight::follow_lifecycle,
                        flight::halt_stopped,
                        hear_chokes,
                        hear_rejects,
                        hear_allowed_fast,
                        hear_suggestions,
                        drop_requests,
                        expire_requests,
                        resume_paused,
                        refill::evict_idle,
                        refill::recall_starved,
                        refill::refill_requests,
                    )
                        .chain()
                        .in_set(DecideSet::Picking),
                    release_requests.in_set(ReapSet::Release),
                ),
            );
    }
}

/// The piece picker of a torrent that downloads: the order of new pieces, and the peers that wait for a free block.
#[derive(Component, Debug)]
pub struct Picker {
    /// Pieces that can be begun.
    pub order: RarityOrder,
    /// Peers that could send more, for which no block is free.
    starved: Vec<Entity>,
}

/// Blocks and memory that became free in this tick for starved peers, and the idle pieces that could be dropped.
#[derive(Resource, Debug, Default)]
pub struct Supply {
    /// Torrents with newly free blocks.
    torrents: Vec<Entity>,
    /// Peers that wait for memory.
    starved: Vec<Entity>,
    /// Bytes that the latest peer in `starved` needs.
    wanted_bytes: u64,
    has_memory: bool,
    /// Bytes of pieces that were dropped before they were complete, by torrent. They are counted at the end of the
    /// tick.
    pub(crate) dropped: Vec<(Entity, u64)>,
    /// Pieces that no peer is sending blocks of. The oldest is dropped first when memory is short.
    idle: VecDeque<Entity>,
}

impl Supply {
    /// Records that blocks of `torrent` have become free.
    pub fn offer(&mut self, torrent: Entity) {
        if self.torrents.last() != Some(&torrent) {
            self.torrents.push(torrent);
        }
    }

    /// Records that memory for pieces has become free.
    pub fn offer_memory(&mut self) {
        self.has_memory = true;
    }

    /// Records bytes of a piece of `torrent` that were received in vain.
    pub(crate) fn note_dropped(&mut self, torrent: Entity, bytes: u64) {
        if bytes > 0 {
            self.dropped.push((torrent, bytes));
        }
    }

    /// Records that a piece may be idle.
    pub fn note_idle(&mut self, entity: Entity, piece: &mut ActivePiece) {
        if piece.is_idle() && !piece.is_idle_listed {
            piece.is_idle_listed = true;
            self.idle.push_back(entity);
        }
    }
}

/// Pieces that peers no longer have (`lt_donthave`, BEP 54), with our requests for them.
#[derive(Resource, Debug, Default)]
pub(crate) struct DroppedRequests(pub(crate) Vec<(Entity, u32)>);

/// Deadline at which a peer's oldest request is checked.
#[derive(Debug)]
struct LateCheck(Entity);

/// Deadline after which a peer that rejected requests is considered again.
#[derive(Debug)]
struct Resume(Entity);

/// Pause after a reject from a peer that does not choke us. The peer is unlikely to accept the same request at once.
const REJECT_PAUSE: Duration = Duration::from_secs(1);

/// Most allowed-fast pieces stored per peer.
const MAX_ALLOWED_FAST: usize = 64;

/// Most suggested pieces stored per peer. Beyond that, the oldest are dropped.
const MAX_SUGGESTED: usize = 64;

fn hear_chokes(
    mut received: MessageReader<ChokeReceived>,
    mut refill: ResMut<RefillQueue>,
    mut supply: ResMut<Supply>,
    mut peers: Query<(&mut PeerState, &mut Requests, &Wire, &PeerOf)>,
    mut pieces: Query<&mut ActivePiece>,
    mut torrents: Query<&mut ActivePieces>,
) {
    for &ChokeReceived { peer, is_choking } in received.read() {
        let Ok((mut state, mut requests, wire, of)) = peers.get_mut(peer) else {
            continue;
        };
        state.peer_choking = is_choking;
        if !is_choking {
            refill.add(peer, &mut requests);
            continue;
        }
        requests.guided_until = None;
        if !wire.session.fast {
            // BEP 3: a choke drops all requests. BEP 6: a choke drops none; each is rejected.
            let dropped = requests.cancel_all();
            if let Ok(mut active) = torrents.get_mut(of.0) {
                release(peer, &dropped, &mut pieces, &mut active, of.0, &mut supply);
            }
        }
    }
}

fn hear_rejects(
    mut received: MessageReader<RejectReceived>,
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut supply: ResMut<Supply>,
    mut resumes: ResMut<Deadlines<Resume>>,
    mut flush: ResMut<FlushQueue>,
    mut peers: Query<(&PeerState, &mut Requests, &mut Outbox, &PeerOf)>,
    mut pieces: Query<&mut ActivePiece>,
    mut torrents: Query<&mut ActivePieces>,
) {
    for &RejectReceived { peer, request } in received.read() {
        let Ok((state, mut requests, mut outbox, of)) = peers.get_mut(peer) else {
            continue;
        };
        let Some(pending) = requests.answer(request) else {
            // BEP 6: the answer to a cancel may be a reject.
            requests.answer_cancelled(request);
            continue;
        };
        if let Ok(mut active) = torrents.get_mut(of.0) {
            if let Ok(mut piece) = pieces.get_mut(pending.piece)
                && piece.exclusive == Some(peer)
                && !piece.is_full()
            {
                let now = clock.now();
                let bytes = give_up_exclusive(now, peer, pending.piece, &mut piece, &mut requests, |request| {
                    flush.send(peer, &mut outbox, &Message::Cancel(request));
                });
                supply.note_dropped(of.0, bytes);
                resumes.set(now + FAILED_PAUSE, Resume(peer));
            }
            release(peer, &[pending], &mut pieces, &mut active, of.0, &mut supply);
        }
        if state.peer_choking {
            requests.allowed_fast.retain(|piece| *piece != request.piece);
        } else if requests.paused_until <= clock.now() {
            requests.paused_until = clock.now() + REJECT_PAUSE;
            requests.depth.shrink(&settings.requests);
            resumes.set(requests.paused_until, Resume(peer));
        }
    }
}

fn hear_allowed_fast(
    mut received: MessageReader<AllowedFastReceived>,
    mut refill: ResMut<RefillQueue>,
    mut peers: Query<&mut Requests>,
) {
    for &AllowedFastReceived { peer, piece } in received.read() {
        let Ok(mut requests) = peers.get_mut(peer) else {
            continue;
        };
        if requests.allowed_fast.len() < MAX_ALLOWED_FAST && !requests.allowed_fast.contains(&piece) {
            requests.allowed_fast.push(piece);
            refill.add(peer, &mut requests);
        }
    }
}

fn hear_suggestions(
    mut received: MessageReader<SuggestReceived>,
    mut refill: ResMut<RefillQueue>,
    mut peers: Query<(&mut Requests, &mut PeerState)>,
) {
    for &SuggestReceived { peer, piece } in received.read() {
        let Ok((mut requests, mut state)) = peers.get_mut(peer) else {
            continue;
        };
        state.suggests = true;
        if !requests.suggested.contains(&piece) {
            if requests.suggested.len() == MAX_SUGGESTED {
                requests.suggested.pop_front();
            }
            requests.suggested.push_back(piece);
            refill.add(peer, &mut requests);
        }
    }
}

fn drop_requests(
    mut dropped: ResMut<DroppedRequests>,
    mut supply: ResMut<Supply>,
    mut flush: ResMut<FlushQueue>,
    mut peers: Query<(&mut Requests, &mut Outbox, &PeerOf)>,
    mut pieces: Query<&mut ActivePiece>,
    mut torrents: Query<&mut ActivePieces>,
) {
    for (peer, index) in dropped.0.drain(..) {
        let Ok((mut requests, mut outbox, of)) = peers.get_mut(peer) else {
            continue;
        };
        let Ok(mut active) = torrents.get_mut(of.0) else {
            continue;
        };
        while let Some(position) = requests
            .pending
            .iter()
            .position(|pending| pending.request.piece == index)
        {
            let request = requests.pending[position].request;
            let pending = requests.cancel(request);
            flush.send(peer, &mut outbox, &Message::Cancel(request));
            release(peer, pending.as_slice(), &mut pieces, &mut active, of.0, &mut supply);
        }
    }
}

/// Marks requests as late that are not answered in time (Fault 33): their blocks are free for other peers, and late
/// answers are still accepted. For a silent peer, this applies to all of its requests.
fn expire_requests(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    settings: Res<Settings>,
    mut checks: ResMut<Deadlines<LateCheck>>,
    mut supply: ResMut<Supply>,
    mut refill: ResMut<RefillQueue>,
    mut flush: ResMut<FlushQueue>,
    mut resumes: ResMut<Deadlines<Resume>>,
    mut peers: Query<(&mut Requests, &mut PeerState, &mut Outbox, &PeerRates, &PeerOf)>,
    mut pieces: Query<&mut ActivePiece>,
    mut torrents: Query<&mut ActivePieces>,
) {
    let now = clock.now();
    while let Some(LateCheck(peer)) = checks.pop_due(now) {
        let Ok((mut requests, mut state, mut outbox, rates, of)) = peers.get_mut(peer) else {
            continue;
        };
        requests.has_deadline = false;
        let patience = patience(&requests, rates.download.at(now), &settings.requests);
        let silence = requests.silence_limit(&settings.requests);
        let is_silent = requests.silent_since().is_some_and(|since| since + silence <= now);
        if is_silent {
            requests.is_silent = true;
            requests.distrusted_until = now + FAILED_PAUSE;
            resumes.set(now + FAILED_PAUSE, Resume(peer));
        }
        let is_due = |pending: &Pending| !pending.is_late && (is_silent || pending.asked + patience <= now);
        let late: Vec<Pending> = requests
            .pending
            .iter()
            .filter(|pending| is_due(pending))
            .copied()
            .collect();
        if !late.is_empty() {
            requests.depth.shrink(&settings.requests);
            refill.add(peer, &mut requests);
        }
        let Ok(mut active) = torrents.get_mut(of.0) else {
            continue;
        };
        for pending in late {
            // Canceled together with another request for the same piece.
            if !requests.pending.contains(&pending) {
                continue;
            }
            let Ok(mut piece) = pieces.get_mut(pending.piece) else {
                requests.answer(pending.request);
                continue;
            };
            if piece.exclusive == Some(peer) {
                let bytes = give_up_exclusive(now, peer, pending.piece, &mut piece, &mut requests, |request| {
                    flush.send(peer, &mut outbox, &Message::Cancel(request));
                });
                supply.note_dropped(of.0, bytes);
                resumes.set(now + FAILED_PAUSE, Resume(peer));
            } else {
                piece.expire(pending.block, peer);
                let same = |other: &&mut Pending| **other == pending;
                if let Some(pending) = requests.pending.iter_mut().find(same) {
                    pending.is_late = true;
                }
            }
            active.open.insert(piece.index);
            supply.note_idle(pending.piece, &mut piece);
            supply.offer(of.0);
        }
        let silent_since = requests.last_block.max(state.choke_changed);
        let owes = requests.pending.front();
        state.snubbed |=
            owes.is_some_and(|oldest| oldest.asked.max(silent_since) + seconds(settings.requests.snub_s) <= now);
        watch(peer, &mut requests, patience, &settings.requests, &mut checks);
    }
    wakeup.at_next(checks.next());
}

/// Timeout of a request: the minimum of the settings, or three times the duration expected at the peer's rate.
fn patience(requests: &Requests, bytes_per_s: u64, settings: &RequestSettings) -> Duration {
    let least = seconds(settings.block_timeout_s);
    let owed: u64 = requests
        .pending
        .iter()
        .map(|pending| u64::from(pending.request.len))
        .sum();
    match (owed * 3).checked_div(bytes_per_s) {
        Some(expected) => least.max(seconds(expected.min(settings.block_timeout_s * 10))),
        None => least,
    }
}

/// Sets a deadline for the oldest request that is not late, or for the peer's silence, unless a deadline is set.
fn watch(
    peer: Entity,
    requests: &mut Requests,
    patience: Duration,
    settings: &RequestSettings,
    checks: &mut Deadlines<LateCheck>,
) {
    if requests.has_deadline {
        return;
    }
    let oldest = requests.pending.iter().find(|pending| !pending.is_late);
    if let (Some(oldest), Some(since)) = (oldest, requests.silent_since()) {
        let at = (oldest.asked + patience).min(since + requests.silence_limit(settings));
        checks.set(at, LateCheck(peer));
        requests.has_deadline = true;
    }
}

/// Cancels all requests for a piece that is exclusive to `peer`; another peer begins it from the start. Returns the
/// number of bytes received so far.
fn give_up_exclusive(
    now: Timestamp,
    peer: Entity,
    entity: Entity,
    piece: &mut ActivePiece,
    requests: &mut Requests,
    mut cancel: impl FnMut(BlockRequest),
) -> u64 {
    debug_assert_eq!(piece.exclusive, Some(peer));
    while let Some(position) = requests.pending.iter().position(|other| other.piece == entity) {
        let request = requests.pending[position].request;
        requests.cancel(request);
        cancel(request);
    }
    piece.give_up_exclusive(now)
}

fn resume_paused(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    mut resumes: ResMut<Deadlines<Resume>>,
    mut refill: ResMut<RefillQueue>,
    mut peers: Query<&mut Requests>,
) {
    while let Some(Resume(peer)) = resumes.pop_due(clock.now()) {
        if let Ok(mut requests) = peers.get_mut(peer) {
            requests.look_at = None;
            refill.add(peer, &mut requests);
        }
    }
    wakeup.at_next(resumes.next());
}

/// Makes blocks that `peer` will not send free for other peers.
pub(crate) fn release(
    peer: Entity,
    dropped: &[Pending],
    pieces: &mut Query<&mut ActivePiece>,
    active: &mut ActivePieces,
    torrent: Entity,
    supply: &mut Supply,
) {
    for pending in dropped {
        let Ok(mut piece) = pieces.get_mut(pending.piece) else {
            continue;
        };
        if piece.exclusive == Some(peer) && !piece.is_full() {
            supply.note_dropped(torrent, piece.clear());
        } else {
            piece.release(pending.block, peer);
        }
        if piece.free_count > 0 {
            active.open.insert(piece.index);
            supply.offer(torrent);
        }
        supply.note_idle(pending.piece, &mut piece);
    }
}

/// Releases the requests of disconnected peers and removes their pieces from the availability counts.
fn release_requests(
    mut gone: MessageReader<PeerDisconnected>,
    mut supply: ResMut<Supply>,
    mut random: ResMut<Random>,
    mut peers: Query<(&mut Requests, &PeerPieces)>,
    mut pieces: Query<&mut ActivePiece>,
    mut torrents: Query<(&mut ActivePieces, Option<&mut Picker>)>,
) {
    for PeerDisconnected { torrent, peer, .. } in gone.read() {
        let (Some(torrent), Ok((mut requests, has))) = (*torrent, peers.get_mut(*peer)) else {
            continue;
        };
        let Ok((mut active, picker)) = torrents.get_mut(torrent) else {
            continue;
        };
        let dropped = requests.cancel_all();
        release(*peer, &dropped, &mut pieces, &mut active, torrent, &mut supply);
        if let Some(current) = requests.current
            && let Ok(mut piece) = pieces.get_mut(current)
            && piece.exclusive == Some(*peer)
            && !piece.is_full()
        {
            supply.note_dropped(torrent, piece.clear());
            active.open.insert(piece.index);
            supply.note_idle(current, &mut piece);
        }
        if let Some(mut picker) = picker {
            picker.order.remove_peer(has, &mut random);
            picker.starved.retain(|starved| starved != peer);
        }
        supply.starved.retain(|starved| starved != peer);
    }
}
