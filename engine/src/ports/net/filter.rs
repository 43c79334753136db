//! Filters: ciphers that transform a stream's bytes below the port.

use std::fmt;

use bytes::{Bytes, BytesMut};
use ecs_torrent_components::ids::StreamId;

use super::NetEvent;

/// A transformation of bytes that keeps their number, such as a stream cipher.
///
/// ```
/// use ecs_torrent_components::ids::StreamId;
/// use ecs_torrent_engine::ports::net::{Cipher, Filter, NetRequest};
///
/// /// A toy cipher.
/// struct Xor(u8);
///
/// impl Cipher for Xor {
///     fn apply(&mut self, bytes: &mut [u8]) {
///         bytes.iter_mut().for_each(|byte| *byte ^= self.0);
///     }
/// }
///
/// // Both directions of a stream are transformed after the first 68 bytes, the handshake.
/// let request = NetRequest::Filter {
///     stream: StreamId(2),
///     incoming: Some(Filter::new(68, Xor(0x5a))),
///     outgoing: Some(Filter::new(68, Xor(0x5a))),
/// };
/// # drop(request);
/// ```
pub trait Cipher: Send + Sync + 'static {
    /// Transforms the next bytes of one direction of a stream, in place.
    fn apply(&mut self, bytes: &mut [u8]);
}

/// A cipher for one direction of a stream, and the position from which on it applies.
pub struct Filter {
    from: u64,
    cipher: Box<dyn Cipher>,
}

impl Filter {
    /// Creates a filter that leaves the first `from` bytes of the stream as they are.
    #[must_use]
    pub fn new(from: u64, cipher: impl Cipher) -> Self {
        let cipher = Box::new(cipher);
        Self { from, cipher }
    }

    /// Transforms bytes that begin at `position` of the stream. Every byte from the filter's position on has to pass
    /// exactly once, in order.
    pub(crate) fn apply(&mut self, position: u64, bytes: &mut [u8]) {
        let untouched = usize::try_from(self.from.saturating_sub(position)).unwrap_or(usize::MAX);
        if let Some(bytes) = bytes.get_mut(untouched..).filter(|bytes| !bytes.is_empty()) {
            self.cipher.apply(bytes);
        }
    }

    /// Transforms a frame that begins at `position` of the stream: in place if nobody else holds its memory, otherwise
    /// in a copy.
    pub(crate) fn apply_to(&mut self, position: u64, frame: Bytes) -> Bytes {
        if position + frame.len() as u64 <= self.from {
            return frame;
        }
        let mut bytes = frame
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        self.apply(position, &mut bytes);
        bytes.freeze()
    }

    /// Transforms the bytes of a stream that wait in `events` for the world to take them. They end at the position
    /// `end` of the stream.
    pub(crate) fn apply_to_waiting<'a>(
        &mut self,
        stream: StreamId,
        end: u64,
        events: impl Iterator<Item = &'a mut NetEvent>,
    ) {
        let of_stream = |event: &'a mut NetEvent| match event {
            NetEvent::Received { stream: other, chunk } if *other == stream => Some(chunk),
            _ => None,
        };
        let chunks: Vec<&mut Bytes> = events.filter_map(of_stream).collect();
        let mut position = end - chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        for chunk in chunks {
            let len = chunk.len() as u64;
            *chunk = self.apply_to(position, std::mem::take(chunk));
            position += len;
        }
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The cipher's state is a secret.
        f.debug_struct("Filter")
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Adds the number of bytes transformed so far.
    struct Counting(u8);

    impl Cipher for Counting {
        fn apply(&mut self, bytes: &mut [u8]) {
            for byte in bytes {
                self.0 = self.0.wrapping_add(1);
                *byte = byte.wrapping_add(self.0);
            }
        }
    }

    fn expected(data: &[u8], from: usize) -> Vec<u8> {
        let mut data = data.to_vec();
        let from = from.min(data.len());
        Counting(0).apply(&mut data[from..]);
        data
    }

    proptest! {
        /// Each byte from the position on is transformed once, however the bytes are split, and whether they wait or
        /// come later.
        #[test]
        fn every_byte_passes_once(
            data in prop::collection::vec(any::<u8>(), 1..200), cuts in prop::collection::vec(0_usize..200, 0..8),
            from in 0_usize..220, waiting in 0_usize..200, is_shared: bool,
        ) {
            let mut ends: Vec<usize> = cuts.into_iter().map(|cut| cut.min(data.len())).chain([data.len()]).collect();
            ends.sort_unstable();
            let whole = Bytes::from(data.clone());
            let mut start = 0;
            let mut chunks = Vec::new();
            for end in ends {
                chunks.push(match is_shared {
                    true => whole.slice(start..end),
                    false => Bytes::copy_from_slice(&data[start..end]),
                });
                start = end;
            }
            let waiting = waiting.min(chunks.len());
            // The world sets no filter before the bytes that it has taken.
            let mut filter = Filter::new(from as u64, Counting(0));
            let (stream, other) = (StreamId(1), StreamId(3));
            let later = chunks.split_off(waiting);
            let mut position = chunks.iter().map(Bytes::len).sum::<usize>() as u64;
            let mut events: Vec<NetEvent> = chunks
                .into_iter()
                .flat_map(|chunk| [
                    NetEvent::Received { stream, chunk },
                    NetEvent::Received { stream: other, chunk: Bytes::from_static(b"other") },
                ])
                .collect();
            filter.apply_to_waiting(stream, position, events.iter_mut());
            let mut found = Vec::new();
            for event in events {
                match event {
                    NetEvent::Received { stream: found_in, chunk } if found_in == stream => found.extend(chunk),
                    NetEvent::Received { chunk, .. } => prop_assert_eq!(&chunk[..], b"other"),
                    _ => {}
                }
            }
            for chunk in later {
                let len = chunk.len() as u64;
                found.extend(filter.apply_to(position, chunk));
                position += len;
            }
            prop_assert_eq!(found, expected(&data, from));
        }
    }
}
