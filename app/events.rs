//! Engine events, published to subscribers as they occur.

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

/// Most events that a slow subscriber may be behind. Beyond that, it loses the oldest ones.
const CAPACITY: usize = 1024;

/// Something that happened in the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The torrent is listed.
    Added(InfoHash),
    /// The torrent's existing data has been checked; it now downloads or seeds.
    Started(InfoHash),
    /// All data of the torrent is on the disk.
    Completed(InfoHash),
    /// The torrent is blocked on this resource, such as disk space. It resumes by itself.
    Blocked(InfoHash, Arc<str>),
    /// The torrent failed for this reason and will be restarted.
    Restarting(InfoHash, Arc<str>),
    /// The torrent failed for this reason and is not restarted automatically.
    Failed(InfoHash, Arc<str>),
    /// The torrent has stopped and is no longer listed.
    Stopped(InfoHash),
    /// A tracker did not answer, or refused the request.
    TrackerFailed {
        /// The torrent that the tracker belongs to.
        torrent: InfoHash,
        /// The tracker's URL, without anything that could be a passkey.
        tracker: String,
        /// The reason.
        reason: Arc<str>,
    },
}

/// Source of event subscriptions. Each subscription receives all events that occur after it begins. This handle is
/// weak: events end with the engine.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    sender: broadcast::WeakSender<Event>,
}

impl Events {
    pub(crate) fn subscribe(&self) -> Subscription {
        let receiver = match self.sender.upgrade() {
            Some(sender) => sender.subscribe(),
            // The engine has stopped. The sender of this new channel is dropped too, so the subscription ends at once.
            None => broadcast::channel(1).1,
        };
        Subscription(receiver)
    }
}

/// A subscriber's end of the event channel.
#[derive(Debug)]
pub struct Subscription(broadcast::Receiver<Event>);

impl Subscription {
    /// Returns the next event, or `None` once the engine has stopped. A slow subscriber loses events.
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

/// Publishes messages of the world as events.
#[derive(Clone)]
pub(crate) struct EventsPlugin(broadcast::Sender<Event>);

impl Default for EventsPlugin {
    fn default() -> Self {
        Self(broadcast::channel(CAPACITY).0)
    }
}

impl EventsPlugin {
    /// Returns the source of subscriptions.
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
        // There may be no subscriber.
        let _ = outlet.0.send(event);
    }
}
