//! Answers to clients: JSON, for errors too.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ecs_torrent_components::commands::{EditTrackersError, SetFilesError, SetLimitsError};
use ecs_torrent_components::dht::DhtError;
use ecs_torrent_components::links::FollowError;
use ecs_torrent_components::rate_limit::LimitError;
use ecs_torrent_components::settings::ChangeError;
use serde::Serialize;

use crate::{AddError, Error, RemoveError};

/// A refused request, and the reason.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Refusal {
    #[serde(skip)]
    status: StatusCode,
    error: String,
    /// The invalid part of the request, if it is a single one.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<Cow<'static, str>>,
    /// Time to wait before the next try.
    #[serde(skip)]
    retry_after: Option<Duration>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            field: None,
            retry_after: None,
        }
    }

    /// Refuses a request for one invalid part.
    pub(super) fn of(field: impl Into<Cow<'static, str>>, status: StatusCode, error: impl ToString) -> Self {
        Self {
            field: Some(field.into()),
            ..Self::new(status, error.to_string())
        }
    }

    /// Refuses a request because there were too many of its kind; the next one is accepted after `wait`.
    pub(super) fn too_many(field: &'static str, wait: Duration, error: impl ToString) -> Self {
        Self {
            retry_after: Some(wait),
            ..Self::of(field, StatusCode::TOO_MANY_REQUESTS, error)
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
            Error::TorrentNotFound(_) => Self::of("hash", StatusCode::NOT_FOUND, text),
            Error::Add(AddError::FilesTaken { .. } | AddError::WouldChange { .. } | AddError::Removed { .. }) => {
                Self::new(StatusCode::CONFLICT, text)
            }
            Error::Remove(RemoveError::Kept { .. }) => Self::new(StatusCode::CONFLICT, text),
            Error::Add(AddError::Forbidden { .. }) => Self::new(StatusCode::FORBIDDEN, text),
            Error::Add(AddError::BadName { .. }) => Self::of("name", StatusCode::BAD_REQUEST, text),
            Error::Add(AddError::NothingSelected { .. }) => Self::of("select", StatusCode::BAD_REQUEST, text),
            Error::EditTrackers(EditTrackersError::Private(_)) | Error::Announce(_) => {
                Self::new(StatusCode::CONFLICT, text)
            }
            Error::EditTrackers(EditTrackersError::NoSuchTracker { .. }) => {
                Self::of("remove", StatusCode::BAD_REQUEST, text)
            }
            Error::EditTrackers(EditTrackersError::BadUrl { .. } | EditTrackersError::TooMany { .. }) => {
                Self::of("add", StatusCode::BAD_REQUEST, text)
            }
            Error::SetFiles(SetFilesError::NoMetadata(_)) => Self::new(StatusCode::CONFLICT, text),
            Error::SetFiles(SetFilesError::NoSuchFile { .. } | SetFilesError::TooMany(_)) => {
                Self::of("body", StatusCode::BAD_REQUEST, text)
            }
            Error::Add(AddError::BadFolder { .. }) => Self::of("into", StatusCode::BAD_REQUEST, text),
            Error::Metainfo { .. } | Error::Magnet(_) | Error::Unsupported { .. } => {
                Self::of("body", StatusCode::BAD_REQUEST, text)
            }
            Error::SetLimits(SetLimitsError::Limit(LimitError { name, .. })) => Self::of(
                format!("limits.{name}"),
                StatusCode::BAD_REQUEST,
                format!("limits.{text}"),
            ),
            Error::ChangeSettings(ChangeError::Unsaved(_)) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, text),
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

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self {
            status, retry_after, ..
        } = self;
        let mut response = (status, Json(self)).into_response();
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
