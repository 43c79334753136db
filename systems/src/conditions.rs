//! Run conditions: a system that has nothing to do in a tick is skipped.
//!
//! Fetching one parameter takes a system about 80 instructions, and many systems have ten of them. A skipped system
//! costs only its condition, which has one or two. Systems with fewer parameters than that have no condition.
//!
//! A condition tests every input of its system: messages, events of ports, commands, work lists, deadlines. A new input
//! of a system has to be added to its condition. Messages count in the tick that writes them and in the next one, as
//! for readers.

use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::CommandQueue;
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_engine::port::{Port, PortEvent, Purpose};
use ecs_torrent_protocol::time::Timestamp;

/// Returns whether there are messages of a type.
#[must_use]
pub fn has_messages<M: Message>(messages: Res<Messages<M>>) -> bool {
    !messages.is_empty()
}

/// Returns whether there are messages of a type that only an optional feature registers.
#[must_use]
pub fn has_optional_messages<M: Message>(messages: Option<Res<Messages<M>>>) -> bool {
    messages.is_some_and(has_messages)
}

/// Returns whether there are messages of one of two types.
pub(crate) fn has_messages_of_two<A: Message, B: Message>(a: Res<Messages<A>>, b: Res<Messages<B>>) -> bool {
    !a.is_empty() || !b.is_empty()
}

/// Returns whether there are commands of a type.
pub(crate) fn has_commands<C: Send + Sync + 'static>(queue: Res<CommandQueue<C>>) -> bool {
    !queue.0.is_empty()
}

/// Creates the condition that a port has events for a purpose.
pub(crate) fn has_events<R: Send + Sync + 'static, E: PortEvent>(
    purpose: Purpose,
) -> impl Fn(Res<Port<R, E>>) -> bool + Clone {
    move |port: Res<Port<R, E>>| port.has_events_for(purpose)
}

/// Returns whether a deadline has passed. If not, requests a tick at the next one.
pub(crate) fn has_due<K: Send + Sync + 'static>(
    deadlines: Res<Deadlines<K>>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
) -> bool {
    is_due(deadlines.next(), &clock, &wakeup)
}

/// Whether a time has come. If not, requests a tick at that time.
pub(crate) fn is_due(next: Option<Timestamp>, clock: &Clock, wakeup: &Wakeup) -> bool {
    let is_due = next.is_some_and(|next| next <= clock.now());
    if !is_due {
        wakeup.at_next(next);
    }
    is_due
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ecs_torrent_components::commands::GetStats;
    use ecs_torrent_components::torrent::StopPhase;

    use super::*;
    use crate::testing::{Bed, NOW};

    #[derive(Message)]
    struct One;

    #[derive(Message)]
    struct Two;

    /// Not registered.
    #[derive(Message)]
    struct Three;

    /// In a tick without work, systems are skipped.
    #[test]
    fn a_condition_holds_only_where_there_is_work() {
        let mut bed = Bed::new(());
        bed.world.init_resource::<Messages<One>>();
        bed.world.init_resource::<Messages<Two>>();
        bed.world.init_resource::<CommandQueue<GetStats>>();
        bed.world.init_resource::<Deadlines<StopPhase>>();
        assert!(!bed.holds(has_optional_messages::<Three>) && !bed.holds(has_optional_messages::<Two>));
        assert!(!bed.holds(has_messages::<One>) && !bed.holds(has_commands::<GetStats>));
        assert!(!bed.holds(has_messages_of_two::<One, Two>) && !bed.holds(has_due::<StopPhase>));
        bed.world.write_message(Two);
        assert!(!bed.holds(has_messages::<One>) && bed.holds(has_messages::<Two>));
        assert!(bed.holds(has_optional_messages::<Two>));
        assert!(bed.holds(has_messages_of_two::<One, Two>) && bed.holds(has_messages_of_two::<Two, One>));
        let at = NOW + Duration::from_secs(1);
        bed.world
            .resource_mut::<Deadlines<StopPhase>>()
            .set(at, StopPhase::Release);
        assert!(!bed.holds(has_due::<StopPhase>), "not yet");
        assert_eq!(bed.world.resource::<Wakeup>().earliest(), at);
        bed.world.resource_mut::<Clock>().advance_to(at);
        assert!(bed.holds(has_due::<StopPhase>));
    }
}
