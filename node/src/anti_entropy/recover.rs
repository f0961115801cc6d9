//! Brings back what this node has lost: exchanges it with the other owners, at once and several partitions at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_wire::ids::Partition;
use quorate_wire::sometimes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Desk;
use super::pair::Pair;
use crate::layouts::Current;
use crate::peer_wire::heal::{GetSpoken, Spoken};
use crate::supervise;
use quorate_core::merkle::{LEAVES, Leaves};

/// The background task.
pub(super) async fn run(desk: Arc<Desk>) {
    let mut pause = PAUSE_MIN;
    loop {
        let partitions = desk.replica.recovery().partitions();
        let current = desk.layouts.current().filter(|_| !partitions.is_empty());
        let Some(current) = current else {
            tokio::select! {
                biased;
                () = desk.replica.recovery().news() => {}
                () = sleep(PAUSE_MAX) => {}
            }
            pause = PAUSE_MIN;
            continue;
        };
        let (began, before) = (Instant::now(), partitions.len());
        if desk.replica.recovery().progress().is_some() {
            tracing::info!(partitions = before, "recovering from the other owners");
        }
        let mut jobs = JoinSet::new();
        for partition in partitions {
            if jobs.len() >= AT_ONCE {
                join(&mut jobs).await;
            }
            let (desk, current) = (desk.clone(), current.clone());
            let job = async move { recover(&desk, &current, partition).await };
            jobs.spawn(supervise::watched("recovery: a partition", job));
        }
        while !jobs.is_empty() {
            join(&mut jobs).await;
        }
        let left = desk.replica.recovery().partitions().len();
        match desk.replica.recovery().progress() {
            None if left > 0 => {
                tracing::debug!(left, "owners are still to be asked for writes below the layout's floor")
            }
            None => tracing::info!(partitions = before, took = ?began.elapsed(), "recovered"),
            Some(progress) => tracing::info!(left, reason = %progress.reason, "not recovered yet: owners are missing"),
        }
        if left > 0 {
            pause = if left < before { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
            let jitter = desk.random.below(pause.as_millis() as u64 / 2 + 1);
            tokio::select! {
                biased;
                () = sleep(pause - Duration::from_millis(jitter)) => {}
                () = desk.replica.recovery().news() => pause = PAUSE_MIN,
            }
        }
    }
}

async fn join(jobs: &mut JoinSet<()>) {
    if let Some(Err(error)) = jobs.join_next().await
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Exchanges what is lost of a partition with its other owners until it is whole, or all were asked.
pub(super) async fn recover(desk: &Desk, current: &Arc<Current>, partition: Partition) {
    if current.live().is_changing() {
        return recover_in_a_change(desk, current, partition).await;
    }
    let owners = current.primaries(partition);
    let others: Vec<_> = owners.iter().copied().filter(|owner| *owner != desk.me).collect();
    // Any w owners that acknowledged a write, this one among them, share one with this many of the others.
    let need = current.complete(current.version());
    if let Err(why) = desk.replica.rebuild(partition).await {
        tracing::debug!(%partition, "it cannot be summed up: {why}");
    }
    let Some(lost) = desk.replica.recovery().lost(partition) else { return };
    if others.is_empty() || !owners.contains(&desk.me) && !desk.layouts.is_behind() {
        // There is nobody who could hold more; or the loss is of no interest any more, as this node owns nothing of it.
        if let Err(error) = desk.replica.exchanged(partition, lost, desk.me, Leaves::NONE, need, 0).await {
            tracing::warn!(%partition, "a recovery cannot be noted: {error}");
        }
        return;
    }
    // All that can be reached, also if fewer would do: a write below the layout's floor may be with only one of them.
    let mut told = Vec::new();
    for peer in desk.reachable(&others) {
        let Some(lost) = desk.replica.recovery().to_ask(partition, peer) else { continue };
        let pair = Pair { desk, current, peer, partition, paced: false, one_way: false };
        match exchange(&pair, &lost.leaves).await {
            Ok(recovering) => told.push((peer, lost, recovering)),
            Err(why) => {
                sometimes!("recovery: an owner could not be asked");
                tracing::debug!(%peer, %partition, "no exchange: {why}");
            }
        }
    }
    for (peer, lost, recovering) in told {
        match desk.replica.exchanged(partition, lost, peer, recovering, need, others.len()).await {
            Ok(true) => sometimes!("recovery: a partition is whole again"),
            Ok(false) => sometimes!("recovery: one owner was not enough"),
            Err(error) => tracing::warn!(%partition, "a recovery cannot be noted: {error}"),
        }
    }
}

/// While owners change, a leaf is served again when it was exchanged completely, in one round, with enough owners of every version that is
/// not retired, which speak for that version: whichever of them a write has named, one of those holds it.
async fn recover_in_a_change(desk: &Desk, current: &Arc<Current>, partition: Partition) {
    // Said before anything makes up for the loss.
    if let Err(error) = desk.lost_copies().await {
        tracing::warn!(%partition, "it cannot be noted that a copy is lost: {error}");
        return;
    }
    let Some(lost) = desk.replica.recovery().lost(partition) else { return };
    if desk.layouts.said().part(partition).dropped && !current.primaries(partition).contains(&desk.me) {
        // It would be dropped again: this node answers for it no more, and gives nothing.
        if let Err(error) = desk.replica.exchanged(partition, lost, desk.me, Leaves::NONE, 1, 0).await {
            tracing::warn!(%partition, "a recovery cannot be noted: {error}");
        }
        return;
    }
    if let Err(why) = desk.replica.rebuild(partition).await {
        tracing::debug!(%partition, "it cannot be summed up: {why}");
    }
    let moving = current.live().partition(partition);
    let others: Vec<_> = moving.owners().iter().copied().filter(|owner| *owner != desk.me).collect();
    let (mut missing, mut last): (BTreeMap<_, _>, _) = (BTreeMap::new(), None);
    for version in moving.named() {
        missing.insert(version, vec![current.complete(version); LEAVES]);
    }
    for peer in desk.reachable(&others) {
        let spoken = desk.ask(current, peer, GetSpoken { partition }).await;
        let Ok(Spoken { versions }) = spoken else { continue };
        let pair = Pair { desk, current, peer, partition, paced: false, one_way: false };
        match exchange(&pair, &lost.leaves).await {
            Ok(recovering) => {
                last = Some(peer);
                for (version, missing) in &mut missing {
                    for leaf in (0..=u8::MAX).filter(|leaf| versions.contains(version) && !recovering.contains(*leaf)) {
                        let left = &mut missing[usize::from(leaf)];
                        *left = left.saturating_sub(1);
                    }
                }
            }
            Err(why) => tracing::debug!(%peer, %partition, "no exchange: {why}"),
        }
    }
    let whole = |leaf: &u8| missing.values().all(|missing| missing[usize::from(*leaf)] == 0);
    let unsure: Leaves = (0..=u8::MAX).filter(|leaf| !whole(leaf)).collect();
    let Some(last) = last else { return };
    // One that speaks for all of them together.
    match desk.replica.exchanged(partition, lost, last, unsure, 1, usize::MAX).await {
        Ok(true) => sometimes!("recovery: a partition is whole again"),
        Ok(false) => sometimes!("recovery: one owner was not enough"),
        Err(error) => tracing::warn!(%partition, "a recovery cannot be noted: {error}"),
    }
}

/// Exchanges some leaves completely with one owner; the leaves for which that one cannot speak.
async fn exchange(pair: &Pair<'_>, lost: &Leaves) -> Result<Leaves, String> {
    let compared = pair.compare().await?;
    let leaves = lost.and(&compared.differ.or(&compared.unknown));
    if leaves.is_empty() {
        return Ok(compared.recovering);
    }
    Ok(compared.recovering.or(&pair.exchange(&leaves).await?.recovering))
}

/// Partitions that are exchanged at a time.
const AT_ONCE: usize = 4;
/// The pause after a round that left something; it doubles while nothing changes.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// The longest pause: owners that come back are asked so soon.
const PAUSE_MAX: Duration = Duration::from_secs(4);
