//! `magnet`: prints the magnet link of a torrent file.

use std::path::PathBuf;

use clap::Args;
use ecs_torrent::Source;
use ecs_torrent::protocol::magnet::Magnet;

use super::output::{Screen, printable};
use super::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ecs-torrent magnet linux.torrent")]
pub(super) struct MagnetArgs {
    /// The torrent file.
    torrent: PathBuf,
}

pub(super) fn run(args: &MagnetArgs, screen: &Screen) -> Result<Outcome, CliError> {
    let metainfo = Source::from(args.torrent.as_path()).load()?;
    if metainfo.info.private {
        let name = printable(&metainfo.info.name);
        screen.warning(format_args!(
            "{name} is private: its peers do not send its metadata to others"
        ));
    }
    say!("{}", Magnet::of(&metainfo));
    Ok(Outcome::Done)
}
