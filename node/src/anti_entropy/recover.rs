//! Brings back what this node has lost: exchanges it with the other owners, at once and several partitions at a time.

use std::sync::Arc;
use std::time::Duration;

use quorate_wire::ids::{LayoutVersion, NodeId, Partition};
use quorate_wire::sometimes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Desk;
use super::pair::Pair;
use crate::layouts::Current;
use crate::peer_wire::heal::{GetReadiness, Readiness};
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
        let pair = Pair { desk, current, peer, partition, paced: false, moves: None };
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

/// While owners change, a leaf is served again when all is found that this node may have acknowledged. Any write that W owners of the
/// versions that it names have acknowledged, this one among them, is held by
///
/// - one of N - W + 1 other owners of any version that it names, if they have lost nothing, whether or not they are ready for it; or
/// - each so many owners as [`restorers_needed`](quorate_core::live::Moving::restorers_needed) that are ready for a later version.
///
/// So one of these has to be exchanged with for every live version, but those after the last one that gives the partition to this node: what
/// names one of them names an owned one as well, or did not come here. Or all owners, whatever they have lost: nobody holds more. All of
/// that in one round.
async fn recover_in_a_change(desk: &Desk, current: &Arc<Current>, partition: Partition) {
    if desk.layouts.said().fence < current.version() {
        // What this node says of a lost copy depends on the layout that it acts on, and on the copy being lost: it learns first.
        sometimes!("recovery: a node had yet to learn of a change");
        return;
    }
    // Said before anything makes up for the loss.
    if let Err(error) = desk.lost_copies().await {
        tracing::warn!(%partition, "it cannot be noted that a copy is lost: {error}");
        return;
    }
    let Some(lost) = desk.replica.recovery().lost(partition) else { return };
    let moving = current.live().partition(partition);
    let mut others = moving.owners().to_vec();
    // Who has handed over its copy holds nothing that the owners of a later version do not.
    others.retain(|owner| *owner != desk.me && moving.keeps_copy(*owner));
    if others.is_empty() || !moving.keeps_copy(desk.me) {
        // There is nobody who could hold more; or the loss is of no interest any more.
        if let Err(error) = desk.replica.exchanged(partition, lost, desk.me, Leaves::NONE, 1, 1).await {
            tracing::warn!(%partition, "a recovery cannot be noted: {error}");
        }
        return;
    }
    if let Err(why) = desk.replica.rebuild(partition).await {
        tracing::debug!(%partition, "it cannot be summed up: {why}");
    }
    let mut found: Vec<Found> = Vec::new();
    for placed in current.live().versions() {
        let (version, owners) = (placed.version(), placed.ring().primaries(partition).to_vec());
        found.push(Found { version, owners, holding: [0; LEAVES], ready: [0; LEAVES] });
    }
    let mut last = None;
    for peer in desk.reachable(&others) {
        let Ok(Readiness { ready, .. }) = desk.ask(current, peer, GetReadiness { partition }).await else { continue };
        let pair = Pair { desk, current, peer, partition, paced: false, moves: None };
        match exchange(&pair, &lost.leaves).await {
            Ok(recovering) => {
                last = Some(peer);
                others.retain(|other| *other != peer);
                found.iter_mut().for_each(|found| found.add(peer, &ready, &recovering));
            }
            Err(why) => tracing::debug!(%peer, %partition, "no exchange: {why}"),
        }
    }
    let Some(last) = last else { return };
    let newest = found.iter().rposition(|found| found.owners.contains(&desk.me)).unwrap_or(found.len() - 1);
    let whole = |leaf: &u8| {
        let leaf = usize::from(*leaf);
        let enough = |found: &Found| found.holding[leaf] >= moving.sources_needed(found.version);
        let restores = |found: &Found| found.ready[leaf] >= moving.restorers_needed(found.version);
        (0..=newest).all(|index| enough(&found[index]) || found[index + 1..].iter().any(restores))
    };
    let unsure: Leaves = (0..=u8::MAX).filter(|leaf| !whole(leaf)).collect();
    // One that speaks for all of them together, or for all that there are.
    let (unsure, others) = if others.is_empty() { (Leaves::NONE, 1) } else { (unsure, usize::MAX) };
    match desk.replica.exchanged(partition, lost, last, unsure, 1, others).await {
        Ok(true) => sometimes!("recovery: a partition is whole again"),
        Ok(false) => sometimes!("recovery: one owner was not enough"),
        Err(error) => tracing::warn!(%partition, "a recovery cannot be noted: {error}"),
    }
}

/// What was found of a live version: how many of its owners have given all that they held of a leaf.
struct Found {
    version: LayoutVersion,
    owners: Vec<NodeId>,
    /// Owners that have lost nothing.
    holding: [usize; LEAVES],
    /// Those of them that are ready for the version.
    ready: [usize; LEAVES],
}

impl Found {
    fn add(&mut self, peer: NodeId, ready: &[LayoutVersion], recovering: &Leaves) {
        if !self.owners.contains(&peer) {
            return;
        }
        let is_ready = ready.contains(&self.version);
        for leaf in (0..=u8::MAX).filter(|leaf| !recovering.contains(*leaf)).map(usize::from) {
            self.holding[leaf] += 1;
            self.ready[leaf] += usize::from(is_ready);
        }
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
