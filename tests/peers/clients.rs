//! The client programs behind a small common interface: seed and download.

pub mod aria2;
pub mod libtorrent;
pub mod opentracker;
pub mod ours;
pub mod transmission;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab;

/// A program that a case needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Libtorrent,
    Transmission,
    Aria2,
    Opentracker,
    /// Not a program: a separate network namespace, for addresses that look public.
    Namespace,
}

impl Program {
    /// Returns what is missing to run the program, if anything.
    pub fn missing(self) -> Option<String> {
        let on_path = |name: &str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
        };
        let is_there = match self {
            Self::Libtorrent => libtorrent::python()
                .args(["-c", "import libtorrent"])
                .output()
                .is_ok_and(|o| o.status.success()),
            Self::Transmission => on_path("transmission-daemon") && lab::has_namespace(),
            Self::Aria2 => on_path("aria2c"),
            Self::Opentracker => on_path("opentracker"),
            Self::Namespace => lab::has_namespace(),
        };
        (!is_there).then(|| match self {
            Self::Transmission if !lab::has_namespace() => "transmission (needs a network namespace)".to_owned(),
            Self::Namespace => "a network namespace".to_owned(),
            other => format!("{other:?}").to_lowercase(),
        })
    }
}

/// A program that takes part in a swarm.
pub trait Peer {
    /// Returns the address on which the program accepts connections.
    fn address(&self) -> SocketAddr;

    /// Waits until the program has completed the torrent.
    fn wait_complete(&mut self);

    /// Returns the folder in which the program stores its files.
    fn folder(&self) -> &Path;
}

/// Returns the repository's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Creates a command that finds the Python modules that `tests/peers/install` put into the target folder.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PYTHONPATH", root().join("target/peers/python"));
    command
}
