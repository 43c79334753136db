//! `fetch`: gets the torrent file of a magnet link from peers, and none of the torrent's data.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use ecs_torrent::components::commands::{CommandQueue, SupplyMetadata};
use ecs_torrent::events::{Event, Subscription};
use ecs_torrent::prelude::*;
use ecs_torrent::protocol::magnet::{Magnet, MutableLink};
use ecs_torrent::protocol::metainfo::torrent_file;
use ecs_torrent::systems::DecideSet;
use ecs_torrent::{InfoHash, ReadSource, Source};
use indicatif::ProgressBar;
use tokio::sync::mpsc;

use super::output::{self, Screen, printable};
use super::peers::{self, ListenArgs};
use super::signals::Signals;
use super::torrent_file::Destination;
use super::transfer::{describe, named_torrent, stop};
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
    quiet: bool,
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
    let destination = Destination::find(&args.output, args.overwrite, None)?;
    let options = AddOptions {
        peers: peers::resolve("--peer", &args.peers)?,
        ..AddOptions::default()
    };
    let mut settings = Settings::default();
    settings.session.state_dir = None;
    args.listen
        .apply(&mut settings.net, &mut settings.dht, &mut settings.lsd);
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
        let hash = magnet.hashes.primary();
        torrents.download_with(magnet.clone(), options).await?;
        let info = wait(&torrents, hash, events, metadata, progress).await?;
        Ok::<_, CliError>((torrent_file(&info, &tiers(&magnet), &magnet.web_seeds), hash))
    };
    let fetched = tokio::select! {
        fetched = fetch => Some(fetched),
        () = signals.next() => None,
    };
    let stopped = stop(&torrents, &mut signals).await;
    let Some((file, hash)) = fetched.transpose()? else {
        screen.error("interrupted before the metadata was complete");
        return Ok(Outcome::Interrupted);
    };
    stopped?;
    destination.write(&file, hash)?;
    Ok(Outcome::Done)
}

/// A link to the torrent whose file is fetched.
enum Link {
    /// A link with the info-hash.
    Magnet(Box<Magnet>),
    /// A link with a public key: the DHT knows the torrent (BEP 46).
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

    /// Returns the link with the info-hash. Reports to the screen, if one is given, that the DHT is searched.
    async fn find(self, torrents: &Torrents, screen: Option<&Screen>) -> Result<Magnet, CliError> {
        match self {
            Self::Magnet(magnet) => Ok(*magnet),
            Self::Named(link) => {
                if let Some(screen) = screen {
                    screen.note(format_args!("searching the DHT for {link}"));
                }
                named_torrent(&link, torrents).await
            }
        }
    }
}

/// Returns the trackers of a link in tiers. Nothing says which of them belong together: each is a tier of its own
/// (BEP 12).
fn tiers(magnet: &Magnet) -> Vec<Vec<String>> {
    magnet.trackers.iter().map(|url| vec![url.clone()]).collect()
}

/// Waits for the metadata. Reports progress to the screen, if one is given.
async fn wait(
    torrents: &Torrents,
    hash: InfoHash,
    mut events: Subscription,
    mut metadata: mpsc::UnboundedReceiver<Bytes>,
    screen: Option<&Screen>,
) -> Result<Bytes, CliError> {
    let mut progress = screen.map(Progress::new);
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
                progress.show(&printable(&stats.name), describe(&stats));
            },
        }
    }
}

/// Interval between progress updates.
const INTERVAL: Duration = Duration::from_millis(200);

/// Time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The progress of a fetch: one changing line on a terminal, plain lines elsewhere. All of it goes to the standard error
/// stream, because the torrent file may go to the standard output.
struct Progress<'s> {
    screen: &'s Screen,
    status: ProgressBar,
    last_line: Instant,
}

impl<'s> Progress<'s> {
    fn new(screen: &'s Screen) -> Self {
        Self {
            screen,
            status: screen.status(),
            last_line: Instant::now(),
        }
    }

    fn show(&mut self, name: &str, message: String) {
        if self.screen.is_terminal() {
            self.status.set_prefix(output::prefix(name));
            self.status.set_message(message);
            // Either call alone may have been skipped, as too soon after the last one.
            self.status.force_draw();
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            self.screen.note(format_args!("{name}: {message}"));
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.status.finish_and_clear();
    }
}
