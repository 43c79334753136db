//! Options of `download` and `add` that choose files and the order of their pieces.

use std::ops::RangeInclusive;

use clap::Args;
use ecs_torrent::components::selection::FileSelection;
use ecs_torrent::components::wanted::PieceOrder;

#[cfg(feature = "daemon")]
use url::form_urlencoded;

use super::CliError;

#[derive(Debug, Args)]
pub(super) struct ChoiceArgs {
    /// Download only these files, by their numbers in `show`: 0,3-5. Needs a single torrent.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = range)]
    files: Vec<RangeInclusive<u32>>,
    /// Download only the files whose path matches a pattern, such as '*.flac'; may be repeated.
    #[arg(long, value_name = "GLOB")]
    select: Vec<String>,
    /// Download each file from its beginning to its end, instead of the rarest pieces first.
    #[arg(long)]
    sequential: bool,
    /// Download the first and last pieces of each file first.
    #[arg(long)]
    ends_first: bool,
}

impl ChoiceArgs {
    /// Returns the order of the pieces.
    pub(super) fn order(&self) -> PieceOrder {
        PieceOrder {
            sequential: self.sequential,
            ends_first: self.ends_first,
        }
    }

    /// Returns the selection for `source_count` torrents.
    pub(super) fn selection(&self, source_count: usize) -> Result<FileSelection, CliError> {
        if !self.files.is_empty() && source_count > 1 {
            let why = "--files: several torrents cannot share file numbers; add them one by one, or use --select";
            return Err(CliError::Usage(why.into()));
        }
        let globs = self.select.iter().map(String::as_str);
        let selection = FileSelection::new(self.files.iter().cloned(), globs);
        selection.map_err(|error| CliError::Usage(error.to_string()))
    }
}

#[cfg(feature = "daemon")]
impl ChoiceArgs {
    /// Adds the selection to the parameters of a request to the daemon.
    pub(super) fn write(&self, query: &mut form_urlencoded::Serializer<'_, String>) {
        if !self.files.is_empty() {
            query.append_pair("files", &ranges_text(&self.files));
        }
        for glob in &self.select {
            query.append_pair("select", glob);
        }
        for (name, is_set) in [("sequential", self.sequential), ("ends_first", self.ends_first)] {
            if is_set {
                query.append_pair(name, "true");
            }
        }
    }
}

/// Writes ranges of files as the API reads them.
#[cfg(feature = "daemon")]
pub(super) fn ranges_text(ranges: &[RangeInclusive<u32>]) -> String {
    let ranges = ranges.iter().map(|range| format!("{}-{}", range.start(), range.end()));
    ranges.collect::<Vec<_>>().join(",")
}

/// Parses `3` or `3-5`.
pub(super) fn range(text: &str) -> Result<RangeInclusive<u32>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        _ => Err("not a file's number, nor a range such as 3-5".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!((range("7"), range("3-5")), (Ok(7..=7), Ok(3..=5)));
        for text in ["", "-", "5-3", "3-", "a", "1-2-3", "4294967296"] {
            assert!(range(text).is_err(), "{text}");
        }
    }
}
