//! What a node does for its peers' requests: merge a record, give one, give a page, run a forwarded request.
//!
//! Every question names the layout versions that it was made under. A node answers for partitions that it owns in its own
//! layout, and refuses what was made under older ones only (`StaleLayout`); a newer one is none of its business yet. A
//! refusal never counts as an acknowledgement or as absence.
//!
//! Taking part in a quorum never waits for a peer; only a forwarded request does, and it has lanes of its own (no deadlock).

use std::sync::Arc;
use std::time::Duration;

use quorate_transport::budget::Room;
use quorate_wire::codec::Blob;
use quorate_wire::dawdle;
use quorate_wire::ids::{NodeId, Partition};
use quorate_wire::{NotApplied, Request, Response};
use tokio::time::Instant;

use crate::coordinator::{Coordinator, Origin, SCAN_LIMIT_MAX, check_key, entries_len};
use crate::layouts::{Current, Layouts};
use crate::peer_wire::{Label, PeerBody, PeerReply, Refused};
use crate::recovery::Reading;
use crate::replica::{Merged, Replica};
use crate::request_memory::read_within;
use quorate_core::record::Record;

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

    /// Answers one request of a peer that is about data. `timeout` is what the peer gives it.
    ///
    /// A replication that was begun is carried out, however long the disk takes; dropping the future leaves the merge to
    /// the replica, which never does half of it.
    pub(crate) async fn serve_peer(&self, from: NodeId, body: PeerBody, timeout: Duration, room: Room) -> PeerReply {
        let room = Waiting { until: Instant::now() + timeout * 3 / 4, room };
        let served = match body {
            PeerBody::Replicate { label, key, record } => self.replicate(label, &key, &record).await,
            PeerBody::Hint { label, target, key, record } => self.hint(label, target, &key, &record).await,
            PeerBody::Handoff { label, entries } => self.handoff(label, entries).await,
            PeerBody::Fetch { label, key, held, durable, r } => {
                self.fetch(label, &key, (held, durable, r), &room).await
            }
            PeerBody::FetchHint { label, key } => self.fetch_hint(label, &key, &room).await,
            PeerBody::FetchRange { label, partition, after, limit, r } => {
                self.fetch_range(label, partition, after, (limit, r), &room).await
            }
            PeerBody::Forward { request } => Ok(self.forwarded(from, request, timeout, room.room).await),
            PeerBody::Hello(_)
            | PeerBody::Heal { .. }
            | PeerBody::AcceptFirstLayout { .. }
            | PeerBody::LayoutState
            | PeerBody::ContextKeys { .. } => {
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
        self.coordinator.note_service();
        let merged = self.replica.merge(partition, key, decoded(record)?).await?;
        self.acknowledge(merged).await
    }

    /// Says that a record is merged, once that is durable.
    async fn acknowledge(&self, merged: Merged) -> Result<PeerReply, NotApplied> {
        let Merged { changed, ticket, .. } = merged;
        dawdle!("replica: a pause between a merge and its acknowledgement");
        match ticket.durable().await {
            Ok(synced) => Ok(PeerReply::Replicated { synced, changed }),
            // The record is in the store and not known to be durable. It must not be acknowledged, and that is all that
            // the coordinator has to know: its write was minted, so that no refusal makes it `NotApplied`.
            Err(error) => Err(NotApplied::Storage { node: self.me, why: format!("no sync: {error}") }),
        }
    }

    async fn hint(&self, label: Label, target: NodeId, key: &Blob, record: &Blob) -> Result<PeerReply, NotApplied> {
        let current = self.known(label)?;
        check_key(key)?;
        let partition = current.ring.partition_of(key);
        let primaries = current.ring.primaries(partition);
        if !primaries.contains(&target) || primaries.contains(&self.me) || current.layout.member(self.me).is_none() {
            let why = format!("{} is no fallback for {target} in partition {partition}", self.me);
            return Err(NotApplied::Unsupported { why });
        }
        let now_ms = self.coordinator.now_ms();
        let merged = self.replica.keep_hint(partition, key, target, decoded(record)?, now_ms).await?;
        self.acknowledge(merged).await
    }

    /// Merges what others have kept for this node. All of it is durable before any of it is acknowledged, in every durability
    /// mode: whoever kept it lets it go then. What the store refuses is named, and stays where it is.
    async fn handoff(&self, label: Label, entries: Vec<(Blob, Blob)>) -> Result<PeerReply, NotApplied> {
        let (begun, mut refused) = (Instant::now(), Refused::default());
        for (key, record) in entries {
            let partition = self.owned(label, |current| {
                check_key(&key)?;
                Ok(current.ring.partition_of(&key))
            })?;
            let record = refused.decode(&key, &record).map_err(|why| NotApplied::Unsupported { why })?;
            let Some(record) = record else { continue };
            if let Err(refusal) = self.replica.merge(partition, &key, record).await {
                refused.note(&key, refusal)?;
            }
        }
        self.replica.sync().await?;
        // While clients are served handoff gets a third of the time, so that they hardly feel it.
        let busy = self.coordinator.is_busy();
        let pause = if busy { (begun.elapsed() * 2).min(HANDOFF_PAUSE_MAX) } else { Duration::ZERO };
        Ok(PeerReply::HandedOff { pause_ms: u32::try_from(pause.as_millis()).unwrap_or(u32::MAX), refused })
    }

    async fn fetch(
        &self,
        label: Label,
        key: &Blob,
        (held, durable, r): (Option<u128>, bool, u8),
        room: &Waiting,
    ) -> Result<PeerReply, NotApplied> {
        let mut reading = Reading::BelowFloor;
        self.owned(label, |current| {
            check_key(key)?;
            reading = current.reading(r);
            Ok(current.ring.partition_of(key))
        })?;
        self.coordinator.note_service();
        let record = room.read(|| self.replica.read_for(key, reading), Record::encoded_len).await?;
        if durable {
            self.replica.settled().await?;
        }
        dawdle!("replica: a pause between a read and its answer");
        Ok(match record {
            Some(record) if held.is_some_and(|held| held == record.digest(key)) => PeerReply::FetchedSame,
            record => PeerReply::Fetched { record: record.map(|record| Blob(record.encode())) },
        })
    }

    async fn fetch_hint(&self, label: Label, key: &Blob, room: &Waiting) -> Result<PeerReply, NotApplied> {
        let current = self.known(label)?;
        check_key(key)?;
        let partition = current.ring.partition_of(key);
        let hinted = || self.replica.hinted(partition, key, current.ring.primaries(partition));
        let record = room.read(hinted, Record::encoded_len).await?;
        Ok(PeerReply::Fetched { record: record.map(|record| Blob(record.encode())) })
    }

    async fn fetch_range(
        &self,
        label: Label,
        partition: Partition,
        after: Option<Blob>,
        (limit, r): (u32, u8),
        room: &Waiting,
    ) -> Result<PeerReply, NotApplied> {
        let mut reading = Reading::BelowFloor;
        self.owned(label, |current| {
            if partition.0 >= current.ring.partitions() || !(1..=SCAN_LIMIT_MAX).contains(&limit) {
                let why = format!("a page of {limit} records of partition {partition} is not possible");
                return Err(NotApplied::Unsupported { why });
            }
            after.as_deref().map_or(Ok(()), |after| check_key(after))?;
            reading = current.reading(r);
            Ok(partition)
        })?;
        let range = || self.replica.range(partition, after.as_ref(), limit as usize, reading);
        let (entries, done) = read_within(&room.room, room.until, range, |(entries, _)| entries_len(entries)).await?;
        let entries = entries.into_iter().map(|(key, record)| (key, Blob(record.encode()))).collect();
        Ok(PeerReply::Range { entries, done })
    }

    async fn forwarded(&self, from: NodeId, request: Request, timeout: Duration, room: Room) -> PeerReply {
        let body = self.coordinator.handle(&request, timeout, Origin::Peer(from), room).await;
        // The node that the client is connected to attaches its own table.
        PeerReply::Forwarded(Response { table: None, body })
    }

    /// The partition of a question, if this node owns it and the question is not too old.
    fn owned(
        &self,
        label: Label,
        partition: impl FnOnce(&Current) -> Result<Partition, NotApplied>,
    ) -> Result<Partition, NotApplied> {
        let current = self.known(label)?;
        let (partition, version) = (partition(&current)?, current.layout.version);
        if !current.ring.primaries(partition).contains(&self.me) {
            let why = format!("it is no primary of partition {partition} in layout {version}");
            return Err(NotApplied::NotServing { node: self.me, why });
        }
        Ok(partition)
    }

    /// The layout, if there is one and the question is not too old for it.
    fn known(&self, label: Label) -> Result<Arc<Current>, NotApplied> {
        let Some(current) = self.layouts.current() else {
            let why = self.layouts.not_serving().unwrap_or_else(|| "there is no layout yet".into());
            return Err(NotApplied::NotServing { node: self.me, why });
        };
        match current.layout.version {
            version if label.high < version => Err(NotApplied::StaleLayout { need: version, had: label.high }),
            _ => Ok(current),
        }
    }
}

/// The room of a request, and how long it may wait for it.
struct Waiting {
    room: Room,
    until: Instant,
}

impl Waiting {
    /// Reads a record, which is let go while it waits for room.
    async fn read<F: Future<Output = Result<Option<Record>, NotApplied>>>(
        &self,
        read: impl Fn() -> F,
        len: impl Fn(&Record) -> usize,
    ) -> Result<Option<Record>, NotApplied> {
        read_within(&self.room, self.until, read, |record| record.as_ref().map_or(0, &len)).await
    }
}

fn decoded(record: &Blob) -> Result<Record, NotApplied> {
    Record::decode(record)
        .map_err(|error| NotApplied::Unsupported { why: format!("the record cannot be decoded: {error}") })
}

/// The longest that a node asks others to wait with the next page of hints.
const HANDOFF_PAUSE_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
#[path = "replica_service_test.rs"]
mod tests;
