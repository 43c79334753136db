//! Messages to send to a peer at the end of the tick.

use std::collections::VecDeque;

use bevy_ecs::prelude::*;
use bytes::{Bytes, BytesMut};
use ecs_torrent_protocol::geometry::BlockRequest;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::{BLOCK_HEADER_LEN, Handshake, Message, write_block_header};

use crate::work_list::{Listed, WorkList};

/// Size of a tick's messages above which the buffer is freed after the flush; an ordinary tick sends a peer some
/// hundred bytes.
const MAX_KEPT_BYTES: usize = 4096;

/// Free space of the buffer below which it grows: a request takes 17 bytes.
const LEAST_SPACE: usize = 17;

/// Least growth of the buffer. Without it, the messages between two blocks would grow the buffer once each.
const GROWTH: usize = 64;

/// The writing side of a connection. Filled through [`FlushQueue`], emptied once per tick.
#[derive(Component, Debug, Default)]
pub struct Outbox {
    /// Small messages, concatenated.
    buffer: BytesMut,
    /// Messages and blocks that precede the buffer.
    frames: Vec<Bytes>,
    /// Bytes in `frames`.
    framed_bytes: usize,
    /// Whether the peer is in the flush queue.
    listed: Listed,
    /// Bytes handed to the connection and not yet sent.
    pub unsent_bytes: usize,
    /// When bytes were last sent, or when there was last nothing to send.
    pub last_progress: Timestamp,
    /// When a message was last handed to the connection.
    pub last_sent: Timestamp,
    /// Bytes that the connection has sent.
    gone_bytes: u64,
    /// Blocks that have not left: the length of each, and the bytes sent once its last byte has left.
    blocks: VecDeque<(u64, u32)>,
    /// Number of waiting bytes below which a feature has work again; 0 if no feature waits.
    awaited_bytes: usize,
}

impl Outbox {
    /// Number of bytes waiting, here and at the connection.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.framed_bytes + self.buffer.len() + self.unsent_bytes
    }

    /// Removes and returns everything, in order, and unlists the peer. Used by the flush.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.listed.clear();
        self.close_buffer();
        self.unsent_bytes += self.framed_bytes;
        self.framed_bytes = 0;
        std::mem::take(&mut self.frames)
    }

    /// Records that the connection has sent bytes.
    pub fn record_sent(&mut self, bytes: usize, now: Timestamp) {
        self.unsent_bytes = self.unsent_bytes.saturating_sub(bytes);
        self.gone_bytes += bytes as u64;
        self.last_progress = now;
    }

    /// Makes the engine write [`OutboxDrained`](crate::messages::OutboxDrained) once when fewer than this number of
    /// bytes are waiting. If two features wait for it, the larger number counts.
    pub fn await_room(&mut self, bytes: usize) {
        self.awaited_bytes = self.awaited_bytes.max(bytes);
    }

    /// Whether there is room that a feature has waited for; the wait is then over.
    pub fn take_room(&mut self) -> bool {
        let has_room = self.waiting_bytes() < self.awaited_bytes;
        if has_room {
            self.awaited_bytes = 0;
        }
        has_room
    }

    /// Removes the oldest block all of whose bytes have left, and returns its length.
    pub fn take_sent_block(&mut self) -> Option<u32> {
        let (_, len) = self.blocks.pop_front_if(|(end, _)| *end <= self.gone_bytes)?;
        Some(len)
    }

    fn close_buffer(&mut self) {
        if !self.buffer.is_empty() {
            let messages = self.buffer.split().freeze();
            if messages.len() > MAX_KEPT_BYTES {
                // Otherwise the buffer would keep the memory of the burst, and allocate as much again.
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

/// The peers whose outbox is not empty; the flush visits only these.
#[derive(Resource, Debug, Default)]
pub struct FlushQueue {
    peers: WorkList<Outbox>,
    /// Buffer for the headers of blocks, of all peers.
    heads: BytesMut,
}

/// Number of block headers that share one allocation.
const HEADS: usize = 512;

impl FlushQueue {
    /// Queues a message in `peer`'s outbox.
    pub fn send(&mut self, peer: Entity, outbox: &mut Outbox, message: &Message) {
        let buffer = &mut outbox.buffer;
        if buffer.capacity() - buffer.len() < LEAST_SPACE {
            buffer.reserve(GROWTH);
        }
        message.write(buffer);
        self.list(peer, outbox);
    }

    /// Queues our handshake in `peer`'s outbox.
    pub fn send_handshake(&mut self, peer: Entity, outbox: &mut Outbox, handshake: &Handshake) {
        handshake.write(&mut outbox.buffer);
        self.list(peer, outbox);
    }

    /// Queues a `piece` message with `data` in `peer`'s outbox; the data is not copied.
    pub fn send_block(&mut self, peer: Entity, outbox: &mut Outbox, block: BlockRequest, data: Bytes) {
        outbox.close_buffer();
        if self.heads.capacity() < BLOCK_HEADER_LEN {
            self.heads.reserve(HEADS * BLOCK_HEADER_LEN);
        }
        write_block_header(&mut self.heads, block);
        outbox.push(self.heads.split().freeze());
        outbox.push(data);
        let end = outbox.gone_bytes + outbox.waiting_bytes() as u64;
        outbox.blocks.push_back((end, block.len));
        self.list(peer, outbox);
    }

    /// Whether no peer is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Removes and returns all peers.
    pub fn drain(&mut self) -> impl Iterator<Item = Entity> + '_ {
        self.peers.drain()
    }

    fn list(&mut self, peer: Entity, outbox: &mut Outbox) {
        self.peers.add(peer, &mut outbox.listed);
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

    /// A block counts as sent when its last byte has left, not when it is queued or handed over.
    #[test]
    fn a_block_is_sent_when_it_has_left() {
        let peer = Entity::from_raw_u32(1).unwrap();
        let (mut flush, mut outbox) = (FlushQueue::default(), Outbox::default());
        let block = |len| BlockRequest {
            piece: 1,
            begin: 0,
            len,
        };
        flush.send(peer, &mut outbox, &Message::Unchoke);
        for len in [5, 7] {
            flush.send_block(peer, &mut outbox, block(len), vec![7; len as usize].into());
        }
        assert_eq!(outbox.take_sent_block(), None);
        assert_eq!(outbox.take().concat().len(), 5 + (13 + 5) + (13 + 7));
        assert_eq!(outbox.take_sent_block(), None);
        outbox.record_sent(5 + 13 + 4, Timestamp::ZERO);
        assert_eq!(outbox.take_sent_block(), None, "a byte is missing");
        outbox.record_sent(1, Timestamp::ZERO);
        assert_eq!((outbox.take_sent_block(), outbox.take_sent_block()), (Some(5), None));
        outbox.record_sent(13 + 7, Timestamp::ZERO);
        assert_eq!((outbox.take_sent_block(), outbox.take_sent_block()), (Some(7), None));
        assert_eq!(outbox.waiting_bytes(), 0);
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
