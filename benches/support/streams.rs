//! Byte streams between peers.

use bytes::{Bytes, BytesMut};
use ecs_torrent::bevy_ecs::entity::Entity;
use ecs_torrent::components::peer::{FlushQueue, Outbox};
use ecs_torrent::protocol::geometry::{BLOCK_SIZE, BlockRequest, Geometry};
use ecs_torrent::protocol::wire::{Frame, FrameLimits, Message, PeerCodec, Session, write_block_header};

use crate::torrents;

/// Number of blocks in a [`Stream`], which also holds as many haves and as many requests.
pub const BLOCK_COUNT: u32 = 64;

/// Number of frames in a [`Stream`].
pub const FRAME_COUNT: u64 = 3 * BLOCK_COUNT as u64;

/// Bytes per read from a socket. Blocks straddle the boundaries of reads.
const READ_BYTES: usize = 100_000;

/// A stream of blocks, haves and requests, one of each in turn.
pub struct Stream {
    blocks: Vec<(BlockRequest, Bytes)>,
    chunks: Vec<Bytes>,
    session: Session,
}

impl Stream {
    pub fn new() -> Self {
        let geometry = Geometry::new(1 << 30, 256 << 10).unwrap();
        let data = Bytes::from(torrents::noise(BLOCK_SIZE as usize));
        let block = |number: u32| (geometry.block(number / 16, number % 16), data.clone());
        let blocks: Vec<_> = (0..BLOCK_COUNT).map(block).collect();
        let mut bytes = BytesMut::new();
        for (request, data) in &blocks {
            write_block_header(&mut bytes, *request);
            bytes.extend_from_slice(data);
            messages(*request).iter().for_each(|message| message.write(&mut bytes));
        }
        let bytes = bytes.freeze();
        let read = |start: usize| bytes.slice(start..bytes.len().min(start + READ_BYTES));
        let chunks = (0..bytes.len()).step_by(READ_BYTES).map(read).collect();
        let session = Session {
            geometry: Some(geometry),
            fast: true,
            extended: true,
            dht: false,
        };
        Self {
            blocks,
            chunks,
            session,
        }
    }

    /// Number of bytes of all frames.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    /// Creates a codec that can read the stream.
    pub fn codec() -> PeerCodec {
        PeerCodec::new(FrameLimits::default())
    }

    /// Reads the stream through `codec`, which is at a frame boundary afterward. Returns the numbers of blocks, haves
    /// and requests.
    pub fn decode(&self, codec: &mut PeerCodec) -> [u32; 3] {
        let mut counts = [0; 3];
        for chunk in &self.chunks {
            codec.push(chunk.clone());
            while let Some(frame) = codec.next_frame(&self.session).unwrap() {
                match frame {
                    Frame::Block(block) => counts[0] += u32::from(block.request.len == BLOCK_SIZE),
                    Frame::Message(Message::Have(_)) => counts[1] += 1,
                    Frame::Message(Message::Request(_)) => counts[2] += 1,
                    Frame::Message(_) => {}
                }
            }
        }
        counts
    }
}

/// Writes a stream's frames as the engine does, for one peer in one tick. Returns the number of bytes.
pub fn encode(stream: &Stream, peer: Entity, flush: &mut FlushQueue, outbox: &mut Outbox) -> usize {
    for (request, data) in &stream.blocks {
        flush.send_block(peer, outbox, *request, data.clone());
        for message in &messages(*request) {
            flush.send(peer, outbox, message);
        }
    }
    assert_eq!(flush.drain().count(), 1, "listed once");
    let frames = outbox.take();
    outbox.unsent_bytes = 0;
    frames.iter().map(Bytes::len).sum()
}

/// The messages that follow a block in a [`Stream`].
fn messages(request: BlockRequest) -> [Message; 2] {
    [Message::Have(request.piece), Message::Request(request)]
}
