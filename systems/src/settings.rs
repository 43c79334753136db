//! Settings that users change at run time: checked as a whole, saved, applied, and answered, in this order.
//!
//! The changes are one blob in the state folder. The next start reads it before anything is built from the settings,
//! and applies it on top of the configuration ([`SettingLayers`]). Changes that arrive during a save are saved
//! together.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{CommandQueue, Reply};
use ecs_torrent_components::settings::{
    ChangeError, ChangeSettings, ChangedSettings, EditBlocked, SettingChanges, SettingLayers, Settings,
    SettingsChanged, SettingsPatch,
};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::StatePort;
use ecs_torrent_engine::ports::state::{StateEvent, StateRequest, settings_blob};
use ecs_torrent_engine::purpose;
use ecs_torrent_engine::schedule::Tick;

use crate::IntakeSet;

/// Changes settings at run time.
pub struct SettingsPlugin;

impl Plugin for SettingsPlugin {
    fn build(&self, app: &mut App) {
        let world = app.world_mut();
        if !world.contains_resource::<SettingLayers>() {
            // The runner and the simulator replace these by layers with the saved changes.
            let settings = world.get_resource::<Settings>().cloned().unwrap_or_default();
            world.insert_resource(SettingLayers::new(settings, SettingChanges::default()).0);
        }
        app.init_resource::<CommandQueue<ChangeSettings>>()
            .init_resource::<CommandQueue<EditBlocked>>()
            .init_resource::<SavedChanges>()
            .add_systems(Tick, change_settings.run_if(has_changes).in_set(IntakeSet::Settings));
    }
}

const SETTINGS: Purpose = purpose!("save changes of settings");

/// The changes that are being saved, and the callers that wait for it.
#[derive(Resource, Debug, Default)]
struct SavedChanges(Option<(SettingChanges, Vec<Change>)>);

/// A command that is being carried out.
#[derive(Debug)]
struct Change {
    patch: SettingsPatch,
    reply: Reply<Result<ChangedSettings, ChangeError>>,
}

fn has_changes(
    queue: Res<CommandQueue<ChangeSettings>>,
    edits: Res<CommandQueue<EditBlocked>>,
    state: Res<StatePort>,
) -> bool {
    !queue.0.is_empty() || !edits.0.is_empty() || state.has_events_for(SETTINGS)
}

/// The changes that are saved together.
struct Batch<'l> {
    layers: &'l SettingLayers,
    changes: SettingChanges,
    waiting: Vec<Change>,
}

impl Batch<'_> {
    fn take(&mut self, patch: SettingsPatch, reply: Reply<Result<ChangedSettings, ChangeError>>) {
        match self.layers.patched(&self.changes, &patch) {
            Ok(patched) => {
                self.changes = patched;
                self.waiting.push(Change { patch, reply });
            }
            Err(error) => reply.send(Err(error)),
        }
    }

    /// Takes an edit of the blocked networks. It is applied to the changes before it.
    fn edit(&mut self, EditBlocked { edit, reply }: EditBlocked) {
        let now = self.layers.configured.with(&self.changes);
        match now.and_then(|now| edit.apply(&now.peers.blocked)) {
            Ok(blocked) => {
                let value = serde_json::to_value(&blocked).unwrap_or_default();
                let answer = |result: Result<_, _>| reply.send(result.map(|_: ChangedSettings| blocked));
                self.take(SettingsPatch::default().set("peers.blocked", value), Reply::new(answer));
            }
            Err(error) => reply.send(Err(error)),
        }
    }
}

fn change_settings(
    mut commands: Commands,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    mut state: ResMut<StatePort>,
    (mut queue, mut edits): (ResMut<CommandQueue<ChangeSettings>>, ResMut<CommandQueue<EditBlocked>>),
    mut saved: ResMut<SavedChanges>,
    mut layers: ResMut<SettingLayers>,
    mut settings: ResMut<Settings>,
) {
    for StateEvent { outcome, .. } in state.take(SETTINGS) {
        let Some((changes, waiting)) = saved.0.take() else {
            continue;
        };
        match outcome {
            Ok(_) => {
                let names = layers.apply(changes, &mut settings);
                if !names.is_empty() {
                    tracing::info!(settings = names.join(", "), "settings changed");
                    commands.trigger(SettingsChanged { names });
                }
                let needs_restart = layers.needs_restart();
                waiting.into_iter().for_each(|change| change.answer(&needs_restart));
            }
            Err(error) => {
                let error = ChangeError::Unsaved(error.to_string());
                let refuse = |change: Change| change.reply.send(Err(error.clone()));
                waiting.into_iter().for_each(refuse);
            }
        }
    }
    if saved.0.is_some() || (queue.0.is_empty() && edits.0.is_empty()) {
        return;
    }
    let mut batch = Batch {
        layers: &layers,
        changes: layers.changes.clone(),
        waiting: Vec::new(),
    };
    for ChangeSettings { patch, reply } in queue.0.drain(..) {
        batch.take(patch, reply);
    }
    edits.0.drain(..).for_each(|edit| batch.edit(edit));
    let Batch { changes, waiting, .. } = batch;
    if waiting.is_empty() {
        return;
    }
    let bytes = serde_json::to_vec_pretty(&changes).unwrap_or_default();
    let (tag, name) = (JobTag::new(SETTINGS, Entity::PLACEHOLDER), settings_blob());
    state.push(StateRequest::SaveBlob {
        tag,
        name,
        bytes: bytes.into(),
    });
    saved.0 = Some((changes, waiting));
    wakeup.at(clock.now());
}

impl Change {
    fn answer(self, needs_restart: &[String]) {
        let Self { patch, reply } = self;
        let own = |name: &&String| patch.0.contains_key(*name);
        let needs_restart = needs_restart.iter().filter(own).cloned().collect();
        reply.send(Ok(ChangedSettings { needs_restart }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use ecs_torrent_engine::ports::state::{StateDone, StateError};

    use super::*;
    use crate::testing::Bed;

    type Answers = Receiver<Result<ChangedSettings, ChangeError>>;

    fn send(bed: &mut Bed, name: &str, value: u64) -> Answers {
        let (sender, receiver) = channel();
        let patch = SettingsPatch::default().set(name, value);
        let reply = Reply::new(move |answer| sender.send(answer).unwrap());
        let mut queue = bed.world.resource_mut::<CommandQueue<ChangeSettings>>();
        queue.0.push_back(ChangeSettings { patch, reply });
        receiver
    }

    /// Runs the system with the answer of the state folder. Returns whether a save was requested.
    fn run(bed: &mut Bed, outcome: Option<Result<StateDone, StateError>>) -> bool {
        let tag = JobTag::new(SETTINGS, Entity::PLACEHOLDER);
        let events = outcome.map(|outcome| StateEvent { tag, outcome });
        bed.open_port::<StateRequest, StateEvent>(events.into_iter().collect());
        bed.run(change_settings);
        !bed.world.resource::<StatePort>().outgoing().is_empty()
    }

    fn slots(bed: &Bed) -> usize {
        bed.world.resource::<Settings>().uploads.slots
    }

    /// A change is in force and answered when it is durable, and a change that arrives meanwhile is not lost.
    #[test]
    fn changes_are_saved_then_applied_then_answered() {
        let mut bed = Bed::new(SettingsPlugin);
        let first = send(&mut bed, "uploads.slots", 3);
        assert!(run(&mut bed, None) && slots(&bed) == 8 && first.try_recv().is_err());
        let second = send(&mut bed, "uploads.slots", 4);
        assert!(!run(&mut bed, None), "one save at a time");
        assert!(run(&mut bed, Some(Ok(StateDone::Saved))));
        assert!(slots(&bed) == 3 && first.try_recv().unwrap().is_ok() && second.try_recv().is_err());
        run(&mut bed, Some(Ok(StateDone::Saved)));
        assert!(slots(&bed) == 4 && second.try_recv().unwrap().is_ok());
    }

    #[test]
    fn changes_that_cannot_be_saved_are_not_in_force() {
        let mut bed = Bed::new(SettingsPlugin);
        let answers = [send(&mut bed, "uploads.slots", 3), send(&mut bed, "uploads.slot", 3)];
        assert!(run(&mut bed, None));
        assert!(matches!(answers[1].try_recv().unwrap(), Err(ChangeError::Unknown(_))));
        assert!(!run(&mut bed, Some(Err(StateError("full".into())))));
        let error = answers[0].try_recv().unwrap().unwrap_err();
        assert!(error.to_string().contains("full"));
        assert_eq!(slots(&bed), 8);
        assert_eq!(bed.world.resource::<SettingLayers>().changes, SettingChanges::default());
    }
}
