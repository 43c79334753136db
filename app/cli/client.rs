//! The commands that talk to a running daemon: `add`, `list`, `stats`, `files`, `stop`, `remove`.

mod connection;
mod tables;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use ecs_torrent::{Field, InfoHash, Source};
use serde_json::Value;
use url::form_urlencoded;

use self::connection::Daemon;
use self::values::text;
use super::output::printable;
use super::placement::PlacementArgs;
use super::{CliError, Outcome};

/// Where the daemon is.
#[derive(Debug, Args)]
struct DaemonAddress {
    /// Address of the daemon's API; by default the socket in the state folder, or else the address that the daemon has
    /// left there.
    #[arg(long, value_name = "IP:PORT")]
    api: Option<SocketAddr>,
    /// The daemon's state folder, which holds the API's token.
    #[arg(long, value_name = "DIR", default_value = ".ecs_torrent")]
    state_dir: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent add linux.torrent
  ecs-torrent add *.torrent -o /srv/torrents/iso --state-dir /var/lib/ecs-torrent
  ecs-torrent add linux.torrent --into second     another folder, where a file of the same name is in the way")]
pub(super) struct AddArgs {
    /// Torrent files.
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<PathBuf>,
    /// The folder to download into, in the daemon's download folder or another that it allows; by default the former.
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    files: PlacementArgs,
    /// A peer to connect to; may be given more than once. A torrent that is there already gets it too.
    #[arg(long = "peer", value_name = "IP:PORT")]
    peers: Vec<SocketAddr>,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent list
  ecs-torrent list --json | jq -r '.[] | select(.progress < 1).name'")]
pub(super) struct ListArgs {
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
    /// The torrent's info-hash, or its first digits, at least 6.
    hash: String,
    /// What to tell, separated by commas; by default what there is to say at a glance.
    #[arg(long, value_delimiter = ',', value_name = "FIELD")]
    fields: Vec<Field>,
    /// Print JSON; by default name, speed, downloaded and bytes_size.
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
    /// The torrent's info-hash, or its first digits, at least 6.
    hash: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The daemon keeps the torrent's state, and goes on itself.

Examples:
  ecs-torrent stop 0c1f3b
  ecs-torrent stop --all")]
pub(super) struct StopArgs {
    /// The torrent's info-hash, or its first digits, at least 6.
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
Examples:
  ecs-torrent remove 0c1f3b                       the files stay
  ecs-torrent remove 0c1f3b --delete-data         and they go too")]
pub(super) struct RemoveArgs {
    /// The torrent's info-hash, or its first digits, at least 6.
    hash: String,
    /// Delete the files that the torrent created. Files that were there before stay.
    #[arg(long)]
    delete_data: bool,
    /// Print what was deleted and kept as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

pub(super) async fn add(args: AddArgs) -> Result<Outcome, CliError> {
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
    for peer in &args.peers {
        query.append_pair("peer", &peer.to_string());
    }
    let path = format!("/api/v1/torrents?{}", query.finish());
    args.files.check(args.sources.len())?;
    // Loads every file before adding the first torrent, so that a bad file changes nothing.
    let load = |source: &PathBuf| Ok(Source::from(source.as_path()).load()?);
    let files = args.sources.iter().map(load).collect::<Result<Vec<_>, CliError>>()?;
    for metainfo in files {
        let added = daemon.post(&path, metainfo.bytes.clone()).await?;
        say!("{} {}", text(&added["info_hash"]), printable(&metainfo.info.name));
    }
    Ok(Outcome::Done)
}

pub(super) async fn list(args: ListArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    if args.json {
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
    let hash = daemon.resolve(&args.hash).await?;
    let fields: Vec<&str> = match (args.fields.as_slice(), args.json) {
        ([], true) => Field::DEFAULT.map(Field::name).to_vec(),
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
    let hash = daemon.resolve(&args.hash).await?;
    let files = daemon.get(&format!("/api/v1/torrents/{hash}/files")).await?;
    if args.json {
        print_json(&files);
    } else {
        tables::files(&files);
    }
    Ok(Outcome::Done)
}

pub(super) async fn stop(args: StopArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let path = match &args.hash {
        None => "/api/v1/stop".to_owned(),
        Some(hash) => format!("/api/v1/torrents/{}/stop", daemon.resolve(hash).await?),
    };
    daemon.post(&path, Bytes::new()).await?;
    Ok(Outcome::Done)
}

pub(super) async fn remove(args: RemoveArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let hash = daemon.resolve(&args.hash).await?;
    let delete_data = args.delete_data;
    let removed = daemon
        .delete(&format!("/api/v1/torrents/{hash}?delete_data={delete_data}"))
        .await?;
    if args.json {
        print_json(&removed);
    } else {
        tables::removed(&removed);
    }
    Ok(Outcome::Done)
}

/// Minimum number of info-hash digits that identify a torrent.
const MIN_DIGITS: usize = 6;

impl Daemon {
    /// Finds the torrent whose info-hash begins with `digits`.
    async fn resolve(&self, digits: &str) -> Result<InfoHash, CliError> {
        if let Ok(hash) = digits.parse() {
            return Ok(hash);
        }
        if !(MIN_DIGITS..40).contains(&digits.len()) || !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
            let why = "a torrent is named by the 40 hexadecimal digits of its info-hash, or the first 6 or more";
            return Err(CliError::Other(format!("{}: {why}", printable(digits))));
        }
        let torrents = self.get("/api/v1/torrents?fields=info_hash").await?;
        let hashes = torrents
            .as_array()
            .into_iter()
            .flatten()
            .map(|torrent| text(&torrent["info_hash"]));
        let digits = digits.to_ascii_lowercase();
        let found: Vec<&str> = hashes.filter(|hash| hash.starts_with(&digits)).collect();
        match found[..] {
            [hash] => hash
                .parse()
                .map_err(|error| CliError::Other(format!("{hash}: {error}"))),
            [] => Err(CliError::Other(format!(
                "{digits}: no torrent has a hash that begins so"
            ))),
            [..] => Err(CliError::Other(format!(
                "{digits}: {} torrents have a hash that begins so",
                found.len()
            ))),
        }
    }
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
