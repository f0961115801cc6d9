//! What peers may ask of a node, and what it refuses.

use quorate_wire::Key;
use quorate_wire::ids::LayoutVersion;

use super::*;
use crate::by_hand::{self, Kind, Node, key_in, record};
use crate::peer_wire::class;
use crate::store::Durability;

const PARTITION: Partition = Partition(2);
const NOW: Label = Label { low: LayoutVersion(1), high: LayoutVersion(1) };
const OLD: Label = Label { low: LayoutVersion(0), high: LayoutVersion(0) };

/// The primaries of [`PARTITION`] first, in the order of preference.
async fn five() -> Vec<Node> {
    let mut nodes = by_hand::start(Kind::FIVE).await;
    let order = nodes[0].current.preference_list(PARTITION);
    nodes.sort_by_key(|node| order.iter().position(|id| *id == node.id));
    nodes
}

async fn ask(from: &Node, to: &Node, body: PeerBody) -> PeerReply {
    from.peers.call(to.id, class::REPLICATE, 7, body, Duration::from_secs(20)).await.expect("an answer")
}

fn refused(reply: PeerReply) -> NotApplied {
    match reply {
        PeerReply::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_question_about_data_is_refused_by_who_does_not_own_it_or_when_it_is_too_old() {
    let nodes = five().await;
    let (key, other) = (key_in(&nodes[0], PARTITION, 0), key_in(&nodes[0], PARTITION, 1));
    let encoded = Blob(record(1, "one").encode());
    let target = nodes[2].id;
    let bodies = |label| {
        let (key, record) = (key.clone(), encoded.clone());
        [
            PeerBody::Replicate(Replicate { label, key: key.clone(), record: record.clone() }),
            PeerBody::Handoff(HandOver { label, entries: vec![(key.clone(), record)] }),
            PeerBody::Fetch(Fetch { at: label.high, under: label.high, key, held: None, durable: false, r: 1 }),
            PeerBody::FetchRange(FetchRange { at: label.high, partition: PARTITION, after: None, limit: 1, r: 1 }),
        ]
    };
    for body in bodies(NOW) {
        let reply = refused(ask(&nodes[0], &nodes[3], body).await);
        assert!(matches!(&reply, NotApplied::NotServing { why, .. } if why.contains("no primary")), "{reply:?}");
    }
    let hint = |label| PeerBody::Hint(KeepHint { label, target, key: key.clone(), record: encoded.clone() });
    let fetch_hint = || PeerBody::FetchHint(FetchHint { key: other.clone() });
    for body in bodies(OLD).into_iter().chain([hint(OLD)]) {
        let stale = NotApplied::StaleLayout { need: LayoutVersion(1), had: LayoutVersion(0) };
        assert_eq!(refused(ask(&nodes[0], &nodes[1], body).await), stale);
    }
    // What names a layout that the receiver does not know is for later, when it has learned that.
    let newer = Label { low: LayoutVersion(1), high: LayoutVersion(2) };
    for body in bodies(newer).into_iter().chain([hint(newer)]) {
        let reply = refused(ask(&nodes[0], &nodes[1], body).await);
        let learns = |why: &str| why.contains("does not know layout 2 yet");
        assert!(matches!(&reply, NotApplied::NotServing { why, .. } if learns(why)), "{reply:?}");
    }
    // Whoever owns the key keeps no hint of it, and nobody keeps one for who does not.
    for (to, target) in [(&nodes[1], target), (&nodes[3], nodes[4].id)] {
        let body = PeerBody::Hint(KeepHint { label: NOW, target, key: key.clone(), record: encoded.clone() });
        let reply = refused(ask(&nodes[0], to, body).await);
        assert!(matches!(&reply, NotApplied::Unsupported { why } if why.contains("is no fallback")), "{reply:?}");
    }
    let kept = ask(&nodes[0], &nodes[3], hint(NOW)).await;
    assert_eq!(kept, PeerReply::Replicated(Replicated { synced: true, changed: true }));
    assert_eq!(
        ask(&nodes[0], &nodes[3], hint(NOW)).await,
        PeerReply::Replicated(Replicated { synced: true, changed: false })
    );
    assert_eq!(ask(&nodes[0], &nodes[3], fetch_hint()).await, PeerReply::Fetched(Fetched::Record(None)));
    let body = PeerBody::FetchHint(FetchHint { key: key.clone() });
    assert_eq!(ask(&nodes[0], &nodes[3], body).await, PeerReply::Fetched(Fetched::Record(Some(encoded))));
}

#[tokio::test]
async fn what_is_no_key_no_record_or_no_page_is_refused() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let key = key_in(&nodes[0], PARTITION, 0);
    let (good, bad) = (Blob(record(1, "one").encode()), Blob::copy_from(b"\x09"));
    let replicate = |key: &Blob, record: &Blob| {
        PeerBody::Replicate(Replicate { label: NOW, key: key.clone(), record: record.clone() })
    };
    let empty = Blob::from(Key::plain(""));
    let fetch = |key: &Blob| {
        PeerBody::Fetch(Fetch { at: NOW.high, under: NOW.high, key: key.clone(), held: None, durable: true, r: 1 })
    };
    let range =
        |partition, after, limit| PeerBody::FetchRange(FetchRange { at: NOW.high, partition, after, limit, r: 1 });
    let fetch_hint = PeerBody::FetchHint(FetchHint { key: empty.clone() });
    let handoff = PeerBody::Handoff(HandOver { label: NOW, entries: vec![(empty.clone(), good.clone())] });
    for body in [replicate(&empty, &good), fetch(&empty), fetch_hint, handoff, range(PARTITION, Some(empty.clone()), 1)]
    {
        assert_eq!(refused(ask(&nodes[0], &nodes[1], body).await), NotApplied::EmptyKey);
    }
    let refused_record = refused(ask(&nodes[0], &nodes[1], replicate(&key, &bad)).await);
    assert!(refused_record.to_string().contains("cannot be decoded"), "{refused_record}");
    let partitions = nodes[0].current.partitions();
    for (body, why) in [
        (range(Partition(partitions), None, 1), "there is no partition 4"),
        (range(PARTITION, None, 0), "is not possible"),
        (range(PARTITION, None, SCAN_LIMIT_MAX + 1), "is not possible"),
    ] {
        let reply = refused(ask(&nodes[0], &nodes[1], body).await);
        assert!(reply.to_string().contains(why), "{reply}");
    }
    let last = Partition(partitions - 1);
    let reply = ask(&nodes[0], &nodes[1], range(last, None, SCAN_LIMIT_MAX)).await;
    assert_eq!(reply, PeerReply::Range(FetchedRange { entries: Vec::new(), done: true }));
    assert_eq!(ask(&nodes[0], &nodes[1], fetch(&key)).await, PeerReply::Fetched(Fetched::Record(None)));
}

#[tokio::test]
async fn what_is_of_a_newer_version_is_refused_and_holds_up_nothing_else() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let (one, other) = (key_in(&nodes[0], PARTITION, 0), key_in(&nodes[0], PARTITION, 1));
    let mut newer = record(1, "one");
    newer.siblings.values_mut().for_each(|sibling| sibling.value_type = 7);
    let (newer, known) = (Blob(newer.encode()), Blob(record(2, "two").encode()));
    let body = PeerBody::Replicate(Replicate { label: NOW, key: one.clone(), record: newer.clone() });
    let told = refused(ask(&nodes[0], &nodes[1], body).await).to_string();
    assert!(told.contains("newer version of quorate"), "{told}");
    let entries = vec![(one.clone(), newer), (other.clone(), known)];
    let reply = ask(&nodes[0], &nodes[1], PeerBody::Handoff(HandOver { label: NOW, entries })).await;
    let PeerReply::HandedOff(HandedOff { refused: left, .. }) = reply else { panic!("{reply:?}") };
    assert_eq!(left.keys, std::slice::from_ref(&one), "whoever keeps it goes on keeping it");
    assert!(left.why.contains("newer version of quorate"), "{}", left.why);
    assert_eq!((nodes[1].held(&one).await, nodes[1].held(&other).await), (None, Some(record(2, "two"))));
    let malformed = PeerBody::Fetch(Fetch {
        at: NOW.high,
        under: NOW.high,
        key: Blob::copy_from(b"k"),
        held: None,
        durable: false,
        r: 1,
    });
    let told = refused(ask(&nodes[0], &nodes[1], malformed).await).to_string();
    assert!(told.contains("a malformed key"), "{told}");
}

#[tokio::test]
async fn an_owner_merges_gives_back_and_says_what_was_new() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let (one, other) = (key_in(&nodes[0], PARTITION, 0), key_in(&nodes[0], Partition(1), 0));
    let held = record(1, "one");
    let encoded = Blob(held.encode());
    let replicate = || PeerBody::Replicate(Replicate { label: NOW, key: one.clone(), record: encoded.clone() });
    assert_eq!(
        ask(&nodes[0], &nodes[1], replicate()).await,
        PeerReply::Replicated(Replicated { synced: true, changed: true })
    );
    assert_eq!(
        ask(&nodes[0], &nodes[1], replicate()).await,
        PeerReply::Replicated(Replicated { synced: true, changed: false })
    );
    assert!(nodes[1].coordinator.is_busy(), "a client is served through it");
    let fetch =
        |held| PeerBody::Fetch(Fetch { at: NOW.high, under: NOW.high, key: one.clone(), held, durable: true, r: 1 });
    let whole = PeerReply::Fetched(Fetched::Record(Some(encoded.clone())));
    assert_eq!(ask(&nodes[0], &nodes[1], fetch(None)).await, whole);
    assert_eq!(ask(&nodes[0], &nodes[1], fetch(Some(7))).await, whole);
    assert_eq!(ask(&nodes[0], &nodes[1], fetch(Some(held.digest(&one)))).await, PeerReply::Fetched(Fetched::Same));
    let handed = [one.clone(), other.clone()].map(|key| (key, Blob(record(2, "two").encode()))).to_vec();
    let handoff = PeerBody::Handoff(HandOver { label: NOW, entries: handed });
    let reply = ask(&nodes[0], &nodes[1], handoff.clone()).await;
    assert!(matches!(reply, PeerReply::HandedOff(_)), "{reply:?}");
    assert_eq!(nodes[1].held(&one).await.expect("held").value_count(), 2);
    assert_eq!(nodes[1].held(&other).await, Some(record(2, "two")));
    // Nobody has asked this one for anything since it started.
    while nodes[2].coordinator.is_busy() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        ask(&nodes[0], &nodes[2], handoff).await,
        PeerReply::HandedOff(HandedOff { pause_ms: 0, refused: Refused::default() })
    );
    let range = PeerBody::FetchRange(FetchRange { at: NOW.high, partition: PARTITION, after: None, limit: 10, r: 1 });
    let PeerReply::Range(FetchedRange { entries, done: true }) = ask(&nodes[0], &nodes[1], range).await else {
        panic!("one page")
    };
    assert_eq!((entries.len(), &entries[0].0), (1, &one));
}

/// Waits until a node has not been asked for anything by clients for a while.
async fn idle(node: &Node) {
    while node.coordinator.is_busy() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_node_is_busy_while_clients_are_served_through_it_and_by_nothing_else() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let (key, record) = (key_in(&nodes[0], PARTITION, 0), Blob(record(1, "one").encode()));
    let fetch =
        PeerBody::Fetch(Fetch { at: NOW.high, under: NOW.high, key: key.clone(), held: None, durable: false, r: 1 });
    let replicate = PeerBody::Replicate(Replicate { label: NOW, key: key.clone(), record: record.clone() });
    for body in [fetch, replicate] {
        idle(&nodes[1]).await;
        ask(&nodes[0], &nodes[1], body).await;
        assert!(nodes[1].coordinator.is_busy());
    }
    idle(&nodes[1]).await;
    ask(&nodes[0], &nodes[1], PeerBody::Handoff(HandOver { label: NOW, entries: vec![(key, record)] })).await;
    assert!(!nodes[1].coordinator.is_busy(), "hints can wait for each other");
}

#[tokio::test]
async fn what_is_to_be_durable_is_synced_before_it_is_answered() {
    // Nothing is synced unless somebody waits for it, or but once an hour.
    for (durability, waits) in [(Durability::Always, true), (Durability::Interval, false)] {
        let nodes = by_hand::start(Kind { durability, ..Kind::of(3) }).await;
        let key = key_in(&nodes[0], PARTITION, 0);
        let (node, encoded) = (&nodes[1], Blob(record(2, "two").encode()));
        node.replica.merge(PARTITION, &key, record(1, "one")).await.expect("merged");
        let synced = async |body| {
            let before = node.committer.beacon();
            let reply = ask(&nodes[0], node, body).await;
            assert!(!matches!(reply, PeerReply::Refused(_)), "{reply:?}");
            node.committer.beacon() > before
        };
        let fetch = |durable| {
            PeerBody::Fetch(Fetch { at: NOW.high, under: NOW.high, key: key.clone(), held: None, durable, r: 1 })
        };
        assert!(!synced(fetch(false)).await);
        assert_eq!(synced(fetch(true)).await, waits, "{durability:?}");
        let handoff = PeerBody::Handoff(HandOver { label: NOW, entries: vec![(key.clone(), encoded.clone())] });
        assert!(synced(handoff).await, "whoever kept it lets it go now");
        let replicate = PeerBody::Replicate(Replicate { label: NOW, key: key_in(node, PARTITION, 1), record: encoded });
        assert_eq!(synced(replicate.clone()).await, waits, "{durability:?}");
    }
}
