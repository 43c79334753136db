//! Scrapes on demand (BEP 48, BEP 15): trackers are tried in turn until one answers.

use std::collections::VecDeque;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{CommandQueue, Reply as Answered, ScrapeError, ScrapeTorrent, TorrentNotFound};
use ecs_torrent_components::torrent::{Torrent, TorrentIndex};
use ecs_torrent_components::tracker::{Tracker, TrackerTiers};
use ecs_torrent_engine::ports::net::LocalAddresses;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::tracker::ScrapeCounts;

use super::{Answers, OutgoingRequests, Reply, RequestKind, TrackerRequest, http, policy};
use crate::AnnounceSet;
use crate::conditions::has_commands;

/// Scrapes trackers on demand.
pub struct ScrapePlugin;

impl Plugin for ScrapePlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<Scrapes>()
            .init_resource::<CommandQueue<ScrapeTorrent>>()
            .add_systems(
                Tick,
                (
                    take_answers
                        .after(policy::take_answers)
                        .before(policy::begin_announcing),
                    begin_scrapes
                        .run_if(has_commands::<ScrapeTorrent>)
                        .after(policy::announce_due)
                        .before(http::send_http_requests),
                )
                    .in_set(AnnounceSet::Trackers),
            );
    }
}

/// Scrapes that wait for a tracker.
#[derive(Resource, Debug, Default)]
pub(super) struct Scrapes {
    waiting: Vec<Scrape>,
}

#[derive(Debug)]
struct Scrape {
    info_hash: InfoHash,
    asking: (Entity, Family),
    next: VecDeque<(Entity, Family)>,
    reply: Answered<Result<ScrapeCounts, ScrapeError>>,
}

pub(super) fn begin_scrapes(
    mut commands: ResMut<CommandQueue<ScrapeTorrent>>,
    index: Res<TorrentIndex>,
    local: Res<LocalAddresses>,
    mut scrapes: ResMut<Scrapes>,
    mut outgoing: ResMut<OutgoingRequests>,
    torrents: Query<(&Torrent, &TrackerTiers)>,
    trackers: Query<&Tracker>,
) {
    for ScrapeTorrent { torrent, reply } in commands.0.drain(..) {
        let Some(Ok((data, tiers))) = index.get(torrent).map(|entity| torrents.get(entity)) else {
            reply.send(Err(TorrentNotFound(torrent).into()));
            continue;
        };
        let families: Vec<Family> = local.0.iter().map(|address| Family::of(address.ip())).collect();
        let each = |tracker| families.iter().map(move |family| (tracker, *family));
        let mut next: VecDeque<(Entity, Family)> = tiers.0.iter().flat_map(each).collect();
        let Some(asking) = next.pop_front() else {
            reply.send(Err(ScrapeError::NoTracker("it has none".into())));
            continue;
        };
        let info_hash = data.id();
        send_scrape(&mut outgoing, &trackers, asking, info_hash);
        scrapes.waiting.push(Scrape {
            info_hash,
            asking,
            next,
            reply,
        });
    }
}

fn send_scrape(
    outgoing: &mut OutgoingRequests,
    trackers: &Query<&Tracker>,
    (tracker, family): (Entity, Family),
    hash: InfoHash,
) {
    if let Ok(data) = trackers.get(tracker) {
        outgoing.send(TrackerRequest {
            tracker,
            family,
            url: data.url.clone(),
            kind: RequestKind::Scrape(hash),
        });
    }
}

pub(super) fn take_answers(
    mut answers: ResMut<Answers>,
    mut scrapes: ResMut<Scrapes>,
    mut outgoing: ResMut<OutgoingRequests>,
    mut trackers: ParamSet<(Query<&Tracker>, Query<&mut Tracker>)>,
) {
    for answer in answers.scrapes.drain(..) {
        let answered = (answer.tracker, answer.family);
        let Some(position) = scrapes.waiting.iter().position(|scrape| scrape.asking == answered) else {
            continue;
        };
        match answer.result {
            Ok(Reply::Scrape(counts)) => {
                if let Ok(mut tracker) = trackers.p1().get_mut(answer.tracker) {
                    tracker.seeders = Some(counts.seeders);
                    tracker.leechers = Some(counts.leechers);
                    tracker.completed = Some(counts.completed);
                }
                scrapes.waiting.swap_remove(position).reply.send(Ok(counts));
            }
            Ok(Reply::Announce(..)) => {}
            Err(failure) => match scrapes.waiting[position].next.pop_front() {
                Some(next) => {
                    scrapes.waiting[position].asking = next;
                    send_scrape(&mut outgoing, &trackers.p0(), next, scrapes.waiting[position].info_hash);
                }
                None => {
                    let error = ScrapeError::NoTracker(failure.reason.to_string());
                    scrapes.waiting.swap_remove(position).reply.send(Err(error));
                }
            },
        }
    }
}
