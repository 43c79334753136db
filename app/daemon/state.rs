//! Routes about all state: its export and import as one archive.

use std::io::{self, BufWriter, Read, Write};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ecs_torrent_components::session::Session;
use ecs_torrent_components::settings::{SettingChanges, SettingsPatch};
use ecs_torrent_engine::ports::state::settings_blob;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use tokio::sync::OwnedMutexGuard;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::spawn_blocking;

use super::adding::{failed, refuse_if_stopping};
use super::answers::Refusal;
use super::requests::{NoParameters, require_type};
use super::{Shared, changing, roots};
use crate::archive::{self, Admission, ArchiveError, Imported, ImportedTorrent, LeftOut, Rules, Staged};
use crate::{Error, InfoHash};

/// Chunks of an archive in memory, of 64 KiB each.
const CHUNKS: usize = 4;

/// Torrents that are resumed at a time after an import.
const RESUMED_TOGETHER: usize = 64;

/// Sends the archive with all state.
pub(super) async fn export(State(shared): State<Shared>, _: NoParameters) -> Response {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    spawn_blocking(move || {
        let out = BufWriter::with_capacity(64 << 10, ChannelWriter(sender.clone()));
        match archive::export(&shared.state_dir, out) {
            Ok(exported) => {
                for left_out in exported.left_out {
                    tracing::warn!("not in the exported archive: {left_out}");
                }
            }
            // The body breaks off, so that the client does not take a part of an archive for the whole.
            Err(error) => {
                let _ = sender.blocking_send(Err(io::Error::other(error)));
            }
        }
    });
    let body = stream::unfold(receiver, async |mut receiver: Receiver<_>| {
        Some((receiver.recv().await?, receiver))
    });
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"ecs-torrent-state.tar\"",
        ),
    ];
    (headers, Body::from_stream(body)).into_response()
}

/// Imports the archive in the body.
pub(super) async fn import(
    State(shared): State<Shared>,
    _: NoParameters,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Imported>, Refusal> {
    let types = ["application/x-tar", "application/octet-stream"];
    require_type(&headers, &types, "send the archive as application/x-tar")?;
    refuse_if_stopping(&shared)?;
    let permit = shared.importing.clone().try_lock_owned();
    let permit = permit.map_err(|_| Refusal::new(StatusCode::CONFLICT, "another import is running"))?;
    let has_settings = !shared.torrents.settings().await?.changes.0.is_empty();
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let state = shared.clone();
    let staging = spawn_blocking(move || {
        let mut rules = DaemonRules {
            roots: &state.roots,
            has_settings,
            settings: None,
        };
        let staged = archive::stage(ChannelReader::new(receiver), &state.state_dir, &mut rules)?;
        Ok::<_, ArchiveError>((staged, rules.settings))
    });
    feed(body, sender, shared.max_state_bytes, shared.body_timeout).await?;
    let (staged, settings) = staging.await.map_err(failed)??;
    // The import is finished even if the client does not wait for it.
    let finishing = tokio::spawn(finish(shared, permit, staged, settings));
    Ok(Json(finishing.await.map_err(failed)??))
}

/// Passes a body on, as far as the archive takes it.
async fn feed(mut body: Body, sender: Sender<Bytes>, max: u64, timeout: Duration) -> Result<(), Refusal> {
    let mut left = max;
    loop {
        let frame = tokio::time::timeout(timeout, body.frame()).await.map_err(|_| {
            let why = "no part of the body has arrived in time, see api.body_timeout_s";
            Refusal::of("body", StatusCode::REQUEST_TIMEOUT, why)
        })?;
        let Some(frame) = frame else { return Ok(()) };
        let frame = frame.map_err(|error| Refusal::of("body", StatusCode::BAD_REQUEST, error))?;
        let Ok(bytes) = frame.into_data() else { continue };
        left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            let why = format!("the archive is longer than {max} bytes, see api.max_state_bytes");
            Refusal::of("body", StatusCode::PAYLOAD_TOO_LARGE, why)
        })?;
        // The rest of an archive that was refused, or is complete, is read and ignored.
        let _ = sender.send(bytes).await;
    }
}

/// Adds a read archive to the state folder and to the running engine.
async fn finish(
    shared: Shared,
    _permit: OwnedMutexGuard<()>,
    staged: Staged,
    settings: Option<SettingsPatch>,
) -> Result<Imported, Refusal> {
    let _turn = shared.turns.take_all().await;
    refuse_if_stopping(&shared)?;
    let mut imported = spawn_blocking(move || staged.commit()).await.map_err(failed)??;
    if let Some(mut patch) = settings {
        let id = settings_blob().as_str().to_owned();
        let changed = match changing::find_folder(&shared.roots, &mut patch) {
            Ok(()) => shared
                .torrents
                .change_settings(patch)
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match changed {
            Ok(_) => imported.features.push(id),
            Err(reason) => imported.left_out.push(LeftOut {
                id,
                name: String::new(),
                reason,
            }),
        }
    }
    let running: Vec<_> = imported
        .torrents
        .iter()
        .filter(|torrent| !torrent.stopped)
        .cloned()
        .collect();
    let failures = stream::iter(running).map(|torrent| resume(&shared, torrent));
    let failures = failures.buffer_unordered(RESUMED_TOGETHER);
    let failures: Vec<Option<LeftOut>> = failures.collect().await;
    imported.left_out.extend(failures.into_iter().flatten());
    Ok(imported)
}

/// Lists an imported torrent. Returns the reason if that failed.
async fn resume(shared: &Shared, torrent: ImportedTorrent) -> Option<LeftOut> {
    let hash: InfoHash = torrent.info_hash.parse().ok()?;
    let error: Error = shared.torrents.resume(hash).await.err()?;
    Some(LeftOut {
        id: torrent.info_hash,
        name: torrent.name,
        reason: format!("imported, but does not run: {error}"),
    })
}

/// The rules of an import into the state folder of a running daemon.
struct DaemonRules<'a> {
    roots: &'a roots::Roots,
    /// Whether settings were changed at run time.
    has_settings: bool,
    settings: Option<SettingsPatch>,
}

impl Rules for DaemonRules<'_> {
    /// A torrent is admitted if a client could name its folder.
    fn admit(&self, session: &Session) -> Result<(), String> {
        let moving = session.moving.as_ref().map(|moving| moving.root.as_path());
        let complete = session.complete_root.as_deref();
        let folders = [
            Some(session.root.as_path()),
            session.resolved.as_deref(),
            moving,
            complete,
        ];
        for folder in folders.into_iter().flatten() {
            self.roots.find(folder).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The engine has read its features' state already, and would overwrite the imported state.
    fn admit_feature(&mut self, name: &str, bytes: &[u8]) -> Result<Admission, String> {
        if name != settings_blob().as_str() {
            return Err("it is imported only while no daemon runs".to_owned());
        }
        if self.has_settings {
            return Err("the daemon's settings were changed already".to_owned());
        }
        let changes: SettingChanges = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let changes = changes.0.into_iter().map(|(name, value)| (name, Some(value)));
        self.settings = Some(SettingsPatch(changes.collect()));
        Ok(Admission::Taken)
    }
}

impl From<ArchiveError> for Refusal {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Io(..) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            error => Self::of("body", StatusCode::BAD_REQUEST, error),
        }
    }
}

/// Writes to a channel of chunks, from a thread that may wait.
struct ChannelWriter(Sender<io::Result<Bytes>>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads from a channel of chunks, in a thread that may wait.
struct ChannelReader {
    receiver: Receiver<Bytes>,
    rest: Bytes,
}

impl ChannelReader {
    fn new(receiver: Receiver<Bytes>) -> Self {
        let rest = Bytes::new();
        Self { receiver, rest }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(bytes) => self.rest = bytes,
                None => return Ok(0),
            }
        }
        let len = buffer.len().min(self.rest.len());
        buffer[..len].copy_from_slice(&self.rest.split_to(len));
        Ok(len)
    }
}
