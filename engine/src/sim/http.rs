//! The simulated Http port, and the servers behind it.
//!
//! A request takes the time of a connection and of its answer, and no bandwidth. There is no TLS: `https` works like
//! `http`, on its own port. Redirects are not followed.

mod port;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_protocol::time::Timestamp;

pub(super) use self::port::SimHttp;

/// Response of a simulated HTTP server to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpReply {
    /// Answers the request.
    Answer {
        /// HTTP status.
        status: u16,
        /// The body, delivered in chunks of 1000 bytes.
        body: Bytes,
        /// Time until the server answers.
        wait: Duration,
        /// Number of body bytes after which the connection is lost.
        cut_at: Option<usize>,
    },
    /// Refuses the connection.
    Refuse,
    /// Accepts the connection and never answers.
    Silence,
}

impl HttpReply {
    /// A complete answer without delay.
    #[must_use]
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self::Answer {
            status,
            body: body.into(),
            wait: Duration::ZERO,
            cut_at: None,
        }
    }
}

/// A server: a function of the time, the client's address, and the path and query.
pub(super) type HttpHost = Box<dyn FnMut(Timestamp, IpAddr, &str) -> HttpReply + Send>;
