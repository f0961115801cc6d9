//! One life of a cluster, from its first start to the judgement.
//!
//! ```text
//!   nodes start, an operator makes the layout │ clients work, things go wrong │ all is healed, it settles │ audit │ judgement
//!                                         start                     + active_ms                + settle_ms
//!                                                                             │
//!                                                                                  in some: every key is read, and stale replicas mended
//!                              in some lives: a minority stays broken, the rest settles and is audited without it
//! ```
//!
//! Safety is judged of the whole life. That a healthy core serves while a minority of nodes is still broken is judged of an audit of
//! its own, which asks only for what the core's replicas suffice for. That the healthy cluster serves again, and that its replicas are equal then, is judged of
//! the [audit](crate::workload::audit), which reads and writes every key: nothing else brings replicas together that a fault has
//! parted. Before it the harness merges what lies on all disks by itself, without the nodes, and judges that too.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use quorate_core::keyspace::key_of_data;
use quorate_core::record::Record;
use quorate_core::ring::Ring;
use quorate_node::fault_points::TABLES;
use quorate_node::store::Tree;
use quorate_wire::SIBLINGS_MAX;
use quorate_wire::fault_points::{self, Effect};
use quorate_wire::key::KeyParts;
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64;

use crate::bad_clients;
use crate::checker::keys::Retries;
use crate::checker::served::{self, Judged};
use crate::checker::{self, Expectations, Property, Violation, Window};
use crate::cluster::{Cluster, Process, random_of};
use crate::disk::{Crash, DiskCounts, SimDisk};
use crate::history::{self, History, OpNo, Outcome, Replica};
use crate::interpose;
use crate::layouts;
use crate::nemesis::Nemesis;
use crate::operator::{Operators, Wish, operate};
use crate::plan::{Aftermath, FaultClass, Plan, Staging};
use crate::socket::PacketCounts;
use crate::story::{self, Story};
use crate::trace::{Counts, Trace, TraceHash};
use crate::vigil::Vigil;
use crate::workload::{self, Notebook};

/// What became of a life.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its plan.
    pub plan: Plan,
    /// Promises that were broken.
    pub violations: Vec<Violation>,
    /// Why it did not come to its end: a panic, or something hung.
    pub failure: Option<String>,
    /// The same for every run of the plan.
    pub hash: TraceHash,
    /// The hash at the end of each second, to find where two runs parted.
    pub seconds: Vec<u64>,
    /// How much happened.
    pub counts: Counts,
    /// How long it lasted in simulated time.
    pub simulated: Duration,
    /// When the clients and the faults began: what the times of the plan's faults count from.
    pub active_from: Duration,
    /// When everything was mended; nothing if it did not come to that.
    pub healed: Option<Duration>,
    /// How many faults there were, by class.
    pub injected: BTreeMap<FaultClass, u32>,
    /// What happened to packets.
    pub packets: PacketCounts,
    /// What happened to disks.
    pub disks: DiskCounts,
    /// How often each point fired and each mark was reached.
    pub points: fault_points::Report,
    /// All that the clients did.
    pub history: History,
    /// How much was held against "served if any coordinator in reach can".
    pub served: Judged,
    /// What became of changes of the layout.
    pub changes: Changes,
}

/// What became of the changes of the layout that operators wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that were decided.
    pub decided: u64,
    /// Those in whose place another one was decided.
    pub dropped: u64,
    /// Those that were not possible, or for which no majority was left.
    pub refused: u64,
    /// Operations that were asked for while a change was under way.
    pub operations: u64,
    /// Of these, those that failed.
    pub failed: u64,
    /// Of those, the ones that failed though nothing else was wrong at the time.
    pub failed_by_it: u64,
}

impl Changes {
    fn of(wishes: &[Wish], history: &History) -> Self {
        let mut changes = Self::default();
        for wish in wishes {
            *match wish {
                Wish::Decided(_) => &mut changes.decided,
                Wish::Dropped(_) => &mut changes.dropped,
                Wish::Waits | Wish::Open(_) | Wish::Refused(_) | Wish::GivenUp(_) => &mut changes.refused,
            } += 1;
        }
        for operation in history.operations.values() {
            let next = history.reach.partition_point(|reach| reach.from_us <= operation.invoked_us);
            let Some(reach) = next.checked_sub(1).map(|at| &history.reach[at]).filter(|reach| reach.layout.is_none())
            else {
                continue;
            };
            let failed = matches!(operation.outcome, Outcome::NotApplied(_) | Outcome::Unknown(_));
            let whole = !reach.slow && [reach.away.len(), reach.unreached.len(), reach.parted.len()] == [0; 3];
            changes.operations += 1;
            changes.failed += u64::from(failed);
            changes.failed_by_it += u64::from(failed && whole);
        }
        changes
    }

    /// Adds what became of those of another life.
    pub fn add(&mut self, more: Self) {
        self.decided += more.decided;
        self.dropped += more.dropped;
        self.refused += more.refused;
        self.operations += more.operations;
        self.failed += more.failed;
        self.failed_by_it += more.failed_by_it;
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { decided, dropped, refused, operations, failed, failed_by_it } = self;
        write!(
            f,
            "{decided} decided, {dropped} dropped for another one, {refused} refused; of {operations} operations meanwhile {failed} failed, \
             {failed_by_it} of them with nothing else wrong"
        )
    }
}

/// How many operations ended in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Writes that were acknowledged.
    pub written: u64,
    /// Reads that were answered.
    pub found: u64,
    /// Operations that were refused.
    pub not_applied: u64,
    /// Writes of which nobody knows.
    pub unknown: u64,
}

impl Report {
    /// Whether every promise was kept and the life came to its end.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && self.failure.is_none()
    }

    /// How the operations ended.
    pub fn outcomes(&self) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for operation in self.history.operations.values() {
            *match operation.outcome {
                Outcome::Written => &mut outcomes.written,
                Outcome::Found(_) => &mut outcomes.found,
                Outcome::NotApplied(_) => &mut outcomes.not_applied,
                Outcome::Unknown(_) => &mut outcomes.unknown,
            } += 1;
        }
        outcomes
    }
}

/// For people; the same bytes for every run of one plan.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.plan;
        writeln!(
            f,
            "seed {}: {} nodes, N={}, {} partitions, {:?}, {} clients, {} keys, latency {}-{} ms",
            plan.seed,
            plan.nodes(),
            plan.n,
            plan.partitions,
            plan.durability,
            plan.workload.clients,
            plan.workload.keys,
            plan.network.latency_min_ms,
            plan.network.latency_max_ms
        )?;
        for fault in &plan.faults {
            let (from, to) = (fault.at_ms, fault.at_ms + fault.for_ms);
            writeln!(f, "  {:>6}-{:<6} ms {:?}", from, to, fault.kind)?;
        }
        for change in &plan.changes {
            writeln!(f, "  {:>6}-       ms at n{}: {:?}", change.at_ms, change.at + 1, change.stage)?;
        }
        if let Some(Aftermath { broken, how, sudden, rots }) = &plan.aftermath {
            let when = if *sudden { "are" } else { "stay" };
            let rots = if *rots { ", and some records of one of these rot" } else { "" };
            writeln!(
                f,
                "  {:>6}-       ms {broken:?} {when} {how:?} while the others are audited{rots}",
                plan.active_ms
            )?;
        }
        let Outcomes { written, found, not_applied, unknown } = self.outcomes();
        writeln!(f, "operations: {written} written, {found} read, {not_applied} not applied, {unknown} unknown")?;
        let PacketCounts { lost, duplicated, corrupted, truncated, delayed, cut } = self.packets;
        writeln!(
            f,
            "packets: {} sent, {cut} cut off, {lost} lost, {duplicated} duplicated, {corrupted} corrupted, \
             {truncated} truncated, {delayed} delayed",
            self.counts.packets
        )?;
        let DiskCounts { crashes, writes_lost, torn, corrupted, syncs_failed, inserts_failed, full, lied } = self.disks;
        writeln!(
            f,
            "disks: {crashes} crashes, {writes_lost} writes lost, {lied} that were said to be synced, {torn} torn, {corrupted} corrupted, \
             {syncs_failed} syncs failed, {inserts_failed} inserts failed, {full} writes refused for want of room"
        )?;
        if !plan.changes.is_empty() {
            writeln!(f, "changes of the layout: {}", self.changes)?;
        }
        let fired = self.points.fired.values().sum::<u64>();
        let reached = self.points.reached.values().filter(|count| **count > 0).count();
        writeln!(
            f,
            "points: {} on, fired {fired} times; marks: {reached} of {} reached",
            plan.points.on.len(),
            self.points.reached.len()
        )?;
        for violation in self.violations.iter().take(VIOLATIONS_SHOWN) {
            writeln!(f, "VIOLATION {violation}")?;
        }
        if let Some(more) = self.violations.len().checked_sub(VIOLATIONS_SHOWN).filter(|more| *more > 0) {
            writeln!(f, "and {more} more")?;
        }
        if let Some(failure) = &self.failure {
            writeln!(f, "FAILURE {failure}")?;
        }
        let Judged { operations, broken, .. } = self.served;
        writeln!(
            f,
            "reach: {operations} operations had a coordinator that could serve them, {broken} of them while something was broken"
        )?;
        let (keys, operations) = (self.history.by_key().len(), self.history.operations.len());
        let keys = if keys == 1 { "1 key".to_owned() } else { format!("{keys} keys") };
        match (&self.failure, self.violations.len()) {
            (None, 0) => writeln!(f, "verdict: all promises kept ({operations} operations on {keys} were judged)")?,
            (None, 1) => writeln!(f, "verdict: not all is well: a promise was broken")?,
            (None, broken) => writeln!(f, "verdict: not all is well: promises were broken {broken} times")?,
            (Some(_), 0) => writeln!(f, "verdict: not all is well: the life did not come to its end")?,
            (Some(_), broken) => writeln!(
                f,
                "verdict: not all is well: the life did not come to its end, and promises were broken {broken} times"
            )?,
        }
        write!(f, "{} s simulated, trace {}", self.simulated.as_secs(), self.hash)
    }
}

/// Runs a plan on a thread of its own and judges what happened.
///
/// # Panics
/// When the plan has [problems](Plan::problems), or the system gives no thread.
pub fn run(plan: &Plan, trace: Trace) -> Report {
    run_told(plan, trace, None)
}

/// As [`run`]; what happens is also told to a story, if there is one. It makes no difference to the life.
///
/// # Panics
/// As [`run`].
pub fn run_told(plan: &Plan, trace: Trace, story: Option<Story>) -> Report {
    assert_eq!(plan.problems(), [] as [String; 0], "the plan of seed {}", plan.seed);
    let plan = plan.clone();
    let life = thread::Builder::new().name(format!("life {}", plan.seed)).stack_size(STACK_SIZE);
    let alone = move || {
        let _listening = story.map(|story| story.listen());
        alone(plan, trace)
    };
    life.spawn(alone).expect("the system gives a thread").join().expect("panics are caught inside")
}

/// The whole life on the current thread.
fn alone(plan: Plan, trace: Trace) -> Report {
    let notebook = Notebook::new(plan.n, trace.clone());
    let mut report = Report {
        plan: plan.clone(),
        violations: Vec::new(),
        failure: None,
        hash: trace.hash(),
        seconds: Vec::new(),
        counts: trace.counts(),
        simulated: Duration::ZERO,
        active_from: Duration::ZERO,
        healed: None,
        injected: BTreeMap::new(),
        packets: PacketCounts::default(),
        disks: DiskCounts::default(),
        points: fault_points::Report::default(),
        history: History::default(),
        served: Judged::default(),
        changes: Changes::default(),
    };
    let ended = {
        let _guard = interpose::enter(plan.seed);
        let on: Vec<&str> = plan.points.on.iter().map(String::as_str).collect();
        let _points = fault_points::enter(&TABLES, plan.seed, f64::from(plan.points.per_mille) / 1000.0, &on);
        let ended = panic::catch_unwind(AssertUnwindSafe(|| live(&mut report, &notebook, &trace)));
        report.points = fault_points::report();
        ended
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(why)) => report.failure = Some(why),
        Err(panic) => report.failure = Some(format!("panic: {}", panic_text(panic.as_ref()))),
    }
    if report.history.operations.is_empty() {
        report.history = notebook.history();
    }
    (report.hash, report.seconds, report.counts) = (trace.hash(), trace.seconds(), trace.counts());
    report
}

/// What the clients' machine tells the harness, and the other way round.
#[derive(Debug, Clone, PartialEq)]
enum Phase {
    /// There is no layout yet.
    Joining,
    /// Clients work, until this moment of simulated time.
    Working(Duration),
    /// Every client has ended.
    Settling,
    /// The harness asks for the audit of the core; nothing is expected of the unsound nodes, and these keys come first.
    AuditingCore { unsound: BTreeSet<u8>, keys: BTreeSet<String> },
    /// When it began and was over, in microseconds.
    CoreAudited(Window),
    /// The harness asks that every key is read with all of its replicas.
    Reading,
    /// Since when every key was read once more, in microseconds.
    HasRead(u64),
    /// The harness asks for the audit.
    Auditing,
    /// When each part of the audit began, and when it was over, in microseconds.
    Audited { first_us: u64, second_us: u64, end_us: u64 },
    /// It cannot go on.
    Stuck(String),
}

fn live(report: &mut Report, notebook: &Notebook, trace: &Trace) -> Result<(), String> {
    let plan = report.plan.clone();
    let mut cluster = Cluster::new(&plan, trace.clone());
    let (phase, _) = watch::channel(Phase::Joining);
    let phase = Arc::new(phase);
    let operators = Operators::new(&plan, trace.clone());
    let program =
        program(cluster.clients().clone(), &cluster, &plan, notebook.clone(), operators.clone(), phase.clone());
    cluster.run_clients(program);

    let ended = through(&mut cluster, &plan, notebook, &operators, &phase, report, trace);
    report.simulated = cluster.elapsed();
    for machine in cluster.machines() {
        report.packets = sum_packets(report.packets, machine.cable.counts());
        report.disks = sum_disks(report.disks, machine.disk.counts());
    }
    ended
}

fn through(
    cluster: &mut Cluster<'_>,
    plan: &Plan,
    notebook: &Notebook,
    operators: &Operators,
    phase: &watch::Sender<Phase>,
    report: &mut Report,
    trace: &Trace,
) -> Result<(), String> {
    let ms = |ms: u32| Duration::from_millis(ms.into());
    let changes = !plan.changes.is_empty();
    // A new owner has not seen what was superseded before it came.
    let mut vigil = Vigil::new(cluster, notebook, plan.nobody_forgets() && !changes, changes);
    for (node, spare) in (plan.members()..).zip(&plan.spares) {
        if spare.from_ms.is_some() {
            cluster.crash(node, Crash::Clean);
        }
    }
    let start = loop {
        cluster.step().map_err(|error| error.to_string())?;
        match &*phase.borrow() {
            Phase::Working(until) => break *until - ms(plan.active_ms),
            Phase::Stuck(why) => return Err(why.clone()),
            _ => {}
        }
    };
    report.active_from = start;
    let mut nemesis = Nemesis::new(plan, start, trace.clone());
    let active_until = start + ms(plan.active_ms);
    while cluster.elapsed() < active_until {
        step(cluster, &mut nemesis, &mut vigil)?;
        retire(cluster, plan, operators, &mut nemesis, &vigil);
    }
    report.injected = nemesis.injected().clone();
    // Availability and convergence are promised of code that does what it says.
    fault_points::calm();
    let mut available = Vec::new();
    if let Some(aftermath) = &plan.aftermath {
        nemesis.heal_but(Some(aftermath).filter(|aftermath| !aftermath.sudden), cluster);
        settle(cluster, &mut nemesis, &mut vigil, CORE_SETTLES)?;
        ended(phase, notebook, report, CORE_SETTLES)?;
        if aftermath.sudden {
            nemesis.heal_but(Some(aftermath), cluster);
        }
        if aftermath.rots {
            nemesis.rot(aftermath, cluster);
        }
        let unsound = aftermath.broken.union(nemesis.ever_destroyed()).copied().collect();
        // A record that is damaged somewhere is where a replica refuses though its node is there.
        let damaged = cluster.machines().iter().flat_map(|machine| machine.disk.damaged(Tree::Data));
        let keys = damaged.map(|slot| key_of(&slot)).collect();
        phase.send_replace(Phase::AuditingCore { unsound, keys });
        available.push(audited(cluster, &mut nemesis, &mut vigil, phase, |phase| match phase {
            Phase::CoreAudited(window) => Some(*window),
            _ => None,
        })?);
    }
    nemesis.heal(cluster);
    report.healed = Some(cluster.elapsed());
    settle(cluster, &mut nemesis, &mut vigil, ms(plan.settle_ms))?;
    if plan.aftermath.is_none() {
        ended(phase, notebook, report, ms(plan.settle_ms))?;
    }

    let mut violations = Vec::new();
    if changes {
        let why = changes_end(cluster, plan, operators, &mut nemesis, &mut vigil)?;
        report.changes = Changes::of(&operators.wishes(), &notebook.history());
        if let Some(why) = why {
            // Of what is not yet over no more can be asked than what holds at all times.
            report.history = with_disks(notebook.history(), cluster)?;
            let expectations = Expectations { converged: false, drained: false, ..expectations(plan, BTreeMap::new()) };
            violations.push(change_hangs(why));
            violations.extend(checker::judge(&report.history, &expectations));
            report.violations = violations;
            return Ok(());
        }
    }
    if reads_must_mend(plan) {
        phase.send_replace(Phase::Reading);
        let from_us = audited(cluster, &mut nemesis, &mut vigil, phase, |phase| match phase {
            Phase::HasRead(from_us) => Some(*from_us),
            _ => None,
        })?;
        settle(cluster, &mut nemesis, &mut vigil, READS_MEND)?;
        violations = checker::mended::check(&with_disks(notebook.history(), cluster)?, from_us);
    }
    let before = with_disks(notebook.history(), cluster)?;
    let settled_us =
        plan.mechanisms.anti_entropy.then(|| u64::try_from(cluster.elapsed().as_micros()).unwrap_or(u64::MAX));
    phase.send_replace(Phase::Auditing);
    let (first_us, second_us, end_us) = audited(cluster, &mut nemesis, &mut vigil, phase, |phase| match phase {
        Phase::Audited { first_us, second_us, end_us } => Some((*first_us, *second_us, *end_us)),
        _ => None,
    })?;
    let stays = |node: &usize| !nemesis.retired().contains(&(*node as u8));
    let stay: Vec<usize> = (0..cluster.machines().len()).filter(stays).collect();
    for cost in kept(cluster, stay, &mut nemesis, &mut vigil)? {
        notebook.saw_cost(cost);
    }
    for machine in cluster.machines() {
        let content = machine.disk.content(Tree::Data);
        let hash = xxh3_64(format!("{content:?}").as_bytes());
        trace.event(cluster.elapsed(), machine.node().as_str(), format_args!("holds {hash:016x}"));
    }
    report.history = with_disks(notebook.history(), cluster)?;

    // A read of a majority may need the replica whose record is damaged; a write goes around it and overwrites it.
    let from_us = if nemesis.ever_destroyed().is_empty() { first_us } else { second_us };
    available.push(Window { from_us, to_us: end_us + 1 });
    let rings = rings(plan, &vigil);
    let owners = |ring: &Ring| -> BTreeMap<String, BTreeSet<String>> {
        let keys = report.history.by_key().into_keys();
        keys.map(|key| (key.to_owned(), layouts::owners(ring, key))).collect()
    };
    let owners: BTreeMap<u64, _> = rings.iter().map(|(version, ring)| (*version, owners(ring))).collect();
    let newest = owners.last_key_value().map(|(_, newest)| newest.clone()).unwrap_or_default();
    // What heals by itself has done so before anybody reads; where it was left out, the audit's own reads and writes make up. They do
    // not for names (rule V7): a write sends those that its coordinator has, and brings none back.
    let mut expectations = expectations(plan, newest);
    expectations.retries.settled_us = settled_us;
    let mut judged = checker::judge(&before, &expectations);
    if changes && !expectations.converged {
        // Former owners drop what they had, whether replicas compare themselves or not.
        judged.extend(checker::placement::check(&before, &expectations.owners));
    }
    expectations.converged = true;
    expectations.available = available;
    for violation in judged.into_iter().chain(checker::judge(&report.history, &expectations)) {
        if !violations.contains(&violation) {
            violations.push(violation);
        }
    }
    let (unserved, judged) = served::check(&report.history, &owners, &served_terms(plan));
    violations.extend(unserved);
    report.served = judged;
    report.violations = violations;
    Ok(())
}

/// What every life of this plan promises before its audit.
fn expectations(plan: &Plan, owners: BTreeMap<String, BTreeSet<String>>) -> Expectations {
    // Each coordinator admits so many; merging can bring together what several have admitted. Any node may stand in as one.
    let siblings_max = SIBLINGS_MAX * usize::from(plan.nodes());
    let forgets_us = plan.has_point(Effect::Forgets).then_some(RETRY_LATEST_US);
    Expectations {
        n: plan.n,
        floors: plan.floors(),
        siblings_max,
        converged: plan.mechanisms.anti_entropy,
        names_spread: plan.mechanisms.anti_entropy || plan.mechanisms.read_repair,
        drained: true,
        owners,
        forged: plan.workload.foreign_percent > 0,
        rotated: plan.workload.rotations > 0,
        available: Vec::new(),
        retries: Retries { forgets_us, settled_us: None },
    }
}

/// The ring of each layout that there was: of version 0 if there was only the plan's.
fn rings(plan: &Plan, vigil: &Vigil) -> BTreeMap<u64, Ring> {
    match vigil.layouts() {
        None => [(0, plan.ring())].into(),
        Some(watch) => watch.seen().map(|(layout, ring)| (layout.version.0, ring.clone())).collect(),
    }
}

fn change_hangs(what: String) -> Violation {
    Violation { property: Property::ChangeEnds, key: String::new(), operations: Vec::new(), what }
}

/// Stops nodes for good that no layout names any more, if the operator who had them leave wants that, and nothing lies on them.
fn retire(cluster: &Cluster<'_>, plan: &Plan, operators: &Operators, nemesis: &mut Nemesis, vigil: &Vigil) {
    let Some(watch) = vigil.layouts().filter(|_| plan.changes.iter().any(|change| change.stops)) else { return };
    if watch.settled(cluster).is_none() {
        return;
    }
    let Some((newest, _)) = watch.newest() else { return };
    let wishes = operators.wishes();
    let done =
        plan.changes.iter().zip(&wishes).filter(|(change, wish)| change.stops && matches!(wish, Wish::Decided(_)));
    let gone: BTreeSet<u8> = done.flat_map(|(change, _)| change.stage.iter().filter_map(Staging::goes)).collect();
    // Who is wanted again stays.
    let waits = plan.changes.iter().zip(&wishes).filter(|(_, wish)| !matches!(wish, Wish::Decided(_)));
    let wanted: BTreeSet<u8> = waits.flat_map(|(change, _)| change.stage.iter().flat_map(Staging::nodes)).collect();
    for node in gone.difference(&wanted) {
        let machine = &cluster.machines()[usize::from(*node)];
        let runs = machine.process() == Process::Running && !nemesis.retired().contains(node);
        if runs && newest.member(machine.node()).is_none() && watch.left_over(machine).is_none() {
            nemesis.retire(*node, cluster);
        }
    }
}

/// Waits until every operator's wish has come to its end, the newest layout is the only one, and former owners have dropped what they had.
/// What is still missing after a long time, if anything is.
fn changes_end(
    cluster: &mut Cluster<'_>,
    plan: &Plan,
    operators: &Operators,
    nemesis: &mut Nemesis,
    vigil: &mut Vigil,
) -> Result<Option<String>, String> {
    let limit = cluster.elapsed() + CHANGES_END;
    let mut quiet = cluster.elapsed();
    loop {
        for _ in 0..100 {
            step(cluster, nemesis, vigil)?;
        }
        retire(cluster, plan, operators, nemesis, vigil);
        let watch = vigil.layouts().expect("the layout changes");
        let left_over = || cluster.machines().iter().find_map(|machine| watch.left_over(machine));
        let open = || match operators.are_done() {
            true => None,
            false => Some(format!("not every wish has come to its end: {:?}", operators.wishes())),
        };
        let Some(why) = open().or_else(|| watch.unsettled(cluster)).or_else(left_over) else {
            // Those that have just been told have a moment to act on it.
            if cluster.elapsed() >= quiet + CHANGES_REST {
                break;
            }
            continue;
        };
        quiet = cluster.elapsed();
        if cluster.elapsed() > limit {
            return Ok(Some(format!("{} s after all is healed: {why}", (CHANGES_END + HEALED).as_secs())));
        }
    }
    // Who speaks to a dead node gets no answer.
    let asks_the_living = |at: u8| !nemesis.dead().contains(&at);
    let undecided = plan.changes.iter().zip(operators.wishes()).find_map(|(change, wish)| match wish {
        Wish::GivenUp(why) if asks_the_living(change.at) => {
            Some(format!("a change that was wished for is not decided: {why}"))
        }
        Wish::GivenUp(_) | Wish::Waits | Wish::Open(_) | Wish::Refused(_) | Wish::Decided(_) | Wish::Dropped(_) => None,
    });
    // A disk that was emptied has no vote any more, and with it may go the majority. One node that is dead leaves it.
    let majority = nemesis.dead().len() < 2 && nemesis.ever_destroyed().is_subset(nemesis.dead());
    Ok(undecided.filter(|_| majority))
}

/// What may be held against a life whose requests were not served.
fn served_terms(plan: &Plan) -> served::Terms {
    served::Terms {
        means_it: !plan.has_point(Effect::Refuses) && !plan.has_point(Effect::Forgets) && plan.has_plenty_of_memory(),
        fallbacks: plan.mechanisms.fallbacks && plan.mechanisms.hints,
        time_us: u64::from(plan.network.latency_max_ms) * 1000 * served::LATENCIES + served::TIME_LEAST_US,
    }
}

/// Whether only reads bring together what hints have not: replicas do not compare themselves.
fn reads_must_mend(plan: &Plan) -> bool {
    plan.mechanisms.read_repair && !plan.mechanisms.anti_entropy
}

/// The smallest piece of time: things go wrong, everybody acts, and somebody looks on.
fn step(cluster: &mut Cluster<'_>, nemesis: &mut Nemesis, vigil: &mut Vigil) -> Result<(), String> {
    nemesis.tick(cluster);
    cluster.step().map_err(|error| error.to_string())?;
    vigil.look_at_reach(nemesis.reach(cluster));
    vigil.look(cluster, nemesis.ever_destroyed())
}

/// Lets so much time pass.
fn settle(cluster: &mut Cluster<'_>, nemesis: &mut Nemesis, vigil: &mut Vigil, time: Duration) -> Result<(), String> {
    let settled = cluster.elapsed() + time;
    while cluster.elapsed() < settled {
        step(cluster, nemesis, vigil)?;
    }
    Ok(())
}

/// What nodes have not given back when every client has gone. Peers go on asking each other, so that every node must have had a moment in
/// which nothing was under way.
fn kept(
    cluster: &mut Cluster<'_>,
    mut waits: Vec<usize>,
    nemesis: &mut Nemesis,
    vigil: &mut Vigil,
) -> Result<Vec<history::Cost>, String> {
    let limit = cluster.elapsed() + GIVEN_BACK_MAX;
    while !waits.is_empty() && cluster.elapsed() < limit {
        waits.retain(|node| cluster.machines()[*node].requests() != Some((0, 0)));
        step(cluster, nemesis, vigil)?;
    }
    let cost = |node: usize| {
        let machine = &cluster.machines()[node];
        let what = match machine.requests() {
            Some((bytes, under_way)) => format!(
                "{bytes} bytes of {under_way} requests are not given back {} s after every client has gone",
                GIVEN_BACK_MAX.as_secs()
            ),
            None => "it does not serve".to_owned(),
        };
        history::Cost { node: machine.node().to_string(), what }
    };
    Ok(waits.into_iter().map(cost).collect())
}

/// Every client has ended, so long after the faults.
fn ended(
    phase: &watch::Sender<Phase>,
    notebook: &Notebook,
    report: &mut Report,
    after: Duration,
) -> Result<(), String> {
    if *phase.borrow() == Phase::Settling {
        return Ok(());
    }
    report.history = notebook.history();
    let hung = report.history.operations.values().filter(|operation| operation.returned_us.is_none());
    let hung: Vec<_> = hung.map(|operation| operation.no).collect();
    Err(format!("operations {hung:?} hang {} s after the faults were over", after.as_secs()))
}

/// Goes on until an audit is over.
fn audited<T>(
    cluster: &mut Cluster<'_>,
    nemesis: &mut Nemesis,
    vigil: &mut Vigil,
    phase: &watch::Sender<Phase>,
    over: impl Fn(&Phase) -> Option<T>,
) -> Result<T, String> {
    let limit = cluster.elapsed() + AUDIT_MAX;
    loop {
        step(cluster, nemesis, vigil)?;
        let phase = phase.borrow();
        match (&*phase, over(&phase)) {
            (_, Some(result)) => return Ok(result),
            (Phase::Stuck(why), None) => return Err(why.clone()),
            _ if cluster.elapsed() > limit => return Err(format!("the audit takes longer than {AUDIT_MAX:?}")),
            _ => {}
        }
    }
}

/// What happens on the clients' machine.
fn program(
    clients: crate::cluster::ClientMachine,
    cluster: &Cluster<'_>,
    plan: &Plan,
    notebook: Notebook,
    operators: Operators,
    phase: Arc<watch::Sender<Phase>>,
) -> impl Future<Output = turmoil::Result> + 'static {
    let (machines, plan) = (cluster.machines().to_vec(), Arc::new(plan.clone()));
    async move {
        let members = &machines[..usize::from(plan.members())];
        if let Err(why) = workload::bootstrap(&clients, members, &plan, BOOTSTRAP_MAX).await {
            phase.send_replace(Phase::Stuck(format!("there is no layout after {BOOTSTRAP_MAX:?}: {why}")));
            return Ok(());
        }
        let until = workload::elapsed() + Duration::from_millis(plan.active_ms.into());
        phase.send_replace(Phase::Working(until));
        let workers: Vec<_> = (0..u16::from(plan.workload.clients))
            .map(|number| {
                let random = random_of(plan.seed, "worker", number.into(), 0);
                let work = workload::work(clients.clone(), plan.clone(), number, random, notebook.clone(), until);
                tokio::spawn(story::by_client(number.into(), work))
            })
            .collect();
        let start = until.saturating_sub(Duration::from_millis(plan.active_ms.into()));
        for (number, fault) in (0..).zip(plan.faults.iter().filter(|fault| fault.kind.class().is_of_a_client())) {
            let (clients, plan, fault, notebook) = (clients.clone(), plan.clone(), fault.clone(), notebook.clone());
            let node = fault.kind.nodes().first().map(|node| machines[usize::from(*node)].clone());
            let node = node.expect("a client misbehaves towards a node");
            // Nobody waits for it: it ends with the faults.
            tokio::spawn(async move {
                bad_clients::misbehave(clients, &node, &plan, &fault, &notebook, number, start).await;
            });
        }
        for number in 0..plan.changes.len() {
            let (places, plan, operators) = ((clients.clone(), machines.clone()), plan.clone(), operators.clone());
            // The harness waits for it.
            tokio::spawn(operate(places, plan, operators, number, (start, until + WISHED_FOR)));
        }
        if plan.workload.rotations > 0 {
            let random = random_of(plan.seed, "rotations", 0, 0);
            let rotate = workload::rotate(clients.clone(), machines.clone(), plan.clone(), random, until);
            tokio::spawn(rotate).await?;
        }
        for worker in workers {
            worker.await?;
        }
        phase.send_replace(Phase::Settling);
        // The sender is held here, so that it cannot be gone.
        if plan.aftermath.is_some() {
            let asked = |phase: &Phase| matches!(phase, Phase::AuditingCore { .. });
            let (unsound, keys) = match &*phase.subscribe().wait_for(asked).await? {
                Phase::AuditingCore { unsound, keys } => (unsound.clone(), keys.clone()),
                _ => unreachable!("that is what was waited for"),
            };
            let from_us = workload::now_us();
            let audit = workload::audit_core(&clients, &plan, &unsound, keys, &notebook);
            let audited = match story::by_client(workload::AUDITOR, audit).await {
                Ok(()) => Phase::CoreAudited(Window { from_us, to_us: workload::now_us() + 1 }),
                Err(why) => Phase::Stuck(format!("the audit of a healthy core: {why}")),
            };
            phase.send_replace(audited);
        }
        if reads_must_mend(&plan) {
            phase.subscribe().wait_for(|phase| *phase == Phase::Reading).await?;
            let reading = workload::read_all(&clients, &plan, &notebook);
            let read = match story::by_client(workload::AUDITOR, reading).await {
                Ok(from_us) => Phase::HasRead(from_us),
                Err(why) => Phase::Stuck(format!("reads of a healthy cluster: {why}")),
            };
            phase.send_replace(read);
        }
        phase.subscribe().wait_for(|phase| *phase == Phase::Auditing).await?;
        let first_us = workload::now_us();
        let audit = workload::audit(&clients, &machines, &plan, &notebook);
        let audited = match story::by_client(workload::AUDITOR, audit).await {
            Ok(second_us) => Phase::Audited { first_us, second_us, end_us: workload::now_us() },
            Err(why) => Phase::Stuck(format!("the audit of a healthy cluster: {why}")),
        };
        phase.send_replace(audited);
        Ok(())
    }
}

/// The history with what lies on the disks now: records, and the hints that nodes keep for each other.
fn with_disks(history: History, cluster: &Cluster<'_>) -> Result<History, String> {
    with_disks_by(history, cluster, workload::number)
}

/// The same, where `number` tells the operation that wrote a value.
pub(crate) fn with_disks_by(
    mut history: History,
    cluster: &Cluster<'_>,
    number: fn(&[u8]) -> OpNo,
) -> Result<History, String> {
    let mut merged: BTreeMap<String, Record> = BTreeMap::new();
    for machine in cluster.machines() {
        let (node, hints) = (machine.node().to_string(), Vec::new());
        let mut replica = Replica { node, records: BTreeMap::new(), hints };
        for (key, record, encoded) in records(&machine.disk)? {
            let unnamed = Record { siblings: record.siblings.clone(), context: record.context.without_names() };
            let unnamed = hex(&unnamed.encode());
            replica.records.insert(key.clone(), history::Record { dots: dots(&record, number), encoded, unnamed });
            merged.entry(key).or_default().merge(&record, &|_| false);
        }
        for (target, key, record) in hints_of(&machine.disk)? {
            replica.hints.push(history::Hint { target, key: key.clone(), dots: dots(&record, number) });
            merged.entry(key).or_default().merge(&record, &|_| false);
        }
        history.replicas.push(replica);
    }
    for (key, record) in merged {
        let values: BTreeSet<_> = record.values().iter().map(|value| number(value)).collect();
        history.merged.insert(key, values);
    }
    Ok(history)
}

/// Whose value each live dot carries.
fn dots(record: &Record, number: fn(&[u8]) -> OpNo) -> BTreeMap<String, OpNo> {
    let dots = record.siblings.iter().map(|(dot, sibling)| {
        let actor = dot.actor;
        let name = format!("{}/{:016x}#{}", actor.node, actor.incarnation, dot.counter);
        (name, number(&sibling.value))
    });
    dots.collect()
}

/// Every hint of a disk that is not damaged: for whom, the key, and the record.
fn hints_of(disk: &SimDisk) -> Result<Vec<(String, String, Record)>, String> {
    let decode = |(stored, value): (bytes::Bytes, bytes::Bytes)| {
        let (target, key, record) =
            quorate_node::replica::decode_hint(&stored, &value).map_err(|why| format!("a hint on a disk: {why}"))?;
        Ok((target.to_string(), user_key(&key), record))
    };
    disk.content(Tree::Hints).into_iter().map(decode).collect()
}

/// Every record of a disk that is not damaged: its key, itself, and its bytes in hexadecimal.
fn records(disk: &SimDisk) -> Result<Vec<(String, Record, String)>, String> {
    let decode = |(key, encoded): (bytes::Bytes, bytes::Bytes)| {
        let record = Record::decode(&encoded).map_err(|why| format!("a record on a disk: {why}"))?;
        let key = key_of(&key);
        Ok((key, record, hex(&encoded)))
    };
    disk.content(Tree::Data).into_iter().map(decode).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The key of a record, by its place on a disk.
fn key_of(place: &bytes::Bytes) -> String {
    user_key(&key_of_data(place))
}

/// A key as its client knows it.
pub(crate) fn user_key(key: &[u8]) -> String {
    let key = KeyParts::of(key).expect("nodes keep records under encoded keys");
    String::from_utf8_lossy(&key.partition_key()).into_owned()
}

/// What a panic said, as far as it said something.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    // The runtime that shuts down because of a panic in one of its tasks panics itself, with a text of its own.
    if let Some(first) = FIRST_PANICS.lock().unwrap_or_else(PoisonError::into_inner).remove(&thread_name()) {
        return first;
    }
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a text").to_owned()
}

/// Notes the first panic of each life with its place, instead of printing it: the report tells it. To be called once, by
/// programs that run lives.
pub fn note_panics() {
    panic::set_hook(Box::new(|panic| {
        let mut first = FIRST_PANICS.lock().unwrap_or_else(PoisonError::into_inner);
        first.entry(thread_name()).or_insert_with(|| panic.to_string());
    }));
}

static FIRST_PANICS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

fn thread_name() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

fn sum_packets(one: PacketCounts, other: PacketCounts) -> PacketCounts {
    PacketCounts {
        lost: one.lost + other.lost,
        duplicated: one.duplicated + other.duplicated,
        corrupted: one.corrupted + other.corrupted,
        truncated: one.truncated + other.truncated,
        delayed: one.delayed + other.delayed,
        cut: one.cut + other.cut,
    }
}

fn sum_disks(one: DiskCounts, other: DiskCounts) -> DiskCounts {
    DiskCounts {
        crashes: one.crashes + other.crashes,
        writes_lost: one.writes_lost + other.writes_lost,
        torn: one.torn + other.torn,
        corrupted: one.corrupted + other.corrupted,
        syncs_failed: one.syncs_failed + other.syncs_failed,
        inserts_failed: one.inserts_failed + other.inserts_failed,
        full: one.full + other.full,
        lied: one.lied + other.lied,
    }
}

/// An operator goes on for so long when everything is healed.
const WISHED_FOR: Duration = Duration::from_secs(45);

/// A change has come to its end so long after all was healed and clients had ended.
const CHANGES_END: Duration = Duration::from_secs(90);
const HEALED: Duration = Duration::from_secs(20);
/// So long nothing is to be done any more.
const CHANGES_REST: Duration = Duration::from_secs(2);

/// Debug builds need more than the default for futures that hold futures.
const STACK_SIZE: usize = 16 << 20;

/// Nodes that start at once have found each other and agreed within a few seconds, also over two continents.
const BOOTSTRAP_MAX: Duration = Duration::from_secs(60);

/// How long a core has to notice what is broken: a dead node is down after 6 s, and connections are given up sooner.
const CORE_SETTLES: Duration = Duration::from_secs(10);

/// How long a stale replica has to be mended after the last read: it has answered a read a moment ago.
const READS_MEND: Duration = Duration::from_secs(3);

/// A pause holds a request back for up to 15 s, and whoever receives it then goes by the time that it was given: 3 s.
const RETRY_LATEST_US: u64 = 20_000_000;

/// A node forgets a client that it does not hear any more after 30 s.
const GIVEN_BACK_MAX: Duration = Duration::from_secs(40);

/// Hundreds of requests, one after the other, over two continents.
const AUDIT_MAX: Duration = Duration::from_secs(600);

const VIOLATIONS_SHOWN: usize = 10;
