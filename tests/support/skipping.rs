//! Skipping tests that cannot run everywhere: prints their names, and fails where all tests are required.

#![allow(dead_code, reason = "shared by test binaries that each use a part")]

/// Returns whether a test that cannot run counts as a failure, as in CI.
pub fn is_everything_required() -> bool {
    std::env::var("REQUIRE_ALL").is_ok_and(|value| value == "1")
}

/// Returns whether a test is skipped because the program is not optimized, and reports it. The release sweep of
/// `.ci/run` runs these tests, so that `REQUIRE_ALL` does not count them.
pub fn is_unoptimized(test: &str, why: &str) -> bool {
    let is_skipped = cfg!(debug_assertions);
    if is_skipped {
        print(test, &format!("{why}; `cargo test --release` runs it"));
    }
    is_skipped
}

/// Reports that `test` is skipped, and why.
///
/// # Panics
/// If all tests are required.
pub fn skip(test: &str, why: &str) {
    assert!(!is_everything_required(), "REQUIRE_ALL=1, but {test} cannot run: {why}");
    print(test, why);
}

fn print(test: &str, why: &str) {
    use std::io::Write;
    // Bypasses the test harness, which shows the output of failed tests only.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
