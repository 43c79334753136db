//! Backend work that takes time, and is lost with the engine that requested it.

use std::time::Duration;

use super::super::NodeId;
use super::super::disk::DiskJob;
use super::super::keys::JobKey;
use super::super::queue::SimEvent;
use super::Fabric;
use crate::ports::hash::HashEvent;
use crate::ports::http::{HttpEvent, HttpGet};
use crate::ports::net::NetEvent;
use crate::ports::state::StateRequest;

/// A job of a node.
pub(super) struct Job {
    pub(super) node: NodeId,
    /// The life of the node in which the job was requested.
    life: u32,
    pub(super) work: Work,
}

/// The work of a job.
pub(in super::super) enum Work {
    Disk(DiskJob),
    State(StateRequest),
    /// A digest that is already computed.
    Hash(HashEvent),
    /// A request that reaches its server.
    Http(HttpGet),
    /// A part of the answer that arrives.
    HttpPart(HttpEvent),
    /// The result of a name lookup.
    Name(NetEvent),
}

impl Fabric {
    /// Starts work that is done after `time`.
    pub(in super::super) fn begin(&mut self, node: NodeId, time: Duration, work: Work) {
        let life = self.machines[node.0].life;
        let key = self.jobs.insert(Job { node, life, work });
        self.hub.plan(time, SimEvent::Job(key));
    }

    pub(super) fn finish(&mut self, key: JobKey) {
        let Some(Job { node, life, work }) = self.jobs.remove(key) else {
            return;
        };
        let machine = &mut self.machines[node.0];
        if machine.life != life {
            return;
        }
        match work {
            Work::Disk(job) => {
                let event = machine.disk.carry_out(&self.hub, job);
                self.hub.deliver_disk(node, event);
            }
            Work::State(request) => {
                let event = machine.state.carry_out(self.hub.now, request);
                self.hub.deliver_state(node, event);
            }
            Work::Hash(event) => self.hub.deliver_hash(node, event),
            Work::Http(request) => self.request_from(node, &request),
            Work::HttpPart(event) => self.receive_http(node, event),
            Work::Name(event) => self.hub.deliver_net(node, event),
        }
    }

    /// Removes and returns the unfinished jobs of a node.
    pub(super) fn take_jobs(&mut self, node: NodeId) -> Vec<Work> {
        self.http_flows.retain(|(other, _), _| *other != node);
        let theirs: Vec<JobKey> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.node == node)
            .map(|(key, _)| key)
            .collect();
        theirs
            .into_iter()
            .filter_map(|key| self.jobs.remove(key))
            .map(|job| job.work)
            .collect()
    }
}
