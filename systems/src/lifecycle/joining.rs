//! Adds of torrents that are listed already. Such an add brings trackers and labels; a torrent without metadata takes
//! its metadata and its options, and a failed torrent is tried again with its options.

use bevy_ecs::entity::EntityHashSet;
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::commands::{AddError, AddOptions, TorrentSource};
use ecs_torrent_components::labels::Labels;
use ecs_torrent_components::lifecycle::ChangedFacts;
use ecs_torrent_components::messages::{CheckSkipped, FilesSelected, HintsGiven, LabelsGiven, TrackersGiven};
use ecs_torrent_components::names::NewNames;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Lifecycle, RequiresComplete};
use ecs_torrent_components::tracker::Tracker;

use super::adds::Adds;
use super::failing::Restarts;
use super::metadata::{Completer, Listed, ListedItem};
use super::naming::{self, renamed};
use super::opening::{Opener, Opening, is_undecided};
use crate::sessions::{OptionsGiven, SaveTorrent};

/// Parameters for adds of listed torrents.
#[derive(SystemParam)]
pub(super) struct Joiner<'w, 's> {
    commands: Commands<'w, 's>,
    settings: Res<'w, Settings>,
    opener: Opener<'w>,
    trackers: Query<'w, 's, &'static Tracker>,
    labels: Query<'w, 's, &'static Labels>,
}

/// Carries out adds of torrents that are listed already. A caller is answered at once if its add changes nothing that
/// has to be saved, or else when that is durable.
pub(super) fn join_listed(
    mut adds: ResMut<Adds>,
    mut joiner: Joiner,
    mut completer: Completer,
    mut torrents: Query<Listed>,
) {
    let mut completed = EntityHashSet::default();
    for (entity, command) in std::mem::take(&mut adds.joins) {
        let Ok(mut listed) = torrents.get_mut(entity) else {
            adds.await_listed(entity, command.reply);
            continue;
        };
        let has_metadata = listed.content.is_some() || completed.contains(&entity);
        let is_retried = listed.has_failed() && !command.is_resumed;
        let options = &command.options;
        let mut is_changed = match joiner.give_labels(entity, &options.labels) {
            Ok(is_changed) => is_changed,
            Err(error) => {
                command.reply.send(Err(error));
                continue;
            }
        };
        is_changed |= joiner.give_trackers(&listed, has_metadata, &command.source);
        if !has_metadata {
            is_changed |= joiner.give_hints(&listed, &command.source);
        }
        if is_retried || !has_metadata {
            is_changed |= joiner.apply(&mut listed, options, is_retried);
        }
        if is_changed {
            listed.state.record_addition();
        }
        if let (TorrentSource::Metainfo(metainfo), false) = (command.source, has_metadata) {
            let known = listed.state.names();
            let names = NewNames {
                name: options.name.clone().or(known.name),
                ..known
            };
            let metainfo = names.apply(&metainfo);
            completed.insert(entity);
            completer.complete(&mut joiner.commands, &mut listed, metainfo);
        }
        if is_retried {
            joiner.retry(&mut listed, &mut completer.changed, options);
        } else if !listed.state.has_saved_additions() {
            completer.save.write(SaveTorrent { torrent: entity });
        }
        let is_over = !is_retried
            && listed.state.is_durable()
            && !is_undecided(listed.lifecycle, has_metadata, listed.opening.as_deref())
            && !adds.is_pending(entity);
        match is_over {
            true => command.reply.send(Ok(listed.torrent.id())),
            false => adds.await_listed(entity, command.reply),
        }
    }
}

impl ListedItem<'_, '_> {
    /// Whether the torrent has failed for good, so that another add is a new try.
    fn has_failed(&self) -> bool {
        matches!(self.lifecycle, Lifecycle::Failed { retry_at: None, .. })
    }
}

impl Joiner<'_, '_> {
    /// Gives a torrent the trackers that it does not have yet. A private torrent keeps its own (BEP 27). Returns
    /// whether there are any.
    fn give_trackers(&mut self, listed: &ListedItem<'_, '_>, has_metadata: bool, source: &TorrentSource) -> bool {
        let known = || self.trackers.iter_many(listed.tiers.0.iter()).flatten();
        let is_known = |url: &String| known().any(|tracker| *tracker.url == **url);
        let is_fixed = has_metadata && listed.torrent.has_fixed_trackers();
        if is_fixed || source.trackers().iter().flatten().all(is_known) {
            return false;
        }
        self.commands.trigger(TrackersGiven {
            torrent: listed.entity,
            tiers: source.trackers().clone(),
        });
        true
    }

    /// Gives a torrent the labels that it does not have yet, and the category. Returns whether they change anything.
    fn give_labels(&mut self, torrent: Entity, given: &Labels) -> Result<bool, AddError> {
        let known = self.labels.get(torrent).cloned().unwrap_or_default();
        let labels = known.merged(given);
        if labels == known {
            return Ok(false);
        }
        labels.check(self.settings.labels.bounds())?;
        self.commands.trigger(LabelsGiven { torrent, labels });
        Ok(true)
    }

    /// Gives a torrent without metadata the hints of another link. Returns whether any of them is new.
    fn give_hints(&mut self, listed: &ListedItem<'_, '_>, source: &TorrentSource) -> bool {
        let Some(hints) = source.hints() else { return false };
        let is_new = listed
            .hints
            .map(|known| known.0.clone())
            .unwrap_or_default()
            .merge(hints);
        if is_new {
            let (torrent, hints) = (listed.entity, hints.clone());
            self.commands.trigger(HintsGiven { torrent, hints });
        }
        is_new
    }

    /// Applies the options to a torrent whose files are not examined yet. Returns whether they change anything.
    fn apply(&mut self, listed: &mut ListedItem<'_, '_>, options: &AddOptions, is_retried: bool) -> bool {
        let root = naming::root_of(options, &self.settings);
        let has_moved = root.as_ref().is_some_and(|root| *root != listed.storage.root);
        if let Some(root) = root {
            listed.storage.root = root;
            if let Some(opening) = &mut listed.opening {
                opening.has_root = true;
            }
        }
        if let Some(name) = &options.name {
            if let Some(content) = &mut listed.content {
                content.0 = renamed(&content.0, name);
            }
            listed.torrent.name = name.as_str().into();
        }
        if options.require_complete {
            self.commands.entity(listed.entity).insert(RequiresComplete);
        }
        if options.skip_checking {
            self.commands.trigger(CheckSkipped { torrent: listed.entity });
        }
        if options.has_choice() {
            self.commands.trigger(FilesSelected {
                torrent: listed.entity,
                selection: options.select.clone(),
                order: options.order,
            });
        }
        let is_selected = options.has_choice() || options.skip_checking;
        let is_changed =
            has_moved || is_selected || options.name.is_some() || options.overwrite || options.require_complete;
        // The permission of an earlier add stays in force while the files are not known.
        if is_changed || is_retried {
            self.commands.trigger(OptionsGiven {
                torrent: listed.entity,
                name: options.name.clone(),
                overwrite: options.overwrite || (!is_retried && listed.state.wants_overwrite()),
                overwrite_ns: match options.overwrite {
                    true => options.requested_ns,
                    false => listed.state.overwrite_ns(),
                },
                has_moved,
                is_paused: false,
            });
        }
        is_changed && !is_retried
    }

    /// Tries a failed torrent again.
    fn retry(&mut self, listed: &mut ListedItem<'_, '_>, changed: &mut ChangedFacts, options: &AddOptions) {
        if listed.fault.0.take().is_some() {
            changed.add(listed.entity);
            self.opener.load(listed.entity, &listed.torrent);
        }
        let mut torrent = self.commands.entity(listed.entity);
        torrent.insert(Opening::renewed()).remove::<Restarts>();
        if !options.require_complete {
            torrent.remove::<RequiresComplete>();
        }
    }
}
