//! The run of a scenario.

mod nodes;
mod progress;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_components::commands::{
    CheckScope, CommandQueue, MoveTorrent, PauseAll, PauseOrStart, RecheckTorrent, Reply, StartAll, StopAll, StopError,
};
use ecs_torrent_components::names::NewNames;
use ecs_torrent_engine::sim::{
    Content, Crash, DiskFault, DiskOperation, Lasting, NewContent, NodeId, SimTracker, Simulation,
};
use ecs_torrent_protocol::time::Timestamp;

use self::progress::Progress;
use super::hostile::HostilePeer;
use super::outcome::{Outcome, Trouble};
use super::scenario::{Act, Look, Scenario, When, Who, address_of};

/// Download folder of every node.
const FOLDER: &str = "downloads";

/// Number of times within the ideal time that progress is recorded and conditional acts are checked, at intervals of at
/// least [`LEAST_LOOK`].
const LOOKS: u32 = 200;
const LEAST_LOOK: Duration = Duration::from_millis(20);

/// Bytes of a torrent in addition to the scenario's.
const COMPANION_BYTES: usize = 200_000;

/// Time simulated after every leecher has finished, to check that idle engines are idle.
const EPILOGUE: Duration = Duration::from_secs(5);

impl Scenario {
    /// Runs the scenario.
    #[must_use]
    pub fn run(&self) -> Outcome {
        let mut stage = Stage::new(self);
        stage.play();
        stage.outcome()
    }
}

/// State of a node.
#[derive(Debug, Clone)]
enum State {
    /// Not started yet, or not running anymore.
    Down,
    Up,
    /// Stopping: start time of the stop, and the slot for its result.
    Stopping(Timestamp, StopAnswer),
}

type StopAnswer = Arc<Mutex<Option<Result<(), StopError>>>>;

struct Actor {
    node: NodeId,
    address: SocketAddr,
    state: State,
    progress: Progress,
    /// Number of starts.
    starts: usize,
    /// Time by which the node's clock jumped ahead before the node finished.
    ahead: Duration,
}

struct Stage<'s> {
    scenario: &'s Scenario,
    sim: Simulation,
    content: Content,
    /// Torrents of one piece on the first seed.
    idle: Vec<Content>,
    /// Public torrents in addition to the scenario's, on all seeds and leechers.
    companions: Vec<Content>,
    tracker: SimTracker,
    actors: BTreeMap<Who, Actor>,
    hostiles: Vec<HostilePeer>,
    hostile_nodes: Vec<NodeId>,
    /// Acts still to be performed.
    acts: Vec<(When, Act)>,
    look: Duration,
    timeline: Vec<(Duration, String)>,
    /// Length of the timeline that the scenario's watcher has seen.
    reported: usize,
    history: Vec<(Duration, BTreeMap<Who, f64>)>,
    troubles: Vec<Trouble>,
    next_ip: usize,
    /// Pieces of sessions that were found missing on stable storage.
    suspects: BTreeSet<(Who, u32)>,
    /// Sessions that were compared with stable storage since it last lost data.
    seen_sessions: BTreeMap<Who, Bytes>,
}

impl<'s> Stage<'s> {
    fn new(scenario: &'s Scenario) -> Self {
        let latency = scenario.path.latency;
        let mut sim = match scenario.is_traced {
            true => Simulation::new(scenario.seed, latency),
            false => Simulation::untraced(scenario.seed, latency),
        };
        sim.set_tick_quantum(scenario.tick_quantum, scenario.threads);
        sim.net().set_default_path(scenario.path);
        let tracker = sim.add_tracker(([10, 255, 0, 1], 80).into(), scenario.tracker.clone());
        let content = NewContent {
            trackers: match scenario.is_trackerless {
                true => vec![],
                false => vec![vec![tracker.http_url()]],
            },
            seed: scenario.seed,
            ..scenario.torrent.clone()
        }
        .make();
        let others = |count, name, len| {
            let make = move |number| {
                let new = NewContent {
                    name: format!("{name} {number}"),
                    seed: number as u64,
                    len,
                    ..NewContent::default()
                };
                new.make()
            };
            (0..count).map(make).collect()
        };
        let mut stage = Self {
            scenario,
            content,
            idle: others(scenario.idle_torrents, "idle", 1000),
            companions: others(scenario.companions, "beside", COMPANION_BYTES),
            tracker,
            actors: BTreeMap::new(),
            hostiles: Vec::new(),
            hostile_nodes: Vec::new(),
            acts: scenario.acts.clone(),
            look: (scenario.ideal() / LOOKS).max(LEAST_LOOK),
            timeline: Vec::new(),
            reported: 0,
            history: Vec::new(),
            troubles: Vec::new(),
            next_ip: 0,
            suspects: BTreeSet::new(),
            seen_sessions: BTreeMap::new(),
            sim,
        };
        stage.spawn_nodes();
        if scenario.is_local {
            let nodes: Vec<NodeId> = stage.actors.values().map(|actor| actor.node).collect();
            stage.sim.net().set_local_network(&nodes);
        }
        stage
    }

    fn actor(&mut self, who: Who) -> &mut Actor {
        self.actors.get_mut(&who).expect("a node of the scenario")
    }

    fn node(&self, who: Who) -> NodeId {
        match who {
            Who::Hostile(number) => self.hostiles[number].id(),
            Who::HostileNode(number) => self.hostile_nodes[number],
            who => self.actors[&who].node,
        }
    }

    fn nodes(&self, whos: &[Who]) -> Vec<NodeId> {
        whos.iter().map(|who| self.node(*who)).collect()
    }

    fn now(&self) -> Duration {
        self.sim.now().since(Timestamp::ZERO)
    }

    /// Runs the simulation until the scenario is over.
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

    /// Runs the simulation, including hostile peers, until the given time.
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

    /// Performs the acts that are due.
    fn act(&mut self) {
        let mut position = 0;
        while let Some((when, _)) = self.acts.get(position) {
            if self.has_come(*when) {
                let (_, act) = self.acts.remove(position);
                self.timeline.push((self.now(), act.to_string()));
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
            Act::Pauses(who) => {
                let reply = Reply::ignored();
                self.send(who, PauseOrStart::from(PauseAll { reply }));
            }
            Act::Unpauses(who) => {
                let reply = Reply::ignored();
                self.send(who, PauseOrStart::from(StartAll { reply }));
            }
            Act::Rechecks(who) => {
                let command = RecheckTorrent {
                    torrent: self.content.info_hash(),
                    scope: CheckScope::All,
                    reply: Reply::ignored(),
                };
                self.send(who, PauseOrStart::from(command));
            }
            Act::MovesFiles(who, number) => {
                let root = match number {
                    0 => FOLDER.into(),
                    number => format!("{FOLDER}-{number}").into(),
                };
                self.move_files(who, Some(root), NewNames::default());
            }
            Act::RenamesFiles(who, number) => self.move_files(who, None, self.names(number)),
            Act::Sleeps(who, time) => {
                let node = self.node(who);
                self.sim.suspend(node, time);
            }
            Act::ClockJumps(who, by) => {
                let node = self.node(who);
                self.sim.jump_clock(node, by);
                let actor = self.actor(who);
                if actor.progress.completed.is_none() {
                    actor.ahead += by;
                }
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
                use DiskOperation::{Move, Read, Sync, Write};
                for operation in [Read, Write, Sync, Move] {
                    self.sim.disk(self.node(who)).fail(operation, DiskFault::Io, until);
                }
            }
            Act::SyncsFail(who, count) => {
                let disk = self.sim.disk(self.node(who));
                disk.fail(DiskOperation::Sync, DiskFault::Io, Lasting::Next(count));
            }
            Act::DiskSlows(who, factor) => self.sim.disk(self.node(who)).set_slowness(factor),
            Act::LinkIs(who, link) => self.sim.net().set_access(self.node(who), link.access()),
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
        self.seen_sessions.remove(&who);
        let actor = self.actor(who);
        actor.state = State::Down;
        actor.progress.completed = None;
    }

    fn stop(&mut self, who: Who) {
        if !matches!(self.actors[&who].state, State::Up) {
            return;
        }
        let now = self.sim.now();
        let answer = StopAnswer::default();
        let slot = answer.clone();
        let reply = Reply::new(move |result| *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result));
        let until_resumed = false;
        self.send(who, StopAll { until_resumed, reply });
        self.actor(who).state = State::Stopping(now, answer);
    }

    /// Sends a command to a node, unless the node is down.
    fn send<C: Send + Sync + 'static>(&mut self, who: Who, command: C) {
        if matches!(self.actors[&who].state, State::Down) {
            return;
        }
        let node = self.node(who);
        let world = self.sim.node(node).world_mut();
        world.resource_mut::<CommandQueue<C>>().0.push_back(command);
        self.sim.nudge(node);
    }

    /// Records the progress of all nodes.
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
        let (at, parts) = (self.now(), parts.collect());
        (self.scenario.watch)(&Look {
            at,
            parts: &parts,
            events: &self.timeline[self.reported..],
        });
        self.reported = self.timeline.len();
        self.history.push((at, parts));
    }

    /// Returns whether every running leecher has finished.
    fn is_done(&self) -> bool {
        let mut leeches = self.actors.iter().filter(|(who, _)| matches!(who, Who::Leech(_)));
        leeches.all(|(_, actor)| match actor.state {
            State::Up => actor.progress.completed.is_some() && self.missing_beside(actor.node).is_none(),
            State::Down => true,
            State::Stopping(..) => false,
        })
    }

    fn move_files(&mut self, who: Who, root: Option<PathBuf>, names: NewNames) {
        let command = MoveTorrent {
            torrent: self.content.info_hash(),
            root,
            names,
            is_there: false,
            reply: Reply::ignored(),
        };
        self.send(who, PauseOrStart::from(command));
    }

    /// Returns other names for the torrent and its first file, or the names of the metainfo for 0.
    fn names(&self, number: usize) -> NewNames {
        let info = &self.content.metainfo().info;
        let first = info.files.files().first().and_then(|file| file.path.split_once('/'));
        let first = first.map(|(_, below)| match number {
            0 => below.to_owned(),
            number => format!("renamed-{number}/{below}"),
        });
        NewNames {
            name: Some(match number {
                0 => info.name.clone(),
                number => format!("{}-{number}", info.name),
            }),
            files: first.map(|path| (0, path)).into_iter().collect(),
        }
    }

    /// Returns an additional torrent that a node lacks.
    fn missing_beside(&self, node: NodeId) -> Option<&Content> {
        let mut companions = self.companions.iter();
        companions.find(|content| !self.sim.has(node, FOLDER, content))
    }
}
