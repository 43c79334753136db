//! The choice of the next block to request from a peer, as a plain function.

use std::time::Duration;

use bevy_ecs::entity::Entity;
use ecs_torrent_components::peer::{PeerPieces, Requests};
use ecs_torrent_components::piece::{ActivePiece, PiecePhase};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::readers::PieceDeadlines;
use ecs_torrent_components::settings::RequestSettings;
use ecs_torrent_components::torrent::ActivePieces;
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::time::Timestamp;

use super::rarity::RarityOrder;

/// Maximum number of requests in flight to a peer from which blocks of other peers' requests are requested too.
const ENDGAME_DEPTH: usize = 64;

/// If a block was requested this many times longer ago than a peer's patience, the peers that owe the block are much
/// slower than this peer.
const SLOW_FACTOR: u32 = 2;

/// Minimum time for which a peer keeps an exclusive piece, because its blocks are dropped when it loses the piece.
const LEAST_HOLD: Duration = Duration::from_secs(1);

/// A peer that takes this many times longer for a block than the fastest one leaves urgent pieces to others. The times
/// of equal peers differ by less.
const MUCH_SLOWER: u32 = 4;

/// Time before its deadline from which on a piece is due.
const URGENCY: Duration = Duration::from_secs(1);

/// A block that another peer sends within this time is not requested a second time for a reader.
const LEAST_GAIN: Duration = Duration::from_millis(500);

/// Time after its deadline from which on a piece is requested from slow peers too.
const OVERDUE: Duration = Duration::from_secs(1);

/// Time after which the endgame is considered again while downloads are limited.
const LIMITED_PAUSE: Duration = Duration::from_secs(2);

/// The data of a peer that the choice uses.
#[derive(Debug, Clone, Copy)]
pub struct PeerView<'a> {
    /// The peer.
    pub peer: Entity,
    /// The peer's pieces.
    pub has: &'a PeerPieces,
    /// Our requests to the peer.
    pub requests: &'a Requests,
    /// The peer chokes us.
    pub is_choked: bool,
    /// The peer has no late requests and has not recently been silent.
    pub is_trusted: bool,
    /// The peer is so slow that it shares pieces with other peers.
    pub prefers_sharing: bool,
}

/// The data of a torrent that the choice uses.
#[derive(Debug, Clone, Copy)]
pub struct TorrentView<'a, P, M> {
    /// The time of the choice.
    pub now: Timestamp,
    /// Sizes of the torrent's pieces.
    pub geometry: &'a Geometry,
    /// The pieces that can be begun.
    pub order: &'a RarityOrder,
    /// The pieces in flight.
    pub active: &'a ActivePieces,
    /// Returns a piece in flight.
    pub piece: P,
    /// Whether there is memory for a piece of this length.
    pub has_memory: M,
    /// Limits of requests.
    pub settings: &'a RequestSettings,
    /// Blocks wait for the limit on downloads: a second copy of a block would not arrive sooner.
    pub is_limited: bool,
    /// The pieces that readers need next.
    pub deadlines: Option<&'a PieceDeadlines>,
    /// How long the fastest peer takes for a block. Known while there are deadlines.
    pub best_answer_time: Duration,
}

/// The decision for one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Choice {
    /// The blocks to request.
    pub pick: Option<Pick>,
    /// Length of a piece that would have been begun if there were memory for it.
    pub wants_memory: Option<u32>,
    /// The peer waits for blocks to become free.
    pub is_starved: bool,
    /// When a block may become available for the peer, if there is none now.
    pub again: Option<Timestamp>,
    /// A piece that a much slower peer sends exclusively, and that this peer gets if it is taken away.
    pub overtaken: Option<Entity>,
}

/// Blocks to request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// A block of a piece in flight, and the free blocks after it.
    Active {
        /// The piece.
        piece: Entity,
        /// The block.
        block: u32,
        /// Why the block was picked.
        reason: Reason,
    },
    /// The blocks of a piece that is to be begun.
    New {
        /// Index of the piece.
        index: u32,
        /// Why the piece was picked.
        reason: Reason,
    },
}

/// Why a block is requested from a peer, in the order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The peer sends it even while it chokes us (BEP 6).
    AllowedFast,
    /// A reader needs the piece.
    Deadline,
    /// The peer's current piece continues.
    Current,
    /// The peer suggested the piece, and no rarer one exists.
    Suggested,
    /// The piece was begun with another peer.
    Open,
    /// The piece is the rarest that can be begun.
    Rarest,
    /// The block is outstanding at other peers, and no piece can be begun: none is left, or there is no memory.
    Endgame,
}

/// The open pieces that are considered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    /// Pieces that no peer is downloading.
    Abandoned,
    /// All open pieces.
    Any,
}

/// The peers whose blocks are requested a second time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Helped {
    /// All peers that take longer than the patience of this one.
    All,
    /// Peers that have already used up much of this time, or are expected to take longer than this one's patience.
    Slow,
    /// Peers that take several times as long as this one, and at least [`LEAST_GAIN`] in all. Copies of other blocks
    /// would cost a reader more than they gain: this peer sends blocks of the next pieces meanwhile.
    MuchSlower,
}

/// Chooses what is requested next from a peer.
pub fn choose<'a, P, M>(peer: &PeerView<'_>, torrent: &TorrentView<'_, P, M>, random: &mut Random) -> Choice
where
    P: Fn(Entity) -> Option<&'a ActivePiece>,
    M: Fn(u32) -> bool,
{
    let chooser = Chooser { peer, torrent };
    match peer.is_choked {
        true => chooser.allowed_fast(),
        false => chooser.by_preference(random),
    }
}

struct Chooser<'v, 'p, 't, P, M> {
    peer: &'v PeerView<'p>,
    torrent: &'v TorrentView<'t, P, M>,
}

impl<'a, P, M> Chooser<'_, '_, '_, P, M>
where
    P: Fn(Entity) -> Option<&'a ActivePiece>,
    M: Fn(u32) -> bool,
{
    fn by_preference(&self, random: &mut Random) -> Choice {
        let requests = self.peer.requests;
        let mut choice = Choice::default();
        if let Some(deadlines) = self.torrent.deadlines
            && self.for_readers(deadlines, &mut choice)
        {
            return choice;
        }
        if let Some(piece) = requests.current
            && let Some(block) = self.free_block(piece)
        {
            return active(piece, block, Reason::Current).into();
        }
        let order = self.torrent.order;
        let mut rarest = None;
        if requests.suggested.iter().any(|piece| order.is_pickable(*piece)) {
            rarest = self.rarest_piece(random);
        }
        let suggested = rarest.filter(|index| requests.suggested.contains(index));
        if let Some(index) = suggested
            && self.begin(index, Reason::Suggested, &mut choice)
        {
            return choice;
        }
        if requests.follows_suggestions() {
            return choice;
        }
        let first = match self.peer.prefers_sharing {
            true => Open::Any,
            false => Open::Abandoned,
        };
        choice.pick = self.open_block(first);
        if choice.pick.is_some() {
            return choice;
        }
        if let Some(index) = rarest.or_else(|| self.rarest_piece(random))
            && self.begin(index, Reason::Rarest, &mut choice)
        {
            return choice;
        }
        choice.pick = self.open_block(Open::Any);
        if choice.pick.is_none() {
            choice.pick = self.endgame(choice.wants_memory.is_some(), &mut choice.again);
            choice.is_starved = choice.pick.is_none();
            if choice.is_starved {
                choice.overtaken = self.overtaken(&mut choice.again);
            }
        }
        choice
    }

    /// Picks a block of the pieces that readers need, in the order of their deadlines. Blocks of a piece that is due
    /// are also requested from a second peer, if the first one is slow. Returns false if nothing is picked.
    fn for_readers(&self, deadlines: &PieceDeadlines, choice: &mut Choice) -> bool {
        let (now, order) = (self.torrent.now, self.torrent.order);
        for (due, index) in deadlines.iter() {
            if !self.offers(index) || self.is_too_slow(due, index) {
                continue;
            }
            match self.torrent.active.all.get(&index) {
                Some(&piece) => {
                    let free = self.free_block(piece);
                    choice.pick = free.map(|block| active(piece, block, Reason::Deadline));
                    if choice.pick.is_none() && due <= now + URGENCY {
                        choice.pick = self.second_copy(std::iter::once(piece), Helped::MuchSlower, &mut choice.again);
                    }
                }
                None if order.is_pickable(index) => {
                    self.begin(index, Reason::Deadline, choice);
                }
                None => {}
            }
            if choice.pick.is_some() {
                return true;
            }
        }
        false
    }

    /// Whether the peer would send a block after its deadline, and a faster peer may send it in time. A piece that is
    /// overdue, or that few peers have, is requested from any peer.
    fn is_too_slow(&self, due: Timestamp, index: u32) -> bool {
        let (now, order) = (self.torrent.now, self.torrent.order);
        let takes = self.peer.requests.answer_time(now);
        let left = due.since(now).max(self.torrent.best_answer_time * MUCH_SLOWER);
        takes > left && now < due + OVERDUE && order.availability(index) > 2
    }

    /// Picks a piece to begin. Returns false if there is no memory for it.
    fn begin(&self, index: u32, reason: Reason, choice: &mut Choice) -> bool {
        let len = self.torrent.geometry.piece_size(index);
        let has_memory = (self.torrent.has_memory)(len);
        match has_memory {
            true => choice.pick = Some(Pick::New { index, reason }),
            false => choice.wants_memory = Some(len),
        }
        has_memory
    }

    /// Returns the next free block of a piece, if this peer may send it.
    fn free_block(&self, piece: Entity) -> Option<u32> {
        let piece = (self.torrent.piece)(piece)?;
        let is_open = piece.phase == PiecePhase::Filling && self.may_send(piece);
        if is_open { piece.next_free(self.peer.peer) } else { None }
    }

    /// Finds a free block of a piece that has already been begun.
    fn open_block(&self, which: Open) -> Option<Pick> {
        let pieces = self.torrent.active.open.iter();
        let mut pieces = pieces.filter_map(|index| self.torrent.active.all.get(index));
        pieces.find_map(|&entity| {
            let piece = (self.torrent.piece)(entity)?;
            if which == Open::Abandoned && piece.requested_count > 0 {
                return None;
            }
            Some(active(entity, self.free_block(entity)?, Reason::Open))
        })
    }

    /// Returns the rarest pickable piece. Among equally rare pieces, suggested ones come first, then the piece after
    /// the last one begun.
    fn rarest_piece(&self, random: &mut Random) -> Option<u32> {
        let requests = self.peer.requests;
        let accepts = |piece: u32| !requests.refused_pieces.contains(&piece);
        let extent = self.torrent.settings.extent_bytes;
        let neighbor = requests
            .last_begun
            .and_then(|last| next_in_extent(last, self.torrent.geometry, extent));
        let preferred = requests.suggested.iter().copied().chain(neighbor);
        self.torrent.order.pick(self.peer.has, preferred, random, accepts)
    }

    /// Finds a block of an allowed-fast piece, which the peer sends even while it chokes us (BEP 6).
    fn allowed_fast(&self) -> Choice {
        let mut choice = Choice::default();
        for &index in &self.peer.requests.allowed_fast {
            if !self.offers(index) {
                continue;
            }
            match self.torrent.active.all.get(&index) {
                Some(&piece) => {
                    let block = self.free_block(piece);
                    choice.pick = block.map(|block| active(piece, block, Reason::AllowedFast));
                }
                None if self.torrent.order.is_pickable(index) => {
                    self.begin(index, Reason::AllowedFast, &mut choice);
                }
                None => {}
            }
            if choice.pick.is_some() {
                break;
            }
        }
        choice
    }

    /// Finds a block to request from one more peer, once no piece can be begun. The block must take longer than this
    /// peer's own blocks, because the second copy is wasted, and must be requested from fewer peers than allowed; peers
    /// that are much slower than this one do not count. So a slow peer never keeps a block from a fast one for long.
    fn endgame(&self, wants_memory: bool, again: &mut Option<Timestamp>) -> Option<Pick> {
        let torrent = self.torrent;
        let is_endgame = wants_memory || torrent.order.pickable_count() == 0;
        if !is_endgame {
            return None;
        }
        let pieces = torrent.active.all.values().copied();
        // While pieces can be begun as soon as there is memory, only slow peers are helped.
        let helped = if wants_memory { Helped::Slow } else { Helped::All };
        self.second_copy(pieces, helped, again)
    }

    /// Finds a block of `pieces` that other peers owe, to request it from this peer too.
    fn second_copy(
        &self,
        pieces: impl Iterator<Item = Entity>,
        helped: Helped,
        again: &mut Option<Timestamp>,
    ) -> Option<Pick> {
        let (peer, torrent) = (self.peer, self.torrent);
        if peer.requests.pending().len() >= self.endgame_depth() {
            return None;
        }
        if torrent.is_limited {
            *again = Some(torrent.now + LIMITED_PAUSE);
            return None;
        }
        let patience = peer.requests.endgame_patience(torrent.now);
        let slow = patience * SLOW_FACTOR;
        let (patience, slow) = match helped {
            Helped::All | Helped::Slow => (patience, slow),
            Helped::MuchSlower => (slow.max(LEAST_GAIN), slow.max(LEAST_GAIN)),
        };
        let mut best: Option<(Entity, u32, usize)> = None;
        for entity in pieces {
            let Some(piece) = (torrent.piece)(entity) else { continue };
            if piece.phase != PiecePhase::Filling || piece.is_suspect || !self.may_send(piece) {
                continue;
            }
            for (block, slot) in (0..).zip(&piece.blocks) {
                if slot.received || slot.requested_from.contains(&peer.peer) || slot.late.contains(&peer.peer) {
                    continue;
                }
                // The peers that owe the block are much slower than this one, by earlier blocks or by this one.
                let is_slow = slot.expected_at > torrent.now + patience || slot.requested_at + slow <= torrent.now;
                let copies = if is_slow { 0 } else { slot.requested_from.len() };
                if best.is_some_and(|(_, _, least)| copies >= least) {
                    continue;
                }
                let waits = match copies >= torrent.settings.endgame_copies || helped != Helped::All {
                    true => slow,
                    false => patience,
                };
                let due = slot.requested_at + waits;
                if copies > 0 && due > torrent.now {
                    *again = Some(again.map_or(due, |other| other.min(due)));
                } else {
                    best = Some((entity, block, copies));
                }
            }
        }
        if best.is_some() {
            *again = None;
        }
        best.map(|(piece, block, _)| active(piece, block, Reason::Endgame))
    }

    /// Finds a piece that another peer sends exclusively, and so slowly that this peer is much faster. Blocks of such a
    /// piece are requested from no second peer, so the whole piece has to be taken away.
    fn overtaken(&self, again: &mut Option<Timestamp>) -> Option<Entity> {
        let (peer, torrent) = (self.peer, self.torrent);
        let is_endgame = torrent.order.pickable_count() == 0;
        if !is_endgame || torrent.is_limited || !peer.is_trusted || !peer.requests.has_answered() {
            return None;
        }
        let slow = (peer.requests.endgame_patience(torrent.now) * SLOW_FACTOR).max(LEAST_HOLD);
        for &entity in torrent.active.all.values() {
            let Some(piece) = (torrent.piece)(entity) else { continue };
            let is_open = piece.phase == PiecePhase::Filling && self.offers(piece.index);
            if !is_open || !piece.may_change_hands(peer.peer, torrent.now) {
                continue;
            }
            let owed = piece
                .blocks
                .iter()
                .filter(|slot| !slot.received && !slot.requested_from.is_empty());
            let Some((requested_at, expected_at)) = owed.map(|slot| (slot.requested_at, slot.expected_at)).min() else {
                continue;
            };
            let due = requested_at + slow;
            if due <= torrent.now || expected_at > torrent.now + slow {
                return Some(entity);
            }
            *again = Some(again.map_or(due, |other| other.min(due)));
        }
        None
    }

    /// Maximum number of requests in flight to the peer, if they include blocks that other peers owe. A peer earns each
    /// request with a block that it has sent.
    fn endgame_depth(&self) -> usize {
        let earned = usize::try_from(self.peer.requests.answered_count()).unwrap_or(usize::MAX);
        earned.clamp(1, ENDGAME_DEPTH)
    }

    /// Whether the peer has the piece and may be sent requests for it.
    fn may_send(&self, piece: &ActivePiece) -> bool {
        let peer = self.peer;
        // An exclusive piece is not given to a peer that keeps us waiting.
        let is_trusted = || peer.is_trusted && piece.may_have_exclusively(peer.peer, self.torrent.now);
        (!piece.is_suspect || is_trusted()) && self.offers(piece.index)
    }

    /// Whether the peer has the piece, and has not sent a corrupt block of it.
    fn offers(&self, piece: u32) -> bool {
        self.peer.has.has(piece) && !self.peer.requests.refused_pieces.contains(&piece)
    }
}

fn active(piece: Entity, block: u32, reason: Reason) -> Pick {
    Pick::Active { piece, block, reason }
}

impl From<Pick> for Choice {
    fn from(pick: Pick) -> Self {
        Self {
            pick: Some(pick),
            ..Self::default()
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

#[cfg(test)]
mod tests;
