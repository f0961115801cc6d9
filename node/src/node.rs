//! A node: puts the parts together, and takes them apart again.
//!
//! ```text
//!   clients --\                         /-- replica --- store (committer: durable)
//!              server --- coordinator --
//!   peers ----/     \                   \-- peers ----> other nodes
//!                    layouts, membership (who owns what, who is up)
//! ```

mod follow;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::Endpoint;
use quorate_transport::link;
use quorate_transport::quic;
use quorate_transport::tls::{self, Credentials, Subject};
use quorate_transport::{Link, Seams};
use quorate_wire::Quorum;
use quorate_wire::address;
use quorate_wire::ids::{LayoutVersion, NodeId};
use quorate_wire::sometimes;
use quorate_wire::{ALPN_CLIENT, NodeStatus, NotApplied};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

use crate::addresses;
use crate::anti_entropy::{self, AntiEntropy, AntiEntropyConfig};
use crate::beacons::{self, Beacons};
use crate::certificate::Certificate;
pub use crate::coordinator::Mechanisms;
use crate::coordinator::{Coordinator, CoordinatorParts, Defaults};
use crate::env::Env;
use crate::handoff::{self, Handoff};
use crate::http;
use crate::layouts::{LayoutStore, Layouts, Obstacle};
use crate::membership::{self, Membership};
use crate::metrics::{Metrics, Sample};
use crate::peer_wire::{ALPN_PEER, Hello, PeerReply};
use crate::peers::{HelloCheck, Peers, PeersConfig};
use crate::recovery::{Doubt, Reason, Recovery};
use crate::replica::Replica;
use crate::replica_service::ReplicaService;
use crate::request_memory::Pools;
use crate::server::{self, Admission, Services};
use crate::status::{OtherLayouts, Status};
use crate::store::room::Reserved;
use crate::store::{Committer, DiskRoom, Durability, Identity, Opened, Store, StoreError, SyncFailed};
use crate::supervise;
use quorate_core::bootstrap::Me;

/// What makes one node differ from another.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its name; the certificate must be this node's.
    pub node: NodeId,
    /// Where it listens (UDP).
    pub listen: SocketAddr,
    /// Where others reach it, if that is not `listen`. Needed when `listen` is a wildcard address.
    pub advertise: Option<SocketAddr>,
    /// Where it shows its health and its metrics (HTTP over TCP, see [`crate::http`]), if it does.
    pub http: Option<SocketAddr>,
    /// Nodes to look for when it starts; one that lives is enough.
    pub join: Vec<SocketAddr>,
    /// Certificate, key and authority.
    pub credentials: Credentials,
    /// When a write is acknowledged.
    pub durability: Durability,
    /// How often the mode [`Durability::Interval`] syncs.
    pub sync_interval: Duration,
    /// What heals; all of it, unless a simulation leaves some out.
    pub mechanisms: Mechanisms,
    /// How it compares itself with others.
    pub anti_entropy: AntiEntropyConfig,
    /// Whether it helps to decide on a layout after the first one: not before more is proven, unless whoever runs it asks for it.
    pub layout_changes: bool,
}

/// A running node. Dropping it is a crash: its tasks end where they stand and nothing is marked as clean.
pub struct Node {
    id: NodeId,
    addr: SocketAddr,
    http: Option<http::Port>,
    endpoint: Endpoint,
    peers: Peers,
    /// The pool of peers reaches it as well, and does not keep it.
    services: Arc<Services>,
    membership: Membership,
    handoff: Handoff,
    replica: Replica,
    beacons: Beacons,
    boot: u64,
    committer: Committer,
    store: Arc<dyn Store>,
    status: Status,
    fatal: watch::Receiver<Option<String>>,
    tasks: Tasks,
    certificates: Certificates,
}

impl Node {
    /// Binds the HTTP port, opens the store, binds the port, joins the others and begins to serve, in this order.
    ///
    /// # Errors
    /// When a part of the configuration is wrong, the store is not to be had, or a port is taken. A quarantined store is
    /// no error: the node runs, shows itself, and serves no data.
    pub async fn start(config: NodeConfig, mut env: Env) -> Result<Self, StartError> {
        env.seams.runtime = supervise::runtime(env.seams.runtime);
        let advertise = check(&config, &env)?;
        let http = open_http(&config, &env).await?;
        let open = Arc::clone(&env.open_store);
        let opened = env.executor.run(move || open()).await?;
        let port = Port::bind(&config, &env, advertise).await?;
        let disk = Disk::open(&config, &env, opened).await?;
        let cluster = Cluster::join(&config, &env, &disk, &port).await?;
        let decided = disk.judge(&cluster.layouts).await?;
        let node = Self::serve(config, env, (http, disk, port, cluster), decided);
        let http = node.http_addr().map(tracing::field::display);
        info!(node = %node.id, addr = %node.addr, http, cluster = %node.status.cluster, "listening");
        Ok(node)
    }

    /// Puts together what serves requests and what heals, and begins.
    fn serve(config: NodeConfig, env: Env, parts: (Option<http::Port>, Disk, Port, Cluster), decided: bool) -> Self {
        let (me, random, wall_clock) = (config.node, &env.seams.random, &env.seams.wall_clock);
        let (http, disk, port, Cluster { peers, membership, layouts, other_layouts }) = parts;
        let coordinator = Coordinator::new(CoordinatorParts {
            me,
            cluster: disk.identity.cluster,
            layouts: layouts.clone(),
            membership: membership.clone(),
            replica: disk.replica.clone(),
            peers: peers.clone(),
            defaults: Defaults { r: Quorum::Majority, w: Quorum::Majority },
            mechanisms: config.mechanisms,
            wall_clock: Arc::clone(wall_clock),
        });
        let handoff = Handoff::start(handoff::Parts {
            me,
            layouts: layouts.clone(),
            liveness: membership.liveness(),
            replica: disk.replica.clone(),
            peers: peers.clone(),
        });
        let anti_entropy = AntiEntropy::start(anti_entropy::Parts {
            me,
            config: config.anti_entropy,
            layouts: layouts.clone(),
            membership: membership.clone(),
            replica: disk.replica.clone(),
            peers: peers.clone(),
            beacons: disk.beacons.clone(),
            random: random.fork(),
        });
        let certificate = Certificate::new(&config.credentials, Arc::clone(wall_clock));
        let (metrics, admission) = (env.metrics.clone(), Admission::new(port.pools));
        let status = Status {
            cluster: disk.identity.cluster,
            identity: disk.identity.clone(),
            started: Instant::now(),
            durability: durability_name(config.durability),
            store: Arc::clone(&disk.store),
            layouts: layouts.clone(),
            membership: membership.clone(),
            metrics: metrics.clone(),
            quarantined: disk.quarantined.clone(),
            handoff: handoff.clone(),
            anti_entropy: anti_entropy.clone(),
            wall_clock: Arc::clone(wall_clock),
            room: disk.room.clone(),
            certificate: certificate.clone(),
            other_layouts,
        };
        watch_parts(&metrics, &status, &admission, &disk.replica, &coordinator);
        let services = Arc::new(Services {
            me,
            replica_service: ReplicaService::new(me, layouts.clone(), disk.replica.clone(), coordinator.clone()),
            coordinator: coordinator.clone(),
            anti_entropy: anti_entropy.clone(),
            layouts: layouts.clone(),
            status: status.clone(),
            metrics,
            admission,
            quarantined: disk.quarantined.clone(),
        });
        serve_peers(&peers, &services);
        let tasks = Tasks::start(&env, &disk, (&port.endpoint, &services), (&peers, &membership), decided);
        if let Some(http) = &http {
            let status = status.clone();
            http.started(Arc::new(move || status.not_ready().map_or(Ok(()), Err)));
        }
        Self {
            id: me,
            addr: port.addr,
            http,
            endpoint: port.endpoint,
            peers,
            services,
            membership,
            handoff,
            replica: disk.replica,
            beacons: disk.beacons,
            boot: disk.identity.boot,
            committer: disk.committer,
            store: disk.store,
            status,
            fatal: disk.fatal,
            tasks,
            certificates: Certificates {
                seams: env.seams,
                subject: config.credentials.subject().clone(),
                accepting: port.accepting,
                certificate,
            },
        }
    }

    /// Its name.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Where others reach it.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where its HTTP port is, if it has one.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(http::Port::addr)
    }

    /// Looks for other nodes at one more address, as at those of [`NodeConfig::join`].
    pub async fn seek(&self, addr: SocketAddr) {
        self.membership.seek(addr).await;
    }

    /// What it knows of itself and its peers.
    pub fn status(&self) -> NodeStatus {
        self.status.report()
    }

    /// Shows another certificate from now on, to whoever dials and to whomever it dials. Connections that run stay as they are.
    ///
    /// # Errors
    /// When it is not this node's, or not valid now; then everything stays as it was.
    pub fn renew(&self, credentials: &Credentials) -> Result<(), StartError> {
        let Certificates { seams, subject, accepting, certificate } = &self.certificates;
        let error = |error: tls::TlsError| StartError(error.to_string());
        if credentials.subject() != subject {
            return Err(StartError(format!("the certificate is {}'s, not {subject}'s", credentials.subject())));
        }
        credentials.check_validity((seams.wall_clock)()).map_err(error)?;
        let dial = tls::client_config(seams, credentials, ALPN_PEER, Link::Peer).map_err(error)?;
        // The rest stays: an address that was proved under the old configuration is proved under the new one.
        let mut accept = accepting.clone();
        accept.crypto = tls::server_config(seams, credentials, &ALPNS).map_err(error)?.crypto;
        self.endpoint.set_server_config(Some(accept));
        self.peers.renew(dial);
        certificate.renewed(credentials);
        Ok(())
    }

    /// Waits until the node cannot go on, and says why: a sync failed, so that nobody knows what is on its disk. The
    /// process must end; the next start finds out.
    pub async fn stopped(&self) -> String {
        let mut fatal = self.fatal.clone();
        let why = fatal.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(why) => why,
            // Nobody is left who could report a failure.
            None => std::future::pending().await,
        }
    }

    /// Ends it: tells the others, closes the connections, syncs, and marks the store as cleanly closed. The HTTP port, which says so
    /// meanwhile, is closed last.
    ///
    /// # Errors
    /// When the last sync failed: everything that was acknowledged was synced before (but for the mode `interval`).
    pub async fn shutdown(&self, limit: Duration) -> Result<(), StoreError> {
        if let Some(http) = &self.http {
            http.stopping();
        }
        let closed = self.stop_serving(limit).await;
        if let Some(http) = &self.http {
            http.close().await;
        }
        closed
    }

    async fn stop_serving(&self, limit: Duration) -> Result<(), StoreError> {
        let farewell = async {
            self.services.coordinator.shutdown(limit / 2).await;
            self.membership.leave().await;
        };
        if timeout(limit, farewell).await.is_err() {
            warn!("peers were not told of the shutdown within {limit:?}; they will notice");
        }
        self.endpoint.close(0u32.into(), b"the node is shutting down");
        // Every other end has been told by now; a connection that drains for longer has nobody at its other end.
        let _ = timeout(limit.min(DRAIN_TIME), self.endpoint.wait_idle()).await;
        self.end_tasks();
        self.replica.save_beacons(&self.beacons).await;
        let saved = timeout(limit, self.replica.close(self.boot)).await;
        if let Err(why) =
            saved.map_err(|_| format!("not within {limit:?}")).and_then(|saved| saved.map_err(|e| e.to_string()))
        {
            warn!("the hash trees were not saved, the next start sums them up anew: {why}");
        }
        self.committer.stop();
        if self.replica.recovery().must_be_judged() && self.services.layouts.current().is_some() {
            // What this disk lacks is not noted on it yet. A stop that looked clean would have that forgotten.
            warn!("it could not be noted what this disk lacks: the next start judges it anew, as after a crash");
            return self.store.sync();
        }
        self.store.close()
    }

    /// Ends the tasks. They keep what they work on, the port and the store among it.
    fn end_tasks(&self) {
        self.tasks.abort();
        self.handoff.shutdown();
        self.services.anti_entropy.shutdown();
        self.services.layouts.shutdown();
        self.peers.shutdown();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end_tasks();
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({} at {})", self.id, self.addr)
    }
}

/// Why a node does not start.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}

/// Checks what can be wrong with a configuration before anything is opened. Returns where others are to reach the node.
fn check(config: &NodeConfig, env: &Env) -> Result<SocketAddr, StartError> {
    let me = config.node;
    match config.credentials.subject() {
        Subject::Node { node, .. } if *node == me => {}
        other => {
            return Err(StartError(format!(
                "the certificate is {other}'s, not node {me}'s: issue one with `quorate cert node {me}`"
            )));
        }
    }
    let advertise = config.advertise.unwrap_or(config.listen);
    address::check_listen(config.listen).map_err(|why| StartError(format!("cannot listen: {why}")))?;
    address::check_dial(advertise)
        .map_err(|why| StartError(format!("others cannot reach this node: {why}, as `advertise`")))?;
    config.credentials.check_validity((env.seams.wall_clock)()).map_err(|error| StartError(error.to_string()))?;
    Ok(advertise)
}

/// Binds the HTTP port, if there is to be one. It is the first that is taken, before anything is opened or written, so that a monitor
/// sees a start that takes long, or waits for its disk.
async fn open_http(config: &NodeConfig, env: &Env) -> Result<Option<http::Port>, StartError> {
    let Some(addr) = config.http else { return Ok(None) };
    let opened = http::Port::open(&env.bind_tcp, addr, env.metrics.clone()).await;
    opened.map(Some).map_err(|error| StartError(format!("HTTP on {addr}: {error}")))
}

/// The UDP port that all of a node's traffic goes by.
struct Port {
    endpoint: Endpoint,
    /// How it accepts connections, and how it dials peers.
    accepting: quinn::ServerConfig,
    dial: quinn::ClientConfig,
    /// Where others reach it.
    addr: SocketAddr,
    pools: Pools,
}

impl Port {
    async fn bind(config: &NodeConfig, env: &Env, advertise: SocketAddr) -> Result<Self, StartError> {
        let in_vain = |error: &dyn fmt::Display| StartError(format!("cannot listen on {}: {error}", config.listen));
        let socket = (env.bind_udp)(config.listen).await.map_err(|error| in_vain(&error))?;
        let tls_error = |error: tls::TlsError| StartError(error.to_string());
        let mut accepting = tls::server_config(&env.seams, &config.credentials, &ALPNS).map_err(tls_error)?;
        link::set_client_window(&mut accepting, env.request_memory.client_window());
        let pools = Pools::new(env.request_memory);
        let dial = tls::client_config(&env.seams, &config.credentials, ALPN_PEER, Link::Peer).map_err(tls_error)?;
        let endpoint = quic::endpoint(&env.seams, socket, Some(accepting.clone())).map_err(|error| in_vain(&error))?;
        let listening = endpoint.local_addr().map_err(|error| StartError(error.to_string()))?;
        let port = if advertise.port() == 0 { listening.port() } else { advertise.port() };
        Ok(Self { endpoint, accepting, dial, addr: SocketAddr::new(advertise.ip(), port), pools })
    }
}

/// What a node has on its disk, and what works on it.
struct Disk {
    store: Arc<dyn Store>,
    room: DiskRoom,
    identity: Identity,
    quarantined: Option<Arc<str>>,
    start: follow::Start,
    /// To be told of a sync that failed; and what was told.
    failed: SyncFailed,
    fatal: watch::Receiver<Option<String>>,
    committer: Committer,
    recovery: Recovery,
    beacons: Beacons,
    replica: Replica,
}

impl Disk {
    async fn open(config: &NodeConfig, env: &Env, opened: Opened) -> Result<Self, StartError> {
        let me = config.node;
        let room = DiskRoom::new(env.space.clone(), env.disk_reserve);
        let store: Arc<dyn Store> = Arc::new(Reserved::new(opened.store, room.clone()));
        let identity = opened.identity;
        let quarantined: Option<Arc<str>> = opened.quarantined.map(Into::into);
        if let Some(why) = &quarantined {
            error!(node = %me, "QUARANTINED, no data is served: {why}");
        }
        let (fatal_tx, fatal) = watch::channel(None);
        let failed: SyncFailed = Arc::new(move |why: String| {
            error!("a sync failed, this node must end: {why}");
            fatal_tx.send_replace(Some(why));
        });
        let committer = Committer::start(
            Arc::clone(&store),
            env.executor.clone(),
            config.durability,
            config.sync_interval,
            failed.clone(),
        );
        // Before the first write.
        committer.withhold(quarantined.is_none());
        let random = &env.seams.random;
        let reader = Arc::clone(&store);
        let recovery = env.executor.run(move || Recovery::open(reader)).await?;
        // Until the layout is known, and what others remember, so is not whether this disk lacks something.
        recovery.doubt(Doubt::Layout);
        recovery.doubt(Doubt::Start);
        let beacons = {
            let (reader, life, committer) = (Arc::clone(&store), random.u64(), committer.clone());
            env.executor.run(move || Beacons::open(&*reader, life, committer)).await
        };
        let replica = Replica::new(
            me,
            Arc::clone(&store),
            env.executor.clone(),
            committer.clone(),
            random.fork(),
            recovery.clone(),
        );
        replica.set_room(room.clone());
        if quarantined.is_none() {
            replica.load_hints().await?;
        }
        let start = follow::Start {
            me,
            disk: identity.disk,
            unclean: !identity.clean,
            interval: config.durability == Durability::Interval,
        };
        Ok(Self { store, room, identity, quarantined, start, failed, fatal, committer, recovery, beacons, replica })
    }

    /// Finds out what the disk lacks, if a layout says what it must hold. Tells whether that is decided, or needs not be.
    async fn judge(&self, layouts: &Layouts) -> Result<bool, StartError> {
        let Self { identity, quarantined, start, committer, replica, .. } = self;
        let Some(current) = layouts.current() else { return Ok(quarantined.is_some()) };
        replica.set_partitions(current.layout.partitions);
        // Nothing is under way yet that an earlier process has begun.
        replica.raise_fence(current.version()).await;
        // An unclean stop leaves data that the saved trees know nothing of.
        if identity.clean {
            let loaded = replica.load_trees(identity.boot).await;
            sometimes!("hash trees: taken over from a clean stop", loaded > 0);
        }
        if quarantined.is_some() {
            return Ok(true);
        }
        match replica.decide(start.facts(&current)).await {
            Ok(()) => {
                committer.withhold(false);
                Ok(true)
            }
            // It is tried again until there is room; until then no reads are answered.
            Err(error @ (StoreError::NoRoom(_) | StoreError::Full(_))) => {
                warn!("it cannot be noted what this disk lacks: {error}");
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What a node knows of the others, and how it reaches them.
struct Cluster {
    peers: Peers,
    membership: Membership,
    layouts: Layouts,
    other_layouts: OtherLayouts,
}

impl Cluster {
    async fn join(config: &NodeConfig, env: &Env, disk: &Disk, port: &Port) -> Result<Self, StartError> {
        let (me, random) = (config.node, &env.seams.random);
        let who = Me { node: me, disk: disk.identity.disk, cluster: disk.identity.cluster };
        let executors = (env.executor.clone(), env.computing.clone());
        let known = LayoutStore::open(Arc::clone(&disk.store), executors, who, disk.failed.clone()).await?;
        let known = Arc::new(known);
        let other_layouts = OtherLayouts::default();
        let (datagrams_tx, datagrams) = mpsc::channel(DATAGRAMS_MAX);
        let peers = Peers::start(PeersConfig {
            me,
            endpoint: port.endpoint.clone(),
            cluster: disk.identity.cluster,
            dial: port.dial.clone(),
            random: random.fork(),
            hello: says(&disk.identity, port.addr, &known, &disk.beacons),
            beacons: disk.beacons.clone(),
            check: hears(&known, &other_layouts, &disk.beacons, &disk.recovery),
            datagrams: datagrams_tx,
            pools: port.pools.clone(),
        });
        let reading = Arc::clone(&disk.store);
        let last_seen = env.executor.run(move || addresses::remembered(&*reading)).await;
        let membership = Membership::start(membership::Parts {
            me: membership::Identity::new(me, port.addr, disk.identity.boot),
            peers: peers.clone(),
            datagrams,
            seeds: config.join.clone(),
            remembered: last_seen,
            random: random.fork(),
        });
        let layouts = Layouts::start(known, peers.clone(), &membership, random.fork());
        if config.layout_changes {
            layouts.allow_changes();
        }
        layouts.vote_unless(doubts(&disk.recovery));
        Ok(Self { peers, membership, layouts, other_layouts })
    }
}

/// Why this node's disk may have lost what it has promised, so that it must not vote on layouts.
fn doubts(recovery: &Recovery) -> Obstacle {
    let recovery = recovery.clone();
    Box::new(move || {
        if recovery.is_in_doubt() {
            return Some("it is not known yet whether its disk was rolled back".into());
        }
        let rolled_back = recovery.progress().filter(|progress| progress.reason == Reason::RolledBack);
        rolled_back.map(|progress| progress.reason.to_string())
    })
}

/// What a node says of itself to another one.
fn says(
    identity: &Identity,
    addr: SocketAddr,
    known: &Arc<LayoutStore>,
    beacons: &Beacons,
) -> Arc<dyn Fn(NodeId) -> Hello + Send + Sync> {
    let (identity, known, beacons) = (identity.clone(), Arc::clone(known), beacons.clone());
    Arc::new(move |to| Hello {
        cluster: identity.cluster,
        node: identity.node,
        disk: identity.disk,
        boot: identity.boot,
        addr,
        layout: known.current().map_or(LayoutVersion::NONE, |current| current.layout.version),
        first_layout: known.accepted_first(),
        release: env!("CARGO_PKG_VERSION").into(),
        life: beacons.life(),
        beacon: beacons.start(),
        remembers: beacons.of(to),
    })
}

/// What a node makes of what another one says of itself, before anything is answered to it.
fn hears(known: &Arc<LayoutStore>, other_layouts: &OtherLayouts, beacons: &Beacons, recovery: &Recovery) -> HelloCheck {
    let (known, other_layouts) = (Arc::clone(known), other_layouts.clone());
    let (beacons, recovery) = (beacons.clone(), recovery.clone());
    Arc::new(move |hello: &Hello| {
        other_layouts.heard(hello, known.accepted_first());
        if beacons.told(&hello.remembers) {
            recovery.doubt(Doubt::SetBack);
            beacons.announce_set_back();
        }
        known.first_hash_conflicts(hello.first_layout).map_or(Ok(()), Err)
    })
}

/// Has peers' requests carried out. The services reach the peers, so that these must not keep them.
fn serve_peers(peers: &Peers, services: &Arc<Services>) {
    let (me, services) = (services.me, Arc::downgrade(services));
    peers.set_handler(Arc::new(move |from, request, timeout, room| {
        let services = services.upgrade();
        Box::pin(async move {
            match services {
                Some(services) => services.answer_peer(from, request, timeout, room).await,
                None => PeerReply::Refused(NotApplied::NotServing { node: me, why: "it is stopping".into() }),
            }
        })
    }));
}

/// What it takes to show another certificate.
struct Certificates {
    seams: Seams,
    subject: Subject,
    accepting: quinn::ServerConfig,
    certificate: Certificate,
}

/// The protocols that a node accepts.
const ALPNS: [&[u8]; 2] = [ALPN_PEER, ALPN_CLIENT];

/// Ends its tasks when it is dropped.
#[derive(Debug)]
struct Tasks(Vec<AbortHandle>);

impl Tasks {
    /// Starts what runs as long as the node does, beside the tasks of its parts.
    fn start(
        env: &Env,
        disk: &Disk,
        (endpoint, services): (&Endpoint, &Arc<Services>),
        (peers, membership): (&Peers, &Membership),
        decided: bool,
    ) -> Self {
        let (me, layouts, executor) = (services.me, &services.layouts, &env.executor);
        let Disk { store, room, committer, replica, recovery, beacons, start, .. } = disk;
        let accept = server::accept(endpoint.clone(), Services::clone(services), peers.clone());
        let follow_layouts = follow::layouts(
            start.clone(),
            decided,
            layouts.clone(),
            replica.clone(),
            peers.clone(),
            membership.clone(),
            committer.clone(),
        );
        let follow_hellos = follow::hellos(me, layouts.clone(), recovery.clone(), beacons.clone());
        let follow_set_backs = follow::set_backs(me, layouts.clone(), replica.clone(), beacons.clone());
        let remember_beacons = beacons::remember(beacons.clone(), replica.clone());
        let remember = addresses::remember(me, Arc::clone(store), executor.clone(), membership.liveness());
        let tasks = [
            supervise::spawn("accept", accept),
            supervise::spawn("layouts followed", follow_layouts),
            supervise::spawn("hellos followed", follow_hellos),
            supervise::spawn("set-backs followed", follow_set_backs),
            supervise::spawn("votes after a set-back", follow::votes(layouts.clone())),
            supervise::spawn("addresses remembered", remember),
            supervise::spawn("beacons remembered", remember_beacons),
            supervise::spawn("room on the disk", room.clone().watch(executor.clone(), committer.clone())),
            supervise::spawn("superseded operations", replica.clone().trim_operations()),
            supervise::spawn("certificate", services.status.certificate.clone().watch()),
        ];
        Self(tasks.map(|task| task.abort_handle()).into())
    }

    fn abort(&self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.abort();
    }
}

fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Always => "always",
        Durability::Group => "group",
        Durability::Interval => "interval",
    }
}

/// Has the registry read every part's own counters.
fn watch_parts(
    metrics: &Metrics,
    status: &Status,
    admission: &Admission,
    replica: &Replica,
    coordinator: &Coordinator,
) {
    let compared = status.anti_entropy.clone();
    metrics.source(move || compared.samples());
    let room = status.room.clone();
    metrics.source(move || room.samples());
    let certificate = status.certificate.clone();
    metrics.source(move || certificate.samples());
    let admission = admission.clone();
    metrics.source(move || admission.samples());
    let replica = replica.clone();
    metrics.source(move || replica.stats().samples());
    let requests = coordinator.clone();
    metrics.source(move || requests.stats().samples());
    let (store, layouts, membership) = (Arc::clone(&status.store), status.layouts.clone(), status.membership.clone());
    let quarantined = status.quarantined.is_some();
    metrics.source(move || {
        let stats = store.stats();
        let up = membership.liveness().borrow().values().filter(|peer| peer.up).count();
        let version = layouts.current().map_or(0, |current| current.layout.version.0);
        vec![
            Sample::gauge("store_records", "Records in the store, an estimate", stats.records_estimate),
            Sample::gauge("store_disk_bytes", "Bytes of the store on disk", stats.disk_bytes),
            Sample::gauge(
                "store_quarantined",
                "1 if the store is quarantined and no data is served",
                quarantined.into(),
            ),
            Sample::gauge("nodes_up", "Nodes that are believed to be up, this one included", up as u64),
            Sample::gauge("layout_version", "Version of the layout in force, 0 if there is none", version),
        ]
    });
}

/// How long closed connections may linger: a living one has drained after three of its probe time-outs, a tenth of this. One
/// whose very first packet was a close (a peer that had dialed in vain, and got through otherwise) would stay, in quinn, until
/// its idle time-out.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Gossip datagrams that wait for membership; more are dropped, gossip repeats itself.
const DATAGRAMS_MAX: usize = 256;

#[cfg(test)]
#[path = "node_test.rs"]
mod tests;
