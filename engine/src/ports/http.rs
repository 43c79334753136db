//! The Http port: GET requests to untrusted servers, streamed and bounded.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_protocol::compact::Family;

use crate::port::{JobTag, Port, PortEvent, Purpose};

/// The Http port.
pub type HttpPort = Port<HttpRequest, HttpEvent>;

/// A request from a world to the Http port.
#[derive(Debug, Clone)]
pub enum HttpRequest {
    /// Gets a resource. Answered by parts.
    Get(HttpGet),
    /// Lets the response deliver this many more bytes of its body. See [`HttpGet::credit`].
    Grant {
        /// The tag of the request.
        tag: JobTag,
        /// The number of bytes.
        bytes: u64,
    },
    /// Ends a request. No further part is delivered.
    Cancel {
        /// The tag of the request.
        tag: JobTag,
    },
}

/// A GET request.
#[derive(Debug, Clone)]
pub struct HttpGet {
    /// Returned with every part of the response. Requests that run at the same time have different tags.
    pub tag: JobTag,
    /// The `http` or `https` URL.
    pub url: String,
    /// The resources of servers on this machine or in a local network that may be requested.
    pub local_paths: LocalPaths,
    /// The address family to connect over. `None` allows either.
    pub family: Option<Family>,
    /// The bytes of the resource to get; `None` for all. A server may ignore it: see [`HttpPart::Head`].
    pub range: Option<Range<u64>>,
    /// Timeout for the whole response, without the time in which it waits for credit.
    pub timeout: Duration,
    /// Maximum size of the body in bytes, after decompression. A longer body is an error.
    pub max_body_bytes: usize,
    /// Bytes of the body that may be delivered before more are granted. The connection is not read while there is no
    /// credit, not even for the end of the response; the last chunk may exceed it.
    pub credit: u64,
}

/// Resources of servers on this machine or in a local network that may be requested. Redirects obey it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocalPaths {
    /// All of them: the user named the URL.
    All,
    /// Paths of trackers, which end in `/announce` or `/scrape`. A stranger who wrote a torrent or a magnet link
    /// cannot make the engine request anything else of a service that only this machine or network can reach.
    Trackers,
}

impl LocalPaths {
    /// Whether the path of a URL may be requested from a local server.
    #[must_use]
    pub fn allow(self, path: &str) -> bool {
        match self {
            Self::All => true,
            Self::Trackers => path.ends_with("/announce") || path.ends_with("/scrape"),
        }
    }
}

/// A part of a response.
#[derive(Debug)]
pub struct HttpEvent {
    /// The tag of the request.
    pub tag: JobTag,
    /// The part.
    pub part: HttpPart,
}

/// The parts of a response: a head, chunks and an end, or only an end if the request failed.
#[derive(Debug, Clone)]
pub enum HttpPart {
    /// The start of the response.
    Head {
        /// HTTP status; 206 if the server sends a part of the resource.
        status: u16,
        /// The server's address, if the backend knows it.
        server: Option<IpAddr>,
        /// The part that the server sends, if it says so.
        content: Option<ContentRange>,
    },
    /// Bytes of the body, after decompression.
    Chunk(Bytes),
    /// The end of the response, or the error that ended it early.
    End(Result<(), HttpError>),
}

/// The position of a body in the resource, from the header `Content-Range`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    /// Offset of the body's first byte.
    pub start: u64,
    /// Length of the whole resource, if the server knows it.
    pub total: Option<u64>,
}

impl ContentRange {
    /// Reads the value of a `Content-Range` header: `bytes 5-9/100`, or `*` for an unknown total.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (start, end) = range.trim().split_once('-')?;
        let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
        let total = match total.trim() {
            "*" => None,
            total => Some(total.parse().ok()?),
        };
        let is_sound = start <= end && total.is_none_or(|total| end < total);
        is_sound.then_some(Self { start, total })
    }
}

/// The reason why a request failed. Never contains the URL, which may hold a passkey.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The URL cannot be requested.
    #[error("not an http or https URL")]
    BadUrl,
    /// The host name has addresses, but none of the requested family.
    #[error("no address of this family")]
    NoAddress,
    /// The connection failed: refused, broken, or with an invalid certificate.
    #[error("{0}")]
    Transport(Arc<str>),
    /// The response did not complete in time.
    #[error("timed out")]
    Timeout,
    /// The body is longer than allowed.
    #[error("answer exceeds {0} bytes")]
    TooLarge(usize),
    /// A redirect led to a more private network than the network of the requested URL.
    #[error("redirected into a private network")]
    PrivateRedirect,
    /// A server of this machine or a local network was to be asked for something that no tracker has.
    #[error("local servers may be requested for announces and scrapes only")]
    LocalPath,
    /// The request was redirected too often.
    #[error("too many redirects")]
    TooManyRedirects,
}

impl PortEvent for HttpEvent {
    fn purpose(&self) -> Purpose {
        self.tag.purpose
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_trackers_are_asked_for_announces_and_scrapes() {
        for (path, is_of_tracker) in [
            ("/announce", true),
            ("/key/announce", true),
            ("/scrape", true),
            ("/", false),
            ("/announce/", false),
            ("/announce.php", false),
            ("/api/v1/stop", false),
            ("/denounce", false),
        ] {
            assert_eq!(LocalPaths::Trackers.allow(path), is_of_tracker, "{path}");
            assert!(LocalPaths::All.allow(path));
        }
    }

    #[test]
    fn content_ranges_are_read_strictly() {
        let range = |start, total| Some(ContentRange { start, total });
        for (value, expected) in [
            ("bytes 5-9/100", range(5, Some(100))),
            ("bytes 0-0/*", range(0, None)),
            ("bytes 9-5/100", None),
            ("bytes 5-100/100", None),
            ("bytes */100", None),
            ("5-9/100", None),
            ("bytes 5-9", None),
            ("bytes -1-9/100", None),
        ] {
            assert_eq!(ContentRange::parse(value), expected, "{value}");
        }
    }
}
