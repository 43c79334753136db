//! aria2, which finds its peers through a tracker.

use std::process::Command;

use super::{Client, Job, address, first_line};
use crate::process::{Program, Sign};

pub struct Aria2 {
    version: String,
}

impl Aria2 {
    pub fn find() -> Option<Self> {
        let version = first_line("aria2c", &["--version"])?.rsplit(' ').next()?.to_owned();
        Some(Self { version })
    }
}

fn command(job: &Job) -> Command {
    let mut command = Command::new("aria2c");
    command
        .args(["--no-conf", "--quiet", "--enable-dht=false", "--enable-dht6=false"])
        .args(["--bt-enable-lpd=false", "--enable-peer-exchange=false"])
        .args([
            "--file-allocation=none",
            "--allow-overwrite=true",
            "--bt-max-open-files=20000",
        ])
        .arg(format!("--interface={}", address().ip()))
        .arg(format!("--listen-port={}", address().port()))
        .current_dir(job.scratch);
    command
}

impl Client for Aria2 {
    fn name(&self) -> &'static str {
        "aria2"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn leech(&self, job: &Job) -> Option<Program> {
        let mut command = command(job);
        command
            .arg("--seed-time=0")
            .arg(format!("--dir={}", job.target.display()))
            .arg(&job.content.tracked);
        Some(Program {
            command,
            ready: Sign::Start,
            done: Sign::Exit,
        })
    }

    fn seed(&self, job: &Job) -> Option<Program> {
        let mut command = command(job);
        command
            .args(["--bt-seed-unverified=true", "--seed-ratio=0.0", "--seed-time=100000"])
            .arg(format!("--dir={}", job.content.folder.display()))
            .arg(&job.content.tracked);
        Some(Program {
            command,
            ready: Sign::Listens(address()),
            done: Sign::Start,
        })
    }

    fn check(&self, job: &Job) -> Option<Program> {
        let mut command = command(job);
        command
            .args(["--check-integrity=true", "--hash-check-only=true"])
            .arg(format!("--dir={}", job.content.folder.display()))
            .arg(&job.content.torrent);
        Some(Program {
            command,
            ready: Sign::Start,
            done: Sign::Exit,
        })
    }
}
