//! SHA-1 of two messages at once, in about 1.25 times the time of one.
//!
//! Each step of SHA-1 depends on the previous one, and the processor's SHA instructions take several cycles each, so
//! with one message they are idle half of the time. Two independent messages, such as two pieces of a torrent, fill the
//! gaps.

#[cfg(target_arch = "x86_64")]
mod x86;

use sha1::{Digest as _, Sha1};

use crate::hash::Sha1Digest;

/// Two SHA-1 computations that run together.
pub struct Sha1Pair(Kind);

enum Kind {
    #[cfg(target_arch = "x86_64")]
    Interleaved(Box<[x86::Lane; 2]>),
    /// Computes one after the other on processors without the instructions.
    Separate(Box<[Sha1; 2]>),
}

impl Default for Sha1Pair {
    fn default() -> Self {
        #[cfg(target_arch = "x86_64")]
        if x86::is_available() {
            return Self(Kind::Interleaved(Box::default()));
        }
        Self(Kind::Separate(Box::default()))
    }
}

impl Sha1Pair {
    /// Appends the next bytes to each message; fast for parts of equal length.
    pub fn update(&mut self, parts: [&[u8]; 2]) {
        match &mut self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Interleaved(lanes) => x86::update(lanes, parts),
            Kind::Separate(hashers) => hashers
                .iter_mut()
                .zip(parts)
                .for_each(|(hasher, part)| hasher.update(part)),
        }
    }

    /// Returns the two digests.
    #[must_use]
    pub fn finish(self) -> [Sha1Digest; 2] {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Interleaved(lanes) => x86::finish(*lanes),
            Kind::Separate(hashers) => hashers.map(|hasher| hasher.finalize().into()),
        }
    }
}

/// Computes the SHA-1 of each of two lists of parts, each list concatenated.
pub fn sha1_pair<'a>(lists: [impl IntoIterator<Item = &'a [u8]>; 2]) -> [Sha1Digest; 2] {
    let mut pair = Sha1Pair::default();
    let mut lists = lists.map(IntoIterator::into_iter);
    let mut parts: [&[u8]; 2] = [&[]; 2];
    loop {
        let mut has_ended = [false; 2];
        for ((part, list), has_ended) in parts.iter_mut().zip(&mut lists).zip(&mut has_ended) {
            while part.is_empty() && !*has_ended {
                match list.next() {
                    Some(next) => *part = next,
                    None => *has_ended = true,
                }
            }
        }
        // As many bytes as both have, or all that remain once one list has ended.
        let len = match has_ended {
            [true, true] => return pair.finish(),
            [true, false] => parts[1].len(),
            [false, true] => parts[0].len(),
            [false, false] => parts[0].len().min(parts[1].len()),
        };
        let now = parts.map(|part| &part[..part.len().min(len)]);
        pair.update(now);
        parts = [&parts[0][now[0].len()..], &parts[1][now[1].len()..]];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hash::sha1;

    /// RFC 3174, section 7.3.
    #[test]
    fn digests_are_those_of_the_standard() {
        let hex = |digest: Sha1Digest| const_hex::encode(digest);
        let message = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        let [abc, longer] = sha1_pair([["abc".as_bytes()], [message.as_bytes()]]);
        assert_eq!(hex(abc), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(hex(longer), "84983e441c3bd26ebaae4aa1f95129e5e54670f1");
        let none: [&[u8]; 0] = [];
        let [nothing, _] = sha1_pair([none, none]);
        assert_eq!(hex(nothing), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
    }

    /// Lists of parts, with random lengths and contents.
    fn parts() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let len = prop_oneof![0..130usize, 0..2000usize, Just(64), Just(128)];
        let part = (len, any::<u8>()).prop_map(|(len, seed)| {
            let bytes = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed));
            bytes.collect()
        });
        proptest::collection::vec(part, 0..8)
    }

    proptest! {
        #[test]
        fn hashing_two_equals_hashing_each(a in parts(), b in parts()) {
            let alone = [&a, &b].map(|parts| sha1(parts.iter().map(Vec::as_slice)));
            let together = sha1_pair([&a, &b].map(|parts| parts.iter().map(Vec::as_slice)));
            prop_assert_eq!(together, alone);

            let mut separate = Sha1Pair(Kind::Separate(Box::default()));
            for index in 0..a.len().max(b.len()) {
                let part = |parts: &'_ [Vec<u8>]| parts.get(index).cloned().unwrap_or_default();
                separate.update([&part(&a), &part(&b)]);
            }
            prop_assert_eq!(separate.finish(), alone);
        }
    }
}
