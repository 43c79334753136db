//! An attacker's end of a connection.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ecs_torrent::protocol::peer_id::PeerId;
use ecs_torrent::protocol::wire::{HANDSHAKE_LEN, Handshake, Message, Reserved};

use crate::honest::Target;

/// Time limit of one read or write of an attacker.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A small generator of pseudorandom numbers.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Connects from `127.0.x.y`; `None` if the daemon refuses or the soak has ended.
pub fn connect(to: SocketAddr, from: [u8; 2]) -> Option<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
    let ip = IpAddr::from(Ipv4Addr::new(127, 0, from[0], from[1]));
    socket.bind(&SocketAddr::new(ip, 0).into()).ok()?;
    socket.connect_timeout(&to.into(), TIMEOUT).ok()?;
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(TIMEOUT)).ok()?;
    Some(stream)
}

/// Connects and completes the handshake.
pub fn shake_hands(to: SocketAddr, from: [u8; 2], target: &Target, id: u64) -> Option<TcpStream> {
    let mut stream = connect(to, from)?;
    let mut peer_id = *b"-XX0001-............";
    peer_id[12..].copy_from_slice(&id.to_be_bytes());
    let handshake = Handshake {
        reserved: Reserved::ours(),
        info_hash: target.info_hash,
        peer_id: PeerId(peer_id),
    };
    let mut bytes = Vec::new();
    handshake.write(&mut bytes);
    stream.write_all(&bytes).ok()?;
    let mut answer = [0; HANDSHAKE_LEN];
    stream.read_exact(&mut answer).ok()?;
    Some(stream)
}

/// Encodes messages.
pub fn bytes_of(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    messages.iter().for_each(|message| message.write(&mut bytes));
    bytes
}

/// Sends `bytes` again and again, at most `rate` bytes a second, until the daemon closes the connection or the soak
/// ends. With `reads`, reads and discards the answers.
pub fn flood(mut stream: TcpStream, bytes: &[u8], rate: usize, reads: bool, stop: &AtomicBool) {
    if reads && let Ok(mut reader) = stream.try_clone() {
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                match reader.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        });
    }
    let begun = Instant::now();
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        if stream.write_all(bytes).is_err() {
            return;
        }
        sent += bytes.len();
        let due = Duration::from_secs_f64(sent as f64 / rate as f64);
        thread::sleep(due.saturating_sub(begun.elapsed()).min(TIMEOUT));
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
}
