//! Serving of peers: admits requests, reads the blocks from disk (adjacent ones together), and sends them.

use std::collections::VecDeque;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::buckets::TorrentBuckets;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::messages::{FailTorrent, PeerDisconnected, PieceRequested, UploadRequested};
use ecs_torrent_components::peer::{FlushQueue, Outbox, PeerState, ServeQueue, UploadMemory, UploadQueue, Wire};
use ecs_torrent_components::rate_limit::RateLimits;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::{Settings, UploadSettings};
use ecs_torrent_components::torrent::{Have, Layout, Lifecycle, PeerOf, Storage};
use ecs_torrent_components::unverified::{Unverified, VerifyRequest, VerifyRequests, is_unverified};
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::port::Purpose;
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::{DiskDone, DiskError, DiskEvent, DiskRequest, ReadPurpose};
use ecs_torrent_engine::purpose;
use ecs_torrent_engine::schedule::{Tick, TickSet};
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::{BLOCK_SIZE, BlockRequest, Geometry, Span};
use ecs_torrent_protocol::wire::{Message, WireError};
use smallvec::SmallVec;

use crate::conditions::{has_events, has_messages};
use crate::{DecideSet, ReapSet, storage};

/// Serves peers.
pub struct UploadingPlugin;

impl Plugin for UploadingPlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<PeerState, UploadQueue>();
        app.add_message::<PieceRequested>()
            .init_resource::<Jobs<Group>>()
            .init_resource::<LimitedUploads>()
            .add_systems(
                Tick,
                (
                    handle_requests
                        .run_if(has_messages::<UploadRequested>)
                        .in_set(DecideSet::Uploads),
                    (
                        send_blocks.run_if(has_events::<DiskRequest, DiskEvent>(UPLOADS)),
                        read_blocks.run_if(has_requests),
                    )
                        .chain()
                        .in_set(TickSet::Respond),
                    forget_uploads.in_set(ReapSet::Release),
                ),
            );
    }
}

/// The torrents whose own limits some peers wait for.
#[derive(Resource, Debug, Default)]
struct LimitedUploads(Vec<Entity>);

/// Returns whether requests of peers wait to be served.
fn has_requests(serve: Res<ServeQueue>, limited: Res<LimitedUploads>) -> bool {
    !serve.is_empty() || !limited.0.is_empty()
}

const UPLOADS: Purpose = purpose!("read for uploads");

/// Requests of one peer that are answered by one read.
#[derive(Debug)]
struct Group {
    peer: Entity,
    span: Span,
    requests: Adjacent,
}

/// Adjacent requests.
type Adjacent = SmallVec<[BlockRequest; 16]>;

/// Decision on a request.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Admit,
    /// The request is rejected if the peer supports the fast extension (BEP 6), and otherwise ignored.
    Reject,
    Close(WireError),
}

/// Validates a request, regardless of the peer's state and queue.
fn check_request(request: BlockRequest, geometry: &Geometry, have: &Bitfield, settings: &UploadSettings) -> Verdict {
    let BlockRequest { piece, begin, len } = request;
    // Fault 24: blocks of these lengths cannot be served.
    if len == 0 || len > settings.max_block_bytes {
        return Verdict::Reject;
    }
    // Fault 23.
    if !geometry.contains(request) {
        return Verdict::Close(WireError::OutOfRange { id: 6, piece, begin });
    }
    if have.contains(piece) {
        Verdict::Admit
    } else {
        Verdict::Reject
    }
}

fn handle_requests(
    mut received: MessageReader<UploadRequested>,
    settings: Res<Settings>,
    mut reaper: ResMut<Reaper>,
    mut flush: ResMut<FlushQueue>,
    mut serve: ResMut<ServeQueue>,
    mut served: MessageWriter<PieceRequested>,
    mut peers: Query<(&PeerOf, &PeerState, &Wire, &mut UploadQueue, &mut Outbox)>,
    torrents: Query<(&Layout, &Have, &Lifecycle)>,
) {
    for &UploadRequested {
        peer,
        request,
        is_cancel,
    } in received.read()
    {
        let Ok((of, state, wire, mut uploads, mut outbox)) = peers.get_mut(peer) else {
            continue;
        };
        let mut reject = || {
            // BEP 6: every request is answered once, by the block or by a reject.
            if wire.session.fast {
                flush.send(peer, &mut outbox, &Message::RejectRequest(request));
            }
        };
        // Without metadata there is nothing to serve.
        let Ok((Layout(geometry), have, lifecycle)) = torrents.get(of.0) else {
            if !is_cancel {
                reject();
            }
            continue;
        };
        if is_cancel {
            if uploads.cancel(request) {
                reject();
            }
            continue;
        }
        let verdict = check_request(request, geometry, have, &settings.uploads);
        // Fault 25: a flood of requests is cut off at the queue length that we advertised.
        let is_full = uploads.waiting.len() + uploads.reading.len() >= settings.uploads.max_queue;
        match verdict {
            Verdict::Close(error) => reaper.close(peer, error),
            Verdict::Admit
                if !is_full
                    && lifecycle.may_serve()
                    && (!state.am_choking
                        || uploads.allowed_fast.take(request, settings.uploads.allowed_fast_copies)) =>
            {
                uploads.waiting.push_back(request);
                let (is_begun, is_ended) = (request.begin == 0, geometry.is_end_of_piece(request));
                if is_begun || is_ended {
                    served.write(PieceRequested {
                        torrent: of.0,
                        peer,
                        piece: request.piece,
                        is_begun,
                        is_ended,
                    });
                }
                uploads.is_mid_piece = !is_ended;
                serve.add(peer, &mut uploads);
            }
            Verdict::Admit | Verdict::Reject => reject(),
        }
    }
}

/// Parameters of reading blocks for peers.
#[derive(SystemParam)]
struct ReadParams<'w, 's> {
    settings: Res<'w, Settings>,
    disk: ResMut<'w, DiskPort>,
    reads: ResMut<'w, Jobs<Group>>,
    memory: ResMut<'w, UploadMemory>,
    limits: ResMut<'w, RateLimits>,
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    torrents: Query<'w, 's, (&'static Layout, &'static Storage, Option<&'static Unverified>)>,
    verify: ResMut<'w, VerifyRequests>,
    limited: ResMut<'w, LimitedUploads>,
    buckets: Query<'w, 's, &'static mut TorrentBuckets>,
}

/// Reads blocks for the peers in the serve queue in turn, for each peer up to its share of the upload memory. A peer
/// that has used up its share comes back when bytes have been sent. If uploads are limited, the queue waits for the
/// next portion. The peers of a torrent that has used up its own limit wait outside of the queue.
fn read_blocks(mut counter: ReadParams, mut serve: ResMut<ServeQueue>, mut peers: Query<(&PeerOf, &mut UploadQueue)>) {
    let now = counter.clock.now();
    if !counter.limited.0.is_empty() {
        counter.recall_limited(&mut serve, &mut peers);
    }
    while counter.memory.has_room(&counter.settings.uploads) {
        let portion = counter.limits.upload.portion(now);
        if portion == Some(0) {
            counter.wakeup.at(counter.limits.upload.next(now));
            break;
        }
        let Some(peer) = serve.pop() else { break };
        let Ok((of, mut uploads)) = peers.get_mut(peer) else {
            continue;
        };
        uploads.unlist();
        let room = counter.memory.room_for(&uploads, &counter.settings.uploads);
        let Some(most) = room.filter(|_| !uploads.waiting.is_empty()) else {
            continue;
        };
        let most = portion.map_or(most, |portion| most.min(u32::try_from(portion).unwrap_or(u32::MAX)));
        let Some(most) = counter.own_portion(peer, of.0, &mut uploads, most) else {
            continue;
        };
        let is_reading = counter.read_next(peer, of.0, &mut uploads, most);
        if is_reading && !uploads.waiting.is_empty() {
            // This peer continues after every other peer has had a turn.
            serve.add(peer, &mut uploads);
        }
    }
    for torrent in &counter.limited.0 {
        if let Ok(mut buckets) = counter.buckets.get_mut(*torrent) {
            counter.wakeup.at(buckets.upload.next_common(now));
        }
    }
}

impl ReadParams<'_, '_> {
    /// Returns peers of torrents whose own limits allow some bytes again to the queue: one peer for each block that the
    /// bytes suffice for.
    fn recall_limited(&mut self, serve: &mut ServeQueue, peers: &mut Query<(&PeerOf, &mut UploadQueue)>) {
        let now = self.clock.now();
        let buckets_of = &mut self.buckets;
        // A torrent that is gone has no peers.
        self.limited.0.retain(|torrent| {
            let Ok(mut buckets) = buckets_of.get_mut(*torrent) else {
                return false;
            };
            let portion = buckets.upload.portion(now);
            let turns = portion.map_or(usize::MAX, |portion| portion.div_ceil(BLOCK_SIZE.into()) as usize);
            for _ in 0..turns {
                let Some(peer) = buckets.uploads.pop() else { break };
                if let Ok((_, mut uploads)) = peers.get_mut(peer) {
                    uploads.unlist();
                    serve.add(peer, &mut uploads);
                }
            }
            !buckets.uploads.is_empty()
        });
    }

    /// Returns how many of `most` bytes the torrent's own limit allows a peer. `None` if the peer has to wait.
    fn own_portion(&mut self, peer: Entity, torrent: Entity, uploads: &mut UploadQueue, most: u32) -> Option<u32> {
        if self.limits.torrent_count == 0 {
            return Some(most);
        }
        let Ok(mut buckets) = self.buckets.get_mut(torrent) else {
            return Some(most);
        };
        match buckets.upload.portion(self.clock.now()) {
            None => Some(most),
            Some(0) => {
                if buckets.uploads.is_empty() {
                    self.limited.0.push(torrent);
                }
                uploads.wait_in(peer, &mut buckets.uploads);
                None
            }
            Some(own) => Some(most.min(u32::try_from(own).unwrap_or(u32::MAX))),
        }
    }

    /// Starts one read for adjacent requests at the front of the queue: the first, and as many more as fit in `most`
    /// bytes. Returns false if there is none, because the first piece has to be verified before; the peer comes back
    /// then.
    fn read_next(&mut self, peer: Entity, torrent: Entity, uploads: &mut UploadQueue, most: u32) -> bool {
        let Ok((Layout(geometry), storage, unverified)) = self.torrents.get(torrent) else {
            uploads.waiting.clear();
            return false;
        };
        let doubtful = |request: &BlockRequest| is_unverified(unverified, request.piece);
        if let Some(first) = uploads.waiting.front().filter(|first| doubtful(first)) {
            self.verify.0.push(VerifyRequest {
                torrent,
                piece: first.piece,
                peer: Some(peer),
            });
            self.wakeup.at(self.clock.now());
            return false;
        }
        let Some((span, requests)) = take_adjacent(&mut uploads.waiting, geometry, most, doubtful) else {
            return false;
        };
        uploads.reading.extend_from_slice(&requests);
        self.memory.charge(uploads, u64::from(span.len));
        self.limits.upload.take(u64::from(span.len));
        if self.limits.torrent_count > 0
            && let Ok(mut buckets) = self.buckets.get_mut(torrent)
        {
            buckets.upload.take(u64::from(span.len));
        }
        self.disk.push(DiskRequest::Read {
            tag: self.reads.add(UPLOADS, Group { peer, span, requests }),
            storage: storage.id,
            span,
            purpose: ReadPurpose::Serve,
        });
        true
    }
}

/// Removes the first request, and as many adjacent ones after it as fit in `most` bytes with it, up to a doubtful one.
/// Returns them with their span.
fn take_adjacent(
    waiting: &mut VecDeque<BlockRequest>,
    geometry: &Geometry,
    most: u32,
    doubtful: impl Fn(&BlockRequest) -> bool,
) -> Option<(Span, Adjacent)> {
    let first = waiting.pop_front()?;
    let mut span = geometry.span(first);
    let mut requests = Adjacent::from_iter([first]);
    while let Some(&request) = waiting.front() {
        let next = geometry.span(request);
        let fits = span.len + next.len <= most;
        if span.end() != next.offset || !fits || doubtful(&request) {
            break;
        }
        span.len += next.len;
        requests.push(request);
        waiting.pop_front();
    }
    Some((span, requests))
}

fn send_blocks(
    mut disk: ResMut<DiskPort>,
    mut reads: ResMut<Jobs<Group>>,
    mut memory: ResMut<UploadMemory>,
    mut flush: ResMut<FlushQueue>,
    mut failed: MessageWriter<FailTorrent>,
    mut peers: Query<(&PeerOf, &Wire, &mut UploadQueue, &mut Outbox)>,
) {
    for event in disk.take(UPLOADS) {
        let Some(Group { peer, span, requests }) = reads.take(event.tag) else {
            continue;
        };
        let Ok((of, wire, mut uploads, mut outbox)) = peers.get_mut(peer) else {
            continue;
        };
        let data = match event.outcome {
            Ok(DiskDone::Read(data)) => Ok(data),
            Ok(_) => continue,
            Err(error) => Err(error),
        };
        let mut offset = 0;
        for request in requests {
            let range = offset..offset + request.len as usize;
            offset = range.end;
            // The request is no longer listed if the peer has canceled it in the meantime.
            let Some(position) = uploads.reading.iter().position(|reading| *reading == request) else {
                memory.release(&mut uploads, u64::from(request.len));
                continue;
            };
            uploads.reading.swap_remove(position);
            match &data {
                Ok(data) => {
                    flush.send_block(peer, &mut outbox, request, data.slice(range));
                }
                Err(_) => {
                    memory.release(&mut uploads, u64::from(request.len));
                    if wire.session.fast {
                        flush.send(peer, &mut outbox, &Message::RejectRequest(request));
                    }
                }
            }
        }
        if let Err(error) = data {
            failed.write(fault(of.0, &error, span));
        }
    }
}

/// Creates the failure of a torrent whose data cannot be read. Complete data that is gone is a fault; the restart after
/// it checks the remaining data (Fault 73).
pub(crate) fn fault(torrent: Entity, error: &DiskError, span: Span) -> FailTorrent {
    let mut fault = storage::fault(torrent, error);
    if error.is_absence() {
        fault.reason = format!("data that was complete is gone (at byte {}): {error}", span.offset).into();
    }
    fault
}

/// Releases the upload memory of disconnected peers.
fn forget_uploads(
    mut gone: MessageReader<PeerDisconnected>,
    mut memory: ResMut<UploadMemory>,
    mut peers: Query<&mut UploadQueue>,
) {
    for PeerDisconnected { peer, .. } in gone.read() {
        if let Ok(mut uploads) = peers.get_mut(*peer) {
            memory.release(&mut uploads, u64::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bed;

    #[test]
    fn the_last_block_of_a_piece_ends_it() {
        let mut bed = serving_bed();
        let peer = bed.peer();
        bed.get_mut::<Have>(bed.torrent).record_stored(0);
        bed.world.init_resource::<Reaper>();
        let mut is_mid_piece = |block| {
            let request = bed.geometry.block(0, block);
            let message = UploadRequested {
                peer,
                request,
                is_cancel: false,
            };
            bed.run_after(message, handle_requests);
            bed.get::<UploadQueue>(peer).is_mid_piece
        };
        assert!(is_mid_piece(0));
        assert!(!is_mid_piece(1));
    }

    /// BEP 6: a request is answered once, and a cancel of a request that is already answered is not.
    #[test]
    fn a_torrent_without_metadata_rejects_requests_and_no_cancels() {
        let mut bed = serving_bed();
        bed.world.entity_mut(bed.torrent).remove::<Layout>();
        let peer = bed.peer();
        let request = bed.geometry.block(0, 0);
        for is_cancel in [false, true] {
            let message = UploadRequested {
                peer,
                request,
                is_cancel,
            };
            bed.run_after(message, handle_requests);
            let reject = [Message::RejectRequest(request)];
            assert!(bed.has_sent(peer, &reject[usize::from(is_cancel)..]));
        }
    }

    fn serving_bed() -> Bed {
        let mut bed = Bed::new(());
        bed.open_port::<DiskRequest, DiskEvent>(Vec::new());
        bed.world.init_resource::<Jobs<Group>>();
        bed.world.init_resource::<LimitedUploads>();
        bed.world.init_resource::<UploadMemory>();
        bed.world.init_resource::<ServeQueue>();
        bed.world.init_resource::<VerifyRequests>();
        bed.world.init_resource::<Messages<PieceRequested>>();
        let storage = Storage {
            id: ecs_torrent_components::ids::StorageId(1),
            root: "/".into(),
        };
        bed.world.entity_mut(bed.torrent).insert(storage);
        bed
    }

    /// A piece that is held without a check is not read for a peer. The peer waits, and others are served.
    #[test]
    fn unverified_pieces_are_not_read() {
        let mut bed = serving_bed();
        let mut unverified = Bitfield::new(bed.geometry.piece_count());
        unverified.insert(1);
        bed.world.entity_mut(bed.torrent).insert(Unverified(unverified));
        let mut serve = ServeQueue::default();
        let peers = [bed.peer(), bed.peer()];
        for (piece, peer) in (1..).zip(peers) {
            let request = bed.geometry.block(piece, 0);
            let mut uploads = bed.get_mut::<UploadQueue>(peer);
            uploads.waiting.push_back(request);
            serve.add(peer, &mut uploads);
        }
        bed.world.insert_resource(serve);
        bed.run(read_blocks);
        let expected = VerifyRequest {
            torrent: bed.torrent,
            piece: 1,
            peer: Some(peers[0]),
        };
        assert_eq!(bed.world.resource::<VerifyRequests>().0, [expected]);
        assert!(bed.world.resource::<ServeQueue>().is_empty());
        let jobs = bed.world.resource::<Jobs<Group>>();
        let [DiskRequest::Read { tag, .. }] = bed.world.resource::<DiskPort>().outgoing() else {
            panic!("one read");
        };
        assert_eq!(jobs.get(*tag).unwrap().peer, peers[1]);
    }

    /// Peers are served in turn, until no request waits or the memory is used up.
    #[test]
    fn every_waiting_block_is_read_within_the_memory() {
        for (memory, count) in [(u64::MAX, 6), (1, 1)] {
            let mut bed = serving_bed();
            bed.world.resource_mut::<Settings>().uploads.memory_bytes = memory;
            let peers = [bed.peer(), bed.peer()];
            let mut serve = ServeQueue::default();
            for peer in peers {
                // Every second block: none is adjacent to another.
                let blocks: Vec<_> = (0..3).map(|piece| bed.geometry.block(piece, 0)).collect();
                let mut uploads = bed.get_mut::<UploadQueue>(peer);
                uploads.waiting.extend(blocks);
                serve.add(peer, &mut uploads);
            }
            bed.world.insert_resource(serve);
            bed.run(read_blocks);
            let jobs = bed.world.resource::<Jobs<Group>>();
            let reads = bed.world.resource::<DiskPort>().outgoing();
            let owners: Vec<Entity> = reads
                .iter()
                .map(|read| match read {
                    DiskRequest::Read { tag, .. } => jobs.get(*tag).unwrap().peer,
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(owners.len(), count);
            assert!(
                owners
                    .iter()
                    .zip(peers.into_iter().cycle())
                    .all(|(owner, peer)| *owner == peer)
            );
            assert_eq!(bed.world.resource::<ServeQueue>().is_empty(), count == 6);
        }
    }

    #[test]
    fn a_gone_peer_returns_its_memory() {
        let mut bed = serving_bed();
        let peer = bed.peer();
        bed.world.resource_scope(|world, mut memory: Mut<UploadMemory>| {
            memory.charge(&mut world.get_mut::<UploadQueue>(peer).unwrap(), 50);
        });
        let gone = PeerDisconnected {
            torrent: Some(bed.torrent),
            peer,
            reason: ecs_torrent_components::peer::CloseReason::Evicted,
        };
        bed.run_after(gone, forget_uploads);
        assert_eq!(bed.get::<UploadQueue>(peer).charged_bytes, 0);
    }

    #[test]
    fn requests_are_compared_with_what_can_be_served() {
        let geometry = Geometry::new(100_000, 40_000).unwrap();
        let mut have = Bitfield::new(3);
        have.insert(2);
        let settings = UploadSettings::default();
        let verdict =
            |piece, begin, len| check_request(BlockRequest { piece, begin, len }, &geometry, &have, &settings);
        assert_eq!(verdict(2, 0, 16384), Verdict::Admit);
        assert_eq!(verdict(2, 19_999, 1), Verdict::Admit);
        // Fault 24.
        assert_eq!(verdict(2, 0, 0), Verdict::Reject);
        assert_eq!(verdict(2, 0, 128 * 1024 + 1), Verdict::Reject);
        assert_eq!(verdict(2, 0, u32::MAX), Verdict::Reject);
        let exact = UploadSettings {
            max_block_bytes: 20_000,
            ..UploadSettings::default()
        };
        let whole = BlockRequest {
            piece: 2,
            begin: 0,
            len: 20_000,
        };
        assert_eq!(check_request(whole, &geometry, &have, &exact), Verdict::Admit);
        // Fault 23.
        assert!(matches!(verdict(2, 20_000, 1), Verdict::Close(_)));
        assert!(matches!(verdict(2, u32::MAX, 16384), Verdict::Close(_)));
        assert_eq!(verdict(1, 0, 16384), Verdict::Reject, "not here");
    }

    /// One read covers adjacent requests, within the peer's share of memory; the first is read even if it is larger.
    #[test]
    fn adjacent_requests_are_read_together() {
        let geometry = Geometry::new(200_000, 65_536).unwrap();
        let (first, second, third) = (geometry.block(0, 2), geometry.block(0, 3), geometry.block(1, 0));
        let far = geometry.block(2, 1);
        let take = |waiting: &[BlockRequest], most| {
            let mut waiting = VecDeque::from(waiting.to_vec());
            let (span, requests) = take_adjacent(&mut waiting, &geometry, most, |request| request.piece == 3)?;
            assert_eq!(span.offset, geometry.span(requests[0]).offset);
            assert_eq!(span.len, requests.iter().map(|request| request.len).sum::<u32>());
            Some((requests.into_vec(), Vec::from(waiting)))
        };
        let all = [first, second, third, far];
        assert_eq!(
            take(&all, u32::MAX),
            Some((all[..3].to_vec(), vec![far])),
            "across pieces"
        );
        assert_eq!(take(&all, 3 * 16384), Some((all[..3].to_vec(), vec![far])));
        assert_eq!(take(&all, 3 * 16384 - 1), Some((all[..2].to_vec(), all[2..].to_vec())));
        assert_eq!(take(&all, 1), Some((vec![first], all[1..].to_vec())));
        let backwards = [second, first];
        assert_eq!(take(&backwards, u32::MAX), Some((vec![second], vec![first])));
        assert_eq!(take(&[], u32::MAX), None);
        let (last, doubtful) = (geometry.block(2, 3), geometry.block(3, 0));
        assert_eq!(take(&[last, doubtful], u32::MAX), Some((vec![last], vec![doubtful])));
    }
}
