//! Limits on the transfer rates of all torrents together, and of single torrents. The streams take downloads from them,
//! uploads the blocks that are read.
//!
//! The limits of a torrent are intent ([`TransferLimits`]) and are saved in its session. Its buckets
//! ([`TorrentBuckets`]) follow from them.

mod changing;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::buckets::TorrentBuckets;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{CommandQueue, SetLimits};
use ecs_torrent_components::messages::{LimitsGiven, SessionLoaded};
use ecs_torrent_components::rate_limit::{RateLimits, TransferLimits};
use ecs_torrent_components::settings::{AlternativeUse, Settings, SettingsChanged, seconds};
use ecs_torrent_components::torrent::Torrent;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_engine::wall::WallClock;
use ecs_torrent_protocol::time::Timestamp;

use crate::durable::{ComponentChange, DurableChanges, has_changes};
use crate::{AnnounceSet, IntakeSet};

/// Limits transfer rates, as the settings say.
pub struct LimitsPlugin;

impl Plugin for LimitsPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<RateLimits>()
            .init_resource::<NextChange>()
            .init_resource::<CommandQueue<SetLimits>>()
            .init_resource::<DurableChanges<ComponentChange<SetLimits>>>()
            .add_observer(follow_settings)
            .add_observer(take_limits)
            .add_observer(restore_limits)
            .add_observer(follow_limits)
            .add_observer(count_torrent)
            .add_observer(forget_torrent)
            .add_systems(
                Tick,
                (changing::settle_changes, changing::take_changes)
                    .chain()
                    .run_if(has_changes::<SetLimits, ComponentChange<SetLimits>>)
                    .in_set(AnnounceSet::Limits),
            )
            .add_systems(Tick, follow_schedule.run_if(is_due).in_set(IntakeSet::Schedule));
    }
}

/// The time at which the schedule of the alternative limits is looked at again. It begins with the engine.
#[derive(Resource, Debug, Default)]
struct NextChange(Timestamp);

/// Returns whether the limits are to be set. If not, requests a tick at that time.
fn is_due(next: Res<NextChange>, clock: Res<Clock>, wakeup: Res<Wakeup>) -> bool {
    let is_due = next.0 <= clock.now();
    if !is_due {
        wakeup.at(next.0);
    }
    is_due
}

/// Sets the engine's limits: the usual or the alternative ones. A schedule is looked at every minute, since wall clocks
/// jump.
fn follow_schedule(
    settings: Res<Settings>,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    wall: Option<Res<WallClock>>,
    mut next: ResMut<NextChange>,
    mut limits: ResMut<RateLimits>,
) {
    let now = clock.now();
    let time = wall.map_or_else(|| WallClock::default().week_time(now), |wall| wall.week_time(now));
    next.0 = match settings.limits.alternative {
        AlternativeUse::Scheduled => now + seconds(time.seconds_to_next_minute()),
        AlternativeUse::Never | AlternativeUse::Always => Timestamp::NEVER,
    };
    let is_alternative = settings.limits.is_alternative(time);
    if limits.is_alternative != is_alternative {
        limits.is_alternative = is_alternative;
        tracing::info!(
            is_alternative,
            "the limits on transfer rates change by schedule or setting"
        );
    }
    let (download, upload) = settings.limits.rates(is_alternative);
    limits.download.set(download, now);
    limits.upload.set(upload, now);
    wakeup.at(next.0.min(now + seconds(60)));
}

/// Applies changed limits in this tick: transfers that wait go on at the new rate.
fn follow_settings(_: On<SettingsChanged>, clock: Res<Clock>, mut next: ResMut<NextChange>) {
    next.0 = clock.now();
}

/// Gives a torrent the limits with which it was added.
fn take_limits(given: On<LimitsGiven>, mut commands: Commands) {
    commands.entity(given.torrent).insert(given.limits);
}

/// Gives a torrent the limits of an earlier run, unless it has some of this run.
fn restore_limits(
    loaded: On<SessionLoaded>,
    mut commands: Commands,
    torrents: Query<(), (With<Torrent>, Without<TransferLimits>)>,
) {
    let limits = loaded.session.limits;
    if torrents.contains(loaded.torrent) && !limits.is_unlimited() && limits.check().is_ok() {
        commands.entity(loaded.torrent).insert(limits);
    }
}

/// Makes the buckets of a torrent follow its limits.
fn follow_limits(
    changed: On<Insert<TransferLimits>>,
    mut commands: Commands,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    mut torrents: Query<(&TransferLimits, Option<&mut TorrentBuckets>)>,
) {
    let now = clock.now();
    let Ok((limits, buckets)) = torrents.get_mut(changed.entity) else {
        return;
    };
    let set = |buckets: &mut TorrentBuckets| {
        buckets.download.set(limits.download_bytes_per_s, now);
        buckets.upload.set(limits.upload_bytes_per_s, now);
    };
    match buckets {
        Some(mut buckets) => set(&mut buckets),
        None => {
            let mut buckets = TorrentBuckets::default();
            set(&mut buckets);
            commands.entity(changed.entity).insert(buckets);
        }
    }
    wakeup.at(now);
}

fn count_torrent(_: On<Add<TorrentBuckets>>, mut limits: ResMut<RateLimits>) {
    limits.torrent_count += 1;
}

fn forget_torrent(_: On<Remove<TorrentBuckets>>, mut limits: ResMut<RateLimits>) {
    limits.torrent_count -= 1;
}
