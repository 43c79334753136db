//! Disconnecting: closes the connections of torrents that no longer run.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::lifecycle::Readiness;
use ecs_torrent_components::messages::LifecycleChanged;
use ecs_torrent_components::peer::CloseReason;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::torrent::{Lifecycle, TorrentPeers};
use ecs_torrent_engine::schedule::Tick;

use crate::DecideSet;

/// Closes the connections of torrents that no longer run.
pub(crate) struct DisconnectingPlugin;

impl Plugin for DisconnectingPlugin {
    fn build(&self, app: &mut App) {
        app.add_systems(Tick, close_failed.in_set(DecideSet::Disconnect));
    }
}

/// Closes the connections of torrents that failed, or lost their volume.
fn close_failed(
    mut changed: MessageReader<LifecycleChanged>,
    mut reaper: ResMut<Reaper>,
    torrents: Query<(&Readiness, &TorrentPeers)>,
) {
    for LifecycleChanged { torrent, to, .. } in changed.read() {
        let Ok((readiness, peers)) = torrents.get(*torrent) else {
            continue;
        };
        let is_closed = match to {
            Lifecycle::Failed { .. } => true,
            Lifecycle::Blocked { .. } => *readiness == Readiness::Unopened,
            _ => false,
        };
        if is_closed {
            peers.iter().for_each(|peer| reaper.close(peer, CloseReason::Stopping));
        }
    }
}
