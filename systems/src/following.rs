//! Links to torrents that their publishers replace (BEP 46): downloads the torrent that a link names, searches for
//! newer ones, and keeps the link's item in the DHT.
//!
//! A newer torrent is added beside the older one, in a folder of its own. The older one runs until the newer one is
//! complete, and is then paused; if it is incomplete itself, it is paused at once. Nothing is deleted. While the user
//! has paused or stopped a link's torrent, the link rests; if the user removes the torrent, the link is forgotten.

mod links;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{
    AddError, AddTorrent, CommandQueue, PauseOrStart, PauseTorrent, Reply, StartTorrent, TorrentSource,
    UnfetchedTorrent,
};
use ecs_torrent_components::dht::{DhtError, GetDhtItem, PutDhtItem};
use ecs_torrent_components::hints::LinkHints;
use ecs_torrent_components::lifecycle::Desired;
use ecs_torrent_components::links::{FollowError, FollowLink, KeepItem, LinkUpdated, ListLinks, UnfollowLink};
use ecs_torrent_components::messages::LifecycleChanged;
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::{Settings, seconds};
use ecs_torrent_components::torrent::{Label, Lifecycle, Torrent, TorrentIndex};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::StatePort;
use ecs_torrent_engine::ports::state::{BlobName, StateDone, StateRequest};
use ecs_torrent_engine::purpose;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::dht::id::NodeId;
use ecs_torrent_protocol::dht::items::Item;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::magnet::MutableLink;
use ecs_torrent_protocol::time::Timestamp;

use self::links::{Download, FollowReply, Link};
use crate::DecideSet;

/// The inbox of the saved links.
const STATE: Purpose = purpose!("followed links");

/// Time between two stores of an item. Nodes forget it after two hours (BEP 44, "Expiration").
const STORE_INTERVAL: Duration = Duration::from_secs(3600);

/// Maximum number of searches at a time: links never take most of the DHT's searches.
const MAX_SEARCHES: usize = 4;

/// Time for which a search is repeated for a caller that waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause after a search that reached no node, because none is known yet or other searches use up the limit. It doubles
/// each time, up to the usual interval.
const RETRY: Duration = Duration::from_secs(1);

/// Longest pause between two searches for a caller that waits.
const LONG_RETRY: Duration = Duration::from_secs(10);

/// Shortest time between two searches of a link for which no caller waits.
const MIN_INTERVAL: Duration = Duration::from_secs(60);

/// The part of an interval by which a search may come earlier, so that links which are loaded together spread.
const JITTER_PERCENT: usize = 20;

/// Follows links.
pub struct FollowingPlugin;

impl Plugin for FollowingPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<Links>()
            .init_resource::<CommandQueue<FollowLink>>()
            .init_resource::<CommandQueue<KeepItem>>()
            .init_resource::<CommandQueue<UnfollowLink>>()
            .init_resource::<CommandQueue<ListLinks>>()
            .add_message::<LinkUpdated>()
            .add_systems(Tick, follow_links.run_if(has_work).in_set(DecideSet::Following));
    }
}

/// Whether the saved links have been read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Loading {
    #[default]
    NotBegun,
    Begun,
    Done,
}

/// The result of a command that a link has sent to another feature.
#[derive(Debug)]
enum Answer {
    Found(Result<Option<Item>, DhtError>),
    Stored(Result<usize, DhtError>),
    Added(Item, InfoHash, Result<InfoHash, AddError>),
}

/// A caller that is answered when the links are saved.
#[derive(Debug)]
enum Caller {
    Follow(InfoHash, FollowReply),
    Change(Reply<Result<(), FollowError>>),
}

impl Caller {
    fn answer(self, result: Result<(), FollowError>) {
        match self {
            Self::Follow(torrent, reply) => reply.send(result.map(|()| torrent)),
            Self::Change(reply) => reply.send(result),
        }
    }
}

/// The followed links.
#[derive(Resource, Debug, Default)]
struct Links {
    links: BTreeMap<NodeId, Link>,
    /// The links of current torrents.
    by_torrent: BTreeMap<InfoHash, NodeId>,
    loading: Loading,
    answers: Arc<Mutex<Vec<(NodeId, Answer)>>>,
    search_count: usize,
    /// Whether the saved links are outdated.
    is_changed: bool,
    is_saving: bool,
    /// Callers that wait for the next save, and for the one that is running.
    unsaved: Vec<Caller>,
    saving: Vec<Caller>,
    deadline: Option<Timestamp>,
}

impl Links {
    /// Returns a reply that hands its answer to the link.
    fn reply<T>(&self, target: NodeId, wrap: impl FnOnce(T) -> Answer + Send + Sync + 'static) -> Reply<T> {
        let answers = self.answers.clone();
        Reply::new(move |answer| {
            // Nothing panics while the lock is held.
            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.push((target, wrap(answer)));
        })
    }

    fn take_answers(&self) -> Vec<(NodeId, Answer)> {
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn has_answers(&self) -> bool {
        !self.answers.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Forgets a link and refuses its callers. Returns whether there was such a link.
    fn forget(&mut self, target: NodeId) -> bool {
        let Some(link) = self.links.remove(&target) else {
            return false;
        };
        self.by_torrent.retain(|_, link| *link != target);
        self.is_changed = true;
        let callers = link.callers.into_iter();
        callers.for_each(|caller| caller.send(Err(FollowError::NotFollowed)));
        true
    }

    /// Refuses the callers that wait for the first torrent of a link. A link that was new is forgotten.
    fn refuse(&mut self, target: NodeId, error: &FollowError) {
        let Some(link) = self.links.get_mut(&target) else {
            return;
        };
        let callers = std::mem::take(&mut link.callers);
        if !callers.is_empty() && link.torrent().is_none() {
            link.download = None;
            if link.item.is_none() {
                self.forget(target);
            }
        }
        callers.into_iter().for_each(|reply| reply.send(Err(error.clone())));
    }

    /// Sets the time of the next call.
    fn set_deadline(&mut self) {
        let waiting = self.links.values().filter(|link| !link.is_busy);
        let next = waiting.map(|link| link.due).min();
        // While all searches are in use, the next answer frees one.
        self.deadline = next.filter(|next| *next != Timestamp::NEVER && self.search_count < MAX_SEARCHES);
    }
}

/// Commands that wait.
#[derive(SystemParam)]
struct LinkCommands<'w> {
    follow: ResMut<'w, CommandQueue<FollowLink>>,
    keep: ResMut<'w, CommandQueue<KeepItem>>,
    unfollow: ResMut<'w, CommandQueue<UnfollowLink>>,
    list: ResMut<'w, CommandQueue<ListLinks>>,
}

/// Reads whether commands wait.
#[derive(SystemParam)]
struct WaitingCommands<'w> {
    follow: Res<'w, CommandQueue<FollowLink>>,
    keep: Res<'w, CommandQueue<KeepItem>>,
    unfollow: Res<'w, CommandQueue<UnfollowLink>>,
    list: Res<'w, CommandQueue<ListLinks>>,
}

impl WaitingCommands<'_> {
    fn is_empty(&self) -> bool {
        self.follow.0.is_empty() && self.keep.0.is_empty() && self.unfollow.0.is_empty() && self.list.0.is_empty()
    }
}

/// Returns whether the links have something to do. If not, requests a tick for the next search.
fn has_work(
    links: Res<Links>,
    state: Res<StatePort>,
    changed: Res<Messages<LifecycleChanged>>,
    commands: WaitingCommands,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
) -> bool {
    if links.loading == Loading::Done && links.links.is_empty() {
        return !commands.is_empty() || links.is_saving && state.has_events_for(STATE);
    }
    let has_work = links.loading == Loading::NotBegun
        || state.has_events_for(STATE)
        || !changed.is_empty()
        || !commands.is_empty()
        || links.has_answers()
        || links.deadline.is_some_and(|next| next <= clock.now());
    if !has_work {
        wakeup.at_next(links.deadline);
    }
    has_work
}

/// The features that links use.
#[derive(SystemParam)]
struct FollowParams<'w, 's> {
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    settings: Res<'w, Settings>,
    random: ResMut<'w, Random>,
    state: ResMut<'w, StatePort>,
    gets: ResMut<'w, CommandQueue<GetDhtItem>>,
    puts: ResMut<'w, CommandQueue<PutDhtItem>>,
    adds: ResMut<'w, CommandQueue<AddTorrent>>,
    pauses: ResMut<'w, CommandQueue<PauseOrStart>>,
    updated: MessageWriter<'w, LinkUpdated>,
    index: Res<'w, TorrentIndex>,
    torrents: Query<'w, 's, (&'static Torrent, &'static Desired, &'static Lifecycle)>,
}

/// Runs the links for one tick.
fn follow_links(
    mut links: ResMut<Links>,
    mut commands: LinkCommands,
    mut changed: MessageReader<LifecycleChanged>,
    mut params: FollowParams,
) {
    let links = &mut *links;
    params.take_state(links);
    for changed in changed.read() {
        params.take_change(links, changed);
    }
    // Until the saved links are known, commands wait.
    if links.loading == Loading::Done {
        commands.carry_out(links, &mut params);
        for (target, answer) in links.take_answers() {
            params.take_answer(links, target, answer);
        }
        params.search(links);
        params.save(links);
    }
    links.set_deadline();
    params.wakeup.at_next(links.deadline);
}

impl LinkCommands<'_> {
    fn carry_out(&mut self, links: &mut Links, params: &mut FollowParams) {
        let (now, max) = (params.clock.now(), params.settings.dht.max_links);
        for command in self.list.0.drain(..) {
            command.reply.send(links.links.values().map(Link::describe).collect());
        }
        for FollowLink { link, options, reply } in self.follow.0.drain(..) {
            let target = link.target();
            if !links.links.contains_key(&target) && links.links.len() >= max {
                reply.send(Err(FollowError::TooMany(max)));
                continue;
            }
            let followed = links.links.entry(target).or_insert_with(|| Link::new(link, now));
            followed.callers.push(reply);
            followed.patience = now + PATIENCE;
            followed.due = now;
            followed.download.get_or_insert_with(|| Download::new(options));
        }
        for KeepItem { link, item, reply } in self.keep.0.drain(..) {
            let target = link.target();
            if !links.links.contains_key(&target) && links.links.len() >= max {
                reply.send(Err(FollowError::TooMany(max)));
                continue;
            }
            let kept = links.links.entry(target).or_insert_with(|| Link::new(link, now));
            if kept.seq().is_some_and(|known| known > item.seq()) {
                reply.send(Err(FollowError::Outdated));
                continue;
            }
            // The publisher has just stored the item. A download of the link's torrents begins with the next search.
            if kept.download.is_none() {
                kept.item = Some(item);
            }
            kept.store_due = now + STORE_INTERVAL;
            if kept.callers.is_empty() {
                kept.due = kept.store_due;
            }
            links.is_changed = true;
            links.unsaved.push(Caller::Change(reply));
        }
        for UnfollowLink { target, reply } in self.unfollow.0.drain(..) {
            match links.forget(target) {
                true => links.unsaved.push(Caller::Change(reply)),
                false => reply.send(Err(FollowError::NotFollowed)),
            }
        }
    }
}

impl FollowParams<'_, '_> {
    /// Requests the saved links, takes them, and answers callers whose links are saved.
    fn take_state(&mut self, links: &mut Links) {
        if links.loading == Loading::NotBegun {
            links.loading = Loading::Begun;
            let tag = JobTag::new(STATE, Entity::PLACEHOLDER);
            self.state.open_inbox(STATE);
            self.state.push(StateRequest::LoadBlob { tag, name: blob_name() });
        }
        for event in self.state.take(STATE) {
            match event.outcome {
                Ok(StateDone::BlobLoaded(saved)) => {
                    links.loading = Loading::Done;
                    let (max, now) = (self.settings.dht.max_links, self.clock.now());
                    match links::load(saved.as_deref().unwrap_or(b"le"), max, now) {
                        Ok(loaded) => links.links = loaded,
                        Err(error) => tracing::warn!(%error, "the saved links are damaged"),
                    }
                }
                Err(error) if links.loading == Loading::Begun => {
                    links.loading = Loading::Done;
                    tracing::warn!("the saved links cannot be read: {}", error.0);
                }
                outcome => {
                    links.is_saving = false;
                    let result = outcome
                        .map(drop)
                        .map_err(|error| FollowError::Unsaved(error.0.to_string()));
                    let callers = links.saving.drain(..);
                    callers.for_each(|caller| caller.answer(result.clone()));
                }
            }
        }
        if links.by_torrent.is_empty() {
            let current = links
                .links
                .iter()
                .filter_map(|(target, link)| Some((link.torrent()?, *target)));
            links.by_torrent = current.collect();
        }
    }

    /// Applies a change of a torrent's state. If the torrent is complete, pauses the one that it replaces. If the user
    /// removes the torrent, forgets its link. If the torrent runs again, ends the rest of its link.
    fn take_change(&mut self, links: &mut Links, changed: &LifecycleChanged) {
        let Ok((torrent, desired, _)) = self.torrents.get(changed.torrent) else {
            return;
        };
        let Some(target) = links.by_torrent.get(&torrent.id()).copied() else {
            return;
        };
        if *desired == Desired::Remove {
            links.forget(target);
            return;
        }
        if changed.to.is_finished() {
            self.pause_previous(links, target);
        }
        if let Some(link) = links.links.get_mut(&target)
            && changed.to.connects()
            && link.due == Timestamp::NEVER
        {
            link.due = self.clock.now();
        }
    }

    fn pause_previous(&mut self, links: &mut Links, target: NodeId) {
        let download = links.links.get_mut(&target).and_then(|link| link.download.as_mut());
        if let Some(previous) = download.and_then(|download| download.previous.take()) {
            self.pause(previous);
            links.is_changed = true;
        }
    }

    fn pause(&mut self, torrent: InfoHash) {
        let reply = Reply::ignored();
        self.pauses.0.push_back(PauseTorrent { torrent, reply }.into());
        self.wakeup.at(self.clock.now());
    }

    fn state_of(&self, torrent: InfoHash) -> Option<(Desired, &Lifecycle)> {
        let (_, desired, lifecycle) = self.torrents.get(self.index.get(torrent)?).ok()?;
        Some((*desired, lifecycle))
    }

    /// Begins the searches that are due.
    fn search(&mut self, links: &mut Links) {
        let now = self.clock.now();
        let due = |link: &Link| !link.is_busy && link.due <= now;
        let targets: Vec<NodeId> = links
            .links
            .iter()
            .filter_map(|(target, link)| due(link).then_some(*target))
            .collect();
        for target in targets {
            let reply = links.reply(target, Answer::Found);
            let Some(link) = links.links.get_mut(&target) else {
                continue;
            };
            let rests = |torrent| {
                self.state_of(torrent)
                    .is_none_or(|(desired, _)| desired != Desired::Run)
            };
            if link.callers.is_empty() && link.torrent().is_some_and(rests) {
                // The next change of the torrent's state ends the rest.
                link.due = Timestamp::NEVER;
                continue;
            }
            if links.search_count == MAX_SEARCHES {
                break;
            }
            links.search_count += 1;
            link.is_busy = true;
            let salt = link.link.salt.clone();
            self.gets.0.push_back(GetDhtItem { target, salt, reply });
            self.wakeup.at(now);
        }
    }

    fn take_answer(&mut self, links: &mut Links, target: NodeId, answer: Answer) {
        if matches!(answer, Answer::Found(_)) {
            links.search_count -= 1;
        }
        let Some(link) = links.links.get_mut(&target) else {
            return;
        };
        link.is_busy = false;
        match answer {
            Answer::Found(found) => self.take_found(links, target, found),
            Answer::Added(item, torrent, Ok(_)) => self.take_added(links, target, item, torrent),
            Answer::Added(_, torrent, Err(error)) => {
                let name = link.link.to_string();
                let label = Label::new(&name, torrent);
                tracing::warn!(torrent = %label, "the torrent of a link is not added: {error}");
                link.problem = Some(error.clone().into());
                self.schedule(link);
                links.refuse(target, &error.into());
            }
            Answer::Stored(result) => {
                // A refusal means that others know a newer item, or that the torrent is private.
                if !matches!(result, Err(DhtError::NoNodes | DhtError::Busy)) {
                    link.store_due = self.clock.now() + STORE_INTERVAL;
                }
                self.schedule(link);
                if !link.callers.is_empty() {
                    // These callers came during the store, and wait for a search.
                    link.due = self.clock.now();
                }
            }
        }
    }

    /// Sets the time of the next search: after the interval, or when the item is to be stored.
    fn schedule(&mut self, link: &mut Link) {
        let now = self.clock.now();
        let interval = seconds(self.settings.dht.link_interval_s);
        let earlier = interval * self.random.below(JITTER_PERCENT) as u32 / 100;
        link.due = now
            + interval
                .saturating_sub(earlier)
                .min(link.store_due.since(now).max(MIN_INTERVAL));
    }

    fn take_found(&mut self, links: &mut Links, target: NodeId, found: Result<Option<Item>, DhtError>) {
        let Some(link) = links.links.get_mut(&target) else {
            return;
        };
        let is_reached = found.is_ok();
        link.misses = if is_reached { 0 } else { link.misses.saturating_add(1) };
        link.problem = match &found {
            Ok(None) if link.item.is_none() => Some(FollowError::NoItem),
            Ok(_) => None,
            Err(error) => Some(error.clone().into()),
        };
        // Other nodes may have dropped an item that is known here.
        let newest = found
            .ok()
            .flatten()
            .filter(|found| link.seq().is_none_or(|known| found.seq() > known));
        let lacks_torrent = link.torrent().is_none() || !link.callers.is_empty();
        match newest {
            Some(item) => self.take_item(links, target, item),
            None if lacks_torrent && link.download.is_some() && link.item.is_some() => {
                if let Some(item) = link.item.clone() {
                    self.take_item(links, target, item);
                }
            }
            None if is_reached && link.item.is_some() => self.store(links, target),
            None => self.try_again(links, target),
        }
    }

    /// Repeats the search for callers that wait, refuses them, or waits for the next search.
    fn try_again(&mut self, links: &mut Links, target: NodeId) {
        let now = self.clock.now();
        let Some(link) = links.links.get_mut(&target) else {
            return;
        };
        self.schedule(link);
        let error = link.problem.clone().unwrap_or(FollowError::NoItem);
        let may_help = match error {
            FollowError::Dht(DhtError::NoNodes | DhtError::Busy) => {
                let pause = RETRY * 2u32.pow((link.misses.max(1) - 1).min(16));
                link.due = link.due.min(now + pause);
                true
            }
            FollowError::NoItem => true,
            _ => false,
        };
        match !link.callers.is_empty() && may_help && now < link.patience {
            true => link.due = link.due.min(now + LONG_RETRY),
            false => links.refuse(target, &error),
        }
    }

    /// Takes an item that is newer, or whose torrent was not added yet.
    fn take_item(&mut self, links: &mut Links, target: NodeId, item: Item) {
        let now = self.clock.now();
        let torrent = MutableLink::torrent_in(&item.value);
        let reply = torrent.map(|torrent| {
            let item = item.clone();
            links.reply(target, move |result| Answer::Added(item, torrent, result))
        });
        let Some(link) = links.links.get_mut(&target) else {
            return;
        };
        let is_new = torrent.is_some() && torrent != link.torrent() || !link.callers.is_empty();
        match (&mut link.download, torrent, reply) {
            (Some(download), Some(info_hash), Some(reply)) if is_new => {
                let options = download.options(&link.link, item.seq());
                link.is_busy = true;
                let source = TorrentSource::InfoHash(UnfetchedTorrent {
                    info_hash,
                    name: None,
                    trackers: Vec::new(),
                    peers: Vec::new(),
                    hints: LinkHints::default(),
                });
                let is_resumed = false;
                self.adds.0.push_back(AddTorrent {
                    source,
                    options,
                    is_resumed,
                    reply,
                });
                self.wakeup.at(now);
            }
            (Some(_), None, _) => {
                link.problem = Some(DhtError::NoTorrent.into());
                link.item = Some(item);
                links.is_changed = true;
                links.refuse(target, &DhtError::NoTorrent.into());
                self.store(links, target);
            }
            _ => {
                link.item = Some(item);
                links.is_changed = true;
                self.store(links, target);
            }
        }
    }

    /// Records the torrent that was added for an item, and pauses the one that it replaces as soon as it is no longer
    /// needed.
    fn take_added(&mut self, links: &mut Links, target: NodeId, item: Item, torrent: InfoHash) {
        let Some(link) = links.links.get_mut(&target) else {
            return;
        };
        let seq = item.seq();
        link.item = Some(item);
        let Some(download) = &mut link.download else { return };
        let callers = std::mem::take(&mut link.callers);
        let before = download.torrent.replace(torrent);
        if before != Some(torrent) {
            self.updated.write(LinkUpdated {
                link: link.link.clone(),
                torrent,
                previous: before,
                seq,
            });
        }
        let old = before.filter(|old| *old != torrent);
        download.previous = download.previous.filter(|previous| *previous != torrent);
        let mut outdated = None;
        if let Some(old) = old {
            let name = link.link.to_string();
            let label = Label::new(&name, torrent);
            tracing::info!(torrent = %label, "the publisher replaced {old} by this torrent, sequence number {seq}");
            let is_complete = self.state_of(old).is_some_and(|(_, lifecycle)| lifecycle.is_finished());
            outdated = match is_complete {
                true => download.previous.replace(old),
                false => Some(old),
            };
        }
        links.by_torrent.retain(|_, link| *link != target);
        links.by_torrent.insert(torrent, target);
        links.is_changed = true;
        links
            .unsaved
            .extend(callers.into_iter().map(|reply| Caller::Follow(torrent, reply)));
        if let Some(outdated) = outdated {
            self.pause(outdated);
        }
        let state = self
            .state_of(torrent)
            .map(|(desired, lifecycle)| (desired, lifecycle.is_finished()));
        // A torrent that was replaced earlier may be the newest one again.
        if let Some((Desired::Pause, _)) = state {
            let reply = Reply::ignored();
            self.pauses.0.push_back(StartTorrent { torrent, reply }.into());
        }
        if let Some((_, true)) = state {
            self.pause_previous(links, target);
        }
        self.store(links, target);
    }

    /// Stores the item again if it is time, or else waits for the next search.
    fn store(&mut self, links: &mut Links, target: NodeId) {
        let now = self.clock.now();
        let reply = links.reply(target, Answer::Stored);
        let Some(link) = links.links.get_mut(&target) else {
            return;
        };
        match link.item.clone().filter(|_| link.store_due <= now) {
            Some(item) => {
                link.is_busy = true;
                let (salt, cas) = (link.link.salt.clone(), None);
                self.puts.0.push_back(PutDhtItem { item, salt, cas, reply });
                self.wakeup.at(now);
            }
            None => self.schedule(link),
        }
    }

    /// Saves the links if they have changed. Changes during a save are saved after it.
    fn save(&mut self, links: &mut Links) {
        if links.is_changed && !links.is_saving {
            (links.is_changed, links.is_saving) = (false, true);
            links.saving = std::mem::take(&mut links.unsaved);
            let (tag, name) = (JobTag::new(STATE, Entity::PLACEHOLDER), blob_name());
            let bytes = links::save(links.links.values()).into();
            self.state.push(StateRequest::SaveBlob { tag, name, bytes });
        }
    }
}

fn blob_name() -> BlobName {
    BlobName::new("links").expect("lower-case letters")
}
