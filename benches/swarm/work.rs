//! Runs the work of each row with each client in turn.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::clients::{Client, Job, Saved, itself, lower_bound};
use crate::content::Content;
use crate::lab::{Lab, MEASURED, PORT, counterpart};
use crate::options::Options;
use crate::process::{Program, Running, Sign, Usage};
use crate::rows::{Metric, Row, Shape, Work};
use crate::{many_peers, small};

/// Figures of each run of a client in a row, or the reason why the run failed.
pub type Runs = Vec<Result<Vec<(Metric, f64)>, String>>;

/// The runs of each client, by row and client.
pub type Results = BTreeMap<(&'static str, &'static str), Runs>;

/// Shape of checked, created and uploaded torrents.
const PLAIN: Shape = Shape {
    piece_length: 1 << 20,
    files: 1,
};

/// Time for which a restarted client is measured while it idles.
const IDLE: Duration = Duration::from_secs(20);

pub fn measure_all(lab: &Lab, rows: &[&Row], clients: &[Box<dyn Client>], options: &Options) -> Results {
    let bar = ProgressBar::new((rows.len() * options.runs * clients.len()) as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut results = Results::new();
    for row in rows {
        for run in 1..=options.runs {
            for client in clients {
                bar.set_message(format!("{} {} {run}", row.name, client.name()));
                if let Some(result) = measure(lab, row.work, client.as_ref(), options).transpose() {
                    if let Err(reason) = &result {
                        bar.suspend(|| eprintln!("{} with {}: {reason}", row.name, client.name()));
                    }
                    results.entry((row.name, client.name())).or_default().push(result);
                }
                bar.inc(1);
            }
        }
        // Makes room for the next row's content.
        lab.fresh("small");
    }
    bar.finish_and_clear();
    results
}

/// Measures one run. Returns `None` if the client does not support the work.
fn measure(
    lab: &Lab,
    work: Work,
    client: &dyn Client,
    options: &Options,
) -> Result<Option<Vec<(Metric, f64)>>, String> {
    let ours = client.name() == "ecs-torrent";
    match work {
        Work::Leech { seeders, shape } => leech(lab, client, &Content::make(lab, options.size, shape), seeders),
        Work::Seed { leechers } => seed(lab, client, &Content::make(lab, options.size, PLAIN), leechers),
        Work::Check => whole(lab, &Content::make(lab, options.size * 2, PLAIN), |job| {
            client.check(job)
        }),
        Work::Create => whole(lab, &Content::make(lab, options.size * 2, PLAIN), |job| {
            client.create(job)
        }),
        Work::Restart { torrents } => restart(lab, client, torrents),
        Work::Peers { count } if ours => peers(lab, &Content::make(lab, 64, PLAIN), count).map(Some),
        Work::Tick if ours => tick().map(Some),
        Work::Peers { .. } | Work::Tick => Ok(None),
    }
}

fn with_job<T>(lab: &Lab, content: &Content, seeders: &[SocketAddr], act: impl FnOnce(&Job) -> T) -> T {
    act(&Job {
        content,
        target: &lab.fresh("target"),
        scratch: &lab.fresh("scratch"),
        seeders,
    })
}

/// Figures of a client that transferred or hashed `gib` GiB.
fn figures(usage: Usage, gib: f64) -> Vec<(Metric, f64)> {
    vec![
        (Metric::Cpu, usage.cpu_s / gib),
        (Metric::Wall, usage.wall_s),
        (Metric::PeakMemory, usage.peak_mib),
    ]
}

fn leech(
    lab: &Lab,
    client: &dyn Client,
    content: &Content,
    seeders: usize,
) -> Result<Option<Vec<(Metric, f64)>>, String> {
    let addresses: Vec<SocketAddr> = (0..seeders as u8)
        .map(|number| SocketAddr::new(counterpart(number), PORT))
        .collect();
    lab.announce(&addresses);
    with_job(lab, content, &addresses, |job| {
        let Some(program) = client.leech(job) else {
            return Ok(None);
        };
        let running: Result<Vec<_>, _> = addresses
            .iter()
            .map(|address| Running::start(lower_bound::seed(content, *address)))
            .collect();
        let _seeders = running?;
        let usage = Running::start(program)?.finish()?;
        compare(&content.folder.join(&content.name), &job.target.join(&content.name))?;
        Ok(Some(figures(usage, content.gib())))
    })
}

fn seed(
    lab: &Lab,
    client: &dyn Client,
    content: &Content,
    leechers: usize,
) -> Result<Option<Vec<(Metric, f64)>>, String> {
    lab.announce(&[]);
    with_job(lab, content, &[], |job| {
        let Some(program) = client.seed(job) else {
            return Ok(None);
        };
        let seeder = Running::start(program)?;
        let before = seeder.usage()?;
        let address = SocketAddr::new(MEASURED, PORT);
        let running: Result<Vec<_>, _> = (0..leechers)
            .map(|_| Running::start(lower_bound::leech(content, address)))
            .collect();
        running?
            .into_iter()
            .try_for_each(|leecher| leecher.finish().map(drop))?;
        let after = seeder.usage()?;
        let usage = Usage {
            wall_s: after.wall_s - before.wall_s,
            cpu_s: after.cpu_s - before.cpu_s,
            peak_mib: after.peak_mib,
        };
        Ok(Some(figures(usage, content.gib() * leechers as f64)))
    })
}

/// Measures a client that runs by itself from start to end.
fn whole(
    lab: &Lab,
    content: &Content,
    program: impl FnOnce(&Job) -> Option<Program>,
) -> Result<Option<Vec<(Metric, f64)>>, String> {
    with_job(lab, content, &[], |job| {
        let Some(program) = program(job) else {
            return Ok(None);
        };
        let usage = Running::start(program)?.finish()?;
        Ok(Some(figures(usage, content.gib())))
    })
}

fn restart(lab: &Lab, client: &dyn Client, count: u32) -> Result<Option<Vec<(Metric, f64)>>, String> {
    let folder = lab.path().join("small");
    let (torrents, data) = (folder.join(format!("{count}-torrents")), folder.join("data"));
    let state = folder.join(format!("{count}-{}", client.name()));
    let saved = Saved {
        torrents: &torrents,
        data: &data,
        state: &state,
    };
    let Some(program) = client.restart(&saved) else {
        return Ok(None);
    };
    let io = |error: std::io::Error| error.to_string();
    if !torrents.exists() {
        std::fs::create_dir_all(&data).map_err(io)?;
        std::fs::create_dir_all(&torrents).map_err(io)?;
        small::write(&torrents, &data, count);
    }
    if !state.exists() {
        std::fs::create_dir_all(&state).map_err(io)?;
        let Some(prepare) = client.prepare(&saved) else {
            return Ok(None);
        };
        let prepared = Running::start(prepare).and_then(Running::finish);
        if let Err(reason) = prepared {
            std::fs::remove_dir_all(&state).map_err(io)?;
            return Err(reason);
        }
    }
    let mut running = Running::start(program)?;
    running.until_done()?;
    let up = running.usage()?;
    thread::sleep(IDLE);
    let idle = running.usage()?;
    Ok(Some(vec![
        (Metric::Wall, up.wall_s),
        (Metric::PeakMemory, idle.peak_mib),
        (
            Metric::Idle,
            (idle.cpu_s - up.cpu_s) / (idle.wall_s - up.wall_s) * 100.0,
        ),
    ]))
}

fn peers(lab: &Lab, content: &Content, count: usize) -> Result<Vec<(Metric, f64)>, String> {
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: Some(20_000),
            maximum: Some(20_000),
        },
    );
    let address = SocketAddr::new(MEASURED, PORT);
    let mut command = itself();
    command
        .args(["engine", "peers"])
        .args([&content.torrent, &content.folder, &lab.fresh("scratch")])
        .arg(address.to_string());
    let mut engine = Running::start(Program {
        command,
        ready: Sign::Line("ready"),
        done: Sign::Start,
    })?;
    many_peers::measure(&mut engine, &content.torrent, address, count)
}

fn tick() -> Result<Vec<(Metric, f64)>, String> {
    let sizes = [
        (Metric::Tick1, "1"),
        (Metric::Tick1k, "1000"),
        (Metric::Tick100k, "100000"),
    ];
    let time = |(metric, torrents)| {
        let mut command = itself();
        command.args(["engine", "tick", torrents]);
        let output = command.output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout);
        let micros = said.trim().parse().map_err(|_| {
            let why = String::from_utf8_lossy(&output.stderr);
            format!("a world of {torrents} torrents: {why}")
        })?;
        Ok((metric, micros))
    };
    sizes.into_iter().map(time).collect()
}

/// Checks that two files or folders have the same content.
fn compare(expected: &Path, actual: &Path) -> Result<(), String> {
    let found = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    if expected.is_dir() {
        for entry in std::fs::read_dir(expected).map_err(|error| found(expected, error))? {
            let name = entry.map_err(|error| found(expected, error))?.file_name();
            compare(&expected.join(&name), &actual.join(&name))?;
        }
        return Ok(());
    }
    let open = |path: &Path| {
        let file = std::fs::File::open(path).map_err(|error| found(path, error))?;
        Ok::<_, String>(std::io::BufReader::with_capacity(1 << 20, file))
    };
    let (mut one, mut other) = (open(expected)?, open(actual)?);
    loop {
        use std::io::BufRead;
        let a = one.fill_buf().map_err(|error| found(expected, error))?;
        let b = other.fill_buf().map_err(|error| found(actual, error))?;
        let len = a.len().min(b.len());
        if a[..len] != b[..len] || a.is_empty() != b.is_empty() {
            return Err(format!("{} is not what was sent", actual.display()));
        }
        if len == 0 {
            return Ok(());
        }
        one.consume(len);
        other.consume(len);
    }
}
