//! The measured clients and how to run them.

mod aria2;
mod libtorrent;
pub mod lower_bound;
mod ours;
mod rqbit;
mod transmission;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::content::Content;
use crate::lab::{MEASURED, PORT};
use crate::options::Options;
use crate::process::Program;

/// Content, folders and seeders of a client's task.
pub struct Job<'a> {
    pub content: &'a Content,
    /// Empty folder for the download.
    pub target: &'a Path,
    /// Empty folder for the client's own files.
    pub scratch: &'a Path,
    /// Addresses of the seeders.
    pub seeders: &'a [SocketAddr],
}

/// Folders of the saved state of many torrents.
pub struct Saved<'a> {
    /// The .torrent files.
    pub torrents: &'a Path,
    /// Their data.
    pub data: &'a Path,
    /// The client's own state.
    pub state: &'a Path,
}

/// A client. Methods for unsupported tasks return `None`.
pub trait Client {
    fn name(&self) -> &'static str;
    fn version(&self) -> &str;
    /// Downloads into `target`.
    fn leech(&self, _job: &Job) -> Option<Program> {
        None
    }
    /// Seeds the content at the measured client's address until it is killed.
    fn seed(&self, _job: &Job) -> Option<Program> {
        None
    }
    fn check(&self, _job: &Job) -> Option<Program> {
        None
    }
    /// Creates a torrent of the content in `target`.
    fn create(&self, _job: &Job) -> Option<Program> {
        None
    }
    /// Saves the state from which [`Client::restart`] starts.
    fn prepare(&self, _saved: &Saved) -> Option<Program> {
        None
    }
    fn restart(&self, _saved: &Saved) -> Option<Program> {
        None
    }
}

/// Returns the installed and selected clients, ours first.
pub fn found(options: &Options) -> Vec<Box<dyn Client>> {
    let all: [Option<Box<dyn Client>>; 6] = [
        Some(Box::new(ours::Ours)),
        Some(Box::new(lower_bound::LowerBound)),
        libtorrent::Libtorrent::find().map(|client| Box::new(client) as _),
        rqbit::Rqbit::find().map(|client| Box::new(client) as _),
        aria2::Aria2::find().map(|client| Box::new(client) as _),
        transmission::Transmission::find().map(|client| Box::new(client) as _),
    ];
    let all: Vec<_> = all.into_iter().flatten().collect();
    let here: Vec<&str> = all.iter().map(|client| client.name()).collect();
    println!("found: {}", here.join(", "));
    all.into_iter()
        .filter(|client| options.wants_client(client.name()))
        .collect()
}

/// The address of the measured client.
fn address() -> SocketAddr {
    SocketAddr::new(MEASURED, PORT)
}

/// Returns the first line that a program prints with these arguments, or `None` if it is not installed.
fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).lines().next()?.to_owned())
}

/// The workspace's root.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Command that runs this program again.
pub fn itself() -> Command {
    Command::new(std::env::current_exe().expect("a running program knows itself"))
}
