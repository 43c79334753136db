//! Fills the request pipelines of peers.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use bytes::Bytes;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::peer::{
    FlushQueue, Outbox, PeerExtensions, PeerPieces, PeerRates, PeerState, Pending, RefillQueue, Requests,
};
use ecs_torrent_components::piece::{ActivePiece, PieceMemory, PiecePhase};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{ActivePieces, Content, Layout, Lifecycle, PeerOf};
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::geometry::{BLOCK_SIZE, Geometry};
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::Message;
use smallvec::SmallVec;

use super::{LateCheck, Picker, Resume, Supply, patience, watch};
use crate::verification::FullPieces;

/// Most late requests that a peer may have outstanding before it gets no more requests.
const MAX_LATE: usize = 32;

/// Pieces that would take a peer longer than this, in seconds, are shared with other peers.
const ALONE_SECONDS: u64 = 20;

/// Most requests outstanding to a peer that is also asked for blocks requested from other peers.
const ENDGAME_DEPTH: usize = 64;

/// Least pipeline depth for a peer that suggests pieces: it waits for us to request exactly those.
const GUIDED_DEPTH: u32 = 16;

/// The content of padding (BEP 47).
static ZEROS: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];

/// Drops idle pieces when peers wait for memory. Late requests for their blocks are canceled: the piece may be begun
/// again, and no peer is asked twice for a block that it owes.
pub(super) fn evict_idle(
    mut commands: Commands,
    mut supply: ResMut<Supply>,
    mut memory: ResMut<PieceMemory>,
    mut random: ResMut<Random>,
    mut flush: ResMut<FlushQueue>,
    settings: Res<Settings>,
    mut pieces: Query<&mut ActivePiece>,
    mut torrents: Query<(&mut Picker, &mut ActivePieces)>,
    mut peers: Query<(&mut Requests, &mut Outbox)>,
) {
    let limit = settings.requests.piece_memory_bytes;
    while !supply.starved.is_empty() && memory.used_bytes() + supply.wanted_bytes > limit {
        let Some(entity) = supply.idle.pop_front() else { break };
        let Ok(mut piece) = pieces.get_mut(entity) else {
            continue;
        };
        piece.is_idle_listed = false;
        let Ok((mut picker, mut active)) = torrents.get_mut(piece.torrent) else {
            continue;
        };
        if !piece.is_idle() {
            continue;
        }
        tracing::debug!(piece = piece.index, "given up: memory is short and nobody sends it");
        let owed = (0..)
            .zip(&piece.blocks)
            .flat_map(|(block, slot)| slot.late.iter().map(move |peer| (block, *peer)));
        for (block, peer) in owed {
            let request = piece.request(block);
            if let Ok((mut requests, mut outbox)) = peers.get_mut(peer)
                && requests.cancel(request).is_some()
            {
                flush.send(peer, &mut outbox, &Message::Cancel(request));
            }
        }
        active.all.remove(&piece.index);
        active.open.remove(&piece.index);
        picker.order.insert(piece.index, &mut random);
        memory.release(piece.span.len);
        supply.note_dropped(piece.torrent, piece.received_bytes());
        commands.entity(entity).despawn();
        supply.has_memory = true;
    }
}

/// Queues the starved peers for which blocks or memory have become free.
pub(super) fn recall_starved(
    mut supply: ResMut<Supply>,
    mut refill: ResMut<RefillQueue>,
    mut torrents: Query<&mut Picker>,
    mut peers: Query<&mut Requests>,
) {
    let supply = &mut *supply;
    let mut recall = |starved: &mut Vec<Entity>| {
        for peer in starved.drain(..) {
            if let Ok(mut requests) = peers.get_mut(peer) {
                requests.is_starved = false;
                refill.add(peer, &mut requests);
            }
        }
    };
    for torrent in supply.torrents.drain(..) {
        if let Ok(mut picker) = torrents.get_mut(torrent) {
            recall(&mut picker.starved);
        }
    }
    if std::mem::take(&mut supply.has_memory) {
        recall(&mut supply.starved);
    }
}

pub(super) fn refill_requests(
    mut refill: ResMut<RefillQueue>,
    mut flush: ResMut<FlushQueue>,
    mut checks: ResMut<Deadlines<LateCheck>>,
    mut resumes: ResMut<Deadlines<Resume>>,
    mut bench: Bench,
    mut torrents: Query<(&Lifecycle, &Layout, &Content, &mut Picker, &mut ActivePieces)>,
    mut peers: Query<(
        &PeerOf,
        &PeerState,
        &PeerPieces,
        &PeerRates,
        &PeerExtensions,
        &mut Requests,
        &mut Outbox,
    )>,
) {
    let now = bench.clock.now();
    for entity in refill.take() {
        let Ok((of, state, has, rates, extensions, mut requests, mut outbox)) = peers.get_mut(entity) else {
            continue;
        };
        requests.unlist();
        let Ok((Lifecycle::Downloading, Layout(geometry), content, mut picker, mut active)) = torrents.get_mut(of.0)
        else {
            continue;
        };
        let late_count = requests.late_count();
        let is_reachable = !state.peer_choking || !requests.allowed_fast.is_empty();
        if !state.am_interested || !is_reachable || requests.paused_until > now || late_count >= MAX_LATE {
            continue;
        }
        let rate = rates.download.at(now);
        let most = extensions.handshake.request_queue.unwrap_or(u32::MAX).max(1);
        let depth = match state.snubbed || requests.is_silent {
            // One request shows whether the peer sends again.
            true => 1,
            false => {
                let least = if requests.is_guided(now) { GUIDED_DEPTH } else { 1 };
                requests.depth.target(&bench.settings.requests).max(least).min(most)
            }
        };
        let mut choice = Choice {
            torrent: of.0,
            geometry,
            files: &content.0.info.files,
            picker: &mut picker,
            active: &mut active,
            peer: entity,
            has,
            is_choked: state.peer_choking,
            is_trusted: late_count == 0 && requests.distrusted_until <= now,
            now,
            prefers_sharing: rate * ALONE_SECONDS < u64::from(geometry.piece_length()),
            again: None,
        };
        while requests.pending.len() - late_count < depth as usize {
            let Some(pending) = bench.choose(&mut choice, &mut requests) else {
                break;
            };
            requests.pending.push_back(pending);
            flush.send(entity, &mut outbox, &Message::Request(pending.request));
        }
        let guided_until = requests
            .guided_until
            .filter(|_| requests.pending.len() == requests.late_count());
        let again = guided_until.or(choice.again);
        if let Some(again) = again
            && requests.look_at.is_none_or(|at| again < at)
        {
            requests.look_at = Some(again);
            resumes.set(again, Resume(entity));
            bench.wakeup.at_next(resumes.next());
        }
        let patience = patience(&requests, rate, &bench.settings.requests);
        watch(entity, &mut requests, patience, &bench.settings.requests, &mut checks);
    }
    bench.spawn_fresh();
}

/// The context in which a block is chosen for one peer of one torrent.
struct Choice<'a> {
    torrent: Entity,
    geometry: &'a Geometry,
    files: &'a FileTable,
    picker: &'a mut Picker,
    active: &'a mut ActivePieces,
    peer: Entity,
    has: &'a PeerPieces,
    is_choked: bool,
    /// The peer has no late requests and has not recently been silent.
    is_trusted: bool,
    prefers_sharing: bool,
    now: Timestamp,
    /// When a block may become available for the peer, if there is none now.
    again: Option<Timestamp>,
}

/// Which open pieces are considered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    /// Pieces that no peer is downloading.
    Abandoned,
    /// All open pieces.
    Any,
}

/// The parameters with which pieces are begun and continued.
#[derive(SystemParam)]
pub(super) struct Bench<'w, 's> {
    commands: Commands<'w, 's>,
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    settings: Res<'w, Settings>,
    memory: ResMut<'w, PieceMemory>,
    supply: ResMut<'w, Supply>,
    random: ResMut<'w, Random>,
    full: ResMut<'w, FullPieces>,
    pieces: Query<'w, 's, &'static mut ActivePiece>,
    /// Pieces begun in this run, which are not in the world yet.
    fresh: Local<'s, EntityHashMap<ActivePiece>>,
}

impl Bench<'_, '_> {
    /// Chooses the next block and marks it as requested from the peer.
    fn choose(&mut self, choice: &mut Choice<'_>, requests: &mut Requests) -> Option<Pending> {
        let (entity, block) = match choice.is_choked {
            true => self.allowed_fast(choice, requests),
            false => self.by_preference(choice, requests),
        }?;
        let now = self.clock.now();
        let piece = self.piece(entity)?;
        piece.ask(block, choice.peer, now);
        if piece.is_suspect {
            piece.exclusive = Some(choice.peer);
        }
        if piece.free_count == 0 {
            choice.active.open.remove(&piece.index);
        }
        Some(Pending {
            piece: entity,
            block,
            request: choice.geometry.block(piece.index, block),
            asked: now,
            is_late: false,
        })
    }

    fn by_preference(&mut self, choice: &mut Choice<'_>, requests: &mut Requests) -> Option<(Entity, u32)> {
        if let Some(entity) = requests.current
            && let Some(block) = self.continue_piece(entity, choice, requests)
        {
            return Some((entity, block));
        }
        let first = if choice.prefers_sharing {
            Open::Any
        } else {
            Open::Abandoned
        };
        let found = self.suggested_piece(choice, requests);
        if found.is_some() {
            requests.note_guide(choice.now);
        } else if requests.is_guided(choice.now) {
            return None;
        }
        let found = found
            .or_else(|| self.open_piece(first, choice, requests))
            .or_else(|| self.new_piece(choice, requests))
            .or_else(|| self.open_piece(Open::Any, choice, requests));
        if let Some((entity, _)) = found {
            requests.current = Some(entity);
            return found;
        }
        let found = self.endgame(choice, requests);
        if found.is_none() && !requests.is_starved {
            requests.is_starved = true;
            choice.picker.starved.push(choice.peer);
        }
        found
    }

    /// Returns the next free block of a piece, if this peer may send it.
    fn continue_piece(&mut self, entity: Entity, choice: &Choice<'_>, requests: &Requests) -> Option<u32> {
        let piece = self.piece(entity)?;
        let is_open = piece.phase == PiecePhase::Filling && may_send(piece, choice, requests);
        if is_open { piece.next_free(choice.peer) } else { None }
    }

    /// Finds a free block of a piece that has already been begun.
    fn open_piece(&mut self, which: Open, choice: &mut Choice<'_>, requests: &Requests) -> Option<(Entity, u32)> {
        let mut full: SmallVec<[u32; 8]> = SmallVec::new();
        let mut found = None;
        for index in &choice.active.open {
            let Some(&entity) = choice.active.all.get(index) else {
                full.push(*index);
                continue;
            };
            let Some(piece) = self.piece(entity) else { continue };
            if piece.free_count == 0 {
                full.push(*index);
                continue;
            }
            if which == Open::Abandoned && piece.asked_count > 0 {
                continue;
            }
            if let Some(block) = self.continue_piece(entity, choice, requests) {
                found = Some((entity, block));
                break;
            }
        }
        for index in full {
            choice.active.open.remove(&index);
        }
        found
    }

    /// Begins a piece that the peer suggested, unless a rarer one exists.
    fn suggested_piece(&mut self, choice: &mut Choice<'_>, requests: &mut Requests) -> Option<(Entity, u32)> {
        let order = &choice.picker.order;
        requests.suggested.retain(|piece| order.is_pickable(*piece));
        if requests.suggested.is_empty() {
            return None;
        }
        let index = self.rarest_piece(choice, requests)?;
        if requests.suggested.contains(&index) {
            self.begin_piece(index, choice, requests)
        } else {
            None
        }
    }

    /// Begins the rarest pickable piece.
    fn new_piece(&mut self, choice: &mut Choice<'_>, requests: &mut Requests) -> Option<(Entity, u32)> {
        let index = self.rarest_piece(choice, requests)?;
        self.begin_piece(index, choice, requests)
    }

    /// Returns the rarest pickable piece. Among equals it prefers suggested pieces, then the one after the last one
    /// begun.
    fn rarest_piece(&mut self, choice: &Choice<'_>, requests: &Requests) -> Option<u32> {
        let accepts = |piece: u32| !requests.refused_pieces.contains(&piece);
        let extent = self.settings.requests.extent_bytes;
        let neighbour = requests
            .last_begun
            .and_then(|last| next_in_extent(last, choice.geometry, extent));
        let preferred = requests.suggested.iter().copied().chain(neighbour);
        choice
            .picker
            .order
            .pick(choice.has, preferred, &mut self.random, accepts)
    }

    fn begin_piece(&mut self, index: u32, choice: &mut Choice<'_>, requests: &mut Requests) -> Option<(Entity, u32)> {
        let len = choice.geometry.piece_size(index);
        if !self.memory.reserve(len, self.settings.requests.piece_memory_bytes) {
            self.supply.wanted_bytes = u64::from(len);
            if !requests.is_starved {
                requests.is_starved = true;
                self.supply.starved.push(choice.peer);
            }
            return None;
        }
        let mut piece = ActivePiece::new(choice.torrent, index, choice.geometry);
        fill_padding(&mut piece, choice);
        requests.last_begun = Some(index);
        choice.picker.order.remove(index);
        if choice.picker.order.pickable_count() == 0 {
            // The endgame begins: starved peers may now request blocks that other peers owe us.
            self.supply.offer(choice.torrent);
            self.wakeup.at(self.clock.now());
        }
        let entity = self.commands.spawn_empty().id();
        choice.active.all.insert(index, entity);
        choice.active.open.insert(index);
        let block = piece.next_free(choice.peer);
        if piece.is_full() {
            self.full.0.push(entity);
            self.wakeup.at(self.clock.now());
        }
        self.fresh.insert(entity, piece);
        match block {
            Some(block) => Some((entity, block)),
            None => self.new_piece(choice, requests),
        }
    }

    /// Finds a block of an allowed-fast piece, which the peer sends even while it chokes us (BEP 6).
    fn allowed_fast(&mut self, choice: &mut Choice<'_>, requests: &mut Requests) -> Option<(Entity, u32)> {
        for position in 0..requests.allowed_fast.len() {
            let index = requests.allowed_fast[position];
            if !choice.has.has(index) || requests.refused_pieces.contains(&index) {
                continue;
            }
            let found = match choice.active.all.get(&index) {
                Some(&entity) => self
                    .continue_piece(entity, choice, requests)
                    .map(|block| (entity, block)),
                None if choice.picker.order.is_pickable(index) => self.begin_piece(index, choice, requests),
                None => None,
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Finds a block to request from one more peer, once no piece is left to begin. The block is requested from fewer
    /// peers than allowed, and takes longer than blocks currently do, because a second copy is received in vain.
    fn endgame(&mut self, choice: &mut Choice<'_>, requests: &Requests) -> Option<(Entity, u32)> {
        if choice.picker.order.pickable_count() > 0 || requests.pending.len() >= ENDGAME_DEPTH {
            return None;
        }
        let copies = self.settings.requests.endgame_copies;
        let patience = choice.active.endgame_patience();
        let mut again: Option<Timestamp> = None;
        let mut best = None;
        for &entity in choice.active.all.values() {
            let Some(piece) = self.piece(entity) else { continue };
            if piece.phase != PiecePhase::Filling || piece.is_suspect || !may_send(piece, choice, requests) {
                continue;
            }
            for (block, slot) in (0..).zip(&piece.blocks) {
                let is_mine = slot.asked.contains(&choice.peer) || slot.late.contains(&choice.peer);
                let asked_count = slot.asked.len();
                let is_better = best.is_none_or(|(_, _, least)| asked_count < least);
                if slot.received || is_mine || asked_count >= copies || !is_better {
                    continue;
                }
                let due = slot.asked_at + patience;
                if asked_count > 0 && due > choice.now {
                    again = Some(again.map_or(due, |other| other.min(due)));
                } else {
                    best = Some((entity, block, asked_count));
                }
            }
        }
        if best.is_none() {
            choice.again = again;
        }
        best.map(|(entity, block, _)| (entity, block))
    }

    fn piece(&mut self, entity: Entity) -> Option<&mut ActivePiece> {
        if let Some(piece) = self.fresh.get_mut(&entity) {
            return Some(piece);
        }
        self.pieces.get_mut(entity).ok().map(Mut::into_inner)
    }

    fn spawn_fresh(&mut self) {
        for (entity, piece) in self.fresh.drain() {
            self.commands.entity(entity).insert(piece);
        }
    }
}

/// Returns the piece after `piece`, unless it begins another extent.
fn next_in_extent(piece: u32, geometry: &Geometry, extent_bytes: u32) -> Option<u32> {
    let next = piece + 1;
    let is_inside = extent_bytes > 0
        && next < geometry.piece_count()
        && !geometry.piece_offset(next).is_multiple_of(extent_bytes.into());
    is_inside.then_some(next)
}

/// Returns whether the peer has the piece and may be asked for it.
fn may_send(piece: &ActivePiece, choice: &Choice<'_>, requests: &Requests) -> bool {
    // An exclusive piece is not given to a peer that keeps us waiting.
    let is_trusted = || choice.is_trusted && piece.may_have_exclusively(choice.peer, choice.now);
    (!piece.is_suspect || is_trusted())
        && choice.has.has(piece.index)
        && !requests.refused_pieces.contains(&piece.index)
}

/// Fills blocks that consist only of padding (BEP 47); they are not requested.
fn fill_padding(piece: &mut ActivePiece, choice: &Choice<'_>) {
    if !choice.files.slices(piece.span).any(|slice| slice.pad) {
        return;
    }
    for block in 0..piece.blocks.len() as u32 {
        let span = choice.geometry.span(choice.geometry.block(piece.index, block));
        if choice.files.slices(span).all(|slice| slice.pad) {
            let zeros = Bytes::from_static(&ZEROS).slice(..span.len as usize);
            piece.receive(block, None, std::iter::once(zeros).collect());
        }
    }
}
