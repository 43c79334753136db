//! Tracker announces: which tracker gets which event, and when.
//!
//! A torrent's trackers form chains for each address family: one chain, one per tier, or one per tracker, depending on
//! the settings. In each chain, one successful answer is enough; the next tracker is tried only if the previous one
//! fails (BEP 12). Each tracker has its own deadline and backoff; no tracker delays another.

mod control;
mod http;
mod policy;
mod scrape;
mod udp;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{
    LifecycleChanged, PeerConnected, PeersWanted, SessionLoaded, TorrentCompleted, TrackerAnswered, TrackerFailed,
    TrackersGiven,
};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::session::SessionTracker;
use ecs_torrent_components::torrent::{Have, StopPhase, Torrent, TorrentTrackers, TrackerOf};
use ecs_torrent_components::tracker::{Tracker, TrackerTiers};
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::port::OpenInbox;
use ecs_torrent_engine::ports::http::{HttpEvent, HttpRequest};
use ecs_torrent_engine::ports::net::{NetEvent, NetRequest, TRACKER_DATAGRAMS};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::MetainfoLimits;
use ecs_torrent_protocol::tracker::{
    AnnounceEvent, AnnounceRequest, AnnounceResponse, Retry, ScrapeCounts, TrackerError,
};

pub use self::control::TrackerControlPlugin;
pub use self::policy::Announcer;
pub use self::scrape::ScrapePlugin;
use crate::AnnounceSet;
use crate::conditions::{has_events, has_messages, has_messages_of_two};
use crate::stop_participants::{AddStopParticipant, has_stops};

/// Announces to trackers, and scrapes them.
pub struct TrackersPlugin;

impl Plugin for TrackersPlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<Torrent, Announcer>();
        app.register_required_components::<Torrent, TrackerTiers>();
        app.add_observer(spawn_trackers).add_observer(restore_trackers);
        app.open_inbox::<NetRequest, NetEvent>(TRACKER_DATAGRAMS)
            .add_message::<TrackerAnswered>()
            .add_message::<TrackerFailed>()
            .add_stop_participant::<policy::TrackerAnnounces>(StopPhase::AnnounceStopped, None)
            .init_resource::<OutgoingRequests>()
            .init_resource::<Answers>()
            .init_resource::<policy::Turns>()
            .init_resource::<Deadlines<policy::AnnounceDue>>()
            .init_resource::<Jobs<http::Arriving>>()
            .init_resource::<udp::UdpTrackers>()
            .init_resource::<Deadlines<udp::Repeat>>()
            .add_systems(
                Tick,
                (
                    (
                        http::collect_http.run_if(has_events::<HttpRequest, HttpEvent>(http::TRACKERS)),
                        udp::collect_udp.run_if(udp::has_exchanges),
                    )
                        .chain(),
                    policy::take_answers.run_if(|answers: Res<Answers>| !answers.announces.is_empty()),
                    (
                        policy::begin_announcing.run_if(has_messages::<LifecycleChanged>),
                        policy::announce_completed.run_if(has_messages::<TorrentCompleted>),
                        policy::announce_wanting.run_if(has_messages_of_two::<PeerConnected, PeersWanted>),
                        policy::announce_queued.run_if(has_messages::<LifecycleChanged>),
                        policy::announce_stops.run_if(has_stops),
                        policy::announce_due.run_if(policy::may_announce),
                    )
                        .chain(),
                    (http::send_http_requests, udp::send_udp_requests)
                        .chain()
                        .run_if(|requests: Res<OutgoingRequests>| !requests.is_empty()),
                )
                    .chain()
                    .in_set(AnnounceSet::Trackers),
            );
    }
}

/// Spawns an entity for each tracker that a torrent does not have yet, up to [`MetainfoLimits::max_urls`], and
/// determines their order. A torrent that runs announces to them.
fn spawn_trackers(
    given: On<TrackersGiven>,
    mut commands: Commands,
    mut random: ResMut<Random>,
    mut torrents: Query<(&mut TrackerTiers, Option<&Have>)>,
    trackers: Query<&Tracker>,
    mut extender: policy::Extender,
) {
    let torrent = given.torrent;
    let Ok((mut known, have)) = torrents.get_mut(torrent) else {
        return;
    };
    let urls = known.0.iter().filter_map(|tracker| trackers.get(tracker).ok());
    let mut urls: BTreeSet<Arc<str>> = urls.map(|tracker| tracker.url.clone()).collect();
    let is_complete = have.is_some_and(|have| have.is_full());
    let max = MetainfoLimits::default().max_urls;
    for given in &given.tiers {
        let mut added = Vec::new();
        for url in given {
            if urls.len() < max && urls.insert(url.as_str().into()) {
                let tracker = Tracker::given(url, is_complete);
                added.push(commands.spawn((tracker, TrackerOf(torrent))).id());
            }
        }
        known.0.push(added, |tier| random.shuffle(tier));
    }
    extender.extend(torrent, &known, |tracker, family| {
        trackers
            .get(tracker)
            .is_ok_and(|tracker| tracker.route(family).is_in_use())
    });
}

/// Restores the state of a torrent's trackers from an earlier run, and the trackers that were added to it. A private
/// torrent has only those of its metainfo (BEP 27).
fn restore_trackers(
    loaded: On<SessionLoaded>,
    mut commands: Commands,
    torrents: Query<(&Torrent, Option<&TorrentTrackers>)>,
    mut trackers: Query<&mut Tracker>,
) {
    let Ok((torrent, entities)) = torrents.get(loaded.torrent) else {
        return;
    };
    let entities = || entities.into_iter().flat_map(RelationshipTarget::iter);
    let is_known = |saved: &&SessionTracker| {
        let mut known = entities().filter_map(|entity| trackers.get(entity).ok());
        known.any(|tracker| *tracker.url == *saved.url)
    };
    let saved = loaded.session.trackers.iter();
    let added: Vec<Vec<String>> = saved
        .filter(|saved| !torrent.has_fixed_trackers() && !loaded.session.are_trackers_edited && !is_known(saved))
        .map(|saved| vec![saved.url.clone()])
        .collect();
    if !added.is_empty() {
        commands.trigger(TrackersGiven {
            torrent: loaded.torrent,
            tiers: added,
        });
    }
    let mut known = trackers.iter_many_mut(entities());
    while let Some(Ok(mut tracker)) = known.fetch_next() {
        let Some(saved) = loaded.session.trackers.iter().find(|saved| *saved.url == *tracker.url) else {
            continue;
        };
        tracker.seeders = saved.seeders;
        tracker.leechers = saved.leechers;
        for family in Family::ALL {
            tracker.route_mut(family).was_completed = saved.was_completed;
        }
    }
}

/// The kind of request to a tracker.
#[derive(Debug, Clone)]
enum RequestKind {
    /// Announces us and asks for peers.
    Announce(AnnounceRequest),
    /// Asks for the peer counts.
    Scrape(InfoHash),
}

/// A request to a tracker over one address family.
#[derive(Debug, Clone)]
struct TrackerRequest {
    tracker: Entity,
    family: Family,
    url: Arc<str>,
    kind: RequestKind,
}

/// Requests not sent yet; each transport takes its own.
#[derive(Resource, Debug, Default)]
struct OutgoingRequests {
    http: Vec<TrackerRequest>,
    udp: Vec<TrackerRequest>,
}

impl OutgoingRequests {
    fn is_empty(&self) -> bool {
        self.http.is_empty() && self.udp.is_empty()
    }

    fn send(&mut self, request: TrackerRequest) {
        match request.url.starts_with("udp:") {
            true => self.udp.push(request),
            false => self.http.push(request),
        }
    }
}

impl TrackerRequest {
    /// Wraps a result as the answer to this request.
    fn answered(&self, result: Result<Reply, Failure>) -> Answer {
        let event = match &self.kind {
            RequestKind::Announce(request) => Some(request.event),
            RequestKind::Scrape(_) => None,
        };
        Answer {
            tracker: self.tracker,
            family: self.family,
            event,
            result,
        }
    }
}

/// The result of a tracker request.
#[derive(Debug)]
struct Answer {
    tracker: Entity,
    family: Family,
    /// The announced event, or `None` for a scrape.
    event: Option<AnnounceEvent>,
    result: Result<Reply, Failure>,
}

#[derive(Debug)]
enum Reply {
    /// The answer, and the tracker's address, if it is known.
    Announce(AnnounceResponse, Option<IpAddr>),
    Scrape(ScrapeCounts),
}

/// The failure of a tracker request: a human-readable reason without the tracker's URL.
#[derive(Debug, Clone)]
struct Failure {
    reason: Arc<str>,
    retry: Retry,
    /// The tracker has no address of this family; this is no fault of the tracker.
    is_unreachable: bool,
}

impl Failure {
    fn new(reason: impl Into<Arc<str>>) -> Self {
        Self {
            reason: reason.into(),
            retry: Retry::Unspecified,
            is_unreachable: false,
        }
    }
}

impl From<TrackerError> for Failure {
    fn from(error: TrackerError) -> Self {
        let retry = match &error {
            TrackerError::Refused { retry, .. } => *retry,
            _ => Retry::Unspecified,
        };
        Self {
            retry,
            ..Self::new(error.to_string())
        }
    }
}

/// Answers that have arrived and are not processed yet.
#[derive(Resource, Debug, Default)]
struct Answers {
    announces: Vec<Answer>,
    scrapes: Vec<Answer>,
}

impl Answers {
    fn give(&mut self, answer: Answer) {
        match answer.event {
            Some(_) => self.announces.push(answer),
            None => self.scrapes.push(answer),
        }
    }
}
