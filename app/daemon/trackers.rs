//! Routes about the trackers of a torrent.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Shared;
use super::answers::Refusal;
use super::requests::{JsonBody, NamedTorrent};
use crate::TrackerStats;

/// An edit of a torrent's trackers.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Edit {
    /// URLs to remove, in full or as they are listed.
    remove: Option<Vec<String>>,
    /// URLs to add, each in a tier of its own.
    add: Option<Vec<String>>,
}

/// The answer to a request for an announce.
#[derive(Debug, Serialize)]
pub(super) struct Announced {
    /// Seconds until the first announce.
    in_seconds: u64,
}

pub(super) async fn list(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
) -> Result<Json<Vec<TrackerStats>>, Refusal> {
    Ok(Json(shared.torrents.stats(hash).await?.trackers))
}

pub(super) async fn edit(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
    JsonBody(Edit { remove, add }): JsonBody<Edit>,
) -> Result<StatusCode, Refusal> {
    let [remove, add] = [&remove, &add].map(|urls| urls.iter().flatten().map(String::as_str));
    shared.torrents.edit_trackers(hash, remove, add).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn announce(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
) -> Result<Json<Announced>, Refusal> {
    let wait = shared.torrents.announce(hash).await?;
    // Rounded up: not before.
    let in_seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    Ok(Json(Announced { in_seconds }))
}
