//! The minimal client.

use super::{Client, Job, itself};
use crate::process::{Program, Sign};

pub struct LowerBound;

impl Client for LowerBound {
    fn name(&self) -> &'static str {
        "lower-bound"
    }

    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    fn leech(&self, job: &Job) -> Option<Program> {
        let mut command = itself();
        command
            .args(["lower-bound", "leech", "--folder"])
            .args([job.target, &job.content.torrent])
            .args(job.seeders.iter().map(ToString::to_string));
        Some(Program {
            command,
            ready: Sign::Start,
            done: Sign::Exit,
        })
    }

    fn seed(&self, job: &Job) -> Option<Program> {
        Some(seed(job.content, super::address()))
    }

    fn check(&self, job: &Job) -> Option<Program> {
        let mut command = itself();
        command
            .args(["lower-bound", "check"])
            .args([&job.content.torrent, &job.content.folder]);
        Some(Program {
            command,
            ready: Sign::Start,
            done: Sign::Exit,
        })
    }

    /// Runs a check, which is the same work.
    fn create(&self, job: &Job) -> Option<Program> {
        self.check(job)
    }
}

/// A seeder at an address.
pub fn seed(content: &crate::content::Content, address: std::net::SocketAddr) -> Program {
    let mut command = itself();
    command
        .args(["lower-bound", "seed"])
        .args([&content.torrent, &content.folder])
        .arg(address.to_string());
    Program {
        command,
        ready: Sign::Listens(address),
        done: Sign::Start,
    }
}

/// A leecher that writes nothing.
pub fn leech(content: &crate::content::Content, from: std::net::SocketAddr) -> Program {
    let mut command = itself();
    command
        .args(["lower-bound", "leech"])
        .arg(&content.torrent)
        .arg(from.to_string());
    Program {
        command,
        ready: Sign::Start,
        done: Sign::Exit,
    }
}
