//! The number of peers that are served at a time, and the time after which a peer without requests is idle, as plain
//! functions of the piece length.
//!
//! A part of a piece is worth nothing to the swarm until the piece is whole, and an uplink that serves k peers takes k
//! times as long for each piece. With k transfers at a time, the number of copies of a piece grows by the factor k + 1
//! in k piece times, which is fastest with the fewest peers. But one peer alone leaves the uplink idle whenever it
//! waits for its next request.

use std::time::Duration;

use ecs_torrent_protocol::time::Timestamp;

/// Time for a peer to request more, before another peer may have its slot.
pub(super) const IDLE_AFTER: Duration = Duration::from_millis(200);

/// Least number of peers served at a time: while one begins, the other one keeps the uplink busy.
const LEAST: usize = 2;

/// Least uplink that is assumed of a seed, in bytes per second: its rate is low at first, and while peers with slots
/// request nothing.
pub(super) const SEED_RATE: u64 = 512 << 10;

/// Least uplink that is assumed of a leecher, in bytes per second. A leecher sends less while its peers find nothing to
/// request, for example because silent peers owe the blocks; serving fewer peers would make it send even less.
pub(super) const LEECH_RATE: u64 = 2 << 20;

/// Uplink that is assumed for the time that a peer needs to receive a piece, in bytes per second.
const PATIENCE_RATE: u32 = 128 << 10;

/// Length of a piece from which on as many peers are served as the uplink completes pieces in a second.
const LONG_PIECE: u128 = 1 << 20;

/// Longest time for a peer to request more in the middle of a piece.
const LONGEST_PATIENCE: Duration = Duration::from_secs(2);

/// Time after which the effect of another width is measured: longer than the memory of rates (3 s).
const PROBE: Duration = Duration::from_secs(5);

/// Time between a width that did not help and the next attempt.
const REST: Duration = Duration::from_secs(60);

/// Returns the number of peers to serve at a time with an uplink of `rate` bytes per second: as many as the uplink
/// completes pieces in a second, or more if the pieces are shorter than [`LONG_PIECE`], because less is lost with a
/// part of them. It is at least two, and not limited if the length is 0.
pub(super) fn width(rate: u64, piece_length: u32) -> usize {
    let piece_length = u128::from(piece_length);
    let units = u128::from(rate) * piece_length.max(LONG_PIECE);
    let units = units.checked_div(piece_length * piece_length);
    units.map_or(usize::MAX, |units| {
        usize::try_from(units).unwrap_or(usize::MAX).max(LEAST)
    })
}

/// Returns the time after which an unchoked peer that requests nothing is idle.
///
/// The buffers of a connection hold the requested blocks of a peer for seconds. So a peer that still receives its piece
/// may look idle; if it were choked, the part of the piece that it has would be worth nothing to the swarm until
/// another peer sends the rest. The longer the pieces, the more there is to lose, and the more time the peer gets.
pub(super) fn patience(is_mid_piece: bool, piece_length: u32) -> Duration {
    match is_mid_piece {
        true => (Duration::from_secs(1) * piece_length / PATIENCE_RATE).clamp(IDLE_AFTER, LONGEST_PATIENCE),
        false => IDLE_AFTER,
    }
}

/// Search for peers in addition to [`width`]. If the served peers receive slowly, they leave the uplink idle, and the
/// sum of their rates does not show it. So one more step is tried, and kept if the rate grows with the number of peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct WidthProbe {
    /// Number of peers served in addition.
    pub(super) extra: usize,
    /// The state before the step that is being tried.
    trial: Option<Trial>,
    /// When the next decision is due.
    next: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trial {
    extra: usize,
    width: usize,
    rate: u64,
}

impl WidthProbe {
    /// Decides on the step that is being tried, and whether to try another one. `least` is the width without the
    /// search, `most` the largest possible one; `rate` is the present upload rate.
    #[must_use]
    pub(super) fn advance(self, now: Timestamp, (least, most): (usize, usize), rate: u64, has_waiting: bool) -> Self {
        if now < self.next {
            return self;
        }
        let width = least.saturating_add(self.extra);
        if let Some(trial) = self.trial
            && !trial.has_paid(width, rate)
        {
            return Self {
                extra: trial.extra,
                trial: None,
                next: now + REST,
            };
        }
        let may_try = has_waiting && rate > 0 && width < most;
        let trial = may_try.then_some(Trial {
            extra: self.extra,
            width,
            rate,
        });
        let step = if may_try { (width / 2).min(most - width) } else { 0 };
        Self {
            extra: self.extra + step,
            trial,
            next: now + PROBE,
        }
    }
}

impl Trial {
    /// Whether the rate has grown by at least half of what it would have grown if the uplink had been idle.
    fn has_paid(&self, width: usize, rate: u64) -> bool {
        let (before, after) = (self.width as u128, width as u128);
        u128::from(rate) * 2 * before >= u128::from(self.rate) * (before + after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn long_pieces_are_sent_to_few_peers_at_a_time() {
        for (rate, piece_length, expected) in [
            (0, MIB, 2),
            (MIB, MIB, 2),
            (LEECH_RATE, 512 << 10, 8),
            (LEECH_RATE, 256 << 10, 32),
            (MIB, 256 << 10, 16),
            (10 * MIB, MIB, 10),
            (64 * MIB, 16 * MIB, 4),
            (MIB, 16 * MIB, 2),
            (u64::MAX, 1, usize::MAX),
        ] {
            assert_eq!(width(rate, piece_length as u32), expected, "{rate} {piece_length}");
        }
        assert_eq!(width(MIB, 0), usize::MAX, "nothing is known of the pieces");
    }

    #[test]
    fn a_peer_in_the_middle_of_a_long_piece_has_more_time() {
        for (piece_length, millis) in [(16 << 10, 200), (64 << 10, 500), (128 << 10, 1000), (1 << 20, 2000)] {
            assert_eq!(patience(true, piece_length), Duration::from_millis(millis));
            assert_eq!(patience(false, piece_length), IDLE_AFTER);
        }
        assert_eq!(patience(true, u32::MAX), LONGEST_PATIENCE);
    }

    /// Runs the search for `seconds`, and returns the width at the end.
    fn search(seconds: u64, uplink: u64, downlink: u64, has_waiting: bool) -> usize {
        let mut probe = WidthProbe::default();
        let mut rate = 0;
        let mut used = 0;
        for second in 0..seconds {
            let least = width(rate, 16 << 20);
            probe = probe.advance(at(second), (least, 32), rate, has_waiting);
            used = least + probe.extra;
            rate = uplink.min(used as u64 * downlink);
        }
        used
    }

    #[test]
    fn peers_that_receive_slowly_are_served_together() {
        // 20 peers use the whole uplink. The step beyond them does not pay.
        let used = search(120, 10 * MIB, MIB / 2, true);
        assert!((13..=20).contains(&used), "{used}");
        assert_eq!(search(120, 100 * MIB, MIB / 2, true), 32, "no more than there may be");
        assert_eq!(search(120, 10 * MIB, MIB / 2, false), 2, "nobody waits");
    }

    #[test]
    fn a_busy_uplink_serves_no_more_peers_except_for_a_try_now_and_then() {
        let widths: Vec<usize> = (1..200).map(|seconds| search(seconds, MIB, 4 * MIB, true)).collect();
        assert!(widths.iter().all(|width| (2..=3).contains(width)));
        assert!(widths.iter().filter(|width| **width == 3).count() <= 20);
        assert_eq!(widths.last(), Some(&2));
    }

    #[test]
    fn nothing_is_tried_without_a_rate_to_compare() {
        let probe = WidthProbe::default().advance(at(9), (2, 32), 0, true);
        assert_eq!((probe.extra, probe.trial), (0, None));
        let whole = WidthProbe::default().advance(at(9), (usize::MAX, 32), 1, true);
        assert_eq!(whole.extra, 0);
    }
}
