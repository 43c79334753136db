//! A torrent's state: where it is assigned, and the edges between states as ARCHITECTURE.md shows them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ecs_torrent::TorrentState;

use crate::features::is_test_file;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test_file(&path) {
            found.push(path);
        }
    }
}

/// One system assigns `Lifecycle`: no other code has mutable access to the component or inserts one.
#[test]
fn the_state_is_assigned_in_one_place() {
    let mut files = Vec::new();
    for folder in ["components/src", "engine/src", "systems/src", "app"] {
        sources(&Path::new(ROOT).join(folder), &mut files);
    }
    let writes = [
        "&mut Lifecycle",
        "&'static mut Lifecycle",
        "Mut<Lifecycle>",
        "insert(Lifecycle",
    ];
    let is_writing = |path: &&PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        writes.iter().any(|write| text.contains(write))
    };
    let writers: Vec<_> = files.iter().filter(is_writing).collect();
    let only = Path::new(ROOT).join("systems/src/lifecycle/deriving.rs");
    assert_eq!(writers, [&only]);
}

/// Each resource, message and required component is registered by one plugin.
#[test]
fn each_thing_is_registered_once() {
    let mut files = Vec::new();
    sources(&Path::new(ROOT).join("systems/src"), &mut files);
    let mut seen = BTreeSet::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split_once("#[cfg(test)]").map_or(&*text, |(code, _)| code);
        for call in [
            "init_resource::<",
            "add_message::<",
            "register_required_components::<Torrent, ",
        ] {
            for rest in text.split(call).skip(1) {
                let name = rest.split_once(">()").map_or(rest, |(name, _)| name);
                let name = name.rsplit_once("::").map_or(name, |(_, name)| name);
                assert!(seen.insert(name.to_owned()), "{name}, again in {}", path.display());
            }
        }
    }
    assert!(seen.len() > 50, "the registrations were found: {}", seen.len());
}

/// The edges of the code, as rows of a table.
fn table() -> String {
    let mut text = String::from("| state | may become |\n|---|---|\n");
    for state in TorrentState::ALL {
        let next = TorrentState::ALL.into_iter().filter(|next| *next != state);
        let next: Vec<String> = next
            .filter(|next| state.may_become(*next))
            .map(|next| format!("`{next}`"))
            .collect();
        text += &format!("| `{state}` | {} |\n", next.join(", "));
    }
    text
}

const BEGIN: &str = "<!-- states: written by `UPDATE=1 cargo test --test workspace` -->\n";
const END: &str = "<!-- end of states -->";

#[test]
fn the_edges_in_the_architecture_are_those_of_the_code() {
    let path = Path::new(ROOT).join("ARCHITECTURE.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text
        .split_once(BEGIN)
        .expect("ARCHITECTURE.md marks where the states begin");
    let (shown, after) = rest
        .split_once(END)
        .expect("ARCHITECTURE.md marks where the states end");
    let table = table();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    } else {
        assert_eq!(shown, table, "run it with UPDATE=1, and read what has changed");
    }
}
