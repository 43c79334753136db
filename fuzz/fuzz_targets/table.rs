//! Checks that any bytes are loaded as the saved state of a DHT node or refused without a change, and that a node with
//! that state saves it, loads it again, and sends nothing beyond its limits when it enters the network.
#![no_main]

use std::time::Duration;

use ecs_torrent_protocol::dht::krpc::MAX_SENT_ITEM;
use ecs_torrent_protocol::dht::node::{Node, NodeSettings};
use ecs_torrent_protocol::time::Timestamp;
use libfuzzer_sys::fuzz_target;

/// Bytes of a saved state with all nodes that are kept.
const MAX_STATE: usize = 24 << 10;

fuzz_target!(|state: &[u8]| {
    let (now, settings) = (Timestamp::ZERO, NodeSettings::default());
    let mut node = Node::new(settings.clone(), [1; 32], now);
    let before = node.save(now);
    if node.load(state, now).is_err() {
        assert_eq!(node.save(now), before);
        return;
    }
    let saved = node.save(now);
    assert!(saved.len() <= MAX_STATE);
    let mut next = Node::new(settings, [2; 32], now);
    next.load(&saved, now).expect("what was saved is loaded");
    assert_eq!(next.save(now), saved);
    for seconds in [0, 1, 6, 11] {
        let now = now + Duration::from_secs(seconds);
        next.advance(now);
        while let Some((to, datagram)) = next.next_datagram() {
            assert!(to.port() != 0 && datagram.len() <= MAX_SENT_ITEM);
        }
        assert!(next.stats(now).pending_queries <= 1024);
    }
});
