//! rTorrent: `INFO_HASH.torrent`, `INFO_HASH.torrent.rtorrent` and `INFO_HASH.torrent.libtorrent_resume` for each
//! torrent, in the session folder.

use std::io;
use std::path::{Path, PathBuf};

use ecs_torrent_protocol::bencode::Value;
use ecs_torrent_protocol::bitfield::Bitfield;

use super::documents::{date, files_with, folder_of, items, named, parse, read_regular, set_bits, text, unsigned};
use super::torrent::{FilePriority, OtherTorrent, SavedTorrent};

/// Lists the torrents of a session folder.
pub(super) fn list(folder: &Path) -> io::Result<Vec<SavedTorrent>> {
    let files = files_with(folder, "torrent")?;
    let saved = files.into_iter().map(|metainfo| SavedTorrent {
        resume: with_suffix(&metainfo, ".libtorrent_resume"),
        metainfo,
        place: 0,
    });
    Ok(saved.collect())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(suffix);
    name.into()
}

/// Reads a torrent.
pub(super) fn read(saved: &SavedTorrent, torrent: &mut OtherTorrent<'_>) -> Result<(), String> {
    let (bytes, saved_at) = saved.resume()?;
    let document = parse(&bytes, &saved.resume)?;
    torrent.saved_at = saved_at;
    let path = with_suffix(&saved.metainfo, ".rtorrent");
    let own = read_regular(&path).map_err(named(&path))?;
    let own = parse(&own, &path)?;
    let own = own.root();
    let folder = folder_of(own, "directory").ok_or("its folder is not known")?;
    if torrent.is_multi_file() {
        // It is the folder of the torrent.
        let files = torrent.metainfo.info.files.files().iter();
        let below = files.map(|file| file.path.split_once('/').map_or(&*file.path, |(_, below)| below));
        torrent.paths = below.map(|below| folder.join(below)).collect();
    } else {
        torrent.lie_below(&folder);
    }
    read_pieces(document.root(), torrent);
    let priorities = items(document.root(), "files").map(|file| match file.get(b"priority").and_then(Value::as_int) {
        Some(0) => FilePriority::Skip,
        Some(2..) => FilePriority::High,
        _ => FilePriority::Normal,
    });
    torrent.set_priorities(&priorities.collect::<Vec<_>>());
    let session = &mut torrent.session;
    session.uploaded = unsigned(own, "total_uploaded");
    session.downloaded = unsigned(own, "total_downloaded");
    session.added_at = date(own, "timestamp.started");
    session.completed_at = date(own, "timestamp.finished");
    session.paused = unsigned(own, "state") == 0;
    torrent.set_labels(text(own, "custom1").map(decoded), None);
    Ok(())
}

/// Reads the verified pieces: a bitfield, or the number of pieces if there are all or none.
fn read_pieces(root: Value<'_>, torrent: &mut OtherTorrent<'_>) {
    let Some(bits) = root.get(b"bitfield") else { return };
    let count = torrent.have.len();
    if bits.as_int() == Some(count.into()) {
        torrent.have = Bitfield::full(count);
    }
    for piece in bits
        .as_bytes()
        .into_iter()
        .flat_map(set_bits)
        .take_while(|piece| *piece < count)
    {
        torrent.have.insert(piece);
    }
    let uncertain = root
        .get(b"uncertain_pieces")
        .and_then(Value::as_bytes)
        .unwrap_or_default();
    for piece in uncertain.chunks_exact(4) {
        let piece = piece.iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
        if piece < count {
            torrent.have.remove(piece);
        }
    }
}

/// Decodes a label, which the web interfaces of rTorrent store with escaped characters.
fn decoded(label: &str) -> String {
    percent_encoding::percent_decode_str(label)
        .decode_utf8_lossy()
        .into_owned()
}
