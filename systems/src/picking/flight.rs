//! Pieces in flight: how a torrent's downloads begin and end with its state.

use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::lifecycle::Readiness;
use ecs_torrent_components::messages::{LifecycleChanged, WantedChanged};
use ecs_torrent_components::peer::{PeerPieces, RefillQueue, RequestSink, Requests, SourceSink};
use ecs_torrent_components::piece::{ActivePiece, PieceMemory, PiecePhase};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::RequestSettings;
use ecs_torrent_components::torrent::{ActivePieces, Have, Lifecycle, Partials, StopPhase, Stopping, TorrentPeers};
use ecs_torrent_components::wanted::{FileChoice, WantedPieces};
use ecs_torrent_protocol::geometry::Geometry;

use super::rarity::{RarityOrder, priority_in};
use super::{Picker, Supply};
use crate::stop_participants::StopDuty;

/// Gives a torrent that begins to download its picker, and drops the picker and the pieces of one that no longer does.
pub(super) fn follow_lifecycle(
    mut changed: MessageReader<LifecycleChanged>,
    mut commands: Commands,
    mut random: ResMut<Random>,
    mut flight: Flight,
    mut torrents: Query<TorrentInFlight>,
    mut flights: Query<&mut ActivePieces>,
    peers: Query<&PeerPieces>,
    mut requests: Query<&mut Requests>,
) {
    for LifecycleChanged { torrent, to, .. } in changed.read() {
        let Ok((readiness, have, partials, (choice, wanted), connected, picker)) = torrents.get_mut(*torrent) else {
            continue;
        };
        let is_open = *readiness == Readiness::Ready;
        match to {
            Lifecycle::Downloading if picker.is_none() => {
                // A torrent that had everything it wanted may still have pieces in flight that are being written.
                let in_flight = flights.get(*torrent).ok();
                let is_missing =
                    |piece| !have.contains(piece) && !in_flight.is_some_and(|active| active.all.contains_key(&piece));
                let mut order = RarityOrder::new(have.len(), is_missing, &mut random);
                if let Some(wanted) = wanted {
                    set_priorities(&mut order, 0..have.len(), wanted, is_missing, &mut random);
                }
                order.set_sequential(choice.is_some_and(|choice| choice.order.sequential));
                let connected = connected.into_iter().flat_map(RelationshipTarget::iter);
                for pieces in peers.iter_many(connected).flatten() {
                    order.add_peer(pieces, &mut random);
                }
                let is_new = in_flight.is_none();
                let mut torrent = commands.entity(*torrent);
                // Plugins read the pieces in flight when the picker is added.
                if is_new {
                    torrent.insert(ActivePieces::default());
                }
                torrent.insert(Picker::new(order));
                continue;
            }
            Lifecycle::Downloading => continue,
            // A torrent on a full disk keeps its pieces.
            Lifecycle::Blocked { .. } if is_open => continue,
            _ => {
                for peer in picker
                    .into_iter()
                    .flat_map(|picker| picker.into_inner().starved.drain())
                {
                    if let Ok(mut requests) = requests.get_mut(peer) {
                        requests.starved.clear();
                    }
                }
                commands.entity(*torrent).remove::<Picker>();
            }
        }
        let Ok(mut active) = flights.get_mut(*torrent) else {
            continue;
        };
        match to {
            Lifecycle::Failed { .. } | Lifecycle::Blocked { .. } | Lifecycle::Queued => {
                flight.count_lost(*torrent, &active, partials, |phase| phase != PiecePhase::Writing);
                flight.drop_pieces(&mut active, |_| true);
            }
            Lifecycle::Stopping { phase } if *phase > StopPhase::HaltDownloads => {
                flight.count_lost(*torrent, &active, partials, |_| true);
                flight.drop_pieces(&mut active, |_| true);
            }
            _ => {}
        }
    }
}

/// The parts of a torrent that decide on its pieces in flight.
type TorrentInFlight = (
    &'static Readiness,
    &'static Have,
    &'static Partials,
    (Option<&'static FileChoice>, Option<&'static WantedPieces>),
    Option<&'static TorrentPeers>,
    Option<&'static mut Picker>,
);

/// Gives pieces the priorities of their files, unless they have them already.
fn set_priorities(
    order: &mut RarityOrder,
    pieces: impl IntoIterator<Item = u32>,
    wanted: &WantedPieces,
    is_missing: impl Fn(u32) -> bool,
    random: &mut Random,
) {
    for piece in pieces {
        let priority = priority_in(wanted, piece);
        if order.priority(piece) != priority {
            order.set_priority(piece, priority, is_missing(piece), random);
        }
    }
}

/// Applies new priorities to the picker, and drops the pieces in flight that are no longer wanted. Pieces that are
/// being hashed or written are finished.
pub(super) fn follow_wanted(
    mut changed: MessageReader<WantedChanged>,
    mut random: ResMut<Random>,
    mut sink: RequestSink,
    mut flight: Flight,
    mut torrents: Query<(&Have, &FileChoice, &WantedPieces, &mut Picker, &mut ActivePieces)>,
    mut peers: Query<(&mut Requests, SourceSink)>,
) {
    for WantedChanged { torrent, pieces } in changed.read() {
        let Ok((have, choice, wanted, mut picker, mut active)) = torrents.get_mut(*torrent) else {
            continue;
        };
        let in_flight = |piece: &u32| active.all.get(piece).copied();
        let unwanted = pieces.iter().filter(|piece| !wanted.is_wanted(**piece));
        let dropped: Vec<Entity> = unwanted.filter_map(in_flight).collect();
        for entity in dropped {
            if flight.cancel(entity, &mut peers, &mut sink) {
                flight.put_back(entity, &mut active, None, Some(&mut picker), &mut random);
            }
        }
        let is_missing = |piece| !have.contains(piece) && !active.all.contains_key(&piece);
        let changed = pieces.iter().copied();
        set_priorities(&mut picker.order, changed, wanted, is_missing, &mut random);
        picker.order.set_sequential(choice.order.sequential);
        flight.supply.offer(*torrent);
    }
}

/// Cancels the requests of a torrent that is blocked while its files are open: its unfinished pieces become idle, and
/// other torrents that need their memory get it. The torrent requests again when it is no longer blocked.
pub(super) fn recall_blocked(
    mut changed: MessageReader<LifecycleChanged>,
    mut sink: RequestSink,
    mut supply: ResMut<Supply>,
    mut refill: ResMut<RefillQueue>,
    mut torrents: Query<(&Readiness, &TorrentPeers, &mut ActivePieces)>,
    mut peers: Query<(&mut Requests, SourceSink)>,
    mut pieces: Query<&mut ActivePiece>,
) {
    for LifecycleChanged { torrent, from, to } in changed.read() {
        let was_blocked = matches!(from, Lifecycle::Blocked { .. });
        let is_blocked = matches!(to, Lifecycle::Blocked { .. });
        if was_blocked == is_blocked {
            continue;
        }
        let Ok((Readiness::Ready, connected, mut active)) = torrents.get_mut(*torrent) else {
            continue;
        };
        for peer in connected.iter() {
            let Ok((mut requests, mut source)) = peers.get_mut(peer) else {
                continue;
            };
            if was_blocked {
                refill.add(peer, &mut requests);
                continue;
            }
            let dropped = requests.cancel_all();
            for pending in &dropped {
                sink.cancel(peer, &mut source, pending.request);
            }
            supply.release(peer, &dropped, &mut pieces, &mut active, *torrent);
        }
    }
}

/// Drops the pieces that other features gave up.
pub(crate) fn put_back_dropped(
    mut flight: Flight,
    mut random: ResMut<Random>,
    mut torrents: Query<(&mut ActivePieces, &Partials, Has<Stopping>, Option<&mut Picker>)>,
) {
    for piece in std::mem::take(&mut flight.supply.put_back) {
        if let Some(torrent) = flight.torrent_of(piece)
            && let Ok((mut active, partials, is_stopping, mut picker)) = torrents.get_mut(torrent)
        {
            // The session of a torrent that stops lists the blocks on the disk. A running torrent begins all again.
            let saved = is_stopping.then_some(partials);
            flight.put_back(piece, &mut active, saved, picker.as_deref_mut(), &mut random);
        }
    }
}

/// The stop participant that lets pieces in flight finish.
pub(crate) struct PiecesInFlight;

/// Lets pieces of stopping torrents that are hashed or written finish, and drops the others.
pub(super) fn halt_stopped(
    mut duty: StopDuty<PiecesInFlight>,
    mut halting: Local<Vec<Entity>>,
    mut flight: Flight,
    mut flights: Query<&mut ActivePieces>,
) {
    halting.extend(duty.take().into_iter().map(|turn| turn.torrent));
    duty.finish_done(&mut halting, |torrent| {
        flights.get_mut(torrent).map_or(true, |mut active| {
            flight.drop_pieces(&mut active, |piece| match piece.phase {
                PiecePhase::Filling => !piece.is_full(),
                PiecePhase::Restoring => true,
                PiecePhase::Hashing | PiecePhase::Writing => false,
            })
        })
    });
}

/// A torrent's part in the beginning of a piece.
pub(crate) struct Beginning<'a> {
    pub(crate) torrent: Entity,
    pub(crate) geometry: &'a Geometry,
    pub(crate) picker: &'a mut Picker,
    pub(crate) active: &'a mut ActivePieces,
}

impl Beginning<'_> {
    /// Begins a piece whose blocks are read back from the disk; the caller inserts it. Returns `None` if there is no
    /// memory for it.
    pub(crate) fn restore(
        self,
        index: u32,
        commands: &mut Commands,
        memory: &mut PieceMemory,
        settings: &RequestSettings,
    ) -> Option<(Entity, ActivePiece)> {
        let mut piece = ActivePiece::new(self.torrent, index, self.geometry);
        if !memory.reserve(piece.span.len, settings) {
            return None;
        }
        piece.phase = PiecePhase::Restoring;
        let entity = commands.spawn_empty().id();
        self.picker.order.remove(index);
        self.active.all.insert(index, entity);
        Some((entity, piece))
    }
}

/// Drops pieces in flight.
#[derive(SystemParam)]
pub(crate) struct Flight<'w, 's> {
    commands: Commands<'w, 's>,
    memory: ResMut<'w, PieceMemory>,
    supply: ResMut<'w, Supply>,
    pieces: Query<'w, 's, &'static ActivePiece>,
}

impl Flight<'_, '_> {
    /// Returns the torrent of a piece.
    fn torrent_of(&self, piece: Entity) -> Option<Entity> {
        self.pieces.get(piece).ok().map(|piece| piece.torrent)
    }

    /// Cancels all requests for a piece whose blocks are still arriving. Returns false if they have arrived.
    fn cancel(&self, entity: Entity, peers: &mut Query<(&mut Requests, SourceSink)>, sink: &mut RequestSink) -> bool {
        let Ok(piece) = self.pieces.get(entity) else {
            return false;
        };
        if piece.phase != PiecePhase::Filling || piece.is_full() {
            return false;
        }
        for (block, slot) in (0..).zip(&piece.blocks) {
            for peer in slot.requested_from.iter().chain(&slot.late) {
                let Ok((mut requests, mut source)) = peers.get_mut(*peer) else {
                    continue;
                };
                if requests.cancel(piece.request(block)).is_some() {
                    sink.cancel(*peer, &mut source, piece.request(block));
                }
            }
        }
        true
    }

    /// Drops a piece; the picker may begin it again later. Counts the bytes of its blocks, apart from those that the
    /// `saved` blocks on the disk contain.
    fn put_back(
        &mut self,
        entity: Entity,
        active: &mut ActivePieces,
        saved: Option<&Partials>,
        picker: Option<&mut Picker>,
        random: &mut Random,
    ) {
        let Ok(piece) = self.pieces.get(entity) else { return };
        active.all.remove(&piece.index);
        active.open.remove(&piece.index);
        if let Some(picker) = picker {
            picker.order.insert(piece.index, random);
        }
        self.memory.release(piece);
        self.supply.offer_memory();
        let saved = saved.and_then(|partials| partials.0.get(&piece.index));
        self.supply
            .record_dropped(piece.torrent, piece.received_bytes_without(saved));
        self.commands.entity(entity).despawn();
    }

    /// Counts the bytes of pieces that are about to be dropped in a phase in which they are lost, apart from those in
    /// blocks on the disk. A torrent that is opened again may find the pieces that were being written.
    fn count_lost(
        &mut self,
        torrent: Entity,
        active: &ActivePieces,
        partials: &Partials,
        is_lost: impl Fn(PiecePhase) -> bool,
    ) {
        for piece in self.pieces.iter_many(active.all.values()).flatten() {
            if is_lost(piece.phase) {
                let bytes = piece.received_bytes_without(partials.0.get(&piece.index));
                self.supply.record_dropped(torrent, bytes);
            }
        }
    }

    /// Drops the pieces for which `is_dropped` holds; returns true if none is left.
    fn drop_pieces(&mut self, active: &mut ActivePieces, is_dropped: impl Fn(&ActivePiece) -> bool) -> bool {
        active.all.retain(|_, entity| {
            let Ok(piece) = self.pieces.get(*entity) else {
                return false;
            };
            let stays = !is_dropped(piece);
            if !stays {
                self.memory.release(piece);
                self.supply.offer_memory();
                self.commands.entity(*entity).despawn();
            }
            stays
        });
        active.open.clear();
        active.all.is_empty()
    }
}
