//! Checks that any payload of `ut_pex` is read or refused, that a read message is written as the same one, and that the
//! messages made of any sequence of changes name exactly the connected peers.
#![no_main]

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ecs_torrent_protocol::pex::{MAX_PEERS, PexCursor, PexLog, PexMessage};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = PexMessage::read(data, 200) {
        assert!(message.added.len() <= 200 && message.dropped.len() <= 200);
        // An IPv4 address in IPv6 is written as IPv4, so the order may change once.
        let once = PexMessage::read(&message.write(), 200).unwrap();
        assert_eq!(PexMessage::read(&once.write(), 200), Ok(once));
    }
    let (mut log, mut cursor) = (PexLog::default(), PexCursor::default());
    let (mut listed, mut known) = (BTreeSet::new(), BTreeSet::new());
    let mut read = |log: &PexLog<u8>| {
        let changes = log.changes(&mut cursor, |key, _| key != 0);
        assert!(changes.added.len() <= MAX_PEERS && changes.dropped.len() <= MAX_PEERS);
        changes.dropped.iter().for_each(|address| drop(known.remove(address)));
        known.extend(changes.added.iter().map(|(_, address)| *address));
        (changes.is_empty(), known.clone())
    };
    for step in data {
        let key = step & 31;
        let address = SocketAddr::from(([10, 0, 0, key], 1));
        match step >> 5 {
            0..=2 => {
                log.add(address, key);
                listed.insert(address);
            }
            3..=5 => {
                log.remove(address, key);
                listed.remove(&address);
            }
            _ => drop(read(&log)),
        }
    }
    while !read(&log).0 {}
    listed.remove(&SocketAddr::from(([10, 0, 0, 0], 1)));
    assert_eq!(read(&log).1, listed);
});
