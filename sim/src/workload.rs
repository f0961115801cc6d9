//! What clients do: real clients that write, read and delete by the plan, and note down what they were told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_client::{Blind, Cause, Client, Context, Error, Read, RequestOptions, Written};
use quorate_core::context_keys::taken_apart;
use quorate_core::ring::Ring;
use quorate_core::version::{self as core, Dot};
use quorate_wire::Quorum;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{LayoutVersion, NodeId, OpId};
use quorate_wire::random::Random;
use quorate_wire::{Key, LayoutCommand, QuorumReport, Reply, RequestBody, Write};

use crate::cluster::{CLUSTER, ClientMachine, Machine, name, random_of};
use crate::forgery::{self, Given};
use crate::history::{self, Action, History, OpNo, Operation, Outcome};
use crate::plan::{Floors, Plan, Workload};
use crate::story;
use crate::trace::Trace;

/// Where all clients write down what they do. Clones are the same notebook.
#[derive(Clone)]
pub struct Notebook(Arc<Inner>);

struct Inner {
    n: u8,
    trace: Trace,
    history: Mutex<History>,
    answers: Mutex<Vec<Answer>>,
    /// The keys of operations that have ended.
    touched: Mutex<BTreeSet<String>>,
}

/// What a client was just told that has to be true on the disks: see [`crate::vigil`].
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) no: OpNo,
    pub(crate) key: String,
    /// The writes whose values it tells of.
    pub(crate) values: BTreeSet<OpNo>,
    /// Its context, as clients send it.
    pub(crate) context: Bytes,
}

impl Notebook {
    /// An empty one; keys have `n` replicas.
    pub fn new(n: u8, trace: Trace) -> Self {
        Self(Arc::new(Inner {
            n,
            trace,
            history: Mutex::default(),
            answers: Mutex::default(),
            touched: Mutex::default(),
        }))
    }

    /// All that was written down so far.
    pub fn history(&self) -> History {
        self.lock().clone()
    }

    pub(crate) fn begin(&self, who: Who, key: &str, asked: Asked, action: Action, invoked_us: u64) -> OpNo {
        let mut history = self.lock();
        let no = history.operations.last_key_value().map_or(1, |(last, _)| last + 1);
        story::begins(who.client, no);
        history.push(Operation {
            no,
            client: who.client,
            session: who.session,
            key: key.to_owned(),
            action,
            invoked_us,
            returned_us: None,
            outcome: Outcome::Unknown("it never ended".to_owned()),
            strict: asked.strict,
            asked: asked.quorum.count(self.0.n),
            quorum: None,
            dot: None,
            elsewhere: false,
            forged: false,
            time_us: None,
        });
        no
    }

    /// A write that has just begun is sent with a forged context.
    fn forged(&self, no: OpNo) {
        self.lock().operations.get_mut(&no).expect("it has begun").forged = true;
    }

    /// An operation that has just begun has so much time, and all of it.
    fn has_time(&self, no: OpNo, time_ms: u32) {
        let time_us = Some(u64::from(time_ms) * 1000);
        self.lock().operations.get_mut(&no).expect("it has begun").time_us = time_us;
    }

    /// A write whose outcome is unknown is sent again; by a client that does not know to whom it went, perhaps.
    fn begin_again(&self, who: Who, no: OpNo, elsewhere: bool) {
        story::begins(who.client, no);
        let mut history = self.lock();
        let operation = history.operations.get_mut(&no).expect("it has begun");
        operation.elsewhere |= elsewhere;
        // What became of it is decided by what happened between its attempts as well.
        operation.time_us = None;
    }

    fn minted(&self, no: OpNo, dot: Option<String>) {
        self.lock().operations.get_mut(&no).expect("it has begun").dot = dot;
    }

    pub(crate) fn end(&self, no: OpNo, outcome: Outcome, quorum: Option<&QuorumReport>) {
        let mut history = self.lock();
        let operation = history.operations.get_mut(&no).expect("it has begun");
        operation.returned_us = Some(now_us());
        operation.quorum = quorum.map(|report| history::Quorum {
            n: self.0.n,
            need: report.need,
            primaries: report.acks.primary,
            fallbacks: report.acks.fallback,
            degraded: report.degraded,
            below_floor: report.below_floor,
            layout: report.layout.0,
        });
        self.0.touched.lock().unwrap_or_else(PoisonError::into_inner).insert(operation.key.clone());
        let at = turmoil::sim_elapsed().unwrap_or_default();
        let what = format_args!("operation {no} {:?} of {}: {outcome:?}", operation.action, operation.key);
        self.0.trace.event(at, &format!("client {}", operation.client), what);
        operation.outcome = outcome;
    }

    /// It ends without success.
    fn fails(&self, no: OpNo, error: &Error) {
        if !error.is_retryable() {
            // It was refused for what it asked, wherever it had been sent.
            self.lock().operations.get_mut(&no).expect("it has begun").time_us = None;
        }
        self.end(no, failed(error), None);
    }

    /// Notes a put that was acknowledged or a monotonic read that was answered, for whoever looks at the disks.
    fn told(&self, no: OpNo, context: &Context) {
        let (key, values) = match &self.lock().operations.get(&no).expect("it has begun") {
            Operation { key, action: Action::Put { .. }, .. } => (key.clone(), [no].into()),
            Operation { key, action: Action::Get { monotonic: true }, outcome: Outcome::Found(values), .. } => {
                (key.clone(), values.clone())
            }
            Operation { action: Action::Get { .. } | Action::Delete { .. }, .. } => return,
        };
        if values.is_empty() {
            return;
        }
        let answer = Answer { no, key, values, context: context.to_bytes() };
        self.0.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
    }

    /// What was noted since it was last asked.
    pub(crate) fn answers(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.0.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The keys of which an operation has ended since it was last asked.
    pub(crate) fn touched(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.0.touched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn saw(&self, held: history::Held) {
        self.lock().held.push(held);
    }

    /// A write was minted again; of what was seen before nothing is noted again.
    pub(crate) fn saw_minters(&self, minters: history::Minters) {
        let mut history = self.lock();
        if !history.minters.contains(&minters) {
            history.minters.push(minters);
        }
    }

    pub(crate) fn saw_reused(&self, reused: history::Reused) {
        self.lock().reused.push(reused);
    }

    pub(crate) fn saw_replaced(&self, replaced: history::Replaced) {
        self.lock().replaced.push(replaced);
    }

    pub(crate) fn saw_risen(&self, risen: history::Risen) {
        self.lock().risen.push(risen);
    }

    pub(crate) fn saw_cost(&self, cost: history::Cost) {
        self.lock().costs.push(cost);
    }

    /// What a disk holds of layouts from now on.
    pub(crate) fn saw_layouts(&self, known: history::KnownLayouts) {
        self.lock().layouts.push(known);
    }

    /// Who can reach whom from now on.
    pub(crate) fn saw_reach(&self, reach: history::Reach) {
        self.lock().reach.push(reach);
    }

    pub(crate) fn saw_let_go(&self, let_go: history::LetGo) {
        self.lock().let_go.push(let_go);
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Notebook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Notebook({} operations)", self.lock().operations.len())
    }
}

/// Whose operation it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who {
    pub(crate) client: u32,
    pub(crate) session: u32,
}

/// What quorum a client asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) quorum: Quorum,
    pub(crate) strict: bool,
}

/// Makes the first layout, as an operator does: stages every node, and applies.
///
/// # Errors
/// What stood against it at last, if it was not done by `until`.
pub async fn bootstrap(
    clients: &ClientMachine,
    machines: &[Machine],
    plan: &Plan,
    until: Duration,
) -> Result<(), String> {
    loop {
        let why = match try_bootstrap(clients, machines, plan).await {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        if elapsed() > until {
            return Err(why);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn try_bootstrap(clients: &ClientMachine, machines: &[Machine], plan: &Plan) -> Result<(), String> {
    let admin = clients.connect(u16::MAX, true, Duration::from_secs(10)).await.map_err(|error| error.to_string())?;
    let first = machines.first().expect("a plan has nodes").addr();
    let ask =
        async |command| match admin.request_at(first, RequestBody::Layout(command), RequestOptions::default()).await {
            Ok(Reply::Layout(report)) => Ok(report),
            Ok(other) => Err(format!("a layout command was answered with {other:?}")),
            Err(error) => Err(error.to_string()),
        };
    let shown = ask(LayoutCommand::Show).await?;
    if shown.current.version == LayoutVersion::NONE {
        // What was accepted already, by an apply that was cut short, can only be applied again.
        if shown.holding.is_empty() {
            let (n, partitions) = (Some(plan.n), Some(plan.partitions));
            let (r, w) = plan.floors.map(|Floors { r, w }| (r, w)).unzip();
            ask(LayoutCommand::StageSettings { n, partitions, r, w }).await?;
            for machine in machines {
                let (node, addr, zone) = (machine.node(), machine.addr(), machine.zone().to_owned());
                ask(LayoutCommand::StageJoin { node, addr, zone, weight: 1 }).await?;
            }
        }
        ask(LayoutCommand::Apply { version: LayoutVersion(1) }).await?;
    }
    // Everybody holds it before anybody is judged by it.
    for machine in machines {
        let status = admin.status_at(machine.addr()).await.map_err(|error| error.to_string())?;
        if let Some(why) = status.not_serving {
            return Err(format!("{} does not serve: {why}", machine.node()));
        }
    }
    admin.close().await;
    Ok(())
}

/// Makes new context keys while clients work, as an administrator does now and then, each time at another node. What stands against one
/// is left at that.
pub async fn rotate(clients: ClientMachine, machines: Vec<Machine>, plan: Arc<Plan>, random: Random, until: Duration) {
    let active = Duration::from_millis(plan.active_ms.into());
    for rotation in 0..u32::from(plan.workload.rotations) {
        let share = active / u32::from(plan.workload.rotations);
        let at = until.saturating_sub(active) + share * rotation;
        let at = at + Duration::from_millis(random.below(share.as_millis() as u64 + 1));
        tokio::time::sleep(at.saturating_sub(elapsed())).await;
        let machine = &machines[random.below(machines.len() as u64) as usize];
        let Ok(admin) = clients.connect(u16::MAX - 3, true, ROTATION_TIMEOUT).await else { continue };
        let body = RequestBody::Layout(LayoutCommand::RotateContextKey);
        let _ = admin.request_at(machine.addr(), body, RequestOptions::default()).await;
        admin.close().await;
    }
}

/// One client's life: connects, and does one thing after the other until it has done enough or the time is over.
pub async fn work(
    clients: ClientMachine,
    plan: Arc<Plan>,
    number: u16,
    random: Random,
    notebook: Notebook,
    until: Duration,
) {
    let timeout = Duration::from_millis(plan.workload.timeout_ms.into());
    let client = loop {
        match clients.connect(number, false, timeout).await {
            Ok(client) => break client,
            Err(_) if elapsed() < until => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(_) => return,
        }
    };
    let who = Who { client: number.into(), session: 1 };
    let keys = Keys::new(&plan.workload);
    let mut worker = Worker {
        client,
        other: None,
        clients,
        plan,
        random,
        notebook,
        who,
        keys,
        seen: BTreeMap::new(),
        unsettled: Vec::new(),
        ring: None,
        until,
    };
    let (operations, active) = (worker.plan.workload.operations, Duration::from_millis(worker.plan.active_ms.into()));
    let phase = worker.random.below(BURST.into()) as u32;
    for done in 1..=operations {
        if (done + phase).is_multiple_of(BURST) {
            // Bursts fill the whole time, so that there is always somebody whom a fault meets.
            let due = until.saturating_sub(active) + active * done / operations;
            tokio::time::sleep(due.saturating_sub(elapsed())).await;
        }
        if elapsed() >= until {
            break;
        }
        worker.operate().await;
        if done.is_multiple_of(worker.plan.workload.session_len) {
            worker.seen.clear();
            worker.who.session += 1;
        }
        let pause = worker.random.below(u64::from(worker.plan.workload.pause_max_ms) + 1);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    worker.client.close().await;
    if let Some(other) = worker.other {
        other.close().await;
    }
}

/// Reads and writes every key of a cluster that is healthy again: first with majorities, which also overwrites what is damaged
/// on a disk, then with all replicas, after which they must be equal. Returns when the second part began, in microseconds.
///
/// In lives whose clients misbehave, some keys are then written with a forged context, while nobody else writes.
///
/// # Errors
/// When the auditor cannot connect, or what it is told of a context cannot be.
pub async fn audit(
    clients: &ClientMachine,
    machines: &[Machine],
    plan: &Plan,
    notebook: &Notebook,
) -> Result<u64, String> {
    let client = clients.connect(u16::MAX - 1, false, AUDIT_TIMEOUT).await.map_err(|error| error.to_string())?;
    let who = |session| Who { client: AUDITOR, session };
    let random = random_of(plan.seed, "auditor", 0, 0);
    for index in 0..plan.workload.keys {
        let key = key_text(index);
        let auditor = Auditor { client: &client, notebook, who: who(1), key: &key };
        auditor.renew(Quorum::Majority).await;
    }
    // What goes on in the background after a reply is done by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let second_us = now_us();
    for index in 0..plan.workload.keys {
        let key = key_text(index);
        let auditor = Auditor { client: &client, notebook, who: who(2), key: &key };
        auditor.renew(Quorum::All).await;
        auditor.get(ALL).await;
        if plan.workload.foreign_percent > 0 && index < FORGED_KEYS_MAX {
            auditor.forge(machines, &random).await.map_err(|why| format!("a context cannot be forged: {why}"))?;
        }
    }
    client.close().await;
    Ok(second_us)
}

/// Reads every key of a healthy cluster with all of its replicas, twice: what the first reads find stale or damaged is mended or recovered
/// by the second ones. Returns when those began, in microseconds.
///
/// # Errors
/// When the reader cannot connect.
pub async fn read_all(clients: &ClientMachine, plan: &Plan, notebook: &Notebook) -> Result<u64, String> {
    let client = clients.connect(u16::MAX - 3, false, AUDIT_TIMEOUT).await.map_err(|error| error.to_string())?;
    let mut from_us = now_us();
    for round in 0..2 {
        if round > 0 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            from_us = now_us();
        }
        for index in 0..plan.workload.keys {
            let key = key_text(index);
            let auditor = Auditor { client: &client, notebook, who: Who { client: AUDITOR, session: 4 }, key: &key };
            auditor.get(ALL).await;
        }
    }
    client.close().await;
    Ok(from_us)
}

/// Asks of a cluster of which a minority is broken what the rest of it must do: of the given keys and some others, a read of all
/// replicas that are sound, then writes and reads with the life's quorums as far as the core suffices. Nothing is expected of the
/// unsound nodes.
///
/// # Errors
/// When the auditor cannot connect.
pub async fn audit_core(
    clients: &ClientMachine,
    plan: &Plan,
    unsound: &BTreeSet<u8>,
    mut keys: BTreeSet<String>,
    notebook: &Notebook,
) -> Result<(), String> {
    // A client that had sent a write to a node that is dead by now would wait for that node first.
    let client = clients.connect(u16::MAX - 2, false, AUDIT_TIMEOUT).await.map_err(|error| error.to_string())?;
    let core = Core::new(plan, unsound);
    keys.extend((0..plan.workload.keys.min(CORE_KEYS_MAX)).map(key_text));
    for (index, key) in keys.iter().enumerate() {
        let auditor = Auditor { client: &client, notebook, who: Who { client: AUDITOR, session: 3 }, key };
        let strict = index.is_multiple_of(2);
        let asked = |quorum| Asked { quorum, strict };
        // With all that the core holds of the key seen, a write leaves no sibling that the core knows of.
        let mut seen = match core.sound_primaries(key) {
            0 => None,
            sound => auditor.get(asked(Quorum::Exactly(sound))).await,
        };
        let usual = plan.workload.quorums[index % plan.workload.quorums.len()];
        for (r, w) in [usual, (Quorum::Majority, Quorum::Majority)] {
            if core.can_write(key, w, strict) {
                let (cause, giver) = match seen.take() {
                    Some((context, no)) => (Cause::from(context), Some(no)),
                    None => (Cause::from(Blind), None),
                };
                auditor.put(asked(w), cause, giver).await;
            }
            if core.can_read(key, r) {
                seen = auditor.get(asked(r)).await;
            }
        }
    }
    client.close().await;
    Ok(())
}

/// What a cluster can do whose other nodes are broken: the availability that is promised of it.
struct Core {
    ring: Ring,
    sound: BTreeSet<NodeId>,
    n: u8,
    /// Healthy nodes stand in for broken primaries.
    sloppy: bool,
    /// The core has had the time to notice who is broken.
    settled: bool,
}

impl Core {
    fn new(plan: &Plan, unsound: &BTreeSet<u8>) -> Self {
        let sound = (0..plan.nodes()).filter(|node| !unsound.contains(node));
        let sound = sound.map(|node| NodeId::new(&name(node)).expect("a legal name")).collect();
        let sloppy = plan.mechanisms.fallbacks && plan.mechanisms.hints;
        let settled = plan.aftermath.as_ref().is_none_or(|aftermath| !aftermath.sudden);
        Self { ring: plan.ring(), sound, n: plan.n, sloppy, settled }
    }

    /// How many of a key's primaries are in the core.
    fn sound_primaries(&self, key: &str) -> u8 {
        let primaries = self.ring.primaries(self.ring.partition_of(&Key::plain(key)));
        primaries.iter().filter(|node| self.sound.contains(*node)).count() as u8
    }

    /// A read needs R primaries: nobody else speaks of absence.
    fn can_read(&self, key: &str, r: Quorum) -> bool {
        self.sound_primaries(key) >= r.count(self.n)
    }

    /// A write needs W primaries; if it need not be strict and fallbacks stand in, W nodes of the whole core will do. Where no primary
    /// is in the core, a fallback may have to learn first that it cannot forward the write.
    fn can_write(&self, key: &str, w: Quorum, strict: bool) -> bool {
        let (primaries, w) = (self.sound_primaries(key), w.count(self.n));
        let stand_ins = self.sloppy && !strict && (primaries > 0 || self.settled);
        primaries >= w || (stand_ins && self.sound.len() >= usize::from(w))
    }
}

/// The auditor's number among the clients.
pub const AUDITOR: u32 = 1_000_000;

const ALL: Asked = Asked { quorum: Quorum::All, strict: true };

/// A node asks all others twice, each for two seconds at most.
const ROTATION_TIMEOUT: Duration = Duration::from_secs(5);

/// On so many keys contexts are forged.
const FORGED_KEYS_MAX: u32 = 3;

/// As many keys as show every way in which primaries and broken nodes meet; more would only take time.
const CORE_KEYS_MAX: u32 = 12;

/// A healthy cluster answers in a fraction of it, whatever its latencies.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(5);

struct Auditor<'a> {
    client: &'a Client,
    notebook: &'a Notebook,
    who: Who,
    key: &'a str,
}

impl Auditor<'_> {
    async fn renew(&self, quorum: Quorum) {
        let seen = self.get(Asked { quorum, strict: false }).await;
        let (cause, no) = match seen {
            Some((context, no)) => (Cause::from(context), Some(no)),
            None => (Cause::from(Blind), None),
        };
        self.put(Asked { quorum, strict: false }, cause, no).await;
    }

    async fn put(&self, asked: Asked, cause: Cause, giver: Option<OpNo>) -> Option<(Written, OpNo)> {
        let no = self.notebook.begin(self.who, self.key, asked, Action::Put { cause: giver }, now_us());
        let mut put = self.client.put(self.key, value(no, VALUE_LEN_MIN), cause).w(asked.quorum).explain();
        put = if asked.strict { put.strict() } else { put };
        let written = put.await;
        written_down(self.notebook, no, &written);
        Some((written.ok()?, no))
    }

    /// What rule V5 is for: a client claims to have seen a dot that its coordinator has not minted yet. Were the coordinator to
    /// go on counting, it would mint that very dot, and whoever has heard of the claim would take the new value for one that
    /// was replaced long ago. (Claims about other nodes' dots, or while others write, hurt whoever believes them: a context
    /// is a client's word.)
    async fn forge(&self, machines: &[Machine], random: &Random) -> Result<(), String> {
        let Some((context, giver)) = self.get(ALL).await else { return Ok(()) };
        let Some((written, put)) = self.put(ALL, Cause::from(context), Some(giver)).await else { return Ok(()) };
        let coordinator = written.evidence().ok_or("no evidence")?.coordinator;
        let [_, body, _] = taken_apart(&written.context().to_bytes())?;
        let mut context = core::Context::open(&body, CLUSTER, &Key::plain(self.key))?;
        // Among the node's actors that the key has met, the one that minted this write is the one whose dots show it.
        let shown = written.evidence().and_then(|evidence| evidence.dots.first()).ok_or("no dot")?;
        let actor = context.actors().into_iter().find(|actor| {
            let dot = Dot { actor: *actor, counter: context.highest(actor) };
            actor.node == coordinator && dot.to_string() == *shown
        });
        // A retry's dot may be another node's, or not the actor's newest.
        let Some(actor) = actor else { return Ok(()) };
        let next_but_one = Dot { actor, counter: context.highest(&actor) + 2 };
        context.insert(next_but_one);
        let machine = machines.iter().find(|machine| machine.node() == coordinator).ok_or("a stranger coordinates")?;
        // No client can do this: the secret is taken from the node's disk, as if the node itself had issued such a context.
        let forged = Blob(machine.context_keys()?.seal(&context, CLUSTER, &Key::plain(self.key)));
        self.write_at(machine, random, Action::Delete { cause: Some(put) }, Some(forged)).await;
        self.write_at(machine, random, Action::Put { cause: None }, None).await;
        self.get(ALL).await;
        Ok(())
    }

    /// A write whose coordinator is the auditor's choice.
    async fn write_at(&self, machine: &Machine, random: &Random, action: Action, context: Option<Blob>) {
        let is_put = matches!(action, Action::Put { .. });
        let no = self.notebook.begin(self.who, self.key, ALL, action, now_us());
        let body = RequestBody::Write(Write {
            key: Key::plain(self.key),
            value: is_put.then(|| Blob(value(no, VALUE_LEN_MIN))),
            context,
            op_id: OpId(random.u128()),
            first_sent_ms: None,
            w: Some(ALL.quorum),
            strict: ALL.strict,
            explain: false,
        });
        match self.client.request_at(machine.addr(), body, RequestOptions::default()).await {
            Ok(Reply::Written(written)) => self.notebook.end(no, Outcome::Written, Some(&written.quorum)),
            Ok(other) => self.notebook.end(no, Outcome::Unknown(format!("an odd answer: {other:?}")), None),
            Err(error) => self.notebook.end(no, failed(&error), None),
        }
    }

    async fn get(&self, asked: Asked) -> Option<(Context, OpNo)> {
        let no = self.notebook.begin(self.who, self.key, asked, Action::Get { monotonic: false }, now_us());
        let mut get = self.client.get(self.key).r(asked.quorum);
        get = if asked.strict { get.strict() } else { get };
        let read = get.allow_absent().await;
        read_down(self.notebook, no, &read);
        read.ok().map(|read| (read.context().clone(), no))
    }
}

struct Worker {
    client: Client,
    plan: Arc<Plan>,
    random: Random,
    notebook: Notebook,
    who: Who,
    keys: Keys,
    /// The newest context that the session has of each key, and the operation that gave it.
    seen: BTreeMap<String, (Context, OpNo)>,
    /// Writes whose outcome is unknown and that are going to be repeated.
    unsettled: Vec<WriteRequest>,
    /// Repeats what `client` has sent, as another process does: it does not know to whom that went.
    other: Option<Client>,
    clients: ClientMachine,
    /// Only scans need it.
    ring: Option<Ring>,
    /// When it has to come to an end.
    until: Duration,
}

/// A write, as often as it is sent.
#[derive(Clone)]
struct WriteRequest {
    no: OpNo,
    key: String,
    /// Nothing to delete the key.
    value: Option<Bytes>,
    context: Option<Context>,
    terms: Terms,
    /// It repeats an earlier one.
    op_id: Option<OpId>,
    /// It may go elsewhere if the coordinator of the earlier one is not reached.
    any_coordinator: bool,
    /// When it was first sent, in microseconds.
    first_us: u64,
}

impl WriteRequest {
    /// One that is sent for the first time.
    fn first(no: OpNo, key: &str, value: Option<Bytes>, context: Option<Context>, terms: Terms) -> Self {
        let key = key.to_owned();
        Self { no, key, value, context, terms, op_id: None, any_coordinator: false, first_us: now_us() }
    }

    async fn send(&self, client: &Client) -> Result<Written, Error> {
        let Terms { w, strict, explain, .. } = self.terms;
        let ago = Duration::from_micros(now_us() - self.first_us);
        let cause = self.context.clone().map_or(Cause::from(Blind), Cause::from);
        if let Some(value) = &self.value {
            let mut put = client.put(&self.key, value.clone(), cause).w(w);
            put = if strict { put.strict() } else { put };
            put = if explain { put.explain() } else { put };
            put = if let Some(op_id) = self.op_id { put.op_id(op_id).first_sent(ago) } else { put };
            put = if self.any_coordinator { put.any_coordinator() } else { put };
            put.await
        } else {
            let mut delete = client.delete(&self.key, cause).w(w);
            delete = if strict { delete.strict() } else { delete };
            delete = if explain { delete.explain() } else { delete };
            delete = if let Some(op_id) = self.op_id { delete.op_id(op_id).first_sent(ago) } else { delete };
            delete = if self.any_coordinator { delete.any_coordinator() } else { delete };
            delete.await
        }
    }
}

/// What one operation asks for beside its key.
#[derive(Debug, Clone, Copy)]
struct Terms {
    r: Quorum,
    w: Quorum,
    strict: bool,
    /// The reply tells how it came about; it must make no difference.
    explain: bool,
}

impl Terms {
    fn read(self) -> Asked {
        Asked { quorum: self.r, strict: self.strict }
    }

    fn write(self) -> Asked {
        Asked { quorum: self.w, strict: self.strict }
    }
}

impl Worker {
    async fn operate(&mut self) {
        // Another process takes over at once; an application tries again when it gets to it.
        if !self.unsettled.is_empty()
            && (self.plan.workload.repeat_elsewhere || self.random.below(REPEATED_ONE_IN) == 0)
        {
            return self.repeat().await;
        }
        let workload = &self.plan.workload;
        let key = key_text(self.keys.draw(&self.random));
        let scans = workload.scan_percent > 0 && self.random.below(100) < workload.scan_percent.into();
        let pair = self.random.below(workload.quorums.len() as u64) as usize;
        let (r, w) = workload.quorums[pair];
        let strict = self.random.below(100) < workload.strict_percent.into();
        let terms = Terms { r, w, strict, explain: self.random.below(8) == 0 };
        if scans {
            return self.scan(&key, terms).await;
        }
        let mix = workload.mix;
        let mut drawn = self.random.below(mix.total().into());
        for (weight, kind) in [mix.get, mix.put, mix.blind_put, mix.delete, mix.update].into_iter().zip(0..) {
            if drawn >= weight.into() {
                drawn -= u64::from(weight);
                continue;
            }
            match kind {
                0 => self.get(&key, terms).await,
                1 => match self.forgery(&key) {
                    Some((context, giver)) => self.put_forged(&key, terms, context, giver).await,
                    None => self.put(&key, terms, self.seen.get(&key).cloned()).await,
                },
                2 => self.put(&key, terms, None).await,
                3 => self.delete(&key, terms).await,
                _ => self.update(&key, terms).await,
            }
            return;
        }
    }

    /// Now and then a context that no node has issued for the key, made of what the client was given for it and for others.
    fn forgery(&self, key: &str) -> Option<(Context, OpNo)> {
        let percent = self.plan.workload.foreign_percent;
        if percent == 0 || self.random.below(100) >= percent.into() {
            return None;
        }
        let own = self.seen.get(key).map(|(context, no)| (context.to_bytes(), *no));
        let other = self.seen.iter().find(|(other, _)| *other != key);
        let other = other.map(|(other, (context, no))| (other, context.to_bytes(), *no));
        let given = own.as_ref().map(|(context, _)| Given { key, context });
        let of_other = other.as_ref().map(|(key, context, _)| Given { key, context });
        let forged = forgery::forge(given, of_other, &self.random).expect("a node has given it")?;
        // Of a context that was given for another key as it is, the giver tells; so it does of one that would have been the key's own.
        let of_other = other.filter(|(_, context, _)| *context == forged).map(|(_, _, no)| no);
        let giver = of_other.or(own.map(|(_, no)| no))?;
        Some((Context::from_bytes(forged).expect("it is as long as what was given"), giver))
    }

    async fn put_forged(&mut self, key: &str, terms: Terms, context: Context, giver: OpNo) {
        let no = self.begin(key, terms.write(), Action::Put { cause: Some(giver) });
        self.notebook.forged(no);
        let value = Some(value(no, self.value_len()));
        self.write(WriteRequest::first(no, key, value, Some(context), terms)).await;
    }

    async fn get(&mut self, key: &str, terms: Terms) {
        let percent = self.plan.workload.monotonic_percent;
        let monotonic = percent > 0 && self.random.below(100) < percent.into();
        let no = self.begin(key, terms.read(), Action::Get { monotonic });
        let mut get = self.client.get(key).r(terms.r);
        get = if monotonic { get.monotonic() } else { get };
        get = if terms.strict { get.strict() } else { get };
        get = if terms.explain { get.explain() } else { get };
        let read = get.allow_absent().await;
        read_down(&self.notebook, no, &read);
        if let Ok(read) = read {
            self.seen.insert(key.to_owned(), (read.context().clone(), no));
        }
    }

    async fn put(&mut self, key: &str, terms: Terms, seen: Option<(Context, OpNo)>) {
        let (context, giver) = seen.unzip();
        let no = self.begin(key, terms.write(), Action::Put { cause: giver });
        let value = Some(value(no, self.value_len()));
        self.write(WriteRequest::first(no, key, value, context, terms)).await;
    }

    async fn write(&mut self, write: WriteRequest) {
        let other = self.other.as_ref().filter(|_| write.op_id.is_some() && !write.any_coordinator);
        let client = other.unwrap_or(&self.client);
        let written = write.send(client).await;
        self.written(&write.key, write.no, &written);
        if let Err(error) = written
            && let Some(op_id) = error.op_id()
            && self.unsettled.len() < UNSETTLED_MAX
            && self.plan.workload.repeat_percent > 0
            && self.random.below(100) < self.plan.workload.repeat_percent.into()
        {
            self.unsettled.push(WriteRequest { op_id: Some(op_id), ..write });
        }
    }

    /// Sends an unknown write again. In the history it is the same operation, which ends later and perhaps better.
    async fn repeat(&mut self) {
        if self.plan.workload.repeat_elsewhere && self.other.is_none() {
            let timeout = Duration::from_millis(self.plan.workload.timeout_ms.into());
            let number = OTHERS + self.who.client as u16;
            let Ok(other) = self.clients.connect(number, false, timeout).await else { return };
            self.other = Some(other);
        }
        let drawn = self.random.below(self.unsettled.len() as u64) as usize;
        let mut write = self.unsettled.swap_remove(drawn);
        write.any_coordinator = self.other.is_some() && self.random.below(2) == 0;
        // An application may ask for more than it did; what the history says of the operation still holds.
        write.terms.strict |= self.random.below(4) == 0;
        self.notebook.begin_again(self.who, write.no, self.other.is_some());
        self.write(write).await;
    }

    /// Reads the whole partition of a key, or with it all that follow, page by page. In the history that is a read of each of
    /// their keys: of those that a page shows from the page's start to its end, of those that no page shows from the first page
    /// to the last.
    async fn scan(&mut self, key: &str, terms: Terms) {
        let ring = self.ring.get_or_insert_with(|| self.plan.ring()).clone();
        let partition = ring.partition_of(&Key::plain(key));
        let timeout = Duration::from_millis(self.plan.workload.timeout_ms.into());
        let page_size = 1 + self.random.below(10) as u32;
        let scanner = self.client.scan().r(terms.r).page_size(page_size).timeout(timeout);
        let several = page_size.is_multiple_of(2);
        let mut scanner = if several { scanner.from_partition(partition) } else { scanner.partition(partition) };
        let asked = Asked { quorum: terms.r, strict: false };
        let begun_us = now_us();
        let (mut shown, mut last) = (BTreeSet::new(), None);
        loop {
            let page_us = now_us();
            // What a scan that fails in the middle has shown stands; of the rest it has said nothing.
            if page_us > self.until.as_micros() as u64 {
                return;
            }
            let Ok(page) = scanner.next_page().await else { return };
            let Some(page) = page else { break };
            for read in page.records {
                let key = String::from_utf8_lossy(read.key()).into_owned();
                let no = self.notebook.begin(self.who, &key, asked, Action::Get { monotonic: false }, page_us);
                self.notebook.end(no, Outcome::Found(numbers(read.siblings())), Some(read.quorum()));
                self.seen.insert(key.clone(), (read.context().clone(), no));
                shown.insert(key);
            }
            last = Some(page.quorum);
        }
        let keys = (0..self.plan.workload.keys).map(key_text);
        let covered = |key: &str| match ring.partition_of(&Key::plain(key)) {
            other if several => other >= partition,
            other => other == partition,
        };
        for key in keys.filter(|key| !shown.contains(key) && covered(key)) {
            let no = self.notebook.begin(self.who, &key, asked, Action::Get { monotonic: false }, begun_us);
            self.notebook.end(no, Outcome::Found(BTreeSet::new()), last.as_ref());
        }
    }

    async fn delete(&mut self, key: &str, terms: Terms) {
        if !self.seen.contains_key(key) {
            self.get(key, terms).await;
        }
        let Some((context, giver)) = self.seen.get(key).cloned() else { return };
        let no = self.begin(key, terms.write(), Action::Delete { cause: Some(giver) });
        self.write(WriteRequest::first(no, key, None, Some(context), terms)).await;
    }

    /// An update is several reads and writes; what its function is shown tells what they were.
    async fn update(&mut self, key: &str, terms: Terms) {
        struct Round {
            put: OpNo,
            began_us: u64,
            shown: usize,
        }
        let first = self.begin(key, terms.read(), Action::Get { monotonic: false });
        let (notebook, who, len) = (self.notebook.clone(), self.who, self.value_len());
        let mut rounds: Vec<Round> = Vec::new();
        let change = |read: &Read| {
            let shown = read.siblings().len();
            let (get, found) = match rounds.last() {
                None => (first, numbers(read.siblings())),
                Some(before) => {
                    // The next round begins after the write before it was acknowledged. What it shows is what that one
                    // had been shown, and behind that what stood beside its result.
                    notebook.end(before.put, Outcome::Written, None);
                    let action = Action::Get { monotonic: false };
                    let get = notebook.begin(who, key, terms.read(), action, before.began_us);
                    let mut found = numbers(read.siblings().get(before.shown..).unwrap_or_default());
                    found.insert(before.put);
                    (get, found)
                }
            };
            notebook.end(get, Outcome::Found(found), Some(read.quorum()));
            let put = notebook.begin(who, key, terms.write(), Action::Put { cause: Some(get) }, now_us());
            rounds.push(Round { put, began_us: now_us(), shown });
            Some(value(put, len))
        };
        let timeout = Duration::from_millis(self.plan.workload.timeout_ms.into());
        let mut update = self.client.update(key, change).r(terms.r).w(terms.w).timeout(timeout);
        update = if terms.strict { update.strict() } else { update };
        let result = update.await;
        match (result, rounds.last()) {
            (Ok(Some(written)), Some(last)) => {
                let put = last.put;
                self.written(key, put, &Ok(written));
            }
            (Ok(_), _) => unreachable!("the function always gives a value"),
            (Err(error), Some(last)) => self.notebook.fails(last.put, &error),
            (Err(error), None) => self.notebook.fails(first, &error),
        }
    }

    fn written(&mut self, key: &str, no: OpNo, written: &Result<Written, Error>) {
        written_down(&self.notebook, no, written);
        if let Ok(written) = written {
            self.seen.insert(key.to_owned(), (written.context().clone(), no));
        }
    }

    fn begin(&self, key: &str, asked: Asked, action: Action) -> OpNo {
        let no = self.notebook.begin(self.who, key, asked, action, now_us());
        self.notebook.has_time(no, self.plan.workload.timeout_ms);
        no
    }

    fn value_len(&self) -> u32 {
        let Workload { value_len_min: min, value_len_max: max, .. } = self.plan.workload;
        min + self.random.below(u64::from(max - min) + 1) as u32
    }
}

fn written_down(notebook: &Notebook, no: OpNo, written: &Result<Written, Error>) {
    match written {
        Ok(written) => {
            notebook.minted(no, written.evidence().and_then(|evidence| evidence.dots.first().cloned()));
            notebook.end(no, Outcome::Written, Some(written.quorum()));
            notebook.told(no, written.context());
        }
        Err(error) => notebook.fails(no, error),
    }
}

fn read_down(notebook: &Notebook, no: OpNo, read: &Result<Read, Error>) {
    match read {
        Ok(read) => {
            notebook.end(no, Outcome::Found(numbers(read.siblings())), Some(read.quorum()));
            notebook.told(no, read.context());
        }
        Err(error) => notebook.fails(no, error),
    }
}

fn failed(error: &Error) -> Outcome {
    if error.may_have_applied() { Outcome::Unknown(error.to_string()) } else { Outcome::NotApplied(error.to_string()) }
}

/// Keys by their popularity.
struct Keys {
    /// The sum of the weights of each key and those before it.
    sums: Vec<f64>,
}

impl Keys {
    fn new(workload: &Workload) -> Self {
        let exponent = f64::from(workload.skew_x1000) / 1000.0;
        let mut sum = 0.0;
        let weight = |rank: u32| f64::from(rank).powf(-exponent);
        let sums = (1..=workload.keys).map(|rank| {
            sum += weight(rank);
            sum
        });
        Self { sums: sums.collect() }
    }

    fn draw(&self, random: &Random) -> u32 {
        let whole = self.sums.last().copied().expect("a workload has keys");
        // 53 bits, as many as a double holds.
        let drawn = (random.u64() >> 11) as f64 / (1_u64 << 53) as f64 * whole;
        let index = self.sums.partition_point(|sum| *sum <= drawn).min(self.sums.len() - 1);
        u32::try_from(index).expect("there are at most so many")
    }
}

/// The name of a key.
pub fn key_text(index: u32) -> String {
    format!("key:{index}")
}

/// The value that an operation writes: its number, and bytes that follow from it.
pub fn value(no: OpNo, len: u32) -> Bytes {
    let mut value = no.to_be_bytes().to_vec();
    value.resize((len.max(VALUE_LEN_MIN)) as usize, no as u8);
    value.into()
}

/// The operation that wrote a value; a number that no operation has for what is none.
pub fn number(value: &[u8]) -> OpNo {
    match value.split_first_chunk::<8>() {
        Some((no, filling)) => {
            let no = u64::from_be_bytes(*no);
            if filling.iter().all(|byte| *byte == no as u8) { no } else { OpNo::MAX }
        }
        None => OpNo::MAX,
    }
}

fn numbers(values: &[Bytes]) -> BTreeSet<OpNo> {
    values.iter().map(|value| number(value)).collect()
}

pub(crate) fn elapsed() -> Duration {
    turmoil::sim_elapsed().expect("only hosts ask")
}

pub(crate) fn now_us() -> u64 {
    u64::try_from(elapsed().as_micros()).expect("no simulation lasts so long")
}

const VALUE_LEN_MIN: u32 = 8;

/// The numbers of the clients that repeat what others have sent.
const OTHERS: u16 = 1000;

/// So many unknown writes of a client are repeated at most; of the others it never hears.
const UNSETTLED_MAX: usize = 8;

/// As long as there are unknown writes to repeat, one in so many operations does it.
const REPEATED_ONE_IN: u64 = 4;

/// So many operations follow each other without a rest, so that clients compete and requests queue.
const BURST: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_tell_who_wrote_them_and_damaged_ones_nobody() {
        for (no, len) in [(1, 8), (77, 9), (1 << 40, 60_000)] {
            let written = value(no, len);
            assert_eq!(written.len(), len as usize);
            assert_eq!(number(&written), no);
        }
        let mut damaged = value(77, 20).to_vec();
        damaged[15] ^= 1;
        assert_eq!(number(&damaged), OpNo::MAX);
        assert_eq!(number(b"short"), OpNo::MAX);
    }

    #[test]
    fn a_core_can_do_what_its_primaries_suffice_for() {
        let mut plan = Plan::draw(1, &BTreeSet::new());
        (plan.zones, plan.n, plan.partitions) = ((0..5).collect(), 3, 64);
        (plan.mechanisms, plan.aftermath) = (crate::plan::Mechanisms::ALL, None);
        assert_eq!(plan.problems(), [] as [String; 0]);
        let whole = Core::new(&plan, &BTreeSet::new());
        let core = Core::new(&plan, &[0, 3].into());
        let mut seen = BTreeSet::new();
        for key in (0..100).map(key_text) {
            let sound = core.sound_primaries(&key);
            assert_eq!(whole.sound_primaries(&key), 3);
            assert_eq!(core.can_read(&key, Quorum::Majority), sound >= 2);
            assert_eq!(core.can_write(&key, Quorum::One, true), sound >= 1);
            assert_eq!(core.can_write(&key, Quorum::All, true), sound == 3);
            assert!(core.can_write(&key, Quorum::All, false), "three nodes of the core, whoever they are");
            seen.insert(sound);
        }
        assert_eq!(seen, [1, 2, 3].into());
    }

    #[test]
    fn popular_keys_are_drawn_more_often_and_every_key_is() {
        let mut workload = Plan::draw(1, &BTreeSet::new()).workload;
        workload.keys = 10;
        for (skew, first_least, first_most) in [(0, 80, 120), (1200, 350, 450)] {
            workload.skew_x1000 = skew;
            let (keys, random) = (Keys::new(&workload), Random::from_seed(1));
            let mut counts = [0; 10];
            for _ in 0..1000 {
                counts[keys.draw(&random) as usize] += 1;
            }
            assert!((first_least..=first_most).contains(&counts[0]), "{skew}: {counts:?}");
            assert!(counts.iter().all(|count| *count > 0), "{skew}: {counts:?}");
        }
    }
}
