//! Who is served: tit for tat while we download, by turns while we seed, and one at random to find better ones
//! (BEP 3, "choking algorithms").

mod round;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::InterestReceived;
use ecs_torrent_components::peer::{FlushQueue, Outbox, PeerRates, PeerState, UploadQueue, Wire};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::{Settings, seconds};
use ecs_torrent_components::torrent::{Lifecycle, PeerOf, TorrentPeers};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::Message;

use self::round::{Contender, Goal, choose};
use crate::DecideSet;

/// Chokes and unchokes.
pub struct ChokingPlugin;

impl Plugin for ChokingPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<Deadlines<ChokeRound>>()
            .add_systems(Tick, (hear_interest, run_rounds).chain().in_set(DecideSet::Choking));
    }
}

/// On every torrent: the state of its choking rounds.
#[derive(Component, Debug, Default)]
pub struct Choker {
    /// The peer that is unchoked to see what it gives.
    optimistic: Option<Entity>,
    optimistic_since: Timestamp,
    unchoked_count: usize,
    /// When the next round is due, if one is.
    next_round: Option<Timestamp>,
}

/// When a torrent's next round is due.
#[derive(Debug)]
struct ChokeRound(Entity);

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
        // A free slot does not wait for the next round, and neither does one that this peer gives back.
        let has_room = choker.unchoked_count < limits.slots + limits.optimistic_slots;
        let is_urgent = (is_interested && has_room) || (!is_interested && !state.am_choking);
        let due = if is_urgent {
            now
        } else {
            now + seconds(limits.choke_interval_s)
        };
        if choker.next_round.is_none_or(|next| due < next) {
            choker.next_round = Some(due);
            rounds.set(due, ChokeRound(of.0));
        }
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
    mut torrents: Query<(&mut Choker, &Lifecycle, Option<&TorrentPeers>)>,
    mut peers: Query<(&mut PeerState, &PeerRates, &mut UploadQueue, &mut Outbox, &Wire)>,
) {
    let now = clock.now();
    let limits = &settings.uploads;
    while let Some(ChokeRound(torrent)) = rounds.pop_due(now) {
        let Ok((mut choker, lifecycle, connected)) = torrents.get_mut(torrent) else {
            continue;
        };
        if choker.next_round.is_none_or(|next| next > now) {
            continue;
        }
        choker.next_round = None;
        let connected = connected.into_iter().flat_map(RelationshipTarget::iter);
        let contenders: Vec<Contender> = connected
            .filter(|peer| !reaper.is_doomed(*peer))
            .filter_map(|peer| {
                let (state, rates, ..) = peers.get(peer).ok()?;
                Some(Contender {
                    peer,
                    is_interested: state.peer_interested,
                    is_snubbing: state.snubbed,
                    is_unchoked: !state.am_choking,
                    since: state.choke_changed,
                    gives: rates.download.at(now),
                    takes: rates.upload.at(now),
                })
            })
            .collect();
        let goal = match lifecycle {
            Lifecycle::Downloading => Goal::Download,
            _ => Goal::Seed {
                turn: seconds(limits.seeding_turn_s),
            },
        };
        if now.since(choker.optimistic_since) >= seconds(limits.optimistic_interval_s) {
            choker.optimistic = None;
        }
        let before = choker.optimistic;
        let served = choose(&contenders, goal, now, limits, &mut choker.optimistic, &mut random);
        if choker.optimistic != before {
            choker.optimistic_since = now;
        }
        for contender in &contenders {
            let serves = served.contains(&contender.peer);
            if serves == contender.is_unchoked {
                continue;
            }
            let Ok((mut state, _, mut uploads, mut outbox, wire)) = peers.get_mut(contender.peer) else {
                continue;
            };
            state.am_choking = !serves;
            state.choke_changed = now;
            let message = if serves { Message::Unchoke } else { Message::Choke };
            flush.send(contender.peer, &mut outbox, &message);
            if !serves {
                drop_requests(contender.peer, &mut uploads, &mut outbox, wire, &mut flush);
            }
        }
        choker.unchoked_count = served.len();
        // As long as somebody wants something, there is a next round.
        if contenders.iter().any(|contender| contender.is_interested) {
            let next = now + seconds(limits.choke_interval_s);
            choker.next_round = Some(next);
            rounds.set(next, ChokeRound(torrent));
        }
    }
    wakeup.at_next(rounds.next());
}

/// BEP 3: a choke drops what was requested. BEP 6: it does so with a reject for each, but for what may be had for
/// free.
fn drop_requests(peer: Entity, uploads: &mut UploadQueue, outbox: &mut Outbox, wire: &Wire, flush: &mut FlushQueue) {
    let UploadQueue {
        waiting, allowed_fast, ..
    } = uploads;
    if !wire.session.fast {
        waiting.clear();
        return;
    }
    waiting.retain(|request| {
        let stays = allowed_fast.contains(&request.piece);
        if !stays {
            flush.send(peer, outbox, &Message::RejectRequest(*request));
        }
        stays
    });
}
