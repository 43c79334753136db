//! Streams over a carrier that is not TCP, and through a filter.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;

use ecs_torrent::components::peer::Transport;
use ecs_torrent::engine::backends::net::{ByteStream, Carrier, Pending};
use ecs_torrent::{AddOptions, Engine, Settings, TorrentPlugins, TorrentStats};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::bed::{DEADLINE, Torrent};
use crate::masking::{HANDSHAKE, Masking};

/// Bytes that a pipe holds.
const PIPE_BYTES: usize = 50_000;

type Accepted = (Box<dyn ByteStream>, SocketAddr);

/// All bytes that passed the pipes of a network, in one list for each direction of each pipe.
#[derive(Default)]
struct Network {
    hosts: Mutex<HashMap<SocketAddr, UnboundedSender<Accepted>>>,
    flows: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
}

/// A carrier of in-memory pipes between the engines of a process.
struct Pipes {
    network: Arc<Network>,
    address: SocketAddr,
    incoming: tokio::sync::Mutex<UnboundedReceiver<Accepted>>,
}

impl Pipes {
    fn new(network: &Arc<Network>, last: u8) -> Arc<Self> {
        let address = SocketAddr::from((Ipv4Addr::new(192, 0, 2, last), 6881));
        let (sender, incoming) = unbounded_channel();
        network.hosts.lock().unwrap().insert(address, sender);
        Arc::new(Self {
            network: network.clone(),
            address,
            incoming: tokio::sync::Mutex::new(incoming),
        })
    }
}

impl Carrier for Pipes {
    fn transport(&self) -> Transport {
        Transport::Other("pipe")
    }

    fn connect(&self, to: SocketAddr) -> Pending<'_, Box<dyn ByteStream>> {
        Box::pin(async move {
            let host = self.network.hosts.lock().unwrap().get(&to).cloned();
            let host = host.ok_or(io::ErrorKind::ConnectionRefused)?;
            let (here, there) = duplex(PIPE_BYTES);
            let [here, there] = [here, there].map(|pipe| {
                let sent = Arc::default();
                self.network.flows.lock().unwrap().push(Arc::clone(&sent));
                Box::new(Tapped { pipe, sent }) as Box<dyn ByteStream>
            });
            let _ = host.send((there, self.address));
            Ok(here)
        })
    }

    fn accept(&self) -> Pending<'_, Accepted> {
        Box::pin(async {
            let next = self.incoming.lock().await.recv().await;
            next.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
        })
    }
}

/// One end of a pipe, with the bytes that were written into it.
struct Tapped {
    pipe: DuplexStream,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl ByteStream for Tapped {}

impl AsyncRead for Tapped {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(cx, bytes)
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.pipe).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = result {
            self.sent.lock().unwrap().extend(&bytes[..written]);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// Lets one engine download a torrent from another over pipes, and returns the leecher's peers as seen during that, and
/// the bytes that passed.
fn transfer(is_masked: bool, torrent: &Torrent) -> (Vec<Option<&'static str>>, Vec<Vec<u8>>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let network = Arc::default();
    let engine = |last| {
        let mut settings = Settings::default();
        settings.session.state_dir = None;
        settings.net.listen = vec![(Ipv4Addr::LOCALHOST, 0).into()];
        let builder = Engine::builder().plugins(TorrentPlugins).settings(settings);
        let builder = builder.carrier(Pipes::new(&network, last));
        let builder = if is_masked { builder.plugins(Masking) } else { builder };
        builder.start().unwrap()
    };
    let (seeder, leecher) = (engine(1), engine(2));
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    std::fs::write(folders[0].path().join("data"), &torrent.data).unwrap();
    let add = |engine: &Engine, folder: &tempfile::TempDir, peers: Vec<SocketAddr>| {
        let options = AddOptions {
            root: Some(folder.path().to_owned()),
            peers,
            ..AddOptions::default()
        };
        let torrents = engine.torrents();
        let added = torrents.download_with(torrent.metainfo.clone(), options);
        runtime.block_on(added).unwrap();
    };
    let stats = |engine: &Engine| -> TorrentStats {
        let torrents = engine.torrents();
        runtime.block_on(torrents.stats(torrent.info_hash())).unwrap()
    };
    add(&seeder, &folders[0], Vec::new());
    add(&leecher, &folders[1], vec![(Ipv4Addr::new(192, 0, 2, 1), 6881).into()]);
    let mut transports = Vec::new();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let stats = stats(&leecher);
        transports.extend(stats.peers.iter().map(|peer| peer.transport));
        if stats.is_complete() && !transports.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{stats:?}");
    }
    assert_eq!(std::fs::read(folders[1].path().join("data")).unwrap(), torrent.data);
    // The stop closes the streams in order.
    runtime.block_on(leecher.torrents().stop_all_and_serialize()).unwrap();
    let flows = network.flows.lock().unwrap();
    let flows = flows.iter().map(|flow| flow.lock().unwrap().clone()).collect();
    (transports, flows)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Two engines move a torrent over in-memory pipes: nothing above the Net port knows TCP.
#[test]
fn a_torrent_over_a_pipe() {
    let torrent = Torrent::new(2_000_000, 65536);
    let (transports, flows) = transfer(false, &torrent);
    assert!(transports.iter().all(|name| *name == Some("pipe")), "{transports:?}");
    let block = &torrent.data[100_000..100_064];
    assert!(flows.iter().any(|flow| contains(flow, block)));
}

/// The same through a filter that begins behind the handshake: the handshakes pass as they are, the blocks masked.
#[test]
fn a_torrent_through_a_filter() {
    let torrent = Torrent::new(2_000_000, 65536);
    let (_, flows) = transfer(true, &torrent);
    let payload: usize = flows.iter().map(Vec::len).sum();
    assert!(payload > torrent.data.len());
    for flow in flows.iter().filter(|flow| !flow.is_empty()) {
        assert_eq!(flow[..20], *b"\x13BitTorrent protocol");
        assert_eq!(flow[28..48], torrent.info_hash().0);
        let masked = &flow[HANDSHAKE..];
        for start in (0..torrent.data.len() - 64).step_by(400_000) {
            assert!(!contains(masked, &torrent.data[start..start + 64]));
        }
    }
}
