//! What peers have, and whether that interests us.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::messages::{Availability, AvailabilityReceived, TorrentCompleted};
use ecs_torrent_components::peer::{
    CloseReason, FlushQueue, Outbox, PeerPieces, PeerState, RefillQueue, Requests, Wire,
};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Have, Lifecycle, PeerOf, TorrentPeers};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::wire::Message;

use crate::DecideSet;
use crate::picking::{DroppedRequests, Picker};

/// Keeps what peers have, the picker's counts of it, and our interest.
pub struct AvailabilityPlugin;

impl Plugin for AvailabilityPlugin {
    fn build(&self, app: &mut App) {
        app.add_systems(
            Tick,
            (hear_availability, part_from_seeds)
                .chain()
                .in_set(DecideSet::Availability),
        );
    }
}

fn hear_availability(
    mut received: MessageReader<AvailabilityReceived>,
    mut random: ResMut<Random>,
    mut flush: ResMut<FlushQueue>,
    mut refill: ResMut<RefillQueue>,
    mut dropped: ResMut<DroppedRequests>,
    mut reaper: ResMut<Reaper>,
    settings: Res<Settings>,
    mut torrents: Query<(&Have, &Lifecycle, Option<&mut Picker>)>,
    mut peers: Query<(
        &PeerOf,
        &mut PeerPieces,
        &mut PeerState,
        &mut Requests,
        &mut Outbox,
        &Wire,
    )>,
) {
    for AvailabilityReceived { peer, change } in received.read() {
        let Ok((of, mut pieces, mut state, mut requests, mut outbox, wire)) = peers.get_mut(*peer) else {
            continue;
        };
        let Ok((Have(have), lifecycle, picker)) = torrents.get_mut(of.0) else {
            continue;
        };
        if let (Availability::DontHave(index), false) = (change, wire.session.fast) {
            // BEP 54: without the fast extension, requests for it are dropped silently.
            dropped.0.push((*peer, *index));
        }
        let is_single = apply(change, &mut pieces, picker, &mut random);
        match is_single {
            Some((index, true)) => pieces.wanted_count += u32::from(!have.contains(index)),
            Some((index, false)) => {
                let lost = u32::from(!have.contains(index));
                pieces.wanted_count = pieces.wanted_count.saturating_sub(lost);
            }
            None => pieces.wanted_count = pieces.count_missing_in(have),
        }
        // A full disk is waited for with everything else as it was.
        let downloads = matches!(*lifecycle, Lifecycle::Downloading | Lifecycle::Blocked { .. });
        let wants = pieces.wanted_count > 0 && downloads;
        if wants != state.am_interested {
            state.am_interested = wants;
            let message = if wants {
                Message::Interested
            } else {
                Message::NotInterested
            };
            flush.send(*peer, &mut outbox, &message);
        }
        if wants {
            refill.add(*peer, &mut requests);
        }
        let is_redundant = pieces.is_complete() && *lifecycle == Lifecycle::Seeding;
        if is_redundant && !settings.peers.keep_redundant {
            reaper.close(*peer, CloseReason::Redundant);
        }
    }
}

/// Changes what a peer has, and the picker's counts with it. Tells the piece and whether it came or went, where it
/// was one alone.
fn apply(
    change: &Availability,
    pieces: &mut PeerPieces,
    picker: Option<Mut<Picker>>,
    random: &mut Random,
) -> Option<(u32, bool)> {
    let was_complete = pieces.is_complete();
    let single = match *change {
        Availability::Have(index) => pieces.insert(index).then_some((index, true)),
        Availability::DontHave(index) => pieces.remove(index).then_some((index, false)),
        _ => None,
    };
    let Some(mut picker) = picker else {
        replace(change, pieces);
        return single;
    };
    let order = &mut picker.order;
    match (change, single) {
        (Availability::Have(_) | Availability::DontHave(_), None) => {}
        // From single pieces to all of them and back, a peer is counted another way.
        (_, Some((index, came))) if pieces.is_complete() != was_complete => {
            if came {
                let mut before = pieces.clone();
                before.remove(index);
                order.remove_peer(&before, random);
            } else {
                order.remove_peer(&PeerPieces::all(pieces.len()), random);
            }
            order.add_peer(pieces, random);
        }
        (_, Some((index, true))) => order.add_copy(index, random),
        (_, Some((index, false))) => order.remove_copy(index, random),
        // A bitfield in place of many haves changes little.
        (Availability::Bitfield(bits), None) if pieces.bits().is_some() && !bits.is_full() => {
            let before = pieces.bits().cloned().unwrap_or_default();
            bits.iter_without(&before)
                .for_each(|piece| order.add_copy(piece, random));
            before
                .iter_without(bits)
                .for_each(|piece| order.remove_copy(piece, random));
            replace(change, pieces);
        }
        (_, None) => {
            order.remove_peer(pieces, random);
            replace(change, pieces);
            order.add_peer(pieces, random);
        }
    }
    single
}

fn replace(change: &Availability, pieces: &mut PeerPieces) {
    match change {
        Availability::Bitfield(bits) => *pieces = bits.clone().into(),
        Availability::All => *pieces = PeerPieces::all(pieces.len()),
        Availability::None => *pieces = PeerPieces::none(pieces.len()),
        Availability::Have(_) | Availability::DontHave(_) => {}
    }
}

/// Whoever has everything is of no use to a seed, nor a seed to it.
fn part_from_seeds(
    mut completed: MessageReader<TorrentCompleted>,
    settings: Res<Settings>,
    mut reaper: ResMut<Reaper>,
    torrents: Query<&TorrentPeers>,
    peers: Query<(&PeerPieces, &PeerState)>,
) {
    if settings.peers.keep_redundant {
        return;
    }
    for TorrentCompleted { torrent } in completed.read() {
        for peer in torrents.get(*torrent).into_iter().flat_map(RelationshipTarget::iter) {
            if peers
                .get(peer)
                .is_ok_and(|(pieces, state)| pieces.is_complete() || state.upload_only)
            {
                reaper.close(peer, CloseReason::Redundant);
            }
        }
    }
}
