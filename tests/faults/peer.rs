//! A peer whose behavior a test scripts.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use bytes::Bytes;
use ecs_torrent::protocol::geometry::BlockRequest;
use ecs_torrent::protocol::hash::InfoHash;
use ecs_torrent::protocol::peer_id::PeerId;
use ecs_torrent::protocol::wire::{
    Block, Frame, FrameLimits, HANDSHAKE_LEN, Handshake, Message, PeerCodec, Reserved, Session, write_block_header,
};

use crate::bed::{DEADLINE, Torrent};

/// A connection to an engine, after the handshake.
pub struct ScriptedPeer {
    stream: TcpStream,
    codec: PeerCodec,
    session: Session,
}

/// Returns a peer id that is unique in this process.
pub fn unique_id() -> PeerId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut id = *b"-XX0001-............";
    id[12..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    PeerId(id)
}

/// Opens a connection, from the address `from` if given.
pub fn connect_raw(to: SocketAddr, from: Option<IpAddr>) -> TcpStream {
    let domain = socket2::Domain::for_address(to);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
    if let Some(ip) = from {
        socket.bind(&SocketAddr::new(ip, 0).into()).unwrap();
    }
    socket.connect(&to.into()).unwrap();
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

impl ScriptedPeer {
    /// Connects to an engine and performs the handshake.
    pub fn connect(to: SocketAddr, torrent: &Torrent) -> Self {
        Self::connect_as(to, torrent, unique_id())
    }

    pub fn connect_as(to: SocketAddr, torrent: &Torrent, id: PeerId) -> Self {
        let mut stream = connect_raw(to, None);
        stream
            .write_all(&handshake(torrent.info_hash(), id, Reserved::ours()))
            .unwrap();
        read_handshake(&mut stream).expect("the engine's handshake");
        Self::over(stream, torrent, true)
    }

    /// Like [`ScriptedPeer::connect_as`], from a given address.
    pub fn connect_from(to: SocketAddr, from: IpAddr, torrent: &Torrent, id: PeerId) -> Self {
        let mut stream = connect_raw(to, Some(from));
        stream
            .write_all(&handshake(torrent.info_hash(), id, Reserved::ours()))
            .unwrap();
        read_handshake(&mut stream).expect("the engine's handshake");
        Self::over(stream, torrent, true)
    }

    /// Wraps a connection on which the handshake is done.
    pub fn after_handshake(stream: TcpStream, torrent: &Torrent) -> Self {
        Self::over(stream, torrent, true)
    }

    /// Like [`ScriptedPeer::connect`], without any extension.
    pub fn connect_plain(to: SocketAddr, torrent: &Torrent) -> Self {
        let mut stream = connect_raw(to, None);
        stream
            .write_all(&handshake(torrent.info_hash(), unique_id(), Reserved::default()))
            .unwrap();
        read_handshake(&mut stream).expect("the engine's handshake");
        Self::over(stream, torrent, false)
    }

    /// Accepts a connection from an engine and performs the handshake.
    pub fn accept(listener: &TcpListener, torrent: &Torrent) -> Self {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        read_handshake(&mut stream).expect("the engine's handshake");
        stream
            .write_all(&handshake(torrent.info_hash(), unique_id(), Reserved::ours()))
            .unwrap();
        Self::over(stream, torrent, true)
    }

    fn over(stream: TcpStream, torrent: &Torrent, extended: bool) -> Self {
        Self {
            stream,
            codec: PeerCodec::new(FrameLimits::default()),
            session: Session {
                geometry: Some(torrent.metainfo.info.geometry.clone()),
                fast: extended,
                extended,
                dht: false,
            },
        }
    }

    /// Our address, as the engine knows it.
    pub fn address(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    pub fn send(&mut self, message: &Message) {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        self.send_raw(&bytes);
    }

    /// Writes bytes. Ignores the error if the engine has closed the connection.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub fn send_block(&mut self, request: BlockRequest, data: &[u8]) {
        let mut bytes = Vec::with_capacity(13 + data.len());
        write_block_header(&mut bytes, request);
        bytes.extend_from_slice(data);
        self.send_raw(&bytes);
    }

    /// Returns the engine's next message, or `None` if the engine has closed the connection.
    pub fn next(&mut self) -> Option<Frame> {
        match self.try_next() {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            next => next.unwrap_or_else(|error| panic!("reading from the engine: {error}")),
        }
    }

    /// Returns all messages until the engine closes. The close must be orderly: a reset loses the last messages.
    pub fn rest(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.try_next().expect("an orderly close")).collect()
    }

    /// Like [`ScriptedPeer::next`], but reports a reset as an error.
    pub fn try_next(&mut self) -> std::io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self
                .codec
                .next_frame(&self.session)
                .expect("the engine speaks properly")
            {
                return Ok(Some(frame));
            }
            let mut buffer = vec![0; 64 << 10];
            match self.stream.read(&mut buffer)? {
                0 => return Ok(None),
                len => self.codec.push(Bytes::copy_from_slice(&buffer[..len])),
            }
        }
    }

    /// Skips the engine's messages until `wanted` accepts one.
    pub fn wait_for<T>(&mut self, what: &str, wanted: impl Fn(Frame) -> Option<T>) -> T {
        loop {
            let frame = self.next().unwrap_or_else(|| panic!("the engine closed before {what}"));
            if let Some(found) = wanted(frame) {
                return found;
            }
        }
    }

    pub fn wait_for_message(&mut self, message: &Message) {
        let what = format!("{message:?}");
        self.wait_for(&what, |frame| (frame == Frame::Message(message.clone())).then_some(()));
    }

    /// Waits for a request.
    pub fn wait_for_request(&mut self) -> BlockRequest {
        self.wait_for("a request", |frame| match frame {
            Frame::Message(Message::Request(request)) => Some(request),
            _ => None,
        })
    }

    /// Waits for a block.
    pub fn wait_for_block(&mut self) -> Block {
        self.wait_for("a block", |frame| match frame {
            Frame::Block(block) => Some(block),
            Frame::Message(_) => None,
        })
    }

    /// Waits until the engine has closed the connection.
    pub fn wait_closed(&mut self) {
        while self.next().is_some() {}
    }

    /// Sends the requested block.
    pub fn answer(&mut self, torrent: &Torrent, request: BlockRequest) {
        let span = torrent.metainfo.info.geometry.span(request);
        self.send_block(request, &torrent.data[span.offset as usize..span.end() as usize]);
    }

    /// Acts as a seed until the engine closes the connection. `answer` may change a block's bytes or withhold the
    /// block.
    pub fn serve(mut self, torrent: &Torrent, mut answer: impl FnMut(BlockRequest, &mut Vec<u8>) -> bool) {
        self.send(&Message::HaveAll);
        while let Some(frame) = self.next() {
            match frame {
                Frame::Message(Message::Interested) => self.send(&Message::Unchoke),
                Frame::Message(Message::Request(request)) => {
                    let span = torrent.metainfo.info.geometry.span(request);
                    let mut data = torrent.data[span.offset as usize..span.end() as usize].to_vec();
                    if answer(request, &mut data) {
                        self.send_block(request, &data);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Serializes a handshake.
pub fn handshake(info_hash: InfoHash, peer_id: PeerId, reserved: Reserved) -> Vec<u8> {
    let mut bytes = Vec::new();
    let handshake = Handshake {
        reserved,
        info_hash,
        peer_id,
    };
    handshake.write(&mut bytes);
    bytes
}

/// Reads the engine's handshake, or `None` if the engine closes the connection instead.
pub fn read_handshake(stream: &mut TcpStream) -> Option<Handshake> {
    let mut bytes = [0; HANDSHAKE_LEN];
    stream.read_exact(&mut bytes).ok()?;
    Some(Handshake::read(&bytes).expect("a handshake"))
}

/// Starts a seed that accepts connections at `ip` while the test runs and handles each with [`ScriptedPeer::serve`].
pub fn listen_as_seed(
    ip: IpAddr,
    torrent: &std::sync::Arc<Torrent>,
    answer: impl FnMut(BlockRequest, &mut Vec<u8>) -> bool + Clone + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let torrent = torrent.clone();
    thread::spawn(move || {
        loop {
            let peer = ScriptedPeer::accept(&listener, &torrent);
            let (torrent, answer) = (torrent.clone(), answer.clone());
            thread::spawn(move || peer.serve(&torrent, answer));
        }
    });
    address
}
