//! Simulation of whole swarms in one process: scenarios over [`engine::sim`](crate::engine::sim), checked by
//! invariants.
//!
//! ```
//! use std::time::Duration;
//! use ecs_torrent::sim::{Act, Link, Scenario, Who};
//!
//! let outcome = Scenario::new("a leecher loses its power")
//!     .seed(7)
//!     .seeds(1, Link::symmetric(1 << 20))
//!     .leeches(3, Link::symmetric(1 << 20))
//!     .at(Duration::from_secs(1), Act::PowerFails(Who::Leech(0)))
//!     .at(Duration::from_secs(5), Act::Starts(Who::Leech(0)))
//!     .run();
//! assert!(outcome.is_good(), "{outcome}");
//! ```
//!
//! A scenario is a torrent, nodes with their links, and acts at given times. It runs until every leecher that is up has
//! the torrent, or until its time limit. The same seed gives the same run, event for event: [`Outcome::trace`] is a
//! digest of all events, and [`Outcome`] prints the name and the seed that repeat the run. Plugins are tested with
//! [`Scenario::plugins`].
//!
//! | module | holds |
//! |---|---|
//! | [`invariants`] | conditions that hold after every tick |
//! | [`hostile`] | peers that lie, stall and flood |
//! | [`plot`] | the progress of each peer as SVG |

pub mod hostile;
pub mod invariants;
mod outcome;
pub mod plot;
mod report;
mod running;
mod scenario;

pub use self::outcome::{Outcome, Trouble};
pub use self::scenario::{Act, Link, Look, Scenario, When, Who};
