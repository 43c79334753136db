//! Command-line options.

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
    /// Rows to measure, by name or prefix; all by default.
    #[arg(value_parser = row_name)]
    rows: Vec<String>,
    /// Size in MiB of downloaded and seeded torrents; checked and created torrents are twice as large.
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub size: u64,
    /// Runs of each client in each row.
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub runs: usize,
    /// Clients to measure, by name; all installed clients by default.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub clients: Vec<String>,
    /// In-memory folder for the data.
    #[arg(long, default_value = "/dev/shm", value_name = "DIR")]
    pub dir: PathBuf,
    /// Write all figures as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the ratios as SVG.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    pub mode: Option<Mode>,
}

impl Options {
    /// Returns whether a row is selected.
    pub fn wants(&self, row: &str) -> bool {
        let is_meant = |wanted: &String| match rows::ROWS.iter().any(|row| row.name == wanted) {
            true => row == wanted,
            false => row.starts_with(wanted.as_str()),
        };
        self.rows.is_empty() || self.rows.iter().any(is_meant)
    }

    /// Returns whether a client is selected. Ours always is, because all ratios refer to it.
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

/// Roles of this program in the processes that it starts.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Mode {
    /// Minimal client.
    #[command(subcommand, hide = true)]
    LowerBound(LowerBound),
    /// ecs-torrent as a library.
    #[command(subcommand, hide = true)]
    Engine(Engine),
}

#[derive(Debug, Subcommand)]
pub enum LowerBound {
    /// Sends requested blocks until it is killed.
    Seed {
        torrent: PathBuf,
        folder: PathBuf,
        listen: SocketAddr,
    },
    /// Downloads and hashes; writes if a folder is given.
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
    /// Adds the torrents of a folder and saves their sessions.
    Prepare {
        torrents: PathBuf,
        data: PathBuf,
        state: PathBuf,
    },
    /// Resumes these sessions, reports when all torrents are up, and idles.
    Restart { state: PathBuf },
    /// Seeds to many peers; prints its tick times for each line of input.
    Peers {
        torrent: PathBuf,
        folder: PathBuf,
        state: PathBuf,
        listen: SocketAddr,
    },
    /// Times ticks of a world with this many idle torrents.
    Tick { torrents: u32 },
}
