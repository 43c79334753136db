//! The content of files, for players and other readers, also while it is downloaded.

use std::ops::Range;

use axum::body::{Body, Bytes};
use axum::extract::{Path as InPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use headers::{
    AcceptRanges, ContentLength, ContentRange, ContentType, ETag, HeaderMapExt, IfMatch, IfNoneMatch, IfRange,
};

use super::Shared;
use super::answers::Refusal;
use super::requests::{NoParameters, parse_hash};
use crate::Error;
use crate::reader::FileReader;

/// Answers with a file or with a range of it. The body is sent as the data arrives, and breaks off if it does not.
pub(super) async fn get(
    State(shared): State<Shared>,
    InPath((hash, index)): InPath<(String, String)>,
    _: NoParameters,
    request: HeaderMap,
) -> Result<Response, Refusal> {
    answer(&shared, (&hash, &index), &request, true).await
}

/// Answers as [`get`] does without a range, and sends no body.
pub(super) async fn head(
    State(shared): State<Shared>,
    InPath((hash, index)): InPath<(String, String)>,
    _: NoParameters,
    request: HeaderMap,
) -> Result<Response, Refusal> {
    answer(&shared, (&hash, &index), &request, false).await
}

async fn answer(
    shared: &Shared,
    (hash, index): (&str, &str),
    request: &HeaderMap,
    has_body: bool,
) -> Result<Response, Refusal> {
    let hash = parse_hash(hash)?;
    let bad_index = |_| Refusal::of("index", StatusCode::BAD_REQUEST, "not the index of a file");
    let file: u32 = index.parse().map_err(bad_index)?;
    let reader = shared.torrents.read_file(hash, file).await?;
    let length = reader.length();
    // The content of a torrent's file never changes.
    let tag: ETag = format!("\"{hash}-{file}\"")
        .parse()
        .map_err(|_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "no tag"))?;
    let kind = mime_guess::from_path(reader.path()).first_or_octet_stream();
    let mut headers = HeaderMap::new();
    headers.typed_insert(tag.clone());
    headers.typed_insert(AcceptRanges::bytes());
    if request
        .typed_get::<IfMatch>()
        .is_some_and(|tags| !tags.precondition_passes(&tag))
    {
        return Ok((StatusCode::PRECONDITION_FAILED, headers).into_response());
    }
    if request
        .typed_get::<IfNoneMatch>()
        .is_some_and(|tags| !tags.precondition_passes(&tag))
    {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    let range = match has_body {
        true => requested_range(request, &tag, length),
        false => Requested::All,
    };
    let (status, range) = match range {
        Requested::All => (StatusCode::OK, 0..length),
        Requested::Part(range) => {
            // Cannot fail: the range is within the file.
            if let Ok(place) = ContentRange::bytes(range.clone(), length) {
                headers.typed_insert(place);
            }
            (StatusCode::PARTIAL_CONTENT, range)
        }
        Requested::Nothing => {
            headers.typed_insert(ContentRange::unsatisfied_bytes(length));
            let why = format!("the file has {length} bytes and none of those requested");
            let refusal = Refusal::of("Range", StatusCode::RANGE_NOT_SATISFIABLE, why);
            return Ok((headers, refusal).into_response());
        }
    };
    headers.typed_insert(ContentType::from(kind));
    headers.typed_insert(ContentLength(range.end - range.start));
    let body = match has_body {
        true => body(reader, range),
        false => Body::empty(),
    };
    Ok((status, headers, body).into_response())
}

/// The part of a file that a request is for.
#[derive(Debug, PartialEq, Eq)]
enum Requested {
    All,
    Part(Range<u64>),
    /// The range contains no byte of the file.
    Nothing,
}

/// Returns the requested part of a file of `length` bytes. Several ranges are answered with the whole file, and so are
/// ranges of another version of it (RFC 9110, 13.1.5 and 14.2).
fn requested_range(request: &HeaderMap, tag: &ETag, length: u64) -> Requested {
    let is_other = |version: IfRange| version.is_modified(Some(tag), None);
    if request.typed_get::<IfRange>().is_some_and(is_other) {
        return Requested::All;
    }
    let range = request.get(header::RANGE).and_then(|range| range.to_str().ok());
    let Some((first, last)) = range.and_then(single_range) else {
        return Requested::All;
    };
    let range = match (first, last) {
        (Some(first), Some(last)) => first..last.saturating_add(1).min(length),
        (Some(first), None) => first..length,
        (None, last) => length.saturating_sub(last.unwrap_or(0))..length,
    };
    match range.is_empty() {
        true => Requested::Nothing,
        false => Requested::Part(range),
    }
}

/// Parses the value of a `Range` header with a single range: its first and last byte, or the length of a suffix instead
/// of the latter. Other values are not valid or not supported, and do not count.
fn single_range(value: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, range) = value.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    // A number that is too long is beyond the end of every file.
    let number = |digits: &str| {
        let is_number = digits.bytes().all(|c| c.is_ascii_digit());
        is_number.then(|| (!digits.is_empty()).then(|| digits.parse().unwrap_or(u64::MAX)))
    };
    let (first, last) = (number(first)?, number(last)?);
    let is_ordered = match (first, last) {
        (Some(first), Some(last)) => first <= last,
        (first, last) => first.or(last).is_some(),
    };
    (unit.eq_ignore_ascii_case("bytes") && is_ordered).then_some((first, last))
}

/// Returns the body with a range of a file. It breaks off when the reader fails, so that the client does not take a
/// part for the whole.
fn body(reader: FileReader, range: Range<u64>) -> Body {
    let rest = Some((reader, range));
    let parts = stream::unfold(rest, async |rest: Option<(FileReader, Range<u64>)>| {
        let (mut reader, range) = rest.filter(|(_, range)| !range.is_empty())?;
        let len = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
        let bytes: Result<Bytes, Error> = reader.read_at(range.start, len).await;
        match bytes {
            Ok(bytes) => {
                let start = range.start + bytes.len() as u64;
                Some((Ok(bytes), Some((reader, start..range.end))))
            }
            Err(error) => {
                tracing::debug!(%error, path = reader.path(), "the content of a file breaks off");
                Some((Err(error), None))
            }
        }
    });
    Body::from_stream(parts)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    /// RFC 9110, 14.1.2.
    #[test]
    fn single_ranges_are_understood() {
        let tag: ETag = "\"tag\"".parse().unwrap();
        let requested = |range: &'static str, version: Option<&'static str>| {
            let mut request = HeaderMap::new();
            request.insert(header::RANGE, HeaderValue::from_static(range));
            version.map(|version| request.insert(header::IF_RANGE, HeaderValue::from_static(version)));
            requested_range(&request, &tag, 100)
        };
        for (range, expected) in [
            ("bytes=0-9", Requested::Part(0..10)),
            ("bytes=90-", Requested::Part(90..100)),
            ("bytes=90-999", Requested::Part(90..100)),
            ("bytes=0-18446744073709551615", Requested::Part(0..100)),
            ("bytes=-1", Requested::Part(99..100)),
            ("bytes=-999", Requested::Part(0..100)),
            ("bytes=99-99", Requested::Part(99..100)),
            ("bytes=100-", Requested::Nothing),
            ("bytes=-0", Requested::Nothing),
            ("bytes=18446744073709551615-", Requested::Nothing),
            ("bytes=0-1,5-6", Requested::All),
            ("lines=0-1", Requested::All),
            ("bytes=6-5", Requested::All),
            ("bytes=-", Requested::All),
            ("bytes=a-b", Requested::All),
            ("bytes=+1-2", Requested::All),
            ("bytes=99999999999999999999-", Requested::Nothing),
        ] {
            assert_eq!(requested(range, None), expected, "{range}");
        }
        assert_eq!(requested("bytes=5-6", Some("\"tag\"")), Requested::Part(5..7));
        assert_eq!(requested("bytes=5-6", Some("\"other\"")), Requested::All);
        assert_eq!(requested("bytes=5-6", Some("W/\"tag\"")), Requested::All);
        let date = Some("Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(requested("bytes=5-6", date), Requested::All);
        assert_eq!(requested_range(&HeaderMap::new(), &tag, 0), Requested::All);
    }
}
