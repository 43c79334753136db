//! ecs-torrent: the program that users run, and the library for figures that the program does not report.

use std::process::Command;

use super::{Client, Job, Saved, address, itself};
use crate::process::{Program, Sign};

pub struct Ours;

fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ecs-torrent"))
}

impl Client for Ours {
    fn name(&self) -> &'static str {
        "ecs-torrent"
    }

    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    fn leech(&self, job: &Job) -> Option<Program> {
        let mut command = command();
        command
            .args(["download", "--exit-on-complete", "--quiet", "--listen"])
            .arg(address().to_string())
            .args(["--state-dir".as_ref(), job.scratch.as_os_str()])
            .args(["-o".as_ref(), job.target.as_os_str()]);
        for seeder in job.seeders {
            command.args(["--peer", &seeder.to_string()]);
        }
        command.arg(&job.content.torrent);
        Some(Program {
            command,
            ready: Sign::Start,
            done: Sign::Exit,
        })
    }

    fn seed(&self, job: &Job) -> Option<Program> {
        let mut command = command();
        command
            .args(["seed", "--json", "--listen", &address().to_string()])
            .args(["--state-dir".as_ref(), job.scratch.as_os_str()])
            .args(["--data".as_ref(), job.content.folder.as_os_str()])
            .arg(&job.content.torrent);
        Some(Program {
            command,
            ready: Sign::Line("\"event\":\"complete\""),
            done: Sign::Start,
        })
    }

    fn check(&self, job: &Job) -> Option<Program> {
        let mut command = command();
        command
            .args(["verify".as_ref(), job.content.torrent.as_os_str()])
            .args(["--data".as_ref(), job.content.folder.as_os_str()]);
        Some(Program {
            command,
            ready: Sign::Start,
            done: Sign::Exit,
        })
    }

    fn create(&self, job: &Job) -> Option<Program> {
        let mut command = command();
        command
            .args(["create", "--piece-length", &job.content.piece_length.to_string()])
            .args(["-o".as_ref(), job.target.join("made.torrent").as_os_str()])
            .arg(job.content.folder.join(&job.content.name));
        Some(Program {
            command,
            ready: Sign::Start,
            done: Sign::Exit,
        })
    }

    fn prepare(&self, saved: &Saved) -> Option<Program> {
        let mut command = itself();
        command
            .args(["engine", "prepare"])
            .args([saved.torrents, saved.data, saved.state]);
        Some(Program {
            command,
            ready: Sign::Start,
            done: Sign::Exit,
        })
    }

    fn restart(&self, saved: &Saved) -> Option<Program> {
        let mut command = itself();
        command.args(["engine", "restart"]).arg(saved.state);
        Some(Program {
            command,
            ready: Sign::Start,
            done: Sign::Line("up"),
        })
    }
}
