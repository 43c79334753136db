//! Checks that any text is a magnet link that is written and read again as the same, or fails with an error whose text
//! contains no control characters.
#![no_main]

use ecs_torrent_protocol::magnet::{MAX_HINTS, Magnet};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<Magnet>() {
        Ok(magnet) => {
            let counts = [magnet.trackers.len(), magnet.peers.len(), magnet.web_seeds.len(), magnet.files.len()];
            assert!(counts.iter().all(|count| *count <= MAX_HINTS));
            // A name that is cut in the middle of joined characters is shown in another way the next time.
            let unnamed = Magnet { name: None, ..magnet };
            assert_eq!(unnamed.to_string().parse(), Ok(unnamed));
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
    }
});
