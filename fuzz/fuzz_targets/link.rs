//! Checks that any text is a link with a public key (BEP 46) that is written and read again as the same, or fails with
//! an error whose text contains no control characters.
#![no_main]

use ecs_torrent_protocol::dht::krpc::MAX_SALT;
use ecs_torrent_protocol::magnet::MutableLink;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let is_meant = MutableLink::is_meant(text);
    match text.parse::<MutableLink>() {
        Ok(link) => {
            assert!(link.salt.len() <= MAX_SALT);
            let written = link.to_string();
            assert!(MutableLink::is_meant(&written));
            let again: MutableLink = written.parse().expect("what was written is read");
            assert_eq!((again.target(), &again), (link.target(), &link));
        }
        Err(error) => {
            assert!(!error.to_string().chars().any(char::is_control));
            assert!(!is_meant || !error.to_string().is_empty());
        }
    }
});
