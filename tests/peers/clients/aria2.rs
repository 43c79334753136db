//! aria2, which seeds until the test ends it, or ends after its download.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Peer, command};
use crate::lab::{DEADLINE, Process};

/// Options for seeding without verifying the data.
const SEEDING: [&str; 4] = [
    "--bt-seed-unverified=true",
    "--seed-ratio=0.0",
    "--seed-time=100000",
    "--allow-overwrite=true",
];

pub struct Aria2 {
    process: Process,
    address: SocketAddr,
    folder: PathBuf,
}

impl Aria2 {
    /// Seeds the data in `folder` without verifying it. Returns when aria2 is ready.
    pub fn seed(torrent: &Path, folder: &Path, ip: IpAddr) -> Self {
        Self::start(torrent, folder, ip, &SEEDING).ready()
    }

    /// Like [`Aria2::seed`], but with the DHT on, without which aria2 does not speak UDP to trackers.
    pub fn seed_with_dht(torrent: &Path, folder: &Path, ip: IpAddr) -> Self {
        let dht = ["--enable-dht=true", "--dht-listen-port=6882"];
        Self::start(torrent, folder, ip, &[&SEEDING[..], &dht].concat()).ready()
    }

    /// Seeds the data in `folder`, and finds peers by the DHT only, which it enters by this node.
    pub fn seed_by_dht(torrent: &Path, folder: &Path, ip: IpAddr, node: SocketAddr) -> Self {
        Self::by_dht(torrent, folder, ip, node, &SEEDING)
    }

    /// Downloads the torrent of a magnet link, and finds peers by the DHT only, which it enters by this node.
    pub fn download_by_dht(link: &Path, folder: &Path, ip: IpAddr, node: SocketAddr) -> Self {
        Self::by_dht(link, folder, ip, node, &["--seed-time=0"])
    }

    fn by_dht(source: &Path, folder: &Path, ip: IpAddr, node: SocketAddr, options: &[&str]) -> Self {
        let entry = format!("--dht-entry-point={node}");
        let table = format!("--dht-file-path={}", folder.join("dht.dat").display());
        let dht = ["--enable-dht=true", "--dht-listen-port=6881", &entry, &table];
        Self::start(source, folder, ip, &[options, &dht[..]].concat()).ready()
    }

    /// Downloads into `folder`. aria2 ends when the download is complete.
    pub fn download(torrent: &Path, folder: &Path, ip: IpAddr) -> Self {
        Self::start(torrent, folder, ip, &["--seed-time=0"]).ready()
    }

    fn start(torrent: &Path, folder: &Path, ip: IpAddr, options: &[&str]) -> Self {
        let address = SocketAddr::new(ip, 6881);
        let mut command = command("aria2c");
        command
            .args([
                "--no-conf",
                "--enable-dht=false",
                "--enable-dht6=false",
                "--bt-enable-lpd=false",
            ])
            .args([
                "--enable-peer-exchange=false",
                "--file-allocation=none",
                "--check-certificate=false",
            ])
            .args([
                "--console-log-level=info",
                "--summary-interval=0",
                "--bt-tracker-interval=2",
            ])
            .arg(format!("--interface={ip}"))
            .arg(format!("--listen-port={}", address.port()))
            .arg(format!("--dir={}", folder.display()))
            .args(options)
            .arg(torrent);
        Self {
            process: Process::start(command),
            address,
            folder: folder.to_owned(),
        }
    }

    fn ready(self) -> Self {
        let deadline = Instant::now() + DEADLINE;
        while std::net::TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < deadline, "aria2 does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        self
    }
}

impl Peer for Aria2 {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn wait_complete(&mut self) {
        assert!(self.process.wait_for_end(), "aria2 failed:\n{}", self.process.output());
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}
