//! What is asked for on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::rows;

#[derive(Debug, Parser)]
#[command(
    about = "Measures ecs-torrent beside other clients",
    subcommand_precedence_over_arg = true
)]
pub struct Options {
    /// Rows to measure, by name or by its beginning; all by default.
    #[arg(value_parser = row_name)]
    rows: Vec<String>,
    /// MiB of the torrents that are downloaded and seeded; those that are checked are twice as large.
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub size: u64,
    /// Runs of each client in each row.
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub runs: usize,
    /// Clients to measure, by name; all that are found by default.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub clients: Vec<String>,
    /// A folder in memory for the data.
    #[arg(long, default_value = "/dev/shm", value_name = "DIR")]
    pub dir: PathBuf,
    /// Write all figures as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the ratios as SVG.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    pub mode: Option<Mode>,
}

impl Options {
    /// Whether a row was asked for.
    pub fn wants(&self, row: &str) -> bool {
        let is_meant = |wanted: &String| match rows::ROWS.iter().any(|row| row.name == wanted) {
            true => row == wanted,
            false => row.starts_with(wanted.as_str()),
        };
        self.rows.is_empty() || self.rows.iter().any(is_meant)
    }

    /// Whether a client was asked for. Ours always is: the ratios are its own.
    pub fn wants_client(&self, client: &str) -> bool {
        self.clients.is_empty() || client == "ecs-torrent" || self.clients.iter().any(|wanted| wanted == client)
    }
}

fn row_name(name: &str) -> Result<String, String> {
    if rows::ROWS.iter().any(|row| row.name.starts_with(name)) {
        return Ok(name.to_owned());
    }
    let names: Vec<&str> = rows::ROWS.iter().map(|row| row.name).collect();
    Err(format!("there are {}", names.join(", ")))
}

/// What this program is in the processes that it starts.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Mode {
    /// The least that a program can do.
    #[command(subcommand, hide = true)]
    Floor(Floor),
    /// ecs-torrent as a library.
    #[command(subcommand, hide = true)]
    Engine(Engine),
}

#[derive(Debug, Subcommand)]
pub enum Floor {
    /// Sends what is asked for, until it is ended.
    Seed {
        torrent: PathBuf,
        folder: PathBuf,
        listen: SocketAddr,
    },
    /// Downloads, hashes, and writes where there is a folder.
    Leech {
        torrent: PathBuf,
        #[arg(long)]
        folder: Option<PathBuf>,
        peers: Vec<SocketAddr>,
    },
    /// Reads and hashes.
    Check { torrent: PathBuf, folder: PathBuf },
}

#[derive(Debug, Subcommand)]
pub enum Engine {
    /// Adds the torrents of a folder and leaves their sessions behind.
    Prepare {
        torrents: PathBuf,
        data: PathBuf,
        state: PathBuf,
    },
    /// Starts over these sessions, tells when all are up, and idles.
    Restart { state: PathBuf },
    /// Seeds to many, and tells how long its ticks take at each line that it reads.
    Peers {
        torrent: PathBuf,
        folder: PathBuf,
        state: PathBuf,
        listen: SocketAddr,
    },
    /// Times ticks of a world with so many idle torrents.
    Tick { torrents: u32 },
}
