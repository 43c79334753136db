//! Untrusted peers that connect to a simulated engine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ecs_torrent::components::ids::StreamId;
use ecs_torrent::engine::port::Backend;
use ecs_torrent::engine::ports::net::{NetEvent, NetRequest, TransportChoice};
use ecs_torrent::engine::sim::{SimNet, Simulation};
use ecs_torrent::protocol::extension::{ExtensionHandshake, HANDSHAKE_ID};
use ecs_torrent::protocol::hash::InfoHash;
use ecs_torrent::protocol::peer_id::PeerId;
use ecs_torrent::protocol::wire::{Frame, FrameLimits, Handshake, Message, PeerCodec, Reserved, Session};

use crate::engines;

/// The first connection.
const FIRST_STREAM: StreamId = StreamId(2);

/// Number of bytes in which the engine sends its extension handshake.
const MAX_GREETING: usize = 4 << 10;

/// The ids of an engine's extensions, by name.
pub type Extensions = BTreeMap<String, u8>;

/// The fate of connections after a row's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// All stay open.
    Open,
    /// All stay open, and the engine sends at least half as many bytes as it receives.
    Answered,
    /// The engine closes some or all.
    Closed,
}

/// Connections to one engine from a host of their own. Closed connections are replaced.
pub struct Strangers {
    net: SimNet,
    to: SocketAddr,
    info_hash: InfoHash,
    /// Open connections.
    streams: BTreeSet<StreamId>,
    wanted: usize,
    last_stream: u64,
    /// Bytes sent to the engine.
    pub sent: usize,
    /// Bytes received from the engine.
    pub received: usize,
    /// Number of connections that the engine closed.
    closed: usize,
    /// The first bytes that the engine sent on the first connection.
    greeting: BytesMut,
}

impl Strangers {
    pub fn new(sim: &mut Simulation, wanted: usize, info_hash: InfoHash) -> Self {
        Self {
            net: sim.add_host(engines::listening(200)),
            to: engines::listening(1),
            info_hash,
            streams: BTreeSet::new(),
            wanted,
            last_stream: 0,
            sent: 0,
            received: 0,
            closed: 0,
            greeting: BytesMut::new(),
        }
    }

    /// Handles pending events and replaces missing connections. Each new connection starts with a handshake and
    /// `opening`.
    pub fn connect(&mut self, opening: &[u8]) {
        self.handle_events();
        while self.streams.len() < self.wanted {
            self.last_stream += 2;
            let stream = StreamId(self.last_stream);
            let (to, timeout) = (self.to, Duration::from_secs(10));
            self.net.submit(&mut vec![NetRequest::Connect {
                stream,
                to,
                transport: TransportChoice::Either,
                timeout,
            }]);
            self.streams.insert(stream);
            let mut bytes = BytesMut::new();
            self.handshake().write(&mut bytes);
            bytes.extend_from_slice(opening);
            self.send(stream, bytes.freeze());
        }
    }

    fn handshake(&self) -> Handshake {
        let mut peer_id = [b'-'; 20];
        peer_id[12..].copy_from_slice(&self.last_stream.to_be_bytes());
        // Extension protocol (BEP 10) and fast extension (BEP 6).
        let reserved = Reserved([0, 0, 0, 0, 0, 0x10, 0, 4]);
        Handshake {
            reserved,
            info_hash: self.info_hash,
            peer_id: PeerId(peer_id),
        }
    }

    /// Returns the engine's extensions, as its handshake on the first connection names them.
    ///
    /// # Panics
    /// If the engine has not sent its extension handshake yet.
    pub fn extensions(&mut self) -> Extensions {
        self.handle_events();
        let session = Session {
            geometry: None,
            fast: true,
            extended: true,
            dht: true,
        };
        let mut codec = PeerCodec::new(FrameLimits::default());
        codec.push(self.greeting.clone().freeze());
        codec.handshake().unwrap().unwrap();
        loop {
            if let Frame::Message(Message::Extended { id, payload }) = codec.next_frame(&session).unwrap().unwrap()
                && id == HANDSHAKE_ID
            {
                return ExtensionHandshake::read(&payload).unwrap().extensions;
            }
        }
    }

    /// Returns the fate of the connections since `sent` and `received` had these values.
    pub fn fate(&mut self, sent: usize, received: usize) -> Fate {
        self.handle_events();
        match self.closed {
            0 if 2 * (self.received - received) >= self.sent - sent => Fate::Answered,
            0 => Fate::Open,
            _ => Fate::Closed,
        }
    }

    /// Returns whether the engine has closed every connection.
    pub fn are_closed(&mut self) -> bool {
        self.handle_events();
        self.streams.is_empty()
    }

    /// Sends `bytes`, if there are any, on every open connection.
    pub fn send_to_all(&mut self, bytes: &Bytes) {
        if bytes.is_empty() {
            return;
        }
        let streams: Vec<StreamId> = self.streams.iter().copied().collect();
        streams.into_iter().for_each(|stream| self.send(stream, bytes.clone()));
    }

    /// Sends a datagram to the engine's listen address.
    pub fn send_datagram(&mut self, data: Bytes) {
        self.sent += data.len();
        let to = self.to;
        self.net
            .submit(&mut vec![NetRequest::Datagram { from: None, to, data }]);
    }

    fn send(&mut self, stream: StreamId, bytes: Bytes) {
        self.sent += bytes.len();
        let frames = vec![bytes];
        self.net.submit(&mut vec![NetRequest::Send { stream, frames }]);
    }

    /// Discards received bytes and closes the connections that the engine has closed.
    fn handle_events(&mut self) {
        let mut events = Vec::new();
        self.net.poll(usize::MAX, &mut events);
        let mut requests = Vec::new();
        for event in events {
            match event {
                NetEvent::Received { stream, chunk } => {
                    let bytes = chunk.len() as u32;
                    self.received += chunk.len();
                    if stream == FIRST_STREAM && self.greeting.len() < MAX_GREETING {
                        self.greeting.extend_from_slice(&chunk);
                    }
                    requests.push(NetRequest::Grant { stream, bytes });
                }
                NetEvent::Closed { stream, .. } => {
                    self.closed += 1;
                    self.streams.remove(&stream);
                    requests.push(NetRequest::Close {
                        stream,
                        is_orderly: false,
                        tag: None,
                    });
                }
                _ => {}
            }
        }
        self.net.submit(&mut requests);
    }
}
