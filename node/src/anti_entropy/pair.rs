//! One partition, compared and exchanged with one other owner: the asking side.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use quorate_wire::codec::Blob;
use quorate_wire::ids::{NodeId, Partition};
use quorate_wire::{NotApplied, Transfer};
use quorate_wire::{buggify, sometimes};
use tokio::time::Instant;

use super::{Cause, Desk};
use crate::layouts::Current;
use crate::peer_wire::heal::{
    self, Groups, GroupsCompared, HealAsk, LISTED_MAX, LeafSet, List, Listed, OFFERS_MAX, Offer, Recount, Sum,
};
use crate::peer_wire::{Heal, Refused};
use crate::peers::AskError;
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
    /// If it moves the partition because of a change of the layout: which way. Of what is handed over nothing is taken in here.
    pub(super) moves: Option<Transfer>,
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
    /// What the disk at the other end has refused: how much, and why.
    pub(super) refused: (usize, String),
    /// What the disk at this end has refused.
    refused_here: Refused,
}

impl Exchanged {
    /// What did not get where it was missing, if anything.
    pub(super) fn unsettled(&self) -> Result<(), String> {
        match &self.refused {
            (0, _) => Ok(()),
            (count, why) => Err(format!("it did not take {count} records: {why}")),
        }
    }
}

impl Pair<'_> {
    /// Nothing is taken in here: this node hands over what it owns no more.
    fn is_one_way(&self) -> bool {
        self.moves == Some(Transfer::HandOver)
    }

    /// Counts what has moved because of a change of the layout, if that is what this one is about.
    fn count(&self, what: Transfer, records: u64, bytes: usize) {
        if self.moves == Some(what) {
            self.desk.transfers.moved(what, self.peer, records, bytes as u64);
        }
    }

    /// Compares the trees down to the leaves.
    pub(super) async fn compare(&self) -> Result<Compared, String> {
        let trees = self.desk.replica.partitions();
        let sums = |sums: Vec<Option<u128>>| sums.into_iter().map(|sum| sum.map(Sum)).collect();
        let question = Groups { partition: self.partition, groups: sums(trees.groups(self.partition)) };
        let GroupsCompared { groups, recovering } = self.ask(question).await?;
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
    /// it began, but for what the disk of the other one has [refused](Exchanged::unsettled).
    ///
    /// It breaks off when the disk here has refused much, and goes on there the next time: what needs no room, such as deletes, comes to
    /// its turn also behind many values that have none.
    ///
    /// # Errors
    /// When it came not to its end, or this end's disk has refused something of what the other one holds. The rest is exchanged even so.
    pub(super) async fn exchange(&self, leaves: &Leaves) -> Result<Exchanged, String> {
        let mut found = Exchanged::default();
        let place = (self.peer, self.partition);
        // If this fails, the next one begins at the first key.
        let mut after = self.desk.state().broken_off.remove(&place);
        let mut from_the_first = after.is_none();
        loop {
            let began = Instant::now();
            let list = List { partition: self.partition, leaves: LeafSet(*leaves), after: after.clone() };
            let Listed { entries, done, recovering } = self.ask(list).await?;
            found.recovering = found.recovering.or(&recovering.0);
            let bytes = entries.iter().map(|(key, _)| key.len() + 20).sum::<usize>();
            self.desk.counters.add(&self.desk.counters.bytes_listed, bytes as u64);
            let entries = entries.into_iter().map(|(key, digest)| (key, digest.0)).collect();
            let theirs = Page::new(entries, done, after.as_ref())?;
            let ours = self.desk.replica.list(self.partition, leaves, after.as_ref(), LISTED_MAX).await;
            let (ours, done) = ours.map_err(|refusal| refusal.to_string())?;
            let ours = Page::new(ours, done, after.as_ref())?;
            let (differences, next) = exchange::differences(&ours, &theirs);
            let strangers = |difference: &Difference| self.current.partition_of(&difference.key) != self.partition;
            if differences.iter().any(strangers) {
                return Err("it lists keys of another partition".into());
            }
            found.differences += differences.len() as u64;
            let broken_off = self.ship(differences, &mut found).await?;
            self.pause(began).await;
            let here = &found.refused_here;
            let full = here.keys.len() >= REFUSED_MAX;
            let next = broken_off.or(next);
            match next {
                Some(next) if !full => after = Some(next),
                // What lies before the place where it began may have room by now.
                None if here.keys.is_empty() && !from_the_first => (after, from_the_first) = (None, true),
                None if here.keys.is_empty() => return Ok(found),
                next => {
                    if let Some(next) = next {
                        self.desk.state().broken_off.insert(place, next);
                    }
                    return Err(format!("{} records that it holds were not taken here: {}", here.keys.len(), here.why));
                }
            }
        }
    }

    /// Tells the other one that the lists of some leaves are equal though the sums are not, and does the same here.
    pub(super) async fn recount(&self, leaves: &Leaves) -> Result<(), String> {
        sometimes!("anti-entropy: sums differed where lists were equal");
        self.desk.replica.partitions().forget_sums(self.partition, leaves);
        self.ask(Recount { partition: self.partition, leaves: LeafSet(*leaves) }).await.map(drop)
    }

    /// Sends what the other one lacks, fetches what this one lacks. A key that both change is sent again, as the merge of a
    /// merge can drop what one side alone knows to be superseded.
    ///
    /// What one end's disk refuses does not hold up the rest: deletes and records of values that are held already go on, while there
    /// is little room. An end that has refused much is sent no more values, and one that refuses much itself asks for no more: then the
    /// last key that had its turn is returned.
    async fn ship(&self, differences: Vec<Difference>, found: &mut Exchanged) -> Result<Option<Blob>, String> {
        let mut queue: VecDeque<(Difference, u32)> =
            differences.into_iter().map(|difference| (difference, 0)).collect();
        let mut last = None;
        while !queue.is_empty() && found.refused_here.keys.len() < REFUSED_MAX {
            let began = Instant::now();
            let (mut offers, mut tries, mut bytes) = (Vec::new(), Vec::new(), 0);
            let bytes_max = buggify!("exchange: few bytes in flight", BYTES_IN_FLIGHT, 1);
            while offers.len() < OFFERS_MAX
                && bytes < bytes_max
                && let Some((difference, tried)) = queue.pop_front()
            {
                let Difference { key, ours, theirs } = difference;
                if self.is_one_way() && ours.is_none() {
                    continue;
                }
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
                let full = found.refused.0 >= REFUSED_MAX;
                let held = held.filter(|record| !full || record.siblings.is_empty());
                if held.is_none() && theirs.is_none() {
                    // Neither has anything to give.
                    continue;
                }
                let digest = held.as_ref().and(digest);
                let record = held.map(|record| Blob(record.encode()));
                bytes += key.len() + record.as_ref().map_or(0, |record| record.len());
                tries.push((tried, theirs));
                offers.push(Offer { key, digest: digest.map(Sum), record });
            }
            if offers.is_empty() {
                continue;
            }
            self.desk.counters.add(&self.desk.counters.bytes_sent, bytes as u64);
            let exchange = heal::Exchange { partition: self.partition, offers: offers.clone() };
            let heal::Exchanged { processed, records, refused } = self.ask(exchange).await?;
            let processed = processed as usize;
            if processed == 0 || processed > offers.len() {
                return Err(format!("it has looked at {processed} of {} records", offers.len()));
            }
            if let Some(first_try) = tries[..processed].iter().rposition(|(tried, _)| *tried == 0) {
                last = Some(offers[first_try].key.clone());
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
            sometimes!("exchange: some records were refused", !refused.keys.is_empty());
            if found.refused.0 == 0 {
                found.refused.1 = refused.why;
            }
            found.refused.0 += refused.keys.len();
            let refused: BTreeSet<Blob> = refused.keys.into_iter().collect();
            let taken = offers.iter().filter(|offer| offer.record.is_some() && !refused.contains(&offer.key));
            let (sent, bytes) = taken.fold((0, 0), |(records, bytes), offer| {
                (records + 1, bytes + offer.key.len() + offer.record.as_ref().map_or(0, |record| record.len()))
            });
            self.count(Transfer::HandOver, sent, bytes);
            let (mut received, mut bytes_received) = (0, 0);
            let mut ticket: Option<Ticket> = None;
            for (key, record) in records {
                let Some(tried) = tried(&key) else { return Err("it answers for a key that was not asked for".into()) };
                let Some(record) = record.filter(|_| !self.is_one_way()) else { continue };
                let bytes = key.len() + record.len();
                self.desk.counters.add(&self.desk.counters.bytes_received, bytes as u64);
                let Some(record) = found.refused_here.decode(&key, &record)? else { continue };
                let theirs = record.digest(&key);
                let merged = match self.desk.merge(self.partition, &key, record, self.peer).await {
                    Ok(merged) => merged,
                    Err(refusal) => {
                        found.refused_here.note(&key, refusal).map_err(|refusal| refusal.to_string())?;
                        continue;
                    }
                };
                (received, bytes_received) = (received + 1, bytes_received + bytes);
                // An end that has refused much would not take it either.
                let full = found.refused.0 >= REFUSED_MAX || refused.contains(&key);
                if merged.digest != theirs && tried < TRIES_MAX && !full {
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
            self.count(Transfer::TakeOver, received, bytes_received);
            self.pause(began).await;
        }
        // They are in order, but for those that went back, which come last.
        let left = queue.iter().any(|(_, tried)| *tried == 0);
        Ok(last.filter(|_| left))
    }

    async fn ask<Q: HealAsk>(&self, question: Q) -> Result<Q::Answer, String> {
        self.desk.ask(self.current, self.peer, question).await
    }

    async fn pause(&self, began: Instant) {
        if self.paced {
            super::pause(began).await;
        }
    }
}

impl Desk {
    /// Asks another owner, under the label of a layout.
    pub(super) async fn ask<Q: HealAsk>(
        &self,
        current: &Current,
        peer: NodeId,
        question: Q,
    ) -> Result<Q::Answer, String> {
        let heal = Heal { label: current.label(), request: question.into() };
        let reply = self.peers.ask(peer, self.random.u64(), heal, CALL_TIMEOUT).await;
        if let Err(AskError::Refused(NotApplied::StaleLayout { need, .. })) = &reply {
            self.layouts.hear_of(*need);
        }
        let reply = reply.map_err(|error| error.to_string())?;
        reply.try_into().map_err(|_| "an answer to another question".to_owned())
    }

    /// Merges what a peer has told, and counts why it was missing here.
    pub(super) async fn merge(
        &self,
        partition: Partition,
        key: &Blob,
        record: Record,
        from: NodeId,
    ) -> Result<crate::replica::Merged, NotApplied> {
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

/// Records that are on their way to one peer at a time: eight of the largest values.
const BYTES_IN_FLIGHT: usize = 1 << 20;
/// Of one that has refused so many records nothing is hoped for until the next exchange: see [`Pair::ship`].
const REFUSED_MAX: usize = 256;
/// How often one key goes back and forth before it is left to the next pass.
const TRIES_MAX: u32 = 3;
/// Reading a page of a list, or merging a thousand records, on a slow disk.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
