//! Read repair: replicas that a read has found stale get what they lack, after the reply.
//!
//! Whole records are sent (rule V3), to primaries only. One repair of a key at a time, and a bounded number in all: what is left
//! out is found by the next read, or by anti-entropy. A read that finds nothing stale writes nothing. (DeCandia et al., "Dynamo",
//! 2007, section 5.)

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_wire::codec::Blob;
use quorate_wire::ids::NodeId;
use quorate_wire::{buggify, dawdle, sometimes, story, tell};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use super::{Inner, Turn};
use crate::peer_wire::{Replicate, Replicated};
use quorate_core::get::Get;
use quorate_core::ownership::Role;
use quorate_core::record::Record;

/// The repairs under way on one node.
#[derive(Debug)]
pub(super) struct Repairs {
    keys: Mutex<BTreeSet<Blob>>,
    permits: Arc<Semaphore>,
}

impl Repairs {
    pub(super) fn new() -> Self {
        Self { keys: Mutex::default(), permits: Arc::new(Semaphore::new(REPAIRS_MAX)) }
    }

    fn begin(&self, key: &Blob) -> Option<OwnedSemaphorePermit> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        let begun = self.keys.lock().expect("nothing panics while it is locked").insert(key.clone());
        sometimes!("repair: a key was being mended already", !begun);
        begun.then_some(permit)
    }

    fn end(&self, key: &Blob) {
        self.keys.lock().expect("nothing panics while it is locked").remove(key);
    }
}

/// Looks at all answers of a read, and mends those who lack something, in the background.
pub(super) fn repair(inner: &Arc<Inner>, turn: &Turn, key: &Blob, get: &Get<Record>) {
    let Some((stale, record)) = get.stale() else { return };
    sometimes!("read: met a stale replica");
    inner.stats.stale_replicas.add(stale.len() as u64);
    tell!(act = "finds stale replicas", key = %story::text(key), node = %inner.me, request = turn.request_id, ?stale,
        repairs = inner.mechanisms.read_repair);
    tracing::debug!(?stale, "replicas lack what others hold");
    if !inner.mechanisms.read_repair {
        return;
    }
    let permit = if buggify!("repair: there is no budget") { None } else { inner.repairs.begin(key) };
    let Some(permit) = permit else {
        inner.stats.repairs_skipped.add(1);
        return;
    };
    let (repairing, turn, key) = (inner.clone(), turn.clone(), key.clone());
    let task = async move {
        dawdle!("repair: a pause before a stale replica is mended");
        for node in stale {
            match mend(&repairing, &turn, &key, &record, node).await {
                Ok(_) => {
                    sometimes!("repair: a stale replica was mended");
                    repairing.stats.repaired_replicas.add(1);
                }
                Err(why) => tracing::debug!(%node, why, "a stale replica was not mended"),
            }
        }
        repairing.repairs.end(&key);
        drop(permit);
    };
    if !inner.background.spawn(task.instrument(tracing::Span::current())) {
        tracing::debug!("no repair: the node is shutting down");
    }
}

/// Has a primary merge a record, and waits until it says that it holds it; whether that is after a sync.
pub(super) async fn mend(
    inner: &Inner,
    turn: &Turn,
    key: &Blob,
    record: &Record,
    node: NodeId,
) -> Result<bool, String> {
    if node == inner.me {
        let label = turn.view.label;
        let takes =
            inner.layouts.known().and_then(|current| current.may_serve(node, turn.partition, Role::Writes(label)));
        takes.map_err(|refusal| refusal.to_string())?;
        let merged = inner.replica.merge_under(turn.partition, key, record.clone(), label.high).await;
        let merged = merged.map_err(|refusal| refusal.to_string())?;
        return merged.ticket.durable().await.map_err(|error| error.to_string());
    }
    let (key, record) = (key.clone(), Blob(record.encode()));
    let replicate = Replicate { label: turn.view.label, key, record };
    let asked = inner.peers.ask(node, turn.request_id, replicate, REPAIR_TIMEOUT).await;
    asked.map(|Replicated { synced, .. }| synced).map_err(|error| error.to_string())
}

/// Repairs under way at a time: at a millisecond each, 32,000 a second, and at most so many records held in memory.
const REPAIRS_MAX: usize = 32;

/// A replica that is mended has just answered a read.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(2);
