//! The Http port: GET requests to untrusted servers, streamed and bounded.

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
    /// Returned with every part of the response.
    pub tag: JobTag,
    /// The `http` or `https` URL.
    pub url: String,
    /// The address family to connect over. `None` allows either.
    pub family: Option<Family>,
    /// Timeout for the whole response.
    pub timeout: Duration,
    /// Maximum size of the body in bytes, after decompression. A longer body is an error.
    pub max_body_bytes: usize,
}

/// A part of a response.
#[derive(Debug)]
pub struct HttpEvent {
    /// From the request.
    pub tag: JobTag,
    /// The part.
    pub part: HttpPart,
}

/// The parts of a response: a head, chunks and an end, or only an end if the request failed.
#[derive(Debug, Clone)]
pub enum HttpPart {
    /// The start of the response.
    Head {
        /// HTTP status.
        status: u16,
    },
    /// Bytes of the body, after decompression.
    Chunk(Bytes),
    /// The end of the response, or the error that ended it early.
    End(Result<(), HttpError>),
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
    /// The request was redirected too often.
    #[error("too many redirects")]
    TooManyRedirects,
}

impl PortEvent for HttpEvent {
    fn purpose(&self) -> Purpose {
        self.tag.purpose
    }
}
