//! rqbit.

use std::process::Command;

use super::{Client, Job, address, first_line};
use crate::process::{Program, Sign};

pub struct Rqbit {
    version: String,
}

impl Rqbit {
    pub fn find() -> Option<Self> {
        let version = first_line("rqbit", &["--version"])?.rsplit(' ').next()?.to_owned();
        Some(Self { version })
    }
}

/// Builds the command that downloads to or seeds from a folder.
fn command(job: &Job, folder: &std::path::Path) -> Command {
    let mut command = Command::new("rqbit");
    command
        .args(["--disable-dht", "--disable-upnp-port-forward"])
        .args(["--listen-ip", &address().ip().to_string()])
        .args(["--listen-port", &address().port().to_string()])
        .args(["download", "--disable-http-api", "--overwrite", "-o"]);
    // rqbit does not append the folder name of a multi-file torrent to the output path.
    if job.content.folder.join(&job.content.name).is_dir() {
        command.arg(folder.join(&job.content.name));
    } else {
        command.arg(folder);
    }
    command.current_dir(job.scratch);
    command
}

impl Client for Rqbit {
    fn name(&self) -> &'static str {
        "rqbit"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn leech(&self, job: &Job) -> Option<Program> {
        let seeders: Vec<String> = job.seeders.iter().map(ToString::to_string).collect();
        let mut command = command(job, job.target);
        command
            .args(["--exit-on-finish", "--initial-peers", &seeders.join(",")])
            .arg(&job.content.torrent);
        Some(Program {
            command,
            ready: Sign::Start,
            done: Sign::Exit,
        })
    }

    fn seed(&self, job: &Job) -> Option<Program> {
        let mut command = command(job, &job.content.folder);
        command.arg(&job.content.torrent);
        Some(Program {
            command,
            ready: Sign::Line("100.00%"),
            done: Sign::Start,
        })
    }
}
