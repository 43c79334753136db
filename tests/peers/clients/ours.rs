//! ecs-torrent itself: the binary as users run it.

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
    /// Downloads into `folder`. The program ends when the download is complete.
    pub fn download(torrent: &Path, folder: &Path, ip: IpAddr, peers: &[SocketAddr]) -> Self {
        Self::download_with(torrent, folder, ip, peers, &[], "info")
    }

    /// Downloads over files that exist already.
    pub fn download_over(torrent: &Path, folder: &Path, ip: IpAddr, peers: &[SocketAddr]) -> Self {
        Self::download_with(torrent, folder, ip, peers, &["--overwrite"], "info")
    }

    /// Downloads into `folder`, and logs every connection.
    pub fn download_logged(torrent: &Path, folder: &Path, ip: IpAddr, peers: &[SocketAddr]) -> Self {
        Self::download_with(torrent, folder, ip, peers, &[], "debug")
    }

    /// Downloads into `folder`, and finds peers by the DHT only, which it enters by this node.
    pub fn download_by_dht(torrent: &Path, folder: &Path, ip: IpAddr, node: SocketAddr) -> Self {
        let node = node.to_string();
        Self::download_with(torrent, folder, ip, &[], &["--dht-node", &node], "info")
    }

    /// Downloads into `folder` at this rate, and finds peers by peer exchange only.
    pub fn join_slowly(torrent: &Path, folder: &Path, ip: IpAddr, rate: &str) -> Self {
        let more = ["--no-dht", "--no-lsd", "--download-limit", rate];
        Self::join(torrent, folder, ip, &[], &more, "info")
    }

    /// Downloads into `folder`, and finds peers by peer exchange only.
    pub fn download_alone(torrent: &Path, folder: &Path, ip: IpAddr, peers: &[SocketAddr]) -> Self {
        Self::download_with(torrent, folder, ip, peers, &["--no-dht", "--no-lsd"], "info")
    }

    fn download_with(
        torrent: &Path,
        folder: &Path,
        ip: IpAddr,
        peers: &[SocketAddr],
        more: &[&str],
        log: &str,
    ) -> Self {
        let more = [more, &["--exit-on-complete"]].concat();
        Self::join(torrent, folder, ip, peers, &more, log)
    }

    /// Downloads into `folder`. Returns when the torrent is added.
    fn join(torrent: &Path, folder: &Path, ip: IpAddr, peers: &[SocketAddr], more: &[&str], log: &str) -> Self {
        let mut arguments = vec![
            "download".into(),
            torrent.as_os_str().to_owned(),
            "-o".into(),
            folder.into(),
        ];
        arguments.extend(more.iter().map(Into::into));
        let mut this = Self::start(arguments, folder, ip, peers, log);
        this.process
            .wait_for_line("the torrent to be added", |line| line.contains("\"event\":\"added\""));
        this
    }

    /// Seeds the data in `folder`. Returns when the program is ready.
    pub fn seed(torrent: &Path, folder: &Path, ip: IpAddr, peers: &[SocketAddr]) -> Self {
        let arguments = vec![
            "seed".into(),
            torrent.as_os_str().to_owned(),
            "--data".into(),
            folder.into(),
        ];
        let mut this = Self::start(arguments, folder, ip, peers, "info");
        this.process
            .wait_for_line("seeding", |line| line.contains("\"event\":\"complete\""));
        this
    }

    /// Seeds the data in `folder`, and finds peers by the DHT only, which it enters by this node. Returns when a node
    /// stores our address.
    pub fn seed_by_dht(torrent: &Path, folder: &Path, ip: IpAddr, node: SocketAddr) -> Self {
        let arguments = vec![
            "seed".into(),
            torrent.as_os_str().to_owned(),
            "--data".into(),
            folder.into(),
            "--dht-node".into(),
            node.to_string().into(),
        ];
        let mut this = Self::start(arguments, folder, ip, &[], "debug");
        let is_announced = |line: &str| line.contains("store our address") && !line.contains(" 0 store our address");
        this.process.wait_for_line("an announce", is_announced);
        this
    }

    fn start(arguments: Vec<std::ffi::OsString>, folder: &Path, ip: IpAddr, peers: &[SocketAddr], log: &str) -> Self {
        let address = SocketAddr::new(ip, 6881);
        let mut command = command(env!("CARGO_BIN_EXE_ecs-torrent"));
        command
            .args(arguments)
            .args(["--json", "--listen", &address.to_string()])
            .env("RUST_LOG", log);
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

    /// Stops the program with SIGINT, and waits for its end.
    pub fn stop(mut self) {
        self.process.interrupt();
        assert!(
            self.process.wait_for_end(),
            "did not stop well:\n{}",
            self.process.output()
        );
    }

    /// Interrupts a download with SIGINT before it is complete, and waits for its end.
    pub fn interrupt(mut self) {
        self.process.interrupt();
        assert_eq!(
            self.process.wait_for_code(),
            Some(7),
            "did not stop as incomplete:\n{}",
            self.process.output()
        );
    }

    /// Waits for an output line that contains `what`.
    pub fn wait_for_output(&mut self, what: &str) {
        self.process.wait_for_line(what, |line| line.contains(what));
    }

    /// Waits for an output line that contains all of `what`.
    pub fn wait_for_output_all(&mut self, what: &[&str]) {
        let has_all = |line: &str| what.iter().all(|part| line.contains(part));
        self.process.wait_for_line(&what.join(" "), has_all);
    }

    /// Returns the output so far.
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
