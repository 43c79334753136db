//! Stored items: immutable values under their hash, mutable ones under their publisher's key (BEP 44).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey};

use super::id::NodeId;
use super::krpc::{ErrorCode, MAX_SALT, MAX_VALUE, PutItem, Refusal, Signed};
use crate::hash::sha1;
use crate::prefix::site;
use crate::tally::Tally;
use crate::time::Timestamp;

/// Time after which an item is forgotten that nobody has published again (BEP 44, "Expiration").
pub const ITEM_LIFETIME: Duration = Duration::from_secs(2 * 3600);

/// The share of all places that one host, or one /64 of IPv6 addresses, can take.
const HOST_SHARE: usize = 16;

/// An item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The bencoded value, exactly as received.
    pub value: Box<[u8]>,
    /// Key, signature and sequence number of a mutable item.
    pub proof: Option<Proof>,
}

/// Proof of a mutable item's origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The publisher's ed25519 public key.
    pub key: [u8; 32],
    /// The signature of salt, sequence number and value.
    pub signature: [u8; 64],
    /// The sequence number.
    pub seq: i64,
}

impl Proof {
    /// Borrows the proof for a message.
    #[must_use]
    pub fn as_signed(&self) -> Signed<'_> {
        Signed {
            key: &self.key,
            signature: &self.signature,
            seq: self.seq,
        }
    }
}

impl Item {
    /// Takes an item from a message, if it belongs to `target` (BEP 44, "Signature Verification"): its hash, or the
    /// hash of key and salt, is the target, and the signature is valid.
    #[must_use]
    pub fn verified(target: NodeId, value: &[u8], signed: Option<Signed<'_>>, salt: &[u8]) -> Option<Self> {
        let is_valid = match signed {
            None => immutable_target(value) == target,
            Some(signed) => mutable_target(signed.key, salt) == target && is_signature_valid(signed, salt, value),
        };
        is_valid.then(|| Self {
            value: value.into(),
            proof: signed.map(|signed| Proof {
                key: *signed.key,
                signature: *signed.signature,
                seq: signed.seq,
            }),
        })
    }

    /// Whether a verified item belongs to `target` with this salt.
    #[must_use]
    pub fn is_at(&self, target: NodeId, salt: &[u8]) -> bool {
        match &self.proof {
            None => immutable_target(&self.value) == target,
            Some(proof) => mutable_target(&proof.key, salt) == target,
        }
    }

    /// Signs a mutable item.
    ///
    /// # Errors
    /// Returns an error if value or salt is too long.
    pub fn sign(secret: &[u8; 32], salt: &[u8], seq: i64, value: &[u8]) -> Result<Self, Refusal> {
        if value.len() > MAX_VALUE {
            return Err(Refusal::new(ErrorCode::ValueTooBig, "value is longer than 1000 bytes"));
        }
        if salt.len() > MAX_SALT {
            return Err(Refusal::new(ErrorCode::SaltTooBig, "salt is longer than 64 bytes"));
        }
        let key = SigningKey::from_bytes(secret);
        Ok(Self {
            value: value.into(),
            proof: Some(Proof {
                key: key.verifying_key().to_bytes(),
                signature: key.sign(&signed_bytes(salt, seq, value)).to_bytes(),
                seq,
            }),
        })
    }

    /// The sequence number; 0 for an immutable item.
    #[must_use]
    pub fn seq(&self) -> i64 {
        self.proof.as_ref().map_or(0, |proof| proof.seq)
    }
}

/// The public key of a secret key.
#[must_use]
pub fn public_key(secret: &[u8; 32]) -> [u8; 32] {
    SigningKey::from_bytes(secret).verifying_key().to_bytes()
}

/// The target of an immutable item: the hash of its bencoded value.
#[must_use]
pub fn immutable_target(value: &[u8]) -> NodeId {
    NodeId(sha1([value]))
}

/// The target of a mutable item: the hash of its key and salt.
#[must_use]
pub fn mutable_target(key: &[u8; 32], salt: &[u8]) -> NodeId {
    NodeId(sha1([key, salt]))
}

/// Whether the signature is the key owner's. Not the strict check: signatures of other implementations are accepted as
/// they come.
fn is_signature_valid(signed: Signed<'_>, salt: &[u8], value: &[u8]) -> bool {
    VerifyingKey::from_bytes(signed.key).is_ok_and(|key| {
        let signature = Signature::from_bytes(signed.signature);
        key.verify(&signed_bytes(salt, signed.seq, value), &signature).is_ok()
    })
}

/// The bytes that are signed (BEP 44, "Signature Verification"); an empty salt is left out.
fn signed_bytes(salt: &[u8], seq: i64, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAX_SALT + MAX_VALUE + 48);
    if !salt.is_empty() {
        bytes.extend(format!("4:salt{}:", salt.len()).into_bytes());
        bytes.extend(salt);
    }
    bytes.extend(format!("3:seqi{seq}e1:v").into_bytes());
    bytes.extend(value);
    bytes
}

impl PutItem<'_> {
    /// The target under which the item is stored.
    #[must_use]
    pub fn target(&self) -> NodeId {
        match self.signed {
            Some(signed) => mutable_target(signed.key, self.salt),
            None => immutable_target(self.value),
        }
    }
}

#[derive(Debug, Clone)]
struct StoredItem {
    item: Item,
    stored: Timestamp,
    host: IpAddr,
}

/// The items that other hosts have stored here.
#[derive(Debug, Clone)]
pub struct ItemStore {
    max_items: usize,
    items: BTreeMap<NodeId, StoredItem>,
    hosts: Tally<IpAddr>,
}

impl ItemStore {
    /// Creates an empty store for at most `max_items` items of up to 1000 bytes each.
    #[must_use]
    pub fn new(max_items: usize) -> Self {
        Self {
            max_items,
            items: BTreeMap::new(),
            hosts: Tally::default(),
        }
    }

    /// The item under `target`.
    #[must_use]
    pub fn get(&self, target: NodeId) -> Option<&Item> {
        self.items.get(&target).map(|stored| &stored.item)
    }

    /// Whether an item of the host would be stored under `target`. If not, the host gets no token.
    #[must_use]
    pub fn has_place(&self, target: NodeId, ip: IpAddr, own_id: NodeId) -> bool {
        let taken = self.hosts.of(&site(ip));
        self.items.contains_key(&target)
            || taken < (self.max_items / HOST_SHARE).max(1)
                && (self.items.len() < self.max_items || self.farthest(target, own_id).is_some())
    }

    /// Stores an item, or renews it. It may take the place of the item that is farthest from our own id.
    ///
    /// # Errors
    /// Returns the error to answer with (BEP 44, "Errors"). The signature, which costs most, is checked last.
    pub fn put(&mut self, put: &PutItem<'_>, ip: IpAddr, own_id: NodeId, now: Timestamp) -> Result<(), Refusal> {
        let target = put.target();
        if let Some(stored) = self.items.get_mut(&target)
            && let (Some(proof), Some(signed)) = (&stored.item.proof, put.signed)
        {
            check_sequence(proof.seq, signed.seq, put.cas, *stored.item.value == *put.value)?;
            if proof.seq == signed.seq {
                stored.stored = now;
                return Ok(());
            }
        }
        if !self.has_place(target, ip, own_id) {
            return Err(Refusal::new(ErrorCode::Server, "no space for more items"));
        }
        let item = Item::verified(target, put.value, put.signed, put.salt);
        let item = item.ok_or(Refusal::new(ErrorCode::BadSignature, "invalid signature"))?;
        self.insert(target, item, site(ip), own_id, now);
        Ok(())
    }

    /// The number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no item.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Forgets the items that nobody has published for [`ITEM_LIFETIME`]. Visits all items; a call per minute is
    /// enough.
    pub fn expire(&mut self, now: Timestamp) {
        let old = self
            .items
            .iter()
            .filter(|(_, item)| now.since(item.stored) >= ITEM_LIFETIME);
        let old: Vec<NodeId> = old.map(|(target, _)| *target).collect();
        old.into_iter().for_each(|target| self.remove(target));
    }

    fn insert(&mut self, target: NodeId, item: Item, host: IpAddr, own_id: NodeId, now: Timestamp) {
        if !self.items.contains_key(&target)
            && self.items.len() >= self.max_items
            && let Some(farthest) = self.farthest(target, own_id)
        {
            self.remove(farthest);
        }
        self.remove(target);
        self.hosts.add(host);
        let stored = StoredItem {
            item,
            stored: now,
            host,
        };
        self.items.insert(target, stored);
    }

    fn remove(&mut self, target: NodeId) {
        if let Some(stored) = self.items.remove(&target) {
            self.hosts.remove(&stored.host);
        }
    }

    fn farthest(&self, target: NodeId, own_id: NodeId) -> Option<NodeId> {
        let farthest = own_id.farthest_key(&self.items)?;
        (farthest.distance(own_id) > target.distance(own_id)).then_some(farthest)
    }
}

/// BEP 44: `cas` must match the stored sequence number, and a sequence number must be greater than the stored one, or
/// the same with the same value.
pub(super) fn check_sequence(stored: i64, seq: i64, cas: Option<i64>, is_same_value: bool) -> Result<(), Refusal> {
    if cas.is_some_and(|cas| cas != stored) {
        return Err(Refusal::new(
            ErrorCode::CasMismatch,
            "CAS mismatch, re-read value and try again",
        ));
    }
    if seq < stored || seq == stored && !is_same_value {
        return Err(Refusal::new(ErrorCode::SeqTooLow, "sequence number less than current"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NodeId = NodeId([0; 20]);
    const HELLO: &[u8] = b"12:Hello World!";
    const SECRET: [u8; 32] = [7; 32];

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([9, 9, n, 9])
    }

    fn at(minutes: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(minutes * 60)
    }

    fn array<const N: usize>(hex: &str) -> [u8; N] {
        const_hex::decode_to_array(hex).unwrap()
    }

    fn put<'a>(item: &'a Item, salt: &'a [u8]) -> PutItem<'a> {
        PutItem {
            value: &item.value,
            signed: item.proof.as_ref().map(Proof::as_signed),
            salt,
            cas: None,
        }
    }

    fn signed(seq: i64, value: &[u8]) -> Item {
        Item::sign(&SECRET, b"", seq, value).unwrap()
    }

    /// BEP 44, "Test Vectors" 1 and 2.
    #[test]
    fn mutable_vectors_of_bep_44() {
        let key = array("77ff84905a91936367c01360803104f92432fcd904a43511876df5cdf3e7e548");
        for (salt, target, signature) in [
            (
                &b""[..],
                "4a533d47ec9c7d95b1ad75f576cffc641853b750",
                "305ac8aeb6c9c151fa120f120ea2cfb923564e11552d06a5d856091e5e853cff\
                 1260d3f39e4999684aa92eb73ffd136e6f4f3ecbfda0ce53a1608ecd7ae21f01",
            ),
            (
                b"foobar",
                "411eba73b6f087ca51a3795d9c8c938d365e32c1",
                "6834284b6b24c3204eb2fea824d82f88883a3d95e8b4a21b8c0ded553d17d17d\
                 df9a8a7104b1258f30bed3787e6cb896fca78c58f8e03b5f18f14951a87d9a08",
            ),
        ] {
            let signature = array(signature);
            let signed = Signed {
                key: &key,
                signature: &signature,
                seq: 1,
            };
            let target: NodeId = target.parse().unwrap();
            assert_eq!(mutable_target(&key, salt), target);
            assert!(Item::verified(target, HELLO, Some(signed), salt).is_some());
            // Another value, sequence number, salt or target fails.
            assert!(Item::verified(target, b"12:Hello World?", Some(signed), salt).is_none());
            assert!(Item::verified(target, HELLO, Some(Signed { seq: 2, ..signed }), salt).is_none());
            assert!(Item::verified(target, HELLO, Some(signed), b"x").is_none());
            assert!(Item::verified(OWN, HELLO, Some(signed), salt).is_none());
        }
    }

    /// BEP 44, "Test Vectors" 3.
    #[test]
    fn immutable_vector_of_bep_44() {
        let target: NodeId = "e5f96f6f38320f0f33959cb4d3d656452117aadb".parse().unwrap();
        assert_eq!(immutable_target(HELLO), target);
        assert!(Item::verified(target, HELLO, None, b"").is_some());
        assert!(Item::verified(target, b"3:abc", None, b"").is_none());
    }

    /// BEP 46, "Test Vectors".
    #[test]
    fn targets_of_bep_46() {
        let key = array("8543d3e6115f0f98c944077a4493dcd543e49c739fd998550a1f614ab36ed63e");
        for (salt, target) in [
            (&b""[..], "cc3f9d90b572172053626f9980ce261a850d050b"),
            (b"\x6e", "59ee7c2cb9b4f7eb1986ee2d18fd2fdb8a56554f"),
        ] {
            assert_eq!(mutable_target(&key, salt).to_string(), target);
        }
    }

    #[test]
    fn a_newer_item_replaces_an_older_one_only() {
        let mut store = ItemStore::new(100);
        let target = mutable_target(&public_key(&SECRET), b"");
        let code = |result: Result<(), Refusal>| result.map_err(|refusal| refusal.code);
        let (two, other_two, three, one) = (
            signed(2, b"1:b"),
            signed(2, b"1:B"),
            signed(3, b"1:c"),
            signed(1, b"1:a"),
        );
        assert_eq!(code(store.put(&put(&two, b""), ip(1), OWN, at(0))), Ok(()));
        for older in [&one, &other_two] {
            assert_eq!(
                code(store.put(&put(older, b""), ip(1), OWN, at(0))),
                Err(ErrorCode::SeqTooLow)
            );
        }
        // The same item again keeps it alive.
        assert_eq!(code(store.put(&put(&two, b""), ip(2), OWN, at(100))), Ok(()));
        store.expire(at(219));
        assert_eq!(store.get(target), Some(&two));
        let with_cas = |cas| PutItem {
            cas: Some(cas),
            ..put(&three, b"")
        };
        assert_eq!(
            code(store.put(&with_cas(1), ip(1), OWN, at(0))),
            Err(ErrorCode::CasMismatch)
        );
        assert_eq!(code(store.put(&with_cas(2), ip(1), OWN, at(100))), Ok(()));
        assert_eq!(store.get(target).map(Item::seq), Some(3));
        store.expire(at(220));
        assert!(store.is_empty() && store.hosts.is_empty());
        // Without a stored item, `cas` does not matter.
        assert_eq!(code(store.put(&with_cas(9), ip(1), OWN, at(220))), Ok(()));
    }

    #[test]
    fn forged_items_are_refused() {
        let mut store = ItemStore::new(100);
        let mut item = signed(1, b"1:a");
        item.proof.as_mut().unwrap().signature[0] ^= 1;
        let refusal = store.put(&put(&item, b""), ip(1), OWN, at(0)).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::BadSignature);
        assert!(store.is_empty());
        // No key at all: not a point of the curve.
        item.proof.as_mut().unwrap().key = [0xff; 32];
        assert!(store.put(&put(&item, b""), ip(1), OWN, at(0)).is_err());
        assert!(Item::sign(&SECRET, &[0; 65], 1, b"1:a").is_err());
        assert!(Item::sign(&SECRET, b"", 1, &[0; 1001]).is_err());
    }

    #[test]
    fn the_store_is_bounded() {
        let mut store = ItemStore::new(32);
        let immutable = |n: u32| Item {
            value: format!("i{n}e").into_bytes().into(),
            proof: None,
        };
        // One host gets a sixteenth.
        let stored = (0..100).filter(|n| store.put(&put(&immutable(*n), b""), ip(1), OWN, at(0)).is_ok());
        assert_eq!(stored.count(), 2);
        for n in 0..5000u32 {
            let _ = store.put(&put(&immutable(n), b""), ip((n % 200) as u8), OWN, at(0));
            assert!(store.len() <= 32);
        }
        // The items closest to our id are kept.
        let farthest = store.items.keys().map(|target| target.distance(OWN)).max().unwrap();
        let closer = (0..5000u32).filter(|n| immutable_target(&immutable(*n).value).distance(OWN) < farthest);
        assert!(closer.count() < 200);
        assert_eq!(store.hosts.keys().map(|host| store.hosts.of(host)).sum::<usize>(), 32);
    }
}
