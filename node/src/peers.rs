//! Connections to the other nodes: dialed on demand and for ever, adopted when they dial us, used both ways.
//!
//! A connection begins with a [`Hello`] in each direction; until then nothing else is answered. Whoever dialed it, requests
//! and gossip then go both ways. When two nodes dial each other at the same time, both connections work; both ends prefer
//! the one that the node with the smaller name dialed, and the other one is closed once it is idle.
//!
//! A peer that cannot be reached costs its callers nothing: only the first dial is waited for. A failed one sets off a
//! back-off with jitter, and until a further one has succeeded calls fail at once, certainly not sent. Peers that [`Peers::keep_connected`] names are redialed for ever, also after a clean
//! close.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, Endpoint};
use quorate_transport::budget::Room;
use quorate_transport::close;
use quorate_transport::close::explain_connection_error;
use quorate_transport::link::widen_for_peer;
use quorate_transport::rpc::{self, Arrived, CallError, Lanes, LanesConfig, REQUEST_LEN};
use quorate_transport::tls::{self, Subject};
use quorate_wire::NotApplied;
use quorate_wire::codec::{self, Blob};
use quorate_wire::ids::{ClusterId, NodeId};
use quorate_wire::random::Random;
use quorate_wire::time_text;
use quorate_wire::{buggify, dawdle, sometimes, story, tell};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::beacons::{Beacons, Speaker};
use crate::env::BoxFuture;
use crate::peer_wire::{ALPN_PEER, Ask, Hello, PeerAnswer, PeerBody, PeerReply, PeerRequest, class};
use crate::request_memory::{OVERLOADED, Pools};
use crate::supervise;

/// Why a question has no answer. The texts say why only, and not whether anything was changed: most are parts of longer ones.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AskError {
    /// No byte of it was sent: definitely not applied.
    #[error("{0}")]
    NotSent(String),
    /// It was sent, and the connection broke, the deadline passed, or what came back is not its answer: it may have been applied.
    #[error("{0}")]
    Unknown(String),
    /// The peer acknowledges nothing. See [`PeerReply::Refused`].
    #[error("{}", .0.reason())]
    Refused(NotApplied),
}

/// Carries out what peers ask for: who asks, what, how long it waits for the answer, and what may be used for it.
pub type PeerHandler = Arc<dyn Fn(NodeId, PeerRequest, Duration, Room) -> BoxFuture<PeerReply> + Send + Sync>;

/// Whether to talk to a peer, by what it says of itself; the text is for the peer's operator.
pub type HelloCheck = Arc<dyn Fn(&Hello) -> Result<(), String> + Send + Sync>;

/// What the pool needs from the node.
pub struct PeersConfig {
    /// This node.
    pub me: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Dials; shared with the accepting side, so that all of a node's traffic goes by one port.
    pub endpoint: Endpoint,
    /// Of [`tls::client_config`] with [`ALPN_PEER`] and [`quorate_transport::Link::Peer`].
    pub dial: quinn::ClientConfig,
    /// For the back-off's jitter.
    pub random: Random,
    /// What this node says of itself to another one, fresh for each connection.
    pub hello: Arc<dyn Fn(NodeId) -> Hello + Send + Sync>,
    /// How far disks are: goes with every message.
    pub beacons: Beacons,
    /// Whether to talk to a peer (its layout may contradict ours). Name and cluster have been checked.
    pub check: HelloCheck,
    /// Where gossip datagrams go; they are dropped when it is full.
    pub datagrams: mpsc::Sender<(NodeId, Bytes)>,
    /// What a peer's requests may take here.
    pub pools: Pools,
}

impl fmt::Debug for PeersConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeersConfig").field("me", &self.me).field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// How the connection to a peer stands.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerLink {
    /// Where it listens, if that is known.
    pub addr: Option<SocketAddr>,
    /// What it said when the connection began; nothing without a connection.
    pub hello: Option<Hello>,
    /// The smoothed round trip; nothing without a connection.
    pub rtt: Option<Duration>,
    /// Why the last connection or attempt ended; empty if none has.
    pub last_error: String,
    /// When the next attempt may be made; nothing with a connection, or if it may be made now.
    pub next_try_in: Option<Duration>,
}

/// The pool. Clones share it.
#[derive(Clone)]
pub struct Peers(Arc<Shared>);

impl Peers {
    /// Starts the pool, without a connection yet. Must be called within the runtime that the endpoint runs in.
    pub fn start(config: PeersConfig) -> Self {
        let shared = Arc::new(Shared {
            endpoint: Mutex::new(Some(config.endpoint.clone())),
            handler: Mutex::new(None),
            state: Mutex::new(State { peers: BTreeMap::new(), keep: BTreeSet::new(), stopped: false }),
            changes: watch::Sender::new(0),
            tasks: Mutex::new(JoinSet::new()),
            me: config.me,
            cluster: config.cluster,
            dial: Mutex::new(config.dial),
            random: config.random,
            hello: config.hello,
            beacons: config.beacons,
            check: config.check,
            datagrams: config.datagrams,
            pools: config.pools,
        });
        shared.spawn(shared.clone().keep_connected());
        Self(shared)
    }

    /// Dials with another certificate from now on.
    pub fn renew(&self, dial: quinn::ClientConfig) {
        *lock(&self.0.dial) = dial;
    }

    /// Sets who carries out the requests of peers. Until then they are refused. A second call changes nothing.
    pub fn set_handler(&self, handler: PeerHandler) {
        lock(&self.0.handler).get_or_insert(handler);
    }

    /// Asks a peer. Dials if there is no connection and no back-off is running; `timeout` bounds everything. `request_id` is that of
    /// the client's request that caused the question, 0 if none did.
    ///
    /// # Errors
    /// See [`AskError`]; the differences are exact.
    pub async fn ask<Q: Ask>(
        &self,
        to: NodeId,
        request_id: u64,
        question: Q,
        timeout: Duration,
    ) -> Result<Q::Answer, AskError> {
        match self.call(to, Q::CLASS, request_id, question.into(), timeout).await? {
            PeerReply::Refused(refusal) => Err(AskError::Refused(refusal)),
            reply => reply.try_into().map_err(|_| AskError::Unknown("an answer to another question".into())),
        }
    }

    /// As [`ask`](Self::ask), for who does not know what is asked, or wants to see any answer.
    ///
    /// # Errors
    /// See [`AskError`]. A refusal is an answer here.
    pub async fn call(
        &self,
        to: NodeId,
        class: u8,
        request_id: u64,
        body: PeerBody,
        timeout: Duration,
    ) -> Result<PeerReply, AskError> {
        let me = self.0.me;
        let (what, keys) = told_of(&body);
        for key in &keys {
            tell!(act = "ask", key = %story::text(key), node = %me, %to, request = request_id, what);
        }
        let called = self.exchange(to, class, request_id, body, timeout).await;
        for key in &keys {
            let said = || called.as_ref().map_or_else(|error| format!("no answer: {error}"), PeerReply::said);
            tell!(act = "told", key = %story::text(key), node = %me, from = %to, request = request_id, what,
                said = said(), came = called.is_ok());
        }
        called
    }

    async fn exchange(
        &self,
        to: NodeId,
        class: u8,
        request_id: u64,
        body: PeerBody,
        timeout: Duration,
    ) -> Result<PeerReply, AskError> {
        let deadline = Instant::now() + timeout;
        let (lanes, speaker) = self.0.connect(to, deadline).await?;
        let request = codec::encode(&PeerRequest { request_id, beacon: self.0.beacons.durable(), body });
        let left = deadline.saturating_duration_since(Instant::now());
        let reply = lanes.call(class, request, left).await.map_err(|error| match error {
            CallError::NotSent(why) => AskError::NotSent(why),
            CallError::Unknown(why) => AskError::Unknown(why),
        })?;
        if buggify!("peers: the connection is closed after an answer") {
            lanes.connection().close(close::DONE, b"at random");
        }
        let answer: PeerAnswer = codec::decode(&reply)
            .map_err(|error| AskError::Unknown(format!("its answer is not understood: {error}")))?;
        self.0.beacons.heard(speaker, answer.beacon);
        Ok(answer.reply)
    }

    /// The connection's smoothed round trip, if there is one: for ordering reads.
    pub fn rtt(&self, to: NodeId) -> Option<Duration> {
        self.0.state().link(self.0.me, to).map(|link| link.lanes.connection().rtt())
    }

    /// Whether there is a connection, over which hellos were exchanged.
    pub fn connected(&self, to: NodeId) -> bool {
        self.0.state().link(self.0.me, to).is_some()
    }

    /// Whether the link to a node is known to be down: its last connection was lost, or could not be made, and no newer one has come
    /// about. A call would fail at once, or wait for a dial that may be in vain.
    pub fn link_down(&self, to: NodeId) -> bool {
        let state = self.0.state();
        let failed = |peer: &Peer| peer.next_try.is_some();
        state.link(self.0.me, to).is_none() && state.peers.get(&to).is_some_and(failed)
    }

    /// Whether any peer that is known listens at an address, as far as that is known.
    pub fn listens_at(&self, addr: SocketAddr) -> bool {
        self.0.state().peers.values().any(|peer| peer.addr == Some(addr))
    }

    /// A gossip datagram; dropped when there is no connection (a dial starts).
    pub fn send_datagram(&self, to: NodeId, data: Bytes) {
        let mut state = self.0.state();
        if let Some(link) = state.link(self.0.me, to) {
            let connection = link.lanes.connection().clone();
            drop(state);
            let len = data.len();
            if buggify!("peers: a gossip datagram is not sent") {
                return;
            }
            if let Err(error) = connection.send_datagram(data) {
                tracing::debug!(peer = %to, len, "a datagram was not sent: {error}");
            }
        } else if state.may_dial(to, Instant::now()) {
            self.0.start_dial(&mut state, to);
        }
    }

    /// Tells where a node listens. A node itself knows better: what it says in its hello replaces this.
    pub fn learn(&self, node: NodeId, addr: SocketAddr) {
        let mut state = self.0.state();
        if node == self.0.me || (state.peers.len() >= PEERS_MAX && !state.peers.contains_key(&node)) {
            return;
        }
        let peer = state.peers.entry(node).or_default();
        if peer.links.is_empty() && peer.addr != Some(addr) {
            peer.addr = Some(addr);
            // The failures were another address's.
            (peer.failures, peer.next_try) = (0, None);
            drop(state);
            self.0.changed();
        }
    }

    /// Names the peers to be connected to at all times; replaces what was named before.
    pub fn keep_connected(&self, nodes: BTreeSet<NodeId>) {
        self.0.state().keep = nodes;
        self.0.changed();
    }

    /// Connects to whatever node of the cluster listens at an address, and asks who it is. The connection is kept, and the
    /// node is known from then on. Also answers for this node itself.
    ///
    /// # Errors
    /// Why there is no answer; nothing was changed anywhere.
    pub async fn hello_at(&self, addr: SocketAddr, timeout: Duration) -> Result<Hello, AskError> {
        let failed = |why: String| AskError::NotSent(format!("{addr}: {why}"));
        let (told, hello) = oneshot::channel();
        let shared = self.0.clone();
        self.0.spawn(async move {
            match shared.dial(addr, tls::ANY_NODE).await {
                Ok((node, connection)) => shared.run(node, connection, Some(told)).await,
                Err(why) => drop(told.send(Err(why))),
            }
        });
        match tokio::time::timeout(timeout, hello).await {
            Ok(Ok(result)) => result.map_err(failed),
            Ok(Err(_)) => Err(failed("this node is stopping".into())),
            Err(_) => Err(failed(format!("no answer within {}", time_text(timeout)))),
        }
    }

    /// Takes over a connection that a peer has dialed: the accepting code hands over every one that speaks [`ALPN_PEER`].
    /// One whose certificate is not a node's is closed.
    pub fn adopt(&self, connection: Connection) {
        assert_eq!(
            tls::alpn(&connection),
            ALPN_PEER,
            "only connections that speak the peers' protocol are handed over"
        );
        match self.0.peer_of(&connection) {
            Ok(node) => {
                widen_for_peer(&connection);
                self.0.spawn(self.0.clone().adopted(node, connection));
            }
            Err(why) => {
                tracing::warn!(from = %connection.remote_address(), "a peer connection was refused: {why}");
                connection.close(close::REFUSED, why.as_bytes());
            }
        }
    }

    /// Every peer that is known.
    pub fn status(&self) -> BTreeMap<NodeId, PeerLink> {
        let (state, now) = (self.0.state(), Instant::now());
        let link_of = |node, peer: &Peer| {
            let link = state.link(self.0.me, node);
            let next_try = peer.next_try.filter(|at| link.is_none() && *at > now);
            PeerLink {
                addr: peer.addr,
                hello: link.map(|link| link.hello.clone()),
                rtt: link.map(|link| link.lanes.connection().rtt()),
                last_error: peer.last_error.clone(),
                next_try_in: next_try.map(|at| at - now),
            }
        };
        state.peers.iter().map(|(node, peer)| (*node, link_of(*node, peer))).collect()
    }

    /// Closes every connection and ends every task at once. Calls fail from then on.
    pub fn shutdown(&self) {
        let peers = {
            let mut state = self.0.state();
            state.stopped = true;
            std::mem::take(&mut state.peers)
        };
        for link in peers.values().flat_map(|peer| &peer.links) {
            link.lanes.connection().close(close::SHUTDOWN, format!("{} is stopping", self.0.me).as_bytes());
        }
        lock(&self.0.tasks).abort_all();
        lock(&self.0.endpoint).take();
        self.0.changed();
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peers({})", self.0.me)
    }
}

/// How long a handshake may take: a living peer needs two round trips.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the exchange of hellos may take after it.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// The wait after the first failure; doubled with each further one. Jitter takes off up to half of it.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// The longest wait: what a peer that has come back is unreachable for at most, beside a handshake.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A connection that held for so long was a good one: the back-off begins anew after it.
const STEADY: Duration = Duration::from_secs(1);

/// How often a connection that this node dialed looks whether a better one has made it needless.
const RETIRE_EVERY: Duration = Duration::from_secs(5);

/// Datagrams that are not gossip, which is longer: whether the other end hears, and that it does.
const PROBE: &[u8] = &[0];
const PROBE_ANSWER: &[u8] = &[1];

/// How often it is asked whether it hears: as often as QUIC would keep the connection alive.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// An end that has answered no probe for so long does not hear. As long as it may be silent before it is taken for dead.
const NOT_HEARD: Duration = Duration::from_secs(4);

/// Connections to one peer: one each way, and the ones that replace them.
const LINKS_MAX: usize = 4;

/// Peers that are known; ten times the size of cluster that the design is made for.
const PEERS_MAX: usize = 1024;

struct Shared {
    me: NodeId,
    cluster: ClusterId,
    /// Taken away at shutdown, because a socket stays bound as long as somebody holds its endpoint.
    endpoint: Mutex<Option<Endpoint>>,
    dial: Mutex<quinn::ClientConfig>,
    random: Random,
    hello: Arc<dyn Fn(NodeId) -> Hello + Send + Sync>,
    beacons: Beacons,
    check: HelloCheck,
    datagrams: mpsc::Sender<(NodeId, Bytes)>,
    pools: Pools,
    /// Must not keep what keeps this pool.
    handler: Mutex<Option<PeerHandler>>,
    state: Mutex<State>,
    /// Counted up with every change of `state` that somebody may wait for.
    changes: watch::Sender<u64>,
    tasks: Mutex<JoinSet<()>>,
}

struct State {
    peers: BTreeMap<NodeId, Peer>,
    keep: BTreeSet<NodeId>,
    stopped: bool,
}

#[derive(Default)]
struct Peer {
    addr: Option<SocketAddr>,
    /// Open connections with hellos exchanged, oldest first.
    links: Vec<Link>,
    dialing: bool,
    /// In a row.
    failures: u32,
    /// When it may be dialed after the newest failure at this address; nothing before the first one.
    next_try: Option<Instant>,
    last_error: String,
}

#[derive(Clone)]
struct Link {
    lanes: Lanes,
    dialed: bool,
    hello: Hello,
    since: Instant,
}

impl Link {
    fn speaker(&self) -> Speaker {
        Speaker { node: self.hello.node, disk: self.hello.disk, life: self.hello.life }
    }
}

impl State {
    /// The connection to use: one that the node with the smaller name dialed, and of those the newest.
    fn link(&self, me: NodeId, to: NodeId) -> Option<&Link> {
        let links = self.peers.get(&to)?.links.iter().enumerate();
        let open = links.filter(|(_, link)| link.lanes.connection().close_reason().is_none());
        open.max_by_key(|(age, link)| (link.dialed == (me < to), *age)).map(|(_, link)| link)
    }

    fn may_dial(&self, to: NodeId, now: Instant) -> bool {
        let free = |peer: &Peer| !peer.dialing && peer.addr.is_some() && peer.next_try.is_none_or(|at| at <= now);
        !self.stopped && self.peers.get(&to).is_some_and(free)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(supervise::watched("peers", task));
    }

    /// The lanes to a peer, dialed if need be.
    async fn connect(self: &Arc<Self>, to: NodeId, deadline: Instant) -> Result<(Lanes, Speaker), AskError> {
        let not_sent = AskError::NotSent;
        let mut dialed = false;
        loop {
            let mut changes = {
                let mut state = self.state();
                if let Some(link) = state.link(self.me, to) {
                    return Ok((link.lanes.clone(), link.speaker()));
                }
                if state.stopped {
                    return Err(not_sent("this node is stopping".into()));
                }
                let (now, changes) = (Instant::now(), self.changes.subscribe());
                let addr = match state.peers.get(&to) {
                    Some(Peer { addr: Some(addr), .. }) => *addr,
                    _ => return Err(not_sent("it is not known where it listens".into())),
                };
                if state.may_dial(to, now) && !dialed {
                    self.start_dial(&mut state, to);
                    dialed = true;
                }
                // Whoever waits for a dial that follows on a failed one would mostly wait in vain, and long.
                let peer = &state.peers[&to];
                if !peer.dialing || peer.failures > 0 {
                    sometimes!("peers: a call failed in a back-off");
                    let (error, wait) = (&peer.last_error, peer.next_try.map(|at| at.saturating_duration_since(now)));
                    let next = match wait {
                        Some(wait) if !peer.dialing => format!("next try in {} ms", wait.as_millis()),
                        _ => "it is being dialed again".into(),
                    };
                    return Err(not_sent(format!("no connection to {addr}: {error}; {next}")));
                }
                changes
            };
            // The sender lives as long as this pool.
            if timeout_at(deadline, changes.changed()).await.is_err() {
                return Err(not_sent("the connection did not come about in time".into()));
            }
        }
    }

    fn start_dial(self: &Arc<Self>, state: &mut State, to: NodeId) {
        let Some(peer) = state.peers.get_mut(&to) else { return };
        let Some(addr) = peer.addr else { return };
        peer.dialing = true;
        let shared = self.clone();
        self.spawn(async move {
            match shared.dial(addr, &tls::node_name(to, shared.cluster)).await {
                Ok((node, connection)) => {
                    let (told, hello) = oneshot::channel();
                    let outcome = async {
                        if let Ok(Err(why)) = hello.await {
                            shared.failed(to, why);
                        }
                    };
                    tokio::join!(shared.clone().run(node, connection, Some(told)), outcome);
                }
                Err(why) => shared.failed(to, why),
            }
        });
    }

    fn failed(&self, to: NodeId, why: String) {
        let mut state = self.state();
        let Some(peer) = state.peers.get_mut(&to) else { return };
        peer.dialing = false;
        peer.failures = peer.failures.saturating_add(1);
        peer.next_try = Some(Instant::now() + self.backoff(peer.failures));
        if peer.last_error != why {
            tracing::info!(peer = %to, "not connected: {why}");
        }
        peer.last_error = why;
        drop(state);
        self.changed();
    }

    fn backoff(&self, failures: u32) -> Duration {
        let whole = BACKOFF_MAX.min(BACKOFF_MIN * (1 << failures.saturating_sub(1).min(10)));
        let whole = buggify!("peers: no back-off", whole, Duration::from_millis(1));
        let whole = buggify!("peers: the longest back-off", whole, BACKOFF_MAX);
        whole - Duration::from_micros(self.random.below(whole.as_micros() as u64 / 2))
    }

    /// A handshake with whoever is at an address.
    async fn dial(&self, addr: SocketAddr, name: &str) -> Result<(NodeId, Connection), String> {
        dawdle!("peers: a pause before a dial");
        let endpoint = lock(&self.endpoint).clone().ok_or("this node is stopping")?;
        let dial = lock(&self.dial).clone();
        let connecting = endpoint.connect_with(dial, addr, name).map_err(|error| format!("cannot dial: {error}"))?;
        drop(endpoint);
        match timeout(DIAL_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok((self.peer_of(&connection)?, connection)),
            Ok(Err(error)) => Err(explain_connection_error(&error)),
            Err(_) => Err(format!("no answer to the handshake within {DIAL_TIMEOUT:?}")),
        }
    }

    fn peer_of(&self, connection: &Connection) -> Result<NodeId, String> {
        match tls::peer_subject(connection) {
            Ok(Subject::Node { cluster, node }) if cluster == self.cluster => Ok(node),
            Ok(other) => Err(format!("{other} is not a node of the cluster {}", self.cluster)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The life of a connection that this node has dialed. `told` gets the other end's hello, or why there is none.
    async fn run(
        self: Arc<Self>,
        node: NodeId,
        connection: Connection,
        told: Option<oneshot::Sender<Result<Hello, String>>>,
    ) {
        let lanes = Lanes::new(connection.clone(), LanesConfig::default());
        let (ready, service) = self.service(node, &lanes, true);
        let _serving = Serving::start(&self, node, &connection, service);
        let greeted = self.greet(node, &lanes).await;
        match &greeted {
            Ok(hello) => {
                self.register(
                    node,
                    Link { lanes: lanes.clone(), dialed: true, hello: hello.clone(), since: Instant::now() },
                );
                ready.send_replace(true);
            }
            Err(why) => connection.close(close::REFUSED, why.as_bytes()),
        }
        let failed = greeted.is_err();
        if let Some(told) = told {
            // Fails only when nobody waits any more.
            let _ = told.send(greeted);
        }
        if failed {
            return;
        }
        let error = loop {
            let patience = buggify!("peers: needless connections are closed at once", RETIRE_EVERY, RETIRE_EVERY / 500);
            match timeout(patience, connection.closed()).await {
                Ok(error) => break error,
                Err(_) => {
                    let better = |link: &Link| link.lanes.connection().stable_id() != connection.stable_id();
                    let needless = node == self.me || self.state().link(self.me, node).is_some_and(better);
                    if needless && lanes.in_flight() == 0 {
                        sometimes!("peers: a needless connection was closed");
                        connection.close(close::DONE, b"another connection is preferred");
                    }
                }
            }
        };
        self.unregister(node, &connection, &explain_connection_error(&error));
    }

    /// The life of a connection that a peer has dialed.
    async fn adopted(self: Arc<Self>, node: NodeId, connection: Connection) {
        let lanes = Lanes::new(connection.clone(), LanesConfig::default());
        let (ready, service) = self.service(node, &lanes, false);
        let _serving = Serving::start(&self, node, &connection, service);
        let greeted = timeout(HELLO_TIMEOUT, ready.subscribe().wait_for(|ready| *ready)).await.is_ok();
        if !greeted {
            connection.close(close::REFUSED, b"no acceptable hello came");
            return;
        }
        let error = connection.closed().await;
        self.unregister(node, &connection, &explain_connection_error(&error));
    }

    fn service(self: &Arc<Self>, node: NodeId, lanes: &Lanes, dialed: bool) -> (watch::Sender<bool>, Service) {
        let ready = watch::Sender::new(false);
        (ready.clone(), Service { shared: self.clone(), node, lanes: lanes.clone(), dialed, ready })
    }

    /// Says who this node is and hears who the other one is.
    async fn greet(&self, node: NodeId, lanes: &Lanes) -> Result<Hello, String> {
        dawdle!("peers: a pause before hello");
        let body = PeerBody::Hello((self.hello)(node));
        let request = codec::encode(&PeerRequest { request_id: 0, beacon: self.beacons.durable(), body });
        let reply = lanes.call(class::CONTROL, request, HELLO_TIMEOUT).await.map_err(|error| error.to_string())?;
        match codec::decode::<PeerAnswer>(&reply).map(|answer| answer.reply) {
            Ok(PeerReply::Hello(hello)) => self.check_hello(node, &hello).map(|()| hello),
            Ok(PeerReply::Refused(why)) => Err(format!("it refuses this node: {why}")),
            Ok(_) => Err("it answered something else to a hello".into()),
            Err(error) => Err(format!("its hello is not understood: {error}")),
        }
    }

    fn check_hello(&self, node: NodeId, hello: &Hello) -> Result<(), String> {
        if hello.node != node {
            return Err(format!("its certificate names it {node}, it calls itself {}", hello.node));
        }
        if hello.cluster != self.cluster {
            return Err(format!("it is of cluster {}, this node is of {}", hello.cluster, self.cluster));
        }
        (self.check)(hello)?;
        self.beacons.heard(Speaker { node, disk: hello.disk, life: hello.life }, hello.beacon);
        self.beacons.greeted(node);
        Ok(())
    }

    fn register(&self, node: NodeId, link: Link) {
        let mut state = self.state();
        if state.stopped || (state.peers.len() >= PEERS_MAX && !state.peers.contains_key(&node)) {
            link.lanes.connection().close(close::SHUTDOWN, b"no room, or stopping");
            return;
        }
        if node == self.me {
            return;
        }
        let peer = state.peers.entry(node).or_default();
        peer.dialing &= !link.dialed;
        // What an earlier life of the peer left behind is dead, though the idle time-out has not noticed yet.
        let (live, mut gone): (Vec<Link>, Vec<Link>) =
            std::mem::take(&mut peer.links).into_iter().partition(|old| old.hello.boot >= link.hello.boot);
        sometimes!("peers: the connections of an earlier life were closed", !gone.is_empty());
        sometimes!("peers: two connections to one peer", !live.is_empty());
        peer.links = live;
        if peer.links.len() >= LINKS_MAX {
            gone.push(peer.links.remove(0));
        }
        peer.addr = Some(link.hello.addr);
        let first = peer.links.is_empty();
        let dialed = link.dialed;
        peer.links.push(link);
        drop(state);
        for link in gone {
            link.lanes.connection().close(close::DONE, b"replaced by a newer connection");
        }
        if first {
            tracing::info!(peer = %node, dialed, "connected");
        }
        self.changed();
    }

    fn unregister(&self, node: NodeId, connection: &Connection, why: &str) {
        let mut state = self.state();
        let stopped = state.stopped;
        let Some(peer) = state.peers.get_mut(&node) else { return };
        let ours = |link: &Link| link.lanes.connection().stable_id() == connection.stable_id();
        let Some(at) = peer.links.iter().position(ours) else { return };
        let steady = peer.links.remove(at).since.elapsed() >= STEADY;
        if stopped || !peer.links.is_empty() {
            return;
        }
        tracing::info!(peer = %node, "connection lost: {why}");
        peer.last_error = format!("the connection was lost: {why}");
        peer.failures = if steady { 0 } else { peer.failures.saturating_add(1) };
        peer.next_try = Some(Instant::now() + self.backoff(peer.failures));
        drop(state);
        self.changed();
    }

    /// Dials whoever is to be connected and is not.
    async fn keep_connected(self: Arc<Self>) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let wake = {
                let (mut state, now) = (self.state(), Instant::now());
                if state.stopped {
                    return;
                }
                let missing: Vec<NodeId> =
                    state.keep.iter().copied().filter(|node| state.link(self.me, *node).is_none()).collect();
                for node in &missing {
                    if state.may_dial(*node, now) {
                        self.start_dial(&mut state, *node);
                    }
                }
                let waiting = missing.iter().filter_map(|node| state.peers.get(node)).filter(|peer| !peer.dialing);
                waiting.filter_map(|peer| peer.next_try).min()
            };
            // Without anybody to wait for, only a change can give work.
            let Some(wake) = wake else {
                if changes.changed().await.is_err() {
                    return;
                }
                continue;
            };
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                () = sleep_until(wake) => {}
            }
        }
    }
}

/// The tasks that serve one connection; they end with it.
struct Serving {
    _tasks: JoinSet<()>,
}

impl Serving {
    fn start(shared: &Arc<Shared>, node: NodeId, connection: &Connection, service: Service) -> Self {
        let mut tasks = JoinSet::new();
        let (served, mut limits) = (connection.clone(), shared.pools.peer(node));
        if buggify!("peers: few requests of a peer at a time") {
            limits.classes.iter_mut().for_each(|limits| limits.in_flight_max = 1);
        }
        tasks.spawn(supervise::watched("a peer's requests", async move {
            let why = rpc::serve(served, service, limits).await;
            tracing::debug!(peer = %node, "no longer served: {why}");
        }));
        let (gossip, datagrams) = (connection.clone(), shared.datagrams.clone());
        let answered = Arc::new(Notify::new());
        let (probes, heard) = (connection.clone(), answered.clone());
        tasks.spawn(supervise::watched("a peer's gossip", async move {
            while let Ok(data) = gossip.read_datagram().await {
                match &*data {
                    // Fails only when the connection has ended.
                    PROBE => drop(gossip.send_datagram(Bytes::from_static(PROBE_ANSWER))),
                    PROBE_ANSWER => heard.notify_one(),
                    _ if buggify!("peers: a gossip datagram is not taken") => {}
                    // Gossip repeats itself: what does not fit in is dropped.
                    _ => drop(datagrams.try_send((node, data))),
                }
            }
        }));
        tasks.spawn(supervise::watched("a peer's hearing", close_when_not_heard(probes, answered)));
        Self { _tasks: tasks }
    }
}

/// Closes a connection whose other end does not hear this one, although it may be heard. As long as anything arrives, QUIC's idle
/// time-out takes such a connection for a good one, and a coordinator would count on peers that it cannot reach.
async fn close_when_not_heard(connection: Connection, answered: Arc<Notify>) {
    let mut heard = Instant::now();
    while connection.close_reason().is_none() {
        // Fails only when the connection has ended.
        let _ = connection.send_datagram(Bytes::from_static(PROBE));
        let next = Instant::now() + PROBE_EVERY;
        if timeout_at(next, answered.notified()).await.is_ok() {
            heard = Instant::now();
            sleep_until(next).await;
        } else if heard.elapsed() >= NOT_HEARD {
            sometimes!("peers: a connection whose other end does not hear was closed");
            connection.close(close::SILENT, b"you answer no probe");
        }
    }
}

/// What is told of a request: its name, and the keys that it is about, if anybody listens.
fn told_of(body: &PeerBody) -> (&'static str, Vec<Blob>) {
    let keys = if story::is_told() { body.keys().into_iter().cloned().collect() } else { Vec::new() };
    (body.name(), keys)
}

/// Answers the requests that come over one connection.
#[derive(Clone)]
struct Service {
    shared: Arc<Shared>,
    node: NodeId,
    lanes: Lanes,
    dialed: bool,
    /// Becomes true when hellos were exchanged.
    ready: watch::Sender<bool>,
}

impl rpc::Handler for Service {
    async fn handle(&self, Arrived { body, timeout, room, .. }: Arrived) -> Bytes {
        supervise::watched("a peer's request", self.answer(body, timeout, room)).await
    }

    fn refuse(&self, _class: u8) -> Bytes {
        let reply = PeerReply::Refused(OVERLOADED);
        codec::encode(&PeerAnswer { beacon: self.shared.beacons.durable(), reply })
    }
}

impl Service {
    async fn answer(&self, body: Bytes, timeout: Duration, room: Room) -> Bytes {
        let until = Instant::now() + timeout;
        let reply = match codec::decode::<PeerRequest>(&body) {
            Ok(PeerRequest { body: PeerBody::Hello(hello), .. }) => self.greeted(hello),
            Ok(request) => {
                // The other end may hear our hello and go on before we have heard its one.
                let begun = Instant::now();
                // Fails only when the sender is gone, and this is one.
                let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
                if let Some(speaker) = self.speaker() {
                    self.shared.beacons.heard(speaker, request.beacon);
                }
                let (me, from, id) = (self.shared.me, self.node, request.request_id);
                let (what, keys) = told_of(&request.body);
                for key in &keys {
                    tell!(act = "asked", key = %story::text(key), node = %me, %from, request = id, what);
                }
                let handler = lock(&self.shared.handler).clone();
                let reply = match handler {
                    Some(handler) => {
                        handler(from, request, timeout.saturating_sub(begun.elapsed()), room.clone()).await
                    }
                    None => PeerReply::Refused(NotApplied::NotServing { node: me, why: "it is starting".into() }),
                };
                for key in &keys {
                    tell!(act = "tell", key = %story::text(key), node = %me, to = %from, request = id, what,
                        said = reply.said(), ok = reply.is_ok());
                }
                reply
            }
            Err(error) => PeerReply::Refused(NotApplied::Unsupported { why: error.to_string() }),
        };
        let answer = codec::encode(&PeerAnswer { beacon: self.shared.beacons.durable(), reply });
        if !room.covers(answer.len(), REQUEST_LEN) {
            // Nobody waits any longer than that: then it is dropped with this future.
            let _ = room.take(answer.len(), until).await;
        }
        answer
    }

    fn greeted(&self, hello: Hello) -> PeerReply {
        if let Err(why) = self.shared.check_hello(self.node, &hello) {
            tracing::warn!(peer = %self.node, "a hello was refused: {why}");
            return PeerReply::Refused(NotApplied::Refused { why });
        }
        if !self.dialed && !self.ready.send_replace(true) {
            let (lanes, since) = (self.lanes.clone(), Instant::now());
            self.shared.register(self.node, Link { lanes, dialed: false, hello, since });
        }
        PeerReply::Hello((self.shared.hello)(self.node))
    }

    /// Who is at the other end, if the connection has not been given up.
    fn speaker(&self) -> Option<Speaker> {
        let state = self.shared.state();
        let ours = |link: &&Link| link.lanes.connection().stable_id() == self.lanes.connection().stable_id();
        state.peers.get(&self.node)?.links.iter().find(ours).map(Link::speaker)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

#[cfg(test)]
pub(crate) mod tests;
