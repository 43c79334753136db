//! `rename`: files of a torrent get other names.

use clap::Args;
use serde_json::{Map, json};

use super::connection::Daemon;
use super::moving::say_kept;
use super::{DaemonAddress, print_json};
use crate::cli::output::printable;
use crate::cli::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
The torrent leaves its peers, its files get the new names, and it continues.
Nothing is overwritten, and no file gets a name that another file or folder of
the torrent has now. Files that the torrent did not create are copied; they stay
with their old names too. A kill leaves each file with its old or its new name.

NAME is the name of the torrent's folder, or of its only file. `files` shows the
numbers of files; their paths begin below the torrent's folder.

Examples:
  ecs-torrent rename 0c1f3b 'My album'
  ecs-torrent rename 0c1f3b --file '3=extras/booklet.pdf' --file 4=cover.jpg")]
pub(in crate::cli) struct RenameArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: String,
    /// The new name of the torrent.
    #[arg(required_unless_present = "files")]
    name: Option<String>,
    /// Number of a file and its new path; may be repeated.
    #[arg(long = "file", value_name = "NUMBER=PATH", value_parser = numbered)]
    files: Vec<(u32, String)>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

fn numbered(text: &str) -> Result<(u32, String), &'static str> {
    let why = "it is the number of a file, =, and a path";
    let (number, path) = text.split_once('=').ok_or(why)?;
    Ok((number.parse().map_err(|_| why)?, path.to_owned()))
}

pub(in crate::cli) async fn run(args: RenameArgs) -> Result<Outcome, CliError> {
    let mut files = Map::new();
    for (number, path) in &args.files {
        if files.insert(number.to_string(), path.as_str().into()).is_some() {
            return Err(CliError::Usage(format!("--file: file {number} is given twice")));
        }
    }
    let daemon = Daemon::find(&args.daemon)?.without_time_limit();
    let found = daemon.find_running(&args.hash).await?;
    let body = json!({"name": args.name, "files": files});
    let path = format!("/api/v1/torrents/{}/rename", found.hash);
    let moved = daemon.post_json(&path, &body).await?;
    if args.json {
        print_json(&moved);
        return Ok(Outcome::Done);
    }
    let count = args.files.len();
    match &args.name {
        Some(name) => say!("renamed {found} to {}", printable(name)),
        None => say!("renamed {} of {found}", crate::cli::output::count(count, "file")),
    }
    say_kept(&moved);
    Ok(Outcome::Done)
}
