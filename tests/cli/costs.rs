//! Cost of reading adversarial torrent files.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use wait4::Wait4;

use crate::command::command;
use crate::shapes::SHAPES;

/// Size of each torrent file in bytes.
const BYTES: usize = 10_000_000;

/// Maximum resident memory of the whole program, in bytes.
const MEMORY: u64 = 100 << 20;

/// Maximum CPU time. The promise is one second for a release build on an idle machine; quadratic work takes minutes.
const TIME: Duration = Duration::from_secs(6);

/// Reads 10 MB files of every adversarial shape in linear time, within 100 MiB of memory.
#[test]
fn no_torrent_file_is_expensive_to_read() {
    let temporary = tempfile::tempdir().unwrap();
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
            let mut command = command(temporary.path(), format);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let used = child.wait4().unwrap();
            assert!(
                matches!(used.status.code(), Some(0 | 1)),
                "{}: {}",
                shape.name,
                used.status
            );
            let time = used.rusage.utime + used.rusage.stime;
            let line = format!("{}: {time:?}, {} MiB", shape.name, used.rusage.maxrss >> 20);
            println!("{line}");
            if used.rusage.maxrss > MEMORY || time > TIME {
                failures.push(line);
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
