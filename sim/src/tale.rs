//! A life or a scenario that is over, put together for people: what [`explain`](crate::explain) and [`report`](crate::report)
//! are made from.

use std::collections::{BTreeMap, BTreeSet};

use quorate_wire::story::text;

use crate::checker::Violation;
use crate::cluster::name;
use crate::history::{Action, History, OpNo, Operation, Outcome};
use crate::life::Report;
use crate::plan::{Fault, FaultKind, Hearing};
use crate::story::{Event, Story};
use crate::workload::AUDITOR;

/// Everything that is known of what happened.
#[derive(Debug, Clone)]
pub struct Tale {
    /// What it is, in one line.
    pub title: String,
    /// The nodes and their zones.
    pub nodes: Vec<(String, String)>,
    /// What clients are called, by their numbers; one that is missing is `client N`.
    pub clients: BTreeMap<u32, String>,
    /// What was told while it went on.
    pub events: Vec<Event>,
    /// What the clients did, and what was on the disks at the end.
    pub history: History,
    /// What operations wrote, where it is text that says more than the operation's number.
    pub values: BTreeMap<OpNo, String>,
    /// The tries of operations that were made more than once by the same id: from, to, and how each ended.
    pub tries: BTreeMap<OpNo, Vec<(u64, u64, Outcome)>>,
    /// What went wrong on purpose, and when.
    pub bands: Vec<Band>,
    /// What a narrator says of it, and when, in microseconds.
    pub narration: Vec<(u64, String)>,
    /// Promises that were broken.
    pub violations: Vec<Violation>,
    /// Why it did not come to the end that it should have.
    pub failure: Option<String>,
    /// All that is to be said of it: what was planned, how it ended.
    pub verdict: String,
    /// Whether all was well.
    pub is_good: bool,
    /// When it was over, in microseconds.
    pub end_us: u64,
    by_op_id: BTreeMap<String, OpNo>,
    by_request: BTreeMap<u64, (u32, OpNo)>,
    by_addr: BTreeMap<String, String>,
}

/// Something that goes wrong for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Band {
    /// When it began, in microseconds.
    pub from_us: u64,
    /// When it was over.
    pub to_us: u64,
    /// What it was.
    pub what: String,
    /// The nodes and clients that it was about; none for all.
    pub whom: BTreeSet<String>,
}

/// A question from one to the other and its answer, with the times at both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// The client's request that it serves.
    pub request: u64,
    /// What was asked: `put`, `replicate`, `fetch`, ..
    pub what: String,
    /// Who asked.
    pub from: String,
    /// Who was asked.
    pub to: String,
    /// When the question was asked.
    pub asked_us: u64,
    /// When it arrived; nothing if it did not.
    pub arrived_us: Option<u64>,
    /// When the answer was given.
    pub answered_us: Option<u64>,
    /// When the answer arrived, or the asker gave up.
    pub told_us: Option<u64>,
    /// An answer arrived.
    pub came: bool,
    /// It said that what was asked for was not done.
    pub refused: bool,
    /// What it said, or why there is none.
    pub said: String,
}

impl Tale {
    /// Of a life.
    pub fn of_life(report: &Report, story: &Story) -> Self {
        let plan = &report.plan;
        let from_us = micros(report.active_from);
        let band = |fault: &Fault| Band {
            from_us: from_us + u64::from(fault.at_ms) * 1000,
            to_us: from_us + u64::from(fault.at_ms + fault.for_ms) * 1000,
            what: fault_text(&fault.kind),
            whom: fault.kind.nodes().into_iter().map(name).collect(),
        };
        let aftermath = plan.aftermath.iter().map(|aftermath| Band {
            from_us: from_us + u64::from(plan.active_ms) * 1000,
            to_us: report.healed.map_or(micros(report.simulated), micros),
            what: format!("broken until the others were audited: {:?}", aftermath.how),
            whom: aftermath.broken.iter().copied().map(name).collect(),
        });
        let zones = plan.all_zones().into_iter().zip(0..);
        Self::new(Parts {
            title: format!("seed {}: {} nodes, N={}", plan.seed, plan.nodes(), plan.n),
            nodes: zones.map(|(zone, node)| (name(node), format!("z{zone}"))).collect(),
            clients: BTreeMap::from([(AUDITOR, "auditor".to_owned())]),
            events: story.events(),
            history: report.history.clone(),
            values: BTreeMap::new(),
            tries: BTreeMap::new(),
            bands: plan.faults.iter().map(band).chain(aftermath).collect(),
            narration: Vec::new(),
            violations: report.violations.clone(),
            failure: report.failure.clone(),
            verdict: report.to_string(),
            is_good: report.is_good(),
            end_us: micros(report.simulated),
        })
    }

    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            title,
            nodes,
            clients,
            events,
            history,
            values,
            tries,
            bands,
            narration,
            violations,
            failure,
            verdict,
            is_good,
            end_us,
        } = parts;
        let (mut by_op_id, mut by_request, mut by_addr) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for event in &events {
            match (event.act.as_str(), event.by) {
                ("ask", Some(by)) if event.node().is_empty() => {
                    by_request.extend(event.request().map(|request| (request, by)));
                    by_op_id.extend(event.field("op_id").map(|op_id| (op_id.to_owned(), by.1)));
                }
                ("lives at", _) => {
                    by_addr.extend(event.field("addr").map(|addr| (addr.to_owned(), event.node().to_owned())));
                }
                _ => {}
            }
        }
        Self {
            title,
            nodes,
            clients,
            events,
            history,
            values,
            tries,
            bands,
            narration,
            violations,
            failure,
            verdict,
            is_good,
            end_us,
            by_op_id,
            by_request,
            by_addr,
        }
    }

    /// The keys that were touched: those with violations first, then by how much happened to them.
    pub fn keys(&self) -> Vec<&str> {
        let mut count: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for operation in self.history.operations.values() {
            count.entry(&operation.key).or_default().1 += 1;
        }
        for violation in &self.violations {
            count.entry(&violation.key).or_default().0 += 1;
        }
        let mut keys: Vec<&str> = count.keys().copied().collect();
        keys.sort_by_key(|key| (std::cmp::Reverse(count[key]), key.len(), *key));
        keys
    }

    /// What a client is called.
    pub fn client(&self, client: u32) -> String {
        self.clients.get(&client).cloned().unwrap_or_else(|| format!("client {client}"))
    }

    /// What the value that an operation wrote is called.
    pub fn value(&self, operation: OpNo) -> String {
        match (self.values.get(&operation), self.history.operations.contains_key(&operation)) {
            (Some(text), _) => format!("{text:?}"),
            (None, true) => format!("v{operation}"),
            (None, false) => "a value that nobody wrote".to_owned(),
        }
    }

    /// What several values are called.
    pub fn some_values(&self, operations: &BTreeSet<OpNo>) -> String {
        match operations.is_empty() {
            true => "nothing".to_owned(),
            false => operations.iter().map(|no| self.value(*no)).collect::<Vec<_>>().join(" | "),
        }
    }

    /// A record as an event tells it: the live values by their names.
    pub fn holds(&self, told: Option<&str>) -> String {
        let Some(told) = told else { return "nothing".to_owned() };
        let name = |part: &str| {
            let (dot, op_id) = part.split_once('=')?;
            Some(self.by_op_id.get(op_id).map_or_else(|| dot.to_owned(), |no| self.value(*no)))
        };
        let names: Vec<_> = told.split(' ').filter_map(name).collect();
        if names.is_empty() { "only what was deleted".to_owned() } else { names.join(" | ") }
    }

    /// The node that listens at an address.
    pub fn node_at(&self, addr: &str) -> Option<&str> {
        self.by_addr.get(addr).map(String::as_str)
    }

    /// The operation whose write a client named so.
    pub fn operation_of(&self, op_id: &str) -> Option<OpNo> {
        self.by_op_id.get(op_id).copied()
    }

    /// Whose request it is, and for which operation.
    pub fn author_of(&self, request: u64) -> Option<(u32, OpNo)> {
        self.by_request.get(&request).copied()
    }

    /// The operations on a key, in the order of time.
    pub fn operations(&self, key: &str) -> Vec<&Operation> {
        let mut operations: Vec<_> = self.history.operations.values().filter(|it| it.key == key).collect();
        operations.sort_by_key(|operation| (operation.invoked_us, operation.no));
        operations
    }

    /// What was told of a key, in the order of time.
    pub fn events(&self, key: &str) -> impl Iterator<Item = &Event> {
        let key = text(key.as_bytes()).to_string();
        self.events.iter().filter(move |event| match event.field("key") {
            Some(of) => of == key,
            // What has no key may be about a request for one.
            None => event.request().and_then(|request| self.author_of(request)).is_some_and(|(_, no)| {
                self.history
                    .operations
                    .get(&no)
                    .is_some_and(|operation| text(operation.key.as_bytes()).to_string() == key)
            }),
        })
    }

    /// When each node was killed, started, served and ended, in the order of time.
    pub fn lives(&self) -> impl Iterator<Item = (u64, &str, &str)> {
        let of_node = |event: &&Event| event.act == "event" && self.nodes.iter().any(|(node, _)| node == event.node());
        let told = self.events.iter().filter(of_node);
        told.filter_map(|event| Some((event.at_us, event.node(), event.field("what")?)))
            .filter(|(_, _, what)| !what.starts_with("holds "))
    }

    /// The questions and answers about a key, in the order in which they were asked.
    pub fn hops(&self, key: &str) -> Vec<Hop> {
        let mut hops: Vec<Hop> = Vec::new();
        // By the request, the two ends (a client has no name at a node's end) and the question; those with nothing to come yet.
        let mut open: BTreeMap<(u64, String, String, String), Vec<usize>> = BTreeMap::new();
        for event in self.events(key) {
            let (Some(request), Some(what)) = (event.request(), event.field("what")) else { continue };
            let other = event.field("to").or(event.field("from")).unwrap_or_default();
            let other = self.by_addr.get(other).map_or(other, String::as_str);
            let (asker, asked) = match event.act.as_str() {
                "ask" | "told" => (event.node(), other),
                "asked" | "tell" => (other, event.node()),
                _ => continue,
            };
            let open = open.entry((request, asker.to_owned(), asked.to_owned(), what.to_owned())).or_default();
            let said = || event.field("said").unwrap_or_default().to_owned();
            let find = |waits: &dyn Fn(&Hop) -> bool| open.iter().copied().find(|at| waits(&hops[*at]));
            match event.act.as_str() {
                "ask" => {
                    let from = if asker.is_empty() { event.by.map(|(client, _)| self.client(client)) } else { None };
                    open.push(hops.len());
                    hops.push(Hop {
                        request,
                        what: what.to_owned(),
                        from: from.unwrap_or_else(|| asker.to_owned()),
                        to: asked.to_owned(),
                        asked_us: event.at_us,
                        arrived_us: None,
                        answered_us: None,
                        told_us: None,
                        came: false,
                        refused: false,
                        said: String::new(),
                    });
                }
                "asked" => {
                    if let Some(at) = find(&|hop| hop.arrived_us.is_none()) {
                        hops[at].arrived_us = Some(event.at_us);
                    }
                }
                "tell" => {
                    if let Some(at) = find(&|hop| hop.arrived_us.is_some() && hop.answered_us.is_none()) {
                        hops[at].answered_us = Some(event.at_us);
                        hops[at].refused = event.field("ok") == Some("false");
                        hops[at].said = said();
                    }
                }
                _ => {
                    let came = event.field("came") == Some("true");
                    let answered = |hop: &Hop| hop.told_us.is_none() && (hop.answered_us.is_some() || !came);
                    if let Some(at) = find(&answered) {
                        (hops[at].told_us, hops[at].came, hops[at].said) = (Some(event.at_us), came, said());
                    }
                }
            }
        }
        hops
    }

    /// What an operation asks for, for people.
    pub fn asks(&self, operation: &Operation) -> String {
        let knowing = |cause: Option<OpNo>| match cause {
            None => "having seen nothing".to_owned(),
            Some(giver) => format!("having seen the reply to {giver}"),
        };
        let strict = if operation.strict { ", strict" } else { "" };
        match &operation.action {
            Action::Put { cause } => format!("put {}, {}{strict}", self.value(operation.no), knowing(*cause)),
            Action::Delete { cause } => format!("delete, {}{strict}", knowing(*cause)),
            Action::Get { monotonic } => format!("get{}{strict}", if *monotonic { ", monotonic" } else { "" }),
        }
    }

    /// When an operation was tried, from, to, and how that ended; nothing for a try without an end.
    pub fn tries(&self, operation: &Operation) -> Vec<(u64, Option<u64>, Outcome)> {
        match self.tries.get(&operation.no).filter(|tries| tries.len() > 1) {
            Some(tries) => tries.iter().map(|(from, to, outcome)| (*from, Some(*to), outcome.clone())).collect(),
            None => vec![(operation.invoked_us, operation.returned_us, operation.outcome.clone())],
        }
    }

    /// How an operation ended, for people.
    pub fn ends(&self, operation: &Operation) -> String {
        let quorum = operation.quorum.map_or_else(String::new, |quorum| {
            let degraded = if quorum.degraded { ", degraded" } else { "" };
            let had = quorum.primaries.saturating_add(quorum.fallbacks);
            format!(" ({had} of {} answered, {} needed{degraded})", quorum.n, quorum.need)
        });
        match &operation.outcome {
            Outcome::Written => format!("acknowledged{quorum}"),
            Outcome::Found(values) => format!("found {}{quorum}", self.some_values(values)),
            Outcome::NotApplied(why) if operation.writes() => format!("not applied: {why}"),
            Outcome::NotApplied(why) => format!("failed: {why}"),
            Outcome::Unknown(why) => format!("unknown: {why}"),
        }
    }

    /// [`asks`](Self::asks) in a few words.
    pub(crate) fn asks_in_short(&self, operation: &Operation) -> String {
        match &operation.action {
            Action::Put { .. } => format!("put {}", self.value(operation.no)),
            Action::Delete { .. } => "delete".to_owned(),
            Action::Get { .. } => "get".to_owned(),
        }
    }

    /// [`ends`](Self::ends) in a few words, the same ones.
    pub(crate) fn ends_in_short(&self, operation: &Operation) -> String {
        match &operation.outcome {
            _ if operation.returned_us.is_none() => "never ends".to_owned(),
            Outcome::Written => "acknowledged".to_owned(),
            Outcome::Found(values) => format!("found {}", self.some_values(values)),
            Outcome::NotApplied(_) if operation.writes() => "not applied".to_owned(),
            Outcome::NotApplied(_) => "failed".to_owned(),
            Outcome::Unknown(_) => "unknown".to_owned(),
        }
    }
}

/// What a tale is made from; the fields are those of [`Tale`].
pub(crate) struct Parts {
    pub(crate) title: String,
    pub(crate) nodes: Vec<(String, String)>,
    pub(crate) clients: BTreeMap<u32, String>,
    pub(crate) events: Vec<Event>,
    pub(crate) history: History,
    pub(crate) values: BTreeMap<OpNo, String>,
    pub(crate) tries: BTreeMap<OpNo, Vec<(u64, u64, Outcome)>>,
    pub(crate) bands: Vec<Band>,
    pub(crate) narration: Vec<(u64, String)>,
    pub(crate) violations: Vec<Violation>,
    pub(crate) failure: Option<String>,
    pub(crate) verdict: String,
    pub(crate) is_good: bool,
    pub(crate) end_us: u64,
}

/// A fault, for people.
pub fn fault_text(kind: &FaultKind) -> String {
    let names = |nodes: &BTreeSet<u8>| nodes.iter().map(|node| name(*node)).collect::<Vec<_>>().join(" ");
    match kind {
        FaultKind::Partition(side) => format!("partition: {} from all others", names(side)),
        FaultKind::Bridge { side, bridge } => {
            format!("partition: {} from all others, but {} hears both sides", names(side), name(*bridge))
        }
        FaultKind::OneWay { from, to } => format!("one way: {} does not hear {}", name(*to), name(*from)),
        FaultKind::Packets { node, .. } => format!("bad cable at {}", name(*node)),
        FaultKind::Latency { node, more_ms } => format!("{} is {more_ms} ms further away", name(*node)),
        FaultKind::Pause(node) => format!("{} is paused", name(*node)),
        FaultKind::Crash { node, torn } => {
            format!("{} crashes{}", name(*node), if *torn { ", its last write is torn" } else { "" })
        }
        FaultKind::CrashInRecovery { node, .. } => format!("{} crashes, and again while it starts", name(*node)),
        FaultKind::PowerCut(nodes) => format!("power cut: {}", names(nodes)),
        FaultKind::OwnersDown(nodes) => format!("all owners of a partition are down: {}", names(nodes)),
        FaultKind::Flap(node) => format!("{} comes and goes", name(*node)),
        FaultKind::CutFromPeers { node, hearing: Hearing::Neither } => {
            format!("{} is cut off from its peers, not from clients", name(*node))
        }
        FaultKind::CutFromPeers { node, hearing: Hearing::Deaf } => {
            format!("{} hears none of its peers", name(*node))
        }
        FaultKind::CutFromPeers { node, hearing: Hearing::Mute } => {
            format!("none of its peers hears {}", name(*node))
        }
        FaultKind::Apart { one, other } => format!("{} and {} do not hear each other", names(one), names(other)),
        FaultKind::DiesForGood(node) => format!("{} dies with its disk, for good", name(*node)),
        FaultKind::Moves(node) => format!("{} dies and comes back at another address", name(*node)),
        FaultKind::UnreadAnswers(node) => format!("a client takes no answers of {}", name(*node)),
        FaultKind::UnfinishedRequests(node) => format!("a client completes no requests to {}", name(*node)),
        FaultKind::RollingRestart => "rolling restart".to_owned(),
        FaultKind::FailedSync(node) => format!("{} cannot sync", name(*node)),
        FaultKind::FailedInsert(node) => format!("the next insert at {} fails", name(*node)),
        FaultKind::FullDisk(node) => format!("the disk of {} is full", name(*node)),
        FaultKind::SlowDisk { node, latency_ms } => {
            format!("the disk of {} takes {latency_ms} ms for everything", name(*node))
        }
        FaultKind::WrongClock { node, offset_ms } => format!("the clock of {} is wrong by {offset_ms} ms", name(*node)),
        FaultKind::CorruptRecord(node) => format!("a record of {} is damaged", name(*node)),
        FaultKind::CorruptLeaf(node) => {
            format!("a record of {} is damaged, and at the end another one of the same leaf", name(*node))
        }
        FaultKind::LyingDisk(node) => format!("the disk of {} lies about syncs, until its power fails", name(*node)),
        FaultKind::EmptyDisk(node) => format!("{} comes back with an empty disk", name(*node)),
        FaultKind::RolledBackDisk { node, back_ms } => {
            format!("{} comes back with its disk as it was {back_ms} ms before", name(*node))
        }
    }
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).expect("no simulation lasts so long")
}
