//! Adding torrents: the body in one of five forms, the options in the query or in the body.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64;
use ecs_torrent_components::wanted::PieceOrder;
use ecs_torrent_protocol::hash::InfoHash;
use futures_util::stream;
use serde_json::{Value, json};

use super::answers::Refusal;
use super::requests::{Query, hold, media_type, read};
use super::{Phase, Shared, files, labels, limits, queue};
use crate::folders::check_writable;
use crate::{AddError, AddOptions, Error, Source, TorrentId};

/// The options of an add, in the query or in a body of JSON or of a form.
const OPTIONS: [&str; 20] = [
    "root",
    "into",
    "name",
    "overwrite",
    "peer",
    "files",
    "select",
    "download_limit",
    "upload_limit",
    "seeding_ratio_percent",
    "seeding_time_s",
    "seeding_idle_s",
    "seeding_action",
    "sequential",
    "ends_first",
    "label",
    "category",
    "paused",
    "queue",
    SKIP_CHECKING,
];

/// The option that has no effect on a torrent whose files were examined already.
const SKIP_CHECKING: &str = "skip_checking";

/// The options that are numbers in a body of JSON.
const NUMBERS: [&str; 6] = [
    "download_limit",
    "upload_limit",
    "seeding_ratio_percent",
    "seeding_time_s",
    "seeding_idle_s",
    "queue",
];

/// The options that have no effect on a torrent that is listed already.
const FOR_NEW: [&str; 8] = [
    "download_limit",
    "upload_limit",
    "seeding_ratio_percent",
    "seeding_time_s",
    "seeding_idle_s",
    "seeding_action",
    "paused",
    "queue",
];

/// The parts of a body that are the torrent itself.
const TORRENT: &str = "torrent";
const MAGNET: &str = "magnet";
const URL: &str = "url";

/// Most parts of a form, options included: a peer or a pattern each, and some more.
const MAX_PARTS: usize = 1000;

pub(super) async fn add(
    State(shared): State<Shared>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let mut query = Query::parse(query, &OPTIONS)?;
    let kind = Kind::of(&headers)?;
    // Bad options in the query are refused before the body is read.
    Chosen::of(&shared, &query).await?;
    let (bytes, mut permit) = read(&shared, &headers, body).await?;
    let given = match kind {
        Kind::Torrent => Given::Source(Source::from(bytes)),
        Kind::Magnet => Given::Source(Source::from_link(&String::from_utf8_lossy(&bytes))?),
        Kind::Json => from_json(&bytes, &mut query)?,
        Kind::Form(boundary) => from_form(bytes, boundary, &mut query).await?,
    };
    let source = match given {
        Given::Source(source) => source,
        Given::Url(url) => {
            // The request's own body is not needed any more.
            drop(permit);
            permit = hold(&shared, shared.max_body_bytes).await;
            shared.fetcher.fetch(&url).await?
        }
    };
    let Chosen {
        root,
        placed_by,
        options,
    } = Chosen::of(&shared, &query).await?;
    let examined = Examined::read(source, root.clone(), options.name.clone()).await?;
    drop(permit);
    // The search for the torrent of a link may take half a minute, for which others do not wait.
    let turn = match examined.info_hash {
        Some(hash) => Some(shared.turns.take(hash).await),
        None => None,
    };
    refuse_if_stopping(&shared)?;
    let mut is_examined = false;
    let listed = match examined.info_hash {
        Some(hash) => match shared.torrents.stats(hash).await {
            Ok(stats) => {
                is_examined = stats.size.is_some();
                vec![hash.into()]
            }
            Err(Error::TorrentNotFound(_)) => Vec::new(),
            Err(error) => return Err(error.into()),
        },
        None => shared.torrents.list().await?,
    };
    let id = shared.torrents.download_with(examined.source, options).await?;
    drop(turn);
    let is_new = !listed.contains(&id);
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let mut answer = json!({"info_hash": id.to_string()});
    if !is_new {
        let chosen = (placed_by.map(|parameter| (parameter, root)), query.one("name"));
        let mut ignored = ignored(&shared, id, chosen).await?;
        ignored.extend(FOR_NEW.into_iter().filter(|name| query.one(name).is_some()));
        ignored.extend((is_examined && query.flag(SKIP_CHECKING)?).then_some(SKIP_CHECKING));
        if !ignored.is_empty() {
            answer["ignored"] = ignored.into();
        }
    }
    Ok((status, Json(answer)).into_response())
}

/// A source that has been read.
struct Examined {
    source: Source,
    /// `None` for a link to a torrent that its publisher replaces (BEP 46).
    info_hash: Option<InfoHash>,
}

impl Examined {
    /// Reads a source, and checks that its files can be written. `name` is the one that the user chose.
    async fn read(source: Source, folder: PathBuf, name: Option<String>) -> Result<Self, Refusal> {
        let examine = move || {
            let (examined, own_name) = match source.link()? {
                Some(link) => {
                    let name = link.target().to_string();
                    let info_hash = None;
                    (Self { source, info_hash }, name)
                }
                None => {
                    let read = source.read()?;
                    let (info_hash, name) = (Some(read.info_hash()), read.name());
                    let source = read.into();
                    (Self { source, info_hash }, name)
                }
            };
            let checked = check_writable(&folder, &name.unwrap_or(own_name));
            Ok::<_, Error>((examined, checked))
        };
        let (examined, checked) = tokio::task::spawn_blocking(examine).await.map_err(failed)??;
        checked.map_err(|error| Refusal::of("root", StatusCode::FORBIDDEN, error))?;
        Ok(examined)
    }
}

/// Refuses a request that lists torrents while the daemon is stopping: such a torrent would escape the stop of all.
pub(super) fn refuse_if_stopping(shared: &Shared) -> Result<(), Refusal> {
    match shared.phase() {
        Phase::Stopping => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping")),
        _ => Ok(()),
    }
}

pub(super) fn failed(error: tokio::task::JoinError) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// The form of a body.
enum Kind {
    /// The bytes of a torrent file.
    Torrent,
    /// A magnet link.
    Magnet,
    Json,
    /// A form, with the text between its parts.
    Form(String),
}

impl Kind {
    fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        match media_type(headers).as_deref() {
            Some("application/x-bittorrent" | "application/octet-stream") => Ok(Self::Torrent),
            Some("text/plain") => Ok(Self::Magnet),
            Some("application/json") => Ok(Self::Json),
            Some("multipart/form-data") => {
                let whole = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
                let boundary = multer::parse_boundary(whole.unwrap_or_default());
                let boundary = boundary.map_err(|error| Refusal::of("Content-Type", StatusCode::BAD_REQUEST, error))?;
                Ok(Self::Form(boundary))
            }
            _ => {
                let why = "send a torrent file as application/x-bittorrent or application/octet-stream, a magnet link as \
                           text/plain, or either of them or a url in multipart/form-data or application/json";
                Err(Refusal::of("Content-Type", StatusCode::UNSUPPORTED_MEDIA_TYPE, why))
            }
        }
    }
}

/// Refuses a part of a body.
fn bad_body(why: impl ToString) -> Refusal {
    Refusal::of("body", StatusCode::BAD_REQUEST, why)
}

/// Refuses a part of a body by its name.
fn bad_part(name: &str, why: String) -> Refusal {
    Refusal::in_body(name.to_owned(), why)
}

/// The torrent of a body.
enum Given {
    Source(Source),
    /// The URL of a torrent file.
    Url(String),
}

/// Takes the only torrent of a body.
fn only(torrent: Option<Source>, magnet: Option<Source>, url: Option<String>) -> Result<Given, Refusal> {
    match (torrent, magnet, url) {
        (Some(source), None, None) | (None, Some(source), None) => Ok(Given::Source(source)),
        (None, None, Some(url)) => Ok(Given::Url(url)),
        (None, None, None) => Err(bad_body("the body has neither a torrent, a magnet link nor a url")),
        _ => Err(bad_body("a body has one of a torrent, a magnet link and a url")),
    }
}

/// Reads an object with a torrent file in base64, a magnet link or a URL, and with options.
fn from_json(bytes: &[u8], query: &mut Query) -> Result<Given, Refusal> {
    let body: Value = serde_json::from_slice(bytes).map_err(bad_body)?;
    let Value::Object(body) = body else {
        return Err(bad_body("not an object"));
    };
    let (mut torrent, mut link, mut url) = (None, None, None);
    for (name, value) in body {
        match (&*name, &value) {
            (TORRENT, Value::String(text)) => {
                let bytes = BASE64.decode(text.as_bytes());
                let bytes = bytes.map_err(|error| bad_part(TORRENT, format!("torrent: not base64: {error}")))?;
                torrent = Some(Source::from(Bytes::from(bytes)));
            }
            (URL, Value::String(text)) => url = Some(text.clone()),
            (MAGNET, Value::String(text)) => link = Some(Source::from_link(text)?),
            (_, Value::String(text)) => query.add(&name, text.clone(), &OPTIONS)?,
            (name, Value::Number(number)) if NUMBERS.contains(&name) => {
                query.add(name, number.to_string(), &OPTIONS)?;
            }
            (_, Value::Bool(is_so)) => query.add(&name, is_so.to_string(), &OPTIONS)?,
            (_, Value::Array(values)) => {
                for value in values {
                    let text = value.as_str();
                    let text = text.ok_or_else(|| bad_part(&name, format!("{name}: not a list of texts")))?;
                    query.add(&name, text.to_owned(), &OPTIONS)?;
                }
            }
            _ => {
                let why = "neither text, a list of texts, nor true or false, nor a number where one is expected";
                return Err(bad_part(&name, format!("{name}: {why}")));
            }
        }
    }
    only(torrent, link, url)
}

/// Reads a form with a torrent file, a magnet link or a URL, and with options.
async fn from_form(bytes: Bytes, boundary: String, query: &mut Query) -> Result<Given, Refusal> {
    let whole = stream::iter([Ok::<_, std::convert::Infallible>(bytes)]);
    let mut form = multer::Multipart::new(whole, boundary);
    let (mut torrent, mut link, mut url) = (None, None, None);
    for _ in 0..MAX_PARTS {
        let Some(part) = form.next_field().await.map_err(bad_body)? else {
            return only(torrent, link, url);
        };
        let name = part.name().unwrap_or_default().to_owned();
        if name == TORRENT {
            torrent = Some(Source::from(part.bytes().await.map_err(bad_body)?));
            continue;
        }
        let text = part.text().await.map_err(bad_body)?;
        match &*name {
            MAGNET => link = Some(Source::from_link(&text)?),
            URL => url = Some(text),
            _ => query.add(&name, text, &OPTIONS)?,
        }
    }
    Err(bad_body(format!("more than {MAX_PARTS} parts")))
}

fn peers(query: &Query) -> Result<Vec<SocketAddr>, Refusal> {
    let peers = query
        .all("peer")
        .map(str::parse)
        .collect::<Result<Vec<SocketAddr>, _>>();
    peers.map_err(|_| Refusal::of("peer", StatusCode::BAD_REQUEST, "a peer is IP:PORT"))
}

/// The client's options for a torrent.
struct Chosen {
    /// The download folder.
    root: PathBuf,
    /// The parameter that chose it. Without one, a torrent that is known already stays in its own folder.
    placed_by: Option<&'static str>,
    options: AddOptions,
}

impl Chosen {
    async fn of(shared: &Shared, query: &Query) -> Result<Self, Refusal> {
        let labels = labels::given(query);
        let of_category = match (query.one("root"), &labels.category) {
            (None, Some(category)) => labels::folder_of(shared, category).await?,
            _ => None,
        };
        let has_folder = of_category.is_some();
        let root = query.one("root").map(PathBuf::from).or(of_category).unwrap_or_default();
        let into = query.one("into").map(PathBuf::from);
        let placed_by = ["into", "root"].into_iter().find(|name| query.one(name).is_some());
        let placed_by = placed_by.or(has_folder.then_some("category"));
        if let Some(into) = into.clone().filter(|into| !is_below(into)) {
            return Err(Error::from(AddError::BadFolder { into }).into());
        }
        // Symbolic links on the way to the new folder are resolved too.
        let root = shared.roots.find(&into.map_or(root.clone(), |into| root.join(into)));
        let root = root.map_err(|error| Refusal::of("root", StatusCode::FORBIDDEN, error))?;
        let options = AddOptions {
            root: placed_by.map(|_| root.clone()),
            name: query.one("name").map(str::to_owned),
            overwrite: query.flag("overwrite")?,
            peers: peers(query)?,
            select: files::selection(query.one("files"), query.all("select"))?,
            limits: limits::given(query)?,
            labels,
            paused: query.flag("paused")?,
            skip_checking: query.flag(SKIP_CHECKING)?,
            queue: queue::given(query)?,
            seeding: limits::seeding_given(query)?,
            order: PieceOrder {
                sequential: query.flag("sequential")?,
                ends_first: query.flag("ends_first")?,
            },
            ..AddOptions::default()
        };
        Ok(Self {
            root,
            placed_by,
            options,
        })
    }
}

/// Returns which parameters of an add have no effect on a torrent that is listed already, since its files have their
/// place: of the one that chose a folder, and the name.
async fn ignored(
    shared: &Shared,
    torrent: TorrentId,
    (folder, name): (Option<(&'static str, PathBuf)>, Option<&str>),
) -> Result<Vec<&'static str>, Refusal> {
    if folder.is_none() && name.is_none() {
        return Ok(Vec::new());
    }
    let stats = shared.torrents.stats(torrent).await?;
    // The same folder may be named by a link.
    let root = tokio::task::spawn_blocking(move || stats.root.canonicalize().unwrap_or(stats.root)).await;
    let root = root.map_err(failed)?;
    let folder = folder
        .filter(|(_, folder)| *folder != root)
        .map(|(parameter, _)| parameter);
    let name = name.filter(|name| *name != stats.name).map(|_| "name");
    Ok(folder.into_iter().chain(name).collect())
}

/// Returns whether a relative path has only plain components, so that it stays below its parent folder.
fn is_below(folder: &Path) -> bool {
    let is_plain = |part| matches!(part, Component::Normal(_));
    folder.components().next().is_some() && folder.components().all(is_plain)
}
