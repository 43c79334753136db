//! Allowed dependencies between crates: protocol <- components <- engine <- systems <- app.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// For each crate, the workspace crates that it may depend on.
const ARROWS: [(&str, &[&str]); 6] = [
    ("ecs-torrent-protocol", &[]),
    ("ecs-torrent-components", &["ecs-torrent-protocol"]),
    (
        "ecs-torrent-engine",
        &["ecs-torrent-protocol", "ecs-torrent-components"],
    ),
    (
        "ecs-torrent-systems",
        &["ecs-torrent-protocol", "ecs-torrent-components", "ecs-torrent-engine"],
    ),
    (
        "ecs-torrent",
        &[
            "ecs-torrent-protocol",
            "ecs-torrent-components",
            "ecs-torrent-engine",
            "ecs-torrent-systems",
        ],
    ),
    ("third-party-plugin", &["ecs-torrent"]),
];

fn packages() -> BTreeMap<String, Package> {
    let metadata = MetadataCommand::new().exec().unwrap();
    let members = metadata.workspace_packages();
    members
        .into_iter()
        .map(|package| (package.name.to_string(), package.clone()))
        .collect()
}

fn dependencies(package: &Package) -> BTreeSet<&str> {
    let normal = package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind == DependencyKind::Normal);
    normal.map(|dependency| dependency.name.as_str()).collect()
}

#[test]
fn crates_know_only_what_is_below_them() {
    let packages = packages();
    let expected: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(packages.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected);
    for (name, allowed) in ARROWS {
        let found = dependencies(&packages[name]);
        let inside: BTreeSet<&str> = found.into_iter().filter(|name| packages.contains_key(*name)).collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        assert!(
            inside.is_subset(&allowed),
            "{name} depends on {:?}",
            inside.difference(&allowed)
        );
    }
}

#[test]
fn tokio_stays_at_the_edge_and_bevy_out_of_the_protocol() {
    for (name, package) in packages() {
        let found = dependencies(&package);
        let may_use_tokio = matches!(name.as_str(), "ecs-torrent-engine" | "ecs-torrent");
        assert!(may_use_tokio || !found.contains("tokio"), "{name} depends on tokio");
        if name == "ecs-torrent-protocol" {
            let bevy: Vec<&&str> = found.iter().filter(|name| name.starts_with("bevy")).collect();
            assert!(bevy.is_empty(), "{name} depends on {bevy:?}");
        }
        if name == "third-party-plugin" {
            assert_eq!(found, ["ecs-torrent"].into());
        }
    }
}
