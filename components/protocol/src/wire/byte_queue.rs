//! A queue of received bytes not yet read, kept in the chunks in which they arrived.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

/// The bytes of one block, as slices of the chunks it arrived in: nearly always one slice, two if it straddles chunks.
pub type Payload = SmallVec<[Bytes; 2]>;

/// Remainders up to this many bytes are copied rather than keep a whole chunk alive.
const FEW_BYTES: usize = 1024;

/// Maximum number of chunks in a resting queue: each may be a slice of a much larger allocation.
const MAX_CHUNKS: usize = 16;

/// Capacity, in chunks, that an empty queue keeps.
const KEPT_PLACES: usize = 32;

/// A queue of chunks, read as one stream. A chunk is released as soon as its last byte is consumed, so its memory can
/// be reused for reading.
#[derive(Debug, Default)]
pub(crate) struct ByteQueue {
    /// Empty only if the whole queue is empty.
    front: Bytes,
    rest: VecDeque<Bytes>,
    len: usize,
}

impl ByteQueue {
    /// Appends a chunk.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.len += chunk.len();
        if self.front.is_empty() {
            self.front = chunk;
        } else if !chunk.is_empty() {
            self.rest.push_back(chunk);
        }
    }

    /// Number of bytes in the queue.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether the queue is empty.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the first `N` bytes without consuming them, or `None` if there are fewer.
    #[must_use]
    pub(crate) fn peek<const N: usize>(&self) -> Option<[u8; N]> {
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

    /// Drops up to `count` bytes and returns the number dropped.
    pub(crate) fn skip(&mut self, count: usize) -> usize {
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

    /// Moves up to `count` bytes into `payload`, as slices of their chunks, and returns the number moved.
    pub(crate) fn take_into(&mut self, count: usize, payload: &mut Payload) -> usize {
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

    /// Fills `out` with the first bytes; returns false and consumes nothing if there are too few.
    pub(crate) fn take_to(&mut self, mut out: &mut [u8]) -> bool {
        let count = out.len();
        if count < self.front.len() {
            out.copy_from_slice(&self.front[..count]);
            self.front.advance(count);
            self.len -= count;
            return true;
        }
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

    /// Copies `count` bytes into their own allocation, or returns `None` if there are fewer. For bytes kept longer than
    /// a tick, which must not hold a whole chunk.
    pub(crate) fn take_copy(&mut self, count: usize) -> Option<Bytes> {
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

    /// Prepares for idle time: copies a few bytes, or the bytes of many chunks, into their own allocation. A peer that
    /// pauses inside a message then does not hold chunks needed for reading from other peers.
    pub(crate) fn rest(&mut self) {
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

    /// Moves the next chunk to the front once the front is used up.
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

    /// A few bytes of an unfinished message hold no chunk, and one-byte chunks do not accumulate.
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

    /// Many bytes in few chunks are not copied.
    #[test]
    fn resting_copies_only_what_is_cheap_or_scattered() {
        let rested = |chunk_count: usize, chunk_len: usize| {
            let mut queue = ByteQueue::default();
            (0..chunk_count).for_each(|_| queue.push(Bytes::from(vec![7; chunk_len])));
            let before = queue.front.as_ptr();
            queue.rest();
            assert_eq!(queue.len(), chunk_count * chunk_len);
            let is_copied = queue.front.as_ptr() != before;
            assert_eq!(queue.rest.len(), if is_copied { 0 } else { chunk_count - 1 });
            is_copied
        };
        assert!(rested(1, FEW_BYTES) && rested(2, FEW_BYTES / 2));
        assert!(!rested(1, FEW_BYTES + 1) && !rested(2, FEW_BYTES));
        assert!(!rested(MAX_CHUNKS + 1, FEW_BYTES) && rested(MAX_CHUNKS + 2, FEW_BYTES));
        assert!(rested(10 * MAX_CHUNKS, FEW_BYTES));
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
