//! What of a torrent is known to be on the platter, and what is known not to be.
//!
//! A system that fails to bring a file to the platter tells it once. After that it takes what was written for saved: it
//! can still be read, a later sync succeeds, and with the next power failure it is gone. So what was not on the platter
//! before such a failure is written again before it counts.

use ecs_torrent_components::session::{Runs, Session};
use ecs_torrent_protocol::bitfield::Bitfield;

/// Pieces by where they are, besides in the system's memory.
#[derive(Debug, Default)]
pub(super) struct Platter {
    /// Brought there since they were written last.
    durable: Bitfield,
    /// Written, and lost on the way there.
    lost: Bitfield,
}

impl Platter {
    /// As a session tells; what was lost in this run is not forgotten by that.
    pub(super) fn load(&mut self, session: Option<&Session>) {
        let set = |runs: &Runs, session: &Session| runs.to_set(session.pieces).unwrap_or_default();
        self.durable = session.map(|session| set(&session.have, session)).unwrap_or_default();
        let lost = session.map(|session| set(&session.lost, session)).unwrap_or_default();
        insert_all(&mut self.lost, lost.iter(), lost.len());
    }

    /// Pieces that have to be written again, though they can be read.
    pub(super) fn lost(&self) -> &Bitfield {
        &self.lost
    }

    /// What is not had is downloaded, and written, anew.
    pub(super) fn keep(&mut self, have: &Bitfield) {
        let gone: Vec<u32> = self.durable.iter_without(have).collect();
        for piece in gone {
            self.durable.remove(piece);
        }
    }

    /// A piece has been written again: the next sync brings it there.
    pub(super) fn note_written(&mut self, piece: u32) {
        self.lost.remove(piece);
    }

    /// A sync has brought these pieces there.
    pub(super) fn note_synced(&mut self, had: &Bitfield) {
        insert_all(&mut self.durable, had.iter(), had.len());
    }

    /// A sync has failed; `written` may have been on the way.
    pub(super) fn note_failed(&mut self, written: impl Iterator<Item = u32>, count: u32) {
        let lost = written.filter(|piece| !self.durable.contains(*piece));
        insert_all(&mut self.lost, lost, count);
    }

    /// Makes a session say what was there before the last sync.
    pub(super) fn confess(&self, session: &mut Session) {
        session.have = Runs::of(self.durable.iter());
        session.lost = Runs::of(self.lost.iter());
    }

    /// What a session may call had after the next sync.
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
    fn what_was_on_the_platter_before_stays() {
        let mut platter = Platter::default();
        platter.note_synced(&set(&[0, 1]));
        platter.note_failed([0, 1, 2, 3].into_iter(), 8);
        assert_eq!(platter.lost, set(&[2, 3]));
        platter.load(None);
        assert_eq!(
            (platter.durable.count(), &platter.lost),
            (0, &set(&[2, 3])),
            "it is not forgotten"
        );
        assert_eq!(platter.runs_of(&set(&[1, 2])), Runs::of([1]));
        platter.note_written(2);
        assert_eq!(platter.runs_of(&set(&[1, 2])), Runs::of([1, 2]));
        platter.note_synced(&set(&[2]));
        assert_eq!((&platter.durable, &platter.lost), (&set(&[2]), &set(&[3])));
        platter.keep(&set(&[1]));
        platter.note_failed([2].into_iter(), 8);
        assert_eq!(platter.lost, set(&[2, 3]), "downloaded anew");
    }
}
