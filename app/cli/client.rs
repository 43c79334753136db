//! The commands that talk to a running daemon: `add`, `list`, `stats`, `files`, `pause`, `start`, `stop`, `resume`,
//! `remove`.

mod connection;
mod tables;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use ecs_torrent::{Field, InfoHash, ReadSource, Source, TorrentState};
use serde_json::{Value, json};
use url::form_urlencoded;

use self::connection::Daemon;
use self::values::text;
use super::output::{self, printable};
use super::peers;
use super::placement::PlacementArgs;
use super::{CliError, Outcome};

/// Where the daemon is.
#[derive(Debug, Args)]
struct DaemonAddress {
    /// Address of the daemon's API. By default the commands find the daemon through its state folder.
    #[arg(long, value_name = "IP:PORT")]
    api: Option<SocketAddr>,
    /// The daemon's state folder, which contains the API token.
    #[arg(long, value_name = "DIR", default_value = ".ecs_torrent")]
    state_dir: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent add linux.torrent
  ecs-torrent add *.torrent -o /srv/torrents/iso
  ecs-torrent add linux.torrent --into second

--into helps where an existing file has the torrent's name.")]
pub(super) struct AddArgs {
    /// Torrent files and magnet links.
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<PathBuf>,
    /// Download folder: the daemon's own, by default, or one that the daemon allows.
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    files: PlacementArgs,
    /// Peer to connect to; may be repeated. An already added torrent gets it too.
    #[arg(long = "peer", value_name = "HOST:PORT")]
    peers: Vec<String>,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent list
  ecs-torrent list --stopped
  ecs-torrent list --json | jq -r '.[] | select(.progress < 1).name'")]
pub(super) struct ListArgs {
    /// List the stopped torrents instead.
    #[arg(long)]
    stopped: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent stats 0c1f3b
  ecs-torrent stats 0c1f3b --fields progress,peers --json")]
pub(super) struct StatsArgs {
    /// Info-hash of the torrent, or its first 6 or more digits.
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
  ecs-torrent files 0c1f3b --json | jq -r '.[].path'")]
pub(super) struct FilesArgs {
    /// Info-hash of the torrent, or its first 6 or more digits.
    hash: String,
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
blocked torrent is tried again at once.

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
struct Target {
    /// Info-hash of the torrent, or its first 6 or more digits.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
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
  ecs-torrent stop --all")]
#[command(override_usage = "ecs-torrent stop [OPTIONS] <HASH | --all>")]
pub(super) struct StopArgs {
    /// Info-hash of the torrent, or its first 6 or more digits.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    hash: Option<String>,
    /// Stop all torrents.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A torrent that was paused before it was stopped is still paused.

Examples:
  ecs-torrent resume 0c1f3b
  ecs-torrent resume --all")]
#[command(override_usage = "ecs-torrent resume [OPTIONS] <HASH | --all>")]
pub(super) struct ResumeArgs {
    /// Info-hash of the stopped torrent, or its first 6 or more digits.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    hash: Option<String>,
    /// Resume all stopped torrents.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent remove 0c1f3b                 keeps the files
  ecs-torrent remove 0c1f3b --delete-data   deletes the files too")]
pub(super) struct RemoveArgs {
    /// Info-hash of the torrent, or its first 6 or more digits.
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

pub(super) async fn add(args: AddArgs) -> Result<Outcome, CliError> {
    args.files.check(args.sources.len())?;
    let peers = peers::resolve(&args.peers)?;
    let daemon = Daemon::find(&args.daemon)?;
    let mut query = form_urlencoded::Serializer::new(String::new());
    if let Some(output) = &args.output {
        query.append_pair("root", &absolute(output)?);
    }
    if let Some(into) = &args.files.into {
        query.append_pair("into", &into.display().to_string());
    }
    if let Some(name) = &args.files.name {
        query.append_pair("name", name);
    }
    if args.files.overwrite {
        query.append_pair("overwrite", "true");
    }
    for peer in &peers {
        query.append_pair("peer", &peer.to_string());
    }
    let path = format!("/api/v1/torrents?{}", query.finish());
    // Loads every file before adding the first torrent, so that a bad file changes nothing.
    let read = |source: &PathBuf| Ok(Source::from(source.as_path()).read()?);
    let sources = args.sources.iter().map(read).collect::<Result<Vec<_>, CliError>>()?;
    for source in sources {
        let added = match &source {
            ReadSource::Magnet(magnet) => daemon.post_text(&path, magnet.to_string()).await?,
            ReadSource::Metainfo(metainfo) => daemon.post(&path, metainfo.bytes.clone()).await?,
        };
        let (hash, name) = (text(&added["info_hash"]), printable(&source.name()));
        if args.files.into.is_some() {
            let stats = daemon.get(&format!("/api/v1/torrents/{hash}?fields=root")).await?;
            say!("{hash} {name}, in {}", printable(text(&stats["root"])));
        } else {
            say!("{hash} {name}");
        }
    }
    Ok(Outcome::Done)
}

pub(super) async fn list(args: ListArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    if args.stopped {
        let stopped = daemon.get(STOPPED).await?;
        if args.json {
            print_json(&stopped);
        } else {
            tables::stopped(&stopped);
        }
    } else if args.json {
        print_json(&daemon.get("/api/v1/torrents").await?);
    } else {
        let fields = "info_hash,name,bytes_size,progress,lifecycle,speed,peers,error";
        let torrents = daemon.get(&format!("/api/v1/torrents?fields={fields}")).await?;
        tables::torrents(&torrents);
    }
    Ok(Outcome::Done)
}

pub(super) async fn stats(args: StatsArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let hash = daemon.resolve_running(&args.hash).await?;
    let fields: Vec<&str> = match (args.fields.as_slice(), args.json) {
        ([], true) => Field::ALL.map(Field::name).to_vec(),
        ([], false) => tables::GLANCE.map(Field::name).to_vec(),
        (fields, _) => fields.iter().map(|field| field.name()).collect(),
    };
    let path = format!("/api/v1/torrents/{hash}?fields={}", fields.join(","));
    let stats = daemon.get(&path).await?;
    if args.json {
        print_json(&stats);
    } else {
        tables::stats(&stats, &fields);
    }
    Ok(Outcome::Done)
}

pub(super) async fn files(args: FilesArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let hash = daemon.resolve_running(&args.hash).await?;
    let files = daemon.get(&format!("/api/v1/torrents/{hash}/files")).await?;
    if args.json {
        print_json(&files);
    } else {
        tables::files(&files);
    }
    Ok(Outcome::Done)
}

/// An operation of the API that changes a torrent or leaves it as it is.
struct Operation {
    /// The last part of its path.
    path: &'static str,
    done: &'static str,
    /// The message for a torrent that is not changed.
    unchanged: &'static str,
    /// Whether the operation changes a torrent of a state, given by its name. A name that this program does not know is
    /// that of a newer daemon's state.
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
        let fields = "info_hash,name,lifecycle";
        let (path, mut torrents) = match &self.hash {
            Some(digits) => {
                let hash = daemon.resolve_running(digits).await?;
                let torrent = daemon.get(&format!("/api/v1/torrents/{hash}?fields={fields}")).await?;
                (format!("/api/v1/torrents/{hash}/{}", operation.path), vec![torrent])
            }
            None => {
                let listed = daemon.get(&format!("/api/v1/torrents?fields={fields}")).await?;
                let torrents = listed.as_array().cloned().unwrap_or_default();
                (format!("/api/v1/{}", operation.path), torrents)
            }
        };
        // A torrent that is not changed gets the operation too: its state may be another one by now.
        daemon.post(&path, Bytes::new()).await?;
        let line = |torrent: &Value| {
            let (hash, name) = (text(&torrent["info_hash"]), printable(text(&torrent["name"])));
            format!("{hash} {name}")
        };
        let only = torrents.first().filter(|_| !self.all).map(line);
        torrents.retain(|torrent| (operation.changes)(text(&torrent["lifecycle"])));
        let names = |torrent: &Value| json!({"info_hash": torrent["info_hash"], "name": torrent["name"]});
        match (only, torrents.as_slice()) {
            (_, torrents) if self.json => print_json(&torrents.iter().map(names).collect()),
            (Some(torrent), []) => say!("{torrent} {}", operation.unchanged),
            (Some(torrent), _) => say!("{} {torrent}", operation.done),
            (None, torrents) => say!("{} {}", operation.done, output::count(torrents.len(), "torrent")),
        }
        Ok(Outcome::Done)
    }
}

pub(super) async fn stop(args: StopArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let Some(digits) = &args.hash else {
        let count = daemon.get("/api/v1/torrents?fields=info_hash").await?;
        daemon.post("/api/v1/stop", Bytes::new()).await?;
        let count = count.as_array().map_or(0, Vec::len);
        say!("stopped {}", output::count(count, "torrent"));
        return Ok(Outcome::Done);
    };
    let found = daemon.resolve(digits).await?;
    if found.is_stopped {
        say!("{} {} was already stopped", found.hash, printable(&found.name));
        return Ok(Outcome::Done);
    }
    let path = format!("/api/v1/torrents/{}/stop", found.hash);
    daemon.post(&path, Bytes::new()).await?;
    say!("stopped {} {}", found.hash, printable(&found.name));
    Ok(Outcome::Done)
}

pub(super) async fn resume(args: ResumeArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let Some(digits) = &args.hash else {
        let stopped = daemon.get(STOPPED).await?;
        daemon.post("/api/v1/resume", Bytes::new()).await?;
        let count = stopped.as_array().map_or(0, Vec::len);
        say!("resumed {}", output::count(count, "torrent"));
        return Ok(Outcome::Done);
    };
    let found = daemon.resolve(digits).await?;
    if !found.is_stopped {
        say!("{} {} is not stopped", found.hash, printable(&found.name));
        return Ok(Outcome::Done);
    }
    let path = format!("/api/v1/torrents/{}/resume", found.hash);
    daemon.post(&path, Bytes::new()).await?;
    say!("resumed {} {}", found.hash, printable(&found.name));
    Ok(Outcome::Done)
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
        say!("removed {hash} {}{count}", printable(&name));
        tables::removed(&removed);
    }
    Ok(Outcome::Done)
}

/// Number of hexadecimal digits of an info-hash.
const HASH_DIGITS: usize = 40;

/// Minimum number of info-hash digits that identify a torrent.
const MIN_DIGITS: usize = 6;

/// The request for the stopped torrents.
const STOPPED: &str = "/api/v1/torrents?stopped=true";

/// A torrent that a user named.
struct Found {
    hash: InfoHash,
    name: String,
    is_stopped: bool,
}

impl Daemon {
    /// Finds the torrent, running or stopped, whose info-hash begins with `digits`.
    async fn resolve(&self, digits: &str) -> Result<Found, CliError> {
        if !(MIN_DIGITS..=HASH_DIGITS).contains(&digits.len()) || !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
            let why = "not an info-hash; give its 40 hexadecimal digits, or the first 6 or more";
            return Err(CliError::Usage(format!("{}: {why}", printable(digits))));
        }
        let digits = digits.to_ascii_lowercase();
        let running = self.get("/api/v1/torrents?fields=info_hash,name").await?;
        let mut found = matching(&running, &digits, false);
        // A whole hash has one torrent at most.
        if found.is_empty() || digits.len() < HASH_DIGITS {
            found.extend(matching(&self.get(STOPPED).await?, &digits, true));
        }
        match found.len() {
            0 if digits.len() == HASH_DIGITS => Err(CliError::Other(format!("no torrent {digits}"))),
            0 => Err(CliError::Other(format!("no torrent matches prefix {digits}"))),
            1 => Ok(found.remove(0)),
            count => Err(CliError::Other(format!(
                "{count} torrents match prefix {digits}; give more digits"
            ))),
        }
    }

    /// Finds a torrent that is not stopped.
    async fn resolve_running(&self, digits: &str) -> Result<InfoHash, CliError> {
        let found = self.resolve(digits).await?;
        if found.is_stopped {
            let name = printable(&found.name);
            return Err(CliError::Other(format!(
                "{name} is stopped; `ecs-torrent resume {}` starts it again",
                printable(digits)
            )));
        }
        Ok(found.hash)
    }
}

/// Returns the torrents of a list whose info-hash begins with `digits`.
fn matching(torrents: &Value, digits: &str, is_stopped: bool) -> Vec<Found> {
    let torrents = torrents.as_array().into_iter().flatten();
    let found = torrents.filter(|torrent| text(&torrent["info_hash"]).starts_with(digits));
    let found = found.filter_map(|torrent| {
        Some(Found {
            hash: text(&torrent["info_hash"]).parse().ok()?,
            name: text(&torrent["name"]).to_owned(),
            is_stopped,
        })
    });
    found.collect()
}

fn print_json(value: &Value) {
    say!("{value:#}");
}

/// Returns the absolute path as text. The daemon may run in another folder.
fn absolute(path: &Path) -> Result<String, CliError> {
    let failed = || CliError::io(path.display().to_string());
    let whole = match path.canonicalize() {
        Ok(whole) => whole,
        // The path does not exist yet; the daemon creates it.
        Err(_) => std::path::absolute(path).map_err(failed())?,
    };
    let not_text = |_| std::io::Error::other("not a name in UTF-8");
    whole.into_os_string().into_string().map_err(not_text).map_err(failed())
}
