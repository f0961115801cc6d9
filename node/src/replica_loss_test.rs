//! What a replica does when its store fails, lies or has lost something.

use std::fmt;

use super::*;
use crate::by_hand::record;
use crate::recovery::{Doubt, Reason};
use crate::store::{Durability, MemoryStore, Stats, Writes};
use quorate_core::keyspace::data_key;
use quorate_core::version::Actor;

const P: Partition = Partition(0);

/// How an insert into the data ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inserts {
    Well,
    /// The engine finds no room.
    Full,
    /// The engine is not asked, for want of room.
    NoRoom,
    /// It says that there is no room, and has taken it.
    FullAndThere,
    /// It says that it has failed, and has taken it.
    FailedAndThere,
}

/// A store that does what a test wants.
struct Odd {
    memory: MemoryStore,
    inserts: Mutex<Inserts>,
    /// No note is taken.
    no_notes: AtomicBool,
    no_syncs: AtomicBool,
    syncs: AtomicU64,
    /// No record can be read.
    no_reads: Arc<AtomicBool>,
    no_removes: AtomicBool,
    /// Happens while the next record is read.
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl fmt::Debug for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Odd")
    }
}

fn gone() -> StoreError {
    StoreError::Io("the disk has gone".into())
}

impl Store for Odd {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if tree == Tree::Data && self.no_reads.load(Ordering::Relaxed) {
            return Err(gone());
        }
        let read = self.memory.get(tree, key);
        let meanwhile = if tree == Tree::Data { lock(&self.meanwhile).take() } else { None };
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        read
    }
    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if tree == Tree::Meta && self.no_notes.load(Ordering::Relaxed) {
            return Err(gone());
        }
        match (tree, *lock(&self.inserts)) {
            (Tree::Data, Inserts::Full) => return Err(StoreError::Full("no space left".into())),
            (Tree::Data, Inserts::NoRoom) => return Err(StoreError::NoRoom("the disk is full".into())),
            _ => {}
        }
        self.memory.insert(tree, key, value)?;
        match (tree, *lock(&self.inserts)) {
            (Tree::Data, Inserts::FullAndThere) => Err(StoreError::Full("no space left".into())),
            (Tree::Data, Inserts::FailedAndThere) => Err(gone()),
            _ => Ok(()),
        }
    }
    fn remove(&self, tree: Tree, key: &[u8]) -> Result<(), StoreError> {
        if self.no_removes.load(Ordering::Relaxed) { Err(gone()) } else { self.memory.remove(tree, key) }
    }
    fn scan(
        &self,
        tree: Tree,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.memory.scan(tree, from, to, limit, bytes_max)
    }
    fn keys(&self, tree: Tree, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        self.memory.keys(tree, from, to, limit)
    }
    fn sync(&self) -> Result<(), StoreError> {
        if self.no_syncs.load(Ordering::Relaxed) {
            return Err(gone());
        }
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.memory.sync()
    }
    fn writes(&self) -> Option<Writes> {
        self.memory.writes()
    }
    fn stats(&self) -> Stats {
        Stats::default()
    }
}

struct Setup {
    store: Arc<Odd>,
    replica: Replica,
    /// Why the node must end.
    told: Arc<Mutex<Vec<String>>>,
}

/// A replica of so many partitions; all keys are in [`P`] if there is one.
fn setup(partitions: u16) -> Setup {
    let store = Arc::new(Odd {
        memory: MemoryStore::new(),
        inserts: Mutex::new(Inserts::Well),
        no_notes: AtomicBool::new(false),
        no_syncs: AtomicBool::new(false),
        syncs: AtomicU64::new(0),
        no_reads: Arc::default(),
        no_removes: AtomicBool::new(false),
        meanwhile: Mutex::default(),
    });
    let interval = Duration::from_millis(100);
    let (executor, durability) = (Executor::Inline, Durability::Always);
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let calls = told.clone();
    let fatal = Arc::new(move |why| lock(&calls).push(why));
    let committer = Committer::start(store.clone(), executor.clone(), durability, interval, fatal);
    let recovery = Recovery::open(store.clone()).expect("readable");
    let node = NodeId::new("n1").expect("legal");
    let replica = Replica::new(node, store.clone(), executor, committer, Random::from_seed(7), recovery);
    if partitions > 0 {
        replica.set_partitions(partitions);
    }
    Setup { store, replica, told }
}

fn key(text: &str) -> Blob {
    Blob::copy_from(text.as_bytes())
}

fn target() -> NodeId {
    NodeId::new("n9").expect("legal")
}

impl Setup {
    async fn hint(&self, name: &str, record: &Record) {
        self.replica.keep_hint(P, &key(name), target(), record.clone(), 5).await.expect("room");
    }

    /// What lies in the store for others.
    fn hints(&self) -> Vec<(Bytes, Bytes)> {
        self.store.memory.scan(Tree::Hints, b"", None, 1000, usize::MAX).expect("readable")
    }

    async fn put(&self, name: &str, op: u128, cause: &Context) -> Result<Minted, MintError> {
        self.replica.mint(P, &key(name), OpId(op), Some(key("v")), cause.clone()).await
    }

    async fn merge(&self, name: &str, record: &Record) -> Merged {
        self.replica.merge(P, &key(name), record.clone()).await.expect("merged")
    }

    /// The record of a key rots.
    fn rot(&self, name: &str) {
        assert!(self.store.memory.flip_bit(Tree::Data, &data_key(name.as_bytes())), "there is a record");
    }

    fn leaf(&self, name: &str) -> Leaves {
        [merkle::leaf_of(key_hash(name.as_bytes()), 1)].into_iter().collect()
    }

    fn is_lost(&self, name: &str) -> bool {
        self.replica.recovery().is_lost(P, &self.leaf(name))
    }

    /// Another owner has told all that there is.
    async fn recovered(&self) {
        let lost = self.replica.recovery().lost(P).expect("something is lost");
        let other = NodeId::new("n2").expect("legal");
        assert!(self.replica.exchanged(P, lost, other, Leaves::NONE, 1, 2).await.expect("noted"));
    }
}

#[tokio::test]
async fn an_empty_key_is_none() {
    let one = setup(1);
    let (empty, place) = (Blob::default(), (vec![target()], target()));
    let (large, nothing) = (Some(Blob::copy_from(&vec![0; VALUE_LEN_MAX + 1])), Context::new());
    let minted = one.replica.mint_in_hint(P, &empty, OpId(1), None, nothing.clone(), place.clone(), 5).await;
    assert_eq!(minted.expect_err("refused"), MintError::NotApplied(NotApplied::EmptyKey));
    let minted = one.replica.mint_in_hint(P, &key("k"), OpId(1), large, nothing, place, 5).await;
    assert!(minted.expect_err("refused").to_string().contains("value"));
    assert_eq!(one.replica.hinted(P, &empty, &[target()]).await, Err(NotApplied::EmptyKey));
    one.replica.keep_hint(P, &empty, target(), record(1, "v"), 5).await.expect_err("refused");
    assert_eq!(one.replica.read(&empty).await, Err(NotApplied::EmptyKey));
    let merged = one.replica.merge(P, &empty, record(1, "v")).await.map(|merged| merged.changed);
    assert_eq!(merged, Err(NotApplied::EmptyKey));
}

#[tokio::test]
#[should_panic(expected = "a key of another partition")]
async fn a_mint_in_another_partition_is_a_mistake() {
    let one = setup(4);
    let other = Partition((Partition::of(key_hash(b"k"), 4).0 + 1) % 4);
    let _ = one.replica.mint(other, &key("k"), OpId(1), None, Context::new()).await;
}

#[tokio::test]
#[should_panic(expected = "a key of another partition")]
async fn a_merge_in_another_partition_is_a_mistake() {
    let one = setup(4);
    let other = Partition((Partition::of(key_hash(b"k"), 4).0 + 1) % 4);
    let _ = one.replica.merge(other, &key("k"), record(1, "v")).await;
}

#[tokio::test]
async fn nothing_is_settled_or_synced_by_a_disk_that_has_gone() {
    let one = setup(1);
    one.merge("k", &record(1, "v")).await;
    one.store.no_syncs.store(true, Ordering::Relaxed);
    for refused in [one.replica.settled().await, one.replica.sync().await] {
        assert!(refused.expect_err("no sync").to_string().contains("the disk has gone"));
    }
}

#[tokio::test]
async fn a_disk_that_was_full_and_has_the_record_all_the_same_leaves_the_outcome_open() {
    let one = setup(1);
    *lock(&one.store.inserts) = Inserts::FullAndThere;
    let unknown = one.put("k", 1, &Context::new()).await.expect_err("full");
    assert!(matches!(unknown, MintError::Unknown(_)), "{unknown:?}");
}

#[tokio::test]
async fn an_engine_that_met_the_end_of_the_disk_ends_the_node_unless_it_can_go_on() {
    for merges in [false, true] {
        let one = setup(1);
        let other = setup(1).put("k", 1, &Context::new()).await.expect("minted").record;
        *lock(&one.store.inserts) = Inserts::Full;
        let fail = async || match merges {
            true => one.replica.merge(P, &key("k"), other.clone()).await.map(drop).expect_err("full").to_string(),
            false => one.put("k", 1, &Context::new()).await.expect_err("full").to_string(),
        };
        fail().await;
        assert!(lock(&one.told).is_empty(), "it still syncs, merges: {merges}");
        one.store.no_syncs.store(true, Ordering::Relaxed);
        let why = fail().await;
        assert!(why.contains("no space left"), "{why}");
        assert_eq!(lock(&one.told).len(), 1, "merges: {merges}");
    }
}

#[tokio::test]
async fn for_want_of_room_the_engine_is_asked_for_nothing() {
    let one = setup(1);
    *lock(&one.store.inserts) = Inserts::NoRoom;
    one.store.no_syncs.store(true, Ordering::Relaxed);
    let refused = one.put("k", 1, &Context::new()).await.expect_err("no room");
    assert!(matches!(refused, MintError::NotApplied(_)), "{refused:?}");
    assert!(lock(&one.told).is_empty(), "there was no sync");
}

#[tokio::test]
async fn a_merge_that_failed_and_is_there_has_replaced_what_it_replaces() {
    let one = setup(1);
    let first = one.put("k", 1, &Context::new()).await.expect("minted");
    let second = setup(1).replica.clone();
    second.merge(P, &key("k"), first.record.clone()).await.expect("merged");
    let second = second.mint(P, &key("k"), OpId(2), Some(key("w")), first.context).await.expect("minted").record;
    *lock(&one.store.inserts) = Inserts::FailedAndThere;
    let failed = one.replica.merge(P, &key("k"), second).await.expect_err("failed").to_string();
    assert!(failed.contains("the merge can be repeated"), "{failed}");
    *lock(&one.store.inserts) = Inserts::Well;
    assert!(one.put("k", 1, &Context::new()).await.expect("known").repeated, "it was replaced");
}

/// The property test of `quorate_core::partition` sees it in the core: the first write was replaced, and its retry minted anew beside its successor.
#[tokio::test(start_paused = true)]
async fn a_retry_is_unknown_when_the_insert_that_may_have_replaced_it_could_not_be_read_back() {
    let one = setup(1);
    tokio::time::advance(Duration::from_secs(60)).await;
    let first = one.put("k", 1, &Context::new()).await.expect("minted");
    let no_reads = one.store.no_reads.clone();
    *lock(&one.store.inserts) = Inserts::FailedAndThere;
    *lock(&one.store.meanwhile) = Some(Box::new(move || no_reads.store(true, Ordering::Relaxed)));
    assert!(matches!(one.put("k", 2, &first.context).await, Err(MintError::Unknown(_))));
    *lock(&one.store.inserts) = Inserts::Well;
    one.store.no_reads.store(false, Ordering::Relaxed);
    let again = Operation { first_sent: Some(Duration::from_secs(5)), ..OpId(1).into() };
    let again = one.replica.mint(P, &key("k"), again, Some(key("v")), Context::new()).await;
    assert_eq!(again.expect_err("it was replaced"), MintError::Forgotten);
    assert!(one.put("k", 2, &first.context).await.expect("known").repeated, "and that is what has replaced it");
}

#[tokio::test]
async fn after_an_insert_that_failed_nobody_knows_the_sum_of_its_leaf() {
    let one = setup(1);
    one.replica.rebuild(P).await.expect("readable");
    *lock(&one.store.inserts) = Inserts::FailedAndThere;
    one.put("k", 1, &Context::new()).await.expect_err("failed");
    assert_eq!(one.replica.partitions().unknown(P), one.leaf("k"));
}

#[tokio::test]
async fn the_context_of_the_record_is_bounded_also_for_who_has_not_seen_it() {
    let one = setup(1);
    let mut wide = Record::default();
    for incarnation in 0..7000 {
        wide.context.advance(Actor { node: NodeId::new("n9").expect("legal"), incarnation }, 1);
    }
    one.merge("k", &wide).await;
    let refused = one.put("k", 1, &Context::new()).await.expect_err("refused");
    let MintError::NotApplied(NotApplied::TooLarge { what, .. }) = &refused else { panic!("{refused:?}") };
    assert_eq!(what, "context");
}

#[tokio::test]
async fn what_a_read_or_a_merge_finds_corrupt_is_noted_as_lost_each_time() {
    let one = setup(1);
    one.merge("k", &record(1, "v")).await;
    one.rot("k");
    assert!(one.merge("k", &record(1, "v")).await.was_corrupt, "nobody had looked before");
    assert!(one.is_lost("k"));
    assert_eq!(one.replica.stats().corrupt, 1);
    one.recovered().await;
    one.rot("k");
    one.replica.read(&key("k")).await.expect_err("corrupt");
    assert!(one.is_lost("k"));
    assert_eq!(one.replica.stats().corrupt, 2, "it has rotted a second time");
    // Known to be corrupt, and recovered as far as others could tell: what takes its place is no better than before.
    one.recovered().await;
    assert!(one.merge("k", &record(1, "v")).await.was_corrupt);
    assert!(one.is_lost("k"));
    let stats = one.replica.stats();
    assert_eq!((stats.corrupt, stats.merged, stats.unchanged), (2, 3, 0));
}

#[tokio::test]
async fn an_actor_is_given_up_when_a_record_of_its_partition_is_found_corrupt_and_when_it_is_replaced() {
    let one = setup(1);
    one.merge("k", &record(1, "v")).await;
    let before = one.put("other", 1, &Context::new()).await.expect("minted").dot.actor;
    one.rot("k");
    one.replica.read(&key("k")).await.expect_err("corrupt");
    let between = one.put("other", 2, &Context::new()).await.expect("minted").dot.actor;
    assert_ne!(between, before);
    one.merge("k", &record(1, "v")).await;
    let after = one.put("other", 3, &Context::new()).await.expect("minted").dot.actor;
    assert_ne!(after, between);
}

#[tokio::test]
async fn the_sum_of_a_leaf_is_in_doubt_when_a_corrupt_record_is_found_and_when_it_is_replaced() {
    let one = setup(1);
    one.merge("k", &record(1, "v")).await;
    one.replica.rebuild(P).await.expect("readable");
    one.rot("k");
    one.replica.read(&key("k")).await.expect_err("corrupt");
    assert_eq!(one.replica.partitions().unknown(P), one.leaf("k"));
    one.replica.rebuild(P).await.expect("readable");
    assert!(one.replica.partitions().unknown(P).is_empty());
    one.merge("k", &record(1, "v")).await;
    assert_eq!(one.replica.partitions().unknown(P), one.leaf("k"));
    one.merge("k", &record(2, "w")).await;
    one.replica.rebuild(P).await.expect("readable");
    assert!(one.replica.partitions().unknown(P).is_empty());
}

#[tokio::test]
async fn a_loss_that_cannot_be_noted_is_noted_when_it_is_seen_again() {
    let one = setup(1);
    one.merge("k", &record(1, "v")).await;
    one.rot("k");
    one.store.no_notes.store(true, Ordering::Relaxed);
    one.replica.read(&key("k")).await.expect_err("corrupt");
    assert!(one.is_lost("k"), "it is not served, and this replica does not speak for it");
    let durably = || Recovery::open(one.store.clone()).expect("readable").lost(P);
    assert_eq!(durably(), None);
    let refused = one.replica.merge(P, &key("k"), record(1, "v")).await.expect_err("the loss is noted first");
    assert!(refused.to_string().contains("the disk has gone"), "{refused}");
    one.store.no_notes.store(false, Ordering::Relaxed);
    one.replica.read(&key("k")).await.expect_err("corrupt");
    one.replica.merge(P, &key("k"), record(1, "v")).await.expect("there is room for the note");
    assert!(one.is_lost("k") && durably().is_some());
}

#[tokio::test]
async fn a_page_with_a_corrupt_record_is_refused_and_the_record_is_found() {
    let one = setup(1);
    for number in 0..5 {
        one.merge(&format!("key {number}"), &record(number, "v")).await;
    }
    one.rot("key 3");
    one.replica.range(P, None, 10, Reading::AboveFloor).await.expect_err("corrupt");
    assert!(one.is_lost("key 3"));
}

/// Whoever reads without the key's lock may say that a record is corrupt when a merge has replaced it. If that were noted, nobody would
/// notice when the new record rots.
#[tokio::test]
async fn a_late_look_at_a_corrupt_record_that_was_replaced_notes_nothing() {
    let one = setup(1);
    one.merge("k", &record(1, "v")).await;
    one.rot("k");
    one.merge("k", &record(1, "v")).await;
    one.recovered().await;
    assert!(!one.is_lost("k"));
    let found = one.replica.stats().corrupt;
    drop(one.replica.0.found_corrupt(P, &Place::Data, b"k", "as it was before the merge"));
    assert_eq!((one.replica.stats().corrupt, one.is_lost("k")), (found, false), "the record is well");
    one.rot("k");
    assert_eq!(one.replica.held(P, &key("k")).await, Ok(None));
    assert_eq!((one.replica.stats().corrupt, one.is_lost("k")), (found + 1, true), "it is lost once more");
}

#[tokio::test]
async fn what_was_read_while_it_was_lost_is_not_told() {
    let one = setup(1);
    one.merge("k", &record(1, "v")).await;
    let (recovery, leaf) = (one.replica.recovery().clone(), one.leaf("k"));
    let lose = move || recovery.lose(P, &leaf, Reason::Corrupt).expect("room");
    *lock(&one.store.meanwhile) = Some(Box::new(lose));
    let refused = one.replica.read(&key("k")).await.expect_err("lost in between");
    assert!(matches!(refused, NotApplied::NotServing { .. }), "{refused}");
    // What is lost elsewhere costs a second look.
    let one = setup(1);
    one.merge("k", &record(1, "v")).await;
    let elsewhere = Leaves::ALL.without(&one.leaf("k"));
    let recovery = one.replica.recovery().clone();
    let lose = move || recovery.lose(P, &elsewhere, Reason::Corrupt).expect("room");
    *lock(&one.store.meanwhile) = Some(Box::new(lose));
    assert_eq!(one.replica.read(&key("k")).await, Ok(Some(record(1, "v"))));
}

#[tokio::test]
async fn a_page_that_is_full_to_the_byte_is_not_the_last_one() {
    let one = setup(1);
    let mut keys: Vec<String> = (0..6).map(|number| format!("key {number}")).collect();
    keys.sort_by_key(|key| key_hash(key.as_bytes()));
    let around = |key: &str, len: usize| data_key(key.as_bytes()).len() + record(1, &"v".repeat(len)).encoded_len();
    let mut left = PAGE_BYTES;
    for (at, key) in keys[..5].iter().enumerate() {
        let mut len = 900_000;
        while at == 4 && around(key, len) > left {
            len -= around(key, len) - left;
        }
        left -= around(key, len);
        one.merge(key, &record(1, &"v".repeat(len))).await;
    }
    assert_eq!(left, 0, "five records fill a page");
    one.merge(&keys[5], &record(1, "v")).await;
    let (page, last) = one.replica.range(P, None, 100, Reading::AboveFloor).await.expect("readable");
    assert_eq!((page.len(), last), (5, false));
    let (page, last) = one.replica.range(P, Some(&page[4].0), 100, Reading::AboveFloor).await.expect("readable");
    assert_eq!((page.len(), last), (1, true));
    let (page, last) = one.replica.range(P, None, 0, Reading::AboveFloor).await.expect("readable");
    assert_eq!((page.len(), last), (1, false), "a page of nothing would never end");
}

#[tokio::test]
async fn a_page_after_the_end_of_a_partition_is_the_last_and_empty() {
    let one = setup(4);
    let later = (0..).map(|number| key(&format!("key {number}")));
    let later = later.into_iter().find(|key| Partition::of(key_hash(key), 4) == Partition(3)).expect("one is there");
    assert_eq!(one.replica.range(P, Some(&later), 10, Reading::AboveFloor).await, Ok((Vec::new(), true)));
}

#[tokio::test]
async fn two_values_of_one_dot_are_an_incident() {
    let one = setup(1);
    one.merge("k", &record(1, "one value")).await;
    assert_eq!(one.replica.stats().incidents, 0);
    one.merge("k", &record(1, "another")).await;
    assert_eq!(one.replica.stats().incidents, 1);
    let samples = one.replica.stats().samples();
    let sample = |name: &str| samples.iter().find(|sample| sample.name == name).map(|sample| sample.value);
    assert_eq!((sample("incidents"), sample("merges_changed"), sample("writes_minted")), (Some(1), Some(2), Some(0)));
}

#[tokio::test]
async fn nothing_is_the_digest_of_nothing() {
    let one = setup(1);
    let merged = one.merge("k", &Record::default()).await;
    assert_eq!((merged.changed, merged.digest), (false, 0));
}

#[tokio::test]
async fn a_retry_of_unknown_age_is_minted_by_nobody_who_may_have_forgotten() {
    let one = setup(1);
    one.put("k", 1, &Context::new()).await.expect("minted");
    let operation = Operation { first_sent: Some(Duration::MAX), ..OpId(2).into() };
    let refused = one.replica.mint(P, &key("k"), operation, Some(key("v")), Context::new()).await;
    assert_eq!(refused.expect_err("it is too old"), MintError::Forgotten);
}

#[tokio::test]
async fn a_disk_that_was_set_back_has_lost_everything_durably() {
    let one = setup(1);
    one.replica.recovery().doubt(Doubt::SetBack);
    one.store.no_syncs.store(true, Ordering::Relaxed);
    one.replica.set_back(vec![P], LayoutVersion(1)).await.expect_err("no sync");
    one.replica.still_speaks(b"k", Reading::AboveFloor).expect_err("the doubt stays");
    assert_eq!(one.replica.recovery().partitions(), []);
    one.store.no_syncs.store(false, Ordering::Relaxed);
    one.replica.set_back(vec![P], LayoutVersion(1)).await.expect("noted");
    assert_eq!(one.replica.recovery().recovering(P), Leaves::ALL);
    assert_eq!(one.replica.recovery().partitions(), [P], "no doubt is left");
    assert_eq!(one.replica.recovery().reason(P, 9), Some(Reason::RolledBack));
}

#[tokio::test]
async fn hints_are_counted_to_the_byte_and_bounded_by_it() {
    let one = setup(1);
    let held = || one.hints().iter().map(|(key, value)| (key.len() + value.len()) as u64).sum::<u64>();
    let counted = || {
        let totals = one.replica.hint_totals();
        totals.get(&target()).map_or((0, 0), |totals| (totals.count, totals.bytes))
    };
    one.hint("k", &record(1, "v")).await;
    assert_eq!(counted(), (1, held()));
    one.hint("k", &record(2, "a longer value")).await;
    assert_eq!(counted(), (1, held()), "it has grown");
    one.hint("l", &record(1, "v")).await;
    assert_eq!(counted(), (2, held()));
    assert_eq!((one.replica.stats().hints_kept, one.replica.stats().hint_bytes), (3, held()));
    // As much again as the last one takes fits to the byte.
    let (stored, value) = one.hints().into_iter().find(|(stored, _)| stored.ends_with(b"l")).expect("it is there");
    let more = (stored.len() + value.len()) as u64;
    one.replica.set_hint_bytes_max(held() + more - 1);
    let refused = one.replica.keep_hint(P, &key("m"), target(), record(1, "v"), 5).await.expect_err("no room");
    assert!(matches!(refused, NotApplied::Refused { .. }), "{refused}");
    one.replica.set_hint_bytes_max(held() + more);
    one.hint("m", &record(1, "v")).await;
    assert_eq!(counted(), (3, held()));
    let loaded = setup(1);
    for (stored, value) in one.hints() {
        loaded.store.memory.insert(Tree::Hints, &stored, &value).expect("room");
    }
    loaded.store.memory.insert(Tree::Hints, b"\x02n9garbage", b"garbage").expect("room");
    loaded.replica.load_hints().await.expect("readable");
    assert_eq!(loaded.replica.hint_totals(), one.replica.hint_totals());
    assert_eq!((loaded.hints(), loaded.replica.stats().hints_damaged), (one.hints(), 1), "what is none is let go");
}

#[tokio::test]
async fn hints_tell_from_outside_whose_they_are() {
    let one = setup(1);
    one.hint("k", &record(1, "v")).await;
    let (stored, value) = one.hints().remove(0);
    assert_eq!(decode_hint(&stored, &value), Ok((target(), Bytes::from_static(b"k"), record(1, "v"))));
    assert_eq!(decode_hint(&stored.slice(..5), &value).map(|hint| hint.1), Ok(Bytes::new()), "a key that is cut off");
    decode_hint(&Bytes::new(), &value).expect_err("it names nobody");
    decode_hint(&stored, &value.slice(..7)).expect_err("it has no record");
}

#[tokio::test]
async fn hints_of_other_keys_say_nothing_of_an_operation() {
    let one = setup(1);
    one.hint("k", &record(1, "v")).await;
    let knows = async |name: &str, op| one.replica.knows_in_hints(P, &key(name), &[target()], OpId(op)).await;
    assert_eq!((knows("k", 1).await, knows("k", 2).await, knows("l", 1).await), (Ok(true), Ok(false), Ok(false)));
    one.replica.note_oldest_hint(target(), 9);
    assert_eq!(one.replica.hint_totals()[&target()].oldest_ms, 9);
    // What was replaced in a hint is known by its name.
    let replaced = OpId::new(1_000, 7);
    let mut named = Record::default();
    let dot = |counter| Dot { actor: Actor { node: target(), incarnation: 1 }, counter };
    named.mint(dot(1), replaced, Some(key("v")), &Context::new());
    let seen = named.seen();
    named.mint(dot(2), OpId::new(1_001, 8), Some(key("w")), &seen);
    one.hint("m", &named).await;
    assert_eq!((knows("m", replaced.0).await, knows("k", replaced.0).await), (Ok(true), Ok(false)));
}

#[tokio::test]
async fn a_damaged_hint_takes_the_actor_and_what_is_remembered_of_its_key_with_it() {
    let one = setup(1);
    let nothing = Context::new();
    let mint = async |name: &str, op: u128, cause: &Context| {
        let (value, place) = (Some(key("v")), (vec![target()], target()));
        one.replica.mint_in_hint(P, &key(name), OpId(op), value, cause.clone(), place, 5).await.expect("minted")
    };
    let first = mint("k", 1, &nothing).await;
    mint("k", 2, &first.context).await;
    assert_eq!(one.replica.stats().operations, 1);
    let rot = || {
        let (stored, _) = one.hints().into_iter().find(|(stored, _)| stored.ends_with(b"k")).expect("it is there");
        assert!(one.store.memory.flip_bit(Tree::Hints, &stored));
    };
    let page = async || one.replica.hint_page(target(), None, 10, 1 << 20).await;
    rot();
    assert_eq!(one.replica.hinted(P, &key("k"), &[target()]).await, Ok(None), "it is passed over");
    assert_eq!(one.replica.stats().corrupt, 1);
    let between = mint("other", 3, &nothing).await.dot.actor;
    assert_ne!(between, first.dot.actor);
    one.store.no_removes.store(true, Ordering::Relaxed);
    page().await.expect_err("it cannot be let go");
    assert!(lock(&one.told).is_empty(), "one failure is no reason to end");
    one.store.no_syncs.store(true, Ordering::Relaxed);
    page().await.expect_err("it cannot be let go");
    assert_eq!(lock(&one.told).len(), 1, "an engine that is gone is found out");
    one.store.no_removes.store(false, Ordering::Relaxed);
    assert_eq!(page().await.expect("readable").hints.len(), 1, "the other one");
    assert_eq!(one.replica.hint_totals()[&target()].count, 1);
    assert_ne!(mint("other", 4, &nothing).await.dot.actor, between);
    let again = mint("k", 5, &nothing).await;
    mint("k", 6, &again.context).await;
    assert_eq!(one.replica.stats().operations, 1, "the first one was forgotten");
    rot();
    page().await.expect("readable");
    // The two attempts that failed are counted as well.
    assert_eq!((one.replica.stats().operations, one.replica.stats().hints_damaged), (0, 4));
    mint("k", 7, &nothing).await;
    rot();
    assert_eq!(one.replica.hinted(P, &key("k"), &[target()]).await, Ok(None));
    assert_eq!(one.replica.stats().corrupt, 2, "another one that has rotted");
}

#[tokio::test]
async fn a_damaged_hint_that_goes_leaves_it_known_that_the_record_of_its_key_is_corrupt() {
    let one = setup(1);
    one.merge("k", &record(1, "v")).await;
    one.hint("k", &record(1, "v")).await;
    one.rot("k");
    one.replica.read(&key("k")).await.expect_err("corrupt");
    let (stored, _) = one.hints().remove(0);
    assert!(one.store.memory.flip_bit(Tree::Hints, &stored));
    assert_eq!(one.replica.hinted(P, &key("k"), &[target()]).await, Ok(None));
    assert_eq!(one.replica.stats().corrupt, 2);
    let lost = one.replica.recovery().lost(P);
    one.replica.hint_page(target(), None, 10, 1 << 20).await.expect("it goes");
    one.replica.held(P, &key("k")).await.expect("it counts as missing");
    assert_eq!(one.replica.stats().corrupt, 2, "that is known");
    assert_eq!(one.replica.recovery().lost(P), lost, "its recovery does not begin anew");
}

#[tokio::test]
async fn a_delivered_hint_that_cannot_be_let_go_may_be_the_engines_end() {
    let one = setup(1);
    one.hint("k", &record(1, "v")).await;
    let digest = record(1, "v").digest(b"k");
    one.store.no_removes.store(true, Ordering::Relaxed);
    one.store.no_syncs.store(true, Ordering::Relaxed);
    one.replica.hint_delivered(P, &key("k"), target(), digest, false).await.expect_err("it stays");
    assert_eq!((lock(&one.told).len(), one.replica.stats().hints_delivered), (1, 0));
}

#[tokio::test]
async fn a_large_partition_is_summed_up_leaf_by_leaf_and_listed_to_its_end() {
    let one = setup(1);
    for number in 0..700 {
        one.merge(&format!("key {number}"), &record(number, "v")).await;
    }
    let kept_in_step = setup(1);
    kept_in_step.replica.rebuild(P).await.expect("readable");
    assert!(kept_in_step.replica.partitions().unknown(P).is_empty());
    for number in 0..700 {
        kept_in_step.merge(&format!("key {number}"), &record(number, "v")).await;
    }
    one.replica.rebuild(P).await.expect("readable");
    assert!(one.replica.partitions().unknown(P).is_empty());
    assert_eq!(one.replica.partitions().root(P), kept_in_step.replica.partitions().root(P));
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let (page, done) = one.replica.list(P, &Leaves::ALL, after.as_ref(), 64).await.expect("readable");
        assert!(page.len() <= 64);
        found.extend(page.into_iter().map(|(key, _)| key));
        after = found.last().cloned();
        if done {
            break;
        }
    }
    assert_eq!(found.len(), 700);
    assert!(found.is_sorted_by_key(|key| (key_hash(key), key.clone())));
    // Leaves that lie apart, a page over both of them.
    let some: Leaves = [10, 200].into_iter().collect();
    let inside = |key: &&Blob| some.contains(merkle::leaf_of(key_hash(key), 1));
    let expected: Vec<Blob> = found.iter().filter(inside).cloned().collect();
    assert!(expected.len() >= 3, "{}", expected.len());
    let (page, done) = one.replica.list(P, &some, None, 1000).await.expect("readable");
    assert_eq!((page.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), done), (expected.clone(), true));
    let (page, _) = one.replica.list(P, &some, None, expected.len() - 1).await.expect("readable");
    assert_eq!(page.len(), expected.len() - 1, "no more than was asked for");
}

#[tokio::test]
async fn before_there_is_a_layout_nothing_is_listed_and_nothing_summed_up() {
    let one = setup(0);
    one.replica.rebuild(P).await.expect("there is nothing to do");
    one.replica.list(P, &Leaves::ALL, None, 10).await.expect_err("there is no layout yet");
    assert_eq!(one.replica.scrub(P, None).await.expect("nothing to do").records, 0);
}

#[tokio::test]
async fn a_start_is_judged_and_its_doubt_settled() {
    let one = setup(1);
    one.replica.recovery().doubt(Doubt::Layout);
    let (here, named) = (quorate_wire::ids::DiskId(2), Some(quorate_wire::ids::DiskId(1)));
    let facts = crate::recovery::Facts { disk: here, named, owned: vec![P], unclean: false, interval: false };
    one.replica.decide(facts).await.expect("noted");
    assert_eq!(one.replica.recovery().partitions(), [P]);
}

/// Whoever remembers may crash, too, just before the disk that it remembers is set back.
#[tokio::test(start_paused = true)]
async fn what_is_heard_of_other_disks_is_durable_within_seconds() {
    let one = setup(1);
    let (disk, store) = (quorate_wire::ids::DiskId(1), &*one.store);
    let open = |life| crate::beacons::Beacons::open(store, life, one.replica.0.committer.clone());
    let beacons = open(7);
    let task = tokio::spawn(crate::beacons::remember(beacons.clone(), one.replica.clone()));
    for beacon in [12, 13] {
        let (syncs, own) = (one.store.syncs.load(Ordering::Relaxed), beacons.durable());
        beacons.heard(crate::beacons::Speaker { node: target(), disk, life: 3 }, beacon);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(open(8).of(target())[0].beacon, beacon);
        assert!(one.store.syncs.load(Ordering::Relaxed) > syncs, "a power cut does not take it");
        assert_eq!(beacons.durable(), own, "it is no news to others, who would store it in their turn");
    }
    one.store.no_syncs.store(true, Ordering::Relaxed);
    beacons.heard(crate::beacons::Speaker { node: target(), disk, life: 3 }, 14);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(lock(&one.told)[0].contains("a sync failed"), "which ends the node");
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_replica_closes_when_the_last_write_is_over() {
    let one = setup(1);
    let lock = one.replica.0.stripes[STRIPES - 1].clone().lock_owned().await;
    let mut closing = std::pin::pin!(one.replica.close(1));
    tokio::time::timeout(Duration::from_secs(1), &mut closing).await.expect_err("a write is under way");
    drop(lock);
    closing.await.expect("saved");
    let refused = one.put("k", 1, &Context::new()).await.expect_err("closed");
    assert!(refused.to_string().contains("shutting down"), "{refused}");
}
