//! Engine events, streamed to clients as they occur.

use std::convert::Infallible;

use axum::extract::{RawQuery, State};
use axum::response::sse::{Event as Told, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use serde_json::{Value, json};

use super::Shared;
use crate::TorrentId;
use crate::events::Event;

/// Streams server-sent events from now until the client disconnects or the API closes.
pub(super) async fn stream(
    State(shared): State<Shared>,
    RawQuery(_): RawQuery,
) -> Sse<impl Stream<Item = Result<Told, Infallible>>> {
    let sources = (shared.torrents.subscribe(), shared.closing.subscribe());
    let events = stream::unfold(sources, async |(mut events, mut closing)| {
        let event = tokio::select! {
            biased;
            event = events.next() => event?,
            _ = closing.wait_for(|closing| *closing) => return None,
        };
        let (kind, data) = describe(&event);
        Some((
            Ok(Told::default().event(kind).data(data.to_string())),
            (events, closing),
        ))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

/// Returns the event's name and its data.
fn describe(event: &Event) -> (&'static str, Value) {
    let of = |torrent: &TorrentId| json!({"info_hash": torrent.to_string()});
    let why = |torrent: &TorrentId, reason: &str| json!({"info_hash": torrent.to_string(), "error": reason});
    match event {
        Event::Added(torrent) => ("added", of(torrent)),
        Event::MetadataReceived(torrent) => ("metadata_received", of(torrent)),
        Event::Started(torrent) => ("started", of(torrent)),
        Event::Completed(torrent) => ("completed", of(torrent)),
        Event::Blocked(torrent, reason) => ("blocked", why(torrent, reason)),
        Event::Restarting(torrent, reason) => ("restarting", why(torrent, reason)),
        Event::Failed(torrent, reason) => ("failed", why(torrent, reason)),
        Event::Paused(torrent) => ("paused", of(torrent)),
        Event::Stopped(torrent) => ("stopped", of(torrent)),
        Event::TrackerFailed {
            torrent,
            tracker,
            reason,
        } => {
            let mut data = why(torrent, reason);
            data["tracker"] = tracker.as_str().into();
            ("tracker_failed", data)
        }
    }
}
