//! The daemon's answers in human-readable form.

use console::{Alignment, Style, measure_text_width, pad_str};
use ecs_torrent::{Field, TorrentState};
use serde_json::Value;
use time::OffsetDateTime;

use super::values::text;
use crate::cli::output::{self, printable};

/// The fields that `stats` prints by default.
pub(super) const GLANCE: [Field; 14] = [
    Field::Name,
    Field::InfoHash,
    Field::State,
    Field::Error,
    Field::LimitReached,
    Field::Progress,
    Field::Size,
    Field::Speed,
    Field::Downloaded,
    Field::Uploaded,
    Field::Root,
    Field::CompleteRoot,
    Field::Peers,
    Field::Trackers,
];

/// Number of info-hash digits in a table. A collision of this many digits is very unlikely.
const SHOWN_DIGITS: usize = 12;

/// Returns the beginning of an info-hash, for a table.
pub(super) fn short_hash(hash: &Value) -> String {
    let hash = text(hash);
    hash.get(..SHOWN_DIGITS).unwrap_or(hash).to_owned()
}

/// Prints one line per torrent, in the order of the queue.
pub(super) fn queue(torrents: &Value) {
    let mut table = Table::shortened([
        ("HASH", Alignment::Left),
        ("PLACE", Alignment::Right),
        ("STATE", Alignment::Left),
        ("MARK", Alignment::Left),
        ("NAME", Alignment::Left),
    ]);
    for torrent in torrents.as_array().into_iter().flatten() {
        let place = &torrent["queue"];
        let marks = ["forced", "slow"]
            .into_iter()
            .filter(|mark| place[*mark] == Value::Bool(true));
        table.row([
            short_hash(&torrent["info_hash"]),
            number(&place["place"]).to_string(),
            printable(text(&torrent["state"])),
            marks.collect::<Vec<_>>().join(","),
            printable(text(&torrent["name"])),
        ]);
    }
    table.print("no torrents");
}

/// Prints one line per stopped torrent.
pub(super) fn stopped(torrents: &Value) {
    let mut table = Table::shortened([("HASH", Alignment::Left), ("NAME", Alignment::Left)]);
    for torrent in torrents.as_array().into_iter().flatten() {
        let name = torrent["name"].as_str().map(printable);
        table.row([
            short_hash(&torrent["info_hash"]),
            name.unwrap_or_else(|| "unknown: its state cannot be read".into()),
        ]);
    }
    table.print("no stopped torrents");
}

/// Prints one line per file.
pub(super) fn files(files: &Value) {
    let mut table = Table::new([
        ("#", Alignment::Right),
        ("SIZE", Alignment::Right),
        ("DONE", Alignment::Right),
        ("PRIORITY", Alignment::Left),
        ("PATH", Alignment::Left),
    ]);
    for file in files.as_array().into_iter().flatten() {
        let (length, completed) = (number(&file["length"]), number(&file["completed"]));
        // An empty file is always complete.
        let share = if length == 0 {
            1.0
        } else {
            completed as f64 / length as f64
        };
        table.row([
            number(&file["index"]).to_string(),
            bytes(&file["length"]),
            percent(&share.into()),
            printable(text(&file["priority"])),
            printable(text(&file["path"])),
        ]);
    }
    // A torrent whose metadata is known has a file.
    table.print("the files are not known yet: the metadata has not arrived");
}

/// Prints one line per peer.
pub(super) fn peers(peers: &Value) {
    let mut table = Table::shortened([
        ("ADDRESS", Alignment::Left),
        ("DONE", Alignment::Right),
        ("DOWN", Alignment::Right),
        ("UP", Alignment::Right),
        ("FLAGS", Alignment::Left),
        ("CLIENT", Alignment::Left),
    ]);
    for peer in peers.as_array().into_iter().flatten() {
        let done = &peer["progress"];
        table.row([
            peer["address"].as_str().map_or_else(|| "-".to_owned(), printable),
            if done.is_null() { "-".to_owned() } else { percent(done) },
            speed(&peer["speed"]["download"]),
            speed(&peer["speed"]["upload"]),
            flags(peer),
            printable(text(&peer["client"])),
        ]);
    }
    table.print("no peers");
}

/// Returns the letters that show the choke and interest states.
fn flags(peer: &Value) -> String {
    let is = |key: &str| peer[key].as_bool().unwrap_or_default();
    let served =
        |interested: &str, choking: &str, letters: [char; 2]| is(interested).then(|| letters[usize::from(is(choking))]);
    let download = served("am_interested", "peer_choking", ['D', 'd']);
    let upload = served("peer_interested", "am_choking", ['U', 'u']);
    let incoming = is("is_incoming").then_some('I');
    [download, upload, incoming].into_iter().flatten().collect()
}

/// Prints one line per tracker, and its last error or warning below.
pub(super) fn trackers(trackers: &Value) {
    let mut table = Table::new([
        ("TIER", Alignment::Right),
        ("STATUS", Alignment::Left),
        ("NEXT", Alignment::Right),
        ("SEEDS", Alignment::Right),
        ("LEECHERS", Alignment::Right),
        ("PEERS", Alignment::Right),
        ("URL", Alignment::Left),
    ]);
    for tracker in trackers.as_array().into_iter().flatten() {
        let count = |key: &str| {
            tracker[key]
                .as_u64()
                .map_or_else(|| "-".to_owned(), |count| count.to_string())
        };
        let next = tracker["next_announce_seconds"]
            .as_u64()
            .map(std::time::Duration::from_secs);
        let row = [
            number(&tracker["tier"]).to_string(),
            printable(text(&tracker["status"])),
            next.map_or_else(|| "-".to_owned(), output::duration),
            count("seeders"),
            count("leechers"),
            count("peers"),
            printable(text(&tracker["url"])),
        ];
        table.row(row);
        if let Some(message) = tracker["message"].as_str() {
            table.note(&printable(message));
        }
    }
    table.print("no trackers");
}

/// Returns the numbers of the deleted and the kept files of a removed torrent.
pub(super) fn removed_count(removed: &Value) -> String {
    let files = |kind: &str| output::count(number(&removed[format!("{kind}_count")]) as usize, "file");
    format!(": {} deleted, {} kept", files("deleted"), files("kept"))
}

/// Prints one line per file of a removed torrent: deleted or kept. Files that the answer does not name are summed up.
pub(super) fn removed(removed: &Value) {
    let list = |key: &str| removed[key].as_array().into_iter().flatten();
    for path in list("deleted") {
        say!("deleted {}", printable(text(path)));
    }
    for file in list("kept") {
        let (path, reason) = (printable(text(&file["path"])), printable(text(&file["reason"])));
        say!("kept {path}: {reason}");
    }
    for kind in ["deleted", "kept"] {
        let more = number(&removed[format!("{kind}_count")]).saturating_sub(list(kind).count() as u64);
        if more > 0 {
            say!("{kind} {more} more");
        }
    }
}

/// Prints one line per field, in the order requested. Omits fields without a value.
pub(super) fn stats(stats: &Value, fields: &[&str]) {
    let label = Style::new().bold();
    for field in fields.iter().filter(|field| !stats[**field].is_null()) {
        let lines = describe(field, &stats[*field]);
        let mut names = std::iter::once(name_of(field)).chain(std::iter::repeat(String::new()));
        for line in lines {
            let name = names.next().unwrap_or_default();
            say!("{} {line}", label.apply_to(format!("{name:<16}")));
        }
    }
}

/// Returns the human-readable name of a field.
fn name_of(field: &str) -> String {
    match field {
        "info_hash" => "info-hash".to_owned(),
        "root" => "folder".to_owned(),
        "complete_root" => "folder when complete".to_owned(),
        "seconds_active" => "time active".to_owned(),
        "seconds_seeding" => "time seeding".to_owned(),
        "eta" => "ETA".to_owned(),
        "added_at" => "added".to_owned(),
        "completed_at" => "completed on".to_owned(),
        "active_at" => "last active".to_owned(),
        "peer_count" => "peers".to_owned(),
        other => other.replace('_', " "),
    }
}

/// Returns a torrent's state as the cell of a table has it. The phase of a stop stands below the row.
pub(super) fn short_state(name: &str) -> String {
    match name.parse() {
        Ok(TorrentState::FetchingMetadata) => "metadata".to_owned(),
        _ => printable(name.split('/').next().unwrap_or_default()),
    }
}

fn describe(field: &str, value: &Value) -> Vec<String> {
    let line = match field {
        "speed" => {
            let [download, upload] = ["download", "upload"].map(|way| output::speed(number(&value[way])));
            format!("{download} down, {upload} up")
        }
        "progress" => percent(value),
        "state" => printable(text(value)),
        "metadata" => format!("{} of {} pieces", number(&value["received"]), number(&value["pieces"])),
        "downloaded" | "size" | "uploaded" | "corrupt" | "wasted" | "completed" | "unverified" | "wanted" | "left"
        | "checked" => bytes(value),
        "moving" => {
            let [moved, size] = ["moved", "size"].map(|count| bytes(&value[count]));
            format!("{moved} of {size} to {}", printable(text(&value["root"])))
        }
        "pieces" => {
            let [held, total] = ["held", "total"].map(|count| number(&value[count]));
            format!("{held} of {total}, {} each", bytes(&value["size"]))
        }
        "seconds_active" | "seconds_seeding" | "eta" => output::duration(std::time::Duration::from_secs(number(value))),
        "added_at" | "completed_at" | "active_at" => date(number(value)),
        "ratio" | "availability" => format!("{:.2}", value.as_f64().unwrap_or_default()),
        "private" => if value == &Value::Bool(true) { "yes" } else { "no" }.to_owned(),
        "peers" => {
            let peers = value.as_array().map_or(&[][..], Vec::as_slice);
            let shown = peers.iter().map(|peer| {
                let speeds = describe("speed", &peer["speed"]).concat();
                let client = printable(text(&peer["client"]));
                format!("{}, {speeds}, {client}", text(&peer["address"]))
            });
            return std::iter::once(output::count(peers.len(), "peer"))
                .chain(shown)
                .collect();
        }
        "trackers" => {
            let trackers = value.as_array().map_or(&[][..], Vec::as_slice);
            let shown = trackers.iter().map(|tracker| {
                let message = tracker["message"].as_str().map(|why| format!(": {}", printable(why)));
                let (url, status) = (printable(text(&tracker["url"])), text(&tracker["status"]));
                format!("{url}, {status}{}", message.unwrap_or_default())
            });
            return shown.collect();
        }
        "sources" => {
            let sources = value.as_array().map_or(&[][..], Vec::as_slice);
            let shown = sources.iter().map(|source| {
                let [found, refused, connected] = ["found", "refused", "connected"].map(|count| number(&source[count]));
                let name = printable(text(&source["source"]));
                format!("{name}: {found} found, {connected} connected, {refused} refused")
            });
            return shown.collect();
        }
        _ => value.as_str().map_or_else(|| value.to_string(), printable),
    };
    vec![line]
}

pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// Formats a number of bytes; an unknown one is `-`.
pub(super) fn bytes(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), output::bytes)
}

/// Formats a date, given in seconds since 1970.
fn date(seconds: u64) -> String {
    let date = i64::try_from(seconds).ok().map(OffsetDateTime::from_unix_timestamp);
    let Some(Ok(date)) = date else {
        return "-".to_owned();
    };
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let (hour, minute, second) = date.to_hms();
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Formats a speed; zero is `-`.
pub(super) fn speed(value: &Value) -> String {
    match number(value) {
        0 => "-".to_owned(),
        speed => output::speed(speed),
    }
}

/// Formats a share as a percentage, rounded down, so that 100 % means complete.
pub(super) fn percent(share: &Value) -> String {
    let share = share.as_f64().unwrap_or_default();
    format!("{:.1} %", (share * 1000.0).floor() / 10.0)
}

/// A table whose columns are as wide as their contents.
pub(super) struct Table<const N: usize> {
    alignments: [Alignment; N],
    rows: Vec<Row<N>>,
    /// The column that is shortened to the width of the terminal.
    shortened: Option<usize>,
    /// Columns that are left out one after the other where that one would have less than [`MIN_SHORTENED`].
    pub(super) dropped_first: &'static [usize],
}

struct Row<const N: usize> {
    cells: [String; N],
    /// Text below the row.
    note: String,
}

/// Space between two columns.
const GAP: &str = "  ";

/// Fewest columns to which a cell is shortened.
const MIN_SHORTENED: usize = 10;

/// Indentation of the text below a row.
const INDENT: &str = "  ";

impl<const N: usize> Table<N> {
    fn new(columns: [(&str, Alignment); N]) -> Self {
        Self {
            alignments: columns.map(|(_, alignment)| alignment),
            rows: vec![Row {
                cells: columns.map(|(head, _)| head.to_owned()),
                note: String::new(),
            }],
            shortened: None,
            dropped_first: &[],
        }
    }

    /// Creates a table whose last column is shortened to the width of the terminal.
    fn shortened(columns: [(&str, Alignment); N]) -> Self {
        Self::shortened_at(N - 1, columns)
    }

    /// Creates a table with a column that is shortened to the width of the terminal.
    pub(super) fn shortened_at(column: usize, columns: [(&str, Alignment); N]) -> Self {
        Self {
            shortened: Some(column),
            ..Self::new(columns)
        }
    }

    pub(super) fn row(&mut self, cells: [String; N]) {
        let note = String::new();
        self.rows.push(Row { cells, note });
    }

    /// Puts a text below the last row.
    pub(super) fn note(&mut self, note: &str) {
        if let Some(row) = self.rows.last_mut() {
            note.clone_into(&mut row.note);
        }
    }

    /// Prints all rows, or `nothing` if there are none.
    pub(super) fn print(&self, nothing: &str) {
        let lines = self.lines(output::width());
        match lines.as_slice() {
            [] | [_] => say!("{nothing}"),
            [head, rows @ ..] => {
                say!("{}", Style::new().bold().apply_to(head));
                rows.iter().for_each(|row| say!("{row}"));
            }
        }
    }

    /// Returns the lines of all rows. Texts below rows are wrapped to the width of the terminal, if there is one.
    pub(super) fn lines(&self, terminal_width: Option<usize>) -> Vec<String> {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| measure_text_width(&row.cells[column]));
            cells.max().unwrap_or_default()
        };
        let mut widths: [usize; N] = std::array::from_fn(width);
        let mut is_shown = [true; N];
        if let (Some(terminal), Some(short)) = (terminal_width, self.shortened) {
            let others = (0..N).filter(|column| *column != short);
            let mut before: usize = others.map(|column| widths[column] + GAP.len()).sum();
            for column in self.dropped_first {
                if before + widths[short].min(MIN_SHORTENED) > terminal {
                    before -= widths[*column] + GAP.len();
                    is_shown[*column] = false;
                }
            }
            widths[short] = widths[short].min(terminal.saturating_sub(before).max(MIN_SHORTENED));
        }
        let line = |row: &Row<N>| {
            let cells = row.cells.iter().zip(widths).zip(self.alignments).zip(is_shown);
            let cells = cells.filter(|(_, is_shown)| *is_shown);
            let cells = cells.map(|(((cell, width), alignment), _)| pad_str(cell, width, alignment, Some("…")));
            cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
        };
        let mut lines = Vec::new();
        for row in &self.rows {
            lines.push(line(row));
            if !row.note.is_empty() {
                let options = textwrap::Options::new(terminal_width.unwrap_or(usize::MAX));
                let options = options.initial_indent(INDENT).subsequent_indent(INDENT);
                let wrapped = textwrap::wrap(&row.note, options);
                lines.extend(wrapped.into_iter().map(std::borrow::Cow::into_owned));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new([("SIZE", Alignment::Right), ("NAME", Alignment::Left)]);
        table.row(["1.00 MiB".to_owned(), "a".to_owned()]);
        table.row(["5 B".to_owned(), "bee".to_owned()]);
        assert_eq!(table.lines(None), ["    SIZE  NAME", "1.00 MiB  a", "     5 B  bee"]);
    }

    #[test]
    fn long_names_are_shortened_to_the_terminal() {
        let mut table = Table::shortened([("SIZE", Alignment::Right), ("NAME", Alignment::Left)]);
        table.row(["1.00 MiB".to_owned(), "a name of 24 characters.".to_owned()]);
        let whole = ["    SIZE  NAME", "1.00 MiB  a name of 24 characters."];
        assert_eq!(table.lines(None), whole);
        assert_eq!(table.lines(Some(34)), whole);
        assert_eq!(table.lines(Some(33)), [whole[0], "1.00 MiB  a name of 24 character…"]);
        let narrow = table.lines(Some(5));
        assert_eq!(narrow[1], "1.00 MiB  a name of…", "something of the name stays");
    }

    /// The reason of a failure is readable in a terminal of 80 columns, whatever its length and that of the name.
    #[test]
    fn a_reason_stands_below_its_torrent() {
        let mut table = Table::new([("STATE", Alignment::Left), ("NAME", Alignment::Left)]);
        let path = format!("/data/{}", "folder/".repeat(20));
        let reason = format!("cannot open {path}file: Permission denied (os error 13), and nothing else can be done");
        table.row(["failed".to_owned(), "a".to_owned()]);
        table.note(&reason);
        table.row(["seeding".to_owned(), "b".to_owned()]);
        assert_eq!(
            table.lines(None),
            ["STATE    NAME", "failed   a", &format!("  {reason}"), "seeding  b"]
        );
        let lines = table.lines(Some(80));
        assert!(lines.iter().all(|line| measure_text_width(line) <= 80), "{lines:#?}");
        let indented = lines.iter().filter_map(|line| line.strip_prefix(INDENT));
        let words = |text: &str| text.replace(' ', "");
        assert_eq!(words(&indented.collect::<String>()), words(&reason));
        assert!(
            lines.iter().any(|line| line.ends_with("nothing else can be done")),
            "{lines:#?}"
        );
    }

    #[test]
    fn fields_are_printed_in_fitting_units() {
        let shown = |field, value| describe(field, &value);
        assert_eq!(shown("progress", json!(0.9999)), ["99.9 %"]);
        assert_eq!(shown("progress", json!(1.0)), ["100.0 %"]);
        assert_eq!(
            shown("speed", json!({"download": 2048, "upload": 0})),
            ["2.00 KiB/s down, 0 B/s up"]
        );
        assert_eq!(
            shown("pieces", json!({"total": 5, "held": 2, "size": 16384})),
            ["2 of 5, 16.00 KiB each"]
        );
        assert_eq!(shown("added_at", json!(1_709_210_096)), ["2024-02-29 12:34:56 UTC"]);
        assert_eq!(shown("added_at", json!(u64::MAX)), ["-"]);
        assert_eq!(shown("ratio", json!(1.005)), ["1.00"]);
        assert_eq!(shown("eta", json!(60)), shown("seconds_active", json!(60)));
        assert_eq!(shown("private", json!(false)), ["no"]);
        assert_eq!(shown("state", json!("fetching_metadata")), ["fetching_metadata"]);
        let phase = "stopping/write_session";
        assert_eq!(shown("state", json!(phase)), [phase]);
        assert_eq!(
            shown("metadata", json!({"received": 1, "pieces": 3})),
            ["1 of 3 pieces"]
        );
        assert_eq!(shown("name", json!("a\u{1b}[31m")), ["a\u{fffd}[31m"]);
        assert_eq!(shown("peers", json!([])), ["0 peers"]);
    }
}
