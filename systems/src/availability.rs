//! Availability: the pieces that each peer has, and our interest in them.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::messages::{
    Availability, AvailabilityReceived, LifecycleChanged, MetadataKnown, PeerConnected, WantedChanged,
};
use ecs_torrent_components::peer::{
    CloseReason, PeerPieces, PeerState, PieceForm, RefillQueue, RequestSink, Requests, SourceSink, UncheckedPieces,
    Wire,
};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Have, Layout, Lifecycle, PeerOf, TorrentPeers};
use ecs_torrent_components::wanted::{WantedPieces, unneeded};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::wire::{KnownPieces, Message, RawPieces, WireError};

use crate::DecideSet;
use crate::conditions::has_messages;
use crate::picking::rarity::RarityOrder;
use crate::picking::{DroppedRequests, Picker};

/// Tracks the pieces of peers, the picker's counts of them, and our interest.
pub struct AvailabilityPlugin;

impl Plugin for AvailabilityPlugin {
    fn build(&self, app: &mut App) {
        app.add_observer(attach_pieces).add_systems(
            Tick,
            (
                begin_unchecked.run_if(has_messages::<PeerConnected>),
                handle_availability.run_if(has_messages::<AvailabilityReceived>),
                check_pieces.run_if(has_messages::<MetadataKnown>),
                begin_trading.run_if(has_messages::<LifecycleChanged>),
                follow_wanted.run_if(has_messages::<WantedChanged>),
                close_redundant_seeds.run_if(has_messages::<LifecycleChanged>),
            )
                .chain()
                .in_set(DecideSet::Availability),
        );
    }
}

/// Gives a peer that has just connected an empty set of pieces.
fn attach_pieces(
    connected: On<Add<PeerState>>,
    mut commands: Commands,
    peers: Query<&PeerOf>,
    torrents: Query<&Layout>,
) {
    let Ok(of) = peers.get(connected.entity) else { return };
    let piece_count = torrents.get(of.0).map_or(0, |Layout(geometry)| geometry.piece_count());
    commands.entity(connected.entity).insert(PeerPieces::none(piece_count));
}

fn handle_availability(
    mut received: MessageReader<AvailabilityReceived>,
    mut random: ResMut<Random>,
    mut sink: RequestSink,
    mut refill: ResMut<RefillQueue>,
    mut dropped: ResMut<DroppedRequests>,
    mut reaper: ResMut<Reaper>,
    settings: Res<Settings>,
    mut torrents: Query<(&Have, Option<&WantedPieces>, &Lifecycle, Option<&mut Picker>)>,
    mut peers: Query<(
        &PeerOf,
        Option<&mut UncheckedPieces>,
        &mut PeerPieces,
        &mut PeerState,
        &mut Requests,
        SourceSink,
        Option<&Wire>,
    )>,
) {
    for AvailabilityReceived { peer, change } in received.read() {
        let Ok((of, unchecked, mut pieces, mut state, mut requests, mut source, wire)) = peers.get_mut(*peer) else {
            continue;
        };
        if let Some(mut unchecked) = unchecked {
            if let Err(error) = record(change, &mut unchecked.0, settings.peers.max_raw_bitfield_bytes) {
                reaper.close(*peer, error);
            }
            continue;
        }
        let Ok((have, wanted, lifecycle, picker)) = torrents.get_mut(of.0) else {
            continue;
        };
        let unneeded = unneeded(have, wanted);
        let is_silent = wire.is_some_and(|wire| !wire.session.fast);
        if let (Availability::DontHave(index), true) = (change, is_silent) {
            // BEP 54: without the fast extension, the peer drops requests for the piece silently.
            dropped.0.push((*peer, *index));
        }
        let order = picker.map(|picker| picker.map_unchanged(|picker| &mut picker.order));
        let changed = apply(change, &mut pieces, order, &mut random);
        if changed == Change::Nothing {
            continue;
        }
        changed.count(&mut pieces, unneeded);
        let downloads = keeps_interest(lifecycle);
        let wants = pieces.wanted_count > 0 && downloads;
        if std::mem::replace(&mut state.am_interested, wants) != wants {
            sink.send(*peer, &mut source, &interest(wants));
        }
        if wants && changed.brings_some(unneeded) {
            refill.add(*peer, &mut requests);
        }
        let is_redundant = pieces.is_complete() && lifecycle.is_finished();
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

impl Change {
    /// Updates the number of pieces that the peer has and we need.
    fn count(self, pieces: &mut PeerPieces, unneeded: &Bitfield) {
        match self {
            Self::Nothing => {}
            Self::Came(index) => pieces.wanted_count += u32::from(!unneeded.contains(index)),
            Self::Went(index) => {
                let lost = u32::from(!unneeded.contains(index));
                pieces.wanted_count = pieces.wanted_count.saturating_sub(lost);
            }
            Self::Many => pieces.wanted_count = pieces.count_missing_in(unneeded),
        }
    }

    /// Returns whether the peer may have more pieces for us than before.
    fn brings_some(self, unneeded: &Bitfield) -> bool {
        match self {
            Self::Came(index) => !unneeded.contains(index),
            Self::Many => true,
            Self::Went(_) | Self::Nothing => false,
        }
    }
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
        // Only peers whose pieces are unchecked send raw pieces.
        Availability::Have(_) | Availability::DontHave(_) | Availability::Raw(_) => return Change::Nothing,
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

/// Records pieces that cannot be checked before the metadata is known.
fn record(change: &Availability, raw: &mut RawPieces, max_bytes: usize) -> Result<(), WireError> {
    match change {
        Availability::Raw(bytes) => raw.set_bitfield(bytes, max_bytes)?,
        Availability::All => raw.set_all(),
        Availability::None => raw.set_none(),
        Availability::Have(index) => raw.insert(*index, max_bytes)?,
        Availability::DontHave(index) => raw.remove(*index),
        // The bitfield is checked, so the number of pieces is known.
        Availability::Bitfield(_) => {}
    }
    Ok(())
}

/// Keeps the pieces of new peers unchecked while the torrent's metadata is not known.
fn begin_unchecked(mut commands: Commands, mut connected: MessageReader<PeerConnected>, peers: Query<&Wire>) {
    for PeerConnected { peer, .. } in connected.read() {
        if peers.get(*peer).is_ok_and(|wire| wire.session.geometry.is_none()) {
            commands.entity(*peer).insert(UncheckedPieces::default());
        }
    }
}

/// Checks the peers' pieces once the metadata is known. They apply in the next tick; a peer with pieces that do not
/// exist is closed.
fn check_pieces(
    mut commands: Commands,
    mut known: MessageReader<MetadataKnown>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    mut reaper: ResMut<Reaper>,
    mut checked: MessageWriter<AvailabilityReceived>,
    torrents: Query<(&Layout, &TorrentPeers)>,
    mut peers: Query<(Option<&mut Wire>, &mut PeerPieces, &mut UncheckedPieces)>,
) {
    for MetadataKnown { torrent } in known.read() {
        let Ok((Layout(geometry), connected)) = torrents.get(*torrent) else {
            continue;
        };
        for peer in connected.iter() {
            let Ok((wire, mut pieces, mut unchecked)) = peers.get_mut(peer) else {
                continue;
            };
            commands.entity(peer).remove::<UncheckedPieces>();
            *pieces = PeerPieces::none(geometry.piece_count());
            if let Some(mut wire) = wire {
                wire.session.geometry = Some(geometry.clone());
            }
            let change = match std::mem::take(&mut unchecked.0).resolve(geometry.piece_count()) {
                Ok(KnownPieces::All) => Availability::All,
                Ok(KnownPieces::Some(pieces)) => Availability::Bitfield(pieces),
                Err(error) => {
                    reaper.close(peer, error);
                    continue;
                }
            };
            checked.write(AvailabilityReceived { peer, change });
            wakeup.at(clock.now());
        }
    }
}

/// Sets our interest in peers that connected before the torrent's own pieces were known.
fn begin_trading(
    mut changed: MessageReader<LifecycleChanged>,
    mut sink: RequestSink,
    mut refill: ResMut<RefillQueue>,
    torrents: Query<(&Have, Option<&WantedPieces>, &TorrentPeers)>,
    mut peers: Query<(&mut PeerPieces, &mut PeerState, &mut Requests, SourceSink)>,
) {
    // A blocked torrent has kept its interest.
    let begins = |changed: &&LifecycleChanged| {
        changed.to == Lifecycle::Downloading && !matches!(changed.from, Lifecycle::Blocked { .. })
    };
    for LifecycleChanged { torrent, .. } in changed.read().filter(begins) {
        let Ok((have, wanted, connected)) = torrents.get(*torrent) else {
            continue;
        };
        for peer in connected.iter() {
            let Ok((mut pieces, mut state, mut requests, mut source)) = peers.get_mut(peer) else {
                continue;
            };
            pieces.wanted_count = pieces.count_missing_in(unneeded(have, wanted));
            if pieces.wanted_count > 0 && !std::mem::replace(&mut state.am_interested, true) {
                sink.send(peer, &mut source, &Message::Interested);
                refill.add(peer, &mut requests);
            }
        }
    }
}

/// Updates our interest in peers when the user has changed the wanted pieces.
fn follow_wanted(
    mut changed: MessageReader<WantedChanged>,
    mut sink: RequestSink,
    mut refill: ResMut<RefillQueue>,
    torrents: Query<(&Have, &Lifecycle, Option<&WantedPieces>, &TorrentPeers)>,
    mut peers: Query<(&mut PeerPieces, &mut PeerState, &mut Requests, SourceSink)>,
) {
    for WantedChanged { torrent, .. } in changed.read() {
        let Ok((have, lifecycle, wanted, connected)) = torrents.get(*torrent) else {
            continue;
        };
        let downloads = keeps_interest(lifecycle);
        for peer in connected.iter() {
            let Ok((mut pieces, mut state, mut requests, mut source)) = peers.get_mut(peer) else {
                continue;
            };
            pieces.wanted_count = pieces.count_missing_in(unneeded(have, wanted));
            let wants = pieces.wanted_count > 0 && downloads;
            if std::mem::replace(&mut state.am_interested, wants) != wants {
                sink.send(peer, &mut source, &interest(wants));
            }
            if wants {
                refill.add(peer, &mut requests);
            }
        }
    }
}

/// Whether a torrent in this state may be interested in peers. Its interest stays while a full disk blocks it.
fn keeps_interest(lifecycle: &Lifecycle) -> bool {
    matches!(lifecycle, Lifecycle::Downloading | Lifecycle::Blocked { .. })
}

/// Returns the message of our interest in a peer.
fn interest(wants: bool) -> Message {
    match wants {
        true => Message::Interested,
        false => Message::NotInterested,
    }
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

/// Closes connections to seeds and upload-only peers when a torrent is complete, or turns out to be so: neither side
/// can use the other.
fn close_redundant_seeds(
    mut changed: MessageReader<LifecycleChanged>,
    settings: Res<Settings>,
    mut reaper: ResMut<Reaper>,
    torrents: Query<&TorrentPeers>,
    peers: Query<(&PeerPieces, &PeerState)>,
) {
    if settings.peers.keep_redundant {
        return;
    }
    for LifecycleChanged { torrent, .. } in changed.read().filter(|changed| changed.finishes()) {
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
    use crate::testing::Bed;
    use std::collections::BTreeSet;

    use bytes::Bytes;
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

    /// A change, with the pieces that the peer has after it if it had `before`, and the number of new ones.
    fn expected(change: &Availability, before: &BTreeSet<u32>) -> (BTreeSet<u32>, Change) {
        let mut after = before.clone();
        let kind = match change {
            Availability::Have(index) if after.insert(*index) => Change::Came(*index),
            Availability::DontHave(index) if after.remove(index) => Change::Went(*index),
            Availability::Have(_) | Availability::DontHave(_) | Availability::Raw(_) => Change::Nothing,
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

    /// Returns a torrent whose picker counts no peer.
    fn bed(lifecycle: Lifecycle) -> Bed {
        let mut bed = Bed::new((crate::picking::PickingPlugin, AvailabilityPlugin));
        *bed.get_mut::<Lifecycle>(bed.torrent) = lifecycle;
        bed
    }

    fn change(bed: &mut Bed, peer: Entity, change: Availability) {
        bed.run_after(AvailabilityReceived { peer, change }, handle_availability);
    }

    fn is_listed(bed: &mut Bed, peer: Entity) -> bool {
        let is_listed = bed.world.resource_mut::<RefillQueue>().pop() == Some(peer);
        bed.get_mut::<Requests>(peer).unlist();
        is_listed
    }

    /// Our interest follows the pieces that a peer has and we lack; each change is sent once.
    #[test]
    fn interest_follows_the_pieces_that_we_lack() {
        let mut bed = bed(Lifecycle::Downloading);
        let peer = bed.peer();
        *bed.get_mut::<PeerPieces>(peer) = PeerPieces::none(3);
        bed.get_mut::<PeerState>(peer).am_interested = false;
        bed.get_mut::<Have>(bed.torrent).record_stored(0);
        change(&mut bed, peer, Availability::Have(0));
        assert!(bed.has_sent(peer, &[]) && !is_listed(&mut bed, peer), "we have it");
        change(&mut bed, peer, Availability::Have(1));
        assert!(bed.has_sent(peer, &[Message::Interested]) && is_listed(&mut bed, peer));
        change(&mut bed, peer, Availability::Have(2));
        assert!(bed.has_sent(peer, &[]) && is_listed(&mut bed, peer));
        change(&mut bed, peer, Availability::DontHave(2));
        assert!(bed.has_sent(peer, &[]) && !is_listed(&mut bed, peer));
        change(&mut bed, peer, Availability::DontHave(1));
        assert!(bed.has_sent(peer, &[Message::NotInterested]));
        change(&mut bed, peer, Availability::All);
        assert!(bed.has_sent(peer, &[Message::Interested]) && is_listed(&mut bed, peer));
        assert!(bed.world.resource::<Reaper>().is_empty());
    }

    /// BEP 54: with the fast extension, each of the requests is rejected instead.
    #[test]
    fn requests_for_a_lost_piece_are_dropped_without_the_fast_extension() {
        for is_fast in [false, true] {
            let mut bed = bed(Lifecycle::Downloading);
            let peer = bed.peer();
            bed.get_mut::<Wire>(peer).session.fast = is_fast;
            change(&mut bed, peer, Availability::Have(1));
            change(&mut bed, peer, Availability::DontHave(1));
            let dropped = &bed.world.resource::<DroppedRequests>().0;
            assert_eq!(dropped.len(), usize::from(!is_fast));
        }
    }

    #[test]
    fn seeds_close_connections_to_seeds() {
        for (lifecycle, change_to, is_closed) in [
            (Lifecycle::Seeding, Availability::All, true),
            (Lifecycle::Seeding, Availability::Have(0), false),
            (Lifecycle::Downloading, Availability::All, false),
        ] {
            for keeps in [false, true] {
                let mut bed = bed(lifecycle.clone());
                bed.world.resource_mut::<Settings>().peers.keep_redundant = keeps;
                let peer = bed.peer();
                *bed.get_mut::<PeerPieces>(peer) = PeerPieces::none(3);
                change(&mut bed, peer, change_to.clone());
                assert_eq!(bed.world.resource::<Reaper>().is_doomed(peer), is_closed && !keeps);
            }
        }
    }

    #[test]
    fn a_complete_torrent_closes_connections_to_peers_that_want_nothing() {
        for (is_complete, upload_only, is_closed) in [(true, false, true), (false, true, true), (false, false, false)] {
            for keeps in [false, true] {
                let mut bed = bed(Lifecycle::Seeding);
                bed.world.resource_mut::<Settings>().peers.keep_redundant = keeps;
                let peer = bed.peer();
                let pieces = if is_complete {
                    PeerPieces::all(3)
                } else {
                    PeerPieces::none(3)
                };
                *bed.get_mut::<PeerPieces>(peer) = pieces;
                bed.get_mut::<PeerState>(peer).upload_only = upload_only;
                let (torrent, to) = (bed.torrent, Lifecycle::Seeding);
                let from = match upload_only {
                    true => Lifecycle::Adding,
                    false => Lifecycle::Downloading,
                };
                bed.run_after(LifecycleChanged { torrent, from, to }, close_redundant_seeds);
                assert_eq!(bed.world.resource::<Reaper>().is_doomed(peer), is_closed && !keeps);
            }
        }
    }

    /// Returns a torrent without metadata, and a peer that is connected to it.
    fn unfetched() -> (Bed, Entity) {
        let mut bed = bed(Lifecycle::FetchingMetadata);
        let peer = bed.peer();
        *bed.get_mut::<PeerPieces>(peer) = PeerPieces::none(0);
        let torrent = bed.torrent;
        bed.run_after(PeerConnected { torrent, peer }, begin_unchecked);
        (bed, peer)
    }

    /// Claims of peers are kept until the metadata is known, and then apply or cost their peers the connection.
    #[test]
    fn claims_are_checked_when_the_metadata_is_known() {
        let bits = |bytes: &'static [u8]| Availability::Raw(Bytes::from_static(bytes));
        for (claim, pieces) in [
            (Availability::All, Some(vec![0, 1, 2])),
            (Availability::Have(1), Some(vec![1])),
            (bits(&[0b1010_0000]), Some(vec![0, 2])),
            (bits(&[0b1001_0000]), None),
            (bits(&[0, 0]), None),
        ] {
            let (mut bed, peer) = unfetched();
            change(&mut bed, peer, claim);
            assert_eq!(bed.get::<PeerPieces>(peer).len(), 0, "they are not known yet");
            let torrent = bed.torrent;
            bed.run_after(MetadataKnown { torrent }, check_pieces);
            assert!(bed.world.get::<UncheckedPieces>(peer).is_none());
            assert!(bed.get::<Wire>(peer).session.geometry.is_some());
            assert_eq!(bed.world.resource::<Reaper>().is_doomed(peer), pieces.is_none());
            bed.run(handle_availability);
            let has: Vec<u32> = (0..3).filter(|piece| bed.get::<PeerPieces>(peer).has(*piece)).collect();
            assert_eq!(has, pieces.unwrap_or_default());
        }
    }

    /// The length of a claim is limited, because it takes memory before it can be checked.
    #[test]
    fn claims_have_a_limit() {
        for (max_bytes, is_closed) in [(2, true), (3, false)] {
            let (mut bed, peer) = unfetched();
            bed.world.resource_mut::<Settings>().peers.max_raw_bitfield_bytes = max_bytes;
            change(&mut bed, peer, Availability::Raw(Bytes::from_static(&[1, 2, 3])));
            assert_eq!(bed.world.resource::<Reaper>().is_doomed(peer), is_closed);
        }
    }

    /// A torrent that was on a full disk has kept its interest.
    #[test]
    fn a_download_begins_with_interest_in_peers_that_have_something() {
        let blocked = || Lifecycle::Blocked {
            resource: "space".into(),
        };
        for (from, has_some, is_interested) in [
            (Lifecycle::Checking, true, true),
            (Lifecycle::Checking, false, false),
            (blocked(), true, false),
        ] {
            let mut bed = bed(Lifecycle::Downloading);
            let peer = bed.peer();
            bed.get_mut::<PeerState>(peer).am_interested = false;
            let pieces = if has_some {
                PeerPieces::all(3)
            } else {
                PeerPieces::none(3)
            };
            *bed.get_mut::<PeerPieces>(peer) = pieces;
            let changed = LifecycleChanged {
                torrent: bed.torrent,
                from,
                to: Lifecycle::Downloading,
            };
            bed.run_after(changed, begin_trading);
            assert_eq!(bed.get::<PeerState>(peer).am_interested, is_interested);
            assert!(bed.has_sent(peer, &[Message::Interested][..usize::from(is_interested)]));
            assert_eq!(is_listed(&mut bed, peer), is_interested);
        }
    }
}
