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
use ecs_torrent_components::settings::{Settings, SettingsChanged};
use ecs_torrent_components::torrent::Torrent;
use ecs_torrent_engine::schedule::Tick;

use crate::AnnounceSet;

/// Limits transfer rates, as the settings say.
pub struct LimitsPlugin;

impl Plugin for LimitsPlugin {
    fn build(&self, app: &mut App) {
        let settings = app.world().get_resource::<Settings>();
        let limits = settings.map(|settings| RateLimits::new(&settings.limits));
        app.insert_resource(limits.unwrap_or_default())
            .init_resource::<CommandQueue<SetLimits>>()
            .init_resource::<changing::LimitChanges>()
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
                    .run_if(changing::has_changes)
                    .in_set(AnnounceSet::Limits),
            );
    }
}

/// Applies changed limits. Transfers that wait go on in this tick, at the new rate.
fn follow_settings(
    _: On<SettingsChanged>,
    settings: Res<Settings>,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    mut limits: ResMut<RateLimits>,
) {
    let now = clock.now();
    limits.download.set(settings.limits.download_limit(), now);
    limits.upload.set(settings.limits.upload_limit(), now);
    wakeup.at(now);
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
