//! Skipping tests that cannot run everywhere: prints their names, and fails where all tests are required.

#![allow(dead_code, reason = "shared by test binaries that each use a part")]

/// Returns whether a test that cannot run counts as a failure, as in CI.
pub fn is_everything_required() -> bool {
    std::env::var("REQUIRE_ALL").is_ok_and(|value| value == "1")
}

/// Reports that `test` is skipped, and why.
///
/// # Panics
/// If all tests are required.
pub fn skip(test: &str, why: &str) {
    assert!(!is_everything_required(), "REQUIRE_ALL=1, but {test} cannot run: {why}");
    use std::io::Write;
    // Bypasses the test harness, which shows the output of failed tests only.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
