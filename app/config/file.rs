//! Reading a configuration file with a size limit, and locating mistakes in it.

use std::fmt;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ecs_torrent_components::settings::Numbers;
use ecs_torrent_engine::backends::whole_file::read_bounded;
use ron::extensions::Extensions;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::{Config, ConfigError};

/// Longest configuration, in bytes. The default configuration, which names every setting, has about twenty thousand.
const MAX_BYTES: u64 = 1 << 20;

/// The text of a configuration, and the path of its file.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    path: PathBuf,
    text: String,
}

impl ConfigFile {
    /// Wraps a text that was read from `path`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }

    /// Reads a regular file of at most 1 MiB.
    ///
    /// # Errors
    /// If the file cannot be read, is longer, or is not a regular file: a folder, or a device or pipe, which might
    /// never end.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path).map_err(|error| ConfigError::Read {
            path: path.to_owned(),
            error,
        })?;
        Ok(Self::new(path, text))
    }

    /// Parses the text. Settings that the text does not name have their defaults. [`Config::check`] checks the values.
    ///
    /// # Errors
    /// The position and the reason if the text cannot be parsed.
    pub fn parse(&self) -> Result<Config, ConfigError> {
        options().from_str(&self.text).map_err(|error| {
            self.find_out_of_range().unwrap_or_else(|| ConfigError::Syntax {
                path: self.path.clone(),
                line: error.span.start.line,
                column: error.span.start.col,
                reason: error.code.to_string(),
            })
        })
    }

    /// Finds the first number that is too small or too large for its type.
    fn find_out_of_range(&self) -> Option<ConfigError> {
        let values: serde_json::Value = options().from_str(&self.text).ok()?;
        Config::default().numbers().into_iter().find_map(|number| {
            let value = &values[number.section][number.name];
            let value = value.as_u64().map(i128::from).or(value.as_i64().map(i128::from))?;
            let error = number.check(value).err()?;
            Some(self.place(error.into()))
        })
    }

    /// Adds the position in this file to an error about a value, if this file sets the value.
    #[must_use]
    pub fn place(&self, error: ConfigError) -> ConfigError {
        match error {
            ConfigError::Value { key, reason, .. } => ConfigError::Value {
                place: self.find(&key).unwrap_or_default(),
                key,
                reason,
            },
            error => error,
        }
    }

    /// Finds the value of `section.name` by parsing the text again; parsing fails at that value.
    fn find(&self, key: &str) -> Option<String> {
        let (section, name) = key.split_once('.')?;
        let found = options().from_str_seed(&self.text, Finder(&[section, name])).err()?;
        // The span starts at the whitespace before the value.
        let (line, column) = (found.span.end.line, found.span.end.col);
        Some(format!("{}:{line}:{column}: ", self.path.display()))
    }
}

fn options() -> ron::Options {
    ron::Options::default().with_default_extension(Extensions::IMPLICIT_SOME)
}

fn read(path: &Path) -> io::Result<String> {
    // Without this flag, opening a pipe that has no writer would block.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let bytes = read_bounded(file, MAX_BYTES)?;
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8"))
}

/// Fails deserialization at the value that this path of names leads to.
struct Finder<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Finder<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.0.is_empty() {
            return Err(D::Error::custom("here"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Finder<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("settings")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if Some(&name.as_str()) == self.0.first() {
                map.next_value_seed(Finder(&self.0[1..]))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}
