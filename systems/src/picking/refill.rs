//! Fills the request pipelines of peers.

use std::time::Duration;

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use bytes::Bytes;
use ecs_torrent_components::buckets::TorrentBuckets;
use ecs_torrent_components::clock::Wakeup;
use ecs_torrent_components::peer::{
    PeerExtensions, PeerPieces, PeerRates, PeerState, Pending, RefillQueue, RequestSink, Requests, SourceSink,
};
use ecs_torrent_components::piece::{ActivePiece, FullPieces, PieceMemory};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::rate_limit::RateLimits;
use ecs_torrent_components::readers::PieceDeadlines;
use ecs_torrent_components::settings::{RequestSettings, Settings};
use ecs_torrent_components::torrent::{ActivePieces, Content, Layout, Lifecycle, PeerOf, Torrent};
use ecs_torrent_components::work_list::WorkList;
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::geometry::{BLOCK_SIZE, BlockRequest, Geometry};
use ecs_torrent_protocol::time::Timestamp;

use super::choice::{Choice, PeerView, Pick, Reason, TorrentView, choose};
use super::timers::PeerTimers;
use super::{Picker, Starved, Supply};

/// Maximum number of late requests of a peer. Beyond it, the peer gets no more requests.
const MAX_LATE: usize = 32;

/// Pieces that would take a peer longer than this, in seconds, are shared with other peers.
const ALONE_SECONDS: u64 = 20;

/// Least pipeline depth for a peer that suggests pieces: it waits for us to request exactly those.
const SUGGESTED_DEPTH: u32 = 16;

/// The content of padding (BEP 47).
static ZEROS: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];

/// Drops idle pieces when peers wait for memory. Late requests for their blocks are canceled: the piece may be begun
/// again, and no block is requested twice from a peer that owes it.
pub(super) fn evict_idle(
    mut commands: Commands,
    mut supply: ResMut<Supply>,
    mut memory: ResMut<PieceMemory>,
    mut random: ResMut<Random>,
    mut sink: RequestSink,
    settings: Res<Settings>,
    mut pieces: Query<&mut ActivePiece>,
    mut torrents: Query<(&Torrent, &mut Picker, &mut ActivePieces)>,
    mut peers: Query<(&mut Requests, SourceSink)>,
) {
    let limit = settings.requests.piece_memory_bytes;
    while !supply.starved.is_empty() && memory.used_bytes() + supply.wanted_bytes > limit {
        let Some(entity) = supply.idle.pop() else { break };
        let Ok(mut piece) = pieces.get_mut(entity) else {
            continue;
        };
        piece.idle.clear();
        let Ok((torrent, mut picker, mut active)) = torrents.get_mut(piece.torrent) else {
            continue;
        };
        if !piece.is_idle() {
            continue;
        }
        tracing::debug!(torrent = %torrent.label(), piece = piece.index, "dropped: memory is short and no peer sends it");
        let owed = (0..)
            .zip(&piece.blocks)
            .flat_map(|(block, slot)| slot.late.iter().map(move |peer| (block, *peer)));
        for (block, peer) in owed {
            let request = piece.request(block);
            if let Ok((mut requests, mut source)) = peers.get_mut(peer)
                && requests.cancel(request).is_some()
            {
                sink.cancel(peer, &mut source, request);
            }
        }
        active.all.remove(&piece.index);
        active.open.remove(&piece.index);
        picker.order.insert(piece.index, &mut random);
        memory.release(&piece);
        supply.record_dropped(piece.torrent, piece.received_bytes());
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
    let mut recall = |starved: &mut WorkList<Starved>| {
        for peer in starved.drain() {
            if let Ok(mut requests) = peers.get_mut(peer) {
                requests.starved.clear();
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

/// The components of a peer that the picker reads and writes.
type RefilledPeer = (
    &'static PeerOf,
    &'static PeerState,
    &'static PeerPieces,
    &'static PeerRates,
    &'static PeerExtensions,
    &'static mut Requests,
    SourceSink,
);

/// The components of a torrent that the picker reads and writes.
type RefilledTorrent = (
    &'static Lifecycle,
    &'static Layout,
    &'static Content,
    &'static mut Picker,
    &'static mut ActivePieces,
    Option<&'static PieceDeadlines>,
);

/// Requests blocks from all listed peers, up to the depth of each one's pipeline.
pub(super) fn refill_requests(
    mut refill: ResMut<RefillQueue>,
    mut sink: RequestSink,
    mut timers: PeerTimers,
    mut scheduler: RequestScheduler,
    mut torrents: Query<RefilledTorrent>,
    mut peers: Query<RefilledPeer>,
) {
    let now = timers.clock.now();
    while let Some(entity) = refill.pop() {
        let Ok((of, state, has, rates, extensions, mut requests, mut source)) = peers.get_mut(entity) else {
            continue;
        };
        requests.unlist();
        let Ok(torrent) = torrents.get_mut(of.0) else {
            continue;
        };
        let (Lifecycle::Downloading, Layout(geometry), content, mut picker, mut active, deadlines) = torrent else {
            continue;
        };
        requests.expire_suggestions(now);
        let late_count = requests.late_count();
        let is_reachable = !state.peer_choking || !requests.allowed_fast.is_empty();
        if !state.am_interested || !is_reachable || late_count >= MAX_LATE {
            continue;
        }
        if requests.paused_until > now {
            timers.resume_at(requests.paused_until, entity, &mut requests);
            continue;
        }
        let rate = rates.download.at(now);
        let mut depth = depth(&requests, state, extensions, &timers.settings.requests);
        let mut best_answer_time = Duration::ZERO;
        if deadlines.is_some() && requests.has_answered() {
            // Blocks that a reader needs next must not wait behind others.
            depth = depth.min(requests.shallow_depth(rate));
            best_answer_time = picker.pace.record(now, requests.answer_time(now));
        }
        let mut target = Target {
            torrent: of.0,
            geometry,
            files: &content.0.info.files,
            picker: &mut picker,
            active: &mut active,
            peer: entity,
            has,
            is_choked: state.peer_choking,
            is_trusted: late_count == 0 && requests.distrusted_until <= now,
            prefers_sharing: rate * ALONE_SECONDS < u64::from(geometry.piece_length()),
            depth: late_count + depth as usize,
            deadlines,
            best_answer_time,
        };
        let again = scheduler.fill(now, &mut target, &mut requests, |request| {
            sink.request(entity, &mut source, request);
        });
        if let Some(again) = requests.suggestion_timeout().or(again) {
            timers.resume_at(again, entity, &mut requests);
        }
        timers.watch(entity, &mut requests, rate);
    }
    scheduler.spawn_begun();
}

/// Returns the number of requests to keep outstanding to a peer.
fn depth(requests: &Requests, state: &PeerState, extensions: &PeerExtensions, settings: &RequestSettings) -> u32 {
    if state.snubbed || requests.is_silent {
        // One request is enough to find out whether the peer sends again.
        return 1;
    }
    let least = if requests.follows_suggestions() {
        SUGGESTED_DEPTH
    } else {
        1
    };
    let most = extensions.handshake.request_queue.unwrap_or(u32::MAX).max(1);
    requests.depth.target(settings).max(least).min(most)
}

/// One peer of one torrent, while blocks are requested from it.
struct Target<'a> {
    torrent: Entity,
    geometry: &'a Geometry,
    files: &'a FileTable,
    picker: &'a mut Picker,
    active: &'a mut ActivePieces,
    peer: Entity,
    has: &'a PeerPieces,
    is_choked: bool,
    is_trusted: bool,
    prefers_sharing: bool,
    /// Maximum number of requests in flight, late ones included.
    depth: usize,
    deadlines: Option<&'a PieceDeadlines>,
    best_answer_time: Duration,
}

/// The parameters with which pieces are begun and continued.
#[derive(SystemParam)]
pub(super) struct RequestScheduler<'w, 's> {
    commands: Commands<'w, 's>,
    wakeup: Res<'w, Wakeup>,
    settings: Res<'w, Settings>,
    memory: ResMut<'w, PieceMemory>,
    supply: ResMut<'w, Supply>,
    random: ResMut<'w, Random>,
    full: ResMut<'w, FullPieces>,
    limits: Res<'w, RateLimits>,
    buckets: Query<'w, 's, &'static TorrentBuckets>,
    pieces: Query<'w, 's, &'static mut ActivePiece>,
    /// Pieces begun in this run, which are not in the world yet.
    begun: Local<'s, EntityHashMap<ActivePiece>>,
}

impl RequestScheduler<'_, '_> {
    /// Requests blocks until the peer's pipeline is full or nothing is left to request. Returns when to try again.
    fn fill(
        &mut self,
        now: Timestamp,
        target: &mut Target<'_>,
        requests: &mut Requests,
        mut send: impl FnMut(BlockRequest),
    ) -> Option<Timestamp> {
        while requests.pending().len() < target.depth {
            let choice = self.choose(now, target, requests);
            if let Some(len) = choice.wants_memory {
                self.supply.wanted_bytes = u64::from(len);
                self.supply.starved.add(target.peer, &mut requests.starved);
            }
            let (entity, block, reason) = match choice.pick {
                Some(Pick::Active { piece, block, reason }) => (piece, Some(block), reason),
                Some(Pick::New { index, reason }) => {
                    requests.last_begun = Some(index);
                    let (entity, block) = self.begin_piece(now, index, target);
                    (entity, block, reason)
                }
                None => {
                    if let Some(piece) = choice.overtaken {
                        self.supply.overtaken.push(piece);
                        self.wakeup.at(now);
                    }
                    if choice.is_starved {
                        target.picker.starved.add(target.peer, &mut requests.starved);
                    }
                    let withheld_until = Some(requests.withheld_until).filter(|until| *until > now);
                    return choice.again.into_iter().chain(withheld_until).min();
                }
            };
            match reason {
                Reason::Suggested => {
                    requests.record_suggested_request(now);
                    requests.current = Some(entity);
                }
                Reason::Deadline | Reason::Open | Reason::Rarest => requests.current = Some(entity),
                Reason::AllowedFast | Reason::Current | Reason::Endgame => {}
            }
            if let Some(block) = block {
                self.request(now, (entity, block, reason), target, requests, &mut send);
            }
        }
        None
    }

    /// Whether downloads of a torrent have to wait for a limit on the rate.
    fn is_limited(&self, torrent: Entity, now: Timestamp) -> bool {
        let own = || self.buckets.get(torrent).is_ok_and(|own| own.download.is_waiting(now));
        self.limits.download.is_waiting(now) || (self.limits.torrent_count > 0 && own())
    }

    fn choose(&mut self, now: Timestamp, target: &Target<'_>, requests: &Requests) -> Choice {
        let peer = PeerView {
            peer: target.peer,
            has: target.has,
            requests,
            is_choked: target.is_choked,
            is_trusted: target.is_trusted,
            prefers_sharing: target.prefers_sharing,
        };
        let settings = &self.settings.requests;
        let (pieces, begun, memory) = (&self.pieces, &*self.begun, &*self.memory);
        let torrent = TorrentView {
            now,
            geometry: target.geometry,
            order: &target.picker.order,
            active: target.active,
            piece: |entity| pieces.get(entity).ok().or_else(|| begun.get(&entity)),
            has_memory: |len| memory.fits(len, settings),
            settings,
            is_limited: self.is_limited(target.torrent, now),
            deadlines: target.deadlines,
            best_answer_time: target.best_answer_time,
        };
        choose(&peer, &torrent, &mut self.random)
    }

    /// Requests a block and the free blocks after it, as many as the pipeline holds. In the endgame it requests the
    /// block alone.
    fn request(
        &mut self,
        now: Timestamp,
        (entity, first, reason): (Entity, u32, Reason),
        target: &mut Target<'_>,
        requests: &mut Requests,
        send: &mut impl FnMut(BlockRequest),
    ) {
        let piece = match self.pieces.get_mut(entity) {
            Ok(piece) => piece.into_inner(),
            Err(_) => match self.begun.get_mut(&entity) {
                Some(piece) => piece,
                None => return,
            },
        };
        if piece.is_suspect {
            piece.exclusive = Some(target.peer);
        }
        let expected_at = now + requests.answer_time(now);
        let mut next = Some(first);
        while let Some(block) = next
            && requests.pending().len() < target.depth
        {
            // The speed of a new peer is measured with a block that may still be requested from others.
            let is_late = reason == Reason::Endgame && !requests.has_answered();
            match is_late {
                true => piece.mark_probed(block, target.peer),
                false => piece.mark_requested(block, target.peer, now, expected_at),
            }
            let request = piece.request(block);
            requests.add(Pending {
                piece: entity,
                block,
                request,
                requested_at: now,
                is_late,
            });
            send(request);
            next = match reason {
                Reason::Endgame => None,
                _ => piece.next_free(target.peer),
            };
        }
        if piece.free_count == 0 {
            target.active.open.remove(&piece.index);
        }
    }

    /// Begins a piece. Returns its first block, unless it consists of padding only.
    fn begin_piece(&mut self, now: Timestamp, index: u32, target: &mut Target<'_>) -> (Entity, Option<u32>) {
        let mut piece = ActivePiece::new(target.torrent, index, target.geometry);
        self.memory.reserve(piece.span.len, &self.settings.requests);
        fill_padding(&mut piece, target.geometry, target.files);
        target.picker.order.remove(index);
        if target.picker.order.pickable_count() == 0 {
            // The endgame begins: starved peers may now request blocks that other peers owe us.
            self.supply.offer(target.torrent);
            self.wakeup.at(now);
        }
        let entity = self.commands.spawn_empty().id();
        target.active.all.insert(index, entity);
        let block = piece.next_free(target.peer);
        match block {
            Some(_) => drop(target.active.open.insert(index)),
            None => {
                self.full.add(entity, &mut piece);
                self.wakeup.at(now);
            }
        }
        self.begun.insert(entity, piece);
        (entity, block)
    }

    fn spawn_begun(&mut self) {
        for (entity, piece) in self.begun.drain() {
            self.commands.entity(entity).insert(piece);
        }
    }
}

/// Fills blocks that consist only of padding (BEP 47) or gaps; they are not requested.
fn fill_padding(piece: &mut ActivePiece, geometry: &Geometry, files: &FileTable) {
    if !files.slices(piece.span).any(|slice| slice.place.is_none()) {
        return;
    }
    for block in 0..piece.blocks.len() as u32 {
        let span = geometry.span(piece.request(block));
        if files.slices(span).all(|slice| slice.place.is_none()) {
            let zeros = Bytes::from_static(&ZEROS).slice(..span.len as usize);
            piece.receive(block, None, std::iter::once(zeros).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_protocol::files::{FileAttributes, FileEntry};

    use super::*;

    #[test]
    fn the_depth_of_a_pipeline_follows_the_peer() {
        let settings = RequestSettings::default();
        let state = PeerState::new(Timestamp::ZERO);
        let mut extensions = PeerExtensions::default();
        let depth_of = |requests: &Requests, state: &PeerState, extensions: &PeerExtensions| {
            depth(requests, state, extensions, &settings)
        };
        let mut requests = Requests::default();
        assert_eq!(depth_of(&requests, &state, &extensions), settings.initial_depth);
        let snubbed = PeerState { snubbed: true, ..state };
        assert_eq!(depth_of(&requests, &snubbed, &extensions), 1);
        extensions.handshake.request_queue = Some(2);
        assert_eq!(depth_of(&requests, &state, &extensions), 2, "as the peer says");
        extensions.handshake.request_queue = Some(0);
        assert_eq!(depth_of(&requests, &state, &extensions), 1);
        requests.depth.shrink(&settings);
        requests.record_suggested_request(Timestamp::ZERO);
        let known = PeerExtensions::default();
        assert_eq!(
            depth_of(&requests, &state, &known),
            SUGGESTED_DEPTH.max(settings.min_depth)
        );
        requests.is_silent = true;
        assert_eq!(depth_of(&requests, &state, &known), 1);
    }

    /// BEP 47.
    #[test]
    fn blocks_of_padding_are_not_requested() {
        let block = u64::from(BLOCK_SIZE);
        let geometry = Geometry::new(4 * block, 4 * BLOCK_SIZE).unwrap();
        let file = |offset: u64, len, pad| FileEntry {
            path: offset.to_string().into(),
            len,
            offset,
            attributes: FileAttributes {
                pad,
                ..FileAttributes::default()
            },
        };
        let files = FileTable::new(vec![
            file(0, block + 1, false),
            file(block + 1, 2 * block - 1, true),
            file(3 * block, block, false),
        ]);
        let mut piece = ActivePiece::new(Entity::PLACEHOLDER, 0, &geometry);
        fill_padding(&mut piece, &geometry, &files);
        let received: Vec<bool> = piece.blocks.iter().map(|slot| slot.received).collect();
        assert_eq!(received, [false, false, true, false]);
    }
}
