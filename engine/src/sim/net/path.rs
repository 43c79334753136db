//! Network paths between hosts.

use std::collections::BTreeSet;
use std::time::Duration;

use bevy_platform::collections::HashMap;

use super::super::NodeId;

/// The path between two hosts, the same in both directions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Path {
    /// One-way time between the access links.
    pub latency: Duration,
    /// Maximum additional latency, evenly distributed. Connections keep their order; datagrams do not.
    pub jitter: Duration,
    /// Fraction of the datagrams that are lost, from 0 to 1.
    pub loss: f64,
    /// Fraction of the datagrams that arrive twice, from 0 to 1.
    pub duplication: f64,
    /// Fraction of the datagrams that take up to four times as long, from 0 to 1.
    pub reordering: f64,
}

impl Path {
    /// A path with `latency` and no impairments.
    #[must_use]
    pub fn new(latency: Duration) -> Self {
        Self {
            latency,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplication: 0.0,
            reordering: 0.0,
        }
    }

    /// Sets the jitter.
    #[must_use]
    pub fn with_jitter(self, jitter: Duration) -> Self {
        Self { jitter, ..self }
    }

    /// Sets the fraction of lost datagrams.
    #[must_use]
    pub fn with_loss(self, loss: f64) -> Self {
        Self { loss, ..self }
    }

    /// Sets the fraction of duplicated datagrams.
    #[must_use]
    pub fn with_duplication(self, duplication: f64) -> Self {
        Self { duplication, ..self }
    }

    /// Sets the fraction of delayed datagrams.
    #[must_use]
    pub fn with_reordering(self, reordering: f64) -> Self {
        Self { reordering, ..self }
    }
}

/// All paths, and which of them are cut.
pub(super) struct Paths {
    pub(super) default: Path,
    overrides: HashMap<(NodeId, NodeId), Path>,
    partitions: Vec<(BTreeSet<NodeId>, BTreeSet<NodeId>)>,
}

impl Paths {
    pub(super) fn new(default: Path) -> Self {
        Self {
            default,
            overrides: HashMap::default(),
            partitions: Vec::new(),
        }
    }

    pub(super) fn set(&mut self, a: NodeId, b: NodeId, path: Path) {
        self.overrides.insert(ordered(a, b), path);
    }

    pub(super) fn between(&self, a: NodeId, b: NodeId) -> &Path {
        if self.overrides.is_empty() {
            return &self.default;
        }
        self.overrides.get(&ordered(a, b)).unwrap_or(&self.default)
    }

    pub(super) fn cut(&mut self, some: &[NodeId], others: &[NodeId]) {
        let set = |nodes: &[NodeId]| nodes.iter().copied().collect();
        self.partitions.push((set(some), set(others)));
    }

    pub(super) fn heal(&mut self) {
        self.partitions.clear();
    }

    pub(super) fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        let lies_between = |(some, others): &(BTreeSet<_>, BTreeSet<_>)| {
            (some.contains(&a) && others.contains(&b)) || (some.contains(&b) && others.contains(&a))
        };
        self.partitions.iter().any(lies_between)
    }
}

fn ordered(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_symmetric() {
        let mut paths = Paths::new(Path::new(Duration::from_millis(10)));
        let [a, b, c] = [0, 1, 2].map(NodeId);
        paths.set(b, a, Path::new(Duration::from_millis(70)));
        let latency = |from, to| paths.between(from, to).latency.as_millis();
        assert_eq!([latency(a, b), latency(b, a), latency(a, c)], [70, 70, 10]);
    }

    #[test]
    fn a_partition_lies_between_its_sides_only() {
        let mut paths = Paths::new(Path::new(Duration::ZERO));
        let [a, b, c, d] = [0, 1, 2, 3].map(NodeId);
        paths.cut(&[a, b], &[c]);
        assert!(paths.is_cut(a, c) && paths.is_cut(c, b));
        assert!(!paths.is_cut(a, b) && !paths.is_cut(a, d) && !paths.is_cut(c, d));
        paths.heal();
        assert!(!paths.is_cut(a, c));
    }
}
