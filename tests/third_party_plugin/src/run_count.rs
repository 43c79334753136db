//! A plugin that keeps state between runs, in a blob of the state folder: it counts the runs of the engine.

use ecs_torrent::engine::port::{JobTag, Purpose};
use ecs_torrent::engine::ports::StatePort;
use ecs_torrent::engine::ports::state::{BlobName, StateDone, StateRequest};
use ecs_torrent::engine::purpose;
use ecs_torrent::prelude::*;

const COUNT: Purpose = purpose!("count runs");

/// Counts the runs of an engine, over restarts.
#[derive(Debug, Clone, Copy)]
pub struct RunCountPlugin;

/// Gets the number of runs.
#[derive(Debug)]
pub struct GetRunCount {
    /// Answered when the number is durable, with this run included.
    pub reply: Reply<u64>,
}

#[derive(Resource, Debug, Default)]
struct RunCount {
    is_requested: bool,
    count: u64,
    is_durable: bool,
}

impl Plugin for RunCountPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<CommandQueue<GetRunCount>>()
            .init_resource::<RunCount>()
            .add_systems(Tick, count_run.in_set(TickSet::Decide));
    }
}

fn count_run(mut run: ResMut<RunCount>, mut state: ResMut<StatePort>, mut queue: ResMut<CommandQueue<GetRunCount>>) {
    let (name, tag) = (blob_name(), JobTag::new(COUNT, Entity::PLACEHOLDER));
    if !std::mem::replace(&mut run.is_requested, true) {
        state.push(StateRequest::LoadBlob { tag, name });
    }
    // Taking opens the inbox, so that the answer is kept.
    let events: Vec<_> = state.take(COUNT).collect();
    for event in events {
        if matches!(event.outcome, Ok(StateDone::Saved)) {
            run.is_durable = true;
            continue;
        }
        // A blob that is missing, unreadable or not a number is a lost one: counting begins again.
        let stored = match event.outcome {
            Ok(StateDone::BlobLoaded(bytes)) => bytes,
            _ => None,
        };
        let before = stored.and_then(|bytes| Some(u64::from_le_bytes(bytes[..].try_into().ok()?)));
        run.count = before.unwrap_or_default() + 1;
        let bytes = run.count.to_le_bytes().to_vec().into();
        let name = blob_name();
        state.push(StateRequest::SaveBlob { tag, name, bytes });
    }
    if run.is_durable {
        queue.0.drain(..).for_each(|command| command.reply.send(run.count));
    }
}

fn blob_name() -> BlobName {
    BlobName::new("run-count").expect("lower-case letters and a dash")
}
