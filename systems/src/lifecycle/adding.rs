//! Adding torrents: from the command to a listed torrent.

use std::sync::Arc;

use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::candidates::{CandidateSource, CandidatesFound};
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{
    AddError, AddOptions, AddPeers, AddTorrent, CommandQueue, PauseOrStart, PauseTorrent, RemoveTorrent, Reply,
    StopAll, StopTorrent, TorrentSource, Unsaved,
};
use ecs_torrent_components::lifecycle::{AwaitingSession, ChangedFacts};
use ecs_torrent_components::messages::{
    CheckSkipped, FailTorrent, FilesSelected, HintsGiven, LabelsGiven, LimitsGiven, PlaceGiven, Remedy, SeedingGiven,
    TorrentAdded, TrackersGiven,
};
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{
    Content, Have, Layout, Lifecycle, RequiresComplete, Storage, Torrent, TorrentIndex,
};
use ecs_torrent_components::wanted::FileChoice;
use ecs_torrent_engine::ports::state::Loaded;
use ecs_torrent_protocol::hash::{InfoHash, InfoHashes};
use ecs_torrent_protocol::peer_id::PeerId;
use ecs_torrent_protocol::safe_path::{MAX_COMPONENT_BYTES, safe_name};

use super::adds::{Adds, DecidingEvent, WaitingAdd};
use super::naming::{self, renamed};
use super::opening::preparing::Preparing;
use super::opening::{Opener, Opening, is_undecided};
use crate::ownership::Survey;
use crate::sessions::{OptionsGiven, SessionState, SessionWritten};

#[derive(SystemParam)]
pub(super) struct TorrentAdder<'w, 's> {
    pub(super) commands: Commands<'w, 's>,
    pub(super) clock: Res<'w, Clock>,
    pub(super) settings: Res<'w, Settings>,
    random: ResMut<'w, Random>,
    pub(super) index: ResMut<'w, TorrentIndex>,
    pub(super) opener: Opener<'w>,
    added: MessageWriter<'w, TorrentAdded>,
    changed: ResMut<'w, ChangedFacts>,
    new_peers: ResMut<'w, CommandQueue<AddPeers>>,
    pauses: ResMut<'w, CommandQueue<PauseOrStart>>,
    found: MessageWriter<'w, CandidatesFound>,
    stops: Res<'w, CommandQueue<StopTorrent>>,
    stops_of_all: Res<'w, CommandQueue<StopAll>>,
    torrents: Query<'w, 's, (&'static Torrent, &'static Lifecycle)>,
}

pub(super) fn add_torrents(
    mut queue: ResMut<CommandQueue<AddTorrent>>,
    removals: Res<CommandQueue<RemoveTorrent>>,
    wakeup: Res<Wakeup>,
    mut adds: ResMut<Adds>,
    mut survey: ResMut<Survey>,
    mut adder: TorrentAdder,
) {
    let waiting = std::mem::take(&mut adds.waiting);
    let waiting = waiting.into_iter().map(|add| (add.command, Some(add.event)));
    for (command, waited_for) in waiting.chain(queue.0.drain(..).map(|command| (command, None))) {
        if let Err(error) = naming::check(&command.options, &command.source, &adder.settings.labels) {
            command.reply.send(Err(error));
        } else if !command.is_resumed && !survey.request(&wakeup, adder.clock.now()).is_done() {
            let event = DecidingEvent::Survey;
            adds.waiting.push(WaitingAdd { command, event });
        } else {
            // Commands that have waited for this decision are carried out after it.
            let is_followed = waited_for == Some(DecidingEvent::Survey);
            let is_removed = |torrent| removals.0.iter().any(|removal| removal.torrent == torrent);
            let will_end = |adder: &TorrentAdder, torrent| {
                adder.is_all_stopped() || !is_followed && (adder.is_stopped(torrent) || is_removed(torrent))
            };
            adder.add_or_join(command, &mut adds, will_end);
        }
    }
}

impl TorrentAdder<'_, '_> {
    /// Decides on an add, or lets it wait for the end of the listed torrent. `will_end` returns whether a torrent's
    /// stop or removal will begin in this tick.
    fn add_or_join(&mut self, command: AddTorrent, adds: &mut Adds, will_end: impl Fn(&Self, InfoHash) -> bool) {
        let Some(entity) = self.find(&command.source.hashes()) else {
            let entity = self.add(&command.source, &command.options, command.is_resumed, None);
            adds.await_new(entity, command.reply);
            return;
        };
        // A torrent that was added in this very tick is not in the world yet.
        let known = self.torrents.get(entity).ok();
        if known.is_some_and(|(torrent, lifecycle)| lifecycle.is_stopping() || will_end(self, torrent.id())) {
            let event = DecidingEvent::End;
            adds.waiting.push(WaitingAdd { command, event });
            return;
        }
        let torrent = command.source.id();
        let peers = command.options.peers.clone();
        let reply = Reply::ignored();
        self.new_peers.0.push_back(AddPeers { torrent, peers, reply });
        self.find_linked(entity, &command.source);
        adds.joins.push((entity, command));
    }

    /// Whether a caller requested a stop of the torrent that has not begun yet.
    fn is_stopped(&self, torrent: InfoHash) -> bool {
        self.is_all_stopped() || self.stops.0.iter().any(|stop| stop.torrent == torrent)
    }

    /// Whether a caller requested a stop of all torrents in this tick.
    fn is_all_stopped(&self) -> bool {
        !self.stops_of_all.0.is_empty()
    }

    /// Whether a listed torrent is being stopped, or will be in this tick.
    pub(super) fn is_ending(&self, torrent: Entity) -> bool {
        let known = self.torrents.get(torrent);
        known.is_ok_and(|(torrent, lifecycle)| lifecycle.is_stopping() || self.is_stopped(torrent.id()))
    }

    /// Finds the torrent that one of the hashes names.
    pub(super) fn find(&self, hashes: &InfoHashes) -> Option<Entity> {
        hashes.wire_hashes().find_map(|hash| self.index.get(hash))
    }

    /// Adds a torrent. `loaded` is its loaded session, if that is known already.
    pub(super) fn add(
        &mut self,
        source: &TorrentSource,
        options: &AddOptions,
        is_resumed: bool,
        loaded: Option<Loaded>,
    ) -> Entity {
        let metainfo = match (source, &options.name) {
            (TorrentSource::Metainfo(metainfo), Some(name)) => Some(renamed(metainfo, name)),
            (TorrentSource::Metainfo(metainfo), None) => Some(metainfo.clone()),
            (TorrentSource::InfoHash(_), _) => None,
        };
        let root = naming::root_of(options, &self.settings);
        let opening = Opening {
            has_root: root.is_some(),
            is_resumed,
            ..Opening::default()
        };
        let storage = Storage {
            id: self.opener.next_storage(),
            root: root.unwrap_or_else(|| self.settings.storage.download_dir.clone()),
        };
        let name = match &metainfo {
            Some(metainfo) => metainfo.info.name.as_str().into(),
            None => provisional_name(source, options),
        };
        let is_private = metainfo.as_ref().is_some_and(|metainfo| metainfo.info.private);
        let torrent = self.new_torrent(source.hashes(), name, is_private);
        if !options.peers.is_empty() {
            self.new_peers.0.push_back(AddPeers {
                torrent: torrent.id(),
                peers: options.peers.clone(),
                reply: Reply::ignored(),
            });
        }
        let entity = self.commands.spawn_empty().id();
        self.find_linked(entity, source);
        match loaded {
            Some(loaded) => self.opener.hand_over(entity, loaded),
            None if metainfo.is_none() => self.opener.load_unfetched(entity, &torrent),
            None => self.opener.load(entity, &torrent),
        }
        self.index.insert(&torrent.hashes, entity);
        self.commands.entity(entity).insert((torrent, storage, opening));
        self.give_options(entity, options);
        self.commands.trigger(TrackersGiven {
            torrent: entity,
            tiers: source.trackers().clone(),
        });
        if let Some(hints) = source.hints().filter(|hints| !hints.is_empty()) {
            let hints = hints.clone();
            self.commands.trigger(HintsGiven { torrent: entity, hints });
        }
        // A torrent without metadata is not in its default state.
        self.changed.add(entity);
        if let Some(metainfo) = metainfo {
            let layout = Layout(metainfo.info.geometry.clone());
            self.commands.entity(entity).insert((layout, Content(metainfo)));
        }
        if is_resumed || options.paused {
            self.pauses.0.extend(options.paused.then(|| pause(source.id())));
            self.commands.entity(entity).insert(AwaitingSession);
        }
        self.added.write(TorrentAdded {
            torrent: entity,
            is_resumed,
        });
        entity
    }

    /// Hands the user's options to the features that keep them.
    fn give_options(&mut self, torrent: Entity, options: &AddOptions) {
        if options.require_complete {
            self.commands.entity(torrent).insert(RequiresComplete);
        }
        self.commands.trigger(OptionsGiven {
            torrent,
            name: options.name.clone(),
            overwrite: options.overwrite,
            overwrite_ns: options.requested_ns,
            has_moved: false,
            is_paused: options.paused,
        });
        if let Some(movement) = options.queue {
            self.commands.trigger(PlaceGiven { torrent, movement });
        }
        if options.has_choice() {
            self.commands.trigger(FilesSelected {
                torrent,
                selection: options.select.clone(),
                order: options.order,
            });
        }
        if options.skip_checking {
            self.commands.trigger(CheckSkipped { torrent });
        }
        if !options.limits.is_unlimited() {
            let limits = options.limits;
            self.commands.trigger(LimitsGiven { torrent, limits });
        }
        if !options.labels.is_empty() {
            let labels = options.labels.clone();
            self.commands.trigger(LabelsGiven { torrent, labels });
        }
        if !options.seeding.is_inherited() {
            let limits = options.seeding;
            self.commands.trigger(SeedingGiven { torrent, limits });
        }
    }

    /// Finds the peers that a magnet link contains.
    fn find_linked(&mut self, torrent: Entity, source: &TorrentSource) {
        if let TorrentSource::InfoHash(unfetched) = source
            && !unfetched.peers.is_empty()
        {
            self.found.write(CandidatesFound {
                torrent,
                peers: unfetched.peers.iter().map(|peer| (*peer).into()).collect(),
                source: CandidateSource::MAGNET,
                informant: None,
            });
        }
    }

    fn new_torrent(&mut self, hashes: InfoHashes, name: Arc<str>, private: bool) -> Torrent {
        Torrent {
            hashes,
            name,
            peer_id: PeerId::ours(self.random.bytes()),
            tracker_key: self.random.number(),
            private,
            added: self.clock.now(),
        }
    }
}

/// Returns the command that pauses a torrent that is added as paused. The command waits for the decision whether the
/// torrent may use its files.
fn pause(torrent: InfoHash) -> PauseOrStart {
    let reply = Reply::ignored();
    PauseTorrent { torrent, reply }.into()
}

/// Returns the name of a torrent whose metadata is not known.
fn provisional_name(source: &TorrentSource, options: &AddOptions) -> Arc<str> {
    let given = match source {
        TorrentSource::InfoHash(unfetched) => unfetched.name.as_deref(),
        TorrentSource::Metainfo(_) => None,
    };
    let safe = options
        .name
        .as_deref()
        .or(given)
        .and_then(|name| safe_name(name.as_bytes(), MAX_COMPONENT_BYTES));
    safe.map_or_else(|| source.id().to_string().into(), |name| (*name).into())
}

/// The parts of a torrent that decide whether an add of it is over.
#[derive(QueryData)]
pub(super) struct Settled {
    torrent: &'static Torrent,
    lifecycle: &'static Lifecycle,
    storage: &'static Storage,
    state: &'static SessionState,
    opening: Option<&'static Opening>,
    known: Option<(&'static Content, &'static Have)>,
    choice: Option<&'static FileChoice>,
}

/// Answers the callers of an add when the torrent's session is durable, and continues torrents that wait for that.
pub(super) fn settle_adds(
    mut written: MessageReader<SessionWritten>,
    mut adds: ResMut<Adds>,
    mut preparing: Preparing,
    mut failed: MessageWriter<FailTorrent>,
    torrents: Query<Settled>,
) {
    for SessionWritten { torrent, result } in written.read() {
        let Ok(settled) = torrents.get(*torrent) else {
            continue;
        };
        let state = settled.state;
        if settled.lifecycle.is_stopping() || *settled.lifecycle == Lifecycle::Paused {
            // The files are closed, or will be. The next start examines them again.
            preparing.give_up(*torrent);
        }
        if settled.lifecycle.is_stopping() {
            continue;
        }
        match result {
            Ok(()) => {
                if state.is_durable() && !is_undecided(settled.lifecycle, settled.known.is_some(), settled.opening) {
                    adds.answer(*torrent, &Ok(settled.torrent.id()));
                }
                preparing.go_on(*torrent, settled.storage, state, || {
                    let (content, have) = settled.known?;
                    state.needs(settled.torrent.id(), &content.0, settled.choice, have)
                });
            }
            Err(reason) => {
                if adds.is_pending(*torrent) && !state.is_durable() {
                    let error = AddError::Unsaved(Unsaved::new(&settled.torrent.name, reason));
                    if adds.is_new(*torrent) {
                        adds.refuse(*torrent, settled.torrent.label(), error);
                        continue;
                    }
                    adds.answer(*torrent, &Err(error));
                }
                if preparing.give_up(*torrent) {
                    failed.write(FailTorrent {
                        torrent: *torrent,
                        reason: format!("its state is not saved: {reason}").into(),
                        remedy: Remedy::Wait,
                    });
                }
            }
        }
    }
}
