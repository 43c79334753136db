//! Peers that clients find without a tracker.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ecs_torrent::making::MakeOptions;

use super::Share;
use super::magnets::link;
use crate::Case;
use crate::clients::Program::{Aria2, Libtorrent, Namespace, Transmission};
use crate::clients::{Peer, aria2, libtorrent, ours, transmission};
use crate::content::write_file;
use crate::lab::Lab;
use crate::nodes::Nodes;

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
                // The peer in between names each of us to the other, and either may connect first.
                leecher.wait_for_output_all(&["connected", &format!("peer={}:", far.address().ip())]);
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
                leecher.wait_for_output(&format!("peer {}:", far.address().ip()));
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
        Case {
            name: "neighbors_find_each_other",
            needs: &[Namespace],
            run: |lab| find_each_other(lab, "next.bin", [lab.neighbor(), lab.neighbor()]),
        },
        Case {
            name: "neighbors_find_each_other_over_ipv6",
            needs: &[Namespace],
            run: |lab| find_each_other(lab, "next6.bin", [lab.neighbor_v6(), lab.neighbor_v6()]),
        },
        Case {
            name: "we_find_libtorrent_next_door",
            needs: &[Libtorrent, Namespace],
            run: |lab| {
                let share = local_share(lab, "near.bin");
                let folder = lab.folder("downloads");
                let mut leecher = ours::Ours::download_logged(&share.torrent, &folder, lab.neighbor(), &[]);
                // libtorrent is not there yet, so our announcement does not reach it before its own reaches us.
                leecher.wait_for_output_all(&["torrents announced in the local network"]);
                let seeder = libtorrent::Libtorrent::seed_locally(&share.torrent, &share.origin, lab.neighbor());
                leecher.wait_for_output_all(&["local discovery found a peer", &seeder.address().to_string()]);
                share.assert_arrives(&mut leecher);
            },
        },
        Case {
            name: "libtorrent_finds_us_next_door",
            needs: &[Libtorrent, Namespace],
            run: |lab| {
                let share = local_share(lab, "nearby.bin");
                let folder = lab.folder("downloads");
                let mut leecher = libtorrent::Libtorrent::download_locally(&share.torrent, &folder, lab.neighbor());
                let seeder = ours::Ours::seed(&share.torrent, &share.origin, lab.neighbor(), &[]);
                leecher.wait_for_output(&format!(
                    "{}: received peer from local service discovery",
                    seeder.address()
                ));
                share.assert_arrives(&mut leecher);
                seeder.stop();
            },
        },
        Case {
            name: "libtorrent_finds_us_by_the_dht",
            needs: &[Libtorrent],
            run: |lab| {
                serve(lab, |link, folder, node| {
                    libtorrent::Libtorrent::download_by_dht(link, folder, lab.address(), &[node])
                });
            },
        },
        Case {
            name: "we_find_aria2_by_the_dht",
            needs: &[Aria2],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let (folder, ip) = (lab.folder("downloads"), lab.address());
                let mut leecher = ours::Ours::download(&link(&share), &folder, ip, &[]);
                let (ip, node) = (lab.address(), leecher.address());
                let _seeder = aria2::Aria2::seed_by_dht(&share.torrent, &share.origin, ip, node);
                share.assert_arrives(&mut leecher);
            },
        },
        Case {
            name: "we_find_transmission_by_the_dht",
            needs: &[Transmission],
            run: |lab| {
                let nodes = Nodes::start(lab, 12);
                find_in(lab, &nodes, |Share { torrent, origin, .. }, ip| {
                    transmission::Transmission::start_by_dht(lab, torrent, origin, ip, &nodes.addresses)
                });
            },
        },
        Case {
            name: "we_find_libtorrent_in_a_network",
            needs: &[Libtorrent],
            run: |lab| {
                let nodes = Nodes::start(lab, 12);
                find_in(lab, &nodes, |share, ip| {
                    libtorrent::Libtorrent::seed_by_dht(&share.torrent, &share.origin, ip, &nodes.addresses)
                });
            },
        },
        Case {
            name: "libtorrent_finds_us_in_a_network",
            needs: &[Libtorrent],
            run: |lab| {
                let nodes = Nodes::start(lab, 12);
                serve_in(lab, &nodes, |link, folder| {
                    libtorrent::Libtorrent::download_by_dht(link, folder, lab.address(), &nodes.addresses)
                });
            },
        },
        Case {
            name: "we_find_aria2_in_a_network",
            needs: &[Aria2],
            run: |lab| {
                let nodes = Nodes::start(lab, 12);
                find_in(lab, &nodes, |share, ip| {
                    aria2::Aria2::seed_by_dht(&share.torrent, &share.origin, ip, nodes.addresses[0])
                });
            },
        },
        Case {
            name: "aria2_finds_us_in_a_network",
            needs: &[Aria2],
            run: |lab| {
                let nodes = Nodes::start(lab, 12);
                serve_in(lab, &nodes, |link, folder| {
                    aria2::Aria2::download_by_dht(link, folder, lab.address(), nodes.addresses[0])
                });
            },
        },
        Case {
            name: "aria2_finds_us_by_the_dht",
            needs: &[Aria2],
            run: |lab| {
                serve(lab, |link, folder, node| {
                    aria2::Aria2::download_by_dht(link, folder, lab.address(), node)
                });
            },
        },
    ]
}

/// Lets one host download from the other.
fn find_each_other(lab: &Lab, name: &'static str, [seed, leech]: [IpAddr; 2]) {
    let share = local_share(lab, name);
    let seeder = ours::Ours::seed(&share.torrent, &share.origin, seed, &[]);
    let mut leecher = ours::Ours::download(&share.torrent, &lab.folder("downloads"), leech, &[]);
    share.assert_arrives(&mut leecher);
    seeder.stop();
}

/// Creates a torrent that no other case has, because all cases share the local network.
fn local_share(lab: &Lab, name: &'static str) -> Share {
    let seed = name.bytes().map(u64::from).sum();
    write_file(&lab.folder("origin"), name, seed, 3 << 20);
    Share::of(lab, name, &[], MakeOptions::default())
}

/// Downloads from a client that seeds. Each of us enters a network of nodes, and knows the hash.
fn find_in<P: Peer>(lab: &Lab, nodes: &Nodes, start: impl FnOnce(&Share, IpAddr) -> P) {
    let share = Share::file(lab, &[]);
    let _seeder = start(&share, lab.address());
    let (folder, ip) = (lab.folder("downloads"), lab.address());
    let mut leecher = ours::Ours::download_by_dht(&link(&share), &folder, ip, nodes.addresses[1]);
    share.assert_arrives(&mut leecher);
}

/// Seeds to a client. Each of us enters a network of nodes, and knows the hash.
fn serve_in<P: Peer>(lab: &Lab, nodes: &Nodes, start: impl FnOnce(&Path, &Path) -> P) {
    let share = Share::file(lab, &[]);
    let seeder = ours::Ours::seed_by_dht(&share.torrent, &share.origin, lab.address(), nodes.addresses[1]);
    let mut leecher = start(&link(&share), &lab.folder("downloads"));
    share.assert_arrives(&mut leecher);
    seeder.stop();
}

/// Seeds to a client that knows the hash, and a node of the DHT at which we are announced.
fn serve<P: Peer>(lab: &Lab, start: impl FnOnce(&Path, &Path, SocketAddr) -> P) {
    let share = Share::file(lab, &[]);
    let nobody: PathBuf = format!("magnet:?xt=urn:btih:{}", "0".repeat(40)).into();
    let node = ours::Ours::download(&nobody, &lab.folder("node"), lab.address(), &[]);
    let seeder = ours::Ours::seed_by_dht(&share.torrent, &share.origin, lab.address(), node.address());
    let mut leecher = start(&link(&share), &lab.folder("downloads"), node.address());
    share.assert_arrives(&mut leecher);
    seeder.stop();
}
