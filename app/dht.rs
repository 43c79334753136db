//! Operations on an engine's DHT node.

use std::time::Duration;

use ecs_torrent_components::commands::AddOptions;
use ecs_torrent_components::dht::{DhtError, DhtPeers, DhtStats, FindDhtPeers, GetDhtItem, GetDhtStats, PutDhtItem};
use ecs_torrent_components::links::{FollowedLink, KeepItem, ListLinks, UnfollowLink};
use ecs_torrent_protocol::bencode::{Document, Limits};
use ecs_torrent_protocol::dht::id::NodeId;
use ecs_torrent_protocol::dht::items::{self, Item};
use ecs_torrent_protocol::dht::krpc::{MAX_SALT, MAX_VALUE};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::magnet::MutableLink;

use crate::error::Error;
use crate::id::TorrentId;
use crate::torrents::Torrents;

/// The DHT (BEP 5): finds peers of any torrent, and keeps small items for everybody (BEP 44). It comes from
/// [`Torrents::dht`] and is cheap to clone.
#[derive(Debug, Clone)]
pub struct Dht(Torrents);

/// Shortest time between two searches of [`Dht::next_torrent`]: a search takes some fifty datagrams.
pub const MIN_FOLLOW_INTERVAL: Duration = Duration::from_secs(60);

/// Time between two attempts to search while no node is known, or other searches use up the limit.
const RETRY: Duration = Duration::from_secs(1);

/// An item that was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredItem {
    /// The target by which the item is found.
    pub target: NodeId,
    /// The sequence number of a mutable item; 0 for an immutable one.
    pub seq: i64,
    /// Number of nodes that stored it.
    pub nodes: usize,
}

/// A torrent that a publisher has named under a public key (BEP 46).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedTorrent {
    /// The info-hash.
    pub torrent: InfoHash,
    /// The sequence number of the item; greater for later torrents.
    pub seq: i64,
}

impl NamedTorrent {
    /// Reads an item.
    ///
    /// # Errors
    /// [`DhtError::NoTorrent`].
    pub fn of(item: &Item) -> Result<Self, DhtError> {
        let torrent = MutableLink::torrent_in(&item.value).ok_or(DhtError::NoTorrent)?;
        Ok(Self {
            torrent,
            seq: item.seq(),
        })
    }
}

impl Torrents {
    /// Returns the operations on the engine's DHT node.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, _| {
    /// match torrents.dht().put(b"5:hello").await {
    ///     Ok(stored) => println!("{} at {} nodes", stored.target, stored.nodes),
    ///     Err(error) => println!("{error}"),
    /// }
    /// # Ok(())
    /// # });
    /// ```
    #[must_use]
    pub fn dht(&self) -> Dht {
        Dht(self.clone())
    }
}

impl Dht {
    /// Returns the state of our node.
    ///
    /// # Errors
    /// If the engine has stopped or has no DHT.
    pub async fn stats(&self) -> Result<DhtStats, Error> {
        self.0.ask(|reply| GetDhtStats { reply }).await
    }

    /// Searches for peers of a torrent, which need not be listed here. Does not announce us, and connects to no peer.
    ///
    /// # Errors
    /// [`Error::Dht`].
    pub async fn find_peers(&self, torrent: impl Into<TorrentId>) -> Result<DhtPeers, Error> {
        let TorrentId(torrent) = torrent.into();
        Ok(self.0.ask(|reply| FindDhtPeers { torrent, reply }).await??)
    }

    /// Searches for an item. Returns the one with the greatest sequence number, or `None` if no node has it.
    ///
    /// # Errors
    /// [`Error::Dht`].
    pub async fn get(&self, target: NodeId, salt: &[u8]) -> Result<Option<Item>, Error> {
        check_salt(salt)?;
        let salt = salt.to_vec();
        Ok(self.0.ask(|reply| GetDhtItem { target, salt, reply }).await??)
    }

    /// Stores an immutable item: a bencoded value of up to 1000 bytes. Nodes forget it after two hours unless it is
    /// stored again.
    ///
    /// # Errors
    /// [`Error::Dht`].
    pub async fn put(&self, value: &[u8]) -> Result<StoredItem, Error> {
        let item = Item {
            value: value.into(),
            proof: None,
        };
        self.put_item(item, &[], None).await
    }

    /// Stores a mutable item under the key that belongs to `secret`, in place of the stored one. Its sequence number is
    /// one greater. Nothing is stored if another program has changed the item meanwhile.
    ///
    /// # Errors
    /// [`Error::Dht`].
    pub async fn publish(&self, secret: &[u8; 32], salt: &[u8], value: &[u8]) -> Result<StoredItem, Error> {
        let (item, cas) = self.sign(secret, salt, value).await?;
        self.put_item(item, salt, cas).await
    }

    /// Signs the item that follows the stored one. Also returns the sequence number of the stored item.
    async fn sign(&self, secret: &[u8; 32], salt: &[u8], value: &[u8]) -> Result<(Item, Option<i64>), Error> {
        check_value(value)?;
        let target = items::mutable_target(&items::public_key(secret), salt);
        let last = self.get(target, salt).await?.map(|item| item.seq());
        Ok((sign_next(secret, salt, value, last)?, last))
    }

    /// Names a torrent under the key that belongs to `secret`, in place of the one before (BEP 46). The engine stores
    /// the item again every hour, in later runs too, until [`Dht::unfollow`].
    ///
    /// # Errors
    /// [`Error::Dht`].
    pub async fn publish_torrent(
        &self,
        secret: &[u8; 32],
        salt: &[u8],
        torrent: impl Into<TorrentId>,
    ) -> Result<StoredItem, Error> {
        let TorrentId(torrent) = torrent.into();
        let (item, cas) = self.sign(secret, salt, &MutableLink::value_of(torrent)).await?;
        let stored = self.put_item(item.clone(), salt, cas).await?;
        self.keep(item, salt).await?;
        Ok(stored)
    }

    /// Searches for the torrent that a link names now (BEP 46). Returns `None` if no node knows one.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::protocol::magnet::MutableLink;
    /// # setup::run(async |torrents, _| {
    /// let text = "magnet:?xs=urn:btpk:8543d3e6115f0f98c944077a4493dcd543e49c739fd998550a1f614ab36ed63e";
    /// let link: MutableLink = text.parse().unwrap();
    /// match torrents.dht().resolve(&link).await {
    ///     Ok(Some(named)) => println!("{}", named.torrent),
    ///     Ok(None) => println!("no node knows a torrent"),
    ///     Err(error) => println!("{error}"),
    /// }
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::Dht`].
    pub async fn resolve(&self, link: &MutableLink) -> Result<Option<NamedTorrent>, Error> {
        let item = self.get(link.target(), &link.salt).await?;
        Ok(item.as_ref().map(NamedTorrent::of).transpose()?)
    }

    /// Searches for the torrent that a link names repeatedly, until its sequence number is greater than `known`.
    /// `interval` is the time between two searches, at least [`MIN_FOLLOW_INTERVAL`]. While no node is known or too
    /// many searches are running, the next attempt follows after a second.
    ///
    /// # Errors
    /// [`Error::Dht`].
    pub async fn next_torrent(
        &self,
        link: &MutableLink,
        known: Option<i64>,
        interval: Duration,
    ) -> Result<NamedTorrent, Error> {
        loop {
            match self.resolve(link).await {
                Ok(Some(named)) if known.is_none_or(|known| named.seq > known) => return Ok(named),
                Ok(_) => tokio::time::sleep(interval.max(MIN_FOLLOW_INTERVAL)).await,
                Err(Error::Dht(DhtError::NoNodes | DhtError::Busy)) => tokio::time::sleep(RETRY).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Downloads the torrent that a link names (BEP 46) and each newer one that replaces it, in this run and in later
    /// ones. Returns the current torrent when it is added and the link is saved; its metadata comes from peers. While
    /// no node of the DHT is known, or none knows the item, the search is repeated for half a minute.
    ///
    /// The engine searches for a newer torrent every [`link_interval_s`], and stores the link's item again every hour.
    /// A newer torrent is added beside the older one, in a folder of its own. The older one is paused when the newer
    /// one is complete, or at once if it is incomplete itself; nothing of it is deleted. While the torrent is paused or
    /// stopped, its link rests. Removing the torrent ends it, as [`Dht::unfollow`] does.
    ///
    /// [`link_interval_s`]: ecs_torrent_components::settings::DhtSettings::link_interval_s
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::protocol::magnet::MutableLink;
    /// # setup::run(async |torrents, _| {
    /// for followed in torrents.dht().links().await? {
    ///     println!("{} {:?}", followed.link, followed.info_hash);
    ///     torrents.dht().unfollow(&followed.link).await?;
    /// }
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::Dht`] if the item is not found, [`Error::Add`] if the torrent is refused, and [`Error::Follow`]. The
    /// link is not followed then.
    pub async fn follow(&self, link: &MutableLink, options: AddOptions) -> Result<TorrentId, Error> {
        self.0.download_with(link.clone(), options).await
    }

    /// Returns the links that are followed, and those whose items are only kept.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn links(&self) -> Result<Vec<FollowedLink>, Error> {
        self.0.ask(|reply| ListLinks { reply }).await
    }

    /// Ends the search for newer torrents of a link, and the upkeep of its item. Its torrents stay as they are.
    ///
    /// # Errors
    /// [`Error::Follow`].
    pub async fn unfollow(&self, link: &MutableLink) -> Result<(), Error> {
        self.unfollow_target(link.target()).await
    }

    /// Like [`Dht::unfollow`], for the target of a link's item.
    ///
    /// # Errors
    /// [`Error::Follow`].
    pub async fn unfollow_target(&self, target: NodeId) -> Result<(), Error> {
        Ok(self.0.ask(|reply| UnfollowLink { target, reply }).await??)
    }

    /// Stores a mutable item again every hour, in this run and in later ones, until [`Dht::unfollow`]: nodes forget it
    /// after two hours. The publisher's secret key is not needed.
    ///
    /// # Errors
    /// [`DhtError::NotMutable`] for an immutable item, and [`Error::Follow`].
    pub async fn keep(&self, item: Item, salt: &[u8]) -> Result<(), Error> {
        check_salt(salt)?;
        let key = item.proof.as_ref().ok_or(DhtError::NotMutable)?.key;
        let salt = salt.to_vec();
        let link = MutableLink { key, salt };
        Ok(self.0.ask(|reply| KeepItem { link, item, reply }).await??)
    }

    /// Stores an item that was signed elsewhere, or an immutable one. With `cas`, nodes store it only over an item with
    /// that sequence number.
    ///
    /// # Errors
    /// [`Error::Dht`].
    pub async fn put_item(&self, item: Item, salt: &[u8], cas: Option<i64>) -> Result<StoredItem, Error> {
        check_value(&item.value)?;
        check_salt(salt)?;
        let target = match &item.proof {
            Some(proof) => items::mutable_target(&proof.key, salt),
            None => items::immutable_target(&item.value),
        };
        let (seq, salt) = (item.seq(), salt.to_vec());
        let put = |reply| PutDhtItem { item, salt, cas, reply };
        let nodes = self.0.ask(put).await??;
        Ok(StoredItem { target, seq, nodes })
    }
}

/// Signs the item that follows the one with the sequence number `last`.
///
/// # Errors
/// If the value or the salt is too long, or there is no greater sequence number.
pub fn sign_next(secret: &[u8; 32], salt: &[u8], value: &[u8], last: Option<i64>) -> Result<Item, DhtError> {
    check_salt(salt)?;
    check_value(value)?;
    let seq = last
        .map_or(Some(1), |last| last.checked_add(1))
        .ok_or(DhtError::LastSequence)?;
    Item::sign(secret, salt, seq, value).map_err(|refusal| DhtError::Refused(refusal.code as i64))
}

fn check_salt(salt: &[u8]) -> Result<(), DhtError> {
    match salt.len() {
        0..=MAX_SALT => Ok(()),
        len => Err(DhtError::LongSalt(len)),
    }
}

fn check_value(value: &[u8]) -> Result<(), DhtError> {
    if value.len() > MAX_VALUE {
        return Err(DhtError::LongValue(value.len()));
    }
    match Document::parse(value, &Limits::default()) {
        Ok(_) => Ok(()),
        Err(error) => Err(DhtError::NotBencoded(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_bencoded_and_short() {
        assert_eq!(check_value(b"5:hello"), Ok(()));
        assert!(matches!(check_value(b"hello"), Err(DhtError::NotBencoded(_))));
        assert!(matches!(check_value(b"5:hello5:hello"), Err(DhtError::NotBencoded(_))));
        let long = [b"997:".as_slice(), &[b'x'; 997]].concat();
        assert_eq!(check_value(&long), Err(DhtError::LongValue(1001)));
        assert_eq!(
            check_value(&long[1..]),
            Err(DhtError::NotBencoded(check_text(&long[1..])))
        );
        assert_eq!(check_salt(&[0; 64]), Ok(()));
        assert_eq!(check_salt(&[0; 65]), Err(DhtError::LongSalt(65)));
    }

    fn check_text(value: &[u8]) -> String {
        Document::parse(value, &Limits::default()).unwrap_err().to_string()
    }

    #[test]
    fn sequence_numbers_grow_until_the_last() {
        let sign = |last| sign_next(&[7; 32], b"salt", b"i1e", last);
        let (first, next) = (sign(None).unwrap(), sign(Some(41)).unwrap());
        assert_eq!((first.seq(), next.seq()), (1, 42));
        let target = items::mutable_target(&items::public_key(&[7; 32]), b"salt");
        let signed = next.proof.as_ref().map(items::Proof::as_signed);
        assert_eq!(Item::verified(target, b"i1e", signed, b"salt"), Some(next.clone()));
        assert_eq!(sign(Some(i64::MAX)), Err(DhtError::LastSequence));
    }
}
