//! Merging the pages that R replicas gave of one partition.
//!
//! A page says: these are all my records between `after` and my last key (or, when it is done, the partition's end). So only
//! what *every* page covers has been read from R replicas, and only that is emitted:
//!
//! ```text
//!   after                              horizon
//!     |  k1   k2        k4   k5           |         first page, full: ends at k5
//!     |  k1        k3   k4   k5   k6      |         second page, full: ends at k6
//!     |  k1        k3                     |         third page, done: covers everything
//!        └───── emitted ──────┘  k6 comes with the next page, which begins after k5
//! ```
//!
//! Order is (key hash, key), the order on disk. A deleted key is left out and still moves the cursor, so that a partition of
//! tombstones ends. The cursor is the last key that was covered.
//!
//! Partitions may be many and small. So the pages of several, in their order, are joined into one that is full ([`Joined`]).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use quorate_wire::ScanPosition;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{Partition, key_hash};

use super::record::Record;

/// A place in a partition: hash, then key.
type Position = (u64, Blob);

/// One replica's page, known to be in order.
#[derive(Debug, Clone)]
pub struct Page {
    entries: Vec<(Position, Record)>,
    done: bool,
}

/// What R pages say together.
#[derive(Debug, Clone, PartialEq)]
pub struct MergedPage {
    /// Live records in order, each the join of what all R replicas hold.
    pub entries: Vec<(Blob, Record)>,
    /// Where the next page begins; nothing at the partition's end.
    pub next: Option<Blob>,
    /// Keys and values that were looked at, in bytes, also of those that were not wanted.
    pub bytes: usize,
}

/// Pages of partitions that follow each other, on their way into one page.
#[derive(Debug)]
pub struct Joined {
    /// Up to here everything is in.
    next: Option<ScanPosition>,
    until: Partition,
    limit: usize,
    bytes_max: usize,
    /// Values do not count.
    keys_only: bool,
    entries: Vec<(Blob, Record)>,
    /// Of the entries.
    bytes: usize,
    /// What the entries take of the memory.
    held: usize,
    /// The most entries that one partition had so far, and the most bytes that were read of one; nothing before the first one.
    most: Option<(usize, usize)>,
    ended: bool,
}

impl Joined {
    /// At most `limit` records, and no more once they have passed `bytes_max`, or their keys if only those are wanted.
    pub fn new(from: ScanPosition, until: Partition, limit: usize, bytes_max: usize, keys_only: bool) -> Self {
        assert!(limit > 0 && from.partition < until, "a page of nothing would never end");
        let (next, entries) = (Some(from), Vec::new());
        Self { next, until, limit, bytes_max, keys_only, entries, bytes: 0, held: 0, most: None, ended: false }
    }

    /// What to read next, all of it at once: one partition at first, then as many as are expected to fit into the page and
    /// into memory, at most `width`. Nothing if the page is full or everything was read.
    pub fn asks(&self, width: usize) -> Vec<ScanPosition> {
        let Some(next) = self.next.as_ref().filter(|_| !self.ended) else { return Vec::new() };
        let fit = self.most.map_or(1, |(records, bytes)| {
            (self.left() / records.max(1)).min(self.bytes_max / bytes.max(1)).clamp(1, width)
        });
        let others = (next.partition.0 + 1..self.until.0).map(|p| ScanPosition::start_of(Partition(p)));
        [next.clone()].into_iter().chain(others).take(fit).collect()
    }

    /// How many records have room.
    pub fn left(&self) -> usize {
        self.limit - self.entries.len()
    }

    /// What came of one that was asked for. They are added in their order; one that does not follow on what is in is dropped,
    /// and will be asked for again.
    pub fn add(&mut self, asked: &ScanPosition, page: MergedPage) {
        if self.ended || self.next.as_ref() != Some(asked) {
            return;
        }
        let MergedPage { mut entries, next, bytes } = page;
        let (most_records, most_bytes) = self.most.unwrap_or_default();
        self.most = Some((most_records.max(entries.len()), most_bytes.max(bytes)));
        let cut = entries.len() > self.left();
        entries.truncate(self.left());
        let partition = asked.partition;
        let after = match entries.last() {
            Some((last, _)) if cut => Some(last.clone()),
            None if cut => asked.after.clone(),
            _ => next,
        };
        if self.keys_only {
            // Thousands of keys fit into a page, and all of their values need not fit anywhere.
            entries.iter_mut().for_each(|(_, record)| *record = Record::default());
        }
        let values = |record: &Record| record.siblings.values().map(|sibling| sibling.value.len()).sum::<usize>();
        let len = entries.iter().map(|(key, record)| key.len() + values(record)).sum::<usize>();
        if len < bytes / 2 {
            // They are slices of what replicas have sent, and would keep all of it.
            for (key, record) in &mut entries {
                *key = Blob::copy_from(key);
                record.siblings.values_mut().for_each(|sibling| sibling.value = Blob::copy_from(&sibling.value));
            }
        }
        self.bytes += len;
        self.held += entries.iter().map(|(key, record)| key.len() + record.encoded_len()).sum::<usize>();
        self.entries.append(&mut entries);
        let following = Partition(partition.0 + 1);
        self.next = match after {
            Some(_) => Some(ScanPosition { partition, after }),
            None if cut => Some(ScanPosition::start_of(partition)),
            None => Some(ScanPosition::start_of(following)).filter(|_| following < self.until),
        };
        self.ended = self.left() == 0 || self.bytes >= self.bytes_max;
    }

    /// How many bytes what is in takes of the memory.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether anything was read.
    pub fn has_moved(&self) -> bool {
        self.most.is_some()
    }

    /// No more is read: what is in is the page.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The page, and where the next one begins.
    pub fn into_page(self) -> (Vec<(Blob, Record)>, Option<ScanPosition>) {
        (self.entries, self.next)
    }
}

impl Page {
    /// A page as a replica gave it.
    ///
    /// # Errors
    /// When its keys are out of order or not after `after`, or when it is neither done nor holds anything: a scan would
    /// then skip records, or never end.
    pub fn new(entries: Vec<(Blob, Record)>, done: bool, after: Option<&Blob>) -> Result<Self, String> {
        let entries: Vec<(Position, Record)> =
            entries.into_iter().map(|(key, record)| ((key_hash(&key), key), record)).collect();
        let after = after.map(|key| (key_hash(key), key.clone()));
        let ordered = entries.windows(2).all(|pair| pair[0].0 < pair[1].0);
        match entries.first() {
            None if !done => Err("an empty page that is not the last".into()),
            Some((first, _)) if !ordered || after.is_some_and(|after| *first <= after) => {
                Err("a page that is out of order".into())
            }
            _ => Ok(Self { entries, done }),
        }
    }

    /// How many records it has, deleted ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Up to where it covers its replica's records; nothing: to the end.
    fn horizon(&self) -> Option<&Position> {
        if self.done { None } else { self.entries.last().map(|(position, _)| position) }
    }
}

/// Merges pages that begin at the same place. At most `limit` live records with a wanted key are emitted, and no more once their
/// values have passed `bytes_max`; one is always emitted if there is one, so that a scan goes on.
pub fn merge_pages(pages: Vec<Page>, limit: usize, bytes_max: usize, wanted: impl Fn(&[u8]) -> bool) -> MergedPage {
    assert!(limit > 0, "a page of nothing would never end");
    let horizon = pages.iter().filter_map(Page::horizon).min().cloned();
    let covered = |position: &Position| horizon.as_ref().is_none_or(|horizon| position <= horizon);
    let mut merged: BTreeMap<Position, Record> = BTreeMap::new();
    for (position, record) in pages.into_iter().flat_map(|page| page.entries) {
        if !covered(&position) {
            continue;
        }
        match merged.entry(position) {
            Entry::Vacant(entry) => _ = entry.insert(record),
            Entry::Occupied(mut entry) if *entry.get() != record => _ = entry.get_mut().merge(&record, &|_| false),
            Entry::Occupied(_) => {}
        }
    }
    let (mut entries, mut bytes, mut emitted) = (Vec::new(), 0, 0);
    let mut last = None;
    for ((_, key), record) in merged {
        let live = !record.siblings.is_empty() && wanted(&key);
        if live && (entries.len() == limit || (emitted >= bytes_max && !entries.is_empty())) {
            return MergedPage { entries, next: last, bytes };
        }
        last = Some(key.clone());
        let len = key.len() + record.siblings.values().map(|sibling| sibling.value.len()).sum::<usize>();
        bytes += len;
        if live {
            emitted += len;
            entries.push((key, record));
        }
    }
    MergedPage { entries, next: horizon.map(|(_, key)| key), bytes }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use quorate_wire::ids::{NodeId, OpId};

    use super::super::record::Sibling;
    use super::super::version::{Actor, Context, Dot};
    use super::*;

    fn record(counter: u64, live: bool) -> Record {
        let dot = Dot { actor: Actor { node: NodeId::new("a").expect("legal"), incarnation: 1 }, counter };
        let mut context = Context::new();
        context.insert(dot);
        let value = Blob(Bytes::from_static(b"0123456789"));
        let sibling = Sibling { value, op_id: OpId(counter.into()), value_hash: counter, value_type: 0, time: 0 };
        Record { siblings: live.then_some((dot, sibling)).into_iter().collect(), context }
    }

    /// Ten keys in the order of their hashes.
    fn keys() -> Vec<Blob> {
        let mut keys: Vec<Blob> = (0..10).map(|i| Blob(Bytes::from(format!("key {i}")))).collect();
        keys.sort_by_key(|key| (key_hash(key), key.clone()));
        keys
    }

    fn page(which: &[usize], done: bool) -> Page {
        let keys = keys();
        let entries = which.iter().map(|index| (keys[*index].clone(), record(*index as u64 + 1, true))).collect();
        Page::new(entries, done, None).expect("in order")
    }

    fn merge(pages: Vec<Page>, limit: usize, bytes_max: usize) -> MergedPage {
        merge_pages(pages, limit, bytes_max, |_| true)
    }

    fn emitted(merged: &MergedPage) -> Vec<usize> {
        let index = |key: &Blob| keys().iter().position(|known| known == key).expect("one of the ten");
        merged.entries.iter().map(|(key, _)| index(key)).collect()
    }

    #[test]
    fn only_what_every_page_covers_is_emitted() {
        let merged = merge(vec![page(&[0, 1, 3, 4], false), page(&[0, 2, 3, 4, 5], false)], 100, 1 << 20);
        assert_eq!(emitted(&merged), [0, 1, 2, 3, 4]);
        assert_eq!(merged.next, Some(keys()[4].clone()));
        let merged = merge(vec![page(&[0, 1], false), page(&[], true)], 100, 1 << 20);
        assert_eq!(emitted(&merged), [0, 1], "a page that is done covers everything");
        assert_eq!(merged.next, Some(keys()[1].clone()));
        let merged = merge(vec![page(&[0, 1], true), page(&[9], true)], 100, 1 << 20);
        assert_eq!((emitted(&merged), merged.next), (vec![0, 1, 9], None));
    }

    #[test]
    fn deleted_keys_are_left_out_and_move_the_cursor() {
        let keys = keys();
        let dead = |which: &[usize]| {
            which.iter().map(|index| (keys[*index].clone(), record(*index as u64 + 1, false))).collect::<Vec<_>>()
        };
        let full = Page::new(dead(&[0, 1, 2]), false, None).expect("in order");
        let merged = merge(vec![full.clone(), page(&[0, 1, 2], true)], 1, 1);
        assert_eq!((merged.entries.len(), merged.next), (0, Some(keys[2].clone())), "deletes win where they are known");
        let last = Page::new(dead(&[4]), true, Some(&keys[2])).expect("in order");
        let merged = merge(vec![last], 1, 1);
        assert_eq!((merged.entries.len(), merged.next), (0, None));
    }

    #[test]
    fn limits_end_a_page_before_the_next_live_record() {
        let merged = merge(vec![page(&[0, 1, 2], true), page(&[3, 4], true)], 2, 1 << 20);
        assert_eq!((emitted(&merged), merged.next), (vec![0, 1], Some(keys()[1].clone())));
        let merged = merge(vec![page(&[0, 1, 2], true)], 100, 20);
        assert_eq!((emitted(&merged), merged.next), (vec![0, 1], Some(keys()[1].clone())), "15 bytes each");
        let merged = merge(vec![page(&[0, 1, 2], true)], 100, 30);
        assert_eq!(emitted(&merged), [0, 1], "two fill it");
        let merged = merge(vec![page(&[0, 1, 2], true)], 100, 31);
        assert_eq!(emitted(&merged), [0, 1, 2], "two leave a byte");
        let merged = merge(vec![page(&[5], true)], 1, 0);
        assert_eq!((emitted(&merged), merged.next), (vec![5], None), "one record always fits");
    }

    #[test]
    fn what_replicas_have_taken_beside_each_other_is_shown_beside_each_other() {
        let key = keys()[0].clone();
        let of = |counter| Page::new(vec![(key.clone(), record(counter, true))], true, None).expect("in order");
        let merged = merge(vec![of(1), of(2), of(1)], 1, 1 << 20);
        assert_eq!(merged.entries[0].1.siblings.len(), 2);
        assert_eq!((of(1).len(), of(1).is_empty()), (1, false));
        let none = Page::new(vec![], true, None).expect("the last one");
        assert_eq!((none.len(), none.is_empty()), (0, true));
    }

    #[test]
    fn keys_that_are_not_wanted_are_left_out_and_move_the_cursor() {
        let keys = keys();
        let merged = merge_pages(vec![page(&[0, 1, 2], false)], 100, 1 << 20, |key| key == &keys[1][..]);
        assert_eq!((emitted(&merged), merged.next), (vec![1], Some(keys[2].clone())));
        assert!(merged.bytes > 3 * 10, "all three were looked at");
    }

    #[test]
    fn what_is_not_wanted_of_a_page_is_not_kept() {
        let frame = Bytes::from(vec![b'v'; 10_000]);
        let page = || {
            let mut record = record(1, true);
            record.siblings.values_mut().for_each(|sibling| sibling.value = Blob(frame.slice(..1_000)));
            let entries = vec![(Blob(frame.slice(9_000..9_010)), record)];
            MergedPage { entries, next: None, bytes: 10_000 }
        };
        let joined = |keys_only| {
            let start = ScanPosition::start_of(Partition(0));
            let mut joined = Joined::new(start.clone(), Partition(1), 10, usize::MAX, keys_only);
            joined.add(&start, page());
            joined
        };
        let (whole, keys) = (joined(false), joined(true));
        assert!((1_010..1_100).contains(&whole.held()) && keys.held() < 50, "{} {}", whole.held(), keys.held());
        for entries in [whole.into_page().0, keys.into_page().0] {
            let values = entries.iter().flat_map(|(_, record)| record.siblings.values()).map(|sibling| &sibling.value);
            let kept: Vec<&Blob> = entries.iter().map(|(key, _)| key).chain(values).collect();
            assert!(kept.iter().all(|blob| !frame.as_ptr_range().contains(&blob.as_ptr())), "slices keep all of it");
        }
    }

    #[test]
    fn pages_that_would_skip_or_never_end_are_refused() {
        let keys = keys();
        let entry = |index: usize| (keys[index].clone(), record(1, true));
        assert!(Page::new(vec![], false, None).is_err());
        assert!(Page::new(vec![entry(1), entry(0)], false, None).is_err());
        assert!(Page::new(vec![entry(1), entry(1)], true, None).is_err());
        assert!(Page::new(vec![entry(1), entry(2)], true, Some(&keys[1])).is_err());
        assert!(Page::new(vec![entry(2)], true, Some(&keys[1])).is_ok());
    }

    proptest! {
        /// Whatever each replica holds and wherever its pages end, a scan by cursor shows every key that is live in
        /// the join of all replicas once, in order, and nothing else.
        #[test]
        fn a_scan_by_cursor_sees_every_live_key_once(
            held in proptest::collection::vec(proptest::collection::vec(0u8..3, 10), 1..4),
            sizes in proptest::collection::vec(1usize..5, 4),
            limit in 1usize..6,
        ) {
            let keys = keys();
            let mut after: Option<usize> = None;
            let mut seen = Vec::new();
            for round in 0.. {
                prop_assert!(round <= 10, "every page moves the cursor");
                let from = after.map_or(0, |index| index + 1);
                let pages = held.iter().enumerate().map(|(replica, held)| {
                    let size = sizes[(replica + round) % sizes.len()];
                    let mut entries: Vec<_> = (from..10)
                        .filter(|index| held[*index] > 0)
                        .map(|index| (keys[index].clone(), record(index as u64 + 1, held[index] == 1)))
                        .collect();
                    let done = entries.len() <= size;
                    entries.truncate(size);
                    Page::new(entries, done, after.map(|index| &keys[index])).expect("in order")
                });
                let merged = merge(pages.collect(), limit, 1 << 20);
                prop_assert!(merged.entries.len() <= limit);
                seen.extend(emitted(&merged));
                let Some(next) = merged.next else { break };
                after = keys.iter().position(|key| *key == next);
            }
            let live = |index: &usize| {
                held.iter().any(|held| held[*index] == 1) && held.iter().all(|held| held[*index] != 2)
            };
            prop_assert_eq!(seen, (0..10).filter(live).collect::<Vec<_>>());
        }

        /// Whatever the partitions hold and wherever a page ends, the joined pages show every record once, in order; each is
        /// full, or the last one; and no more is read at once than there is room for.
        #[test]
        fn joined_pages_show_every_record_once(
            held in proptest::collection::vec(0usize..12, 1..40),
            limit in 1usize..20,
            width in 1usize..9,
            part in 1usize..6,
        ) {
            let key = |partition: usize, index: usize| Blob(Bytes::from(format!("{partition:03}/{index:03}")));
            let until = Partition(held.len() as u16);
            let (mut from, mut seen) = (Some(ScanPosition::start_of(Partition(0))), Vec::new());
            while let Some(start) = from {
                let mut joined = Joined::new(start, until, limit, usize::MAX, false);
                loop {
                    let asks = joined.asks(width);
                    if asks.is_empty() { break }
                    prop_assert!(asks.len() <= width && asks.iter().all(|ask| ask.partition < until));
                    for ask in &asks {
                        let partition = usize::from(ask.partition.0);
                        let rest = (0..held[partition]).map(|index| key(partition, index));
                        let mut rest: Vec<_> = rest.filter(|key| ask.after.as_ref().is_none_or(|after| key > after)).collect();
                        let more = rest.len() > part;
                        rest.truncate(part);
                        let next = rest.last().cloned().filter(|_| more);
                        let entries: Vec<_> = rest.into_iter().map(|key| (key, record(1, true))).collect();
                        joined.add(ask, MergedPage { bytes: entries.len(), entries, next });
                    }
                }
                let (entries, next) = joined.into_page();
                prop_assert!(entries.len() == limit || next.is_none());
                seen.extend(entries.into_iter().map(|(key, _)| key));
                from = next;
            }
            let all = held.iter().enumerate().flat_map(|(partition, count)| (0..*count).map(move |index| key(partition, index)));
            prop_assert_eq!(seen, all.collect::<Vec<_>>());
        }
    }
}
