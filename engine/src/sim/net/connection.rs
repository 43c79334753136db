//! A connection, as seen by both hosts' systems and by the network.

use std::collections::VecDeque;

use bytes::Bytes;
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::peer::Transport;
use ecs_torrent_protocol::time::Timestamp;
use smallvec::SmallVec;
use std::net::SocketAddr;

use super::super::NodeId;
use super::carrier::Carrier;
use crate::port::JobTag;
use crate::ports::net::Filter;

/// A connection: the end that connected, then the one that accepted.
pub(super) struct Connection {
    pub(super) ends: [End; 2],
    /// The outgoing data of each end.
    pub(super) halves: [Half; 2],
    pub(super) to: SocketAddr,
    pub(super) transport: Transport,
    pub(super) carrier: Carrier,
    /// Transports to try next if this one is refused, in reverse order.
    pub(super) alternatives: Vec<(Transport, Carrier)>,
    /// Deadline of the connection attempt.
    pub(super) deadline: Timestamp,
    /// Number of times that the connection request was sent.
    pub(super) tries: u32,
    /// No more data passes, and neither end is notified.
    pub(super) is_severed: bool,
}

/// One end of a connection.
pub(super) struct End {
    pub(super) host: NodeId,
    pub(super) stream: StreamId,
    /// The end's address, as the other end sees it.
    pub(super) address: SocketAddr,
    pub(super) state: EndState,
    /// Bytes that the world still accepts.
    pub(super) credit: i64,
    /// Number of bytes delivered to the world.
    pub(super) received: u64,
    /// Number of bytes that the world has sent.
    pub(super) sent: u64,
    pub(super) incoming: Option<Filter>,
    pub(super) outgoing: Option<Filter>,
}

impl End {
    pub(super) fn new(host: NodeId, stream: StreamId, address: SocketAddr, state: EndState, credit: i64) -> Self {
        Self {
            host,
            stream,
            address,
            state,
            credit,
            received: 0,
            sent: 0,
            incoming: None,
            outgoing: None,
        }
    }
}

/// State of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndState {
    /// The handshake is in progress.
    Opening,
    Open,
    /// Closed in order by the world: queued data leaves, then this end waits for the other one.
    Closing(Option<JobTag>),
    /// The system has forgotten the end.
    Ended,
}

/// One end's outgoing data, from the world's queue to the other end's receive buffer.
#[derive(Default)]
pub(super) struct Half {
    /// Unsent frames; the first `buffered` ones are in the socket's buffer and were reported as sent.
    pub(super) queue: VecDeque<Bytes>,
    pub(super) buffered: usize,
    pub(super) buffered_bytes: usize,
    /// The end of the stream follows the queue.
    pub(super) is_finishing: bool,
    /// Sent segments that have not reached the receiver's access link.
    pub(super) in_flight: VecDeque<(Timestamp, Segment)>,
    /// Segments at the receiver's access link.
    pub(super) arrived: VecDeque<Segment>,
    /// Received data that is not read.
    pub(super) unread: VecDeque<Received>,
    /// Bytes that are sent and not read.
    pub(super) outstanding: usize,
    /// The half waits for its turn at the sender's uplink.
    pub(super) is_listed: bool,
    /// The half waits for its turn at the receiver's downlink.
    pub(super) is_listed_there: bool,
    pub(super) last_arrival: Timestamp,
    /// Start of the time in which due segments do not arrive.
    pub(super) stalled_since: Option<Timestamp>,
}

/// A unit of transmission.
pub(super) struct Segment {
    pub(super) frames: SmallVec<[Bytes; 2]>,
    pub(super) bytes: usize,
    pub(super) end: Option<StreamEnd>,
}

/// The way in which a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    Finished,
    Reset,
}

/// An item of a receive buffer.
pub(super) enum Received {
    Chunk(Bytes),
    End,
}

/// Bytes of a segment: several small frames, or one block with its framing.
const SEGMENT_BYTES: usize = 16 << 10;

/// Additional room in a segment for the framing of a block.
const SEGMENT_ROOM: usize = 1 << 10;

/// Longest frame in a segment; longer ones are split.
pub(super) const MAX_FRAME: usize = 64 << 10;

impl Half {
    /// Moves frames into the socket's buffer of `room` bytes; returns the number of bytes moved.
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

    /// Whether there is something to send, if `window` bytes may be outstanding.
    pub(super) fn is_ready(&self, window: usize) -> bool {
        match self.queue.is_empty() {
            true => self.is_finishing,
            false => self.buffered > 0 && self.outstanding < window,
        }
    }

    /// Removes the next segment from the queue.
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

    /// Drops unsent data.
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
    fn a_block_is_sent_with_adjacent_messages() {
        let mut half = half(&[13, 16384, 13, 16384, 9, 5]);
        assert_eq!(half.fill(usize::MAX), 2 * 16397 + 14);
        let lengths = std::iter::from_fn(|| half.is_ready(usize::MAX).then(|| half.cut().bytes));
        assert_eq!(lengths.collect::<Vec<_>>(), [16397, 16397, 14]);
        assert_eq!(half.outstanding, 2 * 16397 + 14);
    }

    #[test]
    fn buffered_bytes_are_bounded() {
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
