use std::net::Ipv4Addr;

use rand::SeedableRng;

use super::*;

const TARGET: NodeId = NodeId([0; 20]);
const PARALLELISM: Parallelism = Parallelism { alpha: 3, beta: 2 };

fn address(n: u8) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(10, 0, 0, n).into(), 6881)
}

/// A node at distance `n`.
fn id(n: u8) -> NodeId {
    let mut id = [0; 20];
    id[19] = n;
    NodeId(id)
}

fn lookup(nodes: impl IntoIterator<Item = u8>) -> Lookup {
    let mut lookup = Lookup::new(TARGET, PARALLELISM, true);
    nodes.into_iter().for_each(|n| lookup.add(Some(id(n)), address(n)));
    lookup
}

/// The nodes asked next, by number.
fn ask(lookup: &mut Lookup) -> Vec<u8> {
    let queries = std::iter::from_fn(|| lookup.next_query(|_| true));
    queries
        .map(|(address, _)| match address.ip() {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => unreachable!(),
        })
        .collect()
}

fn reply(lookup: &mut Lookup, n: u8, lists: &[u8]) {
    assert!(lookup.on_reply(address(n), id(n), Some(&[n])));
    lookup.add_listed(address(n), lists.iter().map(|n| (id(*n), address(*n))));
}

#[test]
fn asks_the_closest_first_and_ends_when_eight_have_answered() {
    let mut lookup = lookup([200, 210, 220, 230]);
    assert_eq!(ask(&mut lookup), [200, 210, 220], "alpha");
    assert_eq!(ask(&mut lookup), []);
    reply(&mut lookup, 210, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(ask(&mut lookup), [1, 2], "beta");
    for n in 1..=8 {
        assert!(!lookup.is_finished());
        reply(&mut lookup, n, &[]);
        ask(&mut lookup);
    }
    assert!(lookup.is_finished());
    assert_eq!((lookup.reply_count(), lookup.hops()), (9, 2));
    let nodes: Vec<u8> = lookup.storage_nodes().iter().map(|node| node.token[0]).collect();
    assert_eq!(nodes, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn silent_nodes_are_passed_over() {
    let mut lookup = lookup(1..=12);
    assert_eq!(ask(&mut lookup), [1, 2, 3]);
    lookup.on_slow(address(2));
    assert_eq!(ask(&mut lookup), [4]);
    lookup.on_failure(address(2));
    assert_eq!(ask(&mut lookup), [], "it was replaced when it became slow");
    lookup.on_failure(address(1));
    assert_eq!(ask(&mut lookup), [5]);
    for n in [3, 4, 5, 6, 7, 8, 9, 10] {
        assert!(!lookup.is_finished());
        reply(&mut lookup, n, &[]);
        ask(&mut lookup);
    }
    assert!(lookup.is_finished());
}

/// With too few nodes, the lookup ends when the last one has answered or failed, not while one is only slow.
#[test]
fn a_small_network_is_searched_whole() {
    let mut lookup = lookup([1, 2, 3]);
    ask(&mut lookup);
    reply(&mut lookup, 1, &[]);
    lookup.on_failure(address(2));
    lookup.on_slow(address(3));
    assert!(!lookup.is_finished());
    reply(&mut lookup, 3, &[]);
    assert!(lookup.is_finished());
    assert_eq!(lookup.storage_nodes().len(), 2);
    assert!(self::lookup([]).is_finished(), "nobody to ask");
}

#[test]
fn bootstrap_hosts_are_asked_last_and_may_have_any_id() {
    let mut lookup = lookup([]);
    lookup.add(None, address(100));
    lookup.add(Some(id(50)), address(50));
    assert_eq!(ask(&mut lookup), [50, 100]);
    assert!(lookup.on_reply(address(100), id(9), None));
    assert!(lookup.storage_nodes().is_empty(), "no token");
}

/// A node that changes its id lies; its answer is not used.
#[test]
fn answers_with_another_id_are_refused() {
    let mut lookup = lookup([1, 2]);
    ask(&mut lookup);
    assert!(!lookup.on_reply(address(1), id(7), Some(&[1])));
    assert!(!lookup.on_reply(address(1), id(1), Some(&[1])), "too late");
    assert!(!lookup.on_reply(address(9), id(9), None), "never asked");
    assert!(lookup.storage_nodes().is_empty());
    // An id that fits a public address cannot be chosen.
    let mut rng = rand_chacha::ChaCha8Rng::from_seed([1; 32]);
    let public = SocketAddr::from(([9, 9, 9, 9], 6881));
    lookup.add(Some(id(3)), public);
    lookup.add(Some(id(4)), SocketAddr::from(([8, 8, 8, 8], 6881)));
    ask(&mut lookup);
    assert!(lookup.on_reply(public, NodeId::random_for(public.ip(), &mut rng), None));
    assert!(!lookup.on_reply(SocketAddr::from(([8, 8, 8, 8], 6881)), id(5), None));
}

/// One host or /24 is one candidate.
#[test]
fn a_party_is_asked_once() {
    let mut lookup = lookup([]);
    for last in 1..100 {
        let address = SocketAddr::new(Ipv4Addr::new(9, 9, 9, last).into(), 1000 + u16::from(last));
        lookup.add(Some(id(last)), address);
        lookup.add(Some(id(last)), SocketAddr::new(address.ip(), 0));
    }
    assert_eq!(lookup.candidates.len(), 1);
    // An endless supply of invented nodes, each closer than the last.
    let mut lookup = Lookup::new(TARGET, PARALLELISM, false);
    lookup.add(Some(NodeId([0xff; 20])), SocketAddr::from(([9, 0, 0, 1], 1)));
    let mut n = 0u32;
    while let Some((address, known)) = lookup.next_query(|_| true) {
        assert!(lookup.on_reply(address, known.unwrap(), None));
        let listed = (0..20).map(|_| {
            n += 1;
            let mut id = [0xff; 20];
            id[..4].copy_from_slice(&(u32::MAX - n).to_be_bytes());
            (
                NodeId(id),
                SocketAddr::from((Ipv4Addr::from_bits(0x1400_0000 + (n << 8)), 1)),
            )
        });
        lookup.add_listed(address, listed);
        assert!(lookup.candidates.len() <= MAX_CANDIDATES);
    }
    assert_eq!(lookup.query_count(), MAX_QUERIES);
    assert!(lookup.is_finished());
}

/// BEP 42, "Enforcement": nodes whose ids do not fit are asked, but do not end the lookup.
#[test]
fn misfits_do_not_count_as_storage() {
    let mut rng = rand_chacha::ChaCha8Rng::from_seed([1; 32]);
    let mut lookup = Lookup::new(TARGET, Parallelism { alpha: 50, beta: 3 }, true);
    let public = |n: u8| SocketAddr::from(([9, n, 9, 9], 6881));
    for n in 1..=10 {
        lookup.add(Some(id(n)), public(n));
    }
    let fitting: Vec<(NodeId, SocketAddr)> = (100..110)
        .map(|n| (NodeId::random_for(public(n).ip(), &mut rng), public(n)))
        .collect();
    fitting.iter().for_each(|(id, address)| lookup.add(Some(*id), *address));
    while let Some((address, id)) = lookup.next_query(|_| true) {
        lookup.on_reply(address, id.unwrap(), Some(b"token"));
    }
    assert!(lookup.is_finished());
    let stored = lookup.storage_nodes();
    let fits = stored.iter().filter(|node| node.id.fits(node.address.ip()));
    assert_eq!((stored.len(), fits.count()), (16, 8));
}
