//! What requests may take of a node's memory: one number, and the shares that follow from it.
//!
//! | of 32 parts | for | one client | one connection |
//! |---|---|---|---|
//! | 8 | what QUIC keeps of clients' streams that nobody has read | | 1/1024 |
//! | 4 | clients' requests while they arrive | half | 1/64 of the whole |
//! | 3 | clients' requests from then until their answers have departed | half | 1/32 of the whole |
//! | 6 | what is read and written for them, and their answers | half | 1/16 of the whole |
//! | 1 | requests that peers have passed on (of one peer: half) | | |
//! | 3 | what is read and written for them, and their answers (of one peer: two thirds) | | |
//! | 3 | what peers replicate and fetch (of one peer: half) | | |
//! | 2 | the answers to that (of one peer: half) | | |
//! | 1 | pages, hints and exchanges of peers | | |
//! | 1 | the answers to that | | |
//!
//! A client is a certificate's subject, however many connections it has. Clients and peers, and of peers' requests those that
//! wait for other nodes and those that never do, take from parts of their own: none of them waits for another kind.
//!
//! A message above a sixteenth of the whole is **large**: it is not taken from these parts, which it would fill, but waits for other
//! large ones of its kind only. They may take a fixed number of bytes at a time beside the whole: answers to clients, answers to what
//! peers have passed on, records from peers, records to peers. So every legal message gets through whatever the number is, and
//! where records are small nothing is ever taken beside it.
//!
//! Not counted: copies that are made and let go again without a wait (of one message for each thread), the engine's cache, and
//! up to 16 MiB that QUIC may keep for each connected peer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use quorate_transport::budget::{Budget, NoRoom, Pot, Room};
use quorate_transport::frame::PART_LEN;
use quorate_transport::rpc::{ClassLimits, Counts, ServeLimits};
use quorate_transport::tls::Subject;
use quorate_wire::NotApplied;
use quorate_wire::ids::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::metrics::Sample;
use crate::peer_wire::class;

/// How many bytes of memory a node's requests may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestMemory(u64);

impl RequestMemory {
    /// The least that can be configured, in MiB: a connection's share is then one largest request of a client that arrives, and
    /// two that are served.
    pub const MIB_MIN: u64 = 64;
    /// The most, in MiB: 1 TiB.
    pub const MIB_MAX: u64 = 1 << 20;

    /// So many MiB.
    ///
    /// # Errors
    /// When there are less than [`MIB_MIN`](Self::MIB_MIN) or more than [`MIB_MAX`](Self::MIB_MAX).
    pub fn mib(mib: u64) -> Result<Self, String> {
        match mib {
            Self::MIB_MIN..=Self::MIB_MAX => Ok(Self(mib << 20)),
            _ => Err(format!("{mib} MiB is out of range: {} to {}", Self::MIB_MIN, Self::MIB_MAX)),
        }
    }

    /// Any number of bytes, for simulations: also so few that every bound is met.
    pub const fn of_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// What QUIC may keep of one client's streams that nobody has read yet.
    pub(crate) fn client_window(self) -> u32 {
        u32::try_from(self.parts(8) / CLIENTS_MAX as u64).unwrap_or(u32::MAX).clamp(WINDOW_MIN, WINDOW_MAX)
    }

    fn parts(self, of_32: u64) -> u64 {
        self.0 / 32 * of_32
    }

    /// Messages above this are large. One frame never is: whether a message is large has to show while it arrives.
    fn large_from(self) -> usize {
        usize::try_from(self.0 / 16).unwrap_or(usize::MAX).max(PART_LEN)
    }
}

impl Default for RequestMemory {
    /// 256 MiB: at 10,000 requests of 1 KiB a second a hundredth of it is in use; a client may have 16 values of 1 MiB on their way to it.
    fn default() -> Self {
        Self(256 << 20)
    }
}

impl fmt::Display for RequestMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

/// The memory of one node's requests, as far as it is in use. Clones share it.
#[derive(Debug, Clone)]
pub struct Pools(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    memory: RequestMemory,
    clients: Mutex<BTreeMap<String, Client>>,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    arriving: Budget,
    serving: Budget,
    answering: Budget,
    forward: InAndOut,
    replicate: InAndOut,
    bulk: InAndOut,
    /// Of large messages: answers to clients, answers to what peers have passed on, and what comes from and goes to peers.
    large: [Budget; 4],
    /// Client requests that may be carried out at a time.
    places: Arc<Semaphore>,
    counts: Arc<Counts>,
    clients_refused: AtomicU64,
}

#[derive(Debug, Clone)]
struct InAndOut {
    serving: Budget,
    answering: Budget,
}

impl InAndOut {
    fn new(serving: u64, answering: u64) -> Self {
        Self { serving: Budget::new(serving), answering: Budget::new(answering) }
    }

    fn share(&self, serving: u64, answering: u64) -> Self {
        Self { serving: self.serving.share(serving), answering: self.answering.share(answering) }
    }
}

/// What one client has, over all of its connections.
#[derive(Debug)]
struct Client {
    connections: usize,
    arriving: Budget,
    serving: Budget,
    answering: Budget,
    places: Arc<Semaphore>,
}

impl Client {
    fn is_there(&self) -> bool {
        let used = [&self.arriving, &self.serving, &self.answering].map(Budget::used);
        self.connections > 0 || used != [0; 3] || self.places.available_permits() < REQUESTS_MAX / 2
    }
}

/// The shares of one peer, over all of its connections.
#[derive(Debug, Clone)]
struct Peer {
    forward: InAndOut,
    replicate: InAndOut,
}

impl Pools {
    /// All of it free.
    pub fn new(memory: RequestMemory) -> Self {
        let parts = |of_32| memory.parts(of_32);
        Self(Arc::new(Inner {
            memory,
            clients: Mutex::default(),
            peers: Mutex::default(),
            arriving: Budget::new(parts(4)),
            serving: Budget::new(parts(3)),
            answering: Budget::new(parts(6)),
            forward: InAndOut::new(parts(1), parts(3)),
            replicate: InAndOut::new(parts(3), parts(2)),
            bulk: InAndOut::new(parts(1), parts(1)),
            large: [(); 4].map(|()| Budget::new(LARGE_MAX)),
            places: Arc::new(Semaphore::new(REQUESTS_MAX)),
            counts: Arc::default(),
            clients_refused: AtomicU64::new(0),
        }))
    }

    /// Lets one more connection of a client in.
    ///
    /// # Errors
    /// Why not, for people: there are as many as there can be.
    pub(crate) fn admit(&self, subject: &Subject) -> Result<ClientConnection, String> {
        let inner = &self.0;
        let name = subject.to_string();
        let mut clients = lock(&inner.clients);
        clients.retain(|_, client| client.is_there());
        let all: usize = clients.values().map(|client| client.connections).sum();
        let own = clients.get(&name).map_or(0, |client| client.connections);
        let refusal = if all >= CLIENTS_MAX {
            Some("this node serves as many clients as it can; try another one".to_owned())
        } else if own >= CLIENTS_MAX / 2 {
            Some(format!("{name} has {own} connections to this node, and no more are allowed; try another one"))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            inner.clients_refused.fetch_add(1, Ordering::Relaxed);
            return Err(refusal);
        }
        let half = |of_32| inner.memory.parts(of_32) / 2;
        let client = clients.entry(name.clone()).or_insert_with(|| Client {
            connections: 0,
            arriving: inner.arriving.share(half(4)),
            serving: inner.serving.share(half(3)),
            answering: inner.answering.share(half(6)),
            places: Arc::new(Semaphore::new(REQUESTS_MAX / 2)),
        });
        client.connections += 1;
        let whole = inner.memory.bytes();
        let (arriving, serving, answering) = (
            client.arriving.share(whole / 64),
            Pot { small: client.serving.share(whole / 32), ..Pot::unbounded() },
            Pot {
                small: client.answering.share(whole / 16),
                large: inner.large[CLIENT].clone(),
                large_from: inner.memory.large_from(),
            },
        );
        let mut limits = ServeLimits::client();
        limits.counts = inner.counts.clone();
        for class in &mut limits.classes {
            (class.arriving, class.serving, class.answering) = (arriving.clone(), serving.clone(), answering.clone());
        }
        let places = client.places.clone();
        drop(clients);
        Ok(ClientConnection(Arc::new(Admitted { pools: self.clone(), name, limits, places })))
    }

    /// What a peer may have under way here, on one connection. Records travel whole, and the largest legal one (100 siblings of
    /// 1 MiB) is above 100 MiB; clients' requests are at most 2 MiB, layouts far less.
    pub(crate) fn peer(&self, node: NodeId) -> ServeLimits {
        let inner = &self.0;
        let parts = |of_32| inner.memory.parts(of_32);
        let mut peers = lock(&inner.peers);
        let peer = peers.entry(node).or_insert_with(|| Peer {
            forward: inner.forward.share(parts(1) / 2, parts(2)),
            replicate: inner.replicate.share(parts(3) / 2, parts(1)),
        });
        let pot = |small: &Budget, large: usize| Pot {
            small: small.clone(),
            large: inner.large[large].clone(),
            large_from: inner.memory.large_from(),
        };
        let bounded = |request_max, in_flight_max, budgets: &InAndOut, out| ClassLimits {
            // A body that arrives is at least as far as another node trusts this one with it; there is one for each lane.
            arriving: Budget::unbounded(),
            serving: pot(&budgets.serving, FROM_PEER),
            answering: pot(&budgets.answering, out),
            ..ClassLimits::unbounded(request_max, in_flight_max)
        };
        let mut classes = vec![ClassLimits::unbounded(0, 0); 5];
        // Without hellos and layouts nothing goes on at all; they are small and few.
        classes[usize::from(class::CONTROL)] = ClassLimits::unbounded(4 << 20, 256);
        classes[usize::from(class::REPLICATE)] = bounded(112 << 20, 8192, &peer.replicate, TO_PEER);
        classes[usize::from(class::FORWARD)] = bounded(4 << 20, 4096, &peer.forward, FORWARDED);
        classes[usize::from(class::HANDOFF)] = bounded(112 << 20, 64, &inner.bulk, TO_PEER);
        classes[usize::from(class::BULK)] = bounded(112 << 20, 1024, &inner.bulk, TO_PEER);
        ServeLimits { classes, counts: inner.counts.clone() }
    }

    pub(crate) fn samples(&self) -> Vec<Sample> {
        let inner = &self.0;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let pots = [&inner.forward, &inner.replicate, &inner.bulk];
        let pots = pots.into_iter().flat_map(|pot| [&pot.serving, &pot.answering]);
        let small = [&inner.arriving, &inner.serving, &inner.answering].into_iter().chain(pots);
        let used = |budgets: &mut dyn Iterator<Item = &Budget>| budgets.map(Budget::used).sum();
        let (small, large) = (used(&mut small.into_iter()), used(&mut inner.large.iter()));
        let clients = lock(&inner.clients).values().map(|client| client.connections as u64).sum();
        let under_way = (REQUESTS_MAX - inner.places.available_permits()) as u64;
        let counts = &inner.counts;
        vec![
            Sample::gauge("request_memory_bytes", "Bytes that requests may take", inner.memory.bytes()),
            Sample::gauge("request_memory_used_bytes", "Bytes that requests take of that", small),
            Sample::gauge("request_memory_large_bytes", "Bytes that large messages take beside it", large),
            Sample::gauge("requests_under_way", "Client requests that are being answered", under_way),
            Sample::gauge("clients_connected", "Connections of clients", clients),
            Sample::counter(
                "clients_refused",
                "Client connections refused for lack of room",
                load(&inner.clients_refused),
            ),
            Sample::counter(
                "requests_no_memory",
                "Requests refused before they were looked at, for lack of memory",
                load(&counts.refused),
            ),
            Sample::counter(
                "requests_expired",
                "Requests whose time was over before they had arrived",
                load(&counts.expired),
            ),
            Sample::counter(
                "arrivals_cut",
                "Connections ended because a request did not arrive",
                load(&counts.arrivals_cut),
            ),
            Sample::counter(
                "departures_cut",
                "Connections ended because answers were not taken",
                load(&counts.departures_cut),
            ),
        ]
    }
}

/// A client's connection, which counts as long as anybody holds it.
#[derive(Debug, Clone)]
pub(crate) struct ClientConnection(Arc<Admitted>);

#[derive(Debug)]
struct Admitted {
    pools: Pools,
    name: String,
    limits: ServeLimits,
    places: Arc<Semaphore>,
}

impl ClientConnection {
    pub(crate) fn limits(&self) -> ServeLimits {
        self.0.limits.clone()
    }

    /// A place for one request; none if the client, or all clients together, have as many under way as they may.
    pub(crate) fn place(&self) -> Option<[OwnedSemaphorePermit; 2]> {
        let own = self.0.places.clone().try_acquire_owned().ok()?;
        let one = self.0.pools.0.places.clone().try_acquire_owned().ok()?;
        Some([own, one])
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut clients = lock(&self.pools.0.clients);
        if let Some(client) = clients.get_mut(&self.name) {
            client.connections -= 1;
        }
        // Whoever has left requests behind does not begin anew until they have ended.
        clients.retain(|_, client| client.is_there());
    }
}

/// Reads something until there is room for it: what has none is let go before it is waited for.
///
/// # Errors
/// What the reading said; [`NotApplied::Overloaded`] if there is no room until `until`.
pub(crate) async fn read_within<T, F: Future<Output = Result<T, NotApplied>>>(
    room: &Room,
    until: Instant,
    read: impl Fn() -> F,
    len: impl Fn(&T) -> usize,
) -> Result<T, NotApplied> {
    loop {
        let value = read().await?;
        let bytes = len(&value);
        if room.covers(bytes, RECORD_LEN) {
            return Ok(value);
        }
        drop(value);
        room.release();
        room.take(bytes, until).await.map_err(|NoRoom| OVERLOADED)?;
    }
}

/// A record of up to so many bytes is among what a request takes anyway, see [`quorate_transport::rpc::REQUEST_LEN`].
pub(crate) const RECORD_LEN: usize = 4 << 10;

/// When a client that was refused for want of room comes back: a tenth of what a full queue needs to drain.
pub(crate) const RETRY_AFTER_MS: u32 = 50;

/// There is no room for a request: nothing was done.
pub(crate) const OVERLOADED: NotApplied = NotApplied::Overloaded { retry_after_ms: RETRY_AFTER_MS };

/// What large messages of one kind may take: one of the largest that there can be, a record of 100 siblings of 1 MiB.
pub(crate) const LARGE_MAX: u64 = 112 << 20;

/// Client connections at a time; one client may have half of them.
pub(crate) const CLIENTS_MAX: usize = 1024;

/// Client requests being answered at a time, over all connections: at 10,000 requests/s a queue of 0.4 s, within every
/// sensible deadline. More are refused at once, so that those that are let in are answered in time. One client may have half of
/// them.
const REQUESTS_MAX: usize = 4096;

/// Below this a client would send its requests packet by packet.
const WINDOW_MIN: u32 = 16 << 10;

/// The product of 1 Gbit/s and 40 ms.
const WINDOW_MAX: u32 = 5 << 20;

/// Places of [`Inner::large`].
const CLIENT: usize = 0;
const FORWARDED: usize = 1;
const FROM_PEER: usize = 2;
const TO_PEER: usize = 3;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

#[cfg(test)]
mod tests {
    use quorate_wire::ids::ClusterId;

    use super::*;

    const MIB: usize = 1 << 20;

    fn client(name: &str) -> Subject {
        Subject::Client { cluster: ClusterId(7), name: name.into(), admin: false }
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("legal")
    }

    #[test]
    fn the_parts_add_up_to_the_whole() {
        let memory = RequestMemory::default();
        let pools = Pools::new(memory);
        let inner = &pools.0;
        let pots = [&inner.forward, &inner.replicate, &inner.bulk].map(|pot| [&pot.serving, &pot.answering]);
        let budgets = [&inner.arriving, &inner.serving, &inner.answering].into_iter().chain(pots.into_iter().flatten());
        let budgets: u64 = budgets.filter_map(Budget::max).sum();
        assert_eq!(budgets + u64::from(memory.client_window()) * CLIENTS_MAX as u64, memory.bytes());
    }

    #[test]
    fn what_can_be_configured_has_bounds_that_are_told() {
        assert_eq!(RequestMemory::mib(64), Ok(RequestMemory::of_bytes(64 << 20)));
        assert_eq!(RequestMemory::mib(63), Err("63 MiB is out of range: 64 to 1048576".into()));
        assert!(RequestMemory::mib(1 << 21).is_err());
        // With the least of them a client's largest request fits into its connection's shares.
        let least = Pools::new(RequestMemory::mib(64).expect("legal"));
        let limits = least.admit(&client("joe")).expect("there is room").limits();
        let shares = [&limits.classes[0].arriving, &limits.classes[0].serving.small].map(|budget| budget.max());
        assert_eq!(shares, [Some(1 << 20), Some(2 << 20)]);
    }

    #[test]
    fn one_client_leaves_room_for_others_and_one_connection_for_others_of_its_client() {
        let pools = Pools::new(RequestMemory::default());
        let connections: Vec<ClientConnection> =
            (0..40).map(|_| pools.admit(&client("eve")).expect("there is room")).collect();
        let mut kept = Vec::new();
        for connection in &connections {
            let class = &connection.limits().classes[0];
            let own = kept.len();
            for budget in [&class.arriving, &class.serving.small, &class.answering.small] {
                kept.extend(std::iter::from_fn(|| budget.try_take(MIB / 2)));
            }
            // 4, 8 and 16 MiB at 256 MiB.
            assert!(kept.len() - own <= 2 * 28, "one connection has {}", kept.len() - own);
        }
        let inner = &pools.0;
        for budget in [&inner.arriving, &inner.serving, &inner.answering] {
            assert_eq!(Some(2 * budget.used()), budget.max(), "half of it is for others");
        }
        let joe = pools.admit(&client("joe")).expect("there is room").limits();
        assert!(joe.classes[0].answering.small.try_take(16 * MIB).is_some());
        assert!(joe.classes[0].arriving.try_take(4 * MIB).is_some());
        for class in &pools.peer(node("n2")).classes[1..] {
            assert!(class.serving.small.try_take(MIB).is_some() && class.answering.small.try_take(MIB).is_some());
        }
        drop((kept, connections));
        assert_eq!(inner.answering.used(), 0);
    }

    #[test]
    fn large_messages_of_one_kind_leave_the_others_alone() {
        let pools = Pools::new(RequestMemory::default());
        let (joe, peer) = (pools.admit(&client("joe")).expect("there is room").limits(), pools.peer(node("n2")));
        let whole = 112 * MIB;
        let answer = joe.classes[0].answering.of(whole).try_take(whole).expect("one of them");
        assert!(joe.classes[1].answering.of(whole).try_take(whole).is_none());
        let [_, replicate, forward, bulk, handoff] = &peer.classes[..] else { panic!("there are five classes") };
        let forwarded = forward.answering.of(whole).try_take(whole).expect("of its own kind it is alone");
        let record = replicate.serving.of(whole).try_take(whole).expect("of its own kind it is alone");
        assert!(handoff.serving.of(whole).try_take(whole).is_none(), "another record from a peer");
        assert!(bulk.answering.of(whole).try_take(whole).is_some(), "records to peers are a kind of their own");
        drop((answer, forwarded, record));
        assert!(joe.classes[0].answering.of(whole).try_take(whole).is_some());
        assert!(joe.classes[0].answering.of(MIB).try_take(MIB).is_some(), "small ones never wait for them");
    }

    #[test]
    fn connections_and_places_are_shared_out_and_given_back() {
        let pools = Pools::new(RequestMemory::default());
        let mut of_eve: Vec<ClientConnection> = std::iter::from_fn(|| pools.admit(&client("eve")).ok()).collect();
        assert_eq!(of_eve.len(), CLIENTS_MAX / 2);
        let refusal = pools.admit(&client("eve")).expect_err("it has its half");
        assert!(refusal.contains("512 connections"), "{refusal}");
        let of_mallory: Vec<ClientConnection> = std::iter::from_fn(|| pools.admit(&client("mallory")).ok()).collect();
        assert_eq!(of_mallory.len(), CLIENTS_MAX / 2);
        let refusal = pools.admit(&client("joe")).expect_err("there are as many as can be");
        assert!(refusal.contains("as many clients as it can"), "{refusal}");
        of_eve.pop();
        let joe = pools.admit(&client("joe")).expect("there is room again");
        let places: Vec<_> = std::iter::from_fn(|| of_eve[0].place()).collect();
        assert_eq!(places.len(), REQUESTS_MAX / 2);
        assert!(of_eve[1].place().is_none(), "another connection of the same client");
        assert!(joe.place().is_some());
        drop((of_eve, of_mallory));
        assert_eq!(lock(&pools.0.clients).len(), 2, "eve's requests go on, and joe is there");
        drop((joe, places));
        assert_eq!(pools.admit(&client("joe")).map(drop), Ok(()));
        assert!(lock(&pools.0.clients).is_empty(), "nobody is remembered");
        assert_eq!(pools.0.places.available_permits(), REQUESTS_MAX);
    }
}
