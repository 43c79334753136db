//! Imports between the modules of a crate: they form no circle.
//!
//! Each file is a module, and a name that a file uses is an import from the file that defines the name; re-exports are
//! looked through. One kind of import does not count: a file may use the types, traits and constants that a module
//! above it (its parent, or a parent of that) defines, because they are the vocabulary of the whole folder. A parent
//! that uses a child, and a child that calls a function of a parent, do count. Tests do not.

mod graph;
mod source;

use std::collections::BTreeSet;
use std::path::Path;

use self::graph::Graph;
use self::source::Crate;

/// The root file of each crate.
const ROOTS: [&str; 6] = [
    "components/protocol/src/lib.rs",
    "components/src/lib.rs",
    "engine/src/lib.rs",
    "systems/src/lib.rs",
    "app/lib.rs",
    "app/main.rs",
];

/// Circles that are being removed. A file that is in no circle any more has to leave this list.
const KNOWN: [&[&str]; 0] = [];

fn graph(root: &Path) -> Graph {
    Graph::new(&Crate::read(root))
}

#[test]
fn modules_do_not_import_each_other_in_circles() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut in_circles = BTreeSet::new();
    let mut new = String::new();
    for root in ROOTS {
        let graph = graph(&repository.join(root));
        for circle in graph.circles() {
            let name = |file: &&str| {
                file.strip_prefix(&format!("{}/", repository.display()))
                    .unwrap()
                    .to_owned()
            };
            let files: BTreeSet<String> = circle.iter().map(name).collect();
            let is_known = |known: &&[&str]| files.iter().all(|file| known.contains(&file.as_str()));
            if !KNOWN.iter().any(is_known) {
                new += &format!(
                    "a circle of {} files:\n{}",
                    files.len(),
                    graph.describe(&circle, repository)
                );
            }
            in_circles.extend(files);
        }
    }
    assert!(new.is_empty(), "{new}");
    for file in KNOWN.concat() {
        assert!(
            in_circles.contains(file),
            "{file} is in no circle any more: remove it from KNOWN"
        );
    }
}

/// Writes files of a crate, and returns its circles.
fn circles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let graph = graph(&folder.path().join("lib.rs"));
    let name = |file: &&str| {
        file.strip_prefix(&format!("{}/", folder.path().display()))
            .unwrap()
            .to_owned()
    };
    let circles = graph.circles();
    circles.iter().map(|circle| circle.iter().map(name).collect()).collect()
}

#[test]
fn a_circle_is_found() {
    let a = "use crate::b::f; pub struct A; pub fn g() { f(); }";
    let b = "pub fn f() { let _ = super::a::A; }";
    let found = circles_of(&[("lib.rs", "mod a; mod b;"), ("a.rs", a), ("b.rs", b)]);
    assert_eq!(found, [["a.rs", "b.rs"]]);
    let alone = circles_of(&[("lib.rs", "mod a; mod b;"), ("a.rs", a), ("b.rs", "pub fn f() {}")]);
    assert!(alone.is_empty(), "{alone:?}");
}

#[test]
fn a_circle_through_a_module_name_or_inside_a_macro_is_found() {
    let a = "use crate::b; pub const A: u8 = 1; pub fn g() { b::f(); }";
    let b = "pub fn f() { println!(\"{}\", crate::a::A); }";
    let found = circles_of(&[("lib.rs", "mod a; mod b;"), ("a.rs", a), ("b.rs", b)]);
    assert_eq!(found, [["a.rs", "b.rs"]]);
}

/// A re-export hides no circle and makes none.
#[test]
fn re_exports_are_looked_through() {
    let lib = "mod a; mod b; pub use self::a::A;";
    let a = "pub struct A; pub fn g() { crate::b::f(); }";
    let hidden = circles_of(&[
        ("lib.rs", lib),
        ("a.rs", a),
        ("b.rs", "use super::A; pub fn f() { A; }"),
    ]);
    assert_eq!(hidden, [["a.rs", "b.rs"]]);
    let door = "mod inner; pub use self::inner::Inner; pub struct Door;";
    let inner = "use crate::c::C; pub struct Inner(C);";
    let c = "use crate::door::Door; pub struct C(Door);";
    let files = [
        ("lib.rs", "mod c; mod door;"),
        ("door.rs", door),
        ("door/inner.rs", inner),
        ("c.rs", c),
    ];
    assert!(circles_of(&files).is_empty());
}

/// A child may use the types of a module above it, but not call it.
#[test]
fn a_child_may_name_what_its_parent_defines_and_not_call_it() {
    let parent = "mod child; use self::child::f; pub struct Parent; pub fn g() { f(); }";
    let names = [
        ("lib.rs", parent),
        ("child.rs", "use super::Parent; pub fn f() { Parent; }"),
    ];
    assert!(circles_of(&names).is_empty());
    let calls = [("lib.rs", parent), ("child.rs", "use super::g; pub fn f() { g(); }")];
    assert_eq!(circles_of(&calls), [["child.rs", "lib.rs"]]);
}

#[test]
fn imports_of_tests_do_not_count() {
    let a = "pub fn g() { crate::b::f(); }";
    let b = "pub fn f() {} #[cfg(test)] mod tests { #[test] fn t() { crate::a::g(); } }";
    assert!(circles_of(&[("lib.rs", "mod a; mod b;"), ("a.rs", a), ("b.rs", b)]).is_empty());
}
