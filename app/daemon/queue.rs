//! Places in the queue.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;

use super::Shared;
use super::answers::Refusal;
use super::requests::{JsonBody, NamedTorrent};
use crate::{QueueChange, QueueMove};

/// A change of a torrent's place.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Change {
    #[serde(rename = "move")]
    movement: Option<Movement>,
    forced: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Movement {
    Top,
    Up,
    Down,
    Bottom,
}

impl From<Movement> for QueueMove {
    fn from(movement: Movement) -> Self {
        match movement {
            Movement::Top => Self::Top,
            Movement::Up => Self::Up,
            Movement::Down => Self::Down,
            Movement::Bottom => Self::Bottom,
        }
    }
}

pub(super) async fn change(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
    JsonBody(change): JsonBody<Change>,
) -> Result<StatusCode, Refusal> {
    let change = QueueChange {
        movement: change.movement.map(Into::into),
        forced: change.forced,
    };
    shared.torrents.queue(hash, change).await?;
    Ok(StatusCode::NO_CONTENT)
}
