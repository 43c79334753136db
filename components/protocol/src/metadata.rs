//! Exchange of the info dictionary between peers: messages of the extension `ut_metadata`, and an [`Assembly`] of the
//! pieces (BEP 9).

mod fetch;

use bytes::{Bytes, BytesMut};

pub use self::fetch::{Fetch, FetchLimits, LATE, Outcome};
use crate::bencode::{BencodeError, Document, Limits, Value};

/// Name of the extension in handshakes (BEP 10).
pub const METADATA: &str = "ut_metadata";

/// Length in bytes of each piece of the info dictionary but the last.
pub const PIECE_LEN: u32 = 16 << 10;

/// Maximum length of a message's dictionary in bytes. Ours take less than 60.
const MAX_DICT: usize = 1 << 10;

/// Returns the number of pieces of an info dictionary of `size` bytes.
#[must_use]
pub fn piece_count(size: u32) -> u32 {
    size.div_ceil(PIECE_LEN)
}

/// Returns the length of a piece of an info dictionary of `size` bytes; 0 beyond the last.
#[must_use]
pub fn piece_len(size: u32, piece: u32) -> u32 {
    let begin = piece.saturating_mul(PIECE_LEN);
    size.saturating_sub(begin).min(PIECE_LEN)
}

/// A message of the extension.
///
/// ```
/// use bytes::Bytes;
/// use ecs_torrent_protocol::metadata::MetadataMessage;
///
/// let request = MetadataMessage::Request { piece: 3 };
/// let payload = request.write();
/// assert_eq!(payload, "d8:msg_typei0e5:piecei3ee");
/// assert_eq!(MetadataMessage::read(&payload), Ok(Some(request)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataMessage {
    /// Requests a piece.
    Request {
        /// Index of the piece.
        piece: u32,
    },
    /// Answers with a piece.
    Data {
        /// Index of the piece.
        piece: u32,
        /// Bytes of the whole info dictionary.
        total_size: u32,
        /// The bytes of the piece.
        data: Bytes,
    },
    /// Answers that the piece will not come.
    Reject {
        /// Index of the piece.
        piece: u32,
    },
}

/// The reason a payload is not a message of the extension.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// Not bencode.
    #[error("malformed metadata message: {0}")]
    Bencode(#[from] BencodeError),
    /// A key is missing, of another type, or out of range.
    #[error("metadata message without a valid {0}")]
    Key(&'static str),
    /// A request or a reject with data after it.
    #[error("metadata message with data that does not belong to it")]
    Trailing,
}

impl MetadataMessage {
    /// Reads a payload; the data of a piece stays a slice of it. `None` is a message of an unknown type, to be ignored
    /// (BEP 9).
    ///
    /// # Errors
    /// Returns an error if the payload is no such message.
    pub fn read(payload: &Bytes) -> Result<Option<Self>, MetadataError> {
        let head = &payload[..payload.len().min(MAX_DICT)];
        let (document, used) = Document::parse_prefix(head, &Limits::small(MAX_DICT))?;
        let root = document.root();
        let int = |key: &'static str| {
            let value = root.get(key.as_bytes()).and_then(Value::as_int);
            let value = value.and_then(|value| u32::try_from(value).ok());
            value.ok_or(MetadataError::Key(key))
        };
        let message = match root.get(b"msg_type").and_then(Value::as_int) {
            Some(0) => Self::Request { piece: int("piece")? },
            Some(1) => Self::Data {
                piece: int("piece")?,
                total_size: int("total_size")?,
                data: payload.slice(used..),
            },
            Some(2) => Self::Reject { piece: int("piece")? },
            Some(_) => return Ok(None),
            None => return Err(MetadataError::Key("msg_type")),
        };
        match message {
            Self::Data { .. } => Ok(Some(message)),
            _ if used < payload.len() => Err(MetadataError::Trailing),
            message => Ok(Some(message)),
        }
    }

    /// Returns the payload to send.
    #[must_use]
    pub fn write(&self) -> Bytes {
        let (kind, piece, rest) = match self {
            Self::Request { piece } => (0, piece, None),
            Self::Data {
                piece,
                total_size,
                data,
            } => (1, piece, Some((total_size, data))),
            Self::Reject { piece } => (2, piece, None),
        };
        let mut payload = BytesMut::new();
        payload.extend_from_slice(format!("d8:msg_typei{kind}e5:piecei{piece}e").as_bytes());
        if let Some((total_size, _)) = rest {
            payload.extend_from_slice(format!("10:total_sizei{total_size}e").as_bytes());
        }
        payload.extend_from_slice(b"e");
        if let Some((_, data)) = rest {
            payload.extend_from_slice(data);
        }
        payload.freeze()
    }
}

/// An info dictionary of a claimed size, gathered piece by piece from sources of type `S`.
///
/// Peers may lie about the size: there is one assembly for each size that is claimed, and it allocates memory only for
/// received pieces.
#[derive(Debug)]
pub struct Assembly<S> {
    size: u32,
    pieces: Vec<Option<(Bytes, S)>>,
    missing: u32,
}

impl<S: Clone> Assembly<S> {
    /// Creates an empty assembly of `size` bytes. Costs 40 bytes for each piece.
    #[must_use]
    pub fn new(size: u32) -> Self {
        let count = piece_count(size);
        Self {
            size,
            pieces: std::iter::repeat_with(|| None).take(count as usize).collect(),
            missing: count,
        }
    }

    /// Returns the claimed size in bytes.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Returns the number of pieces.
    #[must_use]
    pub fn piece_count(&self) -> u32 {
        self.pieces.len() as u32
    }

    /// Returns the number of received pieces.
    #[must_use]
    pub fn received(&self) -> u32 {
        self.piece_count() - self.missing
    }

    /// Returns the number of missing pieces.
    #[must_use]
    pub fn missing_count(&self) -> u32 {
        self.missing
    }

    /// Returns whether all pieces are received.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Returns whether a piece is received.
    #[must_use]
    pub fn has(&self, piece: u32) -> bool {
        self.pieces.get(piece as usize).is_some_and(Option::is_some)
    }

    /// Returns the indexes of the missing pieces.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        (0..)
            .zip(&self.pieces)
            .filter(|(_, piece)| piece.is_none())
            .map(|(index, _)| index)
    }

    /// Keeps a piece. Returns false for a piece that is received already, does not exist, or has the wrong length.
    pub fn add(&mut self, piece: u32, data: Bytes, source: S) -> bool {
        let is_of_size = data.len() as u64 == u64::from(piece_len(self.size, piece));
        match self.pieces.get_mut(piece as usize) {
            Some(place @ None) if is_of_size => {
                *place = Some((data, source));
                self.missing -= 1;
                true
            }
            _ => false,
        }
    }

    /// Returns the received pieces, with their sources, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Bytes, &S)> {
        let pieces = (0..).zip(&self.pieces);
        pieces.filter_map(|(index, piece)| piece.as_ref().map(|(data, source)| (index, data, source)))
    }

    /// Returns the bytes of a complete assembly in order.
    #[must_use]
    pub fn parts(&self) -> Vec<Bytes> {
        self.iter().map(|(_, data, _)| data.clone()).collect()
    }

    /// Forgets all pieces.
    pub fn clear(&mut self) {
        self.pieces.fill_with(|| None);
        self.missing = self.piece_count();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(payload: &'static [u8]) -> Result<Option<MetadataMessage>, MetadataError> {
        MetadataMessage::read(&Bytes::from_static(payload))
    }

    /// The examples of BEP 9.
    #[test]
    fn messages_of_the_specification() {
        let request = MetadataMessage::Request { piece: 0 };
        assert_eq!(request.write(), "d8:msg_typei0e5:piecei0ee");
        assert_eq!(read(b"d8:msg_typei0e5:piecei0ee"), Ok(Some(request)));
        let reject = MetadataMessage::Reject { piece: 0 };
        assert_eq!(reject.write(), "d8:msg_typei2e5:piecei0ee");
        assert_eq!(read(b"d8:msg_typei2e5:piecei0ee"), Ok(Some(reject)));
        let data = MetadataMessage::Data {
            piece: 0,
            total_size: 34256,
            data: Bytes::from_static(b"xxxxx"),
        };
        let payload = b"d8:msg_typei1e5:piecei0e10:total_sizei34256eexxxxx";
        assert_eq!(data.write(), &payload[..]);
        assert_eq!(read(payload), Ok(Some(data)));
    }

    #[test]
    fn odd_messages() {
        assert_eq!(
            read(b"d8:msg_typei3e5:piecei0ee"),
            Ok(None),
            "an unknown type is ignored"
        );
        for bad in [
            &b""[..],
            b"le",
            b"de",
            b"d5:piecei0ee",
            b"d8:msg_typei0ee",
            b"d8:msg_typei0e5:piecei-1ee",
            b"d8:msg_typei0e5:piecei4294967296ee",
            b"d8:msg_typei1e5:piecei0eexx",
            b"d8:msg_typei1e5:piecei0e10:total_sizei-1eexx",
            b"d8:msg_typei0e5:piecei0eex",
        ] {
            assert!(read(bad).is_err(), "{}", bad.escape_ascii());
        }
        let long = Bytes::from(format!("d1:a2000:{}8:msg_typei0e5:piecei0ee", "a".repeat(2000)));
        assert!(MetadataMessage::read(&long).is_err(), "a dictionary has a bound");
    }

    #[test]
    fn sizes_at_the_borders() {
        for (size, lens) in [
            (0, vec![]),
            (1, vec![1]),
            (16_384, vec![16_384]),
            (16_385, vec![16_384, 1]),
            (32_768, vec![16_384, 16_384]),
        ] {
            assert_eq!(piece_count(size) as usize, lens.len());
            let found: Vec<u32> = (0..piece_count(size)).map(|piece| piece_len(size, piece)).collect();
            assert_eq!(found, lens);
            assert_eq!(piece_len(size, piece_count(size)), 0);
        }
        assert_eq!(piece_len(u32::MAX, u32::MAX), 0);
    }

    #[test]
    fn pieces_of_the_wrong_length_are_refused() {
        let mut assembly = Assembly::new(20_000);
        let piece = |len| Bytes::from(vec![7; len]);
        for (index, len) in [
            (0, 0),
            (0, 3616),
            (0, 16_385),
            (1, 16_384),
            (1, 3615),
            (2, 0),
            (u32::MAX, 0),
        ] {
            assert!(!assembly.add(index, piece(len), 'a'), "{index} {len}");
        }
        assert!(assembly.add(1, piece(3616), 'a'));
        assert!(!assembly.add(1, piece(3616), 'b'), "a second copy");
        assert_eq!(
            (assembly.received(), assembly.is_complete(), assembly.has(1)),
            (1, false, true)
        );
        assert_eq!(assembly.missing().collect::<Vec<_>>(), [0]);
        assert!(assembly.add(0, piece(16_384), 'b'));
        assert!(assembly.is_complete());
        let sources: Vec<_> = assembly.iter().map(|(index, _, source)| (index, *source)).collect();
        assert_eq!(sources, [(0, 'b'), (1, 'a')]);
        assembly.clear();
        assert_eq!((assembly.received(), assembly.missing().count()), (0, 2));
        assert!(Assembly::<()>::new(0).is_complete());
    }

    proptest! {
        #[test]
        fn an_assembly_returns_what_was_cut(data in proptest::collection::vec(any::<u8>(), 1..60_000), start: usize) {
            let data = Bytes::from(data);
            let size = data.len() as u32;
            let mut assembly = Assembly::new(size);
            let count = piece_count(size) as usize;
            for step in 0..count {
                let piece = ((start % count + step) % count) as u32;
                let begin = (piece * PIECE_LEN) as usize;
                let part = data.slice(begin..begin + piece_len(size, piece) as usize);
                let message = MetadataMessage::Data { piece, total_size: size, data: part };
                let Ok(Some(MetadataMessage::Data { piece, data, .. })) = MetadataMessage::read(&message.write()) else {
                    panic!("not read back");
                };
                prop_assert!(assembly.add(piece, data, ()));
            }
            prop_assert!(assembly.is_complete());
            prop_assert_eq!(assembly.parts().concat(), data);
        }

        #[test]
        fn any_payload_is_read_or_refused(payload: Vec<u8>) {
            let _ = MetadataMessage::read(&payload.into());
        }
    }
}
