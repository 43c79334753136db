//! The extension protocol (BEP 10): a handshake in which each side names its extensions and the message ids on which it
//! receives them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bendy::encoding::{AsString, Error, SingleItemEncoder, ToBencode};

use crate::bencode::{BencodeError, Document, Limits, Value};
use crate::compact;
use crate::text::printable;

/// The id of the extension handshake itself.
pub const HANDSHAKE_ID: u8 = 0;

/// Name of the extension that withdraws a piece (BEP 54).
pub const DONT_HAVE: &str = "lt_donthave";

/// Maximum number of extensions remembered per peer.
pub const MAX_EXTENSIONS: usize = 64;

/// The extension handshake, limited to the keys this engine reads and writes. Every key is optional.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExtensionHandshake {
    /// `m`: extension names and the ids for messages to the sender; id 0 disables an extension.
    pub extensions: BTreeMap<String, u8>,
    /// `v`: the client's name and version.
    pub client: Option<String>,
    /// `p`: the peer's listen port.
    pub listen_port: Option<u16>,
    /// `reqq`: the number of outstanding requests the peer queues before it drops them.
    pub request_queue: Option<u32>,
    /// `yourip`: our address as the peer sees it.
    pub your_ip: Option<IpAddr>,
    /// `ipv4`: the peer's IPv4 address, in addition to the one of the connection.
    pub ipv4: Option<Ipv4Addr>,
    /// `ipv6`: the peer's IPv6 address, in addition to the one of the connection.
    pub ipv6: Option<Ipv6Addr>,
    /// `upload_only`: the peer will not request anything (BEP 21).
    pub upload_only: Option<bool>,
    /// `metadata_size`: bytes of the info dictionary (BEP 9).
    pub metadata_size: Option<u32>,
}

/// The reason a payload is not an extension handshake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExtensionError {
    /// The payload is not bencode.
    #[error("malformed extension handshake: {0}")]
    Bencode(#[from] BencodeError),
    /// The payload is not a dictionary.
    #[error("extension handshake is not a dictionary")]
    NotDict,
}

impl ExtensionHandshake {
    /// Reads a handshake's payload. Unknown keys and values of the wrong type or range are ignored.
    ///
    /// # Errors
    /// Returns an error if the payload is not a dictionary.
    pub fn read(payload: &[u8]) -> Result<Self, ExtensionError> {
        let (document, _) = Document::parse_prefix(payload, &Limits::small(1 << 20))?;
        let root = document.root();
        if !root.is_dict() {
            return Err(ExtensionError::NotDict);
        }
        let ip = |key: &[u8]| root.get(key).and_then(Value::as_bytes).and_then(compact::read_ip);
        let int = |key: &[u8]| root.get(key).and_then(Value::as_int);
        let names = root.get(b"m").and_then(Value::as_dict).into_iter().flatten();
        let extensions = names.take(MAX_EXTENSIONS).filter_map(|(name, id)| {
            let name = std::str::from_utf8(name).ok()?;
            Some((name.to_owned(), u8::try_from(id.as_int()?).ok()?))
        });
        Ok(Self {
            extensions: extensions.collect(),
            client: root.get(b"v").and_then(Value::as_bytes).map(|name| printable(name, 64)),
            listen_port: int(b"p")
                .and_then(|port| u16::try_from(port).ok())
                .filter(|&port| port != 0),
            request_queue: int(b"reqq").and_then(|count| u32::try_from(count).ok()),
            your_ip: ip(b"yourip"),
            ipv4: ip(b"ipv4").and_then(|ip| match ip {
                IpAddr::V4(v4) => Some(v4),
                IpAddr::V6(_) => None,
            }),
            ipv6: ip(b"ipv6").and_then(|ip| match ip {
                IpAddr::V4(_) => None,
                IpAddr::V6(v6) => Some(v6),
            }),
            upload_only: int(b"upload_only").map(|flag| flag != 0),
            metadata_size: int(b"metadata_size").and_then(|size| u32::try_from(size).ok()),
        })
    }

    /// Returns the payload to send.
    ///
    /// # Panics
    /// Never: the encoder refuses only unsorted keys, and the keys are written in order.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        self.to_bencode().expect("keys are written in order")
    }
}

impl ToBencode for ExtensionHandshake {
    const MAX_DEPTH: usize = 3;

    fn encode(&self, encoder: SingleItemEncoder<'_>) -> Result<(), Error> {
        encoder.emit_dict(|mut dict| {
            if let Some(ip) = self.ipv4 {
                dict.emit_pair(b"ipv4", AsString(ip.octets()))?;
            }
            if let Some(ip) = self.ipv6 {
                dict.emit_pair(b"ipv6", AsString(ip.octets()))?;
            }
            dict.emit_pair(b"m", &self.extensions)?;
            if let Some(size) = self.metadata_size {
                dict.emit_pair(b"metadata_size", size)?;
            }
            if let Some(port) = self.listen_port {
                dict.emit_pair(b"p", port)?;
            }
            if let Some(count) = self.request_queue {
                dict.emit_pair(b"reqq", count)?;
            }
            if let Some(flag) = self.upload_only {
                dict.emit_pair(b"upload_only", u8::from(flag))?;
            }
            if let Some(client) = &self.client {
                dict.emit_pair(b"v", client)?;
            }
            if let Some(ip) = self.your_ip {
                dict.emit_pair(b"yourip", AsString(compact::write_ip(ip)))?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let handshake = ExtensionHandshake {
            extensions: [("lt_donthave".to_owned(), 1), ("ut_pex".to_owned(), 2)].into(),
            client: Some("ecs-torrent 0.1.0".into()),
            listen_port: Some(6881),
            request_queue: Some(500),
            your_ip: Some("1.2.3.4".parse().unwrap()),
            ipv4: Some([5, 6, 7, 8].into()),
            ipv6: Some("2001:db8::1".parse().unwrap()),
            upload_only: Some(true),
            metadata_size: Some(31235),
        };
        assert_eq!(ExtensionHandshake::read(&handshake.write()), Ok(handshake));
        let nothing = ExtensionHandshake::default();
        assert_eq!(nothing.write(), b"d1:mdee");
        assert_eq!(ExtensionHandshake::read(b"d1:mdee"), Ok(nothing));
    }

    #[test]
    fn odd_values_are_skipped() {
        let odd = b"d1:md6:toobigi256e3:negi-1e2:oki3e4:text1:xe1:pi70000e4:reqq3:abc1:v5:a\x1b[0m6:yourip3:abce";
        let read = ExtensionHandshake::read(odd).unwrap();
        assert_eq!(read.extensions, [("ok".to_owned(), 3)].into());
        assert_eq!(read.client.as_deref(), Some("a\u{fffd}[0m"));
        assert_eq!((read.listen_port, read.request_queue, read.your_ip), (None, None, None));
        assert!(ExtensionHandshake::read(b"le").is_err());
        assert!(ExtensionHandshake::read(b"").is_err());
    }
}
