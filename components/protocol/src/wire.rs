//! The peer wire protocol (BEP 3, "peer protocol"): the handshake, the messages, and a codec that turns chunks from a
//! socket into frames without copying block payloads.

mod byte_queue;
mod codec;
mod handshake;
mod message;
mod raw_pieces;

pub use self::byte_queue::Payload;
pub use self::codec::{Block, Frame, FrameLimits, PeerCodec, Session, WireError};
pub use self::handshake::{HANDSHAKE_LEN, Handshake, HandshakeError, Reserved};
pub use self::message::{BLOCK_HEADER_LEN, Message, write_block_header};
pub use self::raw_pieces::{KnownPieces, RawPieces};
