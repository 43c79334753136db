//! The digest of all events.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use ecs_torrent_protocol::time::Timestamp;

use super::NodeId;
use super::contents::Contents;
use crate::port::JobTag;
use crate::ports::disk::{DiskDone, DiskEvent};
use crate::ports::hash::{Digests, HashEvent};
use crate::ports::http::{HttpEvent, HttpPart};
use crate::ports::net::NetEvent;
use crate::ports::state::{StateDone, StateEvent};

/// A running digest over all recorded events, in their order. It is the same on every machine and in every process. It
/// is not cryptographic and does not resist deliberate collisions.
#[derive(Default)]
pub(super) struct Trace(u64);

/// An odd constant without a pattern.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Trace {
    pub(super) fn digest(&self) -> u64 {
        self.0
    }

    /// Folds both halves of a product: every bit of the input changes about half of the digest's bits.
    pub(super) fn word(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ FACTOR) * u128::from(FACTOR | (1 << 63));
        self.0 = (product as u64) ^ ((product >> 64) as u64) ^ word.rotate_left(32);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
        self.word(bytes.len() as u64);
    }

    /// Records bytes of a known content by their place in it, other bytes by value.
    fn payload(&mut self, contents: &Contents, bytes: &Bytes) {
        match contents.locate(bytes) {
            Some(place) => {
                self.word(u64::from(place.content) << 40 ^ place.offset);
                self.word(bytes.len() as u64);
            }
            None => self.bytes(bytes),
        }
    }

    fn tag(&mut self, tag: JobTag) {
        self.bytes(tag.purpose.name().as_bytes());
        self.word(tag.owner.to_bits());
        self.word(tag.number);
    }

    fn address(&mut self, address: SocketAddr) {
        match address.ip() {
            IpAddr::V4(ip) => self.word(u64::from(ip.to_bits())),
            IpAddr::V6(ip) => self.bytes(&ip.octets()),
        }
        self.word(u64::from(address.port()));
    }

    /// Begins an entry with its time, node and kind.
    pub(super) fn head(&mut self, now: Timestamp, node: NodeId, kind: u64) {
        self.word(now.as_nanos());
        self.word((node.0 as u64) << 8 | kind);
    }

    pub(super) fn net(&mut self, now: Timestamp, node: NodeId, contents: &Contents, event: &NetEvent) {
        match event {
            NetEvent::Accepted {
                stream,
                remote,
                transport,
            } => {
                self.head(now, node, 1);
                self.word(stream.0);
                self.address(*remote);
                self.bytes(transport.name().as_bytes());
            }
            NetEvent::Connected { stream, transport } => {
                self.head(now, node, 2);
                self.word(stream.0);
                self.bytes(transport.name().as_bytes());
            }
            NetEvent::Received { stream, chunk } => {
                self.head(now, node, 3);
                self.word(stream.0);
                self.payload(contents, chunk);
            }
            NetEvent::Sent { stream, bytes } => {
                self.head(now, node, 4);
                self.word(stream.0);
                self.word(*bytes as u64);
            }
            NetEvent::Closed { stream, reason } => {
                self.head(now, node, 5);
                self.word(stream.0);
                self.bytes(reason.to_string().as_bytes());
            }
            NetEvent::Gone { tag } => {
                self.head(now, node, 6);
                self.tag(*tag);
            }
            NetEvent::Datagram { datagram, .. } => self.datagram(now, node, datagram.from, &datagram.data),
            NetEvent::AddressesChanged => self.head(now, node, 99),
            NetEvent::DatagramsDropped { count, .. } => {
                self.head(now, node, 9);
                self.word(*count);
            }
            NetEvent::Resolved { tag, result } => {
                self.head(now, node, 8);
                self.tag(*tag);
                match result {
                    Ok(addresses) => addresses.iter().for_each(|address| self.address(*address)),
                    Err(reason) => self.bytes(reason.as_bytes()),
                }
            }
        }
    }

    pub(super) fn datagram(&mut self, now: Timestamp, node: NodeId, from: SocketAddr, data: &[u8]) {
        self.head(now, node, 7);
        self.address(from);
        self.bytes(data);
    }

    pub(super) fn disk(&mut self, now: Timestamp, node: NodeId, contents: &Contents, event: &DiskEvent) {
        self.head(now, node, 16);
        self.tag(event.tag);
        match &event.outcome {
            Ok(DiskDone::Read(bytes)) => self.payload(contents, bytes),
            Ok(DiskDone::Opened(found)) => {
                for file in &found.files {
                    self.word(file.map_or(u64::MAX, |file| file.stamp.len));
                    self.word(file.map_or(0, |file| file.id.inode << 1 | (file.provenance as u64)));
                }
            }
            Ok(DiskDone::Synced(files)) => files.iter().for_each(|file| {
                self.word(file.index as u64);
                self.word(file.stamp.map_or(u64::MAX, |stamp| stamp.len));
                self.word(file.provenance as u64);
            }),
            Ok(DiskDone::Prepared(_)) => self.word(1),
            Ok(DiskDone::Written) => self.word(2),
            Ok(DiskDone::Closed) => self.word(5),
            Ok(DiskDone::Deleted(report)) => {
                self.word(3);
                report.deleted.iter().for_each(|index| self.word(*index as u64));
                report.kept.iter().for_each(|(index, reason)| {
                    self.word(*index as u64);
                    self.word(*reason as u64);
                });
            }
            // The kind and not the text: error texts depend on the operating system.
            Err(error) => self.word(0x100 | error.error.kind() as u64),
            #[allow(unreachable_patterns, reason = "kinds of answers that no simulated disk gives")]
            Ok(_) => self.word(4),
        }
    }

    pub(super) fn hash(&mut self, now: Timestamp, node: NodeId, event: &HashEvent) {
        self.head(now, node, 32);
        self.tag(event.tag);
        match &event.digests {
            Some(Digests::Piece(digest)) => self.bytes(digest),
            Some(Digests::Blocks(digests)) => self.bytes(digests.as_flattened()),
            Some(Digests::Leaves(digests)) => self.bytes(digests.as_flattened()),
            Some(Digests::Root(digest)) => self.bytes(digest.as_slice().as_flattened()),
            None => self.word(0),
        }
    }

    pub(super) fn http(&mut self, now: Timestamp, node: NodeId, event: &HttpEvent) {
        self.head(now, node, 48);
        self.tag(event.tag);
        match &event.part {
            HttpPart::Head { status, .. } => self.word(u64::from(*status)),
            HttpPart::Chunk(bytes) => self.bytes(bytes),
            HttpPart::End(Ok(())) => self.word(0),
            HttpPart::End(Err(error)) => self.bytes(error.to_string().as_bytes()),
        }
    }

    pub(super) fn state(&mut self, now: Timestamp, node: NodeId, event: &StateEvent) {
        self.head(now, node, 64);
        self.tag(event.tag);
        match &event.outcome {
            Ok(StateDone::Listed(torrents)) => torrents.iter().for_each(|stored| {
                self.bytes(&stored.torrent.0);
                self.word(u64::from(stored.has_session) | u64::from(stored.has_metainfo) << 1);
            }),
            Ok(StateDone::BlobLoaded(bytes)) => self.bytes(bytes.as_deref().unwrap_or_default()),
            Ok(StateDone::Loaded(loaded)) => {
                self.word(u64::from(loaded.session.is_some()));
                self.word(u64::from(loaded.has_metainfo));
            }
            Ok(StateDone::Saved) => self.word(2),
            Ok(StateDone::Removed) => self.word(3),
            Err(error) => self.bytes(error.0.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(note: impl FnOnce(&mut Trace)) -> u64 {
        let mut trace = Trace::default();
        note(&mut trace);
        trace.digest()
    }

    #[test]
    fn every_word_its_place_and_its_borders_count() {
        let digests = [
            digest(|trace| trace.word(0)),
            digest(|trace| (0..2).for_each(|_| trace.word(0))),
            digest(|trace| [1, 2].into_iter().for_each(|word| trace.word(word))),
            digest(|trace| [2, 1].into_iter().for_each(|word| trace.word(word))),
            digest(|trace| trace.bytes(b"ab")),
            digest(|trace| [b"a", b"b"].into_iter().for_each(|part| trace.bytes(part))),
            digest(|trace| trace.bytes(b"ab\0")),
        ];
        for (position, one) in digests.iter().enumerate() {
            assert!(!digests[..position].contains(one), "{position}");
        }
    }

    /// A run must be reproducible across versions.
    #[test]
    fn the_digest_is_stable() {
        let run = || digest(|trace| trace.bytes(b"the same everywhere"));
        assert_eq!(run(), run());
        assert_ne!(run(), 0);
    }
}
