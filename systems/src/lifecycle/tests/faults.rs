//! Tests of faults, retries and blocks.

use super::*;

/// Reports a fault. Returns the resulting facts.
fn fail(bed: &mut Bed, remedy: Remedy) -> (bool, Option<String>) {
    let fault = FailTorrent {
        torrent: bed.torrent,
        reason: "a new fault".into(),
        remedy,
    };
    bed.run_after(fault, failing::fail_torrents);
    let blocked = bed.get::<Blocked>(bed.torrent).0.as_deref().map(str::to_owned);
    (bed.get::<Fault>(bed.torrent).0.is_some(), blocked)
}

#[test]
fn a_torrent_that_waits_for_its_volume_takes_no_other_wait() {
    let blocked = |readiness| {
        let lifecycle = Lifecycle::Blocked {
            resource: "a volume".into(),
        };
        let mut bed = bed(lifecycle, None);
        bed.world
            .entity_mut(bed.torrent)
            .insert((Blocked(Some("a volume".into())), readiness));
        bed
    };
    let waits = |reason: &str| (false, Some(reason.to_owned()));
    assert_eq!(fail(&mut blocked(Readiness::Unopened), Remedy::Wait), waits("a volume"));
    assert_eq!(fail(&mut blocked(Readiness::Unopened), Remedy::None), (true, None));
    // Its files are open, and the disk was full.
    let mut full = blocked(Readiness::Ready);
    assert_eq!(fail(&mut full, Remedy::Wait), waits("a new fault"));
    assert_eq!(*full.get::<Readiness>(full.torrent), Readiness::Unopened);
}

#[test]
fn a_retry_without_a_fault_opens_nothing() {
    for (has_fault, request_count) in [(true, 1), (false, 0)] {
        let mut bed = bed(Lifecycle::Downloading, None);
        fail(&mut bed, Remedy::Restart);
        *bed.get_mut::<Lifecycle>(bed.torrent) = failed(Some(NOW));
        if !has_fault {
            *bed.get_mut::<Fault>(bed.torrent) = Fault(None);
        }
        bed.world
            .resource_mut::<Clock>()
            .advance_to(NOW + Duration::from_secs(60));
        bed.run(failing::retry_torrents);
        assert_eq!(bed.world.resource::<StatePort>().outgoing().len(), request_count);
    }
}

#[test]
fn a_block_is_published_once() {
    let mut bed = bed(Lifecycle::Downloading, None);
    let blocked = |resource: &str| Lifecycle::Blocked {
        resource: resource.into(),
    };
    let states = [
        Lifecycle::Downloading,
        blocked("space"),
        blocked("a volume"),
        Lifecycle::Downloading,
    ];
    let mut state = SystemState::<deriving::Publisher>::new(&mut bed.world);
    for pair in states.windows(2) {
        let mut publisher = state.get_mut(&mut bed.world).unwrap();
        publisher.publish(bed.torrent, pair[0].clone(), pair[1].clone());
        state.apply(&mut bed.world);
    }
    let count = bed.world.resource_mut::<Messages<TorrentBlocked>>().drain().count();
    assert_eq!(count, 1);
    assert_eq!(
        bed.world.resource_mut::<Messages<LifecycleChanged>>().drain().count(),
        3
    );
}
