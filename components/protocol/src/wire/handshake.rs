//! The handshake that opens every connection (BEP 3).

use std::fmt;

use bytes::BufMut;

use crate::hash::InfoHash;
use crate::peer_id::PeerId;

/// Bytes of a handshake.
pub const HANDSHAKE_LEN: usize = 68;

const PROTOCOL: &[u8; 20] = b"\x13BitTorrent protocol";

/// The eight reserved bytes, which announce extensions.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Reserved(pub [u8; 8]);

impl Reserved {
    /// Byte and bit of the extension protocol (BEP 10).
    const EXTENSION: (usize, u8) = (5, 0x10);
    /// Byte and bit of the fast extension (BEP 6).
    const FAST: (usize, u8) = (7, 0x04);

    /// Byte and bit of the DHT (BEP 5).
    const DHT: (usize, u8) = (7, 0x01);

    /// The bits this engine always announces: the fast extension and the extension protocol.
    #[must_use]
    pub fn ours() -> Self {
        let mut bits = [0; 8];
        for (byte, bit) in [Self::EXTENSION, Self::FAST] {
            bits[byte] |= bit;
        }
        Self(bits)
    }

    /// Whether the extension protocol is announced (BEP 10).
    #[must_use]
    pub fn has_extension_protocol(self) -> bool {
        self.has(Self::EXTENSION)
    }

    /// Announces also that a node of the DHT runs at our address (BEP 5).
    #[must_use]
    pub fn with_dht(mut self) -> Self {
        let (byte, bit) = Self::DHT;
        self.0[byte] |= bit;
        self
    }

    /// Whether a node of the DHT is announced (BEP 5).
    #[must_use]
    pub fn has_dht(self) -> bool {
        self.has(Self::DHT)
    }

    /// Whether the fast extension is announced (BEP 6).
    #[must_use]
    pub fn has_fast(self) -> bool {
        self.has(Self::FAST)
    }

    fn has(self, (byte, bit): (usize, u8)) -> bool {
        self.0[byte] & bit != 0
    }
}

impl fmt::Debug for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", self.0)
    }
}

/// One side's handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// The announced extensions.
    pub reserved: Reserved,
    /// The torrent of this connection.
    pub info_hash: InfoHash,
    /// The sender's peer id.
    pub peer_id: PeerId,
}

/// The bytes are not a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a BitTorrent handshake")]
pub struct HandshakeError;

impl Handshake {
    /// Appends the wire form, [`HANDSHAKE_LEN`] bytes.
    pub fn write(&self, out: &mut impl BufMut) {
        out.put_slice(PROTOCOL);
        out.put_slice(&self.reserved.0);
        out.put_slice(&self.info_hash.0);
        out.put_slice(&self.peer_id.0);
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// Returns an error if the protocol name is different.
    pub fn read(bytes: &[u8; HANDSHAKE_LEN]) -> Result<Self, HandshakeError> {
        let (name, rest) = bytes.split_first_chunk::<20>().ok_or(HandshakeError)?;
        let (reserved, rest) = rest.split_first_chunk::<8>().ok_or(HandshakeError)?;
        let (info_hash, rest) = rest.split_first_chunk::<20>().ok_or(HandshakeError)?;
        let peer_id = rest.first_chunk::<20>().ok_or(HandshakeError)?;
        if name != PROTOCOL {
            return Err(HandshakeError);
        }
        Ok(Self {
            reserved: Reserved(*reserved),
            info_hash: InfoHash(*info_hash),
            peer_id: PeerId(*peer_id),
        })
    }

    /// Returns whether `first`, the first bytes of a connection, can still become a handshake.
    #[must_use]
    pub(crate) fn may_begin_with(first: &[u8]) -> bool {
        let known = first.len().min(PROTOCOL.len());
        first[..known] == PROTOCOL[..known]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_at_its_places() {
        let handshake = Handshake {
            reserved: Reserved::ours(),
            info_hash: InfoHash([1; 20]),
            peer_id: PeerId([2; 20]),
        };
        let mut bytes = Vec::new();
        handshake.write(&mut bytes);
        assert_eq!(bytes.len(), HANDSHAKE_LEN);
        // BEP 10: bit 20 from the right, counting from 0; BEP 6: third least significant bit of the last byte.
        assert_eq!(bytes[20..28], [0, 0, 0, 0, 0, 0x10, 0, 0x04]);
        let bytes: [u8; HANDSHAKE_LEN] = bytes.try_into().unwrap();
        assert_eq!(Handshake::read(&bytes), Ok(handshake));
        assert!(handshake.reserved.has_fast() && handshake.reserved.has_extension_protocol());

        let none = Reserved::default();
        assert!(!none.has_fast() && !none.has_extension_protocol());
        assert!(!Reserved::ours().has_dht() && Reserved::ours().with_dht().has_dht());
        let others = Reserved([0xff, 0xff, 0xff, 0xff, 0xff, !0x10, 0xff, !0x04]);
        assert!(!others.has_fast() && !others.has_extension_protocol());

        let mut other = bytes;
        other[3] ^= 1;
        assert_eq!(Handshake::read(&other), Err(HandshakeError));
        assert!(Handshake::may_begin_with(&bytes[..1]) && !Handshake::may_begin_with(&other));
        assert!(Handshake::may_begin_with(&[]) && !Handshake::may_begin_with(b"GET / HTTP/1.1"));
    }
}
