//! `fetch`: gets the torrent file of a magnet link from peers, and none of the torrent's data.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use ecs_torrent::components::commands::{CommandQueue, SupplyMetadata};
use ecs_torrent::events::{Event, Subscription};
use ecs_torrent::prelude::*;
use ecs_torrent::protocol::magnet::{Magnet, MutableLink};
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits, torrent_file};
use ecs_torrent::systems::DecideSet;
use ecs_torrent::{InfoHash, ReadSource, Source, TorrentStats};
use indicatif::ProgressBar;
use tokio::sync::mpsc;

use super::output::{Screen, printable};
use super::peers::{self, ListenArgs};
use super::searching::Ways;
use super::signals::Signals;
use super::torrent_file::Destination;
use super::transfer::{UNKNOWN_KEY, describe, named_torrent, stop};
use super::{CliError, ExitCodes, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  ecs-torrent fetch 'magnet:?xt=urn:btih:...' -o linux.torrent
  ecs-torrent fetch 'magnet:?xs=urn:btpk:...' -o linux.torrent

Prints the info-hash, and the path of the torrent file. Downloads none of the
torrent's data. Waits until peers have sent all of the metadata. For a link
with a public key, first searches the DHT for its torrent.

Exit codes:
  0  the torrent file is written
  1  an error occurred
  2  the command line is invalid
  7  interrupted before that")]
pub(super) struct FetchArgs {
    /// The magnet link.
    #[arg(value_name = "MAGNET")]
    link: PathBuf,
    /// Torrent file to write; `-` for standard output.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace an existing torrent file.
    #[arg(long)]
    overwrite: bool,
    /// Peer to connect to; may be repeated.
    #[arg(long = "peer", value_name = "HOST:PORT")]
    peers: Vec<String>,
    #[command(flatten)]
    listen: ListenArgs,
    /// Print errors only, and the info-hash.
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// Hands the metadata that a torrent has fetched to the command instead of the torrent. The torrent is not opened, so
/// no file of it is created.
#[derive(Resource, Clone)]
struct TakeMetadata(mpsc::UnboundedSender<Bytes>);

impl Plugin for TakeMetadata {
    fn build(&self, app: &mut App) {
        let is_fetched = |supplied: Res<CommandQueue<SupplyMetadata>>| !supplied.0.is_empty();
        app.insert_resource(self.clone()).add_systems(
            Tick,
            take_metadata
                .run_if(is_fetched)
                .after(DecideSet::Extensions)
                .in_set(TickSet::Decide),
        );
    }
}

fn take_metadata(mut supplied: ResMut<CommandQueue<SupplyMetadata>>, command: Res<TakeMetadata>) {
    for SupplyMetadata { info, .. } in supplied.0.drain(..) {
        // The command may have been interrupted.
        let _ = command.0.send(info);
    }
}

pub(super) async fn run(args: FetchArgs, screen: Screen) -> Result<Outcome, CliError> {
    let link = Link::read(&args.link)?;
    let name = link.name();
    let destination = Destination::find(&args.output, args.overwrite, None)?;
    let options = AddOptions {
        peers: peers::resolve("--peer", &args.peers)?,
        ..AddOptions::default()
    };
    let mut settings = Settings::default();
    settings.session.state_dir = None;
    args.listen.apply(
        &mut settings.net,
        &mut settings.dht,
        &mut settings.lsd,
        &mut settings.pex,
    );
    let ways = Ways::of(&settings);
    let mut signals = Signals::new()?;
    signals.set_code(ExitCodes::INTERRUPTED);
    let (sender, metadata) = mpsc::unbounded_channel();
    let engine = Engine::builder()
        .plugins(TorrentPlugins)
        .plugins(TakeMetadata(sender))
        .settings(settings)
        .start()?;
    let torrents = engine.torrents();
    let events = torrents.subscribe();
    let fetch = async {
        let progress = (!args.quiet).then_some(&screen);
        let magnet = link.find(&torrents, progress).await?;
        let warning = ways.warning(&Source::Magnet(Box::new(magnet.clone())), &options.peers);
        if let (Some(screen), Some(warning)) = (progress, warning) {
            screen.warning(warning);
        }
        let hash = magnet.hashes.primary();
        torrents.download_with(magnet.clone(), options).await?;
        let info = wait(
            &torrents,
            hash,
            events,
            metadata,
            progress.map(|screen| Progress::new(screen, ways)),
        )
        .await?;
        Ok::<_, CliError>((torrent_file(&info, &tiers(&magnet), &magnet.web_seeds), hash))
    };
    let fetched = tokio::select! {
        fetched = fetch => Some(fetched),
        () = signals.next() => None,
    };
    let stopped = stop(&torrents, &mut signals).await;
    let Some((file, hash)) = fetched.transpose()? else {
        screen.error(format_args!("interrupted: {name}: the metadata is not complete"));
        return Ok(Outcome::Interrupted);
    };
    stopped?;
    let limits = MetainfoLimits::default();
    Metainfo::parse(&Bytes::from(file.clone()), &limits)
        .map_err(|error| CliError::Other(format!("{hash}: its metadata cannot be used: {error}")))?;
    destination.write(&file, hash)?;
    Ok(Outcome::Done)
}

/// A link to the torrent whose file is fetched.
enum Link {
    /// A link with the info-hash.
    Magnet(Box<Magnet>),
    /// A link with a public key, whose torrent is found through the DHT (BEP 46).
    Named(MutableLink),
}

impl Link {
    fn read(path: &Path) -> Result<Self, CliError> {
        let source = Source::from(path);
        if let Some(link) = source.link()? {
            return Ok(Self::Named(link));
        }
        match source.read()? {
            ReadSource::Magnet(magnet) => Ok(Self::Magnet(magnet)),
            ReadSource::Metainfo(_) => Err(CliError::Other(format!(
                "{} is a torrent file, not a magnet link",
                path.display()
            ))),
        }
    }

    /// Returns the name in the link, the info-hash of a link without a name, or a link with a public key.
    fn name(&self) -> String {
        printable(&match self {
            Self::Magnet(magnet) => ReadSource::Magnet(magnet.clone()).name(),
            Self::Named(link) => link.to_string(),
        })
    }

    /// Returns the link with the info-hash. Reports to the screen, if one is given, that the DHT is searched.
    async fn find(self, torrents: &Torrents, screen: Option<&Screen>) -> Result<Magnet, CliError> {
        match self {
            Self::Magnet(magnet) => Ok(*magnet),
            Self::Named(link) => {
                if let Some(screen) = screen {
                    screen.note(format_args!("searching the DHT for {link}"));
                }
                let unknown = || {
                    if let Some(screen) = screen {
                        screen.note(UNKNOWN_KEY);
                    }
                };
                named_torrent(&link, torrents, unknown).await
            }
        }
    }
}

/// Returns the trackers of a link in tiers. A link does not group its trackers, so each is a tier of its own (BEP 12).
fn tiers(magnet: &Magnet) -> Vec<Vec<String>> {
    magnet.trackers.iter().map(|url| vec![url.clone()]).collect()
}

/// Waits for the metadata, and reports the progress.
async fn wait(
    torrents: &Torrents,
    hash: InfoHash,
    mut events: Subscription,
    mut metadata: mpsc::UnboundedReceiver<Bytes>,
    mut progress: Option<Progress<'_>>,
) -> Result<Bytes, CliError> {
    let mut clock = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            Some(info) = metadata.recv() => return Ok(info),
            event = events.next() => match event {
                Some(Event::Failed(_, reason)) => return Err(CliError::Other(format!("{hash}: {reason}"))),
                Some(_) => {}
                None => return Err(CliError::Other("the engine has stopped".into())),
            },
            _ = clock.tick() => if let Some(progress) = &mut progress {
                let stats = torrents.stats(hash).await?;
                progress.show(torrents, &stats).await;
            },
        }
    }
}

/// Interval between progress updates.
const INTERVAL: Duration = Duration::from_millis(200);

/// Time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The progress of a fetch: one changing line on a terminal, plain lines elsewhere. All of it goes to the standard
/// error stream, because the torrent file may go to the standard output.
struct Progress<'s> {
    screen: &'s Screen,
    status: ProgressBar,
    last_line: Option<Instant>,
    ways: Ways,
}

impl<'s> Progress<'s> {
    fn new(screen: &'s Screen, ways: Ways) -> Self {
        Self {
            screen,
            status: screen.status(),
            last_line: None,
            ways,
        }
    }

    async fn show(&mut self, torrents: &Torrents, stats: &TorrentStats) {
        let is_terminal = self.screen.is_terminal();
        if !is_terminal && self.last_line.is_some_and(|last| last.elapsed() < LINE_INTERVAL) {
            return;
        }
        self.ways.update(torrents).await;
        let (layout, name) = (Screen::layout(), printable(&stats.name));
        let message = describe(stats, self.ways, layout);
        if is_terminal {
            self.status.set_prefix(layout.prefix(&name));
            self.status.set_message(message);
            // Either call alone may have been skipped, as too soon after the last one.
            self.status.force_draw();
        } else {
            self.last_line = Some(Instant::now());
            self.screen.note(format_args!("{name}: {message}"));
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.status.finish_and_clear();
    }
}
