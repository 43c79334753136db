//! Cost of reading adversarial torrent files.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use wait4::{ResUse, Wait4};

use crate::command::command;
use crate::shapes::SHAPES;

/// Size of each torrent file in bytes.
const BYTES: usize = 10_000_000;

/// Maximum resident memory of the whole program in bytes, beyond what a small torrent takes. The program itself is
/// left out, because how much of it is resident depends on the build and the machine.
const MEMORY: u64 = 90 << 20;

/// Maximum CPU time. The promise is one second for a release build on an idle machine; quadratic work takes minutes.
const TIME: Duration = Duration::from_secs(6);

/// Reads 10 MB files of every adversarial shape in linear time, within 90 MiB of memory.
#[test]
fn no_torrent_file_is_expensive_to_read() {
    let temporary = tempfile::tempdir().unwrap();
    fs::write(temporary.path().join("shape.torrent"), (SHAPES[0].make)(1000)).unwrap();
    let base = show(temporary.path(), &["show", "shape.torrent"]).rusage.maxrss;
    let mut failures = Vec::new();
    for shape in &SHAPES {
        let file = temporary.path().join("shape.torrent");
        let bytes = (shape.make)(BYTES);
        assert!(
            bytes.len() > BYTES * 8 / 10 && bytes.len() < BYTES * 11 / 10,
            "{}: {}",
            shape.name,
            bytes.len()
        );
        fs::write(&file, bytes).unwrap();
        for format in [&["show", "shape.torrent"][..], &["show", "shape.torrent", "--json"]] {
            let used = show(temporary.path(), format);
            let time = used.rusage.utime + used.rusage.stime;
            let memory = used.rusage.maxrss.saturating_sub(base);
            let line = format!("{}: {time:?}, {} MiB", shape.name, memory >> 20);
            println!("{line}");
            if memory > MEMORY || time > TIME {
                failures.push(line);
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Runs the program, which prints or refuses the torrent file, and returns what it used.
fn show(folder: &Path, arguments: &[&str]) -> ResUse {
    let mut command = command(folder, arguments);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let used = child.wait4().unwrap();
    assert!(
        matches!(used.status.code(), Some(0 | 1)),
        "{arguments:?}: {}",
        used.status
    );
    used
}
