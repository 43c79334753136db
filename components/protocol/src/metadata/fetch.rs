//! The fetch of one info dictionary from many peers, some of which lie (BEP 9).

use std::time::Duration;

use bytes::Bytes;

use super::{Assembly, piece_count, piece_len};
use crate::hash::{InfoHash, Sha1Digest, sha1};
use crate::time::Timestamp;

/// Maximum number of attempts at a time: peers that send bad metadata cannot fill them with few addresses.
const MAX_ATTEMPTS: usize = 64;

/// The sizes of all attempts make at most this many times [`FetchLimits::max_bytes`].
const MAX_CLAIMS: u64 = 2;

/// Maximum number of pieces of failed attempts that are remembered, to find the peers that sent bad ones.
const MAX_SUSPECTS: usize = 2048;

/// Number of timeouts after which a request is late, however many other pieces the peer has sent.
pub const LATE: u32 = 5;

/// Time after which an attempt with all peers of a size, or with one peer, ends if others wait, and the additional time
/// for each received piece: an attempt that is faster than 64 KiB/s keeps its slot. All are multiplied by the number of
/// the turn.
const TURN: Duration = Duration::from_secs(10);
const TURN_OF_ONE: Duration = Duration::from_secs(3);
const TURN_PER_PIECE: Duration = Duration::from_millis(250);

/// Limits of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchLimits {
    /// Maximum size of an info dictionary in bytes; larger claims are ignored.
    pub max_bytes: u32,
    /// Maximum number of requests in flight to one peer.
    pub max_requests: usize,
    /// Time without a piece from a peer after which its requests are sent to another peer too. A piece that has not
    /// come after [`LATE`] times as long is requested from another peer even if its own peer sends others.
    pub timeout: Duration,
    /// Time for which a peer that rejects a request, or lets one time out, gets no requests.
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
/// Peers may claim different sizes, so that there is an assembly for each of some sizes at a time; those that most
/// peers claim come first. An attempt that takes long ends when another size waits, and its peers wait until all others
/// have had a turn. A dictionary with the wrong hash from one peer alone shows that this peer lies. One from several
/// peers is fetched again from each peer alone: from as many at a time as the memory allows, the fastest first, the
/// others in turns. Once the right bytes are known, they show which peers sent wrong ones.
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
/// assert_eq!(outcome, Outcome::Complete { info, senders_of_bad_metadata: vec![] });
/// ```
#[derive(Debug)]
pub struct Fetch<P> {
    info_hash: InfoHash,
    limits: FetchLimits,
    sources: Vec<Source<P>>,
    attempts: Vec<Attempt<P>>,
    /// The sizes at which an attempt with several peers has failed: the dictionary must come from one peer alone.
    exclusive: Vec<u32>,
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
    /// When the peer last sent a requested piece.
    progressed: Timestamp,
    /// The peer gets no requests until then.
    rests_until: Timestamp,
    /// Time that the peer took to answer the last request it answered.
    pace: Option<Duration>,
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
    asked: Asked<P>,
}

/// The peers to which an attempt sends requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked<P> {
    /// All that claim the size.
    Everyone,
    One(P),
}

/// An attempt that could begin.
#[derive(Debug, Clone, Copy)]
struct Next<P> {
    size: u32,
    asked: Asked<P>,
    /// Number of other attempts at the size that come first.
    rank: usize,
    spent_turns: u32,
    /// Number of peers that claim the size.
    claims: usize,
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
    /// The piece was not requested from this peer.
    Unsolicited,
    /// The piece has another length than the peer's claimed size requires, or the message names another size: the peer
    /// breaks the protocol.
    Contradiction,
    /// All pieces were there, and the hash is wrong. These peers have sent wrong bytes.
    Failed {
        /// Peers that lied, proven.
        senders_of_bad_metadata: Vec<P>,
    },
    /// The dictionary is complete and has the right hash.
    Complete {
        /// The bytes of the dictionary.
        info: Bytes,
        /// Peers that sent wrong bytes in earlier attempts, each one once.
        senders_of_bad_metadata: Vec<P>,
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
    /// Returns when the attempt ends if others wait.
    fn ends(&self) -> Timestamp {
        let turn = match self.asked {
            Asked::Everyone => TURN,
            Asked::One(_) => TURN_OF_ONE,
        };
        let turn = turn + TURN_PER_PIECE * self.assembly.received();
        self.begun + turn.saturating_mul(self.turn_number)
    }

    /// Whether the attempt sends requests to a peer.
    fn asks(&self, source: &Source<P>) -> bool {
        match self.asked {
            Asked::Everyone => source.size == self.assembly.size(),
            Asked::One(peer) => source.peer == peer,
        }
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
            exclusive: Vec::new(),
            suspects: Vec::new(),
            is_complete: false,
        }
    }

    /// Adds a peer that claims a size in its extension handshake, or records its new claim. Returns false if the claim
    /// is beyond the limits; the peer then gets no requests.
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
                pace: None,
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

    /// Returns the number of received pieces and of all pieces, for the size that is nearest to completion. `None`
    /// while no size is claimed.
    #[must_use]
    pub fn progress(&self) -> Option<(u32, u32)> {
        let attempts = self.attempts.iter().map(|attempt| &attempt.assembly);
        let nearest = attempts.min_by_key(|assembly| (assembly.missing_count(), assembly.size()));
        let waiting = || self.exclusive.iter().min().map(|size| (0, piece_count(*size)));
        nearest
            .map(|assembly| (assembly.received(), assembly.piece_count()))
            .or_else(waiting)
    }

    /// Returns the requests to send now, each with its peer, and records them as sent. Also handles requests that timed
    /// out. Returns none once the dictionary is complete.
    pub fn requests(&mut self, now: Timestamp) -> Vec<(P, u32)> {
        if self.is_complete {
            return Vec::new();
        }
        self.expire(now);
        self.end_idle_turns(now);
        self.begin_attempts(now);
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
        let request = source.outstanding.swap_remove(at);
        source.pace = Some(now.since(request.at));
        // A late answer shows that the peer answers.
        (source.progressed, source.rests_until) = (now, Timestamp::ZERO);
        let size = source.size;
        if total_size != size || data.len() as u64 != u64::from(piece_len(size, piece)) {
            self.remove_source(peer);
            return Outcome::Contradiction;
        }
        let asks = |attempt: &Attempt<P>| attempt.asks(source);
        let Some(index) = self.attempts.iter().position(asks) else {
            return Outcome::Kept;
        };
        let attempt = &mut self.attempts[index];
        attempt.assembly.add(piece, data, peer);
        if attempt.assembly.is_complete() {
            return self.check_hash(index);
        }
        Outcome::Kept
    }

    /// Records that a peer has refused to send a piece: it rests. Returns whether the piece was requested from it.
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

    /// Ends the turns of single peers that rest. Their slots go to others.
    fn end_idle_turns(&mut self, now: Timestamp) {
        let Self {
            sources,
            attempts,
            limits,
            ..
        } = self;
        attempts.retain(|attempt| {
            let Asked::One(peer) = attempt.asked else {
                return true;
            };
            let asked = sources.iter_mut().find(|source| source.peer == peer);
            asked.is_some_and(|source| {
                let is_ready = source.rests_until <= now;
                if !is_ready {
                    source.end_turn(now + limits.rest);
                }
                is_ready
            })
        });
    }

    /// Begins attempts while there are free slots.
    fn begin_attempts(&mut self, now: Timestamp) {
        let mut waiting = self.waiting(now);
        // Each size has a slot before any has two.
        waiting.sort_by_key(|next| (next.rank, next.spent_turns, std::cmp::Reverse(next.claims), next.size));
        for next in waiting {
            if self.make_place(&next, now) {
                self.begin(&next, now);
            }
        }
    }

    /// Returns the attempts that could begin: one for each size with peers that can get requests, or one for each such
    /// peer where the dictionary must come from one peer alone.
    fn waiting(&self, now: Timestamp) -> Vec<Next<P>> {
        let mut sizes: Vec<u32> = self.sources.iter().map(|source| source.size).collect();
        sizes.sort_unstable();
        let mut waiting = Vec::new();
        for of_size in sizes.chunk_by(|a, b| a == b) {
            let (size, claims) = (of_size[0], of_size.len());
            let begun = self.attempts.iter().filter(|attempt| attempt.assembly.size() == size);
            let begun_count = begun.clone().count();
            let claiming = self.sources.iter().filter(|source| source.size == size);
            if !self.exclusive.contains(&size) {
                if begun_count == 0 && self.is_ready(size, now) {
                    let spent_turns = claiming.map(|source| source.spent_turns).min().unwrap_or(0);
                    let (asked, rank) = (Asked::Everyone, 0);
                    waiting.push(Next {
                        size,
                        asked,
                        rank,
                        spent_turns,
                        claims,
                    });
                }
                continue;
            }
            let is_idle = |source: &&Source<P>| begun.clone().all(|attempt| attempt.asked != Asked::One(source.peer));
            let mut idle: Vec<_> = claiming
                .filter(|source| source.rests_until <= now)
                .filter(is_idle)
                .collect();
            // A peer without an answer yet comes between fast peers and slow ones.
            let unknown = self.limits.timeout / 2;
            idle.sort_by_key(|source| (source.spent_turns, source.pace.unwrap_or(unknown)));
            waiting.extend(idle.into_iter().enumerate().map(|(place, source)| Next {
                size,
                asked: Asked::One(source.peer),
                rank: begun_count + place,
                spent_turns: source.spent_turns,
                claims,
            }));
        }
        waiting
    }

    /// Returns whether a peer that claims the size can get requests, or has requests in flight.
    fn is_ready(&self, size: u32, now: Timestamp) -> bool {
        let mut of_size = self.sources.iter().filter(|source| source.size == size);
        of_size.any(|source| source.rests_until <= now || source.outstanding.iter().any(|request| !request.is_late))
    }

    /// Ends attempts without a peer left, and those whose time is over, until the next one has a slot. Returns whether
    /// it has one.
    fn make_place(&mut self, next: &Next<P>, now: Timestamp) -> bool {
        loop {
            let sizes = self.attempts.iter().map(|attempt| u64::from(attempt.assembly.size()));
            let claimed = sizes.sum::<u64>() + u64::from(next.size);
            if self.attempts.len() < MAX_ATTEMPTS && claimed <= MAX_CLAIMS * u64::from(self.limits.max_bytes) {
                return true;
            }
            let is_over = |attempt: &Attempt<P>| attempt.ends() <= now || !self.is_ready(attempt.assembly.size(), now);
            let Some(over) = self.attempts.iter().position(is_over) else {
                return false;
            };
            let over = self.attempts.swap_remove(over);
            for source in self.sources.iter_mut().filter(|source| over.asks(source)) {
                source.end_turn(now + self.limits.rest);
            }
        }
    }

    fn begin(&mut self, next: &Next<P>, now: Timestamp) {
        let attempt = Attempt {
            assembly: Assembly::new(next.size),
            begun: now,
            turn_number: next.spent_turns.saturating_add(1),
            asked: next.asked,
        };
        for source in self.sources.iter_mut().filter(|source| attempt.asks(source)) {
            source.outstanding.retain(|request| !request.is_late);
        }
        self.attempts.push(attempt);
    }

    fn request_for(&mut self, index: usize, now: Timestamp, requests: &mut Vec<(P, u32)>) {
        let attempt = &self.attempts[index];
        let assembly = &attempt.assembly;
        let takes_part = |source: &Source<P>| attempt.asks(source);
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
            let mut senders_of_bad_metadata = Vec::new();
            for suspect in suspects {
                if !senders_of_bad_metadata.contains(&suspect.peer) {
                    senders_of_bad_metadata.push(suspect.peer);
                }
            }
            self.attempts.clear();
            self.is_complete = true;
            return Outcome::Complete {
                info,
                senders_of_bad_metadata,
            };
        }
        let senders: Vec<(u32, Sha1Digest, P)> = attempt
            .assembly
            .iter()
            .map(|(piece, data, peer)| (piece, sha1([&data[..]]), *peer))
            .collect();
        let first = senders[0].2;
        if senders.iter().all(|(.., peer)| *peer == first) {
            attempt.assembly.clear();
            self.remove_source(first);
            return Outcome::Failed {
                senders_of_bad_metadata: vec![first],
            };
        }
        let size = self.attempts.swap_remove(index).assembly.size();
        self.exclusive.push(size);
        for (piece, digest, peer) in senders {
            if self.suspects.len() < MAX_SUSPECTS {
                self.suspects.push(Suspect { peer, piece, digest });
            }
        }
        Outcome::Failed {
            senders_of_bad_metadata: Vec::new(),
        }
    }

    /// Drops attempts without peers, unless they hold something that others may complete.
    fn forget_unclaimed(&mut self) {
        let sources = &self.sources;
        self.attempts.retain(|attempt| {
            let is_shared = attempt.asked == Asked::Everyone;
            is_shared && attempt.assembly.received() > 0 || sources.iter().any(|source| attempt.asks(source))
        });
        self.exclusive
            .retain(|size| sources.iter().any(|source| source.size == *size));
    }
}

#[cfg(test)]
mod tests;
