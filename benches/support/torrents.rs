//! Torrents for benches: large ones without data and small ones with data.

use std::sync::Arc;

use bytes::Bytes;
use ecs_torrent::protocol::create::{NewFile, NewTorrent};
use ecs_torrent::protocol::hash::{Sha1Digest, sha1};
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};

/// Piece length in bytes of a torrent without data.
const PIECE_LENGTH: u32 = 256 << 10;

/// Creates the `.torrent` of a folder with `file_count` files and `piece_count` pieces.
pub fn described(piece_count: usize, file_count: usize) -> Bytes {
    let total = piece_count as u64 * u64::from(PIECE_LENGTH);
    let file = |number: usize| NewFile {
        path: vec![
            format!("season {:02}", number / 100),
            format!("episode {number:05}.mkv"),
        ],
        len: total / file_count as u64,
    };
    let piece = |number: usize| -> Sha1Digest { sha1([&number.to_be_bytes()[..]]) };
    let mut files: Vec<NewFile> = (0..file_count).map(file).collect();
    files[0].len += total % file_count as u64;
    let torrent = NewTorrent {
        name: "described".into(),
        files,
        piece_length: PIECE_LENGTH,
        pieces: (0..piece_count).map(piece).collect(),
        trackers: vec![vec!["http://tracker.example/announce".into()]],
        ..NewTorrent::default()
    };
    torrent.encode().unwrap().into()
}

/// Creates the metainfo of one file that contains `data`.
pub fn of_data(name: &str, data: &[u8], piece_length: u32, tracker: Option<&str>) -> Arc<Metainfo> {
    let torrent = NewTorrent {
        name: name.into(),
        files: vec![NewFile {
            path: vec![],
            len: data.len() as u64,
        }],
        piece_length,
        pieces: data.chunks(piece_length as usize).map(|piece| sha1([piece])).collect(),
        trackers: tracker.into_iter().map(|url| vec![url.to_owned()]).collect(),
        ..NewTorrent::default()
    };
    parse(&torrent.encode().unwrap().into())
}

/// Parses metainfo that this module creates.
pub fn parse(bytes: &Bytes) -> Arc<Metainfo> {
    Arc::new(Metainfo::parse(bytes, &MetainfoLimits::default()).unwrap())
}

/// Returns `len` non-repeating bytes.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(len.div_ceil(8)).flatten().take(len).collect()
}
