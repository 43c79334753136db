//! Many peers that are idle or request one block after the other.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ecs_torrent::protocol::geometry::Geometry;
use ecs_torrent::protocol::hash::InfoHash;
use ecs_torrent::protocol::peer_id::PeerId;
use ecs_torrent::protocol::wire::{HANDSHAKE_LEN, Handshake, Message, Reserved};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::content;
use crate::process::{DEADLINE, Running};
use crate::rows::Metric;

/// Time for which ticks are measured, once idle and once busy.
const WATCH: Duration = Duration::from_secs(10);

struct ManyPeers {
    info_hash: InfoHash,
    geometry: Geometry,
    unchoked: AtomicUsize,
    blocks: AtomicUsize,
    is_busy: AtomicBool,
    wake: Notify,
}

/// Connects `count` peers to a running engine and measures its tick times while they are idle and then busy, and its
/// memory per peer.
pub fn measure(
    engine: &mut Running,
    torrent: &Path,
    address: SocketAddr,
    count: usize,
) -> Result<Vec<(Metric, f64)>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let metainfo = content::load(torrent).map_err(|error| error.to_string())?;
    let many_peers = Arc::new(ManyPeers {
        info_hash: metainfo.hashes.primary(),
        geometry: metainfo.info.geometry,
        unchoked: AtomicUsize::new(0),
        blocks: AtomicUsize::new(0),
        is_busy: AtomicBool::new(false),
        wake: Notify::new(),
    });
    runtime.block_on(async {
        let alone_mib = engine.resident_mib()?;
        for number in 0..count {
            tokio::spawn(take_part(many_peers.clone(), address, number));
        }
        let deadline = Instant::now() + DEADLINE;
        while many_peers.unchoked.load(Ordering::Relaxed) < count {
            if Instant::now() > deadline {
                return Err(format!(
                    "only {} peers were let in",
                    many_peers.unchoked.load(Ordering::Relaxed)
                ));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let peer_kib = (engine.resident_mib()? - alone_mib) * 1024.0 / count as f64;
        engine.ask("forget the ticks of connecting")?;
        tokio::time::sleep(WATCH).await;
        let idle = engine.ask("idle")?;
        many_peers.is_busy.store(true, Ordering::Relaxed);
        many_peers.wake.notify_waiters();
        tokio::time::sleep(WATCH).await;
        let busy = engine.ask("busy")?;
        let blocks = many_peers.blocks.load(Ordering::Relaxed);
        if blocks < count {
            return Err(format!("only {blocks} blocks were sent to {count} peers"));
        }
        let number = |line: &str| line.parse::<f64>().map_err(|error| format!("{line}: {error}"));
        Ok(vec![
            (Metric::IdleTick, number(&idle)?),
            (Metric::BusyTick, number(&busy)?),
            (Metric::PeerMemory, peer_kib),
        ])
    })
}

async fn take_part(many_peers: Arc<ManyPeers>, address: SocketAddr, number: usize) {
    if let Err(error) = connect_and_request(&many_peers, address, number).await {
        eprintln!("peer {number}: {error}");
    }
}

async fn connect_and_request(many_peers: &ManyPeers, address: SocketAddr, number: usize) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let handshake = Handshake {
        reserved: Reserved::ours(),
        info_hash: many_peers.info_hash,
        peer_id: PeerId::ours(std::array::from_fn(|at| number.to_le_bytes()[at % 8])),
    };
    let mut out = Vec::new();
    handshake.write(&mut out);
    Message::HaveNone.write(&mut out);
    Message::Interested.write(&mut out);
    stream.write_all(&out).await?;
    stream.read_exact(&mut [0; HANDSHAKE_LEN]).await?;
    let mut frame = Vec::new();
    let mut next = number as u32;
    loop {
        let len = stream.read_u32().await? as usize;
        frame.resize(len, 0);
        stream.read_exact(&mut frame).await?;
        match frame.first() {
            Some(&super::lower_bound::UNCHOKE) => {
                many_peers.unchoked.fetch_add(1, Ordering::Relaxed);
                let woken = many_peers.wake.notified();
                if !many_peers.is_busy.load(Ordering::Relaxed) {
                    woken.await;
                }
            }
            Some(&super::lower_bound::PIECE) => drop(many_peers.blocks.fetch_add(1, Ordering::Relaxed)),
            _ => continue,
        }
        out.clear();
        next = (next + 1) % many_peers.geometry.piece_count();
        Message::Request(many_peers.geometry.block(next, 0)).write(&mut out);
        stream.write_all(&out).await?;
    }
}
