//! Info-hashes, which identify a torrent (BEP 3, BEP 52), and the digests that verify its content.

use std::fmt;
use std::str::FromStr;

use sha1::{Digest, Sha1};
use sha2::Sha256;

/// A SHA-1 digest: of a piece, of a block, or of an info dictionary.
pub type Sha1Digest = [u8; 20];

/// Computes the SHA-1 of `parts`, concatenated.
pub fn sha1<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Sha1Digest {
    let mut hasher = Sha1::new();
    parts.into_iter().for_each(|part| hasher.update(part));
    hasher.finalize().into()
}

/// A SHA-256 digest: of a block, or of two digests (BEP 52).
pub type Sha256Digest = [u8; 32];

/// Computes the SHA-256 of `parts`, concatenated.
pub fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Sha256Digest {
    let mut hasher = Sha256::new();
    parts.into_iter().for_each(|part| hasher.update(part));
    hasher.finalize().into()
}

/// The digest that a piece must have, by the metainfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedDigest<'m> {
    /// SHA-1 of the piece (BEP 3).
    Sha1(&'m Sha1Digest),
    /// Root of the Merkle tree over the piece's blocks (BEP 52).
    Merkle {
        /// The root.
        root: &'m Sha256Digest,
        /// Leaves of the tree, a power of two: as many as a piece has blocks, or fewer if the file is shorter.
        leaf_count: u32,
    },
}

/// A 20-byte info-hash as used in handshakes and announces (BEP 3): the SHA-1 of the info dictionary, or the first 20
/// bytes of its SHA-256 for a v2 torrent (BEP 52).
///
/// ```
/// use ecs_torrent_protocol::hash::InfoHash;
///
/// let digits = "9a0b3c4d9a0b3c4d9a0b3c4d9a0b3c4d9a0b3c4d";
/// let hash: InfoHash = digits.parse().unwrap();
/// assert_eq!((hash.0[0], hash.to_string().as_str()), (0x9a, digits));
/// assert!("9a0b3c4d".parse::<InfoHash>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InfoHash(pub [u8; 20]);

/// A 32-byte v2 info-hash: the SHA-256 of the info dictionary (BEP 52).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InfoHashV2(pub [u8; 32]);

/// All info-hashes of one torrent. A hybrid torrent has both; every torrent has at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InfoHashes {
    /// SHA-1 of the info dictionary, if it describes a v1 torrent.
    pub v1: Option<InfoHash>,
    /// SHA-256 of the info dictionary, if it describes a v2 torrent.
    pub v2: Option<InfoHashV2>,
}

impl InfoHashes {
    /// Hashes the info dictionary's bytes, exactly as received, for the versions it describes.
    #[must_use]
    pub fn of(info: &[u8], is_v1: bool, is_v2: bool) -> Self {
        Self {
            v1: is_v1.then(|| InfoHash(sha1([info]))),
            v2: is_v2.then(|| InfoHashV2(Sha256::digest(info).into())),
        }
    }

    /// Every 20-byte hash by which peers and trackers may name this torrent, preferred hash first.
    pub fn wire_hashes(&self) -> impl Iterator<Item = InfoHash> {
        self.v1.into_iter().chain(self.v2.map(InfoHashV2::truncated))
    }

    /// The hash that identifies the torrent to users and in file names: v1 if present.
    ///
    /// # Panics
    /// If both hashes are absent, which no parsed torrent allows.
    #[must_use]
    pub fn primary(&self) -> InfoHash {
        self.wire_hashes().next().expect("a torrent has at least one info-hash")
    }
}

impl InfoHashV2 {
    /// The first 20 bytes, as used in handshakes and announces (BEP 52).
    #[must_use]
    pub fn truncated(self) -> InfoHash {
        let mut short = [0; 20];
        short.copy_from_slice(&self.0[..20]);
        InfoHash(short)
    }
}

/// The text is not an info-hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an info-hash is 40 hexadecimal digits")]
pub struct InfoHashError;

impl FromStr for InfoHash {
    type Err = InfoHashError;

    fn from_str(text: &str) -> Result<Self, InfoHashError> {
        // The decoder skips a leading `0x`.
        if text.len() != 40 {
            return Err(InfoHashError);
        }
        const_hex::decode_to_array(text).map(Self).map_err(|_| InfoHashError)
    }
}

macro_rules! print_hex {
    ($($hash:ident, $len:literal;)*) => {$(
        impl fmt::Display for $hash {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(const_hex::Buffer::<$len>::new().format(&self.0))
            }
        }

        impl fmt::Debug for $hash {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

print_hex! {
    InfoHash, 20;
    InfoHashV2, 32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        let text = "aabbccddeeff00112233445566778899aabbccdd";
        let hash: InfoHash = text.parse().unwrap();
        assert_eq!(hash.to_string(), text);
        assert_eq!(text.to_uppercase().parse::<InfoHash>().unwrap(), hash);
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["", "aabb", &"g".repeat(40), &"a".repeat(41), &"é".repeat(20)] {
            assert_eq!(bad.parse::<InfoHash>(), Err(InfoHashError));
        }
    }

    #[test]
    fn digests_match_the_published_vectors() {
        // FIPS 180 examples for "abc".
        let hashes = InfoHashes::of(b"abc", true, true);
        assert_eq!(
            hashes.v1.unwrap().to_string(),
            "a9993e364706816aba3e25717850c26c9cd0d89d"
        );
        assert!(
            hashes
                .v2
                .unwrap()
                .to_string()
                .starts_with("ba7816bf8f01cfea414140de5dae2223")
        );
        assert_eq!(sha1([&b"a"[..], b"", b"bc"]), hashes.v1.unwrap().0);
        assert_eq!(hashes.wire_hashes().count(), 2);
        assert_eq!(hashes.primary(), hashes.v1.unwrap());
    }
}
