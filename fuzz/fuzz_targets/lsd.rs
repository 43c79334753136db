//! Checks that any datagram is read as a local announcement or refused, and that a read announcement is written as the
//! same one.
#![no_main]

use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::lsd::{LocalAnnounce, MAX_HASHES};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(announce) = LocalAnnounce::read(data) {
        assert!(announce.port > 0 && announce.hashes.len() <= MAX_HASHES);
        assert_eq!(LocalAnnounce::read(&announce.write(Family::V4)), Ok(announce));
    }
});
