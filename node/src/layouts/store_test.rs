//! What becomes of layouts and keys when disks are full, fail or lose power, and members come in any order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_wire::ids::{ClusterId, DiskId, Partition};
use tokio::time::{Instant, sleep};

use super::*;
use crate::membership::PeerState;
use crate::store::Stats;
use quorate_core::staging::StagedMember;

#[tokio::test]
async fn what_is_staged_is_kept_over_a_restart() {
    let disk = Arc::new(Disk::default());
    let store = open(0, &disk).await;
    assert_eq!(store.report().await.staged, None);
    assert_eq!(store.report().await.current, Layout::none_view());
    stage(&store, 3).await;
    store.stage(|staged| staged.settings(None, Some(64), None, None)).await.expect("staged");
    let report = open(0, &disk.after_power_cut()).await.report().await;
    let staged = report.staged.expect("staged");
    assert_eq!((staged.members.len(), staged.n, staged.partitions, staged.r, staged.w), (3, 3, 64, 2, 2));
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!(staged.members.iter().map(|member| member.primaries).sum::<u32>(), 3 * 64);
    store.stage(|staged| *staged = Staged::default()).await.expect("reverted");
    assert_eq!(open(0, &disk.after_power_cut()).await.report().await.staged, None);
}

#[tokio::test]
async fn an_apply_that_cannot_be_is_refused_with_its_reasons() {
    let store = open(0, &Arc::new(Disk::default())).await;
    let why = |version: u64| {
        let store = &store;
        async move { store.to_apply(LayoutVersion(version)).await.expect_err("refused").to_string() }
    };
    assert!(why(1).await.contains("nothing is staged"));
    assert!(why(0).await.contains("only version 1"));
    assert!(why(2).await.contains("only version 1"));
    stage(&store, 2).await;
    assert!(why(1).await.contains("only 2 members: stage 1 more"));
    let elsewhere = open(9, &Arc::new(Disk::default())).await;
    stage(&elsewhere, 3).await;
    let why = elsewhere.to_apply(LayoutVersion(1)).await.expect_err("refused").to_string();
    assert!(why.contains("n9 is not among the staged members"), "{why}");
    assert!(elsewhere.told().accepted.is_none());
}

#[tokio::test]
async fn a_lone_member_is_its_own_majority() {
    let disk = Arc::new(Disk::default());
    let store = open(0, &disk).await;
    stage(&store, 1).await;
    store.stage(|staged| staged.settings(Some(1), Some(8), None, None)).await.expect("staged");
    let mut watch = store.current.subscribe();
    let layout = store.to_apply(LayoutVersion(1)).await.expect("fine");
    store.accept(layout.clone(), keys()).await.expect("accepted");
    let current = watch.borrow_and_update().clone().expect("published");
    assert_eq!((current.hash, current.table.primaries.len(), current.view(Partition(0)).n()), (layout.hash(), 8, 1));
    assert_eq!(store.told().not_serving, None);
    let again = open(0, &disk.after_power_cut()).await;
    assert_eq!(again.current.borrow().as_ref().expect("in force").hash, layout.hash());
}

#[tokio::test]
async fn a_majority_brings_it_into_force_and_a_restart_in_between_forgets_nothing() {
    let disks: Vec<Arc<Disk>> = (0..3).map(|_| Arc::default()).collect();
    let store = open(0, &disks[0]).await;
    stage(&store, 3).await;
    let layout = store.to_apply(LayoutVersion(1)).await.expect("fine");
    store.accept(layout.clone(), keys()).await.expect("accepted");
    assert!(store.current.borrow().is_none(), "one of three");
    let report = store.report().await;
    assert!(report.warnings[0].contains("1 of 3 members are known to hold it, 2 are needed"), "{report:?}");
    assert_eq!(report.staged.expect("what the next apply is about").hash, layout.hash().to_string());

    // The operator's node stops here; what it accepted is what it applies when it is asked again.
    let store = open(0, &disks[0].after_power_cut()).await;
    assert_eq!(store.to_apply(LayoutVersion(1)).await.expect("the same"), layout);
    let why = store.stage(|staged| *staged = Staged::default()).await.expect_err("too late").to_string();
    assert!(why.contains("cannot be taken back"), "{why}");

    let other = open(1, &disks[1]).await;
    other.accept(layout.clone(), keys()).await.expect("accepted");
    other.accept(layout.clone(), keys()).await.expect("repeated");
    assert_eq!(other.task(&liveness(&[0, 1, 2], &[])).await, Task::Ask(vec![id(0), id(2)]));
    tell(&other, 1, &store).await;
    assert_eq!(store.current.borrow().as_ref().expect("two of three").hash, layout.hash());
    assert_eq!(store.report().await.holding, [id(0), id(1)]);
    tell(&store, 0, &other).await;
    assert!(other.current.borrow().is_some(), "who accepted it hears that it is chosen");

    // The third was down all the time.
    assert_eq!(store.task(&liveness(&[0, 1], &[2])).await, Task::Rest);
    assert_eq!(store.task(&liveness(&[0, 1, 2], &[])).await, Task::Offer(vec![id(2)], layout.clone()));
    let third = open(2, &disks[2]).await;
    assert_eq!(third.task(&liveness(&[2], &[])).await, Task::Rest);
    assert_eq!(third.task(&liveness(&[0, 2], &[1])).await, Task::Ask(vec![id(0)]));
    tell(&store, 0, &third).await;
    assert!(open(2, &disks[2].after_power_cut()).await.current.borrow().is_some(), "learned and kept");
    tell(&third, 2, &store).await;
    assert_eq!(store.task(&liveness(&[0, 1, 2], &[])).await, Task::Rest);

    assert_eq!(store.to_apply(LayoutVersion(1)).await.expect("again is fine"), layout);
    assert!(store.stage(|_| {}).await.expect_err("later").to_string().contains("what is staged now is the next one"));
}

#[tokio::test]
async fn a_second_first_layout_is_refused_for_ever() {
    let disk = Arc::new(Disk::default());
    let (one, other) = (layout(3, 64), layout(3, 128));
    open(1, &disk).await.accept(one.clone(), keys()).await.expect("accepted");
    let store = open(1, &disk.after_power_cut()).await;
    let why = store.accept(other.clone(), keys()).await.expect_err("another").to_string();
    assert!(why.contains(&one.hash().to_string()) && why.contains(&other.hash().to_string()), "{why}");
    assert_eq!(store.state(), LayoutState { accepted: Some(one), chosen: false, keys: keys() });
}

#[tokio::test(start_paused = true)]
async fn an_acceptance_that_nobody_waits_for_is_still_the_only_one() {
    let disk = Arc::new(Disk::default());
    let latencies = Mutex::new(vec![Duration::from_secs(1), Duration::from_secs(5), Duration::ZERO]);
    let next = move || lock_of(&latencies).pop().unwrap_or_default();
    let slow = Executor::Slow(crate::store::Latency(Arc::new(next)));
    let store = Arc::new(open_with(&disk, slow, me(1)).await.expect("opens"));
    let (one, other) = (layout(3, 64), layout(3, 128));
    // The proposer gives up while the disk is busy, and another one comes.
    tokio::time::timeout(Duration::from_secs(1), store.accept(one.clone(), keys())).await.expect_err("too slow");
    store.accept(other, keys()).await.expect_err("the first one is on its way to the disk");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(store.state(), LayoutState { accepted: Some(one.clone()), chosen: false, keys: keys() });
    let again = open(1, &disk.after_power_cut()).await;
    assert_eq!(again.state(), LayoutState { accepted: Some(one), chosen: false, keys: keys() });
}

fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it is locked")
}

#[tokio::test]
async fn a_wiped_member_accepts_nothing_and_learns_what_is_in_force() {
    let disk = Arc::new(Disk::default());
    let wiped = open_with(&disk, Executor::Inline, Me { disk: DiskId(77), ..me(2) }).await.expect("opens");
    let wiped = Arc::new(wiped);
    let layout = layout(3, 64);
    let why = wiped.accept(layout.clone(), keys()).await.expect_err("another disk").to_string();
    assert!(why.contains("emptied or exchanged"), "{why}");
    assert!(!wiped.hear(id(0), Some(layout.clone()), false, keys()).await.expect("no storage is touched"));
    assert_eq!(wiped.state(), LayoutState { accepted: None, chosen: false, keys: ContextKeys::default() });
    assert!(disk.durable.lock().expect("lock").is_empty());
    assert!(wiped.hear(id(0), Some(layout), true, keys()).await.expect("stored"), "what is in force is learned");
    assert!(wiped.told().not_serving.is_none() && wiped.report().await.holding.is_empty());
}

#[tokio::test]
async fn nothing_is_answered_before_it_is_durable() {
    let disk = Arc::new(Disk::default());
    let store = open(1, &disk).await;
    disk.full.store(true, Ordering::SeqCst);
    let why = store.accept(layout(3, 64), keys()).await.expect_err("full");
    assert!(matches!(why, NotApplied::Storage { .. }), "{why}");
    assert!(store.told().not_serving.clone().expect("why").contains("could not be stored"));
    disk.full.store(false, Ordering::SeqCst);
    store.accept(layout(3, 128), keys()).await.expect("nothing had been accepted");

    let store = open(2, &disk).await;
    assert!(store.told().not_serving.is_some());
    let disk = Arc::new(Disk::default());
    let desk_of_failing = open(1, &disk).await;
    disk.sync_fails.store(true, Ordering::SeqCst);
    assert!(desk_of_failing.accept(layout(3, 64), keys()).await.is_err());
    disk.sync_fails.store(false, Ordering::SeqCst);
    // What the disk holds is unknown now, so that not even the same layout can be acknowledged.
    assert!(desk_of_failing.accept(layout(3, 64), keys()).await.is_err());
    assert!(desk_of_failing.told().not_serving.clone().expect("why").contains("could not be stored"));
    assert_eq!(desk_of_failing.state(), LayoutState { accepted: None, chosen: false, keys: ContextKeys::default() });
}

#[tokio::test]
async fn the_context_key_comes_with_the_layout_and_stays_over_restarts() {
    let disks: Vec<Arc<Disk>> = (0..2).map(|_| Arc::default()).collect();
    let layout = layout(3, 64);
    let store = open(0, &disks[0]).await;
    assert!(store.known_keys().is_empty());
    let why = store.accept(layout.clone(), ContextKeys::default()).await.expect_err("no key").to_string();
    assert!(why.contains("without a context key"), "{why}");
    store.accept(layout.clone(), keys()).await.expect("accepted");
    assert_eq!(store.known_keys(), keys());
    assert_eq!(open(0, &disks[0].after_power_cut()).await.known_keys(), keys());
    // Somebody has proposed the same layout elsewhere, with a key of its own.
    let other = ContextKeys::first([8; 32]);
    store.accept(layout.clone(), other.clone()).await.expect("the same layout");
    assert_eq!(store.known_keys().names().len(), 2);
    let restarted = open(0, &disks[0].after_power_cut()).await;
    assert_eq!(restarted.known_keys(), store.known_keys());

    // Who learns the layout learns the keys, and never the one without the other.
    let late = open(9, &disks[1]).await;
    assert!(!late.hear(id(0), Some(layout.clone()), true, ContextKeys::default()).await.expect("nothing to store"));
    assert_eq!(late.state(), LayoutState { accepted: None, chosen: false, keys: ContextKeys::default() });
    assert!(!late.take_keys(keys()).await.expect("nothing to store"), "there is no layout that they could be of");
    assert!(late.hear(id(0), Some(layout.clone()), true, store.known_keys()).await.expect("stored"));
    assert_eq!(open(9, &disks[1].after_power_cut()).await.known_keys(), store.known_keys());
    // What another layout's node holds is of no use here.
    let stranger = self::layout(3, 128);
    let third = ContextKeys::first([9; 32]);
    assert!(!late.hear(id(1), Some(stranger), true, third.clone()).await.expect("refused"));
    assert_eq!(late.known_keys(), store.known_keys());
    assert!(late.hear(id(1), Some(layout), true, third).await.expect("stored"));
    assert_eq!(late.known_keys().names().len(), 3);
}

#[tokio::test]
async fn a_key_is_durable_before_anything_is_sealed_with_it() {
    let disk = Arc::new(Disk::default());
    let store = open(0, &disk).await;
    store.accept(layout(3, 64), keys()).await.expect("accepted");
    let rotated = keys().rotated([8; 32]).expect("there is a first one");
    disk.full.store(true, Ordering::SeqCst);
    assert!(matches!(store.take_keys(rotated.clone()).await, Err(StoreError::Full(_))));
    assert_eq!(store.known_keys(), keys());
    disk.full.store(false, Ordering::SeqCst);
    assert!(store.take_keys(rotated.clone()).await.expect("there is room again"));
    assert!(!store.take_keys(rotated.clone()).await.expect("no news"));
    assert_eq!(store.known_keys(), rotated);
    disk.sync_fails.store(true, Ordering::SeqCst);
    let third = rotated.rotated([9; 32]).expect("there is one");
    assert!(store.take_keys(third.clone()).await.is_err());
    assert_eq!(store.known_keys(), rotated);
    assert!(store.take_keys(third).await.is_err(), "what the disk holds is not known any more");
    assert_eq!(open(0, &disk.after_power_cut()).await.known_keys(), rotated);
}

#[tokio::test]
async fn an_engine_that_met_the_end_of_the_disk_stores_nothing_any_more_unless_it_can_go_on() {
    let disk = Arc::new(Disk::default());
    let store = open(0, &disk).await;
    store.accept(layout(3, 64), keys()).await.expect("accepted");
    let rotated = keys().rotated([8; 32]).expect("there is a first one");
    disk.full.store(true, Ordering::SeqCst);
    disk.sync_fails.store(true, Ordering::SeqCst);
    assert!(store.take_keys(rotated.clone()).await.is_err());
    disk.full.store(false, Ordering::SeqCst);
    disk.sync_fails.store(false, Ordering::SeqCst);
    assert!(store.take_keys(rotated).await.is_err(), "what the disk holds is not known any more");
}

#[tokio::test]
async fn no_operator_sees_a_secret() {
    let store = open(0, &Arc::new(Disk::default())).await;
    store.accept(layout(3, 64), ContextKeys::first([0xab; 32])).await.expect("accepted");
    let report = store.report().await;
    assert_eq!(report.context_keys.len(), 1);
    let shown = format!("{report:?} {:?} {:?} {store:?}", store.state(), store.known_keys());
    for secret in ["171, 171", "ababab", "\\xab"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[tokio::test]
async fn what_is_stored_and_is_no_layout_is_an_error() {
    let disk = Arc::new(Disk::default());
    disk.insert(Tree::Meta, FIRST_KEY, b"garbage").expect("inserted");
    let error = open_with(&disk, Executor::Inline, me(0)).await.expect_err("garbage");
    assert!(matches!(&error, StoreError::Corrupt(why) if why.contains("layout/first")), "{error}");
}

#[tokio::test]
async fn a_floor_above_n_is_not_staged() {
    let store = open(0, &Arc::new(Disk::default())).await;
    let settings = async |n, r, w| store.stage(move |staged| staged.settings(n, None, r, w)).await;
    let refused = settings(None, Some(9), None).await.expect_err("N is 3");
    assert_eq!(refused, NotApplied::QuorumImpossible { what: "the floor of R".into(), asked: 9, n: 3 });
    settings(Some(9), Some(9), None).await.expect("possible");
    let refused = settings(Some(5), None, None).await.expect_err("R stays 9");
    assert!(refused.to_string().contains("the floor of R=9 is not possible with N=5"), "{refused}");
}

/// What `from` says of itself, as `to` hears it.
pub(in crate::layouts) async fn tell(from: &LayoutStore, i: usize, to: &Arc<LayoutStore>) {
    let LayoutState { accepted, chosen, keys } = from.state();
    assert!(to.hear(id(i), accepted, chosen, keys).await.expect("stored"), "news");
}

pub(in crate::layouts) async fn open(i: usize, disk: &Arc<Disk>) -> Arc<LayoutStore> {
    Arc::new(open_with(disk, Executor::Inline, me(i)).await.expect("opens"))
}

pub(in crate::layouts) async fn open_with(
    disk: &Arc<Disk>,
    executor: Executor,
    me: Me,
) -> Result<LayoutStore, StoreError> {
    // A sync that fails is told to the node, which ends.
    LayoutStore::open(disk.clone(), (executor, Executor::Inline), me, Arc::new(|_| ())).await
}

async fn stage(store: &Arc<LayoutStore>, count: usize) {
    for i in 0..count {
        let addr = SocketAddr::from(([127, 0, 0, 1], 7000 + i as u16));
        let member = StagedMember { disk: DiskId(i as u128), addr, zone: "z".into(), weight: 1 };
        store.stage(move |staged| staged.join(id(i), member)).await.expect("staged");
    }
}

pub(in crate::layouts) fn layout(count: usize, partitions: u16) -> Layout {
    let mut staged = Staged::default();
    for i in 0..count {
        let addr = SocketAddr::from(([127, 0, 0, 1], 7000 + i as u16));
        staged.join(id(i), StagedMember { disk: DiskId(i as u128), addr, zone: "z".into(), weight: 1 });
    }
    staged.settings(None, Some(partitions), None, None);
    staged.layout(ClusterId(7))
}

pub(in crate::layouts) fn liveness(up: &[usize], down: &[usize]) -> Liveness {
    let state = |i: usize, up: bool| {
        let addr = SocketAddr::from(([127, 0, 0, 1], 7000 + i as u16));
        (id(i), PeerState { addr, up, since: Instant::now() })
    };
    up.iter().map(|i| state(*i, true)).chain(down.iter().map(|i| state(*i, false))).collect()
}

pub(in crate::layouts) fn keys() -> ContextKeys {
    ContextKeys::first([7; 32])
}

pub(in crate::layouts) fn id(i: usize) -> NodeId {
    NodeId::new(&format!("n{i}")).expect("legal")
}

pub(in crate::layouts) fn me(i: usize) -> Me {
    Me { node: id(i), disk: DiskId(i as u128), cluster: ClusterId(7) }
}

/// A store that knows what would survive a power cut, and that can be full or fail to sync.
#[derive(Debug, Default)]
pub(in crate::layouts) struct Disk {
    entries: Mutex<BTreeMap<Vec<u8>, Bytes>>,
    durable: Mutex<BTreeMap<Vec<u8>, Bytes>>,
    pub(in crate::layouts) full: AtomicBool,
    pub(in crate::layouts) sync_fails: AtomicBool,
}

impl Disk {
    pub(in crate::layouts) fn after_power_cut(&self) -> Arc<Self> {
        let durable = self.durable.lock().expect("lock").clone();
        Arc::new(Self { entries: Mutex::new(durable.clone()), durable: Mutex::new(durable), ..Self::default() })
    }
}

impl Store for Disk {
    fn get(&self, _: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.entries.lock().expect("lock").get(key).cloned())
    }

    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        assert_eq!(tree, Tree::Meta);
        if self.full.load(Ordering::SeqCst) {
            return Err(StoreError::Full("no space".into()));
        }
        self.entries.lock().expect("lock").insert(key.to_vec(), Bytes::copy_from_slice(value));
        Ok(())
    }

    fn remove(&self, _: Tree, key: &[u8]) -> Result<(), StoreError> {
        self.entries.lock().expect("lock").remove(key);
        Ok(())
    }

    fn scan(&self, _: Tree, _: &[u8], _: Option<&[u8]>, _: usize, _: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        panic!("layouts are never scanned for")
    }

    fn keys(&self, _: Tree, _: &[u8], _: Option<&[u8]>, _: usize) -> Result<Vec<Bytes>, StoreError> {
        panic!("layouts are never scanned for")
    }

    fn sync(&self) -> Result<(), StoreError> {
        if self.sync_fails.load(Ordering::SeqCst) {
            return Err(StoreError::Io("the disk is gone".into()));
        }
        *self.durable.lock().expect("lock") = self.entries.lock().expect("lock").clone();
        Ok(())
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}
