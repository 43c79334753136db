//! The Http port over simulated servers.

use std::sync::{Arc, Mutex};

use super::super::NodeId;
use super::super::fabric::Fabric;
use super::super::hub::take;
use super::super::place::Place;
use crate::port::Backend;
use crate::ports::http::{HttpEvent, HttpRequest};

/// The Http port of a simulated engine.
pub(in super::super) struct SimHttp(Place);

impl SimHttp {
    pub(in super::super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        Self(Place::new(node, fabric))
    }
}

impl Backend<HttpRequest, HttpEvent> for SimHttp {
    fn submit(&mut self, requests: &mut Vec<HttpRequest>) {
        let mut fabric = self.0.fabric();
        for request in requests.drain(..) {
            match request {
                HttpRequest::Get(request) => fabric.ask(self.0.node, request),
                HttpRequest::Grant { tag, bytes } => fabric.grant_http(self.0.node, tag, bytes),
                HttpRequest::Cancel { tag } => {
                    fabric.cancel_http(self.0.node, tag);
                    self.0.inbox().http.retain(|event| event.tag != tag);
                }
            }
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<HttpEvent>) -> bool {
        take(&mut self.0.inbox().http, max, events)
    }
}
