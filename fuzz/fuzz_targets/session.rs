//! Checks that any bytes parse as a session that round-trips, or fail with a typed error.
#![no_main]

use ecs_torrent_components::session::Session;
use ecs_torrent_protocol::hash::InfoHash;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let hash = InfoHash([0xab; 20]);
    let _ = Session::salvage(data, hash);
    match Session::parse(data, hash) {
        Ok(session) => {
            let again = Session::parse(session.to_text().as_bytes(), hash).expect("what is written can be read");
            assert_eq!(again.to_text(), session.to_text());
        }
        Err(error) => assert!(!error.word().is_empty()),
    }
});
