//! One partition, compared and exchanged with one other owner: the asking side.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use quorate_wire::codec::Blob;
use quorate_wire::ids::{NodeId, Partition};
use quorate_wire::{buggify, sometimes};
use tokio::time::Instant;

use super::{Cause, Desk};
use crate::layouts::Current;
use crate::peer_wire::heal::{HealReply, HealRequest, LISTED_MAX, LeafSet, OFFERS_MAX, Offer, Sum};
use crate::peer_wire::{Label, PeerBody, PeerReply, class};
use crate::store::Ticket;
use quorate_core::exchange::{self, Difference, Page};
use quorate_core::merkle::{self, LEAVES_PER_GROUP, Leaves};
use quorate_core::record::Record;

/// A partition and another owner of it.
pub(super) struct Pair<'a> {
    pub(super) desk: &'a Desk,
    pub(super) current: &'a Arc<Current>,
    pub(super) peer: NodeId,
    pub(super) partition: Partition,
    /// Whether to pause after each step for as long as it took: everything but a recovery does.
    pub(super) paced: bool,
}

/// What the trees say.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// The leaves whose sums differ.
    pub(super) differ: Leaves,
    /// The leaves whose sums are not known on both sides.
    pub(super) unknown: Leaves,
    /// The leaves for which the other one cannot speak.
    pub(super) recovering: Leaves,
}

/// What an exchange found.
#[derive(Debug, Default)]
pub(super) struct Exchanged {
    /// Keys that differed.
    pub(super) differences: u64,
    /// The leaves for which the other one cannot speak.
    pub(super) recovering: Leaves,
}

impl Pair<'_> {
    /// Compares the trees down to the leaves.
    pub(super) async fn compare(&self) -> Result<Compared, String> {
        let trees = self.desk.replica.partitions();
        let sums = |sums: Vec<Option<u128>>| sums.into_iter().map(|sum| sum.map(Sum)).collect();
        let request = HealRequest::Groups { partition: self.partition, groups: sums(trees.groups(self.partition)) };
        let HealReply::Groups { groups, recovering } = self.call(request).await? else { return Err(OTHER.into()) };
        let mut compared = Compared { recovering: recovering.0, ..Compared::default() };
        for (group, theirs) in groups {
            if usize::from(group) >= merkle::GROUPS || theirs.len() != LEAVES_PER_GROUP {
                return Err(format!("it has a group {group} of {} leaves", theirs.len()));
            }
            let ours = trees.leaves(self.partition, group);
            let theirs: Vec<_> = theirs.into_iter().map(|sum| sum.map(|sum| sum.0)).collect();
            let (differ, unknown) = merkle::compare(&ours, &theirs);
            let first = group * LEAVES_PER_GROUP as u8;
            differ.into_iter().for_each(|leaf| compared.differ.insert(first + leaf));
            unknown.into_iter().for_each(|leaf| compared.unknown.insert(first + leaf));
        }
        Ok(compared)
    }

    /// Lists some leaves on both sides and exchanges what differs. When it is done both hold, durably, what either held when
    /// it began.
    pub(super) async fn exchange(&self, leaves: &Leaves) -> Result<Exchanged, String> {
        let mut found = Exchanged::default();
        let mut after: Option<Blob> = None;
        loop {
            let began = Instant::now();
            let request =
                HealRequest::List { partition: self.partition, leaves: LeafSet(*leaves), after: after.clone() };
            let HealReply::Listed { entries, done, recovering } = self.call(request).await? else {
                return Err(OTHER.into());
            };
            found.recovering = found.recovering.or(&recovering.0);
            let bytes = entries.iter().map(|(key, _)| key.len() + 20).sum::<usize>();
            self.desk.counters.add(&self.desk.counters.bytes_listed, bytes as u64);
            let entries = entries.into_iter().map(|(key, digest)| (key, digest.0)).collect();
            let theirs = Page::new(entries, done, after.as_ref())?;
            let ours = self.desk.replica.list(self.partition, leaves, after.as_ref(), LISTED_MAX).await;
            let (ours, done) = ours.map_err(|refusal| refusal.to_string())?;
            let ours = Page::new(ours, done, after.as_ref())?;
            let (differences, next) = exchange::differences(&ours, &theirs);
            let strangers = |difference: &Difference| self.current.ring.partition_of(&difference.key) != self.partition;
            if differences.iter().any(strangers) {
                return Err("it lists keys of another partition".into());
            }
            found.differences += differences.len() as u64;
            self.ship(differences).await?;
            self.pause(began).await;
            match next {
                Some(next) => after = Some(next),
                None => return Ok(found),
            }
        }
    }

    /// Tells the other one that the lists of some leaves are equal though the sums are not, and does the same here.
    pub(super) async fn recount(&self, leaves: &Leaves) -> Result<(), String> {
        sometimes!("anti-entropy: sums differed where lists were equal");
        self.desk.replica.partitions().forget_sums(self.partition, leaves);
        let request = HealRequest::Recount { partition: self.partition, leaves: LeafSet(*leaves) };
        self.call(request).await.map(drop)
    }

    /// Sends what the other one lacks, fetches what this one lacks. A key that both change is sent again, as the merge of a
    /// merge can drop what one side alone knows to be superseded.
    async fn ship(&self, differences: Vec<Difference>) -> Result<(), String> {
        let mut queue: VecDeque<(Difference, u32)> =
            differences.into_iter().map(|difference| (difference, 0)).collect();
        while !queue.is_empty() {
            let began = Instant::now();
            let (mut offers, mut tries, mut bytes) = (Vec::new(), Vec::new(), 0);
            let bytes_max = buggify!("exchange: few bytes in flight", BYTES_IN_FLIGHT, 1);
            while offers.len() < OFFERS_MAX
                && bytes < bytes_max
                && let Some((difference, tried)) = queue.pop_front()
            {
                let Difference { key, ours, theirs } = difference;
                let held = match ours {
                    Some(_) => self.desk.replica.held(self.partition, &key).await,
                    None => Ok(None),
                };
                let held = held.map_err(|refusal| refusal.to_string())?.filter(|record| *record != Record::default());
                let digest = held.as_ref().map(|record| record.digest(&key));
                // It has come by another way since it was listed.
                if digest.is_some() && digest == theirs {
                    continue;
                }
                let record = held.map(|record| Blob(record.encode()));
                bytes += key.len() + record.as_ref().map_or(0, |record| record.len());
                tries.push((tried, theirs));
                offers.push(Offer { key, digest: digest.map(Sum), record });
            }
            if offers.is_empty() {
                continue;
            }
            self.desk.counters.add(&self.desk.counters.bytes_sent, bytes as u64);
            let request = HealRequest::Exchange { partition: self.partition, offers: offers.clone() };
            let HealReply::Exchanged { processed, records } = self.call(request).await? else {
                return Err(OTHER.into());
            };
            let processed = processed as usize;
            if processed == 0 || processed > offers.len() {
                return Err(format!("it has looked at {processed} of {} records", offers.len()));
            }
            // What it had no room or time for comes first next time.
            for (offer, (tried, theirs)) in offers.drain(processed..).zip(tries.drain(processed..)).rev() {
                sometimes!("exchange: an answer had no room for all");
                let ours = offer.digest.map(|digest| digest.0);
                queue.push_front((Difference { key: offer.key, ours, theirs }, tried));
            }
            let tried = |key: &Blob| {
                let at = offers.iter().position(|offer| offer.key == *key);
                at.map(|at| tries[at].0)
            };
            let mut ticket: Option<Ticket> = None;
            for (key, record) in records {
                let Some(tried) = tried(&key) else { return Err("it answers for a key that was not asked for".into()) };
                let Some(record) = record else { continue };
                let bytes = key.len() + record.len();
                self.desk.counters.add(&self.desk.counters.bytes_received, bytes as u64);
                let record = Record::decode(&record).map_err(|why| format!("its record cannot be decoded: {why}"))?;
                let theirs = record.digest(&key);
                let merged = self.desk.merge(self.partition, &key, record, self.peer).await;
                let merged = merged.map_err(|refusal| refusal.to_string())?;
                if merged.digest != theirs && tried < TRIES_MAX {
                    sometimes!("exchange: a record went back");
                    let difference = Difference { key, ours: Some(merged.digest), theirs: Some(theirs) };
                    queue.push_back((difference, tried + 1));
                }
                ticket = Some(merged.ticket);
            }
            if let Some(ticket) = ticket {
                // Syncs are in order: the last one's covers all before it.
                ticket.durable().await.map_err(|error| error.to_string())?;
            }
            self.pause(began).await;
        }
        Ok(())
    }

    async fn call(&self, request: HealRequest) -> Result<HealReply, String> {
        let version = self.current.layout.version;
        let body = PeerBody::Heal { label: Label { low: version, high: version }, request };
        let request_id = self.desk.random.u64();
        match self.desk.peers.call(self.peer, class::BULK, request_id, body, CALL_TIMEOUT).await {
            Ok(PeerReply::Healed(reply)) => Ok(reply),
            Ok(PeerReply::Refused(refusal)) => Err(refusal.to_string()),
            Ok(_) => Err(OTHER.into()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn pause(&self, began: Instant) {
        if self.paced {
            super::pause(began).await;
        }
    }
}

impl Desk {
    /// Merges what a peer has told, and counts why it was missing here.
    pub(super) async fn merge(
        &self,
        partition: Partition,
        key: &Blob,
        record: Record,
        from: NodeId,
    ) -> Result<crate::replica::Merged, quorate_wire::NotApplied> {
        // Asked before the merge, which may end what made it missing.
        let cause = self.cause(partition, key);
        let merged = self.replica.merge(partition, key, record).await?;
        if merged.changed {
            let cause = if merged.was_corrupt { Cause::Corrupt } else { cause };
            tracing::debug!(%from, %partition, ?cause, "a record was repaired");
            self.counters.repaired(cause);
        }
        Ok(merged)
    }
}

const OTHER: &str = "an answer to another question";
/// Records that are on their way to one peer at a time: eight of the largest values.
const BYTES_IN_FLIGHT: usize = 1 << 20;
/// How often one key goes back and forth before it is left to the next pass.
const TRIES_MAX: u32 = 3;
/// Reading a page of a list, or merging a thousand records, on a slow disk.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
