//! Requests in both directions: ours to a peer and a peer's to us.

use std::collections::VecDeque;
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::geometry::{BLOCK_SIZE, BlockRequest};
use ecs_torrent_protocol::time::Timestamp;
use smallvec::SmallVec;

use crate::settings::{RequestSettings, UploadSettings, millis, seconds};
use crate::work_list::{Listed, WorkList};

/// Maximum number of canceled requests whose late answers are still recognized.
const MAX_CANCELED: usize = 256;

/// A request that a peer has not answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// The piece in flight.
    pub piece: Entity,
    /// Index of the block in the piece.
    pub block: u32,
    /// The requested block.
    pub request: BlockRequest,
    /// When the request was sent.
    pub requested_at: Timestamp,
    /// The request timed out, or was a probe; the block may be requested from other peers.
    pub is_late: bool,
}

/// Time that a peer that super-seeds by suggestions has for the next suggestion, after the last suggested block.
const SUGGESTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Minimum of [`Requests::endgame_patience`].
const LEAST_PATIENCE: Duration = Duration::from_millis(20);

/// Endgame patience for a peer that has sent no block yet: longer than the round trips of nearly all paths.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(1);

/// Requests in a shallow pipeline, relative to those in transit at the present rate: some more, so that the rate can
/// grow.
const SHALLOW_GAIN: f64 = 1.25;

/// Fewest requests in a shallow pipeline: enough for a peer that was idle to begin quickly.
const LEAST_SHALLOW: u32 = 6;

/// Our requests to a peer.
#[derive(Component, Debug, Default)]
pub struct Requests {
    /// Unanswered requests, oldest first.
    pending: VecDeque<Pending>,
    /// Canceled requests that may still be answered; such a block is dropped without blame.
    canceled: VecDeque<Pending>,
    /// Number of requests to keep in flight.
    pub depth: QueueDepth,
    /// The piece that was last started or continued for this peer, to continue with.
    pub current: Option<Entity>,
    /// Index of the piece that was last started for this peer.
    pub last_begun: Option<u32>,
    /// Pieces that may be requested while choked (BEP 6).
    pub allowed_fast: Vec<u32>,
    /// Pieces that this peer suggested (BEP 6) and that we have not started, oldest first.
    pub suggested: VecDeque<u32>,
    /// While the peer super-seeds by suggestions: the time by which the next suggestion or suggested block is due.
    /// Until then, and as long as the peer owes blocks, only suggested pieces are requested from it.
    suggestion_due: Option<Timestamp>,
    /// When the peer is considered again, if that is scheduled.
    resume_at: Option<Timestamp>,
    /// Pieces that this peer sent corrupt; they are not requested from it again.
    pub refused_pieces: Vec<u32>,
    /// Whether the peer is listed to wait for a block or memory to become free.
    pub starved: Listed,
    /// Whether the peer is in the refill queue.
    listed: Listed,
    /// Whether a deadline is set for the oldest request.
    pub has_deadline: bool,
    /// Nothing is requested until this time, because the peer rejected our requests.
    pub paused_until: Timestamp,
    /// Number of unsolicited blocks from the peer.
    pub unsolicited_count: u32,
    /// When the last requested block arrived.
    pub last_block: Timestamp,
    /// Time between two blocks, smoothed.
    block_gap: Duration,
    /// Number of requested blocks that have arrived.
    answered_count: u64,
    /// Time from a request to its block, smoothed; zero before the first block.
    answer_time: Duration,
    /// The shortest time from a request to its block.
    least_answer_time: Duration,
    /// The peer timed out and has sent nothing since.
    pub is_silent: bool,
    /// Until this time, no piece is assigned to the peer exclusively, because it was silent.
    pub distrusted_until: Timestamp,
    /// Until this time some piece is withheld from the peer, because the peer failed to send it.
    pub withheld_until: Timestamp,
}

impl Requests {
    /// Returns the unanswered requests, oldest first.
    #[must_use]
    pub fn pending(&self) -> &VecDeque<Pending> {
        &self.pending
    }

    /// Adds a request that is being sent.
    pub fn add(&mut self, pending: Pending) {
        self.pending.push_back(pending);
    }

    /// Records that a request timed out. Returns false if it is not pending.
    pub fn mark_late(&mut self, late: &Pending) -> bool {
        let pending = self.pending.iter_mut().find(|pending| *pending == late);
        pending.map(|pending| pending.is_late = true).is_some()
    }

    /// Schedules that the peer is considered again at `at`. Returns false if that happens earlier anyway, so that each
    /// peer has at most one useful timer.
    #[must_use]
    pub fn schedule_resume(&mut self, at: Timestamp) -> bool {
        let is_earlier = self.resume_at.is_none_or(|known| at < known);
        if is_earlier {
            self.resume_at = Some(at);
        }
        is_earlier
    }

    /// Records that a resume timer has fired. Returns false if another timer has replaced it.
    #[must_use]
    pub fn resume(&mut self, now: Timestamp) -> bool {
        self.resume_at.take_if(|at| *at <= now).is_some()
    }

    /// Removes the request that a block answers. Searches from the oldest, which is nearly always the match.
    pub fn answer(&mut self, request: BlockRequest) -> Option<Pending> {
        let position = self.pending.iter().position(|pending| pending.request == request)?;
        self.pending.remove(position)
    }

    /// Records that the block of a request has arrived.
    pub fn record_block(&mut self, now: Timestamp, pending: &Pending) {
        let gap = now.since(self.last_block.max(pending.requested_at));
        self.block_gap = (self.block_gap * 3 + gap) / 4;
        let took = now.since(pending.requested_at);
        match self.answered_count {
            0 => self.answer_time = took,
            _ => self.smooth_answer_time(took),
        }
        self.least_answer_time = match self.answered_count {
            0 => took,
            _ => self.least_answer_time.min(took),
        };
        self.answered_count += 1;
        self.last_block = now;
        if let Some(due) = &mut self.suggestion_due {
            *due = now + SUGGESTION_TIMEOUT;
        }
        self.is_silent = false;
        self.distrusted_until = Timestamp::ZERO;
    }

    /// Records that we request a piece that the peer suggested: from now on we follow its suggestions.
    pub fn record_suggested_request(&mut self, now: Timestamp) {
        self.suggestion_due = Some(now + SUGGESTION_TIMEOUT);
    }

    /// Stops following the peer's suggestions if the next one is overdue and the peer owes no block.
    pub fn expire_suggestions(&mut self, now: Timestamp) {
        if self.suggestion_timeout().is_some_and(|due| due <= now) {
            self.suggestion_due = None;
        }
    }

    /// Stops following the peer's suggestions.
    pub fn stop_following(&mut self) {
        self.suggestion_due = None;
    }

    /// Returns whether only suggested pieces are requested from the peer.
    #[must_use]
    pub fn follows_suggestions(&self) -> bool {
        self.suggestion_due.is_some()
    }

    /// Returns when we stop following the peer's suggestions, if no further one comes. While the peer owes a block, we
    /// do not.
    #[must_use]
    pub fn suggestion_timeout(&self) -> Option<Timestamp> {
        let owes_block = || self.pending.len() > self.late_count();
        self.suggestion_due.filter(|_| !owes_block())
    }

    /// Returns the start of the silence of a peer that owes a block; requests that timed out do not count.
    #[must_use]
    pub fn silent_since(&self) -> Option<Timestamp> {
        let oldest = self.pending.iter().find(|pending| !pending.is_late)?;
        Some(oldest.requested_at.max(self.last_block))
    }

    /// Returns how long the peer may be silent: longer than its previous gaps between blocks.
    #[must_use]
    pub fn silence_limit(&self, settings: &RequestSettings) -> Duration {
        let (least, most) = (seconds(settings.silence_s), seconds(settings.block_timeout_s));
        (self.block_gap * 4).min(most).max(least)
    }

    /// Number of requested blocks that have arrived.
    #[must_use]
    pub fn answered_count(&self) -> u64 {
        self.answered_count
    }

    /// Whether the peer has sent a requested block, which shows its speed.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.answered_count > 0
    }

    /// Returns how long the peer takes for a block at present; zero before its first one.
    #[must_use]
    pub fn answer_time(&self, now: Timestamp) -> Duration {
        // An outstanding request takes at least as long as it has taken already.
        let oldest = self.pending.iter().find(|pending| !pending.is_late);
        let taken = oldest.map_or(Duration::ZERO, |oldest| now.since(oldest.requested_at));
        match self.has_answered() {
            true => self.answer_time.max(taken),
            false => Duration::ZERO,
        }
    }

    /// Minimum age of a request to another peer before the block is requested from this peer too: twice the time that
    /// this peer takes for a block. If our own downlink is the bottleneck, a duplicate request would only make the wait
    /// longer.
    #[must_use]
    pub fn endgame_patience(&self, now: Timestamp) -> Duration {
        match self.has_answered() {
            true => (self.answer_time(now) * 2).max(LEAST_PATIENCE),
            false => UNKNOWN_PATIENCE,
        }
    }

    /// Returns the number of requests that keep the peer busy and make no long queue at the peer, for a download at
    /// this rate: a block that is requested now arrives about a round trip later. Unlimited while the rate still grows.
    #[must_use]
    pub fn shallow_depth(&self, bytes_per_s: u64) -> u32 {
        if !self.depth.is_steady {
            return u32::MAX;
        }
        let in_flight = bytes_per_s as f64 * self.least_answer_time.as_secs_f64() / f64::from(BLOCK_SIZE);
        ((in_flight * SHALLOW_GAIN).ceil() as u32).max(LEAST_SHALLOW)
    }

    /// Cancels a request whose block another peer has sent: this peer would have taken at least as long as it has taken
    /// already. Returns false if the request is not pending.
    pub fn cancel_overtaken(&mut self, request: BlockRequest, now: Timestamp) -> bool {
        let Some(pending) = self.cancel(request) else {
            return false;
        };
        if self.has_answered() {
            self.answer_time = self.answer_time.max(now.since(pending.requested_at));
        }
        true
    }

    /// Number of requests that timed out or were probes.
    #[must_use]
    pub fn late_count(&self) -> usize {
        self.pending.iter().filter(|pending| pending.is_late).count()
    }

    /// Cancels a pending request, if there is one; its answer may still arrive.
    pub fn cancel(&mut self, request: BlockRequest) -> Option<Pending> {
        let pending = self.answer(request)?;
        self.remember_canceled(pending);
        Some(pending)
    }

    /// Removes the canceled request that a block or reject answers.
    pub fn answer_canceled(&mut self, request: BlockRequest) -> Option<Pending> {
        let position = self.canceled.iter().position(|pending| pending.request == request)?;
        self.canceled.remove(position)
    }

    /// Records that the block of a canceled request has arrived. A peer whose requests are all canceled because it was
    /// slow would otherwise count as slow forever.
    pub fn record_canceled_block(&mut self, now: Timestamp, pending: &Pending) {
        if self.has_answered() {
            self.smooth_answer_time(now.since(pending.requested_at));
        }
    }

    fn smooth_answer_time(&mut self, took: Duration) {
        self.answer_time = (self.answer_time * 7 + took) / 8;
    }

    /// Cancels all requests; their answers may still arrive.
    pub fn cancel_all(&mut self) -> Vec<Pending> {
        let pending: Vec<Pending> = self.pending.drain(..).collect();
        pending.iter().for_each(|pending| self.remember_canceled(*pending));
        pending
    }

    fn remember_canceled(&mut self, pending: Pending) {
        if self.canceled.len() == MAX_CANCELED {
            self.canceled.pop_front();
        }
        self.canceled.push_back(pending);
    }
}

/// The peers from which more may be requested; the picker visits only these.
#[derive(Resource, Debug, Default)]
pub struct RefillQueue {
    peers: WorkList<Requests>,
    /// Silent peers come last, so that they do not take the memory that others wait for.
    silent: WorkList<Requests>,
}

impl RefillQueue {
    /// Lists a peer, at most once.
    pub fn add(&mut self, peer: Entity, requests: &mut Requests) {
        let list = if requests.is_silent {
            &mut self.silent
        } else {
            &mut self.peers
        };
        list.add(peer, &mut requests.listed);
    }

    /// Removes and returns the next peer; call [`Requests::unlist`] on it.
    pub fn pop(&mut self) -> Option<Entity> {
        self.peers.pop().or_else(|| self.silent.pop())
    }

    /// Whether no peer is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.silent.is_empty()
    }
}

impl Requests {
    /// Records that the peer is no longer in the refill queue.
    pub fn unlist(&mut self) {
        self.listed.clear();
    }
}

/// Number of requests to keep in flight: enough to cover the bandwidth-delay product, and no more.
///
/// The depth grows by one for each block, so that it doubles every round trip, until the rate stops growing. After that
/// it follows the rate.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueueDepth {
    target: u32,
    is_steady: bool,
    measured: Timestamp,
    measured_bytes_per_s: u64,
}

/// Interval at which the depth is compared with the rate.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

impl QueueDepth {
    /// Returns the number of requests to keep in flight.
    #[must_use]
    pub fn target(&self, settings: &RequestSettings) -> u32 {
        let target = if self.target == 0 {
            settings.initial_depth
        } else {
            self.target
        };
        target.clamp(1, settings.max_depth)
    }

    /// Records a block that arrived at `now`, at a download rate of `bytes_per_s`.
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

    /// Resets to the minimum depth, for a peer that did not deliver.
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
    /// Admitted requests that are not read from the disk yet.
    pub waiting: VecDeque<BlockRequest>,
    /// Requests that are being read. When the read ends, the requests that are left here are answered.
    pub reading: Vec<BlockRequest>,
    /// Pieces that the peer may request while we choke it.
    pub allowed_fast: AllowedFast,
    /// Bytes read or being read for the peer and not yet sent; counted in [`UploadMemory`].
    pub charged_bytes: u64,
    /// When the last request in flight was answered.
    pub emptied: Timestamp,
    /// Whether the peer is in the middle of a piece: its last admitted request was not for the end of one.
    pub is_mid_piece: bool,
    /// Whether the peer is in the serve queue, or waits for its torrent's limit.
    listed: Listed,
}

/// Pieces that a choked peer may request (BEP 6), and how often each of their blocks was served.
///
/// BEP 6 lets us reject blocks that were sent already. Otherwise a peer could request one block again and again without
/// being unchoked.
#[derive(Debug, Default)]
pub struct AllowedFast {
    pieces: SmallVec<[AllowedPiece; 2]>,
}

#[derive(Debug)]
struct AllowedPiece {
    index: u32,
    /// Count by block; empty if nothing has been requested.
    served: Vec<u8>,
}

impl AllowedFast {
    /// Creates the set of these pieces, with nothing served.
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

    /// Counts a request of a choked peer. Returns false, and counts nothing, if the piece is not in the set, or a block
    /// that the request touches has been served `copies` times. The request lies within its piece.
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

/// The peers whose requests may be served; uploading visits only these.
#[derive(Resource, Debug, Default)]
pub struct ServeQueue(WorkList<UploadQueue>);

impl ServeQueue {
    /// Lists a peer, at most once.
    pub fn add(&mut self, peer: Entity, uploads: &mut UploadQueue) {
        self.0.add(peer, &mut uploads.listed);
    }

    /// Removes and returns the peer that has waited longest; call [`UploadQueue::unlist`] on it.
    pub fn pop(&mut self) -> Option<Entity> {
        self.0.pop()
    }

    /// Number of peers listed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no peer is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Peers that have received all the blocks they requested, or all the pieces that super-seeding assigned to them.
/// Choking checks whether other peers can use their slots.
#[derive(Resource, Debug, Default)]
pub struct EmptiedUploads(pub Vec<Entity>);

/// Bytes read or being read for peers and not yet sent, limited by
/// [`memory_bytes`](crate::settings::UploadSettings::memory_bytes).
#[derive(Resource, Debug, Default)]
pub struct UploadMemory {
    used_bytes: u64,
}

impl UploadMemory {
    /// Number of bytes in use.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Whether more may be read.
    #[must_use]
    pub fn has_room(&self, settings: &UploadSettings) -> bool {
        self.used_bytes < settings.memory_bytes
    }

    /// Returns the number of bytes that may be read for this peer next; `None` if it has to wait. The peer's share is a
    /// quarter of the rest, so that a succession of peers that read nothing cannot hold all of it. A peer that holds
    /// some memory reads in whole steps; a peer that holds none gets at least a little while there is room.
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

    /// Reserves bytes that are read for a peer.
    pub fn charge(&mut self, uploads: &mut UploadQueue, bytes: u64) {
        uploads.charged_bytes += bytes;
        self.used_bytes += bytes;
    }

    /// Releases bytes that were sent to a peer or are no longer needed.
    pub fn release(&mut self, uploads: &mut UploadQueue, bytes: u64) {
        let bytes = bytes.min(uploads.charged_bytes);
        uploads.charged_bytes -= bytes;
        self.used_bytes -= bytes;
    }
}

impl UploadQueue {
    /// Whether the peer has no request and no unsent block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.charged_bytes == 0 && self.waiting.is_empty()
    }

    /// Cancels a request; true if it was waiting.
    pub fn cancel(&mut self, request: BlockRequest) -> bool {
        if let Some(position) = self.waiting.iter().position(|waiting| *waiting == request) {
            self.waiting.remove(position);
            return true;
        }
        let position = self.reading.iter().position(|reading| *reading == request);
        position.map(|position| self.reading.swap_remove(position)).is_some()
    }

    /// Records that the peer is no longer in the serve queue, or no longer waits for its torrent's limit.
    pub fn unlist(&mut self) {
        self.listed.clear();
    }

    /// Lists the peer among those that wait for their torrent's limit, instead of in the serve queue.
    pub fn wait_in(&mut self, peer: Entity, waiting: &mut WorkList<Self>) {
        waiting.add(peer, &mut self.listed);
    }
}

#[cfg(test)]
mod tests;
