//! Captured packets of the loopback device: what programs really send.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex};

use socket2::{Domain, Protocol, Socket, Type};

/// The numbers of IPv4 and IPv6 in the header of a frame, and the one that stands for all protocols.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ALL: u16 = 0x0003;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Buffer for packets that wait for the reading thread, in bytes: a whole test's traffic.
const BUFFER_BYTES: usize = 32 << 20;

/// Datagrams and streams by the ports of both ends.
#[derive(Default)]
struct Seen {
    datagrams: Vec<Datagram>,
    /// The parts of each direction of each connection, by their distance from its first one.
    streams: BTreeMap<(u16, u16), BTreeMap<u32, Vec<u8>>>,
    first: BTreeMap<(u16, u16), u32>,
}

/// A captured UDP datagram.
#[derive(Debug, Clone)]
pub struct Datagram {
    /// The sender's port.
    pub from: u16,
    /// The content.
    pub data: Vec<u8>,
}

/// A running capture of IPv4 and IPv6 packets.
pub struct Capture(Arc<Mutex<Seen>>);

impl Capture {
    /// Begins to capture the packets that arrive. Fails without the right to open packet sockets.
    pub fn start() -> std::io::Result<Self> {
        Self::of(&[IPV4, IPV6])
    }

    /// Like [`Capture::start`]; captures the packets that leave as well. Packets of the loopback device are captured
    /// twice.
    pub fn start_both_ways() -> std::io::Result<Self> {
        Self::of(&[ALL])
    }

    fn of(protocols: &[u16]) -> std::io::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        for protocol in protocols {
            let protocol = Protocol::from(i32::from(protocol.to_be()));
            let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
            // Without the right to a larger buffer, the usual one has to do.
            let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
            let kept = Arc::downgrade(&seen);
            std::thread::spawn(move || {
                let mut packet = vec![0; 1 << 17];
                while let Ok(len) = socket.read(&mut packet) {
                    let Some(seen) = kept.upgrade() else { return };
                    seen.lock().unwrap().take(&packet[..len]);
                }
            });
        }
        Ok(Self(seen))
    }

    /// Returns the datagrams that the owner of a port has sent.
    pub fn datagrams_from(&self, port: u16) -> Vec<Datagram> {
        let seen = self.0.lock().unwrap();
        let from = seen.datagrams.iter().filter(|datagram| datagram.from == port);
        from.cloned().collect()
    }

    /// Returns all datagrams.
    pub fn datagrams(&self) -> Vec<Datagram> {
        self.0.lock().unwrap().datagrams.clone()
    }

    /// Returns each direction of each connection between peers, with the ports of its sender and its receiver.
    pub fn conversations(&self) -> Vec<((u16, u16), Conversation)> {
        let seen = self.0.lock().unwrap();
        let read = |parts: &BTreeMap<u32, Vec<u8>>| {
            let bytes: Vec<u8> = parts.values().flatten().copied().collect();
            Conversation::read(&bytes)
        };
        let streams = seen.streams.iter();
        streams
            .filter_map(|(ends, parts)| Some((*ends, read(parts)?)))
            .collect()
    }

    /// Returns each direction of the connections with an end at one of the ports.
    pub fn streams_at(&self, ports: &[u16]) -> Vec<Vec<u8>> {
        let seen = self.0.lock().unwrap();
        let at = |(from, to): &(u16, u16)| ports.contains(from) || ports.contains(to);
        let streams = seen.streams.iter().filter(|(ends, _)| at(ends));
        streams
            .map(|(_, parts)| parts.values().flatten().copied().collect())
            .collect()
    }
}

impl Seen {
    /// Takes a packet of IPv4, or of IPv6 without further headers, and no other.
    fn take(&mut self, packet: &[u8]) -> Option<()> {
        let (header, len, protocol) = match packet.first()? >> 4 {
            4 => {
                let header = usize::from(packet.first()? & 15) * 4;
                (
                    header,
                    usize::from(read_u16(packet, 2)?).saturating_sub(header),
                    *packet.get(9)?,
                )
            }
            6 => (40, usize::from(read_u16(packet, 4)?), *packet.get(6)?),
            _ => return None,
        };
        // A packet of a segmented stream may have a length of 0, and is as long as what was read.
        let end = if len == 0 { packet.len() } else { header + len };
        let payload = packet.get(header..end)?;
        let ends = (read_u16(payload, 0)?, read_u16(payload, 2)?);
        match protocol {
            UDP => self.datagrams.push(Datagram {
                from: ends.0,
                data: payload.get(8..)?.to_vec(),
            }),
            TCP => {
                let sequence = u32::from_be_bytes(payload.get(4..8)?.try_into().ok()?);
                let data = payload.get(usize::from(payload.get(12)? >> 4) * 4..)?;
                if !data.is_empty() {
                    let first = *self.first.entry(ends).or_insert(sequence);
                    let parts = self.streams.entry(ends).or_default();
                    parts.insert(sequence.wrapping_sub(first), data.to_vec());
                }
            }
            _ => {}
        }
        Some(())
    }
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// One direction of a peer connection.
#[derive(Debug)]
pub struct Conversation {
    /// The torrent.
    pub info_hash: [u8; 20],
    /// Whether the handshake says that a node of the DHT runs here (BEP 5).
    pub has_dht: bool,
    /// The messages: ids and contents.
    pub messages: Vec<(u8, Vec<u8>)>,
}

impl Conversation {
    /// Reads a stream that begins with a handshake.
    pub fn read(stream: &[u8]) -> Option<Self> {
        let rest = stream.strip_prefix(b"\x13BitTorrent protocol")?;
        let (handshake, mut rest) = rest.split_at_checked(48)?;
        let mut messages = Vec::new();
        while let Some((len, after)) = rest.split_first_chunk::<4>() {
            let Some((message, next)) = after.split_at_checked(u32::from_be_bytes(*len) as usize) else {
                break;
            };
            if let Some((id, content)) = message.split_first() {
                messages.push((*id, content.to_vec()));
            }
            rest = next;
        }
        Some(Self {
            info_hash: handshake[8..28].try_into().ok()?,
            has_dht: handshake[7] & 1 != 0,
            messages,
        })
    }
}
