//! Decoding of chunks into frames: length prefixes, limits, and the rules each message must satisfy on its own.

use bytes::Bytes;

use super::byte_queue::{ByteQueue, Payload};
use super::handshake::{HANDSHAKE_LEN, Handshake, HandshakeError};
use super::message::{Message, id};
use crate::bitfield::{self, Bitfield, BitfieldError};
use crate::geometry::{BlockRequest, Geometry};

/// Maximum accepted frame lengths. A larger length prefix ends the connection before anything is buffered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Longest block in a `piece` message, in bytes. Default 16 KiB, the only size we request.
    pub max_block: u32,
    /// Longest extension or unknown message, in bytes. Default 256 KiB.
    pub max_other: u32,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self {
            max_block: crate::geometry::BLOCK_SIZE,
            max_other: 256 << 10,
        }
    }
}

/// The connection state that decides which messages are valid.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Session {
    /// Sizes of the torrent; indexes cannot be checked until the metadata is known.
    pub geometry: Option<Geometry>,
    /// Both sides announced the fast extension (BEP 6).
    pub fast: bool,
    /// Both sides announced the extension protocol (BEP 10).
    pub extended: bool,
    /// The peer announced a node of the DHT (BEP 5).
    pub dht: bool,
}

/// The reason a peer's bytes end the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The bytes are not the BitTorrent protocol.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// A length prefix above the limit for its message.
    #[error("message {id} of {len} bytes exceeds {max}")]
    TooLong {
        /// Message id.
        id: u8,
        /// Length prefix received.
        len: u32,
        /// Longest accepted length.
        max: u32,
    },
    /// A length that the message cannot have.
    #[error("message {id} cannot have {len} bytes")]
    BadLength {
        /// Message id.
        id: u8,
        /// Length prefix received.
        len: u32,
    },
    /// A bitfield that does not fit this torrent.
    #[error(transparent)]
    Bitfield(#[from] BitfieldError),
    /// The peer sent its full piece set too often: such messages are cheap to send and expensive to process.
    #[error("too many bitfields")]
    TooManyBitfields,
    /// Too many withdrawn pieces, chokes or extension handshakes: more than any legitimate use needs.
    #[error("sent too many changes")]
    TooManyChanges,
    /// More peer exchanges than any legitimate use needs (BEP 11).
    #[error("sent too many peer exchanges")]
    TooManyPeerExchanges,
    /// Metadata of another size than the peer claims (BEP 9).
    #[error("sent metadata that contradicts its claims")]
    BadMetadata,
    /// A piece index, or an offset in a piece, that does not exist.
    #[error("message {id} names piece {piece} offset {begin}, which does not exist")]
    OutOfRange {
        /// Message id.
        id: u8,
        /// Piece index received.
        piece: u32,
        /// Offset received; 0 for messages without one.
        begin: u32,
    },
    /// A message of an extension that was not negotiated.
    #[error("message {0} belongs to an extension that was not negotiated")]
    NotNegotiated(u8),
}

/// A block received in a `piece` message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The block that the message claims to carry.
    pub request: BlockRequest,
    /// The payload, in the memory it was read into.
    pub data: Payload,
}

/// A decoded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A message without a block payload.
    Message(Message),
    /// A `piece` message.
    Block(Block),
}

/// The codec's position in the stream.
#[derive(Debug)]
enum State {
    /// Before a length prefix.
    Between,
    /// Inside a `piece` message; its payload is taken as it arrives.
    InBlock { block: Block, missing: u32 },
    /// Inside a message of unknown type, which is skipped.
    Skipping { missing: usize },
}

/// Decodes one direction of one connection.
///
/// Push chunks as they are read. Then pull the handshake, followed by frames until none are left.
///
/// ```
/// use bytes::{Bytes, BytesMut};
/// use ecs_torrent_protocol::wire::{Frame, FrameLimits, Message, PeerCodec, Session};
///
/// let mut sent = BytesMut::new();
/// Message::Have(7).write(&mut sent);
/// Message::Unchoke.write(&mut sent);
///
/// // Chunks may end anywhere.
/// let mut codec = PeerCodec::new(FrameLimits::default());
/// let session = Session::default();
/// codec.push(sent.split_to(3).freeze());
/// assert_eq!(codec.next_frame(&session), Ok(None));
/// codec.push(sent.freeze());
/// assert_eq!(codec.next_frame(&session), Ok(Some(Frame::Message(Message::Have(7)))));
/// assert_eq!(codec.next_frame(&session), Ok(Some(Frame::Message(Message::Unchoke))));
/// assert_eq!(codec.next_frame(&session), Ok(None));
///
/// // A violation of the protocol ends the stream.
/// codec.push(Bytes::from_static(&[0, 0, 0, 9, 4]));
/// assert!(codec.next_frame(&session).is_err());
/// ```
#[derive(Debug)]
pub struct PeerCodec {
    queue: ByteQueue,
    state: State,
    limits: FrameLimits,
}

impl PeerCodec {
    /// A codec at the start of a stream.
    #[must_use]
    pub fn new(limits: FrameLimits) -> Self {
        Self {
            queue: ByteQueue::default(),
            state: State::Between,
            limits,
        }
    }

    /// Appends received bytes.
    pub fn push(&mut self, chunk: Bytes) {
        self.queue.push(chunk);
    }

    /// Whether the stream is inside a frame. If it does not continue, the peer is stalling us.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        !self.queue.is_empty() || !matches!(self.state, State::Between)
    }

    /// Returns the handshake once it is complete.
    ///
    /// # Errors
    /// Returns an error as soon as the bytes can no longer become a handshake.
    pub fn handshake(&mut self) -> Result<Option<Handshake>, WireError> {
        match self.queue.peek::<HANDSHAKE_LEN>() {
            Some(bytes) => {
                self.queue.skip(HANDSHAKE_LEN);
                Ok(Some(Handshake::read(&bytes)?))
            }
            None => match self.queue.peek::<1>() {
                Some(first) if !Handshake::may_begin_with(&first) => Err(HandshakeError.into()),
                _ => Ok(None),
            },
        }
    }

    /// Number of bytes pushed and not yet read.
    #[must_use]
    pub fn buffered_len(&self) -> usize {
        self.queue.len()
    }

    /// Prepares for idle time: the buffered bytes then hold little more memory than their own length.
    pub fn rest(&mut self) {
        self.queue.rest();
    }

    /// Returns the next frame if it has arrived completely.
    ///
    /// # Errors
    /// Returns the first violation; the stream cannot be read further after it.
    pub fn next_frame(&mut self, session: &Session) -> Result<Option<Frame>, WireError> {
        self.next_frame_within(session, &mut u32::MAX.clone())
    }

    /// Like [`next_frame`](Self::next_frame), while `budget` lasts. Each message costs 1, skipped messages included. If
    /// this returns no frame and the budget is 0, there may be more frames.
    ///
    /// # Errors
    /// Same as [`next_frame`](Self::next_frame).
    pub fn next_frame_within(&mut self, session: &Session, budget: &mut u32) -> Result<Option<Frame>, WireError> {
        loop {
            match &mut self.state {
                State::InBlock { block, missing } => {
                    *missing -= self.queue.take_into(*missing as usize, &mut block.data) as u32;
                    if *missing > 0 {
                        return Ok(None);
                    }
                    let State::InBlock { block, .. } = std::mem::replace(&mut self.state, State::Between) else {
                        continue;
                    };
                    return Ok(Some(Frame::Block(block)));
                }
                State::Skipping { missing } => {
                    *missing -= self.queue.skip(*missing);
                    if *missing > 0 {
                        return Ok(None);
                    }
                    self.state = State::Between;
                }
                State::Between if *budget == 0 => return Ok(None),
                State::Between => {
                    let begun = self.begin_frame(session)?;
                    if !matches!(begun, Begun::Incomplete) {
                        *budget -= 1;
                    }
                    match begun {
                        Begun::Message(message) => return Ok(Some(Frame::Message(message))),
                        Begun::Bulk => {}
                        Begun::Incomplete => return Ok(None),
                    }
                }
            }
        }
    }

    /// Reads a length prefix and the message after it, except for block payloads.
    fn begin_frame(&mut self, session: &Session) -> Result<Begun, WireError> {
        let (len, id) = match self.queue.peek::<5>() {
            Some([0, 0, 0, 0, _]) => return Ok(self.keep_alive()),
            Some([l0, l1, l2, l3, id]) => (u32::from_be_bytes([l0, l1, l2, l3]), id),
            // A keep-alive has no id.
            None if self.queue.peek() == Some([0; 4]) => return Ok(self.keep_alive()),
            None => return Ok(Begun::Incomplete),
        };
        self.check_length(id, len, session)?;
        if id == id::PIECE {
            return self.begin_block(len, session);
        }
        if !is_known(id) {
            self.queue.skip(4);
            self.state = State::Skipping { missing: len as usize };
            return Ok(Begun::Bulk);
        }
        if self.queue.len() < 4 + len as usize {
            return Ok(Begun::Incomplete);
        }
        check_negotiated(id, session)?;
        let message = match id {
            id::BITFIELD | id::EXTENDED => {
                self.queue.skip(5);
                match self.queue.take_copy(len as usize - 1) {
                    Some(body) => read_long(id, body, session)?,
                    None => return Ok(Begun::Incomplete),
                }
            }
            _ => {
                // `check_length` has verified the length, so the frame fits.
                let mut frame = [0; SHORT_LEN];
                self.queue.take_to(&mut frame[..4 + len as usize]);
                read_short(id, frame, session)?
            }
        };
        Ok(Begun::Message(message))
    }

    fn keep_alive(&mut self) -> Begun {
        self.queue.skip(4);
        Begun::Message(Message::KeepAlive)
    }

    fn begin_block(&mut self, len: u32, session: &Session) -> Result<Begun, WireError> {
        let Some(head) = self.queue.peek::<13>() else {
            return Ok(Begun::Incomplete);
        };
        let [_, _, _, _, _, p0, p1, p2, p3, b0, b1, b2, b3] = head;
        let request = BlockRequest {
            piece: u32::from_be_bytes([p0, p1, p2, p3]),
            begin: u32::from_be_bytes([b0, b1, b2, b3]),
            len: len - 9,
        };
        if session
            .geometry
            .as_ref()
            .is_none_or(|geometry| !geometry.contains(request))
        {
            let BlockRequest { piece, begin, .. } = request;
            return Err(WireError::OutOfRange {
                id: id::PIECE,
                piece,
                begin,
            });
        }
        self.queue.skip(13);
        self.state = State::InBlock {
            missing: request.len,
            block: Block {
                request,
                data: Payload::new(),
            },
        };
        Ok(Begun::Bulk)
    }

    fn check_length(&self, id: u8, len: u32, session: &Session) -> Result<(), WireError> {
        let exact = match id {
            id::CHOKE | id::UNCHOKE | id::INTERESTED | id::NOT_INTERESTED | id::HAVE_ALL | id::HAVE_NONE => 1,
            id::PORT => 3,
            id::HAVE | id::SUGGEST_PIECE | id::ALLOWED_FAST => 5,
            id::REQUEST | id::CANCEL | id::REJECT_REQUEST => 13,
            id::BITFIELD => match &session.geometry {
                Some(geometry) if len as usize != 1 + bitfield::wire_len(geometry.piece_count()) => {
                    return Err(WireError::Bitfield(BitfieldError::Length {
                        got: len as usize - 1,
                        pieces: geometry.piece_count(),
                    }));
                }
                Some(_) => return Ok(()),
                None => return within(id, len, self.limits.max_other),
            },
            id::PIECE if len < 10 => return Err(WireError::BadLength { id, len }),
            id::PIECE => return within(id, len, 9 + self.limits.max_block),
            id::EXTENDED if len < 2 => return Err(WireError::BadLength { id, len }),
            _ => return within(id, len, self.limits.max_other),
        };
        if len == exact {
            Ok(())
        } else {
            Err(WireError::BadLength { id, len })
        }
    }
}

fn check_negotiated(id: u8, session: &Session) -> Result<(), WireError> {
    let is_fast = matches!(id, id::SUGGEST_PIECE..=id::ALLOWED_FAST);
    // BEP 6: fast messages without the handshake bit close the connection.
    if (is_fast && !session.fast) || (id == id::EXTENDED && !session.extended) {
        return Err(WireError::NotNegotiated(id));
    }
    Ok(())
}

/// Reads a message with a variable-length body. BEP 3 requires the bitfield to be the first message. Clients in use
/// send their extension handshake before it, and some send a bitfield in place of many haves, so it is accepted at any
/// time.
fn read_long(id: u8, body: Bytes, session: &Session) -> Result<Message, WireError> {
    if id == id::BITFIELD {
        if let Some(geometry) = &session.geometry {
            Bitfield::from_wire(&body, geometry.piece_count())?;
        }
        return Ok(Message::Bitfield(body));
    }
    Ok(Message::Extended {
        id: body[0],
        payload: body.slice(1..),
    })
}

/// Longest frame of the fixed-length messages: length prefix, id and three words.
const SHORT_LEN: usize = 17;

/// Reads the frame of a fixed-length message.
fn read_short(id: u8, frame: [u8; SHORT_LEN], session: &Session) -> Result<Message, WireError> {
    let [_, _, _, _, _, body @ ..] = frame;
    let word = |at: usize| u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
    let piece = |message: fn(u32) -> Message| check_piece(id, word(0), session).map(message);
    let request = |message: fn(BlockRequest) -> Message| {
        let piece = check_piece(id, word(0), session)?;
        Ok(message(BlockRequest {
            piece,
            begin: word(4),
            len: word(8),
        }))
    };
    match id {
        id::CHOKE => Ok(Message::Choke),
        id::UNCHOKE => Ok(Message::Unchoke),
        id::INTERESTED => Ok(Message::Interested),
        id::NOT_INTERESTED => Ok(Message::NotInterested),
        id::HAVE => piece(Message::Have),
        id::REQUEST => request(Message::Request),
        id::CANCEL => request(Message::Cancel),
        id::PORT => Ok(Message::Port(u16::from_be_bytes([body[0], body[1]]))),
        id::SUGGEST_PIECE => piece(Message::SuggestPiece),
        id::HAVE_ALL => Ok(Message::HaveAll),
        id::HAVE_NONE => Ok(Message::HaveNone),
        id::REJECT_REQUEST => request(Message::RejectRequest),
        // The only known id left.
        _ => piece(Message::AllowedFast),
    }
}

enum Begun {
    Message(Message),
    Bulk,
    Incomplete,
}

fn is_known(id: u8) -> bool {
    matches!(id, id::CHOKE..=id::PORT | id::SUGGEST_PIECE..=id::ALLOWED_FAST | id::EXTENDED)
}

fn within(id: u8, len: u32, max: u32) -> Result<(), WireError> {
    if len <= max {
        Ok(())
    } else {
        Err(WireError::TooLong { id, len, max })
    }
}

fn check_piece(id: u8, piece: u32, session: &Session) -> Result<u32, WireError> {
    match &session.geometry {
        Some(geometry) if piece >= geometry.piece_count() => Err(WireError::OutOfRange { id, piece, begin: 0 }),
        _ => Ok(piece),
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
