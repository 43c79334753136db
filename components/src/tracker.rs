//! A tracker's components.

use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::tracker::tiers::Tiers;

/// The result of the last announce.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TrackerStatus {
    /// No announce yet.
    #[default]
    Idle,
    /// An announce is under way.
    Announcing,
    /// The tracker answered.
    Working,
    /// The tracker did not answer, or returned an error; human-readable, without the URL.
    Failed(Arc<str>),
    /// The tracker requested that no further announces be sent (BEP 31).
    Disabled(Arc<str>),
}

/// A tracker over one address family. Each family is announced separately, because each brings us into the swarm under
/// another address (BEP 7).
#[derive(Debug, Clone, Default)]
pub struct Route {
    /// The result of the last announce.
    pub status: TrackerStatus,
    /// When the next announce is due.
    pub next_announce: Timestamp,
    /// When the tracker last answered.
    pub answered: Timestamp,
    /// Time after the last answer in which no announce is sent, even if peers are needed.
    pub min_interval: Duration,
    /// Number of consecutive failures.
    pub failures: u32,
    /// Whether the tracker has received `started` in this session, and so must receive `stopped`.
    pub was_started: bool,
    /// The torrent's counter of uploaded bytes when `started` was sent: an announce reports what came later (BEP 3).
    pub uploaded_before: u64,
    /// The torrent's counter of downloaded bytes when `started` was sent.
    pub downloaded_before: u64,
    /// Whether the tracker has received `completed`, or does not need it.
    pub was_completed: bool,
    /// The `trackerid` that the tracker expects back.
    pub tracker_id: Option<Vec<u8>>,
}

impl Route {
    /// Whether the tracker answered the last announce, or one is in progress.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        matches!(self.status, TrackerStatus::Working | TrackerStatus::Announcing)
    }
}

/// One tracker of one torrent.
#[derive(Component, Debug, Clone, Default)]
pub struct Tracker {
    /// Announce URL, as in the metainfo. May contain a passkey, so that it is shown through
    /// [`redacted`](ecs_torrent_protocol::tracker::redacted).
    pub url: Arc<str>,
    /// The routes over the families, in the order of [`Family::ALL`].
    routes: [Route; 2],
    /// Number of peers with all pieces, as last reported.
    pub seeders: Option<u32>,
    /// Number of peers without all pieces, as last reported.
    pub leechers: Option<u32>,
    /// Number of peers that the last answer named.
    pub peers: Option<u32>,
    /// Number of completed downloads, as last reported by a scrape.
    pub completed: Option<u32>,
    /// The tracker's last warning, human-readable.
    pub warning: Option<String>,
}

impl Tracker {
    /// Creates a tracker without any announce yet.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self {
            url: url.into(),
            ..Self::default()
        }
    }

    /// Creates a tracker that a torrent gets later. If the torrent is complete, it sends no `completed` (BEP 3).
    #[must_use]
    pub fn given(url: &str, is_complete: bool) -> Self {
        let mut tracker = Self::new(url);
        tracker
            .routes
            .iter_mut()
            .for_each(|route| route.was_completed = is_complete);
        tracker
    }

    /// Returns the tracker over one family.
    #[must_use]
    pub fn route(&self, family: Family) -> &Route {
        &self.routes[family as usize]
    }

    /// Returns the tracker over one family.
    pub fn route_mut(&mut self, family: Family) -> &mut Route {
        &mut self.routes[family as usize]
    }

    /// Returns the best status of all families.
    #[must_use]
    pub fn status(&self) -> &TrackerStatus {
        &self.best_route().status
    }

    /// Returns the route with the best status.
    #[must_use]
    pub fn best_route(&self) -> &Route {
        let rank = |route: &Route| match route.status {
            TrackerStatus::Working => 0,
            TrackerStatus::Announcing => 1,
            TrackerStatus::Failed(_) => 2,
            TrackerStatus::Disabled(_) => 3,
            TrackerStatus::Idle => 4,
        };
        let [v4, v6] = &self.routes;
        if rank(v4) <= rank(v6) { v4 } else { v6 }
    }
}

/// Marks a torrent whose trackers were edited by the user: they replace those of the torrent file or the magnet link.
#[derive(Component, Debug, Clone, Copy)]
pub struct EditedTrackers;

/// The order in which a torrent's trackers are tried (BEP 12).
#[derive(Component, Debug, Default)]
pub struct TrackerTiers(pub Tiers<Entity>);
