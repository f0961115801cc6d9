//! Recovery and comparison, one step at a time, between nodes that do nothing by themselves.

use quorate_wire::Key;
use quorate_wire::ids::Partition;

use super::*;
use crate::by_hand::{self, Kind, Manner, Node, deletion, key_in, record};
use crate::peer_wire::heal::{self, Groups};
use crate::peer_wire::{Heal, PeerBody};
use crate::store::Tree;
use quorate_core::keyspace::data_key;
use quorate_core::merkle::{InTree, Leaves};

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
    assert!(node.replica.partitions().unknown(PARTITION).is_empty());
}

/// The pair of two nodes, as the first one sees it.
fn pair<'a>(node: &'a Node, peer: &Node) -> Pair<'a> {
    let desk = &node.anti_entropy.desk;
    Pair { desk, current: &node.current, peer: peer.id, partition: PARTITION, paced: false, moves: None }
}

#[tokio::test]
async fn a_partition_is_whole_once_one_owner_more_than_can_have_missed_a_write_was_asked_and_not_before() {
    // W = 3 of 5: an acknowledged write may be with this node and two others, so that two of the others may lack it.
    let nodes = by_hand::start(Kind::of(5)).await;
    lose_all(&nodes[0]);
    nodes[3].is(Manner::Refuses);
    nodes[4].is(Manner::Refuses);
    recover(&nodes[0]).await;
    assert_eq!(lost(&nodes[0]), Leaves::ALL, "two owners were asked, three are needed");
    recover(&nodes[0]).await;
    assert_eq!(lost(&nodes[0]), Leaves::ALL, "nobody counts twice");
    nodes[3].is(Manner::Answers);
    recover(&nodes[0]).await;
    assert_eq!(lost(&nodes[0]), Leaves::NONE, "three owners were asked");
}

#[tokio::test]
async fn what_an_owner_holds_in_leaves_that_it_has_not_summed_up_is_brought_back() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let (key, held) = (key_in(&nodes[0], PARTITION, 0), record(1, "held by one owner"));
    nodes[1].hold(&key, &held).await;
    assert!(!nodes[1].replica.partitions().unknown(PARTITION).is_empty(), "it has just started");
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
    nodes[4].is(Manner::Refuses);
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
    nodes[4].is(Manner::Answers);
    recover(&nodes[0]).await;
    assert_eq!(lost(&nodes[0]), Leaves::NONE);
}

#[tokio::test]
async fn an_owner_that_finds_a_corrupt_record_while_it_lists_does_not_count_there() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let (key, held) = (key_in(&nodes[0], PARTITION, 0), record(1, "rots with one owner"));
    nodes[1].hold(&key, &held).await;
    sum_up(&nodes[1]).await;
    nodes[2].is(Manner::Refuses);
    lose_all(&nodes[0]);
    assert!(nodes[1].store.flip_bit(Tree::Data, &data_key(&key)));
    let leaf: Leaves = [merkle::leaf_of(key_hash(&key), nodes[0].current.layout.partitions)].into_iter().collect();
    sum_up(&nodes[0]).await;
    let pair = pair(&nodes[0], &nodes[1]);
    assert_eq!(pair.compare().await.expect("answers").recovering, Leaves::NONE, "nobody has looked yet");
    let exchanged = pair.exchange(&leaf).await.expect("answers");
    assert_eq!((exchanged.differences, exchanged.recovering), (0, leaf), "it has lost what it does not list");
}

fn all_partitions(node: &Node) -> impl Iterator<Item = Partition> {
    (0..node.current.partitions()).map(Partition)
}

/// One pass of each node, by turns.
async fn pass(nodes: &[Node]) {
    for node in nodes {
        node.anti_entropy.desk.pass(&node.current).await;
    }
}

/// Three nodes whose trees are all known.
async fn three() -> Vec<Node> {
    let nodes = by_hand::start(Kind::of(3)).await;
    for node in &nodes {
        node.anti_entropy.desk.rebuild(&node.current).await;
        assert!(all_partitions(node).all(|partition| node.replica.partitions().unknown(partition).is_empty()));
        assert_eq!(node.anti_entropy.report().rebuild_left, 0);
    }
    nodes
}

fn sum(nodes: &[Node], of: fn(&RepairReport) -> u64) -> u64 {
    nodes.iter().map(|node| of(&node.anti_entropy.report())).sum()
}

#[tokio::test]
async fn a_difference_that_lasts_two_passes_is_gone_and_is_counted() {
    let nodes = three().await;
    let (key, other) = (key_in(&nodes[0], PARTITION, 0), key_in(&nodes[0], Partition(2), 0));
    let (one, two) = (record(1, "one"), record(2, "two"));
    nodes[0].hold(&key, &one).await;
    nodes[1].hold(&key, &two).await;
    nodes[2].hold(&other, &one).await;
    pass(&nodes).await;
    assert_eq!(nodes[2].held(&key).await, None, "it may be on its way");
    // Each pair compares each of the four partitions once.
    assert_eq!((sum(&nodes, |report| report.compared), sum(&nodes, |report| report.unknown)), (12, 0));
    assert_eq!(sum(&nodes, |report| report.differing), 5, "three pairs in one partition, two in the other one");
    assert_eq!(sum(&nodes, |report| report.bytes_sent + report.bytes_received + report.bytes_listed), 0);
    pass(&nodes).await;
    let mut both = one.clone();
    both.merge(&two, &|_| false);
    for node in &nodes {
        assert_eq!(node.held(&key).await.as_ref(), Some(&both));
        assert_eq!(node.held(&other).await.as_ref(), Some(&one));
        let report = node.anti_entropy.report();
        assert_eq!((report.pass, report.running, report.partitions), (2, false, 4));
        assert!(report.last_pass_ms.is_some());
    }
    let (missed, wiped) = (sum(&nodes, |report| report.repaired_missed), sum(&nodes, |report| report.repaired_wiped));
    assert!((5..=6).contains(&missed) && wiped == 0, "{missed}: a record that comes in halves counts twice");
    assert!(sum(&nodes, |report| report.bytes_sent) > 0 && sum(&nodes, |report| report.bytes_received) > 0);
    let entry = (key.len() + 20) as u64;
    assert!(sum(&nodes, |report| report.bytes_listed) >= 2 * entry);
    pass(&nodes).await;
    assert_eq!(sum(&nodes, |report| report.differing), 0);
    let differing = |node: &Node| {
        node.replica.partitions().look_at_all(|_, state| state.differing().count()).into_iter().sum::<usize>()
    };
    assert!(nodes.iter().all(|node| differing(node) == 0), "what is equal again is forgotten");
    for name in ["repair_failed", "recovering_partitions", "repair_differing"] {
        let samples = nodes[0].anti_entropy.samples();
        assert_eq!(samples.iter().find(|sample| sample.full_name() == name).expect("there").value, 0, "{name}");
    }
}

#[tokio::test]
async fn what_one_side_has_not_summed_up_is_no_difference_and_whom_one_cannot_ask_makes_the_pass_no_whole_one() {
    let nodes = three().await;
    nodes[2].replica.partitions().forget_sums(PARTITION, &Leaves::ALL);
    pass(&nodes).await;
    assert_eq!((sum(&nodes, |report| report.unknown), sum(&nodes, |report| report.differing)), (2, 0));
    nodes[2].is(Manner::Refuses);
    for node in &nodes {
        node.anti_entropy.desk.state().last_pass = None;
        node.anti_entropy.desk.pass(&node.current).await;
    }
    let failed = |node: &Node| node.anti_entropy.desk.counters.failed.load(Ordering::Relaxed);
    assert_eq!([failed(&nodes[0]), failed(&nodes[1]), failed(&nodes[2])], [1, 1, 0]);
    let whole = |node: &Node| node.anti_entropy.report().last_pass_ms.is_some();
    assert_eq!([whole(&nodes[0]), whole(&nodes[1]), whole(&nodes[2])], [false, false, true]);
    // Whoever is believed down is not asked at all.
    nodes[0].believes_down(&[nodes[2].id]);
    nodes[0].anti_entropy.desk.pass(&nodes[0].current).await;
    assert_eq!((failed(&nodes[0]), whole(&nodes[0])), (1, false));
}

#[tokio::test]
async fn a_paused_pass_asks_nobody() {
    let nodes = three().await;
    let status = nodes[0].anti_entropy.command(RepairCommand::Pause);
    assert!(status.paused && status.enabled);
    nodes[0].anti_entropy.desk.pass(&nodes[0].current).await;
    assert_eq!(nodes[0].anti_entropy.report().compared, 0);
    assert!(!nodes[1].asked().iter().any(|(_, body)| matches!(body, PeerBody::Heal(_))));
    assert!(!nodes[0].anti_entropy.command(RepairCommand::Resume).paused);
    assert!(!nodes[0].anti_entropy.desk.state().wanted);
    nodes[0].anti_entropy.command(RepairCommand::Pause);
    assert!(!nodes[0].anti_entropy.command(RepairCommand::Start).paused);
    assert!(nodes[0].anti_entropy.desk.state().wanted);
    assert!(!nodes[0].anti_entropy.command(RepairCommand::Status).paused);
}

#[tokio::test]
async fn sums_that_differ_over_equal_lists_are_made_anew() {
    let nodes = three().await;
    let key = key_in(&nodes[0], PARTITION, 0);
    for node in &nodes {
        node.hold(&key, &record(1, "one")).await;
    }
    let (at, leaf) = (data_key(&key), merkle::leaf_of(key_hash(&key), nodes[0].current.layout.partitions));
    nodes[0].replica.partitions().with(PARTITION, |state, _| {
        state.tree_mut().replaced(InTree { leaf, data_key: &at }, None, Some(5));
    });
    for _ in 0..2 {
        pass(&nodes).await;
    }
    let unknown = |node: &Node| node.replica.partitions().unknown(PARTITION).len();
    assert_eq!(unknown(&nodes[0]), 1);
    assert!(unknown(&nodes[1]) + unknown(&nodes[2]) >= 1, "nor does the other side trust its own");
    for node in &nodes {
        node.anti_entropy.desk.rebuild(&node.current).await;
    }
    pass(&nodes).await;
    assert_eq!((sum(&nodes, |report| report.differing), sum(&nodes, |report| report.unknown)), (0, 0));
}

#[tokio::test]
async fn many_and_large_records_are_exchanged_in_parts() {
    let nodes = three().await;
    for number in 0..600 {
        let value = "v".repeat(if number < 40 { 100_000 } else { 10 });
        let held = record(number, &value);
        nodes[(number % 2) as usize].hold(&key_in(&nodes[0], PARTITION, number), &held).await;
    }
    let pair = pair(&nodes[0], &nodes[1]);
    let compared = pair.compare().await.expect("answers");
    let exchanged = pair.exchange(&compared.differ).await.expect("answers");
    assert_eq!((exchanged.differences, exchanged.recovering), (600, Leaves::NONE));
    for number in 0..600 {
        let key = key_in(&nodes[0], PARTITION, number);
        let held = nodes[0].held(&key).await;
        assert!(held.is_some() && held == nodes[1].held(&key).await, "{number}");
    }
    assert_eq!(pair.compare().await.expect("answers").differ, Leaves::NONE);
    assert_eq!(nodes[0].anti_entropy.report().repaired_missed, 300);
}

#[tokio::test]
async fn a_recovering_node_takes_what_comes_for_wiped_and_a_corrupt_record_for_corrupt() {
    let nodes = three().await;
    let (key, held) = (key_in(&nodes[0], PARTITION, 0), record(1, "one"));
    nodes[1].hold(&key, &held).await;
    lose_all(&nodes[0]);
    let told = nodes[0].anti_entropy.recovering().expect("it has lost something");
    assert_eq!((told.left, told.total, told.eta_ms), (1, 1, None));
    assert!(told.why.contains("not the one that the layout names"), "{}", told.why);
    recover(&nodes[0]).await;
    let report = nodes[0].anti_entropy.report();
    assert_eq!((report.repaired_wiped, report.repaired_missed, report.recovering), (1, 0, None));
    assert!(nodes[0].store.flip_bit(Tree::Data, &data_key(&key)));
    assert_eq!(nodes[0].held(&key).await, None, "which is noticed");
    recover(&nodes[0]).await;
    assert_eq!(nodes[0].held(&key).await, Some(held));
    assert_eq!(nodes[0].anti_entropy.report().repaired_corrupt, 1);
    assert_eq!(lost(&nodes[0]), Leaves::NONE);
}

#[tokio::test]
async fn a_lone_owner_has_nobody_to_ask() {
    let nodes = by_hand::start(Kind::of(1)).await;
    lose_all(&nodes[0]);
    recover(&nodes[0]).await;
    assert_eq!(lost(&nodes[0]), Leaves::NONE);
}

#[tokio::test]
async fn what_is_lost_comes_back_by_itself_when_owners_can_be_asked_again() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let (key, held) = (key_in(&nodes[0], PARTITION, 0), record(1, "one"));
    nodes[1].hold(&key, &held).await;
    let task = tokio::spawn(recover::run(nodes[0].anti_entropy.desk.clone()));
    nodes[1].is(Manner::Refuses);
    lose_all(&nodes[0]);
    while nodes[1].asked().len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(lost(&nodes[0]), Leaves::ALL);
    nodes[1].is(Manner::Answers);
    while !lost(&nodes[0]).is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(nodes[0].held(&key).await, Some(held));
    task.abort();
}

#[tokio::test]
async fn the_scrub_counts_what_is_there_and_has_what_is_corrupt_recovered() {
    let nodes = by_hand::start(Kind::of(3)).await;
    for number in 0..5 {
        nodes[0].hold(&key_in(&nodes[0], PARTITION, number), &record(number, "v")).await;
    }
    let mut deleted = record(7, "v");
    deleted.siblings.clear();
    nodes[0].hold(&key_in(&nodes[0], Partition(2), 0), &deleted).await;
    let rotten = key_in(&nodes[0], PARTITION, 3);
    assert!(nodes[0].store.flip_bit(Tree::Data, &data_key(&rotten)));
    let desk = &nodes[0].anti_entropy.desk;
    let task = tokio::spawn(scrub::run(desk.clone()));
    while desk.state().last_scrub.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    task.abort();
    let report = nodes[0].anti_entropy.report();
    assert_eq!((report.scrubbed, report.scrub_found, report.records, report.tombstones), (5, 1, Some(5), Some(1)));
    assert!(report.last_scrub_ms.is_some());
    let leaf = merkle::leaf_of(key_hash(&rotten), nodes[0].current.layout.partitions);
    assert_eq!(lost(&nodes[0]), [leaf].into_iter().collect());
}

#[tokio::test]
async fn who_answers_a_comparison_checks_who_asks_and_for_what() {
    let mut nodes = by_hand::start(Kind::FIVE).await;
    let order = nodes[0].current.preference_list(PARTITION);
    nodes.sort_by_key(|node| order.iter().position(|id| *id == node.id));
    let now = Label { low: nodes[0].current.layout.version, high: nodes[0].current.layout.version };
    let old = Label { low: Default::default(), high: Default::default() };
    let ask = async |to: &Node, from: &Node, label, request| {
        let (from, patience) = (from.id, Duration::from_secs(20));
        to.anti_entropy.answer(from, label, request, patience).await
    };
    let refused = |answer: Result<HealReply, NotApplied>| answer.expect_err("it is refused").to_string();
    let groups = |partition| HealRequest::Groups(Groups { partition, groups: vec![None; merkle::GROUPS] });
    let answer = ask(&nodes[0], &nodes[1], now, groups(PARTITION)).await;
    assert!(matches!(answer, Ok(HealReply::Groups(_))), "{answer:?}");
    assert!(refused(ask(&nodes[0], &nodes[1], old, groups(PARTITION)).await).contains("layout"));
    let why = refused(ask(&nodes[3], &nodes[0], now, groups(PARTITION)).await);
    assert!(why.contains(&format!("{} is no primary of partition 1", nodes[3].id)), "{why}");
    let answer = ask(&nodes[0], &nodes[3], now, groups(PARTITION)).await;
    assert!(matches!(answer, Ok(HealReply::Groups(_))), "a former owner hands over what it still has: {answer:?}");
    let beyond = Partition(nodes[0].current.partitions());
    assert!(refused(ask(&nodes[0], &nodes[1], now, groups(beyond)).await).contains("there is no partition 4"));
    let few = HealRequest::Groups(Groups { partition: PARTITION, groups: vec![None; merkle::GROUPS - 1] });
    assert!(refused(ask(&nodes[0], &nodes[1], now, few).await).contains("15 groups"));
    let roots = |count| HealRequest::Roots(Roots { roots: vec![(PARTITION, None); count] });
    let answer = ask(&nodes[0], &nodes[1], now, roots(ROOTS_MAX)).await;
    assert!(matches!(answer, Ok(HealReply::Roots(_))), "{answer:?}");
    assert!(refused(ask(&nodes[0], &nodes[1], now, roots(ROOTS_MAX + 1)).await).contains("at most 256"));
    let offer = |key: &Blob, record: Option<&[u8]>| heal::Offer {
        key: key.clone(),
        digest: None,
        record: record.map(Blob::copy_from),
    };
    let exchange = |offers| HealRequest::Exchange(heal::Exchange { partition: PARTITION, offers });
    let (key, stranger) = (key_in(&nodes[0], PARTITION, 0), key_in(&nodes[0], Partition(2), 0));
    let most = heal::OFFERS_MAX;
    for (offers, why) in [
        (vec![offer(&stranger, None)], "another partition"),
        (vec![offer(&Key::plain(""), None)], "empty"),
        (vec![offer(&Blob::copy_from(b"k"), None)], "malformed"),
        (vec![offer(&key, Some(b"\x01"))], "cannot be decoded"),
        (vec![offer(&key, None); most + 1], "at most"),
    ] {
        let told = refused(ask(&nodes[0], &nodes[1], now, exchange(offers)).await);
        assert!(told.contains(why), "{told}");
    }
    let answer = ask(&nodes[0], &nodes[1], now, exchange(vec![offer(&key, None); most])).await;
    let Ok(HealReply::Exchanged(heal::Exchanged { processed, records, refused })) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!((processed as usize, records, refused.keys), (most, vec![(key.clone(), None); most], vec![]));
    // What a newer version has written is not taken, and holds up nothing else.
    let (known, mut newer) = (record(2, "two"), record(1, "one"));
    newer.siblings.values_mut().for_each(|sibling| sibling.value_type = 7);
    let second = key_in(&nodes[0], PARTITION, 1);
    let offers = vec![offer(&key, Some(&newer.encode())), offer(&second, Some(&known.encode()))];
    let answer = ask(&nodes[0], &nodes[1], now, exchange(offers)).await;
    let Ok(HealReply::Exchanged(heal::Exchanged { processed, refused, .. })) = answer else { panic!("{answer:?}") };
    assert_eq!((processed, &refused.keys), (2, &vec![key.clone()]));
    assert!(refused.why.contains("newer version of quorate"), "{}", refused.why);
    assert_eq!((nodes[0].held(&key).await, nodes[0].held(&second).await), (None, Some(known)));
}

#[tokio::test]
async fn an_exchange_goes_on_with_the_rest_when_one_end_has_no_room_for_values() {
    for (asks, other) in [(0, 1), (1, 0)] {
        let nodes = by_hand::start(Kind::of(3)).await;
        let [value, deleted, elsewhere] = [0, 1, 2].map(|number| key_in(&nodes[0], PARTITION, number));
        nodes[0].hold(&value, &record(1, "new to the other one")).await;
        nodes[0].hold(&deleted, &deletion(2)).await;
        let held = record(3, "held by the one without room");
        nodes[1].hold(&elsewhere, &held).await;
        let (left, room) = nodes[1].has_room(500);
        let pair = pair(&nodes[asks], &nodes[other]);
        let told = pair.exchange(&Leaves::ALL).await.and_then(|exchanged| exchanged.unsettled());
        let why = told.expect_err("one value has no place");
        assert!(why.contains("1 records") && why.contains("disk_reserve"), "{why}");
        assert_eq!((nodes[1].held(&value).await, nodes[1].held(&deleted).await), (None, Some(deletion(2))));
        assert_eq!(nodes[0].held(&elsewhere).await, Some(held));
        left.store(1000, std::sync::atomic::Ordering::Relaxed);
        room.look();
        let exchanged = pair.exchange(&Leaves::ALL).await.expect("there is room");
        assert_eq!((exchanged.differences, exchanged.unsettled()), (1, Ok(())));
        assert_eq!(nodes[1].held(&value).await, nodes[0].held(&value).await);
    }
}

#[tokio::test]
async fn an_end_that_has_refused_much_is_sent_deletes_and_asked_for_what_it_holds() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let keys: Vec<Blob> = (0..1500).map(|number| key_in(&nodes[0], PARTITION, number)).collect();
    for key in &keys[..1200] {
        nodes[0].hold(key, &record(1, "new to the other one")).await;
    }
    for key in &keys[1200..1400] {
        nodes[0].hold(key, &deletion(2)).await;
    }
    for key in &keys[1400..] {
        nodes[1].hold(key, &record(3, "held by the one without room")).await;
    }
    nodes[1].has_room(500);
    let exchanged = pair(&nodes[0], &nodes[1]).exchange(&Leaves::ALL).await.expect("it goes on");
    let refused = exchanged.refused.0;
    assert!((256..=1024).contains(&refused), "{refused}");
    for key in &keys[1200..1400] {
        assert_eq!(nodes[1].held(key).await, Some(deletion(2)));
    }
    for key in &keys[1400..] {
        assert!(nodes[0].held(key).await.is_some());
    }
}

/// The keys that a node was asked to exchange since this was last called.
fn exchanged_keys(node: &Node) -> Vec<Blob> {
    let offers = node.asked().into_iter().filter_map(|(_, body)| match body {
        PeerBody::Heal(Heal { request: HealRequest::Exchange(heal::Exchange { offers, .. }), .. }) => Some(offers),
        _ => None,
    });
    offers.flatten().map(|offer| offer.key).collect()
}

#[tokio::test]
async fn a_full_end_asks_for_no_more_than_it_takes_to_see_that_it_is_full() {
    let nodes = by_hand::start(Kind::of(3)).await;
    for number in 0..1500 {
        let key = key_in(&nodes[0], PARTITION, number);
        nodes[0].hold(&key, &record(1, "new to the other one")).await;
    }
    nodes[1].has_room(500);
    nodes[0].asked();
    let why = pair(&nodes[1], &nodes[0]).exchange(&Leaves::ALL).await.expect_err("it takes nothing");
    assert!(why.contains("were not taken here"), "{why}");
    let fetched = exchanged_keys(&nodes[0]).len();
    assert!((256..1200).contains(&fetched), "{fetched} of 1500");
}

#[tokio::test]
async fn a_full_end_comes_to_the_deletes_behind_the_values_that_it_has_no_room_for() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let mut keys: Vec<Blob> = (0..2500).map(|number| key_in(&nodes[0], PARTITION, number)).collect();
    keys.sort_by_key(|key| data_key(key));
    let (values, deletes) = keys.split_at(2480);
    for key in values {
        nodes[0].hold(key, &record(1, "new to the other one")).await;
    }
    for key in deletes {
        nodes[0].hold(key, &deletion(2)).await;
    }
    let (left, room) = nodes[1].has_room(500);
    let (pair, desk) = (pair(&nodes[1], &nodes[0]), &nodes[1].anti_entropy.desk);
    let at = || desk.state().broken_off.get(&(nodes[0].id, PARTITION)).cloned();
    nodes[0].asked();
    let (mut asked, mut exchanges) = (Vec::new(), 0);
    while asked.last() != keys.last() {
        pair.exchange(&Leaves::ALL).await.expect_err("values are refused");
        asked.extend(exchanged_keys(&nodes[0]));
        exchanges += 1;
        assert!(exchanges < 10, "the last key never has its turn");
        assert!(at() == asked.last().cloned() || asked.last() == keys.last(), "it goes on where it broke off");
    }
    assert_eq!(asked, keys, "each key once, in order");
    assert!(exchanges > 1, "one exchange is enough for so few");
    for key in deletes {
        assert_eq!(nodes[1].held(key).await, Some(deletion(2)));
    }
    // The end was reached: the next one begins at the first key. With room again one exchange makes all equal, wherever it begins.
    assert_eq!(at(), None);
    pair.exchange(&Leaves::ALL).await.expect_err("values are refused");
    assert_eq!(exchanged_keys(&nodes[0]).first(), keys.first());
    assert!(at().is_some());
    left.store(1000, std::sync::atomic::Ordering::Relaxed);
    room.look();
    assert_eq!(pair.exchange(&Leaves::ALL).await.expect("there is room").unsettled(), Ok(()));
    assert_eq!(nodes[1].held(&values[0]).await, nodes[0].held(&values[0]).await);
    assert_eq!((at(), pair.exchange(&Leaves::ALL).await.expect("equal").differences), (None, 0));
}

#[tokio::test]
async fn what_is_equal_again_begins_at_the_first_key() {
    let nodes = three().await;
    let desk = &nodes[0].anti_entropy.desk;
    let (equal, differs) = (Partition(0), Partition(2));
    nodes[1].hold(&key_in(&nodes[0], differs, 0), &record(1, "one")).await;
    for partition in [equal, differs] {
        desk.state().broken_off.insert((nodes[1].id, partition), key_in(&nodes[0], partition, 0));
    }
    desk.compare(&nodes[0].current, nodes[1].id, &[equal, differs]).await.expect("answers");
    let left: Vec<Partition> = desk.state().broken_off.keys().map(|(_, partition)| *partition).collect();
    assert_eq!(left, [differs]);
}

#[tokio::test]
async fn what_both_hold_is_sent_to_a_full_end_once() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let keys: Vec<Blob> = (0..1500).map(|number| key_in(&nodes[0], PARTITION, number)).collect();
    for key in &keys {
        nodes[0].hold(key, &record(1, "new to the other one")).await;
        nodes[1].hold(key, &record(2, "held by the one without room")).await;
    }
    nodes[1].has_room(500);
    nodes[1].asked();
    let exchanged = pair(&nodes[0], &nodes[1]).exchange(&Leaves::ALL).await.expect("it goes on");
    assert!(exchanged.refused.0 >= 256);
    let mut sent = exchanged_keys(&nodes[1]);
    let all = sent.len();
    sent.sort();
    sent.dedup();
    assert_eq!((sent.len(), all), (keys.len(), keys.len()), "each key once");
}

#[test]
fn of_two_owners_one_compares_each_partition() {
    let [a, b] = ["a", "b"].map(|name| NodeId::new(name).expect("legal"));
    for partition in (0..4).map(Partition) {
        assert_ne!(initiates(a, b, partition), initiates(b, a, partition));
        assert_eq!(initiates(a, b, partition), partition.0 % 2 == 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_takes_as_long_as_what_is_done_has_taken() {
    let since = Instant::now();
    tokio::time::advance(Duration::from_secs(6)).await;
    assert_eq!(eta_ms(1, 4, since), Some(2000));
    assert_eq!((eta_ms(4, 4, since), eta_ms(5, 4, since), eta_ms(0, 4, since)), (None, None, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_rest_is_as_long_as_the_work_and_not_longer_than_half_a_second() {
    for (worked, rests) in [(0, 0), (300, 300), (500, 500), (900, 500)] {
        let began = Instant::now();
        tokio::time::advance(Duration::from_millis(worked)).await;
        let rested = Instant::now();
        pause(began).await;
        assert_eq!(rested.elapsed().as_millis().next_multiple_of(100), rests);
    }
}
