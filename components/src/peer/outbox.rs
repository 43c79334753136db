//! What is to be sent to a peer at the end of the tick.

use bevy_ecs::prelude::*;
use bytes::{Bytes, BytesMut};
use ecs_torrent_protocol::geometry::BlockRequest;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::{BLOCK_HEADER_LEN, Handshake, Message, write_block_header};

/// Messages of a tick beyond which the buffer is given up with them: a peer hears some hundred bytes in an ordinary tick.
const MAX_KEPT_BYTES: usize = 4096;

/// The writing side of a connection. Filled through [`FlushQueue`], emptied once per tick.
#[derive(Component, Debug, Default)]
pub struct Outbox {
    /// Small messages, one behind the other.
    buffer: BytesMut,
    /// What stands before the buffer: earlier messages and blocks.
    frames: Vec<Bytes>,
    /// Bytes in `frames`.
    framed_bytes: usize,
    /// Whether the peer is in the flush queue.
    is_listed: bool,
    /// Bytes handed to the link that have not left.
    pub unsent_bytes: usize,
    /// When bytes last left, or when there was last nothing to send.
    pub last_progress: Timestamp,
    /// When a message was last handed to the link.
    pub last_sent: Timestamp,
}

impl Outbox {
    /// Bytes that wait, here and at the link.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.framed_bytes + self.buffer.len() + self.unsent_bytes
    }

    /// Takes everything out, in order, and off the list. For the flush.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.is_listed = false;
        self.close_buffer();
        self.unsent_bytes += self.framed_bytes;
        self.framed_bytes = 0;
        std::mem::take(&mut self.frames)
    }

    fn close_buffer(&mut self) {
        if !self.buffer.is_empty() {
            let messages = self.buffer.split().freeze();
            if messages.len() > MAX_KEPT_BYTES {
                // Otherwise the buffer would hold on to the memory of the burst, and ask for as much again.
                self.buffer = BytesMut::new();
            }
            self.push(messages);
        }
    }

    fn push(&mut self, frame: Bytes) {
        self.framed_bytes += frame.len();
        self.frames.push(frame);
    }
}

/// The peers whose outbox has something in it: the flush visits these and no others.
#[derive(Resource, Debug, Default)]
pub struct FlushQueue {
    peers: Vec<Entity>,
    /// Room for the heads of blocks, of all peers.
    heads: BytesMut,
}

/// Heads of blocks that are written into one piece of memory.
const HEADS: usize = 512;

impl FlushQueue {
    /// Puts a message into `peer`'s outbox.
    pub fn send(&mut self, peer: Entity, outbox: &mut Outbox, message: &Message) {
        message.write(&mut outbox.buffer);
        self.list(peer, outbox);
    }

    /// Puts our handshake into `peer`'s outbox.
    pub fn send_handshake(&mut self, peer: Entity, outbox: &mut Outbox, handshake: &Handshake) {
        handshake.write(&mut outbox.buffer);
        self.list(peer, outbox);
    }

    /// Puts a `piece` message with `data` into `peer`'s outbox; the data is not copied.
    pub fn send_block(&mut self, peer: Entity, outbox: &mut Outbox, block: BlockRequest, data: Bytes) {
        outbox.close_buffer();
        if self.heads.capacity() < BLOCK_HEADER_LEN {
            self.heads.reserve(HEADS * BLOCK_HEADER_LEN);
        }
        write_block_header(&mut self.heads, block);
        outbox.push(self.heads.split().freeze());
        outbox.push(data);
        self.list(peer, outbox);
    }

    /// Takes all peers out.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Entity> {
        self.peers.drain(..)
    }

    fn list(&mut self, peer: Entity, outbox: &mut Outbox) {
        if !outbox.is_listed {
            outbox.is_listed = true;
            self.peers.push(peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_leaves_no_memory_behind() {
        let peer = Entity::from_raw_u32(1).unwrap();
        let (mut flush, mut outbox) = (FlushQueue::default(), Outbox::default());
        for burst in [100_000, 1] {
            (0..burst).for_each(|piece| flush.send(peer, &mut outbox, &Message::Have(piece)));
            assert_eq!(outbox.take().concat().len(), 9 * burst as usize);
            assert!(outbox.buffer.capacity() <= MAX_KEPT_BYTES, "after {burst}");
        }
    }

    #[test]
    fn order_is_kept_and_blocks_are_not_copied() {
        let peer = Entity::from_raw_u32(1).unwrap();
        let (mut flush, mut outbox) = (FlushQueue::default(), Outbox::default());
        let data = Bytes::from(vec![7; 5]);
        let place = data.as_ptr();
        let block = BlockRequest {
            piece: 1,
            begin: 0,
            len: 5,
        };
        flush.send(peer, &mut outbox, &Message::Unchoke);
        flush.send_block(peer, &mut outbox, block, data);
        flush.send(peer, &mut outbox, &Message::Have(3));
        assert_eq!(flush.drain().collect::<Vec<_>>(), [peer], "listed once");

        assert_eq!(outbox.waiting_bytes(), 5 + 13 + 5 + 9);
        let frames = outbox.take();
        let sent: Vec<u8> = frames.concat();
        assert_eq!(sent[..5], [0, 0, 0, 1, 1]);
        assert_eq!(sent[5..9], [0, 0, 0, 14]);
        assert_eq!(sent[23..], [0, 0, 0, 5, 4, 0, 0, 0, 3]);
        assert_eq!(frames[2].as_ptr(), place);
        assert_eq!(outbox.waiting_bytes(), sent.len(), "still unsent");
    }
}
