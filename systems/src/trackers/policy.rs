//! The announce policy: which tracker gets the next announce.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::candidates::{CandidateSource, CandidatesFound};
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::AnnounceError;
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{
    LifecycleChanged, PeerConnected, PeersWanted, TorrentCompleted, TrackerAnswered, TrackerFailed,
};
use ecs_torrent_components::settings::{Settings, TrackerSettings, seconds};
use ecs_torrent_components::torrent::{Counters, Have, Label, Layout, Lifecycle, Torrent, TorrentTrackers, TrackerOf};
use ecs_torrent_components::tracker::{Route, Tracker, TrackerStatus, TrackerTiers};
use ecs_torrent_engine::ports::net::LocalAddresses;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::tracker::{
    AnnounceEvent, AnnounceRequest, AnnounceResponse, Retry, redacted, without_secrets,
};

use super::{Answer, Answers, Failure, OutgoingRequests, Reply, RequestKind, TrackerRequest};
use crate::conditions::has_due;
use crate::dialing::ExternalAddresses;
use crate::stop_participants::{StopDuty, StopTurn};

/// Time until a tracker without an address of one family is looked up again.
const UNREACHABLE_WAIT: Duration = Duration::from_secs(3600);

/// Least time between announces to a tracker when peers are needed, however short the tracker's intervals are.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// The tracker chains of a torrent.
#[derive(Component, Debug, Default)]
pub struct Announcer {
    /// Whether the torrent runs: new trackers form chains at once.
    is_running: bool,
    chains: Vec<Chain>,
    /// Early announces for lack of peers since the last peer connected.
    early: u32,
    /// Announces of `stopped` that have not been answered.
    stopped_count: usize,
}

impl Announcer {
    /// Whether no announce is due: the torrent does not run, or has no tracker.
    #[must_use]
    pub fn is_resting(&self) -> bool {
        self.chains.is_empty()
    }
}

/// The stop participant that announces `stopped`.
pub(super) struct TrackerAnnounces;

/// Trackers that substitute for each other, over one address family.
#[derive(Debug)]
struct Chain {
    family: Family,
    /// Index among the chains that the tiers form.
    number: usize,
    /// The tracker with an outstanding announce.
    asking: Option<Entity>,
    /// Trackers that failed in this round.
    tried: Vec<Entity>,
    /// When the chain is due. An earlier deadline that fires is obsolete.
    due: Timestamp,
}

impl Chain {
    fn new(family: Family, number: usize, due: Timestamp) -> Self {
        Self {
            family,
            number,
            asking: None,
            tried: Vec::new(),
            due,
        }
    }
}

/// Bytes left in announces while the size of the torrent is not known. Not 0, by which trackers recognize seeds. Other
/// clients (libtorrent) announce the same value.
const UNKNOWN_LEFT: u64 = 16384;

/// Deadline of a torrent's chain.
#[derive(Debug)]
pub(super) struct AnnounceDue {
    torrent: Entity,
    chain: usize,
}

/// Chains that wait because the limit on concurrent announces is reached.
#[derive(Resource, Debug, Default)]
pub(super) struct Turns {
    asking_count: usize,
    waiting: VecDeque<(Entity, usize)>,
}

/// The torrent's data that an announce contains.
type TorrentData = (
    &'static Torrent,
    &'static Lifecycle,
    &'static Counters,
    Option<(&'static Have, &'static Layout)>,
);

/// The parameters for sending announces.
#[derive(SystemParam)]
pub(super) struct AnnounceParams<'w, 's> {
    clock: Res<'w, Clock>,
    settings: Res<'w, Settings>,
    local: Res<'w, LocalAddresses>,
    outgoing: ResMut<'w, OutgoingRequests>,
    trackers: Query<'w, 's, &'static mut Tracker>,
    torrents: Query<'w, 's, TorrentData>,
}

/// Announces `started` at once whenever a torrent begins to connect to peers.
pub(super) fn begin_announcing(
    mut changed: MessageReader<LifecycleChanged>,
    clock: Res<Clock>,
    settings: Res<Settings>,
    local: Res<LocalAddresses>,
    mut due: ResMut<Deadlines<AnnounceDue>>,
    mut torrents: Query<(&mut Announcer, &TrackerTiers, Option<&Have>)>,
    mut trackers: Query<&mut Tracker>,
) {
    let now = clock.now();
    for &LifecycleChanged { torrent, .. } in changed.read().filter(|changed| changed.begins_to_connect()) {
        let Ok((mut announcer, tiers, have)) = torrents.get_mut(torrent) else {
            continue;
        };
        let chain_count = tiers.0.chains(settings.trackers.reach.into()).len();
        announcer.is_running = true;
        announcer.chains = Vec::with_capacity(families(&local).count() * chain_count);
        for family in families(&local) {
            let chains = (0..chain_count).map(|number| Chain::new(family, number, now));
            announcer.chains.extend(chains);
        }
        for chain in 0..announcer.chains.len() {
            due.set(now, AnnounceDue { torrent, chain });
        }
        for tracker in tiers.0.iter() {
            let Ok(mut tracker) = trackers.get_mut(tracker) else {
                continue;
            };
            for family in Family::ALL {
                let route = tracker.route_mut(family);
                // BEP 3: no `completed` is sent if the torrent was complete from the start.
                route.was_completed = have.is_some_and(|have| have.is_full());
                // The interval counts between announces of a torrent that runs, not after `stopped`.
                if !route.was_started && route.failures == 0 {
                    route.next_announce = route.next_announce.min(now);
                }
            }
        }
    }
}

/// Parameters for trackers that a torrent gets while it runs.
#[derive(SystemParam)]
pub(super) struct Extender<'w, 's> {
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    settings: Res<'w, Settings>,
    local: Res<'w, LocalAddresses>,
    due: ResMut<'w, Deadlines<AnnounceDue>>,
    announcers: Query<'w, 's, &'static mut Announcer>,
}

impl Extender<'_, '_> {
    /// Adds the chains that new trackers form, removes those that no tracker forms any more, and announces at once
    /// where no tracker of a chain is in use. A torrent that does not run announces when it begins to.
    pub(super) fn extend(&mut self, torrent: Entity, tiers: &TrackerTiers, is_in_use: impl Fn(Entity, Family) -> bool) {
        let Ok(mut announcer) = self.announcers.get_mut(torrent) else {
            return;
        };
        if !announcer.is_running {
            return;
        }
        let now = self.clock.now();
        let order = tiers.0.chains(self.settings.trackers.reach.into());
        announcer.chains.retain(|chain| chain.number < order.len());
        for family in families(&self.local) {
            let count = announcer.chains.iter().filter(|chain| chain.family == family).count();
            let added = (count..order.len()).map(|number| Chain::new(family, number, now));
            announcer.chains.extend(added);
        }
        for (number, chain) in announcer.chains.iter_mut().enumerate() {
            let order = order.get(chain.number).map_or(&[][..], Vec::as_slice);
            // The answer of a tracker that was removed finds no chain.
            chain.asking.take_if(|asking| !order.contains(asking));
            if chain.asking.is_none() && !order.iter().any(|tracker| is_in_use(*tracker, chain.family)) {
                chain.due = now;
                self.due.set(now, AnnounceDue { torrent, chain: number });
                self.wakeup.at(now);
            }
        }
    }
}

/// Returns the address families that the engine listens on.
fn families(local: &LocalAddresses) -> impl Iterator<Item = Family> {
    let listens = move |family: &Family| local.0.iter().any(|address| Family::of(address.ip()) == *family);
    Family::ALL.into_iter().filter(listens)
}

/// Announces `completed` when a download completes, not at the next interval (BEP 3).
pub(super) fn announce_completed(mut completed: MessageReader<TorrentCompleted>, mut advance: Advance) {
    let now = advance.clock.now();
    for &TorrentCompleted { torrent } in completed.read() {
        advance.announces_of(torrent, |route| {
            (route.was_started && !route.was_completed).then_some(now)
        });
    }
}

/// Announces before the interval is over if a torrent needs peers (BEP 3). A download without peers may have changed
/// its address since the last announce, or its peers may have.
pub(super) fn announce_wanting(
    mut connected: MessageReader<PeerConnected>,
    mut wanted: MessageReader<PeersWanted>,
    mut advance: Advance,
) {
    for PeerConnected { torrent, .. } in connected.read() {
        if let Ok((mut announcer, _)) = advance.torrents.get_mut(*torrent) {
            announcer.early = 0;
        }
    }
    for &PeersWanted { torrent } in wanted.read() {
        let Ok((announcer, _)) = advance.torrents.get(torrent) else {
            continue;
        };
        let times = 2u32.pow(announcer.early.min(16));
        let is_earlier = advance.announces_of(torrent, |route| {
            let wait = route.min_interval.max(LEAST_WAIT) * times;
            (route.status == TrackerStatus::Working).then_some(route.answered + wait)
        });
        if let Ok((mut announcer, _)) = advance.torrents.get_mut(torrent) {
            announcer.early += u32::from(is_earlier);
        }
    }
}

/// The parameters for announcing earlier than the trackers' intervals.
#[derive(SystemParam)]
pub(super) struct Advance<'w, 's> {
    clock: Res<'w, Clock>,
    due: ResMut<'w, Deadlines<AnnounceDue>>,
    torrents: Query<'w, 's, (&'static mut Announcer, &'static TorrentTrackers)>,
    trackers: Query<'w, 's, &'static mut Tracker>,
}

impl Advance<'_, '_> {
    /// Moves the announces of a torrent's trackers to the time that `when` returns, where that is earlier. Returns
    /// whether any was moved.
    fn announces_of(&mut self, torrent: Entity, when: impl Fn(&Route) -> Option<Timestamp>) -> bool {
        let Ok((mut announcer, all)) = self.torrents.get_mut(torrent) else {
            return false;
        };
        let mut earliest: Option<Timestamp> = None;
        for tracker in all.iter() {
            let Ok(mut tracker) = self.trackers.get_mut(tracker) else {
                continue;
            };
            for family in Family::ALL {
                let route = tracker.route_mut(family);
                let when = when(route).map(|when| when.max(self.clock.now()));
                if let Some(when) = when.filter(|when| *when < route.next_announce) {
                    route.next_announce = when;
                    earliest = Some(earliest.map_or(when, |earliest| when.min(earliest)));
                }
            }
        }
        let Some(due) = earliest else { return false };
        for (number, chain) in announcer.chains.iter_mut().enumerate() {
            // A chain with an outstanding announce reads the new time when the answer arrives.
            if chain.asking.is_none() && due < chain.due {
                chain.due = due;
                self.due.set(due, AnnounceDue { torrent, chain: number });
            }
        }
        true
    }
}

impl Advance<'_, '_> {
    /// Announces a torrent as early as its trackers allow, at the request of the user. Returns the time until then.
    pub(super) fn announce_early(&mut self, torrent: Entity, name: &Arc<str>) -> Result<Duration, AnnounceError> {
        let now = self.clock.now();
        let when = |route: &Route| match route.status {
            TrackerStatus::Disabled(_) => None,
            TrackerStatus::Working => Some((route.answered + route.min_interval.max(LEAST_WAIT)).max(now)),
            TrackerStatus::Idle | TrackerStatus::Announcing | TrackerStatus::Failed(_) => Some(now),
        };
        self.announces_of(torrent, when);
        let no_tracker = || AnnounceError::NoTracker(name.clone());
        let (announcer, trackers) = self.torrents.get(torrent).map_err(|_| no_tracker())?;
        if !announcer.is_running {
            return Err(AnnounceError::NotRunning(name.clone()));
        }
        let takes = |tracker: &Tracker| Family::ALL.iter().any(|family| when(tracker.route(*family)).is_some());
        if !self.trackers.iter_many(trackers.iter()).flatten().any(takes) {
            return Err(no_tracker());
        }
        let wait = |chain: &Chain| match chain.asking {
            Some(_) => Duration::ZERO,
            None => chain.due.since(now),
        };
        announcer.chains.iter().map(wait).min().ok_or_else(no_tracker)
    }
}

/// Announces `stopped` to every tracker that got `started`, to all of them at once.
pub(super) fn announce_stops(
    mut duty: StopDuty<TrackerAnnounces>,
    mut params: AnnounceParams,
    mut torrents: Query<(&mut Announcer, Option<&TorrentTrackers>)>,
) {
    for StopTurn { torrent, .. } in duty.take() {
        let Ok((mut announcer, trackers)) = torrents.get_mut(torrent) else {
            continue;
        };
        *announcer = Announcer::default();
        for tracker in trackers.into_iter().flat_map(RelationshipTarget::iter) {
            for family in Family::ALL {
                let was_started = params.trackers.get(tracker).is_ok_and(|t| t.route(family).was_started);
                let is_sent = was_started && params.send(torrent, tracker, family, AnnounceEvent::Stopped);
                announcer.stopped_count += usize::from(is_sent);
            }
        }
        if announcer.stopped_count == 0 {
            duty.finish(torrent);
        }
    }
}

/// Announces `stopped` for torrents that have to wait in the queue, because they connect to nobody.
pub(super) fn announce_queued(
    mut changed: MessageReader<LifecycleChanged>,
    mut params: AnnounceParams,
    mut torrents: Query<(&mut Announcer, Option<&TorrentTrackers>)>,
) {
    for LifecycleChanged { torrent, to, .. } in changed.read() {
        let is_queued = params
            .torrents
            .get(*torrent)
            .is_ok_and(|(_, state, ..)| *state == Lifecycle::Queued);
        let Ok((mut announcer, trackers)) = torrents.get_mut(*torrent) else {
            continue;
        };
        if *to != Lifecycle::Queued || !is_queued {
            continue;
        }
        *announcer = Announcer::default();
        for tracker in trackers.into_iter().flat_map(RelationshipTarget::iter) {
            params.announce_removed(*torrent, tracker);
        }
    }
}

/// Returns whether a chain is due, or waits for its turn. If not, requests a tick when the next one is due.
pub(super) fn may_announce(
    turns: Res<Turns>,
    due: Res<Deadlines<AnnounceDue>>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
) -> bool {
    !turns.waiting.is_empty() || has_due(due, clock, wakeup)
}

pub(super) fn announce_due(
    mut due: ResMut<Deadlines<AnnounceDue>>,
    wakeup: Res<Wakeup>,
    mut turns: ResMut<Turns>,
    mut params: AnnounceParams,
    mut torrents: Query<(&mut Announcer, &TrackerTiers)>,
) {
    let now = params.clock.now();
    while let Some(AnnounceDue { torrent, chain }) = due.pop_due(now) {
        turns.waiting.push_back((torrent, chain));
    }
    while turns.asking_count < params.settings.trackers.max_concurrent {
        let Some((torrent, number)) = turns.waiting.pop_front() else {
            break;
        };
        let Ok((mut announcer, tiers)) = torrents.get_mut(torrent) else {
            continue;
        };
        let Some(chain) = announcer.chains.get_mut(number) else {
            continue;
        };
        if chain.asking.is_some() || chain.due > now {
            continue;
        }
        let order = tiers.0.chains(params.settings.trackers.reach.into());
        let order = order.get(chain.number).map_or(&[][..], Vec::as_slice);
        match params.next_tracker(order, chain) {
            Some(tracker) => {
                let event = params.event_for(torrent, tracker, chain.family);
                if params.send(torrent, tracker, chain.family, event) {
                    chain.asking = Some(tracker);
                    turns.asking_count += 1;
                }
            }
            None => {
                chain.tried.clear();
                if let Some(next) = params.earliest(order, chain.family) {
                    chain.due = next.max(now + Duration::from_millis(1));
                    due.set(chain.due, AnnounceDue { torrent, chain: number });
                }
            }
        }
    }
    wakeup.at_next(due.next());
}

impl AnnounceParams<'_, '_> {
    /// Returns the first tracker of a chain that is due and has not failed in this round.
    fn next_tracker(&self, order: &[Entity], chain: &Chain) -> Option<Entity> {
        let now = self.clock.now();
        order.iter().copied().find(|entity| {
            let Ok(tracker) = self.trackers.get(*entity) else {
                return false;
            };
            let route = tracker.route(chain.family);
            let is_disabled = matches!(route.status, TrackerStatus::Disabled(_));
            !is_disabled && route.next_announce <= now && !chain.tried.contains(entity)
        })
    }

    /// Returns the earliest time at which one of a chain's trackers is due.
    fn earliest(&self, order: &[Entity], family: Family) -> Option<Timestamp> {
        let routes = order.iter().filter_map(|tracker| self.trackers.get(*tracker).ok());
        let routes = routes.map(|tracker| tracker.route(family));
        let usable = routes.filter(|route| !matches!(route.status, TrackerStatus::Disabled(_)));
        usable.map(|route| route.next_announce).min()
    }

    /// Returns a tracker.
    pub(super) fn tracker(&self, tracker: Entity) -> Option<&Tracker> {
        self.trackers.get(tracker).ok()
    }

    /// Announces `stopped` to a tracker that the torrent loses.
    pub(super) fn announce_removed(&mut self, torrent: Entity, tracker: Entity) {
        for family in Family::ALL {
            if self
                .tracker(tracker)
                .is_some_and(|tracker| tracker.route(family).was_started)
            {
                self.send(torrent, tracker, family, AnnounceEvent::Stopped);
            }
        }
    }

    fn event_for(&self, torrent: Entity, tracker: Entity, family: Family) -> AnnounceEvent {
        let Ok(tracker) = self.trackers.get(tracker) else {
            return AnnounceEvent::None;
        };
        let lifecycle = self.torrents.get(torrent).ok().map(|(_, lifecycle, ..)| lifecycle);
        let is_complete = lifecycle == Some(&Lifecycle::Seeding);
        let route = tracker.route(family);
        match (route.was_started, route.was_completed) {
            (false, _) => AnnounceEvent::Started,
            (true, false) if is_complete => AnnounceEvent::Completed,
            // BEP 21: in every announce of a partial seed.
            _ if lifecycle == Some(&Lifecycle::Finished) => AnnounceEvent::Paused,
            (true, _) => AnnounceEvent::None,
        }
    }

    /// Sends an announce to a tracker. Returns false if that is impossible.
    fn send(&mut self, torrent: Entity, entity: Entity, family: Family, event: AnnounceEvent) -> bool {
        let Ok((data, _, counters, sizes)) = self.torrents.get(torrent) else {
            return false;
        };
        let Ok(mut tracker) = self.trackers.get_mut(entity) else {
            return false;
        };
        let Some(local) = self.local.0.iter().find(|address| Family::of(address.ip()) == family) else {
            return false;
        };
        // BEP 3: the missing bytes of the whole torrent, wanted or not, so that trackers count seeds correctly.
        let left = sizes.map_or(UNKNOWN_LEFT, |(have, Layout(geometry))| {
            geometry.pieces_size() - geometry.size_of(have)
        });
        let route = tracker.route_mut(family);
        // The tracker may have received the announce even if no answer arrives.
        match event {
            AnnounceEvent::Started => {
                route.was_started = true;
                (route.uploaded_before, route.downloaded_before) = (counters.uploaded, counters.downloaded);
            }
            AnnounceEvent::Stopped => route.was_started = false,
            AnnounceEvent::Completed | AnnounceEvent::Paused | AnnounceEvent::None => {}
        }
        route.status = TrackerStatus::Announcing;
        let request = AnnounceRequest {
            info_hash: data.id(),
            peer_id: data.peer_id,
            port: local.port(),
            uploaded: counters.uploaded.saturating_sub(route.uploaded_before),
            downloaded: counters.downloaded.saturating_sub(route.downloaded_before),
            left,
            event,
            key: data.tracker_key,
            num_want: match event {
                AnnounceEvent::Stopped => 0,
                _ => self.settings.trackers.num_want,
            },
            tracker_id: route.tracker_id.clone(),
        };
        tracing::debug!(torrent = %data.label(), tracker = %redacted(&tracker.url), ?family, ?event, "announcing");
        self.outgoing.send(TrackerRequest {
            tracker: entity,
            family,
            url: tracker.url.clone(),
            kind: RequestKind::Announce(request),
        });
        true
    }
}

/// The parameters for handling an answer.
#[derive(SystemParam)]
pub(super) struct Consequences<'w> {
    clock: Res<'w, Clock>,
    settings: Res<'w, Settings>,
    due: ResMut<'w, Deadlines<AnnounceDue>>,
    external: ResMut<'w, ExternalAddresses>,
    found: MessageWriter<'w, CandidatesFound>,
    answered: MessageWriter<'w, TrackerAnswered>,
    failed: MessageWriter<'w, TrackerFailed>,
}

pub(super) fn take_answers(
    mut answers: ResMut<Answers>,
    mut turns: ResMut<Turns>,
    mut duty: StopDuty<TrackerAnnounces>,
    mut consequences: Consequences,
    mut torrents: Query<(&Torrent, &mut Announcer, &mut TrackerTiers, &Lifecycle)>,
    mut trackers: Query<(&mut Tracker, &TrackerOf)>,
) {
    for Answer {
        tracker: entity,
        family,
        event,
        result,
    } in answers.announces.drain(..)
    {
        if event == Some(AnnounceEvent::Stopped) {
            let Ok((mut tracker, &TrackerOf(torrent))) = trackers.get_mut(entity) else {
                continue;
            };
            let route = tracker.route_mut(family);
            if route.status == TrackerStatus::Announcing && !route.was_started {
                route.status = TrackerStatus::Idle;
            }
            if let Ok((_, mut announcer, ..)) = torrents.get_mut(torrent)
                && announcer.stopped_count > 0
            {
                announcer.stopped_count -= 1;
                if announcer.stopped_count == 0 {
                    duty.finish(torrent);
                }
            }
            continue;
        }
        turns.asking_count = turns.asking_count.saturating_sub(1);
        let Ok((mut tracker, &TrackerOf(torrent))) = trackers.get_mut(entity) else {
            continue;
        };
        let Ok((data, mut announcer, mut tiers, lifecycle)) = torrents.get_mut(torrent) else {
            continue;
        };
        match result {
            Ok(Reply::Announce(reply, server)) => {
                let found = (reply, server);
                consequences.succeed((torrent, data.label()), entity, &mut tracker, family, event, found);
                tiers.0.promote(entity);
            }
            Ok(Reply::Scrape(_)) => {}
            Err(failure) => consequences.fail((torrent, data.label()), entity, &mut tracker, family, event, &failure),
        }
        let asking = |chain: &&mut Chain| chain.asking == Some(entity) && chain.family == family;
        let Some((number, chain)) = announcer.chains.iter_mut().enumerate().find(|(_, chain)| asking(chain)) else {
            continue;
        };
        chain.asking = None;
        let route = tracker.route_mut(family);
        let now = consequences.clock.now();
        if route.status == TrackerStatus::Working {
            chain.tried.clear();
            // The download completed while this announce was outstanding.
            if *lifecycle == Lifecycle::Seeding && !route.was_completed {
                route.next_announce = now;
            }
            chain.due = route.next_announce;
        } else {
            chain.tried.push(entity);
            chain.due = now;
        }
        consequences.due.set(chain.due, AnnounceDue { torrent, chain: number });
    }
}

impl Consequences<'_> {
    fn succeed(
        &mut self,
        (torrent, label): (Entity, Label<'_>),
        entity: Entity,
        tracker: &mut Tracker,
        family: Family,
        event: Option<AnnounceEvent>,
        (reply, server): (AnnounceResponse, Option<IpAddr>),
    ) {
        let peers = reply.peers.len();
        tracing::debug!(torrent = %label, tracker = %redacted(&tracker.url), ?family, peers, "announced");
        let Intervals { regular, least } = Intervals::of(&reply, &self.settings.trackers);
        let warning = reply.warning.map(|warning| without_secrets(&warning, &tracker.url));
        if let Some(warning) = &warning {
            tracing::warn!(torrent = %label, tracker = %redacted(&tracker.url), "the tracker warns: {warning}");
        }
        let route = tracker.route_mut(family);
        route.status = TrackerStatus::Working;
        route.failures = 0;
        route.next_announce = self.clock.now() + regular;
        route.answered = self.clock.now();
        route.min_interval = least;
        route.was_completed |= event == Some(AnnounceEvent::Completed);
        route.tracker_id = reply.tracker_id.or(route.tracker_id.take());
        tracker.seeders = reply.seeders.or(tracker.seeders);
        tracker.leechers = reply.leechers.or(tracker.leechers);
        tracker.peers = Some(u32::try_from(peers).unwrap_or(u32::MAX));
        tracker.warning = warning;
        if let Some(ip) = reply.external_ip {
            self.external.learn(ip);
        }
        let peer_count = reply.peers.len();
        self.answered.write(TrackerAnswered {
            torrent,
            tracker: entity,
            peer_count,
        });
        self.found.write(CandidatesFound {
            torrent,
            peers: reply.peers.into_iter().map(Into::into).collect(),
            source: CandidateSource::TRACKER,
            informant: server,
        });
    }

    fn fail(
        &mut self,
        (torrent, label): (Entity, Label<'_>),
        entity: Entity,
        tracker: &mut Tracker,
        family: Family,
        event: Option<AnnounceEvent>,
        failure: &Failure,
    ) {
        let Failure {
            reason,
            retry,
            is_unreachable,
        } = failure;
        let reason: &Arc<str> = &without_secrets(reason, &tracker.url).into();
        let route = tracker.route_mut(family);
        // The tracker has not registered us, so `started` is sent again.
        route.was_started &= event != Some(AnnounceEvent::Started);
        route.failures += 1;
        let limits = &self.settings.trackers;
        let wait = wait_after(failure, route.failures, limits);
        route.next_announce = self.clock.now() + wait;
        route.status = match retry {
            // BEP 31: the tracker asks not to be contacted again.
            Retry::Never => TrackerStatus::Disabled(reason.clone()),
            _ => TrackerStatus::Failed(reason.clone()),
        };
        if *is_unreachable {
            tracing::debug!(torrent = %label, tracker = %redacted(&tracker.url), ?family, %reason, "unreachable");
            return;
        }
        tracing::warn!(
            torrent = %label,
            tracker = %redacted(&tracker.url),
            %reason,
            retry_in = ?wait,
            "announce failed"
        );
        let (tracker, reason) = (entity, reason.clone());
        self.failed.write(TrackerFailed {
            torrent,
            tracker,
            reason,
        });
    }
}

/// Times between announces to a tracker.
#[derive(Debug, PartialEq, Eq)]
struct Intervals {
    /// Interval of regular announces.
    regular: Duration,
    /// Interval while peers are needed.
    least: Duration,
}

impl Intervals {
    /// Limits a tracker's intervals at both ends, so that announces are neither continuous nor absent (Fault 53).
    fn of(reply: &AnnounceResponse, limits: &TrackerSettings) -> Self {
        let least = seconds(limits.min_interval_s);
        let most = seconds(limits.max_interval_s).max(least);
        let least = reply.min_interval.unwrap_or_default().clamp(least, most);
        Self {
            regular: reply.interval.clamp(least, most),
            least,
        }
    }
}

/// Returns the wait after a failed announce, the last of `failures` in a row.
fn wait_after(failure: &Failure, failures: u32, limits: &TrackerSettings) -> Duration {
    let least = seconds(limits.backoff_s);
    match failure.retry {
        // The settings may make the minimum wait longer than the maximum.
        Retry::After(wait) => wait.clamp(least, seconds(limits.max_interval_s).max(least)),
        _ if failure.is_unreachable => UNREACHABLE_WAIT,
        _ => backoff(failures, limits),
    }
}

/// Wait after a failure, doubled with each failure in a row.
fn backoff(failures: u32, limits: &TrackerSettings) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (seconds(limits.backoff_s) * 2u32.pow(doublings)).min(seconds(limits.max_backoff_s))
}
