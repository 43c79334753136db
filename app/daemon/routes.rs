//! The routes of the API, in one table.

use axum::extract::{Path as InPath, RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use axum::{Json, Router, middleware};
use serde_json::{Value, json};
use tower_http::compression::{CompressionLayer, CompressionLevel};

use super::answers::{self, Refusal};
use super::requests::{NamedTorrent, NoParameters, Query, parse_hash};
use super::{
    NONCE_DIGITS, Phase, Shared, adding, changing, content, dht, events, files, guard, limits, listing, metrics,
    moving, peers, queue, state, trackers,
};
use crate::{Field, RemoveOptions};

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
        route("post", "/api/v1/torrents", Token, routing::post(adding::add)),
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
        route(
            "get",
            "/api/v1/torrents/{hash}/files/{index}/content",
            Token,
            routing::get(content::get),
        ),
        route(
            "head",
            "/api/v1/torrents/{hash}/files/{index}/content",
            Token,
            routing::head(content::head),
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
        route(
            "patch",
            "/api/v1/torrents/{hash}/queue",
            Token,
            routing::patch(queue::change),
        ),
        route("post", "/api/v1/torrents/{hash}/pause", Token, routing::post(pause)),
        route("post", "/api/v1/torrents/{hash}/start", Token, routing::post(start)),
        route(
            "post",
            "/api/v1/torrents/{hash}/recheck",
            Token,
            routing::post(files::recheck),
        ),
        route(
            "post",
            "/api/v1/torrents/{hash}/move",
            Token,
            routing::post(moving::move_files),
        ),
        route(
            "post",
            "/api/v1/torrents/{hash}/rename",
            Token,
            routing::post(moving::rename),
        ),
        route("post", "/api/v1/torrents/{hash}/stop", Token, routing::post(stop)),
        route("post", "/api/v1/torrents/{hash}/resume", Token, routing::post(resume)),
        route("get", "/api/v1/peers/blocked", Token, routing::get(peers::blocked)),
        route("patch", "/api/v1/peers/blocked", Token, routing::patch(peers::block)),
        route("get", "/api/v1/settings", Token, routing::get(changing::get)),
        route("patch", "/api/v1/settings", Token, routing::patch(changing::change)),
        route("get", "/api/v1/state", Token, routing::get(state::export)),
        route("post", "/api/v1/state", Token, routing::post(state::import)),
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
        route("get", "/metrics", Token, compressed(routing::get(metrics::metrics))),
        route("post", "/api/v1/shutdown", Token, routing::post(shutdown)),
        route("post", "/api/v1/pause", Token, routing::post(pause_all)),
        route("post", "/api/v1/move", Token, routing::post(moving::move_all)),
        route("post", "/api/v1/start", Token, routing::post(start_all)),
        route("post", "/api/v1/stop", Token, routing::post(stop_all)),
        route("post", "/api/v1/resume", Token, routing::post(resume_all)),
    ]
}

/// Compresses answers for clients that accept it. No answer contains both a secret and data that another user chose, so
/// that the length of an answer reveals nothing.
fn compressed(handler: MethodRouter<Shared>) -> MethodRouter<Shared> {
    handler.layer(CompressionLayer::new().gzip(true).quality(CompressionLevel::Fastest))
}

/// Creates the router of the whole API.
pub(super) fn router(shared: Shared) -> Router {
    let token = middleware::from_fn_with_state(shared.clone(), guard::check_token);
    let stopped = middleware::from_fn_with_state(shared.clone(), explain_stopped);
    let routes = table().into_iter().map(|route| match route.access {
        Access::Everybody => (route.path, route.handler),
        Access::Token => {
            let handler = route.handler.route_layer(stopped.clone());
            (route.path, handler.route_layer(token.clone()))
        }
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

/// Answers that a torrent is stopped, where the handler found that it is not listed.
async fn explain_stopped(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let Some(answers::Unlisted(hash)) = response.extensions().get().copied() else {
        return response;
    };
    let stopped = shared.torrents.list_stopped().await.unwrap_or_default();
    match stopped.iter().find(|torrent| torrent.info_hash == hash) {
        Some(torrent) => Refusal::stopped(torrent).into_response(),
        None => response,
    }
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
    Ok(Json(json!({
        "deleted": removed.deleted,
        "deleted_count": removed.deleted_count,
        "kept": answers::kept_files(&removed.kept),
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
    let _turn = shared.turns.take(hash).await;
    adding::refuse_if_stopping(&shared)?;
    shared.torrents.resume(hash).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn resume_all(State(shared): State<Shared>, _: NoParameters) -> Result<StatusCode, Refusal> {
    let _turn = shared.turns.take_all().await;
    adding::refuse_if_stopping(&shared)?;
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
        assert_eq!(schemas["Field"]["enum"], json!(Field::ALL.map(Field::name).to_vec()));
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

    /// Options of an add have no defaults: a generated client would send each of them, and have those that have no
    /// effect named.
    #[test]
    fn the_document_gives_no_defaults_to_the_options_of_an_add() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let add = &document["paths"]["/api/v1/torrents"]["post"];
        assert!(add["parameters"].as_array().unwrap().len() > 10);
        for part in [add, &document["components"]["schemas"]["NewTorrent"]] {
            assert!(!part.to_string().contains("\"default\":"), "{part}");
        }
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
