//! Handing hints over, one step at a time.

use quorate_client::ids::Partition;

use super::*;
use crate::by_hand::{self, Kind, Manner, Node, key_in, record};

const PARTITION: Partition = Partition(2);

/// A fallback with three hints for the first primary and one for the second; all primaries first.
async fn kept() -> (Vec<Node>, Courier) {
    let mut nodes = by_hand::start(Kind::FIVE).await;
    let order = nodes[0].current.ring.preference_list(PARTITION);
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
    assert!(wait(first).is_some_and(|wait| wait <= RETRY_MIN), "what is left cannot be read, or grows");
    assert_eq!(courier.due(), [second]);
    for busy in ["w", "x", "y", "z"] {
        let busy = NodeId::new(busy).expect("legal");
        lock(&courier.progress).entry(busy).or_default().running = true;
    }
    assert_eq!(courier.due(), [], "four at a time");
    assert_eq!(courier.deliver(first).await, Ok(3));
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
