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
    missing: Vec<(u32, Timestamp)>,
    /// The piece that the reader waits for, and since when.
    awaited: Option<(u32, Timestamp)>,
}

impl Window {
    /// Returns the missing pieces with their deadlines.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = (Timestamp, u32)> + '_ {
        self.missing.iter().map(|(piece, due)| (*due, *piece))
    }

    /// Moves the window. A piece is due when the reader gets there at its present rate, so a nearer piece is never due
    /// after a farther one. A piece that the reader waits for is due since the wait began.
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
        let waited_before = self.awaited.filter(|(piece, _)| *piece == range.start);
        self.awaited = match next.is_waiting {
            true => waited_before.or(Some((range.start, now))),
            false => None,
        };
        let rate = next.bytes_per_s.max(LEAST_RATE);
        let due_of = |piece: u32| match self.awaited {
            Some((awaited, since)) if awaited == piece => since,
            _ => {
                let distance = geometry.piece_offset(piece).saturating_sub(place.start);
                now + Duration::from_secs_f64(distance as f64 / rate as f64)
            }
        };
        self.missing = range
            .filter(|piece| is_missing(*piece))
            .map(|piece| (piece, due_of(piece)))
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 256 << 10;

    fn at(millis: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(millis)
    }

    /// Moves the window of a reader that continues at `piece` of a file of 1024 pieces.
    fn follow(window: &mut Window, now: Timestamp, piece: u64, (is_waiting, bytes_per_s): (bool, u64)) {
        let geometry = Geometry::new(1024 * PIECE, PIECE as u32).unwrap();
        let bytes = piece * PIECE..1024 * PIECE;
        let next = NextRead {
            bytes,
            is_waiting,
            bytes_per_s,
        };
        window.follow(now, &next, (&geometry, 32 << 20), |_| true);
    }

    /// A reader that becomes faster needs the pieces of its window earlier, and those that come into it after them.
    #[test]
    fn a_nearer_piece_is_never_due_after_a_farther_one() {
        let mut window = Window::default();
        follow(&mut window, at(0), 0, (true, 0));
        for second in 1..20 {
            follow(&mut window, at(second * 1000), second * 10, (false, 4 << 20));
            let due: Vec<Timestamp> = window.deadlines().map(|(due, _)| due).collect();
            assert_eq!(due.len(), 128);
            assert!(due.is_sorted(), "{due:?}");
            assert_eq!(due[127].since(at(second * 1000)), Duration::from_secs_f64(127.0 / 16.0));
        }
    }

    #[test]
    fn an_awaited_piece_is_due_since_the_wait_began() {
        let mut window = Window::default();
        let first = |window: &Window| window.deadlines().next();
        follow(&mut window, at(1000), 5, (true, 0));
        follow(&mut window, at(3000), 5, (true, 0));
        assert_eq!(first(&window), Some((at(1000), 5)));
        // A seek.
        follow(&mut window, at(4000), 9, (true, 0));
        assert_eq!(first(&window), Some((at(4000), 9)));
        follow(&mut window, at(5000), 9, (false, 0));
        assert_eq!(first(&window), Some((at(5000), 9)), "the reader does not wait");
    }
}
