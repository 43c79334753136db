//! The fetch of one info dictionary from many peers, some of which lie (BEP 9).

use std::time::Duration;

use bytes::Bytes;

use super::{Assembly, piece_len};
use crate::hash::{InfoHash, Sha1Digest, sha1};
use crate::time::Timestamp;

/// Maximum number of claimed sizes that are fetched at a time: liars cannot fill them with few addresses.
const MAX_ATTEMPTS: usize = 16;

/// The sizes that are fetched at a time make at most this many times [`FetchLimits::max_bytes`].
const MAX_CLAIMS: u64 = 2;

/// Maximum number of pieces of failed attempts that are remembered, to find the peers that sent bad ones.
const MAX_SUSPECTS: usize = 2048;

/// Number of timeouts after which a request is late, however many other pieces the peer has sent.
pub const LATE: u32 = 5;

/// Time after which an attempt gives way to others that wait, and the additional time for each received piece: an attempt
/// that is faster than 64 KiB/s keeps its place. Both are multiplied by the number of the turn.
const TURN: Duration = Duration::from_secs(10);
const TURN_PER_PIECE: Duration = Duration::from_millis(250);

/// Limits of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchLimits {
    /// Maximum size of an info dictionary in bytes; larger claims are ignored.
    pub max_bytes: u32,
    /// Maximum number of outstanding requests to one peer.
    pub max_requests: usize,
    /// Time without a piece from a peer after which its requests are sent to another peer too. A piece that has not come
    /// after [`LATE`] times as long is requested of another peer even if its own peer sends others.
    pub timeout: Duration,
    /// Time for which a peer that rejects a request, or lets one time out, is asked for nothing.
    pub rest: Duration,
}

impl Default for FetchLimits {
    /// 16 MiB, 64 requests, 2 s, 60 s.
    fn default() -> Self {
        Self {
            max_bytes: 16 << 20,
            max_requests: 64,
            timeout: Duration::from_secs(2),
            rest: Duration::from_secs(60),
        }
    }
}

/// The fetch of one info dictionary. `P` identifies a peer, also after it has disconnected.
///
/// Peers may claim different sizes, so that there is an assembly for each of some sizes at a time; those that most peers
/// claim come first. An attempt that takes long gives way to a size that waits, and its peers wait until all others had
/// a turn. A dictionary with the wrong hash from one peer alone shows that this peer lies. One from several peers is
/// fetched again from one peer alone, in turns, and once the right bytes are known, they show which peers sent wrong
/// ones.
///
/// ```
/// use bytes::Bytes;
/// use ecs_torrent_protocol::hash::{InfoHash, sha1};
/// use ecs_torrent_protocol::metadata::{Fetch, FetchLimits, Outcome};
/// use ecs_torrent_protocol::time::Timestamp;
///
/// let info = Bytes::from_static(b"d4:name1:xe");
/// let mut fetch = Fetch::new(InfoHash(sha1([&info[..]])), FetchLimits::default());
/// fetch.add_source("peer", info.len() as u32);
/// assert_eq!(fetch.requests(Timestamp::ZERO), [("peer", 0)]);
/// let outcome = fetch.receive("peer", 0, info.len() as u32, info.clone(), Timestamp::ZERO);
/// assert_eq!(outcome, Outcome::Complete { info, liars: vec![] });
/// ```
#[derive(Debug)]
pub struct Fetch<P> {
    info_hash: InfoHash,
    limits: FetchLimits,
    sources: Vec<Source<P>>,
    attempts: Vec<Attempt<P>>,
    suspects: Vec<Suspect<P>>,
    /// The dictionary is complete, so nothing more is requested.
    is_complete: bool,
}

/// A connected peer that offers the dictionary.
#[derive(Debug)]
struct Source<P> {
    peer: P,
    size: u32,
    outstanding: Vec<Outstanding>,
    /// When the peer last sent a piece that was requested of it.
    progressed: Timestamp,
    /// The peer is asked for nothing until then.
    rests_until: Timestamp,
    /// Number of turns that the peer has used up without a dictionary, and of sizes that it no longer claims.
    spent_turns: u32,
}

#[derive(Debug, Clone, Copy)]
struct Outstanding {
    piece: u32,
    at: Timestamp,
    /// The request has timed out; its answer is still welcome.
    is_late: bool,
}

#[derive(Debug)]
struct Attempt<P> {
    assembly: Assembly<P>,
    /// When the present turn began, and the number of the turn.
    begun: Timestamp,
    turn_number: u32,
    /// An attempt with several peers has failed: the dictionary must come from one peer alone. That peer, and when its
    /// turn ends.
    turn: Turn<P>,
}

/// The peers that an attempt asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn<P> {
    /// All that claim the size.
    Everyone,
    /// One after the other; nobody has its turn now.
    Nobody,
    One(P),
}

/// A piece of a dictionary with the wrong hash.
#[derive(Debug)]
struct Suspect<P> {
    peer: P,
    piece: u32,
    digest: Sha1Digest,
}

/// The result of a received piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<P> {
    /// The piece is kept, and others are missing.
    Kept,
    /// The piece was not requested of this peer.
    Unsolicited,
    /// The piece has another length than the peer's claimed size requires, or the message names another size: the peer
    /// breaks the protocol.
    Contradiction,
    /// All pieces were there, and the hash is wrong. These peers have sent wrong bytes.
    Failed {
        /// Peers that lied, proven.
        liars: Vec<P>,
    },
    /// The dictionary is complete and has the right hash.
    Complete {
        /// The bytes of the dictionary.
        info: Bytes,
        /// Peers that sent wrong bytes in earlier attempts, each one once.
        liars: Vec<P>,
    },
}

impl FetchLimits {
    /// Returns when a request is late, by when its peer last sent a piece.
    fn late_at(&self, request: &Outstanding, progressed: Timestamp) -> Timestamp {
        let alive = request.at.max(progressed) + self.timeout;
        alive.min(request.at + self.timeout * LATE)
    }
}

impl<P: Copy + Eq> Attempt<P> {
    /// Returns when the attempt has to give way to others.
    fn ends(&self) -> Timestamp {
        self.begun + (TURN + TURN_PER_PIECE * self.assembly.received()) * self.turn_number
    }
}

impl<P: Copy + Eq> Source<P> {
    /// Ends the peer's turn, which has brought no dictionary. The answers to its requests are still welcome.
    fn end_turn(&mut self, rests_until: Timestamp) {
        self.outstanding.iter_mut().for_each(|request| request.is_late = true);
        self.rests_until = rests_until;
        self.spent_turns = self.spent_turns.saturating_add(1);
    }
}

impl<P: Copy + Eq> Fetch<P> {
    /// Starts a fetch of the dictionary with this hash (v1).
    #[must_use]
    pub fn new(info_hash: InfoHash, limits: FetchLimits) -> Self {
        Self {
            info_hash,
            limits,
            sources: Vec::new(),
            attempts: Vec::new(),
            suspects: Vec::new(),
            is_complete: false,
        }
    }

    /// Adds a peer that claims a size in its extension handshake, or records its new claim. Returns false if the claim
    /// is beyond the limits; the peer is asked for nothing then.
    pub fn add_source(&mut self, peer: P, size: u32) -> bool {
        if self.source(peer).is_some_and(|source| source.size == size) {
            return true;
        }
        let spent_turns = self
            .source(peer)
            .map_or(0, |source| source.spent_turns.saturating_add(1));
        self.remove_source(peer);
        let is_possible = size > 0 && size <= self.limits.max_bytes;
        if is_possible {
            self.sources.push(Source {
                peer,
                size,
                outstanding: Vec::new(),
                progressed: Timestamp::ZERO,
                rests_until: Timestamp::ZERO,
                spent_turns,
            });
        }
        is_possible
    }

    /// Removes a peer; its requests are free for others.
    pub fn remove_source(&mut self, peer: P) {
        self.sources.retain(|source| source.peer != peer);
        self.forget_unclaimed();
    }

    /// Returns whether a peer is a source.
    #[must_use]
    pub fn has_source(&self, peer: P) -> bool {
        self.sources.iter().any(|source| source.peer == peer)
    }

    /// Returns the pieces that are there and all pieces, of the size that is nearest to its end. `None` while no size is
    /// claimed.
    #[must_use]
    pub fn progress(&self) -> Option<(u32, u32)> {
        let attempts = self.attempts.iter().map(|attempt| &attempt.assembly);
        let nearest = attempts.min_by_key(|assembly| (assembly.missing_count(), assembly.size()));
        nearest.map(|assembly| (assembly.received(), assembly.piece_count()))
    }

    /// Returns the requests to send now, each with its peer, and records them as sent. Also handles requests that timed
    /// out. Returns none once the dictionary is complete.
    pub fn requests(&mut self, now: Timestamp) -> Vec<(P, u32)> {
        if self.is_complete {
            return Vec::new();
        }
        self.expire(now);
        self.choose_sizes(now);
        let mut requests = Vec::new();
        for index in 0..self.attempts.len() {
            self.request_for(index, now, &mut requests);
        }
        requests
    }

    /// Returns when [`Fetch::requests`] has to be called again if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self, now: Timestamp) -> Option<Timestamp> {
        if self.is_complete {
            return None;
        }
        let timeouts = self.sources.iter().flat_map(|source| {
            let open = source.outstanding.iter().filter(|request| !request.is_late);
            open.map(|request| self.limits.late_at(request, source.progressed))
        });
        let rests = self
            .sources
            .iter()
            .map(|source| source.rests_until)
            .filter(|until| *until > now);
        let turns = self.attempts.iter().map(Attempt::ends).filter(|end| *end > now);
        timeouts.chain(rests).chain(turns).min()
    }

    /// Takes a piece.
    pub fn receive(&mut self, peer: P, piece: u32, total_size: u32, data: Bytes, now: Timestamp) -> Outcome<P> {
        let Some(source) = self.sources.iter_mut().find(|source| source.peer == peer) else {
            return Outcome::Unsolicited;
        };
        let Some(at) = source.outstanding.iter().position(|request| request.piece == piece) else {
            return Outcome::Unsolicited;
        };
        source.outstanding.swap_remove(at);
        // A late answer shows that the peer answers.
        (source.progressed, source.rests_until) = (now, Timestamp::ZERO);
        let size = source.size;
        if total_size != size || data.len() as u64 != u64::from(piece_len(size, piece)) {
            self.remove_source(peer);
            return Outcome::Contradiction;
        }
        let Some(index) = self.attempts.iter().position(|attempt| attempt.assembly.size() == size) else {
            return Outcome::Kept;
        };
        let attempt = &mut self.attempts[index];
        let may_add = match attempt.turn {
            Turn::Everyone => true,
            Turn::Nobody => false,
            Turn::One(sender) => sender == peer,
        };
        if may_add {
            attempt.assembly.add(piece, data, peer);
        }
        if attempt.assembly.is_complete() {
            return self.check_hash(index);
        }
        Outcome::Kept
    }

    /// Records that a peer has refused to send a piece: it rests. Returns whether the piece was requested of it.
    pub fn reject(&mut self, peer: P, piece: u32, now: Timestamp) -> bool {
        let Some(source) = self.sources.iter_mut().find(|source| source.peer == peer) else {
            return false;
        };
        let Some(at) = source.outstanding.iter().position(|request| request.piece == piece) else {
            return false;
        };
        source.outstanding.swap_remove(at);
        source.rests_until = now + self.limits.rest;
        true
    }

    fn source(&self, peer: P) -> Option<&Source<P>> {
        self.sources.iter().find(|source| source.peer == peer)
    }

    /// Marks the requests that have timed out. A peer that has sent nothing meanwhile rests.
    fn expire(&mut self, now: Timestamp) {
        for source in &mut self.sources {
            for request in source.outstanding.iter_mut().filter(|request| !request.is_late) {
                if self.limits.late_at(request, source.progressed) <= now {
                    request.is_late = true;
                    if source.progressed + self.limits.timeout <= now {
                        source.rests_until = now + self.limits.rest;
                    }
                }
            }
        }
    }

    /// Begins attempts for the sizes that most peers claim, while there are places. Sizes whose peers have all had a turn
    /// come last.
    fn choose_sizes(&mut self, now: Timestamp) {
        let mut sizes: Vec<(u32, usize, u32)> = Vec::new();
        for source in &self.sources {
            match sizes.iter_mut().find(|(.., size)| *size == source.size) {
                Some((spent_turns, count, _)) => {
                    *spent_turns = source.spent_turns.min(*spent_turns);
                    *count += 1;
                }
                None => sizes.push((source.spent_turns, 1, source.size)),
            }
        }
        sizes.retain(|(.., size)| {
            let is_begun = self.attempts.iter().any(|attempt| attempt.assembly.size() == *size);
            !is_begun && self.is_ready(*size, now)
        });
        sizes.sort_by_key(|(spent_turns, count, size)| (*spent_turns, std::cmp::Reverse(*count), *size));
        for (spent_turns, _, size) in sizes {
            if self.make_place(size, now) {
                self.begin(size, spent_turns, now);
            }
        }
    }

    /// Returns whether a peer that claims the size can be asked, or has outstanding requests.
    fn is_ready(&self, size: u32, now: Timestamp) -> bool {
        let mut of_size = self.sources.iter().filter(|source| source.size == size);
        of_size.any(|source| source.rests_until <= now || source.outstanding.iter().any(|request| !request.is_late))
    }

    /// Ends attempts with nobody left to ask, and those whose time is over, until one at `size` has a place. Returns
    /// whether it has one.
    fn make_place(&mut self, size: u32, now: Timestamp) -> bool {
        loop {
            let claimed: u64 = self
                .attempts
                .iter()
                .map(|attempt| u64::from(attempt.assembly.size()))
                .sum();
            let max_claimed = MAX_CLAIMS * u64::from(self.limits.max_bytes);
            if self.attempts.len() < MAX_ATTEMPTS && claimed + u64::from(size) <= max_claimed {
                return true;
            }
            let is_over = |attempt: &Attempt<P>| attempt.ends() <= now || !self.is_ready(attempt.assembly.size(), now);
            let Some(over) = self.attempts.iter().position(is_over) else {
                return false;
            };
            let over = self.attempts.swap_remove(over).assembly.size();
            for source in self.sources.iter_mut().filter(|source| source.size == over) {
                source.end_turn(now + self.limits.rest);
            }
        }
    }

    fn begin(&mut self, size: u32, spent_turns: u32, now: Timestamp) {
        for source in self.sources.iter_mut().filter(|source| source.size == size) {
            source.outstanding.retain(|request| !request.is_late);
        }
        self.attempts.push(Attempt {
            assembly: Assembly::new(size),
            begun: now,
            turn_number: spent_turns.saturating_add(1),
            turn: Turn::Everyone,
        });
    }

    fn request_for(&mut self, index: usize, now: Timestamp, requests: &mut Vec<(P, u32)>) {
        self.take_turns(index, now);
        let Attempt { assembly, turn, .. } = &self.attempts[index];
        let size = assembly.size();
        let takes_part = |source: &Source<P>| match turn {
            Turn::Everyone => source.size == size,
            Turn::Nobody => false,
            Turn::One(peer) => source.peer == *peer,
        };
        let mut is_requested = vec![false; assembly.piece_count() as usize];
        let sources = self.sources.iter().filter(|source| takes_part(source));
        for request in sources
            .flat_map(|source| &source.outstanding)
            .filter(|request| !request.is_late)
        {
            is_requested[request.piece as usize] = true;
        }
        let max_requests = self.limits.max_requests;
        let may_ask = |source: &&mut Source<P>| {
            takes_part(source) && source.rests_until <= now && source.outstanding.len() < max_requests
        };
        let mut sources: Vec<_> = self.sources.iter_mut().filter(may_ask).collect();
        for piece in assembly.missing().filter(|piece| !is_requested[*piece as usize]) {
            let is_new = |source: &Source<P>| source.outstanding.iter().all(|request| request.piece != piece);
            let able = (0..sources.len()).filter(|place| is_new(sources[*place]));
            let Some(place) = able.min_by_key(|place| sources[*place].outstanding.len()) else {
                continue;
            };
            let source = &mut sources[place];
            source.outstanding.push(Outstanding {
                piece,
                at: now,
                is_late: false,
            });
            requests.push((source.peer, piece));
            if source.outstanding.len() >= max_requests {
                sources.remove(place);
                if sources.is_empty() {
                    break;
                }
            }
        }
    }

    /// Gives the turn of an exclusive attempt to the next peer if the present one is gone, rests, or takes too long
    /// while others wait. The peers that have had the fewest turns are next.
    fn take_turns(&mut self, index: usize, now: Timestamp) {
        let attempt = &mut self.attempts[index];
        let size = attempt.assembly.size();
        let is_ready = |source: &Source<P>| source.size == size && source.rests_until <= now;
        let holder = match attempt.turn {
            Turn::Everyone => return,
            Turn::Nobody => None,
            Turn::One(peer) => Some(peer),
        };
        if let Some(peer) = holder {
            let ready = || self.sources.iter().filter(|source| is_ready(source));
            let is_alone = ready().all(|source| source.peer == peer);
            if ready().any(|source| source.peer == peer) && (attempt.ends() > now || is_alone) {
                return;
            }
            attempt.assembly.clear();
            for source in self.sources.iter_mut().filter(|source| source.peer == peer) {
                source.end_turn(now + self.limits.rest);
            }
        }
        let ready = self.sources.iter_mut().filter(|source| is_ready(source));
        let next = ready.min_by_key(|source| source.spent_turns);
        attempt.begun = now;
        attempt.turn = next.map_or(Turn::Nobody, |source| {
            source.outstanding.clear();
            attempt.turn_number = source.spent_turns.saturating_add(1);
            Turn::One(source.peer)
        });
    }

    /// Compares the hash of a complete assembly.
    fn check_hash(&mut self, index: usize) -> Outcome<P> {
        let attempt = &mut self.attempts[index];
        let parts = attempt.assembly.parts();
        if sha1(parts.iter().map(|part| &part[..])) == self.info_hash.0 {
            let info = Bytes::from(parts.concat());
            let suspects = self.suspects.drain(..).filter(|suspect| {
                let good = parts.get(suspect.piece as usize);
                good.is_none_or(|good| sha1([&good[..]]) != suspect.digest)
            });
            let mut liars = Vec::new();
            for suspect in suspects {
                if !liars.contains(&suspect.peer) {
                    liars.push(suspect.peer);
                }
            }
            self.attempts.clear();
            self.is_complete = true;
            return Outcome::Complete { info, liars };
        }
        let senders: Vec<(u32, Sha1Digest, P)> = attempt
            .assembly
            .iter()
            .map(|(piece, data, peer)| (piece, sha1([&data[..]]), *peer))
            .collect();
        attempt.assembly.clear();
        let first = senders[0].2;
        if senders.iter().all(|(.., peer)| *peer == first) {
            if attempt.turn != Turn::Everyone {
                attempt.turn = Turn::Nobody;
            }
            self.remove_source(first);
            return Outcome::Failed { liars: vec![first] };
        }
        attempt.turn = Turn::Nobody;
        for (piece, digest, peer) in senders {
            if self.suspects.len() < MAX_SUSPECTS {
                self.suspects.push(Suspect { peer, piece, digest });
            }
        }
        Outcome::Failed { liars: Vec::new() }
    }

    /// Drops attempts at sizes that no peer claims any more, unless they hold something.
    fn forget_unclaimed(&mut self) {
        let sources = &self.sources;
        self.attempts.retain(|attempt| {
            attempt.assembly.received() > 0 || sources.iter().any(|source| source.size == attempt.assembly.size())
        });
    }
}

#[cfg(test)]
mod tests;
