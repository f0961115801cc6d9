//! When a replica is later than it usually is, and whether asking another one is worth it.
//!
//! A hedge is sent when an answer is later than the 95th percentile of that replica's own answers, and only as long as hedges
//! stay below a twentieth of all reads (Dean and Barroso, "The Tail at Scale", 2013). The percentile is tracked in one number a
//! replica, by steps in proportion to it: up by 19 parts when an answer was later, down by 1 part when it was not, so that it
//! rests where one in twenty is later (the frugal streaming of Ma, Muthukrishnan and Sandler, 2013).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_wire::ids::NodeId;

/// What one node knows of how fast its peers answer reads, and its budget for asking twice.
#[derive(Debug)]
pub(super) struct Hedging {
    /// The 95th percentile of each replica's answers, in nanoseconds; at most one for each member.
    slowest_usual_ns: Mutex<BTreeMap<NodeId, u64>>,
    /// Thousandths of a hedge.
    budget_milli: AtomicU64,
}

impl Hedging {
    pub(super) fn new() -> Self {
        Self { slowest_usual_ns: Mutex::default(), budget_milli: AtomicU64::new(BUDGET_MAX_MILLI) }
    }

    /// A replica has answered, or has not for so long.
    pub(super) fn note(&self, node: NodeId, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mut all = self.slowest_usual_ns.lock().expect("nothing panics while it is locked");
        let usual = all.entry(node).or_insert(took.saturating_mul(2));
        // A sixteenth of the way for a late one, so that a replica that becomes slow is known as slow after a few reads.
        let part = (*usual / (16 * 19)).max(1);
        *usual = if took > *usual { usual.saturating_add(19 * part) } else { usual.saturating_sub(part) };
    }

    /// How long an answer of the slowest of these usually takes at the most; nothing is known of a new one.
    pub(super) fn usual(&self, nodes: impl IntoIterator<Item = NodeId>) -> Option<Duration> {
        let all = self.slowest_usual_ns.lock().expect("nothing panics while it is locked");
        nodes.into_iter().filter_map(|node| all.get(&node).copied()).max().map(Duration::from_nanos)
    }

    /// A read begins: it pays a twentieth of a hedge.
    pub(super) fn deposit(&self) {
        // Losing a part of a race between two reads is no harm.
        let budget = self.budget_milli.load(Ordering::Relaxed);
        self.budget_milli.store((budget + PER_READ_MILLI).min(BUDGET_MAX_MILLI), Ordering::Relaxed);
    }

    /// Takes a hedge from the budget if there is one.
    pub(super) fn withdraw(&self) -> bool {
        let take = |budget: u64| budget.checked_sub(1000);
        self.budget_milli.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// A twentieth.
const PER_READ_MILLI: u64 = 50;
/// Hedges that quiet times have saved up: enough for a replica's short stall, too few to double a load.
const BUDGET_MAX_MILLI: u64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("legal")
    }

    #[test]
    fn the_tracked_number_rests_near_the_95th_percentile() {
        let (hedging, random) = (Hedging::new(), quorate_wire::random::Random::from_seed(1));
        let us = Duration::from_micros;
        for _ in 0..20_000 {
            hedging.note(node("a"), us(1000 + random.below(1000)));
        }
        let usual = hedging.usual([node("a"), node("stranger")]).expect("it has answered");
        assert!((us(1850)..us(2150)).contains(&usual), "{usual:?}");
        assert_eq!(hedging.usual([node("stranger")]), None);
        // A replica that becomes ten times as slow is known as such after some dozens of reads.
        for _ in 0..60 {
            hedging.note(node("a"), us(15_000));
        }
        assert!(hedging.usual([node("a")]).expect("it has answered") > us(14_000));
    }

    #[test]
    fn hedges_stay_below_a_twentieth_of_the_reads() {
        let hedging = Hedging::new();
        let saved = (0..).take_while(|_| hedging.withdraw()).count();
        assert_eq!(saved as u64, BUDGET_MAX_MILLI / 1000);
        let mut hedges = 0;
        for _ in 0..1000 {
            hedging.deposit();
            hedges += u32::from(hedging.withdraw());
        }
        assert_eq!(hedges, 50);
    }
}
