//! Where a script plays: it lets time pass, breaks things and mends them, and tells what it does.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use quorate_client::Client;
use quorate_core::keyspace::key_of_data;
use quorate_core::record::Record;
use quorate_node::store::Tree;
use quorate_wire::Key;
use tokio::sync::{mpsc, oneshot};

use super::Broken;
use super::player::{self, Order, Player};
use crate::cluster::{CLIENTS, ClientMachine, Cluster, Machine, Process, name};
use crate::history::{OpNo, Outcome};
use crate::plan::Plan;
use crate::socket::Cable;
use crate::tale::Band;
use crate::workload::{self, Notebook, now_us};

/// Where a script plays. Clones are the same stage.
#[derive(Clone)]
pub struct Stage {
    pub(super) board: Rc<RefCell<Board>>,
    parts: Rc<Parts>,
}

struct Parts {
    plan: Plan,
    machines: Vec<Machine>,
    director: ClientMachine,
    players: BTreeMap<String, Player>,
    admin: RefCell<Option<Client>>,
}

/// What script, clients and harness share.
pub(super) struct Board {
    pub(super) lines: Vec<String>,
    /// What the script told the reader, and when.
    pub(super) said: Vec<(u64, String)>,
    /// What the script asks the harness for, in this order.
    pub(super) asked: Vec<Ask>,
    /// Who is not heard by whom: from, to.
    pub(super) cuts: BTreeSet<(String, String)>,
    pub(super) cables: BTreeMap<String, Cable>,
    pub(super) values: BTreeMap<OpNo, String>,
    pub(super) tries: BTreeMap<OpNo, Vec<(u64, u64, Outcome)>>,
    /// Those without an end last.
    bands: Vec<(Band, bool)>,
    /// What the script has done wrong, where only a panic could end it.
    pub(super) misuse: Option<String>,
    /// Clients that have connected or given up.
    pub(super) ready: usize,
    nodes: u8,
}

/// Something that only the harness can do, and whom to tell when it is done.
pub(super) struct Ask {
    pub(super) action: Action,
    pub(super) done: oneshot::Sender<()>,
}

pub(super) enum Action {
    /// Cables are to do what the board's cuts say.
    Cuts,
    /// Between each two hosts, in milliseconds.
    Latencies(Vec<(String, String, u32)>),
    Crash(u8),
    Stop(u8),
    Start(u8),
}

impl Stage {
    pub(super) fn new(
        cluster: &mut Cluster<'_>,
        plan: &Plan,
        clients: &[String],
        board: Rc<RefCell<Board>>,
        notebook: &Notebook,
    ) -> Self {
        let mut players = BTreeMap::new();
        for machine in cluster.machines() {
            board.borrow_mut().cables.insert(machine.node().to_string(), machine.cable.clone());
        }
        for (client, number) in clients.iter().zip(0..) {
            let machine = cluster.client_machine(client, number);
            board.borrow_mut().cables.insert(client.clone(), machine.cable.clone());
            let (orders, received) = mpsc::channel(ORDERS_MAX);
            let player = Player::new(client, number.into(), orders, board.clone(), notebook.clone());
            cluster.run_client(client, player::live(machine, number, received, player.clone()));
            players.insert(client.clone(), player);
        }
        let (machines, director) = (cluster.machines().to_vec(), cluster.clients().clone());
        let parts = Parts { plan: plan.clone(), machines, director, players, admin: RefCell::default() };
        Self { board, parts: Rc::new(parts) }
    }

    /// A client by its name.
    ///
    /// # Panics
    /// When the scenario has no client of that name.
    pub fn client(&self, name: &str) -> Player {
        if let Some(player) = self.parts.players.get(name) {
            return player.clone();
        }
        let known = self.parts.players.keys().cloned().collect::<Vec<_>>().join(", ");
        let why = format!("no client is called {name:?}, only: {known}");
        self.board.borrow_mut().misuse = Some(why.clone());
        panic!("{why}")
    }

    /// Tells the reader something.
    pub fn say(&self, text: &str) {
        let mut board = self.board.borrow_mut();
        board.line("", text);
        board.said.push((now_us(), text.to_owned()));
    }

    /// Demands something of the script's own.
    ///
    /// # Errors
    /// When it does not hold; the text says what was wanted.
    pub fn demand(&self, holds: bool, what: &str) -> Result<(), Broken> {
        if holds { Ok(()) } else { Err(Broken(format!("{what} - but it is not so"))) }
    }

    /// Lets time pass.
    pub async fn wait_ms(&self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// From now on these, nodes and clients alike, and all others do not hear each other.
    ///
    /// # Errors
    /// When a name is nobody's.
    pub async fn partition(&self, side: &[&str]) -> Result<(), Broken> {
        self.known(side)?;
        let all: Vec<String> = self.board.borrow().cables.keys().cloned().collect();
        let (inside, outside): (Vec<_>, Vec<_>) = all.into_iter().partition(|host| side.contains(&host.as_str()));
        for (one, other) in inside.iter().flat_map(|one| outside.iter().map(move |other| (one, other))) {
            self.board.borrow_mut().cuts.extend([(one.clone(), other.clone()), (other.clone(), one.clone())]);
        }
        let what = format!("partition: {} | {}", inside.join(" "), outside.join(" "));
        self.breaks(&what, &inside);
        self.ask(Action::Cuts).await;
        Ok(())
    }

    /// From now on what the one sends does not reach the other; the other way round it does.
    ///
    /// # Errors
    /// When a name is nobody's.
    pub async fn one_way(&self, from: &str, to: &str) -> Result<(), Broken> {
        self.known(&[from, to])?;
        self.board.borrow_mut().cuts.insert((from.to_owned(), to.to_owned()));
        self.breaks(&format!("one way: {to} does not hear {from}"), &[from.to_owned(), to.to_owned()]);
        self.ask(Action::Cuts).await;
        Ok(())
    }

    /// Everybody hears everybody again.
    ///
    /// # Errors
    /// Never; for the sake of `?` in a row of its likes.
    pub async fn heal(&self) -> Result<(), Broken> {
        {
            let mut board = self.board.borrow_mut();
            board.cuts.clear();
            board.mends(|band| !band.what.ends_with(DOWN));
            board.line("network", "~~ healed: everybody hears everybody again");
        }
        self.ask(Action::Cuts).await;
        Ok(())
    }

    /// A node's process dies at once, and with it what it has not synced.
    ///
    /// # Errors
    /// When no node is called so.
    pub async fn crash(&self, node: &str) -> Result<(), Broken> {
        self.power_cut(&[node]).await
    }

    /// The processes of these nodes die at the same moment.
    ///
    /// # Errors
    /// When a name is no node's.
    pub async fn power_cut(&self, nodes: &[&str]) -> Result<(), Broken> {
        for node in nodes {
            let at = self.node(node)?;
            self.breaks(&format!("{node}{DOWN}"), &[(*node).to_owned()]);
            // All of them before the next step.
            self.board.borrow_mut().asked.push(Ask { action: Action::Crash(at), done: oneshot::channel().0 });
        }
        self.ask(Action::Cuts).await;
        Ok(())
    }

    /// A node's process is stopped as an operator does it, which takes it as long as it needs.
    ///
    /// # Errors
    /// When no node is called so, or it does not end.
    pub async fn stop(&self, node: &str) -> Result<(), Broken> {
        let at = self.node(node)?;
        self.board.borrow_mut().line(node, "** is asked to stop");
        self.ask(Action::Stop(at)).await;
        let machine = &self.parts.machines[usize::from(at)];
        self.wait_for(|| machine.process() != Process::Running, &format!("{node} ends")).await?;
        self.breaks(&format!("{node}{DOWN}"), &[node.to_owned()]);
        Ok(())
    }

    /// A node's process is started, and serves when this returns.
    ///
    /// # Errors
    /// When no node is called so, or it does not serve after half a minute.
    pub async fn start(&self, node: &str) -> Result<(), Broken> {
        let at = self.node(node)?;
        self.ask(Action::Start(at)).await;
        let addr = self.parts.machines[usize::from(at)].addr();
        let started = workload::elapsed();
        loop {
            // A client that has a connection to the process before would wait for that one to answer.
            let asked = match self.parts.director.connect(u16::MAX - 3, true, Duration::from_secs(1)).await {
                Ok(fresh) => fresh.status_at(addr).await,
                Err(error) => Err(error),
            };
            let why = match asked {
                Ok(status) => match status.not_serving {
                    None => break,
                    Some(why) => why,
                },
                Err(error) => error.to_string(),
            };
            if workload::elapsed() > started + START_MAX {
                return Err(Broken(format!("{node} should serve after its start, but: {why}")));
            }
            self.wait_ms(50).await;
        }
        let mut board = self.board.borrow_mut();
        board.mends(|band| band.what == format!("{node}{DOWN}"));
        board.line(node, "** serves");
        Ok(())
    }

    /// A node's disk is exchanged for an empty one. It has to be down.
    ///
    /// # Errors
    /// When no node is called so, or it runs.
    pub fn empty_disk(&self, node: &str) -> Result<(), Broken> {
        let machine = &self.parts.machines[usize::from(self.node(node)?)];
        if machine.process() == Process::Running {
            return Err(Broken(format!("{node} runs: a disk is exchanged only while its node is down")));
        }
        machine.disk.wipe();
        self.board.borrow_mut().line(node, "** gets an empty disk");
        Ok(())
    }

    /// The nodes that keep a key, the one that coordinates its writes first.
    ///
    /// # Errors
    /// When the cluster does not say.
    pub async fn primaries(&self, key: &str) -> Result<Vec<String>, Broken> {
        let located =
            self.admin().await?.locate(key).await.map_err(|error| Broken(format!("where is {key}? {error}")))?;
        let primaries = located.preference.iter().take(located.n.into());
        Ok(primaries.map(|place| place.node.to_string()).collect())
    }

    /// The values of a key that lie on a node's disk now, in their order; none also if it has never heard of the key. No node
    /// is asked.
    ///
    /// # Errors
    /// When no node is called so.
    pub fn on_disk(&self, node: &str, key: &str) -> Result<Vec<String>, Broken> {
        let machine = &self.parts.machines[usize::from(self.node(node)?)];
        let mut values = Vec::new();
        for (stored, encoded) in machine.disk.content(Tree::Data) {
            if key_of_data(&stored)[..] == Key::plain(key)[..] {
                let record = Record::decode(&encoded).map_err(|why| Broken(format!("a record on {node}: {why}")))?;
                values.extend(record.values().iter().map(|value| player::text(value)));
            }
        }
        values.sort();
        Ok(values)
    }

    /// Waits until something holds, and tells when it does.
    ///
    /// # Errors
    /// When it does not after half a minute; the text is what was waited for.
    pub async fn until(&self, holds: impl FnMut() -> bool, what: &str) -> Result<(), Broken> {
        self.wait_for(holds, what).await?;
        self.board.borrow_mut().line("(seen)", what);
        Ok(())
    }

    async fn wait_for(&self, mut holds: impl FnMut() -> bool, what: &str) -> Result<(), Broken> {
        let started = workload::elapsed();
        while !holds() {
            if workload::elapsed() > started + START_MAX {
                return Err(Broken(format!("{what} - but not within {START_MAX:?}")));
            }
            self.wait_ms(10).await;
        }
        Ok(())
    }

    /// The cluster comes about: latencies are as they shall be, there is a layout, and the clients are connected.
    pub(super) async fn open(&self) -> Result<(), Broken> {
        let Parts { plan, machines, director, .. } = &*self.parts;
        self.ask(Action::Latencies(self.latencies())).await;
        let bootstrapped = workload::bootstrap(director, machines, plan, START_MAX).await;
        bootstrapped.map_err(|why| Broken(format!("the cluster should come about, but: {why}")))?;
        for player in self.parts.players.values() {
            player.connect().await;
        }
        let players = self.parts.players.len();
        self.wait_for(|| self.board.borrow().ready == players, "every client connects").await
    }

    /// Lets the clients go.
    pub(super) fn close(&self) {
        for player in self.parts.players.values() {
            player.leave();
        }
    }

    fn latencies(&self) -> Vec<(String, String, u32)> {
        let network = self.parts.plan.network;
        let (within, between) = (network.latency_min_ms, network.latency_max_ms);
        let zone = |host: &str| self.node(host).ok().map(|node| self.parts.plan.zones[usize::from(node)]);
        let hosts: Vec<String> = self.board.borrow().cables.keys().cloned().chain([CLIENTS.to_owned()]).collect();
        let mut latencies = Vec::new();
        for (at, one) in hosts.iter().enumerate() {
            for other in &hosts[at + 1..] {
                let ms = match (zone(one), zone(other)) {
                    (Some(one), Some(other)) if one != other => between,
                    _ => within,
                };
                latencies.push((one.clone(), other.clone(), ms));
            }
        }
        latencies
    }

    async fn ask(&self, action: Action) {
        let (done, is_done) = oneshot::channel();
        self.board.borrow_mut().asked.push(Ask { action, done });
        is_done.await.expect("the harness does what it is asked");
    }

    async fn admin(&self) -> Result<Client, Broken> {
        let known = self.parts.admin.borrow().clone();
        if let Some(admin) = known {
            return Ok(admin);
        }
        let admin = self.parts.director.connect(u16::MAX - 2, true, Duration::from_secs(2)).await;
        let admin = admin.map_err(|error| Broken(format!("the script's own client cannot connect: {error}")))?;
        *self.parts.admin.borrow_mut() = Some(admin.clone());
        Ok(admin)
    }

    fn breaks(&self, what: &str, whom: &[String]) {
        let mut board = self.board.borrow_mut();
        let who = if what.ends_with(DOWN) { whom[0].as_str() } else { "network" };
        let text = if what.ends_with(DOWN) { "** is down".to_owned() } else { format!("~~ {what}") };
        board.line(who, &text);
        let (from_us, whom) = (now_us(), whom.iter().cloned().collect());
        board.bands.push((Band { from_us, to_us: from_us, what: what.to_owned(), whom }, true));
    }

    fn node(&self, host: &str) -> Result<u8, Broken> {
        let nodes = self.parts.plan.nodes();
        let found = (0..nodes).find(|node| name(*node) == host);
        found.ok_or_else(|| Broken(format!("no node is called {host:?}: they are n1 to n{nodes}")))
    }

    fn known(&self, hosts: &[&str]) -> Result<(), Broken> {
        let board = self.board.borrow();
        match hosts.iter().find(|host| !board.cables.contains_key(**host)) {
            None => Ok(()),
            Some(stranger) => {
                let all = board.cables.keys().cloned().collect::<Vec<_>>().join(", ");
                Err(Broken(format!("nobody is called {stranger:?}: there are {all}")))
            }
        }
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stage({} nodes, clients {:?})", self.board.borrow().nodes, self.parts.players.keys())
    }
}

impl Board {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            lines: Vec::new(),
            said: Vec::new(),
            asked: Vec::new(),
            cuts: BTreeSet::new(),
            cables: BTreeMap::new(),
            values: BTreeMap::new(),
            tries: BTreeMap::new(),
            bands: Vec::new(),
            misuse: None,
            ready: 0,
            nodes: plan.nodes(),
        }
    }

    /// A line of what happened now.
    pub(super) fn line(&mut self, who: &str, what: &str) {
        let at_us = now_us();
        let line = match who {
            "" => format!("\n# {what}"),
            who => format!("{:>8}.{}  {who:<8} {what}", at_us / 1000, at_us / 100 % 10),
        };
        self.lines.push(line);
    }

    /// What went wrong, and what still lasts until then.
    pub(super) fn bands_until(&self, end_us: u64) -> Vec<Band> {
        let end =
            |(band, lasts): &(Band, bool)| Band { to_us: if *lasts { end_us } else { band.to_us }, ..band.clone() };
        self.bands.iter().map(end).collect()
    }

    fn mends(&mut self, which: impl Fn(&Band) -> bool) {
        let now = now_us();
        for (band, lasts) in self.bands.iter_mut().filter(|(band, lasts)| *lasts && which(band)) {
            (band.to_us, *lasts) = (now, false);
        }
    }
}

/// How the band of a node that is down ends.
const DOWN: &str = " is down";

/// A client does not get more to do at a time.
const ORDERS_MAX: usize = 64;

/// A node that starts on a good disk serves within seconds.
const START_MAX: Duration = Duration::from_secs(30);

pub(super) type Orders = mpsc::Sender<Order>;
