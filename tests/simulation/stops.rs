//! Stops and pauses in trouble: what the next session says.

use ecs_torrent::components::commands::{
    PauseTorrent, RemoveOptions, RemoveTorrent, ResumeAll, StartTorrent, StopError, StopTorrent,
};
use ecs_torrent::components::session::Session;
use ecs_torrent::engine::sim::{DiskFault, Lasting, StateOperation};
use ecs_torrent::prelude::Lifecycle;

use super::fetching::Bed;
use super::*;

impl Bed {
    /// Adds the torrent with its metadata, and downloads it.
    fn download(&mut self) {
        let (leecher, content) = (self.leecher, self.content.clone());
        add(&mut self.sim, leecher, &content, vec![(ip(1), 6881).into()]);
        self.complete();
    }

    fn session(&self) -> Option<Session> {
        self.sim.state(self.leecher).session(self.content.info_hash())
    }

    fn until_saved(&mut self, what: &str, is_it: impl Fn(&Session) -> bool) {
        let (leecher, torrent) = (self.leecher, self.content.info_hash());
        self.until(what, |sim| {
            sim.state(leecher)
                .session(torrent)
                .is_some_and(|session| is_it(&session))
        });
    }

    pub fn pause(&mut self) {
        let torrent = self.content.info_hash();
        let paused = self.send(|reply| PauseTorrent { torrent, reply });
        assert_eq!(self.wait(&paused), Ok(()));
    }

    fn stop(&mut self) -> Result<(), StopError> {
        let torrent = self.content.info_hash();
        let stopped = self.send(|reply| StopTorrent { torrent, reply });
        self.wait(&stopped)
    }

    /// Kills the engine, and returns how many torrents the next one lists.
    fn restart(&mut self, include_stopped: bool) -> usize {
        self.sim.restart(self.leecher);
        let resumed = self.send(|reply| ResumeAll { include_stopped, reply });
        self.wait(&resumed).unwrap()
    }

    /// Asserts that a session claims the torrent's file, and that the next run deletes the file.
    fn assert_own(&mut self, earlier: &Session) {
        let session = self.session().unwrap();
        assert_eq!((&session.created, &session.ids), (&earlier.created, &earlier.ids));
        assert_eq!(self.restart(true), 1);
        let torrent = self.content.info_hash();
        let removed = self.send(|reply| RemoveTorrent {
            torrent,
            options: RemoveOptions { delete_data: true },
            reply,
        });
        let removed = self.wait(&removed).unwrap();
        assert_eq!((removed.deleted_count, removed.kept_count), (1, 0), "{removed:?}");
    }
}

/// A paused torrent whose stop is not saved stays listed, and its files stay its own.
#[test]
fn a_stop_that_cannot_be_saved_keeps_the_claims() {
    let mut bed = Bed::new(21);
    bed.download();
    bed.pause();
    let earlier = bed.session().unwrap();
    assert!(earlier.paused && !earlier.created.is_empty(), "{earlier:?}");
    bed.sim
        .state(bed.leecher)
        .fail(StateOperation::Save, DiskFault::Full, Lasting::Next(1));
    assert!(bed.stop().is_err());
    bed.until_saved("a session of the failed torrent", |session| !session.paused);
    bed.assert_own(&earlier);
}

/// The write of a stop's session ends after its deadline: the torrent stays listed, and its files stay its own.
#[test]
fn a_stop_whose_save_is_late_keeps_the_claims() {
    let mut bed = Bed::new(22);
    bed.download();
    bed.pause();
    let earlier = bed.session().unwrap();
    bed.sim.state(bed.leecher).set_latency(Duration::from_secs(3));
    assert!(bed.stop().is_err());
    bed.until_saved("the late session", |session| session.stopped);
    bed.until_saved("a session of the failed torrent", |session| !session.stopped);
    bed.sim.state(bed.leecher).set_latency(Duration::from_millis(1));
    bed.assert_own(&earlier);
}

/// A damaged session claims the files still, and so does the session of a pause during the check of these files.
#[test]
fn a_pause_after_a_damaged_session_keeps_the_claims() {
    let mut bed = Bed::new(23);
    bed.download();
    let earlier = bed.session().unwrap();
    let torrent = bed.content.info_hash();
    let text = bed.sim.state(bed.leecher).session_text(torrent).unwrap();
    bed.sim.restart(bed.leecher);
    let cut = text.slice(..text.len() - 20);
    bed.sim.state(bed.leecher).damage(torrent, cut);
    bed.sim.disk(bed.leecher).set_slowness(1000.0);
    assert_eq!(bed.restart(true), 1);
    bed.until_saved("a session that replaces the damaged one", |_| true);
    bed.pause();
    bed.until_saved("a paused session", |session| session.paused);
    bed.sim.disk(bed.leecher).set_slowness(1.0);
    bed.assert_own(&earlier);
}

/// A stop that has failed because the state folder could not be read does not stop the torrent that is added later.
#[test]
fn a_failed_stop_is_not_carried_out_later() {
    let mut bed = Bed::new(24);
    bed.download();
    bed.sim.restart(bed.leecher);
    let (leecher, content) = (bed.leecher, bed.content.clone());
    bed.sim
        .state(leecher)
        .fail(StateOperation::Load, DiskFault::Io, Lasting::Always);
    add(&mut bed.sim, leecher, &content, vec![]);
    bed.until("a torrent", |sim| stats(sim, leecher, &content).is_some());
    assert!(bed.stop().is_err());
    bed.sim.state(leecher).mend();
    add(&mut bed.sim, leecher, &content, vec![]);
    bed.wait_for_state(&Lifecycle::Seeding);
    bed.pause();
    let torrent = content.info_hash();
    let started = bed.send(|reply| StartTorrent { torrent, reply });
    assert_eq!(bed.wait(&started), Ok(()));
    assert_eq!(bed.restart(false), 1, "it is not stopped");
}

/// A pause and a stop at the same time: the torrent is paused when it is listed again.
#[test]
fn a_pause_outlasts_a_stop_of_the_same_tick() {
    let mut bed = Bed::new(25);
    bed.download();
    let torrent = bed.content.info_hash();
    let paused = bed.send(|reply| PauseTorrent { torrent, reply });
    assert_eq!(bed.stop(), Ok(()));
    assert_eq!(bed.wait(&paused), Ok(()));
    assert_eq!(bed.restart(true), 1);
    bed.wait_for_state(&Lifecycle::Paused);
}

/// A pause during the first check does not forget the metadata that has arrived.
#[test]
fn a_pause_keeps_metadata_that_came_after_the_session() {
    let mut bed = Bed::new(26);
    bed.add();
    assert_eq!(bed.restart(true), 1);
    let (leecher, content) = (bed.leecher, bed.content.clone());
    bed.wait_for_state(&Lifecycle::FetchingMetadata);
    bed.sim.put(leecher, "downloads", &content);
    bed.sim.disk(leecher).set_slowness(1000.0);
    bed.supply(bed.info()).unwrap();
    bed.until_saved("metadata", |session| !session.lacks_metadata);
    bed.pause();
    let session = bed.session().unwrap();
    assert!(session.paused && !session.lacks_metadata, "{session:?}");
    assert_eq!(session.pieces, content.piece_count());
    bed.sim.disk(leecher).set_slowness(1.0);
    assert_eq!(bed.restart(true), 1);
    bed.wait_for_state(&Lifecycle::Paused);
}
