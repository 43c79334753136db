//! Parts of requests: parameters, hashes in paths, and bodies.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path as InPath, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ecs_torrent_protocol::text::plain_type_error;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::SemaphorePermit;
use url::form_urlencoded;

use super::Shared;
use super::answers::Refusal;
use crate::{Field, InfoHash};

/// Reads the whole body, unless it is too long or too slow. Also returns the permit to hold it in memory.
pub(super) async fn read<'a>(
    shared: &'a Shared,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Bytes, Option<SemaphorePermit<'a>>), Refusal> {
    let max = shared.max_body_bytes;
    let too_long = || {
        let why = format!("the body is longer than {max} bytes, see api.max_body_bytes");
        Refusal::of("body", StatusCode::PAYLOAD_TOO_LARGE, why)
    };
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    if announced.is_some_and(|length| length.parse().is_ok_and(|length: u64| length > max as u64)) {
        return Err(too_long());
    }
    // A body of unknown length may be as long as any.
    let length = announced.and_then(|length| length.parse().ok()).unwrap_or(max);
    let permit = hold(shared, length).await;
    let whole = Limited::new(body, max).collect();
    match tokio::time::timeout(shared.body_timeout, whole).await {
        Ok(Ok(whole)) => Ok((whole.to_bytes(), permit)),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(error)) => Err(Refusal::of("body", StatusCode::BAD_REQUEST, error)),
        Err(_) => {
            let why = "the body has not arrived in time, see api.body_timeout_s";
            Err(Refusal::of("body", StatusCode::REQUEST_TIMEOUT, why))
        }
    }
}

/// Waits for the permit to hold some bytes in memory.
pub(super) async fn hold(shared: &Shared, bytes: usize) -> Option<SemaphorePermit<'_>> {
    let wanted = u32::try_from(kib(bytes)).unwrap_or(u32::MAX);
    // The semaphore is never closed.
    shared.bodies.acquire_many(wanted).await.ok()
}

/// Refuses a body of another type than these, and says how to send it.
pub(super) fn require_type(headers: &HeaderMap, types: &[&str], how: &'static str) -> Result<(), Refusal> {
    match media_type(headers) {
        Some(found) if types.contains(&found.as_str()) => Ok(()),
        _ => Err(Refusal::of("Content-Type", StatusCode::UNSUPPORTED_MEDIA_TYPE, how)),
    }
}

/// A body that is a JSON object. A refusal names the field.
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Shared> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Refusal> {
        let (Parts { headers, .. }, body) = request.into_parts();
        require_json(&headers)?;
        let (bytes, _permit) = read(shared, &headers, body).await?;
        parse_object(&bytes).map(Self)
    }
}

/// A body that is a JSON object, or no body.
pub(super) struct OptionalJsonBody<T>(pub(super) Option<T>);

impl<T: DeserializeOwned> FromRequest<Shared> for OptionalJsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Refusal> {
        let (Parts { headers, .. }, body) = request.into_parts();
        let (bytes, _permit) = read(shared, &headers, body).await?;
        if bytes.is_empty() {
            return Ok(Self(None));
        }
        require_json(&headers)?;
        parse_object(&bytes).map(|value| Self(Some(value)))
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), Refusal> {
    require_type(headers, &["application/json"], "send the body as application/json")
}

/// Parses a JSON object.
fn parse_object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refusal::in_body("body", "the body is no JSON object"));
    }
    let json = &mut serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut *json).map_err(|error| bad_json(&error))?;
    json.end().map_err(|error| Refusal::in_body("body", error))?;
    Ok(value)
}

/// Refuses a body of JSON. A value of another type than expected is named by its path.
fn bad_json(error: &serde_path_to_error::Error<serde_json::Error>) -> Refusal {
    let (path, cause) = (error.path().to_string(), error.inner());
    if !cause.is_data() {
        return Refusal::in_body("body", format!("the body is no JSON: {cause}"));
    }
    let why = plain_type_error(&cause.to_string());
    match path.as_str() {
        "." | "?" => Refusal::in_body("body", why),
        _ => Refusal::in_body(path.clone(), format!("{path}: {why}")),
    }
}

/// Returns the number of KiB that some bytes take, at least one.
pub(super) fn kib(bytes: usize) -> usize {
    bytes.div_ceil(1024).max(1)
}

/// Returns the media type of the body, without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(kind.split(';').next()?.trim().to_ascii_lowercase())
}

/// The torrent that the path of a request names; the request has no parameters.
pub(super) struct NamedTorrent(pub(super) InfoHash);

impl FromRequestParts<Shared> for NamedTorrent {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Response> {
        let hash = InPath::<String>::from_request_parts(parts, shared).await;
        let InPath(hash) = hash.map_err(IntoResponse::into_response)?;
        let hash = parse_hash(&hash).map_err(IntoResponse::into_response)?;
        NoParameters::from_request_parts(parts, shared).await?;
        Ok(Self(hash))
    }
}

/// A request that has no parameters.
pub(super) struct NoParameters;

impl FromRequestParts<Shared> for NoParameters {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Response> {
        let query = parts.uri.query().map(str::to_owned);
        Query::parse(query, &[]).map_err(IntoResponse::into_response)?;
        Ok(Self)
    }
}

pub(super) fn parse_hash(hash: &str) -> Result<InfoHash, Refusal> {
    hash.parse()
        .map_err(|error| Refusal::of("hash", StatusCode::BAD_REQUEST, error))
}

/// The parameters of a request; all of them are known.
pub(super) struct Query(Vec<(&'static str, String)>);

/// The parameters that may be given more than once.
const REPEATABLE: [&str; 5] = ["fields", "label", "peer", "select", "state"];

/// Maximum number of fields that a request may name, duplicates included: no valid request names more.
const MAX_FIELDS: usize = 4 * Field::ALL.len();

impl Query {
    /// Parses a query. A parameter that is not in `known` is refused, since a misspelled one would otherwise go
    /// unnoticed.
    pub(super) fn parse(query: Option<String>, known: &[&'static str]) -> Result<Self, Refusal> {
        let mut found: Vec<(&'static str, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let Some(known) = known.iter().find(|known| **known == name) else {
                let why = format!("no parameter {name:?} here");
                return Err(Refusal::of("query", StatusCode::BAD_REQUEST, why));
            };
            if !REPEATABLE.contains(known) && found.iter().any(|(name, _)| name == known) {
                return Err(Refusal::of(*known, StatusCode::BAD_REQUEST, "given more than once"));
            }
            found.push((known, value.into_owned()));
        }
        Ok(Self(found))
    }

    /// Adds an option from a body to those of the query.
    pub(super) fn add(&mut self, name: &str, value: String, known: &[&'static str]) -> Result<(), Refusal> {
        let bad = |why: String| Refusal::in_body(name.to_owned(), why);
        let Some(known) = known.iter().find(|known| **known == name) else {
            return Err(bad(format!("no option {name:?} here; there are {}", known.join(", "))));
        };
        match self.one(known).filter(|_| !REPEATABLE.contains(known)) {
            // Generated clients send some options in the query and in the body.
            Some(given) if given == value => {}
            Some(_) => {
                return Err(bad(format!(
                    "{name} has one value in the query and another in the body"
                )));
            }
            None => self.0.push((known, value)),
        }
        Ok(())
    }

    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let found = self.0.iter().filter(move |(found, _)| *found == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn one(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// Returns a Boolean parameter, which is false if absent.
    pub(super) fn flag(&self, name: &'static str) -> Result<bool, Refusal> {
        match self.one(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => {
                let why = format!("{name} is true or false");
                Err(Refusal::of(name, StatusCode::BAD_REQUEST, why))
            }
        }
    }

    /// Returns the selected fields without duplicates. `all` selects every field.
    pub(super) fn fields(&self, default: &[Field]) -> Result<Vec<Field>, Refusal> {
        if self.one("fields").is_none() {
            return Ok(default.to_vec());
        }
        let mut fields = Vec::new();
        for name in self.all("fields").flat_map(|names| names.split(',')) {
            match name {
                "all" => fields.extend(Field::ALL),
                name => {
                    let field = name.parse::<Field>();
                    fields.push(field.map_err(|error| Refusal::of("fields", StatusCode::BAD_REQUEST, error))?);
                }
            }
            if fields.len() > MAX_FIELDS {
                let why = "more fields than there are";
                return Err(Refusal::of("fields", StatusCode::BAD_REQUEST, why));
            }
        }
        fields.sort_unstable();
        fields.dedup();
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_doubled_parameters_are_refused() {
        let parse = |query: &str, known: &[&'static str]| Query::parse(Some(query.to_owned()), known);
        assert!(parse("fields=name&x=1", &["fields"]).is_err());
        assert!(parse("root=a&root=b", &["root"]).is_err());
        let query = parse("peer=a&peer=b%3A1&root=x+y", &["peer", "root"]).unwrap();
        assert_eq!(query.all("peer").collect::<Vec<_>>(), ["a", "b:1"]);
        assert_eq!(query.one("root"), Some("x y"));
        let fields = parse("fields=progress,name,name", &["fields"]).unwrap().fields(&[]);
        assert_eq!(fields, Ok(vec![Field::Name, Field::Progress]));
        assert!(parse("fields=", &["fields"]).unwrap().fields(&[]).is_err());
        let fields = parse("fields=progress&fields=name,size", &["fields"])
            .unwrap()
            .fields(&[]);
        assert_eq!(fields, Ok(vec![Field::Name, Field::Size, Field::Progress]));
        let fields = parse("fields=name,all", &["fields"]).unwrap().fields(&[]);
        assert_eq!(fields.map(|fields| fields.len()), Ok(Field::ALL.len()));
    }
}
