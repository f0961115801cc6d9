//! The replica over a store in memory: mints, merges, limits, failures, and many writers at once.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::recovery::{Doubt, Reason};
use crate::store::{DiskReserve, Durability, MemoryStore, Space, Stats};
use quorate_core::operations::{OPERATION_WINDOW, TRAVEL_MAX};
use quorate_core::version::Actor;
use quorate_wire::{BucketId, Key};

/// A map that fails when it is told to.
#[derive(Debug, Default)]
struct Flaky {
    /// Every tree but the data.
    others: MemoryStore,
    map: Mutex<BTreeMap<Vec<u8>, Bytes>>,
    corrupt: Mutex<BTreeSet<Vec<u8>>>,
    full: AtomicBool,
    /// The insert happens and is said to have failed.
    failing: AtomicBool,
    /// No sync succeeds any more.
    broken: AtomicBool,
}

impl Store for Flaky {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if tree != Tree::Data {
            return self.others.get(tree, key);
        }
        match lock(&self.corrupt).contains(key) {
            true => Err(StoreError::Corrupt("its checksum is wrong".into())),
            false => Ok(lock(&self.map).get(key).cloned()),
        }
    }

    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if tree != Tree::Data {
            return self.others.insert(tree, key, value);
        }
        if self.full.load(Ordering::Relaxed) {
            return Err(StoreError::Full("no space left".into()));
        }
        lock(&self.corrupt).remove(key);
        lock(&self.map).insert(key.to_vec(), Bytes::copy_from_slice(value));
        match self.failing.load(Ordering::Relaxed) {
            true => Err(StoreError::Io("the disk has gone".into())),
            false => Ok(()),
        }
    }

    fn remove(&self, tree: Tree, key: &[u8]) -> Result<(), StoreError> {
        if tree != Tree::Data {
            return self.others.remove(tree, key);
        }
        lock(&self.map).remove(key);
        Ok(())
    }

    fn scan(
        &self,
        tree: Tree,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        if tree != Tree::Data {
            return self.others.scan(tree, from, to, limit, bytes_max);
        }
        let map = lock(&self.map);
        let mut bytes = 0;
        let mut page = Vec::new();
        for (key, value) in map.range(from.to_vec()..) {
            if page.len() == limit || bytes >= bytes_max || to.is_some_and(|to| key.as_slice() >= to) {
                break;
            }
            bytes += key.len() + value.len();
            page.push((Bytes::copy_from_slice(key), value.clone()));
        }
        Ok(page)
    }

    fn keys(&self, tree: Tree, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        if tree != Tree::Data {
            return self.others.keys(tree, from, to, limit);
        }
        let map = lock(&self.map);
        let keys = map.range(from.to_vec()..).map(|(key, _)| key);
        let inside = keys.take_while(|key| to.is_none_or(|to| key.as_slice() < to));
        Ok(inside.take(limit).map(|key| Bytes::copy_from_slice(key)).collect())
    }

    fn sync(&self) -> Result<(), StoreError> {
        match self.broken.load(Ordering::Relaxed) {
            true => Err(StoreError::Io("the disk has gone".into())),
            false => Ok(()),
        }
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}

struct Setup {
    store: Arc<Flaky>,
    replica: Replica,
}

fn setup(node: &str, executor: Executor) -> Setup {
    let store = Arc::new(Flaky::default());
    let fatal = Arc::new(|why| panic!("{why}"));
    let interval = Duration::from_millis(100);
    let committer = Committer::start(store.clone(), executor.clone(), Durability::Always, interval, fatal);
    let node = NodeId::new(node).expect("legal");
    let recovery = Recovery::open(store.clone()).expect("readable");
    let replica = Replica::new(node, store.clone(), executor, committer, Random::from_seed(7), recovery);
    Setup { store, replica }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_has_failed_for_good_ends_the_node() {
    for durability in [Durability::Always, Durability::Group, Durability::Interval] {
        for merges in [false, true] {
            let store = Arc::new(Flaky::default());
            let told: Arc<Mutex<Vec<String>>> = Arc::default();
            let calls = Arc::clone(&told);
            let tell = Arc::new(move |why| lock(&calls).push(why));
            let interval = Duration::from_millis(100);
            let committer = Committer::start(store.clone(), Executor::Inline, durability, interval, tell);
            let node = NodeId::new("n1").expect("legal");
            let recovery = Recovery::open(store.clone()).expect("readable");
            let replica =
                Replica::new(node, store.clone(), Executor::Inline, committer, Random::from_seed(7), recovery);
            let one = Setup { store, replica };
            let other = inline().put(1, "a", &Context::new()).await.expect("minted").record;
            let fail = async || match merges {
                true => {
                    one.replica.merge(P, &key("k"), other.clone()).await.map(drop).expect_err("failing").to_string()
                }
                false => one.put(1, "a", &Context::new()).await.expect_err("failing").to_string(),
            };
            one.store.failing.store(true, Ordering::Relaxed);
            fail().await;
            tokio::time::sleep(2 * interval).await;
            assert!(lock(&told).is_empty(), "one insert that failed is no reason");
            one.store.map.lock().expect("not poisoned").clear();
            one.store.broken.store(true, Ordering::Relaxed);
            fail().await;
            tokio::time::sleep(2 * interval).await;
            assert_eq!(lock(&told).len(), 1, "{durability:?}, merges: {merges}");
        }
    }
}

/// A disk of 1,000 bytes of which 800 are kept free.
fn tight(one: &Setup, free: u64) -> (Arc<AtomicU64>, DiskRoom) {
    let left = Arc::new(AtomicU64::new(free));
    let asked = Arc::clone(&left);
    let ask = Arc::new(move || Ok(Space { free: asked.load(Ordering::Relaxed), total: 1000 }));
    let room = DiskRoom::new(Some(ask), DiskReserve::Bytes(800));
    one.replica.set_room(room.clone());
    (left, room)
}

#[tokio::test]
async fn a_replica_whose_disk_is_nearly_full_takes_no_value_and_every_delete() {
    let one = inline();
    let first = one.put(1, "a", &Context::new()).await.expect("minted");
    let elsewhere = inline_named("n2");
    elsewhere.replica.merge(P, &key("k"), first.record.clone()).await.expect("merged");
    let newer = elsewhere.put(2, "b", &first.context).await.expect("minted");
    let (left, room) = tight(&one, 500);

    let refused = one.put(3, "c", &first.context).await.expect_err("no new values");
    let why = storage_error(refused);
    assert!(why.contains("the disk is full") && why.contains("disk_reserve"), "{why}");
    let refused = one.replica.merge(P, &key("k"), newer.record.clone()).await.expect_err("no new copies");
    assert!(matches!(refused, NotApplied::Storage { .. }), "{refused}");
    assert_eq!(one.values().await, [key("a")], "what was refused is not there");
    let target = NodeId::new("n3").expect("legal");
    one.replica.keep_hint(P, &key("k"), target, newer.record.clone(), 0).await.expect_err("nor a hint");

    // What is there already is known again, and needs no room.
    let again = one.put(1, "a", &Context::new()).await.expect("it is there");
    assert!(again.repeated && again.dot == first.dot);
    one.replica.merge(P, &key("k"), first.record.clone()).await.expect("nothing new");
    // A delete is minted, and one of somebody else's is merged.
    let deleted = elsewhere.replica.mint(P, &key("k"), OpId(5), None, newer.context.clone()).await.expect("minted");
    one.replica.merge(P, &key("k"), deleted.record).await.expect("a delete");
    assert!(one.values().await.is_empty());
    one.replica.mint(P, &key("other"), OpId(6), None, Context::new()).await.expect("a delete");

    left.store(1000, Ordering::Relaxed);
    room.look();
    one.put(7, "e", &Context::new()).await.expect("there is room again");
}

fn inline_named(node: &str) -> Setup {
    setup(node, Executor::Inline)
}

fn inline() -> Setup {
    setup("n1", Executor::Inline)
}

fn key(text: &str) -> Blob {
    Blob::copy_from(text.as_bytes())
}

/// The only one where a test tells how many there are.
const P: Partition = Partition(0);

impl Setup {
    async fn put(&self, op: u128, value: &str, cause: &Context) -> Result<Minted, MintError> {
        self.replica.mint(P, &key("k"), OpId(op), Some(key(value)), cause.clone()).await
    }

    async fn values(&self) -> Vec<Blob> {
        self.replica.read(&key("k")).await.expect("readable").expect("there").values()
    }
}

fn storage_error(error: MintError) -> String {
    match error {
        MintError::NotApplied(NotApplied::Storage { why, .. }) => why,
        other => panic!("not a refusal by the store: {other:?}"),
    }
}

#[tokio::test]
async fn a_write_is_read_and_replaced_by_one_that_has_seen_it() {
    let one = inline();
    assert_eq!(one.replica.read(&key("k")).await.expect("readable"), None);
    let a = one.put(1, "a", &Context::new()).await.expect("minted");
    assert!(a.ticket.durable().await.expect("synced"));
    assert_eq!((a.dot.counter, a.replaced, a.repeated), (1, 0, false));
    let b = one.put(2, "b", &a.context).await.expect("minted");
    assert_eq!((b.dot.counter, b.replaced), (2, 1));
    assert_eq!(one.values().await, [key("b")]);
    let gone = one.replica.mint(P, &key("k"), OpId(3), None, b.context).await.expect("deleted");
    assert_eq!(gone.replaced, 1);
    let record = one.replica.read(&key("k")).await.expect("readable").expect("a deleted key has a record");
    assert!(record.values().is_empty() && !record.context.is_empty());
}

#[tokio::test]
async fn a_blind_writer_is_not_told_of_siblings_that_it_has_not_seen() {
    let one = inline();
    one.put(1, "a", &Context::new()).await.expect("minted");
    let b = one.put(2, "b", &Context::new()).await.expect("minted");
    one.put(3, "c", &b.context).await.expect("minted");
    assert_eq!(one.values().await, [key("a"), key("c")]);
}

#[tokio::test]
async fn retries_find_their_write_among_siblings_and_among_the_superseded() {
    let one = inline();
    let a = one.put(1, "a", &Context::new()).await.expect("minted");
    let again = one.put(1, "a", &Context::new()).await.expect("known");
    assert!(again.repeated);
    assert_eq!((again.dot, &again.context), (a.dot, &a.context));
    one.put(2, "b", &a.context).await.expect("minted");
    let late = one.put(1, "a", &Context::new()).await.expect("known");
    assert_eq!((late.repeated, late.dot, late.record.values()), (true, a.dot, vec![key("b")]));
    assert_eq!(one.values().await, [key("b")]);
    let stats = one.replica.stats();
    assert_eq!((stats.minted, stats.repeated, stats.operations, stats.actors), (2, 2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn superseded_operations_are_forgotten_after_the_window() {
    let one = inline();
    let a = one.put(1, "a", &Context::new()).await.expect("minted");
    one.put(2, "b", &a.context).await.expect("minted");
    tokio::time::advance(OPERATION_WINDOW - Duration::from_secs(1)).await;
    assert!(one.put(1, "a", &Context::new()).await.expect("known").repeated);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(one.replica.stats().operations, 1);
    let trimming = tokio::spawn(one.replica.clone().trim_operations());
    tokio::time::sleep(Duration::from_secs(11)).await;
    trimming.abort();
    assert_eq!((one.replica.stats().operations, one.replica.stats().operations_evicted), (0, 0));
    assert!(!one.put(1, "a", &Context::new()).await.expect("minted anew").repeated);
}

#[tokio::test]
async fn a_merge_drops_what_was_superseded_here() {
    let (one, two) = (inline(), setup("n2", Executor::Inline));
    let a = one.put(1, "a", &Context::new()).await.expect("minted");
    one.put(2, "b", &a.context).await.expect("minted");
    let elsewhere = two.put(1, "a", &Context::new()).await.expect("minted a second time");
    let merged = one.replica.merge(P, &key("k"), elsewhere.record.clone()).await.expect("merged");
    assert!(merged.changed, "the context is news");
    let again = one.replica.merge(P, &key("k"), elsewhere.record).await.expect("merged");
    assert!(!again.changed);
    assert_eq!(one.values().await, [key("b")]);
    assert_eq!((one.replica.stats().merged, one.replica.stats().unchanged), (1, 1));
}

/// A hint that called a write replaced, and did not hold what has replaced it, would take the write from whoever merges it: the
/// simulator found such hints in one life of eight as soon as it looked at them.
#[tokio::test]
async fn a_hint_drops_nothing_that_another_record_has_replaced() {
    let (one, b, target) = (inline(), OpId(2), NodeId::new("n3").expect("legal"));
    let a = one.put(1, "a", &Context::new()).await.expect("minted");
    one.replica.mint(P, &key("k"), b, Some(key("b")), a.context.clone()).await.expect("minted");
    one.replica.keep_hint(P, &key("k"), target, a.record.clone(), 0).await.expect("room");
    let kept =
        async || one.replica.hint_page(target, None, 10, 1 << 20).await.expect("readable").hints.remove(0).record;
    assert_eq!(kept().await, a.record, "as it was to be kept");
    // What replaces the write in the hint itself is remembered there.
    let replacing = one.replica.read(&key("k")).await.expect("readable").expect("there");
    one.replica.keep_hint(P, &key("k"), target, replacing.clone(), 0).await.expect("room");
    let two = setup("n2", Executor::Inline);
    let elsewhere = two.put(1, "a", &Context::new()).await.expect("minted a second time");
    one.replica.keep_hint(P, &key("k"), target, elsewhere.record, 0).await.expect("room");
    assert_eq!(kept().await.values(), [key("b")]);
}

#[tokio::test]
async fn a_context_above_the_own_counter_makes_a_new_actor() {
    let one = inline();
    let a = one.put(1, "a", &Context::new()).await.expect("minted");
    let mut forged = a.context.clone();
    forged.advance(a.dot.actor, 5);
    let b = one.put(2, "b", &forged).await.expect("minted");
    assert_ne!(a.dot.actor, b.dot.actor);
    assert_eq!(b.dot.counter, 1);
    let mut poisoned = Record::default();
    poisoned.context.advance(b.dot.actor, 9);
    one.replica.merge(P, &key("k"), poisoned).await.expect("merged");
    let c = one.put(3, "c", &Context::new()).await.expect("minted");
    assert_ne!(b.dot.actor, c.dot.actor);
}

#[tokio::test]
async fn limits_are_checked_before_the_mint_and_change_nothing() {
    let one = inline();
    let mint = async |name: &Blob, value: Vec<u8>, cause: Context| {
        one.replica.mint(P, name, OpId(1), Some(Blob(value.into())), cause).await.expect_err("refused")
    };
    let too_large = |error: MintError| match error {
        MintError::NotApplied(NotApplied::TooLarge { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    let empty = mint(&key(""), vec![], Context::new()).await;
    assert_eq!(empty, MintError::NotApplied(NotApplied::EmptyKey));
    let long = Blob(vec![0; ENCODED_KEY_LEN_MAX + 1].into());
    assert_eq!(too_large(mint(&long, vec![], Context::new()).await), "key");
    assert_eq!(too_large(mint(&key("k"), vec![0; VALUE_LEN_MAX + 1], Context::new()).await), "value");
    let mut wide = Context::new();
    for incarnation in 0..7000 {
        wide.advance(Actor { node: NodeId::new("n9").expect("legal"), incarnation }, 1);
    }
    assert_eq!(too_large(mint(&key("k"), vec![], wide).await), "context");
    assert_eq!(one.replica.read(&key("k")).await.expect("readable"), None);
    assert_eq!(one.replica.stats().minted, 0);
}

#[tokio::test]
async fn siblings_and_bytes_of_a_record_are_bounded_but_can_be_resolved() {
    let one = inline();
    let large = Blob(vec![0; VALUE_LEN_MAX].into());
    let mut minted = 0;
    let refused = loop {
        match one.replica.mint(P, &key("k"), OpId(minted), Some(large.clone()), Context::new()).await {
            Ok(_) => minted += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(minted, 15, "16 MiB and what is around the values");
    assert!(matches!(refused, MintError::NotApplied(NotApplied::TooLarge { what, .. }) if what == "record"));
    let record = one.replica.read(&key("k")).await.expect("readable").expect("there");
    let resolved = one.put(99, "resolved", &record.context).await.expect("a smaller record is welcome");
    assert_eq!(resolved.replaced, 15);
}

#[tokio::test]
async fn a_full_disk_is_a_refusal_and_a_failing_one_leaves_the_outcome_open() {
    let one = inline();
    let a = one.put(1, "a", &Context::new()).await.expect("minted");
    one.store.full.store(true, Ordering::Relaxed);
    assert!(storage_error(one.put(2, "b", &a.context).await.expect_err("full")).contains("disk is full"));
    assert_eq!(one.values().await, [key("a")]);
    assert!(!one.replica.merge(P, &key("k"), a.record.clone()).await.expect("nothing to write").changed);
    one.store.full.store(false, Ordering::Relaxed);
    assert_eq!(one.replica.stats().operations, 0, "what was not written was not superseded");

    one.store.failing.store(true, Ordering::Relaxed);
    let unknown = one.put(3, "c", &a.context).await.expect_err("failing");
    assert!(matches!(unknown, MintError::Unknown(why) if why.contains("the disk has gone")));
    one.store.failing.store(false, Ordering::Relaxed);
    let d = one.put(4, "d", &Context::new()).await.expect("minted");
    assert_ne!(d.dot.actor, a.dot.actor, "the actor was given up");
}

#[tokio::test]
async fn a_corrupt_record_is_refused_until_others_were_asked() {
    for garbage in [false, true] {
        let (one, two) = (inline(), setup("n2", Executor::Inline));
        one.replica.set_partitions(1);
        let a = one.put(1, "a", &Context::new()).await.expect("minted");
        let b = one.put(2, "b", &a.context).await.expect("minted");
        two.replica.merge(P, &key("k"), b.record).await.expect("merged");
        let at = data_key(b"k");
        match garbage {
            true => drop(lock(&one.store.map).insert(at, Bytes::from_static(b"\x01garbage"))),
            false => drop(lock(&one.store.corrupt).insert(at)),
        }
        for _ in 0..3 {
            let error = one.replica.read(&key("k")).await.expect_err("never absent");
            assert!(error.to_string().contains("corrupt"), "{error}");
            storage_error(one.put(3, "c", &Context::new()).await.expect_err("refused"));
        }
        assert_eq!((one.replica.stats().corrupt, one.replica.stats().operations), (1, 0));
        let copy = two.replica.read(&key("k")).await.expect("readable").expect("there");
        assert!(one.replica.merge(P, &key("k"), copy).await.expect("merged").changed);
        // Its writer may have heard of less than was acknowledged here, so that one copy is not enough to speak again.
        let refusal = one.replica.read(&key("k")).await.expect_err("recovering");
        assert!(matches!(refusal, NotApplied::NotServing { .. }), "{refusal}");
        assert!(one.replica.range(P, None, 10, Reading::AboveFloor).await.is_err());
        let again = Recovery::open(one.store.clone()).expect("readable");
        assert_eq!(again.partitions(), [P], "a restart does not forget it");
        let lost = one.replica.recovery().lost(P).expect("noted");
        let whole = one.replica.exchanged(P, lost, NodeId::new("n2").expect("legal"), Leaves::NONE, 1, 2).await;
        assert!(whole.expect("noted"));
        assert_eq!(one.values().await, [key("b")]);
        let c = one.put(3, "c", &Context::new()).await.expect("minted");
        assert_ne!(c.dot.actor, a.dot.actor, "the actor was given up");
    }
}

#[tokio::test]
async fn a_given_up_actor_and_its_memory_do_not_come_back() {
    let one = inline();
    let a = one.put(1, "a", &Context::new()).await.expect("minted");
    one.put(2, "b", &a.context).await.expect("minted");
    one.replica.give_up_actor(Partition(4));
    assert_eq!(one.replica.stats().operations, 1, "that was another partition");
    one.replica.give_up_actor(P);
    assert_eq!(one.replica.stats().operations, 0);
    let c = one.put(3, "c", &Context::new()).await.expect("minted");
    assert_ne!(c.dot.actor, a.dot.actor);
    assert_eq!(c.dot.counter, 1);
}

#[tokio::test]
async fn partitions_are_read_page_by_page() {
    let one = inline();
    assert!(matches!(one.replica.range(P, None, 10, Reading::AboveFloor).await, Err(NotApplied::NotServing { .. })));
    let partitions = 4;
    one.replica.set_partitions(partitions);
    let mut expected: BTreeMap<Partition, Vec<(u64, Blob)>> = BTreeMap::new();
    for number in 0..100u128 {
        let name = key(&format!("key {number}"));
        let hash = key_hash(&name);
        let partition = Partition::of(hash, partitions);
        let minted = one.replica.mint(partition, &name, OpId(number), Some(name.clone()), Context::new()).await;
        assert!(!minted.expect("minted").repeated);
        expected.entry(partition).or_default().push((hash, name));
    }
    for (partition, mut expected) in expected {
        expected.sort();
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let (page, last) =
                one.replica.range(partition, after.as_ref(), 7, Reading::AboveFloor).await.expect("readable");
            assert!(page.len() <= 7);
            assert!(page.iter().all(|(name, record)| record.values() == [name.clone()]));
            found.extend(page.into_iter().map(|(name, _)| (key_hash(&name), name)));
            after = found.last().map(|(_, name)| name.clone());
            if last {
                break;
            }
        }
        assert_eq!(found, expected);
    }
    assert!(one.replica.range(Partition(4), None, 1, Reading::AboveFloor).await.is_err(), "there are four");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_blind_writers_at_once_make_a_hundred_siblings() {
    let one = Arc::new(setup("n1", Executor::threads(3)));
    let writers: Vec<_> = (0..SIBLINGS_MAX as u128 + 20)
        .map(|op| {
            let one = one.clone();
            tokio::spawn(async move { one.put(op, &op.to_string(), &Context::new()).await.map(|minted| minted.dot) })
        })
        .collect();
    let mut dots = BTreeSet::new();
    let mut refused = 0;
    for writer in writers {
        match writer.await.expect("no panic") {
            Ok(dot) => assert!(dots.insert(dot), "{dot} was given twice"),
            Err(MintError::NotApplied(NotApplied::TooManySiblings { got: 100, limit: 100 })) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((dots.len(), refused), (SIBLINGS_MAX, 20));
    let record = one.replica.read(&key("k")).await.expect("readable").expect("there");
    assert_eq!(record.siblings.keys().copied().collect::<BTreeSet<_>>(), dots);
    assert_eq!(record.context.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_that_are_given_up_do_not_break_the_lock() {
    let one = Arc::new(setup("n1", Executor::threads(3)));
    let given_up: Vec<_> = (0..50)
        .map(|op| {
            let one = one.clone();
            let put = async move { one.put(op, "x", &Context::new()).await.map(drop) };
            tokio::spawn(tokio::time::timeout(Duration::from_micros(op as u64 * 5), put))
        })
        .collect();
    for task in given_up {
        let _ = task.await.expect("no panic");
    }
    let last = one.put(1000, "last", &Context::new()).await.expect("minted");
    let record = one.replica.read(&key("k")).await.expect("readable").expect("there");
    assert!(record.siblings.contains_key(&last.dot));
    let minted = one.replica.stats().minted;
    assert_eq!(record.siblings.len() as u64, minted, "each mint that began is there exactly once");
}

/// Found by life 390 of a swarm: a coordinator that had crashed minted a retry anew, and the first attempt, which had been
/// replaced before the crash, stood beside its successor.
#[tokio::test(start_paused = true)]
async fn a_retry_is_minted_only_by_who_remembers_everything_since_its_first_attempt() {
    let one = inline();
    let retry = async |id: u128, value: Option<&str>, cause: &Context, first_sent_s: u64| {
        let operation = Operation { first_sent: Some(Duration::from_secs(first_sent_s)), ..OpId(id).into() };
        let value = value.map(|value| Blob::copy_from(value.as_bytes()));
        one.replica.mint(P, &key("k"), operation, value, cause.clone()).await
    };
    let nothing = Context::new();
    tokio::time::advance(TRAVEL_MAX + Duration::from_secs(9)).await;
    let first = retry(1, Some("a"), &nothing, 9).await.expect("it cannot have been minted here: nothing was");
    let second = one.put(2, "b", &first.context).await.expect("minted");
    assert!(retry(1, Some("a"), &nothing, 9).await.expect("known").repeated);
    one.replica.give_up_actor(P);
    assert_eq!(retry(1, Some("a"), &nothing, 9).await.expect_err("forgotten"), MintError::Forgotten);
    assert!(retry(2, Some("b"), &first.context, 9).await.expect("it is there").repeated);
    let seen = retry(3, Some("c"), &second.context, 9).await;
    assert_eq!(seen.expect_err("what was forgotten may not be in the record any more"), MintError::Forgotten);
    retry(4, None, &nothing, 9).await.expect("a delete cannot rise from the dead");
    one.put(5, "d", &nothing).await.expect("a first attempt is minted at any time");
    tokio::time::advance(TRAVEL_MAX + Duration::from_secs(9)).await;
    assert_eq!(retry(6, Some("e"), &nothing, 10).await.expect_err("a second too early"), MintError::Forgotten);
    assert!(!retry(6, Some("e"), &nothing, 9).await.expect("it would be known").repeated);
    tokio::time::advance(2 * OPERATION_WINDOW).await;
    let window = (OPERATION_WINDOW - TRAVEL_MAX).as_secs();
    assert_eq!(retry(7, Some("f"), &nothing, window).await.expect_err("long forgotten"), MintError::Forgotten);
    assert!(!retry(7, Some("f"), &nothing, window - 1).await.expect("it would be known").repeated);
}

#[tokio::test]
async fn nothing_is_read_while_it_is_not_known_what_the_disk_lacks() {
    for partitions in [0, 1] {
        let one = inline();
        if partitions > 0 {
            one.replica.set_partitions(partitions);
        }
        one.put(1, "a", &Context::new()).await.expect("minted");
        assert_eq!((one.values().await, one.replica.still_speaks(b"k", Reading::AboveFloor)), (vec![key("a")], Ok(())));
        one.replica.recovery().doubt(Doubt::Layout);
        for refused in
            [one.replica.read(&key("k")).await.map(drop), one.replica.still_speaks(b"k", Reading::AboveFloor)]
        {
            assert!(matches!(refused, Err(NotApplied::NotServing { .. })), "{refused:?}");
        }
        one.replica.recovery().settle(Doubt::Layout);
        assert_eq!((one.values().await, one.replica.still_speaks(b"k", Reading::AboveFloor)), (vec![key("a")], Ok(())));
    }
}

/// A record that has rotted once, and whose key was written since, is as lost when it rots again: else the second copy takes back
/// what this node has acknowledged as the same actor.
#[tokio::test]
async fn a_record_that_is_corrupt_a_second_time_gives_up_the_actor_a_second_time() {
    let (one, two) = (inline(), setup("n2", Executor::Inline));
    one.replica.set_partitions(1);
    let a = one.put(1, "a", &Context::new()).await.expect("minted");
    two.replica.merge(P, &key("k"), a.record).await.expect("merged");
    let mut actors = BTreeSet::from([a.dot.actor]);
    for (round, found_by_a_read) in (1..).zip([true, true, false]) {
        lock(&one.store.corrupt).insert(data_key(b"k"));
        if found_by_a_read {
            storage_error(one.put(99, "refused", &Context::new()).await.expect_err("refused"));
            assert_eq!(one.replica.stats().corrupt, round);
        }
        let copy = two.replica.read(&key("k")).await.expect("readable").expect("there");
        assert!(one.replica.merge(P, &key("k"), copy).await.expect("merged").was_corrupt);
        let fresh = one.put(u128::from(round) + 1, "b", &a.context).await.expect("minted");
        assert!(actors.insert(fresh.dot.actor), "round {round}: {} again", fresh.dot.actor);
    }
}

/// What a lost record knew of this node's own writes is not in what others have sent since.
#[tokio::test(start_paused = true)]
async fn a_retry_is_not_minted_over_a_lost_record_though_a_copy_of_it_has_no_news_of_this_node() {
    let (one, two) = (inline(), setup("n2", Executor::Inline));
    one.replica.set_partitions(1);
    let nothing = Context::new();
    let old = two.put(1, "old", &nothing).await.expect("minted");
    one.replica.merge(P, &key("k"), old.record.clone()).await.expect("merged");
    let first = one.put(2, "a", &nothing).await.expect("minted");
    one.put(3, "b", &first.context).await.expect("minted");
    let retry = async || {
        let operation = Operation { first_sent: Some(Duration::from_secs(9)), ..OpId(2).into() };
        one.replica.mint(P, &key("k"), operation, Some(key("a")), nothing.clone()).await
    };
    assert!(retry().await.expect("known").repeated);
    lock(&one.store.corrupt).insert(data_key(b"k"));
    storage_error(one.put(4, "c", &nothing).await.expect_err("refused"));
    // The copy is older than the retry's first attempt.
    one.replica.merge(P, &key("k"), old.record).await.expect("merged");
    assert_eq!(retry().await.expect_err("it may have been replaced"), MintError::Forgotten);
    one.put(5, "d", &nothing).await.expect("a first attempt is minted at any time");
    let lost = one.replica.recovery().lost(P).expect("noted");
    let whole = one.replica.exchanged(P, lost, NodeId::new("n2").expect("legal"), Leaves::NONE, 1, 2).await;
    assert!(whole.expect("noted"));
    assert_eq!(retry().await.expect_err("it has news of this node"), MintError::Forgotten);
}

/// Found by the small world (`tests/small_world.rs`, seed 1119 of its first version).
#[tokio::test]
async fn what_a_failed_insert_replaced_is_remembered_if_it_was_replaced() {
    let one = inline();
    let first = one.put(1, "a", &Context::new()).await.expect("minted");
    one.store.failing.store(true, Ordering::Relaxed);
    assert!(matches!(one.put(2, "b", &first.context).await, Err(MintError::Unknown(_))));
    one.store.failing.store(false, Ordering::Relaxed);
    let retried = one.put(1, "a", &Context::new()).await.expect("known");
    assert!(retried.repeated, "a second dot would show it beside its successor");
    assert_eq!(retried.dot, first.dot);
    assert_eq!(retried.record.dots_of(&OpId(1)), []);
    assert!(one.put(2, "b", &first.context).await.expect("known").repeated, "and the one that failed is there");
}

/// A replica over a store that outlives it, in a layout of one partition.
fn over(node: &str, store: &MemoryStore) -> Replica {
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let fatal = Arc::new(|why| panic!("{why}"));
    let second = Duration::from_secs(1);
    let committer = Committer::start(shared.clone(), Executor::Inline, Durability::Group, second, fatal);
    let recovery = Recovery::open(shared.clone()).expect("readable");
    let node = NodeId::new(node).expect("legal");
    let replica = Replica::new(node, shared, Executor::Inline, committer, Random::from_os(), recovery);
    replica.set_partitions(1);
    replica
}

/// The coordinator dies before its own sync, while its write is on the others, is read there and deleted. Its record proves nothing
/// then: it lacks the very dot that the retry would be recognised by.
#[tokio::test(start_paused = true)]
async fn a_retry_whose_first_attempt_an_earlier_run_may_have_minted_is_unknown() {
    let late = |seconds| Operation { first_sent: Some(Duration::from_secs(seconds)), ..OpId(7).into() };
    let retry = async |replica: &Replica, seconds, value: Option<&str>| {
        replica.mint(P, &key("k"), late(seconds), value.map(key), Context::new()).await.map(|minted| minted.dot)
    };
    let restarted = over("a", &MemoryStore::new());
    assert_eq!(retry(&restarted, 3, Some("x")).await, Err(MintError::Forgotten));
    tokio::time::advance(TRAVEL_MAX + Duration::from_secs(2)).await;
    assert_eq!(
        retry(&restarted, 3, Some("x")).await,
        Err(MintError::Forgotten),
        "it may have been sent before the start"
    );
    assert!(retry(&restarted, 3, None).await.is_ok(), "a deletion leaves nothing that could come back");
    let restarted = over("a", &MemoryStore::new());
    tokio::time::advance(TRAVEL_MAX + Duration::from_secs(4)).await;
    assert!(retry(&restarted, 3, Some("x")).await.is_ok(), "it was sent to this run");
}

/// Operations that were superseded and evicted: this run has every dot that it minted, so its record shows whether one is missing.
#[tokio::test(start_paused = true)]
async fn a_retry_that_only_the_memory_is_too_short_for_is_judged_by_the_record() {
    let one = over("a", &MemoryStore::new());
    tokio::time::advance(TRAVEL_MAX + Duration::from_secs(4)).await;
    let first = one.mint(P, &key("m"), OpId(8), Some(key("x")), Context::new()).await.expect("minted");
    one.mint(P, &key("m"), OpId(9), Some(key("y")), first.context).await.expect("minted");
    let evicted = one.partitions().with(P, |state, _| state.trim_operations(one.partitions().now(), 0));
    assert_eq!((evicted, one.stats().operations), (1, 0));
    let late = |id| Operation { first_sent: Some(Duration::from_secs(3)), ..OpId(id).into() };
    let minted = one.mint(P, &key("k"), late(1), Some(key("x")), Context::new()).await.expect("nothing is missing");
    let blind = one.mint(P, &key("k"), late(2), Some(key("y")), Context::new()).await;
    assert_eq!(blind.map(|minted| minted.dot), Err(MintError::Forgotten), "x may be what has replaced it");
    one.mint(P, &key("k"), late(3), Some(key("z")), minted.context).await.expect("its writer has seen all of that");
    one.recovery().lose(P, &Leaves::ALL, Reason::Corrupt).expect("room");
    let other = one.mint(P, &key("l"), late(4), Some(key("x")), Context::new()).await;
    assert_eq!(other.map(|minted| minted.dot), Err(MintError::Forgotten), "what was lost cannot be looked at");
}

/// N = 3. A record of a leaf is being recovered, and one of the two other owners has told what it holds; then a second record of
/// that leaf rots. What the first owner told does not cover the second record, so both are asked again.
#[tokio::test]
async fn a_loss_during_a_recovery_begins_it_anew() {
    let store = MemoryStore::new();
    let a = over("a", &store);
    let leaf = |key: &Blob| merkle::leaf_of(key_hash(key), 1);
    let first = key("key-0");
    let second = (1..).map(|i| key(&format!("key-{i}"))).find(|key| leaf(key) == leaf(&first)).expect("there is one");
    let mut records = Vec::new();
    for key in [&first, &second] {
        let minted = a.mint(P, key, OpId(1), Some(key.clone()), Context::new()).await.expect("minted");
        minted.ticket.durable().await.expect("synced");
        records.push(minted.record);
    }
    let rot = async |key: &Blob| {
        assert!(store.flip_bit(Tree::Data, &data_key(key)));
        assert_eq!(a.held(P, key).await, Ok(None), "it is corrupt, and that is noted");
    };
    let exchange = async |with: &str| {
        let lost = a.recovery().lost(P).expect("lost");
        for (key, record) in [(&first, &records[0]), (&second, &records[1])] {
            a.merge(P, key, record.clone()).await.expect("merged").ticket.durable().await.expect("synced");
        }
        let with = NodeId::new(with).expect("legal");
        a.exchanged(P, lost, with, Leaves::NONE, 2, 2).await.expect("room")
    };
    rot(&first).await;
    let before = a.recovery().lost(P).expect("lost");
    assert!(!exchange("b").await);
    rot(&second).await;
    let stale = a.exchanged(P, before, NodeId::new("c").expect("legal"), Leaves::NONE, 2, 2).await.expect("room");
    assert!(!stale, "an exchange that began before the loss does not count");
    for _ in 0..3 {
        assert_eq!(a.held(P, &second).await, Ok(None));
    }
    assert!(!exchange("c").await, "b has not told the second record");
    a.read(&second).await.expect_err("not served yet");
    assert!(exchange("b").await, "looking at what is known to be lost begins nothing anew");
    assert_eq!(a.read(&second).await.expect("served").expect("there").values(), [second]);
}

#[tokio::test]
async fn a_corrupt_hint_does_not_hide_that_the_record_of_its_key_has_rotted() {
    let store = MemoryStore::new();
    let (one, target) = (over("a", &store), NodeId::new("n3").expect("legal"));
    let record = one.mint(P, &key("k"), OpId(1), Some(key("x")), Context::new()).await.expect("minted").record;
    one.keep_hint(P, &key("k"), target, record, 0).await.expect("room");
    assert!(store.flip_bit(Tree::Hints, &hint_key(target, &key("k"))));
    assert_eq!(one.hinted(P, &key("k"), &[target]).await.expect("readable"), None);
    assert_eq!(one.recovery().lost(P), None, "a hint is nobody's copy");
    assert!(store.flip_bit(Tree::Data, &data_key(&key("k"))));
    one.read(&key("k")).await.expect_err("corrupt");
    assert!(one.recovery().lost(P).is_some());
}

/// Rule V5, on a disk without room: the merge is refused, and what it disputes is disputed still when it comes again.
#[tokio::test]
async fn what_is_disputed_stays_so_when_its_merge_is_refused_and_repeated() {
    for free in [100, 500] {
        let one = inline();
        let first = one.put(1, "a", &Context::new()).await.expect("minted");
        let mut claim = first.context.clone();
        claim.advance(first.dot.actor, 999);
        let elsewhere = inline_named("n2");
        let claims = elsewhere.put(2, "claims", &claim).await.expect("minted").record;
        let (left, room) = tight(&one, free);
        for _ in 0..3 {
            one.replica.merge(P, &key("k"), claims.clone()).await.expect_err("a new value");
        }
        assert_eq!(one.values().await, [key("a")]);
        left.store(1000, Ordering::Relaxed);
        room.look();
        one.replica.merge(P, &key("k"), claims).await.expect("there is room");
        let mut values = one.values().await;
        values.sort();
        assert_eq!(values, [key("a"), key("claims")], "{free} bytes free");
        assert_eq!(one.replica.stats().incidents, 1);
    }
}

/// Rule V5: somebody claims dots of this node's actor before they are minted.
#[tokio::test]
async fn a_claim_of_dots_that_are_not_minted_yet_replaces_nothing() {
    let (a, b) = (over("a", &MemoryStore::new()), over("b", &MemoryStore::new()));
    let first = a.mint(P, &key("k"), OpId(1), Some(key("first")), Context::new()).await.expect("minted");
    b.merge(P, &key("k"), first.record.clone()).await.expect("merged");
    let mut claim = first.context.clone();
    claim.advance(first.dot.actor, 999);
    let claims = b.mint(P, &key("k"), OpId(2), Some(key("claims")), claim).await.expect("minted").record;
    let honest = a.mint(P, &key("k"), OpId(3), Some(key("honest")), first.context).await.expect("minted");
    b.merge(P, &key("k"), honest.record.clone()).await.expect("merged");
    let merged = a.merge(P, &key("k"), claims).await.expect("merged");
    assert!(merged.changed);
    // Everybody ends up with both, though b has dropped the honest write and remembers it as replaced.
    for _ in 0..2 {
        let (at_a, at_b) =
            (a.held(P, &key("k")).await.expect("readable"), b.held(P, &key("k")).await.expect("readable"));
        a.merge(P, &key("k"), at_b.expect("there")).await.expect("merged");
        b.merge(P, &key("k"), at_a.expect("there")).await.expect("merged");
    }
    for replica in [&a, &b] {
        let mut values = replica.read(&key("k")).await.expect("serves").expect("there").values();
        values.sort();
        assert_eq!(values, [key("claims"), key("honest")]);
    }
    assert_eq!(a.stats().incidents, 1);
    // Its writer's retry is told of its own write, and mints nothing.
    let again = a.mint(P, &key("k"), OpId(3), Some(key("honest")), Context::new()).await.expect("known");
    assert_eq!((again.repeated, again.dot), (true, honest.dot));
    let next = a.mint(P, &key("k"), OpId(4), Some(key("next")), again.context).await.expect("minted");
    assert_ne!(next.dot.actor, honest.dot.actor);
}

#[tokio::test]
async fn bucket_and_sort_key_make_records_of_their_own_that_lie_side_by_side() {
    let one = over("a", &MemoryStore::new());
    let named = |bucket, partition_key: &str, sort_key: &str| {
        Blob::from(Key::new(BucketId(bucket), partition_key.as_bytes(), sort_key.as_bytes()))
    };
    let together = [named(0, "k", ""), named(0, "k", "s"), named(0, "k", "s\0"), named(0, "k", "t")];
    let others = (0..60).map(|i| named(0, &format!("k{i}"), "s")).chain([named(1, "k", ""), named(1, "k", "s")]);
    let all: Vec<Blob> = others.chain(together.iter().rev().cloned()).collect();
    let target = NodeId::new("n3").expect("legal");
    for (op, key) in (0..).zip(&all) {
        let minted = one.mint(P, key, OpId(op), Some(key.clone()), Context::new()).await.expect("minted");
        one.keep_hint(P, key, target, minted.record, 5).await.expect("room");
    }
    for key in &all {
        assert_eq!(one.read(key).await.expect("readable").expect("there").values(), std::slice::from_ref(key));
        assert_eq!(
            one.hinted(P, key, &[target]).await.expect("readable").expect("kept").values(),
            std::slice::from_ref(key)
        );
    }
    let (page, _) = one.range(P, None, 1000, Reading::AboveFloor).await.expect("readable");
    let read: Vec<Blob> = page.into_iter().map(|(key, _)| key).collect();
    let first = read.iter().position(|key| *key == together[0]).expect("it is in its partition");
    assert_eq!(read[first..first + together.len()], together);
    let hints = one.hint_page(target, None, 1000, 1 << 20).await.expect("readable").hints;
    assert_eq!(hints.len(), all.len());
    let first = hints.iter().position(|hint| hint.key == together[0]).expect("it is kept");
    assert!(hints[first..].iter().zip(&together).all(|(hint, key)| hint.key == *key));
}

/// A record of a later release, on the disk of a node that was set back to this one.
#[tokio::test]
async fn what_a_newer_version_has_written_is_neither_served_nor_lost_nor_replaced() {
    let store = MemoryStore::new();
    let one = over("a", &store);
    let mut record = one.mint(P, &key("k"), OpId(1), Some(key("x")), Context::new()).await.expect("minted").record;
    one.mint(P, &key("l"), OpId(2), Some(key("y")), Context::new()).await.expect("minted");
    let older = record.clone();
    record.siblings.values_mut().for_each(|sibling| sibling.value_type = 7);
    let newer = record.encode();
    store.insert(Tree::Data, &data_key(&key("k")), &newer).expect("memory takes everything");
    one.partitions().forget_sums(P, &Leaves::ALL);

    let told = |refusal: NotApplied| {
        assert!(matches!(&refusal, NotApplied::Storage { .. }), "{refusal:?}");
        assert!(refusal.to_string().contains("newer version of quorate") && refusal.to_string().contains("type 7"));
    };
    told(one.read(&key("k")).await.expect_err("not understood"));
    told(one.range(P, None, 10, Reading::AboveFloor).await.expect_err("one of them is not understood"));
    match one.mint(P, &key("k"), OpId(3), Some(key("z")), Context::new()).await.expect_err("it would take its place") {
        MintError::NotApplied(refusal) => told(refusal),
        other => panic!("{other:?}"),
    }
    told(one.merge(P, &key("k"), older).await.expect_err("it would take its place"));
    assert_eq!(one.held(P, &key("k")).await, Ok(None));
    one.rebuild(P).await.expect("the others can be summed up");
    let (listed, done) = one.list(P, &Leaves::ALL, None, 10).await.expect("readable");
    assert_eq!((listed.len(), &listed[0].0, done), (1, &key("l"), true));
    let scrubbed = one.scrub(P, None).await.expect("readable");
    assert_eq!((scrubbed.records, scrubbed.corrupt, one.stats().corrupt), (1, 0, 0));
    assert_eq!(one.recovery().lost(P), None, "nobody has to make up for it");
    assert_eq!(store.get(Tree::Data, &data_key(&key("k"))).expect("readable"), Some(newer));
    assert_eq!(one.read(&key("l")).await.expect("readable").expect("there").values(), [key("y")]);
}
