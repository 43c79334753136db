//! The least and the greatest value of every setting that is a number.

use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ecs_torrent::components::settings::{Number, Numbers, SettingError, Settings};
use ecs_torrent::config::{Config, ConfigFile};
use ecs_torrent::engine::backends::StartError;
use ecs_torrent::events::Event;
use ecs_torrent::{AddOptions, Engine, Source, TorrentPlugins};
use serde_json::Value;

use crate::bed::{Daemon, PATIENCE, command, fail, succeed, torrent};

fn key(number: &Number) -> String {
    format!("{}.{}", number.section, number.name)
}

/// A configuration with one value, and with those changed along that bound it.
fn with(number: &Number, value: u64) -> Result<Config, String> {
    let mut values = vec![(number.section, number.name, value)];
    loop {
        let mut tree = Value::default();
        for (section, name, value) in &values {
            tree[*section][*name] = (*value).into();
        }
        let config: Config = serde_json::from_value(tree).map_err(|error| error.to_string())?;
        match config.settings().check() {
            Err(SettingError::Order {
                section, small, large, ..
            }) if values.len() < 4 => {
                let other = if values.iter().any(|(_, name, _)| *name == small) {
                    large
                } else {
                    small
                };
                values.push((section, other, value));
            }
            _ => return Ok(config),
        }
    }
}

/// Values outside of a range are refused with the setting, the value and the range; those at its ends are not.
#[test]
fn ranges_are_checked_at_their_ends() {
    let numbers = Config::default().numbers();
    assert!(numbers.len() > 70);
    for number in &numbers {
        let (least, most) = (number.least(), number.most());
        for value in [
            Some(0),
            least.checked_sub(1),
            Some(least),
            Some(most),
            most.checked_add(1),
            Some(u64::MAX),
        ] {
            let Some(value) = value else { continue };
            let text = format!("({}: ({}: {value}))", number.section, number.name);
            let file = ConfigFile::new("c.ron", text);
            let checked = file
                .parse()
                .and_then(|config| config.check())
                .map_err(|error| file.place(error).to_string());
            let error = checked.err().unwrap_or_default();
            if number.range.contains(&value) {
                assert!(error.is_empty() || error.contains(" is more than "), "{error}");
                assert_eq!(
                    with(number, value).unwrap().check().map_err(|error| error.to_string()),
                    Ok(())
                );
            } else {
                let expected = format!("it can be from {least} to {most}");
                assert!(
                    error.contains(&format!(": {}: {value} is too ", key(number))),
                    "{error}"
                );
                assert!(error.starts_with("c.ron:1:") && error.ends_with(&expected), "{error}");
            }
        }
    }
}

/// Those that were seen to panic, hang or stall.
#[test]
fn values_that_did_harm_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for (text, reason) in [
        (
            "(net: (threads: 18446744073709551615))",
            "c.ron:1:17: net.threads: 18446744073709551615 is too large",
        ),
        (
            "(net: (max_lookups: 18446744073709551615))",
            "net.max_lookups: 18446744073709551615 is too large",
        ),
        (
            "(net: (read_chunk_bytes: 18446744073709551615))",
            "net.read_chunk_bytes: 18446744073709551615 is too large",
        ),
        (
            "(tick: (min_interval_us: 3600000000))",
            "tick.min_interval_us: 3600000000 is too large",
        ),
    ] {
        std::fs::write(folder.join("c.ron"), text).unwrap();
        for arguments in [&["config", "check", "c.ron"][..], &["daemon", "--config", "c.ron"]] {
            let error = fail(folder, arguments);
            assert!(error.contains(reason) && error.contains("it can be from "), "{error}");
        }
    }
    let mut settings = Settings::default();
    settings.net.threads = usize::MAX;
    let started = Engine::builder().settings(settings).start();
    assert!(
        matches!(started, Err(StartError::Setting(_))),
        "an embedder is told too"
    );
}

/// What is not a short regular file is refused at once.
#[test]
fn other_files_are_no_configuration() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    std::fs::create_dir(folder.join("folder")).unwrap();
    std::fs::File::create(folder.join("large"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    std::fs::write(folder.join("binary"), [0xff; 100]).unwrap();
    for (path, reason) in [
        ("/dev/zero", "not a regular file"),
        ("/dev/null", "not a regular file"),
        ("fifo", "not a regular file"),
        ("folder", "not a regular file"),
        ("large", "longer than 1048576 bytes"),
        ("binary", "UTF-8"),
    ] {
        for arguments in [&["config", "check", path][..], &["daemon", "--config", path]] {
            let error = fail(folder, arguments);
            assert!(
                error.contains(&format!("cannot read {path}: ")) && error.contains(reason),
                "{error}"
            );
        }
    }
    let mut child = command(folder, &["config", "check", "/dev/stdin"]);
    let output = child.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

/// Starts an engine that checks and seeds a torrent, and stops it.
fn run(settings: Settings, folder: &Path, bytes: &[u8]) -> Result<(), String> {
    let state = tempfile::tempdir().unwrap();
    let settings = Settings {
        session: ecs_torrent::components::settings::SessionSettings {
            state_dir: Some(state.path().to_owned()),
            ..settings.session
        },
        net: ecs_torrent::components::settings::NetSettings {
            listen: vec![([127, 0, 0, 1], 0).into()],
            ..settings.net
        },
        ..settings
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let engine = Engine::builder().plugins(TorrentPlugins).settings(settings).start();
    let engine = engine.map_err(|error| error.to_string())?;
    let torrents = engine.torrents();
    let work = async {
        let mut events = torrents.subscribe();
        let source = Source::from(bytes::Bytes::copy_from_slice(bytes));
        let options = AddOptions {
            root: Some(folder.to_owned()),
            ..AddOptions::default()
        };
        let id = torrents
            .download_with(source, options)
            .await
            .map_err(|error| error.to_string())?;
        loop {
            match events.next().await {
                Some(Event::Started(_)) => break,
                Some(_) => {}
                None => return Err("the engine has ended".to_owned()),
            }
        }
        let stats = torrents.stats(id).await.map_err(|error| error.to_string())?;
        if stats.progress() < 1.0 {
            return Err(format!("it found {} of the data", stats.progress()));
        }
        torrents
            .stop_all_and_serialize()
            .await
            .map_err(|error| error.to_string())
    };
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, work).await })
        .unwrap_or_else(|_| Err("it does not come to an end".to_owned()))
}

/// An engine works with every setting at either end of its range, and with all of them.
#[test]
fn an_engine_works_at_the_ends_of_every_range() {
    let temporary = tempfile::tempdir().unwrap();
    let (_, bytes) = torrent(temporary.path(), "one.bin", 1, &[]);
    let mut cases: Vec<(String, Settings)> = Vec::new();
    let (mut all_least, mut all_most) = (Value::default(), Value::default());
    for number in Settings::default().numbers() {
        for value in [number.least(), number.most()] {
            let settings = with(&number, value).unwrap().settings();
            cases.push((format!("{}: {value}", key(&number)), settings));
        }
        all_least[number.section][number.name] = number.least().into();
        all_most[number.section][number.name] = number.most().into();
    }
    for (name, tree) in [("all least", all_least), ("all greatest", all_most)] {
        cases.push((name.to_owned(), serde_json::from_value(tree).unwrap()));
    }
    let cases = Mutex::new(cases);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some((name, settings)) = cases.lock().unwrap().pop() else {
                        return;
                    };
                    let begin = Instant::now();
                    if let Err(reason) = run(settings, temporary.path(), &bytes) {
                        failures.lock().unwrap().push(format!("{name}: {reason}"));
                    }
                    if begin.elapsed() > Duration::from_secs(5) {
                        eprintln!("{name} took {:?}", begin.elapsed());
                    }
                }
            });
        }
    });
    assert_eq!(failures.into_inner().unwrap(), [""; 0]);
}

/// The API works at both ends of its ranges too.
#[test]
fn the_api_works_at_the_ends_of_its_ranges() {
    for pick in [Number::least as fn(&Number) -> u64, Number::most] {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        let numbers = Config::default().numbers();
        let api = numbers.iter().filter(|number| number.section == "api");
        let values: String = api
            .map(|number| format!("{}: {}, ", number.name, pick(number)))
            .collect();
        std::fs::write(folder.join("c.ron"), format!("(api: ({values}))")).unwrap();
        let daemon = Daemon::start_with(folder, &["--config", "c.ron"]);
        assert_eq!(daemon.get("/api/v1/torrents").body, "[]");
        assert_eq!(succeed(folder, &["list"]), "no torrents\n");
        let address = daemon.address.to_string();
        assert_eq!(succeed(folder, &["list", "--api", &address]), "no torrents\n");
    }
}
