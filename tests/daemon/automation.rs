//! Watch folders, hooks and webhooks of a daemon.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use crate::bed::{Daemon, PATIENCE, fail, succeed, torrent, wait_until};

const LINK: &str = "magnet:?xt=urn:btih:00112233445566778899aabbccddeeff00112233&dn=linked";

/// Starts a daemon with these settings of the automation.
fn start(folder: &Path, automation: &str) -> Daemon {
    fs::write(folder.join("c.ron"), format!("(automation: ({automation}))")).unwrap();
    Daemon::start_with(folder, &["--config", "c.ron"])
}

/// Writes an executable shell script, and returns its path.
fn script(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// Half-written files are added when they are complete, links are added too, and other files stay as they are.
#[test]
fn files_that_appear_in_a_watch_folder_are_added() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let [kept, emptied] = ["kept", "emptied"].map(|name| folder.join(name));
    fs::create_dir(&kept).unwrap();
    fs::create_dir(&emptied).unwrap();
    let automation = format!(
        "watch_interval_s: 1, watch: [(path: {kept:?}, category: \"linux\", labels: [\"new\"]), (path: {emptied:?}, then: Delete)]"
    );
    let daemon = start(folder, &automation);
    let (first, bytes) = torrent(folder, "one.bin", 1, &[]);
    let (second, other) = torrent(folder, "two.bin", 2, &[]);
    let (half, rest) = bytes.split_at(bytes.len() / 2);
    fs::write(kept.join("one.torrent"), half).unwrap();
    fs::write(kept.join("rubbish.torrent"), "no torrent").unwrap();
    fs::create_dir(kept.join("folder.torrent")).unwrap();
    let made = Command::new("mkfifo").arg(kept.join("pipe.torrent")).status().unwrap();
    assert!(made.success());
    // The half-written file does not change, so it is tried.
    let is_refused = |name: &str| {
        daemon
            .log()
            .lines()
            .any(|line| line.contains(name) && line.contains("not added"))
    };
    wait_until("the half to be refused", || {
        is_refused("one.torrent") && is_refused("rubbish.torrent")
    });
    assert_eq!(daemon.hashes(), [""; 0]);
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(kept.join("one.torrent"))
        .unwrap();
    file.write_all(rest).unwrap();
    fs::write(emptied.join("two.TORRENT"), &other).unwrap();
    fs::write(kept.join("a.magnet"), format!("{LINK}\n")).unwrap();
    wait_until("the torrents", || daemon.hashes().len() == 3);
    wait_until("the files", || {
        kept.join("one.torrent.added").exists()
            && kept.join("a.magnet.added").exists()
            && !emptied.join("two.TORRENT").exists()
    });
    let listed = daemon.get("/api/v1/torrents?fields=info_hash,category,labels").json();
    let of = |hash: &str| {
        let mut all = listed.as_array().unwrap().iter();
        all.find(|torrent| torrent["info_hash"] == hash).unwrap().clone()
    };
    assert_eq!(
        (&of(&first)["category"], &of(&first)["labels"][0]),
        (&"linux".into(), &"new".into())
    );
    assert_eq!(of(&second)["category"], Value::Null);
    assert_eq!(fs::read(kept.join("rubbish.torrent")).unwrap(), b"no torrent");
    assert!(kept.join("pipe.torrent").exists() && kept.join("folder.torrent").exists());
}

/// A program gets each event in its environment and no shell sees it. Torrents of an earlier run are not added again.
#[test]
fn hooks_run_at_events() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let record = script(
        folder,
        "record",
        "echo \"$1 $ECS_TORRENT_EVENT $ECS_TORRENT_HASH $ECS_TORRENT_NAME $ECS_TORRENT_SIZE $ECS_TORRENT_FOLDER\" >> \"$2\"; echo said",
    );
    let seen = folder.join("seen");
    let automation = format!(
        "hooks: [(on: [Added, Completed, Removed], program: {record:?}, arguments: [\"$(touch x);\", {seen:?}])]"
    );
    let seeder_folder = tempfile::tempdir().unwrap();
    let seeder = Daemon::start(seeder_folder.path());
    let (hash, bytes) = torrent(&seeder_folder.path().join("downloads"), "one.bin", 1, &[]);
    assert_eq!(seeder.post("/api/v1/torrents", &bytes).status, 201);
    let daemon = start(folder, &automation);
    assert_eq!(
        daemon
            .post(&format!("/api/v1/torrents?peer={}", seeder.peers), &bytes)
            .status,
        201
    );
    let lines = || fs::read_to_string(&seen).unwrap_or_default();
    wait_until("the completion", || lines().lines().count() == 2);
    let downloads = folder.join("downloads");
    let line = |event: &str| format!("$(touch x); {event} {hash} one.bin 100000 {}", downloads.display());
    let mut found: Vec<String> = lines().lines().map(str::to_owned).collect();
    found.sort();
    assert_eq!(found, [line("added"), line("completed")]);
    assert!(daemon.log().contains("record: said"));
    let mut daemon = daemon;
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait().success());
    let daemon = start(folder, &automation);
    assert_eq!(daemon.hashes(), std::slice::from_ref(&hash));
    assert!(daemon.delete(&format!("/api/v1/torrents/{hash}")).status < 300);
    wait_until("the removal", || lines().lines().count() == 3);
    assert_eq!(lines().lines().last().unwrap(), line("removed"));
}

/// A program that hangs is killed with its child processes, and holds up neither the daemon nor other programs.
#[test]
fn a_hook_that_hangs_is_killed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let hang = script(
        folder,
        "hang",
        &format!("sleep 1000 & echo $! > {}/child; sleep 1000", folder.display()),
    );
    let quick = script(
        folder,
        "quick",
        &format!("echo $ECS_TORRENT_HASH >> {}/seen", folder.display()),
    );
    let automation = format!(
        "hook_timeout_s: 2, hooks: [(on: [Added], program: {hang:?}), (on: [Added], program: {quick:?}), \
         (on: [Added], program: \"/no/such/program\")]"
    );
    let mut daemon = start(folder, &automation);
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    wait_until("the quick program", || {
        fs::read_to_string(folder.join("seen")).is_ok_and(|text| text.trim() == hash)
    });
    wait_until("the kill", || daemon.log().contains("hang: killed after 2 s"));
    assert!(daemon.log().contains("/no/such/program: not started"));
    let child = fs::read_to_string(folder.join("child")).unwrap();
    let status = format!("/proc/{}/status", child.trim());
    let is_gone = || fs::read_to_string(&status).map_or(true, |text| text.contains("State:\tZ"));
    wait_until("its child to be gone", is_gone);
    let (_, bytes) = torrent(folder, "two.bin", 2, &[]);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    let begin = Instant::now();
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait().success());
    assert!(begin.elapsed() < PATIENCE);
}

/// The child processes of a program that has ended in time keep running.
#[test]
fn what_a_hook_starts_goes_on_after_it() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let [pipe, seen] = ["pipe", "seen"].map(|name| folder.join(name).display().to_string());
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let text = format!("(read line < {pipe}; echo $line > {seen}) > /dev/null 2>&1 &\nexit 1");
    let starter = script(folder, "starter", &text);
    let daemon = start(folder, &format!("hooks: [(on: [Added], program: {starter:?})]"));
    let (_, bytes) = torrent(folder, "one.bin", 1, &[]);
    assert_eq!(daemon.post("/api/v1/torrents", &bytes).status, 201);
    wait_until("the end of the program", || {
        daemon.log().contains("starter: exit status: 1")
    });
    // Open for both, the pipe waits for nobody and loses nothing.
    let mut writer = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    writer.write_all(b"on\n").unwrap();
    wait_until("its child", || {
        fs::read_to_string(&seen).is_ok_and(|text| text == "on\n")
    });
}

/// Reads a request, answers with `status`, and returns the head and the body.
fn serve(listener: &TcpListener, status: &str) -> (String, Value) {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
    }
    let head = head.to_lowercase();
    let len = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
    let mut body = vec![0; len.parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    reader.get_mut().write_all(answer.as_bytes()).unwrap();
    (head, serde_json::from_slice(&body).unwrap())
}

/// An event is sent again when the server cannot take it, and not when it refuses it.
#[test]
fn webhooks_are_delivered() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let automation =
        format!("webhooks: [(on: [Added, Removed], url: \"http://{address}/hook?key=secret\", token: \"letmein\")]");
    let daemon = start(folder, &automation);
    let (hash, bytes) = torrent(folder, "one.bin", 1, &[]);
    assert_eq!(
        daemon
            .post("/api/v1/torrents?category=c&label=b&label=a", &bytes)
            .status,
        201
    );
    let (head, first) = serve(&listener, "503 Service Unavailable");
    assert!(head.starts_with("post /hook?key=secret http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nauthorization: bearer letmein\r\n"), "{head}");
    let (_, again) = serve(&listener, "204 No Content");
    assert_eq!(first, again);
    let expected = serde_json::json!({
        "event": "added", "info_hash": hash, "name": "one.bin", "folder": folder.join("downloads"), "size": 100_000,
        "category": "c", "labels": ["a", "b"],
    });
    assert_eq!(again, expected);
    assert!(daemon.delete(&format!("/api/v1/torrents/{hash}")).status < 300);
    let (_, removed) = serve(&listener, "403 Forbidden");
    assert_eq!(removed["event"], "removed");
    wait_until("the refusal", || {
        daemon.log().contains("was not delivered: 403 Forbidden")
    });
    assert!(!daemon.log().contains("secret"), "a secret is in the log");
}

#[test]
fn automation_that_cannot_work_is_refused_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for (automation, error) in [
        (
            "watch: [(path: \"\")]",
            "c.ron:1:22: automation.watch: a watch folder has no path",
        ),
        (
            "watch: [(path: \"/a\"), (path: \"/a\")]",
            "automation.watch: /a is there twice",
        ),
        ("watch: [(pathh: \"/a\")]", "c.ron:1:"),
        (
            "hooks: [(on: [Added], program: \"x\")]",
            "automation.hooks: \"x\" is not an absolute path",
        ),
        ("hooks: [(program: \"/x\")]", "automation.hooks: /x has no event"),
        (
            "webhooks: [(on: [Added], url: \"ftp://x\")]",
            "is neither of http nor of https",
        ),
        (
            "webhooks: [(on: [Added], url: \"x\")]",
            "automation.webhooks: \"x\": relative URL",
        ),
        (
            "watch_interval_s: 0",
            "automation.watch_interval_s: 0 is too small, it can be from 1 to 3600",
        ),
    ] {
        fs::write(folder.join("c.ron"), format!("(automation: ({automation}))")).unwrap();
        let refusal = fail(folder, &["config", "check", "c.ron"]);
        assert!(refusal.contains(error), "{automation}: {refusal}");
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
    }
}

/// The settings of the automation are read like others, without secrets, and changed in the file only.
#[test]
fn the_settings_of_the_automation_are_readable() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let automation =
        "hook_timeout_s: 7, webhooks: [(on: [Added], url: \"http://127.0.0.1:9/secret\", token: Some(\"secret\"))]";
    let daemon = start(folder, automation);
    assert_eq!(succeed(folder, &["config", "get", "automation.hook_timeout_s"]), "7\n");
    let section = succeed(folder, &["config", "get", "automation"]);
    assert!(
        section.contains("automation.watch = []\n") && section.contains("http://127.0.0.1:9"),
        "{section}"
    );
    assert_eq!(succeed(folder, &["config", "get", "log.max_files"]), "5\n");
    let all = daemon.get("/api/v1/settings").body;
    assert!(!all.contains("secret"), "{all}");
    let error = fail(folder, &["config", "set", "automation.hooks", "[]"]);
    assert!(
        error.contains("automation") && error.contains("configuration file only"),
        "{error}"
    );
}
