//! Settings of the queue.

use serde::{Deserialize, Serialize};

/// How many torrents run at a time. The others are queued, in an order that users change. Every limit is off by
/// default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// Maximum number of torrents that download at a time. Torrents that fetch their metadata do not count. Default
    /// 1 000 000, which is no limit.
    pub max_downloads: usize,
    /// Maximum number of torrents that seed at a time. Default 1 000 000, which is no limit.
    pub max_seeds: usize,
    /// Maximum number of torrents that download or seed at a time, slow ones included. Downloads come first. Default
    /// 1 000 000, which is no limit.
    pub max_active: usize,
    /// Maximum number of torrents whose existing data is checked at a time. The others wait, in the state `checking`.
    /// Default 1 000 000, which is no limit.
    pub max_checks: usize,
    /// Rate below which a download counts as slow. Slow torrents do not count toward `max_downloads` and `max_seeds`.
    /// Default 0: no download is slow.
    pub slow_download_bytes_per_s: u64,
    /// Rate of uploads below which a seed counts as slow. Default 0: no seed is slow.
    pub slow_upload_bytes_per_s: u64,
    /// Time over which the rate of a torrent is measured before it counts as slow. Default 60 s.
    pub slow_after_s: u64,
}

/// A number of torrents that means no limit.
pub const NO_MAXIMUM: usize = 1_000_000;

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            max_downloads: NO_MAXIMUM,
            max_seeds: NO_MAXIMUM,
            max_active: NO_MAXIMUM,
            max_checks: NO_MAXIMUM,
            slow_download_bytes_per_s: 0,
            slow_upload_bytes_per_s: 0,
            slow_after_s: 60,
        }
    }
}

impl QueueSettings {
    /// Whether torrents may have to wait.
    #[must_use]
    pub fn is_limiting(&self) -> bool {
        [self.max_downloads, self.max_seeds, self.max_active]
            .into_iter()
            .any(|most| most < NO_MAXIMUM)
    }
}
