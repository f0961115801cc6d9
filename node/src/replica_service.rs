//! What a node does for its peers' requests: merge a record, give one, give a page, run a forwarded request.
//!
//! Who may ask for what is decided in [`quorate_core::ownership`].
//!
//! Taking part in a quorum never waits for a peer; only a forwarded request does, and it has lanes of its own (no deadlock).

use std::time::Duration;

use quorate_transport::budget::Room;
use quorate_wire::codec::Blob;
use quorate_wire::dawdle;
use quorate_wire::ids::{NodeId, Partition};
use quorate_wire::{NotApplied, Response};
use tokio::time::Instant;

use crate::coordinator::{Coordinator, Origin, SCAN_LIMIT_MAX, check_key, entries_len};
use crate::layouts::Layouts;
use crate::peer_wire::{
    Fetch, FetchHint, FetchRange, Fetched, FetchedRange, Forward, HandOver, HandedOff, KeepHint, Label, PeerBody,
    PeerReply, Refused, Replicate, Replicated,
};
use crate::replica::{Merged, Replica};
use crate::request_memory::read_within;
use quorate_core::ownership::Role;
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
            PeerBody::Replicate(ask) => self.replicate(ask).await.map(PeerReply::from),
            PeerBody::Hint(ask) => self.hint(ask).await.map(PeerReply::from),
            PeerBody::Handoff(ask) => self.handoff(ask).await.map(PeerReply::from),
            PeerBody::Fetch(ask) => self.fetch(ask, &room).await.map(PeerReply::from),
            PeerBody::FetchHint(ask) => self.fetch_hint(ask, &room).await.map(PeerReply::from),
            PeerBody::FetchRange(ask) => self.fetch_range(ask, &room).await.map(PeerReply::from),
            PeerBody::Forward(ask) => Ok(self.forwarded(from, ask, timeout, room.room).await.into()),
            PeerBody::Hello(_)
            | PeerBody::Heal(_)
            | PeerBody::AcceptFirstLayout(_)
            | PeerBody::LayoutState(_)
            | PeerBody::ContextKeys(_)
            | PeerBody::PrepareLayout(_)
            | PeerBody::AcceptLayout(_)
            | PeerBody::LearnLayouts(_)
            | PeerBody::GetLayouts(_) => {
                let why = "it is not a request for data".into();
                Err(NotApplied::Unsupported { why })
            }
        };
        served.unwrap_or_else(|refusal| {
            tracing::debug!(%from, %refusal, "a peer's request is refused");
            PeerReply::Refused(refusal)
        })
    }

    async fn replicate(&self, ask: Replicate) -> Result<Replicated, NotApplied> {
        let Replicate { label, key, record } = ask;
        let partition = self.takes(label, &key)?;
        self.coordinator.note_service();
        let merged = self.replica.merge_under(partition, &key, decoded(&record)?, label.high).await?;
        self.acknowledge(merged).await
    }

    /// Says that a record is merged, once that is durable.
    async fn acknowledge(&self, merged: Merged) -> Result<Replicated, NotApplied> {
        let Merged { changed, ticket, .. } = merged;
        dawdle!("replica: a pause between a merge and its acknowledgement");
        match ticket.durable().await {
            Ok(synced) => Ok(Replicated { synced, changed }),
            // The record is in the store and not known to be durable. It must not be acknowledged, and that is all that
            // the coordinator has to know: its write was minted, so that no refusal makes it `NotApplied`.
            Err(error) => Err(NotApplied::Storage { node: self.me, why: format!("no sync: {error}") }),
        }
    }

    async fn hint(&self, ask: KeepHint) -> Result<Replicated, NotApplied> {
        let KeepHint { label, target, key, record } = ask;
        let current = self.layouts.under(label)?;
        check_key(&key)?;
        let partition = current.partition_of(&key);
        if label.high < current.version() {
            return Err(NotApplied::StaleLayout { need: current.version(), had: label.high });
        }
        current.may_serve(self.me, partition, Role::FallbackFor(target))?;
        let now_ms = self.coordinator.now_ms();
        let merged = self.replica.keep_hint(partition, &key, target, decoded(&record)?, now_ms).await?;
        self.acknowledge(merged).await
    }

    /// Merges what others have kept for this node. All of it is durable before any of it is acknowledged, in every durability
    /// mode: whoever kept it lets it go then. What the store refuses is named, and stays where it is.
    async fn handoff(&self, ask: HandOver) -> Result<HandedOff, NotApplied> {
        let HandOver { label, entries } = ask;
        let (begun, mut refused) = (Instant::now(), Refused::default());
        for (key, record) in entries {
            let partition = self.takes(label, &key)?;
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
        Ok(HandedOff { pause_ms: u32::try_from(pause.as_millis()).unwrap_or(u32::MAX), refused })
    }

    async fn fetch(&self, ask: Fetch, room: &Waiting) -> Result<Fetched, NotApplied> {
        let Fetch { at, under, key, held, durable, r } = ask;
        let current = self.layouts.under(Label::of(at))?;
        check_key(&key)?;
        let partition = current.partition_of(&key);
        current.may_serve(self.me, partition, Role::Reads(at))?;
        let reading = current.reading(at, r);
        self.coordinator.note_service();
        let record = room.read(|| self.replica.read_for(&key, reading), Record::encoded_len).await?;
        self.layouts.still_speaks(&current, partition, at)?;
        if durable {
            self.replica.settled_under(under).await?;
        }
        dawdle!("replica: a pause between a read and its answer");
        Ok(match record {
            Some(record) if held.is_some_and(|held| held == record.digest(&key)) => Fetched::Same,
            record => Fetched::Record(record.map(|record| Blob(record.encode()))),
        })
    }

    async fn fetch_hint(&self, ask: FetchHint, room: &Waiting) -> Result<Fetched, NotApplied> {
        let FetchHint { key } = ask;
        let current = self.layouts.known()?;
        check_key(&key)?;
        let partition = current.partition_of(&key);
        let owners = current.owners(partition);
        let hinted = || self.replica.hinted(partition, &key, &owners);
        let record = room.read(hinted, Record::encoded_len).await?;
        Ok(Fetched::Record(record.map(|record| Blob(record.encode()))))
    }

    async fn fetch_range(&self, ask: FetchRange, room: &Waiting) -> Result<FetchedRange, NotApplied> {
        let FetchRange { at, partition, after, limit, r } = ask;
        let current = self.layouts.under(Label::of(at))?;
        if !(1..=SCAN_LIMIT_MAX).contains(&limit) {
            let why = format!("a page of {limit} records is not possible, 1 to {SCAN_LIMIT_MAX} are");
            return Err(NotApplied::Unsupported { why });
        }
        after.as_deref().map_or(Ok(()), |after| check_key(after))?;
        current.may_serve(self.me, partition, Role::Reads(at))?;
        let reading = current.reading(at, r);
        let range = || self.replica.range(partition, after.as_ref(), limit as usize, reading);
        let (entries, done) = read_within(&room.room, room.until, range, |(entries, _)| entries_len(entries)).await?;
        self.layouts.still_speaks(&current, partition, at)?;
        let entries = entries.into_iter().map(|(key, record)| (key, Blob(record.encode()))).collect();
        Ok(FetchedRange { entries, done })
    }

    async fn forwarded(&self, from: NodeId, ask: Forward, timeout: Duration, room: Room) -> Response {
        let body = self.coordinator.handle(&ask.request, timeout, Origin::Peer(from), room).await;
        // The node that the client is connected to attaches its own table.
        Response { table: None, body }
    }

    /// The partition of a key, if this node takes a write to it that names these versions.
    fn takes(&self, label: Label, key: &Blob) -> Result<Partition, NotApplied> {
        let current = self.layouts.under(label)?;
        check_key(key)?;
        let partition = current.partition_of(key);
        current.may_serve(self.me, partition, Role::Writes(label))?;
        Ok(partition)
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
