//! The README's program and the plugin guide's examples in a fresh package, as their reader would start one.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

const README: &str = include_str!("../../README.md");

/// Returns the README's first block of code that is a whole program.
fn program() -> &'static str {
    let blocks = README.split("```rust\n").skip(1);
    let mut programs = blocks.filter_map(|block| block.split_once("```")).map(|(code, _)| code);
    programs
        .find(|code| code.contains("fn main()"))
        .expect("README.md contains a program")
}

/// The package depends on ecs-torrent and nothing else, so the derive macros have to find Bevy through the prelude.
#[test]
fn the_program_of_the_readme_and_the_guide_compile_in_a_fresh_package() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let package = tempfile::tempdir().unwrap();
    let manifest = format!(
        "[package]\nname = \"fresh\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[dependencies]\n\
         ecs-torrent = {{ path = {root:?}, default-features = false }}\n\n[workspace]\n"
    );
    std::fs::write(package.path().join("Cargo.toml"), manifest).unwrap();
    // The versions that are on this machine, so that no network is needed.
    std::fs::copy(root.join("Cargo.lock"), package.path().join("Cargo.lock")).unwrap();
    std::fs::create_dir(package.path().join("src")).unwrap();
    std::fs::write(package.path().join("src/main.rs"), program()).unwrap();
    let mut library = String::new();
    for entry in std::fs::read_dir(root.join("app/guide")).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            std::fs::copy(&path, package.path().join("src").join(entry.file_name())).unwrap();
            writeln!(library, "pub mod {};", path.file_stem().unwrap().display()).unwrap();
        }
    }
    assert_eq!(library.lines().count(), 7, "{library}");
    std::fs::write(package.path().join("src/lib.rs"), library).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--quiet"])
        .current_dir(package.path())
        // The dependencies stay compiled for the next run.
        .env(
            "CARGO_TARGET_DIR",
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("fresh-package"),
        )
        .env("RUSTFLAGS", "-D warnings")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
