use std::net::Ipv4Addr;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const OWN: NodeId = NodeId([0; 20]);

fn at(minutes: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(minutes * 60)
}

/// The address of host `n`, each in a network of its own, and none whose node ids must fit it.
fn address(n: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from_bits(0x0a00_0000 + n).into(), 6881)
}

fn public(n: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from_bits(0x1400_0000 + n).into(), 6881)
}

/// An id that shares `bits` bits with ours.
fn id(bits: usize, n: u8) -> NodeId {
    let mut id = [0; 20];
    id[bits / 8] = 0x80 >> (bits % 8);
    id[19] |= n;
    NodeId(id)
}

fn filled(bits: usize, count: u8) -> Table {
    let mut table = Table::new(OWN, at(0));
    for n in 1..=count {
        table.record_reply(id(bits, n), address((bits as u32) << 8 | u32::from(n)), at(0));
    }
    table
}

#[test]
fn only_the_bucket_of_our_own_id_is_split() {
    let mut table = filled(0, 30);
    // The bucket that does not cover our id keeps eight, and eight wait.
    let stats = table.stats(at(0));
    assert_eq!((stats.nodes, stats.replacements), (8, 8));
    for bits in 1..60 {
        for n in 1..=20 {
            table.record_reply(id(bits, n), address((bits as u32) << 8 | u32::from(n)), at(0));
        }
    }
    let stats = table.stats(at(0));
    assert_eq!(stats.buckets, MAX_BUCKETS);
    assert_eq!((stats.nodes, stats.good), (8 * MAX_BUCKETS, 8 * MAX_BUCKETS));
    assert!(!table.record_reply(OWN, address(9999), at(0)), "our own id");
}

/// BEP 5: good for 15 minutes after an answer or a query, then questionable, bad after two failures.
#[test]
fn nodes_age() {
    let mut table = filled(3, 1);
    let node = address(3 << 8 | 1);
    let quality = |table: &Table, now| table.contacts().next().unwrap().quality(now);
    assert_eq!(quality(&table, at(15)), Quality::Good);
    assert_eq!(quality(&table, at(16)), Quality::Questionable);
    assert!(!table.record_query(id(3, 1), node, at(16)));
    assert_eq!(quality(&table, at(31)), Quality::Good);
    table.record_failure(node, at(31));
    assert_eq!(quality(&table, at(31)), Quality::Questionable);
    table.record_failure(node, at(31));
    assert_eq!(quality(&table, at(31)), Quality::Bad);
    assert!(table.closest(OWN, 8, at(31)).is_empty());
    // An answer makes it good again, since nobody needed its place.
    assert!(table.record_reply(id(3, 1), node, at(32)));
    assert_eq!(quality(&table, at(32)), Quality::Good);
    table.evict(node);
    assert!(table.is_empty());
}

#[test]
fn a_waiting_node_takes_the_place_of_a_bad_one() {
    let mut table = filled(0, 10);
    let place = |table: &Table, n| table.contacts().any(|contact| contact.address == address(n));
    assert!(place(&table, 1) && !place(&table, 9) && !place(&table, 10));
    table.record_failure(address(1), at(0));
    assert!(place(&table, 1));
    table.record_failure(address(1), at(0));
    assert!(!place(&table, 1) && place(&table, 10), "the newest one");
    assert_eq!(table.stats(at(0)).replacements, 1);
    // A waiting node that fails is forgotten.
    table.record_failure(address(9), at(0));
    assert_eq!(table.stats(at(0)).replacements, 0);
}

/// A query makes a node known, and only its answer brings it in.
#[test]
fn queries_alone_bring_nobody_in() {
    let mut table = Table::new(OWN, at(0));
    assert!(table.record_query(id(0, 1), address(1), at(0)));
    assert!(table.is_empty());
    table.record_reply(id(0, 1), address(1), at(0));
    assert!(!table.record_query(id(0, 1), address(1), at(0)) && !table.is_empty());
    assert!(table.knows(address(1)) && !table.knows(address(2)));
    // A full bucket of good nodes wants no more.
    let mut table = filled(0, 8);
    table.record_reply(id(1, 1), address(1 << 8 | 1), at(0));
    assert!(!table.record_query(id(0, 20), address(20), at(0)));
    assert!(
        table.record_query(id(0, 20), address(20), at(16)),
        "they are questionable now"
    );
    assert!(!table.wants(OWN, address(20), at(16)));
}

/// A node that changes its id loses its place, wherever the new id belongs.
#[test]
fn a_node_has_one_id() {
    let mut table = filled(0, 8);
    table.record_query(id(5, 5), address(1), at(0));
    assert_eq!(table.stats(at(0)).nodes, 8, "anyone can claim this address in a query");
    table.record_reply(id(5, 5), address(1), at(0));
    let ids: Vec<NodeId> = table.contacts().map(|contact| contact.id).collect();
    assert!(ids.contains(&id(5, 5)) && !ids.contains(&id(0, 1)));
}

/// One host has one place, one /24 has one place in a bucket.
#[test]
fn one_party_does_not_fill_the_table() {
    let mut rng = ChaCha8Rng::from_seed([1; 32]);
    let mut table = Table::new(NodeId::random(&mut rng), at(0));
    for port in 1..2000 {
        let address = SocketAddr::new("9.9.9.9".parse().unwrap(), port);
        table.record_reply(NodeId::random(&mut rng), address, at(0));
    }
    assert_eq!(table.contacts().count(), 1);
    for n in 0..256 * 4 {
        table.record_reply(NodeId::random(&mut rng), public(n), at(0));
    }
    let stats = table.stats(at(0));
    assert!(stats.nodes <= 5 * stats.buckets, "{stats:?}");
    // Several nodes of this machine are possible.
    let mut table = Table::new(OWN, at(0));
    for port in 1..5 {
        table.record_reply(
            id(0, port as u8),
            SocketAddr::new("127.0.0.1".parse().unwrap(), port),
            at(0),
        );
    }
    assert_eq!(table.contacts().count(), 4);
}

/// BEP 42: ids that fit their addresses take the places of those that do not.
#[test]
fn fitting_ids_are_preferred() {
    let mut rng = ChaCha8Rng::from_seed([1; 32]);
    let mut table = Table::new(OWN, at(0));
    let far = |mut id: NodeId| {
        id.0[0] |= 0x80;
        id
    };
    for n in 0..8 {
        table.record_reply(far(NodeId::random(&mut rng)), public(n << 8), at(0));
    }
    // A second bucket, so that the first one is full.
    table.record_reply(id(1, 1), address(1), at(0));
    let mut fitting = 0;
    for n in 100..140 {
        let address = public(n << 8);
        let id = NodeId::random_for(address.ip(), &mut rng);
        if id.0[0] >= 0x80 {
            fitting += 1;
            table.record_reply(id, address, at(0));
        }
    }
    let far_bucket = table.contacts().filter(|contact| contact.id.0[0] >= 0x80);
    let (fit, unfit): (Vec<&Contact>, Vec<&Contact>) = far_bucket.partition(|contact| contact.fits());
    assert!(fitting >= 8);
    assert_eq!((fit.len(), unfit.len()), (8, 0));
}

#[test]
fn silent_nodes_are_pinged_and_stale_buckets_refreshed() {
    let mut rng = ChaCha8Rng::from_seed([1; 32]);
    let mut table = filled(0, 3);
    assert!(table.next_ping(at(15)).is_none());
    let mut pinged: Vec<SocketAddr> = std::iter::from_fn(|| table.next_ping(at(16)))
        .map(|node| node.address)
        .collect();
    pinged.sort();
    assert_eq!(pinged, [address(1), address(2), address(3)]);
    assert!(table.next_ping(at(17)).is_some(), "once more");

    let mut table = filled(0, 8);
    for bits in 1..5 {
        table.record_reply(id(bits, 1), address((bits as u32) << 8), at(bits as u64));
    }
    assert!(table.next_refresh(at(14), &mut rng).is_none());
    let target = table.next_refresh(at(15), &mut rng).unwrap();
    assert_eq!(OWN.shared_bits(target), 0);
    assert!(table.next_refresh(at(16), &mut rng).is_none());
}

#[test]
fn a_new_id_keeps_the_nodes() {
    let mut rng = ChaCha8Rng::from_seed([1; 32]);
    let mut table = Table::new(NodeId::random(&mut rng), at(0));
    for n in 0..1000 {
        table.record_reply(NodeId::random(&mut rng), address(n), at(0));
    }
    table.set_id(NodeId::random(&mut rng), at(0));
    // Most of the known nodes were close to the old id, and now compete for the places of one bucket.
    assert!(table.stats(at(0)).nodes >= 2 * K);
    check(&table, at(0));
}

/// Checks what must hold for every table.
fn check(table: &Table, now: Timestamp) {
    let last = table.buckets.len() - 1;
    assert!(table.buckets.len() <= MAX_BUCKETS);
    let mut addresses = Vec::new();
    for (index, bucket) in table.buckets.iter().enumerate() {
        assert!(bucket.contacts().len() <= K && bucket.replacement_count() <= K);
        for contact in bucket.contacts() {
            let bits = table.id.shared_bits(contact.id);
            assert!(bits == index || index == last && bits >= last);
            addresses.push(contact.address);
        }
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), table.stats(now).nodes);
}

proptest! {
    /// After any history, the table is bounded and consistent, and the closest nodes are the closest ones.
    #[test]
    fn tables_stay_consistent(seed in any::<[u8; 32]>(), steps in 1usize..600) {
        let mut rng = ChaCha8Rng::from_seed(seed);
        let own = NodeId::random(&mut rng);
        let mut table = Table::new(own, at(0));
        let mut now = at(0);
        for _ in 0..steps {
            let n = rng.random_range(0..200u32);
            let address = if n % 2 == 0 { address(n) } else { public(n * 64) };
            let id = own.neighbor(rng.random_range(0..100), &mut rng);
            match rng.random_range(0..10) {
                0..6 => _ = table.record_reply(id, address, now),
                6 => _ = table.record_query(id, address, now),
                7 => table.record_failure(address, now),
                8 => now += Duration::from_secs(60),
                _ => _ = table.next_ping(now),
            }
        }
        check(&table, now);
        let target = NodeId::random(&mut rng);
        let mut expected: Vec<NodeId> = table.contacts().filter(|node| node.quality(now) != Quality::Bad).map(|node| node.id).collect();
        expected.sort_by_key(|id| id.distance(target));
        expected.truncate(K);
        let closest: Vec<NodeId> = table.closest(target, K, now).iter().map(|node| node.id).collect();
        prop_assert_eq!(closest, expected);
    }
}
