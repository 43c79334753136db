//! `state`: exports and imports of all state.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ecs_torrent::archive::{self, Exported, Imported, LeftOut};
use ecs_torrent::engine::backends::StartError;
use ecs_torrent::engine::backends::state::LockedState;
use ecs_torrent::engine::backends::whole_file::read_stream;
use ecs_torrent::migration::{self, Client};
use serde_json::Value;

use super::client::DaemonAddress;
use super::client::connection::Daemon;
use super::output::{self, Screen, print_json, printable};
use super::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent state export backup.tar
  ecs-torrent state export - | zstd > backup.tar.zst
  ecs-torrent state import backup.tar --state-dir /var/lib/ecs")]
pub(super) struct StateArgs {
    #[command(subcommand)]
    command: StateCommand,
}

#[derive(Debug, Subcommand)]
enum StateCommand {
    /// Write all state to one archive, also while the daemon runs.
    Export(ExportArgs),
    /// Add the torrents and settings of an archive, also while the daemon runs.
    Import(ImportArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
The archive is a tar file with the sessions and torrent files of all torrents
(folders, verified pieces, limits, queue order, labels, counters), the settings
that were changed at run time, the tables of the DHT and the followed links. The
API's token, the configuration file and the data itself are not in it. Keep it
like a password: it contains passkeys of trackers.

Examples:
  ecs-torrent state export backup.tar
  ecs-torrent state export - | zstd > backup.tar.zst")]
struct ExportArgs {
    /// The new archive, or - for standard output.
    file: PathBuf,
    /// The state folder.
    #[arg(long, value_name = "DIR", default_value = ".ecs_torrent")]
    state_dir: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The archive is checked as a whole before anything is added; a kill leaves all of
it or nothing. Torrents that are there already are left out. The folders of the
torrents are those of the archive (`relocate` changes one). Data whose sizes and
times differ from the sessions is hashed again. While the daemon runs, it has to
allow the folders (api.allow_roots), and keeps its own DHT tables and links.
Only import your own archives: they are trusted like the state folder.

With --from, the torrents of another client continue here: with its verified
pieces, folders, names, priorities, counters, limits and labels, and without
hashing what has not changed. Stop the other client first, and use its own
state folder or a copy with its times (cp -a). Its state is in
  qbittorrent   ~/.local/share/qBittorrent/BT_backup
  transmission  ~/.config/transmission, or transmission-daemon
  rtorrent      the folder of session.path.set in ~/.rtorrent.rc
Its files stay yours: --delete-data does not delete them.

Examples:
  ecs-torrent state import backup.tar
  ecs-torrent state import --from transmission ~/.config/transmission
  zstd -dc backup.tar.zst | ecs-torrent state import - --json")]
struct ImportArgs {
    /// The archive, or - for standard input; with --from, a folder.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The other client whose state is imported: qbittorrent, transmission or
    /// rtorrent.
    #[arg(long, value_name = "CLIENT")]
    from: Option<Client>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

/// Largest archive that is sent to a daemon, in bytes. It is in memory meanwhile.
const MAX_SENT_BYTES: u64 = 4 << 30;

pub(super) async fn run(args: StateArgs, screen: Screen) -> Result<Outcome, CliError> {
    match args.command {
        StateCommand::Export(args) => export(&args, &screen),
        StateCommand::Import(args) => import(args, &screen).await,
    }
}

fn is_stream(path: &Path) -> bool {
    path == Path::new("-")
}

fn export(args: &ExportArgs, screen: &Screen) -> Result<Outcome, CliError> {
    let failed = || CliError::io(args.file.display().to_string());
    let exported = if is_stream(&args.file) {
        if io::stdout().is_terminal() {
            return Err(CliError::Usage("an archive is not printed on a terminal".to_owned()));
        }
        archive::export(&args.state_dir, io::BufWriter::new(io::stdout().lock()))?
    } else {
        if args.file.symlink_metadata().is_ok() {
            return Err(failed()(io::ErrorKind::AlreadyExists.into()));
        }
        let parent = args.file.parent().filter(|parent| !parent.as_os_str().is_empty());
        // Only its owner may read a temporary file.
        let temporary = tempfile::NamedTempFile::new_in(parent.unwrap_or(Path::new("."))).map_err(failed())?;
        let mut out = io::BufWriter::new(temporary.as_file());
        let exported = archive::export(&args.state_dir, &mut out)?;
        out.flush().map_err(failed())?;
        drop(out);
        temporary.as_file().sync_all().map_err(failed())?;
        let kept = temporary.persist_noclobber(&args.file);
        kept.map_err(|error| failed()(error.error))?;
        exported
    };
    for left_out in &exported.left_out {
        screen.warning(format_args!("left out: {}", printable(&left_out.to_string())));
    }
    if !is_stream(&args.file) {
        match args.json {
            true => print_json(&exported),
            false => say!(
                "{} in {}",
                output::count(exported.torrents, "torrent"),
                printable(&args.file.display().to_string())
            ),
        }
    }
    Ok(match exported.left_out.is_empty() {
        true => Outcome::Done,
        false => Outcome::Failed,
    })
}

async fn import(args: ImportArgs, screen: &Screen) -> Result<Outcome, CliError> {
    let mut converted = Exported::default();
    let source: Box<dyn Read> = match args.from {
        Some(client) => {
            let (archive, exported) = convert(client, &args.file)?;
            converted = exported;
            Box::new(archive)
        }
        None if is_stream(&args.file) => Box::new(io::stdin().lock()),
        None => Box::new(File::open(&args.file).map_err(CliError::io(args.file.display().to_string()))?),
    };
    let mut imported = deliver(io::BufReader::new(source), &args.daemon).await?;
    let is_useless = args.from.is_some() && imported["torrents"].as_array().is_none_or(Vec::is_empty);
    let json =
        |left_out: &[LeftOut]| serde_json::to_value(left_out).map_err(|error| CliError::Other(error.to_string()));
    if let (Some(others), Value::Array(more)) = (imported["left_out"].as_array_mut(), json(&converted.left_out)?) {
        others.splice(..0, more);
    }
    if args.from.is_some() {
        imported["notes"] = json(&converted.notes)?;
    }
    report(&imported, args.json, screen);
    Ok(if is_useless { Outcome::Failed } else { Outcome::Done })
}

/// Writes the state of another client to an archive without a name.
fn convert(client: Client, folder: &Path) -> Result<(File, Exported), CliError> {
    let failed = || CliError::io("a temporary file");
    let mut archive = tempfile::tempfile().map_err(failed())?;
    let exported = migration::archive(client, folder, io::BufWriter::new(&archive))?;
    archive.rewind().map_err(failed())?;
    Ok((archive, exported))
}

/// Adds an archive to the state folder, or sends it to the daemon that uses the folder.
async fn deliver(archive: impl Read, daemon: &DaemonAddress) -> Result<Value, CliError> {
    if daemon.api.is_none() {
        match LockedState::take(&daemon.state_dir) {
            Ok(_lock) => {
                let imported: Imported = archive::stage(archive, &daemon.state_dir, &mut ())?.commit()?;
                let json = serde_json::to_value(imported);
                return json.map_err(|error| CliError::Other(error.to_string()));
            }
            Err(StartError::StateDirInUse { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let bytes = read_stream(archive, MAX_SENT_BYTES).map_err(CliError::io("the archive"))?;
    let daemon = Daemon::find(daemon)?.without_time_limit();
    daemon.post_bytes("/api/v1/state", bytes.into()).await
}

fn report(imported: &Value, is_json: bool, screen: &Screen) {
    if is_json {
        return print_json(imported);
    }
    let list = |name: &str| imported[name].as_array().map(Vec::as_slice).unwrap_or_default().iter();
    let words = |entry: &Value| {
        let words = ["id", "name", "reason"].map(|name| entry[name].as_str().unwrap_or_default());
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        printable(&words.join(" "))
    };
    for note in list("notes") {
        screen.warning(format_args!("{}", words(note)));
    }
    for left_out in list("left_out") {
        screen.warning(format_args!("left out: {}", words(left_out)));
    }
    let features: Vec<&str> = list("features").filter_map(Value::as_str).collect();
    say!(
        "{} imported{}{}",
        output::count(list("torrents").len(), "torrent"),
        if features.is_empty() { "" } else { ", and: " },
        printable(&features.join(", "))
    );
}
