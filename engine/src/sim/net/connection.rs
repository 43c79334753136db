//! A connection, as both hosts' systems and the network know it.

use std::collections::VecDeque;

use bytes::Bytes;
use ecs_torrent_components::ids::LinkId;
use ecs_torrent_protocol::time::Timestamp;
use smallvec::SmallVec;
use std::net::SocketAddr;

use super::super::NodeId;
use super::super::slab::Key;
use crate::port::JobTag;

/// One direction of a connection: what one of its ends sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Flow {
    pub(super) connection: Key,
    /// Which end sends: 0 for the one that connected.
    pub(super) sender: u8,
}

impl Flow {
    pub(super) fn reversed(self) -> Self {
        let sender = 1 - self.sender;
        Self { sender, ..self }
    }
}

/// A connection: the end that connected, then the one that accepted.
pub(super) struct Connection {
    pub(super) ends: [End; 2],
    /// What each end sends.
    pub(super) halves: [Half; 2],
    pub(super) to: SocketAddr,
    /// When the connecting side loses patience.
    pub(super) deadline: Timestamp,
    /// Times that the request was sent.
    pub(super) tries: u32,
    /// Nothing passes any more, and nobody is told.
    pub(super) is_severed: bool,
}

/// One end of a connection.
pub(super) struct End {
    pub(super) host: NodeId,
    pub(super) link: LinkId,
    /// As the other end sees it.
    pub(super) address: SocketAddr,
    pub(super) state: EndState,
    /// Bytes that the world lets in.
    pub(super) credit: i64,
}

/// How an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndState {
    /// Being made.
    Opening,
    Open,
    /// Closed in order by the world: what waits leaves, then it waits for the other end.
    Closing(Option<JobTag>),
    /// The system has forgotten it.
    Ended,
}

/// What one end sends, from the world's queue to the other end's receive buffer.
#[derive(Default)]
pub(super) struct Half {
    /// Not sent; the first `buffered` frames are in the socket's buffer and were reported as sent.
    pub(super) queue: VecDeque<Bytes>,
    pub(super) buffered: usize,
    pub(super) buffered_bytes: usize,
    /// Behind the queue comes the end of the stream.
    pub(super) is_finishing: bool,
    /// Sent, and not at the receiver's access link.
    pub(super) in_flight: VecDeque<(Timestamp, Segment)>,
    /// At the receiver's access link.
    pub(super) arrived: VecDeque<Segment>,
    /// Received, and not read.
    pub(super) unread: VecDeque<Received>,
    /// Bytes that were sent and not read.
    pub(super) outstanding: usize,
    /// It waits for its turn at the sender's uplink.
    pub(super) is_listed: bool,
    /// It waits for its turn at the receiver's downlink.
    pub(super) is_listed_there: bool,
    pub(super) last_arrival: Timestamp,
    /// Since when nothing arrives that should have.
    pub(super) stalled_since: Option<Timestamp>,
}

/// What travels at once.
pub(super) struct Segment {
    pub(super) frames: SmallVec<[Bytes; 2]>,
    pub(super) bytes: usize,
    pub(super) end: Option<StreamEnd>,
}

/// How a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    Finished,
    Reset,
}

/// What lies in a receive buffer.
pub(super) enum Received {
    Chunk(Bytes),
    End,
}

/// Bytes of a segment: as many small frames, or one block with what stands around it.
const SEGMENT_BYTES: usize = 16 << 10;

/// What else may stand in the segment of a block.
const SEGMENT_ROOM: usize = 1 << 10;

/// Longest frame that travels in one; longer ones are cut.
pub(super) const MAX_FRAME: usize = 64 << 10;

impl Half {
    /// Moves frames into the socket's buffer of `room` bytes; tells how many bytes that are.
    pub(super) fn fill(&mut self, room: usize) -> usize {
        let before = self.buffered_bytes;
        while self.buffered_bytes < room
            && let Some(frame) = self.queue.get(self.buffered)
        {
            self.buffered_bytes += frame.len();
            self.buffered += 1;
        }
        self.buffered_bytes - before
    }

    /// Whether there is something to send, where so many bytes may be outstanding.
    pub(super) fn is_ready(&self, window: usize) -> bool {
        match self.queue.is_empty() {
            true => self.is_finishing,
            false => self.buffered > 0 && self.outstanding < window,
        }
    }

    /// Cuts off what travels next.
    pub(super) fn cut(&mut self) -> Segment {
        let mut segment = Segment {
            frames: SmallVec::new(),
            bytes: 0,
            end: None,
        };
        while self.buffered > 0 && segment.bytes < SEGMENT_BYTES {
            let fits =
                |frame: &Bytes| segment.bytes == 0 || segment.bytes + frame.len() <= SEGMENT_BYTES + SEGMENT_ROOM;
            if !self.queue.front().is_some_and(fits) {
                break;
            }
            let Some(frame) = self.queue.pop_front() else { break };
            self.buffered -= 1;
            segment.bytes += frame.len();
            segment.frames.push(frame);
        }
        self.buffered_bytes -= segment.bytes;
        self.outstanding += segment.bytes;
        if self.queue.is_empty() && std::mem::take(&mut self.is_finishing) {
            segment.end = Some(StreamEnd::Finished);
        }
        segment
    }

    /// Forgets what was not sent.
    pub(super) fn drop_unsent(&mut self) {
        self.queue.clear();
        (self.buffered, self.buffered_bytes) = (0, 0);
        self.is_finishing = false;
    }
}

impl Segment {
    pub(super) fn control(end: StreamEnd) -> Self {
        Self {
            frames: SmallVec::new(),
            bytes: 0,
            end: Some(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(lengths: &[usize]) -> Half {
        Half {
            queue: lengths.iter().map(|len| Bytes::from(vec![0; *len])).collect(),
            ..Half::default()
        }
    }

    #[test]
    fn a_block_travels_with_what_stands_around_it() {
        let mut half = half(&[13, 16384, 13, 16384, 9, 5]);
        assert_eq!(half.fill(usize::MAX), 2 * 16397 + 14);
        let lengths = std::iter::from_fn(|| half.is_ready(usize::MAX).then(|| half.cut().bytes));
        assert_eq!(lengths.collect::<Vec<_>>(), [16397, 16397, 14]);
        assert_eq!(half.outstanding, 2 * 16397 + 14);
    }

    #[test]
    fn what_is_buffered_is_bounded() {
        let mut half = half(&[100; 10]);
        assert_eq!((half.fill(250), half.fill(250)), (300, 0));
        assert!(half.is_ready(1) && !half.is_ready(0));
        assert_eq!((half.cut().bytes, half.fill(250)), (300, 300));
        assert!(!half.is_ready(300), "the window is full");
        half.drop_unsent();
        half.is_finishing = true;
        assert!(half.is_ready(0));
        assert_eq!(half.cut().end, Some(StreamEnd::Finished));
    }
}
