//! The table of open connections. The table is bounded: a new client evicts the least valuable connection, so that
//! clients that hold connections without a token cannot keep others out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ecs_torrent_components::prefix::site;
use tokio::sync::Notify;

/// The party that a client belongs to, for the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Caller {
    /// A process of the daemon's user or of root, through the Unix socket.
    Owner,
    /// A remote host, by the part of its address that belongs to it alone ([`site`]).
    Remote(IpAddr),
}

impl From<IpAddr> for Caller {
    fn from(ip: IpAddr) -> Self {
        Self::Remote(site(ip))
    }
}

/// The client of a request.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) caller: Caller,
    /// The local address that the client connected to; `None` for the Unix socket.
    pub(super) local: Option<IpAddr>,
    pub(super) ticket: Arc<Ticket>,
}

/// The requests that a connection has carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// No request yet.
    New,
    /// Requests without the token only.
    Stranger,
    /// At least one request with the token.
    Trusted,
}

/// All connections of one listener.
#[derive(Debug)]
pub(super) struct Connections {
    max: usize,
    table: Mutex<Table>,
    /// Signals that a connection has ended.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    last_id: u64,
    /// Oldest first.
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    caller: Caller,
    standing: Standing,
    evicted: Arc<Notify>,
}

/// An entry in the table. Dropping it frees the entry.
#[derive(Debug)]
pub(super) struct Ticket {
    id: u64,
    evicted: Arc<Notify>,
    connections: Arc<Connections>,
}

impl Connections {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max: max.max(1),
            table: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// Admits a client. If the table is full, or connections of this caller without the token fill half of it, evicts
    /// the least valuable connection. Waits only while all connections have presented the token.
    pub(super) async fn admit(self: &Arc<Self>, caller: Caller) -> Ticket {
        loop {
            if let Some(ticket) = self.try_admit(caller) {
                return ticket;
            }
            self.freed.notified().await;
        }
    }

    fn try_admit(self: &Arc<Self>, caller: Caller) -> Option<Ticket> {
        let mut table = self.lock();
        if table.strangers_of(caller) >= self.max.div_ceil(2) {
            table.evict_of(caller);
        }
        if table.entries.len() >= self.max && !table.evict() {
            return None;
        }
        table.last_id += 1;
        let (id, evicted) = (table.last_id, Arc::new(Notify::new()));
        let entry = Entry {
            caller,
            standing: Standing::New,
            evicted: evicted.clone(),
        };
        table.entries.insert(id, entry);
        Some(Ticket {
            id,
            evicted,
            connections: self.clone(),
        })
    }

    /// Evicts the least valuable connection, if any has not presented the token.
    pub(super) fn evict(&self) -> bool {
        self.lock().evict()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn strangers(&self) -> impl Iterator<Item = (u64, &Entry)> {
        let entries = self.entries.iter().map(|(id, entry)| (*id, entry));
        entries.filter(|(_, entry)| entry.standing != Standing::Trusted)
    }

    fn strangers_of(&self, caller: Caller) -> usize {
        self.strangers().filter(|(_, entry)| entry.caller == caller).count()
    }

    /// Evicts a connection of the caller with the most connections without the token. A tie is decided by the oldest
    /// connection.
    fn evict(&mut self) -> bool {
        let mut counts: HashMap<Caller, (usize, Reverse<u64>)> = HashMap::new();
        for (id, entry) in self.strangers() {
            counts.entry(entry.caller).or_insert((0, Reverse(id))).0 += 1;
        }
        let greatest = counts.into_iter().max_by_key(|(_, rank)| *rank);
        greatest.is_some_and(|(caller, _)| self.evict_of(caller))
    }

    /// Evicts the caller's oldest connection that carried a request without the token. If there is none, evicts its
    /// oldest unused connection; a client that presents its token at once is not the oldest.
    fn evict_of(&mut self, caller: Caller) -> bool {
        let of_caller = || self.strangers().filter(|(_, entry)| entry.caller == caller);
        let used = of_caller().find(|(_, entry)| entry.standing == Standing::Stranger);
        let Some((id, _)) = used.or_else(|| of_caller().next()) else {
            return false;
        };
        if let Some(entry) = self.entries.remove(&id) {
            entry.evicted.notify_one();
        }
        true
    }
}

impl Ticket {
    /// Waits until the connection is evicted.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Records a request with the token. The connection can no longer be evicted; once idle, it ends after
    /// `api.header_timeout_s`.
    pub(super) fn trust(&self) {
        if let Some(entry) = self.connections.lock().entries.get_mut(&self.id) {
            entry.standing = Standing::Trusted;
        }
    }

    /// Records a request and returns whether the connection has never presented the token, that is, whether
    /// [`trust`](Self::trust) was never called.
    pub(super) fn record_request(&self) -> bool {
        let mut table = self.connections.lock();
        // An evicted connection is no longer in the table.
        let Some(entry) = table.entries.get_mut(&self.id) else {
            return true;
        };
        if entry.standing == Standing::New {
            entry.standing = Standing::Stranger;
        }
        entry.standing == Standing::Stranger
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.connections.lock().entries.remove(&self.id);
        self.connections.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const A: Caller = Caller::Remote(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    const B: Caller = Caller::Remote(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)));

    fn holds(connections: &Connections, ticket: &Ticket) -> bool {
        connections.lock().entries.contains_key(&ticket.id)
    }

    #[test]
    fn the_caller_with_most_makes_room() {
        let connections = Connections::new(6);
        let lone = connections.try_admit(B).unwrap();
        let many: Vec<Ticket> = (0..40).map(|_| connections.try_admit(A).unwrap()).collect();
        assert!(holds(&connections, &lone));
        let held: Vec<bool> = many.iter().map(|ticket| holds(&connections, ticket)).collect();
        assert_eq!(held.iter().filter(|held| **held).count(), 3, "half of six");
        assert!(held[37..].iter().all(|held| *held), "the oldest went");
    }

    #[test]
    fn the_oldest_of_equals_is_evicted() {
        let connections = Connections::new(20);
        let caller = |number: u32| Caller::Remote(Ipv4Addr::from(number).into());
        let tickets: Vec<Ticket> = (0..50)
            .map(|number| connections.try_admit(caller(number)).unwrap())
            .collect();
        let held: Vec<bool> = tickets.iter().map(|ticket| holds(&connections, ticket)).collect();
        assert!(held[..30].iter().all(|held| !held) && held[30..].iter().all(|held| *held));
    }

    #[test]
    fn a_connection_with_the_token_stays() {
        let connections = Connections::new(4);
        let trusted = connections.try_admit(A).unwrap();
        trusted.trust();
        assert!(!trusted.record_request());
        let new = connections.try_admit(A).unwrap();
        let used = connections.try_admit(A).unwrap();
        assert!(used.record_request());
        let _next = connections.try_admit(A).unwrap();
        assert!(holds(&connections, &trusted) && holds(&connections, &new));
        assert!(
            !holds(&connections, &used),
            "a connection that was used without the token goes first"
        );
        let _others: Vec<Ticket> = (0..9).map(|_| connections.try_admit(A).unwrap()).collect();
        assert!(holds(&connections, &trusted) && !holds(&connections, &new));
    }

    #[test]
    fn a_table_full_of_tokens_is_full() {
        let connections = Connections::new(2);
        let trusted = |_| {
            let ticket = connections.try_admit(A).unwrap();
            ticket.trust();
            ticket
        };
        let mut tickets: Vec<Ticket> = (0..2).map(trusted).collect();
        assert!(connections.try_admit(B).is_none() && !connections.evict());
        tickets.pop();
        assert!(connections.try_admit(B).is_some());
    }

    #[test]
    fn a_prefix_of_ipv6_is_one_caller() {
        let caller = |text: &str| Caller::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(caller("2001:db8:0:1::1"), caller("2001:db8:0:1:ffff::2"));
        assert_ne!(caller("2001:db8:0:1::1"), caller("2001:db8:0:2::1"));
        assert_eq!(caller("::ffff:192.0.2.1"), A);
    }
}
