//! Availability: the pieces that each peer has, and our interest in them.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::messages::{Availability, AvailabilityReceived, TorrentCompleted};
use ecs_torrent_components::peer::{
    CloseReason, PeerPieces, PeerState, PieceForm, RefillQueue, RequestSink, Requests, SourceSink, Wire,
};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Have, Lifecycle, PeerOf, TorrentPeers};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::wire::Message;

use crate::DecideSet;
use crate::conditions::has_messages;
use crate::picking::rarity::RarityOrder;
use crate::picking::{DroppedRequests, Picker};

/// Tracks the pieces of peers, the picker's counts of them, and our interest.
pub struct AvailabilityPlugin;

impl Plugin for AvailabilityPlugin {
    fn build(&self, app: &mut App) {
        app.add_systems(
            Tick,
            (
                handle_availability.run_if(has_messages::<AvailabilityReceived>),
                close_redundant_seeds.run_if(has_messages::<TorrentCompleted>),
            )
                .chain()
                .in_set(DecideSet::Availability),
        );
    }
}

fn handle_availability(
    mut received: MessageReader<AvailabilityReceived>,
    mut random: ResMut<Random>,
    mut sink: RequestSink,
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
        SourceSink,
        Option<&Wire>,
    )>,
) {
    for AvailabilityReceived { peer, change } in received.read() {
        let Ok((of, mut pieces, mut state, mut requests, mut source, wire)) = peers.get_mut(*peer) else {
            continue;
        };
        let Ok((Have(have), lifecycle, picker)) = torrents.get_mut(of.0) else {
            continue;
        };
        let is_silent = wire.is_some_and(|wire| !wire.session.fast);
        if let (Availability::DontHave(index), true) = (change, is_silent) {
            // BEP 54: without the fast extension, the peer drops requests for the piece silently.
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
        // Our interest stays while a full disk blocks the torrent.
        let downloads = matches!(*lifecycle, Lifecycle::Downloading | Lifecycle::Blocked { .. });
        let wants = pieces.wanted_count > 0 && downloads;
        if wants != state.am_interested {
            state.am_interested = wants;
            let message = if wants {
                Message::Interested
            } else {
                Message::NotInterested
            };
            sink.send(*peer, &mut source, &message);
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

/// Change to a peer's pieces by one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    Came(u32),
    Went(u32),
    Many,
}

/// Applies a change to a peer's pieces and to the picker's counts. One piece takes O(1); all pieces take time
/// proportional to a bitfield and to the number of pieces that differ.
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

/// Updates the picker's counts from a peer's previous pieces to its new ones.
fn recount(before: &PeerPieces, after: &PeerPieces, order: &mut RarityOrder, random: &mut Random) {
    // A bitfield sent in place of many `Have`s changes few pieces.
    if let (PieceForm::Listed(before), PieceForm::Listed(after)) = (before.form(), after.form()) {
        order.add_copies(&after.without(before), random);
        order.remove_copies(&before.without(after), random);
    } else {
        order.remove_peer(before, random);
        order.add_peer(after, random);
    }
}

/// Closes connections to seeds and upload-only peers when a torrent completes: neither side has a use for the other.
fn close_redundant_seeds(
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ecs_torrent_protocol::bitfield::Bitfield;
    use proptest::prelude::*;

    use super::*;

    const COUNT: u32 = 9;

    #[derive(Component)]
    struct Order(RarityOrder);

    fn bits(pieces: &BTreeSet<u32>) -> Bitfield {
        let mut bits = Bitfield::new(COUNT);
        for piece in pieces {
            bits.insert(*piece);
        }
        bits
    }

    /// A change, what the peer has after it if it had `before`, and what is said of it.
    fn expected(change: &Availability, before: &BTreeSet<u32>) -> (BTreeSet<u32>, Change) {
        let mut after = before.clone();
        let kind = match change {
            Availability::Have(index) if after.insert(*index) => Change::Came(*index),
            Availability::DontHave(index) if after.remove(index) => Change::Went(*index),
            Availability::Have(_) | Availability::DontHave(_) => Change::Nothing,
            Availability::Bitfield(bits) => {
                after = bits.iter().collect();
                Change::Many
            }
            Availability::All => {
                after = (0..COUNT).collect();
                Change::Many
            }
            Availability::None => {
                after.clear();
                Change::Many
            }
        };
        (after, kind)
    }

    fn changes() -> impl Strategy<Value = Availability> {
        prop_oneof![
            4 => (0..COUNT).prop_map(Availability::Have),
            4 => (0..COUNT).prop_map(Availability::DontHave),
            2 => proptest::collection::btree_set(0..COUNT, 0..COUNT as usize)
                .prop_map(|pieces| Availability::Bitfield(bits(&pieces))),
            1 => Just(Availability::All),
            1 => Just(Availability::None),
        ]
    }

    proptest! {
        /// The picker's counts are always those of the pieces that the peers have.
        #[test]
        fn counts_follow_every_change(changes in proptest::collection::vec((0usize..2, changes()), 0..30)) {
            let mut random = Random::from_seed([3; 32]);
            let order = RarityOrder::new(COUNT, |_| true, &mut random);
            let mut world = World::new();
            let mut order = world.spawn(Order(order));
            let mut peers = [PeerPieces::none(COUNT), PeerPieces::none(COUNT)];
            let mut models = [BTreeSet::new(), BTreeSet::new()];
            for (peer, change) in changes {
                let (after, kind) = expected(&change, &models[peer]);
                let counts = order.get_mut::<Order>().unwrap().map_unchanged(|order| &mut order.0);
                prop_assert_eq!(apply(&change, &mut peers[peer], Some(counts), &mut random), kind);
                models[peer] = after;
                for piece in 0..COUNT {
                    let count = models.iter().filter(|model| model.contains(&piece)).count();
                    prop_assert_eq!(order.get::<Order>().unwrap().0.availability(piece), count as u32);
                    prop_assert_eq!(peers[peer].has(piece), models[peer].contains(&piece));
                }
            }
        }
    }
}
