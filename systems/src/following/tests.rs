//! Links, whose searches, stores and torrents the tests carry out by hand.

use bytes::Bytes;
use ecs_torrent_components::commands::AddOptions;
use ecs_torrent_components::links::{FollowedLink, LinkKind};
use ecs_torrent_components::torrent::StopPhase;
use ecs_torrent_engine::ports::state::StateEvent;
use ecs_torrent_protocol::dht::items::public_key;
use ecs_torrent_protocol::hash::InfoHashes;

use super::*;
use crate::testing::{Bed, NOW, torrent};

const SECRET: [u8; 32] = [7; 32];

/// A publisher, and an engine that follows its links.
struct Follower {
    bed: Bed,
    now: Timestamp,
    /// The saved links.
    saved: Option<Bytes>,
    /// The state folder's answers, delivered in the next tick.
    events: Vec<StateEvent>,
}

fn link(salt: &str) -> MutableLink {
    MutableLink {
        key: public_key(&SECRET),
        salt: salt.as_bytes().to_vec(),
    }
}

fn item(seq: i64, torrent: u8) -> Item {
    Item::sign(&SECRET, b"", seq, &MutableLink::value_of(hash(torrent))).expect("short")
}

fn hash(torrent: u8) -> InfoHash {
    InfoHash([torrent; 20])
}

/// An answer that a caller gets.
type Answered<T> = Arc<Mutex<Option<T>>>;

fn reply<T: Send + 'static>() -> (Reply<T>, Answered<T>) {
    let answered = Answered::default();
    let answer = answered.clone();
    (
        Reply::new(move |value| *answer.lock().expect("no panic") = Some(value)),
        answered,
    )
}

fn taken<T>(answered: &Answered<T>) -> Option<T> {
    answered.lock().expect("no panic").take()
}

impl Follower {
    fn new(saved: Option<Bytes>) -> Self {
        let mut bed = Bed::new(FollowingPlugin);
        let world = &mut bed.world;
        world.init_resource::<Messages<LifecycleChanged>>();
        world.init_resource::<CommandQueue<GetDhtItem>>();
        world.init_resource::<CommandQueue<PutDhtItem>>();
        world.init_resource::<CommandQueue<AddTorrent>>();
        world.init_resource::<CommandQueue<PauseOrStart>>();
        world.init_resource::<TorrentIndex>();
        bed.open_port::<StateRequest, StateEvent>(Vec::new());
        let mut this = Self {
            bed,
            now: NOW,
            saved,
            events: Vec::new(),
        };
        this.run();
        this.run();
        this
    }

    /// Runs ticks until the links have nothing to do.
    fn run(&mut self) {
        for _ in 0..4 {
            let events = std::mem::take(&mut self.events);
            self.bed.open_port::<StateRequest, StateEvent>(events);
            self.bed.world.resource_mut::<Clock>().advance_to(self.now);
            if self.bed.holds(has_work) {
                self.bed.run(follow_links);
            }
            self.bed.world.resource_mut::<Messages<LifecycleChanged>>().clear();
            for request in self.bed.world.resource::<StatePort>().outgoing() {
                self.events.push(match request {
                    StateRequest::SaveBlob { tag, bytes, .. } => {
                        self.saved = Some(bytes.clone());
                        StateEvent {
                            tag: *tag,
                            outcome: Ok(StateDone::Saved),
                        }
                    }
                    StateRequest::LoadBlob { tag, .. } => {
                        let outcome = Ok(StateDone::BlobLoaded(self.saved.clone()));
                        StateEvent { tag: *tag, outcome }
                    }
                    other => panic!("{other:?}"),
                });
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.run();
    }

    fn queue<C: Send + Sync + 'static>(&mut self) -> Vec<C> {
        self.bed.world.resource_mut::<CommandQueue<C>>().0.drain(..).collect()
    }

    fn push<C: Send + Sync + 'static>(&mut self, command: C) {
        self.bed.world.resource_mut::<CommandQueue<C>>().0.push_back(command);
        self.run();
    }

    fn follow(&mut self, salt: &str) -> Answered<Result<InfoHash, FollowError>> {
        let (reply, answered) = reply();
        let (link, options) = (link(salt), AddOptions::default());
        self.push(FollowLink { link, options, reply });
        answered
    }

    /// Answers the only search that is running.
    fn find(&mut self, found: Result<Option<Item>, DhtError>) {
        let mut searches = self.queue::<GetDhtItem>();
        assert_eq!(searches.len(), 1, "one search");
        searches.remove(0).reply.send(found);
        self.run();
    }

    /// Adds the torrent that is to be added. Returns its options.
    fn add(&mut self, torrent: u8) -> AddOptions {
        let mut adds = self.queue::<AddTorrent>();
        assert_eq!(adds.len(), 1, "one add");
        let AddTorrent {
            source, options, reply, ..
        } = adds.remove(0);
        assert_eq!(source.id(), hash(torrent));
        self.list(torrent);
        reply.send(Ok(hash(torrent)));
        self.run();
        options
    }

    fn list(&mut self, number: u8) -> Entity {
        let mut names = torrent();
        names.hashes = InfoHashes {
            v1: Some(hash(number)),
            v2: None,
        };
        let hashes = names.hashes;
        let entity = self.bed.world.spawn((names, Desired::Run, Lifecycle::Downloading)).id();
        self.bed.world.resource_mut::<TorrentIndex>().insert(&hashes, entity);
        entity
    }

    /// Stores the item that is to be stored.
    fn store(&mut self) {
        let mut puts = self.queue::<PutDhtItem>();
        assert_eq!(puts.len(), 1, "one store");
        puts.remove(0).reply.send(Ok(8));
        self.run();
    }

    fn entity(&self, torrent: u8) -> Entity {
        self.bed
            .world
            .resource::<TorrentIndex>()
            .get(hash(torrent))
            .expect("a listed torrent")
    }

    /// Changes the state of a torrent.
    fn change(&mut self, torrent: u8, desired: Desired, to: Lifecycle) {
        let entity = self.entity(torrent);
        *self.bed.get_mut::<Desired>(entity) = desired;
        let from = std::mem::replace(&mut *self.bed.get_mut::<Lifecycle>(entity), to.clone());
        self.bed.world.write_message(LifecycleChanged {
            torrent: entity,
            from,
            to,
        });
        self.run();
    }

    /// Returns the torrents that are to be paused and started.
    fn pauses(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (mut paused, mut started) = (Vec::new(), Vec::new());
        for command in self.queue::<PauseOrStart>() {
            match command {
                PauseOrStart::Pause(pause) => paused.push(pause.torrent.0[0]),
                PauseOrStart::Start(start) => started.push(start.torrent.0[0]),
                other => panic!("{other:?}"),
            }
        }
        (paused, started)
    }

    fn links(&mut self) -> Vec<FollowedLink> {
        let (reply, answered) = reply();
        self.push(ListLinks { reply });
        taken(&answered).expect("an answer")
    }

    /// Follows the link without salt, whose first torrent is added and stored.
    fn followed() -> Self {
        let mut follower = Self::new(None);
        let answered = follower.follow("");
        follower.find(Ok(Some(item(1, 1))));
        follower.add(1);
        assert_eq!(taken(&answered), Some(Ok(hash(1))));
        follower.store();
        follower
    }
}

#[test]
fn the_caller_waits_until_the_torrent_is_added_and_the_link_saved() {
    let mut follower = Follower::new(None);
    let answered = follower.follow("");
    follower.find(Ok(Some(item(3, 1))));
    assert_eq!(taken(&answered), None);
    let options = follower.add(1);
    assert_eq!(options.into, None, "the first torrent is where the user wants it");
    assert_eq!(taken(&answered), Some(Ok(hash(1))));
    let links = follower.links();
    assert_eq!((links[0].info_hash, links[0].seq), (Some(hash(1)), Some(3)));

    let mut next = Follower::new(follower.saved.clone());
    assert_eq!(next.links(), links, "they survive a restart");
    assert_eq!(next.queue::<GetDhtItem>().len(), 0, "the torrent is not listed yet");
    next.list(1);
    next.change(1, Desired::Run, Lifecycle::Downloading);
    next.find(Ok(None));
    next.store();
}

#[test]
fn a_newer_torrent_is_added_beside_an_incomplete_one_which_is_paused() {
    let mut follower = Follower::followed();
    follower.pass(seconds(30 * 60));
    follower.find(Ok(Some(item(2, 2))));
    let options = follower.add(2);
    let folder = format!("{}-2", &link("").target().to_string()[..8]);
    assert_eq!(options.into, Some(folder.into()));
    assert_eq!(follower.pauses(), (vec![1], vec![]));
    let links = follower.links();
    assert_eq!((links[0].info_hash, links[0].previous), (Some(hash(2)), None));

    // An older item, and the same one, change nothing.
    for known in [item(1, 1), item(2, 2)] {
        follower.pass(seconds(30 * 60));
        follower.find(Ok(Some(known)));
        assert_eq!(follower.queue::<AddTorrent>().len(), 0);
        follower
            .queue::<PutDhtItem>()
            .into_iter()
            .for_each(|put| put.reply.send(Ok(1)));
        follower.run();
    }
}

#[test]
fn a_complete_torrent_runs_until_the_newer_one_is_complete() {
    let mut follower = Follower::followed();
    follower.change(1, Desired::Run, Lifecycle::Seeding);
    follower.pass(seconds(30 * 60));
    follower.find(Ok(Some(item(2, 2))));
    follower.add(2);
    assert_eq!(follower.pauses(), (vec![], vec![]));
    assert_eq!(follower.links()[0].previous, Some(hash(1)));
    follower.change(2, Desired::Run, Lifecycle::Finished);
    assert_eq!(follower.pauses(), (vec![1], vec![]));
    assert_eq!(follower.links()[0].previous, None);

    // The publisher goes back to the first one.
    *follower.bed.get_mut::<Desired>(follower.entity(1)) = Desired::Pause;
    follower.pass(seconds(3600));
    follower.find(Ok(Some(item(3, 1))));
    let adds = follower.queue::<AddTorrent>();
    adds.into_iter().for_each(|add| add.reply.send(Ok(hash(1))));
    follower.run();
    assert_eq!(
        follower.pauses(),
        (vec![2], vec![1]),
        "2 is over as soon as 1, which is complete, runs again"
    );
}

#[test]
fn searches_are_repeated_while_a_caller_waits_and_then_the_link_is_forgotten() {
    let mut follower = Follower::new(None);
    let answered = follower.follow("");
    follower.find(Err(DhtError::NoNodes));
    for pause in [1, 2, 4] {
        follower.pass(RETRY * pause);
        follower.find(Err(DhtError::NoNodes));
    }
    follower.pass(RETRY * 8);
    follower.find(Ok(None));
    for _ in 0..2 {
        assert_eq!(taken(&answered), None);
        follower.pass(LONG_RETRY);
        follower.find(Ok(None));
    }
    assert_eq!(taken(&answered), Some(Err(FollowError::NoItem)));
    assert_eq!(follower.links(), []);

    let answered = follower.follow("");
    follower.find(Err(DhtError::Off));
    assert_eq!(
        taken(&answered),
        Some(Err(DhtError::Off.into())),
        "a search that cannot succeed is not repeated"
    );
    let answered = follower.follow("");
    let value = Item::sign(&SECRET, b"", 1, b"5:hello").expect("short");
    follower.find(Ok(Some(value)));
    assert_eq!(taken(&answered), Some(Err(DhtError::NoTorrent.into())));
}

/// A second caller comes while the item of the link is being stored, and another one while its publisher stores it.
#[test]
fn a_caller_that_comes_during_a_store_is_answered() {
    let mut follower = Follower::new(None);
    let first = follower.follow("");
    follower.find(Ok(Some(item(1, 1))));
    follower.add(1);
    assert_eq!(taken(&first), Some(Ok(hash(1))));
    let second = follower.follow("");
    follower.store();
    follower.find(Ok(Some(item(1, 1))));
    follower.add(1);
    assert_eq!(taken(&second), Some(Ok(hash(1))));

    let third = follower.follow("kept");
    follower.find(Ok(None));
    let (reply, kept) = reply();
    let (link, item) = (link("kept"), item(1, 2));
    follower.push(KeepItem {
        link,
        item: item.clone(),
        reply,
    });
    assert_eq!(taken(&kept), Some(Ok(())));
    follower.pass(LONG_RETRY);
    follower.find(Ok(Some(item)));
    follower.add(2);
    assert_eq!(taken(&third), Some(Ok(hash(2))));
}

/// The user removes the torrent of a link while a caller adds the link again.
#[test]
fn a_caller_whose_torrent_is_removed_is_refused() {
    let mut follower = Follower::followed();
    let answered = follower.follow("");
    let phase = StopPhase::HaltDownloads;
    follower.change(1, Desired::Remove, Lifecycle::Stopping { phase });
    assert_eq!(taken(&answered), Some(Err(FollowError::NotFollowed)));
    follower.find(Ok(Some(item(1, 1))));
    assert_eq!(follower.queue::<AddTorrent>().len(), 0);
}

#[test]
fn a_refused_torrent_is_not_followed() {
    let mut follower = Follower::new(None);
    let answered = follower.follow("");
    follower.find(Ok(Some(item(1, 1))));
    let error = AddError::Removed { torrent: "it".into() };
    let adds = follower.queue::<AddTorrent>();
    adds.into_iter().for_each(|add| add.reply.send(Err(error.clone())));
    follower.run();
    assert_eq!(taken(&answered), Some(Err(error.into())));
    assert_eq!(follower.links(), []);
}

#[test]
fn an_item_is_stored_again_every_hour() {
    let mut follower = Follower::followed();
    let mut stored = 0;
    for _ in 0..60 {
        follower.pass(seconds(300));
        for search in follower.queue::<GetDhtItem>() {
            search.reply.send(Ok(None));
        }
        follower.run();
        for put in follower.queue::<PutDhtItem>() {
            assert_eq!((put.item, put.cas), (item(1, 1), None));
            put.reply.send(Ok(8));
            stored += 1;
        }
        follower.run();
    }
    assert!((4..=5).contains(&stored), "{stored} times in five hours");
}

#[test]
fn a_publisher_s_item_is_kept_without_a_download() {
    let mut follower = Follower::new(None);
    let keep = |follower: &mut Follower, seq| {
        let (reply, answered) = reply();
        let (link, item) = (link(""), item(seq, 1));
        follower.push(KeepItem { link, item, reply });
        taken(&answered)
    };
    assert_eq!(keep(&mut follower, 5), Some(Ok(())));
    assert_eq!(keep(&mut follower, 4), Some(Err(FollowError::Outdated)));
    let links = follower.links();
    assert_eq!((links[0].is_downloaded, links[0].kind), (false, LinkKind::Published));
    assert_eq!((links[0].seq, links[0].info_hash), (Some(5), Some(hash(1))));
    follower.pass(STORE_INTERVAL);
    follower.find(Ok(Some(item(6, 2))));
    assert_eq!(follower.queue::<AddTorrent>().len(), 0);
    follower.store();
    assert_eq!(follower.links()[0].seq, Some(6), "published elsewhere");
}

#[test]
fn a_link_rests_with_its_torrent_and_ends_with_it() {
    let mut follower = Follower::followed();
    follower.change(1, Desired::Pause, Lifecycle::Paused);
    for _ in 0..100 {
        follower.pass(seconds(60));
        assert!(follower.queue::<GetDhtItem>().is_empty(), "the torrent is paused");
    }
    follower.change(1, Desired::Run, Lifecycle::Downloading);
    follower.find(Ok(Some(item(1, 1))));
    let phase = StopPhase::HaltDownloads;
    follower.change(1, Desired::Remove, Lifecycle::Stopping { phase });
    assert_eq!(follower.links(), []);
    let links = links::load(follower.saved.as_deref().expect("saved"), 10, NOW);
    assert!(links.expect("undamaged").is_empty());
}

#[test]
fn links_and_their_searches_are_bounded() {
    let mut follower = Follower::new(None);
    follower.bed.world.resource_mut::<Settings>().dht.max_links = 6;
    let answers: Vec<_> = (0..7).map(|salt| follower.follow(&salt.to_string())).collect();
    assert_eq!(taken(&answers[6]), Some(Err(FollowError::TooMany(6))));
    let searches = follower.queue::<GetDhtItem>();
    assert_eq!(searches.len(), MAX_SEARCHES);
    searches
        .into_iter()
        .for_each(|search| search.reply.send(Err(DhtError::Off)));
    follower.run();
    let late = follower.queue::<GetDhtItem>();
    assert_eq!((late.len(), follower.links().len()), (2, 2));

    let unfollow = |follower: &mut Follower, target| {
        let (reply, answered) = reply();
        follower.push(UnfollowLink { target, reply });
        taken(&answered)
    };
    let target = late[0].target;
    assert_eq!(unfollow(&mut follower, target), Some(Ok(())));
    assert_eq!(unfollow(&mut follower, target), Some(Err(FollowError::NotFollowed)));
    late.into_iter()
        .for_each(|search| search.reply.send(Ok(Some(item(1, 1)))));
    follower.run();
    assert_eq!(follower.queue::<AddTorrent>().len(), 1, "the other link's");
    let refused = answers.iter().filter_map(taken).collect::<Vec<_>>();
    assert_eq!(
        refused
            .iter()
            .filter(|answer| **answer == Err(FollowError::NotFollowed))
            .count(),
        1
    );
}
