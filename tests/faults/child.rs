//! Tests that need their own process because they measure process-wide state.

use std::io::Write;
use std::process::Command;

/// Environment variable that marks the process of such a test; its value is the test's name.
const MARK: &str = "ECS_TORRENT_FAULTS_CHILD";

/// Runs the test `name` in its own process with `variables`. Returns true in that process, where the test does its
/// work; elsewhere the work is done when this returns.
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
    // Also prints skipped tests for the user, because the output of a passing test is hidden.
    let skipped = text.lines().filter(|line| line.starts_with("SKIPPED "));
    skipped.for_each(|line| drop(writeln!(std::io::stderr(), "{line}")));
    false
}

/// A value of `/proc/self/status`, in bytes.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}

/// Peak memory of this process.
pub fn peak_memory() -> u64 {
    status("VmHWM:")
}

/// Measures how far the peak memory of this process grows while `work` runs. Only for tests in their own process.
pub fn memory_growth(work: impl FnOnce()) -> u64 {
    // Resets the peak to the memory in use now (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS:");
    assert!(peak_memory() < before + (4 << 20), "the peak is set back");
    work();
    peak_memory().saturating_sub(before)
}
