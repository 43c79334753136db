//! Peer exchange (BEP 11): messages of the extension `ut_pex`, and the differences to send to each peer.

mod log;

use std::net::{IpAddr, SocketAddr};

use bitflags::bitflags;
use bytes::Bytes;

pub use self::log::{PexChanges, PexCursor, PexLog};
use crate::bencode::{BencodeError, Document, Limits, Value};
use crate::compact::{self, RaggedError};

/// Name of the extension in handshakes (BEP 10).
pub const PEX: &str = "ut_pex";

/// Maximum number of added and of dropped peers in a message (BEP 11).
pub const MAX_PEERS: usize = 50;

/// Maximum length of a payload in bytes. The longest message of a client that obeys BEP 11 takes less than 2 KiB; the
/// first message of some clients names all their peers.
const MAX_PAYLOAD: usize = 16 << 10;

bitflags! {
    /// Properties of a peer, as far as the sender knows them (BEP 11).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct PexFlags: u8 {
        /// The peer prefers encrypted connections.
        const ENCRYPTION = 1;
        /// The peer has every piece, or wants none.
        const SEED = 1 << 1;
        /// The peer accepts uTP (BEP 29).
        const UTP = 1 << 2;
        /// The peer supports the hole punching extension (BEP 55).
        const HOLEPUNCH = 1 << 3;
        /// The sender has connected to the peer, so it can be reached.
        const REACHABLE = 1 << 4;
    }
}

/// A peer that a message adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PexPeer {
    /// The address at which the peer listens.
    pub address: SocketAddr,
    /// Properties of the peer.
    pub flags: PexFlags,
}

/// A message of the extension: changes of the sender's set of connected peers since its previous message.
///
/// ```
/// use ecs_torrent_protocol::pex::{PexFlags, PexMessage, PexPeer};
///
/// let address = "192.0.2.1:6881".parse().unwrap();
/// let message = PexMessage {
///     added: vec![PexPeer { address, flags: PexFlags::SEED }],
///     dropped: vec!["[2001:db8::1]:6881".parse().unwrap()],
/// };
/// assert_eq!(PexMessage::read(&message.write(), 50), Ok(message));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PexMessage {
    /// Peers that the sender has connected to, IPv4 first.
    pub added: Vec<PexPeer>,
    /// Peers that the sender is no longer connected to, IPv4 first.
    pub dropped: Vec<SocketAddr>,
}

/// The reason a payload is not a message of the extension.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PexError {
    /// Not bencode.
    #[error("malformed peer exchange: {0}")]
    Bencode(#[from] BencodeError),
    /// Not a dictionary.
    #[error("peer exchange is not a dictionary")]
    NotDict,
    /// A list of addresses ends within an address.
    #[error("malformed peer exchange: {0}")]
    Ragged(#[from] RaggedError),
}

impl PexMessage {
    /// Reads a payload, with at most `max` added and `max` dropped peers; others are ignored. Unknown keys, and flags
    /// whose number is not that of the addresses, are ignored.
    ///
    /// # Errors
    /// Returns an error if the payload is no such message, or is longer than 16 KiB.
    pub fn read(payload: &[u8], max: usize) -> Result<Self, PexError> {
        let document = Document::parse(payload, &Limits::small(MAX_PAYLOAD))?;
        let root = document.root();
        if !root.is_dict() {
            return Err(PexError::NotDict);
        }
        let bytes = |key: &[u8]| root.get(key).and_then(Value::as_bytes).unwrap_or_default();
        let v4 = with_flags(compact::read_v4(bytes(b"added"))?, bytes(b"added.f"));
        let v6 = with_flags(compact::read_v6(bytes(b"added6"))?, bytes(b"added6.f"));
        let added = v4.chain(v6).take(max).collect();
        let dropped = compact::read_v4(bytes(b"dropped"))?.chain(compact::read_v6(bytes(b"dropped6"))?);
        let dropped = dropped.take(max).collect();
        Ok(Self { added, dropped })
    }

    /// Returns the payload to send. An address that is an IPv4 address in IPv6 is written as IPv4.
    #[must_use]
    pub fn write(&self) -> Bytes {
        let mut added = Lists::default();
        self.added.iter().for_each(|peer| added.add(peer.address, peer.flags));
        let mut dropped = Lists::default();
        self.dropped
            .iter()
            .for_each(|peer| dropped.add(*peer, PexFlags::empty()));
        let mut payload = vec![b'd'];
        for (key, value) in [
            ("added", &added.v4),
            ("added.f", &added.v4_flags),
            ("added6", &added.v6),
            ("added6.f", &added.v6_flags),
            ("dropped", &dropped.v4),
            ("dropped6", &dropped.v6),
        ] {
            payload.extend_from_slice(format!("{}:{key}{}:", key.len(), value.len()).as_bytes());
            payload.extend_from_slice(value);
        }
        payload.push(b'e');
        payload.into()
    }

    /// Whether the message names no peers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.dropped.is_empty()
    }
}

/// Adds flags to addresses, if there are as many of both.
fn with_flags<'a>(
    addresses: impl Iterator<Item = SocketAddr> + 'a,
    flags: &'a [u8],
) -> impl Iterator<Item = PexPeer> + 'a {
    // The addresses come from a slice, so the number is known.
    let is_whole = addresses.size_hint() == (flags.len(), Some(flags.len()));
    let flags = flags.iter().copied().filter(move |_| is_whole);
    let flags = flags.chain(std::iter::repeat(0)).map(PexFlags::from_bits_truncate);
    addresses.zip(flags).map(|(address, flags)| PexPeer { address, flags })
}

/// Compact addresses of both families, with their flags.
#[derive(Default)]
struct Lists {
    v4: Vec<u8>,
    v4_flags: Vec<u8>,
    v6: Vec<u8>,
    v6_flags: Vec<u8>,
}

impl Lists {
    fn add(&mut self, address: SocketAddr, flags: PexFlags) {
        let (list, list_flags) = match address.ip().to_canonical() {
            IpAddr::V4(ip) => {
                self.v4.extend(ip.octets());
                (&mut self.v4, &mut self.v4_flags)
            }
            IpAddr::V6(ip) => {
                self.v6.extend(ip.octets());
                (&mut self.v6, &mut self.v6_flags)
            }
        };
        list.extend(address.port().to_be_bytes());
        list_flags.push(flags.bits());
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// As libtorrent writes it: only the keys with content, and others.
    #[test]
    fn messages_of_other_clients_are_read() {
        let payload = b"d5:added12:\x01\x02\x03\x04\x1a\xe1\x05\x06\x07\x08\x00\x017:added.f2:\x02\x1f7:dropped6:\x01\x02\x03\x04\x00\x0513:not specifiedi5ee";
        let message = PexMessage::read(payload, 50).unwrap();
        let seed = PexPeer {
            address: address("1.2.3.4:6881"),
            flags: PexFlags::SEED,
        };
        let other = PexPeer {
            address: address("5.6.7.8:1"),
            flags: PexFlags::all(),
        };
        assert_eq!(
            (message.added, message.dropped),
            (vec![seed, other], vec![address("1.2.3.4:5")])
        );
        assert_eq!(PexMessage::read(b"de", 50), Ok(PexMessage::default()));
    }

    #[test]
    fn flags_of_another_number_are_ignored() {
        for flags in ["1:\x02", "3:\x02\x02\x02", "i5e"] {
            let payload = format!("d5:added12:123456abcdef7:added.f{flags}e");
            let message = PexMessage::read(payload.as_bytes(), 50).unwrap();
            assert!(message.added.len() == 2 && message.added.iter().all(|peer| peer.flags.is_empty()));
        }
    }

    #[test]
    fn malformed_and_long_payloads_are_refused() {
        for bad in [
            &b"le"[..],
            b"",
            b"d5:added5:12345e",
            b"d6:added65:12345e",
            b"d8:dropped66:123456e",
            b"dei1e",
        ] {
            assert!(PexMessage::read(bad, 50).is_err(), "{bad:?}");
        }
        let long = |len: usize| format!("d5:added{len}:{}e", "x".repeat(len));
        assert_eq!(PexMessage::read(long(6000).as_bytes(), 7).unwrap().added.len(), 7);
        assert!(PexMessage::read(long(6 << 12).as_bytes(), 7).is_err());
    }

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        let v4 = any::<([u8; 4], u16)>().prop_map(SocketAddr::from);
        // Not an IPv4 address in IPv6.
        let v6 = any::<([u8; 16], u16)>().prop_map(|(mut ip, port)| {
            ip[0] |= 1;
            SocketAddr::from((ip, port))
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            mut added in vec((any_address(), 0u8..32), 0..120),
            mut dropped in vec(any_address(), 0..120),
        ) {
            added.sort_by_key(|(address, _)| address.is_ipv6());
            dropped.sort_by_key(SocketAddr::is_ipv6);
            let peer = |(address, flags)| PexPeer { address, flags: PexFlags::from_bits_truncate(flags) };
            let message = PexMessage { added: added.into_iter().map(peer).collect(), dropped };
            prop_assert_eq!(PexMessage::read(&message.write(), 120), Ok(message));
        }

        #[test]
        fn any_payload_is_read_or_refused(payload in vec(any::<u8>(), 0..200), max in 0usize..5) {
            if let Ok(message) = PexMessage::read(&payload, max) {
                prop_assert!(message.added.len() <= max && message.dropped.len() <= max);
            }
        }
    }
}
