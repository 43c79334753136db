//! `verify`: checks files against their torrent.

use std::path::{Path, PathBuf};

use clap::Args;
use ecs_torrent::Source;
use ecs_torrent::verifying::{BadFile, verify};
use serde::Serialize;

use super::output::{self, Screen, printable};
use super::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Exits with 0 only if every piece is valid. Names the files with invalid pieces;
a piece at the border of two files counts for both.

Example:
  ecs-torrent verify linux.torrent --data ~/iso")]
pub(super) struct VerifyArgs {
    /// The torrent file.
    torrent: PathBuf,
    /// The folder that holds the torrent's file or folder.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    info_hash: String,
    good: u32,
    bad: u32,
    errors: &'a [String],
    files: Vec<File<'a>>,
}

/// A file with invalid pieces.
#[derive(Serialize)]
struct File<'a> {
    path: &'a str,
    bad: u32,
    pieces: u32,
}

/// Maximum number of files with invalid pieces that are listed for users.
const MAX_LISTED: usize = 20;

impl<'a> From<&'a BadFile> for File<'a> {
    fn from(BadFile { path, bad, pieces }: &'a BadFile) -> Self {
        let (bad, pieces) = (*bad, *pieces);
        Self { path, bad, pieces }
    }
}

/// Returns advice where `--data` names the torrent's own folder instead of the one that holds it, or a folder without
/// the torrent's file or folder.
pub(super) fn data_instead(data: &Path, name: &str) -> Option<String> {
    if data.join(name).symlink_metadata().is_ok() {
        return None;
    }
    let there = data.canonicalize().ok()?;
    let advice = match there.parent() {
        Some(parent) if there.file_name().is_some_and(|own| own == name) => {
            format!("; did you mean --data {}?", parent.display())
        }
        _ => String::new(),
    };
    let (name, data) = (printable(name), data.display());
    Some(format!("{data} does not contain {name}{advice}"))
}

pub(super) fn run(args: &VerifyArgs, screen: &Screen) -> Result<Outcome, CliError> {
    let metainfo = Source::from(args.torrent.as_path()).load()?;
    if !args.data.is_dir() {
        return Err(CliError::Other(format!("{}: not a folder", args.data.display())));
    }
    if let Some(data) = data_instead(&args.data, &metainfo.info.name) {
        screen.warning(data);
    }
    screen.clear_when_interrupted()?;
    let bar = screen.hashing_bar(metainfo.info.geometry.total_size(), "hashing");
    let verdict = verify(&metainfo, &args.data, &|done| bar.set_position(done));
    bar.finish_and_clear();
    verdict.errors.iter().for_each(|error| screen.error(error));
    if args.json {
        let report = Report {
            info_hash: metainfo.hashes.primary().to_string(),
            good: verdict.good,
            bad: verdict.bad,
            errors: &verdict.errors,
            files: verdict.files.iter().map(File::from).collect(),
        };
        let json = serde_json::to_string(&report).map_err(|error| CliError::Other(error.to_string()))?;
        say!("{json}");
    } else {
        for BadFile { path, bad, pieces } in verdict.files.iter().take(MAX_LISTED) {
            say!(
                "{}: {bad} of {} invalid",
                printable(path),
                output::count(*pieces as usize, "piece")
            );
        }
        if let more @ 1.. = verdict.files.len().saturating_sub(MAX_LISTED) {
            say!("{} more with invalid pieces", output::count(more, "file"));
        }
        say!("{} valid, {} invalid", verdict.good, verdict.bad);
    }
    Ok(if verdict.is_good() {
        Outcome::Done
    } else {
        Outcome::Failed
    })
}
