//! Adds of torrents that are listed already, and metadata that comes while a torrent is paused.

use std::sync::mpsc::Receiver;

use ecs_torrent::components::commands::{
    ResumeAll, ResumeTorrent, StopTorrent, SupplyError, SupplyMetadata, TorrentSource, UnfetchedTorrent,
};
use ecs_torrent::components::hints::LinkHints;
use ecs_torrent::engine::sim::{Crash, DiskFault, Lasting, StateOperation};
use ecs_torrent::prelude::Lifecycle;
use ecs_torrent::{AddError, InfoHash, TorrentState};

use super::fetching::{Bed, TRACKER, WEB_SEED};
use super::*;

type Added = Receiver<Result<InfoHash, AddError>>;

/// Options without anything but the download folder, as the daemon sends them.
pub(super) fn plain() -> AddOptions {
    AddOptions {
        root: Some("downloads".into()),
        ..AddOptions::default()
    }
}

impl Bed {
    fn add_source(&mut self, source: TorrentSource, options: AddOptions) -> Added {
        self.send(|reply| AddTorrent {
            source,
            options,
            is_resumed: false,
            reply,
        })
    }

    /// Adds a torrent with its metadata.
    pub(super) fn add_file(&mut self, content: &Content, options: AddOptions) -> Result<InfoHash, AddError> {
        let added = self.add_source(content.metainfo().clone().into(), options);
        self.wait(&added)
    }

    /// Adds the torrent by its hash, with another tracker.
    fn add_link(&mut self, tracker: &str) -> Result<InfoHash, AddError> {
        self.add_link_with(tracker, LinkHints::default())
    }

    fn add_link_with(&mut self, tracker: &str, hints: LinkHints) -> Result<InfoHash, AddError> {
        let source = TorrentSource::InfoHash(UnfetchedTorrent {
            info_hash: self.content.info_hash(),
            name: None,
            trackers: vec![vec![tracker.to_owned()]],
            peers: Vec::new(),
            hints,
        });
        let added = self.add_source(source, plain());
        self.wait(&added)
    }

    pub(super) fn start(&mut self) {
        assert_eq!(self.try_start(), Ok(()));
    }

    /// Loses everything that is not durable, and lists the saved torrents again.
    pub(super) fn crash(&mut self, crash: Crash) {
        self.sim.crash(self.leecher, crash);
        self.sim.restart(self.leecher);
        let resumed = self.send(|reply| ResumeAll {
            include_stopped: true,
            reply,
        });
        assert!(self.wait(&resumed).is_ok());
    }

    fn lacks_saved_metadata(&self) -> bool {
        let session = self.sim.state(self.leecher).session(self.content.info_hash());
        session.is_none_or(|session| session.lacks_metadata)
    }

    pub(super) fn until_state(&mut self, expected: TorrentState) {
        let (leecher, content) = (self.leecher, self.content.clone());
        self.until("a state", |sim| {
            stats(sim, leecher, &content).is_some_and(|stats| stats.state == expected)
        });
    }

    /// Waits for the data in a folder.
    pub(super) fn until_complete(&mut self, root: &str) {
        let (leecher, content) = (self.leecher, self.content.clone());
        self.until("a download", |sim| sim.has(leecher, root, &content));
        self.until_state(TorrentState::Seeding);
    }

    pub(super) fn trackers(&mut self) -> Vec<String> {
        let stats = self.stats().unwrap();
        stats.trackers.iter().map(|tracker| tracker.url.clone()).collect()
    }
}

#[test]
fn an_add_that_brings_the_metadata_is_answered_when_it_is_durable() {
    for (is_paused, crash) in [(false, Crash::Process), (true, Crash::Power)] {
        let mut bed = Bed::new(21);
        bed.add();
        if is_paused {
            bed.pause();
        }
        let (content, hash) = (bed.content.clone(), bed.content.info_hash());
        assert_eq!(bed.add_file(&content, plain()), Ok(hash));
        assert!(!bed.lacks_saved_metadata());
        bed.crash(crash);
        if is_paused {
            bed.wait_for_state(&Lifecycle::Paused);
            assert_eq!(bed.stats().unwrap().size, Some(600_001));
            bed.start();
        }
        bed.complete();
    }
}

/// The caller learns that the metadata is not saved. The torrent stays, and is saved later.
#[test]
fn an_add_whose_metadata_cannot_be_saved_fails() {
    for is_paused in [false, true] {
        let mut bed = Bed::new(22);
        bed.add();
        if is_paused {
            bed.pause();
        }
        let content = bed.content.clone();
        let state = bed.sim.state(bed.leecher);
        state.fail(StateOperation::Save, DiskFault::Full, Lasting::Next(1));
        let added = bed.add_file(&content, plain());
        assert!(matches!(added, Err(AddError::Unsaved { .. })), "{added:?}");
        assert!(bed.stats().is_some());
        assert_eq!(bed.add_file(&content, plain()), Ok(content.info_hash()));
        assert!(!bed.lacks_saved_metadata());
    }
}

#[test]
fn an_add_of_a_torrent_whose_files_are_taken_fails_and_another_one_chooses_a_folder() {
    let mut bed = Bed::new(23);
    let other = NewContent {
        seed: 9,
        len: 300_000,
        ..NewContent::default()
    }
    .make();
    bed.add();
    assert!(bed.add_file(&other, plain()).is_ok());
    let content = bed.content.clone();
    let refused = bed.add_file(&content, plain());
    assert!(matches!(refused, Err(AddError::FilesTaken { .. })), "{refused:?}");
    bed.until_state(TorrentState::Failed);
    let into = AddOptions {
        into: Some("new".into()),
        ..plain()
    };
    assert_eq!(bed.add_file(&content, into), Ok(content.info_hash()));
    bed.until_complete("downloads/new");
}

/// The options of an add apply as long as the files are not known.
#[test]
fn an_add_that_brings_the_metadata_chooses_the_place() {
    for is_paused in [false, true] {
        let mut bed = Bed::new(24);
        bed.add();
        if is_paused {
            bed.pause();
        }
        let into = AddOptions {
            into: Some("new".into()),
            ..plain()
        };
        let content = bed.content.clone();
        assert_eq!(bed.add_file(&content, into), Ok(content.info_hash()));
        if is_paused {
            bed.crash(Crash::Power);
            bed.start();
        }
        bed.until_complete("downloads/new");
    }
}

/// A file of the user is changed only with the permission of an add, which outlasts a kill.
#[test]
fn an_add_that_brings_the_metadata_permits_changes() {
    for is_paused in [false, true] {
        let mut bed = Bed::new(25);
        let (leecher, content) = (bed.leecher, bed.content.clone());
        bed.sim.put(leecher, "downloads", &content);
        bed.sim.disk(leecher).truncate("downloads/content", 1000);
        bed.add();
        let overwrite = AddOptions {
            overwrite: true,
            ..plain()
        };
        if is_paused {
            bed.pause();
            assert_eq!(bed.add_file(&content, overwrite), Ok(content.info_hash()));
            bed.crash(Crash::Power);
            bed.start();
        } else {
            let refused = bed.add_file(&content, plain());
            assert!(matches!(refused, Err(AddError::WouldChange { .. })), "{refused:?}");
            assert_eq!(bed.add_file(&content, overwrite), Ok(content.info_hash()));
        }
        bed.until_complete("downloads");
    }
}

/// Metadata that is supplied while the torrent is paused is saved at once. Whether the torrent may have its files is
/// decided when it starts.
#[test]
fn a_paused_torrent_takes_its_metadata_and_its_files_are_examined_when_it_starts() {
    for is_killed in [false, true] {
        let mut bed = Bed::new(26);
        bed.add();
        bed.pause();
        let hash = bed.content.info_hash();
        assert_eq!(bed.supply(bed.info()), Ok(()));
        assert_eq!(bed.supply(bed.info()), Err(SupplyError::NotNeeded(hash)));
        bed.wait_for_state(&Lifecycle::Paused);
        let world = bed.sim.node(bed.leecher).world_mut();
        assert!(world.resource::<CommandQueue<SupplyMetadata>>().0.is_empty());
        let limit = bed.sim.now() + Duration::from_secs(5);
        bed.sim.run_until(limit, |_| false);
        assert!(!bed.lacks_saved_metadata());
        if is_killed {
            bed.crash(Crash::Power);
            bed.wait_for_state(&Lifecycle::Paused);
        }
        let other = NewContent {
            seed: 9,
            len: 300_000,
            ..NewContent::default()
        }
        .make();
        assert!(
            bed.add_file(&other, plain()).is_ok(),
            "nothing has been promised to the paused torrent"
        );
        bed.start();
        bed.until_state(TorrentState::Failed);
        let content = bed.content.clone();
        let into = AddOptions {
            into: Some("new".into()),
            ..plain()
        };
        assert_eq!(bed.add_file(&content, into), Ok(hash));
        bed.until_complete("downloads/new");
    }
}

/// A stop does not wait for the disk's answer about the files: they are examined when the torrent is resumed.
#[test]
fn a_torrent_that_is_stopped_before_its_files_are_found_has_no_claim_to_them() {
    let other = NewContent {
        seed: 9,
        len: 300_000,
        ..NewContent::default()
    }
    .make();
    for ticks in 0..8 {
        let mut bed = Bed::new(30);
        let torrent = bed.content.info_hash();
        bed.add();
        assert!(bed.add_file(&other, plain()).is_ok());
        bed.supply(bed.info()).unwrap();
        let (limit, mut past) = (bed.sim.now() + Duration::from_secs(1), 0);
        bed.sim.run_until(limit, |_| {
            past += 1;
            past > ticks
        });
        let stopped = bed.send(|reply| StopTorrent { torrent, reply });
        assert_eq!(bed.wait(&stopped), Ok(()), "after {ticks} steps");
        let resumed = bed.send(|reply| ResumeTorrent { torrent, reply });
        assert_eq!(bed.wait(&resumed), Ok(()), "after {ticks} steps");
        bed.until_state(TorrentState::Failed);
    }
}

/// Each add brings its trackers, whether the metadata is known or not, and a kill loses none of them.
#[test]
fn later_adds_bring_their_trackers() {
    let mut bed = Bed::new(27);
    let (leecher, hash) = (bed.leecher, bed.content.info_hash());
    let tracker = bed.sim.add_tracker((ip(8), 80).into(), TrackerOptions::default());
    let (of_file, of_link) = ("http://10.0.0.7:80/announce", tracker.http_url());
    bed.add();
    let file = torrent_with_trackers(600_001, 32768, &[TRACKER, of_file]);
    assert_eq!(bed.add_file(&file, plain()), Ok(hash));
    bed.until_complete("downloads");
    let hosts = [
        "http://10.0.0.9/announce",
        "http://10.0.0.7/announce",
        "http://10.0.0.8/announce",
    ];
    assert_eq!(bed.trackers(), hosts[..2]);
    assert_eq!(tracker.announces().len(), 0);
    assert_eq!(bed.add_link(&of_link), Ok(hash));
    assert_eq!(bed.trackers(), hosts);
    assert_eq!(bed.add_link(&of_link), Ok(hash));
    assert_eq!(bed.trackers(), hosts, "each once");
    // The others do not answer.
    bed.until("an announce", |_| !tracker.announces().is_empty());
    bed.crash(Crash::Power);
    bed.until_state(TorrentState::Seeding);
    assert_eq!(bed.trackers(), hosts);
    assert!(bed.sim.has(leecher, "downloads", &file));
}

/// BEP 27: only the trackers of its own metainfo see the peers of a private torrent.
#[test]
fn a_private_torrent_keeps_its_own_trackers() {
    let mut bed = Bed::new(28);
    bed.content = NewContent {
        is_private: true,
        trackers: vec![vec![TRACKER.to_owned()]],
        ..NewContent::default()
    }
    .make();
    let (content, hash) = (bed.content.clone(), bed.content.info_hash());
    assert_eq!(bed.add_file(&content, plain()), Ok(hash));
    assert_eq!(bed.add_link("http://10.0.0.8:80/announce"), Ok(hash));
    assert_eq!(bed.trackers(), ["http://10.0.0.9/announce"]);
}

/// A session that needs no change answers an add too.
#[test]
fn a_torrent_without_metadata_that_is_saved_already_is_added_by_its_hash() {
    let mut bed = Bed::new(29);
    bed.add();
    let leecher = bed.leecher;
    bed.sim.crash(leecher, Crash::Power);
    bed.sim.restart(leecher);
    bed.add();
    bed.supply(bed.info()).unwrap();
    bed.complete();
}

/// Another link of a torrent without metadata brings its web seeds. They are durable when the add is answered.
#[test]
fn another_link_brings_web_seeds() {
    let mut bed = Bed::new(33);
    let (leecher, hash) = (bed.leecher, bed.content.info_hash());
    bed.add();
    let hints = LinkHints {
        web_seeds: vec![WEB_SEED.to_owned(), "http://10.0.0.7/".to_owned()],
        ..LinkHints::default()
    };
    for _ in 0..2 {
        assert_eq!(bed.add_link_with(TRACKER, hints.clone()), Ok(hash));
    }
    bed.sim.crash(leecher, Crash::Power);
    let session = bed.sim.state(leecher).session(hash).unwrap();
    assert_eq!(session.hints, hints, "each one once");
    bed.sim.restart(leecher);
    bed.add();
    bed.supply(bed.info()).unwrap();
    bed.complete();
    let world = bed.sim.node(leecher).world_mut();
    let mut contents = world.query::<&ecs_torrent::components::torrent::Content>();
    assert_eq!(contents.single(world).unwrap().0.web_seeds, hints.web_seeds);
}
