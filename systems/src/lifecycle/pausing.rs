//! Commands to pause, to start and to check torrents, carried out in the order in which they arrive.

use bevy_ecs::entity::EntityHashSet;
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::commands::{
    AboutTorrent, CheckScope, CommandQueue, MoveError, MoveTorrent, MovedFiles, PauseAll, PauseOrStart, PauseTorrent,
    RecheckError, RecheckTorrent, Reply, StartAll, StartTorrent, TorrentNotFound,
};
use ecs_torrent_components::lifecycle::{Blocked, Desired, Fault, Readiness};
use ecs_torrent_components::selection::FileSelection;
use ecs_torrent_components::session::MoveStage;
use ecs_torrent_components::torrent::{Content, Have, Lifecycle, Storage, Torrent, TorrentIndex};
use ecs_torrent_components::unverified::Unverified;
use ecs_torrent_components::wanted::FileChoice;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::Info;

use super::adds::Adds;
use super::failing::Retrier;
use super::moving::{Moves, file_move};
use super::opening::{Opener, Opening};
use super::starting::Starts;
use super::stop_requests::StopsInOrder;
use crate::ownership::Survey;
use crate::sessions::{SaveTorrent, SessionState};

/// A command about one torrent.
#[derive(Debug)]
pub(super) enum ForTorrent {
    Pause(PauseTorrent),
    Start(StartTorrent),
    Recheck(RecheckTorrent),
    Move(MoveTorrent),
}

impl AboutTorrent for ForTorrent {
    fn torrent(&self) -> InfoHash {
        match self {
            Self::Pause(pause) => pause.torrent,
            Self::Start(start) => start.torrent,
            Self::Recheck(recheck) => recheck.torrent,
            Self::Move(command) => command.torrent,
        }
    }
}

impl ForTorrent {
    /// Answers that the torrent does not exist.
    fn refuse(self) {
        let error = TorrentNotFound(self.torrent());
        match self {
            Self::Pause(pause) => pause.reply.send(Err(error.into())),
            Self::Start(start) => start.reply.send(Err(error.into())),
            Self::Recheck(recheck) => recheck.reply.send(Err(error.into())),
            Self::Move(command) => command.reply.send(Err(error.into())),
        }
    }
}

/// Returns whether torrents are to be paused or started.
pub(super) fn has_commands(arrived: Res<CommandQueue<PauseOrStart>>, queue: Res<CommandQueue<ForTorrent>>) -> bool {
    !arrived.0.is_empty() || !queue.0.is_empty()
}

/// The parts of a torrent that decide when it is paused or started.
#[derive(QueryData)]
#[query_data(mutable)]
pub(super) struct Commanded {
    entity: Entity,
    torrent: &'static Torrent,
    desired: &'static Desired,
    readiness: &'static Readiness,
    lifecycle: &'static Lifecycle,
    fault: &'static Fault,
    blocked: &'static Blocked,
    opening: Option<&'static Opening>,
    storage: &'static mut Storage,
    content: Option<&'static Content>,
    choice: Option<&'static FileChoice>,
    have: Option<&'static Have>,
    unverified: Option<&'static Unverified>,
    state: &'static mut SessionState,
}

/// The effects of the commands.
#[derive(SystemParam)]
pub(super) struct Effects<'w> {
    stops: ResMut<'w, StopsInOrder>,
    starts: ResMut<'w, Starts>,
    save: MessageWriter<'w, SaveTorrent>,
    retrier: Retrier<'w>,
    moves: ResMut<'w, Moves>,
    opener: Opener<'w>,
    survey: ResMut<'w, Survey>,
}

/// Begins pauses and starts. A command that has to wait holds up the later ones about the same torrent.
pub(super) fn take_pauses_and_starts(
    mut arrived: ResMut<CommandQueue<PauseOrStart>>,
    mut queue: ResMut<CommandQueue<ForTorrent>>,
    index: Res<TorrentIndex>,
    adds: Res<Adds>,
    mut effects: Effects,
    mut torrents: Query<Commanded>,
) {
    for command in arrived.0.drain(..) {
        let listed = || {
            let listed = torrents.iter().filter(|torrent| !torrent.desired.is_leaving());
            listed.map(|torrent| torrent.torrent.id()).collect()
        };
        queue.0.extend(expand(command, listed));
    }
    let is_leaving = |entity| torrents.get(entity).is_ok_and(|torrent| torrent.desired.is_leaving());
    let decided = adds.take_decided(&mut queue, &index, is_leaving);
    let mut waiting = EntityHashSet::default();
    for (command, listed) in decided {
        let Some(entity) = listed else {
            command.refuse();
            continue;
        };
        let left = match torrents.get_mut(entity) {
            Ok(mut torrent) if !waiting.contains(&entity) => effects.carry_out(&mut torrent, command),
            _ => Some(command),
        };
        if let Some(command) = left {
            waiting.insert(entity);
            queue.0.push_back(command);
        }
    }
}

/// Returns the commands about single torrents that a command stands for.
fn expand(command: PauseOrStart, listed: impl Fn() -> Vec<InfoHash>) -> Vec<ForTorrent> {
    let start = |torrent, reply| ForTorrent::Start(StartTorrent { torrent, reply });
    let pause = |torrent, reply| ForTorrent::Pause(PauseTorrent { torrent, reply });
    match command {
        PauseOrStart::Pause(command) => vec![ForTorrent::Pause(command)],
        PauseOrStart::Start(command) => vec![ForTorrent::Start(command)],
        PauseOrStart::Recheck(command) => vec![ForTorrent::Recheck(command)],
        PauseOrStart::Move(command) => vec![ForTorrent::Move(command)],
        PauseOrStart::PauseAll(PauseAll { reply }) => for_each(reply, listed(), pause),
        PauseOrStart::StartAll(StartAll { reply }) => for_each(reply, listed(), start),
    }
}

/// Creates a command for each torrent. The caller is answered when all are carried out.
fn for_each<E: Send + 'static>(
    reply: Reply<Result<(), E>>,
    torrents: Vec<InfoHash>,
    command: impl Fn(InfoHash, Reply<Result<(), E>>) -> ForTorrent,
) -> Vec<ForTorrent> {
    let replies = reply.split(torrents.len());
    let each = torrents.into_iter().zip(replies);
    each.map(|(torrent, reply)| command(torrent, reply)).collect()
}

impl Effects<'_> {
    /// Carries out a command, or returns it if it has to wait.
    fn carry_out(&mut self, torrent: &mut CommandedItem<'_, '_>, command: ForTorrent) -> Option<ForTorrent> {
        if let ForTorrent::Move(_) = command {
            self.survey.request(&self.opener.wakeup, self.opener.clock.now());
        }
        match command {
            ForTorrent::Pause(pause) if self.may_pause(torrent) => self.pause(torrent, pause),
            ForTorrent::Start(start) if self.may_start(torrent) => self.start(torrent, start),
            ForTorrent::Recheck(recheck) if self.may_recheck(torrent) => self.recheck(torrent, recheck),
            ForTorrent::Move(command) if self.may_move(torrent) => self.move_files(torrent, command),
            command => return Some(command),
        }
        None
    }

    /// Whether a pause can begin now: no stop is running, no start is being saved, and a new torrent is allowed to use
    /// its files.
    fn may_pause(&self, torrent: &CommandedItem<'_, '_>) -> bool {
        let is_undecided = *torrent.lifecycle == Lifecycle::Adding && torrent.opening.is_some_and(Opening::is_new);
        let entity = torrent.entity;
        let is_closing = self.stops.is_rechecking(entity) || self.stops.is_closing_for_move(entity);
        let is_busy = self.starts.is_starting(entity) || is_closing;
        !torrent.desired.is_leaving() && !is_undecided && !is_busy
    }

    fn pause(&mut self, torrent: &CommandedItem<'_, '_>, command: PauseTorrent) {
        if torrent.is_paused() {
            command.reply.send(Ok(()));
        } else {
            self.stops.pause(torrent.entity, command.reply);
        }
    }

    /// Whether a start can begin now: no stop or pause is running, or begins in this tick.
    fn may_start(&self, torrent: &CommandedItem<'_, '_>) -> bool {
        let is_closing = self.stops.is_pausing(torrent.entity)
            || self.stops.is_rechecking(torrent.entity)
            || self.stops.is_closing_for_move(torrent.entity);
        (*torrent.desired == Desired::Run || torrent.is_paused()) && !is_closing
    }

    /// Saves that a paused torrent is to run, also while it is checked and would be paused after that; tries a failed
    /// or blocked one again.
    fn start(&mut self, torrent: &mut CommandedItem<'_, '_>, command: StartTorrent) {
        if !torrent.is_paused() && torrent.has_obstacle() {
            self.retrier.retry_now(torrent.entity);
        }
        if !torrent.is_paused() && !torrent.state.is_paused() {
            command.reply.send(Ok(()));
            return;
        }
        torrent.state.set_paused(false);
        let torrent = torrent.entity;
        self.save.write(SaveTorrent { torrent });
        self.starts.add(torrent, command.reply);
    }

    /// Whether a check of data can begin now, or is known to be running: a pause or start that began before is
    /// over.
    fn may_recheck(&self, torrent: &CommandedItem<'_, '_>) -> bool {
        let is_pausing = self.stops.is_pausing(torrent.entity);
        self.stops.is_rechecking(torrent.entity) || (self.may_pause(torrent) && !is_pausing)
    }

    /// Lets the files of a torrent be closed, and then be opened and checked.
    fn recheck(&mut self, torrent: &CommandedItem<'_, '_>, command: RecheckTorrent) {
        let is_checking = torrent.state.needs_check() && *torrent.desired == Desired::Run && !torrent.has_obstacle();
        let name = torrent.torrent.name.clone();
        if is_checking || self.stops.is_rechecking(torrent.entity) {
            command.reply.send(Err(RecheckError::Running(name)));
            return;
        }
        let Some(content) = torrent.content else {
            command.reply.send(Err(RecheckError::NoMetadata(name)));
            return;
        };
        let pieces = match &command.scope {
            CheckScope::All => None,
            CheckScope::Files(selection) => Some(pieces_of(selection, &content.0.info)),
            CheckScope::Unverified => match torrent.unverified {
                Some(Unverified(pieces)) => Some(pieces.clone()),
                None => {
                    command.reply.send(Err(RecheckError::Verified(name)));
                    return;
                }
            },
        };
        match pieces {
            Some(pieces) if pieces.is_empty() => command.reply.send(Err(RecheckError::NothingSelected(name))),
            pieces => self.stops.recheck(torrent.entity, pieces, command.reply),
        }
    }
}

/// Returns the pieces that have bytes of selected files.
fn pieces_of(selection: &FileSelection, info: &Info) -> Bitfield {
    let mut pieces = Bitfield::new(info.geometry.piece_count());
    let selected = info.files.files().iter().zip(selection.selected(&info.files));
    for (file, _) in selected.filter(|(file, is_selected)| *is_selected && file.is_stored() && file.has_bytes()) {
        for piece in info.geometry.pieces_of(file.offset..file.end()) {
            pieces.insert(piece);
        }
    }
    pieces
}

impl Effects<'_> {
    /// Whether a move can begin now: no pause, check or start is being saved, the session is loaded, and the files of
    /// all torrents are known.
    fn may_move(&self, torrent: &CommandedItem<'_, '_>) -> bool {
        let is_known = self.survey.is_done() && (torrent.content.is_some() || torrent.state.is_loaded());
        is_known && self.may_pause(torrent) && !self.stops.is_pausing(torrent.entity)
    }

    /// Lets the disk check whether the files can be moved, or gives up an unfinished move to another folder.
    fn move_files(&mut self, torrent: &mut CommandedItem<'_, '_>, mut command: MoveTorrent) {
        let (name, entity) = (torrent.torrent.name.clone(), torrent.entity);
        let Some(content) = torrent.content else {
            self.place_unfetched(torrent, command);
            return;
        };
        let files = &content.0.info.files;
        match std::mem::take(&mut command.names).checked(files) {
            Ok(names) => command.names = names,
            Err(error) => {
                command.reply.send(Err(MoveError::BadName { name, error }));
                return;
            }
        }
        let root = command.root.clone().unwrap_or_else(|| torrent.storage.root.clone());
        let is_here = root == torrent.storage.root && command.names.is_empty();
        match torrent.state.moving() {
            Some(moving) if is_here && matches!(moving.stage, MoveStage::Copying | MoveStage::Undoing) => {
                torrent.state.undo_move();
                self.moves.interrupt(entity, &name);
                self.moves.add(entity, command.reply, false);
                self.stops.close_for_move(entity);
            }
            Some(_) => command.reply.send(Err(MoveError::Running(name))),
            None if self.moves.is_checking(entity) => command.reply.send(Err(MoveError::Running(name))),
            None if is_here => command.reply.send(Ok(MovedFiles {
                root,
                ..MovedFiles::default()
            })),
            None => {
                let held = torrent.have.map(|have| Bitfield::clone(have)).unwrap_or_default();
                let id = torrent.torrent.id();
                let needs = torrent.state.needs(id, &content.0, torrent.choice, &held);
                let place = (&*root, command.names.table(files));
                let moving = file_move(&torrent.storage, place, files, &torrent.state, needs);
                match command.is_there {
                    true => self.moves.find(entity, command, moving, &mut self.opener),
                    false => self.moves.check(entity, command, moving, &mut self.opener),
                }
            }
        }
    }
}

impl Effects<'_> {
    /// Changes the download folder of a torrent whose files are not known yet. The caller is answered when that is
    /// durable.
    fn place_unfetched(&mut self, torrent: &mut CommandedItem<'_, '_>, command: MoveTorrent) {
        let (name, entity) = (torrent.torrent.name.clone(), torrent.entity);
        let MoveTorrent { root, names, reply, .. } = command;
        let Some(root) = root.filter(|_| names.is_empty()) else {
            reply.send(Err(MoveError::NoMetadata(name)));
            return;
        };
        if self.moves.is_running(entity) {
            reply.send(Err(MoveError::Running(name)));
            return;
        }
        torrent.storage.root = root;
        torrent.state.record_addition();
        self.save.write(SaveTorrent { torrent: entity });
        self.moves.add(entity, reply, true);
    }
}

impl CommandedItem<'_, '_> {
    /// Whether the torrent is paused, and not only about to be.
    fn is_paused(&self) -> bool {
        *self.desired == Desired::Pause && *self.readiness == Readiness::Closed
    }

    /// Whether the torrent has failed, or waits for a resource.
    fn has_obstacle(&self) -> bool {
        self.fault.0.is_some() || self.blocked.0.is_some()
    }
}
