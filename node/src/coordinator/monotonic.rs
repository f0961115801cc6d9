//! Monotonic reads: a value is returned once so many primaries hold it durably that no later read misses it (see
//! [`write_back`](quorate_core::quorum::write_back)).
//!
//! The second phase of a read of Attiya, Bar-Noy and Dolev ("Sharing Memory Robustly in Message-Passing Systems", 1995), left out
//! where the first one shows that it has been done: primaries whose answer holds all that is returned have waited for a sync
//! before they gave it.

use std::pin::pin;
use std::sync::Arc;

use quorate_wire::codec::Blob;
use quorate_wire::ids::NodeId;
use quorate_wire::{Acks, NotApplied, Quorum, sometimes};
use tokio::time::sleep_until;

use super::repair::mend;
use super::{Inner, Turn};
use crate::calls::Calls;
use quorate_core::quorum::{Group, Said, Status, Tally, write_back};
use quorate_core::record::Record;

/// Waits until enough primaries of every live version hold what a read returns, `record`, durably; `holders` do already.
///
/// # Errors
/// When too many of them fail, or it takes too long. The record itself is what replicas hold anyway: a write-back that reaches
/// some of them changes nothing that a read could not have found before.
pub(super) async fn confirm(
    inner: &Arc<Inner>,
    turn: &Turn,
    key: &Blob,
    record: &Record,
    holders: &[NodeId],
) -> Result<(), NotApplied> {
    let r = turn.need();
    let of_version = |group: Group| {
        let n = group.primaries.len() as u8;
        Group { need: write_back(n, r.min(n)), ..group }
    };
    // Of every version that a write would name: later reads may be made at any of them.
    let groups = turn.view.write_groups(Quorum::Majority)?;
    let groups: Vec<Group> = groups.into_iter().map(of_version).collect();
    held_by(inner, turn, key, record, (&groups, holders)).await.map(drop)
}

/// Waits until a quorum of every one of these groups holds a record durably; `holders` do already. How many do, and whether all that were
/// asked for it say so after a sync.
///
/// # Errors
/// When too many of them fail, or it takes too long.
pub(super) async fn held_by(
    inner: &Arc<Inner>,
    turn: &Turn,
    key: &Blob,
    record: &Record,
    (groups, holders): (&[Group], &[NodeId]),
) -> Result<(Acks, bool), NotApplied> {
    let (mut tally, mut all_synced) = (Tally::of_every(groups, true), true);
    for primary in tally.primaries().collect::<Vec<_>>() {
        tally.ask(primary, turn.at_us());
    }
    for holder in holders {
        tally.ack(*holder, Said::Ack { synced: true, changed: false }, turn.at_us());
    }
    if tally.status() == Status::Met {
        return Ok((tally.acks(), all_synced));
    }
    sometimes!("read: a monotonic read wrote back", !holders.is_empty());
    let mut calls = Calls::new();
    for node in tally.vacant() {
        let (inner, turn, key, record) = (inner.clone(), turn.clone(), key.clone(), record.clone());
        calls.push(async move { (node, mend(&inner, &turn, &key, &record, node).await) });
    }
    let mut deadline = pin!(sleep_until(turn.deadline));
    loop {
        tokio::select! {
            biased;
            Some((node, mended)) = calls.next() => {
                match mended {
                    Ok(synced) => {
                        let counted = tally.ack(node, Said::Ack { synced, changed: true }, turn.at_us());
                        all_synced &= synced || !counted;
                    }
                    Err(why) => drop(tally.fail(node, Said::Failed(why), turn.at_us())),
                }
            }
            () = &mut deadline => {
                let need = tally.need();
                let why = format!("{need} primaries must hold what is answered; {}", tally.why());
                return Err(NotApplied::TimedOut { need, had: tally.acks().total(), why });
            }
        }
        match tally.status() {
            Status::Met => return Ok((tally.acks(), all_synced)),
            Status::Possible => {}
            Status::Impossible => {
                let need = tally.need();
                let why = format!("{need} primaries must hold what is answered; {}", tally.why());
                return Err(NotApplied::Unavailable { need, alive: tally.possible(), why });
            }
        }
    }
}
