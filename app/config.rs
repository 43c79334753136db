//! The daemon's configuration: a RON file that names what it changes.

use std::path::{Path, PathBuf};

use ecs_torrent_components::settings::{
    LifecycleSettings, NetSettings, PeerSettings, RequestSettings, SessionSettings, Settings, StorageSettings,
    TickSettings, TrackerSettings, UploadSettings,
};
use ron::extensions::Extensions;
use serde::{Deserialize, Serialize};

use crate::daemon::ApiSettings;

/// Every setting with its documentation and its default, as a configuration file.
pub const DEFAULT: &str = include_str!("config/default.ron");

/// All that can be configured: the sections of [`Settings`], and the API's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
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
    /// The HTTP API.
    pub api: ApiSettings,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not RON, or names or sets what there is not.
    #[error("{}:{line}:{column}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: usize,
        /// Where in the line, from 1.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A value with which nothing could work.
    #[error("{key}: {reason}")]
    Value {
        /// The setting, its section first.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Config {
    /// Reads a file; what it does not name has its default.
    ///
    /// # Errors
    /// Where the file cannot be read or says what cannot be understood. Values are looked at by [`Config::check`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
            path: path.to_owned(),
            error,
        })?;
        Self::parse(&text, path)
    }

    /// Reads the text of a file called `path`.
    ///
    /// # Errors
    /// The place and the reason where it cannot be understood.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let options = ron::Options::default().with_default_extension(Extensions::IMPLICIT_SOME);
        options.from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: error.span.start.line,
            column: error.span.start.col,
            reason: error.code.to_string(),
        })
    }

    /// Looks for values with which nothing could work.
    ///
    /// # Errors
    /// The first such setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key: &str, reason: String| {
            let key = key.to_owned();
            Err(ConfigError::Value { key, reason })
        };
        for (key, number) in self.numbers() {
            let (least, most) = range(&key);
            if number < least {
                return refuse(&key, format!("{number} is too small, it must be at least {least}"));
            }
            if number > most {
                return refuse(&key, format!("{number} is too large, it can be at most {most}"));
            }
        }
        for (small, large) in ORDERED {
            let (least, most) = (self.number(small), self.number(large));
            if least > most {
                return refuse(small, format!("{least} is more than {large}, which is {most}"));
            }
        }
        if self.session.state_dir.is_none() {
            return refuse("session.state_dir", "the daemon needs a state folder".to_owned());
        }
        let listen = self.api.listen;
        if !listen.ip().is_loopback() && !self.api.allow_remote {
            return refuse(
                "api.listen",
                format!("{listen} can be reached from other machines; if that is wanted, set api.allow_remote to true"),
            );
        }
        Ok(())
    }

    /// The engine's part.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            tick: self.tick.clone(),
            net: self.net.clone(),
            peers: self.peers.clone(),
            requests: self.requests.clone(),
            uploads: self.uploads.clone(),
            storage: self.storage.clone(),
            trackers: self.trackers.clone(),
            session: self.session.clone(),
            lifecycle: self.lifecycle.clone(),
        }
    }

    /// Every setting that is a number, by `section.name`.
    fn numbers(&self) -> Vec<(String, u64)> {
        let mut numbers = Vec::new();
        let sections = serde_json::to_value(self).unwrap_or_default();
        for (section, settings) in sections.as_object().into_iter().flatten() {
            for (name, value) in settings.as_object().into_iter().flatten() {
                numbers.extend(value.as_u64().map(|number| (format!("{section}.{name}"), number)));
            }
        }
        numbers
    }

    fn number(&self, key: &str) -> u64 {
        let found = self.numbers().into_iter().find(|(name, _)| name == key);
        found.map_or(0, |(_, number)| number)
    }
}

/// Settings for which 0 has a meaning.
const MAY_BE_ZERO: [&str; 18] = [
    "tick.min_interval_us",
    "net.close_timeout_ms",
    "peers.max_candidates",
    "peers.max_half_open",
    "peers.max_inbound_per_ip",
    "peers.max_bans",
    "peers.max_unsolicited",
    "peers.allowed_fast",
    "uploads.slots",
    "uploads.optimistic_slots",
    "storage.hash_threads",
    "trackers.num_want",
    "trackers.max_peers",
    "session.max_peers",
    "lifecycle.halt_timeout_ms",
    "lifecycle.disconnect_timeout_ms",
    "lifecycle.announce_timeout_ms",
    "lifecycle.max_restarts",
];

/// Settings of which the first cannot be more than the second.
const ORDERED: [(&str, &str); 5] = [
    ("peers.reconnect_backoff_s", "peers.max_reconnect_backoff_s"),
    ("requests.min_depth", "requests.initial_depth"),
    ("requests.initial_depth", "requests.max_depth"),
    ("trackers.min_interval_s", "trackers.max_interval_s"),
    ("trackers.backoff_s", "trackers.max_backoff_s"),
];

/// The longest time that can be set: a hundred years. Anything longer is a slip, and could not be counted with.
const MAX_SECONDS: u64 = 100 * 365 * 86_400;

/// The least and the most that a number can be; the unit is told by the end of its name.
fn range(key: &str) -> (u64, u64) {
    let least = u64::from(!MAY_BE_ZERO.contains(&key));
    let most = match key.rsplit('_').next() {
        Some("s") => MAX_SECONDS,
        Some("ms") => MAX_SECONDS * 1000,
        Some("us") => MAX_SECONDS * 1_000_000,
        Some("threads") => 1024,
        Some("connections") => 1_000_000,
        _ => u64::MAX,
    };
    (least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("c.ron")).map_err(|error| error.to_string())
    }

    fn check(text: &str) -> Result<(), String> {
        parse(text)?.check().map_err(|error| error.to_string())
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
    fn mistakes_are_found_where_they_are() {
        for (text, place, reason) in [
            ("(\n  net: (\n    lsten: [],\n  ),\n)", "c.ron:3:5: ", "lsten"),
            ("(\n  nets: (),\n)", "c.ron:2:3: ", "nets"),
            ("(\n  tick: (max_events: -1),\n)", "c.ron:2:23: ", "out of bounds"),
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

    #[test]
    fn values_that_cannot_work_are_refused() {
        for (text, reason) in [
            (
                "(tick: (max_interval_ms: 0))",
                "tick.max_interval_ms: 0 is too small, it must be at least 1",
            ),
            (
                "(requests: (min_depth: 20))",
                "requests.min_depth: 20 is more than requests.initial_depth, which is 16",
            ),
            (
                "(session: (state_dir: None))",
                "session.state_dir: the daemon needs a state folder",
            ),
            (
                "(api: (listen: \"0.0.0.0:6880\"))",
                "api.listen: 0.0.0.0:6880 can be reached from other machines; if that is wanted, set api.allow_remote \
                 to true",
            ),
        ] {
            assert_eq!(check(text), Err(reason.to_owned()));
        }
        let eternal = check("(peers: (keep_alive_s: 18446744073709551615))").unwrap_err();
        assert!(eternal.starts_with("peers.keep_alive_s: 18446744073709551615 is too large"));
        assert_eq!(check("(api: (listen: \"0.0.0.0:1\", allow_remote: true))"), Ok(()));
        assert_eq!(check("()"), Ok(()));
    }

    /// A name that no setting has any more would hide a mistake.
    #[test]
    fn the_rules_name_settings_that_there_are() {
        let numbers = Config::default().numbers();
        let names = MAY_BE_ZERO
            .into_iter()
            .chain(ORDERED.into_iter().flat_map(|(a, b)| [a, b]));
        for name in names {
            assert!(numbers.iter().any(|(key, _)| key == name), "{name}");
        }
    }

    #[test]
    fn the_printed_default_is_the_default() {
        assert_eq!(parse(DEFAULT), Ok(Config::default()));
    }
}
