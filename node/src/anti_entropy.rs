//! Anti-entropy: owners of a partition compare their hash trees, all the time, and exchange what differs.
//!
//! ```text
//!   pass     roots of all partitions that two nodes share ── differ ──> groups ──> leaves
//!            a leaf that differed in the pass before as well: lists, then records    (a write on its way is no difference)
//!   recovery the same for what this node has lost, at once and without a second look
//!   scrub    reads what lies here, so that it is known what is lost
//! ```
//!
//! Of two owners the one with the smaller name initiates the even partitions and the other one the odd ones. Modules in reading
//! order: `pair` asks one peer about one partition, `serve` answers, `recover` brings back what is lost, `scrub` looks for it, `change` moves
//! partitions when the layout changes and `transfers` counts that; here are the passes, what operators see of them, and what they can do.

mod change;
mod pair;
mod recover;
mod scrub;
mod serve;
mod transfers;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use quorate_wire::codec::Blob;
use quorate_wire::ids::{LayoutVersion, NodeId, Partition, key_hash};
use quorate_wire::random::Random;
use quorate_wire::{NotApplied, Recovering, RepairCommand, RepairReport, Transfers};
use quorate_wire::{buggify, sometimes};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use self::pair::Pair;
use self::transfers::Ledger;
use crate::beacons::Beacons;
use crate::layouts::{Current, Layouts};
use crate::membership::{Liveness, Membership};
use crate::metrics::Sample;
use crate::peer_wire::Label;
use crate::peer_wire::heal::{HealReply, HealRequest, ROOTS_MAX, Roots, RootsCompared, Sum};
use crate::peers::Peers;
use crate::recovery::Reason;
use crate::replica::Replica;
use crate::supervise;
use quorate_core::merkle;
use quorate_core::partition::{Differs, PartitionState};

/// How a node compares itself with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AntiEntropyConfig {
    /// Off: no passes and no scrub. Trees are kept and other nodes' questions answered all the same, and what is lost is recovered.
    pub enabled: bool,
    /// From the beginning of one pass to that of the next; each is shortened by a random part of a quarter. A difference is
    /// gone after two passes. Start with ten seconds: a pass over equal replicas costs 24 bytes a partition.
    pub interval: Duration,
    /// From the beginning of one reading of all records to that of the next; the first begins with the node. It takes a twentieth
    /// of a thread while it goes on.
    pub scrub: Duration,
}

impl Default for AntiEntropyConfig {
    fn default() -> Self {
        Self { enabled: true, interval: Duration::from_secs(10), scrub: Duration::from_secs(24 * 3600) }
    }
}

/// What anti-entropy is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) me: NodeId,
    pub(crate) config: AntiEntropyConfig,
    pub(crate) layouts: Layouts,
    pub(crate) membership: Membership,
    pub(crate) replica: Replica,
    pub(crate) peers: Peers,
    pub(crate) beacons: Beacons,
    pub(crate) random: Random,
}

/// The service. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct AntiEntropy {
    desk: Arc<Desk>,
    tasks: Arc<Vec<AbortHandle>>,
}

/// What its tasks and the answering side share.
#[derive(Debug)]
struct Desk {
    me: NodeId,
    config: AntiEntropyConfig,
    layouts: Layouts,
    liveness: watch::Receiver<Arc<Liveness>>,
    replica: Replica,
    peers: Peers,
    beacons: Beacons,
    random: Random,
    state: Mutex<State>,
    wake: Notify,
    counters: Counters,
    transfers: Ledger,
}

#[derive(Debug, Default)]
struct State {
    paused: bool,
    /// An operator wants a pass now.
    wanted: bool,
    running: bool,
    pass: u64,
    compared: u64,
    differing: u64,
    unknown: u64,
    last_pass: Option<Instant>,
    /// When the scrub had read everything, and what that was.
    last_scrub: Option<(Instant, scrub::Seen)>,
    /// Trees that are to be summed up: how many are left of how many, since when.
    rebuild: Option<(u32, u32, Instant)>,
    /// Where exchanges broke off because the disk here had refused too much: the next one with that owner about that partition goes on
    /// behind this key. One for each other owner of each partition of this node at most.
    broken_off: BTreeMap<(NodeId, Partition), Blob>,
    /// As of this layout: in how many partitions something may lie here that belongs to others.
    of_others: Option<(LayoutVersion, u32)>,
}

/// Why a record was not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// A write, or its hint, did not arrive.
    Missed,
    /// The record here was corrupt.
    Corrupt,
    /// The disk was emptied, exchanged or rolled back, or lost what was not synced.
    Wiped,
}

#[derive(Debug, Default)]
struct Counters {
    missed: AtomicU64,
    corrupt: AtomicU64,
    wiped: AtomicU64,
    bytes_listed: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    failed: AtomicU64,
    scrubbed: AtomicU64,
    scrub_found: AtomicU64,
}

impl AntiEntropy {
    /// Starts its tasks. Must be called within a runtime.
    pub(crate) fn start(parts: Parts) -> Self {
        let desk = Arc::new(Desk::new(parts));
        let config = desk.config;
        let passes = supervise::spawn("anti-entropy", run(desk.clone()));
        let recovery = supervise::spawn("recovery", recover::run(desk.clone()));
        let changes = supervise::spawn("layout change", change::run(desk.clone()));
        let mut tasks = vec![passes.abort_handle(), recovery.abort_handle(), changes.abort_handle()];
        if config.enabled {
            tasks.push(supervise::spawn("scrub", scrub::run(desk.clone())).abort_handle());
        }
        Self { desk, tasks: Arc::new(tasks) }
    }

    /// One without tasks: it answers, and a test takes every step itself.
    #[cfg(test)]
    pub(crate) fn without_tasks(parts: Parts) -> Self {
        Self { desk: Arc::new(Desk::new(parts)), tasks: Arc::default() }
    }

    /// What its tasks share.
    #[cfg(test)]
    fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// Ends its tasks.
    pub(crate) fn shutdown(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }

    /// Answers a peer.
    pub(crate) async fn answer(
        &self,
        from: NodeId,
        label: Label,
        request: HealRequest,
        timeout: Duration,
    ) -> Result<HealReply, NotApplied> {
        self.desk.answer(from, label, request, timeout).await
    }

    /// Carries out an operator's command.
    pub(crate) fn command(&self, command: RepairCommand) -> RepairReport {
        {
            let mut state = self.desk.state();
            match command {
                RepairCommand::Status => {}
                RepairCommand::Pause => state.paused = true,
                RepairCommand::Resume => state.paused = false,
                RepairCommand::Start => (state.paused, state.wanted) = (false, true),
            }
        }
        self.desk.wake.notify_one();
        self.report()
    }

    /// How it stands.
    pub(crate) fn report(&self) -> RepairReport {
        let desk = &self.desk;
        let owned = desk.layouts.current().map_or(0, |current| current.owned_by(desk.me).len() as u32);
        let state = desk.state();
        let counters = &desk.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RepairReport {
            node: desk.me,
            enabled: desk.config.enabled,
            paused: state.paused,
            running: state.running,
            pass: state.pass,
            partitions: owned,
            compared: state.compared,
            differing: state.differing,
            unknown: state.unknown,
            repaired_missed: load(&counters.missed),
            repaired_corrupt: load(&counters.corrupt),
            repaired_wiped: load(&counters.wiped),
            bytes_listed: load(&counters.bytes_listed),
            bytes_sent: load(&counters.bytes_sent),
            bytes_received: load(&counters.bytes_received),
            last_pass_ms: state.last_pass.map(|at| at.elapsed().as_millis() as u64),
            scrubbed: load(&counters.scrubbed),
            scrub_found: load(&counters.scrub_found),
            last_scrub_ms: state.last_scrub.map(|(at, _)| at.elapsed().as_millis() as u64),
            records: state.last_scrub.map(|(_, seen)| seen.records),
            tombstones: state.last_scrub.map(|(_, seen)| seen.tombstones),
            rebuild_left: state.rebuild.map_or(0, |(left, _, _)| left),
            rebuild_eta_ms: state.rebuild.and_then(|(left, total, since)| eta_ms(left, total, since)),
            recovering: self.recovering(),
        }
    }

    /// What this node has lost and is bringing back.
    pub(crate) fn recovering(&self) -> Option<Recovering> {
        self.desk.replica.recovery().progress().map(|progress| Recovering {
            why: progress.reason.to_string(),
            left: progress.left,
            total: progress.total,
            eta_ms: eta_ms(progress.left, progress.total, progress.since),
        })
    }

    /// In how many partitions of other owners under the newest layout something may still lie here; unknown before it has been looked.
    pub(crate) fn of_others(&self) -> Option<u32> {
        let newest = self.desk.layouts.current()?.version();
        self.desk.state().of_others.filter(|(version, _)| *version == newest).map(|(_, partitions)| partitions)
    }

    /// What is moved because of a change of the layout, if there is anything to tell.
    pub(crate) fn transfers(&self) -> Option<Transfers> {
        let current = self.desk.layouts.current()?;
        self.desk.transfers.report(self.desk.me, &current, self.of_others())
    }

    /// For the node's metrics.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let report = self.report();
        let recovering = report.recovering.map_or(0, |recovering| recovering.left);
        let repaired = |count| {
            let help = "Records repaired: a write or its hint had not arrived, what was here was corrupt, or the disk had lost it";
            Sample::counter("repaired", help, count)
        };
        let moved = |bytes| {
            Sample::counter(
                "repair_bytes",
                "Bytes of lists that were compared, and of records sent and received",
                bytes,
            )
        };
        let mut samples = vec![
            Sample::counter("repair_passes", "Passes of anti-entropy that have begun", report.pass),
            Sample::counter(
                "repair_failed",
                "Comparisons and exchanges that failed",
                self.desk.counters.failed.load(Ordering::Relaxed),
            ),
            repaired(report.repaired_missed).of("cause", "missed"),
            repaired(report.repaired_corrupt).of("cause", "corrupt"),
            repaired(report.repaired_wiped).of("cause", "wiped"),
            moved(report.bytes_listed).of("what", "listed"),
            moved(report.bytes_sent).of("what", "sent"),
            moved(report.bytes_received).of("what", "received"),
            Sample::counter("scrubbed", "Records read by the scrub", report.scrubbed),
            Sample::counter("scrub_found", "Corrupt records found by the scrub", report.scrub_found),
            Sample::gauge(
                "tombstones",
                "Records of deleted keys when the scrub had last read everything",
                report.tombstones.unwrap_or(0),
            ),
            Sample::gauge("repair_differing", "Partition pairs that differed in the newest pass", report.differing),
            Sample::gauge(
                "repair_trees_unknown",
                "Partitions whose hash tree is still to be summed up",
                report.rebuild_left.into(),
            ),
            Sample::gauge(
                "recovering_partitions",
                "Partitions that are not served, because something of them is lost",
                recovering.into(),
            ),
        ];
        samples.extend(self.desk.transfers.samples());
        samples
    }
}

/// The background task of the passes.
async fn run(desk: Arc<Desk>) {
    loop {
        let began = Instant::now();
        let mut pace = desk.config.interval;
        if let Some(current) = desk.layouts.current() {
            desk.rebuild(&current).await;
            let run = {
                let mut state = desk.state();
                let run = desk.config.enabled && !state.paused || state.wanted;
                state.wanted = false;
                state.running = run;
                run
            };
            if run {
                desk.pass(&current).await;
                desk.state().running = false;
            }
        } else {
            // The layout is to come.
            pace = pace.min(Duration::from_secs(1));
        }
        pace = buggify!("anti-entropy: passes follow at once", pace, pace / 50);
        let shortened = desk.random.below(pace.as_micros() as u64 / 4 + 1);
        let rest = (pace - Duration::from_micros(shortened)).saturating_sub(began.elapsed()).max(REST_MIN);
        tokio::select! {
            biased;
            () = sleep(rest) => {}
            () = desk.wake.notified() => {}
        }
    }
}

impl Desk {
    fn new(parts: Parts) -> Self {
        let Parts { me, config, layouts, membership, replica, peers, beacons, random } = parts;
        let (liveness, state) = (membership.liveness(), Mutex::default());
        let (wake, counters, transfers) = (Notify::new(), Counters::default(), Ledger::default());
        Self { me, config, layouts, liveness, replica, peers, beacons, random, state, wake, counters, transfers }
    }

    /// Sums up the trees that are not known, with pauses.
    async fn rebuild(&self, current: &Current) {
        let unknown = |partition: &Partition| !self.replica.partitions().unknown(*partition).is_empty();
        let todo: Vec<Partition> = current.owned_by(self.me).into_iter().filter(unknown).collect();
        let (total, since) = (todo.len() as u32, Instant::now());
        let mut failed = 0_u32;
        for (left, partition) in (1..=total).rev().zip(todo) {
            self.state().rebuild = Some((left, total, since));
            let began = Instant::now();
            if let Err(why) = self.replica.rebuild(partition).await {
                if failed == 0 {
                    tracing::warn!(%partition, "its hash tree cannot be summed up: {why}");
                }
                failed += 1;
            }
            pause(began).await;
        }
        if failed > 1 {
            tracing::warn!(failed, "so many hash trees could not be summed up; the next pass tries again");
        }
        self.state().rebuild = None;
    }

    /// One pass over everything that this node initiates.
    async fn pass(&self, current: &Arc<Current>) {
        {
            let mut state = self.state();
            state.pass += 1;
            (state.compared, state.differing, state.unknown) = (0, 0, 0);
        }
        let mut shared: BTreeMap<NodeId, Vec<Partition>> = BTreeMap::new();
        for partition in current.owned_by(self.me) {
            let keepers = current.keepers(partition);
            if !keepers.contains(&self.me) {
                continue;
            }
            for peer in keepers {
                if peer != self.me && initiates(self.me, peer, partition) {
                    shared.entry(peer).or_default().push(partition);
                }
            }
        }
        let peers: Vec<NodeId> = shared.keys().copied().collect();
        let reachable = self.reachable(&peers);
        let mut whole = reachable.len() == peers.len();
        for peer in reachable {
            for partitions in shared[&peer].chunks(ROOTS_MAX) {
                if self.state().paused {
                    return;
                }
                let began = Instant::now();
                if let Err(why) = self.compare(current, peer, partitions).await {
                    whole = false;
                    self.counters.add(&self.counters.failed, 1);
                    tracing::debug!(%peer, "not compared: {why}");
                }
                pause(began).await;
            }
        }
        if whole {
            sometimes!("anti-entropy: a whole pass");
            self.state().last_pass = Some(Instant::now());
        }
    }

    /// Compares some partitions with one peer, and exchanges what differs for the second time.
    async fn compare(&self, current: &Arc<Current>, peer: NodeId, partitions: &[Partition]) -> Result<(), String> {
        let root = |partition: &Partition| (*partition, self.replica.partitions().root(*partition).map(Sum));
        let roots = Roots { roots: partitions.iter().map(root).collect() };
        let RootsCompared { differ, unknown } = self.ask(current, peer, roots).await?;
        {
            let mut state = self.state();
            state.compared += partitions.len() as u64;
            state.differing += differ.len() as u64;
            state.unknown += unknown.len() as u64;
            // What was equal in between begins at the first key again.
            let equal = |partition: &Partition| partitions.contains(partition) && !differ.contains(partition);
            state.broken_off.retain(|(owner, partition), _| *owner != peer || !equal(partition));
        }
        let mut failed = Ok(());
        for partition in partitions {
            if !differ.contains(partition) {
                self.replica.partitions().with(*partition, |state, _| state.equals(peer));
                continue;
            }
            let began = Instant::now();
            let pair = Pair { desk: self, current, peer, partition: *partition, paced: true, moves: None };
            if let Err(why) = self.repair(&pair).await {
                failed = Err(format!("partition {partition}: {why}"));
            }
            pause(began).await;
        }
        failed
    }

    /// Looks closer at a partition that differs.
    async fn repair(&self, pair: &Pair<'_>) -> Result<(), String> {
        let compared = pair.compare().await?;
        let differs = |state: &mut PartitionState, _| state.differs(pair.peer, compared.differ);
        let Differs { lasting, gone } = self.replica.partitions().with(pair.partition, differs);
        sometimes!("anti-entropy: a difference did not last", !gone.is_empty());
        if lasting.is_empty() {
            return Ok(());
        }
        sometimes!("anti-entropy: a difference lasted");
        let exchanged = pair.exchange(&lasting).await?;
        if exchanged.differences == 0 {
            pair.recount(&lasting).await?;
        }
        exchanged.unsettled()
    }

    /// Those of some nodes that are up, as far as is known.
    fn reachable(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        let liveness = self.liveness.borrow().clone();
        let up = |node: &&NodeId| liveness.get(*node).is_none_or(|state| state.up) && !self.peers.link_down(**node);
        nodes.iter().filter(up).copied().collect()
    }

    fn cause(&self, partition: Partition, key: &Blob) -> Cause {
        let partitions = self.layouts.current().map_or(1, |current| current.layout.partitions);
        match self.replica.recovery().reason(partition, merkle::leaf_of(key_hash(key), partitions)) {
            Some(Reason::OtherDisk | Reason::Unclean | Reason::RolledBack) => Cause::Wiped,
            Some(Reason::Corrupt) | None => Cause::Missed,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is locked")
    }
}

impl Counters {
    fn add(&self, counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    fn repaired(&self, cause: Cause) {
        let counter = match cause {
            Cause::Missed => {
                sometimes!("anti-entropy: repaired what was missed");
                &self.missed
            }
            Cause::Corrupt => {
                sometimes!("anti-entropy: repaired what was corrupt");
                &self.corrupt
            }
            Cause::Wiped => {
                sometimes!("anti-entropy: repaired what was wiped");
                &self.wiped
            }
        };
        self.add(counter, 1);
    }
}

/// Which of two owners compares a partition.
fn initiates(me: NodeId, other: NodeId, partition: Partition) -> bool {
    (me < other) == partition.0.is_multiple_of(2)
}

/// Rests for as long as the work has taken, so that repair takes half of a thread at most, and of a lame peer's time as well.
async fn pause(began: Instant) {
    sleep(began.elapsed().min(PAUSE_MAX)).await;
}

/// What is left, at the pace so far.
fn eta_ms(left: u32, total: u32, since: Instant) -> Option<u64> {
    let done = total.checked_sub(left).filter(|done| *done > 0)?;
    Some(since.elapsed().as_millis() as u64 * u64::from(left) / u64::from(done))
}

/// The longest rest after one step.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// The shortest rest between two passes.
const REST_MIN: Duration = Duration::from_millis(10);

#[cfg(test)]
#[path = "anti_entropy_test.rs"]
mod tests;
