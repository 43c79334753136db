//! An engine inside a Bevy program: commands and answers, and engine events, as messages of the host's world.
//!
//! [`EcsTorrentPlugin`] starts an engine and connects it to the host `App`. The engine keeps its own thread and its own
//! world: a frame of the host neither waits for the engine nor slows it down. The host writes [`TorrentCommand`]s, and
//! reads [`TorrentAnswer`]s and [`TorrentEvent`]s. Commands leave in `PostUpdate`, answers and events arrive in
//! `PreUpdate`.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use ecs_torrent::bevy_app::{App, ScheduleRunnerPlugin, Startup, Update};
//! use ecs_torrent::events::Event;
//! use ecs_torrent::host::{EcsTorrentPlugin, TorrentCommand, TorrentEvent};
//! use ecs_torrent::prelude::{MessageReader, MessageWriter, Settings};
//!
//! fn begin(mut commands: MessageWriter<TorrentCommand>) {
//!     commands.write(TorrentCommand::download("assets.torrent"));
//! }
//!
//! fn load_level(mut events: MessageReader<TorrentEvent>) {
//!     for TorrentEvent(event) in events.read() {
//!         if let Event::Completed(torrent) = event {
//!             println!("{torrent} is complete");
//!         }
//!     }
//! }
//!
//! App::new()
//!     // A runner: without one, `run` returns after one update. A game has one by its `DefaultPlugins`.
//!     .add_plugins(ScheduleRunnerPlugin::run_loop(Duration::from_secs(1) / 60))
//!     .add_plugins(EcsTorrentPlugin { settings: Settings::default() })
//!     .add_systems(Startup, begin)
//!     .add_systems(Update, load_level)
//!     .run();
//! ```
//!
//! The resource [`TorrentEngine`] gives access to everything else. `app/examples/bevy_host.rs` is a whole program.

use std::net::SocketAddr;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bevy_app::{App, AppExit, Last, Plugin, PostUpdate, PreUpdate};
use bevy_ecs::prelude::*;
use bevy_platform::cell::SyncCell;
use ecs_torrent_components::commands::{AddOptions, RemoveOptions, Removed};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::stats::{FileStats, TorrentStats};
use ecs_torrent_engine::mailbox::EngineGone;
use ecs_torrent_systems::TorrentPlugins;

use crate::error::Error;
use crate::events::{self, Event, Subscription, TryNextError};
use crate::id::TorrentId;
use crate::running::Engine;
use crate::source::Source;
use crate::torrents::Torrents;

/// Commands that may wait for their answers at the same time, as many as fit the engine's mailbox. A command beyond
/// that is answered with [`Error::Busy`].
const MAX_PENDING: usize = 1024;

/// Starts an engine with all of [`TorrentPlugins`] and connects it to a Bevy `App`.
///
/// When the host exits, the torrents are stopped in order, which takes as long as the settings allow for a stop (at
/// most 9 s by default). An engine that cannot start is reported by the message [`EngineEnded`].
///
/// For an engine with plugins of its own, start it with [`Engine::builder`] and insert it as [`TorrentEngine`] before
/// this plugin is added; `settings` is not used then.
#[derive(Debug, Clone, Default)]
pub struct EcsTorrentPlugin {
    /// The engine's settings.
    pub settings: Settings,
}

/// The engine of a Bevy program.
#[derive(Resource, Debug)]
pub struct TorrentEngine(Engine);

impl From<Engine> for TorrentEngine {
    fn from(engine: Engine) -> Self {
        Self(engine)
    }
}

impl Deref for TorrentEngine {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.0
    }
}

/// A command to the engine. Each one is answered by a [`TorrentAnswer`].
#[derive(Message, Debug, Clone)]
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "commands are few, and a box would burden each caller that adds a torrent"
)]
pub enum TorrentCommand {
    /// Adds a torrent, as [`Torrents::download_with`].
    Download {
        /// The torrent.
        source: Source,
        /// The options.
        options: AddOptions,
    },
    /// Adds addresses of possible peers, as [`Torrents::add_peers`].
    AddPeers {
        /// The torrent.
        torrent: TorrentId,
        /// The addresses.
        peers: Vec<SocketAddr>,
    },
    /// Gets the ids of all torrents, as [`Torrents::list`].
    List,
    /// Gets a torrent's state, as [`Torrents::stats`].
    GetStats(TorrentId),
    /// Gets a torrent's files, as [`Torrents::list_files`].
    GetFiles(TorrentId),
    /// Pauses a torrent, as [`Torrents::pause`].
    Pause(TorrentId),
    /// Pauses all torrents, as [`Torrents::pause_all`].
    PauseAll,
    /// Starts a paused or failed torrent, as [`Torrents::start`].
    Start(TorrentId),
    /// Starts all torrents, as [`Torrents::start_all`].
    StartAll,
    /// Stops a torrent in order, as [`Torrents::stop_and_serialize`].
    Stop(TorrentId),
    /// Stops all torrents, as [`Torrents::stop_all_and_serialize`].
    StopAll,
    /// Adds a stopped torrent again, as [`Torrents::resume`].
    Resume(TorrentId),
    /// Adds every torrent that has a saved session, as [`Torrents::resume_all`].
    ResumeAll,
    /// Adds every torrent that has a saved session and was not stopped by a user, as [`Torrents::restore`].
    Restore,
    /// Stops and forgets a torrent, as [`Torrents::remove`].
    Remove {
        /// The torrent.
        torrent: TorrentId,
        /// The options.
        options: RemoveOptions,
    },
}

impl TorrentCommand {
    /// Creates a command that adds a torrent with default options.
    #[must_use]
    pub fn download(source: impl Into<Source>) -> Self {
        Self::Download {
            source: source.into(),
            options: AddOptions::default(),
        }
    }

    async fn carry_out(self, torrents: Torrents) -> Result<Answer, Error> {
        Ok(match self {
            Self::Download { source, options } => Answer::Added(torrents.download_with(source, options).await?),
            Self::AddPeers { torrent, peers } => {
                torrents.add_peers(torrent, peers).await?;
                Answer::Done
            }
            Self::List => Answer::Listed(torrents.list().await?),
            Self::GetStats(torrent) => Answer::Stats(Box::new(torrents.stats(torrent).await?)),
            Self::GetFiles(torrent) => Answer::Files(torrents.list_files(torrent).await?),
            Self::Pause(torrent) => {
                torrents.pause(torrent).await?;
                Answer::Done
            }
            Self::PauseAll => {
                torrents.pause_all().await?;
                Answer::Done
            }
            Self::Start(torrent) => {
                torrents.start(torrent).await?;
                Answer::Done
            }
            Self::StartAll => {
                torrents.start_all().await?;
                Answer::Done
            }
            Self::Stop(torrent) => {
                torrents.stop_and_serialize(torrent).await?;
                Answer::Done
            }
            Self::StopAll => {
                torrents.stop_all_and_serialize().await?;
                Answer::Done
            }
            Self::Resume(torrent) => {
                torrents.resume(torrent).await?;
                Answer::Done
            }
            Self::ResumeAll => Answer::Resumed(torrents.resume_all().await?),
            Self::Restore => Answer::Resumed(torrents.restore().await?),
            Self::Remove { torrent, options } => Answer::Removed(torrents.remove(torrent, options).await?),
        })
    }
}

/// The engine's answer to a command.
#[derive(Message, Debug)]
pub struct TorrentAnswer {
    /// The command.
    pub command: TorrentCommand,
    /// The result of the command.
    pub result: Result<Answer, Error>,
}

/// The result of a command that succeeded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Answer {
    /// The torrent was added.
    Added(TorrentId),
    /// The command was carried out.
    Done,
    /// All torrents.
    Listed(Vec<TorrentId>),
    /// A torrent's state.
    Stats(Box<TorrentStats>),
    /// A torrent's files.
    Files(Vec<FileStats>),
    /// Number of resumed torrents.
    Resumed(usize),
    /// The deleted and kept files of a removed torrent.
    Removed(Removed),
}

/// An event in the engine.
#[derive(Message, Debug, Clone, PartialEq, Eq)]
pub struct TorrentEvent(pub Event);

/// The engine could not start, or has ended. Commands are answered with [`Error::EngineGone`] from then on.
#[derive(Message, Debug, Clone, PartialEq, Eq)]
pub struct EngineEnded {
    /// The reason, human-readable.
    pub reason: String,
}

type Pending = (
    TorrentCommand,
    Pin<Box<dyn Future<Output = Result<Answer, Error>> + Send>>,
);

/// The host's end of the connection to the engine.
#[derive(Resource)]
struct Connection {
    /// The engine's events; `None` after it has ended.
    events: Option<Subscription>,
    pending: SyncCell<Vec<Pending>>,
    /// Why the engine could not start, until it is reported.
    start_error: Option<String>,
}

impl Plugin for EcsTorrentPlugin {
    fn build(&self, app: &mut App) {
        let mut start_error = None;
        if !app.world().contains_resource::<TorrentEngine>() {
            let engine = Engine::builder()
                .plugins(TorrentPlugins)
                .settings(self.settings.clone());
            match engine.start() {
                Ok(engine) => {
                    app.insert_resource(TorrentEngine(engine));
                }
                Err(error) => start_error = Some(error.to_string()),
            }
        }
        let engine = app.world().get_resource::<TorrentEngine>();
        let connection = Connection {
            events: engine.map(|engine| engine.torrents().subscribe()),
            pending: SyncCell::new(Vec::new()),
            start_error,
        };
        app.insert_resource(connection)
            .add_message::<TorrentCommand>()
            .add_message::<TorrentAnswer>()
            .add_message::<TorrentEvent>()
            .add_message::<EngineEnded>()
            .add_systems(PreUpdate, (receive_answers, receive_events).chain())
            .add_systems(PostUpdate, send_commands)
            .add_systems(Last, stop_on_exit);
    }
}

/// Starts each command. It is polled once per frame, without a runtime: the engine's thread does the work.
fn send_commands(
    mut connection: ResMut<Connection>,
    engine: Option<Res<TorrentEngine>>,
    mut commands: MessageReader<TorrentCommand>,
    mut answers: MessageWriter<TorrentAnswer>,
) {
    for command in commands.read().cloned() {
        let pending = connection.pending.get();
        let answer = match &engine {
            None => Some(Err(Error::EngineGone(EngineGone))),
            Some(_) if pending.len() >= MAX_PENDING => Some(Err(Error::Busy)),
            Some(engine) => {
                let mut work = Box::pin(command.clone().carry_out(engine.torrents()));
                match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(result) => Some(result),
                    Poll::Pending => {
                        pending.push((command.clone(), work));
                        None
                    }
                }
            }
        };
        if let Some(result) = answer {
            answers.write(TorrentAnswer { command, result });
        }
    }
}

fn receive_answers(mut connection: ResMut<Connection>, mut answers: MessageWriter<TorrentAnswer>) {
    let mut context = Context::from_waker(Waker::noop());
    for (command, mut work) in std::mem::take(connection.pending.get()) {
        match work.as_mut().poll(&mut context) {
            Poll::Pending => connection.pending.get().push((command, work)),
            Poll::Ready(result) => {
                answers.write(TorrentAnswer { command, result });
            }
        }
    }
}

fn receive_events(
    mut connection: ResMut<Connection>,
    mut events: MessageWriter<TorrentEvent>,
    mut ended: MessageWriter<EngineEnded>,
) {
    if let Some(reason) = connection.start_error.take() {
        tracing::error!(reason, "the engine cannot start");
        ended.write(EngineEnded { reason });
    }
    // At most the capacity of the subscription, so that a busy engine cannot hold up a frame.
    for _ in 0..events::CAPACITY {
        let Some(subscription) = &mut connection.events else {
            return;
        };
        match subscription.try_next() {
            Ok(event) => {
                events.write(TorrentEvent(event));
            }
            Err(TryNextError::Empty) => return,
            Err(error @ TryNextError::Ended) => {
                connection.events = None;
                ended.write(EngineEnded {
                    reason: error.to_string(),
                });
            }
        }
    }
}

/// Stops the torrents in order before the host's world, and the engine with it, is dropped.
fn stop_on_exit(mut exits: MessageReader<AppExit>, engine: Option<Res<TorrentEngine>>) {
    let is_exiting = exits.read().count() > 0;
    if let Some(engine) = engine.filter(|_| is_exiting)
        && let Err(error) = engine.torrents().blocking().stop_all_and_serialize()
    {
        tracing::error!(%error, "a torrent was not stopped in order");
    }
}
