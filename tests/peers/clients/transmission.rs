//! Transmission's daemon, which finds its torrent in a watched folder and signals completion through a script.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
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
    config: PathBuf,
}

impl Transmission {
    /// Joins the swarm with the data in `folder`: downloads the missing data, and seeds if the data is complete.
    pub fn start(lab: &Lab, torrent: &Path, folder: &Path, ip: IpAddr) -> Self {
        Self::with(lab, Some(torrent), folder, ip, &[])
    }

    /// Like [`Transmission::start`], but finds peers by the DHT only, of which it knows these nodes. It begins to
    /// search when nine have answered, one every two seconds.
    pub fn start_by_dht(lab: &Lab, torrent: &Path, folder: &Path, ip: IpAddr, nodes: &[SocketAddr]) -> Self {
        Self::with(lab, Some(torrent), folder, ip, nodes)
    }

    /// Downloads the torrent of a magnet link into `folder`. Returns when Transmission has the link.
    pub fn start_magnet(lab: &Lab, link: &Path, folder: &Path, ip: IpAddr) -> Self {
        let this = Self::with(lab, None, folder, ip, &[]).ready();
        let call = serde_json::json!({"method": "torrent-add", "arguments": {"filename": link}}).to_string();
        let rpc = SocketAddr::new(ip, 9091);
        // The first answer names the session id that the second call must have.
        let refusal = post(rpc, "", &call);
        let id = refusal
            .lines()
            .find(|line| line.starts_with("X-Transmission-Session-Id"));
        let answer = post(rpc, &format!("{}\r\n", id.unwrap()), &call);
        assert!(answer.contains("success"), "{answer}");
        this
    }

    fn with(lab: &Lab, torrent: Option<&Path>, folder: &Path, ip: IpAddr, nodes: &[SocketAddr]) -> Self {
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
            "dht-enabled": !nodes.is_empty(),
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
        if !nodes.is_empty() {
            std::fs::write(config.join("dht.dat"), table(nodes)).unwrap();
        }
        if let Some(torrent) = torrent {
            std::fs::copy(torrent, watch.join("it.torrent")).unwrap();
        }
        let mut command = command("transmission-daemon");
        command
            .args(["--foreground", "--log-info", "--config-dir"])
            .arg(&config);
        Self {
            process: Process::start(command),
            address,
            folder: folder.to_owned(),
            done,
            config,
        }
    }

    /// Waits until Transmission accepts connections.
    pub fn ready(self) -> Self {
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < deadline, "transmission does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        self
    }

    /// Stops Transmission, and returns its configuration folder.
    pub fn stop(mut self) -> PathBuf {
        self.process.interrupt();
        self.process.wait_for_end();
        self.config
    }

    /// Waits until Transmission has verified its files and found them complete.
    pub fn seeding(mut self) -> Self {
        self.wait_complete();
        self
    }
}

/// Returns the saved routing table of an earlier run: an id, and the IPv4 nodes in compact form.
fn table(nodes: &[SocketAddr]) -> Vec<u8> {
    let mut compact = Vec::new();
    for node in nodes {
        if let IpAddr::V4(ip) = node.ip() {
            compact.extend(ip.octets());
            compact.extend(node.port().to_be_bytes());
        }
    }
    let head = format!("d2:id20:{}5:nodes{}:", "t".repeat(20), compact.len());
    [head.as_bytes(), &compact, b"e"].concat()
}

/// Calls the RPC interface and returns the whole answer, headers included.
fn post(rpc: SocketAddr, header: &str, body: &str) -> String {
    let deadline = Instant::now() + DEADLINE;
    let mut stream = loop {
        match TcpStream::connect(rpc) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "no RPC: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let length = body.len();
    let request = format!(
        "POST /transmission/rpc HTTP/1.1\r\nHost: {rpc}\r\nConnection: close\r\n{header}Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
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
