//! Changes of a torrent: the limits of its transfer rates, and the order of its pieces.

use axum::extract::State;
use axum::http::StatusCode;
use ecs_torrent_components::wanted::PieceOrderChange;
use serde::{Deserialize, Deserializer};

use super::Shared;
use super::answers::Refusal;
use super::requests::{JsonBody, NamedTorrent, Query};
use crate::{LimitsPatch, TransferLimits};

/// Changes of a torrent.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Changes {
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    sequential: Option<bool>,
    #[serde(default)]
    ends_first: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Limits {
    #[serde(deserialize_with = "present")]
    download_bytes_per_s: Option<Option<u64>>,
    #[serde(deserialize_with = "present")]
    upload_bytes_per_s: Option<Option<u64>>,
}

/// Reads a limit that is there: a number, or `null` for none.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

pub(super) async fn set(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
    JsonBody(changes): JsonBody<Changes>,
) -> Result<StatusCode, Refusal> {
    let limits = changes.limits;
    let patch = LimitsPatch {
        download_bytes_per_s: limits.download_bytes_per_s,
        upload_bytes_per_s: limits.upload_bytes_per_s,
    };
    let order = PieceOrderChange {
        sequential: changes.sequential,
        ends_first: changes.ends_first,
    };
    // A change of nothing reports a torrent that does not exist.
    if patch != LimitsPatch::default() || order == PieceOrderChange::default() {
        // A refusal of the limits comes first, so that nothing is changed then.
        shared.torrents.set_limits(hash, patch).await?;
    }
    if order != PieceOrderChange::default() {
        shared.torrents.set_order(hash, order).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Returns the limits with which a torrent is added.
pub(super) fn given(query: &Query) -> Result<TransferLimits, Refusal> {
    let limit = |name: &'static str| {
        let limit = query.one(name).map(str::parse::<u64>).transpose();
        limit.map_err(|_| Refusal::of(name, StatusCode::BAD_REQUEST, "a limit is a number of bytes per second"))
    };
    let limits = TransferLimits {
        download_bytes_per_s: limit("download_limit")?,
        upload_bytes_per_s: limit("upload_limit")?,
    };
    limits.check().map_err(|error| {
        let name = if error.name == "download_bytes_per_s" {
            "download_limit"
        } else {
            "upload_limit"
        };
        Refusal::of(name, StatusCode::BAD_REQUEST, error)
    })?;
    Ok(limits)
}
