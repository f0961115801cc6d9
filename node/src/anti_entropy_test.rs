//! Recovery and comparison, one step at a time, between nodes that do nothing by themselves.

use quorate_client::ids::Partition;

use super::*;
use crate::by_hand::{self, Kind, Node, data_key, key_in, record};
use crate::store::Tree;

const PARTITION: Partition = Partition(1);

/// One round of recovery of [`PARTITION`].
async fn recover(node: &Node) {
    recover::recover(&node.anti_entropy.desk, &node.current, PARTITION).await;
}

fn lose_all(node: &Node) {
    node.replica.recovery().lose(PARTITION, &Leaves::ALL, Reason::OtherDisk).expect("room");
}

/// The leaves that a node still recovers.
fn lost(node: &Node) -> Leaves {
    node.replica.recovery().recovering(PARTITION)
}

/// Knows its own sums, so that there is something to compare.
async fn sum_up(node: &Node) {
    node.replica.rebuild(PARTITION).await.expect("readable");
    assert!(node.replica.trees().unknown(PARTITION).is_empty());
}

/// The pair of two nodes, as the first one sees it.
fn pair<'a>(node: &'a Node, peer: &Node) -> Pair<'a> {
    Pair { desk: &node.anti_entropy.desk, current: &node.current, peer: peer.id, partition: PARTITION, paced: false }
}

#[tokio::test]
async fn a_partition_is_whole_once_one_owner_more_than_can_have_missed_a_write_was_asked_and_not_before() {
    // W = 3 of 5: an acknowledged write may be with this node and two others, so that two of the others may lack it.
    let nodes = by_hand::start(Kind::of(5)).await;
    lose_all(&nodes[0]);
    nodes[3].refuse(true);
    nodes[4].refuse(true);
    recover(&nodes[0]).await;
    assert_eq!(lost(&nodes[0]), Leaves::ALL, "two owners were asked, three are needed");
    recover(&nodes[0]).await;
    assert_eq!(lost(&nodes[0]), Leaves::ALL, "nobody counts twice");
    nodes[3].refuse(false);
    recover(&nodes[0]).await;
    assert_eq!(lost(&nodes[0]), Leaves::NONE, "three owners were asked");
}

#[tokio::test]
async fn what_an_owner_holds_in_leaves_that_it_has_not_summed_up_is_brought_back() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let (key, held) = (key_in(&nodes[0], PARTITION, 0), record(1, "held by one owner"));
    nodes[1].hold(&key, &held).await;
    assert!(!nodes[1].replica.trees().unknown(PARTITION).is_empty(), "it has just started");
    lose_all(&nodes[0]);
    recover(&nodes[0]).await;
    assert_eq!(lost(&nodes[0]), Leaves::NONE, "both others were asked");
    assert_eq!(nodes[0].held(&key).await, Some(held));
}

#[tokio::test]
async fn leaves_that_one_side_has_not_summed_up_are_unknown_and_not_equal() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let (key, held) = (key_in(&nodes[0], PARTITION, 0), record(1, "held by one owner"));
    nodes[1].hold(&key, &held).await;
    sum_up(&nodes[1]).await;
    let compared = pair(&nodes[0], &nodes[1]).compare().await.expect("answers");
    assert_eq!((compared.differ, compared.unknown), (Leaves::NONE, Leaves::ALL));
    sum_up(&nodes[0]).await;
    let compared = pair(&nodes[0], &nodes[1]).compare().await.expect("answers");
    assert_eq!((compared.differ.len(), compared.unknown), (1, Leaves::NONE), "the leaf of the one record");
}

#[tokio::test]
async fn an_owner_that_is_recovering_itself_does_not_count_as_one_that_can_speak() {
    let nodes = by_hand::start(Kind::of(5)).await;
    for node in &nodes[..4] {
        sum_up(node).await;
    }
    lose_all(&nodes[0]);
    lose_all(&nodes[3]);
    nodes[4].refuse(true);
    // All trees are equal: nothing is listed, and only the comparison can tell.
    recover(&nodes[0]).await;
    assert_eq!(lost(&nodes[0]), Leaves::ALL, "two can speak, three are needed");
    // It has brought back all but two leaves by now.
    let some: Leaves = [7, 9].into_iter().collect();
    let all = nodes[3].replica.recovery().lost(PARTITION).expect("lost");
    let whole = nodes[3].replica.exchanged(PARTITION, all, nodes[4].id, some, 1, 4).await.expect("room");
    assert_eq!((whole, lost(&nodes[3])), (false, some));
    recover(&nodes[0]).await;
    assert_eq!(lost(&nodes[0]), some, "it can speak for the rest");
    nodes[4].refuse(false);
    recover(&nodes[0]).await;
    assert_eq!(lost(&nodes[0]), Leaves::NONE);
}

#[tokio::test]
async fn an_owner_that_finds_a_corrupt_record_while_it_lists_does_not_count_there() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let (key, held) = (key_in(&nodes[0], PARTITION, 0), record(1, "rots with one owner"));
    nodes[1].hold(&key, &held).await;
    sum_up(&nodes[1]).await;
    nodes[2].refuse(true);
    lose_all(&nodes[0]);
    assert!(nodes[1].store.flip_bit(Tree::Data, &data_key(&key)));
    let leaf: Leaves = [merkle::leaf_of(key_hash(&key), nodes[0].current.layout.partitions)].into_iter().collect();
    sum_up(&nodes[0]).await;
    let pair = pair(&nodes[0], &nodes[1]);
    assert_eq!(pair.compare().await.expect("answers").recovering, Leaves::NONE, "nobody has looked yet");
    let exchanged = pair.exchange(&leaf).await.expect("answers");
    assert_eq!((exchanged.differences, exchanged.recovering), (0, leaf), "it has lost what it does not list");
}
