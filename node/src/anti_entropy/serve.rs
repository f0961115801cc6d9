//! The answering side: compares, lists and merges what another owner asks for.

use std::time::Duration;

use quorate_wire::NotApplied;
use quorate_wire::ids::{NodeId, Partition};
use quorate_wire::{buggify, dawdle, sometimes};
use tokio::time::Instant;

use super::Desk;
use crate::peer_wire::heal::{
    BeginPush, Exchange, Exchanged, GetReadiness, GetSaid, Groups, GroupsCompared, HealReply, HealRequest, LISTED_MAX,
    LeafSet, List, Listed, OFFERS_MAX, Offer, ROOTS_MAX, Recount, Recounting, Roots, RootsCompared, SaidNow, Sum,
};
use crate::peer_wire::{Label, Refused};
use quorate_core::merkle::{self, Leaves};
use quorate_core::ownership::Role;
use quorate_core::record::Record;

impl Desk {
    /// Answers one question of a peer that owns what it asks about, as this node does. `timeout` is what the peer gives it.
    pub(super) async fn answer(
        &self,
        from: NodeId,
        label: Label,
        request: HealRequest,
        timeout: Duration,
    ) -> Result<HealReply, NotApplied> {
        dawdle!("anti-entropy: a pause before an answer");
        let answered = self.try_answer(from, label, request, timeout).await;
        answered.inspect_err(|refusal| tracing::debug!(%from, %refusal, "a peer's comparison is refused"))
    }

    async fn try_answer(
        &self,
        from: NodeId,
        label: Label,
        request: HealRequest,
        timeout: Duration,
    ) -> Result<HealReply, NotApplied> {
        self.check(label, &request.partitions())?;
        let trees = self.replica.partitions();
        let is_judged = self.layouts.current().is_some_and(|current| self.is_judged(&current));
        let recovering = |partition| match is_judged {
            true => LeafSet(self.replica.recovery().recovering(partition)),
            // Nobody may take what is here for complete.
            false => LeafSet(Leaves::ALL),
        };
        match request {
            HealRequest::Roots(Roots { roots }) => {
                at_most("partitions", ROOTS_MAX, roots.len())?;
                let (mut differ, mut unknown) = (Vec::new(), Vec::new());
                for (partition, theirs) in roots {
                    match (trees.root(partition), theirs) {
                        (Some(ours), Some(theirs)) if ours == theirs.0 => {}
                        (Some(_), Some(_)) => differ.push(partition),
                        (None, _) | (_, None) => unknown.push(partition),
                    }
                }
                Ok(RootsCompared { differ, unknown }.into())
            }
            HealRequest::Groups(Groups { partition, groups }) => {
                if groups.len() != merkle::GROUPS {
                    return Err(unsupported(format!("{} groups, a tree has {}", groups.len(), merkle::GROUPS)));
                }
                let theirs: Vec<_> = groups.into_iter().map(|sum| sum.map(|sum| sum.0)).collect();
                let (mut asked, unknown) = merkle::compare(&trees.groups(partition), &theirs);
                asked.extend(unknown);
                asked.sort_unstable();
                let leaves = |group| trees.leaves(partition, group).into_iter().map(|sum| sum.map(Sum)).collect();
                let groups = asked.into_iter().map(|group| (group, leaves(group))).collect();
                Ok(GroupsCompared { groups, recovering: recovering(partition) }.into())
            }
            HealRequest::List(List { partition, leaves, after }) => {
                let (entries, done) = self.replica.list(partition, &leaves.0, after.as_ref(), LISTED_MAX).await?;
                let entries = entries.into_iter().map(|(key, digest)| (key, Sum(digest))).collect();
                // Asked last: making the list may have met a corrupt record.
                Ok(Listed { entries, done, recovering: recovering(partition) }.into())
            }
            HealRequest::Exchange(Exchange { partition, offers }) => {
                at_most("records", OFFERS_MAX, offers.len())?;
                self.exchange(from, partition, offers, timeout).await.map(HealReply::from)
            }
            HealRequest::GetSaid(GetSaid { digest }) => {
                let said = self.layouts.said();
                let known = digest == said.digest();
                Ok(SaidNow { said: (!known).then_some(said) }.into())
            }
            HealRequest::BeginPush(BeginPush { partition }) => Ok(self.begins_push(partition)?.into()),
            HealRequest::EndPush(push) => self.ends_push(from, push).await.map(HealReply::from),
            HealRequest::GetReadiness(GetReadiness { partition }) => Ok(self.readiness(partition)?.into()),
            HealRequest::Recount(Recount { partition, leaves }) => {
                trees.forget_sums(partition, &leaves.0);
                Ok(Recounting.into())
            }
        }
    }

    /// Merges what is offered, in order, until the answer is full or half of the time is over. What the store refuses is named; what is
    /// held of it is given back all the same.
    async fn exchange(
        &self,
        from: NodeId,
        partition: Partition,
        offers: Vec<Offer>,
        timeout: Duration,
    ) -> Result<Exchanged, NotApplied> {
        let began = Instant::now();
        let bytes_max = buggify!("exchange: an answer of few bytes", ANSWER_BYTES, 1);
        let (mut processed, mut records, mut bytes, mut ticket) = (0, Vec::new(), 0, None);
        let mut refused = Refused::default();
        for Offer { key, digest, record } in offers {
            crate::coordinator::check_key(&key)?;
            if self.partition_of(&key)? != partition {
                return Err(unsupported("a key of another partition".into()));
            }
            let record = match record {
                Some(record) => refused.decode(&key, &record).map_err(unsupported)?,
                None => None,
            };
            let ours = match record {
                Some(record) => match self.merge(partition, &key, record, from).await {
                    Ok(merged) => {
                        ticket = Some(merged.ticket);
                        Some(merged.digest)
                    }
                    Err(refusal) => {
                        refused.note(&key, refusal)?;
                        None
                    }
                },
                None => None,
            };
            if ours.is_none() || ours != digest.map(|digest| digest.0) {
                let held = self.replica.held(partition, &key).await?.filter(|record| *record != Record::default());
                let encoded = held.map(|record| quorate_wire::codec::Blob(record.encode()));
                bytes += key.len() + encoded.as_ref().map_or(0, |record| record.len());
                records.push((key, encoded));
            }
            processed += 1;
            if bytes >= bytes_max || began.elapsed() >= timeout / 2 {
                break;
            }
        }
        if let Some(ticket) = ticket {
            // Syncs are in order: the last one's covers all before it.
            let storage = |error| NotApplied::Storage { node: self.me, why: format!("no sync: {error}") };
            ticket.durable().await.map_err(storage)?;
        }
        sometimes!("exchange: records went both ways", records.iter().any(|(_, record)| record.is_some()));
        Ok(Exchanged { processed, records, refused })
    }

    /// That both are owners of all these partitions, in a layout that is not too old.
    fn check(&self, label: Label, partitions: &[Partition]) -> Result<(), NotApplied> {
        let current = self.layouts.under(label)?;
        if label.high < current.version() {
            return Err(NotApplied::StaleLayout { need: current.version(), had: label.high });
        }
        let owns = |partition: &Partition| current.may_serve(self.me, *partition, Role::Owner);
        partitions.iter().try_for_each(owns)
    }

    fn partition_of(&self, key: &[u8]) -> Result<Partition, NotApplied> {
        let why = || NotApplied::NotServing { node: self.me, why: "there is no layout yet".into() };
        Ok(self.layouts.current().ok_or_else(why)?.partition_of(key))
    }
}

fn at_most(what: &str, most: usize, got: usize) -> Result<(), NotApplied> {
    if got <= most { Ok(()) } else { Err(unsupported(format!("{got} {what} at once, at most {most} are possible"))) }
}

fn unsupported(why: String) -> NotApplied {
    NotApplied::Unsupported { why }
}

/// Records in one answer; one more still fits a frame.
const ANSWER_BYTES: usize = 1 << 20;
