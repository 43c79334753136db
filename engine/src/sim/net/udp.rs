//! Datagrams, which may be lost, duplicated or delayed.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_protocol::time::Timestamp;

use super::super::NodeId;
use super::super::hub::Hub;
use super::super::keys::DatagramKey;
use super::super::queue::SimEvent;
use super::super::random::{happens, up_to};
use super::host::{Datagram, Host, Lane};
use super::network::Network;

impl Network {
    pub(super) fn send_datagram(&mut self, hub: &mut Hub, node: NodeId, to: SocketAddr, data: Bytes) {
        let host = &mut self.hosts[node.0];
        let Some(from) = host.address_for(to.ip()) else { return };
        let sender = node;
        host.datagrams_out.push(Datagram {
            from,
            sender,
            to,
            data,
            is_multicast: false,
        });
        if !host.datagrams_out.is_listed {
            host.datagrams_out.is_listed = true;
            host.up.turns.push_back(Lane::Datagrams);
        }
        self.pump_up(hub, node);
    }

    /// Sends a datagram to the hosts of the sender's local network that have joined a group.
    pub(super) fn send_multicast(&mut self, hub: &mut Hub, node: NodeId, group: SocketAddr, data: &Bytes) {
        let sender = &self.hosts[node.0];
        let (Some(network), Some(from)) = (sender.local_network, sender.address_for(group.ip())) else {
            return;
        };
        let is_member = |host: &Host| host.local_network == Some(network) && host.groups.contains(&group);
        let members = self.hosts.iter().enumerate();
        let members = members.filter(|(number, host)| *number != node.0 && is_member(host));
        let members: Vec<_> = members
            .filter_map(|(number, host)| Some((NodeId(number), host.address_for(group.ip())?)))
            .collect();
        for (there, to) in members {
            let datagram = Datagram {
                from,
                sender: node,
                to,
                data: data.clone(),
                is_multicast: true,
            };
            self.put_datagram_on_the_way(hub, hub.now, there, datagram);
        }
    }

    pub(super) fn send_next_datagram(&mut self, hub: &mut Hub, node: NodeId) {
        let out = &mut self.hosts[node.0].datagrams_out;
        let datagram = out.pop();
        out.is_listed = !out.waiting.is_empty();
        if out.is_listed {
            self.hosts[node.0].up.turns.push_back(Lane::Datagrams);
        }
        let Some(datagram) = datagram else { return };
        let leaves = self.occupy_uplink(hub.now, node, datagram.data.len());
        let Some(&there) = self.listeners.get(&datagram.to) else {
            return;
        };
        let path = *self.paths.between(node, there);
        let is_lost = happens(&mut self.hosts[node.0].datagram_luck, path.loss);
        let is_doubled = happens(&mut self.hosts[node.0].datagram_luck, path.duplication);
        if is_doubled {
            self.put_datagram_on_the_way(hub, leaves, there, datagram.clone());
        }
        if !is_lost {
            self.put_datagram_on_the_way(hub, leaves, there, datagram);
        }
    }

    fn put_datagram_on_the_way(&mut self, hub: &mut Hub, leaves: Timestamp, there: NodeId, datagram: Datagram) {
        let node = datagram.sender;
        let path = *self.paths.between(node, there);
        let mut latency = self.draw_latency(node, there);
        let luck = &mut self.hosts[node.0].datagram_luck;
        if happens(luck, path.reordering) {
            latency += Duration::from_nanos(up_to(luck, 3 * path.latency.as_nanos() as u64));
        }
        let key = self.datagrams.insert(datagram);
        hub.queue.plan(leaves + latency, SimEvent::Datagram(key));
    }

    /// Delivers a datagram to the receiver's access link, if the path is open.
    pub(super) fn datagram_arrives(&mut self, hub: &mut Hub, key: DatagramKey) {
        let Some(datagram) = self.datagrams.remove(key) else {
            return;
        };
        let Some(&node) = self.listeners.get(&datagram.to) else {
            return;
        };
        if !self.may_pass(datagram.sender, node) {
            return;
        }
        let host = &mut self.hosts[node.0];
        host.datagrams_in.push(datagram);
        if !host.datagrams_in.is_listed {
            host.datagrams_in.is_listed = true;
            host.down.turns.push_back(Lane::Datagrams);
        }
        self.pump_down(hub, node);
    }

    pub(super) fn next_received_datagram(&mut self, node: NodeId) -> Option<Datagram> {
        let host = &mut self.hosts[node.0];
        let datagram = host.datagrams_in.pop();
        host.datagrams_in.is_listed = !host.datagrams_in.waiting.is_empty();
        if host.datagrams_in.is_listed {
            host.down.turns.push_back(Lane::Datagrams);
        }
        datagram
    }

    pub(super) fn receive_datagram(&mut self, hub: &mut Hub, node: NodeId, datagram: Datagram) {
        let Datagram {
            from,
            to,
            data,
            sender,
            is_multicast,
        } = datagram;
        if self.hosts[node.0].power != super::host::Power::On {
            return;
        }
        if is_multicast {
            return hub.deliver_multicast(node, from, to, &data);
        }
        let Some(host) = self.udp_hosts.get_mut(&to) else {
            return hub.deliver_datagram(node, from, to, &data);
        };
        if let Some(trace) = &mut hub.trace {
            trace.head(hub.now, node, 7);
            trace.bytes(&data);
        }
        for (wait, reply) in host(hub.now, from, &data) {
            let answer = Datagram {
                from: to,
                sender: node,
                to: from,
                data: reply.into(),
                is_multicast: false,
            };
            self.answer_datagram(hub, wait, sender, answer);
        }
    }

    /// Sends an answer without using the host's uplink: servers such as trackers do not move payload.
    fn answer_datagram(&mut self, hub: &mut Hub, wait: Duration, there: NodeId, answer: Datagram) {
        let path = *self.paths.between(answer.sender, there);
        let luck = &mut self.hosts[answer.sender.0].datagram_luck;
        let copies = match (happens(luck, path.loss), happens(luck, path.duplication)) {
            (true, false) => 0,
            (false, true) => 2,
            _ => 1,
        };
        for _ in 0..copies {
            self.put_datagram_on_the_way(hub, hub.now + wait, there, answer.clone());
        }
    }
}
