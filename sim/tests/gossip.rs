//! Membership over real peer connections: five nodes that are nothing but their pool and their gossip, simulated.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_node::beacons::Beacons;
use quorate_node::cert::{Ca, VALIDITY};
use quorate_node::membership::{Identity, Membership, Parts};
use quorate_node::peer_wire::{ALPN_PEER, Hello};
use quorate_node::peers::{Peers, PeersConfig};
use quorate_node::request_memory::{Pools, RequestMemory};
use quorate_node::store::{Committer, Durability, Executor, MemoryStore, Store};
use quorate_sim::interpose;
use quorate_sim::socket::{Cable, PacketFaults, SimRuntime};
use quorate_sim::trace::{Trace, TraceHash};
use quorate_transport::quic;
use quorate_transport::tls::{self, Credentials};
use quorate_transport::{Gate, Link, Seams};
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId};
use quorate_wire::random::Random;
use tokio::sync::mpsc;
use turmoil::Sim;

const CLUSTER: ClusterId = ClusterId(0xc1);
const COUNT: usize = 5;
const PORT: u16 = 7000;

/// What every node believes: who is up, and the layouts that it has heard of.
type Beliefs = Arc<Mutex<BTreeMap<usize, (String, usize)>>>;

struct World<'a> {
    sim: Sim<'a>,
    beliefs: Beliefs,
    trace: Trace,
    cables: Vec<Cable>,
}

fn wall_clock() -> SystemTime {
    UNIX_EPOCH + turmoil::since_epoch().unwrap_or(Duration::from_secs(interpose::EPOCH_SECS))
}

fn name(i: usize) -> String {
    format!("n{}", i + 1)
}

impl World<'_> {
    fn new(seed: u64) -> Self {
        let mut builder = turmoil::Builder::new();
        let mut sim = builder
            .rng_seed(seed)
            .udp_capacity(4096)
            .epoch(UNIX_EPOCH + Duration::from_secs(interpose::EPOCH_SECS))
            .simulation_duration(Duration::from_secs(600))
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(20))
            .build();
        let (beliefs, trace) = (Beliefs::default(), Trace::new());
        let random = Random::from_seed(seed);
        let ca = Arc::new(Ca::make(&random, CLUSTER, wall_clock(), VALIDITY).expect("a CA"));
        let addrs: Vec<SocketAddr> = (0..COUNT).map(|i| SocketAddr::new(sim.lookup(name(i)), PORT)).collect();
        let mut cables = Vec::new();
        for i in 0..COUNT {
            let cable = Cable::new(random.fork(), trace.clone());
            cables.push(cable.clone());
            let host = Host {
                i,
                addr: addrs[i],
                seeds: addrs[..2].to_vec(),
                ca: ca.clone(),
                cable,
                random: random.fork(),
                boots: Arc::default(),
                beliefs: beliefs.clone(),
                trace: trace.clone(),
            };
            sim.host(name(i), move || host.clone().run());
        }
        Self { sim, beliefs, trace, cables }
    }

    fn run_for(&mut self, secs: u64) {
        let end = self.sim.elapsed() + Duration::from_secs(secs);
        while self.sim.elapsed() < end {
            self.sim.step().expect("no host fails");
            interpose::set_clock(self.sim.elapsed());
        }
    }

    fn isolate(&self, i: usize, cut: bool) {
        for other in (0..COUNT).filter(|other| *other != i) {
            if cut {
                self.sim.partition(name(i), name(other));
            } else {
                self.sim.repair(name(i), name(other));
            }
        }
    }

    /// Who is up in the eyes of each of these nodes.
    fn up(&self, nodes: &[usize]) -> Vec<String> {
        let beliefs = self.beliefs.lock().expect("no panic");
        nodes.iter().map(|i| beliefs[i].0.clone()).collect()
    }
}

#[derive(Clone)]
struct Host {
    i: usize,
    addr: SocketAddr,
    seeds: Vec<SocketAddr>,
    ca: Arc<Ca>,
    cable: Cable,
    random: Random,
    boots: Arc<Mutex<u64>>,
    beliefs: Beliefs,
    trace: Trace,
}

impl Host {
    async fn run(self) -> turmoil::Result {
        let boot = {
            let mut boots = self.boots.lock().expect("no panic");
            *boots += 1;
            *boots
        };
        let me = NodeId::new(&name(self.i)).expect("a legal name");
        let seams = Seams {
            runtime: Arc::new(SimRuntime),
            random: self.random.fork(),
            crypto: Arc::new(rustls::crypto::ring::default_provider()),
            wall_clock: Arc::new(wall_clock),
        };
        let issued = self.ca.issue_node(&seams.random, me, wall_clock(), VALIDITY)?;
        let own = Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes())?;
        let server = tls::server_config(&seams, &own, &[ALPN_PEER])?;
        let endpoint = quic::endpoint(&seams, self.cable.bind(self.addr).await?, Some(server))?;
        let addr = self.addr;
        let hello = move |_| Hello {
            cluster: CLUSTER,
            node: me,
            disk: DiskId(1),
            boot,
            addr,
            layout: LayoutVersion::NONE,
            first_layout: None,
            release: "test".into(),
            life: boot,
            beacon: 0,
            remembers: Vec::new(),
        };
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let fatal = Arc::new(|why| panic!("{why}"));
        let every = Duration::from_secs(1);
        let committer = Committer::start(store.clone(), Executor::Inline, Durability::Group, every, fatal);
        let beacons = Beacons::open(&*store, boot, committer);
        let (gossip, datagrams) = mpsc::channel(256);
        let peers = Peers::start(PeersConfig {
            me,
            cluster: CLUSTER,
            endpoint: endpoint.clone(),
            dial: tls::client_config(&seams, &own, ALPN_PEER, Link::Peer)?,
            random: seams.random.fork(),
            hello: Arc::new(hello),
            beacons,
            check: Arc::new(|_| Ok(())),
            datagrams: gossip,
            pools: Pools::new(RequestMemory::default()),
        });
        let adopting = peers.clone();
        tokio::spawn(async move {
            let gate = Gate::new();
            while let Some(incoming) = endpoint.accept().await {
                let (Some(admitted), adopting) = (gate.admit(incoming, |_| false), adopting.clone()) else { continue };
                tokio::spawn(async move {
                    if let Ok(connection) = admitted.handshake().await {
                        adopting.adopt(connection);
                    }
                });
            }
        });
        let membership = Membership::start(Parts {
            me: Identity::new(me, self.addr, boot),
            peers,
            datagrams,
            seeds: self.seeds.clone(),
            remembered: Vec::new(),
            random: seams.random.fork(),
        });
        membership.announce_layout(LayoutVersion(1), 7);
        let (mut liveness, digests) = (membership.liveness(), membership.layout_digests());
        loop {
            let up: Vec<String> = liveness
                .borrow_and_update()
                .iter()
                .filter(|(_, state)| state.up)
                .map(|(node, _)| node.to_string())
                .collect();
            self.trace.event(turmoil::sim_elapsed().unwrap_or_default(), me.as_str(), format_args!("{up:?}"));
            let heard = digests.borrow().len();
            self.beliefs.lock().expect("no panic").insert(self.i, (up.join(" "), heard));
            let _ = tokio::time::timeout(Duration::from_millis(500), liveness.changed()).await;
        }
    }
}

const EVERYBODY: &str = "n1 n2 n3 n4 n5";

fn life(seed: u64) -> TraceHash {
    thread::spawn(move || {
        let _guard = interpose::enter(seed);
        let all = [0, 1, 2, 3, 4];
        let mut world = World::new(seed);
        world.run_for(6);
        assert_eq!(world.up(&all), [EVERYBODY; COUNT], "seed {seed}: joined");
        world.run_for(5);
        for (i, (_, heard)) in world.beliefs.lock().expect("no panic").iter() {
            assert_eq!(*heard, COUNT, "seed {seed}: layouts that n{} has heard of", i + 1);
        }

        world.sim.crash("n3");
        world.run_for(12);
        assert_eq!(world.up(&[0, 1, 3, 4]), ["n1 n2 n4 n5"; 4], "seed {seed}: after the crash");
        world.sim.bounce("n3");
        world.run_for(10);
        assert_eq!(world.up(&all), [EVERYBODY; COUNT], "seed {seed}: after the restart");

        world.isolate(4, true);
        world.run_for(25);
        assert_eq!(world.up(&[0, 1, 2, 3]), ["n1 n2 n3 n4"; 4], "seed {seed}: the majority");
        assert_eq!(world.up(&[4]), ["n5"], "seed {seed}: the one that was cut off");
        world.isolate(4, false);
        world.run_for(20);
        assert_eq!(world.up(&all), [EVERYBODY; COUNT], "seed {seed}: healed");

        let faults = PacketFaults { loss: 50_000, reordering: 50_000, delay_max_ms: 100, ..PacketFaults::default() };
        world.cables.iter().for_each(|cable| cable.set_faults(faults));
        world.run_for(30);
        assert_eq!(world.up(&all), [EVERYBODY; COUNT], "seed {seed}: a bad network is no crash");
        world.trace.hash()
    })
    .join()
    .expect("the life ends well")
}

#[test]
fn five_nodes_join_notice_a_crash_take_back_the_restarted_and_heal() {
    for seed in 0..3 {
        life(seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_gossip() {
    assert_eq!(life(3), life(3));
    assert_ne!(life(3), life(4));
}
