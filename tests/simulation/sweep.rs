//! Runs every scenario over many seeds.
//!
//! `SIM_SEEDS=200` sets the number of runs, spread over the scenarios. `SIM_SCENARIO='a name' SIM_SEED=7` repeats one
//! run, and with `RUST_LOG=debug` also shows what each engine logs, at its simulated time. `SIM_VERBOSE=1` reports the
//! begin and end of each run.

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ecs_torrent::sim::Outcome;

use crate::full;
use crate::scenarios::{ALL, Dice, Make};

/// Runs a scenario with a seed.
pub fn run(make: Make, seed: u64) -> Outcome {
    make(&mut Dice::new(seed)).seed(seed).run()
}

/// Runs `job` for each number below `count` on all processors and collects the results.
fn in_parallel<T: Send>(count: usize, job: impl Fn(usize) -> Option<T> + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let work = || {
        let numbers = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
        numbers
            .take_while(|number| *number < count)
            .filter_map(&job)
            .collect::<Vec<T>>()
    };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.flatten().collect()
    })
}

/// Reads a number from an environment variable.
pub fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}")),
    )
}

/// Returns the scenarios that `SIM_SCENARIO` selects, or all.
pub fn chosen(scenarios: &'static [(&'static str, Make)]) -> Vec<&'static (&'static str, Make)> {
    let wanted = std::env::var("SIM_SCENARIO").ok();
    let is_wanted = |name: &str| wanted.as_ref().is_none_or(|wanted| wanted == name);
    let mut known = ALL.iter().chain(full::ALL);
    assert!(
        known.any(|(name, _)| is_wanted(name)),
        "there is no scenario {wanted:?}"
    );
    scenarios.iter().filter(|(name, _)| is_wanted(name)).collect()
}

/// The command line that repeats a run.
fn repeats(name: &str, seed: u64) -> String {
    format!(
        "  repeat it with: SIM_SCENARIO='{name}' SIM_SEED={seed} cargo test --release --workspace --test simulation"
    )
}

/// Runs scenarios, each with a seed, and fails with the troubles of all of them.
pub fn expect_good(runs: &[(&str, Make, u64)]) {
    let is_only = number_from("SIM_SEED").is_some();
    let is_verbose = std::env::var_os("SIM_VERBOSE").is_some();
    if is_only && let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
        let log = tracing_subscriber::fmt().with_env_filter(filter).without_time();
        let _ = log.with_writer(std::io::stderr).try_init();
    }
    let failures = in_parallel(runs.len(), |number| {
        let (name, make, seed) = runs[number];
        if is_verbose {
            eprintln!("{name}, seed {seed} begins");
        }
        let begun = Instant::now();
        let Ok(outcome) = catch_unwind(|| run(make, seed)) else {
            return Some(format!("{name}, seed {seed} panicked\n{}", repeats(name, seed)));
        };
        if is_verbose {
            let (took, Outcome { ticks, events, .. }) = (begun.elapsed(), &outcome);
            eprintln!("{outcome}\n  {took:.1?}, {ticks} ticks, {events} events");
        }
        if is_only {
            eprintln!("{outcome}");
            for (at, what) in &outcome.timeline {
                eprintln!("  {at:?} {what}");
            }
        }
        assert_eq!(outcome.name, *name, "the name that repeats it");
        (!outcome.is_good()).then(|| format!("{outcome}\n{}", repeats(name, seed)))
    });
    assert!(
        failures.is_empty(),
        "{} of {} runs went wrong:\n{}",
        failures.len(),
        runs.len(),
        failures.join("\n")
    );
}

#[test]
fn scenarios_hold_over_many_seeds() {
    let scenarios = chosen(ALL);
    let only = number_from("SIM_SEED");
    let count = match (only, scenarios.len()) {
        (_, 0) => return,
        (Some(_), all) => all,
        (None, all) => number_from("SIM_SEEDS").map_or(all, |count| count as usize),
    };
    let run = |number: usize| {
        let (name, make) = scenarios[number % scenarios.len()];
        let seed = only.unwrap_or(number as u64 / scenarios.len() as u64 + 1);
        (*name, *make, seed)
    };
    expect_good(&(0..count).map(run).collect::<Vec<_>>());
}

#[test]
fn a_seed_determines_a_run() {
    // Without optimization there is time for a few scenarios only.
    let step = if cfg!(debug_assertions) { 5 } else { 1 };
    let differing = in_parallel(ALL.len().div_ceil(step), |number| {
        let (name, make) = ALL[number * step];
        let (first, second, other) = (run(make, 3), run(make, 3), run(make, 4));
        assert_ne!(first.trace, other.trace, "{name}: another seed, another run");
        (first.trace != second.trace).then_some(name)
    });
    assert!(differing.is_empty(), "not determined: {differing:?}");
}

/// Ticking the engines on several threads does not change the outcome.
#[test]
fn threads_change_nothing() {
    let swarm = |tick_quantum, threads| {
        let (_, make) = ALL[1];
        make(&mut Dice::new(5))
            .seed(5)
            .tick_quantum(tick_quantum, threads)
            .run()
    };
    let tick_quantum = Duration::from_millis(2);
    let (one, three) = (swarm(tick_quantum, 1), swarm(tick_quantum, 3));
    assert!(one.is_good() && three.is_good(), "{one}\n{three}");
    assert_eq!((one.trace, one.ticks), (three.trace, three.ticks));
    assert_ne!(
        one.trace,
        swarm(Duration::ZERO, 1).trace,
        "a tick_quantum is another run"
    );
}
