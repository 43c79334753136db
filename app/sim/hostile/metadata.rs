//! Harm to peers that fetch the metadata of a torrent (BEP 9).

use bytes::{Bytes, BytesMut};
use ecs_torrent_engine::sim::Content;
use ecs_torrent_protocol::extension::ExtensionHandshake;
use ecs_torrent_protocol::metadata::{METADATA, MetadataMessage, PIECE_LEN, piece_len};

use super::Hostility;

/// The id by which hostile peers get messages about metadata.
pub(super) const OUR_ID: u8 = 3;

/// The extension handshake of a peer that offers the metadata.
pub(super) fn offer(hostility: Hostility, content: &Content) -> ExtensionHandshake {
    ExtensionHandshake {
        extensions: [(METADATA.to_owned(), OUR_ID)].into(),
        metadata_size: Some(claimed_size(hostility, content)),
        ..ExtensionHandshake::default()
    }
}

/// The answer to a message about metadata; `None` for silence. `noise` decides which byte is wrong.
pub(super) fn answer(hostility: Hostility, content: &Content, payload: &Bytes, noise: u64) -> Option<Bytes> {
    let Ok(Some(MetadataMessage::Request { piece })) = MetadataMessage::read(payload) else {
        return None;
    };
    let total_size = claimed_size(hostility, content);
    let len = piece_len(total_size, piece) as usize;
    let info = &content.metainfo().info_bytes;
    let begin = piece as usize * PIECE_LEN as usize;
    let mut data: BytesMut = info.iter().skip(begin).take(len).copied().collect();
    data.resize(len, 0);
    match hostility {
        Hostility::WrongMetadata => {
            let place = noise as usize % len.max(1);
            *data.get_mut(place)? ^= 0xff;
        }
        Hostility::WrongMetadataSize => {}
        Hostility::RejectsMetadata => return Some(MetadataMessage::Reject { piece }.write()),
        _ => return None,
    }
    let data = data.freeze();
    let answer = MetadataMessage::Data {
        piece,
        total_size,
        data,
    };
    Some(answer.write())
}

/// The size that the peer claims. A wrong one has more pieces than the metadata.
fn claimed_size(hostility: Hostility, content: &Content) -> u32 {
    let size = content.metainfo().info_bytes.len() as u32;
    match hostility {
        Hostility::WrongMetadataSize => size + PIECE_LEN,
        _ => size,
    }
}
