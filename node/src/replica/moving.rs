//! What a change of owners asks of a replica: to refuse writes that are too old, and to drop its copy of a partition.

use std::collections::BTreeMap;
use std::sync::RwLockReadGuard;

use quorate_wire::NotApplied;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{LayoutVersion, Partition, key_hash};

use super::{Inner, Place, Replica, Unreadable};
use crate::store::Tree;
use quorate_core::keyspace::{self, key_of_data};
use quorate_core::merkle;
use quorate_core::record::{DecodeError, Record};

impl Replica {
    /// From now on writes that name only older versions are refused, and none of them is under way when this returns: what a scan finds
    /// afterwards is all that there will ever be of them (rules L2 and L4). The layout must be durable before.
    pub async fn raise_fence(&self, version: LayoutVersion) {
        let inner = self.0.clone();
        let raise = move || {
            let mut gate = inner.gate.write().expect("nothing panics while it is locked");
            gate.fence = version.max(gate.fence);
            gate.given_up.retain(|_, under| *under >= version);
        };
        self.0.executor.run(raise).await;
    }

    /// The newest version for which the fence was raised.
    pub fn fence(&self) -> LayoutVersion {
        self.0.gate.read().expect("nothing panics while it is locked").fence
    }

    /// This node owns nothing of a partition under a layout and any later one until the fence is raised again: nothing is merged or minted there
    /// from now on, and nothing is under way when this returns.
    pub(crate) async fn give_up(&self, partition: Partition, version: LayoutVersion) {
        let inner = self.0.clone();
        let give_up = move || {
            let mut gate = inner.gate.write().expect("nothing panics while it is locked");
            if gate.fence <= version {
                gate.given_up.insert(partition, version);
            }
        };
        self.0.executor.run(give_up).await;
    }

    /// Whether it holds any record of a partition.
    ///
    /// # Errors
    /// [`NotApplied::Storage`] if the store cannot be read.
    pub(crate) async fn holds_any(&self, partition: Partition) -> Result<bool, NotApplied> {
        Ok(!self.some_of(partition, 1).await?.is_empty())
    }

    /// Drops every record of a partition: others hold all of them, and it takes no more writes of the partition. It ends as soon as `still`
    /// says that this is so no more, because of a newer layout: each key is asked for under its lock, so that nothing goes that came under
    /// that one. They are gone durably when it returns: whoever sees that nothing is left may stop the node for good. Interrupted, it is to be
    /// done again.
    ///
    /// What a newer release has written was listed to nobody, and may be nowhere else: it stays, and nothing behind it goes. What is corrupt
    /// goes: others have it.
    ///
    /// # Errors
    /// [`NotApplied::Storage`] if the store does not take it, or a newer release has written one of the records.
    pub(crate) async fn drop_records(
        &self,
        partition: Partition,
        still: impl Fn() -> bool + Clone + Send + 'static,
    ) -> Result<u64, NotApplied> {
        let mut dropped = 0;
        loop {
            // Rule V1.
            self.give_up_actor(partition);
            let keys = self.some_of(partition, DROPPED_AT_ONCE).await?;
            if keys.is_empty() {
                self.sync().await?;
                return Ok(dropped);
            }
            for place in keys {
                let (key, still) = (Blob(key_of_data(&place)), still.clone());
                let written = key.clone();
                let leaf = merkle::leaf_of(key_hash(&key), self.0.partitions.count().unwrap_or(1));
                let remove = move |inner: &Inner, _| {
                    inner.check_open()?;
                    if !still() {
                        return Ok(false);
                    }
                    inner.check_droppable(partition, &written)?;
                    // The sum of its leaf, and rule V1.
                    inner.partitions.with(partition, |state, _| {
                        state.tree_mut().doubt(leaf);
                        state.give_up_actor();
                    });
                    let removed = inner.store.remove(Tree::Data, &place);
                    removed.map(|()| true).map_err(|error| inner.failed(error.to_string()))
                };
                if !self.locked(&key, 0, remove).await? {
                    return Ok(dropped);
                }
                dropped += 1;
            }
        }
    }

    async fn some_of(&self, partition: Partition, limit: usize) -> Result<Vec<bytes::Bytes>, NotApplied> {
        let inner = self.0.clone();
        let Some(partitions) = inner.partitions.count() else { return Ok(Vec::new()) };
        let range = keyspace::partition(partition, partitions);
        let keys = move || inner.store.keys(Tree::Data, &range.from, range.to.as_deref(), limit);
        self.0.executor.run(keys).await.map_err(|error| self.0.failed(error.to_string()))
    }
}

impl Inner {
    /// # Errors
    /// When the record of a key must not go because a newer release has written it, or it cannot be read for now.
    fn check_droppable(&self, partition: Partition, key: &Blob) -> Result<(), NotApplied> {
        let error = match self.raw(&Place::Data, key).map(|bytes| bytes.map(|bytes| Record::decode(&bytes))) {
            Ok(Some(Err(error @ DecodeError::Newer(_)))) => error,
            Err(Unreadable::Failed(why)) => return Err(self.failed(why)),
            Ok(None | Some(Ok(_) | Err(DecodeError::Damaged(_)))) | Err(Unreadable::Corrupt(_)) => return Ok(()),
        };
        let why = format!("partition {partition} is not dropped, others may lack one of its records: {error}");
        if self.found_newer(partition, key) {
            tracing::error!(node = %self.node, why, "what belongs to other nodes now stays here: start a newer version of quorate");
        }
        Err(self.failed(why))
    }

    /// Lets a write pass that the gate does not refuse; to be held until it is carried out. `under` is the newest layout that it names.
    pub(super) fn passes(
        &self,
        partition: Partition,
        under: LayoutVersion,
    ) -> Result<RwLockReadGuard<'_, Gate>, NotApplied> {
        let gate = self.gate.read().expect("nothing panics while it is locked");
        if under < gate.fence {
            return Err(NotApplied::StaleLayout { need: gate.fence, had: under });
        }
        if let Some(version) = gate.given_up.get(&partition) {
            let why = format!("{} owns nothing of partition {partition} in layout {version}, and drops it", self.node);
            return Err(NotApplied::NotServing { node: self.node, why });
        }
        Ok(gate)
    }
}

/// What a replica refuses because of a layout.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Writes that name only versions below.
    fence: LayoutVersion,
    /// Everything in these partitions, which are owned by others since the layout of this version.
    given_up: BTreeMap<Partition, LayoutVersion>,
}

/// Records that are dropped before others get their turn.
const DROPPED_AT_ONCE: usize = 256;
