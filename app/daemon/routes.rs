//! The routes of the API, in one table.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use axum::body::Body;
use axum::extract::{Path as InPath, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use axum::{Json, Router, middleware};
use serde_json::{Value, json};
use tokio::sync::MutexGuard;
use tower_http::compression::{CompressionLayer, CompressionLevel};

use ecs_torrent_components::selection::FileSelection;

use super::answers::{self, Refusal};
use super::requests::{NamedTorrent, NoParameters, Query, media_type, parse_hash, read};
use super::{NONCE_DIGITS, Phase, Shared, changing, dht, events, files, guard, limits, listing, peers, trackers};
use crate::folders::check_writable;
use crate::{AddError, AddOptions, Error, Field, KeptFile, RemoveOptions, Source};

/// The description of the API for programs (OpenAPI 3.1).
const OPENAPI: &str = include_str!("openapi.json");

/// A request that the API answers.
struct Route {
    #[cfg(test)]
    method: &'static str,
    path: &'static str,
    access: Access,
    handler: MethodRouter<Shared>,
}

/// Clients that may send a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Everybody,
    Token,
}

/// Path of the proof request.
pub(super) const PROOF: &str = "/api/v1/proof";

/// Returns every route. The tests compare `openapi.json` with it.
fn table() -> Vec<Route> {
    use Access::{Everybody, Token};
    let route = |_method, path, access, handler| Route {
        #[cfg(test)]
        method: _method,
        path,
        access,
        handler,
    };
    vec![
        route("get", "/api/v1/health", Everybody, routing::get(health)),
        route("get", PROOF, Everybody, routing::get(proof)),
        route("get", "/api/v1/openapi.json", Token, compressed(routing::get(openapi))),
        route("get", "/api/v1/events", Token, routing::get(events::stream)),
        route(
            "get",
            "/api/v1/torrents",
            Token,
            compressed(routing::get(listing::list)),
        ),
        route("get", "/api/v1/sync", Token, compressed(routing::get(listing::sync))),
        route("get", "/api/v1/totals", Token, routing::get(listing::totals)),
        route("post", "/api/v1/torrents", Token, routing::post(add)),
        route("get", "/api/v1/torrents/{hash}", Token, compressed(routing::get(stats))),
        route("delete", "/api/v1/torrents/{hash}", Token, routing::delete(remove)),
        route("patch", "/api/v1/torrents/{hash}", Token, routing::patch(limits::set)),
        route(
            "get",
            "/api/v1/torrents/{hash}/files",
            Token,
            compressed(routing::get(files::list)),
        ),
        route(
            "patch",
            "/api/v1/torrents/{hash}/files",
            Token,
            routing::patch(files::set),
        ),
        route("get", "/api/v1/torrents/{hash}/peers", Token, routing::get(peers::list)),
        route(
            "patch",
            "/api/v1/torrents/{hash}/peers",
            Token,
            routing::patch(peers::add),
        ),
        route(
            "get",
            "/api/v1/torrents/{hash}/trackers",
            Token,
            routing::get(trackers::list),
        ),
        route(
            "patch",
            "/api/v1/torrents/{hash}/trackers",
            Token,
            routing::patch(trackers::edit),
        ),
        route(
            "post",
            "/api/v1/torrents/{hash}/announce",
            Token,
            routing::post(trackers::announce),
        ),
        route("post", "/api/v1/torrents/{hash}/pause", Token, routing::post(pause)),
        route("post", "/api/v1/torrents/{hash}/start", Token, routing::post(start)),
        route("post", "/api/v1/torrents/{hash}/stop", Token, routing::post(stop)),
        route("post", "/api/v1/torrents/{hash}/resume", Token, routing::post(resume)),
        route("get", "/api/v1/settings", Token, routing::get(changing::get)),
        route("patch", "/api/v1/settings", Token, routing::patch(changing::change)),
        route("get", "/api/v1/dht", Token, routing::get(dht::stats)),
        route("get", "/api/v1/dht/peers/{hash}", Token, routing::get(dht::find_peers)),
        route("get", "/api/v1/dht/items/{target}", Token, routing::get(dht::get)),
        route("post", "/api/v1/dht/items", Token, routing::post(dht::put)),
        route("get", "/api/v1/dht/links", Token, routing::get(dht::links)),
        route(
            "delete",
            "/api/v1/dht/links/{target}",
            Token,
            routing::delete(dht::unfollow),
        ),
        route("post", "/api/v1/shutdown", Token, routing::post(shutdown)),
        route("post", "/api/v1/pause", Token, routing::post(pause_all)),
        route("post", "/api/v1/start", Token, routing::post(start_all)),
        route("post", "/api/v1/stop", Token, routing::post(stop_all)),
        route("post", "/api/v1/resume", Token, routing::post(resume_all)),
    ]
}

/// Compresses answers for clients that accept it. Nothing that another user chose is in an answer beside a secret, so that
/// the length of an answer tells nothing.
fn compressed(handler: MethodRouter<Shared>) -> MethodRouter<Shared> {
    handler.layer(CompressionLayer::new().gzip(true).quality(CompressionLevel::Fastest))
}

/// Creates the router of the whole API.
pub(super) fn router(shared: Shared) -> Router {
    let token = middleware::from_fn_with_state(shared.clone(), guard::check_token);
    let routes = table().into_iter().map(|route| match route.access {
        Access::Everybody => (route.path, route.handler),
        Access::Token => (route.path, route.handler.route_layer(token.clone())),
    });
    routes
        .fold(Router::new(), |router, (path, handler)| router.route(path, handler))
        .fallback(async || Refusal::nothing_here())
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(middleware::from_fn_with_state(shared.clone(), guard::check_names))
        .with_state(shared)
}

async fn health(State(shared): State<Shared>) -> Json<Value> {
    Json(json!({"status": shared.phase().name(), "version": env!("CARGO_PKG_VERSION")}))
}

/// Proves to a client that this is the daemon, before the client shows its token.
async fn proof(
    State(shared): State<Shared>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let query = Query::parse(query, &["nonce"])?;
    let nonce = query.one("nonce").unwrap_or_default();
    if nonce.len() != NONCE_DIGITS || !nonce.bytes().all(|c| c.is_ascii_hexdigit()) {
        let why = format!("a nonce is {NONCE_DIGITS} hexadecimal digits, other ones each time");
        return Err(Refusal::of("nonce", StatusCode::BAD_REQUEST, why));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    Ok(Json(
        json!({"proof": shared.token.prove(host.unwrap_or_default(), nonce)}),
    ))
}

async fn openapi(headers: HeaderMap) -> Response {
    answers::tagged(&headers, OPENAPI.as_bytes().to_vec())
}

/// Begins to stop the daemon, as a signal does. The answer comes at once.
async fn shutdown(State(shared): State<Shared>, _: NoParameters) -> (StatusCode, Json<Value>) {
    shared.shutdown.send_replace(true);
    (StatusCode::ACCEPTED, Json(json!({"status": Phase::Stopping.name()})))
}

async fn add(
    State(shared): State<Shared>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let query = Query::parse(
        query,
        &[
            "root",
            "into",
            "name",
            "overwrite",
            "peer",
            "files",
            "select",
            "download_limit",
            "upload_limit",
        ],
    )?;
    let peers = query
        .all("peer")
        .map(str::parse)
        .collect::<Result<Vec<SocketAddr>, _>>();
    let peers = peers.map_err(|_| Refusal::of("peer", StatusCode::BAD_REQUEST, "a peer is IP:PORT"))?;
    let root = Path::new(query.one("root").unwrap_or_default());
    let into = query.one("into").map(PathBuf::from);
    // Without a folder, a torrent that is known already stays in its own.
    let placed_by = ["into", "root"].into_iter().find(|name| query.one(name).is_some());
    if let Some(into) = into.clone().filter(|into| !is_below(into)) {
        return Err(Error::from(AddError::BadFolder { into }).into());
    }
    // Symbolic links on the way to the new folder are resolved too.
    let root = shared.roots.find(&into.map_or(root.to_owned(), |into| root.join(into)));
    let root = root.map_err(|error| Refusal::of("root", StatusCode::FORBIDDEN, error))?;
    let kind = media_type(&headers).unwrap_or_default();
    if ![TORRENT_FILE, MAGNET_LINK].contains(&&*kind) {
        let why = "send the bytes of a torrent file as application/x-bittorrent, or a magnet link as text/plain; nothing \
                   is fetched from a URL";
        return Err(Refusal::of("Content-Type", StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    let (bytes, _permit) = read(&shared, &headers, body).await?;
    let source = match &*kind {
        MAGNET_LINK => dht::source_of_link(&String::from_utf8_lossy(&bytes))?,
        _ => Source::from(bytes),
    };
    let link = source.link()?;
    let (source, name) = match &link {
        Some(link) => (source, link.target().to_string()),
        None => {
            let read = tokio::task::spawn_blocking(|| source.read()).await;
            let read = read.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))??;
            let name = read.name();
            (Source::from(read), name)
        }
    };
    let name = query.one("name").map_or(name, str::to_owned);
    let folder = root.clone();
    let checked = tokio::task::spawn_blocking(move || check_writable(&folder, &name)).await;
    let checked = checked.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    checked.map_err(|error| Refusal::of("root", StatusCode::FORBIDDEN, error))?;
    let options = AddOptions {
        root: placed_by.map(|_| root.clone()),
        name: query.one("name").map(str::to_owned),
        overwrite: query.flag("overwrite")?,
        peers,
        select: selection(&query)?,
        limits: limits::given(&query)?,
        ..AddOptions::default()
    };
    // Requests take turns: otherwise, two requests that add the same torrent would both get `201 Created`. The search for
    // the torrent of a link may take half a minute, for which others do not wait.
    let turn = turn_to_list(&shared).await?;
    let _turn = if link.is_some() { None } else { Some(turn) };
    let listed = shared.torrents.list().await?;
    let id = shared.torrents.download_with(source, options).await?;
    let is_new = !listed.contains(&id);
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let mut answer = json!({"info_hash": id.to_string()});
    if !is_new {
        let chosen = (placed_by.map(|parameter| (parameter, root)), query.one("name"));
        let ignored = ignored(&shared, id, chosen).await?;
        if !ignored.is_empty() {
            answer["ignored"] = ignored.into();
        }
    }
    Ok((status, Json(answer)).into_response())
}

/// Returns the files that the parameters select.
fn selection(query: &Query) -> Result<FileSelection, Refusal> {
    let bad = |field, error: &dyn ToString| Refusal::of(field, StatusCode::BAD_REQUEST, error.to_string());
    let ranges = query.one("files").map(files::parse_ranges).transpose();
    let ranges = ranges.map_err(|error| bad("files", &error))?.unwrap_or_default();
    FileSelection::new(ranges, query.all("select")).map_err(|error| bad("select", &error))
}

/// Returns which parameters of an add have no effect on a torrent that is listed already, since its files have their
/// place: of the one that chose a folder, and the name.
async fn ignored(
    shared: &Shared,
    torrent: crate::TorrentId,
    (folder, name): (Option<(&'static str, PathBuf)>, Option<&str>),
) -> Result<Vec<&'static str>, Refusal> {
    if folder.is_none() && name.is_none() {
        return Ok(Vec::new());
    }
    let stats = shared.torrents.stats(torrent).await?;
    // The same folder may be named by a link.
    let root = tokio::task::spawn_blocking(move || stats.root.canonicalize().unwrap_or(stats.root)).await;
    let root = root.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let folder = folder
        .filter(|(_, folder)| *folder != root)
        .map(|(parameter, _)| parameter);
    let name = name.filter(|name| *name != stats.name).map(|_| "name");
    Ok(folder.into_iter().chain(name).collect())
}

/// Waits for the turn of a request that lists torrents, and refuses it while the daemon is stopping: a torrent that is
/// listed then would escape the stop of all.
async fn turn_to_list(shared: &Shared) -> Result<MutexGuard<'_, ()>, Refusal> {
    let turn = shared.adding.lock().await;
    match shared.phase() {
        Phase::Stopping => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping")),
        _ => Ok(turn),
    }
}

/// Returns whether a relative path has only plain components, so that it stays below its parent folder.
fn is_below(folder: &Path) -> bool {
    let is_plain = |part| matches!(part, Component::Normal(_));
    folder.components().next().is_some() && folder.components().all(is_plain)
}

/// Media types of the bodies that add a torrent.
const TORRENT_FILE: &str = "application/x-bittorrent";
const MAGNET_LINK: &str = "text/plain";

async fn stats(
    State(shared): State<Shared>,
    InPath(hash): InPath<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let hash = parse_hash(&hash)?;
    let fields = Query::parse(query, &["fields"])?.fields(&Field::DEFAULT)?;
    answers::tagged_json(&headers, &shared.torrents.stats_of(hash, &fields).await?)
}

async fn remove(
    State(shared): State<Shared>,
    InPath(hash): InPath<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Refusal> {
    let hash = parse_hash(&hash)?;
    let delete_data = Query::parse(query, &["delete_data"])?.flag("delete_data")?;
    let removed = shared.torrents.remove(hash, RemoveOptions { delete_data }).await?;
    let kept = |kept: &KeptFile| json!({"path": kept.path, "reason": *kept.reason});
    Ok(Json(json!({
        "deleted": removed.deleted,
        "deleted_count": removed.deleted_count,
        "kept": removed.kept.iter().map(kept).collect::<Vec<_>>(),
        "kept_count": removed.kept_count,
    })))
}

async fn pause(State(shared): State<Shared>, NamedTorrent(hash): NamedTorrent) -> Result<StatusCode, Refusal> {
    shared.torrents.pause(hash).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn start(State(shared): State<Shared>, NamedTorrent(hash): NamedTorrent) -> Result<StatusCode, Refusal> {
    shared.torrents.start(hash).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn pause_all(State(shared): State<Shared>, _: NoParameters) -> Result<StatusCode, Refusal> {
    shared.torrents.pause_all().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn start_all(State(shared): State<Shared>, _: NoParameters) -> Result<StatusCode, Refusal> {
    shared.torrents.start_all().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn stop(State(shared): State<Shared>, NamedTorrent(hash): NamedTorrent) -> Result<StatusCode, Refusal> {
    shared.torrents.stop_and_serialize(hash).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn resume(State(shared): State<Shared>, NamedTorrent(hash): NamedTorrent) -> Result<StatusCode, Refusal> {
    let _turn = turn_to_list(&shared).await?;
    shared.torrents.resume(hash).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn resume_all(State(shared): State<Shared>, _: NoParameters) -> Result<StatusCode, Refusal> {
    let _turn = turn_to_list(&shared).await?;
    shared.torrents.resume_all().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn stop_all(State(shared): State<Shared>, _: NoParameters) -> Result<StatusCode, Refusal> {
    shared.torrents.stop_all_until_resumed().await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The document describes exactly the existing routes, and which clients may use them.
    #[test]
    fn the_document_describes_the_routes() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let mut described = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                if method != "parameters" {
                    let is_open = operation["security"] == json!([]);
                    described.insert((method.clone(), path.clone(), is_open));
                }
            }
        }
        let routes = table().into_iter().map(|route| {
            let is_open = route.access == Access::Everybody;
            (route.method.to_owned(), route.path.to_owned(), is_open)
        });
        assert_eq!(described, routes.collect());
    }

    /// The schema of a torrent has every selectable field and no other.
    #[test]
    fn the_document_describes_the_fields() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let schemas = &document["components"]["schemas"];
        let described: BTreeSet<&str> = schemas["Torrent"]["properties"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(described, Field::ALL.map(Field::name).into());
        assert_eq!(schemas["Field"]["enum"], json!(Field::ALL.map(Field::name)));
    }

    /// The document names every code of an error and no other.
    #[test]
    fn the_document_describes_the_error_codes() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        assert_eq!(
            document["components"]["schemas"]["ErrorCode"]["enum"],
            json!(answers::ErrorCode::ALL)
        );
    }

    /// Every reference in the document has a target.
    #[test]
    fn the_document_holds_together() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 10);
        for reference in found {
            let place = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(place).is_some(), "{reference}");
        }
    }
}
