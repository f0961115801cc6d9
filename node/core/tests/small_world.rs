//! A small world: the pure core alone - records, partitions, `Put`, `Get`, the ring - with coordinators, replicas and clients
//! around it that are values in one event queue on virtual time. No network, no tasks, no clock: thousands of lives a second.
//!
//! A life is a function of its seed: how many nodes, R and W, how bad the network is (delay, loss, duplication, reordering,
//! cuts), when nodes crash and come back with what was synced, which inserts fail, when memory of superseded operations is
//! lost. Clients write with the context of what they saw, blindly or delete; they retry as the client crate does: an unknown
//! write at the same coordinator, then elsewhere. At the end all is mended, and replicas exchange records until they agree.
//!
//! What is checked, each with the moment in which it is:
//! - a request has one reply, and ends (always);
//! - no dot names two operations; no coordinator mints an operation for a retry when it has minted it before, whatever it has forgotten
//!   (at each mint; a first attempt that comes after its own retry says nothing of that);
//! - a read shows each operation once, and none beside a successor; with R + W > N it has seen every write that was
//!   acknowledged before it began (at each read);
//! - an operation that was refused is never seen; an acknowledged one is there at the end or was replaced by one that is; no
//!   value is there beside its successor; all replicas agree (at the end).
//!
//! The one excuse is that of `quorate_core::mint`: an operation whose retry took a second dot may show beside its
//! successor.
//!
//! Worlds with a bug in them show that the checks can fail. `QUORATE_WORLD_SEED=17` plays one life, `QUORATE_WORLD_LIVES=100000`
//! many.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::Duration;

use quorate_core::get::{Get, GetAction};
use quorate_core::partition::{Asked, Change, CopyKind, Judgement, PartitionState, RecordAt, There};
use quorate_core::put::{Put, PutAction, StandIns};
use quorate_core::quorum::{Group, Said};
use quorate_core::record::Record;
use quorate_core::ring::{Ring, RingMember};
use quorate_core::version::{Context, Dot};
use quorate_wire::codec::Blob;
use quorate_wire::ids::{LayoutVersion, NodeId, OpId, Partition};
use quorate_wire::random::Random;
use quorate_wire::{Failure, NotApplied};

#[test]
fn nothing_goes_wrong_in_any_life() {
    let mut sum = Tally::default();
    for seed in seeds(if cfg!(debug_assertions) { 4_000 } else { 10_000 }) {
        match live(seed, Bug::None) {
            Ok(tally) => sum.add(&tally),
            Err(why) => {
                panic!("{why}\nreproduce: QUORATE_WORLD_SEED={seed} cargo test -p quorate-core --test small_world")
            }
        }
    }
    if std::env::var_os(SEED).is_none() {
        sum.assert_all_reached();
    }
}

#[test]
fn the_same_seed_is_the_same_life() {
    for seed in 0..20 {
        assert_eq!(live(seed, Bug::None), live(seed, Bug::None), "seed {seed}");
    }
}

#[test]
fn a_bug_in_the_world_is_noticed() {
    for bug in Bug::ALL {
        let noticed = (0..20_000).find(|seed| live(*seed, bug).is_err());
        assert!(noticed.is_some(), "{bug:?} was not noticed");
    }
}

/// What a world does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    AcksBeforeTheSync,
    ActorKeptOverARestart,
    ReplicaOverwrites,
    ContextDroppedByThePut,
    BlindPutOverwrites,
    DeleteForgetsTheContext,
    DeadlineSaidToBeARefusal,
    RetryIsANewWrite,
    FirstAnswerWins,
    DiskFullAfterTheInsert,
    SilenceSaidToBeAbsence,
    FailedInsertNotLookedAt,
}

impl Bug {
    const ALL: [Self; 12] = [
        Self::AcksBeforeTheSync,
        Self::ActorKeptOverARestart,
        Self::ReplicaOverwrites,
        Self::ContextDroppedByThePut,
        Self::BlindPutOverwrites,
        Self::DeleteForgetsTheContext,
        Self::DeadlineSaidToBeARefusal,
        Self::RetryIsANewWrite,
        Self::FirstAnswerWins,
        Self::DiskFullAfterTheInsert,
        Self::SilenceSaidToBeAbsence,
        Self::FailedInsertNotLookedAt,
    ];
}

/// What happened, so that a world in which nothing does is noticed as well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    const ALL: [&str; 17] = [
        "write acknowledged",
        "write refused",
        "write unknown",
        "read answered",
        "read failed",
        "read showed siblings",
        "retry acknowledged",
        "retry found the first dot",
        "retry took a second dot",
        "retry of what may be forgotten",
        "a first attempt came after its retry",
        "crash",
        "crash lost data",
        "insert unknown",
        "message lost",
        "hedge",
        "a value beside its successor, excused",
    ];

    fn note(&mut self, what: &'static str) {
        debug_assert!(Self::ALL.contains(&what));
        *self.0.entry(what).or_default() += 1;
    }

    fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }

    fn assert_all_reached(&self) {
        for what in Self::ALL {
            assert!(self.0.contains_key(what), "{what:?} never happened: {:?}", self.0);
        }
    }
}

/// Plays one life.
///
/// # Errors
/// What was violated.
fn live(seed: u64, bug: Bug) -> Result<Tally, String> {
    let mut world = World::new(seed, bug);
    world.run()?;
    world.mend()?;
    world.check_the_end()?;
    Ok(world.tally)
}

type Key = u8;
/// Microseconds since the beginning.
type Time = u64;

struct World {
    bug: Bug,
    random: Random,
    plan: Plan,
    ring: &'static Ring,
    now: Time,
    queue: BTreeMap<(Time, u64), Event>,
    submitted: u64,
    requests: u64,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    /// Pairs of nodes that do not hear each other, in this direction.
    cuts: BTreeSet<(usize, usize)>,
    ops: BTreeMap<OpId, Op>,
    dots: BTreeMap<(Key, Dot), OpId>,
    seen: BTreeSet<OpId>,
    tally: Tally,
}

struct Plan {
    n: u8,
    r: u8,
    w: u8,
    keys: u8,
    /// Of a thousand messages.
    lost: u64,
    doubled: u64,
    late: u64,
    /// Of a thousand inserts.
    full: u64,
    unknown: u64,
    /// Of a thousand handled requests.
    forgets: u64,
    crashes: bool,
    cuts: bool,
}

/// What is known of an operation by somebody who sees everything.
struct Op {
    key: Key,
    delete: bool,
    cause: Context,
    dots: Vec<Dot>,
    acknowledged: Option<Time>,
    refused: bool,
}

struct Node {
    id: NodeId,
    up: bool,
    /// Counts its lives; what a dead one has left in the queue is ignored.
    life: u64,
    /// What survives a crash.
    disk: BTreeMap<Key, Record>,
    store: BTreeMap<Key, Record>,
    /// Inserts so far.
    written: u64,
    /// What the running sync brings to the disk, and how many inserts that are.
    syncing: Option<(u64, BTreeMap<Key, Record>)>,
    waiters: Vec<(u64, Waiter)>,
    partitions: BTreeMap<Partition, PartitionState>,
    /// When it started last.
    started: Time,
    /// Puts that it has minted in any of its lives.
    minted: BTreeSet<OpId>,
    running: BTreeMap<u64, Running>,
}

/// Who waits for a sync.
enum Waiter {
    Own { request: u64, changed: bool },
    Peer { to: usize, request: u64, changed: bool },
}

#[allow(clippy::large_enum_variant, reason = "a life has a few dozen of them at a time")]
enum Running {
    Put { put: Put, write: Write, minted: Option<(Record, Context)>, asker: Asker, replied: bool },
    Get { get: Get<Record>, key: Key, asker: Asker, replied: bool },
}

#[derive(Clone)]
struct Write {
    key: Key,
    op_id: OpId,
    delete: bool,
    cause: Context,
    /// In a retry: how long ago the first attempt was sent.
    first_sent: Option<Duration>,
}

/// Whom to answer.
#[derive(Clone, Copy)]
struct Asker {
    client: usize,
    attempt: u64,
}

#[derive(Default)]
struct Client {
    left: u32,
    seen: BTreeMap<Key, Context>,
    current: Option<Current>,
}

struct Current {
    /// A write, or a read of this key.
    write: Option<Write>,
    key: Key,
    begun: Time,
    attempt: u64,
    at: usize,
    tries: u32,
    unknown: u32,
}

#[allow(clippy::large_enum_variant, reason = "a life has a few dozen of them at a time")]
enum Event {
    ToNode { to: usize, message: Message },
    ToClient { asker: Asker, answer: Answer },
    OfNode { node: usize, life: u64, what: Local },
    NoAnswer { asker: Asker },
    Next { client: usize },
    Crash,
    Restart { node: usize },
    Cut,
    Heal,
}

#[derive(Clone)]
enum Message {
    Write { asker: Asker, write: Write },
    Read { asker: Asker, key: Key },
    Replicate { from: usize, request: u64, key: Key, record: Record },
    Replicated { from: usize, request: u64, result: Result<bool, String> },
    Fetch { from: usize, request: u64, key: Key },
    Fetched { from: usize, request: u64, record: Option<Record> },
}

enum Local {
    Mint { request: u64 },
    Synced,
    Deadline { request: u64 },
    CallOver { request: u64, to: usize },
    Hedge { request: u64, token: u32 },
}

enum Answer {
    Written { context: Context },
    Found { record: Record },
    Failed(Failure),
}

impl World {
    fn new(seed: u64, bug: Bug) -> Self {
        let random = Random::from_seed(seed);
        let below = |bound| random.below(bound);
        // Some lives lack some faults: they hide each other.
        let or_none = |most: u64| if below(2) == 0 { below(most) } else { 0 };
        let count = 3 + below(3) as usize;
        let n = 3;
        let plan = Plan {
            n,
            r: 1 + below(u64::from(n)) as u8,
            w: 1 + below(u64::from(n)) as u8,
            keys: 1 + below(2) as u8,
            lost: or_none(250),
            doubled: or_none(200),
            late: or_none(300),
            full: or_none(200),
            unknown: or_none(200),
            forgets: or_none(80),
            crashes: below(3) > 0,
            cuts: below(2) == 0,
        };
        let nodes = (0..count).map(|index| Node::new(node_id(index))).collect();
        let clients = (0..1 + below(3)).map(|_| Client { left: 3 + below(10) as u32, ..Client::default() }).collect();
        let mut world = Self {
            bug,
            random: random.clone(),
            plan,
            ring: ring(count),
            now: BEGINNING,
            queue: BTreeMap::new(),
            submitted: 0,
            requests: 0,
            nodes,
            clients,
            cuts: BTreeSet::new(),
            ops: BTreeMap::new(),
            dots: BTreeMap::new(),
            seen: BTreeSet::new(),
            tally: Tally::default(),
        };
        for client in 0..world.clients.len() {
            world.after(below(5_000), Event::Next { client });
        }
        for (happens, event) in [(world.plan.crashes, Event::Crash), (world.plan.cuts, Event::Cut)] {
            if happens {
                world.after(below(60_000), event);
            }
        }
        world
    }

    /// Until every client is done and nothing is under way any more.
    fn run(&mut self) -> Result<(), String> {
        for _ in 0..EVENTS_MAX {
            let Some(((at, _), event)) = self.queue.pop_first() else { return Ok(()) };
            self.now = at;
            self.happen(event)?;
        }
        Err(format!("the life does not end: {} events are left at {} us", self.queue.len(), self.now))
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::ToNode { to, message } if self.nodes[to].up => return self.handle(to, message),
            Event::OfNode { node, life, what } if self.nodes[node].up && self.nodes[node].life == life => {
                return self.local(node, what);
            }
            Event::ToNode { .. } | Event::OfNode { .. } => {}
            Event::ToClient { asker, answer } => return self.answered(asker, answer),
            Event::NoAnswer { asker } => self.unknown(asker),
            Event::Next { client } => self.next(client),
            Event::Crash => self.crash(),
            Event::Restart { node } => self.nodes[node].up = true,
            Event::Cut => {
                let (a, b) = (self.any_node(), self.any_node());
                self.cuts.insert((a, b));
                if self.chance(500) {
                    self.cuts.insert((b, a));
                }
                self.after_about(40_000, Event::Heal);
            }
            Event::Heal => {
                self.cuts.clear();
                if self.clients_at_work() {
                    self.after_about(60_000, Event::Cut);
                }
            }
        }
        Ok(())
    }

    fn crash(&mut self) {
        // Where it hurts, mostly: unsynced data is there for a millisecond only.
        let hurt = self.nodes.iter().position(|node| node.up && node.store != node.disk);
        let at = hurt.filter(|_| self.chance(800)).unwrap_or_else(|| self.any_node());
        let (keeps_actor, lucky) = (self.bug == Bug::ActorKeptOverARestart, self.chance(300));
        let node = &mut self.nodes[at];
        if node.up {
            self.tally.note("crash");
            if node.store != node.disk {
                self.tally.note("crash lost data");
            }
            if lucky && let Some((_, snapshot)) = node.syncing.take() {
                node.disk = snapshot;
            }
            let partitions = if keeps_actor { std::mem::take(&mut node.partitions) } else { BTreeMap::new() };
            let started = if keeps_actor { node.started } else { self.now };
            let (id, life, disk) = (node.id, node.life + 1, std::mem::take(&mut node.disk));
            let minted = std::mem::take(&mut node.minted);
            let store = disk.clone();
            *node = Node { up: false, life, store, disk, partitions, started, minted, ..Node::new(id) };
            self.after_about(20_000, Event::Restart { node: at });
        }
        if self.clients_at_work() {
            self.after_about(40_000, Event::Crash);
        }
    }

    // Clients.

    fn next(&mut self, client: usize) {
        if self.clients[client].left == 0 {
            return;
        }
        self.clients[client].left -= 1;
        let key = self.random.below(self.plan.keys.into()) as Key;
        let write = self.chance(600).then(|| {
            let seen = self.clients[client].seen.get(&key).cloned().unwrap_or_default();
            let (blind, delete) = (self.chance(250), self.chance(150));
            let cause = if blind { Context::new() } else { seen };
            let op_id = OpId(self.random.u128());
            let op = Op { key, delete, cause: cause.clone(), dots: Vec::new(), acknowledged: None, refused: false };
            self.ops.insert(op_id, op);
            Write { key, op_id, delete, cause, first_sent: None }
        });
        let begun = self.now;
        let at = self.primary(key);
        self.clients[client].current = Some(Current { write, key, begun, attempt: 0, at, tries: 0, unknown: 0 });
        self.attempt(client);
    }

    fn attempt(&mut self, client: usize) {
        self.requests += 1;
        let attempt = self.requests;
        let current = self.clients[client].current.as_mut().expect("somebody asks");
        current.attempt = attempt;
        current.tries += 1;
        let (to, key, asker) = (current.at, current.key, Asker { client, attempt });
        let first_sent = (current.tries > 1).then(|| Duration::from_micros(self.now - current.begun));
        let message = match current.write.clone() {
            Some(write) => Message::Write { asker, write: Write { first_sent, ..write } },
            None => Message::Read { asker, key },
        };
        // A stream delivers once or not at all: a request that comes twice is made twice.
        if self.survives() {
            let after = self.delay();
            self.after(after, Event::ToNode { to, message });
        }
        self.after(ATTEMPT_TIME, Event::NoAnswer { asker });
    }

    /// The request that this is an answer to, if it is still being waited for.
    fn current(&mut self, asker: Asker) -> Option<&mut Current> {
        self.clients[asker.client].current.as_mut().filter(|current| current.attempt == asker.attempt)
    }

    fn answered(&mut self, asker: Asker, answer: Answer) -> Result<(), String> {
        let now = self.now;
        let Some(current) = self.current(asker) else { return Ok(()) };
        let (key, begun, tries) = (current.key, current.begun, current.tries);
        match answer {
            Answer::Failed(Failure::Indeterminate { .. }) => self.unknown(asker),
            Answer::Failed(Failure::NotApplied(_)) => self.again(asker.client, true),
            Answer::Written { context } => {
                let op_id = current.write.as_ref().expect("only writes are acknowledged").op_id;
                self.tally.note("write acknowledged");
                if tries > 1 {
                    self.tally.note("retry acknowledged");
                }
                let op = self.ops.get_mut(&op_id).expect("every write is known");
                if !op.dots.iter().any(|dot| context.covers(dot)) {
                    return Err(format!("the writer of {op_id} was told that it has not seen its own write"));
                }
                op.acknowledged = Some(now);
                self.clients[asker.client].seen.insert(key, context);
                self.done(asker.client);
            }
            Answer::Found { record } => {
                self.check_read(key, begun, &record)?;
                self.tally.note("read answered");
                self.clients[asker.client].seen.insert(key, record.seen());
                self.done(asker.client);
            }
        }
        Ok(())
    }

    fn unknown(&mut self, asker: Asker) {
        let Some(current) = self.current(asker) else { return };
        current.unknown += 1;
        // The same coordinator first: it knows the operation.
        let elsewhere = current.write.is_none() || current.unknown > 1;
        self.again(asker.client, elsewhere);
    }

    fn again(&mut self, client: usize, elsewhere: bool) {
        let current = self.clients[client].current.as_mut().expect("somebody asks");
        if current.tries < TRIES_MAX {
            let key = current.key;
            if elsewhere {
                let at = self.primary(key);
                self.clients[client].current.as_mut().expect("as before").at = at;
            }
            return self.attempt(client);
        }
        match (&current.write, current.unknown) {
            (None, _) => self.tally.note("read failed"),
            (Some(write), 0) => {
                self.ops.get_mut(&write.op_id).expect("every write is known").refused = true;
                self.tally.note("write refused");
            }
            (Some(_), _) => self.tally.note("write unknown"),
        }
        self.done(client);
    }

    fn done(&mut self, client: usize) {
        self.clients[client].current = None;
        self.after_about(3_000, Event::Next { client });
    }

    // Nodes.

    fn handle(&mut self, at: usize, message: Message) -> Result<(), String> {
        if self.chance(self.plan.forgets) {
            let now = self.clock(at);
            for state in self.nodes[at].partitions.values_mut() {
                state.trim_operations(now, 0);
            }
        }
        match message {
            Message::Write { asker, write } => {
                let primaries = self.primaries(write.key);
                let reachable: Vec<NodeId> =
                    primaries.iter().copied().filter(|node| self.believed_up(at, *node)).collect();
                let (me, groups) = (self.nodes[at].id, only(primaries, self.plan.w));
                let put =
                    Put::new(me, write.op_id, &groups, StandIns::default(), true, |node| reachable.contains(&node));
                let put = match put {
                    Ok(put) => put,
                    Err(refusal) => {
                        self.answer(asker, Answer::Failed(refusal.into()));
                        return Ok(());
                    }
                };
                let running = Running::Put { put, write, minted: None, asker, replied: false };
                let request = self.start(at, running);
                let after = if self.chance(50) { 2 * REQUEST_TIME } else { self.random.below(300) };
                self.soon(at, after, Local::Mint { request });
            }
            Message::Read { asker, key } => {
                let mut primaries = self.primaries(key);
                primaries.sort_by_key(|node| *node != self.nodes[at].id);
                let (get, actions) = Get::start(&only(primaries.clone(), self.plan.r), &primaries, &[], true, self.now);
                let request = self.start(at, Running::Get { get, key, asker, replied: false });
                self.perform_get(at, request, actions)?;
            }
            Message::Replicate { from, request, key, record } => match self.merge(at, key, &record) {
                Ok(changed) => self.wait(at, Waiter::Peer { to: from, request, changed }),
                Err(why) => {
                    let message = Message::Replicated { from: at, request, result: Err(why) };
                    self.send(at, from, message);
                }
            },
            Message::Replicated { from, request, result } => {
                let (now, from) = (self.now, self.nodes[from].id);
                let Some(Running::Put { put, .. }) = self.nodes[at].running.get_mut(&request) else { return Ok(()) };
                let actions = match result {
                    Ok(changed) => put.on_ack(from, true, changed, now),
                    Err(why) => put.on_failed(from, why, now),
                };
                self.perform_put(at, request, actions)?;
            }
            Message::Fetch { from, request, key } => {
                let record = self.nodes[at].store.get(&key).cloned();
                self.send(at, from, Message::Fetched { from: at, request, record });
            }
            Message::Fetched { from, request, record } => {
                let from = self.nodes[from].id;
                self.fetched(at, request, from, record)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, at: usize, running: Running) -> u64 {
        self.requests += 1;
        let request = self.requests;
        self.nodes[at].running.insert(request, running);
        self.soon(at, REQUEST_TIME, Local::Deadline { request });
        request
    }

    fn local(&mut self, at: usize, what: Local) -> Result<(), String> {
        let now = self.now;
        match what {
            Local::Mint { request } => self.mint(at, request),
            Local::Synced => {
                let node = &mut self.nodes[at];
                let (covered, snapshot) = node.syncing.take().expect("a sync was running");
                node.disk = snapshot;
                let (released, waiters) =
                    std::mem::take(&mut node.waiters).into_iter().partition(|(ticket, _)| *ticket <= covered);
                node.waiters = waiters;
                self.release(at, released)?;
                self.sync(at);
                Ok(())
            }
            Local::Deadline { request } => match self.nodes[at].running.get_mut(&request) {
                Some(Running::Put { put, .. }) => {
                    let mut actions = put.on_deadline();
                    if self.bug == Bug::DeadlineSaidToBeARefusal {
                        for action in &mut actions {
                            if let PutAction::Reply(outcome) = action {
                                *outcome = Err(NotApplied::Overloaded { retry_after_ms: 1 }.into());
                            }
                        }
                    }
                    self.perform_put(at, request, actions)
                }
                Some(Running::Get { get, .. }) => {
                    let actions = get.on_deadline();
                    self.perform_get(at, request, actions)
                }
                None => Ok(()),
            },
            Local::CallOver { request, to } => {
                let (id, silence) = (self.nodes[to].id, self.bug == Bug::SilenceSaidToBeAbsence);
                match self.nodes[at].running.get_mut(&request) {
                    Some(Running::Put { put, .. }) => {
                        let actions = put.on_failed(id, "no answer".into(), now);
                        self.perform_put(at, request, actions)
                    }
                    Some(Running::Get { get, .. }) => {
                        let actions = match silence {
                            true => get.on_absent(id, Record::default(), now),
                            false => get.on_failed(id, "no answer".into(), now),
                        };
                        self.perform_get(at, request, actions)
                    }
                    None => Ok(()),
                }
            }
            Local::Hedge { request, token } => {
                let Some(Running::Get { get, .. }) = self.nodes[at].running.get_mut(&request) else { return Ok(()) };
                let actions = get.on_late(token, now);
                if !actions.is_empty() {
                    self.tally.note("hedge");
                }
                self.perform_get(at, request, actions)
            }
        }
    }

    /// What the replica of the node does, from `quorate_node::replica`, without locks.
    fn mint(&mut self, at: usize, request: u64) -> Result<(), String> {
        let now = self.now;
        let Some(Running::Put { write, .. }) = self.nodes[at].running.get(&request) else {
            return Err(format!("the put {request} ended before its mint"));
        };
        let Write { key, op_id, delete, cause, first_sent } = write.clone();
        let (full, unknown) = (self.chance(self.plan.full), self.chance(self.plan.unknown));
        let (bug, partition, clock) = (self.bug, self.partition(key), self.clock(at));
        let (there, incarnation) = (self.chance(500), self.random.u64());
        let node = &mut self.nodes[at];
        let held = node.store.get(&key).cloned().unwrap_or_default();
        let state = node.partitions.entry(partition).or_default();
        let asked = Asked { op_id, first_sent, delete, cause: &cause };
        let judged = match bug {
            Bug::RetryIsANewWrite => Judgement::New,
            _ => state.judge(node.id, &record_at(key), &asked, &held, false, clock),
        };
        let (record, context, changed) = match judged {
            Judgement::Repeated(first) => {
                self.tally.note("retry found the first dot");
                (held, first.context, false)
            }
            Judgement::Forgotten => {
                self.tally.note("retry of what may be forgotten");
                return self.mint_unknown(at, request, "it may be forgotten");
            }
            Judgement::New => {
                let cause = match bug {
                    Bug::ContextDroppedByThePut if !delete => Context::new(),
                    Bug::DeleteForgetsTheContext if delete => Context::new(),
                    Bug::BlindPutOverwrites if cause.is_empty() => held.context.clone(),
                    _ => cause,
                };
                let value = (!delete).then(|| Blob::copy_from(&op_id.0.to_be_bytes()));
                let minting = state.mint(node.id, held, op_id, value, &cause, &mut || incarnation);
                let (dot, fresh) = (minting.dot, minting.fresh);
                if full && bug != Bug::DiskFullAfterTheInsert {
                    return self.mint_refused(at, request);
                }
                let is_there = !unknown || there;
                if is_there {
                    node.store.insert(key, fresh.record.clone());
                    node.written += 1;
                    if let Some(other) = self.dots.insert((key, dot), op_id)
                        && other != op_id
                    {
                        return Err(format!("{dot} is the name of {op_id} and of {other}"));
                    }
                    if !delete && !node.minted.insert(op_id) {
                        if first_sent.is_some() {
                            return Err(format!("{} has minted {op_id} before", node.id));
                        }
                        self.tally.note("a first attempt came after its retry");
                    }
                    let op = self.ops.get_mut(&op_id).expect("every write is known");
                    op.dots.push(dot);
                    if op.dots.len() > 1 {
                        self.tally.note("retry took a second dot");
                    }
                }
                if full {
                    return self.mint_refused(at, request);
                }
                if unknown {
                    let there = match is_there && bug != Bug::FailedInsertNotLookedAt {
                        true => There::Yes(fresh.dropped),
                        false => There::No,
                    };
                    state.insert_unknown(&record_at(key), there, clock, OPERATIONS);
                    self.tally.note("insert unknown");
                    return self.mint_unknown(at, request, "the insert failed");
                }
                state.written(&record_at(key), Change::Replaced(None, None), fresh.dropped, clock, OPERATIONS);
                (fresh.record, fresh.context, true)
            }
        };
        let Some(Running::Put { put, minted, .. }) = self.nodes[at].running.get_mut(&request) else { return Ok(()) };
        *minted = Some((record, context));
        let mut actions = put.on_minted(now);
        if let Some(own) = actions.iter().position(|action| *action == PutAction::AwaitDurable) {
            actions.remove(own);
            self.wait(at, Waiter::Own { request, changed });
        }
        self.perform_put(at, request, actions)
    }

    fn mint_unknown(&mut self, at: usize, request: u64, why: &str) -> Result<(), String> {
        let Some(Running::Put { put, .. }) = self.nodes[at].running.get_mut(&request) else { return Ok(()) };
        let actions = put.on_mint_unknown(why.into());
        self.perform_put(at, request, actions)
    }

    fn mint_refused(&mut self, at: usize, request: u64) -> Result<(), String> {
        let refusal = NotApplied::Storage { node: self.nodes[at].id, why: "the disk is full".into() };
        let Some(Running::Put { put, .. }) = self.nodes[at].running.get_mut(&request) else { return Ok(()) };
        let actions = put.on_mint_refused(refusal);
        self.perform_put(at, request, actions)
    }

    fn merge(&mut self, at: usize, key: Key, other: &Record) -> Result<bool, String> {
        if self.chance(self.plan.full) {
            return Err("the disk is full".into());
        }
        let (bug, partition, clock, random) = (self.bug, self.partition(key), self.clock(at), self.random.clone());
        let node = &mut self.nodes[at];
        let held = node.store.get(&key).cloned().unwrap_or_default();
        let state = node.partitions.entry(partition).or_default();
        let merging = state.merge(node.id, &record_at(key), held, other, clock, &mut || random.u64());
        if let Some(dot) = merging.dropped.incidents.first() {
            return Err(format!("two values have the dot {dot}"));
        }
        if merging.disputed {
            return Err("a record knows dots that its actor has not minted".into());
        }
        let record = if bug == Bug::ReplicaOverwrites { other.clone() } else { merging.record };
        if merging.changed {
            node.store.insert(key, record);
            node.written += 1;
        }
        let change = if merging.changed { Change::Replaced(None, None) } else { Change::Nothing };
        state.written(&record_at(key), change, merging.dropped, clock, OPERATIONS);
        Ok(merging.changed)
    }

    /// Waits for a sync that covers everything that is written now.
    fn wait(&mut self, at: usize, waiter: Waiter) {
        let ticket = self.nodes[at].written;
        if self.bug == Bug::AcksBeforeTheSync
            && let Waiter::Peer { to, request, changed } = waiter
        {
            self.send(at, to, Message::Replicated { from: at, request, result: Ok(changed) });
            self.nodes[at].waiters.push((ticket, Waiter::Peer { to, request: 0, changed }));
        } else {
            self.nodes[at].waiters.push((ticket, waiter));
        }
        self.sync(at);
    }

    fn sync(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.syncing.is_none() && !node.waiters.is_empty() {
            node.syncing = Some((node.written, node.store.clone()));
            let stall = if self.chance(100) { self.random.below(20_000) } else { 0 };
            let after = 100 + self.random.below(3_000) + stall;
            self.soon(at, after, Local::Synced);
        }
    }

    fn release(&mut self, at: usize, released: Vec<(u64, Waiter)>) -> Result<(), String> {
        for (_, waiter) in released {
            match waiter {
                Waiter::Peer { to, request, changed } => {
                    self.send(at, to, Message::Replicated { from: at, request, result: Ok(changed) });
                }
                Waiter::Own { request, changed } => {
                    let (now, id) = (self.now, self.nodes[at].id);
                    let Some(Running::Put { put, .. }) = self.nodes[at].running.get_mut(&request) else { continue };
                    let actions = put.on_ack(id, true, changed, now);
                    self.perform_put(at, request, actions)?;
                }
            }
        }
        Ok(())
    }

    fn fetched(&mut self, at: usize, request: u64, from: NodeId, record: Option<Record>) -> Result<(), String> {
        let now = self.now;
        let Some(Running::Get { get, .. }) = self.nodes[at].running.get_mut(&request) else { return Ok(()) };
        let actions = match record {
            Some(record) => {
                let said = Said::Values(record.siblings.len());
                get.on_answer(from, record, said, now)
            }
            None => get.on_absent(from, Record::default(), now),
        };
        self.perform_get(at, request, actions)
    }

    fn perform_put(&mut self, at: usize, request: u64, actions: Vec<PutAction>) -> Result<(), String> {
        for action in actions {
            let Some(Running::Put { write, minted, asker, replied, .. }) = self.nodes[at].running.get_mut(&request)
            else {
                return Err(format!("put {request} acts after its end: {action:?}"));
            };
            match action {
                PutAction::Replicate(to) => {
                    let (record, _) = minted.clone().expect("replication follows the mint");
                    let message = Message::Replicate { from: at, request, key: write.key, record };
                    self.call(at, request, to, message);
                }
                PutAction::Hint { .. } | PutAction::LateAfterDelay => return Err("nobody stands in here".into()),
                PutAction::AwaitDurable => return Err("the own disk is waited for once".into()),
                PutAction::Reply(outcome) => {
                    if std::mem::replace(replied, true) {
                        return Err(format!("put {request} is answered twice"));
                    }
                    let asker = *asker;
                    let answer = match outcome {
                        Ok(()) => {
                            Answer::Written { context: minted.clone().expect("minted before it is acknowledged").1 }
                        }
                        Err(failure) => Answer::Failed(failure),
                    };
                    self.answer(asker, answer);
                }
                PutAction::Finished => {
                    if !*replied {
                        return Err(format!("put {request} ended without an answer"));
                    }
                    self.nodes[at].running.remove(&request);
                }
            }
        }
        Ok(())
    }

    fn perform_get(&mut self, at: usize, request: u64, actions: Vec<GetAction>) -> Result<(), String> {
        for action in actions {
            let me = self.nodes[at].id;
            let Some(Running::Get { get, key, asker, replied }) = self.nodes[at].running.get_mut(&request) else {
                return Err(format!("get {request} acts after its end: {action:?}"));
            };
            let key = *key;
            match action {
                GetAction::Ask(node) if node == me => {
                    let record = self.nodes[at].store.get(&key).cloned();
                    // Its answer comes by the same way as the others', so that no machine is entered twice.
                    self.soon_message(at, Message::Fetched { from: at, request, record });
                }
                GetAction::Ask(node) => self.call(at, request, node, Message::Fetch { from: at, request, key }),
                GetAction::AskFallback(_) => return Err("nobody stands in here".into()),
                GetAction::HedgeAfterDelay { token, .. } => {
                    let after = 500 + self.random.below(2_000);
                    self.soon(at, after, Local::Hedge { request, token });
                }
                GetAction::Reply(outcome) => {
                    if std::mem::replace(replied, true) {
                        return Err(format!("get {request} is answered twice"));
                    }
                    let asker = *asker;
                    let answer = match outcome {
                        Ok(()) if self.bug == Bug::FirstAnswerWins => {
                            Answer::Found { record: get.decisive()[0].1.clone() }
                        }
                        Ok(()) => Answer::Found { record: get.merged() },
                        Err(refusal) => Answer::Failed(refusal.into()),
                    };
                    self.answer(asker, answer);
                }
                GetAction::Finished => {
                    if !*replied {
                        return Err(format!("get {request} ended without an answer"));
                    }
                    self.nodes[at].running.remove(&request);
                }
            }
        }
        Ok(())
    }

    // The network.

    fn call(&mut self, at: usize, request: u64, to: NodeId, message: Message) {
        let to = self.index(to);
        self.send(at, to, message);
        let after = CALL_TIME + self.random.below(CALL_TIME);
        self.soon(at, after, Local::CallOver { request, to });
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        if self.cuts.contains(&(from, to)) {
            return;
        }
        let copies = if self.chance(self.plan.doubled) { 2 } else { 1 };
        for _ in 0..copies {
            if self.survives() {
                let after = self.delay();
                self.after(after, Event::ToNode { to, message: message.clone() });
            }
        }
    }

    fn soon_message(&mut self, to: usize, message: Message) {
        let after = self.random.below(100);
        self.after(after, Event::ToNode { to, message });
    }

    fn answer(&mut self, asker: Asker, answer: Answer) {
        if self.survives() {
            let after = self.delay();
            self.after(after, Event::ToClient { asker, answer });
        }
    }

    fn survives(&mut self) -> bool {
        let lost = self.chance(self.plan.lost);
        if lost {
            self.tally.note("message lost");
        }
        !lost
    }

    fn delay(&self) -> Time {
        let late = if self.chance(self.plan.late) { self.random.below(30_000) } else { 0 };
        50 + self.random.below(800) + late
    }

    fn soon(&mut self, node: usize, after: Time, what: Local) {
        let life = self.nodes[node].life;
        self.after(after, Event::OfNode { node, life, what });
    }

    fn after_about(&mut self, mean: Time, event: Event) {
        let after = 1 + self.random.below(2 * mean);
        self.after(after, event);
    }

    fn after(&mut self, after: Time, event: Event) {
        self.submitted += 1;
        self.queue.insert((self.now + after, self.submitted), event);
    }

    // Checks.

    fn check_read(&mut self, key: Key, begun: Time, record: &Record) -> Result<(), String> {
        let shown: Vec<OpId> = record.values().iter().map(op_of).collect();
        if shown.len() > 1 {
            self.tally.note("read showed siblings");
        }
        if shown.iter().collect::<BTreeSet<_>>().len() != shown.len() {
            return Err(format!("a read shows an operation twice: {shown:?}"));
        }
        self.seen.extend(&shown);
        self.check_antichain("a read", record)?;
        if self.plan.r + self.plan.w > self.plan.n {
            let before = |op: &&Op| op.key == key && op.acknowledged.is_some_and(|at| at < begun);
            for op in self.ops.values().filter(before) {
                if !op.dots.iter().any(|dot| record.context.covers(dot)) {
                    return Err(format!("a read has not seen {:?}, acknowledged before it began", op.dots));
                }
            }
        }
        Ok(())
    }

    /// No value beside one that replaced it, but for the documented excuse.
    fn check_antichain(&mut self, what: &str, record: &Record) -> Result<(), String> {
        for (dot, sibling) in &record.siblings {
            let op = self.ops.get(&sibling.op_id).ok_or_else(|| format!("{dot} was never written"))?;
            let replaces = |other: &&Op| {
                other.key == op.key
                    && other.dots.iter().any(|theirs| record.context.covers(theirs))
                    && op.dots.iter().any(|dot| other.cause.covers(dot))
            };
            if self.ops.values().any(|other| replaces(&other)) {
                if op.dots.len() == 1 {
                    return Err(format!("{what} shows {dot} though it was replaced"));
                }
                self.tally.note("a value beside its successor, excused");
            }
        }
        Ok(())
    }

    /// Everybody comes back; replicas exchange records until nothing changes.
    fn mend(&mut self) -> Result<(), String> {
        let clients_done = self.clients.iter().all(|client| client.left == 0 && client.current.is_none());
        if !clients_done || self.nodes.iter().any(|node| node.up && !node.running.is_empty()) {
            return Err("a request was never ended".into());
        }
        self.plan.full = 0;
        for key in 0..self.plan.keys {
            let primaries: Vec<usize> = self.primaries(key).into_iter().map(|node| self.index(node)).collect();
            let mut rounds = 0;
            loop {
                let mut changed = false;
                for from in &primaries {
                    for to in primaries.iter().filter(|to| *to != from) {
                        let record = self.nodes[*from].store.get(&key).cloned().unwrap_or_default();
                        changed |= self.merge(*to, key, &record)?;
                    }
                }
                rounds += 1;
                if !changed {
                    break;
                }
                if rounds > EXCHANGES_MAX {
                    return Err(format!("replicas of key {key} do not agree after {rounds} exchanges"));
                }
            }
        }
        Ok(())
    }

    fn check_the_end(&mut self) -> Result<(), String> {
        for key in 0..self.plan.keys {
            let primaries = self.primaries(key);
            let records: Vec<Record> = primaries
                .iter()
                .map(|node| self.nodes[self.index(*node)].store.get(&key).cloned().unwrap_or_default())
                .collect();
            if records.iter().any(|record| record.encode() != records[0].encode()) {
                return Err(format!("replicas of key {key} differ in the end: {records:?}"));
            }
            let record = &records[0];
            self.check_antichain("the end", record)?;
            self.seen.extend(record.values().iter().map(op_of));
            for (op_id, op) in self.ops.iter().filter(|(_, op)| op.key == key && op.acknowledged.is_some()) {
                let replaced = || {
                    let by = |other: &Op| {
                        other.dots.iter().any(|dot| record.context.covers(dot))
                            && op.dots.iter().any(|dot| other.cause.covers(dot))
                    };
                    self.ops.values().any(|other| other.key == key && by(other))
                };
                let is_there = match op.delete {
                    true => op.dots.iter().any(|dot| record.context.covers(dot)),
                    false => !record.dots_of(op_id).is_empty(),
                };
                if !is_there && !replaced() {
                    return Err(format!("{op_id} ({:?}) was acknowledged and is lost: {record:?}", op.dots));
                }
            }
        }
        match self.ops.iter().find(|(op_id, op)| op.refused && self.seen.contains(op_id)) {
            Some((op_id, _)) => Err(format!("{op_id} was said to be not applied, and was seen")),
            None => Ok(()),
        }
    }

    // Who and where.

    fn partition(&self, key: Key) -> Partition {
        self.ring.partition_of(&[key])
    }

    fn primaries(&self, key: Key) -> Vec<NodeId> {
        self.ring.primaries(self.partition(key)).to_vec()
    }

    fn primary(&self, key: Key) -> usize {
        let primaries = self.ring.primaries(self.partition(key));
        self.index(primaries[self.random.below(primaries.len() as u64) as usize])
    }

    fn index(&self, node: NodeId) -> usize {
        self.nodes.iter().position(|other| other.id == node).expect("the ring names nodes")
    }

    fn any_node(&self) -> usize {
        self.random.below(self.nodes.len() as u64) as usize
    }

    /// Mostly the truth.
    fn believed_up(&self, by: usize, node: NodeId) -> bool {
        let of = self.index(node);
        match self.random.below(20) {
            0 => true,
            1 => false,
            _ => self.nodes[of].up && !self.cuts.contains(&(by, of)),
        }
    }

    /// What a node takes for the time: since its start.
    fn clock(&self, at: usize) -> Duration {
        Duration::from_micros(self.now - self.nodes[at].started)
    }

    fn clients_at_work(&self) -> bool {
        self.clients.iter().any(|client| client.left > 0 || client.current.is_some())
    }

    fn chance(&self, of_a_thousand: u64) -> bool {
        of_a_thousand > 0 && self.random.below(1000) < of_a_thousand
    }
}

impl Node {
    fn new(id: NodeId) -> Self {
        Self {
            id,
            up: true,
            life: 0,
            disk: BTreeMap::new(),
            store: BTreeMap::new(),
            written: 0,
            syncing: None,
            waiters: Vec::new(),
            partitions: BTreeMap::new(),
            started: 0,
            minted: BTreeSet::new(),
            running: BTreeMap::new(),
        }
    }
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match (number(SEED), number(LIVES)) {
        (Some(seed), _) => seed..seed + 1,
        (None, lives) => 0..lives.unwrap_or(count),
    }
}

/// Nobody asks for hash trees here.
/// The owners of a key while one layout version is live, of which `need` are needed.
fn only(primaries: Vec<NodeId>, need: u8) -> [Group; 1] {
    [Group { version: LayoutVersion(1), primaries, need }]
}

fn record_at(key: Key) -> RecordAt<'static> {
    RecordAt { key: key.into(), place: key.into(), copy: CopyKind::Own(None) }
}

fn op_of(value: &Blob) -> OpId {
    OpId(u128::from_be_bytes(value[..].try_into().expect("values are operations")))
}

fn node_id(index: usize) -> NodeId {
    NodeId::new(&format!("n{index}")).expect("a legal name")
}

/// Of 3 to 5 members, made once.
fn ring(count: usize) -> &'static Ring {
    static RINGS: [OnceLock<Ring>; 3] = [const { OnceLock::new() }; 3];
    RINGS[count - 3].get_or_init(|| {
        let member =
            |index| RingMember { node: node_id(index), token_seed: node_id(index), zone: "z".into(), weight: 1 };
        Ring::build(&(0..count).map(member).collect::<Vec<_>>(), 3, 16).expect("a ring")
    })
}

const SEED: &str = "QUORATE_WORLD_SEED";
const LIVES: &str = "QUORATE_WORLD_LIVES";

/// Nodes have been up for some time when a life begins: longer than a retry may travel.
const BEGINNING: Time = 60_000_000;
/// Room for all superseded operations of a life.
const OPERATIONS: usize = 1_000;
/// A coordinator answers after this, whatever it has.
const REQUEST_TIME: Time = 12_000;
/// A replica's answer is waited for so long, and up to twice as long: past the request's end.
const CALL_TIME: Time = 9_000;
/// A client waits so long.
const ATTEMPT_TIME: Time = 15_000;
const TRIES_MAX: u32 = 4;
/// Some 50 times what a life takes.
const EVENTS_MAX: u32 = 100_000;
/// Two exchanges bring all to all; what is dropped by one that remembers takes some more.
const EXCHANGES_MAX: u32 = 8;
