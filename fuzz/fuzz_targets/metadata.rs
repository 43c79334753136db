//! Checks that any payload of `ut_metadata` is read or refused, that a read message is written as the same one, and
//! that no sequence of messages makes a fetch panic or complete with other bytes than the right ones.
#![no_main]

use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_protocol::hash::{InfoHash, sha1};
use ecs_torrent_protocol::metadata::{Fetch, FetchLimits, MetadataMessage, Outcome};
use ecs_torrent_protocol::time::Timestamp;
use libfuzzer_sys::fuzz_target;

const SIZES: [u32; 4] = [1, 20_000, 32_768, 40_000];

fuzz_target!(|data: &[u8]| {
    let payload = Bytes::copy_from_slice(data);
    if let Ok(Some(message)) = MetadataMessage::read(&payload) {
        assert_eq!(MetadataMessage::read(&message.write()), Ok(Some(message)));
    }
    let info = Bytes::from(vec![7; 20_000]);
    let mut fetch = Fetch::new(InfoHash(sha1([&info[..]])), FetchLimits::default());
    let mut now = Timestamp::ZERO;
    for step in data.chunks_exact(3) {
        let (peer, piece) = (step[1] % 5, u32::from(step[2] % 4));
        match step[0] % 6 {
            0 => drop(fetch.add_source(peer, SIZES[usize::from(step[2] % 4)])),
            1 => fetch.remove_source(peer),
            2 => drop(fetch.requests(now)),
            3 => drop(fetch.reject(peer, piece, now)),
            4 => now += Duration::from_millis(u64::from(step[2]) * 50),
            _ => {
                let size = SIZES[usize::from(step[2] >> 6)];
                let len = ecs_torrent_protocol::metadata::piece_len(size, piece) as usize;
                let data = Bytes::from(vec![7 * (step[1] >> 7); len]);
                if let Outcome::Complete { info: found, .. } = fetch.receive(peer, piece, size, data, now) {
                    assert_eq!(found, info);
                }
            }
        }
        assert!(fetch.progress().is_none_or(|(received, pieces)| received <= pieces));
    }
});
