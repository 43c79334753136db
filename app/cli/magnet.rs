//! `magnet`: prints the magnet link of a torrent file.

use std::path::PathBuf;

use clap::Args;
use ecs_torrent::protocol::magnet::Magnet;
use ecs_torrent::{ReadSource, Source};

use super::output::{Screen, printable};
use super::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ecs-torrent magnet linux.torrent")]
pub(super) struct MagnetArgs {
    /// The torrent file.
    torrent: PathBuf,
}

/// Warns of links that select files (BEP 53): this version downloads all files.
pub(super) fn warn_of_selections(sources: &[ReadSource], screen: &Screen) {
    for source in sources {
        if let ReadSource::Magnet(magnet) = source
            && !magnet.files.is_empty()
        {
            screen.warning(format_args!(
                "{}: the magnet link selects files (so=), which is not supported yet; all files are downloaded",
                printable(&source.name())
            ));
        }
    }
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
