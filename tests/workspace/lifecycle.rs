//! A torrent's state: the place where it is assigned, and the edges between states as ARCHITECTURE.md shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use ecs_torrent::TorrentState;
use syn::visit::{self, Visit};

use crate::features::{INSERTIONS, is_item_of_tests, is_test_file, parse, type_of};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The folders of all code that may add systems to an engine.
const SOURCES: [&str; 4] = ["components/src", "engine/src", "systems/src", "app"];

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

/// Components that decide a torrent's state or are its state, and the features that write them. The first is the
/// feature that owns the component.
const WRITERS: [(&str, &[&str]); 12] = [
    ("Desired", &["lifecycle"]),
    ("Layout", &["lifecycle"]),
    ("Readiness", &["lifecycle"]),
    ("Have", &["having"]),
    ("WantedPieces", &["files"]),
    ("Fault", &["lifecycle"]),
    ("Blocked", &["lifecycle"]),
    ("Waiting", &["queue"]),
    ("AwaitingSession", &["lifecycle"]),
    ("Moving", &["lifecycle"]),
    ("Stopping", &["lifecycle"]),
    ("Lifecycle", &["lifecycle"]),
];

/// Components that some code has mutable access to, inserts or removes, outside its tests.
#[derive(Default)]
struct Written(BTreeSet<String>);

impl Written {
    fn add(&mut self, path: &syn::Path) {
        self.0.extend(type_of(path));
    }

    fn add_type(&mut self, written: &syn::Type) {
        match written {
            syn::Type::Path(path) => self.add(&path.path),
            syn::Type::Tuple(tuple) => tuple.elems.iter().for_each(|element| self.add_type(element)),
            _ => {}
        }
    }

    fn add_types(&mut self, arguments: &syn::AngleBracketedGenericArguments) {
        for argument in &arguments.args {
            if let syn::GenericArgument::Type(written) = argument {
                self.add_type(written);
            }
        }
    }

    fn add_value(&mut self, value: &syn::Expr) {
        match value {
            syn::Expr::Path(path) => self.add(&path.path),
            syn::Expr::Struct(built) => self.add(&built.path),
            syn::Expr::Call(call) => self.add_value(&call.func),
            syn::Expr::Tuple(tuple) => tuple.elems.iter().for_each(|element| self.add_value(element)),
            _ => {}
        }
    }
}

impl<'c> Visit<'c> for Written {
    fn visit_item(&mut self, item: &'c syn::Item) {
        if !is_item_of_tests(item) {
            visit::visit_item(self, item);
        }
    }

    fn visit_type_reference(&mut self, reference: &'c syn::TypeReference) {
        if reference.mutability.is_some() {
            self.add_type(&reference.elem);
        }
        visit::visit_type_reference(self, reference);
    }

    fn visit_type_path(&mut self, path: &'c syn::TypePath) {
        let last = path.path.segments.last();
        if let Some(smart) = last.filter(|segment| segment.ident == "Mut")
            && let syn::PathArguments::AngleBracketed(arguments) = &smart.arguments
        {
            self.add_types(arguments);
        }
        visit::visit_type_path(self, path);
    }

    /// A component that is built may be inserted by its variable's name.
    fn visit_expr_call(&mut self, call: &'c syn::ExprCall) {
        if let syn::Expr::Path(built) = &*call.func
            && let Some(name) = built
                .path
                .get_ident()
                .filter(|name| name.to_string().starts_with(char::is_uppercase))
        {
            self.0.insert(name.to_string());
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_expr_struct(&mut self, built: &'c syn::ExprStruct) {
        self.0.extend(built.path.get_ident().map(syn::Ident::to_string));
        visit::visit_expr_struct(self, built);
    }

    fn visit_expr_method_call(&mut self, call: &'c syn::ExprMethodCall) {
        let method = call.method.to_string();
        if INSERTIONS.contains(&method.as_str()) {
            call.args.iter().for_each(|value| self.add_value(value));
        }
        if let Some(types) = call.turbofish.as_ref().filter(|_| WRITES.contains(&method.as_str())) {
            self.add_types(types);
        }
        visit::visit_expr_method_call(self, call);
    }
}

/// Methods that give mutable access to the component between the angle brackets, or remove it.
const WRITES: [&str; 6] = ["get_mut", "entry", "modify_component", "remove", "try_remove", "take"];

fn written(items: &[syn::Item]) -> BTreeSet<String> {
    let mut found = Written::default();
    items.iter().for_each(|item| found.visit_item(item));
    found.0
}

#[test]
fn written_components_are_found() {
    let code = "
        #[cfg(test)]
        mod tests { fn f(x: &mut Tested) {} }
        struct Q { a: &'static mut A, b: Option<&'static mut facts::B>, unwritten: &'static U }
        fn f(mut c: Query<(Entity, &U, Option<&mut C>)>, d: Mut<'_, D>) {
            commands.entity(e).insert((E, F { x: 1 }, G(2))).remove::<(H, I)>().insert(J::Variant);
            world.get_mut::<K>(e);
            let l = L(5);
        }";
    let names = ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J", "K", "L"];
    let found = written(&syn::parse_file(code).unwrap().items);
    assert!(names.iter().all(|name| found.contains(*name)), "{found:?}");
    assert!(!found.contains("U") && !found.contains("Tested"), "{found:?}");
}

/// Each fact and the state is written by the features that own it; the state by one system alone.
#[test]
fn each_fact_is_written_by_one_feature() {
    let systems = Path::new(ROOT).join("systems/src");
    let mut writers: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    for folder in SOURCES {
        let mut files = Vec::new();
        sources(&Path::new(ROOT).join(folder), &mut files);
        for path in files {
            for component in written(&parse(&path)) {
                writers.entry(component).or_default().insert(path.clone());
            }
        }
    }
    for (component, expected) in WRITERS {
        let feature = |path: &PathBuf| {
            let inner = path.strip_prefix(&systems).ok().map(|inner| inner.with_extension(""));
            let first = inner.as_ref().and_then(|inner| inner.iter().next()?.to_str());
            first.map_or_else(|| path.display().to_string(), str::to_owned)
        };
        let found = writers
            .get(component)
            .unwrap_or_else(|| panic!("nobody writes {component}"));
        let features: BTreeSet<String> = found.iter().map(feature).collect();
        assert_eq!(
            features,
            expected.iter().map(|name| (*name).to_owned()).collect(),
            "{component}"
        );
    }
    let only = systems.join("lifecycle/deriving.rs");
    assert_eq!(writers["Lifecycle"], [only].into());
}

/// Methods that register the thing whose type is between the angle brackets. A required component is registered for
/// each kind of entity: its key has both types.
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
        if !is_item_of_tests(item) {
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
    for folder in SOURCES {
        sources(&Path::new(ROOT).join(folder), &mut files);
    }
    let (mut seen, mut again) = (BTreeSet::new(), Vec::new());
    // The guide's examples are plugins from outside: one that comes before the engine's own registers what it needs.
    files.retain(|path| !path.starts_with(Path::new(ROOT).join("app/guide")));
    for path in files {
        for name in registered(&parse(&path)) {
            if !seen.insert(name.clone()) {
                again.push(format!("{name}, again in {}", path.display()));
            }
        }
    }
    assert_eq!(again, [""; 0]);
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
