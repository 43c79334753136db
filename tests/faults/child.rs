//! Tests that need a process of their own, because they look at what a process has only one of.

use std::process::Command;

/// Set in the process of such a test: its name.
const MARK: &str = "ECS_TORRENT_FAULTS_CHILD";

/// Runs the test called `name` in a process of its own, with `variables`; true in that process, where the test is to
/// do its work. Elsewhere the work is done when this returns.
pub fn is_own_process(name: &str, variables: impl FnOnce() -> Vec<(&'static str, String)>) -> bool {
    if std::env::var(MARK).is_ok_and(|mark| mark == name) {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--include-ignored"]);
    command.env(MARK, name).envs(variables());
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{name} is no test:\n{text}");
    eprintln!("{text}");
    false
}
