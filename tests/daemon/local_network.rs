//! Local discovery (BEP 14) on two interfaces, and where there is none for multicast, in network namespaces of the
//! tests' own.

use std::fs;
use std::path::Path;

use crate::bed::{Daemon, succeed, torrent, wait_until};
use crate::dual_stack::start;
use crate::private_torrents::{has_local_network, ip};

/// Nothing but local discovery finds peers.
const LOCAL_ONLY: [&str; 2] = ["--no-dht", "--no-pex"];

/// Starts a daemon that has the torrent's content, and returns it with the torrent's hash and file.
fn seed(listen: &str, folder: &Path) -> (Daemon, String, Vec<u8>) {
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
    let daemon = start(listen, folder, &[&["--download-dir", "."], &LOCAL_ONLY[..]].concat());
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    (daemon, hash, bytes)
}

fn wait_for_content(daemon: &Daemon, hash: &str) {
    let path = format!("/api/v1/torrents/{hash}?fields=state");
    wait_until("the content", || daemon.get(&path).json()["state"] == "seeding");
}

/// A seed has an interface in each of two networks. A leecher in either network finds it.
#[test]
fn peers_are_found_on_each_interface() {
    if !has_local_network("local_network::peers_are_found_on_each_interface") {
        return;
    }
    ip("link set lo up");
    for (name, network) in [("one", 78), ("two", 79)] {
        ip(&format!("link add {name}0 type veth peer name {name}1"));
        ip(&format!("link set {name}0 up"));
        ip(&format!("link set {name}1 up"));
        (1..3).for_each(|host| ip(&format!("addr add 10.{network}.0.{host}/24 dev {name}0")));
    }
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (_seed, hash, bytes) = seed("0.0.0.0:7001", folders[0].path());
    for (network, folder) in [(78, folders[1].path()), (79, folders[2].path())] {
        let leecher = start(&format!("10.{network}.0.2:7002"), folder, &LOCAL_ONLY);
        assert_eq!(leecher.post("/api/v1/torrents", &bytes).status, 201);
        wait_for_content(&leecher, &hash);
    }
}

/// Without an interface for multicast, daemons run and transfer as usual.
#[test]
fn daemons_run_where_there_is_no_multicast() {
    if !has_local_network("local_network::daemons_run_where_there_is_no_multicast") {
        return;
    }
    ip("link set lo up");
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [ours, theirs] = folders.each_ref().map(tempfile::TempDir::path);
    let (_seed, hash, bytes) = seed("0.0.0.0:7001", theirs);
    let leecher = start("0.0.0.0:7002", ours, &LOCAL_ONLY);
    fs::write(ours.join("it.torrent"), bytes).unwrap();
    succeed(ours, &["add", "it.torrent", "--peer", "127.0.0.1:7001"]);
    wait_for_content(&leecher, &hash);
    for folder in [ours, theirs] {
        let log = fs::read_to_string(folder.join("log")).unwrap();
        assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    }
}
