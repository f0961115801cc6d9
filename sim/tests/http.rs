//! What a monitor sees of a node over HTTP: that it lives, whether it serves, and what it counts, in everything that may happen to it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use quorate_sim::cluster::{CLIENTS, ClientMachine, Cluster, DISK_RESERVE, Machine, Process};
use quorate_sim::disk::Crash;
use quorate_sim::interpose;
use quorate_sim::plan::Plan;
use quorate_sim::trace::{Trace, TraceHash};
use quorate_sim::workload;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};
use turmoil::net::TcpStream;

/// What only the harness can do to the first node.
#[derive(Clone, Copy)]
enum Act {
    Pause,
    GoOn,
    Stop,
    Crash,
    Start,
}

/// The monitor, on the clients' machine.
#[derive(Clone)]
struct Monitor {
    machines: Vec<Machine>,
    clients: ClientMachine,
    plan: Plan,
    acts: Rc<RefCell<Vec<Act>>>,
    /// What was asked of whom, when, and what came of it.
    log: Rc<RefCell<Vec<String>>>,
}

type Page = Result<(u16, String), String>;

#[test]
fn a_node_lives_from_its_start_to_its_end_and_is_ready_only_while_it_serves() {
    let (one, two) = (run(), run());
    assert!(one.0.len() > 100, "{:?}", one.0);
    let parted = one.0.iter().zip(&two.0).find(|(one, two)| one != two);
    assert_eq!(parted, None, "the HTTP port is as deterministic as all else");
    assert_eq!((one.0.len(), one.1), (two.0.len(), two.1));
}

/// Plays the script on a cluster of its own, and gives what the monitor saw.
fn run() -> (Vec<String>, TraceHash) {
    let play = thread::Builder::new().name("a monitor".to_owned()).stack_size(16 << 20);
    let play = play.spawn(|| {
        let mut plan = Plan::draw(1, &BTreeSet::new()).plain();
        (plan.zones, plan.n, plan.partitions) = (vec![0, 1, 2], 3, 8);
        (plan.network.latency_min_ms, plan.network.latency_max_ms) = (2, 2);
        let _guard = interpose::enter(plan.seed);
        let trace = Trace::new();
        let mut cluster = Cluster::new(&plan, trace.clone());
        let monitor = Monitor {
            machines: cluster.machines().to_vec(),
            clients: cluster.clients().clone(),
            plan,
            acts: Rc::default(),
            log: Rc::default(),
        };
        // So slow that each step of the start is seen.
        monitor.me().disk.set_latency(SLOW);
        let (script, over) = (monitor.clone(), Rc::new(RefCell::new(false)));
        let is_over = Rc::clone(&over);
        cluster.run_clients(async move {
            script.play().await;
            *is_over.borrow_mut() = true;
            Ok(())
        });
        let me = monitor.me().node().to_string();
        while !*over.borrow() {
            cluster.step().expect("what the monitor expects is so");
            for act in monitor.acts.take() {
                match act {
                    Act::Pause => cluster.network().hold(me.as_str(), CLIENTS),
                    Act::GoOn => cluster.network().release(me.as_str(), CLIENTS),
                    Act::Stop => cluster.stop(0),
                    Act::Crash => cluster.crash(0, Crash::Clean),
                    Act::Start => cluster.start(0),
                }
            }
        }
        (monitor.log.take(), trace.hash())
    });
    play.expect("the system gives a thread").join().expect("what the monitor expects is so")
}

impl Monitor {
    fn me(&self) -> &Machine {
        &self.machines[0]
    }

    async fn play(&self) {
        self.it_starts().await;
        let bootstrapped = workload::bootstrap(&self.clients, &self.machines, &self.plan, PATIENCE).await;
        bootstrapped.expect("the cluster comes about");
        self.is_ready_soon().await;
        self.its_peers_are_cut_off().await;
        self.its_disk_is_full().await;
        self.it_is_paused().await;
        self.nobody_speaks().await;
        self.it_shuts_down().await;
        self.act(Act::Start).await;
        self.says_starting().await;
        self.me().disk.set_latency(Duration::ZERO);
        self.is_ready_soon().await;
        self.act(Act::Crash).await;
        assert!(self.get("/livez").await.is_err(), "nobody answers for a process that is dead");
        self.act(Act::Start).await;
        self.is_ready_soon().await;
    }

    /// Alive at once, ready when it serves, with the reason in between; its numbers are those that there are.
    async fn it_starts(&self) {
        self.says_starting().await;
        let (_, metrics) = self.get("/metrics").await.expect("it answers");
        assert!(metrics.contains("quorate_build_info") && !metrics.contains("quorate_nodes_up"), "{metrics}");
        self.me().disk.set_latency(Duration::ZERO);
        self.until("it has started", "/readyz", |status, why| status == 503 && why.contains("no layout")).await;
        self.until_metric("quorate_nodes_up", 3).await;
    }

    async fn says_starting(&self) {
        // The process begins with this step.
        sleep(Duration::from_millis(20)).await;
        assert_eq!(self.get("/livez").await, Ok((200, "alive\n".to_owned())));
        assert_eq!(self.get("/readyz").await, Ok((503, "not ready: it is starting\n".to_owned())));
    }

    /// Whether others can be reached is for `check quorum`, and for the numbers.
    async fn its_peers_are_cut_off(&self) {
        let ip = |machine: &Machine| machine.addr().ip();
        let others = || self.machines[1..].iter();
        self.me().cable.set_cut(others().map(ip).collect());
        others().for_each(|other| other.cable.set_cut(BTreeSet::from([ip(self.me())])));
        self.until_metric("quorate_nodes_up", 1).await;
        assert_eq!(self.get("/livez").await.map(|page| page.0), Ok(200));
        assert_eq!(self.get("/readyz").await, Ok((200, "ready\n".to_owned())));
        let none: BTreeSet<IpAddr> = BTreeSet::new();
        self.machines.iter().for_each(|machine| machine.cable.set_cut(none.clone()));
        self.until_metric("quorate_nodes_up", 3).await;
    }

    async fn its_disk_is_full(&self) {
        let disk = &self.me().disk;
        disk.set_bytes_max(Some(disk.bytes() + DISK_RESERVE / 2));
        self.until("it is full", "/readyz", |status, why| status == 503 && why.contains("the disk is full")).await;
        assert_eq!(self.get("/livez").await.map(|page| page.0), Ok(200));
        assert_eq!(self.metric("quorate_disk_full").await, Some(1));
        disk.set_bytes_max(None);
        self.is_ready_soon().await;
        assert_eq!(self.metric("quorate_disk_full").await, Some(0));
    }

    /// Nothing is answered meanwhile, and everything afterwards.
    async fn it_is_paused(&self) {
        self.act(Act::Pause).await;
        let asks = self.clone();
        let asked = tokio::task::spawn_local(async move { asks.get("/livez").await });
        sleep(Duration::from_secs(4)).await;
        assert!(!asked.is_finished());
        self.act(Act::GoOn).await;
        assert_eq!(asked.await.expect("no panic"), Ok((200, "alive\n".to_owned())));
        self.is_ready_soon().await;
    }

    /// A connection on which nothing comes is let go after five seconds, by the same clock as all else.
    async fn nobody_speaks(&self) {
        let mut silent = TcpStream::connect(self.me().http_addr()).await.expect("connects");
        silent.write_all(b"GET /livez HTTP/1.1\r\nHo").await.expect("sends");
        let from = now();
        let mut rest = Vec::new();
        // An end or a reset.
        let _ = silent.read_to_end(&mut rest).await;
        let lasted = now() - from;
        assert!((HEAD_TIME - A_FEW_MS..HEAD_TIME + A_FEW_MS).contains(&lasted), "{lasted:?}");
    }

    /// It says so from the first moment on, and is alive until nothing is left to be done.
    async fn it_shuts_down(&self) {
        self.me().disk.set_latency(SLOW);
        let mut kept = TcpStream::connect(self.me().http_addr()).await.expect("connects");
        self.act(Act::Stop).await;
        // What it had said before is here by now.
        sleep(Duration::from_millis(10)).await;
        let mut seen = 0;
        loop {
            match self.get("/readyz").await {
                Ok(page) => assert_eq!(page, (503, "not ready: it is shutting down\n".to_owned())),
                Err(_) => break,
            }
            match self.get("/livez").await {
                Ok(page) => assert_eq!(page, (200, "alive\n".to_owned())),
                Err(_) => break,
            }
            seen += 1;
        }
        assert!(seen > 5, "a shutdown takes some time, and it was asked {seen} times in it");
        assert!(!self.me().disk.is_open(), "its store was closed before its port");
        let mut rest = Vec::new();
        timeout(HEAD_TIME, kept.read_to_end(&mut rest)).await.expect("it was let go").unwrap_or_default();
        self.soon(async || self.me().process() != Process::Running, "it ends").await;
    }

    /// "Ready" is said of a node that serves, whoever asks it.
    async fn is_ready_soon(&self) {
        self.until("it is ready", "/readyz", |status, body| status == 200 && body == "ready\n").await;
        let client = self.clients.connect(1, true, PATIENCE).await.expect("connects");
        let status = client.status_at(self.me().addr()).await.expect("it answers");
        assert_eq!(status.not_serving, None);
    }

    async fn until(&self, what: &str, path: &str, fits: impl Fn(u16, &str) -> bool) {
        let fits = async || self.get(path).await.is_ok_and(|(status, body)| fits(status, &body));
        self.soon(fits, what).await;
    }

    async fn until_metric(&self, name: &str, value: u64) {
        self.soon(async || self.metric(name).await == Some(value), &format!("{name} is {value}")).await;
    }

    async fn soon(&self, holds: impl AsyncFn() -> bool, what: &str) {
        let from = now();
        while !holds().await {
            assert!(now() < from + PATIENCE, "{what}: not within {PATIENCE:?}; {:#?}", self.log.borrow());
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn metric(&self, name: &str) -> Option<u64> {
        let (_, text) = self.get("/metrics").await.ok()?;
        let values: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once(' ')).collect();
        values.get(name)?.parse().ok()
    }

    /// Has something done to the first node, and waits until it is.
    async fn act(&self, act: Act) {
        self.acts.borrow_mut().push(act);
        // The harness acts between this step and the next one.
        sleep(Duration::from_millis(2)).await;
    }

    async fn get(&self, path: &str) -> Page {
        let page = fetch(self.me().http_addr(), path).await;
        let shown = match &page {
            Ok((status, body)) => {
                let mut lines: Vec<_> = body.lines().collect();
                // Those of one family come in any order.
                lines.sort_unstable();
                format!("{status} {lines:?}")
            }
            Err(error) => error.clone(),
        };
        self.log.borrow_mut().push(format!("{:?} {path}: {shown}", now()));
        page
    }
}

async fn fetch(addr: SocketAddr, path: &str) -> Page {
    let asked = async {
        let mut stream = TcpStream::connect(addr).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(PATIENCE, asked).await.map_err(|late| late.to_string())?.map_err(|error| error.to_string())?;
    let page = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    page.ok_or_else(|| format!("no answer: {answer:?}"))
}

fn now() -> Duration {
    turmoil::sim_elapsed().expect("this is a simulation")
}

/// What each call of the disk takes when each step of a start is to be seen.
const SLOW: Duration = Duration::from_millis(300);

/// What a node grants the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// What packets take on their way, and a tick.
const A_FEW_MS: Duration = Duration::from_millis(20);

/// Peers that are not heard are down after 6 s; how full a disk is, is asked once a second.
const PATIENCE: Duration = Duration::from_secs(30);
