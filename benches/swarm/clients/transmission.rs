//! Transmission's daemon. It finds its torrent in a watch folder and its peers through a tracker, and reports
//! completion through a script.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::{Client, Job, address, first_line};
use crate::process::{Program, Sign};

pub struct Transmission {
    version: String,
}

impl Transmission {
    pub fn find() -> Option<Self> {
        let version = first_line("transmission-daemon", &["--version"])?
            .split(' ')
            .nth(1)?
            .to_owned();
        Some(Self { version })
    }
}

/// Sets up the daemon with its data in `folder`. On completion, its script creates the file `done` in the scratch
/// folder.
fn program(job: &Job, folder: &Path) -> Option<Program> {
    let watched = job.scratch.join("watched");
    let script = job.scratch.join("on-done");
    let done = job.scratch.join("done");
    let settings = serde_json::json!({
        "bind-address-ipv4": address().ip().to_string(),
        "bind-address-ipv6": "::1",
        "dht-enabled": false,
        "lpd-enabled": false,
        "pex-enabled": false,
        "utp-enabled": false,
        "port-forwarding-enabled": false,
        "peer-port": address().port(),
        "rpc-enabled": false,
        "download-dir": folder,
        "watch-dir": watched,
        "watch-dir-enabled": true,
        "script-torrent-done-enabled": true,
        "script-torrent-done-filename": script,
        "encryption": 0,
        "preallocation": 0,
        "upload-slots-per-torrent": 20,
    });
    fs::create_dir(&watched).ok()?;
    fs::write(&script, format!("#!/bin/sh\ntouch '{}'\n", done.display())).ok()?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).ok()?;
    fs::write(job.scratch.join("settings.json"), settings.to_string()).ok()?;
    fs::copy(&job.content.tracked, watched.join("it.torrent")).ok()?;
    let mut command = Command::new("transmission-daemon");
    command
        .args(["--foreground", "--log-error", "--config-dir"])
        .arg(job.scratch);
    Some(Program {
        command,
        ready: Sign::Start,
        done: Sign::File(done),
    })
}

impl Client for Transmission {
    fn name(&self) -> &'static str {
        "transmission"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn leech(&self, job: &Job) -> Option<Program> {
        program(job, job.target)
    }

    /// Seeds after a check of the content, whose completion is the sign of readiness.
    fn seed(&self, job: &Job) -> Option<Program> {
        let program = program(job, &job.content.folder)?;
        Some(Program {
            ready: program.done,
            done: Sign::Start,
            ..program
        })
    }

    /// Runs the daemon on existing content, which it checks.
    fn check(&self, job: &Job) -> Option<Program> {
        program(job, &job.content.folder)
    }

    fn create(&self, job: &Job) -> Option<Program> {
        let mut command = Command::new("transmission-create");
        command
            .args(["--piecesize", &(job.content.piece_length >> 10).to_string(), "-o"])
            .arg(job.target.join("made.torrent"))
            .arg(job.content.folder.join(&job.content.name));
        which("transmission-create").then_some(Program {
            command,
            ready: Sign::Start,
            done: Sign::Exit,
        })
    }
}

fn which(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}
