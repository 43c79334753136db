//! Requests to HTTP trackers.

use std::net::IpAddr;

use bevy_ecs::prelude::*;
use ecs_torrent_components::settings::{Settings, seconds};
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::port::Purpose;
use ecs_torrent_engine::ports::HttpPort;
use ecs_torrent_engine::ports::http::{HttpError, HttpGet, HttpPart, HttpRequest, LocalPaths};
use ecs_torrent_engine::purpose;
use ecs_torrent_protocol::tracker::http::{announce_url, read_announce, read_refusal, read_scrape, scrape_url};

use super::{Answers, Failure, OutgoingRequests, Reply, RequestKind, TrackerRequest};

pub(super) const TRACKERS: Purpose = purpose!("http trackers");

/// A response that is being received.
#[derive(Debug)]
pub(super) struct Arriving {
    request: TrackerRequest,
    status: u16,
    server: Option<IpAddr>,
    body: Vec<u8>,
}

pub(super) fn send_http_requests(
    mut outgoing: ResMut<OutgoingRequests>,
    mut answers: ResMut<Answers>,
    mut replies: ResMut<Jobs<Arriving>>,
    mut http: ResMut<HttpPort>,
    settings: Res<Settings>,
) {
    for request in outgoing.http.drain(..) {
        let url = match &request.kind {
            RequestKind::Announce(announce) => Some(announce_url(&request.url, announce)),
            RequestKind::Scrape(info_hash) => scrape_url(&request.url, &[*info_hash]),
        };
        let Some(url) = url else {
            answers.give(request.answered(Err(Failure::new("its URL has no scrape convention"))));
            continue;
        };
        let family = Some(request.family);
        let arriving = Arriving {
            request,
            status: 0,
            server: None,
            body: Vec::new(),
        };
        http.push(HttpRequest::Get(HttpGet {
            tag: replies.add(TRACKERS, arriving),
            url,
            local_paths: LocalPaths::Trackers,
            family,
            range: None,
            timeout: seconds(settings.trackers.http_timeout_s),
            max_body_bytes: settings.trackers.max_reply_bytes,
            // The limit on the body's length is enough.
            credit: u64::MAX,
        }));
    }
}

pub(super) fn collect_http(
    mut http: ResMut<HttpPort>,
    mut replies: ResMut<Jobs<Arriving>>,
    mut answers: ResMut<Answers>,
    settings: Res<Settings>,
) {
    for event in http.take(TRACKERS) {
        let Some(arriving) = replies.get_mut(event.tag) else {
            continue;
        };
        match event.part {
            HttpPart::Head { status, server, .. } => {
                arriving.status = status;
                arriving.server = server;
            }
            HttpPart::Chunk(chunk) => arriving.body.extend_from_slice(&chunk),
            HttpPart::End(result) => {
                let Some(arriving) = replies.take(event.tag) else {
                    continue;
                };
                let result = match result {
                    Ok(()) => arriving.read(settings.trackers.max_peers),
                    Err(error) => Err(failure(&error)),
                };
                answers.give(arriving.request.answered(result));
            }
        }
    }
}

impl Arriving {
    fn read(&self, max_peers: usize) -> Result<Reply, Failure> {
        if !(200..300).contains(&self.status) {
            // Some trackers send a failure reason with an HTTP error status; the reason says more than the status.
            read_refusal(&self.body)?;
            return Err(Failure::new(format!("HTTP status {}", self.status)));
        }
        match &self.request.kind {
            RequestKind::Announce(_) => Ok(Reply::Announce(read_announce(&self.body, max_peers)?, self.server)),
            RequestKind::Scrape(info_hash) => {
                let counts = read_scrape(&self.body, &[*info_hash])?;
                let own = counts
                    .first()
                    .ok_or_else(|| Failure::new("it does not know this torrent"))?;
                Ok(Reply::Scrape(own.1))
            }
        }
    }
}

fn failure(error: &HttpError) -> Failure {
    Failure {
        is_unreachable: *error == HttpError::NoAddress,
        ..Failure::new(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracker_without_an_address_of_the_family_is_unreachable() {
        assert!(failure(&HttpError::NoAddress).is_unreachable);
        assert!(!failure(&HttpError::Timeout).is_unreachable);
    }
}
