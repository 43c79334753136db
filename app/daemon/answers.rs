//! Answers to clients: JSON, for errors too.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ecs_torrent_components::commands::{
    EditTrackersError, MoveError, RecheckError, SetFilesError, SetLabelsError, SetLimitsError, SetSeedingError,
    TorrentNotFound,
};
use ecs_torrent_components::dht::DhtError;
use ecs_torrent_components::links::FollowError;
use ecs_torrent_components::rate_limit::LimitError;
use ecs_torrent_components::readers::ReadError;
use ecs_torrent_components::settings::{ChangeError, SettingError};
use ecs_torrent_components::stats::StoppedTorrent;
use ecs_torrent_protocol::hash::{InfoHash, sha1};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{AddError, Error, KeptFile, RemoveError};

/// Kinds of refusals, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ErrorCode {
    /// A parameter, a header or a part of the path is invalid.
    InvalidParameter,
    /// The body is invalid.
    InvalidBody,
    /// The token is missing or wrong.
    Unauthorized,
    /// The request is for another host.
    WrongHost,
    /// The request comes from a page of another host.
    WrongOrigin,
    /// The folder is not allowed, or cannot be written.
    FolderForbidden,
    /// The operation is not allowed.
    Forbidden,
    /// There is no torrent with this info-hash.
    TorrentNotFound,
    /// The torrent is stopped.
    TorrentStopped,
    /// There is nothing with this path or target.
    NotFound,
    /// The path does not take this method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    Timeout,
    /// The torrent's files conflict with those of the user or of another torrent.
    FilesConflict,
    /// The torrent was removed in the meantime.
    TorrentRemoved,
    /// The data cannot be reached.
    DataUnreachable,
    /// The torrent's metadata is not known yet.
    MetadataUnknown,
    /// A newer state conflicts with the request.
    Conflict,
    /// The body is too long.
    TooLarge,
    /// The type of the body is not supported.
    UnsupportedType,
    /// There were too many requests of this kind.
    TooManyRequests,
    /// The operation failed.
    Failed,
    /// The server of a URL does not answer with a torrent file.
    FetchFailed,
    /// The engine lacks the feature.
    Unsupported,
    /// The daemon is stopping, or its engine has stopped.
    Unavailable,
}

impl ErrorCode {
    /// All codes.
    #[cfg(test)]
    pub(super) const ALL: [Self; 24] = [
        Self::InvalidParameter,
        Self::InvalidBody,
        Self::Unauthorized,
        Self::WrongHost,
        Self::WrongOrigin,
        Self::FolderForbidden,
        Self::Forbidden,
        Self::TorrentNotFound,
        Self::TorrentStopped,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Timeout,
        Self::FilesConflict,
        Self::TorrentRemoved,
        Self::DataUnreachable,
        Self::MetadataUnknown,
        Self::Conflict,
        Self::TooLarge,
        Self::UnsupportedType,
        Self::TooManyRequests,
        Self::Failed,
        Self::FetchFailed,
        Self::Unsupported,
        Self::Unavailable,
    ];

    /// Returns the code that most refusals with a status have.
    fn of(status: StatusCode, field: Option<&str>) -> Self {
        match (status, field) {
            (StatusCode::BAD_REQUEST, Some("body")) => Self::InvalidBody,
            (StatusCode::BAD_REQUEST, _) => Self::InvalidParameter,
            (StatusCode::UNAUTHORIZED, _) => Self::Unauthorized,
            (StatusCode::FORBIDDEN, Some("Host")) => Self::WrongHost,
            (StatusCode::FORBIDDEN, Some("Origin")) => Self::WrongOrigin,
            (StatusCode::FORBIDDEN, Some("root")) => Self::FolderForbidden,
            (StatusCode::FORBIDDEN, _) => Self::Forbidden,
            (StatusCode::NOT_FOUND, Some("hash")) => Self::TorrentNotFound,
            (StatusCode::NOT_FOUND, _) => Self::NotFound,
            (StatusCode::METHOD_NOT_ALLOWED, _) => Self::MethodNotAllowed,
            (StatusCode::REQUEST_TIMEOUT, _) => Self::Timeout,
            (StatusCode::CONFLICT, _) => Self::Conflict,
            (StatusCode::PAYLOAD_TOO_LARGE, _) => Self::TooLarge,
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, _) => Self::UnsupportedType,
            (StatusCode::TOO_MANY_REQUESTS, _) => Self::TooManyRequests,
            (StatusCode::BAD_GATEWAY, _) => Self::FetchFailed,
            (StatusCode::NOT_IMPLEMENTED, _) => Self::Unsupported,
            (StatusCode::SERVICE_UNAVAILABLE, _) => Self::Unavailable,
            _ => Self::Failed,
        }
    }
}

/// A refused request, and the reason.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Refusal {
    #[serde(skip)]
    status: StatusCode,
    error: String,
    code: ErrorCode,
    /// The invalid part of the request, if it is a single one.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<Cow<'static, str>>,
    /// Time to wait before the next try.
    #[serde(skip)]
    retry_after: Option<Duration>,
    /// The torrent that is not listed.
    #[serde(skip)]
    unlisted: Option<Unlisted>,
}

/// The torrent that is not listed, of the answer that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unlisted(pub(super) InfoHash);

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            code: ErrorCode::of(status, None),
            field: None,
            retry_after: None,
            unlisted: None,
        }
    }

    /// Refuses a request for one invalid part.
    pub(super) fn of(field: impl Into<Cow<'static, str>>, status: StatusCode, error: impl ToString) -> Self {
        let field = field.into();
        Self {
            code: ErrorCode::of(status, Some(&field)),
            field: Some(field),
            ..Self::new(status, error.to_string())
        }
    }

    /// Refuses a request for an invalid part of its body.
    pub(super) fn in_body(field: impl Into<Cow<'static, str>>, error: impl ToString) -> Self {
        Self {
            code: ErrorCode::InvalidBody,
            ..Self::of(field, StatusCode::BAD_REQUEST, error)
        }
    }

    /// Refuses a request because of a conflict of this kind.
    fn conflict(code: ErrorCode, error: String) -> Self {
        Self {
            code,
            ..Self::new(StatusCode::CONFLICT, error)
        }
    }

    /// Refuses a request because there were too many of its kind; the next one is accepted after `wait`.
    pub(super) fn too_many(field: &'static str, wait: Duration, error: impl ToString) -> Self {
        Self {
            retry_after: Some(wait),
            ..Self::of(field, StatusCode::TOO_MANY_REQUESTS, error)
        }
    }

    /// Refuses a request for a torrent that is stopped.
    pub(super) fn stopped(torrent: &StoppedTorrent) -> Self {
        let hash = torrent.info_hash;
        let name = torrent.name.as_deref().map_or_else(|| hash.to_string(), str::to_owned);
        let text = format!("{name} is stopped; POST /api/v1/torrents/{hash}/resume starts it again");
        Self {
            code: ErrorCode::TorrentStopped,
            ..Self::of("hash", StatusCode::NOT_FOUND, text)
        }
    }

    /// Refuses a request for a path that does not exist.
    pub(super) fn nothing_here() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is nothing at this path")
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::TorrentNotFound(TorrentNotFound(hash)) => Self {
                unlisted: Some(Unlisted(hash)),
                ..Self::of("hash", StatusCode::NOT_FOUND, text)
            },
            Error::Add(AddError::FilesTaken { .. } | AddError::WouldChange { .. }) => {
                Self::conflict(ErrorCode::FilesConflict, text)
            }
            Error::Add(AddError::Removed { .. }) => Self::conflict(ErrorCode::TorrentRemoved, text),
            Error::Remove(RemoveError::Kept { .. }) => Self::conflict(ErrorCode::DataUnreachable, text),
            Error::Add(AddError::Forbidden { .. }) => Self::new(StatusCode::FORBIDDEN, text),
            Error::Add(AddError::BadName { .. }) => Self::of("name", StatusCode::BAD_REQUEST, text),
            Error::Add(AddError::NothingSelected { .. }) => Self::of("select", StatusCode::BAD_REQUEST, text),
            Error::EditTrackers(EditTrackersError::Private(_)) | Error::Announce(_) => {
                Self::new(StatusCode::CONFLICT, text)
            }
            Error::EditTrackers(EditTrackersError::NoSuchTracker { .. } | EditTrackersError::Ambiguous { .. }) => {
                Self::of("remove", StatusCode::BAD_REQUEST, text)
            }
            Error::EditTrackers(EditTrackersError::BadUrl { .. } | EditTrackersError::TooMany { .. }) => {
                Self::of("add", StatusCode::BAD_REQUEST, text)
            }
            Error::Recheck(RecheckError::NothingSelected(_)) => Self::of("files", StatusCode::BAD_REQUEST, text),
            Error::Recheck(RecheckError::Verified(_)) => Self::of("unverified", StatusCode::CONFLICT, text),
            Error::Recheck(RecheckError::Running(_)) => Self::new(StatusCode::CONFLICT, text),
            Error::Recheck(RecheckError::NoMetadata(_)) => Self::conflict(ErrorCode::MetadataUnknown, text),
            Error::Move(MoveError::Running(_) | MoveError::Interrupted(_)) => Self::new(StatusCode::CONFLICT, text),
            Error::Move(MoveError::NoMetadata(_)) => Self::conflict(ErrorCode::MetadataUnknown, text),
            Error::Move(MoveError::BadName { .. }) => Self::of("name", StatusCode::BAD_REQUEST, text),
            Error::Move(MoveError::IntoItself { .. } | MoveError::NotThere { .. }) => {
                Self::of("root", StatusCode::BAD_REQUEST, text)
            }
            Error::Move(MoveError::FilesTaken { .. } | MoveError::FileExists { .. }) => Self {
                field: Some("root".into()),
                ..Self::conflict(ErrorCode::FilesConflict, text)
            },
            Error::SetFiles(SetFilesError::NoMetadata(_)) => Self::conflict(ErrorCode::MetadataUnknown, text),
            Error::SetFiles(SetFilesError::NoSuchFile { .. } | SetFilesError::TooMany(_)) => {
                Self::of("body", StatusCode::BAD_REQUEST, text)
            }
            Error::ReadFile(ReadError::NoMetadata(_)) => Self::conflict(ErrorCode::MetadataUnknown, text),
            Error::ReadFile(ReadError::NoSuchFile { .. }) => Self::of("index", StatusCode::NOT_FOUND, text),
            Error::ReadFile(ReadError::Skipped { .. } | ReadError::NotRunning { .. }) => {
                Self::new(StatusCode::CONFLICT, text)
            }
            Error::ReadFile(ReadError::TooMany(_)) => Self::new(StatusCode::SERVICE_UNAVAILABLE, text),
            Error::Add(AddError::BadFolder { .. }) => Self::of("into", StatusCode::BAD_REQUEST, text),
            Error::Metainfo { .. } | Error::Magnet(_) | Error::Unsupported { .. } => {
                Self::of("body", StatusCode::BAD_REQUEST, text)
            }
            Error::Add(AddError::BadLabel(error)) => Self::of(error.what(), StatusCode::BAD_REQUEST, text),
            Error::SetLabels(SetLabelsError::Label(error)) => match error.what() {
                "category" => Self::of("category", StatusCode::BAD_REQUEST, text),
                _ => Self::of("labels", StatusCode::BAD_REQUEST, text),
            },
            Error::SetLimits(SetLimitsError::Limit(LimitError { name, .. })) => Self::of(
                format!("limits.{name}"),
                StatusCode::BAD_REQUEST,
                format!("limits.{text}"),
            ),
            Error::SetSeeding(SetSeedingError::Limit(error)) => error.into(),
            Error::ChangeSettings(ChangeError::Unsaved(_)) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, text),
            Error::ChangeSettings(ChangeError::NotBlocked(_)) => Self::of("remove", StatusCode::BAD_REQUEST, text),
            Error::ChangeSettings(error) => Self::of(error.name().unwrap_or_default(), StatusCode::BAD_REQUEST, text),
            Error::Dht(DhtError::NotBencoded(_) | DhtError::LongValue(_)) => {
                Self::of("body", StatusCode::BAD_REQUEST, text)
            }
            Error::Dht(DhtError::NotMutable) => Self::of("key", StatusCode::BAD_REQUEST, text),
            Error::Dht(DhtError::NoTorrent) => Self::of("body", StatusCode::NOT_FOUND, text),
            Error::Follow(FollowError::NoItem | FollowError::NotFollowed) => Self::new(StatusCode::NOT_FOUND, text),
            Error::Follow(FollowError::TooMany(_) | FollowError::Outdated) => Self::new(StatusCode::CONFLICT, text),
            Error::Dht(DhtError::LongSalt(_)) => Self::of("salt", StatusCode::BAD_REQUEST, text),
            Error::Dht(DhtError::TrackersOnly(_)) => Self::new(StatusCode::FORBIDDEN, text),
            Error::Dht(DhtError::Refused(_) | DhtError::LastSequence) => Self::new(StatusCode::CONFLICT, text),
            Error::Dht(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, text),
            Error::UnsupportedCommand(_) => Self::new(StatusCode::NOT_IMPLEMENTED, text),
            Error::EngineGone(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, text),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, text),
        }
    }
}

impl From<SettingError> for Refusal {
    fn from(error: SettingError) -> Self {
        let (section, name) = error.key();
        Self::of(format!("{section}.{name}"), StatusCode::BAD_REQUEST, error)
    }
}

/// Answers with JSON, or with `304 Not Modified` if the client has this answer already (RFC 9110, 13.1.2). The tag is a
/// weak one, since the answer may be compressed.
pub(super) fn tagged(request: &HeaderMap, body: Vec<u8>) -> Response {
    let tag = format!("W/\"{}\"", const_hex::encode(&sha1([body.as_slice()])[..16]));
    let known = request.get_all(header::IF_NONE_MATCH).iter();
    let known = known
        .filter_map(|tags| tags.to_str().ok())
        .flat_map(|tags| tags.split(','));
    let is_known = known
        .map(str::trim)
        .any(|known| known == "*" || strong(known) == strong(&tag));
    // Hexadecimal digits are valid in headers.
    let tag = HeaderValue::try_from(tag).ok();
    let mut response = match is_known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => json_body(body),
    };
    if let Some(tag) = tag {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Returns a tag without the mark of a weak one.
fn strong(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// Returns the files that a deletion kept, with the reasons.
pub(super) fn kept_files(kept: &[KeptFile]) -> Vec<Value> {
    let file = |kept: &KeptFile| json!({"path": kept.path, "reason": *kept.reason});
    kept.iter().map(file).collect()
}

/// Answers with a body of JSON.
pub(super) fn json_body(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Answers with a value as JSON, tagged.
pub(super) fn tagged_json(request: &HeaderMap, value: &impl Serialize) -> Result<Response, Refusal> {
    let body = serde_json::to_vec(value);
    let failed = |error: serde_json::Error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    Ok(tagged(request, body.map_err(failed)?))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self {
            status,
            retry_after,
            unlisted,
            ..
        } = self;
        let mut response = (status, Json(self)).into_response();
        if let Some(unlisted) = unlisted {
            response.extensions_mut().insert(unlisted);
        }
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if let Some(wait) = retry_after {
            let wait = wait.as_secs().saturating_add(1);
            response.headers_mut().insert(header::RETRY_AFTER, wait.into());
        }
        response
    }
}
