//! Engine events, published to subscribers as they occur.

use std::net::IpAddr;
use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::dht::{DhtAddressKnown, DhtAnnounced, DhtReady};
use ecs_torrent_components::links::LinkUpdated;
use ecs_torrent_components::messages::{
    LifecycleChanged, MetadataSaved, SeedingLimitReached, TorrentAdded, TorrentBlocked, TorrentCompleted,
    TorrentFailed, TorrentPaused, TorrentRestarting, TorrentStarted, TorrentStopped, TrackerFailed,
};
use ecs_torrent_components::seeding::SeedingLimit;
use ecs_torrent_components::settings::SeedingAction;
use ecs_torrent_components::torrent::{Lifecycle, Torrent};
use ecs_torrent_components::tracker::Tracker;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::magnet::MutableLink;
use ecs_torrent_protocol::tracker::redacted;
use ecs_torrent_systems::ReapSet;
use ecs_torrent_systems::conditions::{has_messages, has_optional_messages};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use crate::id::TorrentId;

/// Maximum number of events that a slow subscriber may be behind. Beyond that, it loses the oldest ones.
pub(crate) const CAPACITY: usize = 1024;

/// An event in the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The torrent is listed.
    Added(TorrentId),
    /// The metadata of a torrent that was added by a magnet link is known, and saved: after a restart, the torrent has
    /// its name, its size and its files. The torrent may have started before.
    MetadataReceived(TorrentId),
    /// The torrent's existing data has been checked; it now downloads or seeds.
    Started(TorrentId),
    /// All wanted data of the torrent was on the disk before it started: when it was added, or in an earlier run.
    /// Follows [`Event::Started`].
    AlreadyComplete(TorrentId),
    /// The last wanted piece of the torrent has been downloaded and is on the disk.
    Completed(TorrentId),
    /// The torrent is blocked on this resource, such as disk space. It resumes by itself.
    Blocked(TorrentId, Arc<str>),
    /// The torrent failed for this reason and will be restarted.
    Restarting(TorrentId, Arc<str>),
    /// The torrent failed for this reason and is not restarted automatically.
    Failed(TorrentId, Arc<str>),
    /// The torrent is paused: it has left its peers and trackers, and its files are closed.
    Paused(TorrentId),
    /// The torrent has seeded enough.
    SeedingLimitReached {
        /// The torrent.
        torrent: TorrentId,
        /// The limit that it has reached.
        limit: SeedingLimit,
        /// The effect on the torrent.
        action: SeedingAction,
    },
    /// The torrent waits in the queue: other torrents run before it.
    Queued(TorrentId),
    /// The torrent has stopped and is no longer listed. Its state is saved.
    Stopped(TorrentId),
    /// The torrent was removed: it is no longer listed, and its state is deleted.
    Removed(TorrentId),
    /// A tracker did not answer, or refused the request.
    TrackerFailed {
        /// The torrent that the tracker belongs to.
        torrent: TorrentId,
        /// The tracker's URL, without anything that could be a passkey.
        tracker: String,
        /// The reason.
        reason: Arc<str>,
    },
    /// The DHT node knows enough other nodes to search in the network of this address family: for the first time, or
    /// again after it had lost them.
    DhtReady(Family),
    /// Other nodes of the DHT agree on our external address (BEP 42), for the first time or on another one than before.
    DhtAddress(IpAddr),
    /// A search of the DHT for peers of a torrent has ended, and has announced us there: the first search, or one with
    /// another outcome than the last reported one. The outcome is whether there are peers, and whether nodes store our
    /// address. Beyond five a second, after a burst of 512, an outcome is reported after a later search.
    DhtAnnounced {
        /// The torrent.
        torrent: TorrentId,
        /// Number of peers that the nodes named.
        peers: usize,
        /// Number of nodes that store our address.
        nodes: usize,
    },
    /// A followed link names another torrent (BEP 46), which was added.
    LinkUpdated {
        /// The link.
        link: MutableLink,
        /// The torrent that the link names now.
        torrent: TorrentId,
        /// The torrent that it named before; `None` for a new link.
        previous: Option<TorrentId>,
        /// The sequence number of the link's item.
        seq: i64,
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
                Err(RecvError::Lagged(missed)) => warn_of_loss(missed),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Returns the next event, or the number of events that this subscriber was too slow for. `None` once the engine
    /// has stopped.
    #[cfg(feature = "daemon")]
    pub(crate) async fn receive(&mut self) -> Option<Received> {
        match self.0.recv().await {
            Ok(event) => Some(Received::Event(event)),
            Err(RecvError::Lagged(missed)) => Some(Received::Missed(missed)),
            Err(RecvError::Closed) => None,
        }
    }

    /// Blocks the thread until the next event, or returns `None` once the engine has stopped. For programs without an
    /// async runtime.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::events::Event;
    /// # setup::run_blocking(|torrents, folder| {
    /// let mut events = torrents.subscribe();
    /// let id = torrents.blocking().download(folder.join("album.torrent"))?;
    /// assert_eq!(events.next_blocking(), Some(Event::Added(id)));
    /// # Ok(())
    /// # });
    /// ```
    pub fn next_blocking(&mut self) -> Option<Event> {
        pollster::block_on(self.next())
    }

    /// Returns the next event without waiting. For programs with a loop of their own, such as a game's frames.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::events::{Event, TryNextError};
    /// # setup::run_blocking(|torrents, folder| {
    /// let mut events = torrents.subscribe();
    /// assert_eq!(events.try_next(), Err(TryNextError::Empty));
    /// let id = torrents.blocking().download(folder.join("album.torrent"))?;
    /// while let Ok(event) = events.try_next() {
    ///     println!("{event:?}");
    /// }
    /// # let _ = id;
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`TryNextError::Empty`] if no event is waiting, [`TryNextError::Ended`] once the engine has stopped.
    pub fn try_next(&mut self) -> Result<Event, TryNextError> {
        loop {
            match self.0.try_recv() {
                Ok(event) => return Ok(event),
                Err(TryRecvError::Lagged(missed)) => warn_of_loss(missed),
                Err(TryRecvError::Empty) => return Err(TryNextError::Empty),
                Err(TryRecvError::Closed) => return Err(TryNextError::Ended),
            }
        }
    }
}

/// An item of a subscription.
#[cfg(feature = "daemon")]
#[derive(Debug)]
pub(crate) enum Received {
    /// An event.
    Event(Event),
    /// This many events were lost.
    Missed(u64),
}

/// Why [`Subscription::try_next`] returns no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TryNextError {
    /// No event is waiting.
    #[error("no event is waiting")]
    Empty,
    /// The engine has stopped, and all its events have been returned.
    #[error("the engine has stopped")]
    Ended,
}

fn warn_of_loss(missed: u64) {
    tracing::warn!(missed, "a subscriber was too slow and lost events");
}

/// Publishes messages of the world as events. Every [`Engine`](crate::Engine) has it; an engine of the simulator gets
/// it as another plugin.
#[derive(Debug, Clone)]
pub struct EventsPlugin(broadcast::Sender<Event>);

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
struct EventSender(broadcast::Sender<Event>);

impl EventSender {
    fn publish(&self, event: Event) {
        // There may be no subscriber.
        let _ = self.0.send(event);
    }
}

impl Plugin for EventsPlugin {
    fn build(&self, app: &mut App) {
        let has_news = has_messages::<TorrentAdded>
            .or_else(has_messages::<MetadataSaved>)
            .or_else(has_messages::<TorrentStarted>)
            .or_else(has_messages::<TorrentCompleted>)
            .or_else(has_messages::<TorrentBlocked>)
            .or_else(has_messages::<TorrentRestarting>)
            .or_else(has_messages::<TorrentFailed>)
            .or_else(has_messages::<TorrentPaused>)
            .or_else(has_optional_messages::<SeedingLimitReached>)
            .or_else(has_messages::<TorrentStopped>)
            .or_else(has_messages::<LifecycleChanged>)
            .or_else(has_messages::<TrackerFailed>);
        // The features that register and write these messages are optional.
        let has_dht_news = has_optional_messages::<DhtReady>
            .or_else(has_optional_messages::<DhtAddressKnown>)
            .or_else(has_optional_messages::<DhtAnnounced>);
        let dht = publish_dht_events.run_if(has_dht_news);
        let links = publish_link_events.run_if(has_optional_messages::<LinkUpdated>);
        let systems = (publish_events.run_if(has_news), dht, links).chain();
        app.insert_resource(EventSender(self.0.clone()))
            .add_systems(Tick, systems.in_set(ReapSet::Report));
    }
}

/// Publishes events of the DHT.
fn publish_dht_events(
    events: Res<EventSender>,
    torrents: Query<&Torrent>,
    mut ready: MessageReader<DhtReady>,
    mut address: MessageReader<DhtAddressKnown>,
    mut announced: MessageReader<DhtAnnounced>,
) {
    let ready = ready.read().map(|message| Event::DhtReady(message.family));
    let address = address.read().map(|message| Event::DhtAddress(message.address));
    let announced = announced.read().filter_map(|message| {
        Some(Event::DhtAnnounced {
            torrent: TorrentId(torrents.get(message.torrent).ok()?.id()),
            peers: message.peers,
            nodes: message.nodes,
        })
    });
    ready
        .chain(address)
        .chain(announced)
        .for_each(|event| events.publish(event));
}

/// Publishes new torrents of links that are followed.
fn publish_link_events(events: Res<EventSender>, mut updated: MessageReader<LinkUpdated>) {
    for message in updated.read() {
        events.publish(Event::LinkUpdated {
            link: message.link.clone(),
            torrent: TorrentId(message.torrent),
            previous: message.previous.map(TorrentId),
            seq: message.seq,
        });
    }
}

fn publish_events(
    events: Res<EventSender>,
    torrents: Query<&Torrent>,
    states: Query<&Lifecycle>,
    trackers: Query<&Tracker>,
    mut added: MessageReader<TorrentAdded>,
    mut known: MessageReader<MetadataSaved>,
    mut started: MessageReader<TorrentStarted>,
    mut completed: MessageReader<TorrentCompleted>,
    mut blocked: MessageReader<TorrentBlocked>,
    mut restarting: MessageReader<TorrentRestarting>,
    mut failed: MessageReader<TorrentFailed>,
    mut paused: MessageReader<TorrentPaused>,
    mut limited: Option<MessageReader<SeedingLimitReached>>,
    (mut stopped, mut changed): (MessageReader<TorrentStopped>, MessageReader<LifecycleChanged>),
    mut tracker_failed: MessageReader<TrackerFailed>,
) {
    let id = |torrent| Some(TorrentId(torrents.get(torrent).ok()?.id()));
    let added = added
        .read()
        .filter_map(|message| Some(Event::Added(id(message.torrent)?)));
    let known = known
        .read()
        .filter_map(|message| Some(Event::MetadataReceived(id(message.torrent)?)));
    let started = started.read().flat_map(|message| {
        let is_finished = states.get(message.torrent).is_ok_and(Lifecycle::is_finished);
        let id = id(message.torrent);
        let complete = id.filter(|_| is_finished).map(Event::AlreadyComplete);
        id.map(Event::Started).into_iter().chain(complete)
    });
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
    let paused = paused
        .read()
        .filter_map(|message| Some(Event::Paused(id(message.torrent)?)));
    // A torrent whose turn comes at once does not wait.
    let is_queued = |torrent| states.get(torrent).is_ok_and(|state| *state == Lifecycle::Queued);
    let queued = changed.read().filter_map(|message| {
        let is_it = message.to == Lifecycle::Queued && is_queued(message.torrent);
        id(message.torrent).filter(|_| is_it).map(Event::Queued)
    });
    // Engines without seeding limits have no such message.
    let limited = limited.iter_mut().flat_map(MessageReader::read).filter_map(|message| {
        Some(Event::SeedingLimitReached {
            torrent: id(message.torrent)?,
            limit: message.limit,
            action: message.action,
        })
    });
    let tracker_failed = tracker_failed.read().filter_map(|message| {
        Some(Event::TrackerFailed {
            torrent: id(message.torrent)?,
            tracker: redacted(&trackers.get(message.tracker).ok()?.url),
            reason: message.reason.clone(),
        })
    });
    let stopped = stopped.read().map(|message| match message.is_removed {
        true => Event::Removed(message.info_hash.into()),
        false => Event::Stopped(message.info_hash.into()),
    });
    let all = added
        .chain(known)
        .chain(started)
        .chain(completed)
        .chain(blocked)
        .chain(restarting)
        .chain(failed)
        .chain(tracker_failed)
        .chain(limited)
        .chain(queued)
        .chain(paused)
        .chain(stopped);
    for event in all {
        events.publish(event);
    }
}
