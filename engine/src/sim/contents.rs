//! The correct bytes of torrents, shared by a whole simulation. They are identified by their memory address, so they
//! are neither copied nor hashed twice.

use std::collections::BTreeMap;
use std::ops::Range;

use bevy_platform::collections::HashMap;
use bytes::Bytes;
use ecs_torrent_protocol::hash::Sha1Digest;

use crate::ports::hash::{Digests, HashKind, compute};

/// The known contents of a simulation.
#[derive(Default)]
pub(super) struct Contents {
    /// Contents by the address of their first byte. They stay allocated, so no other memory ever gets the same address.
    by_address: BTreeMap<usize, u32>,
    all: Vec<Bytes>,
    digests: HashMap<(Place, u64), Sha1Digest>,
}

/// A position in a known content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) content: u32,
    pub(super) offset: u64,
}

impl Contents {
    /// Registers bytes; registering the same bytes again has no effect.
    pub(super) fn add(&mut self, bytes: &Bytes) {
        if bytes.is_empty() || self.locate(bytes).is_some() {
            return;
        }
        self.by_address.insert(address(bytes), self.all.len() as u32);
        self.all.push(bytes.clone());
    }

    /// Locates `bytes` in a known content by their memory address, without comparing them.
    pub(super) fn locate(&self, bytes: &Bytes) -> Option<Place> {
        let begin = address(bytes);
        let (&base, &content) = self.by_address.range(..=begin).next_back()?;
        let offset = begin - base;
        let known = &self.all[content as usize];
        (!bytes.is_empty() && offset + bytes.len() <= known.len()).then_some(Place {
            content,
            offset: offset as u64,
        })
    }

    /// The bytes at a place; shares memory.
    pub(super) fn slice(&self, place: Place, len: usize) -> Bytes {
        let begin = place.offset as usize;
        self.all[place.content as usize].slice(begin..begin + len)
    }

    /// Digests of a hash request; the SHA-1 digests of known contents are computed once.
    pub(super) fn digest(&mut self, kind: HashKind, spans: &[Bytes]) -> Digests {
        let Some((place, len)) = self.run(spans) else {
            return compute(kind, spans);
        };
        match kind {
            HashKind::Sha1Piece => Digests::Piece(self.digest_of(place, 0..len)),
            HashKind::Sha1Blocks(block) => {
                let step = (block as usize).max(1);
                let blocks = (0..len).step_by(step).map(|begin| begin..len.min(begin + step));
                Digests::Blocks(blocks.map(|range| self.digest_of(place, range)).collect())
            }
            HashKind::MerkleLeaves | HashKind::MerkleRoot { .. } => compute(kind, spans),
        }
    }

    /// Place and length of spans that are contiguous in one content.
    fn run(&self, spans: &[Bytes]) -> Option<(Place, usize)> {
        let (first, rest) = spans.split_first()?;
        let place = self.locate(first)?;
        let mut len = first.len();
        for span in rest {
            let next = self.locate(span)?;
            if next.content != place.content || next.offset != place.offset + len as u64 {
                return None;
            }
            len += span.len();
        }
        Some((place, len))
    }

    fn digest_of(&mut self, base: Place, range: Range<usize>) -> Sha1Digest {
        let place = Place {
            offset: base.offset + range.start as u64,
            ..base
        };
        let known = &self.all[place.content as usize];
        let digest = self.digests.entry((place, range.len() as u64)).or_insert_with(|| {
            let begin = place.offset as usize;
            ecs_torrent_protocol::hash::sha1([&known[begin..begin + range.len()]])
        });
        *digest
    }
}

fn address(bytes: &Bytes) -> usize {
    bytes.as_ptr() as usize
}

/// Concatenates runs of bytes, without copying them as long as they are contiguous in one content.
#[derive(Default)]
pub(super) struct Gathering {
    known: Option<(Place, usize)>,
    copied: Vec<u8>,
}

impl Gathering {
    /// Appends bytes of a known content.
    pub(super) fn known(&mut self, contents: &Contents, place: Place, len: usize) {
        match &mut self.known {
            Some((begin, known)) if begin.content == place.content && begin.offset + *known as u64 == place.offset => {
                *known += len;
            }
            None if self.copied.is_empty() => self.known = Some((place, len)),
            _ => self.bytes(contents, &contents.slice(place, len)),
        }
    }

    /// Appends other bytes.
    pub(super) fn bytes(&mut self, contents: &Contents, bytes: &[u8]) {
        self.copy_known(contents);
        self.copied.extend_from_slice(bytes);
    }

    /// Appends zeros.
    pub(super) fn zeros(&mut self, contents: &Contents, len: usize) {
        self.copy_known(contents);
        self.copied.resize(self.copied.len() + len, 0);
    }

    fn copy_known(&mut self, contents: &Contents) {
        if let Some((place, len)) = self.known.take() {
            self.copied.extend_from_slice(&contents.slice(place, len));
        }
    }

    /// Returns the concatenated bytes.
    pub(super) fn finish(self, contents: &Contents) -> Bytes {
        match self.known {
            Some((place, len)) => contents.slice(place, len),
            None => self.copied.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_protocol::hash::sha1;

    use super::*;

    fn contents() -> (Contents, Bytes, Bytes) {
        let mut contents = Contents::default();
        let data = [1, 2].map(|factor| (0..100u8).map(|i| i * factor).collect::<Vec<_>>().into());
        let [one, other]: [Bytes; 2] = data;
        contents.add(&one);
        contents.add(&other);
        contents.add(&one.slice(3..9));
        (contents, one, other)
    }

    #[test]
    fn slices_are_known_by_their_place() {
        let (contents, one, other) = contents();
        assert_eq!(contents.all.len(), 2);
        let place = contents.locate(&other.slice(10..30)).unwrap();
        assert_eq!((place.content, place.offset), (1, 10));
        assert_eq!(contents.slice(place, 20), other.slice(10..30));
        assert_eq!(
            contents.locate(&Bytes::copy_from_slice(&one)),
            None,
            "equal, and elsewhere"
        );
    }

    #[test]
    fn digests_are_right_whether_looked_up_or_computed() {
        let (mut contents, one, other) = contents();
        let kinds = [
            HashKind::Sha1Piece,
            HashKind::Sha1Blocks(30),
            HashKind::MerkleLeaves,
            HashKind::MerkleRoot { leaf_count: 4 },
        ];
        let requests = [
            vec![one.slice(..40), one.slice(40..)],
            vec![one.slice(..40), other.slice(40..)],
            vec![one.slice(..40), one.slice(41..)],
            vec![Bytes::copy_from_slice(&one)],
            vec![],
        ];
        for spans in &requests {
            for kind in kinds {
                for _ in 0..2 {
                    assert_eq!(contents.digest(kind, spans), compute(kind, spans));
                }
            }
        }
        assert_eq!(
            contents.digest(kinds[0], &requests[0]),
            Digests::Piece(sha1([&one[..]]))
        );
    }

    #[test]
    fn contiguous_slices_are_not_copied() {
        let (contents, one, _) = contents();
        let gather = |parts: &[Bytes]| {
            let mut gathering = Gathering::default();
            for part in parts {
                match contents.locate(part) {
                    Some(place) => gathering.known(&contents, place, part.len()),
                    None => gathering.bytes(&contents, part),
                }
            }
            gathering.finish(&contents)
        };
        let whole = gather(&[one.slice(5..20), one.slice(20..33)]);
        assert_eq!((whole.as_ptr(), &whole), (one[5..].as_ptr(), &one.slice(5..33)));
        let mixed = gather(&[one.slice(5..7), Bytes::from_static(b"x"), one.slice(7..9)]);
        assert_eq!(&mixed[..], [5, 6, b'x', 7, 8]);
        assert_eq!(&gather(&[one.slice(5..7), one.slice(3..5)])[..], [5, 6, 3, 4]);
    }
}
