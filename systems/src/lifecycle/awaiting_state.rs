//! Commands that wait for the state folder to answer.

use bevy_ecs::prelude::*;
use bevy_platform::collections::HashMap;
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::state::StateEvent;

/// Commands about torrents that are not listed, each with the number of its request to the state folder.
#[derive(Resource, Debug)]
pub(super) struct AwaitingState<C: Send + Sync + 'static> {
    waiting: HashMap<u64, C>,
    last: u64,
}

impl<C: Send + Sync + 'static> Default for AwaitingState<C> {
    fn default() -> Self {
        let (waiting, last) = (HashMap::default(), 0);
        Self { waiting, last }
    }
}

impl<C: Send + Sync + 'static> AwaitingState<C> {
    /// Adds a command, and returns the tag for its request.
    pub(super) fn add(&mut self, purpose: Purpose, command: C) -> JobTag {
        self.last += 1;
        self.waiting.insert(self.last, command);
        JobTag {
            number: self.last,
            ..JobTag::new(purpose, Entity::PLACEHOLDER)
        }
    }

    /// Removes and returns the command that an event answers.
    pub(super) fn take(&mut self, event: &StateEvent) -> Option<C> {
        self.waiting.remove(&event.tag.number)
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_engine::ports::state::StateDone;

    use super::*;

    #[test]
    fn each_answer_finds_its_command() {
        let mut waiting = AwaitingState::default();
        let tags = ["one", "two", "three"].map(|command| waiting.add(Purpose("load"), command));
        for (number, expected) in [(1, Some("two")), (0, Some("one")), (1, None), (2, Some("three"))] {
            let (tag, outcome) = (tags[number], Ok(StateDone::Saved));
            assert_eq!(waiting.take(&StateEvent { tag, outcome }), expected);
        }
    }
}
