//! The honest transfer: one seed, and a daemon that downloads its torrent repeatedly.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent::components::settings::Settings;
use ecs_torrent::making::MakeOptions;
use ecs_torrent::protocol::geometry::Geometry;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent::{AddOptions, Engine, InfoHash, TorrentPlugins};

use crate::content::{make_torrent, noise};
use crate::daemon::Daemon;

/// Time between two polls of the download.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

pub struct Honest {
    _seed: Engine,
    target: Target,
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    downloads: Option<JoinHandle<()>>,
}

/// Data about the torrent that attackers need.
#[derive(Debug, Clone)]
pub struct Target {
    pub info_hash: InfoHash,
    pub geometry: Geometry,
}

impl Honest {
    pub fn start(folder: &Path, len: usize, daemon: &Arc<Daemon>) -> Self {
        let content = folder.join("seed");
        fs::create_dir(&content).expect("a folder for the seed");
        fs::write(content.join("honest"), noise(7, len)).expect("the seed's data");
        let options = MakeOptions {
            piece_length: Some(256 << 10),
            ..MakeOptions::default()
        };
        let torrent = make_torrent(&content.join("honest"), options);
        let metainfo = Metainfo::parse(&Bytes::from(torrent.clone()), &MetainfoLimits::default()).expect("valid");
        let target = Target {
            info_hash: metainfo.hashes.primary(),
            geometry: metainfo.info.geometry.clone(),
        };
        let mut settings = Settings::default();
        settings.session.state_dir = None;
        settings.net.listen = vec![(Ipv4Addr::LOCALHOST, 0).into()];
        let seed = Engine::builder()
            .plugins(TorrentPlugins)
            .settings(settings)
            .start()
            .expect("the seed starts");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let options = AddOptions {
            root: Some(content),
            require_complete: true,
            ..AddOptions::default()
        };
        let added = runtime.block_on(seed.torrents().download_with(Arc::new(metainfo), options));
        added.expect("the seed has its torrent");
        let address = seed.local_addresses()[0];
        let (bytes, stop) = (Arc::default(), Arc::default());
        let downloads = Downloads {
            daemon: daemon.clone(),
            torrent,
            info_hash: target.info_hash,
            address,
            len: len as u64,
            bytes: Arc::clone(&bytes),
            stop: Arc::clone(&stop),
        };
        Self {
            _seed: seed,
            target,
            bytes,
            stop,
            downloads: Some(thread::spawn(move || downloads.run())),
        }
    }

    pub fn target(&self) -> Target {
        self.target.clone()
    }

    /// Returns the bytes that the daemon has downloaded and verified so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Honest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.downloads.take() {
            let _ = thread.join();
        }
    }
}

/// Downloads the torrent, removes it with its data, and starts again.
struct Downloads {
    daemon: Arc<Daemon>,
    torrent: Vec<u8>,
    info_hash: InfoHash,
    address: SocketAddr,
    len: u64,
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Downloads {
    fn run(&self) {
        let mut done = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let add = format!("/api/v1/torrents?peer={}", self.address);
            let _ = self.daemon.request("POST", &add, &self.torrent);
            let path = format!("/api/v1/torrents/{}", self.info_hash);
            while !self.stop.load(Ordering::Relaxed) {
                let progress = self.progress(&path).unwrap_or(0.0);
                self.bytes
                    .store(done + (progress * self.len as f64) as u64, Ordering::Relaxed);
                if progress >= 1.0 {
                    break;
                }
                thread::sleep(LOOK_INTERVAL);
            }
            done = self.bytes.load(Ordering::Relaxed);
            let _ = self.daemon.request("DELETE", &format!("{path}?delete_data=true"), b"");
        }
    }

    fn progress(&self, path: &str) -> Option<f64> {
        let (_, body) = self.daemon.request("GET", &format!("{path}?fields=progress"), b"")?;
        let stats: serde_json::Value = serde_json::from_slice(&body).ok()?;
        stats["progress"].as_f64()
    }
}
