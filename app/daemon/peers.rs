//! Routes about the peers of a torrent.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use ecs_torrent_components::networks::Network;
use ecs_torrent_components::settings::BlockedEdit;
use serde::Deserialize;

use super::Shared;
use super::answers::Refusal;
use super::requests::{JsonBody, NamedTorrent, NoParameters};
use crate::PeerStats;

/// Maximum number of addresses in one request.
const MAX_ADDED: usize = 1000;

/// Addresses of peers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Addresses {
    /// The addresses, each an IP address with a port.
    add: Vec<SocketAddr>,
}

pub(super) async fn list(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
) -> Result<Json<Vec<PeerStats>>, Refusal> {
    Ok(Json(shared.torrents.stats(hash).await?.peers))
}

pub(super) async fn add(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
    JsonBody(Addresses { add }): JsonBody<Addresses>,
) -> Result<StatusCode, Refusal> {
    if add.len() > MAX_ADDED {
        let why = format!("at most {MAX_ADDED} peers at a time");
        return Err(Refusal::of("add", StatusCode::BAD_REQUEST, why));
    }
    if let Some(peer) = add.iter().find(|peer| peer.port() == 0) {
        let why = format!("{peer}: nobody listens on port 0");
        return Err(Refusal::of("add", StatusCode::BAD_REQUEST, why));
    }
    shared.torrents.add_peers(hash, add).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Returns the blocked networks.
pub(super) async fn blocked(State(shared): State<Shared>, _: NoParameters) -> Result<Json<Vec<Network>>, Refusal> {
    Ok(Json(shared.torrents.settings().await?.settings.peers.blocked))
}

/// Blocks and unblocks networks.
pub(super) async fn block(
    State(shared): State<Shared>,
    _: NoParameters,
    JsonBody(edit): JsonBody<BlockedEdit>,
) -> Result<Json<Vec<Network>>, Refusal> {
    Ok(Json(shared.torrents.edit_blocked(edit).await?))
}
