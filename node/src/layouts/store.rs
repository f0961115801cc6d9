//! The layout and context keys as this node holds them, on its disk and in memory.
//!
//! The rules are [`Bootstrap`]'s; here they are made durable, and shown to operators. Whatever is answered was synced before. Nothing in
//! this file talks to a peer, so that handshakes may ask it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use quorate_wire::codec;
use quorate_wire::ids::{LayoutVersion, NodeId, Partition};
use quorate_wire::{LayoutReport, NotApplied};
use quorate_wire::{dawdle, sometimes};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tracing::Instrument;

use super::acceptor::Later;
use super::current::Current;
use super::gossip::Task;
use super::{refused, said};
use crate::membership::Liveness;
use crate::peer_wire::LayoutState;
use crate::showing::Showing;
use crate::store::{Executor, Store, StoreError, SyncFailed, Tree};
use crate::supervise;
use quorate_core::bootstrap::{Bootstrap, Heard, Me, Offer};
use quorate_core::chain::Chain;
use quorate_core::context_keys::ContextKeys;
use quorate_core::layout::{Layout, LayoutHash};
use quorate_core::live::Said;
use quorate_core::ring::MEMBERS_MAX;
use quorate_core::staging::Staged;

/// What is kept, and what is told of it: everything but the talk with peers.
pub(crate) struct LayoutStore {
    pub(super) me: Me,
    pub(super) disk: Arc<dyn Store>,
    pub(super) executor: Executor,
    pub(super) state: AsyncMutex<State>,
    pub(super) told: Mutex<Told>,
    pub(super) current: watch::Sender<Option<Arc<Current>>>,
    /// What contexts are sealed and opened with; known before the layout is published.
    pub(super) keys: watch::Sender<Arc<ContextKeys>>,
    /// Counts what gives the background task something to do: an offer that was accepted.
    pub(super) accepts: watch::Sender<u64>,
    /// The newest version that any peer was heard to know.
    heard: AtomicU64,
    /// What this node had said before it started.
    said_before: Said,
    pub(super) sync_failed: SyncFailed,
    pub(super) showing: Showing,
    /// Whether this node helps to decide on a layout after the first one.
    pub(super) allows_changes: AtomicBool,
    /// See [`Layouts::vote_unless`](super::Layouts::vote_unless).
    pub(super) no_vote: OnceLock<Obstacle>,
    /// See [`Abstention`](super::acceptor::Abstention).
    pub(super) is_behind: watch::Sender<bool>,
    /// See [`Layouts::known_when_caught_up`](super::Layouts::known_when_caught_up).
    pub(super) caught_up: watch::Sender<Option<LayoutVersion>>,
}

/// Tells why something must not be done now, if it must not.
pub(crate) type Obstacle = Box<dyn Fn() -> Option<String> + Send + Sync>;

#[derive(Debug)]
pub(super) struct State {
    pub(super) bootstrap: Bootstrap,
    pub(super) staged: Staged,
    /// What comes after the first layout.
    pub(super) later: Later,
    /// Those that are stored with the accepted layout.
    pub(super) keys: ContextKeys,
    /// Why nothing can be stored any more: what the disk holds after a failed sync is unknown.
    pub(super) failed: Option<StoreError>,
    /// Why the newest change was not stored; nothing was changed on the disk, and it may be tried again.
    pub(super) refused: Option<StoreError>,
}

/// The part that is read without waiting for the disk.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) accepted: Option<Layout>,
    pub(super) chosen: bool,
    pub(super) not_serving: Option<String>,
}

/// The first layout as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredFirst {
    pub(super) layout: Layout,
    pub(super) chosen: bool,
    /// At least one.
    pub(super) keys: ContextKeys,
}

/// Has a store hold a layout as chosen, as a node leaves it behind.
#[cfg(test)]
pub(crate) fn store_chosen(store: &dyn Store, layout: Layout) {
    let keys = ContextKeys::first([7; 32]);
    let first = StoredFirst { layout, chosen: true, keys };
    store.insert(Tree::Meta, FIRST_KEY, &codec::encode(&first)).expect("memory takes everything");
}

/// Keys in [`Tree::Meta`]. The first one is public for whoever looks at disks from outside.
#[doc(hidden)]
pub const FIRST_KEY: &[u8] = b"layout/first";
const STAGED_KEY: &[u8] = b"layout/staged";

/// The context keys beside a first layout as it is stored under [`FIRST_KEY`]. For whoever looks at disks from outside.
///
/// # Errors
/// When it is none.
#[doc(hidden)]
pub fn stored_context_keys(first: &Bytes) -> Result<ContextKeys, String> {
    codec::decode::<StoredFirst>(first).map(|first| first.keys).map_err(|error| error.to_string())
}

impl std::fmt::Debug for LayoutStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayoutStore").field("me", &self.me).field("told", &self.told).finish_non_exhaustive()
    }
}

impl LayoutStore {
    /// Loads what the disk holds. The first executor is the disk's, the second one computes what is only shown. `failed` is called
    /// when a sync has failed: nothing can be stored then until the node is started anew.
    ///
    /// # Errors
    /// When the disk cannot be read, or holds something else than a layout.
    pub(crate) async fn open(
        disk: Arc<dyn Store>,
        (executor, computing): (Executor, Executor),
        me: Me,
        failed: SyncFailed,
    ) -> Result<Self, StoreError> {
        let reader = disk.clone();
        let (first, staged, later, said_before) = executor
            .run(move || {
                let first: Option<StoredFirst> = load(&*reader, FIRST_KEY)?;
                if let Some(problem) = first.as_ref().and_then(|first| first.layout.problems().into_iter().next()) {
                    return Err(StoreError::Corrupt(format!("the stored layout 1 is none: {problem}")));
                }
                if first.as_ref().is_some_and(|first| first.keys.is_empty()) {
                    return Err(StoreError::Corrupt("the stored layout 1 has no context key".into()));
                }
                let staged: Option<Staged> = load(&*reader, STAGED_KEY)?;
                let chosen = first.as_ref().filter(|first| first.chosen).map(|first| &first.layout);
                let later = Later::load(&*reader, me, chosen)?;
                let said = said::load(&*reader)?.unwrap_or_default();
                Ok::<_, StoreError>((first, staged.unwrap_or_default(), later, said))
            })
            .await?;
        let (is_behind, caught_up) = (later.abstention.is_behind, later.abstention.known());
        let (first, keys) = first.map(|first| ((first.layout, first.chosen), first.keys)).unzip();
        let bootstrap = Bootstrap::new(me, first);
        let keys = keys.filter(|_| bootstrap.accepted().is_some()).unwrap_or_default();
        let opened = Self {
            me,
            disk,
            executor,
            state: AsyncMutex::new(State { bootstrap, staged, later, keys, failed: None, refused: None }),
            told: Mutex::new(Told::default()),
            current: watch::Sender::new(None),
            keys: watch::Sender::default(),
            accepts: watch::Sender::new(0),
            heard: AtomicU64::new(0),
            said_before,
            sync_failed: failed,
            showing: Showing::new(computing),
            allows_changes: AtomicBool::new(false),
            no_vote: OnceLock::new(),
            is_behind: watch::Sender::new(is_behind),
            caught_up: watch::Sender::new(caught_up),
        };
        let state = opened.state.lock().await;
        opened.tell(&state).await;
        drop(state);
        Ok(opened)
    }

    /// The layout that is in force; nothing until a version 1 is chosen.
    pub(crate) fn current(&self) -> Option<Arc<Current>> {
        self.current.borrow().clone()
    }

    /// A peer knows this version: if it is newer than what is known here, the background task asks for it at once.
    pub(super) fn hear_of(&self, version: LayoutVersion) {
        self.heard.fetch_max(version.0, Ordering::Relaxed);
        if self.current().is_some_and(|current| current.version() < version) {
            self.accepts.send_modify(|accepts| *accepts += 1);
        }
    }

    /// Nobody who was asked knows a newer version than this one: who asks for one that is heard of later asks anew.
    pub(super) fn hear_no_more_than(&self, known: LayoutVersion, heard: LayoutVersion) {
        // What was heard while they were asked stands.
        let _ = self.heard.compare_exchange(heard.0, known.0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Why this node must not vote on the next layout now, if it must not.
    pub(super) fn no_vote(&self) -> Option<String> {
        self.no_vote.get().and_then(|obstacle| obstacle())
    }

    /// The newest version that any peer was heard to know.
    pub(super) fn heard_of(&self) -> LayoutVersion {
        LayoutVersion(self.heard.load(Ordering::Relaxed))
    }

    /// See [`Layouts::hear_closed`](super::Layouts::hear_closed). Who says that an older version is closed has seen enough owners of the
    /// newer one ready: reads go there from now on.
    pub(super) fn hear_closed(&self, from: NodeId, partition: Partition, need: LayoutVersion) {
        self.hear_of(need);
        let hear = |said: &mut BTreeMap<NodeId, Arc<Said>>| {
            let mut of_peer = said.get(&from).map(|said| (**said).clone()).unwrap_or_default();
            let mut part = of_peer.part(partition);
            if part.closed >= need {
                return false;
            }
            part.closed = need;
            of_peer.set(partition, part);
            said.insert(from, Arc::new(of_peer));
            true
        };
        if self.current().is_some_and(|current| current.live().is_changing() && current.version() >= need) {
            self.change_said(hear);
        }
    }

    /// A peer knows that every change up to this version is over. The background task makes that durable when it hears it again.
    pub(super) fn hear_settled(&self, version: LayoutVersion) {
        self.current.send_if_modified(|current| {
            let Some(known) = current else { return false };
            let over = known.over(version);
            let news = over.live().known_over() != known.live().known_over();
            if news {
                *current = Some(Arc::new(over));
            }
            news
        });
    }

    /// Publishes what nodes have said of the change under way; `change` tells whether it has changed anything.
    pub(super) fn change_said(&self, change: impl FnOnce(&mut BTreeMap<NodeId, Arc<Said>>) -> bool) {
        self.current.send_if_modified(|current| {
            let Some(known) = current else { return false };
            let mut said = known.live().said().clone();
            let changed = change(&mut said);
            if changed {
                *current = Some(Arc::new(known.with_said(said)));
            }
            changed
        });
    }

    /// The hash of the version 1 that this node has accepted, if any (for its hello).
    pub(crate) fn accepted_first(&self) -> Option<LayoutHash> {
        self.told().accepted.as_ref().map(Layout::hash)
    }

    /// Why a peer that has accepted `other` as its version 1 cannot be talked to; nothing if there is no contradiction.
    pub(crate) fn first_hash_conflicts(&self, other: Option<LayoutHash>) -> Option<String> {
        let (mine, other) = (self.accepted_first()?, other?);
        (mine != other).then(|| {
            format!(
                "{} has accepted {mine} as layout 1, the peer has accepted {other}: they belong to different layouts for ever",
                self.me.node
            )
        })
    }

    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("nothing panics while it is locked")
    }

    pub(super) fn state(&self) -> LayoutState {
        let told = self.told();
        LayoutState { accepted: told.accepted.clone(), chosen: told.chosen, keys: self.known_keys() }
    }

    /// Publishes what follows from the state; to be called under its lock after every step.
    pub(super) async fn tell(&self, state: &State) {
        let bootstrap = &state.bootstrap;
        if **self.keys.borrow() != state.keys {
            self.keys.send_replace(Arc::new(state.keys.clone()));
        }
        let accepted = bootstrap.accepted().map(|(layout, _)| layout.clone());
        let live = state.later.chain.as_ref().map(Chain::layouts).unwrap_or_default();
        let published = self.current().is_some_and(|current| {
            let published = current.live().versions().iter();
            published.len() == live.len() && published.zip(live).all(|(placed, layout)| placed.layout == *layout)
        });
        if !live.is_empty() && !published {
            self.publish(live.to_vec()).await;
        }
        let stored = |error: &StoreError| format!("the layout could not be stored: {error}");
        let refused = |why: String| state.refused.as_ref().map(stored).unwrap_or(why);
        let not_serving = state.failed.as_ref().map(stored).or_else(|| bootstrap.not_serving(live).map(refused));
        *self.told() = Told { accepted, chosen: bootstrap.is_chosen(), not_serving };
    }

    /// These layouts are live, oldest first; to be called under the lock of the state.
    pub(super) async fn publish(&self, layouts: Vec<Layout>) {
        let before = self.current();
        let current = self.executor.run(move || Current::new(&layouts, BTreeMap::new(), before.as_deref())).await;
        let current = current.expect("a layout without problems has a ring, and others are not accepted");
        // What was said while the rings were built is not lost.
        self.current.send_modify(|known| {
            let own = (self.me.node, Arc::new(self.said_before.clone()));
            let said = match known {
                Some(known) => known.live().said().clone(),
                None => [own].into(),
            };
            *known = Some(Arc::new(current.with_said(said)));
        });
    }

    /// Accepts a proposed layout with its context keys, durably.
    pub(super) async fn accept(self: &Arc<Self>, layout: Layout, keys: ContextKeys) -> Result<(), NotApplied> {
        let store = Arc::clone(self);
        to_the_end(async move { store.accept_now(layout, keys).await }).await
    }

    async fn accept_now(&self, layout: Layout, keys: ContextKeys) -> Result<(), NotApplied> {
        let mut state = self.state.lock().await;
        if let Some(error) = &state.failed {
            return Err(self.storage(error));
        }
        match state.bootstrap.offer(&layout).map_err(refused)? {
            Offer::Held => {
                self.join_keys(&mut state, &keys).await.map_err(|error| self.storage(&error))?;
            }
            Offer::Store if keys.is_empty() => return Err(refused(NO_KEY.into())),
            Offer::Store => {
                let stored = self.keep_first(&mut state, layout, false, keys).await;
                stored.map_err(|error| self.storage(&error))?;
                self.tell(&state).await;
                // What the background task itself hears does not wake it, or it would never pause.
                self.accepts.send_modify(|accepts| *accepts += 1);
            }
        }
        Ok(())
    }

    /// Takes in what a peer said; tells whether that was news.
    pub(super) async fn hear(
        self: &Arc<Self>,
        from: NodeId,
        accepted: Option<Layout>,
        chosen: bool,
        keys: ContextKeys,
    ) -> Result<bool, StoreError> {
        let store = Arc::clone(self);
        to_the_end(async move { store.hear_now(from, accepted, chosen, keys).await }).await
    }

    async fn hear_now(
        &self,
        from: NodeId,
        accepted: Option<Layout>,
        chosen: bool,
        keys: ContextKeys,
    ) -> Result<bool, StoreError> {
        let mut state = self.state.lock().await;
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        let before = state.bootstrap.holding().len();
        match state.bootstrap.hear(from, accepted.as_ref(), chosen) {
            Heard::Nothing => {
                let mut news = state.bootstrap.holding().len() != before;
                // It holds the same layout, or none.
                news |= self.join_keys(&mut state, &keys).await?;
                if !news {
                    return Ok(false);
                }
            }
            Heard::Choose => {
                sometimes!("layouts: chosen by asking");
                let layout = state.bootstrap.accepted().expect("it chooses what it has accepted").0.clone();
                self.keep_first(&mut state, layout, true, keys).await?;
            }
            Heard::Learn(_) if keys.is_empty() => {
                tracing::warn!(peer = %from, "the peer's first layout is not taken over: {NO_KEY}");
                return Ok(false);
            }
            Heard::Learn(layout) => {
                sometimes!("layouts: learned from a peer");
                self.keep_first(&mut state, layout, true, keys).await?;
            }
            Heard::Refused(why) => {
                tracing::warn!(peer = %from, "the peer's first layout is refused: {why}");
                self.tell(&state).await;
                return Ok(false);
            }
        }
        self.tell(&state).await;
        Ok(true)
    }

    async fn keep_first(
        &self,
        state: &mut State,
        layout: Layout,
        chosen: bool,
        keys: ContextKeys,
    ) -> Result<(), StoreError> {
        let mut joined = state.keys.clone();
        joined.merge(&keys);
        let first = StoredFirst { layout, chosen, keys: joined };
        self.store_first(state, &first).await?;
        let (hash, members) = (first.layout.hash(), first.layout.members.len());
        tracing::info!(%hash, members, chosen, "layout 1 is stored");
        state.bootstrap.stored(first.layout, chosen);
        // One member is a majority of one.
        if !chosen && state.bootstrap.has_majority() {
            let layout = state.bootstrap.accepted().expect("just stored").0.clone();
            let chosen = StoredFirst { layout, chosen: true, keys: state.keys.clone() };
            self.store_first(state, &chosen).await?;
            state.bootstrap.stored(chosen.layout, true);
        }
        if state.bootstrap.is_chosen() && state.later.chain.is_none() {
            let (layout, _) = state.bootstrap.accepted().expect("it is chosen");
            state.later.chain = Some(Chain::new(layout.clone()));
        }
        Ok(())
    }

    /// Makes a first layout and its keys durable; from then on these keys are this node's.
    pub(super) async fn store_first(&self, state: &mut State, first: &StoredFirst) -> Result<(), StoreError> {
        self.keep(state, FIRST_KEY, codec::encode(first)).await?;
        state.keys = first.keys.clone();
        Ok(())
    }

    /// Inserts and syncs. After a failed sync nobody knows what the disk holds: then nothing is stored or answered any more.
    pub(super) async fn keep(&self, state: &mut State, key: &'static [u8], value: Bytes) -> Result<(), StoreError> {
        let disk = self.disk.clone();
        let job = move || match disk.insert(Tree::Meta, key, &value) {
            Ok(()) => disk.sync().map_err(|error| (error, true)),
            // What failed may have been the engine's end, which its next sync tells.
            Err(error) => Err((error, disk.sync().is_err())),
        };
        dawdle!("layouts: a pause before a layout is stored");
        match self.executor.run(job).await {
            Ok(()) => {
                state.refused = None;
                Ok(())
            }
            Err((error, unknown)) => {
                *if unknown { &mut state.failed } else { &mut state.refused } = Some(error.clone());
                self.tell(state).await;
                if unknown {
                    (self.sync_failed)(error.to_string());
                }
                Err(error)
            }
        }
    }

    pub(super) fn storage(&self, error: &StoreError) -> NotApplied {
        NotApplied::Storage { node: self.me.node, why: error.to_string() }
    }

    /// Which layout can be staged now.
    pub(super) async fn may_stage(&self) -> Result<Stages, NotApplied> {
        self.state.lock().await.may_stage()
    }

    pub(super) async fn stage(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Staged) + Send + 'static,
    ) -> Result<(), NotApplied> {
        let store = Arc::clone(self);
        to_the_end(async move { store.stage_now(change).await }).await
    }

    async fn stage_now(&self, change: impl FnOnce(&mut Staged)) -> Result<(), NotApplied> {
        let mut state = self.state.lock().await;
        if state.may_stage()? == Stages::Next {
            return Err(refused("layout 1 is in force, what is staged now is the next one".into()));
        }
        if let Some(error) = &state.failed {
            return Err(self.storage(error));
        }
        let mut staged = state.staged.clone();
        change(&mut staged);
        if staged.len() > MEMBERS_MAX {
            return Err(refused(format!("{MEMBERS_MAX} members are staged, there cannot be more")));
        }
        if let Some((what, asked, n)) = staged.impossible_floor() {
            return Err(NotApplied::QuorumImpossible { what: what.into(), asked, n });
        }
        let kept = self.keep(&mut state, STAGED_KEY, codec::encode(&staged)).await;
        kept.map_err(|error| self.storage(&error))?;
        state.staged = staged;
        Ok(())
    }

    /// The layout that an apply of this version is about: the accepted one, once there is one, else what is staged.
    pub(super) async fn to_apply(&self, version: LayoutVersion) -> Result<Layout, NotApplied> {
        let state = self.state.lock().await;
        if let Some(error) = &state.failed {
            return Err(self.storage(error));
        }
        if version != LayoutVersion(1) {
            return Err(refused(format!(
                "the current layout is {}, so that only version 1 can be applied",
                LayoutVersion::NONE
            )));
        }
        if let Some((layout, _)) = state.bootstrap.accepted() {
            return Ok(layout.clone());
        }
        if state.staged.is_empty() {
            return Err(refused("nothing is staged: begin with `layout stage join`".into()));
        }
        let layout = state.staged.layout(self.me.cluster);
        let problems = layout.problems();
        if !problems.is_empty() {
            return Err(refused(format!("the staged layout cannot be applied: {}", problems.join("; "))));
        }
        if layout.member(self.me.node).is_none() {
            return Err(refused(format!(
                "{} is not among the staged members: stage it as well, or stage and apply at one of them",
                self.me.node
            )));
        }
        Ok(layout)
    }

    pub(super) async fn missing(&self) -> Vec<NodeId> {
        self.state.lock().await.bootstrap.missing()
    }

    pub(super) async fn is_chosen(&self) -> bool {
        self.state.lock().await.bootstrap.is_chosen()
    }

    pub(super) async fn report(&self) -> LayoutReport {
        let state = self.state.lock().await;
        let accepted = state.bootstrap.accepted().map(|(layout, _)| layout.clone());
        let live: Vec<Layout> = state.later.chain.iter().flat_map(Chain::layouts).cloned().collect();
        let newest = live.last().cloned();
        // What is accepted is what the next apply is about, whatever was staged here.
        let mut problems = Vec::new();
        let staged = match (&newest, &accepted) {
            (Some(newest), _) => state.later.changes.draft(newest).unwrap_or_else(|why| {
                problems.push(why);
                None
            }),
            (None, Some(layout)) => Some(layout.clone()),
            (None, None) => (!state.staged.is_empty()).then(|| state.staged.layout(self.me.cluster)),
        };
        let mut seconds = Vec::new();
        if accepted.is_some() && newest.is_none() {
            seconds.extend(state.bootstrap.not_serving(&[]));
        }
        if staged.is_some() {
            seconds.extend(state.later.chain.as_ref().and_then(Chain::full));
        }
        // Of later versions gossip knows better who holds them than this node does.
        let first = newest.as_ref().is_none_or(|newest| newest.version == LayoutVersion(1));
        let holding = if first { state.bootstrap.holding() } else { Vec::new() };
        let context_keys = state.keys.names().iter().map(ToString::to_string).collect();
        drop(state);
        let shown = self.showing.of(newest, staged).await;
        seconds.extend(shown.warnings.iter().cloned());
        problems.extend(shown.problems.iter().cloned());
        LayoutReport {
            current: shown.current_view.clone(),
            staged: shown.staged_view.clone(),
            problems,
            missing: Vec::new(),
            holding,
            warnings: seconds,
            context_keys,
            live: live.iter().map(|layout| layout.version).collect(),
            moves: shown.moves.clone(),
            applied: None,
            history: Vec::new(),
            progress: None,
            abort: None,
            under_way: None,
        }
    }
}

impl State {
    pub(super) fn may_stage(&self) -> Result<Stages, NotApplied> {
        match self.bootstrap.accepted() {
            None => Ok(Stages::First),
            Some(_) if self.bootstrap.is_chosen() => Ok(Stages::Next),
            Some((_, hash)) => Err(refused(format!(
                "{hash} is accepted as layout 1, which cannot be taken back: repeat `layout apply --version 1` until it is in \
                 force"
            ))),
        }
    }
}

/// What can be staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stages {
    /// The members and settings of the first layout.
    First,
    /// Changes of the newest layout in force.
    Next,
}

pub(super) const SWITCHED_OFF: &str = "a layout that is in force is not changed here: in this release that is experimental, and works where a \
     majority of the members has layout_changes = \"experimental\" in its configuration";
const NO_KEY: &str = "it came without a context key, so that nobody could tell whose contexts are genuine";

impl LayoutStore {
    /// What the background task has to do. Members that the membership knows to be down are left alone until it knows better.
    pub(super) async fn task(&self, liveness: &Liveness) -> Task {
        let state = self.state.lock().await;
        if state.failed.is_some() {
            return Task::Rest;
        }
        let down = |node: &NodeId| liveness.get(node).is_some_and(|peer| !peer.up);
        let reachable = |nodes: Vec<NodeId>| nodes.into_iter().filter(|node| !down(node)).collect::<Vec<_>>();
        let bootstrap = &state.bootstrap;
        let live = state.later.chain.iter().flat_map(Chain::layouts);
        // Who has left for good need not be told what it was a member of.
        let named: BTreeSet<NodeId> = live.flat_map(|layout| &layout.members).map(|member| member.node).collect();
        let missing = || bootstrap.missing().into_iter().filter(|node| named.contains(node)).collect::<Vec<_>>();
        match bootstrap.accepted() {
            Some((layout, _)) if bootstrap.is_chosen() => match reachable(missing()) {
                nodes if nodes.is_empty() => Task::Rest,
                nodes => Task::Offer(nodes, layout.clone()),
            },
            Some(_) => Task::Ask(reachable(bootstrap.missing())),
            None => {
                let up = liveness.iter().filter(|(node, peer)| peer.up && **node != self.me.node);
                let up: BTreeSet<NodeId> = up.map(|(node, _)| *node).collect();
                if up.is_empty() { Task::Rest } else { Task::Ask(up.into_iter().collect()) }
            }
        }
    }
}

/// Does what must not be left half-done when nobody waits for it any more: what is on its way to the disk arrives there, so
/// that the state has to follow before the next step looks at it.
pub(super) async fn to_the_end<T: Send + 'static>(step: impl Future<Output = T> + Send + 'static) -> T {
    match supervise::spawn("layouts: a step", step.in_current_span()).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime ends, and this future with it.
        Err(_) => std::future::pending().await,
    }
}

pub(super) fn load<T: serde::de::DeserializeOwned>(store: &dyn Store, key: &[u8]) -> Result<Option<T>, StoreError> {
    let Some(bytes) = store.get(Tree::Meta, key)? else { return Ok(None) };
    let name = String::from_utf8_lossy(key);
    codec::decode(&bytes).map(Some).map_err(|error| StoreError::Corrupt(format!("{name}: {error}")))
}

#[cfg(test)]
#[path = "store_test.rs"]
pub(super) mod tests;
