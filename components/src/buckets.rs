//! Limits on the transfer rates of single torrents.

use bevy_ecs::prelude::*;

use crate::peer::{UploadQueue, Wire};
use crate::rate_limit::RateLimit;
use crate::work_list::WorkList;

/// The buckets of a torrent that has, or had, limits of its own, and its peers that wait for them. The peers of a
/// torrent take turns; with a turn, a peer gets its share of the engine's limit as any other peer.
#[derive(Component, Debug, Default)]
pub struct TorrentBuckets {
    /// Payload and messages received from peers.
    pub download: RateLimit,
    /// Blocks sent to peers.
    pub upload: RateLimit,
    /// Peers that wait for credit.
    pub downloads: WorkList<Wire>,
    /// Peers that wait to be served.
    pub uploads: WorkList<UploadQueue>,
    /// Credit of one peer's turn, in bytes.
    pub share: u64,
}
