//! `dht`: queries the daemon's DHT node.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use ecs_torrent::InfoHash;
use ecs_torrent::components::dht::DhtError;
use ecs_torrent::daemon::Token;
use ecs_torrent::dht::sign_next;
use ecs_torrent::engine::backends::whole_file::{read_stream, read_text};
use ecs_torrent::protocol::dht::id::NodeId;
use ecs_torrent::protocol::dht::items::{Item, Proof, mutable_target, public_key};
use ecs_torrent::protocol::magnet::{Magnet, MagnetError, MutableLink};
use serde_json::json;

use super::connection::Daemon;
use super::values::text;
use super::{DaemonAddress, settings};
use crate::cli::output::{self, Screen, print_json, printable};
use crate::cli::searching::Ways;
use crate::cli::{CliError, Outcome};

/// Longest secret file, in bytes: the digits of a key and white space around them.
const MAX_SECRET_FILE: u64 = 1024;

/// Maximum number of bytes of a value that is read. An item of the DHT has at most 1000.
const MAX_VALUE: u64 = 4096;

#[derive(Debug, Args)]
pub(in crate::cli) struct DhtArgs {
    #[command(subcommand)]
    command: DhtCommand,
}

#[derive(Debug, Subcommand)]
enum DhtCommand {
    /// Show the state of the daemon's node.
    #[command(after_help = "Example:\n  ecs-torrent dht stats")]
    Stats(StatsArgs),
    /// Search for peers of a torrent.
    #[command(after_help = "\
The torrent need not be in the daemon's list. Nothing is announced, and no peer
is connected to. Nodes that store its peers estimate how many seeds there are.

Examples:
  ecs-torrent dht lookup 0c1f3b05aef04c0a1c0e0c5e9a4d1f0a9d1f3b05
  ecs-torrent dht lookup 'magnet:?xt=urn:btih:...' --json")]
    Lookup(LookupArgs),
    /// Get an item.
    #[command(after_help = "\
An item with a salt is found only with its salt. In the JSON, `value` is the
bencoded value in hexadecimal digits; `text` is there if it is a UTF-8 string.

Examples:
  ecs-torrent dht get e5f96f6f38320f0f33959cb4d3d656452117aadb
  ecs-torrent dht get --salt news e5f96f6f38320f0f33959cb4d3d656452117aadb
  ecs-torrent dht get --salt news --key KEY")]
    #[command(override_usage = "ecs-torrent dht get [OPTIONS] <TARGET | --key KEY>")]
    Get(GetArgs),
    /// Store an item for two hours.
    #[command(after_help = "\
Without --secret the item cannot be changed, and is found by its hash. With it,
the item is found by the public key, and each `put` replaces the one before.
Prints the command that gets the item. The JSON has the salt in hexadecimal
digits.

Examples:
  ecs-torrent dht put 'Hello World!'
  ecs-torrent dht put 'version 2' --secret news.key --salt news
  cat item.bencoded | ecs-torrent dht put --bencoded -")]
    Put(PutArgs),
    /// Find the torrent that a publisher names under a public key (BEP 46).
    #[command(after_help = "\
Prints a magnet link with the current info-hash.

Example:
  ecs-torrent fetch \"$(ecs-torrent dht resolve 'magnet:?xs=urn:btpk:...')\" -o it.torrent")]
    Resolve(ResolveArgs),
    /// Watch the torrent that a publisher names under a public key (BEP 46).
    #[command(after_help = "\
Prints a magnet link for the current torrent, and for each that replaces it,
until interrupted. To download them, give the link to `add`.

Example:
  ecs-torrent dht follow 'magnet:?xs=urn:btpk:...'")]
    Follow(FollowArgs),
    /// Name a torrent under a public key (BEP 46).
    #[command(after_help = "\
Prints the link, which stays the same when another torrent is published. Nodes
forget it after two hours, so the daemon publishes it again every hour until
`dht unfollow`, also after a restart; it does not need the secret key for that.

Examples:
  ecs-torrent dht publish 0c1f3b05aef04c0a1c0e0c5e9a4d1f0a9d1f3b05 --secret news.key
  ecs-torrent dht publish 'magnet:?xt=urn:btih:...' --secret news.key --once")]
    Publish(PublishArgs),
    /// List the links that the daemon follows or publishes (BEP 46).
    #[command(after_help = "\
`add` follows a link, `publish` keeps one. Prints the link, and its torrent.

Examples:
  ecs-torrent dht links
  ecs-torrent dht links --json | jq -r '.[].info_hash'")]
    Links(LinksArgs),
    /// End the following or publishing of a link (BEP 46).
    #[command(after_help = "\
The torrents stay as they are. `remove` of the link's torrent ends it too.

Example:
  ecs-torrent dht unfollow 'magnet:?xs=urn:btpk:...'")]
    Unfollow(UnfollowArgs),
}

#[derive(Debug, Args)]
struct StatsArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
struct LookupArgs {
    /// Info-hash, 40 digits, or magnet link.
    torrent: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("item").required(true).args(["target", "key"]))]
struct GetArgs {
    /// The item's target, 40 digits.
    target: Option<String>,
    /// The publisher's public key, 64 digits, in place of the target.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// The salt of a mutable item.
    #[arg(long, value_name = "TEXT", default_value = "")]
    salt: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
struct PutArgs {
    /// The value: a text, or `-` for the standard input.
    value: String,
    /// The value is bencoded already.
    #[arg(long)]
    bencoded: bool,
    /// File with the secret key of a mutable item; created if it does not exist.
    #[arg(long, value_name = "FILE")]
    secret: Option<PathBuf>,
    /// The salt of a mutable item: one key may publish an item under each.
    #[arg(long, value_name = "TEXT", default_value = "", requires = "secret")]
    salt: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
struct ResolveArgs {
    /// Magnet link with a public key, `magnet:?xs=urn:btpk:...`.
    link: String,
    /// Print JSON: the info-hash, the magnet link and the item's sequence number.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
struct FollowArgs {
    /// Magnet link with a public key, `magnet:?xs=urn:btpk:...`.
    link: String,
    /// Seconds between two searches.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u64).range(60..=86_400))]
    interval: u64,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
struct PublishArgs {
    /// Info-hash, 40 digits, or magnet link.
    torrent: String,
    /// File with the secret key; created if it does not exist.
    #[arg(long, value_name = "FILE")]
    secret: PathBuf,
    /// The salt: one key may name a torrent under each.
    #[arg(long, value_name = "TEXT", default_value = "")]
    salt: String,
    /// Do not publish it again every hour.
    #[arg(long)]
    once: bool,
    /// Print JSON: the link and the stored item.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
struct LinksArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
struct UnfollowArgs {
    /// Magnet link with a public key, `magnet:?xs=urn:btpk:...`.
    link: String,
    #[command(flatten)]
    daemon: DaemonAddress,
}

pub(in crate::cli) async fn run(args: DhtArgs, screen: Screen) -> Result<Outcome, CliError> {
    match args.command {
        DhtCommand::Stats(args) => stats(args).await,
        DhtCommand::Lookup(args) => look_up(args, &screen).await,
        DhtCommand::Get(args) => get(args, &screen).await,
        DhtCommand::Put(args) => put(args, &screen).await,
        DhtCommand::Resolve(args) => resolve(args, &screen).await,
        DhtCommand::Follow(args) => follow(args).await,
        DhtCommand::Publish(args) => publish(args, &screen).await,
        DhtCommand::Links(args) => links(args).await,
        DhtCommand::Unfollow(args) => unfollow(args).await,
    }
}

async fn stats(args: StatsArgs) -> Result<Outcome, CliError> {
    let stats = Daemon::find(&args.daemon)?.get("/api/v1/dht").await?;
    if args.json {
        print_json(&stats);
        return Ok(Outcome::Done);
    }
    let count = |name: &str| stats[name].as_u64().unwrap_or_default();
    let moved = |way: &str| {
        let bytes = output::bytes(count(&format!("bytes_{way}")));
        format!("{bytes} in {} datagrams", count(&format!("datagrams_{way}")))
    };
    for (label, name) in [("IPv4", "ipv4"), ("IPv6", "ipv6")] {
        let network = &stats[name];
        if network.is_null() {
            say!("{label:<10} off");
            continue;
        }
        let nodes = |name: &str| network[name].as_u64().unwrap_or_default();
        say!(
            "{label:<10} {} nodes, {} of them good",
            nodes("nodes"),
            nodes("good_nodes")
        );
        say!("{:<10} id {}", "", printable(text(&network["id"])));
        if let Some(address) = network["external_address"].as_str() {
            say!("{:<10} our address is {}", "", printable(address));
        }
    }
    for node in stats["further"].as_array().into_iter().flatten() {
        let nodes = |name: &str| node[name].as_u64().unwrap_or_default();
        say!(
            "{:<10} at {}: {} nodes, {} of them good",
            "",
            printable(text(&node["address"])),
            nodes("nodes"),
            nodes("good_nodes")
        );
    }
    say!(
        "{:<10} {} peers of {} torrents, {} items",
        "stored",
        count("stored_peers"),
        count("stored_torrents"),
        count("stored_items")
    );
    say!("{:<10} {} running", "searches", count("searches"));
    say!("{:<10} {}", "sent", moved("sent"));
    say!("{:<10} {}", "received", moved("received"));
    say!(
        "{:<10} {} sent, {} answered; {} received, {} refused",
        "queries",
        count("queries_sent"),
        count("replies_received"),
        count("queries_received"),
        count("queries_refused")
    );
    Ok(Outcome::Done)
}

async fn look_up(args: LookupArgs, screen: &Screen) -> Result<Outcome, CliError> {
    let hash = info_hash(&args.torrent)?;
    let daemon = begin_search(&args.daemon, screen).await?;
    let found = daemon.get(&format!("/api/v1/dht/peers/{hash}")).await?;
    if args.json {
        print_json(&found);
        return Ok(Outcome::Done);
    }
    let peers = found["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    for peer in peers {
        say!("{}", printable(text(peer)));
    }
    let nodes = found["nodes"].as_u64().unwrap_or_default() as usize;
    let summary = format!(
        "{} from {}",
        output::count(peers.len(), "peer"),
        output::count(nodes, "node")
    );
    screen.note(match (found["seeds"].as_u64(), found["downloaders"].as_u64()) {
        (Some(seeds), Some(others)) => format!(
            "{summary}; the nodes estimate {} and {}",
            output::count(seeds as usize, "seed"),
            output::count(others as usize, "downloader")
        ),
        _ => summary,
    });
    Ok(Outcome::Done)
}

/// Returns the methods by which the daemon finds peers.
pub(super) async fn ways(daemon: &Daemon) -> Result<Ways, CliError> {
    let (stats, settings) = (daemon.get("/api/v1/dht").await?, daemon.get(settings::PATH).await?);
    let further = stats["further"].as_array().into_iter().flatten();
    let networks = [&stats["ipv4"], &stats["ipv6"]].into_iter().chain(further);
    let nodes: Vec<u64> = networks.filter_map(|network| network["nodes"].as_u64()).collect();
    Ok(Ways {
        dht_nodes: (!nodes.is_empty()).then(|| nodes.iter().sum::<u64>() as usize),
        lsd: settings["settings"]["lsd"]["enabled"] == true,
    })
}

/// Finds the daemon, and informs a user at a terminal that the search takes some seconds. Fails if the daemon's DHT is
/// off.
async fn begin_search(place: &DaemonAddress, screen: &Screen) -> Result<Daemon, CliError> {
    let daemon = Daemon::find(place)?;
    let stats = daemon.get("/api/v1/dht").await?;
    if stats["ipv4"].is_null() && stats["ipv6"].is_null() {
        let why = "--no-dht, dht.enabled, or private addresses only";
        return Err(CliError::Other(format!("{} in the daemon: {why}", DhtError::Off)));
    }
    if screen.is_terminal() {
        screen.note("searching the DHT...");
    }
    Ok(daemon)
}

fn info_hash(torrent: &str) -> Result<InfoHash, CliError> {
    if torrent.starts_with("magnet:") {
        let magnet: Magnet = torrent
            .parse()
            .map_err(|error: MagnetError| CliError::Usage(error.to_string()))?;
        return Ok(magnet.hashes.primary());
    }
    // The form of old links.
    if let Ok(magnet) = format!("magnet:?xt=urn:btih:{torrent}").parse::<Magnet>() {
        return Ok(magnet.hashes.primary());
    }
    let parsed = torrent.parse();
    parsed.map_err(|error| CliError::Usage(format!("{}: {error}", printable(torrent))))
}

async fn get(args: GetArgs, screen: &Screen) -> Result<Outcome, CliError> {
    let salt = args.salt.as_bytes();
    let target = match (&args.key, &args.target) {
        (Some(key), _) => {
            let parsed = const_hex::decode_to_array(key);
            let not_a_key = |_| CliError::Usage(format!("{}: a public key is 64 hexadecimal digits", printable(key)));
            mutable_target(&parsed.map_err(not_a_key)?, salt)
        }
        (None, target) => {
            let target = target.as_deref().unwrap_or_default();
            let not_a_target = |_| CliError::Usage(format!("{}: a target is 40 hexadecimal digits", printable(target)));
            target.parse::<NodeId>().map_err(not_a_target)?
        }
    };
    let daemon = begin_search(&args.daemon, screen).await?;
    let item = daemon.get_if_there(&item_path(target, salt)).await?;
    let item = item.ok_or_else(|| {
        CliError::Other(match args.salt.is_empty() {
            true => format!("no node has the item {target}; if it has a salt, name it with --salt"),
            false => format!("no node has the item {target} with the salt {}", printable(&args.salt)),
        })
    })?;
    if args.json {
        print_json(&item);
        return Ok(Outcome::Done);
    }
    match item["text"].as_str() {
        Some(text) => say!("{}", printable(text)),
        None => {
            let value = const_hex::decode(text(&item["value"])).unwrap_or_default();
            say!("{}", printable(&String::from_utf8_lossy(&value)));
        }
    }
    Ok(Outcome::Done)
}

fn item_path(target: NodeId, salt: &[u8]) -> String {
    format!("/api/v1/dht/items/{target}?salt={}", const_hex::encode(salt))
}

async fn put(args: PutArgs, screen: &Screen) -> Result<Outcome, CliError> {
    let value = read_value(&args)?;
    let daemon = begin_search(&args.daemon, screen).await?;
    let stored = match &args.secret {
        Some(file) => put_signed(&daemon, file, args.salt.as_bytes(), value, false).await?.0,
        None => daemon.post_bytes("/api/v1/dht/items", value.into()).await?,
    };
    if args.json {
        print_json(&stored);
        return Ok(Outcome::Done);
    }
    let nodes = stored["nodes"].as_u64().unwrap_or_default() as usize;
    let target = printable(text(&stored["target"]));
    say!("target {target}");
    let key = stored["key"].as_str().map(printable);
    if let Some(key) = &key {
        say!("key    {key}");
    }
    say!("stored at {}", output::count(nodes, "node"));
    let item = key.map_or(target, |key| format!("--key {key}"));
    match args.salt.is_empty() {
        true => say!("ecs-torrent dht get {item}"),
        false => say!("ecs-torrent dht get --salt {} {item}", quoted(&args.salt)),
    }
    Ok(Outcome::Done)
}

/// Quotes a text so that a shell reads it as one word.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._/:@%+=-".contains(c);
    match text.chars().all(is_plain) && !text.starts_with('-') {
        true => text.to_owned(),
        false => format!("'{}'", printable(text).replace('\'', r"'\''")),
    }
}

fn mutable_link(text: &str) -> Result<MutableLink, CliError> {
    text.parse()
        .map_err(|error: MagnetError| CliError::Usage(error.to_string()))
}

/// Returns the torrent that a link names and its sequence number; `None` if no node has its item.
async fn find_torrent(daemon: &Daemon, link: &MutableLink) -> Result<Option<(InfoHash, i64)>, CliError> {
    let Some(item) = daemon.get_if_there(&item_path(link.target(), &link.salt)).await? else {
        return Ok(None);
    };
    let value = const_hex::decode(text(&item["value"])).unwrap_or_default();
    let torrent = MutableLink::torrent_in(&value).ok_or_else(|| CliError::Other(DhtError::NoTorrent.to_string()))?;
    Ok(Some((torrent, item["signed"]["seq"].as_i64().unwrap_or_default())))
}

async fn resolve(args: ResolveArgs, screen: &Screen) -> Result<Outcome, CliError> {
    let link = mutable_link(&args.link)?;
    let daemon = begin_search(&args.daemon, screen).await?;
    let (torrent, seq) = find_torrent(&daemon, &link)
        .await?
        .ok_or_else(|| CliError::Other("no node knows the torrent of this key".into()))?;
    let magnet = Magnet::from(torrent).to_string();
    match args.json {
        true => print_json(&json!({"info_hash": torrent.to_string(), "magnet": magnet, "seq": seq})),
        false => say!("{magnet}"),
    }
    Ok(Outcome::Done)
}

async fn follow(args: FollowArgs) -> Result<Outcome, CliError> {
    let link = mutable_link(&args.link)?;
    let daemon = Daemon::find(&args.daemon)?;
    let mut known = None;
    loop {
        if let Some((torrent, seq)) = find_torrent(&daemon, &link).await?
            && known.is_none_or(|known| seq > known)
        {
            known = Some(seq);
            let magnet = format!("magnet:?xt=urn:btih:{torrent}");
            say!("{magnet}");
        }
        tokio::time::sleep(Duration::from_secs(args.interval)).await;
    }
}

async fn publish(args: PublishArgs, screen: &Screen) -> Result<Outcome, CliError> {
    let value = MutableLink::value_of(info_hash(&args.torrent)?);
    let daemon = begin_search(&args.daemon, screen).await?;
    let (mut stored, item) = put_signed(&daemon, &args.secret, args.salt.as_bytes(), value, !args.once).await?;
    let link = item.proof.map(|Proof { key, .. }| {
        let salt = args.salt.into_bytes();
        MutableLink { key, salt }.to_string()
    });
    if args.json {
        stored["link"] = link.into();
        print_json(&stored);
        return Ok(Outcome::Done);
    }
    link.iter().for_each(|link| say!("{link}"));
    let nodes = stored["nodes"].as_u64().unwrap_or_default() as usize;
    screen.note(format!("stored at {}", output::count(nodes, "node")));
    Ok(Outcome::Done)
}

async fn links(args: LinksArgs) -> Result<Outcome, CliError> {
    let links = Daemon::find(&args.daemon)?.get("/api/v1/dht/links").await?;
    if args.json {
        print_json(&links);
        return Ok(Outcome::Done);
    }
    let links = links.as_array().map_or(&[][..], |links| links);
    if links.is_empty() {
        say!("no links");
    }
    for link in links {
        say!("{}", printable(text(&link["link"])));
        if link["is_downloaded"] == true {
            let torrent = link["info_hash"].as_str().unwrap_or("not found yet");
            say!("    followed: {}", printable(torrent));
        } else {
            let torrent = link["info_hash"].as_str().unwrap_or("no torrent");
            say!("    published: {}, number {}", printable(torrent), link["seq"]);
        }
        if let Some(error) = link["error"].as_str() {
            say!("    {}", printable(error));
        }
    }
    Ok(Outcome::Done)
}

async fn unfollow(args: UnfollowArgs) -> Result<Outcome, CliError> {
    let target = mutable_link(&args.link)?.target();
    let path = format!("/api/v1/dht/links/{target}");
    Daemon::find(&args.daemon)?.delete(&path).await?;
    Ok(Outcome::Done)
}

/// Stores a value under the key of a secret file, in place of the item that is there. With `keep`, the daemon stores it
/// again every hour.
async fn put_signed(
    daemon: &Daemon,
    secret: &Path,
    salt: &[u8],
    value: Vec<u8>,
    keep: bool,
) -> Result<(serde_json::Value, Item), CliError> {
    let secret = read_secret(secret)?;
    let target = mutable_target(&public_key(&secret), salt);
    let stored = daemon.get_if_there(&item_path(target, salt)).await?;
    let last = stored.as_ref().and_then(|item| item["signed"]["seq"].as_i64());
    let item = sign_next(&secret, salt, &value, last).map_err(|error| CliError::Other(error.to_string()))?;
    let keep = if keep { "&keep=true" } else { "" };
    let path = format!("/api/v1/dht/items?{}{keep}", parameters(&item, salt, last));
    Ok((daemon.post_bytes(&path, value.into()).await?, item))
}

/// Returns the query of a request that stores a signed item.
fn parameters(item: &Item, salt: &[u8], cas: Option<i64>) -> String {
    let proof = item.proof.as_ref().map(|proof| {
        let (key, signature) = (const_hex::encode(proof.key), const_hex::encode(proof.signature));
        format!("key={key}&signature={signature}&seq={}", proof.seq)
    });
    let salt = format!("salt={}", const_hex::encode(salt));
    let cas = cas.map(|cas| format!("cas={cas}"));
    let all: Vec<String> = proof.into_iter().chain([salt]).chain(cas).collect();
    all.join("&")
}

/// Reads the value and bencodes it, unless it is bencoded already.
fn read_value(args: &PutArgs) -> Result<Vec<u8>, CliError> {
    let mut value = args.value.clone().into_bytes();
    if args.value == "-" {
        value = read_stream(io::stdin().lock(), MAX_VALUE).map_err(CliError::io("standard input"))?;
    }
    Ok(match args.bencoded {
        true => value,
        false => [format!("{}:", value.len()).as_bytes(), &value].concat(),
    })
}

/// Reads a secret key; creates one, which only the user can read, if there is no file.
fn read_secret(path: &Path) -> Result<[u8; 32], CliError> {
    let fail = |error: &dyn std::fmt::Display| CliError::Other(format!("{}: {error}", path.display()));
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let digits = match created {
        Ok(mut file) => {
            let digits = Token::nonce().map_err(|error| fail(&error))?;
            let written = writeln!(file, "{digits}").and_then(|()| file.sync_all());
            written.map_err(|error| fail(&error))?;
            digits
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            read_text(path, MAX_SECRET_FILE).map_err(|error| fail(&error))?
        }
        Err(error) => return Err(fail(&error)),
    };
    let digits = digits.trim();
    let secret = if digits.len() == 64 {
        const_hex::decode_to_array(digits).ok()
    } else {
        None
    };
    secret.ok_or_else(|| fail(&"a secret key is 64 hexadecimal digits"))
}
