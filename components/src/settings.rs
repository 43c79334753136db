//! Every bound and every default of the engine, by name.
//!
//! All fields have defaults; a configuration names only what it changes. Units come last in the names: `_s` seconds,
//! `_ms` milliseconds, `_bytes` bytes. Every number has a range ([`Number`]), and [`Settings::check`] looks for values
//! outside of it.

mod ranges;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::tracker::tiers::AnnounceReach;
use serde::{Deserialize, Serialize};

pub use self::ranges::{Number, Numbers, SettingError, check_numbers};

/// All settings.
#[derive(Resource, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The tick.
    pub tick: TickSettings,
    /// Sockets.
    pub net: NetSettings,
    /// Connections to peers.
    pub peers: PeerSettings,
    /// What is requested, and how much at a time.
    pub requests: RequestSettings,
    /// Who is served.
    pub uploads: UploadSettings,
    /// Files and hashing.
    pub storage: StorageSettings,
    /// Announces.
    pub trackers: TrackerSettings,
    /// What is kept of torrents between runs.
    pub session: SessionSettings,
    /// Starting and stopping torrents.
    pub lifecycle: LifecycleSettings,
}

/// How often the engine ticks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TickSettings {
    /// Least time between the heads of two ticks under load. Longer batches more work into a wake-up, shorter
    /// answers sooner. Default 1 ms.
    pub min_interval_us: u64,
    /// Most time between two ticks when nothing happens. Default 1 s.
    pub max_interval_ms: u64,
    /// Most events taken from a port in one tick; what is left makes the next tick due at once. Default 1024, which
    /// is worth a few milliseconds.
    pub max_events: usize,
    /// Most facade commands taken in one tick. Default 1024.
    pub max_commands: usize,
    /// Most messages of peers decoded in one tick, over all connections; where more has come, every address (of IPv6 every
    /// /64) gets an equal share, and the rest waits for the next tick. More lets ticks take longer under a flood. Default
    /// 4096, which is worth a millisecond or two.
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
    /// Addresses to accept peers on, TCP and UDP; port 0 takes a free one. A specific address is also the one that
    /// connections are made from. Default `0.0.0.0:6881` and `[::]:6881`.
    pub listen: Vec<SocketAddr>,
    /// Whether a listen port that is taken is replaced by a free one instead of failing the start. Default true.
    pub listen_fallback: bool,
    /// Threads of the network runtime. Default 1: one moves more than 10 Gbit/s.
    pub threads: usize,
    /// Bytes that a peer may have sent and the engine not yet taken; more stay in the kernel, and the peer waits. A
    /// connection moves at most this much a tick. A peer gets a window of this size only while it owes us as much.
    /// Default 2 MiB.
    pub receive_window_bytes: u32,
    /// The same for a peer that owes us nothing, and what every peer may send beside what it owes: memory that any
    /// stranger can have us hold. Default 64 KiB.
    pub idle_window_bytes: u32,
    /// Datagrams of one kind that have arrived and not been taken; more are dropped and counted. Default 256, of at most
    /// 4 KiB each.
    pub max_datagrams: usize,
    /// Size of the shared chunks that sockets are read into. Default 256 KiB.
    pub read_chunk_bytes: usize,
    /// Time for a TCP connection to be made. Default 10 s.
    pub connect_timeout_s: u64,
    /// Time for the last bytes to leave, and for the peer to close, when a connection is closed in order. Default 1 s.
    pub close_timeout_ms: u64,
    /// Most host names being looked up at a time. Default 16.
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
            read_chunk_bytes: 256 << 10,
            connect_timeout_s: 10,
            close_timeout_ms: 1000,
            max_lookups: 16,
        }
    }
}

impl NetSettings {
    /// Bytes that a connection may receive before anything is granted to it.
    #[must_use]
    pub fn first_window(&self) -> u32 {
        self.idle_window_bytes.min(self.receive_window_bytes)
    }
}

/// Connections to peers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerSettings {
    /// Most connections of the engine. Default 500.
    pub max_connections: usize,
    /// Most connections of one torrent. Default 100.
    pub max_per_torrent: usize,
    /// Most connections from one IP address that it opened; of public IPv6, from one /64. Beyond it, a new connection
    /// takes the place of one from there that has earned it less, or is refused. Default 32: many peers may share a
    /// gateway.
    pub max_inbound_per_ip: usize,
    /// Most connections that were opened from one /24 of public IPv4 addresses, or from one /48 of public IPv6. Local
    /// networks (loopback, private, link-local) are exempt. Default 64.
    pub max_inbound_per_subnet: usize,
    /// Most connections being opened by us at a time. Default 64.
    pub max_half_open: usize,
    /// Most connections that have not said which torrent they are for. Beyond it, a new one takes the place of the
    /// oldest of the subnet that has most. Default 128.
    pub max_unidentified: usize,
    /// Part of the connections, in percent, that belongs to those that we open: of a torrent as long as it knows
    /// addresses to try, and of the engine. More of it makes it harder to fill a torrent with connections from
    /// outside; less leaves room for peers that cannot be reached. Default 30.
    pub outgoing_percent: usize,
    /// Connections that only peers named by a user may take: of the engine, of each torrent that has such peers, and
    /// of those being opened; at most a quarter of each limit. Default 8.
    pub user_reserve: usize,
    /// Time that a connection has to be of use, where its place is wanted by another one: to show interest, or to raise
    /// ours. Shorter the more of the torrent's connections show nothing, and the more of them are of the same subnet,
    /// down to 2 s. Default 20 s.
    pub grace_s: u64,
    /// The same time for a connection where one side is interested, and since the last block went either way: shorter
    /// the more connections are of the same subnet, down to 2 s. Default 300 s: a seed serves its peers in turns.
    pub waiting_grace_s: u64,
    /// Most addresses remembered for one torrent. Default 2000.
    pub max_candidates: usize,
    /// Time for the whole handshake to arrive. Default 10 s.
    pub handshake_timeout_s: u64,
    /// Time for a message that has begun to arrive whole. Default 60 s.
    pub frame_timeout_s: u64,
    /// Time without a message after which a peer is gone. Default 140 s: keep-alives come every 120.
    pub idle_timeout_s: u64,
    /// Time without a message from us after which we send a keep-alive. Default 110 s.
    pub keep_alive_s: u64,
    /// Time in which a peer that owes us reading takes nothing, after which it is gone. Default 60 s.
    pub send_timeout_s: u64,
    /// Most bytes of messages waiting to be sent to one peer, blocks not counted; beyond it, the connection is closed.
    /// Default 1 MiB.
    pub max_send_queue_bytes: usize,
    /// First wait before an address that failed is tried again; doubles with each failure. Default 5 s.
    pub reconnect_backoff_s: u64,
    /// Longest wait before an address that failed is tried again. Default 30 min.
    pub max_reconnect_backoff_s: u64,
    /// Longest wait before an address that a user named is tried again, which is never forgotten. Default 60 s.
    pub max_user_backoff_s: u64,
    /// Failures in a row after which an address is forgotten. Default 8.
    pub max_failures: u32,
    /// How long a ban lasts. Default 1 h.
    pub ban_s: u64,
    /// Different peers of one IP address, of public IPv6 of one /64, that must be banned before the address is no
    /// longer accepted at all. Default 8.
    pub bans_per_ip: usize,
    /// The same for one /24 of public IPv4 addresses, or one /48 of public IPv6. Default 32.
    pub bans_per_subnet: usize,
    /// Most bans remembered. Default 10 000.
    pub max_bans: usize,
    /// Most blocks that nobody asked for before a peer is closed. Default 64.
    pub max_unsolicited: u32,
    /// Whether two peers that both have everything stay connected. Default false.
    pub keep_redundant: bool,
    /// Most messages of one connection decoded in a tick; the rest waits, and the peer with it. Default 512, as many as
    /// the requests that may wait for one peer.
    pub max_messages_per_tick: u32,
    /// Number of pieces that a peer may request of a leecher while choked, to have something to trade (BEP 6). Default
    /// 10.
    pub allowed_fast: usize,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            max_connections: 500,
            max_per_torrent: 100,
            max_inbound_per_ip: 32,
            max_inbound_per_subnet: 64,
            max_half_open: 64,
            max_unidentified: 128,
            outgoing_percent: 30,
            user_reserve: 8,
            grace_s: 20,
            waiting_grace_s: 300,
            max_candidates: 2000,
            handshake_timeout_s: 10,
            frame_timeout_s: 60,
            idle_timeout_s: 140,
            keep_alive_s: 110,
            send_timeout_s: 60,
            max_send_queue_bytes: 1 << 20,
            reconnect_backoff_s: 5,
            max_reconnect_backoff_s: 1800,
            max_user_backoff_s: 60,
            max_failures: 8,
            ban_s: 3600,
            bans_per_ip: 8,
            bans_per_subnet: 32,
            max_bans: 10_000,
            max_unsolicited: 64,
            keep_redundant: false,
            max_messages_per_tick: 512,
            allowed_fast: 10,
        }
    }
}

/// What is requested, and how much at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequestSettings {
    /// Bytes of pieces that may be in memory, from the first request to the end of the write, over all torrents.
    /// One piece is always allowed, however long. Default 32 MiB.
    pub piece_memory_bytes: u64,
    /// Requests kept outstanding to a peer whose speed is not known yet. Default 16.
    pub initial_depth: u32,
    /// Fewest requests kept outstanding to a slow peer. Default 4.
    pub min_depth: u32,
    /// Most requests kept outstanding to one peer, however fast; a peer's own `reqq` may lower it. Default 1024.
    pub max_depth: u32,
    /// Requests outstanding are what the peer delivers in this time. Default 1500 ms.
    pub queue_ms: u64,
    /// Least time for a requested block to arrive before it may be asked of others. Default 20 s.
    pub block_timeout_s: u64,
    /// Time without any block from a peer that owes some, after which others may be asked for all of them, and it gets
    /// one request at a time until a block comes; longer for one that has sent blocks further apart, up to
    /// [`block_timeout_s`](Self::block_timeout_s). Default 5 s.
    pub silence_s: u64,
    /// Time without any block from a peer that owes some, after which it is snubbing us. Default 60 s.
    pub snub_s: u64,
    /// Peers that one block may be requested from at the same time in the endgame. Default 2.
    pub endgame_copies: usize,
    /// Pieces shorter than this are begun one behind the other, up to a boundary of as many bytes, where they are
    /// equally rare: they are read and written together then. Default 1 MiB.
    pub extent_bytes: u32,
}

impl Default for RequestSettings {
    fn default() -> Self {
        Self {
            piece_memory_bytes: 32 << 20,
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

/// Who is served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UploadSettings {
    /// Peers of one torrent that are unchoked for what they give or take, optimistic ones not counted. Default 8.
    pub slots: usize,
    /// Peers of one torrent that are unchoked at random, to find better ones (BEP 3). Default 1.
    pub optimistic_slots: usize,
    /// Most peers that a torrent that downloads keeps unchoked. A peer that asks for nothing takes no slot, and one that
    /// gives nearly as much as those who have one is served beside them. Default 32.
    pub max_unchoked: usize,
    /// Time between two rounds of choking. Default 10 s (BEP 3).
    pub choke_interval_s: u64,
    /// Time before another peer gets the optimistic slot. Default 30 s (BEP 3).
    pub optimistic_interval_s: u64,
    /// Time after which a peer that a seed serves gives way to one that waits. Default 60 s.
    pub seeding_turn_s: u64,
    /// Requests kept for one peer, told to it as `reqq`; more are rejected. Default 500.
    pub max_queue: usize,
    /// Times that a block of an allowed-fast piece (BEP 6) is served to a peer that is choked; requests beyond it are
    /// rejected. Default 2: once, and once more if it got lost.
    pub allowed_fast_copies: u8,
    /// Longest block that is served, in bytes. Default 128 KiB.
    pub max_block_bytes: u32,
    /// Bytes read from the disk in one go for adjacent requests of one peer. Default 256 KiB.
    pub read_bytes: u32,
    /// Bytes read or being read for uploads and not yet sent, over all peers. Default 16 MiB.
    pub memory_bytes: u64,
    /// Most of it for one peer: a connection moves at most this much in two or three ticks. Where many want some, none
    /// gets more than a quarter of what is left. Default 2 MiB.
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
    /// Folder that torrents are downloaded into where none is named. Default the current folder.
    pub download_dir: PathBuf,
    /// Threads that read and write files. Default 2.
    pub disk_threads: usize,
    /// Threads that hash; 0 takes one per processor. Default 0.
    pub hash_threads: usize,
    /// Files kept open. Default 128.
    pub max_open_files: usize,
    /// Whether a file's space is reserved when its download begins. Default false: files are sparse.
    pub preallocate: bool,
    /// Bytes read ahead of hashing while existing data is checked, over all torrents. Default 16 MiB.
    pub check_memory_bytes: u64,
}

impl Default for StorageSettings {
    fn default() -> Self {
        Self {
            download_dir: PathBuf::from("."),
            disk_threads: 2,
            hash_threads: 0,
            max_open_files: 128,
            preallocate: false,
            check_memory_bytes: 16 << 20,
        }
    }
}

/// How many of a torrent's trackers are announced to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Reach {
    /// The first that answers, tiers in order (BEP 12).
    #[default]
    FirstWorking,
    /// One of each tier.
    EachTier,
    /// All.
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
    /// How many trackers are told. Default the first that answers, as BEP 12 has it.
    pub reach: Reach,
    /// Least time between two announces to a tracker, whatever it asks for. A download without peers waits for no
    /// more than this and the tracker's own least interval; twice as long after each announce that was in vain.
    /// Default 60 s.
    pub min_interval_s: u64,
    /// Most time between two announces to a tracker, whatever it asks for. Default 2 h.
    pub max_interval_s: u64,
    /// First wait after a tracker failed; doubles with each failure. Default 15 s.
    pub backoff_s: u64,
    /// Longest wait after a tracker failed. Default 30 min.
    pub max_backoff_s: u64,
    /// Time for an HTTP tracker to answer. Default 30 s.
    pub http_timeout_s: u64,
    /// Most bytes of an HTTP tracker's reply, decompressed. Default 2 MiB.
    pub max_reply_bytes: usize,
    /// Packets sent to a UDP tracker before it counts as failed; waits double from 15 s (BEP 15). Default 4.
    pub udp_sends: u32,
    /// Peers asked for. Default 100.
    pub num_want: u32,
    /// Most peers taken from one reply. Default 500.
    pub max_peers: usize,
    /// Announces under way at a time, over all torrents; more wait their turn. Default 64.
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

/// What is kept of torrents between runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionSettings {
    /// Folder for the sessions of torrents, in its subfolder `state`; one engine at a time. Without one, nothing is
    /// kept, and every start checks all data. Default `.ecs_torrent` in the current folder.
    pub state_dir: Option<PathBuf>,
    /// Time between two savings of a torrent that changes: at most this much is downloaded again after a crash.
    /// Default 30 s.
    pub checkpoint_interval_s: u64,
    /// Bytes of pieces after which a torrent is saved without waiting for that time: what has to be brought to the
    /// platter when it stops is at most this much. Default 256 MiB.
    pub checkpoint_bytes: u64,
    /// Time running after which a torrent is saved though nothing else changed. Default 1 h.
    pub max_unsaved_active_s: u64,
    /// Most addresses of peers in a session. Default 200.
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
    /// Time for the last messages to leave and connections to close. Default 1500 ms.
    pub disconnect_timeout_ms: u64,
    /// Time for trackers to hear `stopped`. Default 5 s.
    pub announce_timeout_ms: u64,
    /// Time for a session to be written. With the three above 9 s: containers are killed at 10. Default 1500 ms.
    pub save_timeout_ms: u64,
    /// Most restarts of a torrent, or of the engine, in a row, each within
    /// [`restart_window_s`](Self::restart_window_s) of the one before; the next failure stays. Default 3.
    pub max_restarts: usize,
    /// Time running well after which restarts are counted anew. Default 5 s.
    pub restart_window_s: u64,
    /// Time between a failure and the restart. Default 1 s.
    pub restart_delay_ms: u64,
    /// Time between two tries of a torrent that waits for a full disk or a missing volume. Default 5 s.
    pub blocked_retry_ms: u64,
}

impl Default for LifecycleSettings {
    fn default() -> Self {
        Self {
            halt_timeout_ms: 1000,
            disconnect_timeout_ms: 1500,
            announce_timeout_ms: 5000,
            save_timeout_ms: 1500,
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
