//! Torrents that the daemon refuses to add.

use std::fs;

use crate::bed::{Daemon, fail};

/// Faults 13 and 14: hybrids whose halves disagree or whose root is zero are not added.
#[test]
fn hybrids_that_disagree_are_not_added() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    for (name, root, reason) in [
        ("y", "r", "v1 has x (5 bytes) where v2 has y (5 bytes)"),
        ("x", "\0", "pieces root is all zeros"),
    ] {
        let tree = format!("1:{name}d0:d6:lengthi5e11:pieces root32:{}ee", root.repeat(32));
        let rest = format!(
            "12:meta versioni2e4:name1:x12:piece lengthi16384e6:pieces20:{}",
            "h".repeat(20)
        );
        let torrent = format!("d4:infod9:file treed{tree}e6:lengthi5e{rest}ee");
        let answer = daemon.post("/api/v1/torrents", torrent.as_bytes());
        assert_eq!(answer.status, 400);
        assert!(
            answer.json()["error"].as_str().unwrap().contains(reason),
            "{:?}",
            answer.json()
        );
        fs::write(folder.join("bad.torrent"), torrent).unwrap();
        assert!(fail(folder, &["add", "bad.torrent"]).contains(reason));
    }
    assert_eq!(daemon.hashes(), [""; 0]);
}
