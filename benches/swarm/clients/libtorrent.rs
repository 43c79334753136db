//! libtorrent-rasterbar, through its Python binding. Figures exclude Python's startup.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::thread;

use super::{Client, Job, Saved, address, root};
use crate::process::{Program, Sign};

pub struct Libtorrent {
    version: String,
}

fn python() -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", root().join("target/peers/python"));
    command
}

fn script<'a>(mode: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> Program {
    let mut command = python();
    command
        .arg(root().join("benches/swarm/clients/libtorrent_client.py"))
        .arg(mode)
        .args(arguments);
    Program {
        command,
        ready: Sign::Line("ready"),
        done: Sign::Line("done"),
    }
}

impl Libtorrent {
    pub fn find() -> Option<Self> {
        let output = python()
            .args(["-c", "import libtorrent; print(libtorrent.__version__)"])
            .output()
            .ok()?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(Self { version })
    }
}

impl Client for Libtorrent {
    fn name(&self) -> &'static str {
        "libtorrent"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn leech(&self, job: &Job) -> Option<Program> {
        let (address, seeders) = (address().to_string(), seeders(job));
        let arguments = [
            job.content.torrent.as_os_str(),
            job.target.as_os_str(),
            address.as_ref(),
        ];
        let seeders = seeders.iter().map(AsRef::<OsStr>::as_ref);
        Some(script("leech", arguments.into_iter().chain(seeders)))
    }

    fn seed(&self, job: &Job) -> Option<Program> {
        let address = address().to_string();
        Some(script(
            "seed",
            [
                job.content.torrent.as_os_str(),
                job.content.folder.as_os_str(),
                address.as_ref(),
            ],
        ))
    }

    fn check(&self, job: &Job) -> Option<Program> {
        let threads = threads();
        let arguments = [
            job.content.torrent.as_os_str(),
            job.content.folder.as_os_str(),
            threads.as_ref(),
        ];
        Some(script("check", arguments))
    }

    fn create(&self, job: &Job) -> Option<Program> {
        let path = job.content.folder.join(&job.content.name);
        let (length, threads) = (job.content.piece_length.to_string(), threads());
        Some(script("create", [path.as_os_str(), length.as_ref(), threads.as_ref()]))
    }

    fn prepare(&self, saved: &Saved) -> Option<Program> {
        let mut program = script(
            "prepare",
            [saved.torrents, saved.data, saved.state].map(Path::as_os_str),
        );
        program.done = Sign::Exit;
        program.ready = Sign::Start;
        Some(program)
    }

    fn restart(&self, saved: &Saved) -> Option<Program> {
        Some(script("restart", [saved.state.as_os_str()]))
    }
}

fn seeders(job: &Job) -> Vec<String> {
    job.seeders.iter().map(ToString::to_string).collect()
}

/// Number of hashing threads: one per processor.
fn threads() -> String {
    thread::available_parallelism().map_or(1, usize::from).to_string()
}
