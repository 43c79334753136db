//! The user's control over trackers: edits, and announces on request.
//!
//! An edit is checked, applied, saved, and answered, in this order; if it cannot be saved, it is undone.

use std::collections::BTreeMap;
use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{
    AboutTorrent, AnnounceTorrent, CommandQueue, EditTrackers, EditTrackersError, Reply, TorrentNotFound, Unsaved,
};
use ecs_torrent_components::lifecycle::Desired;
use ecs_torrent_components::messages::{SessionLoaded, TrackersEdited};
use ecs_torrent_components::session::SessionTracker;
use ecs_torrent_components::torrent::{Have, Torrent, TorrentIndex, TrackerOf};
use ecs_torrent_components::tracker::{EditedTrackers, Tracker, TrackerTiers};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::metainfo::MetainfoLimits;
use ecs_torrent_protocol::tracker::redacted;
use ecs_torrent_protocol::tracker::tiers::Tiers;
use ecs_torrent_protocol::urls::check_tracker;

use super::policy::{self, Advance, AnnounceParams, Extender};
use crate::AnnounceSet;
use crate::conditions::has_commands;
use crate::lifecycle::Adds;
use crate::sessions::{SaveTorrent, SessionState, SessionWritten};

/// Edits trackers, and announces, when the user asks for it.
pub struct TrackerControlPlugin;

impl Plugin for TrackerControlPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<CommandQueue<EditTrackers>>()
            .init_resource::<CommandQueue<AnnounceTorrent>>()
            .init_resource::<Edits>()
            .add_observer(restore_edit)
            .add_systems(
                Tick,
                (
                    (settle_edits, take_edits).chain().run_if(has_edits),
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

/// Edits that are being saved, by torrent.
#[derive(Resource, Debug, Default)]
struct Edits(EntityHashMap<Edit>);

/// An edit that is being saved.
#[derive(Debug)]
struct Edit {
    /// The trackers before, in case the new ones cannot be saved.
    before: Urls,
    /// Whether they had been edited.
    was_edited: bool,
    reply: Reply<Result<(), EditTrackersError>>,
}

/// Returns whether trackers are to be edited, or are being saved.
fn has_edits(queue: Res<CommandQueue<EditTrackers>>, edits: Res<Edits>) -> bool {
    !queue.0.is_empty() || !edits.0.is_empty()
}

/// The parts of a torrent that an edit reads and writes.
type Edited = (
    &'static Torrent,
    &'static Desired,
    Has<EditedTrackers>,
    &'static mut SessionState,
);

/// Checks and applies edits, and saves their torrents.
fn take_edits(
    mut queue: ResMut<CommandQueue<EditTrackers>>,
    index: Res<TorrentIndex>,
    adds: Res<Adds>,
    mut edits: ResMut<Edits>,
    mut save: MessageWriter<SaveTorrent>,
    mut editor: Editor,
    mut torrents: Query<Edited>,
) {
    let is_leaving = |entity| torrents.get(entity).is_ok_and(|(_, desired, ..)| desired.is_leaving());
    let decided = adds.take_decided(&mut queue, &index, is_leaving);
    for (command, listed) in decided {
        let Some(entity) = listed else {
            let error = TorrentNotFound(command.torrent());
            command.reply.send(Err(error.into()));
            continue;
        };
        let Ok((torrent, desired, was_edited, mut state)) = torrents.get_mut(entity) else {
            // The torrent was added in this very tick.
            queue.0.push_back(command);
            continue;
        };
        if desired.is_leaving() {
            let error = TorrentNotFound(command.torrent());
            command.reply.send(Err(error.into()));
            continue;
        }
        if !state.is_loaded() || edits.0.contains_key(&entity) {
            // Its session is being loaded, or another edit is being saved.
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
        tracing::info!(torrent = %torrent.label(), "its trackers were edited");
        editor.apply(entity, &after, true);
        state.record_addition();
        save.write(SaveTorrent { torrent: entity });
        let edit = Edit {
            before,
            was_edited,
            reply: command.reply,
        };
        edits.0.insert(entity, edit);
    }
}

/// Checks an edit, and returns the trackers after it.
fn check(command: &EditTrackers, torrent: &Torrent, before: &Urls) -> Result<Urls, EditTrackersError> {
    if torrent.private {
        return Err(EditTrackersError::Private(torrent.name.clone()));
    }
    let mut after = before.clone();
    for url in &command.remove {
        let is_other = |known: &Arc<str>| **known != **url && redacted(known) != *url;
        let count = after.iter().map(Vec::len).sum::<usize>();
        after.iter_mut().for_each(|tier| tier.retain(is_other));
        if after.iter().map(Vec::len).sum::<usize>() == count {
            return Err(EditTrackersError::NoSuchTracker {
                torrent: torrent.name.clone(),
                url: redacted(url),
            });
        }
    }
    for tier in &command.add {
        let mut added: Vec<Arc<str>> = Vec::new();
        for url in tier {
            check_tracker(url).map_err(|error| EditTrackersError::BadUrl {
                url: redacted(url),
                error,
            })?;
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

/// Answers edits that are durable, and undoes those that cannot be saved.
fn settle_edits(
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    mut written: MessageReader<SessionWritten>,
    mut edits: ResMut<Edits>,
    mut editor: Editor,
    torrents: Query<(&Torrent, &SessionState)>,
) {
    for SessionWritten { torrent, result } in written.read() {
        let Ok((data, state)) = torrents.get(*torrent) else {
            continue;
        };
        // An earlier save has ended, and the one of the edit follows.
        if result.is_ok() && !state.has_saved_additions() {
            continue;
        }
        let Some(edit) = edits.0.remove(torrent) else {
            continue;
        };
        // Another edit may wait for this one.
        wakeup.at(clock.now());
        let answer = result.clone().map_err(|reason| {
            editor.apply(*torrent, &edit.before, edit.was_edited);
            EditTrackersError::Unsaved(Unsaved::new(&data.name, &reason))
        });
        edit.reply.send(answer);
    }
    // A torrent that was stopped was saved with the edit.
    let gone: Vec<Entity> = edits
        .0
        .keys()
        .copied()
        .filter(|torrent| !torrents.contains(*torrent))
        .collect();
    for torrent in gone {
        if let Some(edit) = edits.0.remove(&torrent) {
            edit.reply.send(Ok(()));
        }
    }
}

/// Restores the trackers that the user edited in an earlier run. A private torrent has only those of its metainfo.
fn restore_edit(loaded: On<SessionLoaded>, mut editor: Editor, torrents: Query<&Torrent>) {
    let is_private = torrents.get(loaded.torrent).is_ok_and(|torrent| torrent.private);
    if !loaded.session.are_trackers_edited || is_private {
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
        let trackers = self
            .torrents
            .get(torrent)
            .into_iter()
            .flat_map(|(tiers, _)| tiers.0.iter());
        let mut urls: BTreeMap<usize, Vec<Arc<str>>> = BTreeMap::new();
        for tracker in trackers.filter_map(|tracker| self.params.tracker(tracker)) {
            urls.entry(tracker.tier).or_default().push(tracker.url.clone());
        }
        urls.into_values().collect()
    }

    /// Replaces a torrent's trackers. Those that stay keep their state; those that leave are told that the torrent stops.
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
        for (number, tier) in urls.iter().enumerate() {
            let place = |url: &Arc<str>| match known.remove(url) {
                Some(entity) => {
                    self.params.move_tracker(entity, number);
                    entity
                }
                None => self
                    .commands
                    .spawn((Tracker::given(url, number, is_complete), TrackerOf(torrent)))
                    .id(),
            };
            ordered.push(tier.iter().map(place).collect(), |_| {});
        }
        for gone in known.into_values() {
            self.params.part_from(torrent, gone);
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
