//! The modules of a crate, read from its sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree, Visibility};

/// The segments of a path.
pub type Segments = Vec<String>;

/// The modules of a crate; the first is the root.
pub struct Crate {
    pub modules: Vec<Module>,
}

/// A module: a file, or an inline module in one.
#[derive(Default)]
pub struct Module {
    pub file: PathBuf,
    pub parent: Option<usize>,
    pub children: BTreeMap<String, usize>,
    /// The names that the module defines, and whether each is a function.
    pub defined: BTreeMap<String, bool>,
    /// The names that the module imports, with their paths.
    pub imported: BTreeMap<String, Segments>,
    /// Modules of which all names are imported.
    pub globs: Vec<Segments>,
    /// Names that are imported for others: re-exports.
    pub re_exported: BTreeSet<String>,
    /// The paths that the module's code uses, imports of its own included.
    pub used: BTreeSet<Segments>,
}

impl Crate {
    /// Reads a crate from its root file.
    pub fn read(root: &Path) -> Self {
        let mut read = Self { modules: Vec::new() };
        let folder = root.parent().unwrap().to_owned();
        read.file(root.to_owned(), folder, None);
        read
    }

    /// Reads a file; modules that it declares are in `folder`.
    fn file(&mut self, file: PathBuf, folder: PathBuf, parent: Option<usize>) -> usize {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.module(file, folder, parent, syntax.items)
    }

    fn module(&mut self, file: PathBuf, folder: PathBuf, parent: Option<usize>, items: Vec<Item>) -> usize {
        let id = self.modules.len();
        self.modules.push(Module {
            file: file.clone(),
            parent,
            ..Module::default()
        });
        for item in items.into_iter().filter(|item| !is_of_tests(attributes(item))) {
            let Item::Mod(module) = item else {
                self.modules[id].add(&item);
                continue;
            };
            let name = module.ident.to_string();
            let inner = folder.join(&name);
            let child = match module.content {
                Some((_, items)) => self.module(file.clone(), inner, Some(id), items),
                None => {
                    let flat = folder.join(format!("{name}.rs"));
                    let path = if flat.exists() { flat } else { inner.join("mod.rs") };
                    self.file(path, inner, Some(id))
                }
            };
            self.modules[id].children.insert(name, child);
        }
        id
    }
}

impl Module {
    fn add(&mut self, item: &Item) {
        let (name, is_function) = match item {
            Item::Fn(item) => (&item.sig.ident, true),
            Item::Const(item) => (&item.ident, false),
            Item::Enum(item) => (&item.ident, false),
            Item::Static(item) => (&item.ident, false),
            Item::Struct(item) => (&item.ident, false),
            Item::Trait(item) => (&item.ident, false),
            Item::Type(item) => (&item.ident, false),
            Item::Union(item) => (&item.ident, false),
            Item::Use(item) => {
                let is_re_export = !matches!(item.vis, Visibility::Inherited);
                return self.import(&item.tree, Segments::new(), is_re_export);
            }
            _ => return self.visit_item(item),
        };
        self.defined.insert(name.to_string(), is_function);
        self.visit_item(item);
    }

    fn import(&mut self, tree: &UseTree, mut path: Segments, is_re_export: bool) {
        let mut name = |name: &str, mut path: Segments, last: &str| {
            if last != "self" {
                path.push(last.to_owned());
            }
            if is_re_export {
                self.re_exported.insert(name.to_owned());
            } else {
                self.used.insert(path.clone());
            }
            self.imported.insert(name.to_owned(), path);
        };
        match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                self.import(&tree.tree, path, is_re_export);
            }
            UseTree::Name(tree) if tree.ident == "self" => {
                let own = path.last().cloned().unwrap_or_default();
                name(&own, path, "self");
            }
            UseTree::Name(tree) => name(&tree.ident.to_string(), path, &tree.ident.to_string()),
            UseTree::Rename(tree) => name(&tree.rename.to_string(), path, &tree.ident.to_string()),
            UseTree::Glob(_) => self.globs.push(path),
            UseTree::Group(tree) => {
                for tree in &tree.items {
                    self.import(tree, path.clone(), is_re_export);
                }
            }
        }
    }

    /// Takes the paths in the tokens of a macro call.
    fn use_tokens(&mut self, tokens: TokenStream) {
        let mut path = Segments::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 && !path.is_empty() {
                        self.used.insert(std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => self.use_tokens(group.stream()),
                _ => colons = 0,
            }
        }
        if !path.is_empty() {
            self.used.insert(path);
        }
    }
}

impl<'s> Visit<'s> for Module {
    fn visit_path(&mut self, path: &'s syn::Path) {
        let segments = path.segments.iter().map(|segment| segment.ident.to_string());
        self.used.insert(segments.collect());
        visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'s syn::ItemUse) {
        self.import(&item.tree, Segments::new(), false);
    }

    fn visit_macro(&mut self, call: &'s syn::Macro) {
        self.use_tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}

fn is_of_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let condition = attribute.path().is_ident("cfg").then(|| attribute.meta.require_list());
        condition.is_some_and(|list| {
            let tokens = list.unwrap().tokens.to_string();
            tokens.split(|c: char| !c.is_alphanumeric()).any(|word| word == "test") && !tokens.contains("not")
        })
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
