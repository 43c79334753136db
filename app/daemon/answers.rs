//! What clients are told: JSON, errors too.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::torrents::Error;

/// A request that is not granted, and why.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Refusal {
    #[serde(skip)]
    status: StatusCode,
    error: String,
    /// What of the request is wrong, where it is one thing.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            field: None,
        }
    }

    /// One thing in the request is wrong.
    pub(super) fn of(field: &'static str, status: StatusCode, error: impl ToString) -> Self {
        Self {
            field: Some(field),
            ..Self::new(status, error.to_string())
        }
    }

    /// Something that the daemon does not have.
    pub(super) fn nothing_here() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is nothing at this path")
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::TorrentNotFound(_) => Self::of("hash", StatusCode::NOT_FOUND, text),
            Error::Metainfo { .. } => Self::of("body", StatusCode::BAD_REQUEST, text),
            Error::EngineGone(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, text),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, text),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut response = (status, Json(self)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
