//! Flushing of outgoing messages at the end of a tick: each outbox goes to its stream once.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::peer::{CloseReason, FlushQueue, Outbox, Peer, UploadQueue};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::NetRequest;
use ecs_torrent_engine::schedule::Tick;

use crate::FlushSet;

/// Hands outboxes over to the streams.
pub struct FlushingPlugin;

impl Plugin for FlushingPlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<Peer, Outbox>();
        app.add_systems(
            Tick,
            flush_outboxes
                .run_if(|flush: Res<FlushQueue>| !flush.is_empty())
                .in_set(FlushSet::Outboxes),
        );
    }
}

fn flush_outboxes(
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut flush: ResMut<FlushQueue>,
    mut reaper: ResMut<Reaper>,
    mut net: ResMut<NetPort>,
    mut peers: Query<(&Peer, &mut Outbox, Option<&UploadQueue>)>,
) {
    let now = clock.now();
    for entity in flush.drain() {
        let Ok((peer, mut outbox, uploads)) = peers.get_mut(entity) else {
            continue;
        };
        if outbox.unsent_bytes == 0 {
            // The send timeout starts when there is something for the peer to read.
            outbox.last_progress = now;
        }
        // Fault 25: the queue of a peer that reads nothing is bounded. Blocks have their own bound.
        let block_bytes = uploads.map_or(0, |uploads| uploads.charged_bytes as usize);
        if outbox.waiting_bytes() > settings.peers.max_send_queue_bytes + block_bytes {
            reaper.close(entity, CloseReason::SendQueueFull);
        }
        outbox.last_sent = now;
        let (stream, frames) = (peer.stream, outbox.take());
        net.push(NetRequest::Send { stream, frames });
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_engine::ports::net::NetEvent;
    use ecs_torrent_protocol::wire::Message;

    use super::*;
    use crate::testing::{Bed, NOW};

    /// Fault 25.
    #[test]
    fn the_queue_of_a_peer_that_reads_nothing_is_bounded() {
        const LIMIT: usize = 20;
        const BLOCKS: usize = 30;
        let message = Message::Extended {
            id: 1,
            payload: vec![0; LIMIT + BLOCKS - 6].into(),
        };
        let mut bed = Bed::new(());
        bed.world.resource_mut::<Settings>().peers.max_send_queue_bytes = LIMIT;
        bed.open_port::<NetRequest, NetEvent>(Vec::new());
        let entity = bed.peer();
        bed.get_mut::<UploadQueue>(entity).charged_bytes = BLOCKS as u64;
        let mut closes = |message: &Message| {
            bed.world.resource_scope(|world, mut flush: Mut<FlushQueue>| {
                flush.send(entity, &mut world.get_mut::<Outbox>(entity).unwrap(), message);
            });
            bed.run(flush_outboxes);
            bed.world.resource::<Reaper>().is_doomed(entity)
        };
        assert!(!closes(&message), "just as much as is allowed");
        assert!(closes(&Message::KeepAlive));
    }

    /// The time limit on sending runs from when there is something to read.
    #[test]
    fn the_send_timeout_begins_with_the_first_waiting_byte() {
        for (unsent_bytes, is_reset) in [(0, true), (5, false)] {
            let mut bed = Bed::new(());
            bed.open_port::<NetRequest, NetEvent>(Vec::new());
            let peer = bed.peer();
            bed.get_mut::<Outbox>(peer).unsent_bytes = unsent_bytes;
            bed.world.resource_scope(|world, mut flush: Mut<FlushQueue>| {
                let mut outbox = world.get_mut::<Outbox>(peer).unwrap();
                outbox.unsent_bytes = unsent_bytes;
                flush.send(peer, &mut outbox, &Message::KeepAlive);
                outbox.unsent_bytes = unsent_bytes;
            });
            bed.run(flush_outboxes);
            assert_eq!(bed.get::<Outbox>(peer).last_progress == NOW, is_reset);
            assert_eq!(bed.get::<Outbox>(peer).last_sent, NOW);
        }
    }
}
