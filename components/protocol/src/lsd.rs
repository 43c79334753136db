//! Local service discovery (BEP 14): messages that announce torrents to the hosts of the local network by multicast.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use bytes::Bytes;

use crate::compact::Family;
use crate::hash::InfoHash;

/// The multicast group of IPv4.
pub const GROUP_V4: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 192, 152, 143), 6771);

/// The multicast group of IPv6.
pub const GROUP_V6: SocketAddrV6 = SocketAddrV6::new(Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0xefc0, 0x988f), 6771, 0, 0);

/// Maximum number of torrents in a message: with them, it is shorter than 1400 bytes, so that it fits into a packet.
pub const MAX_HASHES: usize = 24;

/// Maximum length of a message that is read, in bytes. BEP 14 requires less than 1400.
const MAX_MESSAGE: usize = 1500;

/// Maximum length of a cookie that is read, in bytes. Ours has 16.
const MAX_COOKIE: usize = 64;

/// An announcement of torrents to the local network.
///
/// ```
/// use ecs_torrent_protocol::compact::Family;
/// use ecs_torrent_protocol::hash::InfoHash;
/// use ecs_torrent_protocol::lsd::LocalAnnounce;
///
/// let announce = LocalAnnounce {
///     port: 6881,
///     hashes: vec![InfoHash([7; 20])],
///     cookie: Some("mine".into()),
/// };
/// let message = announce.write(Family::V4);
/// assert!(message.starts_with(b"BT-SEARCH * HTTP/1.1\r\nHost: 239.192.152.143:6771\r\nPort: 6881\r\n"));
/// assert_eq!(LocalAnnounce::read(&message), Ok(announce));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAnnounce {
    /// The port at which the sender accepts connections.
    pub port: u16,
    /// The torrents, at most [`MAX_HASHES`].
    pub hashes: Vec<InfoHash>,
    /// Text by which the sender recognizes its own messages.
    pub cookie: Option<String>,
}

/// The reason a datagram is not an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocalAnnounceError {
    /// Longer than BEP 14 allows.
    #[error("local announcement is too long")]
    TooLong,
    /// Not text.
    #[error("local announcement is not text")]
    NotText,
    /// Another request than `BT-SEARCH`.
    #[error("not a local announcement")]
    NotSearch,
    /// No port, or more than one.
    #[error("local announcement without a valid port")]
    BadPort,
    /// No info-hash that is valid.
    #[error("local announcement without a valid info-hash")]
    NoHash,
}

impl LocalAnnounce {
    /// Reads a message. Names of headers are read in any letter case, and lines may end in LF alone, as other clients
    /// write them. Unknown headers, malformed info-hashes, long cookies and hashes beyond [`MAX_HASHES`] are ignored.
    ///
    /// # Errors
    /// Returns an error if the datagram is not an announcement.
    pub fn read(message: &[u8]) -> Result<Self, LocalAnnounceError> {
        if message.len() > MAX_MESSAGE {
            return Err(LocalAnnounceError::TooLong);
        }
        let text = std::str::from_utf8(message).map_err(|_| LocalAnnounceError::NotText)?;
        let mut lines = text.lines();
        let mut request = lines.next().unwrap_or_default().split_ascii_whitespace();
        let is_search = request
            .next()
            .is_some_and(|method| method.eq_ignore_ascii_case("BT-SEARCH"))
            && request.next() == Some("*")
            && request.next().is_some_and(|version| version.starts_with("HTTP/"));
        if !is_search {
            return Err(LocalAnnounceError::NotSearch);
        }
        let (mut port, mut hashes, mut cookie) = (None, Vec::new(), None);
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let (name, value) = (name.trim(), value.trim());
            if name.eq_ignore_ascii_case("port") {
                let read = value.parse::<u16>().ok().filter(|read| *read > 0);
                if port.replace(read.ok_or(LocalAnnounceError::BadPort)?).is_some() {
                    return Err(LocalAnnounceError::BadPort);
                }
            } else if name.eq_ignore_ascii_case("infohash") {
                let hash = value.parse::<InfoHash>().ok().filter(|_| hashes.len() < MAX_HASHES);
                hashes.extend(hash);
            } else if name.eq_ignore_ascii_case("cookie") && value.len() <= MAX_COOKIE {
                cookie = Some(value.to_owned());
            }
        }
        if hashes.is_empty() {
            return Err(LocalAnnounceError::NoHash);
        }
        let port = port.ok_or(LocalAnnounceError::BadPort)?;
        Ok(Self { port, hashes, cookie })
    }

    /// Returns the message to send to the group of a family.
    ///
    /// # Panics
    /// If there are more than [`MAX_HASHES`] torrents, in debug builds.
    #[must_use]
    pub fn write(&self, family: Family) -> Bytes {
        debug_assert!(self.hashes.len() <= MAX_HASHES, "a message must fit into a packet");
        let group: SocketAddr = match family {
            Family::V4 => GROUP_V4.into(),
            Family::V6 => GROUP_V6.into(),
        };
        let mut text = format!("BT-SEARCH * HTTP/1.1\r\nHost: {group}\r\nPort: {}\r\n", self.port);
        // Writing to a string cannot fail.
        for hash in &self.hashes {
            let _ = write!(text, "Infohash: {hash}\r\n");
        }
        if let Some(cookie) = &self.cookie {
            let _ = write!(text, "cookie: {cookie}\r\n");
        }
        text.push_str("\r\n\r\n");
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn messages_of_other_clients_are_read() {
        let upper = HASH.to_uppercase();
        let expected = LocalAnnounce {
            port: 6882,
            hashes: vec![HASH.parse().unwrap(); 2],
            cookie: Some("abc".to_owned()),
        };
        for message in [
            format!(
                "BT-SEARCH * HTTP/1.1\r\nHost: 239.192.152.143:6771\r\nPort: 6882\r\nInfohash: {HASH}\r\nInfohash: {upper}\r\ncookie: abc\r\n\r\n\r\n"
            ),
            format!("bt-search * HTTP/1.0\nPORT:6882\nINFOHASH:{upper}\ninfohash: {HASH}\nCookie: abc\nX-Other: 5\n\n"),
        ] {
            assert_eq!(
                LocalAnnounce::read(message.as_bytes()),
                Ok(expected.clone()),
                "{message}"
            );
        }
    }

    #[test]
    fn other_datagrams_are_refused() {
        use LocalAnnounceError::{BadPort, NoHash, NotSearch, NotText, TooLong};
        let line = format!("Infohash: {HASH}\r\n");
        for (message, error) in [
            (String::new(), NotSearch),
            ("M-SEARCH * HTTP/1.1\r\n\r\n".into(), NotSearch),
            (format!("BT-SEARCH * HTTP/1.1\r\n{line}\r\n"), BadPort),
            (format!("BT-SEARCH * HTTP/1.1\r\nPort: 0\r\n{line}\r\n"), BadPort),
            (format!("BT-SEARCH * HTTP/1.1\r\nPort: 70000\r\n{line}\r\n"), BadPort),
            (
                format!("BT-SEARCH * HTTP/1.1\r\nPort: 1\r\nPort: 2\r\n{line}\r\n"),
                BadPort,
            ),
            (
                "BT-SEARCH * HTTP/1.1\r\nPort: 1\r\nInfohash: 0123\r\n\r\n".into(),
                NoHash,
            ),
            (
                format!("BT-SEARCH * HTTP/1.1\r\nPort: 1\r\n{}", line.repeat(40)),
                TooLong,
            ),
        ] {
            assert_eq!(LocalAnnounce::read(message.as_bytes()), Err(error), "{message}");
        }
        assert_eq!(LocalAnnounce::read(&[0xff, 0xfe]), Err(NotText));
    }

    #[test]
    fn the_longest_message_fits_into_a_packet() {
        let announce = LocalAnnounce {
            port: u16::MAX,
            hashes: vec![InfoHash([0xab; 20]); MAX_HASHES],
            cookie: Some("0123456789abcdef".into()),
        };
        for family in Family::ALL {
            let message = announce.write(family);
            assert!(message.len() < 1400, "{}", message.len());
            assert_eq!(LocalAnnounce::read(&message), Ok(announce.clone()));
        }
        // A message of another client may name more torrents.
        let more = format!(
            "BT-SEARCH * HTTP/1.1\nPort:1\n{}",
            format!("Infohash:{HASH}\n").repeat(28)
        );
        assert_eq!(LocalAnnounce::read(more.as_bytes()).unwrap().hashes.len(), MAX_HASHES);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            port in 1u16..,
            hashes in vec(any::<[u8; 20]>().prop_map(InfoHash), 1..=MAX_HASHES),
            cookie in proptest::option::of("[0-9a-z]{1,16}"),
        ) {
            let announce = LocalAnnounce { port, hashes, cookie };
            prop_assert_eq!(LocalAnnounce::read(&announce.write(Family::V6)), Ok(announce));
        }

        #[test]
        fn any_datagram_is_read_or_refused(
            lines in vec("(BT-SEARCH \\* HTTP/1.1|Port: ?[0-9]{0,6}|Infohash:[0-9a-f]{38,42}|cookie:.*|.*)", 0..8),
            noise in vec(any::<u8>(), 0..60),
        ) {
            drop(LocalAnnounce::read(&noise));
            if let Ok(announce) = LocalAnnounce::read(lines.join("\r\n").as_bytes()) {
                prop_assert!(announce.port > 0 && (1..=MAX_HASHES).contains(&announce.hashes.len()));
            }
        }
    }
}
