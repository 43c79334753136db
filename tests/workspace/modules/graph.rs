//! The imports between the files of a crate.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

use super::source::{Crate, Module, Segments};

/// Files, and the names that one uses of another.
pub struct Graph {
    imports: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Graph {
    pub fn new(source: &Crate) -> Self {
        let mut imports: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        let file_of = |id: usize| source.modules[id].file.display().to_string();
        for (user, module) in source.modules.iter().enumerate() {
            for path in &module.used {
                let Some(target) = source.find(user, path, 0) else {
                    continue;
                };
                let is_vocabulary = !target.is_function && source.is_above(target.module, user);
                if source.modules[target.module].file != module.file && !is_vocabulary {
                    let names = imports.entry((file_of(user), file_of(target.module))).or_default();
                    names.insert(target.name);
                }
            }
        }
        Self { imports }
    }

    /// Returns the files of each circle.
    pub fn circles(&self) -> Vec<Vec<&str>> {
        let edges = self.imports.keys().map(|(from, to)| (from.as_str(), to.as_str()));
        let graph: DiGraphMap<&str, ()> = edges.collect();
        let mut circles: Vec<Vec<&str>> = tarjan_scc(&graph).into_iter().filter(|files| files.len() > 1).collect();
        circles.iter_mut().for_each(|circle| circle.sort_unstable());
        circles
    }

    /// Lists the imports among the files of a circle.
    pub fn describe(&self, circle: &[&str], folder: &Path) -> String {
        let inside =
            |((from, to), _): &(&(String, String), _)| circle.contains(&from.as_str()) && circle.contains(&to.as_str());
        let short = |file: &str| file.replace(&format!("{}/", folder.display()), "");
        let lines = self.imports.iter().filter(inside).map(|((from, to), names)| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            format!("  {} uses {} of {}\n", short(from), names.join(", "), short(to))
        });
        lines.collect()
    }
}

/// The definition of a name.
struct Target {
    module: usize,
    name: String,
    is_function: bool,
}

/// More re-exports in a row than any name has.
const MAX_DEPTH: u32 = 16;

impl Crate {
    /// Finds the definition that a path in a module refers to, if it is in this crate and not a module.
    fn find(&self, user: usize, path: &[String], depth: u32) -> Option<Target> {
        if depth > MAX_DEPTH {
            return None;
        }
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.find_in(0, rest, depth),
            "self" => self.find_in(user, rest, depth),
            "super" => {
                let mut module = self.modules[user].parent?;
                let mut rest = rest;
                while rest.first().is_some_and(|segment| segment == "super") {
                    module = self.modules[module].parent?;
                    rest = &rest[1..];
                }
                self.find_in(module, rest, depth)
            }
            _ => self.find_in(user, path, depth),
        }
    }

    /// Finds the definition that a path refers to, seen from a module whose names it begins with.
    fn find_in(&self, id: usize, path: &[String], depth: u32) -> Option<Target> {
        let (name, rest) = path.split_first()?;
        let module: &Module = &self.modules[id];
        if let Some(child) = module.children.get(name) {
            return self.find_in(*child, rest, depth);
        }
        if let Some(is_function) = module.defined.get(name) {
            return Some(Target {
                module: id,
                name: name.clone(),
                is_function: *is_function,
            });
        }
        let joined = |path: &Segments, rest: &[String]| -> Segments { path.iter().chain(rest).cloned().collect() };
        if let Some(origin) = module.imported.get(name) {
            // A path that begins with the name that it imports is of another crate.
            return match origin.first() == Some(name) && !module.children.contains_key(name) {
                true => None,
                false => self.find(id, &joined(origin, rest), depth + 1),
            };
        }
        let mut globs = module.globs.iter();
        globs.find_map(|glob| self.find(id, &joined(glob, path), depth + 1))
    }

    /// Whether a module contains another one.
    fn is_above(&self, module: usize, other: usize) -> bool {
        let mut parent = self.modules[other].parent;
        while let Some(id) = parent {
            if id == module {
                return true;
            }
            parent = self.modules[id].parent;
        }
        false
    }
}
