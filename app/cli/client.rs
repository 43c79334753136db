//! The commands that talk to a running daemon: `add`, `list`, `stats`, `files`, `peers`, `trackers`, `limit`, `label`,
//! `queue`, `pause`, `start`, `recheck`, `move`, `rename`, `relocate`, `cat`, `play`, `stop`, `resume`, `remove`,
//! `shutdown`.

pub(super) mod blocking;
pub(super) mod connection;
pub(super) mod dht;
pub(super) mod labels;
pub(super) mod limits;
pub(super) mod listing;
pub(super) mod moving;
mod naming;
pub(super) mod peers;
pub(super) mod queue;
pub(super) mod reading;
pub(super) mod rechecking;
pub(super) mod renaming;
pub(super) mod settings;
mod tables;
pub(super) mod trackers;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use ecs_torrent::components::selection::{GlobMatcher, SelectionError};
use ecs_torrent::protocol::magnet::MutableLink;
use ecs_torrent::{Field, ReadSource, Source, TorrentState};
use serde_json::{Value, json};
use url::form_urlencoded;

use self::connection::Daemon;
use self::naming::{Found, RUNNING, STOPPED, found, titled};
use self::values::text;
use super::choice::ChoiceArgs;
use super::labels::LabelArgs;
use super::limits::{LimitArgs, SeedingArgs};
use super::output::{self, printable};
use super::peers as addresses;
use super::placement::PlacementArgs;
use super::searching::TrackerAnswer;
use super::{CliError, Outcome, choice};

/// The options that locate the daemon.
#[derive(Debug, Args)]
pub(super) struct DaemonAddress {
    /// Address of the daemon's API. By default the commands find the daemon through its state folder.
    #[arg(long, value_name = "IP:PORT", value_parser = addresses::address)]
    pub(super) api: Option<SocketAddr>,
    /// The daemon's state folder, which contains the API token.
    #[arg(long, value_name = "DIR", default_value = ".ecs_torrent")]
    pub(super) state_dir: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent add linux.torrent
  ecs-torrent add *.torrent -o /srv/torrents/iso
  ecs-torrent add linux.torrent --into second
  ecs-torrent add 'magnet:?xt=urn:btih:...'
  ecs-torrent add https://example.org/linux.torrent
  ecs-torrent add 'magnet:?xs=urn:btpk:...'
  ecs-torrent add album.torrent --select '*.flac' --files 0,3-5
  ecs-torrent add linux.torrent --label linux,iso --category distributions
  ecs-torrent add linux.torrent --paused --queue top

The daemon fetches URLs, from the Internet and from the networks of
api.fetch_from only.

With --skip-checking, `stats HASH --fields unverified` shows how much is not
hashed yet, and `recheck HASH --unverified` checks it. After a bad piece, all of
it is checked.

--into helps where an existing file has the torrent's name. Prints the info-hash
and the name of each torrent.

A link with a public key (btpk) names a torrent that its publisher replaces. The
daemon follows it: each newer torrent is downloaded into a folder of its own.
The older one is paused when the newer one is complete; its files stay.
`dht links` lists such links.")]
pub(super) struct AddArgs {
    /// Torrent files, their URLs, and magnet links.
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<PathBuf>,
    /// Download folder: by default the torrent's own, if the daemon knows it already, or the daemon's. Other folders
    /// must be allowed by the daemon.
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    placement: PlacementArgs,
    #[command(flatten)]
    choice: ChoiceArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    labels: LabelArgs,
    #[command(flatten)]
    seeding: SeedingArgs,
    /// List the torrents as paused: they contact nobody before `start`.
    #[arg(long)]
    paused: bool,
    /// Take existing files of the right length as complete, without a check. Each piece is hashed before it is first
    /// sent.
    #[arg(long)]
    skip_checking: bool,
    /// Place of the torrents in the queue: `top`, `bottom`, or a number from 1 on.
    #[arg(long, value_name = "PLACE")]
    queue: Option<String>,
    /// Peer to connect to; may be repeated. An already added torrent gets it too.
    #[arg(long = "peer", value_name = "HOST:PORT")]
    peers: Vec<String>,
    /// Print JSON: one object for each torrent.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent stats 0c1f3b
  ecs-torrent stats 0c1f3b --fields progress,peers --json

Fields:
  name, speed, downloaded, size, info_hash, state, error, progress, uploaded,
  ratio, eta, corrupt, wasted, completed, unverified, wanted, left, checked,
  pieces, metadata, moving, limits, seeding, limit_reached, labels, category,
  queue, private, added_at, completed_at, active_at, seconds_active,
  seconds_seeding, sequential, ends_first, root, complete_root, peer_count,
  availability, peers, trackers, sources")]
pub(super) struct StatsArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: String,
    /// Fields to print, comma-separated. Default: a summary, or all fields with --json.
    #[arg(long, value_delimiter = ',', value_name = "FIELD")]
    fields: Vec<Field>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent files 0c1f3b
  ecs-torrent files 0c1f3b --json | jq -r '.[].path'
  ecs-torrent files 0c1f3b --skip all --normal 0,3-5
  ecs-torrent files 0c1f3b --skip '*.txt' --high 7
  ecs-torrent files 0c1f3b --sequential on --ends-first on

Priorities take a list of numbers from the first column, ranges, patterns of
paths, or `all`. A file in several lists gets the highest priority. Skipped
files are not downloaded. Files that are in no list keep their priority.")]
pub(super) struct FilesArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: String,
    /// Files that are not downloaded.
    #[arg(long, value_name = "FILES", value_delimiter = ',')]
    skip: Vec<String>,
    /// Files that are downloaded after the others.
    #[arg(long, value_name = "FILES", value_delimiter = ',')]
    low: Vec<String>,
    /// Files that are downloaded.
    #[arg(long, value_name = "FILES", value_delimiter = ',')]
    normal: Vec<String>,
    /// Files that are downloaded first.
    #[arg(long, value_name = "FILES", value_delimiter = ',')]
    high: Vec<String>,
    /// Whether each file is downloaded from its beginning to its end, instead of the rarest pieces first.
    #[arg(long, value_name = "on|off", value_parser = switch)]
    sequential: Option<bool>,
    /// Whether the first and last pieces of each file are downloaded first.
    #[arg(long, value_name = "on|off", value_parser = switch)]
    ends_first: Option<bool>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A paused torrent stays in the list and does nothing until `start`, also after
the daemon was restarted. Its files are closed: their volume can be unmounted.

Examples:
  ecs-torrent pause 0c1f3b
  ecs-torrent pause --all --json")]
#[command(override_usage = "ecs-torrent pause [OPTIONS] <HASH | --all>")]
pub(super) struct PauseArgs {
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Data that has not changed since the pause is not hashed again. A failed or
blocked torrent is tried again at once. A torrent that was paused by a seeding
limit runs until another limit is reached, or the limit is changed.

Examples:
  ecs-torrent start 0c1f3b
  ecs-torrent start --all --json")]
#[command(override_usage = "ecs-torrent start [OPTIONS] <HASH | --all>")]
pub(super) struct StartArgs {
    #[command(flatten)]
    target: Target,
}

/// One torrent, or all.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true).args(["hash", "all"]))]
struct Target {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: Option<String>,
    /// All torrents.
    #[arg(long)]
    all: bool,
    /// Print the torrents that the command changed as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The daemon keeps running, and keeps the torrent's state: `resume` starts the
torrent again, `remove` deletes it, and `list --stopped` shows it. It stays
stopped after the daemon was restarted.

Examples:
  ecs-torrent stop 0c1f3b
  ecs-torrent stop --all --json")]
#[command(override_usage = "ecs-torrent stop [OPTIONS] <HASH | --all>")]
pub(super) struct StopArgs {
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A torrent that was paused before it was stopped is still paused.
`list --stopped` shows the stopped torrents.

Examples:
  ecs-torrent resume 0c1f3b
  ecs-torrent resume --all --json")]
#[command(override_usage = "ecs-torrent resume [OPTIONS] <HASH | --all>")]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent remove 0c1f3b                 keeps the files
  ecs-torrent remove 0c1f3b --delete-data   deletes the files too")]
pub(super) struct RemoveArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: String,
    /// Also delete the files that the torrent created. Files that existed before are kept.
    #[arg(long)]
    delete_data: bool,
    /// Print the torrent, and its deleted and kept files, as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

/// A source that can be added.
pub(super) enum Addable {
    Torrent(ReadSource),
    /// A link to a torrent that its publisher replaces (BEP 46).
    Link(MutableLink),
    /// The URL of a torrent file, which the daemon fetches.
    Url(String),
}

impl Addable {
    fn read(path: &Path) -> Result<Self, CliError> {
        let url = path
            .to_str()
            .filter(|text| ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)));
        if let Some(url) = url {
            return Ok(Self::Url(url.to_owned()));
        }
        Self::of(Source::from(path))
    }

    /// Reads a source that is no URL.
    pub(super) fn of(source: Source) -> Result<Self, CliError> {
        match source.link()? {
            Some(link) => Ok(Self::Link(link)),
            None => Ok(Self::Torrent(source.read()?)),
        }
    }

    /// Sends the source to the daemon. Returns whether the daemon did not have the torrent yet, and its answer.
    pub(super) async fn send(&self, daemon: &Daemon, path: &str) -> Result<(bool, Value), CliError> {
        match self {
            Self::Torrent(ReadSource::Magnet(magnet)) => daemon.create_from_text(path, magnet.to_string()).await,
            Self::Torrent(ReadSource::Metainfo(metainfo)) => daemon.create(path, metainfo.bytes.clone()).await,
            Self::Link(link) => daemon.create_from_text(path, link.to_string()).await,
            Self::Url(url) => daemon.create_from_url(path, url).await,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Torrent(source) => source.name(),
            Self::Link(link) => link.to_string(),
            // The last part of its path. The rest may be a secret.
            Self::Url(url) => {
                let path = url.split(['?', '#']).next().unwrap_or_default();
                path.rsplit('/').next().unwrap_or_default().to_owned()
            }
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
The daemon stops all torrents as after a signal, and restores them when it is
started again. The command does not wait for the end.

Example:
  ecs-torrent shutdown --state-dir /var/lib/ecs")]
pub(super) struct ShutdownArgs {
    #[command(flatten)]
    daemon: DaemonAddress,
}

pub(super) async fn shutdown(args: ShutdownArgs) -> Result<Outcome, CliError> {
    Daemon::find(&args.daemon)?.post("/api/v1/shutdown").await?;
    say!("the daemon is stopping");
    Ok(Outcome::Done)
}

pub(super) async fn add(args: AddArgs) -> Result<Outcome, CliError> {
    args.placement.check(args.sources.len())?;
    let peers = addresses::resolve("--peer", &args.peers)?;
    let daemon = Daemon::find(&args.daemon)?;
    let mut query = form_urlencoded::Serializer::new(String::new());
    if let Some(output) = &args.output {
        query.append_pair("root", &absolute(output)?);
    }
    args.placement.write(&mut query);
    for peer in &peers {
        query.append_pair("peer", &peer.to_string());
    }
    args.choice.selection(args.sources.len())?;
    args.choice.write(&mut query);
    args.limits.write(&mut query);
    args.labels.write(&mut query);
    args.seeding.write(&mut query);
    for (name, is_set) in [("paused", args.paused), ("skip_checking", args.skip_checking)] {
        if is_set {
            query.append_pair(name, "true");
        }
    }
    if let Some(place) = &args.queue {
        query.append_pair("queue", place);
    }
    let path = format!("/api/v1/torrents?{}", query.finish());
    // Loads every file before adding the first torrent, so that a bad file changes nothing.
    let sources = args
        .sources
        .iter()
        .map(|source| Addable::read(source))
        .collect::<Result<Vec<_>, CliError>>()?;
    let mut all = Vec::new();
    for source in sources {
        let (is_new, mut added) = source.send(&daemon, &path).await?;
        if args.json {
            added["name"] = source.name().into();
            added["is_new"] = is_new.into();
            all.push(added);
        } else {
            print_added(&daemon, &added, is_new, &source.name(), args.placement.into.is_some()).await?;
        }
    }
    if args.json {
        print_json(&all.into());
    }
    Ok(Outcome::Done)
}

/// Prints one line for a torrent that was added, or was listed already.
async fn print_added(
    daemon: &Daemon,
    added: &Value,
    is_new: bool,
    name: &str,
    with_root: bool,
) -> Result<(), CliError> {
    let hash = text(&added["info_hash"]);
    if !is_new {
        let ignored: Vec<&str> = added["ignored"].as_array().into_iter().flatten().map(text).collect();
        say!("{}", already_added(daemon, hash, name, &ignored).await?);
    } else if with_root {
        let stats = daemon.get(&format!("/api/v1/torrents/{hash}?fields=root")).await?;
        say!("{}, in {}", titled(hash, name), printable(text(&stats["root"])));
    } else {
        say!("{}", titled(hash, name));
    }
    Ok(())
}

/// The parameters of an add that determine the location of its files.
const PLACING: [&str; 4] = ["root", "into", "category", "name"];

/// Returns the message about a torrent that was listed before it was added, with the options that have no effect on it.
async fn already_added(daemon: &Daemon, hash: &str, name: &str, ignored: &[&str]) -> Result<String, CliError> {
    let (placing, others): (Vec<&str>, Vec<&str>) = ignored.iter().partition(|option| PLACING.contains(option));
    let mut message = format!("{} was already added", titled(hash, name));
    if !placing.is_empty() {
        let stats = daemon.get(&format!("/api/v1/torrents/{hash}?fields=root,name")).await?;
        let (root, title) = (printable(text(&stats["root"])), titled(hash, text(&stats["name"])));
        message = format!("{title} was already added in {root}, where it stays");
    }
    if !others.is_empty() {
        message += &format!("; it keeps its own settings: no effect of {}", others.join(", "));
    }
    Ok(message)
}

pub(super) async fn stats(args: StatsArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let hash = daemon.resolve_running(&args.hash).await?;
    let mut fields: Vec<&str> = match (args.fields.as_slice(), args.json) {
        ([], true) => Field::ALL.map(Field::name).to_vec(),
        ([], false) => tables::GLANCE.map(Field::name).to_vec(),
        (fields, _) => fields.iter().map(|field| field.name()).collect(),
    };
    let path = format!("/api/v1/torrents/{hash}?fields={}", fields.join(","));
    let mut stats = daemon.get(&path).await?;
    if args.json {
        print_json(&stats);
    } else {
        if args.fields.is_empty() && lacks_peers(&stats) {
            let answers: Vec<TrackerAnswer<'_>> =
                stats["trackers"].as_array().into_iter().flatten().map(answer).collect();
            let private = daemon.get(&format!("/api/v1/torrents/{hash}?fields=private")).await?;
            let explained = dht::ways(&daemon).await?.explain(private["private"] == true, &answers);
            stats["searching"] = explained.into();
            fields.push("searching");
        }
        tables::stats(&stats, &fields);
    }
    Ok(Outcome::Done)
}

/// Whether a torrent searches for peers, and has none.
fn lacks_peers(stats: &Value) -> bool {
    use TorrentState::{Downloading, FetchingMetadata};
    let is_searching = matches!(text(&stats["state"]).parse(), Ok(Downloading | FetchingMetadata));
    is_searching && stats["peers"].as_array().is_some_and(Vec::is_empty)
}

/// Returns the last answer of a tracker.
fn answer(tracker: &Value) -> TrackerAnswer<'_> {
    TrackerAnswer {
        status: text(&tracker["status"]),
        peers: tracker["peers"].as_u64(),
        message: tracker["message"].as_str(),
    }
}

pub(super) async fn files(args: FilesArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let hash = daemon.resolve_running(&args.hash).await?;
    let path = format!("/api/v1/torrents/{hash}/files");
    let mut files = daemon.get(&path).await?;
    let lists = [
        ("skip", &args.skip),
        ("low", &args.low),
        ("normal", &args.normal),
        ("high", &args.high),
    ];
    let mut priorities = json!({});
    for (priority, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        priorities[priority] = numbers(list, &files)?.into();
    }
    if args.sequential.is_some() || args.ends_first.is_some() {
        let order = json!({"sequential": args.sequential, "ends_first": args.ends_first});
        daemon.patch(&format!("/api/v1/torrents/{hash}"), &order).await?;
    }
    if priorities != json!({}) {
        daemon.patch(&path, &priorities).await?;
        files = daemon.get(&path).await?;
    }
    if args.json {
        print_json(&files);
    } else {
        tables::files(&files);
    }
    Ok(Outcome::Done)
}

/// Parses `on` or `off`.
fn switch(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off"),
    }
}

/// Returns the numbers of the files in a list, which may contain patterns, as the API takes them.
fn numbers(list: &[String], files: &Value) -> Result<String, CliError> {
    let mut numbers = Vec::new();
    for item in list {
        if item == "all" || choice::range(item).is_ok() {
            numbers.push(item.clone());
            continue;
        }
        let usage = |error: SelectionError| CliError::Usage(error.to_string());
        let glob = GlobMatcher::new(item).map_err(usage)?;
        let files = files.as_array().into_iter().flatten();
        let matching = files.filter(|file| glob.matches(text(&file["path"])));
        let before = numbers.len();
        numbers.extend(matching.map(|file| file["index"].to_string()));
        if numbers.len() == before {
            return Err(CliError::Other(format!("no file matches {}", printable(item))));
        }
    }
    match numbers.iter().any(|number| number == "all") {
        true => Ok("all".to_owned()),
        false => Ok(numbers.join(",")),
    }
}

/// An operation of the API on a torrent, which may leave the torrent unchanged.
struct Operation {
    /// The last part of its path.
    path: &'static str,
    done: &'static str,
    /// The message for a torrent that is not changed.
    unchanged: &'static str,
    /// Whether the operation changes a torrent of a state, given by its name. An unknown name belongs to a state of a
    /// newer daemon.
    changes: fn(&str) -> bool,
}

const PAUSE: Operation = Operation {
    path: "pause",
    done: "paused",
    unchanged: "was already paused",
    changes: |state| state.parse() != Ok(TorrentState::Paused),
};

/// A pause can be taken back while it is in progress.
const START: Operation = Operation {
    path: "start",
    done: "started",
    unchanged: "was already started",
    changes: |state| {
        use TorrentState::{Blocked, Failed, Paused, Stopping};
        matches!(state.parse(), Ok(Paused | Failed | Blocked | Stopping(_)))
    },
};

pub(super) async fn pause(args: PauseArgs) -> Result<Outcome, CliError> {
    args.target.carry_out(&PAUSE).await
}

pub(super) async fn start(args: StartArgs) -> Result<Outcome, CliError> {
    args.target.carry_out(&START).await
}

impl Target {
    /// Sends an operation for one torrent or for all, and prints what it changed.
    async fn carry_out(&self, operation: &Operation) -> Result<Outcome, CliError> {
        let daemon = Daemon::find(&self.daemon)?;
        let fields = "info_hash,name,state";
        let (path, torrents) = match &self.hash {
            Some(digits) => {
                let hash = daemon.resolve_running(digits).await?;
                let torrent = daemon.get(&format!("/api/v1/torrents/{hash}?fields={fields}")).await?;
                (format!("/api/v1/torrents/{hash}/{}", operation.path), json!([torrent]))
            }
            None => {
                let listed = daemon.get(&format!("/api/v1/torrents?fields={fields}")).await?;
                (format!("/api/v1/{}", operation.path), listed)
            }
        };
        // The operation is sent even if the torrent seems unaffected: its state may have changed by now.
        daemon.post(&path).await?;
        let only = found(&torrents, false).into_iter().next();
        let torrents = torrents.as_array().into_iter().flatten();
        let changed = torrents.filter(|torrent| (operation.changes)(text(&torrent["state"])));
        let changed = found(&changed.cloned().collect(), false);
        self.report(operation.done, operation.unchanged, only, &changed);
        Ok(Outcome::Done)
    }

    /// Stops or resumes one torrent or all, and prints what was changed.
    async fn move_to(&self, operation: &Move) -> Result<Outcome, CliError> {
        let daemon = Daemon::find(&self.daemon)?;
        let (path, only, changed) = match &self.hash {
            Some(digits) => {
                let found = daemon.resolve(digits).await?;
                let path = format!("/api/v1/torrents/{}/{}", found.hash, operation.path);
                let is_changed = found.is_stopped != operation.to_stopped;
                let changed = is_changed.then(|| found.clone()).into_iter().collect();
                (path, Some(found), changed)
            }
            None => {
                let list = if operation.to_stopped { RUNNING } else { STOPPED };
                let listed = found(&daemon.get(list).await?, !operation.to_stopped);
                (format!("/api/v1/{}", operation.path), None, listed)
            }
        };
        if self.all || !changed.is_empty() {
            daemon.post(&path).await?;
        }
        self.report(operation.done, operation.unchanged, only, &changed);
        Ok(Outcome::Done)
    }

    /// Prints the changed torrents, or the torrent itself if the operation is on one torrent.
    fn report(&self, done: &str, unchanged: &str, only: Option<Found>, changed: &[Found]) {
        let only = only.filter(|_| !self.all);
        match (only, changed) {
            (_, changed) if self.json => {
                let json = |found: &Found| json!({"info_hash": found.hash.to_string(), "name": found.name});
                print_json(&changed.iter().map(json).collect());
            }
            (Some(torrent), []) => say!("{torrent} {unchanged}"),
            (Some(torrent), _) => say!("{done} {torrent}"),
            (None, changed) => say!("{done} {}", output::count(changed.len(), "torrent")),
        }
    }
}

/// An operation of the API that moves a torrent between the list and the stopped torrents.
struct Move {
    /// The last part of its path.
    path: &'static str,
    done: &'static str,
    /// The message for a torrent that has been moved already.
    unchanged: &'static str,
    to_stopped: bool,
}

const STOP: Move = Move {
    path: "stop",
    done: "stopped",
    unchanged: "was already stopped",
    to_stopped: true,
};

const RESUME: Move = Move {
    path: "resume",
    done: "resumed",
    unchanged: "is not stopped",
    to_stopped: false,
};

pub(super) async fn stop(args: StopArgs) -> Result<Outcome, CliError> {
    args.target.move_to(&STOP).await
}

pub(super) async fn resume(args: ResumeArgs) -> Result<Outcome, CliError> {
    args.target.move_to(&RESUME).await
}

pub(super) async fn remove(args: RemoveArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let Found { hash, name, .. } = daemon.resolve(&args.hash).await?;
    let delete_data = args.delete_data;
    let mut removed = daemon
        .delete(&format!("/api/v1/torrents/{hash}?delete_data={delete_data}"))
        .await?;
    if args.json {
        removed["info_hash"] = hash.to_string().into();
        removed["name"] = name.into();
        print_json(&removed);
    } else {
        let count = if delete_data {
            tables::removed_count(&removed)
        } else {
            String::new()
        };
        say!("removed {}{count}", titled(&hash.to_string(), &name));
        tables::removed(&removed);
    }
    Ok(Outcome::Done)
}

fn print_json(value: &Value) {
    say!("{value:#}");
}

/// Returns the absolute path as text. The daemon may run in another folder.
pub(super) fn absolute(path: &Path) -> Result<String, CliError> {
    let failed = || CliError::io(path.display().to_string());
    let whole = match path.canonicalize() {
        Ok(whole) => whole,
        // The path does not exist yet; the daemon creates it.
        Err(_) => std::path::absolute(path).map_err(failed())?,
    };
    let not_text = |_| std::io::Error::other("not a name in UTF-8");
    whole.into_os_string().into_string().map_err(not_text).map_err(failed())
}
