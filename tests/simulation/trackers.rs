//! Trackers that the user edits, and announces on request.

use ecs_torrent::components::commands::{
    AnnounceError, AnnounceTorrent, EditTrackers, EditTrackersError, PauseOrStart, PauseTorrent,
};
use ecs_torrent::engine::sim::{Crash, DiskFault, Lasting, SimTracker, StateOperation};
use ecs_torrent::protocol::tracker::AnnounceEvent;
use ecs_torrent::{InfoHash, TorrentState};

use super::fetching::Bed;
use super::joining::plain;
use super::*;

const MINUTE: Duration = Duration::from_secs(60);

/// A complete torrent with two trackers of its own, and a further tracker that it does not have.
struct Edited {
    bed: Bed,
    trackers: [SimTracker; 3],
    file: Content,
}

impl Edited {
    fn new(seed: u64) -> Self {
        let mut bed = Bed::new(seed);
        let options = TrackerOptions {
            interval: MINUTE * 10,
            min_interval: Some(MINUTE * 2),
            ..TrackerOptions::default()
        };
        let trackers = [7, 8, 9].map(|host| bed.sim.add_tracker((ip(host), 80).into(), options.clone()));
        let urls = trackers.each_ref().map(SimTracker::http_url);
        let file = torrent_with_trackers(600_001, 32768, &[&urls[0], &urls[1]]);
        let mut edited = Self { bed, trackers, file };
        let options = AddOptions {
            peers: vec![(ip(1), 6881).into()],
            ..plain()
        };
        edited.bed.add_file(&edited.file, options).unwrap();
        edited.bed.until_complete("downloads");
        edited.until_announced(0, &[AnnounceEvent::Started, AnnounceEvent::Completed]);
        edited
    }

    fn url(&self, tracker: usize) -> String {
        self.trackers[tracker].http_url()
    }

    /// Waits until a tracker has got exactly these events.
    fn until_announced(&mut self, tracker: usize, events: &[AnnounceEvent]) {
        let tracker = self.trackers[tracker].clone();
        let announced_events = || {
            tracker
                .announces()
                .iter()
                .map(|announced| announced.event)
                .collect::<Vec<_>>()
        };
        self.bed
            .until("an announce", |_| announced_events().len() >= events.len());
        assert_eq!(announced_events(), events);
    }

    fn edit(&mut self, remove: &[&str], add: &[&str]) -> Result<(), EditTrackersError> {
        let torrent = self.file.info_hash();
        let urls = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>();
        let (remove, add) = (urls(remove), vec![urls(add)]);
        let answer = self.bed.send(|reply| EditTrackers {
            torrent,
            remove,
            add,
            reply,
        });
        self.bed.wait(&answer)
    }

    fn announce(&mut self) -> Result<Duration, AnnounceError> {
        let torrent = self.file.info_hash();
        let answer = self.bed.send(|reply| AnnounceTorrent { torrent, reply });
        self.bed.wait(&answer)
    }
}

const ONLY: [&str; 3] = [
    "http://10.0.0.7/announce",
    "http://10.0.0.8/announce",
    "http://10.0.0.9/announce",
];

/// A tracker that is removed gets `stopped`, one that is added gets `started` at once, and a kill loses no edit.
#[test]
fn edits_are_in_force_at_once_and_survive_a_kill() {
    for crash in [Crash::Process, Crash::Power] {
        let mut edited = Edited::new(41);
        let [old, spare, new] = [0, 1, 2].map(|tracker| edited.url(tracker));
        assert_eq!(edited.edit(&[&old], &[&new, &spare]), Ok(()));
        assert_eq!(edited.bed.trackers(), ONLY[1..]);
        edited.until_announced(
            0,
            &[AnnounceEvent::Started, AnnounceEvent::Completed, AnnounceEvent::Stopped],
        );
        // It was there when the download completed.
        edited.until_announced(1, &[AnnounceEvent::Started, AnnounceEvent::Completed]);
        // As they are listed.
        assert_eq!(edited.edit(&[ONLY[1]], &[]), Ok(()));
        edited.until_announced(
            1,
            &[AnnounceEvent::Started, AnnounceEvent::Completed, AnnounceEvent::Stopped],
        );
        edited.until_announced(2, &[AnnounceEvent::Started]);
        edited.bed.crash(crash);
        edited.bed.until_state(TorrentState::Seeding);
        assert_eq!(edited.bed.trackers(), ONLY[2..]);
        edited.until_announced(2, &[AnnounceEvent::Started; 2]);
        assert_eq!(edited.edit(&[&new], &[]), Ok(()));
        assert_eq!(edited.bed.trackers(), [""; 0]);
        edited.bed.crash(crash);
        edited.bed.until_state(TorrentState::Seeding);
        assert_eq!(edited.bed.trackers(), [""; 0]);
        assert_eq!(edited.trackers[0].announces().len(), 3, "nothing more");
        assert!(matches!(edited.announce(), Err(AnnounceError::NoTracker(_))));
    }
}

#[test]
fn an_edit_that_cannot_be_saved_is_undone() {
    let mut edited = Edited::new(42);
    let (old, new) = (edited.url(0), edited.url(2));
    let state = edited.bed.sim.state(edited.bed.leecher);
    state.fail(StateOperation::Save, DiskFault::Full, Lasting::Next(1));
    let result = edited.edit(&[&old], &[&new]);
    assert!(matches!(result, Err(EditTrackersError::Unsaved(_))), "{result:?}");
    assert_eq!(edited.bed.trackers(), ONLY[..2]);
    assert_eq!(edited.edit(&[&old], &[&new]), Ok(()));
    assert_eq!(edited.bed.trackers(), ONLY[1..]);
}

#[test]
fn invalid_edits_change_nothing() {
    let mut edited = Edited::new(43);
    let old = edited.url(0);
    let message = |result: Result<(), EditTrackersError>| result.unwrap_err().to_string();
    let refusals = [
        (
            edited.edit(&["http://10.0.0.6/key"], &[]),
            "has no tracker http://10.0.0.6",
        ),
        (edited.edit(&[&old, &old], &[]), "has no tracker http://10.0.0.7"),
        (
            edited.edit(&[&old], &["gopher://10.0.0.9/key"]),
            "gopher://10.0.0.9: its scheme is gopher",
        ),
        (edited.edit(&[&old], &["udp://10.0.0.9/key"]), "it names no port"),
        (edited.edit(&[], &["x"]), "not a URL"),
    ];
    for (result, expected) in refusals {
        let message = message(result);
        assert!(message.contains(expected) && !message.contains("key"), "{message}");
    }
    let many: Vec<String> = (0..300).map(|number| format!("http://10.0.0.9/{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(message(edited.edit(&[], &many)).contains("256 trackers at most"));
    assert_eq!(edited.bed.trackers(), ONLY[..2]);
    edited.file = Content::clone(&torrent(5, 32768));
    let unknown = edited.edit(&[], &["http://10.0.0.9/"]);
    assert!(matches!(unknown, Err(EditTrackersError::NotFound(_))));
    assert!(matches!(edited.announce(), Err(AnnounceError::NotFound(_))));
}

/// BEP 27.
#[test]
fn the_trackers_of_a_private_torrent_are_not_edited() {
    let mut edited = Edited::new(44);
    let url = edited.url(0);
    edited.file = NewContent {
        seed: 5,
        is_private: true,
        trackers: vec![vec![url.clone()]],
        ..NewContent::default()
    }
    .make();
    let options = AddOptions {
        root: Some("other".into()),
        ..plain()
    };
    let added: Result<InfoHash, _> = edited.bed.add_file(&edited.file, options);
    assert!(added.is_ok());
    for (remove, add) in [(&[&*url][..], &[][..]), (&[], &["http://10.0.0.9/"])] {
        let result = edited.edit(remove, add);
        assert!(matches!(result, Err(EditTrackersError::Private(_))), "{result:?}");
    }
}

/// BEP 3: no earlier than the tracker's shortest interval.
#[test]
fn an_announce_on_request_comes_as_early_as_the_tracker_allows() {
    let mut edited = Edited::new(45);
    let announced_events = |edited: &Edited| edited.trackers[0].announces().len();
    let wait = edited.announce().unwrap();
    assert!(wait > MINUTE && wait <= MINUTE * 2, "{wait:?}");
    let again = edited.announce().unwrap();
    assert!(
        wait.saturating_sub(again) < Duration::from_secs(1),
        "{wait:?}, then {again:?}"
    );
    edited.bed.sim.run_for(wait - Duration::from_secs(1));
    assert_eq!(announced_events(&edited), 2);
    edited.bed.sim.run_for(Duration::from_secs(2));
    assert_eq!(announced_events(&edited), 3);
    edited.bed.sim.run_for(MINUTE * 3);
    assert_eq!((edited.announce(), announced_events(&edited)), (Ok(Duration::ZERO), 3));
    edited.bed.sim.run_for(Duration::from_secs(2));
    assert_eq!(announced_events(&edited), 4);
    let torrent = edited.file.info_hash();
    let paused = edited
        .bed
        .send(|reply| PauseOrStart::from(PauseTorrent { torrent, reply }));
    assert_eq!(edited.bed.wait(&paused), Ok(()));
    edited.bed.until_state(TorrentState::Paused);
    assert!(matches!(edited.announce(), Err(AnnounceError::NotRunning(_))));
}
