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

/// The port that it serves on.
const PORT: u16 = 6969;

/// The announce URL of a tracker at `ip`, over HTTP.
pub fn http_url(ip: IpAddr) -> String {
    format!("http://{}/announce", SocketAddr::new(ip, PORT))
}

/// The announce URL of a tracker at `ip`, over UDP.
pub fn udp_url(ip: IpAddr) -> String {
    format!("udp://{}/announce", SocketAddr::new(ip, PORT))
}

impl Opentracker {
    /// Starts a tracker for one torrent; ready when this returns.
    pub fn start(lab: &Lab, ip: IpAddr, info_hash: InfoHash) -> Self {
        let address = SocketAddr::new(ip, PORT);
        let folder = lab.folder("opentracker");
        // Debian builds it to serve listed torrents only.
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

    /// How many have all, and how many not, as it counts them.
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

    /// Waits until it counts so many.
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
