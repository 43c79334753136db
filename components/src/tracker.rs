//! A tracker's components.

use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::tracker::tiers::Tiers;

/// How the last announce went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TrackerStatus {
    /// Not asked yet.
    #[default]
    Idle,
    /// Being asked.
    Announcing,
    /// Answered.
    Working,
    /// Did not answer, or refused; for people, without the URL.
    Failed(Arc<str>),
    /// Wants never to be asked again (BEP 31).
    Disabled(Arc<str>),
}

/// A tracker over one address family: each is announced to by itself, since each brings us into the swarm under
/// another address (BEP 7).
#[derive(Debug, Clone, Default)]
pub struct Route {
    /// How the last announce went.
    pub status: TrackerStatus,
    /// When it is asked again.
    pub next_announce: Timestamp,
    /// When it last answered.
    pub answered: Timestamp,
    /// Time from then on in which it is not asked even where peers are needed.
    pub min_interval: Duration,
    /// Failures in a row.
    pub failures: u32,
    /// Whether it has been told `started` in this session, and so has to be told `stopped`.
    pub was_started: bool,
    /// Whether it has been told `completed`, or needs not to be.
    pub was_completed: bool,
    /// What it wants to hear again (`trackerid`).
    pub tracker_id: Option<Vec<u8>>,
}

/// One tracker of one torrent.
#[derive(Component, Debug, Clone, Default)]
pub struct Tracker {
    /// Announce URL, as the metainfo has it. May hold a passkey: shown through
    /// [`redacted`](ecs_torrent_protocol::tracker::redacted).
    pub url: Arc<str>,
    /// Number of its tier.
    pub tier: usize,
    /// Over each family, in the order of [`Family::ALL`].
    routes: [Route; 2],
    /// Peers with all of it, as last told.
    pub seeders: Option<u32>,
    /// Peers without all of it, as last told.
    pub leechers: Option<u32>,
    /// Downloads ever completed, as last told by a scrape.
    pub completed: Option<u32>,
    /// Something a person should read, as last told.
    pub warning: Option<String>,
}

impl Tracker {
    /// A tracker that has not been asked anything.
    #[must_use]
    pub fn new(url: &str, tier: usize) -> Self {
        Self {
            url: url.into(),
            tier,
            ..Self::default()
        }
    }

    /// The tracker over one family.
    #[must_use]
    pub fn route(&self, family: Family) -> &Route {
        &self.routes[family as usize]
    }

    /// The tracker over one family.
    pub fn route_mut(&mut self, family: Family) -> &mut Route {
        &mut self.routes[family as usize]
    }

    /// How it goes, over whichever family it goes best.
    #[must_use]
    pub fn status(&self) -> &TrackerStatus {
        let rank = |status: &TrackerStatus| match status {
            TrackerStatus::Working => 0,
            TrackerStatus::Announcing => 1,
            TrackerStatus::Failed(_) => 2,
            TrackerStatus::Disabled(_) => 3,
            TrackerStatus::Idle => 4,
        };
        let [v4, v6] = self.routes.each_ref().map(|route| &route.status);
        if rank(v4) <= rank(v6) { v4 } else { v6 }
    }
}

/// The order in which a torrent's trackers are asked (BEP 12).
#[derive(Component, Debug, Default)]
pub struct TrackerTiers(pub Tiers<Entity>);
