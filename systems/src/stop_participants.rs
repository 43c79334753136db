//! Stop participants: features that have work in a phase of a stop, a pause or a removal.
//!
//! A participant is a marker type, registered for one phase with [`AddStopParticipant::add_stop_participant`]. When a
//! torrent's stop reaches the phase, the stop lists the torrent for the participant. A system of the participant takes
//! it with [`StopDuty::take`], does its work in one tick or in many, and reports the end with [`StopDuty::finish`]. The
//! phase ends when every participant has reported, or at its deadline: the stop does not wait for a late participant,
//! and logs a warning.
//!
//! ```
//! use ecs_torrent_components::lifecycle::StopPhase;
//! use ecs_torrent_engine::schedule::{Tick, TickSet};
//! use ecs_torrent_systems::stop_participants::{AddStopParticipant, StopDuty};
//!
//! /// Logs each torrent whose session is about to be written.
//! struct Log;
//!
//! fn plugin(app: &mut bevy_app::App) {
//!     app.add_stop_participant::<Log>(StopPhase::WriteSession, None)
//!         .add_systems(Tick, log_stops.in_set(TickSet::Respond));
//! }
//!
//! fn log_stops(mut duty: StopDuty<Log>) {
//!     for turn in duty.take() {
//!         println!("{} is stopped", turn.torrent);
//!         duty.finish(turn.torrent);
//!     }
//! }
//! # use bevy_ecs::schedule::IntoScheduleConfigs as _;
//! # plugin(&mut bevy_app::App::new());
//! ```

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bevy_app::App;
use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::Removed;
use ecs_torrent_components::lifecycle::StopPhase;
use ecs_torrent_components::torrent::Label;
use ecs_torrent_protocol::time::Timestamp;

/// How a torrent ends: saved, paused, deleted or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The session is saved, and the torrent leaves the list.
    Save {
        /// The torrent stays stopped over restarts of the engine, until a user resumes it.
        until_resumed: bool,
    },
    /// The session is saved, and the torrent stays in the list, paused: no peers, no open files. When it starts again,
    /// it is opened like a newly added torrent.
    Pause,
    /// The session is deleted, and possibly the data with it.
    Forget {
        /// The files that the torrent created are deleted too.
        delete_data: bool,
    },
    /// The session stays as it was before the torrent was added, because the torrent is refused.
    Refuse,
}

/// A torrent whose stop has reached a participant's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopTurn {
    /// The torrent.
    pub torrent: Entity,
    /// How the torrent ends.
    pub ending: Ending,
}

/// Registers stop participants.
pub trait AddStopParticipant {
    /// Registers `P` for a phase. `limit` shortens the time that the settings give to the phase. The name of `P` is a
    /// noun for what the participant deals with: the warning about a late `OpenFiles` names "open files".
    fn add_stop_participant<P: Send + Sync + 'static>(
        &mut self,
        phase: StopPhase,
        limit: Option<Duration>,
    ) -> &mut Self;
}

impl AddStopParticipant for App {
    fn add_stop_participant<P: Send + Sync + 'static>(
        &mut self,
        phase: StopPhase,
        limit: Option<Duration>,
    ) -> &mut Self {
        self.init_resource::<StopParticipants>();
        let mut participants = self.world_mut().resource_mut::<StopParticipants>();
        let place = Place {
            index: participants.all.len(),
            participant: PhantomData::<fn() -> P>,
        };
        participants.all.push(Participant {
            name: participant_name(std::any::type_name::<P>()),
            phase,
            limit,
            begun: Vec::new(),
        });
        self.insert_resource(place)
    }
}

/// Returns the words of the name of a type, without its path and parameters: "open files" for `releasing::OpenFiles`.
fn participant_name(type_name: &str) -> String {
    let path = type_name.split('<').next().unwrap_or_default();
    let name = path.rsplit("::").next().unwrap_or_default();
    let mut words = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

/// The index of a participant among all.
#[derive(Resource)]
pub(crate) struct Place<P: Send + Sync + 'static> {
    index: usize,
    participant: PhantomData<fn() -> P>,
}

#[derive(Debug)]
struct Participant {
    /// The name in log lines.
    name: String,
    phase: StopPhase,
    limit: Option<Duration>,
    /// Torrents that the participant has not taken yet.
    begun: Vec<StopTurn>,
}

/// All participants, and the torrents that wait for them.
#[derive(Resource, Debug, Default)]
pub(crate) struct StopParticipants {
    all: Vec<Participant>,
    running: EntityHashMap<Running>,
}

/// The running phase of one torrent.
#[derive(Debug, Default)]
struct Running {
    /// The participants that have not reported, by index, with the deadline of each.
    waiting: Vec<(usize, Timestamp)>,
    error: Option<Arc<str>>,
    removed: Removed,
}

/// Returns whether a torrent is being stopped.
pub(crate) fn has_stops(participants: Res<StopParticipants>) -> bool {
    !participants.running.is_empty()
}

impl StopParticipants {
    /// Begins a phase of a torrent's stop. An earlier one that still runs ends without a result.
    pub(crate) fn begin(&mut self, turn: StopTurn, phase: StopPhase, now: Timestamp, limit: Duration) {
        let mut running = Running::default();
        for (index, participant) in self.all.iter_mut().enumerate() {
            participant.begun.retain(|other| other.torrent != turn.torrent);
            if participant.phase == phase {
                participant.begun.push(turn);
                let limit = participant.limit.map_or(limit, |own| own.min(limit));
                running.waiting.push((index, now + limit));
            }
        }
        self.running.insert(turn.torrent, running);
    }

    /// Shortens the running phase of a torrent: it ends at `deadline` at the latest.
    pub(crate) fn shorten(&mut self, torrent: Entity, deadline: Timestamp) {
        let waiting = self.running.get_mut(&torrent).into_iter();
        let waiting = waiting.flat_map(|running| &mut running.waiting);
        waiting.for_each(|(_, at)| *at = deadline.min(*at));
    }

    /// Returns the result of a torrent's phase once every participant has reported or is late, or else the next
    /// deadline.
    pub(crate) fn poll(
        &mut self,
        torrent: Entity,
        label: Label<'_>,
        now: Timestamp,
    ) -> Result<Result<Removed, Arc<str>>, Timestamp> {
        let Some(running) = self.running.get_mut(&torrent) else {
            return Ok(Ok(Removed::default()));
        };
        let late = running.waiting.extract_if(.., |(_, deadline)| *deadline <= now);
        for (index, _) in late {
            let participant = &self.all[index].name;
            tracing::warn!(torrent = %label, participant, "stopping: continues without a participant that took too long");
            running.error.get_or_insert_with(|| "timed out".into());
        }
        if let Some(next) = running.waiting.iter().map(|(_, deadline)| *deadline).min() {
            return Err(next);
        }
        let Running { error, removed, .. } = self.running.remove(&torrent).unwrap_or_default();
        Ok(error.map_or(Ok(removed), Err))
    }

    fn report(&mut self, index: usize, torrent: Entity, result: Result<Removed, Arc<str>>) -> bool {
        let Some(running) = self.running.get_mut(&torrent) else {
            return false;
        };
        let before = running.waiting.len();
        running.waiting.retain(|(other, _)| *other != index);
        if running.waiting.len() == before {
            return false;
        }
        match result {
            Ok(removed) if removed == Removed::default() => {}
            Ok(removed) => running.removed = removed,
            Err(reason) => drop(running.error.get_or_insert(reason)),
        }
        true
    }
}

/// The duty of a stop participant, used by its own systems.
#[derive(SystemParam)]
pub struct StopDuty<'w, P: Send + Sync + 'static> {
    participants: ResMut<'w, StopParticipants>,
    place: Res<'w, Place<P>>,
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
}

impl<P: Send + Sync + 'static> StopDuty<'_, P> {
    /// Takes the torrents whose stop has reached the participant's phase.
    pub fn take(&mut self) -> Vec<StopTurn> {
        if self.participants.all[self.place.index].begun.is_empty() {
            return Vec::new();
        }
        std::mem::take(&mut self.participants.all[self.place.index].begun)
    }

    /// Requests another tick at once, for work that takes several.
    pub fn wake(&self) {
        self.wakeup.at(self.clock.now());
    }

    /// Reports that the participant's work for a torrent is done.
    pub fn finish(&mut self, torrent: Entity) {
        self.finish_with(torrent, Ok(Removed::default()));
    }

    /// Reports those of the `waiting` torrents whose work is done, and takes them off that list.
    pub(crate) fn finish_done(&mut self, waiting: &mut Vec<Entity>, mut is_done: impl FnMut(Entity) -> bool) {
        waiting.retain(|torrent| {
            let is_done = is_done(*torrent);
            if is_done {
                self.finish(*torrent);
            }
            !is_done
        });
    }

    /// Reports that the participant's work for a torrent has failed. A session that cannot be written keeps its torrent
    /// in the list; in other phases, the stop goes on.
    pub fn fail(&mut self, torrent: Entity, reason: Arc<str>) {
        self.finish_with(torrent, Err(reason));
    }

    /// Reports the result of the participant's work, with the files that it deleted and kept.
    pub(crate) fn finish_with(&mut self, torrent: Entity, result: Result<Removed, Arc<str>>) {
        if self.participants.report(self.place.index, torrent, result) {
            self.wakeup.at(self.clock.now());
        }
    }
}

#[cfg(test)]
mod tests {
    use bevy_ecs::system::RunSystemOnce;
    use ecs_torrent_protocol::hash::InfoHash;

    use super::*;

    /// A participant with the time that the settings give.
    struct Patient;
    /// A participant that is given one second.
    struct Hasty;
    /// A participant of another phase.
    struct Later;

    const PHASE: StopPhase = StopPhase::HaltDownloads;
    const LIMIT: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);
    const NEVER: Timestamp = Timestamp::from_nanos(u64::MAX);

    fn world() -> World {
        let mut app = App::new();
        app.init_resource::<Clock>()
            .init_resource::<Wakeup>()
            .add_stop_participant::<Patient>(PHASE, None)
            .add_stop_participant::<Hasty>(PHASE, Some(SECOND))
            .add_stop_participant::<Later>(StopPhase::Release, None);
        let mut world = std::mem::take(app.world_mut());
        world.resource_mut::<Wakeup>().reset(NEVER);
        world
    }

    fn begin(world: &mut World) -> Entity {
        let torrent = world.spawn_empty().id();
        let turn = StopTurn {
            torrent,
            ending: Ending::Save { until_resumed: false },
        };
        let mut participants = world.resource_mut::<StopParticipants>();
        participants.begin(turn, PHASE, Timestamp::ZERO, LIMIT);
        torrent
    }

    fn poll(world: &mut World, torrent: Entity, at: Duration) -> Result<Result<Removed, Arc<str>>, Timestamp> {
        let mut participants = world.resource_mut::<StopParticipants>();
        let label = Label::new("a torrent", InfoHash([0; 20]));
        participants.poll(torrent, label, Timestamp::ZERO + at)
    }

    fn finish<P: Send + Sync + 'static>(duty: &mut StopDuty<P>, torrent: Entity) {
        duty.finish(torrent);
    }

    /// Takes the torrents of a participant and hands them to `work`. Returns how many there were.
    fn take<P: Send + Sync + 'static>(world: &mut World, work: fn(&mut StopDuty<P>, Entity)) -> usize {
        let system = move |mut duty: StopDuty<P>| {
            let turns = duty.take();
            turns.iter().for_each(|turn| work(&mut duty, turn.torrent));
            turns.len()
        };
        world.run_system_once(system).unwrap()
    }

    #[test]
    fn the_name_of_a_participant_consists_of_the_words_of_its_type() {
        assert_eq!(
            participant_name("ecs_torrent_systems::releasing::OpenFiles"),
            "open files"
        );
        assert_eq!(participant_name("plugin::Diaries<alloc::string::String>"), "diaries");
    }

    #[test]
    fn a_phase_ends_when_every_participant_of_it_has_reported() {
        let mut world = world();
        let torrent = begin(&mut world);
        assert_eq!(take::<Later>(&mut world, |_, _| {}), 0, "its phase has not come");
        assert_eq!(take::<Patient>(&mut world, finish), 1);
        assert_eq!(
            world.resource::<Wakeup>().earliest(),
            Timestamp::ZERO,
            "the stop goes on"
        );
        assert_eq!(take::<Patient>(&mut world, |_, _| {}), 0, "taken once");
        assert_eq!(poll(&mut world, torrent, Duration::ZERO), Err(Timestamp::ZERO + SECOND));
        assert_eq!(take::<Hasty>(&mut world, finish), 1);
        assert_eq!(poll(&mut world, torrent, Duration::ZERO), Ok(Ok(Removed::default())));
    }

    #[test]
    fn a_late_participant_is_left_behind() {
        let mut world = world();
        let torrent = begin(&mut world);
        assert_eq!(poll(&mut world, torrent, SECOND / 2), Err(Timestamp::ZERO + SECOND));
        assert_eq!(poll(&mut world, torrent, SECOND), Err(Timestamp::ZERO + LIMIT));
        world.resource_mut::<Wakeup>().reset(NEVER);
        assert_eq!(take::<Hasty>(&mut world, finish), 1);
        assert_eq!(world.resource::<Wakeup>().earliest(), NEVER, "nobody waits for it");
        assert_eq!(take::<Patient>(&mut world, finish), 1);
        assert_eq!(poll(&mut world, torrent, SECOND), Ok(Err("timed out".into())));
    }

    #[test]
    fn the_first_failure_is_the_result() {
        let mut world = world();
        let torrent = begin(&mut world);
        take::<Hasty>(&mut world, |duty, torrent| duty.fail(torrent, "no space".into()));
        take::<Patient>(&mut world, |duty, torrent| duty.fail(torrent, "no file".into()));
        assert_eq!(poll(&mut world, torrent, Duration::ZERO), Ok(Err("no space".into())));
    }

    #[test]
    fn work_for_several_ticks_asks_for_the_next_one() {
        let mut world = world();
        begin(&mut world);
        take::<Patient>(&mut world, |duty, _| duty.wake());
        assert_eq!(world.resource::<Wakeup>().earliest(), Timestamp::ZERO);
    }

    /// Several participants end a removal; one of them deletes files.
    #[test]
    fn the_removed_files_are_reported_by_any_order_of_participants() {
        let mut world = world();
        let torrent = begin(&mut world);
        fn remove(duty: &mut StopDuty<Hasty>, torrent: Entity) {
            let deleted = Removed {
                deleted_count: 3,
                ..Removed::default()
            };
            duty.finish_with(torrent, Ok(deleted));
        }
        take::<Hasty>(&mut world, remove);
        take::<Patient>(&mut world, finish);
        let removed = poll(&mut world, torrent, Duration::ZERO).unwrap().unwrap();
        assert_eq!(removed.deleted_count, 3);
    }

    #[test]
    fn stops_are_seen_until_their_phase_ends() {
        let mut world = world();
        let has_stops = |world: &mut World| world.run_system_once(has_stops).unwrap();
        assert!(!has_stops(&mut world));
        let torrent = begin(&mut world);
        assert!(has_stops(&mut world));
        assert!(poll(&mut world, torrent, LIMIT).is_ok());
        assert!(!has_stops(&mut world));
    }

    /// The end of the program does not wait as long as the stop of a user.
    #[test]
    fn a_phase_can_be_shortened() {
        let mut world = world();
        let torrent = begin(&mut world);
        take::<Hasty>(&mut world, finish);
        let mut participants = world.resource_mut::<StopParticipants>();
        participants.shorten(torrent, Timestamp::ZERO + SECOND * 2);
        participants.shorten(torrent, Timestamp::ZERO + SECOND * 5);
        assert_eq!(poll(&mut world, torrent, SECOND), Err(Timestamp::ZERO + SECOND * 2));
        assert!(poll(&mut world, torrent, SECOND * 2).unwrap().is_err());
    }
}
