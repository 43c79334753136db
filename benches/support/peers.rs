//! Any number of scripted peers without engines.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ecs_torrent::components::ids::StreamId;
use ecs_torrent::engine::port::Backend;
use ecs_torrent::engine::ports::net::{NetEvent, NetRequest, TransportChoice};
use ecs_torrent::engine::sim::{SimNet, Simulation};
use ecs_torrent::protocol::geometry::BLOCK_SIZE;
use ecs_torrent::protocol::hash::InfoHash;
use ecs_torrent::protocol::peer_id::PeerId;
use ecs_torrent::protocol::wire::{Handshake, Message, Reserved};

use crate::engines;

/// Number of connections made at once. An operating system queues this many until they are accepted and answers further
/// ones late.
const AT_ONCE: usize = 400;

/// Connections to one engine, each with its own handshake.
pub struct Peers {
    net: SimNet,
    streams: Vec<StreamId>,
}

impl Peers {
    /// Connects `count` peers to the engine at `to`.
    pub fn connect(sim: &mut Simulation, count: usize, to: SocketAddr, info_hash: InfoHash) -> Self {
        let mut net = sim.add_host(engines::listening(200));
        let streams: Vec<StreamId> = (1..=count as u64).map(|number| StreamId(number * 2)).collect();
        let timeout = Duration::from_secs(10);
        for (number, &stream) in (1..).zip(&streams) {
            let mut peer_id = [b'-'; 20];
            peer_id[12..].copy_from_slice(&stream.0.to_be_bytes());
            let handshake = Handshake {
                reserved: Reserved([0, 0, 0, 0, 0, 0, 0, 4]),
                info_hash,
                peer_id: PeerId(peer_id),
            };
            let mut bytes = BytesMut::new();
            handshake.write(&mut bytes);
            let frames = vec![bytes.freeze()];
            net.submit(&mut vec![
                NetRequest::Connect {
                    stream,
                    to,
                    transport: TransportChoice::Either,
                    timeout,
                },
                NetRequest::Send { stream, frames },
            ]);
            if number % AT_ONCE == 0 {
                engines::pass(sim, 5 * engines::LATENCY);
            }
        }
        Self { net, streams }
    }

    /// Sends a message from each peer. `say` returns the message of the peer with the given number.
    pub fn say(&mut self, say: impl Fn(usize) -> Message) {
        let sends = self.streams.iter().enumerate().map(|(number, &stream)| {
            let mut bytes = BytesMut::new();
            say(number).write(&mut bytes);
            let frames = vec![bytes.freeze()];
            NetRequest::Send { stream, frames }
        });
        self.net.submit(&mut sends.collect());
    }

    /// Returns the chunks received by all peers, without the peer of each chunk.
    pub fn receive(&mut self) -> Vec<Bytes> {
        let mut events = Vec::new();
        self.net.poll(usize::MAX, &mut events);
        let chunk = |event| match event {
            NetEvent::Received { chunk, .. } => Some(chunk),
            NetEvent::Closed { reason, .. } => panic!("a peer was closed: {reason}"),
            _ => None,
        };
        events.into_iter().filter_map(chunk).collect()
    }

    /// Takes the received chunks and returns the number of blocks among them.
    pub fn count_blocks(&mut self) -> usize {
        let blocks = self.receive();
        blocks.iter().filter(|chunk| chunk.len() == BLOCK_SIZE as usize).count()
    }
}
