//! Tests of ranges, credit and cancellation.

use bevy_ecs::entity::Entity;

use super::super::{SimNet, Simulation};
use super::*;
use crate::port::{Backend, JobTag};
use crate::ports::http::{ContentRange, HttpGet, HttpPart, HttpRequest, LocalPaths};
use crate::purpose;

/// A client, and a server with 10 000 bytes.
struct Bed {
    sim: Simulation,
    http: SimHttp,
    _host: SimNet,
}

fn tag() -> JobTag {
    JobTag::new(purpose!("test"), Entity::PLACEHOLDER)
}

impl Bed {
    fn new() -> Self {
        let mut sim = Simulation::new(1, Duration::from_millis(10));
        let host = sim.add_host(([10, 0, 0, 1], 6881).into());
        let body: Bytes = (0..10_000_u32).map(|number| number as u8).collect();
        sim.add_http_host(([10, 0, 0, 9], 80).into(), move |_, _, _| {
            HttpReply::new(200, body.clone())
        });
        let http = SimHttp::new(host.id(), sim.fabric.clone());
        Self { sim, http, _host: host }
    }

    fn get(&mut self, range: Option<std::ops::Range<u64>>, credit: u64) -> Vec<HttpPart> {
        self.ask(HttpRequest::Get(HttpGet {
            tag: tag(),
            url: "http://10.0.0.9/file".into(),
            local_paths: LocalPaths::All,
            family: None,
            range,
            timeout: Duration::from_secs(20),
            max_body_bytes: 20_000,
            credit,
        }))
    }

    /// Makes a request, and returns the parts that come within a second.
    fn ask(&mut self, request: HttpRequest) -> Vec<HttpPart> {
        self.http.submit(&mut vec![request]);
        self.sim.run_for(Duration::from_secs(1));
        let mut events = Vec::new();
        self.http.poll(usize::MAX, &mut events);
        events.into_iter().map(|event| event.part).collect()
    }
}

fn head(parts: &[HttpPart]) -> Option<(u16, Option<ContentRange>)> {
    parts.iter().find_map(|part| match part {
        HttpPart::Head { status, content, .. } => Some((*status, *content)),
        _ => None,
    })
}

fn body(parts: &[HttpPart]) -> Vec<u8> {
    let chunks = parts.iter().filter_map(|part| match part {
        HttpPart::Chunk(chunk) => Some(chunk.clone()),
        _ => None,
    });
    chunks.flatten().collect()
}

#[test]
fn a_range_is_cut_out() {
    let mut bed = Bed::new();
    let parts = bed.get(Some(300..303), u64::MAX);
    let content = |start| {
        let total = Some(10_000);
        Some(ContentRange { start, total })
    };
    assert_eq!(head(&parts), Some((206, content(300))));
    assert_eq!(body(&parts), [44, 45, 46]);
    assert_eq!(body(&bed.get(Some(9_999..20_000), u64::MAX)), [15]);
    assert_eq!(head(&bed.get(Some(10_000..20_000), u64::MAX)), Some((416, None)));
    assert_eq!(body(&bed.get(None, u64::MAX)).len(), 10_000);
}

#[test]
fn a_response_waits_for_credit() {
    let mut bed = Bed::new();
    let parts = bed.get(None, 2500);
    assert_eq!((head(&parts), body(&parts).len()), (Some((200, None)), 3000));
    let (tag, bytes) = (tag(), 501);
    let parts = bed.ask(HttpRequest::Grant { tag, bytes });
    assert_eq!(body(&parts).len(), 1000, "the last chunk had exceeded the credit");
    let bytes = u64::MAX;
    let parts = bed.ask(HttpRequest::Grant { tag, bytes });
    assert_eq!(body(&parts).len(), 6000);
    assert!(matches!(parts.last(), Some(HttpPart::End(Ok(())))));
}

#[test]
fn a_canceled_request_is_silent() {
    let mut bed = Bed::new();
    assert!(!bed.get(None, 1000).is_empty());
    let bytes = u64::MAX;
    bed.http.submit(&mut vec![HttpRequest::Grant { tag: tag(), bytes }]);
    assert!(bed.ask(HttpRequest::Cancel { tag: tag() }).is_empty());
    assert!(bed.ask(HttpRequest::Grant { tag: tag(), bytes }).is_empty());
}
