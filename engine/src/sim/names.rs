//! Names of hosts, and what becomes of looking them up.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::NodeId;
use super::fabric::{Fabric, lock};
use super::jobs::Work;
use crate::port::JobTag;
use crate::ports::net::NetEvent;

/// How names are looked up, over all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameService {
    /// As the table says.
    #[default]
    Up,
    /// Every name is unknown; addresses are still their own names.
    Failing,
    /// No name is answered for, until the looking up ends after 20 s.
    Silent,
}

/// The table.
#[derive(Default)]
pub(super) struct Names {
    table: BTreeMap<String, Vec<IpAddr>>,
    service: NameService,
}

/// Time that looking up a name takes.
const LOOKUP_TIME: Duration = Duration::from_millis(20);

/// Time after which looking up a name ends without an answer, as with the real backend.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(20);

impl Names {
    /// What a name is looked up as, and how long that takes.
    pub(super) fn look_up(&self, name: &str) -> (Duration, Result<Vec<IpAddr>, Arc<str>>) {
        let name = name.trim_matches(['[', ']']);
        if let Ok(ip) = name.parse::<IpAddr>() {
            return (Duration::ZERO, Ok(vec![ip]));
        }
        match (self.service, self.table.get(&name.to_ascii_lowercase())) {
            (NameService::Silent, _) => (LOOKUP_TIMEOUT, Err("name lookup timed out".into())),
            (NameService::Up, Some(ips)) => (LOOKUP_TIME, Ok(ips.clone())),
            _ => (LOOKUP_TIME, Err("Name or service not known".into())),
        }
    }
}

/// A hand on the table of names.
pub struct NameControl<'s> {
    pub(super) fabric: &'s Mutex<Fabric>,
}

impl NameControl<'_> {
    /// Gives a name addresses, in the place of those that it has.
    pub fn set(&self, name: &str, ips: impl IntoIterator<Item = IpAddr>) {
        let ips = ips.into_iter().collect();
        lock(self.fabric).names.table.insert(name.to_ascii_lowercase(), ips);
    }

    /// Takes a name out of the table.
    pub fn remove(&self, name: &str) {
        lock(self.fabric).names.table.remove(&name.to_ascii_lowercase());
    }

    /// Sets what becomes of looking names up, from now on.
    pub fn set_service(&self, service: NameService) {
        lock(self.fabric).names.service = service;
    }
}

impl Fabric {
    pub(super) fn resolve(&mut self, node: NodeId, tag: JobTag, host: &str, port: u16) {
        let (time, found) = self.names.look_up(host);
        let result = found.map(|ips| ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect());
        self.begin(node, time, Work::Name(NetEvent::Resolved { tag, result }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_as_the_service_is() {
        let mut names = Names::default();
        let ip: IpAddr = [10, 0, 0, 1].into();
        names.table.insert("tracker".into(), vec![ip]);
        assert_eq!(names.look_up("Tracker").1, Ok(vec![ip]));
        assert!(names.look_up("nobody").1.is_err());
        names.service = NameService::Silent;
        assert_eq!(names.look_up("tracker").0, Duration::from_secs(20));
        assert_eq!(
            names.look_up("[::1]"),
            (Duration::ZERO, Ok(vec!["::1".parse().unwrap()]))
        );
    }
}
