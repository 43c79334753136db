//! The sources of the features: each component is built and removed by one feature only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Expr, GenericArgument, Item, PathArguments};

/// Components that several features build, and why.
const SHARED: [(&str, &str); 2] = [
    ("Peer", "a connection begins with a dial or an accept"),
    (
        "PeerOf",
        "a dialed peer has its torrent at once, an accepted one with the handshake",
    ),
];

/// Methods of entities that insert components.
pub const INSERTIONS: [&str; 3] = ["insert", "insert_if_new", "try_insert"];

/// Methods of entities that remove the components between the angle brackets.
const REMOVALS: [&str; 6] = [
    "remove",
    "remove_if",
    "remove_with_requires",
    "try_remove",
    "try_remove_if",
    "take",
];

/// Returns the Rust files below a folder, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            false => {}
        }
    }
    files.sort();
    files
}

/// Returns the items of a file; none of a file of tests.
pub fn parse(file: &Path) -> Vec<Item> {
    let text = std::fs::read_to_string(file).unwrap();
    let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let is_tests = syntax.attrs.iter().any(is_of_tests);
    if is_tests { Vec::new() } else { syntax.items }
}

/// Returns the type that a path names, as itself, by an associated function or by a variant. A variant of an enum may
/// have the name of a component.
pub fn type_of(path: &syn::Path) -> Option<String> {
    let mut names = path.segments.iter().rev().map(|segment| segment.ident.to_string());
    let is_type = |name: &String| name.starts_with(char::is_uppercase);
    let (last, before) = (names.next(), names.next().filter(is_type));
    before.or(last)
}

/// Whether an item is compiled for tests only.
pub fn is_item_of_tests(item: &Item) -> bool {
    let attributes = match item {
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        _ => return false,
    };
    attributes.iter().any(is_of_tests)
}

fn is_of_tests(attribute: &Attribute) -> bool {
    let tokens = attribute.meta.require_list().map(|list| list.tokens.to_string());
    attribute.path().is_ident("test") || (attribute.path().is_ident("cfg") && tokens.is_ok_and(|text| text == "test"))
}

/// The names of the structs and enums that are components.
#[derive(Default)]
struct Components(BTreeSet<String>);

impl Components {
    fn add(&mut self, name: &syn::Ident, attributes: &[Attribute]) {
        let derives = attributes
            .iter()
            .filter(|attribute| attribute.path().is_ident("derive"));
        let lists = derives.filter_map(|derive| derive.meta.require_list().ok());
        let tokens: String = lists.map(|list| list.tokens.to_string()).collect();
        let mut derived = tokens.split(|c: char| !c.is_alphanumeric());
        if derived.any(|word| word == "Component") {
            self.0.insert(name.to_string());
        }
    }
}

impl<'s> Visit<'s> for Components {
    fn visit_item_struct(&mut self, item: &'s syn::ItemStruct) {
        self.add(&item.ident, &item.attrs);
    }

    fn visit_item_enum(&mut self, item: &'s syn::ItemEnum) {
        self.add(&item.ident, &item.attrs);
    }
}

/// The components that a file builds, removes or requires.
struct Owned<'c> {
    components: &'c BTreeSet<String>,
    found: BTreeSet<String>,
}

impl Owned<'_> {
    /// Adds the component that a path names, as itself or as the type of an associated function.
    fn add(&mut self, path: &syn::Path) {
        self.found
            .extend(type_of(path).filter(|name| self.components.contains(name)));
    }

    fn add_arguments(&mut self, arguments: &syn::AngleBracketedGenericArguments) {
        for argument in &arguments.args {
            if let GenericArgument::Type(types) = argument {
                self.add_types(types);
            }
        }
    }

    /// Adds an inserted component without fields, or those of a tuple: its name alone builds it.
    fn add_markers(&mut self, inserted: &Expr) {
        match inserted {
            Expr::Path(marker) => self.add(&marker.path),
            Expr::Tuple(tuple) => tuple.elems.iter().for_each(|element| self.add_markers(element)),
            _ => {}
        }
    }

    /// Adds the component that a type names, or those of a tuple.
    fn add_types(&mut self, types: &syn::Type) {
        match types {
            syn::Type::Path(component) => self.add(&component.path),
            syn::Type::Tuple(tuple) => tuple.elems.iter().for_each(|element| self.add_types(element)),
            syn::Type::Paren(inner) => self.add_types(&inner.elem),
            _ => {}
        }
    }
}

impl<'s> Visit<'s> for Owned<'_> {
    fn visit_item(&mut self, item: &'s Item) {
        if !is_item_of_tests(item) {
            visit::visit_item(self, item);
        }
    }

    fn visit_expr_call(&mut self, call: &'s syn::ExprCall) {
        if let Expr::Path(function) = &*call.func {
            self.add(&function.path);
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_expr_struct(&mut self, built: &'s syn::ExprStruct) {
        self.add(&built.path);
        visit::visit_expr_struct(self, built);
    }

    fn visit_expr_method_call(&mut self, call: &'s syn::ExprMethodCall) {
        if INSERTIONS.iter().any(|insertion| call.method == insertion) {
            call.args.iter().for_each(|inserted| self.add_markers(inserted));
        }
        if let Some(arguments) = &call.turbofish {
            match call.method.to_string().as_str() {
                method if REMOVALS.contains(&method) => self.add_arguments(arguments),
                // The component that is required is the second argument; anybody may extend the first one.
                "register_required_components" | "register_required_components_with" => {
                    let mut required = arguments.clone();
                    required.args = required.args.into_iter().skip(1).collect();
                    self.add_arguments(&required);
                }
                _ => {}
            }
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_path_arguments(&mut self, _: &'s PathArguments) {}
}

/// Whether a file belongs to tests only. Its module is declared with `#[cfg(test)]` in the file above.
pub fn is_test_file(file: &Path) -> bool {
    file.file_stem()
        .is_some_and(|stem| stem == "tests" || stem == "testing")
}

/// Returns the features that build, remove or require each component.
fn owners(repository: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let systems = repository.join("systems/src");
    let mut components = Components::default();
    for file in files(&systems).iter().chain(&files(&repository.join("components/src"))) {
        parse(file).iter().for_each(|item| components.visit_item(item));
    }
    let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files(&systems).into_iter().filter(|file| !is_test_file(file)) {
        let inner = file.strip_prefix(&systems).unwrap().with_extension("");
        let feature = inner
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .to_owned();
        let mut owned = Owned {
            components: &components.0,
            found: BTreeSet::new(),
        };
        parse(&file).iter().for_each(|item| owned.visit_item(item));
        for component in owned.found {
            owners.entry(component).or_default().insert(feature.clone());
        }
    }
    owners
}

#[test]
fn components_of_some_code_are_found() {
    let components = ["A", "B", "C", "D", "E", "F", "G", "H"].map(str::to_owned).into();
    let mut owned = Owned {
        components: &components,
        found: BTreeSet::new(),
    };
    let code = "
        fn f() {
            commands.entity(e).remove::<(A, feature::B)>().insert((C, D(1), G::NAME.len()));
            commands.entity(e).try_remove::<E>();
            app.register_required_components::<H, F>();
            let query = world.query::<(G, H)>().iter().filter(G::is_full);
        }";
    owned.visit_file(&syn::parse_file(code).unwrap());
    assert_eq!(owned.found, ["A", "B", "C", "D", "E", "F"].map(str::to_owned).into());
}

#[test]
fn each_component_is_built_and_removed_by_one_feature() {
    let owners = owners(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(
        owners.get("Picker").is_some_and(|features| features.len() == 1),
        "the test sees nothing: {owners:?}"
    );
    let is_allowed = |component: &str| SHARED.iter().any(|(shared, _)| *shared == component);
    let shared: Vec<_> = owners
        .iter()
        .filter(|(component, features)| features.len() > 1 && !is_allowed(component))
        .collect();
    assert!(
        shared.is_empty(),
        "a feature attaches its own components (required components, observers, messages): {shared:#?}"
    );
    for (component, _) in SHARED {
        assert!(owners[component].len() > 1, "{component} is shared no longer");
    }
}
