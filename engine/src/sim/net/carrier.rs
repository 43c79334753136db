//! Carriers of streams between simulated hosts.

use ecs_torrent_components::peer::Transport;

/// The way in which a stream's segments travel. The two ends, their buffers and their windows are the same for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// Segments wait for their turn at both access links, as TCP's do.
    AccessLink,
    /// Segments pass the path and no access link: a pipe of unlimited bandwidth.
    Pipe,
}

/// A host's transports, in the order in which they are tried.
pub(super) type Carriers = Vec<(Transport, Carrier)>;

/// The transports of hosts without other carriers.
pub(super) fn only_tcp() -> Carriers {
    vec![(Transport::Tcp, Carrier::AccessLink)]
}
