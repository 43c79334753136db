//! The choker: which peers are served. It is tit for tat while downloading and by turns while seeding, with one peer at
//! random to find better ones (BEP 3, "choking algorithms").

mod round;

use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{ChokeSent, InterestReceived};
use ecs_torrent_components::peer::{EmptiedUploads, FlushQueue, Outbox, PeerRates, PeerState, UploadQueue, Wire};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::{Settings, seconds};
use ecs_torrent_components::torrent::{Lifecycle, PeerOf, Torrent, TorrentPeers};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::Message;

use self::round::{Contender, Goal, Room, choose, fill};
use crate::DecideSet;
use crate::suggesting::{Phase, Spread};

/// Chokes and unchokes.
pub struct ChokingPlugin;

impl Plugin for ChokingPlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<Torrent, Choker>();
        app.init_resource::<Deadlines<ChokeRound>>()
            .add_message::<ChokeSent>()
            .add_systems(
                Tick,
                (hear_interest, hear_emptied, run_rounds)
                    .chain()
                    .in_set(DecideSet::Choking),
            );
    }
}

/// State of a torrent's choking rounds.
#[derive(Component, Debug, Default)]
pub struct Choker {
    /// The optimistic unchoke: a peer served at random to find out its upload rate.
    optimistic: Option<Entity>,
    optimistic_since: Timestamp,
    /// Whether all slots were busy in the last round, so that no waiting peer could be served.
    is_full: bool,
    /// Whether interested peers were waiting in the last round.
    has_waiting: bool,
    /// Whether more than one peer was interested in the last round.
    is_contended: bool,
    /// Time of the last ranking.
    ranked: Option<Timestamp>,
    /// Time at which free slots were last filled.
    filled: Timestamp,
    /// Time of the next round, if one is due.
    next_round: Option<Timestamp>,
}

/// Least time between two fills of free slots: interest may change with every piece.
const FILL_PAUSE: Duration = Duration::from_millis(100);

/// Time for a peer to request more, before another peer may have its slot.
const IDLE_AFTER: Duration = Duration::from_millis(200);

/// Time for the first request of an unchoked peer to arrive, before another peer may have its slot: a round trip of a
/// bad link and its queues.
const BEGIN_WITHIN: Duration = Duration::from_secs(2);

/// Deadline of a torrent's next choking round.
#[derive(Debug)]
struct ChokeRound(Entity);

impl Choker {
    /// Returns whether interested peers are waiting to be served.
    pub(crate) fn has_waiting(&self) -> bool {
        self.has_waiting
    }

    /// Returns whether more than one peer is interested.
    pub(crate) fn is_contended(&self) -> bool {
        self.is_contended
    }

    /// Schedules a round at `due`, unless an earlier one is scheduled.
    fn look_at(&mut self, due: Timestamp, torrent: Entity, rounds: &mut Deadlines<ChokeRound>) {
        if self.next_round.is_none_or(|next| due < next) {
            self.next_round = Some(due);
            rounds.set(due, ChokeRound(torrent));
        }
    }
}

fn hear_interest(
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
fn hear_emptied(
    mut emptied: ResMut<EmptiedUploads>,
    clock: Res<Clock>,
    mut rounds: ResMut<Deadlines<ChokeRound>>,
    peers: Query<&PeerOf>,
    mut torrents: Query<(&mut Choker, Option<&Spread>)>,
) {
    let now = clock.now();
    for peer in emptied.0.drain(..) {
        let Ok(of) = peers.get(peer) else { continue };
        let Ok((mut choker, spread)) = torrents.get_mut(of.0) else {
            continue;
        };
        if !choker.has_waiting {
            continue;
        }
        // The turns begun last may end once the whole copy is assigned.
        let has_had_turn =
            spread.is_some_and(|spread| spread.has_had_turn(peer, spread.phase(now).unwrap_or(Phase::Promising)));
        let due = match has_had_turn {
            true => now.max(choker.filled + FILL_PAUSE),
            false => now + IDLE_AFTER,
        };
        choker.look_at(due, of.0, &mut rounds);
    }
}

fn run_rounds(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    settings: Res<Settings>,
    reaper: Res<Reaper>,
    mut random: ResMut<Random>,
    mut flush: ResMut<FlushQueue>,
    mut rounds: ResMut<Deadlines<ChokeRound>>,
    mut told: MessageWriter<ChokeSent>,
    mut torrents: Query<(&mut Choker, &Lifecycle, Option<&TorrentPeers>, Option<&Spread>)>,
    mut peers: Query<(&mut PeerState, &PeerRates, &mut UploadQueue, &mut Outbox, &Wire)>,
) {
    let now = clock.now();
    let limits = &settings.uploads;
    while let Some(ChokeRound(torrent)) = rounds.pop_due(now) {
        let Ok((mut choker, lifecycle, connected, spread)) = torrents.get_mut(torrent) else {
            continue;
        };
        if choker.next_round.is_none_or(|next| next > now) {
            continue;
        }
        choker.next_round = None;
        let goal = match lifecycle {
            Lifecycle::Downloading => Goal::Download,
            _ => Goal::Seed {
                turn: seconds(limits.seeding_turn_s),
            },
        };
        let phase = spread.and_then(|spread| spread.phase(now));
        let connected = connected.into_iter().flat_map(RelationshipTarget::iter);
        let contenders: Vec<Contender> = connected
            .filter(|peer| !reaper.is_doomed(*peer))
            .filter_map(|peer| {
                let (state, rates, uploads, ..) = peers.get(peer).ok()?;
                let asks_until = uploads.emptied.max(state.choke_changed);
                let is_idle = !state.am_choking && uploads.is_empty() && asks_until + IDLE_AFTER <= now;
                Some(Contender {
                    peer,
                    is_interested: state.peer_interested,
                    is_snubbing: state.snubbed,
                    is_unchoked: !state.am_choking,
                    has_had_turn: spread.zip(phase).is_some_and(|(spread, phase)| {
                        let takes_long = now.since(state.choke_changed) >= seconds(limits.seeding_turn_s);
                        let may_end = phase != Phase::Promising || uploads.is_empty();
                        takes_long || (may_end && spread.has_had_turn(peer, phase))
                    }),
                    idle_since: is_idle.then_some(asks_until),
                    may_begin: uploads.emptied <= state.choke_changed && now.since(state.choke_changed) < BEGIN_WITHIN,
                    since: state.choke_changed,
                    gives: rates.download.at(now),
                    takes: rates.upload.at(now),
                })
            })
            .collect();
        let interval = seconds(limits.choke_interval_s);
        let is_ranking = phase.is_none() && choker.ranked.is_none_or(|ranked| now.since(ranked) >= interval);
        // Between rankings, free slots are filled and no peer loses one: pieces it has begun would stay incomplete.
        // During super-seeding, a turn ends when the peer has its share.
        let served = if is_ranking {
            if now.since(choker.optimistic_since) >= seconds(limits.optimistic_interval_s) {
                choker.optimistic = None;
            }
            let before = choker.optimistic;
            let served = choose(&contenders, goal, now, limits, &mut choker.optimistic, &mut random);
            if choker.optimistic != before {
                choker.optimistic_since = now;
            }
            choker.ranked = Some(now);
            served
        } else {
            let all = Room::all(goal, limits);
            let room = match phase {
                None => all,
                Some(Phase::Promising) => all.for_turns(&contenders),
                Some(Phase::Finishing { .. }) => Room { slots: 0, ..all },
            };
            fill(&contenders, room, &mut random)
        };
        choker.filled = now;
        let mut has_new = false;
        for contender in &contenders {
            let serves = served.contains(&contender.peer);
            if serves == contender.is_unchoked {
                continue;
            }
            let Ok((mut state, _, mut uploads, mut outbox, wire)) = peers.get_mut(contender.peer) else {
                continue;
            };
            has_new |= serves;
            state.am_choking = !serves;
            state.choke_changed = now;
            let message = if serves { Message::Unchoke } else { Message::Choke };
            flush.send(contender.peer, &mut outbox, &message);
            told.write(ChokeSent {
                torrent,
                peer: contender.peer,
                is_choking: !serves,
            });
            if !serves {
                let copies = limits.allowed_fast_copies;
                drop_requests(contender.peer, &mut uploads, copies, &mut outbox, wire, &mut flush);
            }
        }
        let wanting = contenders.iter().filter(|c| c.is_interested);
        let busy = wanting
            .clone()
            .filter(|c| served.contains(&c.peer) && c.idle_since.is_none());
        choker.is_full = busy.count() >= limits.slots + limits.optimistic_slots;
        choker.has_waiting = wanting.clone().any(|c| !served.contains(&c.peer));
        let count = wanting.count();
        choker.is_contended = count > 1;
        // While any peer is interested, a next round is scheduled.
        if count > 0 {
            let ranked = choker.ranked.filter(|ranked| now.since(*ranked) < interval);
            choker.look_at(ranked.unwrap_or(now) + interval, torrent, &mut rounds);
        }
        if let Some(Phase::Finishing { until }) = phase {
            choker.look_at(until, torrent, &mut rounds);
        }
        if choker.has_waiting && has_new {
            choker.look_at(now + IDLE_AFTER, torrent, &mut rounds);
        }
    }
    wakeup.at_next(rounds.next());
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
    let UploadQueue {
        waiting, allowed_fast, ..
    } = uploads;
    if !wire.session.fast {
        waiting.clear();
        return;
    }
    waiting.retain(|request| {
        let stays = allowed_fast.take(*request, copies);
        if !stays {
            flush.send(peer, outbox, &Message::RejectRequest(*request));
        }
        stays
    });
}
