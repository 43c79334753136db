//! The latest engine events, numbered and dated, so that clients that reconnect miss none.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ecs_torrent_components::changes::Revision;
use ecs_torrent_protocol::compact::Family;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::TorrentId;
use crate::events::{CAPACITY, Event, Received, Subscription};

/// Maximum number of events that are kept for clients that reconnect. A torrent that downloads has a few events in its
/// life; an event takes some 200 bytes.
const MAX_EVENTS: usize = 4 * CAPACITY;

/// The latest events. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct EventLog {
    ring: Arc<Mutex<Ring>>,
    /// The number of the next event, and whether it will never come.
    progress: watch::Sender<(u64, bool)>,
    /// Number of this run of the program: the date of its start in nanoseconds.
    run: u64,
}

#[derive(Debug, Default)]
struct Ring {
    /// The number of the first kept event.
    first: u64,
    events: VecDeque<Arc<Logged>>,
}

/// A logged event.
#[derive(Debug, PartialEq)]
pub(super) struct Logged {
    pub(super) kind: &'static str,
    pub(super) data: Value,
}

/// The events after one that a client has seen.
pub(super) enum Next {
    /// The next event, and its number.
    Event(u64, Arc<Logged>),
    /// Events from this number on are kept; those before are lost.
    Lost(u64),
    /// No event has followed yet.
    Nothing,
}

impl EventLog {
    pub(super) fn new() -> Self {
        let date = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            ring: Arc::default(),
            progress: watch::Sender::new((0, false)),
            run: u64::try_from(date.as_nanos()).unwrap_or_default(),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs the events of a subscription until the engine ends, or until `closing` is true and no event waits.
    pub(super) async fn record(self, mut events: Subscription, mut closing: watch::Receiver<bool>) {
        loop {
            let received = tokio::select! {
                biased;
                received = events.receive() => received,
                _ = closing.wait_for(|closing| *closing) => None,
            };
            match received {
                Some(Received::Event(event)) => self.push(describe(&event)),
                Some(Received::Missed(count)) => self.push(missed(Some(count))),
                None => break,
            }
        }
        self.progress.send_modify(|(_, is_over)| *is_over = true);
    }

    fn push(&self, (kind, mut data): (&'static str, Value)) {
        data["at"] = now().into();
        let next = {
            let mut ring = self.ring();
            ring.events.push_back(Arc::new(Logged { kind, data }));
            if ring.events.len() > MAX_EVENTS {
                ring.events.pop_front();
                ring.first += 1;
            }
            ring.first + ring.events.len() as u64
        };
        self.progress.send_modify(|(number, _)| *number = next);
    }

    /// Returns the event with a number, or the reason why there is none.
    pub(super) fn get(&self, number: u64) -> Next {
        let ring = self.ring();
        match number.checked_sub(ring.first) {
            None => Next::Lost(ring.first),
            Some(place) => match ring.events.get(place as usize) {
                Some(event) => Next::Event(number, event.clone()),
                None => Next::Nothing,
            },
        }
    }

    /// Returns the number of the next event.
    pub(super) fn next_number(&self) -> u64 {
        self.progress.borrow().0
    }

    /// Returns the number of the event after the one that a client has seen last; `None` if that is not an event of
    /// this run.
    pub(super) fn after(&self, seen: Revision) -> Option<u64> {
        let is_ours = seen.run == self.run && seen.number < self.next_number();
        is_ours.then(|| seen.number + 1)
    }

    /// Returns the id of the event with a number.
    pub(super) fn id(&self, number: u64) -> Revision {
        Revision { run: self.run, number }
    }

    /// Watches the number of the next event, and whether it will never come.
    pub(super) fn watch(&self) -> watch::Receiver<(u64, bool)> {
        self.progress.subscribe()
    }
}

/// Returns the event that reports missing events, with their number if it is known.
pub(super) fn missed(count: Option<u64>) -> (&'static str, Value) {
    ("missed", json!({"count": count, "at": now()}))
}

/// Returns the date in seconds since 1970, with milliseconds.
pub(super) fn now() -> f64 {
    let date = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    date.as_millis() as f64 / 1000.0
}

/// Returns the event's name and its data.
fn describe(event: &Event) -> (&'static str, Value) {
    let of = |torrent: &TorrentId| json!({"info_hash": torrent.to_string()});
    let why = |torrent: &TorrentId, reason: &str| json!({"info_hash": torrent.to_string(), "error": reason});
    match event {
        Event::Added(torrent) => ("added", of(torrent)),
        Event::MetadataReceived(torrent) => ("metadata_received", of(torrent)),
        Event::Started(torrent) => ("started", of(torrent)),
        Event::AlreadyComplete(torrent) => ("already_complete", of(torrent)),
        Event::Completed(torrent) => ("completed", of(torrent)),
        Event::Blocked(torrent, reason) => ("blocked", why(torrent, reason)),
        Event::Restarting(torrent, reason) => ("restarting", why(torrent, reason)),
        Event::Failed(torrent, reason) => ("failed", why(torrent, reason)),
        Event::Paused(torrent) => ("paused", of(torrent)),
        Event::SeedingLimitReached { torrent, limit, action } => {
            let mut data = of(torrent);
            (data["limit"], data["action"]) = (limit.name().into(), action.name().into());
            ("seeding_limit_reached", data)
        }
        Event::Queued(torrent) => ("queued", of(torrent)),
        Event::Stopped(torrent) => ("stopped", of(torrent)),
        Event::Removed(torrent) => ("removed", of(torrent)),
        Event::TrackerFailed {
            torrent,
            tracker,
            reason,
        } => {
            let mut data = why(torrent, reason);
            data["tracker"] = tracker.as_str().into();
            ("tracker_failed", data)
        }
        Event::DhtReady(Family::V4) => ("dht_ready", json!({"network": "ipv4"})),
        Event::DhtReady(Family::V6) => ("dht_ready", json!({"network": "ipv6"})),
        Event::DhtAddress(address) => ("dht_address", json!({"address": address})),
        Event::DhtAnnounced { torrent, peers, nodes } => {
            let data = json!({"info_hash": torrent.to_string(), "peers": peers, "nodes": nodes});
            ("dht_announced", data)
        }
        Event::LinkUpdated {
            link,
            torrent,
            previous,
            seq,
        } => {
            let previous = previous.map(|previous| previous.to_string());
            let (hash, link) = (torrent.to_string(), link.to_string());
            let data = json!({"info_hash": hash, "link": link, "previous": previous, "seq": seq});
            ("link_updated", data)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_clients_get_what_is_kept() {
        let log = EventLog::new();
        assert!(matches!(log.get(0), Next::Nothing));
        for _ in 0..MAX_EVENTS + 2 {
            log.push(missed(None));
        }
        assert_eq!(log.ring().events.len(), MAX_EVENTS, "the memory is bounded");
        assert!(matches!(log.get(1), Next::Lost(2)));
        assert!(matches!(log.get(2), Next::Event(2, _)));
        let next = log.next_number();
        assert!(matches!(log.get(next), Next::Nothing));

        let last = log.id(next - 1);
        assert_eq!(last.to_string().parse(), Ok(last));
        assert_eq!((log.after(last), log.after(log.id(next))), (Some(next), None));
        let other_run = Revision {
            run: log.run + 1,
            ..last
        };
        assert_eq!(log.after(other_run), None);
    }
}
