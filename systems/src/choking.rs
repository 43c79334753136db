//! The choker: which peers are unchoked. A download unchokes by tit for tat, and a seed by turns; one optimistic
//! unchoke at random finds better peers (BEP 3, "choking algorithms").

mod round;
#[cfg(test)]
mod tests;
mod width;

use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{ChokeSent, InterestReceived};
use ecs_torrent_components::peer::{EmptiedUploads, FlushQueue, Outbox, PeerRates, PeerState, UploadQueue, Wire};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::{Settings, UploadSettings, seconds};
use ecs_torrent_components::super_seeding::{SuperSeeding, SuperSeedingPhase, SuperSeedingTurn, SuperSeedsOnly};
use ecs_torrent_components::torrent::{Layout, Lifecycle, PeerOf, Torrent, TorrentPeers};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::Message;

use self::round::{Contender, Goal, Outcome, Rotation, Round};
use self::width::{IDLE_AFTER, patience};
use crate::DecideSet;
use crate::conditions::{has_due, has_messages};

/// Chokes and unchokes.
pub struct ChokingPlugin;

impl Plugin for ChokingPlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<Torrent, Choker>();
        app.init_resource::<Deadlines<ChokeRound>>()
            .add_message::<ChokeSent>()
            .add_systems(
                Tick,
                (
                    handle_interest.run_if(has_messages::<InterestReceived>),
                    handle_emptied.run_if(|emptied: Res<EmptiedUploads>| !emptied.0.is_empty()),
                    run_rounds.run_if(has_due::<ChokeRound>),
                )
                    .chain()
                    .in_set(DecideSet::Choking),
            );
    }
}

/// State of a torrent's choking rounds.
#[derive(Component, Debug, Default)]
pub struct Choker {
    rotation: Rotation,
    /// Whether all slots were busy in the last round, so that no waiting peer could be served.
    is_full: bool,
    /// Whether interested peers were waiting in the last round.
    has_waiting: bool,
    /// Whether more than one peer was interested in the last round.
    is_contended: bool,
    /// Time at which free slots were last filled.
    filled: Timestamp,
    /// Time of the next round, if one is due.
    next_round: Option<Timestamp>,
}

/// Least time between two fills of free slots: interest may change with every piece.
const FILL_PAUSE: Duration = Duration::from_millis(100);

/// Time for the first request of an unchoked peer to arrive, before another peer may have its slot: a round trip of a
/// bad link and its queues.
const BEGIN_WITHIN: Duration = Duration::from_secs(2);

/// Deadline of a torrent's next choking round.
#[derive(Debug)]
struct ChokeRound(Entity);

#[cfg(test)]
impl Choker {
    /// State after a round in which several peers were interested.
    pub(crate) fn contended(has_waiting: bool) -> Self {
        Self {
            has_waiting,
            is_contended: true,
            ..Self::default()
        }
    }
}

impl Choker {
    /// Returns whether interested peers are waiting to be served.
    pub(crate) fn has_waiting(&self) -> bool {
        self.has_waiting
    }

    /// Returns whether more than one peer is interested.
    pub(crate) fn is_contended(&self) -> bool {
        self.is_contended
    }

    /// Records the decision of a round, and schedules the next round.
    fn record(&mut self, now: Timestamp, torrent: Entity, outcome: &Outcome, rounds: &mut Deadlines<ChokeRound>) {
        self.rotation = outcome.rotation;
        self.is_full = outcome.is_full;
        self.has_waiting = outcome.has_waiting;
        self.is_contended = outcome.is_contended;
        self.filled = now;
        if let Some(next) = outcome.next {
            self.look_at(next, torrent, rounds);
        }
    }

    /// Schedules a round at `due`, unless an earlier one is scheduled.
    fn look_at(&mut self, due: Timestamp, torrent: Entity, rounds: &mut Deadlines<ChokeRound>) {
        if self.next_round.is_none_or(|next| due < next) {
            self.next_round = Some(due);
            rounds.set(due, ChokeRound(torrent));
        }
    }
}

fn handle_interest(
    mut received: MessageReader<InterestReceived>,
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut rounds: ResMut<Deadlines<ChokeRound>>,
    mut peers: Query<(&mut PeerState, &PeerOf)>,
    mut torrents: Query<&mut Choker>,
) {
    let now = clock.now();
    let limits = &settings.uploads;
    for &InterestReceived { peer, is_interested } in received.read() {
        let Ok((mut state, of)) = peers.get_mut(peer) else {
            continue;
        };
        state.peer_interested = is_interested;
        let Ok(mut choker) = torrents.get_mut(of.0) else {
            continue;
        };
        // A free slot does not wait for the next round, and neither does a slot that this peer frees.
        let is_urgent = (is_interested && !choker.is_full) || (!is_interested && !state.am_choking);
        let due = if is_urgent {
            now.max(choker.filled + FILL_PAUSE)
        } else {
            now + seconds(limits.choke_interval_s)
        };
        choker.look_at(due, of.0, &mut rounds);
    }
}

/// Schedules a round when a peer requests nothing more, so that its slot can go to a waiting peer.
fn handle_emptied(
    mut emptied: ResMut<EmptiedUploads>,
    clock: Res<Clock>,
    mut rounds: ResMut<Deadlines<ChokeRound>>,
    peers: Query<(&PeerOf, Option<&SuperSeedingTurn>)>,
    mut torrents: Query<(&mut Choker, Option<&SuperSeeding>, Has<SuperSeedsOnly>)>,
) {
    let now = clock.now();
    for peer in emptied.0.drain(..) {
        let Ok((of, turn)) = peers.get(peer) else { continue };
        let Ok((mut choker, super_seeding, super_seeds_only)) = torrents.get_mut(of.0) else {
            continue;
        };
        if super_seeds_only && super_seeding.is_some_and(|state| state.is_out) {
            choker.look_at(now, of.0, &mut rounds);
            continue;
        }
        if !choker.has_waiting {
            continue;
        }
        // The turns begun last may end once the whole copy is assigned.
        let has_had_turn = super_seeding.zip(turn).is_some_and(|(super_seeding, turn)| {
            turn.is_over(super_seeding.phase(now).unwrap_or(SuperSeedingPhase::Assigning))
        });
        let due = match has_had_turn {
            true => now.max(choker.filled + FILL_PAUSE),
            false => now + IDLE_AFTER,
        };
        choker.look_at(due, of.0, &mut rounds);
    }
}

/// The components of a peer that a choking round reads and writes.
type ChokedPeer = (
    &'static mut PeerState,
    &'static PeerRates,
    &'static mut UploadQueue,
    &'static mut Outbox,
    &'static Wire,
    Option<&'static SuperSeedingTurn>,
);

/// Parameters of choking rounds.
#[derive(SystemParam)]
struct RoundParams<'w, 's> {
    clock: Res<'w, Clock>,
    settings: Res<'w, Settings>,
    reaper: Res<'w, Reaper>,
    flush: ResMut<'w, FlushQueue>,
    sent: MessageWriter<'w, ChokeSent>,
    peers: Query<'w, 's, ChokedPeer>,
}

/// The parts of a torrent that a choking round reads and writes.
type ChokedTorrent = (
    &'static mut Choker,
    &'static Lifecycle,
    Option<&'static Layout>,
    Option<&'static TorrentPeers>,
    Option<&'static SuperSeeding>,
    Has<SuperSeedsOnly>,
);

/// Runs the choking rounds that are due: gathers the peers of the torrent, decides which of them are served, and
/// applies the decision.
fn run_rounds(
    wakeup: Res<Wakeup>,
    mut random: ResMut<Random>,
    mut rounds: ResMut<Deadlines<ChokeRound>>,
    mut torrents: Query<ChokedTorrent>,
    mut params: RoundParams,
) {
    let now = params.clock.now();
    while let Some(ChokeRound(torrent)) = rounds.pop_due(now) {
        let Ok((mut choker, lifecycle, layout, connected, super_seeding, super_seeds_only)) = torrents.get_mut(torrent)
        else {
            continue;
        };
        if choker.next_round.is_none_or(|next| next > now) {
            continue;
        }
        choker.next_round = None;
        let phase = super_seeding.and_then(|super_seeding| super_seeding.phase(now));
        let piece_length = layout.map_or(0, |layout| layout.0.piece_length());
        let mut contenders = params.gather(connected, phase, piece_length);
        // A peer that leaves may take the only copy of a piece along, so that others have to be served again.
        let rests = super_seeds_only && super_seeding.is_some_and(|state| state.is_out);
        let has_interested = contenders.iter().any(|contender| contender.is_interested);
        if rests {
            contenders
                .iter_mut()
                .for_each(|contender| contender.is_interested = false);
        }
        let round = Round {
            now,
            goal: goal(lifecycle, &params.settings.uploads),
            phase,
            contenders: &contenders,
            piece_length,
            limits: &params.settings.uploads,
        };
        let mut outcome = round.decide(choker.rotation, &mut random);
        if rests && has_interested {
            outcome.next = Some(now + seconds(params.settings.uploads.choke_interval_s));
        }
        params.apply(torrent, &contenders, &outcome);
        choker.record(now, torrent, &outcome, &mut rounds);
    }
    wakeup.at_next(rounds.next());
}

fn goal(lifecycle: &Lifecycle, limits: &UploadSettings) -> Goal {
    match lifecycle {
        Lifecycle::Downloading => Goal::Download,
        _ => Goal::Seed {
            turn: seconds(limits.seeding_turn_s),
        },
    }
}

impl RoundParams<'_, '_> {
    /// Describes the connected peers of a torrent.
    fn gather(
        &self,
        connected: Option<&TorrentPeers>,
        phase: Option<SuperSeedingPhase>,
        piece_length: u32,
    ) -> Vec<Contender> {
        let now = self.clock.now();
        let turn_length = seconds(self.settings.uploads.seeding_turn_s);
        let connected = connected.into_iter().flat_map(RelationshipTarget::iter);
        connected
            .filter(|peer| !self.reaper.is_doomed(*peer))
            .filter_map(|peer| {
                let (state, rates, uploads, _, _, turn) = self.peers.get(peer).ok()?;
                let asks_until = uploads.emptied.max(state.choke_changed);
                let is_empty = !state.am_choking && uploads.is_empty();
                let idle_at = asks_until + patience(uploads.is_mid_piece, piece_length);
                Some(Contender {
                    peer,
                    is_interested: state.peer_interested,
                    is_snubbing: state.snubbed,
                    is_unchoked: !state.am_choking,
                    has_had_turn: phase.zip(turn).is_some_and(|(phase, turn)| {
                        let takes_long = now.since(state.choke_changed) >= turn_length;
                        let may_end = phase != SuperSeedingPhase::Assigning || uploads.is_empty();
                        takes_long || (may_end && turn.is_over(phase))
                    }),
                    idle_since: (is_empty && idle_at <= now).then_some(asks_until),
                    idle_at: (is_empty && uploads.is_mid_piece && idle_at > now).then_some(idle_at),
                    may_begin: uploads.emptied <= state.choke_changed && now.since(state.choke_changed) < BEGIN_WITHIN,
                    since: state.choke_changed,
                    download_rate: rates.download.at(now),
                    upload_rate: rates.upload.at(now),
                })
            })
            .collect()
    }

    /// Chokes and unchokes the peers whose state changes by a decision.
    fn apply(&mut self, torrent: Entity, contenders: &[Contender], outcome: &Outcome) {
        let now = self.clock.now();
        for contender in contenders {
            let (peer, serves) = (contender.peer, outcome.served.contains(&contender.peer));
            if serves == contender.is_unchoked {
                continue;
            }
            let Ok((mut state, _, mut uploads, mut outbox, wire, _)) = self.peers.get_mut(peer) else {
                continue;
            };
            state.am_choking = !serves;
            state.choke_changed = now;
            let message = if serves { Message::Unchoke } else { Message::Choke };
            self.flush.send(peer, &mut outbox, &message);
            self.sent.write(ChokeSent {
                torrent,
                peer,
                is_choking: !serves,
            });
            if !serves {
                let copies = self.settings.uploads.allowed_fast_copies;
                drop_requests(peer, &mut uploads, copies, &mut outbox, wire, &mut self.flush);
            }
        }
    }
}

/// Drops a choked peer's requests (BEP 3). With the fast extension, each is rejected, except those for allowed-fast
/// pieces (BEP 6).
fn drop_requests(
    peer: Entity,
    uploads: &mut UploadQueue,
    copies: u8,
    outbox: &mut Outbox,
    wire: &Wire,
    flush: &mut FlushQueue,
) {
    uploads.is_mid_piece = false;
    let UploadQueue {
        waiting, allowed_fast, ..
    } = uploads;
    if !wire.session.fast {
        waiting.clear();
        return;
    }
    for request in std::mem::take(waiting) {
        match allowed_fast.take(request, copies) {
            true => waiting.push_back(request),
            false => flush.send(peer, outbox, &Message::RejectRequest(request)),
        }
    }
}
