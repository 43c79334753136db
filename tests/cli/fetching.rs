//! `fetch`: the torrent file of a magnet link.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use rustix::process::Signal;

use crate::command::{Running, command};
use crate::{album, fail, free_address, run, start, succeed};

/// The fetched file is that of the link, with its trackers and web seeds. Nothing else is created.
#[test]
fn a_torrent_file_is_fetched_from_a_peer() {
    let (temporary, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (folder, seed) = (temporary.path(), other.path());
    album(seed);
    let tracker = "http://127.0.0.1:9/announce";
    let web_seed = "http://127.0.0.1:9/files/a%20b";
    let create = ["create", "album", "-o", "album.torrent", "--tracker", tracker];
    succeed(seed, &[&create[..], &["--web-seed", web_seed]].concat());
    let address = free_address();
    let (_seeder, mut seeding) = start(
        seed,
        &["seed", "album.torrent", "--data", ".", "--listen", &address, "--json"],
    );
    seeding.find(|event| event["event"] == "complete").unwrap();
    let link = succeed(seed, &["magnet", "album.torrent"]).trim().to_owned();
    let original = ecs_torrent::Source::from(seed.join("album.torrent")).load().unwrap();
    let hash = original.hashes.primary();

    let arguments = [
        "fetch",
        &link,
        "--peer",
        &address,
        "--listen",
        "127.0.0.1:0",
        "--no-dht",
        "-o",
    ];
    let to = |output| [&arguments[..], &[output]].concat();
    assert_eq!(succeed(folder, &to("got.torrent")), format!("{hash} got.torrent\n"));
    let fetched = ecs_torrent::Source::from(folder.join("got.torrent")).load().unwrap();
    assert_eq!((fetched.hashes, &fetched.info), (original.hashes, &original.info));
    assert_eq!(fetched.trackers, [[tracker]]);
    assert_eq!(fetched.web_seeds, [web_seed]);
    assert_eq!(succeed(folder, &["magnet", "got.torrent"]).trim(), link);
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["got.torrent"], "no data and no state");

    let refused = fail(folder, &to("got.torrent"), 1);
    assert!(
        refused.contains("it exists already; --overwrite replaces it"),
        "{refused}"
    );
    succeed(folder, &[&to("got.torrent")[..], &["--overwrite"]].concat());
    let output = run(folder, &to("-"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, fetched.bytes);
    // The log may say that the tracker does not answer, and a quick fetch has no progress to print.
    let stderr = String::from_utf8(output.stderr).unwrap();
    let mut others = stderr.lines().filter(|line| !line.contains(" WARN "));
    let is_known = |line: &str| line.starts_with("album: ") || line == hash.to_string();
    assert!(others.all(is_known), "{stderr}");
    assert_eq!(stderr.lines().last(), Some(hash.to_string().as_str()), "{stderr}");
    // The link names the peer, by a host name.
    let port = address.rsplit_once(':').unwrap().1;
    let link = format!("{link}&x.pe=localhost:{port}");
    let by_name = [
        "fetch",
        &link,
        "--listen",
        "127.0.0.1:0",
        "--no-dht",
        "-o",
        "named.torrent",
    ];
    assert_eq!(succeed(folder, &by_name), format!("{hash} named.torrent\n"));
    let known = fail(folder, &["fetch", "got.torrent", "-o", "x.torrent"], 1);
    assert!(
        known.contains("got.torrent is a torrent file, not a magnet link"),
        "{known}"
    );
}

/// A fetch that no peer answers waits, and leaves nothing behind when it is interrupted.
#[test]
fn an_interrupted_fetch_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let link = format!("magnet:?xt=urn:btih:{}&dn=song", "a".repeat(40));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = listener.local_addr().unwrap().to_string();
    let arguments = [
        "fetch",
        &link,
        "-o",
        "x.torrent",
        "--listen",
        "127.0.0.1:0",
        "--no-dht",
        "--peer",
        &peer,
    ];
    let mut process = Running::start(
        command(folder, &arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    // The engine runs as soon as it dials the peer.
    listener.accept().unwrap();
    process.signal(Signal::INT);
    assert_eq!(process.wait().code(), Some(7));
    let stderr = BufReader::new(process.0.stderr.take().unwrap()).lines();
    let last = stderr.map(Result::unwrap).last();
    assert_eq!(
        last.as_deref(),
        Some("error: interrupted: song: the metadata is not complete")
    );
    let mut stdout = String::new();
    process.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert_eq!(stdout, "");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
}
