//! A client that has the metadata of torrents, and announces them in the DHT.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ecs_torrent::{Engine, Settings, Source, TorrentPlugins};

pub const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 100, 1, 1)), 6881);

/// Bytes of a piece's hash.
const HASH: usize = 20;

const PIECE: usize = 16 << 10;

/// The client. It ends with this value.
pub struct Seed {
    _engine: Engine,
    _folder: tempfile::TempDir,
    /// Magnet links of its torrents.
    pub links: Vec<String>,
}

impl Seed {
    /// Adds torrents with so many bytes of metadata, and waits until they are announced. They have no data: only the
    /// metadata is requested.
    pub fn start(lens: &[usize], node: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        settings.net.listen = vec![ADDRESS];
        settings.lsd.enabled = false;
        settings.dht.bootstrap = vec![node.to_string()];
        settings.storage.download_dir = folder.path().to_owned();
        settings.session.state_dir = Some(folder.path().join("state"));
        let engine = Engine::builder()
            .plugins(TorrentPlugins)
            .settings(settings)
            .start()
            .unwrap();
        let torrents = engine.torrents();
        let add = |(number, len): (usize, &usize)| {
            let source = Source::from(Bytes::from(torrent(number, *len)));
            let id = torrents.blocking().download(source).unwrap();
            format!("magnet:?xt=urn:btih:{id}")
        };
        let links = lens.iter().enumerate().map(add).collect();
        let begun = Instant::now();
        // Announces end with the searches.
        let is_busy = || pollster::block_on(torrents.dht().stats()).unwrap().searches > 0;
        thread::sleep(Duration::from_secs(2));
        while is_busy() && begun.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(100));
        }
        Self {
            _engine: engine,
            _folder: folder,
            links,
        }
    }
}

/// Makes a torrent file of about so many bytes; the hashes of its pieces are arbitrary.
fn torrent(number: usize, len: usize) -> Vec<u8> {
    let pieces = len / HASH;
    let mut file = format!(
        "d4:infod6:lengthi{}e4:name7:file{number:03}12:piece lengthi{PIECE}e6:pieces{}:",
        pieces * PIECE,
        pieces * HASH
    )
    .into_bytes();
    file.extend((0..pieces * HASH).map(|byte| (byte * 31 + number) as u8));
    file.extend(b"ee");
    file
}
