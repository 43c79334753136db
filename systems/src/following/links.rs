//! The followed links, and the format in which they are saved.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use ecs_torrent_components::commands::{AddOptions, Reply};
use ecs_torrent_components::links::{FollowError, FollowedLink, LinkKind};
use ecs_torrent_protocol::bencode::{BencodeError, Document, Limits, Value};
use ecs_torrent_protocol::dht::id::NodeId;
use ecs_torrent_protocol::dht::items::Item;
use ecs_torrent_protocol::dht::krpc::Signed;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::magnet::MutableLink;
use ecs_torrent_protocol::time::Timestamp;

/// A caller that waits for the first torrent of a link.
pub(super) type FollowReply = Reply<Result<InfoHash, FollowError>>;

/// A link, and the state of its item.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) link: MutableLink,
    /// The newest item that is known.
    pub(super) item: Option<Item>,
    /// The torrents of the link; `None` if only its item is kept.
    pub(super) download: Option<Download>,
    /// The time of the next search.
    pub(super) due: Timestamp,
    /// The time from which the item is stored again.
    pub(super) store_due: Timestamp,
    /// Whether a search, a store or an add is running.
    pub(super) is_busy: bool,
    /// The problem of the last search.
    pub(super) problem: Option<FollowError>,
    /// Searches in a row that reached no node.
    pub(super) misses: u32,
    /// Callers that wait for the first torrent.
    pub(super) callers: Vec<FollowReply>,
    /// The time until which the search is repeated for the callers.
    pub(super) patience: Timestamp,
}

/// Where a link's torrents are downloaded, and which of them run.
#[derive(Debug, Default)]
pub(super) struct Download {
    /// The download folder; `None` takes the one from the settings.
    root: Option<PathBuf>,
    /// The folder below it.
    into: Option<PathBuf>,
    /// The options of the user, until the first torrent is added.
    first: Option<Box<AddOptions>>,
    /// The torrent that the item names.
    pub(super) torrent: Option<InfoHash>,
    /// The torrent before that one, which runs until the newer one is complete.
    pub(super) previous: Option<InfoHash>,
}

impl Download {
    pub(super) fn new(options: AddOptions) -> Self {
        Self {
            root: options.root.clone(),
            into: options.into.clone(),
            first: Some(Box::new(options)),
            ..Self::default()
        }
    }

    /// Returns the options with which a torrent of the link is added. Each torrent after the first one gets a folder of
    /// its own, named after the link's target and the sequence number: two versions may have files of the same names.
    pub(super) fn options(&mut self, link: &MutableLink, seq: i64) -> AddOptions {
        if let Some(first) = self.first.take() {
            return *first;
        }
        let folder = format!("{:.8}-{seq}", link.target().to_string());
        let into = self.into.as_deref().unwrap_or(Path::new("")).join(folder);
        AddOptions {
            root: self.root.clone(),
            into: Some(into),
            ..AddOptions::default()
        }
    }
}

impl Link {
    pub(super) fn new(link: MutableLink, now: Timestamp) -> Self {
        Self {
            link,
            item: None,
            download: None,
            due: now,
            store_due: now,
            is_busy: false,
            problem: None,
            misses: 0,
            callers: Vec::new(),
            patience: now,
        }
    }

    /// The sequence number of the newest known item.
    pub(super) fn seq(&self) -> Option<i64> {
        self.item.as_ref().map(Item::seq)
    }

    /// The torrent that the item names, if one was added for it.
    pub(super) fn torrent(&self) -> Option<InfoHash> {
        self.download.as_ref()?.torrent
    }

    pub(super) fn describe(&self) -> FollowedLink {
        let download = self.download.as_ref();
        FollowedLink {
            link: self.link.clone(),
            target: self.link.target(),
            kind: download.map_or(LinkKind::Published, |_| LinkKind::Followed),
            is_downloaded: download.is_some(),
            info_hash: match download {
                Some(download) => download.torrent,
                None => self.item.as_ref().and_then(|item| MutableLink::torrent_in(&item.value)),
            },
            previous: download.and_then(|download| download.previous),
            seq: self.seq(),
            error: self.problem.as_ref().map(ToString::to_string),
        }
    }
}

/// Limits on what is loaded: that of a blob, and seventeen values for each of 400 links.
const LIMITS: Limits = Limits {
    max_depth: 3,
    max_tokens: 20_000,
    max_bytes: 4 << 20,
};

/// Writes the links as a bencoded list. A link without an item is saved too: it is searched for in the next run.
pub(super) fn save<'l>(links: impl Iterator<Item = &'l Link>) -> Vec<u8> {
    let mut out = vec![b'l'];
    for link in links {
        out.push(b'd');
        let download = link.download.as_ref();
        let hash = |hash: Option<InfoHash>| hash.map(|hash| hash.0.to_vec());
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.as_os_str().as_bytes().to_vec());
        let proof = link.item.as_ref().and_then(|item| item.proof.as_ref());
        let pairs = [
            ("download", download.map(|_| Vec::new())),
            ("into", download.and_then(|download| path(&download.into))),
            ("key", Some(link.link.key.to_vec())),
            ("previous", hash(download.and_then(|download| download.previous))),
            ("root", download.and_then(|download| path(&download.root))),
            ("salt", Some(link.link.salt.clone())),
            ("seq", proof.map(|proof| proof.seq.to_be_bytes().to_vec())),
            ("signature", proof.map(|proof| proof.signature.to_vec())),
            ("torrent", hash(link.torrent())),
            ("value", link.item.as_ref().map(|item| item.value.to_vec())),
        ];
        for (key, value) in pairs {
            if let Some(value) = value {
                write_bytes(key.as_bytes(), &mut out);
                write_bytes(&value, &mut out);
            }
        }
        out.push(b'e');
    }
    out.push(b'e');
    out
}

/// Reads saved links; those that are damaged are left out.
///
/// # Errors
/// If the text is not bencoded.
pub(super) fn load(saved: &[u8], max: usize, now: Timestamp) -> Result<BTreeMap<NodeId, Link>, BencodeError> {
    let document = Document::parse(saved, &LIMITS)?;
    let entries = document.root().as_list().into_iter().flatten();
    let links = entries.filter_map(|entry| read(entry, now));
    Ok(links.map(|link| (link.link.target(), link)).take(max).collect())
}

fn read(entry: Value<'_>, now: Timestamp) -> Option<Link> {
    let bytes = |key: &str| entry.get(key.as_bytes()).and_then(Value::as_bytes);
    let path = |key| bytes(key).map(|path| PathBuf::from(OsString::from_vec(path.to_vec())));
    let hash = |key| Some(InfoHash(bytes(key)?.try_into().ok()?));
    let link = MutableLink {
        key: bytes("key")?.try_into().ok()?,
        salt: bytes("salt")?.to_vec(),
    };
    let mut read = Link::new(link, now);
    read.item = read_item(&read.link, bytes);
    read.download = bytes("download").map(|_| Download {
        root: path("root"),
        into: path("into"),
        first: None,
        torrent: hash("torrent"),
        previous: hash("previous"),
    });
    // Without torrent, the next one is the first.
    if let Some(download) = &mut read.download
        && download.torrent.is_none()
    {
        let (root, into) = (download.root.clone(), download.into.clone());
        download.first = Some(Box::new(AddOptions {
            root,
            into,
            ..AddOptions::default()
        }));
    }
    Some(read)
}

/// Reads an item whose signature is valid: other nodes would refuse any other.
fn read_item<'v>(link: &MutableLink, bytes: impl Fn(&str) -> Option<&'v [u8]>) -> Option<Item> {
    let signed = Signed {
        key: &link.key,
        signature: bytes("signature")?.try_into().ok()?,
        seq: i64::from_be_bytes(bytes("seq")?.try_into().ok()?),
    };
    Item::verified(link.target(), bytes("value")?, Some(signed), &link.salt)
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend(bytes.len().to_string().into_bytes());
    out.push(b':');
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use ecs_torrent_protocol::dht::items::public_key;

    use super::*;

    fn link(salt: &[u8]) -> MutableLink {
        MutableLink {
            key: public_key(&[7; 32]),
            salt: salt.to_vec(),
        }
    }

    fn links() -> BTreeMap<NodeId, Link> {
        let mut full = Link::new(link(b"full"), Timestamp::ZERO);
        full.item = Item::sign(&[7; 32], b"full", -3, b"d2:ih20:aaaaaaaaaaaaaaaaaaaae").ok();
        full.download = Some(Download {
            root: Some("/srv/\u{e4}".into()),
            into: Some(OsString::from_vec(vec![b'x', 0xff]).into()),
            first: None,
            torrent: Some(InfoHash([1; 20])),
            previous: Some(InfoHash([2; 20])),
        });
        let mut new = Link::new(link(b""), Timestamp::ZERO);
        new.download = Some(Download::default());
        let kept = Link::new(link(b"kept"), Timestamp::ZERO);
        [full, new, kept].map(|link| (link.link.target(), link)).into()
    }

    #[test]
    fn links_are_saved_and_loaded() {
        let links = links();
        let saved = save(links.values());
        let loaded = load(&saved, 10, Timestamp::ZERO).unwrap();
        let described = |links: &BTreeMap<NodeId, Link>| links.values().map(Link::describe).collect::<Vec<_>>();
        assert_eq!(described(&loaded), described(&links));
        assert_eq!(save(loaded.values()), saved);
        assert_eq!(load(&saved, 2, Timestamp::ZERO).unwrap().len(), 2, "at most so many");
    }

    #[test]
    fn damaged_links_are_left_out() {
        let links = links();
        let mut saved = save(links.values());
        assert!(load(&saved[1..], 10, Timestamp::ZERO).is_err());
        let at = saved.windows(6).position(|found| found == b"d2:ih2").unwrap() + 12;
        saved[at] ^= 1;
        let loaded = load(&saved, 10, Timestamp::ZERO).unwrap();
        assert_eq!(loaded.len(), 3);
        assert!(
            loaded.values().all(|link| link.item.is_none()),
            "the signature is wrong"
        );
        assert!(load(b"ld3:key2:xxee", 10, Timestamp::ZERO).unwrap().is_empty());
    }

    #[test]
    fn later_torrents_get_folders_of_their_own() {
        let mut download = Download::new(AddOptions {
            root: Some("/srv".into()),
            into: Some("news".into()),
            overwrite: true,
            ..AddOptions::default()
        });
        let first = download.options(&link(b""), 4);
        assert_eq!((first.into, first.overwrite), (Some("news".into()), true));
        let next = download.options(&link(b""), 5);
        let folder = format!("news/{}-5", &link(b"").target().to_string()[..8]);
        assert_eq!((next.root, next.into), (Some("/srv".into()), Some(folder.into())));
        assert!(!next.overwrite);
    }
}
