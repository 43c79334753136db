//! Bytes that have arrived and not been read yet, in the chunks in which they came.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

/// The bytes of one block, in the slices of the chunks it arrived in: nearly always one, two where it straddles.
pub type Payload = SmallVec<[Bytes; 2]>;

/// Bytes that are not worth holding a whole chunk for.
const FEW_BYTES: usize = 1024;

/// Chunks that one queue may hold at rest: each may be a slice of memory that is much larger.
const MAX_CHUNKS: usize = 16;

/// Places for chunks that an empty queue keeps.
const KEPT_PLACES: usize = 32;

/// A queue of chunks read as one stream. Chunks are released as soon as their last byte is consumed, so that their
/// memory can be read into again.
#[derive(Debug, Default)]
pub struct ByteQueue {
    /// Empty only when the whole queue is.
    front: Bytes,
    rest: VecDeque<Bytes>,
    len: usize,
}

impl ByteQueue {
    /// Appends a chunk.
    pub fn push(&mut self, chunk: Bytes) {
        self.len += chunk.len();
        if self.front.is_empty() {
            self.front = chunk;
        } else if !chunk.is_empty() {
            self.rest.push_back(chunk);
        }
    }

    /// Bytes in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in the queue.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `N` bytes, left where they are, if there are as many.
    #[must_use]
    pub fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        if let Some(bytes) = self.front.first_chunk() {
            return Some(*bytes);
        }
        if self.len < N {
            return None;
        }
        let mut out = [0; N];
        let mut filled = 0;
        for chunk in std::iter::once(&self.front).chain(&self.rest) {
            let part = chunk.len().min(N - filled);
            out[filled..filled + part].copy_from_slice(&chunk[..part]);
            filled += part;
        }
        Some(out)
    }

    /// Drops up to `count` bytes, and tells how many it dropped.
    pub fn skip(&mut self, count: usize) -> usize {
        let skipped = count.min(self.len);
        let mut left = skipped;
        while left > 0 {
            let part = left.min(self.front.len());
            self.front.advance(part);
            left -= part;
            self.settle();
        }
        self.len -= skipped;
        skipped
    }

    /// Moves up to `count` bytes into `payload`, as slices of their chunks, and tells how many it moved.
    pub fn take_into(&mut self, count: usize, payload: &mut Payload) -> usize {
        let taken = count.min(self.len);
        let mut left = taken;
        while left > 0 {
            let part = left.min(self.front.len());
            payload.push(self.front.split_to(part));
            left -= part;
            self.settle();
        }
        self.len -= taken;
        taken
    }

    /// Fills `out` with the first bytes; false, and nothing taken, where there are not as many.
    pub fn take_to(&mut self, mut out: &mut [u8]) -> bool {
        let count = out.len();
        if self.len < count {
            return false;
        }
        while !out.is_empty() {
            let part = out.len().min(self.front.len());
            let (filled, rest) = out.split_at_mut(part);
            self.front.copy_to_slice(filled);
            out = rest;
            self.settle();
        }
        self.len -= count;
        true
    }

    /// Copies `count` bytes out into memory of their own, if there are as many: for what is kept longer than a
    /// tick and must not hold a whole chunk.
    pub fn take_copy(&mut self, count: usize) -> Option<Bytes> {
        if self.len < count {
            return None;
        }
        let mut out = Vec::with_capacity(count);
        while out.len() < count {
            let part = (count - out.len()).min(self.front.len());
            out.extend_from_slice(&self.front[..part]);
            self.front.advance(part);
            self.settle();
        }
        self.len -= count;
        Some(out.into())
    }

    /// Prepares for a time of waiting: few bytes, or bytes of many chunks, are copied into memory of their own, so that a
    /// peer that pauses inside a message does not hold the chunks that others are read into.
    pub fn rest(&mut self) {
        if self.is_empty() {
            self.rest.shrink_to(KEPT_PLACES);
        } else if self.len <= FEW_BYTES || self.rest.len() > MAX_CHUNKS {
            let len = self.len;
            if let Some(copy) = self.take_copy(len) {
                self.rest.shrink_to(KEPT_PLACES);
                self.push(copy);
            }
        }
    }

    /// Brings the next chunk to the front where the first is used up.
    fn settle(&mut self) {
        if self.front.is_empty() {
            self.front = self.rest.pop_front().unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn used_chunks_are_released() {
        let mut memory = bytes::BytesMut::with_capacity(8);
        memory.extend_from_slice(b"abcdefgh");
        let mut queue = ByteQueue::default();
        queue.push(memory.split().freeze());
        assert!(!memory.try_reclaim(8));
        assert_eq!(queue.take_copy(8).unwrap(), "abcdefgh");
        assert!(memory.try_reclaim(8), "the queue let go of the chunk");
    }

    /// A few bytes of an unfinished message do not hold a chunk, and neither do many chunks of a byte each.
    #[test]
    fn resting_bytes_hold_no_chunks() {
        let mut memory = bytes::BytesMut::with_capacity(100_000);
        memory.extend_from_slice(b"abcdefgh");
        let mut queue = ByteQueue::default();
        queue.push(memory.split().freeze());
        queue.skip(3);
        queue.rest();
        assert!(memory.try_reclaim(100_000), "the queue let go of the chunk");
        assert_eq!(queue.take_copy(5).unwrap(), "defgh");
        for _ in 0..200 {
            queue.push(Bytes::from(vec![7; 100]));
            queue.rest();
            assert!(queue.rest.len() <= MAX_CHUNKS);
        }
        assert_eq!(queue.take_copy(20_000).unwrap(), vec![7; 20_000]);
        (0..1000).for_each(|_| queue.push(Bytes::from_static(b"x")));
        queue.skip(1000);
        queue.rest();
        assert!(queue.rest.capacity() <= 2 * KEPT_PLACES);
    }

    proptest! {
        #[test]
        fn reads_one_stream_whatever_the_chunks(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..20),
            reads in proptest::collection::vec((0usize..6, 0usize..12), 0..30),
        ) {
            let mut queue = ByteQueue::default();
            let mut stream = chunks.concat();
            chunks.into_iter().for_each(|chunk| queue.push(chunk.into()));
            for (how, count) in reads {
                let available = count.min(stream.len());
                match how {
                    0 => prop_assert_eq!(queue.skip(count), available),
                    1 => {
                        let mut payload = Payload::new();
                        prop_assert_eq!(queue.take_into(count, &mut payload), available);
                        prop_assert_eq!(payload.concat(), &stream[..available]);
                    }
                    2 => {
                        let copy = queue.take_copy(count);
                        prop_assert_eq!(copy.as_deref(), stream.get(..count));
                        if copy.is_none() { continue }
                    }
                    3 => {
                        let mut out = vec![0; count];
                        let is_there = queue.take_to(&mut out);
                        prop_assert_eq!(is_there.then_some(&*out), stream.get(..count));
                        if !is_there { continue }
                    }
                    4 => {
                        queue.rest();
                        continue;
                    }
                    _ => {
                        prop_assert_eq!(queue.peek::<5>(), stream.first_chunk::<5>().copied());
                        continue;
                    }
                }
                stream.drain(..available);
                prop_assert_eq!(queue.len(), stream.len());
            }
        }
    }
}
