//! Requests, ours to a peer and a peer's to us.

use std::collections::VecDeque;
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::geometry::{BLOCK_SIZE, BlockRequest};
use ecs_torrent_protocol::time::Timestamp;
use smallvec::SmallVec;

use crate::settings::{RequestSettings, UploadSettings, millis, seconds};

/// Most cancelled requests whose late answers are still recognized.
const MAX_CANCELLED: usize = 256;

/// A request that a peer has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// The piece in flight.
    pub piece: Entity,
    /// Number of the block in the piece.
    pub block: u32,
    /// What was asked for.
    pub request: BlockRequest,
    /// When.
    pub asked: Timestamp,
    /// Its time is over; the block may be asked of others.
    pub is_late: bool,
}

/// How long after a suggestion, or the last block of what was suggested, more may come.
const GUIDED: Duration = Duration::from_secs(1);

/// Our requests to a peer.
#[derive(Component, Debug, Default)]
pub struct Requests {
    /// Not answered, the oldest first.
    pub pending: VecDeque<Pending>,
    /// Taken back, and perhaps answered all the same: dropped without blame.
    cancelled: VecDeque<BlockRequest>,
    /// How many to keep outstanding.
    pub depth: QueueDepth,
    /// The piece that was last begun or continued for this peer, to go on with.
    pub current: Option<Entity>,
    /// Index of the piece that was last begun for this peer.
    pub last_begun: Option<u32>,
    /// Pieces that may be requested while choked (BEP 6).
    pub allowed_fast: Vec<u32>,
    /// Pieces that this peer would have us take (BEP 6), and that we have not begun, the oldest first.
    pub suggested: VecDeque<u32>,
    /// It spreads a first copy by suggestions, and is asked for nothing else until then, and as long as it owes blocks.
    pub guided_until: Option<Timestamp>,
    /// When it may be asked for something that it may not be asked for now, if there is a deadline for that.
    pub look_at: Option<Timestamp>,
    /// Pieces that this peer sent corrupt and is not asked for again.
    pub refused_pieces: Vec<u32>,
    /// Whether the peer waits for something to become free.
    pub is_starved: bool,
    /// Whether the peer is in the refill queue.
    is_listed: bool,
    /// Whether a deadline is set for its oldest request.
    pub has_deadline: bool,
    /// Until then nothing is requested, since the peer rejected what was.
    pub paused_until: Timestamp,
    /// Blocks that came without having been asked for.
    pub unsolicited_count: u32,
    /// When the last block came that was asked for.
    pub last_block: Timestamp,
    /// Time between two blocks, smoothed.
    block_gap: Duration,
    /// It has let its time pass, and sent nothing since.
    pub is_silent: bool,
    /// Until then it is given no piece to itself, since it was silent.
    pub distrusted_until: Timestamp,
}

impl Requests {
    /// Takes out the request that a block answers. The oldest is looked at first, which it nearly always is.
    pub fn answer(&mut self, request: BlockRequest) -> Option<Pending> {
        let position = self.pending.iter().position(|pending| pending.request == request)?;
        self.pending.remove(position)
    }

    /// Notes that the block of a request has come.
    pub fn note_block(&mut self, now: Timestamp, pending: &Pending) {
        let gap = now.since(self.last_block.max(pending.asked));
        self.block_gap = (self.block_gap * 3 + gap) / 4;
        self.last_block = now;
        if let Some(until) = &mut self.guided_until {
            *until = now + GUIDED;
        }
        self.is_silent = false;
        self.distrusted_until = Timestamp::ZERO;
    }

    /// Notes that what is asked for is what the peer suggested.
    pub fn note_guide(&mut self, now: Timestamp) {
        self.guided_until = Some(now + GUIDED);
    }

    /// Whether the peer is asked for nothing but what it suggests.
    pub fn is_guided(&mut self, now: Timestamp) -> bool {
        if self.guided_until.is_some_and(|until| until <= now) && self.pending.len() == self.late_count() {
            self.guided_until = None;
        }
        self.guided_until.is_some()
    }

    /// Since when a peer that owes a block in time has sent none.
    #[must_use]
    pub fn silent_since(&self) -> Option<Timestamp> {
        let oldest = self.pending.iter().find(|pending| !pending.is_late)?;
        Some(oldest.asked.max(self.last_block))
    }

    /// How long the peer may be silent: longer than it has been between the blocks so far.
    #[must_use]
    pub fn silence_limit(&self, settings: &RequestSettings) -> Duration {
        let (least, most) = (seconds(settings.silence_s), seconds(settings.block_timeout_s));
        (self.block_gap * 4).min(most).max(least)
    }

    /// Requests whose time is over.
    #[must_use]
    pub fn late_count(&self) -> usize {
        self.pending.iter().filter(|pending| pending.is_late).count()
    }

    /// Takes back a request that is pending, if it is; its answer may still come.
    pub fn cancel(&mut self, request: BlockRequest) -> Option<Pending> {
        let pending = self.answer(request)?;
        self.remember_cancelled(request);
        Some(pending)
    }

    /// Whether `request` was cancelled and not answered since; answered by this call.
    pub fn answer_cancelled(&mut self, request: BlockRequest) -> bool {
        let position = self.cancelled.iter().position(|cancelled| *cancelled == request);
        position.and_then(|position| self.cancelled.remove(position)).is_some()
    }

    /// Takes out all requests; their answers may still come.
    pub fn cancel_all(&mut self) -> Vec<Pending> {
        let pending: Vec<Pending> = self.pending.drain(..).collect();
        pending
            .iter()
            .for_each(|pending| self.remember_cancelled(pending.request));
        pending
    }

    fn remember_cancelled(&mut self, request: BlockRequest) {
        if self.cancelled.len() == MAX_CANCELLED {
            self.cancelled.pop_front();
        }
        self.cancelled.push_back(request);
    }
}

/// The peers from which more may be requested: the picker visits these and no others.
#[derive(Resource, Debug, Default)]
pub struct RefillQueue {
    peers: Vec<Entity>,
    /// Those that have been silent come after all others, so that they don't take the memory that others wait for.
    silent: Vec<Entity>,
}

impl RefillQueue {
    /// Lists a peer, once.
    pub fn add(&mut self, peer: Entity, requests: &mut Requests) {
        if !requests.is_listed {
            requests.is_listed = true;
            match requests.is_silent {
                true => self.silent.push(peer),
                false => self.peers.push(peer),
            }
        }
    }

    /// Takes all peers out; call [`Requests::unlist`] on each.
    pub fn take(&mut self) -> Vec<Entity> {
        self.peers.append(&mut self.silent);
        std::mem::take(&mut self.peers)
    }
}

impl Requests {
    /// Notes that the peer is no longer in the refill queue.
    pub fn unlist(&mut self) {
        self.is_listed = false;
    }
}

/// How many requests to keep outstanding: enough to cover bandwidth times delay, and no more.
///
/// Grows by one for each block, so that it doubles every round trip, until the speed stops growing; after that it
/// follows the speed.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueueDepth {
    target: u32,
    is_steady: bool,
    measured: Timestamp,
    measured_bytes_per_s: u64,
}

/// How often the depth is compared with the speed.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

impl QueueDepth {
    /// Requests to keep outstanding.
    #[must_use]
    pub fn target(&self, settings: &RequestSettings) -> u32 {
        let target = if self.target == 0 {
            settings.initial_depth
        } else {
            self.target
        };
        target.clamp(1, settings.max_depth)
    }

    /// Counts a block that came at `now`, when the peer's speed was `bytes_per_s`.
    pub fn on_block(&mut self, now: Timestamp, bytes_per_s: u64, settings: &RequestSettings) {
        if !self.is_steady {
            self.target = self.target(settings).saturating_add(1).min(settings.max_depth);
        }
        if now.since(self.measured) < MEASURE_INTERVAL {
            return;
        }
        // Ten percent more than a second ago is growth; less is noise.
        self.is_steady |= self.measured_bytes_per_s > 0 && bytes_per_s < self.measured_bytes_per_s / 10 * 11;
        self.measured = now;
        self.measured_bytes_per_s = bytes_per_s;
        if self.is_steady {
            let in_time = bytes_per_s as f64 * millis(settings.queue_ms).as_secs_f64();
            let blocks = (in_time / f64::from(BLOCK_SIZE)).ceil() as u32;
            self.target = blocks.clamp(settings.min_depth, settings.max_depth);
        }
    }

    /// Starts over small, for a peer that did not deliver.
    pub fn shrink(&mut self, settings: &RequestSettings) {
        *self = Self {
            target: settings.min_depth,
            ..Self::default()
        };
    }
}

/// A peer's requests to us.
#[derive(Component, Debug, Default)]
pub struct UploadQueue {
    /// Admitted, not read from the disk yet.
    pub waiting: VecDeque<BlockRequest>,
    /// Being read: what is left of it when the read has ended is sent.
    pub reading: Vec<BlockRequest>,
    /// Pieces that it may request while we choke it.
    pub allowed_fast: AllowedFast,
    /// Bytes read for it, or being read, that have not left; counted in [`UploadMemory`].
    pub charged_bytes: u64,
    /// When all that it had asked for had been sent.
    pub emptied: Timestamp,
    /// Whether the peer is in the serve queue.
    is_listed: bool,
}

/// Pieces that a peer may request while we choke it (BEP 6), and how often it has had each of their blocks.
///
/// BEP 6 lets us reject what has been sent already. Without that, one block could be asked for again and again, by a peer
/// that nobody chose to serve.
#[derive(Debug, Default)]
pub struct AllowedFast {
    pieces: SmallVec<[AllowedPiece; 2]>,
}

#[derive(Debug)]
struct AllowedPiece {
    index: u32,
    /// By block; none where nothing has been asked for.
    served: Vec<u8>,
}

impl AllowedFast {
    /// These pieces, of which nothing has been served.
    #[must_use]
    pub fn new(pieces: &[u32]) -> Self {
        let fresh = |index: &u32| AllowedPiece {
            index: *index,
            served: Vec::new(),
        };
        Self {
            pieces: pieces.iter().map(fresh).collect(),
        }
    }

    /// Counts a request of a choked peer; false, and nothing counted, where its piece is none of these, or a block that
    /// it touches has been served `copies` times. The request lies within its piece.
    pub fn take(&mut self, request: BlockRequest, copies: u8) -> bool {
        let Some(piece) = self.pieces.iter_mut().find(|piece| piece.index == request.piece) else {
            return false;
        };
        let end = request.begin.saturating_add(request.len).div_ceil(BLOCK_SIZE) as usize;
        let blocks = (request.begin / BLOCK_SIZE) as usize..end;
        if piece.served.len() < end {
            piece.served.resize(end, 0);
        }
        let served = &mut piece.served[blocks];
        let has_left = served.iter().all(|count| *count < copies);
        if has_left {
            served.iter_mut().for_each(|count| *count += 1);
        }
        has_left
    }
}

/// The peers whose requests may be served: uploading visits these and no others.
#[derive(Resource, Debug, Default)]
pub struct ServeQueue {
    peers: VecDeque<Entity>,
}

impl ServeQueue {
    /// Lists a peer, once.
    pub fn add(&mut self, peer: Entity, uploads: &mut UploadQueue) {
        if !uploads.is_listed {
            uploads.is_listed = true;
            self.peers.push_back(peer);
        }
    }

    /// Takes the peer that has waited longest; call [`UploadQueue::unlist`] on it.
    pub fn pop(&mut self) -> Option<Entity> {
        self.peers.pop_front()
    }

    /// Number of peers listed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether no peer is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }
}

/// The peers that have all that they asked for, or all that a seed meant for them: choking looks whether somebody else
/// could use their slots.
#[derive(Resource, Debug, Default)]
pub struct EmptiedUploads(pub Vec<Entity>);

/// Bytes read for peers, or being read, that have not left, against
/// [`memory_bytes`](crate::settings::UploadSettings::memory_bytes).
#[derive(Resource, Debug, Default)]
pub struct UploadMemory {
    used_bytes: u64,
}

impl UploadMemory {
    /// Bytes counted in now.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Whether more may be read.
    #[must_use]
    pub fn has_room(&self, settings: &UploadSettings) -> bool {
        self.used_bytes < settings.memory_bytes
    }

    /// Bytes that may be read for this peer next, none for now: its share is a quarter of what is left, so that peers
    /// that take nothing, each come after the other, can't hold all of it. Who holds something reads in whole steps;
    /// who holds nothing gets at least a little as long as there is room.
    #[must_use]
    pub fn room_for(&self, uploads: &UploadQueue, settings: &UploadSettings) -> Option<u32> {
        let left = settings.memory_bytes.saturating_sub(self.used_bytes);
        let share = (left / 4).min(settings.peer_memory_bytes);
        let step = settings.read_bytes;
        if uploads.charged_bytes == 0 {
            // At most `step`, which fits.
            (left > 0).then_some(share.min(step.into()) as u32)
        } else {
            (uploads.charged_bytes + u64::from(step) <= share).then_some(step)
        }
    }

    /// Counts bytes in that are read for a peer.
    pub fn charge(&mut self, uploads: &mut UploadQueue, bytes: u64) {
        uploads.charged_bytes += bytes;
        self.used_bytes += bytes;
    }

    /// Counts bytes out that have left for a peer, or will not.
    pub fn release(&mut self, uploads: &mut UploadQueue, bytes: u64) {
        let bytes = bytes.min(uploads.charged_bytes);
        uploads.charged_bytes -= bytes;
        self.used_bytes -= bytes;
    }
}

impl UploadQueue {
    /// Whether it wants nothing at the moment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.charged_bytes == 0 && self.waiting.is_empty()
    }

    /// Takes a request back; true if it was there.
    pub fn cancel(&mut self, request: BlockRequest) -> bool {
        if let Some(position) = self.waiting.iter().position(|waiting| *waiting == request) {
            self.waiting.remove(position);
            return true;
        }
        let position = self.reading.iter().position(|reading| *reading == request);
        position.map(|position| self.reading.swap_remove(position)).is_some()
    }

    /// Notes that the peer is no longer in the serve queue.
    pub fn unlist(&mut self) {
        self.is_listed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(begin: u32) -> BlockRequest {
        BlockRequest {
            piece: 0,
            begin,
            len: BLOCK_SIZE,
        }
    }

    fn pending(begin: u32) -> Pending {
        Pending {
            piece: Entity::from_raw_u32(1).unwrap(),
            block: begin / BLOCK_SIZE,
            request: request(begin),
            asked: Timestamp::ZERO,
            is_late: false,
        }
    }

    /// Fault 25: they read nothing of what was read for them.
    #[test]
    fn peers_that_come_one_after_the_other_leave_memory_to_others() {
        let settings = UploadSettings::default();
        let mut memory = UploadMemory::default();
        for peer in 0..20 {
            let mut uploads = UploadQueue::default();
            let mut held = 0;
            while let Some(most) = memory.room_for(&uploads, &settings) {
                let bytes = u64::from(most.max(BLOCK_SIZE));
                memory.charge(&mut uploads, bytes);
                held += bytes;
            }
            assert!(held > 0, "nothing for peer {peer}");
            assert!(held <= settings.peer_memory_bytes);
        }
        assert!(memory.used_bytes() < settings.memory_bytes);
    }

    #[test]
    fn a_choked_peer_gets_each_block_of_few_pieces_a_few_times() {
        let mut allowed = AllowedFast::new(&[0, 7]);
        let ask = |piece, begin, len| BlockRequest { piece, begin, len };
        let mut count = |request| (0..100).filter(|_| allowed.take(request, 2)).count();
        assert_eq!(count(ask(1, 0, BLOCK_SIZE)), 0, "not allowed");
        assert_eq!(count(ask(0, 0, BLOCK_SIZE)), 2);
        assert_eq!(count(ask(7, 0, BLOCK_SIZE)), 2, "each piece by itself");
        assert_eq!(count(ask(0, BLOCK_SIZE, 1)), 2);
        assert_eq!(count(ask(0, BLOCK_SIZE + 1, 1)), 0, "parts count as blocks");
        assert_eq!(count(ask(0, 0, 4 * BLOCK_SIZE)), 0, "and so do several at once");
        assert_eq!(count(ask(0, 3 * BLOCK_SIZE - 1, 2)), 2);
        assert_eq!(count(ask(0, 2 * BLOCK_SIZE, BLOCK_SIZE)), 0);
    }

    /// Fault 28: the answer to a cancelled request is recognized, once.
    #[test]
    fn late_answers_are_recognized_once() {
        let mut requests = Requests::default();
        requests.pending.extend([pending(0), pending(BLOCK_SIZE)]);
        assert_eq!(requests.cancel(request(BLOCK_SIZE)), Some(pending(BLOCK_SIZE)));
        assert_eq!(requests.answer(request(BLOCK_SIZE)), None);
        assert!(requests.answer_cancelled(request(BLOCK_SIZE)));
        assert!(!requests.answer_cancelled(request(BLOCK_SIZE)));
        assert_eq!(requests.cancel_all(), [pending(0)]);
        assert!(requests.answer_cancelled(request(0)));
    }

    #[test]
    fn who_has_been_slow_may_be_silent_for_longer() {
        let settings = RequestSettings::default();
        let at = |seconds: u64| Timestamp::ZERO + Duration::from_secs(seconds);
        let mut requests = Requests::default();
        requests.pending.push_back(pending(0));
        assert_eq!(requests.silent_since(), Some(at(0)));
        assert_eq!(requests.silence_limit(&settings), seconds(settings.silence_s));
        for number in 1..20 {
            requests.note_block(at(number * 3), &pending(0));
        }
        assert_eq!(requests.silent_since(), Some(at(57)));
        let limit = requests.silence_limit(&settings);
        assert!(limit > seconds(11) && limit < seconds(13), "{limit:?}");
        requests.note_block(at(1000), &pending(0));
        assert_eq!(requests.silence_limit(&settings), seconds(settings.block_timeout_s));
        requests.pending[0].is_late = true;
        assert_eq!(requests.silent_since(), None, "it has let its time pass");
    }

    #[test]
    fn depth_grows_until_the_speed_does_not() {
        let settings = RequestSettings::default();
        let mut depth = QueueDepth::default();
        assert_eq!(depth.target(&settings), 16);
        let at = |millis: u64| Timestamp::ZERO + Duration::from_millis(millis);
        (0..10).for_each(|i| depth.on_block(at(i), 0, &settings));
        assert_eq!(depth.target(&settings), 26);
        depth.on_block(at(1000), 1_000_000, &settings);
        depth.on_block(at(2000), 2_000_000, &settings);
        assert_eq!(depth.target(&settings), 28, "still growing");
        depth.on_block(at(3000), 2_000_000, &settings);
        // 2 MB/s for 1.5 s are 184 blocks.
        assert_eq!(depth.target(&settings), 184);
        depth.on_block(at(4000), 1000, &settings);
        assert_eq!(depth.target(&settings), settings.min_depth);
        depth.on_block(at(5000), u64::MAX, &settings);
        assert_eq!(depth.target(&settings), settings.max_depth);
        depth.shrink(&settings);
        assert_eq!(depth.target(&settings), settings.min_depth);
    }
}
