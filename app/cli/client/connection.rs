//! The connection to the daemon: plain HTTP, on this machine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent::daemon::{Api, ApiError, Token};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::DaemonAddress;
use crate::cli::CliError;
use crate::cli::output::printable;

/// Time for the daemon to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for the daemon to do what it is asked; to stop all torrents takes longest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the daemon is, and what makes it listen.
pub(super) struct Daemon {
    address: SocketAddr,
    token: Token,
    state_dir: PathBuf,
}

impl Daemon {
    /// Finds it by the files that it leaves in its state folder.
    pub(super) fn find(place: &DaemonAddress) -> Result<Self, CliError> {
        let state_dir = place.state_dir.clone();
        let address = match place.api {
            Some(address) => address,
            None => Api::find(&state_dir).map_err(|error| match error {
                ApiError::Io { error, .. } if error.kind() == std::io::ErrorKind::NotFound => {
                    let why = "none has this state folder; `ecs-torrent daemon` starts one, --state-dir names another";
                    CliError::Other(format!("no daemon running: {}: {why}", state_dir.display()))
                }
                error => CliError::Other(format!("no daemon found: {error}")),
            })?,
        };
        let token = Token::read(&state_dir).map_err(|error| CliError::Other(format!("no token: {error}")))?;
        Ok(Self {
            address,
            token,
            state_dir,
        })
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, CliError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Sends a torrent file, or nothing.
    pub(super) async fn post(&self, path: &str, body: Bytes) -> Result<Value, CliError> {
        self.ask(Method::POST, path, body).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Value, CliError> {
        self.ask(Method::DELETE, path, Bytes::new()).await
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Value, CliError> {
        let address = self.address;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token.reveal()))
            .header(header::CONTENT_TYPE, "application/x-bittorrent")
            .body(Full::new(body));
        let request = request.map_err(|error| CliError::Other(format!("cannot ask: {error}")))?;
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = stream.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        let stream = stream.map_err(CliError::io(format!("no daemon running: {address}")))?;
        match tokio::time::timeout(ANSWER_TIMEOUT, exchange(stream, request)).await {
            Ok(Ok((status, bytes))) => self.understand(status, &bytes),
            Ok(Err(error)) => Err(CliError::Other(format!("{address}: {error}"))),
            Err(_) => Err(CliError::Other(format!(
                "{address}: no answer in {} s",
                ANSWER_TIMEOUT.as_secs()
            ))),
        }
    }

    fn understand(&self, status: StatusCode, bytes: &[u8]) -> Result<Value, CliError> {
        let answer: Option<Value> = match bytes {
            [] => Some(Value::Null),
            bytes => serde_json::from_slice(bytes).ok(),
        };
        match answer {
            Some(answer) if status.is_success() => Ok(answer),
            _ if status == StatusCode::UNAUTHORIZED => Err(CliError::Other(format!(
                "{}: the daemon at {} has another token; --state-dir names its state folder",
                self.state_dir.display(),
                self.address
            ))),
            Some(answer) => {
                let why = super::text(&answer["error"]);
                Err(CliError::Other(printable(why)))
            }
            None => Err(CliError::Other(format!(
                "{}: not a daemon's answer: {status}",
                self.address
            ))),
        }
    }
}

/// One request, one answer.
async fn exchange(stream: TcpStream, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), hyper::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    Ok((status, answer.into_body().collect().await?.to_bytes()))
}
