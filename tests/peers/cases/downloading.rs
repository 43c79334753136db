//! ecs-torrent downloads from each client alone.

use super::Share;
use crate::Case;
use crate::clients::Program::{Aria2, Libtorrent, Opentracker, Transmission};
use crate::clients::{Peer, aria2, opentracker, transmission};
use crate::lab::Lab;

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "download_from_libtorrent_by_peer",
            needs: &[Libtorrent],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let seeder = share.seed_by_libtorrent(lab);
                download_by_peer(lab, &share, &seeder);
            },
        },
        Case {
            name: "download_from_transmission_by_peer",
            needs: &[Transmission],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let ip = lab.address();
                let seeder = transmission::Transmission::start(lab, &share.torrent, &share.origin, ip)
                    .ready()
                    .seeding();
                download_by_peer(lab, &share, &seeder);
            },
        },
        Case {
            name: "download_from_aria2_by_peer",
            needs: &[Aria2],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let seeder = aria2::Aria2::seed(&share.torrent, &share.origin, lab.address());
                download_by_peer(lab, &share, &seeder);
            },
        },
        Case {
            name: "download_from_libtorrent_through_http_tracker",
            needs: &[Libtorrent, Opentracker],
            run: |lab| {
                let (share, tracker) = Share::tracked(lab, opentracker::http_url);
                let _seeder = share.seed_by_libtorrent(lab);
                download_through_tracker(lab, &share, &tracker);
            },
        },
        Case {
            name: "download_from_libtorrent_through_udp_tracker",
            needs: &[Libtorrent, Opentracker],
            run: |lab| {
                let (share, tracker) = Share::tracked(lab, opentracker::udp_url);
                let _seeder = share.seed_by_libtorrent(lab);
                download_through_tracker(lab, &share, &tracker);
            },
        },
        Case {
            name: "download_from_transmission_through_http_tracker",
            needs: &[Transmission, Opentracker],
            run: |lab| {
                let (share, tracker) = Share::tracked(lab, opentracker::http_url);
                let ip = lab.address();
                let _seeder = transmission::Transmission::start(lab, &share.torrent, &share.origin, ip).ready();
                download_through_tracker(lab, &share, &tracker);
            },
        },
        Case {
            name: "download_from_aria2_through_udp_tracker",
            needs: &[Aria2, Opentracker],
            run: |lab| {
                let (share, tracker) = Share::tracked(lab, opentracker::udp_url);
                // aria2 speaks UDP to trackers only with its DHT on. The DHT finds no nodes here.
                let _seeder = aria2::Aria2::seed_with_dht(&share.torrent, &share.origin, lab.address());
                download_through_tracker(lab, &share, &tracker);
            },
        },
    ]
}

fn download_by_peer(lab: &Lab, share: &Share, seeder: &impl Peer) {
    share.download_by_us(lab, &[seeder.address()]);
}

/// Downloads from a seeder that the tracker names. The tracker counts us while we run, and no longer after we stop.
fn download_through_tracker(lab: &Lab, share: &Share, tracker: &opentracker::Opentracker) {
    tracker.wait_for_counts(share.info_hash, (1, 0));
    let _leecher = share.download_by_us(lab, &[]);
    tracker.wait_for_counts(share.info_hash, (1, 0));
}
