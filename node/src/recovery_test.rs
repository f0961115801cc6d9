//! What is noted of a loss, when it is durable, and who is woken by it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::*;
use crate::store::{MemoryStore, Stats};

const P: Partition = Partition(3);
const Q: Partition = Partition(4);

/// Knows whether something was written since the last sync.
#[derive(Debug, Default)]
struct Watched {
    memory: MemoryStore,
    unsynced: AtomicBool,
    syncs: AtomicU64,
    full: AtomicBool,
}

impl Store for Watched {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.memory.get(tree, key)
    }
    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if self.full.load(Ordering::Relaxed) {
            return Err(StoreError::Full("no room".into()));
        }
        self.unsynced.store(true, Ordering::Relaxed);
        self.memory.insert(tree, key, value)
    }
    fn remove(&self, tree: Tree, key: &[u8]) -> Result<(), StoreError> {
        self.unsynced.store(true, Ordering::Relaxed);
        self.memory.remove(tree, key)
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
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.unsynced.store(false, Ordering::Relaxed);
        Ok(())
    }
    fn stats(&self) -> Stats {
        Stats::default()
    }
}

fn recovery(store: &Arc<Watched>) -> Recovery {
    Recovery::open(store.clone()).expect("readable")
}

fn node(i: u32) -> NodeId {
    NodeId::new(&format!("n{i}")).expect("legal")
}

fn leaves(some: &[u8]) -> Leaves {
    some.iter().copied().collect()
}

fn lose(recovery: &Recovery, partition: Partition, some: &[u8], reason: Reason) -> Lost {
    recovery.lose(partition, &leaves(some), reason).expect("room");
    recovery.lost(partition).expect("lost")
}

#[test]
fn a_judgement_is_durable_when_it_has_been_made_and_costs_nothing_when_it_changes_nothing() {
    let store = Arc::new(Watched::default());
    let facts = |disk, unclean, interval| Facts {
        disk: DiskId(disk),
        named: Some(DiskId(1)),
        owned: vec![P, Q],
        unclean,
        interval,
    };
    let decide = |facts: &Facts| {
        let before = store.syncs.load(Ordering::Relaxed);
        recovery(&store).decide(facts).expect("room");
        assert!(!store.unsynced.load(Ordering::Relaxed), "{facts:?}: all that was noted is durable");
        store.syncs.load(Ordering::Relaxed) - before
    };
    assert_eq!(decide(&facts(1, true, false)), 0, "nothing is to be noted");
    assert_eq!(decide(&facts(2, false, false)), 1, "another disk");
    assert_eq!(decide(&facts(2, false, false)), 0, "that is known");
    assert_eq!(decide(&facts(2, false, true)), 1, "another mode");
    assert_eq!(decide(&facts(2, true, true)), 1, "an unclean stop in that mode");
    assert_eq!(decide(&facts(2, false, true)), 0);
}

/// A disk without room keeps no note. What is lost is not served all the same, and nobody may take this replica for one that can speak.
#[test]
fn what_cannot_be_noted_is_lost_as_long_as_this_process_lives() {
    let store = Arc::new(Watched::default());
    let first = recovery(&store);
    let facts = Facts { disk: DiskId(1), named: Some(DiskId(1)), owned: vec![P], unclean: false, interval: false };
    first.decide(&facts).expect("room");
    first.settle(Doubt::Start);
    let look = first.look(P, &leaves(&[3]), Reading::AboveFloor).expect("served");
    store.full.store(true, Ordering::Relaxed);
    assert!(!first.must_be_judged());
    first.lose(P, &leaves(&[3]), Reason::Corrupt).expect_err("no room");
    assert!(!first.confirm(look), "what was read in between");
    first.look(P, &leaves(&[3]), Reading::AboveFloor).expect_err("not served");
    assert_eq!(first.recovering(P), leaves(&[3]));
    assert_eq!(recovery(&store).lost(P), None, "the next process finds it anew, since it was not replaced");
    store.full.store(false, Ordering::Relaxed);
    first.lose(P, &leaves(&[3]), Reason::Corrupt).expect("room");
    assert!(recovery(&store).lost(P).is_some());
}

/// After an unclean stop in `interval` mode; the node stays in doubt, so that it must not stop as if nothing were missing.
#[test]
fn a_start_that_cannot_be_judged_stays_to_be_judged() {
    let store = Arc::new(Watched::default());
    let facts = |unclean| Facts { disk: DiskId(1), named: Some(DiskId(1)), owned: vec![P], unclean, interval: true };
    recovery(&store).decide(&facts(false)).expect("room");
    store.full.store(true, Ordering::Relaxed);
    let next = recovery(&store);
    next.doubt(Doubt::Layout);
    next.decide(&facts(true)).expect_err("no room");
    assert!(next.must_be_judged());
    store.full.store(false, Ordering::Relaxed);
    next.decide(&facts(true)).expect("room");
    assert!(!next.must_be_judged() && next.lost(P).is_some());
}

#[test]
fn losses_add_up_and_the_gravest_reason_stands() {
    let recovery = recovery(&Arc::default());
    lose(&recovery, P, &[3], Reason::Unclean);
    lose(&recovery, P, &[4], Reason::Corrupt);
    assert_eq!(recovery.recovering(P), leaves(&[3, 4]));
    assert_eq!(recovery.reason(P, 4), Some(Reason::Unclean));
    assert!(recovery.is_lost(P, &leaves(&[3, 4])) && !recovery.is_lost(P, &leaves(&[3, 5])));
    assert!(!recovery.is_lost(Q, &leaves(&[3])));
}

#[test]
fn what_is_brought_back_in_part_stays_so_over_a_restart() {
    let store = Arc::default();
    let first = recovery(&store);
    let lost = lose(&first, P, &[3, 4], Reason::Corrupt);
    assert!(!first.exchanged(P, lost, node(1), &leaves(&[4]), 1, 4).expect("room"));
    assert_eq!(recovery(&store).recovering(P), leaves(&[4]));
}

#[test]
fn a_recovery_counts_its_partitions_until_the_last_one_is_whole() {
    let recovery = recovery(&Arc::default());
    let (one, two) = (lose(&recovery, P, &[3], Reason::Corrupt), lose(&recovery, Q, &[3], Reason::Corrupt));
    let counts = || recovery.progress().map(|progress| (progress.left, progress.total));
    assert_eq!(counts(), Some((2, 2)));
    assert!(recovery.exchanged(P, one, node(1), &Leaves::NONE, 1, 2).expect("room"));
    assert_eq!(counts(), Some((1, 2)), "one of two is left");
    assert!(recovery.exchanged(P, one, node(2), &Leaves::NONE, 1, 2).expect("room"), "it is whole already");
    assert!(recovery.exchanged(Q, two, node(1), &Leaves::NONE, 1, 2).expect("room"));
    assert_eq!(counts(), None);
    lose(&recovery, Q, &[3], Reason::Corrupt);
    assert_eq!(counts(), Some((1, 1)), "another recovery");
}

#[test]
fn a_partition_that_has_lost_something_has_lost_it_for_this_life() {
    let store = Arc::default();
    lose(&recovery(&store), P, &[3], Reason::Corrupt);
    let again = recovery(&store);
    assert!(again.progress().is_some(), "one is left of one");
    let lost = again.lost(P).expect("lost");
    assert!(again.exchanged(P, lost, node(1), &Leaves::NONE, 1, 1).expect("room"));
    assert!(again.has_lost(P) && !again.has_lost(Q));
    assert!(!recovery(&store).has_lost(P), "the next one finds nothing");
    lose(&again, Q, &[3], Reason::Corrupt);
    assert!(again.has_lost(Q));
}

#[test]
fn in_doubt_everything_may_be_lost_and_nothing_is_recovered_yet() {
    for doubt in [Doubt::Layout, Doubt::SetBack] {
        let recovery = recovery(&Arc::default());
        lose(&recovery, P, &[3], Reason::Corrupt);
        recovery.doubt(doubt);
        assert!(recovery.has_lost(Q), "{doubt:?}");
        assert_eq!((recovery.partitions(), recovery.recovering(Q)), (Vec::new(), Leaves::ALL), "{doubt:?}");
        recovery.settle(doubt);
        assert!(!recovery.has_lost(Q));
        assert_eq!((recovery.partitions(), recovery.recovering(Q)), (vec![P], Leaves::NONE));
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_recovers_is_woken_by_a_loss_and_by_the_end_of_a_doubt() {
    let recovery = recovery(&Arc::default());
    let woken = async || timeout(Duration::from_secs(1), recovery.news()).await.is_ok();
    assert!(!woken().await);
    lose(&recovery, P, &[3], Reason::Corrupt);
    assert!(woken().await && !woken().await);
    recovery.doubt(Doubt::Layout);
    recovery.settle(Doubt::Layout);
    assert!(woken().await);
}

#[tokio::test(start_paused = true)]
async fn a_recovery_begins_with_its_first_loss() {
    let recovery = recovery(&Arc::default());
    tokio::time::advance(Duration::from_secs(10)).await;
    lose(&recovery, P, &[3], Reason::Corrupt);
    tokio::time::advance(Duration::from_secs(10)).await;
    lose(&recovery, Q, &[3], Reason::Corrupt);
    assert_eq!(recovery.progress().expect("under way").since.elapsed(), Duration::from_secs(10));
}
