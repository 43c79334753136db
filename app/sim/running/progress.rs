//! The progress of an engine, as the engine reports it.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::torrent::{Have, Lifecycle, Torrent};
use ecs_torrent_engine::schedule::{Tick, TickSet};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;

/// Reports an engine's progress on the scenario's torrent.
#[derive(Clone, Copy)]
pub(super) struct ProgressPlugin(pub(super) InfoHash);

/// Progress of an engine.
#[derive(Resource, Debug, Clone)]
pub(super) struct Progress {
    torrent: InfoHash,
    pub(super) part: f64,
    pub(super) completed: Option<Timestamp>,
    pub(super) state: String,
}

impl Plugin for ProgressPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(Progress {
            torrent: self.0,
            part: 0.0,
            completed: None,
            state: "not there".into(),
        })
        .add_systems(Tick, record_progress.after(TickSet::Flush).before(TickSet::Reap));
    }
}

fn record_progress(
    clock: Res<Clock>,
    mut progress: ResMut<Progress>,
    changed: Query<(&Torrent, &Have, &Lifecycle), Or<(Changed<Have>, Changed<Lifecycle>)>>,
) {
    for (torrent, have, lifecycle) in &changed {
        if torrent.id() != progress.torrent {
            continue;
        }
        progress.part = f64::from(have.count()) / f64::from(have.len());
        progress.state = format!("{lifecycle:?}");
        if have.is_full() {
            progress.completed.get_or_insert(clock.now());
        }
    }
}
