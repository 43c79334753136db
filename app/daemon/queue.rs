//! Places in the queue.

use std::num::NonZeroU32;

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;

use super::Shared;
use super::answers::Refusal;
use super::requests::{JsonBody, NamedTorrent, Query};
use crate::{QueueChange, QueueMove};

/// A change of a torrent's place.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Change {
    #[serde(rename = "move")]
    movement: Option<Movement>,
    place: Option<NonZeroU32>,
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

/// Returns the place with which a torrent is added.
pub(super) fn given(query: &Query) -> Result<Option<QueueMove>, Refusal> {
    let Some(text) = query.one("queue") else {
        return Ok(None);
    };
    match text {
        "top" => Ok(Some(QueueMove::Top)),
        "bottom" => Ok(Some(QueueMove::Bottom)),
        _ => text.parse().map(|number| Some(QueueMove::Place(number))).map_err(|_| {
            let why = "neither `top`, `bottom`, nor a place from 1 on";
            Refusal::of("queue", StatusCode::BAD_REQUEST, why)
        }),
    }
}

pub(super) async fn change(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
    JsonBody(change): JsonBody<Change>,
) -> Result<StatusCode, Refusal> {
    if change.movement.is_some() && change.place.is_some() {
        let why = "give either `move` or `place`";
        return Err(Refusal::of("place", StatusCode::BAD_REQUEST, why));
    }
    let movement = change.movement.map(Into::into);
    let change = QueueChange {
        movement: movement.or(change.place.map(QueueMove::Place)),
        forced: change.forced,
    };
    shared.torrents.queue(hash, change).await?;
    Ok(StatusCode::NO_CONTENT)
}
