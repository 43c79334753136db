//! Access checks of requests: the host name, the origin page, the path and the token.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use super::Shared;
use super::answers::Refusal;
use super::connections::{Caller, Client};

/// The names by which clients may address the API. A web page that points its own name at this machine uses that name.
#[derive(Debug)]
pub(super) struct Names {
    /// The listen address, with the actual port.
    local: SocketAddr,
    /// Names in addition to the address, with any port, since a proxy may stand before the API.
    others: Vec<String>,
}

impl Names {
    pub(super) fn new(local: SocketAddr, others: &[String]) -> Self {
        let others = others.iter().map(|name| name.to_ascii_lowercase()).collect();
        Self { local, others }
    }

    /// Returns whether `authority`, a host with an optional port, is one of the names. `met` is the local address that
    /// the client connected to, which matters if the API listens on several.
    fn include(&self, authority: &str, met: IpAddr) -> bool {
        let authority = authority.to_ascii_lowercase();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
            _ => (authority.as_str(), Some(80)),
        };
        if self.others.iter().any(|name| name == host || *name == authority) {
            return true;
        }
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let is_ours = match address {
            Ok(ip) => ip.is_loopback() || ip == met || ip == self.local.ip(),
            Err(_) => host == "localhost",
        };
        is_ours && port == Some(self.local.port())
    }
}

/// Checks names, origins and path of every request, including requests for unknown paths.
pub(super) async fn check_names(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let met = client.local.unwrap_or(shared.names.local.ip());
    let is_ours = |authority: &str| shared.names.include(authority, met);
    // No web page can reach the Unix socket, so its requests need no check of their names.
    if client.local.is_some() && !hosts(&request).is_some_and(|hosts| hosts.into_iter().all(is_ours)) {
        let why = "the request is for another host; name this one in api.names if it is meant";
        return Err(Refusal::of("Host", StatusCode::FORBIDDEN, why));
    }
    if !origins(request.headers()).all(|origin| origin.is_some_and(is_ours)) {
        let why = "the request comes from a page of another host";
        return Err(Refusal::of("Origin", StatusCode::FORBIDDEN, why));
    }
    if !is_plain(request.uri()) {
        return Err(Refusal::nothing_here());
    }
    Ok(next.run(request).await)
}

/// Returns all hosts that the request names, or `None` unless it has exactly one valid `Host` header.
fn hosts(request: &Request) -> Option<Vec<&str>> {
    let mut named = request.headers().get_all(header::HOST).iter();
    let (host, None) = (named.next()?.to_str().ok()?, named.next()) else {
        return None;
    };
    // RFC 9112, 3.2.2: a host in the request target overrides the header.
    let target = request.uri().authority().map(axum::http::uri::Authority::as_str);
    Some(target.into_iter().chain([host]).collect())
}

/// Returns the host of each page that sent the request; `None` for an origin without one.
fn origins(headers: &HeaderMap) -> impl Iterator<Item = Option<&str>> {
    headers.get_all(header::ORIGIN).iter().map(|origin| {
        let origin = origin.to_str().ok()?;
        origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"))
    })
}

/// Returns whether a path has no encoded characters and no `.` or `..`. No path of the API needs them.
fn is_plain(uri: &Uri) -> bool {
    let path = uri.path();
    !path.contains(['%', '\\']) && path.split('/').all(|part| !matches!(part, "." | ".."))
}

/// Checks the token of requests that are not open to everybody.
pub(super) async fn check_token(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let shown: Vec<_> = request.headers().get_all(header::AUTHORIZATION).iter().collect();
    let token = match shown[..] {
        [value] => value.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        }),
        _ => None,
    };
    if token.is_some_and(|token| shared.token.is(token)) {
        client.ticket.trust();
        return Ok(next.run(request).await);
    }
    // The owner can read the token and has no need to guess it.
    if !shown.is_empty() && client.caller != Caller::Owner {
        let failed = shared.logins.fail(client.caller, Instant::now());
        failed.map_err(|wait| Refusal::too_many("Authorization", wait, "too many wrong tokens from this address"))?;
        tracing::warn!(caller = ?client.caller, "a request had a wrong token");
    }
    let why = "show the token of the state folder's file api_token: `Authorization: Bearer TOKEN`";
    Err(Refusal::of("Authorization", StatusCode::UNAUTHORIZED, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fault 85: the API accepts its own names and refuses similar ones.
    #[test]
    fn only_its_own_names_are_its_names() {
        let met = IpAddr::from([127, 0, 0, 1]);
        let names = Names::new(
            SocketAddr::new(met, 6880),
            &["Seedbox.example".to_owned(), "box:99".to_owned()],
        );
        for ours in [
            "127.0.0.1:6880",
            "[::1]:6880",
            "LocalHost:6880",
            "seedbox.example",
            "seedbox.EXAMPLE:443",
            "box:99",
        ] {
            assert!(names.include(ours, met), "{ours}");
        }
        for other in [
            "",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.0.0.1:06880x",
            "localhost",
            "localhost:6880:6880",
            "localhost.:6880",
            "evil.example:6880",
            "127.0.0.1.evil.example:6880",
            "evil.seedbox.example",
            "box",
            "192.0.2.1:6880",
            "user@127.0.0.1:6880",
        ] {
            assert!(!names.include(other, met), "{other}");
        }
        let everywhere = Names::new("0.0.0.0:80".parse().unwrap(), &[]);
        assert!(everywhere.include("192.0.2.1", [192, 0, 2, 1].into()));
        assert!(!everywhere.include("192.0.2.2", [192, 0, 2, 1].into()));
        assert!(everywhere.include("localhost", met));
    }

    /// Fault 88: encoded paths and paths with `..` are not plain.
    #[test]
    fn encoded_and_rising_paths_are_not_plain() {
        for path in [
            "/api/v1/torrents/..%2f..%2fx",
            "/api/..\\x",
            "/a/../b",
            "/a/./b",
            "/%61pi",
        ] {
            assert!(!is_plain(&path.parse().unwrap()), "{path}");
        }
        assert!(is_plain(&"/api/v1/torrents?root=%2ftmp".parse().unwrap()));
    }
}
