//! The output of `config default`: every setting with its documentation from the code.

use std::collections::{BTreeMap, BTreeSet};

use ecs_torrent::components::settings::Numbers;
use ecs_torrent::config::{Config, DEFAULT};
use ron::extensions::Extensions;
use ron::ser::PrettyConfig;

const SOURCES: [&str; 8] = [
    include_str!("../../components/src/settings.rs"),
    include_str!("../../components/src/settings/seeding.rs"),
    include_str!("../../components/src/settings/queue.rs"),
    include_str!("../../components/src/settings/readers.rs"),
    include_str!("../../app/daemon/settings.rs"),
    include_str!("../../app/automation/settings.rs"),
    include_str!("../../app/config/log.rs"),
    include_str!("../../app/config.rs"),
];

/// A field of a struct, or a variant of an enum.
struct Member {
    name: String,
    /// Type of a field.
    kind: String,
    documentation: Vec<String>,
}

/// Collects the members of every type in the sources, by type name.
fn types() -> BTreeMap<String, Vec<Member>> {
    let mut types: BTreeMap<String, Vec<Member>> = BTreeMap::new();
    for source in SOURCES {
        let mut inside: Option<String> = None;
        let mut documentation = Vec::new();
        for line in source.lines() {
            let item = line
                .strip_prefix("pub struct ")
                .or_else(|| line.strip_prefix("pub enum "));
            if let Some(name) = item.and_then(|item| item.strip_suffix(" {")) {
                inside = Some(name.to_owned());
            } else if line == "}" {
                inside = None;
            }
            let Some(name) = &inside else {
                documentation.clear();
                continue;
            };
            let line = line.trim();
            if let Some(text) = line.strip_prefix("///") {
                documentation.push(text.trim().to_owned());
            } else if let Some(member) = line.strip_suffix(',') {
                let member = member.strip_prefix("pub ").unwrap_or(member);
                let (name_of_member, kind) = member.split_once(": ").unwrap_or((member, ""));
                types.entry(name.clone()).or_default().push(Member {
                    name: name_of_member.to_owned(),
                    kind: kind.to_owned(),
                    documentation: std::mem::take(&mut documentation),
                });
            }
        }
    }
    types
}

/// Formats comment lines of at most 100 columns.
fn comment(indent: usize, words: &str) -> String {
    let mut text = String::new();
    let mut line = String::new();
    for word in words.split_whitespace() {
        if !line.is_empty() && indent + line.len() + word.len() > 96 {
            text += &format!("{:indent$}//{line}\n", "");
            line.clear();
        }
        line += " ";
        line += word;
    }
    text + &format!("{:indent$}//{line}\n", "")
}

/// Removes the link syntax from documentation: link targets and brackets.
fn plain(documentation: &[String]) -> String {
    let mut text = documentation.join(" ");
    while let (Some(begin), Some(end)) = (text.find("](Self::"), text.find("[`")) {
        let close = begin + text[begin..].find(')').unwrap();
        text = format!("{}{}{}", &text[..end], &text[end + 1..begin], &text[close + 1..]);
    }
    text
}

/// Returns the possible values of a field whose type is an enum.
fn choices(kind: &str, types: &BTreeMap<String, Vec<Member>>) -> Option<String> {
    let variants = types.get(kind)?;
    let described = variants
        .iter()
        .map(|variant| format!("{}: {}", variant.name, variant.documentation.join(" ")));
    Some(format!("One of {}", described.collect::<Vec<_>>().join(" ")))
}

fn commented_default() -> String {
    let types = types();
    let options = ron::Options::default().with_default_extension(Extensions::IMPLICIT_SOME);
    let values = options
        .to_string_pretty(&Config::default(), PrettyConfig::new())
        .unwrap();
    let mut text = "\
// Every setting with its default. A configuration names only what it changes, for example:
//     (storage: (download_dir: \"/srv/torrents\"), api: (listen: \"127.0.0.1:7000\"))
// Units come last in the names: _s seconds, _ms milliseconds, _us microseconds, _bytes bytes.
"
    .to_owned();
    let numbers = Config::default().numbers();
    let mut section = "Config".to_owned();
    let mut section_name = String::new();
    for line in values.lines() {
        let indent = line.len() - line.trim_start().len();
        let name = line.trim_start().split_once(": ").map(|(name, _)| name);
        let owner = if indent == 4 { "Config" } else { section.as_str() };
        if let (4 | 8, Some(name)) = (indent, name) {
            let member = types[owner].iter().find(|member| member.name == name);
            let member = member.unwrap_or_else(|| panic!("{owner} has {name}"));
            assert!(!member.documentation.is_empty(), "{owner}.{name} is not documented");
            if indent == 4 && section != "Config" {
                text.push('\n');
            }
            text += &comment(indent, &plain(&member.documentation));
            let number = numbers
                .iter()
                .find(|number| (number.section, number.name) == (&section_name, name));
            if indent == 4 {
                section.clone_from(&member.kind);
                name.clone_into(&mut section_name);
            } else if let Some(number) = number {
                let (least, most) = (number.range.start(), number.range.end());
                text += &comment(indent, &format!("Range {least} to {most}."));
            } else if let Some(choices) = choices(&member.kind, &types) {
                text += &comment(indent, &choices);
            }
        }
        text += line;
        text.push('\n');
    }
    text
}

/// Every number has a range, because a value outside could make the engine hang or panic.
#[test]
fn every_number_has_a_range() {
    let config = Config::default();
    let mut numbers = BTreeSet::new();
    let sections = serde_json::to_value(&config).unwrap();
    for (section, settings) in sections.as_object().unwrap() {
        for (name, value) in settings.as_object().unwrap() {
            if value.is_number() {
                numbers.insert(format!("{section}.{name}"));
            }
        }
    }
    let with_range = config
        .numbers()
        .into_iter()
        .map(|number| format!("{}.{}", number.section, number.name));
    assert_eq!(numbers, with_range.collect(), "see components/src/settings/ranges.rs");
}

/// The output of the command matches the code.
#[test]
fn the_default_configuration_is_true() {
    let expected = commented_default();
    if std::env::var_os("UPDATE").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/app/config/default.ron");
        std::fs::write(path, expected).unwrap();
    } else {
        assert_eq!(DEFAULT, expected, "run it with UPDATE=1, and read what has changed");
    }
}
