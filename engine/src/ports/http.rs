//! The Http port: GET requests to strangers' servers, streamed and bounded.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_protocol::compact::Family;

use crate::port::{JobTag, Port, PortEvent, Purpose};

/// The Http port.
pub type HttpPort = Port<HttpRequest, HttpEvent>;

/// A GET request.
#[derive(Debug, Clone)]
pub struct HttpRequest {
    /// Comes back with every part of the answer.
    pub tag: JobTag,
    /// What to get: `http` or `https`.
    pub url: String,
    /// Over which family; either where none is named.
    pub family: Option<Family>,
    /// Time for the whole answer.
    pub timeout: Duration,
    /// Most bytes of the body, decompressed; a longer one is an error.
    pub max_body_bytes: usize,
}

/// A part of an answer.
#[derive(Debug)]
pub struct HttpEvent {
    /// From the request.
    pub tag: JobTag,
    /// Which part.
    pub part: HttpPart,
}

/// The parts of an answer: a head, chunks, and an end; or an end alone, where it failed.
#[derive(Debug, Clone)]
pub enum HttpPart {
    /// The answer begins.
    Head {
        /// HTTP status.
        status: u16,
    },
    /// Bytes of the body, decompressed.
    Chunk(Bytes),
    /// Nothing more comes; with why, where something should have.
    End(Result<(), HttpError>),
}

/// Why a request failed. Never shows the URL, which may hold a passkey.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// Not a URL that can be requested.
    #[error("not an http or https URL")]
    BadUrl,
    /// The host name has addresses, and none of the family asked for.
    #[error("no address of this family")]
    NoAddress,
    /// The connection failed: refused, broken, or a certificate that is not valid.
    #[error("{0}")]
    Transport(Arc<str>),
    /// No answer in time.
    #[error("timed out")]
    Timeout,
    /// The body is longer than allowed.
    #[error("answer exceeds {0} bytes")]
    TooLarge(usize),
    /// A redirect led to a more private network than the URL that was asked for.
    #[error("redirected into a private network")]
    PrivateRedirect,
    /// Redirected too often.
    #[error("too many redirects")]
    TooManyRedirects,
}

impl PortEvent for HttpEvent {
    fn purpose(&self) -> Purpose {
        self.tag.purpose
    }
}
