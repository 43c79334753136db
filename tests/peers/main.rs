//! Interoperability with real clients: ecs-torrent downloads from and uploads to other programs, and the tests compare
//! the data byte for byte.
//!
//! `tests/peers/install` installs the programs. A case whose programs are missing is skipped by name. With
//! `REQUIRE_ALL=1` or `REQUIRE_PEERS=1`, such a case fails. All cases run in a separate network namespace, where every
//! node has an address: some clients accept nothing from a loopback address.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may fail as it likes, and its modules are seen by nobody else"
)]

mod cases;
mod clients;
#[path = "../support/content.rs"]
mod content;
mod lab;
#[path = "../support/namespace.rs"]
mod namespace;
mod nodes;
#[path = "../support/skipping.rs"]
mod skipping;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use self::clients::Program;
use self::lab::Lab;

/// A case: its name, the programs that it needs, and its function.
pub struct Case {
    pub name: &'static str,
    pub needs: &'static [Program],
    pub run: fn(&Lab),
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.list {
        return conclude(&arguments);
    }
    match lab::enter_namespace() {
        lab::Namespace::Inside => {}
        lab::Namespace::Ran(code) => return code,
        lab::Namespace::Unavailable(reason) => eprintln!("without a network namespace of its own: {reason}"),
    }
    // Each case runs several programs, which mostly wait for each other.
    arguments.test_threads = arguments.test_threads.or(Some(8));
    conclude(&arguments)
}

fn conclude(arguments: &Arguments) -> ExitCode {
    let is_required =
        skipping::is_everything_required() || std::env::var("REQUIRE_PEERS").is_ok_and(|value| value == "1");
    let trials = cases::all().into_iter().map(|case| trial(case, is_required));
    libtest_mimic::run(arguments, trials.collect()).exit_code()
}

fn trial(case: Case, is_required: bool) -> Trial {
    let missing: Vec<String> = case.needs.iter().filter_map(|program| program.missing()).collect();
    let is_skipped = !missing.is_empty() && !is_required;
    if is_skipped {
        let why = format!("tests/peers/install brings {}", missing.join(", "));
        skipping::skip(case.name, &why);
    }
    let run = move || match missing.is_empty() {
        true => {
            let lab = Lab::new(case.name);
            (case.run)(&lab);
            Ok(())
        }
        false => Err(Failed::from(format!("missing: {}", missing.join(", ")))),
    };
    Trial::test(case.name, run).with_ignored_flag(is_skipped)
}
