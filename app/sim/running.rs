//! A scenario as it happens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::commands::{AddOptions, AddTorrent, CommandQueue, Reply, ResumeAll, StopAll, StopError};
use ecs_torrent_components::torrent::{Have, Lifecycle, Torrent};
use ecs_torrent_engine::schedule::{Tick, TickSet};
use ecs_torrent_engine::sim::{
    Content, Crash, DiskFault, DiskOperation, Lasting, NewContent, NewNode, NodeId, SimTracker, Simulation,
};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::Block;
use ecs_torrent_systems::TorrentPlugins;

use super::hostile::HostilePeer;
use super::invariants::{InvariantsPlugin, Truth, Violations};
use super::outcome::{Outcome, Trouble};
use super::scenario::{Act, Line, Scenario, When, Who, address_of};

/// Every node's download folder.
const FOLDER: &str = "downloads";

/// Progress is noted, and what depends on it decided, so many times within the ideal time, and not more often than this.
const LOOKS: u32 = 200;
const LEAST_LOOK: Duration = Duration::from_millis(20);

/// What goes on after everybody has finished, so that what should be quiet can be seen to be.
const EPILOGUE: Duration = Duration::from_secs(5);

/// A stop takes at most that long (section "Stopping" of ARCHITECTURE.md), and a tick.
const STOP_LIMIT: Duration = Duration::from_millis(9_500);

/// Most announces of one node in a minute that are not started, completed or stopped.
const MAX_ANNOUNCES_PER_MINUTE: usize = 6;

pub(super) fn run(scenario: &Scenario) -> Outcome {
    let mut stage = Stage::new(scenario);
    stage.play();
    stage.outcome()
}

/// Tells how far an engine has got with the scenario's torrent.
#[derive(Clone, Copy)]
struct ProgressPlugin(InfoHash);

/// How far it has got.
#[derive(Resource, Debug, Clone)]
struct Progress {
    torrent: InfoHash,
    part: f64,
    completed: Option<Timestamp>,
    state: String,
}

impl Plugin for ProgressPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(Progress {
            torrent: self.0,
            part: 0.0,
            completed: None,
            state: "not there".into(),
        })
        .add_systems(Tick, note_progress.after(TickSet::Flush).before(TickSet::Reap));
    }
}

fn note_progress(
    clock: Res<Clock>,
    mut progress: ResMut<Progress>,
    changed: Query<(&Torrent, &Have, &Lifecycle), Or<(Changed<Have>, Changed<Lifecycle>)>>,
) {
    for (torrent, Have(have), lifecycle) in &changed {
        if torrent.id() != progress.torrent {
            continue;
        }
        progress.part = f64::from(have.count()) / f64::from(have.len());
        progress.state = format!("{lifecycle:?}");
        if have.is_full() {
            progress.completed.get_or_insert(clock.now());
        }
    }
}

/// Whether the bytes of a block are those of the torrent; mostly they lie in the same memory.
fn is_right(content: &Content, block: &Block) -> bool {
    let geometry = content.metainfo().info.geometry;
    if !geometry.contains(block.request) {
        return false;
    }
    let mut expected = content.slice(geometry.span(block.request));
    block.data.iter().all(|part| {
        let right = expected.split_to(part.len().min(expected.len()));
        std::ptr::eq(right.as_ptr(), part.as_ptr()) || right == part
    })
}

/// What a node is doing.
#[derive(Debug, Clone)]
enum State {
    /// Not there yet, or not there any more.
    Down,
    Up,
    /// Its stop is under way: since when, and where the answer will be.
    Stopping(Timestamp, StopAnswer),
}

type StopAnswer = Arc<Mutex<Option<Result<(), StopError>>>>;

struct Actor {
    node: NodeId,
    address: SocketAddr,
    state: State,
    progress: Progress,
    /// Times that it has begun.
    starts: usize,
}

struct Stage<'s> {
    scenario: &'s Scenario,
    sim: Simulation,
    content: Content,
    /// Torrents of one piece that lie on the first seed.
    idle: Vec<Content>,
    tracker: SimTracker,
    actors: BTreeMap<Who, Actor>,
    hostiles: Vec<HostilePeer>,
    /// Acts that have not come yet.
    acts: Vec<(When, Act)>,
    look: Duration,
    timeline: Vec<(Duration, String)>,
    history: Vec<(Duration, BTreeMap<Who, f64>)>,
    troubles: Vec<Trouble>,
    next_ip: usize,
    /// Pieces of sessions that were found not to be on the platter.
    suspects: BTreeSet<(Who, u32)>,
}

impl<'s> Stage<'s> {
    fn new(scenario: &'s Scenario) -> Self {
        let latency = scenario.path.latency;
        let mut sim = match scenario.is_traced {
            true => Simulation::new(scenario.seed, latency),
            false => Simulation::untraced(scenario.seed, latency),
        };
        sim.net().set_default_path(scenario.path);
        let tracker = sim.add_tracker(([10, 255, 0, 1], 80).into(), scenario.tracker.clone());
        let content = NewContent {
            trackers: vec![vec![tracker.http_url()]],
            seed: scenario.seed,
            ..scenario.torrent.clone()
        }
        .make();
        let idle = (0..scenario.idle_torrents).map(|number| {
            let new = NewContent {
                name: format!("idle {number}"),
                seed: number as u64,
                len: 1000,
                ..NewContent::default()
            };
            new.make()
        });
        let mut stage = Self {
            scenario,
            content,
            idle: idle.collect(),
            tracker,
            actors: BTreeMap::new(),
            hostiles: Vec::new(),
            acts: scenario.acts.clone(),
            look: (scenario.ideal() / LOOKS).max(LEAST_LOOK),
            timeline: Vec::new(),
            history: Vec::new(),
            troubles: Vec::new(),
            next_ip: 0,
            suspects: BTreeSet::new(),
            sim,
        };
        stage.people();
        stage
    }

    /// Adds everybody.
    fn people(&mut self) {
        let scenario = self.scenario;
        let mut number = 0;
        for group in &scenario.seeds {
            for _ in 0..group.count {
                self.add(Who::Seed(number), group.line, group.is_late);
                number += 1;
            }
        }
        let mut number = 0;
        for group in &scenario.leeches {
            for _ in 0..group.count {
                self.add(Who::Leech(number), group.line, group.is_late);
                number += 1;
            }
        }
        let victims: Vec<SocketAddr> = self.actors.values().map(|actor| actor.address).collect();
        for (number, (hostility, line)) in (1..).zip(&scenario.hostiles) {
            let address = SocketAddr::new(address_of(self.next_ip), 6881);
            self.next_ip += 1;
            let host = self.sim.add_host(address);
            self.sim.net().set_access(host.id(), line.access());
            let now = self.sim.now();
            let peer = HostilePeer::new(
                host,
                *hostility,
                &self.content,
                victims.clone(),
                now,
                scenario.seed ^ (number << 32),
            );
            self.hostiles.push(peer);
        }
    }

    fn add(&mut self, who: Who, line: Line, is_late: bool) {
        let ip = address_of(self.next_ip);
        self.next_ip += 1;
        let plugins = (
            TorrentPlugins,
            InvariantsPlugin,
            ProgressPlugin(self.content.info_hash()),
        );
        let new = NewNode::new(ip, self.scenario.settings.clone(), plugins)
            .access(line.access())
            .disk(self.scenario.disk);
        let node = self.sim.add((self.scenario.extend)(new));
        let address = self.sim.net().addresses(node)[0];
        let progress = self.sim.node(node).world().resource::<Progress>().clone();
        let actor = Actor {
            node,
            address,
            state: State::Up,
            progress,
            starts: 0,
        };
        self.actors.insert(who, actor);
        if let Who::Seed(number) = who {
            self.sim.put(node, FOLDER, &self.content);
            if number == 0 {
                for content in &self.idle {
                    self.sim.put(node, FOLDER, content);
                }
            }
        }
        match is_late {
            true => {
                self.sim.crash(node, Crash::Process);
                self.actor(who).state = State::Down;
            }
            false => self.begin(who),
        }
    }

    fn actor(&mut self, who: Who) -> &mut Actor {
        self.actors.get_mut(&who).expect("a node of the scenario")
    }

    fn node(&self, who: Who) -> NodeId {
        match who {
            Who::Hostile(number) => self.hostiles[number].id(),
            who => self.actors[&who].node,
        }
    }

    fn nodes(&self, whos: &[Who]) -> Vec<NodeId> {
        whos.iter().map(|who| self.node(*who)).collect()
    }

    /// What a person does who starts the program: resumes what there is, and adds the torrent.
    fn begin(&mut self, who: Who) {
        let node = self.node(who);
        let actor = self.actor(who);
        actor.state = State::Up;
        actor.starts += 1;
        let is_first = actor.starts == 1;
        let truth = {
            let view = self.sim.disk_view(node);
            let contents: BTreeMap<InfoHash, Content> = std::iter::once(&self.content)
                .chain(&self.idle)
                .map(|content| (content.info_hash(), content.clone()))
                .collect();
            let known = contents.clone();
            let truth = Truth::new(move |torrent, storage, piece| {
                let content = contents.get(&torrent.id());
                content.is_none_or(|content| view.holds(&storage.root, content, piece))
            });
            truth.with_bytes(move |torrent, block| {
                let content = known.get(&torrent.id());
                content.is_none_or(|content| is_right(content, block))
            })
        };
        let mut adds = vec![self.content.clone()];
        if is_first && who == Who::Seed(0) {
            adds.extend(self.idle.iter().cloned());
        }
        let world = self.sim.node(node).world_mut();
        world.insert_resource(truth);
        if !is_first {
            let reply = Reply::ignored();
            world
                .resource_mut::<CommandQueue<ResumeAll>>()
                .0
                .push_back(ResumeAll { reply });
        }
        for content in adds {
            let add = AddTorrent {
                metainfo: content.metainfo().clone(),
                options: AddOptions {
                    root: Some(FOLDER.into()),
                    ..AddOptions::default()
                },
                is_resumed: false,
                reply: Reply::ignored(),
            };
            world.resource_mut::<CommandQueue<AddTorrent>>().0.push_back(add);
        }
        self.sim.nudge(node);
    }

    fn now(&self) -> Duration {
        self.sim.now().since(Timestamp::ZERO)
    }

    /// Lets time pass until it is over.
    fn play(&mut self) {
        let limit = Timestamp::ZERO + self.scenario.limit();
        loop {
            self.act();
            self.take_stock();
            let now = self.sim.now();
            let is_over = self.is_done() && !self.acts.iter().any(|(when, _)| matches!(when, When::At(_)));
            if is_over || now >= limit {
                break;
            }
            let next_act = self.acts.iter().filter_map(|(when, _)| match when {
                When::At(time) => Some(Timestamp::ZERO + *time),
                _ => None,
            });
            let until = next_act.fold((now + self.look).min(limit), Timestamp::min);
            self.pass(until);
        }
        let end = self.sim.now() + EPILOGUE;
        self.pass(end);
        self.take_stock();
    }

    /// Lets time pass until then, the hostile peers with it.
    fn pass(&mut self, until: Timestamp) {
        if self.hostiles.is_empty() {
            while self.sim.step(until) {}
            return;
        }
        loop {
            let now = self.sim.now();
            let due = self.hostiles.iter_mut().map(|peer| peer.act(now));
            let due = due.fold(until, Timestamp::min);
            if !self.sim.step(due) && self.sim.now() >= until {
                return;
            }
        }
    }

    /// Carries out the acts whose time has come.
    fn act(&mut self) {
        let mut position = 0;
        while let Some((when, _)) = self.acts.get(position) {
            if self.has_come(*when) {
                let (_, act) = self.acts.remove(position);
                self.timeline.push((self.now(), format!("{act:?}")));
                self.carry_out(act);
            } else {
                position += 1;
            }
        }
    }

    fn has_come(&self, when: When) -> bool {
        match when {
            When::At(time) => time <= self.now(),
            When::HasSent(who, copies) => {
                let sent = self.sim.net().traffic(self.node(who)).sent_bytes;
                sent as f64 >= copies * self.content.bytes().len() as f64
            }
            When::Has(who, part) => self.actors[&who].progress.part >= part,
        }
    }

    fn carry_out(&mut self, act: Act) {
        match act {
            Act::Killed(who) => self.crash(who, Crash::Process),
            Act::PowerFails(who) => self.crash(who, Crash::Power),
            Act::Starts(who) => {
                if matches!(self.actors[&who].state, State::Down) {
                    let node = self.node(who);
                    self.sim.restart(node);
                    self.begin(who);
                }
            }
            Act::Stops(who) => self.stop(who),
            Act::Sleeps(who, time) => {
                let node = self.node(who);
                self.sim.suspend(node, time);
            }
            Act::ClockJumps(who, by) => {
                let node = self.node(who);
                self.sim.jump_clock(node, by);
            }
            Act::Partition(some, others) => {
                let (some, others) = (self.nodes(&some), self.nodes(&others));
                self.sim.net().partition(&some, &others);
            }
            Act::Heals => self.sim.net().heal(),
            Act::Reset(a, b) => drop(self.sim.net().reset(self.node(a), self.node(b))),
            Act::Sever(a, b) => drop(self.sim.net().sever(self.node(a), self.node(b))),
            Act::Moves(who) => {
                let ip = address_of(self.next_ip);
                self.next_ip += 1;
                self.sim.net().move_node(self.node(who), ip);
            }
            Act::StopsReading(who) => self.sim.net().set_reading(self.node(who), false),
            Act::ReadsAgain(who) => self.sim.net().set_reading(self.node(who), true),
            Act::DiskFills(who) => self.sim.disk(self.node(who)).set_capacity(Some(0)),
            Act::DiskHasRoom(who) => self.sim.disk(self.node(who)).set_capacity(None),
            Act::DiskFails(who, time) => {
                let until = Lasting::Until(self.sim.now() + time);
                for operation in [DiskOperation::Read, DiskOperation::Write, DiskOperation::Sync] {
                    self.sim.disk(self.node(who)).fail(operation, DiskFault::Io, until);
                }
            }
            Act::SyncsFail(who, count) => {
                let disk = self.sim.disk(self.node(who));
                disk.fail(DiskOperation::Sync, DiskFault::Io, Lasting::Next(count));
            }
            Act::DiskSlows(who, factor) => self.sim.disk(self.node(who)).set_slowness(factor),
            Act::LineIs(who, line) => self.sim.net().set_access(self.node(who), line.access()),
            Act::Tracker(mode) => self.tracker.set_mode(self.sim.now(), mode),
        }
    }

    fn crash(&mut self, who: Who, crash: Crash) {
        if matches!(self.actors[&who].state, State::Down) {
            return;
        }
        self.collect(who);
        let node = self.node(who);
        self.sim.crash(node, crash);
        let actor = self.actor(who);
        actor.state = State::Down;
        actor.progress.completed = None;
    }

    fn stop(&mut self, who: Who) {
        if !matches!(self.actors[&who].state, State::Up) {
            return;
        }
        let (node, now) = (self.node(who), self.sim.now());
        let answer = StopAnswer::default();
        let slot = answer.clone();
        let reply = Reply::new(move |result| *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result));
        let world = self.sim.node(node).world_mut();
        world
            .resource_mut::<CommandQueue<StopAll>>()
            .0
            .push_back(StopAll { reply });
        self.actor(who).state = State::Stopping(now, answer);
        self.sim.nudge(node);
    }

    /// Looks how far everybody is.
    fn take_stock(&mut self) {
        let whos: Vec<Who> = self.actors.keys().copied().collect();
        for who in whos {
            self.collect(who);
            self.look_after_stop(who);
        }
        let parts = self
            .actors
            .iter()
            .filter(|(who, _)| matches!(who, Who::Leech(_)))
            .map(|(who, actor)| (*who, actor.progress.part));
        let entry = (self.now(), parts.collect());
        self.history.push(entry);
    }

    /// Takes what an engine has noted.
    fn collect(&mut self, who: Who) {
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

    /// A session is believed at the next start: what it says must be on the platter.
    fn check_session(&mut self, who: Who, node: NodeId) {
        let Some(session) = self.sim.state(node).session(self.content.info_hash()) else {
            return;
        };
        let (files, bytes) = (self.content.files(), self.content.bytes());
        let Some(have) = session.have.to_set(session.pieces) else {
            let what = format!("{who}: its session has pieces that there are not");
            return self.troubles.push(Trouble::Other(what));
        };
        let missing = have.iter().find(|piece| {
            let span = self.content.piece_span(*piece);
            !self.sim.disk(node).holds_durably(FOLDER, files, bytes, span)
        });
        if let Some(piece) = missing
            && self.suspects.insert((who, piece))
        {
            self.troubles.push(Trouble::Other(format!(
                "{who}: its session has piece {piece}, which is not on the platter, at {:?}",
                self.now()
            )));
        }
    }

    fn look_after_stop(&mut self, who: Who) {
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

    /// Whether everybody who is there has everything.
    fn is_done(&self) -> bool {
        let mut leeches = self.actors.iter().filter(|(who, _)| matches!(who, Who::Leech(_)));
        leeches.all(|(_, actor)| match actor.state {
            State::Up => actor.progress.completed.is_some(),
            State::Down => true,
            State::Stopping(..) => false,
        })
    }

    fn outcome(mut self) -> Outcome {
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
            match actor.progress.completed {
                Some(at) => {
                    finished.insert(*who, at.since(Timestamp::ZERO));
                    if !self.sim.has(actor.node, FOLDER, &self.content) {
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
        Outcome {
            name: self.scenario.name.clone(),
            seed: self.scenario.seed,
            trace: self.sim.trace(),
            took: self.now(),
            ideal: self.scenario.ideal(),
            finished,
            progress: self.history,
            traffic,
            timeline: self.timeline,
            ticks,
            events: self.sim.event_count(),
            troubles: self.troubles,
        }
    }

    /// Nobody storms the tracker.
    fn check_announces(&mut self) {
        let minutes = (self.now().as_secs_f64() / 60.0).ceil() as usize;
        for (address, counts) in self.tracker.counts(self.content.info_hash()) {
            let starts = self.actors.values().find(|actor| actor.address == address);
            let starts = starts.map_or(1, |actor| actor.starts);
            // Each start announces once, and again where there was no answer.
            let most = (minutes + starts) * MAX_ANNOUNCES_PER_MINUTE;
            let count = counts.regular + counts.started;
            // What was heard and not answered as it should be is said again.
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
