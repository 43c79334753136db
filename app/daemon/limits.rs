//! Changes of a torrent: the limits of its transfer rates, its seeding limits, its labels, and the order of
//! its pieces.

use axum::extract::State;
use axum::http::StatusCode;
use ecs_torrent_components::commands::SetLimitsError;
use ecs_torrent_components::seeding::action_name;
use ecs_torrent_components::wanted::PieceOrderChange;
use serde::{Deserialize, Deserializer};

use super::Shared;
use super::answers::Refusal;
use super::labels::{self, LabelsChange};
use super::requests::{JsonBody, NamedTorrent, Query};
use crate::{Error, LabelsPatch, LimitsPatch, OwnLimit, SeedingAction, SeedingLimits, SeedingPatch, TransferLimits};

/// Changes of a torrent.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Changes {
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    seeding: Seeding,
    #[serde(default)]
    sequential: Option<bool>,
    #[serde(default)]
    ends_first: Option<bool>,
    #[serde(default)]
    labels: Option<LabelsChange>,
    #[serde(default, deserialize_with = "present")]
    category: Option<Option<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Limits {
    #[serde(deserialize_with = "present")]
    download_bytes_per_s: Option<Option<u64>>,
    #[serde(deserialize_with = "present")]
    upload_bytes_per_s: Option<Option<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Seeding {
    #[serde(deserialize_with = "present")]
    ratio_percent: Option<OwnLimit>,
    #[serde(deserialize_with = "present")]
    time_s: Option<OwnLimit>,
    #[serde(deserialize_with = "present")]
    idle_s: Option<OwnLimit>,
    #[serde(deserialize_with = "present_action")]
    action: Option<Option<SeedingAction>>,
}

/// Reads a value that is present, even if it is `null`.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Like [`present`], for an action.
fn present_action<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<SeedingAction>>, D::Error> {
    action_name::deserialize(deserializer).map(Some)
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
    let seeding = SeedingPatch {
        ratio_percent: changes.seeding.ratio_percent,
        time_s: changes.seeding.time_s,
        idle_s: changes.seeding.idle_s,
        action: changes.seeding.action,
    };
    // A refusal of limits comes first, so that nothing is changed then.
    seeding.apply(&SeedingLimits::default()).check()?;
    let limits = patch.apply(&TransferLimits::default()).check();
    limits.map_err(SetLimitsError::from).map_err(Error::from)?;
    let labels = labels::patch(changes.labels, changes.category);
    if labels != LabelsPatch::default() {
        shared.torrents.set_labels(hash, labels.clone()).await?;
    }
    let has_others =
        labels != LabelsPatch::default() || order != PieceOrderChange::default() || seeding != SeedingPatch::default();
    // An empty change is applied too, so that a torrent that does not exist is reported.
    if patch != LimitsPatch::default() || !has_others {
        shared.torrents.set_limits(hash, patch).await?;
    }
    if seeding != SeedingPatch::default() {
        shared.torrents.set_seeding(hash, seeding).await?;
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

/// Returns the seeding limits with which a torrent is added.
pub(super) fn seeding_given(query: &Query) -> Result<SeedingLimits, Refusal> {
    let bad = |name: &'static str, why: &str| Refusal::of(name, StatusCode::BAD_REQUEST, why);
    let limit = |name: &'static str| match query.one(name) {
        None => Ok(OwnLimit::Inherit),
        Some("none") => Ok(OwnLimit::Unlimited),
        Some(text) => match text.parse() {
            Ok(value) => Ok(OwnLimit::Value(value)),
            Err(_) => Err(bad(name, "a seeding limit is a number, or none")),
        },
    };
    let action = query.one("seeding_action").map(|name| {
        let why = "it is pause, remove or super_seed";
        SeedingAction::from_name(name).ok_or_else(|| bad("seeding_action", why))
    });
    let limits = SeedingLimits {
        ratio_percent: limit("seeding_ratio_percent")?,
        time_s: limit("seeding_time_s")?,
        idle_s: limit("seeding_idle_s")?,
        action: action.transpose()?,
    };
    limits.check().map_err(|error| {
        let (section, name) = error.key();
        Refusal::of(format!("{section}_{name}"), StatusCode::BAD_REQUEST, error)
    })?;
    Ok(limits)
}
