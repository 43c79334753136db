//! Tests that cannot run everywhere: they say so by name, and fail where everything has to run.

#![allow(dead_code, reason = "shared by test binaries that each use a part")]

/// Whether a test that cannot run is a failure, as in CI.
pub fn is_everything_required() -> bool {
    std::env::var("REQUIRE_ALL").is_ok_and(|value| value == "1")
}

/// Says that `test` does not run here, and why.
///
/// # Panics
/// Where everything has to run.
pub fn skip(test: &str, why: &str) {
    assert!(!is_everything_required(), "REQUIRE_ALL=1, but {test} cannot run: {why}");
    use std::io::Write;
    // Around the test harness, which shows what tests print only where they fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
