//! The user's control over trackers: edits, and announces on request.
//!
//! An edit is checked, applied, saved, and answered, in this order; if it cannot be saved, it is undone.

use std::collections::BTreeMap;
use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::commands::{
    AnnounceTorrent, CommandQueue, EditTrackers, EditTrackersError, Reply, TorrentNotFound,
};
use ecs_torrent_components::messages::{SessionLoaded, TrackersEdited};
use ecs_torrent_components::session::SessionTracker;
use ecs_torrent_components::torrent::{Have, Torrent, TorrentIndex, TrackerOf};
use ecs_torrent_components::tracker::{EditedTrackers, Tracker, TrackerTiers};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::metainfo::MetainfoLimits;
use ecs_torrent_protocol::tracker::tiers::Tiers;
use ecs_torrent_protocol::tracker::{is_named_by, redacted, typed};
use ecs_torrent_protocol::urls::check_tracker;

use super::policy::{self, Advance, AnnounceParams, Extender};
use crate::AnnounceSet;
use crate::conditions::has_commands;
use crate::durable::{DurableChanges, SettleChanges, TakeChanges, has_changes};

/// Edits trackers, and announces, at the request of users.
pub struct TrackerControlPlugin;

impl Plugin for TrackerControlPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<CommandQueue<EditTrackers>>()
            .init_resource::<CommandQueue<AnnounceTorrent>>()
            .init_resource::<DurableChanges<TrackersEdit>>()
            .add_observer(restore_edit)
            .add_systems(
                Tick,
                (
                    (settle_edits, take_edits)
                        .chain()
                        .run_if(has_changes::<EditTrackers, TrackersEdit>),
                    announce_requested.run_if(has_commands::<AnnounceTorrent>),
                )
                    .chain()
                    .after(policy::announce_stops)
                    .before(policy::announce_due)
                    .in_set(AnnounceSet::Trackers),
            );
    }
}

/// Announce URLs by tier.
type Urls = Vec<Vec<Arc<str>>>;

/// An edit that is being saved.
#[derive(Debug)]
struct TrackersEdit {
    /// The trackers before, in case the new ones cannot be saved.
    before: Urls,
    /// Whether the trackers had been edited before.
    was_edited: bool,
    reply: Reply<Result<(), EditTrackersError>>,
}

/// Checks and applies edits, and saves their torrents.
fn take_edits(
    mut queue: ResMut<CommandQueue<EditTrackers>>,
    mut edits: ResMut<DurableChanges<TrackersEdit>>,
    mut taking: TakeChanges,
    mut editor: Editor,
    torrents: Query<(&Torrent, Has<EditedTrackers>)>,
) {
    let refuse = |command: EditTrackers, error| command.reply.send(Err(EditTrackersError::NotFound(error)));
    for (entity, command) in taking.take(&mut queue, &edits, refuse) {
        let Ok((torrent, was_edited)) = torrents.get(entity) else {
            continue;
        };
        if edits.has(entity) {
            // An edit of this tick comes first.
            queue.0.push_back(command);
            continue;
        }
        let before = editor.urls(entity);
        let after = match check(&command, torrent, &before) {
            Ok(after) => after,
            Err(error) => {
                command.reply.send(Err(error));
                continue;
            }
        };
        tracing::info!(torrent = %torrent.label(), "trackers edited");
        editor.apply(entity, &after, true);
        let edit = TrackersEdit {
            before,
            was_edited,
            reply: command.reply,
        };
        taking.save(entity, edit, &mut edits);
    }
}

/// Checks an edit, and returns the trackers after it.
fn check(command: &EditTrackers, torrent: &Torrent, before: &Urls) -> Result<Urls, EditTrackersError> {
    if torrent.has_fixed_trackers() {
        return Err(EditTrackersError::Private(torrent.name.clone()));
    }
    let mut after = before.clone();
    for url in &command.remove {
        let removed = find_tracker(&after, url, torrent)?;
        after.iter_mut().for_each(|tier| tier.retain(|known| *known != removed));
    }
    for tier in &command.add {
        let mut added: Vec<Arc<str>> = Vec::new();
        for url in tier {
            check_tracker(url).map_err(|error| EditTrackersError::BadUrl { url: typed(url), error })?;
            let is_known = after.iter().flatten().chain(&added).any(|known| **known == **url);
            if !is_known {
                added.push(url.as_str().into());
            }
            let max = MetainfoLimits::default().max_urls;
            if after.iter().flatten().count() + added.len() > max {
                return Err(EditTrackersError::TooMany {
                    torrent: torrent.name.clone(),
                    max,
                });
            }
        }
        after.push(added);
    }
    after.retain(|tier| !tier.is_empty());
    Ok(after)
}

/// Returns the only tracker that a user means by a URL. A whole URL names one tracker, whatever others it could stand
/// for.
fn find_tracker(urls: &Urls, url: &str, torrent: &Torrent) -> Result<Arc<str>, EditTrackersError> {
    let all = || urls.iter().flatten();
    let named: Vec<&Arc<str>> = match all().find(|known| ***known == *url) {
        Some(exact) => vec![exact],
        None => all().filter(|known| is_named_by(known, url)).collect(),
    };
    let torrent = torrent.name.clone();
    match &named[..] {
        [] => Err(EditTrackersError::NoSuchTracker {
            torrent,
            url: typed(url),
        }),
        [one] => Ok(Arc::clone(one)),
        several => Err(EditTrackersError::Ambiguous {
            torrent,
            url: redacted(url),
            count: several.len(),
        }),
    }
}

/// Answers edits that are durable, and undoes those that cannot be saved.
fn settle_edits(mut edits: ResMut<DurableChanges<TrackersEdit>>, mut settling: SettleChanges, mut editor: Editor) {
    for (torrent, edit, result) in settling.take_ended(&mut edits) {
        if result.is_err() {
            editor.apply(torrent, &edit.before, edit.was_edited);
        }
        edit.reply.send(result.map_err(EditTrackersError::Unsaved));
    }
}

/// Restores the trackers that the user edited in an earlier run. A private torrent has only those of its metainfo.
fn restore_edit(loaded: On<SessionLoaded>, mut editor: Editor, torrents: Query<&Torrent>) {
    let is_fixed = torrents.get(loaded.torrent).is_ok_and(Torrent::has_fixed_trackers);
    if !loaded.session.are_trackers_edited || is_fixed {
        return;
    }
    let saved = loaded.session.trackers.iter().take(MetainfoLimits::default().max_urls);
    let tiers = saved.collect::<Vec<_>>();
    let tiers = tiers.chunk_by(|one, other| one.tier == other.tier);
    let url = |tracker: &&SessionTracker| tracker.url.as_str().into();
    let urls: Urls = tiers.map(|tier| tier.iter().map(url).collect()).collect();
    editor.apply(loaded.torrent, &urls, true);
}

/// Parameters for replacing a torrent's trackers.
#[derive(SystemParam)]
struct Editor<'w, 's> {
    commands: Commands<'w, 's>,
    params: AnnounceParams<'w, 's>,
    extender: Extender<'w, 's>,
    torrents: Query<'w, 's, (&'static mut TrackerTiers, Option<&'static Have>)>,
}

impl Editor<'_, '_> {
    /// Returns a torrent's trackers, by tier.
    fn urls(&self, torrent: Entity) -> Urls {
        let url = |tracker: &Entity| Some(self.params.tracker(*tracker)?.url.clone());
        let tiers = self
            .torrents
            .get(torrent)
            .into_iter()
            .flat_map(|(tiers, _)| tiers.0.tiers());
        tiers.map(|tier| tier.iter().filter_map(url).collect()).collect()
    }

    /// Replaces a torrent's trackers. Trackers that stay keep their state; trackers that are removed get `stopped`.
    fn apply(&mut self, torrent: Entity, urls: &Urls, are_edited: bool) {
        let Ok((mut tiers, have)) = self.torrents.get_mut(torrent) else {
            return;
        };
        let is_complete = have.is_some_and(|have| have.is_full());
        let mut known: BTreeMap<Arc<str>, Entity> = BTreeMap::new();
        for entity in tiers.0.iter() {
            if let Some(tracker) = self.params.tracker(entity) {
                known.insert(tracker.url.clone(), entity);
            }
        }
        let mut ordered = Tiers::default();
        for tier in urls {
            let place = |url: &Arc<str>| {
                let new = || (Tracker::given(url, is_complete), TrackerOf(torrent));
                known.remove(url).unwrap_or_else(|| self.commands.spawn(new()).id())
            };
            ordered.push(tier.iter().map(place).collect(), |_| {});
        }
        for gone in known.into_values() {
            self.params.announce_removed(torrent, gone);
            self.commands.entity(gone).despawn();
        }
        tiers.0 = ordered;
        let params = &self.params;
        self.extender.extend(torrent, &tiers, |tracker, family| {
            params
                .tracker(tracker)
                .is_some_and(|tracker| tracker.route(family).is_in_use())
        });
        match are_edited {
            true => self.commands.entity(torrent).insert(EditedTrackers),
            false => self.commands.entity(torrent).remove::<EditedTrackers>(),
        };
        self.commands.trigger(TrackersEdited { torrent });
    }
}

/// Announces torrents as early as their trackers allow.
fn announce_requested(
    mut queue: ResMut<CommandQueue<AnnounceTorrent>>,
    index: Res<TorrentIndex>,
    mut advance: Advance,
    torrents: Query<&Torrent>,
) {
    for AnnounceTorrent { torrent, reply } in queue.0.drain(..) {
        let listed = index
            .get(torrent)
            .and_then(|entity| Some((entity, torrents.get(entity).ok()?)));
        let Some((entity, data)) = listed else {
            reply.send(Err(TorrentNotFound(torrent).into()));
            continue;
        };
        reply.send(advance.announce_early(entity, &data.name));
    }
}
