//! The window of a reader: the missing pieces ahead of it, and when it will need each of them.

use std::ops::Range;
use std::time::Duration;

use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::time::Timestamp;

/// Fewest pieces in a window, however long they are: a reader that ends one piece needs the next ones at once.
const LEAST_PIECES: u32 = 4;

/// Most pieces in a window, however short they are. It bounds the work for each step of the reader.
const MOST_PIECES: u32 = 512;

/// Assumed rate of a reader that has read less: a player that begins fills its buffer first.
const LEAST_RATE: u64 = 1 << 20;

/// The place of a reader.
#[derive(Debug)]
pub(super) struct NextRead {
    /// The bytes from the next one to the end of the file, as offsets in the torrent.
    pub(super) bytes: Range<u64>,
    /// Whether the caller waits for the next byte.
    pub(super) is_waiting: bool,
    /// The rate at which the reader reads.
    pub(super) bytes_per_s: u64,
}

/// The missing pieces ahead of a reader, ascending, each with its deadline.
#[derive(Debug, Default)]
pub(super) struct Window {
    range: Range<u32>,
    missing: Vec<(u32, Timestamp)>,
}

impl Window {
    /// Returns the missing pieces with their deadlines.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = (Timestamp, u32)> + '_ {
        self.missing.iter().map(|(piece, due)| (*due, *piece))
    }

    /// Moves the window. A piece keeps its deadline while it stays in the window. A piece that comes into it is due when
    /// the reader gets there at its rate, and a piece that the reader waits for is due now.
    pub(super) fn follow(
        &mut self,
        now: Timestamp,
        next: &NextRead,
        (geometry, window_bytes): (&Geometry, u64),
        is_missing: impl Fn(u32) -> bool,
    ) {
        let place = &next.bytes;
        let rest = geometry.pieces_of(place.clone());
        if rest.is_empty() {
            *self = Self::default();
            return;
        }
        let ahead = geometry.pieces_of(place.start..place.end.min(place.start.saturating_add(window_bytes)));
        let count = ahead.end.saturating_sub(ahead.start).clamp(LEAST_PIECES, MOST_PIECES);
        let range = rest.start..rest.start.saturating_add(count).min(rest.end);
        // After a seek, earlier deadlines mean nothing.
        let known = match self.range.contains(&range.start) || self.range.end == range.start {
            true => std::mem::take(&mut self.missing),
            false => Vec::new(),
        };
        let rate = next.bytes_per_s.max(LEAST_RATE);
        let due_of = |piece: u32| {
            let due = match known.binary_search_by_key(&piece, |(piece, _)| *piece) {
                Ok(position) => known[position].1,
                Err(_) => {
                    let distance = geometry.piece_offset(piece).saturating_sub(place.start);
                    now + Duration::from_secs_f64(distance as f64 / rate as f64)
                }
            };
            match next.is_waiting && piece == range.start {
                true => due.min(now),
                false => due,
            }
        };
        self.missing = range
            .clone()
            .filter(|piece| is_missing(*piece))
            .map(|piece| (piece, due_of(piece)))
            .collect();
        self.range = range;
    }
}
