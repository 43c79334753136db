//! Checks that any bytes decode to frames or an error, and to the same ones however they are split into chunks.
#![no_main]

use bytes::Bytes;
use ecs_torrent_protocol::extension::ExtensionHandshake;
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::wire::{Frame, FrameLimits, Message, PeerCodec, Session};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, bool, bool, Vec<u8>)| {
    let (cut, fast, extended, data) = input;
    let session = Session {
        geometry: Geometry::new(1_000_000, 65536),
        fast,
        extended,
        dht: false,
    };
    let whole = read(&[&data], &session);
    let pieces: Vec<&[u8]> = data.chunks(usize::from(cut).max(1)).collect();
    assert_eq!(whole, read(&pieces, &session));
    let mut codec = PeerCodec::new(FrameLimits::default());
    codec.push(Bytes::from(data));
    let _ = codec.handshake();
});

/// Returns the frames as text, up to and including the first error.
fn read(chunks: &[&[u8]], session: &Session) -> Vec<String> {
    let mut codec = PeerCodec::new(FrameLimits::default());
    let mut seen = Vec::new();
    for chunk in chunks {
        codec.push(Bytes::copy_from_slice(chunk));
        loop {
            match codec.next_frame(session) {
                Ok(None) => break,
                Ok(Some(Frame::Block(block))) => seen.push(format!("{:?} {:?}", block.request, block.data.concat())),
                Ok(Some(Frame::Message(message))) => {
                    if let Message::Extended { id: 0, payload } = &message {
                        let _ = ExtensionHandshake::read(payload).map(|handshake| handshake.write());
                    }
                    seen.push(format!("{message:?}"));
                }
                Err(error) => {
                    seen.push(error.to_string());
                    return seen;
                }
            }
        }
    }
    seen
}
