//! The state that a node keeps between two runs: its ids, and nodes that have answered.

use super::Node;
use super::maintaining::MAX_SAVED;
use crate::bencode::{BencodeError, Document, Limits, Value};
use crate::compact::Family;
use crate::dht::id::NodeId;
use crate::dht::krpc::{read_contacts, write_contact};
use crate::dht::table::{Contact, Quality};
use crate::time::Timestamp;

/// Keys of the ids and node lists of each family, in the order of a canonical dictionary.
const ID_KEYS: [&[u8]; 2] = [b"id", b"id6"];
const NODE_KEYS: [&[u8]; 2] = [b"nodes", b"nodes6"];

/// Limits on what is loaded; a saved state has 23 KiB at most.
const LIMITS: Limits = Limits {
    max_depth: 2,
    max_tokens: 32,
    max_bytes: 64 << 10,
};

impl Node {
    /// Returns the state to save: one bencoded dictionary.
    #[must_use]
    pub fn save(&self, now: Timestamp) -> Vec<u8> {
        let mut state = vec![b'd'];
        for (part, key) in self.families.iter().zip(ID_KEYS) {
            write_pair(key, &part.table.id().0, &mut state);
        }
        for (part, key) in self.families.iter().zip(NODE_KEYS) {
            let mut contacts: Vec<&Contact> = part.table.contacts().collect();
            contacts.retain(|contact| contact.quality(now) != Quality::Bad);
            contacts.sort_by_key(|contact| std::cmp::Reverse(contact.replied));
            let mut list = Vec::new();
            for contact in contacts.into_iter().take(MAX_SAVED) {
                write_contact(contact.id, contact.address, &mut list);
            }
            // A node that has not found anybody yet keeps what the last run knew.
            if list.is_empty() {
                let saved = part.maintenance.saved().iter();
                saved.for_each(|(id, address)| write_contact(*id, *address, &mut list));
            }
            write_pair(key, &list, &mut state);
        }
        state.push(b'e');
        state
    }

    /// Takes the state of an earlier run. Its nodes are asked before bootstrap hosts; they enter the tables when they
    /// answer.
    ///
    /// # Errors
    /// Returns an error if the state is damaged. Nothing has changed then.
    pub fn load(&mut self, state: &[u8], now: Timestamp) -> Result<(), BencodeError> {
        let document = Document::parse(state, &LIMITS)?;
        let root = document.root();
        for family in Family::ALL {
            let id = root.get(ID_KEYS[family as usize]).and_then(Value::as_bytes);
            let id = id.and_then(|id| id.try_into().ok()).map(NodeId);
            let list = root.get(NODE_KEYS[family as usize]).and_then(Value::as_bytes);
            let part = self.part_mut(family);
            if let Some(id) = id {
                part.table.set_id(id, now);
            }
            let saved = list
                .map(|list| read_contacts(list, family).collect())
                .unwrap_or_default();
            part.maintenance.set_saved(saved, now);
        }
        Ok(())
    }
}

fn write_pair(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    for part in [key, value] {
        out.extend(part.len().to_string().into_bytes());
        out.push(b':');
        out.extend(part);
    }
}
