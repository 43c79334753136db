//! Peer ids and the client names inside them (BEP 20).

use std::fmt;

/// The 20 bytes by which a peer identifies itself for one session (BEP 3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub [u8; 20]);

/// Our client code and version, the first 8 bytes of all our peer ids (BEP 20, Azureus style).
pub const CLIENT_PREFIX: &[u8; 8] = b"-EC0100-";

impl PeerId {
    /// Builds our peer id from 12 random bytes.
    #[must_use]
    pub fn ours(random: [u8; 12]) -> Self {
        let mut id = [0; 20];
        id[..8].copy_from_slice(CLIENT_PREFIX);
        id[8..].copy_from_slice(&random);
        Self(id)
    }

    /// The client's name and version as far as the id reveals them, human-readable: `Transmission 3.0.0`, `-XY1234-`.
    #[must_use]
    pub fn client(&self) -> String {
        if let Some(version) = self.0.strip_prefix(b"A2-") {
            // aria2 has its own style: `A2-1-36-0-`.
            let numbers = version.split(|b| *b == b'-').take(3).map(String::from_utf8_lossy);
            return format!("aria2 {}", numbers.collect::<Vec<_>>().join("."));
        }
        let Some((code, version)) = self.azureus_style() else {
            let printable = self.0.iter().take_while(|b| b.is_ascii_graphic());
            return printable.map(|&b| char::from(b)).take(8).collect();
        };
        let version = match version {
            [major, minor, tiny, _] if version.iter().all(u8::is_ascii_digit) => {
                format!("{}.{}.{}", major - b'0', minor - b'0', tiny - b'0')
            }
            other => String::from_utf8_lossy(other).into_owned(),
        };
        match CLIENTS.iter().find(|(known, _)| *known == code) {
            Some((_, name)) => format!("{name} {version}"),
            None => format!("{} {version}", String::from_utf8_lossy(code)),
        }
    }

    /// Splits `-`, two characters, four characters, `-`: the convention of nearly every current client.
    fn azureus_style(&self) -> Option<(&[u8], &[u8])> {
        let shape = self.0[0] == b'-' && self.0[7] == b'-' && self.0[1..7].iter().all(u8::is_ascii_graphic);
        shape.then(|| (&self.0[1..3], &self.0[3..7]))
    }
}

/// Codes of current clients; other codes are shown unchanged.
const CLIENTS: &[(&[u8], &str)] = &[
    (b"7T", "aTorrent"),
    (b"AZ", "Vuze"),
    (b"BC", "BitComet"),
    (b"BG", "BTGetit"),
    (b"BI", "BiglyBT"),
    (b"BT", "BitTorrent"),
    (b"DE", "Deluge"),
    (b"EC", "ecs-torrent"),
    (b"FD", "Free Download Manager"),
    (b"KT", "KTorrent"),
    (b"LT", "libtorrent"),
    (b"TR", "Transmission"),
    (b"TX", "Tixati"),
    (b"UT", "uTorrent"),
    (b"WW", "WebTorrent"),
    (b"XL", "Xunlei"),
    (b"lt", "rTorrent"),
    (b"qB", "qBittorrent"),
    (b"rQ", "rqbit"),
];

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_names() {
        let name = |prefix: &[u8]| {
            let mut id = [b'x'; 20];
            id[..prefix.len()].copy_from_slice(prefix);
            PeerId(id).client()
        };
        assert_eq!(name(b"-TR3000-"), "Transmission 3.0.0");
        assert_eq!(name(b"-LT20B0-"), "libtorrent 20B0");
        assert_eq!(name(b"-ZZ1234-"), "ZZ 1.2.3");
        assert_eq!(name(b"M4-3-6--"), "M4-3-6--");
        assert_eq!(name(b"A2-1-36-0-"), "aria2 1.36.0");
        assert_eq!(name(&[0; 20]), "");
        assert_eq!(PeerId::ours([7; 12]).client(), "ecs-torrent 0.1.0");
    }
}
