//! Seeding limits: a torrent that holds everything it wants is paused, removed or only super-seeds when it has seeded
//! enough.
//!
//! The limits are those of the settings, or the torrent's own ([`SeedingLimits`]), which are intent and are saved in
//! the session. A torrent is examined when it begins to seed, when its limits change, when it has sent blocks while it
//! has a limit on its ratio, and when a limit in time is due. At other times, the torrent costs no work.
//!
//! Each limit has its effect once ([`SeedingRecord`]): a torrent that a user starts again runs until another limit is
//! reached, or until the limit has another value.

mod changing;

use bevy_app::{App, Plugin};
use bevy_ecs::entity::{EntityHashMap, EntityHashSet};
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{
    CommandQueue, PauseOrStart, PauseTorrent, RemoveOptions, RemoveTorrent, Reply, SetSeeding,
};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{BlockSent, LifecycleChanged, SeedingGiven, SeedingLimitReached, SessionLoaded};
use ecs_torrent_components::seeding::{
    LimitsInForce, SeedingFacts, SeedingLimit, SeedingLimits, SeedingRecord, SeedingTime,
};
use ecs_torrent_components::settings::{SeedingAction, Settings, SettingsChanged, seconds};
use ecs_torrent_components::super_seeding::SuperSeedsOnly;
use ecs_torrent_components::torrent::{Lifecycle, Torrent};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::time::Timestamp;

use crate::conditions::is_due;
use crate::durable::{ComponentChange, DurableChanges, has_changes};
use crate::sessions::{SaveTorrent, SessionState};
use crate::{AnnounceSet, DecideSet};

/// Ends the seeding of torrents that have seeded enough.
pub struct SeedingPlugin;

impl Plugin for SeedingPlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<Torrent, SeedingTime>();
        app.init_resource::<SeedingWatch>()
            .init_resource::<Deadlines<SeedingCheck>>()
            .init_resource::<CommandQueue<SetSeeding>>()
            .init_resource::<DurableChanges<ComponentChange<SetSeeding>>>()
            .add_message::<SeedingLimitReached>()
            .add_observer(take_limits)
            .add_observer(restore)
            .add_observer(follow_limits)
            .add_observer(follow_settings)
            .add_systems(
                Tick,
                (
                    (changing::settle_changes, changing::take_changes)
                        .chain()
                        .run_if(has_changes::<SetSeeding, ComponentChange<SetSeeding>>)
                        .in_set(AnnounceSet::SeedingLimits),
                    (follow_lifecycle, examine)
                        .chain()
                        .run_if(has_work)
                        .in_set(DecideSet::Seeding),
                ),
            );
    }
}

/// Deadline of the next limit in time of a torrent.
#[derive(Debug)]
struct SeedingCheck(Entity);

/// The torrents whose limits may have been reached.
#[derive(Resource, Debug, Default)]
struct SeedingWatch {
    /// Torrents to examine in this tick.
    due: Vec<Entity>,
    /// Seeding torrents with a limit on their ratio.
    by_ratio: EntityHashSet,
    /// The next deadline of each torrent that has one.
    next: EntityHashMap<Timestamp>,
}

impl SeedingWatch {
    fn add(&mut self, torrent: Entity) {
        if self.due.last() != Some(&torrent) {
            self.due.push(torrent);
        }
    }

    /// Sets a deadline, unless the torrent has an earlier one.
    fn look_at(&mut self, at: Timestamp, torrent: Entity, checks: &mut Deadlines<SeedingCheck>) {
        if self.next.get(&torrent).is_none_or(|next| at < *next) {
            self.next.insert(torrent, at);
            checks.set(at, SeedingCheck(torrent));
        }
    }
}

/// Returns whether torrents may have reached a limit, or have begun or ended to seed.
fn has_work(
    watch: Res<SeedingWatch>,
    changed: Res<Messages<LifecycleChanged>>,
    sent: Res<Messages<BlockSent>>,
    checks: Res<Deadlines<SeedingCheck>>,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
) -> bool {
    let has_sent = !watch.by_ratio.is_empty() && !sent.is_empty();
    let has_due = is_due(checks.next(), &clock, &wakeup);
    has_due || has_sent || !watch.due.is_empty() || !changed.is_empty()
}

/// Gives a torrent the limits with which it was added.
fn take_limits(given: On<SeedingGiven>, mut commands: Commands) {
    commands.entity(given.torrent).insert(given.limits);
}

/// Gives a torrent the limits and the seeding time of an earlier run, unless it has limits of this run.
fn restore(
    loaded: On<SessionLoaded>,
    mut commands: Commands,
    mut torrents: Query<(&mut SeedingTime, Has<SeedingLimits>)>,
) {
    let session = &loaded.session;
    let Ok((mut time, has_limits)) = torrents.get_mut(loaded.torrent) else {
        return;
    };
    time.0.before = seconds(session.seconds_seeding);
    let (limits, record) = (session.seeding, session.seeding_record);
    if !has_limits && !limits.is_inherited() && limits.check().is_ok() {
        commands.entity(loaded.torrent).insert(limits);
    }
    if !record.is_empty() {
        commands.entity(loaded.torrent).insert(record);
    }
}

/// Examines a torrent whose limits have changed.
fn follow_limits(
    changed: On<Insert<SeedingLimits>>,
    mut watch: ResMut<SeedingWatch>,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
) {
    watch.add(changed.entity);
    wakeup.at(clock.now());
}

/// Examines all seeding torrents when the limits of the settings have changed.
fn follow_settings(
    changed: On<SettingsChanged>,
    mut watch: ResMut<SeedingWatch>,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    torrents: Query<(Entity, &Lifecycle, Has<SeedingRecord>)>,
) {
    if !changed.names.iter().any(|name| name.starts_with("seeding.")) {
        return;
    }
    let is_affected = |(_, lifecycle, has_record): &(Entity, &Lifecycle, bool)| lifecycle.is_finished() || *has_record;
    let affected = torrents.iter().filter(is_affected);
    watch.due.extend(affected.map(|(torrent, ..)| torrent));
    wakeup.at(clock.now());
}

/// Measures the seeding time, and lists the torrents that may have reached a limit.
fn follow_lifecycle(
    clock: Res<Clock>,
    mut changed: MessageReader<LifecycleChanged>,
    mut sent: MessageReader<BlockSent>,
    mut checks: ResMut<Deadlines<SeedingCheck>>,
    mut watch: ResMut<SeedingWatch>,
    mut torrents: Query<(&mut SeedingTime, Option<&mut SeedingRecord>)>,
) {
    let now = clock.now();
    for LifecycleChanged { torrent, from, to } in changed.read() {
        let Ok((mut time, record)) = torrents.get_mut(*torrent) else {
            continue;
        };
        if to.is_finished() != from.is_finished() {
            match to.is_finished() {
                true => time.0.start(now),
                false => time.0.stop(now),
            }
            watch.add(*torrent);
        }
        let Some(mut record) = record else { continue };
        if *to == Lifecycle::Downloading {
            // A torrent that wants more has not seeded enough of it.
            *record = SeedingRecord::default();
        } else if *from == Lifecycle::Paused && !to.is_stopping() {
            *record = record.restarted();
        }
    }
    let mut last = None;
    for BlockSent { torrent, .. } in sent.read() {
        // Blocks come in runs, mostly of one torrent.
        if last.replace(*torrent) != Some(*torrent) && watch.by_ratio.contains(torrent) {
            watch.add(*torrent);
        }
    }
    while let Some(SeedingCheck(torrent)) = checks.pop_due(now) {
        if watch.next.get(&torrent).is_some_and(|next| *next <= now) {
            watch.next.remove(&torrent);
            watch.add(torrent);
        }
    }
}

/// The parts of a torrent that decide whether it has seeded enough.
#[derive(QueryData)]
#[query_data(mutable)]
struct Examined {
    entity: Entity,
    torrent: &'static Torrent,
    facts: SeedingFacts,
    lifecycle: &'static Lifecycle,
    limits: Option<&'static SeedingLimits>,
    record: Option<&'static SeedingRecord>,
    super_seeds: Has<SuperSeedsOnly>,
    state: &'static mut SessionState,
}

/// The effects of limits.
#[derive(SystemParam)]
struct Effects<'w, 's> {
    commands: Commands<'w, 's>,
    reached: MessageWriter<'w, SeedingLimitReached>,
    save: MessageWriter<'w, SaveTorrent>,
    pauses: ResMut<'w, CommandQueue<PauseOrStart>>,
    removals: ResMut<'w, CommandQueue<RemoveTorrent>>,
}

/// Ends the seeding of the listed torrents that have seeded enough.
fn examine(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    settings: Res<Settings>,
    mut checks: ResMut<Deadlines<SeedingCheck>>,
    mut watch: ResMut<SeedingWatch>,
    mut effects: Effects,
    mut torrents: Query<Examined>,
) {
    let now = clock.now();
    for entity in std::mem::take(&mut watch.due) {
        let Ok(mut torrent) = torrents.get_mut(entity) else {
            watch.by_ratio.remove(&entity);
            continue;
        };
        let limits = torrent.limits.copied().unwrap_or_default();
        let limits = limits.in_force(&settings.seeding);
        match torrent.facts.is_seeding() && limits.has_ratio() {
            true => watch.by_ratio.insert(entity),
            false => watch.by_ratio.remove(&entity),
        };
        if let Some(at) = effects.examine(&mut torrent, limits, now) {
            watch.look_at(at, entity, &mut checks);
        }
    }
    wakeup.at_next(checks.next());
}

impl Effects<'_, '_> {
    /// Applies the limits that a torrent has reached. Returns when the next one is due.
    fn examine(
        &mut self,
        torrent: &mut ExaminedItem<'_, '_>,
        mut limits: LimitsInForce,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let known = torrent.record.copied().unwrap_or_default();
        let mut record = known.updated(&limits);
        let is_seeding = torrent.facts.is_seeding();
        // A torrent that lacks unwanted pieces cannot super-seed.
        let may_super_seed = *torrent.lifecycle == Lifecycle::Seeding;
        if limits.action == SeedingAction::SuperSeed && !may_super_seed {
            limits.action = SeedingAction::Pause;
        }
        if is_seeding && record.super_seeds && limits.action != SeedingAction::SuperSeed {
            record = SeedingRecord::default();
        }
        let seeded = torrent.facts.seeded(now);
        let mut next = None;
        if is_seeding && record.reached.is_none() {
            match limits.reached(&seeded, &record) {
                Some(limit) => {
                    record = record.with_reached(limit, &limits, &seeded);
                    self.act(torrent, limit, limits.action);
                }
                None => next = limits.next(&seeded, &record).map(|wait| now + wait),
            }
        }
        match (is_seeding && record.super_seeds, torrent.super_seeds) {
            (true, false) => drop(self.commands.entity(torrent.entity).insert(SuperSeedsOnly)),
            (false, true) => drop(self.commands.entity(torrent.entity).remove::<SuperSeedsOnly>()),
            _ => {}
        }
        if record != known {
            self.commands.entity(torrent.entity).insert(record);
        }
        next
    }

    /// Applies the action of a limit.
    fn act(&mut self, torrent: &mut ExaminedItem<'_, '_>, limit: SeedingLimit, action: SeedingAction) {
        let (label, id) = (torrent.torrent.label(), torrent.torrent.id());
        tracing::info!(torrent = %label, limit = limit.name(), action = action.name(), "seeding limit reached");
        self.reached.write(SeedingLimitReached {
            torrent: torrent.entity,
            limit,
            action,
        });
        match action {
            SeedingAction::SuperSeed => {
                torrent.state.record_addition();
                let torrent = torrent.entity;
                self.save.write(SaveTorrent { torrent });
            }
            SeedingAction::Pause => {
                let reply = Reply::ignored();
                let pause = PauseTorrent { torrent: id, reply };
                self.pauses.0.push_back(pause.into());
            }
            SeedingAction::Remove => self.removals.0.push_back(RemoveTorrent {
                torrent: id,
                options: RemoveOptions { delete_data: false },
                reply: Reply::ignored(),
            }),
        }
    }
}
