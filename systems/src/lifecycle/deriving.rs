//! The state of each torrent, derived from its intent and facts. Nothing else assigns [`Lifecycle`].

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::intent_and_facts::IntentAndFacts;
use ecs_torrent_components::lifecycle::ChangedFacts;
use ecs_torrent_components::messages::{
    LifecycleChanged, TorrentBlocked, TorrentCompleted, TorrentFailed, TorrentPaused, TorrentRestarting, TorrentStarted,
};
use ecs_torrent_components::torrent::{Activity, Lifecycle};

/// Messages about changed states.
#[derive(SystemParam)]
pub(super) struct Publisher<'w> {
    changed: MessageWriter<'w, LifecycleChanged>,
    started: MessageWriter<'w, TorrentStarted>,
    completed: MessageWriter<'w, TorrentCompleted>,
    blocked: MessageWriter<'w, TorrentBlocked>,
    restarting: MessageWriter<'w, TorrentRestarting>,
    failed: MessageWriter<'w, TorrentFailed>,
    paused: MessageWriter<'w, TorrentPaused>,
}

/// Derives the states of the torrents whose intent or facts have changed.
pub(super) fn derive_lifecycle(
    mut changed: ResMut<ChangedFacts>,
    clock: Res<Clock>,
    mut publisher: Publisher,
    mut torrents: Query<(IntentAndFacts, &mut Lifecycle, &mut Activity)>,
) {
    if changed.is_empty() {
        return;
    }
    for torrent in changed.drain() {
        let Ok((facts, mut lifecycle, mut activity)) = torrents.get_mut(torrent) else {
            continue;
        };
        let to = facts.derive();
        if *lifecycle == to {
            continue;
        }
        let from = std::mem::replace(&mut *lifecycle, to.clone());
        if to.is_running() {
            activity.start(clock.now());
        } else {
            activity.stop(clock.now());
        }
        publisher.publish(torrent, from, to);
    }
}

impl Publisher<'_> {
    pub(super) fn publish(&mut self, torrent: Entity, from: Lifecycle, to: Lifecycle) {
        let was_open = from.may_serve();
        match &to {
            to if to.is_running() && !was_open => drop(self.started.write(TorrentStarted { torrent })),
            to if to.is_finished() && !from.is_finished() => {
                self.completed.write(TorrentCompleted { torrent });
            }
            Lifecycle::Blocked { resource } if !matches!(from, Lifecycle::Blocked { .. }) => {
                let resource = resource.clone();
                self.blocked.write(TorrentBlocked { torrent, resource });
            }
            Lifecycle::Paused => drop(self.paused.write(TorrentPaused { torrent })),
            Lifecycle::Failed { reason, retry_at } => {
                let reason = reason.clone();
                match retry_at {
                    Some(_) => drop(self.restarting.write(TorrentRestarting { torrent, reason })),
                    None => drop(self.failed.write(TorrentFailed { torrent, reason })),
                }
            }
            _ => {}
        }
        self.changed.write(LifecycleChanged { torrent, from, to });
    }
}
