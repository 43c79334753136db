//! An engine that has nothing to do rests.

use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_engine::ports::{DiskPort, HashPort, HttpPort, NetPort, StatePort};
use ecs_torrent_protocol::time::Timestamp;

use super::{Invariant, Violations};

/// Most ticks in a second that neither bring nor send anything.
const MAX_IDLE_TICKS: u32 = 200;

/// Ticks of the second that is running.
#[derive(Resource, Default)]
pub(super) struct Cadence {
    since: Timestamp,
    idle_ticks: u32,
}

pub(super) fn check(
    clock: Res<Clock>,
    net: Res<NetPort>,
    disk: Res<DiskPort>,
    hash: Res<HashPort>,
    http: Res<HttpPort>,
    state: Res<StatePort>,
    mut cadence: ResMut<Cadence>,
    mut violations: ResMut<Violations>,
) {
    let is_idle = net.is_idle() && disk.is_idle() && hash.is_idle() && http.is_idle() && state.is_idle();
    cadence.idle_ticks += u32::from(is_idle);
    if clock.now().since(cadence.since) < Duration::from_secs(1) {
        return;
    }
    let count = std::mem::take(&mut cadence.idle_ticks);
    cadence.since = clock.now();
    if count > MAX_IDLE_TICKS {
        violations.note(&clock, Invariant::Cadence, || {
            format!("{count} ticks in a second for nothing")
        });
    }
}
