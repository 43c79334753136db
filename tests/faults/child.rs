//! Tests that need a process of their own, because they look at what a process has only one of.

use std::io::Write;
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
    // Told to those who run the tests, too, who see nothing of a test that passes.
    let skipped = text.lines().filter(|line| line.starts_with("SKIPPED "));
    skipped.for_each(|line| drop(writeln!(std::io::stderr(), "{line}")));
    false
}

/// A line of what the kernel tells of this process, in bytes.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}

/// The most memory that this process has had in use at a time.
pub fn peak_memory() -> u64 {
    status("VmHWM:")
}

/// How much more memory this process has in use at a time while `work` is done than before. For tests in a process of
/// their own.
pub fn memory_growth(work: impl FnOnce()) -> u64 {
    // Sets the peak back to what is in use now (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS:");
    assert!(peak_memory() < before + (4 << 20), "the peak is set back");
    work();
    peak_memory().saturating_sub(before)
}
