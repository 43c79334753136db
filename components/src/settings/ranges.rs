//! The range of every setting that is a number, and the pairs of settings that depend on each other.
//!
//! A new number needs one line in its section's table below; `tests/workspace/config.rs` fails without it. The
//! ranges are checked when an engine starts and by `config check`, and `config default` prints them.

use std::ops::RangeInclusive;

use crate::labels::LabelBounds;

use super::{
    DhtSettings, LEAST_LIMIT, LabelSettings, LifecycleSettings, LimitSettings, LsdSettings, MetadataSettings, NO_LIMIT,
    NO_RATIO, NO_TIME, NetSettings, PeerSettings, PexSettings, QueueSettings, ReaderSettings, RequestSettings,
    SeedingSettings, SessionSettings, Settings, StorageSettings, TickSettings, TrackerSettings, UploadSettings,
};

/// A numeric setting, with its value and its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Number {
    /// The name of the section, such as `net`.
    pub section: &'static str,
    /// The name in the section, such as `threads`.
    pub name: &'static str,
    /// The value.
    pub value: u64,
    /// The values with which an engine works.
    pub range: RangeInclusive<u64>,
}

impl Number {
    /// Returns the lower end of the range.
    #[must_use]
    pub fn least(&self) -> u64 {
        *self.range.start()
    }

    /// Returns the upper end of the range.
    #[must_use]
    pub fn most(&self) -> u64 {
        *self.range.end()
    }

    /// Checks a value against this setting's range.
    ///
    /// # Errors
    /// Returns an error if the value is outside the range.
    pub fn check(&self, value: i128) -> Result<(), SettingError> {
        if u64::try_from(value).is_ok_and(|value| self.range.contains(&value)) {
            return Ok(());
        }
        Err(SettingError::Range {
            section: self.section,
            name: self.name,
            value,
            least: self.least(),
            most: self.most(),
        })
    }
}

/// Reasons why settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// A number is outside its range.
    #[error("{section}.{name}: {value} is too {}, it can be from {least} to {most}", if *value < i128::from(*least) { "small" } else { "large" })]
    Range {
        /// The section.
        section: &'static str,
        /// The name in the section.
        name: &'static str,
        /// The value, which may be too large or too small to store.
        value: i128,
        /// The minimum value.
        least: u64,
        /// The maximum value.
        most: u64,
    },
    /// A number is greater than the number that limits it.
    #[error("{section}.{small}: {value} is more than {section}.{large}, which is {bound}")]
    Order {
        /// The section of both numbers.
        section: &'static str,
        /// The name of the smaller number.
        small: &'static str,
        /// The value of the smaller number.
        value: u64,
        /// The name of the greater number.
        large: &'static str,
        /// The value of the greater number.
        bound: u64,
    },
    /// A list is too long.
    #[error("{section}.{name}: it has {count} entries, it can have {most}")]
    Length {
        /// The section.
        section: &'static str,
        /// The name in the section.
        name: &'static str,
        /// The number of entries.
        count: usize,
        /// The maximum number.
        most: usize,
    },
    /// A folder cannot be used.
    #[error("{section}.{name}: {reason}")]
    Folder {
        /// The section.
        section: &'static str,
        /// The name in the section.
        name: &'static str,
        /// The problem, human-readable.
        reason: String,
    },
}

/// Maximum number of entries of `peers.blocked`.
const MAX_BLOCKED: usize = 10_000;

/// Maximum number of entries of `labels.categories`.
const MAX_CATEGORIES: usize = 1000;

impl SettingError {
    /// Returns the section and the name of the setting.
    #[must_use]
    pub fn key(&self) -> (&'static str, &'static str) {
        match *self {
            Self::Range { section, name, .. }
            | Self::Length { section, name, .. }
            | Self::Folder { section, name, .. } => (section, name),
            Self::Order { section, small, .. } => (section, small),
        }
    }
}

/// Settings with numeric fields.
pub trait Numbers {
    /// Returns every number with its range, in the order of the tables.
    fn numbers(&self) -> Vec<Number>;
}

/// Defines the ranges of a section: `section.name` is a setting, and its range includes both ends.
#[macro_export]
macro_rules! setting_ranges {
    ($type:ty, $section:literal { $($name:ident: $range:expr,)* }) => {
        impl $crate::settings::Numbers for $type {
            fn numbers(&self) -> Vec<$crate::settings::Number> {
                vec![$($crate::settings::Number {
                    section: $section,
                    name: stringify!($name),
                    value: u64::try_from(self.$name).unwrap_or(u64::MAX),
                    range: $range,
                },)*]
            }
        }
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const HOUR_S: u64 = 3600;
const DAY_S: u64 = 24 * HOUR_S;
const YEAR_S: u64 = 365 * DAY_S;

/// Limit above any real machine's need, low enough to add counts without overflow.
const MANY: u64 = 1_000_000;

// An engine that sleeps longer between ticks stalls its peers and its API.
setting_ranges!(TickSettings, "tick" {
    min_interval_us: 0..=200_000,
    max_interval_ms: 1..=MINUTE_MS,
    max_events: 1..=MANY,
    max_commands: 1..=MANY,
    max_messages: 1..=MANY,
});

// A process that cannot start a network thread panics, so the limit is the number of useful threads.
setting_ranges!(NetSettings, "net" {
    threads: 1..=64,
    receive_window_bytes: 32 * KIB..=GIB,
    // The smallest read of a socket.
    idle_window_bytes: 4 * KIB..=GIB,
    max_datagrams: 1..=65_536,
    max_datagrams_per_tick: 1..=65_536,
    read_chunk_bytes: 16 * KIB..=16 * MIB,
    connect_timeout_s: 1..=HOUR_S,
    close_timeout_ms: 0..=HOUR_MS,
    max_lookups: 1..=1024,
});

setting_ranges!(PeerSettings, "peers" {
    max_connections: 1..=MANY,
    max_per_torrent: 1..=MANY,
    max_inbound_per_ip: 0..=MANY,
    max_inbound_per_subnet: 0..=MANY,
    // Enough for as many pieces as a metainfo may have (`MetainfoLimits::max_pieces`).
    max_raw_bitfield_bytes: 1..=500_000,
    max_half_open: 0..=MANY,
    max_unidentified: 1..=MANY,
    outgoing_percent: 0..=100,
    user_reserve: 0..=MANY,
    grace_s: 0..=DAY_S,
    waiting_grace_s: 0..=DAY_S,
    max_remembered_evictions: 0..=1_000_000,
    max_candidates: 0..=MANY,
    max_candidates_per_ip: 1..=65_535,
    // A link names at most this many.
    max_linked_names: 0..=256,
    handshake_timeout_s: 1..=HOUR_S,
    frame_timeout_s: 1..=HOUR_S,
    idle_timeout_s: 1..=DAY_S,
    keep_alive_s: 1..=DAY_S,
    send_timeout_s: 1..=HOUR_S,
    max_send_queue_bytes: 16 * KIB..=GIB,
    first_attempt_ms: 100..=HOUR_MS,
    reconnect_backoff_s: 1..=DAY_S,
    max_reconnect_backoff_s: 1..=7 * DAY_S,
    max_user_backoff_s: 1..=7 * DAY_S,
    max_failures: 1..=1000,
    ban_s: 1..=YEAR_S,
    bans_per_ip: 1..=MANY,
    bans_per_subnet: 1..=MANY,
    max_bans: 0..=MANY,
    max_unsolicited: 0..=MANY,
    max_messages_per_tick: 1..=MANY,
    // A set of this many pieces is computed and searched for each peer that connects.
    allowed_fast: 0..=100,
});

setting_ranges!(RequestSettings, "requests" {
    piece_memory_bytes: 16 * KIB..=TIB,
    unwritten_bytes: 0..=TIB,
    initial_depth: 1..=65_536,
    min_depth: 1..=65_536,
    max_depth: 1..=65_536,
    queue_ms: 1..=10 * MINUTE_MS,
    block_timeout_s: 1..=HOUR_S,
    silence_s: 1..=HOUR_S,
    snub_s: 1..=DAY_S,
    endgame_copies: 1..=100,
    extent_bytes: 1..=GIB,
});

setting_ranges!(UploadSettings, "uploads" {
    slots: 0..=MANY,
    optimistic_slots: 0..=MANY,
    max_unchoked: 1..=MANY,
    choke_interval_s: 1..=HOUR_S,
    optimistic_interval_s: 1..=HOUR_S,
    seeding_turn_s: 1..=DAY_S,
    max_queue: 1..=MANY,
    allowed_fast_copies: 0..=100,
    // Every client requests blocks of 16 KiB.
    max_block_bytes: 16 * KIB..=MIB,
    read_bytes: 16 * KIB..=16 * MIB,
    memory_bytes: 64 * KIB..=TIB,
    peer_memory_bytes: 16 * KIB..=TIB,
});

setting_ranges!(StorageSettings, "storage" {
    disk_threads: 1..=64,
    hash_threads: 0..=256,
    max_open_files: 1..=MANY,
    check_memory_bytes: 16 * KIB..=TIB,
});

setting_ranges!(TrackerSettings, "trackers" {
    min_interval_s: 1..=DAY_S,
    max_interval_s: 1..=7 * DAY_S,
    backoff_s: 1..=DAY_S,
    max_backoff_s: 1..=7 * DAY_S,
    http_timeout_s: 1..=HOUR_S,
    max_reply_bytes: KIB..=GIB,
    // BEP 15: the wait doubles up to the ninth packet, which is sent more than two hours after the first.
    udp_sends: 1..=9,
    num_want: 0..=10_000,
    max_peers: 0..=MANY,
    max_concurrent: 1..=10_000,
});

setting_ranges!(DhtSettings, "dht" {
    alpha: 1..=32,
    beta: 1..=8,
    max_searches: 1..=1024,
    // A host that announces more often is ignored by others.
    announce_interval_s: 300..=DAY_S,
    query_bytes_per_s: KIB..=GIB,
    answer_bytes_per_s: KIB..=GIB,
    max_amplification: 1..=16,
    host_queries_per_s: 1..=MANY,
    queries_to_host_per_s: 1..=MANY,
    max_stored_torrents: 1..=MANY,
    max_stored_peers: 1..=MANY,
    max_stored_items: 1..=MANY,
    // All links are saved in one blob of at most 4 MiB; one takes up to 10 kB.
    max_links: 0..=400,
    link_interval_s: 60..=DAY_S,
});

setting_ranges!(MetadataSettings, "metadata" {
    // A larger one would not parse.
    max_bytes: 16 * KIB..=64 * MIB,
    max_requests: 1..=4096,
    request_timeout_ms: 10..=10 * MINUTE_MS,
    rest_s: 1..=DAY_S,
    serve_bytes_per_s: 16 * KIB..=GIB,
});

setting_ranges!(PexSettings, "pex" {
    interval_s: 60..=HOUR_S,
    max_received: 1..=1000,
});

setting_ranges!(LimitSettings, "limits" {
    download_bytes_per_s: LEAST_LIMIT..=NO_LIMIT,
    upload_bytes_per_s: LEAST_LIMIT..=NO_LIMIT,
    alternative_download_bytes_per_s: LEAST_LIMIT..=NO_LIMIT,
    alternative_upload_bytes_per_s: LEAST_LIMIT..=NO_LIMIT,
});

setting_ranges!(SeedingSettings, "seeding" {
    ratio_percent: 0..=NO_RATIO,
    time_s: 0..=NO_TIME,
    // A peer that requests one piece a minute is served.
    idle_s: 60..=NO_TIME,
});

setting_ranges!(QueueSettings, "queue" {
    max_downloads: 1..=MANY,
    max_seeds: 1..=MANY,
    max_active: 1..=MANY,
    max_checks: 1..=MANY,
    slow_download_bytes_per_s: 0..=GIB,
    slow_upload_bytes_per_s: 0..=GIB,
    // Rates fluctuate over shorter times.
    slow_after_s: 10..=DAY_S,
});

setting_ranges!(LsdSettings, "lsd" {
    interval_s: 60..=DAY_S,
});

setting_ranges!(SessionSettings, "session" {
    checkpoint_interval_s: 0..=DAY_S,
    checkpoint_bytes: 1..=TIB,
    max_unsaved_active_s: 1..=YEAR_S,
    max_peers: 0..=100_000,
});

setting_ranges!(LifecycleSettings, "lifecycle" {
    halt_timeout_ms: 0..=HOUR_MS,
    disconnect_timeout_ms: 0..=HOUR_MS,
    announce_timeout_ms: 0..=HOUR_MS,
    // Storage shared with other programs takes a while to sync.
    save_timeout_ms: 500..=HOUR_MS,
    release_timeout_ms: 0..=HOUR_MS,
    user_save_timeout_ms: 500..=HOUR_MS,
    max_restarts: 0..=1000,
    restart_window_s: 1..=DAY_S,
    // A shorter delay would repeat the same fault without a pause.
    restart_delay_ms: 10..=HOUR_MS,
    blocked_retry_ms: 10..=HOUR_MS,
});

/// Pairs of settings of one section, of which the first cannot be more than the second.
const ORDERED: [(&str, &str, &str); 5] = [
    ("peers", "reconnect_backoff_s", "max_reconnect_backoff_s"),
    ("requests", "min_depth", "initial_depth"),
    ("requests", "initial_depth", "max_depth"),
    ("trackers", "min_interval_s", "max_interval_s"),
    ("trackers", "backoff_s", "max_backoff_s"),
];

setting_ranges!(LabelSettings, "labels" {
    max_per_torrent: 1..=LabelBounds::WIDEST.max_per_torrent as u64,
    max_length_bytes: 1..=LabelBounds::WIDEST.max_length_bytes as u64,
});

setting_ranges!(ReaderSettings, "readers" {
    // Each reader has a reserved place in the mailbox of the engine.
    max_readers: 1..=512,
    window_bytes: 16 * KIB..=GIB,
    read_bytes: 16 * KIB..=16 * MIB,
    idle_s: 1..=HOUR_S,
    timeout_s: 1..=DAY_S,
});

impl Numbers for Settings {
    fn numbers(&self) -> Vec<Number> {
        [
            self.tick.numbers(),
            self.net.numbers(),
            self.peers.numbers(),
            self.requests.numbers(),
            self.uploads.numbers(),
            self.limits.numbers(),
            self.seeding.numbers(),
            self.queue.numbers(),
            self.storage.numbers(),
            self.trackers.numbers(),
            self.metadata.numbers(),
            self.pex.numbers(),
            self.dht.numbers(),
            self.lsd.numbers(),
            self.session.numbers(),
            self.lifecycle.numbers(),
            self.labels.numbers(),
            self.readers.numbers(),
        ]
        .concat()
    }
}

impl Settings {
    /// Checks all settings for values with which an engine would not work.
    ///
    /// # Errors
    /// Returns the first invalid setting.
    pub fn check(&self) -> Result<(), SettingError> {
        let lists = [
            ("peers", "blocked", self.peers.blocked.len(), MAX_BLOCKED),
            ("labels", "categories", self.labels.categories.len(), MAX_CATEGORIES),
        ];
        for (section, name, count, most) in lists {
            if count > most {
                return Err(SettingError::Length {
                    section,
                    name,
                    count,
                    most,
                });
            }
        }
        self.storage.check()?;
        check_numbers(&self.numbers())
    }
}

impl StorageSettings {
    /// Checks the folders, without a look at the disk.
    ///
    /// # Errors
    /// If the path of a folder is empty.
    pub fn check(&self) -> Result<(), SettingError> {
        match &self.incomplete_dir {
            Some(folder) if folder.as_os_str().is_empty() => Err(SettingError::Folder {
                section: "storage",
                name: "incomplete_dir",
                reason: "the path is empty".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// Checks numbers against their ranges and against each other.
///
/// # Errors
/// Returns the first number that is outside its range, or else the first that is greater than its limit.
pub fn check_numbers(numbers: &[Number]) -> Result<(), SettingError> {
    numbers
        .iter()
        .try_for_each(|number| number.check(number.value.into()))?;
    let value_of = |section, name| {
        let found = numbers
            .iter()
            .find(|number| (number.section, number.name) == (section, name));
        found.map(|number| number.value)
    };
    for (section, small, large) in ORDERED {
        if let (Some(value), Some(bound)) = (value_of(section, small), value_of(section, large))
            && value > bound
        {
            return Err(SettingError::Order {
                section,
                small,
                value,
                large,
                bound,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_their_ranges() {
        assert_eq!(Settings::default().check(), Ok(()));
    }

    /// A pair whose names do not exist would check nothing.
    #[test]
    fn ordered_settings_exist() {
        let numbers = Settings::default().numbers();
        for (section, small, large) in ORDERED {
            for name in [small, large] {
                assert!(
                    numbers
                        .iter()
                        .any(|number| (number.section, number.name) == (section, name)),
                    "{section}.{name}"
                );
            }
        }
    }

    #[test]
    fn errors_name_the_setting_the_value_and_the_range() {
        let mut settings = Settings::default();
        settings.net.max_lookups = usize::MAX;
        let error = settings.check().unwrap_err();
        let expected = format!("net.max_lookups: {} is too large, it can be from 1 to 1024", usize::MAX);
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.key(), ("net", "max_lookups"));
        settings.net.max_lookups = 0;
        let error = settings.check().unwrap_err().to_string();
        assert_eq!(error, "net.max_lookups: 0 is too small, it can be from 1 to 1024");

        let mut settings = Settings::default();
        settings.requests.min_depth = 20;
        let error = settings.check().unwrap_err().to_string();
        assert_eq!(
            error,
            "requests.min_depth: 20 is more than requests.initial_depth, which is 16"
        );
    }
}
