//! The clients that are measured, and how each is told what to do.

mod aria2;
pub mod floor;
mod libtorrent;
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

/// What a client is to do, and where.
pub struct Job<'a> {
    pub content: &'a Content,
    /// Empty; for what is downloaded.
    pub target: &'a Path,
    /// Empty; for the client's own files.
    pub scratch: &'a Path,
    /// Who has the content.
    pub seeders: &'a [SocketAddr],
}

/// Where the saved state of many torrents is.
pub struct Saved<'a> {
    /// The .torrent files.
    pub torrents: &'a Path,
    /// Their data.
    pub data: &'a Path,
    /// The client's own.
    pub state: &'a Path,
}

/// A client; it says nothing of what it can't do.
pub trait Client {
    fn name(&self) -> &'static str;
    fn version(&self) -> &str;
    /// Downloads into `target`.
    fn leech(&self, _job: &Job) -> Option<Program> {
        None
    }
    /// Seeds the content at the address of the measured, until it is ended.
    fn seed(&self, _job: &Job) -> Option<Program> {
        None
    }
    fn check(&self, _job: &Job) -> Option<Program> {
        None
    }
    /// Makes a torrent of the content, into `target`.
    fn create(&self, _job: &Job) -> Option<Program> {
        None
    }
    /// Leaves a state behind from which [`Client::restart`] starts.
    fn prepare(&self, _saved: &Saved) -> Option<Program> {
        None
    }
    fn restart(&self, _saved: &Saved) -> Option<Program> {
        None
    }
}

/// The clients that are installed and asked for, ours first.
pub fn found(options: &Options) -> Vec<Box<dyn Client>> {
    let all: [Option<Box<dyn Client>>; 6] = [
        Some(Box::new(ours::Ours)),
        Some(Box::new(floor::Floor)),
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

/// The address of the client that is measured.
fn address() -> SocketAddr {
    SocketAddr::new(MEASURED, PORT)
}

/// The first line that a program prints with these arguments, where it is there.
fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).lines().next()?.to_owned())
}

/// The workspace's root.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// This program again.
pub fn itself() -> Command {
    Command::new(std::env::current_exe().expect("a running program knows itself"))
}
