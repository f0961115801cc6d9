//! The layout that this node knows: staged by an operator, accepted, chosen; and spread to those that lack it.
//!
//! What is here answers operators and peers. `LayoutStore` makes the rules durable and talks to nobody; a background task of `gossip`
//! counts who holds an accepted layout until it is chosen, asks peers for it while this node has none, and offers a chosen one
//! to members that were away. Later layouts are decided by `apply` and `acceptor`, and spread in the same way; `abort` goes back to one.

mod abort;
mod acceptor;
mod apply;
mod ask;
mod context_keys;
mod current;
mod gossip;
mod history;
mod said;
mod staged;
mod store;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quorate_wire::ids::{DiskId, LayoutVersion, NodeId, Partition};
use quorate_wire::random::Random;
use quorate_wire::{LayoutCommand, LayoutReport, NotApplied, Progress};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

pub use self::acceptor::{CHAIN_KEY, stored_layouts};
use self::ask::{ask, reason};
pub use self::current::Current;
use self::gossip::LayoutGossip;
use self::store::Stages;
#[cfg(test)]
pub(crate) use self::store::store_chosen;
pub use self::store::{FIRST_KEY, stored_context_keys};
pub(crate) use self::store::{LayoutStore, Obstacle};
use crate::membership::{Liveness, Membership};
use crate::peer_wire::{AcceptFirstLayout, FirstLayoutAccepted, GetLayout, LayoutState};
use crate::peers::Peers;
use crate::request_memory::RETRY_AFTER_MS;
use crate::showing;
use crate::store::StoreError;
use crate::supervise;
use quorate_core::changes::Change;
use quorate_core::context_keys::ContextKeys;
use quorate_core::layout::{Layout, ZONE_LEN_MAX};
use quorate_core::ownership::{Label, Role};
use quorate_core::ring::WEIGHT_MAX;
use quorate_core::staging::{Staged, StagedMember};

/// The service. Clones share it; the background task ends with the last one.
#[derive(Debug, Clone)]
pub struct Layouts(Arc<Service>);

#[derive(Debug)]
struct Service {
    store: Arc<LayoutStore>,
    peers: Peers,
    random: Random,
    /// One operator's command at a time; peers do not wait for it.
    commands: AsyncMutex<()>,
    liveness: watch::Receiver<Arc<Liveness>>,
    /// When others were last asked for a context key that was not known.
    keys_asked_for: AsyncMutex<Option<Instant>>,
    /// How many may wait for what is shown: every client may ask for it.
    shows: Semaphore,
    task: JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How long one question to a peer may take: operators wait for the slowest of the members, and a sync can stall.
const PEER_TIMEOUT: Duration = Duration::from_secs(2);
/// How many may wait for what is shown at a time; it is seldom computed, so that one is hardly ever there for long.
const SHOWS_MAX: usize = 64;

impl Layouts {
    /// Starts the background task. Must be called within a runtime.
    pub(crate) fn start(store: Arc<LayoutStore>, peers: Peers, membership: &Membership, random: Random) -> Self {
        let gossip = LayoutGossip {
            store: store.clone(),
            peers: peers.clone(),
            liveness: membership.liveness(),
            digests: membership.layout_digests(),
            held: BTreeMap::new(),
            random: random.fork(),
        };
        let task = supervise::spawn("layouts", gossip.run());
        let (commands, keys_asked_for) = (AsyncMutex::new(()), AsyncMutex::new(None));
        let shows = Semaphore::new(SHOWS_MAX);
        let liveness = membership.liveness();
        Self(Arc::new(Service { store, peers, random, commands, liveness, keys_asked_for, shows, task }))
    }

    /// Ends the background task. To be called when the node stops: the handler of peers' requests usually holds a clone, so
    /// that the last one may never be dropped.
    pub fn shutdown(&self) {
        self.0.task.abort();
    }

    /// The layout that is in force; nothing until a version 1 is chosen.
    pub fn current(&self) -> Option<Arc<Current>> {
        self.0.store.current()
    }

    /// The layouts in force, for a question of a peer that was made under `label`.
    ///
    /// # Errors
    /// When there is none, or the question names newer ones than this node knows, which learns them soon.
    pub(crate) fn under(&self, label: Label) -> Result<Arc<Current>, NotApplied> {
        let current = self.known()?;
        if label.high > current.version() {
            self.0.store.hear_of(label.high);
            let (node, newer, known) = (self.0.store.me.node, label.high, current.version());
            let why = format!("it does not know layout {newer} yet, the newest that it knows is {known}");
            return Err(NotApplied::NotServing { node, why });
        }
        Ok(current)
    }

    /// The layouts in force.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn known(&self) -> Result<Arc<Current>, NotApplied> {
        self.current().ok_or_else(|| {
            let why = self.not_serving().unwrap_or_else(|| "there is no layout yet".into());
            NotApplied::NotServing { node: self.0.store.me.node, why }
        })
    }

    /// This node helps to decide on layouts after the first one from now on.
    pub(crate) fn allow_changes(&self) {
        self.0.store.allows_changes.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// This node's disk.
    pub(crate) fn disk(&self) -> DiskId {
        self.0.store.me.disk
    }

    /// Whether this node, which `asked` let answer a read at a version, may do so still, now that it has looked at what it holds: it may have
    /// closed the version since, and dropped its copy. It says that it has before the first record goes.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn still_speaks(
        &self,
        asked: &Arc<Current>,
        partition: Partition,
        at: LayoutVersion,
    ) -> Result<(), NotApplied> {
        let current = self.known()?;
        // Nothing has changed, which is the rule, and spares a look.
        if Arc::ptr_eq(asked, &current) {
            return Ok(());
        }
        current.may_serve(self.0.store.me.node, partition, Role::Reads(at))
    }

    /// A peer knows that every change up to this version is over.
    pub(crate) fn hear_settled(&self, version: LayoutVersion) {
        self.0.store.hear_settled(version);
    }

    /// A peer has refused a read of a partition: it has closed every version below this one.
    pub(crate) fn hear_closed(&self, from: NodeId, partition: Partition, need: LayoutVersion) {
        self.0.store.hear_closed(from, partition, need);
    }

    /// A peer knows this version: if it is newer than what this node knows, others are asked for it at once.
    pub(crate) fn hear_of(&self, version: LayoutVersion) {
        self.0.store.hear_of(version);
    }

    /// Whether a peer was heard to know a newer layout than this node.
    pub(crate) fn is_behind(&self) -> bool {
        self.current().is_none_or(|current| current.version() < self.0.store.heard_of())
    }

    /// Waits until this node knows every version that it has heard of, or the time is over.
    pub(crate) async fn catch_up(&self, until: Instant) {
        let (mut current, heard) = (self.watch(), self.0.store.heard_of());
        let caught_up =
            |current: &Option<Arc<Current>>| current.as_ref().is_some_and(|current| current.version() >= heard);
        // An error means that the node ends.
        let _ = timeout_at(until, current.wait_for(caught_up)).await;
    }

    /// As [`current`](Self::current), with news of changes.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Current>>> {
        self.0.store.current.subscribe()
    }

    /// How far the change under way is, if there is one.
    pub(crate) fn progress(&self) -> Option<Progress> {
        let current = self.current()?;
        let liveness = Arc::clone(&self.0.liveness.borrow());
        let up = |node: NodeId| node == self.0.store.me.node || liveness.get(&node).is_some_and(|peer| peer.up);
        Some(showing::progress(current.progress()?, current.version(), up))
    }

    /// See [`LayoutStore::settle`].
    ///
    /// # Errors
    /// When that cannot be stored; nothing was forgotten then.
    pub(crate) async fn settle(&self, version: LayoutVersion) -> Result<(), StoreError> {
        self.0.store.settle(version).await
    }

    /// Why this node serves no data as far as the layout goes; nothing if it does.
    pub fn not_serving(&self) -> Option<String> {
        self.0.store.told().not_serving.clone()
    }

    /// Answers a peer's [`AcceptFirstLayout`]. The layout is durable before the answer is yes.
    pub(crate) async fn accept_first(
        &self,
        layout: Layout,
        keys: ContextKeys,
    ) -> Result<FirstLayoutAccepted, NotApplied> {
        self.0.store.accept(layout, keys).await.map(|()| FirstLayoutAccepted)
    }

    /// Answers a peer's [`GetLayout`].
    pub(crate) fn state(&self) -> LayoutState {
        self.0.store.state()
    }

    /// Answers an operator's command. There is no answer when the disk failed in the midst of it: what is stored is unknown then,
    /// every refusal would say that nothing was changed, and the process is about to end.
    ///
    /// # Errors
    /// Why nothing of it was carried out. An `apply` that reached too few members is no error: those that accepted the layout keep it,
    /// the report says which, and the same `apply` can be repeated until it succeeds.
    pub async fn command(&self, command: LayoutCommand, timeout: Duration) -> Result<LayoutReport, NotApplied> {
        // The answer has to arrive in time, too.
        let outcome = self.carry_out(command, Instant::now() + timeout * 3 / 4).await;
        if outcome.is_err() && self.0.store.state.lock().await.failed.is_some() {
            std::future::pending::<()>().await;
        }
        outcome
    }

    async fn carry_out(&self, command: LayoutCommand, until: Instant) -> Result<LayoutReport, NotApplied> {
        let store = &self.0.store;
        if !command.changes() {
            let Ok(_place) = self.0.shows.try_acquire() else {
                return Err(NotApplied::Overloaded { retry_after_ms: RETRY_AFTER_MS });
            };
            if matches!(command, LayoutCommand::Abort { .. }) {
                return Box::pin(self.look_at_abort()).await;
            }
            let history = if command == LayoutCommand::History { store.history().await } else { Vec::new() };
            let under_way = match self.current().filter(|_| command == LayoutCommand::Show) {
                Some(current) => store.showing.under_way(current).await,
                None => None,
            };
            return Ok(LayoutReport { history, progress: self.progress(), under_way, ..store.report().await });
        }
        let _one = self.0.commands.lock().await;
        match (command, store.may_stage().await) {
            (LayoutCommand::Show | LayoutCommand::History | LayoutCommand::Abort { version: None }, _) => {
                unreachable!("answered above")
            }
            (LayoutCommand::RotateContextKey, _) => return self.rotate_context_key().await,
            (LayoutCommand::Abort { version: Some(version) }, _) => {
                return Box::pin(self.abort(version, until)).await;
            }
            (LayoutCommand::Apply { version }, Ok(Stages::Next)) if !self.is_about_the_first(version) => {
                return Box::pin(self.apply_next(version, until)).await;
            }
            (LayoutCommand::Apply { version }, _) => return Box::pin(self.apply(version)).await,
            (command, Ok(Stages::First)) => self.stage_first(command).await?,
            (command, Ok(Stages::Next)) => self.stage_next(command).await?,
            (_, Err(refusal)) => return Err(refusal),
        }
        Ok(store.report().await)
    }

    /// Whether an apply repeats that of the first layout, which tells the members that do not hold it yet.
    fn is_about_the_first(&self, version: LayoutVersion) -> bool {
        version == LayoutVersion(1) && self.current().is_none_or(|current| current.version() == version)
    }

    async fn stage_first(&self, command: LayoutCommand) -> Result<(), NotApplied> {
        let store = &self.0.store;
        match command {
            LayoutCommand::StageJoin { node, addr, zone, weight } => {
                check_zone(&zone)?;
                check_weight(weight)?;
                let disk = self.disk_at(node, addr).await?;
                store.stage(move |staged| staged.join(node, StagedMember { disk, addr, zone, weight })).await?;
                self.0.peers.learn(node, addr);
                Ok(())
            }
            LayoutCommand::StageSettings { n, partitions, r, w } => {
                store.stage(move |staged| staged.settings(n, partitions, r, w)).await
            }
            LayoutCommand::Revert => store.stage(|staged| *staged = Staged::default()).await,
            LayoutCommand::StageLeave { .. }
            | LayoutCommand::StageReplace { .. }
            | LayoutCommand::StageWeight { .. }
            | LayoutCommand::StageZone { .. } => Err(refused(
                "there is no layout in force that it could change: before version 1 is applied, stage the members that are wanted, each \
                 with its zone and weight, by `layout stage join` (a second one takes the place of the first); `layout revert` begins anew"
                    .into(),
            )),
            LayoutCommand::Show
            | LayoutCommand::History
            | LayoutCommand::Apply { .. }
            | LayoutCommand::Abort { .. }
            | LayoutCommand::RotateContextKey => unreachable!("it stages nothing"),
        }
    }

    async fn stage_next(&self, command: LayoutCommand) -> Result<(), NotApplied> {
        let store = &self.0.store;
        let change = match command {
            LayoutCommand::StageJoin { node, addr, zone, weight } => {
                check_zone(&zone)?;
                check_weight(weight)?;
                let disk = self.disk_at(node, addr).await?;
                self.0.peers.learn(node, addr);
                Change::Join { node, disk, addr, zone, weight }
            }
            LayoutCommand::StageReplace { old, new, addr } => {
                let disk = self.disk_at(new, addr).await?;
                self.0.peers.learn(new, addr);
                Change::Replace { old, new, disk, addr }
            }
            LayoutCommand::StageLeave { node } => Change::Leave(node),
            LayoutCommand::StageWeight { node, weight } => {
                check_weight(weight)?;
                Change::Weight(node, weight)
            }
            LayoutCommand::StageZone { node, zone } => {
                check_zone(&zone)?;
                Change::Zone(node, zone)
            }
            LayoutCommand::StageSettings { partitions: Some(asked), .. } => {
                let now = self.current().map_or(0, |current| current.partitions());
                return Err(refused(format!(
                    "there are {now} partitions, and their number never changes once layout 1 is in force: {asked} are not possible"
                )));
            }
            LayoutCommand::StageSettings { n, partitions: None, r, w } => Change::Replicas { n, r, w },
            LayoutCommand::Revert => return store.revert_changes().await,
            LayoutCommand::Show
            | LayoutCommand::History
            | LayoutCommand::Apply { .. }
            | LayoutCommand::Abort { .. }
            | LayoutCommand::RotateContextKey => unreachable!("it stages nothing"),
        };
        store.stage_change(change).await
    }

    /// Asks who listens at an address: it must be that node, of this cluster, without another first layout.
    async fn disk_at(&self, node: NodeId, addr: SocketAddr) -> Result<DiskId, NotApplied> {
        let hello = self.0.peers.hello_at(addr, PEER_TIMEOUT).await.map_err(|error| {
            refused(format!("{node} does not answer at {addr} ({error}): start it first, it must tell its disk id"))
        })?;
        if hello.cluster != self.0.store.me.cluster {
            return Err(refused(format!(
                "{addr} is a node of cluster {}, this is {}",
                hello.cluster, self.0.store.me.cluster
            )));
        }
        if hello.node != node {
            return Err(refused(format!("{} listens at {addr}, not {node}", hello.node)));
        }
        // Once ours is in force, a node that waits to join knows it.
        let ours = self.current().and(self.0.store.accepted_first());
        if let Some(first) = hello.first_layout.filter(|first| Some(*first) != ours) {
            return Err(refused(format!(
                "{node} has accepted {first} as layout 1 already and never accepts another one"
            )));
        }
        Ok(hello.disk)
    }

    async fn apply(&self, version: LayoutVersion) -> Result<LayoutReport, NotApplied> {
        let store = &self.0.store;
        let layout = store.to_apply(version).await?;
        let others: Vec<NodeId> =
            layout.members.iter().map(|member| member.node).filter(|node| *node != store.me.node).collect();
        for member in &layout.members {
            self.0.peers.learn(member.node, member.addr);
        }
        let mut reasons = BTreeMap::new();
        if store.accepted_first().is_none() {
            // What a node accepts it accepts for ever: first see that the others can and will.
            self.look_before(&layout, &others, &mut reasons).await?;
            store.accept(layout.clone(), ContextKeys::first(self.0.random.array())).await?;
            reasons.clear();
        }
        let accept = AcceptFirstLayout { layout: layout.clone(), keys: store.known_keys() };
        let answers = ask(&self.0.peers, &self.0.random, &others, &accept).await;
        let mut warnings = Vec::new();
        for (node, answer) in answers {
            match answer {
                Ok(FirstLayoutAccepted) => {
                    // No refusal: this node and that one hold the layout for ever.
                    if let Err(error) = store.hear(node, Some(layout.clone()), false, ContextKeys::default()).await {
                        warnings
                            .push(format!("{} could not note that {node} holds the layout: {error}", store.me.node));
                    }
                }
                Err(error) => drop(reasons.insert(node, reason(error))),
            }
        }
        let mut report = store.report().await;
        report.warnings.extend(warnings);
        let missing = store.missing().await;
        report.missing = missing
            .into_iter()
            .map(|node| (node, reasons.remove(&node).unwrap_or_else(|| "it has not answered yet".into())))
            .collect();
        if !store.is_chosen().await {
            // No error: something has been changed for ever, and the report says what.
            report.warnings.push(format!(
                "layout 1 ({}) is not in force yet: {} of {} members hold it durably, {} are needed. Those that hold it keep it; \
                 repeat `layout apply --version 1` when the others can be reached: it is the same layout, so that repeating is \
                 safe",
                layout.hash().short(),
                report.holding.len(),
                layout.members.len(),
                layout.majority(),
            ));
        }
        Ok(report)
    }

    /// Refuses an apply that could not end well, while nobody has accepted anything because of it.
    async fn look_before(
        &self,
        layout: &Layout,
        others: &[NodeId],
        reasons: &mut BTreeMap<NodeId, String>,
    ) -> Result<(), NotApplied> {
        let hash = layout.hash();
        let mut ready = 1;
        for (node, answer) in ask(&self.0.peers, &self.0.random, others, &GetLayout).await {
            match answer {
                Ok(LayoutState { accepted: Some(other), .. }) if other.hash() != hash => {
                    return Err(refused(format!(
                        "{node} has accepted {} as layout 1 already and never accepts another one, this one is {hash}",
                        other.hash()
                    )));
                }
                Ok(LayoutState { .. }) => ready += 1,
                Err(error) => drop(reasons.insert(node, reason(error))),
            }
        }
        if ready >= layout.majority() {
            return Ok(());
        }
        Err(refused(format!(
            "only {ready} of {} members can be reached, {} must hold layout 1; missing: {}. Nobody has accepted it yet; \
             repeating `layout apply --version 1` is safe",
            layout.members.len(),
            layout.majority(),
            list(reasons.iter().map(|(node, why)| (*node, why.as_str()))),
        )))
    }
}

fn check_zone(zone: &str) -> Result<(), NotApplied> {
    if zone.is_empty() || zone.len() > ZONE_LEN_MAX {
        return Err(refused(format!("the zone has {} bytes, 1 to {ZONE_LEN_MAX} are possible", zone.len())));
    }
    Ok(())
}

fn check_weight(weight: u32) -> Result<(), NotApplied> {
    if weight == 0 || weight > WEIGHT_MAX {
        return Err(refused(format!("the weight is {weight}, 1 to {WEIGHT_MAX} are possible")));
    }
    Ok(())
}

fn refused(why: String) -> NotApplied {
    NotApplied::Refused { why }
}

fn list<'a>(missing: impl Iterator<Item = (NodeId, &'a str)>) -> String {
    missing.map(|(node, why)| format!("{node} ({why})")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_members_are_refused_before_anybody_is_asked() {
        assert!(check_zone("a").is_ok() && check_weight(1).is_ok());
        for (zone, why) in [("", "0 bytes"), (&"z".repeat(65), "65 bytes")] {
            assert!(check_zone(zone).expect_err("bad").to_string().contains(why));
        }
        for (weight, why) in [(0, "weight is 0"), (1001, "1001")] {
            assert!(check_weight(weight).expect_err("bad").to_string().contains(why));
        }
    }
}
