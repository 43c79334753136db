//! Several clients at once.

use super::Share;
use crate::Case;
use crate::clients::Program::{Aria2, Libtorrent, Opentracker, Transmission};
use crate::clients::{Peer, aria2, libtorrent, opentracker, ours, transmission};

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "every_client_downloads_from_our_seed_at_once",
            needs: &[Libtorrent, Transmission, Aria2, Opentracker],
            run: |lab| {
                let (share, tracker) = Share::tracked(lab, opentracker::http_url);
                let seeder = share.seed_by_us_through(lab, &tracker);
                let torrent = &share.torrent;
                let mut libtorrent =
                    libtorrent::Libtorrent::download(torrent, &lab.folder("libtorrent"), lab.address(), &[]);
                let mut aria2 = aria2::Aria2::download(torrent, &lab.folder("aria2"), lab.address());
                let mut transmission =
                    transmission::Transmission::start(lab, torrent, &lab.folder("transmission"), lab.address());
                let mut ours = ours::Ours::download(torrent, &lab.folder("ours"), lab.address(), &[]);
                share.assert_arrives(&mut ours);
                share.assert_arrives(&mut libtorrent);
                share.assert_arrives(&mut aria2);
                share.assert_arrives(&mut transmission);
                seeder.stop();
            },
        },
        Case {
            name: "three_of_us_and_a_libtorrent_seed",
            needs: &[Libtorrent],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let seeder = share.seed_by_libtorrent(lab);
                let mut peers = vec![seeder.address()];
                let mut leechers = Vec::new();
                for name in ["a", "b", "c"] {
                    let leecher = ours::Ours::download(&share.torrent, &lab.folder(name), lab.address(), &peers);
                    peers.push(leecher.address());
                    leechers.push(leecher);
                }
                for leecher in &mut leechers {
                    share.assert_arrives(leecher);
                }
            },
        },
        Case {
            name: "a_corrupting_seed_beside_an_honest_one",
            needs: &[Libtorrent, Aria2],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let honest = share.seed_by_libtorrent(lab);
                let bad = lab.folder("corrupt");
                let mut bytes = std::fs::read(share.origin.join(share.name)).unwrap();
                // Corrupts one byte in every block of every second piece.
                for (number, block) in bytes.chunks_mut(16384).enumerate() {
                    if number / 2 % 2 == 0 {
                        block[number % block.len()] ^= 0xff;
                    }
                }
                std::fs::write(bad.join(share.name), bytes).unwrap();
                let corrupt = aria2::Aria2::seed(&share.torrent, &bad, lab.address());
                let mut leecher = share.download_by_us(lab, &[corrupt.address(), honest.address()]);
                let output = leecher.output();
                let bans: Vec<&str> = output.lines().filter(|line| line.contains("banned")).collect();
                let culprit = corrupt.address().to_string();
                assert!(
                    bans.iter().all(|line| line.contains(&culprit)),
                    "only the culprit: {bans:?}"
                );
            },
        },
    ]
}
