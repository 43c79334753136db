//! Lists of torrents, with filters, order and pages, and the changes since an earlier list.

use std::cmp::Reverse;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use ecs_torrent_components::changes::Revision;
use ecs_torrent_components::labels::LabelBounds;
use ecs_torrent_components::lifecycle::SavedState;
use ecs_torrent_components::stats::TorrentStats;
use futures_util::future::join_all;
use serde::Serialize;
use serde_json::json;

use super::Shared;
use super::answers::{Refusal, json_body, tagged};
use super::mirror::{Difference, Listing, Row, Totals};
use super::requests::Query;
use crate::selection::Selected;
use crate::{Error, Field, TorrentState};

/// Fields of each torrent in a list when none are selected.
const LIST_FIELDS: [Field; 7] = [
    Field::InfoHash,
    Field::Name,
    Field::State,
    Field::Progress,
    Field::Speed,
    Field::Downloaded,
    Field::Size,
];

/// Fields that the list of all torrents does not have: they change without notice, or are long. They are read for each
/// torrent of an answer.
const DETAILS: [Field; 6] = [
    Field::SecondsActive,
    Field::SecondsSeeding,
    Field::Availability,
    Field::Peers,
    Field::Trackers,
    Field::Sources,
];

/// Number of torrents whose details are queried at a time.
const DETAILS_CHUNK: usize = 256;

/// Name of the header with the number of torrents that match the filter, on all pages.
const TOTAL_COUNT: &str = "x-total-count";

/// The order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Field(Field),
    DownloadSpeed,
    UploadSpeed,
    QueueOrder,
}

impl Column {
    /// The fields by which lists can be sorted, in addition to the two speeds and the place in the queue.
    const FIELDS: [Field; 22] = [
        Field::Name,
        Field::Downloaded,
        Field::Size,
        Field::InfoHash,
        Field::State,
        Field::Error,
        Field::Progress,
        Field::Uploaded,
        Field::Ratio,
        Field::Eta,
        Field::Corrupt,
        Field::Wasted,
        Field::Completed,
        Field::Wanted,
        Field::Left,
        Field::Category,
        Field::Private,
        Field::AddedAt,
        Field::CompletedAt,
        Field::ActiveAt,
        Field::Root,
        Field::PeerCount,
    ];

    fn all() -> impl Iterator<Item = Self> {
        let fields = Self::FIELDS.map(Self::Field).into_iter();
        fields.chain([Self::DownloadSpeed, Self::UploadSpeed, Self::QueueOrder])
    }

    fn name(self) -> &'static str {
        match self {
            Self::Field(field) => field.name(),
            Self::DownloadSpeed => "speed.download",
            Self::UploadSpeed => "speed.upload",
            Self::QueueOrder => "queue.order",
        }
    }

    /// Returns the key by which a torrent is sorted.
    fn key(self, row: &Row) -> Key<'_> {
        let stats = &*row.stats;
        let number = Key::Number;
        let float = |value: f64| Key::Number(order_of(value));
        let optional = |value: Option<u64>| value.map_or(Key::Nothing, Key::Number);
        match self {
            Self::DownloadSpeed => number(stats.speed.download),
            Self::UploadSpeed => number(stats.speed.upload),
            // The sign bit is the highest: negative numbers come first.
            Self::QueueOrder => number(stats.queue.order.cast_unsigned() ^ (1 << 63)),
            Self::Field(field) => match field {
                Field::Name => Key::Text(&row.lower_name),
                Field::Downloaded => number(stats.downloaded),
                Field::Size => optional(stats.size),
                Field::InfoHash => Key::Bytes(stats.info_hash.0),
                Field::State => Key::Text(stats.state.name()),
                Field::Error => stats.error.as_deref().map_or(Key::Nothing, Key::Text),
                Field::Progress => float(stats.progress()),
                Field::Uploaded => number(stats.uploaded),
                Field::Ratio => stats.ratio().map_or(Key::Nothing, float),
                Field::Eta => optional(stats.eta()),
                Field::Corrupt => number(stats.corrupt),
                Field::Wasted => number(stats.wasted),
                Field::Completed => number(stats.completed),
                Field::Wanted => optional(stats.wanted),
                Field::Left => optional(stats.left),
                Field::Category => stats.category.as_deref().map_or(Key::Nothing, Key::Text),
                Field::Private => number(stats.private.into()),
                Field::AddedAt => number(stats.added_at),
                Field::CompletedAt => optional(stats.completed_at),
                Field::ActiveAt => optional(stats.active_at),
                Field::Root => stats.root.to_str().map_or(Key::Nothing, Key::Text),
                Field::PeerCount => number(stats.peer_count.into()),
                // Not in `FIELDS`.
                _ => Key::Nothing,
            },
        }
    }
}

/// Returns a number that orders values that are not negative as they are ordered themselves.
fn order_of(value: f64) -> u64 {
    value.max(0.0).to_bits()
}

/// A value by which torrents are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key<'r> {
    Number(u64),
    Text(&'r str),
    Bytes([u8; 20]),
    /// The torrent has no value. It comes last, whatever the direction.
    Nothing,
}

/// The torrents that a client wants, and their order.
#[derive(Debug, Default, PartialEq)]
struct View {
    states: Vec<String>,
    /// Text in lower case.
    text: Option<String>,
    has_error: Option<bool>,
    /// Labels that a torrent has, all of them.
    labels: Vec<String>,
    /// The category of a torrent; empty for torrents without one.
    category: Option<String>,
    sort: Option<Column>,
    is_descending: bool,
    offset: usize,
    limit: Option<usize>,
}

/// The parameters of a view.
const VIEW_PARAMETERS: [&str; 8] = ["state", "text", "error", "label", "category", "sort", "offset", "limit"];

impl View {
    fn parse(query: &Query) -> Result<Self, Refusal> {
        let bad = |field, why: String| Refusal::of(field, StatusCode::BAD_REQUEST, why);
        let mut states = Vec::new();
        for state in query.all("state").flat_map(|states| states.split(',')) {
            let is_stop = TorrentState::ALL.iter().any(|known| stop_of(*known) == Some(state));
            if !is_stop && state.parse::<TorrentState>().is_err() {
                return Err(bad("state", format!("no state {state:?} of listed torrents")));
            }
            if states.len() < TorrentState::ALL.len() {
                states.push(state.to_owned());
            }
        }
        let number = |name| {
            let number = query.one(name).map(str::parse::<usize>).transpose();
            number.map_err(|_| bad(name, format!("{name} is a whole number")))
        };
        let (sort, is_descending) = match query.one("sort") {
            None => (None, false),
            Some(sort) => {
                let (name, is_descending) = sort.strip_prefix('-').map_or((sort, false), |name| (name, true));
                let column = Column::all().find(|column| column.name() == name).ok_or_else(|| {
                    let all: Vec<&str> = Column::all().map(Column::name).collect();
                    bad("sort", format!("no column {name:?}; there are {}", all.join(", ")))
                })?;
                (Some(column), is_descending)
            }
        };
        let limit = number("limit")?;
        if limit == Some(0) {
            return Err(bad("limit", "a page has at least one torrent".to_owned()));
        }
        Ok(Self {
            states,
            text: query.one("text").map(str::to_lowercase),
            labels: query
                .all("label")
                .take(LabelBounds::WIDEST.max_per_torrent)
                .map(str::to_owned)
                .collect(),
            category: query.one("category").map(str::to_owned),
            has_error: query.one("error").map(|_| query.flag("error")).transpose()?,
            sort,
            is_descending,
            offset: number("offset")?.unwrap_or_default(),
            limit,
        })
    }

    fn includes(&self, row: &Row) -> bool {
        let stats = &*row.stats;
        let name = stats.state.name();
        let is_state = |state: &String| *state == name || stop_of(stats.state) == Some(state);
        let has_text = |text: &String| row.lower_name.contains(text.as_str()) || is_prefix(text, stats);
        let is_category = |category: &String| stats.category.as_deref().unwrap_or_default() == category;
        (self.states.is_empty() || self.states.iter().any(is_state))
            && self.text.as_ref().is_none_or(has_text)
            && self.labels.iter().all(|label| stats.labels.contains(label))
            && self.category.as_ref().is_none_or(is_category)
            && self
                .has_error
                .is_none_or(|has_error| has_error == stats.error.is_some())
    }

    /// Returns the torrents of the page, and the number of torrents on all pages. Torrents with equal keys are in the
    /// order in which they were added; torrents of the same second are in the order of the queue, which survives
    /// restarts.
    fn page(&self, listing: &Listing) -> (Vec<Arc<TorrentStats>>, usize) {
        let rows = listing.rows().filter(|row| self.includes(row));
        match self.sort {
            None | Some(Column::Field(Field::AddedAt)) if !self.is_descending => self.cut(rows.map(|row| ((), row))),
            None => self.cut(rows.map(|row| ((), row))),
            Some(column) if self.is_descending => self.cut(rows.map(|row| {
                let key = column.key(row);
                ((key == Key::Nothing, Reverse(key)), row)
            })),
            Some(column) => self.cut(rows.map(|row| (column.key(row), row))),
        }
    }

    /// Sorts rows as far as the page needs it, and returns the page.
    fn cut<'r, K: Ord>(&self, rows: impl Iterator<Item = (K, &'r Row)>) -> (Vec<Arc<TorrentStats>>, usize) {
        let mut rows: Vec<_> = rows
            .map(|(key, row)| {
                let stats = &*row.stats;
                let place = (stats.added_at, stats.queue.order, stats.order);
                ((key, place, stats.info_hash), row)
            })
            .collect();
        let total = rows.len();
        let begin = self.offset.min(total);
        let end = self.limit.map_or(total, |limit| begin.saturating_add(limit).min(total));
        let by_key = |(a, _): &(_, &Row), (b, _): &(_, &Row)| Ord::cmp(a, b);
        if end < total {
            rows.select_nth_unstable_by(end, by_key);
            rows.truncate(end);
        }
        if begin > 0 && begin < end {
            rows.select_nth_unstable_by(begin, by_key);
        }
        let page = &mut rows[begin..end];
        page.sort_unstable_by(by_key);
        (page.iter().map(|(_, row)| row.stats.clone()).collect(), total)
    }
}

/// Returns the name that all phases of a stop have in filters.
fn stop_of(state: TorrentState) -> Option<&'static str> {
    let (stop, _phase) = state.name().split_once('/')?;
    Some(stop)
}

/// Returns whether a text is the beginning of a torrent's info-hash.
fn is_prefix(text: &str, stats: &TorrentStats) -> bool {
    let is_hash = (6..=40).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_hexdigit());
    is_hash && stats.info_hash.to_string().starts_with(text)
}

/// Lists torrents.
pub(super) async fn list(
    State(shared): State<Shared>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let mut known = vec!["fields", "stopped"];
    known.extend(VIEW_PARAMETERS);
    let query = Query::parse(query, &known)?;
    if query.flag("stopped")? {
        return list_stopped(&shared, &query).await;
    }
    let fields = query.fields(&LIST_FIELDS)?;
    let view = View::parse(&query)?;
    shared.mirror.refresh(&shared.torrents).await?;
    let copy = shared.clone();
    let (page, total) = blocking(move || view.page(&copy.mirror.listing())).await?;
    let page = with_details(&shared, page, &fields).await?;
    let body = blocking(move || to_json(&select(&page, &fields))).await??;
    let mut response = tagged(&headers, body);
    response.headers_mut().insert(TOTAL_COUNT, HeaderValue::from(total));
    Ok(response)
}

/// Lists stopped torrents, of which only hash and name are known.
async fn list_stopped(shared: &Shared, query: &Query) -> Result<Response, Refusal> {
    for name in ["fields"].into_iter().chain(VIEW_PARAMETERS) {
        if query.one(name).is_some() {
            let why = "a stopped torrent has info_hash, name and state; nothing can be selected";
            return Err(Refusal::of(name, StatusCode::BAD_REQUEST, why));
        }
    }
    let stopped = shared.torrents.list_stopped().await?.into_iter().map(|torrent| {
        let hash = torrent.info_hash.to_string();
        json!({"info_hash": hash, "name": torrent.name.as_deref(), "state": SavedState::Stopped})
    });
    Ok(axum::Json(stopped.collect::<Vec<_>>()).into_response())
}

/// The answer to a request for changes.
#[derive(Serialize)]
struct Synced<'a> {
    revision: String,
    reset: bool,
    has_more: bool,
    removed: Vec<String>,
    torrents: Vec<Selected<'a>>,
    totals: &'a Totals,
}

/// Returns the changes since an earlier answer.
pub(super) async fn sync(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query = Query::parse(query, &["since", "fields", "limit"])?;
    let since = query.one("since").map(str::parse::<Revision>).transpose();
    let bad = |_| {
        Refusal::of(
            "since",
            StatusCode::BAD_REQUEST,
            "not the `revision` of an earlier answer",
        )
    };
    let since = since.map_err(bad)?;
    let limit = View::parse(&query)?.limit.unwrap_or(usize::MAX);
    let mut fields = query.fields(&LIST_FIELDS)?;
    if !fields.contains(&Field::InfoHash) {
        fields.push(Field::InfoHash);
    }
    shared.mirror.refresh(&shared.torrents).await?;
    let (difference, totals) = {
        let listing = shared.mirror.listing();
        (listing.after(since, limit), listing.totals().clone())
    };
    let Difference {
        mark,
        is_reset,
        removed,
        changed,
        has_more,
    } = difference;
    let changed = with_details(&shared, changed, &fields).await?;
    let body = blocking(move || {
        to_json(&Synced {
            revision: mark.to_string(),
            reset: is_reset,
            has_more,
            removed: removed.iter().map(ToString::to_string).collect(),
            torrents: select(&changed, &fields),
            totals: &totals,
        })
    });
    Ok(json_body(body.await??))
}

/// Returns sums over all torrents.
pub(super) async fn totals(
    State(shared): State<Shared>,
    _: super::requests::NoParameters,
) -> Result<axum::Json<Totals>, Refusal> {
    shared.mirror.refresh(&shared.torrents).await?;
    let totals = shared.mirror.listing().totals().clone();
    Ok(axum::Json(totals))
}

fn select<'a>(torrents: &'a [Arc<TorrentStats>], fields: &'a [Field]) -> Vec<Selected<'a>> {
    torrents.iter().map(|stats| Selected { stats, fields }).collect()
}

/// Reads the fields that the list does not have, if they are selected.
async fn with_details(
    shared: &Shared,
    torrents: Vec<Arc<TorrentStats>>,
    fields: &[Field],
) -> Result<Vec<Arc<TorrentStats>>, Refusal> {
    if !fields.iter().any(|field| DETAILS.contains(field)) {
        return Ok(torrents);
    }
    let mut detailed = Vec::with_capacity(torrents.len());
    for chunk in torrents.chunks(DETAILS_CHUNK) {
        for found in join_all(chunk.iter().map(|stats| shared.torrents.stats(stats.info_hash))).await {
            match found {
                Ok(stats) => detailed.push(Arc::new(stats)),
                // The torrent was removed in the meantime.
                Err(Error::TorrentNotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(detailed)
}

/// Runs work of some milliseconds outside the tasks that serve clients.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    let result = tokio::task::spawn_blocking(work).await;
    result.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    let written = serde_json::to_vec(value);
    written.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}
