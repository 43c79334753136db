//! `move` and `relocate`: moves a torrent's files to another folder, or finds them there.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::connection::Daemon;
use super::values::text;
use super::{DaemonAddress, Found, absolute, print_json};
use crate::cli::output::{self, printable};
use crate::cli::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
The torrent leaves its peers, its files are moved, and it continues. On one
file system that takes no time; otherwise the files are copied, verified and
then deleted at the old place. Files that the torrent did not create stay there
too. Nothing is overwritten. The command waits until the move has ended;
`stats HASH --fields state,moving` shows the progress.
After a kill the daemon ends the move when it starts again. `pause` interrupts
it; a move to the folder where the files are undoes it then.
Several torrents are moved independently of each other. Of a torrent whose
metadata is not known yet, only the download folder changes.

Examples:
  ecs-torrent move 0c1f3b /mnt/archive
  ecs-torrent move 0c1f3b 4d5e6f 'My album' /mnt/archive")]
pub(in crate::cli) struct MoveArgs {
    /// Names of torrents, or the first 4 or more digits of their info-hashes.
    #[arg(required = true, value_name = "HASH")]
    hashes: Vec<String>,
    /// The new download folder.
    folder: PathBuf,
    /// Print the result as JSON: of several torrents, the results of all.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is moved: the files are in the folder already, for example because their
volume is mounted at another path now. Every file that the torrent has must be
there with its length. Files that have changed otherwise are hashed again.

Example:
  ecs-torrent relocate 0c1f3b /mnt/other/archive")]
pub(in crate::cli) struct RelocateArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: String,
    /// The folder that has the files now.
    folder: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

/// Moves a torrent's files to a folder, or informs the daemon that they are there. Returns the torrent and the answer.
async fn place(daemon: &Daemon, hash: &str, folder: &Path, is_move: bool) -> Result<(Found, Value), CliError> {
    let found = daemon.find_running(hash).await?;
    let body = json!({"root": absolute(folder)?, "move": is_move});
    let path = format!("/api/v1/torrents/{}/move", found.hash);
    let moved = daemon.post_json(&path, &body).await?;
    Ok((found, moved))
}

pub(in crate::cli) async fn relocate(args: RelocateArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let (found, moved) = place(&daemon, &args.hash, &args.folder, false).await?;
    match args.json {
        true => print_json(&moved),
        false => say!("{found} is in {}", printable(text(&moved["root"]))),
    }
    Ok(Outcome::Done)
}

pub(in crate::cli) async fn run(args: MoveArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?.without_time_limit();
    let [hash] = &*args.hashes else {
        return move_all(&daemon, &args).await;
    };
    let (found, moved) = place(&daemon, hash, &args.folder, true).await?;
    if args.json {
        print_json(&moved);
        return Ok(Outcome::Done);
    }
    say!("moved {found} to {}", printable(text(&moved["root"])));
    say_kept(&moved);
    Ok(Outcome::Done)
}

/// Moves the files of several torrents, and prints the result of each.
async fn move_all(daemon: &Daemon, args: &MoveArgs) -> Result<Outcome, CliError> {
    let mut torrents = Vec::new();
    for hash in &args.hashes {
        torrents.push(daemon.find_running(hash).await?);
    }
    let hashes: Vec<String> = torrents.iter().map(|found| found.hash.to_string()).collect();
    let body = json!({"root": absolute(&args.folder)?, "hashes": hashes});
    let answer = daemon.post_json("/api/v1/move", &body).await?;
    let results = || answer["results"].as_array().into_iter().flatten();
    let is_failed = results().any(|result| result["error"].is_string());
    if args.json {
        print_json(&answer);
    } else {
        for (found, result) in torrents.iter().zip(results()) {
            match result["error"].as_str() {
                Some(error) => output::error(&printable(error)),
                None => {
                    say!("moved {found} to {}", printable(text(&result["root"])));
                    say_kept(result);
                }
            }
        }
    }
    Ok(if is_failed { Outcome::Failed } else { Outcome::Done })
}

/// Prints which files are at the old place too.
pub(super) fn say_kept(moved: &Value) {
    for kept in moved["kept"].as_array().into_iter().flatten() {
        let [path, reason] = ["path", "reason"].map(|key| printable(text(&kept[key])));
        say!("kept {path} at the old place too: {reason}");
    }
}
