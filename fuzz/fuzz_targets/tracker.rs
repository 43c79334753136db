//! Checks that any tracker reply parses as peers within the limits, or fails with an error whose text contains no
//! control characters.
#![no_main]

use std::net::SocketAddr;

use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::tracker::TrackerError;
use ecs_torrent_protocol::tracker::http::{read_announce, read_refusal, read_scrape};
use ecs_torrent_protocol::tracker::udp::{UdpExchange, UdpRequest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match read_announce(data, 50) {
        Ok(reply) => assert!(reply.peers.len() <= 50 && reply.peers.iter().all(|peer| peer.port() != 0)),
        Err(error) => printable(&error),
    }
    let _ = read_refusal(data).map_err(|error| printable(&error));
    let hash = InfoHash([b'h'; 20]);
    let _ = read_scrape(data, &[hash]).map_err(|error| printable(&error));
    for tracker in ["10.0.0.1:1", "[::1]:1"] {
        let tracker: SocketAddr = tracker.parse().expect("an address");
        let mut exchange = UdpExchange::new(UdpRequest::Scrape(vec![hash]), tracker, 4, 50);
        exchange.start(Timestamp::ZERO, None, 0);
        for packet in data.chunks(40) {
            exchange.on_packet(Timestamp::ZERO, packet, 0);
        }
    }
});

fn printable(error: &TrackerError) {
    assert!(!error.to_string().chars().any(char::is_control));
}
