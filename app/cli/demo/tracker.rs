//! A tracker for the demo that serves one swarm on this machine.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{ConnectInfo, RawQuery, State};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// A running tracker that ends with the process.
pub(super) struct DemoTracker {
    address: SocketAddr,
    swarm: Arc<Swarm>,
}

/// The peers that have announced, by address and port.
#[derive(Default)]
struct Swarm {
    peers: Mutex<BTreeSet<(IpAddr, u16)>>,
    joined: Notify,
}

impl DemoTracker {
    pub(super) async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let swarm = Arc::new(Swarm::default());
        let router = Router::new()
            .route("/announce", get(announce))
            .with_state(swarm.clone());
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        Ok(Self { address, swarm })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn announce_url(&self) -> String {
        format!("http://{}/announce", self.address)
    }

    /// Waits until a peer has announced.
    pub(super) async fn wait_for_peer(&self) {
        self.swarm.joined.notified().await;
    }
}

async fn announce(
    State(swarm): State<Arc<Swarm>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    RawQuery(query): RawQuery,
) -> Vec<u8> {
    let query = query.unwrap_or_default();
    let parameter = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    };
    let Some(port) = parameter("port").and_then(|port| port.parse::<u16>().ok()) else {
        return b"d14:failure reason12:missing porte".to_vec();
    };
    let mut peers = swarm.peers.lock().unwrap_or_else(PoisonError::into_inner);
    let mut compact = Vec::new();
    for (ip, port) in peers.iter() {
        if let IpAddr::V4(ip) = ip {
            compact.extend(ip.octets());
            compact.extend(port.to_be_bytes());
        }
    }
    match parameter("event") {
        Some("stopped") => drop(peers.remove(&(from.ip(), port))),
        _ => drop(peers.insert((from.ip(), port))),
    }
    swarm.joined.notify_one();
    let mut reply = format!("d8:intervali60e5:peers{}:", compact.len()).into_bytes();
    reply.extend(compact);
    reply.push(b'e');
    reply
}
