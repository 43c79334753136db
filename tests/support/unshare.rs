//! Tests that run in namespaces of their own.

use std::process::Command;

/// Returns whether a program can be run with these arguments of `unshare`.
pub fn can_unshare(namespaces: &[&str], program: &[&str]) -> bool {
    let probe = Command::new("unshare").args(namespaces).args(program).output();
    probe.is_ok_and(|output| output.status.success())
}

/// Runs the test of this name again, in namespaces of its own. In that process, the environment variable `mark` is set.
pub fn run_again(test: &str, namespaces: &[&str], mark: &str) {
    let this = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command
        .args(namespaces)
        .arg(this)
        .args([test, "--exact", "--nocapture"]);
    let output = command.env(mark, "1").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{test} is no test:\n{text}");
}
