//! The queue: at most as many torrents run as the settings allow, the first ones in an order that users change. The
//! others wait, as `queued`.
//!
//! While the settings limit anything, each torrent has to wait ([`Waiting`]) from its add on, until it is ready to run
//! and there is a free slot for it. So no torrent runs before the queue has decided. A change of a torrent's facts
//! costs O(log n), and a tick without a change costs nothing. Without limits, only the order is kept.
//!
//! Slow torrents do not count. A torrent that counts is measured over periods of `queue.slow_after_s`; a slow one is
//! measured again only when it has transferred something.

mod changing;
mod lanes;

use std::collections::BTreeSet;
use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{CommandQueue, Reply, SetQueue};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::lifecycle::{ChangedFacts, Lifecycle, Waiting};
use ecs_torrent_components::messages::{
    BlockAccepted, BlockSent, LifecycleChanged, PlaceGiven, SessionLoaded, WantedChanged,
};
use ecs_torrent_components::queue::{ForcedStart, QueueChange, QueueFacts, QueueOrder, SlowTransfer};
use ecs_torrent_components::settings::{QueueSettings, Settings, SettingsChanged, seconds};
use ecs_torrent_components::torrent::{Counters, Torrent};
use ecs_torrent_engine::schedule::{Tick, TickSet};
use ecs_torrent_protocol::time::Timestamp;

use self::lanes::{Class, Lane, Place};
use crate::conditions::is_due;
use crate::durable::{DurableChanges, has_changes};
use crate::sessions::SaveTorrent;
use crate::{AnnounceSet, DecideSet};

/// Lets only as many torrents run as the settings allow.
pub struct QueuePlugin;

impl Plugin for QueuePlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<Torrent, QueueOrder>();
        app.init_resource::<Queue>()
            .init_resource::<Deadlines<SlowCheck>>()
            .init_resource::<CommandQueue<SetQueue>>()
            .init_resource::<DurableChanges<changing::QueueChanged>>()
            .add_observer(add_torrent)
            .add_observer(remove_torrent)
            .add_observer(restore)
            .add_observer(take_place)
            .add_observer(follow_settings)
            .add_systems(
                Tick,
                (
                    (changing::settle_changes, changing::take_changes)
                        .chain()
                        .run_if(has_changes::<SetQueue, changing::QueueChanged>)
                        .in_set(AnnounceSet::Queue),
                    (follow, measure, settle)
                        .chain()
                        .run_if(has_work)
                        .in_set(DecideSet::Queue),
                    request_tick
                        .run_if(|queue: Res<Queue>| queue.is_limiting)
                        .after(DecideSet::Lifecycle)
                        .before(DecideSet::Disconnect)
                        .in_set(TickSet::Decide),
                ),
            );
    }
}

/// The end of the period over which a torrent is measured.
#[derive(Debug)]
struct SlowCheck(Entity);

/// The torrents by place, and those that take part.
#[derive(Resource, Debug, Default)]
pub(crate) struct Queue {
    /// All torrents.
    order: BTreeSet<Place>,
    /// Whether the settings limit anything. Without limits no torrent waits, and the other fields are empty.
    is_limiting: bool,
    downloads: Lane,
    seeds: Lane,
    entries: EntityHashMap<Entry>,
    /// Torrents whose facts may have changed.
    changed: Vec<Entity>,
    /// The settings have changed.
    is_outdated: bool,
}

/// A torrent that runs or waits.
#[derive(Debug, Clone, Copy)]
struct Entry {
    place: Place,
    is_finished: bool,
    class: Class,
    /// The period over which the torrent is measured.
    period: Option<Period>,
}

#[derive(Debug, Clone, Copy)]
struct Period {
    since: Timestamp,
    /// Transferred bytes at its begin.
    bytes: u64,
}

impl Queue {
    fn lane(&mut self, is_finished: bool) -> &mut Lane {
        match is_finished {
            true => &mut self.seeds,
            false => &mut self.downloads,
        }
    }

    fn insert(&mut self, entry: Entry) {
        self.lane(entry.is_finished).insert(entry.place, entry.class);
        self.entries.insert(entry.place.torrent, entry);
    }

    fn remove(&mut self, torrent: Entity) -> Option<Entry> {
        let entry = self.entries.remove(&torrent)?;
        self.lane(entry.is_finished).remove(&entry.place, entry.class);
        Some(entry)
    }

    /// Moves a torrent to another place.
    fn reorder(&mut self, torrent: Entity, data: &Torrent, from: i64, to: i64) {
        let (id, place) = (data.id(), |order, id| Place { order, id, torrent });
        self.order.remove(&place(from, id));
        self.order.insert(place(to, id));
        if let Some(entry) = self.remove(torrent) {
            let place = place(to, id);
            self.insert(Entry { place, ..entry });
        }
        self.touch(torrent);
    }

    /// Examines a torrent in the next decision. Without limits, there is none.
    fn touch(&mut self, torrent: Entity) {
        if self.is_limiting {
            self.changed.push(torrent);
        }
    }

    fn forget_all(&mut self) {
        (self.downloads, self.seeds) = (Lane::default(), Lane::default());
        self.entries.clear();
        self.changed.clear();
    }
}

/// Gives a new torrent the last place. While the settings limit anything, it has to wait.
fn add_torrent(
    added: On<Add<Torrent>>,
    mut commands: Commands,
    settings: Res<Settings>,
    mut queue: ResMut<Queue>,
    mut torrents: Query<(&Torrent, &mut QueueOrder)>,
) {
    let Ok((data, mut order)) = torrents.get_mut(added.entity) else {
        return;
    };
    order.0 = queue.order.last().map_or(0, |last| last.order.saturating_add(1));
    queue.order.insert(Place {
        order: order.0,
        id: data.id(),
        torrent: added.entity,
    });
    if settings.queue.is_limiting() {
        queue.is_limiting = true;
        commands.entity(added.entity).insert(Waiting);
    }
}

fn remove_torrent(removed: On<Remove<Torrent>>, mut queue: ResMut<Queue>, torrents: Query<(&Torrent, &QueueOrder)>) {
    let torrent = removed.entity;
    if let Ok((data, QueueOrder(order))) = torrents.get(torrent) {
        queue.order.remove(&Place {
            order: *order,
            id: data.id(),
            torrent,
        });
    }
    queue.remove(torrent);
    queue.touch(torrent);
}

/// Gives a torrent its place of an earlier run.
fn restore(
    loaded: On<SessionLoaded>,
    mut commands: Commands,
    mut queue: ResMut<Queue>,
    mut torrents: Query<(&Torrent, &mut QueueOrder)>,
) {
    let torrent = loaded.torrent;
    let Ok((data, mut order)) = torrents.get_mut(torrent) else {
        return;
    };
    if let Some(saved) = loaded.session.queue_order {
        queue.reorder(torrent, data, order.0, saved);
        order.0 = saved;
    }
    if loaded.session.is_forced {
        commands.entity(torrent).insert(ForcedStart).remove::<Waiting>();
    }
}

/// Lets a new torrent get the place with which it was added, once its session is loaded.
fn take_place(given: On<PlaceGiven>, mut queue: ResMut<CommandQueue<SetQueue>>, torrents: Query<&Torrent>) {
    if let Ok(torrent) = torrents.get(given.torrent) {
        let movement = Some(given.movement);
        queue.0.push_back(SetQueue {
            torrent: torrent.id(),
            change: QueueChange { movement, forced: None },
            reply: Reply::ignored(),
        });
    }
}

fn follow_settings(changed: On<SettingsChanged>, mut queue: ResMut<Queue>, (clock, wakeup): (Res<Clock>, Res<Wakeup>)) {
    if changed.names.iter().any(|name| name.starts_with("queue.")) {
        queue.is_outdated = true;
        wakeup.at(clock.now());
    }
}

/// Messages about torrents that may run, wait or count by now.
#[derive(SystemParam)]
struct QueueMessages<'w, 's> {
    states: MessageReader<'w, 's, LifecycleChanged>,
    wanted: MessageReader<'w, 's, WantedChanged>,
    accepted: MessageReader<'w, 's, BlockAccepted>,
    sent: MessageReader<'w, 's, BlockSent>,
}

/// Returns whether a torrent may have to run or to wait now.
fn has_work(
    queue: Res<Queue>,
    states: Res<Messages<LifecycleChanged>>,
    wanted: Res<Messages<WantedChanged>>,
    (accepted, sent): (Res<Messages<BlockAccepted>>, Res<Messages<BlockSent>>),
    checks: Res<Deadlines<SlowCheck>>,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
) -> bool {
    if !queue.is_limiting {
        return queue.is_outdated;
    }
    let has_slow = queue.downloads.has_slow() || queue.seeds.has_slow();
    let has_transfers = has_slow && !(accepted.is_empty() && sent.is_empty());
    let is_changed = queue.is_outdated || !queue.changed.is_empty() || !states.is_empty() || !wanted.is_empty();
    is_due(checks.next(), &clock, &wakeup) || is_changed || has_transfers
}

/// Requests a tick for the changes of states that this tick has made after the queue's decision.
fn request_tick(mut changed: MessageReader<LifecycleChanged>, (clock, wakeup): (Res<Clock>, Res<Wakeup>)) {
    if changed.read().next().is_some() {
        changed.clear();
        wakeup.at(clock.now());
    }
}

/// The parts of a torrent that the queue reads.
#[derive(QueryData)]
struct Queued {
    entity: Entity,
    torrent: &'static Torrent,
    order: &'static QueueOrder,
    counters: &'static Counters,
    facts: QueueFacts,
}

impl QueuedItem<'_, '_> {
    /// Returns the bytes by which the torrent is measured.
    fn bytes(&self) -> u64 {
        match self.facts.is_finished() {
            true => self.counters.uploaded,
            false => self.counters.downloaded,
        }
    }
}

/// Applies changed facts and settings: each torrent is in the right lane, or in none.
fn follow(
    mut commands: Commands,
    settings: Res<Settings>,
    clock: Res<Clock>,
    mut queue: ResMut<Queue>,
    mut facts: ResMut<ChangedFacts>,
    mut save: MessageWriter<SaveTorrent>,
    mut messages: QueueMessages,
    mut checks: ResMut<Deadlines<SlowCheck>>,
    torrents: Query<Queued>,
) {
    if std::mem::take(&mut queue.is_outdated) && !queue.apply(&settings.queue, &mut commands, &mut facts, &torrents) {
        messages.states.clear();
        return;
    }
    let mut changed = std::mem::take(&mut queue.changed);
    for LifecycleChanged { torrent, from, to } in messages.states.read() {
        changed.push(*torrent);
        if *from == Lifecycle::Checking && *to == Lifecycle::Queued {
            // Nothing else saves the result of the check before the torrent runs.
            save.write(SaveTorrent { torrent: *torrent });
        }
    }
    changed.extend(messages.wanted.read().map(|message| message.torrent));
    for torrent in changed {
        let Ok(queued) = torrents.get(torrent) else { continue };
        let entry = queue.place(&queued, &mut commands, &mut facts);
        if let Some(torrent) = entry.and_then(|entry| entry.begin_period(&settings.queue, clock.now(), queued.bytes()))
        {
            checks.set(clock.now() + seconds(settings.queue.slow_after_s), SlowCheck(torrent));
        }
    }
    let accepted = messages.accepted.read().map(|message| message.torrent);
    let sent = messages.sent.read().map(|message| message.torrent);
    let mut last = None;
    for torrent in accepted.chain(sent) {
        // Blocks come in runs, mostly of one torrent.
        if last.replace(torrent) == Some(torrent) {
            continue;
        }
        let slow = queue
            .entries
            .get_mut(&torrent)
            .filter(|entry| entry.class == Class::Slow && entry.period.is_none());
        if let (Some(entry), Ok(queued)) = (slow, torrents.get(torrent)) {
            let (since, bytes) = (clock.now(), queued.bytes());
            entry.period = Some(Period { since, bytes });
            checks.set(since + seconds(settings.queue.slow_after_s), SlowCheck(torrent));
        }
    }
}

impl Queue {
    /// Applies changed settings. Returns whether they limit anything.
    fn apply(
        &mut self,
        settings: &QueueSettings,
        commands: &mut Commands,
        facts: &mut ChangedFacts,
        torrents: &Query<Queued>,
    ) -> bool {
        let is_limiting = settings.is_limiting();
        let was_limiting = std::mem::replace(&mut self.is_limiting, is_limiting);
        if is_limiting {
            // The rates that count as slow may have changed, and torrents that were not tracked are.
            self.changed.extend(torrents.iter().map(|queued| queued.entity));
        } else if was_limiting {
            self.forget_all();
            for queued in torrents {
                commands.entity(queued.entity).remove::<(Waiting, SlowTransfer)>();
                facts.add(queued.entity);
            }
        }
        is_limiting
    }

    /// Puts a torrent into its lane, or takes it out of it. Returns its entry, if it may run.
    fn place(
        &mut self,
        queued: &QueuedItem<'_, '_>,
        commands: &mut Commands,
        facts: &mut ChangedFacts,
    ) -> Option<&mut Entry> {
        let (torrent, is_forced) = (queued.entity, queued.facts.is_forced);
        let before = self.remove(torrent);
        let was_slow = before.is_some_and(|entry| entry.class == Class::Slow);
        let is_finished = queued.facts.is_finished();
        let same = before.filter(|entry| entry.is_finished == is_finished && entry.class.is_running());
        let class = match same {
            _ if !queued.facts.may_run() => None,
            _ if is_forced => Some(Class::Forced),
            _ if queued.facts.is_waiting => Some(Class::Waiting),
            Some(entry) if entry.class == Class::Slow => Some(Class::Slow),
            _ => Some(Class::Counted),
        };
        if was_slow && class != Some(Class::Slow) {
            commands.entity(torrent).remove::<SlowTransfer>();
        }
        // A torrent that does not run now has to wait when it may again.
        match (is_forced, queued.facts.is_waiting, class) {
            (true, true, _) => {
                commands.entity(torrent).remove::<Waiting>();
                facts.add(torrent);
            }
            (false, false, None) => drop(commands.entity(torrent).insert(Waiting)),
            _ => {}
        }
        let place = Place {
            order: queued.order.0,
            id: queued.torrent.id(),
            torrent,
        };
        self.insert(Entry {
            place,
            is_finished,
            class: class?,
            period: same
                .filter(|entry| Some(entry.class) == class)
                .and_then(|entry| entry.period),
        });
        self.entries.get_mut(&torrent)
    }
}

impl Entry {
    /// Begins a period of measuring for a torrent that counts, if its rate matters. Returns the torrent.
    fn begin_period(&mut self, settings: &QueueSettings, now: Timestamp, bytes: u64) -> Option<Entity> {
        let rate = slow_rate(settings, self.is_finished);
        if self.class != Class::Counted || self.period.is_some() || rate == 0 {
            return None;
        }
        self.period = Some(Period { since: now, bytes });
        Some(self.place.torrent)
    }
}

/// Returns the rate below which a torrent is slow, in bytes per second.
fn slow_rate(settings: &QueueSettings, is_finished: bool) -> u64 {
    match is_finished {
        true => settings.slow_upload_bytes_per_s,
        false => settings.slow_download_bytes_per_s,
    }
}

/// Decides which of the torrents whose period is over are slow.
fn measure(
    mut commands: Commands,
    settings: Res<Settings>,
    clock: Res<Clock>,
    mut queue: ResMut<Queue>,
    mut checks: ResMut<Deadlines<SlowCheck>>,
    torrents: Query<Queued>,
) {
    let (now, length) = (clock.now(), seconds(settings.queue.slow_after_s));
    while let Some(SlowCheck(torrent)) = checks.pop_due(now) {
        let Ok(queued) = torrents.get(torrent) else { continue };
        let entry = queue.entries.get(&torrent).copied();
        let Some((entry, period)) = entry.and_then(|entry| Some((entry, entry.period?))) else {
            continue;
        };
        let elapsed = now.since(period.since);
        if elapsed < length {
            continue;
        }
        let is_slow = is_slow(
            queued.bytes().saturating_sub(period.bytes),
            elapsed,
            slow_rate(&settings.queue, entry.is_finished),
        );
        let class = match entry.class {
            Class::Counted | Class::Slow if is_slow => Class::Slow,
            Class::Slow => Class::Counted,
            other => other,
        };
        queue.remove(torrent);
        queue.insert(Entry {
            class,
            period: None,
            ..entry
        });
        match (entry.class, class) {
            (Class::Counted, Class::Slow) => drop(commands.entity(torrent).insert(SlowTransfer)),
            (Class::Slow, Class::Counted) => drop(commands.entity(torrent).remove::<SlowTransfer>()),
            _ => {}
        }
        let entry = queue.entries.get_mut(&torrent);
        if entry.is_some_and(|entry| entry.begin_period(&settings.queue, now, queued.bytes()).is_some()) {
            checks.set(now + length, SlowCheck(torrent));
        }
    }
}

/// Whether bytes in a time are below a rate per second.
fn is_slow(bytes: u64, elapsed: Duration, rate: u64) -> bool {
    u128::from(bytes) * 1_000_000_000 < u128::from(rate) * elapsed.as_nanos()
}

/// Lets the first torrents run, and the others wait.
fn settle(
    mut commands: Commands,
    settings: Res<Settings>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    mut queue: ResMut<Queue>,
    mut facts: ResMut<ChangedFacts>,
    mut checks: ResMut<Deadlines<SlowCheck>>,
    torrents: Query<Queued>,
) {
    let limits = &settings.queue;
    let most = limits.max_active.saturating_sub(queue.seeds.forced_count());
    let mut moved = queue.downloads.settle(limits.max_downloads, most);
    let most = limits.max_active.saturating_sub(queue.downloads.running_count());
    moved.extend(queue.seeds.settle(limits.max_seeds, most));
    for (place, class) in moved {
        let torrent = place.torrent;
        let Some(entry) = queue.entries.get_mut(&torrent) else {
            continue;
        };
        if entry.class == Class::Slow {
            commands.entity(torrent).remove::<SlowTransfer>();
        }
        (entry.class, entry.period) = (class, None);
        match class {
            Class::Waiting => drop(commands.entity(torrent).insert(Waiting)),
            _ => drop(commands.entity(torrent).remove::<Waiting>()),
        }
        facts.add(torrent);
        let Ok(queued) = torrents.get(torrent) else { continue };
        match class {
            Class::Waiting => tracing::debug!(torrent = %queued.torrent.label(), "has to wait in the queue"),
            _ => tracing::debug!(torrent = %queued.torrent.label(), "leaves the queue"),
        }
        if entry.begin_period(limits, clock.now(), queued.bytes()).is_some() {
            checks.set(clock.now() + seconds(limits.slow_after_s), SlowCheck(torrent));
        }
    }
    wakeup.at_next(checks.next());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bed;

    #[test]
    fn a_rate_is_measured_over_the_period() {
        let minute = Duration::from_secs(60);
        assert!(is_slow(0, minute, 1) && is_slow(59, minute, 1) && !is_slow(60, minute, 1));
        assert!(!is_slow(0, minute, 0), "nothing is slow without a rate");
    }

    /// A queue without changes costs nothing, and neither does one without limits.
    #[test]
    fn nothing_runs_without_a_change() {
        let mut bed = Bed::new(QueuePlugin);
        bed.world.init_resource::<Messages<LifecycleChanged>>();
        bed.world.init_resource::<Messages<WantedChanged>>();
        bed.world.init_resource::<Messages<BlockAccepted>>();
        bed.world.init_resource::<Messages<BlockSent>>();
        let torrent = bed.torrent;
        for is_limiting in [false, true] {
            bed.world.resource_mut::<Queue>().is_limiting = is_limiting;
            assert!(!bed.holds(has_work));
            bed.world.write_message(LifecycleChanged {
                torrent,
                from: Lifecycle::Adding,
                to: Lifecycle::Queued,
            });
            assert_eq!(bed.holds(has_work), is_limiting);
            bed.world.resource_mut::<Messages<LifecycleChanged>>().clear();
        }
        let (peer, len) = (torrent, 1);
        bed.world.write_message(BlockSent { torrent, peer, len });
        assert!(!bed.holds(has_work), "only slow torrents are measured again");
        let place = Place {
            order: 0,
            id: crate::testing::torrent().id(),
            torrent,
        };
        bed.world.resource_mut::<Queue>().insert(Entry {
            place,
            is_finished: true,
            class: Class::Slow,
            period: None,
        });
        assert!(bed.holds(has_work));
    }
}
