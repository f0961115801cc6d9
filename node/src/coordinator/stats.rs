//! Counters of requests. A request counts its outcome where it was coordinated or refused; forwarding has counters of its own.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::Sample;

/// What one node's coordinator has done since it started.
#[derive(Debug, Default)]
pub(crate) struct RequestStats {
    pub(super) puts_ok: Counter,
    pub(super) puts_not_applied: Counter,
    pub(super) puts_indeterminate: Counter,
    pub(super) gets_ok: Counter,
    pub(super) gets_failed: Counter,
    pub(super) scans_ok: Counter,
    pub(super) scans_failed: Counter,
    pub(super) hedges: Counter,
    pub(super) stale_replicas: Counter,
    pub(super) repaired_replicas: Counter,
    pub(super) repairs_skipped: Counter,
    pub(super) fallback_coordinated: Counter,
    pub(super) degraded: Counter,
    pub(super) hints_unplaced: Counter,
    pub(super) forwards: Counter,
    pub(super) forwarded_in: Counter,
}

/// Only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl RequestStats {
    /// All counters, in a fixed order.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let families = [
            (
                "puts",
                "outcome",
                "Writes and deletes: acknowledged by W replicas, refused before anything happened, or with an unknown outcome",
                vec![
                    ("ok", &self.puts_ok),
                    ("not_applied", &self.puts_not_applied),
                    ("indeterminate", &self.puts_indeterminate),
                ],
            ),
            (
                "gets",
                "outcome",
                "Reads, of present and absent keys: answered by R replicas, or by too few",
                vec![("ok", &self.gets_ok), ("failed", &self.gets_failed)],
            ),
            (
                "scans",
                "outcome",
                "Pages of scans: answered by enough replicas of each key, or by too few",
                vec![("ok", &self.scans_ok), ("failed", &self.scans_failed)],
            ),
        ];
        let families = families.into_iter().flat_map(|(name, label, help, members)| {
            members.into_iter().map(move |(value, counter)| Sample::counter(name, help, counter.get()).of(label, value))
        });
        let single = [
            ("hedges", "Reads that asked one more replica because one was late", &self.hedges),
            ("stale_replicas", "Replicas that a read found to be behind", &self.stale_replicas),
            ("repaired_replicas", "Replicas that read repair has brought up to date", &self.repaired_replicas),
            ("repairs_skipped", "Read repairs left out because too many were under way", &self.repairs_skipped),
            (
                "fallback_coordinated",
                "Requests coordinated here because no primary could be reached",
                &self.fallback_coordinated,
            ),
            ("degraded", "Writes and reads answered with the help of fallbacks", &self.degraded),
            ("hints_unplaced", "Primaries that missed a write nobody would keep for them", &self.hints_unplaced),
            ("forwards", "Requests passed on to a primary", &self.forwards),
            ("forwarded_in", "Requests that another node passed on to this one", &self.forwarded_in),
        ];
        let single = single.into_iter().map(|(name, help, counter)| Sample::counter(name, help, counter.get()));
        families.chain(single).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_counter_has_a_name_of_its_own() {
        let stats = RequestStats::default();
        stats.hedges.add(2);
        stats.hedges.add(1);
        let snapshot = stats.samples();
        assert_eq!(snapshot.iter().map(Sample::full_name).collect::<BTreeSet<_>>().len(), snapshot.len());
        let counted: Vec<_> =
            snapshot.iter().filter(|sample| sample.value > 0).map(|sample| (sample.name, sample.value)).collect();
        assert_eq!(counted, [("hedges", 3)]);
    }
}
