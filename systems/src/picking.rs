//! The piece picker: which blocks are requested from which peer.
//!
//! Pieces that readers need come first, in the order of their deadlines. Otherwise a peer continues with its current
//! piece. After that the order is: rare pieces that it suggests, abandoned pieces,
//! the rarest new piece, pieces that other peers are downloading, and in the endgame blocks that are requested from
//! other peers. Only peers in the refill queue are visited; a peer for which nothing is found waits until blocks become
//! free.

pub mod choice;
pub(crate) mod flight;
mod pace;
pub mod rarity;
mod refill;
#[cfg(test)]
mod tests;
mod timers;

use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{
    AllowedFastReceived, ChokeReceived, LifecycleChanged, PeerDisconnected, RejectReceived, SuggestReceived,
    WantedChanged,
};
use ecs_torrent_components::peer::{
    PeerPieces, PeerState, Pending, RefillQueue, RequestSink, Requests, SourceSink, WaitingSources, Wire,
};
use ecs_torrent_components::piece::{ActivePiece, PieceMemory};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::torrent::{ActivePieces, PeerOf, StopPhase};
use ecs_torrent_components::work_list::WorkList;
use ecs_torrent_engine::schedule::Tick;

pub(crate) use self::flight::Beginning;
use self::pace::Pace;
use self::rarity::RarityOrder;
use self::timers::{LateCheck, PeerTimers, Resume, expire_requests, resume_paused, withdraw_overtaken};
use crate::conditions::{has_due, has_messages};
use crate::stop_participants::{AddStopParticipant, has_stops};
use crate::{DecideSet, ReapSet};

/// Chooses pieces and requests blocks.
pub struct PickingPlugin;

impl Plugin for PickingPlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<PeerState, Requests>();
        app.init_resource::<RefillQueue>()
            .init_resource::<WaitingSources>()
            .init_resource::<PieceMemory>()
            .init_resource::<Supply>()
            .init_resource::<DroppedRequests>()
            .add_stop_participant::<flight::PiecesInFlight>(StopPhase::HaltDownloads, None)
            .init_resource::<Deadlines<LateCheck>>()
            .init_resource::<Deadlines<Resume>>()
            .add_systems(
                Tick,
                (
                    (
                        flight::put_back_dropped.run_if(|supply: Res<Supply>| !supply.put_back.is_empty()),
                        (flight::follow_lifecycle, flight::recall_blocked)
                            .chain()
                            .run_if(has_messages::<LifecycleChanged>),
                        flight::follow_wanted.run_if(has_messages::<WantedChanged>),
                        flight::halt_stopped.run_if(has_stops),
                        (
                            handle_chokes,
                            handle_rejects,
                            handle_allowed_fast,
                            handle_suggestions,
                            drop_requests,
                        )
                            .chain()
                            .run_if(has_changes),
                        expire_requests.run_if(has_due::<LateCheck>),
                        withdraw_overtaken.run_if(|supply: Res<Supply>| !supply.overtaken.is_empty()),
                        resume_paused.run_if(has_due::<Resume>),
                        refill::evict_idle.run_if(|supply: Res<Supply>| !supply.starved.is_empty()),
                        refill::recall_starved,
                        refill::refill_requests.run_if(|refill: Res<RefillQueue>| !refill.is_empty()),
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
    starved: WorkList<Starved>,
    /// The speed of the fastest peer, while readers need pieces.
    pace: Pace,
}

impl Picker {
    /// Creates a picker for which no peer waits.
    fn new(order: RarityOrder) -> Self {
        Self {
            order,
            starved: WorkList::default(),
            pace: Pace::default(),
        }
    }
}

/// Marker for the lists of peers that wait for a block or for memory. A peer is in one of these lists at a time.
#[derive(Debug)]
enum Starved {}

/// Blocks and memory that became free in this tick for starved peers, and the idle pieces that could be dropped.
#[derive(Resource, Debug, Default)]
pub struct Supply {
    /// Torrents with newly free blocks.
    torrents: Vec<Entity>,
    /// Peers that wait for memory.
    starved: WorkList<Starved>,
    /// Bytes that the latest peer in `starved` needs.
    wanted_bytes: u64,
    has_memory: bool,
    /// Bytes of pieces that were dropped before they were complete, by torrent. They are counted at the end of the
    /// tick.
    pub(crate) dropped: Vec<(Entity, u64)>,
    /// Pieces that are taken away from the peer that sends them exclusively, because others are much faster.
    overtaken: Vec<Entity>,
    /// Pieces in flight that other features dropped and that may be begun again.
    put_back: Vec<Entity>,
    /// Pieces that no peer is sending blocks of. The oldest is dropped first when memory is short.
    idle: WorkList<ActivePiece>,
}

impl Supply {
    /// Records that blocks of `torrent` have become free.
    pub fn offer(&mut self, torrent: Entity) {
        if self.torrents.last() != Some(&torrent) {
            self.torrents.push(torrent);
        }
    }

    /// Records that memory for pieces has become free.
    pub(crate) fn offer_memory(&mut self) {
        self.has_memory = true;
    }

    /// Drops a piece in flight; the picker may begin it again later.
    pub fn put_back(&mut self, piece: Entity) {
        self.put_back.push(piece);
    }

    /// Records received bytes of a piece of `torrent` that were wasted.
    pub(crate) fn record_dropped(&mut self, torrent: Entity, bytes: u64) {
        if bytes > 0 {
            self.dropped.push((torrent, bytes));
        }
    }

    /// Records that a piece may be idle.
    pub(crate) fn mark_idle(&mut self, entity: Entity, piece: &mut ActivePiece) {
        if piece.is_idle() {
            self.idle.add(entity, &mut piece.idle);
        }
    }

    /// Makes blocks that `peer` will not send free for other peers.
    fn release(
        &mut self,
        peer: Entity,
        dropped: &[Pending],
        pieces: &mut Query<&mut ActivePiece>,
        active: &mut ActivePieces,
        torrent: Entity,
    ) {
        for pending in dropped {
            let Ok(mut piece) = pieces.get_mut(pending.piece) else {
                continue;
            };
            if piece.exclusive == Some(peer) && !piece.is_full() {
                self.record_dropped(torrent, piece.clear());
            } else {
                piece.release(pending.block, peer);
            }
            if piece.free_count > 0 {
                active.open.insert(piece.index);
                self.offer(torrent);
            }
            self.mark_idle(pending.piece, &mut piece);
        }
    }
}

/// Pieces that peers no longer have (`lt_donthave`, BEP 54), with our requests for them.
#[derive(Resource, Debug, Default)]
pub(crate) struct DroppedRequests(pub(crate) Vec<(Entity, u32)>);

/// Pause after a reject from a peer that does not choke us. The peer is unlikely to accept the same request at once.
const REJECT_PAUSE: Duration = Duration::from_secs(1);

/// Maximum number of allowed-fast pieces stored per peer.
const MAX_ALLOWED_FAST: usize = 64;

/// Maximum number of suggested pieces stored per peer. Beyond that, the oldest are dropped.
const MAX_SUGGESTED: usize = 64;

/// Returns whether peers have changed what they send, or have lost pieces.
fn has_changes(
    chokes: Res<Messages<ChokeReceived>>,
    rejects: Res<Messages<RejectReceived>>,
    allowed_fast: Res<Messages<AllowedFastReceived>>,
    suggestions: Res<Messages<SuggestReceived>>,
    dropped: Res<DroppedRequests>,
) -> bool {
    let has_chokes = !chokes.is_empty() || !rejects.is_empty();
    has_chokes || !allowed_fast.is_empty() || !suggestions.is_empty() || !dropped.0.is_empty()
}

fn handle_chokes(
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
        requests.stop_following();
        if !wire.session.fast {
            // BEP 3: a choke drops all requests. BEP 6: a choke drops none; each is rejected.
            let dropped = requests.cancel_all();
            if let Ok(mut active) = torrents.get_mut(of.0) {
                supply.release(peer, &dropped, &mut pieces, &mut active, of.0);
            }
        }
    }
}

fn handle_rejects(
    mut received: MessageReader<RejectReceived>,
    mut timers: PeerTimers,
    mut supply: ResMut<Supply>,
    mut sink: RequestSink,
    mut peers: Query<(&PeerState, &mut Requests, SourceSink, &PeerOf)>,
    mut pieces: Query<&mut ActivePiece>,
    mut torrents: Query<&mut ActivePieces>,
) {
    let now = timers.clock.now();
    for &RejectReceived { peer, request } in received.read() {
        let Ok((state, mut requests, mut source, of)) = peers.get_mut(peer) else {
            continue;
        };
        let Some(pending) = requests.answer(request) else {
            // BEP 6: the answer to a cancel may be a reject.
            requests.answer_canceled(request);
            continue;
        };
        if let Ok(mut active) = torrents.get_mut(of.0) {
            if let Ok(mut piece) = pieces.get_mut(pending.piece)
                && piece.exclusive == Some(peer)
                && !piece.is_full()
            {
                let lost = (pending.piece, &mut *piece);
                timers.take_away((peer, of.0), lost, &mut requests, &mut supply, |request| {
                    sink.cancel(peer, &mut source, request);
                });
            }
            supply.release(peer, &[pending], &mut pieces, &mut active, of.0);
        }
        if state.peer_choking {
            requests.allowed_fast.retain(|piece| *piece != request.piece);
        } else if requests.paused_until <= now {
            requests.paused_until = now + REJECT_PAUSE;
            requests.depth.shrink(&timers.settings.requests);
            timers.resume_at(requests.paused_until, peer, &mut requests);
        }
    }
}

fn handle_allowed_fast(
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

fn handle_suggestions(
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
    mut sink: RequestSink,
    mut peers: Query<(&mut Requests, SourceSink, &PeerOf)>,
    mut pieces: Query<&mut ActivePiece>,
    mut torrents: Query<&mut ActivePieces>,
) {
    for (peer, index) in dropped.0.drain(..) {
        let Ok((mut requests, mut source, of)) = peers.get_mut(peer) else {
            continue;
        };
        let Ok(mut active) = torrents.get_mut(of.0) else {
            continue;
        };
        let is_dropped = |pending: &&Pending| pending.request.piece == index;
        while let Some(request) = requests
            .pending()
            .iter()
            .find(is_dropped)
            .map(|pending| pending.request)
        {
            let pending = requests.cancel(request);
            sink.cancel(peer, &mut source, request);
            supply.release(peer, pending.as_slice(), &mut pieces, &mut active, of.0);
        }
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
        supply.release(*peer, &dropped, &mut pieces, &mut active, torrent);
        if let Some(current) = requests.current
            && let Ok(mut piece) = pieces.get_mut(current)
            && piece.exclusive == Some(*peer)
            && !piece.is_full()
        {
            supply.record_dropped(torrent, piece.clear());
            active.open.insert(piece.index);
            supply.mark_idle(current, &mut piece);
        }
        if let Some(mut picker) = picker {
            picker.order.remove_peer(has, &mut random);
            picker.starved.retain(|starved| starved != peer);
        }
        supply.starved.retain(|starved| starved != peer);
    }
}
