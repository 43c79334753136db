//! HTTP requests on their way to the simulated servers and back.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_protocol::compact::Family;
use url::Url;

use super::super::NodeId;
use super::super::http::HttpReply;
use super::{Fabric, Work};
use crate::port::JobTag;
use crate::ports::http::{ContentRange, HttpError, HttpEvent, HttpGet, HttpPart};

/// Bytes of a body that arrive at once.
const CHUNK: usize = 1000;

/// A request's parts on their way into the world.
pub(super) struct HttpFlow {
    credit: i64,
    /// Parts that have arrived and wait for credit.
    waiting: VecDeque<HttpPart>,
}

impl Fabric {
    pub(in super::super) fn grant_http(&mut self, node: NodeId, tag: JobTag, bytes: u64) {
        if let Some(flow) = self.http_flows.get_mut(&(node, tag)) {
            flow.credit = flow.credit.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
            self.deliver_http(node, tag);
        }
    }

    pub(in super::super) fn cancel_http(&mut self, node: NodeId, tag: JobTag) {
        self.http_flows.remove(&(node, tag));
    }

    /// Takes in a part that has arrived, unless its request is canceled.
    pub(super) fn receive_http(&mut self, node: NodeId, event: HttpEvent) {
        if let Some(flow) = self.http_flows.get_mut(&(node, event.tag)) {
            flow.waiting.push_back(event.part);
            self.deliver_http(node, event.tag);
        }
    }

    fn deliver_http(&mut self, node: NodeId, tag: JobTag) {
        let Some(flow) = self.http_flows.get_mut(&(node, tag)) else {
            return;
        };
        let mut has_ended = false;
        while let Some(part) = flow.waiting.front() {
            match part {
                HttpPart::Chunk(_) | HttpPart::End(_) if flow.credit <= 0 => break,
                HttpPart::Chunk(chunk) => flow.credit -= chunk.len() as i64,
                HttpPart::Head { .. } => {}
                HttpPart::End(_) => has_ended = true,
            }
            if let Some(part) = flow.waiting.pop_front() {
                self.hub.deliver_http(node, HttpEvent { tag, part });
            }
        }
        if has_ended {
            self.http_flows.remove(&(node, tag));
        }
    }

    /// Sends a request: resolves the server's name and makes the connection.
    pub(in super::super) fn ask(&mut self, node: NodeId, request: HttpGet) {
        let flow = HttpFlow {
            credit: i64::try_from(request.credit).unwrap_or(i64::MAX),
            waiting: VecDeque::new(),
        };
        self.http_flows.insert((node, request.tag), flow);
        let Some((url, host)) = parse(&request.url) else {
            return self.end_http(node, request.tag, Duration::ZERO, Err(HttpError::BadUrl));
        };
        let (time, found) = self.names.look_up(&host);
        let ips = match found {
            Ok(ips) => ips,
            Err(reason) => return self.end_http(node, request.tag, time, Err(HttpError::Transport(reason))),
        };
        let is_of = |ip: &&IpAddr| request.family.is_none_or(|family| family == Family::of(**ip));
        let Some(&ip) = ips.iter().find(is_of) else {
            return self.end_http(node, request.tag, time, Err(HttpError::NoAddress));
        };
        let to = SocketAddr::new(ip, url.port_or_known_default().unwrap_or(80));
        let latency = self
            .net
            .host_of(to)
            .map_or(Duration::ZERO, |there| self.net.time_between(node, there));
        // The connection's round trip, then the request's way to the server.
        let time = time + latency * 3;
        if time >= request.timeout {
            return self.end_http(node, request.tag, request.timeout, Err(HttpError::Timeout));
        }
        let timeout = request.timeout - time;
        self.begin(node, time, Work::Http(HttpGet { timeout, ..request }));
    }

    /// Delivers a request to its server, if there is one and the path is open.
    pub(super) fn request_from(&mut self, node: NodeId, request: &HttpGet) {
        let late = |fabric: &mut Self| fabric.end_http(node, request.tag, request.timeout, Err(HttpError::Timeout));
        let Some((url, host)) = parse(&request.url) else { return };
        let ips = self.names.look_up(&host).1.unwrap_or_default();
        let is_of = |ip: &&IpAddr| request.family.is_none_or(|family| family == Family::of(**ip));
        let Some(&ip) = ips.iter().find(is_of) else {
            return late(self);
        };
        let to = SocketAddr::new(ip, url.port_or_known_default().unwrap_or(80));
        let Some(there) = self.net.host_of(to).filter(|there| self.net.is_open(node, *there)) else {
            return late(self);
        };
        let latency = self.net.time_between(node, there);
        let from = self.net.source_ip(node, ip).unwrap_or(ip);
        let now = self.hub.now;
        let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let reply = match self.http_hosts.get_mut(&to) {
            Some(server) => server(now, from, target),
            None => HttpReply::Refuse,
        };
        match reply {
            HttpReply::Silence => late(self),
            HttpReply::Refuse => {
                let error = HttpError::Transport("Connection refused".into());
                self.end_http(node, request.tag, latency, Err(error));
            }
            HttpReply::Answer {
                status,
                body,
                wait,
                cut_at,
            } => {
                let time = wait + latency;
                if time >= request.timeout {
                    return late(self);
                }
                self.answer(node, request, time, (status, ip), body, cut_at);
            }
        }
    }

    fn answer(
        &mut self,
        node: NodeId,
        request: &HttpGet,
        time: Duration,
        (status, server): (u16, IpAddr),
        mut body: Bytes,
        cut_at: Option<usize>,
    ) {
        let tag = request.tag;
        let mut end = Ok(());
        let (status, content) = match &request.range {
            Some(range) if status == 200 => cut(range, &mut body),
            _ => (status, None),
        };
        if let Some(len) = cut_at.filter(|len| *len < body.len()) {
            body.truncate(len);
            end = Err(HttpError::Transport(
                "connection closed before message completed".into(),
            ));
        }
        if body.len() > request.max_body_bytes {
            body.truncate(request.max_body_bytes);
            end = Err(HttpError::TooLarge(request.max_body_bytes));
        }
        let head = HttpPart::Head {
            status,
            server: Some(server),
            content,
        };
        self.begin(node, time, Work::HttpPart(HttpEvent { tag, part: head }));
        while !body.is_empty() {
            let part = HttpPart::Chunk(body.split_to(body.len().min(CHUNK)));
            self.begin(node, time, Work::HttpPart(HttpEvent { tag, part }));
        }
        self.end_http(node, tag, time, end);
    }

    fn end_http(&mut self, node: NodeId, tag: JobTag, time: Duration, end: Result<(), HttpError>) {
        let part = HttpPart::End(end);
        self.begin(node, time, Work::HttpPart(HttpEvent { tag, part }));
    }
}

/// Cuts a range out of a resource, as servers do that support ranges. Returns the status, and the position of the
/// range.
fn cut(range: &Range<u64>, body: &mut Bytes) -> (u16, Option<ContentRange>) {
    let total = body.len();
    let end = usize::try_from(range.end).unwrap_or(usize::MAX).min(total);
    let start = usize::try_from(range.start).unwrap_or(usize::MAX);
    if start >= end {
        *body = Bytes::new();
        return (416, None);
    }
    *body = body.slice(start..end);
    let content = ContentRange {
        start: start as u64,
        total: Some(total as u64),
    };
    (206, Some(content))
}

/// Parses a supported URL and its host.
fn parse(url: &str) -> Option<(Url, String)> {
    let url = Url::parse(url)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))?;
    let host = url.host_str()?.to_owned();
    Some((url, host))
}
