//! Which operations were superseded in one partition, as far as the node remembers (rule V6).
//!
//! An operation is remembered by its first dot for [`OPERATION_WINDOW`], oldest out first. What is remembered lies in memory
//! only, so that nothing is known of what was superseded before the process started. Times are durations since that start.
//!
//! Law: an operation that is remembered is never minted anew, and a memory that may lack an operation says so
//! ([`Operations::remembers_since`], [`Operations::whole_since`]).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use quorate_wire::ids::OpId;

use super::version::Dot;

/// The superseded operations of one partition and their dots. Keys are known by a 128-bit hash.
#[derive(Debug, Clone, Default)]
pub struct Operations {
    known: BTreeMap<(u128, OpId), Remembered>,
    /// In the order in which they were remembered. What was forgotten in between is skipped by its number.
    order: VecDeque<(u64, (u128, OpId))>,
    next: u64,
    /// Every operation that was superseded since then is remembered, but for those that were [forgotten](Self::forget_key).
    complete_since: Duration,
    /// When an operation was last forgotten because its record was lost or removed.
    forgotten: Duration,
}

#[derive(Debug, Clone)]
struct Remembered {
    dot: Dot,
    until: Duration,
    number: u64,
}

impl Operations {
    /// Whether an operation whose first attempt was sent this long ago would be known, had it been superseded here.
    pub fn remembers_since(&self, first_sent: Duration, now: Duration) -> bool {
        let ago = first_sent.saturating_add(TRAVEL_MAX);
        ago < OPERATION_WINDOW
            && now.checked_sub(ago).is_some_and(|since| since >= self.complete_since)
            && self.whole_since(first_sent, now)
    }

    /// Whether this process was up when the first attempt was sent, however long that took to arrive, and nothing of the partition
    /// was lost or removed since.
    pub fn whole_since(&self, first_sent: Duration, now: Duration) -> bool {
        let since = now.checked_sub(first_sent.saturating_add(TRAVEL_MAX));
        since.is_some_and(|since| since >= self.forgotten)
    }

    /// The dot of a superseded operation.
    pub fn dot_of(&self, key: u128, op_id: &OpId, now: Duration) -> Option<Dot> {
        let remembered = self.known.get(&(key, *op_id))?;
        (now < remembered.until).then_some(remembered.dot)
    }

    /// Remembers that an operation was superseded, and [trims](Self::trim) the memory. To be called only after the record that shows
    /// it is written.
    pub fn remember(&mut self, key: u128, op_id: OpId, dot: Dot, now: Duration, most: usize) -> u64 {
        let entry = (key, op_id);
        if self.known.get(&entry).is_some_and(|known| now < known.until) {
            return 0;
        }
        let number = self.next;
        self.next += 1;
        self.known.insert(entry, Remembered { dot, until: now + OPERATION_WINDOW, number });
        self.order.push_back((number, entry));
        self.trim(now, most)
    }

    /// Forgets what is older than the window, and the oldest operations beyond `most`; how many of them went before their time.
    pub fn trim(&mut self, now: Duration, most: usize) -> u64 {
        let mut evicted = 0;
        while let Some((number, oldest)) = self.order.front() {
            let current = self.known.get(oldest).filter(|known| known.number == *number);
            let expired = current.is_none_or(|known| known.until <= now);
            if !expired && self.order.len() <= most {
                break;
            }
            if let Some(current) = current {
                if !expired {
                    evicted += 1;
                    let remembered = current.until.saturating_sub(OPERATION_WINDOW);
                    self.complete_since = self.complete_since.max(remembered);
                }
                self.known.remove(oldest);
            }
            self.order.pop_front();
        }
        evicted
    }

    /// A record of this key is lost or removed, and with it what it held of operations.
    pub fn forget_key(&mut self, key: u128, now: Duration) {
        self.forgotten = now;
        let entries = self.known.range((key, OpId(0))..=(key, OpId(u128::MAX)));
        let entries: Vec<_> = entries.map(|(entry, _)| *entry).collect();
        for entry in entries {
            self.known.remove(&entry);
        }
    }

    /// Any record of the partition may be lost or removed.
    pub fn forget_all(&mut self, now: Duration) {
        self.forgotten = now;
        self.known.clear();
        self.order.clear();
    }

    /// How many operations are remembered.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether no operation is remembered.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// How many places they take: what is forgotten before its time keeps its place until the window is over.
    pub fn room_taken(&self) -> usize {
        self.order.len()
    }
}

/// How long a retry is on its way at most, after it was said how long ago the first attempt was sent: the longest silence that a
/// connection outlives.
pub const TRAVEL_MAX: Duration = Duration::from_secs(30);
/// How long a superseded operation is remembered. Clients give up at half of it.
pub const OPERATION_WINDOW: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::version::tests::dot;
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_operation_is_remembered_by_its_first_dot_for_its_window() {
        let mut operations = Operations::default();
        let start = seconds(5);
        operations.remember(1, OpId(1), dot(1, 1), start, 100);
        operations.remember(1, OpId(1), dot(1, 2), start + OPERATION_WINDOW / 2, 100);
        let last = start + OPERATION_WINDOW - Duration::from_nanos(1);
        assert_eq!(operations.dot_of(1, &OpId(1), last), Some(dot(1, 1)));
        assert_eq!(operations.dot_of(2, &OpId(1), last), None, "another key's");
        let end = start + OPERATION_WINDOW;
        assert_eq!(operations.dot_of(1, &OpId(1), end), None);
        operations.remember(1, OpId(1), dot(1, 3), end, 100);
        assert_eq!(operations.dot_of(1, &OpId(1), end), Some(dot(1, 3)));
        // What is older than the window goes as soon as another operation is remembered.
        operations.remember(1, OpId(2), dot(1, 4), end + OPERATION_WINDOW, 100);
        assert_eq!((operations.len(), operations.room_taken()), (1, 1));
        assert_eq!(operations.trim(end + 2 * OPERATION_WINDOW, 100), 0, "its time was over");
        assert!(operations.is_empty() && operations.room_taken() == 0);
    }

    #[test]
    fn remembered_operations_are_bounded_and_the_oldest_go_first() {
        let mut operations = Operations::default();
        let evicted: u64 = (0..103).map(|op| operations.remember(1, OpId(op), dot(0, 1), seconds(1), 100)).sum();
        assert_eq!((operations.len(), operations.room_taken(), evicted), (100, 100, 3));
        assert_eq!(operations.dot_of(1, &OpId(2), seconds(1)), None);
        assert_eq!(operations.dot_of(1, &OpId(3), seconds(1)), Some(dot(0, 1)));
        operations.forget_key(1, seconds(1));
        assert_eq!((operations.len(), operations.room_taken()), (0, 100));
        assert_eq!(operations.remember(1, OpId(3), dot(0, 1), seconds(1), 100), 0, "places of forgotten ones go first");
        assert_eq!((operations.len(), operations.room_taken()), (1, 1));
        assert_eq!(operations.remember(1, OpId(4), dot(0, 2), seconds(1), 0), 2);
        assert!(operations.is_empty());
    }

    #[test]
    fn what_had_to_be_forgotten_for_want_of_room_is_not_taken_for_unknown() {
        let mut operations = Operations::default();
        operations.remember(1, OpId(1 << 64), dot(0, 1), seconds(100), 10);
        for op in 0..10 {
            operations.remember(1, OpId(op), dot(0, 1), seconds(101), 10);
        }
        let now = seconds(200);
        let ago = |at: u64| now - TRAVEL_MAX - seconds(at);
        assert!(operations.remembers_since(ago(100), now) && !operations.remembers_since(ago(99), now));
        assert!(operations.whole_since(ago(99), now), "its record is not lost");
    }

    #[test]
    fn what_is_forgotten_of_a_key_or_a_partition_is_all_of_it() {
        let least_and_most = [0, u128::MAX];
        let all = || {
            let mut operations = Operations::default();
            for (key, op) in least_and_most.iter().flat_map(|key| least_and_most.map(|op| (*key, op))) {
                operations.remember(key, OpId(op), dot(0, 1), Duration::ZERO, 100);
            }
            operations
        };
        let now = TRAVEL_MAX + seconds(100);
        let remembers = |operations: &Operations| operations.remembers_since(seconds(90), now);
        let mut operations = all();
        assert!(remembers(&operations));
        operations.forget_key(0, seconds(20));
        assert_eq!(operations.len(), 2);
        assert_eq!(operations.dot_of(u128::MAX, &OpId(0), now), Some(dot(0, 1)));
        assert!(!remembers(&operations));
        assert!(operations.remembers_since(seconds(80), now), "it was sent after that");
        let mut operations = all();
        operations.forget_all(seconds(20));
        assert!(operations.is_empty() && operations.room_taken() == 0 && !remembers(&operations));
    }

    #[test]
    fn nothing_is_known_of_the_time_before_the_start_or_the_window() {
        let operations = Operations::default();
        let now = TRAVEL_MAX + seconds(9);
        assert!(operations.remembers_since(seconds(9), now) && operations.whole_since(seconds(9), now));
        assert!(!operations.remembers_since(seconds(10), now) && !operations.whole_since(seconds(10), now));
        assert!(!operations.whole_since(Duration::MAX, now), "of unknown age");
        let (now, window) = (2 * OPERATION_WINDOW, OPERATION_WINDOW - TRAVEL_MAX);
        assert!(!operations.remembers_since(window, now) && operations.whole_since(window, now));
        assert!(operations.remembers_since(window - seconds(1), now));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Remember(u8, u8),
        ForgetKey(u8),
        ForgetAll,
        Trim(usize),
        Wait(u16),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..3u8, 0..6u8).prop_map(|(key, op)| Step::Remember(key, op)),
            1 => (0..3u8).prop_map(Step::ForgetKey),
            1 => Just(Step::ForgetAll),
            1 => (0..8usize).prop_map(Step::Trim),
            3 => (1..200u16).prop_map(Step::Wait),
        ];
        vec(step, 0..60)
    }

    proptest! {
        /// Rule V6: a memory that says that it would know an operation does know it, if it was superseded in the meantime.
        #[test]
        fn whatever_it_claims_to_remember_it_remembers(steps in steps()) {
            let mut operations = Operations::default();
            let mut now = Duration::ZERO;
            // When each operation was first superseded, whatever was forgotten since: its first attempt was sent before.
            let mut superseded: BTreeMap<(u8, u8), Duration> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Remember(key, op) => {
                        operations.remember(key.into(), OpId(op.into()), dot(0, 1), now, 8);
                        superseded.entry((key, op)).or_insert(now);
                    }
                    Step::ForgetKey(key) => operations.forget_key(key.into(), now),
                    Step::ForgetAll => operations.forget_all(now),
                    Step::Trim(most) => drop(operations.trim(now, most)),
                    Step::Wait(by) => now += seconds(by.into()),
                }
                prop_assert!(operations.room_taken() <= 8 && operations.len() <= operations.room_taken());
                for ((key, op), at) in &superseded {
                    let known = operations.dot_of((*key).into(), &OpId((*op).into()), now).is_some();
                    for sent in [*at, at.saturating_sub(seconds(50))] {
                        let claims = operations.remembers_since(now - sent, now);
                        prop_assert!(known || !claims, "{key}/{op} of {at:?} at {now:?}");
                    }
                }
            }
        }
    }
}
