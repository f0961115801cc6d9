//! What becomes of decisions on later layouts when disks are full, fail or lose power, and of nodes that must not vote.

use std::sync::atomic::Ordering;

use quorate_wire::Applied;
use quorate_wire::ids::ClusterId;

use super::super::staged::Next;
use super::super::store::Stages;
use super::super::store::tests::{Disk, id, keys, layout, me, open, open_with};
use super::*;
use crate::store::Executor;
use quorate_core::changes::Change;

/// A node that knows layout 1 of n0, n1 and n2 to be in force.
async fn node(i: usize, disk: &Arc<Disk>) -> Arc<LayoutStore> {
    let store = reopened(i, disk).await;
    assert!(store.hear(id(9), Some(first()), true, keys()).await.expect("stored"));
    store
}

async fn reopened(i: usize, disk: &Arc<Disk>) -> Arc<LayoutStore> {
    let store = open(i, disk).await;
    store.allows_changes.store(true, Ordering::Relaxed);
    store
}

fn first() -> Layout {
    layout(3, 64)
}

/// The layout after another one with these members.
fn after(parent: &Layout, members: &[usize]) -> Layout {
    let named = layout(9, 64).members.into_iter().filter(|member| members.iter().any(|i| id(*i) == member.node));
    let version = LayoutVersion(parent.version.0 + 1);
    Layout { version, previous: parent.hash(), members: named.collect(), ..first() }
}

fn ballot(round: u64, proposer: usize) -> Ballot {
    Ballot { round, proposer: id(proposer), nonce: 0 }
}

fn prepare(layout: &Layout, ballot: Ballot) -> PrepareLayout {
    PrepareLayout { version: layout.version, previous: layout.previous, ballot }
}

fn accept(layout: &Layout, ballot: Ballot) -> AcceptLayout {
    AcceptLayout { ballot, layout: layout.clone() }
}

fn chosen(layouts: &[&Layout], oldest: u64) -> LiveLayouts {
    LiveLayouts { layouts: layouts.iter().map(|layout| (*layout).clone()).collect(), oldest: LayoutVersion(oldest) }
}

fn live(store: &LayoutStore) -> Vec<u64> {
    store.live_after(LayoutVersion::NONE).layouts.iter().map(|layout| layout.version.0).collect()
}

async fn staged_layout(store: &LayoutStore, version: u64) -> Layout {
    match store.to_apply_next(LayoutVersion(version)).await.expect("it can be applied") {
        Next::Decide { wanted, .. } => wanted,
        Next::Known(known) => panic!("{known:?}"),
    }
}

fn why(refused: Result<Option<Vote>, NotApplied>) -> String {
    refused.expect_err("it must not vote").to_string()
}

#[tokio::test]
async fn every_step_is_kept_over_a_power_cut() {
    let disk = Arc::new(Disk::default());
    let (second, other) = (after(&first(), &[0, 1, 2, 3]), after(&first(), &[0, 1, 2, 4]));
    let store = node(1, &disk).await;
    let promised = Ok(Some(Vote::Promised(None)));
    assert_eq!(store.promise(prepare(&second, ballot(2, 0))).await, promised);
    assert_eq!(store.promise(prepare(&second, ballot(2, 0))).await, promised, "the answer may have been lost");

    let disk = disk.after_power_cut();
    let store = reopened(1, &disk).await;
    assert_eq!(store.promised(LayoutVersion(2)).await, Some(ballot(2, 0)));
    let outrun = Ok(Some(Vote::Outrun(ballot(2, 0))));
    assert_eq!(store.promise(prepare(&other, ballot(1, 2))).await, outrun);
    assert_eq!(store.vote(accept(&other, ballot(1, 2))).await, outrun);
    assert_eq!(store.vote(accept(&second, ballot(2, 0))).await, Ok(Some(Vote::Accepted)));
    assert_eq!(live(&store), [1], "what is accepted is not in force");

    let disk = disk.after_power_cut();
    let store = reopened(1, &disk).await;
    let told =
        Ok(Some(Vote::Promised(Some(quorate_core::chain::Accepted { ballot: ballot(2, 0), layout: second.clone() }))));
    assert_eq!(store.promise(prepare(&other, ballot(3, 2))).await, told, "what it has accepted is told");

    assert_eq!(store.learn(chosen(&[&second], 1)).await, Ok(true));
    assert_eq!(store.learn(chosen(&[&second], 1)).await, Ok(false), "no news");
    let current = store.current().expect("in force");
    assert_eq!((current.version(), current.hash, live(&store)), (LayoutVersion(2), second.hash(), vec![1, 2]));

    let disk = disk.after_power_cut();
    let store = reopened(1, &disk).await;
    assert_eq!((store.current().expect("in force").hash, live(&store)), (second.hash(), vec![1, 2]));
    let decided = store.promise(prepare(&other, ballot(9, 2))).await.expect("an answer");
    let chain = store.live_after(LayoutVersion::NONE);
    assert_eq!(decided, Some(Vote::Decided(Decided { by: Some(id(0)), chain })));

    store.settle(LayoutVersion(2)).await.expect("stored");
    store.settle(LayoutVersion(2)).await.expect("again");
    assert_eq!(live(&store), [2]);
    let store = reopened(1, &disk.after_power_cut()).await;
    assert_eq!(live(&store), [2]);
    assert_eq!(store.accepted_first(), Some(first().hash()), "handshakes need it for ever");
    store.settle(LayoutVersion(1)).await.expect("that was before");
    store.settle(LayoutVersion(7)).await.expect("it does not know that one yet");
    assert_eq!(live(&store), [2], "the newest one stays");
}

#[tokio::test]
async fn nothing_is_said_that_is_not_durable() {
    let disk = Arc::new(Disk::default());
    let second = after(&first(), &[0, 1, 2, 3]);
    let store = node(1, &disk).await;
    disk.full.store(true, Ordering::SeqCst);
    assert!(matches!(store.promise(prepare(&second, ballot(1, 0))).await, Err(NotApplied::Storage { .. })));
    assert!(matches!(store.vote(accept(&second, ballot(1, 0))).await, Err(NotApplied::Storage { .. })));
    assert!(matches!(store.learn(chosen(&[&second], 1)).await, Err(NotApplied::Storage { .. })));
    assert!(store.stage_change(Change::Leave(id(2))).await.is_err());
    assert_eq!((store.promised(LayoutVersion(2)).await, live(&store)), (None, vec![1]));
    assert_eq!(store.report().await.staged, None);
    disk.full.store(false, Ordering::SeqCst);
    assert_eq!(store.learn(chosen(&[&second], 1)).await, Ok(true), "there is room again");
    disk.full.store(true, Ordering::SeqCst);
    assert!(matches!(store.settle(LayoutVersion(2)).await, Err(StoreError::Full(_))));
    assert_eq!(live(&store), [1, 2]);
    disk.full.store(false, Ordering::SeqCst);

    disk.sync_fails.store(true, Ordering::SeqCst);
    let third = after(&second, &[0, 1, 3]);
    assert!(store.vote(accept(&third, ballot(1, 0))).await.is_err());
    disk.sync_fails.store(false, Ordering::SeqCst);
    assert!(store.vote(accept(&third, ballot(1, 0))).await.is_err(), "what the disk holds is not known any more");
    assert!(store.learn(chosen(&[&third], 1)).await.is_err());
    assert!(store.settle(LayoutVersion(2)).await.is_err());
    let store = reopened(1, &disk.after_power_cut()).await;
    assert_eq!(live(&store), [1, 2]);
}

#[tokio::test]
async fn only_members_with_their_own_disks_vote() {
    let second = after(&first(), &[0, 1, 2, 3]);
    let stranger = node(3, &Arc::new(Disk::default())).await;
    let refused = why(stranger.promise(prepare(&second, ballot(1, 0))).await);
    assert!(refused.contains("n3 is no member of layout 1, which alone decides"), "{refused}");

    let wiped = Me { disk: DiskId(77), ..me(2) };
    let wiped = Arc::new(open_with(&Arc::new(Disk::default()), Executor::Inline, wiped).await.expect("opens"));
    wiped.allows_changes.store(true, Ordering::Relaxed);
    wiped.hear(id(0), Some(first()), true, keys()).await.expect("stored");
    for refused in
        [why(wiped.promise(prepare(&second, ballot(1, 0))).await), why(wiped.vote(accept(&second, ballot(1, 0))).await)]
    {
        assert!(refused.contains("was emptied or exchanged, so that it has no vote"), "{refused}");
    }

    // The contents of another node's disk lie under the name and the disk id of a member.
    let disk = Arc::new(Disk::default());
    node(0, &disk).await.promise(prepare(&second, ballot(1, 0))).await.expect("promised");
    let copied = reopened(1, &disk.after_power_cut()).await;
    let refused = why(copied.promise(prepare(&second, ballot(1, 0))).await);
    assert!(refused.contains("was used by n0"), "{refused}");

    let doubtful = node(1, &Arc::new(Disk::default())).await;
    doubtful.no_vote.set(Box::new(|| Some("its disk was rolled back".into()))).ok().expect("the first one");
    let refused = why(doubtful.promise(prepare(&second, ballot(1, 0))).await);
    assert!(refused.contains("has no vote now: its disk was rolled back"), "{refused}");

    let shipped = node(1, &Arc::new(Disk::default())).await;
    shipped.allows_changes.store(false, Ordering::Relaxed);
    assert!(
        why(shipped.promise(prepare(&second, ballot(1, 0))).await).contains("in this release that is experimental")
    );
}

#[tokio::test]
async fn a_disk_that_was_set_back_never_votes_on_what_it_may_have_voted_on() {
    let disk = Arc::new(Disk::default());
    let (second, third) = (after(&first(), &[0, 1, 2, 3]), after(&after(&first(), &[0, 1, 2, 3]), &[0, 1, 2]));
    let store = node(1, &disk).await;
    disk.full.store(true, Ordering::SeqCst);
    assert!(matches!(store.abstain().await, Err(StoreError::Full(_))), "then nothing is settled");
    disk.full.store(false, Ordering::SeqCst);
    store.abstain().await.expect("stored");
    let disk = disk.after_power_cut();
    let store = reopened(1, &disk).await;
    assert!(*store.is_behind.borrow(), "it is to catch up");
    let refused = why(store.promise(prepare(&second, ballot(9, 0))).await);
    assert!(refused.contains("when enough members have told it which layouts there are"), "{refused}");
    // As it is told of another layout while it asks, it asks anew.
    assert_eq!(store.learn(chosen(&[&second], 1)).await, Ok(true));
    assert!(!store.has_caught_up(LayoutVersion(1)).await.expect("nothing is stored"));
    assert!(store.has_caught_up(LayoutVersion(2)).await.expect("stored"));
    assert!(!*store.is_behind.borrow());
    let store = reopened(1, &disk.after_power_cut()).await;
    for refused in
        [why(store.promise(prepare(&third, ballot(9, 0))).await), why(store.vote(accept(&third, ballot(9, 0))).await)]
    {
        assert!(refused.contains("no vote on layout 3: its disk was set back"), "{refused}");
        assert!(refused.contains("no vote on layouts up to 3, and votes on later ones"), "{refused}");
    }
    assert_eq!(store.learn(chosen(&[&third], 2)).await, Ok(true));
    let fourth = after(&third, &[0, 1, 2, 4]);
    assert_eq!(store.promise(prepare(&fourth, ballot(1, 0))).await, Ok(Some(Vote::Promised(None))));
    // A second time, before it knows of that one.
    store.abstain().await.expect("stored");
    assert!(why(store.vote(accept(&fourth, ballot(1, 0))).await).contains("votes again when"));
    assert!(store.has_caught_up(LayoutVersion(3)).await.expect("stored"));
    assert!(why(store.vote(accept(&fourth, ballot(1, 0))).await).contains("layouts up to 4"));
}

#[tokio::test]
async fn what_cannot_follow_is_not_accepted_and_who_is_behind_says_so() {
    let store = node(1, &Arc::new(Disk::default())).await;
    let second = after(&first(), &[0, 1, 2, 3]);
    let third = after(&second, &[0, 1, 3]);
    let small = after(&first(), &[0, 1]);
    assert!(why(store.vote(accept(&small, ballot(1, 0))).await).contains("only 2 members"));
    let stray = Layout { previous: LayoutHash([1; 32]), ..second.clone() };
    assert!(why(store.promise(prepare(&stray, ballot(1, 0))).await).contains("layout 1 is"));
    assert!(why(store.vote(accept(&stray, ballot(1, 0))).await).contains("layout 1 is"));
    assert_eq!(store.promise(prepare(&third, ballot(1, 0))).await, Ok(None), "it does not know layout 2");
    assert_eq!(store.vote(accept(&third, ballot(1, 0))).await, Ok(None));
    let blank = reopened(1, &Arc::new(Disk::default())).await;
    assert_eq!(blank.promise(prepare(&second, ballot(1, 0))).await, Ok(None), "nor layout 1");
    assert!(blank.learn(chosen(&[&second], 1)).await.expect_err("unrelated").to_string().contains("layout 1 yet"));
    blank.settle(LayoutVersion(2)).await.expect("there is nothing to forget");

    let foreign = Layout { cluster: ClusterId(8), ..second.clone() };
    assert!(store.learn(chosen(&[&foreign], 1)).await.expect_err("foreign").to_string().contains("of cluster"));
    assert!(store.learn(chosen(&[&third], 1)).await.expect_err("a gap").to_string().contains("after 1 comes 2"));
    assert_eq!(live(&store), [1]);
    store.learn(chosen(&[&second, &third], 1)).await.expect("they follow");
    let fourth = after(&third, &[0, 1, 3, 4]);
    let refused = why(store.promise(prepare(&fourth, ballot(1, 0))).await);
    assert!(refused.contains("the change from layout 1 to 2 must end"), "{refused}");
    store.settle(LayoutVersion(2)).await.expect("stored");
    assert_eq!(store.promise(prepare(&fourth, ballot(1, 0))).await, Ok(Some(Vote::Promised(None))));
    assert_eq!(store.vote(accept(&fourth, ballot(1, 0))).await, Ok(Some(Vote::Accepted)));
}

#[tokio::test]
async fn a_node_that_joins_serves_and_one_that_has_left_says_so() {
    let second = after(&first(), &[0, 1, 3]);
    let joining = node(3, &Arc::new(Disk::default())).await;
    assert_eq!(joining.told().not_serving.as_deref(), Some("n3 is no member of layout 1"));
    joining.learn(chosen(&[&second], 1)).await.expect("it follows");
    assert_eq!(joining.told().not_serving, None);

    let disk = Arc::new(Disk::default());
    let leaving = node(2, &disk).await;
    leaving.learn(chosen(&[&second], 1)).await.expect("it follows");
    assert_eq!(leaving.told().not_serving, None, "it has still to give what it owned");
    leaving.settle(LayoutVersion(2)).await.expect("stored");
    let left = Some("n2 is no member of layout 2: it has left or was replaced");
    assert_eq!(leaving.told().not_serving.as_deref(), left);
    assert_eq!(reopened(2, &disk.after_power_cut()).await.told().not_serving.as_deref(), left);

    // Who was away for very long learns what is live now; what lay between is over.
    let away = node(4, &Arc::new(Disk::default())).await;
    let third = after(&second, &[0, 1, 3, 4]);
    let fourth = after(&third, &[0, 3, 4]);
    away.learn(chosen(&[&third, &fourth], 3)).await.expect("what came before is over");
    assert_eq!((live(&away), away.told().not_serving.clone()), (vec![3, 4], None));
    let past: Vec<_> = away.history().await.into_iter().map(|past| (past.version.0, past.since.0, past.live)).collect();
    assert_eq!(past, [(1, 0, false), (3, 1, true), (4, 3, true)]);
    let newest = away.history().await.pop().expect("three");
    assert_eq!((newest.added, newest.removed, newest.members, newest.n), (vec![], vec![id(1)], 3, 3));
}

#[tokio::test]
async fn what_is_stored_and_is_no_chain_is_an_error() {
    let second = after(&first(), &[0, 1, 2, 3]);
    let disk = Arc::new(Disk::default());
    let store = node(1, &disk).await;
    store.learn(chosen(&[&second], 1)).await.expect("it follows");
    let damaged = |key: &'static [u8], value: Vec<u8>| {
        let disk = disk.after_power_cut();
        disk.insert(crate::store::Tree::Meta, key, &value).expect("inserted");
        async move { open_with(&disk, Executor::Inline, me(1)).await.map(drop).expect_err("damaged").to_string() }
    };
    assert!(damaged(CHAIN_KEY, b"garbage".to_vec()).await.contains("layout/chain"));
    assert!(damaged(ACCEPTOR_KEY, b"garbage".to_vec()).await.contains("layout/acceptor"));
    let stored = |layouts: Vec<Layout>| codec::encode(&StoredChain { layouts }).to_vec();
    assert!(damaged(CHAIN_KEY, stored(vec![])).await.contains("there is no layout"));
    let gap = vec![first(), after(&second, &[0, 1, 3])];
    assert!(damaged(CHAIN_KEY, stored(gap)).await.contains("after 1 comes 2"));
    let unrelated = stored(vec![layout(4, 64)]);
    assert!(damaged(CHAIN_KEY, unrelated).await.contains("does not go back to layout 1"));
    let lone = Arc::new(Disk::default());
    lone.insert(crate::store::Tree::Meta, CHAIN_KEY, &stored(vec![first()])).expect("inserted");
    let error = open_with(&lone, Executor::Inline, me(1)).await.map(drop).expect_err("no layout 1").to_string();
    assert!(error.contains("layout 1 is missing"), "{error}");
}

#[tokio::test]
async fn changes_are_staged_on_the_newest_layout_and_kept() {
    let disk = Arc::new(Disk::default());
    let store = node(0, &disk).await;
    assert_eq!(store.may_stage().await, Ok(Stages::Next));
    let refusal = async |version: u64| {
        store.to_apply_next(LayoutVersion(version)).await.map(drop).expect_err("it cannot be applied").to_string()
    };
    assert!(refusal(2).await.contains("nothing is staged"));
    assert!(refusal(3).await.contains("the current layout is 1, so that only version 2 can be applied"));
    assert!(refusal(0).await.contains("only version 2"));
    let other = store.stage_change(Change::Leave(id(7))).await.expect_err("no member").to_string();
    assert!(other.contains("n7 is no member"), "{other}");
    store.stage_change(Change::Leave(id(2))).await.expect("staged");
    assert!(refusal(2).await.contains("there are only 2 members"));
    let report = store.report().await;
    assert!(report.problems[0].contains("there are only 2 members") && report.moves.is_none(), "{report:?}");
    let floor = store.stage_change(Change::Replicas { n: None, r: Some(9), w: None }).await;
    assert_eq!(floor, Err(NotApplied::QuorumImpossible { what: "the floor of R".into(), asked: 9, n: 3 }));
    let addr = ([127, 0, 0, 1], 7003).into();
    let join = Change::Join { node: id(3), disk: DiskId(3), addr, zone: "z".into(), weight: 1 };
    store.stage_change(join).await.expect("staged");
    let wanted = staged_layout(&store, 2).await;
    assert_eq!(wanted, after(&first(), &[0, 1, 3]));

    let disk = disk.after_power_cut();
    let store = reopened(0, &disk).await;
    assert_eq!(staged_layout(&store, 2).await, wanted);
    let report = store.report().await;
    let moves = report.moves.expect("it is possible");
    assert_eq!((report.problems, moves.replicas, moves.all_owners_change), (vec![], 64, 0));
    assert_eq!((moves.gets.len(), moves.gets[0].from, moves.gets[0].to), (1, Some(id(2)), id(3)));
    assert_eq!((moves.balance_before, moves.balance_after, report.live), (1.0, 1.0, vec![LayoutVersion(1)]));
    store.allows_changes.store(false, Ordering::Relaxed);
    let refused = store.to_apply_next(LayoutVersion(2)).await.map(drop).expect_err("shipped").to_string();
    assert!(refused.contains("in this release that is experimental"), "{refused}");
    store.allows_changes.store(true, Ordering::Relaxed);

    // What was staged is forgotten once it is in force, and only then.
    store.learn(chosen(&[&wanted], 1)).await.expect("it follows");
    assert_eq!(store.report().await.staged, None);
    let known = store.to_apply_next(LayoutVersion(2)).await.expect("it is in force");
    assert!(matches!(known, Next::Known(Applied::Before)), "{known:?}");
    assert_eq!(reopened(0, &disk.after_power_cut()).await.report().await.staged, None);
    store.stage_change(Change::Weight(id(0), 2)).await.expect("staged");
    store.revert_changes().await.expect("reverted");
    assert_eq!(store.report().await.staged, None);
}

#[tokio::test]
async fn what_was_staged_for_a_version_that_became_another_one_stays_staged() {
    let disk = Arc::new(Disk::default());
    let store = node(0, &disk).await;
    store.stage_change(Change::Weight(id(2), 3)).await.expect("staged");
    let second = after(&first(), &[0, 1, 2, 5]);
    store.vote(accept(&second, ballot(4, 1))).await.expect("accepted");
    store.learn(chosen(&[&second], 1)).await.expect("it follows");
    let Next::Known(known) = store.to_apply_next(LayoutVersion(2)).await.expect("known") else { panic!("decided") };
    assert_eq!(known, Applied::Another { by: Some(id(1)), what: "n5 joins".into() });
    let next = staged_layout(&store, 3).await;
    assert_eq!((next.previous, next.member(id(2)).expect("a member").weight), (second.hash(), 3));
    // One more, by which what is staged is no longer possible.
    let third = after(&second, &[0, 1, 5]);
    store.learn(chosen(&[&third], 1)).await.expect("it follows");
    let report = store.report().await;
    assert!(report.problems[0].contains("n2 is no member of the layout; `layout revert` forgets"), "{report:?}");
    assert_eq!(report.staged, None);
    let refused = store.stage_change(Change::Weight(id(0), 2)).await.expect_err("not possible").to_string();
    assert!(refused.contains("what is staged is not possible on layout 3"), "{refused}");
}
