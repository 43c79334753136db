//! The daemon's configuration: a RON file with the settings that differ from the defaults.

mod file;
mod log;

use std::path::PathBuf;

use ecs_torrent_components::settings::{
    DhtSettings, LabelSettings, LifecycleSettings, LimitSettings, LsdSettings, MetadataSettings, NetSettings, Number,
    Numbers, PeerSettings, PexSettings, QueueSettings, ReaderSettings, RequestSettings, SeedingSettings,
    SessionSettings, SettingError, Settings, StorageSettings, TickSettings, TrackerSettings, UploadSettings,
    check_numbers,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::file::ConfigFile;
pub use self::log::LogSettings;
use crate::automation::{AutomationSettings, without_secrets};
use crate::daemon::ApiSettings;

/// Configuration file with every setting, its documentation and its default.
pub const DEFAULT: &str = include_str!("config/default.ron");

/// The whole configuration: the sections of [`Settings`] and the API's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The tick.
    pub tick: TickSettings,
    /// Sockets.
    pub net: NetSettings,
    /// Connections to peers.
    pub peers: PeerSettings,
    /// Block requests and their limits.
    pub requests: RequestSettings,
    /// Choking and uploads.
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
    /// Torrent state kept between runs.
    pub session: SessionSettings,
    /// Starting and stopping torrents.
    pub lifecycle: LifecycleSettings,
    /// Labels and categories of torrents.
    pub labels: LabelSettings,
    /// Reading of files while they are downloaded.
    pub readers: ReaderSettings,
    /// The HTTP API.
    pub api: ApiSettings,
    /// Watch folders, hooks and webhooks.
    pub automation: AutomationSettings,
    /// The log file.
    pub log: LogSettings,
}

/// Error in a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
    /// The file is not RON, or has an unknown setting or value.
    #[error("{}:{line}:{column}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// Column number, from 1.
        column: usize,
        /// The problem at this position, human-readable.
        reason: String,
    },
    /// A value with which the daemon would not work.
    #[error("{place}{key}: {reason}")]
    Value {
        /// `FILE:LINE:COLUMN: ` of the value if a file sets it, otherwise empty.
        place: String,
        /// The setting, as `section.name`.
        key: String,
        /// The problem, human-readable.
        reason: String,
    },
}

impl From<SettingError> for ConfigError {
    fn from(error: SettingError) -> Self {
        let (section, name) = error.key();
        let key = format!("{section}.{name}");
        let text = error.to_string();
        let reason = text.strip_prefix(&format!("{key}: ")).unwrap_or(&text).to_owned();
        Self::value(&key, reason)
    }
}

impl ConfigError {
    fn value(key: &str, reason: impl Into<String>) -> Self {
        Self::Value {
            place: String::new(),
            key: key.to_owned(),
            reason: reason.into(),
        }
    }
}

impl Numbers for Config {
    fn numbers(&self) -> Vec<Number> {
        [
            self.settings().numbers(),
            self.api.numbers(),
            self.automation.numbers(),
            self.log.numbers(),
        ]
        .concat()
    }
}

impl Config {
    /// Checks that the daemon can work with all values.
    ///
    /// # Errors
    /// The first setting with an invalid value.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_numbers(&self.numbers())?;
        self.storage.check()?;
        if self.session.state_dir.is_none() {
            return Err(ConfigError::value(
                "session.state_dir",
                "the daemon needs a state folder",
            ));
        }
        let listen = self.api.listen;
        if !listen.ip().is_loopback() && !self.api.allow_remote {
            let reason =
                format!("{listen} can be reached from other machines; if that is wanted, set api.allow_remote to true");
            return Err(ConfigError::value("api.listen", reason));
        }
        match self.automation.fault() {
            Some((name, reason)) => Err(ConfigError::value(&format!("automation.{name}"), reason)),
            None => Ok(()),
        }
    }

    /// Returns the sections that only the file sets, for users, as JSON. Secrets are left out.
    #[must_use]
    pub fn file_sections(&self) -> Map<String, Value> {
        let sections = [
            ("api", serde_json::to_value(&self.api)),
            ("automation", serde_json::to_value(without_secrets(&self.automation))),
            ("log", serde_json::to_value(&self.log)),
        ];
        let section = |(name, values): (&str, Result<Value, _>)| (name.to_owned(), values.unwrap_or_default());
        sections.into_iter().map(section).collect()
    }

    /// Returns the settings of the engine.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            tick: self.tick.clone(),
            net: self.net.clone(),
            peers: self.peers.clone(),
            requests: self.requests.clone(),
            uploads: self.uploads.clone(),
            limits: self.limits.clone(),
            seeding: self.seeding.clone(),
            queue: self.queue.clone(),
            storage: self.storage.clone(),
            trackers: self.trackers.clone(),
            metadata: self.metadata.clone(),
            pex: self.pex.clone(),
            dht: self.dht.clone(),
            lsd: self.lsd.clone(),
            session: self.session.clone(),
            lifecycle: self.lifecycle.clone(),
            labels: self.labels.clone(),
            readers: self.readers.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        ConfigFile::new("c.ron", text)
            .parse()
            .map_err(|error| error.to_string())
    }

    fn check(text: &str) -> Result<(), String> {
        let file = ConfigFile::new("c.ron", text);
        let checked = file.parse().and_then(|config| config.check());
        checked.map_err(|error| file.place(error).to_string())
    }

    #[test]
    fn only_what_is_named_changes() {
        let config = parse("(net: (listen: [\"127.0.0.1:7000\"]), session: (state_dir: \"/var/lib/x\"))").unwrap();
        let mut expected = Config::default();
        expected.net.listen = vec![([127, 0, 0, 1], 7000).into()];
        expected.session.state_dir = Some("/var/lib/x".into());
        assert_eq!(config, expected);
        assert_eq!(config.settings().net, config.net);
        assert_eq!(parse("()"), Ok(Config::default()));
        assert_eq!(parse("(session: (state_dir: None))").unwrap().session.state_dir, None);
    }

    #[test]
    fn errors_name_their_line() {
        for (text, place, reason) in [
            ("(\n  net: (\n    lsten: [],\n  ),\n)", "c.ron:3:5: ", "lsten"),
            ("(\n  nets: (),\n)", "c.ron:2:3: ", "nets"),
            (
                "(\n  tick: (max_events: -1),\n)",
                "c.ron:2:22: ",
                "-1 is too small, it can be from 1 to",
            ),
            (
                "(\n  tick: (max_events: 99999999999999999999),\n)",
                "c.ron:2:",
                "out of bounds",
            ),
            ("(\n  tick: (max_events: \"x\"),\n)", "c.ron:2:21: ", "integer"),
            ("(\n  api: (listen: \"here\"),\n)", "c.ron:2:18: ", "socket address"),
            ("(\n  trackers: (reach: Everyone),\n)", "c.ron:2:21: ", "Everyone"),
            ("(\n  tick: (\n", "c.ron:2:10: ", "end"),
            ("", "c.ron:1:1: ", ""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(place) && error.contains(reason), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    /// The position is that of the value, regardless of the file's formatting.
    #[test]
    fn values_that_cannot_work_are_refused() {
        for (text, reason) in [
            (
                "(tick: (max_interval_ms: 0))",
                "c.ron:1:26: tick.max_interval_ms: 0 is too small, it can be from 1 to 60000",
            ),
            (
                "// tick\n(\n  storage: (download_dir: \"tick: (\"),\n  tick: (\n    max_events: 5,\n    \
                 max_interval_ms:\n      60_001,\n  ),\n)",
                "c.ron:7:7: tick.max_interval_ms: 60001 is too large, it can be from 1 to 60000",
            ),
            (
                "(requests: (min_depth: 20))",
                "c.ron:1:24: requests.min_depth: 20 is more than requests.initial_depth, which is 16",
            ),
            (
                "(requests: (initial_depth: 3))",
                "requests.min_depth: 4 is more than requests.initial_depth, which is 3",
            ),
            (
                "(session: (state_dir: None))",
                "c.ron:1:23: session.state_dir: the daemon needs a state folder",
            ),
            (
                "(storage: (incomplete_dir: \"\"))",
                "c.ron:1:28: storage.incomplete_dir: the path is empty",
            ),
            (
                "(api: (listen: \"0.0.0.0:6880\"))",
                "c.ron:1:16: api.listen: 0.0.0.0:6880 can be reached from other machines; if that is wanted, set \
                 api.allow_remote to true",
            ),
            (
                "(peers: (keep_alive_s: 18446744073709551615))",
                "c.ron:1:24: peers.keep_alive_s: 18446744073709551615 is too large, it can be from 1 to 86400",
            ),
        ] {
            assert_eq!(check(text), Err(reason.to_owned()));
        }
        assert_eq!(check("(api: (listen: \"0.0.0.0:1\", allow_remote: true))"), Ok(()));
        assert_eq!(check("()"), Ok(()));
    }

    #[test]
    fn the_printed_default_is_the_default() {
        assert_eq!(parse(DEFAULT), Ok(Config::default()));
    }
}
