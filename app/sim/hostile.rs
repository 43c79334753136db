//! Hostile peers: scripted peers without an engine, each of which does one kind of harm. Hostile nodes of the DHT.

mod metadata;
mod nodes;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_engine::port::Backend;
use ecs_torrent_engine::ports::net::{NetEvent, NetRequest, TransportChoice};
use ecs_torrent_engine::sim::{Content, NodeId, SimNet};
use ecs_torrent_protocol::extension::{DONT_HAVE, ExtensionHandshake, HANDSHAKE_ID};
use ecs_torrent_protocol::geometry::{BLOCK_SIZE, BlockRequest};
use ecs_torrent_protocol::metadata::METADATA;
use ecs_torrent_protocol::peer_id::PeerId;
use ecs_torrent_protocol::pex::{PEX, PexFlags, PexMessage, PexPeer};
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::{Frame, FrameLimits, Handshake, Message, PeerCodec, Reserved, Session};

pub(super) use self::nodes::HostileNode;
pub use self::nodes::NodeHostility;

/// The kind of harm that a peer does. Unless stated otherwise, the peer claims to have all pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hostility {
    /// Sends only wrong blocks.
    BadData,
    /// Sends every fourth block wrong.
    SomeBadData,
    /// Sends every block 45 s late.
    LateData,
    /// Never sends a block.
    EmptyPromises,
    /// Sends requests, haves and cancels without end, and reads nothing.
    Floods,
    /// Sends a block one byte at a time.
    Trickles,
    /// Answers every request, but sends only one block every 3 s, and ignores cancels.
    Drips,
    /// Sends noise after the handshake.
    Babbles,
    /// Disconnects when it gets a request, and reconnects.
    HangsUp,
    /// Alternately loses pieces (`lt_donthave`) and has them again.
    FlipFlops,
    /// Sends messages of five and six bytes that change nothing, more than a tick may process.
    TinyFrames,
    /// Requests one block of an allowed-fast piece again and again.
    Repeats,
    /// Sends nothing after the handshake, and only occupies a connection slot.
    Silent,
    /// Is one of many peers in one subnet that have no pieces, are interested, and request nothing.
    Sybil,
    /// Names addresses where nobody answers, in messages of peer exchange without end.
    NamesGarbage,
    /// Takes the peer id of its first victim, and sends wrong blocks to the other victims under that id.
    StealsId,
    /// Has no pieces, and sends wrong metadata.
    WrongMetadata,
    /// Has no pieces, and claims metadata of another size, which it sends.
    WrongMetadataSize,
    /// Has no pieces, offers the metadata, and refuses each request for it.
    RejectsMetadata,
    /// Has no pieces, offers the metadata, and answers no request for it.
    WithholdsMetadata,
}

impl Hostility {
    /// All kinds that harm peers with metadata.
    pub const ALL: [Self; 16] = [
        Self::BadData,
        Self::SomeBadData,
        Self::LateData,
        Self::EmptyPromises,
        Self::Floods,
        Self::Trickles,
        Self::Drips,
        Self::Babbles,
        Self::HangsUp,
        Self::FlipFlops,
        Self::TinyFrames,
        Self::Repeats,
        Self::Silent,
        Self::Sybil,
        Self::NamesGarbage,
        Self::StealsId,
    ];

    /// All kinds that harm peers that fetch the metadata.
    pub const METADATA: [Self; 4] = [
        Self::WrongMetadata,
        Self::WrongMetadataSize,
        Self::RejectsMetadata,
        Self::WithholdsMetadata,
    ];
}

impl Hostility {
    /// Returns whether the harm is the work of processing the peer's messages.
    fn is_load(self) -> bool {
        matches!(
            self,
            Self::FlipFlops | Self::TinyFrames | Self::Repeats | Self::NamesGarbage
        )
    }
}

/// Delay of a late block.
const LATE: Duration = Duration::from_secs(45);

/// Time between two bytes of a trickle, and between two bursts of a flood.
const PULSE_INTERVAL: Duration = Duration::from_millis(250);

/// Time between two blocks of a peer that drips: short enough that none of its requests times out soon.
const DRIP_INTERVAL: Duration = Duration::from_secs(3);

/// Time until the peer reconnects to a victim that has closed the connection.
const REDIAL: Duration = Duration::from_secs(5);

/// Maximum number of connections that the peer makes, so that a run ends.
const MAX_DIALS: usize = 200;

/// Longest time for which a block trickles; no engine waits longer.
const TRICKLE: Duration = Duration::from_secs(120);

/// Messages in a burst.
const BURST: u32 = 50;

/// Bytes in a burst of tiny frames: about three thousand of them.
const TINY_BURST_BYTES: usize = 18 << 10;

/// A hostile peer.
pub(super) struct HostilePeer {
    net: SimNet,
    hostility: Hostility,
    content: Content,
    streams: BTreeMap<StreamId, Conversation>,
    /// Planned actions by time; actions of equal time are in the order of planning.
    due: BTreeMap<(Timestamp, u64), Due>,
    planned: u64,
    last_stream: u64,
    dials: usize,
    /// State of the noise generator.
    state: u64,
    /// Number of blocks sent.
    blocks: u64,
    /// Victims to connect to once a peer id is stolen.
    waiting: Vec<SocketAddr>,
    /// The stolen peer id.
    stolen: Option<PeerId>,
}

enum Due {
    Dial(SocketAddr),
    Send(StreamId, Bytes),
    /// Sends the next of the remaining bytes, and schedules the one after it, until the given time.
    Trickle(StreamId, Bytes, Timestamp),
    Burst(StreamId),
}

struct Conversation {
    victim: Option<SocketAddr>,
    codec: PeerCodec,
    has_shaken_hands: bool,
    /// Extension message ids at which the other side receives `lt_donthave`, `ut_pex` and `ut_metadata`.
    dont_have: u8,
    pex: u8,
    metadata: u8,
    /// A piece that the peer may request while choked.
    allowed_fast: Option<u32>,
    /// When the next block of a drip may be sent; the first one is sent at once.
    next_drip: Timestamp,
}

impl HostilePeer {
    /// Creates a peer on a host of its own, which connects to `victims` and accepts all connections.
    pub(super) fn new(
        net: SimNet,
        hostility: Hostility,
        content: &Content,
        mut victims: Vec<SocketAddr>,
        now: Timestamp,
        seed: u64,
    ) -> Self {
        let waiting = match hostility {
            Hostility::StealsId => victims.split_off(victims.len().min(1)),
            _ => Vec::new(),
        };
        let dial = |(number, victim)| ((now, number), Due::Dial(victim));
        let due: BTreeMap<_, _> = (1..).zip(victims).map(dial).collect();
        let state = seed ^ 0x9e37_79b9_7f4a_7c15 | 1;
        Self {
            net,
            hostility,
            content: content.clone(),
            streams: BTreeMap::new(),
            planned: due.len() as u64,
            due,
            last_stream: 0,
            dials: 0,
            state,
            blocks: 0,
            waiting,
            stolen: None,
        }
    }

    /// Returns the host of the peer.
    pub(super) fn id(&self) -> NodeId {
        self.net.id()
    }

    /// Performs due actions and answers received events. Returns the latest time of the next call.
    pub(super) fn act(&mut self, now: Timestamp) -> Timestamp {
        let mut events = Vec::new();
        self.net.poll(usize::MAX, &mut events);
        for event in events {
            self.handle_event(now, event);
        }
        while let Some(next) = self.due.first_entry().filter(|next| next.key().0 <= now) {
            let due = next.remove();
            self.carry_out(now, due);
        }
        let next = self.due.first_key_value();
        next.map_or(Timestamp::NEVER, |((at, _), _)| *at)
    }

    fn plan(&mut self, at: Timestamp, due: Due) {
        self.planned += 1;
        self.due.insert((at, self.planned), due);
    }

    fn submit(&mut self, request: NetRequest) {
        self.net.submit(&mut vec![request]);
    }

    fn say(&mut self, stream: StreamId, messages: &[Message]) {
        let mut bytes = BytesMut::new();
        messages.iter().for_each(|message| message.write(&mut bytes));
        let frames = vec![bytes.freeze()];
        self.submit(NetRequest::Send { stream, frames });
    }

    fn carry_out(&mut self, now: Timestamp, due: Due) {
        match due {
            Due::Dial(victim) if self.dials < MAX_DIALS => {
                self.dials += 1;
                self.last_stream += 2;
                let (stream, to, timeout) = (StreamId(self.last_stream), victim, Duration::from_secs(10));
                self.submit(NetRequest::Connect {
                    stream,
                    to,
                    transport: TransportChoice::Either,
                    timeout,
                });
                self.begin(stream, Some(victim));
            }
            Due::Dial(_) => {}
            Due::Send(stream, bytes) => {
                if self.streams.contains_key(&stream) {
                    let frames = vec![bytes];
                    self.submit(NetRequest::Send { stream, frames });
                }
            }
            Due::Trickle(stream, mut rest, until) => {
                if self.streams.contains_key(&stream) && !rest.is_empty() && now <= until {
                    let frames = vec![rest.split_to(1)];
                    self.submit(NetRequest::Send { stream, frames });
                    self.plan(now + PULSE_INTERVAL, Due::Trickle(stream, rest, until));
                }
            }
            Due::Burst(stream) if self.streams.contains_key(&stream) => {
                let bytes = self.burst(stream);
                let frames = vec![bytes];
                self.submit(NetRequest::Send { stream, frames });
                self.plan(now + PULSE_INTERVAL, Due::Burst(stream));
            }
            Due::Burst(_) => {}
        }
    }

    /// Returns the messages of one burst.
    fn burst(&mut self, stream: StreamId) -> Bytes {
        if self.hostility == Hostility::TinyFrames {
            // An unknown message, a message of an unknown extension, and a redundant "not interested".
            let frames = [&[0, 0, 0, 2, 99, 7][..], &[0, 0, 0, 2, 20, 99], &[0, 0, 0, 1, 3]].concat();
            return Bytes::from(frames.repeat(TINY_BURST_BYTES / frames.len()));
        }
        if self.hostility == Hostility::NamesGarbage {
            return self.garbage(stream);
        }
        let conversation = self.streams.get(&stream);
        let dont_have = conversation.map_or(0, |conversation| conversation.dont_have);
        let allowed_fast = conversation.and_then(|conversation| conversation.allowed_fast);
        let mut bytes = BytesMut::new();
        for number in 0..BURST {
            let piece = (self.noise() as u32).wrapping_add(number) % self.content.piece_count();
            let payload = Bytes::copy_from_slice(&piece.to_be_bytes());
            let taken_back = Message::Extended { id: dont_have, payload };
            let messages = match self.hostility {
                Hostility::FlipFlops if dont_have > 0 => vec![taken_back, Message::Have(piece)],
                Hostility::FlipFlops => vec![],
                Hostility::Repeats => vec![Message::Request(self.first_block(allowed_fast.unwrap_or(0)))],
                _ => {
                    let request = self.first_block(piece);
                    vec![
                        Message::Request(request),
                        Message::Have(piece),
                        Message::Interested,
                        Message::Cancel(request),
                    ]
                }
            };
            messages.iter().for_each(|message| message.write(&mut bytes));
        }
        bytes.freeze()
    }

    /// Returns a message of peer exchange with random addresses.
    fn garbage(&mut self, stream: StreamId) -> Bytes {
        let id = self.streams.get(&stream).map_or(0, |conversation| conversation.pex);
        let added = (0..BURST).map(|_| {
            let [a, b, c, d, ..] = self.noise().to_be_bytes();
            let address = SocketAddr::from(([198, 18 + a % 2, b, c], 1024 + u16::from(d)));
            let flags = PexFlags::SEED;
            PexPeer { address, flags }
        });
        let message = PexMessage {
            added: added.collect(),
            dropped: Vec::new(),
        };
        let payload = message.write();
        let mut bytes = BytesMut::new();
        if id > 0 {
            Message::Extended { id, payload }.write(&mut bytes);
        }
        bytes.freeze()
    }

    fn first_block(&self, piece: u32) -> BlockRequest {
        let (begin, len) = (0, self.content.piece_span(piece).len.min(BLOCK_SIZE));
        BlockRequest { piece, begin, len }
    }

    /// Sends the handshake on a new connection, and announces all pieces.
    fn begin(&mut self, stream: StreamId, victim: Option<SocketAddr>) {
        let conversation = Conversation {
            victim,
            codec: PeerCodec::new(FrameLimits::default()),
            has_shaken_hands: false,
            dont_have: 0,
            pex: 0,
            metadata: 0,
            allowed_fast: None,
            next_drip: Timestamp::ZERO,
        };
        self.streams.insert(stream, conversation);
        let mut peer_id = *b"-XX0000-000000000000";
        peer_id[8..16].copy_from_slice(&self.noise().to_be_bytes());
        peer_id[16..].copy_from_slice(&(stream.0 as u32).to_be_bytes());
        let handshake = Handshake {
            // BEP 6, so that the peer can send `HaveAll`; BEP 10 only if the harm needs it.
            reserved: Reserved([0, 0, 0, 0, 0, if self.is_extended() { 0x10 } else { 0 }, 0, 4]),
            info_hash: self.content.info_hash(),
            peer_id: self.stolen.unwrap_or(PeerId(peer_id)),
        };
        let mut bytes = BytesMut::new();
        handshake.write(&mut bytes);
        match self.hostility {
            Hostility::Silent => {}
            Hostility::Sybil => Message::HaveNone.write(&mut bytes),
            hostility if Hostility::METADATA.contains(&hostility) => Message::HaveNone.write(&mut bytes),
            // Peers that flood with messages do not advertise blocks: silence is the harm of another kind.
            hostility if hostility.is_load() => Message::HaveAll.write(&mut bytes),
            _ => {
                Message::HaveAll.write(&mut bytes);
                Message::Unchoke.write(&mut bytes);
            }
        }
        let frames = vec![bytes.freeze()];
        self.submit(NetRequest::Send { stream, frames });
    }

    fn is_extended(&self) -> bool {
        use Hostility::{FlipFlops, NamesGarbage, TinyFrames};
        matches!(self.hostility, FlipFlops | TinyFrames | NamesGarbage) || Hostility::METADATA.contains(&self.hostility)
    }

    fn handle_event(&mut self, now: Timestamp, event: NetEvent) {
        match event {
            NetEvent::Accepted { stream, .. } => self.begin(stream, None),
            NetEvent::Received { stream, chunk } => self.listen(now, stream, chunk),
            NetEvent::Closed { stream, .. } => {
                self.submit(NetRequest::Close {
                    stream,
                    is_orderly: false,
                    tag: None,
                });
                self.lose(now, stream);
            }
            _ => {}
        }
    }

    fn lose(&mut self, now: Timestamp, stream: StreamId) {
        if let Some(Conversation {
            victim: Some(victim), ..
        }) = self.streams.remove(&stream)
        {
            self.plan(now + REDIAL, Due::Dial(victim));
        }
    }

    fn listen(&mut self, now: Timestamp, stream: StreamId, chunk: Bytes) {
        // A flooding peer does not read.
        if self.hostility != Hostility::Floods {
            let bytes = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            self.submit(NetRequest::Grant { stream, bytes });
        }
        let extended = self.is_extended();
        let Some(conversation) = self.streams.get_mut(&stream) else {
            return;
        };
        conversation.codec.push(chunk);
        let (mut requests, mut about_metadata) = (Vec::new(), Vec::new());
        let was_greeted = conversation.has_shaken_hands;
        let mut peer_id = None;
        if !was_greeted {
            match conversation.codec.handshake() {
                Ok(Some(handshake)) => peer_id = Some(handshake.peer_id),
                _ => return,
            }
            conversation.has_shaken_hands = true;
        }
        let session = Session {
            geometry: Some(self.content.metainfo().info.geometry.clone()),
            fast: true,
            extended,
            dht: false,
        };
        while let Ok(Some(frame)) = conversation.codec.next_frame(&session) {
            match frame {
                Frame::Message(Message::Request(request)) => requests.push(request),
                Frame::Message(Message::AllowedFast(piece)) => conversation.allowed_fast = Some(piece),
                Frame::Message(Message::Extended { id: 0, payload }) => {
                    let handshake = ExtensionHandshake::read(&payload).unwrap_or_default();
                    let id_of = |name: &str| handshake.extensions.get(name).copied().unwrap_or(0);
                    (conversation.dont_have, conversation.pex) = (id_of(DONT_HAVE), id_of(PEX));
                    conversation.metadata = id_of(METADATA);
                }
                Frame::Message(Message::Extended {
                    id: metadata::OUR_ID,
                    payload,
                }) => about_metadata.push(payload),
                _ => {}
            }
        }
        if let Some(peer_id) = peer_id {
            self.steal(now, peer_id);
            self.greet(now, stream);
        }
        for request in requests {
            self.answer(now, stream, request);
        }
        for payload in about_metadata {
            self.answer_about_metadata(stream, &payload);
        }
    }

    fn answer_about_metadata(&mut self, stream: StreamId, payload: &Bytes) {
        let noise = self.noise();
        let id = self
            .streams
            .get(&stream)
            .map_or(0, |conversation| conversation.metadata);
        if let Some(payload) = metadata::answer(self.hostility, &self.content, payload, noise)
            && id > 0
        {
            self.say(stream, &[Message::Extended { id, payload }]);
        }
    }

    /// Takes the peer id of the first victim, if that is the peer's harm, and connects to the other victims.
    fn steal(&mut self, now: Timestamp, peer_id: PeerId) {
        if self.hostility == Hostility::StealsId && self.stolen.is_none() {
            self.stolen = Some(peer_id);
            for victim in std::mem::take(&mut self.waiting) {
                self.plan(now, Due::Dial(victim));
            }
        }
    }

    /// Sends the messages that follow the first handshake.
    fn greet(&mut self, now: Timestamp, stream: StreamId) {
        match self.hostility {
            Hostility::Floods | Hostility::FlipFlops | Hostility::TinyFrames | Hostility::Repeats => {
                self.plan(now, Due::Burst(stream));
            }
            Hostility::NamesGarbage => {
                let handshake = ExtensionHandshake {
                    extensions: [(PEX.to_owned(), 1)].into(),
                    ..ExtensionHandshake::default()
                };
                let (id, payload) = (HANDSHAKE_ID, handshake.write().into());
                self.say(stream, &[Message::Extended { id, payload }]);
                self.plan(now + PULSE_INTERVAL, Due::Burst(stream));
            }
            Hostility::Babbles => {
                let noise: BytesMut = (0..256).map(|_| self.noise() as u8).collect();
                self.plan(now, Due::Send(stream, noise.freeze()));
            }
            Hostility::Silent => {}
            hostility if Hostility::METADATA.contains(&hostility) => {
                let payload = metadata::offer(hostility, &self.content).write().into();
                let id = HANDSHAKE_ID;
                self.say(stream, &[Message::Extended { id, payload }]);
            }
            _ => self.say(stream, &[Message::Interested]),
        }
    }

    fn answer(&mut self, now: Timestamp, stream: StreamId, request: BlockRequest) {
        match self.hostility {
            Hostility::EmptyPromises
            | Hostility::Floods
            | Hostility::Babbles
            | Hostility::FlipFlops
            | Hostility::TinyFrames
            | Hostility::Repeats
            | Hostility::Silent
            | Hostility::NamesGarbage
            | Hostility::WrongMetadata
            | Hostility::WrongMetadataSize
            | Hostility::RejectsMetadata
            | Hostility::WithholdsMetadata
            | Hostility::Sybil => {}
            Hostility::BadData | Hostility::StealsId => self.send_block(now, stream, request, true),
            Hostility::SomeBadData => {
                self.blocks += 1;
                self.send_block(now, stream, request, self.blocks.is_multiple_of(4));
            }
            Hostility::LateData => self.send_block(now + LATE, stream, request, false),
            Hostility::Drips => {
                let Some(conversation) = self.streams.get_mut(&stream) else {
                    return;
                };
                let at = now.max(conversation.next_drip);
                conversation.next_drip = at + DRIP_INTERVAL;
                self.send_block(at, stream, request, false);
            }
            Hostility::Trickles => {
                let block = self.block(request, false);
                self.plan(now, Due::Trickle(stream, block, now + TRICKLE));
            }
            Hostility::HangsUp => {
                self.submit(NetRequest::Close {
                    stream,
                    is_orderly: false,
                    tag: None,
                });
                self.lose(now, stream);
            }
        }
    }

    fn send_block(&mut self, at: Timestamp, stream: StreamId, request: BlockRequest, is_wrong: bool) {
        let block = self.block(request, is_wrong);
        self.plan(at, Due::Send(stream, block));
    }

    /// Returns a `piece` message.
    fn block(&mut self, request: BlockRequest, is_wrong: bool) -> Bytes {
        let mut span = self.content.piece_span(request.piece);
        span.offset += u64::from(request.begin);
        span.len = request.len;
        let mut bytes = BytesMut::new();
        ecs_torrent_protocol::wire::write_block_header(&mut bytes, request);
        let head = bytes.len();
        bytes.extend_from_slice(&self.content.slice(span));
        if is_wrong {
            let place = head + (self.noise() as usize) % request.len.max(1) as usize;
            bytes[place] ^= 0xff;
        }
        bytes.freeze()
    }

    /// A random number (xorshift64); its quality does not matter, only that it is the same in each run.
    fn noise(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}
