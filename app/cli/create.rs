//! `create`: makes a torrent from a file or folder.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use ecs_torrent::making::{MakeOptions, Plan, Renamed};
use ecs_torrent::protocol::host_port::HostPort;

use super::output::{Screen, printable};
use super::torrent_file::{Destination, in_content};
use super::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent create ./album -o album.torrent --tracker udp://tracker.example:80
  ecs-torrent create disk.img -o disk.torrent --piece-length 4M --private

Prints a warning for each file name that changes when the torrent is read: a
leading dot of the top-level name, backslashes, control characters, names that
differ only in case. Fails if a file changes while it is hashed. Prints the
info-hash, and the path of the torrent file.")]
pub(super) struct CreateArgs {
    /// The file or folder.
    path: PathBuf,
    /// Torrent file to write; `-` for standard output.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace an existing torrent file.
    #[arg(long)]
    overwrite: bool,
    /// Announce URL of a tracker; may be repeated. Trackers are tried in the order given.
    #[arg(long = "tracker", value_name = "URL")]
    trackers: Vec<String>,
    /// Piece length: a power of two from 16 KiB to 256 MiB, such as 256K, 1M or 4194304. By default chosen by content
    /// size.
    #[arg(long, value_name = "N", value_parser = piece_length)]
    piece_length: Option<u32>,
    /// Node of the DHT by which a torrent without trackers is found; may be repeated.
    #[arg(long = "node", value_name = "HOST:PORT", conflicts_with = "private")]
    nodes: Vec<HostPort>,
    /// Private torrent: peers come from its trackers only.
    #[arg(long)]
    private: bool,
    /// Comment to store in the torrent.
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// URL of a web server that has the content; may be repeated.
    #[arg(long = "web-seed", value_name = "URL")]
    web_seeds: Vec<String>,
}

/// Reads a piece length. Units are powers of two, since piece lengths are: 1M is 1 MiB.
fn piece_length(text: &str) -> Result<u32, &'static str> {
    let end = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        _ => return Err("not a number of bytes, such as 256K, 1M or 4194304"),
    };
    let number = number.parse::<u32>().ok();
    let length = number.and_then(|number| number.checked_mul(factor));
    length.ok_or("not a number of bytes, such as 256K, 1M or 4194304")
}

pub(super) fn run(args: CreateArgs, screen: &Screen) -> Result<Outcome, CliError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    // Reports an unusable output before reading any content.
    let destination = Destination::find(&args.output, args.overwrite, Some(&args.path))?;
    let plan = Plan::new(
        &args.path,
        MakeOptions {
            piece_length: args.piece_length,
            trackers: args.trackers,
            web_seeds: args.web_seeds,
            nodes: args.nodes,
            private: args.private,
            comment: args.comment,
            created_by: Some(concat!("ecs-torrent ", env!("CARGO_PKG_VERSION")).to_owned()),
            creation_date: now.and_then(|now| i64::try_from(now.as_secs()).ok()),
        },
    )?;
    if plan.contains(&args.output) {
        return Err(in_content(&args.output));
    }
    warn(plan.renamed(), screen);
    screen.clear_when_interrupted()?;
    let bar = screen.hashing_bar(plan.total_size(), "hashing");
    let bytes = plan.make(&|done| bar.set_position(done));
    bar.finish_and_clear();
    let bytes = bytes?;
    let metainfo = ecs_torrent::Source::from(bytes::Bytes::from(bytes)).load()?;
    destination.write(&metainfo.bytes, metainfo.hashes.primary())?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piece_lengths_have_units() {
        for (text, length) in [
            ("16384", 16384),
            ("256K", 256 << 10),
            ("1m", 1 << 20),
            ("4MiB", 4 << 20),
            ("16384B", 16384),
        ] {
            assert_eq!(piece_length(text), Ok(length));
        }
        for text in ["", "M", "-1", "1.5M", "1G", "4096M", "99999999999", "1 M"] {
            assert!(piece_length(text).is_err(), "{text}");
        }
    }
}
