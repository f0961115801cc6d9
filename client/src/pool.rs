//! Connections to nodes: one each, dialled when first needed, by one dial at a time, with a back-off after failures.
//!
//! A node that fails is left to the others' care: requests go elsewhere while a dial in the background finds out when it is
//! back, so that nobody waits for it.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::error::NOT_CONNECTED;
use crate::retry::Slice;
use crate::route::Target;
use quorate_transport::close;
use quorate_transport::rpc::{CallError, Lanes, LanesConfig};
use quorate_transport::tls::{self, Subject};
use quorate_wire::ids::NodeId;
use quorate_wire::random::Random;
use quorate_wire::{buggify, dawdle, sometimes};

/// A future that a trait object gives.
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How requests reach nodes: a [`Pool`], or a script in tests.
pub(crate) trait Transport: Send + Sync + 'static {
    /// One request, one answer.
    fn call(&self, target: Target, class: u8, body: Bytes, slice: Slice) -> BoxFuture<'_, Result<Bytes, CallError>>;

    /// The last that is known of a node is that it cannot be reached.
    fn failing(&self, addr: SocketAddr) -> bool;

    /// Which node has last answered at an address, if one has.
    fn node_at(&self, addr: SocketAddr) -> Option<NodeId>;

    /// Dials all of them, a few at a time, and tells which is there first.
    fn first_reachable<'a>(&'a self, targets: &'a [Target], within: Duration) -> BoxFuture<'a, Option<usize>>;

    /// Ends all connections.
    fn close(&self);

    /// Ends all connections and waits until the nodes know.
    fn closed(&self) -> BoxFuture<'_, ()>;
}

/// The connections of one client. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    random: Random,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    by_addr: BTreeMap<SocketAddr, Slot>,
    /// Counts uses, so that the least recently used slot can be told.
    uses: u64,
}

#[derive(Debug)]
struct Slot {
    state: State,
    /// Dials and connections that failed since the last answer.
    failures: u32,
    /// Who answered the last dial that succeeded.
    node: Option<NodeId>,
    used: u64,
}

#[derive(Debug)]
enum State {
    /// Not to be dialled before this time.
    Down {
        until: Instant,
    },
    Dialling {
        since: Instant,
        done: watch::Receiver<Option<Dialled>>,
    },
    Up(Arc<Lanes>),
}

type Dialled = Result<Arc<Lanes>, String>;

impl Pool {
    pub(crate) fn new(endpoint: quinn::Endpoint, config: quinn::ClientConfig, random: Random) -> Self {
        Self(Arc::new(Shared { endpoint, config, random, slots: Mutex::default() }))
    }

    /// A live connection to the node at an address, dialled if need be.
    async fn connection(&self, addr: SocketAddr) -> Dialled {
        let mut done = {
            let mut slots = self.slots();
            match self.live_or_dialling(&mut slots, addr) {
                Ok(up) => return Ok(up),
                Err(done) => done,
            }
        };
        match done.wait_for(Option::is_some).await {
            Ok(dialled) => dialled.clone().expect("it was waited for"),
            Err(_) => Err("the client is closed".into()),
        }
    }

    /// The connection, or what to wait for; starts a dial if none is under way.
    fn live_or_dialling(
        &self,
        slots: &mut Slots,
        addr: SocketAddr,
    ) -> Result<Arc<Lanes>, watch::Receiver<Option<Dialled>>> {
        slots.uses += 1;
        let used = slots.uses;
        let slot = slots.by_addr.entry(addr).or_insert_with(|| Slot {
            state: State::Down { until: Instant::now() },
            failures: 0,
            node: None,
            used,
        });
        slot.used = used;
        let until = match &slot.state {
            State::Up(up) if up.connection().close_reason().is_none() => return Ok(up.clone()),
            State::Dialling { done, .. } => return Err(done.clone()),
            State::Up(_) => {
                // Others go elsewhere until this dial has shown that the node is there.
                slot.failures = slot.failures.max(1);
                Instant::now()
            }
            State::Down { until } => *until,
        };
        let (sender, done) = watch::channel(None);
        slot.state = State::Dialling { since: Instant::now(), done: done.clone() };
        let pool = self.clone();
        tokio::spawn(async move {
            if until > Instant::now() {
                sleep_until(until).await;
            }
            let dialled = match timeout(DIAL_TIMEOUT, pool.dial(addr)).await {
                Ok(dialled) => dialled,
                Err(_) => Err(format!("no answer to a handshake in {} s", DIAL_TIMEOUT.as_secs())),
            };
            let (node, dialled) = match dialled {
                Ok((node, up)) => (Some(node), Ok(up)),
                Err(why) => (None, Err(why)),
            };
            pool.settle(addr, node, &dialled);
            // Nobody may be waiting any more.
            let _ = sender.send(Some(dialled));
        });
        slots.evict();
        Err(done)
    }

    /// Any node of the cluster is welcome: if it is another one than the route table says, it passes requests on and sends a
    /// newer table along.
    async fn dial(&self, addr: SocketAddr) -> Result<(NodeId, Arc<Lanes>), String> {
        dawdle!("client: a pause before a dial");
        let connecting = self.0.endpoint.connect_with(self.0.config.clone(), addr, tls::ANY_NODE);
        let connection = connecting
            .map_err(|error| error.to_string())?
            .await
            .map_err(|error| close::explain_connection_error(&error))?;
        match tls::peer_subject(&connection).map_err(|error| error.to_string())? {
            Subject::Node { node, .. } => {
                tracing::debug!(%node, %addr, "connected");
                Ok((node, Arc::new(Lanes::new(connection, LanesConfig::default()))))
            }
            other @ Subject::Client { .. } => Err(format!("{other} answered, which is no node")),
        }
    }

    /// Takes note of how a dial ended.
    fn settle(&self, addr: SocketAddr, node: Option<NodeId>, dialled: &Dialled) {
        let mut slots = self.slots();
        // It may have been evicted in the meantime.
        let Some(slot) = slots.by_addr.get_mut(&addr) else { return };
        match dialled {
            Ok(up) => {
                slot.state = State::Up(up.clone());
                (slot.failures, slot.node) = (0, node);
            }
            Err(why) => {
                tracing::debug!(%addr, why, failures = slot.failures + 1, "cannot be reached");
                slot.state = State::Down { until: Instant::now() + self.pause(slot.failures) };
                slot.failures = slot.failures.saturating_add(1);
            }
        }
    }

    /// A call got no answer. If nothing at all was heard meanwhile, the connection is taken for dead: QUIC itself would
    /// take half a minute to notice, and a slow node would at least have acknowledged the packets.
    fn suspect(&self, addr: SocketAddr, up: &Arc<Lanes>, heard_before: u64, since: Instant) {
        let connection = up.connection();
        let patient = since.elapsed() >= (4 * connection.rtt()).max(SILENCE_MIN);
        if !patient || connection.stats().udp_rx.datagrams != heard_before {
            return;
        }
        sometimes!("client: a silent connection was given up");
        connection.close(close::SILENT, b"nothing was heard");
        let mut slots = self.slots();
        if let Some(slot) = slots.by_addr.get_mut(&addr)
            && matches!(&slot.state, State::Up(current) if Arc::ptr_eq(current, up))
        {
            slot.state = State::Down { until: Instant::now() };
            slot.failures = 1;
        }
    }

    fn pause(&self, failures: u32) -> Duration {
        let whole = (BACKOFF_MIN * (1 << failures.min(10))).min(BACKOFF_MAX).as_micros() as u64;
        Duration::from_micros(whole / 2 + self.0.random.below(whole / 2))
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.slots.lock().expect("no panic while the slots are locked")
    }
}

impl Slots {
    /// Keeps the number of connections bounded.
    fn evict(&mut self) {
        while self.by_addr.len() > CONNECTIONS_MAX {
            let oldest = self.by_addr.iter().min_by_key(|(_, slot)| slot.used).map(|(addr, _)| *addr);
            self.by_addr.remove(&oldest.expect("there are more than enough"));
        }
    }
}

impl Transport for Pool {
    fn call(&self, target: Target, class: u8, body: Bytes, slice: Slice) -> BoxFuture<'_, Result<Bytes, CallError>> {
        Box::pin(async move {
            let started = Instant::now();
            let up = match timeout(slice.connect, self.connection(target.addr)).await {
                Ok(dialled) => dialled.map_err(CallError::NotSent)?,
                Err(_) => {
                    let waited = slice.connect.as_millis();
                    return Err(CallError::NotSent(format!("{NOT_CONNECTED} {waited} ms")));
                }
            };
            let left = slice.whole.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(CallError::NotSent("connecting took all the time".into()));
            }
            let (heard, since) = (up.connection().stats().udp_rx.datagrams, Instant::now());
            let answer = up.call(class, body, left).await;
            if answer.is_err() {
                self.suspect(target.addr, &up, heard, since);
            }
            if buggify!("client: the connection is closed after an answer") {
                up.connection().close(close::DONE, b"at random");
            }
            answer
        })
    }

    fn failing(&self, addr: SocketAddr) -> bool {
        let mut slots = self.slots();
        let Some(slot) = slots.by_addr.get(&addr) else { return false };
        let (failing, probe) = match &slot.state {
            State::Up(up) => {
                let lost = up.connection().close_reason().is_some();
                (lost, lost)
            }
            State::Dialling { since, .. } => (slot.failures > 0 || since.elapsed() > DIAL_SLOW, false),
            State::Down { until } => (slot.failures > 0, slot.failures > 0 && *until <= Instant::now()),
        };
        if probe {
            let _dialling = self.live_or_dialling(&mut slots, addr);
        }
        failing
    }

    fn node_at(&self, addr: SocketAddr) -> Option<NodeId> {
        self.slots().by_addr.get(&addr).and_then(|slot| slot.node)
    }

    fn first_reachable<'a>(&'a self, targets: &'a [Target], within: Duration) -> BoxFuture<'a, Option<usize>> {
        Box::pin(async move {
            let mut dials = JoinSet::new();
            for (i, target) in targets.iter().copied().enumerate() {
                let (pool, after) = (self.clone(), DIAL_STAGGER * (i / DIALS_AT_ONCE) as u32);
                dials.spawn(async move {
                    if !after.is_zero() {
                        sleep(after).await;
                    }
                    pool.connection(target.addr).await.ok().map(|_| i)
                });
            }
            let first = async {
                while let Some(dialled) = dials.join_next().await {
                    if let Ok(Some(i)) = dialled {
                        return Some(i);
                    }
                }
                None
            };
            timeout(within, first).await.ok().flatten()
        })
    }

    fn close(&self) {
        self.0.endpoint.close(close::DONE, b"the client is done");
    }

    fn closed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.close();
            // A node that does not answer any more is not waited for.
            let _ = timeout(CLOSE_TIMEOUT, self.0.endpoint.wait_idle()).await;
        })
    }
}

/// How many seeds are dialled at the same moment, and how long after them the next ones: the first ones are mostly enough.
const DIALS_AT_ONCE: usize = 8;
const DIAL_STAGGER: Duration = Duration::from_millis(100);

/// More nodes than one client talks to; the least recently used connection goes first.
const CONNECTIONS_MAX: usize = 512;

/// How long a handshake may take: three round trips over the longest way on earth, and two lost packets.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// A dial that is under way for longer makes requests prefer other nodes.
const DIAL_SLOW: Duration = Duration::from_millis(150);

/// The first pause after a failed dial; doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// The longest pause: a node that is back is used again after a second.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A connection on which nothing was heard for less than this is never taken for dead: a living node acknowledges within
/// 25 ms and a round trip, and may pause now and then.
const SILENCE_MIN: Duration = Duration::from_millis(200);

/// Closing is a matter of one round trip.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
