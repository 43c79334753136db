//! Stops and pauses during failures, and the contents of the next session.

use ecs_torrent::components::commands::{
    ListStopped, PauseOrStart, PauseTorrent, RemoveOptions, RemoveTorrent, ResumeAll, ResumeError, ResumeTorrent,
    ResumeTorrentError, StartTorrent, StartTorrentError, StopAll, StopError, StopTorrent,
};
use ecs_torrent::components::session::Session;
use ecs_torrent::components::torrent::StopPhase;
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
        let paused = self.send(|reply| PauseOrStart::from(PauseTorrent { torrent, reply }));
        assert_eq!(self.wait(&paused), Ok(()));
    }

    pub fn try_start(&mut self) -> Result<(), StartTorrentError> {
        let torrent = self.content.info_hash();
        let started = self.send(|reply| PauseOrStart::from(StartTorrent { torrent, reply }));
        self.wait(&started)
    }

    fn resume(&mut self) -> Result<(), ResumeTorrentError> {
        let torrent = self.content.info_hash();
        let resumed = self.send(|reply| ResumeTorrent { torrent, reply });
        self.wait(&resumed)
    }

    /// Damages the saved session, elsewhere than in the lines that can be recovered.
    fn damage(&mut self) {
        let torrent = self.content.info_hash();
        let state = self.sim.state(self.leecher);
        let text = String::from_utf8(state.session_text(torrent).unwrap().to_vec()).unwrap();
        state.damage(torrent, text.replace("    uploaded:", "    uploadex:"));
        assert!(state.session(torrent).is_none());
    }

    /// Waits until the torrent has failed for good.
    fn wait_for_failure(&mut self) {
        let leecher = self.leecher;
        self.until("a failure", |sim| {
            let world = sim.node(leecher).world_mut();
            let mut states = world.query::<&Lifecycle>();
            let has_failed = |state: &Lifecycle| matches!(state, Lifecycle::Failed { retry_at: None, .. });
            states.iter(world).any(has_failed)
        });
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
    bed.sim.state(bed.leecher).set_latency(Duration::from_secs(70));
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
    let started = bed.send(|reply| PauseOrStart::from(StartTorrent { torrent, reply }));
    assert_eq!(bed.wait(&started), Ok(()));
    assert_eq!(bed.restart(false), 1, "it is not stopped");
}

/// A pause and a stop at the same time: the torrent is paused when it is listed again.
#[test]
fn a_pause_outlasts_a_stop_of_the_same_tick() {
    let mut bed = Bed::new(25);
    bed.download();
    let torrent = bed.content.info_hash();
    let paused = bed.send(|reply| PauseOrStart::from(PauseTorrent { torrent, reply }));
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

/// A user's stop that joins the stop of all torrents while the files are being closed is durable when it is answered.
#[test]
fn a_stop_that_joins_in_the_last_phase_is_saved() {
    let mut bed = Bed::new(27);
    bed.download();
    let all = bed.send(|reply| StopAll {
        until_resumed: false,
        reply,
    });
    let phase = StopPhase::Release;
    bed.wait_for_state(&Lifecycle::Stopping { phase });
    assert!(!bed.session().unwrap().stopped);
    assert_eq!(bed.stop(), Ok(()));
    assert_eq!(bed.wait(&all), Ok(()));
    let session = bed.session().unwrap();
    assert!(session.stopped && !session.have.is_empty() && !session.files.is_empty());
    assert_eq!(bed.restart(false), 0, "it stays stopped");
    assert_eq!(bed.restart(true), 1);
    bed.wait_for_state(&Lifecycle::Seeding);
}

/// A damaged session still says that its torrent is paused, or stopped, over several runs.
#[test]
fn a_damaged_session_keeps_the_users_intent() {
    let mut bed = Bed::new(28);
    bed.download();
    bed.pause();
    let earlier = bed.session().unwrap();
    bed.damage();
    for _ in 0..2 {
        assert_eq!(bed.restart(false), 1);
        bed.wait_for_state(&Lifecycle::Paused);
    }
    let session = bed.session().unwrap();
    assert!(session.paused, "it is saved again");
    let place = |session: &Session| (session.resolved.clone(), session.volume.clone());
    assert_eq!(place(&session), place(&earlier), "the volume is still known");
    assert!(session.volume.is_some());
    assert_eq!(bed.try_start(), Ok(()));
    bed.wait_for_state(&Lifecycle::Seeding);

    assert_eq!(bed.stop(), Ok(()));
    bed.damage();
    for _ in 0..3 {
        assert_eq!(bed.restart(false), 0, "it stays stopped");
    }
    assert_eq!(bed.resume(), Ok(()));
    // As if it were killed right after the answer.
    assert_eq!(bed.restart(false), 1);
    bed.wait_for_state(&Lifecycle::Seeding);
}

/// Without metadata, the session alone knows the trackers: they survive damage elsewhere.
#[test]
fn a_damaged_session_without_metadata_keeps_the_trackers() {
    let mut bed = Bed::new(29);
    bed.add();
    bed.pause();
    bed.damage();
    assert_eq!(bed.restart(false), 1);
    bed.wait_for_state(&Lifecycle::Paused);
    let stats = bed.stats().unwrap();
    assert_eq!((&*stats.name, stats.trackers.len()), ("a name_of a link", 1));
    assert_eq!(bed.try_start(), Ok(()));
    bed.wait_for_state(&Lifecycle::FetchingMetadata);
}

/// A torrent whose resume cannot be saved stays stopped: it is listed as stopped with its name, and the caller gets the
/// error.
#[test]
fn a_resume_that_cannot_be_saved() {
    let mut bed = Bed::new(32);
    bed.download();
    assert_eq!(bed.stop(), Ok(()));
    let leecher = bed.leecher;
    bed.sim.restart(leecher);
    let fail_once = |bed: &mut Bed| {
        let state = bed.sim.state(leecher);
        state.fail(StateOperation::Save, DiskFault::Full, Lasting::Next(1));
    };
    fail_once(&mut bed);
    let resumed = bed.send(|reply| ResumeAll {
        include_stopped: true,
        reply,
    });
    let resumed = bed.wait(&resumed);
    assert!(matches!(resumed, Err(ResumeError::Unsaved(_))), "{resumed:?}");
    let listed = bed.send(|reply| ListStopped { reply });
    let listed = bed.wait(&listed).unwrap();
    let name = bed.content.metainfo().info.name.clone();
    assert_eq!((listed.len(), listed[0].name.as_deref()), (1, Some(&*name)));
    fail_once(&mut bed);
    let resumed = bed.resume();
    let error = resumed.unwrap_err();
    assert!(matches!(error, ResumeTorrentError::Unsaved(_)), "{error}");
    assert!(
        error.to_string().starts_with(&format!("{name} stays stopped: ")),
        "{error}"
    );
    assert_eq!(bed.resume(), Ok(()));
    bed.wait_for_state(&Lifecycle::Seeding);
}

/// A start that waits while a stop takes the torrent is answered that the torrent is still there.
#[test]
fn a_start_that_waits_for_a_failed_stop() {
    let mut bed = Bed::new(33);
    bed.download();
    bed.pause();
    bed.sim.state(bed.leecher).set_latency(Duration::from_secs(70));
    let torrent = bed.content.info_hash();
    let started = bed.send(|reply| PauseOrStart::from(StartTorrent { torrent, reply }));
    assert!(bed.stop().is_err());
    let started = bed.wait(&started);
    assert!(matches!(started, Err(StartTorrentError::Unsaved(_))), "{started:?}");
    bed.sim.state(bed.leecher).set_latency(Duration::from_millis(1));
    assert_eq!(bed.try_start(), Ok(()), "it is tried again");
    bed.wait_for_state(&Lifecycle::Seeding);
}

/// A start tries a failed torrent again, however often it has failed, and a blocked one before its time.
#[test]
fn a_start_tries_again() {
    let mut bed = Bed::new(30);
    let (leecher, content) = (bed.leecher, bed.content.clone());
    bed.sim.disk(leecher).set_mounted(false);
    let added = bed.send(|reply| AddTorrent {
        source: content.metainfo().clone().into(),
        options: AddOptions {
            root: Some("downloads".into()),
            require_complete: true,
            ..AddOptions::default()
        },
        is_resumed: false,
        reply,
    });
    bed.until("a blocked torrent", |sim| {
        let world = sim.node(leecher).world_mut();
        let mut states = world.query::<&Lifecycle>();
        states
            .iter(world)
            .any(|state| matches!(state, Lifecycle::Blocked { .. }))
    });
    bed.sim.disk(leecher).set_mounted(true);
    let begin = bed.sim.now();
    assert_eq!(bed.try_start(), Ok(()));
    bed.wait_for_failure();
    assert!(bed.sim.now().since(begin) < Duration::from_secs(1), "at once");
    bed.wait(&added).unwrap();

    bed.sim.put(leecher, "downloads", &content);
    assert_eq!(bed.try_start(), Ok(()));
    bed.wait_for_state(&Lifecycle::Seeding);
}

/// A pause and a start that arrive together take effect in their order, at any moment of an add.
#[test]
fn a_start_does_not_overtake_a_pause() {
    for ticks in 0..24 {
        let mut bed = Bed::new(31);
        let torrent = bed.content.info_hash();
        let (sim, leecher, content) = (&mut bed.sim, bed.leecher, bed.content.clone());
        add(sim, leecher, &content, vec![(ip(1), 6881).into()]);
        let (limit, mut past) = (sim.now() + Duration::from_secs(60), 0);
        sim.run_until(limit, |_| {
            past += 1;
            past > ticks
        });
        let paused = bed.send(|reply| PauseOrStart::from(PauseTorrent { torrent, reply }));
        let started = bed.send(|reply| PauseOrStart::from(StartTorrent { torrent, reply }));
        assert_eq!(bed.wait(&paused), Ok(()), "after {ticks} ticks");
        assert_eq!(bed.wait(&started), Ok(()), "after {ticks} ticks");
        bed.complete();
        assert!(!bed.session().unwrap().paused);
    }
}
