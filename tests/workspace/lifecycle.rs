//! A torrent's state: where it is assigned, and the edges between states as ARCHITECTURE.md shows them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ecs_torrent::TorrentState;
use syn::visit::{self, Visit};

use crate::features::{is_of_tests, is_test_file, parse};

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

/// Methods that register the thing whose type is between the angle brackets. A required component is registered for each
/// kind of entity: its key has both types.
const REGISTRATIONS: [&str; 5] = [
    "init_resource",
    "get_resource_or_init",
    "add_message",
    "register_required_components",
    "register_required_components_with",
];

/// The things that some code registers, outside its tests.
#[derive(Default)]
struct Registered(Vec<String>);

impl<'c> Visit<'c> for Registered {
    fn visit_item(&mut self, item: &'c syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !attributes.iter().any(is_of_tests) {
            visit::visit_item(self, item);
        }
    }

    fn visit_expr_method_call(&mut self, call: &'c syn::ExprMethodCall) {
        let is_registration = REGISTRATIONS.iter().any(|name| call.method == name);
        if let Some(types) = call.turbofish.as_ref().filter(|_| is_registration) {
            self.0.push(names(types));
        }
        visit::visit_expr_method_call(self, call);
    }
}

/// Returns types without their paths.
fn names(types: &syn::AngleBracketedGenericArguments) -> String {
    let names = types.args.iter().map(|argument| match argument {
        syn::GenericArgument::Type(syn::Type::Path(path)) => {
            let last = path.path.segments.last().unwrap();
            match &last.arguments {
                syn::PathArguments::AngleBracketed(inner) => format!("{}<{}>", last.ident, names(inner)),
                _ => last.ident.to_string(),
            }
        }
        _ => "_".to_owned(),
    });
    names.collect::<Vec<_>>().join(", ")
}

fn registered(items: &[syn::Item]) -> Vec<String> {
    let mut found = Registered::default();
    items.iter().for_each(|item| found.visit_item(item));
    found.0
}

/// Each resource, message and required component is registered by one plugin.
#[test]
fn each_thing_is_registered_once() {
    let mut files = Vec::new();
    sources(&Path::new(ROOT).join("systems/src"), &mut files);
    let mut seen = BTreeSet::new();
    for path in files {
        for name in registered(&parse(&path)) {
            assert!(seen.insert(name.clone()), "{name}, again in {}", path.display());
        }
    }
    assert!(seen.len() > 100, "the registrations were found: {}", seen.len());
    for name in ["ExtensionRegistry", "Torrent, PexTorrent", "PeerState, Requests"] {
        assert!(seen.contains(name), "{name} is registered: {seen:?}");
    }
}

#[test]
fn registrations_are_found() {
    let code = "
        #[cfg(test)]
        mod tests { fn f() { world.init_resource::<Registry>(); } }
        impl Plugin for P { fn build(&self, app: &mut App) {
            app.world_mut().get_resource_or_init::<peer::Registry>().register(A);
            app.init_resource::<WorkList<peer::Fetch>>();
            app.register_required_components::<Peer, Outbox>();
            app.register_required_components_with::<Peer, Inbox>(|| Inbox(1));
            app.world_mut().resource_mut::<Registry>().register(B);
        } }";
    let expected = ["Registry", "WorkList<Fetch>", "Peer, Outbox", "Peer, Inbox"];
    assert_eq!(registered(&syn::parse_file(code).unwrap().items), expected);
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
