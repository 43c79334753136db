//! The environment of measurements: addresses, a folder in memory, and a tracker that knows the seeders.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::options::Options;

/// Port of every client.
pub const PORT: u16 = 6881;

/// Address of the measured client.
pub const MEASURED: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 1));

const TRACKER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 78, 0, 2)), 6969);

/// Announce URL of the lab's tracker.
pub const TRACKER_URL: &str = "http://10.78.0.2:6969/announce";

const COUNTERPARTS: u8 = 8;

/// Address of a counterpart, counted from 0.
pub fn counterpart(number: u8) -> IpAddr {
    assert!(number < COUNTERPARTS, "more counterparts than addresses");
    Ipv4Addr::new(10, 78, 1, number + 1).into()
}

/// All addresses that the network namespace needs.
pub fn addresses() -> Vec<IpAddr> {
    [MEASURED, TRACKER.ip()]
        .into_iter()
        .chain((0..COUNTERPARTS).map(counterpart))
        .collect()
}

/// A running tracker and a folder that is removed on drop.
pub struct Lab {
    folder: tempfile::TempDir,
    seeders: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Lab {
    pub fn new(options: &Options) -> std::io::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("ecs-torrent-bench-")
            .tempdir_in(&options.dir)?;
        let seeders = Arc::new(Mutex::new(Vec::new()));
        let listener = TcpListener::bind(TRACKER)?;
        let swarm = seeders.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A malformed announce gets no answer; the run then fails by itself.
                let _ = answer(stream, &swarm.lock().unwrap());
            }
        });
        Ok(Self { folder, seeders })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Creates an empty folder of this name, replacing an existing one.
    pub fn fresh(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).unwrap();
        }
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Sets the seeders in the tracker's replies.
    pub fn announce(&self, seeders: &[SocketAddr]) {
        *self.seeders.lock().unwrap() = seeders.to_vec();
    }
}

fn answer(mut stream: std::net::TcpStream, seeders: &[SocketAddr]) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let len = stream.read(&mut chunk)?;
        if len == 0 {
            return Ok(());
        }
        request.extend_from_slice(&chunk[..len]);
    }
    let mut body = format!("d8:intervali1800e5:peers{}:", seeders.len() * 6).into_bytes();
    for seeder in seeders {
        if let IpAddr::V4(ip) = seeder.ip() {
            body.extend(ip.octets());
            body.extend(seeder.port().to_be_bytes());
        }
    }
    body.push(b'e');
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(&body)
}
