//! A change of layout between nodes that take each step when the test says so.

use std::collections::BTreeMap;

use quorate_transport::budget::{Budget, Pot, Room};
use quorate_wire::codec::Blob;
use quorate_wire::ids::{DiskId, OpId};
use quorate_wire::{Failure, Key, KeyPrefix, Quorum, Read, Reply, Request, RequestBody, Scan, ScanPosition, Write};

use super::*;
use crate::by_hand::{self, Kind, Manner, Node};
use crate::coordinator::Origin;
use crate::peer_wire::{Fetch, FetchRange, PeerBody, PeerReply};
use crate::recovery::Reason;
use crate::replica_service::ReplicaService;
use crate::store::{Durability, Store, Tree};
use quorate_core::changes::{self, layout_after};
use quorate_core::keyspace::data_key;
use quorate_core::layout::Layout;

const PATIENCE: Duration = Duration::from_secs(20);

/// Three members that own everything, and spare nodes.
async fn three_and(spare: usize) -> Vec<Node> {
    by_hand::start(Kind { spare, ..Kind::of(3) }).await
}

fn replace(old: usize, new: usize, nodes: &[Node]) -> changes::Change {
    let node = &nodes[new];
    changes::Change::Replace { old: nodes[old].id, new: node.id, disk: DiskId(new as u128 + 1), addr: node.addr }
}

fn join(new: usize, nodes: &[Node]) -> changes::Change {
    let (node, addr) = (nodes[new].id, nodes[new].addr);
    changes::Change::Join { node, disk: DiskId(new as u128 + 1), addr, zone: node.to_string(), weight: 1 }
}

fn after(node: &Node, changes: &[changes::Change]) -> Layout {
    layout_after(&node.layouts.current().expect("in force").layout, changes).expect("possible")
}

async fn ask(node: &Node, body: RequestBody) -> Result<Reply, Failure> {
    let request = Request { layout: LayoutVersion(1), request_id: 7, body };
    node.coordinator.handle(&request, PATIENCE, Origin::Client, Room::unbounded()).await
}

async fn put(node: &Node, number: u32) -> Result<(), Failure> {
    let (key, value) = (key(number), Some(Blob::copy_from(&number.to_be_bytes())));
    let write = Write {
        key,
        value,
        context: None,
        op_id: OpId(1000 + u128::from(number)),
        first_sent_ms: None,
        w: Some(Quorum::Majority),
        strict: true,
        explain: false,
    };
    ask(node, RequestBody::Write(write)).await.map(drop)
}

async fn get(node: &Node, number: u32) -> Result<Vec<Blob>, Failure> {
    let read = Read { key: key(number), r: Some(Quorum::Majority), strict: true, monotonic: false, explain: false };
    match ask(node, RequestBody::Read(read)).await? {
        Reply::Found(found) => Ok(found.values),
        other => panic!("{other:?}"),
    }
}

fn key(number: u32) -> Key {
    Key::plain(format!("key-{number}"))
}

/// A quorum read at every node finds every write.
async fn all_is_found(nodes: &[Node], written: u32) {
    for node in nodes {
        for number in 1..=written {
            let values = get(node, number).await.unwrap_or_else(|error| panic!("{} {number}: {error:?}", node.id));
            assert_eq!(values, [Blob::copy_from(&number.to_be_bytes())], "{} reads {number}", node.id);
        }
    }
}

/// Which records lie at a node.
async fn held(node: &Node, written: u32) -> Vec<u32> {
    let mut held = Vec::new();
    for number in 1..=written {
        if node.held(&key(number).into()).await.is_some() {
            held.push(number);
        }
    }
    held
}

fn live(node: &Node) -> Vec<u64> {
    node.layouts.current().expect("in force").live().versions().iter().map(|placed| placed.version().0).collect()
}

async fn step(node: &Node, moves: &mut BTreeMap<NodeId, Round>) -> bool {
    let round = moves.entry(node.id).or_default();
    let desk = node.anti_entropy.desk();
    desk.follow().await.expect("it goes on");
    desk.move_data(round).await
}

#[tokio::test]
async fn every_owner_may_change_at_once_while_clients_read_and_write() {
    let nodes = three_and(3).await;
    let mut written = 0;
    for node in nodes.iter().cycle().take(12) {
        written += 1;
        put(node, written).await.expect("written");
    }
    all_is_found(&nodes, written).await;
    let next = after(&nodes[0], &[replace(0, 3, &nodes), replace(1, 4, &nodes), replace(2, 5, &nodes)]);
    let mut moves = BTreeMap::new();
    // They learn of it one after the other; after every step everything is still found, and something is written.
    for node in nodes.iter().rev() {
        node.layouts.adopt(next.clone()).await;
    }
    written = while_clients_work(&nodes, &mut moves, 2, written).await;
    for node in &nodes[..3] {
        while step(node, &mut moves).await {}
        assert!(held(node, written).await.is_empty(), "{} has dropped its copy", node.id);
        assert_eq!(node.anti_entropy.of_others(), Some(0), "{} says so", node.id);
    }
    for node in &nodes[3..] {
        let lacks = (1..=written).filter(|number| number % 2 == 1).count();
        assert!(
            held(node, written).await.len() >= lacks,
            "{} holds what was moved, and its share of new writes",
            node.id
        );
    }
    all_is_found(&nodes, written).await;
}

/// Steps of all nodes until the change is over for all of them. After every one of them something is written, and everything that was
/// written is found at every node. How much was written.
async fn while_clients_work(
    nodes: &[Node],
    moves: &mut BTreeMap<NodeId, Round>,
    version: u64,
    mut written: u32,
) -> u32 {
    let mut rounds = 0;
    while nodes.iter().any(|node| live(node) != [version]) {
        rounds += 1;
        assert!(rounds < 20, "{:#?}", said(nodes));
        for node in nodes {
            step(node, moves).await;
            written += 1;
            put(&nodes[written as usize % nodes.len()], written).await.expect("written");
            all_is_found(nodes, written).await;
        }
    }
    written
}

fn said<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Vec<(NodeId, Vec<u64>, Said)> {
    nodes.into_iter().map(|node| (node.id, live(node), node.layouts.said())).collect()
}

/// Steps of these nodes until the change is over for all of them.
async fn to_the_end(nodes: &[&Node], moves: &mut BTreeMap<NodeId, Round>, version: u64) {
    let mut rounds = 0;
    while nodes.iter().any(|node| live(node) != [version]) {
        rounds += 1;
        assert!(rounds < 20, "{:#?}", said(nodes.iter().copied()));
        for node in nodes {
            step(node, moves).await;
        }
    }
    for node in nodes {
        while step(node, moves).await {}
    }
}

#[tokio::test]
async fn a_dead_member_is_replaced_without_it_and_hands_over_what_it_has_when_it_comes_back() {
    let nodes = three_and(1).await;
    for number in 1..=20 {
        put(&nodes[1], number).await.expect("written");
    }
    // What only the dead one has, as after a write that too few have taken.
    let (alone, record) = (key(99), by_hand::record(1, "alone"));
    nodes[0].hold(&alone.clone().into(), &record).await;
    nodes[0].is(Manner::Refuses);
    nodes[1..].iter().for_each(|node| node.believes_down(&[nodes[0].id]));
    let next = after(&nodes[1], &[replace(0, 3, &nodes)]);
    let mut moves = BTreeMap::new();
    let (dead, others) = (&nodes[0], [&nodes[1], &nodes[2], &nodes[3]]);
    for node in others {
        node.layouts.adopt(next.clone()).await;
    }
    to_the_end(&others, &mut moves, 2).await;
    all_is_found(&nodes[1..], 20).await;
    assert!(held(&nodes[3], 20).await.len() == 20, "all of it came from the others");

    dead.is(Manner::Answers);
    nodes.iter().for_each(|node| node.believes_down(&[]));
    // It still believes in layout 1, and nobody else does.
    get(dead, 1).await.map(drop).unwrap_or_else(|error| assert!(format!("{error:?}").contains("layout"), "{error:?}"));
    dead.layouts.adopt(next).await;
    assert_eq!(dead.anti_entropy.of_others(), None, "it has not looked yet");
    to_the_end(&[dead], &mut moves, 2).await;
    assert!(held(dead, 20).await.is_empty() && dead.held(&alone.clone().into()).await.is_none());
    for node in others {
        assert_eq!(node.held(&alone.clone().into()).await.as_ref(), Some(&record), "{}", node.id);
    }
}

/// The disk of a node is emptied while the node runs on, and the node notices.
async fn lose_everything(node: &Node, written: u32) {
    let partitions = node.layouts.current().expect("in force").owned_by(node.id);
    for number in 1..=written {
        node.store.remove(Tree::Data, &data_key(&key(number))).expect("memory takes it");
    }
    node.replica.recovery().lose_all(&partitions, Reason::OtherDisk).expect("noted");
}

async fn recover_everything(node: &Node) {
    let current = node.layouts.current().expect("in force");
    for partition in node.replica.recovery().partitions() {
        super::super::recover::recover(node.anti_entropy.desk(), &current, partition).await;
    }
    assert_eq!(node.replica.recovery().partitions(), [], "{}", node.id);
}

#[tokio::test]
async fn a_copy_that_is_lost_in_the_midst_of_a_change_counts_again_when_it_was_brought_back() {
    for lose in 1..=2 {
        let nodes = three_and(3).await;
        for number in 1..=20 {
            put(&nodes[0], number).await.expect("written");
        }
        let next = after(&nodes[0], &[replace(0, 3, &nodes), replace(1, 4, &nodes), replace(2, 5, &nodes)]);
        let mut moves = BTreeMap::new();
        for node in &nodes {
            node.layouts.adopt(next.clone()).await;
        }
        assert_eq!(held(&nodes[2], 20).await.len(), 20);
        // The disks of old owners are emptied before they have given anything.
        let lost = &nodes[..lose];
        for node in lost {
            lose_everything(node, 20).await;
            step(node, &mut moves).await;
            let said = node.layouts.said();
            assert!(said.partitions.values().all(|part| part.lost && part.closed == LayoutVersion(2)));
        }
        for node in &nodes[lose..] {
            step(node, &mut moves).await;
            let mut got = node.layouts.said().partitions.into_values().flat_map(|part| part.got);
            assert!(!got.any(|got| lost.iter().any(|node| node.id == got.from)), "what is lost is no push");
        }
        for _ in 0..4 {
            for node in &nodes {
                step(node, &mut moves).await;
            }
        }
        // One of them may be left out for ever, two may not.
        assert_eq!(nodes.iter().any(|node| node.layouts.said().settled == LayoutVersion(2)), lose == 1);
        if lose == 2 {
            for node in lost {
                recover_everything(node).await;
                assert_eq!(held(node, 20).await.len(), 20, "{}", node.id);
            }
        }
        let all: Vec<&Node> = nodes.iter().collect();
        to_the_end(&all, &mut moves, 2).await;
        all_is_found(&nodes, 20).await;
        for node in &nodes[3..] {
            assert_eq!(held(node, 20).await.len(), 20, "{}", node.id);
        }
    }
}

#[tokio::test]
async fn an_owner_without_a_copy_is_restored_from_others_when_the_former_owners_have_dropped_theirs() {
    let nodes = three_and(3).await;
    for number in 1..=20 {
        put(&nodes[0], number).await.expect("written");
    }
    let next = after(&nodes[0], &[replace(0, 3, &nodes), replace(1, 4, &nodes), replace(2, 5, &nodes)]);
    let (mut moves, version, late) = (BTreeMap::new(), LayoutVersion(2), &nodes[5]);
    for node in &nodes {
        node.layouts.adopt(next.clone()).await;
    }
    for node in nodes[..5].iter().chain(&nodes[..5]) {
        step(node, &mut moves).await;
    }
    // As if it had been ready once, which is forgotten.
    for node in &nodes[..3] {
        let drop_all = |said: &mut Said, _: &Current| {
            said.partitions.values_mut().for_each(|part| part.dropped = true);
            true
        };
        assert!(node.layouts.said().partitions.values().all(|part| part.closed == version), "{}", node.id);
        node.layouts.say(drop_all).await.expect("memory takes it");
        lose_everything(node, 20).await;
    }
    let reads = |node: &Node| {
        let current = node.layouts.current().expect("in force");
        let of = |partition| current.may_serve(node.id, partition, quorate_core::ownership::Role::Reads(version));
        current.owned_by(node.id).into_iter().all(|partition| of(partition).is_ok())
    };
    assert!(reads(&nodes[3]) && reads(&nodes[4]) && !reads(late));
    step(late, &mut moves).await;
    assert_eq!(held(late, 20).await.len(), 20);
    let said = late.layouts.said();
    assert!(said.settled == version || said.partitions.values().all(|part| part.restored == version), "{said:?}");
    let all: Vec<&Node> = nodes.iter().collect();
    to_the_end(&all, &mut moves, 2).await;
    all_is_found(&nodes[3..], 20).await;
}

#[tokio::test]
async fn a_disk_that_is_not_what_it_was_has_lost_what_each_newer_layout_gave_to_it_too() {
    for set_back in [true, false] {
        let nodes = three_and(1).await;
        for number in 1..=20 {
            put(&nodes[0], number).await.expect("written");
        }
        let (new, mut moves, v2) = (&nodes[3], BTreeMap::new(), LayoutVersion(2));
        let changes::Change::Replace { old, new: name, addr, .. } = replace(0, 3, &nodes) else { unreachable!() };
        // It is set back to when it knew layout 1, or the layout names the disk that it had before.
        if set_back {
            new.replica.set_back(Vec::new(), LayoutVersion(1)).await.expect("noted");
        }
        let disk = if set_back { DiskId(4) } else { DiskId(99) };
        let next = after(&nodes[0], &[changes::Change::Replace { old, new: name, disk, addr }]);
        for node in &nodes {
            node.layouts.adopt(next.clone()).await;
        }
        for node in nodes[..3].iter().chain(&nodes[..3]) {
            step(node, &mut moves).await;
        }
        step(new, &mut moves).await;
        let owned = new.layouts.current().expect("in force").owned_by(new.id);
        assert_eq!(new.replica.recovery().partitions(), owned, "what it took in another life is lost");
        assert!(new.layouts.said().partitions.values().all(|part| part.got.is_empty()), "no push makes up for that");
        assert_eq!(new.replica.recovery().judged(), Some(v2));
        recover_everything(new).await;
        step(new, &mut moves).await;
        assert_eq!(new.replica.recovery().partitions(), [], "it is lost once");
        let all: Vec<&Node> = nodes.iter().collect();
        to_the_end(&all, &mut moves, 2).await;
        all_is_found(&nodes, 20).await;
    }
}

#[tokio::test]
async fn a_node_on_another_disk_loses_nothing_to_layouts_that_were_chosen_after_it_had_asked_for_them() {
    let nodes = three_and(1).await;
    for number in 1..=20 {
        put(&nodes[0], number).await.expect("written");
    }
    let (other, mut moves) = (&nodes[3], BTreeMap::new());
    // The layout names the disk that the node had before, and gives it some of the partitions; then more, and then all of them.
    let changes::Change::Join { node, addr, zone, .. } = join(3, &nodes) else { unreachable!() };
    let second = after(&nodes[0], &[changes::Change::Join { node, disk: DiskId(99), addr, zone, weight: 1 }]);
    let adopt = async |layout: Layout| {
        for node in &nodes {
            node.layouts.adopt(layout.clone()).await;
        }
    };
    let lost = || other.replica.recovery().partitions();
    let owned = || other.layouts.current().expect("in force").owned_by(other.id);
    let all: Vec<&Node> = nodes.iter().collect();
    adopt(second).await;
    other.anti_entropy.desk().follow().await.expect("it goes on");
    assert_eq!((lost(), owned().is_empty()), (owned(), false));
    for node in &nodes[..3] {
        step(node, &mut moves).await;
    }
    recover_everything(other).await;
    to_the_end(&all, &mut moves, 2).await;

    let before = owned();
    adopt(after(&nodes[0], &[changes::Change::Leave(nodes[0].id)])).await;
    assert!(owned().len() > before.len());
    let current = other.layouts.current().expect("in force");
    assert!(!other.anti_entropy.desk().is_judged(&current), "it may have known this one in its other life");
    // It has asked before it was learned: enough members said that there is none after it.
    assert!(other.layouts.has_caught_up(LayoutVersion(3)).await);
    assert!(!other.anti_entropy.desk().is_judged(&current), "but not before this one");
    other.anti_entropy.desk().follow().await.expect("it goes on");
    assert!(!lost().is_empty() && lost().len() < owned().len(), "{:?}", lost());
    for node in &nodes[..3] {
        step(node, &mut moves).await;
    }
    recover_everything(other).await;
    to_the_end(&all, &mut moves, 3).await;
    // It was asked for anew by what it did not know.
    assert!(other.layouts.has_caught_up(LayoutVersion(3)).await);

    let two = changes::Change::Replicas { n: Some(2), r: None, w: None };
    let three = changes::Change::Replicas { n: Some(3), r: None, w: None };
    for (version, settings) in [(4, two), (5, three)] {
        let before = owned();
        adopt(after(&nodes[1], &[settings])).await;
        assert_eq!(version == 5, owned().len() > before.len());
        assert!(other.anti_entropy.desk().is_judged(&other.layouts.current().expect("in force")));
        other.anti_entropy.desk().follow().await.expect("it goes on");
        assert_eq!(lost(), [], "layout {version} is news to it, whatever its disk");
        to_the_end(&all, &mut moves, version).await;
    }
    all_is_found(&nodes[1..], 20).await;
}

#[tokio::test]
async fn what_was_lost_comes_back_only_when_the_node_acts_on_the_newest_layout() {
    let nodes = three_and(1).await;
    for number in 1..=20 {
        put(&nodes[0], number).await.expect("written");
    }
    let (lost, version, mut moves) = (&nodes[1], LayoutVersion(2), BTreeMap::new());
    let next = after(&nodes[0], &[replace(0, 3, &nodes)]);
    for node in &nodes {
        node.layouts.adopt(next.clone()).await;
    }
    for node in [&nodes[0], &nodes[2], &nodes[3]] {
        step(node, &mut moves).await;
    }
    lose_everything(lost, 20).await;
    let current = lost.layouts.current().expect("in force");
    let partitions = lost.replica.recovery().partitions();
    for partition in &partitions {
        super::super::recover::recover(lost.anti_entropy.desk(), &current, *partition).await;
    }
    assert_eq!((held(lost, 20).await, lost.replica.recovery().partitions()), (vec![], partitions));
    // It says what becomes of a copy that is lost, while it is.
    step(lost, &mut moves).await;
    let said = lost.layouts.said();
    assert!(said.fence == version && said.partitions.values().all(|part| part.lost && part.closed == version));
    recover_everything(lost).await;
    assert_eq!(held(lost, 20).await.len(), 20);
    let all: Vec<&Node> = nodes.iter().collect();
    to_the_end(&all, &mut moves, 2).await;
    all_is_found(&nodes, 20).await;
}

#[tokio::test]
async fn nothing_comes_into_a_partition_of_others_once_a_node_has_looked_at_it() {
    let nodes = three_and(1).await;
    let (late, others) = (&nodes[0], [&nodes[1], &nodes[2], &nodes[3]]);
    let (mut moves, next) = (BTreeMap::new(), after(&nodes[0], &[replace(0, 3, &nodes)]));
    for node in others {
        node.layouts.adopt(next.clone()).await;
    }
    to_the_end(&others, &mut moves, 2).await;
    // It hears of the change when that is over, and holds nothing.
    late.layouts.adopt(next).await;
    late.layouts.settle(LayoutVersion(2)).await.expect("stored");
    while step(late, &mut moves).await {}
    // An exchange under layout 1 was under way, and brings this only now.
    let current = late.layouts.current().expect("in force");
    let merged = late.replica.merge(current.partition_of(&key(1)), &key(1).into(), by_hand::record(1, "late")).await;
    let refused = merged.map(drop).expect_err("it would lie there for ever").to_string();
    assert!(refused.contains("owns nothing of partition"), "{refused}");
    assert_eq!(late.held(&key(1).into()).await, None);
}

#[tokio::test]
async fn a_node_whose_disk_is_yet_to_be_judged_is_no_source_of_what_others_have_lost() {
    // What three of three hold, one other owner has.
    let nodes = by_hand::start(Kind { spare: 1, r: 1, w: 3, ..Kind::of(3) }).await;
    for number in 1..=20 {
        put(&nodes[0], number).await.expect("written");
    }
    let (other, victim) = (&nodes[3], &nodes[2]);
    let changes::Change::Replace { old, new, addr, .. } = replace(0, 3, &nodes) else { unreachable!() };
    let next = after(&nodes[0], &[changes::Change::Replace { old, new, disk: DiskId(99), addr }]);
    for node in &nodes {
        node.layouts.adopt(next.clone()).await;
        node.layouts.settle(LayoutVersion(2)).await.expect("stored");
    }
    lose_everything(victim, 20).await;
    victim.believes_down(&[nodes[1].id]);
    let current = victim.layouts.current().expect("in force");
    let recover = async || {
        for partition in victim.replica.recovery().partitions() {
            super::super::recover::recover(victim.anti_entropy.desk(), &current, partition).await;
        }
        // Of those that it answers no read of.
        victim.replica.recovery().progress().map_or(0, |progress| progress.left as usize)
    };
    let all = current.owned_by(victim.id).len();
    assert_eq!(recover().await, all, "the only one that can be asked does not know yet what it lacks");
    // It knows now, and lacks everything.
    other.anti_entropy.desk().judge_disk(&other.layouts.current().expect("in force")).await.expect("stored");
    assert_eq!(recover().await, all);
    victim.believes_down(&[]);
    assert_eq!(recover().await, 0, "one that has lost nothing is enough");
}

#[test]
fn partitions_that_cannot_be_had_hold_up_no_others() {
    let partitions = || (0..6).map(Partition).collect::<Vec<_>>();
    let is_ready = |partition: Partition| [1, 4].contains(&partition.0);
    let order = |last: Option<u16>| -> Vec<u16> {
        in_turn(partitions(), last.map(Partition), is_ready).into_iter().map(|partition| partition.0).collect()
    };
    assert_eq!(order(None), [0, 2, 3, 5, 1, 4]);
    assert_eq!(order(Some(2)), [3, 5, 0, 2, 4, 1]);
    assert_eq!(order(Some(5)), [0, 2, 3, 5, 1, 4], "and from the beginning");
}

#[tokio::test]
async fn what_a_node_has_lost_is_judged_by_the_layouts_that_it_acts_on() {
    let nodes = three_and(3).await;
    let (v1, v2, v3) = (LayoutVersion(1), LayoutVersion(2), LayoutVersion(3));
    let there = after(&nodes[0], &[replace(0, 3, &nodes), replace(1, 4, &nodes), replace(2, 5, &nodes)]);
    let back = Layout { version: v3, previous: there.hash(), ..(*nodes[0].current.layout).clone() };
    let known = |node: &Node| node.layouts.current().expect("in force");
    // A newer layout comes between its look and what it says: it says nothing of either.
    let overtaken = &nodes[0];
    let before = known(overtaken);
    overtaken.layouts.adopt(there.clone()).await;
    let between = known(overtaken);
    overtaken.layouts.adopt(back).await;
    for current in [before, between] {
        overtaken.anti_entropy.desk().learn(&current).await.expect("stored");
        let said = overtaken.layouts.said();
        assert_eq!((said.fence, said.settled), (LayoutVersion::NONE, v1));
        assert!(said.partitions.values().all(|part| part.passed_over.is_none()));
    }
    // What it settles is what it has looked at: who knows nothing of the layout before has lost what that gave to it.
    let (emptied, mut moves) = (&nodes[5], BTreeMap::new());
    let before = known(emptied);
    emptied.layouts.adopt(there.clone()).await;
    emptied.layouts.settle(v2).await.expect("stored");
    emptied.anti_entropy.desk().learn(&before).await.expect("stored");
    let said = emptied.layouts.said();
    assert_eq!((said.settled, said.forgotten(emptied.id, known(emptied).live().oldest()).is_empty()), (v1, false));
    // And who has received all of it is told so by what it says, though it had no time to look again.
    let ready = &nodes[4];
    for node in &nodes[1..5] {
        node.layouts.adopt(there.clone()).await;
    }
    for node in nodes[1..4].iter().chain(&nodes[1..4]) {
        step(node, &mut moves).await;
    }
    let current = known(ready);
    let desk = ready.anti_entropy.desk();
    desk.learn(&current).await.expect("stored");
    desk.hear(&current).await;
    desk.pull(&mut None).await;
    let owned = known(ready).owned_by(ready.id);
    assert!(owned.iter().all(|partition| ready.layouts.said().part(*partition).ready < v2));
    ready.layouts.settle(v2).await.expect("stored");
    assert!(owned.iter().all(|partition| ready.layouts.said().part(*partition).ready == v2));
    assert_eq!(ready.layouts.said().forgotten(ready.id, known(ready).live().oldest()), []);
}

#[tokio::test]
async fn a_change_that_is_taken_back_leaves_everything_where_it_was() {
    let nodes = three_and(2).await;
    for number in 1..=20 {
        put(&nodes[0], number).await.expect("written");
    }
    let there = after(&nodes[0], &[replace(0, 3, &nodes), replace(1, 4, &nodes)]);
    let back = Layout { version: LayoutVersion(3), previous: there.hash(), ..(*nodes[0].current.layout).clone() };
    let mut moves = BTreeMap::new();
    for node in &nodes {
        node.layouts.adopt(there.clone()).await;
        step(node, &mut moves).await;
        all_is_found(&nodes, 20).await;
    }
    for node in &nodes {
        node.layouts.adopt(back.clone()).await;
    }
    let written = while_clients_work(&nodes, &mut moves, 3, 20).await;
    for node in &nodes[3..] {
        while step(node, &mut moves).await {}
        assert!(held(node, written).await.is_empty(), "{}", node.id);
    }
    all_is_found(&nodes, written).await;
}

#[tokio::test]
async fn what_moves_is_counted_and_what_stands_in_its_way_is_told() {
    let nodes = three_and(1).await;
    for number in 1..=20 {
        put(&nodes[0], number).await.expect("written");
    }
    let next = after(&nodes[0], &[replace(0, 3, &nodes)]);
    let (mut moves, v1, v2) = (BTreeMap::new(), LayoutVersion(1), LayoutVersion(2));
    let told = |node: &Node| node.anti_entropy.transfers();
    assert_eq!(told(&nodes[0]), None, "nothing moves");
    for node in &nodes {
        node.layouts.adopt(next.clone()).await;
    }
    let (new, old) = (&nodes[3], &nodes[0]);
    let owned = next.ring().expect("possible").owned_by(new.id).len() as u32;
    // The others have not raised their fences.
    step(new, &mut moves).await;
    let early = told(new).expect("a change is under way");
    assert_eq!((early.from, early.to, early.done, early.of, early.eta_ms), (v1, v2, 0, owned, None));
    let others: Vec<NodeId> = nodes[..3].iter().map(|node| node.id).collect();
    assert_eq!(early.stopped.iter().map(|stopped| stopped.with).collect::<Vec<_>>(), others);
    for stopped in &early.stopped {
        assert_eq!((stopped.what, stopped.partitions), (Transfer::TakeOver, owned));
        assert!(stopped.why.contains("it acts on layout"), "{stopped:?}");
    }
    let sources: Vec<_> = early.sources.iter().map(|source| (source.node, source.done, source.of)).collect();
    assert_eq!(sources, others.iter().map(|node| (*node, 0, Some(owned))).collect::<Vec<_>>());

    for node in &nodes[..3] {
        node.anti_entropy.desk().follow().await.expect("it goes on");
    }
    step(new, &mut moves).await;
    let moved = told(new).expect("a change is under way");
    assert_eq!((moved.done, moved.of, moved.eta_ms, &moved.stopped[..]), (owned, owned, Some(0), &[][..]));
    let sum = |count: fn(&quorate_wire::Flow) -> u64| moved.sources.iter().map(count).sum::<u64>();
    assert_eq!(held(new, 20).await.len(), 20);
    assert_eq!(sum(|flow| flow.records), 20, "each came once: {moved:?}");
    assert!(sum(|flow| flow.bytes) > 20 * 4 && sum(|flow| flow.records_per_second) > 0, "{moved:?}");
    let sample = |name: &str, what: &str| {
        let samples = new.anti_entropy.samples();
        let found = samples.iter().find(|sample| sample.name == name && sample.label == Some(("what", what)));
        found.map(|sample| sample.value)
    };
    assert_eq!(sample("transferred_records", "taken_over"), Some(20));
    assert_eq!(sample("transferred_bytes", "taken_over"), Some(sum(|flow| flow.bytes)));
    assert_eq!(sample("transfers_stopped", "taken_over"), Some(3 * u64::from(owned)));
    assert_eq!(sample("transferred_records", "handed_over"), Some(0));

    // The former owner hands over, and one of the others does not take it.
    let mut rounds = 0;
    while nodes.iter().any(|node| live(node) != [2]) {
        rounds += 1;
        assert!(rounds < 20, "{:#?}", said(&nodes));
        for node in &nodes {
            node.anti_entropy.desk().follow().await.expect("it goes on");
        }
    }
    assert_eq!(told(new), None, "the change is over");
    old.hold(&key(99).into(), &by_hand::record(1, "alone")).await;
    nodes[1].is(Manner::Refuses);
    step(old, &mut moves).await;
    let stuck = told(old).expect("it still holds something");
    assert_eq!((stuck.from, stuck.to, stuck.of), (v2, v2, 0));
    let [stopped] = &stuck.stopped[..] else { panic!("one node: {stuck:?}") };
    assert_eq!((stopped.what, stopped.with), (Transfer::HandOver, nodes[1].id));
    assert_eq!(stuck.left, Some(stopped.partitions));
    nodes[1].is(Manner::Answers);
    step(old, &mut moves).await;
    assert_eq!(told(old), None, "all of it is gone");
    let given = old
        .anti_entropy
        .samples()
        .into_iter()
        .find(|sample| sample.name == "transferred_records" && sample.label == Some(("what", "handed_over")));
    assert_eq!(given.map(|sample| sample.value), Some(3), "what it alone had went to each of the three");
}

#[tokio::test]
async fn a_node_that_joins_speaks_only_when_it_holds_what_it_must() {
    let nodes = three_and(1).await;
    for number in 1..=40 {
        put(&nodes[0], number).await.expect("written");
    }
    let next = after(&nodes[0], &[join(3, &nodes)]);
    let mut moves = BTreeMap::new();
    for node in &nodes {
        node.layouts.adopt(next.clone()).await;
    }
    let current = nodes[3].layouts.current().expect("in force");
    let mine = current.owned_by(nodes[3].id);
    assert!(!mine.is_empty());
    for partition in &mine {
        let speaks = current.may_serve(nodes[3].id, *partition, quorate_core::ownership::Role::Reads(LayoutVersion(2)));
        assert!(matches!(speaks, Err(NotApplied::NotServing { why, .. }) if why.contains("has not yet received")));
    }
    // Nobody has raised a fence yet: what it takes over does not count.
    step(&nodes[3], &mut moves).await;
    assert!(nodes[3].layouts.said().partitions.is_empty());
    let mut rounds = 0;
    while nodes.iter().any(|node| live(node) != [2]) {
        rounds += 1;
        assert!(rounds < 20);
        for node in &nodes {
            step(node, &mut moves).await;
            all_is_found(&nodes, 40).await;
        }
    }
    for node in &nodes {
        while step(node, &mut moves).await {}
    }
    // Exactly three copies of each.
    let mut copies = BTreeMap::new();
    for node in &nodes {
        for number in held(node, 40).await {
            *copies.entry(number).or_insert(0) += 1;
        }
    }
    assert!(copies.values().all(|copies| *copies == 3) && copies.len() == 40, "{copies:?}");
}

/// Runs a request that has too little room for what it reads until something else was done, and reads it once more then.
async fn in_the_midst_of<T>(request: impl AsyncFnOnce(Room) -> T, meanwhile: impl AsyncFnOnce()) -> T {
    let budget = Budget::new(1 << 20);
    let pot = Pot { small: budget.clone(), large: budget.clone(), large_from: 1 << 20 };
    let others = budget.try_take(1 << 20).expect("it is free");
    let meanwhile = async {
        meanwhile().await;
        drop(others);
    };
    tokio::join!(request(Room::new(pot)), meanwhile).0
}

const LARGE: usize = 20 << 10;

#[tokio::test]
async fn a_copy_that_is_dropped_while_a_read_waits_does_not_answer_that_there_is_nothing() {
    for way in ["a peer's read", "a peer's page", "its own read", "its own page"] {
        let nodes = three_and(3).await;
        let (leaves, at) = (&nodes[0], LayoutVersion(1));
        let key = key(1);
        let partition = leaves.partition_of(&Blob::from(key.clone()));
        for node in &nodes[..2] {
            node.hold(&key.clone().into(), &by_hand::record(1, &"v".repeat(LARGE))).await;
        }
        nodes[1..].iter().for_each(|node| node.is(Manner::Refuses));
        let next = after(leaves, &[replace(0, 3, &nodes), replace(1, 4, &nodes), replace(2, 5, &nodes)]);
        leaves.layouts.adopt(next).await;
        let drops = async || {
            let close = |said: &mut Said, current: &Current| {
                said.fence = current.version();
                for partition in current.owned_by(NodeId::new("n1").expect("legal")) {
                    let mut part = said.part(partition);
                    (part.closed, part.dropped) = (current.version(), true);
                    said.set(partition, part);
                }
                true
            };
            leaves.layouts.say(close).await.expect("memory takes it");
            leaves.replica.drop_records(partition, || true).await.expect("memory takes it");
            assert!(held(leaves, 1).await.is_empty());
        };
        let as_a_peer = async |body: PeerBody, room: Room| {
            let (layouts, replica) = (leaves.layouts.clone(), leaves.replica.clone());
            let service = ReplicaService::new(leaves.id, layouts, replica, leaves.coordinator.clone());
            service.serve_peer(nodes[1].id, body, PATIENCE, room).await
        };
        let as_a_client = async |body: RequestBody, room: Room| {
            let request = Request { layout: at, request_id: 7, body };
            leaves.coordinator.handle(&request, PATIENCE, Origin::Client, room).await
        };
        let encoded = Blob::from(key.clone());
        let fetch = Fetch { at, under: at, key: encoded, held: None, durable: false, r: 1 };
        let range = FetchRange { at, partition, after: None, limit: 10, r: 1 };
        let read = Read { key, r: Some(Quorum::One), strict: true, monotonic: false, explain: false };
        let scan = Scan {
            prefix: KeyPrefix::default(),
            from: ScanPosition::start_of(partition),
            until: Partition(partition.0 + 1),
            limit: 10,
            keys_only: false,
            r: Some(Quorum::One),
        };
        let said = match way {
            "a peer's read" => in_the_midst_of(async |room| as_a_peer(fetch.into(), room).await, drops).await.into(),
            "a peer's page" => in_the_midst_of(async |room| as_a_peer(range.into(), room).await, drops).await.into(),
            "its own read" => {
                in_the_midst_of(async |room| as_a_client(RequestBody::Read(read), room).await, drops).await.into()
            }
            _ => in_the_midst_of(async |room| as_a_client(RequestBody::Scan(scan), room).await, drops).await.into(),
        };
        match said {
            Answer::ToPeer(PeerReply::Refused(NotApplied::StaleLayout { need, had })) => {
                assert_eq!((need, had), (LayoutVersion(2), at), "{way}");
            }
            // Nobody else answers, and there was little room.
            Answer::ToClient(Err(Failure::NotApplied(
                NotApplied::Unavailable { .. } | NotApplied::Overloaded { .. },
            ))) => {}
            said => panic!("{way}: {said:?}"),
        }
    }
}

/// What came of a read.
#[derive(Debug)]
enum Answer {
    ToPeer(PeerReply),
    ToClient(Result<Reply, Failure>),
}

impl From<PeerReply> for Answer {
    fn from(reply: PeerReply) -> Self {
        Self::ToPeer(reply)
    }
}

impl From<Result<Reply, Failure>> for Answer {
    fn from(reply: Result<Reply, Failure>) -> Self {
        Self::ToClient(reply)
    }
}

#[tokio::test]
async fn a_monotonic_read_does_not_count_what_its_own_node_holds_of_writes_under_newer_layouts() {
    let nodes = three_and(1).await;
    let key = key(1);
    let held = by_hand::record(1, &"v".repeat(LARGE));
    for node in &nodes[..3] {
        node.hold(&key.clone().into(), &held).await;
    }
    let next = after(&nodes[0], &[replace(1, 3, &nodes)]);
    let newer = async || {
        nodes[0].layouts.adopt(next).await;
        nodes[0].replica.raise_fence(LayoutVersion(2)).await;
        // Nobody has acknowledged it, and not all of its owners refuse what is older.
        nodes[0].hold(&key.clone().into(), &by_hand::record(2, "newer")).await;
    };
    let read = Read { key: key.clone(), r: Some(Quorum::One), strict: true, monotonic: true, explain: false };
    let reads = async |room| {
        let request = Request { layout: LayoutVersion(1), request_id: 7, body: RequestBody::Read(read) };
        nodes[0].coordinator.handle(&request, PATIENCE, Origin::Client, room).await
    };
    // Every owner must hold what such a read returns, and what it names must be refused by none.
    let answer = in_the_midst_of(reads, newer).await;
    assert!(matches!(answer, Err(Failure::NotApplied(_))), "its own copy counts, though the others do not refuse it");
}

/// The record of a key as a newer release has written it, which lies at a node as if that had run there.
async fn written_by_a_newer_release(node: &Node, number: u32) -> Vec<u8> {
    let mut record = by_hand::record(7, "newer");
    record.siblings.values_mut().for_each(|sibling| sibling.value_type = 7);
    let encoded = record.encode().to_vec();
    node.store.insert(Tree::Data, &data_key(&key(number)), &encoded).expect("memory takes it");
    let partition = node.partition_of(&Blob::from(key(number)));
    node.replica.partitions().forget_sums(partition, &Leaves::ALL);
    encoded
}

#[tokio::test]
async fn what_a_newer_release_has_written_is_neither_counted_as_taken_over_nor_dropped() {
    for few in [true, false] {
        let nodes = three_and(1).await;
        for number in 1..=20 {
            put(&nodes[2], number).await.expect("written");
        }
        let (number, version) = (21, LayoutVersion(2));
        let partition = nodes[0].partition_of(&Blob::from(key(number)));
        let have = if few { &nodes[..1] } else { &nodes[..2] };
        let mut newer = Vec::new();
        for node in have {
            newer = written_by_a_newer_release(node, number).await;
        }
        let next = after(&nodes[0], &[replace(0, 3, &nodes)]);
        let mut moves = BTreeMap::new();
        for node in &nodes {
            node.layouts.adopt(next.clone()).await;
        }
        for _ in 0..10 {
            for node in &nodes {
                step(node, &mut moves).await;
            }
        }
        for node in have {
            let there = node.store.get(Tree::Data, &data_key(&key(number))).expect("readable");
            assert_eq!(there.as_deref(), Some(&newer[..]), "{} keeps it", node.id);
        }
        let current = nodes[3].layouts.current().expect("in force");
        if few {
            // Any two of the others hold what two have acknowledged.
            assert!(nodes.iter().all(|node| live(node) == [2]), "{:#?}", said(&nodes));
            let refused = nodes[0].replica.drop_records(partition, || true).await.expect_err("others may lack one");
            let why = refused.to_string();
            assert!(why.contains("is not dropped") && why.contains("newer version of quorate"), "{why}");
        } else {
            assert!(nodes.iter().all(|node| live(node) == [1, 2]), "{:#?}", said(&nodes));
            let got = nodes[3].layouts.said().part(partition).got;
            assert!(!got.is_empty() && got.iter().all(|got| got.from == nodes[2].id), "{got:?}");
            assert!(
                !current.live().partition(partition).is_ready(nodes[3].id, version),
                "it lacks what two have taken"
            );
            for elsewhere in current.owned_by(nodes[3].id).into_iter().filter(|elsewhere| *elsewhere != partition) {
                assert!(current.live().partition(elsewhere).is_ready(nodes[3].id, version), "{elsewhere}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_corrupt_is_dropped_with_the_rest() {
    let nodes = three_and(0).await;
    let keys: Vec<Blob> = (0..3).map(|number| by_hand::key_in(&nodes[0], Partition(1), number)).collect();
    for key in &keys {
        nodes[0].hold(key, &by_hand::record(1, "v")).await;
    }
    assert!(nodes[0].store.flip_bit(Tree::Data, &data_key(&keys[1])));
    assert_eq!(nodes[0].replica.drop_records(Partition(1), || true).await, Ok(3));
    assert_eq!(nodes[0].replica.holds_any(Partition(1)).await, Ok(false));
}

#[tokio::test]
async fn a_copy_goes_only_when_its_owners_have_synced_theirs_in_the_mode_interval_as_well() {
    let nodes = by_hand::start(Kind { spare: 1, durability: Durability::Interval, ..Kind::of(3) }).await;
    let next = after(&nodes[0], &[replace(0, 3, &nodes)]);
    let mut moves = BTreeMap::new();
    for node in &nodes {
        node.layouts.adopt(next.clone()).await;
    }
    to_the_end(&nodes[1..].iter().collect::<Vec<_>>(), &mut moves, 2).await;
    let key = Blob::from(key(1));
    // All hold it already, so that nothing is sent.
    for node in &nodes {
        node.hold(&key, &by_hand::record(1, "v")).await;
    }
    let synced: Vec<u64> = nodes.iter().map(|node| node.committer.beacon()).collect();
    while step(&nodes[0], &mut moves).await {}
    assert_eq!(nodes[0].held(&key).await, None);
    for (node, before) in nodes.iter().zip(synced).skip(1) {
        assert!(node.committer.beacon() > before, "{} holds it durably", node.id);
    }
}

#[tokio::test]
async fn a_quorum_is_below_the_floor_if_it_is_below_that_of_any_layout_that_it_is_made_under() {
    let nodes = by_hand::start(Kind { r: 1, w: 3, ..Kind::of(3) }).await;
    let settings = changes::Change::Replicas { n: None, r: Some(2), w: Some(2) };
    let next = after(&nodes[0], &[settings]);
    let mut numbers = 5000..;
    let mut below = async |w| {
        let write = Write {
            key: key(1),
            value: Some(Blob::copy_from(b"v")),
            context: None,
            op_id: OpId(numbers.next().expect("endless")),
            first_sent_ms: None,
            w: Some(Quorum::Exactly(w)),
            strict: true,
            explain: false,
        };
        match ask(&nodes[0], RequestBody::Write(write)).await {
            Ok(Reply::Written(written)) => written.quorum.below_floor,
            other => panic!("{other:?}"),
        }
    };
    let reads_below = async || {
        let read = Read { key: key(1), r: Some(Quorum::One), strict: true, monotonic: false, explain: false };
        match ask(&nodes[0], RequestBody::Read(read)).await {
            Ok(Reply::Found(found)) => found.quorum.below_floor,
            other => panic!("{other:?}"),
        }
    };
    let scans_below = async || {
        let (from, until) = (ScanPosition::start_of(Partition(0)), Partition(nodes[0].current.partitions()));
        let (prefix, r) = (KeyPrefix::default(), Some(Quorum::One));
        match ask(&nodes[0], RequestBody::Scan(Scan { prefix, from, until, limit: 10, keys_only: false, r })).await {
            Ok(Reply::Scanned(scanned)) => scanned.quorum.below_floor,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((below(2).await, below(3).await, reads_below().await, scans_below().await), (true, false, false, false));
    for node in &nodes {
        node.layouts.adopt(next.clone()).await;
    }
    // Reads are made under the older layout still, writes under both.
    assert_eq!((below(2).await, below(3).await, reads_below().await, scans_below().await), (true, false, false, false));
    let mut moves = BTreeMap::new();
    to_the_end(&nodes.iter().collect::<Vec<_>>(), &mut moves, 2).await;
    assert_eq!((below(2).await, reads_below().await, scans_below().await), (false, true, true));
}
