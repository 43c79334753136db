//! `create`: makes a torrent from a file or folder.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use ecs_torrent::engine::backends::whole_file;
use ecs_torrent::making::{MakeOptions, Plan, Renamed};

use super::output::{Screen, printable};
use super::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent create ./album -o album.torrent --tracker http://tracker.example/announce
  ecs-torrent create disk.img -o disk.torrent --piece-length 4194304 --private

Warns about names that change when the torrent is read (a leading dot of the top-level name, backslashes, control
characters, names that differ only in case). Fails if a file changes while it is hashed.")]
pub(super) struct CreateArgs {
    /// The file or folder.
    path: PathBuf,
    /// The torrent file to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// A tracker's announce URL; more than one is tried in order.
    #[arg(long = "tracker", value_name = "URL")]
    trackers: Vec<String>,
    /// Bytes of each piece, a power of two from 16 KiB; chosen by size if not given.
    #[arg(long, value_name = "N")]
    piece_length: Option<u32>,
    /// Peers may come from the trackers only.
    #[arg(long)]
    private: bool,
    /// Free text.
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// A web server that has the data too.
    #[arg(long = "web-seed", value_name = "URL")]
    web_seeds: Vec<String>,
}

pub(super) fn run(args: CreateArgs, screen: &Screen) -> Result<Outcome, CliError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    let plan = Plan::new(
        &args.path,
        MakeOptions {
            piece_length: args.piece_length,
            trackers: args.trackers,
            web_seeds: args.web_seeds,
            private: args.private,
            comment: args.comment,
            created_by: Some(concat!("ecs-torrent ", env!("CARGO_PKG_VERSION")).to_owned()),
            creation_date: now.and_then(|now| i64::try_from(now.as_secs()).ok()),
        },
    )?;
    warn(plan.renamed(), screen);
    let bar = screen.hashing_bar(plan.total_size(), "hashing");
    let bytes = plan.make(&|done| bar.set_position(done));
    bar.finish_and_clear();
    let bytes = bytes?;
    write(&args.output, &bytes).map_err(CliError::io(format!("cannot write {}", args.output.display())))?;
    let metainfo = ecs_torrent::Source::from(bytes::Bytes::from(bytes)).load()?;
    say!("{} {}", metainfo.hashes.primary(), args.output.display());
    Ok(Outcome::Done)
}

/// Prints a warning for the first few renamed files and the number of the others.
fn warn(renamed: &[Renamed], screen: &Screen) {
    const SHOWN: usize = 5;
    for Renamed { found, read } in renamed.iter().take(SHOWN) {
        let (found, read) = (printable(found), printable(read));
        screen.warning(format_args!(
            "{found}: will be read as {read}; rename it to seed it in place"
        ));
    }
    if renamed.len() > SHOWN {
        screen.warning(format_args!("and {} more names", renamed.len() - SHOWN));
    }
}

/// Writes a torrent file atomically: an existing file stays until the new one is complete.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = std::fs::File::open(folder.unwrap_or(Path::new(".")))?;
    let name = path.file_name().ok_or(std::io::ErrorKind::IsADirectory)?;
    // No file of the user has this name.
    let temporary = format!(".ecs-torrent-{}.tmp", std::process::id());
    whole_file::replace(folder, Path::new(name), Path::new(&temporary), 0o644, bytes)
}
