//! Transmission: `resume/STEM.resume` and `torrents/STEM.torrent` for each torrent, in the configuration folder.

use std::io;
use std::path::{Path, PathBuf};

use ecs_torrent_components::seeding::OwnLimit;
use ecs_torrent_protocol::bencode::Value;
use ecs_torrent_protocol::bitfield::Bitfield;

use super::documents::{BLOCK, date, files_with, folder_of, is_set, items, parse, set_bits, text, unsigned};
use super::torrent::{FilePriority, OtherTorrent, SavedTorrent};

/// Lists the torrents of a configuration folder.
pub(super) fn list(folder: &Path) -> io::Result<Vec<SavedTorrent>> {
    let files = files_with(&folder.join("resume"), "resume")?;
    let saved = files.into_iter().map(|resume| SavedTorrent {
        metainfo: (folder.join("torrents"))
            .join(resume.file_name().unwrap_or_default())
            .with_extension("torrent"),
        place: 0,
        resume,
    });
    Ok(saved.collect())
}

/// Reads a torrent.
pub(super) fn read(saved: &SavedTorrent, torrent: &mut OtherTorrent<'_>) -> Result<(), String> {
    let (bytes, saved_at) = saved.resume()?;
    let document = parse(&bytes, &saved.resume)?;
    let root = document.root();
    torrent.saved_at = saved_at;
    set_paths(root, torrent)?;
    let progress = root.get(b"progress");
    if let Some(progress) = progress {
        read_blocks(progress, torrent);
    }
    let skipped = items(root, "dnd").map(|skipped| skipped.as_int().unwrap_or(0) != 0);
    let priorities = items(root, "priority").map(|priority| match priority.as_int() {
        Some(..=-1) => FilePriority::Low,
        Some(1..) => FilePriority::High,
        _ => FilePriority::Normal,
    });
    let count = torrent.metainfo.info.files.files().len();
    let mut chosen: Vec<FilePriority> = priorities.take(count).collect();
    chosen.resize(count, FilePriority::Normal);
    for (priority, is_skipped) in chosen.iter_mut().zip(skipped) {
        if is_skipped {
            *priority = FilePriority::Skip;
        }
    }
    torrent.set_priorities(&chosen);
    let session = &mut torrent.session;
    session.uploaded = unsigned(root, "uploaded");
    session.downloaded = unsigned(root, "downloaded");
    session.corrupt = unsigned(root, "corrupt");
    session.seconds_seeding = unsigned(root, "seeding-time-seconds");
    session.seconds_active = session.seconds_seeding + unsigned(root, "downloading-time-seconds");
    session.added_at = date(root, "added-date");
    session.completed_at = date(root, "done-date");
    session.active_at = date(root, "activity-date");
    session.paused = is_set(root, "paused");
    session.sequential = is_set(root, "sequentialDownload") || is_set(root, "sequential_download");
    session.limits.download_bytes_per_s = rate(root, "speed-limit-down");
    session.limits.upload_bytes_per_s = rate(root, "speed-limit-up");
    read_seeding(root, torrent);
    let labels = items(root, "labels").filter_map(Value::as_str).map(str::to_owned);
    torrent.set_labels(labels, None);
    Ok(())
}

/// Sets the paths of the files, which lie in the folder for incomplete torrents until all are complete.
fn set_paths(root: Value<'_>, torrent: &mut OtherTorrent<'_>) -> Result<(), String> {
    let folder = folder_of(root, "destination").ok_or("its folder is not known")?;
    torrent.lie_below(&folder);
    let renamed: Vec<&str> = items(root, "files").filter_map(Value::as_str).collect();
    let name = text(root, "name").filter(|name| *name != torrent.metainfo.info.name);
    let relative: Vec<String> = torrent
        .metainfo
        .info
        .files
        .files()
        .iter()
        .enumerate()
        .map(|(index, file)| match (renamed.get(index), name) {
            (Some(path), _) if !path.is_empty() => (*path).to_owned(),
            (_, Some(name)) => match file.path.split_once('/') {
                Some((_, below)) => format!("{name}/{below}"),
                None => name.to_owned(),
            },
            _ => file.path.to_string(),
        })
        .collect();
    let places = [Some(folder.clone()), folder_of(root, "incomplete-dir")];
    // Incomplete files may have a suffix.
    let existing = |place: &Path, path: &str| {
        let names = [path.to_owned(), format!("{path}.part")];
        names
            .into_iter()
            .map(|name| place.join(name))
            .find(|path| path.exists())
    };
    let is_there = |place: &&PathBuf| relative.iter().any(|path| existing(place, path).is_some());
    let place = places.iter().flatten().find(is_there).unwrap_or(&folder);
    let paths = relative
        .iter()
        .map(|path| existing(place, path).unwrap_or_else(|| place.join(path)));
    torrent.paths = paths.collect();
    Ok(())
}

/// Reads the blocks on the disk. They are blocks of the torrent, not of its pieces. Transmission verifies each piece
/// when it is complete.
fn read_blocks(progress: Value<'_>, torrent: &mut OtherTorrent<'_>) {
    let geometry = &torrent.metainfo.info.geometry;
    let blocks = progress.get(b"blocks").and_then(Value::as_bytes);
    if blocks == Some(b"all") {
        torrent.have = Bitfield::full(geometry.piece_count());
        return;
    }
    let Some(blocks) = blocks.filter(|blocks| *blocks != b"none") else {
        return;
    };
    let count = u32::try_from(geometry.total_size().div_ceil(BLOCK)).unwrap_or(u32::MAX);
    let mut held = Bitfield::new(count);
    for block in set_bits(blocks).take_while(|block| *block < count) {
        held.insert(block);
    }
    let mut parts = Vec::new();
    for piece in 0..geometry.piece_count() {
        let offset = geometry.piece_offset(piece);
        let end = offset + u64::from(geometry.piece_size(piece));
        let span = (offset / BLOCK) as u32..end.div_ceil(BLOCK) as u32;
        if span.clone().all(|block| held.contains(block)) {
            torrent.have.insert(piece);
        } else if offset.is_multiple_of(BLOCK) {
            let first = span.start;
            parts.push((
                piece,
                span.filter(|block| held.contains(*block))
                    .map(|block| block - first)
                    .collect::<Vec<_>>(),
            ));
        }
    }
    for (piece, blocks) in parts {
        torrent.set_blocks(piece, blocks.into_iter());
    }
}

fn rate(root: Value<'_>, key: &str) -> Option<u64> {
    let limit = root.get(key.as_bytes())?;
    is_set(limit, "use-speed-limit").then(|| unsigned(limit, "speed-Bps"))
}

/// Reads the limits on seeding. The mode 0 stands for the limits of all torrents, 1 for own ones, 2 for none.
fn read_seeding(root: Value<'_>, torrent: &mut OtherTorrent<'_>) {
    let own = |limit: Option<Value<'_>>, mode: &str, value: &dyn Fn(Value<'_>) -> Option<u64>| {
        let Some(limit) = limit else { return OwnLimit::Inherit };
        match unsigned(limit, mode) {
            1 => value(limit).map_or(OwnLimit::Inherit, OwnLimit::Value),
            2 => OwnLimit::Unlimited,
            _ => OwnLimit::Inherit,
        }
    };
    let percent = |limit: Value<'_>| {
        let ratio: f64 = text(limit, "ratio-limit")?.parse().ok()?;
        Some((ratio.max(0.0) * 100.0).round() as u64)
    };
    torrent.session.seeding.ratio_percent = own(root.get(b"ratio-limit"), "ratio-mode", &percent);
    let seconds = |limit: Value<'_>| Some(unsigned(limit, "idle-limit").saturating_mul(60));
    torrent.session.seeding.idle_s = own(root.get(b"idle-limit"), "idle-mode", &seconds);
}
