//! Times of whole ticks and of their parts: `cargo bench --workspace --bench micro`.
//!
//! Each bench asserts that the timed work took place.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    reason = "a bench may fail as it likes, and its modules are seen by nobody else"
)]

mod bencode;
mod picker;
mod tick;
mod verify;
mod wire;

#[path = "../support/engines.rs"]
mod engines;
#[path = "../support/many_peers.rs"]
mod many_peers;
#[path = "../support/peers.rs"]
mod peers;
#[path = "../support/streams.rs"]
mod streams;
#[path = "../support/torrents.rs"]
mod torrents;
#[path = "../support/watch.rs"]
mod watch;

criterion::criterion_group!(
    benches,
    bencode::bench,
    wire::bench,
    picker::bench,
    verify::bench,
    tick::bench
);
criterion::criterion_main!(benches);
