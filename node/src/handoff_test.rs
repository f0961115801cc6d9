//! Handing hints over, one step at a time.

use quorate_wire::ids::{LayoutVersion, Partition};

use super::*;
use crate::by_hand::{self, Kind, Manner, Node, key_in, record};
use crate::peer_wire::PeerBody;
use crate::store::{Store as _, Tree};
use quorate_core::changes::{Change, layout_after};
use quorate_core::keyspace::{data_key, hint_key};

const PARTITION: Partition = Partition(2);

/// A fallback with three hints for the first primary and one for the second; all primaries first.
async fn kept() -> (Vec<Node>, Courier) {
    let mut nodes = by_hand::start(Kind::FIVE).await;
    let order = nodes[0].current.preference_list(PARTITION);
    nodes.sort_by_key(|node| order.iter().position(|id| *id == node.id));
    let (first, second, keeper) = (nodes[0].id, nodes[1].id, &nodes[3]);
    for (number, target) in [(0, first), (1, first), (2, first), (0, second)] {
        let key = key_in(keeper, PARTITION, number);
        let kept = keeper.replica.keep_hint(PARTITION, &key, target, record(number, "v"), 5).await.expect("room");
        kept.ticket.durable().await.expect("durable");
    }
    let parts = Parts {
        me: keeper.id,
        layouts: keeper.layouts.clone(),
        liveness: keeper.liveness.subscribe(),
        replica: keeper.replica.clone(),
        peers: keeper.peers.clone(),
    };
    (nodes, Courier { parts, progress: Arc::default() })
}

fn counts(node: &Node) -> Vec<u64> {
    node.replica.hint_totals().values().map(|totals| totals.count).collect()
}

#[tokio::test]
async fn hints_go_to_their_target_and_are_let_go_once_it_holds_them() {
    let (nodes, courier) = kept().await;
    nodes[0].is(Manner::Refuses);
    let why = courier.deliver(nodes[0].id).await.expect_err("it refuses");
    assert!(why.contains("the test wants it so"), "{why}");
    assert_eq!(counts(&nodes[3]).iter().sum::<u64>(), 4);
    nodes[0].is(Manner::Answers);
    assert_eq!(courier.deliver(nodes[0].id).await, Ok(3));
    for number in 0..3 {
        let key = key_in(&nodes[0], PARTITION, number);
        assert_eq!(nodes[0].held(&key).await, Some(record(number, "v")));
    }
    assert_eq!((counts(&nodes[3]), nodes[1].held(&key_in(&nodes[0], PARTITION, 0)).await), (vec![1], None));
    assert_eq!(courier.deliver(nodes[0].id).await, Ok(0), "nothing is left");
    assert!(lock(&courier.progress)[&nodes[0].id].per_second > 0);
}

#[tokio::test]
async fn a_target_is_tried_when_it_is_up_or_connected_once_at_a_time_and_later_after_a_failure() {
    let (nodes, courier) = kept().await;
    let (first, second) = (nodes[0].id, nodes[1].id);
    let mut both = [first, second];
    both.sort();
    assert_eq!(courier.due(), [], "gossip has told of nobody, and nobody is connected");
    nodes[3].believes_down(&[second]);
    assert_eq!(courier.due(), [first]);
    nodes[3].believes_down(&[]);
    assert_eq!(courier.due(), both);
    lock(&courier.progress).entry(first).or_default().running = true;
    assert_eq!(courier.due(), [second]);
    courier.ended(first, Err("refused".into()));
    assert_eq!(courier.due(), [second], "it is given time");
    let wait = |target: NodeId| lock(&courier.progress)[&target].next_try.map(|at| at - Instant::now());
    let once = wait(first).expect("it waits");
    assert!(once > RETRY_MIN && once <= 2 * RETRY_MIN, "{once:?}");
    courier.ended(first, Err("refused".into()));
    let twice = wait(first).expect("it waits");
    assert!(twice > 2 * RETRY_MIN && twice <= 4 * RETRY_MIN, "{twice:?}");
    for _ in 0..10 {
        courier.ended(first, Err("refused".into()));
    }
    assert!(wait(first).expect("it waits") <= 32 * RETRY_MIN, "not for ever");
    assert_eq!(lock(&courier.progress)[&first].failed, "refused");
    courier.ended(first, Ok(2));
    assert_eq!((wait(first), lock(&courier.progress)[&first].failed.as_str()), (None, ""));
    assert_eq!(courier.due(), both);
    courier.ended(first, Ok(0));
    assert!(wait(first).is_some_and(|wait| wait <= 2 * RETRY_MIN), "what is left cannot be read, or grows");
    assert_eq!(courier.due(), [second]);
    let new = key_in(&nodes[3], PARTITION, 6);
    nodes[3].replica.keep_hint(PARTITION, &new, first, record(6, "v"), 5).await.expect("room");
    assert_eq!(courier.due(), both, "a new one need not wait for it");
    for busy in ["w", "x", "y", "z"] {
        let busy = NodeId::new(busy).expect("legal");
        lock(&courier.progress).entry(busy).or_default().running = true;
    }
    assert_eq!(courier.due(), [], "four at a time");
    assert_eq!(courier.deliver(first).await, Ok(4));
    nodes[3].believes_down(&both);
    lock(&courier.progress).clear();
    let key = key_in(&nodes[3], PARTITION, 5);
    nodes[3].replica.keep_hint(PARTITION, &key, first, record(9, "v"), 5).await.expect("room");
    assert!(courier.due().contains(&first), "whoever is connected is there, whatever gossip says");
}

#[tokio::test]
async fn what_is_kept_is_handed_over_by_itself_and_told_until_then() {
    let (nodes, courier) = kept().await;
    let Courier { parts, .. } = courier;
    let handoff = Handoff::start(parts);
    let told: Vec<_> = handoff.status(12).into_iter().map(|kept| (kept.target, kept.count, kept.oldest_ms)).collect();
    let mut expected = [(nodes[0].id, 3, 7), (nodes[1].id, 1, 7)];
    expected.sort();
    assert_eq!(told, expected);
    assert!(handoff.status(12).iter().all(|kept| kept.bytes > 0 && kept.per_second == 0 && kept.failed.is_empty()));
    nodes[3].believes_down(&[]);
    while !handoff.status(12).is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(nodes[0].held(&key_in(&nodes[0], PARTITION, 2)).await.is_some());
    handoff.shutdown();
}

#[tokio::test]
async fn a_target_is_handed_one_page_at_a_time_and_the_pace_is_told_while_it_goes_on() {
    let (nodes, courier) = kept().await;
    nodes[0].is(Manner::Silent);
    let handoff = Handoff::start(courier.parts);
    nodes[3].believes_down(&[]);
    let pages = |node: &Node| node.asked().iter().filter(|(_, body)| body.name() == "handoff").count();
    while pages(&nodes[0]) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // It looks for work again and again, also when another target has ended or liveness changes.
    for _ in 0..3 {
        nodes[3].believes_down(&[]);
        tokio::time::sleep(LOOK_EVERY / 2).await;
    }
    assert_eq!(pages(&nodes[0]), 0, "the first page is still on its way");
    let pace = |node: &Node| {
        let status = handoff.status(12);
        status.into_iter().find(|kept| kept.target == node.id).map(|kept| kept.per_second)
    };
    lock(&handoff.0.progress).get_mut(&nodes[0].id).expect("it goes on").per_second = 5;
    assert_eq!(pace(&nodes[0]), Some(5));
    lock(&handoff.0.progress).get_mut(&nodes[0].id).expect("it goes on").running = false;
    assert_eq!(pace(&nodes[0]), Some(0));
    nodes[0].is(Manner::Answers);
    handoff.shutdown();
}

#[tokio::test]
async fn a_hint_that_grows_while_it_is_handed_over_stays_and_is_the_oldest_that_is_left() {
    let (nodes, courier) = kept().await;
    let (target, key) = (nodes[0].id, key_in(&nodes[3], PARTITION, 1));
    nodes[0].is(Manner::Silent);
    let grow = async {
        while !nodes[0].asked().iter().any(|(_, body)| body.name() == "handoff") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        nodes[3].replica.keep_hint(PARTITION, &key, target, record(9, "w"), 7).await.expect("room");
        nodes[3].replica.note_oldest_hint(target, 1);
        nodes[0].is(Manner::Answers);
    };
    let (delivered, ()) = tokio::join!(courier.deliver(target), grow);
    assert_eq!(delivered, Ok(2));
    let left = nodes[3].replica.hint_totals()[&target];
    assert_eq!((left.count, left.oldest_ms), (1, 5), "it was begun when it was first kept");
    assert_eq!(courier.deliver(target).await, Ok(1));
    assert_eq!(nodes[0].held(&key).await.expect("held").value_count(), 2);
}

#[tokio::test]
async fn a_fallback_gives_up_its_actor_with_a_hint_and_an_owner_does_not() {
    let (nodes, courier) = kept().await;
    let (keeper, key) = (&nodes[3].replica, key_in(&nodes[3], PARTITION, 7));
    let primaries = nodes[0].current.primaries(PARTITION).to_vec();
    let mint = async |op| {
        let (value, cause) = (Some(Blob::copy_from(b"v")), quorate_core::version::Context::new());
        let (op, place) = (quorate_wire::ids::OpId(op), (primaries.clone(), nodes[1].id));
        keeper.mint_in_hint(PARTITION, &key, op, value, cause, place, 5).await.expect("room").dot.actor
    };
    let before = mint(1).await;
    assert_eq!(mint(2).await, before);
    assert_eq!(courier.deliver(nodes[0].id).await, Ok(3));
    assert_ne!(mint(3).await, before, "dots that it has minted may have gone");
}

#[tokio::test]
async fn what_a_target_has_no_room_for_stays_and_the_rest_goes() {
    let (nodes, courier) = kept().await;
    let (target, keys) = (&nodes[0], [0, 1, 2].map(|number| key_in(&nodes[0], PARTITION, number)));
    // This one's value it holds already.
    target.hold(&keys[1], &record(1, "v")).await;
    let (left, room) = target.has_room(500);
    let why = courier.deliver(target.id).await.expect_err("its disk is nearly full");
    assert!(why.contains("refused 2 hints and took 1") && why.contains("disk_reserve"), "{why}");
    assert_eq!(nodes[3].replica.hint_totals()[&target.id].count, 2);
    assert_eq!((target.held(&keys[0]).await, target.held(&keys[2]).await), (None, None));
    left.store(1000, std::sync::atomic::Ordering::Relaxed);
    room.look();
    assert_eq!(courier.deliver(target.id).await, Ok(2));
    assert_eq!(target.held(&keys[0]).await, Some(record(0, "v")));
}

#[tokio::test]
async fn a_pass_ends_when_much_is_refused_and_the_next_one_goes_on_there() {
    let (nodes, courier) = kept().await;
    let (target, keeper) = (&nodes[0], &nodes[3]);
    let mut keys: Vec<Blob> = (0..300).map(|number| key_in(target, PARTITION, number)).collect();
    for (key, by) in keys.iter().zip(0..) {
        keeper.replica.keep_hint(PARTITION, key, target.id, record(by, "v"), 5).await.expect("room");
    }
    keys.sort_by_key(|key| data_key(key));
    let last = keys.last().expect("there are some");
    let held = keeper.replica.hint_page(target.id, keys.get(298), 1, 1 << 20).await.expect("readable").hints;
    target.hold(last, &held[0].record).await;
    target.has_room(500);
    let handed = |node: &Node| {
        let pages = node.asked().into_iter().filter_map(|(_, body)| match body {
            PeerBody::Handoff(HandOver { entries, .. }) => Some(entries.into_iter().map(|(key, _)| key)),
            _ => None,
        });
        pages.flatten().collect::<Vec<_>>()
    };
    courier.deliver(target.id).await.expect_err("its disk is nearly full");
    assert_eq!(handed(target), keys[..REFUSED_MAX]);
    let why = courier.deliver(target.id).await.expect_err("its disk is nearly full");
    assert!(why.contains("took 1"), "{why}");
    assert_eq!(handed(target), keys[REFUSED_MAX..]);
    courier.deliver(target.id).await.expect_err("its disk is nearly full");
    assert_eq!(handed(target), keys[..REFUSED_MAX], "from the first again");
}

#[tokio::test]
async fn a_pass_that_finds_nothing_behind_refused_hints_is_not_the_end_of_the_trouble() {
    let (nodes, courier) = kept().await;
    let (target, keeper) = (&nodes[0], &nodes[3]);
    for number in 0..u32::try_from(REFUSED_MAX).expect("small") {
        let key = key_in(target, PARTITION, number);
        keeper.replica.keep_hint(PARTITION, &key, target.id, record(number, "v"), 5).await.expect("room");
    }
    target.has_room(500);
    let mut failures = Vec::new();
    for _ in 0..2 {
        let outcome = courier.deliver(target.id).await;
        courier.ended(target.id, outcome);
        failures.push(lock(&courier.progress)[&target.id].failures);
    }
    assert_eq!(failures, [1, 2], "each pass waits longer than the one before");
}

#[tokio::test]
async fn one_dead_receiver_does_not_hold_up_the_hints_that_others_own_now() {
    let (nodes, courier) = kept().await;
    let (removed, keeper) = (nodes[0].id, &nodes[3]);
    assert_eq!(courier.deliver(removed).await, Ok(3));
    let without = layout_after(&nodes[0].current.layout, &[Change::Leave(removed)]).expect("possible");
    for node in &nodes {
        node.layouts.adopt(without.clone()).await;
        node.layouts.settle(LayoutVersion(2)).await.expect("memory takes it");
    }
    let current = keeper.layouts.current().expect("in force");
    let partitions: Vec<Partition> = (0..current.partitions()).map(Partition).collect();
    for partition in &partitions {
        let key = key_in(keeper, *partition, 20);
        let kept = keeper.replica.keep_hint(*partition, &key, removed, record(3, "v"), 5).await.expect("room");
        kept.ticket.durable().await.expect("durable");
    }
    // The first that is asked.
    let dead = nodes.iter().filter(|node| ![removed, keeper.id].contains(&node.id)).min_by_key(|node| node.id);
    let dead = dead.expect("there are three");
    let (its, others): (Vec<Partition>, Vec<Partition>) =
        partitions.into_iter().partition(|partition| current.primaries(*partition).contains(&dead.id));
    assert!(!its.is_empty() && !others.is_empty(), "{its:?} {others:?}");
    dead.is(Manner::Refuses);
    dead.asked();
    let why = courier.deliver(removed).await.expect_err("one of them refuses");
    assert!(why.contains(&format!("{} hints wait for {}", its.len(), dead.id)), "{why}");
    assert!(why.contains(&format!("{} have gone", others.len())), "{why}");
    for partition in &others {
        let key = key_in(keeper, *partition, 20);
        for node in nodes.iter().filter(|node| current.primaries(*partition).contains(&node.id)) {
            assert_eq!(node.held(&key).await, Some(record(3, "v")), "{} {partition}", node.id);
        }
    }
    assert_eq!(keeper.replica.hint_totals()[&removed].count, its.len() as u64);
    assert_eq!(dead.asked().iter().filter(|(_, body)| body.name() == "handoff").count(), 1, "once a pass");
    dead.is(Manner::Answers);
    assert_eq!(courier.deliver(removed).await, Ok(its.len() as u64));
    for partition in &its {
        assert_eq!(dead.held(&key_in(keeper, *partition, 20)).await, Some(record(3, "v")));
    }
}

#[tokio::test]
async fn a_target_whose_hints_only_a_newer_release_can_read_is_looked_at_more_and_more_rarely() {
    let (nodes, courier) = kept().await;
    let (target, keeper) = (nodes[0].id, &nodes[3]);
    assert_eq!(courier.deliver(target).await, Ok(3));
    keeper.replica.keep_hint(PARTITION, &key_in(keeper, PARTITION, 9), target, record(9, "v"), 5).await.expect("room");
    let at = hint_key(target, &key_in(keeper, PARTITION, 9));
    let mut newer = record(9, "v");
    newer.siblings.values_mut().for_each(|sibling| sibling.value_type = 7);
    keeper.store.insert(Tree::Hints, &at, &[&5_u64.to_be_bytes()[..], &newer.encode()].concat()).expect("room");
    tokio::time::pause();
    let mut looks = Vec::new();
    // The clock also runs ahead while the store is waited for, so that pauses can be longer than they have to be.
    while looks.len() < 7 {
        if courier.due().contains(&target) {
            looks.push(Instant::now());
            let outcome = courier.deliver(target).await;
            assert_eq!(outcome, Ok(0));
            courier.ended(target, outcome);
        }
        tokio::time::advance(LOOK_EVERY).await;
    }
    let pauses: Vec<Duration> = looks.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (pause, least) in pauses.iter().zip([500, 1000, 2000, 4000, 8000, 8000]) {
        assert!(*pause >= Duration::from_millis(least), "{pauses:?}");
    }
    assert_eq!(counts(keeper).iter().sum::<u64>(), 2, "it is kept, beside the other target's");
}
