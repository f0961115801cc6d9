//! Hinted handoff: hands the hints that this node keeps to their targets, when those are up, at the rate that they grant.
//!
//! One page of hints for a target is under way at a time. The target merges all of it and syncs before it answers; each hint that
//! is still what was sent is then let go ([`Replica::hint_delivered`]). Whatever fails in between is sent again: merges may be
//! repeated. What a target refuses, because its disk has no room for it, stays and is tried again in a later pass; a pass that has met
//! enough of that ends, and the next one goes on where it ended. The hints themselves lie in the store, so that a restart of either end
//! only delays them. (DeCandia et al., "Dynamo", 2007, section 4.6.)

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use quorate_wire::HintStatus;
use quorate_wire::codec::Blob;
use quorate_wire::ids::NodeId;
use quorate_wire::{buggify, dawdle, sometimes};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::calls::Calls;
use crate::layouts::{Current, Layouts};
use crate::membership::Liveness;
use crate::peer_wire::{HandOver, HandedOff, Refused};
use crate::peers::Peers;
use crate::replica::{HintPage, Hinted, Replica};
use crate::supervise;

/// What it is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) me: NodeId,
    pub(crate) layouts: Layouts,
    pub(crate) liveness: watch::Receiver<Arc<Liveness>>,
    pub(crate) replica: Replica,
    pub(crate) peers: Peers,
}

/// The service. Clones share it.
#[derive(Clone)]
pub(crate) struct Handoff(Arc<Service>);

struct Service {
    replica: Replica,
    progress: Arc<Mutex<BTreeMap<NodeId, Progress>>>,
    task: JoinHandle<()>,
}

/// How handing over to one target goes.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// Hints a second of the pass that is under way, or of the last one.
    per_second: u64,
    /// Why the last pass ended early; empty if it did not.
    failed: String,
    failures: u32,
    next_try: Option<Instant>,
    running: bool,
    /// The last hint of a pass that ended early because the target had refused too many: the next one begins after it.
    after: Option<Blob>,
    /// How many hints were left by a pass that could send none of them: one that comes meanwhile ends the pause.
    stuck: Option<u64>,
}

impl Progress {
    /// The pass brought nothing: the next one waits twice as long as this one has.
    fn back_off(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let pause = RETRY_MIN.saturating_mul(1 << self.failures.min(5));
        self.next_try = Some(Instant::now() + pause);
    }
}

impl Handoff {
    /// Starts the task. Must be called within a runtime.
    pub(crate) fn start(parts: Parts) -> Self {
        let replica = parts.replica.clone();
        let progress = Arc::<Mutex<BTreeMap<NodeId, Progress>>>::default();
        let task = supervise::spawn("handoff", Arc::new(Courier { parts, progress: progress.clone() }).run());
        Self(Arc::new(Service { replica, progress, task }))
    }

    /// What is kept for whom, and how handing it over goes.
    pub(crate) fn status(&self, now_ms: u64) -> Vec<HintStatus> {
        let progress = lock(&self.0.progress);
        let status = |(target, totals): (NodeId, crate::replica::HintTotals)| {
            let progress = progress.get(&target).cloned().unwrap_or_default();
            HintStatus {
                target,
                count: totals.count,
                bytes: totals.bytes,
                oldest_ms: now_ms.saturating_sub(totals.oldest_ms),
                per_second: if progress.running { progress.per_second } else { 0 },
                failed: progress.failed,
            }
        };
        self.0.replica.hint_totals().into_iter().map(status).collect()
    }

    /// Ends the task where it stands.
    pub(crate) fn shutdown(&self) {
        self.0.task.abort();
    }
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handoff")
    }
}

struct Courier {
    parts: Parts,
    progress: Arc<Mutex<BTreeMap<NodeId, Progress>>>,
}

impl Courier {
    async fn run(self: Arc<Self>) {
        let mut liveness = self.parts.liveness.clone();
        let mut calls: Calls<(NodeId, Result<u64, String>)> = Calls::new();
        loop {
            for target in self.due() {
                lock(&self.progress).entry(target).or_default().running = true;
                let courier = self.clone();
                calls.push(async move { (target, courier.deliver(target).await) });
            }
            tokio::select! {
                biased;
                Some((target, outcome)) = calls.next() => self.ended(target, outcome),
                Ok(()) = liveness.changed() => {
                    // Whoever has come back is worth another try at once.
                    lock(&self.progress).values_mut().for_each(|progress| progress.next_try = None);
                }
                () = sleep_until(Instant::now() + LOOK_EVERY) => {}
            }
        }
    }

    /// Targets that are up and have hints here, and are not being handed any.
    fn due(&self) -> Vec<NodeId> {
        let liveness = self.parts.liveness.borrow().clone();
        let (mut progress, now) = (lock(&self.progress), Instant::now());
        let kept = self.parts.replica.hint_totals();
        let members = self.parts.layouts.current().map(|current| current.live().members());
        progress.retain(|target, progress| progress.running || kept.contains_key(target));
        let running = progress.values().filter(|progress| progress.running).count();
        let may_start = |target: &NodeId| {
            // A flapping node is called down for longer than it is away; who is connected is there.
            let up = liveness.get(target).is_some_and(|peer| peer.up) && !self.parts.peers.link_down(*target);
            let up = up || self.parts.peers.connected(*target);
            // What it owned is others' now.
            let up = up || members.as_ref().is_some_and(|members| !members.contains(target));
            let waits = progress.get(target).is_some_and(|progress| {
                let as_before = progress.stuck.is_none_or(|left| left == kept[target].count);
                progress.running || as_before && progress.next_try.is_some_and(|at| at > now)
            });
            up && !waits
        };
        kept.keys().copied().filter(may_start).take(TARGETS_AT_ONCE.saturating_sub(running)).collect()
    }

    fn ended(&self, target: NodeId, outcome: Result<u64, String>) {
        let mut progress = lock(&self.progress);
        let progress = progress.entry(target).or_default();
        progress.running = false;
        progress.stuck = None;
        match outcome {
            // What is left has grown meanwhile, or cannot be read here: a newer release has written it.
            Ok(0) => {
                progress.stuck = self.parts.replica.hint_totals().get(&target).map(|totals| totals.count);
                progress.failed.clear();
                progress.back_off();
            }
            Ok(_) => *progress = Progress { per_second: progress.per_second, ..Progress::default() },
            Err(why) => {
                tracing::debug!(%target, why, "handing hints over ended early");
                progress.failed = why;
                progress.back_off();
            }
        }
    }

    /// Hands over all that is kept for one target, a page after the other. Returns how many hints went.
    async fn deliver(&self, target: NodeId) -> Result<u64, String> {
        let Parts { replica, .. } = &self.parts;
        let (begun, mut delivered, mut oldest_ms) = (Instant::now(), 0u64, None::<u64>);
        let (mut refused, mut refused_why) = (0, String::new());
        // Who has failed is not asked again in this pass; what it is to have stays, and the others get theirs.
        let (mut failed, mut kept_back) = (BTreeMap::new(), 0);
        let mut after = lock(&self.progress).entry(target).or_default().after.take();
        let from_the_first = after.is_none();
        while refused < REFUSED_MAX && kept_back < KEPT_BACK_MAX {
            let page = replica.hint_page(target, after.as_ref(), PAGE_LIMIT, PAGE_BYTES).await;
            let HintPage { hints, next } = page.map_err(|refusal| refusal.to_string())?;
            after = next;
            if after.is_none() {
                break;
            }
            if hints.is_empty() {
                // A newer release has written all of these.
                continue;
            }
            let Some(current) = self.parts.layouts.current() else { return Err("there is no layout".into()) };
            dawdle!("handoff: a pause before a page is sent");
            let (mut pause, mut refusals, mut stay) = (Duration::ZERO, BTreeSet::new(), BTreeSet::new());
            for (receiver, page) in pages(&current, target, &hints) {
                let keys: Vec<Blob> = page.entries.iter().map(|(key, _)| key.clone()).collect();
                if failed.contains_key(&receiver) {
                    stay.extend(keys);
                    continue;
                }
                let handed = match self.hand_over(receiver, page).await {
                    Ok(handed) => handed,
                    Err(why) if receiver == target => {
                        sometimes!("handoff: a target failed in the middle", delivered > 0);
                        return Err(why);
                    }
                    Err(why) => {
                        tracing::debug!(%target, %receiver, why, "hints that others own now are not handed over");
                        failed.insert(receiver, why);
                        stay.extend(keys);
                        continue;
                    }
                };
                pause = pause.max(Duration::from_millis(handed.pause_ms.into()).min(PAUSE_MAX));
                sometimes!("handoff: a page was delivered", receiver == target);
                sometimes!("handoff: a hint went to those who own its key now", receiver != target);
                sometimes!("handoff: a part of a page was refused", !handed.refused.keys.is_empty());
                if refused_why.is_empty() {
                    refused_why = handed.refused.why;
                }
                refusals.extend(handed.refused.keys);
            }
            refused += refusals.len();
            kept_back += stay.len();
            for hint in hints {
                if refusals.contains(&hint.key) || stay.contains(&hint.key) {
                    oldest_ms = Some(oldest_ms.map_or(hint.since_ms, |oldest| oldest.min(hint.since_ms)));
                    continue;
                }
                let partition = current.partition_of(&hint.key);
                let owner = current.owners(partition).contains(&self.parts.me);
                let gone = replica.hint_delivered(partition, &hint.key, target, hint.digest, owner).await;
                if gone.map_err(|refusal| refusal.to_string())? {
                    delivered += 1;
                } else {
                    oldest_ms = Some(oldest_ms.map_or(hint.since_ms, |oldest| oldest.min(hint.since_ms)));
                }
            }
            let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
            lock(&self.progress).entry(target).or_default().per_second = delivered.saturating_mul(1_000_000) / micros;
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
        if let Some(oldest_ms) = oldest_ms.filter(|_| from_the_first && after.is_none()) {
            replica.note_oldest_hint(target, oldest_ms);
        }
        if delivered > 0 {
            tracing::info!(%target, delivered, refused, took = ?begun.elapsed(), "hints were handed over");
        }
        lock(&self.progress).entry(target).or_default().after = after;
        if let Some((receiver, why)) = failed.first_key_value() {
            return Err(format!("{kept_back} hints wait for {receiver}: {why}; {delivered} have gone"));
        }
        match refused {
            0 if from_the_first || delivered > 0 => Ok(delivered),
            // The hints before these were refused, and none is left behind them.
            0 => Err("it has refused hints that come before".into()),
            _ => Err(format!("it refused {refused} hints and took {delivered}: {refused_why}")),
        }
    }
}

impl Courier {
    /// Has a node merge a page, durably; it may be this one.
    async fn hand_over(&self, receiver: NodeId, page: HandOver) -> Result<HandedOff, String> {
        let Parts { replica, peers, .. } = &self.parts;
        if receiver != self.parts.me {
            if buggify!("handoff: an acknowledged page is sent again") {
                // As if the acknowledgement had been lost.
                let _ = peers.ask(receiver, 0, page.clone(), PAGE_TIMEOUT).await;
            }
            return peers.ask(receiver, 0, page, PAGE_TIMEOUT).await.map_err(|error| error.to_string());
        }
        let Some(current) = self.parts.layouts.current() else { return Err("there is no layout".into()) };
        let mut refused = Refused::default();
        for (key, record) in page.entries {
            let Some(record) = refused.decode(&key, &record)? else { continue };
            if let Err(refusal) = replica.merge(current.partition_of(&key), &key, record).await {
                refused.note(&key, refusal).map_err(|refusal| refusal.to_string())?;
            }
        }
        replica.sync().await.map_err(|refusal| refusal.to_string())?;
        Ok(HandedOff { pause_ms: 0, refused })
    }
}

/// Whom to hand hints for a target, and which of them: to the target itself those of partitions that it owns, and those of others to every
/// owner of the newest layout (rule L12).
fn pages(current: &Current, target: NodeId, hints: &[Hinted]) -> Vec<(NodeId, HandOver)> {
    let mut pages: BTreeMap<NodeId, Vec<(Blob, Blob)>> = BTreeMap::new();
    for hint in hints {
        let partition = current.partition_of(&hint.key);
        let newest = current.primaries(partition);
        let mut receivers = if newest.contains(&target) { vec![target] } else { newest.to_vec() };
        // One that still answers for an older layout needs it, too.
        if !receivers.contains(&target) && current.keepers(partition).contains(&target) {
            receivers.push(target);
        }
        for receiver in receivers {
            pages.entry(receiver).or_default().push((hint.key.clone(), Blob(hint.record.encode())));
        }
    }
    let label = current.label();
    pages.into_iter().map(|(receiver, entries)| (receiver, HandOver { label, entries })).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

/// How often the task looks for new hints of targets that are up; what a restart or a heal brings is noticed at once.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Targets that are handed hints at the same time: more of them would only share this node's disk.
const TARGETS_AT_ONCE: usize = 4;

/// A page: a few milliseconds of work for the target, so that it can set its pace.
const PAGE_LIMIT: usize = 128;
const PAGE_BYTES: usize = 512 << 10;

/// A pass ends when its target has refused so many: until there is room again at its end they would be sent for nothing.
const REFUSED_MAX: usize = 2 * PAGE_LIMIT;

/// A pass ends when so many hints stay because nodes that own their keys now cannot be reached; the next one goes on there.
const KEPT_BACK_MAX: usize = 64 * PAGE_LIMIT;

/// A page takes the target milliseconds; after so long it is stuck.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a target may ask for between two pages; it is a wish, and must not stop handoff.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// After a pass that brought nothing half a second, then twice as long each time up to 8 s; a target that comes back is tried at once.
const RETRY_MIN: Duration = Duration::from_millis(250);

#[cfg(test)]
#[path = "handoff_test.rs"]
mod tests;
