//! Metrics for Prometheus, in the OpenMetrics text format.

use std::fmt;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bevy_ecs::world::World;
use ecs_torrent_components::dht::DhtStats;
use ecs_torrent_components::lifecycle::TorrentState;
use ecs_torrent_components::stats::TorrentStats;
use ecs_torrent_components::tick_times::TickTimes;
use ecs_torrent_components::torrent::EngineCounters;
use ecs_torrent_engine::ports::net::{DatagramCounts, DatagramKind};
use ecs_torrent_engine::ports::{DiskPort, HashPort, HttpPort, NetPort, StatePort};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::Shared;
use super::answers::Refusal;
use super::mirror::Totals;
use super::requests::NoParameters;
use crate::Error;

/// The content type of the OpenMetrics text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Prefix of every metric.
const PREFIX: &str = "ecs_torrent";

/// Shares of the ticks for which a duration is reported.
const QUANTILES: [(&str, f64); 3] = [("0.5", 0.5), ("0.99", 0.99), ("1", 1.0)];

/// Returns the metrics.
pub(super) async fn metrics(State(shared): State<Shared>, _: NoParameters) -> Result<Response, Refusal> {
    shared.mirror.refresh(&shared.torrents).await?;
    let engine = shared.torrents.with_world(EngineState::read).await?;
    let dht = match shared.torrents.dht().stats().await {
        Ok(dht) => Some(dht),
        // The engine was built without a DHT node, or it is disabled.
        Err(Error::UnsupportedCommand(_) | Error::Dht(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let failed = |error: String| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error);
    let text = tokio::task::spawn_blocking(move || {
        let snapshot = {
            let listing = shared.mirror.listing();
            let torrents = listing.rows().filter(|_| shared.metrics_per_torrent);
            let mut torrents: Vec<_> = torrents.map(|row| row.stats.clone()).collect();
            torrents.sort_unstable_by_key(|stats| stats.info_hash);
            Snapshot {
                totals: listing.totals().clone(),
                torrents,
                engine,
                dht,
            }
        };
        encode(snapshot)
    });
    let text = text.await.map_err(|error| failed(error.to_string()))?;
    let text = text.map_err(|error| failed(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response())
}

/// Values that only the engine's world has.
#[derive(Debug)]
struct EngineState {
    counters: EngineCounters,
    datagrams: DatagramCounts,
    /// Events that no feature takes, by port.
    unclaimed: [(&'static str, u64); 5],
    tick_count: u64,
    tick_seconds: [f64; QUANTILES.len()],
}

impl EngineState {
    fn read(world: &mut World) -> Self {
        let ticks = world.resource::<TickTimes>();
        Self {
            counters: world.get_resource().copied().unwrap_or_default(),
            datagrams: world.get_resource().copied().unwrap_or_default(),
            unclaimed: [
                ("net", world.resource::<NetPort>().unclaimed_count()),
                ("disk", world.resource::<DiskPort>().unclaimed_count()),
                ("hash", world.resource::<HashPort>().unclaimed_count()),
                ("http", world.resource::<HttpPort>().unclaimed_count()),
                ("state", world.resource::<StatePort>().unclaimed_count()),
            ],
            tick_count: ticks.count(),
            tick_seconds: QUANTILES.map(|(_, share)| ticks.quantile(share).as_secs_f64()),
        }
    }
}

/// Everything that is reported, at one moment.
#[derive(Debug)]
struct Snapshot {
    totals: Totals,
    /// The torrents that are reported one by one.
    torrents: Vec<Arc<TorrentStats>>,
    engine: EngineState,
    dht: Option<DhtStats>,
}

fn encode(snapshot: Snapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut metrics = Metrics(encoder);
        self.encode_engine(&mut metrics)?;
        self.encode_totals(&mut metrics)?;
        self.encode_dht(&mut metrics)?;
        self.encode_torrents(&mut metrics)
    }
}

/// Writes metrics.
struct Metrics<'e>(DescriptorEncoder<'e>);

/// Name, description and unit of a metric.
type Head = (&'static str, &'static str, Option<Unit>);

impl Metrics<'_> {
    fn counter(&mut self, head: Head, value: u64) -> Result<(), fmt::Error> {
        let (name, help, unit) = head;
        let encoder = self
            .0
            .encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        ConstCounter::new(value).encode(encoder)
    }

    fn gauge(&mut self, head: Head, value: u64) -> Result<(), fmt::Error> {
        let (name, help, unit) = head;
        let encoder = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        ConstGauge::new(value).encode(encoder)
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        (name, help, unit): Head,
        values: impl Iterator<Item = (L, f64)>,
    ) -> Result<(), fmt::Error> {
        let mut encoder = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in values {
            ConstGauge::new(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        (name, help, unit): Head,
        values: impl Iterator<Item = (L, u64)>,
    ) -> Result<(), fmt::Error> {
        let mut encoder = self
            .0
            .encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in values {
            ConstCounter::new(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Snapshot {
    fn encode_engine(&self, metrics: &mut Metrics<'_>) -> Result<(), fmt::Error> {
        let build = ([("version", env!("CARGO_PKG_VERSION"))], 1.0);
        metrics.gauges(("build_info", "The program's version", None), [build].into_iter())?;
        let bytes = Some(Unit::Bytes);
        let EngineCounters {
            downloaded,
            uploaded,
            corrupt,
            wasted,
        } = self.engine.counters;
        let help = "Payload received since the engine started";
        metrics.counter(("downloaded", help, bytes.clone()), downloaded)?;
        let help = "Payload sent since the engine started";
        metrics.counter(("uploaded", help, bytes.clone()), uploaded)?;
        let help = "Payload received in pieces that failed their hash, since the engine started";
        metrics.counter(("corrupt", help, bytes.clone()), corrupt)?;
        let help = "Other useless payload received since the engine started";
        metrics.counter(("wasted", help, bytes), wasted)?;
        metrics.counter(
            ("ticks", "Ticks since the engine started", None),
            self.engine.tick_count,
        )?;
        let durations = QUANTILES.iter().zip(self.engine.tick_seconds);
        let durations = durations.map(|((name, _), seconds)| ([("quantile", *name)], seconds));
        let help = "Duration that a share of the ticks did not exceed";
        metrics.gauges(("tick_duration", help, Some(Unit::Seconds)), durations)?;
        let DatagramCounts { dropped, unknown } = self.engine.datagrams;
        let kinds = DatagramKind::ALL.iter().zip(dropped);
        let kinds = kinds.map(|(kind, count)| ([("kind", kind.name())], count));
        let help = "UDP datagrams that were dropped because too many were waiting or no feature takes them";
        metrics.counters(
            ("datagrams_dropped", help, None),
            kinds.chain([([("kind", "unknown")], unknown)]),
        )?;
        let ports = self.engine.unclaimed.iter();
        let ports = ports.map(|(port, count)| ([("port", *port)], *count));
        let help = "Events of ports that were dropped because no feature takes them";
        metrics.counters(("events_unclaimed", help, None), ports)
    }

    fn encode_totals(&self, metrics: &mut Metrics<'_>) -> Result<(), fmt::Error> {
        // States without torrents are reported too: a metric that comes and goes cannot be used in an alert.
        let mut states: Vec<&str> = TorrentState::ALL.map(|state| plain(state.name())).to_vec();
        states.dedup();
        let count = |state: &str| {
            let counted = self.totals.states.iter().filter(|(name, _)| plain(name) == state);
            counted.map(|(_, count)| *count).sum::<u64>() as f64
        };
        let states = states.into_iter().map(|state| ([("state", state)], count(state)));
        metrics.gauges(("torrents", "Listed torrents by state", None), states)?;
        let totals = &self.totals;
        metrics.gauge(("peers", "Connected peers", None), totals.peer_count)?;
        let bytes = Some(Unit::Bytes);
        metrics.gauge(("size", "Size of all files", bytes.clone()), totals.size)?;
        let help = "Data that is verified and on the disk";
        metrics.gauge(("completed", help, bytes.clone()), totals.completed)?;
        metrics.gauge(("left", "Wanted data that is missing", bytes), totals.left)
    }

    fn encode_dht(&self, metrics: &mut Metrics<'_>) -> Result<(), fmt::Error> {
        let Some(dht) = &self.dht else {
            return Ok(());
        };
        let families = [("ipv4", &dht.ipv4), ("ipv6", &dht.ipv6)];
        let nodes = families.into_iter().filter_map(|(family, network)| {
            let good_nodes = network.as_ref()?.good_nodes;
            Some(([("family", family)], good_nodes as f64))
        });
        let help = "Nodes of the DHT routing table that have answered recently";
        metrics.gauges(("dht_good_nodes", help, None), nodes)?;
        let help = "Torrents whose peers the DHT node stores for others";
        metrics.gauge(("dht_stored_torrents", help, None), dht.stored_torrents as u64)?;
        let counters = &dht.counters;
        let help = "Queries that the DHT node received";
        metrics.counter(("dht_queries_received", help, None), counters.queries_received)?;
        let help = "Queries that the DHT node sent";
        metrics.counter(("dht_queries_sent", help, None), counters.queries_sent)
    }

    fn encode_torrents(&self, metrics: &mut Metrics<'_>) -> Result<(), fmt::Error> {
        if self.torrents.is_empty() {
            return Ok(());
        }
        let labels = |stats: &TorrentStats| [("info_hash", stats.info_hash.to_string()), ("name", stats.name.clone())];
        let bytes = || Some(Unit::Bytes);
        let gauges: [(Head, fn(&TorrentStats) -> f64); 4] = [
            (("torrent_size", "Size of the torrent's files", bytes()), |stats| {
                stats.size.unwrap_or_default() as f64
            }),
            (("torrent_left", "Wanted data that is missing", bytes()), |stats| {
                stats.left.unwrap_or_default() as f64
            }),
            (("torrent_peers", "Connected peers", None), |stats| {
                stats.peer_count.into()
            }),
            (("torrent_failed", "Whether the torrent has an error", None), |stats| {
                f64::from(u8::from(stats.error.is_some()))
            }),
        ];
        for (head, value) in gauges {
            metrics.gauges(head, self.torrents.iter().map(|stats| (labels(stats), value(stats))))?;
        }
        let counters: [(Head, fn(&TorrentStats) -> u64); 2] = [
            (
                (
                    "torrent_downloaded",
                    "Payload received since it was first added",
                    bytes(),
                ),
                |stats| stats.downloaded,
            ),
            (
                ("torrent_uploaded", "Payload sent since it was first added", bytes()),
                |stats| stats.uploaded,
            ),
        ];
        for (head, value) in counters {
            metrics.counters(head, self.torrents.iter().map(|stats| (labels(stats), value(stats))))?;
        }
        Ok(())
    }
}

/// Returns the name of a state without the phase of a stop.
fn plain(state: &str) -> &str {
    state.split('/').next().unwrap_or(state)
}

#[cfg(test)]
mod tests {
    use bevy_ecs::entity::Entity;
    use ecs_torrent_engine::port::{Backend, JobTag, Port, PortEvent};
    use ecs_torrent_engine::ports::state::{StateDone, StateEvent};
    use ecs_torrent_engine::purpose;

    use super::*;

    /// A backend that only delivers these events.
    struct Delivery<E>(Vec<E>);

    impl<R, E: PortEvent> Backend<R, E> for Delivery<E> {
        fn submit(&mut self, _: &mut Vec<R>) {}

        fn poll(&mut self, _: usize, events: &mut Vec<E>) -> bool {
            events.append(&mut self.0);
            false
        }
    }

    fn port<R: Send + Sync + 'static, E: PortEvent>(events: Vec<E>) -> Port<R, E> {
        let mut port = Port::new(Box::new(Delivery(events)));
        port.drain(usize::MAX);
        port
    }

    #[test]
    fn events_that_no_feature_takes_are_counted_by_port() {
        let mut world = World::new();
        world.init_resource::<TickTimes>();
        let tag = JobTag::new(purpose!("nothing"), Entity::PLACEHOLDER);
        let outcome = Ok(StateDone::Saved);
        let state: StatePort = port(vec![StateEvent { tag, outcome }]);
        let (net, disk): (NetPort, DiskPort) = (port(Vec::new()), port(Vec::new()));
        let (hash, http): (HashPort, HttpPort) = (port(Vec::new()), port(Vec::new()));
        world.insert_resource(state);
        world.insert_resource(net);
        world.insert_resource(disk);
        world.insert_resource(hash);
        world.insert_resource(http);
        let expected = [("net", 0), ("disk", 0), ("hash", 0), ("http", 0), ("state", 1)];
        assert_eq!(EngineState::read(&mut world).unclaimed, expected);
    }
}
