//! The problems found in a run, and its outcome.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use ecs_torrent_components::session::Session;
use ecs_torrent_components::torrent::Content as Metadata;
use ecs_torrent_engine::ports::disk::PART_SUFFIX;
use ecs_torrent_engine::sim::{Content, Crash, NodeId};
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::Span;
use ecs_torrent_protocol::time::Timestamp;

use super::progress::Progress;
use super::{FOLDER, Stage, State};
use crate::sim::invariants::Violations;
use crate::sim::outcome::{Outcome, Trouble};
use crate::sim::scenario::{Act, Who};

/// Longest duration of a stop (section "Stopping" of ARCHITECTURE.md), plus a tick.
const STOP_LIMIT: Duration = Duration::from_millis(9_500);

/// Maximum number of regular announces per node and minute, without started, completed and stopped.
const MAX_ANNOUNCES_PER_MINUTE: usize = 6;

impl Stage<'_> {
    /// Collects an engine's violations and progress.
    pub(super) fn collect(&mut self, who: Who) {
        let actor = &self.actors[&who];
        if matches!(actor.state, State::Down) {
            return;
        }
        let node = actor.node;
        let world = self.sim.node(node).world_mut();
        let violations = world.resource_mut::<Violations>().take();
        let progress = world.resource::<Progress>().clone();
        let found = violations
            .into_iter()
            .map(|violation| Trouble::Violation(who, violation));
        self.troubles.extend(found);
        self.actor(who).progress = progress;
        self.check_session(who, node);
    }

    /// Checks that the pieces of a session are on stable storage, in the folder that it names, because the next start
    /// trusts the session.
    fn check_session(&mut self, who: Who, node: NodeId) {
        let torrent = self.content.info_hash();
        let Some(text) = self.sim.state(node).session_text(torrent) else {
            return;
        };
        let seen = self.seen_sessions.insert(who, text.clone());
        if seen.is_some_and(|seen| seen.as_ptr() == text.as_ptr()) {
            return;
        }
        let Some(session) = self.sim.state(node).session(torrent) else {
            return;
        };
        let content = self.content.renamed(&session.names());
        let (files, bytes) = (content.files(), content.bytes());
        let Some(have) = session.have.to_set(session.pieces) else {
            let what = format!("{who}: its session has pieces that there are not");
            return self.troubles.push(Trouble::Other(what));
        };
        let missing = have.iter().find(|piece| {
            let span = content.piece_span(*piece);
            !self.sim.disk(node).holds_durably(&session.root, files, bytes, span)
        });
        if let Some(piece) = missing
            && self.suspects.insert((who, piece))
        {
            self.troubles.push(Trouble::Other(format!(
                "{who}: its session has piece {piece}, which is not durable, at {:?}",
                self.now()
            )));
        }
        if session.part_suffix {
            self.check_suffixes(who, node, (&session.root, &content), &have);
        }
    }

    /// Checks that a file without the suffix of incomplete files is complete on stable storage, and that a file of
    /// which the session has all pieces has no suffix.
    fn check_suffixes(&mut self, who: Who, node: NodeId, (root, content): (&Path, &Content), have: &Bitfield) {
        let geometry = &content.metainfo().info.geometry;
        let (files, bytes) = (content.files(), content.bytes());
        for file in files.files().iter().filter(|file| file.is_stored() && file.len > 0) {
            let disk = self.sim.disk(node);
            let has = |suffix| disk.file_len(root.join(format!("{}{suffix}", file.path))).is_some();
            let span = Span {
                offset: file.offset,
                len: file.len as u32,
            };
            let mut pieces = geometry.pieces_of(file.offset..file.end());
            let what = match (has(""), has(PART_SUFFIX)) {
                (true, _) if !disk.holds_durably(root, files, bytes, span) => "has no suffix and is not complete",
                (_, true) if pieces.all(|piece| have.contains(piece)) => "has a suffix and is complete",
                _ => continue,
            };
            let what = format!("{who}: {} {what}, at {:?}", file.path, self.now());
            self.troubles.push(Trouble::Other(what));
        }
    }

    pub(super) fn look_after_stop(&mut self, who: Who) {
        let State::Stopping(since, answer) = self.actors[&who].state.clone() else {
            return;
        };
        let answer = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let took = self.sim.now().since(since);
        if let Some(result) = answer {
            self.timeline
                .push((self.now(), format!("{who} has stopped: {result:?}")));
            self.collect(who);
            self.crash(who, Crash::Process);
        } else if took > STOP_LIMIT + self.look {
            self.troubles
                .push(Trouble::Other(format!("{who} has not stopped after {took:?}")));
            self.crash(who, Crash::Process);
        }
    }

    pub(super) fn outcome(mut self) -> Outcome {
        let mut finished = BTreeMap::new();
        let mut traffic = BTreeMap::new();
        let mut ticks = 0;
        for (who, actor) in &self.actors {
            ticks += self.sim.tick_count(actor.node);
            let moved = self.sim.net().traffic(actor.node);
            traffic.insert(*who, (moved.sent_bytes, moved.received_bytes));
            let (Who::Leech(_), State::Up) = (who, &actor.state) else {
                continue;
            };
            if let Some(content) = self.missing_beside(actor.node)
                && !self.scenario.may_fail
            {
                let what = format!("{who} has not all of {}", content.metainfo().info.name);
                self.troubles.push(Trouble::Other(what));
            }
            match actor.progress.completed {
                Some(at) => {
                    finished.insert(*who, at.since(Timestamp::ZERO + actor.ahead));
                    let session = self.sim.state(actor.node).session(self.content.info_hash());
                    let names = session.as_ref().map(Session::names).unwrap_or_default();
                    let has_folder = self.scenario.settings.storage.incomplete_dir.is_some();
                    if has_folder && session.as_ref().is_some_and(|session| session.complete_root.is_some()) {
                        let what = format!("{who} is complete and not in its download folder");
                        self.troubles.push(Trouble::Other(what));
                    }
                    let root = session.map_or_else(|| PathBuf::from(FOLDER), |session| session.root);
                    if !self.sim.has(actor.node, root, &self.content.renamed(&names)) {
                        let what = format!("{who} says that it has everything, and has not");
                        self.troubles.push(Trouble::Other(what));
                    }
                }
                None if self.scenario.may_fail => {}
                None => {
                    let Progress { part, state, .. } = actor.progress.clone();
                    self.troubles.push(Trouble::Unfinished(*who, part, state));
                }
            }
        }
        self.check_announces();
        self.check_outsiders();
        Outcome {
            name: self.scenario.name.clone(),
            seed: self.scenario.seed,
            trace: self.sim.trace(),
            took: self.now(),
            ideal: self.scenario.ideal(),
            store_and_forward: self.scenario.store_and_forward(),
            finished,
            progress: self.history,
            traffic,
            timeline: self.timeline,
            ticks,
            events: self.sim.event_count(),
            troubles: self.troubles,
        }
    }

    /// Checks that bystanders have not learned the metadata of a private torrent.
    fn check_outsiders(&mut self) {
        let is_private = self.content.metainfo().info.private;
        let whos = self
            .actors
            .iter()
            .filter(|(who, actor)| is_private && matches!((who, &actor.state), (Who::Bystander(_), State::Up)));
        for (who, node) in whos.map(|(who, actor)| (*who, actor.node)).collect::<Vec<_>>() {
            let world = self.sim.node(node).world_mut();
            if world.query::<&Metadata>().iter(world).next().is_some() {
                let what = format!("{who} has the metadata of a private torrent");
                self.troubles.push(Trouble::Other(what));
            }
        }
    }

    /// Returns the number of times that a node's torrents are paused, or closed to be checked or moved.
    fn pause_count(&self, who: Who) -> usize {
        let is_pause = |act: &Act| match act {
            Act::Pauses(other) | Act::Rechecks(other) | Act::MovesFiles(other, _) | Act::RenamesFiles(other, _) => {
                *other == who
            }
            _ => false,
        };
        self.scenario.acts.iter().filter(|(_, act)| is_pause(act)).count()
    }

    /// Checks that no node announces too often.
    fn check_announces(&mut self) {
        let minutes = (self.now().as_secs_f64() / 60.0).ceil() as usize;
        for (address, counts) in self.tracker.counts(self.content.info_hash()) {
            let actor = self.actors.iter().find(|(_, actor)| actor.address == address);
            // A torrent that starts after a pause announces as after a start of its node.
            let starts = actor.map_or(1, |(who, actor)| actor.starts + self.pause_count(*who));
            // Each start announces once, and again after a missing answer.
            let most = (minutes + starts) * MAX_ANNOUNCES_PER_MINUTE;
            let count = counts.regular + counts.started;
            // An announce that the tracker received but did not answer correctly is repeated.
            let once = match self.scenario.acts.iter().any(|(_, act)| matches!(act, Act::Tracker(_))) {
                true => MAX_ANNOUNCES_PER_MINUTE * minutes,
                false => starts,
            };
            if count > most || counts.completed > once || counts.stopped > once {
                let what = format!("{address} announces too much: {counts:?} after {starts} starts");
                self.troubles.push(Trouble::Other(what));
            }
        }
    }
}
