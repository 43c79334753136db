//! Functions of features are short enough to be read at once, and functions whose names ask a question change nothing.

use std::path::Path;

use syn::visit::{self, Visit};
use walkdir::WalkDir;

/// Maximum number of lines of a function in `systems/src`, signature included. Longer systems gather, decide and apply
/// in one place, and are split into these steps.
const MAX_LINES: usize = 70;

/// Words that may precede `fn`, in addition to the visibility.
const QUALIFIERS: [&str; 5] = ["const", "async", "unsafe", "extern", "\"C\""];

/// Beginnings of names that ask a question.
const QUESTIONS: [&str; 4] = ["is_", "has_", "may_", "can_"];

/// The functions of one file, outside its tests.
#[derive(Default)]
struct Functions {
    /// Name and number of lines.
    found: Vec<(String, usize)>,
    /// Functions whose names ask a question, and that change something.
    changing: Vec<String>,
}

impl Functions {
    fn of_text(text: &str) -> Self {
        let mut functions = Self {
            found: lengths(text),
            ..Self::default()
        };
        functions.visit_file(&syn::parse_file(text).unwrap());
        functions
    }

    fn add(&mut self, signature: &syn::Signature) {
        let name = signature.ident.to_string();
        let mut changes = Changes(false);
        signature.inputs.iter().for_each(|input| changes.visit_fn_arg(input));
        if changes.0 && QUESTIONS.iter().any(|question| name.starts_with(question)) {
            self.changing.push(name);
        }
    }

    fn too_long(&self) -> impl Iterator<Item = &(String, usize)> {
        self.found.iter().filter(|(_, lines)| *lines > MAX_LINES)
    }
}

/// Returns the name and number of lines of each function. Formatted code closes a function at the indent of its `fn`,
/// and a module of tests at the start of a line.
fn lengths(text: &str) -> Vec<(String, usize)> {
    let mut is_in_tests = false;
    let is_code = |line: &&str| {
        is_in_tests |= line.starts_with("mod tests {");
        let is_code = !is_in_tests;
        is_in_tests &= *line != "}";
        is_code
    };
    let lines: Vec<&str> = text.lines().filter(is_code).collect();
    let functions = lines.iter().enumerate().filter_map(|(first, line)| {
        let (before, after) = line.split_once("fn ")?;
        let is_signature = before
            .split_whitespace()
            .all(|word| word.starts_with("pub") || word.ends_with(')') || QUALIFIERS.contains(&word));
        let name: String = after
            .chars()
            .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
            .collect();
        if !is_signature || line.ends_with('}') {
            return None;
        }
        let indent = &before[..before.len() - before.trim_start().len()];
        let is_end = |line: &&str| line.strip_prefix(indent) == Some("}");
        let count = lines[first..].iter().position(is_end)? + 1;
        Some((name, count))
    });
    functions.collect()
}

/// Whether a parameter can be used to change something.
struct Changes(bool);

impl<'a> Visit<'a> for Changes {
    fn visit_receiver(&mut self, receiver: &'a syn::Receiver) {
        self.0 |= matches!(receiver.kind, syn::ReceiverKind::Reference(.., Some(_)));
        visit::visit_receiver(self, receiver);
    }

    fn visit_type_reference(&mut self, reference: &'a syn::TypeReference) {
        self.0 |= reference.mutability.is_some();
        visit::visit_type_reference(self, reference);
    }

    fn visit_path_segment(&mut self, segment: &'a syn::PathSegment) {
        self.0 |= segment.ident == "ResMut" || segment.ident == "Mut";
        visit::visit_path_segment(self, segment);
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    let is_test = |attribute: &syn::Attribute| {
        let argument = attribute.parse_args::<syn::Ident>();
        attribute.path().is_ident("cfg") && argument.is_ok_and(|argument| argument == "test")
    };
    attributes.iter().any(is_test)
}

impl<'a> Visit<'a> for Functions {
    fn visit_item_mod(&mut self, module: &'a syn::ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        self.add(&function.sig);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        self.add(&function.sig);
        visit::visit_impl_item_fn(self, function);
    }
}

/// Reads the files of a folder, except files of tests. Returns what `list` finds in each, with the file's name, and the
/// number of functions.
fn search(folder: &str, list: impl Fn(&Functions) -> Vec<String>) -> (Vec<String>, usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut faults, mut count) = (Vec::new(), 0);
    for file in WalkDir::new(root.join(folder)).into_iter().map(Result::unwrap) {
        let path = file.path().strip_prefix(root).unwrap();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let is_tests = stem.ends_with("tests") || stem == "testing";
        if is_tests || path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let functions = Functions::of_text(&std::fs::read_to_string(file.path()).unwrap());
        count += functions.found.len();
        let found = list(&functions).into_iter();
        faults.extend(found.map(|fault| format!("{}: {fault}", path.display())));
    }
    (faults, count)
}

#[test]
fn functions_of_features_are_at_most_70_lines_long() {
    let (faults, count) = search("systems/src", |functions| {
        let found = functions.too_long();
        found.map(|(name, lines)| format!("{name}: {lines} lines")).collect()
    });
    assert!(count > 500, "only {count} functions found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn functions_whose_names_ask_a_question_change_nothing() {
    for folder in ["components", "engine/src", "systems/src", "app"] {
        let (faults, count) = search(folder, |functions| functions.changing.clone());
        assert!(count > 200, "only {count} functions found in {folder}");
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}

#[test]
fn a_long_function_is_found() {
    let long = |lines: usize| format!("fn long(\n    a: u8,\n) {{\n{}}}\n", "    call();\n".repeat(lines - 4));
    let method = format!(
        "impl T {{\n    {}}}\n",
        long(71).trim_end().replace('\n', "\n    ") + "\n"
    );
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", long(71));
    let found = |text: &str| Functions::of_text(text).too_long().cloned().collect::<Vec<_>>();
    assert_eq!(found(&long(70)), []);
    assert_eq!(found(&long(71)), [("long".to_owned(), 71)]);
    assert_eq!(found(&method).len(), 1);
    assert_eq!(found(&tests), []);
    assert_eq!(found(&format!("{tests}async {}", long(71))).len(), 1);
}

#[test]
fn a_question_that_changes_something_is_found() {
    let found = |text: &str| Functions::of_text(text).changing;
    assert_eq!(found("impl T { fn is_a(&mut self) -> bool { true } }"), ["is_a"]);
    assert_eq!(found("fn has_a(a: ResMut<A>) -> bool { true }"), ["has_a"]);
    assert_eq!(found("fn can_a(a: &[&mut A]) -> bool { true }"), ["can_a"]);
    let fine =
        "impl T { fn is_a(&self, mut a: Res<A>) -> bool { true } fn set(&mut self) {} fn may_b(mut self) -> Self {} }";
    assert!(found(fine).is_empty());
}
