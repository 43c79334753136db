//! `download` and `seed`: run an engine for the duration of the command.

mod board;
#[cfg(feature = "daemon")]
mod handing;
mod report;
mod saved;
mod state_dirs;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use ecs_torrent::components::selection::FileSelection;
use ecs_torrent::components::wanted::PieceOrder;
use ecs_torrent::events::{Event, Subscription};
use ecs_torrent::folders::check_writable;
use ecs_torrent::protocol::magnet::{Magnet, MutableLink};
use ecs_torrent::{AddOptions, Settings, Source, Torrents};
use futures_util::future::join_all;

use self::report::Reporter;
pub(super) use self::report::describe;
use self::state_dirs::StateDirs;
use super::choice::ChoiceArgs;
use super::limits::LimitArgs;
use super::output::Screen;
use super::peers::{self, ListenArgs};
use super::placement::PlacementArgs;
use super::searching::Ways;
use super::signals::Signals;
use super::{CliError, ExitCodes, Outcome, verify};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent download linux.torrent -o ~/iso --exit-on-complete
  ecs-torrent download a.torrent b.torrent --peer 192.0.2.7:6881
  ecs-torrent download 'magnet:?xt=urn:btih:...' -o ~/iso
  ecs-torrent download 'magnet:?xs=urn:btpk:...' --exit-on-complete
  ecs-torrent download album.torrent --select '*.flac' --files 0,3-5
  ecs-torrent download a.torrent --json | jq 'select(.event == \"complete\")'

Exit codes:
  0  all torrents are complete
  1  an error occurred
  2  the command line is invalid
  7  interrupted before all were complete; the same command continues")]
pub(super) struct DownloadArgs {
    /// Torrent files and magnet links.
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<PathBuf>,
    /// Download folder.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    #[command(flatten)]
    placement: PlacementArgs,
    #[command(flatten)]
    choice: ChoiceArgs,
    /// Exit when all wanted files are complete, instead of seeding until interrupted.
    #[arg(long)]
    exit_on_complete: bool,
    #[command(flatten)]
    network: NetworkArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  ecs-torrent seed album.torrent --data ~/music --listen 0.0.0.0:6881")]
pub(super) struct SeedArgs {
    /// Torrent files.
    #[arg(required = true, value_name = "TORRENT")]
    torrents: Vec<PathBuf>,
    /// The folder that holds the torrents' files and folders.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    #[command(flatten)]
    network: NetworkArgs,
}

/// Options of both commands.
#[derive(Debug, Args)]
struct NetworkArgs {
    /// Peer to connect to; may be repeated.
    #[arg(long = "peer", value_name = "HOST:PORT")]
    peers: Vec<String>,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    limits: LimitArgs,
    /// Folder for the state of torrents between runs. Default: .ecs_torrent, or one beside it while another engine uses
    /// that. A daemon that uses the folder gets the torrents of `download`.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Print errors only.
    #[arg(short, long)]
    quiet: bool,
    /// Print one JSON object per line. Events: added, metadata, progress, complete, blocked, restarting, interrupted,
    /// error.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

pub(super) async fn download(args: DownloadArgs, screen: Screen) -> Result<Outcome, CliError> {
    args.placement.check(args.sources.len())?;
    let selected = Selected {
        select: args.choice.selection(args.sources.len())?,
        order: args.choice.order(),
        choice: Some(args.choice),
        sources: args.sources,
        root: args.output,
        placement: Some(args.placement),
        require_complete: false,
        exit_on_complete: args.exit_on_complete,
    };
    run(selected, args.network, screen).await
}

pub(super) async fn seed(args: SeedArgs, screen: Screen) -> Result<Outcome, CliError> {
    if !args.data.is_dir() {
        return Err(CliError::Other(format!("{}: not a folder", args.data.display())));
    }
    for torrent in &args.torrents {
        let metainfo = Source::from(torrent.as_path()).load()?;
        if let Some(error) = verify::data_instead(&args.data, &metainfo.info.name) {
            return Err(CliError::Other(error));
        }
    }
    let selected = Selected {
        select: FileSelection::default(),
        order: PieceOrder::default(),
        choice: None,
        sources: args.torrents,
        root: args.data,
        placement: None,
        require_complete: true,
        exit_on_complete: false,
    };
    run(selected, args.network, screen).await
}

impl DownloadArgs {
    pub(super) fn is_quiet(&self) -> bool {
        self.network.quiet
    }
}

impl SeedArgs {
    pub(super) fn is_quiet(&self) -> bool {
        self.network.quiet
    }
}

struct Selected {
    select: FileSelection,
    order: PieceOrder,
    /// The options from which the two come.
    #[cfg_attr(not(feature = "daemon"), allow(dead_code, reason = "a daemon gets them"))]
    choice: Option<ChoiceArgs>,
    sources: Vec<PathBuf>,
    root: PathBuf,
    placement: Option<PlacementArgs>,
    require_complete: bool,
    exit_on_complete: bool,
}

async fn run(selected: Selected, network: NetworkArgs, screen: Screen) -> Result<Outcome, CliError> {
    // Checks the whole command before starting anything.
    let read = |path: &PathBuf| {
        let source = Source::from(path.as_path());
        match source.link()? {
            Some(link) => Ok(Source::from(link)),
            None => source.read().map(Source::from),
        }
    };
    let sources = selected
        .sources
        .iter()
        .map(read)
        .collect::<Result<Vec<_>, ecs_torrent::Error>>()?;
    let peers = peers::resolve("--peer", &network.peers)?;
    let placement = selected.placement.as_ref();
    let into = placement.and_then(|placement| placement.into.clone());
    let root = into
        .as_ref()
        .map_or(selected.root.clone(), |into| selected.root.join(into));
    if !selected.require_complete {
        for source in &sources {
            let name = placement.and_then(|placement| placement.name.clone());
            check_writable(&root, &name.unwrap_or_else(|| name_of(source)))?;
        }
    }
    let mut settings = Settings::default();
    let state_dirs = StateDirs::new(network.state_dir.clone(), &sources);
    let mut signals = Signals::new()?;
    signals.set_code(ExitCodes::INTERRUPTED);
    #[cfg(feature = "daemon")]
    if !selected.require_complete && handing::has_daemon(state_dirs.first()) {
        let given = (sources, peers.as_slice(), state_dirs.first());
        return handing::hand_over(&selected, &network, given, &screen, &mut signals).await;
    }
    network.listen.apply(
        &mut settings.net,
        &mut settings.dht,
        &mut settings.lsd,
        &mut settings.pex,
    );
    network.limits.apply(&mut settings.limits);
    let ways = Ways::of(&settings);
    let usual = state_dirs.first().to_owned();
    let (engine, state_dir) = state_dirs.start(settings)?;
    if state_dir != usual && !network.quiet {
        let (usual, own) = (usual.display(), state_dir.display());
        screen.note(format_args!(
            "another engine uses {usual}; this one keeps its state in {own}"
        ));
    }
    let torrents = engine.torrents();
    let mut events = torrents.subscribe();
    let mut reporter = Reporter::new(screen, network.quiet, network.json, absolute(&state_dir)?, ways);
    sources.iter().for_each(|source| reporter.warn(source, &peers));
    let add_all = async {
        for source in sources {
            let options = AddOptions {
                root: Some(selected.root.clone()),
                into: into.clone(),
                name: placement.and_then(|placement| placement.name.clone()),
                overwrite: placement.is_some_and(|placement| placement.overwrite),
                peers: peers.clone(),
                select: selected.select.clone(),
                order: selected.order,
                require_complete: selected.require_complete,
                ..AddOptions::default()
            };
            let source = find_torrent(source, &torrents, &reporter).await?;
            let id = torrents.download_with(source, options).await?;
            reporter.added(&torrents.stats(id).await?, &root);
        }
        Ok::<(), CliError>(())
    };
    let mut interrupted = tokio::select! {
        result = add_all => { result?; false }
        () = signals.next() => true,
    };
    if !interrupted {
        reporter.listening(engine.local_addresses());
        interrupted = follow(&selected, &torrents, &mut events, &mut reporter, &mut signals).await?;
    }
    if interrupted {
        // Reports the bytes missing now, not those missing when the last line was printed.
        tokio::select! {
            result = update(&torrents, &mut events, &mut reporter) => result?,
            () = signals.next() => {}
        }
    }
    let may_be_incomplete = interrupted && !selected.require_complete;
    if !may_be_incomplete || reporter.all_complete() {
        signals.set_code(ExitCodes::DONE);
    }
    reporter.stopping();
    let stopped = stop(&torrents, &mut signals).await;
    reporter.end();
    if may_be_incomplete {
        // Pieces and blocks that had arrived are stored during the stop.
        reporter.read_saved();
    }
    let is_incomplete = may_be_incomplete && !reporter.all_complete();
    if is_incomplete {
        reporter.interrupted();
    }
    stopped?;
    Ok(match (reporter.any_failed(), is_incomplete) {
        (true, _) => Outcome::Failed,
        (false, true) => Outcome::Interrupted,
        (false, false) => Outcome::Done,
    })
}

/// Returns the name of a torrent's file or folder; for a link with a public key, the target by which the DHT knows it.
fn name_of(source: &Source) -> String {
    match source {
        Source::Metainfo(metainfo) => metainfo.info.name.clone(),
        Source::Link(link) => link.target().to_string(),
        source => source.clone().read().map_or_else(|_| String::new(), |read| read.name()),
    }
}

/// Returns the torrent that a link with a public key (BEP 46) names now. Waits until a node of the DHT knows it.
async fn find_torrent(source: Source, torrents: &Torrents, reporter: &Reporter) -> Result<Source, CliError> {
    let Some(link) = source.link()? else {
        return Ok(source);
    };
    reporter.searching(&link);
    let unknown = || reporter.note(UNKNOWN_KEY);
    Ok(named_torrent(&link, torrents, unknown).await?.into())
}

/// Time after which the user is notified that nobody knows the torrent of a key yet.
const PATIENCE: Duration = Duration::from_secs(10);

/// The notice.
pub(super) const UNKNOWN_KEY: &str = "no node of the DHT knows the torrent of this key yet; the search goes on";

/// Returns the magnet link of the torrent that a link with a public key names now. Waits until a node of the DHT knows
/// it, and calls `unknown` if that takes long.
pub(super) async fn named_torrent(
    link: &MutableLink,
    torrents: &Torrents,
    unknown: impl Fn(),
) -> Result<Magnet, CliError> {
    let dht = torrents.dht();
    let mut search = pin!(dht.next_torrent(link, None, Duration::ZERO));
    let named = tokio::select! {
        named = &mut search => named,
        () = tokio::time::sleep(PATIENCE) => {
            unknown();
            search.await
        }
    };
    Ok(Magnet::from(named?.torrent))
}

/// Stops all torrents in order: peers and trackers are notified, and sessions are saved. A signal ends the wait.
pub(super) async fn stop(torrents: &Torrents, signals: &mut Signals) -> Result<(), ecs_torrent::Error> {
    tokio::select! {
        stopped = torrents.stop_all_and_serialize() => stopped,
        () = signals.next() => Ok(()),
    }
}

/// Reports progress and events until there is nothing left to do or a signal arrives. Returns true for a signal.
async fn follow(
    selected: &Selected,
    torrents: &Torrents,
    events: &mut Subscription,
    reporter: &mut Reporter,
    signals: &mut Signals,
) -> Result<bool, CliError> {
    let mut clock = tokio::time::interval(reporter.interval());
    loop {
        tokio::select! {
            _ = clock.tick() => {}
            event = events.next() => match event {
                Some(Event::TrackerFailed { .. }) => continue,
                Some(event) => take(reporter, event),
                None => return Err(CliError::Other("the engine has stopped".into())),
            },
            () = signals.next() => return Ok(true),
        }
        update(torrents, events, reporter).await?;
        if reporter.all_failed() || (selected.exit_on_complete && reporter.all_settled()) {
            return Ok(false);
        }
    }
}

fn take(reporter: &mut Reporter, event: Event) {
    match event {
        Event::Failed(id, reason) => reporter.failed(id, &reason),
        Event::Blocked(id, reason) => reporter.report_condition(id, "blocked", &reason),
        Event::Restarting(id, reason) => reporter.report_condition(id, "restarting", &reason),
        Event::Completed(id) => reporter.completed(id),
        _ => {}
    }
}

async fn update(torrents: &Torrents, events: &mut Subscription, reporter: &mut Reporter) -> Result<(), CliError> {
    reporter.update_ways(torrents).await;
    let all = join_all(reporter.unfinished().into_iter().map(|id| torrents.stats(id))).await;
    // An event that led to these statistics is taken before them.
    while let Ok(event) = events.try_next() {
        take(reporter, event);
    }
    for stats in all {
        reporter.update(&stats?);
    }
    reporter.draw();
    Ok(())
}

/// Intervals between progress updates, on a terminal and elsewhere.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));

/// Returns a path that is valid in any current folder.
fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(CliError::io(path.display().to_string()))
}
