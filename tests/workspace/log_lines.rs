//! Log lines name their torrent and their peer, in fields that are called the same everywhere.

use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use walkdir::WalkDir;

pub const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Files whose lines are about the engine: its runner, and backends that know streams, sockets and folders only.
const ENGINE_WIDE: [&str; 11] = [
    "engine/src/layers.rs",
    "systems/src/limits.rs",
    "systems/src/settings.rs",
    "engine/src/backends.rs",
    "engine/src/backends/net/listen.rs",
    "engine/src/backends/net/multicast.rs",
    "engine/src/backends/net/udp.rs",
    "engine/src/backends/staging.rs",
    "engine/src/backends/state.rs",
    "engine/src/core.rs",
    "engine/src/runner.rs",
];

/// Lines without a torrent in files of features: the file, the line's message, and why it names no torrent.
const WITHOUT_TORRENT: [(&str, &str, &str); 12] = [
    (
        "engine/src/backends/disk/moving.rs",
        "files of a move that failed are left: {error}",
        "the error has the path; the backend does not know torrents",
    ),
    (
        "engine/src/backends/disk/suffixes.rs",
        "a complete file keeps its suffix: {error}",
        "the error has the path; the backend does not know torrents",
    ),
    (
        "systems/src/accepting.rs",
        "connection refused",
        "the peer has not said yet which torrent it wants",
    ),
    (
        "systems/src/lifecycle/resuming_all.rs",
        "a torrent cannot be resumed: {reason}",
        "the reason has a path with the info-hash; the name is unknown",
    ),
    (
        "systems/src/ownership/survey.rs",
        "the files of stopped torrents are not known: {error}",
        "about all stopped torrents",
    ),
    (
        "systems/src/ownership/survey.rs",
        "the files of a stopped torrent are not known: {error}",
        "the error has a path with the info-hash; the name is unknown",
    ),
    (
        "systems/src/dht/entering.rs",
        "the saved table of the DHT is damaged",
        "about the DHT's node",
    ),
    (
        "systems/src/dht/entering.rs",
        "a bootstrap host of the DHT was not found",
        "about the DHT's node",
    ),
    (
        "systems/src/following.rs",
        "the saved links are damaged",
        "about all links",
    ),
    (
        "systems/src/following.rs",
        "the saved links cannot be read: {}",
        "about all links",
    ),
    (
        "systems/src/lsd.rs",
        "torrents announced in the local network",
        "about several torrents",
    ),
    (
        "systems/src/lsd.rs",
        "a message of local discovery ignored",
        "the message names no torrent that can be read",
    ),
];

/// The fields of lines that name a torrent or a peer. Another name for one of these things makes a log hard to search.
const FIELDS: [&str; 17] = [
    "torrent",
    "peer",
    "piece",
    "tracker",
    "family",
    "client",
    "participant",
    "phase",
    "event",
    "peers",
    "reason",
    "error",
    "retry_in",
    "source",
    "count",
    "limit",
    "action",
];

/// Field of a refused connection.
const BAN: &str = "is_banned";

/// A call of a macro of `tracing`.
pub struct Line {
    file: String,
    pub fields: Vec<Field>,
    pub message: String,
}

pub struct Field {
    pub name: String,
    value: String,
}

#[test]
fn lines_about_a_torrent_or_a_peer_name_it() {
    let lines: Vec<Line> = ["engine", "systems", "components"]
        .iter()
        .flat_map(|krate| lines_of(krate))
        .collect();
    assert!(lines.len() > 40, "only {} lines found", lines.len());
    let mut faults = Vec::new();
    for line in &lines {
        let Line { file, message, .. } = line;
        let torrent = line.fields.iter().find(|field| field.name == "torrent");
        let is_wide = ENGINE_WIDE.contains(&file.as_str());
        let is_listed = WITHOUT_TORRENT
            .iter()
            .any(|(path, text, _)| path == file && text == message);
        match torrent {
            Some(field) if !field.value.contains("label") => {
                faults.push(format!("{file}: \"{message}\": `torrent` is not a `label()`"));
            }
            None if !is_wide && !is_listed => faults.push(format!("{file}: \"{message}\": no field `torrent`")),
            _ => {}
        }
        let others = line.fields.iter().map(|field| field.name.as_str());
        let unknown = others.filter(|name| !FIELDS.contains(name) && *name != BAN);
        faults.extend(
            unknown
                .filter(|_| !is_wide)
                .map(|name| format!("{file}: \"{message}\": field `{name}`")),
        );
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    for (file, text, _) in WITHOUT_TORRENT {
        let exists = lines.iter().any(|line| line.file == file && line.message == text);
        assert!(exists, "{file} no longer has the line \"{text}\"");
    }
}

fn lines_of(krate: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    for (file, code) in sources_of(krate) {
        let tokens: TokenStream = code.parse().unwrap_or_else(|error| panic!("{file}: {error}"));
        collect(&file, tokens, &mut lines);
    }
    lines
}

/// Returns the files of a crate with their code, which ends where the tests begin: at the foot of the file.
pub fn sources_of(krate: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = WalkDir::new(root.join(krate).join("src"))
        .into_iter()
        .map(Result::unwrap);
    let sources = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "rs"));
    let with_code = sources.map(|source| {
        let text = std::fs::read_to_string(source.path()).unwrap();
        let file = source.path().strip_prefix(root).unwrap().to_str().unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        (file.to_owned(), code.to_owned())
    });
    with_code.collect()
}

fn collect(file: &str, tokens: TokenStream, lines: &mut Vec<Line>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let TokenTree::Group(group) = token else { continue };
        let before: Vec<String> = tokens[at.saturating_sub(5)..at]
            .iter()
            .map(ToString::to_string)
            .collect();
        let [.., path, _, _, level, mark] = before.as_slice() else {
            collect(file, group.stream(), lines);
            continue;
        };
        if path == "tracing" && mark == "!" && LEVELS.contains(&level.as_str()) {
            lines.push(parse(file, group.stream()));
        } else {
            collect(file, group.stream(), lines);
        }
    }
}

/// Reads the arguments of a line: `name = value`, `%name`, `?name` or `name`, and a message with its own arguments.
pub fn parse(file: &str, tokens: TokenStream) -> Line {
    let mut line = Line {
        file: file.to_owned(),
        fields: Vec::new(),
        message: String::new(),
    };
    for argument in split(tokens) {
        let first = argument[0].to_string();
        if first.starts_with('"') {
            line.message = first.trim_matches('"').to_owned();
            break;
        }
        let is_short = matches!(first.as_str(), "%" | "?");
        let name = argument[usize::from(is_short)].to_string();
        let value = argument.iter().map(ToString::to_string).collect();
        line.fields.push(Field { name, value });
    }
    line
}

/// Splits arguments at their commas.
fn split(tokens: TokenStream) -> Vec<Vec<TokenTree>> {
    let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ',');
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let arguments = tokens.split(is_comma).map(<[TokenTree]>::to_vec);
    arguments.filter(|argument| !argument.is_empty()).collect()
}

#[test]
fn a_line_is_read_with_its_fields() {
    let code = "fn f() { if a { tracing::warn!(torrent = %x.label(), %error, n, \"lost {}\", a.b(c)) } }";
    let mut lines = Vec::new();
    collect("f.rs", code.parse().unwrap(), &mut lines);
    let [line] = &lines[..] else {
        panic!("{} lines", lines.len())
    };
    let names: Vec<&str> = line.fields.iter().map(|field| field.name.as_str()).collect();
    assert_eq!(
        (names.as_slice(), line.message.as_str()),
        (&["torrent", "error", "n"][..], "lost {}")
    );
    assert_eq!(line.fields[0].value, "torrent=%x.label()");
}
