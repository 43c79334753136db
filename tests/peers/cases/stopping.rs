//! Stops as other programs observe them.

use std::path::{Path, PathBuf};

use ecs_torrent::components::session::Session;

use super::Share;
use crate::Case;
use crate::clients::Program::{Libtorrent, Opentracker};
use crate::clients::{Peer, libtorrent, opentracker, ours};
use crate::lab::Lab;

pub fn cases() -> Vec<Case> {
    vec![Case {
        name: "a_download_that_is_stopped_takes_its_leave",
        needs: &[Libtorrent, Opentracker],
        run: stop_a_download,
    }]
}

/// Stops in the middle of a download from a slow libtorrent seeder. Checks the messages that libtorrent receives, the
/// tracker's counts after the program has ended, and that a second run resumes.
fn stop_a_download(lab: &Lab) {
    let (share, tracker) = Share::tracked(lab, opentracker::http_url);
    let mut seeder = libtorrent::Libtorrent::seed_slowly(&share.torrent, &share.origin, lab.address(), 4 << 20);
    tracker.wait_for_counts(share.info_hash, (1, 0));
    let folder = lab.folder("downloads");
    let ours_ip = lab.address();
    let leecher = ours::Ours::download(&share.torrent, &folder, ours_ip, &[]);
    tracker.wait_for_counts(share.info_hash, (1, 1));
    let mut line = String::new();
    for _ in 0..200 {
        line = seeder.wait_for_output("==> PIECE");
    }
    let peer = line
        .split(' ')
        .find(|word| word.starts_with(&format!("{ours_ip}:")))
        .unwrap();
    leecher.interrupt();
    assert_eq!(
        tracker.counts(share.info_hash),
        (1, 0),
        "no longer counted when it has ended"
    );
    seeder.wait_for_output(&format!("{peer} disconnecting"));

    let output = seeder.output();
    let received: Vec<&str> = output.lines().filter_map(|line| received(line, peer)).collect();
    let begin = received
        .iter()
        .position(|what| *what == "CANCEL")
        .expect("requests were outstanding");
    let last: Vec<&str> = received[begin..]
        .iter()
        .copied()
        .filter(|what| *what != "CANCEL")
        .collect();
    let end = "disconnecting (TCP) [sock_read] [asio.misc]: End of file (reason: 0)";
    assert_eq!(last, ["NOT_INTERESTED", "CHOKE", end]);
    let session = Session::parse(&std::fs::read(session_path(&folder, &share)).unwrap(), share.info_hash).unwrap();
    let total = super::FILE_BYTES as u64;
    assert!((1 << 20..total).contains(&session.downloaded), "{}", session.downloaded);

    let mut second = ours::Ours::download(&share.torrent, &folder, ours_ip, &[seeder.address()]);
    share.assert_arrives(&mut second);
    let session = Session::parse(&std::fs::read(session_path(&folder, &share)).unwrap(), share.info_hash).unwrap();
    assert!(
        (total..total + (1 << 20)).contains(&session.downloaded),
        "what was there is not downloaded again: {}",
        session.downloaded
    );
    tracker.wait_for_counts(share.info_hash, (1, 0));
}

/// Reads a peer's action from a line of libtorrent's log: the name of a message, or how the connection ended.
fn received<'a>(line: &'a str, peer: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("peer {peer} "))?;
    if rest.starts_with("disconnecting") {
        return Some(rest);
    }
    rest.strip_prefix("<== ")?.split(' ').next()
}

/// Returns the path of the session file that a run in `folder` leaves.
fn session_path(folder: &Path, share: &Share) -> PathBuf {
    folder.join(format!(".ecs_torrent/state/{}.ron", share.info_hash))
}
