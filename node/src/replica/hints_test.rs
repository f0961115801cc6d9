//! Hints over a store in memory: kept, merged, minted in, handed over, let go, bounded, counted again after a restart.

use std::time::Duration;

use quorate_wire::random::Random;

use super::*;
use crate::recovery::Recovery;
use crate::store::Store as _;
use crate::store::room::Reserved;
use crate::store::{Committer, DiskReserve, DiskRoom, Durability, Executor, MemoryStore, Space};
use quorate_core::version::{Actor, Dot};

const P: Partition = Partition(0);

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("legal")
}

fn key(text: &str) -> Blob {
    Blob::copy_from(text.as_bytes())
}

fn replica(store: &std::sync::Arc<MemoryStore>) -> Replica {
    replica_on(store.clone())
}

fn replica_on(store: std::sync::Arc<dyn crate::store::Store>) -> Replica {
    let executor = Executor::Inline;
    let fatal = std::sync::Arc::new(|why| panic!("{why}"));
    let interval = Duration::from_millis(100);
    let committer = Committer::start(store.clone(), executor.clone(), Durability::Always, interval, fatal);
    let recovery = Recovery::open(store.clone()).expect("readable");
    Replica::new(node("f"), store, executor, committer, Random::from_seed(7), recovery)
}

/// A record with one value of another node's; those of different numbers are concurrent.
fn record(number: u64) -> Record {
    let actor = Actor { node: node("a"), incarnation: number };
    let mut record = Record::default();
    let value = Some(key(&format!("value {number}")));
    record.mint(Dot { actor, counter: 1 }, OpId(number.into()), value, &Context::new());
    record
}

fn primaries() -> Vec<NodeId> {
    ["a", "b", "c"].map(node).to_vec()
}

async fn page(replica: &Replica, target: &str) -> Vec<Hinted> {
    replica.hint_page(node(target), None, 100, 1 << 20).await.expect("readable").hints
}

#[tokio::test(start_paused = true)]
async fn hints_for_one_key_and_target_merge_and_others_stay_apart() {
    let replica = replica(&Default::default());
    for (text, target, counter) in [("k", "b", 1), ("k", "b", 2), ("k", "c", 1), ("l", "b", 3)] {
        let kept = replica.keep_hint(P, &key(text), node(target), record(counter), 5).await.expect("room");
        assert!(kept.changed);
    }
    let again = replica.keep_hint(P, &key("k"), node("b"), record(1), 6).await.expect("room");
    assert!(!again.changed, "it holds that already");
    let hints = page(&replica, "b").await;
    assert_eq!(hints.len(), 2);
    let of_k = hints.iter().find(|hint| hint.key == key("k")).expect("there");
    assert_eq!((of_k.record.siblings.len(), of_k.since_ms), (2, 5));
    assert_eq!(page(&replica, "c").await.len(), 1);
    assert_eq!(page(&replica, "a").await, []);
    let totals = replica.hint_totals();
    assert_eq!((totals[&node("b")].count, totals[&node("c")].count, totals.len()), (2, 1, 2));
    let joined = replica.hinted(P, &key("k"), &primaries()).await.expect("readable").expect("there");
    assert_eq!(joined.siblings.len(), 2);
    assert_eq!(replica.hinted(P, &key("m"), &primaries()).await.expect("readable"), None);
}

#[tokio::test(start_paused = true)]
async fn targets_whose_names_begin_alike_are_not_mixed_up_and_pages_go_on() {
    let replica = replica(&Default::default());
    for target in ["n1", "n2", "n10", "n"] {
        for i in 0..5 {
            replica.keep_hint(P, &key(&format!("k{i}")), node(target), record(i + 1), 0).await.expect("room");
        }
    }
    for target in ["n1", "n2", "n10", "n"] {
        let (mut seen, mut after) = (0, None);
        loop {
            let page = replica.hint_page(node(target), after.as_ref(), 2, 1 << 20).await.expect("readable");
            seen += page.hints.len();
            let Some(next) = page.next else { break };
            after = Some(next);
        }
        assert_eq!(seen, 5, "{target}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_was_acknowledged_is_let_go() {
    let replica = replica(&Default::default());
    let k = key("k");
    replica.keep_hint(P, &k, node("b"), record(1), 0).await.expect("room");
    let sent = page(&replica, "b").await.remove(0);
    replica.keep_hint(P, &k, node("b"), record(2), 0).await.expect("room");
    let gone = |digest| replica.hint_delivered(P, &k, node("b"), digest, false);
    assert!(!gone(sent.digest).await.expect("stored"), "it has grown meanwhile");
    let sent = page(&replica, "b").await.remove(0);
    assert!(gone(sent.digest).await.expect("stored"));
    assert!(!gone(sent.digest).await.expect("stored"), "it is gone");
    assert!(replica.hint_totals().is_empty());
    assert_eq!(replica.stats().hints_delivered, 1);
}

/// Rule V1: after a hint is gone, its actor mints no more; a primary that keeps a hint holds it all in its own record.
#[tokio::test(start_paused = true)]
async fn a_fallbacks_actor_goes_with_a_hint_and_its_dots_are_never_reused() {
    let replica = replica(&Default::default());
    let k = key("k");
    let mint = async |op: u128, cause: Context| {
        let place = (primaries(), node("b"));
        replica.mint_in_hint(P, &k, OpId(op), Some(key("v")), cause, place, 0).await.expect("minted")
    };
    let one = mint(1, Context::new()).await;
    let two = mint(2, Context::new()).await;
    assert_eq!((one.dot.actor, one.dot.counter, two.dot.counter), (two.dot.actor, 1, 2));
    assert_eq!(two.record.siblings.len(), 2, "a mint has all that is kept of the key");
    assert!(mint(2, Context::new()).await.repeated, "a retry is known");
    assert!(replica.knows_in_hints(P, &k, &primaries(), OpId(2)).await.expect("readable"));
    assert!(!replica.knows_in_hints(P, &k, &primaries(), OpId(3)).await.expect("readable"));
    // An owner that holds all of it goes on as the same actor; one that does not, and who is no owner, must not.
    for (number, (owner, holds)) in [(true, true), (true, false), (false, false)].into_iter().enumerate() {
        let before = mint(4 + 2 * number as u128, Context::new()).await;
        let sent = page(&replica, "b").await.remove(0);
        if holds {
            replica.merge(P, &k, sent.record).await.expect("merged");
        }
        assert!(replica.hint_delivered(P, &k, node("b"), sent.digest, owner).await.expect("stored"));
        let after = replica.mint(P, &k, OpId(5 + 2 * number as u128), Some(key("v")), Context::new()).await;
        assert_eq!(after.expect("minted").dot.actor == before.dot.actor, holds, "{owner} {holds}");
    }
}

/// Owners become fallbacks when a layout changes, and fallbacks owners. What a node then mints must not cover what it has minted for the
/// key before, in a record that it does not look at now.
#[tokio::test(start_paused = true)]
async fn who_was_an_owner_or_a_fallback_before_mints_as_another_actor() {
    let of = |who: &str| ["a", "b", "c"].map(node).into_iter().filter(|name| *name != node(who)).collect::<Vec<_>>();
    for case in ["owner, then fallback", "fallback, then owner", "fallback for others"] {
        let replica = replica(&Default::default());
        let k = key("k");
        let in_hint = async |op: u128, without: &str, target: &str| {
            let place = (of(without), node(target));
            replica
                .mint_in_hint(P, &k, OpId(op), Some(key(&op.to_string())), Context::new(), place, 0)
                .await
                .expect("minted")
        };
        let in_data = async |op: u128| {
            replica.mint(P, &k, OpId(op), Some(key(&op.to_string())), Context::new()).await.expect("minted")
        };
        let (first, second) = match case {
            "owner, then fallback" => (in_data(1).await, in_hint(2, "c", "b").await),
            "fallback, then owner" => (in_hint(1, "c", "b").await, in_data(2).await),
            _ => (in_hint(1, "a", "b").await, in_hint(2, "b", "c").await),
        };
        let mut both = first.record;
        both.merge(&second.record, &|_| false);
        assert_eq!(both.siblings.len(), 2, "{case}: no value is lost when the two meet");
        let third = in_data(3).await;
        let mut all = both.clone();
        all.merge(&third.record, &|_| false);
        assert_eq!(all.siblings.len(), 3, "{case}");
    }
}

/// A retry that comes when the hint which held its write has been handed over, and the write was replaced elsewhere, was minted anew:
/// life 424 of the simulator.
#[tokio::test(start_paused = true)]
async fn a_retry_of_what_was_handed_over_is_not_minted_again() {
    let replica = replica(&Default::default());
    let k = key("k");
    tokio::time::advance(Duration::from_secs(100)).await;
    let mint = async |first_sent: Option<u64>| {
        let operation = Operation { first_sent: first_sent.map(Duration::from_secs), ..OpId(1).into() };
        let place = (primaries(), node("b"));
        replica.mint_in_hint(P, &k, operation, Some(key("v")), Context::new(), place, 0).await
    };
    assert!(!mint(None).await.expect("minted").repeated);
    assert!(mint(Some(1)).await.expect("it is there").repeated);
    let sent = page(&replica, "b").await.remove(0);
    assert!(replica.hint_delivered(P, &k, node("b"), sent.digest, false).await.expect("stored"));
    assert!(matches!(mint(Some(1)).await, Err(MintError::Forgotten)));
    // What was first sent when all of that was over cannot have been there.
    tokio::time::advance(Duration::from_secs(100)).await;
    assert!(!mint(Some(1)).await.expect("minted").repeated);
}

#[tokio::test(start_paused = true)]
async fn a_mint_joins_what_is_kept_for_every_primary() {
    let replica = replica(&Default::default());
    let k = key("k");
    replica.keep_hint(P, &k, node("a"), record(1), 0).await.expect("room");
    replica.keep_hint(P, &k, node("c"), record(2), 0).await.expect("room");
    let mut seen = Context::new();
    seen.join(&record(1).context);
    let place = (primaries(), node("b"));
    let minted = replica.mint_in_hint(P, &k, OpId(9), None, seen, place, 0).await.expect("minted");
    assert_eq!(minted.record.values(), [key("value 2")], "the delete drops what it has seen, and nothing else");
}

#[tokio::test(start_paused = true)]
async fn past_its_bound_a_fallback_refuses_and_keeps_what_it_has() {
    let replica = replica(&Default::default());
    replica.set_hint_bytes_max(300);
    let mut kept = 0;
    let refusal = loop {
        match replica.keep_hint(P, &key(&format!("k{kept}")), node("b"), record(1), 0).await {
            Ok(_) => kept += 1,
            Err(refusal) => break refusal,
        }
    };
    assert!(kept > 1 && refusal.to_string().contains("of 300 bytes"), "{kept} {refusal}");
    assert!(refusal.to_string().ends_with("nothing was changed"), "{refusal}");
    let place = (primaries(), node("b"));
    let minted = replica.mint_in_hint(P, &key("m"), OpId(1), Some(key("v")), Context::new(), place, 0).await;
    assert!(matches!(minted, Err(MintError::NotApplied(NotApplied::Refused { .. }))), "{minted:?}");
    assert_eq!(page(&replica, "b").await.len(), kept);
    assert_eq!(replica.stats().hints_refused, 2);
    let sent = page(&replica, "b").await.remove(0);
    assert!(replica.hint_delivered(P, &sent.key, node("b"), sent.digest, false).await.expect("stored"));
    replica.keep_hint(P, &key("again"), node("b"), record(1), 0).await.expect("there is room again");
}

#[tokio::test(start_paused = true)]
async fn a_restart_counts_what_is_kept() {
    let store = std::sync::Arc::new(MemoryStore::default());
    let before = replica(&store);
    for i in 0..1500u64 {
        let target = if i % 3 == 0 { "b" } else { "c" };
        before.keep_hint(P, &key(&format!("k{i}")), node(target), record(1), 10 + i).await.expect("room");
    }
    let after = replica(&store);
    after.load_hints().await.expect("readable");
    assert_eq!(after.hint_totals(), before.hint_totals());
    assert_eq!(after.hint_totals()[&node("b")].oldest_ms, 10);
    let stats = (after.stats().hints, after.stats().hint_bytes);
    assert_eq!(stats, (before.stats().hints, before.stats().hint_bytes));
}

/// A damaged hint kept all behind it from being handed over, and the node from starting.
#[tokio::test(start_paused = true)]
async fn a_damaged_hint_goes_and_stands_in_nobodys_way() {
    let store = std::sync::Arc::<MemoryStore>::default();
    let one = replica(&store);
    one.set_partitions(8);
    let partition = |text: &str| Partition::of(key_hash(text.as_bytes()), 8);
    for text in ["k", "l", "m"] {
        one.keep_hint(partition(text), &key(text), node("b"), record(1), 5).await.expect("room");
    }
    let damage = |text: &str| assert!(store.flip_bit(Tree::Hints, &hint_key(node("b"), text.as_bytes())));
    damage("l");
    let texts = |hints: Vec<Hinted>| hints.into_iter().map(|hint| hint.key).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(texts(page(&one, "b").await), [key("k"), key("m")].into());
    assert_eq!((one.hint_totals()[&node("b")].count, one.stats().hints_damaged), (2, 1));
    assert_eq!(page(&one, "b").await.len(), 2, "it is gone for good");
    // One that is damaged is counted once, also when it is kept anew.
    damage("k");
    one.keep_hint(partition("k"), &key("k"), node("b"), record(2), 6).await.expect("room");
    assert_eq!(one.hint_totals()[&node("b")].count, 2);
    damage("m");
    let after = replica(&store);
    after.load_hints().await.expect("one hint that is lost is no reason not to start");
    assert_eq!((after.hint_totals()[&node("b")].count, after.stats().hints_damaged), (1, 1));
    for hint in page(&after, "b").await {
        assert!(after.hint_delivered(partition("k"), &hint.key, node("b"), hint.digest, false).await.expect("gone"));
    }
    assert!(after.hint_totals().is_empty());
}

/// A start on a disk without room: the damaged hint stays until there is some.
#[tokio::test(start_paused = true)]
async fn a_damaged_hint_is_no_reason_not_to_start_on_a_full_disk() {
    let store = std::sync::Arc::<MemoryStore>::default();
    let before = replica(&store);
    before.set_partitions(8);
    for text in ["k", "l"] {
        let partition = Partition::of(key_hash(text.as_bytes()), 8);
        before.keep_hint(partition, &key(text), node("b"), record(1), 5).await.expect("room");
    }
    assert!(store.flip_bit(Tree::Hints, &hint_key(node("b"), b"l")));
    let free = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let asked = free.clone();
    let ask =
        std::sync::Arc::new(move || Ok(Space { free: asked.load(std::sync::atomic::Ordering::Relaxed), total: 1000 }));
    let room = DiskRoom::new(Some(ask), DiskReserve::Bytes(800));
    let reserved: std::sync::Arc<dyn crate::store::Store> = std::sync::Arc::new(Reserved::new(store, room.clone()));
    let after = replica_on(reserved);
    after.set_partitions(8);
    after.load_hints().await.expect("it starts");
    assert_eq!(after.hint_totals()[&node("b")].count, 2);
    free.store(1000, std::sync::atomic::Ordering::Relaxed);
    room.look();
    assert_eq!(page(&after, "b").await.len(), 1);
    assert_eq!(after.hint_totals()[&node("b")].count, 1, "the damaged one has gone");
}

/// A hint of a later release, on the disk of a node that was set back to this one.
#[tokio::test(start_paused = true)]
async fn a_hint_of_a_newer_version_stays_where_it_is_and_in_nobodys_way() {
    let store = std::sync::Arc::<MemoryStore>::default();
    let mut newer = record(1);
    newer.siblings.values_mut().for_each(|sibling| sibling.time = 9);
    let (place, value) = (hint_key(node("b"), b"l"), encode(5, &newer));
    store.insert(Tree::Hints, &place, &value).expect("memory takes everything");
    let one = replica(&store);
    one.set_partitions(1);
    one.load_hints().await.expect("readable");
    for text in ["k", "m"] {
        one.keep_hint(P, &key(text), node("b"), record(1), 6).await.expect("room");
    }
    assert_eq!((one.hint_totals()[&node("b")].count, one.hint_totals()[&node("b")].oldest_ms), (3, 5));
    let refused = one.keep_hint(P, &key("l"), node("b"), record(2), 7).await.expect_err("it would take its place");
    assert!(refused.to_string().contains("newer version of quorate"), "{refused}");
    one.hinted(P, &key("l"), &primaries()).await.expect_err("not understood, which is not nothing");
    let page = one.hint_page(node("b"), None, 100, 1 << 20).await.expect("readable");
    assert_eq!(page.hints.len(), 2);
    for hint in page.hints {
        assert!(one.hint_delivered(P, &hint.key, node("b"), hint.digest, false).await.expect("gone"));
    }
    let kept = one.hint_totals()[&node("b")];
    assert_eq!((kept.count, kept.bytes, one.stats().hints_damaged), (1, (place.len() + value.len()) as u64, 0));
    assert_eq!(store.get(Tree::Hints, &place).expect("readable"), Some(value.into()));
}

/// Disks hold it.
#[test]
fn the_format_of_hints_is_fixed_for_ever() {
    let mut record = record(1);
    record.siblings.values_mut().for_each(|sibling| (sibling.value_type, sibling.time) = (7, 300));
    let hex: String = encode(0x0102_0304, &record).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, HINT);
}

const HINT: &str = "0000000001020304030101610100000000000000010100000100010000000000000000000000000000000107ac020776\
    616c75652031";
