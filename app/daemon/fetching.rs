//! Torrent files from the web: the `url` of an add.
//!
//! The daemon may reach hosts that its client cannot: services of its own machine and network. It fetches from
//! addresses of the Internet and of `api.fetch_from` only. The addresses are checked after names are resolved, and
//! redirections obey the same rule.

use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use ecs_torrent_components::networks::{AddressSet, Network};
use ecs_torrent_components::scope::Scope;
use ecs_torrent_engine::backends::http::{GuardedResolver, MAX_REDIRECTS, builder, literal_address};
use reqwest::header::LOCATION;
use reqwest::{Client, Response, redirect};
use url::Url;

use super::answers::Refusal;
use crate::Source;

/// Fetches torrent files.
#[derive(Debug)]
pub(super) struct Fetcher {
    client: Client,
    guard: Guard,
    max_bytes: usize,
}

impl Fetcher {
    /// Creates a fetcher of files of at most `max_bytes`, each within a time limit.
    pub(super) fn new(fetch_from: &[Network], max_bytes: usize, limit: Duration) -> Result<Self, reqwest::Error> {
        let guard = Guard(Arc::new(AddressSet::new(fetch_from)));
        let (of_names, of_redirects) = (guard.clone(), guard.clone());
        let client = builder()
            .timeout(limit)
            .dns_resolver(Arc::new(GuardedResolver(move |ip| {
                of_names.check_ip(ip).map(|()| true)
            })))
            .redirect(redirect::Policy::custom(move |attempt| of_redirects.follow(attempt)))
            .build()?;
        Ok(Self {
            client,
            guard,
            max_bytes,
        })
    }

    /// Fetches a torrent file, or a magnet link to which the URL redirects.
    pub(super) async fn fetch(&self, url: &str) -> Result<Source, Refusal> {
        let parsed = Url::parse(url).map_err(|error| bad_url(StatusCode::BAD_REQUEST, error))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(bad_url(StatusCode::BAD_REQUEST, "neither http nor https"));
        }
        self.guard
            .check(&parsed)
            .map_err(|error| bad_url(StatusCode::FORBIDDEN, error))?;
        let response = self.client.get(parsed).send().await.map_err(failed)?;
        if response.status().is_redirection() {
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let link = location.filter(|location| is_magnet(location));
            let link = link.ok_or_else(|| bad_url(StatusCode::BAD_GATEWAY, "it redirects to nothing"))?;
            return Ok(Source::from_link(link)?);
        }
        if !response.status().is_success() {
            return Err(bad_url(
                StatusCode::BAD_GATEWAY,
                format!("the server answers {}", response.status()),
            ));
        }
        self.read(response).await
    }

    /// Reads a body, whose length after decompression is bounded.
    async fn read(&self, mut response: Response) -> Result<Source, Refusal> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > self.max_bytes {
                let why = format!("more than {} bytes, see api.max_body_bytes", self.max_bytes);
                return Err(bad_url(StatusCode::BAD_GATEWAY, why));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Source::from(bytes::Bytes::from(body)))
    }
}

fn is_magnet(location: &str) -> bool {
    location
        .get(..7)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("magnet:"))
}

fn bad_url(status: StatusCode, why: impl ToString) -> Refusal {
    Refusal::of("url", status, why)
}

/// Explains a failed request by its cause, without the URL, which may contain a secret.
fn failed(error: reqwest::Error) -> Refusal {
    let error = error.without_url();
    let mut cause: &dyn Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    match cause.downcast_ref::<Forbidden>() {
        Some(forbidden) => bad_url(StatusCode::FORBIDDEN, forbidden),
        None => bad_url(StatusCode::BAD_GATEWAY, cause),
    }
}

/// The rule of the addresses from which files are fetched.
#[derive(Debug, Clone)]
struct Guard(Arc<AddressSet>);

/// An address from which nothing is fetched.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not an address of the Internet, nor in api.fetch_from: nothing is fetched from it")]
struct Forbidden(IpAddr);

impl Guard {
    fn check_ip(&self, ip: IpAddr) -> Result<(), Forbidden> {
        match Scope::Global.may_reach(ip) || self.0.contains(ip) {
            true => Ok(()),
            false => Err(Forbidden(ip)),
        }
    }

    /// Checks a URL whose host is an address.
    fn check(&self, url: &Url) -> Result<(), Forbidden> {
        literal_address(url).map_or(Ok(()), |ip| self.check_ip(ip))
    }

    fn follow(&self, attempt: redirect::Attempt<'_>) -> redirect::Action {
        if attempt.url().scheme() == "magnet" {
            return attempt.stop();
        }
        if attempt.previous().len() > MAX_REDIRECTS {
            return attempt.error("too many redirections");
        }
        match self.check(attempt.url()) {
            Ok(()) => attempt.follow(),
            Err(error) => attempt.error(error),
        }
    }
}
