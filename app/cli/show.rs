//! `show`: prints the contents of a torrent file.

use std::path::PathBuf;

use clap::Args;
use ecs_torrent::Source;
use ecs_torrent::engine::backends::whole_file::read_stream;
use ecs_torrent::protocol::files::FileTable;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use serde::{Serialize, Serializer};
use time::OffsetDateTime;

use super::output::{self, printable};
use super::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ecs-torrent show linux.torrent\n  ecs-torrent show linux.torrent --json | jq .info_hash_v1"
)]
pub(super) struct ShowArgs {
    /// The torrent file; `-` for standard input.
    torrent: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The JSON output. Its keys are part of the command's contract.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    name: &'a str,
    info_hash_v1: Option<String>,
    info_hash_v2: Option<String>,
    private: bool,
    piece_length: u32,
    pieces: u32,
    total_size: u64,
    files: ShownFiles<'a>,
    trackers: &'a [Vec<String>],
    web_seeds: &'a [String],
    nodes: Vec<String>,
    comment: Option<&'a str>,
    created_by: Option<&'a str>,
    creation_date: Option<i64>,
}

#[derive(Debug, Serialize)]
struct ShownFile<'a> {
    path: &'a str,
    length: u64,
    pad: bool,
}

/// The torrent's files, serialized one at a time.
#[derive(Debug)]
struct ShownFiles<'a>(&'a FileTable);

impl<'a> ShownFiles<'a> {
    fn iter(&self) -> impl Iterator<Item = ShownFile<'a>> {
        self.0.files().iter().map(|file| ShownFile {
            path: &file.path,
            length: file.len,
            pad: file.attributes.pad,
        })
    }
}

impl Serialize for ShownFiles<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// Reads a torrent from standard input, up to the size that a torrent may have.
fn read_input() -> Result<Source, CliError> {
    let most = MetainfoLimits::default().bencode.max_bytes as u64;
    let bytes = read_stream(std::io::stdin().lock(), most).map_err(CliError::io("standard input"))?;
    Ok(Source::from(bytes::Bytes::from(bytes)))
}

pub(super) fn run(args: &ShowArgs) -> Result<Outcome, CliError> {
    let source = match args.torrent.as_os_str() == "-" {
        true => read_input()?,
        false => Source::from(args.torrent.as_path()),
    };
    let metainfo = source.load()?;
    let shown = describe(&metainfo);
    if args.json {
        output::print_json(&shown);
    } else {
        print(&shown);
    }
    Ok(Outcome::Done)
}

fn describe(metainfo: &Metainfo) -> Shown<'_> {
    let info = &metainfo.info;
    Shown {
        name: &info.name,
        info_hash_v1: metainfo.hashes.v1.map(|hash| hash.to_string()),
        info_hash_v2: metainfo.hashes.v2.map(|hash| hash.to_string()),
        private: info.private,
        piece_length: info.geometry.piece_length(),
        pieces: info.geometry.piece_count(),
        total_size: info.geometry.total_size(),
        files: ShownFiles(&info.files),
        trackers: &metainfo.trackers,
        web_seeds: &metainfo.web_seeds,
        nodes: metainfo.nodes.iter().map(ToString::to_string).collect(),
        comment: metainfo.comment.as_deref(),
        created_by: metainfo.created_by.as_deref(),
        creation_date: metainfo.creation_date,
    }
}

fn print(shown: &Shown<'_>) {
    let line = |name: &str, value: &str| say!("{name:<14}{}", printable(value));
    line("Name", shown.name);
    shown.info_hash_v1.iter().for_each(|hash| line("Info-hash", hash));
    shown.info_hash_v2.iter().for_each(|hash| line("Info-hash v2", hash));
    line(
        "Size",
        &format!("{} ({} bytes)", output::bytes(shown.total_size), shown.total_size),
    );
    line(
        "Pieces",
        &format!("{} of {}", shown.pieces, output::bytes(shown.piece_length.into())),
    );
    if shown.private {
        line("Private", "yes");
    }
    for (number, tier) in shown.trackers.iter().enumerate() {
        line(&format!("Tracker {}", number + 1), &tier.join(", "));
    }
    shown.web_seeds.iter().for_each(|url| line("Web seed", url));
    shown.nodes.iter().for_each(|node| line("DHT node", node));
    shown.comment.iter().for_each(|text| line("Comment", text));
    shown.created_by.iter().for_each(|program| line("Made by", program));
    if let Some(date) = shown.creation_date {
        line("Made on", &utc(date));
    }
    say!("Files");
    let files = shown.files.iter().enumerate().filter(|(_, file)| !file.pad);
    for (number, file) in files {
        say!(
            "  {number:>5}  {:>10}  {}",
            output::bytes(file.length),
            printable(file.path)
        );
    }
}

/// Formats a date: `2026-11-22 18:58 UTC`. A value outside the calendar's range is shown as a plain number.
fn utc(seconds: i64) -> String {
    let Ok(date) = OffsetDateTime::from_unix_timestamp(seconds) else {
        return seconds.to_string();
    };
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let (hour, minute) = (date.hour(), date.minute());
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_825_600), "2000-02-29 12:00 UTC");
        assert_eq!(utc(1_795_373_880), "2026-11-22 18:58 UTC");
        assert_eq!(utc(4_107_542_399), "2100-02-28 23:59 UTC");
        assert_eq!(utc(-1), "1969-12-31 23:59 UTC");
        assert_eq!(utc(i64::MAX), i64::MAX.to_string());
    }
}
