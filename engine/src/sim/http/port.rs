//! The Http port over simulated servers.

use std::sync::{Arc, Mutex};

use super::super::NodeId;
use super::super::fabric::{Fabric, lock};
use super::super::hub::{Mail, open, take};
use crate::port::Backend;
use crate::ports::http::{HttpEvent, HttpRequest};

/// The Http port of a simulated engine.
pub(in super::super) struct SimHttp {
    node: NodeId,
    fabric: Arc<Mutex<Fabric>>,
    mail: Mail,
}

impl SimHttp {
    pub(in super::super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        let mail = lock(&fabric).hub.mail(node);
        Self { node, fabric, mail }
    }
}

impl Backend<HttpRequest, HttpEvent> for SimHttp {
    fn submit(&mut self, requests: &mut Vec<HttpRequest>) {
        let mut fabric = lock(&self.fabric);
        for request in requests.drain(..) {
            match request {
                HttpRequest::Get(request) => fabric.ask(self.node, request),
                HttpRequest::Grant { tag, bytes } => fabric.grant_http(self.node, tag, bytes),
                HttpRequest::Cancel { tag } => {
                    fabric.cancel_http(self.node, tag);
                    open(&self.mail).http.retain(|event| event.tag != tag);
                }
            }
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<HttpEvent>) -> bool {
        take(&mut open(&self.mail).http, max, events)
    }
}
