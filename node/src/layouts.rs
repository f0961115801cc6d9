//! The layout that this node knows: staged by an operator, accepted, chosen; and spread to those that lack it.
//!
//! The rules are [`Bootstrap`]'s; here they are made durable, told to peers and shown to operators. Whatever is answered was
//! synced before. A background task counts who holds an accepted layout until it is chosen, asks peers for it while this node
//! has none, and offers a chosen one to members that were away.

mod context_keys;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use quorate_wire::codec;
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId, Partition};
use quorate_wire::random::Random;
use quorate_wire::{LayoutCommand, LayoutReport, NotApplied, RouteTable};
use quorate_wire::{buggify, dawdle, sometimes};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tracing::Instrument;

use crate::membership::{LayoutDigests, Liveness, Membership};
use crate::peer_wire::{AcceptFirstLayout, Ask, FirstLayoutAccepted, GetLayout, LayoutState};
use crate::peers::{AskError, Peers};
use crate::recovery::Reading;
use crate::request_memory::RETRY_AFTER_MS;
use crate::showing::Showing;
use crate::store::{Executor, Store, StoreError, SyncFailed, Tree};
use crate::supervise;
use quorate_core::bootstrap::{Bootstrap, Heard, Me, Offer};
use quorate_core::context_keys::ContextKeys;
use quorate_core::layout::{Layout, LayoutHash, ZONE_LEN_MAX};
use quorate_core::ring::{MEMBERS_MAX, N_MAX, Ring, WEIGHT_MAX};
use quorate_core::staging::{Staged, StagedMember};

/// A chosen layout and what follows from it.
#[derive(Debug, Clone)]
pub struct Current {
    /// The layout.
    pub layout: Layout,
    /// Its hash.
    pub hash: LayoutHash,
    /// Its ring.
    pub ring: Ring,
    /// What clients are told of it.
    pub table: RouteTable,
    /// The best fallbacks of each partition, found when they are first asked for.
    fallbacks: Vec<OnceLock<Vec<NodeId>>>,
}

/// How many fallbacks of a partition are ever asked: as many as there can be primaries, so that each of them can have one.
const FALLBACKS_MAX: usize = N_MAX as usize;

impl Current {
    fn new(layout: Layout) -> Result<Self, String> {
        let ring = layout.ring()?;
        let fallbacks = (0..ring.partitions()).map(|_| OnceLock::new()).collect();
        Ok(Self { hash: layout.hash(), table: layout.table_of(&ring), ring, layout, fallbacks })
    }

    /// Which writes a read of `r` replicas must not miss.
    pub fn reading(&self, r: u8) -> Reading {
        Reading::of(self.layout.n, self.layout.w, r)
    }

    /// Who stands in for the primaries of a partition: other zones first, then in the order of the ring's walk; at most nine.
    pub fn fallbacks(&self, partition: Partition) -> &[NodeId] {
        self.fallbacks[usize::from(partition.0)].get_or_init(|| {
            let mut list = self.ring.preference_list(partition).split_off(usize::from(self.ring.n()));
            list.truncate(FALLBACKS_MAX);
            list
        })
    }
}

/// The service. Clones share it; the background task ends with the last one.
#[derive(Debug, Clone)]
pub struct Layouts(Arc<Service>);

#[derive(Debug)]
struct Service {
    desk: Arc<Desk>,
    peers: Peers,
    random: Random,
    /// One operator's command at a time; peers do not wait for it.
    commands: AsyncMutex<()>,
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
/// How many peers are asked at once: bounds what one round costs this node, and a round over all 1,000 members to half a minute.
const PEERS_AT_ONCE: usize = 64;
/// The pause after the first round that changed nothing; it doubles up to [`PAUSE_MAX`], and every one is shortened by a random
/// part of a half, so that nodes that started together do not stay in step.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// How many may wait for what is shown at a time; it is seldom computed, so that one is hardly ever there for long.
const SHOWS_MAX: usize = 64;
/// The longest pause. News of a peer that comes up ends it at once.
const PAUSE_MAX: Duration = Duration::from_secs(20);

impl Layouts {
    /// Loads what the store holds and starts the background task. Must be called within a runtime. The first executor is the store's,
    /// the second one computes what is only shown. `failed` is called when a sync has failed: nothing can be
    /// stored then until the node is started anew.
    ///
    /// # Errors
    /// When the store cannot be read, or holds something else than a layout.
    pub async fn start(
        store: Arc<dyn Store>,
        (executor, computing): (Executor, Executor),
        me: (NodeId, DiskId, ClusterId),
        peers: Peers,
        membership: Membership,
        random: Random,
        failed: SyncFailed,
    ) -> Result<Self, StoreError> {
        let (node, disk, cluster) = me;
        let mut desk = Desk::open(store, executor, Me { node, disk, cluster }).await?;
        desk.sync_failed = Some(failed);
        desk.showing = Showing::new(computing);
        let desk = Arc::new(desk);
        let spread = Spread {
            desk: desk.clone(),
            peers: peers.clone(),
            liveness: membership.liveness(),
            digests: membership.layout_digests(),
            held: BTreeMap::new(),
            random: random.fork(),
        };
        let task = supervise::spawn("layouts", spread.run());
        let (commands, keys_asked_for) = (AsyncMutex::new(()), AsyncMutex::new(None));
        let shows = Semaphore::new(SHOWS_MAX);
        Ok(Self(Arc::new(Service { desk, peers, random, commands, keys_asked_for, shows, task })))
    }

    /// Ends the background task. To be called when the node stops: the handler of peers' requests usually holds a clone, so
    /// that the last one may never be dropped.
    pub fn shutdown(&self) {
        self.0.task.abort();
    }

    /// The layout that is in force; nothing until a version 1 is chosen.
    pub fn current(&self) -> Option<Arc<Current>> {
        self.0.desk.current.borrow().clone()
    }

    /// As [`current`](Self::current), with news of changes.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Current>>> {
        self.0.desk.current.subscribe()
    }

    /// The hash of the version 1 that this node has accepted, if any (for its hello).
    pub fn accepted_first(&self) -> Option<LayoutHash> {
        self.0.desk.told().accepted.as_ref().map(Layout::hash)
    }

    /// Why this node serves no data as far as the layout goes; nothing if it does.
    pub fn not_serving(&self) -> Option<String> {
        self.0.desk.told().not_serving.clone()
    }

    /// Why a peer that has accepted `other` as its version 1 cannot be talked to; nothing if there is no contradiction.
    pub fn first_hash_conflicts(&self, other: Option<LayoutHash>) -> Option<String> {
        let (mine, other) = (self.accepted_first()?, other?);
        (mine != other).then(|| {
            format!(
                "{} has accepted {mine} as layout 1, the peer has accepted {other}: they belong to different layouts for ever",
                self.0.desk.me.node
            )
        })
    }

    /// Answers a peer's [`AcceptFirstLayout`]. The layout is durable before the answer is yes.
    pub(crate) async fn accept_first(
        &self,
        layout: Layout,
        keys: ContextKeys,
    ) -> Result<FirstLayoutAccepted, NotApplied> {
        self.0.desk.accept(layout, keys).await.map(|()| FirstLayoutAccepted)
    }

    /// Answers a peer's [`GetLayout`].
    pub(crate) fn state(&self) -> LayoutState {
        self.0.desk.state()
    }

    /// Answers an operator's command. There is no answer when the disk failed in the midst of it: what is stored is unknown then,
    /// every refusal would say that nothing was changed, and the process is about to end.
    ///
    /// # Errors
    /// Why nothing of it was carried out. An `apply` that reached too few members is no error: those that accepted the layout keep it,
    /// the report says which, and the same `apply` can be repeated until it succeeds.
    pub async fn command(&self, command: LayoutCommand) -> Result<LayoutReport, NotApplied> {
        let outcome = self.carry_out(command).await;
        if outcome.is_err() && self.0.desk.state.lock().await.failed.is_some() {
            std::future::pending::<()>().await;
        }
        outcome
    }

    async fn carry_out(&self, command: LayoutCommand) -> Result<LayoutReport, NotApplied> {
        let desk = &self.0.desk;
        if matches!(command, LayoutCommand::Show) {
            let Ok(_place) = self.0.shows.try_acquire() else {
                return Err(NotApplied::Overloaded { retry_after_ms: RETRY_AFTER_MS });
            };
            return Ok(desk.report().await);
        }
        let _one = self.0.commands.lock().await;
        match command {
            LayoutCommand::Show => unreachable!("answered above"),
            LayoutCommand::StageJoin { node, addr, zone, weight } => {
                desk.may_stage().await?;
                check_member(&zone, weight)?;
                let disk = self.disk_at(node, addr).await?;
                desk.stage(move |staged| staged.join(node, StagedMember { disk, addr, zone, weight })).await?;
                self.0.peers.learn(node, addr);
            }
            LayoutCommand::StageSettings { n, partitions, r, w } => {
                desk.stage(move |staged| staged.settings(n, partitions, r, w)).await?;
            }
            LayoutCommand::Revert => desk.stage(|staged| *staged = Staged::default()).await?,
            LayoutCommand::Apply { version } => return self.apply(version).await,
            LayoutCommand::RotateContextKey => return self.rotate_context_key().await,
        }
        Ok(desk.report().await)
    }

    /// Asks who listens at an address: it must be that node, of this cluster, without another first layout.
    async fn disk_at(&self, node: NodeId, addr: SocketAddr) -> Result<DiskId, NotApplied> {
        let hello = self.0.peers.hello_at(addr, PEER_TIMEOUT).await.map_err(|error| {
            refused(format!("{node} does not answer at {addr} ({error}): start it first, it must tell its disk id"))
        })?;
        if hello.cluster != self.0.desk.me.cluster {
            return Err(refused(format!(
                "{addr} is a node of cluster {}, this is {}",
                hello.cluster, self.0.desk.me.cluster
            )));
        }
        if hello.node != node {
            return Err(refused(format!("{} listens at {addr}, not {node}", hello.node)));
        }
        if let Some(first) = hello.first_layout {
            return Err(refused(format!(
                "{node} has accepted {first} as layout 1 already and never accepts another one"
            )));
        }
        Ok(hello.disk)
    }

    async fn apply(&self, version: LayoutVersion) -> Result<LayoutReport, NotApplied> {
        let desk = &self.0.desk;
        let layout = desk.to_apply(version).await?;
        let others: Vec<NodeId> =
            layout.members.iter().map(|member| member.node).filter(|node| *node != desk.me.node).collect();
        for member in &layout.members {
            self.0.peers.learn(member.node, member.addr);
        }
        let mut reasons = BTreeMap::new();
        if self.accepted_first().is_none() {
            // What a node accepts it accepts for ever: first see that the others can and will.
            self.look_before(&layout, &others, &mut reasons).await?;
            desk.accept(layout.clone(), ContextKeys::first(self.0.random.array())).await?;
            reasons.clear();
        }
        let accept = AcceptFirstLayout { layout: layout.clone(), keys: desk.known_keys() };
        let answers = ask(&self.0.peers, &self.0.random, &others, &accept).await;
        let mut warnings = Vec::new();
        for (node, answer) in answers {
            match answer {
                Ok(FirstLayoutAccepted) => {
                    // No refusal: this node and that one hold the layout for ever.
                    if let Err(error) = desk.hear(node, Some(layout.clone()), false, ContextKeys::default()).await {
                        warnings.push(format!("{} could not note that {node} holds the layout: {error}", desk.me.node));
                    }
                }
                Err(error) => drop(reasons.insert(node, reason(error))),
            }
        }
        let mut report = desk.report().await;
        report.warnings.extend(warnings);
        let missing = desk.missing().await;
        report.missing = missing
            .into_iter()
            .map(|node| (node, reasons.remove(&node).unwrap_or_else(|| "it has not answered yet".into())))
            .collect();
        if !desk.is_chosen().await {
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

/// What is kept, and what is told of it: everything but the talk with peers.
struct Desk {
    me: Me,
    store: Arc<dyn Store>,
    executor: Executor,
    state: AsyncMutex<State>,
    told: Mutex<Told>,
    current: watch::Sender<Option<Arc<Current>>>,
    /// What contexts are sealed and opened with; known before the layout is published.
    keys: watch::Sender<Arc<ContextKeys>>,
    /// Counts what gives the background task something to do: an offer that was accepted.
    accepts: watch::Sender<u64>,
    sync_failed: Option<SyncFailed>,
    showing: Showing,
}

#[derive(Debug)]
struct State {
    bootstrap: Bootstrap,
    staged: Staged,
    /// Those that are stored with the accepted layout.
    keys: ContextKeys,
    /// Why nothing can be stored any more: what the disk holds after a failed sync is unknown.
    failed: Option<StoreError>,
    /// Why the newest change was not stored; nothing was changed on the disk, and it may be tried again.
    refused: Option<StoreError>,
}

/// The part that is read without waiting for the disk.
#[derive(Debug, Default)]
struct Told {
    accepted: Option<Layout>,
    chosen: bool,
    not_serving: Option<String>,
}

/// The first layout as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct StoredFirst {
    layout: Layout,
    chosen: bool,
    /// At least one.
    keys: ContextKeys,
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

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("me", &self.me).field("told", &self.told).finish_non_exhaustive()
    }
}

impl Desk {
    async fn open(store: Arc<dyn Store>, executor: Executor, me: Me) -> Result<Self, StoreError> {
        let reader = store.clone();
        let (first, staged) = executor
            .run(move || {
                let first: Option<StoredFirst> = load(&*reader, FIRST_KEY)?;
                if let Some(problem) = first.as_ref().and_then(|first| first.layout.problems().into_iter().next()) {
                    return Err(StoreError::Corrupt(format!("the stored layout 1 is none: {problem}")));
                }
                if first.as_ref().is_some_and(|first| first.keys.is_empty()) {
                    return Err(StoreError::Corrupt("the stored layout 1 has no context key".into()));
                }
                let staged: Option<Staged> = load(&*reader, STAGED_KEY)?;
                Ok::<_, StoreError>((first, staged.unwrap_or_default()))
            })
            .await?;
        let (first, keys) = first.map(|first| ((first.layout, first.chosen), first.keys)).unzip();
        let bootstrap = Bootstrap::new(me, first);
        let keys = keys.filter(|_| bootstrap.accepted().is_some()).unwrap_or_default();
        let desk = Self {
            me,
            store,
            executor,
            state: AsyncMutex::new(State { bootstrap, staged, keys, failed: None, refused: None }),
            told: Mutex::new(Told::default()),
            current: watch::Sender::new(None),
            keys: watch::Sender::default(),
            accepts: watch::Sender::new(0),
            sync_failed: None,
            showing: Showing::new(Executor::Inline),
        };
        let state = desk.state.lock().await;
        desk.tell(&state).await;
        drop(state);
        Ok(desk)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("nothing panics while it is locked")
    }

    fn state(&self) -> LayoutState {
        let told = self.told();
        LayoutState { accepted: told.accepted.clone(), chosen: told.chosen, keys: self.known_keys() }
    }

    /// Publishes what follows from the state; to be called under its lock after every step.
    async fn tell(&self, state: &State) {
        let bootstrap = &state.bootstrap;
        if **self.keys.borrow() != state.keys {
            self.keys.send_replace(Arc::new(state.keys.clone()));
        }
        let accepted = bootstrap.accepted().map(|(layout, _)| layout.clone());
        let chosen = accepted.clone().filter(|_| bootstrap.is_chosen());
        if let Some(layout) = chosen
            && self.current.borrow().is_none()
        {
            let current = self.executor.run(move || Current::new(layout)).await;
            let current = current.expect("a layout without problems has a ring, and others are not accepted");
            self.current.send_replace(Some(Arc::new(current)));
        }
        let stored = |error: &StoreError| format!("the layout could not be stored: {error}");
        let refused = |why: String| state.refused.as_ref().map(stored).unwrap_or(why);
        let not_serving = state.failed.as_ref().map(stored).or_else(|| bootstrap.not_serving().map(refused));
        *self.told() = Told { accepted, chosen: bootstrap.is_chosen(), not_serving };
    }

    /// Accepts a proposed layout with its context keys, durably.
    async fn accept(self: &Arc<Self>, layout: Layout, keys: ContextKeys) -> Result<(), NotApplied> {
        let desk = Arc::clone(self);
        to_the_end(async move { desk.accept_now(layout, keys).await }).await
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
    async fn hear(
        self: &Arc<Self>,
        from: NodeId,
        accepted: Option<Layout>,
        chosen: bool,
        keys: ContextKeys,
    ) -> Result<bool, StoreError> {
        let desk = Arc::clone(self);
        to_the_end(async move { desk.hear_now(from, accepted, chosen, keys).await }).await
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
        Ok(())
    }

    /// Makes a first layout and its keys durable; from then on these keys are this node's.
    async fn store_first(&self, state: &mut State, first: &StoredFirst) -> Result<(), StoreError> {
        self.keep(state, FIRST_KEY, codec::encode(first)).await?;
        state.keys = first.keys.clone();
        Ok(())
    }

    /// Inserts and syncs. After a failed sync nobody knows what the disk holds: then nothing is stored or answered any more.
    async fn keep(&self, state: &mut State, key: &'static [u8], value: Bytes) -> Result<(), StoreError> {
        let store = self.store.clone();
        let job = move || match store.insert(Tree::Meta, key, &value) {
            Ok(()) => store.sync().map_err(|error| (error, true)),
            // What failed may have been the engine's end, which its next sync tells.
            Err(error) => Err((error, store.sync().is_err())),
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
                if let (Some(failed), true) = (&self.sync_failed, unknown) {
                    failed(error.to_string());
                }
                Err(error)
            }
        }
    }

    fn storage(&self, error: &StoreError) -> NotApplied {
        NotApplied::Storage { node: self.me.node, why: error.to_string() }
    }

    /// Whether the staged layout may still be changed.
    async fn may_stage(&self) -> Result<(), NotApplied> {
        self.state.lock().await.may_stage()
    }

    async fn stage(self: &Arc<Self>, change: impl FnOnce(&mut Staged) + Send + 'static) -> Result<(), NotApplied> {
        let desk = Arc::clone(self);
        to_the_end(async move { desk.stage_now(change).await }).await
    }

    async fn stage_now(&self, change: impl FnOnce(&mut Staged)) -> Result<(), NotApplied> {
        let mut state = self.state.lock().await;
        state.may_stage()?;
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
    async fn to_apply(&self, version: LayoutVersion) -> Result<Layout, NotApplied> {
        let state = self.state.lock().await;
        if let Some(error) = &state.failed {
            return Err(self.storage(error));
        }
        let chosen = state.bootstrap.is_chosen();
        if version != LayoutVersion(1) {
            let current = u64::from(chosen);
            return Err(refused(if chosen && version.0 > current {
                LATER_RELEASE.into()
            } else {
                format!("the current layout is {current}, so that only version {} can be applied", current + 1)
            }));
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

    async fn missing(&self) -> Vec<NodeId> {
        self.state.lock().await.bootstrap.missing()
    }

    async fn is_chosen(&self) -> bool {
        self.state.lock().await.bootstrap.is_chosen()
    }

    async fn report(&self) -> LayoutReport {
        let state = self.state.lock().await;
        let accepted = state.bootstrap.accepted().map(|(layout, _)| layout.clone());
        let chosen = accepted.clone().filter(|_| state.bootstrap.is_chosen());
        // What is accepted is what the next apply is about, whatever was staged here.
        let staged = match &accepted {
            Some(_) if chosen.is_some() => None,
            Some(layout) => Some(layout.clone()),
            None => (!state.staged.is_empty()).then(|| state.staged.layout(self.me.cluster)),
        };
        let mut seconds = Vec::new();
        if accepted.is_some() && chosen.is_none() {
            seconds.extend(state.bootstrap.not_serving());
        }
        let holding = state.bootstrap.holding();
        let context_keys = state.keys.names().iter().map(ToString::to_string).collect();
        drop(state);
        let shown = self.showing.of(chosen, staged).await;
        seconds.extend(shown.warnings.iter().cloned());
        LayoutReport {
            current: shown.current_view.clone(),
            staged: shown.staged_view.clone(),
            problems: shown.problems.clone(),
            missing: Vec::new(),
            holding,
            warnings: seconds,
            context_keys,
        }
    }
}

impl State {
    fn may_stage(&self) -> Result<(), NotApplied> {
        match self.bootstrap.accepted() {
            None => Ok(()),
            Some(_) if self.bootstrap.is_chosen() => Err(refused(LATER_RELEASE.into())),
            Some((_, hash)) => Err(refused(format!(
                "{hash} is accepted as layout 1, which cannot be taken back: repeat `layout apply --version 1` until it is in \
                 force"
            ))),
        }
    }
}

const LATER_RELEASE: &str =
    "a layout that is in force cannot be changed yet: no node joins, leaves or is replaced in this release";
const NO_KEY: &str = "it came without a context key, so that nobody could tell whose contexts are genuine";

/// The background task.
struct Spread {
    desk: Arc<Desk>,
    peers: Peers,
    liveness: watch::Receiver<Arc<Liveness>>,
    digests: watch::Receiver<Arc<LayoutDigests>>,
    /// Which context keys each peer was last known to hold.
    held: context_keys::HeldBy,
    random: Random,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
enum Task {
    /// Nothing, until something changes.
    Rest,
    /// Ask these what they hold.
    Ask(Vec<NodeId>),
    /// Offer these the chosen layout.
    Offer(Vec<NodeId>, Layout),
}

impl Spread {
    async fn run(mut self) {
        let mut accepts = self.desk.accepts.subscribe();
        let (mut pause, mut membership) = (PAUSE_MIN, true);
        loop {
            // What changes from here on must start another round.
            accepts.borrow_and_update();
            let liveness = self.liveness.borrow_and_update().clone();
            self.digests.mark_unchanged();
            let task = self.desk.task(&liveness).await;
            let differing = self.differing(&liveness);
            let rest = task == Task::Rest && differing.is_empty();
            let news = match self.both(task, &differing).await {
                Ok(news) => news,
                Err(error) if self.desk.state.lock().await.failed.is_some() => {
                    tracing::error!("the layout cannot be stored, and is not spread any more: {error}");
                    return;
                }
                // Nothing was changed, as by a disk that is full for now.
                Err(error) => {
                    sometimes!("layouts: one could not be stored for now");
                    tracing::warn!("the layout cannot be stored, which is tried again: {error}");
                    false
                }
            };
            pause = if news { PAUSE_MIN } else { pause };
            pause = buggify!("layouts: others are asked at once", pause, Duration::from_millis(1));
            let shortened = self.random.below(pause.as_millis() as u64 / 2 + 1);
            let timer = sleep(pause - Duration::from_millis(shortened));
            tokio::select! {
                biased;
                changed = self.liveness.changed(), if membership => {
                    // A membership that has ended says nothing new; peers may ask for the layout until the node ends as well.
                    membership = changed.is_ok();
                    pause = PAUSE_MIN;
                    // Liveness flaps while many nodes start; one short pause makes one round of it.
                    sleep(PAUSE_MIN / 4).await;
                }
                changed = self.digests.changed(), if membership => {
                    membership = changed.is_ok();
                    pause = PAUSE_MIN;
                }
                // The desk, which this task holds, keeps the sender.
                _ = accepts.changed() => pause = PAUSE_MIN,
                () = timer, if !rest => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }

    /// Tells whether there was news.
    async fn both(&mut self, task: Task, differing: &[NodeId]) -> Result<bool, StoreError> {
        let news = self.round(task).await?;
        Ok(self.exchange(differing).await? || news)
    }

    async fn round(&self, task: Task) -> Result<bool, StoreError> {
        match task {
            Task::Rest => Ok(false),
            Task::Ask(nodes) => self.ask_what_is_accepted(&nodes).await,
            Task::Offer(nodes, layout) => self.offer(&nodes, layout).await,
        }
    }

    async fn ask_what_is_accepted(&self, nodes: &[NodeId]) -> Result<bool, StoreError> {
        self.learn_addresses(nodes);
        let mut news = false;
        for (node, answer) in ask(&self.peers, &self.random, nodes, &GetLayout).await {
            match answer {
                Ok(LayoutState { accepted, chosen, keys }) => {
                    news |= self.desk.hear(node, accepted, chosen, keys).await?;
                }
                Err(error) => tracing::debug!(peer = %node, "no layout from the peer: {}", reason(error)),
            }
        }
        Ok(news)
    }

    async fn offer(&self, nodes: &[NodeId], layout: Layout) -> Result<bool, StoreError> {
        self.learn_addresses(nodes);
        let accept = AcceptFirstLayout { layout: layout.clone(), keys: self.desk.known_keys() };
        let mut news = false;
        for (node, answer) in ask(&self.peers, &self.random, nodes, &accept).await {
            match answer {
                Ok(FirstLayoutAccepted) => {
                    sometimes!("layouts: offered to a member that was away");
                    news |= self.desk.hear(node, Some(layout.clone()), false, ContextKeys::default()).await?;
                }
                Err(error) => tracing::debug!(peer = %node, "the peer does not take the layout: {}", reason(error)),
            }
        }
        Ok(news)
    }

    fn learn_addresses(&self, nodes: &[NodeId]) {
        if let Some(layout) = &self.desk.told().accepted {
            for member in layout.members.iter().filter(|member| nodes.contains(&member.node)) {
                self.peers.learn(member.node, member.addr);
            }
        }
    }
}

impl Desk {
    /// What the background task has to do. Members that the membership knows to be down are left alone until it knows better.
    async fn task(&self, liveness: &Liveness) -> Task {
        let state = self.state.lock().await;
        if state.failed.is_some() {
            return Task::Rest;
        }
        let down = |node: &NodeId| liveness.get(node).is_some_and(|peer| !peer.up);
        let reachable = |nodes: Vec<NodeId>| nodes.into_iter().filter(|node| !down(node)).collect::<Vec<_>>();
        let bootstrap = &state.bootstrap;
        match bootstrap.accepted() {
            Some((layout, _)) if bootstrap.is_chosen() => match reachable(bootstrap.missing()) {
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
async fn to_the_end<T: Send + 'static>(step: impl Future<Output = T> + Send + 'static) -> T {
    match supervise::spawn("layouts: a step", step.in_current_span()).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime ends, and this future with it.
        Err(_) => std::future::pending().await,
    }
}

/// Asks many peers the same, [`PEERS_AT_ONCE`] at a time; the answers are in the order of the nodes.
async fn ask<Q>(peers: &Peers, random: &Random, nodes: &[NodeId], question: &Q) -> Vec<(NodeId, Answer<Q>)>
where
    Q: Ask<Answer: Send> + Clone + Send + 'static,
{
    ask_within(peers, random, nodes, question, PEER_TIMEOUT).await
}

async fn ask_within<Q>(
    peers: &Peers,
    random: &Random,
    nodes: &[NodeId],
    question: &Q,
    timeout: Duration,
) -> Vec<(NodeId, Answer<Q>)>
where
    Q: Ask<Answer: Send> + Clone + Send + 'static,
{
    in_batches(nodes, |node| {
        let (peers, request_id, question) = (peers.clone(), random.u64(), question.clone());
        async move { peers.ask(node, request_id, question, timeout).await }
    })
    .await
}

type Answer<Q> = Result<<Q as Ask>::Answer, AskError>;

async fn in_batches<F>(nodes: &[NodeId], call: impl Fn(NodeId) -> F) -> Vec<(NodeId, F::Output)>
where
    F: Future<Output: Send> + Send + 'static,
{
    let mut answers = BTreeMap::new();
    for batch in nodes.chunks(PEERS_AT_ONCE) {
        let mut calls = JoinSet::new();
        for node in batch.iter().copied() {
            let call = call(node);
            calls.spawn(supervise::watched("layouts: a call", async move { (node, call.await) }));
        }
        while let Some(done) = calls.join_next().await {
            // A panic in a call is this task's own.
            let (node, answer) = done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            answers.insert(node, answer);
        }
    }
    answers.into_iter().collect()
}

fn load<T: serde::de::DeserializeOwned>(store: &dyn Store, key: &[u8]) -> Result<Option<T>, StoreError> {
    let Some(bytes) = store.get(Tree::Meta, key)? else { return Ok(None) };
    let name = String::from_utf8_lossy(key);
    codec::decode(&bytes).map(Some).map_err(|error| StoreError::Corrupt(format!("{name}: {error}")))
}

fn check_member(zone: &str, weight: u32) -> Result<(), NotApplied> {
    if zone.is_empty() || zone.len() > ZONE_LEN_MAX {
        return Err(refused(format!("the zone has {} bytes, 1 to {ZONE_LEN_MAX} are possible", zone.len())));
    }
    if weight == 0 || weight > WEIGHT_MAX {
        return Err(refused(format!("the weight is {weight}, 1 to {WEIGHT_MAX} are possible")));
    }
    Ok(())
}

fn refused(why: String) -> NotApplied {
    NotApplied::Refused { why }
}

/// Why a peer did not do what it was asked, for people.
fn reason(error: AskError) -> String {
    match error {
        AskError::Refused(NotApplied::Refused { why }) => why,
        AskError::Refused(other) => other.to_string(),
        other => other.to_string(),
    }
}

fn list<'a>(missing: impl Iterator<Item = (NodeId, &'a str)>) -> String {
    missing.map(|(node, why)| format!("{node} ({why})")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::membership::PeerState;
    use crate::store::Stats;

    #[tokio::test]
    async fn what_is_staged_is_kept_over_a_restart() {
        let disk = Arc::new(Disk::default());
        let desk = open(0, &disk).await;
        assert_eq!(desk.report().await.staged, None);
        assert_eq!(desk.report().await.current, Layout::none_view());
        stage(&desk, 3).await;
        desk.stage(|staged| staged.settings(None, Some(64), None, None)).await.expect("staged");
        let report = open(0, &disk.after_power_cut()).await.report().await;
        let staged = report.staged.expect("staged");
        assert_eq!((staged.members.len(), staged.n, staged.partitions, staged.r, staged.w), (3, 3, 64, 2, 2));
        assert_eq!(report.problems, Vec::<String>::new());
        assert_eq!(staged.members.iter().map(|member| member.primaries).sum::<u32>(), 3 * 64);
        desk.stage(|staged| *staged = Staged::default()).await.expect("reverted");
        assert_eq!(open(0, &disk.after_power_cut()).await.report().await.staged, None);
    }

    #[tokio::test]
    async fn an_apply_that_cannot_be_is_refused_with_its_reasons() {
        let desk = open(0, &Arc::new(Disk::default())).await;
        let why = |version: u64| {
            let desk = &desk;
            async move { desk.to_apply(LayoutVersion(version)).await.expect_err("refused").to_string() }
        };
        assert!(why(1).await.contains("nothing is staged"));
        assert!(why(0).await.contains("only version 1"));
        assert!(why(2).await.contains("only version 1"));
        stage(&desk, 2).await;
        assert!(why(1).await.contains("only 2 members: stage 1 more"));
        let elsewhere = open(9, &Arc::new(Disk::default())).await;
        stage(&elsewhere, 3).await;
        let why = elsewhere.to_apply(LayoutVersion(1)).await.expect_err("refused").to_string();
        assert!(why.contains("n9 is not among the staged members"), "{why}");
        assert!(elsewhere.told().accepted.is_none());
    }

    #[tokio::test]
    async fn a_lone_member_is_its_own_majority() {
        let disk = Arc::new(Disk::default());
        let desk = open(0, &disk).await;
        stage(&desk, 1).await;
        desk.stage(|staged| staged.settings(Some(1), Some(8), None, None)).await.expect("staged");
        let mut watch = desk.current.subscribe();
        let layout = desk.to_apply(LayoutVersion(1)).await.expect("fine");
        desk.accept(layout.clone(), keys()).await.expect("accepted");
        let current = watch.borrow_and_update().clone().expect("published");
        assert_eq!((current.hash, current.table.primaries.len(), current.ring.n()), (layout.hash(), 8, 1));
        assert_eq!(desk.told().not_serving, None);
        let again = open(0, &disk.after_power_cut()).await;
        assert_eq!(again.current.borrow().as_ref().expect("in force").hash, layout.hash());
    }

    #[tokio::test]
    async fn a_majority_brings_it_into_force_and_a_restart_in_between_forgets_nothing() {
        let disks: Vec<Arc<Disk>> = (0..3).map(|_| Arc::default()).collect();
        let desk = open(0, &disks[0]).await;
        stage(&desk, 3).await;
        let layout = desk.to_apply(LayoutVersion(1)).await.expect("fine");
        desk.accept(layout.clone(), keys()).await.expect("accepted");
        assert!(desk.current.borrow().is_none(), "one of three");
        let report = desk.report().await;
        assert!(report.warnings[0].contains("1 of 3 members are known to hold it, 2 are needed"), "{report:?}");
        assert_eq!(report.staged.expect("what the next apply is about").hash, layout.hash().to_string());

        // The operator's node stops here; what it accepted is what it applies when it is asked again.
        let desk = open(0, &disks[0].after_power_cut()).await;
        assert_eq!(desk.to_apply(LayoutVersion(1)).await.expect("the same"), layout);
        let why = desk.stage(|staged| *staged = Staged::default()).await.expect_err("too late").to_string();
        assert!(why.contains("cannot be taken back"), "{why}");

        let other = open(1, &disks[1]).await;
        other.accept(layout.clone(), keys()).await.expect("accepted");
        other.accept(layout.clone(), keys()).await.expect("repeated");
        assert_eq!(other.task(&liveness(&[0, 1, 2], &[])).await, Task::Ask(vec![id(0), id(2)]));
        tell(&other, 1, &desk).await;
        assert_eq!(desk.current.borrow().as_ref().expect("two of three").hash, layout.hash());
        assert_eq!(desk.report().await.holding, [id(0), id(1)]);
        tell(&desk, 0, &other).await;
        assert!(other.current.borrow().is_some(), "who accepted it hears that it is chosen");

        // The third was down all the time.
        assert_eq!(desk.task(&liveness(&[0, 1], &[2])).await, Task::Rest);
        assert_eq!(desk.task(&liveness(&[0, 1, 2], &[])).await, Task::Offer(vec![id(2)], layout.clone()));
        let third = open(2, &disks[2]).await;
        assert_eq!(third.task(&liveness(&[2], &[])).await, Task::Rest);
        assert_eq!(third.task(&liveness(&[0, 2], &[1])).await, Task::Ask(vec![id(0)]));
        tell(&desk, 0, &third).await;
        assert!(open(2, &disks[2].after_power_cut()).await.current.borrow().is_some(), "learned and kept");
        tell(&third, 2, &desk).await;
        assert_eq!(desk.task(&liveness(&[0, 1, 2], &[])).await, Task::Rest);

        assert_eq!(desk.to_apply(LayoutVersion(1)).await.expect("again is fine"), layout);
        for refusal in [desk.to_apply(LayoutVersion(2)).await.map(drop), desk.stage(|_| {}).await] {
            assert!(refusal.expect_err("later").to_string().contains("cannot be changed yet"));
        }
    }

    #[tokio::test]
    async fn a_second_first_layout_is_refused_for_ever() {
        let disk = Arc::new(Disk::default());
        let (one, other) = (layout(3, 64), layout(3, 128));
        open(1, &disk).await.accept(one.clone(), keys()).await.expect("accepted");
        let desk = open(1, &disk.after_power_cut()).await;
        let why = desk.accept(other.clone(), keys()).await.expect_err("another").to_string();
        assert!(why.contains(&one.hash().to_string()) && why.contains(&other.hash().to_string()), "{why}");
        assert_eq!(desk.state(), LayoutState { accepted: Some(one), chosen: false, keys: keys() });
    }

    #[tokio::test(start_paused = true)]
    async fn an_acceptance_that_nobody_waits_for_is_still_the_only_one() {
        let disk = Arc::new(Disk::default());
        let latencies = Mutex::new(vec![Duration::from_secs(1), Duration::from_secs(5), Duration::ZERO]);
        let next = move || lock_of(&latencies).pop().unwrap_or_default();
        let slow = Executor::Slow(crate::store::Latency(Arc::new(next)));
        let desk = Arc::new(Desk::open(disk.clone(), slow, me(1)).await.expect("opens"));
        let (one, other) = (layout(3, 64), layout(3, 128));
        // The proposer gives up while the disk is busy, and another one comes.
        tokio::time::timeout(Duration::from_secs(1), desk.accept(one.clone(), keys())).await.expect_err("too slow");
        desk.accept(other, keys()).await.expect_err("the first one is on its way to the disk");
        sleep(Duration::from_secs(10)).await;
        assert_eq!(desk.state(), LayoutState { accepted: Some(one.clone()), chosen: false, keys: keys() });
        let again = open(1, &disk.after_power_cut()).await;
        assert_eq!(again.state(), LayoutState { accepted: Some(one), chosen: false, keys: keys() });
    }

    fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().expect("nothing panics while it is locked")
    }

    #[tokio::test]
    async fn a_wiped_member_accepts_nothing_and_learns_what_is_in_force() {
        let disk = Arc::new(Disk::default());
        let wiped = Desk::open(disk.clone(), Executor::Inline, Me { disk: DiskId(77), ..me(2) }).await.expect("opens");
        let wiped = Arc::new(wiped);
        let layout = layout(3, 64);
        let why = wiped.accept(layout.clone(), keys()).await.expect_err("another disk").to_string();
        assert!(why.contains("emptied or exchanged"), "{why}");
        assert!(!wiped.hear(id(0), Some(layout.clone()), false, keys()).await.expect("no storage is touched"));
        assert_eq!(wiped.state(), LayoutState { accepted: None, chosen: false, keys: ContextKeys::default() });
        assert!(disk.durable.lock().expect("lock").is_empty());
        assert!(wiped.hear(id(0), Some(layout), true, keys()).await.expect("stored"), "what is in force is learned");
        assert!(wiped.told().not_serving.is_none() && wiped.report().await.holding.is_empty());
    }

    #[tokio::test]
    async fn nothing_is_answered_before_it_is_durable() {
        let disk = Arc::new(Disk::default());
        let desk = open(1, &disk).await;
        disk.full.store(true, Ordering::SeqCst);
        let why = desk.accept(layout(3, 64), keys()).await.expect_err("full");
        assert!(matches!(why, NotApplied::Storage { .. }), "{why}");
        assert!(desk.told().not_serving.clone().expect("why").contains("could not be stored"));
        disk.full.store(false, Ordering::SeqCst);
        desk.accept(layout(3, 128), keys()).await.expect("nothing had been accepted");

        let desk = open(2, &disk).await;
        assert!(desk.told().not_serving.is_some());
        let disk = Arc::new(Disk::default());
        let desk_of_failing = open(1, &disk).await;
        disk.sync_fails.store(true, Ordering::SeqCst);
        assert!(desk_of_failing.accept(layout(3, 64), keys()).await.is_err());
        disk.sync_fails.store(false, Ordering::SeqCst);
        // What the disk holds is unknown now, so that not even the same layout can be acknowledged.
        assert!(desk_of_failing.accept(layout(3, 64), keys()).await.is_err());
        assert!(desk_of_failing.told().not_serving.clone().expect("why").contains("could not be stored"));
        assert_eq!(
            desk_of_failing.state(),
            LayoutState { accepted: None, chosen: false, keys: ContextKeys::default() }
        );
    }

    #[tokio::test]
    async fn the_context_key_comes_with_the_layout_and_stays_over_restarts() {
        let disks: Vec<Arc<Disk>> = (0..2).map(|_| Arc::default()).collect();
        let layout = layout(3, 64);
        let desk = open(0, &disks[0]).await;
        assert!(desk.known_keys().is_empty());
        let why = desk.accept(layout.clone(), ContextKeys::default()).await.expect_err("no key").to_string();
        assert!(why.contains("without a context key"), "{why}");
        desk.accept(layout.clone(), keys()).await.expect("accepted");
        assert_eq!(desk.known_keys(), keys());
        assert_eq!(open(0, &disks[0].after_power_cut()).await.known_keys(), keys());
        // Somebody has proposed the same layout elsewhere, with a key of its own.
        let other = ContextKeys::first([8; 32]);
        desk.accept(layout.clone(), other.clone()).await.expect("the same layout");
        assert_eq!(desk.known_keys().names().len(), 2);
        let restarted = open(0, &disks[0].after_power_cut()).await;
        assert_eq!(restarted.known_keys(), desk.known_keys());

        // Who learns the layout learns the keys, and never the one without the other.
        let late = open(9, &disks[1]).await;
        assert!(!late.hear(id(0), Some(layout.clone()), true, ContextKeys::default()).await.expect("nothing to store"));
        assert_eq!(late.state(), LayoutState { accepted: None, chosen: false, keys: ContextKeys::default() });
        assert!(!late.take_keys(keys()).await.expect("nothing to store"), "there is no layout that they could be of");
        assert!(late.hear(id(0), Some(layout.clone()), true, desk.known_keys()).await.expect("stored"));
        assert_eq!(open(9, &disks[1].after_power_cut()).await.known_keys(), desk.known_keys());
        // What another layout's node holds is of no use here.
        let stranger = self::layout(3, 128);
        let third = ContextKeys::first([9; 32]);
        assert!(!late.hear(id(1), Some(stranger), true, third.clone()).await.expect("refused"));
        assert_eq!(late.known_keys(), desk.known_keys());
        assert!(late.hear(id(1), Some(layout), true, third).await.expect("stored"));
        assert_eq!(late.known_keys().names().len(), 3);
    }

    #[tokio::test]
    async fn a_key_is_durable_before_anything_is_sealed_with_it() {
        let disk = Arc::new(Disk::default());
        let desk = open(0, &disk).await;
        desk.accept(layout(3, 64), keys()).await.expect("accepted");
        let rotated = keys().rotated([8; 32]).expect("there is a first one");
        disk.full.store(true, Ordering::SeqCst);
        assert!(matches!(desk.take_keys(rotated.clone()).await, Err(StoreError::Full(_))));
        assert_eq!(desk.known_keys(), keys());
        disk.full.store(false, Ordering::SeqCst);
        assert!(desk.take_keys(rotated.clone()).await.expect("there is room again"));
        assert!(!desk.take_keys(rotated.clone()).await.expect("no news"));
        assert_eq!(desk.known_keys(), rotated);
        disk.sync_fails.store(true, Ordering::SeqCst);
        let third = rotated.rotated([9; 32]).expect("there is one");
        assert!(desk.take_keys(third.clone()).await.is_err());
        assert_eq!(desk.known_keys(), rotated);
        assert!(desk.take_keys(third).await.is_err(), "what the disk holds is not known any more");
        assert_eq!(open(0, &disk.after_power_cut()).await.known_keys(), rotated);
    }

    #[tokio::test]
    async fn an_engine_that_met_the_end_of_the_disk_stores_nothing_any_more_unless_it_can_go_on() {
        let disk = Arc::new(Disk::default());
        let desk = open(0, &disk).await;
        desk.accept(layout(3, 64), keys()).await.expect("accepted");
        let rotated = keys().rotated([8; 32]).expect("there is a first one");
        disk.full.store(true, Ordering::SeqCst);
        disk.sync_fails.store(true, Ordering::SeqCst);
        assert!(desk.take_keys(rotated.clone()).await.is_err());
        disk.full.store(false, Ordering::SeqCst);
        disk.sync_fails.store(false, Ordering::SeqCst);
        assert!(desk.take_keys(rotated).await.is_err(), "what the disk holds is not known any more");
    }

    #[tokio::test]
    async fn no_operator_sees_a_secret() {
        let desk = open(0, &Arc::new(Disk::default())).await;
        desk.accept(layout(3, 64), ContextKeys::first([0xab; 32])).await.expect("accepted");
        let report = desk.report().await;
        assert_eq!(report.context_keys.len(), 1);
        let shown = format!("{report:?} {:?} {:?} {desk:?}", desk.state(), desk.known_keys());
        for secret in ["171, 171", "ababab", "\\xab"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[tokio::test]
    async fn what_is_stored_and_is_no_layout_is_an_error() {
        let disk = Arc::new(Disk::default());
        disk.insert(Tree::Meta, FIRST_KEY, b"garbage").expect("inserted");
        let error = Desk::open(disk, Executor::Inline, me(0)).await.expect_err("garbage");
        assert!(matches!(&error, StoreError::Corrupt(why) if why.contains("layout/first")), "{error}");
    }

    #[tokio::test]
    async fn answers_come_in_the_order_of_the_nodes_whoever_is_late() {
        let nodes: Vec<NodeId> = (0..9).map(id).collect();
        let answers = in_batches(&nodes, |node| async move {
            if node == id(0) {
                tokio::task::yield_now().await;
            }
            Err::<(), _>(AskError::NotSent(node.to_string()))
        });
        let answers = answers.await;
        assert_eq!(answers.iter().map(|(node, _)| *node).collect::<Vec<_>>(), nodes);
        assert!(answers.iter().all(|(node, answer)| *answer == Err(AskError::NotSent(node.to_string()))));
    }

    #[tokio::test]
    async fn a_floor_above_n_is_not_staged() {
        let desk = open(0, &Arc::new(Disk::default())).await;
        let settings = async |n, r, w| desk.stage(move |staged| staged.settings(n, None, r, w)).await;
        let refused = settings(None, Some(9), None).await.expect_err("N is 3");
        assert_eq!(refused, NotApplied::QuorumImpossible { what: "the floor of R".into(), asked: 9, n: 3 });
        settings(Some(9), Some(9), None).await.expect("possible");
        let refused = settings(Some(5), None, None).await.expect_err("R stays 9");
        assert!(refused.to_string().contains("the floor of R=9 is not possible with N=5"), "{refused}");
    }

    #[test]
    fn bad_members_are_refused_before_anybody_is_asked() {
        assert!(check_member("a", 1).is_ok());
        for (zone, weight, why) in
            [("", 1, "0 bytes"), (&"z".repeat(65), 1, "65 bytes"), ("a", 0, "weight is 0"), ("a", 1001, "1001")]
        {
            assert!(check_member(zone, weight).expect_err("bad").to_string().contains(why));
        }
    }

    /// What `from` says of itself, as `to` hears it.
    async fn tell(from: &Desk, i: usize, to: &Arc<Desk>) {
        let LayoutState { accepted, chosen, keys } = from.state();
        assert!(to.hear(id(i), accepted, chosen, keys).await.expect("stored"), "news");
    }

    async fn open(i: usize, disk: &Arc<Disk>) -> Arc<Desk> {
        Arc::new(Desk::open(disk.clone(), Executor::Inline, me(i)).await.expect("opens"))
    }

    async fn stage(desk: &Arc<Desk>, count: usize) {
        for i in 0..count {
            let addr = SocketAddr::from(([127, 0, 0, 1], 7000 + i as u16));
            let member = StagedMember { disk: DiskId(i as u128), addr, zone: "z".into(), weight: 1 };
            desk.stage(move |staged| staged.join(id(i), member)).await.expect("staged");
        }
    }

    fn layout(count: usize, partitions: u16) -> Layout {
        let mut staged = Staged::default();
        for i in 0..count {
            let addr = SocketAddr::from(([127, 0, 0, 1], 7000 + i as u16));
            staged.join(id(i), StagedMember { disk: DiskId(i as u128), addr, zone: "z".into(), weight: 1 });
        }
        staged.settings(None, Some(partitions), None, None);
        staged.layout(ClusterId(7))
    }

    fn liveness(up: &[usize], down: &[usize]) -> Liveness {
        let state = |i: usize, up: bool| {
            let addr = SocketAddr::from(([127, 0, 0, 1], 7000 + i as u16));
            (id(i), PeerState { addr, up, since: Instant::now() })
        };
        up.iter().map(|i| state(*i, true)).chain(down.iter().map(|i| state(*i, false))).collect()
    }

    fn keys() -> ContextKeys {
        ContextKeys::first([7; 32])
    }

    fn id(i: usize) -> NodeId {
        NodeId::new(&format!("n{i}")).expect("legal")
    }

    fn me(i: usize) -> Me {
        Me { node: id(i), disk: DiskId(i as u128), cluster: ClusterId(7) }
    }

    /// A store that knows what would survive a power cut, and that can be full or fail to sync.
    #[derive(Debug, Default)]
    struct Disk {
        entries: Mutex<BTreeMap<Vec<u8>, Bytes>>,
        durable: Mutex<BTreeMap<Vec<u8>, Bytes>>,
        full: AtomicBool,
        sync_fails: AtomicBool,
    }

    impl Disk {
        fn after_power_cut(&self) -> Arc<Self> {
            let durable = self.durable.lock().expect("lock").clone();
            Arc::new(Self { entries: Mutex::new(durable.clone()), durable: Mutex::new(durable), ..Self::default() })
        }
    }

    impl Store for Disk {
        fn get(&self, _: Tree, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            Ok(self.entries.lock().expect("lock").get(key).cloned())
        }

        fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
            assert_eq!(tree, Tree::Meta);
            if self.full.load(Ordering::SeqCst) {
                return Err(StoreError::Full("no space".into()));
            }
            self.entries.lock().expect("lock").insert(key.to_vec(), Bytes::copy_from_slice(value));
            Ok(())
        }

        fn remove(&self, _: Tree, key: &[u8]) -> Result<(), StoreError> {
            self.entries.lock().expect("lock").remove(key);
            Ok(())
        }

        fn scan(
            &self,
            _: Tree,
            _: &[u8],
            _: Option<&[u8]>,
            _: usize,
            _: usize,
        ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
            panic!("layouts are never scanned for")
        }

        fn keys(&self, _: Tree, _: &[u8], _: Option<&[u8]>, _: usize) -> Result<Vec<Bytes>, StoreError> {
            panic!("layouts are never scanned for")
        }

        fn sync(&self) -> Result<(), StoreError> {
            if self.sync_fails.load(Ordering::SeqCst) {
                return Err(StoreError::Io("the disk is gone".into()));
            }
            *self.durable.lock().expect("lock") = self.entries.lock().expect("lock").clone();
            Ok(())
        }

        fn stats(&self) -> Stats {
            Stats::default()
        }
    }
}
