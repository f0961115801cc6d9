//! What a legal peer asks a replica for: several requests, one after the other, at a node's own records. Whatever they are, none may
//! panic, and what is stored can be read.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quorate_wire::codec::{self, Blob};
use quorate_wire::ids::{NodeId, Partition, key_hash};
use quorate_wire::key::{KEY_LEN_MAX, KeyParts};
use quorate_wire::random::Random;
use quorate_core::record::Record;
use quorate_node::peer_wire::heal::{HealRequest, List};
use quorate_node::peer_wire::{Fetch, Heal, KeepHint, PeerBody, PeerRequest, Replicate};
use quorate_node::recovery::Recovery;
use quorate_node::replica::Replica;
use quorate_node::store::{Committer, Durability, Executor, MemoryStore, Store};

const PARTITIONS: u16 = 8;

/// As a node does before it gives a request to its replica: keys are encoded ones of 1 to 1,024 bytes.
fn partition_of(key: &Blob) -> Option<Partition> {
    let parts = KeyParts::of(key).ok()?;
    (parts.partition_key_len() > 0 && parts.len() <= KEY_LEN_MAX).then(|| Partition::of(key_hash(key), PARTITIONS))
}

async fn serve(replica: &Replica, body: PeerBody) {
    match body {
        PeerBody::Replicate(Replicate { key, record, .. }) => {
            if let (Some(partition), Ok(record)) = (partition_of(&key), Record::decode(&record)) {
                drop(replica.merge(partition, &key, record).await);
            }
        }
        PeerBody::Hint(KeepHint { target, key, record, .. }) => {
            if let (Some(partition), Ok(record)) = (partition_of(&key), Record::decode(&record)) {
                drop(replica.keep_hint(partition, &key, target, record, 0).await);
            }
        }
        PeerBody::Fetch(Fetch { key, .. }) => drop(replica.read(&key).await),
        PeerBody::Heal(Heal { request: HealRequest::List(List { partition, leaves, after }), .. }) if partition.0 < PARTITIONS => {
            drop(replica.list(partition, &leaves.0, after.as_ref(), 100).await);
        }
        _ => {}
    }
}

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("starts");
    runtime.block_on(async {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let (fatal, every) = (Arc::new(|why: String| panic!("{why}")), Duration::from_secs(1));
        let committer = Committer::start(store.clone(), Executor::Inline, Durability::Group, every, fatal);
        let recovery = Recovery::open(store.clone()).expect("memory can be read");
        let node = NodeId::new("n1").expect("legal");
        let replica = Replica::new(node, store, Executor::Inline, committer, Random::from_seed(1), recovery);
        replica.set_partitions(PARTITIONS);
        let mut rest = data;
        while let Some((len, behind)) = rest.split_first_chunk::<2>() {
            let len = usize::from(u16::from_be_bytes(*len)).min(behind.len());
            let (request, behind) = behind.split_at(len);
            if let Ok(PeerRequest { body, .. }) = codec::decode(&Bytes::copy_from_slice(request)) {
                serve(&replica, body).await;
            }
            rest = behind;
        }
        for partition in 0..PARTITIONS {
            let (entries, _) = replica.list(Partition(partition), &quorate_core::merkle::Leaves::ALL, None, 1000).await.expect("readable");
            for (key, digest) in entries {
                let held = replica.held(Partition(partition), &key).await.expect("readable").expect("it is listed");
                assert_eq!(held.digest(&key), digest);
            }
        }
    });
});
