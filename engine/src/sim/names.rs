//! Host names and the outcome of looking them up.

mod control;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub use self::control::NameControl;

/// State of name resolution, for all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameService {
    /// Names resolve according to the table.
    #[default]
    Up,
    /// Every name is unknown; literal addresses still resolve to themselves.
    Failing,
    /// Lookups get no answer and fail after 20 s.
    Silent,
}

/// The table of names.
#[derive(Default)]
pub(super) struct Names {
    table: BTreeMap<String, Vec<IpAddr>>,
    service: NameService,
}

/// Time that a name lookup takes.
const LOOKUP_TIME: Duration = Duration::from_millis(20);

/// Time after which a lookup without an answer ends, as with the real backend.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(20);

impl Names {
    /// Result of looking a name up, and the time that it takes.
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
