//! The routes of the DHT.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use ecs_torrent_components::dht::{DhtPeers, DhtStats};
use ecs_torrent_components::links::FollowedLink;
use ecs_torrent_protocol::bencode::{Document, Limits};
use ecs_torrent_protocol::dht::id::NodeId;
use ecs_torrent_protocol::dht::items::{Item, Proof};
use serde_json::{Value, json};

use super::Shared;
use super::answers::Refusal;
use super::requests::{NamedTorrent, NoParameters, Query, read};

pub(super) async fn stats(State(shared): State<Shared>) -> Result<Json<DhtStats>, Refusal> {
    Ok(Json(shared.torrents.dht().stats().await?))
}

pub(super) async fn find_peers(
    State(shared): State<Shared>,
    NamedTorrent(hash): NamedTorrent,
) -> Result<Json<DhtPeers>, Refusal> {
    Ok(Json(shared.torrents.dht().find_peers(hash).await?))
}

pub(super) async fn get(
    State(shared): State<Shared>,
    Path(target): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Refusal> {
    let target = parse_target(&target)?;
    let query = Query::parse(query, &["salt"])?;
    let salt = bytes(&query, "salt")?.unwrap_or_default();
    let item = shared.torrents.dht().get(target, &salt).await?;
    let item = item.ok_or_else(|| {
        let why = match salt.is_empty() {
            true => format!("no node has the item {target} without a salt; one with a salt is found only with it"),
            false => format!("no node has the item {target} with this salt"),
        };
        Refusal::of("target", StatusCode::NOT_FOUND, &why)
    })?;
    let proof = item.proof.map(|Proof { key, signature, seq }| {
        json!({"key": const_hex::encode(key), "signature": const_hex::encode(signature), "seq": seq})
    });
    let value = Document::parse(&item.value, &Limits::default());
    let text = value.ok().and_then(|value| value.root().as_str().map(str::to_owned));
    Ok(Json(
        json!({"value": const_hex::encode(item.value), "text": text, "signed": proof}),
    ))
}

/// Lists the links that are followed.
pub(super) async fn links(State(shared): State<Shared>, _: NoParameters) -> Result<Json<Vec<FollowedLink>>, Refusal> {
    Ok(Json(shared.torrents.dht().links().await?))
}

/// Ends the following of a link.
pub(super) async fn unfollow(State(shared): State<Shared>, Path(target): Path<String>) -> Result<StatusCode, Refusal> {
    shared.torrents.dht().unfollow_target(parse_target(&target)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Stores the body as an item. A mutable item arrives signed: its secret key stays with the client.
pub(super) async fn put(
    State(shared): State<Shared>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Refusal> {
    let query = Query::parse(query, &["key", "signature", "seq", "salt", "cas", "keep"])?;
    let salt = bytes(&query, "salt")?.unwrap_or_default();
    let proof = match (
        array(&query, "key")?,
        array(&query, "signature")?,
        number(&query, "seq")?,
    ) {
        (None, None, None) => None,
        (Some(key), Some(signature), Some(seq)) => Some(Proof { key, signature, seq }),
        _ => {
            let why = "key, signature and seq belong together";
            return Err(Refusal::of("key", StatusCode::BAD_REQUEST, why));
        }
    };
    let cas = number(&query, "cas")?;
    let (value, _permit) = read(&shared, &headers, body).await?;
    let value = value.to_vec().into_boxed_slice();
    let key = proof.as_ref().map(|proof| const_hex::encode(proof.key));
    let (item, dht) = (Item { value, proof }, shared.torrents.dht());
    let stored = dht.put_item(item.clone(), &salt, cas).await?;
    if query.flag("keep")? {
        dht.keep(item, &salt).await?;
    }
    Ok(Json(json!({
        "target": stored.target.to_string(),
        "key": key,
        "salt": const_hex::encode(&salt),
        "seq": stored.seq,
        "nodes": stored.nodes,
    })))
}

fn parse_target(target: &str) -> Result<NodeId, Refusal> {
    let why = "a target is 40 hexadecimal digits";
    target
        .parse()
        .map_err(|_| Refusal::of("target", StatusCode::BAD_REQUEST, why))
}

/// Reads a parameter that is bytes in hexadecimal digits.
fn bytes(query: &Query, name: &'static str) -> Result<Option<Vec<u8>>, Refusal> {
    let decode = |digits| const_hex::decode(digits).map_err(|_| no_digits(name));
    query.one(name).map(decode).transpose()
}

fn array<const N: usize>(query: &Query, name: &'static str) -> Result<Option<[u8; N]>, Refusal> {
    let bytes = bytes(query, name)?;
    bytes
        .map(|bytes| bytes.try_into().map_err(|_| no_digits(name)))
        .transpose()
}

fn number(query: &Query, name: &'static str) -> Result<Option<i64>, Refusal> {
    let parse = |text: &str| {
        let why = format!("{name} is a whole number");
        text.parse()
            .map_err(|_| Refusal::of(name, StatusCode::BAD_REQUEST, why))
    };
    query.one(name).map(parse).transpose()
}

fn no_digits(name: &'static str) -> Refusal {
    let why = format!("{name} is bytes in hexadecimal digits: a key has 64, a signature 128");
    Refusal::of(name, StatusCode::BAD_REQUEST, why)
}
