//! What a coordinator does with a request, and after its reply, between nodes that do nothing by themselves.

use quorate_transport::budget::{Budget, Pot, Room};
use quorate_wire::ids::LayoutVersion;
use quorate_wire::{Found, KeyPrefix, Read, Role, Scan, ScanPosition, Scanned, Written};

use super::*;
use crate::by_hand::{self, Kind, Manner, Node, key_in, record};
use crate::peer_wire::{Fetch, GetLayout, PeerBody};
use crate::recovery::Reason;
use quorate_core::merkle::Leaves;
use quorate_core::mint::mint;
use quorate_core::record::Record;
use quorate_core::version::{Actor, Dot};

const PATIENCE: Duration = Duration::from_secs(20);
const PARTITION: Partition = Partition(2);

fn write(key: &Blob, value: &str) -> Write {
    Write {
        key: Key::from_encoded(key.clone()).expect("a key"),
        value: Some(Blob::copy_from(value.as_bytes())),
        context: None,
        op_id: OpId(value.bytes().fold(0, |id, byte| id * 256 + u128::from(byte))),
        first_sent_ms: None,
        w: Some(Quorum::All),
        strict: false,
        explain: true,
    }
}

fn read(key: &Blob) -> Read {
    let key = Key::from_encoded(key.clone()).expect("a key");
    Read { key, r: Some(Quorum::All), strict: false, monotonic: false, explain: true }
}

async fn ask_as(node: &Node, body: RequestBody, timeout: Duration, origin: Origin) -> Result<Reply, Failure> {
    let request = Request { layout: LayoutVersion(1), request_id: 7, body };
    node.coordinator.handle(&request, timeout, origin, Room::unbounded()).await
}

async fn ask(node: &Node, body: RequestBody) -> Result<Reply, Failure> {
    ask_as(node, body, PATIENCE, Origin::Client).await
}

async fn put(node: &Node, write: Write) -> Result<Written, Failure> {
    match ask(node, RequestBody::Write(write)).await? {
        Reply::Written(written) => Ok(written),
        other => panic!("{other:?}"),
    }
}

/// Has it connected to the others, so that little time is enough for what follows.
async fn connect(node: &Node, others: &[Node]) {
    for other in others.iter().filter(|other| other.id != node.id) {
        let called = node.peers.ask(other.id, 0, GetLayout, PATIENCE).await;
        called.expect("it is there");
    }
}

async fn get(node: &Node, read: Read) -> Result<Found, Failure> {
    match ask(node, RequestBody::Read(read)).await? {
        Reply::Found(found) => Ok(found),
        other => panic!("{other:?}"),
    }
}

async fn scan(node: &Node, scan: Scan) -> Result<Scanned, Failure> {
    match ask(node, RequestBody::Scan(scan)).await? {
        Reply::Scanned(scanned) => Ok(scanned),
        other => panic!("{other:?}"),
    }
}

/// A page of one partition, from its beginning.
fn page_of(partition: Partition, limit: u32, r: Option<Quorum>) -> Scan {
    let until = Partition(partition.0 + 1);
    Scan { from: ScanPosition::start_of(partition), until, limit, prefix: KeyPrefix::default(), keys_only: false, r }
}

/// The same after a key.
fn after(page: &Scan, after: Blob) -> Scan {
    let from = ScanPosition { after: Some(after), ..page.from.clone() };
    Scan { from, ..page.clone() }
}

/// The refusal that a request met before anything happened.
fn refusal<T: std::fmt::Debug>(outcome: Result<T, Failure>) -> NotApplied {
    match outcome.expect_err("refused") {
        Failure::NotApplied(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

/// Waits for everything that goes on after replies. Nothing can be asked of this node afterwards.
async fn rest(node: &Node) {
    node.coordinator.shutdown(PATIENCE).await;
}

fn count(node: &Node, name: &str) -> u64 {
    let samples = node.coordinator.stats().samples();
    samples.iter().find(|sample| sample.full_name() == name).unwrap_or_else(|| panic!("no counter {name}")).value
}

async fn all_hold(nodes: &[&Node], key: &Blob, record: &Record) {
    for node in nodes {
        assert_eq!(node.held(key).await.as_ref(), Some(record), "{}", node.id);
    }
}

/// The names of what others have asked of a node.
fn asked(node: &Node) -> Vec<&'static str> {
    node.asked().iter().map(|(_, body)| body.name()).filter(|name| *name != "layout state").collect()
}

/// The nodes of [`Kind::FIVE`], the primaries of [`PARTITION`] first, in the order of preference.
async fn five() -> Vec<Node> {
    let mut nodes = by_hand::start(Kind::FIVE).await;
    let order = nodes[0].current.preference_list(PARTITION);
    nodes.sort_by_key(|node| order.iter().position(|id| *id == node.id));
    nodes
}

fn text(values: &[Blob]) -> Vec<&str> {
    values.iter().map(|value| std::str::from_utf8(value).expect("text")).collect()
}

#[tokio::test]
async fn a_write_is_held_by_all_primaries_and_says_what_it_has_done() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let key = key_in(&nodes[0], PARTITION, 0);
    let one = put(&nodes[0], write(&key, "one")).await.expect("written");
    assert_eq!((one.siblings, one.replaced, one.synced, one.context_large), (1, 0, true, false));
    assert_eq!(one.quorum.acks, Acks { primary: 3, fallback: 0 });
    assert_eq!((one.quorum.need, one.quorum.degraded, one.quorum.below_floor), (3, false, false));
    let evidence = one.evidence.expect("asked for");
    assert_eq!((evidence.coordinator, evidence.forwarded_by, evidence.n), (nodes[0].id, None, 3));
    assert_eq!((evidence.partition, evidence.asked.len(), evidence.dots.len()), (PARTITION, 3, 1));
    assert!(evidence.took_us > 0 && evidence.decided_by.is_some() && evidence.hints.is_empty());
    let held = nodes[0].held(&key).await.expect("held");
    all_hold(&[&nodes[1], &nodes[2]], &key, &held).await;

    // Who has seen nothing stands beside; who has seen all replaces all.
    let two = put(&nodes[1], Write { w: Some(Quorum::One), ..write(&key, "two") }).await.expect("written");
    assert_eq!((two.siblings, two.replaced, two.quorum.need, two.quorum.below_floor), (2, 0, 1, true));
    rest(&nodes[1]).await;
    let found = get(&nodes[2], read(&key)).await.expect("found");
    let mut values = text(&found.values);
    values.sort_unstable();
    assert_eq!(values, ["one", "two"]);
    assert_eq!((found.quorum.need, found.quorum.below_floor, found.quorum.acks.primary), (3, false, 3));
    let delete = Write { value: None, context: Some(found.context), explain: false, ..write(&key, "three") };
    let three = put(&nodes[2], delete.clone()).await.expect("deleted");
    assert_eq!((three.siblings, three.replaced, three.evidence.is_none()), (0, 2, true));
    let found = get(&nodes[0], Read { r: None, explain: false, ..read(&key) }).await.expect("read");
    assert_eq!((found.values.len(), found.quorum.need, found.evidence.is_none()), (0, 2, true));
    // A repetition is the same write.
    let again = put(&nodes[0], Write { first_sent_ms: Some(1), ..write(&key, "one") }).await.expect("known");
    assert_eq!((again.siblings, again.replaced), (0, 0));
    assert_eq!((count(&nodes[0], "puts_ok"), count(&nodes[2], "puts_ok"), count(&nodes[0], "gets_ok")), (2, 1, 1));
    assert_eq!(count(&nodes[0], "degraded"), 0);
    assert!(nodes[0].coordinator.is_busy(), "clients were just served");
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_anything_happens() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let (node, key) = (&nodes[0], key_in(&nodes[0], PARTITION, 0));
    let large = Write { value: Some(Blob::copy_from(&vec![0; VALUE_LEN_MAX + 1])), ..write(&key, "v") };
    assert!(matches!(refusal(put(node, large).await), NotApplied::TooLarge { what, .. } if what == "value"));
    let large = Write { context: Some(Blob::copy_from(&vec![0; CONTEXT_LEN_MAX + 1])), ..write(&key, "v") };
    assert!(matches!(refusal(put(node, large).await), NotApplied::TooLarge { what, .. } if what == "context"));
    let made_up = Write { context: Some(Blob::copy_from(b"made up")), ..write(&key, "v") };
    assert!(matches!(refusal(put(node, made_up).await), NotApplied::BadContext { .. }));
    assert_eq!(refusal(put(node, write(&Key::plain(""), "v")).await), NotApplied::EmptyKey);
    assert_eq!(refusal(get(node, read(&Key::plain(""))).await), NotApplied::EmptyKey);
    let impossible = |what: &str| NotApplied::QuorumImpossible { what: what.into(), asked: 4, n: 3 };
    let four = Some(Quorum::Exactly(4));
    assert_eq!(refusal(put(node, Write { w: four, ..write(&key, "v") }).await), impossible("W"));
    assert_eq!(refusal(get(node, Read { r: four, ..read(&key) }).await), impossible("R"));
    let page = page_of(PARTITION, 10, Some(Quorum::All));
    assert_eq!(refusal(scan(node, Scan { r: four, ..page.clone() }).await), impossible("R"));
    for (wrong, why) in [
        (page_of(Partition(node.current.partitions()), 10, None), "counted from 0"),
        (Scan { until: Partition(node.current.partitions() + 1), ..page.clone() }, "counted from 0"),
        (Scan { until: PARTITION, ..page.clone() }, "ends before partition"),
        (Scan { limit: 0, ..page.clone() }, "1 to 10000"),
        (Scan { limit: SCAN_LIMIT_MAX + 1, ..page.clone() }, "1 to 10000"),
        (after(&page, key_in(node, Partition(1), 0)), "not in partition"),
    ] {
        let told = refusal(scan(node, wrong).await).to_string();
        assert!(told.contains(why), "{told}");
    }
    assert_eq!(refusal(scan(node, after(&page, Key::plain("").into())).await), NotApplied::EmptyKey);
    for (key, named) in [
        (Key::new(BucketId(3), b"k", b""), "in bucket 3"),
        (Key::new(BucketId::DEFAULT, b"k", b"s"), "has a sort key"),
        (Key::new(BucketId(3), b"k", b"s"), "in bucket 3"),
    ] {
        let at = ScanPosition { partition: node.partition_of(&key), after: Some(key.clone().into()) };
        let until = Partition(at.partition.0 + 1);
        let write = Write { key: key.clone(), ..write(&key, "v") };
        for body in [
            RequestBody::Write(write.clone()),
            RequestBody::Write(Write { value: None, ..write }),
            RequestBody::Read(read(&key)),
            RequestBody::Locate { key: key.clone() },
            RequestBody::Scan(Scan { from: at, until, ..page.clone() }),
        ] {
            for origin in [Origin::Client, Origin::Peer(nodes[1].id)] {
                let told = refusal(ask_as(node, body.clone(), PATIENCE, origin).await);
                assert!(matches!(&told, NotApplied::Unsupported { .. }), "{told:?}");
                let told = told.to_string();
                assert!(told.contains(named) && told.contains("keys of bucket 0 without a sort key only"), "{told}");
                assert!(told.ends_with("nothing was changed"), "{told}");
            }
        }
        assert_eq!((node.held(&key).await, nodes[1].held(&key).await), (None, None));
    }
    for (prefix, named) in [
        (KeyPrefix::new(BucketId(3), b"k"), "of bucket 3"),
        (KeyPrefix::of_partition_key(BucketId::DEFAULT, b"k", b""), "sort keys"),
    ] {
        let told = refusal(scan(node, Scan { prefix, ..page.clone() }).await).to_string();
        assert!(told.contains(named) && told.contains("bucket 0"), "{told}");
    }
    assert!(nodes.iter().all(|node| node.asked().is_empty()), "nobody was asked for anything");
    let long = Scan { prefix: KeyPrefix::new(BucketId::DEFAULT, &[0; KEY_LEN_MAX + 1]), ..page.clone() };
    assert!(matches!(refusal(scan(node, long).await), NotApplied::TooLarge { what, .. } if what == "prefix"));
    scan(node, Scan { limit: SCAN_LIMIT_MAX, ..page }).await.expect("as many as can be");
    let late = ask_as(node, RequestBody::Write(write(&key, "v")), Duration::ZERO, Origin::Client).await;
    assert!(matches!(refusal(late), NotApplied::TimedOut { need: 3, had: 0, .. }));
    let look = refusal(ask(node, RequestBody::Status).await);
    assert!(matches!(look, NotApplied::Unsupported { .. }), "{look:?}");
    assert_eq!((count(node, "puts_not_applied"), count(node, "gets_failed"), count(node, "scans_failed")), (18, 8, 17));
    assert_eq!(nodes[1].held(&key).await, None);
    rest(node).await;
    let gone = refusal(put(node, write(&key, "v")).await);
    assert!(matches!(&gone, NotApplied::NotServing { why, .. } if why.contains("shutting down")), "{gone:?}");
    assert_eq!(count(node, "puts_not_applied"), 19);
}

#[tokio::test]
async fn a_write_that_too_few_take_is_indeterminate_and_goes_to_those_who_do() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let key = key_in(&nodes[0], PARTITION, 0);
    nodes[1].is(Manner::Refuses);
    let failure = put(&nodes[0], write(&key, "one")).await.expect_err("two of three");
    let Failure::Indeterminate { op_id, need, why, .. } = failure else { panic!("{failure:?}") };
    assert_eq!((op_id, need), (write(&key, "one").op_id, 3));
    assert!(why.contains(nodes[1].id.as_str()) && why.contains("the test wants it so"), "{why}");
    assert_eq!((count(&nodes[0], "puts_indeterminate"), count(&nodes[0], "puts_ok")), (1, 0));
    rest(&nodes[0]).await;
    assert!(nodes[2].held(&key).await.is_some() && nodes[1].held(&key).await.is_none());
    assert_eq!(count(&nodes[0], "hints_unplaced"), 0, "hints are switched off");
}

#[tokio::test]
async fn a_write_ends_at_its_deadline_and_goes_on_after_it() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let key = key_in(&nodes[0], PARTITION, 0);
    nodes[1].is(Manner::Silent);
    connect(&nodes[0], &nodes[2..]).await;
    let short = Duration::from_secs(1);
    let ended = ask_as(&nodes[0], RequestBody::Write(write(&key, "one")), short, Origin::Client).await;
    let Err(Failure::Indeterminate { acks, why, .. }) = ended else { panic!("{ended:?}") };
    assert_eq!(acks, Acks { primary: 2, fallback: 0 });
    assert!(why.contains("the deadline has passed") && why.contains(nodes[1].id.as_str()), "{why}");
    nodes[1].is(Manner::Answers);
    rest(&nodes[0]).await;
    assert!(nodes[1].held(&key).await.is_some(), "it was sent, and is merged late");
}

#[tokio::test]
async fn a_stand_in_keeps_a_hint_for_a_primary_that_refuses_and_counts_in_its_place() {
    let nodes = five().await;
    let key = key_in(&nodes[0], PARTITION, 0);
    nodes[2].is(Manner::Refuses);
    let written = put(&nodes[0], write(&key, "one")).await.expect("written");
    // On a busy machine another primary can be late as well.
    assert!(written.quorum.acks.total() == 3 && written.quorum.acks.fallback > 0 && written.quorum.degraded);
    let evidence = written.evidence.expect("asked for");
    let (holder, _) = evidence.hints.iter().find(|(_, target)| *target == nodes[2].id).expect("somebody keeps it");
    let holder = nodes[3..].iter().find(|node| node.id == *holder).expect("a fallback");
    let for_it = |asked: &&Asked| asked.instead_of == Some(nodes[2].id) && asked.node == holder.id;
    let stand_in = evidence.asked.iter().find(for_it).expect("it was asked");
    assert_eq!((stand_in.role, stand_in.counted), (Role::Fallback, true));
    assert_eq!(count(&nodes[0], "degraded"), 1);
    let held = nodes[0].held(&key).await.expect("held");
    let primaries = nodes[0].current.primaries(PARTITION).to_vec();
    assert_eq!(holder.replica.hinted(PARTITION, &key, &primaries).await, Ok(Some(held)));

    // It refuses as well, and so does the other one: the coordinator keeps the hint, and counts once.
    for node in &nodes[3..] {
        node.is(Manner::Refuses);
    }
    let failure = put(&nodes[0], write(&key, "two")).await.expect_err("two of three");
    assert!(matches!(failure, Failure::Indeterminate { need: 3, .. }), "{failure:?}");
    assert!(nodes[0].replica.hint_totals().contains_key(&nodes[2].id));
    let failure = put(&nodes[0], Write { strict: true, ..write(&key, "three") }).await.expect_err("two of three");
    assert!(matches!(failure, Failure::Indeterminate { need: 3, .. }), "{failure:?}");
    rest(&nodes[0]).await;
}

#[tokio::test]
async fn a_strict_write_leaves_a_hint_that_does_not_count() {
    let nodes = five().await;
    let key = key_in(&nodes[0], PARTITION, 0);
    nodes[0].believes_down(&[nodes[2].id]);
    let refused = refusal(put(&nodes[0], Write { strict: true, ..write(&key, "one") }).await);
    assert!(matches!(refused, NotApplied::Unavailable { need: 3, alive: 2, .. }), "{refused:?}");
    let two = Write { strict: true, w: Some(Quorum::Exactly(2)), ..write(&key, "two") };
    let written = put(&nodes[0], two).await.expect("two are there");
    assert_eq!((written.quorum.acks, written.quorum.degraded), (Acks { primary: 2, fallback: 0 }, false));
    rest(&nodes[0]).await;
    assert!(nodes[3].replica.hint_totals().contains_key(&nodes[2].id), "whoever is down is reminded all the same");
    assert!(nodes[2].held(&key).await.is_some(), "it was down only in the eyes of one");
}

#[tokio::test]
async fn a_stand_in_counts_for_a_primary_that_is_late() {
    let nodes = five().await;
    let key = key_in(&nodes[0], PARTITION, 0);
    nodes[1].is(Manner::Silent);
    let written = put(&nodes[0], write(&key, "one")).await.expect("written");
    assert!(written.quorum.acks.total() == 3 && written.quorum.acks.fallback > 0);
    nodes[1].is(Manner::Answers);
    rest(&nodes[0]).await;
    assert!(nodes[1].held(&key).await.is_some());
}

#[tokio::test]
async fn who_is_no_primary_passes_a_request_on_to_one_and_says_so() {
    let nodes = five().await;
    let (key, other) = (key_in(&nodes[0], PARTITION, 0), &nodes[4]);
    let evidence = put(other, write(&key, "one")).await.expect("written").evidence.expect("asked for");
    assert_eq!(evidence.forwarded_by, Some(other.id));
    assert!(nodes[..3].iter().any(|node| node.id == evidence.coordinator));
    assert_eq!(text(&get(other, read(&key)).await.expect("found").values), ["one"]);
    let page = page_of(PARTITION, 10, Some(Quorum::All));
    assert_eq!(scan(other, page.clone()).await.expect("scanned").entries.len(), 1);
    // A scan goes through partitions of many primaries: whoever is asked asks them.
    assert_eq!((count(other, "forwards"), count(other, "fallback_coordinated"), count(other, "scans_ok")), (2, 0, 1));
    let forwarded_in = nodes[..3].iter().map(|node| count(node, "forwarded_in")).sum::<u64>();
    assert_eq!(forwarded_in, 2);
    assert_eq!((count(other, "puts_ok"), count(other, "gets_ok")), (0, 0), "it counts where it was coordinated");
    // What one refuses another one is asked, as long as nothing was begun.
    for node in &nodes[..2] {
        node.is(Manner::Refuses);
    }
    let read_one = Read { r: Some(Quorum::One), ..read(&key) };
    let found = get(other, read_one).await.expect("the third one serves");
    assert_eq!(found.evidence.expect("asked for").coordinator, nodes[2].id);
    // What was passed on is not passed on again.
    for body in [RequestBody::Write(write(&key, "two")), RequestBody::Read(read(&key))] {
        let refused = refusal(ask_as(other, body, PATIENCE, Origin::Peer(nodes[3].id)).await);
        assert!(matches!(&refused, NotApplied::NotServing { why, .. } if why.contains("no primary")), "{refused:?}");
    }
    nodes[2].is(Manner::Refuses);
    let refused = refusal(put(other, Write { strict: true, ..write(&key, "three") }).await);
    let NotApplied::Unavailable { need: 3, why, .. } = &refused else { panic!("{refused:?}") };
    assert!(nodes[..3].iter().all(|node| why.contains(node.id.as_str())), "{why}");
    let refused = refusal(get(other, Read { strict: true, ..read(&key) }).await);
    assert!(matches!(refused, NotApplied::Unavailable { .. }), "{refused:?}");
    assert!(matches!(refusal(scan(other, page).await), NotApplied::Unavailable { .. }));
}

#[tokio::test]
async fn a_fallback_coordinates_when_no_primary_serves_and_its_hint_is_found() {
    let nodes = five().await;
    let (key, other) = (key_in(&nodes[0], PARTITION, 0), &nodes[3]);
    for node in &nodes[..3] {
        node.is(Manner::Refuses);
    }
    let two = Some(Quorum::Exactly(2));
    let written = put(other, Write { w: two, ..write(&key, "one") }).await.expect("two stand in");
    assert_eq!(written.quorum.acks, Acks { primary: 0, fallback: 2 });
    assert_eq!(written.evidence.expect("asked for").coordinator, other.id);
    assert_eq!(count(other, "fallback_coordinated"), 1);
    assert_eq!(other.held(&key).await, None, "it is no owner");
    let found = get(other, Read { r: two, ..read(&key) }).await.expect("both keep it");
    assert_eq!((text(&found.values), found.quorum.degraded), (vec!["one"], true));
    assert_eq!(count(other, "degraded"), 2);
    // They never say that there is nothing.
    let absent = refusal(get(other, Read { r: two, ..read(&key_in(other, PARTITION, 1)) }).await);
    assert!(matches!(absent, NotApplied::Unavailable { .. }), "{absent:?}");
    // A retry stays with who may have minted it, and is not minted by another one.
    let again = Write { first_sent_ms: Some(1), w: two, ..write(&key, "one") };
    let again_here = put(other, again.clone()).await.expect("known");
    assert_eq!((again_here.siblings, again_here.replaced), (1, 0));
    let elsewhere = put(&nodes[4], Write { op_id: OpId(99), ..again }).await.expect_err("it may be anywhere");
    let Failure::Indeterminate { why, .. } = &elsewhere else { panic!("{elsewhere:?}") };
    assert!(why.contains("has started or forgotten since"), "{why}");
}

#[tokio::test]
async fn a_retry_goes_where_its_write_has_gone() {
    let nodes = five().await;
    let (key, other) = (key_in(&nodes[0], PARTITION, 0), &nodes[4]);
    connect(other, &nodes).await;
    for node in &nodes[..3] {
        node.is(Manner::Silent);
    }
    let short = Duration::from_secs(1);
    let one = Write { w: Some(Quorum::One), ..write(&key, "one") };
    let lost = ask_as(other, RequestBody::Write(one.clone()), short, Origin::Client).await;
    assert!(matches!(lost, Err(Failure::Indeterminate { need: 1, .. })), "{lost:?}");
    let asked_first = |node: &&Node| node.asked().iter().any(|(_, body)| body.name() == "forward");
    let first = nodes[..3].iter().position(|node| asked_first(&node)).expect("one was asked");
    for node in &nodes[..3] {
        node.is(Manner::Refuses);
    }
    let again = Write { first_sent_ms: Some(1000), ..one.clone() };
    let unknown = put(other, again.clone()).await.expect_err("only one may know");
    let Failure::Indeterminate { why, .. } = &unknown else { panic!("{unknown:?}") };
    assert!(why.contains("may have minted an earlier attempt"), "{why}");
    for (at, node) in nodes[..3].iter().enumerate() {
        assert_eq!(asked(node).contains(&"forward"), at == first, "only the one that was asked before");
        node.is(Manner::Answers);
    }
    // It has started a moment ago, and so cannot say that it has not minted it.
    let unknown = put(other, again).await.expect_err("it serves again");
    let Failure::Indeterminate { why, .. } = &unknown else { panic!("{unknown:?}") };
    assert!(why.starts_with(&format!("{}: ", nodes[first].id)) && why.contains("may have been minted here"), "{why}");
    // What was refused definitely by all is nobody's.
    for node in &nodes[..3] {
        node.is(Manner::Refuses);
    }
    refusal(put(other, Write { strict: true, ..write(&key, "two") }).await);
    nodes[0].is(Manner::Answers);
    let two = Write { strict: true, w: Some(Quorum::One), ..write(&key, "two") };
    put(other, two).await.expect("another one may mint it");
}

/// The coordinator dies before its own sync, while its write is on the others; it lacks then what the retry would be recognised by.
#[tokio::test]
async fn a_retry_at_a_coordinator_that_has_restarted_is_answered_with_what_other_primaries_know() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let [restarted, b, c] = &nodes[..] else { panic!("three nodes") };
    connect(restarted, &nodes).await;
    let two = Some(Quorum::Exactly(2));
    let again = |key: &Blob, op_id| Write { op_id, first_sent_ms: Some(3_000), ..write(key, "x") };
    let in_an_earlier_life = |op_id| {
        let dot = Dot { actor: Actor { node: restarted.id, incarnation: 1 }, counter: 1 };
        mint(Record::default(), dot, op_id, Some(Blob::copy_from(b"x")), &Context::new()).record
    };
    let named = OpId::new(1_000, 7);
    for (number, op_id) in [named, OpId(7)].into_iter().enumerate() {
        // It is still there.
        let key = key_in(restarted, PARTITION, number as u32);
        for other in [b, c] {
            other.hold(&key, &in_an_earlier_life(op_id)).await;
        }
        let served = put(restarted, again(&key, op_id)).await.expect("known elsewhere");
        assert_eq!((served.siblings, served.quorum.acks.primary), (1, 3));
        all_hold(&[restarted, b, c], &key, &in_an_earlier_life(op_id)).await;

        // It was deleted, and the coordinator has not heard of that.
        let key = key_in(restarted, PARTITION, 2 + number as u32);
        for other in [b, c] {
            other.hold(&key, &in_an_earlier_life(op_id)).await;
        }
        restarted.is(Manner::Refuses);
        let seen = get(b, Read { r: two, ..read(&key) }).await.expect("found").context;
        put(b, Write { value: None, context: Some(seen), w: two, ..write(&key, "gone") }).await.expect("deleted");
        restarted.is(Manner::Answers);
        assert_eq!(restarted.held(&key).await, None);
        let outcome = put(restarted, again(&key, op_id)).await;
        assert!(get(c, read(&key)).await.expect("read").values.is_empty(), "it stays deleted");
        if op_id == named {
            let served = outcome.expect("it was written, and superseded");
            assert_eq!((served.siblings, served.replaced, served.quorum.acks.primary), (0, 0, 3));
            let held = restarted.held(&key).await.expect("held");
            assert_eq!(
                held.superseded(&named),
                Some(Dot { actor: Actor { node: restarted.id, incarnation: 1 }, counter: 1 })
            );
        } else {
            let failure = outcome.expect_err("its id does not tell how long it has to be known");
            assert!(matches!(failure, Failure::Indeterminate { .. }), "{failure}");
        }
    }
    // Nobody knows it, which says nothing of what the earlier life may have minted.
    let key = key_in(restarted, PARTITION, 4);
    let failure = put(restarted, again(&key, named)).await.expect_err("unknown");
    assert!(matches!(failure, Failure::Indeterminate { .. }), "{failure}");
    assert_eq!(restarted.held(&key).await, None, "nothing was minted");
}

#[tokio::test]
async fn a_read_asks_another_replica_in_place_of_one_that_fails_or_is_late() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let key = key_in(&nodes[0], PARTITION, 0);
    put(&nodes[0], write(&key, "one")).await.expect("written");
    nodes[1].is(Manner::Refuses);
    let two = Read { r: Some(Quorum::Exactly(2)), ..read(&key) };
    let found = get(&nodes[0], two.clone()).await.expect("two are left");
    assert_eq!((text(&found.values), found.quorum.acks.primary), (vec!["one"], 2));
    let refused = refusal(get(&nodes[0], read(&key)).await);
    assert!(matches!(refused, NotApplied::Unavailable { need: 3, alive: 2, .. }), "{refused:?}");
    for node in &nodes[1..] {
        node.asked();
        node.is(Manner::Answers);
    }
    // One of the others was asked first, and the other one because it was late.
    let mut quick = None;
    for _ in 0..100 {
        let evidence = get(&nodes[0], two.clone()).await.expect("found").evidence.expect("asked for");
        // A machine that has other things to do is late itself.
        quick = quick.or(Some(evidence).filter(|evidence| evidence.hedges == 0));
    }
    let quick = quick.expect("of a hundred answers one is not late");
    assert_eq!(quick.asked.len(), 2);
    let hedges = count(&nodes[0], "hedges");
    let first = nodes.iter().position(|node| node.id == quick.asked[1].node).expect("one of them");
    nodes[first].is(Manner::Silent);
    let evidence = get(&nodes[0], two.clone()).await.expect("found").evidence.expect("asked for");
    assert_eq!((evidence.hedges, evidence.asked.len()), (1, 3));
    assert_eq!((count(&nodes[0], "hedges") - hedges, count(&nodes[0], "gets_failed")), (1, 1));
    nodes[3 - first].is(Manner::Silent);
    let short = Duration::from_millis(300);
    let late = refusal(ask_as(&nodes[0], RequestBody::Read(two), short, Origin::Client).await);
    // The calls end a moment before the read does.
    let had_one = matches!(
        late,
        NotApplied::TimedOut { need: 2, had: 1, .. } | NotApplied::Unavailable { need: 2, alive: 1, .. }
    );
    assert!(had_one, "{late:?}");
}

#[tokio::test]
async fn a_large_record_is_not_sent_to_who_holds_it() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let (small, large) = (key_in(&nodes[0], PARTITION, 0), key_in(&nodes[0], PARTITION, 1));
    let value = "v".repeat(2000);
    let long = Write { value: Some(Blob::copy_from(value.as_bytes())), ..write(&large, "long") };
    put(&nodes[0], write(&small, "short")).await.expect("written");
    put(&nodes[0], long).await.expect("written");
    nodes[1].asked();
    let told = |node: &Node| match &node.asked()[..] {
        [(_, PeerBody::Fetch(Fetch { held, durable, .. }))] => (held.is_some(), *durable),
        other => panic!("{other:?}"),
    };
    get(&nodes[0], read(&small)).await.expect("found");
    assert_eq!(told(&nodes[1]), (false, false));
    let found = get(&nodes[0], Read { monotonic: true, ..read(&large) }).await.expect("found");
    assert_eq!((text(&found.values), found.quorum.acks.primary), (vec![value.as_str()], 3));
    assert_eq!(told(&nodes[1]), (true, true));
}

#[tokio::test]
async fn a_monotonic_read_answers_once_no_later_read_can_miss_what_it_returns() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let (key, held) = (key_in(&nodes[0], PARTITION, 0), record(1, "one"));
    nodes[0].hold(&key, &held).await;
    let one = Read { r: Some(Quorum::One), monotonic: true, ..read(&key) };
    for node in &nodes[1..] {
        node.is(Manner::Refuses);
    }
    let refused = refusal(get(&nodes[0], one.clone()).await);
    assert!(matches!(refused, NotApplied::Unavailable { need: 3, .. }), "{refused:?}");
    let plain = Read { monotonic: false, ..one.clone() };
    assert_eq!(text(&get(&nodes[0], plain).await.expect("any may say so").values), ["one"]);
    nodes[1].is(Manner::Answers);
    let refused = refusal(get(&nodes[0], one.clone()).await);
    assert!(
        matches!(refused, NotApplied::Unavailable { need: 3, alive: 2, .. }),
        "a later read may ask n3: {refused:?}"
    );
    nodes[2].is(Manner::Answers);
    assert_eq!(text(&get(&nodes[0], one.clone()).await.expect("three hold it").values), ["one"]);
    all_hold(&[&nodes[1], &nodes[2]], &key, &held).await;
    nodes[2].is(Manner::Refuses);
    // Where enough hold it, nobody is sent anything.
    nodes[1].asked();
    let all = Read { r: Some(Quorum::Exactly(2)), ..one.clone() };
    get(&nodes[0], all).await.expect("two hold it");
    assert_eq!(asked(&nodes[1]), ["fetch"]);
    nodes[1..].iter().for_each(|node| node.is(Manner::Silent));
    let (key, short) = (key_in(&nodes[0], PARTITION, 1), Duration::from_millis(300));
    nodes[0].hold(&key, &held).await;
    let one = Read { key: Key::from_encoded(key).expect("a key"), ..one };
    let late = ask_as(&nodes[0], RequestBody::Read(one), short, Origin::Client).await;
    assert!(matches!(refusal(late), NotApplied::TimedOut { need: 3, had: 1, .. }));
}

#[tokio::test]
async fn a_read_mends_each_replica_that_it_finds_stale_and_no_other() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let key = key_in(&nodes[0], PARTITION, 0);
    let (one, other) = (record(1, "one"), record(2, "another"));
    let mut both = one.clone();
    both.merge(&other, &|_| false);
    nodes[0].hold(&key, &both).await;
    nodes[1].hold(&key, &one).await;
    let found = get(&nodes[0], read(&key)).await.expect("found");
    assert_eq!((&found.values, found.evidence.expect("asked for").repairs.len()), (&both.values(), 2));
    rest(&nodes[0]).await;
    all_hold(&[&nodes[0], &nodes[1], &nodes[2]], &key, &both).await;
    assert_eq!((count(&nodes[0], "stale_replicas"), count(&nodes[0], "repaired_replicas")), (2, 2));
    assert_eq!(count(&nodes[0], "repairs_skipped"), 0);
    for node in &nodes[1..] {
        let mended = node.asked().into_iter().filter(|(_, body)| matches!(body, PeerBody::Replicate(_))).count();
        assert_eq!(mended, 1, "{}", node.id);
    }
}

#[tokio::test]
async fn a_read_mends_the_replica_of_its_own_node_and_one_that_answers_late() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let (key, held) = (key_in(&nodes[0], PARTITION, 0), record(1, "one"));
    nodes[1].hold(&key, &held).await;
    // The silent one goes first, and the other one is asked because it is late.
    nodes[0].believes_down(&[nodes[1].id]);
    nodes[2].is(Manner::Silent);
    let two = Read { r: Some(Quorum::Exactly(2)), ..read(&key) };
    assert_eq!(text(&get(&nodes[0], two).await.expect("found").values), ["one"]);
    nodes[2].is(Manner::Answers);
    // Its late answer says that it is stale as well.
    while count(&nodes[0], "repaired_replicas") < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    all_hold(&[&nodes[0], &nodes[1], &nodes[2]], &key, &held).await;
}

#[tokio::test]
async fn a_node_without_read_repair_mends_nothing() {
    let mechanisms = Mechanisms { fallbacks: false, read_repair: false };
    let nodes = by_hand::start(Kind { mechanisms, ..Kind::of(3) }).await;
    let (key, held) = (key_in(&nodes[0], PARTITION, 0), record(1, "one"));
    nodes[0].hold(&key, &held).await;
    get(&nodes[0], read(&key)).await.expect("found");
    rest(&nodes[0]).await;
    assert_eq!((count(&nodes[0], "stale_replicas"), count(&nodes[0], "repaired_replicas")), (2, 0));
    assert_eq!(nodes[1].held(&key).await, None);
}

#[tokio::test]
async fn a_scan_shows_page_by_page_what_any_replica_of_the_quorum_holds() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let mut keys: Vec<Blob> = (0..7).map(|number| key_in(&nodes[0], PARTITION, number)).collect();
    keys.sort_by_key(|key| key_hash(key));
    for (at, key) in keys.iter().enumerate() {
        nodes[at % 3].hold(key, &record(at as u32, "v")).await;
    }
    let (mut from, mut seen) = (Some(ScanPosition::start_of(PARTITION)), Vec::new());
    while let Some(place) = from {
        let page = Scan { from: place, ..page_of(PARTITION, 3, Some(Quorum::All)) };
        let scanned = scan(&nodes[0], page).await.expect("scanned");
        assert_eq!((scanned.quorum.need, scanned.quorum.acks.primary), (3, 3));
        assert!(scanned.entries.iter().all(|entry| text(&entry.values) == ["v"] && !entry.context.is_empty()));
        assert!(scanned.entries.len() <= 3);
        seen.extend(scanned.entries.into_iter().map(|entry| Blob::from(entry.key)));
        from = scanned.next;
    }
    assert_eq!(seen, keys);
    assert!(count(&nodes[0], "scans_ok") >= 3);
    for node in &nodes[1..] {
        node.is(Manner::Refuses);
    }
    let page = page_of(PARTITION, 3, None);
    let refused = refusal(scan(&nodes[0], page.clone()).await);
    assert!(matches!(refused, NotApplied::Unavailable { need: 2, alive: 1, .. }), "{refused:?}");
    assert_eq!(scan(&nodes[0], Scan { r: Some(Quorum::One), ..page }).await.expect("its own").entries.len(), 3);
    assert_eq!(count(&nodes[0], "scans_failed"), 1);
}

#[tokio::test]
async fn a_scan_takes_no_more_partitions_than_there_is_room_for() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let partitions = nodes[0].current.partitions();
    let keys: Vec<Blob> = (0..partitions).map(|partition| key_in(&nodes[0], Partition(partition), 0)).collect();
    for (at, key) in keys.iter().enumerate() {
        for node in &nodes {
            node.hold(key, &record(at as u32, &"v".repeat(20 << 10))).await;
        }
    }
    let budget = Budget::new(45 << 10);
    // What is larger than that waits for others of its kind.
    let large = Budget::new(1 << 20);
    let _others = large.try_take(1 << 20).expect("it is free");
    let pot = Pot { small: budget.clone(), large, large_from: 45 << 10 };
    let page = Scan { until: Partition(partitions), ..page_of(Partition(0), 10, Some(Quorum::One)) };
    let pages = async |page: &Scan| {
        let (mut from, mut seen, mut pages) = (Some(page.from.clone()), Vec::new(), Vec::new());
        while let Some(place) = from {
            let room = Room::new(pot.clone());
            let body = RequestBody::Scan(Scan { from: place, ..page.clone() });
            let request = Request { layout: LayoutVersion(1), request_id: 7, body };
            let answer = nodes[0].coordinator.handle(&request, PATIENCE, Origin::Client, room.clone()).await;
            let Ok(Reply::Scanned(scanned)) = answer else { panic!("{answer:?}") };
            let values = scanned.entries.iter().flat_map(|entry| &entry.values).map(|value| value.len()).sum::<usize>();
            assert!(room.taken() >= values, "its answer is counted");
            assert!(room.taken() <= values + (2 << 10), "and nothing else is");
            pages.push(scanned.entries.len());
            seen.extend(scanned.entries.into_iter().map(|entry| Blob::from(entry.key)));
            from = scanned.next;
        }
        assert_eq!(seen, keys);
        assert_eq!(budget.used(), 0);
        pages
    };
    assert_eq!(pages(&page).await, [2, 2], "two have room at a time");
    let keys_only = Scan { keys_only: true, ..page.clone() };
    assert_eq!(pages(&keys_only).await, [3, 1], "values that are not sent are let go");
    // Where there is room for nothing at all it is refused, and as that.
    let _all = budget.try_take(45 << 10).expect("it is free");
    let room = Room::new(pot.clone());
    let request = Request { layout: LayoutVersion(1), request_id: 7, body: RequestBody::Scan(page) };
    let refused = nodes[0].coordinator.handle(&request, Duration::from_millis(200), Origin::Client, room).await;
    assert!(matches!(refusal(refused), NotApplied::Overloaded { .. }));
}

#[tokio::test]
async fn a_scan_does_not_count_what_turns_out_to_be_lost() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let key = key_in(&nodes[0], PARTITION, 0);
    nodes[0].hold(&key, &record(1, "one")).await;
    nodes[1].is(Manner::Silent);
    nodes[2].is(Manner::Silent);
    let page = page_of(PARTITION, 10, Some(Quorum::Exactly(2)));
    let scanned = scan(&nodes[0], page);
    let loses = async {
        while nodes[1].asked().iter().all(|(_, body)| !matches!(body, PeerBody::FetchRange(_))) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        nodes[0]
            .replica
            .still_speaks_of(PARTITION, nodes[0].current.reading(nodes[0].current.version(), 2))
            .expect("as far as is known");
        nodes[0].replica.recovery().lose(PARTITION, &Leaves::ALL, Reason::RolledBack).expect("room");
        nodes[1].is(Manner::Answers);
    };
    let refused = refusal(tokio::join!(scanned, loses).0);
    assert!(matches!(&refused, NotApplied::NotServing { node, .. } if *node == nodes[0].id), "{refused:?}");
}

#[tokio::test]
async fn a_place_is_told_with_who_is_up_there() {
    let nodes = five().await;
    let key = Key::from_encoded(key_in(&nodes[0], PARTITION, 0)).expect("a key");
    let Ok(Reply::Located(located)) = ask(&nodes[0], RequestBody::Locate { key: key.clone() }).await else {
        panic!("it has a place")
    };
    assert_eq!((located.partition, located.hash, located.n), (PARTITION, key_hash(&key), 3));
    let up = |located: &Located| located.preference.iter().map(|place| place.up).collect::<Vec<_>>();
    assert_eq!(up(&located), [true, false, false, false, false], "gossip has told of nobody");
    nodes[0].believes_down(&[nodes[1].id, nodes[0].id]);
    let located = nodes[0].coordinator.locate(&key).expect("a legal key");
    assert_eq!(up(&located), [true, false, true, true, true]);
    let order: Vec<NodeId> = located.preference.iter().map(|place| place.node).collect();
    assert_eq!(order, nodes.iter().map(|node| node.id).collect::<Vec<_>>());
    assert!(!nodes[0].coordinator.is_busy() || nodes[0].coordinator.0.uptime_ms() < 2 * BUSY_MS);
}

#[tokio::test]
async fn the_nearest_primary_is_this_node_then_those_that_are_up() {
    let nodes = five().await;
    let coordinator = &nodes[1].coordinator.0;
    let view = nodes[1].current.view(PARTITION);
    let turn = Turn {
        request_id: 1,
        origin: Origin::Client,
        start: Instant::now(),
        deadline: Instant::now() + PATIENCE,
        current: nodes[1].current.clone(),
        partition: PARTITION,
        groups: view.read_groups(Quorum::Majority).expect("possible").into(),
        view,
        room: Room::unbounded(),
    };
    assert!(coordinator.is_primary(&turn) && !nodes[3].coordinator.0.is_primary(&turn));
    nodes[1].believes_down(&[nodes[0].id, nodes[3].id]);
    assert_eq!(coordinator.nearest_primaries(&turn), [nodes[1].id, nodes[2].id, nodes[0].id]);
    assert_eq!(coordinator.fallbacks(&turn), [nodes[4].id]);
    assert!(coordinator.stands_in(&turn));
    assert!(!coordinator.stands_in(&Turn { origin: Origin::Peer(nodes[0].id), ..turn }));
}
