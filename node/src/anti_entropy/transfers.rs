//! What this node has moved because of a change of the layout: how much, from and to whom, how fast, and what has stopped it.
//!
//! `pair` counts what goes through it, `change` notes what came of it. Nothing here decides anything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use quorate_wire::ids::{LayoutVersion, NodeId, Partition};
use quorate_wire::{Flow, Stopped, Transfer, Transfers};
use tokio::time::Instant;

use crate::layouts::Current;
use crate::metrics::Sample;

/// The counts of one node.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Of the change that the rest is about: the newest layout. Changes that were begun before an earlier one was over are one.
    newest: LayoutVersion,
    flows: BTreeMap<(Transfer, NodeId), Counted>,
    /// The partitions for which this node has become ready.
    ready: Meter,
    /// When something was last taken over.
    last_taken: Option<Instant>,
    stopped: BTreeMap<(Transfer, NodeId), Stop>,
    /// Since the node's start.
    taken_over: Total,
    handed_over: Total,
}

/// What went from or to one other node.
#[derive(Debug, Default)]
struct Counted {
    partitions: u32,
    records: Meter,
    bytes: Meter,
}

#[derive(Debug, Default, Clone, Copy)]
struct Total {
    partitions: u64,
    records: u64,
    bytes: u64,
    stopped: u64,
}

#[derive(Debug)]
struct Stop {
    partitions: BTreeSet<Partition>,
    last: Partition,
    why: String,
    at: Instant,
}

/// A number that only grows, and what it was at some moments of late.
#[derive(Debug, Default)]
struct Meter {
    total: u64,
    /// Oldest first, before anything was added at that moment.
    marks: VecDeque<(Instant, u64)>,
}

impl Meter {
    fn add(&mut self, by: u64, now: Instant, window: Duration) {
        self.forget(now, window);
        if self.marks.back().is_none_or(|(at, _)| now - *at >= window / MARKS_MAX) {
            self.marks.push_back((now, self.total));
        }
        self.total += by;
    }

    fn forget(&mut self, now: Instant, window: Duration) {
        while self.marks.front().is_some_and(|(at, _)| now - *at > window) {
            self.marks.pop_front();
        }
    }

    /// How much was added of late, and in what time; that is a second at least, or a burst would count for more than it is.
    fn lately(&mut self, now: Instant, window: Duration) -> (u64, Duration) {
        self.forget(now, window);
        let since = self.marks.front().copied();
        since.map_or((0, window), |(at, before)| (self.total - before, (now - at).max(Duration::from_secs(1))))
    }

    fn per_second(&mut self, now: Instant) -> u64 {
        let (added, took) = self.lately(now, RATE_WINDOW);
        (u128::from(added) * 1000 / took.as_millis().max(1)) as u64
    }
}

impl Ledger {
    /// What is noted from now on is about the change that is under way, if there is one.
    pub(super) fn begin(&self, current: &Current) {
        let (live, mut counts) = (current.live(), self.counts());
        let (oldest, newest) = (live.oldest().version(), live.newest().version());
        if newest <= counts.newest {
            return;
        }
        // What failed for an older version is tried anew.
        counts.stopped.clear();
        if oldest >= counts.newest {
            (counts.flows, counts.ready, counts.last_taken) = Default::default();
        }
        counts.newest = newest;
    }

    /// Something begins to be taken over: the pace counts from here.
    pub(super) fn takes_over(&self) {
        self.counts().ready.add(0, Instant::now(), ETA_WINDOW);
    }

    /// Some records went to another node, or came from it.
    pub(super) fn moved(&self, what: Transfer, with: NodeId, records: u64, bytes: u64) {
        if records == 0 {
            return;
        }
        let (mut counts, now) = (self.counts(), Instant::now());
        let total = counts.total(what);
        (total.records, total.bytes) = (total.records + records, total.bytes + bytes);
        if what == Transfer::TakeOver {
            counts.last_taken = Some(now);
        }
        let flow = counts.flows.entry((what, with)).or_default();
        flow.records.add(records, now, RATE_WINDOW);
        flow.bytes.add(bytes, now, RATE_WINDOW);
    }

    /// A partition was moved completely, as far as the two of them go.
    pub(super) fn completed(&self, what: Transfer, with: NodeId, partition: Partition) {
        let mut counts = self.counts();
        counts.total(what).partitions += 1;
        counts.flows.entry((what, with)).or_default().partitions += 1;
        counts.goes_on(what, with, partition);
    }

    /// What stood in the way here, at this node, of taking over a partition does so no more.
    pub(super) fn goes_on(&self, me: NodeId, partition: Partition) {
        self.counts().goes_on(Transfer::TakeOver, me, partition);
    }

    /// Nothing of a partition lies here any more.
    pub(super) fn is_gone(&self, partition: Partition) {
        let mut counts = self.counts();
        let others: Vec<NodeId> = counts.stopped.keys().map(|(_, with)| *with).collect();
        others.into_iter().for_each(|with| counts.goes_on(Transfer::HandOver, with, partition));
    }

    /// This node has all that it needs of a partition.
    pub(super) fn is_ready(&self) {
        let (mut counts, now) = (self.counts(), Instant::now());
        counts.ready.add(1, now, ETA_WINDOW);
        counts.last_taken = Some(now);
    }

    /// A partition could not be moved. Of each other node the last reason is kept.
    pub(super) fn stopped(&self, what: Transfer, with: NodeId, partition: Partition, why: &str) {
        let mut counts = self.counts();
        counts.total(what).stopped += 1;
        if counts.stopped.len() >= STOPPED_MAX && !counts.stopped.contains_key(&(what, with)) {
            return;
        }
        let why: String = why.chars().take(WHY_LEN_MAX).collect();
        let (last, at) = (partition, Instant::now());
        let stop = counts.stopped.entry((what, with)).or_insert_with(|| Stop {
            partitions: BTreeSet::new(),
            last,
            why: String::new(),
            at,
        });
        stop.partitions.insert(partition);
        (stop.last, stop.why, stop.at) = (last, why, at);
    }

    /// All of it; nothing if there is nothing to tell. `left` is in how many partitions of other owners something may lie here.
    pub(super) fn report(&self, me: NodeId, current: &Current, left: Option<u32>) -> Option<Transfers> {
        let live = current.live();
        let (from, to) = (live.oldest().version(), live.newest().version());
        let taken = current.progress().and_then(|progress| progress.receivers.get(&me).copied()).unwrap_or_default();
        let nothing = BTreeMap::new();
        let sources = if live.is_changing() { current.sources(me) } else { &nothing };
        let (mut counts, now) = (self.counts(), Instant::now());
        // Who is ready needs nothing more, whoever had failed.
        let open = |partition: &Partition| live.is_changing() && !live.partition(*partition).is_ready(me, to);
        for ((what, _), stop) in &mut counts.stopped {
            if *what == Transfer::TakeOver {
                stop.partitions.retain(open);
            }
        }
        counts.stopped.retain(|_, stop| !stop.partitions.is_empty());
        if !live.is_changing() && left.unwrap_or(0) == 0 && counts.stopped.is_empty() {
            return None;
        }
        for from in sources.keys() {
            counts.flows.entry((Transfer::TakeOver, *from)).or_default();
        }
        let (mut taken_from, mut given_to) = (Vec::new(), Vec::new());
        for ((what, node), flow) in &mut counts.flows {
            let source = sources.get(node).filter(|_| *what == Transfer::TakeOver);
            let shown = Flow {
                node: *node,
                done: source.map_or(flow.partitions, |taken| taken.done),
                of: source.map(|taken| taken.of),
                records: flow.records.total,
                bytes: flow.bytes.total,
                records_per_second: flow.records.per_second(now),
                bytes_per_second: flow.bytes.per_second(now),
            };
            match what {
                Transfer::TakeOver => taken_from.push(shown),
                Transfer::HandOver => given_to.push(shown),
            }
        }
        let stopped = counts.stopped.iter().map(|((what, with), stop)| Stopped {
            what: *what,
            with: *with,
            partitions: stop.partitions.len() as u32,
            partition: stop.last,
            why: stop.why.clone(),
            ago_ms: (now - stop.at).as_millis() as u64,
        });
        let stopped = stopped.collect();
        let eta_ms = counts.eta_ms(taken.of - taken.done, now);
        let (done, of) = (taken.done, taken.of);
        Some(Transfers { from, to, done, of, eta_ms, sources: taken_from, targets: given_to, left, stopped })
    }

    /// For the node's metrics.
    pub(super) fn samples(&self) -> Vec<Sample> {
        let counts = self.counts();
        let (taken, given) = (counts.taken_over, counts.handed_over);
        let family = |name, help, taken, given| {
            let sample = |value| Sample::counter(name, help, value);
            [sample(taken).of("what", "taken_over"), sample(given).of("what", "handed_over")]
        };
        let partitions = "Partitions that were moved completely from or to one other node in a change of the layout";
        [
            family("transferred_partitions", partitions, taken.partitions, given.partitions),
            family("transferred_records", "Records moved in a change of the layout", taken.records, given.records),
            family("transferred_bytes", "Bytes of records moved in a change of the layout", taken.bytes, given.bytes),
            family(
                "transfers_stopped",
                "Partitions that could not be moved at an attempt",
                taken.stopped,
                given.stopped,
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().expect("nothing panics while it is locked")
    }
}

impl Counts {
    fn total(&mut self, what: Transfer) -> &mut Total {
        match what {
            Transfer::TakeOver => &mut self.taken_over,
            Transfer::HandOver => &mut self.handed_over,
        }
    }

    fn goes_on(&mut self, what: Transfer, with: NodeId, partition: Partition) {
        if let Some(stop) = self.stopped.get_mut(&(what, with)) {
            stop.partitions.remove(&partition);
            if stop.partitions.is_empty() {
                self.stopped.remove(&(what, with));
            }
        }
    }

    /// How long the rest takes at the pace of the last minutes; unknown if nothing has come for a while, or no partition is done yet.
    fn eta_ms(&mut self, left: u32, now: Instant) -> Option<u64> {
        if left == 0 {
            return Some(0);
        }
        self.last_taken.filter(|at| now - *at <= RATE_WINDOW)?;
        let (done, took) = self.ready.lately(now, ETA_WINDOW);
        (done > 0).then(|| took.as_millis() as u64 * u64::from(left) / done)
    }
}

/// Over so long a time a rate is taken: longer than the pauses between two steps.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Over so long a time the pace is taken: a large partition takes a minute.
const ETA_WINDOW: Duration = Duration::from_secs(300);
/// So many moments of a window are kept.
const MARKS_MAX: u32 = 20;
/// So many reasons are kept at a time, one for each other node and way.
const STOPPED_MAX: usize = 64;
/// So many characters of a reason.
const WHY_LEN_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("legal")
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_that_of_the_last_seconds_and_ends_with_what_it_counts() {
        let mut meter = Meter::default();
        assert_eq!(meter.per_second(Instant::now()), 0);
        meter.add(500, Instant::now(), RATE_WINDOW);
        assert_eq!(meter.per_second(Instant::now()), 500, "a burst counts as if it had taken a second");
        for _ in 0..100 {
            advance(Duration::from_millis(200)).await;
            meter.add(20, Instant::now(), RATE_WINDOW);
        }
        let rate = meter.per_second(Instant::now());
        assert!((90..=110).contains(&rate), "100 a second, and the burst is long ago: {rate}");
        assert!(meter.marks.len() <= MARKS_MAX as usize + 1, "{}", meter.marks.len());
        advance(Duration::from_secs(5)).await;
        let rate = meter.per_second(Instant::now());
        assert!((40..=70).contains(&rate), "half of it is past: {rate}");
        advance(RATE_WINDOW).await;
        assert_eq!((meter.per_second(Instant::now()), meter.total), (0, 2500));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_is_reckoned_at_the_pace_so_far_and_unknown_while_nothing_moves() {
        let ledger = Ledger::default();
        let eta = |left| ledger.counts().eta_ms(left, Instant::now());
        assert_eq!((eta(0), eta(8)), (Some(0), None), "nothing is done yet");
        ledger.takes_over();
        advance(Duration::from_secs(4)).await;
        ledger.moved(Transfer::TakeOver, node("n1"), 3, 300);
        assert_eq!(eta(8), None, "something moves, and no partition is done");
        for _ in 0..2 {
            advance(Duration::from_secs(4)).await;
            ledger.is_ready();
        }
        // Two in twelve seconds.
        assert_eq!(eta(8), Some(48_000));
        advance(RATE_WINDOW * 2).await;
        assert_eq!(eta(8), None, "nothing has come for a while");
        ledger.moved(Transfer::HandOver, node("n1"), 3, 300);
        assert_eq!(eta(8), None, "what goes away says nothing of what comes");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_reason_is_kept_for_each_node_until_its_partitions_have_moved() {
        let ledger = Ledger::default();
        let (take, hand) = (Transfer::TakeOver, Transfer::HandOver);
        ledger.stopped(take, node("n1"), Partition(3), "no answer");
        ledger.stopped(take, node("n1"), Partition(5), &"x".repeat(1000));
        ledger.stopped(hand, node("n1"), Partition(3), "its disk is full");
        let kept = |what| {
            let counts = ledger.counts();
            counts.stopped.get(&(what, node("n1"))).map(|stop| (stop.partitions.len(), stop.why.len(), stop.last.0))
        };
        assert_eq!((kept(take), kept(hand)), (Some((2, WHY_LEN_MAX, 5)), Some((1, 16, 3))));
        ledger.completed(take, node("n1"), Partition(5));
        ledger.completed(take, node("n2"), Partition(3));
        assert_eq!(kept(take), Some((1, WHY_LEN_MAX, 5)));
        ledger.goes_on(node("n1"), Partition(3));
        assert_eq!((kept(take), kept(hand)), (None, Some((1, 16, 3))));
        ledger.is_gone(Partition(3));
        assert_eq!(kept(hand), None);
        for other in 0..2 * STOPPED_MAX {
            ledger.stopped(take, node(&format!("m{other}")), Partition(1), "no answer");
        }
        assert_eq!(ledger.counts().stopped.len(), STOPPED_MAX);
        let stopped: Vec<u64> = ledger.samples()[6..].iter().map(|sample| sample.value).collect();
        assert_eq!(stopped, [2 + 2 * STOPPED_MAX as u64, 1], "each is counted");
    }
}
