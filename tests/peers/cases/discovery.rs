//! Peers that clients find without a tracker.

use super::Share;
use super::magnets::link;
use crate::Case;
use crate::clients::Program::Libtorrent;
use crate::clients::{Peer, libtorrent, ours};

/// Upload rate of a seed whose downloads last as long as the case, in bytes per second.
const SLOW: u32 = 50_000;

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "libtorrent_names_a_peer_to_us",
            needs: &[Libtorrent],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let far = libtorrent::Libtorrent::seed_slowly(&share.torrent, &share.origin, lab.address(), SLOW);
                let (folder, ip) = (lab.folder("between"), lab.address());
                let between = libtorrent::Libtorrent::download(&share.torrent, &folder, ip, &[far.address()]);
                let (folder, ip) = (lab.folder("downloads"), lab.address());
                let mut leecher = ours::Ours::download_logged(&share.torrent, &folder, ip, &[between.address()]);
                leecher.wait_to_hear_all(&["connected", &format!("peer={}", far.address())]);
                leecher.interrupt();
            },
        },
        Case {
            name: "we_name_a_peer_to_libtorrent",
            needs: &[Libtorrent],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let far = libtorrent::Libtorrent::seed_slowly(&share.torrent, &share.origin, lab.address(), SLOW);
                let (folder, ip) = (lab.folder("between"), lab.address());
                let between = ours::Ours::download(&share.torrent, &folder, ip, &[far.address()]);
                let (folder, ip) = (lab.folder("downloads"), lab.address());
                let mut leecher = libtorrent::Libtorrent::download(&share.torrent, &folder, ip, &[between.address()]);
                // We name each of the two to the other, and either may connect first.
                leecher.wait_to_hear(&format!("peer {}:", far.address().ip()));
                between.interrupt();
            },
        },
        Case {
            name: "we_find_libtorrent_by_the_dht",
            needs: &[Libtorrent],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let (folder, ip) = (lab.folder("downloads"), lab.address());
                let mut leecher = ours::Ours::download(&link(&share), &folder, ip, &[]);
                let nodes = [leecher.address()];
                let _seeder = libtorrent::Libtorrent::seed_by_dht(&share.torrent, &share.origin, lab.address(), &nodes);
                share.assert_arrives(&mut leecher);
            },
        },
    ]
}
