//! Torrents with special files or flags.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::FileExt;

use ecs_torrent::making::MakeOptions;

use super::Share;
use crate::Case;
use crate::clients::Program::{Libtorrent, Namespace, Opentracker, Transmission};
use crate::clients::{Peer, libtorrent, opentracker, ours, transmission};
use crate::content::{noise, write_file};
use crate::lab::{Lab, PUBLIC};

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "many_files_of_odd_sizes_from_libtorrent",
            needs: &[Libtorrent],
            run: |lab| {
                let share = odd_files(lab, &[0, 1, 16384, 0, 5, 40_000, 0]);
                let seeder = share.seed_by_libtorrent(lab);
                share.download_by_us(lab, &[seeder.address()]);
            },
        },
        Case {
            name: "many_files_of_odd_sizes_to_transmission",
            needs: &[Transmission],
            run: |lab| {
                // Transmission 3.00 does not create empty files.
                let share = odd_files(lab, &[1, 16384, 5, 40_000]);
                let folder = lab.folder("downloads");
                let mut leecher =
                    transmission::Transmission::start(lab, &share.torrent, &folder, lab.address()).ready();
                let seeder = ours::Ours::seed(&share.torrent, &share.origin, lab.address(), &[leecher.address()]);
                share.assert_arrives(&mut leecher);
                seeder.stop();
            },
        },
        Case {
            name: "over_ipv6_both_ways",
            needs: &[Libtorrent],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let seeder = libtorrent::Libtorrent::seed(&share.torrent, &share.origin, lab.address_v6(), &[]);
                let folder = lab.folder("downloads");
                let ip = lab.address_v6();
                let mut leecher = ours::Ours::download(&share.torrent, &folder, ip, &[seeder.address()]);
                share.assert_arrives(&mut leecher);
                drop(seeder);
                let seeder = ours::Ours::seed(&share.torrent, &share.origin, lab.address_v6(), &[]);
                let (folder, ip) = (lab.folder("back"), lab.address_v6());
                let peers = [seeder.address()];
                let mut leecher = libtorrent::Libtorrent::download(&share.torrent, &folder, ip, &peers);
                share.assert_arrives(&mut leecher);
                seeder.stop();
            },
        },
        Case {
            name: "a_private_torrent_through_its_tracker",
            needs: &[Libtorrent, Opentracker],
            run: |lab| {
                let ip = lab.address();
                write_file(&lab.folder("origin"), "private.bin", 9, 3 << 20);
                let options = MakeOptions {
                    private: true,
                    ..MakeOptions::default()
                };
                let share = Share::of(lab, "private.bin", &[opentracker::http_url(ip)], options);
                let tracker = opentracker::Opentracker::start(lab, ip, share.info_hash);
                let seeder = share.seed_by_libtorrent(lab);
                tracker.wait_for_counts(share.info_hash, (1, 0));
                share.download_by_us(lab, &[]);
                drop(seeder);
            },
        },
        Case {
            name: "a_file_of_two_gibibytes",
            needs: &[Libtorrent],
            run: |lab| {
                let len = 2 << 30;
                let share = sparse_file(lab, "two.bin", len);
                let seeder = share.seed_by_libtorrent(lab);
                share.download_by_us(lab, &[seeder.address()]);
            },
        },
        Case {
            name: "beyond_an_offset_of_four_gibibytes",
            needs: &[Libtorrent],
            run: |lab| {
                // The first 4 GiB are a hole that exists already; only the data after them is transferred.
                let len = (4 << 30) + (9 << 20) + 77;
                let share = sparse_file(lab, "four.bin", len);
                let folder = lab.folder("downloads");
                File::create(folder.join("four.bin")).unwrap().set_len(len).unwrap();
                let seeder = share.seed_by_libtorrent(lab);
                let peers = [seeder.address()];
                let mut leecher = ours::Ours::download_over(&share.torrent, &folder, lab.address(), &peers);
                share.assert_arrives(&mut leecher);
                let output = leecher.output();
                let complete = output
                    .lines()
                    .find(|line| line.contains("\"event\":\"complete\""))
                    .unwrap();
                let complete: serde_json::Value = serde_json::from_str(complete).unwrap();
                let downloaded = complete["downloaded"].as_u64().unwrap();
                assert!(
                    (1..64 << 20).contains(&downloaded),
                    "only what was missing: {downloaded}"
                );
            },
        },
        Case {
            // Fault 51.
            name: "a_tracker_of_the_internet_does_not_lead_into_the_house",
            needs: &[Namespace],
            run: |lab| {
                for inside in [lab.address(), IpAddr::from([127, 0, 0, 1])] {
                    let house = TcpListener::bind((inside, 0)).unwrap();
                    let address = house.local_addr().unwrap();
                    let tracker = redirecting_tracker(format!("http://{address}/secret"));
                    let share = Share::file(lab, &[format!("http://{tracker}/announce")]);
                    let folder = lab.folder("downloads");
                    let mut leecher = ours::Ours::download(&share.torrent, &folder, lab.address(), &[]);
                    leecher.wait_for_output("redirected into a private network");
                    house.set_nonblocking(true).unwrap();
                    assert!(house.accept().is_err(), "nobody came to {address}");
                }
            },
        },
    ]
}

/// Starts a tracker on a public address that redirects every request.
fn redirecting_tracker(target: String) -> std::net::SocketAddr {
    let listener = TcpListener::bind((PUBLIC, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(
                stream,
                "HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
    });
    address
}

/// Creates a torrent of odd files: within one block, across many pieces, of one byte, and in nested folders.
fn odd_files(lab: &Lab, first: &[usize]) -> Share {
    let folder = lab.folder("origin/odd");
    let rest = [2, 16383, 16385, 5, 5, 1_000_003, 3_000_001, 7];
    for (number, size) in first.iter().copied().chain(rest).enumerate() {
        let name = match number % 3 {
            0 => format!("{number:02}"),
            1 => format!("sub folder/{number:02} \u{e9}"),
            _ => format!("a/b/c/d/{number:02}.bin"),
        };
        write_file(&folder, &name, number as u64 + 1, size);
    }
    let options = MakeOptions {
        piece_length: Some(32768),
        ..MakeOptions::default()
    };
    Share::of(lab, "odd", &[], options)
}

/// Creates a torrent of a sparse file with data at its end and across every GiB boundary.
fn sparse_file(lab: &Lab, name: &'static str, len: u64) -> Share {
    let file = File::create(lab.folder("origin").join(name)).unwrap();
    file.set_len(len).unwrap();
    let patch = noise(len, 1 << 20);
    for gibibyte in 1..=(len >> 30) {
        let offset = ((gibibyte << 30) - (1 << 19)).min(len - patch.len() as u64);
        // A file longer than 4 GiB keeps its first 4 GiB as a hole.
        if len <= 4 << 30 || offset >= 4 << 30 {
            file.write_all_at(&patch, offset).unwrap();
        }
    }
    file.write_all_at(&patch, len - patch.len() as u64).unwrap();
    let options = MakeOptions {
        piece_length: Some(4 << 20),
        ..MakeOptions::default()
    };
    Share::of(lab, name, &[], options)
}
