//! Metrics for Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::bed::{Daemon, torrent, wait_until};

/// A parsed exposition: the type of each metric family, and the value of each sample.
#[derive(Default)]
struct Exposition {
    types: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

/// Parses the OpenMetrics text format strictly: every family is described before its samples, its samples stand
/// together, their names fit its type, and no sample is repeated.
fn parse(text: &str) -> Exposition {
    let mut exposition = Exposition::default();
    let mut family = String::new();
    let mut described = BTreeSet::new();
    let body = text.strip_suffix("# EOF\n").expect("the last line");
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let [keyword, name, value] = [0; 3].map(|_| words.next().unwrap_or_default());
            assert!(
                ["HELP", "TYPE", "UNIT"].contains(&keyword) && !value.is_empty(),
                "{line}"
            );
            if name != family {
                assert!(described.insert(name.to_owned()), "{name} comes twice");
                name.clone_into(&mut family);
            }
            match keyword {
                "TYPE" => assert!(
                    exposition.types.insert(name.to_owned(), value.to_owned()).is_none(),
                    "{line}"
                ),
                "UNIT" => assert!(name.ends_with(&format!("_{value}")), "{line}"),
                _ => {}
            }
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect("a value");
        let name = sample.split('{').next().unwrap();
        assert!(
            name.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'),
            "{line}"
        );
        let expected = match exposition.types[&family].as_str() {
            "counter" => format!("{family}_total"),
            "gauge" => family.clone(),
            other => panic!("{family}: {other}"),
        };
        assert_eq!(name, expected, "{line}");
        if let Some(labels) = sample.strip_prefix(name).filter(|labels| !labels.is_empty()) {
            check_labels(labels);
        }
        let value: f64 = value.parse().unwrap();
        assert!(value.is_sign_positive(), "{line}");
        assert!(
            exposition.samples.insert(sample.to_owned(), value).is_none(),
            "{sample} comes twice"
        );
    }
    exposition
}

/// Checks that labels are quoted and escaped.
fn check_labels(labels: &str) {
    let inner = labels.strip_prefix('{').and_then(|labels| labels.strip_suffix('}'));
    let mut rest = inner.unwrap_or_else(|| panic!("{labels}"));
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").unwrap();
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{labels}");
        let mut escaped = false;
        let end = value.char_indices().find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        rest = &value[end.unwrap().0 + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[test]
fn metrics_have_the_format_of_prometheus() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    // A name that has to be escaped.
    let (hash, bytes) = torrent(folder, "a \"b", 1, &[]);
    fs::create_dir_all(folder.join("seeder/downloads")).unwrap();
    fs::copy(folder.join("a \"b"), folder.join("seeder/downloads/a \"b")).unwrap();
    fs::write(folder.join("seeder/config.ron"), "(api: (metrics_per_torrent: true))").unwrap();
    let seeder = Daemon::start_with(&folder.join("seeder"), &["--config", "config.ron"]);
    assert_eq!(seeder.post("/api/v1/torrents", &bytes).status, 201);
    let daemon = Daemon::start(folder);
    daemon
        .ask("GET", "/metrics", &[], b"")
        .refused(401, Some("Authorization"));
    daemon.get("/metrics?x=1").refused(400, Some("query"));
    let path = format!("/api/v1/torrents?peer={}", seeder.peers);
    assert_eq!(daemon.post(&path, &bytes).status, 201);
    let seeding = "ecs_torrent_torrents{state=\"seeding\"}";
    wait_until("the content", || {
        parse(&daemon.get("/metrics").body).samples[seeding] == 1.0
    });

    let answer = daemon.get("/metrics");
    assert!(
        answer
            .head
            .contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{answer:?}"
    );
    let metrics = parse(&answer.body);
    let expected = [
        ("ecs_torrent_downloaded_bytes_total", 100_000.0),
        ("ecs_torrent_uploaded_bytes_total", 0.0),
        ("ecs_torrent_corrupt_bytes_total", 0.0),
        ("ecs_torrent_size_bytes", 100_000.0),
        ("ecs_torrent_completed_bytes", 100_000.0),
        ("ecs_torrent_left_bytes", 0.0),
        ("ecs_torrent_torrents{state=\"failed\"}", 0.0),
        ("ecs_torrent_events_unclaimed_total{port=\"state\"}", 0.0),
    ];
    for (sample, value) in expected {
        assert_eq!(metrics.samples[sample], value, "{sample}");
    }
    assert!(metrics.samples["ecs_torrent_ticks_total"] > 0.0);
    assert!(
        !answer.body.contains(&hash),
        "torrents are reported only if the settings say so"
    );
    let of_seeder = parse(&seeder.get("/metrics").body);
    let name = format!("ecs_torrent_torrent_uploaded_bytes_total{{info_hash=\"{hash}\",name=\"a \\\"b\"}}");
    assert_eq!(of_seeder.samples[&name], 100_000.0);
    // The bytes that a removed torrent transferred still count.
    daemon.delete(&format!("/api/v1/torrents/{hash}"));
    let metrics = parse(&daemon.get("/metrics").body);
    assert_eq!(metrics.samples["ecs_torrent_downloaded_bytes_total"], 100_000.0);
    assert_eq!(metrics.samples["ecs_torrent_size_bytes"], 0.0);
}

/// The dashboard queries metrics that exist.
#[test]
fn the_dashboard_fits_the_metrics() {
    let temporary = tempfile::tempdir().unwrap();
    let metrics = parse(&Daemon::start(temporary.path()).get("/metrics").body);
    let known: BTreeSet<&str> = metrics
        .samples
        .keys()
        .map(|sample| sample.split('{').next().unwrap())
        .collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/grafana-dashboard.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 5);
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let names = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let ours: Vec<&str> = names.filter(|name| name.starts_with("ecs_torrent_")).collect();
            assert!(!ours.is_empty(), "{expression}");
            // Without a network, the node of the DHT may be off.
            let unknown = ours
                .iter()
                .find(|name| !known.contains(**name) && !name.contains("_dht_"));
            assert_eq!(unknown, None, "{expression}");
        }
    }
}
