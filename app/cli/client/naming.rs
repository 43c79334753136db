//! The torrents that users name in commands: by their names, or by the beginning of their info-hashes.

use std::fmt;

use ecs_torrent::InfoHash;
use serde_json::Value;

use super::connection::Daemon;
use super::values::text;
use crate::cli::CliError;
use crate::cli::output::printable;

/// Number of hexadecimal digits of an info-hash.
const HASH_DIGITS: usize = 40;

/// Minimum number of info-hash digits that identify a torrent.
const MIN_DIGITS: usize = 4;

/// Maximum number of torrents in the error about an ambiguous name.
const MAX_LISTED: usize = 10;

/// The request for the torrents that are not stopped.
pub(super) const RUNNING: &str = "/api/v1/torrents?fields=info_hash,name";

/// The request for the stopped torrents.
pub(super) const STOPPED: &str = "/api/v1/torrents?stopped=true";

/// A torrent that a user named.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) hash: InfoHash,
    pub(super) name: String,
    pub(super) is_stopped: bool,
}

/// Returns a torrent's info-hash and name. A magnet link without a name gives the torrent its hash as name.
pub(super) fn titled(hash: &str, name: &str) -> String {
    match name == hash {
        true => hash.to_owned(),
        false => format!("{hash} {}", printable(name)),
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&titled(&self.hash.to_string(), &self.name))
    }
}

/// The torrents that a user means: those with a name, and those whose info-hash begins with it.
struct Wanted<'t> {
    name: &'t str,
    /// The beginning of an info-hash, if the text is one.
    digits: Option<String>,
}

impl<'t> Wanted<'t> {
    fn new(text: &'t str) -> Result<Self, CliError> {
        let is_hex = text.bytes().all(|c| c.is_ascii_hexdigit());
        let is_prefix = is_hex && (MIN_DIGITS..=HASH_DIGITS).contains(&text.len());
        if text.is_empty() {
            let why = "neither the name of a torrent nor its info-hash";
            return Err(CliError::Usage(format!("{text:?}: {why}")));
        }
        Ok(Self {
            name: text,
            digits: is_prefix.then(|| text.to_ascii_lowercase()),
        })
    }

    /// Whether the text is a whole info-hash, which belongs to one torrent at most.
    fn is_whole(&self) -> bool {
        self.digits.as_ref().is_some_and(|digits| digits.len() == HASH_DIGITS)
    }

    /// Whether the text is the name of a torrent, stored or printed, or the beginning of its info-hash.
    fn is(&self, torrent: &Found) -> bool {
        let is_named = torrent.name == self.name || printable(&torrent.name) == self.name;
        let digits = self.digits.as_deref();
        digits.is_some_and(|digits| torrent.hash.to_string().starts_with(digits)) || (is_named && !self.is_whole())
    }

    /// Returns the only one of the torrents, or an error that lists them.
    fn only(&self, mut found: Vec<Found>) -> Result<Found, CliError> {
        if found.len() == 1 {
            return Ok(found.remove(0));
        }
        let name = printable(self.name);
        if found.is_empty() {
            let is_short = self.digits.is_none() && self.name.bytes().all(|c| c.is_ascii_hexdigit());
            return Err(CliError::Other(match self.is_whole() {
                true => format!("no torrent {name}"),
                false if is_short => {
                    format!(
                        "no torrent has the name {name}; of an info-hash, give the first {MIN_DIGITS} digits or more"
                    )
                }
                false if self.digits.is_some() => {
                    format!("no torrent has the name {name}, or an info-hash that begins with it")
                }
                false => format!("no torrent has the name {name}"),
            }));
        }
        let listed: Vec<String> = found.iter().take(MAX_LISTED).map(Found::to_string).collect();
        let more = match found.len().saturating_sub(MAX_LISTED) {
            0 => String::new(),
            count => format!(", and {count} more"),
        };
        let count = found.len();
        Err(CliError::Other(format!(
            "{name} is ambiguous, give more digits of the info-hash: {count} torrents match: {}{more}",
            listed.join(", ")
        )))
    }
}

impl Daemon {
    /// Finds the torrent, running or stopped, that has a name, or whose info-hash begins with `text`.
    pub(super) async fn resolve(&self, text: &str) -> Result<Found, CliError> {
        let wanted = Wanted::new(text)?;
        let mut found = found(&self.get(RUNNING).await?, false);
        found.retain(|torrent| wanted.is(torrent));
        if found.is_empty() || !wanted.is_whole() {
            let stopped = self::found(&self.get(STOPPED).await?, true);
            found.extend(stopped.into_iter().filter(|torrent| wanted.is(torrent)));
        }
        wanted.only(found)
    }

    /// Finds a torrent that is not stopped, and returns its hash.
    pub(super) async fn resolve_running(&self, text: &str) -> Result<InfoHash, CliError> {
        Ok(self.find_running(text).await?.hash)
    }

    /// Finds a torrent that is not stopped.
    pub(super) async fn find_running(&self, text: &str) -> Result<Found, CliError> {
        let found = self.resolve(text).await?;
        if found.is_stopped {
            let name = printable(&found.name);
            return Err(CliError::Other(format!(
                "{name} is stopped; `ecs-torrent resume {}` starts it again",
                found.hash
            )));
        }
        Ok(found)
    }
}

/// Returns the torrents of a list.
pub(super) fn found(torrents: &Value, is_stopped: bool) -> Vec<Found> {
    let torrents = torrents.as_array().into_iter().flatten();
    let found = torrents.filter_map(|torrent| {
        Some(Found {
            hash: text(&torrent["info_hash"]).parse().ok()?,
            name: text(&torrent["name"]).to_owned(),
            is_stopped,
        })
    });
    found.collect()
}
