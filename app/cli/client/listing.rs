//! `list`: the torrents of the daemon.

use clap::Args;
use console::Alignment;
use serde_json::Value;
use url::form_urlencoded;

use super::DaemonAddress;
use super::connection::Daemon;
use super::naming::STOPPED;
use super::tables::{self, Table, bytes, number, percent, short_state, speed};
use super::values::text;
use crate::cli::output::{self, print_json, printable};
use crate::cli::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent list
  ecs-torrent list --sort=-ratio --state seeding
  ecs-torrent list --text debian
  ecs-torrent list --stopped
  ecs-torrent list --label linux --category distributions
  ecs-torrent list --json | jq -r '.[] | select(.progress < 1).name'

Columns to sort by are the fields of `stats`, such as name, size, progress,
ratio, eta or added_at, and speed.download, speed.upload and queue.order.")]
pub(in crate::cli) struct ListArgs {
    /// List the stopped torrents instead.
    #[arg(long, conflicts_with_all = ["labels", "category", "sort", "states", "text"])]
    stopped: bool,
    /// Column to sort by; with `-` before it, from the highest value to the lowest.
    #[arg(long, value_name = "COLUMN", allow_hyphen_values = true)]
    sort: Option<String>,
    /// List only torrents in this state, such as downloading or paused; may be repeated: then in one of them.
    #[arg(long = "state", value_name = "STATE", value_delimiter = ',')]
    states: Vec<String>,
    /// List only torrents with this text in their names, or as the beginning of their info-hashes.
    #[arg(long)]
    text: Option<String>,
    /// List only torrents with this label; may be repeated: then with all of them.
    #[arg(long = "label", value_name = "LABEL", value_delimiter = ',')]
    labels: Vec<String>,
    /// List only torrents of this category; an empty name stands for none.
    #[arg(long, value_name = "NAME")]
    category: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

impl ListArgs {
    /// Returns the query of the API.
    fn query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        if !self.json {
            query.append_pair("fields", FIELDS);
        }
        let options = [("sort", &self.sort), ("text", &self.text), ("category", &self.category)];
        for (name, value) in options {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        for state in &self.states {
            query.append_pair("state", state);
        }
        for label in &self.labels {
            query.append_pair("label", label);
        }
        query.finish()
    }
}

/// The fields that the table needs.
const FIELDS: &str = "info_hash,name,size,progress,state,speed,peer_count,error,limit_reached,eta,ratio,wanted,left";

pub(in crate::cli) async fn run(args: ListArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let path = match args.stopped {
        true => STOPPED.to_owned(),
        false => format!("/api/v1/torrents?{}", args.query()),
    };
    let torrents = daemon.get(&path).await?;
    match (args.json, args.stopped) {
        (true, _) => print_json(&torrents),
        (false, true) => tables::stopped(&torrents),
        (false, false) => {
            table(&torrents).print("no torrents");
            if torrents.as_array().is_some_and(|torrents| !torrents.is_empty()) {
                say!("{}", total(&torrents));
            }
        }
    }
    Ok(Outcome::Done)
}

/// Sums up torrents: `40 torrents, 12 complete, 31 %, 1.20 MiB/s down, 0 B/s up`.
fn total(torrents: &Value) -> String {
    let all = || torrents.as_array().into_iter().flatten();
    let sum = |value: fn(&Value) -> u64| all().map(value).fold(0, u64::saturating_add);
    let [wanted, left] = [
        sum(|torrent| number(&torrent["wanted"])),
        sum(|torrent| number(&torrent["left"])),
    ];
    let share = (wanted > 0).then(|| format!("{} %", output::percent(wanted.saturating_sub(left), wanted)));
    let complete = all().filter(|torrent| torrent["left"] == 0).count();
    let parts = [
        Some(output::count(all().count(), "torrent")),
        Some(format!("{complete} complete")),
        share,
        Some(format!(
            "{} down",
            output::speed(sum(|torrent| number(&torrent["speed"]["download"])))
        )),
        Some(format!(
            "{} up",
            output::speed(sum(|torrent| number(&torrent["speed"]["upload"])))
        )),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Returns a table with one line per torrent, and below it the phase of its stop, or the reason if it has failed, is
/// blocked or has seeded enough. Names are shortened to the width of the terminal, if there is one.
fn table(torrents: &Value) -> Table<10> {
    let columns = [
        ("NAME", Alignment::Left),
        ("SIZE", Alignment::Right),
        ("DONE", Alignment::Right),
        ("STATE", Alignment::Left),
        ("DOWN", Alignment::Right),
        ("UP", Alignment::Right),
        ("ETA", Alignment::Right),
        ("RATIO", Alignment::Right),
        ("PEERS", Alignment::Right),
        ("HASH", Alignment::Left),
    ];
    let mut table = Table::shortened_at(0, columns);
    // Size, peers, hash and so on: commands take names too, and the state is needed most.
    table.dropped_first = &[1, 8, 9, 7, 5, 6, 4, 2];
    for torrent in torrents.as_array().into_iter().flatten() {
        let eta = torrent["eta"].as_u64().map(std::time::Duration::from_secs);
        let ratio = torrent["ratio"].as_f64();
        table.row([
            printable(text(&torrent["name"])),
            bytes(&torrent["size"]),
            percent(&torrent["progress"]),
            short_state(text(&torrent["state"])),
            speed(&torrent["speed"]["download"]),
            speed(&torrent["speed"]["upload"]),
            eta.map_or_else(|| "-".to_owned(), output::duration),
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
            number(&torrent["peer_count"]).to_string(),
            tables::short_hash(&torrent["info_hash"]),
        ]);
        if let Some((_, phase)) = text(&torrent["state"]).split_once('/') {
            table.note(&format!("phase of the stop: {}", printable(phase)));
        }
        if let Some(error) = torrent["error"].as_str() {
            table.note(&printable(error));
        }
        if let Some(limit) = torrent["limit_reached"].as_str() {
            table.note(&format!("its seeding limit is reached: {}", printable(limit)));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use console::measure_text_width;
    use ecs_torrent::TorrentState;
    use serde_json::json;

    use super::*;

    /// The list fits a terminal of 80 columns with each state and the longest numbers. A narrower one shows fewer
    /// columns.
    #[test]
    fn a_list_fits_the_terminal_in_every_state() {
        for state in TorrentState::ALL {
            let torrents = json!([{
                "info_hash": "0c1f3b05aef04c0a1c0e0c5e9a4d1f0a9d1f3b05", "size": 1023_u64 << 20, "progress": 1.0,
                "state": state.name(), "speed": {"download": 1023_u64 << 20, "upload": 1023_u64 << 20},
                "peer_count": 1000, "name": "a name that is much longer than the terminal is wide, whatever else it has",
                "eta": 3599, "ratio": 123.456, "wanted": 100, "left": 0,
            }]);
            let table = table(&torrents);
            for width in [50, 80, 100] {
                let lines = table.lines(Some(width));
                assert!(
                    lines.iter().all(|line| measure_text_width(line) <= width),
                    "{width}: {lines:#?}"
                );
                let (head, row) = (&lines[0], &lines[1]);
                let phase = state.name().split_once('/').map(|(_, phase)| phase);
                let notes: Vec<_> = lines[2..].iter().map(|note| note.split(": ").nth(1)).collect();
                assert_eq!(notes, phase.map(Some).into_iter().collect::<Vec<_>>(), "{lines:#?}");
                assert!(
                    head.contains("STATE") && row.contains(&short_state(state.name())),
                    "{lines:#?}"
                );
                assert!(row.starts_with("a name th"), "{lines:#?}");
            }
            let narrow = &table.lines(Some(80))[0];
            assert!(
                ["DOWN", "UP", "ETA", "DONE"].iter().all(|name| narrow.contains(name)),
                "{narrow}"
            );
            assert!(table.lines(None)[0].ends_with("HASH"));
        }
    }

    #[test]
    fn usual_numbers_leave_room_for_the_hash() {
        let torrents = json!([{
            "info_hash": "0c1f3b05aef04c0a1c0e0c5e9a4d1f0a9d1f3b05", "size": 5 << 20, "progress": 0.5,
            "state": "downloading", "speed": {"download": 1 << 20, "upload": 0}, "peer_count": 7,
            "name": "debian-13.1.0-amd64-netinst.iso", "eta": 42, "ratio": 0.25, "wanted": 100, "left": 50,
        }]);
        let lines = table(&torrents).lines(Some(80));
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>(),
            [
                "debian-13.1.0-a…",
                "50.0",
                "%",
                "downloading",
                "1.00",
                "MiB/s",
                "-",
                "42",
                "s",
                "0.25",
                "0c1f3b05aef0"
            ],
            "{lines:#?}"
        );
        assert_eq!(
            total(&torrents),
            "1 torrent, 0 complete, 50 %, 1.00 MiB/s down, 0 B/s up"
        );
    }
}
