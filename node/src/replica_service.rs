//! What a node does for its peers' requests: merge a record, give one, give a page, run a forwarded request.
//!
//! Every question names the layout versions that it was made under. A node answers for partitions that it owns in its own
//! layout, and refuses what was made under older ones only (`StaleLayout`); a newer one is none of its business yet. A
//! refusal never counts as an acknowledgement or as absence.
//!
//! Taking part in a quorum never waits for a peer; only a forwarded request does, and it has lanes of its own (no deadlock).

use std::time::Duration;

use quorate_client::codec::Blob;
use quorate_client::dawdle;
use quorate_client::ids::{NodeId, Partition};
use quorate_client::wire::{NotApplied, Request, Response};

use crate::coordinator::{Coordinator, Origin, SCAN_LIMIT_MAX, check_key};
use crate::core::record::Record;
use crate::layouts::{Current, Layouts};
use crate::peer_wire::{Label, PeerBody, PeerReply};
use crate::replica::{Merged, Replica};

/// Serves the data requests of peers on one node.
#[derive(Debug, Clone)]
pub(crate) struct ReplicaService {
    me: NodeId,
    layouts: Layouts,
    replica: Replica,
    coordinator: Coordinator,
}

impl ReplicaService {
    pub(crate) fn new(me: NodeId, layouts: Layouts, replica: Replica, coordinator: Coordinator) -> Self {
        Self { me, layouts, replica, coordinator }
    }

    /// Answers one request of a peer: `Replicate`, `Fetch`, `FetchRange` or `Forward`. `timeout` is what the peer gives it.
    ///
    /// A replication that was begun is carried out, however long the disk takes; dropping the future leaves the merge to
    /// the replica, which never does half of it.
    pub(crate) async fn serve_peer(&self, from: NodeId, body: PeerBody, timeout: Duration) -> PeerReply {
        let served = match body {
            PeerBody::Replicate { label, key, record } => self.replicate(label, &key, &record).await,
            PeerBody::Fetch { label, key } => self.fetch(label, &key).await,
            PeerBody::FetchRange { label, partition, after, limit } => {
                self.fetch_range(label, partition, after, limit).await
            }
            PeerBody::Forward { request } => Ok(self.forwarded(from, request, timeout).await),
            PeerBody::Hello(_) | PeerBody::AcceptFirstLayout { .. } | PeerBody::LayoutState => {
                let why = "it is no request for data".into();
                Err(NotApplied::Unsupported { why })
            }
        };
        served.unwrap_or_else(|refusal| {
            tracing::debug!(%from, %refusal, "a peer's request is refused");
            PeerReply::Refused(refusal)
        })
    }

    async fn replicate(&self, label: Label, key: &Blob, record: &Blob) -> Result<PeerReply, NotApplied> {
        let partition = self.owned(label, |current| {
            check_key(key)?;
            Ok(current.ring.partition_of(key))
        })?;
        let record = Record::decode(record)
            .map_err(|why| NotApplied::Unsupported { why: format!("the record cannot be decoded: {why}") })?;
        let Merged { changed, ticket } = self.replica.merge(partition, key, record).await?;
        dawdle!("replica: a pause between a merge and its acknowledgement");
        match ticket.durable().await {
            Ok(synced) => Ok(PeerReply::Replicated { synced, changed }),
            // The record is in the store and not known to be durable. It must not be acknowledged, and that is all that
            // the coordinator has to know: its write was minted, so that no refusal makes it `NotApplied`.
            Err(error) => Err(NotApplied::Storage { node: self.me, why: format!("no sync: {error}") }),
        }
    }

    async fn fetch(&self, label: Label, key: &Blob) -> Result<PeerReply, NotApplied> {
        self.owned(label, |current| {
            check_key(key)?;
            Ok(current.ring.partition_of(key))
        })?;
        let record = self.replica.read(key).await?;
        dawdle!("replica: a pause between a read and its answer");
        Ok(PeerReply::Fetched { record: record.map(|record| Blob(record.encode())) })
    }

    async fn fetch_range(
        &self,
        label: Label,
        partition: Partition,
        after: Option<Blob>,
        limit: u32,
    ) -> Result<PeerReply, NotApplied> {
        self.owned(label, |current| {
            if partition.0 >= current.ring.partitions() || !(1..=SCAN_LIMIT_MAX).contains(&limit) {
                let why = format!("a page of {limit} records of partition {partition} is not possible");
                return Err(NotApplied::Unsupported { why });
            }
            after.as_deref().map_or(Ok(()), |after| check_key(after))?;
            Ok(partition)
        })?;
        let (entries, done) = self.replica.range(partition, after.as_ref(), limit as usize).await?;
        let entries = entries.into_iter().map(|(key, record)| (key, Blob(record.encode()))).collect();
        Ok(PeerReply::Range { entries, done })
    }

    async fn forwarded(&self, from: NodeId, request: Request, timeout: Duration) -> PeerReply {
        let body = self.coordinator.handle(&request, timeout, Origin::Peer(from)).await;
        // The node that the client is connected to attaches its own table.
        PeerReply::Forwarded(Response { table: None, body })
    }

    /// The partition of a question, if this node owns it and the question is not too old.
    fn owned(
        &self,
        label: Label,
        partition: impl FnOnce(&Current) -> Result<Partition, NotApplied>,
    ) -> Result<Partition, NotApplied> {
        let not_serving = |why| NotApplied::NotServing { node: self.me, why };
        let Some(current) = self.layouts.current() else {
            return Err(not_serving(self.layouts.not_serving().unwrap_or_else(|| "there is no layout yet".into())));
        };
        let version = current.layout.version;
        if label.high < version {
            return Err(NotApplied::StaleLayout { need: version, had: label.high });
        }
        let partition = partition(&current)?;
        if !current.ring.primaries(partition).contains(&self.me) {
            return Err(not_serving(format!("it is no primary of partition {partition} in layout {version}")));
        }
        Ok(partition)
    }
}
