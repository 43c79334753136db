//! The minimum and maximum values of every numeric setting.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;

use ecs_torrent::components::settings::{Number, Numbers, SettingError, Settings};
use ecs_torrent::config::{Config, ConfigFile};
use ecs_torrent::engine::backends::StartError;
use ecs_torrent::events::Event;
use ecs_torrent::{AddOptions, Engine, Error, Source, TorrentPlugins};
use serde_json::Value;

use crate::bed::{Daemon, PATIENCE, command, fail, succeed, torrent};
use crate::content::compare;

fn key(number: &Number) -> String {
    format!("{}.{}", number.section, number.name)
}

/// Builds a configuration with one value set, and adjusts the settings that bound this value.
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

/// A value outside its range is refused with an error that gives the setting, the value and the range. Values at the
/// ends of the range are accepted.
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

/// Values that once caused a panic, a hang or a stall are refused.
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
        "an embedder learns it too"
    );
}

/// A configuration that is not a short regular file is refused immediately.
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

/// Runs an engine until a torrent in `folder` is complete, then stops it. The engine downloads from `seed` or finds
/// the data in place.
fn run(settings: Settings, folder: &Path, bytes: &[u8], seed: Option<SocketAddr>) -> Result<(), String> {
    let state = tempfile::tempdir().unwrap();
    let engine = start(settings, state.path()).map_err(|error| error.to_string())?;
    let torrents = engine.torrents();
    let work = async {
        let mut events = torrents.subscribe();
        let options = AddOptions {
            root: Some(folder.to_owned()),
            peers: seed.into_iter().collect(),
            ..AddOptions::default()
        };
        let source = Source::from(bytes::Bytes::copy_from_slice(bytes));
        let id = torrents.download_with(source, options).await?;
        while let Some(event) = events.next().await {
            let is_ready = match seed {
                None => matches!(event, Event::Started(_)),
                Some(_) => matches!(event, Event::Completed(_)),
            };
            if is_ready {
                break;
            }
        }
        let progress = torrents.stats(id).await?.progress();
        torrents.stop_all_and_serialize().await?;
        Ok(progress)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    match runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await }) {
        Ok(Ok(progress)) if progress >= 1.0 => Ok(()),
        Ok(Ok(progress)) => Err(format!("it has {progress} of the data")),
        Ok(Err(error)) => Err(Error::to_string(&error)),
        Err(_) => Err("it does not come to an end".to_owned()),
    }
}

fn start(mut settings: Settings, state: &Path) -> Result<Engine, StartError> {
    settings.session.state_dir = Some(state.to_owned());
    settings.net.listen = vec![([127, 0, 0, 1], 0).into()];
    Engine::builder().plugins(TorrentPlugins).settings(settings).start()
}

/// Returns settings with each number at either end of its range, and a name for each case.
fn ends_of_ranges() -> Vec<(String, Settings)> {
    let numbers = Settings::default().numbers().into_iter();
    let ends = numbers.flat_map(|number| [number.least(), number.most()].map(|value| (number.clone(), value)));
    ends.map(|(number, value)| {
        let settings = with(&number, value).unwrap().settings();
        (format!("{}: {value}", key(&number)), settings)
    })
    .collect()
}

/// Runs all cases on four threads, and asserts that all succeed.
fn run_all(cases: Vec<(String, Settings)>, run: impl Fn(Settings) -> Result<(), String> + Sync) {
    let cases = Mutex::new(cases);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let case = cases.lock().unwrap().pop();
                    let Some((name, settings)) = case else { return };
                    if let Err(reason) = run(settings) {
                        failures.lock().unwrap().push(format!("{name}: {reason}"));
                    }
                }
            });
        }
    });
    assert_eq!(failures.into_inner().unwrap(), [""; 0]);
}

/// An engine verifies and seeds with each number at either end of its range, and with all numbers there at once.
#[test]
fn an_engine_seeds_at_the_ends_of_every_range() {
    let temporary = tempfile::tempdir().unwrap();
    let (_, bytes) = torrent(temporary.path(), "one.bin", 1, &[]);
    let mut cases = ends_of_ranges();
    for (name, pick) in [
        ("all least", Number::least as fn(&Number) -> u64),
        ("all greatest", Number::most),
    ] {
        let mut tree = Value::default();
        for number in Settings::default().numbers() {
            tree[number.section][number.name] = pick(&number).into();
        }
        cases.push((name.to_owned(), serde_json::from_value(tree).unwrap()));
    }
    run_all(cases, |settings| run(settings, temporary.path(), &bytes, None));
}

/// Cases in which the value 0 disables downloading from a peer that the user named.
const NO_DOWNLOAD: [&str; 2] = ["peers.max_candidates: 0", "peers.max_half_open: 0"];

#[test]
fn an_engine_downloads_at_the_ends_of_every_range() {
    let temporary = tempfile::tempdir().unwrap();
    let (_, bytes) = torrent(temporary.path(), "one.bin", 1, &[]);
    let state = tempfile::tempdir().unwrap();
    let seeder = start(Settings::default(), state.path()).unwrap();
    let source = Source::from(bytes::Bytes::copy_from_slice(&bytes));
    let options = AddOptions {
        root: Some(temporary.path().to_owned()),
        ..AddOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime
        .block_on(seeder.torrents().download_with(source, options))
        .unwrap();
    let seed = seeder.local_addresses()[0];
    let mut cases = ends_of_ranges();
    let count = cases.len();
    cases.retain(|(name, _)| !NO_DOWNLOAD.contains(&name.as_str()));
    assert_eq!(cases.len() + NO_DOWNLOAD.len(), count);
    run_all(cases, |settings| {
        let folder = tempfile::tempdir().unwrap();
        run(settings, folder.path(), &bytes, Some(seed))?;
        compare(&temporary.path().join("one.bin"), &folder.path().join("one.bin"))
    });
}

/// The API works with its numbers at both ends of their ranges.
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
