//! Moves of a torrent's files, and new names for them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answers::{Refusal, kept_files};
use super::requests::{JsonBody, NamedTorrent};
use super::{Shared, adding};
use crate::{MovedFiles, NewNames};

/// The new place of a torrent's files.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Move {
    root: PathBuf,
    /// Whether the files go there, or are there already.
    #[serde(rename = "move", default = "yes")]
    is_to_move: bool,
}

fn yes() -> bool {
    true
}

/// Moves a torrent's files. The answer comes when the move has ended; a client that disconnects earlier does not end
/// it.
pub(super) async fn move_files(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
    JsonBody(Move { root, is_to_move }): JsonBody<Move>,
) -> Result<Json<Value>, Refusal> {
    adding::refuse_if_stopping(&shared)?;
    let root = shared.roots.find(&root);
    let root = root.map_err(|error| Refusal::of("root", StatusCode::FORBIDDEN, error))?;
    let moved = if is_to_move {
        shared.torrents.move_files(hash, root).await?
    } else {
        shared.torrents.relocate(hash, root.clone()).await?;
        MovedFiles {
            root,
            ..MovedFiles::default()
        }
    };
    Ok(answer(&moved))
}

fn answer(moved: &MovedFiles) -> Json<Value> {
    Json(json!({
        "root": moved.root,
        "kept": kept_files(&moved.kept),
        "kept_count": moved.kept_count,
    }))
}

/// New names of a torrent's files.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Rename {
    name: Option<String>,
    /// By the number of the file.
    files: BTreeMap<u32, String>,
}

/// Renames files of a torrent. The answer comes when that is done; a client that does not wait for it changes nothing.
pub(super) async fn rename(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
    JsonBody(Rename { name, files }): JsonBody<Rename>,
) -> Result<Json<Value>, Refusal> {
    adding::refuse_if_stopping(&shared)?;
    let moved = shared.torrents.rename(hash, NewNames { name, files }).await?;
    Ok(answer(&moved))
}
