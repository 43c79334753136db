//! Bytes that have arrived and not been read yet, in the chunks in which they came.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

/// The bytes of one block, in the slices of the chunks it arrived in: nearly always one, two where it straddles.
pub type Payload = SmallVec<[Bytes; 2]>;

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

    proptest! {
        #[test]
        fn reads_one_stream_whatever_the_chunks(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..20),
            reads in proptest::collection::vec((0usize..5, 0usize..12), 0..30),
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
