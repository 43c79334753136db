//! All limits and defaults of the engine, by name.
//!
//! All fields have defaults; a configuration names only the fields it changes. Field names end in their unit: `_s`
//! seconds, `_ms` milliseconds, `_bytes` bytes. Every number has a range ([`Number`]); [`Settings::check`] reports
//! values outside of it.

mod changes;
mod queue;
mod ranges;
mod readers;
mod seeding;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::tracker::tiers::AnnounceReach;
use serde::{Deserialize, Serialize};

use crate::week::{WeekSpan, WeekTime};

use crate::labels::{Category, LabelBounds};
use crate::networks::Network;

pub use self::changes::{
    BlockedEdit, ChangeError, ChangeSettings, ChangedSettings, EditBlocked, Effect, INCOMPLETE_DIR, SettingChanges,
    SettingLayers, SettingsChanged, SettingsPatch,
};
pub use self::queue::{NO_MAXIMUM, QueueSettings};
pub use self::ranges::{Number, Numbers, SettingError, check_numbers};
pub use self::readers::ReaderSettings;
pub use self::seeding::{NO_RATIO, NO_TIME, SeedingAction, SeedingSettings};

/// All settings.
///
/// ```
/// use ecs_torrent_components::settings::Settings;
///
/// let mut settings = Settings::default();
/// settings.peers.max_connections = 2000;
/// assert!(settings.check().is_ok());
/// settings.tick.max_events = 0;
/// assert!(settings.check().unwrap_err().to_string().contains("max_events"));
/// ```
#[derive(Resource, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The tick.
    pub tick: TickSettings,
    /// Sockets.
    pub net: NetSettings,
    /// Connections to peers.
    pub peers: PeerSettings,
    /// Requests to peers and their pipelines.
    pub requests: RequestSettings,
    /// Uploads: slots, choking and memory.
    pub uploads: UploadSettings,
    /// Transfer rates.
    pub limits: LimitSettings,
    /// Seeding limits.
    pub seeding: SeedingSettings,
    /// The queue.
    pub queue: QueueSettings,
    /// Files and hashing.
    pub storage: StorageSettings,
    /// Announces.
    pub trackers: TrackerSettings,
    /// Metadata from peers and for them.
    pub metadata: MetadataSettings,
    /// Peer exchange.
    pub pex: PexSettings,
    /// The distributed hash table.
    pub dht: DhtSettings,
    /// Local service discovery.
    pub lsd: LsdSettings,
    /// Saved state of torrents between runs.
    pub session: SessionSettings,
    /// Starting and stopping torrents.
    pub lifecycle: LifecycleSettings,
    /// Labels and categories of torrents.
    pub labels: LabelSettings,
    /// Reading of files while they are downloaded.
    pub readers: ReaderSettings,
}

/// How often the engine ticks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TickSettings {
    /// Minimum time between the starts of two ticks under load. A longer interval batches more work into a wake-up; a
    /// shorter one answers sooner. Default 1 ms.
    pub min_interval_us: u64,
    /// Maximum time between two ticks when nothing happens. Default 1 s.
    pub max_interval_ms: u64,
    /// Maximum number of events taken from a port in one tick; if some remain, the next tick is due at once. Default
    /// 1024, which is worth a few milliseconds.
    pub max_events: usize,
    /// Maximum number of facade commands taken in one tick. Default 1024.
    pub max_commands: usize,
    /// Maximum number of peer messages decoded in one tick, over all connections. If more arrived, every address
    /// (every /64 for IPv6) gets an equal share, and the rest waits for the next tick. A higher limit makes ticks
    /// longer under a flood. Default 4096, which is worth a millisecond or two.
    pub max_messages: u32,
}

impl Default for TickSettings {
    fn default() -> Self {
        Self {
            min_interval_us: 1000,
            max_interval_ms: 1000,
            max_events: 1024,
            max_commands: 1024,
            max_messages: 4096,
        }
    }
}

/// Sockets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetSettings {
    /// Addresses to accept peers on, TCP and UDP; port 0 takes a free one. Outgoing connections use a specific address
    /// as their source too. Default `0.0.0.0:6881` and `[::]:6881`.
    pub listen: Vec<SocketAddr>,
    /// Whether a free port replaces a listen port that is already in use, instead of failing the start. Default true.
    pub listen_fallback: bool,
    /// Threads of the network runtime. Default 1: one moves more than 10 Gbit/s.
    pub threads: usize,
    /// Maximum number of bytes received from a peer and not yet processed by the engine; further bytes stay in the
    /// kernel, and the peer waits. A connection moves at most this much a tick. A peer gets a window of this size only
    /// while it owes us as much in requested blocks. Default 2 MiB.
    pub receive_window_bytes: u32,
    /// Receive window of a peer that owes us no blocks, and the surplus that every peer may send beyond what it owes.
    /// Any stranger can make us hold this much memory. Default 64 KiB.
    pub idle_window_bytes: u32,
    /// Maximum number of received datagrams of one kind that wait to be processed; more are dropped and counted.
    /// Default 256, of at most 4 KiB each.
    pub max_datagrams: usize,
    /// Datagrams of each kind that one tick takes; the others wait for the next. Default 128.
    pub max_datagrams_per_tick: usize,
    /// Size of the shared chunks that sockets are read into. Default 256 KiB.
    pub read_chunk_bytes: usize,
    /// Timeout for establishing a TCP connection. Default 10 s.
    pub connect_timeout_s: u64,
    /// Timeout of an orderly close: the last bytes are sent and the peer closes within this time. Default 1 s.
    pub close_timeout_ms: u64,
    /// Maximum number of concurrent host name lookups. Default 16.
    pub max_lookups: usize,
}

impl Default for NetSettings {
    fn default() -> Self {
        Self {
            listen: vec![
                SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 6881),
                SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 6881),
            ],
            listen_fallback: true,
            threads: 1,
            receive_window_bytes: 2 << 20,
            idle_window_bytes: 64 << 10,
            max_datagrams: 256,
            max_datagrams_per_tick: 128,
            read_chunk_bytes: 256 << 10,
            connect_timeout_s: 10,
            close_timeout_ms: 1000,
            max_lookups: 16,
        }
    }
}

impl NetSettings {
    /// Bytes that a connection may receive before it is granted any credit.
    #[must_use]
    pub fn first_window(&self) -> u32 {
        self.idle_window_bytes.min(self.receive_window_bytes)
    }
}

/// Connections to peers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerSettings {
    /// Maximum number of connections of the engine. Default 500.
    pub max_connections: usize,
    /// Maximum number of connections of one torrent. Default 100.
    pub max_per_torrent: usize,
    /// Maximum number of connections opened by one IP address (one /64 for public IPv6). Beyond it, a new connection
    /// replaces a less useful connection from the same address, or is refused. Default 32: many peers may share a
    /// gateway.
    pub max_inbound_per_ip: usize,
    /// Maximum number of connections opened from one /24 of public IPv4 addresses, or from one /48 of public IPv6.
    /// Local networks (loopback, private, link-local) are exempt. Default 64.
    pub max_inbound_per_subnet: usize,
    /// Maximum number of outgoing connection attempts at a time. Default 64.
    pub max_half_open: usize,
    /// Maximum number of connections that have not named their torrent yet. Beyond it, a new connection replaces the
    /// oldest one of the subnet with the most such connections. Default 128.
    pub max_unidentified: usize,
    /// Percentage of the connections that is reserved for outgoing ones: of a torrent, as long as it knows addresses
    /// to try, and of the engine. A higher percentage makes it harder to fill a torrent with inbound connections; a
    /// lower one leaves room for peers that cannot be reached. Default 30.
    pub outgoing_percent: usize,
    /// Maximum size of a bitfield that a peer sends before the metadata of its torrent is known; a longer one closes
    /// the connection, and so does a piece that such a bitfield cannot name. It is kept until the metadata is known.
    /// Default 128 KiB, which is enough for a million pieces.
    pub max_raw_bitfield_bytes: usize,
    /// Number of connections that are reserved for peers named by a user: of the engine, of each torrent that has such
    /// peers, and of the outgoing attempts; at most a quarter of each limit. Default 8.
    pub user_reserve: usize,
    /// Time in which a connection must prove useful when another one wants its slot: the peer shows interest, or
    /// raises ours. The time shrinks to as little as 2 s the more of the torrent's connections show no interest, and
    /// the more of them share the subnet. Default 20 s.
    pub grace_s: u64,
    /// Grace time of a connection on which one side is interested, counted from the last block in either direction. It
    /// shrinks to as little as 2 s the more connections share the subnet. Default 300 s: a seed serves its peers in
    /// turns.
    pub waiting_grace_s: u64,
    /// Maximum number of remembered evictions of silent connections. A connection from a site that was evicted more
    /// often than a newcomer's has no grace time while it is silent. An eviction is forgotten after 30 minutes.
    /// Default 4096.
    pub max_remembered_evictions: usize,
    /// Maximum number of addresses remembered for one torrent. Default 2000.
    pub max_candidates: usize,
    /// Maximum number of addresses remembered for one torrent that have the same public IP address and differ in their
    /// ports, those that users named not counted. A liar makes us connect to as many ports of a victim. Default 8:
    /// some peers share a gateway.
    pub max_candidates_per_ip: usize,
    /// Maximum number of peers of one torrent that magnet links name by a host name (`x.pe`) and that are looked up;
    /// the other names are kept and not used. Default 8.
    pub max_linked_names: usize,
    /// Timeout for the complete handshake. Default 10 s.
    pub handshake_timeout_s: u64,
    /// Timeout for a complete message, from its first byte. Default 60 s.
    pub frame_timeout_s: u64,
    /// Time without a message from a peer after which it is disconnected. Default 140 s: keep-alives come every 120.
    pub idle_timeout_s: u64,
    /// Time without a message from us after which we send a keep-alive. Default 110 s.
    pub keep_alive_s: u64,
    /// Time after which a peer is disconnected if it reads none of the bytes sent to it. Default 60 s.
    pub send_timeout_s: u64,
    /// Maximum size of the messages queued for one peer, in bytes, blocks not counted; beyond it, the connection is
    /// closed. Default 1 MiB.
    pub max_send_queue_bytes: usize,
    /// Timeout for the first attempt to connect to an address while other addresses wait that have not been tried. If
    /// it passes, the address is tried again later, with `net.connect_timeout_s`. Default 3 s: a lost packet is sent
    /// again within it, even over a satellite.
    pub first_attempt_ms: u64,
    /// Initial backoff before an address that failed is tried again; doubles with each failure. Default 5 s.
    pub reconnect_backoff_s: u64,
    /// Maximum backoff before an address that failed is tried again. Default 30 min.
    pub max_reconnect_backoff_s: u64,
    /// Maximum backoff before an address named by a user is tried again; it is never forgotten. Default 60 s.
    pub max_user_backoff_s: u64,
    /// Number of consecutive failures after which an address is forgotten. Default 8.
    pub max_failures: u32,
    /// Duration of a ban. Default 1 h.
    pub ban_s: u64,
    /// Number of different peers of one IP address (one /64 for public IPv6) that must be banned before the address
    /// itself is refused. Default 8.
    pub bans_per_ip: usize,
    /// Number of different peers of one /24 of public IPv4 addresses, or one /48 of public IPv6, that must be banned
    /// before the subnet is refused. Default 32.
    pub bans_per_subnet: usize,
    /// Maximum number of bans remembered. Default 10 000.
    pub max_bans: usize,
    /// Number of unsolicited blocks after which a peer is disconnected. Default 64.
    pub max_unsolicited: u32,
    /// Addresses and networks of peers that are refused: neither dialed nor accepted, whatever source names them.
    /// Default none; at most 10 000.
    pub blocked: Vec<Network>,
    /// Whether two seeds stay connected to each other. Default false.
    pub keep_redundant: bool,
    /// Maximum number of messages of one connection decoded in a tick; the rest, and the peer, wait for the next.
    /// Default 512, as many as the requests that may wait for one peer.
    pub max_messages_per_tick: u32,
    /// Number of allowed-fast pieces: a choked peer may request them from a leecher, to have something to trade (BEP
    /// 6). Default 10.
    pub allowed_fast: usize,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            max_connections: 500,
            max_per_torrent: 100,
            max_inbound_per_ip: 32,
            max_inbound_per_subnet: 64,
            max_raw_bitfield_bytes: 128 << 10,
            max_half_open: 64,
            max_unidentified: 128,
            outgoing_percent: 30,
            user_reserve: 8,
            grace_s: 20,
            waiting_grace_s: 300,
            max_remembered_evictions: 4096,
            max_candidates: 2000,
            max_candidates_per_ip: 8,
            max_linked_names: 8,
            handshake_timeout_s: 10,
            frame_timeout_s: 60,
            idle_timeout_s: 140,
            keep_alive_s: 110,
            send_timeout_s: 60,
            max_send_queue_bytes: 1 << 20,
            first_attempt_ms: 3000,
            reconnect_backoff_s: 5,
            max_reconnect_backoff_s: 1800,
            max_user_backoff_s: 60,
            max_failures: 8,
            ban_s: 3600,
            bans_per_ip: 8,
            bans_per_subnet: 32,
            max_bans: 10_000,
            max_unsolicited: 64,
            blocked: Vec::new(),
            keep_redundant: false,
            max_messages_per_tick: 512,
            allowed_fast: 10,
        }
    }
}

/// Requests to peers and their pipelines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequestSettings {
    /// Maximum memory of pieces in flight, from the first request to the end of the write, in bytes, over all
    /// torrents. One piece is always allowed, however long. Default 32 MiB.
    pub piece_memory_bytes: u64,
    /// Bytes of verified pieces that wait for the disk, over all torrents, beyond which no further pieces are begun.
    /// One piece may always be written, however long. Default 8 MiB.
    pub unwritten_bytes: u64,
    /// Request pipeline depth for a peer whose rate is not known yet. Default 16.
    pub initial_depth: u32,
    /// Minimum request pipeline depth, for a slow peer. Default 4.
    pub min_depth: u32,
    /// Maximum request pipeline depth for one peer, however fast; the peer's own `reqq` may lower it. Default 1024.
    pub max_depth: u32,
    /// Length of the request pipeline, as the time the peer takes to deliver it. Default 1500 ms.
    pub queue_ms: u64,
    /// Minimum time for a requested block to arrive before it may be requested from other peers. Default 20 s.
    pub block_timeout_s: u64,
    /// Time without any block from a peer that owes some, after which all blocks that it owes may be requested from
    /// other peers too. The peer then gets one request at a time until a block arrives. The time is longer for a peer
    /// whose blocks arrive further apart, up to [`block_timeout_s`](Self::block_timeout_s). Default 5 s.
    pub silence_s: u64,
    /// Time without any block from a peer that owes some, after which it counts as snubbing us. Default 60 s.
    pub snub_s: u64,
    /// Maximum number of peers that one block is requested from at the same time in the endgame. Peers that are much
    /// slower than the next one do not count. Default 2.
    pub endgame_copies: usize,
    /// Length of an extent: equally rare pieces shorter than this are started in sequence, up to the next multiple of
    /// this length, so that they are read and written together. Default 1 MiB.
    pub extent_bytes: u32,
}

impl Default for RequestSettings {
    fn default() -> Self {
        Self {
            piece_memory_bytes: 32 << 20,
            unwritten_bytes: 8 << 20,
            initial_depth: 16,
            min_depth: 4,
            max_depth: 1024,
            queue_ms: 1500,
            block_timeout_s: 20,
            silence_s: 5,
            snub_s: 60,
            endgame_copies: 2,
            extent_bytes: 1 << 20,
        }
    }
}

/// Uploads: slots, choking and memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UploadSettings {
    /// Number of peers of one torrent that are unchoked for their rate, optimistic unchokes not counted. Default 8.
    pub slots: usize,
    /// Number of optimistic unchokes of one torrent: random peers, to find better ones (BEP 3). Default 1.
    pub optimistic_slots: usize,
    /// Maximum number of unchoked peers of a downloading torrent. A peer that requests nothing uses no slot. A peer
    /// that uploads to us nearly as fast as the peers with a slot is unchoked in addition. Default 32.
    pub max_unchoked: usize,
    /// Interval between two rounds of choking. Default 10 s (BEP 3).
    pub choke_interval_s: u64,
    /// Interval at which the optimistic unchoke moves to another peer. Default 30 s (BEP 3).
    pub optimistic_interval_s: u64,
    /// Time after which a seed moves a slot from its peer to a waiting one. Default 60 s.
    pub seeding_turn_s: u64,
    /// Maximum number of requests queued for one peer, announced as `reqq`; more are rejected. Default 500.
    pub max_queue: usize,
    /// Number of times that a block of an allowed-fast piece (BEP 6) is served to a choked peer; further requests are
    /// rejected. Default 2: once, and once more if it got lost.
    pub allowed_fast_copies: u8,
    /// Longest block that is served, in bytes. Default 128 KiB.
    pub max_block_bytes: u32,
    /// Bytes read from the disk at once for adjacent requests of one peer. Default 256 KiB.
    pub read_bytes: u32,
    /// Maximum number of bytes read or being read for uploads and not yet sent, over all peers. Default 16 MiB.
    pub memory_bytes: u64,
    /// Maximum upload memory of one peer, in bytes; a connection moves at most this much in two or three ticks. When
    /// many peers need some, none gets more than a quarter of what is left. Default 2 MiB.
    pub peer_memory_bytes: u64,
}

impl Default for UploadSettings {
    fn default() -> Self {
        Self {
            slots: 8,
            optimistic_slots: 1,
            max_unchoked: 32,
            choke_interval_s: 10,
            optimistic_interval_s: 30,
            seeding_turn_s: 60,
            max_queue: 500,
            allowed_fast_copies: 2,
            max_block_bytes: 128 << 10,
            read_bytes: 256 << 10,
            memory_bytes: 16 << 20,
            peer_memory_bytes: 2 << 20,
        }
    }
}

/// Files and hashing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageSettings {
    /// Download folder of torrents that are added without one. Default the current folder.
    pub download_dir: PathBuf,
    /// Folder for the files of new torrents until these have all files that the user wants; then the files are moved
    /// to the torrent's download folder. Default none: files begin in the download folder.
    pub incomplete_dir: Option<PathBuf>,
    /// Whether the files of new torrents have the suffix `.part` until they are complete and synced. Default false.
    pub part_suffix: bool,
    /// Number of threads that read and write files. Default 2.
    pub disk_threads: usize,
    /// Number of threads that hash; 0 takes one per processor. Default 0.
    pub hash_threads: usize,
    /// Maximum number of files kept open. Default 128.
    pub max_open_files: usize,
    /// Whether a file's space is reserved when its download begins. Default false: files are sparse.
    pub preallocate: bool,
    /// Maximum number of bytes read ahead of hashing while existing data is checked, over all torrents. Default 16
    /// MiB.
    pub check_memory_bytes: u64,
}

impl Default for StorageSettings {
    fn default() -> Self {
        Self {
            download_dir: PathBuf::from("."),
            incomplete_dir: None,
            part_suffix: false,
            disk_threads: 2,
            hash_threads: 0,
            max_open_files: 128,
            preallocate: false,
            check_memory_bytes: 16 << 20,
        }
    }
}

/// Number of a torrent's trackers that receive announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Reach {
    /// The first tracker that answers, in the order of the tiers (BEP 12).
    #[default]
    FirstWorking,
    /// One tracker of each tier.
    EachTier,
    /// All trackers.
    EachTracker,
}

impl From<Reach> for AnnounceReach {
    fn from(reach: Reach) -> Self {
        match reach {
            Reach::FirstWorking => Self::FirstWorking,
            Reach::EachTier => Self::EachTier,
            Reach::EachTracker => Self::EachTracker,
        }
    }
}

/// Announces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrackerSettings {
    /// Trackers that receive announces. Default the first that answers (BEP 12).
    pub reach: Reach,
    /// Minimum time between two announces to a tracker, whatever interval it requests. A download without peers waits
    /// only for the longer of this and the tracker's own minimum interval; the wait doubles after each announce
    /// without success. Default 60 s.
    pub min_interval_s: u64,
    /// Maximum time between two announces to a tracker, whatever interval it requests. Default 2 h.
    pub max_interval_s: u64,
    /// Initial backoff after a tracker failed; doubles with each failure. Default 15 s.
    pub backoff_s: u64,
    /// Maximum backoff after a tracker failed. Default 30 min.
    pub max_backoff_s: u64,
    /// Timeout for the answer of an HTTP tracker. Default 30 s.
    pub http_timeout_s: u64,
    /// Maximum size of an HTTP tracker's reply after decompression, in bytes. Default 2 MiB.
    pub max_reply_bytes: usize,
    /// Number of packets sent to a UDP tracker before it counts as failed; waits double from 15 s (BEP 15). Default 4.
    pub udp_sends: u32,
    /// Number of peers requested from a tracker (`numwant`). Default 100.
    pub num_want: u32,
    /// Maximum number of peers taken from one reply. Default 500.
    pub max_peers: usize,
    /// Maximum number of concurrent announces, over all torrents; more wait their turn. Default 64.
    pub max_concurrent: usize,
}

impl Default for TrackerSettings {
    fn default() -> Self {
        Self {
            reach: Reach::default(),
            min_interval_s: 60,
            max_interval_s: 7200,
            backoff_s: 15,
            max_backoff_s: 1800,
            http_timeout_s: 30,
            max_reply_bytes: 2 << 20,
            udp_sends: 4,
            num_want: 100,
            max_peers: 500,
            max_concurrent: 64,
        }
    }
}

/// The distributed hash table, by which peers are found without a tracker (BEP 5).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DhtSettings {
    /// Whether a node of the DHT runs. Default true. On sockets that are all bound to loopback addresses, it exchanges
    /// datagrams with this machine only, and does not contact `bootstrap`.
    pub enabled: bool,
    /// Nodes by which the network is entered for the first time, as `HOST:PORT`. Later runs know others. Default the
    /// nodes of libtorrent, Transmission and BitTorrent Inc.
    pub bootstrap: Vec<String>,
    /// Whether queries of other nodes stay unanswered, as on a connection that is paid by volume (BEP 43). Default
    /// false.
    pub read_only: bool,
    /// Queries that a search has in flight at its start, and later at least. Default 8.
    pub alpha: usize,
    /// New queries of a search per answer. More make searches faster and cost more. Default 3.
    pub beta: usize,
    /// Maximum number of searches at a time; more wait their turn, those of downloads first. A quarter is left to
    /// users and followed links. Default 32.
    pub max_searches: usize,
    /// Time between two announces of a torrent; the first ones of a download without peers come sooner. Other nodes
    /// forget a peer after 30 to 45 minutes. Default 20 min.
    pub announce_interval_s: u64,
    /// Maximum rate of queries that are sent, in bytes per second; three seconds' worth may be sent at once. A search
    /// takes about 2 kB. Default 48 KiB.
    pub query_bytes_per_s: u32,
    /// Maximum rate of answers to other nodes, in bytes per second; three seconds' worth may be sent at once. Default
    /// 96 KiB.
    pub answer_bytes_per_s: u32,
    /// How many times as many bytes as its queries have a host gets that has not proved that it receives datagrams at
    /// its address: an attacker who forges addresses makes the node send no more than this to a victim. A host whose
    /// answer is larger is pinged first, and gets the answer when it has answered the ping. Default 1. At 4, a list of
    /// eight nodes is sent at once.
    pub max_amplification: usize,
    /// Maximum number of queries of one host that are answered per second; ten times as many at once. Default 5.
    pub host_queries_per_s: u32,
    /// Maximum number of queries that are sent to one host per second; two and a half times as many at once, four at
    /// least. Searches that need more ask other nodes or wait, those of downloads without peers the shortest. Hosts
    /// ignore others that ask too often: libtorrent above 50 queries in ten seconds. Default 4.
    pub queries_to_host_per_s: u32,
    /// Maximum number of torrents whose peers are stored for other nodes, in each of the networks of IPv4 and IPv6.
    /// Default 2000.
    pub max_stored_torrents: usize,
    /// Maximum number of peers that are stored for other nodes, in each of the networks of IPv4 and IPv6. Default 10
    /// 000.
    pub max_stored_peers: usize,
    /// Maximum number of items that are stored for other nodes (BEP 44), of up to 1000 bytes each. Default 1000.
    pub max_stored_items: usize,
    /// Maximum number of links to torrents that change (BEP 46) whose items are kept in the DHT. Default 100.
    pub max_links: usize,
    /// Time between two searches for a newer torrent of a followed link. A search takes about 2 kB. Default 30 min.
    pub link_interval_s: u64,
}

impl Default for DhtSettings {
    fn default() -> Self {
        let hosts = [
            "dht.libtorrent.org:25401",
            "dht.transmissionbt.com:6881",
            "router.bittorrent.com:6881",
        ];
        Self {
            enabled: true,
            bootstrap: hosts.map(str::to_owned).to_vec(),
            read_only: false,
            alpha: 8,
            beta: 3,
            max_searches: 32,
            announce_interval_s: 20 * 60,
            query_bytes_per_s: 48 << 10,
            answer_bytes_per_s: 96 << 10,
            max_amplification: 1,
            host_queries_per_s: 5,
            queries_to_host_per_s: 4,
            max_stored_torrents: 2000,
            max_stored_peers: 10_000,
            max_stored_items: 1000,
            max_links: 100,
            link_interval_s: 30 * 60,
        }
    }
}

/// Metadata from peers and for them (BEP 9).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetadataSettings {
    /// Maximum size of metadata that is fetched, in bytes. A fetch may need twice as much memory. Default 16 MiB.
    pub max_bytes: u32,
    /// Maximum number of requests for metadata in flight to one peer. Default 64.
    pub max_requests: usize,
    /// Time without an answer from a peer after which its requests are sent to another peer too. Default 2 s.
    pub request_timeout_ms: u64,
    /// Time for which no metadata is requested from a peer that did not answer or refused. Default 60 s.
    pub rest_s: u64,
    /// Whether a torrent without metadata that has trackers gets peers only from these, from the user and from its
    /// magnet link: its metadata may turn out to be private (BEP 27). Default false: magnets are found faster.
    pub trackers_only: bool,
    /// Maximum rate at which metadata is served, over all torrents, in bytes per second; four seconds' worth may be
    /// sent at once after a quiet time. Default 4 MiB.
    pub serve_bytes_per_s: u64,
}

impl Default for MetadataSettings {
    fn default() -> Self {
        Self {
            max_bytes: 16 << 20,
            max_requests: 64,
            request_timeout_ms: 2000,
            rest_s: 60,
            trackers_only: false,
            serve_bytes_per_s: 4 << 20,
        }
    }
}

/// Peer exchange (BEP 11).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PexSettings {
    /// Whether peers name to each other the peers that they are connected to. Private torrents never exchange peers.
    /// Default true.
    pub enabled: bool,
    /// Time between two messages to a peer. Default 60 s, the shortest that BEP 11 allows.
    pub interval_s: u64,
    /// Maximum number of peers taken from one message. Default 100: a message may add 50, and the first one more.
    pub max_received: usize,
}

impl Default for PexSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            interval_s: 60,
            max_received: 100,
        }
    }
}

/// Transfer rates, of all torrents together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Maximum number of bytes received from peers per second, over any ten seconds. The peers get equal shares.
    /// Default 1 TiB, which is no limit.
    pub download_bytes_per_s: u64,
    /// Maximum number of bytes in blocks sent to peers per second, over any ten seconds. The peers that are served get
    /// equal shares. Default 1 TiB, which is no limit.
    pub upload_bytes_per_s: u64,
    /// When the alternative limits are in force, in place of the two above. Default never.
    pub alternative: AlternativeUse,
    /// Alternative limit on downloads. Default 1 TiB, which is no limit.
    pub alternative_download_bytes_per_s: u64,
    /// Alternative limit on uploads. Default 1 TiB, which is no limit.
    pub alternative_upload_bytes_per_s: u64,
    /// Times of the week at which `Scheduled` alternative limits are in force, such as `mon-fri 08:00-18:00`,
    /// `sat,sun 00:00-24:00` or `daily 22:00-06:00`: local time, in the zone of the variable `TZ` or of
    /// `/etc/localtime`. Default none.
    pub alternative_schedule: Vec<WeekSpan>,
}

/// Labels and categories of torrents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LabelSettings {
    /// Maximum number of labels of a torrent. Default 32.
    pub max_per_torrent: usize,
    /// Maximum length of a label, or of the name of a category. Default 64 bytes.
    pub max_length_bytes: usize,
    /// Categories with a download folder of their own, such as `(name: "linux", folder: "iso")`. A relative folder is
    /// relative to the download folder. Clients of the API need a folder in which they may download. Other categories
    /// need no entry. Default none, at most 1000.
    pub categories: Vec<Category>,
}

impl Default for LabelSettings {
    fn default() -> Self {
        Self {
            max_per_torrent: 32,
            max_length_bytes: 64,
            categories: Vec::new(),
        }
    }
}

impl LabelSettings {
    /// Returns the bounds of labels.
    #[must_use]
    pub fn bounds(&self) -> LabelBounds {
        LabelBounds {
            max_per_torrent: self.max_per_torrent,
            max_length_bytes: self.max_length_bytes,
        }
    }

    /// Returns the download folder of a category, if it has one.
    #[must_use]
    pub fn folder_of(&self, category: &str) -> Option<&Path> {
        let found = self.categories.iter().find(|known| known.name == category);
        found.map(|category| Path::new(&category.folder))
    }
}

/// When alternative limits are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum AlternativeUse {
    /// Never.
    #[default]
    Never,
    /// Always.
    Always,
    /// At the times of the schedule.
    Scheduled,
}

/// The minimum limit on a rate, in bytes per second. At a lower rate, each of a hundred peers would wait for minutes
/// for a block.
pub const LEAST_LIMIT: u64 = 10 << 10;

/// A rate that is no limit.
pub const NO_LIMIT: u64 = 1 << 40;

impl LimitSettings {
    /// Whether the alternative limits are in force at a time of the week.
    #[must_use]
    pub fn is_alternative(&self, time: WeekTime) -> bool {
        match self.alternative {
            AlternativeUse::Never => false,
            AlternativeUse::Always => true,
            AlternativeUse::Scheduled => self.alternative_schedule.iter().any(|span| span.contains(time)),
        }
    }

    /// Returns the limits on downloads and uploads in bytes per second, where there are some: the usual ones, or the
    /// alternative ones.
    #[must_use]
    pub fn rates(&self, is_alternative: bool) -> (Option<u64>, Option<u64>) {
        let (download, upload) = match is_alternative {
            false => (self.download_bytes_per_s, self.upload_bytes_per_s),
            true => (
                self.alternative_download_bytes_per_s,
                self.alternative_upload_bytes_per_s,
            ),
        };
        let limit = |rate| Some(rate).filter(|rate| *rate < NO_LIMIT);
        (limit(download), limit(upload))
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            download_bytes_per_s: NO_LIMIT,
            upload_bytes_per_s: NO_LIMIT,
            alternative: AlternativeUse::Never,
            alternative_download_bytes_per_s: NO_LIMIT,
            alternative_upload_bytes_per_s: NO_LIMIT,
            alternative_schedule: Vec::new(),
        }
    }
}

/// Local service discovery (BEP 14).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LsdSettings {
    /// Whether torrents are announced to the local network by multicast, and peers there are found. Private torrents
    /// are never announced. Only interfaces that [`NetSettings::listen`] includes are used. Default true.
    pub enabled: bool,
    /// Interval at which a running torrent is announced. It is longer with more than 120 torrents, because one message
    /// per minute announces 24. Default 300 s (BEP 14).
    pub interval_s: u64,
}

impl Default for LsdSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            interval_s: 300,
        }
    }
}

/// Saved state of torrents between runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionSettings {
    /// Folder of the torrents' sessions, in its subfolder `state`; only one engine at a time uses it. Without one,
    /// nothing is saved, and every start checks all data. Default `.ecs_torrent` in the current folder.
    pub state_dir: Option<PathBuf>,
    /// Interval at which a changing torrent is saved, and the maximum download time that a crash can lose. Default 30
    /// s.
    pub checkpoint_interval_s: u64,
    /// Bytes of new pieces after which a torrent is saved before the interval ends; a stop has to sync at most this
    /// much to stable storage. Default 256 MiB.
    pub checkpoint_bytes: u64,
    /// Running time after which a torrent is saved even if nothing else changed. Default 1 h.
    pub max_unsaved_active_s: u64,
    /// Maximum number of peer addresses in a session. Default 200.
    pub max_peers: usize,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            state_dir: Some(PathBuf::from(".ecs_torrent")),
            checkpoint_interval_s: 30,
            checkpoint_bytes: 256 << 20,
            max_unsaved_active_s: 3600,
            max_peers: 200,
        }
    }
}

/// Starting and stopping torrents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LifecycleSettings {
    /// Time for pieces that are being hashed or written to finish when a torrent stops. Default 1 s.
    pub halt_timeout_ms: u64,
    /// Time for the last messages to be sent and connections to close. Default 1500 ms.
    pub disconnect_timeout_ms: u64,
    /// Time for `stopped` to reach the trackers. Default 4.5 s.
    pub announce_timeout_ms: u64,
    /// Time for the session of a torrent to be written or deleted, when the program ends, and when a torrent is removed
    /// without its data. Default 1500 ms.
    pub save_timeout_ms: u64,
    /// Time for the files to be closed. With the four above 9 s: containers are killed at 10. Default 500 ms.
    pub release_timeout_ms: u64,
    /// Time for the session to be written when a user pauses or stops torrents while the program keeps running, and for
    /// the files of a removed torrent to be deleted. A stop of all torrents writes thousands of sessions, and a torrent
    /// may have 100 000 files. Default 60 s.
    pub user_save_timeout_ms: u64,
    /// Maximum number of consecutive restarts of a torrent or of the engine, each within
    /// [`restart_window_s`](Self::restart_window_s) of the previous one; the next failure is final. Default 3.
    pub max_restarts: usize,
    /// Time without a failure after which the count of restarts starts again. Default 5 s.
    pub restart_window_s: u64,
    /// Time between a failure and the restart. Default 1 s.
    pub restart_delay_ms: u64,
    /// Interval at which a torrent blocked by a full disk or a missing volume is tried again. Default 5 s.
    pub blocked_retry_ms: u64,
}

impl Default for LifecycleSettings {
    fn default() -> Self {
        Self {
            halt_timeout_ms: 1000,
            disconnect_timeout_ms: 1500,
            announce_timeout_ms: 4500,
            save_timeout_ms: 1500,
            release_timeout_ms: 500,
            user_save_timeout_ms: 60_000,
            max_restarts: 3,
            restart_window_s: 5,
            restart_delay_ms: 1000,
            blocked_retry_ms: 5000,
        }
    }
}

/// The duration of a setting in seconds.
#[must_use]
pub const fn seconds(value: u64) -> Duration {
    Duration::from_secs(value)
}

/// The duration of a setting in milliseconds.
#[must_use]
pub const fn millis(value: u64) -> Duration {
    Duration::from_millis(value)
}
