//! Tests of the codec: encoded frames decode in any chunking, and violations end the stream.

use proptest::prelude::*;

use super::*;
use crate::wire::write_block_header;

const PIECES: u32 = 20;

fn session() -> Session {
    Session {
        geometry: Geometry::new(u64::from(PIECES) * 32768 - 5, 32768),
        fast: true,
        extended: true,
        dht: false,
    }
}

fn read_all(bytes: &[u8], session: &Session) -> Result<Vec<Frame>, WireError> {
    let mut codec = PeerCodec::new(FrameLimits::default());
    codec.push(Bytes::copy_from_slice(bytes));
    let mut frames = Vec::new();
    while let Some(frame) = codec.next_frame(session)? {
        frames.push(frame);
    }
    Ok(frames)
}

fn refusal(bytes: &[u8]) -> WireError {
    read_all(bytes, &session()).unwrap_err()
}

fn written(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    message.write(&mut out);
    out
}

/// Fault 20: an absurd length prefix ends the stream with only the prefix and the id read.
#[test]
fn huge_length_prefixes_are_refused_at_once() {
    for id in [id::PIECE, id::EXTENDED, 99] {
        let error = refusal(&[0xff, 0xff, 0xff, 0xff, id]);
        assert!(matches!(error, WireError::TooLong { len: u32::MAX, .. }), "{error}");
    }
    assert!(matches!(
        refusal(&[0xff, 0xff, 0xff, 0xff, id::CHOKE]),
        WireError::BadLength { .. }
    ));
    assert!(matches!(
        refusal(&[0xff, 0xff, 0xff, 0xff, id::BITFIELD]),
        WireError::Bitfield(_)
    ));
}

/// The budget counts skipped messages too, and the remaining bytes stay buffered.
#[test]
fn messages_are_decoded_within_a_budget() {
    let mut codec = PeerCodec::new(FrameLimits::default());
    let unknown = [0, 0, 0, 2, 99, 7];
    codec.push(Bytes::from(unknown.repeat(10)));
    codec.push(Bytes::from(written(&Message::Have(3))));
    let mut budget = 8;
    assert_eq!(codec.next_frame_within(&session(), &mut budget), Ok(None));
    assert_eq!((budget, codec.buffered_len()), (0, 2 * 6 + 9));
    budget = 8;
    let frame = codec.next_frame_within(&session(), &mut budget);
    assert_eq!(frame, Ok(Some(Frame::Message(Message::Have(3)))));
    assert_eq!(codec.next_frame_within(&session(), &mut budget), Ok(None));
    assert_eq!((budget, codec.buffered_len()), (5, 0), "waiting costs nothing");
}

/// Fault 22: a bitfield must have the torrent's size and no spare bits.
#[test]
fn bitfields_are_checked() {
    let bits = |bytes: &[u8]| written(&Message::Bitfield(Bytes::copy_from_slice(bytes)));
    assert!(read_all(&bits(&[0xff, 0xff, 0xf0]), &session()).is_ok());
    assert_eq!(
        refusal(&bits(&[0xff, 0xff, 0xf8])),
        WireError::Bitfield(BitfieldError::SpareBits)
    );
    assert_eq!(
        refusal(&bits(&[0; 4])),
        WireError::Bitfield(BitfieldError::Length { got: 4, pieces: PIECES })
    );
    let extension = Message::Extended {
        id: 0,
        payload: Bytes::from_static(b"de"),
    };
    let later = [
        written(&extension),
        bits(&[0; 3]),
        written(&Message::Have(1)),
        bits(&[0xff; 2]),
    ]
    .concat();
    assert!(matches!(refusal(&later), WireError::Bitfield(_)), "checked at any time");
}

/// Fault 23: nonexistent indexes and offsets end the stream.
#[test]
fn out_of_range_indexes_are_refused() {
    let request = BlockRequest {
        piece: PIECES,
        begin: 0,
        len: 1,
    };
    for message in [
        Message::Have(PIECES),
        Message::AllowedFast(u32::MAX),
        Message::SuggestPiece(PIECES),
        Message::Request(request),
        Message::Cancel(request),
        Message::RejectRequest(request),
    ] {
        let error = refusal(&written(&message));
        assert!(matches!(error, WireError::OutOfRange { .. }), "{message:?}: {error}");
    }
    for (piece, begin, len) in [
        (PIECES, 0, 1),
        (0, 32768, 1),
        (0, u32::MAX, 16384),
        (PIECES - 1, 16384, 16384),
    ] {
        let mut bytes = Vec::new();
        write_block_header(&mut bytes, BlockRequest { piece, begin, len });
        assert_eq!(
            refusal(&bytes),
            WireError::OutOfRange {
                id: id::PIECE,
                piece,
                begin
            }
        );
    }
    assert_eq!(
        refusal(&[0, 0, 0, 9, id::PIECE]),
        WireError::BadLength { id: id::PIECE, len: 9 }
    );
}

/// A message of fixed length has exactly that length; a block has at most 16 KiB.
#[test]
fn lengths_that_cannot_be_are_refused() {
    let framed = |id: u8, len: u32| {
        let body = vec![0; len as usize - 1];
        [&len.to_be_bytes()[..], &[id], &body].concat()
    };
    for (ids, exact) in [
        (
            &[
                id::CHOKE,
                id::UNCHOKE,
                id::INTERESTED,
                id::NOT_INTERESTED,
                id::HAVE_ALL,
                id::HAVE_NONE,
            ][..],
            1,
        ),
        (&[id::PORT], 3),
        (&[id::HAVE, id::SUGGEST_PIECE, id::ALLOWED_FAST], 5),
        (&[id::REQUEST, id::CANCEL, id::REJECT_REQUEST], 13),
    ] {
        for &id in ids {
            assert!(read_all(&framed(id, exact), &session()).is_ok(), "{id}");
            for len in [exact - 1, exact + 1, 100] {
                if len > 0 {
                    assert_eq!(refusal(&framed(id, len)), WireError::BadLength { id, len });
                }
            }
        }
    }
    let len = 1;
    assert_eq!(
        refusal(&framed(id::EXTENDED, len)),
        WireError::BadLength { id: id::EXTENDED, len }
    );
    let max = 9 + 16384;
    assert!(read_all(&framed(id::PIECE, max), &session()).is_ok());
    let (id, len) = (id::PIECE, max + 1);
    assert_eq!(refusal(&framed(id, len)), WireError::TooLong { id, len, max });
}

/// The stream is inside a frame from its first byte to its last, also while the buffer is empty.
#[test]
fn a_frame_that_has_begun_is_known() {
    let mut codec = PeerCodec::new(FrameLimits::default());
    let request = BlockRequest {
        piece: 1,
        begin: 0,
        len: 4,
    };
    let mut head = Vec::new();
    write_block_header(&mut head, request);
    for part in [&head[..3], &head[3..], b"abc"] {
        codec.push(Bytes::copy_from_slice(part));
        assert_eq!(codec.next_frame(&session()), Ok(None));
        codec.rest();
        assert!(codec.is_mid_frame());
    }
    assert_eq!(codec.buffered_len(), 0, "the payload is taken as it arrives");
    codec.push(Bytes::from_static(b"d"));
    assert!(matches!(codec.next_frame(&session()), Ok(Some(Frame::Block(block))) if block.data.concat() == b"abcd"));
    assert!(!codec.is_mid_frame());
}

/// A peer that pauses inside a message holds no chunk of the memory that bytes are read into.
#[test]
fn a_resting_codec_holds_no_chunk() {
    let mut memory = bytes::BytesMut::with_capacity(100_000);
    memory.extend_from_slice(&[0, 0, 0]);
    let mut codec = PeerCodec::new(FrameLimits::default());
    codec.push(memory.split().freeze());
    assert!(!memory.try_reclaim(100_000));
    codec.rest();
    assert!(memory.try_reclaim(100_000), "the codec let go of the chunk");
    assert_eq!(codec.buffered_len(), 3);
}

#[test]
fn extensions_must_be_negotiated() {
    let plain = Session {
        fast: false,
        extended: false,
        ..session()
    };
    for message in [Message::HaveAll, Message::AllowedFast(1), Message::SuggestPiece(1)] {
        let error = read_all(&written(&message), &plain).unwrap_err();
        assert!(matches!(error, WireError::NotNegotiated(_)), "{message:?}");
    }
    let extended = Message::Extended {
        id: 0,
        payload: Bytes::from_static(b"de"),
    };
    assert_eq!(
        read_all(&written(&extended), &plain),
        Err(WireError::NotNegotiated(id::EXTENDED))
    );
}

#[test]
fn unknown_messages_are_skipped() {
    let bytes = [&[0, 0, 0, 6, 77, 1, 2, 3, 4, 5][..], &written(&Message::Have(3))].concat();
    assert_eq!(
        read_all(&bytes, &session()).unwrap(),
        [Frame::Message(Message::Have(3))]
    );
    let mut codec = PeerCodec::new(FrameLimits::default());
    codec.push(Bytes::copy_from_slice(&bytes[..7]));
    assert_eq!(codec.next_frame(&session()), Ok(None));
    assert!(codec.is_mid_frame());
    codec.push(Bytes::copy_from_slice(&bytes[7..]));
    let frame = codec.next_frame(&session());
    assert_eq!(frame, Ok(Some(Frame::Message(Message::Have(3)))));
}

#[test]
fn a_handshake_may_arrive_in_parts() {
    let handshake = Handshake {
        reserved: crate::wire::Reserved::ours(),
        info_hash: crate::hash::InfoHash([1; 20]),
        peer_id: crate::peer_id::PeerId([2; 20]),
    };
    let mut bytes = Vec::new();
    handshake.write(&mut bytes);
    let mut codec = PeerCodec::new(FrameLimits::default());
    for part in [&bytes[..1], &bytes[1..30], &bytes[30..67]] {
        codec.push(Bytes::copy_from_slice(part));
        assert_eq!(codec.handshake(), Ok(None));
    }
    codec.push(Bytes::copy_from_slice(&bytes[67..]));
    assert_eq!(codec.handshake(), Ok(Some(handshake)));
    assert!(!codec.is_mid_frame());
}

#[test]
fn anything_but_a_handshake_is_refused_by_its_first_byte() {
    let mut codec = PeerCodec::new(FrameLimits::default());
    assert_eq!(codec.handshake(), Ok(None));
    assert!(!codec.is_mid_frame());
    codec.push(Bytes::from_static(b"G"));
    assert_eq!(codec.handshake(), Err(WireError::Handshake(HandshakeError)));
}

fn messages() -> impl Strategy<Value = Message> {
    let piece = 0..PIECES;
    let request =
        (0..PIECES, any::<u32>(), any::<u32>()).prop_map(|(piece, begin, len)| BlockRequest { piece, begin, len });
    prop_oneof![
        Just(Message::KeepAlive),
        Just(Message::Choke),
        Just(Message::Unchoke),
        Just(Message::Interested),
        Just(Message::NotInterested),
        Just(Message::HaveAll),
        Just(Message::HaveNone),
        Just(Message::Bitfield(Bytes::from_static(&[0x12, 0x34, 0x50]))),
        piece.clone().prop_map(Message::Have),
        request.clone().prop_map(Message::Request),
        request.clone().prop_map(Message::Cancel),
        any::<u16>().prop_map(Message::Port),
        piece.clone().prop_map(Message::SuggestPiece),
        request.prop_map(Message::RejectRequest),
        piece.prop_map(Message::AllowedFast),
        (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..50)).prop_map(|(id, payload)| Message::Extended {
            id,
            payload: payload.into(),
        }),
    ]
}

fn frames() -> impl Strategy<Value = Frame> {
    let block = (
        0..PIECES - 1,
        0u32..16384,
        proptest::collection::vec(any::<u8>(), 1..16384),
    );
    prop_oneof![
        4 => messages().prop_map(Frame::Message),
        1 => block.prop_map(|(piece, begin, data)| Frame::Block(Block {
            request: BlockRequest { piece, begin, len: data.len() as u32 },
            data: std::iter::once(Bytes::from(data)).collect(),
        })),
    ]
}

proptest! {
    /// A stream decodes to the same frames in any chunking.
    #[test]
    fn frames_survive_any_chunking(
        frames in proptest::collection::vec(frames(), 1..12),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut stream = Vec::new();
        for frame in &frames {
            match frame {
                Frame::Message(message) => message.write(&mut stream),
                Frame::Block(block) => {
                    write_block_header(&mut stream, block.request);
                    stream.extend(block.data.concat());
                }
            }
        }
        let mut borders: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        borders.extend([0, stream.len()]);
        borders.sort_unstable();
        let mut codec = PeerCodec::new(FrameLimits::default());
        let mut decoded = Vec::new();
        for pair in borders.windows(2) {
            codec.push(Bytes::copy_from_slice(&stream[pair[0]..pair[1]]));
            while let Some(frame) = codec.next_frame(&session()).unwrap() {
                decoded.push(frame);
            }
        }
        prop_assert!(!codec.is_mid_frame());
        prop_assert_eq!(decoded.len(), frames.len());
        for (a, b) in decoded.iter().zip(&frames) {
            match (a, b) {
                (Frame::Block(a), Frame::Block(b)) => {
                    prop_assert_eq!(a.request, b.request);
                    prop_assert_eq!(a.data.concat(), b.data.concat());
                }
                _ => prop_assert_eq!(a, b),
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), known in any::<bool>()) {
        let session = if known { session() } else { Session { geometry: None, ..session() } };
        let _ = read_all(&bytes, &session);
    }
}
