//! What happens in an engine, told to the outside as it happens.

use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::messages::{
    TorrentAdded, TorrentBlocked, TorrentCompleted, TorrentFailed, TorrentRestarting, TorrentStarted, TorrentStopped,
    TrackerFailed,
};
use ecs_torrent_components::torrent::Torrent;
use ecs_torrent_components::tracker::Tracker;
use ecs_torrent_engine::schedule::{Tick, TickSet};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::tracker::redacted;
use tokio::sync::broadcast;

/// Events that a slow listener may be behind; beyond it, it misses the oldest.
const CAPACITY: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A torrent is listed.
    Added(InfoHash),
    /// Its existing data has been looked at, and it downloads or seeds.
    Started(InfoHash),
    /// All of it is on the disk.
    Completed(InfoHash),
    /// It waits for this, like room on a disk, and will go on by itself.
    Blocked(InfoHash, Arc<str>),
    /// It has met this fault, and is tried again.
    Restarting(InfoHash, Arc<str>),
    /// It could not go on, for this reason.
    Failed(InfoHash, Arc<str>),
    /// It is gone.
    Stopped(InfoHash),
    /// A tracker did not answer, or refused.
    TrackerFailed {
        /// Whose tracker.
        torrent: InfoHash,
        /// Its URL, without anything that could be a passkey.
        tracker: String,
        /// Why.
        reason: Arc<str>,
    },
}

/// Where events come from; each subscription hears all from then on. Does not keep them coming: they end with the
/// engine.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    sender: broadcast::WeakSender<Event>,
}

impl Events {
    pub(crate) fn subscribe(&self) -> Subscription {
        let receiver = match self.sender.upgrade() {
            Some(sender) => sender.subscribe(),
            // The engine is gone, and so is this channel's other end.
            None => broadcast::channel(1).1,
        };
        Subscription(receiver)
    }
}

/// A listener's end.
#[derive(Debug)]
pub struct Subscription(broadcast::Receiver<Event>);

impl Subscription {
    /// The next event; nothing when the engine is gone. Who is too slow misses some.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => tracing::warn!(missed, "too slow for the events"),
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// Tells the world's messages to the outside.
#[derive(Clone)]
pub(crate) struct EventsPlugin(broadcast::Sender<Event>);

impl Default for EventsPlugin {
    fn default() -> Self {
        Self(broadcast::channel(CAPACITY).0)
    }
}

impl EventsPlugin {
    /// What can be listened to.
    pub(crate) fn events(&self) -> Events {
        Events {
            sender: self.0.downgrade(),
        }
    }
}

#[derive(Resource)]
struct Outlet(broadcast::Sender<Event>);

impl Plugin for EventsPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(Outlet(self.0.clone()))
            .add_systems(Tick, tell_events.after(TickSet::Reap));
    }
}

fn tell_events(
    outlet: Res<Outlet>,
    torrents: Query<&Torrent>,
    trackers: Query<&Tracker>,
    mut added: MessageReader<TorrentAdded>,
    mut started: MessageReader<TorrentStarted>,
    mut completed: MessageReader<TorrentCompleted>,
    mut blocked: MessageReader<TorrentBlocked>,
    mut restarting: MessageReader<TorrentRestarting>,
    mut failed: MessageReader<TorrentFailed>,
    mut stopped: MessageReader<TorrentStopped>,
    mut tracker_failed: MessageReader<TrackerFailed>,
) {
    let id = |torrent| torrents.get(torrent).map(Torrent::id).ok();
    let added = added
        .read()
        .filter_map(|message| Some(Event::Added(id(message.torrent)?)));
    let started = started
        .read()
        .filter_map(|message| Some(Event::Started(id(message.torrent)?)));
    let completed = completed
        .read()
        .filter_map(|message| Some(Event::Completed(id(message.torrent)?)));
    let blocked = blocked
        .read()
        .filter_map(|message| Some(Event::Blocked(id(message.torrent)?, message.resource.clone())));
    let restarting = restarting
        .read()
        .filter_map(|message| Some(Event::Restarting(id(message.torrent)?, message.reason.clone())));
    let failed = failed
        .read()
        .filter_map(|message| Some(Event::Failed(id(message.torrent)?, message.reason.clone())));
    let tracker_failed = tracker_failed.read().filter_map(|message| {
        Some(Event::TrackerFailed {
            torrent: id(message.torrent)?,
            tracker: redacted(&trackers.get(message.tracker).ok()?.url),
            reason: message.reason.clone(),
        })
    });
    let stopped = stopped.read().map(|message| Event::Stopped(message.info_hash));
    let all = added
        .chain(started)
        .chain(completed)
        .chain(blocked)
        .chain(restarting)
        .chain(failed)
        .chain(tracker_failed)
        .chain(stopped);
    for event in all {
        // Nobody may be listening.
        let _ = outlet.0.send(event);
    }
}
