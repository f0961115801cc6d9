//! Stories of what can happen to a cluster, told by running them: a few nodes, a few named clients, and a script.
//!
//! The nodes and clients are the real ones, as in a [life]; what differs is that the script says what happens and
//! when. It is an async function over a [`Stage`]: what clients do is awaited, what goes wrong is awaited, and what must come of
//! it is demanded with `?`. What happened is written down line by line, and when the script is over the [checkers](crate::checker)
//! judge it as they judge a life.
//!
//! ```
//! use quorate_sim::scenario::{Broken, Quorum, Scenario, Stage};
//!
//! async fn script(stage: Stage) -> Result<(), Broken> {
//!     let (alice, bob) = (stage.client("alice"), stage.client("bob"));
//!     let empty = alice.put("cart", "").w(Quorum::All).await.acknowledged()?;
//!     // A client that a partition has cut off from its coordinator would not know what became of its write.
//!     stage.crash("n3").await?;
//!     let milk = alice.put("cart", "milk").after(&empty).start();
//!     let bread = bob.put("cart", "bread").after(&empty).start();
//!     milk.await.acknowledged()?;
//!     bread.await.acknowledged()?;
//!     stage.start("n3").await?;
//!     bob.get("cart").await.shows(&["bread", "milk"])?;
//!     Ok(())
//! }
//!
//! let ending = Scenario::new("two writers and a crash").nodes(3).clients(&["alice", "bob"]).play(script);
//! assert!(ending.is_good(), "{ending}");
//! ```

mod player;
mod stage;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

pub use quorate_client::Quorum;
use quorate_wire::SIBLINGS_MAX;

pub use self::player::{Deleting, Getting, Pending, Player, Putting, Saw, Wrote};
pub use self::stage::Stage;
use self::stage::{Action, Ask, Board};
use crate::checker::keys::Retries;
use crate::checker::{self, Expectations};
use crate::cluster::{Cluster, name};
use crate::disk::Crash;
use crate::history::History;
use crate::interpose;
use crate::life;
use crate::plan::{Mechanisms, Plan};
use crate::story::Story;
use crate::tale::{Parts, Tale};
use crate::trace::{Trace, TraceHash};
use crate::workload::Notebook;

/// A cluster and its clients, before anything has happened.
#[derive(Debug, Clone)]
pub struct Scenario {
    title: String,
    seed: u64,
    zones: Vec<u8>,
    replicas: u8,
    clients: Vec<String>,
    latency_ms: u32,
    between_zones_ms: u32,
    mechanisms: Mechanisms,
}

/// What the script demanded and did not come: the text says what was wanted and what was there instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

/// How a scenario ended.
#[derive(Debug, Clone)]
pub struct Ending {
    /// What happened, a line each.
    pub lines: Vec<String>,
    /// What the script demanded in vain, or why it did not come to its end.
    pub broken: Option<String>,
    /// The same for every run.
    pub hash: TraceHash,
    /// All of it, for [`explain`](crate::explain) and [`report`](crate::report).
    pub tale: Tale,
}

impl Scenario {
    /// Three nodes in zones of their own, N = 3, 2 ms from everybody to everybody, no clients yet.
    pub fn new(title: &str) -> Self {
        let zones = vec![0, 1, 2];
        Self {
            title: title.to_owned(),
            seed: 1,
            zones,
            replicas: 3,
            clients: Vec::new(),
            latency_ms: 2,
            between_zones_ms: 2,
            mechanisms: Mechanisms::ALL,
        }
    }

    /// So many nodes, named `n1`, `n2`, .., each in a zone of its own.
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.zones = (0..nodes).collect();
        self
    }

    /// The zone of each node, instead of [`nodes`](Self::nodes).
    pub fn zones(mut self, zones: &[u8]) -> Self {
        self.zones = zones.to_vec();
        self
    }

    /// N: how many nodes keep each key.
    pub fn replicas(mut self, n: u8) -> Self {
        self.replicas = n;
        self
    }

    /// The clients' names; each is on a machine of its own.
    pub fn clients(mut self, names: &[&str]) -> Self {
        self.clients = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// How long a packet takes within a zone and between clients and nodes, in milliseconds; between zones it is the same unless
    /// [`between_zones_ms`](Self::between_zones_ms) says otherwise.
    pub fn latency_ms(mut self, ms: u32) -> Self {
        (self.latency_ms, self.between_zones_ms) = (ms, ms);
        self
    }

    /// How long a packet takes between zones, in milliseconds. To be said after [`latency_ms`](Self::latency_ms).
    pub fn between_zones_ms(mut self, ms: u32) -> Self {
        self.between_zones_ms = ms;
        self
    }

    /// What the cluster does to heal itself; everything unless this says otherwise.
    pub fn mechanisms(mut self, mechanisms: Mechanisms) -> Self {
        self.mechanisms = mechanisms;
        self
    }

    /// Decides whatever the script does not: which node is asked first, what a crash leaves of what was not synced. 1 if nothing
    /// is said; the same seed gives the same story to the bit.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Runs the script on a cluster that serves, on a thread of its own, and judges what happened.
    ///
    /// # Panics
    /// When there can be no such cluster, or two clients have one name; the text says why.
    pub fn play<S, F>(self, script: S) -> Ending
    where
        S: FnOnce(Stage) -> F + Send + 'static,
        F: Future<Output = Result<(), Broken>> + 'static,
    {
        let plan = self.plan();
        assert_eq!(plan.problems(), [] as [String; 0], "the scenario {:?} is not possible", self.title);
        let mut names: BTreeSet<String> = (0..plan.nodes()).map(name).collect();
        for client in &self.clients {
            assert!(names.insert(client.clone()), "two are called {client:?} in the scenario {:?}", self.title);
        }
        let play = thread::Builder::new().name(format!("scenario {}", self.title)).stack_size(STACK_SIZE);
        let play = play.spawn(move || self.alone(plan, script)).expect("the system gives a thread");
        play.join().expect("panics are caught inside")
    }

    /// A plan in which nothing happens.
    fn plan(&self) -> Plan {
        let mut plan = Plan::draw(self.seed, &BTreeSet::new());
        plan.zones.clone_from(&self.zones);
        plan.n = self.replicas;
        plan.partitions = PARTITIONS;
        let latencies = (self.latency_ms, self.latency_ms.max(self.between_zones_ms));
        (plan.network.latency_min_ms, plan.network.latency_max_ms) = latencies;
        plan.workload.quorums = vec![(Quorum::Majority, Quorum::Majority)];
        plan = plan.plain();
        plan.mechanisms = self.mechanisms;
        plan
    }

    /// All of it on the current thread.
    fn alone<S, F>(self, plan: Plan, script: S) -> Ending
    where
        S: FnOnce(Stage) -> F + 'static,
        F: Future<Output = Result<(), Broken>> + 'static,
    {
        let (story, trace) = (Story::new(), Trace::new());
        let notebook = Notebook::new(plan.n, trace.clone());
        let board = Rc::new(RefCell::new(Board::new(&plan)));
        let mut history = History::default();
        let mut end = Duration::ZERO;
        let _listening = story.listen();
        let played = {
            let _guard = interpose::enter(plan.seed);
            panic::catch_unwind(AssertUnwindSafe(|| {
                let mut cluster = Cluster::new(&plan, trace.clone());
                let hosts = self.hosts(&cluster, &plan);
                let stage = Stage::new(&mut cluster, &plan, &self.clients, board.clone(), &notebook);
                let result = Rc::new(RefCell::new(None));
                let (ended, director) = (result.clone(), stage.clone());
                cluster.run_clients(async move {
                    let outcome = match director.open().await {
                        Ok(()) => script(director.clone()).await,
                        Err(broken) => Err(broken),
                    };
                    *ended.borrow_mut() = Some(outcome);
                    director.close();
                    Ok(())
                });
                let played = hosts.run(&mut cluster, &board, &result);
                end = cluster.elapsed();
                history = life::with_disks_by(notebook.history(), &cluster, player::number)?;
                played
            }))
        };
        let broken = match played {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(panic) => {
                let misuse = board.borrow_mut().misuse.take();
                misuse.or_else(|| Some(format!("panic: {}", life::panic_text(panic.as_ref()))))
            }
        };
        if history.operations.is_empty() {
            history = notebook.history();
        }
        self.ending(&plan, Played { broken, end, history }, &story, &trace, &board.borrow())
    }

    fn ending(
        &self,
        plan: &Plan,
        Played { broken, end, history }: Played,
        story: &Story,
        trace: &Trace,
        board: &Board,
    ) -> Ending {
        let siblings_max = SIBLINGS_MAX * usize::from(plan.n);
        let expectations = Expectations {
            n: plan.n,
            floors: plan.floors(),
            siblings_max,
            converged: false,
            names_spread: true,
            drained: false,
            owners: BTreeMap::new(),
            available: Vec::new(),
            forged: false,
            rotated: false,
            retries: Retries::default(),
        };
        let violations = checker::judge(&history, &expectations);
        let end_us = u64::try_from(end.as_micros()).expect("no simulation lasts so long");
        let zones = plan.zones.iter().zip(0..);
        let verdict = match &broken {
            None if violations.is_empty() => "it went as the script says, and no promise was broken".to_owned(),
            None => "it went as the script says, but promises were broken".to_owned(),
            Some(why) => format!("BROKEN: {why}"),
        };
        let tale = Tale::new(Parts {
            title: self.title.clone(),
            nodes: zones.map(|(zone, node)| (name(node), format!("z{zone}"))).collect(),
            clients: self.clients.iter().cloned().zip(0..).map(|(name, number)| (number, name)).collect(),
            events: story.events(),
            history,
            values: board.values.clone(),
            tries: board.tries.clone(),
            bands: board.bands_until(end_us),
            narration: board.said.clone(),
            is_good: broken.is_none() && violations.is_empty(),
            violations,
            failure: broken.clone(),
            verdict,
            end_us,
        });
        Ending { lines: board.lines.clone(), broken, hash: trace.hash(), tale }
    }

    /// Finds the addresses, of nodes and clients alike.
    fn hosts(&self, cluster: &Cluster<'_>, plan: &Plan) -> Hosts {
        let hosts = (0..plan.nodes()).map(name).chain(self.clients.iter().cloned());
        Hosts { addrs: hosts.map(|host| (host.clone(), cluster.network().lookup(host))).collect() }
    }
}

/// What is left when a script is over.
struct Played {
    broken: Option<String>,
    end: Duration,
    history: History,
}

/// Who is where on the network.
struct Hosts {
    addrs: BTreeMap<String, IpAddr>,
}

impl Hosts {
    /// Lets time pass until the script is over; between two moments, does what it asks for.
    fn run(
        &self,
        cluster: &mut Cluster<'_>,
        board: &RefCell<Board>,
        result: &RefCell<Option<Result<(), Broken>>>,
    ) -> Result<(), String> {
        loop {
            cluster.step().map_err(|error| error.to_string())?;
            let asked = std::mem::take(&mut board.borrow_mut().asked);
            for Ask { action, done } in asked {
                self.perform(action, cluster, board);
                // Whoever asked may have given up.
                let _ = done.send(());
            }
            if let Some(result) = result.borrow_mut().take() {
                return result.map_err(|Broken(why)| why);
            }
            if cluster.elapsed() > PLAY_MAX {
                return Err(format!("the script is not over after {PLAY_MAX:?}"));
            }
        }
    }

    fn perform(&self, action: Action, cluster: &mut Cluster<'_>, board: &RefCell<Board>) {
        match action {
            Action::Cuts => {
                let board = board.borrow();
                for (host, cable) in &board.cables {
                    let deaf = board.cuts.iter().filter(|(from, _)| from == host);
                    cable.set_cut(deaf.map(|(_, to)| self.addrs[to]).collect());
                }
            }
            Action::Latencies(latencies) => {
                for (one, other, ms) in latencies {
                    let latency = Duration::from_millis(ms.into());
                    cluster.network().set_link_latency(one.as_str(), other.as_str(), latency);
                }
            }
            Action::Crash(node) => cluster.crash(node, Crash::Clean),
            Action::Stop(node) => cluster.stop(node),
            Action::Start(node) => cluster.start(node),
        }
    }
}

impl Ending {
    /// Whether everything came as the script demands and no promise was broken.
    pub fn is_good(&self) -> bool {
        self.tale.is_good
    }
}

/// For people; the same bytes for every run.
impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tale { title, nodes, verdict, violations, .. } = &self.tale;
        let nodes: Vec<_> = nodes.iter().map(|(node, zone)| format!("{node} in {zone}")).collect();
        writeln!(f, "{title}\n{}\n\n   time ms  who", nodes.join(", "))?;
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        writeln!(f)?;
        for violation in violations {
            writeln!(f, "VIOLATION {violation}")?;
        }
        write!(f, "{verdict}\ntrace {}", self.hash)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

/// Few, so that keys share them, and yet more than one.
const PARTITIONS: u16 = 16;

/// Debug builds need more than the default for futures that hold futures.
const STACK_SIZE: usize = 16 << 20;

/// No story takes so long: something waits for ever.
const PLAY_MAX: Duration = Duration::from_secs(600);
