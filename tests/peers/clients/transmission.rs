//! Transmission's daemon, which finds its torrent in a watched folder and signals completion through a script.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Peer, command};
use crate::lab::{DEADLINE, Lab, Process};

pub struct Transmission {
    process: Process,
    address: SocketAddr,
    folder: PathBuf,
    done: PathBuf,
}

impl Transmission {
    /// Joins the swarm with the data in `folder`: downloads the missing data, and seeds if the data is complete.
    pub fn start(lab: &Lab, torrent: &Path, folder: &Path, ip: IpAddr) -> Self {
        let config = lab.folder(&format!("transmission-{ip}"));
        let watch = lab.folder(&format!("transmission-{ip}/watch"));
        let done = config.join("done");
        let script = config.join("on-done");
        std::fs::write(&script, format!("#!/bin/sh\ntouch '{}'\n", done.display())).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let address = SocketAddr::new(ip, 51413);
        let settings = serde_json::json!({
            "bind-address-ipv4": ip.to_string(),
            "bind-address-ipv6": "::1",
            "dht-enabled": false,
            "lpd-enabled": false,
            "pex-enabled": false,
            "utp-enabled": false,
            "port-forwarding-enabled": false,
            "peer-port": address.port(),
            "rpc-bind-address": ip.to_string(),
            "rpc-whitelist-enabled": false,
            "rpc-authentication-required": false,
            "download-dir": folder,
            "watch-dir": watch,
            "watch-dir-enabled": true,
            "script-torrent-done-enabled": true,
            "script-torrent-done-filename": script,
            "encryption": 0,
            "preallocation": 0,
            "message-level": 2,
        });
        std::fs::write(config.join("settings.json"), settings.to_string()).unwrap();
        std::fs::copy(torrent, watch.join("it.torrent")).unwrap();
        let mut command = command("transmission-daemon");
        command
            .args(["--foreground", "--log-info", "--config-dir"])
            .arg(&config);
        Self {
            process: Process::start(command),
            address,
            folder: folder.to_owned(),
            done,
        }
    }

    /// Waits until Transmission accepts connections.
    pub fn ready(self) -> Self {
        let deadline = Instant::now() + DEADLINE;
        while std::net::TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < deadline, "transmission does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        self
    }

    /// Waits until Transmission has verified its files and found them complete.
    pub fn seeding(mut self) -> Self {
        self.wait_complete();
        self
    }
}

impl Peer for Transmission {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn wait_complete(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        while !self.done.exists() {
            assert!(
                Instant::now() < deadline,
                "transmission did not finish:\n{}",
                self.process.output()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}
