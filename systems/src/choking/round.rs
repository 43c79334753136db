//! One choking round, as a plain function.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::time::Duration;

use bevy_ecs::entity::Entity;
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::{UploadSettings, seconds};
use ecs_torrent_components::super_seeding::{SuperSeedingPhase, TURN_BYTES};
use ecs_torrent_protocol::time::Timestamp;

use super::width::{IDLE_AFTER, LEECH_RATE, SEED_RATE, WidthProbe, width};

/// The data of a peer that the choice of served peers uses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contender {
    pub(super) peer: Entity,
    /// The peer is interested.
    pub(super) is_interested: bool,
    /// The peer owes us blocks and sends none.
    pub(super) is_snubbing: bool,
    /// The peer is unchoked now.
    pub(super) is_unchoked: bool,
    /// Start of the time in which the unchoked peer has requested nothing.
    pub(super) idle_since: Option<Timestamp>,
    /// Time at which a peer in the middle of a piece, whose requests are all answered, becomes idle.
    pub(super) idle_at: Option<Timestamp>,
    /// The peer's first request may still be in transit.
    pub(super) may_begin: bool,
    /// The peer has had its share of a super-seeded copy for now.
    pub(super) has_had_turn: bool,
    /// When the peer was unchoked or began to wait.
    pub(super) since: Timestamp,
    /// Download rate from the peer in bytes per second.
    pub(super) download_rate: u64,
    /// Upload rate to the peer in bytes per second.
    pub(super) upload_rate: u64,
}

/// The purpose of serving peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// To be served in return: the peers that upload most to us are served.
    Download,
    /// To distribute pieces: every peer gets a turn, and the fastest make best use of theirs.
    Seed {
        /// Length of a turn while other peers wait.
        turn: Duration,
    },
}

/// Slots that [`fill_free_slots`] may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotBudget {
    /// Maximum number of unchoked peers that are not idle.
    pub(super) slots: usize,
    /// Maximum number of unchoked peers, idle ones included.
    pub(super) max_unchoked: usize,
}

impl SlotBudget {
    /// Returns all slots for a goal.
    pub(super) fn all(goal: Goal, limits: &UploadSettings) -> Self {
        Self {
            slots: limits.slots + limits.optimistic_slots,
            max_unchoked: max_unchoked(goal, limits),
        }
    }

    /// Returns the slots for serving `width` peers at a time, plus peers whose first request is about to arrive, at
    /// most twice as many. Some of those may never request anything.
    pub(super) fn narrowed(self, width: usize, contenders: &[Contender]) -> Self {
        let beginning = contenders.iter().filter(|c| c.idle_since.is_some() && c.may_begin);
        let beginning = beginning.count().min(width.saturating_mul(2));
        Self {
            slots: self.slots.min(width),
            max_unchoked: self.max_unchoked.min(width.saturating_add(beginning)),
        }
    }
}

/// One choking round of a torrent: everything that its decision depends on, except for the rotation and chance.
#[derive(Debug)]
pub(super) struct Round<'a> {
    pub(super) now: Timestamp,
    pub(super) goal: Goal,
    /// Progress of super-seeding, if the torrent super-seeds.
    pub(super) phase: Option<SuperSeedingPhase>,
    /// The connected peers.
    pub(super) contenders: &'a [Contender],
    /// Length of the torrent's pieces, or 0 if it is not known.
    pub(super) piece_length: u32,
    pub(super) limits: &'a UploadSettings,
}

/// The part of a torrent's choking state that passes from round to round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rotation {
    /// The optimistic unchoke: a peer served at random to find out its upload rate.
    pub(super) optimistic: Option<Entity>,
    pub(super) optimistic_since: Timestamp,
    /// Time of the last ranking.
    pub(super) ranked: Option<Timestamp>,
    /// The search for a better number of peers served at a time.
    pub(super) probe: WidthProbe,
}

/// The decision of a choking round.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The peers to serve. All other peers are choked.
    pub(super) served: Vec<Entity>,
    pub(super) rotation: Rotation,
    /// Whether all slots are busy, so that no waiting peer could be served.
    pub(super) is_full: bool,
    /// Whether interested peers wait.
    pub(super) has_waiting: bool,
    /// Whether more than one peer is interested.
    pub(super) is_contended: bool,
    /// Time of the next round, if there is reason for one.
    pub(super) next: Option<Timestamp>,
}

impl Round<'_> {
    /// Decides which peers are served until the next round.
    pub(super) fn decide(&self, before: Rotation, random: &mut Random) -> Outcome {
        let (width, probe) = self.width(before.probe);
        let before = Rotation { probe, ..before };
        let budget = self.budget(width);
        let (served, rotation) = match self.is_ranking(before) {
            true => self.rerank(before, width, random),
            false => (fill_free_slots(self.contenders, budget, random), before),
        };
        let is_served = |c: &Contender| served.contains(&c.peer);
        let interested = || self.contenders.iter().filter(|c| c.is_interested);
        let busy_count = interested().filter(|c| is_served(c) && c.idle_since.is_none()).count();
        let interested_count = interested().count();
        let has_waiting = interested().any(|c| !is_served(c));
        let served_contenders = || self.contenders.iter().filter(|c| is_served(c));
        let idle_at = served_contenders().filter_map(|c| c.idle_at).min();
        let has_new = self.contenders.iter().any(|c| is_served(c) && !c.is_unchoked);
        let next = [
            // While any peer is interested, a next round is scheduled.
            (interested_count > 0).then(|| self.next_ranking(rotation)),
            match self.phase {
                Some(SuperSeedingPhase::Finishing { until }) => Some(until),
                _ => None,
            },
            (has_waiting && has_new).then_some(self.now + IDLE_AFTER),
            idle_at.filter(|_| has_waiting),
        ];
        Outcome {
            is_full: busy_count >= budget.slots,
            has_waiting,
            is_contended: interested_count > 1,
            next: next.into_iter().flatten().min(),
            served,
            rotation,
        }
    }

    /// Whether the round ranks all peers. Between rankings, free slots are filled and no peer loses one: pieces it has
    /// begun would stay incomplete. During super-seeding, a turn ends when the peer has its share.
    fn is_ranking(&self, rotation: Rotation) -> bool {
        let is_due = |ranked| self.now.since(ranked) >= self.interval();
        self.phase.is_none() && rotation.ranked.is_none_or(is_due)
    }

    fn rerank(&self, before: Rotation, width: usize, random: &mut Random) -> (Vec<Entity>, Rotation) {
        let mut rotation = before;
        if self.now.since(before.optimistic_since) >= seconds(self.limits.optimistic_interval_s) {
            rotation.optimistic = None;
        }
        let kept = rotation.optimistic;
        let optimistic = &mut rotation.optimistic;
        let ranked_slots = width.saturating_sub(self.limits.optimistic_slots).max(1);
        let limits = UploadSettings {
            slots: self.limits.slots.min(ranked_slots),
            max_unchoked: self.limits.max_unchoked.min(width),
            ..self.limits.clone()
        };
        let served = select_ranked(self.contenders, self.goal, self.now, &limits, optimistic, random);
        if rotation.optimistic != kept {
            rotation.optimistic_since = self.now;
        }
        rotation.ranked = Some(self.now);
        (served, rotation)
    }

    /// Slots of a round between two rankings, if `width` peers are to be served at a time.
    fn budget(&self, width: usize) -> SlotBudget {
        let all = SlotBudget::all(self.goal, self.limits);
        match self.phase {
            Some(SuperSeedingPhase::Finishing { .. }) => SlotBudget { slots: 0, ..all },
            _ => all.narrowed(width, self.contenders),
        }
    }

    /// Returns the number of peers to serve at a time, and the state of the search for a better one.
    fn width(&self, before: WidthProbe) -> (usize, WidthProbe) {
        let rate: u64 = self.contenders.iter().map(|c| c.upload_rate).sum();
        let most = max_unchoked(self.goal, self.limits);
        let (least, most) = match (self.goal, self.phase) {
            (_, Some(_)) => {
                let rate = rate.max(SEED_RATE);
                // Not more turns than the uplink completes in a second.
                let turns = (rate / TURN_BYTES) as usize;
                match width(rate, self.piece_length) {
                    narrow if narrow < turns => (narrow, most),
                    _ => (turns, turns),
                }
            }
            (Goal::Download, None) => (width(rate.max(LEECH_RATE), self.piece_length), most),
            // Every piece has a second copy already, and a turn is much longer than a piece.
            (Goal::Seed { .. }, None) => (usize::MAX, most),
        };
        let has_waiting = self.contenders.iter().any(|c| c.is_interested && !c.is_unchoked);
        let probe = before.advance(self.now, (least, most), rate, has_waiting);
        (least.saturating_add(probe.extra), probe)
    }

    fn next_ranking(&self, rotation: Rotation) -> Timestamp {
        let interval = self.interval();
        let ranked = rotation.ranked.filter(|ranked| self.now.since(*ranked) < interval);
        ranked.unwrap_or(self.now) + interval
    }

    fn interval(&self) -> Duration {
        seconds(self.limits.choke_interval_s)
    }
}

/// Selects the peers to serve by their rank. `optimistic` is the optimistic unchoke; another one is chosen if there is
/// none, if it is no longer interested, or if it is now served for its rate.
pub(super) fn select_ranked(
    contenders: &[Contender],
    goal: Goal,
    now: Timestamp,
    limits: &UploadSettings,
    optimistic: &mut Option<Entity>,
    random: &mut Random,
) -> Vec<Entity> {
    let mut interested: Vec<Contender> = contenders.iter().filter(|c| c.is_interested).copied().collect();
    // Equal peers come in random order, not in the order of their entity numbers.
    random.shuffle(&mut interested);
    rank(&mut interested, goal, now);
    // Idle peers take no slot.
    let (mut served, mut rest): (Vec<Contender>, Vec<Contender>) = (Vec::new(), Vec::new());
    for contender in interested {
        match contender.idle_since.is_none() && served.len() < limits.slots {
            true => served.push(contender),
            false => rest.push(contender),
        }
    }
    // Peers that upload nearly as much are unchoked too, at random, up to the limit: where all are equal, no peer is
    // left out.
    let least = served.last().map_or(0, |last| last.download_rate / NEAR).max(1);
    let is_near = |c: &Contender| goal == Goal::Download && !c.is_snubbing && c.download_rate >= least;
    if goal == Goal::Download {
        random.shuffle(&mut rest);
    }
    let max_unchoked = max_unchoked(goal, limits) - limits.optimistic_slots;
    let mut left = Vec::new();
    for contender in rest {
        match served.len() < max_unchoked && (contender.idle_since.is_some() || is_near(&contender)) {
            true => served.push(contender),
            false => left.push(contender),
        }
    }
    let mut served: Vec<Entity> = served.iter().map(|c| c.peer).collect();
    if !optimistic.is_some_and(|peer| left.iter().any(|c| c.peer == peer)) {
        *optimistic = left.get(random.below(left.len())).map(|c| c.peer);
    }
    if limits.optimistic_slots > 0 {
        served.extend(*optimistic);
        let others = left.iter().map(|c| c.peer).filter(|peer| Some(*peer) != *optimistic);
        served.extend(others.take(limits.optimistic_slots - 1));
    }
    served
}

/// Fills free slots between two rankings: served peers stay, and free slots rotate among waiting peers until all slots
/// are busy. If no more peers may be unchoked, the peer that has been idle longest is choked.
pub(super) fn fill_free_slots(contenders: &[Contender], budget: SlotBudget, random: &mut Random) -> Vec<Entity> {
    let (mut served, mut waiting): (Vec<Contender>, Vec<Contender>) = contenders
        .iter()
        .filter(|c| c.is_interested)
        .partition(|c| c.is_unchoked);
    random.shuffle(&mut waiting);
    waiting.sort_by_key(|c| (c.is_snubbing, c.since));
    if !waiting.is_empty() {
        served.retain(|c| !c.has_had_turn);
    }
    let busy = served.iter().filter(|c| c.idle_since.is_none()).count();
    waiting.truncate(budget.slots.saturating_sub(busy));
    let gives_way = |c: &Contender| c.idle_since.is_some() && !c.may_begin;
    served.sort_by_key(|c| (!gives_way(c), c.idle_since));
    let surplus = (served.len() + waiting.len()).saturating_sub(budget.max_unchoked);
    let leaving = surplus.min(served.iter().filter(|c| gives_way(c)).count());
    let newly_served = budget.max_unchoked.saturating_sub(served.len() - leaving);
    let staying = served.iter().skip(leaving);
    staying
        .chain(waiting.iter().take(newly_served))
        .map(|c| c.peer)
        .collect()
}

/// Returns how many peers may be unchoked, including idle ones.
fn max_unchoked(goal: Goal, limits: &UploadSettings) -> usize {
    let slots = limits.slots + limits.optimistic_slots;
    match goal {
        Goal::Download => limits.max_unchoked.max(slots),
        // In addition to busy peers, as many idle peers may be unchoked as there are slots.
        Goal::Seed { .. } => 2 * slots,
    }
}

/// Peers that upload at least this fraction (1/4) of the slowest peer with a slot are served too.
const NEAR: u64 = 4;

/// Sorts interested peers, the first to be served first.
fn rank(interested: &mut [Contender], goal: Goal, now: Timestamp) {
    match goal {
        // BEP 3, anti-snubbing: snubbing peers are served only at random, or if no other peer is interested.
        Goal::Download => interested.sort_by_key(|c| (c.is_snubbing, Reverse(c.download_rate))),
        Goal::Seed { turn } => interested.sort_by_key(|c| seed_rank(c, turn, now)),
    }
}

/// Sort key while seeding: peers in their turn first, the fastest first; then the longest waiting; then those whose
/// turn is over.
fn seed_rank(contender: &Contender, turn: Duration, now: Timestamp) -> (u8, Reverse<u64>, Timestamp) {
    match contender.is_unchoked {
        true if now.since(contender.since) < turn => (0, Reverse(contender.upload_rate), contender.since),
        false => (1, Reverse(0), contender.since),
        true => (2, Reverse(contender.upload_rate), contender.since),
    }
}
