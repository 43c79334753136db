//! Super-seeding by suggestions (BEP 6, "Suggest Piece"). The seed assigns each piece that no other peer has to one
//! peer, so that a full copy is in the swarm before any piece is uploaded twice.

use std::collections::VecDeque;
use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::messages::{
    Availability, AvailabilityReceived, ChokeSent, PeerDisconnected, PieceRequested,
};
use ecs_torrent_components::peer::{
    EmptiedUploads, FlushQueue, Outbox, PeerPieces, PeerRates, PeerState, PieceForm, Wire,
};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::super_seeding::{SuperSeeding, SuperSeedingTurn, SuperSeedsOnly, TURN_BYTES};
use ecs_torrent_components::torrent::{Layout, Lifecycle, PeerOf, TorrentPeers};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::Message;
use smallvec::SmallVec;

use crate::choking::Choker;
use crate::conditions::has_messages;
use crate::{DecideSet, ReapSet};

/// Suggests pieces to the peers of a seed.
pub struct SuggestingPlugin;

impl Plugin for SuggestingPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<SuggestQueue>()
            .register_required_components::<PeerState, SuperSeedingTurn>()
            .add_observer(end_super_seeding)
            .add_observer(plan_for_marked)
            .add_observer(plan_for_first_peer)
            .add_systems(
                Tick,
                (
                    (
                        begin_super_seeding.run_if(has_messages::<ChokeSent>),
                        handle_haves.run_if(has_messages::<AvailabilityReceived>),
                        handle_requests.run_if(has_messages::<PieceRequested>),
                        suggest.run_if(|queue: Res<SuggestQueue>| queue.has_work()),
                    )
                        .chain()
                        .in_set(DecideSet::Suggestions),
                    release_assignments.in_set(ReapSet::Release),
                ),
            );
    }
}

/// Least bytes of pieces suggested ahead to one peer. The peer requests the next pieces before further suggestions
/// reach it, but a piece suggested long before may by then have reached another peer.
const AHEAD_BYTES: u64 = 128 << 10;

/// Divisor of a peer's rate per second: this part of a second is suggested ahead, if it is more than [`AHEAD_BYTES`].
const AHEAD_PART: u64 = 4;

/// Least number of pieces suggested ahead.
const AHEAD_PIECES: u64 = 2;

/// Longest time in which only the peers assigned the last pieces of a copy are served.
const FINISH: Duration = Duration::from_secs(3);

/// State of super-seeding: how much of a full copy the connected peers have. It is on a torrent that seeds, from its
/// first unchoke until its last peer leaves. [`SuperSeeding`] contains the part that other features read.
#[derive(Component, Debug)]
pub(crate) struct SuperSeedPlan {
    /// Pieces that a peer has or is assigned.
    out: Bitfield,
    /// Pieces that a peer has.
    held: Bitfield,
    /// Pieces requested by peers that were choked afterward, and may not have received them.
    doubtful: VecDeque<u32>,
    /// Index at which the search for the next piece starts.
    next: u32,
    /// Pieces suggested to a peer in one turn, if other peers wait for theirs.
    turn: u32,
    /// Assignments by peer, until the peer announces the piece. No piece is listed twice.
    assigned: EntityHashMap<Assignments>,
    /// End of the phase in which only peers with outstanding assignments are served, once all pieces are assigned.
    finish_until: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct Assignments {
    /// Suggested, and not yet requested.
    suggested: SmallVec<[u32; 4]>,
    /// Requested, at least in part.
    requested: SmallVec<[u32; 4]>,
    /// Pieces of `requested` whose last block is not requested yet.
    begun: SmallVec<[u32; 4]>,
    /// Pieces suggested since the peer was unchoked.
    turn: u32,
}

impl Assignments {
    /// Returns whether the peer has all pieces assigned to it.
    fn is_kept(&self) -> bool {
        self.suggested.is_empty() && self.requested.is_empty()
    }
}

/// The work of super-seeding in this tick.
#[derive(Resource, Debug, Default)]
struct SuggestQueue {
    /// Peers that may get more suggestions.
    peers: Vec<Entity>,
    /// Torrents whose [`SuperSeedPlan`] has changed, with the peer whose turn may have changed.
    changed: Vec<(Entity, Entity)>,
}

impl SuggestQueue {
    fn has_work(&self) -> bool {
        !self.peers.is_empty() || !self.changed.is_empty()
    }
}

impl SuperSeedPlan {
    /// Starts with the pieces that `peers` have.
    fn new<'a>(geometry: &Geometry, next: u32, peers: impl Iterator<Item = &'a PeerPieces>) -> Self {
        let piece_count = geometry.piece_count();
        let mut plan = Self {
            out: Bitfield::new(piece_count),
            held: Bitfield::new(piece_count),
            doubtful: VecDeque::new(),
            next,
            turn: (TURN_BYTES / u64::from(geometry.piece_length())).max(1) as u32,
            assigned: EntityHashMap::default(),
            finish_until: None,
        };
        plan.add_pieces_of(peers);
        plan
    }

    /// Forgets the pieces that no connected peer has any more.
    fn hold_only<'a>(&mut self, peers: impl Iterator<Item = &'a PeerPieces>) {
        let piece_count = self.held.len();
        let lost_by = std::mem::replace(&mut self.held, Bitfield::new(piece_count));
        let before = std::mem::replace(&mut self.out, Bitfield::new(piece_count));
        self.add_pieces_of(peers);
        // Assigned pieces stay assigned.
        self.out.insert_all(&before.without(&lost_by));
    }

    fn add_pieces_of<'a>(&mut self, peers: impl Iterator<Item = &'a PeerPieces>) {
        for pieces in peers {
            match pieces.form() {
                PieceForm::Listed(bits) => self.add(bits),
                PieceForm::AllBut(None) => self.add_all(),
                PieceForm::AllBut(Some(lacking)) => self.add_all_but(lacking),
            }
        }
    }

    fn add(&mut self, pieces: &Bitfield) {
        self.out.insert_all(pieces);
        self.held.insert_all(pieces);
    }

    fn add_all_but(&mut self, lacking: &Bitfield) {
        self.add(&Bitfield::full(lacking.len()).without(lacking));
    }

    fn add_all(&mut self) {
        self.held = Bitfield::full(self.held.len());
        self.out = self.held.clone();
    }

    /// Applies a peer's `Have`. Returns whether it completed the peer's assignments.
    fn handle_have(&mut self, peer: Entity, piece: u32) -> bool {
        self.out.insert(piece);
        self.held.insert(piece);
        let Some(assignments) = self.assigned.get_mut(&peer) else {
            return false;
        };
        let owed = !assignments.is_kept();
        assignments.suggested.retain(|suggested| *suggested != piece);
        assignments.requested.retain(|requested| *requested != piece);
        assignments.begun.retain(|begun| *begun != piece);
        owed && assignments.is_kept()
    }

    /// Records that a peer has begun to request a piece.
    fn handle_request(&mut self, peer: Entity, piece: u32) {
        let assignments = self.assigned.entry(peer).or_default();
        let suggested = assignments.suggested.iter().position(|suggested| *suggested == piece);
        if let Some(position) = suggested {
            assignments.suggested.remove(position);
        }
        if self.out.insert(piece) || suggested.is_some() {
            assignments.requested.push(piece);
            assignments.begun.push(piece);
        }
    }

    /// Records that a peer has requested the last block of a piece.
    fn handle_last_request(&mut self, peer: Entity, piece: u32) {
        if let Some(assignments) = self.assigned.get_mut(&peer) {
            assignments.begun.retain(|begun| *begun != piece);
        }
    }

    /// Returns the state that other features read.
    fn state(&self, now: Timestamp) -> SuperSeeding {
        let is_assigned = self.out.is_full();
        let may_finish = is_assigned && self.finish_until.is_some_and(|until| now < until);
        SuperSeeding {
            is_assigned,
            finish_until: self.finish_until,
            is_awaited: may_finish && self.is_awaited(),
            is_out: self.held.is_full(),
        }
    }

    /// Returns whether a peer has not received all pieces assigned to it.
    fn is_awaited(&self) -> bool {
        self.assigned.values().any(|assignments| !assignments.is_kept())
            || self.doubtful.iter().any(|piece| !self.held.contains(*piece))
    }

    /// Returns the state of a peer's turn.
    fn turn_of(&self, peer: Entity) -> SuperSeedingTurn {
        let assignments = self.assigned.get(&peer);
        SuperSeedingTurn {
            is_spent: assignments.is_some_and(|p| p.turn >= self.turn && p.suggested.is_empty() && p.begun.is_empty()),
            awaits_pieces: assignments.is_some_and(|p| !p.is_kept()),
        }
    }

    /// Ends a peer's turn. Assigned pieces that it has not requested become free at once; requested ones only when no
    /// other piece is left.
    fn end_turn(&mut self, peer: Entity) {
        let assignments = self.assigned.remove(&peer).unwrap_or_default();
        self.take_back(&assignments.suggested);
        while self.doubtful.front().is_some_and(|piece| self.held.contains(*piece)) {
            self.doubtful.pop_front();
        }
        self.doubtful.extend(assignments.requested);
    }

    /// Frees all pieces assigned to a peer that has disconnected.
    fn forget(&mut self, peer: Entity) {
        let assignments = self.assigned.remove(&peer).unwrap_or_default();
        self.take_back(&assignments.suggested);
        self.take_back(&assignments.requested);
    }

    fn take_back(&mut self, pieces: &[u32]) {
        for piece in pieces {
            if !self.held.contains(*piece) {
                self.out.remove(*piece);
            }
        }
    }

    /// Returns the next unassigned piece. When all are assigned, and the time for them to arrive is over, it returns
    /// one of the requested pieces that have not arrived.
    fn next_free(&mut self, now: Timestamp) -> Option<u32> {
        if !self.out.is_full() {
            let mut pieces = (self.next..self.out.len()).chain(0..self.next);
            let piece = pieces.find(|piece| !self.out.contains(*piece))?;
            self.next = piece + 1;
            return Some(piece);
        }
        if self.finish_until.is_none_or(|until| now < until) {
            return None;
        }
        while let Some(piece) = self.doubtful.pop_front() {
            if !self.held.contains(piece) {
                return Some(piece);
            }
        }
        None
    }

    /// Starts the last phase when all pieces are assigned for the first time.
    fn record_end(&mut self, now: Timestamp) {
        if self.out.is_full() && self.finish_until.is_none() {
            self.finish_until = Some(now + FINISH);
        }
    }

    /// Assigns the next piece to a peer. Returns `None` if `most` suggestions are outstanding, or if the peer has had
    /// its turn and others wait for theirs.
    fn assign(&mut self, now: Timestamp, peer: Entity, most: u64, others_wait: bool) -> Option<u32> {
        let assignments = self.assigned.entry(peer).or_default();
        if assignments.suggested.len() as u64 >= most || (others_wait && assignments.turn >= self.turn) {
            return None;
        }
        let piece = self.next_free(now)?;
        self.out.insert(piece);
        let assignments = self.assigned.entry(peer).or_default();
        assignments.suggested.push(piece);
        assignments.turn += 1;
        Some(piece)
    }
}

/// Starts super-seeding with a torrent's first unchoke, and ends the turns of choked peers.
fn begin_super_seeding(
    mut sent: MessageReader<ChokeSent>,
    mut commands: Commands,
    mut random: ResMut<Random>,
    mut queue: ResMut<SuggestQueue>,
    mut torrents: Query<(&Layout, &Lifecycle, Option<&mut SuperSeedPlan>, &TorrentPeers)>,
    peers: Query<&PeerPieces>,
) {
    let mut begun: SmallVec<[Entity; 1]> = SmallVec::new();
    for &ChokeSent {
        torrent,
        peer,
        is_choking,
    } in sent.read()
    {
        let Ok((Layout(geometry), Lifecycle::Seeding, plan, connected)) = torrents.get_mut(torrent) else {
            continue;
        };
        queue.changed.push((torrent, peer));
        match plan {
            Some(mut plan) if is_choking => plan.end_turn(peer),
            Some(_) => {}
            None if is_choking || begun.contains(&torrent) => {}
            None => {
                let count = geometry.piece_count();
                let next = random.below(count as usize) as u32;
                let connected = peers.iter_many(connected.iter()).flatten();
                let plan = SuperSeedPlan::new(geometry, next, connected);
                commands.entity(torrent).insert((plan, SuperSeeding::default()));
                begun.push(torrent);
            }
        }
        if !is_choking {
            queue.peers.push(peer);
        }
    }
}

/// Gives a torrent that only super-seeds its plan at once, so that it serves no peer that needs nothing.
fn plan_for_marked(marked: On<Add<SuperSeedsOnly>>, planner: Planner) {
    planner.plan(marked.entity);
}

fn plan_for_first_peer(added: On<Add<TorrentPeers>>, planner: Planner) {
    planner.plan(added.entity);
}

/// Gives plans to torrents that only super-seed.
#[derive(SystemParam)]
struct Planner<'w, 's> {
    commands: Commands<'w, 's>,
    queue: ResMut<'w, SuggestQueue>,
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    torrents: Query<'w, 's, (&'static Layout, &'static TorrentPeers), (With<SuperSeedsOnly>, Without<SuperSeedPlan>)>,
    pieces: Query<'w, 's, &'static PeerPieces>,
}

impl Planner<'_, '_> {
    fn plan(mut self, torrent: Entity) {
        let Ok((Layout(geometry), connected)) = self.torrents.get(torrent) else {
            return;
        };
        let plan = SuperSeedPlan::new(geometry, 0, self.pieces.iter_many(connected.iter()).flatten());
        self.commands.entity(torrent).insert((plan, SuperSeeding::default()));
        self.queue.changed.extend(connected.iter().map(|peer| (torrent, peer)));
        self.wakeup.at(self.clock.now());
    }
}

/// Drops a torrent's super-seeding state with its last peer.
fn end_super_seeding(emptied: On<Remove<TorrentPeers>>, mut commands: Commands) {
    commands
        .entity(emptied.entity)
        .try_remove::<(SuperSeedPlan, SuperSeeding)>();
}

fn handle_haves(
    clock: Res<Clock>,
    mut received: MessageReader<AvailabilityReceived>,
    mut emptied: ResMut<EmptiedUploads>,
    mut queue: ResMut<SuggestQueue>,
    peers: Query<&PeerOf>,
    mut torrents: Query<&mut SuperSeedPlan>,
) {
    for AvailabilityReceived { peer, change } in received.read() {
        let Ok(of) = peers.get(*peer) else { continue };
        let Ok(mut plan) = torrents.get_mut(of.0) else {
            continue;
        };
        queue.changed.push((of.0, *peer));
        match change {
            Availability::Have(piece) => {
                let has_all = plan.handle_have(*peer, *piece);
                if has_all && plan.finish_until.is_some_and(|until| clock.now() < until) {
                    emptied.0.push(*peer);
                }
            }
            Availability::Bitfield(pieces) => plan.add(pieces),
            Availability::All => plan.add_all(),
            Availability::None | Availability::DontHave(_) | Availability::Raw(_) => {}
        }
    }
}

/// Records the first and the last request of unchoked peers for each piece.
fn handle_requests(
    mut served: MessageReader<PieceRequested>,
    mut queue: ResMut<SuggestQueue>,
    peers: Query<&PeerState>,
    mut plans: Query<&mut SuperSeedPlan>,
) {
    for served in served.read() {
        let (torrent, peer) = (served.torrent, served.peer);
        let (Ok(state), Ok(mut plan)) = (peers.get(peer), plans.get_mut(torrent)) else {
            continue;
        };
        if state.am_choking {
            continue;
        }
        if served.is_begun {
            plan.handle_request(peer, served.piece);
            queue.peers.push(peer);
        }
        if served.is_ended {
            plan.handle_last_request(peer, served.piece);
        }
        queue.changed.push((torrent, peer));
    }
}

/// The parts of a torrent that suggestions read and write.
type SuggestingTorrent = (
    &'static Layout,
    &'static Lifecycle,
    &'static mut SuperSeedPlan,
    &'static mut SuperSeeding,
    &'static Choker,
    Has<SuperSeedsOnly>,
);

/// Assigns pieces to the peers that may get more, and publishes what has changed.
fn suggest(
    clock: Res<Clock>,
    mut queue: ResMut<SuggestQueue>,
    mut flush: ResMut<FlushQueue>,
    mut emptied: ResMut<EmptiedUploads>,
    wakeup: Res<Wakeup>,
    mut torrents: Query<SuggestingTorrent>,
    mut peers: Query<(&PeerOf, &PeerState, &PeerRates, &Wire, &mut Outbox)>,
    mut turns: Query<&mut SuperSeedingTurn>,
) {
    let now = clock.now();
    let SuggestQueue {
        peers: waiting,
        changed,
    } = &mut *queue;
    for peer in waiting.drain(..) {
        let Ok((of, state, rates, wire, mut outbox)) = peers.get_mut(peer) else {
            continue;
        };
        let Ok((Layout(geometry), Lifecycle::Seeding, mut plan, _, choker, _)) = torrents.get_mut(of.0) else {
            continue;
        };
        if state.am_choking || !wire.session.fast || !choker.is_contended() {
            continue;
        }
        let ahead = AHEAD_BYTES.max(rates.upload.at(now) / AHEAD_PART);
        let ahead = (ahead / u64::from(geometry.piece_length())).max(AHEAD_PIECES);
        let others_wait = choker.has_waiting();
        while let Some(piece) = plan.assign(now, peer, ahead, others_wait) {
            flush.send(peer, &mut outbox, &Message::SuggestPiece(piece));
        }
        plan.record_end(now);
        changed.push((of.0, peer));
    }
    let mut published = None;
    for (torrent, peer) in changed.drain(..) {
        let Ok((_, _, plan, mut state, _, super_seeds_only)) = torrents.get_mut(torrent) else {
            continue;
        };
        if let Ok(mut turn) = turns.get_mut(peer) {
            *turn = plan.turn_of(peer);
        }
        if published.replace(torrent) != Some(torrent) {
            let before = std::mem::replace(&mut *state, plan.state(now));
            if super_seeds_only && state.is_out && !before.is_out {
                // The served peers need nothing more: their slots do not wait for the next round.
                emptied.0.push(peer);
                wakeup.at(now);
            }
        }
    }
}

/// Releases the assignments of disconnected peers. A torrent that only super-seeds serves the pieces again that only
/// these peers had.
fn release_assignments(
    clock: Res<Clock>,
    mut gone: MessageReader<PeerDisconnected>,
    mut torrents: Query<(
        &mut SuperSeedPlan,
        &mut SuperSeeding,
        Has<SuperSeedsOnly>,
        Option<&TorrentPeers>,
    )>,
    peers: Query<&PeerPieces>,
) {
    for PeerDisconnected { torrent, peer, .. } in gone.read() {
        let known = torrent.and_then(|torrent| torrents.get_mut(torrent).ok());
        let Some((mut plan, mut state, super_seeds_only, connected)) = known else {
            continue;
        };
        plan.forget(*peer);
        if super_seeds_only {
            let connected = connected.into_iter().flat_map(RelationshipTarget::iter);
            let others = connected.filter(|other| other != peer);
            plan.hold_only(others.filter_map(|other| peers.get(other).ok()));
        }
        *state = plan.state(clock.now());
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Bed, NOW};
    use ecs_torrent_components::super_seeding::SuperSeedingPhase as Phase;

    use super::*;

    impl SuperSeedPlan {
        fn phase(&self, now: Timestamp) -> Option<Phase> {
            self.state(now).phase(now)
        }

        fn has_had_turn(&self, peer: Entity, phase: Phase) -> bool {
            self.turn_of(peer).is_over(phase)
        }
    }

    fn peer(id: u32) -> Entity {
        Entity::from_raw_u32(id).unwrap()
    }

    /// A torrent of `count` pieces of 64 KiB.
    fn pieces(count: u32) -> Geometry {
        Geometry::new(u64::from(count) << 16, 1 << 16).unwrap()
    }

    #[test]
    fn pieces_that_peers_have_are_not_assigned() {
        let mut nearly = PeerPieces::all(9);
        nearly.remove(4);
        let mut one = PeerPieces::none(9);
        one.insert(7);
        let missing = |peers: &[&PeerPieces]| {
            let mut plan = SuperSeedPlan::new(&pieces(9), 0, peers.iter().copied());
            let assigned = std::iter::from_fn(|| plan.assign(Timestamp::ZERO, peer(1), 99, false));
            assigned.collect::<Vec<_>>()
        };
        assert_eq!(missing(&[&nearly]), [4]);
        assert_eq!(missing(&[&one]), [0, 1, 2, 3, 4, 5, 6, 8]);
        assert_eq!(missing(&[&one, &PeerPieces::all(9)]), Vec::<u32>::new());
    }

    #[test]
    fn a_turn_ends_where_others_wait() {
        let (a, b) = (peer(1), peer(2));
        let mut plan = SuperSeedPlan::new(&pieces(9), 0, std::iter::empty());
        let suggested =
            |plan: &mut SuperSeedPlan, peer| std::iter::from_fn(|| plan.assign(Timestamp::ZERO, peer, 9, true)).count();
        assert_eq!(suggested(&mut plan, a), 2);
        assert!(!plan.has_had_turn(a, Phase::Assigning), "it has not asked for them");
        plan.handle_request(a, 0);
        plan.handle_request(a, 1);
        plan.handle_last_request(a, 0);
        assert!(!plan.has_had_turn(a, Phase::Assigning), "it has requested a part of 1");
        plan.handle_last_request(a, 1);
        assert!(plan.has_had_turn(a, Phase::Assigning));
        assert_eq!(suggested(&mut plan, b), 2);
        plan.handle_request(b, 2);
        // b is choked: the piece that it requested stays assigned, 3 goes to the next peer, and b has another turn.
        plan.end_turn(b);
        assert_eq!(suggested(&mut plan, b), 2);
        plan.end_turn(a);
        assert_eq!(suggested(&mut plan, a), 2);
        let left = std::iter::from_fn(|| plan.assign(Timestamp::ZERO, a, 9, false)).count();
        assert_eq!((left, plan.phase(Timestamp::ZERO)), (2, None));
    }

    #[test]
    fn the_last_pieces_arrive_before_others_are_served() {
        let (a, b) = (peer(1), peer(2));
        let mut plan = SuperSeedPlan::new(&pieces(3), 0, std::iter::empty());
        let now = Timestamp::ZERO;
        while plan.assign(now, a, 9, false).is_some() {}
        assert_eq!(plan.phase(now), None);
        plan.record_end(now);
        let finishing = Phase::Finishing { until: now + FINISH };
        assert_eq!(plan.phase(now), Some(finishing));
        assert!(plan.has_had_turn(b, finishing) && !plan.has_had_turn(a, finishing));
        (0..3).for_each(|piece| plan.handle_request(a, piece));
        assert!(!plan.handle_have(a, 0));
        // A requested piece may still arrive after the turn; after a while another peer gets it.
        plan.end_turn(a);
        assert_eq!(plan.assign(now, b, 9, false), None);
        assert_eq!(plan.phase(now), Some(finishing));
        let later = now + FINISH;
        assert_eq!(plan.phase(later), None);
        assert_eq!(plan.assign(later, b, 9, false), Some(1));
        plan.handle_have(a, 2);
        assert_eq!(plan.assign(later, b, 9, false), None);
        assert!(plan.handle_have(b, 1));
    }

    #[test]
    fn each_piece_is_assigned_once_until_it_is_withdrawn() {
        let (a, b) = (peer(1), peer(2));
        let has = PeerPieces::from({
            let mut bits = Bitfield::new(6);
            bits.insert(2);
            bits
        });
        let mut plan = SuperSeedPlan::new(&pieces(6), 1, [&has].into_iter());
        let mut suggested: Vec<u32> = std::iter::from_fn(|| plan.assign(Timestamp::ZERO, a, 2, false)).collect();
        assert_eq!(suggested, [1, 3]);
        suggested.extend(std::iter::from_fn(|| plan.assign(Timestamp::ZERO, b, 9, false)));
        assert_eq!(suggested, [1, 3, 4, 5, 0]);
        // 1 is in flight and 3 has arrived: when the peer is choked, 1 may be assigned again, 3 may not.
        plan.handle_request(a, 1);
        plan.handle_request(a, 3);
        plan.handle_have(a, 3);
        assert_eq!(plan.assign(Timestamp::ZERO, a, 2, false), None, "all are out");
        plan.forget(a);
        assert_eq!(plan.assign(Timestamp::ZERO, b, 9, false), Some(1));
        assert_eq!(plan.assign(Timestamp::ZERO, b, 9, false), None);
    }

    #[test]
    fn requests_without_a_suggestion_count_as_assigned() {
        let mut plan = SuperSeedPlan::new(&pieces(3), 0, std::iter::empty());
        plan.handle_request(peer(1), 0);
        assert_eq!(plan.assign(Timestamp::ZERO, peer(2), 1, false), Some(1));
        let complete = PeerPieces::all(3);
        assert_eq!(
            SuperSeedPlan::new(&pieces(3), 0, [&complete].into_iter()).assign(Timestamp::ZERO, peer(1), 1, false),
            None
        );
    }

    #[test]
    fn the_last_phase_begins_once_and_only_when_all_pieces_are_assigned() {
        let (a, now) = (peer(1), Timestamp::ZERO);
        let later = now + FINISH / 2;
        let mut plan = SuperSeedPlan::new(&pieces(2), 0, std::iter::empty());
        plan.assign(now, a, 1, false);
        plan.record_end(now);
        assert_eq!(plan.state(now).finish_until, None, "one piece is not assigned");
        assert!(!plan.state(now).is_awaited);
        plan.assign(now, a, 9, false);
        assert!(!plan.state(now).is_awaited, "the last phase has not begun");
        plan.record_end(now);
        plan.record_end(later);
        assert_eq!(plan.state(later).finish_until, Some(now + FINISH));
        assert!(plan.state(later).is_awaited);
        assert!(!plan.state(now + FINISH).is_awaited, "it is over");
        for piece in 0..2 {
            plan.handle_have(a, piece);
        }
        assert!(!plan.state(later).is_awaited, "both pieces have arrived");
    }

    #[test]
    fn a_withdrawn_piece_is_assigned_after_those_that_nobody_has_had() {
        let (a, b) = (peer(1), peer(2));
        let mut plan = SuperSeedPlan::new(&pieces(4), 0, std::iter::empty());
        assert_eq!(plan.assign(Timestamp::ZERO, a, 1, false), Some(0));
        plan.end_turn(a);
        let suggested: Vec<u32> = std::iter::from_fn(|| plan.assign(Timestamp::ZERO, b, 9, false)).collect();
        assert_eq!(suggested, [1, 2, 3, 0]);
    }

    /// Returns a seed for which two peers compete, with its state of super-seeding.
    fn bed() -> Bed {
        let mut bed = Bed::new(SuggestingPlugin);
        bed.world.init_resource::<EmptiedUploads>();
        *bed.get_mut::<Lifecycle>(bed.torrent) = Lifecycle::Seeding;
        let plan = SuperSeedPlan::new(&bed.geometry, 0, std::iter::empty());
        let parts = (plan, SuperSeeding::default(), Choker::contended(false));
        bed.world.entity_mut(bed.torrent).insert(parts);
        bed
    }

    /// Lets a peer ask for suggestions. Returns how many it gets.
    fn suggest_to(bed: &mut Bed, peer: Entity) -> usize {
        bed.world.resource_mut::<SuggestQueue>().peers.push(peer);
        bed.run(suggest);
        assert!(!bed.world.resource::<SuggestQueue>().has_work());
        bed.get_mut::<Outbox>(peer).take().concat().len() / 9
    }

    /// BEP 6. Pieces of 32 KiB: 128 KiB are four, of a torrent of three.
    #[test]
    fn unchoked_peers_that_compete_get_suggestions() {
        let gets = |change: fn(&mut Bed, Entity)| {
            let mut bed = bed();
            let peer = bed.peer();
            change(&mut bed, peer);
            suggest_to(&mut bed, peer)
        };
        assert_eq!(gets(|_, _| {}), 3);
        assert_eq!(gets(|bed, peer| bed.get_mut::<PeerState>(peer).am_choking = true), 0);
        assert_eq!(gets(|bed, peer| bed.get_mut::<Wire>(peer).session.fast = false), 0);
        assert_eq!(
            gets(|bed, _| *bed.get_mut::<Choker>(bed.torrent) = Choker::default()),
            0
        );
        assert_eq!(
            gets(|bed, _| *bed.get_mut::<Lifecycle>(bed.torrent) = Lifecycle::Downloading),
            0
        );
    }

    /// The faster a peer is, the more is suggested ahead.
    #[test]
    fn a_quarter_of_a_second_is_suggested_ahead() {
        let geometry = Geometry::new(100 << 15, 1 << 15).unwrap();
        for (rate, count) in [(0, 4), ((4 * 7) << 15, 7)] {
            let mut bed = bed();
            let peer = bed.peer();
            let plan = SuperSeedPlan::new(&geometry, 0, std::iter::empty());
            bed.world
                .entity_mut(bed.torrent)
                .insert((Layout(geometry.clone()), plan));
            let mut rates = bed.get_mut::<PeerRates>(peer);
            let mut at = Timestamp::from_nanos(NOW.as_nanos() - 20_000_000_000);
            while at < NOW {
                rates.upload.add(at, rate / 10);
                at += Duration::from_millis(100);
            }
            rates.upload.add(NOW, rate / 10);
            let suggested = suggest_to(&mut bed, peer);
            assert!(suggested.abs_diff(count) <= 1, "{suggested}");
        }
    }

    /// A choked peer's suggestions go to others; super-seeding begins with the first unchoke.
    #[test]
    fn super_seeding_begins_with_an_unchoke_and_turns_end_with_a_choke() {
        let mut bed = bed();
        let [one, two] = [bed.peer(), bed.peer()];
        for peer in [one, two] {
            *bed.get_mut::<PeerPieces>(peer) = PeerPieces::none(3);
        }
        bed.world
            .entity_mut(bed.torrent)
            .remove::<(SuperSeedPlan, SuperSeeding)>();
        let torrent = bed.torrent;
        let sent = |peer, is_choking| ChokeSent {
            torrent,
            peer,
            is_choking,
        };
        bed.run_after(sent(one, true), begin_super_seeding);
        assert!(bed.world.get::<SuperSeedPlan>(torrent).is_none());
        bed.world.init_resource::<Messages<ChokeSent>>();
        bed.world.write_message(sent(two, false));
        bed.run_after(sent(one, false), begin_super_seeding);
        assert!(bed.world.get::<SuperSeedPlan>(torrent).is_some());
        assert_eq!(bed.world.resource::<SuggestQueue>().peers, [two, one]);
        bed.world.resource_mut::<SuggestQueue>().peers.clear();
        assert_eq!(suggest_to(&mut bed, one), 3);
        assert_eq!(suggest_to(&mut bed, two), 0);
        bed.run_after(sent(one, true), begin_super_seeding);
        assert!(
            bed.world.resource::<SuggestQueue>().peers.is_empty(),
            "a choked peer gets none"
        );
        assert_eq!(suggest_to(&mut bed, two), 3, "they are free again");
        bed.run_after(sent(one, false), begin_super_seeding);
        bed.world.resource_mut::<SuggestQueue>().peers.clear();
        let gone = PeerDisconnected {
            torrent: Some(torrent),
            peer: two,
            reason: ecs_torrent_components::peer::CloseReason::Evicted,
        };
        bed.run_after(gone, release_assignments);
        assert_eq!(suggest_to(&mut bed, one), 3, "and again");
    }

    /// The request for the first block of a piece shows that a peer has begun it.
    #[test]
    fn requests_and_haves_of_peers_are_followed() {
        let mut bed = bed();
        let [one, two] = [bed.peer(), bed.peer()];
        let request = |bed: &mut Bed, peer, piece, block| {
            let request = bed.geometry.block(piece, block);
            let served = PieceRequested {
                torrent: bed.torrent,
                peer,
                piece,
                is_begun: request.begin == 0,
                is_ended: bed.geometry.is_end_of_piece(request),
            };
            bed.run_after(served, handle_requests);
            std::mem::take(&mut bed.world.resource_mut::<SuggestQueue>().peers).len()
        };
        assert_eq!(request(&mut bed, one, 0, 1), 0);
        bed.get_mut::<PeerState>(one).am_choking = true;
        assert_eq!(request(&mut bed, one, 0, 0), 0);
        bed.get_mut::<PeerState>(one).am_choking = false;
        assert_eq!(request(&mut bed, one, 0, 0), 1);
        assert_eq!(suggest_to(&mut bed, two), 2, "piece 0 is taken");
        let is_requested = |bed: &Bed| bed.get::<SuperSeedPlan>(bed.torrent).assigned[&one].begun.is_empty();
        assert!(!is_requested(&bed));
        assert_eq!(request(&mut bed, one, 0, 1), 0);
        assert!(is_requested(&bed), "to its last block");
        // The last pieces have time to arrive; the peer that has all of its own makes room.
        let have = |bed: &mut Bed, peer, piece| {
            let change = Availability::Have(piece);
            bed.run_after(AvailabilityReceived { peer, change }, handle_haves);
            std::mem::take(&mut bed.world.resource_mut::<EmptiedUploads>().0)
        };
        assert_eq!(have(&mut bed, two, 1), []);
        assert_eq!(have(&mut bed, two, 2), [two]);
        let until = bed.get::<SuperSeedPlan>(bed.torrent).finish_until.unwrap();
        bed.world.resource_mut::<Clock>().advance_to(until);
        assert_eq!(have(&mut bed, one, 0), [], "that time is over");
        bed.run(suggest);
        assert!(bed.get::<SuperSeeding>(bed.torrent).is_assigned);
    }

    #[test]
    fn each_kind_of_work_of_super_seeding_is_seen() {
        let mut queue = SuggestQueue::default();
        assert!(!queue.has_work());
        queue.peers.push(peer(1));
        assert!(queue.has_work());
        queue.changed.push((peer(1), queue.peers.pop().unwrap()));
        assert!(queue.has_work());
    }

    /// Other features read the state as it is after each change.
    #[test]
    fn a_single_change_is_published() {
        let mut bed = bed();
        let peer = bed.peer();
        assert_eq!(suggest_to(&mut bed, peer), 3);
        assert!(bed.get::<SuperSeeding>(bed.torrent).is_assigned);
    }
}
