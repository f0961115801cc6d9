//! Simulated machines that run the real node, and real clients beside them.
//!
//! ```text
//!   machine n1 (cable, disk, clock) ── process: node::Node ─┐
//!   machine n2                      ── process: node::Node ─┼─ turmoil's network
//!   machine `clients`               ── client::Client, .. ──┘
//! ```
//!
//! A machine outlives its processes. A process that dies is torn out with all its tasks, as by `kill -9`; what it had not synced
//! is then at the mercy of its [disk](crate::disk).

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_client::{Client, Error};
use quorate_core::context_keys::ContextKeys;
use quorate_node::anti_entropy::AntiEntropyConfig;
use quorate_node::cert::{CA_VALIDITY, Ca, Issued, VALIDITY};
use quorate_node::env::Env;
use quorate_node::layouts::{FIRST_KEY, stored_context_keys};
use quorate_node::metrics::Metrics;
use quorate_node::node::{self, Node, NodeConfig};
use quorate_node::request_memory::RequestMemory;
use quorate_node::store::{self, DiskReserve, Executor, Latency, Tree};
use quorate_transport::close;
use quorate_transport::quic;
use quorate_transport::tls::{self, Credentials};
use quorate_transport::{Link, Seams};
use quorate_wire::ALPN_CLIENT;
use quorate_wire::ids::{ClusterId, NodeId};
use quorate_wire::random::Random;
use quorate_wire::tell;
use tokio::sync::watch;
use turmoil::Sim;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::disk::{Crash, SimDisk};
use crate::interpose;
use crate::plan::{Durability, Mechanisms, Plan};
use crate::socket::{Cable, SimRuntime, tcp_binder};
use crate::trace::Trace;

/// What nodes keep free of a disk that is full some time: a few dozen of the records that lives write.
pub const DISK_RESERVE: u64 = 16 << 10;

/// The host that all clients live on, each with a port of its own.
pub const CLIENTS: &str = "clients";

/// A network, the machines on it, and the nodes that run there.
pub struct Cluster<'a> {
    sim: Sim<'a>,
    machines: Vec<Machine>,
    clients: ClientMachine,
    trace: Trace,
}

/// A node's machine.
#[derive(Clone)]
pub struct Machine {
    node: NodeId,
    addr: SocketAddr,
    zone: String,
    /// Its network cable.
    pub cable: Cable,
    /// Its disk.
    pub disk: SimDisk,
    shared: Arc<Shared>,
}

struct Shared {
    seed: u64,
    clock_offset_ms: AtomicI64,
    /// How often it has moved: each time to the next port.
    moves: AtomicU16,
    /// An operator has stopped it for good.
    retired: AtomicBool,
    credentials: Credentials,
    join: Vec<SocketAddr>,
    durability: Durability,
    mechanisms: Mechanisms,
    request_memory_kib: u64,
    state: Mutex<State>,
    trace: Trace,
}

struct State {
    boots: u64,
    process: Process,
    /// What its node counts.
    metrics: Option<Metrics>,
    /// Tells the process to end in good order.
    stop: watch::Sender<bool>,
}

/// What the process on a machine is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    /// There is none.
    Down,
    /// It starts, or serves, or is about to end.
    Running,
    /// It has ended of its own accord, and why.
    Ended(String),
}

/// Where the clients live.
#[derive(Clone)]
pub struct ClientMachine {
    seed: u64,
    host: std::net::IpAddr,
    seeds: Vec<SocketAddr>,
    user: Credentials,
    admin: Credentials,
    bad: Credentials,
    /// The cable of all clients.
    pub cable: Cable,
}

impl Cluster<'_> {
    /// Builds the machines of a plan and starts their nodes. Nobody has a layout yet.
    ///
    /// # Panics
    /// When the plan has [problems](Plan::problems), or the thread has not [entered](interpose::enter) a simulation.
    pub fn new(plan: &Plan, trace: Trace) -> Self {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        let mut builder = turmoil::Builder::new();
        let mut sim = builder
            .rng_seed(plan.seed)
            .udp_capacity(UDP_CAPACITY)
            .epoch(UNIX_EPOCH + Duration::from_secs(interpose::EPOCH_SECS))
            .simulation_duration(Duration::from_secs(100_000))
            .tick_duration(TICK)
            .min_message_latency(ms(plan.network.latency_min_ms))
            .max_message_latency(ms(plan.network.latency_max_ms))
            .build();
        sim.set_message_latency_curve(f64::from(plan.network.curve_x10) / 10.0);

        let random = random_of(plan.seed, "certificates", 0, 0);
        let now = UNIX_EPOCH + Duration::from_secs(interpose::EPOCH_SECS) - OLDER_THAN_CLOCKS;
        let ca = Ca::make(&random, CLUSTER, now, CA_VALIDITY).expect("the time is an ordinary one");
        let names: Vec<String> = (0..plan.nodes()).map(name).collect();
        let addrs: Vec<SocketAddr> =
            names.iter().map(|name| SocketAddr::new(sim.lookup(name.as_str()), PORT)).collect();
        let mut machines = Vec::new();
        for i in 0..plan.nodes() {
            let node = NodeId::new(&name(i)).expect("a legal name");
            let issued = ca.issue_node(&random, node, now, VALIDITY).expect("the authority is valid");
            let cable = Cable::new(random_of(plan.seed, "cable", i.into(), 0), trace.clone());
            let disk = SimDisk::new(CLUSTER, node, random_of(plan.seed, "disk", i.into(), 0));
            let shared = Shared {
                seed: plan.seed,
                clock_offset_ms: AtomicI64::new(0),
                moves: AtomicU16::new(0),
                retired: AtomicBool::new(false),
                credentials: credentials(&issued),
                join: addrs.iter().copied().take(SEEDS).collect(),
                durability: plan.durability,
                mechanisms: plan.mechanisms,
                request_memory_kib: plan.request_memory_kib.into(),
                state: Mutex::new(State {
                    boots: 0,
                    process: Process::Running,
                    metrics: None,
                    stop: watch::channel(false).0,
                }),
                trace: trace.clone(),
            };
            let addr = addrs[usize::from(i)];
            let zone = zone(plan.all_zones()[usize::from(i)]);
            tell!(act = "lives at", node = %node, %addr);
            let machine = Machine { node, addr, zone, cable, disk, shared: Arc::new(shared) };
            machines.push(machine.clone());
            sim.host(name(i), move || machine.clone().run());
        }
        let [user, admin, bad] = [("user", false), ("admin", true), ("bad", false)].map(|(name, admin)| {
            credentials(&ca.issue_client(&random, name, admin, now, VALIDITY).expect("a legal name"))
        });
        let cable = Cable::new(random_of(plan.seed, "cable", u64::MAX, 0), trace.clone());
        let host = sim.lookup(CLIENTS);
        let clients = ClientMachine { seed: plan.seed, host, seeds: addrs, user, admin, bad, cable };
        Self { sim, machines, clients, trace }
    }

    /// The nodes' machines, counted from 0 as the plan does.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// Where clients live.
    pub fn clients(&self) -> &ClientMachine {
        &self.clients
    }

    /// Runs what the clients do, on their machine. To be called once.
    pub fn run_clients(&mut self, program: impl Future<Output = turmoil::Result> + 'static) {
        self.sim.client(CLIENTS, program);
    }

    /// Runs one more client program, on a machine of its own.
    pub(crate) fn run_client(&mut self, host: &str, program: impl Future<Output = turmoil::Result> + 'static) {
        self.sim.client(host, program);
    }

    /// A machine of its own for one client.
    pub(crate) fn client_machine(&self, host: &str, number: u16) -> ClientMachine {
        let random = random_of(self.clients.seed, "client's cable", number.into(), 0);
        let cable = Cable::new(random, self.trace.clone());
        ClientMachine { host: self.sim.lookup(host), cable, ..self.clients.clone() }
    }

    /// The network, to cut and to slow it.
    pub fn network(&self) -> &Sim<'_> {
        &self.sim
    }

    /// How long it has lived.
    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Lets a millisecond pass. Processes that have ended in it are taken away.
    ///
    /// # Errors
    /// When the clients' program has failed.
    pub fn step(&mut self) -> turmoil::Result {
        self.sim.step()?;
        interpose::set_clock(self.sim.elapsed());
        for i in 0..self.machines.len() {
            let ended = match &self.machines[i].shared.state().process {
                Process::Ended(_) => true,
                Process::Down | Process::Running => false,
            };
            // What it had spawned ends with it; its disk notices if it was not closed.
            if ended && self.sim.is_host_running(self.machines[i].node.as_str()) {
                self.sim.crash(self.machines[i].node.as_str());
                self.machines[i].disk.crash(Crash::Clean);
            }
        }
        Ok(())
    }

    /// What a node's process is doing.
    pub fn process(&self, node: u8) -> Process {
        self.machines[usize::from(node)].shared.state().process.clone()
    }

    /// Kills a node's process. Nothing happens if there is none.
    pub fn crash(&mut self, node: u8, crash: Crash) {
        let machine = &self.machines[usize::from(node)];
        if machine.shared.state().process != Process::Running {
            machine.shared.state().process = Process::Down;
            return;
        }
        machine.shared.state().process = Process::Down;
        self.trace.event(self.sim.elapsed(), machine.node.as_str(), format_args!("is killed"));
        self.sim.crash(machine.node.as_str());
        machine.disk.crash(crash);
    }

    /// Asks a node's process to end in good order, for which it has some seconds.
    pub fn stop(&self, node: u8) {
        // Nobody listens if it is down.
        self.machines[usize::from(node)].shared.state().stop.send_replace(true);
    }

    /// Starts a node's process unless there is one.
    pub fn start(&mut self, node: u8) {
        let machine = &self.machines[usize::from(node)];
        {
            let mut state = machine.shared.state();
            if state.process == Process::Running {
                return;
            }
            state.process = Process::Running;
        }
        self.trace.event(self.sim.elapsed(), machine.node.as_str(), format_args!("is started"));
        self.sim.bounce(machine.node.as_str());
    }
}

impl fmt::Debug for Cluster<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cluster({:?} after {:?})", self.machines, self.sim.elapsed())
    }
}

impl Machine {
    /// The node's name.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Where the node listens.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.addr.ip(), self.addr.port() + self.shared.moves.load(Ordering::Relaxed))
    }

    /// Where the node shows its health and its metrics. A monitor there hears it also while its [cable](Self::cable) is cut.
    pub fn http_addr(&self) -> SocketAddr {
        SocketAddr::new(self.addr.ip(), HTTP_PORT)
    }

    /// From its next start on the node listens at another address.
    pub fn moves(&self) {
        self.shared.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// An operator has stopped the node for good.
    pub fn is_retired(&self) -> bool {
        self.shared.retired.load(Ordering::Relaxed)
    }

    /// From now on an operator has stopped it for good.
    pub fn retire(&self) {
        self.shared.retired.store(true, Ordering::Relaxed);
    }

    /// The node's failure domain.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// The certificate and key of its node, for whoever plays that node.
    pub fn credentials(&self) -> Credentials {
        self.shared.credentials.clone()
    }

    /// The secrets behind contexts that lie on its disk.
    ///
    /// # Errors
    /// When there are none, or the disk is damaged there.
    pub fn context_keys(&self) -> Result<ContextKeys, String> {
        let first = self.disk.present(Tree::Meta, FIRST_KEY).ok_or("there is no layout on its disk")?;
        stored_context_keys(&first)
    }

    /// What its node does to heal the cluster. (Nodes cannot be told yet: the seat is beside `durability` in what starts them.)
    pub fn mechanisms(&self) -> Mechanisms {
        self.shared.mechanisms
    }

    /// What its process is doing.
    pub fn process(&self) -> Process {
        self.shared.state().process.clone()
    }

    /// Whether a process serves.
    pub(crate) fn serves(&self) -> bool {
        let state = self.shared.state();
        state.metrics.is_some() && state.process == Process::Running
    }

    /// How many bytes its requests take, and how many there are; nothing while no process [serves](Self::serves). Every counter of the node
    /// is read for it, which takes its time.
    pub(crate) fn requests(&self) -> Option<(u64, u64)> {
        let state = self.shared.state();
        let metrics = state.metrics.as_ref().filter(|_| state.process == Process::Running)?;
        let samples = metrics.snapshot();
        let sample = |name: &str| samples.get(name).copied().unwrap_or(u64::MAX);
        let bytes = sample("request_memory_used_bytes").saturating_add(sample("request_memory_large_bytes"));
        Some((bytes, sample("requests_under_way")))
    }

    /// How wrong its wall clock is.
    pub fn set_clock_offset_ms(&self, offset_ms: i64) {
        self.shared.clock_offset_ms.store(offset_ms, Ordering::Relaxed);
    }

    /// One process, from its start to its end.
    async fn run(self) -> turmoil::Result {
        let why = self.serve().await;
        self.event(format_args!("ends: {why}"));
        self.shared.state().process = Process::Ended(why);
        // The cluster takes the process away when this step is over.
        std::future::pending().await
    }

    async fn serve(&self) -> String {
        let (boot, mut stop) = {
            let mut state = self.shared.state();
            state.boots += 1;
            let (sender, stop) = watch::channel(false);
            state.stop = sender;
            (state.boots, stop)
        };
        let number = self.shared.seed ^ xxh3_64_with_seed(self.node.as_str().as_bytes(), boot);
        let offset = self.shared.clone();
        let wall_clock = move || {
            let offset_ms = offset.clock_offset_ms.load(Ordering::Relaxed);
            let offset = Duration::from_millis(offset_ms.unsigned_abs());
            if offset_ms < 0 { wall_clock() - offset } else { wall_clock() + offset }
        };
        let (disk, latency, space) = (self.disk.clone(), self.disk.clone(), self.disk.clone());
        let metrics = Metrics::new();
        let env = Env {
            seams: Seams {
                runtime: Arc::new(SimRuntime),
                random: random_of(number, "node", 0, boot),
                crypto: Arc::new(rustls::crypto::ring::default_provider()),
                wall_clock: Arc::new(wall_clock),
            },
            bind_udp: self.cable.binder(),
            bind_tcp: tcp_binder(),
            metrics: metrics.clone(),
            open_store: Arc::new(move || disk.open()),
            executor: Executor::Slow(Latency(Arc::new(move || latency.latency()))),
            computing: Executor::Inline,
            request_memory: RequestMemory::of_bytes(self.shared.request_memory_kib << 10),
            space: Some(Arc::new(move || Ok(space.space()))),
            disk_reserve: DiskReserve::Bytes(DISK_RESERVE),
        };
        let config = NodeConfig {
            node: self.node,
            listen: self.addr(),
            advertise: None,
            http: Some(self.http_addr()),
            join: self.shared.join.clone(),
            credentials: self.shared.credentials.clone(),
            durability: match self.shared.durability {
                Durability::Always => store::Durability::Always,
                Durability::Group => store::Durability::Group,
            },
            sync_interval: Duration::from_secs(1),
            mechanisms: node::Mechanisms {
                // Who stands in without handing over what it was given would break its word.
                fallbacks: self.shared.mechanisms.fallbacks && self.shared.mechanisms.hints,
                read_repair: self.shared.mechanisms.read_repair,
            },
            layout_changes: true,
            anti_entropy: AntiEntropyConfig {
                enabled: self.shared.mechanisms.anti_entropy,
                interval: ANTI_ENTROPY_EVERY,
                scrub: SCRUB_EVERY,
            },
        };
        self.shared.state().metrics = None;
        let node = match Node::start(config, env).await {
            Ok(node) => node,
            Err(error) => return format!("it does not start: {error}"),
        };
        self.shared.state().metrics = Some(metrics);
        self.event(format_args!("serves"));
        // What `wait_for` gives locks the channel, so that it must be dropped before anything else happens.
        let asked = async { drop(stop.wait_for(|stop| *stop).await) };
        tokio::select! {
            biased;
            why = node.stopped() => why,
            () = asked => match node.shutdown(SHUTDOWN_LIMIT).await {
                Ok(()) => "it was stopped".to_owned(),
                Err(error) => format!("it was stopped, and {error}"),
            },
        }
    }

    fn event(&self, what: fmt::Arguments<'_>) {
        self.shared.trace.event(turmoil::sim_elapsed().unwrap_or_default(), self.node.as_str(), what);
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.node, self.shared.state().process)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere fails the run anyway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientMachine {
    /// Connects a client, on the clients' machine. `number` tells clients apart; requests have the time-out that is given.
    ///
    /// # Errors
    /// As [`quorate_client::ClientBuilder::connect`].
    pub async fn connect(&self, number: u16, admin: bool, timeout: Duration) -> Result<Client, Error> {
        let (seams, socket) = self.place("client", number).await.map_err(|why| Error::Misuse { why })?;
        let credentials = if admin { self.admin.clone() } else { self.user.clone() };
        let builder = Client::builder(self.seeds.iter().copied()).credentials(credentials).timeout(timeout);
        builder.seams(seams).socket(socket).connect().await
    }

    /// A bare connection to a node, for whoever speaks the protocol by hand. It takes in little that is not read.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn dial_by_hand(
        &self,
        number: u16,
        node: SocketAddr,
    ) -> Result<(quinn::Endpoint, quinn::Connection), String> {
        let (seams, socket) = self.place("bad client", number).await?;
        let endpoint = quic::endpoint(&seams, socket, None).map_err(|error| error.to_string())?;
        let mut config =
            tls::client_config(&seams, &self.bad, ALPN_CLIENT, Link::Client).map_err(|error| error.to_string())?;
        let mut transport = quinn::TransportConfig::default();
        transport.stream_receive_window(UNREAD_MAX.into()).keep_alive_interval(Some(Duration::from_secs(5)));
        config.transport_config(Arc::new(transport));
        let connecting = endpoint.connect_with(config, node, tls::ANY_NODE).map_err(|error| error.to_string())?;
        let connection = connecting.await.map_err(|error| close::explain_connection_error(&error))?;
        Ok((endpoint, connection))
    }

    /// What a client takes from outside. Connecting again takes another port, in case the connection before has not been let go yet.
    async fn place(&self, kind: &str, number: u16) -> Result<(Seams, Arc<dyn quinn::AsyncUdpSocket>), String> {
        let at = u64::try_from(turmoil::sim_elapsed().unwrap_or_default().as_nanos()).unwrap_or(u64::MAX);
        let socket = self.cable.bind(SocketAddr::new(self.host, 0)).await.map_err(|error| error.to_string())?;
        let seams = Seams {
            runtime: Arc::new(SimRuntime),
            random: random_of(self.seed, kind, number.into(), at),
            crypto: Arc::new(rustls::crypto::ring::default_provider()),
            wall_clock: Arc::new(wall_clock),
        };
        Ok((seams, socket))
    }
}

impl fmt::Debug for ClientMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientMachine({})", self.host)
    }
}

/// What a bad client's end takes of a stream that nobody reads.
const UNREAD_MAX: u32 = 8 << 10;

/// A node's name; nodes are counted from 0.
pub fn name(node: u8) -> String {
    format!("n{}", node + 1)
}

/// A zone's name.
pub fn zone(zone: u8) -> String {
    format!("z{zone}")
}

/// A generator for one purpose: what one part draws does not change what another one does.
pub(crate) fn random_of(seed: u64, part: &str, a: u64, b: u64) -> Random {
    Random::from_seed(xxh3_64_with_seed(format!("{part} {a} {b}").as_bytes(), seed))
}

fn wall_clock() -> SystemTime {
    UNIX_EPOCH + turmoil::since_epoch().unwrap_or(Duration::from_secs(interpose::EPOCH_SECS))
}

fn credentials(issued: &Issued) -> Credentials {
    Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes())
        .expect("what was issued a moment ago is well formed")
}

/// The id of every simulated cluster.
pub const CLUSTER: ClusterId = ClusterId(0x51);
const PORT: u16 = 7000;
const HTTP_PORT: u16 = 7480;

/// How many nodes each node looks for when it starts.
const SEEDS: usize = 3;

/// The network's resolution: latencies are whole milliseconds.
const TICK: Duration = Duration::from_millis(1);

/// turmoil drops silently what comes above: more than a burst after a pause.
const UDP_CAPACITY: usize = 1 << 16;

/// Certificates are so much older than the simulation: wall clocks that are wrong by a day then make none of them invalid.
const OLDER_THAN_CLOCKS: Duration = Duration::from_secs(3 * 86_400);

/// What an operator's process manager grants before it kills.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// A little faster than in production, since lives are short.
const ANTI_ENTROPY_EVERY: Duration = Duration::from_secs(4);

/// What rots is noticed while the cluster settles.
const SCRUB_EVERY: Duration = Duration::from_secs(8);
