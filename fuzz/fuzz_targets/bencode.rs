//! Checks that any bytes parse as a document or fail with an error whose offset lies inside them, and that a document's
//! parts lie inside it.
#![no_main]

use ecs_torrent_protocol::bencode::{Document, Limits, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match Document::parse(data, &Limits::small(1 << 20)) {
        Ok(document) => {
            assert_eq!(document.root().raw(), data);
            walk(document.root());
        }
        Err(error) => assert!(error.offset <= data.len()),
    }
});

fn walk(value: Value<'_>) -> usize {
    let children = value.as_list().into_iter().flatten().chain(value.as_dict().into_iter().flatten().map(|(_, v)| v));
    let inside: usize = children.map(walk).sum();
    assert!(inside <= value.raw().len());
    value.raw().len()
}
