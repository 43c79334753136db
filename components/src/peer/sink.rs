//! The request sink: the only path of block requests and cancels to their source.
//!
//! A source is an entity with [`Requests`](super::Requests), to which the picker assigns blocks. If it is a connection,
//! its requests go to the wire. If it has a [`SourceQueue`] instead, they go there, and the feature that owns the
//! source (an HTTP server, for example) carries them out and returns the blocks through
//! [`ReceivedBlocks`](crate::messages::ReceivedBlocks).

use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use ecs_torrent_protocol::geometry::BlockRequest;
use ecs_torrent_protocol::wire::Message;

use super::outbox::{FlushQueue, Outbox};
use crate::work_list::{Listed, WorkList};

/// A command to a source of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceCommand {
    /// The source is to send a block.
    Request(BlockRequest),
    /// The block is no longer needed. The source may still send it, and need not answer.
    Cancel(BlockRequest),
}

/// Commands to a source that is not a connection, oldest first. At most as many requests are unanswered as the
/// pipeline's depth allows ([`max_depth`](crate::settings::RequestSettings::max_depth)), with one cancel for each.
#[derive(Component, Debug, Default)]
pub struct SourceQueue {
    commands: Vec<SourceCommand>,
    listed: Listed,
}

impl SourceQueue {
    /// Removes and returns the commands, and records that the source is no longer on the list of waiting sources.
    pub fn take(&mut self) -> Vec<SourceCommand> {
        self.listed.clear();
        std::mem::take(&mut self.commands)
    }
}

/// The sources whose [`SourceQueue`] has commands. Features that own sources visit only these.
#[derive(Resource, Debug, Default)]
pub struct WaitingSources(WorkList<SourceQueue>);

impl WaitingSources {
    /// Removes and returns the waiting sources for which `is_mine` holds; call [`SourceQueue::take`] on each.
    pub fn take_if(&mut self, mut is_mine: impl FnMut(Entity) -> bool) -> Vec<Entity> {
        let mut taken = Vec::new();
        self.0.retain(|entity| {
            let is_mine = is_mine(*entity);
            if is_mine {
                taken.push(*entity);
            }
            !is_mine
        });
        taken
    }
}

/// The components of a source through which its requests leave; part of the query of each system that requests or
/// cancels.
#[derive(QueryData, Debug)]
#[query_data(mutable)]
pub struct SourceSink {
    outbox: Option<&'static mut Outbox>,
    queue: Option<&'static mut SourceQueue>,
}

/// The system parameter that passes requests and cancels to their source.
#[derive(SystemParam, Debug)]
pub struct RequestSink<'w> {
    flush: ResMut<'w, FlushQueue>,
    waiting: ResMut<'w, WaitingSources>,
}

impl RequestSink<'_> {
    /// Requests a block from a source.
    pub fn request(&mut self, source: Entity, sink: &mut SourceSinkItem<'_, '_>, request: BlockRequest) {
        match (&mut sink.outbox, &mut sink.queue) {
            (Some(outbox), _) => self.flush.send(source, outbox, &Message::Request(request)),
            (None, Some(queue)) => self.queue(source, queue, SourceCommand::Request(request)),
            (None, None) => {}
        }
    }

    /// Cancels a request to a source.
    pub fn cancel(&mut self, source: Entity, sink: &mut SourceSinkItem<'_, '_>, request: BlockRequest) {
        match (&mut sink.outbox, &mut sink.queue) {
            (Some(outbox), _) => self.flush.send(source, outbox, &Message::Cancel(request)),
            (None, Some(queue)) => self.queue(source, queue, SourceCommand::Cancel(request)),
            (None, None) => {}
        }
    }

    /// Queues another message for a source that is a connection. Other sources get none.
    pub fn send(&mut self, source: Entity, sink: &mut SourceSinkItem<'_, '_>, message: &Message) {
        if let Some(outbox) = &mut sink.outbox {
            self.flush.send(source, outbox, message);
        }
    }

    fn queue(&mut self, source: Entity, queue: &mut SourceQueue, command: SourceCommand) {
        queue.commands.push(command);
        self.waiting.0.add(source, &mut queue.listed);
    }
}

#[cfg(test)]
mod tests {
    use bevy_ecs::system::RunSystemOnce;

    use super::*;

    const BLOCK: BlockRequest = BlockRequest {
        piece: 3,
        begin: 0,
        len: 16384,
    };

    fn request_and_cancel(mut sink: RequestSink, mut sources: Query<(Entity, SourceSink)>) {
        for (entity, mut source) in &mut sources {
            sink.request(entity, &mut source, BLOCK);
            sink.cancel(entity, &mut source, BLOCK);
        }
    }

    #[test]
    fn each_kind_of_source_gets_requests_and_cancels_in_its_own_way() {
        let mut world = World::new();
        world.init_resource::<FlushQueue>();
        world.init_resource::<WaitingSources>();
        let peer = world.spawn(Outbox::default()).id();
        let server = world.spawn(SourceQueue::default()).id();
        world.run_system_once(request_and_cancel).unwrap();

        let mut wire = bytes::BytesMut::new();
        Message::Request(BLOCK).write(&mut wire);
        Message::Cancel(BLOCK).write(&mut wire);
        assert_eq!(world.get_mut::<Outbox>(peer).unwrap().take().concat(), wire);
        let mut waiting = world.resource_mut::<WaitingSources>();
        assert!(waiting.take_if(|_| false).is_empty(), "another feature's");
        assert_eq!(waiting.take_if(|_| true), [server]);
        let commands = world.get_mut::<SourceQueue>(server).unwrap().take();
        assert_eq!(commands, [SourceCommand::Request(BLOCK), SourceCommand::Cancel(BLOCK)]);
    }
}
