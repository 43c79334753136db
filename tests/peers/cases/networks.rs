//! Larger networks, in which clients find each other.

use ecs_torrent::making::MakeOptions;

use super::Share;
use super::magnets::link;
use crate::Case;
use crate::clients::Peer;
use crate::clients::Program::{Libtorrent, Transmission};
use crate::clients::libtorrent::LibtorrentNodes;
use crate::clients::{libtorrent, ours, transmission};
use crate::content::write_file;
use crate::lab::Lab;
use crate::nodes::Nodes;

/// Size in bytes of a file for cases that are not about its transfer.
const SMALL: usize = 3 << 20;

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "a_network_of_thirty_nodes_finds_torrents_of_both",
            needs: &[Libtorrent],
            run: |lab| {
                let nodes = Nodes::start(lab, 20);
                let theirs = LibtorrentNodes::start(lab, 10, &nodes.addresses[..10]);
                let (share, folder) = (small(lab, "ours.bin"), lab.folder("theirs"));
                let seeder = ours::Ours::seed_by_dht(&share.torrent, &share.origin, lab.address(), nodes.addresses[1]);
                let known = [theirs.addresses[0]];
                let mut leecher =
                    libtorrent::Libtorrent::download_by_dht(&link(&share), &folder, lab.address(), &known);
                share.assert_arrives(&mut leecher);
                seeder.stop();

                let (share, folder) = (small(lab, "theirs.bin"), lab.folder("ours"));
                let known = [theirs.addresses[1]];
                let (ip, node) = (lab.address(), theirs.addresses[2]);
                let _seeder = libtorrent::Libtorrent::seed_by_dht(&share.torrent, &share.origin, ip, &known);
                let mut leecher = ours::Ours::download_by_dht(&link(&share), &folder, lab.address(), node);
                share.assert_arrives(&mut leecher);
            },
        },
        Case {
            name: "transmission_finds_us_by_the_dht",
            needs: &[Transmission],
            run: |lab| {
                let share = small(lab, "found.bin");
                let nodes = Nodes::start(lab, 12);
                let known = &nodes.addresses;
                let seeder = ours::Ours::seed_by_dht(&share.torrent, &share.origin, lab.address(), known[0]);
                let (folder, ip) = (lab.folder("downloads"), lab.address());
                let mut leecher = transmission::Transmission::start_by_dht(lab, &share.torrent, &folder, ip, known);
                share.assert_arrives(&mut leecher);
                seeder.stop();
            },
        },
        Case {
            name: "peer_exchange_carries_a_swarm_of_twenty_from_one_known_peer",
            needs: &[Libtorrent],
            run: |lab| {
                let share = small(lab, "swarm.bin");
                // It downloads too slowly to serve the others, and is not complete before they are, so it keeps the
                // seed.
                let hub = ours::Ours::join_slowly(&share.torrent, &lab.folder("hub"), lab.address(), "10KiB");
                let known = [hub.address()];
                let seeder = libtorrent::Libtorrent::seed(&share.torrent, &share.origin, lab.address(), &known);
                let folder = |number: u8| lab.folder(&format!("downloads-{number}"));
                let ours = |number| ours::Ours::download_alone(&share.torrent, &folder(number), lab.address(), &known);
                let theirs =
                    |number| libtorrent::Libtorrent::download(&share.torrent, &folder(number), lab.address(), &known);
                let (mut ours, mut theirs): (Vec<_>, Vec<_>) =
                    ((0..9).map(ours).collect(), (9..18).map(theirs).collect());
                ours.iter_mut().for_each(|leecher| share.assert_arrives(leecher));
                theirs.iter_mut().for_each(|leecher| share.assert_arrives(leecher));
                drop(seeder);
            },
        },
    ]
}

/// Creates a torrent of a small file.
fn small(lab: &Lab, name: &'static str) -> Share {
    let seed = name.bytes().map(u64::from).sum();
    write_file(&lab.folder("origin"), name, seed, SMALL);
    Share::of(lab, name, &[], MakeOptions::default())
}
