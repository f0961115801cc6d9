//! A change of layout, as one node carries out its part: it refuses older writes, takes over what it owns now, stops answering for what
//! others answer for, and drops what it owns no more. The rules are those of [`quorate_core::transition`].
//!
//! ```text
//!   learn    the fence is raised: writes that name only older versions are refused, and none is under way       L2
//!   hear     what the other members say of their part
//!   pull     of each older owner everything that it holds, partition by partition, and it is noted              L4, L5
//!   close    once enough owners of the newest version are ready, no read of an older one is answered            L7
//!   settle   every partition has moved: the older versions are forgotten
//!   drop     what lies here and belongs to others is handed over to each of them, and goes                      L9
//! ```
//!
//! Every step can be taken again, after a crash as well: what was done is on the disk before it is said, and what was not noted is done
//! once more. A transfer compares hash trees first, so that a repeated one moves only what differs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use quorate_wire::ids::{LayoutVersion, NodeId, Partition};
use quorate_wire::{NotApplied, Transfer};
use quorate_wire::{buggify, dawdle, sometimes};
use tokio::sync::watch;
use tokio::time::sleep;

use super::Desk;
use super::pair::{CALL_TIMEOUT, Pair};
use crate::calls::Calls;
use crate::layouts::Current;
use crate::peer_wire::HandOver;
use crate::peer_wire::heal::{
    BeginPush, EndPush, GetReadiness, GetSaid, LeafSet, PushBegun, PushEnded, Readiness, SaidNow,
};
use crate::recovery::Reason;
use crate::store::StoreError;
use quorate_core::live::{Got, Placed, Said};
use quorate_core::merkle::Leaves;

/// The background task: one loop follows what the others do and answers for it, the other one moves data, which takes as long as it takes.
pub(super) async fn run(desk: Arc<Desk>) {
    join(follow(&desk), move_data(&desk)).await;
}

async fn follow(desk: &Desk) {
    let mut layouts = desk.layouts.watch();
    loop {
        layouts.mark_unchanged();
        let more = match desk.follow().await {
            Ok(more) => more,
            Err(why) => {
                tracing::warn!("a change of layout does not go on for now: {why}");
                true
            }
        };
        if !desk.pause(&mut layouts, more, FOLLOW_MIN).await {
            return;
        }
    }
}

async fn move_data(desk: &Arc<Desk>) {
    let (mut layouts, mut round) = (desk.layouts.watch(), Round::default());
    loop {
        layouts.mark_unchanged();
        let more = desk.move_data(&mut round).await;
        if !desk.pause(&mut layouts, more, PAUSE_MIN).await {
            return;
        }
    }
}

/// How far the moving of data has come.
#[derive(Debug, Default)]
struct Round {
    swept: Swept,
    /// The partition that was the last one to be taken over, or to be tried.
    pulled: Option<Partition>,
}

/// The partitions of which nothing lies here that belongs to others, as far as this version goes.
#[derive(Debug, Default)]
struct Swept {
    version: LayoutVersion,
    partitions: BTreeSet<Partition>,
}

impl Desk {
    /// Waits until there may be something to do; soon if `more` is to come, and not before `least` after news. Not so if the node ends.
    async fn pause(&self, layouts: &mut watch::Receiver<Option<Arc<Current>>>, more: bool, least: Duration) -> bool {
        let pause = if more { PAUSE } else { REST };
        let jitter = Duration::from_millis(self.random.below(pause.as_millis() as u64 / 2 + 1));
        tokio::select! {
            biased;
            changed = layouts.changed() => {
                // A little later: what changes now is followed by more.
                sleep(least).await;
                changed.is_ok()
            }
            () = sleep(pause - jitter) => true,
        }
    }

    /// Learns, hears, closes and settles as far as that can be done now; tells whether more is to come.
    async fn follow(&self) -> Result<bool, String> {
        let Some(current) = self.layouts.current() else { return Ok(false) };
        if self.replica.recovery().is_in_doubt() {
            // What this node has said of its part may be lost as well.
            return Ok(true);
        }
        let failed = |error: StoreError| error.to_string();
        self.learn(&current).await.map_err(failed)?;
        if !current.live().is_changing() {
            return Ok(false);
        }
        let settled = self.hear(&current).await;
        // What follows from the older versions is to be noted before they are forgotten.
        self.close().await.map_err(failed)?;
        if let Some(settled) = settled {
            self.layouts.settle(settled).await.map_err(failed)?;
            return Ok(true);
        }
        let Some(current) = self.layouts.current() else { return Ok(false) };
        if current.live().is_changing() && current.live().is_over() {
            sometimes!("change: every partition has moved");
            tracing::info!(layout = %current.version(), "every partition has moved");
            self.layouts.settle(current.version()).await.map_err(failed)?;
        }
        Ok(true)
    }

    /// Takes over what this node lacks and can get now, and hands over what belongs to others; tells whether more is to come.
    async fn move_data(self: &Arc<Self>, round: &mut Round) -> bool {
        if self.replica.recovery().is_in_doubt() {
            return true;
        }
        self.pull(&mut round.pulled).await;
        let Some(current) = self.layouts.current() else { return false };
        self.sweep(&current, &mut round.swept).await || current.live().is_changing()
    }

    /// Raises the fence to the newest version that is known here, and says so.
    async fn learn(&self, current: &Current) -> Result<(), StoreError> {
        let version = current.version();
        if self.replica.fence() < version {
            dawdle!("change: a pause before the fence is raised");
            self.replica.raise_fence(version).await;
        }
        self.judge_disk(current).await?;
        let base = current.live().oldest();
        let forgotten = self.layouts.said().forgotten(self.me, base);
        if !forgotten.is_empty() {
            // Others count on what it does not remember: its disk was emptied or set back.
            sometimes!("change: a node had lost its memory of one");
            self.layouts.abstain().await?;
            self.replica.lose_all(forgotten, Reason::RolledBack).await?;
        }
        let (me, recovery, base) = (self.me, self.replica.recovery().clone(), base.version());
        let learn = move |said: &mut Said, current: &Current| {
            let (before, live) = (said.clone(), current.live());
            // No further than was asked for above; another layout that was learned meanwhile has its own turn.
            said.settle(base);
            if said.fence < version && version == current.version() {
                for partition in live.owned_by(me) {
                    let moving = live.partition(partition);
                    let mut part = said.part(partition);
                    part.helped = false;
                    // Whom it has helped it may have forgotten with its copy.
                    let passes = moving.passes_over(me).filter(|_| !recovery.is_lost(partition, &Leaves::ALL));
                    part.passed_over = passes.or(part.passed_over);
                    said.set(partition, part);
                }
                said.fence = version;
            }
            *said != before
        };
        if self.layouts.say(learn).await? && current.live().is_changing() {
            sometimes!("change: a node learned of a newer layout");
            tracing::info!(layout = %version, "a change of layout has begun: partitions move");
        }
        Ok(())
    }

    /// Whether this disk is the one that this node has always lived on, or it is known what it lacks of what these layouts gave to it.
    pub(super) fn is_judged(&self, current: &Current) -> bool {
        let judged = self.replica.recovery().judged();
        let is_other = |disk| disk != self.layouts.disk();
        let names_another = |placed: &Placed| placed.layout.member(self.me).is_some_and(|me| is_other(me.disk));
        let is_suspect = judged.is_some() || current.live().versions().iter().any(|placed| names_another(placed));
        !is_suspect || judged >= Some(self.suspect_up_to(current))
    }

    /// The newest layout that this node may have known before its disk was set back or exchanged: what was chosen after enough members had
    /// told it which layouts there are, it has not.
    fn suspect_up_to(&self, current: &Current) -> LayoutVersion {
        let known = self.layouts.known_when_caught_up();
        known.map_or(current.version(), |known| known.min(current.version()))
    }

    /// A disk that was set back or exchanged lacks what the node has taken under layouts that it has yet to learn, too: of each of them, before
    /// it is acted on.
    async fn judge_disk(&self, current: &Current) -> Result<(), StoreError> {
        if self.is_judged(current) {
            return Ok(());
        }
        let (version, live) = (current.version(), current.live());
        // Until enough members have said which layouts there are, each one that is learned may be one that the node knew before.
        self.layouts.abstain().await?;
        let (known, suspect) = (self.replica.recovery().judged().unwrap_or_default(), self.suspect_up_to(current));
        let owned = |placed: &Placed| placed.ring().owned_by(self.me);
        let suspects = live.versions().iter().filter(|placed| placed.version() <= suspect);
        let (judged, learned): (Vec<_>, Vec<_>) = suspects.partition(|placed| placed.version() <= known);
        let judged: BTreeSet<Partition> = judged.into_iter().flat_map(|placed| owned(placed)).collect();
        let learned: BTreeSet<Partition> = learned.into_iter().flat_map(|placed| owned(placed)).collect();
        let lost: Vec<Partition> = learned.difference(&judged).copied().collect();
        sometimes!("change: a layout was learned on another disk", !lost.is_empty());
        self.replica.lose_learned(lost, version).await
    }

    /// Hears what the other members say. A version up to which every change is over, if one of them knows that.
    async fn hear(&self, current: &Arc<Current>) -> Option<LayoutVersion> {
        let live = current.live();
        let others: Vec<NodeId> = live.members().into_iter().filter(|node| *node != self.me).collect();
        let reachable = self.reachable(&others);
        let ask = async |node: &NodeId| {
            let digest = live.said().get(node).map_or(0, |said| said.digest());
            (*node, self.ask(current, *node, GetSaid { digest }).await)
        };
        let mut settled = live.oldest().version();
        for (node, answer) in join_all(reachable.iter().map(ask)).await {
            match answer {
                Ok(SaidNow { said: Some(said) }) => {
                    if said.settled <= current.version() {
                        settled = settled.max(said.settled);
                    }
                    self.layouts.hear_said(node, said);
                }
                Ok(SaidNow { said: None }) => {}
                Err(why) => tracing::debug!(%node, why, "it does not say how its part of the change goes"),
            }
        }
        (settled > live.oldest().version()).then_some(settled)
    }

    /// Notes what follows from what is known now: of which partitions this node is ready, and that reads of older versions are refused from
    /// now on where that may be.
    async fn close(&self) -> Result<(), StoreError> {
        self.lost_copies().await?;
        let me = self.me;
        let close = move |said: &mut Said, current: &Current| {
            let (before, live) = (said.clone(), current.live());
            for partition in live.owned_by(me) {
                let moving = live.partition(partition);
                let mut part = said.part(partition);
                if let Some(version) = moving.may_close(me) {
                    sometimes!("change: reads have moved to a newer layout");
                    part.closed = version;
                }
                // Of the oldest one it is taken for granted, which says nothing.
                let mut versions = live.versions()[1..].iter().rev().map(|placed| placed.version());
                part.ready = part.ready.max(versions.find(|at| moving.is_ready(me, *at)).unwrap_or_default());
                said.set(partition, part);
            }
            *said != before
        };
        self.layouts.say(close).await.map(drop)
    }

    /// Of every partition that is lost as a whole this node answers no read of an older version from now on: with its copy it may have
    /// forgotten that it had closed that. It gives again what an older version gave to it, once that was brought back.
    pub(super) async fn lost_copies(&self) -> Result<(), StoreError> {
        let (me, recovery) = (self.me, self.replica.recovery().clone());
        let lose = move |said: &mut Said, current: &Current| {
            let (before, live) = (said.clone(), current.live());
            if !live.is_changing() {
                return false;
            }
            for partition in live.owned_by(me) {
                if !recovery.is_lost(partition, &Leaves::ALL) || !live.partition(partition).is_former_owner(me) {
                    continue;
                }
                sometimes!("change: a copy was lost in the midst of it");
                let mut part = said.part(partition);
                (part.closed, part.lost) = (said.fence, true);
                said.set(partition, part);
            }
            *said != before
        };
        self.layouts.say(lose).await.map(drop)
    }

    /// Takes over what this node lacks of the partitions that it owns now: first those that it is not ready for, and of these in turn, so
    /// that an older owner that does not give holds up no other partition.
    async fn pull(self: &Arc<Self>, last: &mut Option<Partition>) {
        let Some(current) = self.layouts.current() else { return };
        self.transfers.begin(&current);
        let (mut calls, mut begun, mut under_way) = (Calls::new(), 0, 0);
        let is_ready = |partition: Partition| current.live().partition(partition).is_ready(self.me, current.version());
        let most = buggify!("change: one partition is taken over in a round", PULLS_AT_ONCE, 1);
        for partition in in_turn(current.live().owned_by(self.me), *last, is_ready) {
            let moving = current.live().partition(partition);
            let from = self.reachable(&moving.lacks(self.me));
            // Nobody is left who could push; but others are ready.
            let restore = from.is_empty() && moving.may_be_restored(self.me);
            if from.is_empty() && !restore {
                continue;
            }
            // What is lost first comes back from all who may hold it, or a push would count before the loss is made up for.
            if !self.replica.recovery().recovering(partition).is_empty() {
                let why = "it has lost some of it and has to get that back first";
                self.transfers.stopped(Transfer::TakeOver, self.me, partition, why);
                continue;
            }
            if begun == most {
                break;
            }
            begun += 1;
            self.transfers.goes_on(self.me, partition);
            self.transfers.takes_over();
            *last = Some(partition);
            if under_way == AT_ONCE {
                calls.next().await;
                under_way -= 1;
            }
            let (desk, current) = (self.clone(), current.clone());
            calls.push(async move {
                match restore {
                    true => desk.restore(&current, partition).await,
                    false => desk.take_over(&current, partition, from).await,
                }
            });
            under_way += 1;
        }
        while calls.next().await.is_some() {}
    }

    async fn take_over(&self, current: &Arc<Current>, partition: Partition, sources: Vec<NodeId>) {
        let mut got = Vec::new();
        for from in sources {
            match self.take_over_from(current, partition, from).await {
                Ok(one) => got.push(one),
                Err(why) => {
                    tracing::debug!(%from, %partition, "not taken over: {why}");
                    self.transfers.stopped(Transfer::TakeOver, from, partition, &why);
                }
            }
        }
        if got.is_empty() {
            return;
        }
        let version = current.version();
        let sources: Vec<NodeId> = got.iter().map(|got| got.from).collect();
        // What says that something is here is synced after it.
        let note = move |said: &mut Said, _: &Current| {
            if said.fence != version {
                // Pushes count for the newest version only (L3).
                return false;
            }
            let mut part = said.part(partition);
            let before = part.clone();
            part.got.extend(got);
            let news = part != before;
            said.set(partition, part);
            news
        };
        match self.layouts.say(note).await {
            Ok(true) => {
                sometimes!("change: a push is held durably");
                sources.iter().for_each(|from| self.transfers.completed(Transfer::TakeOver, *from, partition));
                self.count_if_ready(current, partition);
            }
            Ok(false) => sometimes!("change: a push came too late"),
            Err(error) => self.not_noted(partition, &error),
        }
    }

    /// Counts a partition for which this node was not ready, and is now.
    fn count_if_ready(&self, before: &Current, partition: Partition) {
        let Some(now) = self.layouts.current() else { return };
        let is_ready = |current: &Current| current.live().partition(partition).is_ready(self.me, before.version());
        if !is_ready(before) && is_ready(&now) && before.live().partition(partition).takes_over(self.me) {
            self.transfers.is_ready();
        }
    }

    fn not_noted(&self, partition: Partition, error: &StoreError) {
        let why = format!("what was taken over cannot be noted: {error}");
        tracing::warn!(%partition, "{why}");
        self.transfers.stopped(Transfer::TakeOver, self.me, partition, &why);
    }

    /// Takes over a partition from other owners of the newest version, which are ready for it.
    async fn restore(&self, current: &Arc<Current>, partition: Partition) {
        let version = current.version();
        let moving = current.live().partition(partition);
        let (needed, mut restorers) = (moving.restorers_needed(version), 0);
        let others: Vec<NodeId> = moving
            .owners()
            .iter()
            .copied()
            .filter(|node| *node != self.me && moving.is_ready(*node, version))
            .collect();
        for from in self.reachable(&others) {
            if restorers == needed {
                break;
            }
            match self.restore_from(current, partition, from).await {
                Ok(()) => restorers += 1,
                Err(why) => {
                    tracing::debug!(%from, %partition, "not restored: {why}");
                    self.transfers.stopped(Transfer::TakeOver, from, partition, &why);
                }
            }
        }
        if restorers < needed {
            return;
        }
        let note = move |said: &mut Said, _: &Current| {
            let mut part = said.part(partition);
            let news = said.fence == version && part.restored < version;
            part.restored = if news { version } else { part.restored };
            said.set(partition, part);
            news
        };
        match self.layouts.say(note).await {
            Ok(_) => {
                sometimes!("change: an owner was restored from other owners of the same version");
                self.count_if_ready(current, partition);
            }
            Err(error) => self.not_noted(partition, &error),
        }
    }

    async fn restore_from(&self, current: &Arc<Current>, partition: Partition, from: NodeId) -> Result<(), String> {
        let version = current.version();
        let before = self.ask(current, from, GetReadiness { partition }).await?;
        if !before.ready.contains(&version) || !before.lost.0.is_empty() {
            return Err(format!("it is not ready for layout {version}, has lost something, or cannot read something"));
        }
        self.replica.rebuild(partition).await.map_err(|refusal| refusal.to_string())?;
        self.exchange_all(current, partition, from, Transfer::TakeOver).await?;
        match self.ask(current, from, GetReadiness { partition }).await? {
            after if after == before => Ok(()),
            _ => Err("it has lost something since".into()),
        }
    }

    /// Exchanges a partition completely with an older owner that refuses older writes by then.
    async fn take_over_from(&self, current: &Arc<Current>, partition: Partition, from: NodeId) -> Result<Got, String> {
        let version = current.version();
        let PushBegun { fence, strong, lost, losses } = self.ask(current, from, BeginPush { partition }).await?;
        if fence != version {
            return Err(format!("it acts on layout {fence}"));
        }
        if !lost.0.is_empty() {
            sometimes!("change: an older owner had lost something");
            return Err(
                "it has lost some of it and has to get that back first, or a newer version of quorate has written some"
                    .into(),
            );
        }
        self.replica.rebuild(partition).await.map_err(|refusal| refusal.to_string())?;
        self.exchange_all(current, partition, from, Transfer::TakeOver).await?;
        dawdle!("change: a pause before a push ends");
        let PushEnded = self.ask(current, from, EndPush { partition, version, losses }).await?;
        Ok(Got { version, from, strong })
    }

    /// Afterwards both hold, durably, what either held of a partition when it began, but for what the other one's disk has refused; or, of what
    /// is handed over, the other one does.
    async fn exchange_all(
        &self,
        current: &Arc<Current>,
        partition: Partition,
        peer: NodeId,
        moves: Transfer,
    ) -> Result<super::pair::Exchanged, String> {
        let pair = Pair { desk: self, current, peer, partition, paced: true, moves: Some(moves) };
        let compared = pair.compare().await?;
        let leaves = compared.differ.or(&compared.unknown);
        if leaves.is_empty() { Ok(Default::default()) } else { pair.exchange(&leaves).await }
    }

    /// Hands over what lies here and belongs to others, and drops it. Tells whether something is left.
    async fn sweep(&self, current: &Arc<Current>, swept: &mut Swept) -> bool {
        if swept.version != current.version() {
            *swept = Swept { version: current.version(), partitions: BTreeSet::new() };
        }
        let mut left = 0;
        for partition in (0..current.partitions()).map(Partition) {
            if current.primaries(partition).contains(&self.me) || swept.partitions.contains(&partition) {
                continue;
            }
            // The part in a newer change comes first.
            if self.layouts.current().is_some_and(|newest| newest.version() > current.version()) {
                return true;
            }
            let live = current.live();
            if live.is_changing() {
                let moving = live.partition(partition);
                let closed = self.layouts.said().part(partition).closed == current.version();
                if moving.is_former_owner(self.me) && !(closed && moving.is_over()) {
                    left += 1;
                    continue;
                }
            }
            match self.hand_over(current, partition).await {
                Ok(()) => {
                    swept.partitions.insert(partition);
                    self.transfers.is_gone(partition);
                }
                Err((with, why)) => {
                    tracing::debug!(%partition, %with, "not handed over: {why}");
                    self.transfers.stopped(Transfer::HandOver, with, partition, &why);
                    left += 1;
                }
            }
        }
        self.state().of_others = Some((current.version(), left));
        left > 0
    }

    /// Whoever does not take it is named with the reason; this node itself if the reason lies here.
    async fn hand_over(&self, current: &Arc<Current>, partition: Partition) -> Result<(), (NodeId, String)> {
        let refused = |refusal: NotApplied| (self.me, refusal.to_string());
        let former = current.live().partition(partition).is_former_owner(self.me);
        let version = current.version();
        let drop_copy = move |said: &mut Said, current: &Current| {
            let mut part = said.part(partition);
            let news = current.version() == version && current.live().is_changing() && !part.dropped;
            part.dropped |= news;
            said.set(partition, part);
            news
        };
        if former || self.replica.holds_any(partition).await.map_err(refused)? {
            self.layouts.say(drop_copy).await.map_err(|error| (self.me, error.to_string()))?;
        }
        // Nothing comes in from here on, so that what is handed over is all that goes: not even what a former owner is still sent under an
        // older layout, or an exchange under way brings.
        self.replica.give_up(partition, version).await;
        if !self.replica.holds_any(partition).await.map_err(refused)? {
            return Ok(());
        }
        self.replica.rebuild(partition).await.map_err(refused)?;
        for owner in current.primaries(partition) {
            self.hand_over_to(current, partition, *owner).await.map_err(|why| (*owner, why))?;
            self.transfers.completed(Transfer::HandOver, *owner, partition);
        }
        let layouts = self.layouts.clone();
        let still = move || layouts.current().is_some_and(|current| current.version() == version);
        let records = self.replica.drop_records(partition, still.clone()).await.map_err(refused)?;
        if !still() {
            return Err((self.me, "a newer layout came in between".into()));
        }
        sometimes!("change: a former owner dropped its copy");
        tracing::debug!(%partition, records, "its owners hold all of it: dropped here");
        Ok(())
    }

    async fn hand_over_to(&self, current: &Arc<Current>, partition: Partition, owner: NodeId) -> Result<(), String> {
        let before = self.ask(current, owner, GetReadiness { partition }).await?.losses;
        self.exchange_all(current, partition, owner, Transfer::HandOver).await?.unsettled()?;
        self.have_synced(current, owner).await?;
        // Another process of it may sync what the first one has lost.
        if self.ask(current, owner, GetReadiness { partition }).await?.losses != before {
            sometimes!("change: an owner had started anew before it synced");
            return Err(format!("{owner} has lost something since, or has started anew"));
        }
        Ok(())
    }

    /// Has a node sync what it holds, whatever its durability mode and whether or not anything was sent to it: a copy that is durable here
    /// goes for it. To take hints, if only none, ends with that.
    async fn have_synced(&self, current: &Current, owner: NodeId) -> Result<(), String> {
        let nothing = HandOver { label: current.label(), entries: Vec::new() };
        let synced = self.peers.ask(owner, self.random.u64(), nothing, CALL_TIMEOUT).await;
        synced.map(drop).map_err(|error| format!("{owner} has not synced what it holds: {error}"))
    }

    /// What an older owner says before a new one takes over what it holds.
    pub(super) fn begins_push(&self, partition: Partition) -> Result<PushBegun, NotApplied> {
        let current = self.layouts.known()?;
        let (moving, newest) = (current.live().partition(partition), current.version());
        // Of the same moment as what is looked at.
        let fence = current.live().said().get(&self.me).map_or(LayoutVersion::NONE, |said| said.fence);
        let Some(strong) = moving.pushes(self.me) else {
            let why = match fence < newest {
                true => format!("it acts on layout {fence}, and has yet to follow to {newest}"),
                false => format!("it holds nothing of partition {partition} that an older layout gave to it"),
            };
            return Err(NotApplied::NotServing { node: self.me, why });
        };
        // Counted first: what is found to be lost in between makes the push void.
        let losses = self.losses(partition);
        Ok(PushBegun { fence, strong, lost: LeafSet(self.replica.withholds(partition)), losses })
    }

    /// Changes whenever something of the partition is lost, and with every start.
    fn losses(&self, partition: Partition) -> (u64, u64) {
        (self.beacons.life(), self.replica.recovery().count(partition))
    }

    /// Lets a push count, if the version that it is for is still the newest one here (L3). What that means for taking the version back is
    /// on the disk before (L11).
    pub(super) async fn ends_push(
        &self,
        to: NodeId,
        EndPush { partition, version, losses }: EndPush,
    ) -> Result<PushEnded, NotApplied> {
        // What was lost since was not listed, nor what a newer release has written; and another process does not know what this one had lost.
        if losses != self.losses(partition) || !self.replica.withholds(partition).is_empty() {
            let why =
                format!("{} has lost some of partition {partition} since, or found some that it cannot read", self.me);
            return Err(NotApplied::NotServing { node: self.me, why });
        }
        let help = move |said: &mut Said, current: &Current| {
            let mut part = said.part(partition);
            let helps = said.fence == version && !part.helped && current.live().partition(partition).needs(to, version);
            part.helped |= helps;
            said.set(partition, part);
            helps
        };
        let storage = |error: StoreError| NotApplied::Storage { node: self.me, why: error.to_string() };
        self.layouts.say(help).await.map_err(storage)?;
        match self.layouts.said().fence {
            fence if fence == version => Ok(PushEnded),
            fence => Err(NotApplied::StaleLayout { need: fence, had: version }),
        }
    }

    /// Answers a [`GetReadiness`](crate::peer_wire::heal::GetReadiness).
    pub(super) fn readiness(&self, partition: Partition) -> Result<Readiness, NotApplied> {
        let current = self.layouts.known()?;
        let ready = current.live().partition(partition).held_for(self.me);
        // Counted first, as for a push.
        let losses = self.losses(partition);
        Ok(Readiness { ready, lost: LeafSet(self.replica.withholds(partition)), losses })
    }
}

/// Partitions in the order in which they are taken over: those that the node is not ready for come first, and of these the ones after the
/// last one that was tried.
fn in_turn(
    mut partitions: Vec<Partition>,
    last: Option<Partition>,
    is_ready: impl Fn(Partition) -> bool,
) -> Vec<Partition> {
    partitions.sort_by_cached_key(|partition| (is_ready(*partition), Some(*partition) <= last));
    partitions
}

/// Partitions that are taken over at a time.
const AT_ONCE: usize = 4;
/// Partitions that are taken over before the node looks again how the change stands.
const PULLS_AT_ONCE: usize = 64;
/// Between two looks at a change under way.
const PAUSE: Duration = Duration::from_millis(500);
/// After news, before others are asked again: each push that is noted here is news.
const FOLLOW_MIN: Duration = Duration::from_millis(100);
/// After news, before more data is moved.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Between two looks while there is nothing to do.
const REST: Duration = Duration::from_secs(10);

#[cfg(test)]
#[path = "change_test.rs"]
mod tests;
