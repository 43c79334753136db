//! Settings change while a daemon runs, by the API and by the commands.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::bed::{Answer, Daemon, fail, succeed};
use crate::content::noise;

fn patch(daemon: &Daemon, body: &Value) -> Answer {
    patch_bytes(daemon, body.to_string().as_bytes())
}

fn patch_bytes(daemon: &Daemon, body: &[u8]) -> Answer {
    let bearer = daemon.bearer();
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    daemon.ask("PATCH", "/api/v1/settings", &headers, body)
}

/// The longest list of blocked networks fits in a request.
#[test]
fn the_most_networks_are_blocked_at_once() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    let networks = |count: u32| {
        let network = |number: u32| {
            let (high, low) = (0xff00 | number >> 8, 0xff00 | number & 0xff);
            format!("2001:db8:1111:2222:3333:4444:{high:x}:{low:x}/128")
        };
        let networks: Vec<String> = (0..count).map(network).collect();
        json!({"peers": {"blocked": networks}})
    };
    assert_eq!(patch(&daemon, &networks(10_000)).status, 200);
    let settings = daemon.get("/api/v1/settings").json();
    assert!(!settings["changes"]["peers.blocked"].as_array().unwrap().is_empty());
    let refused = patch(&daemon, &networks(10_001));
    assert_eq!(refused.status, 400, "{}", refused.json());
}

/// A listen address that the machine does not have is refused, since otherwise only the next start would fail. Where an
/// address was saved and is gone, the start names the file of the changes.
#[test]
fn addresses_of_other_machines_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let own = daemon.get("/api/v1/settings").json()["settings"]["net"]["listen"].clone();
    let foreign = json!(["127.0.0.1:0", "192.0.2.1:6881"]);
    let refused = patch(&daemon, &json!({"net": {"listen": foreign}, "uploads": {"slots": 5}}));
    assert_eq!(refused.status, 400, "{}", refused.json());
    let reason = refused.json()["error"].as_str().unwrap().to_owned();
    assert!(
        reason.starts_with("net.listen: cannot listen on 192.0.2.1:6881: "),
        "{reason}"
    );
    // The ports that the daemon listens on are its own.
    let accepted = patch(&daemon, &json!({"net": {"listen": own}, "uploads": {"slots": 6}}));
    assert_eq!(accepted.status, 200);
    let answer = daemon.get("/api/v1/settings").json();
    assert_eq!(answer["settings"]["uploads"]["slots"], 6);

    daemon.kill();
    let changes = folder.join(".ecs_torrent/state/settings.blob");
    std::fs::write(&changes, json!({"net.listen": foreign}).to_string()).unwrap();
    let error = fail(
        folder,
        &["daemon", "--download-dir", "downloads", "--api", "127.0.0.1:0"],
    );
    assert!(
        error.contains("cannot listen on 192.0.2.1:6881") && error.contains("state/settings.blob"),
        "{error}"
    );
    std::fs::remove_file(changes).unwrap();
    drop(Daemon::start(folder));
}

/// A change is durable when it is answered: it survives a kill, overrides the configuration and the command line, and
/// is reset by name. A setting that needs a restart is named, and in force after it.
#[test]
fn changes_survive_a_kill() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::write(folder.join("c.ron"), "(uploads: (slots: 3))").unwrap();
    let arguments = ["--config", "c.ron", "--upload-limit", "50k"];
    let daemon = Daemon::start_with(folder, &arguments);
    let answer = daemon.get("/api/v1/settings").json();
    assert_eq!(answer["settings"]["limits"]["upload_bytes_per_s"], 50_000);
    assert_eq!(answer["settings"]["api"]["max_connections"], 256);
    assert_eq!((&answer["changes"], &answer["needs_restart"]), (&json!({}), &json!([])));

    let body =
        json!({"limits": {"upload_bytes_per_s": 80_000}, "uploads": {"slots": 5}, "storage": {"disk_threads": 3}});
    let answer = patch(&daemon, &body);
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({"needs_restart": ["storage.disk_threads"]}))
    );
    let answer = daemon.get("/api/v1/settings").json();
    assert_eq!(answer["settings"]["limits"]["upload_bytes_per_s"], 80_000);
    assert_eq!(answer["settings"]["storage"]["disk_threads"], 2);
    assert_eq!(answer["needs_restart"], json!(["storage.disk_threads"]));

    daemon.kill();
    let daemon = Daemon::start_with(folder, &arguments);
    let answer = daemon.get("/api/v1/settings").json();
    assert_eq!(answer["settings"]["limits"]["upload_bytes_per_s"], 80_000);
    assert_eq!(
        (
            &answer["settings"]["uploads"]["slots"],
            &answer["settings"]["storage"]["disk_threads"]
        ),
        (&json!(5), &json!(3))
    );
    assert_eq!(answer["needs_restart"], json!([]));

    let answer = patch(
        &daemon,
        &json!({"limits": {"upload_bytes_per_s": null}, "uploads": {"slots": null}}),
    );
    assert_eq!((answer.status, answer.json()), (200, json!({"needs_restart": []})));
    let answer = daemon.get("/api/v1/settings").json();
    assert_eq!(answer["settings"]["limits"]["upload_bytes_per_s"], 50_000);
    assert_eq!(answer["settings"]["uploads"]["slots"], 3);
    assert_eq!(answer["changes"], json!({"storage.disk_threads": 3}));
}

/// A daemon that is killed at any moment of changes has the last change that it answered, or one that came after it,
/// and each change whole.
#[test]
fn kills_during_changes_lose_none() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let mut daemon = Daemon::start(folder);
    let mut next = 1;
    for round in 0..12 {
        let (sent, answered) = std::thread::scope(|scope| {
            let daemon = &daemon;
            let first = next;
            let changing = scope.spawn(move || {
                let (mut sent, mut answered) = (first - 1, first - 1);
                loop {
                    sent += 1;
                    let change = json!({"uploads": {"slots": sent}, "limits": {"upload_bytes_per_s": 100_000 + sent}});
                    match try_patch(daemon, &change) {
                        Some(status) => assert_eq!(status, 200),
                        None => return (sent, answered),
                    }
                    answered = sent;
                }
            });
            let random = u64::from_le_bytes(noise(9100 + round, 8).try_into().unwrap());
            std::thread::sleep(std::time::Duration::from_micros((random >> 8) % 60_000));
            daemon.process.signal(Signal::KILL);
            changing.join().unwrap()
        });
        daemon.kill();
        daemon = Daemon::start(folder);
        let settings = daemon.get("/api/v1/settings").json()["settings"].clone();
        let slots = settings["uploads"]["slots"].as_u64().unwrap();
        assert!(
            answered == 0 || (answered..=sent).contains(&slots),
            "round {round}: {slots}, {answered} was answered and {sent} sent"
        );
        if answered > 0 {
            assert_eq!(
                settings["limits"]["upload_bytes_per_s"],
                100_000 + slots,
                "round {round}"
            );
        }
        next = sent + 1;
    }
    assert!(next > 40, "{next} changes");
}

/// Returns the status of the answer to a change, or `None` if the daemon is killed meanwhile.
fn try_patch(daemon: &Daemon, change: &Value) -> Option<u16> {
    let bearer = daemon.bearer();
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let request = daemon.head("PATCH", "/api/v1/settings", &headers, change.to_string().as_bytes());
    let mut stream = TcpStream::connect(daemon.address).ok()?;
    stream.write_all(&request).ok()?;
    let mut answer = Vec::new();
    // A connection that is reset has no answer.
    let _ = stream.read_to_end(&mut answer);
    let is_whole = answer.ends_with(b"}") && answer.starts_with(b"HTTP/1.1 ");
    is_whole.then(|| Answer::read(&answer[..]).status)
}

/// The alternative limits are switched on, off and to their schedule, which survives a restart.
#[test]
fn alternative_limits_are_switched() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let daemon = Daemon::start(folder);
    let is_in_force = |daemon: &Daemon| daemon.get("/api/v1/settings").json()["alternative_limits"].clone();
    assert_eq!(is_in_force(&daemon), false);
    let printed = succeed(folder, &["limit", "--alternative", "always"]);
    assert_eq!(printed, "alternative limits: always; now the alternative ones\n");
    assert_eq!(is_in_force(&daemon), true);
    let printed = succeed(folder, &["limit", "--alternative", "scheduled"]);
    assert_eq!(printed, "alternative limits: scheduled; now the usual ones\n");
    for schedule in [json!(["mon"]), json!(["daily 08:00-08:00"]), json!("daily 08:00-09:00")] {
        patch(&daemon, &json!({"limits": {"alternative_schedule": schedule}}))
            .refused(400, Some("limits.alternative_schedule"));
    }
    let schedule = json!(["mon-fri 00:00-24:00", "sat,sun 00:00-24:00"]);
    assert_eq!(
        patch(&daemon, &json!({"limits": {"alternative_schedule": schedule}})).status,
        200
    );
    assert_eq!(is_in_force(&daemon), true);
    let daemon = daemon.kill_and_start();
    assert_eq!(is_in_force(&daemon), true);
    let limits = daemon.get("/api/v1/settings").json()["settings"]["limits"].clone();
    assert_eq!(limits["alternative"], "Scheduled");
    assert_eq!(
        limits["alternative_schedule"],
        json!(["mon,tue,wed,thu,fri 00:00-24:00", "sat,sun 00:00-24:00"])
    );
    succeed(folder, &["limit", "--alternative", "never"]);
    assert_eq!(is_in_force(&daemon), false);
}

/// A refusal names the setting and the reason, and nothing is changed.
#[test]
fn refused_changes_change_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(temporary.path());
    for (body, field, reason) in [
        (
            json!({"limits": {"download_bytes_per_s": 1}}),
            "limits.download_bytes_per_s",
            "can be from 10240 to",
        ),
        (
            json!({"limits": {"download_bytes_per_s": "fast"}}),
            "limits.download_bytes_per_s",
            "a whole number from 0 on is expected",
        ),
        (
            json!({"peers": {"max_connections": 0}}),
            "peers.max_connections",
            "too small",
        ),
        (
            json!({"requests": {"min_depth": 20}}),
            "requests.min_depth",
            "more than requests.initial_depth",
        ),
        (json!({"limits": {"speed": 1}}), "limits.speed", "no such setting"),
        (json!({"limits": {"speed": null}}), "limits.speed", "no such setting"),
        (json!({"limit": {"speed": 1}}), "limit.speed", "no such setting"),
        (json!({"limits": 5}), "limits", "an object"),
        (
            json!({"storage": {"download_dir": "/"}}),
            "storage.download_dir",
            "configuration file only",
        ),
        (
            json!({"session": {"state_dir": "/"}}),
            "session.state_dir",
            "configuration file only",
        ),
        (json!({"api": {"allow_remote": true}}), "api", "configuration file only"),
    ] {
        let mut both = body.clone();
        both["uploads"]["slots"] = 5.into();
        let answer = patch(&daemon, &both);
        assert!(
            answer.json()["error"].as_str().unwrap().contains(reason),
            "{body}: {:?}",
            answer.json()
        );
        answer.refused(400, Some(field));
    }
    for body in [&b"["[..], b"[]", b"", b"{\"limits\": {\"x\": 1e999}}"] {
        patch_bytes(&daemon, body).refused(400, Some("body"));
    }
    patch_bytes(&daemon, &[b' '; 600_000]).refused(413, Some("body"));
    let answer = daemon.get("/api/v1/settings").json();
    assert_eq!(answer["changes"], json!({}));
    assert_eq!(answer["settings"]["uploads"]["slots"], 8);
}

#[test]
fn the_commands_read_and_change_settings() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let _daemon = Daemon::start(folder);
    let name = "limits.download_bytes_per_s";
    assert_eq!(
        succeed(folder, &["config", "set", name, "500k"]),
        format!("{name} = 500000\n")
    );
    assert_eq!(succeed(folder, &["config", "get", name]), "500000\n");
    let limits = succeed(folder, &["config", "get", "limits"]);
    assert!(
        limits.contains(&format!("{name} = 500000  # changed at run time\n")),
        "{limits}"
    );
    let set = succeed(folder, &["config", "set", "net.threads", "2"]);
    assert!(set.contains("started again"), "{set}");
    let all = succeed(folder, &["config", "get"]);
    assert!(
        all.contains("net.threads = 1  # 2 after a restart\n") && all.contains("api.listen = "),
        "{all}"
    );
    succeed(folder, &["config", "reset", name]);
    assert_eq!(succeed(folder, &["config", "get", name]), "none\n");
    assert_eq!(
        succeed(folder, &["config", "set", name, "none"]),
        format!("{name} = none\n")
    );
    let error = fail(folder, &["config", "set", name, "5k"]);
    assert!(
        error.contains("limits.download_bytes_per_s: 5000 is too small"),
        "{error}"
    );
    for arguments in [["config", "get", "limits.x"], ["config", "reset", "x"]] {
        assert!(fail(folder, &arguments).contains("no such setting"));
    }
}
