//! Whole swarms in one process: scenarios over [`engine::sim`](crate::engine::sim), judged by invariants.
//!
//! ```
//! use std::time::Duration;
//! use ecs_torrent::sim::{Act, Line, Scenario, Who};
//!
//! let outcome = Scenario::new("a leecher loses its power")
//!     .seed(7)
//!     .seeds(1, Line::symmetric(1 << 20))
//!     .leeches(3, Line::symmetric(1 << 20))
//!     .at(Duration::from_secs(1), Act::PowerFails(Who::Leech(0)))
//!     .at(Duration::from_secs(5), Act::Starts(Who::Leech(0)))
//!     .run();
//! assert!(outcome.is_good(), "{outcome}");
//! ```
//!
//! A scenario is a torrent, nodes with their lines, and acts at their times. It runs until every leecher that is up has
//! the torrent, or its patience is over. The same seed gives the same run, event for event: [`Outcome::trace`] is the
//! proof, and [`Outcome`] prints the one line that repeats it. Plugins are tested with [`Scenario::plugins`].
//!
//! | module | holds |
//! |---|---|
//! | [`invariants`] | what holds after every tick |
//! | [`hostile`] | peers that lie, stall and flood |
//! | [`plot`] | the progress of each peer as SVG |

pub mod hostile;
pub mod invariants;
mod outcome;
pub mod plot;
mod running;
mod scenario;
mod telling;

pub use self::outcome::{Outcome, Trouble};
pub use self::scenario::{Act, Line, Look, Scenario, When, Who};
