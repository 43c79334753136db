//! Values for the tests of several features.

use ecs_torrent_components::session::{Runs, Session, VERSION};
use ecs_torrent_protocol::hash::InfoHash;

/// Returns the session of a torrent of 45 bytes in pieces of 10, that holds nothing.
pub(crate) fn session() -> Session {
    Session {
        version: VERSION,
        info_hash: InfoHash([0; 20]),
        name: String::new(),
        renamed: None,
        root: "/".into(),
        resolved: None,
        folder: None,
        volume: None,
        lacks_metadata: false,
        total_size: 45,
        piece_length: 10,
        pieces: 5,
        have: Runs::default(),
        partial: Vec::new(),
        uploaded: 0,
        downloaded: 0,
        corrupt: 0,
        dropped: 0,
        wasted: 0,
        seconds_active: 0,
        require_complete: false,
        files: Vec::new(),
        created: Runs::default(),
        ids: Vec::new(),
        owner_key: None,
        permitted: Runs::default(),
        overwrite: false,
        paused: false,
        stopped: false,
        lost: Runs::default(),
        peers: Vec::new(),
        trackers: Vec::new(),
    }
}
