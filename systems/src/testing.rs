//! Values for the tests of several features.

use ecs_torrent_components::session::Session;
use ecs_torrent_protocol::hash::InfoHash;

/// Returns the session of a torrent of 45 bytes in pieces of 10, that holds nothing.
pub(crate) fn session() -> Session {
    Session {
        root: "/".into(),
        total_size: 45,
        piece_length: 10,
        pieces: 5,
        ..Session::new(InfoHash([0; 20]))
    }
}
