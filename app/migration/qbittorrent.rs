//! qBittorrent: `INFO_HASH.torrent` and `INFO_HASH.fastresume` for each torrent, and `queue`, in `BT_backup`.
//!
//! A `.fastresume` file contains the resume data of libtorrent and keys of qBittorrent, whose names begin with `qBt-`.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use ecs_torrent_components::seeding::OwnLimit;
use ecs_torrent_protocol::bencode::Value;
use ecs_torrent_protocol::bitfield::Bitfield;

use super::documents::{
    date, files_with, folder_of, is_set, items, parse, path_of, read_regular, set_bits, text, unsigned,
};
use super::torrent::{FilePriority, OtherTorrent, SavedTorrent};

/// Lists the torrents of a folder `BT_backup`.
pub(super) fn list(folder: &Path) -> io::Result<Vec<SavedTorrent>> {
    let queue = read_regular(&folder.join("queue")).unwrap_or_default();
    let queue = String::from_utf8_lossy(&queue);
    let places: HashMap<&str, usize> = queue.lines().map(str::trim).zip(0..).collect();
    let files = files_with(folder, "fastresume")?;
    let saved = files.into_iter().map(|resume| {
        let stem = resume.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        SavedTorrent {
            metainfo: resume.with_extension("torrent"),
            place: places.get(stem).copied().unwrap_or(places.len()),
            resume,
        }
    });
    Ok(saved.collect())
}

/// Reads a torrent.
pub(super) fn read(saved: &SavedTorrent, torrent: &mut OtherTorrent<'_>) -> Result<(), String> {
    let (bytes, saved_at) = saved.resume()?;
    let document = parse(&bytes, &saved.resume)?;
    let root = document.root();
    let folder = folder_of(root, "save_path").or_else(|| folder_of(root, "qBt-savePath"));
    let folder = folder.ok_or("its folder is not known")?;
    torrent.saved_at = saved_at;
    torrent.lie_below(&folder);
    for (path, mapped) in torrent.paths.iter_mut().zip(items(root, "mapped_files")) {
        if let Some(mapped) = mapped.as_bytes().filter(|mapped| !mapped.is_empty()) {
            *path = folder.join(path_of(mapped));
        }
    }
    read_pieces(root, torrent)?;
    read_priorities(root, torrent);
    let session = &mut torrent.session;
    session.uploaded = unsigned(root, "total_uploaded");
    session.downloaded = unsigned(root, "total_downloaded");
    session.seconds_active = unsigned(root, "active_time");
    session.seconds_seeding = unsigned(root, "seeding_time");
    session.added_at = date(root, "added_time");
    session.completed_at = date(root, "completed_time");
    session.active_at = date(root, "last_upload").max(date(root, "last_download"));
    let is_automatic = is_set(root, "auto_managed");
    session.paused = is_set(root, "paused") && !is_automatic;
    session.is_forced = !is_set(root, "paused") && !is_automatic;
    session.queue_order = i64::try_from(saved.place).ok();
    session.sequential = is_set(root, "sequential_download") || is_set(root, "qBt-sequentialDownload");
    session.ends_first = is_set(root, "qBt-firstLastPiecePriority");
    let rate = |key| Some(unsigned(root, key)).filter(|rate| *rate > 0 && *rate < i32::MAX as u64);
    session.limits.download_bytes_per_s = rate("download_rate_limit");
    session.limits.upload_bytes_per_s = rate("upload_rate_limit");
    session.seeding.ratio_percent = own_limit(root, "qBt-ratioLimit", 1000, |thousandths| thousandths / 10);
    session.seeding.time_s = own_limit(root, "qBt-seedingTimeLimit", 1, |minutes| minutes.saturating_mul(60));
    session.seeding.idle_s = own_limit(root, "qBt-inactiveSeedingTimeLimit", 1, |minutes| {
        minutes.saturating_mul(60)
    });
    if let Some(tiers) = root.get(b"trackers").and_then(Value::as_list) {
        let urls = |tier: Value<'_>| {
            let urls = tier.as_list().into_iter().flatten().filter_map(Value::as_str);
            urls.map(str::to_owned).collect()
        };
        torrent.set_trackers(tiers.map(urls).collect());
    }
    let labels = items(root, "qBt-tags").filter_map(Value::as_str).map(str::to_owned);
    torrent.set_labels(labels, text(root, "qBt-category").map(str::to_owned));
    Ok(())
}

/// Reads a limit on seeding: -1 means no limit, and -2 the limit of all torrents, each times `unit`.
fn own_limit(root: Value<'_>, key: &str, unit: i64, convert: impl Fn(u64) -> u64) -> OwnLimit {
    match root.get(key.as_bytes()).and_then(Value::as_int) {
        Some(number) if number == -unit => OwnLimit::Unlimited,
        Some(number) => u64::try_from(number).map_or(OwnLimit::Inherit, |number| OwnLimit::Value(convert(number))),
        None => OwnLimit::Inherit,
    }
}

/// Reads the verified pieces and the blocks of other pieces. Version 1 of the format has a byte for each piece, and
/// version 2 (since libtorrent 2.1) a bit.
fn read_pieces(root: Value<'_>, torrent: &mut OtherTorrent<'_>) -> Result<(), String> {
    let pieces = root.get(b"pieces").and_then(Value::as_bytes).unwrap_or_default();
    let count = torrent.have.len();
    let (has_bits, is_seed) = (unsigned(root, "file-version") >= 2, is_set(root, "seed_mode"));
    let len = if has_bits { count.div_ceil(8) } else { count };
    if is_seed {
        // Such pieces are verified when a peer requests them.
        torrent.have = Bitfield::full(count);
        torrent.is_unverified = true;
    } else if !pieces.is_empty() && pieces.len() != len as usize {
        return Err("its pieces are not those of the torrent file".to_owned());
    } else if has_bits {
        for piece in set_bits(pieces).take_while(|piece| *piece < count) {
            torrent.have.insert(piece);
        }
    } else {
        for (piece, _) in (0..count).zip(pieces).filter(|(_, flags)| **flags & 1 != 0) {
            torrent.have.insert(piece);
        }
    }
    for unfinished in items(root, "unfinished") {
        let piece = unfinished.get(b"piece").and_then(Value::as_int);
        let bits = unfinished.get(b"bitmask").and_then(Value::as_bytes);
        if let (Some(piece), Some(bits)) = (piece.and_then(|piece| u32::try_from(piece).ok()), bits) {
            torrent.set_blocks(piece, set_bits(bits));
        }
    }
    Ok(())
}

fn read_priorities(root: Value<'_>, torrent: &mut OtherTorrent<'_>) {
    let priorities = items(root, "file_priority").map(|priority| match priority.as_int() {
        Some(0) => FilePriority::Skip,
        Some(6..) => FilePriority::High,
        _ => FilePriority::Normal,
    });
    torrent.set_priorities(&priorities.collect::<Vec<_>>());
}
