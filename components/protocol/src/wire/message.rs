//! The messages of BEP 3, BEP 6 and BEP 10, and their encoding.

use bytes::{BufMut, Bytes};

use crate::geometry::BlockRequest;

/// Message ids.
pub(super) mod id {
    pub(crate) const CHOKE: u8 = 0;
    pub(crate) const UNCHOKE: u8 = 1;
    pub(crate) const INTERESTED: u8 = 2;
    pub(crate) const NOT_INTERESTED: u8 = 3;
    pub(crate) const HAVE: u8 = 4;
    pub(crate) const BITFIELD: u8 = 5;
    pub(crate) const REQUEST: u8 = 6;
    pub(crate) const PIECE: u8 = 7;
    pub(crate) const CANCEL: u8 = 8;
    /// BEP 5.
    pub(crate) const PORT: u8 = 9;
    // BEP 6.
    pub(crate) const SUGGEST_PIECE: u8 = 13;
    pub(crate) const HAVE_ALL: u8 = 14;
    pub(crate) const HAVE_NONE: u8 = 15;
    pub(crate) const REJECT_REQUEST: u8 = 16;
    pub(crate) const ALLOWED_FAST: u8 = 17;
    /// BEP 10.
    pub(crate) const EXTENDED: u8 = 20;
}

/// A message other than `piece`, whose payload is sent separately (see [`write_block_header`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// An empty message that keeps the connection open.
    KeepAlive,
    /// The sender will not answer requests.
    Choke,
    /// The sender will answer requests.
    Unchoke,
    /// The sender wants pieces the receiver has.
    Interested,
    /// The sender wants no pieces the receiver has.
    NotInterested,
    /// The sender has completed, verified and stored a piece.
    Have(u32),
    /// All of the sender's pieces in wire form; the first message, if sent at all.
    Bitfield(Bytes),
    /// Requests a block.
    Request(BlockRequest),
    /// Cancels a request.
    Cancel(BlockRequest),
    /// The port of the DHT node (BEP 5).
    Port(u16),
    /// Suggests a piece to download (BEP 6).
    SuggestPiece(u32),
    /// Replaces a full bitfield (BEP 6).
    HaveAll,
    /// Replaces an empty bitfield (BEP 6).
    HaveNone,
    /// The sender will not answer a request (BEP 6).
    RejectRequest(BlockRequest),
    /// A piece that may be requested while choked (BEP 6).
    AllowedFast(u32),
    /// A message of an extension; id 0 is the extension handshake (BEP 10).
    Extended {
        /// The id that the receiver chose for the extension.
        id: u8,
        /// The extension's payload.
        payload: Bytes,
    },
}

impl Message {
    /// Appends the wire form: four bytes of length, the id, the payload.
    pub fn write(&self, out: &mut impl BufMut) {
        match self {
            Self::KeepAlive => out.put_u32(0),
            Self::Choke => write_bare(out, id::CHOKE),
            Self::Unchoke => write_bare(out, id::UNCHOKE),
            Self::Interested => write_bare(out, id::INTERESTED),
            Self::NotInterested => write_bare(out, id::NOT_INTERESTED),
            Self::Have(piece) => write_index(out, id::HAVE, *piece),
            Self::Bitfield(bits) => {
                out.put_u32(1 + bits.len() as u32);
                out.put_u8(id::BITFIELD);
                out.put_slice(bits);
            }
            Self::Request(request) => write_request(out, id::REQUEST, *request),
            Self::Cancel(request) => write_request(out, id::CANCEL, *request),
            Self::Port(port) => {
                out.put_u32(3);
                out.put_u8(id::PORT);
                out.put_u16(*port);
            }
            Self::SuggestPiece(piece) => write_index(out, id::SUGGEST_PIECE, *piece),
            Self::HaveAll => write_bare(out, id::HAVE_ALL),
            Self::HaveNone => write_bare(out, id::HAVE_NONE),
            Self::RejectRequest(request) => write_request(out, id::REJECT_REQUEST, *request),
            Self::AllowedFast(piece) => write_index(out, id::ALLOWED_FAST, *piece),
            Self::Extended { id, payload } => {
                out.put_u32(2 + payload.len() as u32);
                out.put_u8(id::EXTENDED);
                out.put_u8(*id);
                out.put_slice(payload);
            }
        }
    }
}

/// Bytes of a `piece` message before its payload: length, id, index, begin.
pub const BLOCK_HEADER_LEN: usize = 13;

/// Appends the header of a `piece` message for the block at `begin` of `piece`; its `len` bytes follow it.
pub fn write_block_header(out: &mut impl BufMut, block: BlockRequest) {
    let mut head = [0; BLOCK_HEADER_LEN];
    let mut rest = &mut head[..];
    rest.put_u32(9 + block.len);
    rest.put_u8(id::PIECE);
    rest.put_u32(block.piece);
    rest.put_u32(block.begin);
    // One write, so that the buffer grows at most once.
    out.put_slice(&head);
}

fn write_bare(out: &mut impl BufMut, id: u8) {
    out.put_u32(1);
    out.put_u8(id);
}

fn write_index(out: &mut impl BufMut, id: u8, index: u32) {
    let mut message = [0; 9];
    let mut rest = &mut message[..];
    rest.put_u32(5);
    rest.put_u8(id);
    rest.put_u32(index);
    out.put_slice(&message);
}

fn write_request(out: &mut impl BufMut, id: u8, request: BlockRequest) {
    let mut message = [0; 17];
    let mut rest = &mut message[..];
    rest.put_u32(13);
    rest.put_u8(id);
    rest.put_u32(request.piece);
    rest.put_u32(request.begin);
    rest.put_u32(request.len);
    out.put_slice(&message);
}
