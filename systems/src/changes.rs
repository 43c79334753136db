//! A log of the torrents that have changed, for clients that keep a copy of the list ([`GetChanges`]).
//!
//! The log lists every torrent once, in order of its latest change. So the torrents that have changed since a revision
//! are found without visiting the others, and the log's size is bounded by the number of torrents.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use bevy_platform::hash::FixedHasher;
use ecs_torrent_components::changes::{Changes, GetChanges, RemovedTorrents, Revision};
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::commands::CommandQueue;
use ecs_torrent_components::labels::Labels;
use ecs_torrent_components::lifecycle::Lifecycle;
use ecs_torrent_components::messages::{
    BlockAccepted, BlockSent, BlockWasted, LifecycleChanged, MetadataKnown, PeerConnected, PeerDisconnected,
    PieceConfirmed, PieceRejected, PieceStored, PiecesKnown, PlaceChanged, WantedChanged,
};
use ecs_torrent_components::queue::SlowTransfer;
use ecs_torrent_components::rate_limit::TransferLimits;
use ecs_torrent_components::seeding::{SeedingLimits, SeedingRecord};
use ecs_torrent_components::torrent::{Torrent, TorrentRates};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;
use lru::LruCache;

use crate::conditions::has_commands;
use crate::stats::StatsParams;
use crate::{DecideSet, ReapSet};

/// Logs changes of torrents.
pub struct ChangesPlugin;

impl Plugin for ChangesPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<ChangeLog>()
            .init_resource::<CommandQueue<GetChanges>>()
            .add_observer(log_added)
            .add_observer(log_removed)
            .add_observer(log_limited)
            .add_observer(log_unlimited)
            .add_observer(log_labeled)
            .add_observer(log_seeding_limits)
            .add_observer(log_reached)
            .add_observer(log_place)
            .add_observer(log_slow)
            .add_observer(log_fast)
            .add_systems(
                Tick,
                (
                    answer_changes
                        .run_if(has_commands::<GetChanges>)
                        .in_set(DecideSet::Stats),
                    log_changes.run_if(has_changes).in_set(ReapSet::Log),
                ),
            );
    }
}

/// Interval at which torrents count as changed while they transfer data or are being checked.
const LIVE_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// The torrents in order of their latest change, and the latest removed ones.
#[derive(Resource, Debug)]
pub struct ChangeLog {
    /// The number of this run: the date of its first answer in nanoseconds, 0 before. Runs before and after a panic
    /// have different dates.
    run: u64,
    /// The number of the latest change.
    latest: u64,
    listed: LruCache<Entity, Logged, FixedHasher>,
    removed: RemovedTorrents,
    /// Torrents that transfer data or are being checked.
    live: Vec<Entity>,
    /// When the live torrents count as changed next.
    next_look: Timestamp,
}

#[derive(Debug)]
struct Logged {
    /// The number of the torrent's latest change.
    number: u64,
    is_live: bool,
}

/// The part of the log after a revision.
struct Logs {
    revision: Revision,
    is_reset: bool,
    changed: Vec<Entity>,
    removed: Vec<InfoHash>,
    has_more: bool,
}

impl Default for ChangeLog {
    fn default() -> Self {
        Self {
            run: 0,
            latest: 0,
            listed: LruCache::unbounded_with_hasher(FixedHasher),
            removed: RemovedTorrents::default(),
            live: Vec::new(),
            next_look: Timestamp::ZERO,
        }
    }
}

impl ChangeLog {
    /// Logs a change of a listed torrent.
    fn log(&mut self, torrent: Entity) {
        if let Some(logged) = self.listed.get_mut(&torrent) {
            self.latest += 1;
            logged.number = self.latest;
        }
    }

    /// Logs a change of a torrent that changes all the time for a while.
    fn log_live(&mut self, torrent: Entity) {
        let Some(logged) = self.listed.peek_mut(&torrent) else {
            return;
        };
        if !std::mem::replace(&mut logged.is_live, true) {
            self.live.push(torrent);
            self.log(torrent);
        }
    }

    /// Logs a change of all live torrents. Torrents for which `stays` does not hold are not live any more.
    fn log_all_live(&mut self, stays: impl Fn(Entity) -> bool) {
        let mut live = std::mem::take(&mut self.live);
        live.retain(|torrent| {
            self.log(*torrent);
            let stays = stays(*torrent);
            if let Some(logged) = self.listed.peek_mut(torrent) {
                logged.is_live = stays;
            }
            stays
        });
        self.live = live;
    }

    fn add(&mut self, torrent: Entity) {
        self.latest += 1;
        let logged = Logged {
            number: self.latest,
            is_live: false,
        };
        self.listed.push(torrent, logged);
    }

    fn remove(&mut self, torrent: Entity, info_hash: InfoHash) {
        if self.listed.pop(&torrent).is_none() {
            return;
        }
        self.latest += 1;
        self.removed.push(self.latest, info_hash);
    }

    /// Returns at most `max_count` torrents that have changed after `since`, the earliest change first.
    fn after(&self, since: Option<Revision>, max_count: usize) -> Logs {
        let is_known = |since: &Revision| {
            since.run == self.run && since.number <= self.latest && self.removed.is_complete_after(since.number)
        };
        let known = since.filter(is_known);
        let from = known.map_or(0, |since| since.number);
        let newer = self.listed.iter().take_while(|(_, logged)| logged.number > from);
        let mut newer: Vec<(u64, Entity)> = newer.map(|(torrent, logged)| (logged.number, *torrent)).collect();
        newer.reverse();
        let has_more = newer.len() > max_count;
        newer.truncate(max_count.max(1));
        let until = match newer.last() {
            Some((number, _)) if has_more => *number,
            _ => self.latest,
        };
        Logs {
            revision: Revision {
                run: self.run,
                number: until,
            },
            is_reset: known.is_none(),
            // A client without any revision has no removed torrents to forget.
            removed: match known {
                Some(_) => self.removed.between(from, until),
                None => Vec::new(),
            },
            changed: newer.into_iter().map(|(_, torrent)| torrent).collect(),
            has_more,
        }
    }
}

fn log_added(added: On<Add<Torrent>>, mut log: ResMut<ChangeLog>) {
    log.add(added.entity);
}

fn log_removed(removed: On<Remove<Torrent>>, torrents: Query<&Torrent>, mut log: ResMut<ChangeLog>) {
    if let Ok(torrent) = torrents.get(removed.entity) {
        log.remove(removed.entity, torrent.id());
    }
}

fn log_limited(limited: On<Insert<TransferLimits>>, mut log: ResMut<ChangeLog>) {
    log.log(limited.entity);
}

fn log_unlimited(unlimited: On<Remove<TransferLimits>>, mut log: ResMut<ChangeLog>) {
    log.log(unlimited.entity);
}

fn log_seeding_limits(limited: On<Insert<SeedingLimits>>, mut log: ResMut<ChangeLog>) {
    log.log(limited.entity);
}

fn log_reached(reached: On<Insert<SeedingRecord>>, mut log: ResMut<ChangeLog>) {
    log.log(reached.entity);
}

fn log_labeled(labeled: On<Insert<Labels>>, mut log: ResMut<ChangeLog>) {
    log.log(labeled.entity);
}

fn log_place(changed: On<PlaceChanged>, mut log: ResMut<ChangeLog>) {
    log.log(changed.torrent);
}

fn log_slow(slow: On<Add<SlowTransfer>>, mut log: ResMut<ChangeLog>) {
    log.log(slow.entity);
}

fn log_fast(fast: On<Remove<SlowTransfer>>, mut log: ResMut<ChangeLog>) {
    log.log(fast.entity);
}

/// Messages about changes of torrents.
#[derive(SystemParam)]
struct ChangeMessages<'w, 's> {
    states: MessageReader<'w, 's, LifecycleChanged>,
    known: MessageReader<'w, 's, MetadataKnown>,
    found: MessageReader<'w, 's, PiecesKnown>,
    wanted: MessageReader<'w, 's, WantedChanged>,
    stored: MessageReader<'w, 's, PieceStored>,
    confirmed: MessageReader<'w, 's, PieceConfirmed>,
    rejected: MessageReader<'w, 's, PieceRejected>,
    wasted: MessageReader<'w, 's, BlockWasted>,
    accepted: MessageReader<'w, 's, BlockAccepted>,
    sent: MessageReader<'w, 's, BlockSent>,
    connected: MessageReader<'w, 's, PeerConnected>,
    disconnected: MessageReader<'w, 's, PeerDisconnected>,
}

impl ChangeMessages<'_, '_> {
    fn is_empty(&self) -> bool {
        self.states.is_empty()
            && self.known.is_empty()
            && self.found.is_empty()
            && self.wanted.is_empty()
            && self.stored.is_empty()
            && self.confirmed.is_empty()
            && self.rejected.is_empty()
            && self.wasted.is_empty()
            && self.accepted.is_empty()
            && self.sent.is_empty()
            && self.connected.is_empty()
            && self.disconnected.is_empty()
    }
}

/// Whether something has changed.
fn has_changes(messages: ChangeMessages, log: Res<ChangeLog>, clock: Res<Clock>) -> bool {
    !messages.is_empty() || (!log.live.is_empty() && log.next_look <= clock.now())
}

fn log_changes(
    clock: Res<Clock>,
    mut log: ResMut<ChangeLog>,
    mut messages: ChangeMessages,
    torrents: Query<(&Lifecycle, &TorrentRates)>,
) {
    let now = clock.now();
    for LifecycleChanged { torrent, to, .. } in messages.states.read() {
        log.log(*torrent);
        if is_examined(to) {
            log.log_live(*torrent);
        }
    }
    let known = messages.known.read().map(|message| message.torrent);
    let found = messages.found.read().map(|message| message.torrent);
    let wanted = messages.wanted.read().map(|message| message.torrent);
    let stored = messages.stored.read().map(|message| message.torrent);
    let confirmed = messages.confirmed.read().map(|message| message.torrent);
    let rejected = messages.rejected.read().map(|message| message.torrent);
    let wasted = messages.wasted.read().map(|message| message.torrent);
    let connected = messages.connected.read().map(|message| message.torrent);
    let disconnected = messages.disconnected.read().filter_map(|message| message.torrent);
    let changed = known
        .chain(found)
        .chain(wanted)
        .chain(stored)
        .chain(confirmed)
        .chain(rejected)
        .chain(wasted);
    for torrent in without_runs(changed.chain(connected).chain(disconnected)) {
        log.log(torrent);
    }
    let accepted = messages.accepted.read().map(|message| message.torrent);
    let sent = messages.sent.read().map(|message| message.torrent);
    for torrent in without_runs(accepted.chain(sent)) {
        log.log_live(torrent);
    }
    if log.next_look <= now {
        log.next_look = now + LIVE_INTERVAL;
        log.log_all_live(|torrent| {
            torrents.get(torrent).is_ok_and(|(lifecycle, rates)| {
                is_examined(lifecycle) || rates.download(now) > 0 || rates.upload(now) > 0
            })
        });
    }
}

/// Whether the progress of a state is shown to users without a message about it.
fn is_examined(lifecycle: &Lifecycle) -> bool {
    matches!(
        lifecycle,
        Lifecycle::Checking | Lifecycle::Moving | Lifecycle::FetchingMetadata
    )
}

/// Leaves out the repetitions of an iterator's last item. Messages come in runs, mostly about one torrent.
fn without_runs(torrents: impl Iterator<Item = Entity>) -> impl Iterator<Item = Entity> {
    let mut last = None;
    torrents.filter(move |torrent| last.replace(*torrent) != Some(*torrent))
}

fn answer_changes(
    clock: Res<Clock>,
    mut commands: ResMut<CommandQueue<GetChanges>>,
    mut log: ResMut<ChangeLog>,
    params: StatsParams,
) {
    if log.run == 0 {
        let date = clock.unix_time().as_nanos();
        log.run = u64::try_from(date).unwrap_or(u64::MAX).max(1);
    }
    for GetChanges {
        since,
        max_count,
        reply,
    } in commands.0.drain(..)
    {
        let Logs {
            revision,
            is_reset,
            changed,
            removed,
            has_more,
        } = log.after(since, max_count);
        reply.send(Changes {
            revision,
            is_reset,
            removed,
            changed: changed.into_iter().filter_map(|torrent| params.row(torrent)).collect(),
            has_more,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entity(number: u32) -> Entity {
        Entity::from_raw_u32(number).unwrap()
    }

    fn hash(number: u8) -> InfoHash {
        InfoHash([number; 20])
    }

    fn log_of(count: u32) -> ChangeLog {
        let mut log = ChangeLog {
            run: 7,
            ..ChangeLog::default()
        };
        (0..count).for_each(|number| log.add(entity(number)));
        log
    }

    #[test]
    fn a_log_lists_what_changed_and_what_went() {
        let mut log = log_of(3);
        let first = log.after(None, 10);
        assert_eq!((first.changed.len(), first.is_reset, first.has_more), (3, true, false));
        let second = log.after(Some(first.revision), 10);
        assert_eq!((second.changed.len(), second.is_reset), (0, false));

        log.log(entity(2));
        log.log(entity(0));
        log.log(entity(0));
        log.remove(entity(1), hash(1));
        let third = log.after(Some(second.revision), 10);
        assert_eq!(
            third.changed,
            [entity(2), entity(0)],
            "the earliest change first, each torrent once"
        );
        assert_eq!((third.removed, third.is_reset), (vec![hash(1)], false));
        let fresh = log.after(None, 10);
        assert_eq!((fresh.changed.len(), fresh.removed.len()), (2, 0));
    }

    /// A client that reads in parts gets everything, also what changes between the parts.
    #[test]
    fn a_long_answer_comes_in_parts() {
        let mut log = log_of(10);
        let mut since = None;
        let mut seen = Vec::new();
        for part in 0.. {
            let logs = log.after(since, 4);
            assert_eq!(logs.is_reset, part == 0);
            assert!(logs.changed.len() <= 4);
            seen.extend(logs.changed);
            since = Some(logs.revision);
            if part == 0 {
                log.log(entity(1));
                log.remove(entity(9), hash(9));
                log.add(entity(10));
            }
            if !logs.has_more {
                break;
            }
        }
        assert_eq!(seen[4..], [4, 5, 6, 7, 8, 1, 10].map(entity));
    }

    #[test]
    fn a_revision_that_is_too_old_or_of_another_run_gets_everything() {
        let mut log = log_of(2);
        let since = log.after(None, 10).revision;
        for _ in 0..=RemovedTorrents::MAX {
            log.add(entity(5));
            log.remove(entity(5), hash(5));
        }
        assert_eq!(log.removed.len(), RemovedTorrents::MAX, "its memory is bounded");
        let late = log.after(Some(since), 10);
        assert!(late.is_reset && late.removed.is_empty() && late.changed.len() == 2);
        let other = Revision {
            run: 8,
            ..late.revision
        };
        assert!(log.after(Some(other), 10).is_reset);
        let future = Revision {
            number: late.revision.number + 1,
            ..late.revision
        };
        assert!(log.after(Some(future), 10).is_reset);
        assert!(!log.after(Some(late.revision), 10).is_reset);
    }

    #[test]
    fn a_live_torrent_changes_once_per_look_and_one_last_time() {
        let mut log = log_of(2);
        let before = log.latest;
        log.log_live(entity(1));
        log.log_live(entity(1));
        assert_eq!(log.latest, before + 1);
        log.log_all_live(|_| true);
        log.log_all_live(|_| false);
        log.log_all_live(|_| true);
        assert_eq!((log.latest, log.live.len()), (before + 3, 0));
        log.log_live(entity(1));
        log.remove(entity(1), hash(1));
        log.log_all_live(|_| false);
        assert!(log.live.is_empty() && log.listed.len() == 1);
    }
}
