//! `cat` and `play`: read files while they are downloaded.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::process::Command;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Response, header};
use axum::{Router, routing};
use bytes::Bytes;
use clap::Args;
use ecs_torrent::InfoHash;
use ecs_torrent::components::selection::GlobMatcher;
use ecs_torrent::daemon::Token;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;
use url::Url;

use super::DaemonAddress;
use super::connection::Daemon;
use super::values::text;
use crate::cli::output::{self, printable};
use crate::cli::signals::Signals;
use crate::cli::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Waits for data that is not downloaded yet: the pieces that are read next are
downloaded before all others. All bytes are verified.

Examples:
  ecs-torrent cat 0c1f3b > movie.mkv
  ecs-torrent cat 0c1f3b '*.nfo'
  ecs-torrent cat 0c1f3b 2 --range 0-1023 | xxd")]
pub(in crate::cli) struct CatArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: String,
    /// The file: its number in `files`, its path, or a pattern that one file matches. Can be left out if the torrent
    /// has one file.
    file: Option<String>,
    /// Bytes to print: FIRST-LAST, FIRST- or -COUNT (the last ones).
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    range: Option<String>,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Starts the player with the URL of the file. The file can be played before it is
downloaded, and the player can seek. The URL is of this command, which reads
from the daemon; it holds no token of the daemon, and ends with the player.
Other users of this machine who see the player's arguments can read this file
meanwhile, and nothing else.

In the player's arguments, {} stands for the URL; without it, the URL is the
last one. Without a player, the command prints the URL and serves it until it
is interrupted.

Examples:
  ecs-torrent play 0c1f3b -- mpv
  ecs-torrent play 0c1f3b '*.mkv' -- vlc --fullscreen
  ecs-torrent play 0c1f3b 2 -- ffmpeg -i {} -c copy out.mp4")]
#[command(override_usage = "ecs-torrent play [OPTIONS] <HASH> [FILE] [-- PLAYER...]")]
pub(in crate::cli) struct PlayArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: String,
    /// The file: its number in `files`, its path, or a pattern that one file matches. Can be left out if the torrent
    /// has one file.
    file: Option<String>,
    /// The player, with its arguments.
    #[arg(last = true, value_name = "PLAYER")]
    player: Vec<OsString>,
    #[command(flatten)]
    daemon: DaemonAddress,
}

/// A file of a torrent.
#[derive(Debug, Clone)]
struct File {
    index: u64,
    path: String,
    length: u64,
}

impl File {
    /// The path of its content in the API.
    fn content(&self, hash: InfoHash) -> String {
        format!("/api/v1/torrents/{hash}/files/{}/content", self.index)
    }
}

pub(in crate::cli) async fn cat(args: CatArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let hash = daemon.resolve_running(&args.hash).await?;
    let file = find(&daemon, hash, args.file.as_deref()).await?;
    let range = match &args.range {
        Some(range) => parse_range(range, file.length)?,
        None => 0..file.length,
    };
    let mut content = Content {
        daemon: Arc::new(daemon),
        path: file.content(hash),
        name: file.path,
        rest: range,
        body: None,
        has_progress: false,
    };
    while let Some(bytes) = content.next().await? {
        let mut out = io::stdout().lock();
        match out.write_all(&bytes).and_then(|()| out.flush()) {
            Ok(()) => {}
            // The reader of the output needs no more.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
            Err(error) => return Err(CliError::io("cannot write to the standard output")(error)),
        }
    }
    Ok(Outcome::Done)
}

/// Parses a range of bytes of a file.
fn parse_range(range: &str, length: u64) -> Result<Range<u64>, CliError> {
    let bad = |why: &str| CliError::Usage(format!("--range {}: {why}", printable(range)));
    let number = |digits: &str| {
        let number = digits.parse::<u64>();
        number.map_err(|_| bad("it is FIRST-LAST, FIRST- or -COUNT"))
    };
    let (first, last) = range
        .split_once('-')
        .ok_or_else(|| bad("it is FIRST-LAST, FIRST- or -COUNT"))?;
    let range = match (first, last) {
        ("", count) => length.saturating_sub(number(count)?)..length,
        (first, "") => number(first)?..length,
        (first, last) => number(first)?..number(last)?.saturating_add(1).min(length),
    };
    match range.is_empty() {
        true => Err(bad(&format!("the file has {length} bytes and none of these"))),
        false => Ok(range),
    }
}

/// Finds the file that a user named by its number, its path or a pattern.
async fn find(daemon: &Daemon, hash: InfoHash, named: Option<&str>) -> Result<File, CliError> {
    let files = daemon.get(&format!("/api/v1/torrents/{hash}/files")).await?;
    let files: Vec<File> = files.as_array().into_iter().flatten().map(file_of).collect();
    let glob = named.map(GlobMatcher::new).transpose();
    let is_named = |file: &File| named.is_none_or(|named| named.parse() == Ok(file.index) || file.path == named);
    let is_matched = |file: &File| matches!(&glob, Ok(Some(glob)) if glob.matches(&file.path));
    let has_names = files.iter().any(is_named);
    let mut found = files
        .iter()
        .filter(|file| if has_names { is_named(file) } else { is_matched(file) });
    match (found.next(), found.count()) {
        (Some(file), 0) => Ok(file.clone()),
        (Some(_), more) => {
            let files = output::count(more + 1, "file");
            let what = named.map_or_else(
                || "of the torrent".to_owned(),
                |named| format!("match {}", printable(named)),
            );
            Err(CliError::Other(format!(
                "{files} {what}; name one by its number, its path or a pattern"
            )))
        }
        (None, _) if files.is_empty() => Err(CliError::Other("the files of the torrent are not known yet".to_owned())),
        (None, _) => {
            let named = printable(named.unwrap_or_default());
            Err(CliError::Other(format!(
                "no file matches {named}; `ecs-torrent files` lists them"
            )))
        }
    }
}

fn file_of(file: &Value) -> File {
    File {
        index: file["index"].as_u64().unwrap_or_default(),
        path: text(&file["path"]).to_owned(),
        length: file["length"].as_u64().unwrap_or_default(),
    }
}

/// A range of a file, read from the daemon. The daemon closes a connection over which nothing is read for a while; the
/// rest is then requested again.
struct Content {
    daemon: Arc<Daemon>,
    /// The path in the API.
    path: String,
    /// The path of the file.
    name: String,
    /// The bytes that are not read yet.
    rest: Range<u64>,
    body: Option<Incoming>,
    /// Whether the present connection has brought any bytes.
    has_progress: bool,
}

impl Content {
    /// Waits for the next bytes; `None` at the end of the range.
    async fn next(&mut self) -> Result<Option<Bytes>, CliError> {
        while !self.rest.is_empty() {
            if self.body.is_none() {
                let mut headers = HeaderMap::new();
                let range = format!("bytes={}-{}", self.rest.start, self.rest.end - 1);
                // Digits are valid in headers.
                headers.extend(HeaderValue::try_from(range).ok().map(|range| (header::RANGE, range)));
                let answer = self.daemon.open(Method::GET, &self.path, headers).await?;
                let answer = self.daemon.success(answer).await?;
                (self.body, self.has_progress) = (Some(answer.into_body()), false);
            }
            let frame = match &mut self.body {
                Some(body) => body.frame().await,
                None => None,
            };
            match frame {
                Some(Ok(frame)) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    self.rest.start += bytes.len() as u64;
                    self.has_progress |= !bytes.is_empty();
                    return Ok(Some(bytes));
                }
                Some(Err(_)) | None if self.has_progress => self.body = None,
                Some(Err(_)) | None => {
                    let name = printable(&self.name);
                    return Err(CliError::Other(format!(
                        "{name}: its data breaks off at byte {}",
                        self.rest.start
                    )));
                }
            }
        }
        Ok(None)
    }
}

/// The state of the server of one file.
#[derive(Clone)]
struct Served {
    daemon: Arc<Daemon>,
    file: Arc<File>,
    /// The path of the content in the API.
    path: Arc<str>,
    /// The part of the URL's path that nobody can guess.
    secret: Arc<str>,
}

pub(in crate::cli) async fn play(args: PlayArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let hash = daemon.resolve_running(&args.hash).await?;
    let file = find(&daemon, hash, args.file.as_deref()).await?;
    let path: Arc<str> = file.content(hash).into();
    // Reports at once why a file cannot be played.
    let answer = daemon.open(Method::GET, &path, first_byte()).await?;
    daemon.success(answer).await?;
    let failed = || CliError::io("cannot serve the file");
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed())?;
    let address = listener.local_addr().map_err(failed())?;
    let secret: Arc<str> = Token::nonce().map_err(failed())?.into();
    let mut url = Url::parse(&format!("http://{address}")).map_err(|error| CliError::Other(error.to_string()))?;
    if let Ok(mut parts) = url.path_segments_mut() {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        parts.pop_if_empty().push(&secret).push(name);
    }
    let served = Served {
        daemon: Arc::new(daemon),
        file: Arc::new(file),
        path,
        secret,
    };
    let router = Router::new()
        .route("/{secret}/{name}", routing::get(serve))
        .with_state(served);
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let mut signals = Signals::new()?;
    let outcome = match args.player.split_first() {
        None => {
            say!("{url}");
            signals.next().await;
            Ok(Outcome::Done)
        }
        Some((player, arguments)) => run(player, arguments, url.as_str(), &mut signals).await,
    };
    server.abort();
    outcome
}

/// Runs the player to its end. A signal from the terminal reaches the player too, which ends then.
async fn run(player: &OsString, arguments: &[OsString], url: &str, signals: &mut Signals) -> Result<Outcome, CliError> {
    let name = printable(&player.to_string_lossy());
    let mut command = Command::new(player);
    let has_place = arguments.iter().any(|argument| argument == "{}");
    command.args(arguments.iter().map(|argument| match argument == "{}" {
        true => url.as_ref(),
        false => argument.as_os_str(),
    }));
    if !has_place {
        command.arg(url);
    }
    let mut child = command.spawn().map_err(CliError::io(format!("cannot start {name}")))?;
    let process = rustix::process::Pid::from_child(&child);
    let ended = tokio::task::spawn_blocking(move || child.wait());
    tokio::pin!(ended);
    let status = tokio::select! {
        status = &mut ended => status,
        () = signals.next() => {
            // A signal that was sent to this process alone has not reached the player.
            let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
            ended.await
        }
    };
    let status = status
        .map_err(io::Error::other)
        .flatten()
        .map_err(CliError::io(name.clone()))?;
    match status.success() {
        true => Ok(Outcome::Done),
        false => Err(CliError::Other(format!("{name}: {status}"))),
    }
}

/// The headers of a request for the first byte.
fn first_byte() -> HeaderMap {
    HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static("bytes=-1"))])
}

/// Answers a request of the player as the daemon does.
async fn serve(
    State(served): State<Served>,
    Path((secret, _)): Path<(String, String)>,
    method: Method,
    request: HeaderMap,
) -> Response<Body> {
    let refused = |status: StatusCode| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        response
    };
    if *secret != *served.secret {
        return refused(StatusCode::NOT_FOUND);
    }
    let passed = [header::RANGE, header::IF_RANGE];
    let passed = passed
        .into_iter()
        .filter_map(|name| Some((name.clone(), request.get(name)?.clone())));
    let has_body = method == Method::GET;
    let answer = match served.daemon.open(method, &served.path, passed.collect()).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::warn!(%error, "cannot read from the daemon");
            return refused(StatusCode::BAD_GATEWAY);
        }
    };
    let mut response = refused(answer.status());
    for name in [
        header::CONTENT_TYPE,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::ACCEPT_RANGES,
        header::ETAG,
    ] {
        let value = answer.headers().get(&name).cloned();
        response.headers_mut().extend(value.map(|value| (name, value)));
    }
    let range = match answer.status() {
        StatusCode::OK => Some(0..served.file.length),
        StatusCode::PARTIAL_CONTENT => content_range(answer.headers()),
        _ => None,
    };
    if let Some(rest) = range.filter(|_| has_body) {
        let content = Content {
            daemon: served.daemon,
            path: served.path.to_string(),
            name: served.file.path.clone(),
            rest,
            body: Some(answer.into_body()),
            has_progress: true,
        };
        *response.body_mut() = Body::from_stream(stream::unfold(Some(content), async |content| {
            let mut content = content?;
            match content.next().await {
                Ok(bytes) => bytes.map(|bytes| (Ok(bytes), Some(content))),
                Err(error) => {
                    tracing::warn!(%error, "the body ends early");
                    Some((Err(io::Error::other(error.to_string())), None))
                }
            }
        }));
    } else if !response.status().is_success() {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

/// Returns the bytes that an answer contains, from its header `Content-Range`.
fn content_range(headers: &HeaderMap) -> Option<Range<u64>> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, _) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<u64>().ok()? + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed() {
        let range = |text: &str| parse_range(text, 100).ok();
        assert_eq!(range("0-9"), Some(0..10));
        assert_eq!(range("90-"), Some(90..100));
        assert_eq!(range("90-999"), Some(90..100));
        assert_eq!(range("-1"), Some(99..100));
        assert_eq!(range("-999"), Some(0..100));
        for text in ["", "-", "5", "9-5", "100-", "-0", "a-b", "1-2-3"] {
            assert_eq!(range(text), None, "{text}");
        }
    }
}
