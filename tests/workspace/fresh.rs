//! The README's program in a fresh package, as its reader would start one.

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
fn the_program_of_the_readme_compiles_in_a_fresh_package() {
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
