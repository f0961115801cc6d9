//! A node: puts the parts together, and takes them apart again.
//!
//! ```text
//!   clients --\                         /-- replica --- store (committer: durable)
//!              server --- coordinator --
//!   peers ----/     \                   \-- peers ----> other nodes
//!                    layouts, membership (who owns what, who is up)
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::Endpoint;
use quorate_transport::link;
use quorate_transport::quic;
use quorate_transport::tls::{self, Credentials, Subject};
use quorate_transport::{Link, Seams};
use quorate_wire::Quorum;
use quorate_wire::ids::{DiskId, LayoutVersion, NodeId};
use quorate_wire::sometimes;
use quorate_wire::{ALPN_CLIENT, NodeStatus};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};

use crate::addresses;
use crate::anti_entropy::{self, AntiEntropy, AntiEntropyConfig};
use crate::beacons::Beacons;
use crate::certificate::Certificate;
pub use crate::coordinator::Mechanisms;
use crate::coordinator::{Coordinator, CoordinatorParts, Defaults};
use crate::env::Env;
use crate::handoff::{self, Handoff};
use crate::http::Watched;
use crate::layouts::{Current, Layouts};
use crate::membership::{self, Membership};
use crate::metrics::{Metrics, Sample};
use crate::peer_wire::{ALPN_PEER, Hello};
use crate::peers::{Peers, PeersConfig};
use crate::recovery::{Doubt, Facts, Recovery};
use crate::replica::Replica;
use crate::replica_service::ReplicaService;
use crate::request_memory::Pools;
use crate::server::{self, Admission, Services};
use crate::status::{OtherLayouts, Status};
use crate::store::room::Reserved;
use crate::store::{Committer, DiskRoom, Durability, Store, StoreError, SyncFailed};
use crate::supervise;

/// What makes one node differ from another.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its name; the certificate must be this node's.
    pub node: NodeId,
    /// Where it listens (UDP).
    pub listen: SocketAddr,
    /// Where others reach it, if that is not `listen`. Needed when `listen` is a wildcard address.
    pub advertise: Option<SocketAddr>,
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
}

/// A running node. Dropping it is a crash: its tasks end where they stand and nothing is marked as clean.
pub struct Node {
    id: NodeId,
    addr: SocketAddr,
    endpoint: Endpoint,
    peers: Peers,
    known: KnownLayouts,
    layouts: Layouts,
    membership: Membership,
    coordinator: Coordinator,
    handoff: Handoff,
    anti_entropy: AntiEntropy,
    replica: Replica,
    boot: u64,
    committer: Committer,
    store: Arc<dyn Store>,
    status: Status,
    metrics: Metrics,
    fatal: watch::Receiver<Option<String>>,
    tasks: Tasks,
    certificates: Certificates,
}

impl Node {
    /// Opens the store, binds the port and begins to serve.
    ///
    /// # Errors
    /// When a part of the configuration is wrong, the store is not to be had, or the port is taken. A quarantined store is
    /// no error: the node runs, shows itself, and serves no data.
    pub async fn start(config: NodeConfig, mut env: Env) -> Result<Self, StartError> {
        env.seams.runtime = supervise::runtime(env.seams.runtime);
        let me = config.node;
        let cluster = config.credentials.cluster();
        match config.credentials.subject() {
            Subject::Node { node, .. } if *node == me => {}
            other => {
                return Err(StartError(format!(
                    "the certificate is {other}'s, not node {me}'s: issue one with `quorate cert node {me}`"
                )));
            }
        }
        let advertise = config.advertise.unwrap_or(config.listen);
        if advertise.ip().is_unspecified() {
            return Err(StartError(format!(
                "others cannot reach {advertise}: set `advertise` to an address of this machine"
            )));
        }
        config.credentials.check_validity((env.seams.wall_clock)()).map_err(|error| StartError(error.to_string()))?;

        let open = Arc::clone(&env.open_store);
        let opened = env.executor.run(move || open()).await?;
        let room = DiskRoom::new(env.space.clone(), env.disk_reserve);
        let store: Arc<dyn Store> = Arc::new(Reserved::new(opened.store, room.clone()));
        let identity = opened.identity;
        let quarantined: Option<Arc<str>> = opened.quarantined.map(Into::into);
        let start = Start {
            me,
            disk: identity.disk,
            unclean: !identity.clean,
            interval: config.durability == Durability::Interval,
        };
        if let Some(why) = &quarantined {
            error!(node = %me, "QUARANTINED, no data is served: {why}");
        }

        let socket = (env.bind_udp)(config.listen)
            .await
            .map_err(|error| StartError(format!("cannot listen on {}: {error}", config.listen)))?;
        let tls_error = |error: tls::TlsError| StartError(error.to_string());
        let mut accepting = tls::server_config(&env.seams, &config.credentials, &ALPNS).map_err(tls_error)?;
        link::set_client_window(&mut accepting, env.request_memory.client_window());
        let pools = Pools::new(env.request_memory);
        let dial = tls::client_config(&env.seams, &config.credentials, ALPN_PEER, Link::Peer).map_err(tls_error)?;
        let endpoint = quic::endpoint(&env.seams, socket, Some(accepting.clone()))
            .map_err(|error| StartError(format!("cannot listen on {}: {error}", config.listen)))?;
        let listening = endpoint.local_addr().map_err(|error| StartError(error.to_string()))?;
        let addr =
            SocketAddr::new(advertise.ip(), if advertise.port() == 0 { listening.port() } else { advertise.port() });

        let metrics = Metrics::new();
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

        let (datagrams_tx, datagrams) = mpsc::channel(DATAGRAMS_MAX);
        // Peers ask for layouts in their handshakes, and layouts talk to peers.
        let known = KnownLayouts::default();
        let hello = {
            let (known, identity, beacons) = (known.clone(), identity.clone(), beacons.clone());
            Arc::new(move |to| Hello {
                cluster,
                node: me,
                disk: identity.disk,
                boot: identity.boot,
                addr,
                layout: known
                    .get()
                    .and_then(|layouts| layouts.current())
                    .map_or(LayoutVersion::NONE, |current| current.layout.version),
                first_layout: known.get().and_then(|layouts| layouts.accepted_first()),
                release: env!("CARGO_PKG_VERSION").into(),
                life: beacons.life(),
                beacon: beacons.start(),
                remembers: beacons.of(to),
            })
        };
        let other_layouts = OtherLayouts::default();
        let check = {
            let (known, beacons, recovery) = (known.clone(), beacons.clone(), recovery.clone());
            let other_layouts = other_layouts.clone();
            Arc::new(move |hello: &Hello| {
                other_layouts.heard(hello, known.get().and_then(|layouts| layouts.accepted_first()));
                // Before anything is answered to this peer.
                if beacons.told(&hello.remembers) {
                    recovery.doubt(Doubt::SetBack);
                    beacons.announce_set_back();
                }
                match known.get().and_then(|layouts| layouts.first_hash_conflicts(hello.first_layout)) {
                    Some(conflict) => Err(conflict),
                    None => Ok(()),
                }
            })
        };
        let peers = Peers::start(PeersConfig {
            me,
            endpoint: endpoint.clone(),
            cluster,
            dial,
            random: random.fork(),
            hello,
            beacons: beacons.clone(),
            check,
            datagrams: datagrams_tx,
            pools: pools.clone(),
        });
        let reading = Arc::clone(&store);
        let last_seen = env.executor.run(move || addresses::remembered(&*reading)).await;
        let membership = Membership::start(membership::Parts {
            me: membership::Identity::new(me, addr, identity.boot),
            peers: peers.clone(),
            datagrams,
            seeds: config.join.clone(),
            remembered: last_seen,
            random: random.fork(),
        });
        let layouts = Layouts::start(
            Arc::clone(&store),
            (env.executor.clone(), env.computing.clone()),
            (me, identity.disk, cluster),
            peers.clone(),
            membership.clone(),
            random.fork(),
            failed,
        )
        .await?;
        known.set(Some(layouts.clone()));
        // Before the first write. An unclean stop leaves data that the saved trees know nothing of.
        let mut decided = quarantined.is_some();
        committer.withhold(!decided);
        if let Some(current) = layouts.current() {
            replica.set_partitions(current.layout.partitions);
            if identity.clean {
                let loaded = replica.load_trees(identity.boot).await;
                sometimes!("hash trees: taken over from a clean stop", loaded > 0);
            }
            if quarantined.is_none() {
                match replica.decide(start.facts(&current)).await {
                    Ok(()) => {
                        decided = true;
                        committer.withhold(false);
                    }
                    // It is tried again until there is room; until then no reads are answered.
                    Err(error @ (StoreError::NoRoom(_) | StoreError::Full(_))) => {
                        warn!("it cannot be noted what this disk lacks: {error}");
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }

        let coordinator = Coordinator::new(CoordinatorParts {
            me,
            cluster,
            layouts: layouts.clone(),
            membership: membership.clone(),
            replica: replica.clone(),
            peers: peers.clone(),
            defaults: Defaults { r: Quorum::Majority, w: Quorum::Majority },
            mechanisms: config.mechanisms,
            wall_clock: Arc::clone(&env.seams.wall_clock),
        });
        let handoff = Handoff::start(handoff::Parts {
            me,
            layouts: layouts.clone(),
            liveness: membership.liveness(),
            replica: replica.clone(),
            peers: peers.clone(),
        });
        let anti_entropy = AntiEntropy::start(anti_entropy::Parts {
            me,
            config: config.anti_entropy,
            layouts: layouts.clone(),
            membership: membership.clone(),
            replica: replica.clone(),
            peers: peers.clone(),
            beacons: beacons.clone(),
            random: random.fork(),
        });
        let compared = anti_entropy.clone();
        metrics.source(move || compared.samples());
        let certificate = Certificate::new(&config.credentials, Arc::clone(&env.seams.wall_clock));
        let boot = identity.boot;
        let status = Status {
            cluster,
            identity,
            started: Instant::now(),
            durability: durability_name(config.durability),
            store: Arc::clone(&store),
            layouts: layouts.clone(),
            membership: membership.clone(),
            metrics: metrics.clone(),
            quarantined: quarantined.clone(),
            handoff: handoff.clone(),
            anti_entropy: anti_entropy.clone(),
            wall_clock: Arc::clone(&env.seams.wall_clock),
            room: room.clone(),
            certificate: certificate.clone(),
            other_layouts,
        };
        let admission = Admission::new(pools);
        watch_parts(&metrics, &status, &admission, &replica, &coordinator);
        let services = Services {
            me,
            replica_service: ReplicaService::new(me, layouts.clone(), replica.clone(), coordinator.clone()),
            coordinator: coordinator.clone(),
            anti_entropy: anti_entropy.clone(),
            layouts: layouts.clone(),
            status: status.clone(),
            metrics: metrics.clone(),
            admission,
            quarantined,
        };
        peers.set_handler({
            let services = services.clone();
            Arc::new(move |from, request, timeout, room| {
                let services = services.clone();
                Box::pin(async move { services.answer_peer(from, request, timeout, room).await })
            })
        });
        let accept = supervise::spawn("accept", server::accept(endpoint.clone(), services, peers.clone()));
        let following = follow_layouts(
            start.clone(),
            decided,
            layouts.clone(),
            replica.clone(),
            peers.clone(),
            membership.clone(),
            committer.clone(),
        );
        let learning = supervise::spawn("layouts followed", following);
        let greeting =
            supervise::spawn("hellos followed", follow_hellos(me, layouts.clone(), recovery, beacons.clone()));
        let following = follow_set_backs(me, layouts.clone(), replica.clone(), beacons);
        let watching = supervise::spawn("set-backs followed", following);
        let remembering = addresses::remember(me, Arc::clone(&store), env.executor.clone(), membership.liveness());
        let remembering = supervise::spawn("addresses remembered", remembering);
        let looking = supervise::spawn("room on the disk", room.watch(env.executor.clone(), committer.clone()));
        let trimming = supervise::spawn("superseded operations", replica.clone().trim_operations());
        let warning = supervise::spawn("certificate", certificate.clone().watch());
        let tasks = [accept, learning, greeting, watching, remembering, looking, trimming, warning];
        let tasks = tasks.map(|task| task.abort_handle());
        info!(node = %me, %addr, %cluster, "listening");
        Ok(Self {
            id: me,
            addr,
            endpoint,
            peers,
            known,
            layouts,
            membership,
            coordinator,
            handoff,
            anti_entropy,
            replica,
            boot,
            committer,
            store,
            status,
            metrics,
            fatal,
            tasks: Tasks(tasks.into()),
            certificates: Certificates {
                seams: env.seams,
                subject: config.credentials.subject().clone(),
                accepting,
                certificate,
            },
        })
    }

    /// Its name.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Where others reach it.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Looks for other nodes at one more address, as at those of [`NodeConfig::join`].
    pub async fn seek(&self, addr: SocketAddr) {
        self.membership.seek(addr).await;
    }

    /// What it knows of itself and its peers.
    pub fn status(&self) -> NodeStatus {
        self.status.report()
    }

    /// What [`crate::http`] shows of it.
    pub fn watched(&self) -> Watched {
        let status = self.status.clone();
        Watched { metrics: self.metrics.clone(), ready: Arc::new(move || status.not_ready().map_or(Ok(()), Err)) }
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

    /// Ends it: tells the others, closes the connections, syncs, and marks the store as cleanly closed.
    ///
    /// # Errors
    /// When the last sync failed: everything that was acknowledged was synced before (but for the mode `interval`).
    pub async fn shutdown(&self, limit: Duration) -> Result<(), StoreError> {
        let farewell = async {
            self.coordinator.shutdown(limit / 2).await;
            self.membership.leave().await;
        };
        if timeout(limit, farewell).await.is_err() {
            warn!("peers were not told of the shutdown within {limit:?}; they will notice");
        }
        self.endpoint.close(0u32.into(), b"the node is shutting down");
        // Every other end has been told by now; a connection that drains for longer has nobody at its other end.
        let _ = timeout(limit.min(DRAIN_TIME), self.endpoint.wait_idle()).await;
        self.release();
        let saved = timeout(limit, self.replica.close(self.boot)).await;
        if let Err(why) =
            saved.map_err(|_| format!("not within {limit:?}")).and_then(|saved| saved.map_err(|e| e.to_string()))
        {
            warn!("the hash trees were not saved, the next start sums them up anew: {why}");
        }
        self.committer.stop();
        if self.replica.recovery().must_be_judged() && self.layouts.current().is_some() {
            // What this disk lacks is not noted on it yet. A stop that looked clean would have that forgotten.
            warn!("it could not be noted what this disk lacks: the next start judges it anew, as after a crash");
            return self.store.sync();
        }
        self.store.close()
    }

    /// Ends the tasks and opens the rings of references: the pool's handler reaches the services, which reach the pool, and its
    /// handshakes reach the layouts, which reach it too. Without this neither the port nor the store would ever come free.
    fn release(&self) {
        self.tasks.abort();
        self.handoff.shutdown();
        self.anti_entropy.shutdown();
        self.layouts.shutdown();
        self.peers.shutdown();
        self.known.set(None);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.release();
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

/// The layouts, as far as there are any yet.
#[derive(Clone, Default)]
struct KnownLayouts(Arc<Mutex<Option<Layouts>>>);

impl KnownLayouts {
    fn get(&self) -> Option<Layouts> {
        self.0.lock().expect("nothing panics while it is locked").clone()
    }

    fn set(&self, layouts: Option<Layouts>) {
        *self.0.lock().expect("nothing panics while it is locked") = layouts;
    }
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

/// Passes on what follows from the layout in force: how many partitions there are, whom to stay connected to, and what gossip
/// tells the others.
async fn follow_layouts(
    start: Start,
    mut decided: bool,
    layouts: Layouts,
    replica: Replica,
    peers: Peers,
    membership: Membership,
    committer: Committer,
) {
    let me = start.me;
    let (mut changes, mut keys) = (layouts.watch(), layouts.watch_context_keys());
    loop {
        keys.mark_unchanged();
        let current = changes.borrow_and_update().clone();
        if let Some(current) = current {
            replica.set_partitions(current.layout.partitions);
            // A layout that comes later than the start says only now whether this disk is the one that it names.
            if !decided {
                match replica.decide(start.facts(&current)).await {
                    Ok(()) => {
                        decided = true;
                        committer.withhold(false);
                    }
                    Err(why) => warn!("it cannot be noted what this disk lacks, no reads are answered: {why}"),
                }
            }
            let others = current.layout.members.iter().map(|member| member.node).filter(|node| *node != me);
            peers.keep_connected(others.collect());
            for member in &current.layout.members {
                peers.learn(member.node, member.addr);
            }
            if let Some((version, digest)) = layouts.announced() {
                membership.announce_layout(version, digest);
            }
        }
        let changed = tokio::select! {
            biased;
            changed = changes.changed() => changed,
            changed = keys.changed() => changed,
            () = sleep(DECIDE_AGAIN), if !decided && layouts.current().is_some() => continue,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Has reads wait until every other member has said what it remembers of this node, or had the time to.
async fn follow_hellos(me: NodeId, layouts: Layouts, recovery: Recovery, beacons: Beacons) {
    let mut layouts = layouts.watch();
    let current = layouts.wait_for(Option::is_some).await.ok().and_then(|current| Option::clone(&current));
    let Some(current) = current else { return };
    let others: Vec<NodeId> =
        current.layout.members.iter().map(|member| member.node).filter(|node| *node != me).collect();
    let all = timeout(HELLOS_WAIT, beacons.greeted_by(&others)).await;
    sometimes!("beacons: a start did not hear of every member", all.is_err());
    recovery.settle(Doubt::Start);
}

/// Notes what is lost when this disk turns out to have been set back.
async fn follow_set_backs(me: NodeId, layouts: Layouts, replica: Replica, beacons: Beacons) {
    let mut layouts = layouts.watch();
    loop {
        let ahead = beacons.set_back().await;
        error!(node = %me, ahead, start = beacons.start(),
            "this disk was rolled back or cloned, or is not the one that this node last lived on: a peer remembers the node further ahead");
        let owned = loop {
            let current = layouts.borrow_and_update().clone();
            match current {
                Some(current) => break current.ring.owned_by(me),
                None if layouts.changed().await.is_err() => return,
                None => {}
            }
        };
        while let Err(why) = replica.set_back(owned.clone()).await {
            warn!("it cannot be noted what this disk lacks, no reads are answered: {why}");
            sleep(DECIDE_AGAIN).await;
        }
        beacons.pass(ahead);
    }
}

/// What a start is judged by, but for the layout.
#[derive(Clone)]
struct Start {
    me: NodeId,
    disk: DiskId,
    unclean: bool,
    interval: bool,
}

impl Start {
    fn facts(&self, current: &Current) -> Facts {
        Facts {
            disk: self.disk,
            named: current.layout.member(self.me).map(|member| member.disk),
            owned: current.ring.owned_by(self.me),
            unclean: self.unclean,
            interval: self.interval,
        }
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

/// How long a start waits for the hellos of members that may be down: two round trips to another continent, with a loss.
const HELLOS_WAIT: Duration = Duration::from_secs(1);

/// How soon a store that failed is tried again.
const DECIDE_AGAIN: Duration = Duration::from_secs(1);

/// Gossip datagrams that wait for membership; more are dropped, gossip repeats itself.
const DATAGRAMS_MAX: usize = 256;

#[cfg(test)]
#[path = "node_test.rs"]
mod tests;
