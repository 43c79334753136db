//! opentracker, over HTTP and UDP on one port.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ecs_torrent::InfoHash;

use super::command;
use crate::lab::{DEADLINE, Lab, Process};

pub struct Opentracker {
    _process: Process,
    address: SocketAddr,
}

/// The port on which opentracker serves.
const PORT: u16 = 6969;

/// Returns the HTTP announce URL of a tracker at `ip`.
pub fn http_url(ip: IpAddr) -> String {
    format!("http://{}/announce", SocketAddr::new(ip, PORT))
}

/// Returns the UDP announce URL of a tracker at `ip`.
pub fn udp_url(ip: IpAddr) -> String {
    format!("udp://{}/announce", SocketAddr::new(ip, PORT))
}

impl Opentracker {
    /// Starts a tracker for one torrent. Returns when the tracker is ready.
    pub fn start(lab: &Lab, ip: IpAddr, info_hash: InfoHash) -> Self {
        let address = SocketAddr::new(ip, PORT);
        let folder = lab.folder("opentracker");
        // Debian's build serves only torrents on its whitelist.
        std::fs::write(folder.join("whitelist"), format!("{info_hash}\n")).unwrap();
        let mut command = command("opentracker");
        let port = PORT.to_string();
        command.args([
            "-i",
            &ip.to_string(),
            "-p",
            &port,
            "-P",
            &port,
            "-u",
            "nobody",
            "-w",
            "whitelist",
            "-d",
        ]);
        command.arg(&folder);
        let process = Process::start(command);
        let this = Self {
            _process: process,
            address,
        };
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect(this.address).is_err() {
            assert!(Instant::now() < deadline, "opentracker does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        this
    }

    /// Returns the tracker's counts of seeds and leechers.
    pub fn counts(&self, info_hash: InfoHash) -> (u32, u32) {
        use std::io::{Read, Write};
        let escaped: String = info_hash.0.iter().map(|byte| format!("%{byte:02X}")).collect();
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(stream, "GET /scrape?info_hash={escaped} HTTP/1.0\r\n\r\n").unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        let body = reply
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .map_or(0, |head| head + 4);
        let counts = ecs_torrent::protocol::tracker::http::read_scrape(&reply[body..], &[info_hash]).unwrap();
        counts
            .first()
            .map_or((0, 0), |(_, counts)| (counts.seeders, counts.leechers))
    }

    /// Waits until the tracker's counts equal `expected`.
    pub fn wait_for_counts(&self, info_hash: InfoHash, expected: (u32, u32)) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let counts = self.counts(info_hash);
            if counts == expected {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the tracker counts {counts:?}, not {expected:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
