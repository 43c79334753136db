//! Limits on connections.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;

use ecs_torrent::protocol::wire::Reserved;

use crate::bed::{Bed, Torrent, loopback};
use crate::child::is_own_process;
use crate::peer::{connect_raw, handshake, read_handshake, unique_id};
use crate::skipping::skip;

/// Number of connections in the flood.
const FLOOD: usize = 10_000;

/// Whether the engine has closed a connection on which it sends nothing.
fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    match stream.peek(&mut [0; 1]) {
        Ok(0) => true,
        Ok(_) => panic!("the engine speaks first"),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock => false,
            ErrorKind::ConnectionReset => true,
            _ => panic!("{error}"),
        },
    }
}

/// Number of files that this process may open: our end of every connection, and the engine's end of each connection
/// that it has not closed yet.
const FILES: u64 = FLOOD as u64 + 2_000;

/// Raises this process's limit of open files as needed, if the system permits.
fn allow_files() -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(maximum.map_or(FILES, |maximum| maximum.min(FILES)));
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).is_ok() && current == Some(FILES)
}

/// Fault 31: of ten thousand connections from one address, only as many are accepted as one address may have. Other
/// addresses can still connect.
#[test]
fn ten_thousand_connections_from_one_address() {
    let name = "limits::ten_thousand_connections_from_one_address";
    if !is_own_process(name, Vec::new) {
        return;
    }
    if !allow_files() {
        return skip(name, "a process may not open 12000 files here");
    }
    let limit = 16;
    let mut bed = Bed::with(|settings| {
        settings.peers.max_inbound_per_ip = limit;
        // No connection is closed by a timeout.
        settings.peers.handshake_timeout_s = 3600;
        settings.peers.max_unidentified = FLOOD;
    });
    let torrent = Torrent::new(1000, 16384);
    bed.seed(&torrent);
    let flood: Vec<TcpStream> = (0..FLOOD)
        .map(|_| connect_raw(bed.address(), Some(loopback(99))))
        .collect();
    let open_count = || flood.iter().filter(|stream| !is_closed(stream)).count();
    bed.wait_until("all to be closed that are too many", || open_count() <= limit);
    assert_eq!(open_count(), limit, "and no more than that");
    let mut other = connect_raw(bed.address(), Some(loopback(98)));
    other
        .write_all(&handshake(torrent.info_hash(), unique_id(), Reserved::ours()))
        .unwrap();
    assert!(read_handshake(&mut other).is_some(), "another address connects");
}
