//! What a coordinator does after a reply, one request at a time, between nodes that do nothing by themselves.

use quorate_client::ids::LayoutVersion;
use quorate_client::wire::Read;

use super::*;
use crate::by_hand::{self, Kind, Node, key_in, record};
use crate::core::record::Record;

/// A read of all replicas, and all that goes on after its reply.
async fn read_all(node: &Node, key: &Blob) -> Result<Reply, Failure> {
    let read = Read { key: key.clone(), r: Some(Quorum::All), strict: true, monotonic: false, explain: false };
    let request = Request { layout: LayoutVersion(1), request_id: 7, body: RequestBody::Read(read) };
    let reply = node.coordinator.handle(&request, Duration::from_secs(10), Origin::Client).await;
    node.coordinator.shutdown(Duration::from_secs(10)).await;
    reply
}

fn count(node: &Node, name: &str) -> u64 {
    let samples = node.coordinator.stats().samples();
    samples.iter().find(|sample| sample.name == name).expect("there is such a counter").value
}

async fn all_hold(nodes: &[Node], key: &Blob, record: &Record) {
    for node in nodes {
        assert_eq!(node.held(key).await.as_ref(), Some(record), "{}", node.id);
    }
}

#[tokio::test]
async fn a_read_mends_each_replica_that_it_finds_stale_and_no_other() {
    let nodes = by_hand::start(Kind::of(3)).await;
    let key = key_in(&nodes[0], Partition(2), 0);
    let (one, other) = (record(1, "one"), record(2, "another"));
    let mut both = one.clone();
    both.merge(&other, &|_| false);
    nodes[0].hold(&key, &both).await;
    nodes[1].hold(&key, &one).await;
    let Ok(Reply::Found(found)) = read_all(&nodes[0], &key).await else { panic!("no value") };
    assert_eq!(found.values, both.values());
    all_hold(&nodes, &key, &both).await;
    assert_eq!((count(&nodes[0], "stale_replicas"), count(&nodes[0], "repaired_replicas")), (2, 2));
    for node in &nodes[1..] {
        let mended = node.asked().into_iter().filter(|(_, body)| matches!(body, PeerBody::Replicate { .. })).count();
        assert_eq!(mended, 1, "{}", node.id);
    }
}
