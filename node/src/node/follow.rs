//! What a running node does when something changes: the layout, what peers remember of its disk, a disk that was rolled back.

use std::time::Duration;

use quorate_wire::ids::{DiskId, NodeId};
use quorate_wire::sometimes;
use tokio::time::sleep;
use tracing::{error, warn};

use crate::beacons::Beacons;
use crate::layouts::{Current, Layouts};
use crate::membership::Membership;
use crate::peers::Peers;
use crate::recovery::{Doubt, Facts, Recovery};
use crate::replica::Replica;
use crate::store::Committer;

/// Passes on what follows from the layout in force: how many partitions there are, whom to stay connected to, and what gossip
/// tells the others.
pub(super) async fn layouts(
    start: Start,
    mut decided: bool,
    layouts: Layouts,
    replica: Replica,
    peers: Peers,
    membership: Membership,
    committer: Committer,
) {
    let me = start.me;
    let (mut changes, mut keys) = (layouts.watch(), layouts.watch_context_keys());
    loop {
        keys.mark_unchanged();
        let current = changes.borrow_and_update().clone();
        if let Some(current) = current {
            replica.set_partitions(current.layout.partitions);
            // A layout that comes later than the start says only now whether this disk is the one that it names.
            if !decided {
                match replica.decide(start.facts(&current)).await {
                    Ok(()) => {
                        decided = true;
                        committer.withhold(false);
                    }
                    Err(why) => warn!("it cannot be noted what this disk lacks, no reads are answered: {why}"),
                }
            }
            let others = current.live().members().into_iter().filter(|node| *node != me);
            peers.keep_connected(others.collect());
            for member in current.live().versions().iter().flat_map(|placed| &placed.layout.members) {
                peers.learn(member.node, member.addr);
            }
            if let Some((version, digest)) = layouts.announced() {
                membership.announce_layout(version, digest);
            }
        }
        let changed = tokio::select! {
            biased;
            changed = changes.changed() => changed,
            changed = keys.changed() => changed,
            () = sleep(DECIDE_AGAIN), if !decided && layouts.current().is_some() => continue,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Has reads wait until every other member has said what it remembers of this node, or had the time to.
pub(super) async fn hellos(me: NodeId, layouts: Layouts, recovery: Recovery, beacons: Beacons) {
    let mut layouts = layouts.watch();
    let current = layouts.wait_for(Option::is_some).await.ok().and_then(|current| Option::clone(&current));
    let Some(current) = current else { return };
    let others: Vec<NodeId> = current.live().members().into_iter().filter(|node| *node != me).collect();
    let all = beacons.hellos(&others).await;
    sometimes!("beacons: a start did not hear of every member", !all);
    recovery.settle(Doubt::Start);
}

/// Notes what is lost when this disk turns out to have been set back.
pub(super) async fn set_backs(me: NodeId, layouts: Layouts, replica: Replica, beacons: Beacons) {
    let layouts_known = layouts;
    let mut layouts = layouts_known.watch();
    loop {
        let ahead = beacons.set_back().await;
        error!(node = %me, ahead, start = beacons.start(),
            "this disk was rolled back or cloned, or is not the one that this node last lived on: a peer remembers the node further ahead");
        let (owned, judged) = loop {
            let current = layouts.borrow_and_update().clone();
            match current {
                Some(current) => break (current.owned_by(me), current.version()),
                None if layouts.changed().await.is_err() => return,
                None => {}
            }
        };
        // It must not vote either, whatever becomes of its data: what it has promised does not come back.
        while let Err(why) = layouts_known.abstain().await {
            warn!("it cannot be noted that this disk has no vote, no reads are answered: {why}");
            sleep(DECIDE_AGAIN).await;
        }
        while let Err(why) = replica.set_back(owned.clone(), judged).await {
            warn!("it cannot be noted what this disk lacks, no reads are answered: {why}");
            sleep(DECIDE_AGAIN).await;
        }
        beacons.pass(ahead);
    }
}

/// Has a node whose disk was set back hear which layouts there are, so that it votes on later ones.
pub(super) async fn votes(layouts: Layouts) {
    let mut behind = layouts.watch_behind();
    while behind.wait_for(|behind| *behind).await.is_ok() {
        match layouts.catch_up_to_vote().await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(why) => warn!("it cannot be noted which layouts this node may vote on: {why}"),
        }
        sleep(CATCH_UP_AGAIN).await;
    }
}

/// What a start is judged by, but for the layout.
#[derive(Clone)]
pub(super) struct Start {
    pub(super) me: NodeId,
    pub(super) disk: DiskId,
    pub(super) unclean: bool,
    pub(super) interval: bool,
}

impl Start {
    pub(super) fn facts(&self, current: &Current) -> Facts {
        Facts {
            disk: self.disk,
            named: current.member(self.me).map(|member| member.disk),
            owned: current.owned_by(self.me),
            unclean: self.unclean,
            interval: self.interval,
        }
    }
}

/// How soon the members are asked again which layouts there are, when too few have answered.
const CATCH_UP_AGAIN: Duration = Duration::from_secs(2);

/// How soon a store that failed is tried again.
const DECIDE_AGAIN: Duration = Duration::from_secs(1);
