//! What peers have, and whether that interests us.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::messages::{Availability, AvailabilityReceived, TorrentCompleted};
use ecs_torrent_components::peer::{
    CloseReason, FlushQueue, Outbox, PeerPieces, PeerState, PieceForm, RefillQueue, Requests, Wire,
};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Have, Lifecycle, PeerOf, TorrentPeers};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::wire::Message;

use crate::DecideSet;
use crate::picking::rarity::RarityOrder;
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
        let order = picker.map(|picker| picker.map_unchanged(|picker| &mut picker.order));
        let changed = apply(change, &mut pieces, order, &mut random);
        match changed {
            Change::Nothing => continue,
            Change::Came(index) => pieces.wanted_count += u32::from(!have.contains(index)),
            Change::Went(index) => {
                let lost = u32::from(!have.contains(index));
                pieces.wanted_count = pieces.wanted_count.saturating_sub(lost);
            }
            Change::Many => pieces.wanted_count = pieces.count_missing_in(have),
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
        let brings_some = match changed {
            Change::Came(index) => !have.contains(index),
            Change::Many => true,
            Change::Went(_) | Change::Nothing => false,
        };
        if wants && brings_some {
            refill.add(*peer, &mut requests);
        }
        let is_redundant = pieces.is_complete() && *lifecycle == Lifecycle::Seeding;
        if is_redundant && !settings.peers.keep_redundant {
            reaper.close(*peer, CloseReason::Redundant);
        }
    }
}

/// What a message changed of a peer's pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    Came(u32),
    Went(u32),
    Many,
}

/// Changes what a peer has, and the picker's counts with it: one piece in O(1), all of them in a time that is
/// proportional to a bitfield and to the pieces that differ.
fn apply(
    change: &Availability,
    pieces: &mut PeerPieces,
    order: Option<Mut<RarityOrder>>,
    random: &mut Random,
) -> Change {
    let after = match change {
        Availability::Have(index) if pieces.insert(*index) => {
            order.into_iter().for_each(|mut order| order.add_copy(*index, random));
            return Change::Came(*index);
        }
        Availability::DontHave(index) if pieces.remove(*index) => {
            order
                .into_iter()
                .for_each(|mut order| order.remove_copy(*index, random));
            return Change::Went(*index);
        }
        Availability::Have(_) | Availability::DontHave(_) => return Change::Nothing,
        Availability::Bitfield(bits) => PeerPieces::from(bits.clone()),
        Availability::All => PeerPieces::all(pieces.len()),
        Availability::None => PeerPieces::none(pieces.len()),
    };
    if let Some(mut order) = order {
        recount(pieces, &after, &mut order, random);
    }
    *pieces = after;
    Change::Many
}

/// Counts a peer in that had other pieces before.
fn recount(before: &PeerPieces, after: &PeerPieces, order: &mut RarityOrder, random: &mut Random) {
    // A bitfield in place of many haves changes little.
    if let (PieceForm::Listed(before), PieceForm::Listed(after)) = (before.form(), after.form()) {
        order.add_copies(&after.without(before), random);
        order.remove_copies(&before.without(after), random);
    } else {
        order.remove_peer(before, random);
        order.add_peer(after, random);
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
