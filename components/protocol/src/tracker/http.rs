//! Announce and scrape over HTTP (BEP 3, 7, 23, 24, 31, 48): request URLs and response bodies.

use std::net::SocketAddr;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use super::{AnnounceEvent, AnnounceRequest, AnnounceResponse, MAX_TEXT, Retry, ScrapeCounts, TrackerError};
use crate::bencode::{Document, Limits, Value};
use crate::compact;
use crate::hash::InfoHash;
use crate::text::printable;

/// Builds the URL of an announce.
#[must_use]
pub fn announce_url(announce: &str, request: &AnnounceRequest) -> String {
    let mut url = with_query(announce);
    let AnnounceRequest {
        port,
        uploaded,
        downloaded,
        left,
        key,
        num_want,
        ..
    } = request;
    url.push_str(&format!(
        "info_hash={}&peer_id={}&port={port}&uploaded={uploaded}&downloaded={downloaded}&left={left}\
         &compact=1&no_peer_id=1&numwant={num_want}&key={key:08X}",
        escape(&request.info_hash.0),
        escape(&request.peer_id.0),
    ));
    let event = match request.event {
        AnnounceEvent::None => None,
        AnnounceEvent::Started => Some("started"),
        AnnounceEvent::Completed => Some("completed"),
        AnnounceEvent::Stopped => Some("stopped"),
        AnnounceEvent::Paused => Some("paused"),
    };
    if let Some(event) = event {
        url.push_str("&event=");
        url.push_str(event);
    }
    if let Some(id) = &request.tracker_id {
        url.push_str("&trackerid=");
        url.push_str(&escape(id));
    }
    url
}

/// Builds the URL of a scrape. `None` unless the announce URL follows the convention of BEP 48: its last path component
/// begins with `announce`.
#[must_use]
pub fn scrape_url(announce: &str, info_hashes: &[InfoHash]) -> Option<String> {
    let (path, query) = announce
        .split_once('?')
        .map_or((announce, None), |(path, query)| (path, Some(query)));
    let slash = path.rfind('/')?;
    let rest = path[slash + 1..].strip_prefix("announce")?;
    let mut scrape = format!("{}/scrape{rest}", &path[..slash]);
    if let Some(query) = query {
        scrape.push('?');
        scrape.push_str(query);
    }
    let hashes: Vec<String> = info_hashes
        .iter()
        .map(|hash| format!("info_hash={}", escape(&hash.0)))
        .collect();
    Some(with_query(&scrape) + &hashes.join("&"))
}

/// Returns `url` without its fragment, ready for our first parameter.
fn with_query(url: &str) -> String {
    let url = url.split('#').next().unwrap_or_default();
    let joint = match url.split_once('?') {
        None => "?",
        Some((_, "")) => "",
        Some((_, query)) if query.ends_with('&') => "",
        Some(_) => "&",
    };
    format!("{url}{joint}")
}

fn escape(bytes: &[u8]) -> String {
    percent_encode(bytes, NON_ALPHANUMERIC).to_string()
}

/// Reads the body of an announce reply, keeping at most `max_peers` peers.
///
/// # Errors
/// Returns the tracker's refusal, or the malformed part.
pub fn read_announce(body: &[u8], max_peers: usize) -> Result<AnnounceResponse, TrackerError> {
    let document = Document::parse(body, &Limits::small(body.len()))?;
    let root = document.root();
    refusal(root)?;
    let seconds = |key: &[u8]| root.get(key).and_then(Value::as_int).map(seconds);
    let count = |key: &[u8]| root.get(key).and_then(Value::as_int).map(saturate);
    let mut peers = Vec::new();
    if let Some(list) = root.get(b"peers") {
        read_peers(list, max_peers, &mut peers)?;
    }
    if let Some(list) = root.get(b"peers6").and_then(Value::as_bytes) {
        extend(&mut peers, compact::read_v6(list)?, max_peers);
    }
    Ok(AnnounceResponse {
        interval: seconds(b"interval").ok_or(TrackerError::Malformed("interval is missing"))?,
        min_interval: seconds(b"min interval"),
        seeders: count(b"complete"),
        leechers: count(b"incomplete"),
        peers,
        warning: root
            .get(b"warning message")
            .and_then(Value::as_bytes)
            .map(|text| printable(text, MAX_TEXT)),
        tracker_id: root.get(b"tracker id").and_then(Value::as_bytes).map(<[u8]>::to_vec),
        external_ip: root
            .get(b"external ip")
            .and_then(Value::as_bytes)
            .and_then(compact::read_ip),
    })
}

/// Checks a body for a refusal: trackers also send refusals with an HTTP error code.
///
/// # Errors
/// Returns the refusal.
pub fn read_refusal(body: &[u8]) -> Result<(), TrackerError> {
    match Document::parse(body, &Limits::small(body.len())) {
        Ok(document) => refusal(document.root()),
        Err(_) => Ok(()),
    }
}

/// Reads the body of a scrape reply, for those of `info_hashes` that it contains.
///
/// # Errors
/// Returns the tracker's refusal, or the malformed part.
pub fn read_scrape(body: &[u8], info_hashes: &[InfoHash]) -> Result<Vec<(InfoHash, ScrapeCounts)>, TrackerError> {
    let document = Document::parse(body, &Limits::small(body.len()))?;
    let root = document.root();
    refusal(root)?;
    let files = root.get(b"files").filter(|files| files.is_dict());
    let files = files.ok_or(TrackerError::Malformed("files is missing"))?;
    let found = info_hashes.iter().filter_map(|hash| {
        let entry = files.get(&hash.0)?;
        let count = |key: &[u8]| entry.get(key).and_then(Value::as_int).map_or(0, saturate);
        let counts = ScrapeCounts {
            seeders: count(b"complete"),
            leechers: count(b"incomplete"),
            completed: count(b"downloaded"),
        };
        Some((*hash, counts))
    });
    Ok(found.collect())
}

/// Checks for a BEP 3 `failure reason`, with BEP 31 `retry in`: minutes as a number or text, or `never`.
fn refusal(root: Value<'_>) -> Result<(), TrackerError> {
    if !root.is_dict() {
        return Err(TrackerError::Malformed("not a dictionary"));
    }
    let Some(reason) = root.get(b"failure reason").and_then(Value::as_bytes) else {
        return Ok(());
    };
    let minutes = |minutes: i64| Retry::After(seconds(minutes.saturating_mul(60)));
    let retry = match root.get(b"retry in") {
        None => Retry::Unspecified,
        Some(value) => match (value.as_int(), value.as_str()) {
            (Some(number), _) => minutes(number),
            (None, Some("never")) => Retry::Never,
            (None, Some(text)) => text.parse().map_or(Retry::Unspecified, minutes),
            (None, None) => Retry::Unspecified,
        },
    };
    let reason = printable(reason, MAX_TEXT);
    Err(TrackerError::Refused { reason, retry })
}

/// Reads a list of peers: a string of compact addresses (BEP 23) or a list of dictionaries (BEP 3). Dictionaries with a
/// host name in place of an address cannot be used and are skipped.
fn read_peers(list: Value<'_>, max: usize, peers: &mut Vec<SocketAddr>) -> Result<(), TrackerError> {
    if let Some(bytes) = list.as_bytes() {
        extend(peers, compact::read_v4(bytes)?, max);
        return Ok(());
    }
    let list = list
        .as_list()
        .ok_or(TrackerError::Malformed("peers is neither string nor list"))?;
    let addresses = list.filter_map(|peer| {
        let ip = peer.get(b"ip")?.as_str()?.parse().ok()?;
        let port = u16::try_from(peer.get(b"port")?.as_int()?).ok()?;
        Some(SocketAddr::new(ip, port))
    });
    extend(peers, addresses, max);
    Ok(())
}

fn extend(peers: &mut Vec<SocketAddr>, addresses: impl Iterator<Item = SocketAddr>, max: usize) {
    let room = max.saturating_sub(peers.len());
    peers.extend(addresses.filter(|address| address.port() != 0).take(room));
}

fn seconds(value: i64) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}

fn saturate(value: i64) -> u32 {
    value.clamp(0, i64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::super::tests::request;
    use super::*;

    #[test]
    fn announce_urls_carry_every_parameter() {
        let url = announce_url("http://t.org:80/announce", &request());
        let hash = "%AB".repeat(20);
        assert_eq!(
            url,
            format!(
                "http://t.org:80/announce?info_hash={hash}&peer_id=%2DEC0100%2Dabcdefghijkl&port=6881&uploaded=1\
                 &downloaded=2&left=3&compact=1&no_peer_id=1&numwant=50&key=DEADBEEF&event=started"
            )
        );
        let later = AnnounceRequest {
            event: AnnounceEvent::None,
            tracker_id: Some(b"a&b".to_vec()),
            ..request()
        };
        for complete in ["http://t.org/x?", "http://t.org/x?k=1&"] {
            assert!(announce_url(complete, &later).starts_with(&format!("{complete}info_hash=")));
        }
        for complete in ["http://t.org/x?", "http://t.org/x?k=1&"] {
            assert!(announce_url(complete, &later).starts_with(&format!("{complete}info_hash=")));
        }
        let url = announce_url("http://t.org/x?passkey=1#top", &later);
        assert!(url.starts_with("http://t.org/x?passkey=1&info_hash=") && url.ends_with("&trackerid=a%26b"));
        assert!(!url.contains("event="));
    }

    #[test]
    fn scrape_urls_follow_the_convention() {
        let scrape = |url| scrape_url(url, &[InfoHash([0; 20])]).map(|s| s.replace(&"%00".repeat(20), "H"));
        assert_eq!(
            scrape("http://e.com/announce").unwrap(),
            "http://e.com/scrape?info_hash=H"
        );
        assert_eq!(
            scrape("http://e.com/x/announce").unwrap(),
            "http://e.com/x/scrape?info_hash=H"
        );
        assert_eq!(
            scrape("http://e.com/announce.php").unwrap(),
            "http://e.com/scrape.php?info_hash=H"
        );
        assert_eq!(
            scrape("http://e.com/announce?k=1").unwrap(),
            "http://e.com/scrape?k=1&info_hash=H"
        );
        assert_eq!(scrape("http://e.com/a"), None);
        assert_eq!(scrape("http://e.com/announce/x"), None);
        assert_eq!(
            scrape("http://e.com/announce?x=2/4").unwrap(),
            "http://e.com/scrape?x=2/4&info_hash=H"
        );
    }

    #[test]
    fn reads_a_full_reply() {
        let body = b"d8:completei5e11:external ip4:\x01\x02\x03\x0410:incompletei7e8:intervali1800e12:min intervali60e\
                     5:peers12:\x7f\0\0\x01\x1a\xe1\x7f\0\0\x02\0\0\
                     6:peers618:\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x1a\xe1\
                     10:tracker id3:abc15:warning message5:hi\x1b[m";
        let body = [&body[..], b"e"].concat();
        let reply = read_announce(&body, 100).unwrap();
        assert_eq!(reply.interval, Duration::from_secs(1800));
        assert_eq!(reply.min_interval, Some(Duration::from_secs(60)));
        assert_eq!((reply.seeders, reply.leechers), (Some(5), Some(7)));
        let peers: Vec<String> = reply.peers.iter().map(ToString::to_string).collect();
        assert_eq!(peers, ["127.0.0.1:6881", "[::1]:6881"], "port 0 is nobody");
        assert_eq!(reply.warning.as_deref(), Some("hi\u{fffd}[m"));
        assert_eq!(reply.tracker_id.as_deref(), Some(&b"abc"[..]));
        assert_eq!(reply.external_ip, Some("1.2.3.4".parse().unwrap()));
        assert_eq!(read_announce(&body, 1).unwrap().peers.len(), 1);
    }

    #[test]
    fn reads_dictionaries_of_peers() {
        let body = b"d8:intervali9e5:peersld2:ip7:1.2.3.44:porti5eed2:ip3:::14:porti6eed2:ip4:name4:porti7eeee";
        let reply = read_announce(body, 100).unwrap();
        assert_eq!(reply.peers, ["1.2.3.4:5".parse().unwrap(), "[::1]:6".parse().unwrap()]);
    }

    /// Fault 53: intervals are kept as received, except that negative ones become zero; the engine clamps them.
    #[test]
    fn odd_intervals_do_not_overflow() {
        let interval = |text: &str| {
            read_announce(format!("d8:intervali{text}e5:peers0:e").as_bytes(), 9).map(|reply| reply.interval)
        };
        assert_eq!(interval("-5"), Ok(Duration::ZERO));
        assert_eq!(interval("0"), Ok(Duration::ZERO));
        assert_eq!(
            interval("9223372036854775807"),
            Ok(Duration::from_secs(i64::MAX as u64))
        );
        assert_eq!(
            read_announce(b"d5:peers0:e", 9),
            Err(TrackerError::Malformed("interval is missing"))
        );
    }

    /// Fault 54.
    #[test]
    fn ragged_peers_are_an_error() {
        let error = read_announce(b"d8:intervali9e5:peers7:abcdefge", 9).unwrap_err();
        assert_eq!(
            error.to_string(),
            "malformed reply: peers: 7 bytes is not a multiple of 6"
        );
        assert!(read_announce(b"d8:intervali9e5:peersi1ee", 9).is_err());
    }

    /// BEP 31, and fault 55.
    #[test]
    fn refusals_keep_reason_and_retry() {
        let retry = |tail: &str| match read_announce(format!("d14:failure reason4:\x1bbad{tail}e").as_bytes(), 9) {
            Err(TrackerError::Refused { reason, retry }) => {
                assert_eq!(reason, "\u{fffd}bad");
                retry
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(retry(""), Retry::Unspecified);
        assert_eq!(retry("8:retry ini5e"), Retry::After(Duration::from_secs(300)));
        assert_eq!(retry("8:retry in2:10"), Retry::After(Duration::from_secs(600)));
        assert_eq!(retry("8:retry in5:never"), Retry::Never);
        assert!(read_refusal(b"<html>404</html>").is_ok());
        assert!(read_refusal(b"d14:failure reason1:xe").is_err());
    }

    #[test]
    fn reads_scrapes() {
        let known = InfoHash([b'k'; 20]);
        let body = format!(
            "d5:filesd20:{}d8:completei1e10:downloadedi2e10:incompletei3eeee",
            "k".repeat(20)
        );
        let counts = read_scrape(body.as_bytes(), &[InfoHash([0; 20]), known]).unwrap();
        let expected = ScrapeCounts {
            seeders: 1,
            leechers: 3,
            completed: 2,
        };
        assert_eq!(counts, [(known, expected)]);
        assert!(read_scrape(b"de", &[known]).is_err());
    }
}
