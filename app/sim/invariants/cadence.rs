//! An engine without work is idle, and no engine ticks more often than its settings allow.

use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_engine::ports::{DiskPort, HashPort, HttpPort, NetPort, StatePort};
use ecs_torrent_protocol::time::Timestamp;

use super::{Invariant, Violations};

/// Maximum number of ticks per second that neither receive nor send anything.
const MAX_IDLE_TICKS: u32 = 200;

/// Ticks in the current second.
#[derive(Resource, Default)]
pub(super) struct Cadence {
    since: Timestamp,
    ticks: u32,
    idle_ticks: u32,
}

/// Maximum number of ticks per second that external events may cause, in addition to the engine's own.
const MAX_EXTRA_TICKS: u64 = 100;

pub(super) fn check(
    clock: Res<Clock>,
    settings: Res<Settings>,
    net: Res<NetPort>,
    disk: Res<DiskPort>,
    hash: Res<HashPort>,
    http: Res<HttpPort>,
    state: Res<StatePort>,
    mut cadence: ResMut<Cadence>,
    mut violations: ResMut<Violations>,
) {
    let is_idle = net.is_idle() && disk.is_idle() && hash.is_idle() && http.is_idle() && state.is_idle();
    cadence.ticks += 1;
    cadence.idle_ticks += u32::from(is_idle);
    let time = clock.now().since(cadence.since);
    if time < Duration::from_secs(1) {
        return;
    }
    let Cadence {
        ticks,
        idle_ticks: count,
        ..
    } = std::mem::take(&mut *cadence);
    cadence.since = clock.now();
    let most = time.as_micros() as u64 / settings.tick.min_interval_us.max(1) + MAX_EXTRA_TICKS;
    if u64::from(ticks) > most {
        violations.report(&clock, Invariant::Cadence, || {
            format!("{ticks} ticks in {time:?}, at most {most}")
        });
    }
    if count > MAX_IDLE_TICKS {
        violations.report(&clock, Invariant::Cadence, || {
            format!("{count} ticks in a second for nothing")
        });
    }
}
