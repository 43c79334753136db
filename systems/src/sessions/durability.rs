//! Durability of pieces: which pieces are known to be durable, and which are known to be lost.
//!
//! An operating system that fails to sync a file reports it once. After that it treats the written data as saved: the
//! data can still be read, a later sync succeeds, and the next power failure destroys it. So pieces that were not
//! durable before such a failure are written again before they count.

use ecs_torrent_components::session::{Runs, Session};
use ecs_torrent_protocol::bitfield::Bitfield;

/// Pieces by durability.
#[derive(Debug, Default)]
pub(super) struct Durability {
    /// Pieces synced since they were last written.
    durable: Bitfield,
    /// Pieces written, whose sync failed.
    lost: Bitfield,
}

impl Durability {
    /// Loads a session; pieces lost in this run stay lost.
    pub(super) fn load(&mut self, session: Option<&Session>) {
        let set = |runs: &Runs, session: &Session| runs.to_set(session.pieces).unwrap_or_default();
        self.durable = session.map(|session| set(&session.have, session)).unwrap_or_default();
        let lost = session.map(|session| set(&session.lost, session)).unwrap_or_default();
        insert_all(&mut self.lost, lost.iter(), lost.len());
    }

    /// Returns the pieces that must be written again, though they can be read.
    pub(super) fn lost(&self) -> &Bitfield {
        &self.lost
    }

    /// Drops pieces that are no longer held: they are downloaded and written again.
    pub(super) fn keep(&mut self, have: &Bitfield) {
        let gone: Vec<u32> = self.durable.iter_without(have).collect();
        for piece in gone {
            self.durable.remove(piece);
        }
    }

    /// Records that a piece was written again: the next sync makes it durable.
    pub(super) fn record_written(&mut self, piece: u32) {
        self.lost.remove(piece);
    }

    /// Records that a sync made these pieces durable.
    pub(super) fn record_synced(&mut self, had: &Bitfield) {
        insert_all(&mut self.durable, had.iter(), had.len());
    }

    /// Records a failed sync; pieces in `written` that are not durable count as lost.
    pub(super) fn record_failed(&mut self, written: impl Iterator<Item = u32>, count: u32) {
        let lost = written.filter(|piece| !self.durable.contains(*piece));
        insert_all(&mut self.lost, lost, count);
    }

    /// Reduces a session to the pieces that were durable before the last sync, and lists the lost ones.
    pub(super) fn record_lost_pieces(&self, session: &mut Session) {
        session.have = Runs::of(self.durable.iter());
        session.lost = Runs::of(self.lost.iter());
    }

    /// Returns the pieces that a session may list as held after the next sync.
    pub(super) fn runs_of(&self, have: &Bitfield) -> Runs {
        Runs::of(have.iter().filter(|piece| !self.lost.contains(*piece)))
    }
}

fn insert_all(set: &mut Bitfield, pieces: impl Iterator<Item = u32>, count: u32) {
    if set.len() != count && count > 0 {
        *set = Bitfield::new(count);
    }
    for piece in pieces {
        set.insert(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pieces: &[u32]) -> Bitfield {
        let mut set = Bitfield::new(8);
        insert_all(&mut set, pieces.iter().copied(), 8);
        set
    }

    #[test]
    fn durable_pieces_stay_durable() {
        let mut durability = Durability::default();
        durability.record_synced(&set(&[0, 1]));
        durability.record_failed([0, 1, 2, 3].into_iter(), 8);
        assert_eq!(durability.lost, set(&[2, 3]));
        durability.load(None);
        assert_eq!(
            (durability.durable.count(), &durability.lost),
            (0, &set(&[2, 3])),
            "it is not forgotten"
        );
        assert_eq!(durability.runs_of(&set(&[1, 2])), Runs::of([1]));
        durability.record_written(2);
        assert_eq!(durability.runs_of(&set(&[1, 2])), Runs::of([1, 2]));
        durability.record_synced(&set(&[2]));
        assert_eq!((&durability.durable, &durability.lost), (&set(&[2]), &set(&[3])));
        durability.keep(&set(&[1]));
        durability.record_failed([2].into_iter(), 8);
        assert_eq!(durability.lost, set(&[2, 3]), "downloaded again");
    }
}
