//! Checks that any value of an item of the DHT names a torrent or none (BEP 46), and that the value which we write for
//! that torrent names the same one.
#![no_main]

use ecs_torrent_protocol::magnet::MutableLink;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|value: &[u8]| {
    if let Some(torrent) = MutableLink::torrent_in(value) {
        assert!(value.windows(20).any(|window| window == torrent.0));
        let written = MutableLink::value_of(torrent);
        assert_eq!(MutableLink::torrent_in(&written), Some(torrent));
    }
});
