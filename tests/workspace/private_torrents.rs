//! The private flag (BEP 27) is read in few places, so that no feature has a rule of its own.

use std::path::Path;

use syn::visit::{self, Visit};
use walkdir::WalkDir;

/// Files that read or write the private flag of a torrent.
const READERS: [&str; 11] = [
    // The rule, which all features apply.
    "systems/src/dialing/allowing.rs",
    // The flag comes from the metainfo.
    "systems/src/lifecycle/adding.rs",
    "systems/src/lifecycle/metadata.rs",
    // The session keeps the flag, also of metadata that cannot be used.
    "components/src/session.rs",
    "systems/src/lifecycle/opening/loading.rs",
    "systems/src/sessions/saving.rs",
    // Stopped torrents keep it for commands that name hashes.
    "systems/src/lifecycle/stopping.rs",
    "systems/src/ownership.rs",
    "systems/src/ownership/survey.rs",
    // Users see it.
    "systems/src/stats.rs",
    // Whether the trackers may be edited.
    "components/src/torrent.rs",
];

/// Whether code uses a field with the name `private`.
#[derive(Default)]
struct UsesFlag(bool);

impl<'a> Visit<'a> for UsesFlag {
    fn visit_expr_field(&mut self, field: &'a syn::ExprField) {
        self.0 |= matches!(&field.member, syn::Member::Named(name) if name == "private");
        visit::visit_expr_field(self, field);
    }
}

fn uses_flag(text: &str) -> bool {
    let mut found = UsesFlag::default();
    found.visit_file(&syn::parse_file(text).unwrap());
    found.0
}

#[test]
fn only_one_rule_depends_on_whether_a_torrent_is_private() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["components/src", "systems/src", "engine/src"].map(|folder| WalkDir::new(root.join(folder)));
    let files = folders.into_iter().flatten().map(Result::unwrap);
    let mut found = Vec::new();
    for file in files.filter(|file| file.path().extension().is_some_and(|extension| extension == "rs")) {
        let path = file.path().strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let is_test = path.ends_with("tests.rs") || path.contains("/tests/");
        if !is_test && uses_flag(&std::fs::read_to_string(file.path()).unwrap()) {
            found.push(path);
        }
    }
    found.sort();
    let mut expected = READERS.map(str::to_owned);
    expected.sort();
    assert_eq!(found, expected);
    assert!(uses_flag("fn f(t: &Torrent) -> bool { !t.private }") && !uses_flag("fn private() {}"));
}
