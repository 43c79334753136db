//! Routes about the files of a torrent.

use std::ops::RangeInclusive;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use ecs_torrent_components::selection::FileSelection;
use ecs_torrent_components::wanted::FilePriority;
use serde::Deserialize;

use super::Shared;
use super::answers::Refusal;
use super::requests::{JsonBody, NamedTorrent, OptionalJsonBody};
use crate::FileStats;

/// The files of each priority, as lists of numbers and ranges, or `all`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Priorities {
    skip: Option<String>,
    low: Option<String>,
    normal: Option<String>,
    high: Option<String>,
}

pub(super) async fn list(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
) -> Result<Json<Vec<FileStats>>, Refusal> {
    Ok(Json(shared.torrents.list_files(hash).await?))
}

/// Sets priorities. A file that is named under several of them gets the highest.
pub(super) async fn set(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
    JsonBody(wanted): JsonBody<Priorities>,
) -> Result<StatusCode, Refusal> {
    let mut priorities = Vec::new();
    for (list, priority) in [
        (wanted.skip, FilePriority::Skip),
        (wanted.low, FilePriority::Low),
        (wanted.normal, FilePriority::Normal),
        (wanted.high, FilePriority::High),
    ] {
        let Some(list) = list else { continue };
        if list == "all" {
            let files = shared.torrents.list_files(hash).await?;
            let last = files.last().map_or(0, |file| file.index);
            priorities.push((0..=last, priority));
            continue;
        }
        let ranges =
            parse_ranges(&list).map_err(|why| Refusal::in_body(priority.to_string(), format!("{priority}: {why}")))?;
        priorities.extend(ranges.into_iter().map(|range| (range, priority)));
    }
    shared.torrents.set_files(hash, priorities).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The files whose data is checked, or none for all data.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Recheck {
    files: Option<String>,
    select: Vec<String>,
    unverified: bool,
}

/// Checks data of a torrent again. The answer comes when the check is durable.
pub(super) async fn recheck(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
    OptionalJsonBody(wanted): OptionalJsonBody<Recheck>,
) -> Result<StatusCode, Refusal> {
    let wanted = wanted.unwrap_or_default();
    let globs = wanted.select.iter().map(String::as_str);
    match (wanted.files.is_some() || !wanted.select.is_empty(), wanted.unverified) {
        (false, false) => shared.torrents.recheck(hash).await?,
        (false, true) => shared.torrents.recheck_unverified(hash).await?,
        (true, false) => {
            let selection = selection(wanted.files.as_deref(), globs)?;
            shared.torrents.recheck_files(hash, selection).await?;
        }
        (true, true) => {
            let why = "unverified: not together with files or select";
            return Err(Refusal::of("unverified", StatusCode::BAD_REQUEST, why));
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Returns the files that a list of numbers and patterns select. A refusal names the field.
pub(super) fn selection<'g>(
    list: Option<&str>,
    globs: impl Iterator<Item = &'g str>,
) -> Result<FileSelection, Refusal> {
    let bad = |field, error: &dyn ToString| Refusal::of(field, StatusCode::BAD_REQUEST, error.to_string());
    let ranges = list.map(parse_ranges).transpose();
    let ranges = ranges.map_err(|error| bad("files", &error))?.unwrap_or_default();
    FileSelection::new(ranges, globs).map_err(|error| bad("select", &error))
}

/// Parses numbers and ranges of files: `0,3-5`.
fn parse_ranges(list: &str) -> Result<Vec<RangeInclusive<u32>>, String> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse::<u32>(), last.parse::<u32>()) {
            (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
            _ => Err(format!("{text:?} is not a file's number, nor a range such as 3-5")),
        }
    };
    list.split(',').map(|text| range(text.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_files_are_read() {
        assert_eq!(parse_ranges("0, 3-5"), Ok(vec![0..=0, 3..=5]));
        for list in ["", "1,", "5-3", "-1", "x", "1--2", "4294967296"] {
            assert!(parse_ranges(list).is_err(), "{list}");
        }
    }
}
