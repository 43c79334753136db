//! Moves of a torrent's files, and new names for them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answers::{Refusal, kept_files};
use super::requests::{JsonBody, NamedTorrent, NoParameters};
use super::{Shared, adding};
use crate::{InfoHash, MovedFiles, NewNames, TorrentId};

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
    let root = find_root(&shared, &root)?;
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

/// The new place of the files of several torrents.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MoveAll {
    root: PathBuf,
    hashes: Vec<String>,
}

/// Moves the files of several torrents. The answer comes when all moves have ended, with the result of each.
pub(super) async fn move_all(
    State(shared): State<Shared>,
    _: NoParameters,
    JsonBody(MoveAll { root, hashes }): JsonBody<MoveAll>,
) -> Result<Json<Value>, Refusal> {
    adding::refuse_if_stopping(&shared)?;
    let bad = |why: String| Refusal::of("hashes", StatusCode::BAD_REQUEST, why);
    let parse = |hash: &String| {
        hash.parse::<InfoHash>()
            .map_err(|error| bad(format!("{hash}: {error}")))
    };
    let hashes = hashes.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    if hashes.is_empty() {
        return Err(bad("no torrent is named".to_owned()));
    }
    if hashes.iter().collect::<BTreeSet<_>>().len() < hashes.len() {
        return Err(bad("a torrent is named twice".to_owned()));
    }
    let root = find_root(&shared, &root)?;
    let ids = hashes.into_iter().map(TorrentId::from);
    let moved = shared.torrents.move_all_files(ids, root).await;
    let results = moved.into_iter().map(|(id, result)| {
        let mut result = match result {
            Ok(moved) => answer(&moved).0,
            Err(error) => json!(Refusal::from(error)),
        };
        result["info_hash"] = id.to_string().into();
        result
    });
    Ok(Json(json!({"results": results.collect::<Vec<Value>>()})))
}

/// Returns the folder that a client means, if the daemon may use it.
fn find_root(shared: &Shared, root: &Path) -> Result<PathBuf, Refusal> {
    let root = shared.roots.find(root);
    root.map_err(|error| Refusal::of("root", StatusCode::FORBIDDEN, error))
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
