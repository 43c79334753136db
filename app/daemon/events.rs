//! Engine events, streamed to clients as they occur.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use ecs_torrent_components::changes::Revision;
use futures_util::stream::{self, Stream};
use serde_json::json;
use tokio::sync::watch;

use super::Shared;
use super::answers::Refusal;
use super::event_log::{EventLog, Next, missed, now};
use super::requests::Query;

/// The header in which a client that reconnects names the last event that it has seen.
const LAST_EVENT_ID: &str = "last-event-id";

/// A client's position in the log of events.
struct Place {
    log: EventLog,
    /// The number of the next event.
    next: u64,
    progress: watch::Receiver<(u64, bool)>,
    /// Frames that come before the next event.
    frames: VecDeque<Frame>,
}

/// Streams server-sent events until the client disconnects or the API closes. A client that names the last event that
/// it has seen gets those that followed; another one gets a snapshot first.
pub(super) async fn stream(
    State(shared): State<Shared>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Frame, Infallible>>>, Refusal> {
    let query = Query::parse(query, &["snapshot"])?;
    let wants_snapshot = query.one("snapshot").is_none() || query.flag("snapshot")?;
    let seen = headers.get(LAST_EVENT_ID).map(|seen| seen.to_str().unwrap_or_default());
    let seen = seen
        .filter(|seen| !seen.is_empty())
        .map(str::parse::<Revision>)
        .transpose();
    let bad = |_| Refusal::of("Last-Event-ID", StatusCode::BAD_REQUEST, "not the id of an event");
    let seen = seen.map_err(bad)?;
    let log = shared.events.clone();
    let mut place = Place {
        next: log.next_number(),
        progress: log.watch(),
        frames: VecDeque::new(),
        log,
    };
    match seen.map(|seen| place.log.after(seen)) {
        Some(Some(next)) => place.next = next,
        other => {
            if other.is_some() {
                // The events of another run.
                place.push(missed(None));
            }
            if wants_snapshot {
                // An event that is already part of the snapshot may follow; none is left out.
                let snapshot = snapshot(&shared).await?;
                place.push(("snapshot", snapshot));
            }
        }
    }
    let events = stream::unfold(place, async |mut place| {
        let frame = place.next_frame().await?;
        Some((Ok(frame), place))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// Returns the initial state for a client, sent before the first event: the torrents and their states, and the revision
/// from which `/api/v1/sync` continues.
async fn snapshot(shared: &Shared) -> Result<serde_json::Value, Refusal> {
    shared.mirror.refresh(&shared.torrents).await?;
    let listing = shared.mirror.listing();
    let torrents = listing.rows().map(|row| {
        let stats = &*row.stats;
        json!({"info_hash": stats.info_hash.to_string(), "name": stats.name, "state": stats.state})
    });
    let torrents: Vec<_> = torrents.collect();
    Ok(json!({"revision": listing.mark().to_string(), "torrents": torrents, "at": now()}))
}

impl Place {
    /// Adds a frame that is not in the log, before the next event.
    fn push(&mut self, (kind, data): (&str, serde_json::Value)) {
        let frame = Frame::default().event(kind).data(data.to_string());
        self.frames.push_back(match self.next.checked_sub(1) {
            // A client that reconnects after this frame continues here.
            Some(last) => frame.id(self.log.id(last).to_string()),
            None => frame,
        });
    }

    /// Waits for the next frame. `None` after the last event of the API.
    async fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            match self.log.get(self.next) {
                Next::Event(number, event) => {
                    self.next = number + 1;
                    let frame = Frame::default().event(event.kind).data(event.data.to_string());
                    return Some(frame.id(self.log.id(number).to_string()));
                }
                Next::Lost(first) => {
                    let count = first - self.next;
                    self.next = first;
                    self.push(missed(Some(count)));
                }
                Next::Nothing => {
                    let next = self.next;
                    let is_more = |(number, is_over): &(u64, bool)| *number > next || *is_over;
                    let (number, is_over) = *self.progress.wait_for(is_more).await.ok()?;
                    if is_over && number <= next {
                        return None;
                    }
                }
            }
        }
    }
}
