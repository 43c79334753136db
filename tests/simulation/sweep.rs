//! Every scenario over many seeds.
//!
//! `SIM_SEEDS=200` says how many runs, spread over the scenarios; `SIM_SCENARIO='a name' SIM_SEED=7` repeats one;
//! `SIM_VERBOSE=1` tells when each begins and ends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use ecs_torrent::sim::Outcome;

use crate::scenarios::{ALL, Dice, Make};

/// One run of a scenario.
pub fn run(make: Make, seed: u64) -> Outcome {
    make(&mut Dice::new(seed)).seed(seed).run()
}

/// Carries out `job` for each number below `count`, on all processors, and gathers what they return.
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

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}")),
    )
}

#[test]
fn scenarios_hold_over_many_seeds() {
    let wanted = std::env::var("SIM_SCENARIO").ok();
    let scenarios: Vec<_> = ALL
        .iter()
        .filter(|(name, _)| wanted.as_ref().is_none_or(|wanted| wanted == name))
        .collect();
    assert!(!scenarios.is_empty(), "there is no scenario {wanted:?}");
    let only = number_from("SIM_SEED");
    let is_verbose = std::env::var_os("SIM_VERBOSE").is_some();
    let count = match only {
        Some(_) => scenarios.len(),
        None => number_from("SIM_SEEDS").map_or(scenarios.len(), |count| count as usize),
    };
    let failures = in_parallel(count, |number| {
        let (name, make) = scenarios[number % scenarios.len()];
        let seed = only.unwrap_or(number as u64 / scenarios.len() as u64 + 1);
        if is_verbose {
            eprintln!("{name}, seed {seed} begins");
        }
        let begun = Instant::now();
        let outcome = run(*make, seed);
        if is_verbose {
            let (took, Outcome { ticks, events, .. }) = (begun.elapsed(), &outcome);
            eprintln!("{name}, seed {seed}: {took:.1?}, {ticks} ticks, {events} events");
        }
        if only.is_some() {
            eprintln!("{outcome}");
            outcome
                .timeline
                .iter()
                .for_each(|(at, what)| eprintln!("  {at:?} {what}"));
        }
        assert_eq!(outcome.name, *name, "the name that repeats it");
        (!outcome.is_good()).then(|| outcome.to_string())
    });
    assert!(
        failures.is_empty(),
        "{} of {count} runs went wrong:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn a_seed_determines_a_run() {
    // Without optimisation, a few have to do.
    let step = if cfg!(debug_assertions) { 5 } else { 1 };
    let differing = in_parallel(ALL.len().div_ceil(step), |number| {
        let (name, make) = ALL[number * step];
        let (first, second, other) = (run(make, 3), run(make, 3), run(make, 4));
        assert_ne!(first.trace, other.trace, "{name}: another seed, another run");
        (first.trace != second.trace).then_some(name)
    });
    assert!(differing.is_empty(), "not determined: {differing:?}");
}
