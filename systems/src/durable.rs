//! Changes of torrents that are made durable before they are answered.
//!
//! A feature takes commands ([`TakeChanges`]), checks and applies them, and lets the torrent be saved. When the save
//! has ended ([`SettleChanges`]), the feature answers the callers, or undoes the change if it is not durable.
//!
//! For a command that sets one component ([`SetComponent`]), [`TakeComponents`] and [`SettleComponents`] do all of
//! that.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{AboutTorrent, CommandQueue, Reply, TorrentNotFound, Unsaved};
use ecs_torrent_components::lifecycle::Desired;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Torrent, TorrentIndex};

use crate::lifecycle::Adds;
use crate::sessions::{SaveTorrent, SessionState, SessionWritten};

/// Changes that are being saved, by torrent: at most one of each.
#[derive(Resource, Debug)]
pub(crate) struct DurableChanges<T: Send + Sync + 'static>(EntityHashMap<T>);

impl<T: Send + Sync + 'static> Default for DurableChanges<T> {
    fn default() -> Self {
        Self(EntityHashMap::default())
    }
}

impl<T: Send + Sync + 'static> DurableChanges<T> {
    /// Whether a torrent has a change that is being saved.
    pub(crate) fn has(&self, torrent: Entity) -> bool {
        self.0.contains_key(&torrent)
    }
}

/// Returns whether there are commands, or changes that are being saved.
pub(crate) fn has_changes<C: Send + Sync + 'static, T: Send + Sync + 'static>(
    queue: Res<CommandQueue<C>>,
    changes: Res<DurableChanges<T>>,
) -> bool {
    !queue.0.is_empty() || !changes.0.is_empty()
}

/// The parameters for beginning changes.
#[derive(SystemParam)]
pub(crate) struct TakeChanges<'w, 's> {
    index: Res<'w, TorrentIndex>,
    adds: Res<'w, Adds>,
    save: MessageWriter<'w, SaveTorrent>,
    torrents: Query<'w, 's, (&'static Desired, &'static mut SessionState)>,
}

impl TakeChanges<'_, '_> {
    /// Takes the commands that can be carried out now, each with its torrent. `refuse` answers those whose torrent is
    /// not listed, or leaves. A command waits while its torrent's session is being loaded, or an earlier change is
    /// being saved.
    pub(crate) fn take<C: AboutTorrent, T: Send + Sync + 'static>(
        &self,
        queue: &mut CommandQueue<C>,
        changes: &DurableChanges<T>,
        refuse: impl Fn(C, TorrentNotFound),
    ) -> Vec<(Entity, C)> {
        let is_leaving = |torrent| {
            let torrent = self.torrents.get(torrent);
            torrent.is_ok_and(|(desired, _)| desired.is_leaving())
        };
        // Also false for a torrent that was added in this very tick.
        let is_loaded = |torrent| self.torrents.get(torrent).is_ok_and(|(_, state)| state.is_loaded());
        let mut taken = Vec::new();
        for (command, listed) in self.adds.take_decided(queue, &self.index, is_leaving) {
            match listed.filter(|torrent| !is_leaving(*torrent)) {
                None => {
                    let error = TorrentNotFound(command.torrent());
                    refuse(command, error);
                }
                Some(torrent) if is_loaded(torrent) && !changes.has(torrent) => taken.push((torrent, command)),
                Some(_) => queue.0.push_back(command),
            }
        }
        taken
    }

    /// Returns the session state of a torrent.
    pub(crate) fn state_mut(&mut self, torrent: Entity) -> Option<Mut<'_, SessionState>> {
        self.torrents.get_mut(torrent).ok().map(|(_, state)| state)
    }

    /// Lets a torrent be saved with a change.
    pub(crate) fn save<T: Send + Sync + 'static>(
        &mut self,
        torrent: Entity,
        change: T,
        changes: &mut DurableChanges<T>,
    ) {
        if let Some(mut state) = self.state_mut(torrent) {
            state.record_addition();
            self.save.write(SaveTorrent { torrent });
            changes.0.insert(torrent, change);
        }
    }
}

/// The parameters for ending changes.
#[derive(SystemParam)]
pub(crate) struct SettleChanges<'w, 's> {
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    written: MessageReader<'w, 's, SessionWritten>,
    torrents: Query<'w, 's, (&'static Torrent, &'static SessionState)>,
}

impl SettleChanges<'_, '_> {
    /// Takes the changes whose save has ended, each with its torrent and the result. The torrent may be gone.
    pub(crate) fn take_ended<T: Send + Sync + 'static>(
        &mut self,
        changes: &mut DurableChanges<T>,
    ) -> Vec<(Entity, T, Result<(), Unsaved>)> {
        let mut ended = Vec::new();
        for &SessionWritten { torrent, ref result } in self.written.read() {
            let Ok((data, state)) = self.torrents.get(torrent) else {
                continue;
            };
            // An earlier save has ended, and the one of the change follows.
            if result.is_ok() && !state.has_saved_additions() {
                continue;
            }
            let Some(change) = changes.0.remove(&torrent) else {
                continue;
            };
            // Commands about the torrent may wait for this.
            self.wakeup.at(self.clock.now());
            let result = result.clone().map_err(|reason| Unsaved::new(&data.name, &reason));
            ended.push((torrent, change, result));
        }
        // A torrent that was stopped was saved with the change.
        let gone = changes.0.extract_if(|torrent, _| !self.torrents.contains(*torrent));
        ended.extend(gone.map(|(torrent, change)| (torrent, change, Ok(()))));
        ended
    }
}

/// A command that sets a component of a torrent. A torrent without the component has the default.
pub(crate) trait SetComponent: AboutTorrent {
    /// The component.
    type Component: Component + Clone + Default;
    /// The reason for a refusal.
    type Error: From<TorrentNotFound> + Clone + Send + Sync + 'static;

    /// Returns the component with the command's changes, or the reason why it cannot be so.
    fn changed(&self, current: &Self::Component, settings: &Settings) -> Result<Self::Component, Self::Error>;

    /// Creates the error for a torrent whose session cannot be written.
    fn unsaved(error: Unsaved) -> Self::Error;

    /// Returns the channel of the answer.
    fn into_reply(self) -> Reply<Result<(), Self::Error>>;
}

/// Changes of one torrent's component that are being saved together.
#[derive(Debug)]
pub(crate) struct ComponentChange<C: SetComponent> {
    /// The component before, in case the new one cannot be saved.
    before: C::Component,
    replies: Vec<Reply<Result<(), C::Error>>>,
}

/// The parameters for setting components.
#[derive(SystemParam)]
pub(crate) struct TakeComponents<'w, 's, C: SetComponent> {
    commands: Commands<'w, 's>,
    queue: ResMut<'w, CommandQueue<C>>,
    changes: ResMut<'w, DurableChanges<ComponentChange<C>>>,
    settings: Res<'w, Settings>,
    taking: TakeChanges<'w, 's>,
    known: Query<'w, 's, &'static <C as SetComponent>::Component>,
}

impl<C: SetComponent> TakeComponents<'_, '_, C> {
    /// Checks and applies the commands, and saves the torrents with them.
    pub(crate) fn take(&mut self) {
        let mut begun: EntityHashMap<(C::Component, ComponentChange<C>)> = EntityHashMap::default();
        let refuse = |command: C, error: TorrentNotFound| command.into_reply().send(Err(error.into()));
        for (torrent, command) in self.taking.take(&mut self.queue, &self.changes, refuse) {
            let before = self.known.get(torrent).cloned().unwrap_or_default();
            let current = begun.get(&torrent).map_or(&before, |(component, _)| component);
            let after = match command.changed(current, &self.settings) {
                Ok(after) => after,
                Err(error) => {
                    command.into_reply().send(Err(error));
                    continue;
                }
            };
            let replies = Vec::new();
            let (component, change) = begun
                .entry(torrent)
                .or_insert_with(|| (C::Component::default(), ComponentChange { before, replies }));
            *component = after;
            change.replies.push(command.into_reply());
        }
        for (torrent, (component, change)) in begun {
            self.commands.entity(torrent).insert(component);
            self.taking.save(torrent, change, &mut self.changes);
        }
    }
}

/// The parameters for ending changes of components.
#[derive(SystemParam)]
pub(crate) struct SettleComponents<'w, 's, C: SetComponent> {
    commands: Commands<'w, 's>,
    changes: ResMut<'w, DurableChanges<ComponentChange<C>>>,
    settling: SettleChanges<'w, 's>,
}

impl<C: SetComponent> SettleComponents<'_, '_, C> {
    /// Answers the changes that are durable, and undoes those that cannot be saved.
    pub(crate) fn settle(&mut self) {
        for (torrent, ComponentChange { before, replies }, result) in self.settling.take_ended(&mut self.changes) {
            if result.is_err() {
                self.commands.entity(torrent).insert(before);
            }
            let answer = result.map_err(C::unsaved);
            replies.into_iter().for_each(|reply| reply.send(answer.clone()));
        }
    }
}
