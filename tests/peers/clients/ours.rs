//! ecs-torrent itself: the binary, as its users run it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::{Peer, command};
use crate::lab::Process;

pub struct Ours {
    process: Process,
    address: SocketAddr,
    folder: PathBuf,
}

impl Ours {
    /// Downloads into `folder`, and ends when it is done.
    pub fn download(torrent: &Path, folder: &Path, ip: IpAddr, peers: &[SocketAddr]) -> Self {
        let mut arguments = vec![
            "download".into(),
            torrent.as_os_str().to_owned(),
            "-o".into(),
            folder.into(),
        ];
        arguments.push("--exit-on-complete".into());
        let mut this = Self::start(arguments, folder, ip, peers);
        this.process
            .wait_for_line("the torrent to be added", |line| line.contains("\"event\":\"added\""));
        this
    }

    /// Seeds what is in `folder`; ready when this returns.
    pub fn seed(torrent: &Path, folder: &Path, ip: IpAddr, peers: &[SocketAddr]) -> Self {
        let arguments = vec![
            "seed".into(),
            torrent.as_os_str().to_owned(),
            "--data".into(),
            folder.into(),
        ];
        let mut this = Self::start(arguments, folder, ip, peers);
        this.process
            .wait_for_line("seeding", |line| line.contains("\"event\":\"complete\""));
        this
    }

    fn start(arguments: Vec<std::ffi::OsString>, folder: &Path, ip: IpAddr, peers: &[SocketAddr]) -> Self {
        let address = SocketAddr::new(ip, 6881);
        let mut command = command(env!("CARGO_BIN_EXE_ecs-torrent"));
        command
            .args(arguments)
            .args(["--json", "--listen", &address.to_string()])
            .env("RUST_LOG", "info");
        command.current_dir(folder);
        for peer in peers {
            command.args(["--peer", &peer.to_string()]);
        }
        Self {
            process: Process::start(command),
            address,
            folder: folder.to_owned(),
        }
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) {
        self.process.interrupt();
        assert!(
            self.process.wait_for_end(),
            "did not stop well:\n{}",
            self.process.output()
        );
    }

    /// Waits until it says something.
    pub fn wait_to_hear(&mut self, what: &str) {
        self.process.wait_for_line(what, |line| line.contains(what));
    }

    /// What it has said.
    pub fn output(&mut self) -> String {
        self.process.output()
    }
}

impl Peer for Ours {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn wait_complete(&mut self) {
        assert!(self.process.wait_for_end(), "failed:\n{}", self.process.output());
        let output = self.process.output();
        assert!(
            output.contains("\"event\":\"complete\""),
            "ended without completing:\n{output}"
        );
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}
