//! The connection to the daemon: plain HTTP, over the Unix socket of the state folder, or over TCP to a program that
//! has proven to be the daemon.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent::daemon::{self, ApiAddress, Token};
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::DaemonAddress;
use super::values::text;
use crate::cli::CliError;
use crate::cli::output::printable;

/// Time limit for the daemon to accept a connection, and to prove its identity.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit for the daemon to answer a request. A pause takes longest: its save may take 60 s, and its other phases
/// some seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// Maximum size, in bytes, of a refusal, and of an answer from a program that has not yet proven to be the daemon.
const MAX_PROOF: usize = 4 << 10;

/// The daemon that owns a state folder.
pub(in crate::cli) struct Daemon {
    /// The API's address, if the user named one.
    api: Option<SocketAddr>,
    token: Token,
    state_dir: PathBuf,
    /// Longest wait for an answer.
    answer_timeout: Duration,
}

/// A connection to the daemon, over which the token may be sent.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// The value of the `Host` header in requests.
    host: String,
    /// The daemon's address or state folder, for error messages.
    place: String,
}

impl Daemon {
    /// Finds the daemon by the files that it leaves in its state folder.
    pub(in crate::cli) fn find(place: &DaemonAddress) -> Result<Self, CliError> {
        let (state_dir, api) = (place.state_dir.clone(), place.api);
        let token = Token::read(&state_dir).map_err(|error| {
            if error.is_missing() && api.is_none() {
                none_has(&state_dir.display())
            } else {
                CliError::Other(format!("no token: {error}"))
            }
        })?;
        Ok(Self {
            api,
            token,
            state_dir,
            answer_timeout: ANSWER_TIMEOUT,
        })
    }

    /// Waits for answers without a time limit.
    pub(in crate::cli) fn without_time_limit(self) -> Self {
        Self {
            answer_timeout: Duration::MAX,
            ..self
        }
    }

    pub(in crate::cli) async fn get(&self, path: &str) -> Result<Value, CliError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Returns the resource at a path, or `None` if the daemon has none.
    pub(super) async fn get_if_there(&self, path: &str) -> Result<Option<Value>, CliError> {
        let (place, status, bytes) = self.exchange(Method::GET, path, Bytes::new(), "text/plain").await?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status => self.understand(&place, status, &bytes).map(Some),
        }
    }

    /// Sends a POST request whose body is plain bytes.
    pub(in crate::cli) async fn post_bytes(&self, path: &str, body: Bytes) -> Result<Value, CliError> {
        let kind = "application/octet-stream";
        let (_, answer) = self.send(Method::POST, path, body, kind).await?;
        Ok(answer)
    }

    /// Sends a POST request without a body.
    pub(super) async fn post(&self, path: &str) -> Result<Value, CliError> {
        self.ask(Method::POST, path, Bytes::new()).await
    }

    /// Sends a torrent file. Returns whether the daemon did not have the torrent yet, and its answer.
    pub(super) async fn create(&self, path: &str, body: Bytes) -> Result<(bool, Value), CliError> {
        let kind = "application/x-bittorrent";
        let (status, answer) = self.send(Method::POST, path, body, kind).await?;
        Ok((status == StatusCode::CREATED, answer))
    }

    /// Sends a magnet link, as [`Daemon::create`] sends a file.
    pub(super) async fn create_from_text(&self, path: &str, body: String) -> Result<(bool, Value), CliError> {
        let (status, answer) = self.send(Method::POST, path, body.into(), "text/plain").await?;
        Ok((status == StatusCode::CREATED, answer))
    }

    /// Sends the URL of a torrent file, as [`Daemon::create`] sends a file.
    pub(super) async fn create_from_url(&self, path: &str, url: &str) -> Result<(bool, Value), CliError> {
        let body = serde_json::json!({ "url": url }).to_string();
        let (status, answer) = self.send(Method::POST, path, body.into(), "application/json").await?;
        Ok((status == StatusCode::CREATED, answer))
    }

    /// Sends a PATCH request with a JSON body.
    pub(super) async fn patch(&self, path: &str, body: &Value) -> Result<Value, CliError> {
        let body = Bytes::from(body.to_string());
        let (_, answer) = self.send(Method::PATCH, path, body, "application/json").await?;
        Ok(answer)
    }

    /// Sends a POST request with a JSON body.
    pub(super) async fn post_json(&self, path: &str, body: &Value) -> Result<Value, CliError> {
        let body = Bytes::from(body.to_string());
        let (_, answer) = self.send(Method::POST, path, body, "application/json").await?;
        Ok(answer)
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Value, CliError> {
        self.ask(Method::DELETE, path, Bytes::new()).await
    }

    /// Sends a request with these headers and without a body. Returns the answer, whose body is read by the caller.
    pub(super) async fn open(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>, CliError> {
        let Connection {
            mut sender,
            host,
            place,
        } = self.connect().await?;
        let request = self.request(method, path, host).body(Full::default());
        let mut request = request.map_err(|error| CliError::Other(format!("cannot ask: {error}")))?;
        request.headers_mut().extend(headers);
        let failed = |error| CliError::Other(format!("{place}: {error}"));
        sender.send_request(request).await.map_err(failed)
    }

    /// Returns an answer if it is a success, otherwise the reason of the refusal.
    pub(super) async fn success(&self, answer: Response<Incoming>) -> Result<Response<Incoming>, CliError> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let place = self.state_dir.display().to_string();
        let body = Limited::new(answer.into_body(), MAX_PROOF).collect().await;
        let bytes = body.map_or_else(|_| Bytes::new(), Collected::to_bytes);
        self.understand(&place, status, &bytes)?;
        Err(CliError::Other(format!("{place}: not a daemon's answer: {status}")))
    }

    /// Begins a request with the token.
    fn request(&self, method: Method, path: &str, host: String) -> hyper::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token.reveal()))
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Value, CliError> {
        let (_, answer) = self.send(method, path, body, "application/x-bittorrent").await?;
        Ok(answer)
    }

    /// Sends a request whose body is of this kind. Returns the status, which is a success, and the answer.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        kind: &'static str,
    ) -> Result<(StatusCode, Value), CliError> {
        let (place, status, bytes) = self.exchange(method, path, body, kind).await?;
        Ok((status, self.understand(&place, status, &bytes)?))
    }

    /// Sends a request. Returns the daemon's place, and status and body of the answer.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        kind: &'static str,
    ) -> Result<(String, StatusCode, Bytes), CliError> {
        let Connection { sender, host, place } = self.connect().await?;
        let request = self
            .request(method, path, host)
            .header(header::CONTENT_TYPE, kind)
            .body(Full::new(body));
        let request = request.map_err(|error| CliError::Other(format!("cannot ask: {error}")))?;
        match tokio::time::timeout(self.answer_timeout, exchange(sender, request)).await {
            Ok(Ok((status, bytes))) => Ok((place, status, bytes)),
            Ok(Err(error)) => Err(CliError::Other(format!("{place}: {error}"))),
            Err(_) => Err(CliError::Other(format!(
                "{place}: no answer in {} s",
                self.answer_timeout.as_secs()
            ))),
        }
    }

    /// Connects to the address that the user named, otherwise to the state folder's socket, otherwise to the address
    /// in the state folder.
    async fn connect(&self) -> Result<Connection, CliError> {
        if let Some(address) = self.api {
            return self.connect_tcp(address).await;
        }
        let state_dir = &self.state_dir;
        match in_time(daemon::connect(state_dir)).await {
            Ok(stream) => {
                let place = state_dir.display().to_string();
                let sender = handshake(stream)
                    .await
                    .map_err(|error| CliError::Other(format!("{place}: {error}")))?;
                let host = "localhost".to_owned();
                return Ok(Connection { sender, host, place });
            }
            // Some file systems do not support sockets.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
            Err(error) => {
                return Err(CliError::io(format!(
                    "cannot reach the daemon of {}",
                    state_dir.display()
                ))(error));
            }
        }
        let found = ApiAddress::read(state_dir).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => none_has(&state_dir.display()),
            _ => CliError::Other(format!("no daemon found: {}: {error}", state_dir.display())),
        })?;
        if !found.is_alive() {
            return Err(CliError::Other(format!(
                "no daemon is running: the last one of the state folder {} (process {}) has ended; `ecs-torrent daemon` \
                 starts one",
                state_dir.display(),
                found.process
            )));
        }
        self.connect_tcp(found.address).await
    }

    /// Connects over TCP, and requires a proof that the program has the token before the token is sent.
    async fn connect_tcp(&self, address: SocketAddr) -> Result<Connection, CliError> {
        let stream = in_time(TcpStream::connect(address)).await;
        let stream = stream.map_err(CliError::io(format!("no daemon is running at {address}")))?;
        let (place, host) = (address.to_string(), address.to_string());
        let proven = in_time(async {
            let mut sender = handshake(stream).await.map_err(io::Error::other)?;
            let is_proven = self.challenge(&mut sender, &host).await?;
            Ok((sender, is_proven))
        });
        match proven.await {
            Ok((sender, true)) => Ok(Connection { sender, host, place }),
            Ok((_, false)) => Err(self.refuse(address, "it does not have this state folder's token")),
            Err(error) => Err(self.refuse(address, &error.to_string())),
        }
    }

    fn refuse(&self, address: SocketAddr, why: &str) -> CliError {
        CliError::Other(format!(
            "{}: the program at {address} has not proven to be the daemon of this state folder, and has not been sent \
             the token: {}; --state-dir names the folder of another daemon",
            self.state_dir.display(),
            printable(why)
        ))
    }

    /// Requests the proof, and returns whether it is correct.
    async fn challenge(&self, sender: &mut SendRequest<Full<Bytes>>, host: &str) -> io::Result<bool> {
        let nonce = Token::nonce()?;
        let request = Request::builder()
            .uri(format!("/api/v1/proof?nonce={nonce}"))
            .header(header::HOST, host)
            .body(Full::new(Bytes::new()))
            .map_err(io::Error::other)?;
        let answer = sender.send_request(request).await.map_err(io::Error::other)?;
        let body = Limited::new(answer.into_body(), MAX_PROOF).collect();
        let bytes = body.await.map_err(io::Error::other)?.to_bytes();
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let is_proven = self.token.is_proof(text(&answer["proof"]), host, &nonce);
        // The daemon keeps the connection open for the actual request.
        sender.ready().await.map_err(io::Error::other)?;
        Ok(is_proven)
    }

    fn understand(&self, place: &str, status: StatusCode, bytes: &[u8]) -> Result<Value, CliError> {
        let answer: Option<Value> = match bytes {
            [] => Some(Value::Null),
            bytes => serde_json::from_slice(bytes).ok(),
        };
        match answer {
            Some(answer) if status.is_success() => Ok(answer),
            _ if status == StatusCode::UNAUTHORIZED => Err(CliError::Other(format!(
                "{}: the daemon at {place} has another token; --state-dir names its state folder",
                self.state_dir.display()
            ))),
            Some(answer) => {
                let why = text(&answer["error"]);
                Err(CliError::Other(printable(why)))
            }
            None => Err(CliError::Other(format!("{place}: not a daemon's answer: {status}"))),
        }
    }
}

fn none_has(state_dir: &impl std::fmt::Display) -> CliError {
    CliError::Other(format!(
        "no daemon is running with the state folder {state_dir}; `ecs-torrent daemon` starts one, --state-dir names \
         another folder"
    ))
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let result = tokio::time::timeout(CONNECT_TIMEOUT, work).await;
    result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends when the sender is dropped.
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends one request and reads its whole answer.
async fn exchange(
    mut sender: SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), hyper::Error> {
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    Ok((status, answer.into_body().collect().await?.to_bytes()))
}
