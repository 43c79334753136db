//! Names of torrent states: the program compares states as values, and one place has their names.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ecs_torrent::TorrentState;
use ecs_torrent::components::lifecycle::SavedState;
use proc_macro2::{TokenStream, TokenTree};
use walkdir::WalkDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Texts of `app` that are also the name of a state or the beginning of one: the file, the text, the number of times,
/// and its meaning there.
const OTHERS: [(&str, &str, usize, &str); 21] = [
    (
        "app/cli/client.rs",
        "paused",
        2,
        "the report of a command, and a parameter",
    ),
    ("app/cli/client.rs", "stopped", 1, "the report of a command"),
    ("app/cli/client/limits.rs", "seeding", 3, "the name of a field"),
    ("app/cli/demo.rs", "downloading", 1, "the title of a progress bar"),
    ("app/cli/demo/tracker.rs", "stopped", 1, "an event of BEP 3"),
    ("app/cli/searching.rs", "failed", 1, "the status of a tracker"),
    ("app/cli/transfer.rs", "blocked", 1, "the title of an event"),
    ("app/cli/transfer/report.rs", "failed", 1, "the text of a progress bar"),
    (
        "app/cli/transfer/report.rs",
        "stopping",
        1,
        "the text of a progress bar",
    ),
    ("app/daemon.rs", "stopping", 1, "a phase of the daemon"),
    ("app/daemon/adding.rs", "paused", 3, "a parameter"),
    ("app/daemon/event_log.rs", "blocked", 1, "the name of an event"),
    ("app/daemon/event_log.rs", "failed", 1, "the name of an event"),
    ("app/daemon/event_log.rs", "paused", 1, "the name of an event"),
    ("app/daemon/event_log.rs", "queued", 1, "the name of an event"),
    ("app/daemon/event_log.rs", "stopped", 1, "the name of an event"),
    ("app/cli/client/tables.rs", "moving", 1, "the name of a field"),
    ("app/migration/qbittorrent.rs", "paused", 2, "a key of qBittorrent"),
    ("app/migration/transmission.rs", "paused", 1, "a key of Transmission"),
    ("app/selection.rs", "moving", 1, "the name of a field"),
    ("app/selection.rs", "seeding", 1, "the name of a field"),
];

/// A query parameter, which is also the name of a state.
const PARAMETER: (&str, &str, usize) = ("app/daemon/listing.rs", "stopped", 2);

/// Whether a text is the name of a state, or of all phases of a stop.
fn is_state(text: &str) -> bool {
    let is_stopping = text == "stopping" || text.starts_with("stopping/");
    is_stopping || text == SavedState::Stopped.name() || text.parse::<TorrentState>().is_ok()
}

/// Counts the texts of some code that are names of states. Tests stand at the foot of a file.
fn count(code: &str) -> BTreeMap<String, usize> {
    let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut found = BTreeMap::new();
    collect(code.parse().unwrap(), &mut found);
    found
}

fn collect(tokens: TokenStream, found: &mut BTreeMap<String, usize>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => collect(group.stream(), found),
            TokenTree::Literal(literal) => {
                let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) else {
                    continue;
                };
                if is_state(&text.value()) {
                    *found.entry(text.value()).or_default() += 1;
                }
            }
            _ => {}
        }
    }
}

#[test]
fn states_are_compared_as_values() {
    let mut found = BTreeMap::new();
    for entry in WalkDir::new(Path::new(ROOT).join("app"))
        .into_iter()
        .map(Result::unwrap)
    {
        let file = entry.path().strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned();
        if !file.ends_with(".rs") || file.ends_with("tests.rs") {
            continue;
        }
        let texts = count(&fs::read_to_string(entry.path()).unwrap());
        found.extend(texts.into_iter().map(|(text, count)| ((file.clone(), text), count)));
    }
    let others = OTHERS.iter().map(|(file, text, count, _)| (*file, *text, *count));
    let expected: BTreeMap<_, _> = others
        .chain([PARAMETER])
        .map(|(file, text, count)| ((file.to_owned(), text.to_owned()), count))
        .collect();
    assert_eq!(
        found, expected,
        "a state is read with `TorrentState::from_str` and compared as a value"
    );
}

#[test]
fn the_description_of_the_api_has_the_states_of_the_code() {
    let text = fs::read_to_string(Path::new(ROOT).join("app/daemon/openapi.json")).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let schemas = &document["components"]["schemas"];
    let shown: Vec<&str> = schemas["State"]["enum"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(serde_json::Value::as_str)
        .collect();
    let (stopped, listed) = shown.split_last().unwrap();
    assert_eq!(listed, TorrentState::ALL.map(TorrentState::name));
    assert_eq!(*stopped, SavedState::Stopped.name());
    let stopped = &schemas["StoppedTorrent"]["properties"]["state"]["const"];
    assert_eq!(stopped, SavedState::Stopped.name());
}

#[test]
fn names_of_states_are_found() {
    let code =
        r#"fn f() { if matches!(a, "paused") || a.starts_with("stopping") { json!({"b": "stopped", "c": "other"}) } }"#;
    let found: Vec<(String, usize)> = count(code).into_iter().collect();
    assert_eq!(
        found,
        ["paused", "stopped", "stopping"].map(|name| (name.to_owned(), 1))
    );
    assert!(count("#[cfg(test)]\nmod tests { const A: &str = \"paused\"; }").is_empty());
    assert_eq!(count("const A: &str = \"stopping/release\";").len(), 1);
}
