//! Checks that a datagram is not a message of the DHT, or is one that is written and read again as the same.
#![no_main]

use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::dht::krpc::{Body, MAX_LISTED, Packet, Query};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    let Ok(packet) = Packet::parse(datagram) else { return };
    let Ok(message) = packet.message() else { return };
    if let Body::Reply(reply) = &message.body {
        assert!(Family::ALL.iter().all(|family| reply.contacts(*family).count() <= MAX_LISTED));
        assert!(reply.values.len() <= MAX_LISTED);
    }
    // Refusals and unknown methods have no written form.
    let is_query = matches!(&message.body, Body::Query(Query { method, .. })
        if !matches!(method, Err(_) | Ok(ecs_torrent_protocol::dht::krpc::Method::Unknown { .. })));
    if is_query || !matches!(message.body, Body::Query(_)) {
        let written = message.write();
        let again = Packet::parse(&written).expect("what was written is read");
        assert_eq!(again.message().as_ref(), Ok(&message));
    }
});
