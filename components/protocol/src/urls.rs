//! Validation of tracker and web seed URLs.

use std::collections::BTreeSet;

use url::Url;

/// The reason a URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// The text is not a URL.
    #[error("not a URL: {0}")]
    Malformed(String),
    /// The text does not begin with a scheme.
    #[error("not a URL: it does not begin with a scheme, such as http://")]
    NoScheme,
    /// Spaces and control characters, which some parsers drop and others keep.
    #[error("not a URL: it has a space or a control character in it")]
    Space,
    /// An unsupported scheme.
    #[error("its scheme is {found}, not {}", allowed.join(", "))]
    Scheme {
        /// The scheme found.
        found: String,
        /// The supported schemes.
        allowed: &'static [&'static str],
    },
    /// No host.
    #[error("it names no host")]
    NoHost,
    /// No port for a scheme without a default port, or port 0.
    #[error("it names no port")]
    NoPort,
    /// A user name or password, which UDP trackers do not support.
    #[error("UDP trackers do not support user names")]
    User,
}

/// Checks that an announce URL can be used (BEP 3, BEP 15).
///
/// # Errors
/// Returns the first problem found.
pub fn check_tracker(text: &str) -> Result<(), UrlError> {
    let url = check(text, &["http", "https", "udp"])?;
    if url.scheme() == "udp" {
        // BEP 15 defines no default port.
        if url.port().is_none() {
            return Err(UrlError::NoPort);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError::User);
        }
    }
    Ok(())
}

/// Checks that a web seed URL can be used (BEP 19).
///
/// # Errors
/// Returns the first problem found.
pub fn check_web_seed(text: &str) -> Result<(), UrlError> {
    check(text, &["http", "https"]).map(drop)
}

/// Usable URLs of one kind in a torrent or a link, each one once, up to a limit.
pub(crate) struct UrlSet {
    schemes: &'static [&'static str],
    seen: BTreeSet<String>,
    max: usize,
}

impl UrlSet {
    pub(crate) fn of_trackers(max: usize) -> Self {
        Self::new(&["http", "https", "udp"], max)
    }

    pub(crate) fn of_web_seeds(max: usize) -> Self {
        Self::new(&["http", "https"], max)
    }

    fn new(schemes: &'static [&'static str], max: usize) -> Self {
        let seen = BTreeSet::new();
        Self { schemes, seen, max }
    }

    /// Returns the URL if it is usable and new.
    pub(crate) fn accept(&mut self, text: &str) -> Option<String> {
        let text = text.trim();
        let url = Url::parse(text).ok()?;
        let usable = self.schemes.contains(&url.scheme()) && url.has_host() && self.seen.len() < self.max;
        (usable && self.seen.insert(text.to_owned())).then(|| text.to_owned())
    }
}

fn check(text: &str, allowed: &'static [&'static str]) -> Result<Url, UrlError> {
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(UrlError::Space);
    }
    let url = Url::parse(text).map_err(|error| match error {
        url::ParseError::RelativeUrlWithoutBase => UrlError::NoScheme,
        other => UrlError::Malformed(other.to_string()),
    })?;
    // Compares the scheme as written: not every client accepts `HTTP:`.
    let found = text.split(':').next().unwrap_or_default();
    if !allowed.contains(&found) {
        let found = found.to_owned();
        return Err(UrlError::Scheme { found, allowed });
    }
    // The URL standard accepts `http:///host` and `http:host`; most clients do not.
    let authority = text[found.len()..].strip_prefix("://").unwrap_or_default();
    if authority.is_empty() || authority.starts_with(['/', '\\']) || url.host_str().is_none_or(str::is_empty) {
        return Err(UrlError::NoHost);
    }
    if url.port() == Some(0) {
        return Err(UrlError::NoPort);
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trackers_that_can_be_used() {
        for good in [
            "http://t.org/announce",
            "https://t.org:8443/0123/announce?key=1",
            "udp://t.org:6969",
            "udp://[2001:db8::1]:80/announce",
            "http://[::1]/a",
            "http://t\u{e9}st.example/announce",
        ] {
            assert_eq!(check_tracker(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn trackers_that_cannot_be_used() {
        for (bad, reason) in [
            (
                "t.org/announce",
                "not a URL: it does not begin with a scheme, such as http://",
            ),
            ("http://", "not a URL: empty host"),
            ("http:///announce", "it names no host"),
            ("http:t.org", "it names no host"),
            ("udp://:80", "not a URL: empty host"),
            ("udp:t.org:80", "it names no host"),
            ("udp://t.org/announce", "it names no port"),
            ("udp://t.org:0", "it names no port"),
            ("http://t.org:0/", "it names no port"),
            ("http://t.org:99999/", "not a URL: invalid port number"),
            ("udp://u@t.org:80", "UDP trackers do not support user names"),
            ("ftp://t.org/", "its scheme is ftp, not http, https, udp"),
            ("UDP://t.org:80", "its scheme is UDP, not http, https, udp"),
            ("wss://t.org/", "its scheme is wss, not http, https, udp"),
            (
                "http://t.org/ announce",
                "not a URL: it has a space or a control character in it",
            ),
            (
                "\thttp://t.org/",
                "not a URL: it has a space or a control character in it",
            ),
        ] {
            assert_eq!(check_tracker(bad).unwrap_err().to_string(), reason, "{bad}");
        }
        assert!(check_web_seed("https://seed.example/").is_ok());
        assert_eq!(
            check_web_seed("udp://t.org:1").unwrap_err().to_string(),
            "its scheme is udp, not http, https"
        );
    }
}
