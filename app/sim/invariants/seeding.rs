//! A torrent stops seeding when it reaches a seeding limit. One that only super-seeds serves no peer while every piece
//! is held by some connected peer.

use std::time::Duration;

use bevy_ecs::entity::{EntityHashMap, EntityHashSet};
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::messages::LifecycleChanged;
use ecs_torrent_components::peer::PeerState;
use ecs_torrent_components::seeding::{SeedingFacts, SeedingLimits, SeedingRecord};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::super_seeding::{SuperSeeding, SuperSeedsOnly};
use ecs_torrent_components::torrent::{Torrent, TorrentPeers};
use ecs_torrent_protocol::time::Timestamp;

use super::{Invariant, Violations};

/// Time for a pause to begin, which may wait for the end of a start, and for choking to follow super-seeding.
const DELAY: Duration = Duration::from_secs(5);

/// The parts of a torrent that decide whether it may seed.
#[derive(QueryData)]
pub(super) struct Seeding {
    entity: Entity,
    torrent: &'static Torrent,
    facts: SeedingFacts,
    limits: Option<&'static SeedingLimits>,
    record: Option<&'static SeedingRecord>,
    super_seeding: Option<&'static SuperSeeding>,
    super_seeds_only: Has<SuperSeedsOnly>,
    peers: Option<&'static TorrentPeers>,
}

/// Checks every torrent that seeds. Changes of its state are followed in the next tick.
pub(super) fn check(
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut violations: ResMut<Violations>,
    mut changed: MessageReader<LifecycleChanged>,
    mut since: Local<EntityHashMap<Timestamp>>,
    torrents: Query<Seeding>,
    peers: Query<&PeerState>,
) {
    let now = clock.now();
    let changed: EntityHashSet = changed.read().map(|message| message.torrent).collect();
    for seeding in &torrents {
        if !seeding.facts.is_seeding() || changed.contains(&seeding.entity) {
            since.remove(&seeding.entity);
            continue;
        }
        let limits = seeding.limits.copied().unwrap_or_default().in_force(&settings.seeding);
        let record = seeding.record.copied().unwrap_or_default();
        let name = &seeding.torrent.name;
        if let Some(limit) = limits.reached(&seeding.facts.seeded(now), &record) {
            let limit = limit.name();
            violations.report(&clock, Invariant::Seeding, || {
                format!("{name} has reached its limit ({limit}) and seeds")
            });
        }
        let is_held = record.reached.is_some() && !record.super_seeds;
        let rests = seeding.super_seeds_only && seeding.super_seeding.is_some_and(|state| state.is_out);
        let serves = || {
            let connected = seeding.peers.into_iter().flat_map(RelationshipTarget::iter);
            connected.flat_map(|peer| peers.get(peer)).any(|peer| !peer.am_choking)
        };
        let seeds_on = is_held || rests && serves();
        if !seeds_on {
            since.remove(&seeding.entity);
        } else if now.since(*since.entry(seeding.entity).or_insert(now)) > DELAY {
            violations.report(&clock, Invariant::Seeding, || {
                format!("{name} has seeded enough and serves peers")
            });
        }
    }
}
