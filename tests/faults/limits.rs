//! Too many of something.

use std::io::Read;
use std::net::TcpStream;

use ecs_torrent::protocol::wire::Reserved;

use crate::bed::{Bed, Torrent, loopback};
use crate::peer::{connect_raw, handshake, read_handshake, unique_id};

/// Fault 31: ten thousand connections from one address are let in as far as one address may; others still connect.
#[test]
fn ten_thousand_connections_from_one_address() {
    let mut bed = Bed::with(|settings| settings.peers.max_inbound_per_ip = 16);
    let torrent = Torrent::new(1000, 16384);
    bed.seed(&torrent);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    // Both ends of each connection are in this process.
    let room = limit
        .maximum
        .map_or(10_000, |max| (max as usize / 2).saturating_sub(200));
    let count = room.min(10_000);
    let flood: Vec<TcpStream> = (0..count)
        .map(|_| connect_raw(bed.address(), Some(loopback(99))))
        .collect();
    // All but the first are closed by the engine.
    for mut stream in flood.iter().skip(200) {
        assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)), "left open");
    }
    let mut other = connect_raw(bed.address(), Some(loopback(98)));
    use std::io::Write;
    other
        .write_all(&handshake(torrent.info_hash(), unique_id(), Reserved::ours()))
        .unwrap();
    assert!(read_handshake(&mut other).is_some(), "another address connects");
    drop(flood);
}
