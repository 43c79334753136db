//! libtorrent-rasterbar, through its Python bindings.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Peer, command, root};
use crate::lab::{Lab, Process};

pub struct Libtorrent {
    process: Process,
    address: SocketAddr,
    folder: PathBuf,
}

/// A way in which libtorrent finds peers, in addition to trackers and other peers.
enum Discovery<'a> {
    None,
    /// The DHT, of which it knows these nodes.
    Dht(&'a [SocketAddr]),
    /// Local service discovery.
    Local,
}

/// Nodes of the DHT, each at an address of its own. They end with this value.
pub struct LibtorrentNodes {
    _process: Process,
    pub addresses: Vec<SocketAddr>,
}

impl LibtorrentNodes {
    /// Starts nodes that know others, and waits until each has eight in its table.
    pub fn start(lab: &Lab, count: usize, known: &[SocketAddr]) -> Self {
        let addresses: Vec<SocketAddr> = (0..count).map(|_| SocketAddr::new(lab.address(), 6881)).collect();
        let known: Vec<String> = known.iter().map(ToString::to_string).collect();
        let mut command = python();
        command
            .arg(root().join("tests/peers/libtorrent_nodes.py"))
            .arg(known.join(","))
            .args(addresses.iter().map(ToString::to_string));
        let mut process = Process::start(command);
        process.wait_for_line("nodes", |line| line == "ready");
        Self {
            _process: process,
            addresses,
        }
    }
}

/// Returns a command for the Python interpreter that can import libtorrent.
pub fn python() -> Command {
    command("python3")
}

impl Libtorrent {
    /// Seeds the data in `folder`. Returns when libtorrent is ready.
    pub fn seed(torrent: &Path, folder: &Path, ip: IpAddr, peers: &[SocketAddr]) -> Self {
        let mut this = Self::start("seed", torrent, folder, ip, peers, 0);
        this.process.wait_for_line("seeding", |line| line == "seeding");
        this
    }

    /// Like [`Libtorrent::seed`], but limits the upload rate, in bytes per second, and logs every peer message.
    pub fn seed_slowly(torrent: &Path, folder: &Path, ip: IpAddr, rate_bytes_per_s: u32) -> Self {
        let mut this = Self::start("seed", torrent, folder, ip, &[], rate_bytes_per_s);
        this.process.wait_for_line("seeding", |line| line == "seeding");
        this
    }

    /// Waits for an output line that contains `what`, and returns the line.
    pub fn wait_for_output(&mut self, what: &str) -> String {
        self.process.wait_for_line(what, |line| line.contains(what))
    }

    /// Returns the output so far.
    pub fn output(&mut self) -> String {
        self.process.output()
    }

    /// Downloads into `folder`.
    pub fn download(torrent: &Path, folder: &Path, ip: IpAddr, peers: &[SocketAddr]) -> Self {
        let mut this = Self::start("download", torrent, folder, ip, peers, 0);
        this.process.wait_for_line("downloading", |line| line == "downloading");
        this
    }

    /// Downloads into `folder` until some pieces are there. Returns the resume data.
    pub fn download_partly(torrent: &Path, folder: &Path, ip: IpAddr, peer: SocketAddr) -> Vec<u8> {
        let mut this = Self::start("partly", torrent, folder, ip, &[peer], 0);
        this.process.wait_for_line("resume data", |line| line == "saved");
        std::fs::read(folder.join("resume.data")).unwrap()
    }

    /// Like [`Libtorrent::seed`], but finds peers by local service discovery only.
    pub fn seed_locally(torrent: &Path, folder: &Path, ip: IpAddr) -> Self {
        let mut this = Self::start_with("seed", torrent, folder, ip, &[], 0, Discovery::Local);
        this.process.wait_for_line("seeding", |line| line == "seeding");
        this
    }

    /// Like [`Libtorrent::download`], but finds peers by local service discovery only.
    pub fn download_locally(torrent: &Path, folder: &Path, ip: IpAddr) -> Self {
        let mut this = Self::start_with("download", torrent, folder, ip, &[], 0, Discovery::Local);
        this.process.wait_for_line("downloading", |line| line == "downloading");
        this
    }

    /// Downloads the torrent of a magnet link into `folder`.
    pub fn download_magnet(link: &Path, folder: &Path, ip: IpAddr, peers: &[SocketAddr]) -> Self {
        Self::start("download", link, folder, ip, peers, 0)
    }

    /// Like [`Libtorrent::seed`], but finds peers by the DHT only, of which it knows these nodes.
    pub fn seed_by_dht(torrent: &Path, folder: &Path, ip: IpAddr, nodes: &[SocketAddr]) -> Self {
        let mut this = Self::start_with("seed", torrent, folder, ip, &[], 0, Discovery::Dht(nodes));
        this.process.wait_for_line("seeding", |line| line == "seeding");
        this
    }

    /// Downloads the torrent of a magnet link, and finds peers by the DHT only, of which it knows these nodes.
    pub fn download_by_dht(link: &Path, folder: &Path, ip: IpAddr, nodes: &[SocketAddr]) -> Self {
        Self::start_with("download", link, folder, ip, &[], 0, Discovery::Dht(nodes))
    }

    fn start(mode: &str, torrent: &Path, folder: &Path, ip: IpAddr, peers: &[SocketAddr], upload_limit: u32) -> Self {
        Self::start_with(mode, torrent, folder, ip, peers, upload_limit, Discovery::None)
    }

    fn start_with(
        mode: &str,
        torrent: &Path,
        folder: &Path,
        ip: IpAddr,
        peers: &[SocketAddr],
        upload_limit: u32,
        discovery: Discovery<'_>,
    ) -> Self {
        let address = SocketAddr::new(ip, 6881);
        let mut command = python();
        match discovery {
            Discovery::None => {}
            Discovery::Dht(nodes) => {
                let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
                command.env("DHT_NODES", nodes.join(",") + ",");
            }
            Discovery::Local => {
                command.env("LOCAL_DISCOVERY", "1");
            }
        }
        command
            .arg(root().join("tests/peers/libtorrent_peer.py"))
            .arg(mode)
            .arg(torrent)
            .arg(folder);
        command.env("UPLOAD_LIMIT", upload_limit.to_string());
        command
            .arg(address.to_string())
            .args(peers.iter().map(ToString::to_string));
        Self {
            process: Process::start(command),
            address,
            folder: folder.to_owned(),
        }
    }
}

impl Peer for Libtorrent {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn wait_complete(&mut self) {
        self.process.wait_for_line("completion", |line| line == "seeding");
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}
