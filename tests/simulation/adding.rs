//! Options of adds: paused torrents, labels of torrents that are listed, places in the queue.

use ecs_torrent::components::commands::{TorrentSource, UnfetchedTorrent};
use ecs_torrent::components::hints::LinkHints;
use ecs_torrent::components::peer::Peer;
use ecs_torrent::engine::sim::{Crash, SimTracker};
use ecs_torrent::{Labels, TorrentState};

use super::fetching::Bed;
use super::joining::plain;
use super::*;

/// An engine to which a torrent is added as paused: its metadata is known, or only its hash.
struct Paused {
    bed: Bed,
    tracker: SimTracker,
}

impl Paused {
    fn new(seed: u64, has_metadata: bool) -> Self {
        let mut bed = Bed::new(seed);
        let tracker = bed.sim.add_tracker((ip(9), 80).into(), TrackerOptions::default());
        let metainfo = bed.content.metainfo().clone();
        let source: TorrentSource = match has_metadata {
            true => metainfo.into(),
            false => TorrentSource::InfoHash(UnfetchedTorrent {
                info_hash: bed.content.info_hash(),
                name: None,
                trackers: vec![vec![tracker.http_url()]],
                peers: vec![(ip(1), 6881).into()],
                hints: LinkHints::default(),
            }),
        };
        let options = AddOptions {
            peers: vec![(ip(1), 6881).into()],
            paused: true,
            ..plain()
        };
        let added = bed.send(|reply| AddTorrent {
            source,
            options,
            is_resumed: false,
            reply,
        });
        let mut paused = Self { bed, tracker };
        let mut answer = None;
        paused.watch(|_| {
            answer = added.try_recv().ok();
            answer.is_some()
        });
        assert_eq!(answer, Some(Ok(paused.bed.content.info_hash())));
        paused
    }

    /// Runs until `is_done`, for a minute at most, while the engine must contact nobody.
    fn watch(&mut self, mut is_done: impl FnMut(&mut Simulation) -> bool) {
        let (leecher, tracker) = (self.bed.leecher, self.tracker.clone());
        let limit = self.bed.sim.now() + Duration::from_secs(60);
        self.bed.sim.run_until(limit, |sim| {
            let world = sim.node(leecher).world_mut();
            assert_eq!(world.query::<&Peer>().iter(world).count(), 0, "a connection");
            assert!(tracker.announces().is_empty(), "an announce");
            is_done(sim)
        });
    }
}

/// A torrent that is added as paused contacts nobody before it is started, also after a crash right after the answer.
#[test]
fn a_torrent_that_is_added_as_paused_contacts_nobody() {
    for has_metadata in [true, false] {
        for crash in [None, Some(Crash::Process), Some(Crash::Power)] {
            let mut paused = Paused::new(31, has_metadata);
            if let Some(crash) = crash {
                paused.bed.crash(crash);
            }
            paused.watch(|_| false);
            let stats = paused.bed.stats().unwrap();
            assert_eq!(stats.state, TorrentState::Paused, "{has_metadata} {crash:?}");
            let leecher = paused.bed.leecher;
            let content = paused.bed.content.clone();
            assert!(!paused.bed.sim.has(leecher, "downloads", &content));
            paused.bed.start();
            if has_metadata {
                paused.bed.until_complete("downloads");
            } else {
                paused.bed.until_state(TorrentState::FetchingMetadata);
                let tracker = paused.tracker.clone();
                paused.bed.until("an announce", |_| !tracker.announces().is_empty());
            }
        }
    }
}

/// A torrent that is listed gets the labels of another add in addition to its own, and the category; both are durable.
/// Labels that it cannot have are refused, and change nothing.
#[test]
fn a_listed_torrent_gets_the_labels_of_another_add() {
    let mut bed = Bed::new(32);
    let labels = |of: &[&str], category: Option<&str>| Labels {
        labels: of.iter().map(|label| (*label).to_owned()).collect(),
        category: category.map(str::to_owned),
    };
    let with = |labels: Labels| AddOptions { labels, ..plain() };
    let (content, hash) = (bed.content.clone(), bed.content.info_hash());
    assert_eq!(bed.add_file(&content, with(labels(&["a"], Some("x")))), Ok(hash));
    assert_eq!(bed.add_file(&content, with(labels(&["b"], None))), Ok(hash));
    let expect = |bed: &mut Bed, of: &[&str], category: &str| {
        let stats = bed.stats().unwrap();
        assert_eq!(
            (stats.labels, stats.category.as_deref()),
            (of.iter().map(|label| (*label).to_owned()).collect(), Some(category))
        );
    };
    expect(&mut bed, &["a", "b"], "x");
    assert_eq!(bed.add_file(&content, with(labels(&["c"], Some("y")))), Ok(hash));
    bed.crash(Crash::Power);
    expect(&mut bed, &["a", "b", "c"], "y");
    let many: Vec<String> = (0..31).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let refused = bed.add_file(&content, with(labels(&many, Some("z")))).unwrap_err();
    assert!(refused.to_string().contains("labels.max_per_torrent"), "{refused}");
    expect(&mut bed, &["a", "b", "c"], "y");
}
